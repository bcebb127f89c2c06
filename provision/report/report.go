// Package report owns what a quality engineer reads: the projection of a journal
// into units and attempts, the certificate of one unit, the report of a lot, and
// the reconciliation of journals with a keystore.
//
// It promises:
//
//   - Everything comes from journal entries and key metadata. The same entries
//     give the same bytes: no wall clock, no map order, no random number.
//   - A certificate carries the entries that it was made from, each with a proof
//     that it is in the journal. Verify needs the public key and nothing else,
//     and makes every statement again from those entries.
//   - Simulated units are marked, and no yield counts them.
//   - No key is read, and none is written: keys appear as fingerprints.
package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// Entries is a journal, or a part of one, in its order. (*journal.Journal).Entries
// gives it.
type Entries = iter.Seq2[journal.Entry, error]

// Unit is one board with everything that was done to it.
type Unit struct {
	MAC       chip.MAC
	Simulated bool
	Attempts  []*Attempt // in the order of their begin
	Reworks   []Rework
}

// Rework is what a person decided about a unit.
type Rework struct {
	Station  string
	Index    uint64
	Time     time.Time
	Operator string
	Reason   string
}

// Attempt is one run of the engine on one unit: from its connect to its verdict.
type Attempt struct {
	MAC                           chip.MAC // zero if it was never read
	Station, Slot, Operator, Lot  string
	Serial, Tool, Port            string
	Job, Recipe, RecipeSHA256     string
	RecipeRevision                int
	Profile, Chip, Revision       string
	FlashID                       string
	FlashSize                     uint32
	Simulated, Continues          bool
	PlanSHA256, TableSHA256       string
	Advisories                    []string           // ids, as the plan's entry names them
	Before, After                 []efuse.BlockWords // as read; a readable key is its fingerprint
	BeforeErrors, AfterErrors     []efuse.ErrorRegister
	Security                      *provision.Security // nil: not written down in those days
	KeyFingerprint, KeyRef, Store string
	OTATokenSHA256                string // of the unit's token, hex; empty: it has none
	ECIESPublicKey                string // hex
	KeyVersion                    int
	KeyBlock                      string
	Images                        []Image // verified in flash
	BootText                      string
	Closing                       *provision.Closing

	Begun, Ended time.Time
	KeyBurn      time.Time // when the intent to burn the key was written; zero: none
	KeyBurnIndex uint64    // of that intent
	KeyBurnDone  bool      // and the key was read back
	BurnedFP     string    // the fingerprint that the intent names
	CustodyFP    string    // the fingerprint that the store was asked to keep
	OneWayBegun  bool      // by the verdict, or by the intent of a burn
	Rework       bool      // it was to write the flash of a unit that has its key
	Rewrote      bool      // and it began to

	Verdict     provision.Verdict // empty: the run was cut off
	Cause       provision.Cause
	Reason      string
	NextStep    string
	ElapsedMS   int64
	LastStep    string // the step of the last entry
	Entries     []uint64
	VerdictAt   uint64 // index of the verdict's entry, if there is a verdict
	lastEntryAt time.Time
}

// Image is one region of the flash as it was verified.
type Image struct {
	Name             string `json:"name"`
	Offset           uint32 `json:"offset"`
	Length           int    `json:"length"`
	Encrypted        bool   `json:"encrypted"`
	MD5              string `json:"md5"`
	PlaintextSHA256  string `json:"plaintext_sha256"`
	CiphertextSHA256 string `json:"ciphertext_sha256"`
}

// Projection is what journals tell about units.
type Projection struct {
	Units []*Unit
	// Unknown are attempts that ended before the board had told its MAC.
	Unknown     []*Attempt
	Stations    []string
	First, Last time.Time // of the entries
	Entries     uint64
}

// Unit finds a unit by its MAC; nil if no journal knows it.
func (p *Projection) Unit(mac chip.MAC) *Unit {
	for _, u := range p.Units {
		if u.MAC == mac {
			return u
		}
	}
	return nil
}

// Project reads journals, one per station. Units are in the order in which they
// were first seen.
func Project(journals ...Entries) (*Projection, error) {
	return project(journals, func(*Attempt) {})
}

