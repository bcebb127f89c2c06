package efuse_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/coding"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// BLOCK0 after the whole hybrid list and after the last fuse (esp-facts F.5).
var f5 = map[string][2][]uint32{
	"esp32":   {{0x07f10088, 0, 0, 0, 0, 0xf0000000, 0x000003c4}, {0x0ff10088, 0, 0, 0, 0, 0xf0000000, 0x000003c4}},
	"esp32c3": {{0x00800104, 0x00180601, 0x041c0000, 0, 0x00000002, 0}, {0x00800104, 0x00180601, 0x041c0000, 0, 0x00000022, 0}},
}

// keyWords is the key 00..1f in the registers (esp-facts B.9).
var keyWords = []uint32{0x1c1d1e1f, 0x18191a1b, 0x14151617, 0x10111213, 0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203}

func TestWholeWay(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, name)
			f.obeysSDM = true
			base := slices.Clone(f.cells[0])
			cp := check(t, f, stages(f.m)...)
			key := key00(32)
			keyBlock := map[string]int{"esp32": 1, "esp32c3": 4}[name]
			for i, st := range cp.Stages() {
				var k *secret.Bytes
				if len(st.Keys) > 0 {
					k = key
				}
				rep, err := efuse.Burn(t.Context(), f, f.m, cp, i, k)
				if err != nil {
					t.Fatalf("stage %s: %v", st.Name, err)
				}
				for _, b := range rep.Burns {
					if b.Attempts != 1 {
						t.Errorf("stage %s: %+v", st.Name, b)
					}
				}
				if i == 0 {
					if !slices.Equal(f.shown[keyBlock], keyWords) {
						t.Errorf("key reads %08x", f.shown[keyBlock])
					}
					want := secret.Fingerprint(mustBytes(t, key))
					if ks, _ := rep.After.KeyBlock(st.Keys[0].Block); ks.Fingerprint != want || ks.Free || ks.ReadProtected {
						t.Errorf("%+v, want fingerprint %x", ks, want)
					}
				}
				if i == 1 {
					ks, _ := rep.After.KeyBlock(cp.Stages()[0].Keys[0].Block)
					if !ks.Zero || ks.Free || !ks.ReadProtected || !ks.WriteProtected || name == "esp32c3" && !ks.PurposeWriteProtected {
						t.Errorf("after protection: %+v", ks)
					}
				}
				if final := i == len(stages(f.m))-1; final != cp.Final(i) || rep.LoaderLost != (final && name == "esp32c3") || (rep.After == nil) != rep.LoaderLost {
					t.Errorf("stage %s: final %t, lost %t, after %v", st.Name, cp.Final(i), rep.LoaderLost, rep.After)
				}
				if i == len(stages(f.m))-2 {
					assertWords(t, "hybrid", f.cells[0], base, f5[name][0])
					if err := cp.Expected(i).Verify(read(t, f)); err != nil {
						t.Error(err)
					}
				}
			}
			assertWords(t, "closed", f.cells[0], base, f5[name][1])
			if !slices.Equal(f.cells[keyBlock][:8], keyWords) {
				t.Errorf("key block holds %08x", f.cells[keyBlock])
			}
			// No key is left where the next one on the line could read it.
			for addr, v := range f.regs {
				if f.m.SensitiveEFuse(addr) && v != 0 {
					t.Errorf("register 0x%08x still holds 0x%08x", addr, v)
				}
			}
		})
	}
}

