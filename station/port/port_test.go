//go:build linux

package port_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/station/port"
)

// board is the far end of an open port.
type board struct {
	port   port.Port
	name   string
	info   rom.PortInfo
	far    io.ReadWriter // what a chip would have on its UART
	unplug func()
}

// transports opens each kind of port that has a far end of its own.
var transports = map[string]func(t *testing.T) board{
	"tty":     ttyBoard,
	"socket":  socketBoard,
	"rfc2217": rfc2217Board,
}

func open(t *testing.T, name string, o port.Options) port.Port {
	t.Helper()
	p, err := port.Open(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func ttyBoard(t *testing.T) board {
	master, name := newPTY(t)
	return board{
		port: open(t, name, port.Options{}), name: name, info: rom.PortInfo{Name: name},
		far: master, unplug: func() { _ = master.Close() },
	}
}

// newPTY gives a PTY's master and the name of its slave, in raw mode.
func newPTY(t *testing.T) (io.ReadWriteCloser, string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	name := slave.Name()
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	return master, name
}

func socketBoard(t *testing.T) board {
	l := listen(t)
	conns := accept(t, l)
	name := "socket://" + l.Addr().String()
	p := open(t, name, port.Options{})
	c := <-conns
	return board{port: p, name: name, info: rom.PortInfo{Name: name}, far: c, unplug: func() { _ = c.Close() }}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept hands out the connections of l, and closes them in the end.
func accept(t *testing.T, l net.Listener) <-chan net.Conn {
	conns := make(chan net.Conn, 8)
	go func() {
		defer close(conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			conns <- c
		}
	}()
	return conns
}

func rfc2217Board(t *testing.T) board {
	s := newServer(t)
	name := s.name()
	p := open(t, name, port.Options{})
	return board{
		port: p, name: name, info: rom.PortInfo{Name: name, Lines: true, Network: true},
		far: s.current(), unplug: s.current().hangUp,
	}
}

func eachTransport(t *testing.T, f func(t *testing.T, b board)) {
	for name, start := range transports {
		t.Run(name, func(t *testing.T) { f(t, start(t)) })
	}
}

// everyByte is a few kilobytes with every byte value, and runs of IAC.
func everyByte() []byte {
	b := make([]byte, 0, 8<<10)
	for i := range 4 << 10 {
		b = append(b, byte(i), byte(i>>4))
	}
	return append(b, 0xFF, 0xFF, 0xFF, 0xF0, 0xFF, '\r', 0, '\r', '\n')
}

func readFull(ctx context.Context, p rom.Port, n int) ([]byte, error) {
	b := make([]byte, n)
	for have := 0; have < n; {
		m, err := p.Read(ctx, b[have:])
		if have += m; err != nil {
			return b[:have], err
		}
	}
	return b, nil
}

func TestData(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		want := everyByte()
		sent := make(chan error, 1)
		go func() {
			n, err := b.port.Write(t.Context(), want)
			if err == nil && n != len(want) {
				err = io.ErrShortWrite
			}
			sent <- err
		}()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(b.far, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("the board got other bytes than were written")
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}

		go func() { _, err := b.far.Write(want); sent <- err }()
		got, err := readFull(t.Context(), b.port, len(want))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes were read than the board wrote")
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

func TestInfo(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		if got := b.port.Info(); got != b.info {
			t.Errorf("Info = %+v, want %+v", got, b.info)
		}
	})
}

// A second reader would only see what Discard has left.
func TestDiscard(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		if _, err := b.far.Write([]byte("stale, and more of it")); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(t.Context(), b.port, 5); err != nil {
			t.Fatal(err)
		}
		if err := b.port.Discard(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.far.Write([]byte("fresh")); err != nil {
			t.Fatal(err)
		}
		got, err := readFull(t.Context(), b.port, 5)
		if err != nil || string(got) != "fresh" {
			t.Errorf("after Discard came %q, %v", got, err)
		}
	})
}

// fastest runs f, which measures one delay, up to three times: another process
// on this machine can delay one run.
func fastest(t *testing.T, limit time.Duration, f func() time.Duration) {
	t.Helper()
	var all []time.Duration
	for range 3 {
		d := f()
		if d <= limit {
			return
		}
		all = append(all, d)
	}
	t.Errorf("it took %v, want at most %v", all, limit)
}

// lateBy runs call under a context that ends soon, and says how much later the
// call came back.
func lateBy(t *testing.T, call func(ctx context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := call(ctx)
	end, _ := ctx.Deadline()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at its context's end a call gave %v", err)
	}
	return time.Since(end)
}

func TestContextEndsCalls(t *testing.T) {
	const limit = 100 * time.Millisecond
	eachTransport(t, func(t *testing.T, b board) {
		fastest(t, limit, func() time.Duration {
			return lateBy(t, func(ctx context.Context) error {
				_, err := b.port.Read(ctx, make([]byte, 16))
				return err
			})
		})
		// The port is as good as before.
		if _, err := b.far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if got, err := readFull(t.Context(), b.port, 1); err != nil || got[0] != 'x' {
			t.Errorf("after a context's end Read gave %q, %v", got, err)
		}
		if b.info.Network {
			return // its server reads on, see TestRFC2217WriteEnds
		}
		fastest(t, limit, func() time.Duration {
			return lateBy(t, func(ctx context.Context) error {
				_, err := b.port.Write(ctx, make([]byte, 64<<20)) // nobody reads
				return err
			})
		})
	})
}

// calls is every call of a port that can fail.
var calls = map[string]func(ctx context.Context, p rom.Port) error{
	"Read":    func(ctx context.Context, p rom.Port) error { _, err := p.Read(ctx, make([]byte, 16)); return err },
	"Write":   func(ctx context.Context, p rom.Port) error { _, err := p.Write(ctx, []byte("x")); return err },
	"Discard": func(ctx context.Context, p rom.Port) error { return p.Discard(ctx) },
	"SetBaud": func(ctx context.Context, p rom.Port) error { return p.SetBaud(ctx, 460800) },
	"SetLines": func(ctx context.Context, p rom.Port) error {
		return p.SetLines(ctx, true, false)
	},
	"Reopen": func(ctx context.Context, p rom.Port) error { return p.Reopen(ctx) },
}

func TestEndedContext(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for name, call := range calls {
			if name == "Reopen" {
				continue // it leaves the port closed
			}
			if err := call(ctx, b.port); !errors.Is(err, context.Canceled) {
				t.Errorf("%s gave %v", name, err)
			}
		}
		if _, err := b.far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(t.Context(), b.port, 1); err != nil {
			t.Errorf("the port is of no more use: %v", err)
		}
	})
}

