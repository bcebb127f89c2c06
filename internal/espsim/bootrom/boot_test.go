package bootrom

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

// The tests build images of their own, with the little that follows.

type seg struct {
	load uint32
	data []byte
}

type imageSpec struct {
	chip           chip.ID
	minRev, maxRev uint16
	sizeFreq       byte
	noHash         bool
	segs           []seg
	count          int // segment count to claim; 0: the true one
}

func (s imageSpec) build() []byte {
	b := make([]byte, 24)
	b[0], b[1], b[2], b[3] = 0xE9, byte(len(s.segs)), 2, s.sizeFreq
	if s.count != 0 {
		b[1] = byte(s.count)
	}
	binary.LittleEndian.PutUint32(b[4:], s.segs[len(s.segs)-1].load)
	b[8] = 0xEE
	binary.LittleEndian.PutUint16(b[12:], uint16(s.chip))
	binary.LittleEndian.PutUint16(b[15:], s.minRev)
	binary.LittleEndian.PutUint16(b[17:], s.maxRev)
	if !s.noHash {
		b[23] = 1
	}
	check := byte(0xEF)
	for _, g := range s.segs {
		b = binary.LittleEndian.AppendUint32(b, g.load)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(g.data)))
		b = append(b, g.data...)
		for _, x := range g.data {
			check ^= x
		}
	}
	for len(b)%16 != 15 {
		b = append(b, 0)
	}
	b = append(b, check)
	if !s.noHash {
		h := sha256.Sum256(b)
		b = append(b, h[:]...)
	}
	return b
}

type row struct {
	typ, sub     byte
	offset, size uint32
	label        string
}

func buildTable(rows []row, withMD5 bool) []byte {
	var b []byte
	for _, r := range rows {
		x := make([]byte, 32)
		x[0], x[1], x[2], x[3] = 0xAA, 0x50, r.typ, r.sub
		binary.LittleEndian.PutUint32(x[4:], r.offset)
		binary.LittleEndian.PutUint32(x[8:], r.size)
		copy(x[12:28], r.label)
		b = append(b, x...)
	}
	if withMD5 {
		h := md5.Sum(b)
		b = append(b, 0xEB, 0xEB)
		b = append(b, bytes.Repeat([]byte{0xFF}, 14)...)
		b = append(b, h[:]...)
	}
	return append(b, bytes.Repeat([]byte{0xFF}, 0x1000-len(b))...)
}

