package espsim

import (
	"encoding/binary"
	"math/bits"

	"rsc.io/qr/gf256"
)

// The codes of the eFuse blocks as the silicon reads them (esp-facts B.3; ESP32
// TRM 20.3.1.2, ESP32-C3 TRM 4.3.1.2). They share nothing with efuse/coding.

// rsParity is the number of parity bytes of RS(44,32).
const rsParity = 12

var gf = gf256.NewField(0x11D, 2)

// rsSyndromes evaluates the code word, first byte the highest power, at the
// generator's roots 2^0 … 2^11.
func rsSyndromes(code []byte) (syn [rsParity]byte, clean bool) {
	clean = true
	for i := range syn {
		x := gf.Exp(i)
		var v byte
		for _, c := range code {
			v = gf.Mul(v, x) ^ c
		}
		syn[i] = v
		clean = clean && v == 0
	}
	return syn, clean
}

// rsCorrect mends up to six wrong bytes of a 44-byte code word in place and
// gives their number. It reports false, and leaves the bytes alone, when there
// are more.
func rsCorrect(code []byte) (wrong int, ok bool) {
	syn, clean := rsSyndromes(code)
	if clean {
		return 0, true
	}
	// Berlekamp-Massey: the error locator, lowest power first.
	loc, prev := []byte{1}, []byte{1}
	length, gap, last := 0, 1, byte(1)
	for n := range syn {
		d := syn[n]
		for i := 1; i <= length && i < len(loc); i++ {
			d ^= gf.Mul(loc[i], syn[n-i])
		}
		if d == 0 {
			gap++
			continue
		}
		next := make([]byte, max(len(loc), len(prev)+gap))
		copy(next, loc)
		scale := gf.Mul(d, gf.Inv(last))
		for i, p := range prev {
			next[i+gap] ^= gf.Mul(scale, p)
		}
		if 2*length <= n {
			length, prev, last, gap = n+1-length, loc, d, 1
		} else {
			gap++
		}
		loc = next
	}
	if length > rsParity/2 {
		return 0, false
	}
	// The error evaluator: syndromes times locator, modulo x^12.
	var eval [rsParity]byte
	for i := range eval {
		for j := 0; j <= i && j < len(loc); j++ {
			eval[i] ^= gf.Mul(loc[j], syn[i-j])
		}
	}
	fixed := append([]byte(nil), code...)
	for pos := range code {
		power := len(code) - 1 - pos // the byte's power of x
		inv := gf.Exp((255 - power) % 255)
		if polyAt(loc, inv) != 0 {
			continue
		}
		// The formal derivative keeps the odd powers.
		var slope byte
		for i := 1; i < len(loc); i += 2 {
			slope ^= gf.Mul(loc[i], gfPow(inv, i-1))
		}
		if slope == 0 {
			return 0, false
		}
		// The first root is 2^0, which brings in one factor X.
		magnitude := gf.Mul(gf.Exp(power%255), gf.Mul(polyAt(eval[:], inv), gf.Inv(slope)))
		fixed[pos] ^= magnitude
		wrong++
	}
	if _, clean := rsSyndromes(fixed); !clean || wrong != length {
		return 0, false
	}
	copy(code, fixed)
	return wrong, true
}

func polyAt(p []byte, x byte) (v byte) {
	for i := len(p) - 1; i >= 0; i-- {
		v = gf.Mul(v, x) ^ p[i]
	}
	return v
}

func gfPow(x byte, n int) byte {
	v := byte(1)
	for range n {
		v = gf.Mul(v, x)
	}
	return v
}

// rsEncode gives the three CHECK_VALUE words for eight data words. The chip has
// no encoder: this one writes the factory's blocks.
func rsEncode(data []uint32) []uint32 {
	check := make([]byte, rsParity)
	gf256.NewRSEncoder(gf, rsParity).ECC(wordBytes(data), check)
	return bytesWords(check)
}

// decode34 reads the ESP32's 3/4 code: groups of six data bytes, their XOR, and
// the sum of each byte's weight times its place. It gives the 24 data bytes as
// they stand and how many groups do not check out.
func decode34(cells []uint32) (data []uint32, wrong uint32) {
	raw := wordBytes(cells)
	out := make([]byte, 0, 24)
	for i := 0; i+8 <= len(raw); i += 8 {
		if encodeGroup34([6]byte(raw[i:i+6])) != [2]byte(raw[i+6:i+8]) {
			wrong++
		}
		out = append(out, raw[i:i+6]...)
	}
	return bytesWords(out), wrong
}

// encode34 gives the eight cells for up to six data words.
func encode34(data []uint32) []uint32 {
	raw := make([]byte, 0, 32)
	six := append(wordBytes(data[:min(len(data), 6)]), make([]byte, 24-4*min(len(data), 6))...)
	for i := 0; i < len(six); i += 6 {
		check := encodeGroup34([6]byte(six[i : i+6]))
		raw = append(append(raw, six[i:i+6]...), check[:]...)
	}
	return bytesWords(raw)
}

func encodeGroup34(g [6]byte) (check [2]byte) {
	for i, b := range g {
		check[0] ^= b
		check[1] += byte((i + 1) * bits.OnesCount8(b))
	}
	return check
}

func wordBytes(w []uint32) []byte {
	b := make([]byte, 0, 4*len(w))
	for _, v := range w {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func bytesWords(b []byte) []uint32 {
	w := make([]uint32, len(b)/4)
	for i := range w {
		w[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return w
}
