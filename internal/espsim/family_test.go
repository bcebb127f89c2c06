package espsim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
)

// counting is a key file 00 01 02 …
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// inBlock is how a key's part lies in its block (esp-facts B.9).
func inBlock(part []byte) []uint32 {
	r := slices.Clone(part)
	slices.Reverse(r)
	return bytesWords(r)
}

// TestKeyByteOrder pins the known answers of esp-facts B.9 and what the cipher makes
// of them.
func TestKeyByteOrder(t *testing.T) {
	second := []uint32{0x3C3D3E3F, 0x38393A3B, 0x34353637, 0x30313233, 0x2C2D2E2F, 0x28292A2B, 0x24252627, 0x20212223}
	same(t, "first half", inBlock(counting(64)[:32]), key)
	same(t, "second half", inBlock(counting(64)[32:]), second)
	same(t, "16 bytes", inBlock(counting(16)), []uint32{0x0C0D0E0F, 0x08090A0B, 0x04050607, 0x00010203})

	c := newChip(t, Options{Model: model(t, "esp32s3")})
	h := connect(t, c)
	h.burn(8, key...)    // KEY4
	h.burn(6, second...) // KEY2
	burnFields(h, map[string]uint64{"KEY_PURPOSE_4": xtsKey1Purpose, "KEY_PURPOSE_2": xtsKey2Purpose, "RD_DIS": 1<<4 | 1<<2})
	if got := c.fuse.flashKey(); !slices.Equal(bytesWords(got), append(slices.Clone(key), second...)) {
		t.Errorf("the encryption unit sees %x", got)
	}
}

// TestHybridWordsOfAll burns the fuses of esp-facts F.5 one group after the other and
// compares BLOCK0 with what the vendor's tool computed.
func TestHybridWordsOfAll(t *testing.T) {
	for _, tc := range []struct {
		chip string
		want []uint32
		last []uint32
	}{
		{"esp32", []uint32{0x07F10088, 0, 0, 0, 0, 0xF0000000, 0x3C4}, []uint32{0x0FF10088, 0, 0, 0, 0, 0xF0000000, 0x3C4}},
		{"esp32s2", []uint32{0x00800104, 0x000C8C01, 0x041C0000, 0, 2, 0}, []uint32{0x00800104, 0x000C8C01, 0x041C0000, 0, 0x22, 0}},
		{"esp32s3", []uint32{0x00800104, 0x00180C01, 0x041C0000, 0x00400000, 2, 0}, []uint32{0x00800104, 0x00180C01, 0x041C0000, 0x00400000, 0x22, 0}},
		{"esp32c2", []uint32{0x80, 0x83F1}, []uint32{0x80, 0x183F1}},
		{"esp32c3", []uint32{0x00800104, 0x00180601, 0x041C0000, 0, 2, 0}, []uint32{0x00800104, 0x00180601, 0x041C0000, 0, 0x22, 0}},
		{"esp32c6", []uint32{0x00800104, 0x00180601, 0x041C0000, 0, 2, 0}, []uint32{0x00800104, 0x00180601, 0x041C0000, 0, 0x22, 0}},
		{"esp32h2", []uint32{0x00800104, 0x40180201, 0x041C0000, 0, 2, 0}, []uint32{0x00800104, 0x40180201, 0x041C0000, 0, 0x22, 0}},
		{"esp32c5", []uint32{0x00800104, 0x00182201, 0x01070000, 0, 0x08000002, 0}, []uint32{0x00800104, 0x00182201, 0x01070000, 0, 0x08000022, 0}},
		{"esp32c61", []uint32{0x00800104, 0x03806901, 4, 0x08000002, 0, 0}, []uint32{0x00800104, 0x03806901, 4, 0x08000012, 0, 0}},
		{"esp32p4", []uint32{0x00800100, 0x00182201, 0x041C0000, 0, 2, 0x00010000}, []uint32{0x00800100, 0x00182201, 0x041C0000, 0, 0x22, 0x00010000}},
	} {
		m := model(t, tc.chip)
		c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
		h := connect(t, c)
		keyName := c.fuse.blocks[keyBlock(m)].Name
		protect := map[string]uint64{"WR_DIS." + keyName: 1, "RD_DIS": 1}
		if m.EFuse.KeyBlocks > 1 {
			protect["KEY_PURPOSE_0"], protect["WR_DIS.KEY_PURPOSE_0"] = xtsPurpose, 1
		}
		burnFields(h, protect)
		lock := map[string]uint64{}
		for _, a := range append(m.Lockdown.Enable, m.Lockdown.Fuses...) {
			lock[a.Field] = uint64(a.Value)
		}
		burnFields(h, lock)
		burnFields(h, map[string]uint64{m.EFuse.FlashCryptCount: uint64(m.EFuse.FlashCryptCountFull)})
		for _, f := range m.Lockdown.WriteProtect {
			burnFields(h, map[string]uint64{"WR_DIS." + f: 1})
		}
		same(t, tc.chip, c.Fuses()[0], tc.want)
		// The loader of most chips ends with this one: look at the array.
		f, _ := c.tab.Field(m.Lockdown.ReleaseFuse)
		if err := c.SetFuse(0, f.Bits()[0]/32, 1<<(f.Bits()[0]%32)); err != nil {
			t.Fatal(err)
		}
		same(t, tc.chip+" in the end", c.Fuses()[0], tc.last)
	}
}

