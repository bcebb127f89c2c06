package station_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

// away is a keystore that can be taken away.
type away struct {
	keystore.Store
	down atomic.Bool
}

func (a *away) err() error {
	if a.down.Load() {
		return fmt.Errorf("%w: sealed", keystore.ErrUnavailable)
	}
	return nil
}

func (a *away) Info(ctx context.Context) (keystore.Info, error) {
	if err := a.err(); err != nil {
		return keystore.Info{}, err
	}
	return a.Store.Info(ctx)
}

func (a *away) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	if err := a.err(); err != nil {
		return keystore.Receipt{}, err
	}
	return a.Store.Create(ctx, r)
}

// TestKeystoreOutage: a unit before custody waits, unburned, and goes on by itself
// when the keystore is back. No other is begun meanwhile, and no slot is blamed.
func TestKeystoreOutage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32", "hybrid"))
		defer f.close()
		store := &away{Store: f.store}
		one, two := newHand(), newHand()
		r := f.start(station.Options{Store: store, Slots: []station.Spec{
			{Name: "1", Start: station.StartPlug, Fixture: one}, {Name: "2", Start: station.StartPlug, Fixture: two},
		}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		a, b := newBoard(t, "esp32", ""), newBoard(t, "esp32", "")
		one.in(a)
		r.await("1", "flash", func(v station.SlotView) bool { return v.Step == "flash" })
		store.down.Store(true)
		v := r.awaitState("1", station.SlotWaiting)
		if a.Burns() != 0 || !strings.Contains(v.Reason, "keystore") || v.Failures != 0 || v.NextStep == "" {
			t.Errorf("%d burns; %+v", a.Burns(), v)
		}
		two.in(b)
		r.awaitState("2", station.SlotWaiting)
		if b.Burns() != 0 {
			t.Error("a unit was begun while the keystore was away")
		}
		if c, bad := r.Conditions().Blocking(); !bad || c.Name != station.CondKeystore {
			t.Errorf("blocking: %+v", c)
		}
		store.down.Store(false)
		r.awaitState("1", station.SlotPass)
		r.awaitState("2", station.SlotPass)
	})
}

// TestPulledCable: the unit goes on where it stands when it is plugged in again,
// and its neighbour does not notice.
func TestPulledCable(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "release"))
		defer f.close()
		one, two := newHand(), newHand()
		r := f.start(station.Options{Slots: []station.Spec{
			{Name: "1", Start: station.StartPlug, Fixture: one}, {Name: "2", Start: station.StartPlug, Fixture: two},
		}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-release", Quantity: 2}); err != nil {
			t.Fatal(err)
		}
		a, b := newBoard(t, "esp32c3", ""), newBoard(t, "esp32c3", "")
		one.in(a)
		two.in(b)
		r.await("1", "flash", func(v station.SlotView) bool { return v.Step == "flash" && v.Done > 0 })
		a.Unplug()
		v := r.awaitState("1", station.SlotError)
		if v.Failures != 1 || v.Cause != provision.CauseStation {
			t.Errorf("%+v", v)
		}
		one.out()
		r.awaitState("1", station.SlotMissing)
		a.Plug()
		if err := a.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		one.in(a)
		if v := r.awaitState("1", station.SlotPass); v.Failures != 0 {
			t.Errorf("%+v", v)
		}
		r.awaitState("2", station.SlotPass)
		if lots := r.View().Lots; lots[0].Begun != 2 {
			t.Errorf("%d units count", lots[0].Begun)
		}
	})
}

