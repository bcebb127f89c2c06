package secureboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/secureboot"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func publicKey(t testing.TB, name string) secureboot.PublicKey {
	t.Helper()
	k, err := secureboot.ParsePublicKey(read(t, name))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return k
}

// What espsecure 5.3.1 signed verifies, and its key digests are ours.
func TestVectors(t *testing.T) {
	for _, c := range []struct {
		image  string
		scheme chip.SignatureScheme
		keys   []string
		cover  int
	}{
		{"image-rsa3072.bin", chip.SignRSA3072, []string{"rsa3072"}, 4096},
		{"image-rsa3072-two.bin", chip.SignRSA3072, []string{"rsa3072", "rsa3072-b"}, 4096},
		{"image-ecdsa192.bin", chip.SignECDSA192, []string{"ecdsa192"}, 4096},
		{"image-ecdsa256.bin", chip.SignECDSA256, []string{"ecdsa256"}, 4096},
		{"image-ecdsa384.bin", chip.SignECDSA384, []string{"ecdsa384"}, 4096},
	} {
		t.Run(c.image, func(t *testing.T) {
			file := read(t, c.image)
			r, err := secureboot.Verify(file)
			if err != nil {
				t.Fatal(err)
			}
			if r.Scheme != c.scheme || r.Signed != c.cover || len(r.Signatures) != len(c.keys) {
				t.Fatalf("got %s over 0x%x bytes, %d signatures", r.Scheme, r.Signed, len(r.Signatures))
			}
			for i, name := range c.keys {
				want := secureboot.KeyDigest(read(t, "digest-"+name+".bin"))
				if got := r.Signatures[i].Key.Digest(); got != want {
					t.Errorf("signature %d: key digest %s, espsecure has %s", i, got, want)
				}
				if got := publicKey(t, name+".pub.pem"); got.Digest() != want || got.Scheme() != c.scheme {
					t.Errorf("%s.pub.pem: digest %s, espsecure has %s", name, got.Digest(), want)
				}
				if !r.SignedBy(want) {
					t.Errorf("not signed by %s", want)
				}
				if r.Signatures[i].Offset != 4096+i*secureboot.BlockSize {
					t.Errorf("signature %d is at 0x%x", i, r.Signatures[i].Offset)
				}
			}
			if r.SignedBy(secureboot.KeyDigest{}) {
				t.Error("signed by the empty digest")
			}
			s, err := secureboot.ParseSector(file[4096:])
			if err != nil {
				t.Fatal(err)
			}
			if again, err := s.MarshalBinary(); err != nil || !bytes.Equal(again, file[4096:]) {
				t.Errorf("the sector re-encodes to other bytes (%v)", err)
			}
		})
	}
}

