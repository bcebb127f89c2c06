package web_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/station/web"
)

// listen serves with TLS until the test ends and gives the certificate that a
// browser sees.
func listen(t *testing.T, dir string, c web.Config) (*x509.Certificate, error) {
	t.Helper()
	c.Listen = "127.0.0.1:0"
	s := newServer(t, newDouble(1), func(o *web.Options) { o.Config = c })
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- s.ListenAndServe(ctx, dir, func(a net.Addr) { up <- a }) }()
	var addr net.Addr
	select {
	case addr = <-up:
	case err := <-done:
		cancel()
		return nil, err
	}
	var leaf *x509.Certificate
	// The test looks at the certificate itself.
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		leaf = s.PeerCertificates[0]
		return nil
	}}, ForceAttemptHTTP2: true}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr.String()+"/healthz", nil)
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err == nil {
		if res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
			t.Errorf("%d HTTP/%d", res.StatusCode, res.ProtoMajor)
		}
		_ = res.Body.Close()
	}
	tr.CloseIdleConnections()
	cancel()
	if e := <-done; e != nil {
		t.Error(e)
	}
	return leaf, err
}

func TestSelfMadeCertificate(t *testing.T) {
	dir := t.TempDir()
	conf := web.Config{TLS: web.TLS{Mode: web.TLSSelf}, Hosts: []string{"station-7.example"}}
	first, err := listen(t, dir, conf)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"station-7.example", "localhost", "127.0.0.1", "::1"} {
		if err := first.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if first.PublicKeyAlgorithm != x509.ECDSA || first.IsCA {
		t.Errorf("%v, CA %t", first.PublicKeyAlgorithm, first.IsCA)
	}
	info, err := os.Stat(filepath.Join(dir, "web-key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	// The same one after a restart; a new one, of the same key, for a new name.
	again, err := listen(t, dir, conf)
	if err != nil || !again.Equal(first) {
		t.Errorf("another certificate after a restart: %v", err)
	}
	conf.Hosts = append(conf.Hosts, "line.example")
	third, err := listen(t, dir, conf)
	if err != nil || third.Equal(first) || third.VerifyHostname("line.example") != nil || string(third.RawSubjectPublicKeyInfo) != string(first.RawSubjectPublicKeyInfo) {
		t.Errorf("for a new name: %v", err)
	}
	// A key that others may read is not used.
	if err := os.Chmod(filepath.Join(dir, "web-key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, dir, conf); err == nil || !strings.Contains(err.Error(), "can be read by others") {
		t.Errorf("%v", err)
	}
}

func TestCertificateFromFiles(t *testing.T) {
	dir := t.TempDir()
	own, err := listen(t, dir, web.Config{TLS: web.TLS{Mode: web.TLSSelf}})
	if err != nil {
		t.Fatal(err)
	}
	conf := web.Config{TLS: web.TLS{Mode: web.TLSFiles, Certificate: filepath.Join(dir, "web-cert.pem"), Key: filepath.Join(dir, "web-key.pem")}}
	got, err := listen(t, t.TempDir(), conf)
	if err != nil || !got.Equal(own) {
		t.Error(err)
	}
	conf.TLS.Key = filepath.Join(dir, "web-cert.pem")
	if err := os.Chmod(conf.TLS.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, dir, conf); err == nil || !strings.Contains(err.Error(), "web.tls.certificate") {
		t.Error(err)
	}
	conf.TLS.Key = filepath.Join(dir, "nothing")
	if _, err := listen(t, dir, conf); err == nil || !strings.Contains(err.Error(), "web.tls.key") {
		t.Error(err)
	}
}

// TestRenewal: a certificate is made again while a third of its life is left, so
// that a station that runs for months never shows an old one.
func TestRenewal(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	n, err := web.Renewal(t.TempDir(), now, now.Add(200*day), now.Add(270*day), now.Add(271*day), now.Add(-2*day))
	if err != nil {
		t.Fatal(err)
	}
	if n[0] != n[1] || n[1] == n[2] || n[2] != n[3] || n[3] == n[4] {
		t.Errorf("serial numbers %v", n)
	}
}
