//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// killPoint is when a provisiond is killed: when an entry has been written, and a
// moment later.
type killPoint struct {
	step  string
	kind  journal.Kind
	after time.Duration
}

func (k killPoint) String() string {
	return fmt.Sprintf("%s %s + %v", k.kind, k.step, k.after.Round(time.Millisecond))
}

// killPoints are two ways through a run: at the intents, when the act is about to
// begin, and at the observations, when the next step is. Between them are random
// moments, by which a burn may be in its middle.
func killPoints(observed bool, rnd *rand.Rand) []killPoint {
	moment := func(n int) time.Duration { return time.Duration(rnd.IntN(n*1000)) * time.Microsecond }
	kind, steps := journal.KindIntent, []string{"flash", "custody", "burn-key", "protect-key", "burn-lockdown", "enable-encryption", "boot-check", "write-protect"}
	between := map[string]killPoint{ // before these; each of a step that comes again
		"custody":     {"flash", journal.KindIntent, moment(150)},
		"protect-key": {"burn-key", journal.KindIntent, moment(60)},
		"boot-check":  {"enable-encryption", journal.KindIntent, moment(60)},
	}
	if observed {
		kind, steps = journal.KindObserved, []string{"plan", "flash", "verify-flash", "custody", "burn-key", "protect-key", "enable-encryption"}
		between = map[string]killPoint{
			"verify-flash": {"flash", journal.KindIntent, moment(150)},
			"burn-key":     {"custody", journal.KindIntent, moment(60)},
		}
	}
	var out []killPoint
	for _, s := range steps {
		if p, ok := between[s]; ok {
			out = append(out, p)
		}
		out = append(out, killPoint{s, kind, 0})
	}
	return out
}

// twoChips are one of each generation, for tests that take long and say the same for
// all.
var twoChips = []string{"esp32", "esp32c3"}

// TestKill9 kills a provisiond in a process of its own, with a board in another
// one at the end of a PTY, again and again over a whole run, and starts the same
// command again each time. At the end the unit has passed, and journal and
// keystore tell one story.
func TestKill9(t *testing.T) {
	t.Parallel()
	for _, name := range twoChips {
		for way, observed := range map[string]bool{"intents": false, "observations": true} {
			t.Run(name+"/"+way, func(t *testing.T) {
				t.Parallel()
				seed := rand.Uint64()
				killRun(t, name, killPoints(observed, rand.New(rand.NewPCG(seed, 9))), seed)
			})
		}
	}
}

