package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/provision"
)

// State is what became of a unit in a report. It is the verdict, but a refusal
// is told apart from FAIL, and a unit without a verdict is OPEN.
type State string

// The states that are no verdicts.
const (
	Refused State = "REFUSED" // nothing irreversible was done; no part of any yield
	Open    State = "OPEN"    // begun, and no verdict yet
)

// states is the order of reports.
var states = []State{
	State(provision.Pass), State(provision.Fail), State(provision.Error), State(provision.Aborted),
	State(provision.Quarantined), Refused, Open,
}

// State of an attempt.
func (a *Attempt) State() State {
	switch {
	case a.Verdict == "":
		return Open
	case a.Cause == provision.CauseRefused:
		return Refused
	}
	return State(a.Verdict)
}

// Counts of units.
type Counts struct {
	Units       int `json:"units"` // all that were begun
	Pass        int `json:"pass"`
	Fail        int `json:"fail"`
	Error       int `json:"error"`
	Aborted     int `json:"aborted"`
	Quarantined int `json:"quarantined"`
	Refused     int `json:"refused"`
	Open        int `json:"open"`
	// Reworked units had more than one attempt that counts, or a person's rework
	// entry, whatever they came to.
	Reworked  int `json:"reworked"`
	FirstPass int `json:"first_pass"` // PASS in the first attempt
}

func (c *Counts) of(s State) *int {
	switch s {
	case State(provision.Pass):
		return &c.Pass
	case State(provision.Fail):
		return &c.Fail
	case State(provision.Error):
		return &c.Error
	case State(provision.Aborted):
		return &c.Aborted
	case State(provision.Quarantined):
		return &c.Quarantined
	case Refused:
		return &c.Refused
	}
	return &c.Open
}

// yielded is how many units a yield is of.
func (c Counts) yielded() int { return c.Units - c.Refused }

// Yield is a fraction of units. Percent has two decimals; it is empty for no units.
type Yield struct {
	Units   int    `json:"units"`
	Of      int    `json:"of"`
	Percent string `json:"percent"`
}

func yield(n, of int) Yield {
	y := Yield{Units: n, Of: of}
	if of > 0 {
		// Integers, so that every machine writes the same; 100 only if it is all.
		h := (20000*int64(n)/int64(of) + 1) / 2
		if n < of {
			h = min(h, 9999)
		}
		y.Percent = fmt.Sprintf("%d.%02d", h/100, h%100)
	}
	return y
}

// ScrapReason is why units did not pass, most frequent first.
type ScrapReason struct {
	State  State  `json:"state"`
	Cause  string `json:"cause"`
	Reason string `json:"reason"` // without what differs from unit to unit
	Units  int    `json:"units"`
}

// Cycle is how long passing attempts took, in milliseconds. Percentiles are by
// nearest rank: each is the time of one unit.
type Cycle struct {
	Units     int      `json:"units"`
	MinMS     int64    `json:"min_ms"`
	MeanMS    int64    `json:"mean_ms"`
	P50MS     int64    `json:"p50_ms"`
	P90MS     int64    `json:"p90_ms"`
	P95MS     int64    `json:"p95_ms"`
	P99MS     int64    `json:"p99_ms"`
	MaxMS     int64    `json:"max_ms"`
	Histogram []Bucket `json:"histogram"`
}

// Bucket counts the units from FromMS up to, and without, ToMS.
type Bucket struct {
	FromMS int64 `json:"from_ms"`
	ToMS   int64 `json:"to_ms"`
	Units  int   `json:"units"`
}

// Serials is what the labels tell.
type Serials struct {
	Units      int           `json:"units"` // with a serial number
	Without    int           `json:"without"`
	Gaps       []SerialGap   `json:"gaps"`
	Duplicates []SerialTwice `json:"duplicates"`
}

// SerialGap is a run of numbers that no unit of the report has.
type SerialGap struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Missing int64  `json:"missing"`
}

// SerialTwice is a serial number on several units.
type SerialTwice struct {
	Serial string   `json:"serial"`
	Units  []string `json:"units"`
}