// provisioned is a board with an encrypted product in its flash, its fuses as said.
func provisioned(t *testing.T, m chip.Model, scheme chip.Scheme, file []byte, blocks map[int][]byte, fields map[string]uint64) *Chip {
	t.Helper()
	c := newChip(t, Options{Model: m, AppPrints: "app says hello"})
	files, err := sample.Files(sample.Product{Chip: m})
	if err != nil {
		t.Fatal(err)
	}
	cipher, err := flashcrypt.New(scheme, file, 0xF)
	if err != nil {
		t.Fatal(err)
	}
	for at, data := range files {
		data = append(bytes.Clone(data), bytes.Repeat([]byte{0xFF}, -len(data)&0xFFF)...)
		if err := cipher.Encrypt(data, data, at); err != nil {
			t.Fatal(err)
		}
		if err := c.Flash().Program(at, data); err != nil {
			t.Fatal(err)
		}
	}
	h := connect(t, c)
	for b, part := range blocks {
		h.burn(b, inBlock(part)...)
	}
	fields["FLASH_CRYPT_CONFIG"] = 0xF
	fields[m.EFuse.FlashCryptCount] = uint64(m.EFuse.FlashCryptCountFull)
	burnFields(h, fields)
	c.ResetInto(false)
	return c
}

// TestLongKeys: XTS-AES-256 takes its halves from the blocks with the two purposes,
// wherever they are; swapped, incomplete, in a useless block or beside a short key
// they do not boot.
func TestLongKeys(t *testing.T) {
	file := counting(64)
	for _, name := range []string{"esp32s2", "esp32s3", "esp32p4"} {
		m := model(t, name)
		purposes := func(first, second int) map[string]uint64 {
			return map[string]uint64{
				fmt.Sprintf("KEY_PURPOSE_%d", first):  xtsKey1Purpose,
				fmt.Sprintf("KEY_PURPOSE_%d", second): xtsKey2Purpose,
				"RD_DIS":                              1<<first | 1<<second,
			}
		}
		wrong := slices.Clone(file)
		wrong[40] ^= 1
		beside := purposes(0, 1)
		beside["KEY_PURPOSE_2"] = xtsPurpose
		last := bootrom.Running
		if m.EFuse.NoXTSInLastKey {
			last = bootrom.Looping
		}
		for what, tc := range map[string]struct {
			blocks map[int][]byte
			fields map[string]uint64
			want   bootrom.State
		}{
			"as it should be":    {map[int][]byte{4: file[:32], 5: file[32:]}, purposes(0, 1), bootrom.Running},
			"other blocks":       {map[int][]byte{8: file[:32], 6: file[32:]}, purposes(4, 2), bootrom.Running},
			"wrong second half":  {map[int][]byte{4: file[:32], 5: wrong[32:]}, purposes(0, 1), bootrom.Looping},
			"halves swapped":     {map[int][]byte{4: file[32:], 5: file[:32]}, purposes(0, 1), bootrom.Looping},
			"purposes swapped":   {map[int][]byte{4: file[:32], 5: file[32:]}, purposes(1, 0), bootrom.Looping},
			"one half":           {map[int][]byte{4: file[:32]}, map[string]uint64{"KEY_PURPOSE_0": xtsKey1Purpose}, bootrom.Looping},
			"a short key beside": {map[int][]byte{4: file[:32], 5: file[32:], 6: file[:32]}, beside, bootrom.Looping},
			"KEY5":               {map[int][]byte{4: file[:32], 9: file[32:]}, purposes(0, 5), last},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if c := provisioned(t, m, chip.SchemeXTS256, file, tc.blocks, tc.fields); c.State() != tc.want {
						t.Errorf("%v:\n%.600s", c.State(), c.BootText())
					}
				})
			})
		}
	}
}