// TestSlotQuarantine: three failures in a row set the slot aside, also for boards
// that are good.
func TestSlotQuarantine(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		h := newHand()
		r := f.start(station.Options{Slots: []station.Spec{{Name: "1", Start: station.StartPlug, Fixture: h}}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 3; n++ {
			silent := newBoard(t, "esp32c3", "")
			silent.Power(false)
			h.in(silent)
			v := r.await("1", "a failure", func(v station.SlotView) bool {
				return v.Failures == n && (v.State == station.SlotError || v.State == station.SlotFail || v.State == station.SlotBlocked)
			})
			if blocked := v.State == station.SlotBlocked; blocked != (n == 3) {
				if n < 3 {
					t.Fatalf("after %d failures: %+v", n, v)
				}
				r.awaitState("1", station.SlotBlocked)
			}
			h.out()
			if n < 3 {
				r.awaitState("1", station.SlotMissing)
			}
		}
		good := newBoard(t, "esp32c3", "")
		h.in(good)
		time.Sleep(time.Minute)
		if v := r.slot("1"); v.State != station.SlotBlocked || good.Burns() != 0 {
			t.Fatalf("%+v", v)
		}
		if err := r.StartUnit(t.Context(), ann, "1", ""); err == nil {
			t.Error("a blocked slot was started")
		}
		if err := r.ClearSlot(t.Context(), ann, "1", "new cable"); err != nil {
			t.Fatal(err)
		}
		if v := r.awaitState("1", station.SlotPass); v.Failures != 0 {
			t.Errorf("%+v", v)
		}
	})
}

// TestScanToStart: boards stay plugged into an adapter, and labels start them.
func TestScanToStart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		one, two := newHand(), newHand()
		r := f.start(station.Options{Slots: []station.Spec{
			{Name: "1", Start: station.StartScan, Fixture: one}, {Name: "2", Start: station.StartScan, Fixture: two},
		}})
		defer r.stop()
		scan := func(code, want string) {
			t.Helper()
			res, err := r.Scan(t.Context(), ann, code)
			if got := res.Text + fmt.Sprint(err); !strings.Contains(got, want) {
				t.Fatalf("scan %q: %q %v; wanted %q", code, res.Text, err, want)
			}
		}
		one.in(newBoard(t, "esp32c3", ""))
		two.in(newBoard(t, "esp32c3", ""))
		r.awaitState("1", station.SlotReady)
		r.awaitState("2", station.SlotReady)
		scan("LOT:L1:esp32c3-hybrid", "how many")
		scan("LOT:L1:nothing:5", "no recipe")
		scan("LOT:L1:esp32c3-hybrid:5", "is open")
		scan("SN:A1", "slots 1, 2")
		scan("slot:9", "no slot")
		scan("SLOT:2", "slot 2")
		scan("SN:A1", "A1 in slot 2")
		r.awaitState("2", station.SlotPass)
		// One number, two boards.
		scan("SN:A1", "in slot 1")
		if v := r.awaitState("1", station.SlotRefused); !strings.Contains(v.Reason, "belongs to") {
			t.Errorf("%+v", v)
		}
		scan("SN:A2", "in slot 1")
		v := r.awaitState("1", station.SlotPass)
		if v.Serial != "A2" {
			t.Errorf("%+v", v)
		}
		scan("MAC:"+v.Unit, "PASS")
		scan("CMD:ABORT", "no slot")
		scan("CMD:DANCE", "nobody knows")
		scan("hello", "prefix")
		scan("CMD:ENDLOT", "closed")
	})
}

// TestAbort stops a unit before its first fuse, and lets a one-way step end.
func TestAbort(t *testing.T) {
	for _, step := range []string{"flash", "burn-key"} {
		t.Run(step, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				f := newFactory(t, product(t, "esp32c3", "release"))
				defer f.close()
				h := newHand()
				r := f.start(station.Options{Slots: []station.Spec{{Name: "1", Start: station.StartButton, Fixture: h}}})
				defer r.stop()
				if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-release", Quantity: 9}); err != nil {
					t.Fatal(err)
				}
				b := newBoard(t, "esp32c3", "")
				h.in(b)
				r.awaitState("1", station.SlotReady)
				if err := r.AbortUnit(t.Context(), ann, "1"); err == nil {
					t.Error("nothing was aborted, and nobody said so")
				}
				if err := r.StartUnit(t.Context(), ann, "1", ""); err != nil {
					t.Fatal(err)
				}
				r.await("1", step, func(v station.SlotView) bool { return v.Step == step })
				if err := r.AbortUnit(t.Context(), ann, "1"); err != nil {
					t.Fatal(err)
				}
				v := r.awaitState("1", station.SlotAborted)
				if !strings.Contains(v.Reason, "ann") || v.Failures != 0 {
					t.Errorf("%+v", v)
				}
				if err := r.StartUnit(t.Context(), ann, "1", ""); err != nil {
					t.Fatal(err)
				}
				r.awaitState("1", station.SlotPass)
			})
		})
	}
}

