package coding_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"testing"

	"github.com/provisiond/provisiond/efuse/coding"
)

func count(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// esp-facts B.3, known answer of the 3/4 scheme.
func TestEncode34(t *testing.T) {
	const want = "000102030405011e060708090a0b012f0c0d0e0f1011013212131415161701" + "41"
	code := coding.Encode34((*[24]byte)(count(24)))
	if got := hex.EncodeToString(code[:]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	data, err := coding.Decode34(&code)
	if err != nil || !bytes.Equal(data[:], count(24)) {
		t.Errorf("decoded %x, %v", data, err)
	}
}

// Each single wrong bit is found, and each pair within a byte or across two bytes
// of one group that the XOR alone would miss in the same bit position.
func TestDecode34Detects(t *testing.T) {
	code := coding.Encode34((*[24]byte)(count(24)))
	for bit := range 8 * len(code) {
		bad := code
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := coding.Decode34(&bad); !errors.Is(err, coding.ErrCode) {
			t.Errorf("bit %d: %v", bit, err)
		}
	}
	zero := coding.Encode34(&[24]byte{})
	bad := zero
	bad[0], bad[1] = 1, 1 // the XOR is still 0; the weighted sum is not
	if _, err := coding.Decode34(&bad); !errors.Is(err, coding.ErrCode) {
		t.Error("a double error is not found:", err)
	}
}

// esp-facts B.3, known answers of RS(44,32), and the check words of the key
// 00..1f as the vendor's tool wrote them (transcripts/esp32c3-rom.txt).
func TestParity(t *testing.T) {
	one := make([]byte, 32)
	one[0] = 1
	last := make([]byte, 32)
	last[31] = 1
	reversed := count(32)
	for i := range 16 {
		reversed[i], reversed[31-i] = reversed[31-i], reversed[i]
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{count(32), "a04c470d3ffcb203dae9f413"},
		{bytes.Repeat([]byte{0xff}, 32), "13a36292597404257375e0aa"},
		{one, "e10f626eafecc5fbc6e0972f"},
		{last, "44774376dc1f07545c7fd561"},
		{reversed, "067c7cae6d1cd6797510e1f2"},
		{make([]byte, 32), "000000000000000000000000"},
	} {
		got := coding.Parity((*[32]byte)(c.data))
		if hex.EncodeToString(got[:]) != c.want {
			t.Errorf("%x: %x, want %s", c.data, got, c.want)
		}
	}
}

func TestDecodeRSErr(t *testing.T) {
	show := func(err0, err1 uint32, shifted bool) (s string) {
		for n, e := range coding.DecodeRSErr(err0, err1, shifted) {
			if e.Bad() {
				s += fmt.Sprintf("%d:%d/%t ", n, e.Count, e.Fail)
			}
		}
		return s
	}
	for _, c := range []struct {
		err0, err1 uint32
		shifted    bool
		want       string
	}{
		{0, 0, false, ""},
		{0, 0, true, ""},
		// espressif/esp-idf#12489, seen on an ESP32-C3 (esp-facts B.6).
		{0x89911100, 0, true, "3:1/false 4:1/false 5:1/true 6:1/true 7:1/true "},
		{0x89911100, 0, false, "3:1/false 4:1/false 5:1/false 6:1/true 7:1/true 8:0/true "},
		{0x0000000F, 0, false, "1:7/true "},
		{0x00000080, 0, true, "1:0/true "},
		{0x80000000, 0x00000089, false, "8:0/true 9:1/true 10:0/true "},
		{0, 0x00000018, true, "8:0/true 10:1/false "},
		{0, 0x00000800, true, ""},  // no block has its fail bit there
		{0, 0xFFFFFF00, false, ""}, // reserved
	} {
		if got := show(c.err0, c.err1, c.shifted); got != c.want {
			t.Errorf("%08x %08x %t: %q, want %q", c.err0, c.err1, c.shifted, got, c.want)
		}
	}
}

// Whatever decodes encodes to the same bytes, and one wrong bit never decodes.
func Fuzz34(f *testing.F) {
	f.Add(count(32), uint8(0))
	code := coding.Encode34((*[24]byte)(count(24)))
	f.Add(code[:], uint8(77))
	f.Fuzz(func(t *testing.T, in []byte, bit uint8) {
		if len(in) < 32 {
			return
		}
		code := [32]byte(in)
		data, err := coding.Decode34(&code)
		if err != nil {
			data = [24]byte(in)
			code = coding.Encode34(&data)
		} else if coding.Encode34(&data) != code {
			t.Fatalf("%x decodes and encodes to something else", code)
		}
		if back, err := coding.Decode34(&code); err != nil || back != data {
			t.Fatalf("%x: %v", data, err)
		}
		code[bit/8] ^= 1 << (bit % 8)
		if _, err := coding.Decode34(&code); err == nil {
			t.Fatalf("%x: wrong bit %d not found", data, bit)
		}
	})
}

// A code word is a multiple of the generator: it is 0 at the roots 2^0 to 2^11.
// The check multiplies by shift and XOR, independently of the encoder's tables.
func FuzzParity(f *testing.F) {
	f.Add(count(32))
	f.Add(bytes.Repeat([]byte{0xff}, 32))
	mul := func(a, b byte) (p byte) {
		for ; b != 0; b >>= 1 {
			if b&1 != 0 {
				p ^= a
			}
			carry := a & 0x80
			a <<= 1
			if carry != 0 {
				a ^= 0x1D
			}
		}
		return p
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 32 {
			return
		}
		data := [32]byte(in)
		check := coding.Parity(&data)
		if data != [32]byte(in) {
			t.Fatal("the data were changed")
		}
		root := byte(1)
		for range 12 {
			var sum byte
			for _, b := range append(data[:], check[:]...) {
				sum = mul(sum, root) ^ b
			}
			if sum != 0 {
				t.Fatalf("%x: not 0 at %d", data, root)
			}
			root = mul(root, 2)
		}
	})
}

func FuzzDecodeRSErr(f *testing.F) {
	f.Add(uint32(0x89911100), uint32(0), true)
	f.Add(uint32(0), uint32(0), false)
	f.Fuzz(func(t *testing.T, err0, err1 uint32, shifted bool) {
		counts, fails := 0, 0
		for n, e := range coding.DecodeRSErr(err0, err1, shifted) {
			if e.Count < 0 || e.Count > 7 || n == 0 && e.Bad() {
				t.Fatalf("block %d: %+v", n, e)
			}
			counts += bits.OnesCount(uint(e.Count))
			if e.Fail {
				fails++
			}
		}
		// No bit is lost: all ten counts, and the fail bits the layout has.
		mask := uint32(0x88)
		first := err0 & 0x88888888
		if shifted {
			first &^= 8
			mask = 0x88
		}
		if counts != bits.OnesCount32(err0&0x77777777)+bits.OnesCount32(err1&0x77) || fails != bits.OnesCount32(first)+bits.OnesCount32(err1&mask) {
			t.Fatalf("%08x %08x %t: %d count bits, %d fails", err0, err1, shifted, counts, fails)
		}
	})
}
