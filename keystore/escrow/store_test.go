package escrow

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// bench is a station with an escrow, a store behind it that may be away, and a
// custodian.
type bench struct {
	t     testing.TB
	dir   string
	vault *fakeVault
	away  error // of the store, while it is not nil
	id    *age.X25519Identity
	cfg   Config
	clock func() time.Time
}

var errSealed = fmt.Errorf("%w: Vault is sealed", keystore.ErrUnavailable)

func newBench(t testing.TB) *bench {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: t.TempDir(), vault: newFakeVault("v1", true), id: id, clock: time.Now}
	b.vault.fault = func(string) (error, error) { return b.away, nil }
	b.cfg = Config{Dir: b.dir, Recipients: []string{id.Recipient().String()}, Retry: time.Nanosecond}
	return b
}

func (b *bench) tryOpen() (*Store, error) {
	s, err := Open(context.Background(), b.cfg, func(context.Context) (keystore.Store, error) {
		if b.away != nil {
			return nil, b.away
		}
		return &fakeVault{fakeData: b.vault.fakeData, fault: b.vault.fault}, nil
	})
	if err == nil {
		s.now = func() time.Time { return b.clock() }
	}
	return s, err
}

func (b *bench) open() *Store {
	b.t.Helper()
	s, err := b.tryOpen()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
	return s
}

// begun is an escrow that has seen its store, which is now away.
func begun(t testing.TB) (*bench, *Store) {
	t.Helper()
	b := newBench(t)
	s := b.open()
	b.away = errSealed
	return b, s
}

func (b *bench) drain(from Source) (DrainReport, error) {
	b.t.Helper()
	return Drain(context.Background(), from, []age.Identity{b.id}, &fakeVault{fakeData: b.vault.fakeData, fault: b.vault.fault}, time.Now)
}

func (b *bench) spool() Source {
	b.t.Helper()
	src, err := Spool(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return src
}

func must[T any](t testing.TB) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func state(k keystore.StateKind) keystore.State {
	return keystore.State{Kind: k, Job: "job-1", Station: "line1", Note: "test"}
}

func (b *bench) add(s *Store, r keystore.Record, kinds ...keystore.StateKind) {
	b.t.Helper()
	for _, k := range kinds {
		must[keystore.Receipt](b.t)(s.AddState(b.t.Context(), r.Unit, r.Fingerprint, state(k)))
	}
}

// whole is a store that does what a station cannot: it opens what is sealed.
type whole struct {
	*Store
	b *bench
}

func (w *whole) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	r, err := w.Store.Load(ctx, unit, fp)
	if !errors.Is(err, ErrIdentity) {
		return r, err
	}
	e, err := w.spool.load(key{unit, fp})
	if err != nil {
		return keystore.Record{}, err
	}
	_, r, err = openSealed(e.sealed, []age.Identity{w.b.id})
	return r, err
}

var stores atomic.Int64

// TestConformance passes the suite with a store that is there, and with one that
// takes no record, so that every record lies in the spool.
func TestConformance(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			keystoretest.Run(t, keystoretest.Harness{
				New: func(t *testing.T, test bool) keystore.Store {
					b := newBench(t)
					b.vault = newFakeVault(fmt.Sprintf("v%d", stores.Add(1)), test)
					b.vault.fault = func(op string) (error, error) {
						if away && (op == "create" || op == "reserve") {
							return errSealed, nil
						}
						return nil, nil
					}
					return &whole{b.open(), b}
				},
				Reopen: func(t *testing.T, s keystore.Store) keystore.Store {
					w := s.(*whole)
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					return &whole{w.b.open(), w.b}
				},
			})
		})
	}
	t.Run("fake", func(t *testing.T) {
		keystoretest.Run(t, keystoretest.Harness{
			New: func(_ *testing.T, test bool) keystore.Store {
				return newFakeVault(fmt.Sprintf("v%d", stores.Add(1)), test)
			},
			Reopen: func(_ *testing.T, s keystore.Store) keystore.Store {
				_ = s.Close()
				return &fakeVault{fakeData: s.(*fakeVault).fakeData}
			},
		})
	})
}

