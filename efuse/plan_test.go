package efuse_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

func set(field string, v uint32) efuse.Stage {
	return efuse.Stage{Name: "set " + field, Set: []chip.Assignment{{Field: field, Value: v}}}
}

func TestCheckRefuses(t *testing.T) {
	keyStage := efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: "KEY0", Purpose: "XTS_AES_128_KEY"}}}
	key32 := efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: "BLOCK1"}}}
	wp := func(names ...string) efuse.Stage { return efuse.Stage{Name: "wp", WriteProtect: names} }
	rp := func(names ...string) efuse.Stage { return efuse.Stage{Name: "rp", ReadProtect: names} }
	key := func(block, purpose string) efuse.Stage {
		return efuse.Stage{Name: "key", Keys: []efuse.KeyBurn{{Block: block, Purpose: purpose}}}
	}
	for _, c := range []struct {
		name, chip string
		chipState  func(f *fake)
		stages     []efuse.Stage
		want       string // in the reason; "" if the plan fits
	}{
		{"all", "esp32c3", nil, stagesOf(t, "esp32c3"), ""},
		{"all", "esp32", nil, stagesOf(t, "esp32"), ""},
		{"factory-set fuse", "esp32", func(f *fake) { f.setField("CONSOLE_DEBUG_DISABLE", 1) }, stagesOf(t, "esp32"), ""},
		{"nothing", "esp32c3", nil, nil, ""},

		{"unknown field", "esp32c3", nil, []efuse.Stage{set("NOPE", 1)}, "not in the eFuse table"},
		{"no stage name", "esp32c3", nil, []efuse.Stage{{}}, "every stage needs one"},
		{"too large", "esp32c3", nil, []efuse.Stage{set("SPI_BOOT_CRYPT_CNT", 8)}, "does not fit into 3 bits"},
		{"loses bits", "esp32c3", func(f *fake) { f.setField("WDT_DELAY_SEL", 1) }, []efuse.Stage{set("WDT_DELAY_SEL", 2)}, "never lose bits"},
		{"to zero", "esp32c3", func(f *fake) { f.setField("DIS_PAD_JTAG", 1) }, []efuse.Stage{set("DIS_PAD_JTAG", 0)}, "never lose bits"},
		{"even counter", "esp32c3", nil, []efuse.Stage{set("SPI_BOOT_CRYPT_CNT", 3)}, "odd number of bits"},
		{"zero counter", "esp32", nil, []efuse.Stage{set("FLASH_CRYPT_CNT", 0)}, "odd number of bits"},
		{"even soft JTAG", "esp32c3", nil, []efuse.Stage{set("SOFT_DIS_JTAG", 5)}, "odd number of bits"},
		{"coding scheme", "esp32", nil, []efuse.Stage{set("CODING_SCHEME", 1)}, "no plan changes it"},
		{"MAC", "esp32", func(f *fake) { mac32(0xc4000001, 0xbe240a)(f); f.load() }, []efuse.Stage{set("MAC", 0xffffffff)}, "no plan changes it"},
		{"factory clock", "esp32", nil, []efuse.Stage{set("CLK8M_FREQ", 0xff)}, "no plan changes it"},
		{"factory clock kept", "esp32", nil, []efuse.Stage{set("CK8M_FREQ", 0x50)}, ""},
		{"odd counter", "esp32", nil, []efuse.Stage{set("FLASH_CRYPT_CNT", 1)}, ""},
		{"counter grows", "esp32", func(f *fake) { f.setField("FLASH_CRYPT_CNT", 1) }, []efuse.Stage{set("FLASH_CRYPT_CNT", 127)}, ""},
		{"two values", "esp32c3", nil, []efuse.Stage{{Name: "x", Set: []chip.Assignment{{Field: "WDT_DELAY_SEL", Value: 1}, {Field: "WDT_DELAY_SEL", Value: 3}}}}, "two values"},
		{"two values by alias", "esp32c3", nil, []efuse.Stage{{Name: "x", Set: []chip.Assignment{{Field: "KEY0_PURPOSE", Value: 4}, {Field: "KEY_PURPOSE_0", Value: 5}}}}, "two values"},
		{"masks", "esp32c3", nil, []efuse.Stage{set("WR_DIS", 4)}, "WriteProtect and ReadProtect"},
		{"mask bit", "esp32c3", nil, []efuse.Stage{set("RD_DIS.KEY0", 1)}, "WriteProtect and ReadProtect"},
		{"key by Set", "esp32c3", nil, []efuse.Stage{set("KEY0", 1)}, "burned by Key"},
		{"locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 4) }, []efuse.Stage{set("DIS_PAD_JTAG", 1)}, "write-protected"},
		{"locked but set", "esp32c3", func(f *fake) { f.setField("DIS_PAD_JTAG", 1); f.setField("WR_DIS", 4) }, []efuse.Stage{set("DIS_PAD_JTAG", 1)}, ""},
		{"locked earlier", "esp32c3", nil, []efuse.Stage{wp("DIS_ICACHE"), set("DIS_PAD_JTAG", 1)}, "write-protected"},
		{"locked in the same stage", "esp32c3", nil, []efuse.Stage{{Name: "x", WriteProtect: []string{"DIS_ICACHE"}, Set: []chip.Assignment{{Field: "DIS_PAD_JTAG", Value: 1}}}}, ""},
		{"shared lock", "esp32", nil, []efuse.Stage{wp("FLASH_CRYPT_CNT"), set("UART_DOWNLOAD_DIS", 1)}, "write-protected"},
		{"hidden field", "esp32", func(f *fake) { f.setField("RD_DIS", 8) }, []efuse.Stage{set("FLASH_CRYPT_CONFIG", 15)}, "read-protected"},
		{"RS block in use", "esp32c3", nil, []efuse.Stage{set("FLASH_VENDOR", 7)}, "one burn only"},
		{"RS block twice", "esp32c3", nil, []efuse.Stage{set("USER_DATA.MAC_CUSTOM", 1), set("USER_DATA.MAC_CUSTOM", 3)}, "one burn only"},
		{"RS block empty", "esp32c3", nil, []efuse.Stage{set("USER_DATA.MAC_CUSTOM", 1)}, ""},
		{"RS block locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 1<<22) }, []efuse.Stage{set("USER_DATA.MAC_CUSTOM", 1)}, "write-protected"},
		{"3/4 field", "esp32", func(f *fake) { f.setField("CODING_SCHEME", 1) }, []efuse.Stage{set("MAC_VERSION", 1)}, "not supported"},
		{"uncoded field twice", "esp32", nil, []efuse.Stage{set("SECURE_VERSION", 1), set("SECURE_VERSION", 3)}, ""},

		{"key twice", "esp32c3", nil, []efuse.Stage{keyStage, keyStage}, "not empty"},
		{"key in use", "esp32c3", func(f *fake) { f.put(4, keyWords); f.load() }, []efuse.Stage{keyStage}, "not empty"},
		{"key hidden", "esp32c3", func(f *fake) { f.setField("RD_DIS", 1) }, []efuse.Stage{keyStage}, "in use"},
		{"key locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 1<<23) }, []efuse.Stage{keyStage}, "write-protected"},
		{"purpose locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 1<<8) }, []efuse.Stage{keyStage}, "purpose is write-protected"},
		{"user purpose locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 1<<8) }, []efuse.Stage{key("KEY0", "USER")}, "locked as USER"},
		{"purpose taken", "esp32c3", func(f *fake) { f.setField("KEY_PURPOSE_0", 9) }, []efuse.Stage{keyStage}, "in use as SECURE_BOOT_DIGEST0"},
		{"purpose grows", "esp32c3", func(f *fake) { f.setField("KEY_PURPOSE_0", 1) }, []efuse.Stage{set("KEY_PURPOSE_0", 5)}, "already"},
		{"reserved purpose", "esp32c3", nil, []efuse.Stage{set("KEY_PURPOSE_0", 3)}, "reserved"},
		{"XTS in KEY5", "esp32c3", nil, []efuse.Stage{key("KEY5", "XTS_AES_128_KEY")}, "cannot use KEY5"},
		{"XTS in BLOCK9", "esp32c3", nil, []efuse.Stage{key("BLOCK9", "XTS_AES_128_KEY")}, "cannot use KEY5"},
		{"XTS in KEY5 by Set", "esp32c3", nil, []efuse.Stage{set("KEY_PURPOSE_5", 4)}, "cannot use KEY5"},
		{"digest in KEY5", "esp32c3", nil, []efuse.Stage{key("KEY5", "SECURE_BOOT_DIGEST0")}, ""},
		{"no such block", "esp32c3", nil, []efuse.Stage{key("KEY6", "USER")}, "no key block"},
		{"not a key block", "esp32c3", nil, []efuse.Stage{key("USR_DATA", "USER")}, "no key block"},
		{"no such purpose", "esp32c3", nil, []efuse.Stage{key("KEY0", "XTS_AES_256_KEY_1")}, "no purpose"},
		{"no purpose", "esp32c3", nil, []efuse.Stage{key("KEY0", "")}, "no purpose"},
		{"purpose on ESP32", "esp32", nil, []efuse.Stage{key("BLOCK1", "XTS_AES_128_KEY")}, "no purpose"},
		{"digest, 3/4", "esp32", func(f *fake) { f.setField("CODING_SCHEME", 1) }, []efuse.Stage{key("BLOCK2", "")}, "does not fit the 3/4"},
		{"repeat scheme", "esp32", func(f *fake) { f.setField("CODING_SCHEME", 2) }, []efuse.Stage{key32}, "repeat scheme"},
		{"hidden scheme", "esp32", func(f *fake) { f.setField("RD_DIS", 8) }, []efuse.Stage{key32}, "cannot be known"},
		{"recovery scheme", "esp32", func(f *fake) { f.setField("CODING_SCHEME", 3) }, []efuse.Stage{key32}, ""},
		{"hidden with the key", "esp32c3", nil, []efuse.Stage{{Name: "key", Keys: keyStage.Keys, ReadProtect: []string{"KEY0"}}}, "later stage"},
		{"hidden with the key by alias", "esp32c3", nil, []efuse.Stage{{Name: "key", Keys: keyStage.Keys, ReadProtect: []string{"BLOCK4"}}}, "later stage"},
		{"locked with the key", "esp32c3", nil, []efuse.Stage{{Name: "key", Keys: keyStage.Keys, WriteProtect: []string{"KEY_PURPOSE_0"}}}, "later stage"},

		{"empty block hidden", "esp32c3", nil, []efuse.Stage{rp("KEY1")}, "pass for a key"},
		{"digest hidden", "esp32c3", nil, []efuse.Stage{key("KEY1", "SECURE_BOOT_DIGEST1"), rp("KEY1")}, "must be able to read"},
		{"ESP32 digest hidden", "esp32", nil, []efuse.Stage{key("BLOCK2", ""), rp("BLOCK2")}, "must be able to read"},
		{"RD_DIS locked", "esp32c3", func(f *fake) { f.setField("WR_DIS", 1) }, []efuse.Stage{keyStage, rp("KEY0")}, "nothing can be hidden"},
		{"RD_DIS locked earlier", "esp32c3", nil, []efuse.Stage{keyStage, wp("RD_DIS"), rp("KEY0")}, "nothing can be hidden"},
		{"cannot be hidden", "esp32c3", nil, []efuse.Stage{rp("BLOCK0")}, "no block that can be hidden"},
		{"cannot be locked", "esp32", nil, []efuse.Stage{wp("CHIP_PACKAGE")}, "no write protection"},
		{"nothing to lock", "esp32", nil, []efuse.Stage{wp("NOPE")}, "not in the eFuse table"},
		{"WR_DIS locked", "esp32", func(f *fake) { f.setField("WR_DIS", 2) }, []efuse.Stage{wp("DIS_CACHE")}, "WR_DIS itself"},

		{"close first", "esp32c3", nil, []efuse.Stage{set("ENABLE_SECURITY_DOWNLOAD", 1), set("DIS_PAD_JTAG", 1)}, "alone, in the last stage"},
		{"close with others", "esp32c3", nil, []efuse.Stage{{Name: "x", Set: []chip.Assignment{{Field: "DIS_DOWNLOAD_MODE", Value: 1}, {Field: "DIS_PAD_JTAG", Value: 1}}}}, "alone, in the last stage"},
		{"close with a lock", "esp32", nil, []efuse.Stage{{Name: "x", WriteProtect: []string{"DIS_CACHE"}, Set: []chip.Assignment{{Field: "UART_DOWNLOAD_DIS", Value: 1}}}}, "alone, in the last stage"},
		{"old silicon", "esp32", func(f *fake) { f.regs[f.m.EFuse.RevisionBit2Register] = 0; f.cells[0][5] &^= 1 << 20; f.load() }, []efuse.Stage{set("UART_DOWNLOAD_DIS", 1)}, "ignores it"},

		{"damage", "esp32c3", func(f *fake) { f.cells[2][8] ^= 1; f.load() }, []efuse.Stage{set("DIS_PAD_JTAG", 1)}, "show damage"},
		{"damage in BLOCK0", "esp32c3", func(f *fake) {
			f.errs[f.m.EFuse.RepeatErr+4] = 1 << 18
			f.onRead = keepErrs(f.m.EFuse.RepeatErr+4, 1<<18)
		}, []efuse.Stage{set("DIS_PAD_JTAG", 1)}, "SPI_BOOT_CRYPT_CNT"},
		{"wrong MAC", "esp32", func(f *fake) { f.cells[0][1] ^= 1; f.load() }, []efuse.Stage{key32}, "CRC"},
	} {
		t.Run(c.chip+" "+c.name, func(t *testing.T) {
			f := newFake(t, c.chip)
			if c.chipState != nil {
				c.chipState(f)
			}
			cp, err := efuse.NewPlan(f.m, c.stages...).Check(read(t, f))
			var refused *efuse.CheckError
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v; want %q", err, c.want)
			case err != nil && cp.Chip() != "":
				t.Error("a refused plan is usable")
			}
		})
	}
}

func keepErrs(addr, v uint32) func(a, r uint32) (uint32, error) {
	return func(a, r uint32) (uint32, error) {
		if a == addr {
			return v, nil
		}
		return r, nil
	}
}

func stagesOf(t *testing.T, name string) []efuse.Stage {
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return stages(m)
}

func TestCheckOtherModel(t *testing.T) {
	a, b := newFake(t, "esp32"), newFake(t, "esp32c3")
	if _, err := efuse.NewPlan(a.m, stages(a.m)...).Check(read(t, b)); err == nil {
		t.Error("an ESP32 plan passes on an ESP32-C3")
	}
	if _, err := (efuse.Plan{}).Check(read(t, b)); err == nil {
		t.Error("an empty plan passes")
	}
	if _, err := efuse.NewPlan(a.m).Check(nil); err == nil {
		t.Error("no snapshot passes")
	}
}

// The hash is the recipe's: the same for every virgin chip of a kind, another for
// any change of the plan.
func TestHash(t *testing.T) {
	hash := func(name string, chipState func(*fake), edit func([]efuse.Stage) []efuse.Stage) string {
		f := newFake(t, name)
		if chipState != nil {
			chipState(f)
		}
		st := stages(f.m)
		if edit != nil {
			st = edit(st)
		}
		return fmt.Sprintf("%x", check(t, f, st...).Hash())
	}
	same := hash("esp32c3", nil, nil)
	if h := hash("esp32c3", func(f *fake) {
		f.put(1, []uint32{0x12345678, 0x7cdf, 0, 0x01100000})
		f.put(2, []uint32{1, 2, 3, 4})
		f.setField("DIS_DIRECT_BOOT", 1)
	}, nil); h != same {
		t.Error("another virgin chip has another hash")
	}
	for name, edit := range map[string]func([]efuse.Stage) []efuse.Stage{
		"fewer stages": func(s []efuse.Stage) []efuse.Stage { return s[:5] },
		"name":         func(s []efuse.Stage) []efuse.Stage { s[2].Name = "x"; return s },
		"value":        func(s []efuse.Stage) []efuse.Stage { s[3].Set[0].Value = 1; return s },
		"block": func(s []efuse.Stage) []efuse.Stage {
			s[0].Keys[0].Block = "KEY1"
			s = append(s[:1], s[2:]...)
			return s
		},
		"purpose":   func(s []efuse.Stage) []efuse.Stage { s[0].Keys[0].Purpose = "HMAC_UP"; return s },
		"resume":    func(s []efuse.Stage) []efuse.Stage { s[0].Keys[0].Resume = true; return s },
		"last fuse": func(s []efuse.Stage) []efuse.Stage { s[5].Set[0].Field = "DIS_DOWNLOAD_MODE"; return s },
		"stage border": func(s []efuse.Stage) []efuse.Stage {
			s[2].WriteProtect = s[4].WriteProtect
			s[4].WriteProtect = nil
			return s
		},
	} {
		if hash("esp32c3", nil, edit) == same {
			t.Errorf("%s: the same hash", name)
		}
	}
	if hash("esp32", nil, nil) == hash("esp32", func(f *fake) { f.setField("CODING_SCHEME", 1) }, nil) {
		t.Error("the coding scheme does not show")
	}
	// Known: a change of the table or of the hash's form must be a decision.
	for name, want := range map[string]string{"esp32": goldenESP32, "esp32c3": goldenC3} {
		if got := hash(name, nil, nil); got != want {
			t.Errorf("%s: plan hash %s, known %s", name, got, want)
		}
	}
}

func TestBitsAndJSON(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.setField("DIS_DIRECT_BOOT", 1)
	cp := check(t, f, stages(f.m)...)
	var got []string
	for _, b := range cp.Bits() {
		s := b.Stage + ": " + b.String()
		if b.AlreadySet {
			s += " (already)"
		}
		got = append(got, s)
	}
	want := []string{
		"key: BLOCK0 word 2 bit 26 (KEY_PURPOSE_0)", "key: KEY0 word 0 bit -1 (KEY0)",
		"protect: BLOCK0 word 0 bit 8 (WR_DIS)", "protect: BLOCK0 word 0 bit 23 (WR_DIS)", "protect: BLOCK0 word 1 bit 0 (RD_DIS)",
		"lockdown: BLOCK0 word 1 bit 9 (DIS_USB_JTAG)", "lockdown: BLOCK0 word 1 bit 10 (DIS_DOWNLOAD_ICACHE)", "lockdown: BLOCK0 word 1 bit 19 (DIS_PAD_JTAG)",
		"lockdown: BLOCK0 word 1 bit 20 (DIS_DOWNLOAD_MANUAL_ENCRYPT)", "lockdown: BLOCK0 word 4 bit 1 (DIS_DIRECT_BOOT) (already)",
		"counter: BLOCK0 word 2 bit 18 (SPI_BOOT_CRYPT_CNT)", "counter: BLOCK0 word 2 bit 19 (SPI_BOOT_CRYPT_CNT)", "counter: BLOCK0 word 2 bit 20 (SPI_BOOT_CRYPT_CNT)",
		"locks: BLOCK0 word 0 bit 2 (WR_DIS)", "close: BLOCK0 word 4 bit 5 (ENABLE_SECURITY_DOWNLOAD)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	for _, b := range cp.Bits() {
		if b.Stage == "locks" && !strings.Contains(b.Note, "DIS_DOWNLOAD_MANUAL_ENCRYPT") {
			t.Errorf("the note does not say what else is locked: %q", b.Note)
		}
	}
	var j struct {
		Chip   string `json:"chip"`
		Plan   string `json:"plan_sha256"`
		Stages []struct {
			Name  string
			Final bool
			Keys  []struct{ Block, Purpose string }
			Bits  []struct{ Field string }
		} `json:"stages"`
	}
	data, err := json.Marshal(cp)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &j); err != nil {
		t.Fatal(err)
	}
	if j.Chip != "esp32c3" || j.Plan != fmt.Sprintf("%x", cp.Hash()) || len(j.Stages) != 6 || j.Stages[0].Keys[0].Purpose != "XTS_AES_128_KEY" || !j.Stages[5].Final || len(j.Stages[3].Bits) != 3 {
		t.Errorf("%s", data)
	}
}

// Neither the caller's slices nor those handed out reach into a plan.
func TestPlanIsImmutable(t *testing.T) {
	f := newFake(t, "esp32c3")
	st := stages(f.m)
	p := efuse.NewPlan(f.m, st...)
	st[3].Set[0].Value, st[0].Keys[0].Block = 1, "KEY1"
	cp, err := p.Check(read(t, f))
	if err != nil {
		t.Fatal(err)
	}
	out := cp.Stages()
	out[3].Set[0].Value, out[0].Keys[0].Block, out[1].WriteProtect[0] = 1, "KEY2", "x"
	cp.Bits()[0].Field = "x"
	if s := cp.Stages(); s[3].Set[0].Value != 7 || s[0].Keys[0].Block != "KEY0" || s[1].WriteProtect[0] != "KEY0" || cp.Bits()[0].Field == "x" {
		t.Errorf("%+v", s)
	}
}

// Every bit outside the plan is named, wherever it is.
func TestExpectation(t *testing.T) {
	f := newFake(t, "esp32c3")
	f.instant = true
	cp := check(t, f, stages(f.m)...)
	for i := range 3 {
		if i == 0 {
			if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err != nil {
				t.Fatal(err)
			}
		} else if _, err := efuse.Burn(t.Context(), f, f.m, cp, i, nil); err != nil {
			t.Fatal(err)
		}
	}
	exp := cp.Expected(2)
	if err := exp.Verify(read(t, f)); err != nil {
		t.Fatal(err)
	}
	if err := cp.Expected(3).Verify(read(t, f)); err == nil || !strings.Contains(err.Error(), "missing: BLOCK0 word 2 bit 18 (SPI_BOOT_CRYPT_CNT)") {
		t.Error("a stage that was not burned passes:", err)
	}
	if err := cp.Expected(1).Verify(read(t, f)); err == nil || !strings.Contains(err.Error(), "outside the plan: BLOCK0 word 1 bit 9 (DIS_USB_JTAG)") {
		t.Error("a stage that was burned too early passes:", err)
	}
	if err := (efuse.Expectation{}).Verify(read(t, f)); err == nil {
		t.Error("an empty expectation passes")
	}
	for _, b := range f.blk {
		for bit := range 32 * b.Words {
			word, mask := bit/32, uint32(1)<<(bit%32)
			if b.Index == 4 || b.Index == 1 && bit < 48 {
				continue // KEY0 is hidden; the MAC has a test of its own
			}
			if b.Index != 0 && bit%13 != 0 {
				continue // a sample is enough outside BLOCK0
			}
			was := slices.Clone(f.cells[b.Index])
			if was[word]&mask != 0 {
				continue
			}
			f.cells[b.Index][word] |= mask
			f.put(b.Index, slices.Clone(f.cells[b.Index]))
			f.load()
			err := exp.Verify(read(t, f))
			var bad *efuse.UnexpectedBitsError
			hidesSome := b.Index == 0 && word == 1 && bit%32 < 7
			if !errors.As(err, &bad) {
				t.Fatalf("%s bit %d passes: %v", b.Name, bit, err)
			}
			if named := len(bad.Outside) == 1 && bad.Outside[0].Block == b.Name && bad.Outside[0].Word == word && bad.Outside[0].Bit == bit%32; !b.Key && !named && !hidesSome {
				t.Fatalf("%s bit %d: %v", b.Name, bit, bad)
			}
			if b.Key && (len(bad.Blocks) != 1 || bad.Blocks[0].What != b.Name) {
				t.Fatalf("%s bit %d: %v", b.Name, bit, bad)
			}
			f.cells[b.Index] = was
		}
	}
	f.load()
	if err := exp.Verify(read(t, f)); err != nil {
		t.Error(err)
	}
}

func TestExpectedKey(t *testing.T) {
	f := newFake(t, "esp32c3")
	cp := check(t, f, stages(f.m)...)
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32)); err != nil {
		t.Fatal(err)
	}
	s := read(t, f)
	fp, _ := efuse.KeyFingerprint(key00(32))
	if err := cp.Expected(0).WithKey("BLOCK_KEY0", fp).Verify(s); err != nil {
		t.Error(err)
	}
	if err := cp.Expected(0).WithKey("KEY0", efuse.Fingerprint{1}).Verify(s); err == nil {
		t.Error("another key passes")
	}
	if err := cp.Expected(-1).Verify(s); err == nil {
		t.Error("a burned key passes for none")
	}
	clear(f.cells[4])
	f.load()
	if err := cp.Expected(0).Verify(read(t, f)); err == nil {
		t.Error("a missing key passes")
	}
}

