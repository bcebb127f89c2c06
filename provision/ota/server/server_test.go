package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision/ota"
	"github.com/provisiond/provisiond/provision/ota/release"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// app is an application for the ESP32-C3.
func app(t testing.TB, version string, secure uint32, size int) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(len(version)), uint64(secure)))
	code := make([]byte, size)
	for i := range code {
		code[i] = byte(rng.UintN(64))
	}
	b, err := image.Build(image.Spec{
		Chip: chip.IDESP32C3, EntryAddr: 0x40380000, SPISize: image.SPISize4MB,
		AppDesc: &image.AppDesc{Version: version, ProjectName: "thermostat", IDFVer: "none", SecureVersion: secure},
		Segments: []image.Segment{
			{LoadAddr: 0x3C000020, Data: code[:size/2&^3]},
			{LoadAddr: 0x40380000, Data: code[:min(size/2, 128<<10)&^3]},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// store counts what is asked of a keystore, and can be away.
type store struct {
	keystore.Store
	lists, loads atomic.Int64
	away         atomic.Bool
	hold         chan struct{} // List waits for it, if it is not nil
}

func (s *store) List(ctx context.Context, mac chip.MAC) ([]keystore.Meta, error) {
	s.lists.Add(1)
	if s.hold != nil {
		<-s.hold
	}
	if s.away.Load() {
		return nil, fmt.Errorf("%w: switched off", keystore.ErrUnavailable)
	}
	return s.Store.List(ctx, mac)
}

func (s *store) Load(ctx context.Context, mac chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	s.loads.Add(1)
	if s.away.Load() {
		return keystore.Record{}, fmt.Errorf("%w: switched off", keystore.ErrUnavailable)
	}
	return s.Store.Load(ctx, mac, fp)
}

func (s *store) Units(context.Context) iter.Seq2[chip.MAC, error] {
	panic("a server lists no units")
}

// world is a server with what is around it.
type world struct {
	t        testing.TB
	store    *store
	releases *release.Store
	server   *server.Server
	audit    string
	signer   ota.Signer
	events   chan server.Event
	url      string
	client   *http.Client
}

func newWorld(t testing.TB, change ...func(*server.Options)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, audit: filepath.Join(dir, "audit.jsonl"), events: make(chan server.Event, 10_000)}
	id := filepath.Join(dir, "identity")
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	o := local.Options{IdentityFile: id, TestStore: true}
	if err := local.Init(filepath.Join(dir, "keys.db"), o); err != nil {
		t.Fatal(err)
	}
	keys, err := local.Open(filepath.Join(dir, "keys.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	w.store = &store{Store: keys}
	rid, err := release.Init(filepath.Join(dir, "releases"), "")
	if err != nil {
		t.Fatal(err)
	}
	if w.releases, err = release.Open(filepath.Join(dir, "releases"), release.Options{IdentityFile: rid}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.releases.Close() })
	audit, err := server.OpenAudit(w.audit, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = audit.Close() })
	pem, _, err := ota.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if w.signer, err = ota.ParseSigner(pem); err != nil {
		t.Fatal(err)
	}
	opts := server.Options{Store: w.store, Releases: w.releases, Signer: w.signer, Audit: audit, Observe: func(e server.Event) {
		select {
		case w.events <- e:
		default:
		}
	}}
	for _, f := range change {
		f(&opts)
	}
	if w.server, err = server.New(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.server.Close)
	return w
}

// serve listens on loopback.
func (w *world) serve(conf *tls.Config) *world {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(ctx, l, conf) }()
	transport := &http.Transport{TLSClientConfig: nil}
	w.client = &http.Client{Transport: transport}
	w.url = "http://" + l.Addr().String()
	if conf != nil {
		w.url = "https://" + l.Addr().String()
	}
	w.t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
	return w
}

// unit is a provisioned one.
type unit struct {
	mac    chip.MAC
	token  string
	record keystore.Record
}

func (w *world) unit(n byte) unit {
	w.t.Helper()
	return w.provision(keystoretest.NewRecord(w.t, keystoretest.Simulated(n)))
}

// provision stores a record as after a burn.
func (w *world) provision(r keystore.Record) unit {
	w.t.Helper()
	u := unit{mac: r.Unit}
	model, err := chip.ByName("esp32c3")
	if err != nil {
		w.t.Fatal(err)
	}
	files, err := sample.Files(sample.Product{Chip: model, AppSpace: 0x130000})
	if err != nil {
		w.t.Fatal(err)
	}
	r.PartitionTable = files[sample.TableOffset]
	token, err := r.Key.DeriveOTAToken(u.mac)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := token.SHA256()
	r.OTATokenSHA256 = &sum
	if err := token.UseText(func(b []byte) error { u.token = string(b); return nil }); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Create(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
	for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
		if _, err := w.store.AddState(w.t.Context(), u.mac, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
			w.t.Fatal(err)
		}
	}
	u.record = r
	return u
}

// roll adds a release and offers it to everybody.
func (w *world) roll(name string, plain []byte) {
	w.t.Helper()
	if _, err := w.releases.Add(w.t.Context(), name, bytes.Clone(plain), nil, "test"); err != nil {
		w.t.Fatal(err)
	}
	if err := w.releases.Rollout(release.DefaultChannel, name, release.All, "test"); err != nil {
		w.t.Fatal(err)
	}
}

// want is what the unit must be given.
func (u unit) want(t testing.TB, plain []byte, slot string) []byte {
	t.Helper()
	unit, err := ota.NewUnit(u.record)
	if err != nil {
		t.Fatal(err)
	}
	e, err := unit.Slot(slot)
	if err != nil {
		t.Fatal(err)
	}
	padded := bytes.Clone(plain)
	for len(padded)%16 != 0 {
		padded = append(padded, 0xFF)
	}
	c, err := unit.Key.Cipher(unit.Scheme, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Encrypt(padded, padded, e.Offset); err != nil {
		t.Fatal(err)
	}
	return padded
}

// reply is an answer whose body was read and closed.
type reply struct {
	StatusCode    int
	Header        http.Header
	ContentLength int64
}

// whole reads an answer to its end.
func whole(t testing.TB, resp *http.Response) (*reply, []byte) {
	t.Helper()
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &reply{resp.StatusCode, resp.Header, resp.ContentLength}, b
}

// ask sends a request of the unit.
func (w *world) ask(u unit, method, path string, header ...string) (*reply, []byte) {
	w.t.Helper()
	var body io.Reader
	for i := 0; i < len(header); i += 2 {
		if header[i] == "body" {
			body = strings.NewReader(header[i+1])
		}
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+"/v1/units/"+u.mac.String()+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if u.token != "" {
		r.Header.Set("Authorization", "Bearer "+u.token)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] != "body" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	var resp *http.Response
	if w.url == "" {
		rec := httptest.NewRecorder()
		r.RequestURI, r.RemoteAddr = r.URL.RequestURI(), "192.0.2.1:1234"
		w.server.ServeHTTP(rec, r)
		resp = rec.Result()
	} else if resp, err = w.client.Do(r); err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return whole(w.t, resp)
}

// wantStatus checks status and, for an error, its code.
func wantStatus(t testing.TB, resp *reply, body []byte, status int, code string) {
	t.Helper()
	got := ""
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		var e struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal(body, &e); err != nil || e.Error.Message == "" {
			t.Errorf("an error of another form: %s", body)
		}
		got = e.Error.Code
	}
	if resp.StatusCode != status || got != code {
		t.Errorf("%d %q, want %d %q: %s", resp.StatusCode, got, status, code, body)
	}
}

func TestFirmware(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 300_007)
	w.roll("1.0.0", plain)
	etags := map[string]bool{}
	for _, slot := range []string{"ota_0", "ota_1"} {
		resp, got := w.ask(u, "GET", "/firmware?slot="+slot)
		if resp.StatusCode != http.StatusOK || !bytes.Equal(got, u.want(t, plain, slot)) {
			t.Fatalf("%s: %d, %d bytes", slot, resp.StatusCode, len(got))
		}
		if resp.Header.Get("Provisiond-Release") != "1.0.0" || resp.Header.Get("Content-Type") != "application/octet-stream" ||
			resp.Header.Get("Accept-Ranges") != "bytes" || resp.ContentLength != int64(len(got)) {
			t.Errorf("%s: %v", slot, resp.Header)
		}
		etags[resp.Header.Get("Etag")] = true
		if strings.HasPrefix(resp.Header.Get("Etag"), "W/") {
			t.Error("a weak tag")
		}
	}
	other := w.unit(2)
	resp, got := w.ask(other, "GET", "/firmware?slot=ota_1")
	if !bytes.Equal(got, other.want(t, plain, "ota_1")) {
		t.Error("the other unit's bytes are wrong")
	}
	etags[resp.Header.Get("Etag")] = true
	w.roll("1.1.0", app(t, "1.1.0", 1, 300_007))
	resp, _ = w.ask(u, "GET", "/firmware?slot=ota_1")
	etags[resp.Header.Get("Etag")] = true
	if len(etags) != 4 {
		t.Errorf("%d tags for four different texts", len(etags))
	}
	if resp, got := w.ask(u, "GET", "/firmware?slot=ota_1&release=1.0.0"); resp.StatusCode != http.StatusOK || !bytes.Equal(got, u.want(t, plain, "ota_1")) {
		t.Errorf("the release before: %d", resp.StatusCode)
	}
}

// TestBesideServeContent: every range and condition has the answer that
// http.ServeContent gives for the same bytes in memory.
func TestBesideServeContent(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.PerUnit = server.Rate{PerSecond: 1e6, Burst: 1e6} }).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 200_003)
	w.roll("1.0.0", plain)
	want := u.want(t, plain, "ota_1")
	resp, _ := w.ask(u, "HEAD", "/firmware?slot=ota_1")
	tag := resp.Header.Get("Etag")
	reference := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set("Etag", tag)
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(want))
	}))
	defer reference.Close()
	n := len(want)
	headers := [][]string{
		{},
		{"Range", "bytes=0-"},
		{"Range", "bytes=0-0"},
		{"Range", fmt.Sprintf("bytes=%d-", n-1)},
		{"Range", fmt.Sprintf("bytes=%d-", n)},
		{"Range", "bytes=-1"},
		{"Range", fmt.Sprintf("bytes=-%d", n)},
		{"Range", fmt.Sprintf("bytes=-%d", n+1)},
		{"Range", "bytes=5-4"},
		{"Range", "bytes="},
		{"Range", "bytes=a-b"},
		{"Range", "bytes= 1-2"},
		{"Range", "bytes=1 - 2"},
		{"If-None-Match", tag},
		{"If-None-Match", "*"},
		{"If-None-Match", `"x"`},
		{"If-None-Match", `"x", ` + tag},
		{"If-None-Match", "W/" + tag},
		{"If-Match", tag},
		{"If-Match", `"x"`},
		{"If-Match", "*"},
		{"Range", "bytes=7-20", "If-Range", tag},
		{"Range", "bytes=7-20", "If-Range", `"x"`},
		{"Range", "bytes=7-20", "If-Range", "W/" + tag},
		{"Range", "bytes=7-20", "If-None-Match", tag},
		{"Range", "bytes=7-20", "If-Range", "Sun, 22 Nov 2026 22:00:00 GMT"},
		{"Range", "bytes=999999999-", "If-Range", `"x"`},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		a := rng.IntN(n)
		headers = append(headers, []string{"Range", fmt.Sprintf("bytes=%d-%d", a, a+rng.IntN(n-a))})
	}
	for _, h := range headers {
		for _, method := range []string{"GET", "HEAD"} {
			resp, got := w.ask(u, method, "/firmware?slot=ota_1", h...)
			r, _ := http.NewRequestWithContext(t.Context(), method, reference.URL, nil)
			for i := 0; i < len(h); i += 2 {
				r.Header.Set(h[i], h[i+1])
			}
			if method == "HEAD" {
				r.Header.Del("Range") // RFC 9110, 14.2, which ServeContent does not follow here
			}
			ref, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			wantBody, _ := io.ReadAll(ref.Body)
			_ = ref.Body.Close()
			if resp.StatusCode != ref.StatusCode || !bytes.Equal(got, wantBody) || resp.ContentLength != ref.ContentLength {
				t.Errorf("%s %q: %d with %d bytes, http.ServeContent has %d with %d", method, h, resp.StatusCode, len(got), ref.StatusCode, len(wantBody))
			}
			for _, name := range []string{"Content-Range", "Content-Length", "Etag", "Accept-Ranges"} {
				if resp.Header.Get(name) != ref.Header.Get(name) {
					t.Errorf("%s %q: %s is %q, http.ServeContent has %q", method, h, name, resp.Header.Get(name), ref.Header.Get(name))
				}
			}
		}
	}
	// Several ranges get the whole, as RFC 9110 allows.
	if resp, got := w.ask(u, "GET", "/firmware?slot=ota_1", "Range", "bytes=0-1,5-6"); resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		t.Errorf("two ranges: %d with %d bytes", resp.StatusCode, len(got))
	}
}

