package espsim

import (
	"errors"
	"math/bits"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
)

var faultSpecs = []string{
	"",
	"noise=1e-4,window=flash,refuse=03@5:0107,seed=7",
	"noise=0.0001,drop=1e-05",
	"window=burn,weak=0.5,stuck=4.17,stuck=0.3",
	"refuse=14,refuse=09@3,lose=0a@2,lose=08",
	"power=12,power-data=3,unplug=1000,unplug-write=4,ignore-reset=2,seed=-1",
}

func TestParseFaults(t *testing.T) {
	f, err := ParseFaults(faultSpecs[1])
	want := Faults{Noise: 1e-4, Window: WindowFlash, Refuse: []Refusal{{3, 5, [2]byte{1, 7}}}, Seed: 7}
	if diff := cmp.Diff(want, f); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if got := f.String(); got != "noise=0.0001,window=flash,refuse=03@5:0107,seed=7" {
		t.Errorf("written as %q", got)
	}
	for _, bad := range []string{
		"noise", "noise=", "noise=2", "noise=-1", "noise=NaN", "noise=1e-4,noise=1e-4", ",", "noise=1e-4,",
		"window=all", "refuse=", "refuse=100", "refuse=03@0", "refuse=03:01", "refuse=03:0005", "lose=zz", "power=0",
		"power=-1", "power=1.5", "stuck=4", "stuck=4.x", "stuck=256.0", "seed=x", "gremlins=3",
	} {
		if f, err := ParseFaults(bad); err == nil {
			t.Errorf("%q reads as %+v", bad, f)
		} else if key, _, _ := strings.Cut(bad, "="); !strings.Contains(err.Error(), key) {
			t.Errorf("%q: the error does not name the fault: %v", bad, err)
		}
	}
}

func FuzzParseFaults(f *testing.F) {
	for _, s := range faultSpecs {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		a, err := ParseFaults(spec)
		if err != nil {
			return
		}
		b, err := ParseFaults(a.String())
		if err != nil || !reflect.DeepEqual(a, b) || a.String() != b.String() {
			t.Errorf("%q is written as %q, which reads as %+v (%v), not %+v", spec, a.String(), b, err, a)
		}
	})
}

// faulty makes a chip with faults in the usual notation.
func faulty(t *testing.T, name, spec string) *Chip {
	t.Helper()
	f, err := ParseFaults(spec)
	if err != nil {
		t.Fatal(err)
	}
	return newChip(t, Options{Model: model(t, name), Faults: f})
}

func TestNoiseWindows(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		// With certain damage in the window the first command in it still goes
		// through, and what comes before it too.
		for spec, enter := range map[string]func(*host){
			"noise=1,window=flash": func(h *host) {
				if got := h.ask(opFlashBegin, h.begin(4096, 4, 1024, 0)); len(got) != 0 {
					t.Errorf("a reply under noise: %x", got)
				}
			},
			"noise=1,window=burn": func(h *host) {
				if got := h.ask(opWriteReg, words(m.EFuse.Conf, confRead, 0xFFFFFFFF, 0)); len(got) != 0 {
					t.Errorf("a reply under noise: %x", got)
				}
			},
		} {
			c := faulty(t, m.Name, spec)
			h := connect(t, c)
			h.attach()
			h.read(m.UART.ClkDiv)
			enter(h)
			h.received()
			if got := h.ask(opReadReg, words(m.UART.ClkDiv)); len(got) != 0 {
				t.Errorf("%s: a request under noise was answered: %x", spec, got)
			}
			h = connect(t, c) // a reset ends the window
			h.read(m.UART.ClkDiv)
		}
	})
}

// TestNoiseRate: the damage is as frequent as asked for, both ways.
func TestNoiseRate(t *testing.T) {
	for _, spec := range []string{"noise=0.01,seed=3", "drop=0.01,seed=3"} {
		c := faulty(t, "esp32c3", spec)
		h := &host{t, c}
		c.ResetInto(true) // a boot loop would print in between
		h.received()
		const n = 50_000
		c.emit(make([]byte, n))
		out := h.received()
		hit := n - len(out)
		for _, b := range out {
			if b != 0 {
				hit++
			}
		}
		if hit < n/200 || hit > n/50 {
			t.Errorf("%s: %d of %d bytes to the host hit", spec, hit, n)
		}
		// The other way: what of a frame stands in the chip's buffer.
		hit, sent := 0, 0
		for range 800 { // short, since a delimiter made by noise costs the rest
			const m = 50
			c.ld.in = slipReader{inside: true}
			for range m {
				c.receive(0)
			}
			hit += m - len(c.ld.in.buf)
			for _, b := range c.ld.in.buf {
				if b != 0 {
					hit++
				}
			}
			sent += m
		}
		if hit < sent/200 || hit > sent/50 {
			t.Errorf("%s: %d of %d bytes to the chip hit", spec, hit, sent)
		}
	}
}

func TestRefuseAndLose(t *testing.T) {
	c := faulty(t, "esp32c3", "refuse=0a@2,refuse=0a@3:0106,refuse=0b,lose=0d@2")
	h := connect(t, c)
	h.read(0)
	refusal(t, h.ask(opReadReg, words(0)), opReadReg)
	h.failure(opReadReg, words(0), errFailed)
	h.read(0)
	params := words(0, 4<<20, 0, 0, 0, 0)
	refusal(t, h.ask(opSPISetParams, params), opReadReg)
	refusal(t, h.ask(opSPISetParams, params), opReadReg)
	h.attach()
	if got := h.ask(opSPIAttach, words(0, 0)); len(got) != 0 {
		t.Errorf("the lost reply came: %x", got)
	}
	h.attach()
	if n := c.Requests(opReadReg); n != 4 {
		t.Errorf("%d READ_REG counted", n)
	}
}

