package espsim

import (
	"bytes"
	"compress/zlib"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

// eachChip runs a test for every chip that is simulated.
func eachChip(t *testing.T, f func(t *testing.T, m chip.Model)) {
	for _, m := range chip.All() {
		t.Run(m.Name, func(t *testing.T) { f(t, m) })
	}
}

// refusal checks for the ROM's way to refuse: under the last accepted opcode.
func refusal(t *testing.T, got [][]byte, lastOp byte) {
	t.Helper()
	want := 1
	if lastOp == opSync {
		want = syncReplies
	}
	if len(got) != want {
		t.Errorf("%d replies, want %d", len(got), want)
	}
	for _, f := range got {
		if o := split(t, f); o.op != lastOp || o.status[0] != 1 || o.status[1] != errRefused || len(o.data) != 0 {
			t.Errorf("got %+v, want a refusal under op %02x", o, lastOp)
		}
	}
}

func TestRequestLengths(t *testing.T) {
	good := map[byte]int{
		opFlashEnd: 4, opMemBegin: 16, opMemEnd: 8, opReadReg: 4, opWriteReg: 16, opSPISetParams: 24,
		opSPIAttach: 8, opReadFlash: 8, opChangeBaud: 8, opDeflEnd: 4, opFlashMD5: 16, opSync: 36,
	}
	eachChip(t, func(t *testing.T, m chip.Model) {
		want := map[byte]int{opFlashBegin: 4 * m.ROM.FlashBeginWords, opDeflBegin: 4 * m.ROM.FlashBeginWords}
		for op, n := range good {
			want[op] = n
		}
		for op, n := range want {
			for _, length := range []int{0, 4, 8, 12, 16, 20, 24, 28, 36, 40} {
				if length == n || op == opWriteReg && length%16 == 0 && length > 0 {
					continue
				}
				h := connect(t, newChip(t, Options{Model: m}))
				refusal(t, h.ask(op, make([]byte, length)), opSync)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		h := connect(t, newChip(t, Options{Model: m}))
		refusal(t, h.ask(0xD0, nil), opSync) // a command of the stub
		h.write(m.SPI.W0, 0x12345678)
		refusal(t, h.ask(0x7F, nil), opWriteReg)
		if v := h.read(m.SPI.W0); v != 0x12345678 {
			t.Errorf("read 0x%x", v)
		}
		refusal(t, h.ask(0xD1, words(0, 4096)), opReadReg)
		// A wrong length field, a wrong direction, less than a header.
		p := packet(opReadReg, words(m.SPI.W0))
		p[2]++
		refusal(t, h.send(p), opReadReg)
		p = packet(opReadReg, words(m.SPI.W0))
		p[0] = 1
		refusal(t, h.send(p), opReadReg)
		refusal(t, h.send([]byte{0, opReadReg, 0}), opReadReg)
		// An escape that is none.
		if _, err := h.c.Write(t.Context(), []byte{slipEnd, 0, opReadReg, slipEsc, 0x41, slipEnd}); err != nil {
			t.Fatal(err)
		}
		refusal(t, h.frames(), opReadReg)
		// Bytes between frames are noise, an empty frame is none.
		if _, err := h.c.Write(t.Context(), []byte{0x41, slipEnd, slipEnd, slipEnd}); err != nil {
			t.Fatal(err)
		}
		if got := h.frames(); len(got) != 0 {
			t.Errorf("got %x", got)
		}
		// The delimiter above may open a frame: one more is needed to start afresh.
		h.do(opReadReg, words(m.SPI.W0))
	})
}

// TestLeftovers pins what shows through in replies.
func TestLeftovers(t *testing.T) {
	h := connect(t, newChip(t, Options{Model: model(t, "esp32c3")}))
	refusal(t, h.ask(0x7F, nil), opSync)
	o := h.do(opSPIAttach, words(0, 0))
	if o.status != [4]byte{0, 5, 0, 0} || o.value != 0x20120707 {
		t.Errorf("after a refusal SPI_ATTACH gave %+v, want success as 00 05 00 00 and SYNC's value", o)
	}
	v := h.read(chip.MagicRegister)
	if o := h.do(opSPIAttach, words(0, 0)); o.status != [4]byte{} || o.value != v {
		t.Errorf("after READ_REG SPI_ATTACH gave %+v", o)
	}
}

func TestNothingBeforeSync(t *testing.T) {
	c := newChip(t, Options{Model: model(t, "esp32")})
	c.ResetInto(true)
	h := &host{t, c}
	h.received()
	for _, p := range [][]byte{packet(opReadReg, words(chip.MagicRegister)), packet(0x7F, nil), packet(opSync, make([]byte, 36))} {
		if got := h.send(p); len(got) != 0 {
			t.Errorf("%x was answered before SYNC: %x", p, got)
		}
	}
	if got := h.ask(opSync, syncData()); len(got) != syncReplies {
		t.Errorf("SYNC got %d replies", len(got))
	}
}

func TestDetection(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m, FlashSize: 8 << 20})
		h := connect(t, c)
		if c.si.Deaf == chip.MagicRegister { // nothing answers there, nor afterwards
			if got := h.ask(opReadReg, words(chip.MagicRegister)); len(got) != 0 {
				t.Errorf("the read was answered: %x", got)
			}
			if got := h.ask(opSync, syncData()); len(got) != 0 {
				t.Errorf("the loader lives on: %x", got)
			}
			h = connect(t, c)
		} else if v := h.read(chip.MagicRegister); !m.HasMagic(v) {
			t.Errorf("0x%x is no magic of %s", v, m.Title)
		}
		if v := h.read(0x12345678); v != 0 {
			t.Errorf("an unknown register reads 0x%x", v)
		}
		h.write(0x12345678, 1)
		if v := h.read(0x12345678); v != 0 {
			t.Errorf("an unknown register keeps 0x%x", v)
		}
		id := func() uint32 {
			h.write(m.SPI.MISODLen, 23)
			h.write(m.SPI.Usr, spiUserCommand|spiUserMISO)
			h.write(m.SPI.Usr2, 7<<28|flashReadID)
			h.write(m.SPI.W0, 0)
			h.write(m.SPI.Cmd, spiCmdUser)
			if v := h.read(m.SPI.Cmd); v != 0 {
				t.Errorf("SPI_CMD reads 0x%x after the command", v)
			}
			return h.read(m.SPI.W0)
		}
		if v := id(); v != 0 {
			t.Errorf("before SPI_ATTACH the flash says 0x%x", v)
		}
		h.attach()
		if v := id(); v != 0x1740C8 {
			t.Errorf("the flash says 0x%x", v)
		}
		if !c.MAC().LocallyAdministered() {
			t.Errorf("the default MAC is %v", c.MAC())
		}
	})
}