func otadata(seq, state uint32) []byte {
	b := bytes.Repeat([]byte{0xFF}, 32)
	binary.LittleEndian.PutUint32(b, seq)
	binary.LittleEndian.PutUint32(b[24:], state)
	binary.LittleEndian.PutUint32(b[28:], crc32.Update(0xFFFFFFFF, crc32.IEEETable, b[:4]))
	return b
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

const flashSize = 4 << 20

var defaultRows = []row{
	{1, 2, 0x9000, 0x4000, "nvs"},
	{1, 0, 0xD000, 0x2000, "otadata"},
	{1, 1, 0xF000, 0x1000, "phy_init"},
	{0, 0, 0x10000, 0x10000, "factory"},
	{0, 0x10, 0x20000, 0x10000, "ota_0"},
	{0, 0x11, 0x30000, 0x10000, "ota_1"},
}

const appText = "factory-selftest: app running"

// board is a flash in plaintext with the chip around it. input encrypts it.
type board struct {
	model    chip.Model
	parts    map[uint32][]byte // plaintext by address
	raw      map[uint32][]byte // written as is, over parts
	key      []byte            // as in a key file
	count    uint32
	size     uint32 // of the flash; in.FlashSize is what the chip believes
	in       Input
	flip     uint32 // flash address of a byte to damage after encryption
	flipMask byte
}

func modelOf(t testing.TB, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func spec(m chip.Model, app bool) imageSpec {
	s := imageSpec{chip: m.ID, sizeFreq: 0x20, maxRev: 0xFFFF}
	si, err := silicon.Of(m.Name)
	if err != nil {
		panic(err)
	}
	drom, iram, boot := si.Memory.Mapped[0].Low+0x20, si.Memory.Loaded[0].Low, si.Memory.Loaded[0].Low+0x10000
	switch m.Name { // as TestText has them
	case "esp32":
		iram, boot = 0x40080000, 0x40078000
	case "esp32c3":
		iram, boot = 0x40380000, 0x403CE000
	}
	if app {
		s.segs = []seg{{drom, random(1, 0x100)}, {iram, random(2, 0x40)}}
	} else {
		s.segs = []seg{{boot - 0x8000, random(3, 4)}, {boot, random(4, 0xA0)}}
	}
	return s
}

// newBoard is a board that boots: encrypted, with the initial otadata.
func newBoard(t testing.TB, name string) *board {
	m := modelOf(t, name)
	b := &board{model: m, key: random(7, 32), count: m.EFuse.FlashCryptCountFull, size: flashSize, raw: map[uint32][]byte{}}
	si, err := silicon.Of(name)
	if err != nil {
		t.Fatal(err)
	}
	rev := si.Revision
	switch name { // as TestText has them
	case "esp32":
		rev = 300
	case "esp32c3":
		rev = 3
	}
	b.in = Input{Model: m, Revision: rev, FlashSize: flashSize, FlashCryptConfig: 0xF, AppPrints: appText}
	b.parts = map[uint32][]byte{
		m.BootloaderOffset: spec(m, false).build(),
		0x8000:             buildTable(defaultRows, true),
		0xD000:             bytes.Repeat([]byte{0xFF}, 0x2000),
		0x10000:            spec(m, true).build(),
	}
	return b
}

func (b *board) encrypted() bool { return bits.OnesCount32(b.count)%2 == 1 }

func (b *board) input() Input {
	flash := bytes.Repeat([]byte{0xFF}, int(b.size))
	for at, p := range b.parts {
		if b.encrypted() {
			p = append(slices.Clone(p), bytes.Repeat([]byte{0xFF}, -len(p)&15)...)
			p = encrypt(b.model.Scheme, b.in.FlashCryptConfig, b.key, p, at)
		}
		copy(flash[at:], p)
	}
	for at, p := range b.raw {
		copy(flash[at:], p)
	}
	if b.flipMask != 0 {
		flash[b.flip] ^= b.flipMask
	}
	in := b.in
	in.Flash, in.FlashCryptCount = bytes.NewReader(flash), b.count
	if in.Key == nil {
		in.Key = array(b.key)
	}
	return in
}

func (b *board) boot() Output { return Boot(b.input()) }

func eachChip(t *testing.T, f func(t *testing.T, name string)) {
	for _, m := range chip.All() {
		t.Run(m.Name, func(t *testing.T) { f(t, m.Name) })
	}
}

func wantRunning(t *testing.T, out Output, from uint32) {
	t.Helper()
	text := string(out.Text)
	loaded := fmt.Sprintf("Loaded app from partition at offset 0x%x\r\n", from)
	if out.State != Running || out.Loop != nil || !strings.Contains(text, loaded) || !strings.HasSuffix(text, "\r\n"+appText+"\r\n") {
		t.Errorf("state %v, want the app at 0x%x to run:\n%s", out.State, from, text)
	}
}

func wantLoop(t *testing.T, out Output, lines ...string) {
	t.Helper()
	if out.State != Looping || bytes.Contains(out.Text, []byte(appText)) || bytes.Contains(out.Loop, []byte(appText)) {
		t.Errorf("state %v, want a boot loop without the app's text:\n%s", out.State, out.Text)
	}
	for _, text := range [][]byte{out.Text, out.Loop} {
		for _, l := range lines {
			if !strings.Contains(string(text), l) {
				t.Errorf("%q is missing in:\n%s", l, text)
			}
		}
	}
}

func TestBoots(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		full := modelOf(t, name).EFuse.FlashCryptCountFull
		for _, count := range []uint32{0, 1, 3, full} {
			b := newBoard(t, name)
			b.count = count
			wantRunning(t, b.boot(), 0x10000)
			again := b.boot()
			if !bytes.Equal(b.boot().Text, again.Text) {
				t.Error("the same boot prints different text")
			}
		}
	})
}

// TestText pins what a good boot prints, line by line.
func TestText(t *testing.T) {
	rows := "I (35) boot: Partition Table:\r\n" +
		"I (40) boot: ## Label            Usage          Type ST Offset   Length\r\n" +
		"I (45) boot:  0 nvs              WiFi data        01 02 00009000 00004000\r\n" +
		"I (50) boot:  1 otadata          OTA data         01 00 0000d000 00002000\r\n" +
		"I (55) boot:  2 phy_init         RF data          01 01 0000f000 00001000\r\n" +
		"I (60) boot:  3 factory          factory app      00 00 00010000 00010000\r\n" +
		"I (65) boot:  4 ota_0            OTA app          00 10 00020000 00010000\r\n" +
		"I (70) boot:  5 ota_1            OTA app          00 11 00030000 00010000\r\n" +
		"I (75) boot: End of partition table\r\n" +
		"I (80) boot: Defaulting to factory image\r\n"
	tail := "I (95) boot: Loaded app from partition at offset 0x10000\r\n" + appText + "\r\n"
	for name, want := range map[string]string{
		"esp32": "ets Jul 29 2019 12:21:46\r\n\r\n" +
			"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n" +
			"configsip: 0, SPIWP:0xee\r\n" +
			"clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00\r\n" +
			"mode:DIO, clock div:2\r\n" +
			"load:0x40070000,len:4\r\nload:0x40078000,len:160\r\nentry 0x40078000\r\n" +
			"I (30) boot: ESP-IDF 2nd stage bootloader (simulated)\r\n" +
			"I (35) boot: chip revision: v3.0\r\n" + shift(rows, 5) +
			"I (90) esp_image: segment 0: paddr=00010020 vaddr=3f400020 size=00100h (   256) map\r\n" +
			"I (95) esp_image: segment 1: paddr=00010128 vaddr=40080000 size=00040h (    64) load\r\n" + shift(tail, 5),
		"esp32c3": "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n" +
			"rst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\n" +
			"SPIWP:0xee\r\nmode:DIO, clock div:2\r\n" +
			"load:0x403c6000,len:0x4\r\nload:0x403ce000,len:0xa0\r\nentry 0x403ce000\r\n" +
			"I (30) boot: ESP-IDF 2nd stage bootloader (simulated)\r\n" +
			"I (35) boot: chip revision: v0.3\r\n" + shift(rows, 5) +
			"I (90) esp_image: segment 0: paddr=00010020 vaddr=3c000020 size=00100h (   256) map\r\n" +
			"I (95) esp_image: segment 1: paddr=00010128 vaddr=40380000 size=00040h (    64) load\r\n" + shift(tail, 5),
	} {
		if got := string(newBoard(t, name).boot().Text); got != want {
			t.Errorf("%s prints\n%q\nwant\n%q", name, got, want)
		}
	}
}

