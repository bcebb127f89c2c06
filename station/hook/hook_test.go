//go:build linux

package hook

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/provision"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script writes an executable shell script: the program itself may be one.
func script(t *testing.T, body string) *Command {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return &Command{Program: name}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var unit = Unit{
	Station: "bench-1", Slot: "A3", Port: "pci-0-usb-1.2", Lot: "L-47", Operator: "anna", Recipe: "lamp",
	Serial: `S"1$(id)`, MAC: "24:0a:c4:00:00:01",
}

func failure(t *testing.T, err error) *provision.Failure {
	t.Helper()
	var f *provision.Failure
	if !errors.As(err, &f) {
		t.Fatalf("the error is %v, and no *provision.Failure", err)
	}
	if f.NextStep == "" {
		t.Errorf("%v names no next step", err)
	}
	return f
}

func TestNoHook(t *testing.T) {
	var c Config
	if err := errors.Join(c.RunBefore(t.Context(), unit), c.RunAfter(t.Context(), unit, Result{})); err != nil {
		t.Error(err)
	}
}

func TestDocumentAndEnvironment(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "hvs.not-for-hooks")
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	dir := t.TempDir()
	before := script(t, `cat >"$1/doc"; env >"$1/env"; pwd >"$1/pwd"; echo "$2" >"$1/arg"; echo noise`)
	before.Args = []string{dir, "$(id) *"}
	if err := (Config{Before: before}).RunBefore(t.Context(), unit); err != nil {
		t.Fatal(err)
	}
	const doc = `{"schema":"provisiond.hook/1","phase":"before","unit":{"station":"bench-1","slot":"A3","port":"pci-0-usb-1.2",` +
		`"lot":"L-47","operator":"anna","recipe":"lamp","serial":"S\"1$(id)","mac":"24:0a:c4:00:00:01"}}` + "\n"
	if d := cmp.Diff(doc, read(t, filepath.Join(dir, "doc"))); d != "" {
		t.Errorf("standard input (-want +got):\n%s", d)
	}
	if got := read(t, filepath.Join(dir, "arg")); got != "$(id) *\n" {
		t.Errorf("something expanded the argument: %q", got)
	}
	if got := read(t, filepath.Join(dir, "pwd")); got != "/\n" {
		t.Errorf("it ran in %q", got)
	}
	allowed := append([]string{"PROVISIOND_HOOK", "PROVISIOND_STATION", "PROVISIOND_SLOT", "PWD", "OLDPWD", "SHLVL", "_"}, inherited...)
	env := read(t, filepath.Join(dir, "env"))
	for line := range strings.Lines(env) {
		if name, _, _ := strings.Cut(line, "="); !slices.Contains(allowed, name) {
			t.Errorf("the hook sees %s", name)
		}
	}
	if !strings.Contains(env, "PROVISIOND_HOOK=before\n") || !strings.Contains(env, "PROVISIOND_SLOT=A3\n") {
		t.Errorf("the hook does not see its phase and slot:\n%s", env)
	}
}

func TestAfter(t *testing.T) {
	dir := t.TempDir()
	after := script(t, `cat >"$1/doc"; echo "$PROVISIOND_HOOK $PROVISIOND_VERDICT" >"$1/env"`)
	after.Args = []string{dir}
	r := ResultOf(&provision.Result{Verdict: provision.Fail, Cause: provision.CauseUnit, Reason: "no boot", NextStep: "look", Job: "j", ElapsedMS: 12})
	if err := (Config{After: after}).RunAfter(t.Context(), unit, r); err != nil {
		t.Fatal(err)
	}
	var got document
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "doc"))), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(document{Schema: Schema, Phase: "after", Unit: unit, Result: &r}, got); d != "" {
		t.Errorf("standard input (-want +got):\n%s", d)
	}
	if got := read(t, filepath.Join(dir, "env")); got != "after FAIL\n" {
		t.Errorf("environment: %q", got)
	}
}

func TestRefusal(t *testing.T) {
	for name, c := range map[string]struct{ body, reason string }{
		"stdout":  {`echo "the  lid"; echo is open; echo debug >&2; exit 1`, "the before hook refused the unit: the lid is open"},
		"stderr":  {`echo no air >&2; exit 42`, "the before hook refused the unit: no air"},
		"nothing": {`exit 3`, "the before hook refused the unit: it ended with exit status 3 and printed nothing"},
		"control": {`printf 'a\033[31m\000b\n\342\200\256c\377'; exit 1`, "the before hook refused the unit: a [31m b c\ufffd"},
	} {
		t.Run(name, func(t *testing.T) {
			f := failure(t, Config{Before: script(t, c.body)}.RunBefore(t.Context(), unit))
			if f.Cause != provision.CauseRefused || f.Verdict() != provision.Fail || f.ExitCode() != provision.ExitRefused {
				t.Errorf("cause %s, verdict %s", f.Cause, f.Verdict())
			}
			if f.Reason != c.reason {
				t.Errorf("reason %q, want %q", f.Reason, c.reason)
			}
		})
	}
}

