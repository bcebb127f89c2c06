package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// TestJournalInUse reads a journal that a station is writing: from its copy, with
// a word about it. What has to write is refused, with the name of who is in the way.
func TestJournalInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	site := filepath.Join(dir, "site")
	anchorDir := filepath.Join(dir, "anchor")
	if err := os.Mkdir(anchorDir, 0o700); err != nil {
		t.Fatal(err)
	}
	do := func(code int, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, errOut bytes.Buffer
		if got := run(t.Context(), args, strings.NewReader(""), &out, &errOut, nil); got != code {
			t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, &out, &errOut)
		}
		return out.String(), errOut.String()
	}
	do(0, "demo", "--units", "1", "--chip", "esp32c3", "--profile", "development", "--dir", site, "--json", "--anchor", anchorDir)
	path := filepath.Join(site, "journal.db")
	unit := "02:0d:00:00:01:01"

	anchor, err := journal.NewDirAnchor(anchorDir, "demo")
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(path, journal.WithAnchor(anchor), journal.WithInterval(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	if _, err := j.Append(t.Context(), journal.Entry{Step: "station-start", Kind: journal.KindStation, Payload: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	size, _ := j.Head()

	told := func(stderr string) {
		t.Helper()
		for _, want := range []string{path + " is in use by ", fmt.Sprintf("(process %d)", os.Getpid()), path + ".jsonl", fmt.Sprintf("%d entries", size)} {
			if !strings.Contains(stderr, want) {
				t.Errorf("no %q in %s", want, stderr)
			}
		}
	}
	stdout, stderr := do(0, "journal", "show", path)
	told(stderr)
	if !strings.Contains(stdout, "station-start") || strings.Count(stdout, "\n") != int(size) {
		t.Errorf("it shows\n%s", stdout)
	}
	stdout, stderr = do(0, "journal", "show", path, "--unit", unit)
	told(stderr)
	if !strings.Contains(stdout, "verdict") {
		t.Errorf("it shows\n%s", stdout)
	}
	stdout, stderr = do(0, "journal", "export", path)
	told(stderr)
	if strings.Count(stdout, "\n") != int(size) {
		t.Errorf("it exports\n%s", stdout)
	}
	stdout, _ = do(0, "journal", "verify", path, "--anchor", anchorDir, "--public-key", journal.PublicKeyPath(path), "--json")
	var rep struct {
		Entries  uint64
		Live     bool
		Anchored bool
		Unsigned uint64
	}
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || rep.Entries != size || !rep.Live || !rep.Anchored || rep.Unsigned != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	for _, args := range [][]string{
		{"audit", "lot", "--journal", path, "--format", "csv"},
		{"audit", "unit", unit, "--journal", path},
		{"audit", "inventory", "--journal", path},
		{"audit", "reconcile", "--journal", path, "--keystore", filepath.Join(site, "keystore.db")},
	} {
		stdout, stderr = do(0, args...)
		told(stderr)
		if !strings.Contains(stdout, unit) && !strings.Contains(stdout, " 0 findings") {
			t.Errorf("%v: %s", args, stdout)
		}
	}
	_, stderr = do(provision.ExitJournal, "journal", "checkpoint", path)
	if !strings.Contains(stderr, "is in use by ") || !strings.Contains(stderr, "next: wait for it to end") {
		t.Errorf("a command that writes: %s", stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "provisiond-journal-*", "journal.db")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// A copy that was changed is no journal.
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = journal.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	b, err := os.ReadFile(journal.CopyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(b, []byte(`"PASS"`), []byte(`"FAIL"`), 1)
	if err := errors.Join(os.WriteFile(journal.CopyPath(path), changed, 0o600)); err != nil || bytes.Equal(b, changed) {
		t.Fatal(err)
	}
	_, stderr = do(provision.ExitJournal, "journal", "show", path)
	if !strings.Contains(stderr, "does not follow the entry before it") {
		t.Errorf("%s", stderr)
	}
}

// TestTornCommitIsTold: what a power cut left is told, and everything goes on.
func TestTornCommitIsTold(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j.db")
	if err := journal.Init(path, journal.Options{Station: "s"}); err != nil {
		t.Fatal(err)
	}
	// The meta page with the higher transaction id is torn: bbolt's pages are as
	// large as the system's, the first two are metas.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	txid := func(page int64) byte {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, page*int64(os.Getpagesize())+16+48); err != nil {
			t.Fatal(err)
		}
		return b[0]
	}
	torn := int64(0)
	if txid(1) < txid(0) {
		torn = 1
	}
	if _, err := f.WriteAt([]byte{0xFF}, torn*int64(os.Getpagesize())+16+24); err != nil { // the older one: no entry is lost
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"journal", "show", path}, nil, &out, &errOut, nil); code != 0 || !strings.Contains(errOut.String(), "newest commit is torn") {
		t.Errorf("exit code %d: %s%s", code, &out, &errOut)
	}
}