// shift moves the time stamps of log lines.
func shift(lines string, by int) string {
	var out strings.Builder
	for _, l := range strings.SplitAfter(lines, "\r\n") {
		var ms int
		if n, _ := fmt.Sscanf(l, "I (%d)", &ms); n == 1 {
			l = strings.Replace(l, fmt.Sprintf("(%d)", ms), fmt.Sprintf("(%d)", ms+by), 1)
		}
		out.WriteString(l)
	}
	return out.String()
}

func TestWrongEncryption(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		m := modelOf(t, name)
		loader := m.BootloaderOffset
		otherKey := slices.Clone(newBoard(t, name).key)
		otherKey[31] ^= 1
		for _, c := range []struct {
			name  string
			spoil func(b *board)
			line  string
		}{
			{"one key bit wrong", func(b *board) { b.in.Key = reversed(otherKey) }, "invalid header: 0x"},
			{"key not reversed", func(b *board) { b.in.Key = b.key }, "invalid header: 0x"},
			{"counter even", func(b *board) {
				b.raw = map[uint32][]byte{0: flashOf(b.input())}
				b.count = 3
			}, "invalid header: 0x"},
			{"plaintext everywhere", func(b *board) {
				c := b.count
				b.count = 0
				b.raw = map[uint32][]byte{0: flashOf(b.input())}
				b.count = c
			}, "invalid header: 0x"},
			{"bootloader in plaintext", func(b *board) { b.raw[loader] = b.parts[loader] }, "invalid header: 0x"},
			{"bootloader for another address", func(b *board) {
				b.raw[loader] = encrypt(m.Scheme, 0xF, b.key, b.parts[loader], 0x20000)
			}, "invalid header: 0x"},
			{"table in plaintext", func(b *board) { b.raw[0x8000] = b.parts[0x8000] }, "flash_parts: partition 0 invalid magic number 0x"},
			{"table for another address", func(b *board) {
				b.raw[0x8000] = encrypt(m.Scheme, 0xF, b.key, b.parts[0x8000], 0x9000)
			}, "flash_parts: partition 0 invalid magic number 0x"},
			{"app in plaintext", func(b *board) { b.raw[0x10000] = b.parts[0x10000] }, "esp_image: image at 0x10000 has invalid magic byte"},
			{"app for another slot", func(b *board) {
				b.raw[0x10000] = encrypt(m.Scheme, 0xF, b.key, b.parts[0x10000], 0x20000)
			}, "esp_image: image at 0x10000 has invalid magic byte"},
			{"app erased", func(b *board) { delete(b.parts, 0x10000) }, "boot: No bootable app partitions in the partition table"},
			{"flash erased", func(b *board) { clear(b.parts) }, "invalid header: 0x"},
		} {
			b := newBoard(t, name)
			c.spoil(b)
			out := b.boot()
			wantLoop(t, out, c.line)
			if t.Failed() {
				t.Fatalf("in case %q", c.name)
			}
		}
	})
}

func flashOf(in Input) []byte {
	p := make([]byte, in.FlashSize)
	_, _ = in.Flash.ReadAt(p, 0)
	return p
}

// TestNoKey: a crypt counter without a key block gives a key of zeros.
func TestNoKey(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		in := b.input()
		in.Key = nil
		wantLoop(t, Boot(in), "invalid header")
		b.key = make([]byte, 32)
		in = b.input()
		in.Key = nil
		wantRunning(t, Boot(in), 0x10000)
	})
}

func TestKeyOf24Bytes(t *testing.T) {
	b := newBoard(t, "esp32")
	b.key = random(9, 24)
	wantRunning(t, b.boot(), 0x10000)
	b.in.FlashCryptConfig = 0x3
	wantRunning(t, b.boot(), 0x10000)
	in := b.input()
	in.FlashCryptConfig = 0xF
	wantLoop(t, Boot(in), "invalid header")
}

// TestFlippedByte damages one ciphertext byte at a time: all of the bootloader and
// the app, and the used rows of the table. None may boot.
func TestFlippedByte(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		in := b.input()
		flash := flashOf(in)
		in.Flash = bytes.NewReader(flash)
		for at, p := range b.parts {
			n := len(p)
			switch at {
			case 0xD000:
				continue
			case 0x8000:
				n = (len(defaultRows) + 1) * 32
			}
			for i := at; i < at+uint32(n); i++ {
				mask := byte(1) << (i % 8)
				flash[i] ^= mask
				if out := Boot(in); out.State != Looping || bytes.Contains(out.Text, []byte(appText)) {
					t.Errorf("byte 0x%x flipped: %v", i, out.State)
				}
				flash[i] ^= mask
			}
		}
		wantRunning(t, Boot(in), 0x10000)
	})
}

