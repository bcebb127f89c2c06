package keystore

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/internal/secret"
)

// ErrKeyEmpty is returned when the bytes of a Key are asked for that holds
// none: the zero Key, or one that was wiped.
var ErrKeyEmpty = errors.New("keystore: the key is empty or was wiped")

// Key is an opaque key of a unit: its flash encryption key, or one that was
// derived from it (DeriveHMACKey). No format verb, marshaller or panic
// prints it. Copies share the bytes: Wipe empties all of them. A Key is safe
// for concurrent use. The zero value holds no key.
type Key struct{ b *secret.Bytes }

// Generate makes a key of the scheme's usual length from crypto/rand: 32 bytes
// for the ESP32 scheme and XTS-AES-128, 64 for XTS-AES-256, 16 for the ESP32-C2's
// derived key.
func Generate(s chip.Scheme) (Key, error) {
	lens := keyLengths(s)
	if len(lens) == 0 {
		return Key{}, unknownScheme(s)
	}
	return GenerateLen(s, lens[0])
}

// GenerateLen makes a key of n bytes. It is for the ESP32 with coding scheme
// 3/4, whose key block holds 24 bytes (esp-facts B.3); every other length that
// the scheme does not have is refused.
func GenerateLen(s chip.Scheme, n int) (Key, error) {
	if err := checkKeyLen(s, n); err != nil {
		return Key{}, err
	}
	b := make([]byte, n)
	for {
		_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
		if checkKeyBytes(b) == nil {
			return Key{secret.New(b)}, nil
		}
	}
}

// KeyFromBytes makes a Key from the bytes of a key file. It takes b over and
// wipes it, also when it refuses. Refused are lengths that no scheme has and
// bytes that are all equal (an erased or empty source, never a random key).
// Errors do not echo the bytes.
func KeyFromBytes(b []byte) (Key, error) {
	if err := checkKeyBytes(b); err != nil {
		clear(b)
		return Key{}, err
	}
	return Key{secret.New(b)}, nil
}

// Use lends the key's bytes to f, which must neither keep nor change them.
func (k Key) Use(f func(key []byte) error) error {
	err := k.b.Use(f)
	if errors.Is(err, secret.ErrEmpty) {
		return ErrKeyEmpty
	}
	return err
}

// Len is the key's length in bytes; 0 says that there is no key.
func (k Key) Len() int { return k.b.Len() }

// Equal compares two keys in constant time. An empty key equals nothing.
func (k Key) Equal(o Key) bool { return k.b.Equal(o.b) }

// Wipe overwrites the bytes. This Key and its copies are empty from then on.
func (k Key) Wipe() { k.b.Wipe() }

// Fingerprint names the key without giving it away. An empty key has the zero
// Fingerprint.
func (k Key) Fingerprint() Fingerprint {
	var fp Fingerprint
	_ = k.Use(func(b []byte) error { fp = secret.Fingerprint(b); return nil })
	return fp
}

// Fits reports whether the key has a length of the scheme.
func (k Key) Fits(s chip.Scheme) error {
	if k.Len() == 0 {
		return ErrKeyEmpty
	}
	return checkKeyLen(s, k.Len())
}

// Cipher makes the cipher that the chip has with this key. flashCryptConfig is
// the eFuse field FLASH_CRYPT_CONFIG of the ESP32 and 0 for every other scheme.
// The cipher holds the key on its own: wipe both.
func (k Key) Cipher(scheme chip.Scheme, flashCryptConfig uint8) (flashcrypt.Cipher, error) {
	if err := k.Fits(scheme); err != nil {
		return nil, err
	}
	if err := checkCryptConfig(scheme, flashCryptConfig); err != nil {
		return nil, err
	}
	var c flashcrypt.Cipher
	err := k.Use(func(key []byte) (err error) {
		c, err = flashcrypt.New(scheme, key, flashCryptConfig)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("keystore: cipher: %w", err)
	}
	return c, nil
}

// Format prints a placeholder for every verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Redacted)) }

// String is the placeholder.
func (k Key) String() string { return secret.Redacted }

// GoString is the placeholder.
func (k Key) GoString() string { return secret.Redacted }

// LogValue is the placeholder for log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(secret.Redacted) }

// MarshalText refuses: a placeholder in a stored record would be a lost key.
func (k Key) MarshalText() ([]byte, error) {
	return nil, errors.New("keystore: a key is not marshalled on its own: use MarshalRecord")
}

// Fingerprint is SHA-256 over a domain prefix and the key's bytes. It is how
// journals, reports and stores name a key; nothing about a uniformly random key
// follows from it.
type Fingerprint [32]byte

// FingerprintBytes is the Fingerprint of bytes that are no Key (a key block
// read back from a chip, in key file order).
func FingerprintBytes(b []byte) Fingerprint { return secret.Fingerprint(b) }

// ParseFingerprint reads the 64 lower-case hex digits that String writes.
func ParseFingerprint(s string) (Fingerprint, error) {
	var fp Fingerprint
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(fp) || hex.EncodeToString(b) != s {
		// s is not echoed: a key pasted into the wrong place looks much like it.
		return Fingerprint{}, errors.New("not a key fingerprint: it has 64 lower-case hex digits")
	}
	copy(fp[:], b)
	return fp, nil
}

// String is the fingerprint in 64 lower-case hex digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// IsZero reports the zero value: no key.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// Equal compares in constant time.
func (f Fingerprint) Equal(o Fingerprint) bool {
	return subtle.ConstantTimeCompare(f[:], o[:]) == 1
}

// MarshalText writes the hex form.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Fingerprint) UnmarshalText(b []byte) (err error) {
	*f, err = ParseFingerprint(string(b))
	return err
}

// keyLengths gives the key lengths of a scheme, the usual one first
// (esp-facts C.1, C.2; 24 bytes: B.3).
func keyLengths(s chip.Scheme) []int {
	switch s {
	case chip.SchemeESP32:
		return []int{32, 24}
	case chip.SchemeXTS128:
		return []int{32}
	case chip.SchemeXTS256:
		return []int{64}
	case chip.SchemeXTSDerived:
		return []int{16}
	}
	return nil
}

func checkKeyLen(s chip.Scheme, n int) error {
	lens := keyLengths(s)
	if len(lens) == 0 {
		return unknownScheme(s)
	}
	if !slices.Contains(lens, n) {
		return fmt.Errorf("keystore: a key of scheme %s has %d bytes, not %d", s, lens[0], n)
	}
	return nil
}

// checkCryptConfig: FLASH_CRYPT_CONFIG has four bits, on the ESP32 only
// (esp-facts C.1).
func checkCryptConfig(s chip.Scheme, config uint8) error {
	switch {
	case config > 0xF:
		return fmt.Errorf("keystore: FLASH_CRYPT_CONFIG 0x%x has more than four bits", config)
	case config != 0 && s != chip.SchemeESP32:
		return fmt.Errorf("keystore: scheme %s has no FLASH_CRYPT_CONFIG: give 0", s)
	}
	return nil
}

func checkKeyBytes(b []byte) error {
	switch len(b) {
	case 16, 24, 32, 64:
	default:
		return fmt.Errorf("keystore: a key has 16, 24, 32 or 64 bytes, not %d: give the raw key file, not its hex or base64 form", len(b))
	}
	var diff byte
	for _, v := range b {
		diff |= v ^ b[0]
	}
	if diff == 0 {
		return errors.New("keystore: all bytes of the key are equal: this is an empty or erased source, not a key")
	}
	return nil
}

func unknownScheme(s chip.Scheme) error {
	return fmt.Errorf("keystore: unknown flash encryption scheme %q", string(s))
}
