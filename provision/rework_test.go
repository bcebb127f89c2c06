package provision_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/port"
)

// rework orders a rework of the board.
func (b *bench) rework(ctx context.Context, c *espsim.Chip, job *provision.Job, order provision.Rework) *provision.Result {
	b.t.Helper()
	c.Power(true)
	c.Plug()
	if err := c.Reopen(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	began := map[string]bool{}
	e := &provision.Engine{
		Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1", Operator: "berta",
		Observe: func(e provision.Event) {
			if f := b.at[e.Step]; f != nil && !began[e.Step] && e.Done == 0 && e.Total == 0 && e.Text == "" {
				began[e.Step] = true
				f()
			}
		},
	}
	p := port.FromSim(c, "sim://"+c.Model().Name)
	if b.wrap != nil {
		p = b.wrap(p)
	}
	return e.Rework(ctx, provision.Line{Port: p, Reset: rom.AutoReset{}}, job, order)
}

var badFlash = provision.Rework{Reason: "field return, flash damaged"}

// newerJob is the same product with a larger application.
func newerJob(t *testing.T, chipName, profile string) *provision.Job {
	t.Helper()
	path, err := sample.Write(t.TempDir(), sample.Product{Chip: model(t, chipName), Name: "newer", Profile: profile, AppSize: 9 << 10, Baud: 921600})
	if err != nil {
		t.Fatal(err)
	}
	return load(t, path)
}

// holds demands that the flash decrypts to the job's images with the stored key.
func (b *bench) holds(c *espsim.Chip, job *provision.Job) {
	b.t.Helper()
	ci := b.cipher(c)
	for _, r := range job.Layout.Regions {
		got := flashBytes(b.t, c, r.Offset, len(r.Plain))
		if r.Encrypt {
			if err := ci.Decrypt(got, got, r.Offset); err != nil {
				b.t.Fatal(err)
			}
		}
		if !bytes.Equal(got, r.Plain) {
			b.t.Errorf("region %s does not hold what was ordered", r.Name)
		}
	}
}

// finished is a bench with a unit that passed as a hybrid.
func finished(t *testing.T, name string) (*bench, *espsim.Chip, *provision.Job) {
	t.Helper()
	b := newMemoryBench(t)
	c := b.board(espsim.Options{Model: model(t, name)})
	job := sampleJob(t, name, "hybrid")
	wantPass(t, b.run(t.Context(), c, job))
	return b, c, job
}

// TestRework: a finished unit takes the same images again, or newer ones, with the
// key that it has; no fuse and no key record changes.
func TestRework(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, c, job := finished(t, name)
		fuses, keys := c.Fuses(), fmt.Sprint(b.metas(unitMAC))
		for i, job := range []*provision.Job{job, newerJob(t, name, "hybrid")} {
			flip(t, c, job.Layout.Regions[len(job.Layout.Regions)-1].Offset+40)
			burns := c.Burns()
			r := b.rework(t.Context(), c, job, badFlash)
			wantPass(t, r)
			if c.Burns() != burns || fmt.Sprint(c.Fuses()) != fmt.Sprint(fuses) || fmt.Sprint(b.metas(unitMAC)) != keys {
				t.Error("a rework changed fuses or custody")
			}
			b.holds(c, job)
			if !boots(c) {
				t.Error("the unit does not boot")
			}
			w := r.Rework
			if w == nil || !w.Done || w.Operator != "berta" || w.Reason != badFlash.Reason || w.Job == "" || (w.Job == r.Job) != (i == 0) {
				t.Errorf("the result says %+v", w)
			}
			if r.KeyRef == "" || r.KeyFingerprint == "" || len(r.Images) != len(job.Layout.Regions) {
				t.Errorf("the result lacks key or images: %+v", r)
			}
		}
		orders := 0
		for _, e := range b.entries() {
			if e.Kind == journal.KindOperator && e.Step == provision.StepRework {
				orders++
			}
		}
		if orders != 2 {
			t.Errorf("%d orders in the journal", orders)
		}
		wantVerdict(t, b.again(c, job), provision.Fail, provision.CauseRefused, "finished already")
	})
}

