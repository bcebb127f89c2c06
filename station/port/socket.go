package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
)

// socket is a raw TCP serial server.
type socket struct {
	a Address
	o Options

	mu     sync.Mutex
	conn   net.Conn // nil while there is none
	closed bool
}

func openSocket(ctx context.Context, a Address, o Options) (Port, error) {
	conn, err := dial(ctx, a, o)
	if err != nil {
		return nil, err
	}
	return &socket{a: a, o: o, conn: conn}, nil
}

// dial connects. Go sets TCP_NODELAY: a loader's request is one small packet
// that must not wait for the next one.
func dial(ctx context.Context, a Address, o Options) (net.Conn, error) {
	// A server that loses its power says no good-bye; the probes find out.
	d := net.Dialer{
		Timeout:         o.Dial,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
	}
	conn, err := d.DialContext(ctx, "tcp", a.hostPort())
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("nothing listens there: start the serial server, or correct host and port: %w", err)
	}
	return nil, fmt.Errorf("%w: check host, network and firewall", err)
}

// lost reports whether err is how a TCP connection ends.
func lost(err error) bool {
	for _, e := range []error{
		io.EOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *socket) current() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errClosed
	case s.conn == nil:
		return nil, rom.ErrUnplugged
	}
	return s.conn, nil
}

func (s *socket) fail(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, net.ErrClosed):
		if _, now := s.current(); now != nil {
			err = now
		}
	case lost(err):
		err = fmt.Errorf("%w (%w): the serial server closed the connection", rom.ErrUnplugged, err)
	}
	return fmt.Errorf("%s %s: %w", op, s.a, err)
}

func (s *socket) Read(ctx context.Context, p []byte) (int, error) {
	c, err := s.current()
	if err != nil {
		return 0, s.fail("read", err)
	}
	n, err := untilDone(ctx, c.SetReadDeadline, func() (int, error) { return c.Read(p) })
	return n, s.fail("read", err)
}

func (s *socket) Write(ctx context.Context, p []byte) (int, error) {
	c, err := s.current()
	if err != nil {
		return 0, s.fail("write", err)
	}
	n, err := untilDone(ctx, c.SetWriteDeadline, func() (int, error) { return c.Write(p) })
	return n, s.fail("write", err)
}

// Discard drops what has arrived in this host. What is still on the network
// comes later: a raw server has no way to be asked.
func (s *socket) Discard(ctx context.Context) error {
	c, err := s.current()
	if err != nil {
		return s.fail("discard", err)
	}
	if err := ctx.Err(); err != nil {
		return s.fail("discard", err)
	}
	// A deadline in the past would end the read before it takes anything.
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Millisecond)); err != nil {
		return s.fail("discard", err)
	}
	_, err = io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF // Copy hides it
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = c.SetReadDeadline(time.Time{})
	}
	return s.fail("discard", err)
}

// SetBaud does nothing: a raw server's rate is set at the server. The bytes
// arrive all the same when the server is a simulator or adapts by itself.
func (s *socket) SetBaud(ctx context.Context, baud int) error {
	if _, err := s.current(); err != nil {
		return s.fail("set rate of", err)
	}
	if err := ctx.Err(); err != nil {
		return s.fail("set rate of", err)
	}
	return s.fail("set rate of", checkBaud(baud))
}

func (s *socket) SetLines(ctx context.Context, _, _ bool) error {
	if _, err := s.current(); err != nil {
		return s.fail("set lines of", err)
	}
	if err := ctx.Err(); err != nil {
		return s.fail("set lines of", err)
	}
	return s.fail("set lines of", fmt.Errorf("%w (raw TCP): use rfc2217:// if the server can, --reset-command, or reset by hand", rom.ErrNoLines))
}

// Reopen connects again.
func (s *socket) Reopen(ctx context.Context) error {
	s.mu.Lock()
	old, closed := s.conn, s.closed
	s.conn = nil
	s.mu.Unlock()
	if closed {
		return s.fail("reopen", errClosed)
	}
	if old != nil {
		_ = old.Close() // it is given up in any case
	}
	conn, err := dial(ctx, s.a, s.o)
	if err != nil {
		return s.fail("reopen", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return s.fail("reopen", errClosed)
	}
	s.conn = conn
	return nil
}

func (s *socket) Info() rom.PortInfo { return rom.PortInfo{Name: s.a.String()} }

func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close()
}
