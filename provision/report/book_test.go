package report

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// book is a journal in memory, written as the engine writes. That the engine
// really writes so is tested with the whole program (cmd/provisiond, audit.txtar).
type book struct {
	t       testing.TB
	station string
	now     time.Time
	entries []journal.Entry
	lines   [][]byte
	prev    journal.Hash
}

func newBook(t testing.TB, station string) *book {
	b := &book{t: t, station: station, now: time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)}
	b.add("", chip.MAC{}, "", journal.StepInit, journal.KindStation, map[string]any{"format": 1, "journal": "00112233445566778899aabbccddeeff"})
	return b
}

func (b *book) add(slot string, mac chip.MAC, job, step string, kind journal.Kind, body map[string]any) {
	b.t.Helper()
	p, err := journal.MarshalPayload(body)
	if err != nil {
		b.t.Fatal(err)
	}
	e := journal.Entry{
		Index: uint64(len(b.entries)), Time: b.now, Station: b.station, Slot: slot, Unit: mac, Job: job, Step: step, Kind: kind, Payload: p, Prev: b.prev,
	}
	line, err := e.Canonical()
	if err != nil {
		b.t.Fatal(err)
	}
	b.prev = journal.HashLine(line)
	b.entries, b.lines = append(b.entries, e), append(b.lines, line)
	b.now = b.now.Add(50 * time.Millisecond)
}

