// Package secureboot owns the signature sector of Secure Boot V2: it parses,
// checks and builds it, and knows the digests of signing keys that chips hold in
// eFuse. Which chip verifies which scheme stands in esp/chip.
//
// # Format
//
// A signed image is the image, padding up to the next 4 KiB boundary, and one
// sector of 4096 bytes with one to three signature blocks of 1216 bytes; the
// rest of the sector is 0xFF (esp-facts E.2; ESP-IDF
// docs/en/security/secure-boot-v2.rst, bootloader_support/src/secure_boot_v2).
// A block holds the digest of the image, the public key and the signature. The
// digest covers the padding: it is part of what is signed. Numbers in a block
// are little-endian.
//
//	RSA-3072 (version 2)           ECDSA P-192, P-256 (version 3)   ECDSA P-384 (version 3)
//	0     0xE7, version, 0, 0      0     0xE7, version, 0, 0        0     0xE7, version, 1, 0
//	4     SHA-256                  4     SHA-256                    4     SHA-384
//	36    n                        36    curve id: 1, 2             52    curve id: 3
//	420   e                        37    X, Y                       53    X, Y
//	424   2^6144 mod n
//	808   -1/n mod 2^32
//	812   signature (PSS)          101   r, s                       149   r, s
//	                               165   zeros                      245   zeros
//	1196  CRC-32 of bytes 0 to 1195
//	1200  zeros
//
// P-192 numbers are packed: X and Y fill 48 of the 64 bytes, zeros follow.
//
// # What is accepted
//
// Parse and Verify are as strict as the format is determined. The ROM looks at
// magic, version, CRC, digest, key and signature and takes an image with one
// good block. Here every block must hold, every byte that the format fixes must
// be that byte (so what parses re-encodes to the same bytes), the constants that
// are derived from n must be right, a point must lie on its curve, r and s must
// be in 1 to n-1 (some chips' hardware accepts others), and all blocks must be
// of one scheme: a chip is set up for one, and takes no second.
//
// # Keys
//
// Private keys are behind crypto.Signer: a PEM file's (ParseSigner), or any
// other. No private key is printed by any verb, nor is there a way to get one
// out. RSA-3072, P-256 and P-384 are the standard library's. It has no P-192;
// signatures of that curve are verified with math/big, whose running time
// depends on the numbers, which are public here. For the same reason no P-192
// private key is read: such an image is signed by a token that holds the key.
package secureboot

import (
	"bytes"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
)

// Sizes of the format.
const (
	SectorSize = image.SectorSize
	BlockSize  = 1216
	MaxBlocks  = 3 // in a sector
)

// What Verify, Sign, CheckFor and CheckTrust refuse. Test with errors.Is.
var (
	// ErrUnsigned: there is no signature sector behind the image.
	ErrUnsigned = errors.New("the image is not signed")
	// ErrMismatch: a digest or a signature is not the image's.
	ErrMismatch = errors.New("the signature is not one of this image")
	// ErrScheme: the chip does not verify the scheme, or the sector mixes two.
	ErrScheme = errors.New("wrong signature scheme")
	// ErrUntrusted: the signatures are good, and by none of the unit's keys.
	ErrUntrusted = errors.New("the unit does not trust the signature")
)

// Error says where a signature sector is wrong.
type Error struct {
	Offset int // in what was given: in the file for Verify, in the sector for ParseSector
	Block  int // of the sector; -1: no single one
	Field  string
	Msg    string
	Err    error // ErrMismatch or ErrScheme, or nil
}

func (e *Error) Error() string {
	if e.Block < 0 {
		return fmt.Sprintf("signature sector: %s at offset 0x%x: %s", e.Field, e.Offset, e.Msg)
	}
	return fmt.Sprintf("signature block %d: %s at offset 0x%x: %s", e.Block, e.Field, e.Offset, e.Msg)
}

// Unwrap gives Err.
func (e *Error) Unwrap() error { return e.Err }

// Signature is one signature of an image that was found good.
type Signature struct {
	Offset int // of the block in the file
	Key    PublicKey
}

// Report is what a verified image carries.
type Report struct {
	Scheme      chip.SignatureScheme
	Signed      int    // how many bytes the signatures cover: the image and its padding
	ImageDigest []byte // over those, by the scheme's hash
	Signatures  []Signature
}

// SignedBy reports whether one of the signatures is by the key with this digest.
func (r Report) SignedBy(digest KeyDigest) bool {
	for _, s := range r.Signatures {
		if s.Key.Digest() == digest {
			return true
		}
	}
	return false
}

// CheckFor refuses what the boot code of a chip would refuse or overlook: a
// scheme that silicon of this revision does not verify, and more signatures than
// it looks at. image.RevisionUnknown stands for the newest silicon.
func (r Report) CheckFor(c chip.Model, rev chip.Revision) error {
	return checkChip(c, rev, r.Scheme, len(r.Signatures))
}

// CheckTrust holds verified signatures against what a unit trusts: the scheme of its
// Secure Boot, and the digests of its keys, of which some chips burn a part only.
func (r Report) CheckTrust(sb chip.SecureBoot, scheme chip.SignatureScheme, digests [][32]byte) error {
	if r.Scheme != scheme {
		return fmt.Errorf("%w: it verifies %s and the image is signed with %s", ErrUntrusted, scheme, r.Scheme)
	}
	for _, s := range r.Signatures {
		burned := s.Key.Digest().Burned(sb)
		if slices.ContainsFunc(digests, func(d [32]byte) bool { return bytes.HasPrefix(d[:], burned) }) {
			return nil
		}
	}
	return fmt.Errorf("%w: it trusts none of the keys that signed the image", ErrUntrusted)
}

