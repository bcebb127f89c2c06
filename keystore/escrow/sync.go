package escrow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Depot is an inner store with a place for sealed records, so that a station's
// dead disk loses none. Both methods are create-only, and the same content again
// is a success.
type Depot interface {
	PutSealed(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, sealed []byte) error
	PutSealedState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, n int, state []byte) error
}

// Teller is an inner store that takes states of a claim whose record waits sealed
// at a station. AddState does not, since a burn wants a record: what TellClaim
// says has happened, and allows nothing. Otherwise it is like AddState.
type Teller interface {
	TellClaim(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, s keystore.State) (keystore.Receipt, error)
}

// Finding is a record that could not be brought on.
type Finding struct {
	Unit        chip.MAC             `json:"unit"`
	Fingerprint keystore.Fingerprint `json:"key_fingerprint"`
	Problem     string               `json:"problem"`
}

// SyncReport is what a Sync did.
type SyncReport struct {
	Waiting  int       `json:"waiting"`  // records that still wait for the custodian
	Uploaded int       `json:"uploaded"` // sealed records that the inner store has now as well
	Drained  int       `json:"drained"`  // records that the custodian has taken over
	Findings []Finding `json:"findings"`
}

// Sync brings the inner store, when it is back, what it may know: it claims the
// units and tells whether their keys may be in silicon, uploads sealed records and
// states, and tells the later states of records that the custodian has stored
// meanwhile. It is the station's half of
// emptying the escrow; Drain is the custodian's. What is wrong with one record is
// a Finding; an error says that the inner store is away or the spool is not
// readable.
func (s *Store) Sync(ctx context.Context) (SyncReport, error) {
	rep := SyncReport{Findings: []Finding{}}
	if err := s.check(ctx); err != nil {
		return rep, err
	}
	if err := s.finishAll(); err != nil {
		return rep, err
	}
	waiting, err := s.waiting()
	if err != nil {
		return rep, err
	}
	rep.Waiting = len(waiting)
	for _, e := range waiting {
		err := s.ask(ctx, true, func(in keystore.Store) error { return s.bring(ctx, in, e, &rep) })
		switch {
		case err == nil:
		case outage(ctx, err), ctx.Err() != nil:
			return rep, err
		default:
			rep.Findings = append(rep.Findings, Finding{e.unit, e.fp, err.Error()})
		}
	}
	return rep, nil
}

// finishAll moves what a run before this one marked and did not move.
func (s *Store) finishAll() error {
	unlock, err := s.spool.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.spool.finishAll()
}

func (s *Store) bring(ctx context.Context, in keystore.Store, e entry, rep *SyncReport) error {
	receipt, err := in.Confirm(ctx, e.unit, e.fp)
	if err == nil {
		if err := s.takenOver(ctx, in, e, receipt.Ref); err != nil {
			return err
		}
		rep.Drained++
		rep.Waiting--
		return nil
	}
	if !errors.Is(err, keystore.ErrNotFound) {
		return err
	}
	if e.superseded() {
		return s.bringGivenUp(ctx, in, e, rep)
	}
	// A unit that another station has a key for is a finding, and its sealed record
	// is uploaded all the same. Nobody looks at the board here, so a stale key gives
	// way only to one that may be in the board's key block.
	burned := keystore.Meta{States: e.states}.MayBeInSilicon()
	refused := s.insist(ctx, in, e.header.meta, burned, func() error { return claim(ctx, in, e.header.meta) })
	if refused == nil {
		refused = tellClaim(ctx, in, e)
	}
	if outage(ctx, refused) {
		return refused
	}
	if d, ok := in.(Depot); ok {
		if err := s.upload(ctx, d, e, rep); err != nil {
			return errors.Join(err, refused)
		}
	}
	return refused
}

// tellClaim tells an inner store that can be told what a claim alone would hide:
// that the key may be in silicon. That it was read back is told when the record is
// there, so that no keystore says so of a key that it does not hold.
func tellClaim(ctx context.Context, in keystore.Store, e entry) error {
	if _, ok := in.(Teller); !ok {
		return nil
	}
	states := e.states
	if i := slices.IndexFunc(states, func(st keystore.State) bool { return st.Kind == keystore.InSilicon }); i >= 0 {
		states = states[:i]
	}
	if len(states) == 0 {
		return nil
	}
	return tell(ctx, in, e.key, states)
}

