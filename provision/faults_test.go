package provision_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// trial is a job on a board with faults, run again and again as a person does who
// mends what can be mended, until the unit passes, or is out of the game.
type trial struct {
	b       *bench
	c       *espsim.Chip
	job     *provision.Job
	before  [][]uint32
	results []*provision.Result
}

func newTrial(t *testing.T, name, profile string, f espsim.Faults) *trial {
	t.Helper()
	b := newMemoryBench(t)
	c := b.board(espsim.Options{Model: model(t, name), Faults: f, Seed: f.Seed})
	return &trial{b: b, c: c, job: sampleJob(t, name, profile), before: c.Fuses()}
}

// play runs the job up to four times and checks the invariants after each run. It
// gives the verdicts in their order.
func (x *trial) play() (string, error) {
	var verdicts []string
	x.results = append(x.results, x.b.run(x.b.t.Context(), x.c, x.job))
	for {
		r := x.results[len(x.results)-1]
		verdicts = append(verdicts, string(r.Verdict))
		out := strings.Join(verdicts, " ")
		rest()
		x.c.Power(true)
		if err := x.b.invariants(x.c, x.job, x.before, r); err != nil {
			return out, fmt.Errorf("%w (%s: %s)", err, r.Verdict, r.Reason)
		}
		if r.Verdict == provision.Pass || r.Verdict == provision.Quarantined || len(x.results) == 4 {
			return out, nil
		}
		x.results = append(x.results, x.b.again(x.c, x.job))
	}
}

func (x *trial) last() *provision.Result { return x.results[len(x.results)-1] }

// measure counts what a run without faults does.
func measure(t *testing.T, name, profile string) (writes int, bytes int, store int, entries int) {
	t.Helper()
	x := newTrial(t, name, profile, espsim.Faults{})
	s := &faultyStore{Store: x.b.store, fail: func(string, int) (error, error) { return nil, nil }}
	j := &faultyJournal{Journal: x.b.jrn}
	x.b.store, x.b.jrn = s, j
	wantPass(t, x.b.run(t.Context(), x.c, x.job))
	return x.c.RegisterWrites(), x.c.HostBytes(), s.calls, j.calls
}

// ended says whether the person at the bench knows what to do: the unit is done, or
// set aside, or was never burned.
func (x *trial) ended() error {
	r := x.last()
	if r.Verdict == provision.Pass || r.Verdict == provision.Quarantined || x.c.Burns() == 0 {
		return nil
	}
	return fmt.Errorf("after %d runs a burned unit is still %s: %s", len(x.results), r.Verdict, r.Reason)
}

// sweep plays a trial for each fault and counts the outcomes.
func sweep(t *testing.T, name, profile string, faults []espsim.Faults) map[string]int {
	t.Helper()
	burned := 0 // that neither passed nor are set aside
	outcomes := map[string]int{}
	for _, f := range faults {
		x := newTrial(t, name, profile, f)
		out, err := x.play()
		// A person who mends nothing gets no further; all other faults happen once.
		lasts := f.Noise != 0 || f.Drop != 0 || slices.ContainsFunc(f.Refuse, func(r espsim.Refusal) bool { return r.Nth == 0 }) ||
			slices.ContainsFunc(f.Lose, func(l espsim.Loss) bool { return l.Nth == 0 })
		if open := x.ended(); open != nil && lasts {
			burned++
		} else if err == nil {
			err = open
		}
		if err != nil {
			t.Errorf("%s %s with %v: %s: %v", name, profile, f, out, err)
		}
		if v := x.last().Verdict; v == provision.Fail || v == provision.Quarantined {
			t.Logf("%v: %s: %s", f, out, x.last().Reason)
		}
		if first := x.results[0]; f.Window == espsim.WindowFlash && first.Verdict != provision.Pass {
			t.Logf("%v: %s: %s", f, first.Verdict, first.Reason)
		}
		outcomes[out]++
		_ = x.c.Close()
	}
	t.Logf("%s %s: %d points: %v; burned and waiting for a better line: %d", name, profile, len(faults), outcomes, burned)
	return outcomes
}

// TestPowerLost cuts the power at register writes over a whole run; inside a burn
// command a random part of the bits is left.
func TestPowerLost(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		writes, _, _, _ := measure(t, name, "release")
		var list []espsim.Faults
		for n := 1; n <= writes; n += stride(37) {
			list = append(list, espsim.Faults{PowerAtWrite: n, Seed: int64(n)})
		}
		out := sweep(t, name, "release", list)
		if out["ERROR PASS"] == 0 {
			t.Errorf("no unit was continued: %v", out)
		}
	})
}

