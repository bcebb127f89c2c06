package station

import (
	"time"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/discover"
	"github.com/provisiond/provisiond/station/views"
)

// SlotState says what a slot is doing. The page shows each with a word, a colour
// and a shape.
type SlotState string

// The states of a slot.
const (
	SlotMissing     SlotState = "missing"     // its port is not there
	SlotReady       SlotState = "ready"       // its port is there; it starts by plug-in, scan or button
	SlotWaiting     SlotState = "waiting"     // it would start, and something is not there: Reason says what
	SlotBusy        SlotState = "busy"        // a unit is in work
	SlotPass        SlotState = "pass"        // the unit in it passed
	SlotFail        SlotState = "fail"        // the unit in it failed
	SlotError       SlotState = "error"       // the station could not do its work on it
	SlotAborted     SlotState = "aborted"     // somebody stopped it
	SlotRefused     SlotState = "refused"     // the unit was refused before anything irreversible
	SlotQuarantined SlotState = "quarantined" // the unit in it is set aside
	SlotDone        SlotState = "done"        // the unit in it passed, some time ago or in an earlier run: take it out
	SlotBlocked     SlotState = "blocked"     // the slot itself is quarantined until somebody clears it
)

// SlotStates lists the states in the order of a legend.
func SlotStates() []SlotState {
	return []SlotState{
		SlotReady, SlotWaiting, SlotBusy, SlotPass, SlotFail, SlotError, SlotAborted, SlotRefused, SlotQuarantined, SlotDone, SlotBlocked, SlotMissing,
	}
}

// SlotView is what a screen shows of a slot.
type SlotView struct {
	Name      string    `json:"name"`
	Port      string    `json:"port"`             // as configured: by-path name, socket://… or sim://…
	Device    string    `json:"device,omitempty"` // where it is now, for example /dev/ttyUSB3
	Start     StartMode `json:"start"`
	State     SlotState `json:"state"`
	Since     time.Time `json:"since"` // of the state
	Simulated bool      `json:"simulated"`

	Lot            string `json:"lot,omitempty"`
	Unit           string `json:"unit,omitempty"` // base MAC
	Serial         string `json:"serial,omitempty"`
	Chip           string `json:"chip,omitempty"`
	Revision       string `json:"revision,omitempty"`
	KeyFingerprint string `json:"key_fingerprint,omitempty"`

	Step      string `json:"step,omitempty"` // in work
	StepIndex int    `json:"step_index,omitempty"`
	StepCount int    `json:"step_count,omitempty"`
	Done      int64  `json:"done,omitempty"` // bytes inside the step
	Total     int64  `json:"total,omitempty"`
	Permille  int    `json:"permille"` // of the whole run
	ElapsedMS int64  `json:"elapsed_ms,omitempty"`
	Baud      int    `json:"baud,omitempty"` // what the line carries
	OneWay    bool   `json:"one_way"`        // a step that cannot be undone is in work

	Verdict  provision.Verdict `json:"verdict,omitempty"`
	Cause    provision.Cause   `json:"cause,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	NextStep string            `json:"next_step,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`

	Failures int `json:"failures"` // in a row
}

// StartMode says what starts a unit in a slot.
type StartMode = discover.Start

// The ways to start a unit.
const (
	StartPlug   = discover.StartPlug   // its port appears
	StartScan   = discover.StartScan   // its serial number is scanned
	StartButton = discover.StartButton // somebody presses it
)

// LotView is what a screen shows of a lot.
type LotView struct {
	ID             string    `json:"id"`
	Open           bool      `json:"open"`
	Recipe         string    `json:"recipe"`
	RecipeRevision int       `json:"recipe_revision"`
	RecipeSHA256   string    `json:"recipe_sha256"`
	Chip           string    `json:"chip"`
	Profile        string    `json:"profile"`
	Quantity       int       `json:"quantity"`
	Begun          int       `json:"begun"` // units that count against the quantity
	Operator       string    `json:"operator"`
	Opened         time.Time `json:"opened"`
	Serials        string    `json:"serials,omitempty"` // none, range, file or scan
	Yield          Yield     `json:"yield"`
}

// Yield counts units by their last verdict.
type Yield = views.Yield

// Condition is one thing that must hold for the station to work.
type Condition struct {
	Name  string    `json:"name"` // for example keystore, journal, journal-disk, clock, slots, outbox-mes
	OK    bool      `json:"ok"`
	Ready bool      `json:"ready"`          // the station takes units although this does not hold
	Text  string    `json:"text,omitempty"` // what is the matter
	Next  string    `json:"next,omitempty"` // what to do about it
	Since time.Time `json:"since"`
}

// View is the station as a screen shows it.
type View struct {
	Station    string      `json:"station"`
	Version    string      `json:"version"`
	Simulated  bool        `json:"simulated"` // every slot is
	Stopping   bool        `json:"stopping"`
	Started    time.Time   `json:"started"`
	Slots      []SlotView  `json:"slots"`
	Skipped    []PortView  `json:"skipped,omitempty"` // ports that no slot is bound to
	Lots       []LotView   `json:"lots"`              // the open ones
	Today      Yield       `json:"today"`
	Conditions []Condition `json:"conditions"`
}

// PortView is a port that is there and belongs to no slot.
type PortView struct {
	Port   string `json:"port"` // the name that a slot would be bound to
	Device string `json:"device"`
	What   string `json:"what"` // the adapter's own words
}

// UnitView is a line of the history: one run on one unit.
type UnitView = views.Run

// HistoryQuery selects lines of the history, the newest first.
type HistoryQuery struct {
	Before  uint64            // only entries with a smaller index; 0: from the newest
	Limit   int               // at most 200; 0: 50
	Lot     string            // "" is any
	Unit    string            // base MAC or serial number; "" is any
	Verdict provision.Verdict // "" is any
}

// RecipeView is a recipe that a lot can be opened with.
type RecipeView struct {
	Name          string `json:"name"`
	Revision      int    `json:"revision"`
	SHA256        string `json:"sha256"`
	Chip          string `json:"chip"`
	Profile       string `json:"profile"`
	ClosesForever bool   `json:"closes_forever"`
	FlashSize     uint32 `json:"flash_size"`
	Path          string `json:"path"`
}

// LotRequest opens a lot.
type LotRequest struct {
	ID       string   `json:"id"`
	Recipe   string   `json:"recipe"` // its name
	Quantity int      `json:"quantity"`
	Serials  Serials  `json:"serials"`
	Slots    []string `json:"slots,omitempty"` // none means all
	// Forever agrees that units of this lot close for ever, where the recipe does so.
	Forever bool `json:"closed_is_forever,omitempty"`
}

// Serials says where the serial numbers of a lot come from.
type Serials struct {
	From  string   `json:"from"`            // none, range, list or scan
	First string   `json:"first,omitempty"` // of a range: PREFIX000123, counted in its last digits
	List  []string `json:"list,omitempty"`  // of a list, in their order
}

// Person is who does something at the station.
type Person struct {
	Name string // for the journal
	Role string // operator, engineer or auditor
}

// ScanResult is what a scanned code led to.
type ScanResult struct {
	Text string `json:"text"`           // for the person, already in words
	Slot string `json:"slot,omitempty"` // that it concerned
}
