package otaclient_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/otaclient"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/ota"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

const (
	appSize   = 24 << 10
	sector    = 0x1000
	request   = 2 * sector // what the client asks for at once
	saveEvery = 2          // sectors between its records
	// again is how much a loss of power may cost: the sectors since the last record,
	// and the rest of an answer that was on its way.
	again = saveEvery*sector + request
)

// product is what all units here are.
func product(m chip.Model) sample.Product {
	profile := "release"
	if m.Name == "esp32p4" {
		profile = "closed" // its errata forbid what release ends in
	}
	return sample.Product{Chip: m, Name: "ota-" + m.Name, Profile: profile, AppSize: appSize}
}

// unit is a board in release mode that the real engine provisioned, with what its
// backend knows of it.
type unit struct {
	t     *testing.T
	board *otaclient.Board
	known *ota.Unit
	virgo []byte // the board as it left the line

	product sample.Product
}

// making is what a unit is made of.
type making struct {
	board   espsim.Options
	product sample.Product
}

// newUnit provisions a simulated chip whose software was built with rollback.
func newUnit(t *testing.T, name string, last byte, changes ...func(*making)) *unit {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys := filepath.Join(dir, "keystore.db")
	id := keys + ".identity"
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(keys, local.Options{IdentityFile: id, TestStore: true}); err != nil {
		t.Fatal(err)
	}
	store, err := local.Open(keys, local.Options{IdentityFile: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	book := filepath.Join(dir, "journal.db")
	if err := journal.Init(book, journal.Options{Station: "bench"}); err != nil {
		t.Fatal(err)
	}
	jrn, err := journal.Open(book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jrn.Close() })
	mac := chip.MAC{0x02, 0, 0, 0, 0, last}
	mk := making{
		board:   espsim.Options{Model: m, MAC: mac, Revision: max(m.Lockdown.ClosedMinimum, 4), AppPrints: sample.AppText, Rollback: true, Seed: int64(last)},
		product: product(m),
	}
	for _, change := range changes {
		change(&mk)
	}
	path, err := sample.Write(dir, mk.product)
	if err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	job, err := provision.NewJob(r)
	if err != nil {
		t.Fatal(err)
	}
	c, err := espsim.New(mk.board)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	e := &provision.Engine{Store: store, Journal: jrn, Station: "bench", Slot: "1", Operator: "anna", Lot: "lot-1"}
	if res := e.Run(t.Context(), provision.Line{Port: port.FromSim(c, "sim://"+name), Reset: rom.AutoReset{}}, job); res.Verdict != provision.Pass {
		t.Fatalf("%s: %s", res.Verdict, res.Reason)
	}
	known, err := ota.Lookup(t.Context(), store, mac)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(known.Wipe)
	u := &unit{t: t, board: &otaclient.Board{Chip: c}, known: known, product: mk.product}
	var b bytes.Buffer
	if err := c.Save(&b); err != nil {
		t.Fatal(err)
	}
	u.virgo = b.Bytes()
	u.runs("factory", "1.0.0")
	return u
}

// reset makes the board what it was when it left the line.
func (u *unit) reset() {
	u.t.Helper()
	if err := u.board.Chip.Load(bytes.NewReader(u.virgo)); err != nil {
		u.t.Fatal(err)
	}
	u.board.Record, u.board.Cut = nil, nil
}

// runs demands that the chip booted the version from the partition, by its own text.
func (u *unit) runs(partition, version string) {
	u.t.Helper()
	text := string(u.board.Chip.BootText())
	app, err := u.board.Chip.App()
	if err != nil || app.Running().Name != partition ||
		!strings.Contains(text, fmt.Sprintf("Loaded app from partition at offset 0x%x\r\n", app.Running().Offset)) ||
		!strings.Contains(text, "App version:      "+version+"\r\n") || !strings.HasSuffix(text, sample.AppText+"\r\n") {
		u.t.Fatalf("want %s in %s to run: %v\n%s", version, partition, err, text)
	}
}

// image is another version of the product.
func (u *unit) image(version string, secure uint32) *ota.Image {
	u.t.Helper()
	p := u.product
	p.Version, p.SecureVersion = version, secure
	return u.imageOf(p)
}

func (u *unit) imageOf(p sample.Product) *ota.Image {
	u.t.Helper()
	b, err := sample.App(p)
	if err != nil {
		u.t.Fatal(err)
	}
	m, err := ota.ParseImage(b)
	if err != nil {
		u.t.Fatal(err)
	}
	return m
}

// told is what a unit posted.
type told struct {
	Release       string `json:"release"`
	Slot          string `json:"slot"`
	Outcome       string `json:"outcome"`
	Reason        string `json:"reason"`
	Version       string `json:"version"`
	SecureVersion uint32 `json:"secure_version"`
}

// backend is a server that can lie, which the real one does not: the tests with it
// are in cmd/provisiond. What it says in truth comes from provision/ota.
type backend struct {
	t      *testing.T
	u      *unit
	signer ota.Signer
	srv    *httptest.Server

	mu      sync.Mutex
	program string // the client's; "": the host's
	secure  uint32 // what the unit's image has; 0: 1
	release string
	image   *ota.Image
	tag     string
	told    []told
	have    string // that the unit last said it runs
	served  int    // bytes of firmware that were written to the client
	// The lies.
	slot      string                               // encrypt for this one
	unit      *ota.Unit                            // encrypt for that one
	bytes     func(c []byte) []byte                // what is served, and said to be right
	spoil     func(c []byte) []byte                // what is served instead of what is said
	manifest  func(m *ota.Manifest)                // before it is signed
	text      func(b []byte) []byte                // after
	refuse    func(r *http.Request) (int, string)  // a status, and Retry-After
	stop      func(r *http.Request) int            // the connection breaks after so many bytes of the body; -1: it does not
	head      func(h http.Header, r *http.Request) // changes the answer to a request for bytes, or the request
	chunked   bool                                 // manifests come without their length
	impatient bool                                 // connections that wait for a request are closed without a word
}

func newBackend(t *testing.T, u *unit) *backend {
	b := &backend{t: t, u: u, signer: newSigner(t)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/units/{mac}/manifest", b.serveManifest)
	mux.HandleFunc("GET /v1/units/{mac}/firmware", b.serveFirmware)
	mux.HandleFunc("POST /v1/units/{mac}/result", b.serveResult)
	b.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !strings.HasPrefix(r.URL.Path, "/v1/units/"+u.board.Chip.MAC().String()+"/") {
			t.Errorf("the unit asks for %s", r.URL)
		}
		if b.refuse != nil {
			if code, after := b.refuse(r); code != 0 {
				w.Header().Set("Retry-After", after)
				http.Error(w, `{"error":{"code":"x","message":"y"}}`, code)
				return
			}
		}
		mux.ServeHTTP(w, r)
	}))
	b.srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s == http.StateIdle && b.impatient {
			_ = c.Close()
		}
	}
	b.srv.Start()
	t.Cleanup(b.srv.Close)
	return b
}