func TestWriteRegister(t *testing.T) {
	m := model(t, "esp32c3")
	c := newChip(t, Options{Model: m})
	h := connect(t, c)
	// Two groups in one packet, the second under a mask.
	h.do(opWriteReg, words(m.SPI.W0, 0xAABBCCDD, 0xFFFFFFFF, 0, m.SPI.W0, 0x1122, 0xFFFF, 0))
	if v := h.read(m.SPI.W0); v != 0xAABB1122 {
		t.Errorf("got 0x%x", v)
	}
	if n := c.RegisterWrites(); n != 2 {
		t.Errorf("%d register writes counted", n)
	}
}

// pattern is n bytes that differ from block to block.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func (h *host) flash(data []byte, offset uint32) {
	h.t.Helper()
	const block = 0x400
	blocks := (len(data) + block - 1) / block
	h.do(opFlashBegin, h.begin(uint32(len(data)), uint32(blocks), block, offset))
	for i := range blocks {
		p := bytes.Repeat([]byte{0xFF}, block)
		copy(p, data[i*block:])
		h.do(opFlashData, append(words(block, uint32(i), 0, 0), p...))
	}
}

func TestFlash(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		if o := h.one(opFlashBegin, h.begin(4096, 4, 1024, 0)); o.status[0] != 1 || o.status[1] != errFailed || o.op != opFlashBegin {
			t.Errorf("before SPI_ATTACH: %+v", o)
		}
		h.attach()
		data := pattern(5000)
		h.flash(data, 0x10000)
		h.flash(data, 0x10000) // an erase comes first
		got := make([]byte, len(data))
		if _, err := c.Flash().ReadAt(got, 0x10000); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("flash differs (%v)", err)
		}
		sum := md5.Sum(data)
		if o := h.do(opFlashMD5, words(0x10000, 5000, 0, 0)); string(o.data) != hex.EncodeToString(sum[:]) {
			t.Errorf("MD5 %s", o.data)
		}
		o := h.do(opReadFlash, words(0x10003, 5))
		if want := append(slices.Clone(data[3:8]), make([]byte, 59)...); !bytes.Equal(o.data, want) {
			t.Errorf("READ_FLASH_SLOW gave %x", o.data)
		}

		// Without an erase bits only go to 0.
		h.do(opFlashBegin, h.begin(0, 1, 1024, 0x10000))
		h.do(opFlashData, append(words(2, 0, 0, 0), 0x0F, 0xF0))
		if _, err := c.Flash().ReadAt(got[:2], 0x10000); err != nil || got[0] != data[0]&0x0F || got[1] != data[1]&0xF0 {
			t.Errorf("programmed twice: %x over %x", got[:2], data[:2])
		}
	})
}

