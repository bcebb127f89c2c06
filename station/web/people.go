package web

import (
	"context"
	"time"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
)

// Credentials are what somebody shows at the door: a badge, or a name with a PIN
// or a password.
type Credentials struct {
	Badge  string
	Name   string
	Secret string
	From   string // the address that asks, for the rate limit
}

// Session is somebody who has logged in.
type Session struct {
	Token   string // for the cookie
	Person  station.Person
	Expires time.Time
}

// People knows who is who and may do what. Errors of Login are
// *station.ActionError or a *DeniedError.
type People interface {
	// Login checks credentials, at a limited rate.
	Login(ctx context.Context, c Credentials) (Session, error)
	// Session finds a session by its token. With use it counts as activity, which
	// puts off the end of a session that nobody uses.
	Session(token string, use bool) (Session, bool)
	// Logout ends a session.
	Logout(token string)
}

// DeniedError is a login that did not succeed. It does not say why, but for when
// to try again.
type DeniedError struct {
	RetryAfter time.Duration // 0: at once
}

// Error says it in English; the page says it in its language.
func (e *DeniedError) Error() string {
	if e.RetryAfter > 0 {
		return "too many tries: wait"
	}
	return "badge, name, PIN or password is not right"
}

// The actions that routes ask for: those of package people, and one more.
const (
	// actBoard is to see the slots: whoever may view, and everybody where the board
	// is open.
	actBoard = people.Action("board")

	actView        = people.View
	actStart       = people.Start
	actAbort       = people.Abort
	actClear       = people.ClearSlot
	actScan        = people.ScanSerial
	actScrap       = people.Scrap
	actOpenLot     = people.OpenLot
	actCloseLot    = people.CloseLot
	actRecipes     = people.ViewRecipes
	actAudit       = people.ViewAudit
	actCertificate = people.ExportAudit
	actReprint     = people.Reprint
)

var actions = []people.Action{
	actBoard, actView, actStart, actAbort, actClear, actScan, actScrap, actOpenLot, actCloseLot, actRecipes, actAudit, actCertificate, actReprint,
}
