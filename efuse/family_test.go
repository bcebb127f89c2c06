package efuse_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/coding"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// silicon is a chip at a revision, with the crystals that matter to it.
type silicon struct {
	name     string
	rev      chip.Revision
	crystals []int
}

// family lists every chip, and both sides of each change of its silicon.
var family = []silicon{
	{"esp32", 301, []int{40}},
	{"esp32s2", 0, []int{40}},
	{"esp32s2", 100, []int{40}},
	{"esp32s3", 2, []int{40}},
	{"esp32c2", 100, []int{26, 40}},
	{"esp32c2", 200, []int{40}},
	{"esp32c3", 4, []int{40}},
	{"esp32c5", 100, []int{40, 48}},
	{"esp32c6", 2, []int{40}},
	{"esp32c61", 100, []int{40}},
	{"esp32h2", 1, []int{32}},
	{"esp32h2", 102, []int{32}},
	{"esp32p4", 103, []int{40}},
	{"esp32p4", 300, []int{40}},
	{"esp32p4", 302, []int{40}},
}

// f5Words reads testdata/facts-f5.txt, a transcription of esp-facts F.5: chip,
// revision, BLOCK0 after the hybrid list, and after the last fuse.
func f5Words(t *testing.T) map[string][2][]uint32 {
	t.Helper()
	file, err := os.Open("testdata/facts-f5.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	out := map[string][2][]uint32{}
	for sc := bufio.NewScanner(file); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, ":")
		hybrid, last, ok := strings.Cut(rest, ">")
		var pair [2][]uint32
		for i, list := range []string{hybrid, last} {
			for _, w := range strings.Fields(list) {
				var v uint32
				if _, err := fmt.Sscanf(w, "%x", &v); err != nil {
					t.Fatal(line, err)
				}
				pair[i] = append(pair[i], v)
			}
		}
		if !ok || len(pair[0]) != len(pair[1]) {
			t.Fatal(line)
		}
		out[name] = pair
	}
	if len(out) != 12 {
		t.Fatalf("%d rows", len(out))
	}
	return out
}

// hybridStages is the way to profile hybrid with the key in the first key block and
// without Secure Boot, the key given by its scheme; then the last fuse of release.
func hybridStages(m chip.Model, scheme chip.Scheme) []efuse.Stage {
	keys := map[chip.Scheme][]efuse.KeyBurn{
		chip.SchemeESP32:      {{Block: "BLOCK1"}},
		chip.SchemeXTS128:     {{Block: "KEY0", Purpose: "XTS_AES_128_KEY"}},
		chip.SchemeXTS256:     {{Block: "KEY0", Purpose: "XTS_AES_256_KEY_1"}, {Block: "KEY1", Purpose: "XTS_AES_256_KEY_2"}},
		chip.SchemeXTSDerived: {{Block: "KEY0.LOW"}},
	}[scheme]
	protect := efuse.Stage{Name: "protect"}
	for _, k := range keys {
		protect.ReadProtect = append(protect.ReadProtect, k.Block)
		protect.WriteProtect = append(protect.WriteProtect, k.Block)
		if m.EFuse.KeyBlocks > 1 {
			protect.WriteProtect = append(protect.WriteProtect, "KEY_PURPOSE_"+k.Block[3:])
		}
	}
	return []efuse.Stage{
		{Name: "key", Keys: keys},
		protect,
		{Name: "lockdown", Set: append(slices.Clone(m.Lockdown.Enable), m.Lockdown.Fuses...)},
		{Name: "counter", Set: []chip.Assignment{{Field: m.EFuse.FlashCryptCount, Value: m.EFuse.FlashCryptCountFull}}},
		{Name: "locks", WriteProtect: m.Lockdown.WriteProtect},
		{Name: "close", Set: []chip.Assignment{{Field: m.Lockdown.ReleaseFuse, Value: 1}}},
	}
}

// f5Scheme is the scheme of a row of F.5: the C2's has the derived key.
func f5Scheme(m chip.Model) chip.Scheme {
	if m.Name == "esp32c2" {
		return chip.SchemeXTSDerived
	}
	return m.Scheme
}

// row names a row of the facts: silicon with fields of its own has its own.
func row(name string, rev chip.Revision) string {
	switch {
	case name == "esp32p4" && rev < 300, name == "esp32h2" && rev < 102:
		return name + " before"
	}
	return name
}

