package provision_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// burnCommands are the burn commands of a release run, in their order.
func burnCommands(t *testing.T, name string) (list []operation) {
	t.Helper()
	for _, o := range recorded(t, newStationFiles(t), tableRow{chip: name, profile: "release"}) {
		if o.burn {
			list = append(list, o)
		}
	}
	return list
}

func commandOf(t *testing.T, list []operation, step string, nth int) operation {
	t.Helper()
	for _, o := range list {
		if o.step == step {
			if nth--; nth == 0 {
				return o
			}
		}
	}
	t.Fatalf("no burn command %d of %s", nth, step)
	return operation{}
}

// halfBurnSeeds is how many different halves of a burn are tried.
func halfBurnSeeds() int { return 24 / stride(6) }

// TestHalfBurnedKeyIsCompleted: the board's power fails in the middle of the key's
// burn and comes back while the run is still there and has the key. The block is
// readable, so an identical burn completes it, three burns in all at most.
func TestHalfBurnedKeyIsCompleted(t *testing.T) {
	for _, name := range twoChips {
		key := commandOf(t, burnCommands(t, name), "burn-key", 1)
		for seed := range halfBurnSeeds() {
			inBubble(t, fmt.Sprintf("%s/%d", name, seed), func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{PowerAtWrite: key.writes + 1, Seed: int64(seed + 1)}})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				b.at["burn-key"] = func() { time.AfterFunc(time.Second, func() { c.Power(true) }) }
				r := b.run(t.Context(), c, job)
				wantPass(t, r)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if alive, gone := b.keysAlive(); alive != 1 || gone != 0 {
					t.Errorf("%d keys, %d given up", alive, gone)
				}
				if got := b.lastObserved("burn-key"); got != "done" {
					t.Errorf("outcome %q", got)
				}
			})
		}
	}
}

// TestHalfBurnedKeyIsSetAside: the same, and the run that had the key is gone. The
// station cannot read the key back, so nothing can complete the block.
func TestHalfBurnedKeyIsSetAside(t *testing.T) {
	for _, name := range twoChips {
		key := commandOf(t, burnCommands(t, name), "burn-key", 1)
		for seed := range halfBurnSeeds() {
			inBubble(t, fmt.Sprintf("%s/%d", name, seed), func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{PowerAtWrite: key.writes + 1, Seed: int64(seed + 1)}})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				r := b.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Error, provision.CauseStation, "outcome of burn-key is unknown")
				burns, fp := c.Burns(), r.KeyFingerprint
				r = b.again(c, job)
				wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, fp)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if m := b.metas(unitMAC); c.Burns() != burns || len(m) != 1 || m[0].Current() != keystore.Quarantined {
					t.Errorf("%d more burns, keys %+v", c.Burns()-burns, m)
				}
				// And it stays so.
				wantVerdict(t, b.again(c, job), provision.Quarantined, provision.CauseQuarantined, "is quarantined")
			})
		}
	}
}

// TestHalfBurnedFusesAreBurnedAgain: power fails in the middle of any other burn.
// More bits may always be added to BLOCK0, so the next start burns what is missing,
// and on the newer chips those bits again whose copies disagree.
func TestHalfBurnedFusesAreBurnedAgain(t *testing.T) {
	for _, name := range twoChips {
		var damaged atomic.Int32
		for i, o := range burnCommands(t, name) {
			if i == 0 || o.step == "close" { // the key, and what nobody can read afterwards
				continue
			}
			for seed := range halfBurnSeeds() {
				inBubble(t, fmt.Sprintf("%s/%d/%s/%d", name, i, o.step, seed), func(t *testing.T) {
					b := newMemoryBench(t)
					c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{PowerAtWrite: o.writes + 1, Seed: int64(seed + 1)}})
					before, job := c.Fuses(), sampleJob(t, name, "release")
					r := b.run(t.Context(), c, job)
					wantVerdict(t, r, provision.Error, provision.CauseStation, "outcome of "+o.step+" is unknown")
					if c.Damaged(0) {
						damaged.Add(1)
					}
					if err := b.invariants(c, job, before, r); err != nil {
						t.Error(err)
					}
					r = b.again(c, job)
					wantPass(t, r)
					if err := b.invariants(c, job, before, r); err != nil {
						t.Error(err)
					}
					if c.Damaged(0) {
						t.Error("copies of BLOCK0 still disagree")
					}
				})
			}
		}
		t.Cleanup(func() { // when all of them are over
			if want := name == "esp32c3"; (damaged.Load() > 0) != want {
				t.Errorf("%s: %d units with damage in BLOCK0", name, damaged.Load())
			}
		})
	}
}