// TestUnplugged takes the port away at register writes over a whole run, and at
// bytes of the line.
func TestUnplugged(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		writes, bytes, _, _ := measure(t, name, "hybrid")
		var list []espsim.Faults
		for n := 1; n <= writes; n += stride(37) {
			list = append(list, espsim.Faults{UnplugAtWrite: n, Seed: int64(n)})
		}
		for n := 1; n <= bytes; n += stride(1009) * 19 {
			list = append(list, espsim.Faults{UnplugAtByte: n, Seed: int64(n)})
		}
		out := sweep(t, name, "hybrid", list)
		if out["ERROR PASS"] == 0 {
			t.Errorf("no unit was continued: %v", out)
		}
	})
}

// TestRefusedCommands: every opcode is refused once, early, later and always; and
// its reply is lost.
func TestRefusedCommands(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		// FLASH_BEGIN, FLASH_DATA, FLASH_END, SYNC, WRITE_REG, READ_REG, SPI_SET_PARAMS,
		// SPI_ATTACH, CHANGE_BAUDRATE, FLASH_DEFL_*, SPI_FLASH_MD5, GET_SECURITY_INFO.
		var list []espsim.Faults
		for _, op := range []byte{0x02, 0x03, 0x04, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x13, 0x14} {
			for _, nth := range []int{0, 1, 2, 7, 40, 200} {
				list = append(list,
					espsim.Faults{Refuse: []espsim.Refusal{{Op: op, Nth: nth, Status: [2]byte{1, 5}}}},
					espsim.Faults{Refuse: []espsim.Refusal{{Op: op, Nth: nth, Status: [2]byte{1, 7}}}},
					espsim.Faults{Lose: []espsim.Loss{{Op: op, Nth: nth}}},
				)
			}
		}
		sweep(t, name, "release", everyNth(list, stride(11)))
	})
}

func everyNth[T any](list []T, n int) (out []T) {
	for i := 0; i < len(list); i += n {
		out = append(out, list[i])
	}
	return out
}

// TestWeakFuses: fuses that the first burn does not take are burned again, up to
// three times in all.
func TestWeakFuses(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		var list []espsim.Faults
		for seed := range 60 / stride(6) {
			list = append(list, espsim.Faults{Weak: []float64{0.02, 0.2, 0.7}[seed%3], Seed: int64(seed + 1)})
		}
		out := sweep(t, name, "release", list)
		if out["PASS"] != len(list) {
			t.Errorf("%v", out)
		}
	})
}

// TestNoiseWhileFlashing: one byte in 10⁴ damaged while flashing costs retries and
// nothing else.
func TestNoiseWhileFlashing(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		var list []espsim.Faults
		for seed := range 50 / stride(5) {
			list = append(list, espsim.Faults{Noise: 1e-4, Window: espsim.WindowFlash, Seed: int64(seed + 1)})
		}
		out := sweep(t, name, "release", list)
		if out["PASS"] != len(list) {
			t.Errorf("%v", out)
		}
	})
}

// TestNoiseNeverDecides: noise all the time, or while burning, of several strengths.
// However it ends, no PASS stands on a wrong fuse.
func TestNoiseNeverDecides(t *testing.T) {
	for _, name := range twoChips {
		for _, f := range []espsim.Faults{
			{Noise: 1e-4},
			{Noise: 1e-4, Window: espsim.WindowBurn},
			{Noise: 1e-3},
			{Noise: 3e-3, Window: espsim.WindowBurn},
			{Noise: 2e-2, Window: espsim.WindowBurn},
			{Drop: 1e-4},
		} {
			inBubble(t, name+"/"+f.String(), func(t *testing.T) {
				var list []espsim.Faults
				for seed := range 200 / stride(100) {
					f.Seed = int64(seed + 1)
					list = append(list, f)
				}
				sweep(t, name, "release", list)
			})
		}
	}
}

