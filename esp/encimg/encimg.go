// Package encimg owns the vendor's transport format for updates,
// esp_encrypted_img: a header of 512 bytes, and the plaintext image under
// AES-256-GCM (esp-facts G.3; espressif/idf-extra-components,
// esp_encrypted_img 2.7.1: private_include/esp_encrypted_img_priv.h,
// src/esp_encrypted_img.c, tools/esp_enc_img_gen.py).
//
// It promises files that the component opens and that equal the vendor's byte
// for byte where nothing is random, and it opens the vendor's. What Parse takes
// encodes again to the same bytes.
//
// # What the format is for
//
// The device opens the file and writes the plaintext with esp_ota_write; its
// flash encryption then encrypts as always. So one file does for every slot, the
// format does not replace flash encryption, and it does not say who made the file:
// whoever has the public key can make one. That the image is genuine is for
// Secure Boot or a signed application to decide.
//
// # Two forms
//
// RSA-3072: the AES key under RSA with PKCS#1 v1.5 padding, one key pair for as many
// units as share the private key. The format demands this padding, which new designs
// should not use: whoever can send files to a device and see, or time, how it refuses
// them may learn about the AES keys of others' files. Nothing here decrypts for
// strangers.
//
// ECIES-P256: a key agreement with the unit's own key, which the unit derives from an
// eFuse key block of the purpose HMAC_UP. The file is for one unit.
//
// Both begin with the same magic number. They are told apart by the 288 bytes that
// are zero in the ECIES form and part of a random number in the other.
//
// # Memory, and the order of checks
//
// An image is at most MaxImage bytes and is kept in memory: the tag stands before what
// it covers, and plaintext leaves Open only when the tag is right. The component on
// the device is not so strict: it writes plaintext to the slot as it comes, and looks
// at the tag before the slot is made bootable.
//
// Private keys sit behind closures: no format verb, encoder or panic prints them.
package encimg

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

// Sizes of the format, in bytes.
const (
	HeaderSize = 512
	// MaxImage is the longest image that Seal and Open take. The format's limit is
	// 4 GiB; no chip maps that much.
	MaxImage = 64 << 20

	blockSize = 384 // what the AES key is wrapped in
	pointSize = 64  // X and Y of a P-256 point
	saltSize  = 32
	ivSize    = 16
	tagSize   = 16
	keySize   = 32

	offBlock  = 4
	offIV     = offBlock + blockSize
	offLength = offIV + ivSize
	offTag    = offLength + 4
	offExtra  = offTag + tagSize
	extraSize = HeaderSize - offExtra
)

// magic begins both forms.
var magic = [4]byte{0xCF, 0xB6, 0x88, 0x07}

// Form is how the AES key of a file is wrapped.
type Form string

// The forms, with the names that commands show.
const (
	FormRSA   Form = "rsa-3072"
	FormECIES Form = "ecies-p256"
)

// Header is a file's first 512 bytes. Reserved bytes are kept as they are; the
// device does not look at them.
type Header struct {
	Block  [blockSize]byte // the wrapped AES key
	IV     [ivSize]byte
	Length uint32 // of the image, in bytes
	Tag    [tagSize]byte
	Extra  [extraSize]byte // reserved, zero
}

// Is reports whether a file begins as this format does.
func Is(file []byte) bool { return bytes.HasPrefix(file, magic[:]) }

