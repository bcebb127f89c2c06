package rom

import (
	"fmt"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
)

// Direction says which way a traced frame went.
type Direction uint8

// The directions.
const (
	Sent Direction = iota + 1
	Received
	Noted // no frame: a recovery, text between frames, a damaged frame
)

// String gives the sign that traces use.
func (d Direction) String() string { return [...]string{"?", ">", "<", "#"}[min(d, 3)] }

// TraceEvent describes one frame, or one thing that happened to the line. It
// never carries a frame's bytes: values of registers that can hold key bytes are
// redacted, flash and RAM data show as their length, and the value word of a
// reply appears for READ_REG alone (elsewhere it is a leftover, perhaps of a key
// register).
type TraceEvent struct {
	Time      time.Time
	Direction Direction
	Op        string // the command's name; empty for Noted
	Summary   string
	Length    int // of the frame's content, or of the text
}

const redacted = "[redacted]"

// efuseBases are the eFuse controllers of the whole family (esp-facts A.5):
// before detection any of them may be what is read.
var efuseBases = []uint32{0x3FF5A000, 0x3F41A000, 0x60007000, 0x60008800, 0x600B0800, 0x600B4800, 0x5012D000}

const efuseSpan = 0x200

// register shows a register's value where that is safe.
func (c *Client) register(addr, value uint32) string {
	if c.sensitive(addr) {
		return fmt.Sprintf("0x%08x=%s", addr, redacted)
	}
	return fmt.Sprintf("0x%08x=0x%08x", addr, value)
}

func (c *Client) sensitive(addr uint32) bool {
	if c.detected {
		return c.model.SensitiveEFuse(addr)
	}
	for _, base := range efuseBases {
		if addr >= base && addr-base < efuseSpan {
			return true
		}
	}
	return false
}

func (c *Client) trace(d Direction, op, summary string, length int) {
	if c.opts.Trace != nil {
		c.opts.Trace(TraceEvent{Time: time.Now(), Direction: d, Op: op, Summary: summary, Length: length})
	}
}

func (c *Client) note(length int, format string, args ...any) {
	if c.opts.Trace != nil {
		c.trace(Noted, "", fmt.Sprintf(format, args...), length)
	}
}

// models are all chips of this build.
func models() []chip.Model { return chip.All() }
