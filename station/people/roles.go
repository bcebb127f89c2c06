package people

import "slices"

// Role is what a person is at the station.
type Role string

// The roles.
const (
	Operator Role = "operator"
	Engineer Role = "engineer"
	Auditor  Role = "auditor"
)

// Roles lists the roles.
func Roles() []Role { return []Role{Operator, Engineer, Auditor} }

// Action is something that a person does at the station.
type Action string

// The actions. What only shows is above, what changes something below.
const (
	View        Action = "view"         // slots, lots, yield, history
	ViewRecipes Action = "view-recipes" // recipes and plans, bit by bit
	ViewAudit   Action = "view-audit"   // journal, certificates, reconciliation
	ExportAudit Action = "export-audit" // the same, as files

	Start        Action = "start"         // a unit
	Abort        Action = "abort"         // a unit, at its next safe step
	ScanSerial   Action = "scan-serial"   // give a unit its serial number
	OpenLot      Action = "open-lot"      // of a recipe that is there
	CloseLot     Action = "close-lot"     //
	Scrap        Action = "scrap"         // mark a unit as waste
	Reprint      Action = "reprint"       // a label; it is journaled
	Rework       Action = "rework"        // let a finished or failed unit in once more
	ReleaseUnit  Action = "release-unit"  // decide about a quarantined unit
	ClearSlot    Action = "clear-slot"    // end a slot's quarantine
	ReloadConfig Action = "reload-config" //
)

// rights says who may do what. What is not here, nobody may.
var rights = map[Action][]Role{
	View:        {Operator, Engineer, Auditor},
	ViewRecipes: {Engineer, Auditor},
	ViewAudit:   {Engineer, Auditor},
	ExportAudit: {Engineer, Auditor},

	Start:        {Operator, Engineer},
	Abort:        {Operator, Engineer},
	ScanSerial:   {Operator, Engineer},
	OpenLot:      {Operator, Engineer},
	CloseLot:     {Operator, Engineer},
	Scrap:        {Operator, Engineer},
	Reprint:      {Operator, Engineer},
	Rework:       {Engineer},
	ReleaseUnit:  {Engineer},
	ClearSlot:    {Engineer},
	ReloadConfig: {Engineer},
}

// Actions lists the actions, in the order of the alphabet.
func Actions() []Action {
	list := make([]Action, 0, len(rights))
	for a := range rights {
		list = append(list, a)
	}
	slices.Sort(list)
	return list
}

// Authorize reports whether a role may do an action. An unknown role may
// nothing, and nobody may an unknown action.
func Authorize(r Role, a Action) bool { return slices.Contains(rights[a], r) }