// jig is a hook.
type jig struct {
	mu     sync.Mutex
	before func() error
	seen   []provision.Verdict
}

func (j *jig) Before(context.Context, station.UnitStart) error { return j.before() }

func (j *jig) After(_ context.Context, _ station.UnitStart, r *provision.Result) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen = append(j.seen, r.Verdict)
	return errors.New("the lamp is broken")
}

// TestHooks: a hook can refuse a unit, cannot change a verdict, and one that
// panics is its slot's own trouble.
func TestHooks(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		h := newHand()
		j := &jig{before: func() error { return errors.New("the lid is open") }}
		r := f.start(station.Options{Hooks: j, Slots: []station.Spec{{Name: "1", Start: station.StartButton, Fixture: h}}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		h.in(newBoard(t, "esp32c3", ""))
		r.awaitState("1", station.SlotReady)
		start := func() {
			t.Helper()
			if err := r.StartUnit(t.Context(), ann, "1", ""); err != nil {
				t.Fatal(err)
			}
		}
		start()
		if v := r.awaitState("1", station.SlotRefused); !strings.Contains(v.Reason, "the lid is open") {
			t.Errorf("%+v", v)
		}
		j.before = func() error { panic("jig") }
		start()
		if v := r.await("1", "the panic", func(v station.SlotView) bool { return v.Failures == 1 }); v.State == station.SlotBusy {
			t.Errorf("%+v", v)
		}
		j.before = func() error { return nil }
		h.in(h.now)
		r.awaitState("1", station.SlotReady)
		start()
		v := r.awaitState("1", station.SlotPass)
		if len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "lamp") || len(j.seen) != 1 || j.seen[0] != provision.Pass {
			t.Errorf("%+v %v", v, j.seen)
		}
	})
}

// TestQuantity: slots that begin at the same time cannot take one place twice.
func TestQuantity(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "development"))
		defer f.close()
		var hands []*hand
		var slots []station.Spec
		for i := range 8 {
			h := newHand()
			hands = append(hands, h)
			slots = append(slots, station.Spec{Name: fmt.Sprint(i), Start: station.StartPlug, Fixture: h})
		}
		r := f.start(station.Options{Slots: slots})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{
			ID: "L1", Recipe: "esp32c3-development", Quantity: 5, Serials: station.Serials{From: station.SerialsRange, First: "A1"},
		}); err != nil {
			t.Fatal(err)
		}
		for _, h := range hands {
			h.in(newBoard(t, "esp32c3", ""))
		}
		pass, refused, serials := 0, 0, map[string]bool{}
		for i := range hands {
			v := r.await(fmt.Sprint(i), "an end", func(v station.SlotView) bool { return v.Verdict != "" })
			if v.State == station.SlotPass {
				pass++
				serials[v.Serial] = true
			}
			if v.State == station.SlotRefused {
				refused++
			}
		}
		if pass != 5 || refused != 3 || len(serials) != 5 {
			t.Errorf("%d passed, %d were refused, serial numbers %v", pass, refused, serials)
		}
	})
}

