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

// The rows of esp-facts B.8: word:bit×length and the WR_DIS bit. An independent list,
// so a slip in the transcription shows.
var esp32Fields = `WR_DIS 0:0x16 W1|RD_DIS 0:16x4 W0|FLASH_CRYPT_CNT 0:20x7 W2|UART_DOWNLOAD_DIS 0:27 W2|MAC 1:0x48 W3|MAC_CRC 2:16x8 W3|
DISABLE_APP_CPU 3:0 W3|DISABLE_BT 3:1 W3|DIS_CACHE 3:3 W3|BLK3_PART_RESERVE 3:14 W10|CHIP_VER_REV1 3:15 W-|CHIP_VER_REV2 5:20 W-|
WAFER_VERSION_MINOR 5:24x2 W-|XPD_SDIO_REG 4:14 W5|XPD_SDIO_TIEH 4:15 W5|XPD_SDIO_FORCE 4:16 W5|FLASH_CRYPT_CONFIG 5:28x4 W10|
CODING_SCHEME 6:0x2 W10|CONSOLE_DEBUG_DISABLE 6:2 W15|ABS_DONE_0 6:4 W12|ABS_DONE_1 6:5 W13|JTAG_DISABLE 6:6 W14|
DISABLE_DL_ENCRYPT 6:7 W15|DISABLE_DL_DECRYPT 6:8 W15|DISABLE_DL_CACHE 6:9 W15|KEY_STATUS 6:10 W10`

// splitFields are the fields that esp-facts B.7 names below its table, with the parts
// that lie elsewhere, low part first.
var splitFields = map[string]string{
	"esp32p4_v3.0 KEY_PURPOSE_0":                         "88+4 155+1",
	"esp32p4_v3.0 KEY_PURPOSE_1":                         "92+4 156+1",
	"esp32p4_v3.0 KEY_PURPOSE_2":                         "96+4 157+1",
	"esp32p4_v3.0 KEY_PURPOSE_3":                         "100+4 158+1",
	"esp32p4_v3.0 KEY_PURPOSE_4":                         "104+4 159+1",
	"esp32p4_v3.0 KEY_PURPOSE_5":                         "108+4 164+1",
	"esp32p4_v3.0 KM_DEPLOY_ONLY_ONCE":                   "69+4 118+1",
	"esp32p4_v3.0 FORCE_USE_KEY_MANAGER_KEY":             "73+4 119+1",
	"esp32p4_v3.0 KM_DISABLE_DEPLOY_MODE":                "168+4 167+1",
	"esp32c5 BOOTLOADER_ANTI_ROLLBACK_EN":                "42+1",
	"esp32c5 BOOTLOADER_ANTI_ROLLBACK_UPDATE_IN_ROM":     "79+1",
	"esp32c5 BOOTLOADER_ANTI_ROLLBACK_SECURE_VERSION_LO": "61+3",
	"esp32c5 BOOTLOADER_ANTI_ROLLBACK_SECURE_VERSION_HI": "39+1",
	"esp32c5 RECOVERY_BOOTLOADER_FLASH_SECTOR":           "174+9 118+3",
	"esp32c61 BOOTLOADER_ANTI_ROLLBACK_SECURE_VERSION":   "128+4",
	"esp32c61 BOOTLOADER_ANTI_ROLLBACK_EN":               "132+1",
	"esp32c61 BOOTLOADER_ANTI_ROLLBACK_UPDATE_IN_ROM":    "133+1",
	"esp32c61 RECOVERY_BOOTLOADER_FLASH_SECTOR":          "134+12",
	"esp32h2 ECDSA_FORCE_USE_HARDWARE_K":                 "114+1",
}

// notBefore are cells of a chip's column that its older silicon does not have (H2
// before v1.2: esp-facts B.7, F.2).
var notBefore = map[string][]string{"esp32h2": {"ECDSA_CURVE_MODE", "ECC_FORCE_CONST_TIME", "XTS_DPA_PSEUDO_LEVEL"}}

// tableOf finds a table by its data file's name without the ending.
func tableOf(t *testing.T, name string) *table.Table {
	t.Helper()
	for _, tab := range table.All() {
		if tab.File() == name+".csv" {
			return tab
		}
	}
	t.Fatal("no table ", name)
	return nil
}