// failure sends a request that must fail with an error code of its own.
func (h *host) failure(op byte, data []byte, code byte) {
	h.t.Helper()
	o := h.one(op, data)
	if o.op != op || o.status[0] != 1 || o.status[1] != code || len(o.data) != 0 {
		h.t.Errorf("op %02x: %+v, want 01 %02x", op, o, code)
	}
}

func TestFlashLimits(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		h.attach()
		block := pattern(1024)
		h.failure(opFlashData, append(words(1024, 0, 0, 0), block...), errFailed) // no FLASH_BEGIN
		h.failure(opFlashBegin, h.begin(4096, 4, 1024, 2<<20), errFailed)         // beyond the ROM's 2 MB
		h.failure(opFlashMD5, words(2<<20, 16, 0, 0), errFailed)
		h.failure(opReadFlash, words(2<<20-4, 8), errFailed)
		h.failure(opReadFlash, words(0, 65), errFailed)
		h.failure(opFlashBegin, h.begin(4096, 4, 1024, 0xFFFFF000), errFailed)
		h.do(opFlashBegin, h.begin(4096, 4, 1024, 2<<20-4096))
		h.failure(opFlashData, append(words(1024, 4, 0, 0), block...), errFailed) // a block too many

		h.do(opSPISetParams, words(0, 4<<20, 0x10000, 0x1000, 0x100, 0xFFFF))
		h.do(opFlashBegin, h.begin(4096, 4, 1024, 4<<20-4096))
		h.do(opFlashData, append(words(1024, 3, 0, 0), block...))
		h.failure(opFlashBegin, h.begin(4096, 4, 1024, 4<<20), errFailed)
		h.failure(opFlashData, append(words(1024, 0, 0, 0), block...), errFailed) // the refused begin ended the write

		// Told too much, the ROM wraps around at the part's end.
		h.do(opSPISetParams, words(0, 16<<20, 0x10000, 0x1000, 0x100, 0xFFFF))
		h.do(opFlashBegin, h.begin(4096, 4, 1024, 4<<20))
		h.do(opFlashData, append(words(1024, 0, 0, 0), block...))
		got := make([]byte, 1024)
		if _, err := c.Flash().ReadAt(got, 0); err != nil || !bytes.Equal(got, block) {
			t.Errorf("4 MB is not 0 in a 4 MB flash (%v)", err)
		}
		// A reset forgets all that.
		h = connect(t, c)
		h.attach()
		h.failure(opFlashBegin, h.begin(4096, 4, 1024, 2<<20), errFailed)
	})
}

func TestFlashDataChecks(t *testing.T) {
	h := connect(t, newChip(t, Options{Model: model(t, "esp32c3")}))
	h.attach()
	h.do(opFlashBegin, h.begin(4096, 4, 1024, 0))
	p := packet(opFlashData, append(words(1024, 0, 0, 0), pattern(1024)...))
	p[100] ^= 1
	got := h.send(p)
	if o := split(t, got[0]); len(got) != 1 || o.op != opFlashData || o.status != [4]byte{1, errChecksum} {
		t.Errorf("a damaged block: %+v", o)
	}
	h.failure(opFlashData, append(words(1000, 0, 0, 0), pattern(1024)...), errRefused)
	h.failure(opFlashData, append(words(1028, 0, 0, 0), pattern(1028)...), errFailed) // more than a block
	if h.c.Flash().Used() != 0 {
		t.Error("a refused block was written")
	}
	if m := h.c.model.ROM.FlashBeginWords; m == 5 {
		h.failure(opFlashBegin, words(4096, 4, 1024, 8, 1), errParam) // not aligned for the chip's own encryption
	}
}

