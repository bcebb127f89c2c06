// Package outbox owns what leaves the station: it reads the journal and hands an
// event for each finished unit, and for what people and the station did, to
// sinks such as a webhook, a hot folder, a label printer or JetStream.
//
// The journal is the outbox: there is no queue beside it that could disagree
// with it. For each sink there is a cursor, the index of the next entry, in a
// file of its own.
//
// What it promises:
//
//   - At least once, in the journal's order, for each sink: the cursor moves,
//     durably, only behind what a sink has taken. A kill at any point repeats
//     events and loses none. A repeat is the same event with the same bytes.
//   - Whoever appends to the journal never waits for it, and sinks do not wait
//     for each other.
//   - A sink that is away for days costs no memory: its events stay in the journal.
//   - An event that its sink refuses for good is set aside in a file, with the
//     reason, so that it does not hold up the others; after three of them in a
//     row the sink holds instead, because then it is not the events
//     (docs/factory.md).
//   - A cursor that does not fit the journal is refused, never reset.
//
// Events carry fingerprints and hashes, never a key: there is none in the
// journal.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/provisiond/provisiond/provision/journal"
)

// Journal is what is read of a journal. A *journal.Journal is one.
type Journal interface {
	Info() journal.Info
	Head() (size uint64, hash journal.Hash)
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
}

// Sink takes events to one place. Its methods are called by one goroutine.
type Sink interface {
	// Deliver hands over events in their order. It returns how many of them, from
	// the first, are durable at the receiver, and why the next one is not. An
	// error is worth another try unless it is Permanent.
	Deliver(ctx context.Context, events []*Event) (done int, err error)
	// Batch is the most events of one call. The cursor moves once for each call,
	// so it is also the most that a crash repeats.
	Batch() int
	Close() error
}

// Permanent marks an error that says of the event itself that it will never be
// taken. After Tries of them the event is set aside.
func Permanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// After marks an error whose receiver said when it wants to be asked again.
func After(d time.Duration, err error) error { return &afterError{d, err} }

type afterError struct {
	d   time.Duration
	err error
}

func (e *afterError) Error() string { return e.err.Error() }
func (e *afterError) Unwrap() error { return e.err }

// Limits.
const (
	Tries     = 5                // of an event that is refused for good, before it is set aside
	InARow    = 3                // set aside without a success between them: then the sink holds
	MaxWait   = time.Minute      // longest pause between two tries
	MaxAfter  = 10 * time.Minute // most that After is believed
	firstWait = 500 * time.Millisecond

	defaultPoll = 2 * time.Second // the head is looked at without a Notify
	saveEvery   = 4096            // entries without an event after which the cursor moves all the same
)

// From says where a sink without a cursor begins.
type From string

// Where a new sink begins.
const (
	FromNow       From = "now"       // with the next entry
	FromBeginning From = "beginning" // with entry 0
)

// Delivery is a sink with what is meant for it.
type Delivery struct {
	Name   string   // names the cursor's file: small letters, digits, dashes; at most 40
	Kind   string   // webhook, hot-folder, …; for the status
	Sink   Sink     //
	Events []string // types that it gets: exact ones, "unit.*", or "*"; all if empty
	From   From     // FromNow if empty
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// CheckName says whether a sink may be called so.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q is no name of a sink: use 1 to 40 small letters, digits and dashes", name)
	}
	return nil
}

// Outbox delivers from one journal to its sinks. It is safe for concurrent use.
type Outbox struct {
	workers []*worker
	poll    time.Duration
}

// Open checks the cursors of the sinks in dir and makes those that are missing.
// The directory belongs to the outbox of one station. Nothing is delivered
// before Run.
func Open(j Journal, dir string, deliveries []Delivery) (*Outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("outbox: state directory: %w", err)
	}
	o := &Outbox{poll: defaultPoll}
	seen := map[string]bool{}
	for _, d := range deliveries {
		if err := CheckName(d.Name); err != nil {
			return nil, fmt.Errorf("outbox: %w", err)
		}
		if seen[d.Name] {
			return nil, fmt.Errorf("outbox: two sinks are called %q: their cursors would be one", d.Name)
		}
		seen[d.Name] = true
		if err := CheckPatterns(d.Events); err != nil {
			return nil, fmt.Errorf("outbox: sink %s: %w", d.Name, err)
		}
		w, err := newWorker(j, dir, d)
		if err != nil {
			return nil, err
		}
		o.workers = append(o.workers, w)
	}
	return o, nil
}