// TestReworkUnfinished: a unit that did not boot is written again and then
// finished by its own job.
func TestReworkUnfinished(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "release")
		b.at["boot-check"] = func() { flip(t, c, job.Layout.Regions[0].Offset+64) }
		wantVerdict(t, b.run(t.Context(), c, job), provision.Fail, provision.CauseUnit, "did not boot")
		b.at = map[string]func(){}
		burns := c.Burns()
		other := newerJob(t, name, "release")
		wantVerdict(t, b.rework(t.Context(), c, other, badFlash), provision.Fail, provision.CauseRefused, "is not finished")
		r := b.rework(t.Context(), c, job, badFlash)
		wantVerdict(t, r, provision.Aborted, provision.CauseCancelled, "is not finished")
		if r.Rework == nil || !r.Rework.Done || c.Burns() != burns {
			t.Errorf("%+v, %d burns", r.Rework, c.Burns()-burns)
		}
		b.holds(c, job)
		r = b.again(c, job)
		wantPass(t, r)
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
		}
	})
}

// TestReworkQuarantined: the journal's quarantine is lifted by a rework that is
// shown to work.
func TestReworkQuarantined(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "release")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["write-protect"] = cancel
		wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "stopped")
		flip(t, c, job.Layout.Regions[0].Offset+64)
		wantVerdict(t, b.again(c, job), provision.Quarantined, provision.CauseQuarantined, "is not what the journal says")
		if m := b.metas(unitMAC); m[0].Current() != keystore.Quarantined {
			t.Fatalf("the key is %s", m[0].Current())
		}
		wantVerdict(t, b.rework(t.Context(), c, job, badFlash), provision.Aborted, provision.CauseCancelled, "is not finished")
		r := b.again(c, job)
		wantPass(t, r)
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
		}
	})
}

// deniedLoader is a login that may not read keys.
type deniedLoader struct{}

func (deniedLoader) Load(context.Context, chip.MAC, keystore.Fingerprint) (keystore.Record, error) {
	return keystore.Record{}, errors.New("permission denied")
}

// TestReworkRefuses: nothing is written where it is not sure that the key fits.
func TestReworkRefuses(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		cause        provision.Cause
		set          func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework)
	}{
		{"unknown unit", "knows of no key", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			return b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid"), badFlash
		}},
		{"no reason", "needs an operator and a reason", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			return b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid"), provision.Rework{}
		}},
		{"closed", "", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			c, job := b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "release")
			wantPass(t, b.run(t.Context(), c, job))
			return c, job, badFlash
		}},
		{"another profile", "the recipe has development", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			c := b.board(espsim.Options{Model: model(t, name)})
			wantPass(t, b.run(t.Context(), c, sampleJob(t, name, "hybrid")))
			return c, sampleJob(t, name, "development"), badFlash
		}},
		{"no role", "could not be read", provision.CauseKeystore, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			c, job := b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid")
			wantPass(t, b.run(t.Context(), c, job))
			return c, job, provision.Rework{Reason: "x", Keys: deniedLoader{}}
		}},
		{"another keystore", "does not hold key", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			c, job := b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid")
			wantPass(t, b.run(t.Context(), c, job))
			b.store = newMemoryStore(true)
			return c, job, badFlash
		}},
		{"the board was changed for a blank one with its MAC", "does not hold key", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			job := sampleJob(t, name, "hybrid")
			wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: model(t, name)}), job))
			return b.board(espsim.Options{Model: model(t, name)}), job, badFlash
		}},
		{"another key in the block", "does not hold key", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			job := sampleJob(t, name, "hybrid")
			wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: model(t, name)}), job))
			c := b.board(espsim.Options{Model: model(t, name)})
			if err := c.SetFuse(keyIndex(name), 0, 0x1234); err != nil {
				t.Fatal(err)
			}
			return c, job, badFlash
		}},
		{"hidden before it was read back", "was read back", provision.CauseRefused, func(t *testing.T, b *bench, name string) (*espsim.Chip, *provision.Job, provision.Rework) {
			c, job := b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid")
			ctx, cancel := context.WithCancel(t.Context())
			b.at["protect-key"] = cancel
			b.jrn = &dropJournal{Journal: b.jrn, step: "protect-key"}
			wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "stopped")
			setField(t, c, fieldNamed(t, c, "RD_DIS"), 1) // somebody else hid it
			b.at = map[string]func(){}
			return c, job, badFlash
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothChips(t, func(t *testing.T, name string) {
				b := newMemoryBench(t)
				board, job, order := c.set(t, b, name)
				flash := flashBytes(t, board, 0, 4<<20)
				r := b.rework(t.Context(), board, job, order)
				if r.Cause != c.cause || r.Rework != nil {
					t.Errorf("%s %s: %s", r.Verdict, r.Cause, r.Reason)
				}
				if c.reason != "" {
					wantVerdict(t, r, r.Verdict, c.cause, c.reason)
				}
				if !bytes.Equal(flash, flashBytes(t, board, 0, 4<<20)) {
					t.Error("something was written")
				}
			})
		})
	}
}

