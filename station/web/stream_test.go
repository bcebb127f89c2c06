package web_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/web"
)

// sse is a reader of a stream.
type sse struct {
	t   testing.TB
	sc  *bufio.Scanner
	res *http.Response
}

type event struct{ name, id, data string }

func openStream(t testing.TB, url, path string, header map[string]string) *sse {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer engineer-token")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	s := &sse{t, bufio.NewScanner(res.Body), res}
	s.sc.Buffer(nil, 4<<20)
	return s
}

// next reads an event; comments and the retry line are events without a name.
func (s *sse) next() event {
	s.t.Helper()
	var e event
	var data []string
	for s.sc.Scan() {
		line := s.sc.Text()
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "event":
			e.name = strings.TrimSpace(value)
		case "id":
			e.id = strings.TrimSpace(value)
		case "data":
			data = append(data, strings.TrimPrefix(value, " "))
		case "retry", "":
			if line == "" {
				e.data = strings.Join(data, "\n")
				if e.name != "" {
					return e
				}
			} else if key == "" {
				return event{name: "comment", data: line}
			}
		}
	}
	s.t.Fatalf("the stream has ended: %v", s.sc.Err())
	return e
}

func apiServer(t testing.TB, d *double, change func(*web.Options)) *httptest.Server {
	t.Helper()
	s := newServer(t, d, func(o *web.Options) {
		o.Tokens = tokens(t)
		if change != nil {
			change(o)
		}
	})
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	t.Cleanup(s.Close) // before the listener: it waits for its requests
	return h
}

func TestAPIEvents(t *testing.T) {
	d := newDouble(4)
	h := apiServer(t, d, func(o *web.Options) { o.Heartbeat = 20 * time.Millisecond })
	s := openStream(t, h.URL, "/api/v1/events", nil)
	if ct := s.res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %s", ct)
	}
	e := s.next()
	var v station.View
	if err := json.Unmarshal([]byte(e.data), &v); err != nil || e.name != "snapshot" || len(v.Slots) != 4 || e.id == "" {
		t.Fatalf("%+v %v", e, err)
	}
	d.set("A2", func(s *station.SlotView) { s.Serial = "NEW" })
	wait := func(name string) event {
		t.Helper()
		for {
			if e := s.next(); e.name == name {
				return e
			}
		}
	}
	e = wait("slot")
	if !strings.Contains(e.data, `"serial":"NEW"`) || strings.Contains(e.data, `"name":"A1"`) {
		t.Error(e)
	}
	seen := e.id
	d.edit(func(v *station.View) { v.Today.Pass++ })
	if e = wait("station"); !strings.Contains(e.data, `"pass":413`) || !strings.Contains(e.data, `"slots":[]`) {
		t.Error(e)
	}
	wait("comment") // the heartbeat

	// Whoever comes back is told what is new since then, and only that.
	back := openStream(t, h.URL, "/api/v1/events", map[string]string{"Last-Event-ID": seen})
	if e := back.next(); e.name != "station" {
		t.Errorf("after coming back: %+v", e)
	}
	// An id of another process, of the future or of nobody: all of it.
	for _, id := range []string{"", "x", "000000000000-1", strings.Split(seen, "-")[0] + "-999999"} {
		if e := openStream(t, h.URL, "/api/v1/events", map[string]string{"Last-Event-ID": id}).next(); e.name != "snapshot" {
			t.Errorf("Last-Event-ID %q: %+v", id, e)
		}
	}
	// Other slots: all of it again.
	d.edit(func(v *station.View) { v.Slots = v.Slots[:2] })
	if e = wait("snapshot"); strings.Contains(e.data, `"name":"A3"`) {
		t.Error(e)
	}
}

func TestPageEvents(t *testing.T) {
	d := newDouble(4)
	h := apiServer(t, d, func(o *web.Options) { o.Config.OpenBoard = true })
	s := openStream(t, h.URL, "/events", map[string]string{"Accept-Language": "de"})
	names := map[string]string{}
	var id string
	for range 5 {
		e := s.next()
		names[e.name], id = e.data, e.id
	}
	for _, n := range []string{"tile-0", "tile-1", "tile-2", "tile-3", "status"} {
		if names[n] == "" {
			t.Errorf("no event %s", n)
		}
	}
	if !strings.Contains(names["tile-1"], "<span>IO</span>") || strings.Contains(names["tile-1"], "<script") {
		t.Errorf("tile in German: %s", names["tile-1"])
	}
	// A page that another process made begins anew; so does one for other slots.
	if e := openStream(t, h.URL, "/events?since=abc-7", nil).next(); e.name != "reload" {
		t.Error(e)
	}
	d.edit(func(v *station.View) { v.Slots = v.Slots[:3] })
	if e := s.next(); e.name != "reload" {
		t.Error(e)
	}
	if e := openStream(t, h.URL, "/events", map[string]string{"Last-Event-ID": id}).next(); e.name != "reload" {
		t.Error(e)
	}
	// One slot's page.
	one := openStream(t, h.URL, "/events?slot=A2", nil)
	if e := one.next(); e.name != "slot" || !strings.Contains(e.data, "24:0a:c4:00:1f:01") {
		t.Error(e)
	}
}

// TestStreamEndsWithSession: who has logged out sees no more, at the next heartbeat.
func TestStreamEndsWithSession(t *testing.T) {
	c := newCrowd()
	h := apiServer(t, newDouble(1), func(o *web.Options) { o.People, o.Heartbeat = c, 5*time.Millisecond })
	se, err := c.Login(t.Context(), web.Credentials{Kind: "badge", Secret: "4711"})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL+"/events", nil)
	r.AddCookie(&http.Cookie{Name: "provisiond", Value: se.Token})
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	c.Logout(se.Token)
	b, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(b, []byte("event: reload")) {
		t.Errorf("%v: %s", err, b)
	}
}

