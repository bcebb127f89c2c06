package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

func TestDocumentIsCurrent(t *testing.T) {
	want, err := document()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/chips.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/chips.md does not match models and tables: run go generate ./efuse")
	}
}

// The page has what somebody who signs a product off looks for: BLOCK0 of F.5, the
// trap, and that nobody tried it.
func TestDocumentSays(t *testing.T) {
	text, err := document()
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for part := range strings.SplitSeq(string(text), "\n## ") {
		title, _, _ := strings.Cut(part, "\n")
		sections[title] = part
	}
	for title, want := range map[string][]string{
		"ESP32":     {"`07f10088 00000000 00000000 00000000 00000000 f0000000 000003c4`", "`0ff10088", "CVE-2023-35818"},
		"ESP32-S2":  {"`00800104 000c8c01 041c0000 00000000 00000022 00000000`", "xts-256"},
		"ESP32-S3":  {"`00800104 00180c01 041c0000 00400000 00000022 00000000`"},
		"ESP32-C2":  {"`00000080 000083f1`", "`00000084 000183f1`", "with `XTS_KEY_LENGTH_256`", "26 or 40 MHz, which is measured"},
		"ESP32-C3":  {"`00800104 00180601 041c0000 00000000 00000022 00000000`", "`KEY5` never"},
		"ESP32-C5":  {"`00800104 00182201 01070000 00000000 08000022 00000000`", "stays at 115200"},
		"ESP32-C6":  {"`00800104 00180601 041c0000 00000000 00000022 00000000`", "its watchdog cannot"},
		"ESP32-C61": {"`00800104 03806901 00000004 08000012 00000000 00000000`", "(weak)"},
		"ESP32-H2":  {"`00800104 40180201 041c0000 00000000 00000022 00000000`", "Fuses before v1.2", "Fuses from v1.2 on"},
		"ESP32-P4":  {"`00800100 00182201 041c0000 00000000 00000022 00010000`", "Fuses before v3.0", "ROM-816", "without supply"},
	} {
		for _, w := range append(want, "Never tried on silicon") {
			if !strings.Contains(sections[title], w) {
				t.Errorf("%s: does not say %q", title, w)
			}
		}
	}
	for _, a := range chip.AllAdvisories() {
		if !strings.Contains(sections["Advisories"], "| "+a.ID+" |") {
			t.Errorf("advisory %s is missing", a.ID)
		}
	}
}

func TestRun(t *testing.T) {
	name := t.TempDir() + "/chips.md"
	if err := run(name); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.HasPrefix(b, []byte("<!-- Code generated")) {
		t.Errorf("%.40s, %v", b, err)
	}
}
