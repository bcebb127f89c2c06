package station

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/discover"
	"github.com/provisiond/provisiond/station/port"
)

// Bay is the fixture's USB side: which slot has which port now.
type Bay struct {
	options port.Options
	telling sync.Mutex // the station is told in the order of what happens

	mu      sync.Mutex
	slots   []discover.Slot // those with a position
	ports   []discover.Seen
	failed  error // of the last scan
	seats   map[string]*seat
	skipped []PortView
	station *Station      // nil before Follow
	changed chan struct{} // closed and made anew with every change
}

// seat is what a slot's position has.
type seat struct {
	here bool
	seen discover.Seen // the last one, if it is not here
	gone chan struct{} // of this visit; nil: nobody arrived in it
	err  error         // why there is none
	// lost is what left under a run that could not go on. When it is back, that
	// counts as plugged in anew.
	lost *discover.Port
}

// NewBay makes an empty bay. options are for opening its ports.
func NewBay(options port.Options) *Bay {
	return &Bay{options: options, seats: map[string]*seat{}, changed: make(chan struct{})}
}

// SetSlots says which slots there are.
func (b *Bay) SetSlots(slots []discover.Slot) {
	b.update(func() {
		b.slots = slices.DeleteFunc(slices.Clone(slots), func(s discover.Slot) bool { return !s.Port.Local() })
	})
}

// Follow keeps the bay up to a watcher's updates until they end, and tells what
// the rest of the station should know of them.
func (b *Bay) Follow(w *discover.Watcher, s *Station) {
	for u := range w.Updates() {
		b.update(func() { b.ports, b.failed, b.station = u.Ports, u.Err, s })
	}
}

// update changes what the bay knows and tells the station.
func (b *Bay) update(change func()) {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	change()
	moved := b.assign()
	s, skipped, cond := b.station, b.skipped, b.condition()
	b.mu.Unlock()
	if s == nil {
		return // nobody has looked at the ports yet
	}
	s.SetSkipped(skipped)
	s.conds.Set(cond)
	for _, name := range moved {
		s.look(name)
	}
}

// condition says how the ports stand. A slot that has had a port is not missed: in
// fixtures whose boards bring their own USB that is how an empty slot looks. It is
// called with mu held.
func (b *Bay) condition() Condition {
	if b.failed != nil {
		return Condition{Name: CondPorts, Ready: true, Text: "the ports cannot be listed: " + b.failed.Error(), Next: "check that /sys is mounted and readable"}
	}
	var missing, wrong []string
	for _, s := range b.slots {
		switch t := b.seats[s.Name]; {
		case t.here:
		case !errors.Is(t.err, discover.ErrNotPresent):
			wrong = append(wrong, fmt.Sprintf("slot %s: %v", s.Name, t.err))
		case t.seen.Visit == 0:
			missing = append(missing, s.Name)
		}
	}
	var text, next []string
	if len(missing) > 0 {
		text = append(text, "no port for slots "+strings.Join(missing, ", "))
		next = append(next, "check cables and hubs; a slot that is not used any more can leave the configuration")
	}
	if len(wrong) > 0 {
		text = append(text, wrong...)
		next = append(next, "correct the slots' files and reload")
	}
	if len(text) == 0 {
		return Condition{Name: CondPorts, OK: true, Ready: true}
	}
	return Condition{Name: CondPorts, Ready: true, Text: strings.Join(text, "; "), Next: strings.Join(next, "; ")}
}

// assign puts slots and ports together, and names the slots whose device has
// another name now. It is called with mu held.
func (b *Bay) assign() (moved []string) {
	a := discover.Assign(b.slots, b.ports)
	for _, sl := range b.slots {
		t := b.seat(sl.Name)
		seen, here := a.Slots[sl.Name]
		if t.gone != nil && (!here || seen.Visit != t.seen.Visit || seen.Key() != t.seen.Key()) {
			t.end()
		}
		if here {
			if t.here && seen.Device != t.seen.Device {
				moved = append(moved, sl.Name)
			}
			t.seen = seen
		}
		t.here, t.err = here, a.Errs[sl.Name]
		t.back()
	}
	b.skipped = nil
	for _, p := range a.Skipped {
		b.skipped = append(b.skipped, PortView{
			Port: p.Binding(), Device: p.Device, What: strings.TrimSpace(strings.Join([]string{p.Manufacturer, p.Product, p.USBID()}, " ")),
		})
	}
	close(b.changed)
	b.changed = make(chan struct{})
	return moved
}

