package station

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/views"
)

// Limits of a lot.
const (
	maxQuantity = 1_000_000
	maxList     = 200 << 10 // bytes of a list of serial numbers, which goes into one journal entry
)

var (
	lotName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$`)
	serialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:+-]{0,63}$`)
)

// Where the serial numbers of a lot come from.
const (
	SerialsNone  = "none"
	SerialsRange = "range"
	SerialsList  = "list"
	SerialsScan  = "scan"
)

// lotEntry is what the journal holds of an opened lot.
type lotEntry struct {
	Lot            string   `json:"lot"`
	Recipe         string   `json:"recipe"`
	RecipeRevision int      `json:"recipe_revision"`
	RecipeSHA256   string   `json:"recipe_sha256"`
	JobSHA256      string   `json:"job_sha256"` // with the images
	Profile        string   `json:"profile"`
	Chip           string   `json:"chip"`
	Quantity       int      `json:"quantity"`
	Serials        Serials  `json:"serials"`
	Slots          []string `json:"slots"`
	Forever        bool     `json:"closed_is_forever"`
	Operator       string   `json:"operator"`
}

// lot is an open lot. Who may be a unit of it is decided here, under one lock, so
// that slots that begin at the same time cannot take one place twice.
type lot struct {
	entry  lotEntry
	opened views.Lot
	job    *provision.Job // nil: no recipe of this station is the lot's

	mu    sync.Mutex
	units map[string]*lotUnit // by MAC
	owner map[string]string   // serial number → MAC
	next  int                 // of the range or list: the first that was never given
	free  []int               // given to units that were refused after all
}

type lotUnit struct {
	serial string
	number int  // of the range or list, -1: none
	begun  bool // it counts: something was planned for it
	held   int  // runs that hold its place and have not begun
}

func newLot(l views.Lot, members map[string]views.Unit, recipes map[string]*provision.Job) (*lot, error) {
	out := &lot{opened: l, units: map[string]*lotUnit{}, owner: map[string]string{}}
	if err := json.Unmarshal(l.Payload, &out.entry); err != nil {
		return nil, fmt.Errorf("lot %s: %w", l.ID, err)
	}
	if j := recipes[out.entry.Recipe]; j != nil && j.Hash().String() == out.entry.JobSHA256 {
		out.job = j
	}
	for mac, u := range members {
		if !u.Begun {
			continue
		}
		n := out.entry.Serials.number(u.Serial)
		out.units[mac] = &lotUnit{serial: u.Serial, number: n, begun: true}
		if u.Serial != "" {
			out.owner[u.Serial] = mac
		}
	}
	// Numbers that nobody has, below the highest that somebody has, were given to
	// units that were refused.
	given := map[int]bool{}
	for _, u := range out.units {
		if u.number >= 0 {
			given[u.number] = true
			out.next = max(out.next, u.number+1)
		}
	}
	for n := range out.next {
		if !given[n] {
			out.free = append(out.free, n)
		}
	}
	return out, nil
}

func recipeHash(j *provision.Job) string { return provision.Hash(j.Recipe.Hash()).String() }

// product is what the lot makes; nil while its recipe is not here as it was.
func (l *lot) product() *provision.Job {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.job
}

// owns is the unit that has a serial number in this lot.
func (l *lot) owns(serial string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owner[serial]
}

func (l *lot) begun() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, u := range l.units {
		if u.begun {
			n++
		}
	}
	return n
}

// admit gives a unit its place and serial number, and refuses one that has none.
// scanned is the number on its label, or "".
func (l *lot) admit(unit chip.MAC, scanned string) (provision.Admission, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mac := unit.String()
	u := l.units[mac]
	if u == nil {
		if len(l.units) >= l.entry.Quantity {
			return provision.Admission{}, &provision.Failure{
				Cause: provision.CauseRefused, NextStep: "close the lot; units over the quantity need a lot of their own",
				Reason: fmt.Sprintf("lot %s is full: its %d units are begun", l.entry.Lot, l.entry.Quantity),
			}
		}
		u = &lotUnit{number: -1}
	}
	if from := l.entry.Serials.From; scanned != "" && u.serial == "" && (from == SerialsRange || from == SerialsList) {
		return provision.Admission{}, &provision.Failure{
			Cause: provision.CauseRefused, NextStep: "start the slot without a number, or open a lot whose numbers are scanned",
			Reason: fmt.Sprintf("lot %s gives its units serial numbers itself, and %s was scanned", l.entry.Lot, scanned),
		}
	}
	if scanned != "" && u.serial != "" && scanned != u.serial {
		return provision.Admission{}, &provision.Failure{
			Cause: provision.CauseRefused, NextStep: "check the label: is this the unit that it belongs to?",
			Reason: fmt.Sprintf("unit %s has serial number %s already, and %s was scanned", mac, u.serial, scanned),
		}
	}
	if scanned != "" && l.owner[scanned] != "" && l.owner[scanned] != mac {
		return provision.Admission{}, &provision.Failure{
			Cause: provision.CauseRefused, NextStep: "find the two labels with one number",
			Reason: fmt.Sprintf("serial number %s belongs to unit %s", scanned, l.owner[scanned]),
		}
	}
	if err := l.number(u, scanned); err != nil {
		return provision.Admission{}, err
	}
	if u.serial != "" {
		l.owner[u.serial] = mac
	}
	u.held++
	l.units[mac] = u
	return provision.Admission{Serial: u.serial}, nil
}

