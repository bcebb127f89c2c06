package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Kind is keystore.Info.Kind of these stores.
const Kind = "vault"

// schemaVersion is the version of the layout that this build knows.
const schemaVersion = 1

// Store is a keystore in Vault. What it can do depends on the role of its login.
type Store struct {
	c        *client
	info     storeJSON
	closed   atomic.Bool
	now      func() time.Time
	reserved reservations
	// before, if set, is asked before each write; tests stop a call there.
	before func(path string) error
}

var (
	_ keystore.Store    = (*Store)(nil)
	_ keystore.Reserver = (*Store)(nil)
	_ keystore.Lister   = (*Store)(nil)
)

// Open logs in and makes sure that the mount holds a keystore.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	c, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, now: time.Now}
	if s.info, err = s.readInfo(ctx); err != nil {
		c.close()
		return nil, err
	}
	return s, nil
}

// OpenFlag opens the store that a --keystore flag names: vault:FILE.yaml.
func OpenFlag(ctx context.Context, flag string) (*Store, error) {
	cfg, err := FromFlag(flag)
	if err != nil {
		return nil, err
	}
	return Open(ctx, cfg)
}

func (s *Store) readInfo(ctx context.Context) (storeJSON, error) {
	e, ok, err := s.c.get(ctx, "data", storePath)
	if err != nil {
		return storeJSON{}, err
	}
	var info storeJSON
	switch {
	case !ok:
		return info, fmt.Errorf("%w: there is no keystore at %s: check mount, or make it with: provisiond keystore init --vault", keystore.ErrUnavailable, s.where())
	case strict(e.Data, &info) != nil:
		return info, damaged(storePath, "it does not say what store this is")
	case info.Schema != schemaVersion:
		return info, fmt.Errorf("%w: the keystore at %s has schema %d and this build knows %d: use a build that is as new", keystore.ErrUnavailable, s.where(), info.Schema, schemaVersion)
	}
	return info, nil
}

func (s *Store) where() string {
	return strings.TrimSuffix(s.c.cfg.Addresses[0], "/") + " mount " + s.c.cfg.Mount
}

func (s *Store) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("keystore/vault: %w", err)
	}
	if s.closed.Load() {
		return fmt.Errorf("%w: the connection to %s is closed", keystore.ErrUnavailable, s.where())
	}
	return nil
}

// Close ends the session's renewal and the connections. The token stays valid
// until it expires.
func (s *Store) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		s.c.close()
	}
	return nil
}

// Info describes the store; it asks the server.
func (s *Store) Info(ctx context.Context) (keystore.Info, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Info{}, err
	}
	info, err := s.readInfo(ctx)
	if err != nil {
		return keystore.Info{}, err
	}
	if info != s.info {
		return keystore.Info{}, damaged(storePath, "another keystore is behind this address now: open it again")
	}
	return keystore.Info{Kind: Kind, ID: info.ID, TestStore: info.TestStore, Where: s.where()}, nil
}

func (s *Store) ref(unit chip.MAC, fp keystore.Fingerprint) string {
	return fmt.Sprintf("%s:%s/%s/%s", Kind, s.info.ID, unit, fp)
}

func (s *Store) receipt(unit chip.MAC, fp keystore.Fingerprint, v version) (keystore.Receipt, error) {
	at, err := v.time()
	if err != nil {
		return keystore.Receipt{}, damaged(recordPath(unit, fp), "its time of creation does not parse")
	}
	return keystore.Receipt{Ref: s.ref(unit, fp), Version: v.Version, Store: s.info.ID, Time: at.UTC()}, nil
}

// put creates an entry. It is false if something is there already.
func (s *Store) put(ctx context.Context, path string, body []byte, look func(context.Context) (bool, error)) (bool, reply, error) {
	if s.before != nil {
		if err := s.before(path); err != nil {
			return false, reply{}, err
		}
	}
	how, r, err := s.c.create(ctx, path, body, look)
	return how == storedNow, r, err
}