// TestC2Keys: the ESP32-C2's block holds a key of 32 bytes, or one of 16 with room for
// a digest; XTS_KEY_LENGTH_256 says which, and the two halves hide apart.
func TestC2Keys(t *testing.T) {
	m := model(t, "esp32c2")
	for what, tc := range map[string]struct {
		scheme chip.Scheme
		key    int
		long   uint64
		want   bootrom.State
	}{
		"32 bytes":               {chip.SchemeXTS128, 32, 1, bootrom.Running},
		"32 bytes, not told":     {chip.SchemeXTS128, 32, 0, bootrom.Looping},
		"16 bytes":               {chip.SchemeXTSDerived, 16, 0, bootrom.Running},
		"16 bytes, wrong length": {chip.SchemeXTSDerived, 16, 1, bootrom.Looping},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := provisioned(t, m, tc.scheme, counting(tc.key), map[int][]byte{3: counting(tc.key)},
					map[string]uint64{"XTS_KEY_LENGTH_256": tc.long, "RD_DIS": 1})
				if c.State() != tc.want {
					t.Errorf("%v:\n%.600s", c.State(), c.BootText())
				}
			})
		})
	}

	digest := sha256.Sum256([]byte("key"))
	c := newChip(t, Options{Model: m})
	h := connect(t, c)
	h.burn(3, append(inBlock(counting(16)), bytesWords(digest[:16])...)...) // one burn for both
	burnFields(h, map[string]uint64{"RD_DIS": 1})
	want := append(make([]uint32, 4), bytesWords(digest[:16])...)
	same(t, "with the low half hidden", h.block(3), want)
	burnFields(h, map[string]uint64{"RD_DIS": 2})
	same(t, "with both hidden", h.block(3), zeroBlock)
	h.burn(3, 1<<31) // a second burn is another code word
	if v := h.read(m.EFuse.RSErr[0]); v>>8&0xF == 0 {
		t.Errorf("RS_ERR %08x after a second burn", v)
	}
}

// TestErrorRegisters: block n counts in nibble n-1, and its fail bit is there too but
// on the ESP32-C3. Where the registers are is the model's.
func TestErrorRegisters(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		if m.EFuse.Kind == chip.EFuseESP32 {
			return
		}
		n := len(newChip(t, Options{Model: m}).fuse.blocks) - 1
		for _, block := range []int{1, 3, n} {
			c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
			h := connect(t, c)
			read := func() uint64 {
				v := uint64(h.read(m.EFuse.RSErr[0]))
				if m.EFuse.RSErr[1] != 0 {
					v |= uint64(h.read(m.EFuse.RSErr[1])) << 32
				}
				return v
			}
			words := key[:c.fuse.blocks[block].Words]
			h.timing()
			h.fill(block, words)
			h.write(m.EFuse.CheckValue+4, h.read(m.EFuse.CheckValue+4)^0x40)
			h.program(block)
			h.refresh()
			if got, want := read(), uint64(1)<<(4*(block-1)); got != want {
				t.Errorf("block %d with one wrong byte: %x, want %x", block, got, want)
			}
			h.burn(block, slices.Repeat([]uint32{0x80402010}, len(words))...)
			fail := uint64(8) << (4 * (block - 1))
			if m.EFuse.RSFailShifted {
				if fail <<= 4; block == n {
					fail = 0
				}
			}
			if got, want := read(), uint64(7)<<(4*(block-1))|fail; got != want {
				t.Errorf("block %d burned twice: %x, want %x", block, got, want)
			}
		}
	})
}

// TestFourCopiesOfAll: copies of BLOCK0 that disagree show in the register of their word.
func TestFourCopiesOfAll(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		if m.EFuse.Kind == chip.EFuseESP32 {
			return
		}
		c := newChip(t, Options{Model: m, Factory: [][]uint32{}})
		words := c.fuse.blocks[0].Words
		c.fuse.cells[0][1*words+1] |= 1 << 3 // one copy of word 1
		h := connect(t, c)
		if h.block(0)[1] != 0 || h.read(m.EFuse.RepeatErr) != 1<<3 {
			t.Errorf("word %08x, REPEAT_ERR0 %08x", h.block(0)[1], h.read(m.EFuse.RepeatErr))
		}
	})
}

