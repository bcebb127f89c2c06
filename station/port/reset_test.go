//go:build linux

package port_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/station/port"
)

// script writes an executable shell script.
func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "reset")
	writeFile(t, name, "#!/bin/sh\n"+body)
	if err := os.Chmod(name, 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCommandReset(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "hvs.not-for-scripts")
	b := ttyBoard(t)
	out := filepath.Join(t.TempDir(), "out")
	c := port.CommandReset{
		Program: script(t, `{ echo "$@"; env; } >"$1"`),
		Args:    []string{out, "relay 3"},
	}
	for what, reset := range map[string]func() error{
		"download": func() error { return c.Download(t.Context(), b.port, 2) },
		"run":      func() error { return c.Run(t.Context(), b.port) },
	} {
		if err := reset(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(got), "\n")
		if want := out + " relay 3 " + what; lines[0] != want {
			t.Errorf("it got the arguments %q, want %q", lines[0], want)
		}
		if !strings.Contains(string(got), "\nPROVISIOND_PORT="+b.name+"\n") {
			t.Errorf("it did not get the port's name:\n%s", got)
		}
		if strings.Contains(string(got), "hvs.") {
			t.Errorf("it got the daemon's credentials:\n%s", got)
		}
	}
}

func TestCommandResetFails(t *testing.T) {
	b := ttyBoard(t)
	for name, c := range map[string]struct {
		program string
		want    []string
	}{
		"says why":    {script(t, "echo 'no relay here' >&2; exit 3"), []string{"exit status 3", "no relay here"}},
		"says much":   {script(t, "i=0; while [ $i -lt 999 ]; do echo line $i; i=$((i+1)); done; exit 1"), []string{"the end of", "line 998"}},
		"is silent":   {script(t, "exit 1"), []string{"exit status 1", "printed nothing"}},
		"is missing":  {filepath.Join(t.TempDir(), "reset"), []string{"start reset program", "check --reset-command"}},
		"has no name": {"", []string{"--reset-command"}},
	} {
		err := port.CommandReset{Program: c.program}.Run(t.Context(), b.port)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("a program that %s gave %v, want %q in it", name, err, want)
			}
		}
		if err != nil && len(err.Error()) > 8<<10 {
			t.Errorf("a program that %s gave an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestCommandResetIsKilled(t *testing.T) {
	b := ttyBoard(t)
	pids := filepath.Join(t.TempDir(), "pids")
	c := port.CommandReset{Program: script(t, `sleep 1000 & echo $! >"$1"; echo started; wait`), Args: []string{pids}}
	fastest(t, 100*time.Millisecond, func() time.Duration {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- c.Download(ctx, b.port, 0) }()
		var child string
		for child == "" {
			select {
			case err := <-done:
				t.Fatalf("it ended by itself: %v", err)
			case <-time.After(time.Millisecond):
				text, _ := os.ReadFile(pids)
				child = strings.TrimSpace(string(text))
			}
		}
		cancel()
		start := time.Now()
		err := <-done
		d := time.Since(start)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it gave %v", err)
		}
		// Its child goes with it, or is a zombie that somebody else waits for.
		for {
			stat, err := os.ReadFile("/proc/" + child + "/stat")
			if err != nil || strings.Contains(string(stat), ") Z ") {
				break
			}
			if time.Since(start) > 5*time.Second {
				t.Fatalf("its child lives on: %s", stat)
			}
			runtime.Gosched()
		}
		_ = os.Remove(pids)
		return d
	})
}

func TestOperatorReset(t *testing.T) {
	b := ttyBoard(t)
	var asked []string
	o := port.OperatorReset{Prompt: func(_ context.Context, text string) error {
		asked = append(asked, text)
		return nil
	}}
	for attempt := range 2 {
		if err := o.Download(t.Context(), b.port, attempt); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Run(t.Context(), b.port); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"hold BOOT", "attempt 2", "release BOOT (IO0 high)"} {
		if i >= len(asked) || !strings.Contains(asked[i], want) || !strings.HasPrefix(asked[i], b.name) {
			t.Fatalf("the operator was asked %q, want %q in number %d", asked, want, i)
		}
	}

	gone := errors.New("nobody there")
	o.Prompt = func(context.Context, string) error { return gone }
	if err := o.Run(t.Context(), b.port); !errors.Is(err, gone) {
		t.Errorf("a prompt that fails gave %v", err)
	}
	if err := (port.OperatorReset{}).Run(t.Context(), b.port); err == nil || !strings.Contains(err.Error(), "--reset-command") {
		t.Errorf("without a prompt: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Run(ctx, b.port); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context gave %v", err)
	}
}