// cell writes a field as the facts do. Parts after the first are in splitFields.
func cell(name string, f table.Field) string {
	n := f.Parts[0].Len
	if _, split := splitFields[name+" "+f.Name]; !split {
		bits := f.Bits()
		slices.Sort(bits)
		if n = len(bits); bits[n-1]-bits[0] != n-1 {
			return "in pieces"
		}
		f.Parts[0].Bit = bits[0]
	}
	at := fmt.Sprintf("%d:%d", f.Parts[0].Bit/32, f.Parts[0].Bit%32)
	if n > 1 {
		at += fmt.Sprintf("x%d", n)
	}
	if f.WRDis == table.None {
		return at + " W-"
	}
	return at + fmt.Sprintf(" W%d", f.WRDis)
}

// Every cell of esp-facts B.7, those that are empty too.
func TestFactsB7(t *testing.T) {
	data, err := os.ReadFile("testdata/facts-b7.txt")
	if err != nil {
		t.Fatal(err)
	}
	var columns []string
	cells := 0
	for line := range strings.Lines(string(data)) {
		if list, ok := strings.CutPrefix(line, "# Columns: "); ok {
			columns = strings.Fields(list)
			if i := slices.Index(columns, "esp32h2"); i >= 0 {
				columns[i] = "esp32h2_v1.2" // the column is of the newer silicon
			}
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		part := strings.Split(strings.TrimSpace(line), " | ")
		if len(part) != len(columns)+1 {
			t.Fatal(line)
		}
		for i, name := range columns {
			names := []string{name}
			if name == "esp32h2_v1.2" && !slices.Contains(notBefore["esp32h2"], part[0]) {
				names = append(names, "esp32h2")
			}
			for _, name := range names {
				cells++
				got := "-"
				if f, ok := tableOf(t, name).Field(part[0]); ok && f.Name == part[0] {
					if got = cell(name, f); f.Block != 0 {
						got = "-" // a field of this name in another block
					}
				}
				if got != part[i+1] {
					t.Errorf("%s: %s is %s, esp-facts has %s", name, part[0], got, part[i+1])
				}
			}
		}
	}
	if cells < 83*10 {
		t.Errorf("only %d cells", cells)
	}
	for key, want := range splitFields {
		name, field, _ := strings.Cut(key, " ")
		f, _ := tableOf(t, name).Field(field)
		var parts []string
		for _, p := range f.Parts {
			parts = append(parts, fmt.Sprintf("%d+%d", p.Bit, p.Len))
		}
		if got := strings.Join(parts, " "); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
	for name, fields := range notBefore {
		for _, field := range fields {
			if f, ok := tableOf(t, name).Field(field); ok {
				t.Errorf("%s has %+v", name, f)
			}
		}
	}
}

func TestFactsB8(t *testing.T) {
	for row := range strings.SplitSeq(strings.ReplaceAll(esp32Fields, "\n", ""), "|") {
		field, want, _ := strings.Cut(row, " ")
		f, ok := tableOf(t, "esp32").Field(field)
		if got := cell("esp32", f); !ok || f.Block != 0 || f.Name != field || got != want {
			t.Errorf("%s is block %d %s, esp-facts has %s", field, f.Block, got, want)
		}
	}
}

// The bits of WR_DIS that lock several fields: what must not be locked early (B.7).
func TestWriteProtectGroups(t *testing.T) {
	for _, tab := range table.All() {
		version, _ := tab.Field("SECURE_VERSION")
		for _, name := range []string{"ENABLE_SECURITY_DOWNLOAD", "DIS_DOWNLOAD_MODE"} {
			f, ok := tab.Field(name)
			shared := f.WRDis == version.WRDis
			if ok && shared != (tab.Chip() != "esp32c2") {
				t.Errorf("%s: %s and SECURE_VERSION have W%d and W%d", tab.File(), name, f.WRDis, version.WRDis)
			}
		}
	}
	c2 := tableOf(t, "esp32c2")
	for _, name := range []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_BOOT_CRYPT_CNT", "XTS_KEY_LENGTH_256", "SECURE_BOOT_EN"} {
		if f, _ := c2.Field(name); f.WRDis != 2 {
			t.Errorf("esp32c2: %s has W%d", name, f.WRDis)
		}
	}
}

// The identity fields of esp-facts B.8 outside BLOCK0.
func TestIdentityFields(t *testing.T) {
	for _, c := range []struct {
		table, field         string
		block, word, bit, ln int
	}{
		{"esp32", "SECURE_VERSION", 3, 4, 0, 32},
		{"esp32", "MAC_VERSION", 3, 5, 24, 8},
		{"esp32", "CUSTOM_MAC_CRC", 3, 0, 0, 8},
		{"esp32", "CUSTOM_MAC", 3, 0, 8, 48},
		{"esp32s2", "WAFER_VERSION_MINOR_HI", 1, 3, 20, 1},
		{"esp32s2", "WAFER_VERSION_MINOR_LO", 1, 4, 4, 3},
		{"esp32s2", "WAFER_VERSION_MAJOR", 1, 3, 18, 2},
		{"esp32s2", "PKG_VERSION", 1, 4, 0, 4},
		{"esp32s2", "BLK_VERSION_MINOR", 2, 4, 4, 3},
		{"esp32s2", "BLK_VERSION_MAJOR", 1, 3, 25, 2},
		{"esp32s3", "WAFER_VERSION_MINOR_HI", 1, 5, 23, 1},
		{"esp32s3", "WAFER_VERSION_MINOR_LO", 1, 3, 18, 3},
		{"esp32s3", "WAFER_VERSION_MAJOR", 1, 5, 24, 2},
		{"esp32s3", "PKG_VERSION", 1, 3, 21, 3},
		{"esp32s3", "BLK_VERSION_MINOR", 1, 3, 24, 3},
		{"esp32s3", "BLK_VERSION_MAJOR", 2, 4, 0, 2},
		{"esp32c3", "WAFER_VERSION_MINOR_HI", 1, 5, 23, 1},
		{"esp32c3", "WAFER_VERSION_MINOR_LO", 1, 3, 18, 3},
		{"esp32c3", "WAFER_VERSION_MAJOR", 1, 5, 24, 2},
		{"esp32c3", "PKG_VERSION", 1, 3, 21, 3},
		{"esp32c3", "BLK_VERSION_MINOR", 1, 3, 24, 3},
		{"esp32c3", "BLK_VERSION_MAJOR", 2, 4, 0, 2},
		{"esp32c6", "WAFER_VERSION_MINOR", 1, 3, 18, 4},
		{"esp32c6", "WAFER_VERSION_MAJOR", 1, 3, 22, 2},
		{"esp32c6", "PKG_VERSION", 1, 3, 24, 3},
		{"esp32c6", "BLK_VERSION_MINOR", 1, 3, 27, 3},
		{"esp32c6", "BLK_VERSION_MAJOR", 1, 3, 30, 2},
		{"esp32h2", "WAFER_VERSION_MINOR", 1, 3, 18, 3},
		{"esp32h2", "WAFER_VERSION_MAJOR", 1, 3, 21, 2},
		{"esp32h2", "PKG_VERSION", 1, 4, 0, 3},
		{"esp32h2", "BLK_VERSION_MINOR", 2, 4, 2, 3},
		{"esp32h2", "BLK_VERSION_MAJOR", 2, 4, 5, 2},
		{"esp32c2", "MAC", 2, 0, 0, 48},
		{"esp32c2", "WAFER_VERSION_MINOR", 2, 1, 16, 4},
		{"esp32c2", "WAFER_VERSION_MAJOR", 2, 1, 20, 2},
		{"esp32c2", "PKG_VERSION", 2, 1, 22, 3},
		{"esp32c2", "BLK_VERSION_MINOR", 2, 1, 25, 3},
		{"esp32c2", "BLK_VERSION_MAJOR", 2, 1, 28, 2},
		{"esp32c5", "WAFER_VERSION_MINOR", 1, 2, 0, 4},
		{"esp32c5", "WAFER_VERSION_MAJOR", 1, 2, 4, 2},
		{"esp32c5", "PKG_VERSION", 1, 2, 26, 3},
		{"esp32c5", "BLK_VERSION_MINOR", 1, 2, 8, 3},
		{"esp32c5", "BLK_VERSION_MAJOR", 1, 2, 11, 2},
		{"esp32c61", "WAFER_VERSION_MINOR", 1, 2, 0, 4},
		{"esp32c61", "WAFER_VERSION_MAJOR", 1, 2, 4, 2},
		{"esp32c61", "PKG_VERSION", 1, 2, 26, 3},
		{"esp32p4", "WAFER_VERSION_MINOR", 1, 2, 0, 4},
		{"esp32p4", "WAFER_VERSION_MAJOR_LO", 1, 2, 4, 2},
		{"esp32p4", "WAFER_VERSION_MAJOR_HI", 1, 2, 23, 1},
		{"esp32p4_v3.0", "WAFER_VERSION_MAJOR", 1, 2, 4, 3},
		{"esp32p4_v3.0", "PKG_VERSION", 1, 2, 20, 3},
		{"esp32p4_v3.0", "BLK_VERSION_MINOR", 1, 2, 8, 3},
		{"esp32p4_v3.0", "BLK_VERSION_MAJOR", 1, 2, 11, 2},
	} {
		f, ok := tableOf(t, c.table).Field(c.field)
		if !ok || f.Block != c.block || slices.Min(f.Bits()) != 32*c.word+c.bit || f.Len() != c.ln {
			t.Errorf("%s %s: %+v", c.table, c.field, f)
		}
	}
	for _, tab := range table.All() {
		mac, ok := tab.Field("MAC")
		first := 0
		if tab.Chip() == "esp32" {
			first = 32
		}
		block := map[string]int{"esp32": 0, "esp32c2": 2}[tab.Chip()]
		if block == 0 && tab.Chip() != "esp32" {
			block = 1
		}
		// The first byte of the address is the highest in the block.
		if !ok || mac.Block != block || mac.Len() != 48 || !slices.Equal(mac.Bits()[:8], []int{first + 40, first + 41, first + 42, first + 43, first + 44, first + 45, first + 46, first + 47}) {
			t.Errorf("%s: %+v", tab.File(), mac)
		}
		if id, ok := tab.Field("OPTIONAL_UNIQUE_ID"); ok && (id.Block != 2 || id.Len() != 128 || id.Bits()[0] != 0) {
			t.Errorf("%s: %+v", tab.File(), id)
		}
	}
}

// The block tables of esp-facts B.2.
func TestBlocks(t *testing.T) {
	common := "0 BLOCK0 02c 000 6 -1 []|1 %s 044 000 6 20 []|2 SYS_DATA 05c 000 8 21 []|3 USR_DATA 07c 000 8 22 []|" +
		"4 KEY0 09c 000 8 23 [0]|5 KEY1 0bc 000 8 24 [1]|6 KEY2 0dc 000 8 25 [2]|7 KEY3 0fc 000 8 26 [3]|8 KEY4 11c 000 8 27 [4]|" +
		"9 KEY5 13c 000 8 28 [5]|10 SYS_DATA2 15c 000 8 29 [6]"
	want := map[string]string{
		"esp32":   "0 BLOCK0 000 01c 7 -1 []|1 BLOCK1 038 098 8 7 [0]|2 BLOCK2 058 0b8 8 8 [1]|3 BLOCK3 078 0d8 8 9 [2]",
		"esp32c2": "0 BLOCK0 02c 000 2 -1 []|1 USER_DATA 034 000 3 5 []|2 SYS_DATA 040 000 8 6 []|3 KEY0 060 000 8 7 [0 1]",
	}
	for _, tab := range table.All() {
		list := want[tab.Chip()]
		if list == "" {
			list = fmt.Sprintf(common, tab.Blocks()[1].Name)
		}
		var got []string
		for _, b := range tab.Blocks() {
			got = append(got, fmt.Sprintf("%d %s %03x %03x %d %d %v", b.Index, b.Name, b.ReadOff, b.WriteOff, b.Words, b.WRDis, b.RDDisAll))
		}
		if s := strings.Join(got, "|"); s != list {
			t.Errorf("%s:\n%s\nwant\n%s", tab.File(), s, list)
		}
		if name := tab.Blocks()[1].Name; len(tab.Blocks()) > 4 && name != "MAC_SPI" && name != "MAC_SYS" {
			t.Errorf("%s: BLOCK1 is %s", tab.File(), name)
		}
	}
}

// The purposes of esp-facts B.9, by value, and what each asks for.
func TestPurposes(t *testing.T) {
	const (
		user   = "0 USER 32 same any|"
		ecdsa  = "1 ECDSA_KEY 32 reversed must|"
		xts256 = "2 XTS_AES_256_KEY_1 32 reversed must|3 XTS_AES_256_KEY_2 32 reversed must|"
		xts128 = "4 XTS_AES_128_KEY 32 reversed must|"
		hmac   = "5 HMAC_DOWN_ALL 32 same must|6 HMAC_DOWN_JTAG 32 same must|7 HMAC_DOWN_DIGITAL_SIGNATURE 32 same must|8 HMAC_UP 32 same must|"
		digest = "9 SECURE_BOOT_DIGEST0 32 same never|10 SECURE_BOOT_DIGEST1 32 same never|11 SECURE_BOOT_DIGEST2 32 same never|"
		km     = "12 KM_INIT_KEY 32 same must|"
		curves = "16 ECDSA_KEY_P192 32 reversed must|17 ECDSA_KEY_P384_L 32 reversed must|18 ECDSA_KEY_P384_H 32 reversed must|"
	)
	want := map[string]string{
		"esp32":        "-1 FLASH_ENCRYPTION 32 reversed must BLOCK1|-1 SECURE_BOOT_V2_DIGEST 32 same never BLOCK2|",
		"esp32s2":      user + xts256 + xts128 + hmac + digest,
		"esp32s3":      user + xts256 + xts128 + hmac + digest,
		"esp32c3":      user + xts128 + hmac + digest,
		"esp32c6":      user + xts128 + hmac + digest,
		"esp32h2":      user + "1 ECDSA_KEY 32 reversed must ECDSA_FORCE_USE_HARDWARE_K|" + xts128 + hmac + digest,
		"esp32h2_v1.2": user + ecdsa + xts128 + hmac + digest,
		"esp32c5":      user + ecdsa + xts128 + hmac + digest + km + "15 XTS_AES_128_PSRAM_KEY 32 reversed must|" + curves,
		"esp32c61":     user + ecdsa + xts128 + digest,
		"esp32p4":      user + ecdsa + xts256 + xts128 + hmac + digest + km,
		"esp32p4_v3.0": user + ecdsa + xts256 + xts128 + hmac + digest + km + curves,
		"esp32c2": "-1 XTS_AES_128_KEY 32 reversed must KEY0 XTS_KEY_LENGTH_256|" +
			"-1 XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS 16 reversed must KEY0.LOW|-1 SECURE_BOOT_DIGEST 16 same never KEY0.HI|",
	}
	for _, tab := range table.All() {
		var got strings.Builder
		for _, p := range tab.Purposes() {
			fmt.Fprintf(&got, "%d %s %d %s %s", p.Value, p.Name, p.Bytes, map[bool]string{false: "same", true: "reversed"}[p.Reversed],
				[]string{table.ReadAny: "any", table.ReadMust: "must", table.ReadNever: "never"}[p.Reading])
			for _, more := range append([]string{p.Block}, p.Sets...) {
				if more != "" {
					got.WriteString(" " + more)
				}
			}
			got.WriteString("|")
			if f, ok := tab.Field("KEY_PURPOSE_0"); ok && p.Value >= 1<<f.Len() {
				t.Errorf("%s: %s does not fit into %d bits", tab.File(), p.Name, f.Len())
			}
		}
		if name := strings.TrimSuffix(tab.File(), ".csv"); got.String() != want[name] {
			t.Errorf("%s:\n%s\nwant\n%s", name, got.String(), want[name])
		}
	}
}

// Every name that a chip model uses must be found, and the read registers of
// key blocks must be those that traces redact.
func TestModelNames(t *testing.T) {
	for _, tab := range table.All() {
		m, err := chip.ByName(tab.Chip())
		if err != nil {
			t.Fatal(err)
		}
		m = m.At(tab.First())
		name := tab.File()
		names := slices.Concat([]string{m.EFuse.FlashCryptCount, m.Lockdown.ReleaseFuse, m.Lockdown.ClosedFuse, m.SecureBoot.EnableField},
			m.Lockdown.WriteProtect, m.Lockdown.ReleaseProtect, m.SecureBoot.RevokeFields, m.FactorySet)
		for _, a := range slices.Concat(m.Lockdown.Enable, m.Lockdown.Fuses) {
			names = append(names, a.Field)
		}
		for _, n := range []string{m.SecureBoot.AggressiveRevokeField, m.SecureBoot.SHA384Field} {
			if n != "" {
				names = append(names, n)
			}
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
			if len(s.Revision) != 40 || len(s.SHA256) != 64 || !strings.HasPrefix(s.File, "components/efuse/"+tab.Chip()+"/esp_efuse_table") || !strings.HasSuffix(s.File, ".csv") {
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