// Digests of the generator points and of a key in the vendor's test suite
// (esp-facts E.3).
func TestDigestKnownAnswers(t *testing.T) {
	p192 := &secureboot.P192PublicKey{}
	copy(p192.X[:], unhex(t, "188da80eb03090f67cbf20eb43a18800f4ff0afd82ff1012"))
	copy(p192.Y[:], unhex(t, "07192b95ffc8da78631011ed6b24cdd573f977a11e794811"))
	for want, pub := range map[string]crypto.PublicKey{
		"9000b7665fa5516a6210006f778b4bf0b88e26aad8248b069830a5cc93b9ea20": p192,
		"5908ff09f652723954169b269890241b0405fc45b6087f0db026debac4934a8d": generator(t, elliptic.P256()),
		"8fceff6078f1fdecc4abd58f3c08ff90cbe7eb094968b8cc5ff5497949d55ae1": generator(t, elliptic.P384()),
	} {
		if got, err := secureboot.Digest(pub); err != nil || got.String() != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
}

// generator is the public key of the private key 1.
func generator(t *testing.T, c elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	n := (c.Params().BitSize + 7) / 8
	b := append([]byte{4}, c.Params().Gx.FillBytes(make([]byte, n))...)
	k, err := ecdsa.ParseUncompressedPublicKey(c, append(b, c.Params().Gy.FillBytes(make([]byte, n))...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	n, ok := new(big.Int).SetString(s, 16)
	if !ok {
		t.Fatalf("%q is no hex", s)
	}
	return n.FillBytes(make([]byte, len(s)/2))
}

// No byte of a signed file can change unseen, whichever scheme.
func TestEveryByteCounts(t *testing.T) {
	for _, name := range []string{"image-rsa3072-two.bin", "image-ecdsa192.bin", "image-ecdsa256.bin", "image-ecdsa384.bin"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := read(t, name)
			for i := range file {
				if i >= 544 && i < 4096 && i%97 != 0 {
					continue // the padding: one byte is like the other
				}
				file[i] ^= 1 << (i % 8)
				if _, err := secureboot.Verify(file); err == nil {
					t.Errorf("a change at offset 0x%x was not seen", i)
				}
				file[i] ^= 1 << (i % 8)
			}
			if _, err := secureboot.Verify(file); err != nil {
				t.Error(err)
			}
		})
	}
}

// fixCRC puts the right CRC-32 into a block, as somebody who edits would.
func fixCRC(block []byte) {
	binary.LittleEndian.PutUint32(block[1196:], crc32.ChecksumIEEE(block[:1196]))
}

// With a right CRC, the place is named.
func TestSectorErrors(t *testing.T) {
	order256 := reversed(elliptic.P256().Params().N.Bytes())
	set := func(off int, v ...byte) func([]byte) { return func(b []byte) { copy(b[off:], v) } }
	for _, c := range []struct {
		name, image string
		change      func([]byte)
		keepCRC     bool
		field       string
		offset      int
		block       int
	}{
		{name: "magic", image: "rsa3072", change: set(0, 0xE8), field: "magic", offset: 0},
		{name: "empty", image: "rsa3072", change: set(0, bytes.Repeat([]byte{0xFF}, 1216)...), keepCRC: true, field: "magic", offset: 0},
		{name: "version", image: "rsa3072", change: set(1, 1), field: "version", offset: 1},
		{name: "version 4", image: "rsa3072", change: set(1, 4), field: "version", offset: 1},
		{name: "RSA with SHA-384", image: "rsa3072", change: set(2, 1), field: "reserved", offset: 2},
		{name: "reserved", image: "rsa3072", change: set(3, 1), field: "reserved", offset: 3},
		{name: "even n", image: "rsa3072", change: set(36, 0), field: "RSA key", offset: 36},
		{name: "short n", image: "rsa3072", change: set(419, 0x7F), field: "RSA key", offset: 36},
		{name: "e = 1", image: "rsa3072", change: set(420, 1, 0, 0, 0), field: "RSA key", offset: 36},
		{name: "e of 32 bits", image: "rsa3072", change: set(420, 1, 0, 0, 0x80), field: "exponent", offset: 420},
		{name: "R", image: "rsa3072", change: func(b []byte) { b[424]++ }, field: "R", offset: 424},
		{name: "M'", image: "rsa3072", change: func(b []byte) { b[811]++ }, field: "M'", offset: 808},
		{name: "signature above n", image: "rsa3072", change: set(812, bytes.Repeat([]byte{0xFF}, 384)...), field: "signature", offset: 812},
		{name: "CRC", image: "rsa3072", change: set(1196, 0, 0, 0, 0), keepCRC: true, field: "CRC-32", offset: 1196},
		{name: "end of block", image: "rsa3072", change: set(1215, 1), field: "padding", offset: 1215},
		{name: "block 1 not there", image: "rsa3072", change: set(1216, 0), keepCRC: true, field: "magic", offset: 1216, block: 1},
		{name: "rest", image: "rsa3072", change: set(1217, 0), keepCRC: true, field: "rest of the sector", offset: 1217, block: -1},
		{name: "last byte", image: "rsa3072", change: set(4095, 0), keepCRC: true, field: "rest of the sector", offset: 4095, block: -1},
		{name: "hash id", image: "ecdsa256", change: set(2, 2), field: "hash", offset: 2},
		{name: "curve 0", image: "ecdsa256", change: set(36, 0), field: "curve id", offset: 36},
		{name: "curve 3 with SHA-256", image: "ecdsa256", change: set(36, 3), field: "curve id", offset: 36},
		{name: "P-256 as P-192", image: "ecdsa256", change: set(36, 1), field: "public key", offset: 37},
		{name: "off the curve", image: "ecdsa256", change: func(b []byte) { b[40]++ }, field: "public key", offset: 37},
		{name: "no point", image: "ecdsa256", change: set(37, make([]byte, 64)...), field: "public key", offset: 37},
		{name: "r = 0", image: "ecdsa256", change: set(101, make([]byte, 32)...), field: "signature", offset: 101},
		{name: "s = 0", image: "ecdsa256", change: set(133, make([]byte, 32)...), field: "signature", offset: 133},
		{name: "s = n", image: "ecdsa256", change: set(133, order256...), field: "signature", offset: 133},
		{name: "behind s", image: "ecdsa256", change: set(165, 1), field: "padding", offset: 165},
		{name: "P-192 behind Y", image: "ecdsa192", change: set(100, 1), field: "padding", offset: 100},
		{name: "P-192 behind s", image: "ecdsa192", change: set(149, 1), field: "padding", offset: 149},
		{name: "P-192 off the curve", image: "ecdsa192", change: func(b []byte) { b[40]++ }, field: "public key", offset: 37},
		{name: "P-192 above p", image: "ecdsa192", change: set(37, bytes.Repeat([]byte{0xFF}, 24)...), field: "public key", offset: 37},
		{name: "P-384 curve", image: "ecdsa384", change: set(52, 2), field: "curve id", offset: 52},
		{name: "P-384 r = 0", image: "ecdsa384", change: set(149, make([]byte, 48)...), field: "signature", offset: 149},
		{name: "P-384 behind s", image: "ecdsa384", change: set(245, 1), field: "padding", offset: 245},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := read(t, "image-"+c.image+".bin")
			c.change(file[4096:])
			if !c.keepCRC {
				fixCRC(file[4096:])
			}
			if c.offset == 0 && c.name == "magic" { // the image parser sees no sector at all there
				file = file[4096:]
				_, err := secureboot.ParseSector(file)
				check(t, err, c.field, c.offset, c.block)
				return
			}
			_, err := secureboot.ParseSector(file[4096:])
			check(t, err, c.field, c.offset, c.block)
			if file[4096] != 0xE7 {
				return
			}
			_, err = secureboot.Verify(file)
			check(t, err, c.field, c.offset+4096, c.block)
		})
	}
}

