// Package flashcrypt owns host-side flash encryption of the ESP32 family: the
// ESP32's own scheme and XTS-AES, by absolute flash address.
//
// It promises the bytes that the chip's flash controller decrypts with the same
// key (esp-facts C.1, C.2; ESP-IDF security/flash-encryption.rst; TRM, chapter
// "External Memory Encryption and Decryption"), equal to the vendor's espsecure.
//
// Ciphers work on any part of flash whose address and length are multiples of
// 16 bytes: cutting a region at such a boundary and encrypting the parts gives
// the same bytes as encrypting the whole. They are safe for concurrent use. No
// format verb, encoder or panic prints their key: it sits behind a closure.
//
// # The ESP32 scheme is malleable in units of 32 bytes
//
// Both 16-byte halves of a 32-byte unit use one key, so equal halves give equal
// ciphertext. That is the chip's design, not a fault here. The controller writes
// whole units: write multiples of 32 bytes.
//
// # Any range
//
// No byte of ciphertext depends on another block, or another unit, of the image. So a
// server makes just the range that it was asked for; provision/ota's Ciphertext does
// so for ranges that begin and end anywhere.
//
// # Speed
//
// On amd64 and arm64 processors with AES instructions both schemes are in assembly and
// allocate nothing per call. Both files are generated, from one description (./gen). Elsewhere they use the block calls of crypto/aes; then the
// ESP32 scheme allocates a key schedule per unit. Both ways take a time that does not
// depend on the key where crypto/aes uses AES instructions. The build tag purego turns
// off the assembly, that of crypto/aes too.
package flashcrypt

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/provisiond/provisiond/esp/chip"
)

//go:generate go run ./gen

// BlockSize is the smallest piece that can be encrypted, and the unit in which
// addresses and lengths count.
const BlockSize = 16

// Cipher encrypts and decrypts by absolute flash address.
type Cipher interface {
	// Encrypt encrypts src as the content of flash from addr on. dst has at
	// least the length of src; it is src itself or does not overlap it. addr and
	// len(src) are multiples of BlockSize. On an error nothing is written.
	Encrypt(dst, src []byte, addr uint32) error
	// Decrypt is the reverse of Encrypt.
	Decrypt(dst, src []byte, addr uint32) error
	// BlockSize is 16.
	BlockSize() int
	// Wipe overwrites the key as far as it can be reached; afterwards Encrypt
	// and Decrypt fail with ErrWiped. It must not run while they do.
	Wipe()
}

// Errors of this package. Messages never hold key bytes.
var (
	ErrKeyLength = errors.New("wrong key length")
	ErrWiped     = errors.New("flashcrypt: the cipher has been wiped")
)

// New makes the cipher of a scheme. flashCryptConfig is the eFuse field
// FLASH_CRYPT_CONFIG, 0 to 15; only the ESP32 scheme has it, the others ignore it.
func New(scheme chip.Scheme, key []byte, flashCryptConfig uint8) (Cipher, error) {
	want := 0
	switch scheme {
	case chip.SchemeESP32:
		return orNil(NewESP32(key, flashCryptConfig))
	case chip.SchemeXTSDerived:
		return orNil(NewXTSDerived(key))
	case chip.SchemeXTS128:
		want = 32
	case chip.SchemeXTS256:
		want = 64
	default:
		return nil, fmt.Errorf("flashcrypt: unknown scheme %q", string(scheme))
	}
	if len(key) != want {
		return nil, fmt.Errorf("flashcrypt: %w: %s takes %d bytes, not %d", ErrKeyLength, scheme, want, len(key))
	}
	return orNil(NewXTS(key))
}

// orNil keeps a nil pointer from becoming an interface that is not nil.
func orNil[C Cipher](c C, err error) (Cipher, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// checkArgs checks what Encrypt and Decrypt promise to check.
func checkArgs(dst, src []byte, addr uint32) error {
	n := len(src)
	switch {
	case addr%BlockSize != 0:
		return fmt.Errorf("flashcrypt: flash address 0x%x is not a multiple of %d", addr, BlockSize)
	case n%BlockSize != 0:
		return fmt.Errorf("flashcrypt: %d bytes at flash address 0x%x are not a multiple of %d: pad the data", n, addr, BlockSize)
	case len(dst) < n:
		return fmt.Errorf("flashcrypt: the destination has %d bytes, the source %d", len(dst), n)
	case uint64(addr)+uint64(n) > 1<<32:
		return fmt.Errorf("flashcrypt: %d bytes at flash address 0x%x end beyond 32 bits", n, addr)
	case inexactOverlap(dst[:n], src):
		return errors.New("flashcrypt: source and destination overlap and are not the same")
	}
	return nil
}

// inexactOverlap reports whether a and b, of equal length, share memory but do
// not begin at the same byte.
func inexactOverlap(a, b []byte) bool {
	if len(a) == 0 || &a[0] == &b[0] {
		return false
	}
	//nolint:gosec // addresses are compared and never turned back into pointers
	aFirst, aLast, bFirst, bLast := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&a[len(a)-1])),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&b[len(b)-1]))
	return aFirst <= bLast && bFirst <= aLast
}
