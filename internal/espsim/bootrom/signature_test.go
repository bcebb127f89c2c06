package bootrom

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash/crc32"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "signatures", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSignatureVectors checks what espsecure 5.3.1 signed (throw-away keys), and
// that every part of a block counts.
func TestSignatureVectors(t *testing.T) {
	image := testdata(t, "image.bin")
	image = append(image, bytes.Repeat([]byte{0xFF}, sigSector-len(image))...)
	two := testdata(t, "rsa3072-two.blocks")
	for _, v := range []struct {
		name   string
		scheme chip.SignatureScheme
		block  []byte
		digest []byte
		sig    int // offset of the signature
	}{
		{"rsa3072", chip.SignRSA3072, testdata(t, "rsa3072.block"), testdata(t, "rsa3072.digest"), 812},
		{"first of two", chip.SignRSA3072, two[:sigLen], testdata(t, "rsa3072.digest"), 812},
		{"second of two", chip.SignRSA3072, two[sigLen:], testdata(t, "rsa3072-b.digest"), 812},
		{"ecdsa192", chip.SignECDSA192, testdata(t, "ecdsa192.block"), testdata(t, "ecdsa192.digest"), 101},
		{"ecdsa256", chip.SignECDSA256, testdata(t, "ecdsa256.block"), testdata(t, "ecdsa256.digest"), 101},
		{"ecdsa384", chip.SignECDSA384, testdata(t, "ecdsa384.block"), testdata(t, "ecdsa384.digest"), 149},
	} {
		t.Run(v.name, func(t *testing.T) {
			s := parseSignature(v.block)
			if s.scheme != v.scheme || v.block[0] != sigMagic {
				t.Fatalf("scheme %q, magic %#x", s.scheme, v.block[0])
			}
			if sum := sha256.Sum256(s.key); !bytes.Equal(sum[:], v.digest) {
				t.Errorf("key digest %x, espsecure says %x", sum, v.digest)
			}
			if crc := binary.LittleEndian.Uint32(v.block[sigCRC:]); crc != crcOf(v.block) {
				t.Errorf("CRC %#x, stored %#x", crcOf(v.block), crc)
			}
			a, c := sha256.Sum256(image), sha512.Sum384(image)
			if want := (digests{a[:], c[:]}).of(s.scheme); !bytes.Equal(s.digest, want) {
				t.Errorf("image digest %x, want %x", s.digest, want)
			}
			if !s.verify() {
				t.Error("a good signature does not verify")
			}
			spots := map[string]int{"image digest": 4, "key": 60, "signature": v.sig + 3}
			if s.scheme == chip.SignRSA3072 {
				spots["exponent"], spots["R"], spots["-1/n"] = 420, 500, 808
			}
			for what, at := range spots {
				bad := slices.Clone(v.block)
				bad[at] ^= 0x10
				if parseSignature(bad).verify() {
					t.Errorf("it verifies with a flipped bit in the %s", what)
				}
			}
		})
	}
}

// P-192's generator is the public key of the private key 1, whose digest
// esp-facts E.3 has; and the group's order takes every point to infinity.
func TestP192(t *testing.T) {
	g := &point{p192.gx, p192.gy}
	if !p192.on(g) || p192.mul(g, p192.n) != nil {
		t.Fatal("the curve's parameters do not fit together")
	}
	if q := p192.mul(g, new(big.Int).Sub(p192.n, big.NewInt(1))); q.x.Cmp(g.x) != 0 || q.y.Cmp(g.y) == 0 {
		t.Error("(n-1)·G is not -G")
	}
	key := append([]byte{1}, append(leBytes(g.x, 24), leBytes(g.y, 24)...)...)
	sum := sha256.Sum256(append(key, make([]byte, 16)...))
	if want := hexInt("9000b7665fa5516a6210006f778b4bf0b88e26aad8248b069830a5cc93b9ea20"); new(big.Int).SetBytes(sum[:]).Cmp(want) != 0 {
		t.Errorf("digest %x", sum)
	}
}

func leBytes(v *big.Int, n int) []byte {
	b := v.FillBytes(make([]byte, n))
	slices.Reverse(b)
	return b
}

// signer is a private key of a test.
type signer struct {
	rsa   *rsa.PrivateKey
	ecdsa *ecdsa.PrivateKey
}

var rsaSigners = sync.OnceValue(func() [2]signer {
	var out [2]signer
	for i := range out {
		k, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			panic(err)
		}
		out[i].rsa = k
	}
	return out
})

// signers gives two keys of a scheme.
func signers(t testing.TB, s chip.SignatureScheme) [2]signer {
	t.Helper()
	var c elliptic.Curve
	switch s {
	case chip.SignRSA3072:
		return rsaSigners()
	case chip.SignECDSA256:
		c = elliptic.P256()
	case chip.SignECDSA384:
		c = elliptic.P384()
	default:
		t.Fatalf("the test has no signer for %s", s)
	}
	var out [2]signer
	for i := range out {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		out[i].ecdsa = k
	}
	return out
}

