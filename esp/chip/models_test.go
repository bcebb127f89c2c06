package chip_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// Transcription of esp-facts A.5: chip id, words at 0x40001000, bootloader offset,
// alignment of encrypted writes, eFuse base.
const factsA5 = `
esp32    0  00F01D83                            1000 32 3FF5A000
esp32s2  2  000007C6                            1000 16 3F41A000
esp32s3  9  00000009                            0    16 60007000
esp32c3  5  6921506F,1B31506F,4881606F,4361606F 0    16 60008800
esp32c2  12 6F51306F,7C41A06F,0C21E06F          0    16 60008800
esp32c6  13 2CE0806F                            0    16 600B0800
esp32h2  16 D7B73E80                            0    16 600B0800
esp32c5  23 1101406F,5FD1406F                   2000 16 600B4800
esp32c61 20 7211606F                            0    16 600B4800
esp32p4  18 -                                   2000 16 5012D000`

func TestFactsA5(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(factsA5), "\n")
	if len(rows) != len(chip.All()) {
		t.Fatalf("%d rows, %d models", len(rows), len(chip.All()))
	}
	for _, row := range rows {
		var name, magic string
		var id, offset, align, base uint32
		if _, err := fmt.Sscanf(row, "%s %d %s %x %d %x", &name, &id, &magic, &offset, &align, &base); err != nil {
			t.Fatal(row, err)
		}
		m, err := chip.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != chip.ID(id) || m.BootloaderOffset != offset || m.EncryptedAlign != align || m.EFuse.Base != base {
			t.Errorf("%s: id %d, bootloader at 0x%x, alignment %d, eFuses at 0x%x", name, m.ID, m.BootloaderOffset, m.EncryptedAlign, m.EFuse.Base)
		}
		for word := range strings.SplitSeq(magic, ",") {
			var v uint32
			_, err := fmt.Sscanf(word, "%x", &v)
			if known, kerr := chip.ByMagic(v); (err == nil) != (word != "-") || err == nil && (kerr != nil || known.Name != name) {
				t.Errorf("%s: 0x%08x names %s", name, v, known.Name)
			}
		}
	}
}

// Transcription of esp-facts B.1, offsets from the base. RS_ERR of S2 and C61 as
// ESP-IDF has it.
const factsB1 = `
chip     clk conf stat cmd dac tim1 tim2 rep n rs0 rs1
esp32s2  1C8 1CC  1D0  1D4 1E8 1F4  1F8  17C 5 1C0 1C4
esp32s3  1C8 1CC  1D0  1D4 1E8 1F4  1F8  17C 5 1C0 1C4
esp32c3  1C8 1CC  1D0  1D4 1E8 1F0  1F4  17C 5 1C0 1C4
esp32c6  1C8 1CC  1D0  1D4 1E8 1F0  1F4  17C 5 1C0 1C4
esp32h2  1C8 1CC  1D0  1D4 1E8 1F0  1F4  17C 5 1C0 1C4
esp32p4  1C8 1CC  1D0  1D4 1E8 1F0  1F4  17C 5 1C0 1C4
esp32c5  1C8 1CC  1D4  1D8 1EC 1F4  1F8  17C 5 190 194
esp32c61 1C8 1CC  1D0  1D4 1E8 1F0  1F4  17C 5 190 194
esp32c2  088 08C  090  094 108 114  118  080 1 084 0`

