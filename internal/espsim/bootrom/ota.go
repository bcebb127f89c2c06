package bootrom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
)

// Partition is an app partition.
type Partition struct {
	Name         string // "factory", "test", or "ota_0" to "ota_15", whatever its label
	Offset, Size uint32
}

// Write is what a chip writes to its flash: a sector is erased, and then Data is
// programmed at its start, encrypted already.
type Write struct {
	Sector uint32
	Data   []byte
}

// OTAState is the state of an app in otadata (esp_ota_img_states_t).
type OTAState uint32

// The states.
const (
	OTANew           OTAState = 0 // will boot for the first time
	OTAPendingVerify OTAState = 1 // has booted once and is not confirmed
	OTAValid         OTAState = 2
	OTAInvalid       OTAState = 3 // the app itself refused
	OTAAborted       OTAState = 4 // was not confirmed before the next boot
	OTAUndefined     OTAState = math.MaxUint32
)

// What ESP-IDF's functions in the app refuse with.
var (
	ErrValidate       = errors.New("ESP_ERR_OTA_VALIDATE_FAILED: the partition does not hold an app that this chip can boot")
	ErrSecureVersion  = errors.New("ESP_ERR_OTA_SMALL_SEC_VER: the app's secure version is lower than the fuses'; its partition is erased")
	ErrRollbackFailed = errors.New("ESP_ERR_OTA_ROLLBACK_FAILED: there is no other app to go back to")
	ErrNotFound       = errors.New("ESP_ERR_NOT_FOUND: no such partition, or nothing is known about it")
)

const otaEntryLen = 32

// otaEntry is one of the two otadata entries (esp-facts D.4).
type otaEntry struct {
	seq   uint32
	label [20]byte
	state OTAState
	crc   uint32
}

func parseOTAEntry(raw []byte) otaEntry {
	return otaEntry{seq: le32(raw), label: [20]byte(raw[4:]), state: OTAState(le32(raw[24:])), crc: le32(raw[28:])}
}

func (e otaEntry) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, otaEntryLen), e.seq)
	b = append(b, e.label[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.state))
	return binary.LittleEndian.AppendUint32(b, e.crc)
}

// blank is an entry that counts as erased, whatever its CRC.
func (e otaEntry) blank() bool {
	return e.seq == math.MaxUint32 || e.state == OTAInvalid || e.state == OTAAborted
}

func (e otaEntry) intact() bool { return e.crc == seqCRC(e.seq) }

func (e otaEntry) valid() bool { return !e.blank() && e.intact() }

// unset is an entry that was never written, or only in part.
func (e otaEntry) unset() bool { return e.seq == math.MaxUint32 || !e.intact() }

func seqCRC(seq uint32) uint32 {
	return crc32.Update(math.MaxUint32, crc32.IEEETable, binary.LittleEndian.AppendUint32(nil, seq))
}

// otaData is both entries, where they lie.
type otaData struct {
	at partition
	e  [2]otaEntry
}

func (b *boot) readOTAData(p partition) (otaData, error) {
	d := otaData{at: p}
	for i := range d.e {
		raw, err := b.flash.read(p.offset+uint32(i)*sectorSize, otaEntryLen)
		if err != nil {
			return d, err
		}
		d.e[i] = parseOTAEntry(raw)
	}
	return d, nil
}

// write gives the flash write for entry i as it stands.
func (b *boot) write(d otaData, i int) Write {
	at := d.at.offset + uint32(i)*sectorSize
	return Write{Sector: at, Data: b.flash.stored(at, d.e[i].bytes())}
}

// active is the entry that counts, of those that ok admits; -1 if none does.
func (d otaData) active(ok func(otaEntry) bool) int {
	first, second := d.e[0].valid() && ok(d.e[0]), d.e[1].valid() && ok(d.e[1])
	switch {
	case first && (!second || d.e[0].seq >= d.e[1].seq):
		return 0
	case second:
		return 1
	}
	return -1
}

func anyEntry(otaEntry) bool { return true }

// slotOf is the OTA slot that an entry selects.
func (t partitions) slotOf(e otaEntry) int { return int((e.seq - 1) % uint32(t.apps)) }

