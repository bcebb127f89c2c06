//go:build linux

package port_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
)

// server is an RFC 2217 server for one client at a time. It shares no code with
// the client: it reads byte by byte and answers as it goes, as the small ones
// in the field do.
type server struct {
	t testing.TB
	l net.Listener

	// Settings, made before a client comes.
	refuse   map[byte]bool   // telnet options that it does not want
	mute     map[string]bool // commands that it takes without a word
	rate     func(uint32) uint32
	hello    []byte        // sent raw at once
	deaf     bool          // says nothing at all
	afterAck []byte        // board data that follows each SET-BAUDRATE acknowledgement
	pause    chan struct{} // "RTS on" is answered, and nothing more read until this closes

	mu    sync.Mutex
	log   []logEntry
	conns chan *serverConn
	last  *serverConn
}

// logEntry is a command that the server carried out, and in which read from the
// network it began.
type logEntry struct {
	what string
	read int
}

func newServer(t testing.TB, set ...func(*server)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, l: l, conns: make(chan *serverConn, 8), rate: func(b uint32) uint32 { return b }}
	for _, f := range set {
		f(s)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			sc := &serverConn{s: s, c: c}
			sc.more = sync.NewCond(&sc.mu)
			s.conns <- sc
			all.Go(sc.serve)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		for {
			select {
			case c := <-s.conns:
				c.hangUp()
				continue
			default:
			}
			break
		}
		if s.last != nil {
			s.last.hangUp()
		}
		all.Wait()
	})
	return s
}

func (s *server) name() string { return "rfc2217://" + s.l.Addr().String() }

// current is the newest connection.
func (s *server) current() *serverConn {
	for {
		select {
		case c := <-s.conns:
			if s.last != nil {
				s.last.hangUp()
			}
			s.last = c
			continue
		default:
		}
		return s.last
	}
}

func (s *server) note(read int, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, logEntry{fmt.Sprintf(format, args...), read})
}

// take hands the log out and empties it.
func (s *server) take() []logEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// serverConn is one client; Read and Write are the board's side.
type serverConn struct {
	s *server
	c net.Conn

	writing sync.Mutex

	mu    sync.Mutex
	more  *sync.Cond
	got   bytes.Buffer
	over  bool
	reads int
}

func (c *serverConn) hangUp() { _ = c.c.Close() }

func (c *serverConn) raw(b ...byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	_, _ = c.c.Write(b)
}

// Write sends what the board says.
func (c *serverConn) Write(p []byte) (int, error) {
	c.raw(bytes.ReplaceAll(p, []byte{0xFF}, []byte{0xFF, 0xFF})...)
	return len(p), nil
}

// Read is what the board gets.
func (c *serverConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.got.Len() == 0 && !c.over {
		c.more.Wait()
	}
	return c.got.Read(p)
}

// counted counts reads from the network.
type counted struct{ c *serverConn }

func (r counted) Read(p []byte) (int, error) {
	r.c.reads++
	return r.c.c.Read(p)
}

func (c *serverConn) serve() {
	defer func() {
		c.mu.Lock()
		c.over = true
		c.more.Broadcast()
		c.mu.Unlock()
	}()
	if c.s.hello != nil {
		c.raw(c.s.hello...)
	}
	r := bufio.NewReader(counted{c})
	active := map[[2]byte]bool{}
	for {
		b, err := r.ReadByte()
		if err != nil {
			return
		}
		if b == 0xFF {
			if b, err = r.ReadByte(); err != nil {
				return
			}
			if b != 0xFF {
				if c.command(r, b, active) != nil {
					return
				}
				continue
			}
		}
		c.mu.Lock()
		c.got.WriteByte(b)
		c.more.Signal()
		c.mu.Unlock()
	}
}

func (c *serverConn) command(r *bufio.Reader, cmd byte, active map[[2]byte]bool) error {
	switch cmd {
	case 250:
		return c.subnegotiation(r)
	case 251, 253: // WILL, DO
		opt, err := r.ReadByte()
		if err != nil || c.s.deaf {
			return err
		}
		yes, no := byte(253), byte(254)
		if cmd == 253 {
			yes, no = 251, 252
		}
		if c.s.refuse[opt] {
			c.raw(0xFF, no, opt)
		} else if !active[[2]byte{cmd, opt}] {
			active[[2]byte{cmd, opt}] = true
			c.raw(0xFF, yes, opt)
		} else {
			c.s.note(c.reads, "again %d %d", cmd, opt)
		}
	case 252, 254:
		opt, err := r.ReadByte()
		if err != nil {
			return err
		}
		c.s.note(c.reads, "refuses %d %d", cmd, opt)
	}
	return nil
}

func (c *serverConn) subnegotiation(r *bufio.Reader) error {
	read := c.reads
	var body []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b == 0xFF {
			if b, err = r.ReadByte(); err != nil {
				return err
			}
			if b == 240 {
				break
			}
		}
		body = append(body, b)
	}
	if len(body) < 3 || body[0] != 44 || c.s.deaf {
		c.s.note(read, "sub % x", body)
		return nil
	}
	value := body[2:]
	what := fmt.Sprintf("%d=%d", body[1], value[0])
	switch {
	case body[1] == 0:
		what = fmt.Sprintf("signature %s", value)
	case body[1] == 1 && len(value) == 4:
		what = fmt.Sprintf("baud %d", binary.BigEndian.Uint32(value))
		value = binary.BigEndian.AppendUint32(nil, c.s.rate(binary.BigEndian.Uint32(value)))
	case body[1] == 5:
		what = map[byte]string{1: "no flow control", 8: "DTR on", 9: "DTR off", 11: "RTS on", 12: "RTS off"}[value[0]]
	}
	c.s.note(read, "%s", what)
	if body[1] == 0 || c.s.mute[what] {
		return nil
	}
	answer := append([]byte{0xFF, 250, 44, 100 + body[1]}, bytes.ReplaceAll(value, []byte{0xFF}, []byte{0xFF, 0xFF})...)
	answer = append(answer, 0xFF, 240)
	if body[1] == 1 {
		answer = append(answer, c.s.afterAck...)
	}
	c.raw(answer...)
	if c.s.pause != nil && what == "RTS on" {
		<-c.s.pause
	}
	return nil
}
