package escrow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// RefPrefix begins the receipts of records that wait in an escrow.
const RefPrefix = "escrow:"

// Opener opens the inner store. It is called again after a failure.
type Opener func(ctx context.Context) (keystore.Store, error)

// Store is a keystore that has an escrow before it. It is a keystore.Reserver
// for every inner store.
type Store struct {
	cfg   Config
	spool *spool
	open  Opener
	known inner // which store the spool is of
	now   func() time.Time

	mu     sync.Mutex
	closed bool
	store  keystore.Store  // nil until it could be opened
	opens  chan struct{}   // one at a time
	retry  time.Time       // when the inner store is asked again
	away   error           // why it was away, nil if it was not
	told   map[string]bool // states that were uploaded
	// unasked are the units whose last List the inner store did not answer: of
	// them it may hold a key that their job has forgotten.
	unasked map[chip.MAC]bool
}

var (
	_ keystore.Store    = (*Store)(nil)
	_ keystore.Reserver = (*Store)(nil)
)

// Open wraps the store that opener gives. While that store is away the escrow
// opens all the same, if it has seen the store once before.
func Open(ctx context.Context, cfg Config, opener Opener) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if !cfg.Enabled() {
		return nil, errors.New("keystore/escrow: dir: name the spool's folder")
	}
	cfg.fill()
	sp, err := openSpool(cfg.Dir)
	if err != nil {
		return nil, err
	}
	sp.quick = cfg.quick
	s := &Store{cfg: cfg, spool: sp, open: opener, now: time.Now, opens: make(chan struct{}, 1), told: map[string]bool{}, unasked: map[chip.MAC]bool{}}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// begin finds out which store the spool is of, and mends what a crash left.
func (s *Store) begin(ctx context.Context) error {
	unlock, err := s.spool.lock()
	if err != nil {
		return err
	}
	err = errors.Join(s.spool.sweep(), s.spool.finishAll())
	if errors.Is(err, keystore.ErrDamaged) {
		err = nil // of one record: its unit is refused, and Info warns
	}
	b, rerr := s.spool.read(storeFile)
	unlock()
	if err != nil {
		return err
	}
	seen := rerr == nil
	switch {
	case seen:
		if s.known, err = parseInner(b); err != nil {
			return fmt.Errorf("%w: %s: %w", keystore.ErrDamaged, s.spool.path(storeFile), err)
		}
	case !errors.Is(rerr, fs.ErrNotExist):
		return fmt.Errorf("keystore/escrow: %w", rerr)
	}
	var info keystore.Info
	err = s.ask(ctx, true, func(in keystore.Store) (err error) {
		info, err = in.Info(ctx)
		return err
	})
	switch {
	case err != nil && seen && outage(ctx, err):
		return nil
	case err != nil && !seen && outage(ctx, err):
		return fmt.Errorf("the escrow %s has not seen its keystore yet, and begins when that was reached once: %w", s.spool.dir, err)
	case err != nil:
		return err
	case seen:
		return s.same(info)
	}
	s.known = inner{info.Kind, info.ID, info.Where, info.TestStore}
	if unlock, err = s.spool.lock(); err != nil {
		return err
	}
	defer unlock()
	return s.spool.put(storeFile, s.known.marshal())
}

// same makes sure that the inner store is the one that the spool is of.
func (s *Store) same(info keystore.Info) error {
	if info.ID != s.known.id || info.TestStore != s.known.testStore {
		return fmt.Errorf("keystore/escrow: the spool %s is of keystore %s, and %s is another one (%s): name another folder", s.spool.dir, s.known.id, info.Where, info.ID)
	}
	return nil
}

// outage says that the inner store is away, or that nobody knows what became of
// a write. A caller who gave up is no outage.
func outage(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, keystore.ErrUnknownOutcome))
}

func (s *Store) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("keystore/escrow: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: the escrow %s is closed", keystore.ErrUnavailable, s.spool.dir)
	}
	return nil
}