// settled looks until something is there, and believes "not there" only from a
// server that has just written. A leader that was cut off still answers from
// before and cannot write. One that lost the lead and has it again may have the
// old answer in its cache for a moment more, so it is asked a few times.
func (s *Store) settled(ctx context.Context, look func(context.Context) (bool, error)) (bool, error) {
	ok, err := look(ctx)
	if err != nil || ok {
		return ok, err
	}
	p := *s.c.patience(ctx) // its own waits: an answer does not shorten them
	p.wait = firstWait
	for try := 1; ; {
		n, err := s.c.fence(ctx)
		if err != nil {
			return false, err
		}
		ok, err := look(ctx)
		if err != nil || ok {
			return ok, err
		}
		if s.c.current.Load() == n { // the same server wrote and read
			if try++; try > 4 {
				return false, nil
			}
		}
		if !p.next(ctx) {
			return false, errors.Join(fmt.Errorf("%w: %s: the servers change too fast to tell what is stored", keystore.ErrUnavailable, s.where()), ctx.Err())
		}
	}
}

// notVisible is what follows when a create is refused and nothing can be read
// there: the policy forbids the create.
func (s *Store) notVisible(path string, r reply) error {
	return s.c.denied("create", "data/"+path, errors.Join(r.err))
}

// Create stores a new record: first the claim, then the record. See the package
// comment for why.
func (s *Store) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	ctx = s.c.begin(ctx)
	if err := keystore.CheckUnit(r.Unit, s.info.TestStore); err != nil {
		return keystore.Receipt{}, err
	}
	body, digest, err := encodeRecord(r)
	if err != nil {
		return keystore.Receipt{}, err
	}
	defer clear(body)
	if !s.reserved.forCreate(r.Unit, r.Fingerprint) {
		if err := s.claim(ctx, r.Meta()); err != nil {
			return keystore.Receipt{}, err
		}
	}
	path := recordPath(r.Unit, r.Fingerprint)
	stored, answer, err := s.put(ctx, path, body, func(ctx context.Context) (bool, error) {
		_, ok, err := s.c.get(ctx, "subkeys", path)
		return ok, err
	})
	if err != nil {
		return keystore.Receipt{}, err
	}
	if stored {
		var a struct {
			Data version `json:"data"`
		}
		if err := json.Unmarshal(answer.body, &a); err != nil {
			return keystore.Receipt{}, damaged(path, "the answer to its creation does not parse")
		}
		return s.receipt(r.Unit, r.Fingerprint, a.Data)
	}
	h, v, ok, err := s.settledHeader(ctx, r.Unit, r.Fingerprint)
	switch {
	case err != nil:
		return keystore.Receipt{}, fmt.Errorf("%w: %s: %w", keystore.ErrUnknownOutcome, path, err)
	case !ok:
		return keystore.Receipt{}, s.notVisible(path, answer)
	case h.digest != digest:
		return keystore.Receipt{}, fmt.Errorf("%w: key %s of unit %s, stored by job %s", keystore.ErrExists, r.Fingerprint, r.Unit, h.meta.Job)
	}
	return s.receipt(r.Unit, r.Fingerprint, v)
}

// Reserve writes the claim of a key ahead of its record: the first half of
// Create, for the time while the flash is written. It reads the claim back, and
// spares Confirm that. Somebody may supersede it before the record comes; then
// the record is superseded at birth, and the state that allows the burn is
// refused.
func (s *Store) Reserve(ctx context.Context, m keystore.Meta) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	ctx = s.c.begin(ctx)
	if err := keystore.CheckUnit(m.Unit, s.info.TestStore); err != nil {
		return err
	}
	if m.Fingerprint.IsZero() || m.Job == "" {
		return errors.New("keystore/vault: a reservation names fingerprint and job")
	}
	if err := s.claim(ctx, m); err != nil {
		return err
	}
	switch ok, err := s.settled(ctx, func(ctx context.Context) (bool, error) { return s.claimed(ctx, m.Unit, m.Fingerprint) }); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%w: the claim of key %s of unit %s was taken and cannot be read back: look at the servers with `provisiond keystore health`", keystore.ErrUnknownOutcome, m.Fingerprint, m.Unit)
	}
	s.reserved.add(m.Unit, m.Fingerprint)
	return nil
}