// TestFlippedPlaintext does it without encryption, where one bit is one bit.
func TestFlippedPlaintext(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		b.count = 0
		in := b.input()
		flash := flashOf(in)
		in.Flash = bytes.NewReader(flash)
		for i := range len(b.parts[0x10000]) {
			flash[0x10000+i] ^= 0x80
			wantLoop(t, Boot(in), "No bootable app partitions")
			flash[0x10000+i] ^= 0x80
		}
	})
}

func TestDamagedBootloaderText(t *testing.T) {
	for name, want := range map[string]struct{ checksum, afterHash string }{
		"esp32": {"csum err:0x", "entry 0x40078000\r\nets Jul 29 2019"},
		"esp32c3": {
			"Checksum failure. Calculated 0x",
			"Attempting to boot anyway...\r\nentry 0x403ce000\r\nESP-ROM:esp32c3",
		},
	} {
		b := newBoard(t, name)
		b.count = 0
		loader := b.model.BootloaderOffset
		b.flip, b.flipMask = loader+24+8+4+8+10, 1 // in the second segment's data
		wantLoop(t, b.boot(), want.checksum, "ets_main.c ")

		b.flip, b.flipMask = loader+uint32(len(b.parts[loader]))-1, 1 // in the hash
		out := b.boot()
		wantLoop(t, out)
		if text := string(out.Text) + string(out.Loop); !strings.Contains(text, want.afterHash) {
			t.Errorf("%s with a damaged hash prints\n%s", name, text)
		}

		// Without a hash nobody can know of a damage that keeps the checksum.
		s := spec(b.model, false)
		s.noHash = true
		img := s.build()
		img[24+8+4+8+10] ^= 1
		img[24+8+4+8+11] ^= 1
		b.parts[loader], b.flipMask = img, 0
		wantRunning(t, b.boot(), 0x10000)
	}
}

func TestWatchdogLoops(t *testing.T) {
	for name, want := range map[string]struct{ text, loop string }{
		"esp32": {
			"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n",
			"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x10 (RTCWDT_RTC_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n",
		},
		"esp32c3": {
			"ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\n",
			"ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x7 (TG0WDT_SYS_RST),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSaved PC:0x4004c0dc\r\n",
		},
	} {
		b := newBoard(t, name)
		b.count = 0
		b.parts = map[uint32][]byte{b.model.BootloaderOffset: {0x78, 0x56, 0x34, 0x12}}
		out := b.boot()
		bad := strings.Repeat("invalid header: 0x12345678\r\n", headerTries)
		if string(out.Text) != want.text+bad || string(out.Loop) != want.loop+bad {
			t.Errorf("%s prints\n%q\nthen\n%q", name, out.Text, out.Loop)
		}
	}
}

func TestFirstROM(t *testing.T) {
	b := newBoard(t, "esp32")
	b.in.Revision = 101
	if out := b.boot(); !bytes.HasPrefix(out.Text, []byte("ets Jun  8 2016 00:22:57\r\n\r\nrst:0x1 (POWERON_RESET)")) {
		t.Errorf("banner of v1.1: %q", out.Text)
	}
	delete(b.parts, 0x1000)
	wantLoop(t, b.boot(), "flash read err, 1000\r\nets_main.c 371 \r\n")

	c := newBoard(t, "esp32c3")
	c.in.Revision = 101
	if out := c.boot(); !bytes.HasPrefix(out.Text, []byte("ESP-ROM:esp32c3-eco7-20230720\r\n")) {
		t.Errorf("banner of v1.1: %q", out.Text)
	}
}

func TestResetReason(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason int
		want   string
	}{
		{"esp32", 3, "rst:0x3 (SW_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\nconfigsip"},
		{"esp32", 0x10, "rst:0x10 (RTCWDT_RTC_RESET)"},
		{"esp32", 0x7F, "rst:0x7f (NO_MEAN)"},
		{"esp32c3", 3, "rst:0x3 (RTC_SW_SYS_RST),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSaved PC:0x"},
		{"esp32c3", 1, "rst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSPIWP"},
	} {
		b := newBoard(t, c.name)
		b.in.ResetReason = c.reason
		if out := b.boot(); !strings.Contains(string(out.Text), c.want) {
			t.Errorf("%s, reason %d: %q", c.name, c.reason, out.Text)
		}
	}
}

