package chip

import "slices"

// RegMatch is a condition on a register: these bits have these values.
type RegMatch struct {
	Addr, Mask, Value uint32
}

// PowerCase is what a chip needs before SPI_ATTACH when all conditions hold.
type PowerCase struct {
	When   []RegMatch
	Writes []RegWrite
}

// FlashPower lists what silicon needs whose loader leaves the flash without supply;
// the first case that fits is written, most chips have none. It takes register
// reads and writes, so it is out of reach in Secure Download Mode (esp-facts A.9,
// H 10).
func (m Model) FlashPower() []PowerCase {
	out := slices.Clone(m.flashPower)
	for i := range out {
		out[i].When, out[i].Writes = slices.Clone(out[i].When), slices.Clone(out[i].Writes)
	}
	return out
}
