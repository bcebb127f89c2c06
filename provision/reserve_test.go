package provision_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision"
)

// reservingStore is a memoryStore that can reserve, as the one in Vault does: a
// reservation is listed with a zero Receipt, and blocks other keys.
type reservingStore struct {
	*memoryStore
	reserved []keystore.Meta
}

func (s *reservingStore) open(unit chip.MAC) *keystore.Meta {
	for i := range s.reserved {
		if m := &s.reserved[i]; m.Unit == unit && !m.Superseded() && s.find(unit, m.Fingerprint) == nil {
			return m
		}
	}
	return nil
}

func (s *reservingStore) Reserve(ctx context.Context, m keystore.Meta) error {
	metas, err := s.List(ctx, m.Unit)
	if err != nil {
		return err
	}
	for _, o := range metas {
		switch {
		case o.Fingerprint == m.Fingerprint && o.Superseded():
			return keystore.ErrExists
		case o.Fingerprint != m.Fingerprint && !o.Superseded():
			return &keystore.ConflictError{Unit: m.Unit, Fingerprint: o.Fingerprint, State: o.Current(), Job: o.Job}
		}
	}
	s.reserved = append(s.reserved, keystore.Meta{
		Unit: m.Unit, Simulated: m.Simulated, Fingerprint: m.Fingerprint, Job: m.Job, Station: m.Station, Created: m.Created,
	})
	return nil
}

func (s *reservingStore) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	for _, m := range s.reserved {
		if m.Unit == r.Unit && m.Fingerprint == r.Fingerprint && m.Superseded() {
			return keystore.Receipt{}, keystore.ErrExists
		}
	}
	if o := s.open(r.Unit); o != nil && o.Fingerprint != r.Fingerprint {
		return keystore.Receipt{}, &keystore.ConflictError{Unit: r.Unit, Fingerprint: o.Fingerprint, Job: o.Job}
	}
	return s.memoryStore.Create(ctx, r)
}

func (s *reservingStore) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	metas, err := s.memoryStore.List(ctx, unit)
	for _, m := range s.reserved {
		if err == nil && m.Unit == unit && s.find(unit, m.Fingerprint) == nil {
			metas = append(metas, m)
		}
	}
	return metas, err
}

func (s *reservingStore) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	if m := s.open(unit); m != nil && m.Fingerprint == fp {
		if err := ctx.Err(); err != nil {
			return keystore.Receipt{}, err
		}
		if st.Kind != keystore.Superseded && st.Kind != keystore.Quarantined {
			return keystore.Receipt{}, keystore.ErrNotFound
		}
		st.Seq = len(m.States) + 1
		m.States = append(slices.Clone(m.States), st)
		return keystore.Receipt{Version: st.Seq}, nil
	}
	return s.memoryStore.AddState(ctx, unit, fp, st)
}

func newReservingBench(t *testing.T) (*bench, *reservingStore) {
	t.Helper()
	b := newMemoryBench(t)
	s := &reservingStore{memoryStore: newMemoryStore(true)}
	b.store = s
	return b, s
}

// TestReserve: the key is reserved after it was made and before the flash is
// touched, and the record takes the reservation over.
func TestReserve(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, s := newReservingBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "hybrid")
		b.at["reserve"] = func() {
			if len(s.reserved) != 0 {
				t.Error("reserved before the step")
			}
		}
		b.at["flash"] = func() {
			if len(s.reserved) != 1 || s.reserved[0].Unit != unitMAC || s.reserved[0].Job != job.ID(unitMAC) || s.reserved[0].Fingerprint.IsZero() {
				t.Errorf("before the flash: %+v", s.reserved)
			}
		}
		r := b.run(t.Context(), c, job)
		wantPass(t, r)
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
		}
		if alive, gone := b.keysAlive(); alive != 1 || gone != 0 || s.open(unitMAC) != nil {
			t.Errorf("%d keys, %d given up, open reservation %v", alive, gone, s.open(unitMAC))
		}
		names := make([]string, len(r.Steps))
		for i, st := range r.Steps {
			names[i] = st.Name
		}
		if i := slices.Index(names, "reserve"); i < 0 || names[i+1] != "flash" {
			t.Errorf("steps: %v", names)
		}
	})
}

