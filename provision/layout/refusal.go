package layout

import (
	"fmt"
	"strings"
)

// Refusal is a reason not to begin: nothing was sent to a chip yet. A command
// that meets one ends with exit code 10. (A recipe that is wrong in itself is a
// *recipe.Error instead, and exit code 2.)
type Refusal struct {
	File     string // path; empty when no file is at fault
	Offset   uint32 // where the file goes in flash
	Reason   string
	NextStep string // what a person should do now
}

// Error gives "file at 0x10000: reason; next step".
func (r *Refusal) Error() string { return r.What() + "; " + r.NextStep }

// What is Error without the next step.
func (r *Refusal) What() string {
	if r.File != "" {
		return fmt.Sprintf("%s at 0x%x: %s", r.File, r.Offset, r.Reason)
	}
	return r.Reason
}

// Refusals is everything that stands against a layout. errors.As finds the first
// *Refusal in it.
type Refusals []*Refusal

// Error gives one line per refusal.
func (l Refusals) Error() string {
	lines := make([]string, len(l))
	for i, r := range l {
		lines[i] = r.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the refusals one by one.
func (l Refusals) Unwrap() []error {
	list := make([]error, len(l))
	for i, r := range l {
		list[i] = r
	}
	return list
}

func (l Refusals) err() error {
	if len(l) == 0 {
		return nil
	}
	return l
}
