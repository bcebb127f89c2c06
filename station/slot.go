package station

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/port"
	"github.com/provisiond/provisiond/station/views"
)

// slot is a fixture position with its worker.
type slot struct {
	s    *Station
	spec Spec
	kick chan struct{} // holds one: look again

	mu      sync.Mutex
	view    SlotView
	began   time.Time // of the run in work
	request *request  // what somebody asked for
	cancel  context.CancelCauseFunc
	leaving bool
	closed  bool          // the board in it passed and was closed
	outages int           // runs in a row that met no keystore
	until   time.Time     // until when the slot holds off because of them
	where   func() string // of the arrival; may be nil

	after  *slot // whose place this one takes, until it has ended
	retire context.CancelFunc
	ended  chan struct{}
}

// request asks for a run.
type request struct {
	by     Person
	serial string
}

func newSlot(s *Station, spec Spec) *slot {
	return &slot{
		s: s, spec: spec, kick: make(chan struct{}, 1), ended: make(chan struct{}),
		view: SlotView{Name: spec.Name, Port: spec.Port, Start: spec.Start, State: SlotMissing, Since: time.Now()},
	}
}

func (sl *slot) wake() {
	select {
	case sl.kick <- struct{}{}:
	default:
	}
}

// leave makes the slot end when it has no unit in work.
func (sl *slot) leave() {
	sl.mu.Lock()
	sl.leaving = true
	busy := sl.view.State == SlotBusy
	sl.mu.Unlock()
	if !busy && sl.retire != nil {
		sl.retire()
	}
}

// block is for a slot that the journal says is set aside.
func (sl *slot) block(reason string) {
	sl.view.State, sl.view.Reason, sl.view.NextStep = SlotBlocked, reason, nextOfBlocked
}

const nextOfBlocked = "check cable, fixture and hub, then clear the slot"

// current is what a screen shows.
func (sl *slot) current() SlotView {
	open := sl.s.lotNamed(sl.spec.Name) // before mu: the station's lock comes first
	sl.mu.Lock()
	defer sl.mu.Unlock()
	v := sl.view
	v.Warnings = slices.Clone(v.Warnings)
	if v.Device != "" && sl.where != nil {
		if now := sl.where(); now != "" {
			v.Device = now
		}
	}
	if v.State == SlotBusy {
		v.ElapsedMS = time.Since(sl.began).Milliseconds()
	}
	if v.Lot == "" {
		v.Lot = open
	}
	return v
}

// change changes the view, and tells whoever watches.
func (sl *slot) change(f func(v *SlotView)) {
	sl.mu.Lock()
	was := sl.view.State
	f(&sl.view)
	if sl.view.State != was {
		sl.view.Since = time.Now()
	}
	sl.mu.Unlock()
	sl.s.look(sl.spec.Name)
}

// rest shows a slot that has no unit.
func (sl *slot) rest(state SlotState, reason, next string) {
	sl.change(func(v *SlotView) {
		if v.State == SlotBlocked && state != SlotBlocked {
			return
		}
		*v = SlotView{
			Name: v.Name, Port: v.Port, Device: v.Device, Start: v.Start, State: state, Since: v.Since, Failures: v.Failures,
			Reason: reason, NextStep: next,
		}
	})
}

func (sl *slot) state() SlotState {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.view.State
}

// serve works until ctx ends. A panic of a run is this slot's own error.
func (sl *slot) serve(ctx context.Context) {
	defer close(sl.ended)
	if sl.after != nil {
		<-sl.after.ended
		sl.after = nil
	}
	for ctx.Err() == nil {
		if !sl.serveOnce(ctx) && !sleep(ctx, time.Second) {
			return
		}
	}
}