func mustBytes(t *testing.T, s *secret.Bytes) (out []byte) {
	t.Helper()
	if err := s.Use(func(b []byte) error { out = slices.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func assertWords(t *testing.T, what string, got, base, want []uint32) {
	t.Helper()
	for i := range want {
		if base[i]&want[i] != 0 || got[i] != base[i]|want[i] {
			t.Errorf("%s: word %d is %08x, want %08x on top of %08x", what, i, got[i], want[i], base[i])
		}
	}
}

// A burn writes the registers in the vendor's order and with the vendor's values.
//
// Ours differs on purpose: every Burn begins with a refresh of its own; the
// parity of the key is cleared from CHECK_VALUE after the burn; on the ESP32 the
// WDATA registers of the other blocks are cleared before and the block's own
// after, since a burn command acts on all of them (ESP-IDF does so too).
func TestTranscripts(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, name)
			f.obeysSDM = true
			vendor := readTranscript(t, f.m)
			if len(vendor) != 5 {
				t.Fatalf("%d tool calls in the transcript", len(vendor))
			}
			cp := check(t, f, stages(f.m)...)
			var ours [][]regWrite
			for i := range cp.Stages() {
				f.log = nil
				var key *secret.Bytes
				if i == 0 {
					key = key00(32)
				}
				if i > 1 { // the vendor's tool was called again, after a reset
					for _, r := range []uint32{f.m.EFuse.DACConf, f.m.EFuse.Clk, f.m.EFuse.WrTimConf1, f.m.EFuse.WrTimConf2} {
						f.regs[r] = 0
					}
				}
				if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, key); err != nil {
					t.Fatal(err)
				}
				if len(f.log) < 2 || f.log[0].value != 0x5AA5 || f.log[1].value != 1 {
					t.Fatalf("the burn does not begin with a refresh: %v", f.log[:2])
				}
				ours = append(ours, f.log[2:])
			}
			// The vendor's burn-key is our stages key and protect.
			ours = append([][]regWrite{slices.Concat(ours[0], ours[1])}, ours[2:]...)
			for i := range vendor {
				v, o := normalise(f.m, vendor[i]), normalise(f.m, ours[i])
				for j := range max(len(v), len(o)) {
					if j >= len(v) || j >= len(o) || v[j] != o[j] {
						t.Fatalf("call %d, write %d of %d and %d: vendor %x, ours %x", i, j, len(v), len(o), at(v, j), at(o, j))
					}
				}
			}
		})
	}
}

func at(l []regWrite, i int) any {
	if i < len(l) {
		return l[i]
	}
	return "none"
}

// normalise leaves the writes out that TestTranscripts says are different.
func normalise(m chip.Model, log []regWrite) (out []regWrite) {
	for _, w := range log {
		off := w.addr - m.EFuse.Base
		clearing := w.value == 0 && (m.EFuse.Kind == chip.EFuseESP32 && m.Name == "esp32" && (off >= 0x1C && off < 0x38 || off >= 0x98 && off < 0xF8) ||
			m.EFuse.Kind == chip.EFuseRS && off >= 0x20 && off < 0x2C)
		if !clearing {
			out = append(out, w)
		}
	}
	return out
}

func readTranscript(t *testing.T, m chip.Model) (calls [][]regWrite) {
	t.Helper()
	file, err := os.Open("testdata/" + m.Name + "-writes.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		switch {
		case strings.HasPrefix(sc.Text(), "# ===="):
			calls = append(calls, nil)
		case strings.HasPrefix(sc.Text(), "> WRITE_REG"):
			frame, err := hex.DecodeString(strings.Fields(sc.Text())[2])
			if err != nil {
				t.Fatal(err)
			}
			var group [8]uint32
			for i := range (len(frame) - 8) / 4 {
				group[i] = binary.LittleEndian.Uint32(frame[8+4*i:])
			}
			// A second group is the dummy write to UART_DATE that only delays.
			if group[2] != 0xFFFFFFFF || group[4] != 0 && (group[4] != m.UART.Date || group[6] != 0) {
				t.Fatalf("unexpected frame %x", frame)
			}
			calls[len(calls)-1] = append(calls[len(calls)-1], regWrite{group[0], group[1], time.Duration(group[7]) * time.Microsecond})
		}
	}
	return calls
}

// A 24-byte key for the 3/4 scheme: reversed, then encoded.
func TestKey34(t *testing.T) {
	f := newFake(t, "esp32")
	f.setField("CODING_SCHEME", 1)
	cp := check(t, f, stages(f.m)...)
	if n := cp.KeyLens(0); !slices.Equal(n, []int{24}) {
		t.Fatalf("the key has %d bytes", n)
	}
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err == nil || f.burns != 0 {
		t.Fatal("a 32-byte key was taken:", err)
	}
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(24)); err != nil {
		t.Fatal(err)
	}
	var raw [24]byte
	for i := range raw {
		raw[i] = byte(23 - i)
	}
	code := coding.Encode34(&raw)
	var got [32]byte
	for i, w := range f.cells[1] {
		binary.LittleEndian.PutUint32(got[4*i:], w)
	}
	if got != code {
		t.Errorf("burned %x, want %x", got, code)
	}
	fp, err := efuse.KeyFingerprint(key00(24))
	if err != nil {
		t.Fatal(err)
	}
	if k, _ := read(t, f).KeyBlock("BLOCK1"); k.Fingerprint != fp {
		t.Errorf("%+v", k)
	}
}