func TestManifest(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 3, 100_000)
	w.roll("r1", plain)
	nonce := strings.Repeat("ab", ota.NonceSize)
	for range 2 { // the second time the hash is known
		resp, b := w.ask(u, "GET", "/manifest?slot=ota_1&nonce="+nonce)
		wantStatus(t, resp, b, 200, "")
		m, err := ota.ParseManifest(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if err := m.Verify(w.signer.Public()); err != nil {
			t.Error(err)
		}
		_, got := w.ask(u, "GET", "/firmware?slot=ota_1&release="+m.Release)
		if m.CipherSHA256 != sum(got) || m.PlainSHA256 != sum(plain) || int(m.Length) != len(got) || m.Unit != u.mac || hex.EncodeToString(m.Nonce) != nonce || m.SecureVersion != 3 {
			t.Errorf("the manifest is of other bytes: %s", b)
		}
	}
	resp, b := w.ask(u, "GET", "/manifest?slot=ota_1&have=1.0.0")
	if wantStatus(t, resp, b, 204, ""); resp.Header.Get("Provisiond-Reason") != "up-to-date" || len(b) != 0 {
		t.Errorf("%v %q", resp.Header, b)
	}
	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"/manifest":                             {400, "slot"},
		"/manifest?slot=ota_7":                  {409, "slot"},
		"/manifest?slot=ota_1&nonce=xy":         {400, "nonce"},
		"/manifest?slot=ota_1&nonce=abcd":       {400, "nonce"},
		"/manifest?slot=ota_1&release=none":     {404, "not-found"},
		"/manifest?slot=ota_1&secure_version=4": {409, "secure-version"},
		"/manifest?slot=ota_1&secure_version=x": {400, "secure_version"},
		"/firmware?slot=ota_1&secure_version=4": {409, "secure-version"},
		"/firmware?slot=factory":                {409, "slot"},
		"/firmware?slot=ota_1&release=none":     {404, "not-found"},
		"/firmware?slot=ota_1;x":                {400, "query"},
		"/firmware?slot=ota_1&have=1.0.0":       {404, "not-found"},
		"/other":                                {404, "not-found"},
	} {
		resp, b := w.ask(u, "GET", path)
		if wantStatus(t, resp, b, want.status, want.code); t.Failed() {
			t.Fatal(path)
		}
	}
}

