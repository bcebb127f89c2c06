package lot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// memory is a journal without a disk.
type memory struct {
	mu      sync.Mutex
	entries []journal.Entry
	fail    error
}

func (m *memory) Append(_ context.Context, e journal.Entry) (journal.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return e, m.fail
	}
	e.Index = uint64(len(m.entries))
	m.entries = append(m.entries, e)
	return e, nil
}

func (m *memory) Unit(chip.MAC) ([]journal.Entry, error) { return nil, nil }

func (m *memory) Head() (uint64, journal.Hash) { return uint64(len(m.entries)), journal.Hash{} }

func (m *memory) Entries(from, _ uint64) iter.Seq2[journal.Entry, error] {
	return func(yield func(journal.Entry, error) bool) {
		for _, e := range m.entries[from:] {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func mac(n int) chip.MAC { return chip.MAC{2, 0, 0, 0, byte(n >> 8), byte(n)} }

// run is what the engine writes of a unit that gets as far as the given step.
func run(t *testing.T, b *Book, slot, lot string, unit chip.MAC, wrote bool, verdict provision.Verdict, cause provision.Cause) {
	t.Helper()
	put := func(kind journal.Kind, step string, unit chip.MAC, body map[string]any) {
		t.Helper()
		p, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Append(t.Context(), journal.Entry{Slot: slot, Unit: unit, Step: step, Kind: kind, Payload: p}); err != nil {
			t.Fatal(err)
		}
	}
	put(journal.KindIntent, "connect", chip.MAC{}, map[string]any{"lot": lot})
	if err := b.Admit(t.Context(), lot, slot, "ada", unit); err != nil {
		var f *provision.Failure
		if !errors.As(err, &f) {
			t.Fatal(err)
		}
		verdict, cause, wrote = f.Verdict(), f.Cause, false
	}
	if wrote {
		put(journal.KindIntent, "flash", unit, map[string]any{})
	}
	if verdict != "" {
		put(journal.KindVerdict, "verdict", unit, map[string]any{"verdict": verdict, "cause": cause})
	}
}

// same demands that a new start counts as this one does.
func (m *memory) same(t *testing.T, b *Book, lot string, want Status) {
	t.Helper()
	again, err := NewBook(m)
	if err != nil {
		t.Fatal(err)
	}
	want.Lot = lot
	if got := b.Status(lot); got != want {
		t.Errorf("the lot is at %+v, want %+v", got, want)
	}
	if got := again.Status(lot); got != want {
		t.Errorf("after a new start the lot is at %+v, want %+v", got, want)
	}
}

func TestQuantity(t *testing.T) {
	m := &memory{}
	b, err := NewBook(m)
	if err != nil {
		t.Fatal(err)
	}
	run(t, b, "1", "L", mac(1), true, provision.Pass, "") // before anybody told a quantity
	m.same(t, b, "L", Status{Begun: 1, Passed: 1})
	if _, err := b.Place(t.Context(), Order{Lot: "L", Quantity: 3, Recipe: "sensor", Operator: "ada"}); err != nil {
		t.Fatal(err)
	}
	run(t, b, "1", "L", mac(2), true, provision.Error, provision.CauseStation)
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 2, Passed: 1})
	run(t, b, "1", "L", mac(3), false, provision.Fail, provision.CauseRefused) // gives its place back
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 2, Passed: 1})
	run(t, b, "1", "L", mac(4), true, "", "") // the station stopped
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 3, Passed: 1})

	err = b.Admit(t.Context(), "L", "2", "ada", mac(5))
	var f *provision.Failure
	if !errors.As(err, &f) || f.ExitCode() != provision.ExitRefused || !strings.Contains(f.Reason, "all of its 3 units are begun, 1 have passed") || f.NextStep == "" {
		t.Errorf("a fourth unit: %v", err)
	}
	// Those that were let in may come again, also after a refusal in between.
	run(t, b, "1", "L", mac(2), false, provision.Fail, provision.CauseRefused)
	run(t, b, "1", "L", mac(2), true, provision.Pass, "")
	run(t, b, "1", "L", mac(4), true, provision.Pass, "")
	run(t, b, "1", "L", mac(4), false, provision.Fail, provision.CauseRefused) // it is finished
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 3, Passed: 3})
	// Another lot is another count, and one without a quantity takes all.
	for n := range 10 {
		run(t, b, "1", "M", mac(100+n), true, provision.Pass, "")
	}
	m.same(t, b, "M", Status{Begun: 10, Passed: 10})
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 3, Passed: 3})
}

