package web_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/web"
)

// page asks for a page, or sends a form, as a browser with a cookie does.
func page(s http.Handler, method, path string, form url.Values, cookie string, header ...string) *httptest.ResponseRecorder {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r := httptest.NewRequest(method, "http://localhost"+path, body)
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: "provisiond", Value: cookie})
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func enter(t testing.TB, c *crowd, k web.Credentials) string {
	t.Helper()
	se, err := c.Login(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return se.Token
}

var (
	asOperator = web.Credentials{Kind: "badge", Secret: "4711"}
	asEngineer = web.Credentials{Kind: "password", Name: "eve", Secret: "engineer's word"}
	asAuditor  = web.Credentials{Kind: "password", Name: "ada", Secret: "auditor's word"}
)

func TestHeaders(t *testing.T) {
	s := newServer(t, newDouble(1), nil)
	for _, path := range []string{"/login", "/", "/static/app.css", "/api/v1/station", "/metrics", "/healthz", "/nowhere"} {
		h := page(s, "GET", path, nil, "").Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %s", path, csp)
		}
	}
	// Static files may be kept for ever, but only under the name with their hash.
	body := page(s, "GET", "/login", nil, "").Body.String()
	_, after, _ := strings.Cut(body, `href="/static/app.css?`)
	hash, _, _ := strings.Cut(after, `"`)
	if cc := page(s, "GET", "/static/app.css?"+hash, nil, "").Header().Get("Cache-Control"); !strings.Contains(cc, "immutable") {
		t.Errorf("with its hash: %q", cc)
	}
	if cc := page(s, "GET", "/static/app.css?other", nil, "").Header().Get("Cache-Control"); cc != "no-cache" {
		t.Errorf("with another hash: %q", cc)
	}
	if w := page(s, "GET", "/static/", nil, ""); w.Code != 404 {
		t.Errorf("the folder is listed: %d", w.Code)
	}
}

// TestCrossOrigin: another site's page can neither act nor look.
func TestCrossOrigin(t *testing.T) {
	d, c := newDouble(1), newCrowd()
	s := newServer(t, d, func(o *web.Options) { o.People = c })
	token := enter(t, c, asEngineer)
	form := url.Values{"confirm": {"yes"}}
	for _, h := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Origin", "http://evil.example"},
	} {
		for _, path := range []string{"/slots/A1/abort", "/login", "/logout", "/api/v1/slots/A1/abort"} {
			if w := page(s, "POST", path, form, token, h...); w.Code != 403 {
				t.Errorf("%v %s: %d", h, path, w.Code)
			}
		}
	}
	if got := d.called(); got != nil {
		t.Errorf("the station was asked: %q", got)
	}
	if w := page(s, "POST", "/slots/A1/abort", form, token, "Sec-Fetch-Site", "same-origin"); w.Code != 303 {
		t.Errorf("the page's own form: %d", w.Code)
	}
	// A name that somebody else points here.
	r := httptest.NewRequest(http.MethodGet, "http://evil.example/api/v1/openapi.yaml", nil)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != http.StatusMisdirectedRequest {
		t.Errorf("under a foreign name: %d", w.Code)
	}
	for _, host := range []string{"localhost:8080", "127.0.0.1:8080", "[::1]:8080", "192.168.3.4", "LOCALHOST."} {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/healthz", nil)
		r.Host = host
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 200 {
			t.Errorf("as %s: %d", host, w.Code)
		}
	}
}

