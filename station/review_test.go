package station_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/station"
)

func openLot(t *testing.T, r *running, id, recipe string, quantity int, s station.Serials) error {
	t.Helper()
	_, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: id, Recipe: recipe, Quantity: quantity, Serials: s})
	return err
}

// TestReloadWhileSomebodyLooks: a reload and a screen never wait for each other.
func TestReloadWhileSomebodyLooks(t *testing.T) {
	f := newFactory(t, product(t, "esp32c3", "hybrid"))
	defer f.close()
	spec := func(baud int) []station.Spec {
		return []station.Spec{{Name: "1", Start: station.StartPlug, Fixture: newHand(), MaxBaud: baud}, {Name: "2", Start: station.StartPlug, Fixture: newHand(), MaxBaud: baud}}
	}
	r := f.start(station.Options{Slots: spec(0)})
	defer r.stop()
	stop, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-stop:
				return
			default:
				_ = r.View()
			}
		}
	}()
	for i := range 2000 {
		r.Configure(spec(115200 + i))
	}
	close(stop)
	<-looked
}

// TestSerialNumbersAreGivenOnce: a scanned number cannot take one that a lot gives,
// and a number of one lot is none of another.
func TestSerialNumbersAreGivenOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "development"))
		defer f.close()
		h := newHand()
		r := f.start(station.Options{Slots: []station.Spec{{Name: "1", Start: station.StartButton, Fixture: h}}})
		defer r.stop()
		make1 := func(serial string) station.SlotView {
			t.Helper()
			if h.now != nil {
				h.out()
				r.awaitState("1", station.SlotMissing)
			}
			h.in(newBoard(t, "esp32c3", ""))
			r.awaitState("1", station.SlotReady)
			if err := r.StartUnit(t.Context(), ann, "1", serial); err != nil {
				t.Fatal(err)
			}
			return r.await("1", "an end", func(v station.SlotView) bool { return v.Verdict != "" })
		}
		if err := openLot(t, r, "L1", "esp32c3-development", 5, station.Serials{From: station.SerialsRange, First: "A1"}); err != nil {
			t.Fatal(err)
		}
		if v := make1("A2"); v.State != station.SlotRefused {
			t.Errorf("a scanned number was taken where the lot gives them: %+v", v)
		}
		if v := make1(""); v.Serial != "A1" || v.State != station.SlotPass {
			t.Errorf("%+v", v)
		}
		if err := r.CloseLot(t.Context(), ann, "L1"); err != nil {
			t.Fatal(err)
		}
		for _, s := range []station.Serials{{From: station.SerialsRange, First: "A1"}, {From: station.SerialsList, List: []string{"B1", "A1"}}} {
			if err := openLot(t, r, "L2", "esp32c3-development", 2, s); err == nil || !strings.Contains(err.Error(), "A1 belongs to unit") {
				t.Errorf("%+v: %v", s, err)
			}
		}
		if err := openLot(t, r, "L2", "esp32c3-development", 2, station.Serials{From: station.SerialsScan}); err != nil {
			t.Fatal(err)
		}
		if v := make1("A1"); v.State != station.SlotRefused || !strings.Contains(v.Reason, "A1 belongs to unit") {
			t.Errorf("%+v", v)
		}
		if v := make1("A9"); v.State != station.SlotPass || v.Serial != "A9" {
			t.Errorf("%+v", v)
		}
		if err := r.CloseLot(t.Context(), ann, "L2"); err != nil {
			t.Fatal(err)
		}
		if err := openLot(t, r, "L3", "esp32c3-development", 8, station.Serials{From: station.SerialsRange, First: "A2"}); err == nil || !strings.Contains(err.Error(), "A9 belongs to unit") {
			t.Errorf("%v", err)
		}
		if err := openLot(t, r, "L3", "esp32c3-development", 7, station.Serials{From: station.SerialsRange, First: "A2"}); err != nil {
			t.Errorf("numbers that nobody has were refused: %v", err)
		}
	})
}