func check(t *testing.T, err error, field string, offset, block int) {
	t.Helper()
	var e *secureboot.Error
	if !errors.As(err, &e) || e.Field != field || e.Offset != offset || e.Block != block {
		t.Errorf("got %v (%+v), want block %d, %s at 0x%x", err, e, block, field, offset)
	}
}

func reversed(b []byte) []byte {
	r := make([]byte, len(b))
	for i, v := range b {
		r[len(b)-1-i] = v
	}
	return r
}

func TestMismatch(t *testing.T) {
	for _, scheme := range []string{"rsa3072", "ecdsa192", "ecdsa256", "ecdsa384"} {
		// The signature of another image, with that image's digest: the digest tells.
		file := read(t, "image-"+scheme+".bin")
		file[4000] ^= 1 // padding is signed too
		if _, err := secureboot.Verify(file); err == nil {
			t.Errorf("%s: changed padding was accepted", scheme)
		}
		file[4000] ^= 1
		s, err := secureboot.ParseSector(file[4096:])
		if err != nil {
			t.Fatal(err)
		}
		content := bytes.Repeat([]byte{0xAA}, 8192)
		if _, err := s.Verify(content); !errors.Is(err, secureboot.ErrMismatch) || !strings.Contains(err.Error(), "image digest") {
			t.Errorf("%s: another content: %v", scheme, err)
		}
		// With the digest put right, the signature tells.
		s.Blocks[0].ImageDigest = otherDigest(t, scheme, content)
		_, err = s.Verify(content)
		if !errors.Is(err, secureboot.ErrMismatch) || strings.Contains(err.Error(), "image digest") {
			t.Errorf("%s: a signature of something else: %v", scheme, err)
		}
		if _, err := s.Verify(content[:5000]); err == nil {
			t.Errorf("%s: content without padding was accepted", scheme)
		}
	}
}

func otherDigest(t *testing.T, scheme string, content []byte) []byte {
	t.Helper()
	h := crypto.SHA256.New()
	if scheme == "ecdsa384" {
		h = crypto.SHA384.New()
	}
	h.Write(content)
	return h.Sum(nil)
}