func TestUnplugDuringRead(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		got := make(chan error, 1)
		reading := make(chan struct{})
		go func() {
			_, err := b.port.Read(t.Context(), make([]byte, 1))
			if err != nil {
				got <- err
				return
			}
			close(reading)
			_, err = b.port.Read(t.Context(), make([]byte, 1))
			got <- err
		}()
		if _, err := b.far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		<-reading
		start := time.Now()
		b.unplug()
		if err := <-got; !errors.Is(err, rom.ErrUnplugged) {
			t.Errorf("Read gave %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// noticing lists the calls that see by themselves that the far end has gone. A
// raw TCP port sees it when it receives.
var noticing = map[string][]string{
	"tty":     {"Read", "Write", "Discard", "SetBaud", "Read"},
	"socket":  {"Read", "Discard", "Read"},
	"rfc2217": {"Read", "Write", "Discard", "SetBaud", "SetLines", "Read"},
}

func TestUnpluggedStaysSo(t *testing.T) {
	for kind, start := range transports {
		t.Run(kind, func(t *testing.T) {
			b := start(t)
			b.unplug()
			for _, name := range noticing[kind] {
				err := calls[name](t.Context(), b.port)
				if !errors.Is(err, rom.ErrUnplugged) {
					t.Errorf("%s gave %v", name, err)
				} else if !strings.Contains(err.Error(), b.name) {
					t.Errorf("the error of %s does not name the port: %v", name, err)
				}
			}
		})
	}
}

func TestCloseWakesRead(t *testing.T) {
	eachTransport(t, func(t *testing.T, b board) {
		got := make(chan error, 1)
		go func() {
			var err error
			for err == nil {
				_, err = b.port.Read(t.Context(), make([]byte, 1))
			}
			got <- err
		}()
		if _, err := b.far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := b.port.Close(); err != nil {
			t.Error(err)
		}
		if err := <-got; errors.Is(err, rom.ErrUnplugged) || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Read gave %v", err)
		}
		for name, call := range calls {
			if err := call(t.Context(), b.port); err == nil || !strings.Contains(err.Error(), "closed") {
				t.Errorf("%s on a closed port gave %v", name, err)
			}
		}
		if err := b.port.Close(); err != nil {
			t.Errorf("the second Close gave %v", err)
		}
	})
}

func TestNoLines(t *testing.T) {
	for _, kind := range []string{"tty", "socket"} {
		t.Run(kind, func(t *testing.T) {
			b := transports[kind](t)
			if err := b.port.SetLines(t.Context(), false, true); !errors.Is(err, rom.ErrNoLines) {
				t.Errorf("SetLines gave %v", err)
			}
		})
	}
}

func TestOpenRefusesRate(t *testing.T) {
	_, name := newPTY(t)
	for _, baud := range []int{-1, 49, 13_000_000} {
		if _, err := port.Open(t.Context(), name, port.Options{Baud: baud}); err == nil || !strings.Contains(err.Error(), "not a rate") {
			t.Errorf("%d baud: %v", baud, err)
		}
	}
	p := open(t, name, port.Options{})
	if err := p.SetBaud(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "not a rate") {
		t.Errorf("SetBaud(0): %v", err)
	}
}

func TestOpenNames(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "ttyUSB7")
	l := listen(t)
	refused := "socket://" + l.Addr().String()
	_ = l.Close()
	for name, next := range map[string][]string{
		missing:   {"no such file", "no serial device is plugged in"},
		refused:   {"nothing listens there"},
		"ttyUSB0": {"write /dev/ttyUSB0"},
	} {
		_, err := port.Open(t.Context(), name, port.Options{Dev: t.TempDir()})
		if err == nil {
			t.Errorf("%s opened", name)
			continue
		}
		if slices.ContainsFunc(next, func(s string) bool { return !strings.Contains(err.Error(), s) }) {
			t.Errorf("%s: %v, want %q in it", name, err, next)
		}
	}
}
