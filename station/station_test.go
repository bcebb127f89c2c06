package station_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/port"
	"github.com/provisiond/provisiond/station/views"
)

// factory is a directory with everything that a station needs.
type factory struct {
	t     testing.TB
	dir   string
	store keystore.Store
	jrn   *journal.Journal
	views *views.Views
	jobs  []*provision.Job
}

var products struct {
	sync.Mutex
	dir  string
	jobs map[string]*provision.Job
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "station")
	if err != nil {
		panic(err)
	}
	products.dir, products.jobs = dir, map[string]*provision.Job{}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// product is a small own product; its recipe has the name chip-profile.
func product(t testing.TB, chipName, profile string) *provision.Job {
	t.Helper()
	products.Lock()
	defer products.Unlock()
	name := chipName + "-" + profile
	if j := products.jobs[name]; j != nil {
		return j
	}
	m, err := chip.ByName(chipName)
	if err != nil {
		t.Fatal(err)
	}
	path, err := sample.Write(products.dir, sample.Product{Chip: m, Name: name, Profile: profile, AppSize: 6 << 10, Baud: 921600})
	if err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	j, err := provision.NewJob(r)
	if err != nil {
		t.Fatal(err)
	}
	products.jobs[name] = j
	return j
}

func newFactory(t testing.TB, jobs ...*provision.Job) *factory {
	t.Helper()
	f := &factory{t: t, dir: t.TempDir(), jobs: jobs}
	keys := filepath.Join(f.dir, "keystore.db")
	id := keys + ".identity"
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(keys, local.Options{IdentityFile: id, TestStore: true}); err != nil {
		t.Fatal(err)
	}
	store, err := local.Open(keys, local.Options{IdentityFile: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	f.store = store
	if err := journal.Init(filepath.Join(f.dir, "journal.db"), journal.Options{Station: "line-3"}); err != nil {
		t.Fatal(err)
	}
	f.open()
	return f
}

// open opens the journal and its views: again after close.
func (f *factory) open() {
	f.t.Helper()
	var err error
	if f.jrn, err = journal.Open(filepath.Join(f.dir, "journal.db")); err != nil {
		f.t.Fatal(err)
	}
	if f.views, err = views.Open(filepath.Join(f.dir, "views.db"), f.jrn, time.UTC); err != nil {
		f.t.Fatal(err)
	}
}

func (f *factory) close() {
	f.t.Helper()
	if err := f.views.Close(); err != nil {
		f.t.Error(err)
	}
	if err := f.jrn.Close(); err != nil {
		f.t.Error(err)
	}
}

// running is a station at work.
type running struct {
	*station.Station
	t    testing.TB
	stop func()
}

func (f *factory) start(o station.Options) *running {
	f.t.Helper()
	o.Name, o.Version, o.Tool, o.Simulated = "line-3", "test", "provisiond test", true
	if o.Store == nil {
		o.Store = f.store
	}
	o.Journal, o.Views, o.Jobs = f.jrn, f.views, f.jobs
	s, err := station.New(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return &running{Station: s, t: f.t, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	})}
}

func (r *running) slot(name string) station.SlotView {
	r.t.Helper()
	for _, v := range r.View().Slots {
		if v.Name == name {
			return v
		}
	}
	r.t.Fatalf("no slot %s", name)
	return station.SlotView{}
}

// await waits until a slot is as ok says.
func (r *running) await(name, what string, ok func(station.SlotView) bool) station.SlotView {
	r.t.Helper()
	w := r.Watch()
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour) // of the bubble's clock
	defer cancel()
	for {
		if v := r.slot(name); ok(v) {
			return v
		}
		if _, err := w.Next(ctx); err != nil {
			v := r.slot(name)
			r.t.Fatalf("slot %s: %s; waited for %s; it says %q, next %q", name, v.State, what, v.Reason, v.NextStep)
		}
	}
}

func (r *running) awaitState(name string, want station.SlotState) station.SlotView {
	r.t.Helper()
	return r.await(name, string(want), func(v station.SlotView) bool { return v.State == want })
}

// hand is an operator's hand at one slot: boards are put in and taken out.
type hand struct {
	arrive chan *board
	now    *board
}

func newHand() *hand { return &hand{arrive: make(chan *board)} }

type board struct {
	*espsim.Chip
	gone chan struct{}
	wrap func(port.Port) port.Port
}

