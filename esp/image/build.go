package image

import (
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Spec describes an image to build. Its zero values are what ESP-IDF writes
// today: DIO, 40 MHz, the hash appended, no revision limit, WP pin disabled.
type Spec struct {
	Chip           chip.ID
	EntryAddr      uint32
	SPIMode        SPIMode // QIO, the zero value, is written as DIO: builds boot in DIO
	SPISpeed       SPISpeed
	SPISize        SPISize
	MinChipRevFull chip.Revision
	MaxChipRevFull chip.Revision // 0: no limit
	NoHash         bool

	// Segments in file order; Offset is ignored. Where a mapped segment would
	// not line up with its flash page, a padding segment goes before it.
	Segments []Segment
	// AppDesc, when not nil, is put before the data of the first segment, whose
	// load address must then be 0x20 modulo the flash page.
	AppDesc *AppDesc
	// Signature, when not nil, is a signature sector to append at the next
	// 4 KiB boundary: 4096 bytes beginning with 0xE7.
	Signature []byte
}

// Build makes a valid image. It exists for tests and demonstrations, which need
// images of their own; products come from ESP-IDF's build.
func Build(s Spec) ([]byte, error) {
	mp, ok := mappings(s.Chip)
	if !ok {
		return nil, fmt.Errorf("image: the mapped address ranges of chip id %d are not known to this build", s.Chip)
	}
	mp = mp.forApp(s.AppDesc)
	if s.SPIMode == SPIModeQIO {
		s.SPIMode = SPIModeDIO
	}
	m := &Image{Header: Header{
		SPIMode: s.SPIMode, SPISpeed: s.SPISpeed, SPISize: s.SPISize,
		EntryAddr: s.EntryAddr, WPPin: WPPinDisabled, ChipID: s.Chip,
		MinChipRevFull: s.MinChipRevFull, MaxChipRevFull: s.MaxChipRevFull,
		HashAppended: !s.NoHash,
	}}
	off := HeaderSize
	add := func(addr uint32, data []byte) {
		off += segmentHeaderSize
		m.Segments = append(m.Segments, Segment{LoadAddr: addr, Data: data, Offset: off})
		off += len(data)
	}
	for i, seg := range s.Segments {
		data := seg.Data
		if i == 0 && s.AppDesc != nil {
			desc, err := s.AppDesc.encode()
			if err != nil {
				return nil, err
			}
			data = append(desc, data...)
		}
		if mp.maps(seg.LoadAddr) {
			want := int(seg.LoadAddr % mp.page)
			page := int(mp.page)
			if (off+segmentHeaderSize)%page != want {
				if i == 0 && s.AppDesc != nil {
					return nil, errAt(HeaderSize, "segments[0].load_addr", "0x%08x does not match offset 0x%x, where the description must be", seg.LoadAddr, descOffset)
				}
				add(0, make([]byte, ((want-off-2*segmentHeaderSize)%page+page)%page))
			}
		}
		add(seg.LoadAddr, data)
	}
	b, err := m.MarshalBinary()
	if err != nil || s.Signature == nil {
		return b, err
	}
	if len(s.Signature) != SectorSize || s.Signature[0] != signatureMagic {
		return nil, errAt(align(len(b), SectorSize), "signature", "it is not a sector of %d bytes that begins with 0x%02x", SectorSize, signatureMagic)
	}
	for len(b)%SectorSize != 0 {
		b = append(b, 0xFF)
	}
	return append(b, s.Signature...), nil
}
