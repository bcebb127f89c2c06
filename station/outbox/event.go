package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/report"
)

// Schema names the form of an event. Members may be added to it; none changes
// its name or its meaning, and none goes away, without another number.
const Schema = "provisiond.event/1"

// TypeFinished is the type of the event that tells how a run on a unit ended.
// The other types are "operator." and "station." with the step of their entry.
const TypeFinished = "unit.finished"

// Event is what is told of one journal entry (docs/factory.md).
type Event struct {
	Schema      string `json:"schema"`
	ID          string `json:"id"` // <journal>-<index>: the same for each repeat, and for nothing else
	Type        string `json:"type"`
	Time        string `json:"time"` // of the entry: UTC, RFC 3339, nanoseconds
	Station     string `json:"station"`
	Journal     string `json:"journal"` // its id
	Index       uint64 `json:"index"`
	EntrySHA256 string `json:"entry_sha256"` // the entry's hash in the journal
	Step        string `json:"step"`
	Slot        string `json:"slot"`
	Operator    string `json:"operator"`
	Lot         string `json:"lot"`
	Job         string `json:"job"`
	Unit        *Unit  `json:"unit,omitempty"` // of unit.finished always

	// Of unit.finished only.
	Result *Result `json:"result,omitempty"`
	Recipe *Recipe `json:"recipe,omitempty"`
	Key    *Key    `json:"key,omitempty"` // where a key was made
	Images []Image `json:"images,omitempty"`

	// Data is the payload of an operator's or station's entry.
	Data json.RawMessage `json:"data,omitempty"`
	// Incomplete says what is missing in this event, and why: the journal has it.
	Incomplete string `json:"incomplete,omitempty"`

	// Body is the event in JSON: what is sent.
	Body []byte `json:"-"`

	at   time.Time
	hash journal.Hash
}

// Unit is the board.
type Unit struct {
	MAC       string `json:"mac"` // empty if it was never read
	Serial    string `json:"serial"`
	Simulated bool   `json:"simulated"`
	Chip      string `json:"chip"`
	Revision  string `json:"revision"`
	FlashID   string `json:"flash_id"`
	FlashSize uint32 `json:"flash_size"`
}

// Result is how the run ended.
type Result struct {
	Verdict      provision.Verdict  `json:"verdict"`
	Cause        provision.Cause    `json:"cause"` // empty with PASS
	Reason       string             `json:"reason"`
	NextStep     string             `json:"next_step"`
	OneWayBegun  bool               `json:"one_way_begun"`
	Begun        string             `json:"begun"`
	ElapsedMS    int64              `json:"elapsed_ms"`
	FirstEntry   uint64             `json:"first_entry"` // of the attempt
	PlanSHA256   string             `json:"plan_sha256"`
	TableSHA256  string             `json:"table_sha256"`
	Closing      *provision.Closing `json:"closing,omitempty"`
	Warnings     []string           `json:"warnings,omitempty"`
	Continuation bool               `json:"continues"` // of an earlier attempt of the same job
	Rework       bool               `json:"rework"`    // that a person ordered
	Tool         string             `json:"tool"`
}

// Recipe is the product.
type Recipe struct {
	Name     string `json:"name"`
	Revision int    `json:"revision"`
	SHA256   string `json:"sha256"`
	Profile  string `json:"profile"`
}

// Key names the unit's key.
type Key struct {
	Fingerprint string `json:"fingerprint"`
	Ref         string `json:"ref"`
	Version     int    `json:"version"`
	Store       string `json:"store"`
}

// Image is a region of the flash as it was verified.
type Image struct {
	Name             string `json:"name"`
	Offset           uint32 `json:"offset"`
	Length           int    `json:"length"`
	Encrypted        bool   `json:"encrypted"`
	PlaintextSHA256  string `json:"plaintext_sha256"`
	CiphertextSHA256 string `json:"ciphertext_sha256"`
}

// maxData bounds an event: NATS takes 1 MiB at the most, and so do many others.
const maxData = 64 << 10

// EventID is the id of the event of an entry.
func EventID(journalID string, index uint64) string { return fmt.Sprintf("%s-%d", journalID, index) }

// TypeOf is the type of the event of an entry; empty if there is none.
func TypeOf(kind journal.Kind, step string) string {
	switch kind {
	case journal.KindVerdict:
		return TypeFinished
	case journal.KindOperator, journal.KindStation:
		return string(kind) + "." + token(step)
	case journal.KindIntent, journal.KindObserved:
	}
	return ""
}

// token makes of a step's name one that subjects and file names can hold.
func token(step string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, step)
}

var patternForm = regexp.MustCompile(`^(\*|(unit|operator|station)\.(\*|[a-z0-9_-]+))$`)

