// Package image owns the ESP-IDF image format: bootloaders and applications as
// they are written to flash in plaintext.
//
// Parse accepts an image only when everything that the chip's boot code checks
// holds: header, segment lengths, checksum and, when there is one, the appended
// SHA-256. It goes further where a factory has no use for a doubtful file:
// undefined flash settings, padding that is not zero and unknown bytes after
// the image are errors too. What parses re-encodes to the same bytes.
//
// # Layout
//
// A 24-byte header, 1 to 16 segments (load address, length, data), zero padding
// so that the checksum is the last byte of a 16-byte block, and the SHA-256 of
// all that when byte 23 of the header is 1 (esp-facts D.2; ESP-IDF
// bootloader_support/include/esp_app_format.h, src/esp_image_format.c).
//
// # What may follow
//
// After the hash (or the checksum of an image without one), up to the next
// 4 KiB boundary: nothing, or padding. At the boundary: nothing, padding, or a
// signature sector of 4096 bytes that begins with 0xE7 (Secure Boot V2,
// esp-facts E.2). After a signature sector: nothing or padding. Padding is all
// 0xFF (esptool, espsecure) or all 0x00. Anything else is an error: those bytes
// would be written to the unit, and nothing would vouch for them. A Secure Boot
// V1 signature, which follows the hash directly, is such a thing.
//
// Nothing in this package changes an image. Flash settings in a header are
// covered by the hash and, in a signed image, by the signature.
package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/provisiond/provisiond/esp/chip"
)

// Constants of the format (ESP-IDF esp_app_format.h).
const (
	Magic         = 0xE9     // first byte of an image
	HeaderSize    = 24       // esp_image_header_t
	MaxSegments   = 16       // ESP_IMAGE_MAX_SEGMENTS
	MaxSegmentLen = 16 << 20 // a segment is shorter than this (SIXTEEN_MB in esp_image_format.c)
	SectorSize    = 4096     // signature sectors are aligned to this and this long

	segmentHeaderSize = 8
	checksumSeed      = 0xEF
	checksumBlock     = 16
	signatureMagic    = 0xE7
	descOffset        = HeaderSize + segmentHeaderSize
)

// SPIMode is the flash read mode that the ROM sets up (esp_image_spi_mode_t).
type SPIMode uint8

// Flash read modes.
const (
	SPIModeQIO SPIMode = iota
	SPIModeQOUT
	SPIModeDIO
	SPIModeDOUT
	SPIModeFastRead
	SPIModeSlowRead
)

// SPISpeed is the divider of the flash clock (esp_image_spi_freq_t).
type SPISpeed uint8

// Flash clock dividers.
const (
	SPISpeedDiv2 SPISpeed = 0
	SPISpeedDiv3 SPISpeed = 1
	SPISpeedDiv4 SPISpeed = 2
	SPISpeedDiv1 SPISpeed = 0xF
)

// SPISize is the flash size that the image was built for (esp_image_flash_size_t).
type SPISize uint8

// Flash sizes.
const (
	SPISize1MB SPISize = iota
	SPISize2MB
	SPISize4MB
	SPISize8MB
	SPISize16MB
	SPISize32MB
	SPISize64MB
	SPISize128MB
)

// Bytes is the size in bytes.
func (s SPISize) Bytes() uint32 { return 1 << 20 << s }

// WPPinDisabled is the value of Header.WPPin that ESP-IDF always writes.
const WPPinDisabled = 0xEE

// RevisionUnknown tells CheckFor that the unit's revision has not been read.
const RevisionUnknown chip.Revision = math.MaxUint16

// Header is esp_image_header_t. Its magic is constant and its segment_count is
// the length of Image.Segments.
type Header struct {
	SPIMode        SPIMode
	SPISpeed       SPISpeed
	SPISize        SPISize
	EntryAddr      uint32
	WPPin          uint8
	SPIPinDrv      [3]uint8
	ChipID         chip.ID
	MinChipRev     uint8 // the older limit: major revision, on ESP32-C3 the minor one
	MinChipRevFull chip.Revision
	MaxChipRevFull chip.Revision // 0 and 0xFFFF are "no limit"
	Reserved       [4]byte
	HashAppended   bool
}

// Segment is one segment of an image.
type Segment struct {
	LoadAddr uint32
	Data     []byte
	Offset   int // of Data in the image; set by Parse and Build
}

// Image is a parsed image. Treat it as read-only.
type Image struct {
	Header   Header
	Segments []Segment
	Checksum byte
	Hash     *[sha256.Size]byte // nil when the image has none
	AppDesc  *AppDesc           // nil when the image has none, as bootloaders do
	Length   int                // bytes up to and including the hash, without what follows
	Signed   bool               // a signature sector follows at the next 4 KiB boundary
	// Signature is the signature sector, nil when Signed is false. Its contents
	// are not checked here.
	Signature []byte

	gap  []byte // between Length and the signature sector or the end
	tail []byte // after the signature sector
}

