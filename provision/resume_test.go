package provision_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// steps of a release run, and whether a cancel waits for them.
var stepsOfRelease = []struct {
	name   string
	oneWay bool
	burned bool // a fuse is burned when the step is over
}{
	{"connect", false, false},
	{"inspect", false, false},
	{"plan", false, false},
	{"flash", false, false},
	{"verify-flash", false, false},
	{"custody", false, false},
	{"burn-key", true, true},
	{"protect-key", true, true},
	{"burn-lockdown", true, true},
	{"enable-encryption", true, true},
	{"boot-check", false, true},
	{"write-protect", true, true},
}

func (b *bench) keysAlive() (alive, superseded int) {
	for _, m := range b.metas(unitMAC) {
		if m.Superseded() {
			superseded++
		} else {
			alive++
		}
	}
	return alive, superseded
}

// lastObserved is the outcome of a step in the journal.
func (b *bench) lastObserved(step string) string {
	b.t.Helper()
	outcome := ""
	for _, e := range b.entries() {
		if e.Step == step && e.Kind == journal.KindObserved {
			var v struct{ Outcome string }
			if err := json.Unmarshal(e.Payload, &v); err != nil {
				b.t.Fatal(err)
			}
			outcome = v.Outcome
		}
	}
	return outcome
}

// TestCancel cancels a run at the beginning of each of its steps, and starts the
// same job again.
func TestCancel(t *testing.T) {
	for _, name := range twoChips {
		for _, step := range stepsOfRelease {
			inBubble(t, name+"/"+step.name, func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				ctx, cancel := context.WithCancel(t.Context())
				b.at[step.name] = cancel
				r := b.run(ctx, c, job)
				wantVerdict(t, r, provision.Aborted, provision.CauseCancelled, "stopped")
				if r.ExitCode() != 4 || (c.Burns() > 0) != step.burned {
					t.Errorf("exit %d, %d burns", r.ExitCode(), c.Burns())
				}
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if last := r.Steps[len(r.Steps)-1].Name; last != step.name {
					t.Errorf("the last step was %s", last)
				}
				if got := b.lastObserved(step.name); step.oneWay && got != "done" {
					t.Errorf("the step was not finished: %q", got)
				}
				if alive, _ := b.keysAlive(); (alive == 1) != step.burned {
					t.Errorf("%d keys", alive)
				}
				r = b.again(c, job)
				wantPass(t, r)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if alive, gone := b.keysAlive(); alive != 1 || gone != 0 {
					t.Errorf("%d keys and %d that are given up", alive, gone)
				}
				if r.KeyFingerprint == "" || r.KeyRef == "" || len(r.Images) != len(job.Layout.Regions) || r.Images[0].CiphertextSHA256 == (provision.Hash{}) {
					t.Errorf("the result of a continued run lacks key or images: %+v", r)
				}
			})
		}
	}
}

