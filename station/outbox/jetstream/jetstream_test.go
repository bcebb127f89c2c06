package jetstream

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/outboxtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The server's own, which outlive it.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.init.0.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).setupMirrorConsumer"),
	)
}

const id = "000102030405060708090a0b0c0d0e0f"

// serve starts a real server. It keeps its port over restarts.
func serve(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.NoLog, o.NoSigs, o.JetStream = "127.0.0.1", true, true, true
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func config(s *server.Server) Config {
	return Config{Name: "bus", Servers: []string{s.ClientURL()}, Stream: "UNITS", Create: &Create{}, Timeout: 2 * time.Second}
}

func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// messages reads the whole stream.
func messages(t testing.TB, s *server.Server, stream string, options ...nats.Option) (list []*jetstream.RawStreamMsg) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), options...)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	str, err := js.Stream(context.Background(), stream)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= str.CachedInfo().State.LastSeq; seq++ {
		m, err := str.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

func ids(list []*jetstream.RawStreamMsg) (out []string) {
	for _, m := range list {
		out = append(out, m.Header.Get(jetstream.MsgIDHeader))
	}
	return out
}

func event(index uint64) *outbox.Event {
	return &outbox.Event{
		ID: outbox.EventID(id, index), Journal: id, Index: index, Station: "bench.1", Type: outbox.TypeFinished,
		Body: fmt.Appendf(nil, `{"index":%d}`, index),
	}
}

func TestPublish(t *testing.T) {
	srv := serve(t, server.Options{})
	s := newSink(t, config(srv))
	events := []*outbox.Event{event(3), event(7)}
	for range 2 {
		if n, err := s.Deliver(t.Context(), events); n != 2 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	got := messages(t, srv, "UNITS")
	if d := cmp.Diff([]string{id + "-3", id + "-7"}, ids(got)); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	if m := got[1]; m.Subject != "provisiond.bench=2E1.unit.finished" || string(m.Data) != `{"index":7}` || m.Header.Get("Provisiond-Event") != "unit.finished" {
		t.Errorf("%s %s %v", m.Subject, m.Data, m.Header)
	}
}

// A cursor that a crash left behind makes no second message: neither within the
// server's window for duplicates nor, by the sink's own look, behind it.
func TestRepeatAfterTheWindow(t *testing.T) {
	srv := serve(t, server.Options{})
	c := config(srv)
	c.Create.Duplicates = 100 * time.Millisecond // the least that a server takes
	events := []*outbox.Event{event(1), event(2), event(5)}
	if n, err := newSink(t, c).Deliver(t.Context(), events); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	// Until the server itself would take it again.
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	forgotten := false
	for end := time.Now().Add(20 * time.Second); !forgotten && time.Now().Before(end); {
		ack, err := js.Publish(t.Context(), "provisiond.other.x", nil, jetstream.WithMsgID(id+"-5"))
		if err != nil {
			t.Fatal(err)
		}
		forgotten = !ack.Duplicate
		if !forgotten {
			<-time.After(50 * time.Millisecond) // the server's clock, not ours
		}
	}
	if !forgotten {
		t.Fatal("the server's window does not end")
	}
	// A new process with an old cursor.
	if n, err := newSink(t, c).Deliver(t.Context(), append(events, event(6))); n != 4 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	var got []string
	for _, m := range messages(t, srv, "UNITS") {
		if m.Subject == Subject(event(1)) {
			got = append(got, m.Header.Get(jetstream.MsgIDHeader))
		}
	}
	if d := cmp.Diff([]string{id + "-1", id + "-2", id + "-5", id + "-6"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Another journal of the same station counts from its own beginning.
func TestNewJournal(t *testing.T) {
	srv := serve(t, server.Options{})
	s := newSink(t, config(srv))
	next := event(2)
	next.Journal = "ff0102030405060708090a0b0c0d0e0f"
	next.ID = outbox.EventID(next.Journal, 2)
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(8), next}); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if d := cmp.Diff([]string{event(8).ID, next.ID}, ids(messages(t, srv, "UNITS"))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// The whole way, from a journal, with the server stopped and started again in the
// middle: every event once, in order.
func TestServerRestarts(t *testing.T) {
	o := server.Options{StoreDir: t.TempDir()}
	srv := serve(t, o)
	o.Port = srv.Addr().(*net.TCPAddr).Port
	c := config(srv)
	j := outboxtest.NewJournal(id, "bench-1")
	s := newSink(t, c)
	d := s.Delivery()
	out, err := outbox.Open(j, t.TempDir(), []outbox.Delivery{d})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- out.Run(ctx) }()
	want := []string{outbox.EventID(id, 0)}
	for n := range 120 {
		e, err := outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)}.Write(ctx, j)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, outbox.EventID(id, e.Index))
		out.Notify()
		switch n {
		case 30, 80:
			await(t, out, func(s outbox.Status) bool { return s.Delivered > 0 })
			srv.Shutdown()
			srv.WaitForShutdown()
		case 50, 100:
			await(t, out, func(s outbox.Status) bool { return s.State == outbox.StateRetrying })
			srv = serve(t, o)
		}
	}
	await(t, out, func(s outbox.Status) bool { return s.State == outbox.StateIdle && s.Behind() == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(want, ids(messages(t, srv, "UNITS"))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func await(t *testing.T, o *outbox.Outbox, good func(outbox.Status) bool) {
	t.Helper()
	end := time.Now().Add(60 * time.Second)
	for !good(o.Status()[0]) {
		if time.Now().After(end) {
			t.Fatalf("it stays so: %+v", o.Status()[0])
		}
		<-time.After(5 * time.Millisecond)
	}
}

// An acknowledgement that is lost on its way is not a lost event, and no second
// message. The proxy drops the first acknowledgements.
func TestLostAcknowledgement(t *testing.T) {
	srv := serve(t, server.Options{})
	p := newProxy(t, srv.Addr().String())
	c := config(srv)
	c.Servers, c.Timeout = []string{"nats://" + p.addr}, 200*time.Millisecond
	c.Create.Duplicates = 100 * time.Millisecond
	s := newSink(t, c)
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(1)}); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	p.mute(true)
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(2), event(3)}); n != 0 || err == nil {
		t.Fatalf("without an acknowledgement: %d, %v", n, err)
	}
	p.mute(false)
	n, err := 0, error(nil)
	for end := time.Now().Add(20 * time.Second); n < 2 && time.Now().Before(end); {
		n, err = s.Deliver(t.Context(), []*outbox.Event{event(2), event(3)})
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{event(1).ID, event(2).ID, event(3).ID}, ids(messages(t, srv, "UNITS"))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// proxy passes a connection on, and can withhold what the server says.
type proxy struct {
	addr  string
	muted atomic.Bool
}

func (p *proxy) mute(on bool) { p.muted.Store(on) }

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			all.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
			all.Go(func() {
				defer func() { _ = in.Close() }()
				buf := make([]byte, 4096)
				for {
					n, err := out.Read(buf)
					if err != nil {
						return
					}
					if p.muted.Load() {
						return // and the connection is gone: what was said is lost
					}
					if _, err := in.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return p
}

func TestStreamMissing(t *testing.T) {
	srv := serve(t, server.Options{})
	c := config(srv)
	c.Create = nil
	s := newSink(t, c)
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(1)}); n != 0 || err == nil || !strings.Contains(err.Error(), "make it with the subjects provisiond.>") {
		t.Errorf("%d, %v", n, err)
	}
	// Once it is there, it is taken as it is.
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "UNITS", Subjects: []string{"provisiond.>"}, MaxMsgs: 7, AllowDirect: true}); err != nil {
		t.Fatal(err)
	}
	c.Create = &Create{Replicas: 1}
	for _, s := range []*Sink{s, newSink(t, c)} {
		if n, err := s.Deliver(t.Context(), []*outbox.Event{event(1)}); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	str, err := js.Stream(t.Context(), "UNITS")
	if err != nil {
		t.Fatal(err)
	}
	if i := str.CachedInfo(); i.Config.MaxMsgs != 7 || i.State.Msgs != 1 {
		t.Errorf("%+v, %d messages", i.Config, i.State.Msgs)
	}
}

func TestTooLarge(t *testing.T) {
	srv := serve(t, server.Options{MaxPayload: 4096})
	s := newSink(t, config(srv))
	e := event(1)
	e.Body = []byte(`"` + strings.Repeat("x", 5000) + `"`)
	n, err := s.Deliver(t.Context(), []*outbox.Event{e})
	if n != 0 || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", outbox.Permanent(nil)) {
		t.Errorf("%d, %T %v", n, err, err)
	}
}

// A user with credentials and only the rights that docs/factory.md lists.
func TestCredentials(t *testing.T) {
	operator, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub := func(k nkeys.KeyPair) string { s, err := k.PublicKey(); must(t, err); return s }
	oc := jwt.NewOperatorClaims(pub(operator))
	ac := jwt.NewAccountClaims(pub(account))
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	aj, err := ac.Encode(operator)
	must(t, err)
	uc := jwt.NewUserClaims(pub(user))
	uc.Pub.Allow.Add("provisiond.bench-1.>", "$JS.API.STREAM.INFO.UNITS", "$JS.API.STREAM.MSG.GET.UNITS")
	uc.Sub.Allow.Add("_INBOX.>")
	uj, err := uc.Encode(account)
	must(t, err)
	seed, err := user.Seed()
	must(t, err)
	creds, err := jwt.FormatUserConfig(uj, seed)
	must(t, err)
	file := filepath.Join(t.TempDir(), "station.creds")
	must(t, os.WriteFile(file, creds, 0o600))
	resolver := &server.MemAccResolver{}
	must(t, resolver.Store(pub(account), aj))
	system, err := nkeys.CreateAccount()
	must(t, err)
	sj, err := jwt.NewAccountClaims(pub(system)).Encode(operator)
	must(t, err)
	must(t, resolver.Store(pub(system), sj))
	srv := serve(t, server.Options{TrustedOperators: []*jwt.OperatorClaims{oc}, AccountResolver: resolver, SystemAccount: pub(system)})

	// The administrator makes the stream.
	admin, err := nkeys.CreateUser()
	must(t, err)
	adminJWT, err := jwt.NewUserClaims(pub(admin)).Encode(account)
	must(t, err)
	adminSeed, err := admin.Seed()
	must(t, err)
	adminCreds, err := jwt.FormatUserConfig(adminJWT, adminSeed)
	must(t, err)
	adminFile := filepath.Join(t.TempDir(), "admin.creds")
	must(t, os.WriteFile(adminFile, adminCreds, 0o600))
	nc, err := nats.Connect(srv.ClientURL(), nats.UserCredentials(adminFile))
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "UNITS", Subjects: []string{"provisiond.>"}})
	must(t, err)

	c := config(srv)
	c.Create = nil
	s := newSink(t, c)
	if _, err := s.Deliver(t.Context(), []*outbox.Event{event(1)}); err == nil {
		t.Error("it connects without credentials")
	}
	c.CredsFile = file
	s = newSink(t, c)
	e := event(1)
	e.Station = "bench-1"
	if n, err := s.Deliver(t.Context(), []*outbox.Event{e}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	other := event(2)
	other.Station = "bench-2"
	if n, err := s.Deliver(t.Context(), []*outbox.Event{other}); n != 0 || err == nil {
		t.Errorf("it published as another station: %d, %v", n, err)
	}
	must(t, os.Chmod(file, 0o644))
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "creds_file: ") {
		t.Errorf("credentials that all may read: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Name: "bus", Servers: []string{"tls://nats.factory:4222"}, Stream: "UNITS", Create: &Create{Replicas: 3}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"name: ":                  func(c *Config) { c.Name = "" },
		"servers: is missing":     func(c *Config) { c.Servers = nil },
		"servers[0]: is neither":  func(c *Config) { c.Servers = []string{"nats.factory"} },
		"servers[0]: holds":       func(c *Config) { c.Servers = []string{"tls://a:b@c"} },
		"servers[1]: is nats://":  func(c *Config) { c.Servers = []string{"tls://a", "nats://b"} },
		"servers[1]: is tls://":   func(c *Config) { c.Servers = []string{"nats://127.0.0.1", "tls://b"} },
		"stream: ":                func(c *Config) { c.Stream = "a b" },
		"domain: ":                func(c *Config) { c.Domain = "a.b" },
		"cert_file: ":             func(c *Config) { c.KeyFile = "x" },
		"timeout: ":               func(c *Config) { c.Timeout = -1 },
		"create.replicas: ":       func(c *Config) { c.Create.Replicas = 9 },
		"create.duplicates: is l": func(c *Config) { c.Create.MaxAge, c.Create.Duplicates = 1, 2 },
		"events[0]: ":             func(c *Config) { c.Events = []string{"x"} },
	} {
		c := good
		k := *good.Create
		c.Create = &k
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("bench-1", "bench.1")
	f.Add("Linie 3 ü", "*")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := token(a), token(b)
		if (x == y) != (a == b) || strings.ContainsAny(x, ".*> \t\r\n\x00") || (x == "") != (a == "") {
			t.Errorf("%q, %q: %q, %q", a, b, x, y)
		}
	})
}

