package report

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

func kinds(u *Unit) string {
	var out []string
	for _, a := range u.Attempts {
		out = append(out, string(a.State()))
	}
	return strings.Join(out, " ")
}

// TestFinal: what became of a unit.
func TestFinal(t *testing.T) {
	pass := run{verdict: provision.Pass}
	fail := run{verdict: provision.Fail, cause: provision.CauseUnit, stop: "boot-check", reason: "r"}
	refused := run{verdict: provision.Fail, cause: provision.CauseRefused, stop: "plan", reason: "r"}
	aborted := run{verdict: provision.Aborted, cause: provision.CauseCancelled, stop: "flash", reason: "r"}
	quarantined := run{verdict: provision.Quarantined, cause: provision.CauseQuarantined, stop: "burn-key", reason: "r"}
	crashEarly := run{stop: "flash"}
	crashLate := run{stop: "burn-key"}
	for name, c := range map[string]struct {
		runs []run
		want State
	}{
		"pass":                       {[]run{pass}, "PASS"},
		"refused after pass":         {[]run{pass, refused}, "PASS"},
		"refused after quarantine":   {[]run{quarantined, refused}, "QUARANTINED"},
		"refused only":               {[]run{refused, refused}, "REFUSED"},
		"aborted, then pass":         {[]run{aborted, pass}, "PASS"},
		"aborted, then refused":      {[]run{aborted, refused}, "ABORTED"},
		"refused, then pass":         {[]run{refused, pass}, "PASS"},
		"pass, then quarantined":     {[]run{pass, quarantined}, "QUARANTINED"},
		"crash":                      {[]run{crashEarly}, "OPEN"},
		"crash, then refused":        {[]run{crashEarly, refused}, "REFUSED"},
		"crash in a burn":            {[]run{fail, crashLate}, "OPEN"},
		"crash in a burn, refused":   {[]run{crashLate, refused}, "OPEN"},
		"pass, then crash early":     {[]run{pass, crashEarly}, "PASS"},
		"crash in a burn, then pass": {[]run{crashLate, pass}, "PASS"},
	} {
		b := newBook(t, "line-1")
		for _, r := range c.runs {
			r.mac = mac(1)
			b.run(r)
		}
		p := projectAll(t, b)
		if len(p.Units) != 1 || len(p.Units[0].Attempts) != len(c.runs) || len(p.Unknown) != 0 {
			t.Errorf("%s: %d units, attempts %s", name, len(p.Units), kinds(p.Units[0]))
			continue
		}
		if got := p.Units[0].Final().State(); got != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got, kinds(p.Units[0]), c.want)
		}
	}
}

// TestContinued: a run that goes on after a crash saw neither the first fuses
// nor the custody; the statement has both.
func TestContinued(t *testing.T) {
	b := newBook(t, "line-1")
	b.run(run{mac: mac(1), stop: "burn-key"})
	// The run that goes on: no flash, no custody, no key.
	job := b.entries[len(b.entries)-1].Job
	step := func(m chip.MAC, job, name string, kind journal.Kind, body map[string]any) {
		b.add("A1", m, job, name, kind, body)
	}
	step(chip.MAC{}, "", "connect", journal.KindIntent, map[string]any{"operator": "grace"})
	step(chip.MAC{}, "", "inspect", journal.KindIntent, map[string]any{})
	step(mac(1), job, "inspect", journal.KindObserved, map[string]any{"efuse": burnedFuses(mac(1)), "efuse_errors": noErrors, "chip": "esp32c3", "revision": "v0.4", "outcome": "done"})
	step(mac(1), job, "plan", journal.KindObserved, map[string]any{"continues": true, "outcome": "done"})
	step(mac(1), job, "verdict", journal.KindVerdict, map[string]any{"verdict": "PASS", "efuse": burnedFuses(mac(1)), "efuse_errors": noErrors, "elapsed_ms": 7})
	u := projectAll(t, b).Unit(mac(1))
	s := u.statement()
	if s.Verdict != "PASS" || s.Operator != "grace" || s.KeyFingerprint != fingerprint(mac(1), 0) || s.KeyBlock != "KEY0" || len(s.Images) != 1 || len(s.Attempts) != 2 {
		t.Errorf("%+v", s)
	}
	if !slices.EqualFunc(s.EFuseBefore.Blocks, blankFuses(mac(1)), sameBlock) || !slices.EqualFunc(s.EFuseAfter.Blocks, burnedFuses(mac(1)), sameBlock) {
		t.Errorf("before %v, after %v", s.EFuseBefore.Blocks, s.EFuseAfter.Blocks)
	}
	if s.Begun != stamp(u.Attempts[0].Begun) || s.Begun == stamp(u.Attempts[1].Begun) {
		t.Errorf("begun %s", s.Begun)
	}
}

