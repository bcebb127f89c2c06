package chip

import "slices"

// flashPower says how the loader's flash gets its supply.
type flashPower struct {
	revisions []Revision // silicon whose loader leaves the flash without it
	on        []RegWrite // the sequence that switches it on
	// byROM names a fuse; where it is burned the loader of revision byROMSince
	// switches the flash on by itself, and release is written in place of on.
	byROM      string
	byROMSince Revision
	release    []RegWrite
}

// FlashPower gives the writes that a chip needs before SPI_ATTACH, because its
// loader leaves the flash without supply; none for most silicon. byROM says that
// FlashPowerFuse is burned. WRITE_REG does it, so it is out of reach in Secure
// Download Mode (esp-facts A.9, H 10).
func (m Model) FlashPower(rev Revision, byROM bool) []RegWrite {
	p := m.flashPower
	switch {
	case !slices.Contains(p.revisions, rev):
		return nil
	case byROM && rev >= p.byROMSince:
		return slices.Clone(p.release)
	}
	return slices.Clone(p.on)
}

// FlashPowerFuse names the fuse that makes the loader of some silicon switch the
// flash on by itself, "" if there is none.
func (m Model) FlashPowerFuse() string { return m.flashPower.byROM }
