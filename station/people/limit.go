package people

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// LimitedError says that somebody has to wait.
type LimitedError struct{ After time.Duration }

// Error names the wait in whole seconds.
func (e *LimitedError) Error() string {
	return fmt.Sprintf("too many attempts: try again in %d s", int64((e.After+time.Second-1)/time.Second))
}

// ErrBusy says that too many log in at once.
var ErrBusy = errors.New("too many people are logging in: try again")

const (
	personFree  = 3 // attempts without a wait
	addressFree = 10
	firstWait   = time.Second
	longestWait = 5 * time.Minute
	// A failure is forgiven after so long, one by one: a tablet at which a whole
	// shift logs in collects typing errors all day.
	personForgives  = 10 * time.Minute
	addressForgives = 2 * time.Minute
	maxStrays       = 4096 // addresses, and names that nobody has, that are remembered
)

// failures are those of one person or address.
type failures struct {
	count int
	since time.Duration // when the next one is on its way to being forgiven
	until time.Duration // no attempt before
}

// quiet is when it was last of any interest.
func (f *failures) quiet() time.Duration { return max(f.since, f.until) }

// limiter counts attempts. Time is told to it; the caller locks.
type limiter struct {
	persons map[string]*failures // of the file
	strays  map[string]*failures // names of nobody
	sources map[netip.Prefix]*failures
}

func newLimiter() *limiter {
	return &limiter{persons: map[string]*failures{}, strays: map[string]*failures{}, sources: map[netip.Prefix]*failures{}}
}

// attempt is one that was begun: it counts as failed until it is known better.
type attempt struct {
	person, source *failures // person may be nil: a badge has no name yet
}

// begin counts an attempt, or says how long to wait, which counts nothing. name
// is empty where none is known.
func (l *limiter) begin(now time.Duration, name string, known bool, from netip.Addr) (attempt, time.Duration) {
	a := attempt{source: entry(l.sources, source(from), maxStrays)}
	if name != "" {
		if known {
			a.person = entry(l.persons, name, maxPeople)
		} else {
			a.person = entry(l.strays, name, maxStrays)
		}
	}
	wait := a.source.until - now
	if a.person != nil {
		wait = max(wait, a.person.until-now)
	}
	if wait > 0 {
		return attempt{}, wait
	}
	a.source.add(now, addressFree, addressForgives)
	if a.person != nil {
		a.person.add(now, personFree, personForgives)
	}
	return a, 0
}

// forget takes an attempt back that was not decided.
func (a attempt) forget() {
	a.source.take()
	if a.person != nil {
		a.person.take()
	}
}

// succeeded ends the person's failures. The address keeps its own: otherwise
// somebody could wipe them by logging in as themselves between two guesses.
func (a attempt) succeeded() {
	a.source.take()
	if a.person != nil {
		a.person.count, a.person.until = 0, 0
	}
}

func (f *failures) add(now time.Duration, free int, forgives time.Duration) {
	n := int((now - f.since) / forgives)
	f.since += time.Duration(n) * forgives
	if f.count -= n; f.count <= 0 {
		f.count, f.since = 0, now
	}
	f.count++
	if over := f.count - free; over >= 0 {
		wait := longestWait
		if over < 20 {
			wait = min(longestWait, firstWait<<over)
		}
		f.until = now + wait
	}
}

func (f *failures) take() {
	f.count = max(0, f.count-1)
	f.until = 0
}

// entry finds or makes the failures of a key. A full map loses the one that was
// quiet for the longest time, of a few that are looked at.
func entry[K comparable](m map[K]*failures, key K, most int) *failures {
	if f := m[key]; f != nil {
		return f
	}
	if len(m) >= most {
		const few = 16 // of a map, the first ones are any ones
		var oldest K
		n := 0
		for k, f := range m {
			if n == 0 || f.quiet() < m[oldest].quiet() {
				oldest = k
			}
			if n++; n == few {
				break
			}
		}
		delete(m, oldest)
	}
	f := &failures{}
	m[key] = f
	return f
}

// source is what counts as one address: an IPv6 network of 64 bits belongs to
// one customer, and often to one machine.
func source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // unknown addresses are one
	}
	return p
}

// kitchen is where hashes are computed: few at once, and few wait.
type kitchen struct {
	cooks   chan struct{}
	mu      sync.Mutex
	waiting int
	most    int
}

func newKitchen(atOnce, waiting int) *kitchen {
	return &kitchen{cooks: make(chan struct{}, atOnce), most: atOnce + waiting}
}

// do runs f when there is room.
func (k *kitchen) do(ctx context.Context, f func()) error {
	k.mu.Lock()
	full := k.waiting >= k.most
	if !full {
		k.waiting++
	}
	k.mu.Unlock()
	if full {
		return ErrBusy
	}
	defer func() { k.mu.Lock(); k.waiting--; k.mu.Unlock() }()
	select {
	case k.cooks <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-k.cooks }()
	f()
	return nil
}