// ProjectLot is Project without what a lot report does not need: it keeps no
// eFuses, images, boot texts and indexes between an attempt's first and last. So
// a unit takes about a kilobyte.
func ProjectLot(journals ...Entries) (*Projection, error) {
	return project(journals, func(a *Attempt) {
		a.Before, a.After, a.BeforeErrors, a.AfterErrors, a.Images, a.Closing = nil, nil, nil, nil, nil, nil
		a.BootText, a.KeyRef = "", ""
		a.Entries = []uint64{a.Entries[0], a.Entries[len(a.Entries)-1]}
	})
}

func project(journals []Entries, slim func(*Attempt)) (*Projection, error) {
	p := &Projection{}
	units := map[chip.MAC]*Unit{}
	unit := func(mac chip.MAC) *Unit {
		u := units[mac]
		if u == nil {
			u = &Unit{MAC: mac, Simulated: mac.LocallyAdministered()}
			units[mac] = u
			p.Units = append(p.Units, u)
		}
		return u
	}
	take := func(a *Attempt) {
		slim(a)
		if a.MAC == (chip.MAC{}) {
			p.Unknown = append(p.Unknown, a)
			return
		}
		u := unit(a.MAC)
		u.Attempts = append(u.Attempts, a)
	}
	for _, entries := range journals {
		f := NewFolder()
		for e, err := range entries {
			if err != nil {
				return nil, err
			}
			p.note(e)
			if r, ok := rework(e); ok {
				u := unit(e.Unit)
				u.Reworks = append(u.Reworks, r)
				continue
			}
			done, err := f.Add(e)
			if err != nil {
				return nil, err
			}
			if done != nil {
				take(done)
			}
		}
		for _, a := range f.Rest() {
			take(a)
		}
	}
	for _, u := range p.Units {
		slices.SortStableFunc(u.Attempts, before)
	}
	slices.SortStableFunc(p.Unknown, before)
	slices.SortStableFunc(p.Units, func(a, b *Unit) int {
		return cmp.Or(a.first().Compare(b.first()), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return p, nil
}

func (p *Projection) note(e journal.Entry) {
	if p.Entries == 0 || e.Time.Before(p.First) {
		p.First = e.Time
	}
	if e.Time.After(p.Last) {
		p.Last = e.Time
	}
	p.Entries++
	if at, found := slices.BinarySearch(p.Stations, e.Station); !found {
		p.Stations = slices.Insert(p.Stations, at, e.Station)
	}
}

func before(a, b *Attempt) int {
	return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.Station, b.Station), cmp.Compare(a.Entries[0], b.Entries[0]))
}

func (u *Unit) first() time.Time {
	if len(u.Attempts) > 0 {
		return u.Attempts[0].Begun
	}
	return u.Reworks[0].Time
}

// StepRework is the step of the operator's entry that allows a rework.
const StepRework = provision.StepRework

func rework(e journal.Entry) (Rework, bool) {
	if e.Kind != journal.KindOperator || e.Unit == (chip.MAC{}) || e.Step != StepRework {
		return Rework{}, false
	}
	var body struct {
		Operator string `json:"operator"`
		Reason   string `json:"reason"`
	}
	_ = json.Unmarshal(e.Payload, &body) // what a person wrote may have another form; that it is there counts
	return Rework{Station: e.Station, Index: e.Index, Time: e.Time, Operator: body.Operator, Reason: body.Reason}, true
}

// Final is the attempt that tells what became of the unit: the last one with a
// verdict, but a refusal does not undo what an earlier attempt came to. (A
// finished unit that is put into the fixture again is refused, and stays PASS.)
// The same holds for a rework that wrote nothing.
// It is nil for a unit without attempts.
func (u *Unit) Final() *Attempt {
	var final *Attempt
	for _, a := range u.Attempts {
		switch {
		case final == nil:
			final = a
		case a.Verdict == "" && !a.OneWayBegun && !a.Rewrote, a.Rework && !a.Rewrote:
		case a.Cause == provision.CauseRefused:
			if final.Cause == provision.CauseRefused || final.Verdict == "" && !final.OneWayBegun && !final.Rewrote {
				final = a
			}
		default:
			final = a
		}
	}
	return final
}

// changedNothing reports an attempt that left the unit as it was.
func (a *Attempt) changedNothing() bool {
	return a.Cause == provision.CauseRefused || a.Rework && !a.Rewrote
}

// Serial is the serial number that was scanned last.
func (u *Unit) Serial() string {
	for _, a := range slices.Backward(u.Attempts) {
		if a.Serial != "" {
			return a.Serial
		}
	}
	return ""
}

// The engine's steps that are read here.
const (
	stepConnect = "connect"
	stepInspect = "inspect"
	stepPlan    = "plan"
	stepFlash   = "flash"
	stepVerify  = "verify-flash"
	stepCustody = "custody"
	stepBurnKey = "burn-key"
	stepBoot    = "boot-check"
	stepProof   = "proof"
)

// payload has the members that are read of the engine's entries.
type payload struct {
	Operator       string                `json:"operator"`
	Port           string                `json:"port"`
	Recipe         string                `json:"recipe"`
	RecipeRevision int                   `json:"recipe_revision"`
	RecipeSHA256   string                `json:"recipe_sha256"`
	Profile        string                `json:"profile"`
	Lot            string                `json:"lot"`
	Serial         string                `json:"serial"`
	Tool           string                `json:"tool"`
	Chip           string                `json:"chip"`
	Revision       string                `json:"revision"`
	EFuse          []efuse.BlockWords    `json:"efuse"`
	EFuseErrors    []efuse.ErrorRegister `json:"efuse_errors"`
	FlashID        string                `json:"flash_id"`
	FlashSize      uint32                `json:"flash_size"`
	Outcome        string                `json:"outcome"`
	ReworkReason   string                `json:"rework_reason"`
	PlanSHA256     string                `json:"plan_sha256"`
	TableSHA256    string                `json:"table_sha256"`
	Advisories     []string              `json:"advisories"`
	Security       *provision.Security   `json:"security"`
	OTAToken       string                `json:"ota_token_sha256"`
	ECIES          string                `json:"ecies_public_key"`
	Continues      bool                  `json:"continues"`
	Regions        json.RawMessage       `json:"regions"` // a list, or how many
	KeyFingerprint string                `json:"key_fingerprint"`
	KeyRef         string                `json:"key_ref"`
	KeyVersion     int                   `json:"key_version"`
	Store          string                `json:"store"`
	Block          string                `json:"block"`
	Text           string                `json:"text"`
	Closing        *provision.Closing    `json:"closing"`
	Verdict        provision.Verdict     `json:"verdict"`
	Cause          provision.Cause       `json:"cause"`
	Reason         string                `json:"reason"`
	NextStep       string                `json:"next_step"`
	OneWayBegun    bool                  `json:"one_way_begun"`
	ElapsedMS      int64                 `json:"elapsed_ms"`
}

// Folder folds entries into attempts. A slot works on one unit at a time, so an
// entry belongs to its slot's open attempt also before the unit is known.
type Folder struct {
	open map[string]*Attempt // by slot
}

// NewFolder begins with the first entry of a journal, or with one that opens an
// attempt.
func NewFolder() *Folder { return &Folder{open: map[string]*Attempt{}} }

// Add takes the next entry and gives an attempt that is complete now, if any.
func (f *Folder) Add(e journal.Entry) (*Attempt, error) {
	switch e.Kind {
	case journal.KindIntent, journal.KindObserved, journal.KindVerdict:
	case journal.KindOperator, journal.KindStation:
		return nil, nil // not about an attempt
	}
	var p payload
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		var te *json.UnmarshalTypeError
		if !errors.As(err, &te) {
			return nil, fmt.Errorf("journal entry %d: %w", e.Index, err)
		}
		return nil, fmt.Errorf("journal entry %d: member %s has another type than this build knows: use the provisiond that wrote it, or a newer one", e.Index, te.Field)
	}
	var cut *Attempt
	a := f.open[e.Slot]
	begins := e.Kind == journal.KindIntent && e.Step == stepConnect
	if a != nil && (begins || a.MAC != (chip.MAC{}) && e.Unit != (chip.MAC{}) && a.MAC != e.Unit) {
		cut, a = a, nil // no verdict: the station stopped in the middle
	}
	if a == nil {
		a = &Attempt{Station: e.Station, Slot: e.Slot, Begun: e.Time}
		f.open[e.Slot] = a
	}
	if err := a.take(e, p); err != nil {
		return nil, fmt.Errorf("journal entry %d: %w", e.Index, err)
	}
	if e.Kind == journal.KindVerdict {
		delete(f.open, e.Slot)
		if cut != nil { // cannot be: a verdict does not begin an attempt
			return nil, fmt.Errorf("journal entry %d: a verdict on unit %s follows a step on unit %s in slot %s", e.Index, e.Unit, cut.MAC, e.Slot)
		}
		return a, nil
	}
	return cut, nil
}