// TestDownloadStrap pins the loader's greetings: those of the transcripts for the
// ESP32-C3, those of boards for the ESP32, and the refusals of the transcripts' README.
func TestDownloadStrap(t *testing.T) {
	const (
		esp32 = "ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))\r\n"
		old   = "ets Jun  8 2016 00:22:57\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))\r\n"
		c3    = "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x1 (POWERON),boot:0x2 (UART0_BOOT)\r\n"
	)
	for _, c := range []struct {
		name             string
		rev              chip.Revision
		disabled, secure bool
		text             string
		state            State
	}{
		{"esp32", 300, false, false, esp32 + "waiting for download\r\n", Download},
		{"esp32", 300, false, true, esp32 + "waiting for download\r\n", Download},
		{"esp32", 300, true, false, esp32 + "Download mode is disabled. Restart with GPIO0 high.\r\n", Halted},
		{"esp32", 101, true, false, old + "waiting for download\r\n", Download},
		{"esp32c3", 3, false, false, c3 + "wait uart0 download\r\n", Download},
		{"esp32c3", 3, false, true, c3 + "wait uart download(secure mode)\r\n", SecureDownload},
		{"esp32c3", 3, true, false, c3 + "Download boot modes disabled\r\n", Halted},
		{"esp32c3", 3, true, true, c3 + "Download boot modes disabled\r\n", Halted},
	} {
		b := newBoard(t, c.name)
		b.in.Revision, b.in.DownloadStrap = c.rev, true
		b.in.DownloadDisabled, b.in.SecureDownload = c.disabled, c.secure
		out := b.boot()
		if string(out.Text) != c.text || out.State != c.state || out.Loop != nil {
			t.Errorf("%s %s disabled=%v secure=%v: %v, %q", c.name, c.rev, c.disabled, c.secure, out.State, out.Text)
		}
		b.in.UARTPrintOff = true
		if out := b.boot(); len(out.Text) != 0 || out.State != c.state {
			t.Errorf("%s with prints off: %v, %q", c.name, out.State, out.Text)
		}
		// Without the strap neither fuse changes the boot.
		b.in.UARTPrintOff, b.in.DownloadStrap = false, false
		wantRunning(t, b.boot(), 0x10000)
	}
}

func TestUARTPrintOff(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		b.in.UARTPrintOff = true
		out := b.boot()
		wantRunning(t, out, 0x10000)
		if !bytes.HasPrefix(out.Text, []byte("I (30) boot: ")) {
			t.Errorf("the ROM printed: %q", out.Text)
		}
		clear(b.parts)
		if out := b.boot(); out.State != Looping || len(out.Text) != 0 || out.Loop != nil {
			t.Errorf("an erased flash: %v, %q, %q", out.State, out.Text, out.Loop)
		}
	})
}

func TestNoAppPrints(t *testing.T) {
	b := newBoard(t, "esp32")
	b.in.AppPrints = ""
	out := b.boot()
	if out.State != Running || !bytes.HasSuffix(out.Text, []byte("Loaded app from partition at offset 0x10000\r\n")) {
		t.Errorf("%v, %q", out.State, out.Text)
	}
}

func TestOTAData(t *testing.T) {
	const blank, ok, bad, aborted = 0xFFFFFFFF, 2, 3, 4
	erased := bytes.Repeat([]byte{0xFF}, 32)
	wrongCRC := otadata(2, ok)
	wrongCRC[28] ^= 1
	noFactory := slices.DeleteFunc(slices.Clone(defaultRows), func(r row) bool { return r.label == "factory" })
	small := slices.Clone(defaultRows)
	small[1].size = 0x1000
	for _, c := range []struct {
		name string
		rows []row
		a, b []byte
		apps []uint32 // where an app is
		from uint32   // where the running app is; 0: none runs
		line string
	}{
		{"initial", defaultRows, erased, erased, []uint32{0x10000, 0x20000}, 0x10000, "I (85) boot: Defaulting to factory image"},
		{"initial, no factory", noFactory, erased, erased, []uint32{0x20000}, 0x20000, "No factory image, trying OTA 0"},
		{"initial, no factory, ota_1 only", noFactory, erased, erased, []uint32{0x30000}, 0x30000, "OTA app partition slot 0 is not bootable"},
		{"seq 1", defaultRows, otadata(1, ok), erased, []uint32{0x10000, 0x20000, 0x30000}, 0x20000, ""},
		{"seq 2", defaultRows, otadata(1, ok), otadata(2, blank), []uint32{0x10000, 0x20000, 0x30000}, 0x30000, ""},
		{"seq 3", defaultRows, otadata(3, ok), otadata(2, ok), []uint32{0x10000, 0x20000, 0x30000}, 0x20000, ""},
		{"newer one invalid", defaultRows, otadata(1, ok), otadata(2, bad), []uint32{0x10000, 0x20000, 0x30000}, 0x20000, ""},
		{"newer one aborted", defaultRows, otadata(3, aborted), otadata(2, ok), []uint32{0x10000, 0x20000, 0x30000}, 0x30000, ""},
		{"newer one with wrong crc", defaultRows, otadata(1, ok), wrongCRC, []uint32{0x10000, 0x20000, 0x30000}, 0x20000, ""},
		{"both invalid", defaultRows, otadata(1, bad), otadata(2, aborted), []uint32{0x10000, 0x20000}, 0x10000, "Defaulting to factory image"},
		{"both wrong", defaultRows, wrongCRC, wrongCRC, []uint32{0x10000, 0x20000}, 0x10000, "ota data partition invalid, falling back to factory"},
		{"both wrong, no factory", noFactory, wrongCRC, wrongCRC, []uint32{0x30000}, 0x30000, "ota data partition invalid and no factory, will try all partitions"},
		{"slot empty, back to factory", defaultRows, otadata(2, ok), erased, []uint32{0x10000}, 0x10000, "OTA app partition slot 1 is not bootable"},
		{"slot empty, on to the next", defaultRows, otadata(1, ok), erased, []uint32{0x30000}, 0x30000, "Factory app partition is not bootable"},
		{"no app at all", defaultRows, otadata(1, ok), erased, nil, 0, "No bootable app partitions in the partition table"},
		{"partition too small", small, erased, erased, []uint32{0x10000}, 0, "ota_info partition size 4096 is too small (minimum 8192 bytes)"},
		{"no otadata", slices.Delete(slices.Clone(defaultRows), 1, 2), erased, erased, []uint32{0x10000, 0x20000}, 0x10000, ""},
		{"no OTA slots", defaultRows[:4], otadata(1, ok), erased, []uint32{0x10000}, 0x10000, "Defaulting to factory image"},
		{"test app", append(slices.Clone(defaultRows), row{0, 0x20, 0x40000, 0x10000, "test"}), erased, erased, []uint32{0x40000}, 0x40000, "Falling back to test app"},
		{"17 slots of one number", append(slices.Clone(defaultRows[:4]), slices.Repeat([]row{defaultRows[4]}, 17)...), otadata(17, ok), erased, []uint32{0x20000}, 0x20000, ""},
	} {
		eachChip(t, func(t *testing.T, name string) {
			b := newBoard(t, name)
			app := b.parts[0x10000]
			delete(b.parts, 0x10000)
			for _, at := range c.apps {
				b.parts[at] = app
			}
			b.parts[0x8000] = buildTable(c.rows, true)
			b.parts[0xD000] = slices.Concat(c.a, bytes.Repeat([]byte{0xFF}, 0x1000-32), c.b)
			out := b.boot()
			if c.from == 0 {
				wantLoop(t, out, c.line)
			} else {
				wantRunning(t, out, c.from)
			}
			if !strings.Contains(string(out.Text), c.line) {
				t.Errorf("%q is missing", c.line)
			}
			if t.Failed() {
				t.Logf("in case %q:\n%s", c.name, out.Text)
			}
		})
	}
}

