package station

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/port"
	"github.com/provisiond/provisiond/station/views"
)

// Journal is what the station needs of its journal.
type Journal interface {
	provision.Journal
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
	Head() (size uint64, hash journal.Hash)
	Info() journal.Info
}

// Spec is one slot as it is configured.
type Spec struct {
	Name    string
	Port    string // by-path name, usb:…, a tty, socket://…, rfc2217://… or sim://…
	Start   StartMode
	MaxBaud int // of the line; 0: what the recipe says
	// Reset makes the way to reset the board of an open port. nil is the port's
	// own lines.
	Reset func(port.Port) (rom.Resetter, error)
	// Fixture is where the slot's boards come from.
	Fixture Fixture
	// Key tells two specs apart that differ in what is not comparable.
	Key string
}

// Fixture is where a slot's boards come from.
type Fixture interface {
	// Arrive waits until the slot's port is there. It is called again when the
	// port has left.
	Arrive(ctx context.Context) (*Arrival, error)
}

// Arrival is a port that is there.
type Arrival struct {
	Device string          // where it came
	Gone   <-chan struct{} // closed when it leaves; nil: nobody can tell
	Open   func(ctx context.Context) (port.Port, error)
	// Taken is called after a run that left the board in an end state, with its
	// verdict. A simulated fixture puts the next board in. May be nil.
	Taken func(provision.Verdict)
	// Where is where it is now, "" if it is nowhere. May be nil: it does not move.
	Where func() string
}

func (a *Arrival) now() string {
	if a.Where != nil {
		return cmp.Or(a.Where(), a.Device)
	}
	return a.Device
}

// Hooks are the jig's programs, called for each unit. Both are bounded in time.
type Hooks interface {
	// Before may refuse the unit; its error is the reason.
	Before(ctx context.Context, u UnitStart) error
	// After hears what became of it. Its error is a warning.
	After(ctx context.Context, u UnitStart, r *provision.Result) error
}

// UnitStart is what is known of a unit when it is begun.
type UnitStart struct {
	Station, Slot, Port, Lot, Recipe, Serial, Operator string
}

// Options are the parts and the settings of a station.
type Options struct {
	Name      string
	Version   string // for screens
	Tool      string // for the journal
	Simulated bool   // every slot is
	Store     keystore.Store
	Journal   Journal
	Views     *views.Views
	Jobs      []*provision.Job
	Slots     []Spec
	Hooks     Hooks // may be nil
	Log       *zap.Logger

	Conditions *Conditions // made if nil

	// UnitTimeout ends a run that makes no end. 0: 15 minutes.
	UnitTimeout time.Duration
	// Failures in a row that quarantine a slot. 0: three.
	Failures int
	// LeftAfter is how long a unit that passed may stay in its fixture before the slot
	// asks for it to be taken out. 0: two minutes.
	LeftAfter time.Duration
	// LoginToStart: units are begun only while somebody is logged in.
	LoginToStart bool
	// KeystoreEvery is how often the keystore is asked for its health. 0: 15 s,
	// and every 2 s while it is away.
	KeystoreEvery time.Duration

	// Plan shows what a job does to a virgin chip; nil: not offered.
	Plan func(ctx context.Context, job *provision.Job) (*provision.PlanReport, error)
	// Certificate makes the signed certificate of a unit; nil: not offered.
	Certificate func(ctx context.Context, unit chip.MAC) ([]byte, error)
	// Reprint asks for a unit's label again, and writes into the journal who asked;
	// nil: there is no printer.
	Reprint func(ctx context.Context, by Person, unit chip.MAC) error
	// OnResult hears every result, after the journal has it. It must not block.
	OnResult func(slot string, r *provision.Result)
	// Trace gets the frames of all lines; may be nil.
	Trace func(rom.TraceEvent)
}

// Station runs slots.
type Station struct {
	o     Options
	conds *Conditions
	hub   hub
	since time.Time

	lotMu sync.Mutex // one lot is opened or closed at a time

	mu       sync.Mutex
	slotList []*slot
	jobMap   map[string]*provision.Job
	lots     []*lot
	shift    []Person // who is logged in; the last answers for units that start by themselves
	skipped  []PortView
	stopping bool
	today    Yield
	yields   map[string]Yield  // of the open lots
	selected map[string]string // person → slot that was scanned

	recount chan struct{} // holds one: a run has ended

	workers sync.WaitGroup
	run     context.Context // of Run; nil before
}