// FlashLength is the number of bytes that the boot code may read: Length, or up
// to the end of the signature sector. Padding at the end of the file is not in it.
func (m *Image) FlashLength() int {
	if !m.Signed {
		return m.Length
	}
	return m.Length + len(m.gap) + len(m.Signature)
}

// Error says where an image is wrong.
type Error struct {
	Offset int    // in the file
	Field  string // by the vendor's name, with the segment's index: segments[2].data_len
	Msg    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("image: %s at offset 0x%x: %s", e.Field, e.Offset, e.Msg)
}

func errAt(off int, field, format string, args ...any) *Error {
	return &Error{Offset: off, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// Parse reads an image and checks all that can be checked without knowing the
// chip. Every error is an *Error. The image keeps a copy of b.
func Parse(b []byte) (*Image, error) { return ParseOwned(bytes.Clone(b)) }

// ParseOwned is Parse without the copy: the image's slices point into b, which
// the caller no longer changes.
func ParseOwned(b []byte) (*Image, error) {
	h, count, herr := parseHeader(b)
	if herr != nil {
		return nil, herr
	}
	m := &Image{Header: h, Segments: make([]Segment, count)}

	off := HeaderSize
	sum := byte(checksumSeed)
	for i := range m.Segments {
		field := func(name string) string { return fmt.Sprintf("segments[%d].%s", i, name) }
		if len(b)-off < segmentHeaderSize {
			return nil, errAt(off, field("header"), "the file ends after %d bytes: it is cut off", len(b))
		}
		s := &m.Segments[i]
		s.LoadAddr = binary.LittleEndian.Uint32(b[off:])
		n := binary.LittleEndian.Uint32(b[off+4:])
		if n%4 != 0 || n >= MaxSegmentLen {
			return nil, errAt(off+4, field("data_len"), "0x%x is not a multiple of 4 below 16 MB", n)
		}
		s.Offset = off + segmentHeaderSize
		if uint64(len(b)-s.Offset) < uint64(n) {
			return nil, errAt(s.Offset, field("data"), "0x%x bytes are announced, the file ends after 0x%x", n, len(b)-s.Offset)
		}
		off = s.Offset + int(n)
		s.Data = b[s.Offset:off:off]
		sum ^= xor(s.Data)
	}

	end := checksumEnd(off)
	if len(b) < end {
		return nil, errAt(off, "checksum", "the file ends after %d bytes: it is cut off", len(b))
	}
	for ; off < end-1; off++ {
		if b[off] != 0 {
			return nil, errAt(off, "padding", "0x%02x before the checksum should be 0", b[off])
		}
	}
	m.Checksum = b[off]
	if m.Checksum != sum {
		return nil, errAt(off, "checksum", "0x%02x is stored, the segments give 0x%02x: the file is damaged or was edited", m.Checksum, sum)
	}
	off = end

	if h.HashAppended {
		if len(b)-off < sha256.Size {
			return nil, errAt(off, "hash", "the file ends after %d bytes: it is cut off", len(b))
		}
		want := sha256.Sum256(b[:off])
		m.Hash = (*[sha256.Size]byte)(append([]byte(nil), b[off:off+sha256.Size]...))
		if *m.Hash != want {
			return nil, errAt(off, "hash", "SHA-256 %x… is stored, the image gives %x…: the file is damaged or was edited", m.Hash[:4], want[:4])
		}
		off += sha256.Size
	}
	m.Length = off
	m.AppDesc = parseAppDesc(m.Segments[0].Data)

	if err := m.parseTail(b); err != nil {
		return nil, err
	}
	return m, nil
}

// parseTail reads what follows the image proper, by the rules of the package doc.
func (m *Image) parseTail(b []byte) error {
	sector := min(align(m.Length, SectorSize), len(b))
	m.gap = b[m.Length:sector]
	if i := notPadding(m.gap); i >= 0 {
		return errAt(m.Length+i, "trailer", "0x%02x follows the image and is not padding: is this one image, and not a merged file?", b[m.Length+i])
	}
	rest := b[sector:]
	if len(rest) > 0 && rest[0] == signatureMagic {
		if len(rest) < SectorSize {
			return errAt(sector, "signature", "the sector has %d of %d bytes: the file is cut off", len(rest), SectorSize)
		}
		m.Signed = true
		m.Signature = rest[:SectorSize:SectorSize]
		rest = rest[SectorSize:]
	}
	m.tail = rest
	if i := notPadding(rest); i >= 0 {
		return errAt(len(b)-len(rest)+i, "trailer", "0x%02x follows the image and is neither padding nor a signature sector: is this one image, and not a merged file?", rest[i])
	}
	return nil
}

// notPadding gives the index of the first byte that breaks a run of 0xFF or a
// run of 0x00, or -1.
func notPadding(b []byte) int {
	for i, v := range b {
		if v != b[0] || (v != 0xFF && v != 0) {
			return i
		}
	}
	return -1
}

func parseHeader(b []byte) (h Header, segments int, err *Error) {
	if len(b) == 0 || b[0] != Magic {
		if len(b) == 0 {
			return h, 0, errAt(0, "magic", "the file is empty")
		}
		return h, 0, errAt(0, "magic", "0x%02x is not 0x%02x: this is no ESP-IDF image, or it is encrypted", b[0], Magic)
	}
	if len(b) < HeaderSize {
		return h, 0, errAt(0, "header", "the file has %d of %d header bytes", len(b), HeaderSize)
	}
	segments = int(b[1])
	if segments == 0 || segments > MaxSegments {
		return h, 0, errAt(1, "segment_count", "%d is not in 1..%d", segments, MaxSegments)
	}
	le := binary.LittleEndian
	h = Header{
		SPIMode: SPIMode(b[2]), SPISpeed: SPISpeed(b[3] & 0xF), SPISize: SPISize(b[3] >> 4),
		EntryAddr: le.Uint32(b[4:]), WPPin: b[8], SPIPinDrv: [3]uint8(b[9:12]),
		ChipID: chip.ID(le.Uint16(b[12:])), MinChipRev: b[14],
		MinChipRevFull: chip.Revision(le.Uint16(b[15:])), MaxChipRevFull: chip.Revision(le.Uint16(b[17:])),
		Reserved: [4]byte(b[19:23]), HashAppended: b[23] == 1,
	}
	if b[23] > 1 {
		return h, 0, errAt(23, "hash_appended", "%d is neither 0 nor 1", b[23])
	}
	return h, segments, h.check()
}

// check refuses flash settings that the format does not define.
func (h Header) check() *Error {
	if h.SPIMode > SPIModeSlowRead {
		return errAt(2, "spi_mode", "%d is not defined", h.SPIMode)
	}
	if h.SPISpeed > SPISpeedDiv4 && h.SPISpeed != SPISpeedDiv1 {
		return errAt(3, "spi_speed", "%d is not defined", h.SPISpeed)
	}
	if h.SPISize > SPISize128MB {
		return errAt(3, "spi_size", "%d is not defined", h.SPISize)
	}
	return nil
}

func (h Header) append(b []byte, segments int) []byte {
	le := binary.LittleEndian
	b = append(b, Magic, byte(segments), byte(h.SPIMode), byte(h.SPISize)<<4|byte(h.SPISpeed))
	b = le.AppendUint32(b, h.EntryAddr)
	b = append(b, h.WPPin)
	b = append(b, h.SPIPinDrv[:]...)
	b = le.AppendUint16(b, uint16(h.ChipID))
	b = append(b, h.MinChipRev)
	b = le.AppendUint16(b, uint16(h.MinChipRevFull))
	b = le.AppendUint16(b, uint16(h.MaxChipRevFull))
	b = append(b, h.Reserved[:]...)
	if h.HashAppended {
		return append(b, 1)
	}
	return append(b, 0)
}

// MarshalBinary encodes the image. Checksum and hash are computed anew, so what
// Parse accepted gives the same bytes again, trailing bytes included.
func (m *Image) MarshalBinary() ([]byte, error) {
	if err := m.Header.check(); err != nil {
		return nil, err
	}
	if n := len(m.Segments); n == 0 || n > MaxSegments {
		return nil, errAt(1, "segment_count", "%d is not in 1..%d", n, MaxSegments)
	}
	b := m.Header.append(nil, len(m.Segments))
	sum := byte(checksumSeed)
	for i, s := range m.Segments {
		if len(s.Data)%4 != 0 || len(s.Data) >= MaxSegmentLen {
			return nil, errAt(len(b)+4, fmt.Sprintf("segments[%d].data_len", i), "0x%x is not a multiple of 4 below 16 MB", len(s.Data))
		}
		b = binary.LittleEndian.AppendUint32(b, s.LoadAddr)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Data)))
		b = append(b, s.Data...)
		sum ^= xor(s.Data)
	}
	b = append(b, make([]byte, checksumEnd(len(b))-len(b))...)
	b[len(b)-1] = sum
	if m.Header.HashAppended {
		h := sha256.Sum256(b)
		b = append(b, h[:]...)
	}
	b = append(b, m.gap...)
	b = append(b, m.Signature...)
	return append(b, m.tail...), nil
}

// Checksum is the image format's checksum over b: the XOR of its bytes and 0xEF.
func Checksum(b []byte) byte { return checksumSeed ^ xor(b) }

func xor(b []byte) (x byte) {
	var w uint64
	for ; len(b) >= 8; b = b[8:] {
		w ^= binary.LittleEndian.Uint64(b)
	}
	w ^= w >> 32
	w ^= w >> 16
	w ^= w >> 8
	x = byte(w)
	for _, v := range b {
		x ^= v
	}
	return x
}

// checksumEnd is where an image whose segments end at off ends without its hash.
func checksumEnd(off int) int { return align(off+1, checksumBlock) }

func align(n, to int) int { return (n + to - 1) / to * to }