// all is the journal.
func (b *book) all() Entries {
	return func(yield func(journal.Entry, error) bool) {
		for _, e := range b.entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// run is what happens to a unit.
type run struct {
	mac      chip.MAC
	slot     string
	lot      string
	serial   string
	operator string
	ms       int64
	verdict  provision.Verdict // empty: the station dies in step stop
	cause    provision.Cause
	reason   string
	stop     string // the last step; empty: proof
	recipe   string
	key      byte // makes another key
	escrow   bool // the keystore is away at custody
	// noCustody: the run goes on behind custody.
	noCustody bool
}

func mac(n int) chip.MAC {
	m := chip.MAC{0x24, 0x0A, 0xC4}
	m[3], m[4], m[5] = byte(n>>16), byte(n>>8), byte(n)
	return m
}

func simMAC(n int) chip.MAC { m := mac(n); m[0] |= 2; return m }

// fingerprint of the key that run makes for a unit.
func fingerprint(m chip.MAC, key byte) string {
	raw := make([]byte, 32)
	copy(raw, m[:])
	raw[31] = key
	sum := secret.Fingerprint(raw)
	return hex.EncodeToString(sum[:])
}

func blankFuses(m chip.MAC) []efuse.BlockWords {
	t, err := table.For("esp32c3")
	if err != nil {
		panic(err)
	}
	var out []efuse.BlockWords
	for _, b := range t.Blocks() {
		words := make([]string, b.Words)
		for i := range words {
			words[i] = "00000000"
		}
		if b.Index == 1 {
			words[0] = hex.EncodeToString(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(m[2:])))
			words[1] = fmt.Sprintf("0000%02x%02x", m[0], m[1])
		}
		out = append(out, efuse.BlockWords{Block: b.Name, Words: words})
	}
	return out
}

func burnedFuses(m chip.MAC) []efuse.BlockWords {
	out := blankFuses(m)
	out[0].Words = []string{"00800104", "00180601", "041c0000", "00000000", "00000002", "00000000"}
	return out
}

var noErrors = []efuse.ErrorRegister{{Name: "REPEAT_ERR0"}, {Name: "REPEAT_ERR1"}, {Name: "REPEAT_ERR2"}, {Name: "REPEAT_ERR3"}, {Name: "REPEAT_ERR4"}, {Name: "RS_ERR0"}, {Name: "RS_ERR1"}}

// run writes the entries of one attempt.
func (b *book) run(r run) {
	b.t.Helper()
	if r.slot == "" {
		r.slot = "A1"
	}
	if r.recipe == "" {
		r.recipe = "sensor"
	}
	if r.operator == "" {
		r.operator = "ada"
	}
	if r.stop == "" {
		r.stop = "proof"
	}
	job := fmt.Sprintf("%016x", binary.BigEndian.Uint64(append([]byte{0, byte(len(r.recipe))}, r.mac[:]...)))
	start := b.now
	sum := strings.Repeat("ab", 32)
	fp := fingerprint(r.mac, r.key)
	ref := "local:x/" + r.mac.String()
	if r.escrow {
		ref = "escrow:x/" + r.mac.String()
	}
	steps := []struct {
		name     string
		intent   map[string]any
		observed map[string]any
	}{
		{"connect", map[string]any{
			"port": "/dev/ttyUSB0", "recipe": r.recipe, "recipe_revision": 3, "recipe_sha256": sum, "profile": "release", "lot": r.lot, "serial": r.serial, "tool": "provisiond test",
		}, map[string]any{"chip": "esp32c3"}},
		{"inspect", map[string]any{}, map[string]any{
			"chip": "esp32c3", "revision": "v0.4", "efuse": blankFuses(r.mac), "efuse_errors": noErrors, "flash_id": "c8 40 16", "flash_size": 4 << 20, "simulated": r.mac.LocallyAdministered(),
		}},
		{"plan", map[string]any{"recipe": r.recipe, "recipe_revision": 3, "profile": "release"}, map[string]any{"plan_sha256": sum, "table_sha256": sum, "bits": 15, "continues": false, "advisories": []string{"AR2022-006"}}},
		{"flash", map[string]any{"baud": 921600}, map[string]any{"baud": 921600, "bytes": 43424}},
		{"verify-flash", map[string]any{"regions": 1}, map[string]any{"regions": []Image{{Name: "bootloader", Offset: 0, Length: 6224, Encrypted: true, MD5: strings.Repeat("cd", 16), PlaintextSHA256: sum, CiphertextSHA256: sum}}}},
		{"custody", map[string]any{"key_fingerprint": fp}, map[string]any{"key_fingerprint": fp, "key_ref": ref, "key_version": 1, "store": "x"}},
		{"burn-key", map[string]any{"key_fingerprint": fp, "block": "KEY0", "plan_sha256": sum}, map[string]any{"report": map[string]any{"stage": "burn-key"}}},
		{"boot-check", map[string]any{"expect": "running"}, map[string]any{"text": "ESP-ROM:esp32c3\napp running\n", "text_hex": "00"}},
		{"close", map[string]any{"fuse": "ENABLE_SECURITY_DOWNLOAD"}, map[string]any{"closing": provision.Closing{Fuse: "ENABLE_SECURITY_DOWNLOAD", Evidence: "security-flags", Raw: "8404"}}},
		{"proof", map[string]any{"expect": "running"}, map[string]any{"text": "ESP-ROM:esp32c3\napp running\n", "text_hex": "00"}},
	}
	burning := false
	var known chip.MAC
	jobKnown := ""
	for _, s := range steps {
		if s.name == "custody" && r.noCustody {
			continue
		}
		s.intent["operator"], s.observed["operator"] = r.operator, r.operator
		b.add(r.slot, known, jobKnown, s.name, journal.KindIntent, s.intent)
		burning = burning || s.name == "burn-key"
		last := s.name == r.stop
		if last && r.verdict == "" {
			return
		}
		s.observed["outcome"] = "done"
		if last && r.verdict != provision.Pass {
			s.observed["outcome"], s.observed["error"] = "failed", r.reason
		}
		if s.name == "inspect" {
			known, jobKnown = r.mac, job
		}
		b.add(r.slot, known, jobKnown, s.name, journal.KindObserved, s.observed)
		if last {
			break
		}
	}
	if r.ms == 0 {
		r.ms = 5000
	}
	b.now = start.Add(time.Duration(r.ms) * time.Millisecond)
	body := map[string]any{
		"verdict": r.verdict, "cause": r.cause, "reason": r.reason, "next_step": "", "one_way_begun": burning, "elapsed_ms": r.ms, "operator": r.operator,
		"efuse": blankFuses(r.mac), "efuse_errors": noErrors,
	}
	if r.verdict == provision.Pass {
		body["efuse"] = burnedFuses(r.mac)
		body["closing"] = provision.Closing{Fuse: "ENABLE_SECURITY_DOWNLOAD", Evidence: "security-flags", Raw: "8404"}
	}
	b.add(r.slot, known, jobKnown, "verdict", journal.KindVerdict, body)
	b.now = b.now.Add(3 * time.Second)
}

func projectAll(t testing.TB, books ...*book) *Projection {
	t.Helper()
	var all []Entries
	for _, b := range books {
		all = append(all, b.all())
	}
	p, err := Project(all...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