// BLOCK0 after every fuse of profile hybrid, and after the last one, from the models
// and tables alone.
func TestBlock0Pure(t *testing.T) {
	facts := f5Words(t)
	for _, s := range family {
		m, err := chip.ByName(s.name)
		if err != nil {
			t.Fatal(err)
		}
		m = m.At(s.rev)
		base, err := efuse.Virgin(m, s.rev)
		if err != nil {
			t.Fatal(err)
		}
		st := hybridStages(m, f5Scheme(m))
		cp, err := efuse.NewPlan(m, st...).Check(base)
		if err != nil {
			t.Errorf("%s %v: %v", s.name, s.rev, err)
			continue
		}
		factory := cp.Expected(-1).Block0()
		for i, stage := range []int{len(st) - 2, len(st) - 1} {
			got := cp.Expected(stage).Block0()
			for w := range got {
				got[w] &^= factory[w]
			}
			if want := facts[row(s.name, s.rev)][i]; !slices.Equal(got, want) {
				t.Errorf("%s %v after stage %s: %08x, esp-facts F.5 has %08x", s.name, s.rev, st[stage].Name, got, want)
			}
		}
	}
}

// ESP-IDF's release mode locks the C2's counter too (F.2): one more bit than F.5.
func TestReleaseProtect(t *testing.T) {
	for _, m := range chip.All() {
		st := hybridStages(m, f5Scheme(m))
		st[4].WriteProtect = slices.Concat(m.Lockdown.WriteProtect, m.Lockdown.ReleaseProtect)
		base, err := efuse.Virgin(m, 300)
		if err != nil {
			base, err = efuse.Virgin(m, 102)
		}
		if err != nil {
			t.Fatal(err)
		}
		cp, err := efuse.NewPlan(m, st...).Check(base)
		if err != nil {
			t.Fatal(err)
		}
		if w := cp.Expected(4).Block0()[0]; m.Name == "esp32c2" && w != 0x84 {
			t.Errorf("esp32c2: word 0 is %08x", w)
		}
	}
}

// The whole way on the model of every chip's controller: what is burned is what F.5
// and B.9 say, in the blocks and with the timing of this chip.
func TestFamilyWholeWay(t *testing.T) {
	facts := f5Words(t)
	for _, s := range family {
		m, _ := chip.ByName(s.name)
		for _, scheme := range m.Schemes {
			for _, mhz := range s.crystals {
				t.Run(fmt.Sprintf("%s %v %s %d MHz", s.name, s.rev, scheme, mhz), func(t *testing.T) {
					f := newSilicon(t, s.name, s.rev)
					f.m, f.mhz, f.obeysSDM, f.instant = f.m.At(s.rev), mhz, true, true
					if id, err := read(t, f).Identity(); err != nil || id.Revision != s.rev || !strings.HasSuffix(id.MAC.String(), map[bool]string{true: "24:0a:c4:7f:4b:06", false: "7c:df:a1:c9:c3:b3"}[s.name == "esp32"]) {
						t.Fatalf("%+v, %v", id, err)
					}
					base := slices.Clone(f.cells[0])
					cp := check(t, f, hybridStages(f.m, scheme)...)
					stages := cp.Stages()
					var keys []*secret.Bytes
					for i, n := range cp.KeyLens(0) {
						keys = append(keys, secret.New(keyBytes(n, i*n)))
					}
					for i := range stages {
						var with []*secret.Bytes
						if i == 0 {
							with = keys
						}
						if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, with...); err != nil {
							t.Fatalf("stage %s: %v", stages[i].Name, err)
						}
						if i == 0 {
							assertKeys(t, f, scheme)
						}
						if i == len(stages)-2 && scheme == f5Scheme(f.m) {
							assertWords(t, "hybrid", f.cells[0], base, facts[row(s.name, s.rev)][0])
						}
					}
					if scheme == f5Scheme(f.m) {
						assertWords(t, "closed", f.cells[0], base, facts[row(s.name, s.rev)][1])
					}
				})
			}
		}
	}
}

// keyBytes is 00 01 02 …, from first on.
func keyBytes(n, first int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(first + i)
	}
	return b
}

// assertKeys compares with the byte-order vectors of esp-facts B.9, and that nothing
// stands beside the key.
func assertKeys(t *testing.T, f *fake, scheme chip.Scheme) {
	t.Helper()
	second := []uint32{0x3c3d3e3f, 0x38393a3b, 0x34353637, 0x30313233, 0x2c2d2e2f, 0x28292a2b, 0x24252627, 0x20212223}
	half := []uint32{0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203, 0, 0, 0, 0}
	first := f.tab.Slots()[0].Block
	want := map[int][]uint32{first: keyWords}
	switch scheme {
	case chip.SchemeXTS256:
		want[first+1] = second
	case chip.SchemeXTSDerived:
		want[first] = half
	case chip.SchemeESP32, chip.SchemeXTS128:
	}
	for _, b := range f.blk {
		if w := want[b.Index]; b.Key && w == nil {
			want[b.Index] = make([]uint32, 8)
		}
		if b.Key && !slices.Equal(f.cells[b.Index][:8], want[b.Index]) {
			t.Errorf("block %s holds %08x, want %08x", b.Name, f.cells[b.Index], want[b.Index])
		}
	}
	if f.m.Name == "esp32c2" {
		if long := f.field("XTS_KEY_LENGTH_256"); long != map[chip.Scheme]uint32{chip.SchemeXTS128: 1}[scheme] {
			t.Errorf("XTS_KEY_LENGTH_256 is %d", long)
		}
	}
}

