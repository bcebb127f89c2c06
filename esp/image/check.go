package image

import (
	"errors"
	"fmt"
	"math"

	"github.com/provisiond/provisiond/esp/chip"
)

// What CheckFor refuses. Test with errors.Is.
var (
	ErrWrongChip = errors.New("image is for another chip")
	ErrRevision  = errors.New("chip revision is outside the image's limits")
	ErrMapping   = errors.New("mapped segment does not line up with its flash page")
)

// window is a range of load addresses that the chip maps from flash.
type window struct{ low, high uint32 }

// mapping says which segments of a chip's images are mapped instead of loaded.
type mapping struct {
	page    uint32
	windows []window
}

// mappings holds SOC_DROM and SOC_IROM of ESP-IDF soc/<chip>/include/soc/soc.h.
func mappings(id chip.ID) (mapping, bool) {
	const page = 64 << 10
	switch id {
	case chip.IDESP32:
		return mapping{page, []window{{0x3F400000, 0x3F800000}, {0x400D0000, 0x40400000}}}, true
	case chip.IDESP32S2:
		return mapping{page, []window{{0x3F000000, 0x3FF80000}, {0x40080000, 0x40800000}}}, true
	case chip.IDESP32C3:
		return mapping{page, []window{{0x3C000000, 0x3C800000}, {0x42000000, 0x42800000}}}, true
	case chip.IDESP32S3:
		return mapping{page, []window{{0x3C000000, 0x3E000000}, {0x42000000, 0x44000000}}}, true
	case chip.IDESP32C2:
		return mapping{page, []window{{0x3C000000, 0x3C400000}, {0x42000000, 0x42400000}}}, true
	case chip.IDESP32C6, chip.IDESP32H2:
		return mapping{page, []window{{0x42000000, 0x43000000}}}, true
	case chip.IDESP32C5, chip.IDESP32C61:
		return mapping{page, []window{{0x42000000, 0x44000000}}}, true
	case chip.IDESP32P4:
		return mapping{page, []window{{0x40000000, 0x44000000}}}, true
	}
	return mapping{}, false
}

// forApp is the mapping with the page that an application was built for: some chips
// have several sizes (esp-facts D.2).
func (m mapping) forApp(d *AppDesc) mapping {
	if d != nil && d.MMUPageSize >= 13 && d.MMUPageSize <= 16 {
		m.page = 1 << d.MMUPageSize
	}
	return m
}

func (m mapping) maps(addr uint32) bool {
	for _, w := range m.windows {
		if addr >= w.low && addr < w.high {
			return true
		}
	}
	return false
}

// CheckFor checks the image against a chip, as its boot code will: the chip id,
// the revision limits (skipped when rev is RevisionUnknown) and that mapped
// segments sit at an offset congruent to their load address modulo the flash
// page of 64 KB, or the smaller one that the description names. The image is taken to be written to an address that is a
// multiple of the page, as application partitions are; bootloaders have no
// mapped segments.
//
// The upper limit holds for applications only (ESP-IDF
// bootloader_common_loader.c). A unit whose eFuse DISABLE_WAFER_VERSION_MAJOR is
// set would ignore it; CheckFor does not know of that bit and refuses.
func (m *Image) CheckFor(c chip.Model, rev chip.Revision) error {
	if m.Header.ChipID != c.ID {
		name := fmt.Sprintf("chip id %d", m.Header.ChipID)
		if other, err := chip.ByID(m.Header.ChipID); err == nil {
			name = other.Title
		}
		return fmt.Errorf("%w: it is for %s, and the chip is %s: take the build for %s", ErrWrongChip, name, c.Title, c.Title)
	}
	if rev != RevisionUnknown {
		if low := m.MinRevision(); rev < low {
			return fmt.Errorf("%w: the chip is %s, the image needs %s or newer", ErrRevision, rev, low)
		}
		if high, ok := m.MaxRevision(); ok && m.AppDesc != nil && rev > high {
			return fmt.Errorf("%w: the chip is %s, the image allows %s at most", ErrRevision, rev, high)
		}
	}
	mp, ok := mappings(c.ID)
	if !ok {
		return fmt.Errorf("image: the mapped address ranges of %s are not known to this build", c.Title)
	}
	mp = mp.forApp(m.AppDesc)
	for i, s := range m.Segments {
		if mp.maps(s.LoadAddr) && uint32(s.Offset)%mp.page != s.LoadAddr%mp.page {
			return fmt.Errorf("%w: segments[%d] has load address 0x%08x and lies at offset 0x%x", ErrMapping, i, s.LoadAddr, s.Offset)
		}
	}
	return nil
}

// MinRevision is the oldest silicon that the image runs on. Builds before the
// full revision fields came have only min_chip_rev: a major revision, on
// ESP32-C3 a minor one.
func (m *Image) MinRevision() chip.Revision {
	h := m.Header
	if h.MinChipRevFull != 0 && h.MinChipRevFull != math.MaxUint16 {
		return h.MinChipRevFull
	}
	if h.ChipID == chip.IDESP32C3 {
		return chip.Revision(h.MinChipRev)
	}
	return chip.Revision(h.MinChipRev) * 100
}

// MaxRevision is the newest silicon that the image allows; ok is false when it
// sets no limit.
func (m *Image) MaxRevision() (limit chip.Revision, ok bool) {
	v := m.Header.MaxChipRevFull
	return v, v != 0 && v != math.MaxUint16
}

// LooksEncrypted is a guess for refusals: it reports whether b is probably
// ciphertext, that is, no plausible image header and bytes as even as noise.
// One ciphertext in 256 begins with the magic 0xE9, so the magic alone decides
// nothing: the rest of the header is looked at too. The guess needs 256 bytes
// and cannot tell ciphertext from compressed data. It works for any kind of
// file, partition tables as well as images.
func LooksEncrypted(b []byte) bool {
	if _, _, err := parseHeader(b); err == nil {
		return false
	}
	b = b[:min(len(b), SectorSize)]
	n := float64(len(b))
	if n < 256 {
		return false
	}
	var count [256]float64
	for _, v := range b {
		count[v]++
	}
	entropy := 0.0
	for _, c := range count {
		if c > 0 {
			entropy -= c / n * math.Log2(c/n)
		}
	}
	// n even bytes have about 8 - 255/(2 n ln 2) bits (Miller, Madow). ESP32
	// ciphertext of a constant plaintext repeats each block once, which halves
	// n. A quarter of a bit is the margin for chance.
	return entropy > 8-255/(n*math.Ln2)-0.25
}