// ask gives the inner store to f. One that was away is left alone for a while,
// unless it is always to be asked: every call waits for a store that does not
// answer.
func (s *Store) ask(ctx context.Context, always bool, f func(keystore.Store) error) error {
	s.mu.Lock()
	if s.away != nil && !always && s.now().Before(s.retry) {
		err := s.away
		s.mu.Unlock()
		return err
	}
	s.retry = s.now().Add(s.cfg.Retry) // others do not wait with us
	s.mu.Unlock()
	in, err := s.inner(ctx)
	if err == nil {
		err = f(in)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if outage(ctx, err) {
		s.away, s.retry = err, s.now().Add(s.cfg.Retry)
	} else if err == nil {
		s.away = nil
	}
	return err
}

// inner opens the inner store if that is not done.
func (s *Store) inner(ctx context.Context) (keystore.Store, error) {
	select {
	case s.opens <- struct{}{}:
		defer func() { <-s.opens }()
	case <-ctx.Done():
		return nil, fmt.Errorf("keystore/escrow: %w", ctx.Err())
	}
	s.mu.Lock()
	in, closed := s.store, s.closed
	s.mu.Unlock()
	if in != nil || closed {
		return in, s.check(ctx)
	}
	in, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if s.known.id != "" {
		info, err := in.Info(ctx)
		if err == nil {
			err = s.same(info)
		}
		if err != nil {
			return nil, errors.Join(err, in.Close())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(fmt.Errorf("%w: the escrow %s is closed", keystore.ErrUnavailable, s.spool.dir), in.Close())
	}
	s.store = in
	return in, nil
}

// Close closes the inner store too.
func (s *Store) Close() error {
	s.mu.Lock()
	in, closed := s.store, s.closed
	s.store, s.closed = nil, true
	s.mu.Unlock()
	if closed || in == nil {
		return nil
	}
	return in.Close()
}

// Info is that of the inner store. While that is away it is what the spool
// knows, with a warning.
func (s *Store) Info(ctx context.Context) (keystore.Info, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Info{}, err
	}
	var info keystore.Info
	err := s.ask(ctx, false, func(in keystore.Store) (err error) {
		if info, err = in.Info(ctx); err == nil {
			err = s.same(info)
		}
		return err
	})
	away := err != nil && outage(ctx, err)
	if err != nil && !away {
		return keystore.Info{}, err
	}
	waiting, lerr := s.waiting()
	switch {
	case lerr != nil && away:
		return keystore.Info{}, errors.Join(lerr, err)
	case lerr != nil:
		info.Warning = fmt.Sprintf("the escrow %s cannot be read: %v", s.spool.dir, lerr)
		return info, nil
	}
	if away {
		info = keystore.Info{Kind: s.known.kind, ID: s.known.id, TestStore: s.known.testStore, Where: s.known.where}
		info.Warning = fmt.Sprintf("the keystore is not available, new keys go to the escrow %s (%s): %v", s.spool.dir, s.words(waiting), err)
	} else if len(waiting) > 0 {
		info.Warning = fmt.Sprintf("keys wait in the escrow %s (%s): the custodian runs `provisiond keystore escrow drain`", s.spool.dir, s.words(waiting))
	}
	return info, nil
}

func (s *Store) words(waiting []entry) string {
	text := fmt.Sprintf("%d of at most %d records wait", len(waiting), s.cfg.Max)
	if len(waiting) > 0 {
		text += ", the oldest since " + oldest(waiting).Format(time.RFC3339)
	}
	return text
}

func oldest(waiting []entry) time.Time {
	t := waiting[0].header.sealed
	for _, e := range waiting {
		if e.header.sealed.Before(t) {
			t = e.header.sealed
		}
	}
	return t
}

// waiting are the records that are not drained.
func (s *Store) waiting() ([]entry, error) {
	entries, err := s.spool.all(chip.MAC{})
	return slices.DeleteFunc(entries, func(e entry) bool { return !e.live() }), err
}

func (s *Store) receipt(e entry) keystore.Receipt {
	return keystore.Receipt{
		Ref:     fmt.Sprintf("%s%s/%s/%s", RefPrefix, s.known.id, e.unit, e.fp),
		Version: 1, Store: s.known.id, Time: e.header.sealed,
		Warning: fmt.Sprintf("the key is sealed in the escrow %s and not in the keystore yet: that was not available, so nobody could say whether another station has a key of this unit; "+
			"the custodian brings it there with `provisiond keystore escrow drain`", s.spool.dir),
	}
}

// Create stores the record in the inner store, or seals it into the spool if
// that is away.
func (s *Store) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	if err := r.Validate(); err != nil {
		return keystore.Receipt{}, err
	}
	if err := keystore.CheckUnit(r.Unit, s.known.testStore); err != nil {
		return keystore.Receipt{}, err
	}
	digest, err := digestOf(r)
	if err != nil {
		return keystore.Receipt{}, err
	}
	if receipt, found, err := s.stored(r.Unit, r.Fingerprint, digest, false); err != nil || found {
		return receipt, err
	}
	var receipt keystore.Receipt
	err = s.ask(ctx, false, func(in keystore.Store) error {
		return s.insist(ctx, in, r.Meta(), s.wasUnasked(r.Unit), func() (err error) {
			receipt, err = in.Create(ctx, r)
			return err
		})
	})
	if err == nil || !outage(ctx, err) {
		return receipt, err
	}
	return s.seal(r, digest, err)
}