func TestDeflate(t *testing.T) {
	pack := func(data []byte) []byte {
		var b bytes.Buffer
		z := zlib.NewWriter(&b)
		_, _ = z.Write(data)
		_ = z.Close()
		return b.Bytes()
	}
	run := func(h *host, size int, packed []byte) (last outcome) {
		const block = 0x400
		blocks := (len(packed) + block - 1) / block
		h.do(opDeflBegin, h.begin(uint32((size+block-1)/block*block), uint32(blocks), block, 0x20000))
		for i, seq := 0, uint32(0); i < len(packed); i, seq = i+block, seq+1 {
			p := packed[i:min(i+block, len(packed))]
			last = h.one(opDeflData, append(words(uint32(len(p)), seq, 0, 0), p...))
			if last.status[0] != 0 {
				break
			}
		}
		return last
	}
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		h.attach()
		for _, data := range [][]byte{make([]byte, 100_000), pattern(30_000), {1}} {
			if o := run(h, len(data), pack(data)); o.status[0] != 0 {
				t.Fatalf("%d bytes: %+v", len(data), o)
			}
			got := make([]byte, len(data))
			if _, err := c.Flash().ReadAt(got, 0x20000); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes differ (%v)", len(data), err)
			}
		}
		// Bytes after the stream's end are padding.
		if o := run(h, 30_000, append(pack(pattern(30_000)), make([]byte, 3000)...)); o.status[0] != 0 {
			t.Errorf("with padding: %+v", o)
		}
		bad := pack(pattern(3000))
		bad[len(bad)-1] ^= 1
		if o := run(h, 3000, bad); o.status != [4]byte{1, errAdler} {
			t.Errorf("a wrong Adler-32: %+v", o)
		}
		if o := run(h, 3000, pattern(3000)); o.status != [4]byte{1, errDeflate} {
			t.Errorf("no zlib stream: %+v", o)
		}
		if o := run(h, 1000, pack(make([]byte, 70_000))); o.status[0] != 1 || o.status[1] != errFailed {
			t.Errorf("more than announced: %+v", o)
		}
		h.failure(opFlashData, append(words(4, 0, 0, 0), 1, 2, 3, 4), errFailed) // of another kind of write
		h.do(opDeflEnd, words(0))
		if c.State() != bootrom.Download {
			t.Errorf("after the reset by software the chip is %v", c.State())
		}
	})
}

func TestMemory(t *testing.T) {
	h := connect(t, newChip(t, Options{Model: model(t, "esp32")}))
	h.failure(opMemData, append(words(4, 0, 0, 0), 1, 2, 3, 4), errFailed)
	h.do(opMemBegin, words(8, 2, 4, 0x40080000))
	h.do(opMemData, append(words(4, 0, 0, 0), 1, 2, 3, 4))
	h.failure(opMemData, append(words(4, 2, 0, 0), 1, 2, 3, 4), errFailed)
	h.do(opMemEnd, words(1, 0))
	h.read(chip.MagicRegister) // the loader is still there
	if _, err := h.c.Write(t.Context(), slipEncode(packet(opMemEnd, words(0, 0x40080000)))); err != nil {
		t.Fatal(err)
	}
	reply := "\xC0\x01\x06\x04\x00" // its header up to the length; the rest is in other tests
	if got := string(h.received()); !strings.HasPrefix(got, reply) || !strings.HasSuffix(got, "\xC0"+noProcessor) {
		t.Errorf("a jump into RAM is answered with %q", got)
	}
	if got := h.ask(opReadReg, words(chip.MagicRegister)); len(got) != 0 || h.c.State() != bootrom.Halted {
		t.Errorf("after a jump into RAM: %x, %v", got, h.c.State())
	}
}

func TestFlashEndRuns(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		h.attach()
		h.do(opFlashEnd, words(1))
		if c.State() != bootrom.Looping { // nothing is in flash
			t.Errorf("the chip is %v", c.State())
		}
	})
}