// LotUnit is one line of the lot's list.
type LotUnit struct {
	Unit        string `json:"unit"`
	Serial      string `json:"serial"`
	Simulated   bool   `json:"simulated"`
	State       State  `json:"state"`
	Cause       string `json:"cause"`
	Reason      string `json:"reason"`
	Attempts    int    `json:"attempts"`
	FirstPass   bool   `json:"first_pass"`
	Reworked    bool   `json:"reworked"`
	Chip        string `json:"chip"`
	Revision    string `json:"revision"`
	Recipe      string `json:"recipe"`
	RecipeRev   int    `json:"recipe_revision"`
	Profile     string `json:"profile"`
	Fingerprint string `json:"key_fingerprint"`
	Station     string `json:"station"`
	Slot        string `json:"slot"`
	Operator    string `json:"operator"`
	Begun       string `json:"begun"` // of the first attempt
	Ended       string `json:"ended"` // of the attempt that counts
	CycleMS     int64  `json:"cycle_ms"`
	Entry       uint64 `json:"entry"` // of the verdict, or of the last entry if there is none
}

// Lot is the report of a lot, or of everything if no lot was asked for.
type Lot struct {
	Format    int           `json:"format"`
	Lot       string        `json:"lot"`
	All       bool          `json:"all"`     // no lot was asked for
	Ordered   int           `json:"ordered"` // quantity of the order; 0: not told
	Remaining int           `json:"remaining"`
	Stations  []string      `json:"stations"`
	Operators []string      `json:"operators"`
	Recipes   []string      `json:"recipes"`
	Tools     []string      `json:"tools"`
	First     string        `json:"first"` // of the entries that were used
	Last      string        `json:"last"`
	Counts    Counts        `json:"counts"`
	Simulated Counts        `json:"simulated"` // not in anything above or below, but for the list
	FirstPass Yield         `json:"first_pass_yield"`
	Final     Yield         `json:"final_yield"`
	Attempts  int           `json:"attempts"`         // on real units
	Unknown   int           `json:"unknown_attempts"` // ended before a board told its MAC
	Reasons   []ScrapReason `json:"scrap_reasons"`
	Cycle     Cycle         `json:"cycle"`
	Serials   Serials       `json:"serials"`
	Units     []LotUnit     `json:"units"`

	created time.Time // the newest time in the report
}

// LotFormat is the version of the report's form.
const LotFormat = 1

// LotOptions choose what is reported.
type LotOptions struct {
	Lot     string // empty: every unit
	Ordered int    // quantity of the order; 0: not told
}

// NewLot reports a lot. A unit belongs to the lot of its attempts; attempts of
// other lots are left out.
//
// A unit's first attempt decides the first-pass yield, also if the station was
// to blame for how it ended. Refused units were never begun: they are counted
// apart and have no part in a yield.
func NewLot(p *Projection, o LotOptions) *Lot {
	l := &Lot{
		Format: LotFormat, Lot: o.Lot, All: o.Lot == "", Ordered: o.Ordered,
		Stations: []string{}, Operators: []string{}, Recipes: []string{}, Tools: []string{},
		Reasons: []ScrapReason{}, Units: []LotUnit{},
		Serials: Serials{Gaps: []SerialGap{}, Duplicates: []SerialTwice{}}, Cycle: Cycle{Histogram: []Bucket{}},
	}
	b := lotBuilder{l: l, reasons: map[ScrapReason]int{}, serials: map[string][]string{}}
	for _, a := range p.Unknown {
		if l.All || a.Lot == o.Lot {
			l.Unknown++
			b.note(a)
		}
	}
	for _, u := range p.Units {
		mine := &Unit{MAC: u.MAC, Simulated: u.Simulated, Reworks: u.Reworks}
		for _, a := range u.Attempts {
			if l.All || a.Lot == o.Lot {
				mine.Attempts = append(mine.Attempts, a)
			}
		}
		if len(mine.Attempts) > 0 {
			b.unit(mine)
		}
	}
	b.finish()
	return l
}