func digestOf(r keystore.Record) ([32]byte, error) {
	r.Created = r.Created.UTC()
	plain, err := keystore.MarshalRecord(r)
	defer clear(plain)
	return sha256.Sum256(plain), err
}

// stored is what the spool says to a new record: it is there already, it must
// not be made, or (false, nil) the spool has nothing against it. A drained record
// counts only while the inner store, which knows better, cannot be asked.
func (s *Store) stored(unit chip.MAC, fp keystore.Fingerprint, digest [32]byte, drained bool) (keystore.Receipt, bool, error) {
	entries, err := s.spool.all(unit)
	if err != nil {
		return keystore.Receipt{}, false, err
	}
	for _, e := range entries {
		switch {
		case !e.live() && !drained:
		case e.fp == fp && (e.superseded() || e.header.recordSHA256 != digest):
			return keystore.Receipt{}, false, fmt.Errorf("%w: key %s of unit %s, sealed by job %s", keystore.ErrExists, fp, unit, e.header.meta.Job)
		case e.fp == fp:
			// The try that wrote it may not have synced the folder.
			return s.receipt(e), true, s.spool.syncDir(".")
		case !e.superseded():
			return keystore.Receipt{}, false, s.conflict(e)
		}
	}
	return keystore.Receipt{}, false, nil
}

func (s *Store) conflict(e entry) error {
	m := s.meta(e)
	return &keystore.ConflictError{Unit: e.unit, Fingerprint: e.fp, State: m.Current(), Job: m.Job}
}

// seal writes a record into the spool, because of cause.
func (s *Store) seal(r keystore.Record, digest [32]byte, cause error) (keystore.Receipt, error) {
	unlock, err := s.spool.lock()
	if err != nil {
		return keystore.Receipt{}, errors.Join(err, cause)
	}
	defer unlock()
	receipt, found, err := s.stored(r.Unit, r.Fingerprint, digest, true)
	if err != nil || found {
		return receipt, err
	}
	if err := s.room(cause); err != nil {
		return keystore.Receipt{}, err
	}
	before, err := s.spool.all(r.Unit)
	if err != nil {
		return keystore.Receipt{}, err
	}
	file, h, err := sealRecord(r, len(before)+1, s.known.id, s.cfg.Recipients, s.now())
	if err != nil {
		return keystore.Receipt{}, err
	}
	k := key{r.Unit, r.Fingerprint}
	if err := s.spool.put(k.name()+sealedExt, file); err != nil {
		return keystore.Receipt{}, fmt.Errorf("%w: the escrow: %w", keystore.ErrUnknownOutcome, err)
	}
	return s.receipt(entry{key: k, header: h}), nil
}

