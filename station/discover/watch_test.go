package discover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// bus is a bus that the test plugs into, with its hints and its time.
type bus struct {
	mu    sync.Mutex
	ports map[string]Port
	fail  error
	scans int

	hints  chan error // of the source
	refuse error      // opening it
	opened int
	closed int
}

func newBus() *bus { return &bus{ports: map[string]Port{}, hints: make(chan error, 4096)} }

func (b *bus) options() Options {
	return Options{
		scan: func() ([]Port, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.scans++
			if b.fail != nil {
				return nil, b.fail
			}
			var list []Port
			for _, p := range b.ports {
				list = append(list, p)
			}
			slices.SortFunc(list, comparePorts)
			return list, nil
		},
		open: func() (eventSource, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.refuse != nil {
				return nil, b.refuse
			}
			b.opened++
			return b, nil
		},
	}
}

func (b *bus) next(ctx context.Context) error {
	select {
	case err := <-b.hints:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *bus) close() { b.mu.Lock(); b.closed++; b.mu.Unlock() }

func (b *bus) set(position string, enumeration, serial string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports[position] = Port{SysPath: position, Interface: "1.0", Number: -1, VID: 0x303a, PID: 0x1001, Serial: serial, NativeUSB: true, enumeration: enumeration}
}

func (b *bus) unplug(position string) { b.mu.Lock(); delete(b.ports, position); b.mu.Unlock() }

func (b *bus) do(f func()) { b.mu.Lock(); defer b.mu.Unlock(); f() }

func (b *bus) count() int { b.mu.Lock(); defer b.mu.Unlock(); return b.scans }

// in runs a test with a watcher in a bubble of its own.
func in(t *testing.T, f func(t *testing.T, b *bus, w *Watcher)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ctx, cancel := context.WithCancel(t.Context())
		w := Watch(ctx, Roots{}, b.options())
		f(t, b, w)
		cancel()
		for range w.Updates() { // drains what was on its way
		}
		b.do(func() {
			if b.opened != b.closed {
				t.Errorf("%d sources opened, %d closed", b.opened, b.closed)
			}
		})
	})
}

// tell says an update in short: +position ~position -position.
func tell(u Update) string {
	var parts []string
	for _, s := range u.Removed {
		parts = append(parts, "-"+s.SysPath)
	}
	for _, s := range u.Added {
		parts = append(parts, fmt.Sprintf("+%s v%d g%d", s.SysPath, s.Visit, s.Generation))
	}
	for _, s := range u.Changed {
		away := ""
		if s.Away {
			away = " away"
		}
		parts = append(parts, fmt.Sprintf("~%s v%d g%d%s", s.SysPath, s.Visit, s.Generation, away))
	}
	return strings.Join(parts, ", ")
}

func want(t *testing.T, w *Watcher, text string) Update {
	t.Helper()
	u, ok := <-w.Updates()
	if !ok {
		t.Fatal("the watcher has ended")
	}
	if got := tell(u); got != text {
		t.Fatalf("got  %q\nwant %q", got, text)
	}
	return u
}

// quiet demands that there is nothing to tell.
func quiet(t *testing.T, w *Watcher) {
	t.Helper()
	synctest.Wait()
	select {
	case u := <-w.Updates():
		t.Fatalf("told %q, %v, %v", tell(u), u.Why, u.Err)
	default:
	}
}

// A plugged-in hub makes a thousand hints and is read once, when it is quiet.
func TestWatchCoalesces(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		start, before := time.Now(), b.count()
		var told []string
		for i := range 64 {
			p := fmt.Sprintf("1-1.%d", i+1)
			b.set(p, "1", "")
			told = append(told, "+"+p+" v1 g1")
			for range 16 {
				b.hints <- nil
			}
		}
		u := want(t, w, strings.Join(told, ", "))
		if u.Mode != Uevents || u.Why != nil || len(u.Ports) != 64 {
			t.Errorf("%s, %v, %d ports", u.Mode, u.Why, len(u.Ports))
		}
		if n := b.count() - before; n != 1 {
			t.Errorf("%d scans", n)
		}
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("after %v", d)
		}
		quiet(t, w)
	})
}