// TestRates: a ROM that takes another crystal for granted gives another rate than it
// was asked for (esp-facts A.6).
func TestRates(t *testing.T) {
	for _, tc := range []struct {
		chip     string
		rev      chip.Revision
		crystal  int
		ask, got int
	}{
		{"esp32c2", 0, 40, 460800, 460800},
		{"esp32c2", 0, 26, 460800 * 40 / 26, 460800},
		{"esp32c2", 0, 26, 460800, 460800 * 26 / 40},
		{"esp32c5", 102, 48, 460800, 460800},
		{"esp32c5", 102, 40, 460800 * 48 / 40, 460800},
		{"esp32c5", 1, 48, 460800 * 40 / 48, 460800},
		{"esp32h2", 0, 32, 460800, 460800},
	} {
		c := newChip(t, Options{Model: model(t, tc.chip), Revision: tc.rev, Crystal: tc.crystal})
		h := connect(t, c)
		if r := c.model.ROM.BaudCrystalReg; r != 0 {
			if got := int(h.read(r) >> 24 & 0x7F); got != c.si.ROMCrystal(c.revision) {
				t.Errorf("%s: the register says %d MHz", tc.chip, got)
			}
		}
		if got, want := int(h.read(c.model.UART.ClkDiv)), tc.crystal*1_000_000/115200-1; got != want {
			t.Errorf("%s: CLKDIV %d, want %d", tc.chip, got, want)
		}
		h.do(opChangeBaud, words(uint32(tc.ask), 0))
		if c.rate < tc.got-1 || c.rate > tc.got+1 {
			t.Errorf("%s at %d MHz asked for %d: %d, want %d", tc.chip, tc.crystal, tc.ask, c.rate, tc.got)
		}
	}
	if _, err := New(Options{Model: model(t, "esp32c3"), Crystal: 26}); err == nil {
		t.Error("an ESP32-C3 with 26 MHz")
	}
	// What the ROM prints before anybody spoke comes at the wrong rate too.
	c := newChip(t, Options{Model: model(t, "esp32c2"), Crystal: 26})
	c.ResetInto(true)
	if c.rate != 74880 {
		t.Errorf("the text comes at %d", c.rate)
	}
}

// TestWatchdogReset: the RTC watchdog, unlocked, resets the chip and samples the strap.
func TestWatchdogReset(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		writes := m.WatchdogReset()
		synctest.Test(t, func(t *testing.T) {
			c := newChip(t, Options{Model: m})
			h := connect(t, c)
			for _, w := range writes {
				h.do(opWriteReg, words(w.Addr, w.Value, w.Mask, 0))
			}
			time.Sleep(500 * time.Millisecond)
			want := bootrom.Looping // there is nothing in flash
			if len(writes) == 0 {
				want = bootrom.Download
			}
			if c.State() != want {
				t.Errorf("the chip is in %v", c.State())
			}
			if len(writes) == 0 {
				return
			}
			// Locked, it heeds nothing.
			h = connect(t, c)
			for _, w := range writes[1:] {
				h.do(opWriteReg, words(w.Addr, w.Value, w.Mask, 0))
			}
			time.Sleep(500 * time.Millisecond)
			if c.State() != bootrom.Download {
				t.Errorf("a locked watchdog reset the chip: %v", c.State())
			}
		})
	})
}