// room says whether one more record may be sealed.
func (s *Store) room(cause error) error {
	waiting, err := s.waiting()
	switch {
	case err != nil:
		return err
	case len(waiting) >= s.cfg.Max:
		return fmt.Errorf("%w: and the escrow %s is full (%s): drain it, or bring the keystore back: %w", keystore.ErrUnavailable, s.spool.dir, s.words(waiting), cause)
	case len(waiting) > 0 && s.now().Sub(oldest(waiting)) > s.cfg.MaxAge:
		return fmt.Errorf("%w: and the escrow %s takes no more since its oldest record waits for more than %s (%s): drain it, or bring the keystore back: %w", keystore.ErrUnavailable, s.spool.dir, s.cfg.MaxAge, s.words(waiting), cause)
	}
	return nil
}

// Reserve claims the unit in the inner store. While that is away there is
// nobody to claim it with: then it says only whether the spool has room, and
// nothing against the unit.
func (s *Store) Reserve(ctx context.Context, m keystore.Meta) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := keystore.CheckUnit(m.Unit, s.known.testStore); err != nil {
		return err
	}
	if err := s.free(m, false); err != nil {
		return err
	}
	err := s.ask(ctx, false, func(in keystore.Store) error {
		return s.insist(ctx, in, m, s.wasUnasked(m.Unit), func() error { return claim(ctx, in, m) })
	})
	if err == nil || !outage(ctx, err) {
		return err
	}
	if err := s.free(m, true); err != nil {
		return err
	}
	return s.room(err)
}

// free says whether another key of the unit is in the spool.
func (s *Store) free(m keystore.Meta, drained bool) error {
	entries, err := s.spool.all(m.Unit)
	for _, e := range entries {
		if (e.live() || drained) && e.fp != m.Fingerprint && !e.superseded() {
			return s.conflict(e)
		}
	}
	return err
}

// claim makes a key its unit's own in a store, as far as that store can do so
// without the record.
func claim(ctx context.Context, in keystore.Store, m keystore.Meta) error {
	if r, ok := in.(keystore.Reserver); ok {
		return r.Reserve(ctx, m)
	}
	metas, err := in.List(ctx, m.Unit)
	for _, o := range metas {
		if o.Fingerprint != m.Fingerprint && !o.Superseded() {
			return &keystore.ConflictError{Unit: m.Unit, Fingerprint: o.Fingerprint, State: o.Current(), Job: o.Job}
		}
	}
	return err
}

func (s *Store) wasUnasked(unit chip.MAC) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unasked[unit]
}

// insist clears away what stands in f's way and must not: a key that was given up
// in the spool, of which the inner store does not know that yet; and, if stale
// ones may give way, a key of the same unit, job and station that was stored or
// claimed and not allowed to be burned. The engine gives such a key up when a job
// starts again, but could not see it while the inner store was away. Its burn can
// never be allowed after that.
//
// A caller lets stale ones give way only if the board has just been looked at and
// its key block was free, or if m's key may be in that block. What another
// station stored never gives way: the job's name is the same there, and its key
// may be in silicon on a sealed record that the inner store has not seen.
func (s *Store) insist(ctx context.Context, in keystore.Store, m keystore.Meta, stale bool, f func() error) error {
	for {
		err := f()
		var other *keystore.ConflictError
		if !errors.As(err, &other) {
			return err
		}
		e, ok, gerr := s.entry(other.Unit, other.Fingerprint)
		switch {
		case gerr != nil:
		case ok && e.superseded():
			gerr = giveUp(ctx, in, e.key, e.states)
		case stale && !ok:
			gerr = supersedeStale(ctx, in, m, other, keystore.State{
				Time: s.now().UTC().Round(0), Note: "no burn was begun; the job went on with another key while the keystore was away",
			})
		default:
			return err
		}
		if gerr != nil {
			return errors.Join(gerr, err)
		}
	}
}

