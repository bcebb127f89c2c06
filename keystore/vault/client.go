package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/provisiond/provisiond/keystore"
)

// maxAnswer bounds what is read of an answer. The largest is a LIST: a shard of
// a million units has 100 KiB per 4,000 MACs.
const maxAnswer = 64 << 20

// client sends requests to one of the configured servers. It neither retries nor
// redirects on its own: what an answer means is decided by its callers.
type client struct {
	cfg     Config
	http    *http.Transport
	web     *http.Client  // over http
	ends    []*api.Client // one per address
	current atomic.Uint32 // which of them is asked
	session *session
}

func newClient(cfg Config) (*client, error) {
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	c := &client{cfg: cfg}
	c.http = &http.Transport{
		Proxy:                 nil, // of the environment we take three variables, and no proxy
		DialContext:           (&net.Dialer{Timeout: time.Duration(cfg.Timeout), KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   time.Duration(cfg.Timeout),
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   64, // one per slot: HTTP/1.1 is faster here than one HTTP/2 connection for all
		IdleConnTimeout:       90 * time.Second,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		ResponseHeaderTimeout: 0, // the context of each request has the limit
	}
	// A redirect would send key and token to where an answer says.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.web = &http.Client{Transport: c.http, CheckRedirect: stay}
	for _, address := range cfg.Addresses {
		end, err := api.NewClient(&api.Config{
			Address: address, HttpClient: c.web,
			MaxRetries: 0, DisableRedirects: true, ReadYourWrites: true,
		})
		if err != nil {
			return nil, fmt.Errorf("keystore/vault: %w", err)
		}
		// NewClient reads VAULT_TOKEN, VAULT_NAMESPACE and VAULT_HEADERS.
		end.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
		end.ClearToken()
		if cfg.Namespace != "" {
			end.SetNamespace(cfg.Namespace)
		}
		c.ends = append(c.ends, end)
	}
	return c, nil
}

func (c Config) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CACert != "" {
		path, err := c.path(c.CACert)
		if err != nil {
			return nil, err
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("keystore/vault: ca_cert: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("keystore/vault: ca_cert: %s holds no certificate in PEM", path)
		}
	}
	if l := c.Login.Cert; l != nil {
		certPath, err := c.path(l.CertFile)
		if err != nil {
			return nil, err
		}
		cert, err := os.ReadFile(certPath)
		if err != nil {
			return nil, fmt.Errorf("keystore/vault: login.cert.cert_file: %w", err)
		}
		keyPath, err := c.path(l.KeyFile)
		if err != nil {
			return nil, err
		}
		key, err := readPrivate(keyPath)
		if err != nil {
			return nil, fmt.Errorf("login.cert.key_file: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		clear(key)
		if err != nil {
			return nil, fmt.Errorf("keystore/vault: login.cert: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// end is the server that is asked at this moment, and its number for next.
func (c *client) end() (*api.Client, uint32) {
	n := c.current.Load()
	return c.ends[int(n)%len(c.ends)], n
}

// next turns to another server, unless somebody did so already.
func (c *client) next(from uint32) { c.current.CompareAndSwap(from, from+1) }

// verdict is what an answer says about the request.
type verdict int

const (
	good      verdict = iota
	notFound          // 404
	refused           // 400 and 403 that are not about the token: it may mean "exists"
	badToken          // the token is not valid; nothing was done
	notNow            // for sure not done: sealed, no leader, rate limit, not sent
	misplaced         // there is no secrets engine; waiting does not help
	unknown           // whether it was done is not known
)

// reply is an answer, or why there is none.
type reply struct {
	verdict verdict
	status  int
	body    []byte
	err     error // what to tell; nil if good or notFound
}

// send sends one request with the session's token, once.
func (c *client) send(ctx context.Context, limit time.Duration, method, path string, body []byte) (reply, uint32) {
	end, n := c.end()
	return c.sendFor(ctx, limit, end, method, path, body), n
}

func (c *client) sendTo(ctx context.Context, end *api.Client, method, path string, body []byte) reply {
	return c.sendFor(ctx, time.Duration(c.cfg.Timeout), end, method, path, body)
}

func (c *client) sendFor(ctx context.Context, limit time.Duration, end *api.Client, method, path string, body []byte) reply {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var resp *api.Response
	var err error
	switch method {
	case http.MethodPut:
		resp, err = end.Logical().WriteRawWithContext(ctx, path, body)
	case "LIST":
		resp, err = end.Logical().ReadRawWithDataWithContext(ctx, path, url.Values{"list": {"true"}})
	default:
		resp, err = end.Logical().ReadRawWithContext(ctx, path)
	}
	if resp != nil && resp.Body != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	var refusal *api.ResponseError
	switch {
	case errors.As(err, &refusal):
		return c.classify(end, refusal, resp)
	case err != nil:
		return c.unsent(end, err)
	case resp.StatusCode >= 300:
		return reply{verdict: notNow, status: resp.StatusCode, err: fmt.Errorf("%w: %s is a standby and cannot reach the leader (%d): ask the leader, or wait for one", keystore.ErrUnavailable, end.Address(), resp.StatusCode)}
	}
	b, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		clear(b)
		return c.unsent(end, err)
	}
	return reply{verdict: good, status: resp.StatusCode, body: b}
}

// readAll reads a whole body. With a known length it makes one buffer, so that
// no copies stay behind in outgrown ones.
func readAll(r io.Reader, length int64) ([]byte, error) {
	if length > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes", length)
	}
	if length >= 0 {
		b := make([]byte, length)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	return b, err
}

// unsent is a request without an answer. Only a connection that never came to
// be proves that nothing was done.
func (c *client) unsent(end *api.Client, err error) reply {
	r := reply{verdict: unknown, err: fmt.Errorf("%w: %s "+noAnswerText+": %w: check the network and the server", keystore.ErrUnavailable, end.Address(), plain(err))}
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &cert), errors.As(err, &record):
		r.verdict = notNow
		r.err = fmt.Errorf("%w: %s: %w: check ca_cert (or VAULT_CACERT) and the address", keystore.ErrUnavailable, end.Address(), plain(err))
	case errors.As(err, &op) && op.Op == "dial":
		r.verdict = notNow
	}
	return r
}

// plain takes the URL out of an error: it holds paths only, but repeats them.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// What errors say, and health reads in those of a login.
const (
	noQuorumText     = "the cluster has no leader with a quorum"
	rateLimitText    = "its rate limit is reached"
	serverFailedText = "the server failed"
	noAnswerText     = "does not answer"
)

// classify reads an error answer.
func (c *client) classify(end *api.Client, e *api.ResponseError, resp *api.Response) reply {
	r := reply{status: e.StatusCode}
	text := strings.Join(e.Errors, "; ")
	if len(text) > 300 {
		text = text[:300]
	}
	unavailable := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", keystore.ErrUnavailable, end.Address(), fmt.Sprintf(format, args...))
	}
	has := func(s string) bool { return strings.Contains(text, s) }
	switch {
	case e.StatusCode == http.StatusNotFound && has("no handler for route"):
		r.verdict, r.err = misplaced, unavailable("there is no secrets engine at %q: check mount, or make it with: provisiond keystore init --vault", c.cfg.Mount)
	case e.StatusCode == http.StatusNotFound:
		r.verdict = notFound
		if resp != nil && resp.Body != nil {
			r.body, _ = readAll(resp.Body, -1)
		}
	// Also with 400, from endpoints that call any failure of theirs a bad request.
	case has("node is not the leader"), has("leadership lost"):
		r.verdict, r.err = unknown, unavailable(noQuorumText+" (%s): check the other nodes", text)
	case e.StatusCode == http.StatusForbidden && (has("invalid token") || has("missing client token") || has("bad token")):
		r.verdict, r.err = badToken, unavailable("the token is not valid any more: it expired or was revoked")
	case e.StatusCode == http.StatusForbidden, e.StatusCode == http.StatusBadRequest:
		r.verdict, r.err = refused, unavailable("refused (%d %s)", e.StatusCode, text)
	case e.StatusCode == http.StatusPreconditionFailed:
		r.verdict, r.err = notNow, unavailable("this node has not seen our last write yet (412)")
	case e.StatusCode == http.StatusTooManyRequests:
		r.verdict, r.err = notNow, unavailable(rateLimitText+" (429): raise the quota or wait")
	case has("Vault is sealed"):
		r.verdict, r.err = notNow, unavailable("Vault is sealed: unseal it (vault operator unseal)")
	case has("not initialized"):
		r.verdict, r.err = notNow, unavailable("Vault is not initialised: vault operator init")
	case has("local node not active"):
		r.verdict, r.err = notNow, unavailable("a standby that knows no leader: check the other nodes")
	case e.StatusCode >= 500:
		r.verdict, r.err = unknown, unavailable(serverFailedText+" (%d %s): look at its log; if an audit device is full or gone, every request fails so", e.StatusCode, text)
	default:
		r.verdict, r.err = refused, unavailable("unexpected answer %d %s", e.StatusCode, text)
	}
	return r
}

// Waits between two tries of a call.
const (
	firstWait = 25 * time.Millisecond
	lastWait  = 400 * time.Millisecond
)

// pause is the wait between a call's tries, growing and with jitter, within a
// time limit.
type pause struct {
	wait  time.Duration
	end   time.Time
	limit time.Duration // of the next request
}

type pauseKey struct{}

// patience begins a call's tries. A look within a call shares the call's.
func (c *client) patience(ctx context.Context) *pause {
	if p, ok := ctx.Value(pauseKey{}).(*pause); ok {
		return p
	}
	return &pause{wait: firstWait, end: time.Now().Add(time.Duration(c.cfg.Patience)), limit: time.Duration(c.cfg.Timeout)}
}

func (p *pause) share(ctx context.Context) context.Context {
	return context.WithValue(ctx, pauseKey{}, p)
}

// begin gives the context of a call whose requests share one patience.
func (c *client) begin(ctx context.Context) context.Context { return c.patience(ctx).share(ctx) }

// both makes two looks at once, each with waits of its own.
func (c *client) both(ctx context.Context, a, b func(context.Context) (bool, error)) (bool, bool, error) {
	p := *c.patience(ctx)
	var okB bool
	var errB error
	done := make(chan struct{})
	go func() {
		defer close(done)
		okB, errB = b(p.share(ctx))
	}()
	okA, errA := a(ctx)
	<-done
	if errA != nil {
		errB = errA
	}
	return okA, okB, errB
}

// answered begins waits and limits anew after a server has answered.
func (p *pause) answered(c *client) {
	p.wait, p.limit = firstWait, time.Duration(c.cfg.Timeout)
}

// jitter spreads what many stations do at once.
func jitter(d time.Duration) time.Duration {
	return rand.N(d + 1) //nolint:gosec // no secret
}

// failed makes the requests after a failure shorter: a standby that still
// forwards to a leader that hangs must not hold us up when there is a new one.
func (p *pause) failed(c *client) { p.limit = time.Duration(c.cfg.Timeout) / 2 }

// next waits. It is false when the time is over or ctx is done.
func (p *pause) next(ctx context.Context) bool {
	d := p.wait/2 + jitter(p.wait)
	if p.wait *= 2; p.wait > lastWait {
		p.wait = lastWait
	}
	if time.Now().Add(d).After(p.end) {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read asks until there is an answer, and gives it if it is good, notFound or
// refused. Reads change nothing, so they may be repeated.
func (c *client) read(ctx context.Context, method, path string) (reply, error) {
	p := c.patience(ctx)
	for {
		if err := ctx.Err(); err != nil {
			return reply{}, fmt.Errorf("keystore/vault: %w", err)
		}
		token, err := c.session.use(ctx)
		if err != nil {
			return reply{}, err
		}
		r, n := c.send(ctx, p.limit, method, path, nil)
		switch r.verdict {
		case good, notFound, refused:
			p.answered(c)
			return r, nil
		case misplaced:
			return reply{}, r.err
		case badToken:
			c.session.spoil(token)
		default:
			p.failed(c)
			c.next(n)
		}
		if !p.next(ctx) {
			if err := ctx.Err(); err != nil {
				return reply{}, fmt.Errorf("keystore/vault: %w", err)
			}
			return reply{}, r.err
		}
	}
}

// fence makes the server that is asked prove that it leads, or knows who does:
// a renewal of our own token is a write, and a write that was answered is in what
// the same server reads from then on, with all before it. It gives the number of
// that server. A token that may not be renewed (a rework ticket) proves nothing;
// then only asking again is left.
func (c *client) fence(ctx context.Context) (uint32, error) {
	p := c.patience(ctx)
	for {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("keystore/vault: %w", err)
		}
		token, err := c.session.use(ctx)
		if err != nil {
			return 0, err
		}
		r, n := c.send(ctx, p.limit, http.MethodPut, "auth/token/renew-self", []byte("{}"))
		switch r.verdict {
		case good, refused:
			p.answered(c)
			return n, nil
		case notFound, misplaced:
			return 0, r.err
		case badToken:
			c.session.spoil(token)
		case notNow, unknown:
			p.failed(c)
			c.next(n)
		}
		if !p.next(ctx) {
			if err := ctx.Err(); err != nil {
				return 0, fmt.Errorf("keystore/vault: %w", err)
			}
			return 0, r.err
		}
	}
}

// created is how a create ended.
type created int

const (
	storedNow created = iota + 1
	occupied          // refused: something is there already, or the policy forbids it
)

// create writes an entry that is not there yet. look is asked after an unknown
// outcome; it reports whether something is there now.
//
// A request that was begun is not cut by ctx: it ends with an answer or at its
// own time-out.
func (c *client) create(ctx context.Context, path string, body []byte, look func(context.Context) (bool, error)) (created, reply, error) {
	p := c.patience(ctx)
	doubtful := false
	fail := func(cause error) (created, reply, error) {
		if err := ctx.Err(); err != nil {
			cause = errors.Join(fmt.Errorf("keystore/vault: %w", err), cause)
		}
		if doubtful {
			return 0, reply{}, fmt.Errorf("%w: %s: %w", keystore.ErrUnknownOutcome, path, cause)
		}
		return 0, reply{}, cause
	}
	for {
		if ctx.Err() != nil {
			return fail(nil)
		}
		token, err := c.session.use(ctx)
		if err != nil {
			return fail(err)
		}
		r, n := c.send(context.WithoutCancel(ctx), p.limit, http.MethodPut, c.cfg.Mount+"/data/"+path, body)
		switch r.verdict {
		case good:
			p.answered(c)
			return storedNow, r, nil
		case refused:
			p.answered(c)
			return occupied, r, nil
		case notFound, misplaced:
			return fail(r.err)
		case badToken:
			c.session.spoil(token)
		case notNow:
			c.next(n)
		case unknown:
			doubtful = true
			p.failed(c)
			c.next(n)
			if there, err := look(p.share(ctx)); err == nil && there {
				return occupied, r, nil
			}
		}
		if !p.next(ctx) {
			return fail(r.err)
		}
	}
}

// version is the metadata of a version.
type version struct {
	Version      int    `json:"version"`
	CreatedTime  string `json:"created_time"`
	DeletionTime string `json:"deletion_time"`
	Destroyed    bool   `json:"destroyed"`
}

func (v version) gone() bool { return v.Destroyed || v.DeletionTime != "" }

func (v version) time() (time.Time, error) { return time.Parse(time.RFC3339Nano, v.CreatedTime) }

// entry is a read of data or of subkeys.
type entry struct {
	Data    json.RawMessage `json:"data"`
	Subkeys struct {
		Clear json.RawMessage `json:"clear"`
	} `json:"subkeys"`
	Metadata version `json:"metadata"`
}

// get reads an entry ("data" or "subkeys"). ok is false if there is none. An
// entry that was deleted is an error: nothing of ours is ever deleted by us.
func (c *client) get(ctx context.Context, kind, path string) (e entry, ok bool, err error) {
	r, err := c.read(ctx, http.MethodGet, c.cfg.Mount+"/"+kind+"/"+path)
	if err != nil {
		return entry{}, false, err
	}
	if r.verdict == refused {
		return entry{}, false, c.denied("read", kind+"/"+path, r.err)
	}
	e, err = parseEntry(r.body)
	clear(r.body) // it may hold a key; what was parsed is a copy
	switch {
	case err != nil && r.verdict == notFound:
		return entry{}, false, nil // no body, or one with errors only
	case err != nil:
		return entry{}, false, damaged(path, "the answer is not one of KV version 2: check the mount")
	case e.Metadata.gone():
		return entry{}, false, damaged(path, "it was deleted: restore it (vault kv undelete), and find out who did it in the audit log")
	case r.verdict == notFound:
		return entry{}, false, nil
	case e.Metadata.Version != 1:
		return entry{}, false, damaged(path, fmt.Sprintf("it is in version %d: it was overwritten; find out who did it in the audit log", e.Metadata.Version))
	}
	return e, true, nil
}

func parseEntry(body []byte) (entry, error) {
	if len(body) == 0 {
		return entry{}, io.ErrUnexpectedEOF
	}
	var a struct {
		Data *entry `json:"data"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return entry{}, err
	}
	if a.Data == nil {
		return entry{}, io.ErrUnexpectedEOF
	}
	return *a.Data, nil
}

// list gives the names in a folder.
func (c *client) list(ctx context.Context, folder string) ([]string, error) {
	r, err := c.read(ctx, "LIST", c.cfg.Mount+"/metadata/"+folder)
	if err != nil || r.verdict == notFound {
		return nil, err
	}
	if r.verdict == refused {
		return nil, c.denied("list", "metadata/"+folder, r.err)
	}
	var a struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.body, &a); err != nil {
		return nil, damaged(folder, "the answer is not a list")
	}
	return a.Data.Keys, nil
}

// ErrDenied says that the role may not do this.
var ErrDenied = errors.New("keystore/vault: this role may not do that")

func (c *client) denied(what, path string, cause error) error {
	return fmt.Errorf("%w: %s %s/%s: %w: compare the token's policy with `provisiond keystore policy ROLE`", ErrDenied, what, c.cfg.Mount, path, cause)
}

func damaged(path, reason string) error {
	return fmt.Errorf("%w: %s: %s", keystore.ErrDamaged, path, reason)
}
