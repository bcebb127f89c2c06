package secureboot

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the schemes' hashes
	_ "crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

const (
	blockMagic   = 0xE7
	versionRSA   = 2
	versionECDSA = 3

	hashOff   = 2 // 0: SHA-256, 1: SHA-384
	digestOff = 4
	crcOff    = 1196
)

// layout says where things are in a block of a scheme.
type layout struct {
	version byte
	hash    crypto.Hash
	hashID  byte
	keyOff  int // of the bytes that the key's digest covers
	keyLen  int
	sigOff  int
	sigLen  int
	number  int // bytes of one coordinate, of r, of s; RSA: of n
	curve   byte
}

var layouts = map[chip.SignatureScheme]layout{
	chip.SignRSA3072:  {version: versionRSA, hash: crypto.SHA256, keyOff: 36, keyLen: 776, sigOff: 812, sigLen: 384, number: 384},
	chip.SignECDSA192: {version: versionECDSA, hash: crypto.SHA256, keyOff: 36, keyLen: 65, sigOff: 101, sigLen: 64, number: 24, curve: 1},
	chip.SignECDSA256: {version: versionECDSA, hash: crypto.SHA256, keyOff: 36, keyLen: 65, sigOff: 101, sigLen: 64, number: 32, curve: 2},
	chip.SignECDSA384: {version: versionECDSA, hash: crypto.SHA384, hashID: 1, keyOff: 52, keyLen: 97, sigOff: 149, sigLen: 96, number: 48, curve: 3},
}

func (l layout) sum(b []byte) []byte {
	h := l.hash.New()
	h.Write(b)
	return h.Sum(nil)
}

// Block is a signature block.
type Block struct {
	Key         PublicKey
	ImageDigest []byte // by the scheme's hash
	// Signature is big-endian: 384 bytes of RSA, or r and s, each as long as a
	// coordinate.
	Signature []byte
}

// Sector is a parsed signature sector.
type Sector struct {
	Blocks []Block
}

// ParseSector reads a sector of 4096 bytes and checks all that can be checked
// without the image. Every error is an *Error.
func ParseSector(b []byte) (*Sector, error) { return parseSector(b, 0) }

func parseSector(b []byte, base int) (*Sector, error) {
	if len(b) != SectorSize {
		return nil, &Error{base, -1, "sector", fmt.Sprintf("it has %d of %d bytes: the file is cut off", len(b), SectorSize), nil}
	}
	s := &Sector{}
	for len(s.Blocks) < MaxBlocks {
		off := len(s.Blocks) * BlockSize
		if len(s.Blocks) > 0 && b[off] == 0xFF {
			break
		}
		block, err := parseBlock(b[off:off+BlockSize], len(s.Blocks), base+off)
		if err != nil {
			return nil, err
		}
		s.Blocks = append(s.Blocks, block)
	}
	end := len(s.Blocks) * BlockSize
	if i := slices.IndexFunc(b[end:], func(v byte) bool { return v != 0xFF }); i >= 0 {
		return nil, &Error{base + end + i, -1, "rest of the sector", fmt.Sprintf("0x%02x behind block %d should be 0xff: sign the image again", b[end+i], len(s.Blocks)-1), nil}
	}
	if _, err := s.scheme(base); err != nil {
		return nil, err
	}
	return s, nil
}

// scheme is the one scheme of all blocks.
func (s *Sector) scheme(base int) (chip.SignatureScheme, error) {
	if n := len(s.Blocks); n == 0 || n > MaxBlocks {
		return "", &Error{base, -1, "sector", fmt.Sprintf("it has %d signature blocks, not 1 to %d", n, MaxBlocks), nil}
	}
	scheme := s.Blocks[0].Key.Scheme()
	for i, b := range s.Blocks {
		if b.Key.Scheme() != scheme {
			return "", &Error{base + i*BlockSize, i, "scheme", fmt.Sprintf("it is %s, and block 0 is %s: a chip verifies one scheme only; sign with keys of one",
				b.Key.Scheme(), scheme), ErrScheme}
		}
	}
	return scheme, nil
}