// claim makes the record's key the unit's current one, or says why it cannot be.
func (s *Store) claim(ctx context.Context, r keystore.Meta) error {
	mine := claim{Fingerprint: r.Fingerprint, Job: r.Job, Station: r.Station, Created: r.Created.UTC()}
	body, err := encode(mine)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		path := claimPath(r.Unit, n)
		var there claim
		look := func(ctx context.Context) (ok bool, err error) {
			there, ok, err = s.readClaim(ctx, r.Unit, n)
			return ok, err
		}
		stored, answer, err := s.put(ctx, path, body, look)
		if err != nil || stored {
			return err
		}
		switch ok, err := s.settled(ctx, look); {
		case err != nil:
			return err
		case !ok:
			return s.notVisible(path, answer)
		}
		m := keystore.Meta{Unit: r.Unit, Fingerprint: there.Fingerprint}
		look = func(ctx context.Context) (_ bool, err error) {
			m.States, err = s.states(ctx, r.Unit, there.Fingerprint)
			// Both are final.
			return m.Superseded() || slices.ContainsFunc(m.States, func(st keystore.State) bool { return st.Kind == keystore.InSilicon }), err
		}
		if there.Fingerprint == r.Fingerprint {
			_, err = look(ctx) // a superseded one is refused by AddState as well
		} else {
			_, err = s.settled(ctx, look) // no board is sent away for an old answer
		}
		if err != nil {
			return err
		}
		switch {
		case there.Fingerprint == r.Fingerprint && m.Superseded():
			return fmt.Errorf("%w: key %s of unit %s is superseded and may not be used again: make a new key", keystore.ErrExists, r.Fingerprint, r.Unit)
		case there.Fingerprint == r.Fingerprint:
			return nil // ours, from an earlier try
		case !m.Superseded():
			return &keystore.ConflictError{Unit: r.Unit, Fingerprint: there.Fingerprint, State: m.Current(), Job: there.Job}
		}
	}
}

func (s *Store) readClaim(ctx context.Context, unit chip.MAC, n int) (claim, bool, error) {
	var c claim
	e, ok, err := s.c.get(ctx, "data", claimPath(unit, n))
	if err != nil || !ok {
		return c, false, err
	}
	if strict(e.Data, &c) != nil || c.Fingerprint.IsZero() {
		return c, false, damaged(claimPath(unit, n), "it is no claim")
	}
	return c, true, nil
}

// header reads what may be seen of a record: with subkeys, or, for roles that
// may read values only, from the values.
func (s *Store) header(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (header, version, bool, error) {
	path := recordPath(unit, fp)
	e, ok, err := s.c.get(ctx, "subkeys", path)
	if errors.Is(err, ErrDenied) {
		r, v, lerr := s.load(ctx, unit, fp)
		if errors.Is(lerr, keystore.ErrNotFound) {
			return header{}, version{}, false, nil
		}
		if lerr != nil {
			return header{}, version{}, false, errors.Join(err, lerr)
		}
		r.Key.Wipe()
		return header{meta: r.Meta()}, v, true, nil
	}
	if err != nil || !ok {
		return header{}, version{}, false, err
	}
	var names map[string]any
	if err := json.Unmarshal(e.Subkeys.Clear, &names); err != nil {
		return header{}, version{}, false, damaged(path, "it is no key record")
	}
	h, err := parseClear(names)
	switch {
	case err != nil:
		return header{}, version{}, false, damaged(path, err.Error())
	case h.meta.Unit != unit || h.meta.Fingerprint != fp:
		return header{}, version{}, false, damaged(path, "it is the record of another key")
	}
	return h, e.Metadata, true, nil
}

func notFoundError(unit chip.MAC, fp keystore.Fingerprint) error {
	return fmt.Errorf("%w: key %s of unit %s", keystore.ErrNotFound, fp, unit)
}

// Confirm proves custody: the entry is read through subkeys, so Vault opened its
// stored bytes, and its path and its clear names name this key. No value is read.
//
// A claim must name the key too, or nobody would find it: List walks the claims.
// It is read beside the record, unless this Store's own Reserve has just read it.
// AddState reads both again before it allows the burn.
func (s *Store) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	ctx = s.c.begin(ctx)
	v, err := s.custody(ctx, unit, fp, s.reserved.forConfirm(unit, fp))
	if err != nil {
		return keystore.Receipt{}, err
	}
	return s.receipt(unit, fp, v)
}