// Parse reads the header at the start of a file. It checks that the image behind
// it is as long as the header says.
func Parse(file []byte) (*Header, error) {
	switch {
	case !Is(file):
		return nil, &Error{Problem: ProblemMagic, Detail: fmt.Sprintf("it does not begin with % x", magic), Device: "Magic Verification failed"}
	case len(file) < HeaderSize:
		return nil, &Error{
			Problem: ProblemShort, Device: "Decryption process not completed successfully",
			Detail: fmt.Sprintf("its %d bytes are less than the header of %d", len(file), HeaderSize),
		}
	}
	h := &Header{
		Block: [blockSize]byte(file[offBlock:]), IV: [ivSize]byte(file[offIV:]),
		Length: binary.LittleEndian.Uint32(file[offLength:]),
		Tag:    [tagSize]byte(file[offTag:]), Extra: [extraSize]byte(file[offExtra:]),
	}
	switch have, want := uint64(len(file)-HeaderSize), uint64(h.Length); {
	case want == 0:
		return nil, &Error{Problem: ProblemEmpty, Detail: "its header tells of an image of 0 bytes"}
	case have < want:
		return nil, &Error{
			Problem: ProblemShort, Device: "Invalid operation",
			Detail: fmt.Sprintf("%d bytes follow the header, which tells of %d: the file was cut off", have, want),
		}
	case have > want:
		return nil, &Error{
			Problem: ProblemLong, Device: "Invalid operation",
			Detail: fmt.Sprintf("%d bytes follow the header, which tells of %d: something was appended", have, want),
		}
	case want > MaxImage:
		return nil, &Error{Problem: ProblemLong, Detail: fmt.Sprintf("an image of %d bytes fits no chip", want)}
	}
	return h, nil
}

// Form tells the form by the bytes that the ECIES form leaves zero.
func (h *Header) Form() Form {
	if [blockSize - pointSize - saltSize]byte(h.Block[pointSize+saltSize:]) == [blockSize - pointSize - saltSize]byte{} {
		return FormECIES
	}
	return FormRSA
}

// AppendBinary appends the 512 bytes of the header.
func (h *Header) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, magic[:]...)
	b = append(b, h.Block[:]...)
	b = append(b, h.IV[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.Length)
	b = append(b, h.Tag[:]...)
	return append(b, h.Extra[:]...), nil
}

// Recipient is who will open a file: an RSA key, or one unit.
type Recipient interface {
	// Form is the form of the files that are made for it.
	Form() Form
	// wrap makes an AES key and the block that carries it.
	wrap() (block [blockSize]byte, key [keySize]byte, err error)
}

// Identity opens what was made for its recipient. Units are identities; so is
// whoever tests.
type Identity interface {
	// Form is the form of the files that it opens.
	Form() Form
	unwrap(block *[blockSize]byte) ([keySize]byte, error)
}

// Seal makes the file of a plaintext image.
func Seal(to Recipient, image []byte) ([]byte, error) {
	if len(image) == 0 || len(image) > MaxImage {
		return nil, fmt.Errorf("encimg: an image has 1 to %d bytes, not %d", MaxImage, len(image))
	}
	block, key, err := to.wrap()
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	var iv [ivSize]byte
	_, _ = rand.Read(iv[:]) // never fails
	return seal(&block, &key, &iv, image)
}

func seal(block *[blockSize]byte, key *[keySize]byte, iv *[ivSize]byte, image []byte) ([]byte, error) {
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	h := Header{Block: *block, IV: *iv, Length: uint32(len(image))}
	out := make([]byte, HeaderSize, HeaderSize+len(image)+tagSize)
	out = aead.Seal(out, iv[:], image, nil)
	h.Tag = [tagSize]byte(out[HeaderSize+len(image):])
	if _, err := h.AppendBinary(out[:0]); err != nil {
		return nil, err
	}
	return out[:HeaderSize+len(image)], nil
}

// Open gives the plaintext image of a file, or an *Error.
func Open(as Identity, file []byte) ([]byte, error) {
	h, err := Parse(file)
	if err != nil {
		return nil, err
	}
	key, err := as.unwrap(&h.Block)
	if err != nil {
		return nil, hint(err, as, h)
	}
	defer clear(key[:])
	aead, err := newGCM(&key)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 0, len(file)-HeaderSize+tagSize)
	buf = append(append(buf, file[HeaderSize:]...), h.Tag[:]...)
	image, err := aead.Open(buf[:0], h.IV[:], buf, nil)
	if err != nil {
		return nil, hint(&Error{
			Problem: ProblemTag, Device: "Invalid Auth",
			Detail: "the tag is wrong: the file was changed, or made for another key",
		}, as, h)
	}
	return image, nil
}

// newGCM makes the cipher. Its nonce has 16 bytes, not the usual 12.
func newGCM(key *[keySize]byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err // 32 bytes are a key length
	}
	return cipher.NewGCMWithNonceSize(b, ivSize)
}