// TestFlashPower: the ESP32-P4's loader leaves the flash off on two revisions, and the
// way out has its errata (esp-facts H 10).
func TestFlashPower(t *testing.T) {
	m := model(t, "esp32p4")
	open := func(t *testing.T, rev chip.Revision, fuse bool) (*Chip, *host) {
		c := newChip(t, Options{Model: m, Revision: rev})
		if fuse {
			f, _ := c.tab.Field("DOWNLOAD_MODE_XPD_ON")
			if err := c.SetFuse(0, f.Bits()[0]/32, 1<<(f.Bits()[0]%32)); err != nil {
				t.Fatal(err)
			}
		}
		return c, connect(t, c)
	}
	begin := func(h *host) byte {
		h.do(opSPIAttach, words(0, 0))
		return h.one(opFlashBegin, h.begin(4096, 4, 1024, 0)).status[0]
	}
	for rev, want := range map[chip.Revision]byte{103: 0, 300: 0, 301: 1, 302: 1} {
		if _, h := open(t, rev, false); begin(h) != want {
			t.Errorf("%v: FLASH_BEGIN status is not %d", rev, want)
		}
	}
	c, h := open(t, 302, false)
	h.attach() // with the supply's registers
	h.do(opFlashBegin, h.begin(4096, 4, 1024, 0))
	h = connect(t, c)
	if begin(h) != 0 {
		t.Error("the flash lost its supply at a reset")
	}
	c.Power(false)
	c.Power(true)
	if begin(connect(t, c)) == 0 {
		t.Error("the flash kept its supply without power")
	}

	// ROM-770: the fuse does not help v3.1. ROM-816: on v3.2 it helps once.
	if _, h := open(t, 301, true); begin(h) == 0 {
		t.Error("v3.1 heeds DOWNLOAD_MODE_XPD_ON")
	}
	c, h = open(t, 302, true)
	if begin(h) != 0 {
		t.Error("v3.2 does not heed DOWNLOAD_MODE_XPD_ON")
	}
	c.ResetInto(true)
	if c.State() != bootrom.Halted {
		t.Errorf("the second entry into the loader: %v", c.State())
	}
	c.Power(false)
	c.Power(true)
	h = connect(t, c)
	h.write(c.si.FlashPower.Force, 0) // what the vendor's tool does about it
	c.ResetInto(true)
	if c.State() != bootrom.Download {
		t.Errorf("the second entry after the bits were cleared: %v", c.State())
	}
}

// TestUSBFuses: the ESP32-S3's loader crashes with both fuses burned, and a port on
// the chip's own unit is gone with its fuse.
func TestUSBFuses(t *testing.T) {
	set := func(c *Chip, names ...string) {
		for _, n := range names {
			f, ok := c.tab.Field(n)
			if !ok {
				t.Fatalf("no field %s", n)
			}
			if err := c.SetFuse(0, f.Bits()[0]/32, 1<<(f.Bits()[0]%32)); err != nil {
				t.Fatal(err)
			}
		}
		c.ResetInto(true)
	}
	for _, names := range [][]string{{"DIS_USB_JTAG"}, {"DIS_USB_SERIAL_JTAG"}, {"DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG"}} {
		c := newChip(t, Options{Model: model(t, "esp32s3")})
		if set(c, names...); c.State() == bootrom.Download == (len(names) == 2) {
			t.Errorf("%v: %v", names, c.State())
		}
	}
	for usb, want := range map[bool]bootrom.State{true: bootrom.Halted, false: bootrom.Download} {
		c := newChip(t, Options{Model: model(t, "esp32c6"), USBSerial: usb})
		if set(c, "DIS_USB_SERIAL_JTAG_DOWNLOAD_MODE"); c.State() != want {
			t.Errorf("USB %v: %v", usb, c.State())
		}
	}
	for _, name := range []string{"esp32", "esp32s2", "esp32c2"} {
		if _, err := New(Options{Model: model(t, name), USBSerial: true}); err == nil {
			t.Errorf("an %s with a USB-Serial-JTAG unit", name)
		}
	}
}

// TestFirstRevision: a chip that is asked for as v0.0 is v0.0, and not a usual one.
func TestFirstRevision(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		if c := newChip(t, Options{Model: m, Revision: RevisionOf(0)}); c.Revision() != 0 {
			t.Errorf("it is %v", c.Revision())
		}
		if c := newChip(t, Options{Model: m, Revision: RevisionOf(1)}); c.Revision() != 1 {
			t.Errorf("it is %v", c.Revision())
		}
	})
}

// TestSecureDownloadWraps: with more than 16 MB of flash the loader in Secure Download
// Mode sends three address bytes.
func TestSecureDownloadWraps(t *testing.T) {
	for _, secure := range []bool{false, true} {
		c := newChip(t, Options{Model: model(t, "esp32s3"), FlashSize: 32 << 20})
		if secure {
			f, _ := c.tab.Field("ENABLE_SECURITY_DOWNLOAD")
			if err := c.SetFuse(0, f.Bits()[0]/32, 1<<(f.Bits()[0]%32)); err != nil {
				t.Fatal(err)
			}
		}
		h := connect(t, c)
		h.attach()
		h.do(opSPISetParams, words(0, 32<<20, 0x10000, 0x1000, 0x100, 0xFFFF))
		h.do(opFlashBegin, h.begin(4096, 4, 1024, 0x1000000))
		h.do(opFlashData, append(words(1024, 0, 0, 0), bytes.Repeat([]byte{0x5A}, 1024)...))
		at := int64(0x1000000)
		if secure {
			at = 0
		}
		got := make([]byte, 1)
		if _, err := c.Flash().ReadAt(got, at); err != nil || got[0] != 0x5A {
			t.Errorf("secure %v: 0x%x at 0x%x, %v", secure, got[0], at, err)
		}
	}
}