// custody looks for the record and, unless it is known, for the claim that names it.
func (s *Store) custody(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, claimKnown bool) (version, error) {
	var v version
	var stored bool
	record := func(ctx context.Context) (_ bool, err error) {
		_, v, stored, err = s.header(ctx, unit, fp)
		return stored, err
	}
	look := record
	if !claimKnown {
		look = func(ctx context.Context) (bool, error) {
			stored, claimed, err := s.c.both(ctx, record, func(ctx context.Context) (bool, error) { return s.claimed(ctx, unit, fp) })
			return stored && claimed, err
		}
	}
	switch ok, err := s.settled(ctx, look); {
	case err != nil:
		return version{}, err
	case !ok && stored:
		return version{}, fmt.Errorf("%w: the record is there and no claim names it: find out who wrote it in the audit log", notFoundError(unit, fp))
	case !ok:
		return version{}, notFoundError(unit, fp)
	}
	return v, nil
}

// settledHeader is header, with a "not there" that can be believed.
func (s *Store) settledHeader(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (h header, v version, ok bool, err error) {
	ok, err = s.settled(ctx, func(ctx context.Context) (ok bool, err error) {
		h, v, ok, err = s.header(ctx, unit, fp)
		return ok, err
	})
	return h, v, ok, err
}

// claimed reports whether a claim of the unit names the key.
func (s *Store) claimed(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (bool, error) {
	for n := 1; ; n++ {
		c, ok, err := s.readClaim(ctx, unit, n)
		if err != nil || !ok || c.Fingerprint == fp {
			return ok && err == nil, err
		}
	}
}

// Load gives the whole record. The role must be allowed to read values.
func (s *Store) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Record{}, err
	}
	ctx = s.c.begin(ctx)
	var r keystore.Record
	ok, err := s.settled(ctx, func(ctx context.Context) (bool, error) {
		var err error
		r, _, err = s.load(ctx, unit, fp)
		if errors.Is(err, keystore.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	})
	if err == nil && !ok {
		err = notFoundError(unit, fp)
	}
	return r, err
}

func (s *Store) load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, version, error) {
	path := recordPath(unit, fp)
	e, ok, err := s.c.get(ctx, "data", path)
	if err != nil {
		return keystore.Record{}, version{}, err
	}
	if !ok {
		return keystore.Record{}, version{}, notFoundError(unit, fp)
	}
	defer clear(e.Data)
	r, err := decodeRecord(e.Data, unit, fp)
	if err != nil {
		return keystore.Record{}, version{}, damaged(path, err.Error())
	}
	return r, e.Metadata, nil
}

// states reads a record's history and checks it: states that may not follow each
// other were not written by this package.
func (s *Store) states(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) ([]keystore.State, error) {
	var states []keystore.State
	for n := 1; ; n++ {
		st, ok, err := s.readState(ctx, unit, fp, n)
		if err != nil || !ok {
			return states, err
		}
		if err := keystore.CheckTransition(states, st.Kind); err != nil {
			return states, damaged(statePath(unit, fp, n), err.Error())
		}
		states = append(states, st)
	}
}

func (s *Store) readState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, n int) (keystore.State, bool, error) {
	path := statePath(unit, fp, n)
	e, ok, err := s.c.get(ctx, "data", path)
	if err != nil || !ok {
		return keystore.State{}, false, err
	}
	var j stateJSON
	if strict(e.Data, &j) != nil {
		return keystore.State{}, false, damaged(path, "it is no state")
	}
	st := keystore.State{Seq: n, Kind: keystore.StateKind(j.Kind), Note: j.Note, Job: j.Job, Station: j.Station, Time: j.Time.UTC()}
	if err := st.Validate(); err != nil {
		return keystore.State{}, false, damaged(path, err.Error())
	}
	return st, true, nil
}

// List gives the records of a unit in the order of their claims. A claim whose
// record is not there (a crash between the two) is listed with a zero Receipt.
// It walks the claims, so a role needs no list permission.
//
// It has no fence: a server that lags may show less than there is. Who acts on
// what is missing is stopped by the write that follows, which is decided by
// cas=0 at the path where the missing entry stands: a claim that List did not
// show makes Reserve a conflict, before the flash is touched; a burn that it did
// not show takes the number of the state that would give the key up.
func (s *Store) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	metas, err := s.walk(s.c.begin(ctx), unit, func(keystore.Fingerprint) bool { return true })
	if err != nil {
		return nil, err
	}
	return metas, nil
}

