package flashcrypt

import (
	"crypto/aes"
	"encoding/binary"
	"fmt"
	"math/bits"
)

// esp32Unit is what one tweaked key covers.
const esp32Unit = 32

// Address bits 5 to 23 tweak the key.
const (
	tweakLow  = 5
	tweakBits = 19
)

// ESP32 is the first chip's flash encryption: AES-256 one block at a time, each
// 16-byte block reversed before and after, under a key that is XORed with bits
// of the address of its 32-byte unit. Encryption uses the AES decrypt operation.
//
// Address bits above 23 do not tweak: the chip maps 16 MB. Make one with
// NewESP32.
type ESP32 struct {
	keys func() *esp32Keys
}

// keyWords is a 32-byte key in four little-endian words.
type keyWords [4]uint64

func (k *keyWords) xor(o *keyWords) {
	k[0] ^= o[0]
	k[1] ^= o[1]
	k[2] ^= o[2]
	k[3] ^= o[3]
}

type esp32Keys struct {
	wiped bool
	asm   bool
	key   keyWords
	// mask[i] has the key bits that address bit 5+i flips; step[i] those that
	// flip when the carry of the next unit reaches address bit 5+i.
	mask, step [tweakBits]keyWords
}

// NewESP32 takes a key of 32 bytes, or of 24 bytes for chips with the coding
// scheme 3/4, as it stands in the key file, and the value of the eFuse field
// FLASH_CRYPT_CONFIG, 0 to 15. The key is copied.
func NewESP32(key []byte, flashCryptConfig uint8) (*ESP32, error) {
	return newESP32(key, flashCryptConfig, useAsm)
}

func newESP32(key []byte, flashCryptConfig uint8, asm bool) (*ESP32, error) {
	if len(key) != 24 && len(key) != 32 {
		return nil, fmt.Errorf("flashcrypt: %w: the ESP32 scheme takes 32 bytes, or 24 with coding scheme 3/4, not %d", ErrKeyLength, len(key))
	}
	if flashCryptConfig > 0xF {
		return nil, fmt.Errorf("flashcrypt: FLASH_CRYPT_CONFIG 0x%x is not in 0..0xf", flashCryptConfig)
	}
	var full [32]byte
	defer clear(full[:])
	copy(full[:], key)
	if len(key) == 24 {
		copy(full[24:], key[8:16]) // so the chip extends it
	}
	k := &esp32Keys{asm: asm}
	for i := range k.key {
		k.key[i] = binary.LittleEndian.Uint64(full[8*i:])
	}
	k.setMasks(flashCryptConfig)
	return &ESP32{keys: func() *esp32Keys { return k }}, nil
}

// setMasks turns the pattern around: which key bits an address bit flips.
//
// Key bits are counted from the most significant bit of the first byte. They
// fall into four groups, each switched on by one bit of FLASH_CRYPT_CONFIG. A
// group counts address bits down from 23 to 5 three times, and once more from a
// start of its own.
func (k *esp32Keys) setMasks(flashCryptConfig uint8) {
	n := 0
	for group, last := range [4]int{14, 12, 10, 8} {
		for _, from := range [4]int{23, 23, 23, last} {
			for bit := from; bit >= tweakLow; bit-- {
				if flashCryptConfig>>group&1 != 0 {
					k.mask[bit-tweakLow][n/64] |= 1 << (n%64 ^ 7) // bit 7 of a byte is its first
				}
				n++
			}
		}
	}
	var sum keyWords
	for i := range k.step {
		sum.xor(&k.mask[i])
		k.step[i] = sum
	}
}

// keyAt gives the key of the unit at an address.
func (k *esp32Keys) keyAt(addr uint32) keyWords {
	key := k.key
	for i := range k.mask {
		if addr>>(tweakLow+i)&1 != 0 {
			key.xor(&k.mask[i])
		}
	}
	return key
}

// next turns the key of the unit before addr into that of the unit at addr,
// where counting on has flipped address bit 5 and all that the carry reached.
func (k *esp32Keys) next(key *keyWords, addr uint32) {
	key.xor(&k.step[min(bits.TrailingZeros32(addr>>tweakLow), tweakBits-1)])
}

// BlockSize is 16.
func (e *ESP32) BlockSize() int { return BlockSize }

// Encrypt implements Cipher.
func (e *ESP32) Encrypt(dst, src []byte, addr uint32) error { return e.crypt(dst, src, addr, false) }

// Decrypt implements Cipher.
func (e *ESP32) Decrypt(dst, src []byte, addr uint32) error { return e.crypt(dst, src, addr, true) }

// Wipe implements Cipher.
func (e *ESP32) Wipe() { *e.keys() = esp32Keys{wiped: true} }

func (e *ESP32) crypt(dst, src []byte, addr uint32, decrypt bool) error {
	if err := checkArgs(dst, src, addr); err != nil || len(src) == 0 {
		return err
	}
	k := e.keys()
	switch {
	case k.wiped:
		return ErrWiped
	case k.asm:
		k.cryptAsm(dst, src, addr, decrypt)
		return nil
	default:
		return k.cryptGeneric(dst, src, addr, decrypt)
	}
}

// cryptGeneric is the implementation over crypto/aes. Each unit has its own key
// schedule, which crypto/aes puts on the heap.
func (k *esp32Keys) cryptGeneric(dst, src []byte, addr uint32, decrypt bool) error {
	var buf [32]byte
	defer clear(buf[:])
	key := k.keyAt(addr)
	for {
		for i, w := range key {
			binary.LittleEndian.PutUint64(buf[8*i:], w)
		}
		c, err := aes.NewCipher(buf[:])
		if err != nil {
			return err // 32 bytes are a key length
		}
		crypt := c.Decrypt
		if decrypt {
			crypt = c.Encrypt
		}
		n := min(esp32Unit-int(addr%esp32Unit), len(src))
		for p := 0; p < n; p += BlockSize {
			b := dst[p : p+BlockSize : p+BlockSize]
			reverse(b, src[p:])
			crypt(b, b)
			reverse(b, b)
		}
		dst, src, addr = dst[n:], src[n:], addr+uint32(n)
		if len(src) == 0 {
			return nil
		}
		k.next(&key, addr)
	}
}

// reverse reverses a block; dst and src may be the same.
func reverse(dst, src []byte) {
	lo, hi := binary.BigEndian.Uint64(src[8:]), binary.BigEndian.Uint64(src)
	binary.LittleEndian.PutUint64(dst, lo)
	binary.LittleEndian.PutUint64(dst[8:], hi)
}