// TestReserveRefused: a conflict refuses the unit, a keystore that is away is exit
// code 12, and neither touches the flash.
func TestReserveRefused(t *testing.T) {
	for what, want := range map[string]struct {
		err     error
		verdict provision.Verdict
		cause   provision.Cause
		exit    int
	}{
		"conflict":    {&keystore.ConflictError{Unit: unitMAC, Fingerprint: keystore.Fingerprint{1}}, provision.Fail, provision.CauseRefused, 10},
		"unavailable": {fmt.Errorf("%w: sealed", keystore.ErrUnavailable), provision.Error, provision.CauseKeystore, 12},
		"unknown":     {fmt.Errorf("%w: cut", keystore.ErrUnknownOutcome), provision.Error, provision.CauseKeystore, 12},
	} {
		inBubble(t, what, func(t *testing.T) {
			b, s := newReservingBench(t)
			c := b.board(espsim.Options{Model: model(t, "esp32c3")})
			job := sampleJob(t, "esp32c3", "hybrid")
			b.store = &faultyStore{Store: s, fail: func(op string, _ int) (error, error) {
				if op == "reserve" {
					return want.err, nil
				}
				return nil, nil
			}}
			b.at["flash"] = func() { t.Error("the flash was begun") }
			r := b.run(t.Context(), c, job)
			wantVerdict(t, r, want.verdict, want.cause, "")
			if r.ExitCode() != want.exit || r.BytesWritten != 0 || c.Burns() != 0 {
				t.Errorf("exit %d, %d bytes written, %d burns", r.ExitCode(), r.BytesWritten, c.Burns())
			}
			// The flash was not touched, so another job may have the unit.
			b.store = s
			wantPass(t, b.again(c, sampleJob(t, "esp32c3", "release")))
		})
	}
}

// TestReserveAndLeave: a run that ends between reservation and record gives the
// reservation up; if it cannot, because it was cut off, the next start does.
func TestReserveAndLeave(t *testing.T) {
	for _, cut := range []bool{false, true} {
		inBubble(t, fmt.Sprintf("cut=%v", cut), func(t *testing.T) {
			b, s := newReservingBench(t)
			c := b.board(espsim.Options{Model: model(t, "esp32c3")})
			before, job := c.Fuses(), sampleJob(t, "esp32c3", "hybrid")
			if cut {
				b.store = &faultyStore{Store: s, fail: func(op string, _ int) (error, error) {
					if op == "state" {
						return errInjected, nil
					}
					return nil, nil
				}}
			}
			ctx, cancel := context.WithCancel(t.Context())
			b.at["verify-flash"] = cancel
			r := b.run(ctx, c, job)
			wantVerdict(t, r, provision.Aborted, provision.CauseCancelled, "")
			if open := s.open(unitMAC) != nil; open != cut {
				t.Errorf("a reservation is open: %v", open)
			}
			b.store = s
			r = b.again(c, job)
			wantPass(t, r)
			if err := b.invariants(c, job, before, r); err != nil {
				t.Error(err)
			}
			if alive, gone := b.keysAlive(); alive != 1 || gone != 1 {
				t.Errorf("%d keys and %d given up", alive, gone)
			}
		})
	}
}

// TestReserveFaults fails each call to a store that reserves, before and after it
// took place.
func TestReserveFaults(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, s := newReservingBench(t)
		count := &faultyStore{Store: s, fail: func(string, int) (error, error) { return nil, nil }}
		b.store = count
		wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "release")))
		tried := 0
		for nth := 1; nth <= count.calls; nth++ {
			for _, after := range []bool{false, true} {
				for _, cause := range []error{keystore.ErrUnavailable, keystore.ErrUnknownOutcome} {
					b, s := newReservingBench(t)
					b.store = &faultyStore{Store: s, fail: func(_ string, call int) (error, error) {
						switch {
						case call != nth:
							return nil, nil
						case after:
							return nil, cause
						}
						return cause, nil
					}}
					c := b.board(espsim.Options{Model: model(t, name)})
					x := &trial{b: b, c: c, job: sampleJob(t, name, "release"), before: c.Fuses()}
					out, err := x.play()
					if err = errors.Join(err, x.ended()); err != nil || x.last().Verdict != provision.Pass {
						t.Errorf("call %d, after %v, %v: %s: %v: %s", nth, after, cause, out, err, x.last().Reason)
					}
					if alive, _ := b.keysAlive(); alive != 1 {
						t.Errorf("call %d, after %v, %v: %d keys are alive", nth, after, cause, alive)
					}
					tried++
					_ = c.Close()
				}
			}
		}
		t.Logf("%s: %d points", name, tried)
	})
}

// TestReservingStoreConforms: what the tests above lean on is a keystore.
func TestReservingStoreConforms(t *testing.T) {
	keystoretest.Run(t, keystoretest.Harness{
		New: func(_ *testing.T, test bool) keystore.Store {
			return &reservingStore{memoryStore: newMemoryStore(test)}
		},
		Reopen: func(_ *testing.T, s keystore.Store) keystore.Store {
			old := s.(*reservingStore)
			_ = old.Close()
			return &reservingStore{memoryStore: &memoryStore{id: old.id, test: old.test, rows: old.rows}, reserved: old.reserved}
		},
	})
	// A reservation blocks other keys, and shows.
	s := &reservingStore{memoryStore: newMemoryStore(true)}
	a, other := keystoretest.NewRecord(t, unitMAC), keystoretest.NewRecord(t, unitMAC)
	if err := s.Reserve(t.Context(), a.Meta()); err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve(t.Context(), other.Meta()); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("a second reservation: %v", err)
	}
	if metas, err := s.List(t.Context(), unitMAC); err != nil || len(metas) != 1 || metas[0].Receipt.Time != (time.Time{}) {
		t.Errorf("%+v, %v", metas, err)
	}
}
