package serve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for an event that must come.
const patience = 10 * time.Second

var errGone = errors.New("board unplugged")

// fakeBoard is a Host that notes what is done to it.
type fakeBoard struct {
	mu        sync.Mutex
	wake      chan struct{}
	out       []byte   // from the board, not read yet
	log       []string // calls, with consecutive writes joined
	unplugged bool
	open      bool
}

func newBoard() *fakeBoard { return &fakeBoard{wake: make(chan struct{}), open: true} }

func (b *fakeBoard) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.wake)
	b.wake = make(chan struct{})
}

func (b *fakeBoard) print(s string) { b.change(func() { b.out = append(b.out, s...) }) }
func (b *fakeBoard) unplug()        { b.change(func() { b.unplugged, b.open = true, false }) }
func (b *fakeBoard) plug()          { b.change(func() { b.unplugged = false }) }

// await waits until the log satisfies ok, which is called with the board locked,
// and gives the log.
func (b *fakeBoard) await(t *testing.T, what string, ok func(log []string) bool) []string {
	t.Helper()
	deadline := time.After(patience)
	for {
		b.mu.Lock()
		log, wake := slices.Clone(b.log), b.wake
		done := ok(log)
		b.mu.Unlock()
		if done {
			return log
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("%s did not happen; the board saw %q", what, log)
		}
	}
}

func (b *fakeBoard) awaitLast(t *testing.T, entry string) {
	t.Helper()
	b.await(t, entry, func(log []string) bool { return len(log) > 0 && log[len(log)-1] == entry })
}

// awaitDrained waits until everything that the board printed was taken.
func (b *fakeBoard) awaitDrained(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	for {
		b.mu.Lock()
		left, wake := len(b.out), b.wake
		b.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("%d bytes of output are not read", left)
		}
	}
}

func (b *fakeBoard) Read(ctx context.Context, p []byte) (int, error) {
	for {
		b.mu.Lock()
		open, wake := b.open, b.wake
		n := copy(p, b.out)
		b.out = b.out[n:]
		b.mu.Unlock()
		switch {
		case !open:
			return 0, errGone
		case n > 0:
			b.change(func() {})
			return n, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (b *fakeBoard) note(entry string) (err error) {
	b.change(func() {
		if !b.open {
			err = errGone
			return
		}
		b.log = append(b.log, entry)
	})
	return err
}

func (b *fakeBoard) Write(_ context.Context, p []byte) (int, error) {
	var err error
	b.change(func() {
		last := len(b.log) - 1
		switch {
		case !b.open:
			err = errGone
		case last >= 0 && strings.HasPrefix(b.log[last], "write "):
			b.log[last] += fmt.Sprintf("%x", p)
		default:
			b.log = append(b.log, fmt.Sprintf("write %x", p))
		}
	})
	return len(p), err
}

func (b *fakeBoard) SetBaud(_ context.Context, baud int) error {
	return b.note(fmt.Sprintf("baud %d", baud))
}

func (b *fakeBoard) SetLines(_ context.Context, dtr, rts bool) error {
	return b.note(fmt.Sprintf("lines %v %v", dtr, rts))
}

// reopenable is a fakeBoard that must be reopened after it was plugged in again,
// as the simulated chip must.
type reopenable struct{ *fakeBoard }

func (r reopenable) Reopen(context.Context) (err error) {
	r.change(func() {
		if r.unplugged {
			err = errGone
			return
		}
		r.open = true
	})
	return err
}

// start runs a server until the test ends, and checks that it then ends well.
func start(t *testing.T, run func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the server did not end with its context")
		}
	})
	t.Cleanup(stop)
	return stop
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func send(t *testing.T, w io.Writer, p []byte) {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %x (%v), want %x", got[:n], err, want)
	}
}

func expectEnd(t *testing.T, r io.Reader) {
	t.Helper()
	rest, err := io.ReadAll(r)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("still connected after %q", rest)
	}
}

