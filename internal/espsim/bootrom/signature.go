package bootrom

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash/crc32"
	"math/big"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
)

// The signature sector behind a signed image (esp-facts E.2; ESP-IDF
// docs/en/security/secure-boot-v2.rst "Signature Block Format"). This reads it on
// its own and shares nothing with esp/secureboot.
const (
	sigSector = 0x1000
	sigBlocks = 3
	sigLen    = 1216
	sigMagic  = 0xE7
	sigCRC    = 1196 // offset of the CRC, and how much it covers
	rsaBytes  = 384
)

// Versions of a signature block.
const (
	versionRSA   = 2
	versionECDSA = 3
)

// signature is a block of the sector whose magic and CRC are right.
type signature struct {
	raw    []byte
	scheme chip.SignatureScheme // "" for one that no chip knows
	digest []byte               // of the image, as the block has it
	key    []byte               // the bytes that the key digest covers
}

func parseSignature(raw []byte) signature {
	s := signature{raw: raw}
	switch version, sha := raw[1], raw[2]; {
	case version == versionRSA:
		s.scheme, s.digest, s.key = chip.SignRSA3072, raw[4:36], raw[36:812]
	case version == versionECDSA && sha == 1 && raw[52] == 3:
		s.scheme, s.digest, s.key = chip.SignECDSA384, raw[4:52], raw[52:149]
	case version == versionECDSA && sha == 0 && raw[36] == 2:
		s.scheme, s.digest, s.key = chip.SignECDSA256, raw[4:36], raw[36:101]
	case version == versionECDSA && sha == 0 && raw[36] == 1:
		s.scheme, s.digest, s.key = chip.SignECDSA192, raw[4:36], raw[36:101]
	}
	return s
}

// family is how the boot texts name a scheme.
func family(s chip.SignatureScheme) string {
	if s.ECDSA() {
		return "ECDSA"
	}
	return "RSA-PSS"
}

// verify checks the signature over the digest that the block has.
func (s signature) verify() bool {
	switch s.scheme {
	case chip.SignRSA3072:
		return verifyRSA(s.key, s.raw[812:1196], s.digest)
	case chip.SignECDSA192:
		return p192.verify(le(s.raw[37:61]), le(s.raw[61:85]), le(s.raw[101:125]), le(s.raw[125:149]), s.digest)
	case chip.SignECDSA256:
		return verifyECDSA(elliptic.P256(), s.raw[37:101], s.raw[101:165], s.digest)
	case chip.SignECDSA384:
		return verifyECDSA(elliptic.P384(), s.raw[53:149], s.raw[149:245], s.digest)
	}
	return false
}

// le reads a little-endian number.
func le(b []byte) *big.Int {
	r := slices.Clone(b)
	slices.Reverse(r)
	return new(big.Int).SetBytes(r)
}

// verifyRSA is RSA-PSS as the chip's accelerator does it: with the precomputed
// values of the block, which give a wrong result when they are wrong.
func verifyRSA(key, sig, digest []byte) bool {
	n, e := le(key[:rsaBytes]), le(key[rsaBytes:rsaBytes+4])
	r, m := le(key[rsaBytes+4:2*rsaBytes+4]), le(key[2*rsaBytes+4:2*rsaBytes+8])
	word := new(big.Int).Lsh(big.NewInt(1), 32)
	inv := new(big.Int).ModInverse(n, word)
	if inv == nil || n.BitLen() != 8*rsaBytes {
		return false
	}
	if inv.Sub(word, inv).Cmp(m) != 0 || new(big.Int).Mod(new(big.Int).Lsh(big.NewInt(1), 16*rsaBytes), n).Cmp(r) != 0 {
		return false
	}
	big := slices.Clone(sig)
	slices.Reverse(big)
	pub := &rsa.PublicKey{N: n, E: int(e.Int64())}
	return rsa.VerifyPSS(pub, crypto.SHA256, digest, big, &rsa.PSSOptions{SaltLength: 32}) == nil
}