// Whatever Check lets through does to a chip exactly what it says: every bit that
// was set stays, every planned bit comes, and no other.
func TestPropertyCheckedPlans(t *testing.T) {
	passed := 0
	rapid.Check(t, func(r *rapid.T) {
		f := newFake(t, rapid.SampledFrom([]string{"esp32", "esp32c3"}).Draw(r, "chip"))
		f.instant = true
		fields := f.tab.Fields()
		var names []string
		for _, fd := range fields {
			names = append(names, fd.Name)
		}
		for _, b := range f.blk {
			names = append(names, b.Name)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 2))
		// a chip that somebody has had in hand
		for range rapid.IntRange(0, 3).Draw(r, "set before") {
			fd := fields[rng.IntN(len(fields))]
			switch fd.Name {
			case "MAC", "MAC_CRC", "CHIP_VER_REV1", "CHIP_VER_REV2", "CLK8M_FREQ", "CODING_SCHEME", "RD_DIS":
			default:
				f.setField(fd.Name, rng.Uint32()&(1<<min(fd.Len(), 31)-1))
			}
		}
		some := func(n int) (out []string) {
			for range rng.IntN(n) {
				out = append(out, names[rng.IntN(len(names))])
			}
			return out
		}
		var st []efuse.Stage
		for i := range rapid.IntRange(1, 4).Draw(r, "stages") {
			s := efuse.Stage{Name: fmt.Sprint(i)}
			for _, n := range some(4) {
				fd, _ := f.tab.Field(n)
				s.Set = append(s.Set, chip.Assignment{Field: n, Value: rng.Uint32() & (1<<min(max(fd.Len(), 1), 31) - 1)})
			}
			if rng.IntN(2) == 0 {
				s.WriteProtect = some(3)
			}
			if rng.IntN(4) == 0 {
				s.ReadProtect = some(2)
			}
			if rng.IntN(3) == 0 {
				keys := slices.DeleteFunc(slices.Clone(f.blk), func(b table.Block) bool { return !b.Key })
				for range 1 + rng.IntN(2) {
					k := efuse.KeyBurn{Block: keys[rng.IntN(len(keys))].Name}
					if f.m.Name != "esp32" {
						ps := f.tab.Purposes()
						k.Purpose = ps[rng.IntN(len(ps))].Name
					}
					s.Keys = append(s.Keys, k)
				}
			}
			st = append(st, s)
		}
		cp, err := efuse.NewPlan(f.m, st...).Check(read(t, f))
		if err != nil {
			return
		}
		passed++
		var before, want [][]uint32
		for _, c := range f.cells {
			before = append(before, slices.Clone(c))
			want = append(want, slices.Clone(c))
		}
		isKey := map[int]bool{}
		for _, b := range cp.Bits() {
			blk, _ := f.tab.Block(b.Block)
			if b.Bit == -1 {
				isKey[blk.Index] = true
				continue
			}
			if has := before[blk.Index][b.Word]>>b.Bit&1 != 0; b.AlreadySet && !has && len(st) == 1 {
				r.Fatalf("%v is called set", b)
			}
			want[blk.Index][b.Word] |= 1 << b.Bit
		}
		for i := range cp.Stages() {
			var keys []*secret.Bytes
			for _, n := range cp.KeyLens(i) {
				keys = append(keys, key00(n))
			}
			_, err = efuse.Burn(t.Context(), f, f.m, cp, i, keys...)
			if err != nil {
				r.Fatalf("stage %d of a checked plan: %v", i, err)
			}
		}
		for i := range f.blk {
			for w := range f.blk[i].Words {
				got := f.cells[i][w]
				if before[i][w]&^got != 0 {
					r.Fatalf("block %d word %d lost bits", i, w)
				}
				if !isKey[i] && got != want[i][w] {
					r.Fatalf("block %d word %d: %08x, planned %08x", i, w, got, want[i][w])
				}
			}
		}
	})
	if passed < 5 {
		t.Errorf("only %d plans passed the check: the property says nothing", passed)
	}
}