func TestAuthentication(t *testing.T) {
	w := newWorld(t).serve(nil)
	u, other := w.unit(1), w.unit(2)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	unknown := unit{mac: keystoretest.Simulated(99), token: u.token}
	stolen := unit{mac: other.mac, token: u.token}
	var texts []string
	for name, x := range map[string]unit{
		"unknown": unknown, "another's token": stolen, "none": {mac: u.mac}, "no token": {mac: u.mac, token: "x"},
		"long": {mac: u.mac, token: strings.Repeat("A", 5000)}, "padded": {mac: u.mac, token: u.token + "="},
	} {
		resp, b := w.ask(x, "GET", "/firmware?slot=ota_1")
		if wantStatus(t, resp, b, 401, "unauthorized"); resp.Header.Get("WWW-Authenticate") == "" || resp.Header.Get("Etag") != "" {
			t.Errorf("%s: %v", name, resp.Header)
		}
		texts = append(texts, string(b))
	}
	for _, b := range texts {
		if b != texts[0] {
			t.Errorf("answers tell units apart: %s %s", b, texts[0])
		}
	}
	if n := w.store.loads.Load(); n != 0 {
		t.Errorf("%d keys were read for nobody", n)
	}
	for _, mac := range []string{"02:00:00:00:00:1", "x", "020000000001", "02-00-00-00-00-01"} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/v1/units/"+mac+"/firmware?slot=ota_1", nil)
		r.Header.Set("Authorization", "Bearer "+u.token)
		resp, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", mac, resp.StatusCode)
		}
	}
	if resp, b := w.ask(u, "GET", "/firmware?slot=ota_1"); resp.StatusCode != http.StatusOK {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

func TestResult(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 3, 50_000))
	resp, b := w.ask(u, "POST", "/result", "body", `{"release":"1.0.0","slot":"ota_1","outcome":"confirmed","reason":"","version":"1.0.0","secure_version":7,"later":1}`)
	wantStatus(t, resp, b, 204, "")
	got, err := w.releases.Unit(u.mac)
	if err != nil || got.SecureVersion != 7 || got.Last == nil || got.Last.Outcome != release.Confirmed {
		t.Errorf("%+v, %v", got, err)
	}
	if r, err := w.releases.Release("1.0.0"); err != nil || r.Results[release.Confirmed] != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	resp, b = w.ask(u, "GET", "/manifest?slot=ota_0")
	wantStatus(t, resp, b, 409, "secure-version")
	for _, bad := range []string{
		``, `{}`, `{"outcome":"x"}`, `[]`, `{"outcome":"failed","slot":"ota_16"}`, `{"outcome":"failed","secure_version":-1}`, `{"outcome":"failed","secure_version":33}`,
		`{"outcome":"failed","reason":"` + strings.Repeat("x", 300) + `"}`, `{"outcome":"failed","reason":"` + strings.Repeat("x", 3000) + `"}`,
	} {
		resp, b := w.ask(u, "POST", "/result", "body", bad)
		wantStatus(t, resp, b, 400, "result")
	}
	resp, b = w.ask(u, "POST", "/result", "body", "{\"outcome\":\"failed\",\"version\":\"1.0-\xff\"}")
	wantStatus(t, resp, b, 204, "")
	if got, err = w.releases.Unit(u.mac); err != nil || got.Last.Version != "1.0-_" {
		t.Errorf("%+v, %v", got.Last, err)
	}
	resp, b = w.ask(unit{mac: u.mac, token: w.unit(2).token}, "POST", "/result", "body", `{"outcome":"failed"}`)
	wantStatus(t, resp, b, 401, "unauthorized")
}