func TestMixedSchemes(t *testing.T) {
	rsaFile, ecFile := read(t, "image-rsa3072.bin"), read(t, "image-ecdsa256.bin")
	copy(rsaFile[4096+1216:], ecFile[4096:4096+1216])
	_, err := secureboot.Verify(rsaFile)
	check(t, err, "scheme", 4096+1216, 1)
	if !errors.Is(err, secureboot.ErrScheme) {
		t.Errorf("got %v, want ErrScheme", err)
	}
}

func TestUnsigned(t *testing.T) {
	for _, pad := range []int{544, 4096, 8192} {
		file := read(t, "image.bin")
		file = append(file, bytes.Repeat([]byte{0xFF}, pad-len(file))...)
		if _, err := secureboot.Verify(file); !errors.Is(err, secureboot.ErrUnsigned) {
			t.Errorf("%d bytes: %v, want ErrUnsigned", pad, err)
		}
	}
	if _, err := secureboot.Verify([]byte("no image")); err == nil {
		t.Error("no image was verified")
	}
}

// keys are made once: RSA takes its time.
var keys = sync.OnceValue(func() map[string]crypto.Signer {
	m := map[string]crypto.Signer{}
	for _, name := range []string{"rsa3072", "rsa3072-b", "rsa3072-c", "rsa3072-d"} {
		m[name], _ = rsa.GenerateKey(rand.Reader, 3072)
	}
	m["rsa2048"], _ = rsa.GenerateKey(rand.Reader, 2048)
	m["ecdsa256"], _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m["ecdsa384"], _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	m["ecdsa521"], _ = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	m["ecdsa192"] = newP192Signer()
	return m
})

// p192Signer signs with a throw-away key. It is for tests: math/big tells the
// time of day about its numbers.
type p192Signer struct {
	d   *big.Int
	pub *secureboot.P192PublicKey
}

var p192n, _ = new(big.Int).SetString("ffffffffffffffffffffffff99def836146bc9b1b4d22831", 16)

func newP192Signer() *p192Signer {
	d, _ := rand.Int(rand.Reader, new(big.Int).Sub(p192n, big.NewInt(1)))
	d.Add(d, big.NewInt(1))
	return &p192Signer{d, secureboot.P192Base(d)}
}

func (s *p192Signer) Public() crypto.PublicKey { return s.pub }

func (s *p192Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("wrong hash")
	}
	for {
		k, err := rand.Int(rand.Reader, p192n)
		if err != nil {
			return nil, err
		}
		if k.Sign() == 0 {
			continue
		}
		p := secureboot.P192Base(k)
		r := new(big.Int).Mod(new(big.Int).SetBytes(p.X[:]), p192n)
		v := new(big.Int).Mul(r, s.d)
		v.Add(v, new(big.Int).SetBytes(digest[:24]))
		v.Mul(v, new(big.Int).ModInverse(k, p192n)).Mod(v, p192n)
		if r.Sign() == 0 || v.Sign() == 0 {
			continue
		}
		return asn1.Marshal(struct{ R, S *big.Int }{r, v})
	}
}

func TestSign(t *testing.T) {
	ctx := context.Background()
	plain := read(t, "image.bin")
	for _, names := range [][]string{{"rsa3072"}, {"rsa3072", "rsa3072-b", "rsa3072-c"}, {"ecdsa192"}, {"ecdsa256"}, {"ecdsa384"}} {
		var signers []crypto.Signer
		for _, n := range names {
			signers = append(signers, keys()[n])
		}
		out, err := secureboot.Sign(ctx, plain, secureboot.Options{}, signers...)
		if err != nil {
			t.Errorf("%v: %v", names, err)
			continue
		}
		if len(out) != 8192 || !bytes.Equal(out[:len(plain)], plain) || !allBytes(out[len(plain):4096], 0xFF) {
			t.Errorf("%v: the image was changed or is not padded with 0xFF", names)
		}
		r, err := secureboot.Verify(out)
		if err != nil {
			t.Errorf("%v: %v", names, err)
			continue
		}
		for i, s := range signers {
			d, err := secureboot.Digest(s.Public())
			if err != nil || !r.SignedBy(d) || r.Signatures[i].Key.Digest() != d {
				t.Errorf("%v: not signed by key %d (%v)", names, i, err)
			}
		}
	}
}

func allBytes(b []byte, v byte) bool { return len(bytes.Trim(b, string([]byte{v}))) == 0 }

