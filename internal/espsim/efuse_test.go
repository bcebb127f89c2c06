package espsim

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

var zeroBlock = make([]uint32, 8)

// key is 00 01 … 1f as a flash encryption key lies in its block (esp-facts B.9).
var key = []uint32{0x1C1D1E1F, 0x18191A1B, 0x14151617, 0x10111213, 0x0C0D0E0F, 0x08090A0B, 0x04050607, 0x00010203}

func same(t *testing.T, what string, got, want []uint32) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %08x, want %08x", what, got, want)
	}
}

// keyBlock is the first block for keys.
func keyBlock(m chip.Model) int {
	switch {
	case m.EFuse.Kind == chip.EFuseESP32:
		return 1
	case m.EFuse.KeyBlocks == 1:
		return 3
	}
	return 4
}

// otherBlock is an empty block, and key as far as it fits.
func otherBlock(m chip.Model) (int, []uint32) {
	if m.EFuse.KeyBlocks == 1 && m.EFuse.Kind == chip.EFuseRS {
		return 1, key[:3]
	}
	return keyBlock(m) + 1, key
}

func TestBurnKey(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		b := keyBlock(m)
		h.timing()
		h.fill(b, key)
		h.program(b)
		same(t, "before the read command", h.block(b), zeroBlock)
		same(t, "the array", c.Fuses()[b], key)
		h.refresh()
		same(t, "after it", h.block(b), key)
		h.burn(b, key...) // the same again is harmless
		same(t, "burned twice", h.block(b), key)
		if c.Burns() != 2 {
			t.Errorf("%d burns counted", c.Burns())
		}
		if m.EFuse.Kind == chip.EFuseRS && (h.read(m.EFuse.RSErr[0]) != 0 || h.read(m.EFuse.RSErr[1]) != 0) {
			t.Errorf("RS_ERR %08x %08x", h.read(m.EFuse.RSErr[0]), h.read(m.EFuse.RSErr[1]))
		}
	})
}

// TestOneWay: writing zeros clears nothing.
func TestOneWay(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		w := len(c.Fuses()[0]) - 1
		before := c.Fuses()[0]
		for _, v := range []uint32{0x10, 0, 0x20} {
			words := make([]uint32, len(before))
			words[w] = v
			h.burn(0, words...)
			before[w] |= v
			same(t, "BLOCK0", c.Fuses()[0], before)
			same(t, "its registers", h.block(0), before)
		}
	})
}

// TestCommandNeedsConf: the op code must match the command, and a running command
// lets nothing in.
func TestCommandNeedsConf(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		b := keyBlock(m)
		ef := m.EFuse
		h.timing()
		h.fill(b, key)
		for _, conf := range []uint32{0, confRead, 0x5A5B} {
			h.write(ef.Conf, conf)
			h.write(ef.Cmd, cmdProgram|uint32(b)<<2)
			h.idle()
		}
		same(t, "with the wrong CONF", c.Fuses()[b], zeroBlock)

		h.write(ef.Conf, confProgram)
		h.write(ef.Cmd, cmdProgram|uint32(b)<<2)
		h.write(ef.Conf, confRead) // busy: not taken
		if v := h.read(ef.Conf); v != confProgram {
			t.Errorf("a busy controller took CONF = 0x%x", v)
		}
		h.idle()
		h.write(ef.Conf, confRead)
		h.write(ef.Cmd, cmdRead)
		if ef.Kind == chip.EFuseRS { // idle is to be seen twice
			if v := h.read(ef.Cmd); v != 0 {
				t.Errorf("CMD right after the read command is 0x%x", v)
			}
			same(t, "seen idle once", h.block(b)[:1], zeroBlock[:1])
		}
		h.idle()
		same(t, "in the end", h.block(b), key)
	})
}

