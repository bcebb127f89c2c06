package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
	"github.com/provisiond/provisiond/provision/ota/release"
)

// Options of a Server. Store, Releases and Audit are needed.
type Options struct {
	Store    keystore.Store
	Releases *release.Store
	Signer   ota.Signer // of manifests
	Audit    *Audit
	// Observe hears what people should know. It must not block. It may be nil.
	Observe func(Event)

	// NoKeys says that the keystore's login reads no keys: units get plaintext or
	// esp_encrypted_img files, and no ciphertext and no manifests.
	NoKeys bool
	// KeyHold is how long a key stays in memory after it was read, KeysMost how many
	// do.
	KeyHold  time.Duration
	KeysMost int
	// UnknownHold is how long it is remembered that the keystore does not know a unit.
	UnknownHold time.Duration
	// LookupWait is how long a unit waits for the keystore.
	LookupWait time.Duration
	// Stall is how long a client may take for 32 KiB of what is sent to it.
	Stall time.Duration
	// Rates in requests per second, with what may come at once.
	Requests, PerUnit, Lookups, LookupsPerAddress Rate
	// Connections that are open at most.
	Connections int
}

// Rate is a limit of requests.
type Rate struct {
	PerSecond float64
	Burst     int
}

// The values of what is left open.
const (
	DefaultKeyHold     = 15 * time.Minute
	DefaultKeysMost    = 20_000
	DefaultUnknownHold = time.Minute
	DefaultLookupWait  = 5 * time.Second
	DefaultStall       = time.Minute
	DefaultConnections = 20_000
)

// The rates of what is left open. A unit that reads an image in pieces of 4 KiB
// makes some twenty requests in a second.
var (
	DefaultRequests          = Rate{5000, 10000}
	DefaultPerUnit           = Rate{50, 200}
	DefaultLookups           = Rate{200, 1000}
	DefaultLookupsPerAddress = Rate{20, 200}
)

func (o *Options) fill() {
	o.KeyHold = cmp.Or(o.KeyHold, DefaultKeyHold)
	o.KeysMost = cmp.Or(o.KeysMost, DefaultKeysMost)
	o.UnknownHold = cmp.Or(o.UnknownHold, DefaultUnknownHold)
	o.LookupWait = cmp.Or(o.LookupWait, DefaultLookupWait)
	o.Stall = cmp.Or(o.Stall, DefaultStall)
	o.Connections = cmp.Or(o.Connections, DefaultConnections)
	o.Requests = cmp.Or(o.Requests, DefaultRequests)
	o.PerUnit = cmp.Or(o.PerUnit, DefaultPerUnit)
	o.Lookups = cmp.Or(o.Lookups, DefaultLookups)
	o.LookupsPerAddress = cmp.Or(o.LookupsPerAddress, DefaultLookupsPerAddress)
	if o.Observe == nil {
		o.Observe = func(Event) {}
	}
}

// Event is something that people should know.
type Event struct {
	Kind string   // keystore, audit, request, sign, http, result, cut, panic
	Unit chip.MAC // the zero one when it is about none
	Text string
	Err  error
}

// Server is the service. It is an http.Handler.
type Server struct {
	o       Options
	mux     *http.ServeMux
	metas   cache[chip.MAC, keystore.Meta]
	keys    cache[chip.MAC, *held]
	sealer  *sealer
	sums    cache[string, [sha256.Size]byte] // of ciphertexts, by ETag
	files   cache[string, sealedFile]
	all     *rate.Limiter
	lookups *rate.Limiter
	perUnit limiters[chip.MAC]
	perAddr limiters[netip.Addr]
	down    atomic.Int64 // until then the keystore is not asked, unix nanoseconds
	uses    atomic.Uint64
	conns   atomic.Int64
	metrics *Metrics
	now     func() time.Time
}

// many is how many things are remembered of which one is small.
const many = 100_000

