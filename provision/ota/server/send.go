package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// chunk is how much is encrypted and handed to the kernel at once. unsent is how
// much may wait in the kernel for one client; it says that there is room when less
// than half of that waits, and then a chunk fits, with what TLS adds.
const (
	chunk  = 32 << 10
	unsent = 128 << 10
)

// chunks are lent while bytes are encrypted and handed over, never while a client
// is waited for.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// source is what can be sent: any part, in any order.
type source interface {
	io.ReaderAt
	Size() int64
}

// guarded is a source that ends when it may no longer be sent: a release is halted
// for everybody at once, also for who is in the middle of it.
type guarded struct {
	source
	may func() error
}

func (g *guarded) ReadAt(p []byte, at int64) (int, error) {
	if err := g.may(); err != nil {
		return 0, err
	}
	return g.source.ReadAt(p, at)
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

// sender is the ResponseWriter that http.ServeContent copies into. What is longer
// than a chunk leaves net/http as a flow.
type sender struct {
	http.ResponseWriter
	r     *http.Request
	stall time.Duration
	code  int
	wrote bool  // the head went to net/http
	sent  int64 // by net/http
	err   error // of the client's connection

	// over is called when a flow has ended; left says that there is one.
	over func(code int, sent int64, err error)
	left bool
}

// WriteHeader keeps the head back until it is known who sends it.
func (s *sender) WriteHeader(code int) {
	if s.code == 0 {
		s.code = code
	}
}

// head gives the head to net/http.
func (s *sender) head() {
	if !s.wrote {
		s.wrote = true
		if s.code != 0 {
			s.ResponseWriter.WriteHeader(s.code)
		}
	}
}

// Write is for what net/http says by itself, such as the text of a 416.
func (s *sender) Write(p []byte) (int, error) {
	s.head()
	return s.ResponseWriter.Write(p)
}

// ReadFrom sends what http.ServeContent wants to be sent.
func (s *sender) ReadFrom(r io.Reader) (int64, error) {
	limited, _ := r.(*io.LimitedReader)
	var c *content
	if limited != nil {
		c, _ = limited.R.(*content)
	}
	if c == nil {
		return io.Copy(struct{ io.Writer }{s}, r)
	}
	n := min(limited.N, c.Size()-c.at)
	if n > chunk && s.leave(c, n) {
		return n, nil
	}
	s.head()
	b, _ := chunks.Get().(*[chunk]byte)
	defer chunks.Put(b)
	for s.sent < n && s.err == nil {
		m, err := io.ReadFull(c, b[:min(n-s.sent, chunk)])
		if err != nil {
			s.err = err // the rest is not sent, and the client sees that it is not
			break
		}
		// It is the client that may not stall; the whole may take as long as it takes.
		_ = http.NewResponseController(s.ResponseWriter).SetWriteDeadline(time.Now().Add(s.stall)) // a recorder of a test has none
		m, s.err = s.ResponseWriter.Write(b[:m])
		s.sent += int64(m)
	}
	return s.sent, s.err
}

// leave makes a flow of the answer. It is false when net/http has to send it.
func (s *sender) leave(c *content, n int64) bool {
	k := connectionOf(s.r)
	if k == nil || s.r.ProtoMajor != 1 || s.r.ProtoMinor < 1 || s.r.Close || s.r.ContentLength != 0 || s.wrote {
		return false
	}
	var head bytes.Buffer
	_, _ = fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\nDate: %s\r\n", s.code, http.StatusText(s.code), time.Now().UTC().Format(http.TimeFormat))
	if err := s.Header().Write(&head); err != nil { // a buffer takes everything
		return false
	}
	head.WriteString("\r\n")
	conn, rw, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return false
	}
	s.left, s.wrote = true, true
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // of the next request, if the client did not wait
	early = bytes.Clone(early)
	if k.again != nil {
		early = append(early, k.again.first...) // what net/http has not read yet
	}
	f := &flow{top: k.top, net: conn, tcp: k.tcp, head: bytes.Clone(head.Bytes()), early: early, body: c.source, at: c.at, end: c.at + n, stall: s.stall, code: s.code, over: s.over}
	if !k.tcp.door.start(f.top, f.run) {
		f.err = net.ErrClosed
		f.over(f.code, 0, f.err)
		_ = conn.Close() // the server ends; the unit resumes
	}
	return true
}

// flow is a download.
type flow struct {
	top, net net.Conn // the connection, and as net/http had it
	tcp      *tcpConn
	head     []byte
	early    []byte
	body     source
	at, end  int64
	stall    time.Duration
	sent     int64
	err      error
	code     int
	over     func(code int, sent int64, err error)
}

func (f *flow) run() {
	f.err = f.safely()
	f.over(f.code, f.sent, f.err)
	top, door, early := f.top, f.tcp.door, f.early
	if f.err != nil {
		door.end(top)
		_ = top.Close() // the client sees that bytes are missing
		return
	}
	*f = flow{} // what waits holds nothing
	door.park(top, early)
}

// safely is send. What would end the whole server ends this download only, as
// net/http has it for handlers.
func (f *flow) safely() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f.send()
}

func (f *flow) send() error {
	if err := f.room(); err != nil {
		return err
	}
	if _, err := f.top.Write(f.head); err != nil {
		return err
	}
	f.head = nil
	for f.at < f.end {
		if err := f.room(); err != nil {
			return err
		}
		if err := f.chunk(); err != nil {
			return err
		}
	}
	return nil
}

// room waits until the kernel takes a chunk.
func (f *flow) room() error {
	if err := f.top.SetWriteDeadline(time.Now().Add(f.stall)); err != nil {
		return err
	}
	return f.tcp.room()
}

// chunk sends one piece.
func (f *flow) chunk() error {
	b, _ := chunks.Get().(*[chunk]byte)
	defer chunks.Put(b)
	p := b[:min(f.end-f.at, chunk)]
	n, err := f.body.ReadAt(p, f.at)
	if n < len(p) {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	n, err = f.top.Write(p)
	f.at += int64(n)
	f.sent += int64(n)
	return err
}
