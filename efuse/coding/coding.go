// Package coding owns the eFuse coding schemes: what has to stand in the
// programming registers so that given data come out, and what the error
// registers say. It does no register access.
//
//   - none: bits are stored as they are, and more can be added later.
//   - 3/4: ESP32 BLOCK1 to BLOCK3 when CODING_SCHEME is 1; 24 data bytes become
//     32 ([Encode34], [Decode34]). A group of six bytes can be burned once.
//   - four copies: BLOCK0 of the newer chips; the hardware makes the copies, so
//     there is nothing to encode, only the error registers to look at.
//   - RS(44,32): the other blocks of the newer chips; twelve check bytes go into
//     the CHECK_VALUE registers ([Parity]). A block can be burned once.
//
// Sources: esp-facts B.3 and B.6; ESP32 TRM "eFuse Controller", ESP32-C3 TRM
// "eFuse Controller"; ESP-IDF components/efuse/<chip>/esp_efuse_utility.c.
package coding

import (
	"errors"
	"fmt"
	"math/bits"

	"rsc.io/qr/gf256"
)

// Sizes of the codes in bytes.
const (
	DataLen34  = 24 // data of a 3/4-coded block
	CodeLen34  = 32
	DataLenRS  = 32 // data of an RS-coded block; shorter blocks are padded with zeros
	CheckLenRS = 12
)

const group34 = 6 // data bytes of a 3/4 group; two check bytes follow

// ErrCode is returned for a code word that no data encode to.
var ErrCode = errors.New("check bytes do not fit the data")

// Encode34 encodes 24 data bytes with the 3/4 scheme: after each six bytes their
// XOR, then the sum over i of (i+1) times the number of bits set in byte i.
func Encode34(data *[DataLen34]byte) (code [CodeLen34]byte) {
	for g := range DataLen34 / group34 {
		var xor, sum byte
		for i, b := range data[g*group34 : (g+1)*group34] {
			code[g*(group34+2)+i] = b
			xor ^= b
			sum += byte(i+1) * byte(bits.OnesCount8(b)) // at most 8·21
		}
		code[g*(group34+2)+group34] = xor
		code[g*(group34+2)+group34+1] = sum
	}
	return code
}

// Decode34 gives the data of a code word, or ErrCode. It corrects nothing.
func Decode34(code *[CodeLen34]byte) (data [DataLen34]byte, err error) {
	for g := range DataLen34 / group34 {
		copy(data[g*group34:], code[g*(group34+2):][:group34])
	}
	want := Encode34(&data)
	for g := range DataLen34 / group34 {
		at := g*(group34+2) + group34
		if want[at] != code[at] || want[at+1] != code[at+1] {
			return [DataLen34]byte{}, fmt.Errorf("3/4 code, group %d: %w", g, ErrCode)
		}
	}
	return data, nil
}

// field is GF(2^8) as QR codes use it: polynomial 0x11D, generator element 2.
// gf256's generator polynomial has the roots 2^0 to 2^11, as the chips want.
var field = gf256.NewField(0x11D, 2)

// Parity gives the check bytes of RS(44,32) in the order of the CHECK_VALUE
// registers; data are in register order.
func Parity(data *[DataLenRS]byte) (check [CheckLenRS]byte) {
	enc := gf256.NewRSEncoder(field, CheckLenRS)
	enc.ECC(data[:], check[:])
	// The encoder keeps its work area. Data may be a key, so overwrite it.
	var zero [DataLenRS]byte
	var scratch [CheckLenRS]byte
	enc.ECC(zero[:], scratch[:])
	return check
}

// BlockError is what the error registers say about an RS-coded block.
type BlockError struct {
	Count int  // wrong symbols, 0 to 7
	Fail  bool // more than the code corrects: the data are wrong
}

// Bad reports an error of any size.
func (e BlockError) Bad() bool { return e.Count != 0 || e.Fail }

// RSBlocks is how many blocks RS_ERR0 and RS_ERR1 speak of: BLOCK1 to BLOCK10.
const RSBlocks = 10

// DecodeRSErr splits RS_ERR0 and RS_ERR1. Element n is block n; element 0 stays
// empty. Each block has a nibble, BLOCK1 the lowest: bits 2:0 count, bit 3 fail.
//
// shifted is for the ESP32-C3, whose fail bits sit one nibble higher than the
// counts they belong to, so BLOCK10 has none (esp-facts B.6).
func DecodeRSErr(err0, err1 uint32, shifted bool) (blocks [RSBlocks + 1]BlockError) {
	nibbles := uint64(err1)<<32 | uint64(err0)
	for n := 1; n <= RSBlocks; n++ {
		blocks[n].Count = int(nibbles >> (4 * (n - 1)) & 7)
		fail := n - 1
		if shifted {
			if n == RSBlocks {
				continue
			}
			fail = n
		}
		blocks[n].Fail = nibbles>>(4*fail+3)&1 != 0
	}
	return blocks
}
