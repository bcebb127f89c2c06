package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTruncatedJournal: the real binary on a database that was cut off. Its child
// may die of what it finds there; what people see is exit code 13 and the two
// commands that help, and these do help.
func TestTruncatedJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.db")
	command := func(code int, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), theBinary(t), args...)
		cmd.Dir = dir
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("provisiond %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, &out)
		}
		return out.String()
	}
	command(0, "journal", "init", "journal.db", "--station", "hall")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing, less than a page, within the second one, the root pages alone, half of
	// it. (The last pages of a young file hold nothing yet.)
	for _, size := range []int{0, 100, 5000, 8192, len(whole) / 2} {
		if err := os.WriteFile(path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"journal", "show", "journal.db"},
			{"journal", "verify", "journal.db"},
			{"journal", "checkpoint", "journal.db"},
		} {
			out := command(13, args...)
			for _, want := range []string{"journal.db is damaged", "`provisiond journal verify journal.db`", "`provisiond journal rebuild journal.db`"} {
				if !strings.Contains(out, want) {
					t.Errorf("%d bytes, %v: %s\nlacks %q", size, args, out, want)
				}
			}
			if strings.Contains(out, "goroutine ") || strings.Contains(out, "panic: ") {
				t.Errorf("%d bytes, %v: %s", size, args, out)
			}
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole[:size]) {
			t.Errorf("%d bytes: the damaged file was changed: %v", size, err)
		}
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	command(0, "journal", "rebuild", "journal.db")
	command(0, "journal", "verify", "journal.db", "--public-key", "journal.db.pub")
}