// The C2's two things in one block go in one burn, each with its own protection:
// the key is hidden, the digest stays readable for ever.
func TestC2SecureBoot(t *testing.T) {
	f := newSilicon(t, "esp32c2", 200)
	f.instant = true
	st := []efuse.Stage{
		{Name: "keys", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}, {Block: "KEY0.HI"}}},
		{Name: "protect", ReadProtect: []string{"KEY0.LOW"}, WriteProtect: []string{"KEY0"}},
	}
	cp := check(t, f, st...)
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, secret.New(keyBytes(16, 0)), secret.New(keyBytes(16, 0xA0))); err != nil {
		t.Fatal(err)
	}
	if f.burns != 1 {
		t.Errorf("%d burns", f.burns)
	}
	rep, err := efuse.Burn(t.Context(), f, f.m, cp, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := []uint32{0, 0, 0, 0, 0xa3a2a1a0, 0xa7a6a5a4, 0xabaaa9a8, 0xafaeadac}
	if !slices.Equal(f.shown[3], want) {
		t.Errorf("the block shows %08x", f.shown[3])
	}
	if f.cells[0][0] != 0x80 || f.cells[0][1] != 1 {
		t.Errorf("BLOCK0 %08x", f.cells[0])
	}
	low, _ := rep.After.KeyBlock("KEY0.LOW")
	high, _ := rep.After.KeyBlock("KEY0.HI")
	if !low.ReadProtected || !low.Zero || low.Free || high.ReadProtected || high.Zero || high.Fingerprint != secret.Fingerprint(keyBytes(16, 0xA0)) {
		t.Errorf("low %+v high %+v", low, high)
	}
}

func TestC2Refuses(t *testing.T) {
	key := efuse.KeyBurn{Block: "KEY0", Purpose: "XTS_AES_128_KEY"}
	for name, c := range map[string]struct {
		prepare func(f *fake)
		stages  []efuse.Stage
		want    string
	}{
		"whole and half":      {nil, []efuse.Stage{{Name: "k", Keys: []efuse.KeyBurn{key, {Block: "KEY0.HI"}}}}, "is given two keys"},
		"one after the other": {nil, []efuse.Stage{{Name: "a", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}}}, {Name: "b", Keys: []efuse.KeyBurn{{Block: "KEY0.HI"}}}}, "is not empty"},
		"hidden digest": {nil, []efuse.Stage{
			{Name: "a", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}, {Block: "KEY0.HI"}}}, {Name: "b", ReadProtect: []string{"KEY0"}},
		}, "SECURE_BOOT_DIGEST, which the chip must be able to read"},
		"length says whole":     {func(f *fake) { f.setField("XTS_KEY_LENGTH_256", 1) }, []efuse.Stage{{Name: "a", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}}}}, "XTS_KEY_LENGTH_256 is set"},
		"length locked":         {func(f *fake) { f.setField("WR_DIS", 4) }, []efuse.Stage{{Name: "a", Keys: []efuse.KeyBurn{key}}}, "XTS_KEY_LENGTH_256 is write-protected"},
		"counter locked first":  {nil, []efuse.Stage{{Name: "a", WriteProtect: []string{"SPI_BOOT_CRYPT_CNT"}}, set("SECURE_BOOT_EN", 1)}, "write-protected"},
		"somebody's high half":  {func(f *fake) { f.put(3, []uint32{0, 0, 0, 0, 1}); f.load() }, []efuse.Stage{{Name: "a", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}}}}, "is not empty"},
		"half hidden, all zero": {func(f *fake) { f.setField("RD_DIS", 2) }, []efuse.Stage{{Name: "a", Keys: []efuse.KeyBurn{{Block: "KEY0.LOW"}}}}, "read-protected"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newSilicon(t, "esp32c2", 200)
			if c.prepare != nil {
				c.prepare(f)
			}
			_, err := efuse.NewPlan(f.m, c.stages...).Check(read(t, f))
			var bad *efuse.CheckError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// KEY5 never holds an XTS key where the silicon ignores it there (B.9).
func TestLastKeyBlockFamily(t *testing.T) {
	for _, m := range chip.All() {
		if m.EFuse.KeyBlocks < 6 {
			continue
		}
		f := newSilicon(t, m.Name, 102)
		_, err := efuse.NewPlan(m, efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: "KEY5", Purpose: "XTS_AES_128_KEY"}}}).Check(read(t, f))
		quirk := slices.Contains([]string{"esp32c3", "esp32s3", "esp32c6", "esp32h2"}, m.Name)
		if refused := err != nil; refused != quirk || refused && !strings.Contains(err.Error(), "KEY5") {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}