// Hints that never end do not keep the watcher from looking.
func TestWatchLooksUnderAStorm(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "")
		start := time.Now()
		storm, calm := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for storm.Err() == nil {
				b.hints <- nil
				time.Sleep(10 * time.Millisecond)
			}
		})
		want(t, w, "+1-1 v1 g1")
		if d := time.Since(start); d != 500*time.Millisecond {
			t.Errorf("after %v", d)
		}
		calm()
		wg.Wait()
	})
}

// A reset of a native USB chip: the visit goes on.
func TestWatchKeepsReenumeration(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		b.set("1-1", "7", "mac")
		w.Rescan()
		synctest.Wait()
		want(t, w, "+1-1 v1 g1")

		b.unplug("1-1")
		b.hints <- nil
		u := want(t, w, "~1-1 v1 g1 away")
		if len(u.Ports) != 1 || !u.Ports[0].Away {
			t.Errorf("%+v", u.Ports)
		}
		time.Sleep(4 * time.Second)
		quiet(t, w)
		b.set("1-1", "8", "mac")
		b.hints <- nil
		want(t, w, "~1-1 v1 g2")

		// So fast that it was there at every look.
		b.set("1-1", "9", "mac")
		b.hints <- nil
		want(t, w, "~1-1 v1 g3")
		time.Sleep(time.Hour)
		quiet(t, w)
	})
}

// An adapter that came back is the next board for all that anybody knows, however
// fast the hand was and whatever it says of itself. A look that missed it changes
// nothing.
func TestWatchSeesAdapterReturn(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		set := func(enumeration string) {
			b.set("1-1", enumeration, "0001")
			b.do(func() { p := b.ports["1-1"]; p.VID, p.PID, p.NativeUSB = 0x10c4, 0xea60, false; b.ports["1-1"] = p })
			b.hints <- nil
		}
		set("7")
		want(t, w, "+1-1 v1 g1")
		set("8")
		want(t, w, "-1-1, +1-1 v2 g2")
		b.unplug("1-1")
		b.hints <- nil
		want(t, w, "~1-1 v2 g2 away")
		set("9")
		want(t, w, "-1-1, +1-1 v3 g3")
		b.unplug("1-1")
		b.hints <- nil
		want(t, w, "~1-1 v3 g3 away")
		set("9")
		want(t, w, "~1-1 v3 g4")
	})
}

// The cable is pulled: known at once, final after the grace period.
func TestWatchEndsVisit(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "7", "mac")
		b.hints <- nil
		want(t, w, "+1-1 v1 g1")
		time.Sleep(time.Second)
		b.unplug("1-1")
		b.hints <- nil
		want(t, w, "~1-1 v1 g1 away")
		start := time.Now()
		if u := want(t, w, "-1-1"); len(u.Ports) != 0 {
			t.Errorf("%+v", u.Ports)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("gone after %v", d)
		}
		b.set("1-1", "8", "mac")
		b.hints <- nil
		want(t, w, "+1-1 v2 g2")
	})
}

// Another board is another visit, however fast the hand was.
func TestWatchSeesExchange(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "7", "mac a")
		b.hints <- nil
		want(t, w, "+1-1 v1 g1")
		b.set("1-1", "8", "mac b")
		b.hints <- nil
		want(t, w, "-1-1, +1-1 v2 g2")
		b.unplug("1-1")
		b.hints <- nil
		want(t, w, "~1-1 v2 g2 away")
		b.set("1-1", "9", "mac a")
		b.hints <- nil
		want(t, w, "-1-1, +1-1 v3 g3")
	})
}

