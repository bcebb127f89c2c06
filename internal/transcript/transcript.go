// Package transcript owns the recorded exchanges with the real mask ROMs of
// ESP32 and ESP32-C3, and the parser of their text form. Tests of the loader
// client and of the simulated chip compare themselves with these bytes.
//
// A line is: seconds, then ">" (host to chip) or "<" (chip to host) with the
// command's name and the SLIP frame's content in hex, or "< text" with what the
// chip sent outside frames, or "#" with a note (line states, baud changes, and
// "====" with the tool call that follows). A long frame is cut: "...(1048
// bytes)". A line in brackets says how often the line, or the two lines, before
// it stand in all.
//
// Parsing is strict: what parses formats to the same bytes.
package transcript

import (
	"bytes"
	"embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

//go:embed testdata/*.txt
var files embed.FS

// Names lists the transcripts that Load knows.
func Names() []string { return []string{"esp32-rom", "esp32c3-rom"} }

// Load returns an embedded transcript.
func Load(name string) (*Transcript, error) {
	b, err := files.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		return nil, fmt.Errorf("transcript %q: there are %s", name, strings.Join(Names(), ", "))
	}
	return Parse(name, b)
}

// Kind says what an event is.
type Kind uint8

// The kinds of events.
const (
	Host Kind = iota + 1 // a frame from host to chip
	Chip                 // a frame from chip to host
	Text                 // bytes outside frames, from the chip
	Note                 // a line state, a baud change, a mark
)

// String names the kind.
func (k Kind) String() string {
	return [...]string{"?", "host", "chip", "text", "note"}[min(k, 4)]
}

// Event is one thing that happened.
type Event struct {
	Line   int           // where it stands, from 1
	At     time.Duration // since the start of the recording; the emulator's time, not silicon's
	Kind   Kind
	Op     string // Host, Chip: the command's name
	Frame  []byte // Host, Chip: the frame's content, its beginning if Cut
	Cut    bool   // the recording holds the beginning only
	Length int    // Host, Chip: the whole frame's length
	Text   []byte // Text
	Note   string // Note
}

// Mark returns the tool call that a "====" note announces.
func (e Event) Mark() (string, bool) { return strings.CutPrefix(e.Note, "==== ") }

// entry is a line of the file and what the bracketed line after it says.
type entry struct {
	event  Event
	span   int // how many lines the bracket repeats: 0 (none), 1 or 2
	repeat int
}

// Transcript is one recording.
type Transcript struct {
	Name    string
	entries []entry
}

// Events returns everything in order, repeats written out.
func (t *Transcript) Events() []Event {
	var out []Event
	for i, e := range t.entries {
		out = append(out, e.event)
		for n := 1; n < e.repeat; n++ {
			for _, again := range t.entries[i+1-e.span : i+1] {
				out = append(out, again.event)
			}
		}
	}
	return out
}

// Session is what one tool call did.
type Session struct {
	Mark   string // the tool call
	Events []Event
}

// Sessions splits the recording at its marks. What stands before the first mark
// belongs to none.
func (t *Transcript) Sessions() []Session {
	var out []Session
	for _, e := range t.Events() {
		if mark, ok := e.Mark(); ok {
			out = append(out, Session{Mark: mark})
		} else if len(out) > 0 {
			last := &out[len(out)-1]
			last.Events = append(last.Events, e)
		}
	}
	return out
}

const (
	repeatOne = "            (the last line "
	repeatTwo = "            (the last two lines "
	repeatEnd = " times in all)"
	// maxRepeat keeps a mistyped count from filling the memory.
	maxRepeat = 10000
)

// Parse reads the text form. name appears in errors.
func Parse(name string, b []byte) (*Transcript, error) {
	t := &Transcript{Name: name}
	if len(b) == 0 {
		return t, nil
	}
	body, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("transcript %s: the last line has no end", name)
	}
	for i, line := range strings.Split(string(body), "\n") {
		if err := t.add(i+1, line); err != nil {
			return nil, fmt.Errorf("transcript %s line %d: %w", name, i+1, err)
		}
	}
	return t, nil
}

func (t *Transcript) add(n int, line string) error {
	for span, prefix := range map[int]string{1: repeatOne, 2: repeatTwo} {
		rest, ok := strings.CutPrefix(line, prefix)
		if !ok {
			continue
		}
		count, ok := strings.CutSuffix(rest, repeatEnd)
		repeat, err := strconv.Atoi(count)
		if !ok || err != nil || repeat < 2 || repeat > maxRepeat || strconv.Itoa(repeat) != count {
			return fmt.Errorf("%q is not a repeat count", rest)
		}
		last := len(t.entries) - 1
		if last+1 < span {
			return fmt.Errorf("nothing to repeat")
		}
		for _, e := range t.entries[last+1-span:] {
			if e.span != 0 {
				return fmt.Errorf("a repeat of a repeat")
			}
		}
		t.entries[last].span, t.entries[last].repeat = span, repeat
		return nil
	}
	e, err := parseEvent(line)
	if err != nil {
		return err
	}
	e.Line = n
	if got := formatEvent(e); got != line {
		return fmt.Errorf("not in canonical form: want %q", got)
	}
	t.entries = append(t.entries, entry{event: e})
	return nil
}