func TestTCP(t *testing.T) {
	b, ln := newBoard(), listen(t)
	start(t, func(ctx context.Context) error { return TCP(ctx, ln, b) })

	b.print("nobody hears this")
	b.awaitDrained(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	conn := dial(t, ln)
	send(t, conn, all)
	b.awaitLast(t, fmt.Sprintf("write %x", all))
	if log := b.await(t, "the baud rate", func(l []string) bool { return len(l) == 2 }); log[0] != "baud 0" {
		t.Errorf("before the first byte: %q", log)
	}
	b.print("hello")
	expect(t, conn, []byte("hello"))

	// The second client is connected, and served when the first has gone.
	second := dial(t, ln)
	send(t, second, []byte{0xAB})
	send(t, conn, []byte{0xCD})
	b.await(t, "the first client's byte", func(l []string) bool { return strings.HasSuffix(l[len(l)-1], "cd") })
	b.print("for the first")
	expect(t, conn, []byte("for the first"))
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.awaitLast(t, "write ab")
	b.print("for the second")
	expect(t, second, []byte("for the second"))
}

func TestTCPStopsWithAClient(t *testing.T) {
	b, ln := newBoard(), listen(t)
	stop := start(t, func(ctx context.Context) error { return TCP(ctx, ln, b) })
	conn := dial(t, ln)
	b.awaitLast(t, "baud 0")
	stop()
	expectEnd(t, conn)
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the listener is still open")
	}
}