// TestOutage: a record that the store does not take goes to the spool, and that
// shows everywhere.
func TestOutage(t *testing.T) {
	b, s := begun(t)
	ctx := t.Context()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if err := s.Reserve(ctx, r.Meta()); err != nil {
		t.Fatal(err)
	}
	receipt := must[keystore.Receipt](t)(s.Create(ctx, r))
	if !strings.HasPrefix(receipt.Ref, "escrow:v1/") || receipt.Store != "v1" || !strings.Contains(receipt.Warning, "escrow drain") {
		t.Errorf("%+v", receipt)
	}
	confirmed := must[keystore.Receipt](t)(s.Confirm(ctx, r.Unit, r.Fingerprint))
	if confirmed != receipt {
		t.Errorf("confirmed %+v, created %+v", confirmed, receipt)
	}
	info := must[keystore.Info](t)(s.Info(ctx))
	if info.ID != "v1" || !info.TestStore || !strings.Contains(info.Warning, "1 of at most 100") || !strings.Contains(info.Warning, "sealed") {
		t.Errorf("%+v", info)
	}
	metas, err := s.List(ctx, r.Unit)
	if !errors.Is(err, keystore.ErrPartial) || len(metas) != 1 || metas[0].Warning == "" || metas[0].Receipt != receipt {
		t.Errorf("%+v, %v", metas, err)
	}
	if metas, err := s.List(ctx, keystoretest.Simulated(9)); !errors.Is(err, keystore.ErrPartial) || len(metas) != 0 {
		t.Errorf("a unit that nobody knows: %+v, %v", metas, err)
	}
	// The station cannot open it, and nothing in the folder shows the key.
	if _, err := s.Load(ctx, r.Unit, r.Fingerprint); !errors.Is(err, ErrIdentity) {
		t.Errorf("load: %v", err)
	}
	b.add(s, r, keystore.MayBeInSilicon)
	err = filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if st, err := d.Info(); err != nil || st.Mode().Perm() != 0o600 || strings.HasPrefix(d.Name(), newPrefix) {
			t.Errorf("%s: mode %v, %v", path, st.Mode(), err)
		}
		content := must[[]byte](t)(os.ReadFile(path))
		return r.Key.Use(func(k []byte) error {
			if bytes.Contains(content, k[:8]) || bytes.Contains(content, []byte(hex.EncodeToString(k[:8]))) {
				t.Errorf("%s shows the key", path)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	// A second key is refused, whether the store is away or back.
	second := keystoretest.NewRecord(t, r.Unit)
	for _, away := range []error{errSealed, nil} {
		b.away = away
		_, err := s.Create(ctx, second)
		var conflict *keystore.ConflictError
		if !errors.As(err, &conflict) || conflict.State != keystore.MayBeInSilicon || conflict.Fingerprint != r.Fingerprint {
			t.Errorf("a second key: %v", err)
		}
		if err := s.Reserve(ctx, second.Meta()); !errors.Is(err, keystore.ErrConflict) {
			t.Errorf("a second reservation: %v", err)
		}
	}
	// Real units do not get into a store for simulated ones.
	if _, err := s.Create(ctx, keystoretest.NewRecord(t, chip.MAC{0x24, 0x0a, 0xc4, 0, 0, 1})); !errors.Is(err, keystore.ErrTestUnit) {
		t.Errorf("a real unit: %v", err)
	}
	waiting := must[[]Waiting](t)(List(b.dir))
	if len(waiting) != 1 || waiting[0].Meta.Fingerprint != r.Fingerprint || waiting[0].Meta.Current() != keystore.MayBeInSilicon || waiting[0].Recipients != b.cfg.Recipients[0] {
		t.Errorf("%+v", waiting)
	}
}

// TestUnknownOutcome: the store may hold the record. The same one goes to the
// spool, and draining finds that they are one.
func TestUnknownOutcome(t *testing.T) {
	b := newBench(t)
	s := b.open()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	b.vault.fault = func(op string) (error, error) {
		if op == "create" {
			return nil, fmt.Errorf("%w: cut", keystore.ErrUnknownOutcome)
		}
		return nil, nil
	}
	_ = s.Close()
	s = b.open()
	if receipt, err := s.Create(t.Context(), r); err != nil || !strings.HasPrefix(receipt.Ref, RefPrefix) {
		t.Fatalf("%+v, %v", receipt, err)
	}
	b.vault.fault = nil
	if rep, err := b.drain(b.spool()); err != nil || rep.Stored != 1 || len(rep.Findings) != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestOtherErrorsAreNoOutage: what the store refuses does not go to the spool.
func TestOtherErrorsAreNoOutage(t *testing.T) {
	for _, cause := range []error{keystore.ErrConflict, keystore.ErrExists, keystore.ErrDamaged, errors.New("denied")} {
		b := newBench(t)
		s := b.open()
		b.away = cause
		r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
		if err := s.Reserve(t.Context(), r.Meta()); !errors.Is(err, cause) {
			t.Errorf("reserve: %v", err)
		}
		if _, err := s.Create(t.Context(), r); !errors.Is(err, cause) {
			t.Errorf("create: %v", err)
		}
		if w := must[[]Waiting](t)(List(b.dir)); len(w) != 0 {
			t.Errorf("%v: %+v", cause, w)
		}
	}
	// Neither does what a caller gave up.
	_, s := begun(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(ctx, keystoretest.NewRecord(t, keystoretest.Simulated(1))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestBounds: number and age.
func TestBounds(t *testing.T) {
	b := newBench(t)
	b.cfg.Max, b.cfg.MaxAge = 2, time.Hour
	s := b.open()
	b.away = errSealed
	ctx := t.Context()
	create := func(n byte) error {
		r := keystoretest.NewRecord(t, keystoretest.Simulated(n))
		if err := s.Reserve(ctx, r.Meta()); err != nil {
			return err
		}
		_, err := s.Create(ctx, r)
		return err
	}
	if err := errors.Join(create(1), create(2)); err != nil {
		t.Fatal(err)
	}
	if err := create(3); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "full") || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a third record: %v", err)
	}
	if _, err := s.Create(ctx, keystoretest.NewRecord(t, keystoretest.Simulated(3))); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
		t.Errorf("a third record: %v", err)
	}
	b.cfg.Max = 3
	s = b.open()
	b.clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := create(4); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "waits for more than 1h0m0s") {
		t.Errorf("after two hours: %v", err)
	}
	b.clock = time.Now
	if err := create(5); err != nil {
		t.Errorf("in time: %v", err)
	}
	b.away = nil
	s = b.open()
	if err := create(6); err != nil {
		t.Errorf("the store is back, and a full escrow stops nobody: %v", err)
	}
}

// TestBegin: an escrow begins with its store, and belongs to it.
func TestBegin(t *testing.T) {
	b := newBench(t)
	b.away = errSealed
	if _, err := b.tryOpen(); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "has not seen its keystore yet") {
		t.Errorf("a new spool without its store: %v", err)
	}
	b.away = errors.New("a wrong certificate")
	if _, err := b.tryOpen(); !errors.Is(err, b.away) {
		t.Errorf("another error: %v", err)
	}
	b.away = nil
	_ = b.open()
	b.away = errSealed
	s := b.open() // it has seen it
	b.away = nil
	b.vault = newFakeVault("v2", true)
	if _, err := b.tryOpen(); err == nil || !strings.Contains(err.Error(), "name another folder") {
		t.Errorf("another store: %v", err)
	}
	if _, err := s.Info(t.Context()); err == nil || !strings.Contains(err.Error(), "name another folder") {
		t.Errorf("another store, later: %v", err)
	}
	for what, cfg := range map[string]Config{
		"there is no folder":      {Dir: filepath.Join(b.dir, "nowhere"), Recipients: b.cfg.Recipients},
		"give one to":             {Dir: b.dir},
		"no age recipient":        {Dir: b.dir, Recipients: []string{b.id.String()[:20]}},
		"named twice":             {Dir: b.dir, Recipients: []string{b.cfg.Recipients[0], b.cfg.Recipients[0]}},
		"dir: name the spool's":   {Recipients: b.cfg.Recipients},
		"max: -1 records":         {Dir: b.dir, Recipients: b.cfg.Recipients, Max: -1},
		"max_age: -1ns is negati": {Dir: b.dir, Recipients: b.cfg.Recipients, MaxAge: -1},
	} {
		b.cfg = cfg
		if _, err := b.tryOpen(); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "AGE-SECRET") && what != "no age recipient" {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openSpool(open); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a folder for everybody: %v", err)
	}
}

// rivals are the ways in which another's key of the same unit differs.
var rivals = map[string]func(r *keystore.Record){
	"another job":                   func(r *keystore.Record) { r.Job = "another" },
	"the same job, another station": func(r *keystore.Record) { r.Station = "line2" },
}

// TestClaimBeforeBurn: a store that is back before the burn is asked once more.
func TestClaimBeforeBurn(t *testing.T) {
	for what, differs := range rivals {
		t.Run(what, func(t *testing.T) {
			b, s := begun(t)
			r, rival := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
			must[keystore.Receipt](t)(s.Create(t.Context(), r))
			differs(&rival)
			must[keystore.Receipt](t)(b.another().Create(t.Context(), rival)) // by another station
			b.away = nil
			_, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, state(keystore.MayBeInSilicon))
			if !errors.Is(err, keystore.ErrConflict) || !strings.Contains(err.Error(), "is back and refuses") {
				t.Errorf("the burn was allowed: %v", err)
			}
			if m := must[[]keystore.Meta](t)(b.another().List(t.Context(), r.Unit)); len(m) != 1 || m[0].Superseded() {
				t.Errorf("the other's key: %+v", m)
			}
			// The unit's own job gives its key up, and the spool's record is ended.
			b.add(s, r, keystore.Superseded)
			if rep, err := s.Sync(t.Context()); err != nil || rep.Drained != 1 || len(rep.Findings) != 0 {
				t.Errorf("%+v, %v", rep, err)
			}
		})
	}
}

// TestStaleKey: the store went away after it took a key, and the job started
// again and made another. The first gives way when the store is back, at
// whichever call comes first.
func TestStaleKey(t *testing.T) {
	for what, call := range map[string]func(b *bench, s *Store, r keystore.Record) error{
		"reserve": func(b *bench, s *Store, r keystore.Record) error { return s.Reserve(b.t.Context(), r.Meta()) },
		"create": func(b *bench, s *Store, r keystore.Record) error {
			_, err := s.Create(b.t.Context(), r)
			return err
		},
		"burn": func(b *bench, s *Store, r keystore.Record) error {
			b.away = errSealed
			must[keystore.Receipt](b.t)(s.Create(b.t.Context(), r))
			b.away = nil
			_, err := s.AddState(b.t.Context(), r.Unit, r.Fingerprint, state(keystore.MayBeInSilicon))
			return err
		},
		"sync": func(b *bench, s *Store, r keystore.Record) error {
			b.away = errSealed
			must[keystore.Receipt](b.t)(s.Create(b.t.Context(), r))
			b.away = nil
			// Nobody looks at the board here: a key that was not burned displaces none.
			rep, err := s.Sync(b.t.Context())
			if err != nil || len(rep.Findings) != 1 {
				return fmt.Errorf("with a key that was not burned: %+v, %w", rep, err)
			}
			b.away = errSealed
			b.add(s, r, keystore.MayBeInSilicon)
			b.away = nil
			rep, err = s.Sync(b.t.Context())
			if len(rep.Findings) > 0 {
				err = fmt.Errorf("%+v", rep)
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			s := b.open()
			first, second := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
			must[keystore.Receipt](t)(s.Create(t.Context(), first))
			// While everybody could be asked, a second key is a conflict.
			if err := s.Reserve(t.Context(), second.Meta()); !errors.Is(err, keystore.ErrConflict) {
				t.Errorf("nobody was away: %v", err)
			}
			b.away = errSealed
			if metas, err := s.List(t.Context(), first.Unit); !errors.Is(err, keystore.ErrPartial) || len(metas) != 0 {
				t.Errorf("%+v, %v", metas, err)
			}
			b.away = nil
			if err := call(b, s, second); err != nil {
				t.Fatal(err)
			}
			metas := must[[]keystore.Meta](t)(s.List(t.Context(), first.Unit))
			if len(metas) != 2 || !metas[0].Superseded() || metas[1].Superseded() || metas[1].Fingerprint != second.Fingerprint {
				t.Errorf("%+v", metas)
			}
			if _, err := s.AddState(t.Context(), first.Unit, first.Fingerprint, state(keystore.MayBeInSilicon)); !errors.Is(err, keystore.ErrState) {
				t.Errorf("the first key may be burned: %v", err)
			}
		})
	}
}

// another is the store as another station has it, which is not away.
func (b *bench) another() *fakeVault { return &fakeVault{fakeData: b.vault.fakeData} }

// TestGivenUp: a key that was given up in the spool gives way in the store too,
// where its claim stands.
func TestGivenUp(t *testing.T) {
	b := newBench(t)
	s := b.open()
	ctx := t.Context()
	first, second := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if err := s.Reserve(ctx, first.Meta()); err != nil { // claimed while the store is there
		t.Fatal(err)
	}
	b.away = errSealed
	must[keystore.Receipt](t)(s.Create(ctx, first))
	b.add(s, first, keystore.MayBeInSilicon, keystore.NotInSilicon, keystore.Superseded)
	if _, err := s.Create(ctx, first); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("a key that was given up: %v", err)
	}
	b.away = nil
	if err := s.Reserve(ctx, second.Meta()); err != nil {
		t.Fatalf("the second key: %v", err)
	}
	must[keystore.Receipt](t)(s.Create(ctx, second))
	metas := must[[]keystore.Meta](t)(s.List(ctx, first.Unit))
	if len(metas) != 2 || !metas[0].Superseded() || len(metas[0].States) != 3 || metas[1].Superseded() || metas[0].Receipt.Ref == "" {
		t.Errorf("%+v", metas)
	}
	rep, err := b.drain(b.spool())
	if err != nil || rep.GivenUp != 1 || rep.Stored != 0 || len(rep.Findings) != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if again, err := b.drain(b.spool()); err != nil || again.GivenUp != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if metas := must[[]keystore.Meta](t)(s.List(ctx, first.Unit)); len(metas) != 2 {
		t.Errorf("%+v", metas)
	}
}

