package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
)

// bytesOf gives n bytes that look like nothing special and are always the same.
func bytesOf(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32N(64)) // code and data, not noise
	}
	return b
}

func build(t testing.TB, s image.Spec) []byte {
	t.Helper()
	b, err := image.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// appESP32 has a description, a DROM segment, RAM and an IROM segment that needs padding.
func appESP32() image.Spec {
	return image.Spec{
		Chip: chip.IDESP32, EntryAddr: 0x40080400, SPISize: image.SPISize4MB,
		MinChipRevFull: 100, MaxChipRevFull: 399,
		AppDesc: &image.AppDesc{SecureVersion: 3, Version: "1.2.3", ProjectName: "thermostat", Time: "10:11:12", Date: "Jan 02 2026", IDFVer: "v5.5", MaxEFuseBlkRevFull: 99},
		Segments: []image.Segment{
			{LoadAddr: 0x3F400020, Data: bytesOf(0x300, 1)},
			{LoadAddr: 0x40080000, Data: bytesOf(0x444, 2)},
			{LoadAddr: 0x400D0018, Data: bytesOf(0x1234, 3)},
		},
	}
}

func bootloaderC3() image.Spec {
	return image.Spec{
		Chip: chip.IDESP32C3, EntryAddr: 0x403CC71A,
		Segments: []image.Segment{{LoadAddr: 0x3FCD5820, Data: bytesOf(0x40, 4)}, {LoadAddr: 0x403CC710, Data: bytesOf(0x900, 5)}},
	}
}

// reseal corrects checksum and hash after an edit that leaves the lengths alone.
func reseal(b []byte, length int) []byte {
	b = bytes.Clone(b)
	body := length - sha256.Size
	sum := byte(0xEF)
	for off, i := 24, 0; i < int(b[1]); i++ {
		n := int(binary.LittleEndian.Uint32(b[off+4:]))
		for _, v := range b[off+8 : off+8+n] {
			sum ^= v
		}
		off += 8 + n
	}
	b[body-1] = sum
	h := sha256.Sum256(b[:body])
	copy(b[body:], h[:])
	return b
}

func TestParseBuilt(t *testing.T) {
	b := build(t, appESP32())
	m, err := image.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if m.Length != len(b) || m.Signed || m.FlashLength() != len(b) {
		t.Errorf("Length %d, FlashLength %d, Signed %v of %d bytes", m.Length, m.FlashLength(), m.Signed, len(b))
	}
	want := image.Header{
		SPIMode: image.SPIModeDIO, SPISize: image.SPISize4MB, EntryAddr: 0x40080400, WPPin: 0xEE,
		ChipID: chip.IDESP32, MinChipRevFull: 100, MaxChipRevFull: 399, HashAppended: true,
	}
	if d := cmp.Diff(want, m.Header); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(appESP32().AppDesc, m.AppDesc); d != "" {
		t.Error(d)
	}
	// DROM at 0x20, RAM, padding, IROM at 0x18 of a page.
	if len(m.Segments) != 4 || m.Segments[0].Offset != 0x20 || m.Segments[2].LoadAddr != 0 || m.Segments[3].Offset != 0x10018 {
		for _, s := range m.Segments {
			t.Errorf("segment 0x%08x at 0x%x, %d bytes", s.LoadAddr, s.Offset, len(s.Data))
		}
	}
	if m.Length%16 != 0 || *m.Hash != sha256.Sum256(b[:len(b)-32]) || m.Checksum != b[len(b)-33] {
		t.Error("checksum or hash is not where the format wants it")
	}
	reencode(t, m, b)
}

func reencode(t testing.TB, m *image.Image, b []byte) {
	t.Helper()
	got, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b) {
		t.Fatalf("re-encoded image differs: %d bytes, want %d", len(got), len(b))
	}
}

// TestChecksum has the known answer of esp-facts I.
func TestChecksum(t *testing.T) {
	if got := image.Checksum(nil); got != 0xEF {
		t.Errorf("empty payload: 0x%02x", got)
	}
	b := []byte{1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 3}
	if got := image.Checksum(b); got != 0x10 {
		t.Errorf("0x%02x", got)
	}
}

