//go:build pkcs11 && cgo

package pkcs11key_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/pkcs11key"
	"github.com/provisiond/provisiond/internal/pkcs11key/pkcs11test"
)

func pinFrom(pin string) func(string) ([]byte, error) {
	return func(string) ([]byte, error) { return []byte(pin + "\n"), nil }
}

// TestToken signs with keys of each scheme in SoftHSM, a real PKCS #11 module.
func TestToken(t *testing.T) {
	h := pkcs11test.New(t, "boot")
	h.RSA(t, "rsa", 1, 3072)
	h.RSA(t, "short", 2, 2048)
	h.EC(t, "p192", 3, pkcs11test.P192)
	h.EC(t, "p256", 4, pkcs11test.P256)
	h.EC(t, "p384", 5, pkcs11test.P384)
	h.EC(t, "each-time", 6, pkcs11test.P256, pkcs11test.AlwaysAuthenticate)
	h.EC(t, "twin", 7, pkcs11test.P256)
	h.EC(t, "twin", 8, pkcs11test.P256)
	h.EC(t, "no-public", 9, pkcs11test.P256, pkcs11test.PrivateOnly)
	image, err := os.ReadFile(filepath.Join("..", "..", "esp", "secureboot", "testdata", "image.bin"))
	if err != nil {
		t.Fatal(err)
	}
	uri := func(attributes string) pkcs11key.URI {
		t.Helper()
		u, err := pkcs11key.ParseURI(fmt.Sprintf("pkcs11:%s?module-path=%s&pin-source=pin", attributes, h.Module))
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, c := range []struct {
		attributes string
		scheme     chip.SignatureScheme
	}{
		{"token=boot;object=rsa", chip.SignRSA3072},
		{"object=p192", chip.SignECDSA192},
		{"object=p256;type=private", chip.SignECDSA256},
		{"token=boot;id=%05", chip.SignECDSA384},
		{"object=each-time", chip.SignECDSA256},
		{"object=twin;id=%07", chip.SignECDSA256},
	} {
		k, err := pkcs11key.Open(uri(c.attributes), pinFrom(h.PIN))
		if err != nil {
			t.Errorf("%s: %v", c.attributes, err)
			continue
		}
		for range 2 { // the second signature needs what the first may have used up
			out, err := secureboot.Sign(context.Background(), image, secureboot.Options{}, k)
			if err != nil {
				t.Errorf("%s: %v", c.attributes, err)
				break
			}
			if r, err := secureboot.Verify(out); err != nil || r.Scheme != c.scheme {
				t.Errorf("%s: %s, %v", c.attributes, r.Scheme, err)
			}
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if strings.Contains(fmt.Sprintf(verb, k), h.PIN) {
				t.Errorf("%s prints the PIN", verb)
			}
		}
		if err := errors.Join(k.Close(), k.Close()); err != nil {
			t.Errorf("%s: close: %v", c.attributes, err)
		}
		if _, err := k.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil {
			t.Errorf("%s: a closed key signs", c.attributes)
		}
	}

	for attributes, want := range map[string]string{
		"token=other;object=rsa": `no token fits; there are 1: "boot"`,
		"object=missing":         "no such private key",
		"object=twin":            "more than one private key",
		"object=no-public":       "0 public keys",
	} {
		if k, err := pkcs11key.Open(uri(attributes), pinFrom(h.PIN)); k != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", attributes, err, want)
		}
	}
	if _, err := pkcs11key.Open(uri("object=rsa"), pinFrom("0000")); err == nil || !strings.Contains(err.Error(), "PIN of pin") || strings.Contains(err.Error(), "0000") {
		t.Errorf("a wrong PIN: %v", err)
	}
	if _, err := pkcs11key.Open(uri("object=rsa"), pinFrom("")); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("no PIN: %v", err)
	}
	u := uri("object=rsa")
	u.PINSource = ""
	if _, err := pkcs11key.Open(u, nil); err == nil || !strings.Contains(err.Error(), "add pin-source") {
		t.Errorf("without a login: %v", err)
	}
	u.Module = filepath.Join(t.TempDir(), "none.so")
	if _, err := pkcs11key.Open(u, nil); err == nil || !strings.Contains(err.Error(), "module-path") {
		t.Errorf("without a library: %v", err)
	}

	// A key of another length opens, and Secure Boot refuses it.
	short, err := pkcs11key.Open(uri("object=short"), pinFrom(h.PIN))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = short.Close() }()
	if _, err := secureboot.Sign(context.Background(), image, secureboot.Options{}, short); err == nil || !strings.Contains(err.Error(), "2048 bits") {
		t.Errorf("got %v", err)
	}
	d := sha256.Sum256(image)
	for name, opts := range map[string]crypto.SignerOpts{"PKCS #1 v1.5": crypto.SHA256, "SHA-512": crypto.SHA512, "no salt length": &rsa.PSSOptions{Hash: crypto.SHA256}} {
		if _, err := short.Sign(rand.Reader, d[:], opts); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

// Two keys of one token at once, from several goroutines: the library is
// initialised once, and stays until the last key is closed.
func TestTokenShared(t *testing.T) {
	h := pkcs11test.New(t, "shared")
	h.EC(t, "a", 1, pkcs11test.P256)
	h.EC(t, "b", 2, pkcs11test.P256)
	var keys []*pkcs11key.Key
	for _, name := range []string{"a", "b"} {
		k, err := pkcs11key.Open(pkcs11key.URI{Token: "shared", Object: name, Module: h.Module, PINSource: "pin"}, pinFrom(h.PIN))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := keys[i%2].Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := keys[0].Close(); err != nil {
		t.Error(err)
	}
	if _, err := keys[1].Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("after the other key was closed: %v", err)
	}
	if err := keys[1].Close(); err != nil {
		t.Error(err)
	}
}
