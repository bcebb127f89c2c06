package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// TestOutage: units whose key is in memory are served while the keystore is away,
// for as long as keys are held; others are told when to come again.
func TestOutage(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.KeyHold = 10 * time.Minute })
	u, other := w.unit(1), w.unit(2)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		resp, b := w.ask(u, "GET", "/firmware?slot=ota_1")
		wantStatus(t, resp, b, 200, "")
		w.store.away.Store(true)
		resp, b = w.ask(u, "GET", "/firmware?slot=ota_0")
		wantStatus(t, resp, b, 200, "")
		resp, b = w.ask(other, "GET", "/firmware?slot=ota_1")
		if wantStatus(t, resp, b, 503, "keystore"); resp.Header.Get("Retry-After") == "" {
			t.Error("nobody says when to come again")
		}
		// It is left alone for a moment, whoever asks.
		n := w.store.lists.Load()
		for i := range 200 {
			resp, b = w.ask(unit{mac: keystoretest.Simulated(byte(i)), token: other.token}, "GET", "/firmware?slot=ota_1")
			if i != 1 { // that is u, with a wrong token
				wantStatus(t, resp, b, 503, "keystore")
			}
		}
		if got := w.store.lists.Load(); got != n {
			t.Errorf("asked %d times while it is away", got-n)
		}
		time.Sleep(11 * time.Minute)
		resp, b = w.ask(u, "GET", "/firmware?slot=ota_1")
		wantStatus(t, resp, b, 503, "keystore")
		w.store.away.Store(false)
		time.Sleep(3 * time.Second)
		for _, x := range []unit{u, other} {
			resp, b = w.ask(x, "GET", "/firmware?slot=ota_1")
			wantStatus(t, resp, b, 200, "")
		}
	})
}

// TestFlood: made-up units become few lookups, and good ones stay served.
func TestFlood(t *testing.T) {
	w := newWorld(t, func(o *server.Options) {
		o.Requests = server.Rate{PerSecond: 1e6, Burst: 1e6}
		o.LookupsPerAddress = server.Rate{PerSecond: 1, Burst: 10}
	})
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		resp, b := w.ask(u, "GET", "/firmware?slot=ota_1")
		wantStatus(t, resp, b, 200, "")
		lists := w.store.lists.Load()
		for range 1000 { // one unknown unit
			resp, b = w.ask(unit{mac: keystoretest.Simulated(200), token: u.token}, "GET", "/firmware?slot=ota_1")
			wantStatus(t, resp, b, 401, "unauthorized")
		}
		if got := w.store.lists.Load() - lists; got != 1 {
			t.Errorf("an unknown unit was looked up %d times", got)
		}
		lists = w.store.lists.Load()
		refused := 0
		for i := range 1000 { // many
			mac := keystoretest.Simulated(byte(i))
			mac[4] = byte(1 + i>>8)
			resp, b = w.ask(unit{mac: mac, token: u.token}, "GET", "/firmware?slot=ota_1")
			switch resp.StatusCode {
			case http.StatusTooManyRequests:
				refused++
			case http.StatusUnauthorized:
			default:
				t.Fatalf("%d %s", resp.StatusCode, b)
			}
		}
		if got := w.store.lists.Load() - lists; got > 10 || refused < 900 {
			t.Errorf("1000 unknown units were looked up %d times, %d refused", got, refused)
		}
		resp, b = w.ask(u, "GET", "/firmware?slot=ota_1")
		wantStatus(t, resp, b, 200, "")
		if w.store.loads.Load() != 1 {
			t.Errorf("%d keys were read", w.store.loads.Load())
		}
		// What was unknown may be provisioned in the meantime.
		late := w.unit(200)
		time.Sleep(2 * time.Minute)
		resp, b = w.ask(late, "GET", "/firmware?slot=ota_1")
		wantStatus(t, resp, b, 200, "")
	})
}

// TestRates: a unit that asks too often hinders nobody else.
func TestRates(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.PerUnit = server.Rate{PerSecond: 1, Burst: 5} })
	u, other := w.unit(1), w.unit(2)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var last *reply
		for range 6 {
			last, _ = w.ask(u, "GET", "/manifest?slot=ota_1")
		}
		if last.StatusCode != http.StatusTooManyRequests || last.Header.Get("Retry-After") != "1" {
			t.Errorf("%d %v", last.StatusCode, last.Header)
		}
		// Somebody without its token takes nothing of its budget.
		for range 20 {
			w.ask(unit{mac: other.mac, token: u.token}, "GET", "/manifest?slot=ota_1")
		}
		resp, b := w.ask(other, "GET", "/manifest?slot=ota_1")
		wantStatus(t, resp, b, 204, "")
		time.Sleep(time.Second)
		resp, b = w.ask(u, "GET", "/manifest?slot=ota_1")
		wantStatus(t, resp, b, 204, "")
	})
}