func killRun(t *testing.T, name string, points []killPoint, seed uint64) {
	dir := t.TempDir()
	tty := filepath.Join(dir, "tty")
	s := startSimIn(t, dir, name, "--pty", tty)
	awaitFile(t, tty)
	b := newBench(t, name, "hybrid", 921600)
	args := b.provisionArgs([]string{"--port", tty, "--reset-command", s.resetCommand()}, "--json", "--operator", "ada")

	kills := 0
	finished := false
	for _, p := range points {
		// A machine that has too much to do may end a run with ERROR: the line was too
		// slow. The person at the bench starts it again.
		for try := 1; ; try++ {
			killed, r := b.killAt(p, args)
			if finished = r.Verdict == provision.Pass || r.FinishedBefore; finished || killed {
				break
			}
			if try == 4 || r.Verdict == provision.Quarantined {
				t.Fatalf("seed %d: %v never came: %s: %s", seed, p, r.Verdict, r.Reason)
			}
		}
		if finished { // a kill came so late that nothing was left
			break
		}
		kills++
	}
	var last provision.Result
	for try := 1; last.Verdict != provision.Pass && !last.FinishedBefore; try++ {
		stdout, stderr, code := b.runAny(args)
		var err error
		if last, err = result(stdout); err != nil {
			t.Fatalf("seed %d: exit code %d: %v\n%s%s", seed, code, err, stdout, stderr)
		}
		if last.Verdict == provision.Quarantined || try == 4 {
			t.Fatalf("seed %d: after %d kills: %s: %s", seed, kills, last.Verdict, last.Reason)
		}
	}
	t.Logf("%d kills", kills)
	if kills < len(points)/2 {
		t.Errorf("only %d of %d kills: seed %d", kills, len(points), seed)
	}
	b.run(0, "journal", "verify", b.jrn, "--public-key", journal.PublicKeyPath(b.jrn))
	stdout, _ := b.run(0, "keystore", "check", b.keys, "--identity", b.keys+".identity")
	if !regexp.MustCompile(` 0 findings`).MatchString(stdout) {
		t.Error(stdout)
	}
	stdout, _ = b.run(0, "keystore", "describe", b.keys, "--json")
	var keys struct {
		Records []struct {
			State       string
			Fingerprint string `json:"key_fingerprint"`
		}
	}
	if err := json.Unmarshal([]byte(stdout), &keys); err != nil {
		t.Fatal(err)
	}
	alive := 0
	for _, r := range keys.Records {
		switch r.State {
		case "in-silicon":
			alive++
			if !finished && r.Fingerprint != last.KeyFingerprint {
				t.Errorf("the unit has key %s and the keystore says %s", last.KeyFingerprint, r.Fingerprint)
			}
		case "superseded":
		default:
			t.Errorf("a key is %s", r.State)
		}
	}
	if alive != 1 {
		t.Errorf("%d keys are in silicon: seed %d\n%s", alive, seed, stdout)
	}
	stdout, _ = b.run(0, "audit", "reconcile", "--journal", b.jrn, "--keystore", b.keys)
	t.Logf("%d keys that never reached the chip; %s", len(keys.Records)-alive, stdout)
}

// TestKill9Closing kills the process around the last fuse, after which nobody can
// ask the board who it is. Whatever the next start comes to, it is told; there is
// one key, the journal is whole, and the board is not called passed on a guess.
func TestKill9Closing(t *testing.T) {
	t.Parallel()
	for _, name := range twoChips {
		for _, p := range []killPoint{{"close", journal.KindIntent, 0}, {"close", journal.KindIntent, 15 * time.Millisecond}, {"close", journal.KindObserved, 0}, {"proof", journal.KindIntent, 0}} {
			t.Run(fmt.Sprintf("%s/%v", name, p), func(t *testing.T) {
				t.Parallel()
				b, args := killedAt(t, name, p)
				stdout, stderr, code := b.runAny(args)
				r, err := result(stdout)
				if err != nil {
					t.Fatalf("%v\n%s%s", err, stdout, stderr)
				}
				switch {
				case r.Verdict == provision.Pass && r.Closing != nil: // the fuse was not burned, or the unit is known for sure
				case r.LoaderClosed && code == provision.ExitRefused && r.NextStep != "":
				case r.Verdict == provision.Quarantined && r.NextStep != "":
				default:
					t.Errorf("exit code %d: %s", code, stdout)
				}
				b.run(0, "journal", "verify", b.jrn)
				b.run(0, "keystore", "check", b.keys, "--identity", b.keys+".identity")
				stdout2, _ := b.run(0, "keystore", "describe", b.keys)
				if !regexp.MustCompile(`: 1 records`).MatchString(stdout2) {
					t.Error(stdout2)
				}
				t.Logf("%s: %s", r.Verdict, r.Reason)
			})
		}
	}
}

// killedAt kills provisiond at a point of a board's first run. Where the kill came
// after the end (a busy machine tells late of the journal's new line), it is tried with
// another board.
func killedAt(t *testing.T, chip string, p killPoint) (b *bench, args []string) {
	t.Helper()
	for board := 1; ; board++ {
		dir := t.TempDir()
		tty := filepath.Join(dir, "tty")
		s := startSimIn(t, dir, chip, "--pty", tty)
		awaitFile(t, tty)
		b = newBench(t, chip, "release", 921600)
		args = b.provisionArgs([]string{"--port", tty, "--reset-command", s.resetCommand()}, "--json", "--serial", "SN-1", "--lot", "L", "--quantity", "1")
		for try := 1; ; try++ { // again where the line was too slow for a busy machine
			killed, r := b.killAt(p, args)
			if killed {
				return b, args
			}
			if r.Verdict == provision.Pass && board < 6 {
				break
			}
			if try == 4 || r.Verdict != provision.Error {
				t.Fatalf("%v never came: %s: %s", p, r.Verdict, r.Reason)
			}
		}
	}
}