// TestSecurityInfoForms: the reply has the chip's length, its id and its purposes.
func TestSecurityInfoForms(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		if !m.ROM.SecurityInfo {
			refusal(t, h.ask(opSecurityInfo, nil), opSync)
			return
		}
		if m.EFuse.KeyBlocks == 6 {
			burnFields(h, map[string]uint64{"KEY_PURPOSE_3": 9, "SECURE_BOOT_EN": 1})
		}
		data := h.do(opSecurityInfo, nil).data
		want := 20
		if m.Name == "esp32s2" {
			want = 12
		}
		if len(data) != want {
			t.Fatalf("%d bytes, want %d", len(data), want)
		}
		if m.EFuse.KeyBlocks == 6 && (data[8] != 9 || data[0]&1 != 1) {
			t.Errorf("%x", data)
		}
		if want == 20 && (data[12] != byte(m.ID) || data[13] != 0) {
			t.Errorf("chip id %x", data[12:16])
		}
	})
}

// TestRevisions: every chip's fuses tell what revision it is, in its own fields.
func TestRevisions(t *testing.T) {
	for name, revs := range map[string][]chip.Revision{
		"esp32s2": {0, 100}, "esp32s3": {1, 2}, "esp32c2": {100, 200}, "esp32c3": {4, 101}, "esp32c6": {1, 2},
		"esp32h2": {1, 102}, "esp32p4": {103, 300, 302}, "esp32c5": {100, 102}, "esp32c61": {100},
	} {
		for _, rev := range revs {
			if rev == 0 {
				continue // stands for the usual one
			}
			c := newChip(t, Options{Model: model(t, name), Revision: rev})
			var minor, major uint64
			if _, ok := c.tab.Field("WAFER_VERSION_MINOR"); ok {
				minor = c.fuse.field("WAFER_VERSION_MINOR")
			} else {
				minor = c.fuse.field("WAFER_VERSION_MINOR_LO") | c.fuse.field("WAFER_VERSION_MINOR_HI")<<3
			}
			if _, ok := c.tab.Field("WAFER_VERSION_MAJOR"); ok {
				major = c.fuse.field("WAFER_VERSION_MAJOR")
			} else {
				major = c.fuse.field("WAFER_VERSION_MAJOR_LO") | c.fuse.field("WAFER_VERSION_MAJOR_HI")<<2
			}
			if chip.Revision(major*100+minor) != rev {
				t.Errorf("%s: the fuses of %v say %d.%d", name, rev, major, minor)
			}
		}
	}
}

// TestChipEncrypts: the loader encrypts what it writes with the chip's key when asked,
// until a fuse forbids it.
func TestChipEncrypts(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		if m.ROM.FlashBeginWords != 5 {
			return
		}
		c := newChip(t, Options{Model: m})
		h := connect(t, c)
		h.attach()
		h.burn(keyBlock(m), key...)
		burnFields(h, map[string]uint64{"KEY_PURPOSE_0": xtsPurpose, "RD_DIS": 1})
		if m.EFuse.KeyBlocks == 1 {
			burnFields(h, map[string]uint64{"XTS_KEY_LENGTH_256": 1})
		}
		plain := bytes.Repeat([]byte("sixteen bytes...\x00"), 64)[:1024]
		h.do(opFlashBegin, words(1024, 1, 1024, 0x10000, 1))
		h.do(opFlashData, append(words(1024, 0, 0, 0), plain...))
		cipher, err := flashcrypt.New(chip.SchemeXTS128, counting(32), 0)
		if err != nil {
			t.Fatal(err)
		}
		want, got := make([]byte, 1024), make([]byte, 1024)
		if err := cipher.Encrypt(want, plain, 0x10000); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Flash().ReadAt(got, 0x10000); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the flash holds %x…, want %x… (%v)", got[:16], want[:16], err)
		}
		burnFields(h, map[string]uint64{"DIS_DOWNLOAD_MANUAL_ENCRYPT": 1})
		h.failure(opFlashBegin, words(1024, 1, 1024, 0x10000, 1), errParam)
	})
}