func parseEvent(line string) (Event, error) {
	var e Event
	at, rest, ok := strings.Cut(strings.TrimLeft(line, " "), " ")
	seconds, millis, dot := strings.Cut(at, ".")
	s, errS := strconv.ParseUint(seconds, 10, 20)
	ms, errM := strconv.ParseUint(millis, 10, 10)
	if !ok || !dot || errS != nil || errM != nil || len(millis) != 3 {
		return e, fmt.Errorf("no time at the start of %q", line)
	}
	e.At = time.Duration(s)*time.Second + time.Duration(ms)*time.Millisecond
	sign, rest, _ := strings.Cut(rest, " ")
	switch sign {
	case "#":
		e.Kind, e.Note = Note, rest
		return e, nil
	case ">":
		e.Kind = Host
	case "<":
		e.Kind = Chip
	default:
		return e, fmt.Errorf("%q is not >, < or #", sign)
	}
	op, body, _ := strings.Cut(rest, " ")
	body = strings.TrimLeft(body, " ")
	if op == "text" && e.Kind == Chip {
		e.Kind = Text
		var err error
		e.Text, err = unquote(body)
		return e, err
	}
	e.Op = op
	if head, tail, cut := strings.Cut(body, "...("); cut {
		n, err := strconv.Atoi(strings.TrimSuffix(tail, " bytes)"))
		if err != nil {
			return e, fmt.Errorf("%q is not a length", tail)
		}
		body, e.Cut, e.Length = head, true, n
	}
	frame, err := hex.DecodeString(body)
	if err != nil {
		return e, fmt.Errorf("frame: %w", err)
	}
	e.Frame = frame
	if !e.Cut {
		e.Length = len(frame)
	} else if e.Length <= len(frame) {
		return e, fmt.Errorf("cut frame of %d bytes shows %d", e.Length, len(frame))
	}
	return e, nil
}

// Format writes the text form: the bytes that Parse read.
func (t *Transcript) Format() []byte {
	var b bytes.Buffer
	for _, e := range t.entries {
		fmt.Fprintln(&b, formatEvent(e.event))
		switch e.span {
		case 1:
			fmt.Fprintf(&b, "%s%d%s\n", repeatOne, e.repeat, repeatEnd)
		case 2:
			fmt.Fprintf(&b, "%s%d%s\n", repeatTwo, e.repeat, repeatEnd)
		}
	}
	return b.Bytes()
}

func formatEvent(e Event) string {
	at := fmt.Sprintf("%5d.%03d", e.At/time.Second, e.At%time.Second/time.Millisecond)
	switch e.Kind {
	case Note:
		return at + " # " + e.Note
	case Text:
		return fmt.Sprintf("%s < %-16s %s", at, "text", quote(e.Text))
	}
	sign := ">"
	if e.Kind == Chip {
		sign = "<"
	}
	s := fmt.Sprintf("%s %s %-16s %x", at, sign, e.Op, e.Frame)
	if e.Cut {
		s += fmt.Sprintf("...(%d bytes)", e.Length)
	}
	return s
}

// quote writes bytes as the recorder did: in single quotes, \r \n \t \\ \' and
// \xNN escaped.
func quote(p []byte) string {
	var b strings.Builder
	b.WriteByte('\'')
	for _, c := range p {
		switch {
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\\' || c == '\'':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < 0x20 || c >= 0x7F:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('\'')
	return b.String()
}

func unquote(s string) ([]byte, error) {
	if len(s) < 2 || s[0] != '\'' || s[len(s)-1] != '\'' {
		return nil, fmt.Errorf("text without quotes")
	}
	s = s[1 : len(s)-1]
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		if i == len(s) {
			return nil, fmt.Errorf("text ends in a backslash")
		}
		switch s[i] {
		case 'r':
			out = append(out, '\r')
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case '\\', '\'':
			out = append(out, s[i])
		case 'x':
			if i+2 >= len(s) {
				return nil, fmt.Errorf("text ends in an escape")
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf("escape: %w", err)
			}
			out = append(out, byte(v))
			i += 2
		default:
			return nil, fmt.Errorf("unknown escape \\%c", s[i])
		}
	}
	return out, nil
}
