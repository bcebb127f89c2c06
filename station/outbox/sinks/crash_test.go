package sinks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/outboxtest"
)

const (
	envChild = "PROVISIOND_OUTBOX_STATION" // directory of the station
	envDrain = "PROVISIOND_OUTBOX_DRAIN"   // deliver what there is, then end
)

// station is the process that is killed: it appends units from three slots to a
// real journal and delivers to four real sinks meanwhile.
func station(dir string) int {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, err); return 2 }
	var c Config
	text, err := os.ReadFile(filepath.Join(dir, "out.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &c)
	}
	if err != nil {
		return fail(err)
	}
	j, err := journal.Open(filepath.Join(dir, "journal.db"))
	if err != nil {
		return fail(err)
	}
	o, err := c.Open(j, filepath.Join(dir, "state"), nil)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	fmt.Println("ready")
	if os.Getenv(envDrain) == "" {
		size, _ := j.Head()
		for slot := range 3 {
			go func() {
				for n := 0; ; n++ {
					r := outboxtest.Run{Slot: fmt.Sprint("A", slot), Serial: fmt.Sprintf("%d-%d-%d", size, slot, n), MAC: outboxtest.MAC(int(size)*8 + slot + 3*n)}
					if (int(size)+n)%4 == 0 {
						r.Verdict, r.Cause = "FAIL", "unit"
					}
					if _, err := r.Write(ctx, j); err != nil {
						fmt.Fprintln(os.Stderr, err)
						os.Exit(3)
					}
					o.Notify()
				}
			}()
		}
		select {} // until it is killed
	}
	for {
		behind := false
		for _, s := range o.Status() {
			behind = behind || s.State != outbox.StateIdle || s.Behind() > 0
		}
		if !behind {
			cancel()
			if err := <-done; err != nil {
				return fail(err)
			}
			if err := j.Close(); err != nil {
				return fail(err)
			}
			return 0
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// received is what the parent's servers got.
type received struct {
	mu     sync.Mutex
	bodies []string // of the webhook
	labels []string
}

// TestKilled kills the station at random moments and starts it again. At the end
// every sink has every event, in order; JetStream has each once; and of the labels
// of one unit at most one has no mark.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"hot", "state"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "journal.db")
	if err := journal.Init(path, journal.Options{Station: "bench-1"}); err != nil {
		t.Fatal(err)
	}
	var got received
	mes := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // the station was killed in the middle
		}
		if rand.N(10) == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			if rand.N(2) == 0 {
				return // and it did not take it
			}
		}
		got.mu.Lock()
		defer got.mu.Unlock()
		got.bodies = append(got.bodies, string(b))
	}))
	defer mes.Close()
	printer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var printing sync.WaitGroup
	printing.Go(func() {
		for {
			c, err := printer.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			_ = c.Close()
			if len(b) > 0 {
				got.mu.Lock()
				got.labels = append(got.labels, string(b))
				got.mu.Unlock()
			}
		}
	})
	bus, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: filepath.Join(dir, "bus"),
	})
	if err != nil {
		t.Fatal(err)
	}
	bus.Start()
	defer func() { bus.Shutdown(); bus.WaitForShutdown() }()
	if !bus.ReadyForConnections(10 * time.Second) {
		t.Fatal("no NATS server")
	}
	for name, text := range map[string]string{
		"secret": strings.Repeat("k", 32), "label.zpl": "^XA{{text .Serial}}|{{text .Mark}}|{{text .ID}}^XZ",
		"out.yaml": fmt.Sprintf("webhooks: [{name: mes, url: %q, secret_file: %s/secret}]\n"+
			"hot_folders: [{name: erp, dir: %s/hot}]\n"+
			"labels: [{name: line, printer: %q, template: %s/label.zpl}]\n"+
			"jetstreams: [{name: bus, servers: [%q], stream: UNITS, create: {duplicates: 100ms}}]\n",
			mes.URL, dir, dir, printer.Addr(), dir, bus.ClientURL()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	const kills = 15
	for range kills {
		kill(t, dir)
	}
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), envChild+"="+dir, envDrain+"=1")
		return cmd
	}
	if out, err := start().CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_ = printer.Close()
	printing.Wait()
	check(t, path, dir, bus, &got)
}