// serveOnce takes one board, or whatever is plugged in until it leaves. It
// reports whether it went well.
func (sl *slot) serveOnce(ctx context.Context) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			sl.s.o.Log.Error("slot worker panicked", zap.String("slot", sl.spec.Name), zap.String("panic", fmt.Sprint(p)), zap.ByteString("stack", debug.Stack()))
			sl.change(func(v *SlotView) {
				v.State, v.Verdict, v.Cause = SlotError, provision.Error, provision.CauseStation
				v.Reason, v.NextStep = "the slot's worker broke down", "report this with the station's log; the slot goes on"
			})
			sl.failed("the slot's worker broke down")
			ok = false
		}
	}()
	sl.rest(SlotMissing, "", "")
	sl.change(func(v *SlotView) { v.Device = "" })
	a, err := sl.spec.Fixture.Arrive(ctx)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		sl.rest(SlotMissing, err.Error(), "check the slot's port in the configuration, cable and hub")
		return false
	}
	sl.change(func(v *SlotView) { v.Device, sl.where = a.Device, a.Where })
	sl.occupied(ctx, a)
	return true
}

// occupied is the time from a port's appearance to its leaving.
func (sl *slot) occupied(ctx context.Context, a *Arrival) {
	sl.rest(SlotReady, "", "")
	wants := sl.spec.Start == StartPlug
	defer sl.takeRequest() // what was asked for this board is not for the next one
	var r *request         // that is being tried; kept while something stands in its way
	for !taken(a) {
		if asked := sl.takeRequest(); asked != nil {
			r, wants = asked, true
		}
		if wants {
			reason, next := sl.obstacle(r)
			switch {
			case reason == "":
				if wants = sl.runUnit(ctx, a, r); !wants {
					r = nil
				}
				if sl.isLeaving() {
					sl.retire()
				}
				if taken(a) {
					return
				}
			case r != nil && sl.spec.Start != StartPlug:
				if !sl.held() {
					r, wants = nil, false // told the person; nothing waits for itself
					sl.rest(SlotReady, reason, next)
					break
				}
				sl.rest(SlotWaiting, reason, next) // begun before, and cut off by the keystore
			default:
				sl.rest(SlotWaiting, reason, next)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-a.Gone:
			return
		case <-sl.kick:
		}
	}
}

func taken(a *Arrival) bool {
	select {
	case <-a.Gone:
		return true
	default:
		return false
	}
}

// held reports whether the keystore cut off the run that is to be tried again.
func (sl *slot) held() bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.outages > 0
}

func (sl *slot) isLeaving() bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.leaving
}

func (sl *slot) takeRequest() *request {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	r := sl.request
	sl.request = nil
	return r
}

func (sl *slot) putBack(r *request) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.request == nil {
		sl.request = r
	}
}

// obstacle says why a unit cannot be begun now, "" if it can.
func (sl *slot) obstacle(r *request) (reason, next string) {
	if sl.state() == SlotBlocked {
		return "the slot is set aside", nextOfBlocked
	}
	l := sl.s.lotOf(sl.spec.Name)
	switch {
	case l == nil:
		return "no lot is open", "open a lot for this slot"
	case l.product() == nil:
		return fmt.Sprintf("recipe %s of lot %s is not here as it was", l.entry.Recipe, l.entry.Lot), "bring it back and reload, or close the lot"
	case l.product().Recipe.ClosesForever() && !l.entry.Forever:
		return "nobody agreed that units close for ever", "open a lot that says so"
	case l.entry.Serials.From == SerialsScan && (r == nil || r.serial == ""):
		return "a serial number is wanted", "scan the unit's label"
	case sl.s.o.LoginToStart && r == nil && sl.s.onShift().Name == "":
		return "nobody is logged in", "log in with badge or PIN"
	}
	sl.mu.Lock()
	wait := time.Until(sl.until)
	sl.mu.Unlock()
	if wait > 0 {
		return CondKeystore + ": it was not there for this unit", fmt.Sprintf("the slot tries again in %d s", int(wait.Seconds())+1)
	}
	if c, bad := sl.s.conds.Blocking(); bad {
		return fmt.Sprintf("%s: %s", c.Name, c.Text), c.Next
	}
	return "", ""
}