func TestCrystal(t *testing.T) {
	f := newFake(t, "esp32")
	f.mhz = 26
	f.regs[f.m.ROM.ApproxFreqReg] = 832 << 7 // 832 · 15625 · 80 / 40 = 26 MHz
	if _, err := efuse.Burn(t.Context(), f, f.m, check(t, f, stages(f.m)...), 0, key00(32)); err != nil {
		t.Error(err)
	}
	for _, bad := range []uint32{0, 400 << 7, 3000 << 7} {
		f := newFake(t, "esp32")
		f.regs[f.m.ROM.ApproxFreqReg] = bad
		_, err := efuse.Burn(t.Context(), f, f.m, check(t, f, stages(f.m)...), 0, key00(32))
		if err == nil || !strings.Contains(err.Error(), "crystal") || f.burns != 0 {
			t.Errorf("0x%x: %v, %d burns", bad, err, f.burns)
		}
	}
}

// Bits that do not take at once are burned again with the same data.
func TestWeakBits(t *testing.T) {
	for _, c := range []struct {
		name  string
		stage int
		weak  map[[2]int]int
		tries int  // of the first burn
		fails bool // after three
	}{
		{"key bit", 0, map[[2]int]int{{4, 2}: 1}, 2, false},
		{"key bit, twice", 0, map[[2]int]int{{4, 2}: 2}, 3, false},
		{"parity bit", 0, map[[2]int]int{{4, 32*8 + 1}: 1}, 2, false},
		{"dead key bit", 0, map[[2]int]int{{4, 2}: 9}, 3, true},
		{"dead parity bit", 0, map[[2]int]int{{4, 32*8 + 1}: 9}, 3, true},
		{"purpose", 0, map[[2]int]int{{0, 90}: 1}, 1, false},
		{"fuse", 2, map[[2]int]int{{0, 52}: 1}, 2, false},
		{"dead fuse", 2, map[[2]int]int{{0, 52}: 9}, 3, true},
		{"last fuse", 5, map[[2]int]int{{0, 133}: 1}, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, "esp32c3")
			cp := check(t, f, stages(f.m)...)
			for i := range c.stage {
				var key *secret.Bytes
				if i == 0 {
					key = key00(32)
				}
				if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, key); err != nil {
					t.Fatal(err)
				}
			}
			f.weak = c.weak
			var key *secret.Bytes
			if c.stage == 0 {
				key = key00(32)
			}
			rep, err := efuse.Burn(t.Context(), f, f.m, cp, c.stage, key)
			if rep.Burns[0].Attempts != c.tries {
				t.Errorf("%d attempts, want %d", rep.Burns[0].Attempts, c.tries)
			}
			var be *efuse.BurnError
			if errors.As(err, &be) != c.fails || (err != nil) != c.fails {
				t.Fatalf("error %v", err)
			}
			if c.fails {
				if be.Attempts != 3 || len(rep.Burns) != 1 {
					t.Errorf("%+v, and %d blocks were touched", be, len(rep.Burns))
				}
				if c.name == "dead fuse" && (len(be.Missing) != 1 || be.Missing[0].Field != "DIS_DOWNLOAD_MANUAL_ENCRYPT") {
					t.Errorf("missing %v", be.Missing)
				}
				if c.stage == 0 && (f.field("KEY_PURPOSE_0") != 0 || len(be.Missing) != 0) {
					t.Errorf("BLOCK0 was touched after the key had failed, or key bits were named: %v", be)
				}
			}
		})
	}
}