type lotBuilder struct {
	l       *Lot
	reasons map[ScrapReason]int
	serials map[string][]string
	cycles  []int64
	first   time.Time
}

// note takes over who, where, when and with what.
func (b *lotBuilder) note(a *Attempt) {
	insert(&b.l.Stations, a.Station)
	insert(&b.l.Operators, a.Operator)
	insert(&b.l.Tools, a.Tool)
	if a.Recipe != "" {
		insert(&b.l.Recipes, fmt.Sprintf("%s revision %d", a.Recipe, a.RecipeRevision))
	}
	if b.first.IsZero() || a.Begun.Before(b.first) {
		b.first = a.Begun
	}
	if a.lastEntryAt.After(b.l.created) {
		b.l.created = a.lastEntryAt
	}
}

func insert(list *[]string, s string) {
	if at, found := slices.BinarySearch(*list, s); !found && s != "" {
		*list = slices.Insert(*list, at, s)
	}
}

func (b *lotBuilder) unit(u *Unit) {
	final := u.Final()
	counted := 0 // attempts that were no refusals
	for _, a := range u.Attempts {
		b.note(a)
		if !a.changedNothing() {
			counted++
		}
	}
	state := final.State()
	row := LotUnit{
		Unit: u.MAC.String(), Serial: u.Serial(), Simulated: u.Simulated, State: state,
		Cause: string(final.Cause), Reason: final.Reason, Attempts: len(u.Attempts),
		FirstPass: u.Attempts[0].Verdict == provision.Pass,
		Reworked:  counted > 1 || len(u.Reworks) > 0,
		Chip:      final.Chip, Revision: final.Revision, Recipe: final.Recipe, RecipeRev: final.RecipeRevision,
		Profile: final.Profile, Fingerprint: u.key(final).KeyFingerprint, Station: final.Station, Slot: final.Slot,
		Operator: final.Operator, Begun: stamp(u.Attempts[0].Begun), Ended: stamp(final.lastEntryAt),
		CycleMS: final.ElapsedMS, Entry: final.Entries[len(final.Entries)-1],
	}
	b.l.Units = append(b.l.Units, row)
	c := &b.l.Counts
	if u.Simulated {
		c = &b.l.Simulated
	}
	c.Units++
	*c.of(state)++
	if row.Reworked {
		c.Reworked++
	}
	if row.FirstPass {
		c.FirstPass++
	}
	if u.Simulated {
		return
	}
	b.l.Attempts += len(u.Attempts)
	if state == State(provision.Pass) {
		b.cycles = append(b.cycles, final.ElapsedMS)
	} else {
		b.reasons[ScrapReason{State: state, Cause: row.Cause, Reason: general(final)}]++
	}
	if row.Serial != "" {
		b.serials[row.Serial] = append(b.serials[row.Serial], row.Unit)
		b.l.Serials.Units++
	} else {
		b.l.Serials.Without++
	}
}

// key finds the attempt of a job that took custody of the key, an empty one if
// there is none.
func (u *Unit) key(final *Attempt) *Attempt {
	for _, a := range slices.Backward(u.Attempts) {
		if a.KeyFingerprint != "" && (a.Job == final.Job || final.Rework) {
			return a
		}
	}
	return &Attempt{}
}

func (b *lotBuilder) finish() {
	l := b.l
	if !b.first.IsZero() {
		l.First, l.Last = stamp(b.first), stamp(l.created)
	}
	if l.Ordered > 0 {
		l.Remaining = max(0, l.Ordered-l.Counts.Pass)
	}
	l.FirstPass = yield(l.Counts.FirstPass, l.Counts.yielded())
	l.Final = yield(l.Counts.Pass, l.Counts.yielded())
	for r, n := range b.reasons {
		r.Units = n
		l.Reasons = append(l.Reasons, r)
	}
	slices.SortFunc(l.Reasons, func(a, b ScrapReason) int {
		return cmp.Or(cmp.Compare(b.Units, a.Units), slices.Index(states, a.State)-slices.Index(states, b.State),
			cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Reason, b.Reason))
	})
	l.Cycle = cycle(b.cycles)
	b.serialGaps()
}