// runUnit provisions what is in the slot. It reports whether the slot should try
// again by itself, once nothing stands in its way.
func (sl *slot) runUnit(ctx context.Context, a *Arrival, r *request) (again bool) {
	l := sl.s.lotOf(sl.spec.Name)
	if l == nil {
		return true // closed this very moment
	}
	by := sl.s.onShift()
	if r != nil {
		by = r.by
	}
	if by.Name == "" {
		by.Name = l.entry.Operator
	}
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	run, stop := context.WithTimeoutCause(run, sl.s.o.UnitTimeout, errTooLong)
	defer stop()
	sl.begin(cancel, l)
	defer func() {
		if p := recover(); p != nil { // serveOnce tells of it; the lot must not lose the place
			sl.mu.Lock()
			unit := sl.view.Unit
			sl.cancel = nil
			sl.mu.Unlock()
			l.settle(unit, sl.view.Step != "")
			panic(p)
		}
	}()
	res := sl.provision(run, a, l, r, by)
	if cause := context.Cause(run); res.Cause == provision.CauseCancelled && cause != nil && ctx.Err() == nil {
		res.Reason = cause.Error()
	}
	return sl.settle(ctx, a, l, res)
}

var errTooLong = errors.New("the unit took longer than the station allows")

func (sl *slot) begin(cancel context.CancelCauseFunc, l *lot) {
	sl.mu.Lock()
	sl.cancel, sl.began = cancel, time.Now()
	sl.mu.Unlock()
	sl.change(func(v *SlotView) {
		*v = SlotView{
			Name: v.Name, Port: v.Port, Device: v.Device, Start: v.Start, State: SlotBusy, Since: v.Since, Failures: v.Failures, Lot: l.entry.Lot,
		}
	})
}

// provision is one run of the engine, with what a station adds around it.
func (sl *slot) provision(ctx context.Context, a *Arrival, l *lot, r *request, by Person) *provision.Result {
	o := &sl.s.o
	scanned := ""
	if r != nil {
		scanned = r.serial
	}
	p, err := a.Open(ctx)
	if err != nil {
		return sl.notBegun(ctx, l, by, stationResult(l, "the port cannot be opened: "+err.Error(), "check cable and power of the adapter, and who else has the port"))
	}
	defer func() { _ = p.Close() }()
	reset, err := sl.resetter(p)
	if err != nil {
		return sl.notBegun(ctx, l, by, stationResult(l, err.Error(), "check the slot's reset in the configuration"))
	}
	start := UnitStart{Station: o.Name, Slot: sl.spec.Name, Port: a.now(), Lot: l.entry.Lot, Recipe: l.entry.Recipe, Serial: scanned, Operator: by.Name}
	if o.Hooks != nil {
		if err := o.Hooks.Before(ctx, start); err != nil {
			res := stationResult(l, "the hook before the unit says no: "+err.Error(), "look at the jig, then start the unit again")
			res.Verdict, res.Cause = provision.Fail, provision.CauseRefused
			var f *provision.Failure
			switch {
			case ctx.Err() != nil:
				res.Verdict, res.Cause, res.Reason = provision.Aborted, provision.CauseCancelled, ctx.Err().Error()
			case errors.As(err, &f):
				res.Verdict, res.Cause, res.Reason, res.NextStep = f.Verdict(), f.Cause, f.Reason, f.NextStep
			}
			return sl.notBegun(ctx, l, by, res)
		}
	}
	e := &provision.Engine{
		Store: o.Store, Journal: o.Journal, Station: o.Name, Slot: sl.spec.Name, Operator: by.Name, Lot: l.entry.Lot, Tool: o.Tool, Trace: o.Trace,
		Admit: func(ctx context.Context, unit chip.MAC) (provision.Admission, error) {
			adm, err := sl.s.admit(ctx, l, unit, scanned)
			if err == nil {
				sl.change(func(v *SlotView) { v.Serial = adm.Serial })
			}
			return adm, err
		},
		Observe: sl.observe,
	}
	res := e.Run(ctx, provision.Line{Port: p, Reset: reset, Serial: scanned, MaxBaud: sl.spec.MaxBaud}, l.product())
	if o.Hooks != nil {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := o.Hooks.After(own, start, res); err != nil {
			res.Warnings = append(res.Warnings, "the hook after the unit: "+err.Error())
		}
	}
	return res
}

