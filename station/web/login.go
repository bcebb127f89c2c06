package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
)

func (s *Server) pageLogin(q *request) error {
	return s.showLogin(q, http.StatusOK, nil)
}

func (s *Server) showLogin(q *request, status int, p *problem) error {
	return q.show(status, "page-login", "title.login", "", map[string]any{
		"Problem": p, "Next": localPath(q.r.FormValue("next")), "Name": q.r.PostFormValue("name"), "Password": q.r.FormValue("with") == "password",
	})
}

func (s *Server) doLogin(q *request) error {
	if err := q.r.ParseForm(); err != nil {
		return formError(err)
	}
	c := Credentials{Kind: people.PIN, Name: strings.TrimSpace(q.r.PostForm.Get("name")), Secret: q.r.PostForm.Get("secret"), From: from(q.r)}
	switch {
	case q.r.PostForm.Has("badge"):
		c.Kind, c.Name = people.Badge, ""
		c.Secret = strings.TrimSpace(q.r.PostForm.Get("badge"))
		if strings.HasPrefix(normalise(c.Secret), prefixBadge) {
			c.Secret = strings.TrimPrefix(normalise(c.Secret), prefixBadge)
		}
	case q.r.FormValue("with") == "password":
		c.Kind = people.Password
	}
	if err := s.login(q, c); err != nil {
		if q.hx() {
			return err
		}
		p := s.asProblem(q.r, err)
		q.logProblem(p)
		if p.retryAfter > 0 {
			q.w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
		}
		return s.showLogin(q, p.Status, q.loginProblem(p))
	}
	http.Redirect(q.w, q.r, localPath(q.r.PostForm.Get("next")), http.StatusSeeOther) //nolint:gosec // localPath: a path of this server
	return nil
}

func (q *request) logProblem(p *problem) {
	q.s.log.Warn("login refused", zap.Stringer("from", from(q.r)), zap.Int("status", p.Status))
}

// loginProblem says a refused login in the viewer's language.
func (q *request) loginProblem(p *problem) *problem {
	c := *p
	switch p.Status {
	case http.StatusUnauthorized:
		c.Detail = q.lang.t("error.login")
	case http.StatusTooManyRequests:
		c.Detail = q.lang.t("error.rate", p.retryAfter)
	}
	return &c
}

// login begins a session. Nobody is in before it stands in the journal.
func (s *Server) login(q *request, c Credentials) error {
	if err := errors.Join(sized("name", c.Name, maxName), sized("secret", c.Secret, maxSecret)); err != nil {
		return err
	}
	se, err := s.o.People.Login(q.r.Context(), c)
	if err != nil {
		return err
	}
	// Whoever was in before at this browser is out now: a shift changes by one scan.
	s.logout(q)
	if err := s.o.Station.Record(q.r.Context(), se.Person, "login", map[string]any{"from": c.From.String()}); err != nil {
		s.o.People.Logout(se.Token)
		return err
	}
	s.setCookie(q.w, q.r, s.cookieName(q.r), se.Token, 0)
	q.person, q.token, q.name = &se.Person, se.Token, se.Display
	return nil
}

// logout ends the session of a request, if there is one.
func (s *Server) logout(q *request) {
	if q.person == nil || q.token == "" {
		return
	}
	by := *q.person
	s.o.People.Logout(q.token)
	q.person, q.token = nil, ""
	// Somebody who leaves is out, also if the journal cannot be written.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.r.Context()), 5*time.Second)
	defer cancel()
	if err := s.o.Station.Record(ctx, by, "logout", nil); err != nil {
		s.log.Error("logout is not in the journal", zap.String("person", by.Name), zap.Error(err))
	}
}

func (s *Server) doLogout(q *request) error {
	s.logout(q)
	s.setCookie(q.w, q.r, s.cookieName(q.r), "", -1)
	if q.hx() {
		q.w.Header().Set("HX-Redirect", "/login")
		return nil
	}
	http.Redirect(q.w, q.r, "/login", http.StatusSeeOther)
	return nil
}

// The prefixes of what a scanner may send. What the station knows goes to it
// (station.Scan has the grammar); a badge, leaving, and the answer to a question
// are the page's own.
const (
	prefixSerial  = "SN:"
	prefixMAC     = "MAC:"
	prefixSlot    = "SLOT:"
	prefixLot     = "LOT:"
	prefixBadge   = "BADGE:"
	prefixCommand = "CMD:"
)

// The commands of the page itself.
const (
	cmdLogout = "CMD:LOGOUT"
	cmdYes    = "CMD:YES"
	cmdNo     = "CMD:NO"
)

// scanCode is a line of the grammar.
type scanCode struct {
	Code   string        // with … for what varies
	Key    string        // of its text on the help page
	action people.Action // that it is
	asks   bool          // the page asks before it does this
}

