package flashcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// xtsUnit is the data unit of XTS flash encryption: the tweak is its address.
const xtsUnit = 128

// XTS is XTS-AES flash encryption: ESP32-S2, S3, C2, C3, C6, H2 and later. Make
// one with NewXTS or NewXTSDerived.
//
// A 128-byte unit of flash is reversed as a whole, encrypted with standard
// XTS-AES under its address as the tweak, and reversed again. So the first block
// in flash is the last of the unit: block p uses the tweak times α^(7-p).
type XTS struct {
	keys func() *xtsKeys
}

// xtsKeys holds the key in the form of one of the two implementations.
type xtsKeys struct {
	wiped       bool
	asm         bool
	schedule    xtsSchedule  // when asm
	data, tweak cipher.Block // when not asm
}

// NewXTS takes a key of 32 bytes (XTS-AES-128) or 64 bytes (XTS-AES-256), as it
// stands in the key file: data key first, tweak key second. The key is copied.
func NewXTS(key []byte) (*XTS, error) { return newXTS(key, useAsm) }

func newXTS(key []byte, asm bool) (*XTS, error) {
	if len(key) != 32 && len(key) != 64 {
		return nil, fmt.Errorf("flashcrypt: %w: XTS-AES takes 32 or 64 bytes, not %d", ErrKeyLength, len(key))
	}
	k := &xtsKeys{asm: asm}
	half := len(key) / 2
	if asm {
		k.schedule.expand(key[:half], key[half:])
	} else {
		var err error
		if k.data, err = aes.NewCipher(key[:half]); err != nil {
			return nil, err
		}
		if k.tweak, err = aes.NewCipher(key[half:]); err != nil {
			return nil, err
		}
	}
	return &XTS{keys: func() *xtsKeys { return k }}, nil
}

// NewXTSDerived takes the 16 bytes that an ESP32-C2 has in eFuse. Its working
// key is their SHA-256, used as XTS-AES-128.
func NewXTSDerived(key16 []byte) (*XTS, error) {
	if len(key16) != 16 {
		return nil, fmt.Errorf("flashcrypt: %w: the derived scheme takes 16 bytes, not %d", ErrKeyLength, len(key16))
	}
	key := sha256.Sum256(key16)
	defer clear(key[:])
	return NewXTS(key[:])
}

// BlockSize is 16.
func (x *XTS) BlockSize() int { return BlockSize }

// Encrypt implements Cipher.
func (x *XTS) Encrypt(dst, src []byte, addr uint32) error { return x.crypt(dst, src, addr, false) }

// Decrypt implements Cipher.
func (x *XTS) Decrypt(dst, src []byte, addr uint32) error { return x.crypt(dst, src, addr, true) }

// Wipe implements Cipher. What crypto/aes holds, where it is used, is only
// dropped.
func (x *XTS) Wipe() { *x.keys() = xtsKeys{wiped: true} }

func (x *XTS) crypt(dst, src []byte, addr uint32, decrypt bool) error {
	if err := checkArgs(dst, src, addr); err != nil {
		return err
	}
	k := x.keys()
	switch {
	case k.wiped:
		return ErrWiped
	case k.asm:
		k.cryptAsm(dst, src, addr, decrypt)
	default:
		k.cryptGeneric(dst, src, addr, decrypt)
	}
	return nil
}

// cryptAsm gives whole units to the assembly. The parts of units at the ends go
// there in a unit of their own: XTS blocks do not depend on each other.
func (k *xtsKeys) cryptAsm(dst, src []byte, addr uint32, decrypt bool) {
	for len(src) > 0 {
		if off := int(addr % xtsUnit); off != 0 || len(src) < xtsUnit {
			var unit [xtsUnit]byte
			n := copy(unit[off:], src)
			xtsUnits(&k.schedule, unit[:], unit[:], addr-uint32(off), decrypt)
			copy(dst, unit[off:off+n])
			dst, src, addr = dst[n:], src[n:], addr+uint32(n)
			continue
		}
		n := len(src) &^ (xtsUnit - 1)
		xtsUnits(&k.schedule, dst[:n], src[:n], addr, decrypt)
		dst, src, addr = dst[n:], src[n:], addr+uint32(n)
	}
}

// cryptGeneric is the implementation over crypto/aes. It allocates nothing: an
// interface call would move a buffer of its own to the heap, so it works in dst.
// Each step goes through the whole unit: a block call that reads two halves as
// they are being stored would wait for them.
func (k *xtsKeys) cryptGeneric(dst, src []byte, addr uint32, decrypt bool) {
	le, be := binary.LittleEndian, binary.BigEndian
	for len(src) > 0 {
		off := int(addr % xtsUnit)
		n := min(xtsUnit-off, len(src))
		d, s := dst[:n], src[:n]

		// The tweak takes the place of the last block for a moment; d may be s.
		last := n - BlockSize
		lo, hi := be.Uint64(s[last+8:]), be.Uint64(s[last:])
		t := d[last:n:n]
		clear(t)
		le.PutUint32(t, addr-uint32(off))
		k.tweak.Encrypt(t, t)
		tlo, thi := le.Uint64(t), le.Uint64(t[8:])
		for range (xtsUnit - off - n) / BlockSize {
			tlo, thi = mulAlpha(tlo, thi)
		}

		// From the last block to the first, as XTS counts here. Loading one half
		// big-endian in the place of the other reverses a block.
		var tweaks [xtsUnit / BlockSize][2]uint64
		for p := last; ; {
			tweaks[p/BlockSize] = [2]uint64{tlo, thi}
			le.PutUint64(d[p:], lo^tlo)
			le.PutUint64(d[p+8:], hi^thi)
			if p -= BlockSize; p < 0 {
				break
			}
			tlo, thi = mulAlpha(tlo, thi)
			lo, hi = be.Uint64(s[p+8:]), be.Uint64(s[p:])
		}
		if decrypt {
			for b := d; len(b) > 0; b = b[BlockSize:] {
				k.data.Decrypt(b[:BlockSize], b[:BlockSize])
			}
		} else {
			for b := d; len(b) > 0; b = b[BlockSize:] {
				k.data.Encrypt(b[:BlockSize], b[:BlockSize])
			}
		}
		for p := 0; p < n; p += BlockSize {
			b, tw := d[p:p+BlockSize:p+BlockSize], &tweaks[p/BlockSize]
			lo, hi := le.Uint64(b)^tw[0], le.Uint64(b[8:])^tw[1]
			be.PutUint64(b[8:], lo)
			be.PutUint64(b, hi)
		}
		dst, src, addr = dst[n:], src[n:], addr+uint32(n)
	}
}

// mulAlpha multiplies by α in GF(2^128) with the polynomial of XTS.
func mulAlpha(lo, hi uint64) (uint64, uint64) {
	carry := uint64(int64(hi) >> 63) // all ones when the top bit falls out
	return lo<<1 ^ carry&0x87, hi<<1 | lo>>63
}
