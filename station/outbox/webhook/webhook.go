// Package webhook sends events by HTTP POST, signed, to a MES or another server
// of the factory.
//
// What it promises (docs/factory.md has the receiver's side):
//
//   - One request for each event, with the event as its body and the event's id
//     as Idempotency-Key: a repeat carries the same key and the same body.
//   - The body is signed with HMAC-SHA256 together with the time of sending.
//   - Only an answer of class 2xx counts as taken. No redirect is followed, no
//     proxy is taken from the environment, and no answer is read beyond 64 KiB.
//   - An answer that speaks of the event (400, 413, 422 and the like) is permanent;
//     one that speaks of address, login or load is not.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/provisiond/provisiond/internal/secret"
	"github.com/provisiond/provisiond/station/outbox"
)

// Limits.
const (
	DefaultTimeout = 10 * time.Second
	MaxTimeout     = 2 * time.Minute
	minSecret      = 16       // bytes
	maxSecret      = 4096     // bytes
	maxAnswer      = 64 << 10 // bytes that are read, so that the connection can be used again
	maxShown       = 256      // bytes of an answer in an error
)

// SignatureHeader carries "t=<Unix seconds>,v1=<hex>", with a second v1 while a
// secret is being changed.
const SignatureHeader = "Provisiond-Signature"

// Config is one member of `webhooks` of a station's configuration.
type Config struct {
	// Name names the cursor's file.
	Name string `yaml:"name"`
	// URL takes the POST. http:// is for loopback addresses, or with AllowHTTP.
	URL string `yaml:"url"`
	// AllowHTTP lets events go over the network in plain text. They are signed,
	// and everybody on the way can read them.
	AllowHTTP bool `yaml:"allow_http,omitempty"`
	// Events selects types; all if it is left out.
	Events []string `yaml:"events,omitempty"`
	// From is "now" (what happens from the first start on) or "beginning".
	From outbox.From `yaml:"from,omitempty"`
	// SecretFile holds the secret of the signature: a file of mode 0600, or
	// "credential:NAME", a file of systemd's LoadCredential=. At least 16 bytes; a
	// line break at the end does not count.
	SecretFile string `yaml:"secret_file"`
	// OldSecretFile is the secret before, while the receiver changes over: requests
	// carry a signature with each.
	OldSecretFile string `yaml:"old_secret_file,omitempty"`
	// CACert is a PEM file with the authorities of the server; the system's if it
	// is left out.
	CACert string `yaml:"ca_cert,omitempty"`
	// CertFile and KeyFile are a client certificate.
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"`
	// Timeout is for one request; 10s if it is left out.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// Validate checks what can be checked without reading files.
func (c Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case outbox.CheckName(c.Name) != nil:
		return fmt.Errorf("name: %w", outbox.CheckName(c.Name))
	case c.URL == "":
		return errors.New("url: is missing")
	case err != nil:
		return errors.New("url: is no URL") // the error would show what stands in it
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("url: begins neither with https://HOST nor with http://HOST")
	case u.User != nil:
		return errors.New("url: holds a user name; requests are signed, so no password is needed")
	case u.Scheme == "http" && !c.AllowHTTP && !loopback(u.Hostname()):
		return errors.New("url: is http:// to another host; use https://, or say allow_http: true")
	case c.SecretFile == "":
		return errors.New("secret_file: is missing; name a file of mode 0600, or credential:NAME")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("cert_file: and key_file go together")
	case u.Scheme == "http" && c.CertFile+c.CACert != "":
		return errors.New("cert_file: and ca_cert are for https://")
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return fmt.Errorf("timeout: %s is not between 0 and %s", c.Timeout, MaxTimeout)
	}
	return outbox.CheckPatterns(c.Events)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Sink sends to one URL.
type Sink struct {
	c       Config
	secrets []*secret.Bytes
	client  *http.Client
	now     func() time.Time
}

// New reads secrets and certificates. It does not connect.
func New(c Config) (*Sink, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Sink{c: c, now: time.Now}
	for _, f := range []struct{ field, name string }{{"secret_file", c.SecretFile}, {"old_secret_file", c.OldSecretFile}} {
		if f.name == "" {
			continue
		}
		b, err := outbox.ReadSecret(f.name, maxSecret)
		if err == nil {
			b = bytes.TrimRight(b, "\r\n")
			if len(b) < minSecret {
				clear(b)
				err = fmt.Errorf("%s has fewer than %d bytes: make one with `openssl rand -hex 32`", f.name, minSecret)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.field, err)
		}
		s.secrets = append(s.secrets, secret.New(b))
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CACert != "" {
		pem, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, fmt.Errorf("ca_cert: %w", err)
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_cert: there is no certificate in %s", c.CACert)
		}
	}
	if c.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		// Read again for each connection: certificates are renewed while we run.
		tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &cert, err
		}
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	s.client = &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: tc, ForceAttemptHTTP2: true, MaxIdleConns: 1, MaxConnsPerHost: 1,
			IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return s, nil
}