// TestResetLoads: a reset loads the fuses as the read command does, and forgets
// what was prepared.
func TestResetLoads(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		b := keyBlock(m)
		h.timing()
		h.fill(b, key)
		h.program(b)
		h = connect(t, c)
		same(t, "after a reset", h.block(b), key)
		if c.timingGood() != (c.si.Timing == nil || c.si.TimingOrReset) {
			t.Error("the timing registers survived")
		}
		other, _ := otherBlock(m)
		h.timing()
		h.program(other) // nothing is prepared any more
		h.refresh()
		same(t, "another block", c.Fuses()[other], zeroBlock[:c.fuse.blocks[other].Words])
	})
}

func TestWrongTiming(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		si := siliconFor(t, m)
		if si.Timing == nil {
			return
		}
		for i := range si.Timing(si.Crystals[0]) {
			c := newChip(t, Options{Model: m, Seed: int64(i)})
			h := connect(t, c)
			h.timing()
			w := c.timing()[i]
			h.write(w.Addr, w.Value^1<<bits.TrailingZeros32(w.Mask))
			b := keyBlock(m)
			h.fill(b, slices.Repeat([]uint32{0xFFFFFFFF}, 8))
			h.program(b)
			n := 0
			for _, v := range c.fuse.cells[b][:8] {
				n += bits.OnesCount32(v)
			}
			if n < 128 || n == 256 {
				t.Errorf("with 0x%08x wrong %d of 256 bits took", w.Addr, n)
			}
			// The right timing makes up for it.
			h.burn(b, slices.Repeat([]uint32{0xFFFFFFFF}, 8)...)
			same(t, "burned again", h.block(b), slices.Repeat([]uint32{0xFFFFFFFF}, 8))
		}
	})
}

func siliconFor(t *testing.T, m chip.Model) *silicon.Silicon {
	t.Helper()
	si, err := silicon.Of(m.Name)
	if err != nil {
		t.Fatal(err)
	}
	return si
}

// TestWriteProtection goes through every field of the table: its WR_DIS bit, once
// loaded, keeps it from being burned, and nothing else does.
func TestWriteProtection(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		tab := newChip(t, Options{Model: m}).tab
		for _, f := range tab.Fields() {
			if f.Name == "WR_DIS" && m.EFuse.Kind == chip.EFuseRS || f.Block != 0 {
				continue
			}
			locks := 16
			if m.EFuse.KeyBlocks == 1 && m.EFuse.Kind == chip.EFuseRS {
				locks = 8
			}
			for _, lock := range []int{f.WRDis, (f.WRDis + 1) % locks} { // its own bit and a foreign one
				if lock < 0 || lock != f.WRDis && lock == 0 && f.Name == "WR_DIS" {
					continue
				}
				c := newChip(t, Options{Model: m, Blank: true})
				if err := c.SetFuse(0, 0, 1<<lock); err != nil {
					t.Fatal(err)
				}
				h := connect(t, c)
				before := c.Fuses()[0]
				want := slices.Clone(before)
				bit := f.Bits()[f.Len()-1]
				words := make([]uint32, len(before))
				words[bit/32] = 1 << (bit % 32)
				if lock != f.WRDis {
					want[bit/32] |= 1 << (bit % 32)
				}
				h.timing()
				h.fill(0, words)
				h.program(0)
				if got := c.Fuses()[0]; !slices.Equal(got, want) {
					t.Errorf("%s with WR_DIS bit %d: %08x, want %08x", f.Name, lock, got, want)
				}
				_ = c.Close()
			}
		}
		for _, b := range tab.Blocks() {
			if b.WRDis < 0 {
				continue
			}
			c := newChip(t, Options{Model: m, Blank: true})
			before := c.Fuses()[b.Index]
			if err := c.SetFuse(0, 0, 1<<b.WRDis); err != nil {
				t.Fatal(err)
			}
			h := connect(t, c)
			h.burn(b.Index, slices.Repeat([]uint32{0x5A5A5A5A}, b.Words)...)
			same(t, b.Name+" protected", c.Fuses()[b.Index], before)
		}
	})
}