func TestFactsB1(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(factsB1), "\n")[1:]
	if len(rows) != len(chip.All())-1 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		var name string
		var o [11]uint32
		if _, err := fmt.Sscanf(row, "%s %x %x %x %x %x %x %x %x %x %x %x", &name, &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &o[10]); err != nil {
			t.Fatal(row, err)
		}
		m, _ := chip.ByName(name)
		e := m.EFuse
		rs1 := uint32(0)
		if o[10] != 0 {
			rs1 = e.Base + o[10]
		}
		want := []uint32{e.Base, e.Base + 0x20, e.Base + o[0], e.Base + o[1], e.Base + o[2], e.Base + o[3], e.Base + o[4], e.Base + o[5], e.Base + o[6], e.Base + o[7], o[8], e.Base + o[9], rs1}
		got := []uint32{e.PgmData, e.CheckValue, e.Clk, e.Conf, e.Status, e.Cmd, e.DACConf, e.WrTimConf1, e.WrTimConf2, e.RepeatErr, uint32(e.RepeatErrWords), e.RSErr[0], e.RSErr[1]}
		if !slices.Equal(got, want) || e.Kind != chip.EFuseRS || e.RSFailShifted != (name == "esp32c3") {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

// Transcription of esp-facts A.9: where the watchdogs are, and whether one can reset
// the chip out of its loader. 0: nothing is written over USB.
const factsA9 = `
esp32    0        0        0        0        0        no
esp32s2  0        0        0        0        0        3F408094
esp32s3  60008098 600080B0 600080B4 600080B8 8F1D312A 60008098
esp32c3  60008090 600080A8 600080AC 600080B0 8F1D312A 60008090
esp32c2  0        0        0        0        0        60008084
esp32c6  600B1C00 600B1C18 600B1C1C 600B1C20 50D83AA1 no
esp32c5  600B1C00 600B1C18 600B1C1C 600B1C20 50D83AA1 600B1C00
esp32c61 600B1C00 600B1C18 600B1C1C 600B1C20 50D83AA1 600B1C00
esp32h2  600B1C00 600B1C1C 600B1C20 600B1C24 50D83AA1 no
esp32p4  50116000 50116018 5011601C 50116020 50D83AA1 50116000`

func TestFactsA9(t *testing.T) {
	for row := range strings.SplitSeq(strings.TrimSpace(factsA9), "\n") {
		var name, reset string
		var cfg0, protect, swd, swdProtect, key uint32
		if _, err := fmt.Sscanf(row, "%s %x %x %x %x %x %s", &name, &cfg0, &protect, &swd, &swdProtect, &key, &reset); err != nil {
			t.Fatal(row, err)
		}
		m, _ := chip.ByName(name)
		all := uint32(0xFFFFFFFF)
		feed := uint32(1 << 18)
		if key == 0x8F1D312A {
			feed = 1 << 31
		}
		want := []chip.RegWrite{
			{Addr: protect, Value: 0x50D83AA1, Mask: all},
			{Addr: cfg0, Value: 0, Mask: all},
			{Addr: protect, Value: 0, Mask: all},
			{Addr: swdProtect, Value: key, Mask: all},
			{Addr: swd, Value: feed, Mask: feed},
			{Addr: swdProtect, Value: 0, Mask: all},
		}
		if cfg0 == 0 {
			want = nil
		}
		if got := m.USBWatchdogs(); !slices.Equal(got, want) {
			t.Errorf("%s over USB: %x, want %x", name, got, want)
		}
		w := m.WatchdogReset()
		if reset == "no" {
			if len(w) != 0 {
				t.Errorf("%s: a reset by watchdog, which it does not have", name)
			}
			continue
		}
		var at uint32
		_, _ = fmt.Sscanf(reset, "%x", &at)
		if len(w) != 4 || w[1].Addr != at+4 || w[1].Value != 2000 || w[2].Addr != at || w[2].Value != 1<<31|5<<28|1<<8|2 || w[0].Addr != w[3].Addr || w[0].Value != 0x50D83AA1 || w[3].Value != 0 {
			t.Errorf("%s: reset by %x", name, w)
		}
	}
}

// esp-facts B.4: the crystals that each chip is burned with.
func TestTimingCrystals(t *testing.T) {
	want := map[string][]int{
		"esp32": {26, 40}, "esp32s2": {40}, "esp32s3": {40}, "esp32c3": {40}, "esp32c6": {40}, "esp32c61": {40},
		"esp32h2": {32}, "esp32c5": {40, 48}, "esp32c2": {26, 40}, "esp32p4": nil, // the reset defaults
	}
	for _, m := range chip.All() {
		var got []int
		for _, x := range m.EFuse.Timing {
			got = append(got, x.Crystal)
			for _, w := range x.Writes {
				if w.Value&^w.Mask != 0 || w.Addr < m.EFuse.Base || w.Addr >= m.EFuse.Base+0x200 {
					t.Errorf("%s: timing write %+v", m.Name, w)
				}
			}
		}
		if !slices.Equal(got, want[m.Name]) {
			t.Errorf("%s: timing for %v MHz", m.Name, got)
		}
		if got != nil && !slices.Equal(got, m.ROM.Crystals) {
			t.Errorf("%s: boards have crystals of %v MHz, timing is for %v", m.Name, m.ROM.Crystals, got)
		}
	}
}

func TestSchemes(t *testing.T) {
	want := map[string]string{
		"esp32": "24 32", "esp32s2": "32 64", "esp32s3": "32 64", "esp32p4": "32 64", "esp32c2": "16 32",
		"esp32c3": "32", "esp32c5": "32", "esp32c6": "32", "esp32c61": "32", "esp32h2": "32",
	}
	for _, m := range chip.All() {
		var lengths []string
		for n := range 65 {
			s, err := m.SchemeFor(n)
			if err == nil {
				lengths = append(lengths, fmt.Sprint(n))
				if !slices.Contains(m.Schemes, s) {
					t.Errorf("%s: a key of %d bytes is for %s", m.Name, n, s)
				}
			}
		}
		if got := strings.Join(lengths, " "); got != want[m.Name] || !slices.Contains(m.Schemes, m.Scheme) {
			t.Errorf("%s: keys of %s bytes, default %s", m.Name, got, m.Scheme)
		}
	}
}

// What early silicon lacks is in no list of the model at that revision, and in one
// at the next.
func TestAt(t *testing.T) {
	for _, c := range []struct {
		chip   string
		before chip.Revision
	}{{"esp32h2", 101}, {"esp32p4", 299}} {
		m, _ := chip.ByName(c.chip)
		old, young := m.At(c.before), m.At(c.before+1)
		has := func(m chip.Model) bool {
			return slices.ContainsFunc(m.Lockdown.Fuses, func(a chip.Assignment) bool { return a.Field == "XTS_DPA_PSEUDO_LEVEL" })
		}
		if has(old) || !has(young) || !has(m) {
			t.Errorf("%s: before %v, from then on %v", c.chip, has(old), has(young))
		}
		if len(old.Lockdown.Fuses) != len(young.Lockdown.Fuses)-1 {
			t.Errorf("%s: %v", c.chip, old.Lockdown.Fuses)
		}
	}
	p4, _ := chip.ByName("esp32p4")
	if p4.At(299).SecureBoot.SHA384Field != "" || p4.At(300).SecureBoot.SHA384Field == "" {
		t.Error("SHA-384 of the P4")
	}
	if p4.At(103).SecureBoot.Supports(chip.SignECDSA384, 103) || !p4.SecureBoot.Supports(chip.SignECDSA384, 300) {
		t.Error("P-384 of the P4")
	}
	for _, m := range chip.All() {
		if len(m.Older) == 0 && !reflect.DeepEqual(m, m.At(0)) {
			t.Errorf("%s changes by its revision", m.Name)
		}
	}
}

// Everything that a model hands out is a copy: no file's slices may be shared.
func TestAllAreCopies(t *testing.T) {
	for i, m := range chip.All() {
		for j := range m.Lockdown.Fuses {
			m.Lockdown.Fuses[j].Field = "changed"
		}
		for j := range m.EFuse.Timing {
			m.EFuse.Timing[j].Writes[0].Value = 0xBAD
		}
		for _, p := range m.FlashPower() {
			p.Writes[0].Addr, p.When[0].Addr = 1, 1
		}
		for _, list := range [][]chip.RegWrite{m.WatchdogReset(), m.BeforeRun(), m.USBWatchdogs()} {
			for j := range list {
				list[j].Addr = 1
			}
		}
		again := chip.All()[i]
		if again.Lockdown.Fuses[0].Field == "changed" || len(again.EFuse.Timing) > 0 && again.EFuse.Timing[0].Writes[0].Value == 0xBAD {
			t.Errorf("%s: a caller changed what another one sees", m.Name)
		}
		for _, p := range again.FlashPower() {
			if p.Writes[0].Addr == 1 || p.When[0].Addr == 1 {
				t.Errorf("%s: a caller changed the flash's supply", m.Name)
			}
		}
	}
}

func TestKeysAreSensitive(t *testing.T) {
	for _, c := range []struct {
		chip string
		off  uint32
		want bool
	}{
		{"esp32c2", 0x60, true},
		{"esp32c2", 0x7C, true},
		{"esp32c2", 0x80, false},
		{"esp32c2", 0x5C, false},
		{"esp32p4", 0x9C, true},
		{"esp32p4", 0x15B, true},
		{"esp32p4", 0x15C, false},
		{"esp32c61", 0x28, true},
		{"esp32s2", 0x2C, false},
	} {
		m, _ := chip.ByName(c.chip)
		if got := m.SensitiveEFuse(m.EFuse.Base + c.off); got != c.want {
			t.Errorf("%s +0x%03x: sensitive %v", c.chip, c.off, got)
		}
	}
}

// The SPI1 controller and the UART, as ESP-IDF's soc/<chip> headers have them.
func TestSPIAndUART(t *testing.T) {
	for name, want := range map[string][3]uint32{
		"esp32": {0x3FF42000, 0x3FF40014, 0x60000078}, "esp32s2": {0x3F402000, 0x3F400014, 0x60000078},
		"esp32s3": {0x60002000, 0x60000014, 0x60000080}, "esp32c2": {0x60002000, 0x60000014, 0x6000007C},
		"esp32c3": {0x60002000, 0x60000014, 0x6000007C}, "esp32c5": {0x60003000, 0x60000014, 0x6000007C},
		"esp32c6": {0x60003000, 0x60000014, 0x6000007C}, "esp32c61": {0x60003000, 0x60000014, 0x6000007C},
		"esp32h2": {0x60003000, 0x60000014, 0x6000007C}, "esp32p4": {0x5008D000, 0x500CA014, 0x500CA08C},
	} {
		m, _ := chip.ByName(name)
		if m.SPI.Cmd != want[0] || m.UART.ClkDiv != want[1] || m.UART.Date != want[2] {
			t.Errorf("%s: SPI at 0x%08X, UART 0x%08X and 0x%08X", name, m.SPI.Cmd, m.UART.ClkDiv, m.UART.Date)
		}
		if name != "esp32" && (m.SPI.Usr2 != want[0]+0x20 || m.SPI.MISODLen != want[0]+0x28 || m.SPI.W0 != want[0]+0x58) {
			t.Errorf("%s: %+v", name, m.SPI)
		}
	}
}

func TestStubFile(t *testing.T) {
	for _, m := range chip.All() {
		want := m.Name + ".json"
		if m.StubFile(9999) != want {
			t.Errorf("%s: %s", m.Name, m.StubFile(9999))
		}
		if m.Name == "esp32p4" {
			want = "esp32p4-rev1.json"
		}
		if m.StubFile(299) != want {
			t.Errorf("%s before v3.0: %s", m.Name, m.StubFile(299))
		}
	}
}
