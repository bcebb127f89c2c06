package notify

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// MaxPromise is the longest time for which a heartbeat may promise silence.
// Whatever takes longer has to beat on its way.
const MaxPromise = 10 * time.Minute

// Watchdog feeds the service manager's watchdog from heartbeats.
type Watchdog struct {
	notifier *Notifier

	mu     sync.Mutex
	hearts map[*Heartbeat]struct{}
}

// NewWatchdog returns a watchdog without heartbeats, which is not fed.
func NewWatchdog(n *Notifier) *Watchdog {
	return &Watchdog{notifier: n, hearts: map[*Heartbeat]struct{}{}}
}

// Heartbeat is the sign of life of one part of the daemon. Its methods may be
// called from any goroutine.
type Heartbeat struct {
	dog    *Watchdog
	name   string
	within time.Duration
	until  time.Time // guarded by dog.mu
}

// Heartbeat registers a part under a name that a person understands ("slot 3").
// Registering is its first beat; a part that says nothing more within the given
// time is taken for hung. Choose the time well over the part's longest wait, and
// Busy for what takes longer. It panics if the time is not between zero and
// MaxPromise.
func (w *Watchdog) Heartbeat(name string, within time.Duration) *Heartbeat {
	h := &Heartbeat{dog: w, name: name, within: checked(within)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hearts[h] = struct{}{}
	h.until = time.Now().Add(within)
	return h
}

func checked(within time.Duration) time.Duration {
	if within <= 0 || within > MaxPromise {
		panic(fmt.Sprintf("notify: a heartbeat within %v: it must be over 0 and at most %v", within, MaxPromise))
	}
	return within
}

// Beat says that the part works, and will say so again within its time.
func (h *Heartbeat) Beat() { h.promise(h.within) }

// Busy says that the part works, and that the one thing which it begins now ends
// within the given time: an erase, a one-way step. The next Beat ends that.
func (h *Heartbeat) Busy(within time.Duration) { h.promise(checked(within)) }

func (h *Heartbeat) promise(within time.Duration) {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	h.until = time.Now().Add(within)
}

// Stop takes the part out: a slot that was removed. It may be called twice.
func (h *Heartbeat) Stop() {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	delete(h.dog.hearts, h)
}

// Check names the parts that are silent for longer than they promised, in order.
// alive is false as well when there is no part at all.
func (w *Watchdog) Check() (silent []string, alive bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for h := range w.hearts {
		if now.After(h.until) {
			silent = append(silent, h.name)
		}
	}
	slices.Sort(silent)
	return silent, len(w.hearts) > 0 && len(silent) == 0
}

// Run feeds the service manager until the context ends: at once, and then three
// times in its interval, each time only if Check finds everybody alive. Without an
// interval it only looks, every ten seconds.
//
// onSilent is called with the names of those who are silent, once for each change
// and with none when all are well again: a log and a status line can hold them
// before the service manager ends the process. onError gets what the socket says;
// the next turn tries again. Both may be nil, and neither may block.
//
// Let the units park before the context ends: the service manager may watch as long
// as the process lives.
func (w *Watchdog) Run(ctx context.Context, onSilent func(names []string), onError func(error)) {
	every := w.notifier.WatchdogInterval() / 3
	feed := every > 0
	if !feed {
		every = 10 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var known []string
	for {
		silent, alive := w.Check()
		if feed && alive {
			if err := w.notifier.tell(daemon.SdNotifyWatchdog); err != nil && onError != nil {
				onError(err)
			}
		}
		if !slices.Equal(silent, known) {
			known = silent
			if onSilent != nil {
				onSilent(silent)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
