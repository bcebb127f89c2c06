package bootrom

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"golang.org/x/crypto/xts"

	"github.com/provisiond/provisiond/esp/chip"
)

// unit is the stretch that one decryption works on: the XTS data unit, and four
// times the ESP32 scheme's 32-byte unit.
const unit = 128

// flashView is the flash as CPU and cache see it: through decryption while the
// crypt counter is odd, raw otherwise.
type flashView struct {
	raw     io.ReaderAt
	size    uint32
	decrypt func(addr uint32, u *[unit]byte) // nil: raw
	encrypt func(addr uint32, u *[unit]byte) // its inverse, for what the chip writes
}

func newFlashView(in Input) *flashView {
	v := &flashView{raw: in.Flash, size: in.FlashSize}
	if bits.OnesCount32(in.FlashCryptCount)%2 == 0 {
		return v
	}
	if in.Model.Scheme == chip.SchemeESP32 {
		v.decrypt, v.encrypt = esp32Cipher(keyFile(in.Key, 32), in.FlashCryptConfig)
	} else {
		v.decrypt, v.encrypt = xtsCipher(keyFile(in.Key, 32))
	}
	return v
}

// Encryption is the chip's encryption of what it writes to an address that is a
// multiple of 16, whether or not the crypt counter says that it reads so.
func Encryption(in Input) func(addr uint32, data []byte) []byte {
	in.FlashCryptCount = 1
	return newFlashView(in).stored
}

// keyFile turns the array's bytes into those of the key file: the array holds each
// block's key in reverse (esp-facts B.9). Without a key the unit has one of zeros.
func keyFile(array []byte, n int) []byte {
	if array == nil {
		return make([]byte, n)
	}
	var key []byte
	for half := range slices.Chunk(array, 32) {
		half = slices.Clone(half)
		slices.Reverse(half)
		key = append(key, half...)
	}
	return key
}

// read gives n bytes from addr. It fails beyond the end of the flash.
func (v *flashView) read(addr, n uint32) ([]byte, error) {
	if uint64(addr)+uint64(n) > uint64(v.size) {
		return nil, fmt.Errorf("0x%x bytes at 0x%x reach beyond the flash", n, addr)
	}
	first := addr / unit * unit
	last := (uint64(addr) + uint64(n) + unit - 1) / unit * unit
	buf := make([]byte, last-uint64(first))
	if _, err := v.raw.ReadAt(buf, int64(first)); err != nil && err != io.EOF {
		return nil, err
	}
	if v.decrypt != nil {
		for i := 0; i < len(buf); i += unit {
			v.decrypt(first+uint32(i), (*[unit]byte)(buf[i:]))
		}
	}
	return buf[addr-first:][:n], nil
}

// stored is what the flash holds after the chip wrote data to an erased place: of
// a unit that data fills in part only, the rest stays erased.
func (v *flashView) stored(addr uint32, data []byte) []byte {
	out := slices.Clone(data)
	if v.encrypt == nil {
		return out
	}
	for done := 0; done < len(data); {
		at := addr + uint32(done)
		var u [unit]byte
		n := copy(u[at%unit:], data[done:])
		v.encrypt(at/unit*unit, &u)
		copy(out[done:done+n], u[at%unit:])
		done += n
	}
	return out
}

// esp32Cipher is the ESP32's flash encryption, in which AES stands backwards (esp-facts
// C.1, ESP-IDF docs/en/security/flash-encryption.rst "Flash Encryption
// Algorithm"): each 16-byte block is byte-reversed, goes through AES under a key of
// its 32-byte unit, and is byte-reversed again. What decrypts flash is the AES
// *encrypt* operation.
func esp32Cipher(key []byte, config uint32) (decrypt, encrypt func(uint32, *[unit]byte)) {
	switch len(key) {
	case 24: // the 3/4 coding scheme: bytes 8..15 serve twice
		key = slices.Concat(key, key[8:16])
	case 32:
	default:
		panic(fmt.Sprintf("bootrom: an ESP32 flash key of %d bytes: 32, or 24 with the 3/4 coding scheme", len(key)))
	}
	with := func(op func(c cipher.Block, dst, src []byte)) func(uint32, *[unit]byte) {
		return func(addr uint32, u *[unit]byte) {
			for half := uint32(0); half < unit; half += 32 {
				tweaked := esp32UnitKey(key, config, addr+half)
				block, err := aes.NewCipher(tweaked)
				if err != nil {
					panic(err) // 32 bytes always make a key
				}
				for i := half; i < half+32; i += aes.BlockSize {
					b := u[i : i+aes.BlockSize]
					slices.Reverse(b)
					op(block, b, b)
					slices.Reverse(b)
				}
			}
		}
	}
	return with(cipher.Block.Encrypt), with(cipher.Block.Decrypt)
}

// esp32UnitKey XORs address bits into the key, bit by bit as the documentation
// lists them: key bit n, counted from the first byte's most significant bit, with
// one address bit.
func esp32UnitKey(key []byte, config, addr uint32) []byte {
	tweaked := slices.Clone(key)
	for n, addrBit := range esp32AddressBits {
		var enable uint32
		switch {
		case n <= 66:
			enable = 1 << 0
		case n <= 131:
			enable = 1 << 1
		case n <= 194:
			enable = 1 << 2
		default:
			enable = 1 << 3
		}
		if config&enable != 0 && addr>>addrBit&1 == 1 {
			tweaked[n/8] ^= 0x80 >> (n % 8)
		}
	}
	return tweaked
}

// esp32AddressBits names the address bit for each of the 256 key bits: four
// groups of three runs from 23 down to 5 and a last, shorter run down to 5.
var esp32AddressBits = func() []uint {
	var list []uint
	down := func(from uint) {
		for b := from; b >= 5; b-- {
			list = append(list, b)
		}
	}
	for _, short := range []uint{14, 12, 10, 8} {
		down(23)
		down(23)
		down(23)
		down(short)
	}
	return list
}()

// xtsCipher is the XTS-AES scheme of the later chips (esp-facts C.2): the whole
// 128-byte unit is byte-reversed, goes through standard XTS with the unit's flash
// address as data unit number, and is byte-reversed again.
func xtsCipher(key []byte) (decrypt, encrypt func(uint32, *[unit]byte)) {
	switch len(key) {
	case 16: // the ESP32-C2's half block: the key of the unit is its hash
		sum := sha256.Sum256(key)
		key = sum[:]
	case 32, 64:
	default:
		panic(fmt.Sprintf("bootrom: an XTS-AES flash key of %d bytes: 32, 64, or 16 on an ESP32-C2", len(key)))
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		panic(err) // such lengths always make a key
	}
	with := func(op func(c *xts.Cipher, dst, src []byte, sector uint64)) func(uint32, *[unit]byte) {
		return func(addr uint32, u *[unit]byte) {
			slices.Reverse(u[:])
			op(c, u[:], u[:], uint64(addr))
			slices.Reverse(u[:])
		}
	}
	return with((*xts.Cipher).Decrypt), with((*xts.Cipher).Encrypt)
}

// le16 and le32 read the little-endian words of all these formats.
func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
