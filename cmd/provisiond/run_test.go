package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/station"
)

// hall is a folder with what a station of simulated slots needs, and the real
// daemon in it.
type hall struct {
	t      *testing.T
	dir    string
	listen string
	cmd    *exec.Cmd
	exited chan error
	errOut *bytes.Buffer
	notes  *notes
}

const hallToken = "hall-token-0123456789"

func newHall(t *testing.T) *hall {
	t.Helper()
	h := &hall{t: t, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.listen = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	h.run(0, "keystore", "init", "--test", "keystore.db")
	h.run(0, "journal", "init", "journal.db", "--station", "hall")
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(h.dir, sample.Product{Chip: m, Name: "c3", Profile: "hybrid", AppSize: 6 << 10, Baud: 921600}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.dir, "ports.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("ports.d/a.yaml", "slot: A1\nport: sim://esp32c3\n---\nslot: A2\nport: sim://esp32c3\n")
	h.write("tokens", fmt.Sprintf("script engineer %x\n", sha256.Sum256([]byte(hallToken))))
	h.write("station.yaml", h.config(""))
	return h
}

func (h *hall) config(more string) string {
	return fmt.Sprintf(`station: hall
state: state
journal: {file: journal.db}
keystore: keystore.db
recipes: [c3.yaml]
ports: ports.d
simulated: {pause: 100ms, units: 2}
web: {listen: %q, tokens: tokens}
%s`, h.listen, more)
}

func (h *hall) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) run(code int, args ...string) string {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), theBinary(h.t), args...)
	cmd.Dir = h.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code {
		h.t.Fatalf("provisiond %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, &out)
	}
	return out.String()
}

// notes are what systemd is told.
type notes struct {
	mu   sync.Mutex
	text []string
}

func (n *notes) has(s string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.text {
		if strings.Contains(t, s) {
			return true
		}
	}
	return false
}

// start starts the daemon under a service manager, and waits until it is ready.
func (h *hall) start() {
	h.t.Helper()
	sock := filepath.Join(h.t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	heard := &notes{} // the goroutines belong to this start, and there may be another one
	h.notes = heard
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			heard.mu.Lock()
			heard.text = append(heard.text, string(buf[:n]))
			heard.mu.Unlock()
		}
	}()
	h.cmd = exec.Command(theBinary(h.t), "run", "--config", "station.yaml")
	h.cmd.Dir = h.dir
	h.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+sock, "WATCHDOG_USEC=3000000")
	cmd, exited := h.cmd, make(chan error, 1)
	h.errOut, h.exited = &bytes.Buffer{}, exited
	cmd.Stderr = h.errOut
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { exited <- cmd.Wait() }()
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	h.await("READY=1", func() bool { return h.notes.has("READY=1") })
}

func (h *hall) await(what string, ok func() bool) {
	h.t.Helper()
	for range 1200 {
		if ok() {
			return
		}
		select {
		case err := <-h.exited:
			h.t.Fatalf("waiting for %s: the daemon ended: %v\n%s", what, err, h.errOut)
		case <-time.After(50 * time.Millisecond):
		}
	}
	h.t.Fatalf("%s did not come; the station is %+v", what, h.view())
}

