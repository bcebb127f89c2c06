package web

import (
	"fmt"
	"net/http"
	"os"
	"strings"

	"go.uber.org/zap"
)

// Limits of a request's body.
const (
	maxForm = 64 << 10
	maxLot  = 1 << 20 // a list of serial numbers
)

// csp allows what lies on this server, and nothing inside a page.
const csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// protect is what holds for every request.
func (s *Server) protect(next http.Handler) http.Handler {
	machine, _ := os.Hostname() // without one, no name is added
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, newProblem(http.StatusForbidden, "cross-origin", "another site's page made this request", "open the station's own page"))
	}))
	next = cross.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", csp)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), usb=(), serial=()")
		defer func() {
			e := recover()
			if e == nil {
				return
			}
			if e == http.ErrAbortHandler { //nolint:errorlint // a panic's value, compared as net/http does
				panic(e)
			}
			s.log.Error("handler panicked", zap.String("path", r.URL.Path), zap.String("panic", fmt.Sprint(e)), zap.Stack("stack"))
			// If something was sent already this changes nothing; the client sees the cut.
			writeProblem(w, newProblem(http.StatusInternalServerError, "internal", "the station could not answer", "read the station's log"))
		}()
		if !s.o.Config.knows(r.Host, machine) {
			writeProblem(w, newProblem(http.StatusMisdirectedRequest, "host", "this station is not known under that name", "add the name to web.hosts"))
			return
		}
		if len(r.URL.RawQuery) > 2048 || len(r.URL.Path) > 1024 {
			writeProblem(w, newProblem(http.StatusRequestURITooLong, "too-large", "the address is too long", ""))
			return
		}
		limit := int64(maxForm)
		if r.Method == http.MethodPost && (r.URL.Path == "/lots" || r.URL.Path == apiRoot+"/lots") {
			limit = maxLot
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

// sized checks the length of a text from outside.
func sized(name, value string, limit int) error {
	if len(value) > limit {
		return badInput(fmt.Sprintf("%s has %d bytes, at most %d are taken", name, len(value), limit))
	}
	if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }); i >= 0 {
		return badInput(fmt.Sprintf("%s holds a character that cannot be printed, at byte %d", name, i))
	}
	return nil
}

// Longest texts.
const (
	maxName   = 64
	maxSerial = 64
	maxNote   = 500
	maxCode   = 256
	maxSecret = 256
)