// Run delivers until ctx ends. What is being delivered then is cut, and repeated
// at the next start. It closes the sinks and returns their errors.
func (o *Outbox) Run(ctx context.Context) error {
	var all sync.WaitGroup
	errs := make([]error, len(o.workers))
	for i, w := range o.workers {
		all.Go(func() {
			w.run(ctx, o.poll)
			if err := w.Sink.Close(); err != nil {
				errs[i] = fmt.Errorf("outbox: sink %s: %w", w.Name, err)
			}
		})
	}
	all.Wait()
	<-ctx.Done() // also without a sink
	return errors.Join(errs...)
}

// Notify says that the journal has grown. It never blocks; a call that is
// forgotten costs two seconds.
func (o *Outbox) Notify() {
	for _, w := range o.workers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Status says where each sink stands, in the order of Open.
func (o *Outbox) Status() []Status {
	list := make([]Status, len(o.workers))
	for i, w := range o.workers {
		list[i] = w.now()
	}
	return list
}

// worker delivers to one sink.
type worker struct {
	Delivery
	journal Journal
	dir     string
	wake    chan struct{} // holds one

	// Only the goroutine of run.
	cursor  Cursor        // as it is on disk
	scanned uint64        // entries below were looked at
	last    journal.Entry // the last of them
	batch   []*Event
	waits   int // pauses in a row

	mu     sync.Mutex
	status Status
}

func newWorker(j Journal, dir string, d Delivery) (*worker, error) {
	w := &worker{Delivery: d, journal: j, dir: dir, wake: make(chan struct{}, 1)}
	path := w.cursorPath()
	c, err := LoadCursor(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if c, err = firstCursor(j, d); err == nil {
			err = c.Save(path)
		}
	case err == nil:
		err = c.fits(j, d.Name, path)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: sink %s: %w", d.Name, err)
	}
	aside, err := mendDeadLetters(w.deadPath())
	if err != nil {
		return nil, fmt.Errorf("outbox: sink %s: %w", d.Name, err)
	}
	w.cursor, w.scanned = c, c.Next
	w.status = Status{Name: d.Name, Kind: d.Kind, State: StateIdle, Next: c.Next, SetAside: aside, DeadLetters: w.deadPath()}
	return w, nil
}

func (w *worker) cursorPath() string { return filepath.Join(w.dir, w.Name+".cursor") }
func (w *worker) deadPath() string   { return filepath.Join(w.dir, w.Name+".dead.jsonl") }

// run delivers until ctx ends.
func (w *worker) run(ctx context.Context, poll time.Duration) {
	var p *projector
	for ctx.Err() == nil {
		if p == nil {
			var err error
			if p, err = w.rewind(ctx); err != nil {
				w.fail(StateRetrying, err)
				w.pause(ctx, err)
				continue
			}
		}
		size, _ := w.journal.Head()
		if w.scanned < size {
			if err := w.pass(ctx, p, size); err != nil && ctx.Err() == nil {
				p = nil // what it has folded may lie ahead of what will be read again
				w.fail(StateRetrying, err)
				w.pause(ctx, err)
			}
			continue
		}
		w.idle()
		t := time.NewTimer(poll)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-t.C:
		}
		t.Stop()
	}
	// What is in the batch was not taken.
	if w.scanned > w.cursor.Next && len(w.batch) == 0 {
		if hash, err := hashOf(w.last); err == nil {
			_ = w.move(w.scanned, hash, w.cursor.Aside) // saves the next start some reading
		}
	}
}

// rewind folds the entries before the cursor, so that a verdict right behind it
// knows its attempt.
func (w *worker) rewind(ctx context.Context) (*projector, error) {
	w.scanned, w.batch = w.cursor.Next, nil
	p := newProjector(w.journal.Info().ID)
	from := w.scanned - min(w.scanned, window)
	for e, err := range w.journal.Entries(from, w.scanned) {
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p.fold(e)
	}
	return p, nil
}