// block makes a signature block as esp-facts E.2 has it.
func (s signer) block(t testing.TB, image []byte) []byte {
	t.Helper()
	b := make([]byte, 4, sigLen)
	b[0], b[1] = sigMagic, versionECDSA
	sum := sha256.Sum256(image)
	switch {
	case s.rsa != nil:
		b[1] = versionRSA
		sig, err := rsa.SignPSS(rand.Reader, s.rsa, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: 32})
		if err != nil {
			t.Fatal(err)
		}
		n, word := s.rsa.N, new(big.Int).Lsh(big.NewInt(1), 32)
		r := new(big.Int).Lsh(big.NewInt(1), 6144)
		m := new(big.Int).ModInverse(new(big.Int).Neg(n), word)
		b = append(b, sum[:]...)
		b = append(b, leBytes(n, 384)...)
		b = binary.LittleEndian.AppendUint32(b, uint32(s.rsa.E))
		b = append(b, leBytes(r.Mod(r, n), 384)...)
		b = append(b, leBytes(m, 4)...)
		b = append(b, leBytes(new(big.Int).SetBytes(sig), 384)...)
	default:
		digest, id, size := sum[:], byte(2), 32
		if s.ecdsa.Curve == elliptic.P384() {
			long := sha512.Sum384(image)
			digest, id, size, b[2] = long[:], 3, 48, 1
		}
		r, v, err := ecdsa.Sign(rand.Reader, s.ecdsa, digest)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.ecdsa.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		x, y := new(big.Int).SetBytes(raw[1:1+size]), new(big.Int).SetBytes(raw[1+size:])
		b = append(append(b, digest...), id)
		for _, part := range []*big.Int{x, y, r, v} {
			b = append(b, leBytes(part, size)...)
		}
	}
	b = append(b, make([]byte, sigCRC-len(b))...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return append(b, make([]byte, 16)...)
}

func (s signer) digest(t testing.TB) []byte {
	sum := sha256.Sum256(parseSignature(s.block(t, nil)).key)
	return sum[:]
}

// sign appends a signature sector.
func sign(t testing.TB, image []byte, by ...signer) []byte {
	t.Helper()
	out := append(slices.Clone(image), bytes.Repeat([]byte{0xFF}, -len(image)&(sigSector-1))...)
	var sector []byte
	for _, s := range by {
		sector = append(sector, s.block(t, out)...)
	}
	return append(out, append(sector, bytes.Repeat([]byte{0xFF}, sigSector-len(sector))...)...)
}

// fuseWords are eFuses that a test fills.
type fuseWords struct {
	t   testing.TB
	tab *table.Table
	w   [][]uint32
}

func newFuseWords(t testing.TB, m chip.Model) *fuseWords {
	t.Helper()
	tab, err := table.For(m.Name) // of the newest silicon
	if err != nil {
		t.Fatal(err)
	}
	f := &fuseWords{t: t, tab: tab}
	for _, b := range tab.Blocks() {
		f.w = append(f.w, make([]uint32, b.Words))
	}
	return f
}

func (f *fuseWords) set(name string, v uint64) {
	f.t.Helper()
	fd, ok := f.tab.Field(name)
	if !ok {
		f.t.Fatalf("no field %s", name)
	}
	for i, bit := range fd.Bits() {
		f.w[fd.Block][bit/32] |= uint32(v>>i&1) << (bit % 32)
	}
}

func (f *fuseWords) put(block int, b []byte) {
	for i := 0; i < len(b); i += 4 {
		f.w[block][i/4] = binary.LittleEndian.Uint32(b[i:])
	}
}

// efuses is what boot code reads of them.
func (f *fuseWords) efuses() EFuses {
	v := newFuseView(EFuses{Table: f.tab, Words: f.w})
	v.hide()
	return EFuses{Table: f.tab, Words: v.words}
}

// apply burns what a boot burned.
func (f *fuseWords) apply(burns []Burn) {
	for _, b := range burns {
		for i, w := range b.Words {
			f.w[b.Block][i] |= w
		}
	}
}

// FuzzSignature feeds arbitrary blocks: none but the vendor's own verifies, whatever
// the numbers in it are.
func FuzzSignature(f *testing.F) {
	good := map[string]bool{}
	for _, name := range []string{"rsa3072.block", "ecdsa192.block", "ecdsa256.block", "ecdsa384.block"} {
		b := testdata(f, name)
		good[string(parseSignature(b).key)] = true
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) != sigLen {
			return
		}
		if s := parseSignature(raw); s.verify() && !good[string(s.key)] {
			t.Errorf("%s by another key verifies", s.scheme)
		}
	})
}
