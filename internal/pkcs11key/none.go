//go:build !pkcs11 || !cgo

package pkcs11key

import (
	"crypto"
	"io"
)

// Built says whether this build can use tokens.
const Built = false

// Key is a private key in a token.
type Key struct{}

// Open gives ErrNotBuilt.
func Open(URI, func(name string) ([]byte, error)) (*Key, error) { return nil, ErrNotBuilt }

// Public is crypto.Signer's.
func (*Key) Public() crypto.PublicKey { return nil }

// Sign is crypto.Signer's.
func (*Key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, ErrNotBuilt }

// Close ends the session with the token.
func (*Key) Close() error { return nil }