func (l *lot) number(u *lotUnit, scanned string) error {
	if u.serial != "" {
		return nil
	}
	s := l.entry.Serials
	switch {
	case scanned != "":
		u.serial = scanned
	case s.From == SerialsRange, s.From == SerialsList:
		if len(l.free) > 0 {
			u.number, l.free = l.free[0], l.free[1:]
		} else {
			u.number = l.next
			l.next++
		}
		serial, err := s.at(u.number)
		if err != nil {
			return err
		}
		u.serial = serial
	case s.From == SerialsScan:
		return &provision.Failure{
			Cause: provision.CauseRefused, NextStep: "scan the label, then start the slot",
			Reason: fmt.Sprintf("lot %s wants a scanned serial number for each unit", l.entry.Lot),
		}
	}
	return nil
}

// settle ends a run's hold on the place of a unit. One that was refused, and never
// begun, gives its place and number back.
func (l *lot) settle(mac string, begun bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.units[mac]
	if u == nil {
		return
	}
	if u.held > 0 {
		u.held--
	}
	u.begun = u.begun || begun
	if u.begun || u.held > 0 {
		return
	}
	delete(l.units, mac)
	if u.serial != "" {
		delete(l.owner, u.serial)
	}
	if u.number >= 0 {
		l.free = append(l.free, u.number)
		slices.Sort(l.free)
	}
}

// admit lets a unit into a lot, with a serial number that no other unit of this
// station has, in whatever lot.
func (s *Station) admit(ctx context.Context, l *lot, unit chip.MAC, scanned string) (provision.Admission, error) {
	a, err := l.admit(unit, scanned)
	if err != nil || a.Serial == "" {
		return a, err
	}
	other := ""
	for _, o := range s.openLots() {
		if mac := o.owns(a.Serial); o != l && mac != "" && mac != unit.String() {
			other = mac
		}
	}
	if other == "" {
		if err = s.o.Views.CatchUp(ctx); err == nil {
			other, err = s.o.Views.Holder(a.Serial, unit.String())
		}
	}
	switch {
	case err != nil:
		l.settle(unit.String(), false)
		return provision.Admission{}, &provision.Failure{Cause: provision.CauseStation, Reason: "it cannot be told whether the serial number is free", NextStep: "look at the station's conditions", Err: err}
	case other != "":
		l.settle(unit.String(), false)
		return provision.Admission{}, &provision.Failure{
			Cause: provision.CauseRefused, NextStep: "find the two labels with one number, or open the lot with other numbers",
			Reason: fmt.Sprintf("serial number %s belongs to unit %s", a.Serial, other),
		}
	}
	return a, nil
}

// freeNumbers says which of a lot's numbers a unit has already.
func (s *Station) freeNumbers(ctx context.Context, r LotRequest) error {
	if err := s.o.Views.CatchUp(ctx); err != nil {
		return &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
	}
	serial, unit := "", ""
	var err error
	switch r.Serials.From {
	case SerialsRange:
		last, lerr := r.Serials.at(r.Quantity - 1)
		if lerr != nil {
			return lerr
		}
		serial, unit, err = s.o.Views.FirstBetween(r.Serials.First, last)
	case SerialsList:
		for _, n := range r.Serials.List {
			if unit, err = s.o.Views.Holder(n, ""); unit != "" || err != nil {
				serial = n
				break
			}
		}
	}
	switch {
	case err != nil:
		return &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
	case unit != "":
		return conflict("begin behind the numbers that units have", "serial number %s belongs to unit %s", serial, unit)
	}
	return nil
}

// covers reports whether the lot is made in the slot.
func (l *lot) covers(slot string) bool {
	return len(l.entry.Slots) == 0 || slices.Contains(l.entry.Slots, slot)
}