// TestPowerInBurn: power that fails in the middle leaves some of the bits, others
// not, and the same seed the same ones.
func TestPowerInBurn(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		all := slices.Repeat([]uint32{0xFFFFFFFF}, 8)
		b := keyBlock(m)
		// Count the writes up to the burn.
		probe := newChip(t, Options{Model: m})
		h := connect(t, probe)
		h.timing()
		h.fill(b, all)
		h.write(m.EFuse.Conf, confProgram)
		at := probe.RegisterWrites() + 1

		run := func(seed int64, at int) *Chip {
			c := newChip(t, Options{Model: m, Faults: Faults{PowerAtWrite: at}, Seed: seed})
			h := connect(t, c)
			h.timing()
			h.fill(b, all)
			h.write(m.EFuse.Conf, confProgram)
			if got := h.ask(opWriteReg, words(m.EFuse.Cmd, cmdProgram|uint32(b)<<2, 0xFFFFFFFF, 0)); at != 0 && len(got) != 0 {
				t.Errorf("without power the chip answered %x", got)
			}
			return c
		}
		count := func(c *Chip) (n int) {
			for _, w := range c.fuse.cells[b][:8] {
				n += bits.OnesCount32(w)
			}
			return n
		}
		one, again, other := run(1, at), run(1, at), run(2, at)
		if n := count(one); n < 64 || n > 192 {
			t.Errorf("%d of 256 bits are left", n)
		}
		if one.State() != 0 {
			t.Errorf("the chip is %v", one.State())
		}
		if !cmp.Equal(one.fuse.cells, again.fuse.cells) || cmp.Equal(one.fuse.cells[b], other.fuse.cells[b]) {
			t.Error("the seed does not decide which bits are left")
		}
		// With power again the same burn completes it.
		one.Power(true)
		h = connect(t, one)
		h.burn(b, all...)
		same(t, "burned again", h.block(b), all)
		if n := count(run(1, 0)); n != 256 {
			t.Errorf("without the fault %d bits are left", n)
		}
	})
}

func TestPowerElsewhere(t *testing.T) {
	c := faulty(t, "esp32c3", "power=2")
	h := connect(t, c)
	h.write(c.model.EFuse.Conf, 1)
	// The second of two groups: the first took effect, the second did not.
	if got := h.ask(opWriteReg, words(c.model.EFuse.PgmData, 7, 0xFFFFFFFF, 0, c.model.EFuse.PgmData, 9, 0xFFFFFFFF, 0)); len(got) != 0 {
		t.Errorf("got %x", got)
	}
	if c.State() != 0 {
		t.Errorf("the chip is %v", c.State())
	}
	c.Power(true)
	h = connect(t, c)
	h.write(c.model.EFuse.Conf, 1) // the fault is over

	c = faulty(t, "esp32", "power-data=2")
	h = connect(t, c)
	h.attach()
	h.do(opFlashBegin, h.begin(4096, 4, 1024, 0))
	h.do(opFlashData, append(words(4, 0, 0, 0), 1, 2, 3, 4))
	if got := h.ask(opFlashData, append(words(4, 1, 0, 0), 1, 2, 3, 4)); len(got) != 0 || c.State() != 0 {
		t.Errorf("got %x, %v", got, c.State())
	}
	if c.Flash().Used() != 1 {
		t.Error("the first block is lost")
	}
}

func TestUnplugFaults(t *testing.T) {
	c := faulty(t, "esp32", "unplug=20")
	n, err := c.Write(t.Context(), make([]byte, 64))
	if n != 19 || !errors.Is(err, ErrUnplugged) {
		t.Errorf("%d bytes went, %v", n, err)
	}
	c = faulty(t, "esp32", "unplug-write=1")
	h := connect(t, c)
	p := slipEncode(packet(opWriteReg, words(c.model.SPI.W0, 5, 0xFFFFFFFF, 0)))
	if _, err := c.Write(t.Context(), p); !errors.Is(err, ErrUnplugged) {
		t.Errorf("%v", err)
	}
	c.Plug()
	if err := c.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := h.read(c.model.SPI.W0); v != 5 {
		t.Errorf("the write did not happen: %d", v)
	}
}

func TestWeakAndStuck(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		all := slices.Repeat([]uint32{0xFFFFFFFF}, 8)
		b := keyBlock(m)
		c := faulty(t, m.Name, "weak=0.3,seed=5")
		h := connect(t, c)
		h.burn(b, all...)
		if slices.Equal(c.fuse.cells[b][:8], all) {
			t.Error("a weak burn took every bit")
		}
		h.burn(b, all...)
		same(t, "the second burn", h.block(b), all)

		c = faulty(t, m.Name, "stuck=0.3")
		h = connect(t, c)
		for range 3 {
			h.burn(0, 1<<3|1<<7)
		}
		if got := h.block(0)[0]; got != 1<<7 {
			t.Errorf("WR_DIS %08x", got)
		}
	})
}

func TestIgnoredResets(t *testing.T) {
	c := faulty(t, "esp32", "ignore-reset=2")
	before := c.State()
	c.ResetInto(true)
	c.ResetInto(true)
	if c.State() != before {
		t.Errorf("an ignored reset gave %v", c.State())
	}
	connect(t, c)
}