// selectApp picks where to start looking for an app, by otadata (ESP-IDF
// bootloader_utility.c, bootloader_utility_get_selected_boot_partition).
func (b *boot) selectApp(t partitions) int {
	if t.otaData.offset == 0 {
		return factoryIndex
	}
	if t.otaData.size < 2*sectorSize {
		b.errorf("boot", "ota_info partition size %d is too small (minimum %d bytes)", t.otaData.size, 2*sectorSize)
		return invalidIndex
	}
	d, err := b.readOTAData(t.otaData)
	if err != nil {
		b.errorf("boot", "bootloader_mmap(0x%x, 0x%x) failed", t.otaData.offset, t.otaData.size)
		return invalidIndex
	}
	if b.in.Rollback { // an app that was not confirmed since its first boot
		for i := range d.e {
			if d.e[i].state == OTAPendingVerify {
				d.e[i].state = OTAAborted
				b.writes = append(b.writes, b.write(d, i))
			}
		}
	}
	unset := d.e[0].unset() && d.e[1].unset()
	admit := anyEntry
	switch {
	case b.in.AntiRollback:
		b.infof("boot", "Enabled a check secure version of app for anti rollback")
		b.infof("boot", "Secure version (from eFuse) = %d", b.in.SecureVersion)
		if unset || t.apps == 0 {
			b.infof("boot", "otadata[0..1] in initial state")
			b.initial = true
			return factoryIndex
		}
		admit = func(e otaEntry) bool { return b.newEnough(t.ota[t.slotOf(e)]) }
	case d.e[0].blank() && d.e[1].blank() || t.apps == 0:
		if t.factory.offset != 0 {
			b.infof("boot", "Defaulting to factory image")
			return factoryIndex
		}
		b.infof("boot", "No factory image, trying OTA 0")
		b.initial = b.in.Rollback && unset
		return 0
	}
	if i := d.active(admit); i >= 0 {
		slot := t.slotOf(d.e[i])
		if b.in.Rollback && d.e[i].state == OTANew {
			d.e[i].state = OTAPendingVerify
			b.writes = append(b.writes, b.write(d, i))
		}
		if b.in.AntiRollback && d.e[i].state == OTAValid {
			b.raise(t.ota[slot])
		}
		return slot
	}
	if t.factory.offset != 0 {
		b.errorf("boot", "ota data partition invalid, falling back to factory")
	} else {
		b.errorf("boot", "ota data partition invalid and no factory, will try all partitions")
	}
	return factoryIndex
}

// settle is for the first boot of a chip without a factory app: otadata gets an
// entry for the slot that was loaded.
func (b *boot) settle(t partitions, slot int) {
	if slot < 0 || !b.initial {
		return
	}
	d := otaData{at: t.otaData}
	d.e[0] = otaEntry{seq: uint32(slot) + 1, state: OTAValid, crc: seqCRC(uint32(slot) + 1)}
	for i := range d.e[0].label {
		d.e[0].label[i] = 0xFF
	}
	b.writes = append(b.writes, b.write(d, 0))
	b.infof("boot", "Set actual ota_seq=%d in otadata[0]", d.e[0].seq)
	if b.in.AntiRollback {
		b.raise(t.ota[slot])
	}
}

// descriptor is what the boot needs of esp_app_desc_t (esp-facts D.2).
type descriptor struct {
	secureVersion    uint32
	version, project string
}

const descriptorMagic = 0xABCD5432

// describe reads the descriptor of the app in a partition.
func (b *boot) describe(p partition) (descriptor, bool) {
	raw, err := b.flash.read(p.offset+headerLen+segmentLen, 0x70)
	if err != nil || p.size == 0 || le32(raw) != descriptorMagic {
		return descriptor{}, false
	}
	text := func(f []byte) string {
		if n := slices.Index(f, 0); n >= 0 {
			f = f[:n]
		}
		return printable(f)
	}
	return descriptor{secureVersion: le32(raw[4:]), version: text(raw[0x10:0x30]), project: text(raw[0x30:0x50])}, true
}

// newEnough is the anti-rollback check.
func (b *boot) newEnough(p partition) bool {
	d, ok := b.describe(p)
	return ok && d.secureVersion >= b.in.SecureVersion
}

// raise has the secure version burned that the app in p has.
func (b *boot) raise(p partition) {
	if d, ok := b.describe(p); ok && d.secureVersion > b.in.SecureVersion {
		b.burn = max(b.burn, d.secureVersion)
	}
}

// Apps is the running app's view of the app partitions and of otadata, with
// ESP-IDF's functions upon them (components/app_update/esp_ota_ops.c). It reads
// the flash as it was given and writes nothing: the caller does the writes.
type Apps struct {
	b       *boot
	t       partitions
	running Partition
	d       otaData
}

// OpenApps looks at the flash of a chip on which an app runs.
func OpenApps(in Input, running Partition) (*Apps, error) {
	if in.PartitionTable == 0 {
		in.PartitionTable = DefaultPartitionTable
	}
	b := newBoot(in)
	head, err := b.flash.read(in.Model.BootloaderOffset, headerLen)
	if err != nil {
		return nil, err
	}
	a := &Apps{b: b, running: running}
	var ok bool
	if a.t, _, ok = b.parseTable(parseHeader(head)); !ok {
		return nil, fmt.Errorf("%w: the partition table: %s", ErrNotFound, b.out.String())
	}
	if a.t.otaData.size < 2*sectorSize {
		return nil, fmt.Errorf("%w: otadata", ErrNotFound)
	}
	a.d, err = b.readOTAData(a.t.otaData)
	return a, err
}

