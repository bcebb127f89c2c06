//go:build linux

package port_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/station/port"
)

func whats(log []logEntry) []string {
	var w []string
	for _, e := range log {
		w = append(w, e.what)
	}
	return w
}

func TestRFC2217Opening(t *testing.T) {
	s := newServer(t)
	open(t, s.name(), port.Options{Baud: 921600})
	want := []string{"DTR off", "RTS off", "2=8", "3=1", "4=1", "no flow control", "baud 921600"}
	if d := cmp.Diff(want, whats(s.take())); d != "" {
		t.Errorf("the server was told (-want +got):\n%s", d)
	}
}

func TestRFC2217SetLines(t *testing.T) {
	s := newServer(t)
	p := open(t, s.name(), port.Options{})
	s.take()
	for _, on := range [][2]bool{{false, true}, {true, false}, {true, true}, {false, false}} {
		if err := p.SetLines(t.Context(), on[0], on[1]); err != nil {
			t.Fatal(err)
		}
		log := s.take()
		word := map[bool]string{true: "on", false: "off"}
		want := []string{"DTR " + word[on[0]], "RTS " + word[on[1]]}
		if d := cmp.Diff(want, whats(log)); d != "" {
			t.Errorf("SetLines(%v) (-want +got):\n%s", on, d)
		} else if log[0].read != log[1].read {
			t.Errorf("SetLines(%v) came in two pieces", on)
		}
	}
}

func TestRFC2217SetBaud(t *testing.T) {
	t.Run("escaped", func(t *testing.T) {
		s := newServer(t)
		p := open(t, s.name(), port.Options{})
		s.take()
		const baud = 0x0001FF00 // its second byte is IAC
		if err := p.SetBaud(t.Context(), baud); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"baud 130816"}, whats(s.take())); d != "" {
			t.Error(d)
		}
	})
	t.Run("near enough", func(t *testing.T) {
		s := newServer(t, func(s *server) { s.rate = func(b uint32) uint32 { return b * 101 / 100 } })
		p := open(t, s.name(), port.Options{})
		if err := p.SetBaud(t.Context(), 921600); err != nil {
			t.Error(err)
		}
	})
	t.Run("another rate", func(t *testing.T) {
		s := newServer(t, func(s *server) { s.rate = func(b uint32) uint32 { return min(b, 230400) } })
		p := open(t, s.name(), port.Options{})
		err := p.SetBaud(t.Context(), 921600)
		if err == nil || !strings.Contains(err.Error(), "230400 baud when asked for 921600") {
			t.Errorf("SetBaud gave %v", err)
		}
		if err := p.SetBaud(t.Context(), 230400); err != nil {
			t.Errorf("the rate it has gave %v", err)
		}
	})
	t.Run("after what was written", func(t *testing.T) {
		s := newServer(t)
		p := open(t, s.name(), port.Options{Baud: 9600})
		start := time.Now()
		if _, err := p.Write(t.Context(), make([]byte, 48)); err != nil { // 50 ms at 9600
			t.Fatal(err)
		}
		if err := p.SetBaud(t.Context(), 115200); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 50*time.Millisecond {
			t.Errorf("the rate changed %v after 48 bytes at 9600 baud were written", d)
		}
	})
}

// Data that comes while the client waits for an answer is not lost, and what
// came before a purge's answer is.
func TestRFC2217DataBetweenAnswers(t *testing.T) {
	s := newServer(t, func(s *server) {
		s.hello = []byte("boot")
		s.afterAck = []byte("ets")
	})
	p := open(t, s.name(), port.Options{})
	if err := p.SetBaud(t.Context(), 460800); err != nil {
		t.Fatal(err)
	}
	got, err := readFull(t.Context(), p, len("bootetsets"))
	if err != nil || string(got) != "bootetsets" {
		t.Errorf("Read gave %q, %v", got, err)
	}
}

func TestRFC2217AnswersServer(t *testing.T) {
	s := newServer(t, func(s *server) {
		// DO COM-PORT twice, which wants no answer, DO ECHO, WILL STATUS, a signature
		// query, and WILL COM-PORT, GA, NOP.
		s.hello = []byte{
			255, 253, 44, 255, 253, 44, 255, 253, 1, 255, 251, 5,
			255, 250, 44, 100, 255, 240, 255, 251, 44, 255, 249, 255, 241,
		}
	})
	p := open(t, s.name(), port.Options{})
	// The answers are on their way by now, but by another goroutine.
	want := map[string]bool{"refuses 252 1": true, "refuses 254 5": true, "signature provisiond": true}
	for len(want) > 0 {
		for _, what := range whats(s.take()) {
			delete(want, what)
			if strings.HasPrefix(what, "again") {
				t.Errorf("an option was answered that was on: %s", what)
			}
		}
		if err := p.Discard(t.Context()); err != nil {
			t.Fatalf("%v; not answered: %v", err, want)
		}
	}
}