// TestScannedNumberStaysWithItsBoard: what was scanned for a board that was taken out
// is not for the next one; the board itself goes on with it after an outage.
func TestScannedNumberStaysWithItsBoard(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		store := &away{Store: f.store}
		h := newHand()
		r := f.start(station.Options{Store: store, Slots: []station.Spec{{Name: "1", Start: station.StartPlug, Fixture: h}}})
		defer r.stop()
		if err := openLot(t, r, "L1", "esp32c3-hybrid", 5, station.Serials{From: station.SerialsScan}); err != nil {
			t.Fatal(err)
		}
		store.down.Store(true)
		time.Sleep(time.Minute)
		h.in(newBoard(t, "esp32c3", ""))
		r.awaitState("1", station.SlotWaiting)
		if err := r.StartUnit(t.Context(), ann, "1", "LABEL-A"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		h.out()
		r.awaitState("1", station.SlotMissing)
		b := newBoard(t, "esp32c3", "")
		h.in(b)
		r.awaitState("1", station.SlotWaiting)
		store.down.Store(false)
		time.Sleep(time.Minute)
		if v := r.slot("1"); v.State != station.SlotWaiting || !strings.Contains(v.Reason, "serial number") || b.Burns() != 0 {
			t.Fatalf("%+v", v)
		}
		if err := r.StartUnit(t.Context(), ann, "1", "LABEL-B"); err != nil {
			t.Fatal(err)
		}
		r.await("1", "flash", func(v station.SlotView) bool { return v.Step == "flash" })
		store.down.Store(true)
		r.awaitState("1", station.SlotWaiting)
		store.down.Store(false)
		if v := r.awaitState("1", station.SlotPass); v.Serial != "LABEL-B" {
			t.Errorf("%+v", v)
		}
	})
}

// TestReloadKeepsBlockedSlots: only a person clears a slot.
func TestReloadKeepsBlockedSlots(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		h := newHand()
		spec := station.Spec{Name: "1", Start: station.StartPlug, Fixture: h}
		r := f.start(station.Options{Failures: 1, Slots: []station.Spec{spec}})
		defer r.stop()
		if err := openLot(t, r, "L1", "esp32c3-hybrid", 5, station.Serials{}); err != nil {
			t.Fatal(err)
		}
		silent := newBoard(t, "esp32c3", "")
		silent.Power(false)
		h.in(silent)
		r.awaitState("1", station.SlotBlocked)
		h.out()
		spec.MaxBaud = 115200
		r.Configure([]station.Spec{spec})
		if v := r.slot("1"); v.State != station.SlotBlocked || v.Reason == "" {
			t.Errorf("%+v", v)
		}
		r.Configure(nil)
		r.Configure([]station.Spec{spec})
		if v := r.slot("1"); v.State != station.SlotBlocked {
			t.Errorf("%+v", v)
		}
	})
}

// TestLoginToStart: the line works while anybody who may start units is logged in.
func TestLoginToStart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		h := newHand()
		r := f.start(station.Options{LoginToStart: true, Slots: []station.Spec{{Name: "1", Start: station.StartPlug, Fixture: h}}})
		defer r.stop()
		if err := openLot(t, r, "L1", "esp32c3-hybrid", 5, station.Serials{}); err != nil {
			t.Fatal(err)
		}
		bob, cid := station.Person{Name: "bob", Role: "operator"}, station.Person{Name: "cid", Role: "operator"}
		record := func(by station.Person, step string) {
			t.Helper()
			if err := r.Record(t.Context(), by, step, nil); err != nil {
				t.Fatal(err)
			}
		}
		record(station.Person{Name: "eve", Role: "auditor"}, "login")
		h.in(newBoard(t, "esp32c3", ""))
		if v := r.awaitState("1", station.SlotWaiting); !strings.Contains(v.Reason, "logged in") {
			t.Errorf("%+v", v)
		}
		record(bob, "login")
		record(cid, "login")
		record(cid, "logout")
		r.awaitState("1", station.SlotPass)
		runs, err := r.History(t.Context(), station.HistoryQuery{})
		if err != nil || len(runs) != 1 || runs[0].Operator != "bob" && runs[0].Operator != "cid" {
			t.Errorf("%+v %v", runs, err)
		}
		record(bob, "logout")
		h.out()
		r.awaitState("1", station.SlotMissing)
		h.in(newBoard(t, "esp32c3", ""))
		r.awaitState("1", station.SlotWaiting)
	})
}

// TestServerThatHangsUp: a serial server that takes connections and drops them is
// asked no more often than one that is away.
func TestServerThatHangsUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan int, 1)
	go func() {
		n := 0
		for {
			c, err := l.Accept()
			if err != nil {
				taken <- n
				return
			}
			n++
			_ = c.Close()
		}
	}()
	f := &station.NetFixture{Address: "socket://" + l.Addr().String(), Every: 100 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for {
		a, err := f.Arrive(ctx)
		if err != nil {
			break
		}
		<-a.Gone
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n := <-taken; n == 0 || n > 11 {
		t.Errorf("%d connections in a second", n)
	}
}
