// Package pkcs11key owns signing keys in PKCS #11 tokens: HSMs, smart cards and
// their like. A key is named by a URI (RFC 7512) and becomes a crypto.Signer; its
// private half never leaves the token.
//
// PKCS #11 modules are C libraries that run in our process. So the part that
// loads them is built only with `-tags pkcs11` and cgo; without it Open gives
// ErrNotBuilt, and the shipped binary needs no C.
//
// A URI must name one key of one token. If it fits two, it is refused: which of
// them is the right one is not for us to guess. The PIN comes from a file, never
// from the URI, which stands on a command line.
package pkcs11key

import "errors"

// ErrNotBuilt is what Open gives in a build without PKCS #11.
var ErrNotBuilt = errors.New("this build has no PKCS #11: build it with CGO_ENABLED=1 and `go build -tags pkcs11 ./cmd/provisiond`")