// Rest gives the attempts that have no end.
func (f *Folder) Rest() []*Attempt {
	var out []*Attempt
	for _, a := range f.open {
		out = append(out, a)
	}
	slices.SortFunc(out, before)
	return out
}

func (a *Attempt) take(e journal.Entry, p payload) error {
	a.Entries = append(a.Entries, e.Index)
	a.LastStep, a.lastEntryAt = e.Step, e.Time
	if e.Unit != (chip.MAC{}) {
		a.MAC, a.Simulated = e.Unit, e.Unit.LocallyAdministered()
	}
	if e.Job != "" {
		a.Job = e.Job
	}
	keep(&a.Operator, p.Operator)
	switch e.Kind {
	case journal.KindIntent:
		a.intend(e, p)
	case journal.KindObserved:
		return a.observe(e, p)
	case journal.KindVerdict:
		a.Verdict, a.Cause, a.Reason, a.NextStep, a.ElapsedMS = p.Verdict, p.Cause, p.Reason, p.NextStep, p.ElapsedMS
		a.Ended, a.VerdictAt = e.Time, e.Index
		a.OneWayBegun = a.OneWayBegun || p.OneWayBegun
		if len(p.EFuse) > 0 {
			a.After, a.AfterErrors = p.EFuse, p.EFuseErrors
		}
		if p.Closing != nil {
			a.Closing = p.Closing
		}
	case journal.KindOperator, journal.KindStation:
	}
	return nil
}