// New makes a server. Close it.
func New(o Options) (*Server, error) {
	if o.Store == nil || o.Releases == nil || o.Audit == nil {
		return nil, errors.New("ota: a server needs a keystore, releases and an audit file")
	}
	o.fill()
	limiter := func(r Rate) *rate.Limiter { return rate.NewLimiter(rate.Limit(r.PerSecond), r.Burst) }
	s := &Server{o: o, all: limiter(o.Requests), lookups: limiter(o.Lookups), now: time.Now, metrics: newMetrics()}
	now := func() time.Time { return s.now() }
	s.metas = cache[chip.MAC, keystore.Meta]{most: many, load: s.find, now: now, wait: o.LookupWait}
	s.sealer = newSealer()
	s.keys = cache[chip.MAC, *held]{most: o.KeysMost, load: s.load, drop: (*held).wipe, now: now, wait: o.LookupWait}
	s.sums = cache[string, [sha256.Size]byte]{most: many, now: now}
	s.files = cache[string, sealedFile]{most: many, now: now, heavy: filesMost, weigh: func(f sealedFile) int64 { return int64(len(f.b)) }}
	s.perUnit = limiters[chip.MAC]{rate: rate.Limit(o.PerUnit.PerSecond), burst: o.PerUnit.Burst, most: many}
	s.perAddr = limiters[netip.Addr]{rate: rate.Limit(o.LookupsPerAddress.PerSecond), burst: o.LookupsPerAddress.Burst, most: many}
	s.metrics.follow(s)
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /v1/units/{mac}/firmware", s.unit("firmware", s.firmware))
	s.mux.HandleFunc("GET /v1/units/{mac}/manifest", s.unit("manifest", s.manifest))
	s.mux.HandleFunc("POST /v1/units/{mac}/result", s.unit("result", s.result))
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ok\n") // whoever asked is gone
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notHere.write(w) })
	return s, nil
}

// Close wipes all keys.
func (s *Server) Close() {
	s.keys.clear()
	s.metas.clear()
	s.sealer.wipe()
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	s.mux.ServeHTTP(w, r)
}

// problem is an answer that is no success.
type problem struct {
	status  int
	code    string
	message string
	after   time.Duration // when to come again
}

var (
	notHere      = &problem{status: http.StatusNotFound, code: "not-found", message: "there is nothing here for this unit"}
	unauthorized = &problem{status: http.StatusUnauthorized, code: "unauthorized", message: "prove which unit you are: Authorization: Bearer TOKEN, or a client certificate"}
	foreign      = &problem{status: http.StatusForbidden, code: "forbidden", message: "the certificate is another unit's"}
	internal     = &problem{status: http.StatusInternalServerError, code: "internal", message: "the server cannot answer; its log says why"}
)

func bad(code, format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, code: code, message: fmt.Sprintf(format, args...)}
}

func busy(code, message string, after time.Duration) *problem {
	return &problem{status: http.StatusServiceUnavailable, code: code, message: message, after: after}
}

func tooMany(after time.Duration) *problem {
	return &problem{status: http.StatusTooManyRequests, code: "too-many-requests", message: "come again later", after: after}
}

// Error makes a problem an error, so that caches may hand it on.
func (p *problem) Error() string { return p.message }