// dropJournal loses every entry of a step, as one of an older time would.
type dropJournal struct {
	provision.Journal
	step string
}

func (j *dropJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	if e.Step == j.step {
		return e, nil
	}
	return j.Journal.Append(ctx, e)
}

// TestReworkFaults stops a rework everywhere: at each of its journal entries, at
// each step, by the power and by the port. Until it is ordered again nothing else
// is done to the unit; then it passes, and nothing was burned.
func TestReworkFaults(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, c, job := finished(t, name)
		fuses := c.Fuses()
		j := &faultyJournal{Journal: b.jrn}
		b.jrn = j
		wantPass(t, b.rework(t.Context(), c, job, badFlash))
		entries := j.calls

		points := 0
		try := func(what string, run func() *provision.Result) {
			points++
			r := run()
			b.jrn, b.wrap, b.at = j.Journal, nil, map[string]func(){}
			if r.Verdict == provision.Pass {
				t.Errorf("%s: PASS", what)
			}
			written := slices.ContainsFunc(r.Steps, func(s provision.StepResult) bool { return s.Name == "flash" })
			again := b.again(c, job)
			switch {
			case again.Cause != provision.CauseRefused:
				t.Errorf("%s: a run on the unit: %s (%s): %s", what, again.Verdict, again.Cause, again.Reason)
			case written && again.FinishedBefore:
				t.Errorf("%s: the flash may hold anything, and the unit counts as finished", what)
			}
			if r := b.rework(t.Context(), c, job, badFlash); r.Verdict != provision.Pass {
				t.Errorf("%s: ordered again: %s: %s", what, r.Verdict, r.Reason)
			}
			b.holds(c, job)
			if fmt.Sprint(c.Fuses()) != fmt.Sprint(fuses) {
				t.Fatalf("%s: the fuses changed", what)
			}
		}
		for n := 1; n <= entries; n++ {
			for _, after := range []bool{false, true} {
				if n == entries && after {
					continue // the verdict is in the journal: the rework is done
				}
				try(fmt.Sprintf("entry %d, after %t", n, after), func() *provision.Result {
					b.jrn = &faultyJournal{Journal: j.Journal, nth: n, after: after}
					return b.rework(t.Context(), c, job, badFlash)
				})
			}
		}
		for _, step := range []string{"connect", "inspect", "plan", "load-key", "flash", "verify-flash", "boot-check", "proof"} {
			try("cancelled at "+step, func() *provision.Result {
				ctx, cancel := context.WithCancel(t.Context())
				b.at[step] = cancel
				return b.rework(ctx, c, job, badFlash)
			})
			if step == "proof" {
				break // the port may go then: the last reset is all that is left
			}
			try("power lost at "+step, func() *provision.Result {
				b.at[step] = func() { c.Power(false) }
				return b.rework(t.Context(), c, job, badFlash)
			})
			try("unplugged at "+step, func() *provision.Result {
				b.at[step] = c.Unplug
				return b.rework(t.Context(), c, job, badFlash)
			})
		}
		t.Logf("%d points", points)
	})
}