// pass goes through the journal up to size and delivers what it finds.
func (w *worker) pass(ctx context.Context, p *projector, size uint64) error {
	full := max(1, w.Sink.Batch())
	for e, err := range w.journal.Entries(w.scanned, size) {
		if err != nil {
			return errors.Join(err, w.flush(ctx))
		}
		if typ := TypeOf(e.Kind, e.Step); typ != "" && w.wants(typ) {
			hash, err := hashOf(e)
			if err != nil {
				return err
			}
			w.batch = append(w.batch, p.event(e, hash))
		} else {
			p.fold(e)
		}
		w.scanned, w.last = e.Index+1, e
		if len(w.batch) >= full {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		if len(w.batch) == 0 && w.scanned >= w.cursor.Next+saveEvery {
			hash, err := hashOf(e)
			if err != nil {
				return err
			}
			if err := w.save(ctx, w.scanned, hash, w.cursor.Aside); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return w.flush(ctx)
}

func (w *worker) wants(typ string) bool { return Matches(w.Events, typ) }

// flush delivers the batch, however long it takes. Its only error is ctx's.
func (w *worker) flush(ctx context.Context) error {
	refusals := 0 // of the first event, for good
	for len(w.batch) > 0 {
		w.pending(w.batch[0])
		done, err := w.deliver(ctx)
		if done > 0 {
			last := w.batch[done-1]
			if err := w.save(ctx, last.Index+1, last.hash, 0); err != nil {
				return err
			}
			w.delivered(done, last)
			w.batch, refusals = w.batch[done:], 0
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		state := StateRetrying
		var permanent *permanentError
		if errors.As(err, &permanent) {
			refusals++
			switch {
			case w.cursor.Aside >= InARow:
				state = StateHolding
			case refusals >= Tries:
				if err := w.setAside(ctx, w.batch[0], refusals, err); err != nil {
					return err
				}
				w.batch, refusals = w.batch[1:], 0
				continue
			}
		}
		w.fail(state, err)
		w.pause(ctx, err)
	}
	w.batch = nil
	return nil
}

// deliver calls the sink. A panic in it is an error like another one: it must
// not take the station down.
func (w *worker) deliver(ctx context.Context) (done int, err error) {
	defer func() {
		if r := recover(); r != nil {
			done, err = 0, fmt.Errorf("the sink's program has a fault: %v\n%s", r, debug.Stack())
		}
	}()
	done, err = w.Sink.Deliver(ctx, w.batch)
	switch {
	case done < 0 || done > len(w.batch):
		return 0, fmt.Errorf("the sink says that it took %d of %d events", done, len(w.batch))
	case err == nil && done < len(w.batch):
		err = errors.New("the sink took some of the events and does not say why not the others")
	}
	return done, err
}

// setAside puts an event into the file of dead letters and goes on behind it.
func (w *worker) setAside(ctx context.Context, ev *Event, tries int, reason error) error {
	d := DeadLetter{Time: time.Now().UTC(), Sink: w.Name, Tries: tries, Reason: reason.Error(), Event: ev.Body}
	err := w.insist(ctx, func() error { return d.Append(w.deadPath()) })
	if err != nil {
		return err
	}
	if err := w.save(ctx, ev.Index+1, ev.hash, w.cursor.Aside+1); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = 0
	w.status.Next, w.status.SetAside = ev.Index+1, w.status.SetAside+1
	w.status.LastError = clip(fmt.Sprintf("event %s was set aside after %d tries: %s", ev.ID, tries, reason))
	w.status.LastErrorAt = time.Now()
	return nil
}

// save moves the cursor, and does nothing else until it has moved: a label must
// not be printed each minute because a disk is full. Its only error is ctx's.
func (w *worker) save(ctx context.Context, next uint64, hash journal.Hash, aside uint64) error {
	return w.insist(ctx, func() error { return w.move(next, hash, aside) })
}

func (w *worker) insist(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		w.fail(StateRetrying, fmt.Errorf("the state directory cannot be written, so nothing more is delivered: %w", err))
		w.pause(ctx, err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (w *worker) move(next uint64, hash journal.Hash, aside uint64) error {
	c := Cursor{Sink: w.Name, Journal: w.cursor.Journal, Next: next, Hash: hash, Aside: aside}
	if err := c.Save(w.cursorPath()); err != nil {
		return err
	}
	w.cursor = c
	return nil
}

// pause waits before the next try: longer each time, and at random, so that the
// stations of a plant do not all come back at once.
func (w *worker) pause(ctx context.Context, err error) {
	d := firstWait << min(w.waits, 16)
	d = min(d, MaxWait)
	d = d/2 + rand.N(d/2) //nolint:gosec // no secret
	w.waits++
	var after *afterError
	if errors.As(err, &after) {
		d = max(d, min(after.d, MaxAfter))
	}
	w.mu.Lock()
	w.status.NextTry = time.Now().Add(d)
	w.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