// runAny runs provisiond to its end, whatever it comes to.
func (b *bench) runAny(args []string) (stdout, stderr []byte, code int) {
	b.t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(b.t.Context(), theBinary(b.t), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errOut, b.dir
	var ee *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &ee) {
		b.t.Fatal(err)
	}
	return out.Bytes(), errOut.Bytes(), cmd.ProcessState.ExitCode()
}

// result reads what --json printed.
func result(stdout []byte) (r provision.Result, err error) {
	err = json.Unmarshal(stdout, &struct {
		*provision.Result
		PlanSHA256 string `json:"plan_sha256"`
		Images     any    `json:"images"`
	}{Result: &r})
	return r, err
}

// runOrder is the order of a run's steps.
var runOrder = []string{
	"connect", "inspect", "plan", "flash", "verify-flash", "custody", "burn-key", "protect-key", "burn-lockdown",
	"enable-encryption", "boot-check", "write-protect", "close", "proof",
}

// killAt starts provisiond and kills it at the point, or at the next one of its
// kind if an earlier kill came late. Otherwise the process ended by itself, and
// its result is given.
func (b *bench) killAt(p killPoint, args []string) (killed bool, r provision.Result) {
	b.t.Helper()
	w := watchFile(b.t, journal.CopyPath(b.jrn))
	defer w.close()
	var out bytes.Buffer
	cmd := exec.Command(theBinary(b.t), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, b.dir
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() { _ = cmd.Process.Kill(); <-ended }()
	for {
		select {
		case line := <-w.lines:
			var e struct{ Step, Kind string }
			if err := json.Unmarshal(line, &e); err != nil {
				b.t.Errorf("the copy has %q: %v", line, err)
			}
			if e.Kind != string(p.kind) || slices.Index(runOrder, e.Step) < slices.Index(runOrder, p.step) {
				continue
			}
		case <-ended:
			r, err := result(out.Bytes())
			if err != nil {
				b.t.Fatalf("%v never came: %v\n%s", p, err, &out)
			}
			return false, r
		case <-time.After(hang):
			b.t.Fatalf("%v never came, and it runs on", p)
		}
		break
	}
	if p.after > 0 {
		select {
		case <-time.After(p.after):
		case <-ended:
		}
	}
	_ = cmd.Process.Kill() // SIGKILL
	<-ended
	if !cmd.ProcessState.Exited() {
		return true, r
	}
	r, err := result(out.Bytes())
	if err != nil {
		b.t.Fatalf("%v came too late: %v\n%s", p, err, &out)
	}
	return false, r
}

// watched gives the lines that are appended to a file, as they come.
type watched struct {
	lines chan []byte
	note  *os.File
}

// watchFile begins at the file's end.
func watchFile(t *testing.T, path string) *watched {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{lines: make(chan []byte, 1024), note: os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer func() { _ = f.Close() }()
		var rest []byte
		events := make([]byte, 4096)
		for {
			if _, err := w.note.Read(events); err != nil {
				return // closed
			}
			more, err := io.ReadAll(f)
			if err != nil {
				return
			}
			rest = append(rest, more...)
			for {
				line, after, ok := bytes.Cut(rest, []byte("\n"))
				if !ok {
					break
				}
				select {
				case w.lines <- bytes.Clone(line):
				default: // nobody reads any more
				}
				rest = after
			}
		}
	}()
	return w
}

func (w *watched) close() { _ = w.note.Close() }