// New makes a station and reads what its journal says of lots and slots. It
// starts nothing.
func New(ctx context.Context, o Options) (*Station, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Conditions == nil {
		o.Conditions = &Conditions{}
	}
	if o.UnitTimeout == 0 {
		o.UnitTimeout = 15 * time.Minute
	}
	if o.LeftAfter == 0 {
		o.LeftAfter = 2 * time.Minute
	}
	if o.Failures == 0 {
		o.Failures = 3
	}
	if o.KeystoreEvery == 0 {
		o.KeystoreEvery = 15 * time.Second
	}
	s := &Station{o: o, conds: o.Conditions, since: time.Now(), selected: map[string]string{}, recount: make(chan struct{}, 1)}
	s.conds.changed = func() { s.look(""); s.wakeAll() }
	s.SetJobs(o.Jobs)
	// No run that the journal has no end of is still in work.
	if _, err := s.append(ctx, journal.KindStation, "", views.StepStationStart, map[string]any{"tool": o.Tool, "slots": len(o.Slots)}); err != nil {
		return nil, err
	}
	if err := o.Views.CatchUp(ctx); err != nil {
		return nil, fmt.Errorf("the journal's views: %w", err)
	}
	if err := s.restoreLots(); err != nil {
		return nil, err
	}
	blocked, err := o.Views.Blocked()
	if err != nil {
		return nil, err
	}
	for _, spec := range o.Slots {
		sl := newSlot(s, spec)
		if reason, ok := blocked[spec.Name]; ok {
			sl.block(reason)
		}
		s.slotList = append(s.slotList, sl)
	}
	s.count(ctx)
	return s, nil
}

func (s *Station) restoreLots() error {
	open, err := s.o.Views.Lots(true, 0)
	if err != nil {
		return err
	}
	var lots []*lot
	for _, v := range open {
		members, err := s.o.Views.Members(v.ID)
		if err != nil {
			return err
		}
		l, err := newLot(v, members, s.jobs())
		if err != nil {
			return err
		}
		lots = append(lots, l)
	}
	s.mu.Lock()
	s.lots = lots
	s.mu.Unlock()
	s.checkLots()
	return nil
}

// checkLots tells of open lots whose recipe this station does not have any more.
func (s *Station) checkLots() {
	var lost []string
	for _, l := range s.openLots() {
		if l.product() == nil {
			lost = append(lost, fmt.Sprintf("%s (recipe %s revision %d)", l.entry.Lot, l.entry.Recipe, l.entry.RecipeRevision))
		}
	}
	if len(lost) > 0 {
		s.conds.Warn(CondLots, "open lots whose recipe is not here, or was changed: "+strings.Join(lost, ", "),
			"bring the recipe back as it was and reload, or close the lot")
		return
	}
	s.conds.Good(CondLots)
}

// SetJobs gives the recipes that lots can be opened with. Open lots keep theirs.
func (s *Station) SetJobs(jobs []*provision.Job) {
	m := map[string]*provision.Job{}
	for _, j := range jobs {
		m[j.Recipe.Name] = j
	}
	s.mu.Lock()
	s.jobMap = m
	for _, l := range s.lots {
		if j := m[l.entry.Recipe]; l.product() == nil && j != nil && j.Hash().String() == l.entry.JobSHA256 {
			l.mu.Lock()
			l.job = j
			l.mu.Unlock()
		}
	}
	s.mu.Unlock()
	s.checkLots()
	s.look("")
	s.wakeAll()
}

func (s *Station) jobs() map[string]*provision.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobMap
}

