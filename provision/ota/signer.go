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
)

// Signer signs manifests with one ECDSA key on P-256. NewSigner makes one of any
// crypto.Signer; keystore/vault has one whose key stays in Vault.
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
	return s.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// String names the key by its public half: no printer reaches the other one.
func (s cryptoSigner) String() string {
	id, _ := SignerID(s.public)
	return signerText(id)
}

// GoString is String.
func (s cryptoSigner) GoString() string { return s.String() }

// ParseSigner reads a private key in PEM: "EC PRIVATE KEY" or PKCS #8. It wipes
// text. Errors do not echo it.
func ParseSigner(text []byte) (Signer, error) {
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, refuse(ReasonManifestKey, "the manifest key is no PEM file: make one with `provisiond ota key`")
	}
	defer clear(block.Bytes)
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, refuse(ReasonManifestKey, "the manifest key is a PEM file with %q and not with a private key that is not encrypted", block.Type)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, refuse(ReasonManifestKey, "the manifest key is no ECDSA private key: make one with `provisiond ota key`")
	}
	return NewSigner(private)
}

// ParsePublicKey reads a public key in PEM ("PUBLIC KEY").
func ParsePublicKey(text []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, refuse(ReasonManifestKey, "this is no PEM file with a public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, refuse(ReasonManifestKey, "the public key does not parse: %w", err)
	}
	public, _ := key.(*ecdsa.PublicKey)
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