// TestAudit: no byte leaves without a line, and a line names no secret.
func TestAudit(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	w.ask(u, "GET", "/firmware?slot=ota_1", "Range", "bytes=16-31")
	w.ask(u, "GET", "/manifest?slot=ota_0")
	w.ask(u, "HEAD", "/firmware?slot=ota_1")
	b, err := os.ReadFile(w.audit)
	if err != nil {
		t.Fatal(err)
	}
	var got []server.Use
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var use server.Use
		if err := d.Decode(&use); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if use.Unit != u.mac || use.Key != u.record.Fingerprint || use.Who != "token" || use.From != "127.0.0.1" || use.Release != "1.0.0" || time.Since(use.Time) > time.Minute {
			t.Errorf("%+v", use)
		}
		got = append(got, use)
	}
	var short []string
	for _, g := range got {
		short = append(short, fmt.Sprint(g.Event, " ", g.Why, " ", g.Slot, " ", g.Range, " ", g.Outcome, " ", g.Bytes))
	}
	want := []string{"begin firmware ota_1 bytes=16-31  0", "end firmware ota_1 bytes=16-31 sent 16", "begin manifest ota_0   0", "end manifest ota_0  sent 0"}
	if strings.Join(short, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", short)
	}
	if bytes.Contains(b, []byte(u.token)) {
		t.Error("the audit file holds a token")
	}
}
