package journal

import (
	"fmt"
	"hash/maphash"

	"github.com/provisiond/provisiond/esp/chip"
)

// The order that entries of a unit must keep (docs/journal.md, Units):
//
//   - an observed entry closes an intent of the same slot and step that was
//     written before it and is still open, of the same unit and job. The intent
//     may not have known unit or job yet.
//   - a verdict of a known unit comes after entries of this unit and job that no
//     other verdict of the two has ended, or while an intent of the same slot is
//     open that knows neither; a verdict without a unit after entries of the same
//     slot without a unit.
//
// An intent that stays open is no fault: a crash leaves one behind.

// fact is what these rules need of an entry. Texts are hashed with a random seed,
// so that ten million entries need no strings; zero is the empty text.
type fact struct {
	index           uint64
	kind            Kind
	unit            chip.MAC
	slot, job, step uint64
}

type stepKey struct {
	slot, step, job uint64
	unit            chip.MAC
}

type runKey struct {
	slot, job uint64 // of a known unit only the job, of no unit only the slot
	unit      chip.MAC
}

// states follows all units through the journal. It forgets a unit with its
// verdict.
type states struct {
	open map[stepKey]int // intents without their observed entry
	runs map[runKey]bool // entries since the last verdict; of no unit: ever
	anon map[uint64]int  // of a slot: open intents that know neither unit nor job
}

func newStates() *states {
	return &states{open: map[stepKey]int{}, runs: map[runKey]bool{}, anon: map[uint64]int{}}
}

var textSeed = maphash.MakeSeed()

func hashText(b []byte) uint64 {
	if len(b) == 0 {
		return 0
	}
	return max(1, maphash.Bytes(textSeed, b))
}

// factOf gives the fact of an entry; ok is false if the rules do not concern it.
func factOf(s scanned) (f fact, ok bool) {
	switch s.kind {
	case KindIntent, KindObserved, KindVerdict:
		return fact{s.index, s.kind, s.unit, hashText(s.slot), hashText(s.job), hashText(s.step)}, true
	}
	return fact{}, false
}

func (f fact) run() runKey {
	if f.unit == (chip.MAC{}) {
		return runKey{slot: f.slot}
	}
	return runKey{job: f.job, unit: f.unit}
}

// take follows one entry. What it returns is the reason why it may not be there.
func (s *states) take(f fact) (reason string) {
	switch f.kind {
	case KindIntent:
		s.open[stepKey{f.slot, f.step, f.job, f.unit}]++
		if f.job == 0 && f.unit == (chip.MAC{}) {
			s.anon[f.slot]++
		}
		s.runs[f.run()] = true
	case KindObserved:
		if !s.close(f) {
			return "it observes a step that no intent before it announced"
		}
		s.runs[f.run()] = true
	case KindVerdict:
		run := f.run()
		known := f.unit != (chip.MAC{})
		if !s.runs[run] && !(known && s.anon[f.slot] > 0) {
			return "it is a verdict, and nothing was done to this unit in this job before it, or since the verdict before"
		}
		if known {
			delete(s.runs, run)
		}
	}
	return ""
}

// close looks for the open intent of an observed entry, the closest first.
func (s *states) close(f fact) bool {
	for _, k := range [...]stepKey{
		{f.slot, f.step, f.job, f.unit},
		{f.slot, f.step, 0, f.unit},
		{f.slot, f.step, 0, chip.MAC{}},
	} {
		n := s.open[k]
		if n == 0 {
			continue
		}
		if s.open[k] = n - 1; n == 1 {
			delete(s.open, k)
		}
		if k.job == 0 && k.unit == (chip.MAC{}) {
			s.anon[k.slot]--
		}
		return true
	}
	return false
}

// left gives how many intents are open.
func (s *states) left() (n uint64) {
	for _, c := range s.open {
		n += uint64(c)
	}
	return n
}

func (j *Journal) misplaced(f fact, reason string) error {
	return j.damaged(int64(f.index), fmt.Sprintf("%s: the order of the entries of unit %s is not one that a station writes", reason, unitText(f.unit)))
}

func unitText(mac chip.MAC) string {
	if mac == (chip.MAC{}) {
		return "(not known yet)"
	}
	return mac.String()
}
