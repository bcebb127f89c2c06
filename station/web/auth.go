package web

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
)

// Token is a machine that may use the API.
type Token struct {
	Person station.Person
	SHA256 [sha256.Size]byte // of the token
}

// Tokens are the machines that may use the API.
type Tokens []Token

// LoadTokens reads a file of lines "NAME ROLE SHA-256 in hex". Empty lines and
// lines that begin with # do not count. A token itself is never in the file; make
// one with
//
//	openssl rand -hex 32 | tee token | tr -d '\n' | sha256sum
func LoadTokens(path string) (Tokens, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	var out Tokens
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		w := strings.Fields(line)
		if len(w) != 3 {
			return nil, fmt.Errorf("%s:%d: write NAME, ROLE and the SHA-256 of the token, with spaces between them", path, n)
		}
		if !slices.Contains(people.Roles(), people.Role(w[1])) {
			return nil, fmt.Errorf("%s:%d: %q is no role; write one of %v", path, n, w[1], people.Roles())
		}
		t := Token{Person: station.Person{Name: w[0], Role: w[1]}}
		// The text is not shown: somebody may have written the token itself.
		sum, err := hex.DecodeString(w[2])
		if err != nil || len(sum) != len(t.SHA256) {
			return nil, fmt.Errorf("%s:%d: the third word is no SHA-256 in hex (64 digits)", path, n)
		}
		copy(t.SHA256[:], sum)
		out = append(out, t)
	}
	return out, sc.Err()
}

// find compares with all tokens, so that the time says nothing.
func (t Tokens) find(token string) (station.Person, bool) {
	sum := sha256.Sum256([]byte(token))
	var p station.Person
	found := false
	for _, one := range t {
		if subtle.ConstantTimeCompare(sum[:], one.SHA256[:]) == 1 {
			p, found = one.Person, true
		}
	}
	return p, found
}

// viewer is who looks, and how.
type viewer struct {
	s      *Server
	lang   *lang
	theme  string
	person *station.Person // nil: nobody has logged in
	name   string          // of the person, for the screen
}

func (v viewer) may(action people.Action) bool {
	switch {
	case action == "":
		return true
	case v.person == nil:
		return action == actBoard && v.s.o.Config.OpenBoard
	case action == actBoard:
		action = people.View
	}
	return people.Authorize(people.Role(v.person.Role), action)
}

// request is a request with whoever made it.
type request struct {
	viewer
	w     http.ResponseWriter
	r     *http.Request
	token string // of the session, if there is one
}

func (q *request) by() station.Person { return *q.person }

// still reports whether whoever looks is still logged in.
func (q *request) still() bool {
	if q.token == "" {
		return true
	}
	_, ok := q.s.o.People.Session(q.token, false)
	return ok
}

const maxToken = 512

// newRequest finds out who asks. A stream that stays open is no sign that somebody
// is there, and does not put off the end of a session.
func (s *Server) newRequest(w http.ResponseWriter, r *http.Request, use bool) *request {
	q := &request{viewer: viewer{s: s, lang: s.chooseLang(r), theme: theme(r)}, w: w, r: r}
	if c, err := r.Cookie(s.cookieName(r)); err == nil && len(c.Value) <= maxToken {
		if se, ok := s.o.People.Session(c.Value, use); ok {
			q.person, q.token, q.name = &se.Person, c.Value, se.Display
		}
	}
	return q
}

// cookieName: browsers hold a cookie with the prefix to this host, to TLS and to
// all paths.
func (s *Server) cookieName(r *http.Request) string {
	if r.TLS != nil {
		return "__Host-provisiond"
	}
	return "provisiond"
}

// setCookie sets a cookie; 0 seconds are until the browser ends, fewer take it away.
func (s *Server) setCookie(w http.ResponseWriter, r *http.Request, name, value string, seconds int) {
	//nolint:gosec // Secure is set where there is TLS; without it only loopback listens
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: seconds,
		Secure: r.TLS != nil, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// from is the address that asks, without its port.
func from(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// localPath takes only paths of this server.
func localPath(s string) string {
	u, err := url.Parse(s)
	if err != nil || len(s) > 512 || u.IsAbs() || u.Host != "" || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsAny(s, "\\\r\n") {
		return "/"
	}
	return s
}
