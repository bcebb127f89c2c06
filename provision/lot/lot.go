// Package lot owns how many units a lot may have.
//
// What it promises:
//
//   - A lot with a quantity never has more units that were begun, however many
//     slots ask at once: a unit is let in by an entry in the journal, which is
//     durable before anything is written to the unit.
//   - A unit that was let in may come again, and counts once. One that was refused
//     before anything was written to it gives its place back.
//   - Everything is in the journal. A new start counts the same.
package lot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// The steps of this package's entries, which are of kind station.
const (
	// StepOrder says which quantity a lot has.
	StepOrder = "lot"
	// StepUnit lets a unit into a lot.
	StepUnit = "lot-unit"
	// StepOpen is the station daemon's entry, of kind operator, that opens a lot with
	// its quantity. The station counts for itself; whoever makes a unit by hand must
	// not exceed it either.
	StepOpen = "lot-open"
)

// ErrOrder is the class of orders that cannot be taken: somebody has to decide.
var ErrOrder = errors.New("lot: this order cannot be taken")

// Journal is what a Book needs of a journal. (*journal.Journal) is one.
type Journal interface {
	provision.Journal
	// Head and Entries are also what the engine finds a unit with whose closing was
	// cut off.
	Head() (size uint64, hash journal.Hash)
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
}

// Order is how many units of which product somebody wants.
type Order struct {
	Lot      string
	Quantity int    // at least 1
	Recipe   string // name; empty: not told
	Operator string
	Change   bool // the lot may have another quantity already
}

// Status is how far a lot is.
type Status struct {
	Lot      string
	Quantity int    // 0: nobody has told
	Recipe   string // empty: nobody has told
	Begun    int    // units that were let in, or begun when there was no quantity
	Passed   int    // of those
}

// Book counts the lots of a journal. It is the engine's journal, so that it sees
// every entry. It is safe for concurrent use.
type Book struct {
	Journal
	mu    sync.Mutex // held while an entry is written that takes a place
	lots  map[string]*count
	slots map[string]string // the lot of each slot's open run; a rework has none
}

type count struct {
	Status
	units map[chip.MAC]*unit
}

type unit struct {
	firm   bool // something was done to it
	passed bool
}

var _ provision.Journal = (*Book)(nil)