// What stands in the programming registers is compared before the command: a
// damaged write burns nothing, and no key stays there.
func TestReadbackBeforeBurn(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		for _, damage := range []string{"data", "check", "other block", "timing", "conf"} {
			t.Run(name+" "+damage, func(t *testing.T) {
				f := newFake(t, name)
				ef := f.m.EFuse
				addr := map[string]uint32{"data": ef.PgmData + 8, "check": ef.CheckValue + 4, "timing": ef.WrTimConf2, "conf": ef.Conf}[damage]
				if name == "esp32" {
					addr = map[string]uint32{"data": ef.Base + 0x9C, "other block": ef.Base + 0xD8, "timing": ef.Clk, "conf": ef.Conf}[damage]
				}
				if addr == 0 {
					return // not on this controller
				}
				cp := check(t, f, stages(f.m)...)
				f.onWrite = func(a, v uint32) (uint32, error) {
					if a == addr && v != 0x5AA5 && (v != 0 || damage == "other block") {
						return v ^ 4, nil
					}
					return v, nil
				}
				before := fmt.Sprint(f.cells)
				_, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32))
				var ind *efuse.IndeterminateError
				if !errors.Is(err, efuse.ErrRegister) || errors.As(err, &ind) || f.burns != 0 || fmt.Sprint(f.cells) != before {
					t.Errorf("%v, %d burns", err, f.burns)
				}
				for a, v := range f.regs {
					if f.m.SensitiveEFuse(a) && v&^4 != 0 {
						t.Errorf("0x%08x holds 0x%08x", a, v)
					}
				}
			})
		}
	}
}

// From the burn command on, an error means unknown; before it, nothing happened.
func TestIndeterminate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the pauses of idle pass at once
		broken := errors.New("broken line")
		for _, name := range []string{"esp32", "esp32c3"} {
			// count the register accesses of a good burn, then break each of them
			f := newFake(t, name)
			cp := check(t, f, stages(f.m)...)
			n := 0
			f.onRead = func(_, v uint32) (uint32, error) { n++; return v, nil }
			f.onWrite = func(_, v uint32) (uint32, error) { n++; return v, nil }
			if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err != nil {
				t.Fatal(err)
			}
			total := n
			for _, happens := range []bool{false, true} {
				for at := 1; at <= total; at += 11 {
					f := newFake(t, name)
					cp := check(t, f, stages(f.m)...)
					n := 0
					fault := func(v uint32) (uint32, error) {
						if n++; n < at {
							return v, nil
						}
						if n == at && happens {
							return v, broken // a write that arrives, its answer lost
						}
						return 0, broken
					}
					f.onRead = func(_, v uint32) (uint32, error) { return fault(v) }
					f.onWrite = func(_, v uint32) (uint32, error) { return fault(v) }
					_, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32))
					if !errors.Is(err, broken) {
						t.Fatalf("%s at %d: %v", name, at, err)
					}
					var ind *efuse.IndeterminateError
					sent := slices.ContainsFunc(f.log, func(w regWrite) bool { return w.addr == f.m.EFuse.Cmd && w.value&2 != 0 })
					if errors.As(err, &ind) != sent {
						t.Fatalf("%s at %d: sent %t, %v", name, at, sent, err)
					}
				}
			}
		}
	})
}

// The context is used as it is, and its end after the command is unknown too.
func TestContextEnds(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.obeysSDM = true
	cp := check(t, f, efuse.Stage{Name: "close", Set: []chip.Assignment{{Field: "DIS_DOWNLOAD_MODE", Value: 1}}})
	ctx, cancel := context.WithCancel(t.Context())
	f.onWrite = func(a, v uint32) (uint32, error) {
		if a == f.m.EFuse.Cmd && f.burns > 0 {
			cancel()
		}
		return v, nil
	}
	rep, err := efuse.Burn(ctx, f, f.m, cp, 0, nil)
	var ind *efuse.IndeterminateError
	if !errors.As(err, &ind) || !errors.Is(err, context.Canceled) || rep.LoaderLost || rep.After != nil {
		t.Errorf("%v, %+v", err, rep)
	}
}

// The last fuse: a loader that still shows registers is not lost.
func TestFinalFuseNoise(t *testing.T) {
	f := newFake(t, "esp32c3")
	cp := check(t, f, efuse.Stage{Name: "close", Set: []chip.Assignment{{Field: "ENABLE_SECURITY_DOWNLOAD", Value: 1}}})
	n := uint32(0)
	f.onRead = func(a, v uint32) (uint32, error) {
		if f.burns > 0 && a == f.m.EFuse.Base+0x2C {
			n++
			return n, nil
		}
		return v, nil
	}
	rep, err := efuse.Burn(t.Context(), f, f.m, cp, 0, nil)
	var ind *efuse.IndeterminateError
	if !errors.As(err, &ind) || !errors.Is(err, efuse.ErrNoise) || rep.LoaderLost {
		t.Errorf("%v, %+v", err, rep)
	}
}