// Delivery is what the outbox needs to know.
func (s *Sink) Delivery() outbox.Delivery {
	return outbox.Delivery{Name: s.c.Name, Kind: "webhook", Sink: s, Events: s.c.Events, From: s.c.From}
}

// Batch is 1: a crash repeats one request.
func (s *Sink) Batch() int { return 1 }

// Close drops the connection and wipes the secrets.
func (s *Sink) Close() error {
	s.client.CloseIdleConnections()
	for _, b := range s.secrets {
		b.Wipe()
	}
	return nil
}

// Deliver sends the events one after the other.
func (s *Sink) Deliver(ctx context.Context, events []*outbox.Event) (int, error) {
	for i, e := range events {
		if err := s.send(ctx, e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (s *Sink) send(ctx context.Context, e *outbox.Event) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.c.URL, bytes.NewReader(e.Body))
	if err != nil {
		return err
	}
	signature, err := s.sign(s.now(), e.Body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "provisiond")
	req.Header.Set("Idempotency-Key", e.ID)
	req.Header.Set("Provisiond-Event", e.Type)
	req.Header.Set(SignatureHeader, signature)
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 == 2 {
		return nil // whatever it says behind that, it has taken the event
	}
	return judge(resp.StatusCode, resp.Header.Get("Retry-After"), said(text, err), s.now())
}

// sign makes the header's value.
func (s *Sink) sign(at time.Time, body []byte) (string, error) {
	stamp := strconv.FormatInt(at.Unix(), 10)
	value := "t=" + stamp
	for _, b := range s.secrets {
		err := b.Use(func(key []byte) error {
			value += ",v1=" + hex.EncodeToString(mac(key, stamp, body))
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return value, nil
}

func mac(key []byte, stamp string, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(stamp))
	h.Write([]byte{'.'})
	h.Write(body)
	return h.Sum(nil)
}

// Verify checks a request as a receiver does: one of the header's signatures is
// made with the secret, and its time is not further from now than tolerance.
func Verify(key []byte, header string, body []byte, now time.Time, tolerance time.Duration) error {
	var stamp string
	good := false
	for part := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "t":
			if stamp != "" {
				return errors.New("webhook: the signature has two times")
			}
			stamp = value
		case "v1":
			got, err := hex.DecodeString(value)
			if err == nil && stamp != "" && hmac.Equal(got, mac(key, stamp, body)) {
				good = true
			}
		}
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || !good || seconds < 0 || seconds > 1<<40 {
		return errors.New("webhook: the signature is not made with this secret over this body")
	}
	if d := now.Sub(time.Unix(seconds, 0)).Abs(); d > tolerance {
		return fmt.Errorf("webhook: the signature is %s old, more than %s", d.Round(time.Second), tolerance)
	}
	return nil
}

// judge says what an answer other than 2xx means.
func judge(status int, retryAfter, text string, now time.Time) error {
	err := fmt.Errorf("%d %s%s", status, http.StatusText(status), text)
	switch {
	case status/100 == 3:
		return fmt.Errorf("the server redirects, which is not followed: correct the url: %w", err)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("the server does not accept us: check secret and certificate: %w", err)
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusProxyAuthRequired ||
		status == http.StatusGone || status == http.StatusMisdirectedRequest || status == http.StatusUpgradeRequired:
		return fmt.Errorf("the server does not know this address: check the url: %w", err)
	case status == http.StatusRequestTimeout || status == http.StatusConflict || status == http.StatusLocked ||
		status == http.StatusTooEarly || status == http.StatusTooManyRequests || status/100 == 5:
		if d, ok := parseRetryAfter(retryAfter, now); ok {
			return outbox.After(d, err)
		}
		return err
	case status/100 == 4:
		return outbox.Permanent(err)
	}
	return err
}

// parseRetryAfter reads both forms of RFC 9110, section 10.2.3.
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now)), true
	}
	return 0, false
}

// said shows the beginning of an answer.
func said(text []byte, err error) string {
	s := strings.ToValidUTF8(string(text[:min(len(text), maxShown)]), "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	switch {
	case s != "":
		return fmt.Sprintf(": %q", s)
	case err != nil:
		return fmt.Sprintf(" (and then %v)", err)
	}
	return ""
}