func TestBaud(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		ctx := t.Context()
		if v, want := h.read(m.UART.ClkDiv), uint32(c.opt.Crystal*1_000_000/115200-1); v != want {
			t.Errorf("UART_CLKDIV %d, want %d", v, want)
		}
		h.do(opChangeBaud, words(460800, 0)) // the answer comes at the old rate
		if got := h.ask(opReadReg, words(m.UART.ClkDiv)); len(got) != 0 {
			t.Errorf("at the old rate the chip understood a request: %x", got)
		}
		h.received()
		if err := c.SetBaud(ctx, 460800); err != nil {
			t.Fatal(err)
		}
		// What arrived at the wrong rate may have left half a frame behind.
		h.send(nil)
		h.read(m.UART.ClkDiv)
		if err := c.SetBaud(ctx, 115200); err != nil {
			t.Fatal(err)
		}
		if got := h.ask(opSync, syncData()); len(got) != 0 {
			t.Errorf("a new client at 115200 got an answer: %x", got)
		}
		if err := c.SetBaud(ctx, 0); err != nil { // follow the chip
			t.Fatal(err)
		}
		h.send(nil)
		h.read(m.UART.ClkDiv)
		if err := c.SetBaud(ctx, 115200); err != nil {
			t.Fatal(err)
		}
		connect(t, c) // a reset brings 115200 back
		h.failure(opChangeBaud, words(0, 0), errFailed)
	})
}

// TestBaudCrystal pins the ESP32's arithmetic: its ROM believes CLK8M_FREQ, so
// with 75 in place of 80 it takes the crystal for 37.5 MHz.
func TestBaudCrystal(t *testing.T) {
	m := model(t, "esp32")
	for _, ck := range []uint32{0x50, 75, 0} {
		c := newChip(t, Options{Model: m, Factory: [][]uint32{{0, 0, 0, 0, ck}}})
		h := connect(t, c)
		rom := uint64(h.read(m.ROM.ApproxFreqReg)>>7&0x1FFFFFF) * 15625 * uint64(ck) / 40
		ask := uint64(460800)
		if rom != 0 {
			ask = ask * rom / 40_000_000 // what a client sends that knows
		}
		h.do(opChangeBaud, words(uint32(ask), 0))
		if err := c.SetBaud(t.Context(), 460800); err != nil {
			t.Fatal(err)
		}
		h.read(chip.MagicRegister)
	}
	// A client that does not know is five per cent off and reads garbage.
	c := newChip(t, Options{Model: m, Factory: [][]uint32{{0, 0, 0, 0, 76}}})
	h := connect(t, c)
	h.do(opChangeBaud, words(460800, 0))
	if err := c.SetBaud(t.Context(), 460800); err != nil {
		t.Fatal(err)
	}
	if got := h.ask(opReadReg, words(chip.MagicRegister)); len(got) != 0 {
		t.Errorf("got %x", got)
	}
}

func TestSecurityInfo(t *testing.T) {
	m := model(t, "esp32c3")
	c := newChip(t, Options{Model: m})
	if o := connect(t, c).do(opSecurityInfo, nil); hex.EncodeToString(o.data) != "00000000"+"00"+"000000000000"+"0c"+"05000000"+"03000000" {
		t.Errorf("fresh: %x", o.data)
	}
	for _, s := range []struct {
		word int
		bits uint32
	}{
		{1, 7<<16 | 1<<19 | 1<<10}, {2, 7<<18 | 0xF<<21 | 4<<24}, {3, 9<<12 | 3<<20}, {4, 1 << 5},
	} {
		if err := c.SetFuse(0, s.word, s.bits); err != nil {
			t.Fatal(err)
		}
	}
	o := connect(t, c).do(opSecurityInfo, nil)
	// Bits 0, 1, 2, 3, 4, 5, 6, 7, 10; purposes 5 (4|1), 0, 0, 0, 0, 9.
	if got := hex.EncodeToString(o.data); got != "ff040000"+"07"+"050000000009"+"0c"+"05000000"+"03000000" {
		t.Errorf("everything set: %s", got)
	}
	// A counter of JTAG that is not full is not "soft disabled".
	d := newChip(t, Options{Model: m})
	if err := d.SetFuse(0, 1, 1<<16); err != nil {
		t.Fatal(err)
	}
	if o := connect(t, d).do(opSecurityInfo, nil); o.data[0] != 0 {
		t.Errorf("flags %x", o.data[:4])
	}
}

