package layout

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/provision/recipe"
)

func model(t testing.TB, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// recipeFor parses a recipe for chip with more lines appended.
func recipeFor(t testing.TB, chipName string, more ...string) *recipe.Recipe {
	t.Helper()
	text := "recipe: product\nrevision: 1\nchip: " + chipName + "\nbuild: build\nflash_size: 4MB\nboot_check: {expect: app running}\n"
	text += strings.Join(more, "\n") + "\n"
	if !strings.Contains(text, "profile:") {
		text += "profile: hybrid\n"
	}
	r, err := recipe.Parse("r.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustBuild(t testing.TB, s image.Spec) []byte {
	t.Helper()
	b, err := image.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addresses of a chip's memories: mapped flash, and RAM that bootloaders use.
func addresses(m chip.Model) (mapped, ram uint32) {
	if m.ID == chip.IDESP32 {
		return 0x3F400020, 0x3FFF0030
	}
	return 0x3C000020, 0x3FCD6100
}

func bootSpec(m chip.Model) image.Spec {
	_, ram := addresses(m)
	return image.Spec{
		Chip: m.ID, EntryAddr: ram, SPISize: image.SPISize4MB,
		Segments: []image.Segment{{LoadAddr: ram, Data: bytes.Repeat([]byte("boot"), 1000)}},
	}
}

func appSpec(m chip.Model, size int) image.Spec {
	mapped, ram := addresses(m)
	return image.Spec{
		Chip: m.ID, EntryAddr: ram, SPISize: image.SPISize4MB,
		AppDesc: &image.AppDesc{Version: "1.0", ProjectName: "thermostat"},
		Segments: []image.Segment{
			{LoadAddr: mapped, Data: bytes.Repeat([]byte("data"), size/4)},
			{LoadAddr: ram, Data: bytes.Repeat([]byte("code"), 100)},
		},
	}
}

func entry(t partition.Type, s partition.Subtype, off, size uint32, label string, flags partition.Flags) partition.Entry {
	return partition.Entry{Type: t, Subtype: s, Offset: off, Size: size, Label: label, Flags: flags}
}

// rows is the table of most tests.
func rows() []partition.Entry {
	const app, data = partition.TypeApp, partition.TypeData
	return []partition.Entry{
		entry(data, partition.DataNVS, 0x9000, 0x4000, "nvs", 0),
		entry(data, partition.DataOTA, 0xd000, 0x2000, "otadata", 0),
		entry(data, partition.DataPHY, 0xf000, 0x1000, "phy_init", 0),
		entry(app, partition.AppFactory, 0x10000, 0x20000, "factory", 0),
		entry(app, partition.AppOTA0, 0x30000, 0x20000, "ota_0", 0),
		entry(app, partition.AppOTA0+1, 0x50000, 0x20000, "ota_1", 0),
		entry(data, partition.DataNVSKeys, 0x70000, 0x1000, "nvs_keys", partition.FlagEncrypted),
		entry(data, partition.DataSPIFFS, 0x71000, 0x3000, "storage", partition.FlagEncrypted),
		entry(data, partition.DataFAT, 0x74000, 0x2000, "assets", 0),
	}
}

func table(t testing.TB, entries ...partition.Entry) []byte {
	t.Helper()
	b, err := partition.New(entries...).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func file(off uint32, path string, data []byte) recipe.File {
	return recipe.File{Offset: off, Name: path, Path: path, Data: data, SHA256: sha256.Sum256(data)}
}

// product is a complete set of files.
func product(t testing.TB, m chip.Model) []recipe.File {
	t.Helper()
	return []recipe.File{
		file(0x8000, "table.bin", table(t, rows()...)),
		file(m.BootloaderOffset, "boot.bin", mustBuild(t, bootSpec(m))),
		file(0x10000, "app.bin", mustBuild(t, appSpec(m, 0x4321&^3))),
		file(0x71000, "storage.bin", []byte("secret settings")),
		file(0x74000, "assets.bin", bytes.Repeat([]byte("picture"), 700)),
	}
}

// replace puts f in the place of the file at its offset, or adds it.
func replace(files []recipe.File, f recipe.File) []recipe.File {
	i := slices.IndexFunc(files, func(o recipe.File) bool { return o.Offset == f.Offset })
	files = slices.Clone(files)
	if i < 0 {
		return append(files, f)
	}
	files[i] = f
	return files
}

func without(files []recipe.File, off uint32) []recipe.File {
	return slices.DeleteFunc(slices.Clone(files), func(f recipe.File) bool { return f.Offset == off })
}

func TestBuild(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		t.Run(name, func(t *testing.T) {
			m := model(t, name)
			files := product(t, m)
			l, err := Build(m, recipeFor(t, name, "keep: [phy_init]"), files)
			if err != nil {
				t.Fatal(err)
			}
			boot, app := uint32(len(files[1].Data)), uint32(len(files[2].Data))
			up := func(n uint32) uint32 { return (n + m.EncryptedAlign - 1) / m.EncryptedAlign * m.EncryptedAlign }
			type row struct {
				Name    string
				Kind    Kind
				Offset  uint32
				Length  uint32
				Encrypt bool
				File    string
			}
			want := []row{
				{"bootloader", Bootloader, m.BootloaderOffset, up(boot), true, "boot.bin"},
				{"partition-table", PartitionTable, 0x8000, 0x1000, true, "table.bin"},
				{"otadata", OTAData, 0xd000, 0x2000, true, ""},
				{"factory", App, 0x10000, up(app), true, "app.bin"},
				{"storage", Data, 0x71000, m.EncryptedAlign, true, "storage.bin"},
				{"assets", Data, 0x74000, up(4900), false, "assets.bin"},
			}
			var got []row
			for _, r := range l.Regions {
				got = append(got, row{r.Name, r.Kind, r.Offset, uint32(len(r.Plain)), r.Encrypt, r.File})
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("regions: -want +got:\n%s", diff)
			}
			bootEnd := (m.BootloaderOffset + boot + 0xFFF) &^ 0xFFF
			appEnd := (0x10000 + app + 0xFFF) &^ 0xFFF
			wantErase := []Range{
				{"bootloader", bootEnd, 0x8000 - bootEnd},
				{"nvs", 0x9000, 0x4000},
				{"factory", appEnd, 0x30000 - appEnd},
				{"ota_0", 0x30000, 0x20000},
				{"ota_1", 0x50000, 0x20000},
				{"nvs_keys", 0x70000, 0x1000},
				{"storage", 0x72000, 0x2000},
			}
			if diff := cmp.Diff(wantErase, l.Erase); diff != "" {
				t.Errorf("erase: -want +got:\n%s", diff)
			}
			wantUntouched := []Range{{"phy_init", 0xf000, 0x1000}, {"no partition", 0x76000, 0x400000 - 0x76000}}
			if m.BootloaderOffset > 0 {
				wantUntouched = slices.Insert(wantUntouched, 0, Range{"no partition", 0, m.BootloaderOffset})
			}
			if diff := cmp.Diff(wantUntouched, l.Untouched); diff != "" {
				t.Errorf("untouched: -want +got:\n%s", diff)
			}
			if len(l.Warnings) != 0 {
				t.Errorf("warnings: %q", l.Warnings)
			}
			checkTiles(t, l)
			if l.Regions[2].Image != nil || l.Regions[0].Image == nil || l.Regions[3].Image.AppDesc.ProjectName != "thermostat" {
				t.Error("images are not where they should be")
			}
			for _, r := range l.Regions {
				i := slices.IndexFunc(files, func(f recipe.File) bool { return f.Path == r.File })
				var data []byte
				if i >= 0 {
					data = files[i].Data
				}
				if !bytes.HasPrefix(r.Plain, data) || len(bytes.Trim(r.Plain[len(data):], "\xff")) != 0 {
					t.Errorf("%s is not its file and then 0xFF", r.Name)
				}
			}
		})
	}
}

// checkTiles holds a layout to its promise: the whole flash, each sector once.
func checkTiles(t interface{ Fatalf(string, ...any) }, l *Layout) {
	var all []Range
	for _, r := range l.Regions {
		all = append(all, Range{r.Name, r.Offset, (uint32(len(r.Plain)) + Sector - 1) &^ (Sector - 1)})
	}
	if l.UnitData != nil {
		all = append(all, *l.UnitData)
	}
	all = append(append(all, l.Erase...), l.Untouched...)
	slices.SortFunc(all, func(a, b Range) int { return int(a.Offset) - int(b.Offset) })
	at := uint32(0)
	for _, r := range all {
		if r.Offset != at || r.Size == 0 || r.Size%Sector != 0 {
			t.Fatalf("0x%x is followed by %+v", at, r)
		}
		at = r.End()
	}
	if at != l.FlashSize {
		t.Fatalf("the flash ends at 0x%x, the layout at 0x%x", l.FlashSize, at)
	}
}

// xor is a cipher by address: enough to see which bytes went where.
type xor struct{ fail string }

func (x xor) Encrypt(dst, src []byte, addr uint32) error {
	if x.fail != "" {
		return errors.New(x.fail)
	}
	for i := range src {
		dst[i] = src[i] ^ byte(addr>>12) ^ byte(i) ^ 0x5A
	}
	return nil
}

type noCipher struct{}

func (noCipher) Encrypt(dst, src []byte, _ uint32) error { copy(dst, src); return nil }

func TestEncrypt(t *testing.T) {
	m := model(t, "esp32c3")
	l, err := Build(m, recipeFor(t, m.Name), product(t, m))
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Encrypt(xor{})
	if err != nil || len(got) != len(l.Regions) {
		t.Fatal(len(got), err)
	}
	for i, c := range got {
		want := slices.Clone(l.Regions[i].Plain)
		if l.Regions[i].Encrypt {
			if err := (xor{}).Encrypt(want, l.Regions[i].Plain, l.Regions[i].Offset); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(c.Data, want) || c.Name != l.Regions[i].Name {
			t.Errorf("%s: wrong bytes", c.Name)
		}
		if c.SHA256 != sha256.Sum256(want) || c.MD5 != md5.Sum(want) {
			t.Errorf("%s: wrong sums", c.Name)
		}
	}
	const where = "layout: encrypt bootloader at 0x0: "
	if _, err := l.Encrypt(xor{"no key"}); err == nil || err.Error() != where+"no key" {
		t.Errorf("an error of the cipher: %v", err)
	}
	if _, err := l.Encrypt(noCipher{}); err == nil || err.Error() != where+"the ciphertext equals the plaintext" {
		t.Errorf("a cipher that does nothing: %v", err)
	}
}

// The real ciphers take every region as it is and give it back.
func TestEncryptReal(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		m := model(t, name)
		l, err := Build(m, recipeFor(t, name), product(t, m))
		if err != nil {
			t.Fatal(err)
		}
		c, err := flashcrypt.New(m.Scheme, noise(32), 0xF)
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Encrypt(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got {
			plain := slices.Clone(r.Data)
			if r.Encrypt {
				if err := c.Decrypt(plain, r.Data, r.Offset); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(plain, r.Plain) {
				t.Errorf("%s: %s does not come back", name, r.Name)
			}
		}
	}
}

func TestSummary(t *testing.T) {
	m := model(t, "esp32c3")
	files := product(t, m)
	l, err := Build(m, recipeFor(t, m.Name), files)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	got := l.Summary()
	blank := bytes.Repeat([]byte{0xFF}, 0x2000)
	if want := (RegionSummary{Name: "otadata", Kind: OTAData, Offset: 0xd000, Length: 0x2000, Encrypted: true, SHA256: hash(blank)}); got[2] != want {
		t.Errorf("otadata is %+v", got[2])
	}
	if want := (RegionSummary{
		Name: "assets", Kind: Data, Offset: 0x74000, Length: 4912,
		SHA256: hash(append(slices.Clone(files[4].Data), blank[:12]...)), File: "assets.bin", FileSHA256: hash(files[4].Data),
	}); got[5] != want {
		t.Errorf("assets is %+v, want %+v", got[5], want)
	}
	text, err := json.Marshal(got[2])
	want := `{"name":"otadata","kind":"otadata","offset":53248,"length":8192,"encrypted":true,"sha256":"` + hash(blank) + `"}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

func TestHash(t *testing.T) {
	m := model(t, "esp32c3")
	sum := func(r *recipe.Recipe, files []recipe.File) [32]byte {
		t.Helper()
		l, err := Build(m, r, files)
		if err != nil {
			t.Fatal(err)
		}
		return l.Hash()
	}
	r := recipeFor(t, m.Name)
	base := sum(r, product(t, m))
	moved := product(t, m)
	slices.Reverse(moved)
	for i := range moved {
		moved[i].Path, moved[i].Name = "/elsewhere/"+moved[i].Path, "x"
	}
	if sum(r, moved) != base {
		t.Error("paths or order change the hash")
	}
	larger, err := recipe.Parse("r.yaml", bytes.Replace(r.Encode(), []byte("4MB"), []byte("8MB"), 1))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]string{base: "the product"}
	for what, h := range map[string][32]byte{
		"a changed byte":     sum(r, replace(product(t, m), file(0x71000, "s", []byte("secret Settings")))),
		"a missing file":     sum(r, without(product(t, m), 0x74000)),
		"a kept partition":   sum(recipeFor(t, m.Name, "keep: [phy_init]"), product(t, m)),
		"a larger flash":     sum(larger, product(t, m)),
		"another offset":     sum(r, replace(without(product(t, m), 0x10000), file(0x30000, "a", mustBuild(t, appSpec(m, 0x4320))))),
		"an unencrypted one": sum(r, replace(without(product(t, m), 0x8000), file(0x8000, "t", table(t, plainStorage()...)))),
	} {
		if other, dup := seen[h]; dup {
			t.Errorf("%s has the hash of %s", what, other)
		}
		seen[h] = what
	}
}

func plainStorage() []partition.Entry {
	e := rows()
	e[7].Flags = 0
	return e
}

// ESP-IDF's bootloader believes the flash size in its own header, so what goes to
// flash has the recipe's, and is a valid image with nothing else changed.
func TestFlashSizeInHeader(t *testing.T) {
	m := model(t, "esp32c3")
	boot := bootSpec(m)
	boot.SPISize = image.SPISize2MB
	built := mustBuild(t, boot)
	l, err := Build(m, recipeFor(t, m.Name), replace(product(t, m), file(0, "boot.bin", built)))
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "boot.bin: the bootloader's header says 2MB of flash; it is written as 4MB") {
		t.Errorf("warnings: %q", l.Warnings)
	}
	r := l.Regions[0]
	img, err := image.Parse(r.Plain)
	if err != nil || r.Kind != Bootloader || img.Header.SPISize != image.SPISize4MB {
		t.Fatalf("%s: %+v, %v", r.Kind, img, err)
	}
	if r.FileSHA256 != sha256.Sum256(built) {
		t.Error("the file's hash is not that of the file")
	}
	for i, v := range built {
		if hash := i >= img.Length-sha256.Size; v != r.Plain[i] && i != 3 && !hash {
			t.Errorf("byte %d was changed", i)
		}
	}
	if l, err = Build(m, recipeFor(t, m.Name), product(t, m)); err != nil || len(l.Warnings) != 0 {
		t.Errorf("%q, %v", l.Warnings, err)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// matches holds a message against its beginning and, after each "…", a part that
// must follow somewhere.
func matches(got, want string) bool {
	parts := strings.Split(want, "…")
	rest, ok := strings.CutPrefix(got, parts[0])
	for _, p := range parts[1:] {
		var found bool
		_, rest, found = strings.Cut(rest, p)
		ok = ok && found
	}
	return ok
}

func TestRefuse(t *testing.T) {
	c3, e32 := model(t, "esp32c3"), model(t, "esp32")
	app := mustBuild(t, appSpec(c3, 0x4000))
	boot := mustBuild(t, bootSpec(c3))
	signature := bytes.Repeat([]byte{0xFF}, image.SectorSize)
	signature[0] = 0xE7
	signed := func(s image.Spec) []byte { s.Signature = signature; return mustBuild(t, s) }
	damaged := func(b []byte, at int) []byte { b = slices.Clone(b); b[at] ^= 1; return b }
	withRows := func(change func(e []partition.Entry) []partition.Entry) []recipe.File {
		return replace(product(t, c3), file(0x8000, "table.bin", table(t, change(rows())...)))
	}
	with := func(off uint32, path string, data []byte) []recipe.File {
		return replace(product(t, c3), file(off, path, data))
	}
	otadata := func(seq uint32) []byte {
		d := partition.NewOTAData()
		d.Entries[0] = partition.NewOTAEntry(seq, partition.OTAUndefined)
		b, err := d.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const places = "bootloader 0x0, nvs 0x9000, otadata 0xd000, phy_init 0xf000, factory 0x10000, ota_0 0x30000, ota_1 0x50000, nvs_keys 0x70000, storage 0x71000, assets 0x74000"
	for _, tc := range []struct {
		name  string
		m     chip.Model
		files []recipe.File
		want  []string // one per refusal, see matches
	}{
		{"the recipe is for another chip", e32, product(t, c3), []string{"the chip is ESP32, the recipe product is for ESP32-C3; take the recipe for this board"}},
		{"app for another chip", c3, with(0x10000, "app.bin", mustBuild(t, appSpec(e32, 0x4000))), []string{
			"app.bin at 0x10000: image is for another chip: it is for ESP32, and the chip is ESP32-C3",
		}},
		{"bootloader for another chip", c3, with(0, "boot.bin", mustBuild(t, bootSpec(e32))), []string{
			"boot.bin at 0x0: image is for another chip: it is for ESP32, and the chip is ESP32-C3",
		}},
		{"bad checksum", c3, with(0x10000, "app.bin", func() []byte {
			s := appSpec(c3, 0x4000)
			s.NoHash = true
			return damaged(mustBuild(t, s), 0x1000)
		}()), []string{"app.bin at 0x10000: this is no valid application image: image: checksum"}},
		{"bad hash", c3, with(0x10000, "app.bin", damaged(app, len(app)-1)), []string{
			"app.bin at 0x10000: this is no valid application image: image: hash",
		}},
		{"cut image", c3, with(0, "boot.bin", boot[:len(boot)/2]), []string{"boot.bin at 0x0: this is no valid bootloader image: image: segments[0]"}},
		{"larger than its partition", c3, with(0x10000, "app.bin", mustBuild(t, appSpec(c3, 0x20000))), []string{
			`app.bin at 0x10000: 131808 bytes are more than "factory" …has, by 736; make the image smaller`,
		}},
		{"data larger than its partition", c3, with(0x74000, "assets.bin", make([]byte, 0x2001)), []string{
			`assets.bin at 0x74000: 8193 bytes are more than "assets"`,
		}},
		{"bootloader reaches the table", c3, with(0, "boot.bin", noise(0x8001)), []string{
			"table.bin at 0x8000: the file overlaps boot.bin, which begins at 0x0 and has 0x8001 bytes",
			"boot.bin at 0x0: 32769 bytes are more than the room of 32768 before the partition table at 0x8000",
		}},
		{"outside the flash", c3, with(0x3ff000, "far.bin", make([]byte, 0x1001)), []string{
			"far.bin at 0x3ff000: the file ends at 0x400001, outside the flash of 4MB; correct the offset",
			"far.bin at 0x3ff000: no partition begins at this offset",
		}},
		{"far outside the flash", c3, with(0xfffff000, "far.bin", make([]byte, 0x2000)), []string{
			"far.bin at 0xfffff000: the file ends at 0x100001000, outside the flash of 4MB; correct the offset",
			"far.bin at 0xfffff000: no partition begins at this offset",
		}},
		{"overlap", c3, with(0x30000, "app2.bin", app), nil}, // fits: ota_0
		{"overlapping files", c3, append(with(0x30000, "app2.bin", app), file(0x34000, "app3.bin", app)), []string{
			"app3.bin at 0x34000: the file overlaps app2.bin, which begins at 0x30000 and has",
			`app3.bin at 0x34000: this offset lies inside "ota_0" …; build the partition table and the images together and use that build as it is: ` + places,
		}},
		{"two files at one offset", c3, append(product(t, c3), file(0x10000, "app2.bin", app)), []string{
			"app2.bin at 0x10000: the file overlaps app.bin, which begins at 0x10000 and has",
		}},
		{"bootloader encrypted already", c3, with(0, "boot.bin", noise(0x3000)), []string{
			"boot.bin at 0x0: the bootloader looks encrypted already: ",
		}},
		{"app encrypted already", c3, with(0x10000, "app.bin", noise(0x3000)), []string{
			"app.bin at 0x10000: the application looks encrypted already: ",
		}},
		{"table encrypted already", c3, with(0x8000, "table.bin", noise(0x1000)), []string{
			"table.bin at 0x8000: the partition table looks encrypted already: ",
		}},
		{"otadata encrypted already", c3, with(0xd000, "ota.bin", noise(0x2000)), []string{
			"ota.bin at 0xd000: the OTA data looks encrypted already: ",
		}},
		{"table of text", c3, with(0x8000, "table.bin", []byte("nvs, data, nvs, 0x9000, 0x4000,\n")), []string{
			"table.bin at 0x8000: this is no partition table: ",
		}},
		{"table too long", c3, with(0x8000, "table.bin", append(table(t, rows()...), bytes.Repeat([]byte{0xFF}, 0x401)...)), []string{
			"table.bin at 0x8000: 4097 bytes are more than the partition table's sector of 0x1000",
		}},
		{"table damaged", c3, with(0x8000, "table.bin", damaged(table(t, rows()...), 4)), []string{
			"table.bin at 0x8000: this is no partition table: ",
		}},
		{"no table", c3, without(product(t, c3), 0x8000), []string{
			"there is no partition table at 0x8000; add the build's partition table",
		}},
		{"table elsewhere", c3, append(without(product(t, c3), 0x8000), file(0x9000, "table.bin", table(t, rows()...))), []string{
			"there is no partition table at 0x8000; table.bin at 0x9000 is a partition table: set partition_table_offset to its offset",
		}},
		{"table differs from the images", c3, withRows(func(e []partition.Entry) []partition.Entry { e[3].Offset, e[3].Size = 0x20000, 0x10000; return e }), []string{
			"app.bin at 0x10000: no partition begins at this offset; build the partition table and the images together",
			"there is no application for a factory or ota partition",
		}},
		{"table overlaps itself", c3, withRows(func(e []partition.Entry) []partition.Entry { e[3].Size = 0x21000; return e }), []string{
			`table.bin at 0x8000: …overlaps …; correct partitions.csv`,
		}},
		{"table outside the flash", c3, withRows(func(e []partition.Entry) []partition.Entry { e[8].Size = 0x400000; return e }), []string{
			`table.bin at 0x8000: …"assets" …beyond the flash …; correct partitions.csv`,
		}},
		{"two faults in the table", c3, withRows(func(e []partition.Entry) []partition.Entry {
			e[0].Flags, e[1].Size = partition.FlagEncrypted, 0x1000
			return e
		}), []string{
			`table.bin at 0x8000: …"nvs" …has the flag encrypted…; correct partitions.csv`,
			`table.bin at 0x8000: …"otadata" …0x2000 …; correct partitions.csv`,
		}},
		{"bootloader row elsewhere", c3, withRows(func(e []partition.Entry) []partition.Entry {
			return append([]partition.Entry{entry(partition.TypeBootloader, partition.SubtypePrimary, 0x1000, 0x7000, "bl", 0)}, e...)
		}), []string{`table.bin at 0x8000: "bl" …: the ROM of ESP32-C3 reads the bootloader at 0x0`}},
		{"signed bootloader", c3, with(0, "boot.bin", signed(bootSpec(c3))), []string{
			"boot.bin at 0x0: the bootloader carries a Secure Boot signature, and the recipe has no secure_boot: such a bootloader burns fuses of its own at its first boot; give the recipe secure_boot",
		}},
		{"signed app", c3, with(0x10000, "app.bin", signed(appSpec(c3, 0x4000))), []string{
			"app.bin at 0x10000: the application carries a Secure Boot signature",
		}},
		{"no bootloader", c3, without(product(t, c3), 0), []string{
			"there is no bootloader at 0x0, where the ROM of ESP32-C3 reads it; add the build's bootloader (a Secure Boot build",
		}},
		{"bootloader at the other chip's place", c3, append(without(product(t, c3), 0), file(0x1000, "boot.bin", boot)), []string{
			"boot.bin at 0x1000: no partition begins at this offset; build the partition table and the images together and use that build as it is: " + places,
			"there is no bootloader at 0x0",
		}},
		{"no app", c3, without(product(t, c3), 0x10000), []string{
			"there is no application for a factory or ota partition; add the build's application: " + places,
		}},
		{"only a test app", c3, replace(withRows(func(e []partition.Entry) []partition.Entry {
			e[3].Subtype = partition.AppTest
			return e
		}), file(0x10000, "app.bin", app)), []string{"there is no application for a factory or ota partition"}},
		{"app too small", c3, with(0x10000, "app.bin", app[:200]), []string{
			"app.bin at 0x10000: 200 bytes are too few for an image of this kind (application): the least is 304",
		}},
		{"bootloader too small", c3, with(0, "boot.bin", boot[:24]), []string{
			"boot.bin at 0x0: 24 bytes are too few for an image of this kind (bootloader): the least is 48",
		}},
		{"a bootloader as app", c3, with(0x10000, "boot.bin", boot), []string{
			"boot.bin at 0x10000: the image has no application description",
		}},
		{"an app as bootloader", c3, with(0, "app.bin", app), []string{
			`app.bin at 0x0: this is an application (`,
		}},
		{"app in a data partition", c3, with(0x71000, "app.bin", mustBuild(t, appSpec(c3, 0x1000))), []string{
			`app.bin at 0x71000: this is an application of ESP32-C3 (`,
		}},
		{"another chip's app in a data partition", c3, with(0x71000, "helper.bin", mustBuild(t, appSpec(e32, 0x1000))), nil},
		{"NVS keys for everybody", c3, with(0x70000, "keys.bin", make([]byte, 0x1000)), []string{
			`keys.bin at 0x70000: a file for "nvs_keys" …would give the same NVS keys to every unit; remove the file`,
		}},
		{"an NVS image stays plain", c3, with(0x9000, "nvs.bin", make([]byte, 0x3000)), nil},
		{"OTA data of zeros", c3, with(0xd000, "ota.bin", make([]byte, 0x2000)), []string{
			"ota.bin at 0xd000: this is no OTA data: ",
		}},
		{"OTA data selects an empty slot", c3, with(0xd000, "ota.bin", otadata(2)), []string{
			"ota.bin at 0xd000: the OTA data selects slot 1, and no image is written there",
		}},
		{"OTA data selects a slot", c3, append(with(0xd000, "ota.bin", otadata(2)), file(0x50000, "app2.bin", app)), nil},
		{"a second partition table that is none", c3, replace(withRows(func(e []partition.Entry) []partition.Entry {
			return append(e, entry(partition.TypePartitionTable, partition.SubtypeOTA, 0x80000, 0x1000, "table2", 0))
		}), file(0x80000, "t2.bin", []byte("none"))), []string{"t2.bin at 0x80000: this is no partition table: "}},
		{"a second bootloader that is none", c3, replace(withRows(func(e []partition.Entry) []partition.Entry {
			return append(e, entry(partition.TypeBootloader, partition.SubtypeOTA, 0x80000, 0x8000, "boot2", 0))
		}), file(0x80000, "b2.bin", noise(0x1000))), []string{"b2.bin at 0x80000: the bootloader looks encrypted already: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := Build(tc.m, recipeFor(t, "esp32c3"), tc.files)
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				checkTiles(t, l)
				return
			}
			var list Refusals
			if !errors.As(err, &list) || l != nil {
				t.Fatalf("%T %v, layout %v", err, err, l)
			}
			if len(list) != len(tc.want) {
				t.Fatalf("%d refusals, want %d:\n%v", len(list), len(tc.want), err)
			}
			for i, r := range list {
				if !matches(r.Error(), tc.want[i]) {
					t.Errorf("got  %v\nwant %s…", r, tc.want[i])
				}
				if r.NextStep == "" {
					t.Errorf("%v: no next step", r)
				}
			}
			if n := strings.Count(err.Error(), "\n"); n != len(list)-1 {
				t.Errorf("%d refusals make %d line breaks", len(list), n)
			}
			var one *Refusal
			if !errors.As(err, &one) || one != list[0] {
				t.Error("errors.As does not find the first refusal")
			}
			var wrong *recipe.Error
			if errors.As(err, &wrong) {
				t.Error("a refusal passes for a wrong recipe")
			}
		})
	}
}

// Refusals exit with 10, wrong recipes with 2: keep is the recipe's.
func TestKeep(t *testing.T) {
	m := model(t, "esp32c3")
	e := append(rows(), entry(partition.TypeData, partition.DataNVS, 0x76000, 0x3000, "settings", 0),
		entry(partition.TypeData, partition.DataNVSKeys, 0x79000, 0x1000, "keys2", 0),
		entry(partition.TypePartitionTable, partition.SubtypePrimary, 0x8000, 0x1000, "pt", 0))
	files := replace(product(t, m), file(0x8000, "table.bin", table(t, e...)))
	r := recipeFor(t, m.Name, "keep:", "  - phy_init", "  - phy", "  - settings", "  - keys2", "  - storage", "  - ota_1", "  - assets", "  - pt", "  - otadata")
	_, err := Build(m, r, files)
	var list recipe.Errors
	if !errors.As(err, &list) {
		t.Fatalf("%T %v", err, err)
	}
	var refusal *Refusal
	if errors.As(err, &refusal) {
		t.Error("a wrong recipe passes for a refusal")
	}
	want := []string{
		`r.yaml:9: keep[1]: the partition table has no "phy"; it has "nvs", "otadata", "phy_init", "factory", "ota_0", "ota_1", "nvs_keys", "storage", "assets", "settings", "keys2", "pt"`,
		`r.yaml:10: keep[2]: "settings" is NVS or its keys, which are always erased: their old contents belong to another key; remove it from the list`,
		`r.yaml:11: keep[3]: "keys2" is NVS or its keys, which are always erased: their old contents belong to another key; remove it from the list`,
		`r.yaml:12: keep[4]: "storage" is read through decryption, so what stands there now would read as noise; remove it from the list, or remove its flag encrypted in partitions.csv`,
		`r.yaml:13: keep[5]: "ota_1" is read through decryption, so what stands there now would read as noise; remove it from the list, or remove its flag encrypted in partitions.csv`,
		`r.yaml:14: keep[6]: the build writes a file to "assets"; remove it from the list or from the build`,
		`r.yaml:15: keep[7]: "pt" is always written; remove it from the list`,
		`r.yaml:16: keep[8]: "otadata" is read through decryption, so what stands there now would read as noise; remove it from the list, or remove its flag encrypted in partitions.csv`,
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Error())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCheckRevision(t *testing.T) {
	const hold = "; put the board aside"
	build := func(chipName string, low, high chip.Revision, more ...string) *Layout {
		t.Helper()
		m := model(t, chipName)
		app := appSpec(m, 0x1000)
		app.MinChipRevFull, app.MaxChipRevFull = low, high
		l, err := Build(m, recipeFor(t, chipName, more...), replace(product(t, m), file(0x10000, "app.bin", mustBuild(t, app))))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tc := range []struct {
		name string
		l    *Layout
		rev  chip.Revision
		want []string
	}{
		{"no limits", build("esp32c3", 0, 0), 4, nil},
		{"at the limits", build("esp32c3", 3, 101, `min_chip_revision: "0.3"`, `max_chip_revision: "1.1"`), 3, nil},
		{"at the upper limits", build("esp32c3", 3, 101, `min_chip_revision: "0.3"`, `max_chip_revision: "1.1"`), 101, nil},
		{"below the recipe", build("esp32c3", 0, 0, `min_chip_revision: "0.3"`), 2, []string{"the chip is v0.2, the recipe allows v0.3 or newer" + hold}},
		{"above the recipe", build("esp32c3", 0, 0, `max_chip_revision: "0.3"`), 4, []string{"the chip is v0.4, the recipe allows v0.3 at most" + hold}},
		{"below the image", build("esp32c3", 3, 0), 2, []string{"app.bin at 0x10000: chip revision is outside the image's limits: the chip is v0.2, the image needs v0.3 or newer" + hold}},
		{"above the image", build("esp32c3", 0, 99), 101, []string{"app.bin at 0x10000: chip revision is outside the image's limits: the chip is v1.1, the image allows v0.99 at most" + hold}},
		{"below both", build("esp32c3", 3, 0, `min_chip_revision: "0.4"`), 1, []string{
			"the chip is v0.1, the recipe allows v0.4 or newer" + hold, "app.bin at 0x10000: chip revision is outside",
		}},
		{"release on an old ESP32", build("esp32", 0, 0, "profile: release"), 101, []string{
			"the chip is v1.1, and ESP32 ignores UART_DOWNLOAD_DIS before v3.0, which profile release needs; use ESP32 v3.0 or newer, or profile hybrid",
		}},
		{"release on a new ESP32", build("esp32", 0, 0, "profile: release"), 300, nil},
		{"hybrid on an old ESP32", build("esp32", 0, 0), 101, nil},
		{"release, and below the recipe", build("esp32", 0, 0, "profile: closed", `min_chip_revision: "1.1"`), 100, []string{
			"the chip is v1.0, the recipe allows v3.0 or newer" + hold,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.l.CheckRevision(tc.rev)
			var list Refusals
			if tc.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.As(err, &list) || len(list) != len(tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
			for i, r := range list {
				if !strings.HasPrefix(r.Error(), tc.want[i]) {
					t.Errorf("got  %v\nwant %s…", r, tc.want[i])
				}
			}
		})
	}
}

func TestCheckFlash(t *testing.T) {
	m := model(t, "esp32c3")
	l, err := Build(m, recipeFor(t, m.Name), product(t, m))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint32{4 << 20, 8 << 20} {
		if err := l.CheckFlash(size); err != nil {
			t.Errorf("%d: %v", size, err)
		}
	}
	err = l.CheckFlash(2 << 20)
	var r *Refusal
	if want := "the flash chip has 2048 KB, the recipe says 4MB; put the board aside, or correct flash_size and the build"; !errors.As(err, &r) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A table may describe bootloader and table as partitions of their own.
func TestPrimaryRows(t *testing.T) {
	m := model(t, "esp32")
	e := append([]partition.Entry{
		entry(partition.TypeBootloader, partition.SubtypePrimary, 0x1000, 0x7000, "bootloader", 0),
		entry(partition.TypePartitionTable, partition.SubtypePrimary, 0x8000, 0x1000, "table", 0),
	}, rows()...)
	l, err := Build(m, recipeFor(t, m.Name), replace(product(t, m), file(0x8000, "table.bin", table(t, e...))))
	if err != nil {
		t.Fatal(err)
	}
	checkTiles(t, l)
	if n := len(l.Regions); n != 6 || l.Regions[0].Kind != Bootloader || l.Regions[1].Kind != PartitionTable {
		t.Errorf("%d regions: %+v", n, l.Summary())
	}
}

// Copies of bootloader and table are encrypted like their originals.
func TestCopies(t *testing.T) {
	m := model(t, "esp32c3")
	e := append(rows(), entry(partition.TypeBootloader, partition.SubtypeOTA, 0x80000, 0x8000, "boot2", 0),
		entry(partition.TypePartitionTable, partition.SubtypeOTA, 0x88000, 0x1000, "table2", 0))
	files := replace(product(t, m), file(0x8000, "table.bin", table(t, e...)))
	files = append(files, file(0x80000, "boot.bin", mustBuild(t, bootSpec(m))), file(0x88000, "table.bin", table(t, e...)))
	l, err := Build(m, recipeFor(t, m.Name), files)
	if err != nil {
		t.Fatal(err)
	}
	checkTiles(t, l)
	for _, r := range l.Regions[len(l.Regions)-2:] {
		if !r.Encrypt {
			t.Errorf("%s is not encrypted", r.Name)
		}
	}
	if l.Regions[len(l.Regions)-2].Image == nil {
		t.Error("the copy of the bootloader is not known as an image, so its revision limits are not checked")
	}
}

// Random tables and files: a layout keeps its promises or is refused.
func TestProperties(t *testing.T) {
	models := []chip.Model{model(t, "esp32"), model(t, "esp32c3")}
	apps := map[string][]byte{}
	boots := map[string][]byte{}
	recipes := map[string]*recipe.Recipe{}
	for _, m := range models {
		apps[m.Name] = mustBuild(t, appSpec(m, 0x2345&^3))
		boots[m.Name] = mustBuild(t, bootSpec(m))
		recipes[m.Name] = recipeFor(t, m.Name)
		recipes[m.Name+" keep"] = recipeFor(t, m.Name, "keep: [p2]")
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := rapid.SampledFrom(models).Draw(rt, "chip")
		files := []recipe.File{file(m.BootloaderOffset, "boot", boots[m.Name])}
		var entries []partition.Entry
		at, slot := uint32(0x9000), partition.AppOTA0
		canKeep := false
		for i := range rapid.IntRange(1, 12).Draw(rt, "rows") {
			label := fmt.Sprintf("p%d", i)
			at += uint32(rapid.IntRange(0, 3).Draw(rt, "gap")) * Sector
			e := entry(partition.TypeData, partition.DataFAT, at, uint32(rapid.IntRange(1, 5*Sector).Draw(rt, "size")), label, 0)
			var data []byte
			switch kind := rapid.IntRange(0, 5).Draw(rt, "kind"); kind {
			case 0, 1:
				e.Type, e.Subtype, slot = partition.TypeApp, slot, slot+1
				e.Offset = (at + 0xFFFF) &^ 0xFFFF
				e.Size = uint32(rapid.IntRange(3, 8).Draw(rt, "sectors")) * Sector
				data = apps[m.Name]
			case 2:
				e.Subtype = partition.DataNVS
				data = noise(int(e.Size))
			default:
				if kind == 5 {
					e.Flags = partition.FlagEncrypted
				}
				data = noise(rapid.IntRange(1, int(e.Size)).Draw(rt, "length"))
			}
			if slot == partition.AppOTA0+1 && e.Type == partition.TypeApp || rapid.Bool().Draw(rt, "file") {
				files = append(files, file(e.Offset, label, data))
			} else if i == 2 && e.Type == partition.TypeData && e.Flags == 0 && e.Subtype != partition.DataNVS {
				canKeep = true
			}
			entries = append(entries, e)
			at = (e.Offset + e.Size + Sector - 1) &^ (Sector - 1)
		}
		if slot == partition.AppOTA0 {
			off := (at + 0xFFFF) &^ 0xFFFF
			entries = append(entries, entry(partition.TypeApp, partition.AppFactory, off, 0x10000, "factory", 0))
			files = append(files, file(off, "factory", apps[m.Name]))
		}
		files = append(files, file(0x8000, "table", table(t, entries...)))
		key := m.Name
		if canKeep && rapid.Bool().Draw(rt, "keep") {
			key += " keep"
		}
		l, err := Build(m, recipes[key], files)
		if err != nil {
			rt.Fatalf("%v", err)
		}
		checkTiles(rt, l)
		for _, r := range l.Regions {
			if len(r.Plain)%int(m.EncryptedAlign) != 0 || r.Offset%Sector != 0 {
				rt.Fatalf("%s: offset 0x%x, length 0x%x", r.Name, r.Offset, len(r.Plain))
			}
			e, ok := l.Table.Find(r.Name)
			if want := !ok || e.Type == partition.TypeApp || e.Flags == partition.FlagEncrypted; r.Encrypt != want {
				rt.Fatalf("%s: encrypted is %v", r.Name, r.Encrypt)
			}
		}
		for _, f := range files {
			i := slices.IndexFunc(l.Regions, func(r Region) bool { return r.Offset == f.Offset })
			if i < 0 || !bytes.Equal(l.Regions[i].Plain[:len(f.Data)], f.Data) {
				rt.Fatalf("%s is not written", f.Path)
			}
		}
		if kept := strings.HasSuffix(key, "keep"); kept != slices.ContainsFunc(l.Untouched, func(r Range) bool { return r.Name == "p2" }) {
			rt.Fatalf("p2 kept is %v: %+v", kept, l.Untouched)
		}
	})
}

// images finds ../shared/images beside the repository.
func images(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		shared := filepath.Join(dir, "../shared/images")
		if _, err := os.Stat(shared); err == nil {
			return shared
		}
		break
	}
	t.Skip("needs ../shared/images")
	return ""
}

// Real builds, through the recipe as a user would name them.
func TestRealImages(t *testing.T) {
	shared := images(t)
	for _, tc := range []struct {
		chip    string
		regions []string
		tail    bool // the bootloader leaves whole sectors before the table
	}{
		{"esp32", []string{"bootloader 0x1000 0x68a0", "partition-table 0x8000 0x1000", "otadata 0xd000 0x2000", "factory 0x10000 0x92ee0"}, false},
		{"esp32c3", []string{"bootloader 0x0 0x4550", "partition-table 0x8000 0x1000", "otadata 0xd000 0x2000", "factory 0x10000 0x220"}, true},
	} {
		t.Run(tc.chip, func(t *testing.T) {
			text := fmt.Sprintf("recipe: real\nrevision: 1\nchip: %s\nbuild: %s\nflash_size: 4MB\nprofile: hybrid\nboot_check: {expect: app running}\n",
				tc.chip, filepath.Join(shared, tc.chip))
			r, err := recipe.Parse("r.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			files, err := r.LoadImages()
			if err != nil {
				t.Fatal(err)
			}
			l, err := Build(r.Model(), r, files)
			if err != nil {
				t.Fatal(err)
			}
			checkTiles(t, l)
			var got []string
			for _, s := range l.Summary() {
				if !s.Encrypted || s.FileSHA256 == "" {
					t.Errorf("%+v", s)
				}
				got = append(got, fmt.Sprintf("%s 0x%x 0x%x", s.Name, s.Offset, s.Length))
			}
			if diff := cmp.Diff(tc.regions, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			var erased []string
			for _, e := range l.Erase {
				erased = append(erased, e.Name)
			}
			want := []string{"nvs", "phy_init", "factory", "ota_0", "ota_1", "nvs_keys", "storage"}
			if tc.tail {
				want = append([]string{"bootloader"}, want...)
			}
			if !slices.Equal(erased, want) {
				t.Errorf("erased %v, want %v", erased, want)
			}
			// Both headers say 2MB, which is set right on the way to flash.
			if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "says 2MB of flash") {
				t.Errorf("warnings: %q", l.Warnings)
			}
			for _, rev := range []chip.Revision{3, 300, 301, 4} {
				if err := l.CheckRevision(rev); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	m := model(b, "esp32")
	r, files := recipeFor(b, m.Name), product(b, m)
	for b.Loop() {
		if _, err := Build(m, r, files); err != nil {
			b.Fatal(err)
		}
	}
}
