package label

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/report"
	"github.com/provisiond/provisiond/station/outbox"
)

// StepReprint is the step of the operator's entry that asks for a label again.
const StepReprint = "label-reprint"

const reprintType = "operator." + StepReprint

// Content is what a label says of a unit. It stands in the entry of a reprint, so
// that the label follows from the journal alone.
type Content struct {
	MAC       string `json:"mac"`
	Serial    string `json:"serial"`
	Simulated bool   `json:"simulated"`
	Chip      string `json:"chip"`
	Recipe    string `json:"recipe"`
	Lot       string `json:"lot"`
	Station   string `json:"station"`
	Slot      string `json:"slot"`
	Operator  string `json:"operator"`
	Time      string `json:"time"` // of the verdict
	ID        string `json:"id"`   // of the verdict's event
}

func contentOf(e *outbox.Event) Content {
	return Content{
		MAC: e.Unit.MAC, Serial: e.Unit.Serial, Simulated: e.Unit.Simulated, Chip: e.Unit.Chip, Recipe: e.Recipe.Name, Lot: e.Lot,
		Station: e.Station, Slot: e.Slot, Operator: e.Operator, Time: e.Time, ID: e.ID,
	}
}

type reprintPayload struct {
	Operator string  `json:"operator"`
	Reason   string  `json:"reason"`
	Printer  string  `json:"printer"`
	Verdict  uint64  `json:"verdict_entry"`
	Label    Content `json:"label"`
}

// Journal is what a reprint needs of a journal. A *journal.Journal is one.
type Journal interface {
	Append(ctx context.Context, e journal.Entry) (journal.Entry, error)
	Unit(mac chip.MAC) ([]journal.Entry, error)
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
	Info() journal.Info
}

// Request asks for a unit's label again.
type Request struct {
	Printer  string // the sink's name
	Unit     chip.MAC
	Operator string
	Reason   string
}

// The errors of Reprint, for errors.Is.
var (
	// ErrNotPassed: there is no label for a unit that has not passed.
	ErrNotPassed = errors.New("label: the unit has not passed, so it gets no label")
	// ErrRequest: person, reason or printer are missing.
	ErrRequest = errors.New("label: a reprint needs a printer, a person and a reason")
)

const maxReason = 500

// Reprint writes into the journal that a person wants a unit's label again, and
// returns that entry when it is durable. The outbox prints it from there; call
// its Notify.
func Reprint(ctx context.Context, j Journal, r Request) (journal.Entry, error) {
	r.Reason = strings.TrimSpace(r.Reason)
	if outbox.CheckName(r.Printer) != nil || r.Operator == "" || r.Reason == "" || len(r.Reason) > maxReason || len(r.Operator) > journal.MaxText {
		return journal.Entry{}, ErrRequest
	}
	entries, err := report.Log{Unit: j.Unit, Entries: func(from, to uint64) report.Entries { return j.Entries(from, to) }}.UnitEntries(r.Unit)
	if errors.Is(err, report.ErrNoUnit) {
		return journal.Entry{}, fmt.Errorf("%w: the journal does not know unit %s", ErrNotPassed, r.Unit)
	}
	if err != nil {
		return journal.Entry{}, err
	}
	p, err := report.Project(func(yield func(journal.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		return journal.Entry{}, err
	}
	u := p.Unit(r.Unit)
	if u == nil || u.Final() == nil || u.Final().Verdict != provision.Pass {
		return journal.Entry{}, fmt.Errorf("%w: unit %s", ErrNotPassed, r.Unit)
	}
	a := u.Final()
	body := reprintPayload{
		Operator: r.Operator, Reason: r.Reason, Printer: r.Printer, Verdict: a.VerdictAt,
		Label: Content{
			MAC: u.MAC.String(), Serial: u.Serial(), Simulated: u.Simulated, Chip: a.Chip, Recipe: a.Recipe, Lot: a.Lot,
			Station: a.Station, Slot: a.Slot, Operator: a.Operator, Time: outbox.Stamp(a.Ended), ID: outbox.EventID(j.Info().ID, a.VerdictAt),
		},
	}
	e := journal.Entry{Unit: r.Unit, Step: StepReprint, Kind: journal.KindOperator}
	if e.Payload, err = journal.MarshalPayload(body); err != nil {
		return journal.Entry{}, err
	}
	return j.Append(ctx, e)
}