func (p *problem) write(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range []string{"Etag", "Accept-Ranges", "Provisiond-Release", "Content-Length"} {
		h.Del(name)
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="provisiond ota"`)
	}
	if p.after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.after.Seconds()))))
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.status)
	// Whoever asked may be gone.
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": p.code, "message": p.message}})
}

// asker is a unit that has proven itself, and its request.
type asker struct {
	meta keystore.Meta
	who  string
	from netip.Addr
	use  uint64
	q    url.Values
}

// status notes the code of an answer.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = cmp.Or(s.code, code)
	s.ResponseWriter.WriteHeader(code)
}

func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// left is the answer of a handler whose download goes on without net/http.
var left = new(problem)

// unit is what every path of a unit begins with. done counts the request; a
// download that goes on alone calls it at its end.
func (s *Server) unit(route string, f func(w *status, r *http.Request, a *asker, done func(code int)) *problem) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w := &status{ResponseWriter: rw}
		began := s.now()
		done := func(code int) { s.metrics.request(route, cmp.Or(code, http.StatusOK), s.now().Sub(began)) }
		defer func() {
			if p := recover(); p != nil {
				s.o.Observe(Event{Kind: "panic", Text: fmt.Sprint(p)})
				panic(http.ErrAbortHandler)
			}
		}()
		if r.ContentLength != 0 { // also a body that nobody reads must come to an end
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyLimit)) // a recorder of a test has none
		}
		var p *problem
		var a *asker
		if after, ok := take(s.all, began); !ok {
			p = tooMany(after)
		} else if a, p = s.authenticate(r); p == nil {
			if after, ok := s.perUnit.allow(a.meta.Unit, began); !ok {
				p = tooMany(after)
			} else {
				p = f(w, r, a, done)
			}
		}
		switch p {
		case left:
			return
		case nil:
		default:
			p.write(w)
		}
		done(w.code)
	}
}

// authenticate finds out which unit asks, and that it asks for itself.
func (s *Server) authenticate(r *http.Request) (*asker, *problem) {
	mac, err := chip.ParseMAC(r.PathValue("mac"))
	if err != nil {
		return nil, unauthorized // as for a unit that does not exist
	}
	a := &asker{from: address(r.RemoteAddr), use: s.uses.Add(1)}
	if a.q, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return nil, bad("query", "the query does not parse")
	}
	if st := tlsState(r); st != nil && len(st.VerifiedChains) > 0 {
		leaf := st.VerifiedChains[0][0]
		if unit, ok := certified(leaf); !ok || unit != mac {
			return nil, foreign
		}
		a.who = "cert " + leaf.SerialNumber.Text(16)
		var p *problem
		a.meta, p = s.meta(r.Context(), mac, a.from)
		return a, p
	}
	scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") { // RFC 9110, 11.1: in any case
		return nil, unauthorized
	}
	token, err := keystore.ParseOTAToken(text)
	if err != nil {
		return nil, unauthorized
	}
	given := token.SHA256()
	token.Wipe()
	a.who = "token"
	meta, p := s.meta(r.Context(), mac, a.from)
	var want keystore.Digest
	known := p == nil && meta.OTATokenSHA256 != nil
	if known {
		want = *meta.OTATokenSHA256
	}
	same := subtle.ConstantTimeCompare(given[:], want[:]) == 1 && known
	if p != nil && p.status != http.StatusNotFound && p.status != http.StatusConflict {
		return nil, p // the keystore is away, or too many ask
	}
	if !same {
		return nil, unauthorized
	}
	a.meta = meta
	return a, nil
}

// certified is the unit that a client certificate names.
func certified(leaf *x509.Certificate) (chip.MAC, bool) {
	for _, u := range leaf.URIs {
		if name, ok := strings.CutPrefix(u.String(), "urn:provisiond:unit:"); ok {
			mac, err := chip.ParseMAC(name)
			return mac, err == nil
		}
	}
	mac, err := chip.ParseMAC(leaf.Subject.CommonName)
	return mac, err == nil
}

func address(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// network is what counts as one address: of IPv6 the /64, since who has one address of
// it has them all.
func network(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// downFor is how long the keystore is left alone after it did not answer.
const downFor = 2 * time.Second

// meta gives what the keystore shows of a unit.
func (s *Server) meta(ctx context.Context, mac chip.MAC, from netip.Addr) (keystore.Meta, *problem) {
	m, err := s.metas.get(ctx, mac, func() error { return s.mayLookUp(from) })
	return m, s.explain(mac, err)
}

// mayLookUp: lookups are rare for good units, since their answers are kept.
func (s *Server) mayLookUp(from netip.Addr) error {
	now := s.now()
	if until := s.down.Load(); now.UnixNano() < until {
		return fmt.Errorf("%w: it did not answer a moment ago", keystore.ErrUnavailable)
	}
	if after, ok := s.perAddr.allow(network(from), now); !ok {
		return tooMany(after)
	}
	if after, ok := take(s.lookups, now); !ok {
		return tooMany(after)
	}
	return nil
}

// find is the load of metas.
func (s *Server) find(ctx context.Context, mac chip.MAC) (keystore.Meta, time.Duration, error) {
	m, err := ota.Find(ctx, s.o.Store, mac)
	s.looked("find", mac, err)
	switch {
	case err == nil:
		return m, s.o.KeyHold, nil
	case ota.ReasonOf(err) != "":
		return m, s.o.UnknownHold, err
	}
	return m, 0, err
}

// load is the load of keys.
func (s *Server) load(ctx context.Context, mac chip.MAC) (*held, time.Duration, error) {
	u, err := ota.Lookup(ctx, s.o.Store, mac)
	s.looked("load", mac, err)
	switch {
	case err == nil:
		h, err := s.sealer.seal(u)
		if err != nil { // the server ends
			return nil, 0, err
		}
		return h, s.o.KeyHold, nil
	case ota.ReasonOf(err) != "":
		return nil, s.o.UnknownHold, err
	}
	return nil, 0, err
}

// looked notes how the keystore answered.
func (s *Server) looked(what string, mac chip.MAC, err error) {
	outcome := "ok"
	switch {
	case err == nil:
	case ota.ReasonOf(err) != "":
		outcome = string(ota.ReasonOf(err))
	default:
		outcome = "error"
		if away(err) {
			outcome = "unavailable"
			s.down.Store(s.now().Add(downFor).UnixNano())
		}
		s.o.Observe(Event{Kind: "keystore", Unit: mac, Text: what, Err: err})
	}
	s.metrics.lookup(what, outcome)
}

func away(err error) bool {
	return errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// explain makes an answer of an error.
func (s *Server) explain(mac chip.MAC, err error) *problem {
	var p *problem
	reason := ota.ReasonOf(err)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case reason == ota.ReasonUnknownUnit:
		return notHere
	case reason != "":
		return &problem{status: http.StatusConflict, code: string(reason), message: err.Error()}
	case errors.Is(err, release.ErrNotFound):
		return notHere
	case errors.Is(err, release.ErrBusy):
		return busy("busy", "too many releases are being sent at once", 10*time.Second)
	case away(err):
		return busy("keystore", "the keystore does not answer", 15*time.Second)
	case errors.Is(err, context.Canceled):
		return busy("cancelled", "the client went away", time.Second)
	}
	s.o.Observe(Event{Kind: "request", Unit: mac, Text: "a request failed", Err: err})
	return internal
}

// Forms in which an image is sent.
const (
	formCipher = ""       // for the unit's flash
	formPlain  = "plain"  // as it is, over TLS
	formEncImg = "encimg" // esp_encrypted_img, to the unit's ECIES key
)

// update is a checked image for a unit, in one form.
type update struct {
	*ota.Update        // of formCipher, else nil
	body        source // what is sent
	image       *release.Image
	offer       release.Offer
	slot        string
	form        string
	etag        string
}

// release lets go what an update holds.
func (u *update) release() {
	if u.Update != nil {
		u.Ciphertext.Wipe()
	}
	u.image.Release()
}

// prepare finds what the unit asks for, and loads its key only then and only for
// the form that needs it.
func (s *Server) prepare(ctx context.Context, a *asker, form string) (*update, release.Why, *problem) {
	mac := a.meta.Unit
	slot := a.q.Get("slot")
	if slot == "" && form == formCipher {
		return nil, "", bad("slot", "say which slot: ?slot=ota_1")
	}
	secure := uint32(0)
	if v := a.q.Get("secure_version"); v != "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return nil, "", bad("secure_version", "secure_version is not a number")
		}
		secure = uint32(n)
	}
	who := release.Asker{Unit: mac, Chip: a.meta.Chip, Recipe: a.meta.Recipe, Have: a.q.Get("have")}
	var offer release.Offer
	var err error
	if name := a.q.Get("release"); name != "" {
		offer, err = s.o.Releases.Allowed(who, name)
	} else {
		offer, err = s.o.Releases.Offer(who)
	}
	if err != nil || offer.Why != "" {
		return nil, offer.Why, s.explain(mac, err)
	}
	if form == formPlain && !offer.Plaintext {
		return nil, "", &problem{status: http.StatusForbidden, code: "plaintext", message: "this unit's channel sends no plaintext"}
	}
	image, err := s.o.Releases.Open(ctx, offer.Release)
	if err != nil {
		return nil, "", s.explain(mac, err)
	}
	u := &update{image: image, offer: offer, slot: slot, form: form}
	known := ota.Known{SecureVersion: max(secure, offer.Unit.SecureVersion)}
	if form == formCipher {
		err = s.encrypt(ctx, a, u, known)
	} else {
		err = s.open(a, u, known)
	}
	if err != nil {
		image.Release()
		return nil, "", s.explain(mac, err)
	}
	return u, "", nil
}

var noKeys = &problem{status: http.StatusConflict, code: "no-keys", message: "this server reads no keys: ask for another format"}

// encrypt makes an update of formCipher.
func (s *Server) encrypt(ctx context.Context, a *asker, u *update, known ota.Known) error {
	if s.o.NoKeys {
		return noKeys
	}
	for try := 0; ; try++ {
		h, err := s.keys.get(ctx, a.meta.Unit, func() error { return s.mayLookUp(a.from) })
		if err != nil {
			return err
		}
		unit, err := h.open()
		if err == nil {
			u.Update, err = ota.Prepare(unit, u.image.Image, u.slot, known)
			unit.Wipe() // the ciphertext has its own
		}
		if err == nil {
			u.body, u.slot = u.Ciphertext, u.Slot.SubtypeName()
			u.etag = etag("cipher", u.Unit.MAC, u.Unit.Scheme, u.Unit.FlashCryptConfig, u.Unit.Fingerprint, u.Slot.Offset, u.Ciphertext.Size(), u.Image.SHA256())
			return nil
		}
		// Its key may have become too old between the two.
		if !errors.Is(err, keystore.ErrKeyEmpty) || try > 0 {
			return err
		}
		s.keys.forget(a.meta.Unit)
	}
}

// open makes an update of the forms that need no flash key. The partition table is
// in the record with the key, so here the size is checked against the whole flash.
func (s *Server) open(a *asker, u *update, known ota.Known) error {
	m := a.meta
	model, err := chip.ByName(m.Chip)
	if err != nil {
		return &problem{status: http.StatusConflict, code: string(ota.ReasonRecord), message: err.Error()}
	}
	unit := &ota.Unit{
		MAC: m.Unit, Chip: model, Revision: m.ChipRevision, Scheme: m.Scheme, FlashSize: m.FlashSize, Fingerprint: m.Fingerprint,
		SecureBootScheme: m.SecureBootScheme, SecureBootDigests: m.SecureBootDigests,
	}
	if err := unit.Check(u.image.Image, partition.Entry{Type: partition.TypeApp, Size: m.FlashSize}, known); err != nil {
		return err
	}
	if u.form == formPlain {
		u.body = sized{bytes.NewReader(u.image.Plain())}
		u.etag = etag("plain", u.image.SHA256())
		return nil
	}
	if len(m.ECIESPublicKey) == 0 {
		return &problem{status: http.StatusConflict, code: "no-ecies-key", message: "the unit's record has no ECIES key: it was not provisioned for esp_encrypted_img"}
	}
	// The format takes a new key for every file, so the file is kept for those who
	// resume.
	key := fmt.Sprintf("%s %s %x", m.Unit, u.offer.Release.File, m.ECIESPublicKey)
	file, _, ok := s.files.peek(key)
	if !ok {
		to, err := encimg.NewECIESRecipient(m.ECIESPublicKey)
		if err != nil {
			return &problem{status: http.StatusConflict, code: string(ota.ReasonRecord), message: err.Error()}
		}
		b, err := encimg.Seal(to, u.image.Plain())
		if err != nil {
			return err
		}
		file = sealedFile{b, etag("encimg", sha256.Sum256(b))}
		s.files.put(key, file, s.o.KeyHold)
	}
	u.body, u.etag = sized{bytes.NewReader(file.b)}, file.etag
	return nil
}

// sealedFile is an esp_encrypted_img file for one unit.
type sealedFile struct {
	b    []byte
	etag string
}

// filesMost bounds the memory of sealed files.
const filesMost = 64 << 20

// sized is a reader whose size is that of what it reads.
type sized struct{ *bytes.Reader }

// etag names bytes by what they follow from.
func etag(of ...any) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "provisiond ota etag v1\x00%x", of) // a hash takes everything
	return `"` + hex.EncodeToString(h.Sum(nil)[:16]) + `"`
}

// line begins an audit line about an update.
func (s *Server) line(a *asker, u *update, event, why string) Use {
	return Use{
		Time: s.now().UTC(), ID: a.use, Event: event, Unit: a.meta.Unit, Key: a.meta.Fingerprint, Who: a.who,
		From: a.from.String(), Why: why, Format: u.form, Release: u.offer.Release.Name, Slot: u.slot,
	}
}

func (s *Server) note(use Use) *problem {
	if err := s.o.Audit.Write(use); err != nil {
		s.o.Observe(Event{Kind: "audit", Unit: use.Unit, Text: "a key was not used, since that cannot be noted", Err: err})
		return busy("audit", "the server cannot note the use of a key", time.Minute)
	}
	return nil
}

func (s *Server) firmware(w *status, r *http.Request, a *asker, done func(code int)) *problem {
	form := a.q.Get("format")
	if form != formCipher && form != formPlain && form != formEncImg {
		return bad("format", "write format=plain or format=encimg, or leave it out for ciphertext")
	}
	u, why, p := s.prepare(r.Context(), a, form)
	if p != nil {
		return p
	}
	if why != "" {
		w.Header().Set("Provisiond-Reason", string(why))
		return notHere
	}
	use := s.line(a, u, "begin", "firmware")
	use.Range = r.Header.Get("Range")
	if r.Method != http.MethodHead { // that uses no key
		if p := s.note(use); p != nil {
			u.release()
			return p
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Etag", u.etag)
	h.Set("Cache-Control", "private, no-store")
	h.Set("Provisiond-Release", u.offer.Release.Name)
	rangesAsRFC(r, u.body.Size())
	out := &sender{ResponseWriter: w, r: r, stall: s.o.Stall}
	body := &guarded{source: u.body, may: func() error { return s.o.Releases.Current(u.offer.Release) }}
	out.over = func(code int, sent int64, err error) { // it holds nothing of net/http's
		u.release()
		s.sent(use, code, sent, err)
		done(code)
	}
	http.ServeContent(out, r, "", time.Time{}, &content{source: body})
	out.head()
	if w.code = out.code; out.left {
		return left
	}
	u.release()
	if r.Method != http.MethodHead {
		s.sent(use, out.code, out.sent, out.err)
	}
	return nil
}

// sent notes what became of a download.
func (s *Server) sent(use Use, code int, n int64, err error) {
	s.metrics.sent(n)
	use.Event, use.Time, use.Bytes, use.Outcome = "end", s.now().UTC(), n, "sent"
	switch {
	case err != nil:
		use.Outcome = "cut"
		s.o.Observe(Event{Kind: "cut", Unit: use.Unit, Text: fmt.Sprintf("a download ended after %d bytes: %v", n, err)})
	case code != http.StatusOK && code != http.StatusPartialContent:
		use.Outcome = strconv.Itoa(code)
	}
	_ = s.note(use) // it was told of; the use itself stands in the first line
}

func (s *Server) manifest(w *status, r *http.Request, a *asker, _ func(int)) *problem {
	if s.o.Signer == nil {
		return &problem{status: http.StatusNotFound, code: "no-signer", message: "this server signs no manifests"}
	}
	var nonce []byte
	if v := a.q.Get("nonce"); v != "" {
		var err error
		if nonce, err = hex.DecodeString(v); err != nil || len(nonce) != ota.NonceSize {
			return bad("nonce", "a nonce has %d hex digits", 2*ota.NonceSize)
		}
	}
	u, why, p := s.prepare(r.Context(), a, formCipher)
	if p != nil {
		return p
	}
	h := w.Header()
	h.Set("Cache-Control", "private, no-store")
	if why != "" {
		h.Set("Provisiond-Reason", string(why))
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	defer u.release()
	use := s.line(a, u, "begin", "manifest")
	if p := s.note(use); p != nil {
		return p
	}
	m, err := s.sign(r.Context(), u, nonce)
	use.Event, use.Time, use.Outcome = "end", s.now().UTC(), "sent"
	if err != nil {
		use.Outcome = "error"
	}
	_ = s.note(use) // it was told of; the use itself stands in the first line
	if err != nil {
		s.o.Observe(Event{Kind: "sign", Unit: a.meta.Unit, Text: "a manifest was not signed", Err: err})
		return busy("signer", "the manifest cannot be signed now", 15*time.Second)
	}
	h.Set("Content-Type", "text/plain; charset=us-ascii")
	h.Set("Content-Length", strconv.Itoa(len(m)))
	h.Set("Provisiond-Release", u.offer.Release.Name)
	_, _ = w.Write(m) //nolint:gosec // plain text of ours; whoever asked may be gone
	return nil
}

// sumHold is how long the hash of a ciphertext is kept. It is no secret.
const sumHold = 24 * time.Hour

func (s *Server) sign(ctx context.Context, u *update, nonce []byte) ([]byte, error) {
	o := ota.ManifestOptions{Release: u.offer.Release.Name, Nonce: nonce}
	if sum, _, ok := s.sums.peek(u.etag); ok {
		o.CipherSHA256 = &sum
	}
	m, err := u.Manifest(ctx, o, s.o.Signer)
	if err != nil {
		return nil, err
	}
	if o.CipherSHA256 == nil {
		s.sums.put(u.etag, m.CipherSHA256, sumHold)
	}
	return m.MarshalText()
}

func (s *Server) result(w *status, r *http.Request, a *asker, _ func(int)) *problem {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, release.MaxResult))
	if err != nil {
		return bad("result", "the result has more than %d bytes, or was cut off", release.MaxResult)
	}
	res, err := release.ParseResult(body)
	if err != nil {
		return bad("result", "%v", err)
	}
	if err := s.o.Releases.Report(a.meta.Unit, res); err != nil {
		return s.explain(a.meta.Unit, err)
	}
	s.metrics.result(res.Outcome)
	s.o.Observe(Event{Kind: "result", Unit: a.meta.Unit, Text: fmt.Sprintf("%s %s in %s: %s", res.Outcome, res.Release, res.Slot, res.Reason)})
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Time limits of a connection.
const (
	headerLimit  = 10 * time.Second
	bodyLimit    = 20 * time.Second
	idleLimit    = 2 * time.Minute
	headerBytes  = 8 << 10
	closingLimit = 20 * time.Second
)

// Serve serves on a listener until ctx ends; conf may be nil. Its connections speak
// HTTP/1.1. Downloads that are
// under way then get a while to end: units resume what is cut.
func (s *Server) Serve(ctx context.Context, l net.Listener, conf *tls.Config) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: headerLimit, WriteTimeout: s.o.Stall, IdleTimeout: idleLimit,
		MaxHeaderBytes: headerBytes, ConnContext: withConnection,
		ErrorLog: log.New(&events{s}, "", 0),
	}
	d := newDoor(l, conf, s.o.Connections, &s.conns)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(d) }()
	tidy := time.NewTicker(max(s.o.KeyHold/16, 10*time.Millisecond))
	defer tidy.Stop()
	for ctx.Err() == nil {
		select {
		case err := <-done:
			return err
		case <-tidy.C:
			s.keys.expire()
			s.metas.expire()
			s.sums.expire()
			s.files.expire()
		case <-ctx.Done():
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closingLimit)
	defer cancel()
	err := srv.Shutdown(end)
	d.shut(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if e := <-done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// events makes events of net/http's lines.
type events struct{ s *Server }

func (e *events) Write(p []byte) (int, error) {
	e.s.o.Observe(Event{Kind: "http", Text: strings.TrimSpace(string(p))})
	return len(p), nil
}