func TestListenerFails(t *testing.T) {
	for name, run := range map[string]func(context.Context, net.Listener) error{
		"TCP":     func(ctx context.Context, ln net.Listener) error { return TCP(ctx, ln, newBoard()) },
		"RFC2217": func(ctx context.Context, ln net.Listener) error { return RFC2217(ctx, ln, newBoard()) },
		"Control": func(ctx context.Context, ln net.Listener) error { return Control(ctx, ln, &fakeFixture{}) },
	} {
		ln := listen(t)
		_ = ln.Close()
		if err := run(context.Background(), ln); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnplug(t *testing.T) {
	for name, port := range map[string]func(ctx context.Context, ln net.Listener, h Host) error{"TCP": TCP, "RFC2217": RFC2217} {
		t.Run(name, func(t *testing.T) {
			b, ln := newBoard(), listen(t)
			start(t, func(ctx context.Context) error { return port(ctx, ln, reopenable{b}) })
			conn := dial(t, ln)
			b.await(t, "the session", func(l []string) bool { return len(l) > 0 })
			b.unplug()
			expectEnd(t, conn)
			expectEnd(t, dial(t, ln)) // nothing to talk to meanwhile
			b.plug()
			b.await(t, "the reopening", func([]string) bool { return b.open })
			conn = dial(t, ln)
			if name == "RFC2217" {
				expect(t, conn, newOptions().offers())
			} else {
				send(t, conn, []byte{1})
				b.awaitLast(t, "write 01")
			}
			b.print("again")
			expect(t, conn, []byte("again"))
		})
	}
}

// TestUnplugWithoutReopen: a Host without Reopen comes back by itself.
func TestUnplugWithoutReopen(t *testing.T) {
	b, ln := newBoard(), listen(t)
	start(t, func(ctx context.Context) error { return TCP(ctx, ln, b) })
	conn := dial(t, ln)
	b.awaitLast(t, "baud 0")
	b.unplug()
	expectEnd(t, conn)
	b.change(func() { b.unplugged, b.open = false, true })
	conn = dial(t, ln)
	send(t, conn, []byte{2})
	b.awaitLast(t, "write 02")
	b.print("back")
	expect(t, conn, []byte("back"))
}

func sub(payload ...byte) []byte {
	return tnEvent{kind: tnSub, opt: optComPort, payload: payload}.encode(nil)
}

func TestRFC2217(t *testing.T) {
	b, ln := newBoard(), listen(t)
	stop := start(t, func(ctx context.Context) error { return RFC2217(ctx, ln, b) })
	conn := dial(t, ln)
	expect(t, conn, []byte{
		tnIAC, tnWILL, optBinary, tnIAC, tnDO, optBinary, tnIAC, tnWILL, optSGA, tnIAC, tnDO, optSGA,
		tnIAC, tnWILL, optComPort, tnIAC, tnDO, optComPort,
	})
	b.awaitLast(t, "lines false false")

	// Negotiation: agreed options are not confirmed twice, unknown ones refused.
	// The modem state is told once the client has agreed to COM-PORT.
	send(t, conn, []byte{tnIAC, tnWILL, optComPort, tnIAC, tnWILL, optComPort, tnIAC, tnDO, optComPort, tnIAC, tnDO, optEcho, tnIAC, tnDO, 24, tnIAC, tnWILL, 31})
	expect(t, conn, sub(107, modemState))
	expect(t, conn, []byte{tnIAC, tnWILL, optEcho, tnIAC, tnWONT, 24, tnIAC, tnDONT, 31})
	send(t, conn, []byte{tnIAC, tnDONT, optEcho, tnIAC, tnDONT, optEcho, tnIAC, tnWONT, 31, tnIAC, tnWONT, optSGA, tnIAC, 241})
	expect(t, conn, []byte{tnIAC, tnWONT, optEcho, tnIAC, tnDONT, optSGA})

	for _, c := range []struct {
		name    string
		ask     []byte
		answer  []byte
		does    string // what the board then sees last
		changes bool
	}{
		{"baud", []byte{1, 0, 7, 8, 0}, []byte{101, 0, 7, 8, 0}, "baud 460800", true},
		{"what baud", []byte{1, 0, 0, 0, 0}, []byte{101, 0, 7, 8, 0}, "baud 460800", false},
		{"absurd baud", []byte{1, 0xFE, 0xFF, 0xFF, 0xFF}, []byte{101, 0, 7, 8, 0}, "baud 460800", false},
		{"data size", []byte{2, 8}, []byte{102, 8}, "", false},
		{"seven bits", []byte{2, 7}, []byte{102, 8}, "", false},
		{"parity", []byte{3, 3}, []byte{103, 1}, "", false},
		{"stop size", []byte{4, 0}, []byte{104, 1}, "", false},
		{"no flow control", []byte{5, 1}, []byte{105, 1}, "", false},
		{"hardware flow control", []byte{5, 3}, []byte{105, 1}, "", false},
		{"inbound flow control", []byte{5, 16}, []byte{105, 14}, "", false},
		{"DSR flow control", []byte{5, 19}, []byte{105, 1}, "", false},
		{"break on", []byte{5, 5}, []byte{105, 6}, "", false},
		{"DTR on", []byte{5, 8}, []byte{105, 8}, "lines true false", true},
		{"RTS on", []byte{5, 11}, []byte{105, 11}, "lines true true", true},
		{"DTR?", []byte{5, 7}, []byte{105, 8}, "lines true true", false},
		{"modem state?", []byte{7}, []byte{107, modemState}, "", false},
		{"DTR off", []byte{5, 9}, []byte{105, 9}, "lines false true", true},
		{"RTS?", []byte{5, 10}, []byte{105, 11}, "lines false true", false},
		{"RTS off", []byte{5, 12}, []byte{105, 12}, "lines false false", true},
		{"DTR? again", []byte{5, 7}, []byte{105, 9}, "", false},
		{"purge", []byte{12, 3}, []byte{112, 3}, "", false},
		{"line state mask", []byte{10, 0xFF}, []byte{110, 0xFF}, "", false},
		{"signature", []byte{0}, append([]byte{100}, signature...), "", false},
	} {
		before := len(b.await(t, "nothing", func([]string) bool { return true }))
		send(t, conn, sub(c.ask...))
		expect(t, conn, sub(c.answer...))
		log := b.await(t, "nothing", func([]string) bool { return true })
		if changed := len(log) > before; changed != c.changes || c.does != "" && log[len(log)-1] != c.does {
			t.Errorf("%s: the board saw %q", c.name, log[before:])
		}
	}
	send(t, conn, sub(11, 0xFF))
	expect(t, conn, append(sub(111, 0xFF), sub(107, modemState)...))

	// What has a wrong length, or is no COM-PORT command, is passed over.
	send(t, conn, slices.Concat(sub(), sub(1, 1), sub(2), sub(2, 8, 8), sub(99, 1), sub(0, 'm', 'e'), []byte{tnIAC, tnSB, 24, 1, tnIAC, tnSE}))

	// Data in both directions, IAC doubled, in order with commands.
	send(t, conn, slices.Concat([]byte{0, tnIAC, tnIAC, 0xC0, '\r', '\n'}, sub(5, 8), []byte{1}))
	b.awaitLast(t, "write 01")
	log := b.await(t, "nothing", func([]string) bool { return true })
	if want := []string{"write 00ffc00d0a", "lines true false", "write 01"}; !slices.Equal(log[len(log)-3:], want) {
		t.Errorf("the board saw %q, want %q", log, want)
	}
	expect(t, conn, sub(105, 8))
	b.print("\xff\x00\xc0\r\n")
	expect(t, conn, []byte{tnIAC, tnIAC, 0, 0xC0, '\r', '\n'})

	// A client's end lets the lines go.
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.awaitLast(t, "lines false false")

	// So does the server's.
	conn = dial(t, ln)
	expect(t, conn, newOptions().offers())
	send(t, conn, sub(5, 11))
	expect(t, conn, append(sub(107, modemState), sub(105, 11)...))
	stop()
	b.awaitLast(t, "lines false false")
	expectEnd(t, conn)
}

// TestRFC2217Reset: however long a client takes between two line changes, the
// board is not let go before its strap is low.
func TestRFC2217Reset(t *testing.T) {
	b, ln := newBoard(), listen(t)
	start(t, func(ctx context.Context) error { return RFC2217(ctx, ln, b) })
	conn := dial(t, ln)
	expect(t, conn, newOptions().offers())
	set := func(v byte) {
		t.Helper()
		send(t, conn, sub(5, v))
		expect(t, conn, sub(105, v))
	}
	// Without a WILL, the first command brings the modem state.
	send(t, conn, sub(2, 8))
	expect(t, conn, append(sub(107, modemState), sub(102, 8)...))
	// The classic reset: EN low, then the strap low, then EN high, then the strap.
	set(controlDTROff)
	set(controlRTSOn)
	set(controlDTROn)
	set(controlRTSOff)
	set(controlDTROff)
	want := []string{"baud 115200", "lines false false", "lines false false", "lines false true", "lines true false", "lines false false"}
	if log := b.await(t, "nothing", func([]string) bool { return true }); !slices.Equal(log, want) {
		t.Errorf("the board saw %q, want %q", log, want)
	}
	// Both lines asserted for good do reach the board, with nothing more to come.
	set(controlRTSOn)
	set(controlDTROn)
	b.awaitLast(t, "lines true true")
	// A held state does not outlive its client, nor the board.
	set(controlDTROff)
	set(controlDTROn)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.awaitLast(t, "lines false false")
	conn = dial(t, ln)
	expect(t, conn, newOptions().offers())
	send(t, conn, []byte{tnIAC, tnWILL, optComPort})
	expect(t, conn, sub(107, modemState))
	set(controlRTSOn)
	set(controlDTROn)
	b.unplug()
	expectEnd(t, conn)
}

// TestSlowClient: a client that takes nothing is disconnected in the end, and the
// board's output is read on.
func TestSlowClient(t *testing.T) {
	server, client := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	ended := make(chan struct{})
	_ = server.Close() // a write then fails at once, as after the patience
	writeConn(server, []byte{1}, sync.OnceFunc(func() { close(ended) }))
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the session was not ended")
	}
}

// fakeFixture is a Controller that notes what is done to it.
type fakeFixture struct{ log []string }

func (f *fakeFixture) ResetInto(d bool) { f.log = append(f.log, fmt.Sprintf("reset %v", d)) }
func (f *fakeFixture) Power(on bool)    { f.log = append(f.log, fmt.Sprintf("power %v", on)) }
func (f *fakeFixture) Unplug()          { f.log = append(f.log, "unplug") }
func (f *fakeFixture) Plug()            { f.log = append(f.log, "plug") }
func (f *fakeFixture) Status() string   { return "running,\n  plugged in" }

func TestControl(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "control"))
	if err != nil {
		t.Fatal(err)
	}
	fixture := &fakeFixture{}
	stop := start(t, func(ctx context.Context) error { return Control(ctx, ln, fixture) })

	idle := dial(t, ln) // does not keep others waiting
	conn := dial(t, ln)
	replies := bufio.NewReader(conn)
	for _, c := range []struct{ line, reply string }{
		{"reset download", "ok"},
		{"reset run\r", "ok"},
		{"power off", "ok"},
		{"power on", "ok"},
		{"power cycle", "ok"},
		{"unplug", "ok"},
		{"plug", "ok"},
		{"status", "ok running, plugged in"},
		{"Status", `error: unknown command "Status": say one of reset download, reset run, power off, power on, power cycle, unplug, plug, status`},
		{"", `error: unknown command "": say one of reset download, reset run, power off, power on, power cycle, unplug, plug, status`},
		{strings.Repeat("x", 99), `error: unknown command "` + strings.Repeat("x", 40) + `…": say one of reset download, reset run, power off, power on, power cycle, unplug, plug, status`},
	} {
		send(t, conn, []byte(c.line+"\n"))
		got, err := replies.ReadString('\n')
		if err != nil || got != c.reply+"\n" {
			t.Errorf("%q is answered with %q (%v), want %q", c.line, got, err, c.reply)
		}
	}
	stop()
	expectEnd(t, idle)
	expectEnd(t, conn)
	want := []string{"reset true", "reset false", "power false", "power true", "power false", "power true", "unplug", "plug"}
	if !slices.Equal(fixture.log, want) {
		t.Errorf("the fixture did %q, want %q", fixture.log, want)
	}
}

