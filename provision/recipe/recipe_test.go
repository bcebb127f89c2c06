package recipe

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/provisiond/provisiond/esp/chip"
)

const good = `recipe: thermostat-c3
revision: 7
chip: esp32c3
min_chip_revision: "0.3"
build: ../firmware/build
flash_size: 4MB
profile: release
boot_check: {expect: "app running", timeout: 10s}
`

const listed = `# the same product, files listed
profile: hybrid
revision: 12
recipe: "123"
chip: ESP32
max_chip_revision: 'v3.99'
images:
  - {file: app "v1".bin, offset: 65536, name: app}
  - offset: 0x1000
    file: ./out/../bootloader.bin
  - {offset: 0x9000, file: /srv/table.bin}
boot_check: off
keep:
  - phy_init
  - calibration
partition_table_offset: 0x9000
flash_size: 16MB
baud: 921600
`

// exported compares what a recipe says, not where it was read.
var exported = cmpopts.IgnoreUnexported(Recipe{})

func parse(t testing.TB, text string) *Recipe {
	t.Helper()
	r, err := Parse("dir/r.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseGood(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       Recipe
	}{
		{"build", good, Recipe{
			Name: "thermostat-c3", Revision: 7, Chip: "esp32c3",
			MinChipRevision: 3, MaxChipRevision: NoMaxRevision,
			Build: "../firmware/build", FlashSize: 4 << 20, Profile: Release,
			BootCheck:   BootCheck{Expect: "app running", Timeout: 10 * time.Second},
			TableOffset: 0x8000, Baud: DefaultBaud,
		}},
		{"images", listed, Recipe{
			Name: "123", Revision: 12, Chip: "esp32", MaxChipRevision: 399,
			Images: []ImageRef{
				{0x10000, `app "v1".bin`, "app"},
				{0x1000, "bootloader.bin", "bootloader.bin"},
				{0x9000, "/srv/table.bin", "table.bin"},
			},
			FlashSize: 16 << 20, Profile: Hybrid, Keep: []string{"phy_init", "calibration"},
			TableOffset: 0x9000, Baud: 921600,
		}},
		{"a boot check without a time", strings.Replace(good, `, timeout: 10s`, ``, 1), Recipe{
			Name: "thermostat-c3", Revision: 7, Chip: "esp32c3",
			MinChipRevision: 3, MaxChipRevision: NoMaxRevision,
			Build: "../firmware/build", FlashSize: 4 << 20, Profile: Release,
			BootCheck:   BootCheck{Expect: "app running", Timeout: DefaultBootCheckTimeout},
			TableOffset: 0x8000, Baud: DefaultBaud,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := parse(t, tc.text)
			if diff := cmp.Diff(&tc.want, got, exported); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for _, k := range tc.want.Keep {
				if !got.Keeps(k) || got.Keeps(k+"x") {
					t.Errorf("Keeps(%q) is wrong", k)
				}
			}
			if got.Model().Name != got.Chip || got.File() != "dir/r.yaml" {
				t.Errorf("model %q, file %q", got.Model().Name, got.File())
			}
		})
	}
}