// supersedeStale gives up the key that stands in the way of m's, if it is of the
// same job and station and its burn was never allowed. Else it says whose it is.
func supersedeStale(ctx context.Context, in keystore.Store, m keystore.Meta, other *keystore.ConflictError, st keystore.State) error {
	if other.State != keystore.Stored {
		return fmt.Errorf("key %s is not only stored", other.Fingerprint)
	}
	metas, err := in.List(ctx, m.Unit)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(metas, func(o keystore.Meta) bool { return o.Fingerprint == other.Fingerprint })
	switch {
	case i < 0:
		return fmt.Errorf("key %s is not listed", other.Fingerprint)
	case metas[i].Superseded():
		return nil // meanwhile
	case len(metas[i].States) > 0:
		return fmt.Errorf("key %s is not only stored", other.Fingerprint)
	case metas[i].Job != m.Job:
		return fmt.Errorf("key %s is of another job (%s)", other.Fingerprint, metas[i].Job)
	case metas[i].Station == "" || metas[i].Station != m.Station:
		return fmt.Errorf("key %s is of another station (%s), and may be in silicon there", other.Fingerprint, metas[i].Station)
	}
	st.Kind, st.Job, st.Station = keystore.Superseded, m.Job, m.Station
	_, err = in.AddState(ctx, m.Unit, other.Fingerprint, st)
	return err
}

// giveUp tells a store that a key was superseded, if it knows the key at all. A
// claim without its record takes only that last state.
func giveUp(ctx context.Context, in keystore.Store, k key, states []keystore.State) error {
	metas, err := in.List(ctx, k.unit)
	if err != nil {
		return err
	}
	for _, m := range metas {
		switch {
		case m.Fingerprint != k.fp || m.Superseded():
		case m.Receipt != (keystore.Receipt{}) || len(m.States) > 0:
			return tell(ctx, in, k, states)
		default:
			_, err := in.AddState(ctx, k.unit, k.fp, states[len(states)-1])
			return err
		}
	}
	return nil
}

// entry gives the record of a key. ok is false if the spool has none.
func (s *Store) entry(unit chip.MAC, fp keystore.Fingerprint) (e entry, ok bool, err error) {
	e, err = s.spool.load(key{unit, fp})
	if errors.Is(err, keystore.ErrNotFound) {
		return entry{}, false, nil
	}
	return e, err == nil, err
}

// Confirm proves custody: of a waiting record from the spool, whose file is read
// back and whose header, name and hash are checked; of every other from the inner
// store.
func (s *Store) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	e, ok, err := s.entry(unit, fp)
	if err != nil {
		return keystore.Receipt{}, err
	}
	if ok && e.live() {
		return s.receipt(e), nil
	}
	var receipt keystore.Receipt
	err = s.ask(ctx, true, func(in keystore.Store) (err error) {
		receipt, err = in.Confirm(ctx, unit, fp)
		return err
	})
	if ok && e.done.Stored && outage(ctx, err) {
		// It was confirmed when it was drained, and the sealed file is still here.
		return s.receipt(e), nil
	}
	return receipt, err
}

func (s *Store) meta(e entry) keystore.Meta {
	m := e.header.meta
	m.States = slices.Clone(e.states)
	m.Receipt = s.receipt(e)
	return m
}

