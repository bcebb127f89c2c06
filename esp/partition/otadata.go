package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// OTAState is the state of the application that an OTA entry selects
// (esp_ota_img_states_t).
type OTAState uint32

// States.
const (
	OTANew           OTAState = 0 // first boot to come, with rollback enabled
	OTAPendingVerify OTAState = 1 // first boot begun
	OTAValid         OTAState = 2
	OTAInvalid       OTAState = 3 // not booted again
	OTAAborted       OTAState = 4 // not booted again
	OTAUndefined     OTAState = math.MaxUint32
)

// String is the vendor's name without its prefix.
func (s OTAState) String() string {
	switch s {
	case OTANew:
		return "NEW"
	case OTAPendingVerify:
		return "PENDING_VERIFY"
	case OTAValid:
		return "VALID"
	case OTAInvalid:
		return "INVALID"
	case OTAAborted:
		return "ABORTED"
	case OTAUndefined:
		return "UNDEFINED"
	}
	return fmt.Sprintf("0x%x", uint32(s))
}

// OTAEntry is esp_ota_select_entry_t: one of the two copies of the choice which
// slot boots (esp-facts D.4).
type OTAEntry struct {
	Seq   uint32
	Label [20]byte
	State OTAState
	CRC   uint32 // of Seq alone
}

const otaEntrySize = 32

// NewOTAEntry makes an entry with the right CRC and an erased label, as the
// device writes it.
func NewOTAEntry(seq uint32, state OTAState) OTAEntry {
	e := erasedOTAEntry()
	e.Seq, e.State, e.CRC = seq, state, OTACRC(seq)
	return e
}

func erasedOTAEntry() OTAEntry { return parseOTAEntry(endRow) }

// OTACRC is the CRC-32 of a sequence number's four bytes, started from
// 0xFFFFFFFF as zlib counts.
func OTACRC(seq uint32) uint32 {
	return crc32.Update(math.MaxUint32, crc32.IEEETable, binary.LittleEndian.AppendUint32(nil, seq))
}

// Valid reports whether the bootloader considers the entry.
func (e OTAEntry) Valid() bool {
	return e.Seq != math.MaxUint32 && e.State != OTAInvalid && e.State != OTAAborted && e.CRC == OTACRC(e.Seq)
}

func parseOTAEntry(b []byte) OTAEntry {
	le := binary.LittleEndian
	return OTAEntry{Seq: le.Uint32(b), Label: [20]byte(b[4:24]), State: OTAState(le.Uint32(b[24:])), CRC: le.Uint32(b[28:])}
}

func (e OTAEntry) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(le.AppendUint32(b, e.Seq), e.Label[:]...)
	return le.AppendUint32(le.AppendUint32(b, uint32(e.State)), e.CRC)
}

// OTAData is the content of an otadata partition: an entry at the start of each
// of its two sectors.
type OTAData struct {
	Entries [2]OTAEntry
}

// NewOTAData is the initial state: all 0xFF, so that factory boots, or ota_0
// where there is no factory application. On a chip with flash encryption it must
// be written encrypted: erased flash decrypts to noise.
func NewOTAData() *OTAData {
	return &OTAData{Entries: [2]OTAEntry{erasedOTAEntry(), erasedOTAEntry()}}
}

// ParseOTAData reads the 0x2000 bytes of an otadata partition. Entries need not
// be valid, but outside them all must be 0xFF. Every error is an *Error.
func ParseOTAData(b []byte) (*OTAData, error) {
	if len(b) != OTADataSize {
		return nil, errAt(0, "otadata", "%d bytes are no OTA data: it has 0x%x", len(b), OTADataSize)
	}
	d := &OTAData{}
	for i := range d.Entries {
		sector := b[i*SectorSize : (i+1)*SectorSize]
		d.Entries[i] = parseOTAEntry(sector)
		if j := indexNot(sector[otaEntrySize:], 0xFF); j >= 0 {
			return nil, errAt(i*SectorSize+otaEntrySize+j, "otadata", "0x%02x outside the entries: this is no OTA data, or it is encrypted", sector[otaEntrySize+j])
		}
	}
	return d, nil
}

// MarshalBinary encodes the 0x2000 bytes.
func (d *OTAData) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, OTADataSize)
	for _, e := range d.Entries {
		b = e.append(b)
		b = append(b, bytes.Repeat([]byte{0xFF}, SectorSize-otaEntrySize)...)
	}
	return b, nil
}

// Active gives the index of the entry that the bootloader follows: the valid one
// with the higher sequence number, the first of two equal ones. ok is false when
// none is valid.
func (d *OTAData) Active() (index int, ok bool) {
	a, b := d.Entries[0], d.Entries[1]
	switch {
	case a.Valid() && (!b.Valid() || a.Seq >= b.Seq):
		return 0, true
	case b.Valid():
		return 1, true
	}
	return 0, false
}

// Slot gives the OTA slot that boots, of slots in the partition table. ok is
// false when no entry is valid: then factory boots, or the bootloader searches.
func (d *OTAData) Slot(slots int) (slot int, ok bool) {
	i, ok := d.Active()
	if !ok || slots <= 0 {
		return 0, false
	}
	return int((d.Entries[i].Seq - 1) % uint32(slots)), true
}

// Next gives the entry that makes slot the one to boot, and the sector it goes
// to, as the device's own update would choose them (ESP-IDF
// app_update/esp_ota_ops.c): the smallest sequence number not below the current
// one that means slot, in the sector that is not active.
func (d *OTAData) Next(slot, slots int, state OTAState) (index int, e OTAEntry, err error) {
	if slots < 1 || slots > 16 || slot < 0 || slot >= slots {
		return 0, e, fmt.Errorf("partition: OTA slot %d of %d does not exist", slot, slots)
	}
	active, ok := d.Active()
	if !ok {
		return 0, NewOTAEntry(uint32(slot)+1, state), nil
	}
	n, cur := uint64(slots), uint64(d.Entries[active].Seq)
	seq := (uint64(slot) + 1) % n
	if cur > seq {
		seq += (cur - seq + n - 1) / n * n
	}
	if seq >= math.MaxUint32 {
		return 0, e, fmt.Errorf("partition: the OTA sequence number 0x%x has no successor: erase the OTA data", cur)
	}
	return 1 - active, NewOTAEntry(uint32(seq), state), nil
}