// TestBreaker: a store that does not answer holds a call up once, and not every
// call.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.cfg.Retry = 15 * time.Second
		s := b.open()
		b.away = errSealed
		wait := func(string) (error, error) {
			time.Sleep(30 * time.Second) // its patience, in the bubble's time
			return b.away, nil
		}
		b.vault.fault = wait
		_ = s.Close()
		began := time.Now()
		s = b.open() // does not reach it
		b.away = nil
		b.vault.fault = wait
		for i := range byte(5) {
			must[keystore.Receipt](t)(s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(i+1))))
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("five records took %s", took)
		}
		time.Sleep(15 * time.Second)
		if receipt := must[keystore.Receipt](t)(s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(9)))); strings.HasPrefix(receipt.Ref, RefPrefix) {
			t.Errorf("it was not asked again: %+v", receipt)
		}
	})
}

// TestUnitsAreMerged: ascending, each once.
func TestUnitsAreMerged(t *testing.T) {
	b, s := begun(t)
	for _, n := range []byte{5, 1, 3} {
		must[keystore.Receipt](t)(s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(n))))
	}
	for _, n := range []byte{2, 4, 6} {
		must[keystore.Receipt](t)(b.another().Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(n))))
	}
	if _, err := collect(s.Units(t.Context())); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
	b.away = nil
	got, err := collect(s.Units(t.Context()))
	if err != nil || len(got) != 6 || !slices.IsSortedFunc(got, func(a, b chip.MAC) int { return bytes.Compare(a[:], b[:]) }) {
		t.Errorf("%v, %v", got, err)
	}
	for _, err := range s.Units(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

// TestMetasAreMerged: a list of all records has those that wait, in their places,
// whatever the inner store can do by itself.
func TestMetasAreMerged(t *testing.T) {
	b, s := begun(t)
	must[keystore.Receipt](t)(s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(2))))
	for _, n := range []byte{1, 3} {
		must[keystore.Receipt](t)(b.another().Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(n))))
	}
	all := func() (refs []string, err error) {
		for m, err := range keystore.Metas(t.Context(), s) {
			if err != nil {
				return refs, err
			}
			place, _, _ := strings.Cut(m.Receipt.Ref, ":")
			refs = append(refs, fmt.Sprint(m.Unit[5], " ", place))
		}
		return refs, nil
	}
	if refs, err := all(); !errors.Is(err, keystore.ErrUnavailable) && !errors.Is(err, keystore.ErrPartial) {
		t.Errorf("away: %v, %v", refs, err)
	}
	b.away = nil
	if refs, err := all(); err != nil || !slices.Equal(refs, []string{"1 fake", "2 escrow", "3 fake"}) {
		t.Errorf("%q, %v", refs, err)
	}
}