// With damaged reads a burn is right or an error. The chip never holds anything
// else than planned, and success is never claimed for something else.
func TestNoisyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the pauses of idle pass at once
		good, bad := 0, 0
		for seed := range uint64(60) {
			name := []string{"esp32", "esp32c3"}[seed%2]
			f := newFake(t, name)
			st := stages(f.m)[:5]
			cp := check(t, f, st...)
			rng := rand.New(rand.NewPCG(seed, 1))
			every := []int{40, 400, 4000}[seed%3]
			f.onRead = func(_, v uint32) (uint32, error) {
				if rng.IntN(every) == 0 {
					return v ^ 1<<rng.IntN(32), nil
				}
				return v, nil
			}
			base := slices.Clone(f.cells[0])
			var err error
			for i := range st {
				var key *secret.Bytes
				if i == 0 {
					key = key00(32)
				}
				if _, err = efuse.Burn(t.Context(), f, f.m, cp, i, key); err != nil {
					break
				}
			}
			for w, v := range f5[name][0] {
				if f.cells[0][w]&^(base[w]|v) != 0 {
					t.Errorf("seed %d: word %d holds %08x", seed, w, f.cells[0][w])
				}
			}
			if err != nil {
				bad++
				continue
			}
			good++
			assertWords(t, fmt.Sprint("seed ", seed), f.cells[0], base, f5[name][0])
			block := map[string]int{"esp32": 1, "esp32c3": 4}[name]
			if !slices.Equal(f.cells[block][:8], keyWords) {
				t.Errorf("seed %d: key is %08x", seed, f.cells[block])
			}
		}
		if good == 0 {
			t.Errorf("%d good, %d bad: the noise decides nothing here", good, bad)
		}
	})
}

func TestReadNoise(t *testing.T) {
	f := newFake(t, "esp32c3")
	n := uint32(0)
	f.onRead = func(a, v uint32) (uint32, error) {
		if a == f.m.EFuse.Base+0x48 {
			n++
			return n, nil
		}
		return v, nil
	}
	if _, err := efuse.Read(t.Context(), f, f.m); !errors.Is(err, efuse.ErrNoise) || n != 8 {
		t.Errorf("%v after %d reads", err, n)
	}
}

func TestBusyForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "esp32c3")
		f.onRead = func(a, v uint32) (uint32, error) {
			if a == f.m.EFuse.Cmd {
				return 2, nil
			}
			return v, nil
		}
		start := time.Now()
		_, err := efuse.Read(t.Context(), f, f.m)
		if took := time.Since(start); !errors.Is(err, efuse.ErrBusy) || took < 250*time.Millisecond || took > 260*time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// Idle needs two idle reads in a row, also on a line so slow that these take
// longer than the limit.
func TestSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "esp32")
		f.onRead = func(_, v uint32) (uint32, error) {
			time.Sleep(150 * time.Millisecond) // the line, in fake time
			return v, nil
		}
		if _, err := efuse.Read(t.Context(), f, f.m); err != nil {
			t.Error(err)
		}
	})
}

// A burn begins with a look: nothing is burned on a chip that has changed.
func TestLooksFirst(t *testing.T) {
	for name, change := range map[string]func(f *fake){
		"foreign bit":   func(f *fake) { f.setField("DIS_TWAI", 1) },
		"foreign key":   func(f *fake) { f.put(5, keyWords); f.load() },
		"another board": func(f *fake) { f.put(1, []uint32{0xa1c9c3b4, 0x7cdf, 0, 0x03100000}); f.load() },
		"damage":        func(f *fake) { f.cells[2][9] ^= 1; f.load() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "esp32c3")
			cp := check(t, f, stages(f.m)...)
			change(f)
			_, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32))
			var unexpected *efuse.UnexpectedBitsError
			if err == nil || f.burns != 0 || errors.As(err, &unexpected) == (name == "another board") {
				t.Errorf("%v, %d burns", err, f.burns)
			}
			if name == "foreign bit" && (len(unexpected.Outside) != 1 || unexpected.Outside[0].Field != "DIS_TWAI") {
				t.Errorf("%+v", unexpected)
			}
			if name == "another board" && !errors.Is(err, efuse.ErrOtherChip) {
				t.Error(err)
			}
		})
	}
}

