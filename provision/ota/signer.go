package ota

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"

	"github.com/provisiond/provisiond/esp/secureboot"
)

// Signer signs manifests with one ECDSA key on P-256. NewSigner makes one of any
// crypto.Signer, so also of a key that stays in Vault (vault.KeySigner) or in a
// token.
type Signer interface {
	Public() *ecdsa.PublicKey
	// SignDigest gives the ASN.1 DER signature of a SHA-256.
	SignDigest(ctx context.Context, digest [sha256.Size]byte) ([]byte, error)
}

// SignerID names a signing key in manifests: the SHA-256 of its
// SubjectPublicKeyInfo in DER.
func SignerID(public *ecdsa.PublicKey) ([sha256.Size]byte, error) {
	if err := checkPublic(public); err != nil {
		return [sha256.Size]byte{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return [sha256.Size]byte{}, refuse(ReasonManifestKey, "manifest key: %w", err)
	}
	return sha256.Sum256(der), nil
}

func checkPublic(public *ecdsa.PublicKey) error {
	if public == nil || public.Curve != elliptic.P256() {
		return refuse(ReasonManifestKey, "a manifest is signed with ECDSA on P-256, and this key is another one: make one with `provisiond ota key`")
	}
	return nil
}

// NewSigner signs with a key that is at hand, in memory or behind a token.
func NewSigner(s crypto.Signer) (Signer, error) {
	public, _ := s.Public().(*ecdsa.PublicKey)
	if err := checkPublic(public); err != nil {
		return nil, err
	}
	return cryptoSigner{s, public}, nil
}

type cryptoSigner struct {
	signer crypto.Signer
	public *ecdsa.PublicKey
}

func (s cryptoSigner) Public() *ecdsa.PublicKey { return s.public }

func (s cryptoSigner) SignDigest(ctx context.Context, digest [sha256.Size]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c, ok := s.signer.(secureboot.ContextSigner); ok { // somebody else is asked, as Vault is
		return c.SignContext(ctx, digest[:], crypto.SHA256)
	}
	return s.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// String names the key by its public half: no printer reaches the other one.
func (s cryptoSigner) String() string {
	id, _ := SignerID(s.public)
	return signerText(id)
}

// GoString is String.
func (s cryptoSigner) GoString() string { return s.String() }

// ParseSigner reads a private key in PEM and wipes text. Errors do not echo it.
func ParseSigner(text []byte) (Signer, error) {
	defer clear(text)
	s, err := secureboot.ParseSigner(text)
	if err != nil {
		return nil, refuse(ReasonManifestKey, "the manifest key: %w", err)
	}
	return NewSigner(s)
}

// ParsePublicKey reads a public key in PEM ("PUBLIC KEY").
func ParsePublicKey(text []byte) (*ecdsa.PublicKey, error) {
	key, err := secureboot.ParsePublicKey(text)
	if err != nil {
		return nil, refuse(ReasonManifestKey, "the manifest's public key: %w", err)
	}
	public, _ := key.Public().(*ecdsa.PublicKey)
	return public, checkPublic(public)
}

// MarshalPublicKey writes what ParsePublicKey reads; it goes into the firmware.
func MarshalPublicKey(public *ecdsa.PublicKey) ([]byte, error) {
	if err := checkPublic(public); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, refuse(ReasonManifestKey, "manifest key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// GenerateKey makes a signing key and gives it in PEM (PKCS #8), for a file that
// only its owner reads. Wipe it after use.
func GenerateKey() (private []byte, public *ecdsa.PublicKey, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), &key.PublicKey, nil
}
