package escrow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// wantStored holds what the store has of a key against the record and its states.
func (b *bench) wantStored(r keystore.Record, kinds ...keystore.StateKind) {
	b.t.Helper()
	got := must[keystore.Record](b.t)(b.another().Load(b.t.Context(), r.Unit, r.Fingerprint))
	if !got.Key.Equal(r.Key) {
		b.t.Errorf("unit %s: another key is stored", r.Unit)
	}
	for _, m := range must[[]keystore.Meta](b.t)(b.another().List(b.t.Context(), r.Unit)) {
		if m.Fingerprint != r.Fingerprint {
			continue
		}
		if len(m.States) != len(kinds) {
			b.t.Errorf("unit %s: states %+v, want %v", r.Unit, m.States, kinds)
			return
		}
		for i, k := range kinds {
			if m.States[i].Kind != k {
				b.t.Errorf("unit %s: states %+v, want %v", r.Unit, m.States, kinds)
			}
		}
	}
}

// files lists a folder of the spool without what is always there.
func (b *bench) files(dir string) (names []string) {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.dir, dir))
	if err != nil && dir == "" {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != lockFile && e.Name() != storeFile && e.Name() != drainedDir {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestDrain: from the spool, with states, once and again.
func TestDrain(t *testing.T) {
	b, s := begun(t)
	one, two := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(2))
	for _, r := range []keystore.Record{one, two} {
		must[keystore.Receipt](t)(s.Create(t.Context(), r))
	}
	b.add(s, one, keystore.MayBeInSilicon, keystore.InSilicon)
	if _, err := b.drain(b.spool()); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("into a store that is away: %v", err)
	}
	b.away = nil
	stranger, _ := age.GenerateX25519Identity()
	if rep, err := Drain(t.Context(), b.spool(), []age.Identity{stranger}, b.another(), time.Now); err != nil || len(rep.Findings) != 2 || !strings.Contains(rep.Findings[0].Problem, "does not open") {
		t.Errorf("with another identity: %+v, %v", rep, err)
	}
	if rep, err := Drain(t.Context(), b.spool(), []age.Identity{b.id}, newFakeVault("other", true), time.Now); err != nil || len(rep.Findings) != 2 || !strings.Contains(rep.Findings[0].Problem, "belongs to keystore v1") {
		t.Errorf("into another store: %+v, %v", rep, err)
	}
	rep, err := b.drain(b.spool())
	if err != nil || rep.Stored != 2 || len(rep.Findings) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	b.wantStored(one, keystore.MayBeInSilicon, keystore.InSilicon)
	b.wantStored(two)
	if left := b.files(""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if kept := b.files("drained/020000000001"); len(kept) != 4 {
		t.Errorf("kept: %v", kept)
	}
	if rep, err := b.drain(b.spool()); err != nil || rep.Stored != 0 {
		t.Errorf("again: %+v, %v", rep, err)
	}
	// From now on the store answers, and takes the states.
	receipt := must[keystore.Receipt](t)(s.Confirm(t.Context(), one.Unit, one.Fingerprint))
	if receipt.Ref == "" || strings.HasPrefix(receipt.Ref, RefPrefix) || receipt.Warning != "" {
		t.Errorf("%+v", receipt)
	}
	b.add(s, two, keystore.MayBeInSilicon)
	b.wantStored(two, keystore.MayBeInSilicon)
	// And when it is away again, the drained unit gets no second key either.
	b.away = errSealed
	if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, one.Unit)); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("a second key: %v", err)
	}
	if receipt := must[keystore.Receipt](t)(s.Confirm(t.Context(), one.Unit, one.Fingerprint)); !strings.HasPrefix(receipt.Ref, RefPrefix) {
		t.Errorf("%+v", receipt)
	}
}

