package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// typist sits at a terminal of its own.
type typist struct {
	t      *testing.T
	master *os.File
	seen   strings.Builder
	cmd    *exec.Cmd
}

func sitDown(t *testing.T, args ...string) *typist {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), theBinary(t), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	p := &typist{t: t, master: master, cmd: cmd}
	t.Cleanup(func() { _ = p.master.Close() })
	return p
}

// expect reads until the text is on the screen.
func (p *typist) expect(text string) {
	p.t.Helper()
	var b [1]byte
	from := p.seen.Len()
	for !strings.Contains(p.seen.String()[from:], text) {
		if _, err := p.master.Read(b[:]); err != nil {
			p.t.Fatalf("no %q in %q: %v", text, p.seen.String(), err)
		}
		p.seen.Write(b[:])
	}
}

// echo reports whether the terminal shows what is typed. A master's settings are
// its slave's.
func (p *typist) echo() bool {
	p.t.Helper()
	var on bool
	raw, err := p.master.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			p.t.Error(err)
			return
		}
		on = t.Lflag&unix.ECHO != 0
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return on
}

// answer types at a prompt, once the echo is off.
func (p *typist) answer(prompt, text string) {
	p.t.Helper()
	p.expect(prompt)
	for p.echo() { // the program turns it off a moment behind its prompt
	}
	if _, err := io.WriteString(p.master, text); err != nil {
		p.t.Fatal(err)
	}
}

// leave reads the rest and gives the exit code.
func (p *typist) leave() int {
	p.t.Helper()
	rest, _ := io.ReadAll(p.master) // ends with EIO when the slave is closed
	p.seen.Write(rest)
	var ee *exec.ExitError
	if err := p.cmd.Wait(); errors.As(err, &ee) {
		return ee.ExitCode()
	} else if err != nil {
		p.t.Fatal(err)
	}
	return 0
}

func TestPeopleAtATerminal(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "people.yaml")
	if out, err := exec.CommandContext(t.Context(), theBinary(t), "people", "init", file).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}

	p := sitDown(t, "people", "add", file, "kim", "--role", "operator", "--badge", "--pin")
	p.answer("badge of kim: ", "0004711842\r") // as a reader types it
	p.answer("pin of kim: ", "249183\r")
	p.answer("pin of kim, again: ", "249183\r")
	if code := p.leave(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.seen.String())
	}
	screen := p.seen.String()
	for _, secret := range []string{"0004711842", "249183"} {
		if strings.Contains(screen, secret) {
			t.Errorf("%s is on the screen", secret)
		}
	}
	if !strings.Contains(screen, "added operator kim") {
		t.Error(screen)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	p = sitDown(t, "people", "passwd", file, "kim", "--pin")
	p.answer("pin of kim: ", "770214\r")
	p.answer("pin of kim, again: ", "770241\r")
	if code := p.leave(); code != 2 || !strings.Contains(p.seen.String(), "they are not the same: nothing was changed") {
		t.Errorf("exit code %d: %s", code, p.seen.String())
	}

	// Ctrl-C: stopped at once, and the terminal shows again what is typed.
	p = sitDown(t, "people", "passwd", file, "kim", "--pin")
	p.answer("pin of kim: ", "77\x03")
	p.expect("\r\n")
	if code := p.leave(); code != 4 {
		t.Errorf("exit code %d: %s", code, p.seen.String())
	}
	if !p.echo() {
		t.Error("the terminal is left without echo")
	}
	after, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed, or %v", err)
	}
}