// Run works until ctx ends, then parks every unit at its next safe step. It
// returns when all slots have ended.
func (s *Station) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.run != nil {
		s.mu.Unlock()
		return errors.New("station: Run was called twice")
	}
	s.run = ctx
	for _, sl := range s.slotList {
		s.startSlot(sl)
	}
	s.mu.Unlock()

	var watchers sync.WaitGroup
	for _, f := range []func(context.Context){s.watchKeystore, s.watchDay} {
		watchers.Go(func() { f(ctx) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.look("")
	s.workers.Wait()
	watchers.Wait()
	// The journal may be closed by whoever opened it after this.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := s.append(end, journal.KindStation, "", "station-stop", map[string]any{}); err != nil {
		return err
	}
	return nil
}

// startSlot is called with mu held.
func (s *Station) startSlot(sl *slot) {
	ctx, retire := context.WithCancel(s.run)
	sl.retire = retire
	s.workers.Go(func() {
		defer retire()
		sl.serve(ctx)
	})
}

// Configure puts new slots in and takes old ones out. A slot that stays as it was
// is not touched; one that changed ends its unit first.
func (s *Station) Configure(specs []Spec) {
	blocked := s.blocked()
	var leaving []*slot
	defer func() { // after the station's lock is free again
		for _, sl := range leaving {
			sl.leave()
		}
		s.look("")
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	old := map[string]*slot{}
	for _, sl := range s.slotList {
		old[sl.spec.Name] = sl
	}
	var list []*slot
	for _, spec := range specs {
		sl := old[spec.Name]
		delete(old, spec.Name)
		if sl != nil && sl.spec.same(spec) {
			list = append(list, sl)
			continue
		}
		next := newSlot(s, spec)
		if sl == nil {
			sl = samePort(s.slotList, specs, spec)
		}
		if sl != nil && sl.retire != nil { // it was started
			next.after = sl // its unit ends first
			leaving = append(leaving, sl)
		}
		if reason, ok := blocked[spec.Name]; ok {
			next.block(reason)
		}
		if s.run != nil {
			s.startSlot(next)
		}
		list = append(list, next)
	}
	for _, gone := range old {
		leaving = append(leaving, gone)
	}
	s.slotList = list
}

// blocked are the slots that are set aside, by what the journal says.
func (s *Station) blocked() map[string]string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.o.Views.CatchUp(ctx)
	var out map[string]string
	if err == nil {
		out, err = s.o.Views.Blocked()
	}
	if err != nil {
		s.o.Log.Error("blocked slots", zap.Error(err))
	}
	return out
}

// samePort is a slot of another name that gives its port up to a new one.
func samePort(old []*slot, now []Spec, spec Spec) *slot {
	for _, sl := range old {
		stays := slices.ContainsFunc(now, func(n Spec) bool { return n.Name == sl.spec.Name && n.Port == sl.spec.Port })
		if sl.spec.Port == spec.Port && !stays {
			return sl
		}
	}
	return nil
}

func (s Spec) same(o Spec) bool {
	return s.Name == o.Name && s.Port == o.Port && s.Start == o.Start && s.MaxBaud == o.MaxBaud && s.Key == o.Key
}

func (s *Station) slots() []*slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.slotList)
}

func (s *Station) slot(name string) *slot {
	for _, sl := range s.slots() {
		if sl.spec.Name == name {
			return sl
		}
	}
	return nil
}

// SetSkipped says which ports are there that no slot is bound to.
func (s *Station) SetSkipped(ports []PortView) {
	s.mu.Lock()
	same := slices.Equal(s.skipped, ports)
	s.skipped = slices.Clone(ports)
	s.mu.Unlock()
	if !same {
		s.look("")
	}
}

// Conditions is the station's registry.
func (s *Station) Conditions() *Conditions { return s.conds }

// Watch gives a watcher of changes.
func (s *Station) Watch() *Watch { return s.hub.watch() }

// look tells the watchers that a slot, or with "" the station, changed.
func (s *Station) look(slot string) { s.hub.changed(slot) }

// wakeAll makes every waiting slot look again whether it may start.
func (s *Station) wakeAll() {
	for _, sl := range s.slots() {
		sl.wake()
	}
}

// View is the station as it is now.
func (s *Station) View() View {
	v := View{
		Station: s.o.Name, Version: s.o.Version, Simulated: s.o.Simulated, Started: s.since, Conditions: s.conds.All(),
		Slots: []SlotView{}, Lots: []LotView{},
	}
	for _, sl := range s.slots() {
		v.Slots = append(v.Slots, sl.current())
	}
	for _, l := range s.openLots() {
		v.Lots = append(v.Lots, s.lotView(l))
	}
	s.mu.Lock()
	v.Stopping, v.Today, v.Skipped = s.stopping, s.today, slices.Clone(s.skipped)
	s.mu.Unlock()
	return v
}

// Beat proves that the station still moves: it takes every lock that a screen
// takes. The watchdog is fed with it.
func (s *Station) Beat() { _ = s.View() }