func TestLogin(t *testing.T) {
	d, c := newDouble(1), newCrowd()
	s := newServer(t, d, func(o *web.Options) { o.People = c })
	w := page(s, "GET", "/history?lot=L1", nil, "")
	if w.Code != 303 || w.Header().Get("Location") != "/login?next=%2Fhistory%3Flot%3DL1" {
		t.Errorf("%d %s", w.Code, w.Header().Get("Location"))
	}
	if w := page(s, "POST", "/slots/A1/start", url.Values{}, "", "HX-Request", "true"); w.Header().Get("HX-Redirect") != "/login" {
		t.Errorf("a part of a page: %v", w.Header())
	}
	w = page(s, "POST", "/login", url.Values{"name": {"li"}, "secret": {"0000"}, "next": {"/lots"}}, "")
	if w.Code != 401 || len(w.Result().Cookies()) != 0 || !strings.Contains(w.Body.String(), "is not right") {
		t.Errorf("wrong PIN: %d %v", w.Code, w.Result().Cookies())
	}
	w = page(s, "POST", "/login", url.Values{"name": {"li"}, "secret": {"1234"}, "next": {"/lots"}}, "")
	cookies := w.Result().Cookies()
	if w.Code != 303 || w.Header().Get("Location") != "/lots" || len(cookies) != 1 {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	ck := cookies[0]
	if !ck.HttpOnly || ck.SameSite != http.SameSiteStrictMode || ck.Path != "/" || ck.Secure || ck.Name != "provisiond" {
		t.Errorf("cookie %+v", ck)
	}
	if got := d.called(); !slices.Equal(got, []string{"login li"}) {
		t.Errorf("journal: %q", got)
	}
	if w := page(s, "GET", "/", nil, ck.Value); w.Code != 200 || !strings.Contains(w.Body.String(), "<b>li</b>") {
		t.Errorf("%d", w.Code)
	}
	// With TLS the cookie is bound to it and to this host.
	r := httptest.NewRequest(http.MethodPost, "https://localhost/login", strings.NewReader("badge=4711"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	if ck := rec.Result().Cookies(); len(ck) != 1 || ck[0].Name != "__Host-provisiond" || !ck[0].Secure || ck[0].Domain != "" {
		t.Errorf("cookie with TLS: %v", ck)
	}
	// Another badge at the same screen ends the first session.
	d.called()
	w = page(s, "POST", "/scan", url.Values{"code": {"badge:4711"}}, ck.Value, "HX-Request", "true")
	if got := d.called(); w.Header().Get("HX-Redirect") != "/" || !slices.Equal(got, []string{"logout li", "login li"}) {
		t.Errorf("%v %q", w.Header(), got)
	}
	if _, ok := c.Session(ck.Value, true); ok {
		t.Error("the first session goes on")
	}
	token := w.Result().Cookies()[0].Value
	if w := page(s, "POST", "/logout", url.Values{}, token); w.Code != 303 || w.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("%d %v", w.Code, w.Result().Cookies())
	}
	if _, ok := c.Session(token, true); ok {
		t.Error("a session after logging out")
	}
	// Nobody is in whom the journal does not know.
	d.err = &station.ActionError{Kind: station.ActionFailed, Text: "the journal cannot be written"}
	w = page(s, "POST", "/login", url.Values{"badge": {"4711"}}, "")
	if w.Code != 503 || len(w.Result().Cookies()) != 0 || len(c.sessions) != 1 { // one is from TLS
		t.Errorf("%d %v, %d sessions", w.Code, w.Result().Cookies(), len(c.sessions))
	}
	d.err = nil
	c.denied = &web.DeniedError{RetryAfter: 1500 * time.Millisecond}
	w = page(s, "POST", "/login", url.Values{"badge": {"4711"}}, "")
	if w.Code != 429 || !strings.Contains(w.Body.String(), "wait 2 seconds") {
		t.Errorf("%d", w.Code)
	}
}

// TestOpenBoard: without a login the tiles are there for everybody if they are to
// be, and nothing else.
func TestOpenBoard(t *testing.T) {
	s := newServer(t, newDouble(2), func(o *web.Options) { o.Config.OpenBoard = true })
	w := page(s, "GET", "/", nil, "")
	if w.Code != 200 || strings.Contains(w.Body.String(), `id="scan"`) || strings.Contains(w.Body.String(), "/lots") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, p := range []string{"/history", "/lots", "/recipes", "/audit", "/barcodes", "/units/24:0a:c4:00:00:01/certificate"} {
		if w := page(s, "GET", p, nil, ""); w.Code != 303 {
			t.Errorf("%s: %d", p, w.Code)
		}
	}
	if w := page(s, "POST", "/slots/A1/start", url.Values{}, ""); w.Code != 303 || w.Header().Get("Location") != "/login" {
		t.Errorf("%d", w.Code)
	}
	if w := page(s, "GET", "/api/v1/lots", nil, ""); w.Code != 401 {
		t.Errorf("%d", w.Code)
	}
}

// TestConfirm: nothing that cannot be taken back happens at the first press, with
// scripts or without.
func TestConfirm(t *testing.T) {
	d, c := newDouble(16), newCrowd()
	s := newServer(t, d, func(o *web.Options) { o.People = c })
	token := enter(t, c, asEngineer)
	for path, want := range map[string]string{
		"/slots/A1/abort": "abort A1 by eve", "/slots/B4/clear": `clear B4 "" by eve`, "/lots/L-2026-47/close": "close L-2026-47 by eve",
	} {
		for _, h := range [][]string{nil, {"HX-Request", "true"}} {
			w := page(s, "POST", path, url.Values{}, token, h...)
			if got := d.called(); w.Code != 200 || got != nil || !strings.Contains(w.Body.String(), `name="confirm" value="yes"`) {
				t.Errorf("%s at once: %d %q", path, w.Code, got)
			}
			if whole := strings.Contains(w.Body.String(), "<html"); whole == (h != nil) {
				t.Errorf("%s: a whole page: %t", path, whole)
			}
			w = page(s, "POST", path, url.Values{"confirm": {"yes"}}, token, h...)
			if got := d.called(); !slices.Equal(got, []string{want}) || w.Code != 200 && w.Code != 303 {
				t.Errorf("%s: %d %q", path, w.Code, got)
			}
		}
	}
	// The scanner's question is answered by the scanner.
	scan := func(code, pending string) (string, []string) {
		w := page(s, "POST", "/scan", url.Values{"code": {code}, "pending": {pending}}, token, "HX-Request", "true")
		return w.Body.String(), d.called()
	}
	for _, code := range []string{"CMD:ABORT", "CMD:SCRAP", "CMD:CLEAR", "CMD:ENDLOT", "cmd:scrap"} {
		body, got := scan(code, "")
		if got != nil || !strings.Contains(body, `name="pending" value="`+strings.ToUpper(code)+`"`) {
			t.Errorf("%s: %q %s", code, got, body)
		}
		if _, got := scan("CMD:NO", code); got != nil {
			t.Errorf("%s, no: %q", code, got)
		}
		if _, got := scan("CMD:YES", code); !slices.Equal(got, []string{"scan " + strings.ToUpper(code) + " by eve"}) {
			t.Errorf("%s, yes: %q", code, got)
		}
	}
	if body, got := scan("CMD:YES", ""); got != nil || !strings.Contains(body, "nothing to confirm") {
		t.Errorf("%q %s", got, body)
	}
	if _, got := scan("CMD:YES", "SN:1"); got != nil {
		t.Errorf("%q", got)
	}
	for code, want := range map[string]string{"SN:AB1": "SN:AB1", "AB1\t": "SN:AB1", "24:0A:C4:00:1F:01": "MAC:24:0a:c4:00:1f:01", "240AC4001F01": "SN:240AC4001F01", "slot:A1": "SLOT:A1", "cmd:start": "CMD:START"} {
		if _, got := scan(code, ""); !slices.Equal(got, []string{"scan " + want + " by eve"}) {
			t.Errorf("%q: %q", code, got)
		}
	}
}

// TestBounds: what is too large, too long or not text is refused before the
// station hears of it.
func TestBounds(t *testing.T) {
	d, c := newDouble(2), newCrowd()
	s := newServer(t, d, func(o *web.Options) { o.People = c })
	token := enter(t, c, asEngineer)
	long := strings.Repeat("x", 600)
	for _, r := range []struct {
		method, path string
		form         url.Values
		want         int
	}{
		{"POST", "/slots/A1/start", url.Values{"serial": {long}}, 400},
		{"POST", "/slots/A1/start", url.Values{"serial": {"a\x00b"}}, 400},
		{"POST", "/slots/A1/start", url.Values{"serial": {"a\xffb"}}, 400},
		{"POST", "/slots/" + long + "/abort", url.Values{}, 400},
		{"POST", "/slots/A1/clear", url.Values{"note": {long}}, 400},
		{"POST", "/scan", url.Values{"code": {long}}, 400},
		{"POST", "/lots", url.Values{"id": {"a"}, "recipe": {long}, "quantity": {"1"}}, 400},
		{"POST", "/lots", url.Values{"id": {"a"}, "recipe": {"b"}, "quantity": {"99999999"}}, 400},
		{"POST", "/lots", url.Values{"id": {"a"}, "list": {strings.Repeat("x", 2<<20)}}, 413},
		{"POST", "/lots", url.Values{"id": {"a"}, "recipe": {"b"}, "quantity": {"1"}, "serials": {"list"}, "list": {strings.Repeat("x ", 20001)}}, 400},
		{"POST", "/login", url.Values{"name": {long}}, 400},
		{"POST", "/prefs", url.Values{"lang": {"xx"}}, 400},
		{"POST", "/prefs", url.Values{"theme": {"xx"}}, 400},
		{"GET", "/history?unit=" + long, nil, 400},
		{"GET", "/history?before=x", nil, 400},
		{"GET", "/audit?unit=" + long, nil, 400},
		{"GET", "/history?unit=" + strings.Repeat("x", 3000), nil, 414},
		{"GET", "/units/..%2f..%2fetc/certificate", nil, 400},
		{"GET", "/slots/nobody", nil, 404},
		{"GET", "/recipes/nobody", nil, 404},
	} {
		w := page(s, r.method, r.path, r.form, token)
		if got := d.called(); w.Code != r.want || len(got) > 0 {
			t.Errorf("%s %.60s: %d, want %d; the station heard %q", r.method, r.path, w.Code, r.want, got)
		}
	}
	for in, want := range map[string]string{"/lots": "/lots", "": "/", "//evil.example": "/", "https://evil.example/": "/", `/\evil.example`: "/", "lots": "/", "/a\nb": "/"} {
		if got := web.LocalPath(in); got != want {
			t.Errorf("next=%q goes to %q", in, got)
		}
	}
}

// TestPages renders every page for every role and language; a template that does
// not fit its data would end here.
func TestPages(t *testing.T) {
	c := newCrowd()
	s := newServer(t, newDouble(16), func(o *web.Options) { o.People = c })
	for role, k := range map[string]web.Credentials{"operator": asOperator, "engineer": asEngineer, "auditor": asAuditor} {
		token := enter(t, c, k)
		for _, lang := range []string{"en", "de", "zh"} {
			for _, p := range []string{"/", "/history", "/lots", "/recipes", "/recipes/sensor", "/audit", "/audit?unit=24:0a:c4:00:1f:01", "/station", "/help", "/barcodes", "/slots/A1", "/slots/A3", "/slots/B4", "/login", "/login?with=password"} {
				w := page(s, "GET", p, nil, token, "Accept-Language", lang)
				forbidden := role == "operator" && (strings.HasPrefix(p, "/recipes") || strings.HasPrefix(p, "/audit")) || role == "auditor" && p == "/barcodes"
				if want := map[bool]int{true: 403, false: 200}[forbidden]; w.Code != want {
					t.Errorf("%s %s: %d", role, p, w.Code)
				}
				body := w.Body.String()
				if !strings.Contains(body, `<html lang="`+lang+`"`) || strings.Contains(body, "ZgotmplZ") || strings.Contains(body, "<no value>") || !strings.HasSuffix(body, "</html>\n") {
					t.Errorf("%s %s in %s is not whole", role, p, lang)
				}
				// What a person may not do is not offered.
				for _, what := range []string{`action="/slots/A1/abort"`, `action="/slots/B4/clear"`, `action="/lots"`, `/close"`} {
					if strings.Contains(body, what) && (role == "auditor" || role == "operator" && strings.Contains(what, "clear")) {
						t.Errorf("%s is offered %s", role, what)
					}
				}
			}
		}
	}
}

// TestFailures: every failure in the history has its reason and next step.
func TestFailures(t *testing.T) {
	c := newCrowd()
	d := newDouble(16)
	s := newServer(t, d, func(o *web.Options) { o.People = c })
	body := page(s, "GET", "/history", nil, enter(t, c, asOperator)).Body.String()
	for _, u := range d.history {
		if u.Verdict == "PASS" {
			continue
		}
		for _, text := range []string{u.Reason, u.NextStep, u.Unit, u.Serial} {
			if text == "" || !strings.Contains(body, strings.NewReplacer(`"`, "&#34;", "'", "&#39;").Replace(text)) {
				t.Errorf("%s is not shown: %q", u.Verdict, text)
			}
		}
	}
	// What a board says is text, and never a part of the page.
	d.set("A3", func(s *station.SlotView) { s.Reason = `<script>alert(1)</script>` })
	body = page(s, "GET", "/", nil, enter(t, c, asOperator)).Body.String()
	if strings.Contains(body, "<script>alert") || !strings.Contains(body, "&lt;script&gt;alert") {
		t.Error("a reason is a part of the page")
	}
}

// TestPanic: a handler that panics is an answer and a line in the log; the server
// goes on.
func TestPanic(t *testing.T) {
	d, c := newDouble(1), newCrowd()
	s := newServer(t, d, func(o *web.Options) { o.People, o.Station = c, panicking{d} })
	token := enter(t, c, asOperator)
	if w := page(s, "GET", "/history", nil, token); w.Code != 500 || strings.Contains(w.Body.String(), "boom") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := page(s, "GET", "/", nil, token); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

// TestVendored holds the files of others against their sums.
func TestVendored(t *testing.T) {
	f, err := os.Open("static/VENDORED.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	known := map[string]bool{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) < 3 || w[0] == "#" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("static", w[1]))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if hex.EncodeToString(sum[:]) != w[0] {
			t.Errorf("%s is not the file that VENDORED.txt names", w[1])
		}
		known[w[1]] = true
	}
	all, err := web.Static.ReadDir("static")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if strings.HasSuffix(e.Name(), ".min.js") && !known[e.Name()] {
			t.Errorf("nobody knows where %s is from", e.Name())
		}
	}
	if len(known) != 2 {
		t.Errorf("%d files of others", len(known))
	}
}

// TestNoKeyInReach walks all types that a handler can get from a station.
func TestNoKeyInReach(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type, string)
	walk = func(ty reflect.Type, path string) {
		if seen[ty] {
			return
		}
		seen[ty] = true
		if ty == reflect.TypeFor[keystore.Digest]() { // a SHA-256 that stands in public records
			return
		}
		for _, bad := range []string{"/internal/secret", "/keystore", "crypto/"} {
			if strings.Contains(ty.PkgPath(), bad) {
				t.Errorf("%s is a %s", path, ty)
			}
		}
		switch ty.Kind() { //nolint:exhaustive // the others hold no types
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan, reflect.Map:
			if ty.Kind() == reflect.Map {
				walk(ty.Key(), path+" key")
			}
			walk(ty.Elem(), path)
		case reflect.Struct:
			for f := range ty.NumField() {
				// What is not exported is out of a handler's reach.
				if ty.Field(f).IsExported() {
					walk(ty.Field(f).Type, path+"."+ty.Field(f).Name)
				}
			}
		case reflect.Func:
			for i := range ty.NumOut() {
				walk(ty.Out(i), path+" result")
			}
		case reflect.Interface:
			for m := range ty.NumMethod() {
				walk(ty.Method(m).Type, path+"."+ty.Method(m).Name)
			}
		}
	}
	walk(reflect.TypeFor[web.Station](), "Station")
	if len(seen) < 30 {
		t.Errorf("only %d types", len(seen))
	}
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		p := filepath.Join(dir, "tokens")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := sum("secret token")
	line := "mes engineer " + hex.EncodeToString(s[:])
	toks, err := web.LoadTokens(write("# machines\n\n" + line + "\n"))
	if err != nil || len(toks) != 1 {
		t.Fatal(toks, err)
	}
	srv := newServer(t, newDouble(1), func(o *web.Options) { o.Tokens = toks })
	for token, want := range map[string]int{"Bearer secret token": 200, "Bearer secret tokem": 401, "secret token": 401, "Basic c2VjcmV0": 401, "Bearer " + strings.Repeat("x", 10000): 401} {
		if w := page(srv, "GET", "/api/v1/station", nil, "", "Authorization", token); w.Code != want {
			t.Errorf("%.40s: %d", token, w.Code)
		}
	}
	for text, want := range map[string]string{
		"mes engineer":                          "tokens:1: write NAME, ROLE",
		"\nmes boss " + strings.Fields(line)[2]: `tokens:2: "boss" is no role`,
		"mes engineer hunter2":                  "tokens:1: the third word is no SHA-256",
	} {
		_, err := web.LoadTokens(write(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		conf web.Config
		want string // field of the error
	}{
		{web.Config{}, ""},
		{web.Config{Listen: "127.0.0.1:0", Hosts: []string{"station-7.example"}, Language: "de"}, ""},
		{web.Config{Listen: "[::1]:8080"}, ""},
		{web.Config{Listen: "0.0.0.0:8443"}, ""},
		{web.Config{Listen: "0.0.0.0:8443", TLS: web.TLS{Mode: "files", Certificate: "a", Key: "b"}}, ""},
		{web.Config{Listen: "8080"}, "listen"},
		{web.Config{Listen: ":8080", TLS: web.TLS{Mode: "off"}}, "tls.mode"},
		{web.Config{Listen: "10.0.0.1:80", TLS: web.TLS{Mode: "off"}}, "tls.mode"},
		{web.Config{TLS: web.TLS{Mode: "maybe"}}, "tls.mode"},
		{web.Config{TLS: web.TLS{Mode: "files", Key: "b"}}, "tls.certificate"},
		{web.Config{TLS: web.TLS{Mode: "files", Certificate: "b"}}, "tls.key"},
		{web.Config{TLS: web.TLS{Certificate: "b"}}, "tls.mode"},
		{web.Config{Hosts: []string{"ok", "http://x"}}, "hosts[1]"},
		{web.Config{Language: "fr"}, "language"},
	} {
		err := c.conf.Validate()
		var fe *web.FieldError
		switch {
		case c.want == "" && err != nil, c.want != "" && !errors.As(err, &fe):
			t.Errorf("%+v: %v", c.conf, err)
		case c.want != "" && (fe.Field != c.want || fe.Fix == "" || fe.Problem == ""):
			t.Errorf("%+v: %v, want field %s", c.conf, err, c.want)
		}
	}
	if _, err := web.New(web.Options{Station: newDouble(1), People: newCrowd(), Config: web.Config{Language: "fr"}}); err == nil {
		t.Error("a wrong configuration serves")
	}
}

func TestMetrics(t *testing.T) {
	d := newDouble(3)
	m := web.NewMetrics()
	s := newServer(t, d, func(o *web.Options) { o.Metrics = m })
	m.UnitDone(result("PASS", false))
	m.UnitDone(result("FAIL", true))
	m.JournalFsync(3 * time.Millisecond)
	body := page(s, "GET", "/metrics", nil, "").Body.String()
	for _, want := range []string{
		`provisiond_units_total{result="PASS",simulated="false"} 1`, `provisiond_units_total{result="FAIL",simulated="true"} 1`,
		`provisiond_units_total{result="QUARANTINED",simulated="false"} 0`,
		`provisiond_unit_duration_seconds_count{phase="flash"} 2`, `provisiond_unit_duration_seconds_sum{phase="total"} 60`,
		`provisiond_slot_state{slot="A1",state="busy"} 1`, `provisiond_slot_state{slot="A1",state="pass"} 0`,
		`provisiond_keystore_up 1`, `provisiond_journal_fsync_seconds_count 1`, `provisiond_quota_remaining{lot="L-2026-47"} 578`,
		`provisiond_build_info{`, `provisiond_ready 1`, `provisiond_condition{condition="journal"} 1`, "go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, s := range d.View().Slots {
		if s.Unit != "" && (strings.Contains(body, s.Unit) || strings.Contains(body, s.Serial)) {
			t.Errorf("a label holds %s or %s", s.Unit, s.Serial)
		}
	}
	d.edit(func(v *station.View) { v.Conditions[0].OK = false })
	if body := page(s, "GET", "/metrics", nil, "").Body.String(); !strings.Contains(body, "provisiond_keystore_up 0") {
		t.Error("the keystore is up")
	}
}

func TestHealth(t *testing.T) {
	d := newDouble(1)
	s := newServer(t, d, nil)
	get := func(path string) string {
		w := page(s, "GET", path, nil, "")
		return fmt.Sprint(w.Code, " ", w.Body)
	}
	if got := get("/readyz"); got != "200 ready\n" {
		t.Error(got)
	}
	// What does not keep the station from working does not make it unready.
	d.edit(func(v *station.View) {
		v.Conditions = []station.Condition{{Name: "outbox-mes", Ready: true, Text: "no answer"}, {Name: "journal-disk", Text: "2 % left"}, {Name: "clock", OK: true}}
	})
	if got := get("/readyz"); got != "503 journal-disk: 2 % left\n" {
		t.Error(got)
	}
	d.edit(func(v *station.View) { v.Conditions, v.Stopping = nil, true })
	if got := get("/readyz"); !strings.HasPrefix(got, "503 stopping") {
		t.Error(got)
	}
	if got := get("/healthz"); got != "200 ok\n" {
		t.Error(got)
	}
}

func FuzzNormalise(f *testing.F) {
	for _, c := range web.ScanCodes() {
		f.Add(c)
	}
	f.Add("24:0a:c4:00:1f:01")
	f.Add(" sn : x ")
	f.Fuzz(func(t *testing.T, code string) {
		once := web.Normalise(code)
		if twice := web.Normalise(once); twice != once {
			t.Errorf("%q: %q, then %q", code, once, twice)
		}
	})
}

func TestColumns(t *testing.T) {
	for n, want := range map[int][2]int{0: {1, 1}, 1: {1, 1}, 2: {2, 1}, 4: {2, 1}, 16: {4, 2}, 64: {8, 4}} {
		wide, tall := web.Columns(n)
		if wide < want[0] || tall < want[1] || wide > 16 || tall > 10 {
			t.Errorf("%d slots: %d columns wide, %d tall", n, wide, tall)
		}
	}
	for n := range 200 {
		if w, h := web.Columns(n); w < 1 || w > 16 || h < 1 || h > 16 {
			t.Errorf("%d slots: %d, %d", n, w, h)
		}
	}
}