func (sl *slot) resetter(p port.Port) (rom.Resetter, error) {
	switch {
	case sl.spec.Reset != nil:
		return sl.spec.Reset(p)
	case p.Info().USBSerial:
		return rom.USBReset{}, nil
	}
	return rom.AutoReset{}, nil // of a port without lines it says what is missing
}

// notBegun writes down a run that ended before the engine began it.
func (sl *slot) notBegun(ctx context.Context, l *lot, by Person, res *provision.Result) *provision.Result {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err := sl.s.append(own, journal.KindStation, sl.spec.Name, "not-begun", map[string]any{
		"lot": l.entry.Lot, "operator": by.Name, "verdict": res.Verdict, "cause": res.Cause, "reason": res.Reason,
	})
	if err != nil {
		res.Warnings = append(res.Warnings, err.Error())
	}
	return res
}

func stationResult(l *lot, reason, next string) *provision.Result {
	return &provision.Result{
		Verdict: provision.Error, Cause: provision.CauseStation, Reason: reason, NextStep: next,
		Recipe: l.entry.Recipe, RecipeRevision: l.entry.RecipeRevision, Profile: l.entry.Profile, Chip: l.entry.Chip,
	}
}

// observe shows progress. It holds nobody up.
func (sl *slot) observe(e provision.Event) {
	sl.change(func(v *SlotView) {
		if e.Unit != (chip.MAC{}) {
			v.Unit, v.Simulated = e.Unit.String(), e.Unit.LocallyAdministered()
		}
		v.Step, v.StepIndex, v.StepCount, v.OneWay = e.Step, e.Index, e.Count, provision.OneWay(e.Step)
		v.Done, v.Total = e.Done, e.Total
		v.Permille = max(v.Permille, permille(e))
	})
}

// permille is how far the whole run is. Writing and verifying the flash is most
// of it on any board.
func permille(e provision.Event) int {
	if e.Count == 0 {
		return 0
	}
	const flash, before, verify, flashed = "flash", 50, "verify-flash", 800
	part := 0
	if e.Total > 0 {
		part = int(1000 * min(e.Done, e.Total) / e.Total)
	}
	switch {
	case e.Step == flash:
		return before + part*(flashed-before)/1000
	case e.Step == verify:
		return flashed + part/20
	case e.Index <= 4: // everything before flash
		return min(before, before*e.Index/5)
	}
	return flashed + 50 + 150*min(e.Index, e.Count)/e.Count
}

