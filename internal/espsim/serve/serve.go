// Package serve lets tools of all kinds talk to a simulated board: over a pseudo
// terminal ([PTY]), a raw TCP socket ([TCP]), RFC 2217 ([RFC2217]), and, for what
// a fixture's hand would do, a line protocol ([Control]).
//
// Each function serves until its context ends or its listener fails, and returns
// only after everything that it started has ended: nil for the context's end.
// A listener that is handed over is closed on return.
//
// The board's output is read all the time. While no client is there it is lost,
// as on a serial cable that nobody listens to. A port serves one client at a time.
//
// When the board is unplugged, the client of a TCP port is disconnected, and the
// pseudo terminal vanishes. If the Host also has a method Reopen(context.Context)
// error, it is called until it succeeds; otherwise the next successful Read ends
// the outage.
package serve

import (
	"context"
	"net"
	"sync"
	"time"
)

// Host is the simulated board's serial adapter as its driver sees it. Every call
// returns soon after its context's end, and fails while the board is unplugged.
// The calls come from several goroutines.
type Host interface {
	// Read waits for at least one byte from the board.
	Read(ctx context.Context, p []byte) (int, error)
	// Write sends all of p or fails.
	Write(ctx context.Context, p []byte) (int, error)
	// SetBaud changes the adapter's rate; 0 makes it follow the chip.
	SetBaud(ctx context.Context, baud int) error
	// SetLines asserts (true) or releases DTR and RTS.
	SetLines(ctx context.Context, dtr, rts bool) error
}

// reopener is what a Host may also be.
type reopener interface {
	Reopen(ctx context.Context) error
}

const (
	defaultBaud = 115200
	// retryPause is how often an unplugged board is looked for.
	retryPause = 20 * time.Millisecond
	// pollPause is how often a pseudo terminal's baud rate is looked at, and how
	// often one without a client is looked at for one.
	pollPause = 5 * time.Millisecond
	// clientPatience is how long a client may refuse the board's output before it
	// is disconnected.
	clientPatience = 5 * time.Second
)

// line reads a Host's output for whoever listens at the moment.
type line struct {
	h Host

	mu     sync.Mutex
	sink   func(p []byte) // the client; nil: there is none
	hangup func()         // ends the client's session
	up     chan struct{}  // closed while the board is plugged in
}

func newLine(h Host) *line {
	l := &line{h: h, up: make(chan struct{})}
	close(l.up)
	return l
}

// attach makes sink the listener until detach. hangup is called, once or more,
// when the board is unplugged; it must not block or detach.
func (l *line) attach(sink func(p []byte), hangup func()) (detach func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sink, l.hangup = sink, hangup
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sink, l.hangup = nil, nil
	}
}

// pump runs until the context ends.
func (l *line) pump(ctx context.Context) {
	buf := make([]byte, 4096)
	for {
		n, err := l.h.Read(ctx, buf)
		if n > 0 {
			l.deliver(buf[:n])
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.down()
			if !l.reopen(ctx) {
				return
			}
		}
	}
}

func (l *line) deliver(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raise()
	if l.sink != nil {
		l.sink(p)
	}
}

// raise notes that the board is there. l.mu is held.
func (l *line) raise() {
	select {
	case <-l.up:
	default:
		close(l.up)
	}
}

func (l *line) down() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.up:
		l.up = make(chan struct{})
	default:
	}
	if l.hangup != nil {
		l.hangup()
	}
}

// reopen tries to get the board back. It reports false when the context ended.
func (l *line) reopen(ctx context.Context) bool {
	r, can := l.h.(reopener)
	tick := time.NewTicker(retryPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if !can {
			return true
		}
		if r.Reopen(ctx) == nil {
			l.mu.Lock()
			l.raise()
			l.mu.Unlock()
			return true
		}
	}
}

// waitUp waits until the board is plugged in. It reports false when the context
// ended.
func (l *line) waitUp(ctx context.Context) bool {
	l.mu.Lock()
	up := l.up
	l.mu.Unlock()
	select {
	case <-up:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// TCP serves a raw socket, as socket:// URLs of serial libraries want it: bytes
// only. The board's adapter follows the chip's baud rate, and the lines stay as
// they are. A second client waits until the first has gone: it is connected, and
// gets no answer.
func TCP(ctx context.Context, ln net.Listener, h Host) error {
	return serveConns(ctx, ln, h, func(ctx context.Context, conn net.Conn, l *line, end func()) {
		if h.SetBaud(ctx, 0) != nil {
			return
		}
		defer l.attach(func(p []byte) { writeConn(conn, p, end) }, end)()
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				if _, err := h.Write(ctx, buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// serveConns runs one session after the other. A session ends when the function
// returns; end closes its connection and ends its context.
func serveConns(ctx context.Context, ln net.Listener, h Host,
	session func(ctx context.Context, conn net.Conn, l *line, end func()),
) error {
	ctx, cancel := context.WithCancel(ctx)
	l := newLine(h)
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(ctx) })
	wg.Go(func() { <-ctx.Done(); _ = ln.Close() })
	defer wg.Wait()
	defer cancel()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		sctx, end := context.WithCancel(ctx)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			<-sctx.Done()
			_ = conn.Close()
		}()
		session(sctx, conn, l, end)
		end()
		<-closed
	}
}

// writeConn sends to a client, or ends its session.
func writeConn(conn net.Conn, p []byte, end func()) {
	_ = conn.SetWriteDeadline(time.Now().Add(clientPatience))
	if _, err := conn.Write(p); err != nil {
		end()
	}
}

// wait reports false when the context ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
