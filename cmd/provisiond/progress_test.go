package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/creack/pty"

	"github.com/provisiond/provisiond/provision"
)

// screen is as much of a terminal as the bars need. It folds lines that are too
// long, as a terminal does, which is how a wrong redraw shows.
type screen struct {
	t      *testing.T
	width  int
	lines  []string
	row    int
	column int
}

func (s *screen) line() *string {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, "")
	}
	return &s.lines[s.row]
}

func (s *screen) write(b []byte) {
	for text := string(b); text != ""; {
		switch {
		case strings.HasPrefix(text, "\x1b["):
			end := strings.IndexAny(text, "ABCDHJKm")
			if end < 0 {
				s.t.Fatalf("an escape sequence without an end: %q", text)
			}
			switch text[end] {
			case 'A':
				n := 1
				if text[2:end] != "" {
					n = 0
					for _, c := range text[2:end] {
						n = n*10 + int(c-'0')
					}
				}
				if s.row -= n; s.row < 0 {
					s.t.Fatalf("the cursor went above the first line")
				}
			case 'K':
				*s.line() = cut(*s.line(), s.column)
			case 'J':
				*s.line() = cut(*s.line(), s.column)
				s.lines = s.lines[:s.row+1]
			case 'm':
			default:
				s.t.Fatalf("unexpected %q", text[:end+1])
			}
			text = text[end+1:]
		case text[0] == '\r':
			s.column, text = 0, text[1:]
		case text[0] == '\n':
			s.row, s.column, text = s.row+1, 0, text[1:]
		default:
			r, n := utf8.DecodeRuneInString(text)
			if s.column == s.width {
				s.row, s.column = s.row+1, 0
			}
			l := []rune(*s.line())
			for len(l) <= s.column {
				l = append(l, ' ')
			}
			l[s.column] = r
			*s.line() = string(l)
			s.column++
			text = text[n:]
		}
	}
}

func cut(s string, n int) string {
	r := []rune(s)
	return string(r[:min(n, len(r))])
}

func (s *screen) String() string { return strings.TrimRight(strings.Join(s.lines, "\n"), "\n ") }

// TestBars draws units on terminals of several widths and looks at the screen.
func TestBars(t *testing.T) {
	for _, width := range []int{20, 60, 80, 200} {
		var raw bytes.Buffer
		con := &console{w: &raw}
		p := newProgress(con, false, "slot-1", "slot-2")
		if p.size != nil {
			t.Fatal("a buffer is no terminal")
		}
		p.size = func() (int, int) { return width, 24 }
		con.bars = p
		s := &screen{t: t, width: width}
		look := func() string {
			s.write(raw.Bytes())
			raw.Reset()
			return s.String()
		}
		unit := [6]byte{2, 0, 0, 0, 0, 1}
		one, two := p.observe("slot-1"), p.observe("slot-2")
		one(provision.Event{Step: "connect", Index: 1, Count: 14})
		two(provision.Event{Unit: unit, Step: "enable-encryption", Index: 10, Count: 14})
		p.at = p.at.Add(-redraw * 2)
		one(provision.Event{Unit: unit, Step: "flash", Index: 4, Count: 14, Done: 50, Total: 200, Text: "write a partition with a name\nand a line break"})
		lines := strings.Split(look(), "\n")
		if len(lines) != 2 || !strings.HasPrefix(lines[0], "slot-1   02:00:00:0") || !strings.HasPrefix(lines[1], "slot-2   ") {
			t.Fatalf("%d columns:\n%s", width, s)
		}
		if width >= 80 && (!strings.Contains(lines[0], " 25%") || !strings.Contains(lines[0], "4/14 flash") || !strings.Contains(lines[0], "[##-----") && width == 80) {
			t.Errorf("%d columns: %s", width, lines[0])
		}
		// A log line and an echoed ^C come between; the bars go and come back below.
		_, _ = io.WriteString(&raw, "^C")
		_, _ = io.WriteString(con, "a warning\n")
		if got := look(); got != "a warning" {
			t.Errorf("%d columns: after a log line:\n%s", width, got)
		}
		p.verdict("slot-1", &provision.Result{Verdict: provision.Pass, Unit: "02:00:00:00:00:01"})
		lines = strings.Split(look(), "\n")
		if len(lines) != 3 || lines[0] != "a warning" || width >= 80 && !strings.HasSuffix(strings.TrimSpace(lines[1]), "PASS") {
			t.Errorf("%d columns: after the verdict:\n%s", width, s)
		}
		p.clear()
		if got := look(); got != "a warning" {
			t.Errorf("%d columns: at the end:\n%s", width, got)
		}
	}
}

// TestManySlots has more slots than the terminal has lines.
func TestManySlots(t *testing.T) {
	var raw bytes.Buffer
	con := &console{w: &raw}
	slots := []string{"a", "b", "c", "d", "e", "f"}
	p := newProgress(con, false, slots...)
	p.size = func() (int, int) { return 80, 5 }
	con.bars = p
	for _, name := range slots {
		p.observe(name)(provision.Event{Step: "connect", Index: 1, Count: 14})
	}
	s := &screen{t: t, width: 80}
	s.write(raw.Bytes())
	lines := strings.Split(s.String(), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "a ") || lines[3] != "and 3 more slots" {
		t.Errorf("the screen shows\n%s", s)
	}
}

// TestTerminal runs the demo on a pseudo terminal: bars while it runs, and only
// the table when it is over.
func TestTerminal(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(theBinary(t), "demo", "--units", "2", "--slots", "2")
	cmd.Env = append(os.Environ(), "TERM=xterm")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	raw, err := io.ReadAll(tty)
	if err != nil && !errors.Is(err, syscall.EIO) { // the end of a pseudo terminal
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	if !bytes.Contains(raw, []byte("14/14")) || !bytes.Contains(raw, []byte("[####")) {
		t.Errorf("no bars in %.300q", raw)
	}
	s := &screen{t: t, width: 80}
	s.write(raw)
	got := s.String()
	if !strings.HasPrefix(got, "UNIT ") || !strings.HasSuffix(got, "2 simulated units, profile release: 2 PASS") || strings.Contains(got, "slot-") {
		t.Errorf("what stays on the screen:\n%s", got)
	}
}