// On the H2 the same is true of ECDSA keys, and before v1.2 each needs a fuse of its
// own (B.7).
func TestECDSAKeysH2(t *testing.T) {
	for _, c := range []struct {
		rev   chip.Revision
		block string
		fuse  bool
		ok    bool
	}{{1, "KEY1", true, true}, {102, "KEY1", false, true}, {1, "KEY5", true, false}, {102, "KEY5", false, false}} {
		f := newSilicon(t, "esp32h2", c.rev)
		cp, err := efuse.NewPlan(f.m, efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: c.block, Purpose: "ECDSA_KEY"}}}).Check(read(t, f))
		if (err == nil) != c.ok {
			t.Errorf("%v %s: %v", c.rev, c.block, err)
		}
		if err != nil {
			continue
		}
		if got := cp.Expected(0).Block0()[3]&(1<<18) != 0; got != c.fuse {
			t.Errorf("%v: ECDSA_FORCE_USE_HARDWARE_K %v", c.rev, got)
		}
	}
}

// Two fuses of the ESP32-S3 crash its download mode together (H 12).
func TestNeverTogether(t *testing.T) {
	refused := func(f *fake, st ...efuse.Stage) bool {
		_, err := efuse.NewPlan(f.m, st...).Check(read(t, f))
		if err != nil && !strings.Contains(err.Error(), "DIS_USB_JTAG and DIS_USB_SERIAL_JTAG: together break the download mode") {
			t.Errorf("%v", err)
		}
		return err != nil
	}
	both := []efuse.Stage{set("DIS_USB_JTAG", 1), {Name: "more", Set: []chip.Assignment{{Field: "DIS_USB_SERIAL_JTAG", Value: 1}}}}
	f := newSilicon(t, "esp32s3", 2)
	if !refused(f, both...) || refused(f, both[0]) || refused(f, both[1]) {
		t.Error("virgin")
	}
	f.setField("DIS_USB_SERIAL_JTAG", 1)
	if !refused(f, both[0]) || refused(f, set("DIS_PAD_JTAG", 1)) {
		t.Error("with one of them set")
	}
	f.setField("DIS_USB_JTAG", 1)
	if refused(f, set("DIS_PAD_JTAG", 1)) {
		t.Error("with both set already, nothing is made worse")
	}
	if refused(newSilicon(t, "esp32c6", 2), both...) {
		t.Error("another chip bears it")
	}
}

// Damage in each RS-coded block of each chip is reported for that block (B.6).
func TestRSErrorsFamily(t *testing.T) {
	for _, s := range family {
		if s.name == "esp32" {
			continue
		}
		f := newSilicon(t, s.name, s.rev)
		for _, b := range f.blk[1:] {
			if s.name == "esp32c3" && b.Index == coding.RSBlocks {
				continue // its fail bit does not exist
			}
			f.errs = map[uint32]uint32{}
			f.onRead = func(addr, v uint32) (uint32, error) { return v | f.errs[addr], nil }
			s := read(t, f)
			if len(s.BlockErrors()) != 0 {
				t.Fatalf("%s: %v", f.m.Name, s.BlockErrors())
			}
			f.rsErrorAfterLoad(b.Index)
			s = read(t, f)
			if e := s.BlockErrors(); len(e) != 1 || e[0].Block != b.Name || !e[0].Fail || e[0].Count != 1 {
				t.Errorf("%s: damage in %s shows as %v", f.m.Name, b.Name, e)
			}
			f.onRead = nil
		}
	}
}

// rsErrorAfterLoad keeps an error through the next read command.
func (f *fake) rsErrorAfterLoad(block int) {
	f.rsError(block)
	keep := f.errs
	f.errs = map[uint32]uint32{}
	f.onRead = func(addr, v uint32) (uint32, error) { return v | keep[addr], nil }
}

