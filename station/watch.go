package station

import (
	"context"
	"slices"
	"sync"
)

// Change says what is different since a watcher looked last.
type Change struct {
	Slots   []string // names, in order
	Station bool     // lots, conditions, ports or yield
}

// Watch is one watcher of a station. Changes are collected while nobody asks for
// them, so that a slow screen costs the workers nothing and sees less.
type Watch struct {
	hub     *hub
	slots   map[string]bool
	station bool
	wake    chan struct{} // holds one
}

// Next waits for a change. The watcher then looks at the View.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	for {
		if c, ok := w.take(); ok {
			return c, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Change{}, ctx.Err()
		}
	}
}

func (w *Watch) take() (Change, bool) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if len(w.slots) == 0 && !w.station {
		return Change{}, false
	}
	c := Change{Station: w.station}
	for s := range w.slots {
		c.Slots = append(c.Slots, s)
	}
	slices.Sort(c.Slots)
	clear(w.slots)
	w.station = false
	return c, true
}

// Close ends the watch.
func (w *Watch) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	delete(w.hub.all, w)
}

// hub tells all watchers, and waits for none.
type hub struct {
	mu  sync.Mutex
	all map[*Watch]bool
}

func (h *hub) watch() *Watch {
	w := &Watch{hub: h, slots: map[string]bool{}, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[*Watch]bool{}
	}
	h.all[w] = true
	return w
}

// changed marks a slot, or with "" the station.
func (h *hub) changed(slot string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.all {
		if slot == "" {
			w.station = true
		} else {
			w.slots[slot] = true
		}
		select {
		case w.wake <- struct{}{}:
		default: // it is to wake already
		}
	}
}

// Changes tells watches of changes, for a station that is not a Station: a double
// in the tests of a screen. The zero value is ready.
type Changes struct{ hub hub }

// Watch begins to watch.
func (c *Changes) Watch() *Watch { return c.hub.watch() }

// Changed marks a slot, or with "" all else.
func (c *Changes) Changed(slot string) { c.hub.changed(slot) }
