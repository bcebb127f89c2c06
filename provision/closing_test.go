package provision_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// closing profiles of each chip: on the ESP32 release is closed.
var closings = []struct {
	chip, profile, fuse, evidence string
	bit                           espsim.Bit
}{
	{"esp32", "release", "UART_DOWNLOAD_DIS", provision.EvidenceRefusal, espsim.Bit{Block: 0, Bit: 27}},
	{"esp32", "closed", "UART_DOWNLOAD_DIS", provision.EvidenceRefusal, espsim.Bit{Block: 0, Bit: 27}},
	{"esp32c3", "release", "ENABLE_SECURITY_DOWNLOAD", provision.EvidenceFlags, espsim.Bit{Block: 0, Bit: 4*32 + 5}},
	{"esp32c3", "closed", "DIS_DOWNLOAD_MODE", provision.EvidenceRefusal, espsim.Bit{Block: 0, Bit: 4 * 32}},
}

func eachClosing(t *testing.T, f func(t *testing.T, chipName, profile string, i int)) {
	t.Helper()
	for i, c := range closings {
		inBubble(t, c.chip+"/"+c.profile, func(t *testing.T) { f(t, c.chip, c.profile, i) })
	}
}

// TestClosingEvidence: which fuse, which kind of evidence, and the bytes that the
// chip sent. Profiles with an open loader have none.
func TestClosingEvidence(t *testing.T) {
	eachClosing(t, func(t *testing.T, name, profile string, i int) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		r := b.run(t.Context(), c, sampleJob(t, name, profile))
		wantPass(t, r)
		want := closings[i]
		if r.Closing == nil || r.Closing.Fuse != want.fuse || r.Closing.Evidence != want.evidence {
			t.Fatalf("closing %+v, want %+v", r.Closing, want)
		}
		raw, err := hex.DecodeString(r.Closing.Raw)
		if err != nil {
			t.Fatal(err)
		}
		switch want.evidence {
		case provision.EvidenceRefusal:
			if !bytes.HasPrefix(raw, model(t, name).ROM.DownloadDisabled) {
				t.Errorf("raw %q", raw)
			}
		case provision.EvidenceFlags:
			// Flags ENABLE_SECURITY_DOWNLOAD (2), DIS_PAD_JTAG (7) and DIS_DOWNLOAD_ICACHE (10),
			// crypt count 7, purposes XTS_AES_128_KEY and five times USER (esp-facts A.4).
			wantRaw := []byte{0x84, 0x04, 0, 0, 7, 4, 0, 0, 0, 0, 0}
			if len(raw) != 20 || !bytes.HasPrefix(raw, wantRaw) {
				t.Errorf("raw % x", raw)
			}
		}
		if loaderOpen(c) {
			t.Error("the loader is open")
		}
	})
	for _, name := range twoChips {
		for _, profile := range []string{"development", "hybrid"} {
			inBubble(t, name+"/"+profile, func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				r := b.run(t.Context(), c, sampleJob(t, name, profile))
				wantPass(t, r)
				if r.Closing != nil || !loaderOpen(c) {
					t.Errorf("closing %+v, %s", r.Closing, c.Status())
				}
			})
		}
	}
}

// mute makes the ROM's refusal unreadable.
type mute struct {
	rom.Port
	off bool
}

func (m *mute) Read(ctx context.Context, p []byte) (int, error) {
	n, err := m.Port.Read(ctx, p)
	if m.off && n > 0 {
		text := bytes.ReplaceAll(p[:n], []byte("Download mode is disabled"), []byte("~~~~~~~~~~~~~~~~~~~~~~~~~"))
		copy(p, text)
	}
	return n, err
}

