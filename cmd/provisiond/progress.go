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

// progress shows where units are: bars on a terminal, a line per step elsewhere.
type progress struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	names    []string // slots, in the order of their lines
	last     map[string]provision.Event
	drawn    int
	at       time.Time
}

func newProgress(w io.Writer, slots ...string) *progress {
	p := &progress{w: w, names: slots, last: map[string]provision.Event{}}
	if f, ok := w.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits an int
	}
	return p
}

// observe takes the events of one slot.
func (p *progress) observe(slot string) func(provision.Event) {
	return func(e provision.Event) {
		p.mu.Lock()
		defer p.mu.Unlock()
		before, seen := p.last[slot]
		p.last[slot] = e
		newStep := !seen || before.Step != e.Step || before.Unit != e.Unit && seen
		switch {
		case !p.terminal && newStep:
			_, _ = fmt.Fprintf(p.w, "%s %s %d/%d %s\n", slot, name(e), e.Index, e.Count, e.Step)
		case p.terminal && (newStep || time.Since(p.at) > 80*time.Millisecond):
			p.draw()
		}
	}
}

func name(e provision.Event) string {
	if e.Unit == ([6]byte{}) {
		return "(new unit)       "
	}
	return e.Unit.String()
}

// draw is called with mu held.
func (p *progress) draw() {
	p.at = time.Now()
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	p.drawn = 0
	for _, slot := range p.names {
		e, ok := p.last[slot]
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "\x1b[2K%-8s %s  %s %2d/%-2d  %s %s\n", slot, name(e), bar(e.Index-1, e.Count, 16), e.Index, e.Count, pad(e.Step, 18), stepBar(e))
		p.drawn++
	}
	_, _ = io.WriteString(p.w, b.String())
}

// clear removes the bars, so that what follows starts on a clean line.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.drawn > 0 {
		_, _ = fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

func stepBar(e provision.Event) string {
	if e.Total <= 0 {
		return ""
	}
	return fmt.Sprintf("%s %3d%% %s", bar(int(e.Done*100/e.Total), 100, 16), e.Done*100/e.Total, e.Text)
}

func bar(done, total, width int) string {
	n := 0
	if total > 0 {
		n = min(max(done*width/total, 0), width)
	}
	return "[" + strings.Repeat("#", n) + strings.Repeat("-", width-n) + "]"
}

func pad(s string, n int) string { return fmt.Sprintf("%-*s", n, s) }