// NewBook reads the whole journal.
func NewBook(j Journal) (*Book, error) {
	b := &Book{Journal: j, lots: map[string]*count{}, slots: map[string]string{}}
	for e, err := range j.Entries(0, journal.All) {
		if err == nil {
			err = b.take(e)
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Status tells how far a lot is.
func (b *Book) Status(lot string) Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lot(lot).Status
}

// Append is the engine's way to the journal.
func (b *Book) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	e, err := b.Journal.Append(ctx, e)
	if err != nil {
		return e, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return e, b.take(e)
}

// Place gives a lot its quantity. The same order again changes nothing; another
// quantity needs Change, and is never below what was begun.
func (b *Book) Place(ctx context.Context, o Order) (Status, error) {
	if o.Lot == "" || o.Quantity < 1 {
		return Status{}, fmt.Errorf("%w: it needs a lot and a quantity of at least 1", ErrOrder)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.lot(o.Lot)
	switch {
	case c.Recipe != "" && o.Recipe != "" && c.Recipe != o.Recipe:
		return c.Status, fmt.Errorf("%w: lot %s is of recipe %s, and not of %s", ErrOrder, o.Lot, c.Recipe, o.Recipe)
	case c.Quantity == o.Quantity:
		return c.Status, nil
	case c.Quantity != 0 && !o.Change:
		return c.Status, fmt.Errorf("%w: lot %s has a quantity of %d, and %d units of it are begun; %d is another order", ErrOrder, o.Lot, c.Quantity, c.Begun, o.Quantity)
	case o.Quantity < c.Begun:
		return c.Status, fmt.Errorf("%w: %d units of lot %s are begun already, and %d are less", ErrOrder, c.Begun, o.Lot, o.Quantity)
	}
	body := map[string]any{"lot": o.Lot, "quantity": o.Quantity}
	for name, v := range map[string]string{"recipe": o.Recipe, "operator": o.Operator} {
		if v != "" {
			body[name] = v
		}
	}
	if c.Quantity != 0 {
		body["was"] = c.Quantity
	}
	if err := b.write(ctx, journal.Entry{Step: StepOrder}, body); err != nil {
		return c.Status, err
	}
	return c.Status, nil
}

// Admit lets a unit into a lot, or gives a *provision.Failure that says how far
// the lot is. Without a quantity every unit is let in, and nothing is written.
func (b *Book) Admit(ctx context.Context, lot, slot, operator string, mac chip.MAC) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.lot(lot)
	if c.Quantity == 0 || c.units[mac] != nil {
		return nil
	}
	if c.Begun >= c.Quantity {
		return &provision.Failure{
			Cause:    provision.CauseRefused,
			Reason:   fmt.Sprintf("lot %s is complete: all of its %d units are begun, %d have passed", lot, c.Quantity, c.Passed),
			NextStep: "take the board out; begin another lot, or let somebody order more of this one",
		}
	}
	body := map[string]any{"lot": lot, "number": c.Begun + 1}
	if operator != "" {
		body["operator"] = operator
	}
	return b.write(ctx, journal.Entry{Slot: slot, Unit: mac, Step: StepUnit}, body)
}

// write appends an entry of this package; mu is held.
func (b *Book) write(ctx context.Context, e journal.Entry, body map[string]any) error {
	p, err := journal.MarshalPayload(body)
	if err != nil {
		return err
	}
	e.Kind, e.Payload = journal.KindStation, p
	if e, err = b.Journal.Append(ctx, e); err == nil {
		return b.take(e)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	return &provision.Failure{
		Cause: provision.CauseJournal, Reason: "the journal cannot be written",
		NextStep: "check the disk and run `provisiond journal verify`; nothing more is done to units meanwhile", Err: err,
	}
}

func (b *Book) lot(name string) *count {
	c := b.lots[name]
	if c == nil {
		c = &count{Status: Status{Lot: name}, units: map[chip.MAC]*unit{}}
		b.lots[name] = c
	}
	return c
}

// payload has what is read of entries.
type payload struct {
	Lot      string            `json:"lot"`
	Quantity int               `json:"quantity"`
	Recipe   string            `json:"recipe"`
	Rework   string            `json:"rework_reason"`
	Verdict  provision.Verdict `json:"verdict"`
	Cause    provision.Cause   `json:"cause"`
}

// take follows one entry; mu is held, or nobody else knows b yet.
func (b *Book) take(e journal.Entry) error {
	begins := e.Kind == journal.KindIntent && e.Step == "connect"
	touches := e.Kind == journal.KindIntent && e.Step == "flash"
	ours := e.Kind == journal.KindStation && (e.Step == StepOrder || e.Step == StepUnit)
	opens := e.Kind == journal.KindOperator && e.Step == StepOpen
	ends := e.Kind == journal.KindVerdict
	if !begins && !touches && !ours && !opens && !ends {
		return nil
	}
	var p payload
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return fmt.Errorf("journal entry %d: %w", e.Index, err)
	}
	switch {
	case begins:
		delete(b.slots, e.Slot)
		if p.Rework == "" { // a rework begins no unit
			b.slots[e.Slot] = p.Lot
		}
	case opens, ours && e.Step == StepOrder:
		c := b.lot(p.Lot)
		c.Quantity = p.Quantity
		if p.Recipe != "" {
			c.Recipe = p.Recipe
		}
	case ours:
		b.enter(p.Lot, e.Unit)
	case touches:
		if lot := b.slots[e.Slot]; lot != "" {
			b.enter(lot, e.Unit).firm = true
		}
	case ends:
		lot := b.slots[e.Slot]
		delete(b.slots, e.Slot)
		if lot != "" && e.Unit != (chip.MAC{}) {
			b.end(lot, e.Unit, p)
		}
	}
	return nil
}

func (b *Book) enter(lot string, mac chip.MAC) *unit {
	c := b.lot(lot)
	u := c.units[mac]
	if u == nil {
		u = &unit{}
		c.units[mac] = u
		c.Begun++
	}
	return u
}

// end is a unit's verdict: a refusal gives a place back that nothing was done in.
func (b *Book) end(lot string, mac chip.MAC, p payload) {
	c := b.lot(lot)
	u := c.units[mac]
	switch {
	case p.Cause == provision.CauseRefused && u != nil && !u.firm:
		delete(c.units, mac)
		c.Begun--
	case u == nil || p.Cause == provision.CauseRefused: // it was never let in, or stays what it is
	default:
		u.firm = true
		if p.Verdict == provision.Pass && !u.passed {
			u.passed = true
			c.Passed++
		}
	}
}
