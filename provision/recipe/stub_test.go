package recipe

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
)

// stubText is a stub's file that is no real stub: this project has none.
func stubText(first byte) []byte {
	return rom.Stub{Entry: 0x40380000, TextStart: 0x40380000, Text: []byte{first, 1, 2, 3}, DataStart: 0x3FC80000, Data: []byte{4}}.Encode()
}

func TestStubField(t *testing.T) {
	r := parse(t, good+"stub: stubs\n")
	if r.Stub != "stubs" || !strings.Contains(string(r.Encode()), "stub: \"stubs\"\n") {
		t.Errorf("%q: %s", r.Stub, r.Encode())
	}
	if again := parse(t, string(r.Encode())); again.Stub != "stubs" {
		t.Errorf("%q", again.Stub)
	}
	// A stub is no part of what a unit becomes.
	if r.Hash() != parse(t, good).Hash() {
		t.Error("the stub changes the hash")
	}
	if _, ok := r.FlasherStub(4); ok {
		t.Error("Parse read a file")
	}
	if _, err := Parse("r.yaml", []byte(good+"stub: 5\n")); err == nil {
		t.Error("a number is taken")
	}
}

func TestLoadStub(t *testing.T) {
	p4 := strings.NewReplacer("esp32c3", "esp32p4", "min_chip_revision: \"0.3\"\n", "", "profile: release", "profile: hybrid").Replace(good)
	for _, c := range []struct {
		name, text string
		files      map[string][]byte
		want       string // an error's text; empty: it loads
	}{
		{"C3", good, map[string][]byte{"esp32c3.json": stubText(1)}, ""},
		{"missing", good, map[string][]byte{"esp32.json": stubText(1)}, "esp32c3.json"},
		{"no stub", good, map[string][]byte{"esp32c3.json": []byte("{}")}, "entry, text and text_start"},
		{"P4, both kinds of silicon", p4, map[string][]byte{"esp32p4.json": stubText(1), "esp32p4-rev1.json": stubText(2)}, ""},
		{"P4, old silicon's is missing", p4, map[string][]byte{"esp32p4.json": stubText(1)}, "esp32p4-rev1.json"},
		{"P4 from v3.0 on", p4 + "min_chip_revision: \"3.0\"\n", map[string][]byte{"esp32p4.json": stubText(1)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "stubs"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, b := range c.files {
				if err := os.WriteFile(filepath.Join(dir, "stubs", name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "r.yaml")
			if err := os.WriteFile(file, []byte(c.text+"stub: stubs\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := Load(file)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "stub:") {
					t.Errorf("%v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, newest := r.RevisionLimits()
			s, ok := r.FlasherStub(newest)
			if !ok || s.Stub.Text[0] != 1 || s.SHA256 != sha256.Sum256(stubText(1)) {
				t.Errorf("%+v", s)
			}
			if old, ok := r.FlasherStub(103); ok && r.Chip == "esp32p4" && r.MinChipRevision == 0 && old.Stub.Text[0] != 2 {
				t.Errorf("old silicon: %+v", old)
			}
		})
	}
}