// kill starts the station and kills it some moments after it is ready.
func kill(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(out, buf); err != nil {
		t.Fatalf("it does not start: %v", err)
	}
	<-time.After(rand.N(350 * time.Millisecond))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("it ended with %v", err)
	}
}

// check compares what arrived with what is in the journal.
func check(t *testing.T, path, dir string, bus *server.Server, got *received) {
	t.Helper()
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	var all, finished, passed []uint64
	for e, err := range j.Entries(0, journal.All) {
		if err != nil {
			t.Fatal(err)
		}
		typ := outbox.TypeOf(e.Kind, e.Step)
		if typ == "" {
			continue
		}
		all = append(all, e.Index)
		if typ == outbox.TypeFinished {
			finished = append(finished, e.Index)
			if strings.Contains(string(e.Payload), `"PASS"`) {
				passed = append(passed, e.Index)
			}
		}
	}
	if len(finished) < 20 {
		t.Fatalf("only %d units", len(finished))
	}

	// The webhook: at least once, in order, with the same bytes.
	first := map[uint64]string{}
	var order []uint64
	for _, b := range got.bodies {
		var ev outbox.Event
		if err := json.Unmarshal([]byte(b), &ev); err != nil {
			t.Fatal(err)
		}
		was, again := first[ev.Index]
		switch {
		case !again:
			first[ev.Index] = b
			order = append(order, ev.Index)
		case was != b:
			t.Errorf("event %d came with other bytes:\n%s\n%s", ev.Index, was, b)
		case ev.Index != order[len(order)-1]:
			t.Errorf("event %d came again after %d", ev.Index, order[len(order)-1])
		}
	}
	if d := cmp.Diff(all, order); d != "" {
		t.Errorf("webhook (-journal +got):\n%s", d)
	}

	// The hot folder: the same bytes, in files that sort in the journal's order.
	files, err := filepath.Glob(filepath.Join(dir, "hot", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	order = nil
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		i, err := strconv.ParseUint(strings.Split(filepath.Base(f), "-")[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, i)
		if string(b) != first[i]+"\n" {
			t.Errorf("%s holds %s", f, b)
		}
	}
	if d := cmp.Diff(finished, order); d != "" {
		t.Errorf("hot folder (-journal +got):\n%s", d)
	}

	// Labels: each unit that passed has one; one without a mark at the most.
	order = nil
	unmarked := map[uint64]int{}
	copies := 0
	for _, l := range got.labels {
		parts := strings.Split(strings.NewReplacer("^XA", "", "^XZ", "", "^FH_^FD", "", "^FS", "", "\n", "").Replace(l), "|")
		i, err := strconv.ParseUint(parts[2][strings.LastIndexByte(parts[2], '-')+1:], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(order, i) {
			order = append(order, i)
		}
		if parts[1] == "" {
			unmarked[i]++
		} else {
			copies++
		}
	}
	if d := cmp.Diff(passed, order); d != "" {
		t.Errorf("labels (-journal +got):\n%s", d)
	}
	for i, n := range unmarked {
		if n > 1 {
			t.Errorf("unit of entry %d has %d labels without a mark", i, n)
		}
	}

	// JetStream: each once, in order.
	nc, err := nats.Connect(bus.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	str, err := js.Stream(t.Context(), "UNITS")
	if err != nil {
		t.Fatal(err)
	}
	order = nil
	for seq := uint64(1); seq <= str.CachedInfo().State.LastSeq; seq++ {
		m, err := str.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		var ev outbox.Event
		if err := json.Unmarshal(m.Data, &ev); err != nil {
			t.Fatal(err)
		}
		order = append(order, ev.Index)
	}
	if d := cmp.Diff(all, order); d != "" {
		t.Errorf("JetStream (-journal +got):\n%s", d)
	}
	t.Logf("%d units; webhook %d requests for %d events, %d labels for %d units (%d copies), %d messages",
		len(finished), len(got.bodies), len(all), len(got.labels), len(passed), copies, len(order))
}
