package vault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
)

// TestTransitKeySigner signs with real RSA and ECDSA keys in Vault, under a
// policy that allows just that.
func TestTransitKeySigner(t *testing.T) {
	srv := vaulttest.New(t)
	x := &site{srv: srv, mount: "provisiond"}
	srv.Must(t, http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"})
	for name, kind := range map[string]string{"rsa": "rsa-3072", "p256": "ecdsa-p256", "p384": "ecdsa-p384", "aes": "aes256-gcm96", "ed": "ed25519", "other": "ecdsa-p256"} {
		srv.Must(t, http.MethodPost, "transit/keys/"+name, map[string]any{"type": kind})
	}
	policy := ""
	for _, name := range []string{"rsa", "p256", "p384", "aes", "ed", "missing"} {
		policy += `path "transit/keys/` + name + `" { capabilities = ["read"] }` + "\n" +
			`path "transit/sign/` + name + `" { capabilities = ["update"] }` + "\n"
	}
	srv.Must(t, http.MethodPost, "sys/policies/acl/image-signer", map[string]any{"policy": policy +
		`path "auth/token/lookup-self" { capabilities = ["read"] }` + "\n" + `path "auth/token/renew-self" { capabilities = ["update"] }`})
	cfg := x.config(t, x.tokenWith(t, "image-signer"))
	cfg.Patience = Duration(2 * time.Second)
	tr, err := OpenTransit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Close() }()

	d256, d384 := sha256.Sum256([]byte("image")), sha512.Sum384([]byte("image"))
	pss := &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	for _, c := range []struct {
		name   string
		digest []byte
		opts   crypto.SignerOpts
	}{
		{"rsa", d256[:], pss},
		{"rsa", d256[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}},
		{"p256", d256[:], crypto.SHA256},
		{"p384", d384[:], crypto.SHA384},
	} {
		s, err := tr.Signer(t.Context(), c.name, 0)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		sig, err := s.Sign(rand.Reader, c.digest, c.opts)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		switch pub := s.Public().(type) {
		case *rsa.PublicKey:
			if err := rsa.VerifyPSS(pub, crypto.SHA256, c.digest, sig, pss); err != nil {
				t.Errorf("%s: a salt of another length? %v", c.name, err)
			}
		case *ecdsa.PublicKey:
			if !ecdsa.VerifyASN1(pub, c.digest, sig) {
				t.Errorf("%s: the signature does not verify", c.name)
			}
		}
	}

	for name, want := range map[string]string{
		"aes": `of type "aes256-gcm96"`, "ed": `of type "ed25519"`, "../sys": "write 1 to 64 letters", "missing": "vault write transit/keys/missing",
	} {
		if _, err := tr.Signer(t.Context(), name, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := tr.Signer(t.Context(), "other", 0); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "transit/sign/other") {
		t.Errorf("a key of somebody else: %v", err)
	}

	// A rotated key is two keys.
	srv.Must(t, http.MethodPost, "transit/keys/p256/rotate", nil)
	if _, err := tr.Signer(t.Context(), "p256", 0); err == nil || !strings.Contains(err.Error(), "v2") {
		t.Errorf("a rotated key without a version: %v", err)
	}
	if _, err := tr.Signer(t.Context(), "p256", 3); err == nil || !strings.Contains(err.Error(), "no version 3") {
		t.Errorf("a version that is not there: %v", err)
	}
	v1, err := tr.Signer(t.Context(), "p256", 1)
	if err != nil {
		t.Fatal(err)
	}
	v2, err := tr.Signer(t.Context(), "p256", 2)
	if err != nil || v1.Public().(*ecdsa.PublicKey).Equal(v2.Public()) || v2.Version() != 2 || v2.Name() != "p256" {
		t.Fatalf("%v", err)
	}
	if sig, err := v1.Sign(rand.Reader, d256[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(v1.Public().(*ecdsa.PublicKey), d256[:], sig) {
		t.Errorf("the old version does not sign: %v", err)
	}

	// What it would sign differently than asked is refused here.
	r, err := tr.Signer(t.Context(), "rsa", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]crypto.SignerOpts{
		"PKCS #1 v1.5": crypto.SHA256, "another salt": &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256},
		"the longest salt": &rsa.PSSOptions{Hash: crypto.SHA256}, "another hash": &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA384}, "no hash": crypto.Hash(0),
	} {
		if _, err := r.Sign(rand.Reader, d256[:], opts); err == nil {
			t.Errorf("%s was signed", name)
		}
	}

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.SignContext(canceled, d256[:], pss); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	srv.Seal(t)
	if _, err := r.Sign(rand.Reader, d256[:], pss); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("while Vault is sealed: %v", err)
	}
}