func TestControlEndlessLine(t *testing.T) {
	var out bytes.Buffer
	in := struct {
		io.Reader
		io.Writer
	}{strings.NewReader("status\n" + strings.Repeat("y", 5000)), &out}
	controlClient(context.Background(), in, &fakeFixture{}, new(sync.Mutex))
	if got := out.String(); got != "ok running, plugged in\nerror: a line has at most 256 bytes\n" {
		t.Errorf("replies %q", got)
	}
}

func FuzzControl(f *testing.F) {
	for _, c := range commands {
		f.Add(string(c))
	}
	f.Add("reset  run")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := parseCommand(line)
		if err == nil && string(c) != line {
			t.Fatalf("%q parses as %q", line, c)
		}
		reply := obey(&fakeFixture{}, c, err)
		if strings.ContainsAny(reply, "\r\n") {
			t.Fatalf("%q is answered with more than a line: %q", line, reply)
		}
		if ok := strings.HasPrefix(reply, "ok"); ok != (err == nil) || !ok && !strings.HasPrefix(reply, "error: ") {
			t.Fatalf("%q is answered with %q", line, reply)
		}
	})
}

func parse(p *tnParser, b []byte) (events []tnEvent) {
	for _, x := range b {
		if e, whole := p.feed(x); whole {
			events = append(events, e)
		}
	}
	return events
}