// TestRawErasedOTAData: raw 0xFF decrypts to noise, so the bootloader does not see
// the initial state (esp-facts D.1).
func TestRawErasedOTAData(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		delete(b.parts, 0xD000)
		out := b.boot()
		wantRunning(t, out, 0x10000)
		if !strings.Contains(string(out.Text), "E (85) boot: ota data partition invalid, falling back to factory\r\n") {
			t.Errorf("prints\n%s", out.Text)
		}
	})
}

func TestAppRefusals(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		m := modelOf(t, name)
		for _, c := range []struct {
			name  string
			spoil func(s *imageSpec)
			line  string
		}{
			{"other chip", func(s *imageSpec) { s.chip = 28 }, fmt.Sprintf("boot_comm: mismatch chip ID, expected %d, found 28", m.ID)},
			{"chip too old", func(s *imageSpec) { s.minRev = 399 }, "boot_comm: chip revision check failed. Required >= v3.99, found v"},
			{"chip too new", func(s *imageSpec) { s.maxRev = 1 }, "boot_comm: chip revision check failed. Required <= v0.1, found v"},
			{"17 segments", func(s *imageSpec) { s.count = 17 }, "esp_image: image at 0x10000 segment count 17 exceeds max 16"},
			{"one segment too many", func(s *imageSpec) { s.count = 3 }, "esp_image: "},
			{"segment too short", func(s *imageSpec) { s.segs[0].data = make([]byte, 0x102) }, "esp_image: invalid segment length 0x102"},
			{"mapping", func(s *imageSpec) { s.segs[0].load += 0x40 }, "esp_image: Segment 0 load address 0x"},
			{"load address", func(s *imageSpec) { s.segs[1].load = 0x60000000 }, "esp_image: Segment 1 0x60000000-0x60000040 invalid: bad load address range"},
			{"too long", func(s *imageSpec) {
				s.segs = append(s.segs, seg{0, make([]byte, 0xFF00)})
			}, "doesn't fit in partition length 65536"},
			{"no app", func(s *imageSpec) { s.segs = s.segs[:1]; s.segs[0].data = nil; s.count = 16 }, "esp_image: "},
		} {
			b := newBoard(t, name)
			s := spec(m, true)
			c.spoil(&s)
			b.parts[0x10000] = s.build()
			wantLoop(t, b.boot(), c.line, "Factory app partition is not bootable", "No bootable app partitions", "rst:0x")
			if t.Failed() {
				t.Fatalf("in case %q", c.name)
			}
		}

		b := newBoard(t, name) // the limits themselves are fine, and so is a padding segment
		s := spec(m, true)
		s.minRev, s.maxRev = uint16(b.in.Revision), uint16(b.in.Revision)
		s.segs = append(s.segs, seg{0, make([]byte, 0x20)})
		b.parts[0x10000] = s.build()
		wantRunning(t, b.boot(), 0x10000)
		s.maxRev, s.noHash = 0, true
		b.parts[0x10000] = s.build()
		wantRunning(t, b.boot(), 0x10000)
	})
}

func TestAppOutsideTheFlash(t *testing.T) {
	b := newBoard(t, "esp32")
	s := spec(b.model, true)
	s.segs = append(s.segs, seg{0, nil})
	img := s.build()
	binary.LittleEndian.PutUint32(img[24+8+0x100+8+0x40+4:], 0x3F0000)
	b.parts[0x10000], b.in.FlashSize = img, 0x200000
	wantLoop(t, b.boot(), "bootloader_flash_read failed at 0x00010000")
}