// offer is the release that is served from now on; lies end.
func (b *backend) offer(release string, m *ota.Image) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release, b.image, b.tag = release, m, `"`+release+`"`
	b.slot, b.unit, b.bytes, b.spoil, b.manifest, b.text, b.refuse, b.stop = "", nil, nil, nil, nil, nil, nil, nil
	b.head, b.chunked, b.impatient = nil, false, false
	b.told, b.served = nil, 0
}

// ciphertext gives what is right, or said to be, for a slot.
func (b *backend) ciphertext(slot string) (*ota.Update, []byte) {
	u := b.u.known
	if b.unit != nil {
		u = b.unit
	}
	if b.slot != "" {
		slot = b.slot
	}
	up, err := ota.Prepare(u, b.image, slot, ota.Known{})
	if err != nil {
		b.t.Error(err)
		return nil, nil
	}
	defer up.Ciphertext.Wipe()
	c, err := io.ReadAll(up.Ciphertext.NewReader())
	if err != nil {
		b.t.Error(err)
	}
	if b.bytes != nil {
		c = b.bytes(c)
	}
	return up, c
}

func (b *backend) serveManifest(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	b.have = q.Get("have")
	up, c := b.ciphertext(q.Get("slot"))
	nonce, err := hex.DecodeString(q.Get("nonce"))
	if up == nil || err != nil || len(nonce) != ota.NonceSize {
		b.t.Errorf("a manifest request %s", r.URL)
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	at, err := b.u.known.Slot(q.Get("slot"))
	if err != nil {
		b.t.Error(err)
	}
	sum := sha256.Sum256(c)
	m, err := up.Manifest(r.Context(), ota.ManifestOptions{Release: b.release, Nonce: nonce, CipherSHA256: &sum}, b.signer)
	if err != nil {
		b.t.Error(err)
		return
	}
	m.Unit, m.Slot, m.Address = b.u.known.MAC, q.Get("slot"), at.Offset
	m.Length = uint32(len(c))
	m.PlainLength = min(m.PlainLength, m.Length)
	if b.manifest != nil {
		b.manifest(m)
	}
	if err := m.Sign(r.Context(), b.signer); err != nil {
		b.t.Error(err)
	}
	text, err := m.MarshalText()
	if err != nil {
		b.t.Error(err)
	}
	if b.text != nil {
		text = b.text(text)
	}
	w.Header().Set("Content-Type", "text/plain")
	if f, ok := w.(http.Flusher); ok && b.chunked {
		f.Flush()
	}
	_, _ = w.Write(text)
}

func (b *backend) serveFirmware(w http.ResponseWriter, r *http.Request) {
	if got := r.URL.Query().Get("release"); got != b.release {
		b.t.Errorf("release %q, want %q", got, b.release)
	}
	up, c := b.ciphertext(r.URL.Query().Get("slot"))
	if up == nil {
		return
	}
	if b.spoil != nil {
		c = b.spoil(bytes.Clone(c))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", b.tag)
	if b.head != nil {
		b.head(w.Header(), r)
	}
	left := -1
	if b.stop != nil {
		left = b.stop(r)
	}
	http.ServeContent(&meter{ResponseWriter: w, b: b, left: left}, r, "", time.Time{}, bytes.NewReader(c))
}

// meter counts what goes out, and breaks off.
type meter struct {
	http.ResponseWriter
	b    *backend
	left int
}

func (m *meter) Write(p []byte) (int, error) {
	if m.left >= 0 && len(p) > m.left {
		n, _ := m.ResponseWriter.Write(p[:m.left])
		m.b.served += n
		if f, ok := m.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler) // the connection is closed
	}
	n, err := m.ResponseWriter.Write(p)
	m.b.served += n
	if m.left >= 0 {
		m.left -= n
	}
	return n, err
}

func (b *backend) serveResult(w http.ResponseWriter, r *http.Request) {
	var v told
	d := json.NewDecoder(io.LimitReader(r.Body, 4096))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		b.t.Errorf("a result that is none: %v", err)
	}
	b.told = append(b.told, v)
	w.WriteHeader(http.StatusNoContent)
}