// settle shows what became of a unit, counts it for the slot, and says whether the
// slot should try again by itself.
func (sl *slot) settle(ctx context.Context, a *Arrival, l *lot, res *provision.Result) (again bool) {
	begunNow := res.Unit != "" && res.Cause != provision.CauseRefused
	if res.Unit != "" {
		l.settle(res.Unit, begunNow)
	}
	state := slotState(res)
	sl.mu.Lock()
	wasClosed := sl.closed
	sl.closed = res.Verdict == provision.Pass && res.Closing != nil || wasClosed && res.LoaderClosed
	sl.cancel = nil
	if res.Cause != provision.CauseKeystore {
		sl.outages, sl.until = 0, time.Time{}
	}
	sl.mu.Unlock()
	if res.LoaderClosed && wasClosed {
		state = SlotDone
	}
	sl.change(func(v *SlotView) {
		v.State, v.Verdict, v.Cause, v.Reason, v.NextStep = state, res.Verdict, res.Cause, res.Reason, res.NextStep
		v.Warnings, v.ElapsedMS, v.OneWay = res.Warnings, res.ElapsedMS, false
		v.Chip, v.Revision, v.KeyFingerprint, v.Baud = res.Chip, res.Revision, res.KeyFingerprint, res.Baud
		if res.Unit != "" {
			v.Unit, v.Simulated = res.Unit, res.Simulated
		}
		if res.Serial != "" {
			v.Serial = res.Serial
		}
		if res.Verdict == provision.Pass {
			v.Permille, v.Failures = 1000, 0
		}
	})
	if state == SlotPass {
		time.AfterFunc(sl.s.o.LeftAfter, func() { sl.left(res.Unit) })
	}
	sl.s.o.Log.Info("unit", zap.String("slot", sl.spec.Name), zap.String("unit", res.Unit), zap.String("verdict", string(res.Verdict)),
		zap.String("cause", string(res.Cause)), zap.String("reason", res.Reason))
	select {
	case sl.s.recount <- struct{}{}:
	default:
	}
	if sl.s.o.OnResult != nil {
		sl.s.o.OnResult(sl.spec.Name, res)
	}
	if a.Taken != nil && ctx.Err() == nil && res.Cause != provision.CauseKeystore && res.Cause != provision.CauseJournal {
		a.Taken(res.Verdict)
	}
	switch res.Cause {
	case provision.CauseKeystore:
		if !res.KeystoreAway {
			break // it is there, and says something of this unit: nothing to wait for
		}
		// An outage is nobody's fault here: the unit waits, unburned, and is begun
		// again when the keystore is back. A keystore that looks well and fails units
		// all the same is asked less and less.
		sl.s.keystoreFailed(res.Reason)
		sl.holdOff()
		return true
	case provision.CauseJournal:
		sl.s.journalFailed(journal.ErrFailed)
		return true
	case provision.CauseStation, provision.CauseUnit, provision.CauseQuarantined:
		sl.failed(res.Reason)
	case provision.CauseRefused, provision.CauseCancelled, "":
	}
	return false
}

// left shows a unit that passed and is still in its fixture.
func (sl *slot) left(unit string) {
	sl.change(func(v *SlotView) {
		if v.State == SlotPass && v.Unit == unit {
			v.State, v.NextStep = SlotDone, "take the unit out"
		}
	})
}

// holdOff makes the slot wait before it tries again, longer each time.
func (sl *slot) holdOff() {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	d := min(firstHoldOff<<min(sl.outages, 10), maxHoldOff)
	sl.outages++
	sl.until = time.Now().Add(d)
	time.AfterFunc(d, sl.wake)
}

const (
	firstHoldOff = time.Second
	maxHoldOff   = 5 * time.Minute
)

func slotState(res *provision.Result) SlotState {
	switch {
	case res.FinishedBefore:
		return SlotDone
	case res.Cause == provision.CauseRefused:
		return SlotRefused
	}
	switch res.Verdict {
	case provision.Pass:
		return SlotPass
	case provision.Fail:
		return SlotFail
	case provision.Aborted:
		return SlotAborted
	case provision.Quarantined:
		return SlotQuarantined
	case provision.Error:
	}
	return SlotError
}