func (h *hall) api(method, path, body string) (int, string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+h.listen+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+hallToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (h *hall) view() station.View {
	h.t.Helper()
	var v station.View
	status, b := h.api(http.MethodGet, "/api/v1/station", "")
	if err := json.Unmarshal([]byte(b), &v); err != nil || status != http.StatusOK {
		h.t.Fatalf("%d %v: %s", status, err, b)
	}
	return v
}

func (h *hall) condition(name string) station.Condition {
	h.t.Helper()
	for _, c := range h.view().Conditions {
		if c.Name == name {
			return c
		}
	}
	return station.Condition{}
}

func (h *hall) stop() {
	h.t.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	select {
	case err := <-h.exited:
		if err != nil {
			h.t.Errorf("the daemon ended with %v\n%s", err, h.errOut)
		}
	case <-time.After(2 * time.Minute):
		h.t.Fatal("the daemon does not stop")
	}
}

// TestRun: the daemon makes a lot, reloads without touching what is good, refuses a
// file that is not, and stops in good order; systemd hears of all of it.
func TestRun(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	if out := h.run(0, "run", "--config", "station.yaml", "--check"); !strings.Contains(out, "2 slots, 1 recipes: good") {
		t.Error(out)
	}
	h.start()
	if status, b := h.api(http.MethodPost, "/api/v1/lots", `{"id":"L1","recipe":"c3","quantity":6,"serials":{"from":"range","first":"H001"}}`); status >= 300 {
		t.Fatal(status, b)
	}
	passed := func(n int) func() bool {
		return func() bool { v := h.view(); return len(v.Lots) == 1 && v.Lots[0].Yield.Pass == n }
	}
	h.await("four units", passed(4))
	if !h.notes.has("WATCHDOG=1") || !h.notes.has("STATUS=") {
		t.Errorf("systemd heard %q", h.notes.text)
	}
	_, metrics := h.api(http.MethodGet, "/metrics", "")
	if !strings.Contains(metrics, `provisiond_units_total{`) || strings.Contains(metrics, "02:") {
		t.Error(metrics)
	}

	h.write("ports.d/b.yaml", "slot: A3\nport: sim://esp32c3\n")
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.await("the new slot", func() bool { return len(h.view().Slots) == 3 })
	h.await("six units", passed(6))

	h.write("station.yaml", h.config("statoin: x\n"))
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.await("the refused reload", func() bool { return strings.Contains(h.condition("configuration").Text, "statoin") })
	h.write("station.yaml", h.config(""))
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.await("the good reload", func() bool { return h.condition("configuration").OK })

	h.stop()
	if !h.notes.has("STOPPING=1") {
		t.Errorf("systemd heard %q", h.notes.text)
	}
	h.run(0, "journal", "verify", "journal.db")
	h.run(0, "audit", "reconcile", "--journal", "journal.db", "--keystore", "keystore.db")
}

// TestRunRefuses: what is wrong is said before anything works.
func TestRunRefuses(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	for _, c := range []struct {
		name, old, new, want string
		code                 int
	}{
		{"no journal", "file: journal.db", "file: none.db", "journal init", 13},
		{"another station's journal", "station: hall", "station: line", "is the journal of station hall", 2},
		{"no keystore", "keystore: keystore.db", "keystore: none.db", "keystore init", 12},
		{"no recipe", "[c3.yaml]", "[x*.yaml]", "recipes[0]", 2},
		{"no slots", "ports: ports.d", "ports: state", "state", 2},
		{"simulated slots at a real station", "simulated: {pause: 100ms, units: 2}\n", "", "simulated", 2},
		{"no people", "ports: ports.d", "ports: ports.d\npeople: people.yaml", "people.yaml", 2},
	} {
		h.write("station.yaml", strings.Replace(h.config(""), c.old, c.new, 1))
		if out := h.run(c.code, "run", "--config", "station.yaml"); !strings.Contains(out, c.want) {
			t.Errorf("%s: %s", c.name, out)
		}
	}
}

// TestRunPublicKey: a journal that was replaced whole, with a key of its own, does
// not start where the configuration names the key of the right one.
func TestRunPublicKey(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	key, err := os.ReadFile(filepath.Join(h.dir, "journal.db.pub"))
	if err != nil {
		t.Fatal(err)
	}
	h.write("station.yaml", strings.Replace(h.config(""), "{file: journal.db}", fmt.Sprintf("{file: journal.db, public_key: %q}", strings.TrimSpace(string(key))), 1))
	h.start()
	h.stop()
	for _, name := range []string{"journal.db", "journal.db.key", "journal.db.pub", "journal.db.jsonl"} {
		if err := os.Rename(filepath.Join(h.dir, name), filepath.Join(h.dir, "right-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	h.run(0, "journal", "init", "journal.db", "--station", "hall")
	forged, err := os.ReadFile(filepath.Join(h.dir, "journal.db.pub"))
	if err != nil {
		t.Fatal(err)
	}
	out := h.run(13, "run", "--config", "station.yaml")
	for _, want := range []string{"wrong key", strings.TrimSpace(string(key)), strings.TrimSpace(string(forged)), "another journal"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %q", out, want)
		}
	}
}

// TestRunOlderThanAnchor: the daemon does not start on a journal, with its copy,
// that was put back from before what its anchor knows.
func TestRunOlderThanAnchor(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	if err := os.Mkdir(filepath.Join(h.dir, "anchor"), 0o755); err != nil {
		t.Fatal(err)
	}
	anchored := func(h *hall) string {
		return strings.Replace(h.config(""), "{file: journal.db}", "{file: journal.db, anchor: anchor}", 1)
	}
	h.run(0, "journal", "checkpoint", "journal.db", "--anchor", "anchor")
	old := map[string][]byte{}
	for _, name := range []string{"journal.db", "journal.db.jsonl"} {
		b, err := os.ReadFile(filepath.Join(h.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		old[name] = b
	}
	h.write("station.yaml", anchored(h))
	h.start()
	if c := h.condition("journal-anchor"); !c.OK {
		t.Errorf("%+v", c)
	}
	if status, b := h.api(http.MethodPost, "/api/v1/lots", `{"id":"L1","recipe":"c3","quantity":1,"serials":{"from":"range","first":"H001"}}`); status >= 300 {
		t.Fatal(status, b)
	}
	h.await("a unit", func() bool { v := h.view(); return len(v.Lots) == 1 && v.Lots[0].Yield.Pass == 1 })
	h.stop()
	h.start() // the newer one starts
	h.stop()
	for name, b := range old {
		h.write(name, string(b))
	}
	out := h.run(13, "run", "--config", "station.yaml")
	for _, want := range []string{"not the one that is anchored", "it has 1 entries", "entry 0 is the last that is known to be in both", "journal init --succeeds"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nlacks %q", out, want)
		}
	}
}