// blockScheme finds the scheme from version, hash and curve.
func blockScheme(b []byte, bad func(off int, field, format string, args ...any) error) (chip.SignatureScheme, error) {
	switch {
	case b[0] != blockMagic:
		return "", bad(0, "magic", "0x%02x is not 0x%02x: this is no signature block", b[0], blockMagic)
	case b[1] == versionRSA:
		if b[hashOff] != 0 {
			return "", bad(hashOff, "reserved", "0x%02x should be 0", b[hashOff])
		}
		return chip.SignRSA3072, nil
	case b[1] != versionECDSA:
		return "", bad(1, "version", "%d is neither 2 (RSA) nor 3 (ECDSA): Secure Boot V1 and later formats are not read", b[1])
	case b[hashOff] > 1:
		return "", bad(hashOff, "hash", "%d is neither 0 (SHA-256) nor 1 (SHA-384)", b[hashOff])
	case b[hashOff] == 1:
		l := layouts[chip.SignECDSA384]
		if b[l.keyOff] != l.curve {
			return "", bad(l.keyOff, "curve id", "%d is not 3: with SHA-384 the curve is P-384", b[l.keyOff])
		}
		return chip.SignECDSA384, nil
	}
	switch off := layouts[chip.SignECDSA256].keyOff; b[off] {
	case 1:
		return chip.SignECDSA192, nil
	case 2:
		return chip.SignECDSA256, nil
	default:
		return "", bad(off, "curve id", "%d is neither 1 (P-192) nor 2 (P-256), the curves with SHA-256", b[off])
	}
}

func parseBlock(b []byte, index, base int) (Block, error) {
	bad := func(off int, field, format string, args ...any) error {
		return &Error{base + off, index, field, fmt.Sprintf(format, args...), nil}
	}
	scheme, err := blockScheme(b, bad)
	if err != nil {
		return Block{}, err
	}
	l := layouts[scheme]
	if b[3] != 0 {
		return Block{}, bad(3, "reserved", "0x%02x should be 0", b[3])
	}
	if got, want := binary.LittleEndian.Uint32(b[crcOff:]), crc32.ChecksumIEEE(b[:crcOff]); got != want {
		return Block{}, bad(crcOff, "CRC-32", "0x%08x is stored, the block gives 0x%08x: the file is damaged or was edited", got, want)
	}
	zero := func(from, to int) error {
		if i := slices.IndexFunc(b[from:to], func(v byte) bool { return v != 0 }); i >= 0 {
			return bad(from+i, "padding", "0x%02x should be 0", b[from+i])
		}
		return nil
	}
	key, field, err := parseKey(scheme, b[l.keyOff:l.keyOff+l.keyLen])
	if err != nil {
		return Block{}, bad(l.keyOff+field.off, field.name, "%s", err)
	}
	out := Block{Key: key, ImageDigest: bytes.Clone(b[digestOff : digestOff+l.hash.Size()])}
	raw := b[l.sigOff : l.sigOff+l.sigLen]
	used := l.sigLen
	if scheme == chip.SignRSA3072 {
		out.Signature = reversed(raw)
	} else {
		used = 2 * l.number
		out.Signature = append(reversed(raw[:l.number]), reversed(raw[l.number:used])...)
	}
	if off, err := key.checkSignature(out.Signature); err != nil {
		return Block{}, bad(l.sigOff+off, "signature", "%s: sign the image again", err)
	}
	for _, z := range [][2]int{{l.sigOff + used, crcOff}, {crcOff + 4, BlockSize}} {
		if err := zero(z[0], z[1]); err != nil {
			return Block{}, err
		}
	}
	return out, nil
}

// MarshalBinary encodes the sector. What ParseSector accepted gives the same
// bytes again.
func (s *Sector) MarshalBinary() ([]byte, error) {
	scheme, err := s.scheme(0)
	if err != nil {
		return nil, err
	}
	l := layouts[scheme]
	b := make([]byte, SectorSize)
	for i := range b[len(s.Blocks)*BlockSize:] {
		b[len(s.Blocks)*BlockSize+i] = 0xFF
	}
	for i, block := range s.Blocks {
		off := i * BlockSize
		if len(block.ImageDigest) != l.hash.Size() {
			return nil, &Error{off + digestOff, i, "image digest", fmt.Sprintf("%s has %d bytes, not %d", l.hash, l.hash.Size(), len(block.ImageDigest)), nil}
		}
		if at, err := block.Key.checkSignature(block.Signature); err != nil {
			return nil, &Error{off + l.sigOff + at, i, "signature", err.Error(), nil}
		}
		block.put(b[off:off+BlockSize], l)
	}
	return b, nil
}

// put fills a zeroed block.
func (k Block) put(b []byte, l layout) {
	b[0], b[1], b[hashOff] = blockMagic, l.version, l.hashID
	copy(b[digestOff:], k.ImageDigest)
	copy(b[l.keyOff:], k.Key.id)
	if l.version == versionRSA {
		copy(b[l.sigOff:], reversed(k.Signature))
	} else {
		copy(b[l.sigOff:], reversed(k.Signature[:l.number]))
		copy(b[l.sigOff+l.number:], reversed(k.Signature[l.number:]))
	}
	binary.LittleEndian.PutUint32(b[crcOff:], crc32.ChecksumIEEE(b[:crcOff]))
}

func reversed(b []byte) []byte {
	r := bytes.Clone(b)
	slices.Reverse(r)
	return r
}