func TestBootloaderForAnotherChip(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		s := spec(b.model, false)
		s.chip = 28
		b.parts[b.model.BootloaderOffset] = s.build()
		out := b.boot()
		wantLoop(t, out, "entry 0x")
		if bytes.Contains(out.Text, []byte("boot: ")) {
			t.Errorf("foreign code ran:\n%s", out.Text)
		}
	})
}

func TestBootloaderLimits(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		loader := b.model.BootloaderOffset
		s := spec(b.model, false)
		s.minRev = 399
		b.parts[loader] = s.build()
		wantLoop(t, b.boot(), "boot_comm: chip revision check failed. Required >= v3.99, found v", "rst:0x")

		s = spec(b.model, false) // ESP-IDF does not check a bootloader's maximum
		s.maxRev = 1
		b.parts[loader] = s.build()
		wantRunning(t, b.boot(), 0x10000)

		s.count = 17
		b.parts[loader] = s.build()
		wantLoop(t, b.boot(), "mode:DIO, clock div:2\r\n")

		s = spec(b.model, false) // a segment that leaves the flash hangs the ROM
		img := s.build()
		binary.LittleEndian.PutUint32(img[24+4:], 0xFFFFFFF0)
		b.parts[loader] = img
		wantLoop(t, b.boot(), "load:0x")
	})
}

func TestBootloaderModeLine(t *testing.T) {
	for sizeFreq, div := range map[byte]string{0x20: "2", 0x21: "3", 0x22: "4", 0x2F: "1"} {
		b := newBoard(t, "esp32c3")
		s := spec(b.model, false)
		s.sizeFreq = sizeFreq
		img := s.build()
		img[2] = 9 // no known mode
		b.parts[0] = img
		if out := b.boot(); !strings.Contains(string(out.Text), "mode:SLOW READ, clock div:"+div+"\r\n") {
			t.Errorf("0x%x: %q", sizeFreq, out.Text)
		}
	}
}

func TestPartitionTable(t *testing.T) {
	good := buildTable(defaultRows, true)
	twice := slices.Concat(good[:7*32], good[6*32:7*32], good[7*32:])
	wrongMD5 := slices.Clone(good)
	wrongMD5[6*32+16] ^= 1
	badRow := slices.Clone(good)
	badRow[2*32] = 0xAB
	far := slices.Clone(defaultRows)
	far[5].size = 0x3D1000
	var endless []row
	for range 96 {
		endless = append(endless, defaultRows[0])
	}
	for _, c := range []struct {
		name, line string
		table      []byte
	}{
		{"second MD5", "flash_parts: Only one MD5 checksum is allowed", twice[:0x1000]},
		{"wrong MD5", "flash_parts: Incorrect MD5 checksum", wrongMD5},
		{"bad row", "flash_parts: partition 2 invalid magic number 0x50ab", badRow},
		{"beyond the flash", "flash_parts: partition 5 invalid - offset 0x30000 size 0x3d1000 exceeds flash chip size 0x400000", buildTable(far, true)},
		{"no end", "flash_parts: partition table has no terminating entry, not valid", buildTable(endless, false)},
	} {
		eachChip(t, func(t *testing.T, name string) {
			b := newBoard(t, name)
			b.parts[0x8000] = c.table
			wantLoop(t, b.boot(), c.line, "boot: Failed to verify partition table", "boot: load partition table error!", "rst:0x")
			if t.Failed() {
				t.Fatalf("in case %q", c.name)
			}
		})
	}
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		b.parts[0x8000] = buildTable(defaultRows, false)
		wantLoop(t, b.boot(), "Loaded app from partition at offset 0x10000", "partition: No MD5 found in partition table")

		b = newBoard(t, name)
		b.parts[0x8000] = bytes.Repeat([]byte{0xFF}, 0x1000)
		wantLoop(t, b.boot(), "No bootable app partitions in the partition table")

		b = newBoard(t, name) // rows of every kind, and a label that is noise
		b.parts[0x8000] = buildTable(append(slices.Clone(defaultRows),
			row{1, 4, 0x50000, 0x1000, "nvs_keys"}, row{1, 5, 0x51000, 0x1000, "em"}, row{1, 0x82, 0x52000, 0x1000, "a\x1b[2J"},
			row{0, 0x30, 0x60000, 0x1000, "tee"}, row{0x40, 0, 0x61000, 0x1000, "own"}), true)
		out := b.boot()
		wantRunning(t, out, 0x10000)
		for _, want := range []string{"NVS keys", "efuse", "a.[2J            Unknown data", "Unknown app", "own              unknown "} {
			if !strings.Contains(string(out.Text), want) {
				t.Errorf("%q is missing in:\n%s", want, out.Text)
			}
		}
	})
}

func TestPartitionTableOffset(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		b := newBoard(t, name)
		b.parts[0xC000] = b.parts[0x8000]
		delete(b.parts, 0x8000)
		wantLoop(t, b.boot(), "partition 0 invalid magic number 0x")
		b.in.PartitionTable = 0xC000
		wantRunning(t, b.boot(), 0x10000)
		b.in.PartitionTable = flashSize - 0x800
		wantLoop(t, b.boot(), "bootloader_mmap(0x3ff800, 0xc00) failed")
	})
}

