package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
)

// hang is how long anything may take before a test gives it up for dead.
const hang = 2 * time.Minute

// output collects what a process writes and lets a test wait for a line.
type output struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed at the next line or at the end
	ended bool
}

func collect(r io.Reader) *output {
	o := &output{more: make(chan struct{})}
	go func() {
		s := bufio.NewScanner(r)
		for s.Scan() {
			o.change(func() { o.lines = append(o.lines, s.Text()) })
		}
		o.change(func() { o.ended = true })
	}()
	return o
}

func (o *output) change(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	close(o.more)
	o.more = make(chan struct{})
}

// await gives the first line with text in it.
func (o *output) await(t *testing.T, text string) string {
	t.Helper()
	limit := time.NewTimer(hang)
	defer limit.Stop()
	for {
		o.mu.Lock()
		lines, more, ended := o.lines, o.more, o.ended
		o.mu.Unlock()
		for _, l := range lines {
			if strings.Contains(l, text) {
				return l
			}
		}
		if ended {
			t.Fatalf("the process ended and never said %q:\n%s", text, strings.Join(lines, "\n"))
		}
		select {
		case <-more:
		case <-limit.C:
			t.Fatalf("nobody said %q:\n%s", text, strings.Join(lines, "\n"))
		}
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}

// simulator is `provisiond sim` in a process of its own, with a control socket.
type simulator struct {
	t       *testing.T
	cmd     *exec.Cmd
	err     *output
	dir     string
	control string
	done    bool
}

// startSim starts a simulator whose state lies in a folder of its own.
func startSim(t *testing.T, chipName string, args ...string) *simulator {
	t.Helper()
	return startSimIn(t, t.TempDir(), chipName, args...)
}

func startSimIn(t *testing.T, dir, chipName string, args ...string) *simulator {
	t.Helper()
	s := &simulator{t: t, dir: dir, control: filepath.Join(dir, "ctl")}
	if len(s.control) > 100 { // the limit of a Unix socket's path
		short, err := os.MkdirTemp("", "pvd") //nolint:usetesting // t.TempDir is what is too long
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(short) })
		s.control = filepath.Join(short, "ctl")
	}
	m, err := chip.ByName(chipName)
	if err != nil {
		t.Fatal(err)
	}
	all := append([]string{
		"sim", "--chip", chipName, "--state", filepath.Join(dir, "state"), "--control", s.control,
		"--mac", "02:00:00:00:00:01", "--revision", max(m.Lockdown.ClosedMinimum, 4).String(),
		"--app-prints", sample.AppText,
	}, args...)
	s.cmd = exec.Command(theBinary(t), all...)
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	s.err = collect(pipe)
	s.err.await(t, "control on ")
	return s
}

// stop ends the simulator as Ctrl-C does, so that it stores the chip.
func (s *simulator) stop() {
	if s.done {
		return
	}
	s.done = true
	_ = s.cmd.Process.Signal(os.Interrupt)
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the simulator ended with %v:\n%s", err, s.err)
	}
}

// address is where a scheme is served.
func (s *simulator) address(scheme string) string {
	line := s.err.await(s.t, scheme+"://")
	return line[strings.Index(line, scheme+"://"):]
}

// resetCommand writes the program that a user without DTR and RTS writes.
func (s *simulator) resetCommand() string {
	path := filepath.Join(s.dir, "reset.sh")
	text := fmt.Sprintf("#!/bin/sh\nexec %s sim --control %s --send \"reset $1\"\n", theBinary(s.t), s.control)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// awaitFile waits for a file that another process makes. There is no event for
// that without inotify, so it looks again and again.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(hang); time.Now().Before(end); <-tick.C {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s did not appear", path)
}

// bench is a folder with keystore, journal and recipe.
type bench struct {
	t                        *testing.T
	dir                      string
	recipe, keys, jrn, trace string
}

func newBench(t *testing.T, chipName, profile string, baud int) *bench {
	t.Helper()
	dir := t.TempDir()
	m, err := chip.ByName(chipName)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, keys: filepath.Join(dir, "keys.db"), jrn: filepath.Join(dir, "journal.db"), trace: filepath.Join(dir, "trace.txt")}
	if b.recipe, err = sample.Write(dir, sample.Product{Chip: m, Profile: profile, Baud: baud}); err != nil {
		t.Fatal(err)
	}
	b.run(0, "keystore", "init", b.keys, "--test")
	b.run(0, "journal", "init", b.jrn)
	return b
}

