// Package later owns the text of the record members that were added after the
// first boards were made. A member that is empty is absent from the text, so
// that the records and rows of those boards parse and encode unchanged. All
// encodings of a record (keystore, keystore/local, keystore/escrow and
// keystore/vault) write these members in this one form.
package later

import (
	"encoding/hex"
	"strings"

	"github.com/provisiond/provisiond/internal/canon"
)

// The members' names, in the order of their place.
const (
	NameOTADigest        = "ota_token_sha256"
	NameECIESPublicKey   = "ecies_public_key"
	NameSecureBoot       = "secure_boot_scheme"
	NameSecureBootDigest = "secure_boot_digests"
)

// Limits of the members.
const (
	ECIESLen   = 64 // X and Y of a point on P-256
	MaxDigests = 3  // key digest slots of a chip (esp-facts E.1)
)

// Members are the members; what is empty is absent.
type Members struct {
	OTATokenSHA256    *[32]byte
	ECIESPublicKey    []byte
	SecureBootScheme  string
	SecureBootDigests [][32]byte
}

// Text is one member as text: bytes in lower-case hex, digests with a space
// between them.
type Text struct{ Name, Value string }

// Texts gives the members that are there, in their order.
func (m Members) Texts() []Text {
	var out []Text
	if m.OTATokenSHA256 != nil {
		out = append(out, Text{NameOTADigest, hex.EncodeToString(m.OTATokenSHA256[:])})
	}
	if len(m.ECIESPublicKey) > 0 {
		out = append(out, Text{NameECIESPublicKey, hex.EncodeToString(m.ECIESPublicKey)})
	}
	if m.SecureBootScheme != "" {
		out = append(out, Text{NameSecureBoot, m.SecureBootScheme})
	}
	if len(m.SecureBootDigests) > 0 {
		all := make([]string, len(m.SecureBootDigests))
		for i, d := range m.SecureBootDigests {
			all[i] = hex.EncodeToString(d[:])
		}
		out = append(out, Text{NameSecureBootDigest, strings.Join(all, " ")})
	}
	return out
}

// Append writes the members that are there into an object that has others
// before them.
func (m Members) Append(b []byte) []byte {
	for _, t := range m.Texts() {
		b = canon.AppendStringField(b, t.Name, t.Value)
	}
	return b
}

// Read reads what Append writes.
func Read(in *canon.Reader) Members {
	var m Members
	for _, name := range []string{NameOTADigest, NameECIESPublicKey, NameSecureBoot, NameSecureBootDigest} {
		if !in.Optional(name) {
			continue
		}
		if reason := m.Set(name, in.String(name)); reason != "" {
			in.Fail(name, reason)
		}
	}
	return m
}

// Set takes over the text of one member and gives the reason against it, or "".
// What it takes, Texts gives back unchanged.
func (m *Members) Set(name, value string) string {
	switch name {
	case NameOTADigest:
		b := unhex(value, 32)
		if b == nil {
			return "is not 64 lower-case hex digits"
		}
		m.OTATokenSHA256 = (*[32]byte)(b)
	case NameECIESPublicKey:
		if m.ECIESPublicKey = unhex(value, ECIESLen); m.ECIESPublicKey == nil {
			return "is not 128 lower-case hex digits"
		}
	case NameSecureBoot:
		if m.SecureBootScheme = value; value == "" {
			return "is empty"
		}
	case NameSecureBootDigest:
		all := strings.Split(value, " ")
		if len(all) > MaxDigests {
			return "has too many digests"
		}
		for _, s := range all {
			b := unhex(s, 32)
			if b == nil {
				return "is not digests of 64 lower-case hex digits with a space between them"
			}
			m.SecureBootDigests = append(m.SecureBootDigests, [32]byte(b))
		}
	default:
		return "is unknown"
	}
	return ""
}

func unhex(s string, n int) []byte {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n || hex.EncodeToString(b) != s {
		return nil
	}
	return b
}