// List gives the records of inner store and spool. While the inner store is away
// it gives those of the spool, with a warning in each, and keystore.ErrPartial.
func (s *Store) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	entries, err := s.spool.all(unit)
	if err != nil {
		return nil, err
	}
	var metas []keystore.Meta
	err = s.ask(ctx, false, func(in keystore.Store) (err error) {
		metas, err = in.List(ctx, unit)
		return err
	})
	away := err != nil && outage(ctx, err)
	if err != nil && !away {
		return nil, err
	}
	if away {
		metas = nil
	}
	s.mu.Lock()
	if delete(s.unasked, unit); away {
		s.unasked[unit] = true
	}
	s.mu.Unlock()
	var partial error
	if away {
		partial = fmt.Errorf("%w: only the escrow %s was: %w", keystore.ErrPartial, s.spool.dir, err)
	}
	for _, e := range entries {
		m := s.meta(e)
		i := slices.IndexFunc(metas, func(o keystore.Meta) bool { return o.Fingerprint == e.fp })
		switch {
		case away:
			m.Warning = partial.Error()
			metas = append(metas, m)
		case i >= 0:
			if metas[i], err = merge(metas[i], m, e.live()); err != nil {
				return nil, fmt.Errorf("unit %s, key %s: %w", unit, e.fp, err)
			}
		case e.live():
			metas = append(metas, m)
		case e.done.Stored:
			return nil, fmt.Errorf("%w: unit %s: key %s was brought to the keystore and is not there", keystore.ErrDamaged, unit, e.fp)
		}
	}
	return metas, partial
}

// merge makes one of what inner store and spool say about one key. The custodian
// copies the states of the spool, so one history begins the other.
func merge(in, sp keystore.Meta, live bool) (keystore.Meta, error) {
	claimed := in.Receipt == (keystore.Receipt{})
	if claimed && (begins(sp.States, in.States) || sp.Superseded()) {
		return sp, nil
	}
	short, long := in.States, sp.States
	if len(short) > len(long) {
		short, long = long, short
	}
	if claimed || !begins(long, short) {
		return in, fmt.Errorf("%w: the keystore says %s of it and the escrow %s: an engineer looks at the chip", keystore.ErrDamaged, describe(in.States), describe(sp.States))
	}
	if live {
		in.States = long
	}
	return in, nil
}

// begins says that the history long has short at its beginning.
func begins(long, short []keystore.State) bool {
	for i, s := range short {
		if i >= len(long) || s.Kind != long[i].Kind || s.Job != long[i].Job {
			return false
		}
	}
	return true
}

func describe(states []keystore.State) string {
	if len(states) == 0 {
		return "stored"
	}
	var kinds []string
	for _, s := range states {
		kinds = append(kinds, string(s.Kind))
	}
	return strings.Join(kinds, ", ")
}

// Units gives the units of inner store and spool.
func (s *Store) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		if err := s.check(ctx); err != nil {
			yield(chip.MAC{}, err)
			return
		}
		waiting, err := s.waiting()
		if err != nil {
			yield(chip.MAC{}, err)
			return
		}
		var mine []chip.MAC // ascending, as all gives them
		for _, e := range waiting {
			if n := len(mine); n == 0 || mine[n-1] != e.unit {
				mine = append(mine, e.unit)
			}
		}
		more := true
		err = s.ask(ctx, true, func(in keystore.Store) error {
			for u, err := range in.Units(ctx) {
				if err != nil {
					return err
				}
				for more && len(mine) > 0 && bytes.Compare(mine[0][:], u[:]) <= 0 {
					if mine[0] != u {
						more = yield(mine[0], nil)
					}
					mine = mine[1:]
				}
				if !more || !yield(u, nil) {
					more = false
					return nil
				}
			}
			return nil
		})
		for ; more && err == nil && len(mine) > 0; mine = mine[1:] {
			if err := ctx.Err(); err != nil {
				yield(chip.MAC{}, err)
				return
			}
			more = yield(mine[0], nil)
		}
		if more && err != nil {
			yield(chip.MAC{}, err)
		}
	}
}