func TestBurnArguments(t *testing.T) {
	f := newFake(t, "esp32c3")
	cp := check(t, f, stages(f.m)...)
	other, _ := chip.ByName("esp32")
	wiped := key00(32)
	wiped.Wipe()
	for name, burn := range map[string]func() error{
		"unchecked plan": func() error { _, err := efuse.Burn(t.Context(), f, f.m, efuse.CheckedPlan{}, 0, nil); return err },
		"other chip":     func() error { _, err := efuse.Burn(t.Context(), f, other, cp, 0, key00(32)); return err },
		"stage":          func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 9, nil); return err },
		"negative stage": func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, -1, nil); return err },
		"no key":         func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, nil); return err },
		"wiped key":      func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, wiped); return err },
		"short key":      func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(31)); return err },
		"needless key":   func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 1, key00(32)); return err },
		"too early":      func() error { _, err := efuse.Burn(t.Context(), f, f.m, cp, 2, nil); return err },
	} {
		if err := burn(); err == nil || f.burns != 0 {
			t.Errorf("%s: %v, %d burns", name, err, f.burns)
		}
	}
}

// An interrupted key burn leaves part of the key. It is completed with the same
// key only.
func TestResume(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.put(4, keyWords)
	f.cells[4][2] &^= 0x15
	f.cells[4][9] = 0
	f.load()
	st := stages(f.m)
	if _, err := efuse.NewPlan(f.m, st...).Check(read(t, f)); err == nil {
		t.Fatal("a key block in use passes")
	}
	st[0].Keys[0].Resume = true
	cp := check(t, f, st...)
	foreign := secret.New(slices.Repeat([]byte{0xA5}, 32))
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, foreign); !errors.Is(err, efuse.ErrKeyMismatch) || f.burns != 0 {
		t.Fatalf("%v, %d burns", err, f.burns)
	}
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.shown[4], keyWords) || f.field("KEY_PURPOSE_0") != 4 {
		t.Errorf("%08x", f.shown[4])
	}
	// complete already: nothing is burned, and the plan says so
	burns := f.burns
	rep, err := efuse.Burn(t.Context(), f, f.m, check(t, f, st...), 0, key00(32))
	if err != nil || f.burns != burns || len(rep.Burns) != 0 {
		t.Errorf("%v, %+v", err, rep)
	}
}

// A key is burned three times at most, over all calls that resume its burn.
func TestKeyBurnsInAll(t *testing.T) {
	for spent, want := range []struct {
		tries int
		fails bool
	}{{2, false}, {2, false}, {1, true}, {0, true}} {
		f := newFake(t, "esp32c3")
		f.weak[[2]int{4, 2}] = 1 // of the burns that are left the first does not take it
		st := stages(f.m)
		st[0].Keys[0].Resume, st[0].Keys[0].Spent = true, spent
		rep, err := efuse.Burn(t.Context(), f, f.m, check(t, f, st...), 0, key00(32))
		var bad *efuse.BurnError
		if errors.As(err, &bad) != want.fails || rep.Burns[0].Attempts != want.tries || bad != nil && bad.Attempts != 3 {
			t.Errorf("%d spent: %d attempts, %v", spent, rep.Burns[0].Attempts, err)
		}
	}
	st := stages(newFake(t, "esp32c3").m)
	st[0].Keys[0].Spent = 1
	f := newFake(t, "esp32c3")
	if _, err := efuse.NewPlan(f.m, st...).Check(read(t, f)); err == nil {
		t.Error("burns are spent on a key that is not resumed")
	}
}