// TestProtectionNeedsLoad: a fuse of WR_DIS acts once it is loaded.
func TestProtectionNeedsLoad(t *testing.T) {
	m := model(t, "esp32c3")
	c := newChip(t, Options{Model: m})
	h := connect(t, c)
	h.timing()
	h.fill(0, []uint32{1 << 23})
	h.program(0)
	h.fill(4, key)
	h.program(4)
	same(t, "KEY0 before the load", c.Fuses()[4], key)
	h.refresh()
	h.burn(5, key...)
	same(t, "KEY1", c.Fuses()[5], key)
	h.fill(4, []uint32{0xE0000000})
	h.program(4)
	same(t, "KEY0 after it", c.Fuses()[4], key)
}

func TestReadProtection(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		b := keyBlock(m)
		h.burn(b, key...)
		rd, _ := c.tab.Field("RD_DIS")
		words := make([]uint32, 2)
		for _, bit := range c.fuse.blocks[b].RDDisAll { // two on the ESP32-C2
			words[rd.Bits()[bit]/32] |= 1 << (rd.Bits()[bit] % 32)
		}
		h.timing()
		h.fill(0, words)
		h.program(0)
		same(t, "before the read command", h.block(b), key)
		h.refresh()
		same(t, "after it", h.block(b), zeroBlock)
		same(t, "the array", c.Fuses()[b], key)
		if got := c.fuse.flashKey(); m.EFuse.Kind == chip.EFuseESP32 && !slices.Equal(got, wordBytes(key)) {
			t.Errorf("the encryption unit sees %x", got)
		}
		other, w := otherBlock(m)
		h.burn(other, w...)
		same(t, "another block", h.block(other), w)
	})
}

// TestESP32HiddenFields: RD_DIS bit 3 hides four fields of BLOCK0 and no others.
func TestESP32HiddenFields(t *testing.T) {
	m := model(t, "esp32")
	c := newChip(t, Options{Model: m, Blank: true, CodingScheme: 3})
	h := connect(t, c)
	h.burn(0, 0, 0, 0, 1<<14|1<<3, 0, 0xF<<28, 1<<10|1<<6)
	h.burn(0, 1<<19)
	got := h.block(0)
	if got[3]&(1<<14|1<<3) != 1<<3 || got[5]>>28 != 0 || got[6] != 1<<6 {
		t.Errorf("BLOCK0 %08x", got)
	}
	if c.fuse.field("FLASH_CRYPT_CONFIG") != 15 {
		t.Error("the encryption unit lost FLASH_CRYPT_CONFIG")
	}
}

// TestESP32BurnsAllBlocks: the program command takes the WDATA of every block.
func TestESP32BurnsAllBlocks(t *testing.T) {
	m := model(t, "esp32")
	c := newChip(t, Options{Model: m})
	h := connect(t, c)
	h.fill(1, key)
	for i := range 8 { // BLOCK3 as well
		h.write(m.EFuse.Base+0xD8+uint32(4*i), uint32(i))
	}
	h.timing()
	h.program(0)
	same(t, "BLOCK1", c.Fuses()[1], key)
	same(t, "BLOCK3", c.Fuses()[3], []uint32{0, 1, 2, 3, 4, 5, 6, 7})
	if v := h.read(m.EFuse.Base + 0x98); v != key[0] {
		t.Errorf("WDATA reads 0x%x", v)
	}
}