func (h *hand) Arrive(ctx context.Context) (*station.Arrival, error) {
	select {
	case b := <-h.arrive:
		return &station.Arrival{Device: "hand", Gone: b.gone, Open: func(context.Context) (port.Port, error) {
			var p port.Port = handPort{port.FromSim(b.Chip, "sim://"+b.Model().Name)}
			if b.wrap != nil {
				p = b.wrap(p)
			}
			return p, nil
		}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *hand) in(b *board) {
	b.gone = make(chan struct{})
	h.now = b
	h.arrive <- b
}

func (h *hand) out() { close(h.now.gone) }

var boards int

func newBoard(t *testing.T, chipName, faults string) *board {
	t.Helper()
	m, err := chip.ByName(chipName)
	if err != nil {
		t.Fatal(err)
	}
	fl, err := espsim.ParseFaults(faults)
	if err != nil {
		t.Fatal(err)
	}
	boards++
	c, err := espsim.New(espsim.Options{
		Model: m, MAC: chip.MAC{0x02, 0, 0, 0, byte(boards >> 8), byte(boards)}, Revision: max(m.Lockdown.ClosedMinimum, 4), AppPrints: sample.AppText, Faults: fl,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &board{Chip: c}
}

var ann = station.Person{Name: "ann", Role: "operator"}

func inBubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

// TestShift: boards come and go through two slots of a lot, by plug-in.
func TestShift(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "release"))
		defer f.close()
		one, two := newHand(), newHand()
		r := f.start(station.Options{Slots: []station.Spec{
			{Name: "1", Port: "usb:1-1", Start: station.StartPlug, Fixture: one},
			{Name: "2", Port: "usb:1-2", Start: station.StartPlug, Fixture: two},
		}})
		defer r.stop()
		a := newBoard(t, "esp32c3", "")
		one.in(a)
		if v := r.awaitState("1", station.SlotWaiting); !strings.Contains(v.Reason, "no lot") {
			t.Errorf("waits for %q", v.Reason)
		}
		lot, err := r.OpenLot(t.Context(), ann, station.LotRequest{
			ID: "L1", Recipe: "esp32c3-release", Quantity: 2, Serials: station.Serials{From: station.SerialsRange, First: "AB0099"},
		})
		if err != nil || lot.Quantity != 2 || !lot.Open {
			t.Fatal(lot, err)
		}
		v := r.awaitState("1", station.SlotPass)
		if v.Serial != "AB0099" || v.Unit == "" || v.KeyFingerprint == "" || v.Permille != 1000 || v.Lot != "L1" || !v.Simulated {
			t.Errorf("%+v", v)
		}
		time.Sleep(3 * time.Minute)
		if v := r.slot("1"); v.State != station.SlotDone || v.Verdict != provision.Pass || v.NextStep == "" {
			t.Errorf("a unit that was left in its fixture: %+v", v)
		}
		// The same board once more: it is done, and nothing is written to it.
		burns := a.Burns()
		one.out()
		r.awaitState("1", station.SlotMissing)
		one.in(a)
		if v := r.awaitState("1", station.SlotDone); v.Reason == "" || a.Burns() != burns {
			t.Errorf("%+v", v)
		}
		two.in(newBoard(t, "esp32c3", ""))
		if v := r.awaitState("2", station.SlotPass); v.Serial != "AB0100" {
			t.Errorf("serial %s", v.Serial)
		}
		// The lot is full.
		two.out()
		r.awaitState("2", station.SlotMissing)
		third := newBoard(t, "esp32c3", "")
		two.in(third)
		if v := r.awaitState("2", station.SlotRefused); !strings.Contains(v.Reason, "full") || third.Burns() != 0 {
			t.Errorf("%+v", v)
		}
		all, err := r.Lots(t.Context(), 10)
		if err != nil || len(all) != 1 || all[0].Begun != 2 || all[0].Yield.Pass != 2 || all[0].Yield.FirstPass != 2 || all[0].Yield.Units() != 2 {
			t.Errorf("%+v %v", all, err)
		}
		runs, err := r.History(t.Context(), station.HistoryQuery{})
		if err != nil || len(runs) != 4 || runs[0].Reason == "" || runs[3].Verdict != provision.Pass {
			t.Errorf("%+v %v", runs, err)
		}
		if runs, err = r.History(t.Context(), station.HistoryQuery{Unit: "AB0100"}); err != nil || len(runs) != 1 || runs[0].Operator != "ann" {
			t.Errorf("%+v %v", runs, err)
		}
		if err := r.CloseLot(t.Context(), ann, "L1"); err != nil {
			t.Error(err)
		}
	})
}

// TestRestart: lots, their places and numbers, and blocked slots are as they were
// after the station was stopped, with the views file or without it.
func TestRestart(t *testing.T) {
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprintf("views kept %v", keep), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				f := newFactory(t, product(t, "esp32c3", "hybrid"))
				h := newHand()
				slots := []station.Spec{{Name: "1", Port: "usb:1-1", Start: station.StartPlug, Fixture: h}}
				r := f.start(station.Options{Slots: slots, Failures: 1})
				if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{
					ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 3, Serials: station.Serials{From: station.SerialsList, List: []string{"x1", "x2", "x3"}},
				}); err != nil {
					t.Fatal(err)
				}
				h.in(newBoard(t, "esp32c3", ""))
				r.awaitState("1", station.SlotPass)
				h.out()
				r.awaitState("1", station.SlotMissing)
				silent := newBoard(t, "esp32c3", "")
				silent.Power(false)
				h.in(silent)
				r.awaitState("1", station.SlotBlocked)
				r.stop()
				f.close()
				if !keep {
					if err := os.Remove(filepath.Join(f.dir, "views.db")); err != nil {
						t.Fatal(err)
					}
				}
				f.open()
				defer f.close()
				h = newHand()
				slots[0].Fixture = h
				r = f.start(station.Options{Slots: slots})
				defer r.stop()
				if v := r.slot("1"); v.State != station.SlotBlocked || !strings.Contains(v.Reason, "failures in a row") || v.Lot != "L1" {
					t.Fatalf("%+v", v)
				}
				if lots := r.View().Lots; len(lots) != 1 || lots[0].Begun != 1 || lots[0].Yield.Pass != 1 {
					t.Fatalf("%+v", lots)
				}
				h.in(newBoard(t, "esp32c3", ""))
				if err := r.ClearSlot(t.Context(), ann, "1", "new cable"); err != nil {
					t.Fatal(err)
				}
				if v := r.awaitState("1", station.SlotPass); v.Serial != "x2" {
					t.Errorf("serial %s", v.Serial)
				}
			})
		})
	}
}

// handPort is the port of a board that outlives it.
type handPort struct{ rom.Port }

func (handPort) Close() error { return nil }

// awaitGone waits until nobody's board is in the slot.
func (r *running) awaitGone(name string) {
	r.t.Helper()
	r.await(name, "leaving", func(v station.SlotView) bool {
		return v.State == station.SlotMissing || v.State == station.SlotBlocked && v.Device == ""
	})
}