// Power that was lost during a burn leaves bits whose copies disagree: one reads
// 0 and one 1. The same bits again mend them, and only a stage that resumes may.
func TestHalfBurnedBlock0(t *testing.T) {
	prepare := func(t *testing.T) *fake {
		f := newFake(t, "esp32c3")
		cp := check(t, f, stages(f.m)...)
		for i, key := range []*secret.Bytes{key00(32), nil} {
			if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, key); err != nil {
				t.Fatal(err)
			}
		}
		padJTAG, _ := f.tab.Field("DIS_PAD_JTAG")
		usbJTAG, _ := f.tab.Field("DIS_USB_JTAG")
		f.half = map[int]bool{padJTAG.Bits()[0]: true, usbJTAG.Bits()[0]: true}
		f.setField("DIS_USB_JTAG", 1)
		return f
	}
	resume := func(f *fake) []efuse.Stage {
		st := stages(f.m)[1:]
		st[1].Resume = true
		return st
	}
	t.Run("mended", func(t *testing.T) {
		f := prepare(t)
		var refused *efuse.CheckError
		if _, err := efuse.NewPlan(f.m, stages(f.m)[1:]...).Check(read(t, f)); !errors.As(err, &refused) || !strings.Contains(err.Error(), "DIS_PAD_JTAG") {
			t.Fatalf("a plan that does not resume: %v", err)
		}
		cp := check(t, f, resume(f)...)
		if cp.Hash() == check(t, newFake(t, "esp32c3"), stages(f.m)...).Hash() {
			t.Error("a plan that resumes has the hash of one that does not")
		}
		burns := f.burns
		for i := range 3 { // the first of them has nothing to do
			if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, nil); err != nil {
				t.Fatal(err)
			}
		}
		if len(f.half) != 0 || f.burns != burns+2 || len(read(t, f).BlockErrors()) != 0 {
			t.Errorf("half burned %v, %d burns, %v", f.half, f.burns-burns, read(t, f).BlockErrors())
		}
		if f.field("DIS_PAD_JTAG") != 1 || f.field("DIS_USB_JTAG") != 1 || f.field("SPI_BOOT_CRYPT_CNT") != 7 {
			t.Errorf("BLOCK0 %08x", f.cells[0])
		}
	})
	t.Run("not mended", func(t *testing.T) {
		f := prepare(t)
		cp := check(t, f, resume(f)...)
		padJTAG, _ := f.tab.Field("DIS_PAD_JTAG")
		f.weak[[2]int{0, padJTAG.Bits()[0]}] = 9
		rep, err := efuse.Burn(t.Context(), f, f.m, cp, 1, nil)
		var bad *efuse.BurnError
		if !errors.As(err, &bad) || rep.Burns[0].Attempts != 3 || len(bad.Errors) != 1 || f.field("SPI_BOOT_CRYPT_CNT") != 0 {
			t.Errorf("%v, %+v", err, rep)
		}
	})
	t.Run("outside the stage", func(t *testing.T) {
		f := prepare(t)
		twai, _ := f.tab.Field("DIS_TWAI")
		f.half[twai.Bits()[0]] = true
		f.load()
		if _, err := efuse.NewPlan(f.m, resume(f)...).Check(read(t, f)); err == nil || !strings.Contains(err.Error(), "DIS_TWAI") {
			t.Errorf("damage that no stage burns: %v", err)
		}
	})
	t.Run("after the check", func(t *testing.T) { // the look before the burn sees it too
		f := prepare(t)
		cp := check(t, f, resume(f)...)
		twai, _ := f.tab.Field("DIS_TWAI")
		f.half[twai.Bits()[0]] = true
		f.load()
		burns := f.burns
		var bad *efuse.UnexpectedBitsError
		if _, err := efuse.Burn(t.Context(), f, f.m, cp, 1, nil); !errors.As(err, &bad) || f.burns != burns {
			t.Errorf("%v, %d burns", err, f.burns-burns)
		}
	})
}