func TestESP32ThreeQuarters(t *testing.T) {
	m := model(t, "esp32")
	c := newChip(t, Options{Model: m, CodingScheme: 1})
	h := connect(t, c)
	raw := []byte("\x00\x01\x02\x03\x04\x05\x01\x1e\x06\x07\x08\x09\x0a\x0b\x01\x2f\x0c\x0d\x0e\x0f\x10\x11\x01\x32\x12\x13\x14\x15\x16\x17\x01\x41")
	want := []uint32{0x03020100, 0x07060504, 0x0B0A0908, 0x0F0E0D0C, 0x13121110, 0x17161514, 0, 0}
	h.burn(1, bytesWords(raw)...)
	same(t, "decoded", h.block(1), want)
	same(t, "the array", c.Fuses()[1], want)
	if v := h.read(m.EFuse.DecStatus); v != 0 {
		t.Errorf("DEC_STATUS 0x%x", v)
	}
	if got := c.fuse.flashKey(); len(got) != 24 || got[23] != 0x17 {
		t.Errorf("the encryption unit sees %x", got)
	}
	// Another value over it: the group's check bytes no longer fit.
	h.burn(1, 0x80000000)
	if v := h.read(m.EFuse.DecStatus); v != 1 {
		t.Errorf("DEC_STATUS 0x%x, want one bad group in BLOCK1", v)
	}
	// Uncoded words are what a client burns that takes the scheme for none.
	h.burn(3, key...)
	if v := h.read(m.EFuse.DecStatus); v>>8&0xF == 0 || v>>4&0xF != 0 {
		t.Errorf("DEC_STATUS 0x%x, want BLOCK3 bad and BLOCK2 good", v)
	}
	// The factory's own words are coded right.
	d := newChip(t, Options{Model: m, Factory: [][]uint32{{0, 0, 0, 0, 0, 0, 1}, want[:6]}})
	hd := connect(t, d)
	same(t, "factory", hd.block(1), want)
	if v := hd.read(m.EFuse.DecStatus); v != 0 {
		t.Errorf("DEC_STATUS 0x%x", v)
	}
}

// TestRSBlocks: an RS block takes one burn with the right parity.
func TestRSBlocks(t *testing.T) {
	m := model(t, "esp32c3")
	ef := m.EFuse
	errs := func(h *host) uint64 {
		return uint64(h.read(ef.RSErr[0])) | uint64(h.read(ef.RSErr[1]))<<32
	}
	for block := 1; block <= 10; block++ {
		count, fail := uint64(1)<<(4*(block-1)), uint64(8)<<(4*block)
		if block == 10 {
			fail = 0 // the shift leaves the last block without one
		}

		// One wrong parity byte is mended and counted.
		c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
		h := connect(t, c)
		h.timing()
		h.fill(block, key[:c.fuse.blocks[block].Words])
		h.write(ef.CheckValue, h.read(ef.CheckValue)^0x40)
		h.program(block)
		h.refresh()
		same(t, "mended", h.block(block), key[:c.fuse.blocks[block].Words])
		if got := errs(h); got != count {
			t.Errorf("block %d with one wrong byte: RS_ERR %x, want %x", block, got, count)
		}

		// No parity at all is beyond repair; so is other data over a burned block.
		for what, spoil := range map[string]func(h *host){
			"no parity": func(h *host) {
				h.timing()
				h.fill(block, key[:6])
				for i := range uint32(3) {
					h.write(ef.CheckValue+4*i, 0)
				}
				h.program(block)
				h.refresh()
			},
			"a second burn": func(h *host) {
				h.burn(block, key[:6]...)
				h.burn(block, 0x80402010, 0x80402010, 0x80402010, 0x80402010, 0x80402010, 0x80402010)
			},
		} {
			c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
			h := connect(t, c)
			spoil(h)
			if got := errs(h); got != 7*count|fail {
				t.Errorf("block %d, %s: RS_ERR %x, want %x", block, what, got, 7*count|fail)
			}
			if what == "a second burn" && cmp.Equal(h.block(block)[:6], key[:6]) {
				t.Errorf("block %d, %s: the first data survived", block, what)
			}
		}
	}
}

// TestRSErrKnownAnswer is a report from the field (espressif/esp-idf#12489, esp-facts
// B.6): one error each in blocks 3 to 7, beyond repair in 5 to 7. Which of the
// nibbles carry the fail bits is what it pins.
func TestRSErrKnownAnswer(t *testing.T) {
	m := model(t, "esp32c3")
	c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
	h := connect(t, c)
	for block := 3; block <= 7; block++ {
		h.timing()
		h.fill(block, key)
		if block >= 5 {
			for i := range uint32(3) {
				h.write(m.EFuse.CheckValue+4*i, 0)
			}
		} else {
			h.write(m.EFuse.CheckValue, h.read(m.EFuse.CheckValue)^1)
		}
		h.program(block)
	}
	h.refresh()
	const fails = 0x88888888
	if got := h.read(m.EFuse.RSErr[0]); got&fails != 0x89911100&fails || got&0x07777700 == 0 || got&0x7000007F != 0 {
		t.Errorf("RS_ERR0 %08x, want the fail bits of 89911100", got)
	}
}