// end ends a visit for whoever arrived in it.
func (t *seat) end() {
	close(t.gone)
	t.gone, t.lost = nil, nil
}

// back ends a visit whose device left under a run and is there again.
func (t *seat) back() {
	if t.gone != nil && t.lost != nil && t.here && !t.seen.Away && !t.seen.SameEnumeration(*t.lost) {
		t.end()
	}
}

func (b *Bay) seat(name string) *seat {
	t := b.seats[name]
	if t == nil {
		t = &seat{}
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
		t, changed := p.b.seat(p.slot), p.b.changed
		if t.here {
			if t.gone == nil {
				t.gone = make(chan struct{})
			}
			v := &visit{b: p.b, seat: t, key: t.seen.Key(), number: t.seen.Visit, name: t.seen.Binding(), gone: t.gone}
			a := &Arrival{Device: t.seen.Device, Gone: t.gone, Open: v.open, Taken: v.taken, Where: v.where}
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

// visit is a device's stay at a position.
type visit struct {
	b      *Bay
	seat   *seat
	key    string
	number uint64
	name   string
	gone   chan struct{} // of the seat, when somebody arrived
	last   *seated       // the port that was opened last; of the slot's worker
}

// now is the device as the watcher has told of it. It is called with the bay's mu
// held.
func (v *visit) now() (discover.Seen, bool) {
	i := slices.IndexFunc(v.b.ports, func(s discover.Seen) bool { return s.Key() == v.key && s.Visit == v.number })
	if i < 0 {
		return discover.Seen{}, false
	}
	return v.b.ports[i], true
}

func (v *visit) where() string {
	v.b.mu.Lock()
	defer v.b.mu.Unlock()
	seen, _ := v.now()
	return seen.Device
}

// taken: a run that lost its device is to be begun again when that is back, as if
// it had been plugged in.
func (v *visit) taken(verdict provision.Verdict) {
	if verdict != provision.Error || v.last == nil {
		return
	}
	found, lost := v.last.left()
	if !lost {
		return
	}
	v.b.mu.Lock()
	defer v.b.mu.Unlock()
	if v.seat.gone == v.gone {
		v.seat.lost = &found
		v.seat.back()
	}
}

func (v *visit) open(ctx context.Context) (port.Port, error) {
	p := &seated{v: v, baud: v.b.options.Baud}
	opened, found, err := v.dial(ctx, p.baud)
	if err != nil {
		return nil, err
	}
	p.now, p.found, p.info = opened, found, opened.Info()
	v.last = p
	return p, nil
}

// Times of opening.
const (
	// awayLimit is how long a device may be off the bus, or not let itself be
	// opened: the chip's own USB leaves with every reset, udev gives a new device
	// its group a moment later, and a desktop's modem probe may hold it.
	awayLimit = 5 * time.Second
	dialEvery = 25 * time.Millisecond
)

// errMoved: the name that the watcher told belongs to another position by now.
var errMoved = errors.New("names of ports are moving")

// dial opens the device of the visit wherever it is now.
func (v *visit) dial(ctx context.Context, baud int) (port.Port, discover.Port, error) {
	limit := time.NewTimer(cmp.Or(v.b.options.Return, awayLimit))
	defer limit.Stop()
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	for {
		v.b.mu.Lock()
		seen, there := v.now()
		changed := v.b.changed
		v.b.mu.Unlock()
		if !there {
			return nil, discover.Port{}, fmt.Errorf("%w: the device at %s was taken out", rom.ErrUnplugged, v.name)
		}
		err := fmt.Errorf("%w: the device at %s left the bus", rom.ErrUnplugged, v.name)
		if !seen.Away {
			var p port.Port
			var found discover.Port
			if p, found, err = v.try(ctx, seen, baud); err == nil || ctx.Err() != nil || !passing(err) {
				return p, found, err
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-limit.C:
			return nil, discover.Port{}, err
		case <-ctx.Done():
			return nil, discover.Port{}, ctx.Err()
		}
	}
}

// passing reports whether an error of opening may mend itself.
func passing(err error) bool {
	for _, e := range []error{fs.ErrNotExist, fs.ErrPermission, port.ErrBusy, rom.ErrUnplugged, errMoved} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// try opens once. While a hub comes back names move, so it is looked up whose name
// it is: before, as another's port is not to be touched, and after.
func (v *visit) try(ctx context.Context, seen discover.Seen, baud int) (port.Port, discover.Port, error) {
	if _, err := v.lookup(seen); err != nil {
		return nil, discover.Port{}, err
	}
	o := v.b.options
	o.Baud = baud
	p, err := port.Open(ctx, seen.OpenPath(), o)
	if err != nil {
		return nil, discover.Port{}, err
	}
	found, err := v.lookup(seen)
	if err != nil {
		_ = p.Close()
		return nil, discover.Port{}, err
	}
	return p, found, nil
}

func (v *visit) lookup(seen discover.Seen) (discover.Port, error) {
	path := seen.OpenPath()
	at, err := discover.Lookup(discover.Roots{Sys: v.b.options.Sys, Dev: v.b.options.Dev}, path)
	switch {
	case err != nil:
		return discover.Port{}, fmt.Errorf("%w: %w", errMoved, err)
	case at.Key() != v.key:
		return discover.Port{}, fmt.Errorf("%w: %s is at %s now, and the slot is at %s", errMoved, path, at.Binding(), v.name)
	case !seen.Goes(at):
		return discover.Port{}, fmt.Errorf("%w: another device is at %s now", errMoved, v.name)
	}
	return at, nil
}

// seated is the port of a run. Reopening follows the device to where it is: with
// the chip's own USB its name may be another after each reset, and the old name
// another board's.
type seated struct {
	v *visit

	mu     sync.Mutex
	now    port.Port // nil while it is reopened
	found  discover.Port
	info   rom.PortInfo
	baud   int
	lost   bool // it left the bus, and was not reopened
	closed bool
}

// left gives the device that left under the run.
func (p *seated) left() (discover.Port, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.found, p.lost
}

func (p *seated) current() (port.Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, fmt.Errorf("port at %s: %w", p.v.name, fs.ErrClosed)
	case p.now == nil:
		return nil, fmt.Errorf("port at %s: %w", p.v.name, rom.ErrUnplugged)
	}
	return p.now, nil
}

// noted keeps in mind that the device has left.
func (p *seated) noted(err error) error {
	if errors.Is(err, rom.ErrUnplugged) {
		p.mu.Lock()
		p.lost = true
		p.mu.Unlock()
	}
	return err
}

func (p *seated) Read(ctx context.Context, b []byte) (int, error) {
	now, err := p.current()
	if err != nil {
		return 0, err
	}
	n, err := now.Read(ctx, b)
	return n, p.noted(err)
}

func (p *seated) Write(ctx context.Context, b []byte) (int, error) {
	now, err := p.current()
	if err != nil {
		return 0, err
	}
	n, err := now.Write(ctx, b)
	return n, p.noted(err)
}

func (p *seated) Discard(ctx context.Context) error {
	now, err := p.current()
	if err != nil {
		return err
	}
	return p.noted(now.Discard(ctx))
}

func (p *seated) SetBaud(ctx context.Context, baud int) error {
	now, err := p.current()
	if err != nil {
		return err
	}
	if err := now.SetBaud(ctx, baud); err != nil {
		return p.noted(err)
	}
	p.mu.Lock()
	p.baud = baud
	p.mu.Unlock()
	return nil
}

func (p *seated) SetLines(ctx context.Context, dtr, rts bool) error {
	now, err := p.current()
	if err != nil {
		return err
	}
	return p.noted(now.SetLines(ctx, dtr, rts))
}

func (p *seated) Reopen(ctx context.Context) error {
	p.mu.Lock()
	old, baud, closed := p.now, p.baud, p.closed
	p.now = nil
	p.mu.Unlock()
	if closed {
		_, err := p.current()
		return err
	}
	if old != nil {
		shut := make(chan struct{})
		go func() {
			defer close(shut)
			_ = old.Close() // it waits for its last bytes
		}()
		select {
		case <-shut:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	opened, found, err := p.v.dial(ctx, baud)
	if err != nil {
		return p.noted(fmt.Errorf("reopen: %w", err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = opened.Close()
		return fmt.Errorf("reopen port at %s: %w", p.v.name, fs.ErrClosed)
	}
	p.now, p.found, p.info, p.lost = opened, found, opened.Info(), false
	return nil
}

func (p *seated) Info() rom.PortInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info
}

func (p *seated) Close() error {
	p.mu.Lock()
	now := p.now
	p.now, p.closed = nil, true
	p.mu.Unlock()
	if now != nil {
		return now.Close()
	}
	return nil
}