// The C2 has one register for BLOCK0's copies and one for all blocks.
func TestErrorRegistersFamily(t *testing.T) {
	for _, s := range family {
		n := map[string]int{"esp32": 1, "esp32c2": 2}[s.name]
		if n == 0 {
			n = 7
		}
		if got := read(t, newSilicon(t, s.name, s.rev)).ErrorRegisters(); len(got) != n {
			t.Errorf("%s: %v", s.name, got)
		}
	}
}

func TestVirginFamily(t *testing.T) {
	for _, s := range family {
		m, _ := chip.ByName(s.name)
		v, err := efuse.Virgin(m, s.rev)
		if err != nil {
			t.Error(err)
			continue
		}
		id, err := v.Identity()
		if err != nil || id.Revision != s.rev || !id.MAC.LocallyAdministered() {
			t.Errorf("%s %v: %+v, %v", s.name, s.rev, id, err)
		}
		if len(v.BlockErrors()) != 0 {
			t.Errorf("%s: %v", s.name, v.BlockErrors())
		}
		for _, k := range v.KeyBlocks() {
			if !k.Free {
				t.Errorf("%s: %+v", s.name, k)
			}
		}
	}
	m, _ := chip.ByName("esp32c6")
	if v, err := efuse.Virgin(m, 900); err == nil {
		t.Errorf("a revision that its fields cannot say: %v", v)
	}
}

// Silicon chooses the table, and with it what a field's name means.
func TestTableBySilicon(t *testing.T) {
	for _, c := range []struct {
		name  string
		rev   chip.Revision
		first chip.Revision
		field string
		has   bool
	}{
		{"esp32p4", 103, 0, "XTS_DPA_PSEUDO_LEVEL", false},
		{"esp32p4", 300, 300, "XTS_DPA_PSEUDO_LEVEL", true},
		{"esp32p4", 103, 0, "XTS_KEY_LENGTH_256", true},
		{"esp32h2", 1, 0, "ECDSA_FORCE_USE_HARDWARE_K", true},
		{"esp32h2", 102, 102, "ECDSA_FORCE_USE_HARDWARE_K", false},
		{"esp32h2", 1, 0, "ECDSA_CURVE_MODE", false},
	} {
		s := read(t, newSilicon(t, c.name, c.rev))
		if _, has := s.Table().Field(c.field); has != c.has || s.Table().First() != c.first {
			t.Errorf("%s %v: table from %v, %s %v", c.name, c.rev, s.Table().First(), c.field, has)
		}
	}
	// A five-bit purpose on the P4 from v3.0 on has its high bit somewhere else.
	f := newSilicon(t, "esp32p4", 300)
	f.instant = true
	cp := check(t, f, efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: "KEY1", Purpose: "ECDSA_KEY_P384_L"}}})
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err != nil {
		t.Fatal(err)
	}
	if f.cells[0][2] != 1<<28 || f.cells[0][4] != 1<<28 {
		t.Errorf("purpose 17 in BLOCK0 %08x", f.cells[0])
	}
}

// First silicon of the ESP32-S3 says another number in its fields (B.8).
func TestS3FirstSilicon(t *testing.T) {
	f := newSilicon(t, "esp32s3", 0)
	f.setField("WAFER_VERSION_MAJOR", 2)
	f.setField("BLK_VERSION_MINOR", 1)
	if id, err := read(t, f).Identity(); err != nil || id.Revision != 200 {
		t.Errorf("%+v %v", id, err)
	}
	f.setField("BLK_VERSION_MAJOR", 1)
	if id, err := read(t, f).Identity(); err != nil || id.Revision != 0 || id.BlockRevision != 101 {
		t.Errorf("%+v %v", id, err)
	}
}

// A board whose crystal nobody can tell is not burned.
func TestTimingNeedsTheCrystal(t *testing.T) {
	f := newSilicon(t, "esp32c2", 200)
	cp := check(t, f, set("DIS_PAD_JTAG", 1))
	if _, err := efuse.Burn(t.Context(), struct{ efuse.Registers }{f}, f.m, cp, 0); err == nil || f.burns != 0 {
		t.Errorf("%v, %d burns", err, f.burns)
	}
	f.mhz = 32
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0); err == nil || f.burns != 0 {
		t.Errorf("%v, %d burns", err, f.burns)
	}
	if _, err := efuse.Burn(t.Context(), failingCrystal{f}, f.m, cp, 0); !errors.Is(err, errRefused) || f.burns != 0 {
		t.Errorf("%v, %d burns", err, f.burns)
	}
}

type failingCrystal struct{ *fake }

func (failingCrystal) Crystal(context.Context) (int, error) { return 0, errRefused }