// TestViewersAreBounded: one more than the limit is turned away, and its place is
// free again when somebody leaves. Nobody looks at the station for nobody.
func TestViewersAreBounded(t *testing.T) {
	d := newDouble(1)
	var srv *web.Server
	s := newServer(t, d, func(o *web.Options) { o.Tokens, o.Viewers, o.Heartbeat = tokens(t), 1, 5*time.Millisecond })
	srv = s
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	t.Cleanup(s.Close)
	first := openStream(t, h.URL, "/api/v1/events", nil)
	first.next()
	second := openStream(t, h.URL, "/api/v1/events", nil)
	if second.res.StatusCode != http.StatusServiceUnavailable || second.res.Header.Get("Retry-After") == "" {
		t.Errorf("status %d", second.res.StatusCode)
	}
	_ = first.res.Body.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for srv.Viewers() > 0 {
		<-tick.C
	}
	for {
		third := openStream(t, h.URL, "/api/v1/events", nil)
		if third.res.StatusCode == http.StatusOK {
			break
		}
		<-tick.C
	}
}

// stalled is a viewer that accepts nothing.
type stalled struct {
	header http.Header
	ctx    context.Context
	size   int
	blocks chan struct{} // closed when it holds the first write
}

func (s *stalled) Header() http.Header              { return s.header }
func (s *stalled) WriteHeader(int)                  {}
func (s *stalled) SetReadDeadline(time.Time) error  { return nil }
func (s *stalled) SetWriteDeadline(time.Time) error { return nil }
func (s *stalled) Flush()                           {}
func (s *stalled) Write(b []byte) (int, error) {
	s.size += len(b)
	close(s.blocks)
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// TestStalledViewer: a viewer that takes nothing holds one batch of events and
// nothing more, whatever happens at the station; the station and other viewers do
// not wait for it.
func TestStalledViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDouble(64)
		s := newServer(t, d, func(o *web.Options) { o.Tokens, o.Tick = tokens(t), 200*time.Millisecond })
		ctx, cancel := context.WithCancel(t.Context())
		w := &stalled{header: http.Header{}, ctx: ctx, blocks: make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := httptest.NewRequestWithContext(ctx, "GET", "http://localhost/api/v1/events", nil)
			r.Header.Set("Authorization", "Bearer engineer-token")
			s.ServeHTTP(w, r)
		}()
		<-w.blocks
		before := time.Now()
		looks := d.looked()
		for i := range 100000 {
			d.set(fmt.Sprintf("%c%d", 'A'+i%8, i/8%8+1), func(s *station.SlotView) { s.Done = int64(i) })
		}
		if took := time.Since(before); took != 0 { // in the bubble's time: nothing waited
			t.Errorf("the station waited %v", took)
		}
		synctest.Wait()
		if n := d.looked() - looks; n > 3 {
			t.Errorf("100,000 changes at once are %d looks at the station", n)
		}
		held := w.size
		time.Sleep(10 * time.Second) // of the bubble
		if w.size != held || held > 200<<10 {
			t.Errorf("the viewer holds %d bytes, then %d", held, w.size)
		}
		cancel()
		<-done
	})
}

// deadConn counts what a server writes to a viewer that never reads: the write
// limit ends it, over a real connection.
func TestStreamOutlivesRequestLimits(t *testing.T) {
	d := newDouble(1)
	s := newServer(t, d, func(o *web.Options) { o.Tokens, o.Heartbeat = tokens(t), 10*time.Millisecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// The same server with limits that a test can wait for.
	srv := &http.Server{Handler: s, ReadTimeout: 60 * time.Millisecond, WriteTimeout: 60 * time.Millisecond}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	st := openStream(t, "http://"+l.Addr().String(), "/api/v1/events", nil)
	st.next()
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; {
		if e := st.next(); e.name != "comment" {
			t.Fatal(e)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	// One change of every slot, as 20 viewers in two languages see it.
	d := newDouble(64)
	h := newServer(b, d, func(o *web.Options) { o.Config.OpenBoard, o.Tick = true, time.Microsecond })
	const viewers = 20
	got := make(chan int, 1024)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for i := range viewers {
		go func() {
			r := httptest.NewRequestWithContext(ctx, "GET", "http://localhost/events", nil)
			r.Header.Set("Accept-Language", []string{"en", "de"}[i%2])
			h.ServeHTTP(&counting{header: http.Header{}, got: got}, r)
		}()
	}
	for range viewers {
		<-got
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		d.edit(func(v *station.View) {
			s := make([]station.SlotView, len(v.Slots))
			for i := range s {
				s[i] = v.Slots[i]
				s[i].Permille = n % 1000
			}
			v.Slots = s
		})
		for range viewers {
			<-got
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/64, "µs/tile")
}

type counting struct {
	header http.Header
	got    chan int
}

func (c *counting) Header() http.Header              { return c.header }
func (c *counting) WriteHeader(int)                  {}
func (c *counting) SetReadDeadline(time.Time) error  { return nil }
func (c *counting) SetWriteDeadline(time.Time) error { return nil }
func (c *counting) Flush()                           {}
func (c *counting) Write(b []byte) (int, error) {
	c.got <- len(b)
	return len(b), nil
}
