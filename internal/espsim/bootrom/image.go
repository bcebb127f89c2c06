package bootrom

import (
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

// The image format (esp-facts D.2, ESP-IDF
// components/bootloader_support/include/esp_app_format.h).
const (
	imageMagic  = 0xE9
	headerLen   = 24
	segmentLen  = 8
	maxSegments = 16
	maxSegment  = 16 << 20 // bytes of data in one segment
	hashLen     = sha256.Size
)

type imageHeader struct {
	raw            []byte
	magic          byte
	segments       int
	mode, sizeFreq byte
	entry          uint32
	wpPin          byte
	chip           chip.ID
	minRev, maxRev chip.Revision
	hashed         bool
}

func parseHeader(b []byte) imageHeader {
	return imageHeader{
		raw: b, magic: b[0], segments: int(b[1]), mode: b[2], sizeFreq: b[3],
		entry: le32(b[4:]), wpPin: b[8], chip: chip.ID(le16(b[12:])),
		minRev: chip.Revision(le16(b[15:])), maxRev: chip.Revision(le16(b[17:])),
		hashed: b[23] != 0,
	}
}

func (h imageHeader) modeName() string {
	names := []string{"QIO", "QOUT", "DIO", "DOUT", "FAST READ", "SLOW READ"}
	if int(h.mode) < len(names) {
		return names[h.mode]
	}
	return "SLOW READ"
}

func (h imageHeader) clockDivider() int {
	switch h.sizeFreq & 0xF {
	case 0xF:
		return 1
	case 1:
		return 3
	case 2:
		return 4
	}
	return 2
}

// flashSize is what the header claims, in bytes; 0 if the code has no meaning.
func (h imageHeader) flashSize() uint32 {
	if code := h.sizeFreq >> 4; code <= 7 {
		return 1 << 20 << code
	}
	return 0
}

type segment struct {
	index      int
	load, size uint32
	data       uint32 // flash address of its data
}

// image is what reading one to its end found.
type image struct {
	segments           []segment
	calculated, stored byte // checksum
	length             uint32
	sum, storedSum     [hashLen]byte // zero without an appended hash
}

// readImage reads the image at a flash address to its end. Each segment header is
// given to visit before its data is read; what visit returns ends the reading.
func readImage(f *flashView, at uint32, h imageHeader, visit func(segment) error) (image, error) {
	img := image{calculated: 0xEF}
	sum := sha256.New()
	sum.Write(h.raw)
	next := at + headerLen
	for i := range h.segments {
		head, err := f.read(next, segmentLen)
		if err != nil {
			return img, err
		}
		s := segment{index: i, load: le32(head), size: le32(head[4:]), data: next + segmentLen}
		if err := visit(s); err != nil {
			return img, err
		}
		data, err := f.read(s.data, s.size)
		if err != nil {
			return img, err
		}
		for _, b := range data {
			img.calculated ^= b
		}
		sum.Write(head)
		sum.Write(data)
		img.segments = append(img.segments, s)
		next = s.data + s.size
	}
	// 1 to 16 bytes end a 16-byte block; the last one is the checksum.
	pad, err := f.read(next, 16-(next-at)%16)
	if err != nil {
		return img, err
	}
	img.stored = pad[len(pad)-1]
	sum.Write(pad)
	next += uint32(len(pad))
	if h.hashed {
		stored, err := f.read(next, hashLen)
		if err != nil {
			return img, err
		}
		img.storedSum = [hashLen]byte(stored)
		sum.Sum(img.sum[:0])
		next += hashLen
	}
	img.length = next - at
	return img, nil
}

// pageSize is the MMU page that an app was built for: its descriptor says so where
// chips have several (ESP-IDF esp_app_desc.h, mmu_page_size).
func (b *boot) pageSize(at uint32) uint32 {
	raw, err := b.flash.read(at+headerLen+segmentLen, 0xB5)
	if err == nil && le32(raw) == descriptorMagic {
		if log := raw[0xB4]; log < 32 && slices.Contains(b.si.Pages, 1<<log) {
			return 1 << log
		}
	}
	return uint32(b.si.Pages[0])
}

// appImage is an app that the second stage has checked.
type appImage struct {
	at, length uint32 // without padding and signature sector
	img        image
	blocks     [][]byte // of the signature sector, if it was read
	digests    digests
}

// verifyApp is the second stage's check of an app (ESP-IDF
// components/bootloader_support/src/esp_image_format.c). It logs what is wrong
// and reports whether the app can run.
func (b *boot) verifyApp(at, partitionSize uint32) (appImage, bool) {
	app := appImage{at: at}
	raw, err := b.flash.read(at, headerLen)
	if err != nil {
		b.errorf("esp_image", "bootloader_flash_read failed at 0x%08x", at)
		return app, false
	}
	h := parseHeader(raw)
	if h.magic != imageMagic {
		b.errorf("esp_image", "image at 0x%x has invalid magic byte (nothing flashed here?)", at)
		return app, false
	}
	if !b.checkChip(h, true) {
		return app, false
	}
	if h.segments > maxSegments {
		b.errorf("esp_image", "image at 0x%x segment count %d exceeds max %d", at, h.segments, maxSegments)
		return app, false
	}
	page := b.pageSize(at)
	img, err := readImage(b.flash, at, h, func(s segment) error { return b.visitSegment(s, page) })
	if err != nil {
		if !errors.Is(err, errSegment) {
			b.errorf("esp_image", "bootloader_flash_read failed at 0x%08x", at)
		}
		return app, false
	}
	app.length, app.img = img.length, img
	signed := img.length
	if b.checksApps() {
		signed = padded(at+img.length) - at + sigSector
	}
	switch {
	case img.calculated != img.stored:
		b.errorf("esp_image", "Checksum failed. Calculated 0x%x read 0x%x", img.calculated, img.stored)
		return app, false
	case signed > partitionSize:
		b.errorf("esp_image", "Image length %d doesn't fit in partition length %d", signed, partitionSize)
		return app, false
	case b.checksApps():
		return app, b.verifyAppSignature(&app)
	case img.sum != img.storedSum: // both zero without a hash
		b.errorf("esp_image", "Image hash failed - image is corrupt")
		return app, false
	}
	return app, true
}

// errSegment says that a segment header was refused and the reason is logged.
var errSegment = errors.New("segment refused")

func (b *boot) visitSegment(s segment, page uint32) error {
	if s.size%4 != 0 || s.size >= maxSegment {
		b.errorf("esp_image", "invalid segment length 0x%x", s.size)
		return errSegment
	}
	mapped := silicon.Within(b.si.Memory.Mapped, s.load, 1)
	if mapped && s.data%page != s.load%page {
		b.errorf("esp_image", "Segment %d load address 0x%08x, doesn't match data 0x%08x", s.index, s.load, s.data)
		return errSegment
	}
	// Load addresses below 0x10000000 stand for padding, which goes nowhere.
	load := !mapped && s.load >= 0x10000000
	verb := ""
	switch {
	case load:
		verb = "load"
	case mapped:
		verb = "map"
	}
	b.infof("esp_image", "segment %d: paddr=%08x vaddr=%08x size=%05xh (%6d) %s", s.index, s.data, s.load, s.size, s.size, verb)
	if load && s.size > 0 && !silicon.Within(b.si.Memory.Loaded, s.load, s.size) {
		b.errorf("esp_image", "Segment %d 0x%08x-0x%08x invalid: bad load address range", s.index, s.load, s.load+s.size)
		return errSegment
	}
	return nil
}

// checkChip compares an image header with the chip. The second stage checks its
// own header so too, but not for the maximum revision.
func (b *boot) checkChip(h imageHeader, app bool) bool {
	rev := b.in.Revision
	switch {
	case h.chip != b.in.Model.ID:
		b.errorf("boot_comm", "mismatch chip ID, expected %d, found %d", b.in.Model.ID, h.chip)
	case rev < h.minRev:
		b.errorf("boot_comm", "chip revision check failed. Required >= %s, found %s.", h.minRev, rev)
	case app && h.maxRev != 0 && h.maxRev != 0xFFFF && rev > h.maxRev:
		b.errorf("boot_comm", "chip revision check failed. Required <= %s, found %s.", h.maxRev, rev)
	default:
		return true
	}
	return false
}