func TestParseErrors(t *testing.T) {
	good := build(t, bootloaderC3())
	n := len(good)
	set := func(off int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[off:], v); return b }
	}
	cut := func(to int) func([]byte) []byte { return func(b []byte) []byte { return b[:to] } }
	add := func(v ...byte) func([]byte) []byte { return func(b []byte) []byte { return append(b, v...) } }
	const pad = 24 + 8 + 0x40 + 8 + 0x900 // where the segments end

	for _, c := range []struct {
		name   string
		edit   func([]byte) []byte
		offset int
		field  string
	}{
		{"empty", cut(0), 0, "magic"},
		{"magic", set(0, 0xE8), 0, "magic"},
		{"short header", cut(23), 0, "header"},
		{"no segments", set(1, 0), 1, "segment_count"},
		{"17 segments", set(1, 17), 1, "segment_count"},
		{"mode", set(2, 6), 2, "spi_mode"},
		{"speed", set(3, 0x23), 3, "spi_speed"},
		{"size", set(3, 0x80), 3, "spi_size"},
		{"hash flag", set(23, 2), 23, "hash_appended"},
		{"odd segment", set(28, 0x41), 28, "segments[0].data_len"},
		{"16 MB segment", set(28, 0, 0, 0, 1), 28, "segments[0].data_len"},
		{"segment beyond the file", set(24+8+0x40+4, 0x00, 0xFF), pad - 0x900, "segments[1].data"},
		{"second header cut", cut(24 + 8 + 0x40 + 7), 24 + 8 + 0x40, "segments[1].header"},
		{"checksum cut", cut(n - 33), pad, "checksum"},
		{"padding", set(pad, 1), pad, "padding"},
		{"checksum", func(b []byte) []byte { b[n-33] ^= 1; return b }, n - 33, "checksum"},
		{"data", func(b []byte) []byte { b[200] ^= 1; return b }, n - 33, "checksum"},
		{"hash cut", cut(n - 1), n - 32, "hash"},
		{"hash", func(b []byte) []byte { b[n-1] ^= 1; return b }, n - 32, "hash"},
		{"entry", func(b []byte) []byte { b[4] ^= 1; return b }, n - 32, "hash"},
		{"trailing byte", add(1), n, "trailer"},
		{"mixed padding", add(0xFF, 0), n + 1, "trailer"},
		{"signature V1", add(append([]byte{0, 0, 0, 0}, bytesOf(64, 9)...)...), -1, "trailer"},
		{"short signature sector", func(b []byte) []byte { return append(padTo(b, 4096), 0xE7, 2) }, 4096, "signature"},
		{"second image", func(b []byte) []byte { return append(padTo(b, 8192), 0xE9) }, 8192, "trailer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := image.Parse(c.edit(bytes.Clone(good)))
			var e *image.Error
			if !errors.As(err, &e) || m != nil {
				t.Fatalf("error %v, image %v", err, m)
			}
			if (c.offset >= 0 && e.Offset != c.offset) || e.Field != c.field {
				t.Errorf("%v: offset 0x%x, want 0x%x in field %s", e, e.Offset, c.offset, c.field)
			}
			if e.Msg == "" || !strings.Contains(e.Error(), e.Field) {
				t.Errorf("message %q does not name the field", e.Error())
			}
		})
	}
}

func padTo(b []byte, n int) []byte {
	return append(b, bytes.Repeat([]byte{0xFF}, n-len(b))...)
}

// TestEveryByteCounts flips each byte of an image with a hash: none may pass.
func TestEveryByteCounts(t *testing.T) {
	good := build(t, image.Spec{Chip: chip.IDESP32C3, Segments: []image.Segment{{LoadAddr: 0x3FC80000, Data: bytesOf(64, 1)}}})
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		if _, err := image.Parse(b); err == nil {
			t.Errorf("byte 0x%x changed and nobody noticed", i)
		}
	}
}