func FuzzLastID(f *testing.F) {
	h := base64.StdEncoding.EncodeToString([]byte("NATS/1.0\r\nNats-Msg-Id: " + event(7).ID + "\r\n\r\n"))
	f.Add([]byte(`{"type":"x","message":{"subject":"a","seq":1,"hdrs":"` + h + `","data":""}}`))
	f.Add([]byte(`{"error":{"code":404,"err_code":10037,"description":"no message found"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := lastID(b)
		if err != nil && s != "" {
			t.Errorf("%q and %v", s, err)
		}
		if j, i, ok := parseID(s); ok && outbox.EventID(j, i) != s {
			t.Errorf("%q", s)
		}
	})
}

func TestLastID(t *testing.T) {
	h := base64.StdEncoding.EncodeToString([]byte("NATS/1.0\r\nNats-Msg-Id: " + event(7).ID + "\r\n\r\n"))
	for answer, want := range map[string]string{
		`{"message":{"hdrs":"` + h + `"}}`:                 event(7).ID,
		`{"message":{}}`:                                   "",
		`{"error":{"code":404,"err_code":10037}}`:          "",
		`{"error":{"code":503,"description":"no leader"}}`: "error",
		`{"message":{"hdrs":"` + h[:8] + `"}}`:             "error",
		`{"message":{"hdrs":"!"}}`:                         "error",
		`{}`:                                               "error",
		`x`:                                                "error",
	} {
		got, err := lastID([]byte(answer))
		if want == "error" && err == nil || want != "error" && (err != nil || got != want) {
			t.Errorf("%s: %q, %v", answer, got, err)
		}
	}
	for _, bad := range []string{"", "-", "-1", "a-", "a-01", "a-+1", "a-99999999999999999999", "a"} {
		if _, _, ok := parseID(bad); ok {
			t.Errorf("%q is an id", bad)
		}
	}
}

// The outbox with all it does (reading, folding, acknowledged publishing, the
// cursor) against publishing alone, each message acknowledged, to the same server.
func BenchmarkPublish(b *testing.B) {
	body := make([]byte, 1700)
	for i := range body {
		body[i] = 'a' + byte(i%26)
	}
	srv := serve(b, server.Options{})
	c := config(srv)
	const events = 2000
	j := outboxtest.NewJournal(id, "bench-1")
	for n := range events {
		if _, err := (outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n), Lot: "L-47", Serial: "S"}).Write(b.Context(), j); err != nil {
			b.Fatal(err)
		}
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw"}}); err != nil {
		b.Fatal(err)
	}
	var ours, raw time.Duration
	for b.Loop() {
		j.ID = fmt.Sprintf("%032x", time.Now().UnixNano()) // nothing is a repeat
		s := newSink(b, c)
		d := s.Delivery()
		d.From, d.Events = outbox.FromBeginning, []string{outbox.TypeFinished}
		out, err := outbox.Open(j, b.TempDir(), []outbox.Delivery{d})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- out.Run(ctx) }()
		for out.Status()[0].Delivered < events {
			<-time.After(time.Millisecond)
		}
		ours += time.Since(start)
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		for range events {
			if _, err := js.PublishMsg(b.Context(), &nats.Msg{Subject: "raw", Data: body}); err != nil {
				b.Fatal(err)
			}
		}
		raw += time.Since(start)
	}
	b.ReportMetric(float64(b.N*events)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N*events)/raw.Seconds(), "raw/s")
	b.ReportMetric(100*raw.Seconds()/ours.Seconds(), "%raw")
}
