package provision_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/provisiond/provisiond/provision"
)

// tableRow is a kind of unit that the table is made for.
type tableRow struct {
	chip, profile string
	reserving     bool // the keystore is a server that can reserve
	full          bool // with all that a recipe can burn: Secure Boot, two digests, more keys
}

// job is the row's product.
func (r tableRow) job(t testing.TB) *provision.Job {
	t.Helper()
	if r.full {
		return fullJob(t, r.chip, r.profile)
	}
	return sampleJob(t, r.chip, r.profile)
}

// tableRows are hybrid, release and closed for one chip of each generation, and release
// with all that can be burned for every chip. On the ESP32 release is closed: the two
// burn the same (esp-facts F.2).
var tableRows = []tableRow{
	{chip: "esp32", profile: "hybrid"},
	{chip: "esp32", profile: "release"},
	{chip: "esp32c3", profile: "hybrid"},
	{chip: "esp32c3", profile: "release"},
	{chip: "esp32c3", profile: "closed"},
	{chip: "esp32", profile: "hybrid", reserving: true},
	{chip: "esp32c3", profile: "release", reserving: true},
	{chip: "esp32", profile: "release", full: true},
	{chip: "esp32s2", profile: "release", full: true},
	{chip: "esp32c3", profile: "release", full: true},
	{chip: "esp32s3", profile: "release", full: true},
	{chip: "esp32c2", profile: "release", full: true},
	{chip: "esp32c6", profile: "release", full: true},
	{chip: "esp32h2", profile: "release", full: true},
	{chip: "esp32p4", profile: "release", full: true},
	{chip: "esp32c5", profile: "release", full: true},
	{chip: "esp32c61", profile: "release", full: true},
}

// own leaves out of a row's table what is another row's as well.
func (r tableRow) own(list []faultPoint) []faultPoint {
	return slices.DeleteFunc(list, func(p faultPoint) bool {
		switch {
		case r.reserving:
			return p.kind != atKeystore && p.step != "reserve" && p.step != "custody"
		case r.full: // the others have the rest
			return !slices.Contains([]string{"burn-key", "protect-key", "burn-digests", "protect-digests", "burn-lockdown", "enable-secure-boot", "enable-encryption", "boot-check", "write-protect", "close", "proof"}, p.step)
		case r.chip == "esp32c3" && r.profile == "closed": // like release but for its last fuse
			return p.step != "close" && p.step != "proof"
		}
		return false
	})
}

func (r tableRow) String() string {
	s := r.chip + " " + r.profile
	if r.reserving {
		s += " reserving"
	}
	if r.full {
		s += " full"
	}
	return s
}

// recorded is what a run without faults does, operation by operation.
func recorded(t *testing.T, files stationFiles, row tableRow) (ops []operation) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newRowWorld(t, files, row, nil)
		defer w.close()
		wantPass(t, w.run(nil, &ops))
		if err := w.checkWorld(); err != nil {
			t.Fatal(err)
		}
	})
	return ops
}

// points makes the table: every operation of the run, and each way in which it can
// go wrong. Reads of registers change nothing, so the next write stands for them;
// what the engine makes of them is tried at some.
func points(ops []operation) (list []faultPoint) {
	reads := 0
	for _, o := range ops {
		var ways []how
		switch o.kind {
		case atJournal:
			ways = []how{fails, happens, failsOn, killsBefore, killsAfter, losesPower, losesPort}
		case atKeystore:
			ways = []how{fails, happens, failsOn, killsBefore, killsAfter, losesPower, losesPort}
		case atRead:
			if reads++; reads%29 == 0 {
				ways = []how{fails, happens, losesPower, losesPort}
			}
		default:
			ways = []how{fails, happens, killsBefore, losesPower, losesPort, portAfter}
		}
		for _, h := range ways {
			list = append(list, faultPoint{operation: o, how: h, seed: int64(o.n)})
		}
		if o.burn {
			// Power that fails in a burn leaves any part of the bits.
			for seed := range 8 {
				list = append(list, faultPoint{operation: o, how: losesPower, seed: int64(1000*o.n + seed)})
			}
			list = append(list, faultPoint{operation: o, how: killsAfter, seed: int64(o.n)})
		}
	}
	last := ops[len(ops)-1]
	return append(list, faultPoint{operation: last, how: killsAfter, seed: int64(last.n)})
}

// tally counts what became of the units.
type tally struct {
	sync.Mutex
	points   int
	outcomes map[string]int
	kinds    map[string]int
}

