package keystore

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// The purposes for which secrets of a unit are derived from its flash key. They
// must never change: tokens and HMAC keys live in boards.
const (
	infoOTA     = "provisiond ota token v1"
	infoHMACKey = "provisiond hmac_up v1"
)

// derivedLen is the length of every derived secret.
const derivedLen = 32

// derive is HKDF-SHA256 (RFC 5869) of the key, salted with the unit's MAC.
// Nothing about the key follows from what it gives.
func (k Key) derive(mac chip.MAC, info string) (out []byte, err error) {
	if (mac == chip.MAC{}) {
		return nil, errors.New("keystore: a secret is derived for a unit: the MAC is missing")
	}
	err = k.Use(func(key []byte) (err error) {
		out, err = hkdf.Key(sha256.New, key, mac[:], info, derivedLen)
		return err
	})
	return out, err
}

// DeriveOTAToken gives the token by which the unit shows an OTA server who it
// is. It follows from the flash key, so there is no second secret in custody,
// and a rework writes the same one again. Stores keep its SHA256 only.
func (k Key) DeriveOTAToken(mac chip.MAC) (OTAToken, error) {
	b, err := k.derive(mac, infoOTA)
	if err != nil {
		return OTAToken{}, err
	}
	return OTAToken{secret.New(b)}, nil
}

// DeriveHMACKey gives the key for an eFuse block with purpose HMAC_UP, in key
// file order.
func (k Key) DeriveHMACKey(mac chip.MAC) (Key, error) {
	b, err := k.derive(mac, infoHMACKey)
	if err != nil {
		return Key{}, err
	}
	return Key{secret.New(b)}, nil
}

// OTAToken is a unit's secret towards an OTA server: 32 bytes, given out as 43
// characters of base64url without padding. No format verb, marshaller or panic
// prints it. Copies share the bytes. The zero value holds none.
type OTAToken struct{ b *secret.Bytes }

// otaTokenText is the form that is given out. Strict: one token has one text.
var otaTokenText = base64.RawURLEncoding.Strict()

// ParseOTAToken reads the text of a token. The error does not echo it.
func ParseOTAToken(text string) (OTAToken, error) {
	b, err := otaTokenText.DecodeString(text)
	if err != nil || len(b) != derivedLen || len(text) != otaTokenText.EncodedLen(derivedLen) {
		clear(b)
		return OTAToken{}, fmt.Errorf("keystore: not an OTA token: it has %d characters of base64url", otaTokenText.EncodedLen(derivedLen))
	}
	return OTAToken{secret.New(b)}, nil
}

// UseText lends the token's text to f, which must neither keep nor change it.
func (t OTAToken) UseText(f func(text []byte) error) error {
	err := t.b.Use(func(b []byte) error {
		text := otaTokenText.AppendEncode(make([]byte, 0, otaTokenText.EncodedLen(derivedLen)), b)
		defer clear(text)
		return f(text)
	})
	if errors.Is(err, secret.ErrEmpty) {
		return ErrKeyEmpty
	}
	return err
}

// SHA256 is the hash of the token's 32 bytes, by which a server knows it:
// Record.OTATokenSHA256. An empty token has the zero Digest.
func (t OTAToken) SHA256() Digest {
	var d Digest
	_ = t.b.Use(func(b []byte) error { d = sha256.Sum256(b); return nil })
	return d
}

// Equal compares in constant time. An empty token equals nothing.
func (t OTAToken) Equal(o OTAToken) bool { return t.b.Equal(o.b) }

// Wipe overwrites the bytes. This token and its copies are empty from then on.
func (t OTAToken) Wipe() { t.b.Wipe() }

// Format prints a placeholder for every verb.
func (t OTAToken) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Redacted)) }

// String is the placeholder.
func (t OTAToken) String() string { return secret.Redacted }

// GoString is the placeholder.
func (t OTAToken) GoString() string { return secret.Redacted }

// LogValue is the placeholder for log/slog.
func (t OTAToken) LogValue() slog.Value { return slog.StringValue(secret.Redacted) }

// MarshalText refuses: a placeholder on a board would be a lost token.
func (t OTAToken) MarshalText() ([]byte, error) {
	return nil, errors.New("keystore: an OTA token is not marshalled: use UseText")
}

// Digest is a SHA-256 of something that is no key.
type Digest [sha256.Size]byte

// ParseDigest reads the 64 lower-case hex digits that String writes.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return Digest{}, errors.New("not a SHA-256: it has 64 lower-case hex digits")
	}
	copy(d[:], b)
	return d, nil
}

// String is the digest in 64 lower-case hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports the zero value: no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// Equal compares in constant time.
func (d Digest) Equal(o Digest) bool { return Fingerprint(d).Equal(Fingerprint(o)) }

// MarshalText writes the hex form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}
