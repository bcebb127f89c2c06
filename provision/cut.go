package provision

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
)

// journalEnd is a Journal that can be read from its end. *journal.Journal is one.
type journalEnd interface {
	Head() (size uint64, hash journal.Hash)
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
}

// cutSearch is how many entries from the journal's end are searched for the unit
// whose closing was cut off.
const cutSearch = 1 << 16

// cutClosing takes up a unit whose closing an earlier run began and did not end:
// its process was killed, or its journal failed. Such a board tells nobody any more
// who it is, so it cannot go on like others. Who it should be is told by its label,
// or without one by what this slot worked on last.
//
// If the journal holds the whole evidence and only the verdict lacks, and the board
// boots, the unit is finished. Else it is set aside, with what the closed board
// still shows: that a board is closed and boots does not say that it is this one.
// closed is the refusal that a closed board gets when no such unit is found.
func (u *unit) cutClosing(ctx context.Context, closed error) error {
	var f *Failure
	if !errors.As(closed, &f) || !f.Closed {
		return closed
	}
	past, err := u.findCutClosing()
	if err != nil {
		return err
	}
	if past == nil {
		return closed
	}
	u.mac, u.id, u.past, u.burning = past.unit, past.job, past.history, true
	u.res.Unit, u.res.Simulated, u.res.Job = u.mac.String(), u.mac.LocallyAdministered(), u.id
	u.res.Serial = u.line.Serial
	if u.fp = u.past.burnFP; u.fp != (keystore.Fingerprint{}) {
		u.custody, u.res.KeyFingerprint = true, u.fp.String()
		u.untold = true // maybe: nothing in the journal says that the store took it
	}
	shows, boots, err := u.whatClosedShows(ctx, f)
	if err != nil {
		return err
	}
	known := fmt.Sprintf("the closing of unit %s was begun and its end was not written down", u.mac)
	if u.past.proved {
		if u.res.Closing = u.past.closing; boots {
			return nil
		}
		known = fmt.Sprintf("unit %s was closed and seen to boot, and its verdict was not written down", u.mac)
	}
	return quarantine("compare the board's label with the journal: an engineer decides whether this is the unit and what becomes of it",
		"%s; the board on the line is closed (%s)", known, shows)
}

// cutUnit is a unit whose closing was cut off.
type cutUnit struct {
	history
	unit chip.MAC
	job  string
}

// findCutClosing looks for the unit, from the journal's end backwards. Nil: none.
func (u *unit) findCutClosing() (*cutUnit, error) {
	unreadable := func(err error) error {
		return &Failure{Cause: CauseJournal, Reason: "the journal cannot be read", NextStep: "run `provisiond journal verify`", Err: err}
	}
	j, ok := u.Journal.(journalEnd)
	if !ok {
		return nil, nil //nolint:nilnil // a journal that cannot tell
	}
	last, err := u.lastUnit(j)
	if err != nil {
		return nil, unreadable(err)
	}
	if last == nil || last.Job != u.job.ID(last.Unit) {
		return nil, nil //nolint:nilnil // nobody, or a unit of another job
	}
	entries, err := u.Journal.Unit(last.Unit)
	if err != nil {
		return nil, unreadable(err)
	}
	h, err := readHistory(entries, last.Job)
	if err != nil {
		return nil, unreadable(err)
	}
	if h.finished || h.quarantined || !h.intents[stageClose] {
		return nil, nil //nolint:nilnil // it has its end, or was not being closed
	}
	return &cutUnit{h, last.Unit, last.Job}, nil
}

// lastUnit is the newest entry of the unit with this label's serial number, or
// without a label of the slot's last unit.
func (u *unit) lastUnit(j journalEnd) (*journal.Entry, error) {
	const window = 256
	size, _ := j.Head()
	low := size - min(size, cutSearch)
	for to := size; to > low; {
		from := max(to-min(to, window), low)
		var part []journal.Entry
		for e, err := range j.Entries(from, to) {
			if err != nil {
				return nil, err
			}
			if e.Unit != (chip.MAC{}) && e.Job != "" && u.isMine(e) {
				part = append(part, e)
			}
		}
		if len(part) > 0 {
			return &part[len(part)-1], nil
		}
		to = from
	}
	return nil, nil //nolint:nilnil // none
}

func (u *unit) isMine(e journal.Entry) bool {
	if u.line.Serial == "" {
		return e.Slot == u.Slot
	}
	var saw struct {
		Serial string `json:"serial"`
	}
	return e.Step == stepPlan && e.Kind == journal.KindObserved && json.Unmarshal(e.Payload, &saw) == nil && saw.Serial == u.line.Serial
}

// whatClosedShows looks at the board in the ways that are left: what its loader
// says, and whether it boots. It is no evidence of who the board is.
func (u *unit) whatClosedShows(ctx context.Context, closed *Failure) (text string, boots bool, err error) {
	loader := "its ROM says that the download mode is disabled"
	var ce *rom.ConnectError
	if !errors.As(closed, &ce) {
		loader = "its loader is in Secure Download Mode"
		if info, err := u.client.SecurityInfo(ctx); err == nil {
			loader += fmt.Sprintf(" with security info %s", hex.EncodeToString(info.Bytes()))
		}
	}
	err = u.bootCheck(ctx, stepClosedBoot)
	var f *Failure
	switch {
	case err == nil:
		return loader + ", and it boots", true, nil
	case errors.As(err, &f) && f.Cause == CauseUnit:
		return loader + ", and it does not boot: " + f.Reason, false, nil
	}
	return "", false, err // the next start looks again
}