func TestRFC2217Suspend(t *testing.T) {
	s := newServer(t)
	p := open(t, s.name(), port.Options{})
	s.current().raw(255, 250, 44, 108, 255, 240)
	if err := p.Discard(t.Context()); err != nil { // its answer comes after the suspension
		t.Fatal(err)
	}
	fastest(t, 100*time.Millisecond, func() time.Duration {
		return lateBy(t, func(ctx context.Context) error { _, err := p.Write(ctx, []byte("x")); return err })
	})
	s.current().raw(255, 250, 44, 109, 255, 240)
	if _, err := p.Write(t.Context(), []byte("y")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(s.current(), got); err != nil || got[0] != 'y' {
		t.Errorf("the board got %q, %v", got, err)
	}
}

// A server that stops reading blocks a write, which then ends with its context;
// and the stream is never left inside an escape.
func TestRFC2217WriteEnds(t *testing.T) {
	pause := make(chan struct{})
	s := newServer(t, func(s *server) { s.pause = pause })
	defer close(pause)
	p := open(t, s.name(), port.Options{})
	if err := p.SetLines(t.Context(), true, true); err != nil {
		t.Fatal(err)
	}
	ff := bytes.Repeat([]byte{0xFF}, 32<<20)
	fastest(t, 100*time.Millisecond, func() time.Duration {
		return lateBy(t, func(ctx context.Context) error {
			_, err := p.Write(ctx, ff)
			if err != nil && strings.Contains(err.Error(), "cut inside an escape") {
				return context.DeadlineExceeded // the earlier run cut one: refused, as it must be
			}
			return err
		})
	})
}

func TestRFC2217Refusals(t *testing.T) {
	o := port.Options{Dial: 300 * time.Millisecond, Reply: 200 * time.Millisecond}
	for name, c := range map[string]struct {
		set  func(*server)
		want string
	}{
		"no COM-PORT": {func(s *server) { s.refuse = map[byte]bool{44: true} }, "does not speak RFC 2217"},
		"no BINARY":   {func(s *server) { s.refuse = map[byte]bool{0: true} }, "refuses the telnet option BINARY"},
		"silent":      {func(s *server) { s.deaf = true }, "another client may have the port, then end that one (`provisiond sim` and some servers let a second client wait); or it is none: for a raw TCP serial server write socket://127.0.0.1"},
		"not telnet":  {func(s *server) { s.hello = []byte{0xFF, 0x07}; s.deaf = true }, "write socket://host:port"},
		"mute parity": {func(s *server) { s.mute = map[string]bool{"3=1": true} }, "does not acknowledge SET-PARITY [1]"},
		"other rate":  {func(s *server) { s.rate = func(uint32) uint32 { return 9600 } }, "gives 9600 baud"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, c.set)
			_, err := port.Open(t.Context(), s.name(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open gave %v, want %q", err, c.want)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a limit of the port's own looks like the caller's: %v", err)
			}
		})
	}
	t.Run("in use", func(t *testing.T) {
		l := listen(t)
		conns := accept(t, l)
		go func() {
			c := <-conns
			_, _ = io.WriteString(c, "Port already in use\r\n")
			// Closing with unread bytes would reset the connection and lose the text.
			_, _ = io.ReadFull(c, make([]byte, 15))
			_ = c.Close()
		}()
		_, err := port.Open(t.Context(), "rfc2217://"+l.Addr().String(), o)
		if !errors.Is(err, rom.ErrUnplugged) || !strings.Contains(err.Error(), "Port already in use") {
			t.Errorf("Open gave %v", err)
		}
	})
	t.Run("caller's end", func(t *testing.T) {
		s := newServer(t, func(s *server) { s.deaf = true })
		fastest(t, 100*time.Millisecond, func() time.Duration {
			return lateBy(t, func(ctx context.Context) error {
				_, err := port.Open(ctx, s.name(), port.Options{})
				return err
			})
		})
	})
}

// A server whose port has no lines says nothing about them (ser2net and a PTY).
func TestRFC2217NoLines(t *testing.T) {
	s := newServer(t, func(s *server) { s.mute = map[string]bool{"DTR off": true, "RTS off": true} })
	p := open(t, s.name(), port.Options{})
	if p.Info().Lines {
		t.Error("Info says that there are lines")
	}
	if err := p.SetLines(t.Context(), true, false); !errors.Is(err, rom.ErrNoLines) {
		t.Errorf("SetLines gave %v", err)
	}
	if err := p.SetBaud(t.Context(), 460800); err != nil {
		t.Error(err)
	}
}

// A server that stops acknowledging is given up until the port is opened again.
func TestRFC2217NotAcknowledged(t *testing.T) {
	s := newServer(t, func(s *server) { s.mute = map[string]bool{"baud 460800": true} })
	p := open(t, s.name(), port.Options{Reply: 50 * time.Millisecond})
	err := p.SetBaud(t.Context(), 460800)
	if err == nil || !strings.Contains(err.Error(), "does not acknowledge SET-BAUDRATE") {
		t.Errorf("SetBaud gave %v", err)
	}
	if _, err := p.Write(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "does not acknowledge") {
		t.Errorf("Write after it gave %v", err)
	}
	if err := p.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.SetBaud(t.Context(), 230400); err != nil {
		t.Error(err)
	}
}

// A request whose context ended is answered later; that answer is not taken for
// the next request's.
func TestRFC2217LateAnswer(t *testing.T) {
	s := newServer(t, func(s *server) { s.mute = map[string]bool{"baud 460800": true} })
	p := open(t, s.name(), port.Options{})
	lateBy(t, func(ctx context.Context) error { return p.SetBaud(ctx, 460800) })
	late := []byte{255, 250, 44, 101, 0, 7, 8, 0, 255, 240}
	s.current().raw(late...)
	if err := p.SetBaud(t.Context(), 230400); err != nil {
		t.Error(err)
	}
}

func TestRFC2217Reopen(t *testing.T) {
	s := newServer(t)
	p := open(t, s.name(), port.Options{})
	if err := p.SetBaud(t.Context(), 460800); err != nil {
		t.Fatal(err)
	}
	s.current().hangUp()
	if err := calls["Read"](t.Context(), p); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Read gave %v", err)
	}
	s.take()
	if err := p.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"DTR off", "RTS off", "2=8", "3=1", "4=1", "no flow control", "baud 460800"}
	if d := cmp.Diff(want, whats(s.take())); d != "" {
		t.Errorf("Reopen told the server (-want +got):\n%s", d)
	}
	if _, err := s.current().Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := readFull(t.Context(), p, 1); err != nil {
		t.Error(err)
	}
}
