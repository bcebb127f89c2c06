package table_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// The columns ESP32-C3 of esp-facts B.7 and the rows of B.8: word:bit×length and
// the WR_DIS bit. An independent list, so a slip in the transcription shows.
var facts = map[string]string{
	"esp32c3": `WR_DIS 0:0×32 –|RD_DIS 1:0×7 0|DIS_ICACHE 1:8 2|DIS_DOWNLOAD_ICACHE 1:10 2|DIS_FORCE_DOWNLOAD 1:12 2|
SOFT_DIS_JTAG 1:16×3 31|DIS_PAD_JTAG 1:19 2|DIS_USB_JTAG 1:9 2|JTAG_SEL_ENABLE 1:15 2|DIS_DOWNLOAD_MANUAL_ENCRYPT 1:20 2|
DIS_USB_SERIAL_JTAG 1:11 2|DIS_USB_SERIAL_JTAG_ROM_PRINT 4:2 18|DIS_USB_SERIAL_JTAG_DOWNLOAD_MODE 4:4 18|VDD_SPI_AS_GPIO 1:26 30|
PIN_POWER_SELECTION 4:8 18|WDT_DELAY_SEL 2:16×2 3|SPI_BOOT_CRYPT_CNT 2:18×3 4|SECURE_BOOT_KEY_REVOKE0 2:21 5|
SECURE_BOOT_KEY_REVOKE1 2:22 6|SECURE_BOOT_KEY_REVOKE2 2:23 7|KEY_PURPOSE_0 2:24×4 8|KEY_PURPOSE_1 2:28×4 9|KEY_PURPOSE_2 3:0×4 10|
KEY_PURPOSE_3 3:4×4 11|KEY_PURPOSE_4 3:8×4 12|KEY_PURPOSE_5 3:12×4 13|SECURE_BOOT_EN 3:20 15|SECURE_BOOT_AGGRESSIVE_REVOKE 3:21 16|
FLASH_TPUW 3:28×4 18|DIS_DOWNLOAD_MODE 4:0 18|DIS_DIRECT_BOOT 4:1 18|ENABLE_SECURITY_DOWNLOAD 4:5 18|UART_PRINT_CONTROL 4:6×2 18|
FORCE_SEND_RESUME 4:13 18|SECURE_VERSION 4:14×16 18|POWERGLITCH_EN 1:29 3|FLASH_ECC_MODE 4:3 18|ERR_RST_ENABLE 4:31 19|
DISABLE_WAFER_VERSION_MAJOR 5:0 19|DISABLE_BLK_VERSION_MAJOR 5:1 19|DIS_TWAI 1:14 2`,
	"esp32": `WR_DIS 0:0×16 1|RD_DIS 0:16×4 0|FLASH_CRYPT_CNT 0:20×7 2|UART_DOWNLOAD_DIS 0:27 2|MAC 1:0×48 3|MAC_CRC 2:16×8 3|
DISABLE_APP_CPU 3:0 3|DISABLE_BT 3:1 3|DIS_CACHE 3:3 3|BLK3_PART_RESERVE 3:14 10|CHIP_VER_REV1 3:15 –|CHIP_VER_REV2 5:20 –|
WAFER_VERSION_MINOR 5:24×2 –|XPD_SDIO_REG 4:14 5|XPD_SDIO_TIEH 4:15 5|XPD_SDIO_FORCE 4:16 5|FLASH_CRYPT_CONFIG 5:28×4 10|
CODING_SCHEME 6:0×2 10|CONSOLE_DEBUG_DISABLE 6:2 15|ABS_DONE_0 6:4 12|ABS_DONE_1 6:5 13|JTAG_DISABLE 6:6 14|
DISABLE_DL_ENCRYPT 6:7 15|DISABLE_DL_DECRYPT 6:8 15|DISABLE_DL_CACHE 6:9 15|KEY_STATUS 6:10 10`,
}

