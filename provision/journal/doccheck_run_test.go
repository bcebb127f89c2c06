package journal_test

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/journal"
)

// TestDocCheckStandsAlone: the checker imports the standard library and no more.
func TestDocCheckStandsAlone(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "doccheck_test.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		if path, err := strconv.Unquote(i.Path.Value); err != nil || strings.Contains(path, ".") {
			t.Errorf("it imports %s", path)
		}
	}
}

// TestDocCheckVectors runs the checker over the vectors of docs/journal.md.
func TestDocCheckVectors(t *testing.T) {
	doc, err := os.ReadFile("../../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	var leaves [][32]byte
	text := string(doc)
	j := docJournal{id: "000102030405060708090a0b0c0d0e0f", station: "bench-1"}
	for _, line := range "abcdefg" {
		leaves = append(leaves, [32]byte(journal.HashLine([]byte(string(line)))))
		if root := docRoot(leaves); !strings.Contains(text, fmt.Sprintf("    %x\n", root)) {
			t.Errorf("the document lacks the root of %d leaves, %x", len(leaves), root)
		}
	}
	j.leaves = leaves
	var public, note string
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(line, "    ")
		if strings.HasPrefix(line, "provisiond/journal/"+j.id+"+") {
			public = strings.TrimSpace(line)
		}
		if strings.HasPrefix(line, "provisiond/journal/"+j.id+"\n") || note != "" && !strings.HasSuffix(note, "=\n") || note != "" && !strings.Contains(note, "— ") {
			note += line
		}
	}
	if err := j.checkpoint(note, public); err != nil || j.signed != 7 {
		t.Errorf("%v\n%q\n%s", err, note, public)
	}
}

// TestDocCheck lets the checker read a journal, and then the same with every kind
// of change.
func TestDocCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := journal.Init(path, journal.Options{Station: "bänch \"1\""}); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	public := j.Info().PublicKey
	add := func(e journal.Entry, payload string) {
		t.Helper()
		e.Payload = []byte(payload)
		if _, err := j.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for n := range byte(5) {
		mac, job := chip.MAC{2, 0, 0, 0, 0, n}, fmt.Sprint("job-", n)
		add(journal.Entry{Slot: "A3", Step: "connect", Kind: journal.KindIntent}, `{"port":"x"}`)
		add(journal.Entry{Slot: "A3", Step: "connect", Kind: journal.KindObserved, Unit: mac, Job: job}, `{"a":[1,-2,null,true,{"b":"\u0001\n\u2028ü\\\""}]}`)
		add(journal.Entry{Slot: "A3", Step: "burn", Kind: journal.KindIntent, Unit: mac, Job: job}, `{}`)
		add(journal.Entry{Slot: "A3", Step: "burn", Kind: journal.KindObserved, Unit: mac, Job: job}, `{"z":9007199254740991}`)
		add(journal.Entry{Slot: "A3", Step: "verdict", Kind: journal.KindVerdict, Unit: mac, Job: job}, `{"verdict":"PASS"}`)
		if _, err := j.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(journal.CopyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	lines, checkpoints, err := docCopy(content)
	if err != nil {
		t.Fatal(err)
	}
	found, err := docCheck(lines, checkpoints, public)
	if err != nil || found.signed != 26 || len(found.leaves) != 26 || len(checkpoints) != 6 {
		t.Fatalf("%v: %d of %d signed, %d checkpoints", err, found.signed, len(found.leaves), len(checkpoints))
	}

	with := func(change func(l [][]byte) [][]byte) [][]byte {
		return change(append([][]byte(nil), lines...))
	}
	for name, changed := range map[string][][]byte{
		"dropped": with(func(l [][]byte) [][]byte { return append(l[:7:7], l[8:]...) }),
		"cut":     lines[:25],
		"swapped": with(func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }),
		"doubled": with(func(l [][]byte) [][]byte { return append(l[:8:8], l[7:]...) }),
		"changed": with(func(l [][]byte) [][]byte { l[25] = bytes.Replace(l[25], []byte("PASS"), []byte("FAIL"), 1); return l }),
		"spaced":  with(func(l [][]byte) [][]byte { l[9] = append(bytes.Clone(l[9]), ' '); return l }),
	} {
		if _, err := docCheck(changed, checkpoints, public); err == nil {
			t.Errorf("%s: not found", name)
		}
	}
	forged := bytes.Replace(checkpoints[3], []byte("\nstation "), []byte("\nstation x"), 1)
	if _, err := docCheck(lines, [][]byte{forged}, public); err == nil {
		t.Error("a changed checkpoint is not found")
	}
}
