package web

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
)

// Credentials are what somebody shows at the door: a badge, or a name with a PIN,
// or a name with a password.
type Credentials struct {
	Kind   people.Kind
	Name   string // none for a badge
	Secret string
	From   netip.Addr // that asks, for the rate limit
}

// Session is somebody who has logged in.
type Session struct {
	Token   string // for the cookie
	Person  station.Person
	Display string // the name for the screen
}

// People knows who is who. What a role may do, people.Authorize knows.
type People interface {
	// Login checks credentials, at a limited rate. A refused login is a *DeniedError.
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

// FromBook makes People of the station's file of people.
func FromBook(b *people.Book) People { return book{b} }

type book struct{ b *people.Book }

func (k book) Login(ctx context.Context, c Credentials) (Session, error) {
	secret := []byte(c.Secret)
	defer clear(secret)
	var l people.Login
	var err error
	switch c.Kind {
	case people.Badge:
		l, err = k.b.ByBadge(ctx, c.From, secret)
	case people.PIN:
		l, err = k.b.ByPIN(ctx, c.From, c.Name, secret)
	case people.Password:
		l, err = k.b.ByPassword(ctx, c.From, c.Name, secret)
	default:
		err = people.ErrDenied
	}
	var limited *people.LimitedError
	switch {
	case err == nil:
		return newSession(l.Token.Reveal(), l.Person), nil
	case errors.As(err, &limited):
		return Session{}, &DeniedError{RetryAfter: limited.After}
	case errors.Is(err, people.ErrBusy):
		return Session{}, &DeniedError{RetryAfter: time.Second}
	case errors.Is(err, people.ErrDenied):
		return Session{}, &DeniedError{}
	}
	return Session{}, &station.ActionError{Kind: station.ActionFailed, Text: "nobody can log in", Next: "an administrator mends the file of people", Err: err}
}

func (k book) Session(token string, use bool) (Session, bool) {
	find := k.b.Peek
	if use {
		find = k.b.Session
	}
	s, err := find(token)
	return newSession(token, s.Person), err == nil
}

func (k book) Logout(token string) { k.b.Logout(token) }

func newSession(token string, p people.Person) Session {
	display := p.Display
	if display == "" {
		display = p.Name
	}
	return Session{Token: token, Person: station.Person{Name: p.Name, Role: string(p.Role)}, Display: display}
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