// verifyECDSA does not do what the advisory AR2026-006 says of the ROMs of H2, C5,
// C61 and P4, which let some numbers r and s through that are out of range.
func verifyECDSA(c elliptic.Curve, key, sig, digest []byte) bool {
	point := []byte{4}
	for half := range slices.Chunk(key, len(key)/2) {
		be := slices.Clone(half)
		slices.Reverse(be)
		point = append(point, be...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(c, point)
	if err != nil {
		return false
	}
	return ecdsa.Verify(pub, digest, le(sig[:len(sig)/2]), le(sig[len(sig)/2:]))
}

// curve is a short Weierstrass curve with a = -3, for P-192, which the standard
// library has not.
type curve struct{ p, b, n, gx, gy *big.Int }

func hexInt(s string) *big.Int {
	v, ok := new(big.Int).SetString(s, 16)
	if !ok {
		panic("bootrom: not hex: " + s)
	}
	return v
}

// NIST P-192 (FIPS 186-4 D.1.2.1).
var p192 = curve{
	p:  hexInt("fffffffffffffffffffffffffffffffeffffffffffffffff"),
	b:  hexInt("64210519e59c80e70fa7e9ab72243049feb8deecc146b9b1"),
	n:  hexInt("ffffffffffffffffffffffff99def836146bc9b1b4d22831"),
	gx: hexInt("188da80eb03090f67cbf20eb43a18800f4ff0afd82ff1012"),
	gy: hexInt("07192b95ffc8da78631011ed6b24cdd573f977a11e794811"),
}

// point is a point of a curve; nil stands for the one at infinity.
type point struct{ x, y *big.Int }

func (c curve) mod(v *big.Int) *big.Int { return v.Mod(v, c.p) }

func (c curve) on(q *point) bool {
	if q.x.Cmp(c.p) >= 0 || q.y.Cmp(c.p) >= 0 {
		return false
	}
	// x³ - 3x + b
	v := new(big.Int).Mul(q.x, q.x)
	v.Sub(v, big.NewInt(3)).Mul(v, q.x).Add(v, c.b)
	return c.mod(v).Cmp(c.mod(new(big.Int).Mul(q.y, q.y))) == 0
}

func (c curve) add(q, r *point) *point {
	switch {
	case q == nil:
		return r
	case r == nil:
		return q
	}
	num, den := new(big.Int), new(big.Int)
	if q.x.Cmp(r.x) == 0 {
		if c.mod(den.Add(q.y, r.y)).Sign() == 0 {
			return nil
		}
		// 3x² - 3 over 2y
		num.Mul(q.x, q.x).Sub(num, big.NewInt(1)).Mul(num, big.NewInt(3))
		den.Lsh(q.y, 1)
	} else {
		num.Sub(r.y, q.y)
		den.Sub(r.x, q.x)
	}
	slope := c.mod(num.Mul(num, den.ModInverse(c.mod(den), c.p)))
	x := new(big.Int).Mul(slope, slope)
	c.mod(x.Sub(x, q.x).Sub(x, r.x))
	y := new(big.Int).Sub(q.x, x)
	c.mod(y.Mul(y, slope).Sub(y, q.y))
	return &point{x, y}
}

func (c curve) mul(q *point, k *big.Int) *point {
	var out *point
	for i := k.BitLen() - 1; i >= 0; i-- {
		out = c.add(out, out)
		if k.Bit(i) != 0 {
			out = c.add(out, q)
		}
	}
	return out
}

// verify is ECDSA (FIPS 186-4 6.4) with the leftmost bits of the digest.
func (c curve) verify(x, y, r, s *big.Int, digest []byte) bool {
	q := &point{x, y}
	inRange := func(v *big.Int) bool { return v.Sign() > 0 && v.Cmp(c.n) < 0 }
	if !inRange(r) || !inRange(s) || !c.on(q) {
		return false
	}
	e := new(big.Int).SetBytes(digest)
	if extra := 8*len(digest) - c.n.BitLen(); extra > 0 {
		e.Rsh(e, uint(extra))
	}
	w := new(big.Int).ModInverse(s, c.n)
	u := new(big.Int).Mul(e, w)
	v := new(big.Int).Mul(r, w)
	sum := c.add(c.mul(&point{c.gx, c.gy}, u.Mod(u, c.n)), c.mul(q, v.Mod(v, c.n)))
	return sum != nil && new(big.Int).Mod(sum.x, c.n).Cmp(r) == 0
}

// trustedKey is a key digest in the eFuses that has not been revoked.
type trustedKey struct {
	slot   int
	digest []byte
}

// Values of KEY_PURPOSE_n, the same on every chip that has the purpose (esp-facts B.9).
const (
	purposeXTS256a = 2
	purposeXTS256b = 3
	purposeXTS128  = 4
	purposeDigest0 = 9
)

// trustedKeys reads the digests as boot code can: a read-protected one is zeros,
// which no key has.
func (b *boot) trustedKeys() []trustedKey {
	sb := b.in.Model.SecureBoot
	if b.fuses.tab == nil {
		return nil
	}
	switch sb.DigestIn {
	case chip.DigestInBlock2:
		return []trustedKey{{0, b.fuses.bytes(2)}}
	case chip.DigestInKey0High:
		k, _, _ := b.fuses.keyBlock(0)
		return []trustedKey{{0, b.fuses.bytes(k.Index)[16:]}}
	}
	var keys []trustedKey
	for slot := range sb.DigestSlots {
		if b.fuses.get(sb.RevokeFields[slot]) != 0 {
			continue
		}
		if k, _, ok := b.fuses.keyBlock(purposeDigest0 + slot); ok {
			keys = append(keys, trustedKey{slot, b.fuses.bytes(k.Index)})
		}
	}
	return keys
}

// digests are the hashes of an image with its padding.
type digests struct{ sha256, sha384 []byte }

func (b *boot) imageDigests(at, end uint32) (digests, error) {
	raw, err := b.flash.read(at, end-at)
	if err != nil {
		return digests{}, err
	}
	a, c := sha256.Sum256(raw), sha512.Sum384(raw)
	return digests{a[:], c[:]}, nil
}

func (d digests) of(s chip.SignatureScheme) []byte {
	if s == chip.SignECDSA384 {
		return d.sha384
	}
	return d.sha256
}

// padded is where the signature sector of an image of this length is.
func padded(end uint32) uint32 { return (end + sigSector - 1) &^ (sigSector - 1) }

// sector reads the signature blocks behind an image: their raw bytes.
func (b *boot) sector(at uint32) ([][]byte, error) {
	raw, err := b.flash.read(at, sigSector)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for i := range sigBlocks {
		out = append(out, raw[i*sigLen:(i+1)*sigLen])
	}
	return out, nil
}

func crcOf(raw []byte) uint32 { return crc32.ChecksumIEEE(raw[:sigCRC]) }

// verifySector is the mask ROM's check of a signature sector, which the second
// stage uses too. It prints what is wrong, and gives the scheme of the block that
// decided, and the slots whose key was named by a block with a bad signature.
func (b *boot) verifySector(blocks [][]byte, d digests, trusted []trustedKey, tell func(string, ...any)) (scheme chip.SignatureScheme, ok bool, bad []int) {
	sb := b.in.Model.SecureBoot
	for i, raw := range blocks[:min(len(blocks), sb.DigestSlots)] {
		if raw[0] != sigMagic {
			if i == 0 {
				tell("No signature block magic byte found at signature sector (found 0x%x not 0x%x). Image not V2 signed?\r\n", raw[0], sigMagic)
			}
			break
		}
		if le32(raw[sigCRC:]) != crcOf(raw) {
			tell(b.rom.SecureBoot.BadCRC, i)
			continue
		}
		s := parseSignature(raw)
		if !sb.Supports(s.scheme, b.in.Revision) || b.otherHash(s.scheme) {
			continue
		}
		scheme = s.scheme
		if !bytes.Equal(s.digest, d.of(s.scheme)) {
			tell("Sig block %d invalid: Image digest does not match\r\n", i)
			continue
		}
		sum := sha256.Sum256(s.key)
		slot := slices.IndexFunc(trusted, func(k trustedKey) bool { return bytes.Equal(k.digest, sum[:sb.DigestBytes]) })
		if slot < 0 {
			continue // what the ROM prints of a key that nobody trusts is not public
		}
		if s.verify() {
			return scheme, true, bad
		}
		tell("Signature Check Failed\r\nSig block %d signature verification failed\r\n", i)
		bad = append(bad, trusted[slot].slot)
	}
	return scheme, false, bad
}

// otherHash reports whether boot code expects another hash than a scheme has: the
// fuse chooses SHA-384, and with it P-384, for everything. Before Secure Boot is on,
// the second stage's build does.
func (b *boot) otherHash(s chip.SignatureScheme) bool {
	long := b.fuses.get(b.in.Model.SecureBoot.SHA384Field) != 0
	if !b.secureBootOn() {
		long = b.buildScheme() == chip.SignECDSA384
	}
	return (s == chip.SignECDSA384) != long
}

// secureBootOn reports whether the silicon enforces Secure Boot V2.
func (b *boot) secureBootOn() bool {
	sb := b.in.Model.SecureBoot
	return b.in.Revision >= sb.MinimumRevision && b.fuses.get(sb.EnableField) != 0
}

// verifyBootloader is the mask ROM's check before it loads anything.
func (b *boot) verifyBootloader(at uint32, img image) bool {
	t, sb := b.rom.SecureBoot, b.in.Model.SecureBoot
	trusted := b.trustedKeys()
	if strings.Contains(t.Enabled, "%s") {
		slots := ""
		for i, k := range trusted {
			if i > 0 {
				slots += " "
			}
			slots += fmt.Sprint(k.slot)
		}
		b.say(t.Enabled, slots)
	} else {
		b.say("%s", t.Enabled)
	}
	var scheme chip.SignatureScheme
	ok := false
	end := padded(at + img.length)
	if blocks, err := b.sector(end); err == nil {
		if d, err := b.imageDigests(at, end); err == nil {
			var bad []int
			scheme, ok, bad = b.verifySector(blocks, d, trusted, b.say)
			if b.fuses.get(sb.AggressiveRevokeField) != 0 {
				for _, slot := range bad {
					b.fuses.fill(sb.RevokeFields[slot])
				}
				b.fuses.commit()
			}
		}
	}
	if scheme == "" {
		scheme = sb.Schemes[0].Scheme
	}
	verdict := t.Verdict
	if t.ByScheme {
		verdict = family(scheme) + " " + verdict
	}
	if !ok || t.Broken {
		b.say(verdict, "failed")
		b.say("%s", t.Failed)
		return false
	}
	b.say(verdict, "succeeded")
	return true
}