func TestTrailers(t *testing.T) {
	good := build(t, bootloaderC3())
	sector := append([]byte{0xE7, 2}, bytes.Repeat([]byte{0x5A}, 4094)...)
	noHash := bootloaderC3()
	noHash.NoHash = true
	signed := bootloaderC3()
	signed.Signature = sector

	for _, c := range []struct {
		name   string
		b      []byte
		signed bool
		flash  int // FlashLength; 0: Length
	}{
		{"FF to 64 KB", padTo(bytes.Clone(good), 0x10000), false, 0},
		{"zeros", append(bytes.Clone(good), make([]byte, 100)...), false, 0},
		{"no hash", build(t, noHash), false, 0},
		{"signed", build(t, signed), true, 8192},
		{"signed, then FF", padTo(build(t, signed), 0x10000), true, 8192},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := image.Parse(c.b)
			if err != nil {
				t.Fatal(err)
			}
			want := c.flash
			if want == 0 {
				want = m.Length
			}
			if m.Signed != c.signed || (m.Signature != nil) != c.signed || m.FlashLength() != want {
				t.Errorf("Signed %v, FlashLength %d, want %v, %d", m.Signed, m.FlashLength(), c.signed, want)
			}
			if c.signed && !bytes.Equal(m.Signature, sector) {
				t.Error("another sector")
			}
			reencode(t, m, c.b)
		})
	}

	t.Run("signature directly after an image of 4096 bytes", func(t *testing.T) {
		s := image.Spec{Chip: chip.IDESP32C3, Segments: []image.Segment{{LoadAddr: 0x3FC80000, Data: make([]byte, 4096-32-24-8-16)}}, Signature: sector}
		m, err := image.Parse(build(t, s))
		if err != nil || m.Length != 4096 || !m.Signed || m.FlashLength() != 8192 {
			t.Fatalf("%v %+v", err, m)
		}
	})
}

func TestParseKeepsItsOwnCopy(t *testing.T) {
	b := build(t, appESP32())
	m, err := image.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(b)
	clear(b)
	reencode(t, m, want)
}

