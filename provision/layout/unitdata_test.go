package layout

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/provision/recipe"
)

// unitRecipe is the sample recipe with a partition for a unit's own text.
func unitRecipe(t *testing.T, label, template string, more ...string) *recipe.Recipe {
	t.Helper()
	dir := t.TempDir()
	text := "recipe: product\nrevision: 1\nchip: esp32c3\nbuild: build\nflash_size: 4MB\nboot_check: {expect: app running}\nprofile: hybrid\n" +
		"unit_data: {partition: " + label + ", template: unit.tmpl}\n" + strings.Join(more, "\n") + "\n"
	for name, data := range map[string]string{"r.yaml": text, "unit.tmpl": template} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := recipe.Load(filepath.Join(dir, "r.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bare is the sample product without files for data partitions.
func bare(t *testing.T) []recipe.File {
	t.Helper()
	return without(without(product(t, model(t, "esp32c3")), 0x71000), 0x74000)
}

func TestUnitData(t *testing.T) {
	c3 := model(t, "esp32c3")
	l, err := Build(c3, unitRecipe(t, "storage", "hello {{.MAC}}"), bare(t))
	if err != nil {
		t.Fatal(err)
	}
	checkTiles(t, l)
	if u := l.UnitData; u == nil || u.Offset != 0x71000 || u.Size != 0x3000 || u.Name != "storage" {
		t.Fatalf("%+v", l.UnitData)
	}
	for _, list := range [][]Range{l.Erase, l.Untouched} {
		for _, r := range list {
			if r.Offset < 0x74000 && r.End() > 0x71000 {
				t.Errorf("%+v is erased or left alone", r)
			}
		}
	}
	text := []byte("hello 24:0a:c4:00:00:01")
	want := append(bytes.Clone(text), bytes.Repeat([]byte{0xFF}, 0x3000-len(text))...)
	got, sum, err := l.EncryptUnit(xor{}, text)
	if err != nil || len(got.Data) != 0x3000 || sum != sha256.Sum256(want) || got.Plain != nil {
		t.Fatalf("%d bytes, plain %v: %v", len(got.Data), got.Plain, err)
	}
	if !bytes.Equal(text, make([]byte, len(text))) {
		t.Error("the text was not wiped")
	}
	back := make([]byte, len(got.Data))
	if err := (xor{}).Encrypt(back, got.Data, got.Offset); err != nil || !bytes.Equal(back, want) {
		t.Errorf("what is encrypted is not the text and padding: %v", err)
	}
	if _, _, err := l.EncryptUnit(xor{}, make([]byte, 0x3001)); err == nil {
		t.Error("a text larger than the partition is taken")
	}
	if _, _, err := l.EncryptUnit(noCipher{}, []byte("a")); err == nil {
		t.Error("a cipher that does nothing is taken")
	}
	other, err := Build(c3, unitRecipe(t, "storage", "hello {{.MAC}}!"), bare(t))
	if err != nil {
		t.Fatal(err)
	}
	if other.Hash() == l.Hash() {
		t.Error("another template has the same hash")
	}
	last := l.Summary()[len(l.Summary())-1]
	if last.Kind != UnitData || last.SHA256 != "" || !last.Encrypted || last.Length != 0x3000 || last.FileSHA256 == "" {
		t.Errorf("%+v", last)
	}
}

func TestUnitDataRefused(t *testing.T) {
	c3 := model(t, "esp32c3")
	big := rows()
	big[8] = entry(partition.TypeData, partition.DataUndefined, 0x74000, 0x11000, "assets", partition.FlagEncrypted)
	for _, x := range []struct {
		label, template string
		rows            []partition.Entry
		files           []recipe.File
		want            string
	}{
		{"none", "a", rows(), nil, `the partition table has no "none"`},
		{"factory", "a", rows(), nil, "is no partition for data of one's own"},
		{"nvs", "a", rows(), nil, "is no partition for data of one's own"},
		{"nvs_keys", "a", rows(), nil, "is no partition for data of one's own"},
		{"otadata", "a", rows(), nil, "is no partition for data of one's own"},
		{"assets", "a", rows(), nil, "has no flag encrypted"},
		{"storage", "a", rows(), []recipe.File{file(0x71000, "s.bin", make([]byte, 16))}, `the build writes a file to "storage"`},
		{"assets", "a", big, nil, "is larger than 65536 bytes"},
		{"storage", strings.Repeat("x", 0x3001), rows(), nil, "can have 12289"},
		{"storage", strings.Repeat("x", 0x3000-63) + "{{.Serial}}", rows(), nil, "can have 12289"},
	} {
		files := append(replace(bare(t), file(0x8000, "table.bin", table(t, x.rows...))), x.files...)
		_, err := Build(c3, unitRecipe(t, x.label, x.template), files)
		if err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "r.yaml:8: unit_data") {
			t.Errorf("%s: %v; want %q", x.label, err, x.want)
		}
	}
	r, err := recipe.Parse("r.yaml", []byte("recipe: product\nrevision: 1\nchip: esp32c3\nbuild: build\nflash_size: 4MB\nboot_check: {expect: app running}\nprofile: hybrid\nunit_data: {partition: storage, template: a}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(c3, r, bare(t)); err == nil || !strings.Contains(err.Error(), "was not read") {
		t.Errorf("a template that was not read: %v", err)
	}
}