func TestSecureDownload(t *testing.T) {
	m := model(t, "esp32c3")
	c := newChip(t, Options{Model: m})
	if err := c.SetFuse(0, 4, 1<<5); err != nil {
		t.Fatal(err)
	}
	h := connect(t, c)
	if c.State() != bootrom.SecureDownload || !bytes.Contains(c.BootText(), m.ROM.SecureBanner) {
		t.Fatalf("%v after %q", c.State(), c.BootText())
	}
	for op, n := range map[byte]int{
		opReadReg: 4, opWriteReg: 16, opMemBegin: 16, opMemData: 20, opMemEnd: 8, opReadFlash: 8,
		opDeflBegin: 20, opDeflData: 20, opDeflEnd: 4, opFlashMD5: 16,
	} {
		refusal(t, h.ask(op, make([]byte, n)), opSync)
	}
	h.attach()
	refusal(t, h.ask(opReadReg, words(chip.MagicRegister)), opSPIAttach)
	h.do(opSPISetParams, words(0, 4<<20, 0x10000, 0x1000, 0x100, 0xFFFF))
	h.flash(pattern(3000), 3<<20)
	h.do(opChangeBaud, words(921600, 0))
	if err := c.SetBaud(t.Context(), 921600); err != nil {
		t.Fatal(err)
	}
	if o := h.do(opSecurityInfo, nil); o.data[0]&4 == 0 {
		t.Errorf("flags %x", o.data[:4])
	}
	h.do(opFlashEnd, words(0))
}

// TestLoaderNoticesFuses is the end of the C3 transcript: the loader resets itself
// once the fuse is loaded, and the strap is not sampled again.
func TestLoaderNoticesFuses(t *testing.T) {
	m := model(t, "esp32c3")
	for bit, want := range map[int]bootrom.State{5: bootrom.SecureDownload, 0: bootrom.Halted} {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		h.timing()
		h.fill(0, []uint32{0, 0, 0, 0, 1 << bit})
		h.program(0)
		h.write(m.EFuse.Conf, confRead)
		if c.State() != bootrom.Download {
			t.Fatalf("before the fuse is loaded the chip is %v", c.State())
		}
		// The command and a delay in one packet, as the vendor's tool does it.
		h.do(opWriteReg, words(m.EFuse.Cmd, cmdRead, 0xFFFFFFFF, 0, m.UART.Date, 0, 0, 1000))
		if got := h.ask(opReadReg, words(m.EFuse.Cmd)); len(got) != 0 || c.State() != want {
			t.Errorf("then: %x, %v", got, c.State())
		}
		if !bytes.Contains(c.BootText(), []byte("rst:0x3 (RTC_SW_SYS_RST)")) {
			t.Errorf("the chip printed %q", c.BootText())
		}
	}
}

func TestDownloadDisabled(t *testing.T) {
	for _, tc := range []struct {
		chip string
		rev  chip.Revision
		word int
		bits uint32
		want bootrom.State
	}{
		{"esp32", 300, 0, 1 << 27, bootrom.Halted},
		{"esp32", 301, 0, 1 << 27, bootrom.Halted},
		{"esp32", 100, 0, 1 << 27, bootrom.Download}, // silicon before v3.0 does not know the fuse
		{"esp32c3", 0, 4, 1 << 0, bootrom.Halted},
		{"esp32c3", 0, 4, 1<<0 | 1<<5, bootrom.Halted},
	} {
		t.Run(fmt.Sprintf("%s %s %x", tc.chip, tc.rev, tc.bits), func(t *testing.T) {
			m := model(t, tc.chip)
			c := newChip(t, Options{Model: m, Revision: tc.rev})
			if err := c.SetFuse(0, tc.word, tc.bits); err != nil {
				t.Fatal(err)
			}
			c.ResetInto(true)
			h := &host{t, c}
			text := h.received()
			if c.State() != tc.want || bytes.Contains(text, m.ROM.DownloadDisabled) != (tc.want == bootrom.Halted) {
				t.Errorf("%v after %q", c.State(), text)
			}
			if got := h.ask(opSync, syncData()); (len(got) == 0) != (tc.want == bootrom.Halted) {
				t.Errorf("SYNC got %d replies", len(got))
			}
		})
	}
}