func collect(seq iter.Seq2[chip.MAC, error]) (out []chip.MAC, err error) {
	for u, e := range seq {
		if e != nil {
			return out, e
		}
		out = append(out, u)
	}
	return out, nil
}

// TestDamage: a changed byte of a record's file is found, wherever it is. Of a
// state it may be a letter of a note, which no hash covers; what reads is still
// one of the states that exist.
func TestDamage(t *testing.T) {
	b, s := begun(t)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	must[keystore.Receipt](t)(s.Create(t.Context(), r))
	b.add(s, r, keystore.MayBeInSilicon)
	b.away = nil
	k := key{r.Unit, r.Fingerprint}
	flip := func(ext string, check func(i int)) {
		path := filepath.Join(b.dir, k.name()+ext)
		good := must[[]byte](t)(os.ReadFile(path))
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x01
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			check(i)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip(sealedExt, func(i int) {
		if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, keystore.ErrDamaged) {
			t.Fatalf("byte %d: confirm: %v", i, err)
		}
		if _, err := s.List(t.Context(), r.Unit); !errors.Is(err, keystore.ErrDamaged) {
			t.Fatalf("byte %d: list: %v", i, err)
		}
		if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, r.Unit)); !errors.Is(err, keystore.ErrDamaged) {
			t.Fatalf("byte %d: a second key: %v", i, err)
		}
	})
	flip(stateExt+"1", func(i int) {
		metas, err := s.List(t.Context(), r.Unit)
		if err == nil && (len(metas) != 1 || !metas[0].MayBeInSilicon()) || err != nil && !errors.Is(err, keystore.ErrDamaged) {
			t.Fatalf("byte %d of the state: %+v, %v", i, metas, err)
		}
	})
	must[keystore.Receipt](t)(s.Confirm(t.Context(), r.Unit, r.Fingerprint))
	// A file under another record's name.
	other := key{keystoretest.Simulated(2), r.Fingerprint}.name() + sealedExt
	if err := os.Link(filepath.Join(b.dir, k.name()+sealedExt), filepath.Join(b.dir, other)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Confirm(t.Context(), keystoretest.Simulated(2), r.Fingerprint); !errors.Is(err, keystore.ErrDamaged) {
		t.Errorf("another record's file: %v", err)
	}
}
