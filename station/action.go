package station

import "fmt"

// ActionKind says why an action was not done.
type ActionKind string

// The kinds of refused actions.
const (
	ActionInvalid  ActionKind = "invalid"   // the request itself is wrong
	ActionNotFound ActionKind = "not-found" // there is no such slot, lot, unit or recipe
	ActionConflict ActionKind = "conflict"  // not in this state
	ActionFailed   ActionKind = "failed"    // the station could not do it, for example write its journal
)

// ActionError is an action that was not done, in words for the person who asked.
type ActionError struct {
	Kind ActionKind
	Text string
	Next string
	Err  error // what lies below, may be nil
}

// Error gives text and next step.
func (e *ActionError) Error() string {
	s := e.Text
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

// Unwrap gives what lies below.
func (e *ActionError) Unwrap() error { return e.Err }

func invalid(next, format string, args ...any) error {
	return &ActionError{Kind: ActionInvalid, Text: fmt.Sprintf(format, args...), Next: next}
}

func notFound(next, format string, args ...any) error {
	return &ActionError{Kind: ActionNotFound, Text: fmt.Sprintf(format, args...), Next: next}
}

func conflict(next, format string, args ...any) error {
	return &ActionError{Kind: ActionConflict, Text: fmt.Sprintf(format, args...), Next: next}
}