// TestReconfigure: a slot that stays as it was keeps its unit; one that goes ends
// its unit first.
func TestReconfigure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		one, two, three := newHand(), newHand(), newHand()
		spec := func(name, port string, h *hand) station.Spec {
			return station.Spec{Name: name, Port: port, Start: station.StartPlug, Fixture: h}
		}
		r := f.start(station.Options{Slots: []station.Spec{spec("1", "a", one), spec("2", "b", two)}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		a, b := newBoard(t, "esp32c3", ""), newBoard(t, "esp32c3", "")
		one.in(a)
		two.in(b)
		for _, s := range []string{"1", "2"} {
			r.await(s, "flash", func(v station.SlotView) bool { return v.Step == "flash" })
		}
		r.Configure([]station.Spec{spec("1", "a", one), spec("2", "c", three)})
		if v := r.slot("1"); v.State != station.SlotBusy {
			t.Errorf("%+v", v)
		}
		r.awaitState("1", station.SlotPass)
		three.in(newBoard(t, "esp32c3", "")) // taken once the old unit has ended
		r.awaitState("2", station.SlotPass)
		if n := r.View().Lots[0].Begun; n != 3 {
			t.Errorf("%d units were begun", n)
		}
		r.Configure([]station.Spec{spec("2", "c", three)})
		if n := len(r.View().Slots); n != 1 {
			t.Errorf("%d slots", n)
		}
	})
}

// TestHungUnit: a run that makes no end is ended, and its neighbour does not notice.
func TestHungUnit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		one, two := newHand(), newHand()
		stuck := stuckJig{}
		r := f.start(station.Options{Hooks: stuck, UnitTimeout: time.Minute, Slots: []station.Spec{
			{Name: "1", Start: station.StartPlug, Fixture: one}, {Name: "2", Start: station.StartPlug, Fixture: two},
		}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		one.in(newBoard(t, "esp32c3", ""))
		r.awaitState("1", station.SlotBusy)
		two.in(newBoard(t, "esp32c3", ""))
		r.awaitState("2", station.SlotPass)
		if v := r.awaitState("1", station.SlotAborted); !strings.Contains(v.Reason, "longer than") || v.Failures != 0 {
			t.Errorf("%+v", v)
		}
	})
}

// stuckJig is a hook that never comes back in slot 1.
type stuckJig struct{}

func (stuckJig) Before(ctx context.Context, u station.UnitStart) error {
	if u.Slot == "1" {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (stuckJig) After(context.Context, station.UnitStart, *provision.Result) error { return nil }

// damaged is a keystore in which one unit's record is damaged.
type damaged struct {
	keystore.Store
	unit string
}

func (d *damaged) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	if unit.String() == d.unit {
		return nil, fmt.Errorf("%w: a state that may not follow", keystore.ErrDamaged)
	}
	return d.Store.List(ctx, unit)
}

// TestOneBadRecord: what the keystore says of one unit ends that unit's run, once.
// The station works on.
func TestOneBadRecord(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		bad, good := newBoard(t, "esp32c3", ""), newBoard(t, "esp32c3", "")
		one, two := newHand(), newHand()
		r := f.start(station.Options{Store: &damaged{f.store, bad.MAC().String()}, Slots: []station.Spec{
			{Name: "1", Start: station.StartPlug, Fixture: one}, {Name: "2", Start: station.StartPlug, Fixture: two},
		}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 9}); err != nil {
			t.Fatal(err)
		}
		one.in(bad)
		if v := r.awaitState("1", station.SlotError); !strings.Contains(v.Reason, "damaged") || v.Failures != 0 {
			t.Errorf("%+v", v)
		}
		two.in(good)
		r.awaitState("2", station.SlotPass)
		size, _ := f.jrn.Head()
		time.Sleep(10 * time.Minute)
		if now, _ := f.jrn.Head(); now != size {
			t.Errorf("%d entries were added while nothing happened", now-size)
		}
		if c, bad := r.Conditions().Blocking(); bad {
			t.Errorf("%+v", c)
		}
	})
}
