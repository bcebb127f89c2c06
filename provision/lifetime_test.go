package provision_test

import (
	"context"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// lentKey keeps the key that the engine lends to the store, which no store does.
type lentKey struct {
	keystore.Store
	key keystore.Key
}

func (s *lentKey) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	s.key = r.Key
	return s.Store.Create(ctx, r)
}

// The engine's key lives until it has been read back from the chip, and not
// through the minutes of boot check and closing.
func TestKeyIsWipedAfterItsBurn(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		lent := &lentKey{Store: b.store}
		b.store = lent
		held := map[string]bool{}
		b.jrn = &watchJournal{Journal: b.jrn, c: c, seen: func(e journal.Entry, _ int) {
			if e.Kind == journal.KindIntent {
				held[e.Step] = lent.key.Use(func([]byte) error { return nil }) == nil
			}
		}}
		wantPass(t, b.run(t.Context(), c, sampleJob(t, name, "hybrid")))
		if !held["burn-key"] {
			t.Error("the key was gone before its burn")
		}
		for _, step := range []string{"protect-key", "enable-encryption", "boot-check", "proof"} {
			if held[step] {
				t.Errorf("the key is still held at %s", step)
			}
		}
	})
}

// deafJournal does not take verdicts.
type deafJournal struct{ provision.Journal }

func (j deafJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	if e.Kind == journal.KindVerdict {
		return journal.Entry{}, errInjected
	}
	return j.Journal.Append(ctx, e)
}

// A journal that does not take the verdict must not hide what was found, and
// never turns "set it aside" into "start it again".
func TestUnwrittenVerdict(t *testing.T) {
	inBubble(t, "refused", func(t *testing.T) {
		b := newMemoryBench(t)
		b.jrn = deafJournal{b.jrn}
		r := b.run(t.Context(), b.board(espsim.Options{Model: model(t, "esp32c3"), FlashSize: 2 << 20}), sampleJob(t, "esp32c3", "hybrid"))
		if r.Verdict != provision.Error || r.ExitCode() != provision.ExitJournal || !strings.Contains(r.Reason, "2048 KB") {
			t.Errorf("%s, exit code %d: %s", r.Verdict, r.ExitCode(), r.Reason)
		}
	})
	inBubble(t, "quarantined", func(t *testing.T) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, "esp32c3")})
		b.jrn = deafJournal{b.jrn}
		b.at["boot-check"] = func() { // a bootloader that burns a fuse
			if err := c.SetFuse(0, 1, 1<<12); err != nil {
				t.Error(err)
			}
		}
		r := b.run(t.Context(), c, sampleJob(t, "esp32c3", "hybrid"))
		if r.Verdict != provision.Quarantined || r.ExitCode() != provision.ExitQuarantined ||
			!strings.Contains(r.Reason, "first boot") || !strings.Contains(r.Reason, "journal") {
			t.Errorf("%s, exit code %d: %s", r.Verdict, r.ExitCode(), r.Reason)
		}
	})
}

// A fault on the line before the closing command was sent costs a reset, not the
// unit's run: nothing was burned by it.
func TestCloseIsTriedAgainBeforeItWasSent(t *testing.T) {
	const writeReg = 0x09
	bothChips(t, func(t *testing.T, name string) {
		var before int
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		b.at["close"] = func() { before = c.Requests(writeReg) }
		wantPass(t, b.run(t.Context(), c, sampleJob(t, name, "release")))
		for _, nth := range []int{1, 5, 12} {
			b := newMemoryBench(t)
			wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{
				Refuse: []espsim.Refusal{{Op: writeReg, Nth: before + nth, Status: [2]byte{1, 7}}},
			}}), sampleJob(t, name, "release")))
		}
	})
}
