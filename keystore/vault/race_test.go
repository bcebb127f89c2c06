package vault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// live gives the keys of a unit that are not superseded, and fails the test if
// there are records that no claim names.
func live(t *testing.T, auditor *Store, unit chip.MAC) []keystore.Meta {
	t.Helper()
	metas, err := auditor.List(t.Context(), unit)
	if err != nil {
		t.Fatal(err)
	}
	names, err := auditor.c.list(t.Context(), unitPath(unit)+"/")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fp, err := keystore.ParseFingerprint(strings.TrimSuffix(name, "/"))
		if err != nil {
			continue // claim/
		}
		if !slices.ContainsFunc(metas, func(m keystore.Meta) bool { return m.Fingerprint == fp }) {
			t.Errorf("no claim names key %s", fp)
		}
	}
	return slices.DeleteFunc(metas, keystore.Meta.Superseded)
}

// TestRacers: 32 stations make a key for one unit; one wins. Then, generation
// after generation, all of them at once try to give the winner's key up and to
// put their own in its place, or to begin its burn.
func TestRacers(t *testing.T) {
	const racers = 32
	x := newSite(t, vaulttest.New(t), "kv", true)
	auditor := x.open(t, RoleAuditor)
	var stations [4]*Store
	for i := range stations {
		stations[i] = x.open(t, RoleStation)
	}
	unit := keystoretest.Simulated(7)
	for generation := range 6 {
		burn := generation == 5
		won := make([]keystore.Fingerprint, racers)
		burned := make([]keystore.Fingerprint, racers)
		var wg sync.WaitGroup
		for i := range racers {
			s := stations[i%len(stations)]
			r := keystoretest.NewRecord(t, unit)
			wg.Go(func() {
				metas, err := s.List(t.Context(), unit)
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range metas {
					if m.Superseded() || generation == 0 {
						continue // at first, all of them only create
					}
					kind := keystore.Superseded
					if burn && i%2 == 0 {
						kind = keystore.MayBeInSilicon
					}
					_, err := s.AddState(t.Context(), unit, m.Fingerprint, keystore.State{Kind: kind, Job: fmt.Sprintf("job-%d", i)})
					if err == nil && kind == keystore.MayBeInSilicon {
						burned[i] = m.Fingerprint
					} else if err != nil && !errors.Is(err, keystore.ErrState) {
						t.Errorf("state %s: %v", kind, err)
					}
				}
				if _, err := s.Create(t.Context(), r); err == nil {
					won[i] = r.Fingerprint
				} else if !errors.Is(err, keystore.ErrConflict) {
					t.Errorf("create: %v", err)
				}
			})
		}
		wg.Wait()
		left := live(t, auditor, unit)
		if len(left) != 1 {
			t.Fatalf("generation %d: %d keys are not superseded", generation, len(left))
		}
		for i, fp := range burned {
			if !fp.IsZero() && (left[0].Fingerprint != fp || !left[0].MayBeInSilicon()) {
				t.Errorf("racer %d may burn %s, and %s is the unit's key", i, fp, left[0].Fingerprint)
			}
		}
		if generation == 0 {
			if n := len(slices.DeleteFunc(won, keystore.Fingerprint.IsZero)); n != 1 {
				t.Errorf("%d racers won", n)
			}
		}
	}
}

var errCrash = errors.New("the station lost its power here")

// TestCrashes stops a station before each of its writes in turn, lets another
// one come to the unit, and then lets the first go on as if only its network had
// been slow. At most one key is ever not superseded, and no key that was given
// up can be burned.
func TestCrashes(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	auditor := x.open(t, RoleAuditor)
	other := x.open(t, RoleStation)
	ctx := t.Context()

	// What a station does with a unit, write by write: claim, record, state 1, state 2.
	work := func(s *Store, r keystore.Record) error {
		if _, err := s.Create(ctx, r); err != nil {
			return err
		}
		if _, err := s.Confirm(ctx, r.Unit, r.Fingerprint); err != nil {
			return err
		}
		for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
			if _, err := s.AddState(ctx, r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
				return err
			}
		}
		return nil
	}
	for stopAt := range 5 {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d late=%v", stopAt, late), func(t *testing.T) {
				unit := chip.MAC{2, 0, 0, byte(stopAt), 1, 0}
				if late {
					unit[5] = 1
				}
				first := keystoretest.NewRecord(t, unit)
				station := x.open(t, RoleStation)
				writes := 0
				station.before = func(string) error {
					if writes++; writes == stopAt+1 {
						return errCrash
					}
					return nil
				}
				err := work(station, first)
				if stopAt < 4 && !errors.Is(err, errCrash) || stopAt == 4 && err != nil {
					t.Fatalf("the first station: %v", err)
				}
				station.before = nil

				// The second station does what the engine does: it gives up what is
				// not burned, and makes a key of its own.
				second := keystoretest.NewRecord(t, unit)
				metas, err := other.List(ctx, unit)
				if err != nil {
					t.Fatal(err)
				}
				took := true
				for _, m := range metas {
					_, err := other.AddState(ctx, unit, m.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: second.Job})
					if err != nil && !errors.Is(err, keystore.ErrState) {
						t.Fatal(err)
					}
					took = took && err == nil
				}
				if want := stopAt < 3; took != want { // no burn was begun before write 3
					t.Errorf("the second station could give up: %v, want %v", took, want)
				}
				err = work(other, second)
				if took != (err == nil) || !took && !errors.Is(err, keystore.ErrConflict) {
					t.Errorf("the second station: %v", err)
				}
				if late && stopAt < 4 {
					err := work(station, first)
					if (err == nil) == took {
						t.Errorf("the first station goes on: %v", err)
					}
				}
				left := live(t, auditor, unit)
				if len(left) != 1 {
					t.Fatalf("%d keys are not superseded", len(left))
				}
				if want := second.Fingerprint; took && left[0].Fingerprint != want {
					t.Errorf("the unit's key is %s, want %s", left[0].Fingerprint, want)
				}
			})
		}
	}
}

