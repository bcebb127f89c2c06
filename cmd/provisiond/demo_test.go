package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDemo reads the table as a visitor does.
func TestDemo(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"demo", "--units", "2"}, nil, &out, &errOut, nil); code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errOut)
	}
	for _, want := range []string{
		`(?m)^UNIT +CHIP +VERDICT +SECONDS +KEY +CLOSING SHOWN BY$`,
		`(?m)^02:0d:\S+ +esp32 v3\.0 +PASS +\d+\.\d +[0-9a-f]{8}… +rom-refusal$`,
		`(?m)^02:0d:\S+ +esp32c3 v0\.4 +PASS +\d+\.\d +[0-9a-f]{8}… +security-flags$`,
		`(?m)^2 simulated units, profile release: 2 PASS$`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in\n%s", want, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	// No terminal: a line for each step and verdict, and nothing that moves a cursor.
	if strings.Contains(out.String()+errOut.String(), "\x1b") {
		t.Error("escape sequences without a terminal")
	}
	for _, want := range []string{`(?m)^slot-1 \(new unit\) +1/14 connect$`, `(?m)^slot-[12] 02:0d:\S+ 10/14 enable-encryption$`, `(?m)^slot-2 02:0d:\S+ PASS$`} {
		if !regexp.MustCompile(want).MatchString(errOut.String()) {
			t.Errorf("no %s in\n%s", want, &errOut)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "provisiond-demo-*")); len(left) > 0 {
		for _, l := range left { // another test's demo may be running
			if _, err := os.Stat(filepath.Join(l, "journal.db")); err == nil && strings.Contains(out.String(), l) {
				t.Errorf("%s was left", l)
			}
		}
	}
}

// TestDemoJSON: one object per unit with every field of the issue, and --dir
// keeps what other commands can go on with.
func TestDemoJSON(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "site")
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"demo", "--units", "3", "--slots", "3", "--json", "--dir", dir}, nil, &out, &errOut, nil); code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errOut)
	}
	if errOut.Len() > 0 {
		t.Errorf("with --json, on standard error: %s", &errOut)
	}
	var units []map[string]any
	for line := range strings.Lines(out.String()) {
		var u map[string]any
		if err := json.Unmarshal([]byte(line), &u); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		units = append(units, u)
	}
	if len(units) != 3 {
		t.Fatalf("%d objects", len(units))
	}
	for i, u := range units {
		checkUnitObject(t, u)
		if u["chip"] != []string{"esp32", "esp32c3"}[i%2] {
			t.Errorf("unit %d is an %v", i, u["chip"])
		}
	}

	// What was kept: a keystore, a journal and recipes that work.
	for _, args := range [][]string{
		{"keystore", "describe", filepath.Join(dir, "keystore.db"), "--identity", filepath.Join(dir, "keystore.db.identity")},
		{"journal", "verify", filepath.Join(dir, "journal.db")},
		{"plan", "--recipe", filepath.Join(dir, "sample-esp32.yaml")},
		{"plan", "--recipe", filepath.Join(dir, "sample-esp32c3.yaml")},
	} {
		out.Reset()
		if code := run(t.Context(), args, nil, &out, &errOut, nil); code != 0 {
			t.Errorf("%v: exit code %d: %s", args, code, &errOut)
		}
	}
	// A second demo in the same folder goes on there, with new units.
	out.Reset()
	if code := run(t.Context(), []string{"demo", "--units", "1", "--chip", "esp32c3", "--profile", "development", "--json", "--dir", dir}, nil, &out, &errOut, nil); code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errOut)
	}
	var again map[string]any
	if err := json.Unmarshal(out.Bytes(), &again); err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		if u["unit"] == again["unit"] {
			t.Errorf("unit %v came twice", u["unit"])
		}
	}
	if again["profile"] != "development" || again["closing"] != nil {
		t.Errorf("development: %v, closing %v", again["profile"], again["closing"])
	}
}

// checkUnitObject holds one object against the list in the issue.
func checkUnitObject(t *testing.T, u map[string]any) {
	t.Helper()
	shape := map[string]string{
		"unit": "^02:0d(:[0-9a-f]{2}){4}$", "simulated": "^true$", "chip": "^esp32(c3)?$", "revision": `^v\d+\.\d+$`,
		"verdict": "^PASS$", "reason": "^$", "next_step": "^$", "job": "^[0-9a-f]{16}$",
		"recipe": "^sample-", "recipe_revision": "^1$", "profile": "^release$",
		"key_ref": ".", "key_fingerprint": "^[0-9a-f]{64}$", "plan_sha256": "^[0-9a-f]{64}$",
		"baud":          `^921600$`,
		"bytes_written": "^[1-9]", "elapsed_ms": "^[1-9]",
		"efuse_before": "^\\[", "efuse_after": "^\\[", "images": "^\\[", "steps": "^\\[", "closing": "^map",
	}
	for field, want := range shape {
		if got := fmt.Sprint(u[field]); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s is %q, want %s", field, got, want)
		}
	}
	for field := range u {
		if _, ok := shape[field]; !ok {
			t.Errorf("field %s is not in docs/cli.md", field)
		}
	}
	list := func(field string) []map[string]any {
		var out []map[string]any
		items, _ := u[field].([]any)
		for _, i := range items {
			m, _ := i.(map[string]any)
			out = append(out, m)
		}
		return out
	}
	for _, field := range []string{"efuse_before", "efuse_after"} {
		blocks := list(field)
		if len(blocks) < 4 || blocks[0]["block"] != "BLOCK0" {
			t.Errorf("%s: %v", field, blocks)
		}
	}
	images := list("images")
	if len(images) != 4 {
		t.Errorf("%d images", len(images))
	}
	for _, i := range images {
		if _, ok := i["offset"].(float64); !ok || len(fmt.Sprint(i["plaintext_sha256"])) != 64 || len(fmt.Sprint(i["ciphertext_sha256"])) != 64 ||
			i["plaintext_sha256"] == i["ciphertext_sha256"] {
			t.Errorf("image %v", i)
		}
	}
	var steps []string
	for _, s := range list("steps") {
		steps = append(steps, fmt.Sprint(s["name"]))
		if _, ok := s["ms"].(float64); !ok {
			t.Errorf("step %v", s)
		}
	}
	want := []string{
		"connect", "inspect", "plan", "flash", "verify-flash", "custody", "burn-key", "protect-key", "burn-lockdown",
		"enable-encryption", "boot-check", "write-protect", "close", "proof",
	}
	if d := cmp.Diff(want, steps); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
	closing, _ := u["closing"].(map[string]any)
	for _, field := range []string{"fuse", "evidence", "raw"} {
		if s, _ := closing[field].(string); s == "" {
			t.Errorf("closing has no %s: %v", field, closing)
		}
	}
}