// CheckPatterns says whether they select events.
func CheckPatterns(patterns []string) error {
	for i, p := range patterns {
		if !patternForm.MatchString(p) {
			return fmt.Errorf("events[%d]: %q selects no event: write unit.finished, operator.STEP, station.STEP, one of these with * behind the dot, or *", i, p)
		}
	}
	return nil
}

// Matches says whether one of the patterns selects the type. No patterns select all.
func Matches(patterns []string, typ string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		if head, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(typ, head)
		}
		return p == typ
	})
}

// window is how many entries back an attempt may have begun. 64 slots write
// about 2,000 entries while one works on a unit. What an event says depends on
// this many entries before it and on nothing else, so a repeat has the same
// bytes.
const window = 1 << 16

// steps are those whose entries tell what an event repeats.
var steps = map[string]bool{
	"connect": true, "inspect": true, "plan": true, "verify-flash": true, "custody": true, "burn-key": true, "close": true, "proof": true,
}

// projector folds entries into events. A slot works on one unit at a time.
type projector struct {
	journal string
	open    map[string]attempt // by slot
}

// attempt is what is kept of an attempt in work.
type attempt struct {
	entries []journal.Entry
	cut     []journal.Entry // of the slot's attempt before, if it had no end
	prune   int             // number of entries at which the old ones are dropped
}

func newProjector(id string) *projector {
	return &projector{journal: id, open: map[string]attempt{}}
}

// fold takes an entry that needs no event.
func (p *projector) fold(e journal.Entry) {
	switch e.Kind {
	case journal.KindIntent:
		if e.Step == "connect" {
			p.begin(e.Slot)
		}
		p.keep(e)
	case journal.KindObserved:
		p.keep(e)
	case journal.KindVerdict:
		delete(p.open, e.Slot)
	case journal.KindOperator, journal.KindStation:
	}
}

// begin forgets the slot's attempt, unless it was cut off on a known unit: a unit
// that was closed for ever meanwhile tells nothing in its next attempt.
func (p *projector) begin(slot string) {
	a := p.open[slot]
	if slices.ContainsFunc(a.entries, func(e journal.Entry) bool { return e.Unit != chip.MAC{} }) {
		a.cut = a.entries
	}
	p.open[slot] = attempt{cut: a.cut}
}

func (p *projector) keep(e journal.Entry) {
	if !steps[e.Step] {
		return
	}
	a := p.open[e.Slot]
	if a.prune = max(a.prune, 64); len(a.entries) >= a.prune { // no attempt has so many, unless nobody finishes it
		a.entries = inWindow(a.entries, e.Index)
		a.prune = 2 * len(a.entries)
	}
	a.entries = append(a.entries, e)
	p.open[e.Slot] = a
}

// inWindow leaves the entries that an event of entry index may use.
func inWindow(list []journal.Entry, index uint64) []journal.Entry {
	first := 0
	for first < len(list) && list[first].Index+window <= index {
		first++
	}
	return slices.Clone(list[first:])
}

// event folds an entry, whose hash is given, and gives its event; nil if it has
// none.
func (p *projector) event(e journal.Entry, hash journal.Hash) *Event {
	defer p.fold(e)
	typ := TypeOf(e.Kind, e.Step)
	if typ == "" {
		return nil
	}
	ev := &Event{
		Schema: Schema, ID: EventID(p.journal, e.Index), Type: typ, Time: Stamp(e.Time),
		Station: e.Station, Journal: p.journal, Index: e.Index, EntrySHA256: hash.String(),
		Step: e.Step, Slot: e.Slot, Job: e.Job, at: e.Time, hash: hash,
	}
	if e.Kind == journal.KindVerdict {
		a := p.open[e.Slot]
		ev.finish(e, inWindow(a.entries, e.Index), inWindow(a.cut, e.Index))
	} else {
		ev.tell(e)
	}
	body, err := encode(ev)
	if err != nil { // cannot be: everything in it came from JSON
		ev.Data, ev.Incomplete = nil, err.Error()
		body, _ = encode(ev)
	}
	ev.Body = body
	return ev
}

// tell takes over what a person or the station did.
func (ev *Event) tell(e journal.Entry) {
	if e.Unit != (chip.MAC{}) {
		ev.Unit = &Unit{MAC: e.Unit.String(), Simulated: e.Unit.LocallyAdministered()}
	}
	var who struct {
		Operator string `json:"operator"`
		Lot      string `json:"lot"`
		Serial   string `json:"serial"`
	}
	if err := json.Unmarshal(e.Payload, &who); err == nil { // else they have another meaning there
		ev.Operator, ev.Lot = who.Operator, who.Lot
		if ev.Unit != nil {
			ev.Unit.Serial = who.Serial
		}
	}
	if len(e.Payload) > maxData {
		ev.Incomplete = fmt.Sprintf("data has %d bytes, more than %d", len(e.Payload), maxData)
		return
	}
	ev.Data = e.Payload
}

