package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/station/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "0123456789abcdef0123456789abcdef"

func keyFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func sink(t *testing.T, c Config) *Sink {
	t.Helper()
	if c.Name == "" {
		c.Name = "mes"
	}
	if c.SecretFile == "" {
		c.SecretFile = keyFile(t, key+"\n")
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var event = &outbox.Event{ID: "aa-7", Type: "unit.finished", Body: []byte(`{"id":"aa-7"}`)}

func deliver(t *testing.T, s *Sink) error {
	t.Helper()
	n, err := s.Deliver(t.Context(), []*outbox.Event{event})
	if (err == nil) != (n == 1) {
		t.Errorf("%d events were taken, and %v", n, err)
	}
	return err
}

// The receiver of docs/factory.md.
func TestRequest(t *testing.T) {
	var got *http.Request
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer srv.Close()
	s := sink(t, Config{URL: srv.URL + "/in?x=1", OldSecretFile: keyFile(t, strings.Repeat("old!", 8))})
	if err := deliver(t, s); err != nil {
		t.Fatal(err)
	}
	if got.Method != http.MethodPost || got.RequestURI != "/in?x=1" || string(body) != string(event.Body) {
		t.Errorf("%s %s: %s", got.Method, got.RequestURI, body)
	}
	for name, want := range map[string]string{
		"Idempotency-Key": "aa-7", "Content-Type": "application/json", "Provisiond-Event": "unit.finished", "User-Agent": "provisiond",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s: %q", name, v)
		}
	}
	header := got.Header.Get(SignatureHeader)
	now := time.Now()
	for _, k := range []string{key, strings.Repeat("old!", 8)} {
		if err := Verify([]byte(k), header, body, now, time.Minute); err != nil {
			t.Errorf("%s: %v", header, err)
		}
	}
	for name, err := range map[string]error{
		"key":  Verify([]byte("x"+key), header, body, now, time.Minute),
		"body": Verify([]byte(key), header, append(body, ' '), now, time.Minute),
		"old":  Verify([]byte(key), header, body, now.Add(time.Hour), time.Minute),
		"new":  Verify([]byte(key), header, body, now.Add(-time.Hour), time.Minute),
		"time": Verify([]byte(key), "t=1"+header[2:], body, now, time.Minute),
		"none": Verify([]byte(key), "", body, now, time.Minute),
	} {
		if err == nil {
			t.Errorf("another %s is good too", name)
		}
	}
}

// The value that docs/factory.md shows.
func TestSignatureVector(t *testing.T) {
	s := sink(t, Config{URL: "https://mes.example"})
	got, err := s.sign(time.Unix(1795000000, 0), []byte(`{"id":"aa-7"}`))
	const want = "t=1795000000,v1=3cd067f3179c6ac5d5eda3e97a62e967caeb444c4274cb537c399c0a19c3547d"
	if err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
}

func TestAnswers(t *testing.T) {
	const again, later, never = "*fmt.wrapError", "*outbox.afterError", "*outbox.permanentError"
	for _, c := range []struct {
		status int
		after  string
		class  string // the type of the error
		want   string
	}{
		{status: 200},
		{status: 204},
		{status: 299},
		{400, "", never, `400 Bad Request: "no <b>"`},
		{413, "", never, "413"},
		{415, "", never, "415"},
		{422, "", never, "422"},
		{401, "", again, "check secret"},
		{403, "", again, "check secret"},
		{404, "", again, "check the url"},
		{405, "", again, "check the url"},
		{410, "", again, "check the url"},
		{301, "", again, "redirects"},
		{307, "", again, "redirects"},
		{304, "", again, "304"},
		{408, "", "", "408"},
		{409, "", "", "409"},
		{425, "", "", "425"},
		{500, "", "", "500"},
		{429, "120", later, "429"},
		{503, "Fri, 31 Dec 2099 23:59:59 GMT", later, "503"},
		{429, "soon", "", "429"},
		{503, "-1", "", "503"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/" {
				t.Error("the redirect was followed")
			}
			w.Header().Set("Location", "/elsewhere")
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "no\n\x1b<b>")
		}))
		err := deliver(t, sink(t, Config{URL: srv.URL}))
		srv.Close()
		if c.want == "" {
			if err != nil {
				t.Errorf("%d gave %v", c.status, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d gave %v, want %q", c.status, err, c.want)
			continue
		}
		got := fmt.Sprintf("%T", err)
		if class := c.class; class != "" && got != class || class == "" && (got == later || got == never) {
			t.Errorf("%d, Retry-After %q: %s, want %q", c.status, c.after, got, class)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"0": 0, " 7 ": 7 * time.Second, "Sun, 22 Nov 2026 12:01:00 GMT": time.Minute, "Sun, 22 Nov 2026 11:00:00 GMT": 0,
	} {
		if d, ok := parseRetryAfter(s, now); !ok || d != want {
			t.Errorf("%q: %s, %v", s, d, ok)
		}
	}
	for _, s := range []string{"", "-1", "1.5", "99999999999999999999", "tomorrow"} {
		if d, ok := parseRetryAfter(s, now); ok {
			t.Errorf("%q: %s", s, d)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7")
	f.Add("Sun, 22 Nov 2026 12:01:00 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := parseRetryAfter(s, time.Unix(0, 0)); ok && d < 0 {
			t.Errorf("%q: %s", s, d)
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add("t=1795000000,v1=00", []byte("{}"))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		if Verify([]byte(key), header, body, time.Unix(1795000000, 0), time.Hour) == nil {
			t.Errorf("%q is a good signature", header)
		}
	})
}

// A server that accepts and says nothing, and one that never ends its answer.
func TestSlowServers(t *testing.T) {
	stop := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			if _, err := w.Write(make([]byte, 16<<10)); err != nil {
				return
			}
		}
	}))
	defer endless.Close()
	defer close(stop)
	if err := deliver(t, sink(t, Config{URL: silent.URL, Timeout: 50 * time.Millisecond})); err == nil {
		t.Error("no answer is an answer")
	}
	if err := deliver(t, sink(t, Config{URL: endless.URL})); err != nil {
		t.Error(err)
	}
}