// Two signatures at once and one after the other give the same sector, but for
// the salts.
func TestSignAppend(t *testing.T) {
	ctx := context.Background()
	a, b := keys()["rsa3072"], keys()["rsa3072-b"]
	one, err := secureboot.Sign(ctx, read(t, "image.bin"), secureboot.Options{}, a)
	if err != nil {
		t.Fatal(err)
	}
	two, err := secureboot.Sign(ctx, append(one, bytes.Repeat([]byte{0xFF}, 4096)...), secureboot.Options{Append: true}, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(two) != 8192 || !bytes.Equal(two[:4096+1216], one[:4096+1216]) {
		t.Error("the first signature did not stay, or padding behind the sector did")
	}
	r, err := secureboot.Verify(two)
	if err != nil || len(r.Signatures) != 2 {
		t.Fatalf("%d signatures, %v", len(r.Signatures), err)
	}
	c3, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secureboot.Sign(ctx, one, secureboot.Options{Append: true, Chip: &c3, Revision: 3}, b); err != nil {
		t.Errorf("for a chip that takes it: %v", err)
	}
	// The vendor's, with one of ours.
	if r, err := secureboot.Sign(ctx, read(t, "image-rsa3072-two.bin"), secureboot.Options{Append: true}, a); err != nil {
		t.Error(err)
	} else if rep, err := secureboot.Verify(r); err != nil || len(rep.Signatures) != 3 {
		t.Errorf("%d signatures, %v", len(rep.Signatures), err)
	}
}

// A file that is padded already keeps its padding, and loses what the boot code
// would not read.
func TestSignPadded(t *testing.T) {
	ctx := context.Background()
	plain := read(t, "image.bin")
	for _, c := range []struct {
		pad  byte
		size int
	}{{0xFF, 1000}, {0xFF, 4096}, {0xFF, 65536}, {0, 1000}, {0, 4096}} {
		file := append(bytes.Clone(plain), bytes.Repeat([]byte{c.pad}, c.size-len(plain))...)
		out, err := secureboot.Sign(ctx, file, secureboot.Options{}, keys()["ecdsa256"])
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if len(out) != 8192 || !allBytes(out[len(plain):4096], c.pad) {
			t.Errorf("%+v: %d bytes, padding % x", c, len(out), out[len(plain):len(plain)+4])
		}
	}
}

// An image that fills its last sector, as secure padding makes them, gets no
// padding more.
func TestSignWholeSectors(t *testing.T) {
	img := &image.Image{
		Header:   image.Header{ChipID: chip.IDESP32C3, WPPin: image.WPPinDisabled, HashAppended: true},
		Segments: []image.Segment{{LoadAddr: 0x40380000, Data: make([]byte, 65536-32-16-24-8)}},
	}
	file, err := img.MarshalBinary()
	if err != nil || len(file) != 65536 {
		t.Fatalf("%d bytes, %v", len(file), err)
	}
	out, err := secureboot.Sign(context.Background(), file, secureboot.Options{}, keys()["ecdsa256"])
	if err != nil || len(out) != 65536+4096 || !bytes.Equal(out[:65536], file) {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
	if r, err := secureboot.Verify(out); err != nil || r.Signed != 65536 {
		t.Errorf("0x%x bytes signed, %v", r.Signed, err)
	}
}

func TestSignRefusals(t *testing.T) {
	k := keys()
	plain, signed := read(t, "image.bin"), read(t, "image-rsa3072.bin")
	damaged := bytes.Clone(signed)
	damaged[4096+900] ^= 1
	fixCRC(damaged[4096:])
	c3, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	esp, _ := chip.ByName("esp32")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name    string
		ctx     context.Context
		file    []byte
		opts    secureboot.Options
		signers []crypto.Signer
		want    string
		is      error
	}{
		{name: "no key", file: plain, want: "no key"},
		{name: "four keys", file: plain, signers: []crypto.Signer{k["rsa3072"], k["rsa3072-b"], k["rsa3072-c"], k["rsa3072-d"]}, want: "room for 3"},
		{name: "the same key twice", file: plain, signers: []crypto.Signer{k["rsa3072"], k["rsa3072"]}, want: "signs twice"},
		{name: "two schemes", file: plain, signers: []crypto.Signer{k["rsa3072"], k["ecdsa256"]}, is: secureboot.ErrScheme, want: "signer 2"},
		{name: "signed already", file: signed, signers: []crypto.Signer{k["rsa3072"]}, want: "--append"},
		{name: "nothing to append to", file: plain, opts: secureboot.Options{Append: true}, signers: []crypto.Signer{k["rsa3072"]}, is: secureboot.ErrUnsigned, want: "without --append"},
		{name: "append to a bad signature", file: damaged, opts: secureboot.Options{Append: true}, signers: []crypto.Signer{k["rsa3072"]}, is: secureboot.ErrMismatch, want: "block 0"},
		{name: "append another scheme", file: signed, opts: secureboot.Options{Append: true}, signers: []crypto.Signer{k["ecdsa256"]}, is: secureboot.ErrScheme, want: "one scheme"},
		{name: "RSA-2048", file: plain, signers: []crypto.Signer{k["rsa2048"]}, want: "2048 bits"},
		{name: "P-521", file: plain, signers: []crypto.Signer{k["ecdsa521"]}, want: "P-256"},
		{name: "scheme of another chip", file: plain, opts: secureboot.Options{Chip: &c3, Revision: image.RevisionUnknown}, signers: []crypto.Signer{k["ecdsa256"]}, is: secureboot.ErrScheme, want: "ESP32-C3 does not verify ecdsa256: sign with a key of rsa3072"},
		{name: "another chip", file: plain, opts: secureboot.Options{Chip: &esp, Revision: image.RevisionUnknown}, signers: []crypto.Signer{k["rsa3072"]}, is: image.ErrWrongChip},
		{name: "old silicon", file: plain, opts: secureboot.Options{Chip: &c3, Revision: 2}, signers: []crypto.Signer{k["rsa3072"]}, is: secureboot.ErrScheme, want: "came with v0.3"},
		{name: "no image", file: []byte("text"), signers: []crypto.Signer{k["rsa3072"]}, want: "magic"},
		{name: "canceled", ctx: canceled, file: plain, signers: []crypto.Signer{k["rsa3072"]}, is: context.Canceled},
		{name: "a salt of its own", file: plain, signers: []crypto.Signer{autoSalt{k["rsa3072"]}}, want: "salt of 32"},
		{name: "another key's signature", file: plain, signers: []crypto.Signer{otherKey{k["ecdsa256"]}}, want: "right key"},
		{name: "noise for a signature", file: plain, signers: []crypto.Signer{noise{k["ecdsa256"]}}, want: "ASN.1"},
		{name: "noise for an RSA signature", file: plain, signers: []crypto.Signer{noise{k["rsa3072"]}}, want: "bytes, not 384"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			out, err := secureboot.Sign(ctx, c.file, c.opts, c.signers...)
			if err == nil || out != nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %d bytes and %v, want an error with %q and %v", len(out), err, c.want, c.is)
			}
		})
	}
}