// Recipes lists what lots can be opened with.
func (s *Station) Recipes() []RecipeView {
	jobs := s.jobs()
	out := make([]RecipeView, 0, len(jobs))
	for _, name := range slices.Sorted(maps.Keys(jobs)) {
		r := jobs[name].Recipe
		out = append(out, RecipeView{
			Name: r.Name, Revision: r.Revision, SHA256: recipeHash(jobs[name]), Chip: r.Chip, Profile: string(r.Profile),
			ClosesForever: r.ClosesForever(), FlashSize: uint32(r.FlashSize), Path: r.File(),
		})
	}
	return out
}

// Plan shows what a recipe would write and burn on a virgin chip.
func (s *Station) Plan(ctx context.Context, recipe string) (*provision.PlanReport, error) {
	job := s.jobs()[recipe]
	if job == nil {
		return nil, notFound("choose one of the station's recipes", "there is no recipe %q", recipe)
	}
	if s.o.Plan == nil {
		return nil, conflict("use `provisiond plan --recipe "+job.Recipe.File()+"`", "this station makes no plans")
	}
	return s.o.Plan(ctx, job)
}

// History gives past runs, the newest first.
func (s *Station) History(ctx context.Context, q HistoryQuery) ([]UnitView, error) {
	limit := q.Limit
	if limit <= 0 {
		limit = 50
	}
	err := s.o.Views.CatchUp(ctx)
	var out []UnitView
	if err == nil {
		out, err = s.o.Views.History(ctx, views.Query{Before: q.Before, Limit: min(limit, 200), Lot: q.Lot, Unit: q.Unit, Verdict: q.Verdict})
	}
	if err != nil {
		return nil, &ActionError{Kind: ActionFailed, Text: "the history cannot be read", Err: err}
	}
	return out, nil
}

// Certificate is the signed certificate of a unit.
func (s *Station) Certificate(ctx context.Context, unit string) ([]byte, error) {
	mac, err := chip.ParseMAC(unit)
	if err != nil {
		return nil, invalid("write it as 24:0a:c4:00:01:02", "%q is no MAC address", unit)
	}
	if s.o.Certificate == nil {
		return nil, conflict("use `provisiond audit unit` on a backup of the journal", "this station makes no certificates")
	}
	return s.o.Certificate(ctx, mac)
}

// Reprint asks for a unit's label again.
func (s *Station) Reprint(ctx context.Context, by Person, unit string) error {
	mac, err := chip.ParseMAC(unit)
	if err != nil {
		return invalid("write it as 24:0a:c4:00:01:02", "%q is no MAC address", unit)
	}
	if s.o.Reprint == nil {
		return conflict("configure a label printer", "this station prints no labels")
	}
	return s.o.Reprint(ctx, by, mac)
}

// Record writes what a person did into the journal. Logging in makes somebody the
// one who answers for units that start by themselves.
func (s *Station) Record(ctx context.Context, by Person, step string, body map[string]any) error {
	b := maps.Clone(body)
	if b == nil {
		b = map[string]any{}
	}
	b["operator"], b["role"] = by.Name, by.Role
	if _, err := s.append(ctx, journal.KindOperator, "", step, b); err != nil {
		return err
	}
	same := func(p Person) bool { return p.Name == by.Name }
	s.mu.Lock()
	switch {
	case step == "login" && by.Role != "auditor":
		s.shift = append(slices.DeleteFunc(s.shift, same), by)
	case step == "logout":
		s.shift = slices.DeleteFunc(s.shift, same)
	}
	s.mu.Unlock()
	s.wakeAll()
	return nil
}

// onShift is who answers for units that start by themselves.
func (s *Station) onShift() Person {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shift) == 0 {
		return Person{}
	}
	return s.shift[len(s.shift)-1]
}

func (s *Station) append(ctx context.Context, kind journal.Kind, slot, step string, body any) (journal.Entry, error) {
	return s.appendFor(ctx, chip.MAC{}, kind, slot, step, body)
}

func (s *Station) appendFor(ctx context.Context, unit chip.MAC, kind journal.Kind, slot, step string, body any) (journal.Entry, error) {
	b, err := journal.MarshalPayload(body)
	if err != nil {
		return journal.Entry{}, &ActionError{Kind: ActionInvalid, Text: "this does not fit a journal entry", Err: err}
	}
	e, err := s.o.Journal.Append(ctx, journal.Entry{Slot: slot, Unit: unit, Step: step, Kind: kind, Payload: b})
	if err != nil {
		s.journalFailed(err)
		return e, &ActionError{Kind: ActionFailed, Text: "the journal cannot be written", Next: "check the disk; nothing more is done meanwhile", Err: err}
	}
	return e, nil
}

