package efuse

import (
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Identity is who a chip says it is.
type Identity struct {
	MAC           chip.MAC      `json:"mac"`
	Revision      chip.Revision `json:"revision"`
	Package       int           `json:"package"`
	BlockRevision chip.Revision `json:"block_revision"` // of the factory data; 0 on the ESP32
}

// Identity decodes MAC, revision and package (esp-facts B.8). It is ErrIdentity
// if the MAC's CRC (ESP32) is wrong or the address is none that a factory gives.
func (s *Snapshot) Identity() (Identity, error) {
	var id Identity
	mac := s.must("MAC")
	for i := range id.MAC {
		id.MAC[i] = byte(mac >> (8 * i))
	}
	if id.MAC == (chip.MAC{}) || id.MAC[0]&1 != 0 {
		return Identity{}, fmt.Errorf("MAC %s is no unicast address: %w", id.MAC, ErrIdentity)
	}
	var err error
	if id.Revision, err = s.revision(); err != nil {
		return Identity{}, err
	}
	if s.m.EFuse.Kind == chip.EFuseRS {
		id.BlockRevision = s.blockRevision()
		id.Package = int(s.must("PKG_VERSION"))
		return id, nil
	}
	if crc := macCRC(id.MAC); uint64(crc) != s.must("MAC_CRC") {
		return Identity{}, fmt.Errorf("MAC %s has CRC 0x%02x, the eFuses say 0x%02x: %w", id.MAC, crc, s.must("MAC_CRC"), ErrIdentity)
	}
	id.Package = int(s.must("CHIP_PACKAGE") | s.must("CHIP_PACKAGE_4BIT")<<3)
	return id, nil
}

// revision decodes the silicon's revision (esp-facts B.8). The fields that say it are
// the same in every table of a chip.
func (s *Snapshot) revision() (chip.Revision, error) {
	if s.m.EFuse.Kind == chip.EFuseRS {
		minor := s.joined("WAFER_VERSION_MINOR")
		// Some silicon of the first revision has another number in its fields.
		if q := s.m.EFuse.FirstByBlockRevision; q != 0 && minor&7 == 0 && s.blockRevision() == q {
			return 0, nil
		}
		return chip.Revision(100*s.joined("WAFER_VERSION_MAJOR") + minor), nil
	}
	major, ok := map[uint64]chip.Revision{0: 0, 1: 1, 3: 2, 7: 3}[s.must("CHIP_VER_REV1")|s.must("CHIP_VER_REV2")<<1|uint64(s.apb>>31)<<2]
	if !ok {
		return 0, fmt.Errorf("revision bits REV1 %d, REV2 %d, APB register 0x%08x: %w", s.must("CHIP_VER_REV1"), s.must("CHIP_VER_REV2"), s.apb, ErrIdentity)
	}
	return 100*major + chip.Revision(s.must("WAFER_VERSION_MINOR")), nil
}

func (s *Snapshot) blockRevision() chip.Revision {
	return chip.Revision(100*s.joined("BLK_VERSION_MAJOR") + s.joined("BLK_VERSION_MINOR"))
}

// joined reads a field that some tables split into X_LO and X_HI.
func (s *Snapshot) joined(name string) uint64 {
	if f, ok := s.t.Field(name); ok {
		return s.value(f)
	}
	lo, ok := s.t.Field(name + "_LO")
	if !ok {
		return s.must(name) // says which field is missing
	}
	return s.value(lo) | s.must(name+"_HI")<<lo.Len()
}

// macCRC is the CRC-8 of the ESP32's MAC: polynomial 0x8C reflected, initial 0.
func macCRC(mac chip.MAC) (crc byte) {
	for _, b := range mac {
		crc ^= b
		for range 8 {
			low := crc & 1
			crc >>= 1
			if low != 0 {
				crc ^= 0x8C
			}
		}
	}
	return crc
}
