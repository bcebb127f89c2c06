// Package outboxtest helps to test sinks: a journal in memory, and units that
// write into a journal what the engine writes. It owns nothing of the outbox.
package outboxtest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/journal"
)

// Journal is a journal in memory. It is safe for concurrent use.
type Journal struct {
	ID      string
	Station string

	mu      sync.Mutex
	entries []journal.Entry
	head    journal.Hash
	broken  error
}

// NewJournal gives a journal that has its entry 0.
func NewJournal(id, station string) *Journal {
	j := &Journal{ID: id, Station: station}
	payload, err := journal.MarshalPayload(map[string]any{"format": 1, "journal": id, "public_key": "none"})
	if err == nil {
		_, err = j.Append(context.Background(), journal.Entry{Kind: journal.KindStation, Step: journal.StepInit, Payload: payload})
	}
	if err != nil {
		panic(err)
	}
	return j
}

// Append adds an entry.
func (j *Journal) Append(_ context.Context, e journal.Entry) (journal.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Index, e.Prev, e.Station = uint64(len(j.entries)), j.head, j.Station
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC().Round(0)
	if e.Payload == nil {
		e.Payload = []byte("{}")
	}
	line, err := e.Canonical()
	if err != nil {
		return e, err
	}
	if e, err = journal.ParseEntry(line); err != nil {
		return e, err
	}
	j.entries = append(j.entries, e)
	j.head = journal.HashLine(line)
	return e, nil
}

// Info names the journal.
func (j *Journal) Info() journal.Info { return journal.Info{ID: j.ID, Station: j.Station} }

// Head gives the number of entries and the hash of the last one.
func (j *Journal) Head() (uint64, journal.Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return uint64(len(j.entries)), j.head
}

// Break makes every reading fail; nil mends it.
func (j *Journal) Break(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = err
}

// Entries gives a range of the entries.
func (j *Journal) Entries(from, to uint64) iter.Seq2[journal.Entry, error] {
	return func(yield func(journal.Entry, error) bool) {
		j.mu.Lock()
		list, err := slices.Clone(j.entries[min(from, uint64(len(j.entries))):min(to, uint64(len(j.entries)))]), j.broken
		j.mu.Unlock()
		if err != nil {
			yield(journal.Entry{}, err)
			return
		}
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Unit gives the entries of a unit.
func (j *Journal) Unit(mac chip.MAC) ([]journal.Entry, error) {
	var list []journal.Entry
	for e, err := range j.Entries(0, journal.All) {
		if err != nil {
			return nil, err
		}
		if e.Unit == mac {
			list = append(list, e)
		}
	}
	return list, nil
}

// Appender is what Run needs of a journal.
type Appender interface {
	Append(ctx context.Context, e journal.Entry) (journal.Entry, error)
}

// Run is a run on a unit.
type Run struct {
	Slot, Lot, Operator, Serial, Recipe string
	MAC                                 chip.MAC // zero: it was never read
	Verdict, Cause, Reason              string   // PASS if empty
}

// MAC is the n-th unit's: of Espressif's range, as no simulated one is.
func MAC(n int) chip.MAC {
	return chip.MAC{0x24, 0x0a, 0xc4, byte(n >> 16), byte(n >> 8), byte(n)}
}

// Write appends what the engine writes of a run, shortened to the entries that
// tell something, and returns the verdict's entry.
func (r Run) Write(ctx context.Context, j Appender) (last journal.Entry, err error) {
	const fp = "fp:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
	verdict := r.Verdict
	if verdict == "" {
		verdict = "PASS"
	}
	recipe := r.Recipe
	if recipe == "" {
		recipe = "lamp"
	}
	facts := map[string]any{
		"port": "pci-0-usb-1.2", "recipe": recipe, "recipe_revision": 3, "profile": "release", "tool": "provisiond test",
		"recipe_sha256": fmt.Sprintf("%064x", 7),
	}
	for name, v := range map[string]string{"operator": r.Operator, "lot": r.Lot, "serial": r.Serial} {
		if v != "" {
			facts[name] = v
		}
	}
	image := map[string]any{
		"name": "app", "offset": 0x10000, "length": 1 << 20, "encrypted": true, "md5": fmt.Sprintf("%032x", 1),
		"plaintext_sha256": fmt.Sprintf("%064x", 2), "ciphertext_sha256": fmt.Sprintf("%064x", 3),
	}
	known := r.MAC != chip.MAC{}
	for _, s := range []struct {
		step string
		kind journal.Kind
		body map[string]any
		mac  bool // the unit is known by then
		only bool // only of a known unit
	}{
		{"connect", journal.KindIntent, facts, false, false},
		{"connect", journal.KindObserved, map[string]any{"outcome": "done", "chip": "esp32c3"}, false, false},
		{"inspect", journal.KindIntent, map[string]any{}, false, true},
		{"inspect", journal.KindObserved, map[string]any{
			"outcome": "done", "chip": "esp32c3", "revision": "v0.4", "flash_id": "c84016", "flash_size": 4 << 20,
		}, true, true},
		{"plan", journal.KindObserved, map[string]any{"outcome": "done", "plan_sha256": fmt.Sprintf("%064x", 4), "table_sha256": fmt.Sprintf("%064x", 5)}, true, true},
		{"verify-flash", journal.KindObserved, map[string]any{"outcome": "done", "regions": []any{image}}, true, true},
		{"custody", journal.KindObserved, map[string]any{
			"outcome": "done", "key_fingerprint": fp, "key_ref": "units/x", "key_version": 1, "store": "vault",
		}, true, true},
		{"burn-key", journal.KindIntent, map[string]any{"key_fingerprint": fp, "block": "BLOCK_KEY0"}, true, true},
		{"burn-key", journal.KindObserved, map[string]any{"outcome": "done"}, true, true},
		{"verdict", journal.KindVerdict, map[string]any{
			"verdict": verdict, "cause": r.Cause, "reason": r.Reason, "next_step": "", "one_way_begun": known, "elapsed_ms": 31415,
		}, true, false},
	} {
		if s.only && !known {
			continue
		}
		e := journal.Entry{Slot: r.Slot, Step: s.step, Kind: s.kind}
		if s.mac {
			e.Unit = r.MAC
			e.Job = fmt.Sprintf("%x", r.MAC[:])
		}
		if e.Payload, err = journal.MarshalPayload(s.body); err != nil {
			return last, err
		}
		if last, err = j.Append(ctx, e); err != nil {
			return last, err
		}
	}
	return last, nil
}
