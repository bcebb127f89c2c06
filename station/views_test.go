package station_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/views"
)

// upTo is a journal as it was when it was shorter.
type upTo struct {
	*journal.Journal
	head uint64
}

func (u *upTo) Head() (uint64, journal.Hash) { return u.head, journal.Hash{} }

// everything is all that a projection can be asked.
func everything(t *testing.T, v *views.Views) map[string]any {
	t.Helper()
	out := map[string]any{}
	add := func(name string, value any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = value
	}
	runs, err := v.History(t.Context(), views.Query{Limit: 1000})
	add("runs", runs, err)
	for i, r := range runs {
		mine, err := v.History(t.Context(), views.Query{Limit: 1000, Unit: r.Unit, Verdict: r.Verdict})
		add(fmt.Sprint("unit ", i), mine, err)
		day, err := v.Day(r.Time)
		add("day "+r.Time.Format(time.DateOnly), day, err)
	}
	lots, err := v.Lots(false, 0)
	add("lots", lots, err)
	for _, l := range lots {
		members, err := v.Members(l.ID)
		add("members "+l.ID, members, err)
		page, err := v.History(t.Context(), views.Query{Limit: 2, Lot: l.ID})
		add("page "+l.ID, page, err)
	}
	blocked, err := v.Blocked()
	add("blocked", blocked, err)
	return out
}

// TestViewsAreAProjection: wherever a station was stopped, in the middle of runs or
// between them, its views come out as if they were made in one go.
func TestViewsAreAProjection(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		var slots []station.Spec
		var hands []*hand
		for i := range 3 {
			h := newHand()
			hands = append(hands, h)
			slots = append(slots, station.Spec{Name: fmt.Sprint(i), Start: station.StartPlug, Fixture: h})
		}
		r := f.start(station.Options{Slots: slots, Failures: 1})
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{
			ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 4, Serials: station.Serials{From: station.SerialsRange, First: "A01"},
		}); err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			for i, h := range hands {
				b := newBoard(t, "esp32c3", "")
				if i == 2 {
					b.Power(false)
				}
				h.in(b)
			}
			for i := range hands {
				r.await(fmt.Sprint(i), "an end", func(v station.SlotView) bool { return v.Verdict != "" || v.State == station.SlotBlocked })
				hands[i].out()
				r.awaitGone(fmt.Sprint(i))
			}
			if round == 0 {
				if err := r.ClearSlot(t.Context(), ann, "2", ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.CloseLot(t.Context(), ann, "L1"); err != nil {
			t.Fatal(err)
		}
		r.stop()
		defer f.close()
		size, _ := f.jrn.Head()
		open := func(path string, head uint64) *views.Views {
			t.Helper()
			v, err := views.Open(path, &upTo{f.jrn, head}, time.UTC)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			return v
		}
		whole := open(filepath.Join(t.TempDir(), "v.db"), size)
		want := everything(t, whole)
		if err := whole.Close(); err != nil {
			t.Fatal(err)
		}
		if len(want["runs"].([]views.Run)) < 5 {
			t.Fatalf("%d runs are too few to test with", len(want["runs"].([]views.Run)))
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 25 {
			path := filepath.Join(t.TempDir(), "v.db")
			for head := uint64(0); head < size; {
				head = min(size, head+1+rng.Uint64N(25))
				v := open(path, head)
				if head == size {
					if diff := cmp.Diff(want, everything(t, v)); diff != "" {
						t.Fatal(diff)
					}
				}
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Views of a history that the journal does not have any more are made again.
		path := filepath.Join(t.TempDir(), "v.db")
		if err := open(path, size).Close(); err != nil {
			t.Fatal(err)
		}
		v := open(path, size/2)
		if runs, err := v.History(t.Context(), views.Query{Limit: 1000}); err != nil || len(runs) >= len(want["runs"].([]views.Run)) {
			t.Errorf("%d runs, %v", len(runs), err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