// certificate makes a certificate for 127.0.0.1, signed by itself.
func certificate(t *testing.T) (certFile, keyName string, cert tls.Certificate) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "station"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyName = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cp, kp := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
	for name, b := range map[string][]byte{certFile: cp, keyName: kp} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if cert, err = tls.X509KeyPair(cp, kp); err != nil {
		t.Fatal(err)
	}
	return certFile, keyName, cert
}

func TestMutualTLS(t *testing.T) {
	serverCert, _, server := certificate(t)
	clientCert, clientKey, _ := certificate(t)
	pool := x509.NewCertPool()
	b, err := os.ReadFile(clientCert)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(b)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	if err := deliver(t, sink(t, Config{URL: srv.URL, CACert: serverCert, CertFile: clientCert, KeyFile: clientKey})); err != nil {
		t.Error(err)
	}
	if err := deliver(t, sink(t, Config{URL: srv.URL, CACert: serverCert})); err == nil {
		t.Error("it was taken without a client certificate")
	}
	if err := deliver(t, sink(t, Config{URL: srv.URL, CertFile: clientCert, KeyFile: clientKey})); err == nil {
		t.Error("a server was believed whose certificate nobody signed")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Name: "mes", URL: "https://mes.example/in", SecretFile: "credential:mes"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"name: ":            func(c *Config) { c.Name = "MES 1" },
		"url: is missing":   func(c *Config) { c.URL = "" },
		"url: begins":       func(c *Config) { c.URL = "mes.example" },
		"url: is no URL":    func(c *Config) { c.URL = "https://a:hunter%zz@b" },
		"url: holds a user": func(c *Config) { c.URL = "https://a:b@c" },
		"url: is http://":   func(c *Config) { c.URL = "http://mes.example" },
		"secret_file: is":   func(c *Config) { c.SecretFile = "" },
		"cert_file: and k":  func(c *Config) { c.CertFile = "x" },
		"cert_file: and c":  func(c *Config) { c.URL, c.CACert = "http://127.0.0.1", "x" },
		"timeout: ":         func(c *Config) { c.Timeout = time.Hour },
		"events[0]: ":       func(c *Config) { c.Events = []string{"x"} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSecrets(t *testing.T) {
	open := keyFile(t, key)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.WriteFile(filepath.Join(dir, "mes"), []byte(key), 0o440); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		open: "others may read it", keyFile(t, "short"): "fewer than 16", "credential:../x": "write credential:NAME",
		"credential:none": "no such file", dir: "not a plain file", keyFile(t, strings.Repeat("x", 5000)): "more than 4096",
	} {
		if _, err := New(Config{Name: "mes", URL: "https://a", SecretFile: name}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "xxx") {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	s, err := New(Config{Name: "mes", URL: "https://a", SecretFile: "credential:mes"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Deliver(t.Context(), []*outbox.Event{event}); err == nil {
		t.Error("it sends with a wiped secret")
	}
}
