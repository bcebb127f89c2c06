package secureboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
)

// keySigner holds a private key behind a closure, so that no format verb, JSON
// or panic can print it.
type keySigner struct {
	public crypto.PublicKey
	sign   func(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (s *keySigner) Public() crypto.PublicKey { return s.public }

func (s *keySigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(rand, digest, opts)
}

// ParseSigner reads a private key in PEM: PKCS #8, PKCS #1 or SEC 1, not
// encrypted. The caller may wipe text afterwards. Errors do not show what was
// read.
func ParseSigner(text []byte) (crypto.Signer, error) {
	block, err := onlyBlock(text)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	var key any
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, errors.New("it is encrypted with a password: keep the key in Vault or in a token, or decrypt it with `openssl pkey` onto a RAM disk for the time of signing")
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "PUBLIC KEY" || block.Type == "RSA PUBLIC KEY":
		return nil, errors.New("it is a public key: signing needs the private one")
	default:
		return nil, errors.New("its PEM block is no private key")
	}
	if err != nil {
		if onP192(block.Bytes) {
			return nil, errors.New("it is a P-192 private key: no implementation of that curve here is safe for secrets; ESP-IDF offers P-192 for no chip; use P-256, or a token that holds the key")
		}
		return nil, errors.New("its PEM block holds no private key that can be read: Secure Boot V2 knows RSA-3072 and ECDSA on P-256 and P-384")
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return newSigner(&k.PublicKey, k.Sign)
	case *ecdsa.PrivateKey:
		return newSigner(&k.PublicKey, k.Sign)
	}
	return nil, errors.New("its key is neither RSA nor ECDSA: Secure Boot V2 knows RSA-3072 and ECDSA on P-256 and P-384")
}

func newSigner(public crypto.PublicKey, sign func(io.Reader, []byte, crypto.SignerOpts) ([]byte, error)) (crypto.Signer, error) {
	if _, err := NewPublicKey(public); err != nil {
		return nil, err
	}
	return &keySigner{public, sign}, nil
}

// onP192 reports whether a PKCS #8 or SEC 1 structure names the curve.
func onP192(der []byte) bool {
	var pkcs8 struct {
		Version   int
		Algorithm struct {
			Algorithm, Curve asn1.ObjectIdentifier
		}
		Key []byte
	}
	var sec1 struct {
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
	}
	if _, err := asn1.Unmarshal(der, &pkcs8); err == nil {
		clear(pkcs8.Key)
		return pkcs8.Algorithm.Curve.Equal(prime192v1)
	}
	_, err := asn1.Unmarshal(der, &sec1)
	clear(sec1.Key)
	return err == nil && sec1.Curve.Equal(prime192v1)
}