func TestFacts(t *testing.T) {
	for name, list := range facts {
		tab, err := table.For(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range strings.Split(strings.ReplaceAll(list, "\n", ""), "|") {
			var field, at, wr string
			if _, err := fmt.Sscan(row, &field, &at, &wr); err != nil {
				t.Fatal(row, err)
			}
			f, ok := tab.Field(field)
			if !ok {
				t.Errorf("%s: no field %s", name, field)
				continue
			}
			bits := f.Bits()
			slices.Sort(bits)
			got := fmt.Sprintf("%d:%d", bits[0]/32, bits[0]%32)
			if len(bits) > 1 {
				got += fmt.Sprintf("×%d", len(bits))
			}
			gotWR := "–"
			if f.WRDis != table.None {
				gotWR = fmt.Sprint(f.WRDis)
			}
			if f.Block != 0 || f.Name != field || got != at || gotWR != wr || bits[len(bits)-1]-bits[0]+1 != len(bits) {
				t.Errorf("%s: %s is block %d %s W%s, esp-facts has %s W%s", name, f.Name, f.Block, got, gotWR, at, wr)
			}
		}
	}
}

// The identity fields of esp-facts B.8 outside BLOCK0.
func TestIdentityFields(t *testing.T) {
	for _, c := range []struct {
		chip, field          string
		block, word, bit, ln int
	}{
		{"esp32", "SECURE_VERSION", 3, 4, 0, 32},
		{"esp32", "MAC_VERSION", 3, 5, 24, 8},
		{"esp32", "CUSTOM_MAC_CRC", 3, 0, 0, 8},
		{"esp32", "CUSTOM_MAC", 3, 0, 8, 48},
		{"esp32c3", "MAC", 1, 0, 0, 48},
		{"esp32c3", "WAFER_VERSION_MINOR_HI", 1, 5, 23, 1},
		{"esp32c3", "WAFER_VERSION_MINOR_LO", 1, 3, 18, 3},
		{"esp32c3", "WAFER_VERSION_MAJOR", 1, 5, 24, 2},
		{"esp32c3", "PKG_VERSION", 1, 3, 21, 3},
		{"esp32c3", "BLK_VERSION_MINOR", 1, 3, 24, 3},
		{"esp32c3", "BLK_VERSION_MAJOR", 2, 4, 0, 2},
		{"esp32c3", "OPTIONAL_UNIQUE_ID", 2, 0, 0, 128},
	} {
		tab, _ := table.For(c.chip)
		f, ok := tab.Field(c.field)
		if !ok || f.Block != c.block || slices.Min(f.Bits()) != 32*c.word+c.bit || f.Len() != c.ln {
			t.Errorf("%s %s: %+v", c.chip, c.field, f)
		}
	}
}

// The block tables of esp-facts B.2.
func TestBlocks(t *testing.T) {
	want := map[string]string{
		"esp32": "0 BLOCK0 000 01c 7 -1 []|1 BLOCK1 038 098 8 7 [0]|2 BLOCK2 058 0b8 8 8 [1]|3 BLOCK3 078 0d8 8 9 [2]",
		"esp32c3": "0 BLOCK0 02c 000 6 -1 []|1 MAC_SPI 044 000 6 20 []|2 SYS_DATA 05c 000 8 21 []|3 USR_DATA 07c 000 8 22 []|" +
			"4 KEY0 09c 000 8 23 [0]|5 KEY1 0bc 000 8 24 [1]|6 KEY2 0dc 000 8 25 [2]|7 KEY3 0fc 000 8 26 [3]|8 KEY4 11c 000 8 27 [4]|" +
			"9 KEY5 13c 000 8 28 [5]|10 SYS_DATA2 15c 000 8 29 [6]",
	}
	for name, list := range want {
		tab, _ := table.For(name)
		var got []string
		for _, b := range tab.Blocks() {
			got = append(got, fmt.Sprintf("%d %s %03x %03x %d %d %v", b.Index, b.Name, b.ReadOff, b.WriteOff, b.Words, b.WRDis, b.RDDisAll))
		}
		if s := strings.Join(got, "|"); s != list {
			t.Errorf("%s:\n%s\nwant\n%s", name, s, list)
		}
	}
}

// Every name that a chip model uses must be found, and the read registers of
// key blocks must be those that traces redact.
func TestModelNames(t *testing.T) {
	for _, name := range chip.Names() {
		m, _ := chip.ByName(name)
		tab, err := table.For(name)
		if err != nil {
			t.Fatal(err)
		}
		names := append([]string{m.EFuse.FlashCryptCount, m.Lockdown.ReleaseFuse, m.Lockdown.ClosedFuse}, m.Lockdown.WriteProtect...)
		for _, a := range m.Lockdown.Fuses {
			names = append(names, a.Field)
		}
		for _, n := range names {
			if _, ok := tab.Field(n); !ok {
				t.Errorf("%s: no field %s", name, n)
			}
		}
		if f, _ := tab.Field(m.EFuse.FlashCryptCount); uint32(1)<<f.Len()-1 != m.EFuse.FlashCryptCountFull {
			t.Errorf("%s: counter of %d bits", name, f.Len())
		}
		for _, b := range tab.Blocks() {
			if b.Key && !m.SensitiveEFuse(m.EFuse.Base+b.ReadOff) {
				t.Errorf("%s: block %s would stand in traces", name, b.Name)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	tab, _ := table.For("esp32c3")
	for alias, name := range map[string]string{
		"KEY0_PURPOSE": "KEY_PURPOSE_0", "BLOCK_KEY5": "KEY5", "DIS_CAN": "DIS_TWAI", "WR_DIS.DIS_ICACHE": "WR_DIS.DIS_ICACHE",
		"MAC_FACTORY": "MAC", "DIS_LEGACY_SPI_BOOT": "DIS_DIRECT_BOOT", "CUSTOM_MAC": "USER_DATA.MAC_CUSTOM",
	} {
		if f, ok := tab.Field(alias); !ok || f.Name != name {
			t.Errorf("%s finds %q", alias, f.Name)
		}
	}
	for name, bit := range map[string]int{"WR_DIS.DIS_ICACHE": 2, "WR_DIS.KEY0": 23, "WR_DIS.MAC_SPI": 20, "RD_DIS.KEY0": 32, "RD_DIS.BLOCK_SYS_DATA2": 38, "WR_DIS.RD_DIS": 0} {
		if f, ok := tab.Field(name); !ok || f.Block != 0 || !slices.Equal(f.Parts, []table.Part{{Bit: bit, Len: 1}}) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for _, none := range []string{"", "NOPE", "WR_DIS.NOPE", "RD_DIS.DIS_ICACHE", "WR_DIS.WR_DIS", "KEY0.WR_DIS"} {
		if f, ok := tab.Field(none); ok {
			t.Errorf("%q finds %+v", none, f)
		}
	}
	esp32, _ := table.For("esp32")
	if f, ok := esp32.Field("ENCRYPT_CONFIG"); !ok || f.Name != "FLASH_CRYPT_CONFIG" || f.RDDis != 3 {
		t.Errorf("%+v", f)
	}
	if b, ok := tab.Block("BLOCK_KEY0"); !ok || b.Index != 4 {
		t.Errorf("%+v", b)
	}
	if p, ok := tab.Purpose("XTS_AES_128_KEY"); !ok || p.Value != 4 || !p.Reversed || p.Reading != table.ReadMust {
		t.Errorf("%+v", p)
	}
	if _, err := table.For("esp8266"); err == nil {
		t.Error("a table for an unknown chip")
	}
}

func TestImmutable(t *testing.T) {
	tab, _ := table.For("esp32c3")
	before := fmt.Sprintf("%+v", [...]any{tab.Blocks(), tab.Fields(), tab.Purposes()})
	for _, f := range tab.Fields() {
		f.Parts[0].Bit = 999
		for i := range f.Aliases {
			f.Aliases[i] = "x"
		}
		for i := range f.Values {
			f.Values[i].Meaning = "x"
		}
	}
	for _, b := range tab.Blocks() {
		for i := range b.RDDisAll {
			b.RDDisAll[i] = 999
		}
		for i := range b.Aliases {
			b.Aliases[i] = "x"
		}
	}
	clear(tab.Fields())
	clear(tab.Blocks())
	clear(tab.Purposes())
	f, _ := tab.Field("KEY0")
	f.RDDisAll[0] = 999
	if after := fmt.Sprintf("%+v", [...]any{tab.Blocks(), tab.Fields(), tab.Purposes()}); after != before {
		t.Error("a caller changed the table")
	}
}

func TestHashIsTheDataFile(t *testing.T) {
	for _, tab := range table.All() {
		data, err := os.ReadFile("data/" + tab.File())
		if err != nil {
			t.Fatal(err)
		}
		if tab.Hash() != sha256.Sum256(data) {
			t.Errorf("%s: hash %x", tab.File(), tab.Hash())
		}
		for _, s := range tab.Sources() {
			if len(s.Revision) != 40 || len(s.SHA256) != 64 || !strings.Contains(s.File, "/"+tab.Chip()+"/") {
				t.Errorf("%s: %+v", tab.File(), s)
			}
		}
	}
}

func TestForRevision(t *testing.T) {
	for _, c := range []struct {
		chip string
		rev  chip.Revision
		file string
	}{
		{"esp32", 0, "esp32.csv"},
		{"esp32c3", 9999, "esp32c3.csv"},
		{"esp32h2", 0, "esp32h2.csv"},
		{"esp32h2", 101, "esp32h2.csv"},
		{"esp32h2", 102, "esp32h2_v1.2.csv"},
		{"esp32p4", 299, "esp32p4.csv"},
		{"esp32p4", 300, "esp32p4_v3.0.csv"},
	} {
		tab, err := table.ForRevision(c.chip, c.rev)
		if err != nil || tab.File() != c.file || tab.First() > c.rev {
			t.Errorf("%s %v: %+v, %v", c.chip, c.rev, tab, err)
		}
	}
	if tab, err := table.For("esp32p4"); err != nil || tab.First() != 300 {
		t.Errorf("the newest silicon's: %v", err)
	}
	// What a snapshot is read with before the revision is known.
	for _, name := range table.Chips() {
		newest, _ := table.For(name)
		for _, tab := range table.All() {
			if tab.Chip() == name && !reflect.DeepEqual(tab.Blocks(), newest.Blocks()) {
				t.Errorf("%s: blocks differ from %s", tab.File(), newest.File())
			}
		}
	}
}