var unitTalk = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`), "<unit>"},
	{regexp.MustCompile(`\b[0-9a-f]{16,}\b`), "<hash>"},
	{regexp.MustCompile(`"(\\.|[^"\\])*"$`), `"…"`}, // what a board said last
}

// general takes out of a reason what differs from unit to unit, so that equal
// causes are counted together.
func general(a *Attempt) string {
	if a.Verdict == "" {
		return "cut off in step " + a.LastStep
	}
	s := a.Reason
	for _, t := range unitTalk {
		s = t.what.ReplaceAllString(s, t.by)
	}
	return s
}

func cycle(ms []int64) Cycle {
	c := Cycle{Units: len(ms), Histogram: []Bucket{}}
	if len(ms) == 0 {
		return c
	}
	slices.Sort(ms)
	var sum int64
	for _, v := range ms {
		sum += v
	}
	rank := func(percent int) int64 { return ms[(len(ms)*percent+99)/100-1] }
	c.MinMS, c.MeanMS, c.MaxMS = ms[0], (sum+int64(len(ms))/2)/int64(len(ms)), ms[len(ms)-1]
	c.P50MS, c.P90MS, c.P95MS, c.P99MS = rank(50), rank(90), rank(95), rank(99)
	width := bucketWidth(c.MaxMS - c.MinMS)
	from := c.MinMS - c.MinMS%width
	for at := from; at <= c.MaxMS; at += width {
		c.Histogram = append(c.Histogram, Bucket{FromMS: at, ToMS: at + width})
	}
	for _, v := range ms {
		c.Histogram[(v-from)/width].Units++
	}
	return c
}

// bucketWidth is 1, 2 or 5 times a power of ten, for at most about 20 buckets.
func bucketWidth(span int64) int64 {
	for width := int64(1); ; width *= 10 {
		for _, m := range []int64{1, 2, 5} {
			if span/(width*m) < 20 || width > math.MaxInt64/100 {
				return width * m
			}
		}
	}
}

var trailingNumber = regexp.MustCompile(`^(.*?)([0-9]{1,15})$`)

// serialGaps looks for numbers that are missing between the smallest and the
// largest of each prefix and length.
func (b *lotBuilder) serialGaps() {
	type series struct {
		prefix string
		digits int
	}
	numbers := map[series][]int64{}
	for s, units := range b.serials {
		if len(units) > 1 {
			slices.Sort(units)
			b.l.Serials.Duplicates = append(b.l.Serials.Duplicates, SerialTwice{s, units})
		}
		if m := trailingNumber.FindStringSubmatch(s); m != nil {
			n, _ := strconv.ParseInt(m[2], 10, 64) // at most 15 digits
			k := series{m[1], len(m[2])}
			numbers[k] = append(numbers[k], n)
		}
	}
	for k, list := range numbers {
		slices.Sort(list)
		for i := 1; i < len(list); i++ {
			if missing := list[i] - list[i-1] - 1; missing > 0 {
				b.l.Serials.Gaps = append(b.l.Serials.Gaps, SerialGap{
					From: fmt.Sprintf("%s%0*d", k.prefix, k.digits, list[i-1]+1),
					To:   fmt.Sprintf("%s%0*d", k.prefix, k.digits, list[i]-1), Missing: missing,
				})
			}
		}
	}
	slices.SortFunc(b.l.Serials.Gaps, func(a, b SerialGap) int {
		return cmp.Or(cmp.Compare(len(a.From), len(b.From)), strings.Compare(a.From, b.From))
	})
	slices.SortFunc(b.l.Serials.Duplicates, func(a, b SerialTwice) int { return strings.Compare(a.Serial, b.Serial) })
}

// stamp is the form of times in reports: UTC, to the millisecond.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// JSON is the report as one indented JSON object.
func (l *Lot) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(l, "", "  ")
	return append(b, '\n'), err
}

// name of the report's subject.
func (l *Lot) name() string {
	if l.All {
		return "all units"
	}
	return "lot " + l.Lot
}