// client is the firmware on the unit, as version v.
func (b *backend) client(v string) otaclient.Client {
	return otaclient.Client{
		Server: b.srv.Listener.Addr().String(), Signer: b.signer.Public(), Version: v, SecureVersion: max(b.secure, 1),
		Request: request, SaveEvery: saveEvery, Program: b.program,
	}
}

// act runs one act and gives its result.
func (b *backend) act(v, act string) otaclient.Result {
	b.t.Helper()
	results, cut := b.u.board.Run(b.t, b.client(v), act)
	if cut {
		b.t.Fatal("power failed without being asked to")
	}
	return results[len(results)-1]
}

// want demands a result's error.
func (b *backend) want(v, act, err string) otaclient.Result {
	b.t.Helper()
	r := b.act(v, act)
	if r.Err != err {
		b.t.Fatalf("%s came to %+v, want %s\nthe chip said: %s", act, r, err, b.u.board.Said)
	}
	return r
}

// outcomes are what the unit posted, in order.
func (b *backend) outcomes() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s []string
	for _, t := range b.told {
		s = append(s, strings.TrimSpace(t.Outcome+" "+t.Reason))
	}
	return strings.Join(s, ", ")
}

// last is the last result that the unit posted.
func (b *backend) last() (t told) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.told); n > 0 {
		t = b.told[n-1]
	}
	return t
}

// sent is how many bytes of firmware went out.
func (b *backend) sent() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.served
}

// asked is what the unit said it runs.
func (b *backend) asked() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.have
}

// set changes the lies.
func (b *backend) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// everyChip runs f for all that are simulated.
func everyChip(t *testing.T, f func(t *testing.T, name string)) {
	for _, m := range chip.All() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			f(t, m.Name)
		})
	}
}

// eachChip runs f for one chip of each cipher.
func eachChip(t *testing.T, f func(t *testing.T, name string)) {
	for _, name := range []string{"esp32", "esp32c3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, name)
		})
	}
}