// at is the nth serial number of a range or list.
func (s Serials) at(n int) (string, error) {
	if s.From == SerialsList {
		if n >= len(s.List) {
			return "", &provision.Failure{
				Cause: provision.CauseRefused, NextStep: "close the lot and open one with more numbers",
				Reason: fmt.Sprintf("the list of serial numbers has %d and all are given", len(s.List)),
			}
		}
		return s.List[n], nil
	}
	prefix, first, width := splitSerial(s.First)
	return fmt.Sprintf("%s%0*d", prefix, width, first+uint64(n)), nil
}

// number is the place of a serial number in a range or list, -1 if it has none.
func (s Serials) number(serial string) int {
	switch s.From {
	case SerialsList:
		return slices.Index(s.List, serial)
	case SerialsRange:
		prefix, first, width := splitSerial(s.First)
		p, n, w := splitSerial(serial)
		if p == prefix && w == width && n >= first && n-first < maxQuantity {
			return int(n - first)
		}
	}
	return -1
}

// splitSerial takes the digits at the end of a serial number off.
func splitSerial(s string) (prefix string, n uint64, width int) {
	digits := len(s) - len(strings.TrimRight(s, "0123456789"))
	digits = min(digits, 18) // more do not fit a counter
	n, _ = strconv.ParseUint(s[len(s)-digits:], 10, 64)
	return s[:len(s)-digits], n, digits
}

// check says what is wrong with a range, list or mode for so many units.
func (s Serials) check(quantity int) error {
	switch s.From {
	case SerialsNone, SerialsScan:
		if s.First != "" || len(s.List) > 0 {
			return invalid("leave first and list out, or say from: range or list", "serial numbers come from %q and numbers are given too", s.From)
		}
	case SerialsRange:
		if !serialName.MatchString(s.First) {
			return invalid("write letters, digits and . _ / : + -, at most 64", "%q is no serial number", s.First)
		}
		_, first, width := splitSerial(s.First)
		if width == 0 {
			return invalid("write the first number with its leading zeros, for example AB000001", "serial number %s has no digits at its end to count in", s.First)
		}
		if last := fmt.Sprint(first + uint64(quantity) - 1); len(last) > width {
			return invalid("write the first number with more leading zeros", "%d numbers from %s do not fit its %d digits", quantity, s.First, width)
		}
	case SerialsList:
		return s.checkList(quantity)
	default:
		return invalid("write none, range, list or scan", "serial numbers cannot come from %q", s.From)
	}
	return nil
}

func (s Serials) checkList(quantity int) error {
	seen, bytes := map[string]int{}, 0
	for i, n := range s.List {
		if !serialName.MatchString(n) {
			return invalid("write letters, digits and . _ / : + -, at most 64", "line %d: %q is no serial number", i+1, n)
		}
		if at := seen[n]; at != 0 {
			return invalid("take one of them out", "serial number %s stands in lines %d and %d", n, at, i+1)
		}
		seen[n] = i + 1
		bytes += len(n) + 3
	}
	if bytes > maxList {
		return invalid("open several lots, or use a range", "the list of serial numbers has %d bytes and a lot takes %d", bytes, maxList)
	}
	if len(s.List) < quantity {
		return invalid("add numbers, or lower the quantity", "%d serial numbers are too few for %d units", len(s.List), quantity)
	}
	return nil
}

// OpenLot begins a lot.
func (s *Station) OpenLot(ctx context.Context, by Person, r LotRequest) (LotView, error) {
	s.lotMu.Lock()
	defer s.lotMu.Unlock()
	if r.Serials.From == "" {
		r.Serials.From = SerialsNone
	}
	job, err := s.checkLot(ctx, r)
	if err != nil {
		return LotView{}, err
	}
	e := lotEntry{
		Lot: r.ID, Recipe: job.Recipe.Name, RecipeRevision: job.Recipe.Revision, RecipeSHA256: recipeHash(job), JobSHA256: job.Hash().String(),
		Profile: string(job.Recipe.Profile), Chip: job.Recipe.Chip, Quantity: r.Quantity, Serials: r.Serials, Slots: r.Slots,
		Forever: r.Forever, Operator: by.Name,
	}
	if e.Slots == nil {
		e.Slots = []string{}
	}
	written, err := s.append(ctx, journal.KindOperator, "", views.StepLotOpen, e)
	if err != nil {
		return LotView{}, err
	}
	l, err := newLot(views.Lot{ID: r.ID, Index: written.Index, Opened: written.Time, Open: true, Payload: written.Payload}, nil, s.jobs())
	if err != nil {
		return LotView{}, err
	}
	s.mu.Lock()
	s.lots = append(s.lots, l)
	s.mu.Unlock()
	s.look("")
	return s.lotView(l), nil
}