// TestDrainConflicts: another key of the unit is in the store.
func TestDrainConflicts(t *testing.T) {
	for what, c := range map[string]struct {
		job    string // of the other key; after a comma its station
		other  []keystore.StateKind
		own    []keystore.StateKind
		stored bool
	}{
		// The station made it, and the store went away before the burn.
		"same job, never burned": {"job-1", nil, []keystore.StateKind{keystore.MayBeInSilicon}, true},
		"another station":        {"job-1,line2", nil, []keystore.StateKind{keystore.MayBeInSilicon}, false},
		"another job":            {"job-2", nil, []keystore.StateKind{keystore.MayBeInSilicon}, false},
		"may be in silicon":      {"job-1", []keystore.StateKind{keystore.MayBeInSilicon}, []keystore.StateKind{keystore.MayBeInSilicon}, false},
		"ours was never burned":  {"job-1", nil, nil, false},
		"theirs gave way":        {"job-2", []keystore.StateKind{keystore.Superseded}, []keystore.StateKind{keystore.MayBeInSilicon}, true},
	} {
		t.Run(what, func(t *testing.T) {
			b, s := begun(t)
			own, other := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
			if job, station, ok := strings.Cut(c.job, ","); ok {
				other.Job, other.Station = job, station
			} else {
				other.Job = c.job
			}
			must[keystore.Receipt](t)(s.Create(t.Context(), own))
			b.add(s, own, c.own...)
			must[keystore.Receipt](t)(b.another().Create(t.Context(), other))
			for _, k := range c.other {
				must[keystore.Receipt](t)(b.another().AddState(t.Context(), other.Unit, other.Fingerprint, state(k)))
			}
			b.away = nil
			for range 2 {
				rep, err := b.drain(b.spool())
				if err != nil || (len(rep.Findings) == 0) != c.stored {
					t.Fatalf("%+v, %v", rep, err)
				}
			}
			if c.stored {
				b.wantStored(own, c.own...)
				return
			}
			// Nothing is lost: the sealed record is where it was.
			if len(must[[]Waiting](t)(List(b.dir))) != 1 {
				t.Error("the record is gone from the spool")
			}
			if _, err := b.another().Confirm(t.Context(), own.Unit, own.Fingerprint); !errors.Is(err, keystore.ErrNotFound) {
				t.Errorf("two keys: %v", err)
			}
		})
	}
}