func otaName(slot int) string { return fmt.Sprintf("ota_%d", slot) }

// slot is the number of an OTA partition.
func (a *Apps) slot(p Partition) (int, bool) {
	for i := range a.t.count() {
		if q := a.t.ota[i]; p == (Partition{otaName(i), q.offset, q.size}) {
			return i, true
		}
	}
	return 0, false
}

// count is how many OTA slots follow each other from ota_0: more are not seen.
func (t partitions) count() int {
	n := 0
	for n < maxOTASlots && t.ota[n].size != 0 {
		n++
	}
	return n
}

// Read is esp_partition_read of a partition that is encrypted: n bytes from a flash
// address, through the chip's decryption.
func (a *Apps) Read(addr, n uint32) ([]byte, error) { return a.b.flash.read(addr, n) }

// Next is esp_ota_get_next_update_partition: the slot after the running one.
func (a *Apps) Next() (Partition, error) {
	n := a.t.count()
	if n == 0 {
		return Partition{}, ErrNotFound
	}
	next := 0
	if i, ok := a.slot(a.running); ok {
		next = (i + 1) % n
	}
	return Partition{otaName(next), a.t.ota[next].offset, a.t.ota[next].size}, nil
}

// State is esp_ota_get_state_partition.
func (a *Apps) State(p Partition) (OTAState, error) {
	slot, ok := a.slot(p)
	if !ok {
		return 0, ErrNotFound
	}
	for _, e := range a.d.e {
		if e.intact() && int((e.seq-1)%uint32(a.t.count())) == slot {
			return e.state, nil
		}
	}
	return 0, ErrNotFound
}

// SetBoot is esp_ota_set_boot_partition for an OTA slot. The text is what the
// check logged; an error wraps one of the errors above.
func (a *Apps) SetBoot(p Partition) (writes []Write, text string, err error) {
	slot, ok := a.slot(p)
	if !ok {
		return nil, "", ErrNotFound
	}
	at := a.t.ota[slot]
	if _, ok := a.b.verifyApp(at.offset, at.size); !ok {
		return nil, a.b.out.String(), ErrValidate
	}
	text = a.b.out.String()
	if a.b.in.AntiRollback && !a.b.newEnough(at) {
		for s := at.offset; s < at.offset+at.size; s += sectorSize {
			writes = append(writes, Write{Sector: s})
		}
		return writes, text, ErrSecureVersion
	}
	n := uint32(a.t.count())
	i, seq := 0, uint32(slot)+1
	if now := a.d.active(anyEntry); now >= 0 {
		i, seq = now, a.d.e[now].seq
		if int((seq-1)%n) != slot {
			i = 1 - now
			next := (uint32(slot) + 1) % n
			for next < seq {
				next += n
			}
			seq = next
		}
	}
	a.d.e[i].seq, a.d.e[i].crc, a.d.e[i].state = seq, seqCRC(seq), OTAUndefined
	if a.b.in.Rollback {
		a.d.e[i].state = OTANew
	}
	return []Write{a.b.write(a.d, i)}, text, nil
}

// MarkValid is esp_ota_mark_app_valid_cancel_rollback. The number is the secure
// version to burn, or 0.
func (a *Apps) MarkValid() (writes []Write, burn uint32) {
	i := a.d.active(anyEntry)
	if i < 0 || a.d.e[i].state == OTAValid {
		return nil, 0
	}
	a.d.e[i].state = OTAValid
	if a.b.in.AntiRollback {
		a.b.raise(partition{a.running.Offset, a.running.Size})
	}
	return []Write{a.b.write(a.d, i)}, a.b.burn
}

// MarkInvalid is esp_ota_mark_app_invalid_rollback: the next boot takes the app
// of the other entry, or the factory app.
func (a *Apps) MarkInvalid() ([]Write, error) {
	i := a.d.active(anyEntry)
	if i < 0 {
		return nil, ErrRollbackFailed
	}
	var to partition
	switch other := a.d.e[1-i]; {
	case other.valid():
		to = a.t.ota[int((other.seq-1)%uint32(a.t.count()))]
	case !a.b.in.AntiRollback:
		to = a.t.factory
	}
	if to.size == 0 {
		return nil, ErrRollbackFailed
	}
	if _, ok := a.b.verifyApp(to.offset, to.size); !ok || a.b.in.AntiRollback && !a.b.newEnough(to) {
		return nil, ErrRollbackFailed
	}
	a.d.e[i].state = OTAInvalid
	return []Write{a.b.write(a.d, i)}, nil
}