func (s *Station) checkLot(ctx context.Context, r LotRequest) (*provision.Job, error) {
	if !lotName.MatchString(r.ID) {
		return nil, invalid("write letters, digits and . _ / -, at most 64", "%q is no name for a lot", r.ID)
	}
	if r.Quantity < 1 || r.Quantity > maxQuantity {
		return nil, invalid(fmt.Sprintf("write 1 to %d", maxQuantity), "a lot cannot have %d units", r.Quantity)
	}
	if err := r.Serials.check(r.Quantity); err != nil {
		return nil, err
	}
	job := s.jobs()[r.Recipe]
	if job == nil {
		return nil, notFound("choose one of the station's recipes", "there is no recipe %q", r.Recipe)
	}
	if job.Recipe.ClosesForever() && !r.Forever {
		return nil, invalid("agree to it, or choose another profile",
			"profile %s closes the serial loader of every unit of this lot for ever", job.Recipe.Profile)
	}
	for _, name := range r.Slots {
		if s.slot(name) == nil {
			return nil, notFound("write the slots' names as the page shows them", "there is no slot %q", name)
		}
	}
	if err := s.freeNumbers(ctx, r); err != nil {
		return nil, err
	}
	if _, found, err := s.o.Views.Lot(r.ID); err != nil {
		return nil, &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
	} else if found {
		return nil, conflict("choose another name", "there is a lot %s already", r.ID)
	}
	for _, l := range s.openLots() {
		if l.entry.Lot == r.ID {
			return nil, conflict("choose another name", "there is a lot %s already", r.ID)
		}
		for _, sl := range s.slots() {
			name := sl.spec.Name
			if l.covers(name) && (len(r.Slots) == 0 || slices.Contains(r.Slots, name)) {
				return nil, conflict("close it, or name other slots", "slot %s is in the open lot %s", name, l.entry.Lot)
			}
		}
	}
	return job, nil
}

// CloseLot ends a lot. Units in work are finished.
func (s *Station) CloseLot(ctx context.Context, by Person, id string) error {
	s.lotMu.Lock()
	defer s.lotMu.Unlock()
	var l *lot
	for _, o := range s.openLots() {
		if o.entry.Lot == id {
			l = o
		}
	}
	if l == nil {
		return notFound("look at the list of open lots", "no lot %q is open", id)
	}
	if _, err := s.append(ctx, journal.KindOperator, "", views.StepLotClose, map[string]any{"lot": id, "operator": by.Name, "begun": l.begun(), "quantity": l.entry.Quantity}); err != nil {
		return err
	}
	s.mu.Lock()
	s.lots = slices.DeleteFunc(s.lots, func(o *lot) bool { return o == l })
	s.mu.Unlock()
	s.look("")
	return nil
}

// Lots gives lots, the one that was opened last first.
func (s *Station) Lots(ctx context.Context, limit int) ([]LotView, error) {
	if err := s.o.Views.CatchUp(ctx); err != nil {
		return nil, &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
	}
	all, err := s.o.Views.Lots(false, limit)
	if err != nil {
		return nil, &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
	}
	out := make([]LotView, 0, len(all))
	for _, v := range all {
		members, err := s.o.Views.Members(v.ID)
		if err != nil {
			return nil, &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
		}
		l, err := newLot(v, members, nil)
		if err != nil {
			return nil, &ActionError{Kind: ActionFailed, Text: "the lots cannot be read", Err: err}
		}
		out = append(out, l.view(views.Count(members, s.o.Simulated)))
	}
	return out, nil
}

func (l *lot) view(y Yield) LotView {
	e := l.entry
	return LotView{
		ID: e.Lot, Open: l.opened.Open, Recipe: e.Recipe, RecipeRevision: e.RecipeRevision, RecipeSHA256: e.RecipeSHA256,
		Chip: e.Chip, Profile: e.Profile, Quantity: e.Quantity, Begun: l.begun(), Operator: e.Operator, Opened: l.opened.Opened,
		Serials: e.Serials.From, Yield: y,
	}
}

// lotView is an open lot with its yield, as it was counted last.
func (s *Station) lotView(l *lot) LotView {
	s.mu.Lock()
	y := s.yields[l.entry.Lot]
	s.mu.Unlock()
	return l.view(y)
}

func (s *Station) openLots() []*lot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lots)
}

// lotOf is the open lot that a slot works for.
func (s *Station) lotOf(slot string) *lot {
	for _, l := range s.openLots() {
		if l.covers(slot) {
			return l
		}
	}
	return nil
}
