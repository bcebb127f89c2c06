package provision_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision"
)

// newOutageBench is a bench without an escrow whose keystore may go away.
func newOutageBench(t *testing.T) (b *bench, away *bool) {
	t.Helper()
	b, s := newReservingBench(t)
	away = new(bool)
	o := outage{s, away}
	b.store = &faultyStore{Store: s, fail: func(op string, _ int) (error, error) { return o.err(op), nil }}
	return b, away
}

func (b *bench) wantState(want keystore.StateKind) {
	b.t.Helper()
	metas := slices.DeleteFunc(b.metas(unitMAC), keystore.Meta.Superseded)
	if len(metas) != 1 || metas[0].Current() != want {
		b.t.Fatalf("the keystore says %+v, want one key that is %s", metas, want)
	}
}

func (b *bench) settle() (provision.SettleReport, error) {
	return provision.Settle(b.t.Context(), b.jrn.(provision.Ledger), b.store, 0)
}

func (b *bench) wantSettled(n int) {
	b.t.Helper()
	if rep, err := b.settle(); err != nil || rep.Settled != n || len(rep.Findings) > 0 {
		b.t.Fatalf("%+v, %v", rep, err)
	}
}

// TestSettleAtStart: a unit passed, or was set aside, while the keystore was away.
// Its next start is refused, and tells the keystore first.
func TestSettleAtStart(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, want := range []keystore.StateKind{keystore.InSilicon, keystore.Quarantined} {
			b, away := newOutageBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "hybrid")
			fail := b.store.(*faultyStore).fail
			burning := false
			b.store.(*faultyStore).fail = func(op string, n int) (error, error) {
				if op == "state" {
					if burning { // all but the one that allows the burn
						*away = true
					}
					burning = true
				}
				return fail(op, n)
			}
			if want == keystore.Quarantined {
				b.at["boot-check"] = func() { setField(t, c, fieldNamed(t, c, model(t, name).Lockdown.WriteProtect[0]), 1) }
			}
			r := b.run(t.Context(), c, job)
			if (r.Verdict == provision.Pass) != (want == keystore.InSilicon) || len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "does not know yet") {
				t.Fatalf("%s: %s, warnings %q", r.Verdict, r.Reason, r.Warnings)
			}
			b.store.(*faultyStore).fail = fail
			// Still away: refused all the same, with a warning.
			again := b.again(c, job)
			if again.Verdict == provision.Pass || len(again.Warnings) != 1 {
				t.Fatalf("%s: %s, warnings %q", again.Verdict, again.Reason, again.Warnings)
			}
			*away = false
			b.wantState(keystore.MayBeInSilicon)
			again = b.again(c, job)
			if again.Verdict == provision.Pass || len(again.Warnings) != 0 || again.FinishedBefore != (want == keystore.InSilicon) {
				t.Fatalf("%s: %s, warnings %q", again.Verdict, again.Reason, again.Warnings)
			}
			b.wantState(want)
			if m := b.metas(unitMAC); len(m[0].States) < 2 || m[0].States[1].Kind != keystore.InSilicon {
				t.Errorf("%+v", m[0].States)
			}
			b.wantSettled(0)
		}
	})
}

// TestSettle: nobody can connect to a closed unit. The journal settles it.
func TestSettle(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, profile := range []string{"release", "closed"} {
			b, away := newOutageBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			fail, told := b.store.(*faultyStore).fail, 0
			b.store.(*faultyStore).fail = func(op string, n int) (error, error) {
				if op == "state" {
					told++
					*away = told > 1
				}
				return fail(op, n)
			}
			r := b.run(t.Context(), c, sampleJob(t, name, profile))
			wantPass(t, r)
			b.store.(*faultyStore).fail = fail
			if rep, err := b.settle(); !errors.Is(err, keystore.ErrUnavailable) || rep.Settled != 0 {
				t.Errorf("while it is away: %+v, %v", rep, err)
			}
			*away = false
			b.wantState(keystore.MayBeInSilicon)
			b.wantSettled(1)
			b.wantState(keystore.InSilicon)
			b.wantSettled(0)
		}
	})
}

// TestSettleLeavesOthersWord: a quarantine that the journal does not tell of is not
// lifted, a key that was given up stays so, and an unburned one is not in silicon.
func TestSettleLeavesOthersWord(t *testing.T) {
	b := newMemoryBench(t)
	inBubble(t, "unit", func(t *testing.T) {
		b.t = t
		c := b.board(espsim.Options{Model: model(t, "esp32c3")})
		job := sampleJob(t, "esp32c3", "hybrid")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["custody"] = cancel
		b.run(ctx, c, job)
		entries, _ := b.jrn.Unit(unitMAC)
		if told, err := provision.SettleUnit(t.Context(), unitMAC, entries, b.store); told || err != nil {
			t.Errorf("an unburned unit: %v, %v", told, err)
		}
		wantPass(t, b.again(c, job))
		m := b.metas(unitMAC)
		k := m[len(m)-1]
		st := keystore.State{Kind: keystore.Quarantined, Job: "audit", Note: "set aside by hand"}
		if _, err := b.store.AddState(t.Context(), unitMAC, k.Fingerprint, st); err != nil {
			t.Fatal(err)
		}
		entries, _ = b.jrn.Unit(unitMAC)
		for _, store := range []keystore.Store{b.store, newMemoryStore(true)} {
			if told, err := provision.SettleUnit(t.Context(), unitMAC, entries, store); told || err != nil {
				t.Errorf("told %v, %v", told, err)
			}
		}
		b.wantState(keystore.Quarantined)
		// A store that knows another key only.
		other := newMemoryStore(true)
		if _, err := other.Create(t.Context(), keystoretest.NewRecord(t, unitMAC)); err != nil {
			t.Fatal(err)
		}
		if told, err := provision.SettleUnit(t.Context(), unitMAC, entries, other); told || err != nil {
			t.Errorf("told %v, %v", told, err)
		}
	})
}

// TestQuarantineNote: a long reason, with what a board said in it, keeps nobody from
// telling the keystore that the unit is set aside.
func TestQuarantineNote(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		b.at["boot-check"] = func() { setField(t, c, fieldNamed(t, c, "WR_DIS"), 0xFFFF) }
		r := b.run(t.Context(), c, sampleJob(t, name, "hybrid"))
		wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "")
		if len(r.Reason) <= 256 || len(r.Warnings) > 0 {
			t.Fatalf("a reason of %d bytes, warnings %q", len(r.Reason), r.Warnings)
		}
		b.wantState(keystore.Quarantined)
	})
}
