package station

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/station/discover"
	"github.com/provisiond/provisiond/station/port"
)

// Bay is the fixture's USB side: which slot has which port now.
type Bay struct {
	options port.Options

	mu    sync.Mutex
	slots []discover.Slot // those with a position
	ports []discover.Seen
	seats map[string]*seat
}

// seat is what a slot's position has.
type seat struct {
	changed chan struct{} // closed and made anew with every change
	here    bool
	seen    discover.Seen
	gone    chan struct{} // of this visit
	why     string        // there is none
}

// NewBay makes an empty bay. options are for opening its ports.
func NewBay(options port.Options) *Bay {
	return &Bay{options: options, seats: map[string]*seat{}}
}

// SetSlots says which slots there are.
func (b *Bay) SetSlots(slots []discover.Slot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slots = slices.DeleteFunc(slices.Clone(slots), func(s discover.Slot) bool { return !s.Port.Local() })
	b.assign()
}

// Follow keeps the bay up to a watcher's updates until they end, and tells what
// the rest of the station should know of them.
func (b *Bay) Follow(w *discover.Watcher, s *Station) {
	for u := range w.Updates() {
		b.mu.Lock()
		b.ports = u.Ports
		skipped := b.assign()
		missing := b.missing()
		b.mu.Unlock()
		s.SetSkipped(skipped)
		switch {
		case u.Err != nil:
			s.conds.Warn(CondPorts, "the ports cannot be listed: "+u.Err.Error(), "check that /sys is mounted and readable")
		case len(missing) > 0:
			s.conds.Warn(CondPorts, "no port for slots "+strings.Join(missing, ", "), "check cables and hubs; a slot that is not used any more can leave the configuration")
		default:
			s.conds.Good(CondPorts)
		}
	}
}

// missing names the slots that have no port. In fixtures whose boards bring their
// own USB that is how an empty slot looks, so slots that have had one are left out.
func (b *Bay) missing() []string {
	var out []string
	for _, s := range b.slots {
		if t := b.seats[s.Name]; t == nil || !t.here && t.seen.Visit == 0 {
			out = append(out, s.Name)
		}
	}
	return out
}

// assign puts slots and ports together. It is called with mu held.
func (b *Bay) assign() (skipped []PortView) {
	a := discover.Assign(b.slots, b.ports)
	for _, sl := range b.slots {
		t := b.seat(sl.Name)
		seen, here := a.Slots[sl.Name]
		why := ""
		if err := a.Errs[sl.Name]; err != nil {
			why = err.Error()
		}
		if here == t.here && seen == t.seen && why == t.why {
			continue
		}
		if t.here && (!here || seen.Visit != t.seen.Visit || seen.Key() != t.seen.Key()) {
			close(t.gone)
			t.gone = nil
		}
		if here && t.gone == nil {
			t.gone = make(chan struct{})
		}
		if here {
			t.seen = seen
		}
		t.here, t.why = here, why
		close(t.changed)
		t.changed = make(chan struct{})
	}
	for _, p := range a.Skipped {
		skipped = append(skipped, PortView{
			Port: p.Binding(), Device: p.Device, What: strings.TrimSpace(strings.Join([]string{p.Manufacturer, p.Product, p.USBID()}, " ")),
		})
	}
	return skipped
}

func (b *Bay) seat(name string) *seat {
	t := b.seats[name]
	if t == nil {
		t = &seat{changed: make(chan struct{})}
		b.seats[name] = t
	}
	return t
}

// Fixture is the slot's place in the bay.
func (b *Bay) Fixture(slot string) Fixture { return place{b, slot} }

type place struct {
	b    *Bay
	slot string
}

// Arrive waits until a device is at the slot's position.
func (p place) Arrive(ctx context.Context) (*Arrival, error) {
	for {
		p.b.mu.Lock()
		t := p.b.seat(p.slot)
		changed := t.changed
		if t.here {
			a := &Arrival{Device: t.seen.Device, Gone: t.gone, Open: p.open}
			p.b.mu.Unlock()
			return a, nil
		}
		p.b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// awayLimit is how long a device may be off the bus when a run begins: the chip's
// own USB leaves it with every reset.
const awayLimit = 5 * time.Second

func (p place) open(ctx context.Context) (port.Port, error) {
	limited, cancel := context.WithTimeout(ctx, awayLimit)
	defer cancel()
	for {
		p.b.mu.Lock()
		t := p.b.seat(p.slot)
		here, seen, changed := t.here, t.seen, t.changed
		p.b.mu.Unlock()
		if here && !seen.Away {
			opened, err := port.Open(ctx, seen.OpenPath(), p.b.options)
			if err != nil {
				return nil, err
			}
			// While a hub comes back names move: is this still the slot's position?
			at, err := discover.Lookup(discover.Roots{Sys: p.b.options.Sys, Dev: p.b.options.Dev}, seen.OpenPath())
			if err == nil && at.Key() == seen.Key() {
				return opened, nil
			}
			_ = opened.Close()
			if err == nil {
				err = fmt.Errorf("%s is at %s now, and the slot is at %s", seen.OpenPath(), at.Binding(), seen.Binding())
			}
			return nil, err
		}
		select {
		case <-changed:
		case <-limited.Done():
			return nil, fmt.Errorf("the device at %s left the bus", seen.Binding())
		}
	}
}