func TestCheckFor(t *testing.T) {
	esp32, _ := chip.ByName("esp32")
	c3, _ := chip.ByName("esp32c3")
	parse := func(b []byte) *image.Image {
		m, err := image.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	app := parse(build(t, appESP32()))
	boot := parse(build(t, bootloaderC3()))

	// An image of before the full revision fields.
	legacy := func(s image.Spec, rev byte) *image.Image {
		s.MinChipRevFull, s.MaxChipRevFull = 0, 0
		b := build(t, s)
		b[14] = rev
		return parse(reseal(b, len(b)))
	}
	// A bootloader that has a maximum: the boot code does not look at it.
	capped := bootloaderC3()
	capped.MaxChipRevFull = 99
	// IROM one word off its page.
	b := build(t, appESP32())
	binary.LittleEndian.PutUint32(b[0x10018-8:], 0x400D001C)
	shifted := parse(reseal(b, len(b)))

	for _, c := range []struct {
		name string
		m    *image.Image
		chip chip.Model
		rev  chip.Revision
		want error
	}{
		{"app", app, esp32, 300, nil},
		{"lowest", app, esp32, 100, nil},
		{"highest", app, esp32, 399, nil},
		{"unknown revision", app, esp32, image.RevisionUnknown, nil},
		{"too old", app, esp32, 99, image.ErrRevision},
		{"too new", app, esp32, 400, image.ErrRevision},
		{"other chip", app, c3, 3, image.ErrWrongChip},
		{"other chip, bootloader", boot, esp32, 300, image.ErrWrongChip},
		{"bootloader", boot, c3, 0, nil},
		{"bootloader with a maximum", parse(build(t, capped)), c3, 101, nil},
		{"legacy major", legacy(appESP32(), 3), esp32, 300, nil},
		{"legacy major, too old", legacy(appESP32(), 3), esp32, 201, image.ErrRevision},
		{"legacy C3 minor", legacy(bootloaderC3(), 3), c3, 3, nil},
		{"legacy C3 minor, too old", legacy(bootloaderC3(), 3), c3, 2, image.ErrRevision},
		{"mapping", shifted, esp32, 300, image.ErrMapping},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.m.CheckFor(c.chip, c.rev); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if err := app.CheckFor(c3, 3); err == nil || !strings.Contains(err.Error(), "it is for ESP32, ") || !strings.Contains(err.Error(), "ESP32-C3") {
		t.Errorf("%v does not name both chips", err)
	}
}

// TestEveryChipHasItsMapping fails when a chip is added and the load windows are forgotten.
func TestEveryChipHasItsMapping(t *testing.T) {
	for _, name := range chip.Names() {
		c, err := chip.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := image.Parse(build(t, image.Spec{Chip: c.ID, Segments: []image.Segment{{LoadAddr: 0x3FFF0000, Data: make([]byte, 16)}}}))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CheckFor(c, image.RevisionUnknown); err != nil {
			t.Error(err)
		}
	}
}

func TestBuildErrors(t *testing.T) {
	ok := []image.Segment{{LoadAddr: 0x3FC80000, Data: make([]byte, 16)}}
	for name, s := range map[string]image.Spec{
		"unknown chip":      {Chip: 0x7777, Segments: ok},
		"no segments":       {Chip: chip.IDESP32C3},
		"too many segments": {Chip: chip.IDESP32C3, Segments: make([]image.Segment, 17)},
		"odd length":        {Chip: chip.IDESP32C3, Segments: []image.Segment{{Data: make([]byte, 3)}}},
		"bad mode":          {Chip: chip.IDESP32C3, SPIMode: 9, Segments: ok},
		"long version":      {Chip: chip.IDESP32C3, Segments: ok, AppDesc: &image.AppDesc{Version: strings.Repeat("x", 33)}},
		"description moved": {Chip: chip.IDESP32C3, Segments: []image.Segment{{LoadAddr: 0x3C000024}}, AppDesc: &image.AppDesc{}},
		"signature":         {Chip: chip.IDESP32C3, Segments: ok, Signature: make([]byte, 4096)},
	} {
		if b, err := image.Build(s); err == nil {
			t.Errorf("%s: built %d bytes", name, len(b))
		}
	}
}

func TestLooksEncrypted(t *testing.T) {
	noise := func(n int) []byte {
		r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
		b := make([]byte, n)
		_, _ = r.Read(b)
		return b
	}
	// ESP32 ciphertext of a constant plaintext: both halves of a unit are the same.
	doubled := func(n int) []byte {
		var b []byte
		for s := noise(n / 2); len(s) > 0; s = s[16:] {
			b = append(b, s[:16]...)
			b = append(b, s[:16]...)
		}
		return b
	}
	withMagic := noise(4096)
	withMagic[0] = 0xE9 // once in 256; the header behind it is not plausible
	app := build(t, appESP32())
	broken := bytes.Clone(app)
	broken[0] = 0
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"noise": {noise(4096), true}, "noise 256": {noise(256), true}, "noise 544": {noise(544), true}, "noise 1 MB": {noise(1 << 20), true},
		"doubled 512": {doubled(512), true}, "doubled 4096": {doubled(4096), true}, "noise with magic": {withMagic, true},
		"app": {app, false}, "wrong magic": {broken, false}, "erased": {bytes.Repeat([]byte{0xFF}, 4096), false},
		"text":    {[]byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 30)), false},
		"nothing": {nil, false}, "short noise": {noise(255), false},
	} {
		if got := image.LooksEncrypted(c.b); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestCiphertextLooksEncrypted encrypts what a factory encrypts.
func TestCiphertextLooksEncrypted(t *testing.T) {
	for scheme, key := range map[chip.Scheme]int{chip.SchemeESP32: 32, chip.SchemeXTS128: 32, chip.SchemeXTS256: 64} {
		c, err := flashcrypt.New(scheme, bytesOf(key, 8), 0xF)
		if err != nil {
			t.Fatal(err)
		}
		app := build(t, appESP32())
		for name, b := range map[string][]byte{
			"app": padTo(app, (len(app)+31)&^31), "erased sector": bytes.Repeat([]byte{0xFF}, 4096), "zeros": make([]byte, 512),
		} {
			if err := c.Encrypt(b, b, 0x10000); err != nil {
				t.Fatal(err)
			}
			if !image.LooksEncrypted(b) {
				t.Errorf("%s, %s: not recognised", scheme, name)
			}
			if _, err := image.Parse(b); err == nil {
				t.Errorf("%s, %s: ciphertext parses", scheme, name)
			}
		}
	}
}

// TestRoundTrip builds random images: all parse, and to the same bytes.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := image.Spec{
			Chip:      rapid.SampledFrom([]chip.ID{chip.IDESP32, chip.IDESP32C3}).Draw(t, "chip"),
			EntryAddr: rapid.Uint32().Draw(t, "entry"),
			NoHash:    rapid.Bool().Draw(t, "nohash"),
		}
		n := rapid.IntRange(1, 6).Draw(t, "segments")
		for range n {
			s.Segments = append(s.Segments, image.Segment{
				LoadAddr: 4 * rapid.Uint32Range(0, 1<<30-1).Draw(t, "addr"),
				Data:     bytesOf(4*rapid.IntRange(0, 300).Draw(t, "words"), 7),
			})
		}
		b, err := image.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		m, err := image.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.MarshalBinary()
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("re-encoding: %v", err)
		}
		c, err := chip.ByID(s.Chip)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CheckFor(c, 0); err != nil {
			t.Fatal(err)
		}
	})
}

