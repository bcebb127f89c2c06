package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// fault is what happens to a request between us and the server.
type fault struct {
	name string
	// arrives: the server gets the request and acts on it.
	arrives bool
	// answer instead of the server's: a status and a text, or an error.
	status int
	text   string
	err    error
	hang   bool // until our own time-out
}

var faults = []fault{
	{name: "not sent, EOF", err: io.ErrUnexpectedEOF},
	{name: "done, EOF", arrives: true, err: io.ErrUnexpectedEOF},
	{name: "not sent, time-out", hang: true},
	{name: "done, time-out", arrives: true, hang: true},
	{name: "not done, 500", status: 500, text: "node is not the leader"},
	{name: "done, 500", arrives: true, status: 500, text: "leadership lost while committing log"},
	{name: "done, 502 of a proxy", arrives: true, status: 502, text: "<html>bad gateway</html>"},
	{name: "not done, sealed", status: 503, text: "Vault is sealed"},
	{name: "not done, 429", status: 429, text: "request path: rate limit quota exceeded"},
	{name: "not done, 412", status: 412, text: "required index state not present"},
	{name: "not done, no leader", status: 500, text: "local node not active but active cluster node not found"},
	{name: "not done, redirect", status: 307},
	{name: "not done, bad token", status: 403, text: "permission denied; invalid token"},
}

// line is a transport with a fault in it.
type line struct {
	next http.RoundTripper

	mu    sync.Mutex
	hit   func(*http.Request) *fault // which fault meets this request; nil: none
	count int
	sent  []string // what reached the server
}

func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	var f *fault
	if l.hit != nil {
		f = l.hit(req)
	}
	l.count++
	if f == nil || f.arrives {
		l.sent = append(l.sent, req.Method+" "+req.URL.Path)
	}
	l.mu.Unlock()
	if f == nil {
		return l.next.RoundTrip(req)
	}
	if f.arrives {
		resp, err := l.next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	switch {
	case f.hang:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case f.err != nil:
		return nil, f.err
	}
	body := f.text
	if !strings.HasPrefix(body, "<") {
		body = fmt.Sprintf(`{"errors":[%q]}`, f.text)
	}
	return &http.Response{
		StatusCode: f.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Location": {"http://evil.example/"}},
		Body:   io.NopCloser(bytes.NewReader([]byte(body))), ContentLength: int64(len(body)),
	}, nil
}

// break gives a store whose line can be broken.
func (x *site) broken(t testing.TB, role Role, patience time.Duration) (*Store, *line) {
	t.Helper()
	cfg := x.config(t, x.token(t, role))
	cfg.Timeout, cfg.Patience = Duration(150*time.Millisecond), Duration(patience)
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	l := &line{next: s.c.web.Transport}
	s.c.web.Transport = l
	return s, l
}

func (l *line) breakAt(hit func(*http.Request) *fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hit, l.count, l.sent = hit, 0, nil
}

// once lets a fault meet the first write to a path with this part.
func once(f *fault, part string) func(*http.Request) *fault {
	done := false
	return func(req *http.Request) *fault {
		if done || req.Method != http.MethodPut || !strings.Contains(req.URL.Path, part) {
			return nil
		}
		done = true
		return f
	}
}

// TestFaultOfOneWrite: every fault at every write is resolved by looking, and
// the call succeeds with one entry of ours.
func TestFaultOfOneWrite(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 5*time.Second)
	ota := x.open(t, RoleOTA)
	n := byte(0)
	for _, f := range faults {
		for _, where := range []string{"claim", "record", "state"} {
			t.Run(f.name+" at "+where, func(t *testing.T) {
				n++
				r := keystoretest.NewRecord(t, keystoretest.Simulated(n))
				part := "/claim/1"
				switch where {
				case "record":
					part = r.Fingerprint.String()
				case "state":
					part = "/state/1"
				}
				l.breakAt(once(&f, part))
				created, err := s.Create(t.Context(), r)
				if err != nil {
					t.Fatalf("create: %v", err)
				}
				if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}); err != nil {
					t.Fatalf("state: %v", err)
				}
				l.breakAt(nil)
				if confirmed, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil || confirmed != created {
					t.Errorf("confirm: %+v, %v, want %+v", confirmed, err, created)
				}
				metas, err := s.List(t.Context(), r.Unit)
				if err != nil || len(metas) != 1 || len(metas[0].States) != 1 {
					t.Errorf("list: %+v, %v", metas, err)
				}
				got, err := ota.Load(t.Context(), r.Unit, r.Fingerprint)
				if err != nil || !got.Key.Equal(r.Key) {
					t.Errorf("load: %v", err)
				}
			})
		}
	}
}