func TestHeaderFlashSize(t *testing.T) {
	b := newBoard(t, "esp32")
	s := spec(b.model, false)
	s.sizeFreq = 0x10 // 2 MB
	rows := slices.Clone(defaultRows)
	b.parts[0x1000] = s.build()
	wantRunning(t, b.boot(), 0x10000) // the table fits
	rows = append(rows, row{1, 0x82, 0x1FF000, 0x2000, "storage"})
	b.parts[0x8000] = buildTable(rows, true)
	wantLoop(t, b.boot(), "partition 6 invalid - offset 0x1ff000 size 0x2000 exceeds flash chip size 0x200000")
	s.sizeFreq = 0x90 // no known size
	b.parts[0x1000] = s.build()
	wantRunning(t, b.boot(), 0x10000)
}

func TestFlashTooSmall(t *testing.T) {
	b := newBoard(t, "esp32")
	b.in.FlashSize = 0x1000
	if out := b.boot(); out.State != Looping {
		t.Errorf("a flash without room for a bootloader: %v", out.State)
	}
	if _, err := newFlashView(b.input()).read(0xFF0, 0x20); err == nil {
		t.Error("read beyond the flash")
	}
}

func TestUnknownModel(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic for a model without a ROM here")
		}
	}()
	Boot(Input{Model: chip.Model{Name: "esp99"}})
}

func TestStateString(t *testing.T) {
	for s, want := range map[State]string{
		Download: "download", SecureDownload: "secure download", Halted: "halted",
		Looping: "boot loop", Running: "running", 0: "unknown",
	} {
		if s.String() != want {
			t.Errorf("%d: %q", s, s.String())
		}
	}
}

// TestRealImages boots real ESP-IDF build outputs, plain and encrypted.
func TestRealImages(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	images := filepath.Join(dir, "..", "shared", "images")
	if _, err := os.Stat(images); err != nil {
		t.Skip("needs ../shared/images")
	}
	for name, app := range map[string]string{"esp32": "app-template.bin", "esp32c3": "selftest.bin"} {
		load := func(file string) []byte {
			p, err := os.ReadFile(filepath.Join(images, name, file))
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		b := newBoard(t, name)
		b.parts = map[uint32][]byte{
			b.model.BootloaderOffset: load("bootloader.bin"),
			0x8000:                   append(load("partition-table.bin"), bytes.Repeat([]byte{0xFF}, 0x400)...),
			0xD000:                   load("ota_data_initial.bin"),
			0x10000:                  load(app),
		}
		// Both bootloaders say 2 MB and the table needs more: the vendor's tool
		// sets the size while it flashes.
		wantLoop(t, b.boot(), "exceeds flash chip size 0x200000")
		b.parts[b.model.BootloaderOffset] = withFlashSize(b.parts[b.model.BootloaderOffset], 0x20)
		wantRunning(t, b.boot(), 0x10000)
		b.flip, b.flipMask = 0x10000+uint32(len(b.parts[0x10000]))/2, 0x20
		wantLoop(t, b.boot(), "No bootable app partitions in the partition table")
		b.flipMask = 0
		b.count = 0
		wantRunning(t, b.boot(), 0x10000)
	}
}

// withFlashSize sets the size nibble of an image that has its hash at the end.
func withFlashSize(img []byte, size byte) []byte {
	out := bytes.Clone(img)
	out[3] = out[3]&0x0F | size
	sum := sha256.Sum256(out[:len(out)-sha256.Size])
	copy(out[len(out)-sha256.Size:], sum[:])
	return out
}

// FuzzBoot feeds arbitrary bootloaders, tables and apps: whatever they hold, a boot
// ends, is the same twice, and only the app's own text follows a full validation.
func FuzzBoot(f *testing.F) {
	for i, m := range chip.All() {
		b := newBoard(f, m.Name)
		f.Add(byte(i), b.parts[b.model.BootloaderOffset], b.parts[0x8000][:0x100], b.parts[0x10000], otadata(2, 2))
	}
	f.Fuzz(func(t *testing.T, which byte, loader, tab, app, ota []byte) {
		all := chip.All()
		b := newBoard(t, all[int(which)%len(all)].Name)
		b.count, b.size = uint32(which>>4)&1, 0x40000 // small, for speed
		b.in.FlashSize = b.size
		b.parts = map[uint32][]byte{
			b.model.BootloaderOffset: loader[:min(len(loader), 0x7000)],
			0x8000:                   tab[:min(len(tab), 0x1000)], 0xD000: ota[:min(len(ota), 0x2000)], 0x10000: app[:min(len(app), 0x10000)],
		}
		in := b.input()
		out := Boot(in)
		again := Boot(in)
		if out.State != again.State || !bytes.Equal(out.Text, again.Text) || !bytes.Equal(out.Loop, again.Loop) {
			t.Fatal("the same input boots differently")
		}
		prints := bytes.HasSuffix(out.Text, []byte(appText+"\r\n"))
		if out.State == Running != prints || out.State == Running && out.Loop != nil || out.State == Looping && out.Loop == nil {
			t.Fatalf("%v with text\n%s", out.State, out.Text)
		}
	})
}