// TestPowerLostBetweenStages: power fails right before the burn command of a stage,
// when all stages before are complete. The next start goes on with this one, and
// burns nothing twice.
func TestPowerLostBetweenStages(t *testing.T) {
	for _, name := range twoChips {
		commands := burnCommands(t, name)
		for i, o := range commands[1:] {
			inBubble(t, fmt.Sprintf("%s/%s/%d", name, o.step, i), func(t *testing.T) {
				b := newMemoryBench(t)
				// The write before the burn command: the controller is told what to do.
				c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{PowerAtWrite: o.writes}})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				r := b.run(t.Context(), c, job)
				if r.Verdict != provision.Error || c.Burns() != i+1 {
					t.Fatalf("%s: %s; %d burns", r.Verdict, r.Reason, c.Burns())
				}
				r = b.again(c, job)
				wantPass(t, r)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if c.Burns() != len(commands) {
					t.Errorf("%d burns, and a whole run takes %d", c.Burns(), len(commands))
				}
			})
		}
	}
}

// TestUnknownOutcome: the port vanishes after the burn command. Result and journal
// call the outcome unknown; the next run reads, and burns nothing of that stage
// again.
func TestUnknownOutcome(t *testing.T) {
	for _, name := range twoChips {
		commands := burnCommands(t, name)
		for i, o := range commands {
			if o.step == "close" { // after it nobody can read: see TestKilledWhileClosing
				continue
			}
			inBubble(t, fmt.Sprintf("%s/%s/%d", name, o.step, i), func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{UnplugAtWrite: o.writes + 1}})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				r := b.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Error, provision.CauseStation, "unknown")
				if s := r.Steps[len(r.Steps)-1]; s.Name != o.step || s.Outcome != "unknown" || b.lastObserved(o.step) != "unknown" {
					t.Errorf("result %+v, journal %q", s, b.lastObserved(o.step))
				}
				if c.Burns() != i+1 {
					t.Fatalf("%d burns", c.Burns())
				}
				r = b.again(c, job)
				wantPass(t, r)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if c.Burns() != len(commands) {
					t.Errorf("%d burns, and a whole run takes %d", c.Burns(), len(commands))
				}
			})
		}
	}
}

// TestStepsAreAsDeclared: the journal's intents say which steps are one-way, and
// those and no others burn.
func TestStepsAreAsDeclared(t *testing.T) {
	for _, profile := range profiles {
		bothChips(t, func(t *testing.T, name string) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			oneWay := map[string]bool{}
			b.jrn = &watchJournal{Journal: b.jrn, c: c, seen: func(e journal.Entry, burns int) {
				if e.Kind == journal.KindIntent {
					var intent struct {
						OneWay bool `json:"one_way"`
					}
					if err := json.Unmarshal(e.Payload, &intent); err != nil {
						t.Error(err)
					}
					oneWay[e.Step] = intent.OneWay
				}
				if want := e.Kind == journal.KindObserved && oneWay[e.Step]; want != (burns > 0) {
					t.Errorf("%d burns before %s %s", burns, e.Kind, e.Step)
				}
			}}
			wantPass(t, b.run(t.Context(), c, sampleJob(t, name, profile)))
			want := burnSteps[:len(burnSteps)-1]
			switch profile {
			case "development":
				if want = []string{"burn-key", "protect-key", "enable-encryption"}; name == "esp32" { // FLASH_CRYPT_CONFIG
					want = burnSteps[:4]
				}
			case "release", "closed":
				want = burnSteps
			}
			if got := trues(oneWay); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("one-way steps %v, want %v", got, want)
			}
		})
	}
}