func (a *tally) add(p faultPoint, outcome string) {
	a.Lock()
	defer a.Unlock()
	if a.outcomes == nil {
		a.outcomes, a.kinds = map[string]int{}, map[string]int{}
	}
	a.points++
	a.outcomes[outcome]++
	a.kinds[p.kind+", "+string(p.how)]++
}

func (a *tally) log(t *testing.T) {
	t.Helper()
	for _, m := range []map[string]int{a.kinds, a.outcomes} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			t.Logf("%6d  %s", m[k], k)
		}
	}
}

// Steps over the table: primes. With -all they are 1. The full rows are much alike.
const (
	stretch     = 89
	stretchFull = 509
)

func (r tableRow) stride() int {
	switch {
	case *every > 0:
		return *every
	case r.full:
		return stride(stretchFull * raceFactor)
	}
	return stride(stretch * raceFactor)
}

// TestFaultTable is the fault table: for every operation of a whole run, and every
// way in which it can go wrong, the run, then restart and resume, and the whole
// state after each of them.
func TestFaultTable(t *testing.T) {
	files := newStationFiles(t)
	var all tally
	total := 0
	t.Run("rows", func(t *testing.T) {
		for _, row := range tableRows {
			t.Run(strings.ReplaceAll(row.String(), " ", "/"), func(t *testing.T) {
				t.Parallel()
				list := row.own(points(recorded(t, files, row)))
				all.Lock()
				total += len(list)
				all.Unlock()
				var mine tally
				for _, p := range everyNth(list, row.stride()) {
					out, err := tryPoint(t, files, row, p, func(int) *faultPoint { return nil })
					if err != nil {
						t.Error(err)
					}
					mine.add(p, out)
					all.add(p, out)
				}
				t.Logf("%v: %d points of %d", row, mine.points, len(list))
				mine.log(t)
			})
		}
	})
	t.Logf("result: %d points tried of a table of %d", all.points, total)
	all.log(t)
	for _, want := range []string{"PASS", "ERROR PASS", "killed PASS", "ERROR QUARANTINED"} {
		if all.outcomes[want] == 0 && all.points == total { // a part of the table need not have all
			t.Errorf("no unit came to %q", want)
		}
	}
}

// tryPoint runs one line of the table. What is quarantined must be so for a reason.
func tryPoint(t *testing.T, files stationFiles, row tableRow, p faultPoint, second func(run int) *faultPoint) (outcome string, failure error) {
	synctest.Test(t, func(t *testing.T) {
		w := newRowWorld(t, files, row, &p)
		defer w.close()
		// A certificate takes a third of a point's time: with -all not every point has one.
		w.uncertified = *all && p.kind != atJournal && p.kind != atKeystore && p.n%8 != 0
		defer func() { _ = w.c.Close() }()
		verdicts, err := w.outcome(&p, second)
		outcome = strings.Join(verdicts, " ")
		last := w.results[len(w.results)-1]
		if err == nil && verdicts[len(verdicts)-1] == "QUARANTINED" && !w.mayQuarantine() {
			err = fmt.Errorf("set aside without need: %s", last.Reason)
		}
		if err != nil {
			failure = fmt.Errorf("%v: %v: %s: %w", row, p, outcome, err)
		}
	})
	return outcome, failure
}

// TestTwoFaults: life does not stop at one fault. The recovery meets another one, at
// random, and so may the recovery of that.
func TestTwoFaults(t *testing.T) {
	files := newStationFiles(t)
	count := 400 / stride(20*raceFactor)
	var all tally
	t.Run("rows", func(t *testing.T) {
		for n, row := range tableRows[:5] {
			t.Run(strings.ReplaceAll(row.String(), " ", "/"), func(t *testing.T) {
				t.Parallel()
				list := points(recorded(t, files, row))
				burns := slices.DeleteFunc(slices.Clone(list), func(p faultPoint) bool { return p.kind == atRead || p.n < list[len(list)/3].n })
				rng := rand.New(rand.NewPCG(uint64(n), 4))
				for range count {
					first := burns[rng.IntN(len(burns))]
					var text []string
					out, err := tryPoint(t, files, row, first, func(run int) *faultPoint {
						if run > 2 {
							return nil
						}
						p := list[rng.IntN(len(list))]
						p.op = 0 // the board's own faults are of the first run: the port fails instead
						text = append(text, p.String())
						return &p
					})
					if err != nil {
						t.Errorf("%v; then %q", err, text)
					}
					all.add(first, out)
				}
			})
		}
	})
	t.Logf("%d runs with several faults", all.points)
	all.log(t)
}