// finish takes over what the attempt's entries tell.
func (ev *Event) finish(e journal.Entry, attempt, cut []journal.Entry) {
	if len(attempt) > 0 {
		// A verdict on another unit, or on none, is not of this attempt: the one
		// before was cut off.
		if last := attempt[len(attempt)-1]; last.Unit != (chip.MAC{}) && last.Unit != e.Unit {
			attempt = nil
		}
	}
	a, err := project(append(attempt, e))
	if err != nil {
		ev.Incomplete = err.Error()
		if a, err = project([]journal.Entry{e}); err != nil {
			a = &report.Attempt{MAC: e.Unit}
		}
	}
	fillFrom(a, e, cut)
	var v struct {
		Warnings []string `json:"warnings"`
	}
	_ = json.Unmarshal(e.Payload, &v) // project has complained already
	ev.Operator, ev.Lot = a.Operator, a.Lot
	ev.Unit = &Unit{
		Serial: a.Serial, Simulated: e.Unit.LocallyAdministered(), Chip: a.Chip, Revision: a.Revision,
		FlashID: a.FlashID, FlashSize: a.FlashSize,
	}
	if e.Unit != (chip.MAC{}) {
		ev.Unit.MAC = e.Unit.String()
	}
	ev.Result = &Result{
		Verdict: a.Verdict, Cause: a.Cause, Reason: clip(a.Reason), NextStep: clip(a.NextStep), OneWayBegun: a.OneWayBegun,
		Begun: Stamp(a.Begun), ElapsedMS: a.ElapsedMS, FirstEntry: e.Index, PlanSHA256: a.PlanSHA256, TableSHA256: a.TableSHA256,
		Closing: a.Closing, Warnings: v.Warnings, Continuation: a.Continues, Rework: a.Rework, Tool: a.Tool,
	}
	if len(a.Entries) > 0 {
		ev.Result.FirstEntry = a.Entries[0]
	}
	ev.Recipe = &Recipe{Name: a.Recipe, Revision: a.RecipeRevision, SHA256: a.RecipeSHA256, Profile: a.Profile}
	if a.KeyFingerprint != "" {
		ev.Key = &Key{Fingerprint: a.KeyFingerprint, Ref: a.KeyRef, Version: a.KeyVersion, Store: a.Store}
	}
	for _, i := range a.Images {
		ev.Images = append(ev.Images, Image{
			Name: i.Name, Offset: i.Offset, Length: i.Length, Encrypted: i.Encrypted,
			PlaintextSHA256: i.PlaintextSHA256, CiphertextSHA256: i.CiphertextSHA256,
		})
	}
}

// fillFrom takes over from the slot's attempt before what this one could not see,
// if it is the same job on the same unit.
func fillFrom(a *report.Attempt, e journal.Entry, cut []journal.Entry) {
	if len(cut) == 0 || e.Unit == (chip.MAC{}) || a.Chip != "" && a.Serial != "" {
		return
	}
	p, err := report.Project(sequence(cut))
	if err != nil {
		return // the event is complete without it
	}
	u := p.Unit(e.Unit)
	if u == nil {
		return
	}
	for _, b := range u.Attempts {
		if b.Job != e.Job {
			continue
		}
		for _, f := range []struct {
			to   *string
			from string
		}{
			{&a.Serial, b.Serial},
			{&a.Lot, b.Lot},
			{&a.Revision, b.Revision},
			{&a.FlashID, b.FlashID},
			{&a.PlanSHA256, b.PlanSHA256},
			{&a.TableSHA256, b.TableSHA256},
		} {
			if *f.to == "" {
				*f.to = f.from
			}
		}
		if a.Chip == "" {
			a.Chip, a.FlashSize = b.Chip, b.FlashSize
		}
		if a.KeyFingerprint == "" {
			a.KeyFingerprint, a.KeyRef, a.KeyVersion, a.Store = b.KeyFingerprint, b.KeyRef, b.KeyVersion, b.Store
		}
		if len(a.Images) == 0 {
			a.Images = b.Images
		}
	}
}

func sequence(entries []journal.Entry) report.Entries {
	return func(yield func(journal.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// project makes an attempt of its entries, in the way in which certificates and
// lot reports are made.
func project(entries []journal.Entry) (*report.Attempt, error) {
	p, err := report.Project(sequence(entries))
	if err != nil {
		return nil, err
	}
	all := p.Unknown
	for _, u := range p.Units {
		all = append(all, u.Attempts...)
	}
	want := entries[len(entries)-1].Index
	for _, a := range all {
		if a.VerdictAt == want && a.Verdict != "" {
			return a, nil
		}
	}
	return nil, errors.New("the entry does not tell a verdict")
}

// Stamp writes a time as the journal does; empty if it is zero.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	b := canon.AppendTime(nil, t)
	return strings.Trim(string(b), `"`)
}