// failed counts failures in a row. So many mean a bad cable or fixture, and the
// slot is set aside until somebody clears it.
func (sl *slot) failed(reason string) {
	sl.mu.Lock()
	sl.view.Failures++
	n := sl.view.Failures
	sl.mu.Unlock()
	if n < sl.s.o.Failures {
		return
	}
	why := fmt.Sprintf("%d failures in a row; the last: %s", n, reason)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(sl.s.run), time.Minute)
	defer cancel()
	if _, err := sl.s.append(ctx, journal.KindStation, sl.spec.Name, views.StepSlotBlocked, map[string]any{"reason": why, "failures": n}); err != nil {
		sl.s.o.Log.Error("a blocked slot is not in the journal", zap.String("slot", sl.spec.Name), zap.Error(err))
	}
	sl.change(func(v *SlotView) {
		v.State, v.Reason, v.NextStep = SlotBlocked, why, nextOfBlocked
	})
}

// StartUnit begins the unit in a slot.
func (s *Station) StartUnit(_ context.Context, by Person, name, serial string) error {
	sl := s.slot(name)
	if sl == nil {
		return notFound("write the slot's name as the page shows it", "there is no slot %q", name)
	}
	if serial != "" && !serialName.MatchString(serial) {
		return invalid("scan the label again", "%q is no serial number", serial)
	}
	r := &request{by: by, serial: serial}
	switch st := sl.state(); st {
	case SlotBusy:
		return conflict("wait for its end, or abort it", "slot %s has a unit in work", name)
	case SlotBlocked:
		return conflict(nextOfBlocked, "slot %s is set aside", name)
	case SlotMissing:
		return conflict("plug it in", "the port of slot %s is not there", name)
	case SlotReady, SlotWaiting, SlotPass, SlotFail, SlotError, SlotAborted, SlotRefused, SlotQuarantined, SlotDone:
	}
	if reason, next := sl.obstacle(r); reason != "" && sl.spec.Start != StartPlug {
		return conflict(next, "slot %s cannot start: %s", name, reason)
	}
	sl.mu.Lock()
	asked := sl.request != nil
	if !asked {
		sl.request = r
	}
	sl.mu.Unlock()
	if asked {
		return conflict("wait for its end", "slot %s was told to start already", name)
	}
	sl.wake()
	return nil
}

// AbortUnit stops the unit in a slot at its next safe step.
func (s *Station) AbortUnit(ctx context.Context, by Person, name string) error {
	sl := s.slot(name)
	if sl == nil {
		return notFound("write the slot's name as the page shows it", "there is no slot %q", name)
	}
	sl.mu.Lock()
	cancel := sl.cancel
	sl.mu.Unlock()
	if cancel == nil {
		return conflict("nothing needs to be done", "slot %s has no unit in work", name)
	}
	if _, err := s.append(ctx, journal.KindOperator, name, "abort", map[string]any{"operator": by.Name}); err != nil {
		return err
	}
	cancel(fmt.Errorf("%s stopped the unit", by.Name))
	return nil
}

// ClearSlot takes a slot back into use.
func (s *Station) ClearSlot(ctx context.Context, by Person, name, note string) error {
	sl := s.slot(name)
	switch {
	case sl == nil:
		return notFound("write the slot's name as the page shows it", "there is no slot %q", name)
	case sl.state() == SlotBusy:
		return conflict("abort it first", "slot %s has a unit in work", name)
	case len(note) > 500:
		return invalid("keep it under 500 characters", "the note has %d characters", len(note))
	}
	if _, err := s.append(ctx, journal.KindOperator, name, views.StepSlotCleared, map[string]any{"operator": by.Name, "note": note}); err != nil {
		return err
	}
	if sl.spec.Start == StartPlug && sl.state() == SlotBlocked {
		sl.putBack(&request{by: by})
	}
	sl.change(func(v *SlotView) {
		v.Failures = 0
		if v.State == SlotBlocked {
			v.State = SlotMissing
			if v.Device != "" {
				v.State = SlotReady
			}
		}
		v.Reason, v.NextStep = "", ""
	})
	sl.wake()
	return nil
}

// lotNamed is the name of the open lot of a slot.
func (s *Station) lotNamed(slot string) string {
	if l := s.lotOf(slot); l != nil {
		return l.entry.Lot
	}
	return ""
}