var scanCodes = []scanCode{
	{Code: prefixSerial + "…", Key: "code.sn", action: actScan},
	{Code: prefixMAC + "…", Key: "code.mac", action: actView},
	{Code: prefixSlot + "…", Key: "code.slot", action: actScan},
	{Code: prefixLot + "…:…:…", Key: "code.lot", action: actOpenLot},
	{Code: prefixBadge + "…", Key: "code.badge"},
	{Code: "CMD:START", Key: "code.start", action: actStart},
	{Code: "CMD:ABORT", Key: "code.abort", action: actAbort, asks: true},
	{Code: "CMD:CLEAR", Key: "code.clear", action: actClear, asks: true},
	{Code: "CMD:SCRAP", Key: "code.scrap", action: actScrap, asks: true},
	{Code: "CMD:ENDLOT", Key: "code.endlot", action: actCloseLot, asks: true},
	{Code: cmdYes, Key: "code.yes"},
	{Code: cmdNo, Key: "code.no"},
	{Code: cmdLogout, Key: "code.logout"},
}

// lookUp finds the line of a code. What nobody knows is left to the station, which
// says so.
func lookUp(code string) scanCode {
	for _, c := range scanCodes {
		prefix, _, varies := strings.Cut(c.Code, "…")
		if code == c.Code || varies && strings.HasPrefix(code, prefix) {
			return c
		}
	}
	return scanCode{action: actScan}
}

// normalise brings a code into the form of the grammar: the prefix and commands in
// capitals (scanners with a wrong keyboard setting change the case), a bare MAC and
// a bare serial number with their prefix, the rest as it is.
func normalise(code string) string {
	code = strings.TrimSpace(code)
	if code == "" {
		return ""
	}
	if mac, ok := parseMAC(code); ok {
		return prefixMAC + mac
	}
	prefix, value, ok := strings.Cut(code, ":")
	if !ok {
		return prefixSerial + code
	}
	prefix = strings.ToUpper(strings.TrimSpace(prefix)) + ":"
	value = strings.TrimSpace(value)
	switch prefix {
	case prefixCommand:
		value = strings.ToUpper(value)
	case prefixMAC:
		if mac, ok := parseMAC(value); ok {
			value = mac
		}
	}
	return prefix + value
}

// parseMAC reads a MAC as labels print it too, in capitals.
func parseMAC(s string) (string, bool) {
	mac, err := chip.ParseMAC(strings.ToLower(s))
	return mac.String(), err == nil
}

func (s *Server) doScan(q *request) error {
	code := normalise(q.r.PostFormValue("code"))
	pending := normalise(q.r.PostFormValue("pending"))
	if err := errors.Join(sized("code", code, maxCode), sized("pending", pending, maxCode)); err != nil {
		return q.scanned(nil, "", err)
	}
	switch {
	case code == "":
		return q.scanned(nil, "", nil)
	case strings.HasPrefix(code, prefixBadge):
		if err := s.login(q, Credentials{Kind: people.Badge, Secret: strings.TrimPrefix(code, prefixBadge), From: from(q.r)}); err != nil {
			return q.scanned(nil, "", err)
		}
		return q.goTo("/")
	case code == cmdLogout:
		s.logout(q)
		s.setCookie(q.w, q.r, s.cookieName(q.r), "", -1)
		return q.goTo("/login")
	case code == cmdNo:
		return q.scanned(&station.ScanResult{Text: q.lang.t("scan.dropped")}, "", nil)
	case code == cmdYes:
		if !lookUp(pending).asks {
			return q.scanned(nil, "", badInput(q.lang.t("scan.nothing-to-confirm")))
		}
		code = pending
	case lookUp(code).asks:
		return q.scanned(&station.ScanResult{Text: q.lang.t("scan.confirm", code)}, code, nil)
	}
	if !q.may(lookUp(code).action) {
		return q.scanned(nil, "", newProblem(http.StatusForbidden, "role", q.lang.t("error.role"), q.lang.t("error.role.next")))
	}
	res, err := s.o.Station.Scan(q.r.Context(), q.by(), code)
	if err != nil {
		return q.scanned(nil, "", err)
	}
	return q.scanned(&res, "", nil)
}

// scanned shows beside the field what a code led to.
func (q *request) scanned(res *station.ScanResult, pending string, err error) error {
	data := map[string]any{"Result": res, "Pending": pending}
	status := http.StatusOK
	if err != nil {
		p := q.loginProblem(q.s.asProblem(q.r, err))
		data["Problem"], status = p, p.Status
	}
	if q.hx() {
		q.render(status, "scan-result", data)
		return nil
	}
	return q.show(status, "page-scan", "title.scan", "board", data)
}

func (q *request) goTo(path string) error {
	if q.hx() {
		q.w.Header().Set("HX-Redirect", path)
		return nil
	}
	http.Redirect(q.w, q.r, path, http.StatusSeeOther)
	return nil
}