// TestOneLookup: many requests of a unit at once are one lookup.
func TestOneLookup(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	w.store.hold = make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			resp, b := w.ask(u, "GET", "/firmware?slot=ota_1")
			wantStatus(t, resp, b, 200, "")
		})
	}
	close(w.store.hold)
	wg.Wait()
	if lists, loads := w.store.lists.Load(), w.store.loads.Load(); lists > 2 || loads != 1 { // find, and find before load
		t.Errorf("%d lists, %d loads", lists, loads)
	}
}

// TestNoAuditNoKey: when the use of a key cannot be noted, nothing is sent.
func TestNoAuditNoKey(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("needs /dev/full")
	}
	full, err := server.OpenAudit("/dev/full", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	w := newWorld(t, func(o *server.Options) { o.Audit = full }).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 50_000))
	for _, path := range []string{"/firmware?slot=ota_1", "/manifest?slot=ota_1"} {
		resp, b := w.ask(u, "GET", path)
		if wantStatus(t, resp, b, 503, "audit"); resp.Header.Get("Etag") != "" || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%v", resp.Header)
		}
	}
}

// TestCertificates: a unit with a client certificate is the one that it names.
func TestCertificates(t *testing.T) {
	ca, stranger := certificate(t, nil, "units", nil), certificate(t, nil, "units", nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	w := newWorld(t)
	w.serve(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate(t, nil, "server", nil).pair},
		ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven,
	})
	u, other := w.unit(1), w.unit(2)
	w.roll("1.0.0", app(t, "1.0.0", 1, 200_000))
	urn, err := url.Parse("urn:provisiond:unit:" + u.mac.String())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(x unit, c *signed) (int, error) {
		conf := &tls.Config{InsecureSkipVerify: true}
		if c != nil {
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.pair, nil }
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		defer client.CloseIdleConnections()
		code := 0
		for range 3 { // the second and third on a connection that came back
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/v1/units/"+x.mac.String()+"/firmware?slot=ota_1", nil)
			if err != nil {
				return 0, err
			}
			if x.token != "" {
				r.Header.Set("Authorization", "Bearer "+x.token)
			}
			resp, err := client.Do(r)
			if err != nil {
				return 0, err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if code != 0 && code != resp.StatusCode {
				return 0, fmt.Errorf("%d, then %d", code, resp.StatusCode)
			}
			code = resp.StatusCode
		}
		return code, nil
	}
	bare := unit{mac: u.mac}
	for name, tc := range map[string]struct {
		x    unit
		c    *signed
		want int
	}{
		"its name":              {bare, certificate(t, ca, u.mac.String(), nil), 200},
		"its URN":               {bare, certificate(t, ca, "device", urn), 200},
		"the URN counts":        {unit{mac: other.mac}, certificate(t, ca, other.mac.String(), urn), 403},
		"another's":             {unit{mac: other.mac}, certificate(t, ca, u.mac.String(), nil), 403},
		"another's, with token": {other, certificate(t, ca, u.mac.String(), nil), 403},
		"nobody's":              {bare, certificate(t, ca, "device", nil), 403},
		"unknown unit":          {unit{mac: keystoretest.Simulated(77)}, certificate(t, ca, keystoretest.Simulated(77).String(), nil), 404},
		"no certificate":        {bare, nil, 401},
		"a token over TLS":      {u, nil, 200},
	} {
		if got, err := ask(tc.x, tc.c); err != nil || got != tc.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, tc.want)
		}
	}
	if got, err := ask(bare, certificate(t, stranger, u.mac.String(), nil)); err == nil {
		t.Errorf("a stranger's certificate: %d", got)
	}
	b, err := os.ReadFile(w.audit)
	if err != nil || !strings.Contains(string(b), `"who":"cert `) || !strings.Contains(string(b), `"who":"token"`) {
		t.Errorf("%v: %s", err, b)
	}
}