// AddState adds a state: to a waiting record beside it in the spool, to every
// other in the inner store.
func (s *Store) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	if st.Time.IsZero() {
		st.Time = s.now()
	}
	st.Time = st.Time.UTC().Round(0)
	if err := st.Validate(); err != nil {
		return keystore.Receipt{}, err
	}
	e, ok, err := s.entry(unit, fp)
	if err != nil {
		return keystore.Receipt{}, err
	}
	if ok && e.live() {
		if st.Kind == keystore.MayBeInSilicon {
			if err := s.claimBeforeBurn(ctx, e); err != nil {
				return keystore.Receipt{}, err
			}
		}
		if receipt, done, err := s.addHere(e.key, st); done || err != nil {
			return receipt, err
		}
	}
	var receipt keystore.Receipt
	err = s.ask(ctx, true, func(in keystore.Store) (err error) {
		receipt, err = in.AddState(ctx, unit, fp, st)
		return err
	})
	return receipt, err
}

// claimBeforeBurn asks the inner store once more, if it is back: what a burn does
// can not be undone.
func (s *Store) claimBeforeBurn(ctx context.Context, e entry) error {
	err := s.ask(ctx, false, func(in keystore.Store) error {
		return s.insist(ctx, in, e.header.meta, true, func() error { return claim(ctx, in, e.header.meta) })
	})
	switch {
	case err == nil, outage(ctx, err):
		return nil
	case errors.Is(err, keystore.ErrConflict), errors.Is(err, keystore.ErrExists):
		return fmt.Errorf("the keystore is back and refuses the unit: %w", err)
	}
	return err
}

// addHere adds a state in the spool. It is not done if the record was drained
// meanwhile.
func (s *Store) addHere(k key, st keystore.State) (_ keystore.Receipt, done bool, err error) {
	unlock, err := s.spool.lock()
	if err != nil {
		return keystore.Receipt{}, false, err
	}
	defer unlock()
	e, err := s.spool.load(k)
	if err != nil || !e.live() {
		return keystore.Receipt{}, false, err
	}
	receipt := s.receipt(e)
	if n := len(e.states); n > 0 && e.states[n-1].Kind == st.Kind && e.states[n-1].Job == st.Job {
		receipt.Version, receipt.Time = n, e.states[n-1].Time
		return receipt, true, s.spool.syncDir(".") // the try that wrote it may not have
	}
	if err := keystore.CheckTransition(e.states, st.Kind); err != nil {
		return keystore.Receipt{}, false, fmt.Errorf("unit %s, key %s: %w", k.unit, k.fp, err)
	}
	st.Seq = len(e.states) + 1
	if err := s.spool.put(fmt.Sprintf("%s%s%d", k.name(), stateExt, st.Seq), marshalState(k, st)); err != nil {
		return keystore.Receipt{}, false, fmt.Errorf("%w: the escrow: %w", keystore.ErrUnknownOutcome, err)
	}
	receipt.Version, receipt.Time = st.Seq, st.Time
	return receipt, true, nil
}

// Load gives a record of the inner store. What waits in the spool cannot be
// opened here.
func (s *Store) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Record{}, err
	}
	e, ok, err := s.entry(unit, fp)
	if err != nil {
		return keystore.Record{}, err
	}
	if ok && e.live() {
		return keystore.Record{}, fmt.Errorf("%w: key %s of unit %s waits in the escrow %s, sealed to %s: drain it first", ErrIdentity, fp, unit, s.spool.dir, e.header.recipients)
	}
	var r keystore.Record
	err = s.ask(ctx, true, func(in keystore.Store) (err error) {
		r, err = in.Load(ctx, unit, fp)
		return err
	})
	return r, err
}

// Format keeps printers away from the inner store.
func (s *Store) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "keystore/escrow(%s)", s.spool.dir)
}
