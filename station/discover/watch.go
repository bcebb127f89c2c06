package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options are the settings of a watch. The zero value fits.
type Options struct {
	// Grace is how long a device may be off the bus and still be the same visit.
	// 0 means 5 s, which is how long package port waits for a device in Reopen.
	Grace time.Duration
	// Settle is how long it must be quiet after a hint before sysfs is read: a
	// hub with 64 boards makes a thousand hints. 0 means 50 ms. It waits ten
	// times as long at most.
	Settle time.Duration
	// Poll is the time between two scans where there are no uevents. 0 means 2 s.
	Poll time.Duration
	// Resync is the time between two scans where there are uevents, because one
	// may be lost. 0 means 10 s.
	Resync time.Duration
	// Retry is how long to poll before uevents are asked for again. 0 means 1 min.
	Retry time.Duration

	scan func() ([]Port, error)      // for tests; nil is Scan
	open func() (eventSource, error) // for tests; nil is netlink
}

func (o Options) withDefaults(roots Roots) Options {
	o.Grace = cmp.Or(o.Grace, 5*time.Second)
	o.Settle = cmp.Or(o.Settle, 50*time.Millisecond)
	o.Poll = cmp.Or(o.Poll, 2*time.Second)
	o.Resync = cmp.Or(o.Resync, 10*time.Second)
	o.Retry = cmp.Or(o.Retry, time.Minute)
	if o.scan == nil {
		o.scan = func() ([]Port, error) { return Scan(roots) }
	}
	if o.open == nil {
		o.open = openUevents
	}
	return o
}

// Mode says how a watcher learns that it is time to look.
type Mode string

// The modes.
const (
	Uevents Mode = "uevents" // the kernel tells
	Polling Mode = "polling" // nobody tells: Update.Why says why
)

// Update is the state of all ports, and what is different since the update that
// the reader has received before it.
type Update struct {
	Ports []Seen // all, by position; those that are Away too
	Difference
	Mode Mode
	Why  error // why Mode is Polling
	// Err is why the last scan failed. Ports then is what the last good one gave.
	Err error
}

// An eventSource gives hints.
type eventSource interface {
	// next waits for a hint. errOverflow is one too; after another error the
	// source is dead.
	next(context.Context) error
	close()
}

// errOverflow says that the kernel had more messages than it could keep.
var errOverflow = errors.New("uevents were lost")

// Watcher watches the ports.
type Watcher struct {
	updates chan Update
	rescan  chan struct{}
}

// Watch begins to watch, until ctx ends. The first update comes at once, also if
// there is no port.
func Watch(ctx context.Context, roots Roots, o Options) *Watcher {
	w := &Watcher{updates: make(chan Update), rescan: make(chan struct{}, 1)}
	go w.run(ctx, o.withDefaults(roots.withDefaults()))
	return w
}

// Updates gives the updates. A slow reader misses none: what happens meanwhile
// is in the next one. The channel is closed after the context's end, when
// nothing of the watcher runs any more.
func (w *Watcher) Updates() <-chan Update { return w.updates }

// Rescan asks for a scan now.
func (w *Watcher) Rescan() {
	select {
	case w.rescan <- struct{}{}:
	default: // one is asked for already
	}
}

// told is what a reader knows.
type told struct {
	ports     []Seen
	mode      Mode
	why, fail string
	once      bool
}

func (w *Watcher) run(ctx context.Context, o Options) {
	h := newHistory(o.Grace)
	hints := newHints(ctx, o)
	defer close(w.updates)
	defer hints.stop()

	var known told
	var scanErr error
	look := func() {
		hints.tookPlace()
		ports, err := o.scan()
		scanErr = err
		if err == nil {
			if h.scanned(ports, time.Now()) {
				hints.lookAgain()
			}
		}
	}
	look()
	for {
		now := time.Now()
		h.expire(now)
		u := Update{Ports: h.list(), Mode: hints.mode, Why: hints.why, Err: scanErr}
		u.Difference = Diff(known.ports, u.Ports)
		out := w.updates
		if known.once && u.Empty() && known.mode == u.Mode && known.why == say(u.Why) && known.fail == say(u.Err) {
			out = nil
		}
		wake := hints.due()
		if t, ok := h.next(); ok && t.Before(wake) {
			wake = t
		}
		timer := time.NewTimer(time.Until(wake))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case out <- u:
			// The reader may keep what it got, and change it.
			known = told{slices.Clone(u.Ports), u.Mode, say(u.Why), say(u.Err), true}
		case err := <-hints.c:
			hints.take(err, time.Now())
		case <-w.rescan:
			look()
		case t := <-timer.C:
			if !t.Before(hints.due()) {
				look()
			}
		}
		timer.Stop()
	}
}

func say(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// hints decides when it is time to look.
type hints struct {
	ctx  context.Context
	o    Options
	c    chan error // from the source: nil or errOverflow is a hint
	mode Mode
	why  error

	end                         context.CancelFunc // of the source
	done                        chan struct{}      // closed when its goroutine has ended
	looked, first, last, failed time.Time
	again                       bool
}

func newHints(ctx context.Context, o Options) *hints {
	h := &hints{ctx: ctx, o: o, c: make(chan error)}
	h.start()
	return h
}

// start asks for uevents, and else polls.
func (h *hints) start() {
	src, err := h.o.open()
	if err != nil {
		h.fall(err)
		return
	}
	h.mode, h.why = Uevents, nil
	ctx, cancel := context.WithCancel(h.ctx)
	done := make(chan struct{})
	h.end, h.done = cancel, done
	go func() {
		defer close(done)
		defer src.close()
		for {
			err := src.next(ctx)
			if ctx.Err() != nil {
				return
			}
			select {
			case h.c <- err:
			case <-ctx.Done():
				return
			}
			if err != nil && !errors.Is(err, errOverflow) {
				return
			}
		}
	}()
}

func (h *hints) fall(err error) {
	h.mode, h.failed = Polling, time.Now()
	h.why = fmt.Errorf("the kernel does not tell about devices (%w): they are looked for every %v", err, h.o.Poll)
}

// stop ends the source and waits for it.
func (h *hints) stop() {
	if h.end != nil {
		h.end()
		<-h.done
		h.end = nil
	}
}

// take takes what the source said.
func (h *hints) take(err error, now time.Time) {
	if err != nil && !errors.Is(err, errOverflow) {
		h.stop()
		h.fall(err)
	}
	if h.first.IsZero() {
		h.first = now
	}
	h.last = now
}

// due is when to look.
func (h *hints) due() time.Time {
	if !h.first.IsZero() {
		quiet, late := h.last.Add(h.o.Settle), h.first.Add(10*h.o.Settle)
		if late.Before(quiet) {
			return late
		}
		return quiet
	}
	wait := h.o.Resync
	if h.mode == Polling {
		wait = h.o.Poll
	}
	if h.again {
		wait = min(wait, afterChange)
	}
	return h.looked.Add(wait)
}

// afterChange is when to look once more: udev makes its links behind the kernel's
// message, and whoever opens a port wants them.
const afterChange = 500 * time.Millisecond

func (h *hints) lookAgain() { h.again = true }

// tookPlace is told when ports are looked for.
func (h *hints) tookPlace() {
	h.first, h.last = time.Time{}, time.Time{}
	h.looked, h.again = time.Now(), false
	if h.mode == Polling && h.looked.Sub(h.failed) >= h.o.Retry {
		h.start()
	}
}