// TestJournalFails fails each Append of a run, once before and once after the entry
// was written. Nothing is done after an intent that is not durable; a unit whose
// journal failed is never PASS, and the same job ends it when the journal is back.
func TestJournalFails(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		_, _, _, entries := measure(t, name, "release")
		outcomes := map[string]int{}
		for nth := 1; nth <= entries; nth += stride(4) {
			for _, after := range []bool{false, true} {
				x := newTrial(t, name, "release", espsim.Faults{})
				j := &faultyJournal{Journal: x.b.jrn, nth: nth, after: after}
				x.b.jrn = j
				var step string
				x.b.observe = func(e provision.Event) {
					if len(x.results) == 0 {
						step = e.Step
					}
				}
				out, err := x.play()
				if err != nil {
					t.Errorf("entry %d, written %v, step %s: %s: %v", nth, after, step, out, err)
				}
				if r := x.results[0]; r.Cause != provision.CauseJournal || r.ExitCode() != 13 {
					t.Errorf("entry %d, written %v: %s (%s): %s", nth, after, r.Verdict, r.Cause, r.Reason)
				}
				// A closed board says no more who it is; without the journal's whole evidence
				// it is set aside.
				closed := step == "close" || step == "proof" || step == "verdict"
				stands := slices.Contains(x.b.verdicts(x.c.MAC()), provision.Pass) // a finished unit is refused
				if out != "ERROR PASS" && !(closed && (out == "ERROR QUARANTINED" || stands)) {
					t.Errorf("entry %d, written %v, step %s: %s: %s", nth, after, step, out, x.last().Reason)
				}
				outcomes[out]++
				_ = x.c.Close()
			}
		}
		t.Logf("%s: %d entries, failed before and after: %v", name, entries, outcomes)
	})
}

// TestStoreFails fails each call of the keystore, before or after it happened.
func TestStoreFails(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		_, _, calls, _ := measure(t, name, "release")
		outcomes := map[string]int{}
		for nth := 1; nth <= calls; nth++ {
			for _, took := range []bool{false, true} {
				x := newTrial(t, name, "release", espsim.Faults{})
				var op string
				x.b.store = &faultyStore{Store: x.b.store, fail: func(o string, call int) (before, after error) {
					switch {
					case call != nth || len(x.results) > 0: // only the first run's

						return nil, nil
					case took:
						op = o
						return nil, keystore.ErrUnknownOutcome
					}
					op = o
					return keystore.ErrUnavailable, nil
				}}
				out, err := x.play()
				if err == nil {
					err = x.ended()
				}
				if err != nil {
					t.Errorf("call %d (%s), happened %v: %s: %v", nth, op, took, out, err)
				}
				want := "ERROR PASS"
				if nth == calls {
					want = "PASS" // the key is burned: the store is told again at the end
				} else if r := x.results[0]; r.Cause != provision.CauseKeystore || r.ExitCode() != 12 {
					t.Errorf("call %d (%s), happened %v: %s (%s): %s", nth, op, took, r.Verdict, r.Cause, r.Reason)
				}
				if out != want {
					t.Errorf("call %d (%s), happened %v: %s: %s", nth, op, took, out, x.last().Reason)
				}
				outcomes[out]++
				_ = x.c.Close()
			}
		}
		t.Logf("%s: %d calls, each failed twice: %v", name, calls, outcomes)
	})
}

// TestIntentBeforeAct: nothing reaches a fuse whose step's intent is not in the
// journal, and no key whose custody is not.
func TestIntentBeforeAct(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		x := newTrial(t, name, "release", espsim.Faults{})
		w := &watchJournal{Journal: x.b.jrn, seen: func(e journal.Entry, burns int) {
			isBurn := slices.ContainsFunc(stepsOfRelease, func(s struct {
				name           string
				oneWay, burned bool
			},
			) bool {
				return s.name == e.Step && s.oneWay
			}) || e.Step == "close"
			if e.Kind == journal.KindObserved && isBurn != (burns > 0) {
				t.Errorf("step %s: %d burns between intent and observation", e.Step, burns)
			}
			if e.Kind == journal.KindIntent && burns != 0 {
				t.Errorf("%d burns before the intent of %s", burns, e.Step)
			}
		}, c: x.c}
		x.b.jrn = w
		if out, err := x.play(); err != nil || out != "PASS" {
			t.Fatalf("%s: %v", out, err)
		}
	})
}

// TestStoreGoneAfterBurn: units after custody finish, since they need the store no
// more. What it was not told stands in the result, and it goes on saying that the
// key may be in silicon.
func TestStoreGoneAfterBurn(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		x := newTrial(t, name, "release", espsim.Faults{})
		inner := x.b.store
		states, fails := 0, 0
		x.b.store = &faultyStore{Store: inner, fail: func(op string, _ int) (before, after error) {
			if op == "state" {
				states++
			}
			if op == "state" && states > 1 {
				fails++
				return keystore.ErrUnavailable, nil
			}
			return nil, nil
		}}
		r := x.b.run(t.Context(), x.c, x.job)
		wantPass(t, r)
		if fails == 0 {
			t.Error("the store was told of nothing after the burn")
		}
		if w := r.Warnings; len(w) != 1 || !strings.Contains(w[0], "keystore") {
			t.Errorf("warnings: %q", w)
		}
		metas, err := inner.List(t.Context(), x.c.MAC())
		if err != nil || len(metas) != 1 || metas[0].Current() != keystore.MayBeInSilicon {
			t.Errorf("%+v, %v", metas, err)
		}
	})
}