func trues(m map[string]bool) (out []string) {
	for k, v := range m {
		if v {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// closedWorld is a world whose process was killed in the closing, right after the
// last fuse was burned.
func closedWorld(t *testing.T, files stationFiles, name, profile string, serial string) *world {
	t.Helper()
	var point *faultPoint
	for _, o := range recordedIn(t, files, tableRow{chip: name, profile: profile}, serial) {
		if o.burn && o.step == "close" {
			point = &faultPoint{operation: o, how: killsAfter}
		}
	}
	w := newWorld(t, files, name, profile, false, point)
	w.serial = serial
	if r := w.run(point, nil); r != nil {
		t.Fatalf("%s: %s", r.Verdict, r.Reason)
	}
	w.restart()
	if !w.closed() {
		t.Fatal("the last fuse is not burned")
	}
	return w
}

// TestKilledWhileClosing: the process dies between the last fuse and its evidence.
// The board cannot say any more who it is. What slot or label say is enough to set
// the unit aside with all that is known, and never for a PASS.
func TestKilledWhileClosing(t *testing.T) {
	files := newStationFiles(t)
	for _, c := range closings {
		test := func(what, serial string, f func(t *testing.T, w *world)) {
			inBubble(t, strings.Join([]string{c.chip, c.profile, what}, "/"), func(t *testing.T) {
				w := closedWorld(t, files, c.chip, c.profile, serial)
				defer w.close()
				f(t, w)
			})
		}
		setAside := func(t *testing.T, w *world) {
			t.Helper()
			r := w.run(nil, nil)
			w.restart()
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "the closing of unit "+unitMAC.String()+" was begun")
			if err := w.checkWorld(); err != nil {
				t.Error(err)
			}
			for _, want := range []string{"closed", "it boots"} {
				if !strings.Contains(r.Reason, want) {
					t.Errorf("the reason lacks %q: %s", want, r.Reason)
				}
			}
			if r.Unit != unitMAC.String() || r.KeyFingerprint == "" || r.Job != w.job.ID(unitMAC) {
				t.Errorf("unit %q, key %q, job %q", r.Unit, r.KeyFingerprint, r.Job)
			}
			if _, m, err := w.checkKeystore(); err != nil || m.Current() != keystore.Quarantined {
				t.Errorf("%+v, %v", m, err)
			}
			// Once is enough: the unit has its end now.
			w.restart()
			wantVerdict(t, w.run(nil, nil), provision.Fail, provision.CauseRefused, "")
		}
		refused := func(t *testing.T, w *world) {
			t.Helper()
			r := w.run(nil, nil)
			wantVerdict(t, r, provision.Fail, provision.CauseRefused, "")
			if r.Unit != "" {
				t.Errorf("a closed board is taken for unit %s", r.Unit)
			}
		}
		test("same slot", "", setAside)
		test("same label in another slot", "SN-1", func(t *testing.T, w *world) {
			w.slot = "2"
			setAside(t, w)
		})
		test("another slot", "", func(t *testing.T, w *world) {
			w.slot = "2"
			refused(t, w)
		})
		test("another label", "SN-1", func(t *testing.T, w *world) {
			w.serial = "SN-2"
			refused(t, w)
		})
		test("another job", "", func(t *testing.T, w *world) {
			w.job = edited(t, c.chip, c.profile, "revision: 1", "revision: 2")
			refused(t, w)
		})
		test("does not boot", "", func(t *testing.T, w *world) {
			flip(t, w.c, w.job.Layout.Regions[0].Offset+64)
			r := w.run(nil, nil)
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "it does not boot")
		})
	}
}

// TestVerdictLost: everything was done and seen, and the process died before the
// verdict. The next start needs no more than to see that the board boots.
func TestVerdictLost(t *testing.T) {
	files := newStationFiles(t)
	for _, c := range closings {
		for _, boots := range []bool{true, false} {
			inBubble(t, fmt.Sprintf("%s/%s/%v", c.chip, c.profile, boots), func(t *testing.T) {
				ops := recordedIn(t, files, tableRow{chip: c.chip, profile: c.profile}, "")
				point := &faultPoint{operation: ops[len(ops)-1], how: killsBefore}
				w := newWorld(t, files, c.chip, c.profile, false, point)
				defer w.close()
				if r := w.run(point, nil); r != nil || point.name != "verdict verdict" {
					t.Fatalf("%v: %+v", point, r)
				}
				w.restart()
				if !boots {
					flip(t, w.c, w.job.Layout.Regions[0].Offset+64)
					wantVerdict(t, w.run(nil, nil), provision.Quarantined, provision.CauseQuarantined, "it does not boot")
					return
				}
				r := w.run(nil, nil)
				wantPass(t, r)
				if r.Closing == nil || r.Closing.Evidence != c.evidence || r.Unit != unitMAC.String() {
					t.Errorf("%+v, unit %q", r.Closing, r.Unit)
				}
				w.restart()
				if err := w.checkWorld(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// recordedIn is recorded for those who are in a bubble already.
func recordedIn(t *testing.T, files stationFiles, row tableRow, serial string) (ops []operation) {
	t.Helper()
	w := newWorld(t, files, row.chip, row.profile, row.reserving, nil)
	defer w.close()
	w.serial = serial
	wantPass(t, w.run(nil, &ops))
	return ops
}
