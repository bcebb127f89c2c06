package jetstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/provisiond/provisiond/station/outbox"
)

// certificate makes a certificate for 127.0.0.1, signed by itself.
func certificate(t *testing.T) (certFile, keyFile string, cert tls.Certificate) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	must(t, err)
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	cp := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	kp := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	must(t, os.WriteFile(certFile, cp, 0o600))
	must(t, os.WriteFile(keyFile, kp, 0o600))
	cert, err = tls.X509KeyPair(cp, kp)
	must(t, err)
	return certFile, keyFile, cert
}

// Both sides show a certificate, and none goes without.
func TestMutualTLS(t *testing.T) {
	serverCert, _, own := certificate(t)
	clientCert, clientKey, _ := certificate(t)
	pool := x509.NewCertPool()
	b, err := os.ReadFile(clientCert)
	must(t, err)
	pool.AppendCertsFromPEM(b)
	srv := serve(t, server.Options{TLS: true, TLSVerify: true, TLSTimeout: 5, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}})
	good := config(srv)
	good.Servers = []string{"tls://" + srv.Addr().String()}
	good.CACert, good.CertFile, good.KeyFile = serverCert, clientCert, clientKey
	if n, err := newSink(t, good).Deliver(t.Context(), []*outbox.Event{event(1)}); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for name, change := range map[string]func(*Config){
		"a server that nobody vouches for": func(c *Config) { c.CACert = "" },
		"no client certificate":            func(c *Config) { c.CertFile, c.KeyFile = "", "" },
		"another client certificate":       func(c *Config) { c.CertFile, c.KeyFile, _ = certificate(t) },
	} {
		c := good
		change(&c)
		if n, err := newSink(t, c).Deliver(t.Context(), []*outbox.Event{event(2)}); n != 0 || err == nil || !strings.Contains(err.Error(), "connect") {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	// tls:// never falls back to plain text.
	plain := serve(t, server.Options{})
	c := config(plain)
	c.Servers = []string{"tls://" + plain.Addr().String()}
	if n, err := newSink(t, c).Deliver(t.Context(), []*outbox.Event{event(3)}); n != 0 || err == nil {
		t.Errorf("a server without TLS: %d, %v", n, err)
	}
}