func encode(events []tnEvent) (b []byte) {
	for _, e := range events {
		b = e.encode(b)
	}
	return b
}

func TestTelnetParser(t *testing.T) {
	for _, c := range []struct {
		name    string
		in, out []byte // out: what the events encode to
		dropped int
	}{
		{"IAC in a payload", sub(1, tnIAC, 2), sub(1, tnIAC, 2), 0},
		{"command inside a payload", []byte{tnIAC, tnSB, 44, 1, tnIAC, tnDO, 3, 'x'}, []byte{tnIAC, tnDO, 3, 'x'}, 1},
		{"payload inside a payload", slices.Concat([]byte{tnIAC, tnSB, 44, 1, 2}, sub(5, 1)), sub(5, 1), 1},
		{"payload too long", slices.Concat(sub(make([]byte, maxSub+1)...), []byte("on")), []byte("on"), 1},
		{"long with IAC", slices.Concat([]byte{tnIAC, tnSB, 44}, make([]byte, 2000), []byte{tnIAC, tnIAC, 9, tnIAC, tnWILL, 1}), []byte{tnIAC, tnWILL, 1}, 1},
		{"longest payload", sub(make([]byte, maxSub)...), sub(make([]byte, maxSub)...), 0},
		{"stray SE", []byte{tnIAC, tnSE, 1}, []byte{tnIAC, tnSE, 1}, 0},
	} {
		var p tnParser
		if got := encode(parse(&p, c.in)); !bytes.Equal(got, c.out) || p.dropped != c.dropped {
			t.Errorf("%s: %x, %d dropped; want %x, %d", c.name, got, p.dropped, c.out, c.dropped)
		}
	}
}

// FuzzTelnet: what parses re-encodes to the same bytes, unless the parser said
// that it dropped something; and what it gives parses to the same again.
func FuzzTelnet(f *testing.F) {
	f.Add(slices.Concat(newOptions().offers(), sub(1, 0, 1, 0xC2, 0), []byte("data\xff\xff\r\x00"), sub(5, 8), []byte{tnIAC, 241}))
	f.Add([]byte{tnIAC, tnSB, 44, 1, tnIAC, tnDO, 3})
	f.Add(sub(make([]byte, maxSub+2)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		var p tnParser
		events := parse(&p, in)
		out := encode(events)
		if p.dropped == 0 && !bytes.HasPrefix(in, out) {
			t.Fatalf("%x re-encodes as %x", in, out)
		}
		if p.dropped == 0 && p.state == inData && !bytes.Equal(in, out) {
			t.Fatalf("%x lost bytes: %x", in, out)
		}
		var again tnParser
		if second := encode(parse(&again, out)); !bytes.Equal(second, out) || again.dropped != 0 || again.state != inData {
			t.Fatalf("%x parses differently again: %x", out, second)
		}
		options := newOptions()
		for _, e := range events {
			if e.kind != tnOption {
				continue
			}
			// An answer is a single command about the same option, and a peer
			// that agrees with it ends the exchange.
			if a := options.answer(e.code, e.opt); a != nil && (len(a) != 3 || a[0] != tnIAC || a[2] != e.opt) {
				t.Fatalf("answer %x to %x %x", a, e.code, e.opt)
			}
			if a := options.answer(e.code, e.opt); a != nil && (e.code == tnWONT || e.code == tnDONT) {
				t.Fatalf("answer %x to a repeated refusal", a)
			}
		}
	})
}