// walk follows the claims of a unit. hasStates may know that a key has none. With
// an error it gives what it saw before.
func (s *Store) walk(ctx context.Context, unit chip.MAC, hasStates func(keystore.Fingerprint) bool) ([]keystore.Meta, error) {
	var metas []keystore.Meta
	for n := 1; ; n++ {
		c, ok, err := s.readClaim(ctx, unit, n)
		if err != nil || !ok {
			return metas, err
		}
		m, err := s.meta(ctx, unit, c, hasStates(c.Fingerprint))
		if err != nil {
			return metas, err
		}
		metas = append(metas, m)
	}
}

func (s *Store) meta(ctx context.Context, unit chip.MAC, c claim, hasStates bool) (keystore.Meta, error) {
	h, v, ok, err := s.header(ctx, unit, c.Fingerprint)
	if err != nil {
		return keystore.Meta{}, err
	}
	m := h.meta
	if ok {
		if m.Receipt, err = s.receipt(unit, c.Fingerprint, v); err != nil {
			return keystore.Meta{}, err
		}
	} else {
		m = keystore.Meta{
			Unit: unit, Simulated: unit.LocallyAdministered(), Fingerprint: c.Fingerprint,
			Job: c.Job, Station: c.Station, Created: c.Created,
		}
	}
	if hasStates {
		m.States, err = s.states(ctx, unit, c.Fingerprint)
	}
	return m, err
}

// AddState adds the next state of a record. Two that compete for the same number
// are told apart by Vault; the loser looks again.
func (s *Store) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	return s.addState(ctx, unit, fp, st, st.Kind == keystore.Superseded || st.Kind == keystore.Quarantined)
}

// TellClaim adds a state that is true already of a key whose claim is here and
// whose record waits sealed at its station. Others see then that the key may be in
// silicon. It allows no burn: AddState does that, and wants the record.
func (s *Store) TellClaim(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	return s.addState(ctx, unit, fp, st, true)
}

func (s *Store) addState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State, claimDoes bool) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	ctx = s.c.begin(ctx)
	if st.Time.IsZero() {
		st.Time = s.now()
	}
	st.Time = st.Time.UTC().Round(0)
	if err := st.Validate(); err != nil {
		return keystore.Receipt{}, err
	}
	var states []keystore.State
	_, _, err := s.c.both(ctx, func(ctx context.Context) (bool, error) {
		err := s.known(ctx, unit, fp, st.Kind, claimDoes)
		return err == nil, err
	}, func(ctx context.Context) (_ bool, err error) {
		states, err = s.states(ctx, unit, fp)
		return true, err
	})
	if err != nil {
		return keystore.Receipt{}, err
	}
	body, err := encode(stateJSON{Kind: string(st.Kind), Note: st.Note, Job: st.Job, Station: st.Station, Time: st.Time})
	if err != nil {
		return keystore.Receipt{}, err
	}
	receipt := func(n int, at time.Time) keystore.Receipt {
		return keystore.Receipt{Ref: s.ref(unit, fp), Version: n, Store: s.info.ID, Time: at}
	}
	for {
		n := len(states)
		if n > 0 && states[n-1].Kind == st.Kind && states[n-1].Job == st.Job {
			return receipt(n, states[n-1].Time), nil
		}
		if cause := keystore.CheckTransition(states, st.Kind); cause != nil {
			if n > 0 && states[n-1].Kind == keystore.Superseded {
				return keystore.Receipt{}, fmt.Errorf("unit %s, key %s: %w", unit, fp, cause) // final
			}
			// The states may have been read from before: is there one more?
			var more keystore.State
			switch ok, err := s.settled(ctx, func(ctx context.Context) (ok bool, err error) {
				more, ok, err = s.readState(ctx, unit, fp, n+1)
				return ok, err
			}); {
			case err != nil:
				return keystore.Receipt{}, err
			case !ok:
				return keystore.Receipt{}, fmt.Errorf("unit %s, key %s: %w", unit, fp, cause)
			}
			states = append(states, more)
			continue
		}
		path := statePath(unit, fp, n+1)
		var there keystore.State
		look := func(ctx context.Context) (ok bool, err error) {
			there, ok, err = s.readState(ctx, unit, fp, n+1)
			return ok, err
		}
		stored, answer, err := s.put(ctx, path, body, look)
		if err != nil {
			return keystore.Receipt{}, err
		}
		if stored {
			return receipt(n+1, st.Time), nil
		}
		switch ok, err := s.settled(ctx, look); {
		case err != nil:
			return keystore.Receipt{}, fmt.Errorf("%w: %s: %w", keystore.ErrUnknownOutcome, path, err)
		case !ok:
			return keystore.Receipt{}, s.notVisible(path, answer)
		}
		states = append(states, there)
	}
}