// TestVault: with the OTA role of a real Vault, through an outage.
func TestVault(t *testing.T) {
	srv := vaulttest.New(t)
	dir := t.TempDir()
	config := func(token string) vault.Config {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return vault.Config{Addresses: srv.Addrs(), CACert: srv.CA.File, Mount: "kv", Station: "line1", Login: vault.Login{TokenFile: file}}
	}
	admin, err := vault.OpenAdmin(t.Context(), config(srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	loopback := []string{"127.0.0.0/8"}
	if _, err := admin.Setup(t.Context(), vault.SetupOptions{TestStore: true, Stations: []vault.AppRoleOptions{{Name: "line1", CIDRs: loopback}}, OTA: &vault.AppRoleOptions{CIDRs: loopback}}); err != nil {
		t.Fatal(err)
	}
	open := func(role vault.Role) keystore.Store {
		s, err := vault.Open(t.Context(), config(srv.Token(t, vault.PolicyName(role, vault.PolicyParams{Mount: "kv", Station: "line1"}))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	station := open(vault.RoleStation)
	w := newWorld(t, func(o *server.Options) {
		o.Store = &store{Store: open(vault.RoleOTA)}
		o.LookupWait = time.Second
	}).serve(nil)
	w.store.Store = station // it makes the units
	u, other := w.unit(1), w.unit(2)
	plain := app(t, "1.0.0", 1, 100_000)
	w.roll("1.0.0", plain)

	audit := srv.EnableAudit(t, filepath.Join(dir, "vault.log"))
	read := func() string {
		b, err := os.ReadFile(audit)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	record := "kv/data/units/" + fmt.Sprintf("%02x/%s/%s", u.mac[5], u.mac, u.record.Fingerprint)
	resp, b := w.ask(unit{mac: u.mac, token: other.token}, "GET", "/firmware?slot=ota_1")
	wantStatus(t, resp, b, 401, "unauthorized")
	if strings.Contains(read(), `"path":"`+record+`"`) {
		t.Error("the key was read for somebody with a wrong token")
	}
	for range 3 {
		resp, b = w.ask(u, "GET", "/firmware?slot=ota_1")
		if wantStatus(t, resp, b, 200, ""); string(b) != string(u.want(t, plain, "ota_1")) {
			t.Error("other bytes")
		}
	}
	if n := strings.Count(read(), `"path":"`+record+`"`); n == 0 || n > 2 { // request and response
		t.Errorf("the key was read %d times", n)
	}
	asked := 0
	for line := range strings.Lines(read()) {
		var l struct {
			Type    string
			Auth    struct{ Policies []string }
			Request struct{ Operation, Path string }
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Type != "request" || !slices.Contains(l.Auth.Policies, "kv-ota") {
			continue
		}
		asked++
		if l.Request.Operation != "read" && l.Request.Path != "auth/token/renew-self" {
			t.Errorf("the server did more than read: %s %s", l.Request.Operation, l.Request.Path)
		}
	}
	if asked < 5 || asked > 40 {
		t.Errorf("Vault was asked %d times", asked)
	}

	srv.Seal(t)
	resp, b = w.ask(u, "GET", "/firmware?slot=ota_0")
	wantStatus(t, resp, b, 200, "")
	resp, b = w.ask(other, "GET", "/firmware?slot=ota_0")
	if wantStatus(t, resp, b, 503, "keystore"); resp.Header.Get("Retry-After") != "15" {
		t.Errorf("%v", resp.Header)
	}
	srv.Unseal(t)
	vaulttest.Eventually(t, time.Minute, "the other unit is served again", func() error {
		if resp, b := w.ask(other, "GET", "/firmware?slot=ota_0"); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%d %s", resp.StatusCode, b)
		}
		return nil
	})

	// A server whose login reads no key.
	public := open(vault.RoleOTAPublic)
	if r, err := public.Load(t.Context(), u.mac, u.record.Fingerprint); err == nil {
		t.Errorf("the role ota-public reads a key: %v", r.Unit)
	}
	w = newWorld(t, func(o *server.Options) { o.Store, o.NoKeys = public, true }).serve(nil)
	w.roll("1.0.0", plain)
	if err := w.releases.SetPlaintext("stable", true); err != nil {
		t.Fatal(err)
	}
	if resp, b := w.ask(u, "GET", "/firmware?format=plain"); resp.StatusCode != http.StatusOK || string(b) != string(plain) {
		t.Errorf("plaintext without keys: %d with %d bytes", resp.StatusCode, len(b))
	}
	resp, b = w.ask(u, "GET", "/firmware?slot=ota_1")
	wantStatus(t, resp, b, 409, "no-keys")
}

// TestMetrics: the figures tell what happened, and name no unit.
func TestMetrics(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 100_000))
	_, body := w.ask(u, "GET", "/firmware?slot=ota_1")
	w.ask(unit{mac: u.mac}, "GET", "/firmware?slot=ota_1")
	w.ask(u, "POST", "/result", "body", `{"outcome":"failed"}`)
	want := []string{
		`provisiond_ota_requests_total{code="200",route="firmware"} 1`, `provisiond_ota_requests_total{code="401",route="firmware"} 1`,
		fmt.Sprintf("provisiond_ota_sent_bytes_total %d", len(body)), `provisiond_ota_results_total{outcome="failed"} 1`,
		`provisiond_ota_keystore_lookups_total{outcome="ok",what="load"} 1`, "provisiond_ota_keys_held 1", "provisiond_ota_keystore_up 1",
	}
	// A download is counted when it ends, which its client cannot see.
	vaulttest.Eventually(t, 10*time.Second, "all is counted", func() error {
		rec := httptest.NewRecorder()
		w.server.Metrics().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		text := rec.Body.String()
		if strings.Contains(text, u.mac.String()) {
			t.Error("a unit is named")
		}
		for _, line := range want {
			if !strings.Contains(text, line+"\n") {
				return fmt.Errorf("there is no %s in\n%s", line, text)
			}
		}
		return nil
	})
	rec := httptest.NewRecorder()
	w.server.Metrics().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if rec.Code != http.StatusOK {
		t.Errorf("healthz: %d", rec.Code)
	}
}
