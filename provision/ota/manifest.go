package ota

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/keystore"
)

// Limits of a manifest.
const (
	// MaxManifest is the longest text, in bytes. A device needs no larger buffer.
	MaxManifest = 1024
	// MaxName is the longest release, project or version.
	MaxName = 64
	// NonceSize is the length of a nonce.
	NonceSize = 16

	maxSignature = 72 // ASN.1 DER of two integers of P-256
	manifestHead = "provisiond-ota-manifest 1"
)

// Manifest says which ciphertext a unit gets for which slot. The device checks
// its signature before it believes a word of it.
type Manifest struct {
	Unit    chip.MAC
	Chip    string // esp32c3
	Release string // the server's name of the release; may be empty
	Project string // of the application description; may be empty
	Version string // of the application description; may be empty
	Slot    string // ota_0 to ota_15
	Address uint32 // of the slot in flash
	// Length is how many bytes of ciphertext there are: PlainLength, padded with
	// 0xFF to a multiple of 16, or 32 for the ESP32.
	Length       uint32
	PlainLength  uint32
	PlainSHA256  [sha256.Size]byte // of the image as it was given, without padding
	CipherSHA256 [sha256.Size]byte // of the Length bytes to write
	// SecureVersion is the image's, for anti-rollback.
	SecureVersion uint32
	Key           keystore.Fingerprint
	// Nonce is what the device asked with, so that an old manifest cannot answer
	// a new question: NonceSize bytes, or none.
	Nonce []byte
	// Signer is the SHA-256 of the signing key's SubjectPublicKeyInfo (SignerID).
	Signer    [sha256.Size]byte
	Signature []byte // ASN.1 DER, ECDSA P-256 with SHA-256
}

// fields are the lines of a manifest between its head and its signature, in
// their order.
var fields = []struct {
	name string
	get  func(*Manifest) string
	set  func(*Manifest, string) error
}{
	{"unit", func(m *Manifest) string { return m.Unit.String() }, func(m *Manifest, s string) (err error) {
		m.Unit, err = chip.ParseMAC(s)
		return err
	}},
	{"chip", func(m *Manifest) string { return m.Chip }, func(m *Manifest, s string) error { m.Chip = s; return nil }},
	{"release", func(m *Manifest) string { return orDash(m.Release) }, func(m *Manifest, s string) error { m.Release = noDash(s); return nil }},
	{"project", func(m *Manifest) string { return orDash(m.Project) }, func(m *Manifest, s string) error { m.Project = noDash(s); return nil }},
	{"version", func(m *Manifest) string { return orDash(m.Version) }, func(m *Manifest, s string) error { m.Version = noDash(s); return nil }},
	{"slot", func(m *Manifest) string { return m.Slot }, func(m *Manifest, s string) error { m.Slot = s; return nil }},
	{"address", func(m *Manifest) string { return fmt.Sprintf("0x%08x", m.Address) }, func(m *Manifest, s string) error {
		hexa, _ := strings.CutPrefix(s, "0x")
		return number(&m.Address, hexa, 16)
	}},
	{"length", func(m *Manifest) string { return decimal(m.Length) }, func(m *Manifest, s string) error { return number(&m.Length, s, 10) }},
	{"plain-length", func(m *Manifest) string { return decimal(m.PlainLength) }, func(m *Manifest, s string) error { return number(&m.PlainLength, s, 10) }},
	{"sha256-plain", func(m *Manifest) string { return hex.EncodeToString(m.PlainSHA256[:]) }, func(m *Manifest, s string) error { return unhex(m.PlainSHA256[:], s) }},
	{"sha256-cipher", func(m *Manifest) string { return hex.EncodeToString(m.CipherSHA256[:]) }, func(m *Manifest, s string) error { return unhex(m.CipherSHA256[:], s) }},
	{"secure-version", func(m *Manifest) string { return decimal(m.SecureVersion) }, func(m *Manifest, s string) error { return number(&m.SecureVersion, s, 10) }},
	{"key", func(m *Manifest) string { return m.Key.String() }, func(m *Manifest, s string) (err error) {
		m.Key, err = keystore.ParseFingerprint(s)
		return err
	}},
	{"nonce", func(m *Manifest) string { return orDash(hex.EncodeToString(m.Nonce)) }, func(m *Manifest, s string) error {
		if s = noDash(s); s == "" {
			return nil
		}
		m.Nonce = make([]byte, NonceSize)
		return unhex(m.Nonce, s)
	}},
	{"signer", func(m *Manifest) string { return hex.EncodeToString(m.Signer[:]) }, func(m *Manifest, s string) error { return unhex(m.Signer[:], s) }},
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func noDash(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

func decimal(v uint32) string { return strconv.FormatUint(uint64(v), 10) }

func number(dst *uint32, s string, base int) error {
	v, err := strconv.ParseUint(s, base, 32)
	if err != nil {
		return errors.New("it is no number of 32 bits")
	}
	*dst = uint32(v)
	return nil
}

func unhex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("it has not %d hex digits", 2*len(dst))
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}

// Signed is the text that the signature covers: everything before its line.
func (m *Manifest) Signed() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, MaxManifest), manifestHead+"\n"...)
	for _, f := range fields {
		b = append(b, f.name+" "+f.get(m)+"\n"...)
	}
	return b, nil
}

