package escrow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Waiting is a record that waits in an escrow, as far as it shows without being
// opened.
type Waiting struct {
	Meta       keystore.Meta // with its states
	Sealed     time.Time
	Recipients string // age recipients with a space between them
	Uploaded   bool   // the inner store has it too
	Store      string // Info.ID of the inner store
}

// List gives what waits in a spool, by unit. It needs neither store nor identity.
func List(dir string) ([]Waiting, error) {
	sp, err := openSpool(dir)
	if err != nil {
		return nil, err
	}
	entries, err := sp.all(chip.MAC{})
	if err != nil {
		return nil, err
	}
	var out []Waiting
	for _, e := range entries {
		if !e.live() {
			continue
		}
		m := e.header.meta
		m.States = e.states
		out = append(out, Waiting{m, e.header.sealed, e.header.recipients, e.uploaded, e.header.store})
	}
	return out, nil
}

// ReadIdentities reads an age identity file, which only its owner may read.
// Errors echo nothing of it.
func ReadIdentities(path string) ([]age.Identity, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("keystore/escrow: identity: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("keystore/escrow: identity %s has mode %04o: look who read it, then: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("keystore/escrow: %s is too large for an identity file", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keystore/escrow: identity: %w", err)
	}
	defer clear(b)
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil || len(ids) == 0 {
		return nil, fmt.Errorf("keystore/escrow: %s holds no age identity (a line AGE-SECRET-KEY-1…)", path)
	}
	return ids, nil
}

// sealedRecord is what a source hands to Drain.
type sealedRecord struct {
	key
	file   []byte
	states []keystore.State
	// sure says that states are all that there are. A copy in the inner store may
	// lack the last ones.
	sure bool
	// done marks the record as drained. It is false if there are more states by now.
	done func(ctx context.Context, o outcome) (bool, error)
}

// Source is where Drain takes sealed records from: Spool or Uploads.
type Source struct {
	each func(ctx context.Context) iter.Seq2[sealedRecord, error]
}

// Spool takes the records of a spool: the station's, or a copy of it. A record
// that is marked in a copy is marked in the station's by its next Sync.
func Spool(dir string) (Source, error) {
	sp, err := openSpool(dir)
	if err != nil {
		return Source{}, err
	}
	return spoolSource(sp), nil
}

func spoolSource(sp *spool) Source {
	return Source{func(context.Context) iter.Seq2[sealedRecord, error] {
		return func(yield func(sealedRecord, error) bool) {
			unlock, err := sp.lock()
			if err != nil {
				yield(sealedRecord{}, err)
				return
			}
			err = sp.finishAll() // what a crash left
			unlock()
			if err != nil {
				yield(sealedRecord{}, err)
				return
			}
			entries, err := sp.all(chip.MAC{})
			if err != nil {
				yield(sealedRecord{}, err)
				return
			}
			for _, e := range entries {
				done := func(_ context.Context, o outcome) (bool, error) { return sp.settle(e, o) }
				if e.live() && !yield(sealedRecord{e.key, e.sealed, e.states, true, done}, nil) {
					return
				}
			}
		}
	}}
}

// Custody is a store whose Depot the custodian's role may read.
type Custody interface {
	// EachSealed shows every sealed record that is not marked, and ends at the
	// first error.
	EachSealed(ctx context.Context, show func(station string, unit chip.MAC, fp keystore.Fingerprint) error) error
	// ReadSealed gives a sealed record and its states.
	ReadSealed(ctx context.Context, station string, unit chip.MAC, fp keystore.Fingerprint) (sealed []byte, states [][]byte, err error)
	// PutDrained marks a record, create-only.
	PutDrained(ctx context.Context, station string, unit chip.MAC, fp keystore.Fingerprint, marker []byte) error
}

// Uploads takes the records that stations have uploaded.
func Uploads(c Custody) Source {
	return Source{func(ctx context.Context) iter.Seq2[sealedRecord, error] {
		return func(yield func(sealedRecord, error) bool) {
			stop := errors.New("stop")
			err := c.EachSealed(ctx, func(station string, unit chip.MAC, fp keystore.Fingerprint) error {
				r := sealedRecord{key: key{unit, fp}}
				r.done = func(ctx context.Context, o outcome) (bool, error) {
					return true, c.PutDrained(ctx, station, unit, fp, marshalOutcome(r.key, o))
				}
				file, states, err := c.ReadSealed(ctx, station, unit, fp)
				r.file = file
				for i, b := range states {
					of, st, perr := parseState(b)
					if perr == nil && (of != r.key || st.Seq != i+1) {
						perr = errors.New("it is the state of another record")
					}
					if perr != nil {
						err = fmt.Errorf("%w: state %d of key %s of unit %s: %w", keystore.ErrDamaged, i+1, fp, unit, perr)
						break
					}
					r.states = append(r.states, st)
				}
				if !yield(r, err) {
					return stop
				}
				return nil
			})
			if err != nil && !errors.Is(err, stop) {
				yield(sealedRecord{}, err)
			}
		}
	}}
}

// DrainReport is what a Drain did.
type DrainReport struct {
	Stored   int       `json:"stored"`   // records that are in the store now, confirmed
	GivenUp  int       `json:"given_up"` // keys that never reached silicon, whose unit has another one
	Findings []Finding `json:"findings"` // records that stay where they are
}

// Drain opens each record, stores it with its states, confirms it, and only then
// marks it. It is the custodian's: it needs the offline identity, and a store
// that takes records, states, and answers List. What it cannot bring on is a
// Finding and stays as it is; an error says that the store or the source is away.
//
// An earlier key of the same unit, job and station that was stored and never allowed
// to be burned is superseded: the station that could not ask for it made the drained
// one in its place, and a state that allows the burn would have been written
// before the burn.
func Drain(ctx context.Context, from Source, ids []age.Identity, to keystore.Store, now func() time.Time) (DrainReport, error) {
	rep := DrainReport{Findings: []Finding{}}
	info, err := to.Info(ctx)
	if err != nil {
		return rep, err
	}
	d := drainer{ids: ids, to: to, info: info, now: now, rep: &rep}
	for r, err := range from.each(ctx) {
		if err == nil {
			err = d.one(ctx, r)
		} else if r.key == (key{}) {
			return rep, err
		}
		switch {
		case err == nil:
		case outage(ctx, err), ctx.Err() != nil, errors.Is(err, context.Canceled):
			return rep, err
		default:
			rep.Findings = append(rep.Findings, Finding{r.unit, r.fp, err.Error()})
		}
	}
	return rep, nil
}

type drainer struct {
	ids  []age.Identity
	to   keystore.Store
	info keystore.Info
	now  func() time.Time
	rep  *DrainReport
}

func (d *drainer) one(ctx context.Context, r sealedRecord) error {
	h, rec, err := openSealed(r.file, d.ids)
	if err != nil {
		return err
	}
	defer rec.Key.Wipe()
	if rec.Unit != r.unit || rec.Fingerprint != r.fp {
		return fmt.Errorf("%w: it is the record of another key", keystore.ErrDamaged)
	}
	if h.store != d.info.ID {
		return fmt.Errorf("it belongs to keystore %s, and %s is another one (%s)", h.store, d.info.Where, d.info.ID)
	}
	states, guessed := r.states, len(r.states) == 0 && !r.sure
	if guessed {
		// Nobody here knows whether it was burned, so it counts as if.
		states = []keystore.State{{
			Seq: 1, Kind: keystore.MayBeInSilicon, Job: rec.Job, Station: rec.Station, Time: d.now().UTC().Round(0),
			Note: "drained from the uploaded copy without its states: it may have been burned",
		}}
	}
	ref, stored, err := d.store(ctx, rec, states, guessed)
	if err != nil {
		return err
	}
	if stored {
		if err := d.tell(ctx, r.key, states, guessed); err != nil {
			return err
		}
		receipt, err := d.to.Confirm(ctx, r.unit, r.fp)
		if err != nil {
			return err
		}
		ref = receipt.Ref
	}
	done, err := r.done(ctx, outcome{Stored: stored, Ref: ref, Time: d.now().UTC().Round(0)})
	switch {
	case err != nil:
		return err
	case !done:
		return errors.New("the station added a state meanwhile: run this again")
	case stored:
		d.rep.Stored++
	default:
		d.rep.GivenUp++
	}
	return nil
}

// tell adds the states. A guess is not needed where the store knows better.
func (d *drainer) tell(ctx context.Context, k key, states []keystore.State, guessed bool) error {
	if guessed {
		metas, err := d.to.List(ctx, k.unit)
		if err != nil {
			return err
		}
		for _, m := range metas {
			if m.Fingerprint == k.fp && len(m.States) > 0 {
				return nil
			}
		}
	}
	return tell(ctx, d.to, k, states)
}

// store makes the record, after what may give way to it gave way. It is false if
// the key was given up before a burn: then nobody needs it.
func (d *drainer) store(ctx context.Context, rec keystore.Record, states []keystore.State, guessed bool) (ref string, stored bool, err error) {
	own := keystore.Meta{States: states}
	if own.Superseded() {
		return givenUp, false, giveUp(ctx, d.to, key{rec.Unit, rec.Fingerprint}, states)
	}
	for {
		receipt, err := d.to.Create(ctx, rec)
		var other *keystore.ConflictError
		switch {
		case err == nil:
			return receipt.Ref, true, nil
		case !errors.As(err, &other), !own.MayBeInSilicon(), guessed:
			return "", false, err
		}
		gerr := supersedeStale(ctx, d.to, rec.Meta(), other, keystore.State{
			Time: d.now().UTC().Round(0), Note: "no burn was begun; the key that was drained from the escrow took its place",
		})
		if gerr != nil {
			return "", false, errors.Join(gerr, err)
		}
	}
}
