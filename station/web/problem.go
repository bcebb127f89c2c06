package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/station"
)

// problem is an error as RFC 9457 writes it. Kind and next step are ours.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Next   string `json:"next_step,omitempty"`

	retryAfter int // seconds
}

func (p *problem) Error() string { return p.Detail }

const problemType = "urn:provisiond:problem:"

// The problems that are not a station's.
func newProblem(status int, kind, detail, next string) *problem {
	return &problem{Type: problemType + kind, Title: http.StatusText(status), Status: status, Detail: detail, Next: next}
}

func badInput(detail string) error {
	return newProblem(http.StatusBadRequest, "invalid", detail, "")
}

// asProblem makes a problem of any error. What nobody classified is logged and
// not shown: its words were not written for whoever asked.
func (s *Server) asProblem(r *http.Request, err error) *problem {
	var p *problem
	var a *station.ActionError
	var d *DeniedError
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &big):
		return newProblem(http.StatusRequestEntityTooLarge, "too-large", "the request is larger than "+strconv.FormatInt(big.Limit, 10)+" bytes", "")
	case errors.As(err, &d):
		if d.RetryAfter > 0 {
			p = newProblem(http.StatusTooManyRequests, "rate", d.Error(), "")
			p.retryAfter = max(1, int(d.RetryAfter.Seconds()+0.999))
			return p
		}
		return newProblem(http.StatusUnauthorized, "login", d.Error(), "")
	case errors.As(err, &a):
		status := http.StatusServiceUnavailable
		switch a.Kind {
		case station.ActionInvalid:
			status = http.StatusBadRequest
		case station.ActionNotFound:
			status = http.StatusNotFound
		case station.ActionConflict:
			status = http.StatusConflict
		case station.ActionFailed:
			s.log.Error("action failed", zap.String("path", r.URL.Path), zap.Error(err))
		}
		detail := a.Text
		if a.Err != nil {
			detail += ": " + a.Err.Error()
		}
		return newProblem(status, string(a.Kind), detail, a.Next)
	}
	if r.Context().Err() != nil {
		return newProblem(http.StatusServiceUnavailable, "failed", "the request was given up", "")
	}
	s.log.Error("request failed", zap.String("path", r.URL.Path), zap.Error(err))
	return newProblem(http.StatusInternalServerError, "internal", "the station could not answer", "read the station's log")
}

func writeProblem(w http.ResponseWriter, p *problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="provisiond"`)
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // whoever asked is gone
}
