package efuse

import (
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// virginMAC is locally administered, so no real chip has it.
var virginMAC = chip.MAC{0x02, 0, 0, 0, 0, 0x01}

// Virgin is what silicon of a revision shows that nobody has burned anything into
// but the factory its identity: for plans and documents without a board. It fails
// for a revision that the chip's fields cannot say.
func Virgin(m chip.Model, rev chip.Revision) (*Snapshot, error) {
	t, err := table.ForRevision(m.Name, rev)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{m: m, t: t}
	for _, b := range t.Blocks() {
		s.blocks = append(s.blocks, hold(b, make([]uint32, b.Words)))
	}
	for i := range m.EFuse.RepeatErrWords {
		s.errs = append(s.errs, ErrorRegister{Name: fmt.Sprintf("REPEAT_ERR%d", i)})
	}
	if m.EFuse.Kind == chip.EFuseESP32 {
		s.errs = append(s.errs, ErrorRegister{Name: "DEC_STATUS"})
	}
	var mac uint64
	for i, b := range virginMAC {
		mac |= uint64(b) << (8 * i)
	}
	s.put("MAC", mac)
	major, minor := uint64(rev/100), uint64(rev%100)
	if m.EFuse.Kind == chip.EFuseESP32 {
		s.put("MAC_CRC", uint64(macCRC(virginMAC)))
		bits := [...]uint64{0, 1, 3, 7}[min(major, 3)]
		s.put("CHIP_VER_REV1", bits&1)
		s.put("CHIP_VER_REV2", bits>>1&1)
		s.apb = uint32(bits>>2) << 31
	} else {
		s.putJoined("WAFER_VERSION_MAJOR", major)
	}
	s.putJoined("WAFER_VERSION_MINOR", minor)
	if got, err := s.revision(); err != nil || got != rev {
		return nil, fmt.Errorf("there is no %s %v: its fields say %v at most", m.Title, rev, got)
	}
	return s, nil
}

// put sets the bits of a field as far as it has them.
func (s *Snapshot) put(name string, v uint64) {
	f, ok := s.t.Field(name)
	if !ok {
		panic("efuse: the table of " + s.m.Name + " has no " + name)
	}
	for i, bit := range f.Bits() {
		if v>>i&1 != 0 {
			s.blocks[f.Block].words[bit/32] |= 1 << (bit % 32)
		}
	}
}

// putJoined is the inverse of joined.
func (s *Snapshot) putJoined(name string, v uint64) {
	lo, ok := s.t.Field(name + "_LO")
	if !ok {
		s.put(name, v)
		return
	}
	s.put(lo.Name, v)
	s.put(name+"_HI", v>>lo.Len())
}

// Block0 gives the words of BLOCK0 as the chip has to show them.
func (e Expectation) Block0() []uint32 {
	if e.p.base == nil {
		return nil
	}
	words, _ := e.state()
	return slices.Clone(words[0])
}