func TestOrders(t *testing.T) {
	m := &memory{}
	b, err := NewBook(m)
	if err != nil {
		t.Fatal(err)
	}
	place := func(o Order, reason string) {
		t.Helper()
		n := len(m.entries)
		_, err := b.Place(t.Context(), o)
		if reason == "" && err != nil || reason != "" && (!errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), reason) || len(m.entries) != n) {
			t.Errorf("%+v: %v, want %q", o, err, reason)
		}
	}
	place(Order{Lot: "L"}, "quantity of at least 1")
	place(Order{Quantity: 1}, "needs a lot")
	place(Order{Lot: "L", Quantity: 2, Recipe: "sensor"}, "")
	place(Order{Lot: "L", Quantity: 2}, "")
	if len(m.entries) != 1 {
		t.Errorf("the same order again is another entry: %v", m.entries)
	}
	place(Order{Lot: "L", Quantity: 2, Recipe: "lamp"}, "is of recipe sensor")
	place(Order{Lot: "L", Quantity: 3}, "is another order")
	run(t, b, "1", "L", mac(1), true, provision.Pass, "")
	run(t, b, "1", "L", mac(2), true, provision.Pass, "")
	place(Order{Lot: "L", Quantity: 1, Change: true}, "2 units of lot L are begun already")
	place(Order{Lot: "L", Quantity: 3, Change: true, Operator: "ada"}, "")
	if p := string(m.entries[len(m.entries)-1].Payload); p != `{"lot":"L","operator":"ada","quantity":3,"was":2}` {
		t.Errorf("the change is journaled as %s", p)
	}
	run(t, b, "1", "L", mac(3), true, provision.Pass, "")
	m.same(t, b, "L", Status{Quantity: 3, Recipe: "sensor", Begun: 3, Passed: 3})
}

// TestSlotsAtOnce: many slots that ask for the last places get exactly those.
func TestSlotsAtOnce(t *testing.T) {
	m := &memory{}
	b, err := NewBook(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Place(t.Context(), Order{Lot: "L", Quantity: 7}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for n := range errs {
		wg.Go(func() { errs[n] = b.Admit(t.Context(), "L", fmt.Sprint(n), "", mac(n)) })
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
		}
	}
	if in != 7 {
		t.Errorf("%d units were let in", in)
	}
	m.same(t, b, "L", Status{Quantity: 7, Begun: 7})
}

// TestNoEntryNoPlace: what the journal did not take has no effect.
func TestNoEntryNoPlace(t *testing.T) {
	m := &memory{}
	b, err := NewBook(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Place(t.Context(), Order{Lot: "L", Quantity: 1}); err != nil {
		t.Fatal(err)
	}
	m.fail = errors.New("disk full")
	var f *provision.Failure
	if err := b.Admit(t.Context(), "L", "1", "", mac(1)); !errors.As(err, &f) || f.Cause != provision.CauseJournal || !errors.Is(err, m.fail) {
		t.Errorf("%v", err)
	}
	if _, err := b.Append(t.Context(), journal.Entry{}); !errors.Is(err, m.fail) {
		t.Errorf("%v", err)
	}
	m.fail = nil
	m.same(t, b, "L", Status{Quantity: 1})
	m.entries[0].Payload = []byte(`{"quantity":"three"}`)
	if _, err := NewBook(m); err == nil || !strings.Contains(err.Error(), "journal entry 0") {
		t.Errorf("an entry of another form: %v", err)
	}
}

// TestStationsLot: a lot that the station daemon opened has its quantity here too,
// and what was made there counts.
func TestStationsLot(t *testing.T) {
	j := &memory{}
	add := func(kind journal.Kind, unit chip.MAC, step, payload string) {
		t.Helper()
		if _, err := j.Append(t.Context(), journal.Entry{Slot: "A1", Unit: unit, Step: step, Kind: kind, Payload: []byte(payload)}); err != nil {
			t.Fatal(err)
		}
	}
	one, two := chip.MAC{2, 0, 0, 0, 0, 1}, chip.MAC{2, 0, 0, 0, 0, 2}
	add(journal.KindOperator, chip.MAC{}, StepOpen, `{"lot":"L","quantity":1,"recipe":"r","operator":"ann"}`)
	add(journal.KindIntent, chip.MAC{}, "connect", `{"lot":"L"}`)
	add(journal.KindIntent, one, "flash", `{}`)
	add(journal.KindVerdict, one, "verdict", `{"verdict":"PASS"}`)
	b, err := NewBook(j)
	if err != nil {
		t.Fatal(err)
	}
	if s := b.Status("L"); s.Quantity != 1 || s.Begun != 1 || s.Passed != 1 || s.Recipe != "r" {
		t.Errorf("%+v", s)
	}
	if err := b.Admit(t.Context(), "L", "bench", "bo", two); err == nil {
		t.Error("one more than the lot has was let in")
	}
	if err := b.Admit(t.Context(), "L", "bench", "bo", one); err != nil {
		t.Error(err)
	}
}