// TestSyncAndUploads: the station uploads, its disk dies, and the custodian
// drains what is in the store.
func TestSyncAndUploads(t *testing.T) {
	b, s := begun(t)
	burned, unknown, gone := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(2)), keystoretest.NewRecord(t, keystoretest.Simulated(3))
	for _, r := range []keystore.Record{burned, unknown, gone} {
		must[keystore.Receipt](t)(s.Create(t.Context(), r))
	}
	b.add(s, burned, keystore.MayBeInSilicon)
	b.add(s, gone, keystore.Superseded)
	if _, err := s.Sync(t.Context()); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("sync without the store: %v", err)
	}
	b.away = nil
	rep, err := s.Sync(t.Context())
	if err != nil || rep.Uploaded != 2 || rep.Waiting != 2 || rep.Drained != 1 || len(rep.Findings) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if w := must[[]Waiting](t)(List(b.dir)); len(w) != 2 || !w[0].Uploaded || !w[1].Uploaded {
		t.Errorf("%+v", w)
	}
	// Claimed: no other station gets these units.
	for _, r := range []keystore.Record{burned, unknown} {
		if err := b.another().Reserve(t.Context(), keystoretest.NewRecord(t, r.Unit).Meta()); !errors.Is(err, keystore.ErrConflict) {
			t.Errorf("unit %s is not claimed: %v", r.Unit, err)
		}
	}
	// One more state, which the store gets with the next Sync.
	b.add(s, burned, keystore.InSilicon)
	// The station's disk is gone here, so to say: the custodian has the store only.
	copyOf := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", b.dir+"/.", copyOf).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	drained, err := b.drain(Uploads(b.another()))
	if err != nil || drained.Stored != 2 || len(drained.Findings) != 0 {
		t.Fatalf("%+v, %v", drained, err)
	}
	b.wantStored(burned, keystore.MayBeInSilicon)
	b.wantStored(unknown, keystore.MayBeInSilicon) // nobody could say
	if again, err := b.drain(Uploads(b.another())); err != nil || again.Stored != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	// If the disk comes back, its Sync brings the rest: and a unit whose state the
	// custodian had to guess is a finding, since nobody looked at the chip.
	b.dir, b.cfg.Dir = copyOf, copyOf
	s = b.open()
	rep, err = s.Sync(t.Context())
	if err != nil || rep.Drained != 2 || rep.Waiting != 0 || len(rep.Findings) != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	b.wantStored(burned, keystore.MayBeInSilicon, keystore.InSilicon)
	if left := b.files(""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSyncFinds: another station has a key of the unit. The sealed record is
// uploaded all the same.
func TestSyncFinds(t *testing.T) {
	for what, differs := range rivals {
		t.Run(what, func(t *testing.T) {
			b, s := begun(t)
			r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
			must[keystore.Receipt](t)(s.Create(t.Context(), r))
			b.add(s, r, keystore.MayBeInSilicon, keystore.InSilicon)
			rival := keystoretest.NewRecord(t, r.Unit)
			differs(&rival)
			must[keystore.Receipt](t)(b.another().Create(t.Context(), rival))
			b.away = nil
			for i := range 2 {
				rep, err := s.Sync(t.Context())
				if err != nil || len(rep.Findings) != 1 || rep.Uploaded != 1-i || rep.Waiting != 1 || !strings.Contains(rep.Findings[0].Problem, "of another ") {
					t.Errorf("%+v, %v", rep, err)
				}
			}
			if rep, err := b.drain(b.spool()); err != nil || len(rep.Findings) != 1 || rep.Stored != 0 {
				t.Errorf("%+v, %v", rep, err)
			}
			// Both are listed, and the engine refuses such a unit.
			metas := must[[]keystore.Meta](t)(s.List(t.Context(), r.Unit))
			if len(metas) != 2 || metas[0].Superseded() || metas[1].Superseded() {
				t.Errorf("%+v", metas)
			}
		})
	}
}

// TestMovedBoard: in an outage station line2 seals a key and loses power before
// the burn; the board goes to line1, which seals and burns another one, as the same
// job. Whoever comes back first, the burned key is never given up.
func TestMovedBoard(t *testing.T) {
	for _, burnedFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("burned first=%v", burnedFirst), func(t *testing.T) {
			one, a := begun(t)
			two := *one
			two.dir = t.TempDir()
			two.cfg.Dir = two.dir
			one.away, two.away = nil, nil
			b := two.open()
			one.away = errSealed
			burned, unburned := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
			unburned.Station = "line2"
			must[keystore.Receipt](t)(b.Create(t.Context(), unburned))
			must[keystore.Receipt](t)(a.Create(t.Context(), burned))
			one.add(a, burned, keystore.MayBeInSilicon, keystore.InSilicon)
			one.away, two.away = nil, nil
			findings := 0
			order := []*Store{a, b}
			if !burnedFirst {
				order = []*Store{b, a}
			}
			for _, s := range append(order, order...) {
				rep, err := s.Sync(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				findings += len(rep.Findings)
			}
			if findings != 2 {
				t.Errorf("%d findings of the second key", findings)
			}
			for _, m := range must[[]keystore.Meta](t)(one.another().List(t.Context(), burned.Unit)) {
				if m.Superseded() || m.Fingerprint == burned.Fingerprint && m.Current() != keystore.MayBeInSilicon {
					t.Errorf("%+v", m)
				}
			}
			if !burnedFirst { // a person looks at the chip, and gives the other one up
				two.giveUp(b, unburned)
			}
			if rep, err := one.drain(one.spool()); err != nil || rep.Stored != 1 || len(rep.Findings) != 0 {
				t.Fatalf("%+v, %v", rep, err)
			}
			one.wantStored(burned, keystore.MayBeInSilicon, keystore.InSilicon)
		})
	}
}