func sameBlock(a, b efuse.BlockWords) bool {
	return a.Block == b.Block && slices.Equal(a.Words, b.Words)
}

// TestProjectErrors: what cannot be read is an error with its entry.
func TestProjectErrors(t *testing.T) {
	bad := errors.New("torn")
	if _, err := Project(func(yield func(journal.Entry, error) bool) { yield(journal.Entry{}, bad) }); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	b := newBook(t, "line-1")
	b.add("A1", mac(1), "j", "verdict", journal.KindVerdict, map[string]any{"verdict": 7})
	if _, err := Project(b.all()); err == nil || !strings.Contains(err.Error(), "journal entry 1: member verdict") {
		t.Errorf("%v", err)
	}
	b = newBook(t, "line-1")
	b.add("A1", mac(1), "j", "plan", journal.KindIntent, map[string]any{})
	b.add("A1", mac(2), "j", "verdict", journal.KindVerdict, map[string]any{"verdict": "PASS"})
	if _, err := Project(b.all()); err == nil || !strings.Contains(err.Error(), "follows a step on unit") {
		t.Errorf("%v", err)
	}
}

// TestTwoStations: a unit's attempts are in the order of time, whoever made them.
func TestTwoStations(t *testing.T) {
	a, b := newStation(t, "line-1"), newStation(t, "line-2")
	b.run(run{mac: mac(1), verdict: provision.Fail, cause: provision.CauseUnit, stop: "boot-check", reason: "r"})
	a.now = b.now.Add(1)
	a.run(run{mac: mac(1), verdict: provision.Pass})
	p := projectAll(t, a, b)
	u := p.Unit(mac(1))
	if kinds(u) != "FAIL PASS" || u.Attempts[0].Station != "line-2" || !slices.Equal(p.Stations, []string{"line-1", "line-2"}) || p.Unit(mac(2)) != nil {
		t.Errorf("%s, %v", kinds(u), p.Stations)
	}
}

// TestReworkAttempts: a rework that wrote nothing leaves a unit what it was, one
// that was cut off leaves it open, and what it came to counts.
func TestReworkAttempts(t *testing.T) {
	b := newBook(t, "line-1")
	b.run(run{mac: mac(1), lot: "L", verdict: provision.Pass})
	rework := func(writes bool, verdict provision.Verdict, cause provision.Cause) *Unit {
		t.Helper()
		none := chip.MAC{}
		b.add("A1", none, "", "connect", journal.KindIntent, map[string]any{"rework_reason": "flash", "operator": "grace"})
		b.add("A1", none, "", "connect", journal.KindObserved, map[string]any{"outcome": "done"})
		b.add("A1", none, "", "inspect", journal.KindIntent, map[string]any{})
		b.add("A1", mac(1), "other-job", "inspect", journal.KindObserved, map[string]any{"outcome": "done", "chip": "esp32c3", "revision": "v0.4"})
		b.add("A1", mac(1), "other-job", "plan", journal.KindObserved, map[string]any{"outcome": "done", "lot": "L"})
		if writes {
			b.add("A1", mac(1), "other-job", StepRework, journal.KindOperator, map[string]any{"operator": "grace", "reason": "flash"})
			b.add("A1", mac(1), "other-job", "flash", journal.KindIntent, map[string]any{})
		}
		if verdict != "" {
			b.add("A1", mac(1), "other-job", "verdict", journal.KindVerdict, map[string]any{"verdict": verdict, "cause": cause, "reason": "x"})
		}
		return projectAll(t, b).Unit(mac(1))
	}
	state := func(u *Unit, want State, reworked bool) {
		t.Helper()
		l := NewLot(projectAll(t, b), LotOptions{Lot: "L"})
		if len(l.Units) != 1 || l.Units[0].State != want || l.Units[0].Reworked != reworked || u.Final().State() != want {
			t.Errorf("%+v, want %s", l.Units, want)
		}
		if s := u.statement(); s.KeyFingerprint == "" || s.KeyBlock == "" || len(s.EFuseBefore.Blocks) == 0 {
			t.Errorf("the statement lost the key: %+v", s)
		}
		if l.Units[0].Fingerprint == "" {
			t.Error("the lot lost the key")
		}
	}
	state(rework(false, provision.Error, provision.CauseKeystore), State(provision.Pass), false)
	state(rework(false, provision.Fail, provision.CauseRefused), State(provision.Pass), false)
	state(rework(true, "", ""), Open, true)
	state(rework(true, provision.Fail, provision.CauseUnit), State(provision.Fail), true)
	state(rework(false, provision.Aborted, provision.CauseCancelled), State(provision.Fail), true)
	state(rework(true, provision.Pass, ""), State(provision.Pass), true)
}
