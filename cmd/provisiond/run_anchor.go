package main

import (
	"errors"

	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station"
)

// condAnchor says whether the journal was compared with its anchor.
const condAnchor = "journal-anchor"

// watchAnchor tells of a journal that was opened while its anchor was away. A
// journal that then is not the anchored one has failed, and no unit is begun.
func (d *daemon) watchAnchor(conds *station.Conditions) {
	switch err := d.jrn.Anchored(); {
	case d.cfg.Journal.Anchor == "":
	case err == nil:
		conds.Good(condAnchor)
	case errors.Is(err, journal.ErrAnchor):
		conds.Bad(condAnchor, err.Error(), "stop the station, and find out where the newer journal is")
	default:
		conds.Warn(condAnchor, err.Error(), "bring the anchor back; the journal is believed meanwhile")
	}
}