func (b *bench) giveUp(s *Store, r keystore.Record) {
	b.t.Helper()
	b.add(s, r, keystore.Superseded)
	if rep, err := s.Sync(b.t.Context()); err != nil || len(rep.Findings) != 0 {
		b.t.Fatalf("%+v, %v", rep, err)
	}
}

// TestDrainDies: a custodian's drain that dies between record and states leaves a
// burned key that reads as stored. No other station gives it up.
func TestDrainDies(t *testing.T) {
	b, s := begun(t)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	must[keystore.Receipt](t)(s.Create(t.Context(), r))
	b.add(s, r, keystore.MayBeInSilicon, keystore.InSilicon)
	b.away = nil
	v := b.another()
	v.fault = func(op string) (error, error) {
		if op == "state" || op == "tell" {
			return errSealed, nil
		}
		return nil, nil
	}
	if _, err := Drain(t.Context(), b.spool(), []age.Identity{b.id}, v, time.Now); !errors.Is(err, keystore.ErrUnavailable) {
		t.Fatal(err)
	}
	b.wantStored(r)
	two := *b
	two.dir = t.TempDir()
	two.cfg.Dir = two.dir
	other := two.open()
	b.away = errSealed
	rival := keystoretest.NewRecord(t, r.Unit)
	rival.Station = "line2"
	must[keystore.Receipt](t)(other.Create(t.Context(), rival))
	b.away = nil
	if _, err := other.AddState(t.Context(), r.Unit, rival.Fingerprint, state(keystore.MayBeInSilicon)); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("a second burn: %v", err)
	}
	if rep, err := other.Sync(t.Context()); err != nil || len(rep.Findings) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	if rep, err := b.drain(b.spool()); err != nil || rep.Stored != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	b.wantStored(r, keystore.MayBeInSilicon, keystore.InSilicon)
}

// TestStateWhileDraining: the station adds a state between the custodian's look
// and his mark.
func TestStateWhileDraining(t *testing.T) {
	b, s := begun(t)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	must[keystore.Receipt](t)(s.Create(t.Context(), r))
	src := b.spool()
	b.away = nil
	v := b.another()
	v.fault = func(op string) (error, error) {
		if op == "confirm" {
			v.fault = nil
			v.mu.Unlock() // the fake holds it while it is asked
			defer v.mu.Lock()
			b.away = errSealed // the station does not see the store
			b.add(s, r, keystore.MayBeInSilicon)
			b.away = nil
		}
		return nil, nil
	}
	rep, err := Drain(context.Background(), src, []age.Identity{b.id}, v, time.Now)
	if err != nil || len(rep.Findings) != 1 || !strings.Contains(rep.Findings[0].Problem, "run this again") {
		t.Fatalf("%+v, %v", rep, err)
	}
	if rep, err := b.drain(b.spool()); err != nil || rep.Stored != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	b.wantStored(r, keystore.MayBeInSilicon)
}

func TestReadIdentities(t *testing.T) {
	dir := t.TempDir()
	id, _ := age.GenerateX25519Identity()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if ids, err := ReadIdentities(write("good", "# mine\n"+id.String()+"\n", 0o600)); err != nil || len(ids) != 1 {
		t.Errorf("%v, %v", ids, err)
	}
	for path, want := range map[string]string{
		write("open", id.String(), 0o644):           "chmod 600",
		write("cut", id.String()[:40], 0o600):       "holds no age identity",
		write("empty", "", 0o600):                   "holds no age identity",
		filepath.Join(dir, "missing"):               "no such file",
		write("x", strings.Repeat("#", 1e5), 0o600): "too large",
	} {
		if _, err := ReadIdentities(path); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "AGE-SECRET-KEY-1"+id.String()[16:20]) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