// MarshalText gives the manifest's text. It must be signed.
func (m *Manifest) MarshalText() ([]byte, error) {
	b, err := m.Signed()
	if err != nil {
		return nil, err
	}
	if n := len(m.Signature); n == 0 || n > maxSignature {
		return nil, fmt.Errorf("ota: manifest: the signature has %d bytes: sign it first", n)
	}
	b = append(b, "signature "...)
	b = base64.StdEncoding.AppendEncode(b, m.Signature)
	return append(b, '\n'), nil
}

// ParseManifest reads what MarshalText writes, and nothing else. It does not
// check the signature: Verify does.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("ota: manifest: %d bytes are more than %d", len(b), MaxManifest)
	}
	rest := string(b)
	line := func(what string) (string, error) {
		s, after, ok := strings.Cut(rest, "\n")
		if !ok {
			return "", fmt.Errorf("ota: manifest: it ends before its line %q", what)
		}
		rest = after
		return s, nil
	}
	head, err := line(manifestHead)
	if err != nil {
		return nil, err
	}
	if head != manifestHead {
		return nil, fmt.Errorf("ota: manifest: the first line is not %q: it is no manifest, or of another version", manifestHead)
	}
	m := new(Manifest)
	for _, f := range fields {
		s, err := line(f.name)
		if err != nil {
			return nil, err
		}
		value, ok := strings.CutPrefix(s, f.name+" ")
		if !ok {
			return nil, fmt.Errorf("ota: manifest: the line %q is not at its place", f.name)
		}
		if err := f.set(m, value); err != nil {
			return nil, fmt.Errorf("ota: manifest: line %q: %w", f.name, err)
		}
	}
	s, err := line("signature")
	if err != nil {
		return nil, err
	}
	value, ok := strings.CutPrefix(s, "signature ")
	if !ok || rest != "" {
		return nil, errors.New("ota: manifest: the last line is not the signature")
	}
	if m.Signature, err = base64.StdEncoding.Strict().DecodeString(value); err != nil {
		return nil, errors.New("ota: manifest: the signature is not base64")
	}
	again, err := m.MarshalText() // validates
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("ota: manifest: a value is not written in its one form")
	}
	return m, nil
}

// validate checks every field but the signature.
func (m *Manifest) validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("ota: manifest: %s %s", field, fmt.Sprintf(format, args...))
	}
	for _, f := range []struct{ name, text string }{{"release", m.Release}, {"project", m.Project}, {"version", m.Version}} {
		if f.text != "" && !validName(f.text) {
			return bad(f.name, "is not 1 to %d printable ASCII characters without a space", MaxName)
		}
	}
	align := uint32(flashcrypt.BlockSize)
	if m.Chip == "esp32" {
		align = 32
	}
	switch {
	case m.Unit == chip.MAC{} || m.Unit[0]&1 != 0:
		return bad("unit", "is not the address of one unit")
	case !validChip(m.Chip):
		return bad("chip", "is not a chip name such as esp32c3")
	case !validSlot(m.Slot):
		return bad("slot", "is not one of ota_0 to ota_15")
	case m.Address%align != 0:
		return bad("address", "0x%x is not a multiple of %d", m.Address, align)
	case m.PlainLength == 0:
		return bad("plain-length", "is 0")
	case uint64(m.Length) != padded(uint64(m.PlainLength), align):
		return bad("length", "%d is not %d padded to a multiple of %d", m.Length, m.PlainLength, align)
	case uint64(m.Address)+uint64(m.Length) > 1<<32:
		return bad("address", "0x%x and %d bytes end beyond 32 bits", m.Address, m.Length)
	case m.Key.IsZero():
		return bad("key", "is missing")
	case m.Nonce != nil && len(m.Nonce) != NonceSize:
		return bad("nonce", "has %d bytes and not %d", len(m.Nonce), NonceSize)
	}
	return nil
}

// padded is n rounded up to whole blocks.
func padded(n uint64, align uint32) uint64 {
	a := uint64(align)
	return (n + a - 1) / a * a
}

// validName: "-" alone stands for an empty name.
func validName(s string) bool {
	if s == "" || s == "-" || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func validChip(s string) bool {
	if !strings.HasPrefix(s, "esp32") || len(s) > 16 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func validSlot(s string) bool {
	n, ok := strings.CutPrefix(s, "ota_")
	v, err := strconv.ParseUint(n, 10, 8)
	return ok && err == nil && v < 16 && strconv.FormatUint(v, 10) == n
}

// Sign signs the manifest: it sets Signer and Signature.
func (m *Manifest) Sign(ctx context.Context, s Signer) error {
	id, err := SignerID(s.Public())
	if err != nil {
		return err
	}
	m.Signer, m.Signature = id, nil
	text, err := m.Signed()
	if err != nil {
		return err
	}
	sig, err := s.SignDigest(ctx, sha256.Sum256(text))
	if err != nil {
		return fmt.Errorf("ota: sign the manifest: %w", err)
	}
	m.Signature = sig
	// A key that is behind a network is not believed.
	if err := m.Verify(s.Public()); err != nil {
		m.Signature = nil
		return err
	}
	return nil
}

// ErrSignature says that a manifest is not signed by the key that was given.
var ErrSignature = errors.New("ota: the manifest is not signed by this key")

// Verify checks the signature with a public key that the caller trusts.
func (m *Manifest) Verify(public *ecdsa.PublicKey) error {
	id, err := SignerID(public)
	if err != nil {
		return err
	}
	text, err := m.Signed()
	if err != nil {
		return err
	}
	digest := sha256.Sum256(text)
	if id != m.Signer || !ecdsa.VerifyASN1(public, digest[:], m.Signature) {
		return ErrSignature
	}
	return nil
}