// TestCancelWhileClosing: the last fuse and its proof are one step. A cancel waits
// for it, since nobody could go on later.
func TestCancelWhileClosing(t *testing.T) {
	eachClosing(t, func(t *testing.T, name, profile string, _ int) {
		for _, step := range []string{"close", "proof"} {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			ctx, cancel := context.WithCancel(t.Context())
			b.at[step] = cancel
			before, job := c.Fuses(), sampleJob(t, name, profile)
			r := b.run(ctx, c, job)
			wantPass(t, r)
			if err := b.invariants(c, job, before, r); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestCancelInFlash cancels in the middle of erasing and writing.
func TestCancelInFlash(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		job := sampleJob(t, name, "hybrid")
		for _, part := range []int64{1, 30, 60, 99} {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			before := c.Fuses()
			ctx, cancel := context.WithCancel(t.Context())
			b.observe = func(e provision.Event) {
				if e.Step == "flash" && e.Total > 0 && e.Done*100 >= e.Total*part {
					cancel()
				}
			}
			r := b.run(ctx, c, job)
			wantVerdict(t, r, provision.Aborted, provision.CauseCancelled, "stopped")
			if c.Burns() != 0 || len(b.metas(unitMAC)) != 0 {
				t.Errorf("%d burns, %d keys", c.Burns(), len(b.metas(unitMAC)))
			}
			r = b.again(c, job)
			wantPass(t, r)
			if err := b.invariants(c, job, before, r); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestNewKeyAfterCustody: a run that ended between custody and burn left a key
// that nobody has any more. The next run gives it up and makes another one.
func TestNewKeyAfterCustody(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "release")
		inner := b.store
		for round := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			b.store = &faultyStore{Store: inner, fail: func(op string, _ int) (before, after error) {
				if op == "confirm" {
					cancel()
				}
				return nil, nil
			}}
			r := b.run(ctx, c, job)
			wantVerdict(t, r, provision.Aborted, provision.CauseCancelled, "stopped")
			if alive, gone := b.keysAlive(); alive != 1 || gone != round || c.Burns() != 0 {
				t.Errorf("round %d: %d keys, %d given up, %d burns", round, alive, gone, c.Burns())
			}
		}
		b.store = inner
		r := b.again(c, job)
		wantPass(t, r)
		if alive, gone := b.keysAlive(); alive != 1 || gone != 3 {
			t.Errorf("%d keys, %d given up", alive, gone)
		}
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
		}
	})
}

// TestStoreFailsAtBurn: the store must know before the chip can. When it does not
// take the state, or nobody knows whether it did, nothing is burned. The next run
// looks at the chip, sees that the key is not there, and gives it up.
func TestStoreFailsAtBurn(t *testing.T) {
	for _, name := range twoChips {
		for _, took := range []bool{false, true} {
			inBubble(t, name+map[bool]string{false: "/before", true: "/after"}[took], func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				inner := b.store
				b.store = &faultyStore{Store: inner, fail: func(op string, _ int) (before, after error) {
					switch {
					case op == "state" && took:
						return nil, keystore.ErrUnknownOutcome
					case op == "state":
						return keystore.ErrUnavailable, nil
					}
					return nil, nil
				}}
				r := b.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Error, provision.CauseKeystore, "keystore")
				if c.Burns() != 0 || r.ExitCode() != 12 {
					t.Errorf("%d burns, exit %d", c.Burns(), r.ExitCode())
				}
				b.store = inner
				r = b.again(c, job)
				wantPass(t, r)
				if alive, gone := b.keysAlive(); alive != 1 || gone != 1 {
					t.Errorf("%d keys, %d given up", alive, gone)
				}
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestJournalLost: the chip and the keystore show more than the journal explains.
func TestJournalLost(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, step := range stepsOfRelease[6:] {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "release")
			ctx, cancel := context.WithCancel(t.Context())
			b.at[step.name] = cancel
			if r := b.run(ctx, c, job); r.Verdict != provision.Aborted {
				t.Fatalf("%s: %s", r.Verdict, r.Reason)
			}
			burns, fuses := c.Burns(), c.Fuses()
			for _, store := range []keystore.Store{b.store, newMemoryStore(true)} {
				other := newMemoryBench(t)
				other.store = store
				r := other.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Fail, provision.CauseRefused, "")
				if c.Burns() != burns || !slices.EqualFunc(fuses, c.Fuses(), slices.Equal) {
					t.Error("something was burned")
				}
			}
			// And a store that does not have the key that the journal tells of.
			mem := &bench{t: t, dir: b.dir, store: newMemoryStore(true), jrn: b.jrn, at: map[string]func(){}}
			r := mem.run(t.Context(), c, job)
			if r.Verdict == provision.Pass || r.Verdict == provision.Aborted || c.Burns() != burns {
				t.Errorf("after %s: %s (%s): %s; %d more burns", step.name, r.Verdict, r.Cause, r.Reason, c.Burns()-burns)
			}
		}
	})
}

// TestFlashChangedBetweenRuns: what is in flash is not what the earlier run
// verified, and only its key could make it again.
func TestFlashChangedBetweenRuns(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "release")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["protect-key"] = cancel
		wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
		burns := c.Burns()
		flip(t, c, job.Layout.Regions[1].Offset+3)
		r := b.again(c, job)
		wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "not what the journal says")
		if c.Burns() != burns {
			t.Errorf("%d burns", c.Burns()-burns)
		}
	})
}

// TestFuseChangedBetweenRuns: a fuse that the interrupted job did not plan, or
// would have burned only later.
func TestFuseChangedBetweenRuns(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, field := range []string{model(t, name).EFuse.FlashCryptCount, model(t, name).Lockdown.Fuses[0].Field, "WR_DIS"} {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "release")
			ctx, cancel := context.WithCancel(t.Context())
			b.at["burn-key"] = cancel
			wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
			burns := c.Burns()
			setField(t, c, fieldNamed(t, c, field), 1)
			r := b.again(c, job)
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "nobody explains")
			if c.Burns() != burns {
				t.Errorf("%s: %d burns", field, c.Burns()-burns)
			}
		}
	})
}

// TestJournalRefuses: a run whose journal cannot be read does nothing.
func TestJournalUnreadable(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		b.jrn = unreadable{b.jrn}
		r := b.run(t.Context(), c, sampleJob(t, name, "release"))
		if r.Cause != provision.CauseJournal || r.ExitCode() != 13 || c.Burns() != 0 || c.Requests(0x02) != 0 {
			t.Errorf("%s (%s): %s", r.Verdict, r.Cause, r.Reason)
		}
	})
}

type unreadable struct{ provision.Journal }

func (unreadable) Unit(chip.MAC) ([]journal.Entry, error) { return nil, errors.New("damaged") }