// TestClosingReadBack: on the ESP32 the fuse that was read back before the reset is
// evidence too, where the ROM's refusal was not readable; a normal boot must still
// be seen.
func TestClosingReadBack(t *testing.T) {
	for _, dark := range []bool{false, true} {
		inBubble(t, fmt.Sprintf("dark=%v", dark), func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, "esp32")})
			m := &mute{}
			b.wrap = func(p rom.Port) rom.Port { m.Port = p; return m }
			b.at["close"] = func() { m.off = true }
			if dark {
				b.at["proof"] = func() { c.Power(false) }
			}
			r := b.run(t.Context(), c, sampleJob(t, "esp32", "release"))
			if r.Closing == nil || r.Closing.Evidence != provision.EvidenceReadBack || !strings.HasPrefix(r.Closing.Raw, "0ff10088") {
				t.Fatalf("closing %+v, %s: %s", r.Closing, r.Verdict, r.Reason)
			}
			if !dark {
				wantPass(t, r)
				return
			}
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "not seen to boot")
		})
	}
}

// TestSilenceAfterClosing: power or port go between the last fuse and the proof.
func TestSilenceAfterClosing(t *testing.T) {
	for what, cut := range map[string]func(c *espsim.Chip){
		"power off": func(c *espsim.Chip) { c.Power(false) },
		"unplugged": func(c *espsim.Chip) { c.Unplug() },
	} {
		eachClosing(t, func(t *testing.T, name, profile string, _ int) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			b.at["proof"] = func() { cut(c) }
			r := b.run(t.Context(), c, sampleJob(t, name, profile))
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "not seen to boot")
			if r.ExitCode() != 11 || r.Closing == nil {
				t.Errorf("%s: exit %d, closing %v", what, r.ExitCode(), r.Closing)
			}
			if strings.Contains(r.NextStep, "same job again") {
				t.Errorf("next step of a closed unit: %s", r.NextStep)
			}
		})
	}
}

// TestStuckLastFuse: the last fuse does not burn, so the loader stays open.
func TestStuckLastFuse(t *testing.T) {
	eachClosing(t, func(t *testing.T, name, profile string, i int) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{Stuck: []espsim.Bit{closings[i].bit}}})
		r := b.run(t.Context(), c, sampleJob(t, name, profile))
		wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "")
		if r.Closing != nil || !loaderOpen(c) {
			t.Errorf("closing %v, %s", r.Closing, c.Status())
		}
	})
}

// TestStuckFuse: a bit of any other stage does not burn.
func TestStuckFuse(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		tried := 0
		for w, bits := range f5[name]["release"] {
			for bit := range 32 {
				if bits>>bit&1 == 0 || slices.ContainsFunc(closings, func(c struct {
					chip, profile, fuse, evidence string
					bit                           espsim.Bit
				},
				) bool {
					return c.chip == name && c.bit.Bit == 32*w+bit
				}) {
					continue
				}
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name), Faults: espsim.Faults{Stuck: []espsim.Bit{{Block: 0, Bit: 32*w + bit}}}})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				r := b.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "missing")
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if r.Closing != nil || !loaderOpen(c) {
					t.Errorf("bit %d of word %d: closing %v, %s", bit, w, r.Closing, c.Status())
				}
				tried++
			}
		}
		t.Logf("%d stuck fuses", tried)
	})
}

// TestCutWhileClosing cuts power and port at every register write of the closing.
// A unit that was cut is never PASS; before the burn command nothing was closed and
// the same job goes on, after it nobody knows.
func TestCutWhileClosing(t *testing.T) {
	eachClosing(t, func(t *testing.T, name, profile string, i int) {
		job := sampleJob(t, name, profile)
		var from, to int
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		b.at["close"] = func() { from = c.RegisterWrites() }
		b.at["proof"] = func() { to = c.RegisterWrites() }
		wantPass(t, b.run(t.Context(), c, job))
		outcomes := map[string]int{}
		for n := from + 1; n <= to; n += stride(11) {
			for _, f := range []espsim.Faults{{PowerAtWrite: n}, {UnplugAtWrite: n}} {
				f.Seed = int64(n)
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name), Faults: f})
				before := c.Fuses()
				r := b.run(t.Context(), c, job)
				if r.Verdict == provision.Pass {
					t.Fatalf("%v: PASS", f)
				}
				if err := b.invariants(c, job, before, r); err != nil {
					t.Fatalf("%v: %v", f, err)
				}
				rest()
				c.Power(true)
				closed := c.Fuses()[0][closings[i].bit.Bit/32]>>(closings[i].bit.Bit%32)&1 != 0
				if closed && r.Verdict != provision.Quarantined {
					t.Fatalf("%v: the fuse is burned and the verdict %s: %s", f, r.Verdict, r.Reason)
				}
				outcome := string(r.Verdict)
				if r.Verdict != provision.Quarantined {
					r = b.again(c, job)
					wantPass(t, r)
					if err := b.invariants(c, job, before, r); err != nil {
						t.Fatalf("%v, continued: %v", f, err)
					}
					outcome += " then PASS"
				}
				outcomes[outcome]++
			}
		}
		t.Logf("%d register writes: %v", to-from, outcomes)
		if outcomes["QUARANTINED"] == 0 || len(outcomes) < 2 {
			t.Errorf("outcomes %v", outcomes)
		}
	})
}