// bringGivenUp ends a record whose key never reached silicon: nobody needs it.
// The sealed file stays, in drained.
func (s *Store) bringGivenUp(ctx context.Context, in keystore.Store, e entry, rep *SyncReport) error {
	if d, ok := in.(Depot); ok && e.uploaded {
		if err := s.upload(ctx, d, e, rep); err != nil {
			return err
		}
	}
	if err := giveUp(ctx, in, e.key, e.states); err != nil {
		return err
	}
	// Superseded is final: there are no more states to come.
	if _, err := s.spool.settle(e, outcome{Ref: givenUp, Time: s.now().UTC().Round(0)}); err != nil {
		return err
	}
	rep.Drained++
	rep.Waiting--
	return nil
}

// givenUp is the reference of what was not stored.
const givenUp = "given up before a burn"

func (s *Store) upload(ctx context.Context, d Depot, e entry, rep *SyncReport) error {
	if !e.uploaded {
		if err := d.PutSealed(ctx, e.unit, e.fp, e.sealed); err != nil {
			return err
		}
		unlock, err := s.spool.lock()
		if err != nil {
			return err
		}
		err = s.spool.put(e.name()+uploadedExt, append(e.begin(), "}\n"...))
		unlock()
		if err != nil {
			return err
		}
		rep.Uploaded++
	}
	for _, st := range e.states {
		name := fmt.Sprintf("%s%s%d", e.name(), stateExt, st.Seq)
		s.mu.Lock()
		told := s.told[name]
		s.mu.Unlock()
		if told {
			continue
		}
		if err := d.PutSealedState(ctx, e.unit, e.fp, st.Seq, marshalState(e.key, st)); err != nil {
			return err
		}
		s.mu.Lock()
		s.told[name] = true
		s.mu.Unlock()
	}
	return nil
}

// takenOver tells the inner store the states that the custodian did not know, and
// moves the record.
func (s *Store) takenOver(ctx context.Context, in keystore.Store, e entry, ref string) error {
	for {
		if err := tell(ctx, in, e.key, e.states); err != nil {
			return err
		}
		done, err := s.spool.settle(e, outcome{Stored: true, Ref: ref, Time: s.now().UTC().Round(0)})
		if done || err != nil {
			return err
		}
		// A state was added meanwhile.
		if e, err = s.spool.load(e.key); err != nil {
			return err
		}
	}
}

// settle marks a record whose states are those of e, and moves it. It is false if
// there are more states by now.
func (s *spool) settle(e entry, o outcome) (bool, error) {
	unlock, err := s.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	now, err := s.load(e.key)
	if err != nil || len(now.states) != len(e.states) {
		return false, err
	}
	return true, s.finish(now, o)
}

// tell adds states to a record in a store, those that it does not have.
func tell(ctx context.Context, in keystore.Store, k key, states []keystore.State) error {
	metas, err := in.List(ctx, k.unit)
	if err != nil {
		return err
	}
	for _, m := range metas {
		if m.Fingerprint != k.fp {
			continue
		}
		if len(m.States) > len(states) {
			if !begins(m.States, states) {
				return fmt.Errorf("%w: the keystore says %s of it and the escrow %s", keystore.ErrState, describe(m.States), describe(states))
			}
			return nil
		}
		if !begins(states, m.States) {
			return fmt.Errorf("%w: the keystore says %s of it and the escrow %s", keystore.ErrState, describe(m.States), describe(states))
		}
		add := in.AddState
		if t, ok := in.(Teller); ok && m.Receipt == (keystore.Receipt{}) {
			add = t.TellClaim
		}
		for _, st := range states[len(m.States):] {
			if _, err := add(ctx, k.unit, k.fp, st); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%w: key %s of unit %s", keystore.ErrNotFound, k.fp, k.unit)
}