// Weak reports whether the vendor says that this chip verifies such signatures
// badly: it accepts crafted ones (chip.SecureBoot.WeakECDSA).
func (r Report) Weak(c chip.Model) bool { return c.SecureBoot.WeakECDSA && r.Scheme.ECDSA() }

func checkChip(c chip.Model, rev chip.Revision, scheme chip.SignatureScheme, blocks int) error {
	sb := c.SecureBoot
	if len(sb.Schemes) == 0 || rev < sb.MinimumRevision {
		return fmt.Errorf("%w: the %s %s has no Secure Boot V2: it came with %s", ErrScheme, c.Title, rev, sb.MinimumRevision)
	}
	if !sb.Supports(scheme, rev) {
		return fmt.Errorf("%w: the %s does not verify %s%s: sign with a key of %s", ErrScheme, c.Title, scheme, since(sb, scheme), schemes(sb, rev))
	}
	if blocks > sb.DigestSlots {
		return fmt.Errorf("%w: the boot code of the %s looks at %d signature block, the sector has %d: sign with one key", ErrScheme, c.Title, sb.DigestSlots, blocks)
	}
	return nil
}

// since tells that newer silicon would do.
func since(sb chip.SecureBoot, scheme chip.SignatureScheme) string {
	for _, s := range sb.Schemes {
		if s.Scheme == scheme {
			return fmt.Sprintf(" before revision %s", s.MinimumRevision)
		}
	}
	return ""
}

func schemes(sb chip.SecureBoot, rev chip.Revision) string {
	text := ""
	for _, s := range sb.Schemes {
		if rev < s.MinimumRevision {
			continue
		}
		if text != "" {
			text += " or "
		}
		text += string(s.Scheme)
	}
	return text
}

// Verify checks a signed image completely: the image itself (image.Parse), the
// sector, and every signature in it. It does not know which keys are to be
// trusted: ask Report.SignedBy.
func Verify(file []byte) (Report, error) {
	m, err := image.Parse(file)
	if err != nil {
		return Report{}, err
	}
	return verifyParsed(m, file)
}

func verifyParsed(m *image.Image, file []byte) (Report, error) {
	if !m.Signed {
		return Report{}, fmt.Errorf("%w: there is no signature sector at offset 0x%x: sign it with `provisiond image sign`", ErrUnsigned, signedLength(m))
	}
	s, err := parseSector(m.Signature, signedLength(m))
	if err != nil {
		return Report{}, err
	}
	return s.verify(file[:signedLength(m)], signedLength(m))
}

// signedLength is how many bytes of an image its signature covers.
func signedLength(m *image.Image) int {
	return (m.Length + SectorSize - 1) / SectorSize * SectorSize
}

// Verify checks that every block of the sector is a good signature of content:
// an image with its padding, which ends where the sector begins.
func (s *Sector) Verify(content []byte) (Report, error) { return s.verify(content, len(content)) }

// verify is Verify for a sector that lies at offset base of its file.
func (s *Sector) verify(content []byte, base int) (Report, error) {
	scheme, err := s.scheme(base)
	if err != nil {
		return Report{}, err
	}
	if len(content)%SectorSize != 0 {
		return Report{}, &Error{base, -1, "image", fmt.Sprintf("0x%x bytes are no whole sectors: pad the image to a multiple of 4096", len(content)), nil}
	}
	l := layouts[scheme]
	r := Report{Scheme: scheme, Signed: len(content), ImageDigest: l.sum(content)}
	for i, b := range s.Blocks {
		off := base + i*BlockSize
		if string(b.ImageDigest) != string(r.ImageDigest) {
			return Report{}, &Error{off + digestOff, i, "image digest", fmt.Sprintf("%x… is stored, the image and its padding give %x…: it was changed after it was signed; sign it again",
				b.ImageDigest[:4], r.ImageDigest[:4]), ErrMismatch}
		}
		if !b.Key.verify(r.ImageDigest, b.Signature) {
			return Report{}, &Error{off + l.sigOff, i, "signature", "it does not verify with the public key in the block: sign the image again", ErrMismatch}
		}
		r.Signatures = append(r.Signatures, Signature{Offset: off, Key: b.Key})
	}
	return r, nil
}

// KeyDigest is the SHA-256 of a public key in the form of a signature block: what
// chips hold in eFuse.
type KeyDigest [32]byte

// String is the digest in hex.
func (d KeyDigest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String.
func (d KeyDigest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseKeyDigest.
func (d *KeyDigest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseKeyDigest(string(b))
	return err
}

// ParseKeyDigest reads what String writes.
func ParseKeyDigest(s string) (KeyDigest, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(KeyDigest{}) {
		return KeyDigest{}, errors.New("a key digest has 64 hex digits")
	}
	return KeyDigest(b), nil
}

// Burned is what a chip holds of the digest: all of it, on an ESP32-C2 the first
// 16 bytes.
func (d KeyDigest) Burned(sb chip.SecureBoot) []byte { return d[:sb.DigestBytes] }

// pss are the parameters of every RSA signature of Secure Boot V2.
var pss = rsa.PSSOptions{SaltLength: 32, Hash: layouts[chip.SignRSA3072].hash}
