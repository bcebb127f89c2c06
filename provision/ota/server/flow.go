package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A download leaves net/http when its head is known: net/http keeps buffers, a
// request and two goroutines for as long as a handler runs, some 25 KiB, and a
// device may take an hour. A flow is what is left: a small goroutine that holds a
// buffer only while it encrypts. When the body is sent, the flow waits for the
// first byte of the next request, and then the connection goes back to net/http
// through its listener, as though it had just been accepted.

// door is a listener that takes connections back.
type door struct {
	net.Listener
	conf   *tls.Config // nil without TLS
	places chan struct{}
	open   *atomic.Int64
	idle   time.Duration

	fresh, back chan net.Conn
	closing     chan struct{}
	close       func()
	err         error // of Accept, once failed is closed
	failed      chan struct{}

	mu    sync.Mutex
	ended bool
	flows map[net.Conn]bool // whether it only waits for a request
	work  sync.WaitGroup
}

func newDoor(l net.Listener, conf *tls.Config, most int, open *atomic.Int64) *door {
	d := &door{
		Listener: l, conf: conf, places: make(chan struct{}, most), open: open, idle: idleLimit,
		fresh: make(chan net.Conn), back: make(chan net.Conn), closing: make(chan struct{}), failed: make(chan struct{}),
		flows: map[net.Conn]bool{},
	}
	d.close = sync.OnceFunc(func() { close(d.closing) })
	go d.accept()
	return d
}

// accept takes new connections, as many as there are places: a further one waits
// in the kernel's queue.
func (d *door) accept() {
	defer close(d.failed)
	for {
		select {
		case d.places <- struct{}{}:
		case <-d.closing:
			d.err = net.ErrClosed
			return
		}
		c, err := d.Listener.Accept()
		if err != nil {
			<-d.places
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				select { // others end meanwhile
				case <-time.After(50 * time.Millisecond):
					continue
				case <-d.closing:
				}
			}
			d.err = err
			return
		}
		d.open.Add(1)
		own := &tcpConn{Conn: c, door: d, done: sync.OnceFunc(func() { d.open.Add(-1); <-d.places })}
		own.prepare()
		var top net.Conn = own
		if d.conf != nil {
			top = tls.Server(own, d.conf) // net/http makes the handshake
		}
		select {
		case d.fresh <- top:
		case <-d.closing:
			_ = own.Close() // nobody serves it any more
		}
	}
}

// Accept gives net/http a new connection, or one that came back.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.back:
		return c, nil
	case c := <-d.fresh:
		return c, nil
	case <-d.failed:
		return nil, d.err
	case <-d.closing:
		return nil, net.ErrClosed
	}
}

// Close ends accepting.
func (d *door) Close() error {
	d.close()
	return d.Listener.Close()
}

// start begins a flow, unless the door closes.
func (d *door) start(c net.Conn, f func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return false
	}
	d.flows[c] = false
	d.work.Add(1)
	go func() {
		defer d.work.Done()
		f()
	}()
	return true
}

// end forgets a flow's connection.
func (d *door) end(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.flows, c)
}

// waits notes that a flow waits for a request; it is false when it need not.
func (d *door) waits(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return false
	}
	d.flows[c] = true
	return true
}

// park waits for the next request on a connection whose answer was sent, and gives
// it to net/http then. read is what the client sent early.
func (d *door) park(c net.Conn, read []byte) {
	defer d.end(c)
	again := &resumed{Conn: c, first: read}
	if len(read) == 0 {
		if !d.waits(c) || c.SetDeadline(time.Now().Add(d.idle)) != nil {
			_ = c.Close()
			return
		}
		n, err := c.Read(again.one[:])
		if n == 0 || err != nil {
			_ = c.Close() // idle for too long, or the client is gone
			return
		}
		again.first = again.one[:n]
	}
	_ = c.SetDeadline(time.Time{}) // net/http sets its own
	select {
	case d.back <- again:
	case <-d.closing:
		_ = c.Close()
	}
}

// shut closes what only waits and gives what is being sent until ctx ends.
func (d *door) shut(ctx context.Context) {
	d.mu.Lock()
	d.ended = true
	for c, waits := range d.flows {
		if waits {
			_ = c.Close() // the client asks again elsewhere
		}
	}
	d.mu.Unlock()
	done := make(chan struct{})
	go func() {
		d.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	d.mu.Lock()
	for c := range d.flows {
		_ = c.Close() // it was given time
	}
	d.mu.Unlock()
	<-done
}

// tcpConn is a client's connection without TLS.
type tcpConn struct {
	net.Conn
	door *door
	raw  syscall.RawConn // nil when it is no socket
	done func()
}

func (c *tcpConn) prepare() {
	if s, ok := c.Conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			c.raw = raw
			limitUnsent(raw)
		}
	}
}

func (c *tcpConn) room() error {
	if c.raw == nil {
		return nil
	}
	return room(c.raw)
}

func (c *tcpConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// CloseWrite is what net/http asks for before it closes a connection on which the
// client may still be sending.
func (c *tcpConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// resumed is a connection of which something was read already.
type resumed struct {
	net.Conn
	first []byte
	one   [1]byte
}

func (c *resumed) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	if c.first = c.first[n:]; len(c.first) == 0 {
		c.first = nil
	}
	return n, nil
}

// CloseWrite is that of what lies below.
func (c *resumed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// connection is what handlers know of the connection that a request came on.
type connection struct {
	top net.Conn // TLS, if there is
	tcp *tcpConn
	tls *tls.Conn // nil without
	// again is what net/http reads from when the connection came back.
	again *resumed
}

type connectionKey struct{}

// withConnection is http.Server.ConnContext.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	again, ok := c.(*resumed)
	if ok {
		c = again.Conn
	}
	k := &connection{top: c, again: again}
	if t, ok := c.(*tls.Conn); ok {
		k.tls, c = t, t.NetConn()
	}
	if k.tcp, ok = c.(*tcpConn); !ok {
		return ctx
	}
	return context.WithValue(ctx, connectionKey{}, k)
}

// connectionOf gives a request's connection, nil outside of Serve.
func connectionOf(r *http.Request) *connection {
	k, _ := r.Context().Value(connectionKey{}).(*connection)
	return k
}

// tlsState is r.TLS, also on a connection that came back.
func tlsState(r *http.Request) *tls.ConnectionState {
	if r.TLS != nil {
		return r.TLS
	}
	if k := connectionOf(r); k != nil && k.tls != nil {
		st := k.tls.ConnectionState()
		return &st
	}
	return nil
}