// TestLateRecord: a record whose request was held up arrives after its claim was
// given up. It is superseded at birth and cannot be burned.
func TestLateRecord(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	slow, other := x.open(t, RoleStation), x.open(t, RoleStation)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	held, resume := make(chan struct{}), make(chan struct{})
	slow.before = func(path string) error {
		if path == recordPath(r.Unit, r.Fingerprint) {
			close(held)
			<-resume
		}
		return nil
	}
	done := make(chan error)
	go func() {
		_, err := slow.Create(context.WithoutCancel(t.Context()), r)
		done <- err
	}()
	<-held
	metas, err := other.List(t.Context(), r.Unit)
	if err != nil || len(metas) != 1 || metas[0].Receipt.Ref != "" || metas[0].Job != r.Job {
		t.Fatalf("a claim alone: %+v, %v", metas, err)
	}
	if _, err := other.Confirm(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("confirm of a claim alone: %v", err)
	}
	if _, err := other.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "x"}); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("burn of a claim alone: %v", err)
	}
	if _, err := other.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "x"}); err != nil {
		t.Fatal(err)
	}
	second := keystoretest.NewRecord(t, r.Unit)
	if _, err := other.Create(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	close(resume)
	if err := <-done; err != nil {
		t.Fatalf("the late record: %v", err)
	}
	if _, err := slow.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}); !errors.Is(err, keystore.ErrState) {
		t.Errorf("the late record may be burned: %v", err)
	}
	if left := live(t, x.open(t, RoleAuditor), r.Unit); len(left) != 1 || left[0].Fingerprint != second.Fingerprint {
		t.Errorf("left: %+v", left)
	}
}

// TestManyUnitsManyWorkers: nothing is lost or doubled without any fault.
func TestManyUnitsManyWorkers(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s := x.open(t, RoleStation)
	var wg sync.WaitGroup
	units := make(chan chip.MAC)
	for range 16 {
		wg.Go(func() {
			for u := range units {
				r := keystoretest.NewRecord(t, u)
				created, err := s.Create(t.Context(), r)
				if err != nil {
					t.Error(err)
					continue
				}
				if confirmed, err := s.Confirm(t.Context(), u, r.Fingerprint); err != nil || confirmed != created {
					t.Errorf("%+v, %v", confirmed, err)
				}
			}
		})
	}
	want := map[chip.MAC]bool{}
	for len(want) < 200 {
		u := chip.MAC{2, 0, 0, 0, byte(rand.N(256)), byte(rand.N(256))}
		if !want[u] {
			want[u] = true
			units <- u
		}
	}
	close(units)
	wg.Wait()
	var last chip.MAC
	for u, err := range x.open(t, RoleAuditor).Units(t.Context()) {
		if err != nil || !want[u] || slices.Compare(last[:], u[:]) >= 0 {
			t.Fatalf("%s after %s: %v", u, last, err)
		}
		last = u
		delete(want, u)
	}
	if len(want) != 0 {
		t.Errorf("%d units are lost", len(want))
	}
}

// TestReserve: a reservation blocks other keys at once, Create then only writes
// the record, and a reservation that was given up meanwhile is never burned.
func TestReserve(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, other := x.open(t, RoleStation), x.open(t, RoleStation)
	ctx := t.Context()
	a, b := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if err := s.Reserve(ctx, a.Meta()); err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve(ctx, a.Meta()); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := other.Reserve(ctx, b.Meta()); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("another key: %v", err)
	}
	if _, err := other.Create(ctx, b); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("create of another key: %v", err)
	}
	var paths []string
	s.before = func(path string) error { paths = append(paths, path); return nil }
	created, err := s.Create(ctx, a)
	if err != nil || len(paths) != 1 || paths[0] != recordPath(a.Unit, a.Fingerprint) {
		t.Fatalf("%v, %v", paths, err)
	}
	if again, err := s.Create(ctx, a); err != nil || again != created {
		t.Errorf("create again: %+v, %v", again, err)
	}
	if err := s.Reserve(ctx, keystoretest.NewRecord(t, chip.MAC{0x24, 0, 0, 0, 0, 1}).Meta()); !errors.Is(err, keystore.ErrTestUnit) {
		t.Errorf("a real unit: %v", err)
	}

	c, d := keystoretest.NewRecord(t, keystoretest.Simulated(2)), keystoretest.NewRecord(t, keystoretest.Simulated(2))
	if err := s.Reserve(ctx, c.Meta()); err != nil {
		t.Fatal(err)
	}
	if _, err := other.AddState(ctx, c.Unit, c.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Create(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, c); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(ctx, c.Unit, c.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: c.Job}); !errors.Is(err, keystore.ErrState) {
		t.Errorf("burn of a key that was given up: %v", err)
	}
	if left := live(t, x.open(t, RoleAuditor), c.Unit); len(left) != 1 || left[0].Fingerprint != d.Fingerprint {
		t.Errorf("left: %+v", left)
	}
}
