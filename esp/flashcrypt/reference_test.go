package flashcrypt

import (
	"crypto/aes"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"

	"golang.org/x/crypto/xts"
)

// The references are written as esp-facts C.1 and C.2 put it, one step at a
// time, and share nothing with the implementations.

// pattern is PAT: the address bit that is XORed into each key bit.
func pattern() (pat []int) {
	for _, last := range []int{14, 12, 10, 8} {
		for _, from := range []int{23, 23, 23, last} {
			for bit := from; bit >= 5; bit-- {
				pat = append(pat, bit)
			}
		}
	}
	return pat
}

func referenceESP32(t testing.TB, key []byte, config uint8, addr uint32, src []byte, decrypt bool) []byte {
	t.Helper()
	if len(key) == 24 {
		key = append(slices.Clone(key), key[8:16]...)
	}
	pat := pattern()
	if len(pat) != 256 {
		t.Fatalf("the pattern has %d entries", len(pat))
	}
	enabled := func(n int) bool {
		switch {
		case n <= 66:
			return config&1 != 0
		case n <= 131:
			return config&2 != 0
		case n <= 194:
			return config&4 != 0
		}
		return config&8 != 0
	}
	var out []byte
	for ; len(src) > 0; src, addr = src[16:], addr+16 {
		unit := addr &^ 0x1F
		k := slices.Clone(key)
		for n, bit := range pat {
			if enabled(n) && unit>>bit&1 != 0 {
				k[n/8] ^= 0x80 >> (n % 8)
			}
		}
		c, err := aes.NewCipher(k)
		if err != nil {
			t.Fatal(err)
		}
		b := slices.Clone(src[:16])
		slices.Reverse(b)
		if decrypt {
			c.Encrypt(b, b)
		} else {
			c.Decrypt(b, b)
		}
		slices.Reverse(b)
		out = append(out, b...)
	}
	return out
}

// referenceXTS computes each block alone, with the tweak as a number.
func referenceXTS(t testing.TB, key []byte, addr uint32, src []byte, decrypt bool) []byte {
	t.Helper()
	data, err := aes.NewCipher(key[:len(key)/2])
	if err != nil {
		t.Fatal(err)
	}
	tweak, err := aes.NewCipher(key[len(key)/2:])
	if err != nil {
		t.Fatal(err)
	}
	top, poly := new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(0x87)
	poly.Add(poly, top)
	var out []byte
	for ; len(src) > 0; src, addr = src[16:], addr+16 {
		var tw [16]byte
		binary.LittleEndian.PutUint32(tw[:], addr&^0x7F)
		tweak.Encrypt(tw[:], tw[:])
		slices.Reverse(tw[:]) // big.Int counts from the other end
		x := new(big.Int).SetBytes(tw[:])
		for range 7 - addr&0x7F/16 {
			if x.Lsh(x, 1); x.Cmp(top) >= 0 {
				x.Xor(x, poly)
			}
		}
		x.FillBytes(tw[:])
		slices.Reverse(tw[:])

		b := slices.Clone(src[:16])
		slices.Reverse(b)
		for i := range b {
			b[i] ^= tw[i]
		}
		if decrypt {
			data.Decrypt(b, b)
		} else {
			data.Encrypt(b, b)
		}
		for i := range b {
			b[i] ^= tw[i]
		}
		slices.Reverse(b)
		out = append(out, b...)
	}
	return out
}

// libraryXTS does whole units with golang.org/x/crypto/xts.
func libraryXTS(t testing.TB, key []byte, addr uint32, src []byte) []byte {
	t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	out := slices.Clone(src)
	for off := 0; off < len(out); off += 128 {
		u := out[off : off+128]
		slices.Reverse(u)
		// Its sector number is the low 64 bits of the tweak, as is our address.
		c.Encrypt(u, u, uint64(addr)+uint64(off))
		slices.Reverse(u)
	}
	return out
}