// TestCloseIsTriedAgainWhenTheLoaderAnswers: the burn command of the last fuse was
// refused, or its reply was lost. A loader that answers in full tells that the fuse is
// not there, and it is burned again; a closed one is evidence.
func TestCloseIsTriedAgainWhenTheLoaderAnswers(t *testing.T) {
	files := newStationFiles(t)
	eachClosing(t, func(t *testing.T, name, profile string, i int) {
		var last operation
		for _, o := range recordedIn(t, files, tableRow{chip: name, profile: profile}, "") {
			if o.burn && o.step == "close" {
				last = o
			}
		}
		for _, h := range []how{fails, happens} {
			p := &faultPoint{operation: last, how: h}
			w := newWorld(t, files, name, profile, false, p)
			r := w.run(p, nil)
			w.restart()
			wantPass(t, r)
			if err := w.checkWorld(); err != nil {
				t.Error(err)
			}
			if r.Closing == nil || r.Closing.Fuse != closings[i].fuse {
				t.Errorf("%s: closing %+v", h, r.Closing)
			}
			w.close()
		}
	})
}

// TestOpenAfterClosing: the burn looked right, and a loader with all its commands
// answers afterwards. Another board stands for silicon that ignores its fuse.
func TestOpenAfterClosing(t *testing.T) {
	eachClosing(t, func(t *testing.T, name, profile string, _ int) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		open := b.board(espsim.Options{Model: model(t, name)}) // the same MAC
		s := &swap{other: port.FromSim(open, "sim://open"), at: 5}
		b.wrap = func(p rom.Port) rom.Port { s.Port = p; return s }
		r := b.run(t.Context(), c, sampleJob(t, name, profile))
		wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "loader is still open")
		if r.Closing != nil || open.Burns() != 0 {
			t.Errorf("closing %v, %d burns", r.Closing, open.Burns())
		}
	})
}

// TestWrongFlags: the flags that have to prove the closing are damaged on their way,
// now and then or always.
func TestWrongFlags(t *testing.T) {
	for reason, every := range map[string]int{"no sign of it": 2, "do not show release mode": 1} {
		inBubble(t, reason, func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, "esp32c3")})
			f := &flags{every: every}
			b.at["close"] = func() { f.on = true }
			b.wrap = func(p rom.Port) rom.Port { f.Port = p; return f }
			r := b.run(t.Context(), c, sampleJob(t, "esp32c3", "release"))
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, reason)
			if r.Closing != nil || f.n == 0 {
				t.Errorf("closing %v, %d replies", r.Closing, f.n)
			}
		})
	}
}

// flags makes the crypt count 5 in every nth reply to GET_SECURITY_INFO.
type flags struct {
	rom.Port
	on       bool
	n, every int
}

func (f *flags) Read(ctx context.Context, p []byte) (int, error) {
	n, err := f.Port.Read(ctx, p)
	// SLIP frame: C0, direction 01, opcode 14, length 2, value 4, then flags 4 and the count.
	if at := bytes.Index(p[:n], []byte{0xC0, 0x01, 0x14}); f.on && at >= 0 && at+13 < n {
		if f.n++; f.n%f.every == 0 {
			p[at+13] ^= 2
		}
	}
	return n, err
}