// sharedImages finds the vendor's build outputs beside the repository.
func sharedImages(t testing.TB) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
	dir = filepath.Join(dir, "..", "shared", "images")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("needs ../shared/images")
	}
	return dir
}

func TestRealImages(t *testing.T) {
	dir := sharedImages(t)
	for _, c := range []struct {
		file     string
		id       chip.ID
		segments int
		app      string
		secure   uint32
	}{
		{"esp32/bootloader.bin", chip.IDESP32, 4, "", 0},
		{"esp32/app-template.bin", chip.IDESP32, 5, `"app-template" "1cd5752"`, 0},
		{"esp32c3/bootloader.bin", chip.IDESP32C3, 4, "", 0},
		{"esp32c3/selftest.bin", chip.IDESP32C3, 2, `"factory-selftest" "1.0.0"`, 3},
		{"esp32s2/blink.bin", 2, 6, `"blink" "qa-test-v5.0-20220830-4-g4532e6"`, 0},
	} {
		t.Run(c.file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(c.file)))
			if err != nil {
				t.Fatal(err)
			}
			m, err := image.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if m.Header.ChipID != c.id || len(m.Segments) != c.segments || m.Length != len(b) || m.Hash == nil || m.Signed {
				t.Errorf("%+v, %d segments, length %d of %d", m.Header, len(m.Segments), m.Length, len(b))
			}
			if (m.AppDesc != nil) != (c.app != "") {
				t.Errorf("description %v", m.AppDesc)
			} else if m.AppDesc != nil && (m.AppDesc.String() != c.app || m.AppDesc.SecureVersion != c.secure) {
				t.Errorf("description %v, secure version %d", m.AppDesc, m.AppDesc.SecureVersion)
			}
			if image.LooksEncrypted(b) {
				t.Error("looks encrypted")
			}
			reencode(t, m, b)
			for _, name := range chip.Names() {
				k, err := chip.ByName(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := m.CheckFor(k, image.RevisionUnknown); (err == nil) != (k.ID == c.id) {
					t.Errorf("CheckFor %s: %v", name, err)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []image.Spec{appESP32(), bootloaderC3()} {
		s.Segments = s.Segments[:2] // short enough to be mutated well
		f.Add(build(f, s))
	}
	s := bootloaderC3()
	s.NoHash = true
	f.Add(build(f, s))
	f.Add(padTo(build(f, s), 4096))
	s.Signature = append([]byte{0xE7, 2}, make([]byte, 4094)...)
	f.Add(build(f, s))
	f.Fuzz(func(t *testing.T, b []byte) {
		orig := bytes.Clone(b)
		m, err := image.Parse(b)
		image.LooksEncrypted(b)
		if !bytes.Equal(b, orig) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			var e *image.Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(b) || e.Field == "" {
				t.Fatalf("error %#v", err)
			}
			return
		}
		if m.Length > len(b) || m.FlashLength() > len(b) || m.FlashLength() < m.Length {
			t.Fatalf("Length %d, FlashLength %d of %d", m.Length, m.FlashLength(), len(b))
		}
		reencode(t, m, b)
	})
}

// An application that was built for a smaller page lines up with that one.
func TestSmallerPage(t *testing.T) {
	c6, err := chip.ByName("esp32c6")
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range []uint8{0, 16, 15} {
		b, err := image.Build(image.Spec{
			Chip: c6.ID, EntryAddr: 0x40800000, AppDesc: &image.AppDesc{MMUPageSize: log},
			Segments: []image.Segment{
				{LoadAddr: 0x42000020, Data: make([]byte, 0x9000)},
				{LoadAddr: 0x42018020, Data: make([]byte, 64)},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		img, err := image.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := img.CheckFor(c6, image.RevisionUnknown); err != nil {
			t.Errorf("page 2^%d: %v", log, err)
		}
		last := img.Segments[len(img.Segments)-1]
		if small := last.Offset%0x10000 != 0x8020; small != (log == 15) {
			t.Errorf("page 2^%d: the second mapped segment is at 0x%x", log, last.Offset)
		}
	}
}