func TestEncodeGolden(t *testing.T) {
	const want = `recipe: "123"
revision: 12
chip: esp32
max_chip_revision: "3.99"
images:
  - {offset: 0x10000, file: "app \"v1\".bin", name: "app"}
  - {offset: 0x1000, file: "bootloader.bin", name: "bootloader.bin"}
  - {offset: 0x9000, file: "/srv/table.bin", name: "table.bin"}
flash_size: 16MB
profile: hybrid
boot_check: off
keep:
  - "phy_init"
  - "calibration"
partition_table_offset: 0x9000
baud: 921600
`
	if diff := cmp.Diff(want, string(parse(t, listed).Encode())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, text := range []string{good, listed} {
		first := parse(t, text)
		second := parse(t, string(first.Encode()))
		if diff := cmp.Diff(first, second, exported); diff != "" {
			t.Errorf("a recipe changed on its way through Encode:\n%s", diff)
		}
	}
}

// set replaces the line of one key of the good recipe; an empty line removes it.
func set(lines ...string) string {
	text := strings.Split(strings.TrimSuffix(good, "\n"), "\n")
	for _, l := range lines {
		key, _, _ := strings.Cut(l, ":")
		i := slices.IndexFunc(text, func(s string) bool { return strings.HasPrefix(s, key+":") })
		switch {
		case i < 0:
			text = append(text, l)
		case l == key+":-":
			text = slices.Delete(text, i, i+1)
		default:
			text[i] = l
		}
	}
	return strings.Join(text, "\n") + "\n"
}

func TestParseBad(t *testing.T) {
	const (
		revFix   = `write major.minor in quotes, for example "0.3"`
		sizeList = "write 1MB, 2MB, 4MB, 8MB, 16MB, 32MB, 64MB or 128MB"
		bootFix  = `write boot_check: {expect: "text that the application prints", timeout: 10s}`
		known    = "known are recipe, revision, chip, min_chip_revision, max_chip_revision, build, images, flash_size, profile, boot_check, keep, partition_table_offset, baud, unit_data, encimg_ecies, flash_encryption, secure_boot, anti_rollback, accept_sdm_errata, stub"
		onlyApp  = "write a text that only the running application prints"
		noAlias  = "write the value itself; recipes have no anchors and aliases"
		bauds    = "write one of 115200, 230400, 460800, 921600, 1000000, 1500000, 2000000"
		imageFix = "write {offset: 0x10000, file: app.bin}"
		imgPath  = "write the path of the image, relative to the recipe"
		tableFix = "write CONFIG_PARTITION_TABLE_OFFSET of the build, for example 0x8000"
		timeFix  = "write a time from 1s to 5m with its unit, for example 10s"
		nameFix  = "write small letters, digits and dashes, for example thermostat-c3"
		labelFix = "write the label of a partition, as it stands in partitions.csv"
		intFix   = "write a whole number from 1 upwards"
	)
	for _, tc := range []struct {
		name, text string
		want       []string // "line: field: …"
	}{
		{"empty file", "", []string{"1: is empty; write a recipe (docs/recipe.md)"}},
		{"only a comment", "# nothing\n", []string{"1: is empty; write a recipe (docs/recipe.md)"}},
		{"a list", "- a\n", []string{"1: is a list, not a mapping; write a recipe (docs/recipe.md)"}},
		{"nothing in it", "{}\n", []string{
			"1: recipe: is missing; write recipe: followed by the product's name, for example thermostat-c3",
			"1: revision: is missing; write revision: 1 and count it up with every change",
			"1: chip: is missing; write chip: followed by one of " + strings.Join(chip.Names(), ", "),
			"1: flash_size: is missing; write the size of the board's flash, for example flash_size: 4MB",
			"1: profile: is missing; write profile: followed by one of development, hybrid, release, closed",
			"1: boot_check: is missing; " + bootFix,
			"1: build: neither build nor images is given; write build: with an ESP-IDF build directory, or images: [{offset: 0x10000, file: app.bin}, …]",
		}},
		{"not YAML", good + "keep: [a\n", []string{"8: is not YAML: did not find expected ',' or ']'; correct the syntax around this line"}},
		{"a tab", good + "keep:\n\t- a\n", []string{"10: is not YAML: found character that cannot start any token; correct the syntax around this line"}},
		{"not UTF-8", good + "# \xff\n", []string{"9: holds bytes that are not UTF-8; save the file as UTF-8"}},
		{"two documents", good + "---\n" + good, []string{"9: a second YAML document begins here; keep one recipe per file"}},
		{"a broken second document", good + "---\n[\n", []string{"10: is not YAML: did not find expected node content; correct the syntax around this line"}},
		{"too long", good + "#" + strings.Repeat(" ", maxFile), []string{"is longer than 1048576 bytes; a recipe is a page of YAML"}},
		{"anchor and alias", set("recipe: &n thermostat", "chip: *n"), []string{
			"1: an anchor: &n; " + noAlias, "3: an alias: *n; " + noAlias,
		}},
		{"an alias to nothing", set("chip: *n"), []string{"3: an alias: *n; " + noAlias}},
		{"a merge key", good + "<<: {baud: 115200}\n", []string{`9: "<<": unknown key; ` + known}},
		{"an explicit tag", set(`revision: !!int "7"`), []string{"2: an explicit tag: !!int; remove it"}},
		{"a tagged key", set("revision:-") + "!!str revision: 7\n", []string{
			"1: revision: is missing; write revision: 1 and count it up with every change",
			"8: an explicit tag: !!str; remove it",
		}},
		{"a key that is a list", good + "? [a]\n: b\n", []string{"9: a key that is a list; known keys are " + known[len("known are "):]}},
		{"unknown key", good + "flashsize: 4MB\n", []string{"9: flashsize: unknown key; " + known}},
		{"unknown key with a newline", good + `"a\nb": 1` + "\n", []string{`9: "a\nb": unknown key; ` + known}},
		{"repeated key", good + "chip: esp32\n", []string{"9: chip: repeated key, first on line 3; keep one of them"}},
		{"several at once, by line", set("revision: 0", "flash_size: 3MB", "extra: 1"), []string{
			"2: revision: 0 is not between 1 and 999999999; " + intFix,
			`6: flash_size: "3MB" is not a flash size; ` + sizeList,
			"9: extra: unknown key; " + known,
		}},

		{"name with a capital", set("recipe: Thermostat"), []string{`1: recipe: "Thermostat" is not a name; ` + nameFix}},
		{"name that is an option", set(`recipe: "-f"`), []string{`1: recipe: "-f" is not a name; ` + nameFix}},
		{"name that is a number", set("recipe: 123"), []string{`1: recipe: 123 without quotes is a number in YAML; quote it: "123"`}},
		{"name that is a date", set("recipe: 2026-01-01"), []string{`1: recipe: 2026-01-01 without quotes is a date in YAML; quote it: "2026-01-01"`}},
		{"no name", set("recipe:"), []string{"1: recipe: is empty, not text; " + nameFix}},
		{"long name", set("recipe: " + strings.Repeat("a", 65)), []string{"1: recipe: is longer than 64 bytes; " + nameFix}},
		{"octal revision", set("revision: 012"), []string{"2: revision: 012 is octal for some YAML readers and decimal for others; " + intFix}},
		{"hex revision", set("revision: 0x10"), []string{`2: revision: "0x10" is not a whole number that can stand here; ` + intFix}},
		{"float revision", set("revision: 1.5"), []string{`2: revision: "1.5" is not a whole number that can stand here; ` + intFix}},
		{"quoted revision", set(`revision: "7"`), []string{"2: revision: is text, not a number; remove the quotes and " + intFix}},
		{"huge revision", set("revision: 4294967296"), []string{"2: revision: 4294967296 is not between 1 and 999999999; " + intFix}},
		{"revision list", set("revision: [1]"), []string{"2: revision: is a list, not a number; " + intFix}},
		{"unknown chip", set("chip: esp8266"), []string{`3: chip: "esp8266" is not a chip that this build knows; write chip: followed by one of ` + strings.Join(chip.Names(), ", ")}},

		{"float chip revision", set("min_chip_revision: 0.3"), []string{"4: min_chip_revision: 0.3 without quotes is a number in YAML; " + revFix}},
		{"octal chip revision", set("max_chip_revision: 0123"), []string{"9: max_chip_revision: 0123 without quotes is a number in YAML; " + revFix}},
		{"chip revision without a dot", set(`min_chip_revision: "3"`), []string{`4: min_chip_revision: "3" is not a chip revision; ` + revFix}},
		{"chip revision with zeros", set(`min_chip_revision: "0.03"`), []string{`4: min_chip_revision: "0.03" is not a chip revision; ` + revFix}},
		{"limits crossed", set(`max_chip_revision: "0.2"`), []string{
			"9: max_chip_revision: v0.2 is below min_chip_revision v0.3; no chip fits both; correct one of them",
		}},
		{"release below what closes", set("chip: esp32", "min_chip_revision:-", `max_chip_revision: "1.1"`), []string{
			"8: max_chip_revision: ESP32 ignores UART_DOWNLOAD_DIS before v3.0, so profile release cannot be reached; allow v3.0 or newer, or take profile hybrid",
		}},

		{"no source", set("build:-"), []string{
			"1: build: neither build nor images is given; write build: with an ESP-IDF build directory, or images: [{offset: 0x10000, file: app.bin}, …]",
		}},
		{"both sources", set("images: [{offset: 0, file: a}]"), []string{"9: images: build is given too, on line 5; keep one of them"}},
		{"no images", set("build:-", "images: []"), []string{"8: images: is an empty list; write a list: [{offset: 0x10000, file: app.bin}, …]"}},
		{"images is text", set("build:-", "images: a.bin"), []string{"8: images: is text, not a list; write a list: [{offset: 0x10000, file: app.bin}, …]"}},
		{"bad entries", set("build:-", "images:") + `  - {offset: 0x1000, file: a, size: 3}
  - {offset: 4096, file: b}
  - {file: /}
  - 5
  - {offset: 0x1_000, file: .., name: ""}
  - {offset: "0x1000", file: "a\tb"}
  - {offset: 4294967296}
`, []string{
			"9: images[0].size: unknown key; known are offset, file, name",
			"10: images[1].offset: 0x1000 is the offset of images[0] too; write one file per offset",
			"11: images[2].offset: is missing; " + imageFix,
			`11: images[2].file: "/" is a directory; ` + imgPath,
			"12: images[3]: is a number, not a mapping; " + imageFix,
			`13: images[4].offset: "0x1_000" is not a whole number that can stand here; write 0x10000 or a decimal number`,
			`13: images[4].file: ".." is a directory; ` + imgPath,
			"13: images[4].name: is empty; write a name for reports, or remove it",
			"14: images[5].offset: is text, not a number; remove the quotes and write 0x10000 or a decimal number",
			`14: images[5].file: "a\tb" holds a character that does not print; ` + imgPath,
			"15: images[6].file: is missing; " + imageFix,
			"15: images[6].offset: 4294967296 does not fit into 32 bits; write 0x10000 or a decimal number",
		}},
		{"too many images", set("build:-", "images: ["+strings.Repeat("{}, ", 129)+"]"), []string{"8: images: has 129 entries; at most 128 can be written"}},

		{"flash size as a number", set("flash_size: 4194304"), []string{
			"6: flash_size: 4194304 is a number; write the size of the board's flash, for example flash_size: 4MB",
		}},
		{"more flash than the chip has", set("flash_size: 32MB"), []string{"6: flash_size: 32MB is more than ESP32-C3 can address; write 16MB or less"}},
		{"a value longer than a line", set("profile: " + strings.Repeat("a", 59) + "éé"), []string{
			"7: profile: \"" + strings.Repeat("a", 59) + "…\" is not a profile; write profile: followed by one of development, hybrid, release, closed",
		}},
		{"keep tagged", set("keep: !!seq [a]"), []string{"9: an explicit tag: !!seq; remove it"}},
		{"a profile of nothing", set("profile: ~"), []string{"7: profile: is empty, not text; write profile: followed by one of development, hybrid, release, closed"}},
		{"unknown profile", set("profile: open"), []string{`7: profile: "open" is not a profile; write profile: followed by one of development, hybrid, release, closed`}},
		{"boolean profile", set("profile: true"), []string{`7: profile: true is a boolean; write profile: followed by one of development, hybrid, release, closed`}},

		{"off with release", set("boot_check: off"), []string{
			"8: boot_check: off is allowed for the profiles development and hybrid only, and this is release; a unit that was never seen to boot must not be closed: " + bootFix,
		}},
		{"off with closed", set("profile: closed", "boot_check: off"), []string{
			"8: boot_check: off is allowed for the profiles development and hybrid only, and this is closed; a unit that was never seen to boot must not be closed: " + bootFix,
		}},
		{"false", set("profile: hybrid", "boot_check: false"), []string{`8: boot_check: "false" is not a boot check; ` + bootFix + ", or off"}},
		{"no", set("profile: hybrid", "boot_check: no"), []string{`8: boot_check: "no" is not a boot check; ` + bootFix + ", or off"}},
		{"OFF", set("profile: hybrid", "boot_check: OFF"), []string{`8: boot_check: "OFF" is not a boot check; ` + bootFix + ", or off"}},
		{"empty boot check", set("profile: hybrid", "boot_check:"), []string{`8: boot_check: "" is not a boot check; ` + bootFix + ", or off"}},
		{"boot check list", set("boot_check: [a]"), []string{"8: boot_check: is a list, not a mapping; " + bootFix}},
		{"boot check key", set("boot_check: {expect: running, Timeout: 3s}"), []string{"8: boot_check.Timeout: unknown key; known are expect, timeout"}},
		{"nothing expected", set("boot_check: {timeout: 3s}"), []string{"8: boot_check.expect: is missing; " + bootFix}},
		{"short expectation", set("boot_check: {expect: ok}"), []string{`8: boot_check.expect: "ok" is shorter than 4 bytes; ` + onlyApp}},
		{"spaces expected", set(`boot_check: {expect: "     "}`), []string{"8: boot_check.expect: is nothing but spaces; " + onlyApp}},
		{"two lines expected", set(`boot_check: {expect: "app\nrunning"}`), []string{`8: boot_check.expect: "app\nrunning" holds a character that does not print; ` + onlyApp}},
		{"the ROM prints it", set("boot_check: {expect: esp32c3}"), []string{
			`8: boot_check.expect: "esp32c3" is printed by the ROM of ESP32-C3 itself ("ESP-ROM:esp32c3"); ` + onlyApp,
		}},
		{"the ROM's whole line", set("chip: esp32", "boot_check: {expect: ets Jul 29 2019}"), []string{
			`8: boot_check.expect: "ets Jul 29 2019" is printed by the ROM of ESP32 itself ("ets Ju"); ` + onlyApp,
		}},
		{"the loader prints it", set("boot_check: {expect: usb download}"), []string{
			`8: boot_check.expect: "usb download" is printed by the ROM of ESP32-C3 itself ("wait usb download"); ` + onlyApp,
		}},
		{"time without a unit", set("boot_check: {expect: running, timeout: 10}"), []string{"8: boot_check.timeout: 10 has no unit; " + timeFix}},
		{"time with another unit", set("boot_check: {expect: running, timeout: 10 sec}"), []string{`8: boot_check.timeout: "10 sec" is not a time; ` + timeFix}},
		{"short time", set("boot_check: {expect: running, timeout: 999ms}"), []string{"8: boot_check.timeout: 999ms is too short or too long; " + timeFix}},
		{"long time", set("boot_check: {expect: running, timeout: 5m1s}"), []string{"8: boot_check.timeout: 5m1s is too short or too long; " + timeFix}},

		{"keep is text", set("keep: phy"), []string{"9: keep: is text, not a list; write a list of partition labels, or remove it"}},
		{"bad keep", set("keep:") + "  - nvs\n  - nvs_keys\n  - phy\n  - phy\n  - 12\n  - 12345678901234567\n  - abcdefghijklmnopq\n  -\n", []string{
			"10: keep[0]: nvs is always erased: its old contents belong to another key; remove it from the list",
			"11: keep[1]: nvs_keys is always erased: its old contents belong to another key; remove it from the list",
			`13: keep[3]: "phy" is listed twice; keep one of them`,
			`14: keep[4]: 12 without quotes is a number in YAML; quote it: "12"`,
			`15: keep[5]: 12345678901234567 without quotes is a number in YAML; quote it: "12345678901234567"`,
			"16: keep[6]: is longer than 16 bytes; " + labelFix,
			"17: keep[7]: is empty, not text; " + labelFix,
		}},
		{"table not on a sector", set("partition_table_offset: 0x8800"), []string{"9: partition_table_offset: 0x8800 is not a multiple of 0x1000; " + tableFix}},
		{"table on the bootloader", set("partition_table_offset: 0"), []string{"9: partition_table_offset: 0x0 leaves no room for the bootloader at 0x0; " + tableFix}},
		{"table on the ESP32 bootloader", set("chip: esp32", "partition_table_offset: 4096"), []string{"9: partition_table_offset: 0x1000 leaves no room for the bootloader at 0x1000; " + tableFix}},
		{"table outside", set("partition_table_offset: 0x400000"), []string{"9: partition_table_offset: 0x400000 is outside a flash of 4MB; " + tableFix}},
		{"quoted table offset", set(`partition_table_offset: "0x8000"`), []string{"9: partition_table_offset: is text, not a number; remove the quotes and " + tableFix}},
		{"odd baud", set("baud: 9600"), []string{"9: baud: 9600 is not a rate that can be asked for; " + bauds}},
		{"float baud", set("baud: 1e5"), []string{`9: baud: "1e5" is not a whole number that can stand here; ` + bauds}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Parse("r.yaml", []byte(tc.text))
			if err == nil {
				t.Fatalf("parsed as %+v", r)
			}
			var list Errors
			if !errors.As(err, &list) {
				t.Fatalf("%T is not Errors", err)
			}
			var got []string
			for _, e := range list {
				rest, ok := strings.CutPrefix(e.Error(), "r.yaml:")
				if !ok {
					t.Errorf("%q does not begin with the file's name", e)
				}
				got = append(got, strings.TrimPrefix(rest, " "))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestErrorsAs(t *testing.T) {
	_, err := Parse("r.yaml", []byte(set("revision: 0", "profile: open")))
	var one *Error
	if !errors.As(err, &one) || one.File != "r.yaml" || one.Line != 2 || one.Field != "revision" {
		t.Errorf("errors.As found %+v", one)
	}
	if n := strings.Count(err.Error(), "\n"); n != 1 {
		t.Errorf("two errors make %d line breaks:\n%v", n, err)
	}
}

// The hash is a stable value: it stands in journals and key records.
func TestHash(t *testing.T) {
	sum := func(text string) string { h := parse(t, text).Hash(); return hex.EncodeToString(h[:]) }
	const want = "b6d51b8514c7c644424feb868fb8416ffabbf10cad9579e682d0bee020223685"
	base := sum(good)
	if base != want {
		t.Errorf("hash of the example is %s, was %s: a change breaks every journal", base, want)
	}
	same := map[string]string{
		"layout of the text": "# comment\n" + strings.ReplaceAll(good, "4MB", `"4MB"`),
		"order":              "flash_size: 4MB\n" + set("flash_size:-"),
		"build directory":    set("build: /somewhere/else"),
		"listed files":       set("build:-", "images: [{offset: 0, file: b}]"),
		"baud":               set("baud: 115200"),
		"defaults spelt out": set("baud: 460800", "partition_table_offset: 32768"),
	}
	for what, text := range same {
		if sum(text) != base {
			t.Errorf("%s changes the hash", what)
		}
	}
	seen := map[string]string{base: "the example"}
	for what, text := range map[string]string{
		"name":           set("recipe: thermostat-c4"),
		"revision":       set("revision: 8"),
		"chip":           set("chip: esp32"),
		"min":            set(`min_chip_revision: "0.4"`),
		"no min":         set("min_chip_revision:-"),
		"max":            set(`max_chip_revision: "1.1"`),
		"flash size":     set("flash_size: 8MB"),
		"profile":        set("profile: hybrid"),
		"expect":         set("boot_check: {expect: app runs, timeout: 10s}"),
		"timeout":        set("boot_check: {expect: app running, timeout: 11s}"),
		"no check":       set("profile: hybrid", "boot_check: off"),
		"keep":           set("keep: [a, b]"),
		"keep one":       set("keep: [ab]"),
		"table offset":   set("partition_table_offset: 0x9000"),
		"keep like text": set(`keep: ["a\nkeep=1:b"]`),
	} {
		r, err := Parse("r.yaml", []byte(text))
		if what == "keep like text" {
			if err == nil {
				t.Error("a label with a line break parsed")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h := r.Hash()
		if other, dup := seen[hex.EncodeToString(h[:])]; dup {
			t.Errorf("%s has the hash of %s", what, other)
		}
		seen[hex.EncodeToString(h[:])] = what
	}
	if sum(set("keep: [a, b]")) != sum(set("keep: [b, a]")) {
		t.Error("the order of keep changes the hash")
	}
}

func TestRevisionLimits(t *testing.T) {
	for _, tc := range []struct {
		chip, profile string
		closes        bool
		oldest        chip.Revision
	}{
		{"esp32", "development", false, 3},
		{"esp32", "hybrid", false, 3},
		{"esp32", "release", true, 300}, // release is closed there, and v3.0 the first that can
		{"esp32", "closed", true, 300},
		{"esp32c3", "release", false, 3},
		{"esp32c3", "closed", true, 3},
	} {
		r := parse(t, set("chip: "+tc.chip, "profile: "+tc.profile))
		oldest, newest := r.RevisionLimits()
		if r.ClosesForever() != tc.closes || oldest != tc.oldest || newest != NoMaxRevision {
			t.Errorf("%s %s: closes %v, limits %v to %v; want %v, %v", tc.chip, tc.profile, r.ClosesForever(), oldest, newest, tc.closes, tc.oldest)
		}
	}
}

func TestFieldError(t *testing.T) {
	r := parse(t, listed)
	for field, line := range map[string]int{
		"chip": 5, "images[1].file": 10, "images[1].name": 9, "keep[1]": 15, "min_chip_revision": 0, "keep[7]": 13,
	} {
		if e := r.FieldError(field, "is odd", ""); e.Line != line || e.File != "dir/r.yaml" || e.Field != field {
			t.Errorf("%s: %+v, want line %d", field, e, line)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]Size{"1MB": 1 << 20, "4MB": 4 << 20, "128MB": 128 << 20} {
		if got, err := ParseSize(s); err != nil || got != want || got.String() != s {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0MB", "3MB", "4 MB", "4mb", "04MB", "256MB", "512KB", "4"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q parsed as %v", s, got)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.yaml")
	_, err := Load(path)
	want := path + ": no such file or directory; give the path of a recipe (docs/recipe.md)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Load(path)
	if err != nil || r.Name != "thermostat-c3" || r.File() != path {
		t.Errorf("%+v, %v", r, err)
	}
}

// Every example must be a recipe. Its build directory is the reader's own.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../configs/recipes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	names := map[string]string{}
	for _, f := range files {
		r, err := Load(f)
		if err != nil {
			t.Error(err)
			continue
		}
		if base := strings.TrimSuffix(filepath.Base(f), ".yaml"); r.Name != base {
			t.Errorf("%s: recipe: is %q; an example has its file's name", f, r.Name)
		}
		if other, dup := names[r.Name]; dup {
			t.Errorf("%s and %s are both %q", f, other, r.Name)
		}
		names[r.Name] = f
	}
}

// docs/recipe.md describes every field, and its example and hash are right.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/recipe.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if !strings.Contains(text, "```yaml\n"+good+"```\n") {
		t.Error("the example is not the one that the tests parse")
	}
	if h := parse(t, good).Hash(); !strings.Contains(text, hex.EncodeToString(h[:])) {
		t.Errorf("the example's hash %x is not there", h)
	}
	for _, k := range slices.Concat(recipeKeys, []string{"boot_check.expect", "boot_check.timeout"}) {
		if !strings.Contains(text, "\n| `"+k+"` |") {
			t.Errorf("%s has no row", k)
		}
	}
	for _, p := range profiles {
		if !strings.Contains(text, "`"+string(p)+"`") {
			t.Errorf("profile %s is not described", p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(listed))
	f.Add([]byte(set("keep: [a, \"b\\\\c\", 'd\"e']", "baud: 115200")))
	f.Add([]byte(set("build:-", "images: [{offset: 0, file: \"\u00e9 b\"}]")))
	f.Add([]byte(set("recipe: &a b", "chip: *a")))
	f.Add([]byte(good + "---\n"))
	f.Add([]byte(`{recipe: a, revision: 1, chip: esp32, build: ., flash_size: 2MB, profile: hybrid, boot_check: "off"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse("r.yaml", b)
		if err != nil {
			var list Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("%T without errors", err)
			}
			for _, e := range list {
				if e.File != "r.yaml" || e.Problem == "" || e.Fix == "" || strings.ContainsAny(e.Problem, "\n\x1b") {
					t.Fatalf("an error that nobody can use: %+v", e)
				}
			}
			return
		}
		once := r.Encode()
		again, err := Parse("r.yaml", once)
		if err != nil {
			t.Fatalf("%v\nin its own encoding:\n%s", err, once)
		}
		if diff := cmp.Diff(r, again, exported); diff != "" {
			t.Fatalf("changed on its way through Encode:\n%s", diff)
		}
		if twice := again.Encode(); string(twice) != string(once) {
			t.Fatalf("second encoding differs:\n%s\n%s", once, twice)
		}
		if r.Hash() != again.Hash() {
			t.Fatal("hash differs")
		}
	})
}