func TestOutputIsBounded(t *testing.T) {
	f := failure(t, Config{Before: script(t, `yes äöü | head -c 5000000; exit 1`)}.RunBefore(t.Context(), unit))
	if len(f.Reason) > MaxText+100 || !strings.HasSuffix(f.Reason, "…") || !utf8.ValidString(f.Reason) {
		t.Errorf("a reason of %d bytes that ends with %q", len(f.Reason), f.Reason[len(f.Reason)-20:])
	}
}

// Whatever it reads or prints, a hook's output is text that the journal takes.
func FuzzText(f *testing.F) {
	f.Add([]byte("no air\n"), false)
	f.Add([]byte("\xff\x00\xe2\x80"), true)
	f.Fuzz(func(t *testing.T, b []byte, twice bool) {
		var h head
		for range 2 {
			if n, err := h.Write(b); n != len(b) || err != nil {
				t.Fatalf("Write gave %d, %v", n, err)
			}
			if !twice {
				break
			}
		}
		s := h.text()
		if len(h.b) > MaxText || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\r\t\x1b\u202e") {
			t.Errorf("%q", s)
		}
	})
}

// What is not the unit's fault does not fail the unit.
func TestHookThatCannotAnswer(t *testing.T) {
	slow := script(t, `echo waiting; exec sleep 1000`)
	slow.Timeout = 100 * time.Millisecond
	for name, c := range map[string]struct {
		cmd  *Command
		want string
	}{
		"slow":    {slow, `it took too long: 100ms have passed, and it was killed with its children; it printed "waiting"`},
		"killed":  {script(t, `kill -9 $$`), "signal: killed"},
		"missing": {&Command{Program: "/nonexistent/hook"}, "it cannot be started"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Config{Before: c.cmd}.RunBefore(t.Context(), unit)
			if f := failure(t, err); f.Cause != provision.CauseStation || !strings.Contains(err.Error(), c.want) {
				t.Errorf("cause %s: %v, want %q in it", f.Cause, err, c.want)
			}
			err = Config{After: c.cmd}.RunAfter(t.Context(), unit, Result{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.cmd.Program) {
				t.Errorf("after: %v", err)
			}
		})
	}
}

func TestAfterFails(t *testing.T) {
	err := Config{After: script(t, `echo no lamp >&2; exit 7`)}.RunAfter(t.Context(), unit, Result{})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "no lamp") {
		t.Errorf("it gave %v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	fifo := filepath.Join(t.TempDir(), "ready")
	cmd := script(t, `echo >"$1"; exec sleep 1000`)
	cmd.Args = []string{fifo}
	mkfifo(t, fifo)
	go func() {
		_, _ = os.ReadFile(fifo) // until the hook runs
		cancel()
	}()
	f := failure(t, Config{Before: cmd}.RunBefore(ctx, unit))
	if f.Cause != provision.CauseCancelled || f.Verdict() != provision.Aborted {
		t.Errorf("cause %s: %v", f.Cause, f)
	}
}

// The time limit ends the children too.
func TestChildrenAreKilled(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "held")
	mkfifo(t, fifo)
	cmd := script(t, `sh -c 'exec 3>"$0"; sleep 1000' "$1" & sleep 1000`)
	cmd.Args, cmd.Timeout = []string{fifo}, 300*time.Millisecond
	gone := make(chan error, 1)
	go func() { // ends when nobody holds the other end any more
		_, err := os.ReadFile(fifo)
		gone <- err
	}()
	if f := failure(t, Config{Before: cmd}.RunBefore(t.Context(), unit)); f.Cause != provision.CauseStation {
		t.Errorf("cause %s", f.Cause)
	}
	select {
	case err := <-gone:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a child of the hook lives on")
	}
}

// A hook may start something that stays, and has still ended.
func TestDaemonThatStays(t *testing.T) {
	stop := filepath.Join(t.TempDir(), "stop")
	mkfifo(t, stop)
	cmd := script(t, `setsid sh -c 'read x <"$0"' "$1" & exit 0`)
	cmd.Args = []string{stop}
	if err := (Config{Before: cmd}).RunBefore(t.Context(), unit); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(stop, os.O_WRONLY, 0) // waits for the reader
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("x\n")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A hook that does not read its input is no error.
func TestInputIgnored(t *testing.T) {
	u := unit
	u.Serial = strings.Repeat("x", 1<<20) // more than a pipe takes
	if err := (Config{Before: script(t, "exec 0<&-; exit 0")}).RunBefore(t.Context(), u); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	const text = "before:\n  program: /usr/lib/jig\n  args: [--slot, x]\n  timeout: 3s\nafter:\n  program: /usr/bin/lamp\n"
	var c Config
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	want := Config{
		Before: &Command{Program: "/usr/lib/jig", Args: []string{"--slot", "x"}, Timeout: 3 * time.Second},
		After:  &Command{Program: "/usr/bin/lamp"},
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]Config{
		"before.program: is missing":       {Before: &Command{}},
		"after.program: \"lamp\" is no":    {After: &Command{Program: "lamp"}},
		"before.timeout: 1h0m0s":           {Before: &Command{Program: "/x", Timeout: time.Hour}},
		"after.timeout: -1s":               {After: &Command{Program: "/x", Timeout: -time.Second}},
		"before: program and args cannot ": {Before: &Command{Program: "/x", Args: []string{"a\x00b"}}},
	} {
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}