// autoSalt signs with the longest salt, as many tools do unasked.
type autoSalt struct{ crypto.Signer }

func (s autoSalt) Sign(r io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	return s.Signer.Sign(r, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256})
}

type otherKey struct{ crypto.Signer }

func (otherKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return k.Sign(r, digest, opts)
}

type noise struct{ crypto.Signer }

func (noise) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte("noise"), nil }

// A signer that can be cancelled gets the context.
type remote struct {
	crypto.Signer
	seen context.Context
}

func (s *remote) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.seen = ctx
	return s.Signer.Sign(rand.Reader, digest, opts)
}

func TestContextSigner(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := &remote{Signer: keys()["ecdsa256"]}
	if _, err := secureboot.Sign(ctx, read(t, "image.bin"), secureboot.Options{}, r); err != nil {
		t.Fatal(err)
	}
	if r.seen != ctx {
		t.Error("it did not get the context")
	}
}

func TestCheckFor(t *testing.T) {
	c3, _ := chip.ByName("esp32c3")
	esp, _ := chip.ByName("esp32")
	two, err := secureboot.Verify(read(t, "image-rsa3072-two.bin"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := secureboot.Verify(read(t, "image-rsa3072.bin"))
	if err != nil {
		t.Fatal(err)
	}
	ec, err := secureboot.Verify(read(t, "image-ecdsa384.bin"))
	if err != nil {
		t.Fatal(err)
	}
	late := c3
	late.SecureBoot.Schemes = []chip.SchemeSupport{{Scheme: chip.SignRSA3072}, {Scheme: chip.SignECDSA384, MinimumRevision: 300}}
	for _, c := range []struct {
		name string
		r    secureboot.Report
		chip chip.Model
		rev  chip.Revision
		want string
	}{
		{"C3", two, c3, 4, ""},
		{"C3, any revision", two, c3, image.RevisionUnknown, ""},
		{"C3 before v0.3", one, c3, 2, "came with v0.3"},
		{"ESP32", one, esp, 300, ""},
		{"ESP32 before v3.0", one, esp, 100, "came with v3.0"},
		{"ESP32, two signatures", two, esp, 300, "looks at 1"},
		{"ECDSA on C3", ec, c3, 4, "does not verify ecdsa384: sign with a key of rsa3072"},
		{"a scheme that comes later", ec, late, 299, "does not verify ecdsa384 before revision v3.0: sign with a key of rsa3072"},
		{"a scheme that has come", ec, late, 300, ""},
		{"no Secure Boot", one, chip.Model{Title: "X"}, 0, "no Secure Boot"},
	} {
		err := c.r.CheckFor(c.chip, c.rev)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, secureboot.ErrScheme) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// On every chip each scheme is signed, or refused, as esp-facts E.1 has it.
func TestEveryChip(t *testing.T) {
	want := map[string]string{
		"esp32": "rsa3072", "esp32s2": "rsa3072", "esp32s3": "rsa3072", "esp32c3": "rsa3072", "esp32c2": "ecdsa256",
		"esp32c6": "ecdsa256 rsa3072", "esp32h2": "ecdsa256! rsa3072", "esp32c61": "ecdsa256!",
		"esp32c5": "ecdsa256! ecdsa384! rsa3072", "esp32p4": "ecdsa256! ecdsa384! rsa3072",
	}
	for _, m := range chip.All() {
		img := &image.Image{
			Header:   image.Header{ChipID: m.ID, WPPin: image.WPPinDisabled, HashAppended: true},
			Segments: []image.Segment{{LoadAddr: 0, Data: make([]byte, 256)}},
		}
		file, err := img.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var takes []string
		for _, name := range []string{"ecdsa192", "ecdsa256", "ecdsa384", "rsa3072"} {
			opts := secureboot.Options{Chip: &m, Revision: image.RevisionUnknown}
			out, err := secureboot.Sign(context.Background(), file, opts, keys()[name])
			if err != nil {
				if !errors.Is(err, secureboot.ErrScheme) || !strings.Contains(err.Error(), m.Title) {
					t.Errorf("%s, %s: %v", m.Name, name, err)
				}
				continue
			}
			r, err := secureboot.Verify(out)
			if err := errors.Join(err, r.CheckFor(m, image.RevisionUnknown)); err != nil {
				t.Errorf("%s, %s: %v", m.Name, name, err)
			}
			if r.Weak(m) {
				name += "!"
			}
			takes = append(takes, name)
		}
		if got := strings.Join(takes, " "); got != want[m.Name] {
			t.Errorf("%s takes %q, want %q", m.Name, got, want[m.Name])
		}
	}
}

// docs/secureboot.md has the schemes of every chip.
func TestDocumentedSchemes(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "secureboot.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range chip.All() {
		var row string
		for line := range strings.Lines(string(doc)) {
			if head, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |"); strings.HasPrefix(line, "| ESP32") && slices.Contains(titles(head), m.Title) {
				row += line
			}
		}
		sb := m.SecureBoot
		want := []string{fmt.Sprintf("| %d |", sb.DigestSlots)}
		if sb.WeakECDSA {
			want = append(want, "weak")
		}
		if sb.MinimumRevision != 0 {
			want = append(want, m.Title+" from "+sb.MinimumRevision.String())
		}
		for _, s := range sb.Schemes {
			want = append(want, "`"+string(s.Scheme)+"`")
			if s.MinimumRevision != 0 {
				want = append(want, "from "+s.MinimumRevision.String()+" `"+string(s.Scheme)+"`")
			}
		}
		for _, w := range want {
			if !strings.Contains(row, w) {
				t.Errorf("%s: its row lacks %q: %s", m.Name, w, row)
			}
		}
		if n := strings.Count(row, "`"); n != 2*len(sb.Schemes) {
			t.Errorf("%s: its row names %d schemes, not %d: %s", m.Name, n/2, len(sb.Schemes), row)
		}
	}
}

// titles are the chips in the first cell of a row.
func titles(cell string) []string {
	var all []string
	for part := range strings.SplitSeq(cell, ", ") {
		name, _, _ := strings.Cut(part, " from ")
		all = append(all, name)
	}
	return all
}

func TestPublicKeyPEM(t *testing.T) {
	for _, name := range []string{"rsa3072.pub.pem", "ecdsa192.pub.pem", "ecdsa256.pub.pem", "ecdsa384.pub.pem"} {
		k := publicKey(t, name)
		again, err := k.PEM()
		if err != nil || !bytes.Equal(again, read(t, name)) {
			t.Errorf("%s: PEM gives\n%s, %v", name, again, err)
		}
	}
	for want, text := range map[string]string{
		"no key in PEM":           "nothing of the kind",
		"more than one PEM":       string(read(t, "rsa3072.pub.pem")) + string(read(t, "ecdsa256.pub.pem")),
		"is a private key":        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"no public key:":          "-----BEGIN SOMETHING-----\nAAAA\n-----END SOMETHING-----\n",
		"no public key that can ": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
	} {
		if _, err := secureboot.ParsePublicKey([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestKeyDigestText(t *testing.T) {
	d := secureboot.KeyDigest(read(t, "digest-rsa3072.bin"))
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var again secureboot.KeyDigest
	if err := json.Unmarshal(b, &again); err != nil || again != d {
		t.Errorf("%s gives %s, %v", b, again, err)
	}
	for _, s := range []string{"", "00", d.String() + "00", strings.Repeat("g", 64)} {
		if _, err := secureboot.ParseKeyDigest(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
	if got := d.Burned(chip.SecureBoot{DigestBytes: 16}); !bytes.Equal(got, d[:16]) {
		t.Errorf("a chip with room for 16 bytes holds % x", got)
	}
}

func FuzzSector(f *testing.F) {
	for _, name := range []string{"image-rsa3072-two.bin", "image-ecdsa192.bin", "image-ecdsa256.bin", "image-ecdsa384.bin"} {
		f.Add(read(f, name)[4096:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for off := 0; off+1216 <= min(len(b), 3*1216); off += 1216 {
			if b[off] == 0xE7 { // else no change gets past the CRC
				fixCRC(b[off:])
			}
		}
		s, err := secureboot.ParseSector(b)
		if err != nil {
			var e *secureboot.Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset >= secureboot.SectorSize || e.Msg == "" {
				t.Fatalf("an error without a place: %#v", err)
			}
			return
		}
		again, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, again); diff != "" {
			t.Fatal(diff)
		}
		for _, k := range s.Blocks {
			text, err := k.Key.PEM()
			if err != nil {
				t.Fatal(err)
			}
			if same, err := secureboot.ParsePublicKey(text); err != nil || same.Digest() != k.Key.Digest() {
				t.Fatalf("%s gives %v, %v", text, same.Digest(), err)
			}
		}
	})
}

func FuzzPEM(f *testing.F) {
	for _, name := range []string{"rsa3072.pub.pem", "ecdsa192.pub.pem", "ecdsa256.pub.pem", "ecdsa384.pub.pem"} {
		b, _ := pem.Decode(read(f, name))
		f.Add("PUBLIC KEY", b.Bytes)
	}
	f.Add("EC PRIVATE KEY", []byte{0x30, 3, 2, 1, 1})
	f.Add("PRIVATE KEY", []byte{0x30, 3, 2, 1, 1})
	f.Fuzz(func(t *testing.T, kind string, der []byte) {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if s, err := secureboot.ParseSigner(text); err == nil && s.Public() == nil {
			t.Error("a signer without a public key")
		}
		k, err := secureboot.ParsePublicKey(text)
		if err != nil {
			return
		}
		out, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if same, err := secureboot.ParsePublicKey(out); err != nil || same.Digest() != k.Digest() {
			t.Fatalf("%s gives %v, %v", out, same.Digest(), err)
		}
	})
}

func ExampleVerify() {
	file, err := os.ReadFile("testdata/image-rsa3072.bin")
	if err != nil {
		panic(err)
	}
	report, err := secureboot.Verify(file)
	if err != nil {
		panic(err)
	}
	for _, s := range report.Signatures {
		fmt.Println(s.Key.Scheme(), s.Key.Digest())
	}
	// Output: rsa3072 e5b1f2dea11965254a0b7f3c0f2dffdbf1507e1dd53e95649e7eb190733c4016
}
