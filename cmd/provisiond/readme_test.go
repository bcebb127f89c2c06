package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestREADME runs what the README tells people to type: every line of its sh
// blocks that calls provisiond, in order, in one empty folder. A line that ends
// with "# exit N" must end with that exit code.
func TestREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := readmeCommands(string(readme))
	if len(lines) < 5 {
		t.Fatalf("%d commands in README.md: %q", len(lines), lines)
	}
	if !regexp.MustCompile(`(?m)^ *go run \./cmd/provisiond demo$`).Match(readme) {
		t.Error("README.md does not begin with `go run ./cmd/provisiond demo`")
	}
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	dir := t.TempDir()
	path := filepath.Dir(theBinary(t)) + string(filepath.ListSeparator) + os.Getenv("PATH")
	code := regexp.MustCompile(`# exit ([0-9]+)$`)
	for _, line := range lines {
		want := 0
		if m := code.FindStringSubmatch(line); m != nil {
			want, _ = strconv.Atoi(m[1])
		}
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), "PATH="+path), &out, &out
		err := cmd.Run()
		var ee *exec.ExitError
		if err != nil && !errors.As(err, &ee) {
			t.Fatalf("%s: %v", line, err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%s\nexit code %d, want %d\n%s", line, got, want, &out)
		}
	}
}

// readmeCommands gives the lines of sh blocks that call provisiond, with folded
// lines joined, and `go run ./cmd/provisiond` as the command that it builds.
func readmeCommands(text string) []string {
	var out []string
	inBlock, folded := false, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inBlock, folded = line == "```sh", ""
		case !inBlock:
		case strings.HasSuffix(line, "\\"):
			folded += strings.TrimSuffix(line, "\\")
		default:
			line, folded = folded+line, ""
			if rest, ok := strings.CutPrefix(line, "go run ./cmd/provisiond"); ok {
				line = "provisiond" + rest
			}
			if strings.HasPrefix(line, "provisiond ") {
				out = append(out, line)
			}
		}
	}
	return out
}

func TestREADMECommands(t *testing.T) {
	got := readmeCommands("text\n```sh\ngo run ./cmd/provisiond demo\nmake\nprovisiond plan \\\n  --json\n```\nprovisiond no\n```\nprovisiond neither\n```\n")
	if want := "provisiond demo|provisiond plan   --json"; strings.Join(got, "|") != want {
		t.Errorf("%q, want %s", got, want)
	}
}