// A slow reader gets what is different since it last read.
func TestWatchSlowReader(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "a")
		b.hints <- nil
		want(t, w, "+1-1 v1 g1")
		look := func() { b.hints <- nil; time.Sleep(time.Second) }
		b.set("1-2", "2", "b")
		look()
		b.unplug("1-2") // was never told of: is not to be told
		look()
		time.Sleep(10 * time.Second)
		b.set("1-1", "5", "a")
		look()
		b.set("1-3", "6", "c")
		look()
		want(t, w, "+1-3 v1 g1, ~1-1 v1 g2")
		b.unplug("1-1")
		look()
		time.Sleep(10 * time.Second)
		b.set("1-1", "7", "a") // its visit has ended meanwhile
		look()
		want(t, w, "-1-1, +1-1 v2 g3")
		quiet(t, w)
	})
}

// Where the kernel may not be listened to, ports are looked for, and it is said.
func TestWatchPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		b.refuse = errors.New("address family not supported")
		ctx, cancel := context.WithCancel(t.Context())
		w := Watch(ctx, Roots{}, b.options())
		u := want(t, w, "")
		if u.Mode != Polling || !errors.Is(u.Why, b.refuse) || !strings.Contains(u.Why.Error(), "every 2s") {
			t.Errorf("%s, %v", u.Mode, u.Why)
		}
		b.set("1-1", "1", "")
		start := time.Now()
		want(t, w, "+1-1 v1 g1")
		if d := time.Since(start); d > 2*time.Second || d < time.Second {
			t.Errorf("after %v", d)
		}
		b.do(func() { b.refuse = nil }) // allowed now
		start = time.Now()
		if u := want(t, w, ""); u.Mode != Uevents || u.Why != nil {
			t.Errorf("%s, %v", u.Mode, u.Why)
		}
		if d := time.Since(start); d > 62*time.Second {
			t.Errorf("asked again after %v", d)
		}
		cancel()
		if _, more := <-w.Updates(); more {
			t.Error("told more")
		}
	})
}

func TestWatchSourceDies(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "")
		b.hints <- errors.New("bad file descriptor")
		u := want(t, w, "")
		if u.Mode != Polling || !strings.Contains(u.Why.Error(), "bad file descriptor") {
			t.Errorf("%s, %v", u.Mode, u.Why)
		}
		want(t, w, "+1-1 v1 g1")
		if u := want(t, w, ""); u.Mode != Uevents {
			t.Errorf("%s, %v", u.Mode, u.Why)
		}
	})
}

// Lost messages are a reason to look.
func TestWatchOverflow(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "")
		start := time.Now()
		b.hints <- errOverflow
		if u := want(t, w, "+1-1 v1 g1"); u.Mode != Uevents {
			t.Error(u.Why)
		}
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("after %v", d)
		}
	})
}

// A hint may get lost without a word.
func TestWatchResyncs(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "")
		start := time.Now()
		want(t, w, "+1-1 v1 g1")
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("after %v", d)
		}
		// udev's link comes behind the kernel's message.
		b.do(func() {
			p := b.ports["1-1"]
			p.Link = "/dev/serial/by-path/x"
			b.ports["1-1"] = p
		})
		start = time.Now()
		u := want(t, w, "~1-1 v1 g1")
		if d := time.Since(start); d > afterChange || u.Ports[0].OpenPath() != "/dev/serial/by-path/x" {
			t.Errorf("after %v: %+v", d, u.Ports)
		}
	})
}

// A failed scan takes no port away.
func TestWatchScanFails(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		b.set("1-1", "1", "")
		b.hints <- nil
		want(t, w, "+1-1 v1 g1")
		b.do(func() { b.fail = errors.New("too many open files") })
		b.hints <- nil
		if u := want(t, w, ""); u.Err == nil || len(u.Ports) != 1 || u.Ports[0].Away {
			t.Errorf("%v: %+v", u.Err, u.Ports)
		}
		b.do(func() { b.fail = nil })
		if u := want(t, w, ""); u.Err != nil {
			t.Error(u.Err)
		}
	})
}

