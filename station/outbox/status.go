package outbox

import (
	"fmt"
	"time"
)

// State is what a sink is doing.
type State string

// The states of a sink.
const (
	StateIdle       State = "idle"       // it has all there is
	StateDelivering State = "delivering" //
	StateRetrying   State = "retrying"   // the last try failed
	StateHolding    State = "holding"    // it refuses everything, so nothing more is set aside
)

// Status is where a sink stands, for metrics, conditions and screens.
type Status struct {
	Name, Kind string
	State      State
	Head       uint64 // entries in the journal
	Next       uint64 // index of the next entry for this sink
	// Pending is when the event happened that is to be delivered next; zero if
	// none is known. Now − Pending is the sink's lag.
	Pending      time.Time
	PendingID    string
	Delivered    uint64 // events since Open
	Failures     uint64 // tries that failed, since Open
	SetAside     int    // events in DeadLetters
	DeadLetters  string // path of the file with the events that were set aside
	LastDelivery time.Time
	LastError    string // kept after the next success, with its time
	LastErrorAt  time.Time
	NextTry      time.Time // of a sink that is retrying or holding
}

// Behind is the number of entries that the sink has not seen. Not each of them
// is an event.
func (s Status) Behind() uint64 { return s.Head - min(s.Head, s.Next) }

// Lag is how long the next event has been waiting.
func (s Status) Lag(now time.Time) time.Duration {
	if s.Pending.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.Pending))
}

// Problem is the text of a condition: empty as long as all is well. A sink may
// fail for a minute before it is one.
func (s Status) Problem(now time.Time) string {
	switch {
	case s.State == StateHolding:
		return fmt.Sprintf("%s %s refuses everything: %s; mend the receiver or its configuration, nothing is lost", s.Kind, s.Name, s.LastError)
	case s.State == StateRetrying && s.Lag(now) > time.Minute:
		return fmt.Sprintf("%s %s takes nothing since %s: %s; what happens meanwhile stays in the journal",
			s.Kind, s.Name, s.Pending.UTC().Format(time.RFC3339), s.LastError)
	case s.State == StateRetrying && s.Pending.IsZero() && s.Failures > 3:
		return fmt.Sprintf("%s %s cannot go on: %s", s.Kind, s.Name, s.LastError)
	case s.SetAside > 0:
		return fmt.Sprintf("%s %s refused %d events, which lie in %s: look why, then move the file away", s.Kind, s.Name, s.SetAside, s.DeadLetters)
	}
	return ""
}

func (w *worker) now() Status {
	size, _ := w.journal.Head()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Head = size
	return s
}

func (w *worker) idle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = 0
	w.status.State, w.status.Next = StateIdle, w.scanned
	w.status.Pending, w.status.PendingID, w.status.NextTry = time.Time{}, "", time.Time{}
}

func (w *worker) pending(ev *Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waits == 0 {
		w.status.State = StateDelivering
	}
	w.status.Next, w.status.Pending, w.status.PendingID = ev.Index, ev.at, ev.ID
}

func (w *worker) delivered(n int, last *Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = 0
	w.status.State, w.status.Next = StateDelivering, last.Index+1
	w.status.Delivered += uint64(n)
	w.status.LastDelivery, w.status.NextTry = time.Now(), time.Time{}
	w.status.Pending, w.status.PendingID = time.Time{}, ""
}

func (w *worker) fail(state State, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.State = state
	w.status.Failures++
	w.status.LastError, w.status.LastErrorAt = clip(err.Error()), time.Now()
}

// clip bounds a text that came from somewhere else.
func clip(s string) string {
	const most = 4096
	if len(s) > most {
		s = s[:most] + " …"
	}
	return s
}
