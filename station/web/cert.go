package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Life of a self-made certificate. Browsers take 398 days at most; it is made
// again, with the same key, when a third is left or a name is missing.
const (
	certLife  = 397 * 24 * time.Hour
	certRenew = certLife / 3
)

const (
	certFile = "web-cert.pem"
	keyFile  = "web-key.pem"
)

// selfMade is a certificate that the station makes for itself: ECDSA P-256, its
// key in the state folder, readable by the station only.
type selfMade struct {
	dir   string
	names []string
	now   func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

func (m *selfMade) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert != nil && m.good(m.cert.Leaf) {
		return m.cert, nil
	}
	key, err := m.key()
	if err != nil {
		return nil, err
	}
	c, err := m.stored(key)
	if err != nil || !m.good(c.Leaf) {
		if c, err = m.make(key); err != nil {
			return nil, err
		}
	}
	m.cert = c
	return c, nil
}

// good: it is valid, not for much longer than it should be, and for all names.
func (m *selfMade) good(leaf *x509.Certificate) bool {
	now := m.now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter.Add(-certRenew)) {
		return false
	}
	return !slices.ContainsFunc(m.names, func(n string) bool { return leaf.VerifyHostname(n) != nil })
}

func (m *selfMade) key() (*ecdsa.PrivateKey, error) {
	path := filepath.Join(m.dir, keyFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m.makeKey(path)
	case err != nil:
		return nil, err
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s can be read by others (mode %o): chmod 600 it, or remove it for a new one", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, _ := pem.Decode(b)
	if p == nil {
		return nil, fmt.Errorf("%s is no PEM file: remove it for a new one", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s does not hold a key: remove it for a new one", path)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s does not hold an ECDSA key: remove it for a new one", path)
	}
	return key, nil
}

func (m *selfMade) makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (m *selfMade) stored(key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, certFile))
	if err != nil {
		return nil, err
	}
	p, _ := pem.Decode(b)
	if p == nil {
		return nil, errors.New("no PEM")
	}
	leaf, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		return nil, err
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !key.PublicKey.Equal(pub) {
		return nil, errors.New("of another key")
	}
	return &tls.Certificate{Certificate: [][]byte{p.Bytes}, PrivateKey: key, Leaf: leaf}, nil
}

func (m *selfMade) make(key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := m.now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "provisiond station"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife - time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range m.names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	err = writeFile(filepath.Join(m.dir, certFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// writeFile replaces a file as a whole: after a crash it is the old or the new one.
func writeFile(path string, b []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error says what matters
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// fileCert is a certificate from files. It is read again when the files are
// others; a pair that does not fit is not taken, so that a renewal in the middle
// harms nobody.
type fileCert struct {
	cert, key string
	log       *zap.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	pem    []byte
	next   time.Time // to look at the files again
}

func (f *fileCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded != nil && time.Now().Before(f.next) {
		return f.loaded, nil
	}
	f.next = time.Now().Add(10 * time.Second)
	c, err := f.read()
	if err != nil {
		if f.loaded == nil {
			return nil, err
		}
		f.log.Error("the new certificate cannot be used: the old one stays", zap.Error(err))
		return f.loaded, nil
	}
	f.loaded = c
	return c, nil
}

func (f *fileCert) read() (*tls.Certificate, error) {
	info, err := os.Stat(f.key)
	if err != nil {
		return nil, &FieldError{"tls.key", err.Error(), "name the PEM file of the key"}
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, &FieldError{"tls.key", fmt.Sprintf("%s can be read by everybody (mode %o)", f.key, info.Mode().Perm()), "chmod 600 it"}
	}
	certPEM, err := os.ReadFile(f.cert)
	if err != nil {
		return nil, &FieldError{"tls.certificate", err.Error(), "name the PEM file of the certificate"}
	}
	if f.loaded != nil && bytes.Equal(certPEM, f.pem) {
		return f.loaded, nil
	}
	keyPEM, err := os.ReadFile(f.key)
	if err != nil {
		return nil, &FieldError{"tls.key", err.Error(), "name the PEM file of the key"}
	}
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	clear(keyPEM)
	if err != nil {
		return nil, &FieldError{"tls.certificate", err.Error(), "give a certificate and the key that belongs to it, both as PEM"}
	}
	f.pem = certPEM
	return &c, nil
}