// Nothing moves, nothing is told, and next to nothing is done.
func TestWatchIdles(t *testing.T) {
	in(t, func(t *testing.T, b *bus, w *Watcher) {
		want(t, w, "")
		before := b.count()
		time.Sleep(time.Hour)
		quiet(t, w)
		if n := b.count() - before; n != 360 {
			t.Errorf("%d scans in an hour", n)
		}
	})
}

func TestDiff(t *testing.T) {
	t.Parallel()
	s := func(position string, visit, generation uint64, away bool) Seen {
		return Seen{Port: Port{SysPath: position, Interface: "1.0", Number: -1}, Visit: visit, Generation: generation, Away: away}
	}
	old := []Seen{s("1-1", 1, 1, false), s("1-2", 1, 1, false), s("1-3", 1, 1, false), s("1-4", 1, 1, true)}
	now := []Seen{s("1-1", 1, 1, false), s("1-2", 1, 2, false), s("1-3", 2, 2, false), s("1-5", 1, 1, false)}
	got := Diff(old, now)
	if d := cmp.Diff(Difference{
		Added:   []Seen{s("1-3", 2, 2, false), s("1-5", 1, 1, false)},
		Removed: []Seen{s("1-3", 1, 1, false), s("1-4", 1, 1, true)},
		Changed: []Seen{s("1-2", 1, 2, false)},
	}, got, plain); d != "" {
		t.Error(d)
	}
	if !Diff(now, now).Empty() || !Diff(nil, nil).Empty() || got.Empty() {
		t.Error("empty")
	}
}

// Applied to the old list, a difference gives the new one; counters never go
// back; a visit begins with Added and ends with Removed.
func TestDiffProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(5 * time.Second)
		now := time.Unix(1000, 0)
		var known []Seen
		have := map[string]Seen{}
		highest := map[string]Seen{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 6).Draw(t, "seconds")) * time.Second)
			var ports []Port
			for i := range 3 {
				if rapid.Bool().Draw(t, "there") {
					ports = append(ports, Port{
						SysPath: fmt.Sprintf("1-%d", i), Serial: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "serial"),
						NativeUSB:   i > 0,
						enumeration: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "enumeration"),
					})
				}
			}
			h.scanned(ports, now)
			if rapid.Bool().Draw(t, "read") {
				continue // a slow reader
			}
			list := h.list()
			d := Diff(known, list)
			for _, s := range d.Removed {
				if was, ok := have[s.Key()]; !ok || was != s {
					t.Fatalf("removed %+v, which was not there so", s)
				}
				delete(have, s.Key())
			}
			for _, s := range d.Added {
				if _, there := have[s.Key()]; there {
					t.Fatalf("added %+v, which is there", s)
				}
				if s.Visit <= highest[s.Key()].Visit {
					t.Fatalf("visit %d again", s.Visit)
				}
				have[s.Key()] = s
			}
			for _, s := range d.Changed {
				was, there := have[s.Key()]
				if !there || was.Visit != s.Visit || !was.same(s.Port) || was == s {
					t.Fatalf("changed %+v to %+v", was, s)
				}
				have[s.Key()] = s
			}
			if len(have) != len(list) {
				t.Fatalf("%d ports after the difference, %d in the list", len(have), len(list))
			}
			for _, s := range list {
				if have[s.Key()] != s {
					t.Fatalf("%+v is not %+v", have[s.Key()], s)
				}
				if s.Generation < highest[s.Key()].Generation || s.Generation < s.Visit {
					t.Fatalf("generation %d of visit %d after %+v", s.Generation, s.Visit, highest[s.Key()])
				}
				highest[s.Key()] = s
			}
			for _, p := range ports {
				if s := have[p.Key()]; s.Away || s.Serial != p.Serial {
					t.Fatalf("%+v is there as %+v", p, s)
				}
			}
			known = list
		}
	})
}