// Power lost between the steps of BLOCK0: the plan that is made from what the chip
// then shows burns the rest, and the chip is as if nothing had happened.
func TestPowerLostBetweenBlock0Steps(t *testing.T) {
	mixed := map[string]efuse.Stage{
		"esp32": {
			Name: "mixed", WriteProtect: []string{"FLASH_CRYPT_CNT"},
			Set: []chip.Assignment{{Field: "JTAG_DISABLE", Value: 1}, {Field: "FLASH_CRYPT_CNT", Value: 127}},
		},
		"esp32c3": {
			Name: "mixed", WriteProtect: []string{"SPI_BOOT_CRYPT_CNT", "DIS_ICACHE"},
			Set: []chip.Assignment{{Field: "DIS_PAD_JTAG", Value: 1}, {Field: "SPI_BOOT_CRYPT_CNT", Value: 7}},
		},
	}
	for name, stage := range mixed {
		whole := newFake(t, name)
		if _, err := efuse.Burn(t.Context(), whole, whole.m, check(t, whole, stage), 0, nil); err != nil {
			t.Fatal(err)
		}
		steps := whole.burns
		if steps != 3 {
			t.Fatalf("%s: %d steps", name, steps)
		}
		for done := 1; done < steps; done++ {
			f := newFake(t, name)
			off := false
			f.onWrite = func(addr, v uint32) (uint32, error) {
				if off = off || addr == f.m.EFuse.Cmd && v&2 != 0 && f.burns == done; off {
					return 0, errRefused
				}
				return v, nil
			}
			f.onRead = func(_, v uint32) (uint32, error) {
				if off {
					return 0, errRefused
				}
				return v, nil
			}
			var unknown *efuse.IndeterminateError
			if _, err := efuse.Burn(t.Context(), f, f.m, check(t, f, stage), 0, nil); !errors.As(err, &unknown) {
				t.Fatalf("%s, power lost after step %d: %v", name, done, err)
			}
			f.onRead, f.onWrite, f.busy = nil, nil, nil
			f.load()
			stage.Resume = true
			if _, err := efuse.Burn(t.Context(), f, f.m, check(t, f, stage), 0, nil); err != nil {
				t.Fatalf("%s, continued after step %d: %v", name, done, err)
			}
			if !slices.Equal(f.cells[0], whole.cells[0]) || f.burns != steps {
				t.Errorf("%s, after step %d: BLOCK0 %08x, want %08x; %d burns", name, done, f.cells[0], whole.cells[0], f.burns)
			}
		}
	}
}

// Only the critical fuses come in the second step of BLOCK0, and a bit of WR_DIS
// that would lock one of them comes after it.
func TestBlock0Steps(t *testing.T) {
	f := newFake(t, "esp32c3")
	cp := check(t, f, efuse.Stage{
		Name: "mixed", WriteProtect: []string{"SPI_BOOT_CRYPT_CNT", "DIS_ICACHE"},
		Set: []chip.Assignment{{Field: "DIS_PAD_JTAG", Value: 1}, {Field: "SPI_BOOT_CRYPT_CNT", Value: 7}},
	})
	rep, err := efuse.Burn(t.Context(), f, f.m, cp, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range rep.Burns {
		got = append(got, b.Step+" "+strings.Join(b.Written, " "))
	}
	want := []string{
		"fields 00000000 00080000 00000000 00000000 00000000 00000000",
		"critical 00000004 00000000 001c0000 00000000 00000000 00000000",
		"locks 00000010 00000000 00000000 00000000 00000000 00000000",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Neither a report nor a snapshot nor an error shows the key.
func TestNothingShowsTheKey(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		f := newFake(t, name)
		cp := check(t, f, stages(f.m)...)
		key := secret.New(slices.Repeat([]byte{0xDE, 0xAD, 0xBE, 0xEF}, 8))
		rep, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key)
		if err != nil {
			t.Fatal(err)
		}
		s := read(t, f)
		d, err := efuse.Diff(cpBase(t, name), s)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, v := range []any{rep, s, cp, d, efuse.Describe(s), cp.Bits(), cp.Expected(0), struct{ s *efuse.Snapshot }{s}, *s} {
			j, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&text, "%s %v %+v %#v %s %x %q\n", j, v, v, v, v, v, v)
		}
		if err := efuse.Describe(s).Text(&text); err != nil {
			t.Fatal(err)
		}
		all := strings.ToLower(text.String())
		for _, form := range []string{"deadbeef", "efbeadde", "3735928559", "4022250974", "222, 173", "222 173", "239 190", "de ad be ef", "3q2+7w"} {
			if strings.Contains(all, form) {
				t.Errorf("%s: the key shows as %q", name, form)
			}
		}
		fp, _ := efuse.KeyFingerprint(key)
		if !strings.Contains(all, "fp:"+fp.String()) {
			t.Errorf("%s: no fingerprint", name)
		}
	}
}

func cpBase(t *testing.T, name string) *efuse.Snapshot { return read(t, newFake(t, name)) }
