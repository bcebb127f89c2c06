package recipe_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/provision/recipe"
)

const unitRecipe = `recipe: sample
revision: 3
chip: esp32c3
images: [{offset: 0x0, file: a.bin}]
flash_size: 4MB
profile: hybrid
boot_check: {expect: "app running"}
unit_data: {partition: unit, template: unit.tmpl}
`

// loadUnit loads a recipe with a template.
func loadUnit(t *testing.T, template string) (*recipe.Recipe, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"r.yaml": unitRecipe, "unit.tmpl": template} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return recipe.Load(filepath.Join(dir, "r.yaml"))
}

var unitFields = recipe.UnitFields{
	MAC: "24:0a:c4:00:00:01", Serial: `A "1"`, Lot: "lot 7", Station: "bench", Recipe: "sample", Revision: 3, Chip: "esp32c3",
}

func TestUnitTemplate(t *testing.T) {
	mark := strings.Repeat("\x00", recipe.OTATokenText)
	for template, want := range map[string]string{
		"":           "",
		"plain text": "plain text",
		"{{.MAC}} {{.Lot}} {{.Station}} {{.Recipe}} {{.Revision}} {{.Chip}}":                "24:0a:c4:00:00:01 lot 7 bench sample 3 esp32c3",
		`{{replace .MAC ":" "" | upper}} {{lower "ABC"}}`:                                   "240AC4000001 abc",
		`{"s": {{json .Serial}}, "n": {{json .Revision}}}`:                                  `{"s": "A \"1\"", "n": 3}`,
		"{{if .Serial}}{{.Serial}}{{else}}none{{end}}":                                      `A "1"`,
		`{{if and (eq .Chip "esp32c3") (ne .Lot "")}}yes{{end}}{{if not .Serial}}no{{end}}`: "yes",
		"{{.OTAToken}}":        mark,
		"a{{json .OTAToken}}b": `a"` + mark + `"b`,
		"{{.OTAToken | json}}{{.OTAToken}}{{.OTAToken}}": `"` + mark + `"` + mark + mark,
	} {
		r, err := loadUnit(t, template)
		if err != nil {
			t.Errorf("%q: %v", template, err)
			continue
		}
		got, err := r.Template.Render(unitFields)
		if err != nil || string(got.Text) != want {
			t.Errorf("%q gives %q, %v; want %q", template, got.Text, err, want)
		}
		if n := strings.Count(want, mark); len(got.Tokens) != n || r.Template.NeedsToken() != (n > 0) {
			t.Errorf("%q: tokens at %v", template, got.Tokens)
		}
		for _, at := range got.Tokens {
			if !bytes.HasPrefix(got.Text[at:], []byte(mark)) {
				t.Errorf("%q: no room for a token at %d", template, at)
			}
		}
		if r.Template.MaxLen() < len(got.Text) {
			t.Errorf("%q: %d bytes for the longest unit, %d for this one", template, r.Template.MaxLen(), len(got.Text))
		}
	}
}

// A template that could fail on a unit is refused when the recipe is read, with its
// line, also in branches that no unit may take.
func TestUnitTemplateRefused(t *testing.T) {
	for template, want := range map[string]string{
		"one\n{{.Mac}}": "unit.tmpl:2: unknown field .Mac",
		"{{if .Lot}}{{else}}\n\n{{.Password}}{{end}}": "unit.tmpl:3: unknown field .Password",
		"{{.MAC.Len}}":              "unknown field .MAC.Len",
		"\n{{printf \"%s\" .MAC}}":  "unit.tmpl:2: unknown function printf",
		"{{len .MAC}}":              "unknown function len",
		"{{index .MAC 0}}":          "unknown function index",
		"{{env \"HOME\"}}":          "unit.tmpl:1",
		"{{range .MAC}}{{end}}":     "cannot stand in a template",
		"{{with .MAC}}{{.}}{{end}}": "cannot stand in a template",
		"{{.}}":                     "cannot stand in a template",
		"{{$x := .MAC}}":            "has a variable",
		"{{define \"a\"}}x{{end}}":  "defines another template",
		"{{.MAC":                    "unit.tmpl:1",
		"a\n\x00":                   "unit.tmpl:2: holds a NUL byte",
		"{{upper .OTAToken}}":       "something is made of .OTAToken",
		"{{if .Lot}}{{else}}{{.OTAToken | lower}}{{end}}": "something is made of .OTAToken",
		"{{json (json .OTAToken)}}":                       "something is made of .OTAToken",
		"{{eq .OTAToken .MAC}}":                           "something is made of .OTAToken",
		"{{upper .Revision}}":                             "unit.tmpl:1",
	} {
		_, err := loadUnit(t, template)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", template, err, want)
		}
	}
	if _, err := recipe.Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("a missing recipe loads")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "r.yaml"), []byte(unitRecipe), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recipe.Load(filepath.Join(dir, "r.yaml")); err == nil || !strings.Contains(err.Error(), "r.yaml:8: unit_data.template") {
		t.Errorf("a missing template: %v", err)
	}
}

// A unit that lacks what the text has no sense without is seen.
func TestUnitTemplateMissing(t *testing.T) {
	for template, want := range map[string]string{
		"{{.MAC}}": "", "{{.Serial}}": "Serial", "{{if .Serial}}{{.Serial}}{{end}}": "", "{{.Lot}}{{.Serial}}": "Serial", "{{.Lot}}": "Lot",
	} {
		r, err := loadUnit(t, template)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Template.Missing(recipe.UnitFields{MAC: unitFields.MAC, Station: "bench"}); got != want {
			t.Errorf("%q: %q is missing, want %q", template, got, want)
		}
		if got := r.Template.Missing(unitFields); got != "" {
			t.Errorf("%q: %q is missing", template, got)
		}
	}
	r, err := loadUnit(t, "{{.Serial}}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Template.Render(recipe.UnitFields{Serial: "a\x00b"}); err == nil {
		t.Error("a NUL byte of a serial number is taken")
	}
}

// The template's bytes belong to the recipe's meaning.
func TestUnitTemplateHash(t *testing.T) {
	a, errA := loadUnit(t, "{{.MAC}}")
	b, errB := loadUnit(t, "{{.MAC}} ")
	again, errC := loadUnit(t, "{{.MAC}}")
	if errA != nil || errB != nil || errC != nil {
		t.Fatal(errA, errB, errC)
	}
	if a.Hash() == b.Hash() || a.Hash() != again.Hash() {
		t.Error("the recipe's hash does not go with the template")
	}
	plain, err := recipe.Parse("r.yaml", []byte(strings.Replace(unitRecipe, "unit_data: {partition: unit, template: unit.tmpl}\n", "", 1)))
	if err != nil || plain.Hash() == a.Hash() {
		t.Errorf("unit data are not in the hash: %v", err)
	}
	back, err := recipe.Parse("r.yaml", a.Encode())
	if err != nil || *back.UnitData != *a.UnitData {
		t.Errorf("Encode: %v", err)
	}
}

func FuzzUnitTemplate(f *testing.F) {
	for _, s := range []string{"{{.MAC}}", `{{json .Serial}} {{if eq .Lot "a"}}{{.OTAToken}}{{else}}x{{end}}`, "{{.Serial | upper}}", "{{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, template string) {
		r, err := loadUnit(t, template)
		if err != nil {
			return
		}
		if got, err := r.Template.Render(unitFields); err == nil && bytes.Count(got.Text, []byte{0}) != len(got.Tokens)*recipe.OTATokenText {
			t.Errorf("%q gives %q", template, got.Text)
		}
	})
}
