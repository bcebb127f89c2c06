package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/provision"
)

// TestMain lets more tests run at once than there are processors: they wait for
// boards rather than compute. The leak test starts this binary once more, as a
// provisiond that panics.
func TestMain(m *testing.M) {
	if os.Getenv(panicStep) != "" {
		panicMain()
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", "32")
	}
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// Where panicMain panics: at the beginning of which step, or after it, when some
// goroutine is in which function, and then in another goroutine.
const (
	panicStep = "PROVISIOND_TEST_PANIC_STEP"
	panicIn   = "PROVISIOND_TEST_PANIC_IN"
)

// panicMain is provisiond with an observer that panics in the middle of a unit.
func panicMain() {
	forbidCoreDumps()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var once sync.Once
	observe := func(e provision.Event) {
		switch {
		case e.Step != os.Getenv(panicStep):
		case os.Getenv(panicIn) == "":
			panic("forced by the test")
		default:
			once.Do(func() { go panicWhenIn(os.Getenv(panicIn)) })
		}
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, observe))
}

// panicWhenIn looks at all stacks until one is in a function.
func panicWhenIn(function string) {
	stacks := make([]byte, 1<<20)
	for {
		if bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(function)) {
			panic("forced by the test")
		}
		runtime.Gosched()
	}
}

// built is the real binary, made once for all tests that need one.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// theBinary builds provisiond as a user does and gives its path. Its name is
// provisiond and it is alone in its folder, which can stand in a PATH.
func theBinary(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "provisiond-test-"); built.err != nil { //nolint:usetesting // it outlives the test
			return
		}
		out, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "provisiond"), ".").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "provisiond")
}

// TestHelp reads every help text as a user does.
func TestHelp(t *testing.T) {
	help := func(args ...string) string {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), append(args, "--help"), nil, &out, &errOut, nil); code != 0 || errOut.Len() > 0 {
			t.Fatalf("%v --help: exit code %d, on standard error: %s", args, code, &errOut)
		}
		return out.String()
	}
	top := help()
	commands := 0
	for line := range strings.Lines(top) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "   ") || len(words) < 2 || strings.HasPrefix(words[0], "-") {
			continue
		}
		args := words[:1]
		if words[0] == "image" || words[0] == "journal" || words[0] == "keystore" {
			args = words[:2]
		}
		commands++
		text := help(args...)
		if !strings.HasPrefix(text, "Usage: provisiond "+strings.Join(args, " ")) {
			t.Errorf("the help of %v begins with %.60q", args, text)
		}
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if len(line) > 80 && !strings.HasPrefix(line, "Usage:") {
				t.Errorf("%v: a line of %d columns: %s", args, len(line), line)
			}
			// A flag that nobody explains shows as a name with nothing behind it.
			if f := strings.Fields(line); len(f) == 1 && strings.HasPrefix(f[0], "--") && len(line) < 28 {
				t.Errorf("%v: flag %s has no help", args, f[0])
			}
		}
	}
	if commands < 14 {
		t.Errorf("%d commands in\n%s", commands, top)
	}
}

// TestNothingDumped looks at a process from outside: it must not leave its memory
// in a core file, nor let itself be read.
func TestNothingDumped(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	t.Parallel()
	s := startSim(t, "esp32c3", "--listen", "127.0.0.1:0")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max core file size") {
			found = true
			if f := strings.Fields(line); f[4] != "0" || f[5] != "0" {
				t.Error(line)
			}
		}
	}
	if !found {
		t.Errorf("no limit in\n%s", limits)
	}
}