// journalFailed: after a write that failed the journal takes no more until the
// station is started again.
func (s *Station) journalFailed(err error) {
	if errors.Is(err, journal.ErrFailed) {
		s.conds.Bad(CondJournal, "the journal could not be written: "+err.Error(), "check the disk, run `provisiond journal verify`, then start the station again")
	}
}

// watchKeystore asks the keystore for its health, so that an outage is seen before
// a unit meets it, and its end without anybody asking.
func (s *Station) watchKeystore(ctx context.Context) {
	for {
		s.askKeystore(ctx)
		wait := s.o.KeystoreEvery
		if s.keystoreDown() {
			wait = min(wait, 2*time.Second)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (s *Station) askKeystore(ctx context.Context) {
	asked, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := s.o.Store.Info(asked)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.keystoreFailed(err.Error())
	case info.Warning != "":
		s.conds.Warn(CondKeystore, info.Warning, "see docs/keystore-vault.md")
	default:
		s.conds.Good(CondKeystore)
	}
}

func (s *Station) keystoreFailed(why string) {
	s.conds.Bad(CondKeystore, why, "units wait; those whose key is burned are finished. `provisiond keystore check` says more")
}

func (s *Station) keystoreDown() bool {
	for _, c := range s.conds.All() {
		if c.Name == CondKeystore {
			return !c.OK
		}
	}
	return false
}

// watchDay keeps the yield of today, and looks at the clock while it is there.
func (s *Station) watchDay(ctx context.Context) {
	last := time.Now()
	for {
		s.count(ctx)
		t := time.NewTimer(clockEvery)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-s.recount:
			sleep(ctx, countPause) // what ends together is counted together
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		// The wall clock against the monotonic one.
		wall, mono := now.Round(0).Sub(last.Round(0)), now.Sub(last)
		if jump := (wall - mono).Abs(); jump > clockJump {
			s.conds.Warn(CondClock, fmt.Sprintf("the clock jumped by %s at %s", (wall-mono).Round(time.Second), now.UTC().Format(time.RFC3339)),
				"check NTP; times in the journal from before may be wrong")
			if _, err := s.append(ctx, journal.KindStation, "", "clock-jump", map[string]any{"seconds": int64((wall - mono).Seconds())}); err != nil {
				s.o.Log.Error("clock jump not in the journal", zap.Error(err))
			}
		} else if !s.jumpedLately(now) {
			s.conds.Good(CondClock)
		}
		last = now
	}
}

const (
	clockEvery = 5 * time.Second
	countPause = 300 * time.Millisecond
	clockJump  = 2 * time.Second
	clockShown = 10 * time.Minute // how long a jump stays on the screen
)

func (s *Station) jumpedLately(now time.Time) bool {
	for _, c := range s.conds.All() {
		if c.Name == CondClock {
			return !c.OK && now.Sub(c.Since) < clockShown
		}
	}
	return false
}

// count brings the views and today's yield up to the journal.
func (s *Station) count(ctx context.Context) {
	err := s.o.Views.CatchUp(ctx)
	var units map[string]views.Unit
	if err == nil {
		units, err = s.o.Views.Day(time.Now())
	}
	if err != nil {
		if ctx.Err() == nil {
			s.conds.Warn(CondViews, "history and yield are not up to date: "+err.Error(), "stop the station, remove the views file and start again")
		}
		return
	}
	s.conds.Good(CondViews)
	y := views.Count(units, s.o.Simulated)
	yields := map[string]Yield{}
	for _, l := range s.openLots() {
		members, err := s.o.Views.Members(l.entry.Lot)
		if err != nil {
			s.conds.Warn(CondViews, "the yield of lot "+l.entry.Lot+" cannot be read: "+err.Error(), "stop the station, remove the views file and start again")
			continue
		}
		yields[l.entry.Lot] = views.Count(members, s.o.Simulated)
	}
	s.mu.Lock()
	changed := s.today != y || !maps.Equal(s.yields, yields)
	s.today, s.yields = y, yields
	s.mu.Unlock()
	if changed {
		s.look("")
	}
}

// sleep waits, and reports whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