// TestFaultThatStays: when the server stays away, the error tells whether the
// record may be there.
func TestFaultThatStays(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 500*time.Millisecond)
	n := byte(0)
	for _, f := range faults {
		if f.status == 403 {
			continue // with a token file this ends in a login
		}
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, reads fail too: %v", f.name, reads), func(t *testing.T) {
				n++
				r := keystoretest.NewRecord(t, keystoretest.Simulated(n))
				l.breakAt(func(req *http.Request) *fault {
					mine := strings.HasSuffix(req.URL.Path, "/"+r.Fingerprint.String())
					if mine && (req.Method == http.MethodPut || reads) {
						return &f
					}
					return nil
				})
				_, err := s.Create(t.Context(), r)
				l.breakAt(nil)
				_, there := s.Confirm(t.Context(), r.Unit, r.Fingerprint)
				doubt := f.err != nil || f.hang || f.status == 502 || f.status == 500 && !strings.Contains(f.text, "not active")
				switch {
				case f.arrives && !reads: // the look finds it
					if err != nil || there != nil {
						t.Errorf("create: %v; confirm: %v", err, there)
					}
				case doubt:
					if !errors.Is(err, keystore.ErrUnknownOutcome) {
						t.Errorf("create: %v, want an unknown outcome", err)
					}
				default:
					if !errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, keystore.ErrUnknownOutcome) || !errors.Is(there, keystore.ErrNotFound) {
						t.Errorf("create: %v; confirm: %v", err, there)
					}
				}
				if err != nil && strings.Contains(err.Error(), "evil.example") {
					t.Errorf("a redirect was looked at: %v", err)
				}
				// The same record again, with the server back, is a success.
				if _, err := s.Create(t.Context(), r); err != nil {
					t.Errorf("create again: %v", err)
				}
			})
		}
	}
}

// TestWriteIsNotCutByCancel: a call that is cancelled while its write is under
// way learns the outcome of that write, or says that it does not know it.
func TestWriteIsNotCutByCancel(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 5*time.Second)
	for i, f := range []*fault{nil, {name: "done, EOF", arrives: true, err: io.ErrUnexpectedEOF}} {
		r := keystoretest.NewRecord(t, keystoretest.Simulated(byte(i)))
		ctx, cancel := context.WithCancel(t.Context())
		l.breakAt(func(req *http.Request) *fault {
			if req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, r.Fingerprint.String()) {
				cancel()
				return f
			}
			return nil
		})
		_, err := s.Create(ctx, r)
		l.breakAt(nil)
		if f == nil && err != nil || f != nil && !errors.Is(err, keystore.ErrUnknownOutcome) {
			t.Errorf("%v: %v", f, err)
		}
		if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil {
			t.Errorf("confirm: %v", err)
		}
	}
}

// TestBodyOfARecord: what is sent is what encodeRecord made, in one buffer that never grew.
func TestBodyOfARecord(t *testing.T) {
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	body, _, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	if cap(body) > len(cas0)+8192 {
		t.Errorf("%d bytes for a record", cap(body))
	}
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 5*time.Second)
	var seen []byte
	l.breakAt(func(req *http.Request) *fault {
		if req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, r.Fingerprint.String()) {
			seen, _ = io.ReadAll(req.Body)
			req.Body = io.NopCloser(bytes.NewReader(seen))
		}
		return nil
	})
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(seen, body) {
		t.Error("another body was sent")
	}
}

// roundTrip is a function as a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func body(text string) io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }

// TestStaleServer: a server that lags behind and does not know it shows none of
// a unit's entries. Until it has written for us, nobody believes it.
func TestStaleServer(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, broken := x.broken(t, RoleStation, 20*time.Second)
	ota, otaLine := x.broken(t, RoleOTA, 20*time.Second)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	created, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	// stale answers 404 to every look whose path has this part, for as long as
	// nothing was written, or for ever.
	stale := func(l *line, part string, forEver bool) {
		wrote := false
		l.breakAt(func(req *http.Request) *fault {
			if req.Method == http.MethodPut {
				wrote = true
			} else if (!wrote || forEver) && strings.Contains(req.URL.Path, part) {
				return &fault{name: "stale", status: http.StatusNotFound}
			}
			return nil
		})
	}
	for _, part := range []string{"/subkeys/", "/claim/"} {
		stale(broken, part, false)
		if confirmed, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil || confirmed != created {
			t.Errorf("%s lags: confirmed %+v, %v", part, confirmed, err)
		}
		stale(broken, part, true)
		if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, keystore.ErrNotFound) {
			t.Errorf("%s is lost: %v", part, err)
		}
	}
	for _, kind := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
		stale(broken, "/units/", false)
		if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: kind, Job: r.Job}); err != nil {
			t.Errorf("%s with a server that lags: %v", kind, err)
		}
		stale(broken, "/state/", false)
		if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: kind, Job: r.Job}); err != nil {
			t.Errorf("%s again with a server that lags: %v", kind, err)
		}
	}
	stale(otaLine, "/data/", false)
	if got, err := ota.Load(t.Context(), r.Unit, r.Fingerprint); err != nil || !got.Key.Equal(r.Key) {
		t.Errorf("load: %v", err)
	}
}
