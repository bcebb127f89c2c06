package efuse_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// The chips of the transcripts, and the CRC's known answers (esp-facts B.8).
func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		name, chip string
		edit       func(f *fake)
		want       string // MAC, revision, package, block revision; "" for an error
	}{
		{"transcript", "esp32", nil, "24:0a:c4:7f:4b:06 v3.1 1 v0.0"},
		{"transcript", "esp32c3", nil, "7c:df:a1:c9:c3:b3 v0.4 0 v1.3"},
		{"CRC 1", "esp32", mac32(0xc4000001, 0xbe240a), "24:0a:c4:00:00:01 v3.1 1 v0.0"},
		{"CRC 2", "esp32", mac32(0xef010203, 0x56aacd), "aa:cd:ef:01:02:03 v3.1 1 v0.0"},
		{"wrong CRC", "esp32", mac32(0xef010203, 0x57aacd), ""},
		{"no MAC", "esp32", mac32(0, 0), ""},
		{"no MAC", "esp32c3", func(f *fake) { clear(f.cells[1]) }, ""},
		{"multicast", "esp32c3", func(f *fake) { f.put(1, []uint32{0, 0x0100}) }, ""},
		{"revision 0", "esp32", rev32(0, 0, 0, 0), "24:0a:c4:7f:4b:06 v0.0 1 v0.0"},
		{"revision 1", "esp32", rev32(1, 0, 0, 0), "24:0a:c4:7f:4b:06 v1.0 1 v0.0"},
		{"revision 2", "esp32", rev32(1, 1, 0, 0), "24:0a:c4:7f:4b:06 v2.0 1 v0.0"},
		{"revision 3.2", "esp32", rev32(1, 1, 1, 2), "24:0a:c4:7f:4b:06 v3.2 1 v0.0"},
		{"no revision", "esp32", rev32(0, 1, 0, 0), ""},
		{"package bit 3", "esp32", func(f *fake) { f.cells[0][3] = f.cells[0][3]&^(7<<9) | 5<<9 | 4 }, "24:0a:c4:7f:4b:06 v3.1 13 v0.0"},
		{"split minor", "esp32c3", func(f *fake) {
			f.put(1, []uint32{0xa1c9c3b3, 0x7cdf, 0, 5<<18 | 6<<21 | 2<<24, 0, 1<<23 | 2<<24})
		}, "7c:df:a1:c9:c3:b3 v2.13 6 v1.2"},
	} {
		t.Run(c.chip+" "+c.name, func(t *testing.T) {
			f := newFake(t, c.chip)
			if c.edit != nil {
				c.edit(f)
			}
			id, err := read(t, f).Identity() // Read refreshes: what was burned meanwhile shows
			if c.want == "" {
				if !errors.Is(err, efuse.ErrIdentity) {
					t.Errorf("%+v, %v", id, err)
				}
				return
			}
			if got := fmt.Sprintf("%v %v %d %v", id.MAC, id.Revision, id.Package, id.BlockRevision); err != nil || got != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func mac32(w1, w2 uint32) func(f *fake) {
	return func(f *fake) { f.cells[0][1], f.cells[0][2] = w1, w2 }
}

func rev32(rev1, rev2, apb, minor uint32) func(f *fake) {
	return func(f *fake) {
		f.cells[0][3] = f.cells[0][3]&^(1<<15) | rev1<<15
		f.cells[0][5] = f.cells[0][5]&^(1<<20|3<<24) | rev2<<20 | minor<<24
		f.regs[f.m.EFuse.RevisionBit2Register] = 0x16042000 | apb<<31
	}
}

// esp-facts B.9: zeros alone do not make a block free.
func TestKeyBlocksFree(t *testing.T) {
	for _, c := range []struct {
		name  string
		block int
		edit  func(f *fake)
		want  efuse.KeyBlockState
	}{
		{"virgin", 4, func(*fake) {}, efuse.KeyBlockState{Purpose: "USER", Free: true, Zero: true}},
		{"hidden", 4, func(f *fake) { f.setField("RD_DIS", 1) }, efuse.KeyBlockState{Purpose: "USER", Zero: true, ReadProtected: true}},
		{"hidden key", 4, func(f *fake) { f.put(4, keyWords); f.setField("RD_DIS", 1) }, efuse.KeyBlockState{Purpose: "USER", Zero: true, ReadProtected: true}},
		{"locked", 4, func(f *fake) { f.setField("WR_DIS", 1<<23) }, efuse.KeyBlockState{Purpose: "USER", Zero: true, WriteProtected: true}},
		{"purpose locked", 4, func(f *fake) { f.setField("WR_DIS", 1<<8) }, efuse.KeyBlockState{Purpose: "USER", Zero: true, PurposeWriteProtected: true}},
		{"purpose set", 5, func(f *fake) { f.setField("KEY_PURPOSE_1", 4) }, efuse.KeyBlockState{Purpose: "XTS_AES_128_KEY", Zero: true}},
		{"reserved purpose", 9, func(f *fake) { f.setField("KEY_PURPOSE_5", 2) }, efuse.KeyBlockState{Purpose: "RESERVED_2", Zero: true}},
		{"neighbour", 5, func(f *fake) { f.put(4, keyWords); f.setField("RD_DIS", 1); f.setField("WR_DIS", 1<<23|1<<8) }, efuse.KeyBlockState{Purpose: "USER", Free: true, Zero: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, "esp32c3")
			c.edit(f)
			c.want.Block, c.want.Name = c.block, fmt.Sprintf("KEY%d", c.block-4)
			if got := read(t, f).KeyBlocks()[c.block-4]; got != c.want {
				t.Errorf("%+v\nwant %+v", got, c.want)
			}
		})
	}
	f := newFake(t, "esp32")
	f.setField("RD_DIS", 2)
	k := read(t, f).KeyBlocks()
	if len(k) != 2 || k[0] != (efuse.KeyBlockState{Block: 1, Name: "BLOCK1", Purpose: "FLASH_ENCRYPTION", Free: true, Zero: true}) ||
		k[1] != (efuse.KeyBlockState{Block: 2, Name: "BLOCK2", Purpose: "SECURE_BOOT_V2_DIGEST", Zero: true, ReadProtected: true}) {
		t.Errorf("%+v", k)
	}
	if _, err := read(t, f).KeyBlock("BLOCK3"); err == nil {
		t.Error("BLOCK3 passes for a key block")
	}
}

// A block and a key record with the same key have the same fingerprint, whatever
// order the purpose puts the bytes in.
func TestFingerprintOrder(t *testing.T) {
	want, err := efuse.KeyFingerprint(key00(32))
	if err != nil {
		t.Fatal(err)
	}
	straight := []uint32{0x03020100, 0x07060504, 0x0b0a0908, 0x0f0e0d0c, 0x13121110, 0x17161514, 0x1b1a1918, 0x1f1e1d1c}
	for purpose, words := range map[uint32][]uint32{0: keyWords, 4: keyWords, 8: straight, 9: straight} {
		f := newFake(t, "esp32c3")
		f.put(6, words)
		f.setField("KEY_PURPOSE_2", purpose)
		if k, _ := read(t, f).KeyBlock("KEY2"); k.Fingerprint != want || k.Zero || k.Free {
			t.Errorf("purpose %d: %+v", purpose, k)
		}
	}
	if _, err := efuse.KeyFingerprint(nil); err == nil {
		t.Error("a fingerprint of no key")
	}
}

func TestFields(t *testing.T) {
	f := newFake(t, "esp32")
	f.setField("FLASH_CRYPT_CNT", 0x55)
	f.setField("WR_DIS", 1<<2|1<<7)
	s := read(t, f)
	for name, want := range map[string]uint64{"FLASH_CRYPT_CNT": 0x55, "WR_DIS.UART_DOWNLOAD_DIS": 1, "WR_DIS.MAC": 0, "CK8M_FREQ": 0x50, "MAC": 0x064b7fc40a24, "MAC_CRC": 0x35, "CODING_SCHEME": 0} {
		if v, err := s.Field(name); v != want || err != nil {
			t.Errorf("%s: 0x%x, %v; want 0x%x", name, v, err, want)
		}
	}
	if set, err := s.FieldSet("FLASH_CRYPT_CNT"); !set || err != nil {
		t.Error(set, err)
	}
	for name, want := range map[string]bool{"UART_DOWNLOAD_DIS": true, "BLOCK1": true, "BLOCK2": false, "MAC": false, "WR_DIS": false} {
		if got, err := s.WriteProtected(name); got != want || err != nil {
			t.Errorf("%s: locked %t, %v", name, got, err)
		}
	}
	if _, err := s.Field("NOPE"); !errors.Is(err, table.ErrUnknown) {
		t.Error(err)
	}
	if _, err := s.WriteProtected("NOPE"); !errors.Is(err, table.ErrUnknown) {
		t.Error(err)
	}
	if _, err := s.Field("BLOCK1"); err == nil {
		t.Error("a key is a number")
	}
	f.setField("RD_DIS", 8)
	s = read(t, f)
	if _, err := s.Field("ENCRYPT_CONFIG"); !errors.Is(err, efuse.ErrProtected) {
		t.Error(err)
	}
	if hidden, err := s.ReadProtected("KEY_STATUS"); !hidden || err != nil {
		t.Error(hidden, err)
	}
	if _, err := s.CodingScheme(); !errors.Is(err, efuse.ErrProtected) {
		t.Error(err)
	}
	for v, want := range map[uint32]efuse.Scheme{0: efuse.SchemeNone, 1: efuse.Scheme34, 2: efuse.SchemeRepeat, 3: efuse.SchemeNone} {
		f := newFake(t, "esp32")
		f.setField("CODING_SCHEME", v)
		if got, err := read(t, f).CodingScheme(); got != want || err != nil {
			t.Errorf("%d: %v, %v", v, got, err)
		}
	}
	if got, _ := read(t, newFake(t, "esp32c3")).CodingScheme(); got != efuse.SchemeRS || got.String() != "RS(44,32)" {
		t.Error(got)
	}
}

func TestBlockErrors(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.onRead = func(a, v uint32) (uint32, error) {
		switch a {
		case f.m.EFuse.RSErr[0]:
			return 0x89911100, nil // esp-facts B.6
		case f.m.EFuse.RepeatErr + 8:
			return 1 << 20, nil // word 3
		}
		return v, nil
	}
	var got []string
	for _, e := range read(t, f).BlockErrors() {
		got = append(got, e.String())
	}
	want := []string{
		"BLOCK0: 1 errors, BLOCK0 word 3 bit 20 (SECURE_BOOT_EN)", "USR_DATA: 1 errors", "KEY0: 1 errors",
		"KEY1: 1 errors, not corrected", "KEY2: 1 errors, not corrected", "KEY3: 1 errors, not corrected",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// DEC_STATUS of the ESP32 means something in the 3/4 scheme only.
	for scheme, want := range map[uint32]int{0: 0, 1: 1} {
		f := newFake(t, "esp32")
		f.setField("CODING_SCHEME", scheme)
		f.cells[2][1] = 1 // no code word
		f.onRead = keepErrs(f.m.EFuse.DecStatus, 0x020)
		if e := read(t, f).BlockErrors(); len(e) != want || want == 1 && (e[0].Block != "BLOCK2" || !e[0].Fail) {
			t.Errorf("scheme %d: %v", scheme, e)
		}
	}
}

func TestDiff(t *testing.T) {
	f := newFake(t, "esp32c3")
	a := read(t, f)
	f.setField("SPI_BOOT_CRYPT_CNT", 4)
	f.put(7, keyWords)
	b := read(t, f)
	d, err := efuse.Diff(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(d) != 2 || d[0].String() != "BLOCK0 word 2 bit 20 (SPI_BOOT_CRYPT_CNT)" || !d[0].Set || !d[1].KeyBlock || d[1].Block != "KEY3" || d[1].Is.IsZero() {
		t.Errorf("%+v", d)
	}
	back, _ := efuse.Diff(b, a)
	if len(back) != 2 || back[0].Set || back[1].Set {
		t.Errorf("%+v", back)
	}
	if same, err := efuse.Diff(a, a); len(same) != 0 || err != nil {
		t.Error(same, err)
	}
	if _, err := efuse.Diff(a, read(t, newFake(t, "esp32"))); !errors.Is(err, efuse.ErrOtherChip) {
		t.Error(err)
	}
}

func TestWords(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.put(4, keyWords)
	s := read(t, f)
	fp, _ := efuse.KeyFingerprint(key00(32))
	w := s.Words()
	if len(w) != 11 || w[1].Words[0] != "a1c9c3b3" || !slices.Equal(w[4].Words, []string{"fp:" + fp.String()}) || len(w[5].Words) != 8 || w[5].Words[0] != "00000000" {
		t.Errorf("%v", w)
	}
	var j struct {
		Chip   string
		Scheme string `json:"coding_scheme"`
		Blocks []efuse.BlockWords
		Errors []efuse.ErrorRegister `json:"error_registers"`
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &j); err != nil {
		t.Fatal(err)
	}
	if j.Chip != "esp32c3" || j.Scheme != "RS(44,32)" || len(j.Blocks) != 11 || j.Blocks[4].Words[0] != w[4].Words[0] || len(j.Errors) != 7 {
		t.Errorf("%s", data)
	}
	if text := fmt.Sprintf("%v", s); !strings.Contains(text, "KEY0 fp:"+fp.String()) {
		t.Error(text)
	}
}

func TestDescribe(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.put(4, keyWords)
	f.setField("KEY_PURPOSE_0", 4)
	f.setField("SPI_BOOT_CRYPT_CNT", 7)
	f.setField("WR_DIS", 1<<2)
	f.put(5, keyWords)
	f.setField("RD_DIS", 2)
	f.cells[0][5] |= 1 << 9 // no field has it
	f.load()
	d := efuse.Describe(read(t, f))
	got := map[string]efuse.FieldState{}
	for _, x := range d.Fields {
		got[x.Name] = x
	}
	fp, _ := efuse.KeyFingerprint(key00(32))
	for name, want := range map[string]string{
		"KEY0":               "fp:" + fp.String() + " XTS_AES_128_KEY false false",
		"KEY1":               " hidden true false",
		"KEY2":               "0x0 free false false",
		"KEY_PURPOSE_0":      "0x4 XTS_AES_128_KEY false false",
		"SPI_BOOT_CRYPT_CNT": "0x7 flash encryption on for good false false",
		"DIS_PAD_JTAG":       "0x0 no false true",
		"OPTIONAL_UNIQUE_ID": "0xc15c56fc8dcbb874c022b836f061900  false false",
		"WDT_DELAY_SEL":      "0x0 40000 false false",
	} {
		x := got[name]
		if s := fmt.Sprintf("%s %s %t %t", x.Value, x.Meaning, x.ReadProtected, x.WriteProtected); s != want {
			t.Errorf("%s: %q, want %q", name, s, want)
		}
	}
	if len(d.Unnamed) != 1 || d.Unnamed[0] != (efuse.BitRef{Block: "BLOCK0", Word: 5, Bit: 9}) {
		t.Errorf("%v", d.Unnamed)
	}
	if d.Identity == nil || d.Identity.MAC != (chip.MAC{0x7c, 0xdf, 0xa1, 0xc9, 0xc3, 0xb3}) {
		t.Errorf("%v", d.Identity)
	}
	if len(d.Fields) != len(read(t, f).Table().Fields()) {
		t.Errorf("%d fields", len(d.Fields))
	}
	var text bytes.Buffer
	if err := d.Text(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"7c:df:a1:c9:c3:b3", "SPI_BOOT_CRYPT_CNT", "flash encryption on for good", "no field has it: BLOCK0 word 5 bit 9"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, text.String())
		}
	}
	// a chip that cannot be decoded is shown all the same
	g := newFake(t, "esp32")
	g.cells[0][1] ^= 1
	if d := efuse.Describe(read(t, g)); d.Identity != nil || len(d.Problems) != 1 || len(d.Fields) == 0 {
		t.Errorf("%+v", d.Problems)
	}
	if data, err := json.Marshal(d); err != nil || !bytes.Contains(data, []byte(`"coding_scheme":"RS(44,32)"`)) {
		t.Errorf("%s, %v", data, err)
	}
}
