package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/provisiond/provisiond/provision"
)

// console is standard error. Log lines, prompts and errors go through it, so
// that none of them lands inside the progress bars.
type console struct {
	mu   sync.Mutex
	w    io.Writer
	bars *progress // on the screen now; nil: none
}

// Write removes the bars first; the next event draws them again, below.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bars != nil {
		c.bars.erase()
	}
	return c.w.Write(p)
}

// terminal is the file descriptor of a terminal behind w.
func terminal(w any) (fd int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// progress shows where units are: bars on a terminal, a line per step elsewhere.
// With quiet there are no lines, so that a script finds nothing but JSON on
// standard error.
type progress struct {
	con   *console
	quiet bool
	size  func() (width, height int) // of the terminal; nil: there is none
	slots []string                   // in the order of their lines

	// Under con.mu.
	last  map[string]provision.Event
	over  map[string]provision.Verdict
	drawn int // lines on the screen
	width int // of the terminal when they were drawn
	at    time.Time
}

func newProgress(con *console, quiet bool, slots ...string) *progress {
	p := &progress{con: con, quiet: quiet, slots: slots, last: map[string]provision.Event{}, over: map[string]provision.Verdict{}}
	if fd, ok := terminal(con.w); ok {
		p.size = func() (int, int) {
			w, h, err := term.GetSize(fd)
			if err != nil || w <= 0 || h <= 0 {
				return 80, 24
			}
			return w, h
		}
		con.mu.Lock()
		defer con.mu.Unlock()
		con.bars = p
	}
	return p
}

// redraw is how often bars move inside a step.
const redraw = 80 * time.Millisecond

// observe takes the events of one slot.
func (p *progress) observe(slot string) func(provision.Event) {
	return func(e provision.Event) {
		p.con.mu.Lock()
		defer p.con.mu.Unlock()
		before, seen := p.last[slot]
		p.last[slot] = e
		_, wasOver := p.over[slot]
		delete(p.over, slot)
		newStep := !seen || wasOver || before.Step != e.Step || before.Unit != e.Unit
		switch {
		case p.size != nil && (newStep || time.Since(p.at) > redraw):
			p.draw()
		case p.size == nil && newStep && !p.quiet:
			_, _ = fmt.Fprintf(p.con.w, "%s %s %d/%d %s\n", slot, name(e), e.Index, e.Count, e.Step)
		}
	}
}

// verdict ends the unit that is in a slot.
func (p *progress) verdict(slot string, r *provision.Result) {
	p.con.mu.Lock()
	defer p.con.mu.Unlock()
	p.over[slot] = r.Verdict
	switch {
	case p.size != nil:
		p.draw()
	case !p.quiet:
		unit := r.Unit
		if unit == "" {
			unit = name(provision.Event{})
		}
		_, _ = fmt.Fprintf(p.con.w, "%s %s %s\n", slot, unit, r.Verdict)
	}
}

// clear removes the bars for good, so that what follows starts on a clean line.
func (p *progress) clear() {
	p.con.mu.Lock()
	defer p.con.mu.Unlock()
	p.erase()
	if p.con.bars == p {
		p.con.bars = nil
	}
}

// erase takes the bars off the screen. The cursor may stand behind something
// that the terminal echoed, such as ^C.
func (p *progress) erase() {
	if p.drawn > 0 {
		_, _ = fmt.Fprintf(p.con.w, "\r\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

// draw writes the bars over those of before, in one write, so that nothing
// flickers. No line is as long as the terminal is wide: one that wraps would
// take two, and the next redraw would start in the wrong place.
func (p *progress) draw() {
	p.at = time.Now()
	width, height := p.size()
	if width < p.width {
		p.erase() // what was wider has been folded; a rest of it may stay
	}
	p.width = width
	var lines []string
	hidden := 0
	for _, slot := range p.slots {
		e, ok := p.last[slot]
		switch {
		case !ok:
		case len(lines) >= max(height-2, 1):
			hidden++
		default:
			lines = append(lines, p.line(slot, e, width-1))
		}
	}
	if hidden > 0 {
		lines = append(lines, clip(fmt.Sprintf("and %d more slots", hidden), width-1))
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", p.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	p.drawn = len(lines)
	_, _ = io.WriteString(p.con.w, b.String())
}

// line is one slot's line: the bars share what the words leave.
func (p *progress) line(slot string, e provision.Event, width int) string {
	const words = 8 + 1 + 17 + 1 + 2 + 1 + 5 + 1 + 17 + 1 + 2 + 1 + 4 // with the brackets of both bars
	fill := min((width-words)/2, 16)
	if fill < 4 {
		fill = 0
	}
	done, step, part := e.Index-1, e.Step, ""
	if v, ok := p.over[slot]; ok {
		step = string(v)
		if v == provision.Pass {
			done = e.Count
		}
	} else if e.Total > 0 {
		percent := int(min(max(e.Done*100/e.Total, 0), 100))
		part = fmt.Sprintf("%s %3d%% %s", bar(percent, 100, fill), percent, e.Text)
	} else {
		part = e.Text
	}
	text := fmt.Sprintf("%-8s %s %s %5s %-17s %s", slot, name(e), bar(done, e.Count, fill), fmt.Sprintf("%d/%d", e.Index, e.Count), step, part)
	return clip(strings.TrimRight(text, " "), width)
}

func name(e provision.Event) string {
	if e.Unit == ([6]byte{}) {
		return "(new unit)       "
	}
	return e.Unit.String()
}

func bar(done, total, width int) string {
	if width == 0 {
		return ""
	}
	n := 0
	if total > 0 {
		n = min(max(done*width/total, 0), width)
	}
	return "[" + strings.Repeat("#", n) + strings.Repeat("-", width-n) + "]"
}

// clip keeps a text on one line of a terminal, and control characters off it.
func clip(s string, width int) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r < ' ' || r == 0x7F {
			r = ' '
		}
		out = append(out, r)
	}
	if len(out) > width {
		out = out[:max(width, 0)]
	}
	return string(out)
}

// paint gives a verdict its colour when w is a terminal and nobody asked for
// none (https://no-color.org).
func paint(w io.Writer, v provision.Verdict) string {
	if _, ok := terminal(w); !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return string(v)
	}
	colour := "31" // red
	switch v {
	case provision.Pass:
		colour = "32" // green
	case provision.Aborted, provision.Quarantined:
		colour = "33" // yellow
	case provision.Fail, provision.Error:
	}
	return "\x1b[1;" + colour + "m" + string(v) + "\x1b[0m"
}