// run runs provisiond to its end.
func (b *bench) run(code int, args ...string) (stdout, stderr string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), hang)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, theBinary(b.t), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errOut, b.dir
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		b.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		b.t.Fatalf("provisiond %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, &out, &errOut)
	}
	return out.String(), errOut.String()
}

func (b *bench) provisionArgs(port []string, more ...string) []string {
	args := append([]string{"provision", "--recipe", b.recipe, "--keystore", b.keys, "--journal", b.jrn, "--closed-is-forever"}, port...)
	return append(args, more...)
}

// TestTransports takes units through everything, the simulator and provisiond
// being processes that only share a line: a pseudo terminal and a raw TCP socket
// with a reset command, and RFC 2217, which carries DTR and RTS. The same again
// with one byte in ten thousand damaged while flashing.
func TestTransports(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"pty", "tcp", "rfc2217"} {
		for _, chipName := range twoChips {
			for _, noise := range []string{"", "noise=1e-4,window=flash"} {
				name := transport + "/" + chipName
				if noise != "" {
					name += "/noise"
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					throughTransport(t, transport, chipName, noise)
				})
			}
		}
	}
}

func throughTransport(t *testing.T, transport, chipName, noise string) {
	dir := t.TempDir()
	tty := filepath.Join(dir, "tty")
	args := map[string][]string{"pty": {"--pty", tty}, "tcp": {"--listen", "127.0.0.1:0"}, "rfc2217": {"--rfc2217", "127.0.0.1:0"}}[transport]
	if noise != "" {
		args = append(args, "--fault", noise)
	}
	s := startSimIn(t, dir, chipName, args...)
	var port []string
	switch transport {
	case "pty":
		awaitFile(t, tty)
		port = []string{"--port", tty, "--reset-command", s.resetCommand()}
	case "tcp":
		port = []string{"--port", s.address("socket"), "--reset-command", s.resetCommand()}
	case "rfc2217":
		port = []string{"--port", s.address("rfc2217")}
	}
	b := newBench(t, chipName, "release", 921600)
	stdout, stderr := b.run(0, b.provisionArgs(port, "--json", "--trace", b.trace)...)
	var res provision.Result
	if err := json.Unmarshal([]byte(stdout), &struct {
		*provision.Result
		PlanSHA256 string `json:"plan_sha256"`
		Images     any    `json:"images"`
	}{Result: &res}); err != nil {
		t.Fatal(err)
	}
	if res.Verdict != provision.Pass || res.Unit != "02:00:00:00:00:01" || res.Closing == nil {
		t.Fatalf("%s%s", stdout, stderr)
	}
	if stderr != "" {
		t.Errorf("with --json, on standard error: %s", stderr)
	}
	t.Logf("PASS after %.1f s, %d bytes, closing shown by %s", float64(res.ElapsedMS)/1000, res.BytesWritten, res.Closing.Evidence)
	b.run(0, "journal", "verify", b.jrn)
	b.run(0, "keystore", "describe", b.keys, "--identity", b.keys+".identity")

	// The unit is closed, as the simulator shows to somebody who comes later.
	if chipName == "esp32" {
		_, stderr = b.run(provision.ExitRefused, append([]string{"inspect"}, port...)...)
		if !strings.Contains(stderr, "the download mode of this chip is disabled") {
			t.Errorf("inspect afterwards: %s", stderr)
		}
	} else {
		stdout, _ = b.run(0, append([]string{"inspect"}, port...)...)
		if !strings.Contains(stdout, "Secure Download Mode") || !strings.Contains(stdout, "encryption  on") {
			t.Errorf("inspect afterwards: %s", stdout)
		}
	}
	if noise != "" && repeats(t, b.trace) == 0 {
		t.Error("the noise did nothing: no exchange was repeated or damaged")
	}
}

// repeats counts the requests of a trace that were sent more than once in a row
// while flashing, without an answer or with a refusal between them.
func repeats(t *testing.T, trace string) int {
	t.Helper()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	sent, answered := 0, 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "FLASH_DATA" && f[2] != "FLASH_DEFL_DATA" && f[2] != "FLASH_BEGIN" && f[2] != "SPI_FLASH_MD5" {
			continue
		}
		switch {
		case f[1] == ">":
			sent++
		case f[1] == "<" && !strings.Contains(line, "refused"):
			answered++
		}
	}
	return sent - answered
}