// TestFourCopies: in BLOCK0 each bit but those of WR_DIS is there four times.
func TestFourCopies(t *testing.T) {
	m := model(t, "esp32c3")
	for gone := range 5 { // copies that did not take
		c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
		for copyOf := range copies - gone {
			c.fuse.cells[0][copyOf*6+2] |= 1 << 18
		}
		h := connect(t, c)
		var value, err uint32
		if gone <= 2 {
			value = 1 << 18
		}
		if gone%4 != 0 {
			err = 1 << 18
		}
		if got := h.block(0)[2]; got != value {
			t.Errorf("%d of 4 copies gone: %08x, want %08x", gone, got, value)
		}
		for i := range uint32(5) { // REPEAT_ERR0 belongs to word 1
			want := uint32(0)
			if i == 1 {
				want = err
			}
			if got := h.read(m.EFuse.RepeatErr + 4*i); got != want {
				t.Errorf("%d of 4 copies gone: REPEAT_ERR%d %08x, want %08x", gone, i, got, want)
			}
		}
		// Burning it again mends it.
		if gone < 4 {
			h.burn(0, 0, 0, 1<<18)
			if v := h.read(m.EFuse.RepeatErr + 4); v != 0 || h.block(0)[2] != 1<<18 {
				t.Errorf("burned again: REPEAT_ERR1 %08x, word %08x", v, h.block(0)[2])
			}
		}
	}
}

// TestFlashKey: which block the flash encryption unit takes its key from.
func TestFlashKey(t *testing.T) {
	m := model(t, "esp32c3")
	for block := range 6 {
		c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
		h := connect(t, c)
		if c.fuse.flashKey() != nil {
			t.Fatal("a key without a purpose")
		}
		h.burn(4+block, key...)
		words := make([]uint32, 6)
		purpose, _ := c.tab.Field("KEY_PURPOSE_" + string(rune('0'+block)))
		at := purpose.Bits()[0]
		words[at/32] = xtsPurpose << (at % 32)
		words[1] = 1 << block // RD_DIS: hidden keys still serve
		h.burn(0, words...)
		got := c.fuse.flashKey()
		if block == 5 { // KEY5 cannot hold one on this chip
			if got != nil {
				t.Errorf("KEY5 serves as %x", got)
			}
			continue
		}
		if len(got) != 32 || binary.LittleEndian.Uint32(got) != key[0] {
			t.Errorf("KEY%d: %x", block, got)
		}
	}
}

// TestHybridWords burns the whole list of esp-facts F.5 and compares BLOCK0 with
// what the vendor's tool computed.
func TestHybridWords(t *testing.T) {
	for _, tc := range []struct {
		chip  string
		burns [][]uint32
		want  []uint32
	}{
		{"esp32", [][]uint32{
			{1<<16 | 1<<7}, {0, 0, 0, 0, 0, 0xF << 28, 1<<7 | 1<<8 | 1<<9 | 1<<6 | 1<<2}, {127 << 20}, {1 << 3},
		}, []uint32{0x07F10088, 0, 0, 0, 0, 0xF0000000, 0x3C4}},
		{"esp32c3", [][]uint32{
			{1<<23 | 1<<8, 1, 4 << 24}, {0, 1<<20 | 1<<10 | 1<<19 | 1<<9, 0, 0, 2}, {0, 0, 7 << 18}, {1 << 2},
		}, []uint32{0x00800104, 0x00180601, 0x041C0000, 0, 2, 0}},
	} {
		c := newChip(t, Options{Model: model(t, tc.chip), Factory: [][]uint32{}})
		h := connect(t, c)
		for _, w := range tc.burns {
			h.burn(0, w...)
		}
		same(t, tc.chip, c.Fuses()[0], tc.want)
		same(t, tc.chip, h.block(0), tc.want)
	}
}
