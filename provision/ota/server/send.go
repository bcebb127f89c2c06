package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// chunk is how much is encrypted and handed to the kernel at once. The kernel has
// room for as much when it says that a connection can be written to (unsent).
const (
	chunk  = 64 << 10
	unsent = 2 * chunk
)

// chunks are lent while bytes are encrypted and handed over, never while a client
// is waited for.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// source is what can be sent: any part, in any order.
type source interface {
	io.ReaderAt
	Size() int64
}

// content is a source in the form that http.ServeContent takes.
type content struct {
	source
	at int64
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.ReadAt(p, c.at)
	c.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.Size()
	}
	if offset < 0 {
		return 0, errors.New("ota: the offset is negative")
	}
	c.at = offset
	return offset, nil
}

// sender is the ResponseWriter that http.ServeContent copies into.
type sender struct {
	http.ResponseWriter
	ctl   *http.ResponseController
	conn  *connection // nil when it is not known, as in a test without a network
	stall time.Duration
	sent  int64
	err   error // of the client's connection
	code  int

	// begin is called before the first byte of a body.
	begin func() error
}

var errAudit = errors.New("ota: the use of a key cannot be noted")

func (s *sender) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

// ReadFrom sends what http.ServeContent wants to be sent, and holds nothing while
// the client does not take more.
func (s *sender) ReadFrom(r io.Reader) (int64, error) {
	limited, _ := r.(*io.LimitedReader)
	var c *content
	if limited != nil {
		c, _ = limited.R.(*content)
	}
	if c == nil {
		return io.Copy(struct{ io.Writer }{s.ResponseWriter}, r) // a text of net/http's
	}
	n := min(limited.N, c.Size()-c.at)
	done := int64(0)
	for done < n {
		if s.err = s.room(); s.err != nil {
			return done, s.err
		}
		m, err := s.chunk(c, min(n-done, chunk))
		done += int64(m)
		s.sent += int64(m)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// chunk sends one piece.
func (s *sender) chunk(c *content, n int64) (int, error) {
	b, _ := chunks.Get().(*[chunk]byte)
	defer chunks.Put(b)
	m, err := io.ReadFull(c, b[:n])
	if err != nil {
		return 0, err // the rest is not sent, and the client sees that it is not
	}
	m, s.err = s.ResponseWriter.Write(b[:m])
	return m, s.err
}

// room waits until the kernel takes a chunk.
func (s *sender) room() error {
	if s.conn == nil {
		return nil
	}
	// A test's recorder has no deadline, and a network connection has one.
	_ = s.ctl.SetWriteDeadline(time.Now().Add(s.stall))
	return s.conn.room()
}

// connection is what is kept of a client's connection.
type connection struct {
	raw syscall.RawConn
}

type connectionKey struct{}

// withConnection prepares a connection and keeps it for the requests on it.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if counted, ok := c.(*countedConn); ok {
		c = counted.Conn
	}
	t, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return ctx
	}
	k := &connection{raw: raw}
	k.prepare()
	return context.WithValue(ctx, connectionKey{}, k)
}

// limitListener keeps to a number of connections: a further one waits in the
// kernel's queue.
type limitListener struct {
	net.Listener
	places chan struct{}
	open   *atomic.Int64
}

func (l *limitListener) Accept() (net.Conn, error) {
	l.places <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	l.open.Add(1)
	return &countedConn{Conn: c, done: sync.OnceFunc(func() { l.open.Add(-1); <-l.places })}, nil
}

type countedConn struct {
	net.Conn
	done func()
}

func (c *countedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// CloseWrite is what net/http asks for before it closes a connection on which the
// client may still be sending.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