func (a *Attempt) intend(e journal.Entry, p payload) {
	switch e.Step {
	case stepConnect, stepPlan:
		a.Rework = a.Rework || p.ReworkReason != ""
		keep(&a.Port, p.Port)
		keep(&a.Recipe, p.Recipe)
		keep(&a.RecipeSHA256, p.RecipeSHA256)
		keep(&a.Profile, p.Profile)
		keep(&a.Lot, p.Lot)
		keep(&a.Serial, p.Serial)
		keep(&a.Tool, p.Tool)
		if p.RecipeRevision != 0 {
			a.RecipeRevision = p.RecipeRevision
		}
	case stepFlash:
		a.Rewrote = a.Rework
	case stepCustody:
		a.CustodyFP = p.KeyFingerprint
	case stepBurnKey:
		a.KeyBurn, a.KeyBurnIndex, a.BurnedFP, a.OneWayBegun = e.Time, e.Index, p.KeyFingerprint, true
		keep(&a.KeyBlock, p.Block)
		a.KeyBurnDone = false
	}
}

func (a *Attempt) observe(e journal.Entry, p payload) error {
	done := p.Outcome == "done"
	switch e.Step {
	case stepConnect, stepInspect:
		keep(&a.Chip, p.Chip)
		keep(&a.Revision, p.Revision)
		keep(&a.FlashID, p.FlashID)
		if p.FlashSize != 0 {
			a.FlashSize = p.FlashSize
		}
		if len(p.EFuse) > 0 {
			a.Before, a.BeforeErrors = p.EFuse, p.EFuseErrors
		}
	case stepPlan:
		keep(&a.Serial, p.Serial)
		keep(&a.Lot, p.Lot)
		keep(&a.PlanSHA256, p.PlanSHA256)
		keep(&a.TableSHA256, p.TableSHA256)
		if len(p.Advisories) > 0 {
			a.Advisories = p.Advisories
		}
		if p.Security != nil {
			a.Security = p.Security
		}
		a.Continues = p.Continues
	case stepVerify:
		if done && len(p.Regions) > 0 && p.Regions[0] == '[' {
			a.Images = nil
			if err := json.Unmarshal(p.Regions, &a.Images); err != nil {
				return fmt.Errorf("regions: %w", err)
			}
		}
	case stepCustody:
		if done {
			a.KeyFingerprint, a.KeyRef, a.KeyVersion, a.Store = p.KeyFingerprint, p.KeyRef, p.KeyVersion, p.Store
			a.OTATokenSHA256, a.ECIESPublicKey = p.OTAToken, p.ECIES
		}
	case stepBurnKey:
		a.KeyBurnDone = done
	case stepBoot, stepProof:
		keep(&a.BootText, p.Text)
	}
	if p.Closing != nil {
		a.Closing = p.Closing
	}
	return nil
}

// keep takes a value over if there is one.
func keep(dst *string, v string) {
	if v != "" {
		*dst = v
	}
}