// TestStateLasts: a simulated board that was switched off is the same board when
// it comes back, and still decrypts what was written to it.
func TestStateLasts(t *testing.T) {
	t.Parallel()
	for _, chipName := range twoChips {
		t.Run(chipName, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := startSimIn(t, dir, chipName, "--listen", "127.0.0.1:0")
			b := newBench(t, chipName, "hybrid", 921600)
			b.run(0, b.provisionArgs([]string{"--port", s.address("socket"), "--reset-command", s.resetCommand()})...)
			s.stop()

			// Another MAC is asked for, and the chip's own counts.
			s = startSimIn(t, dir, chipName, "--listen", "127.0.0.1:0", "--mac", "02:00:00:00:00:99")
			port := s.address("socket")
			stdout, _ := b.run(0, "inspect", "--port", port, "--reset-command", s.resetCommand())
			for _, want := range []string{"02:00:00:00:00:01", "encryption  on", "hidden"} {
				if !strings.Contains(stdout, want) {
					t.Errorf("inspect after the restart does not show %q:\n%.600s", want, stdout)
				}
			}
			conn, err := net.Dial("tcp", strings.TrimPrefix(port, "socket://"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			text := collect(conn)
			stdout, _ = b.run(0, "sim", "--control", s.control, "--send", "reset run", "--send", "status")
			if want := "ok\nok " + chipName + " "; !strings.HasPrefix(stdout, want) {
				t.Errorf("control answered %q, want %q…", stdout, want)
			}
			text.await(t, sample.AppText)
		})
	}
}

// TestInterrupt presses Ctrl-C while a slow line flashes, with somebody else
// asking for the same port meanwhile.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tty := filepath.Join(dir, "tty")
	s := startSimIn(t, dir, "esp32c3", "--pty", tty, "--pace")
	awaitFile(t, tty)
	b := newBench(t, "esp32c3", "release", 115200)
	port := []string{"--port", tty, "--reset-command", s.resetCommand()}
	cmd := exec.Command(theBinary(t), b.provisionArgs(port)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stderr := collect(pipe)
	stderr.await(t, "4/14 flash")

	_, busy := b.run(provision.ExitError, append([]string{"inspect"}, port...)...)
	if !regexp.MustCompile(`tty: .*in use.*provisiond`).MatchString(busy) {
		t.Errorf("somebody else is told: %s", busy)
	}

	began := time.Now()
	_ = cmd.Process.Signal(syscall.SIGINT)
	stderr.await(t, "stopping")
	err = cmd.Wait()
	took := time.Since(began)
	if code := cmd.ProcessState.ExitCode(); code != provision.ExitAborted {
		t.Errorf("exit code %d (%v)\n%s%s", code, err, &out, stderr)
	}
	t.Logf("ended %d ms after the signal", took.Milliseconds())
	if took > time.Second {
		t.Errorf("it took %v", took)
	}
	if !regexp.MustCompile(`(?m)^ABORTED  02:00:00:00:00:01 .*\n.*\n?  reason .*\n  next `).MatchString(out.String()) {
		t.Errorf("it says:\n%s", &out)
	}
	// Nothing was lost: the journal is whole, the port is free, the chip is virgin.
	b.run(0, "journal", "verify", b.jrn)
	stdout, _ := b.run(0, append([]string{"inspect"}, port...)...)
	if !strings.Contains(stdout, "encryption  off") || !strings.Contains(stdout, "KEY0        free") {
		t.Errorf("inspect afterwards:\n%.400s", stdout)
	}
}

// TestInterruptedDemo: units that were not begun have no result, and --json
// still gives one object for each of the others.
func TestInterruptedDemo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut bytes.Buffer
	code := run(ctx, []string{"demo", "--units", "50", "--slots", "2", "--json"}, nil, &out, &errOut, func(e provision.Event) {
		if e.Step == "flash" {
			cancel()
		}
	})
	if code != provision.ExitAborted {
		t.Fatalf("exit code %d: %s", code, &errOut)
	}
	dec := json.NewDecoder(&out)
	n := 0
	for ; dec.More(); n++ {
		var r struct{ Verdict provision.Verdict }
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Verdict != provision.Aborted && r.Verdict != provision.Pass {
			t.Errorf("unit %d: %s", n, r.Verdict)
		}
	}
	if n == 0 || n > 4 {
		t.Errorf("%d units, of 2 slots that were stopped at once", n)
	}
	if errOut.Len() > 0 {
		t.Errorf("with --json, on standard error: %s", &errOut)
	}
}