// TestESP32KeepsLoader: this ROM does not look at its fuses between commands.
func TestESP32KeepsLoader(t *testing.T) {
	h := connect(t, newChip(t, Options{Model: model(t, "esp32")}))
	h.burn(0, 1<<27)
	h.read(chip.MagicRegister)
}

func TestFactoryWords(t *testing.T) {
	esp := newChip(t, Options{Model: model(t, "esp32"), MAC: chip.MAC{0x24, 0x0A, 0xC4, 0x7F, 0x4B, 0x06}})
	if diff := cmp.Diff([]uint32{0, 0xC47F4B06, 0x35240A, 0xA200, 0xE50, 0x01100000, 0}, esp.Fuses()[0]); diff != "" {
		t.Errorf("the recorded ESP32 from its MAC: %s", diff)
	}
	c3 := newChip(t, Options{Model: model(t, "esp32c3"), MAC: chip.MAC{0x7C, 0xDF, 0xA1, 0xC9, 0xC3, 0xB3}})
	if diff := cmp.Diff([]uint32{0xA1C9C3B3, 0x7CDF, 0, 0x03100000, 0, 0}, c3.Fuses()[1]); diff != "" {
		t.Errorf("the recorded C3 from its MAC: %s", diff)
	}
	blank := newChip(t, Options{Model: model(t, "esp32"), MAC: chip.MAC{0x24, 0x0A, 0xC4, 0, 0, 1}, Blank: true, Revision: 100})
	if diff := cmp.Diff([]uint32{0, 0xC4000001, 0xBE240A, 1 << 15, 0, 0, 0}, blank.Fuses()[0]); diff != "" { // KAT of B.8
		t.Errorf("blank: %s", diff)
	}
	if got := esp.MAC().String(); got != "24:0a:c4:7f:4b:06" {
		t.Errorf("MAC %s", got)
	}
	for rev, third := range map[chip.Revision]uint32{0: 1, 100: 0, 200: 0, 300: 1, 301: 1} { // 0 stands for the usual one
		c := newChip(t, Options{Model: model(t, "esp32"), Revision: rev})
		if v := connect(t, c).read(c.model.EFuse.RevisionBit2Register); v>>31 != third {
			t.Errorf("revision %d: third bit in 0x%x", rev, v)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	esp, c3 := model(t, "esp32"), model(t, "esp32c3")
	for _, o := range []Options{
		{},
		{Model: esp, FlashSize: 4095},
		{Model: esp, FlashSize: 32 << 20},
		{Model: c3, CodingScheme: 1},
		{Model: esp, CodingScheme: 4},
		{Model: esp, Factory: [][]uint32{make([]uint32, 8)}},
		{Model: esp, Factory: make([][]uint32, 5)},
	} {
		if c, err := New(o); err == nil {
			_ = c.Close()
			t.Errorf("%s %+v: no error", o.Model.Name, o)
		}
	}
}

// FuzzFrames throws bytes at the loader: first whole frames, then the raw line.
func FuzzFrames(f *testing.F) {
	for op := range commands {
		f.Add(packet(op, words(0x1000, 4, 1024, 0, 0)), true, true)
		f.Add(packet(op, words(4, 0, 0, 0, 0x01020304)), false, true)
		f.Add(packet(op, words(0x600089D4, 2, 0xFFFFFFFF, 1000)), true, false)
	}
	f.Add(packet(opDeflData, append(words(6, 0, 0, 0), 0x78, 0x9C, 0x63, 0x00, 0xFF, 0xFF)), false, false)
	f.Fuzz(func(t *testing.T, p []byte, esp32, secure bool) {
		name := "esp32c3"
		if esp32 {
			name = "esp32"
		}
		c := newChip(t, Options{Model: model(t, name)})
		defer func() { _ = c.Close() }()
		if secure && !esp32 {
			if err := c.SetFuse(0, 4, 1<<5); err != nil {
				t.Fatal(err)
			}
		}
		h := connect(t, c)
		h.attach()
		if !secure && !esp32 {
			h.do(opDeflBegin, h.begin(1024, 4, 1024, 0))
		}
		for len(p) > 0 {
			n := min(len(p), 1+int(p[0]))
			got := h.send(p[:n])
			for _, f := range got {
				split(t, f)
			}
			p = p[n:]
			if !c.loading() {
				connect(t, c)
			}
		}
		h.send(packet(opSync, binary.LittleEndian.AppendUint32(nil, uint32(len(p)))))
	})
}