// known makes sure that there is something to add a state to. A burn wants what
// custody wants, read at this moment. A claim without its record may be given up
// or set aside, and told what is true of it (claimDoes); nothing else.
func (s *Store) known(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, kind keystore.StateKind, claimDoes bool) error {
	if kind == keystore.MayBeInSilicon && !claimDoes {
		_, err := s.custody(ctx, unit, fp, false)
		return err
	}
	ok, err := s.settled(ctx, func(ctx context.Context) (bool, error) {
		_, _, ok, err := s.header(ctx, unit, fp)
		if err == nil && !ok && claimDoes {
			return s.claimed(ctx, unit, fp)
		}
		return ok, err
	})
	if err == nil && !ok {
		err = notFoundError(unit, fp)
	}
	return err
}

// Units gives every unit that has a record or a claim, in ascending order. It
// needs a role that may list (auditor, admin). It holds six bytes per unit.
func (s *Store) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		units, err := s.units(ctx)
		if err != nil {
			yield(chip.MAC{}, err)
			return
		}
		for _, u := range units {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *Store) units(ctx context.Context) ([]chip.MAC, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var units []chip.MAC
	nobody := func(string) {} // Check tells what does not belong there
	err := atOnce(ctx, func(ctx context.Context, offer func(string) error) error {
		return s.eachShard(ctx, offer, nobody)
	}, func(ctx context.Context, shard string) error {
		some, err := s.shard(ctx, shard, nobody)
		mu.Lock()
		defer mu.Unlock()
		units = append(units, some...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(units, func(a, b chip.MAC) int { return bytes.Compare(a[:], b[:]) })
	return units, nil
}

// workers is how many requests of one walk through the store are under way at once.
const workers = 32

// atOnce gives what feed offers to workers, and ends both at the first error.
func atOnce[T any](ctx context.Context, feed func(ctx context.Context, offer func(T) error) error, work func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan T)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for v := range queue {
				if err := work(ctx, v); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := feed(ctx, func(v T) error {
		select {
		case queue <- v:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(queue)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// eachShard gives the shards' names, and tells of names that do not belong there.
func (s *Store) eachShard(ctx context.Context, yield func(shard string) error, foreign func(path string)) error {
	shards, err := s.c.list(ctx, "units/")
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if b, err := hex.DecodeString(strings.TrimSuffix(shard, "/")); err != nil || len(b) != 1 || shard != fmt.Sprintf("%02x/", b[0]) {
			foreign("units/" + shard)
			continue
		}
		if err := yield(shard); err != nil {
			return err
		}
	}
	return nil
}

// shard gives the units of a shard, and tells of names that do not belong there.
func (s *Store) shard(ctx context.Context, shard string, foreign func(path string)) ([]chip.MAC, error) {
	names, err := s.c.list(ctx, "units/"+shard)
	if err != nil {
		return nil, err
	}
	units := make([]chip.MAC, 0, len(names))
	for _, name := range names {
		unit, err := chip.ParseMAC(strings.TrimSuffix(name, "/"))
		if err != nil || unit.String()+"/" != name || fmt.Sprintf("%02x/", unit[5]) != shard {
			foreign("units/" + shard + name)
			continue
		}
		units = append(units, unit)
	}
	return units, nil
}

// Metas gives every record, as keystore.Metas says. It needs a role that may list;
// with the auditor's it reads no key. Per unit it makes two requests and one more
// for each key's record, state, and end of its states.
//
// The server must first prove that it leads (List does not ask that), so that
// what was stored before is not missing because it lags.
func (s *Store) Metas(ctx context.Context) iter.Seq2[keystore.Meta, error] {
	return func(yield func(keystore.Meta, error) bool) {
		err := s.check(ctx)
		if err == nil {
			_, err = s.c.fence(ctx)
		}
		if err != nil {
			yield(keystore.Meta{}, err)
			return
		}
		keystore.ListUnits(ctx, s, workers)(yield)
	}
}

// Format keeps printers away from the connection and its token.
func (s *Store) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "keystore/vault(%s)", s.where()) }
