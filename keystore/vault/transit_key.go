package vault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/provisiond/provisiond/keystore"
)

// Transit gives signers whose private keys are in Vault's transit engine, for
// images (Secure Boot) and OTA manifests. It needs no keystore in that Vault.
type Transit struct {
	c   *client
	own bool
}

// OpenTransit logs in for signing. Close ends it.
func OpenTransit(cfg Config) (*Transit, error) {
	c, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	return &Transit{c, true}, nil
}

// Transit signs with the store's login, and ends with the store.
func (s *Store) Transit() *Transit { return &Transit{s.c, false} }

// Close ends the session, unless it is a store's.
func (t *Transit) Close() error {
	if t.own {
		t.c.close()
	}
	return nil
}

// KeySigner is a crypto.Signer with an RSA or ECDSA key of the transit engine.
type KeySigner struct {
	c       *client
	name    string
	version int
	public  crypto.PublicKey
}

var _ crypto.Signer = (*KeySigner)(nil)

// Signer gives the signer of a key's version. 0 is the only version of a key that
// has one: another version is another key, and a product that trusts the first
// does not know it, so a rotated key asks for the number.
func (t *Transit) Signer(ctx context.Context, name string, version int) (*KeySigner, error) {
	if err := checkName("transit key", name); err != nil {
		return nil, err
	}
	path := TransitMount + "/keys/" + name
	r, err := t.c.read(ctx, http.MethodGet, path)
	switch {
	case err != nil:
		return nil, err
	case r.verdict == notFound:
		return nil, fmt.Errorf("%w: there is no key %s: %s", keystore.ErrUnavailable, path, makeKey(name))
	case r.verdict == refused:
		return nil, fmt.Errorf("%w: read %s: %w: %s", ErrDenied, path, r.err, allowKey(name))
	}
	v, public, err := parsePublicKey(r.body, version)
	if err != nil {
		return nil, fmt.Errorf("keystore/vault: %s: %w", path, err)
	}
	return &KeySigner{t.c, name, v, public}, nil
}

func makeKey(name string) string {
	return fmt.Sprintf("make it with: vault write transit/keys/%s type=rsa-3072 (or ecdsa-p256, ecdsa-p384)", name)
}

func allowKey(name string) string {
	return fmt.Sprintf("the token's policy must allow read of transit/keys/%[1]s and update of transit/sign/%[1]s", name)
}

// parsePublicKey finds a version's public key. 0 is the only one.
func parsePublicKey(body []byte, version int) (int, crypto.PublicKey, error) {
	var answer struct {
		Data struct {
			Type          string `json:"type"`
			LatestVersion int    `json:"latest_version"`
			Keys          map[string]json.RawMessage
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Data.LatestVersion < 1 {
		return 0, nil, errors.New("the answer is not one of the transit engine")
	}
	if version == 0 {
		if n := answer.Data.LatestVersion; n != 1 {
			return 0, nil, fmt.Errorf("it has been rotated and has %d versions, each of them another key: say which one, for example v%d", n, n)
		}
		version = 1
	}
	raw, ok := answer.Data.Keys[strconv.Itoa(version)]
	if !ok {
		return 0, nil, fmt.Errorf("it has no version %d, or that is archived: the newest is %d", version, answer.Data.LatestVersion)
	}
	var key struct { // a number for keys that are no pairs
		PublicKey string `json:"public_key"`
	}
	if err := json.Unmarshal(raw, &key); err == nil {
		if block, _ := pem.Decode([]byte(key.PublicKey)); block != nil {
			switch pub, _ := x509.ParsePKIXPublicKey(block.Bytes); pub.(type) {
			case *rsa.PublicKey, *ecdsa.PublicKey:
				return version, pub, nil
			}
		}
	}
	return 0, nil, fmt.Errorf("it is of type %q: a signing key is of type rsa-3072, ecdsa-p256 or ecdsa-p384", answer.Data.Type)
}

// Name is the key's name in the transit engine.
func (s *KeySigner) Name() string { return s.name }

// Version is the key's version.
func (s *KeySigner) Version() int { return s.version }

// Public is crypto.Signer's.
func (s *KeySigner) Public() crypto.PublicKey { return s.public }

// Sign is crypto.Signer's; it asks Vault for as long as its patience goes.
func (s *KeySigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest: RSA with *rsa.PSSOptions, whose salt is as long as
// the hash, and ECDSA in ASN.1.
func (s *KeySigner) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	request, err := s.request(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("keystore/vault: transit/sign/%s: %w", s.name, err)
	}
	body, err := s.c.transitSign(ctx, s.name, request, allowKey(s.name), makeKey(s.name))
	if err != nil {
		return nil, err
	}
	return parseSignature(body, s.version)
}

func (s *KeySigner) request(digest []byte, opts crypto.SignerOpts) (map[string]any, error) {
	hash, ok := map[crypto.Hash]string{crypto.SHA256: "sha2-256", crypto.SHA384: "sha2-384", crypto.SHA512: "sha2-512"}[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, errors.New("it signs digests of SHA-256, SHA-384 and SHA-512")
	}
	request := map[string]any{"input": digest, "prehashed": true, "hash_algorithm": hash, "key_version": s.version}
	if _, ok := s.public.(*rsa.PublicKey); !ok {
		request["marshaling_algorithm"] = "asn1"
		return request, nil
	}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok || pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != pss.Hash.Size() {
		return nil, errors.New("RSA signs with PSS and a salt as long as the hash")
	}
	request["signature_algorithm"], request["salt_length"] = "pss", "hash"
	return request, nil
}
