// Package partition owns the partition table and the OTA selection data of
// ESP-IDF: parse, check, build.
//
// Parse accepts what the chip's boot code accepts and the vendor's generator
// can have written; what parses re-encodes to the same bytes. Check holds a
// table against a flash chip. Encrypted says which regions the host must
// encrypt, by the rules of the chip's software.
//
// Sources: esp-facts D.1, D.3, D.4; ESP-IDF partition_table/gen_esp32part.py,
// bootloader_support/include/esp_flash_partitions.h, src/flash_partitions.c,
// esp_partition/partition.c.
package partition

import (
	"bytes"
	"crypto/md5" // #nosec G501 -- the format's own checksum against accidents
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Sizes of the format, in bytes.
const (
	SectorSize = 0x1000 // what the table occupies in flash
	TableSize  = 0xC00  // what the vendor's generator writes
	RowSize    = 32
	// MaxRows counts the MD5 row: the boot code wants an end marker within TableSize.
	MaxRows = TableSize/RowSize - 1
	// LabelSize is the longest label.
	LabelSize = 16
	// AppAlign and DataAlign are the alignments of offsets.
	AppAlign  = 0x10000
	DataAlign = 0x1000
	// OTADataSize is the size of an otadata partition: two sectors.
	OTADataSize = 2 * SectorSize
)

var (
	rowMagic = [2]byte{0xAA, 0x50}
	md5Magic = append([]byte{0xEB, 0xEB}, bytes.Repeat([]byte{0xFF}, 14)...)
	endRow   = bytes.Repeat([]byte{0xFF}, RowSize)
)

// Type is the first word of what a partition holds.
type Type uint8

// Types. 0x40 to 0xFE are for applications to define.
const (
	TypeApp            Type = 0x00
	TypeData           Type = 0x01
	TypeBootloader     Type = 0x02
	TypePartitionTable Type = 0x03
)

// String is the name in a partition CSV, or a hexadecimal number.
func (t Type) String() string {
	switch t {
	case TypeApp:
		return "app"
	case TypeData:
		return "data"
	case TypeBootloader:
		return "bootloader"
	case TypePartitionTable:
		return "partition_table"
	}
	return fmt.Sprintf("0x%02x", uint8(t))
}

// Subtype is the second word; its meaning depends on the type.
type Subtype uint8

// Subtypes of TypeApp.
const (
	AppFactory Subtype = 0x00
	AppOTA0    Subtype = 0x10 // AppOTA0+n is slot n, up to 15
	AppOTA15   Subtype = 0x1F
	AppTest    Subtype = 0x20
	AppTEE0    Subtype = 0x30
	AppTEE1    Subtype = 0x31
)

// Subtypes of TypeData.
const (
	DataOTA       Subtype = 0x00
	DataPHY       Subtype = 0x01
	DataNVS       Subtype = 0x02
	DataCoredump  Subtype = 0x03
	DataNVSKeys   Subtype = 0x04
	DataEFuse     Subtype = 0x05
	DataUndefined Subtype = 0x06
	DataESPHTTPD  Subtype = 0x80
	DataFAT       Subtype = 0x81
	DataSPIFFS    Subtype = 0x82
	DataLittleFS  Subtype = 0x83
	DataTEEOTA    Subtype = 0x90
)

// Subtypes of TypeBootloader and TypePartitionTable.
const (
	SubtypePrimary  Subtype = 0x00 // the one that boots: its place is fixed
	SubtypeOTA      Subtype = 0x01
	SubtypeRecovery Subtype = 0x02 // bootloader only
)

// Flags are the bits of a row's last word. Unknown ones are kept.
type Flags uint32

// Flags.
const (
	FlagEncrypted Flags = 1 << 0
	FlagReadonly  Flags = 1 << 1
)

// String lists the flags as a CSV does, separated by colons.
func (f Flags) String() string {
	var names []string
	if f&FlagEncrypted != 0 {
		names = append(names, "encrypted")
	}
	if f&FlagReadonly != 0 {
		names = append(names, "readonly")
	}
	if rest := f &^ (FlagEncrypted | FlagReadonly); rest != 0 {
		names = append(names, fmt.Sprintf("0x%x", uint32(rest)))
	}
	return strings.Join(names, ":")
}

// Entry is one row: esp_partition_info_t.
type Entry struct {
	Type    Type
	Subtype Subtype
	Offset  uint32 // in flash
	Size    uint32
	Label   string // at most 16 bytes
	Flags   Flags
}

// End is the first address after the partition. It may be beyond 32 bits.
func (e Entry) End() uint64 { return uint64(e.Offset) + uint64(e.Size) }

// Is reports whether the entry has the type and subtype.
func (e Entry) Is(t Type, s Subtype) bool { return e.Type == t && e.Subtype == s }

// IsOTA reports whether the entry is one of the slots ota_0 to ota_15.
func (e Entry) IsOTA() bool {
	return e.Type == TypeApp && e.Subtype >= AppOTA0 && e.Subtype <= AppOTA15
}

// SubtypeName is the subtype's name in a partition CSV, or a hexadecimal number.
func (e Entry) SubtypeName() string {
	if e.IsOTA() {
		return fmt.Sprintf("ota_%d", e.Subtype-AppOTA0)
	}
	if n, ok := subtypeNames[e.Type][e.Subtype]; ok {
		return n
	}
	return fmt.Sprintf("0x%02x", uint8(e.Subtype))
}

var subtypeNames = map[Type]map[Subtype]string{
	TypeApp: {AppFactory: "factory", AppTest: "test", AppTEE0: "tee_0", AppTEE1: "tee_1"},
	TypeData: {
		DataOTA: "ota", DataPHY: "phy", DataNVS: "nvs", DataCoredump: "coredump", DataNVSKeys: "nvs_keys",
		DataEFuse: "efuse", DataUndefined: "undefined", DataESPHTTPD: "esphttpd", DataFAT: "fat",
		DataSPIFFS: "spiffs", DataLittleFS: "littlefs", DataTEEOTA: "tee_ota",
	},
	TypeBootloader:     {SubtypePrimary: "primary", SubtypeOTA: "ota", SubtypeRecovery: "recovery"},
	TypePartitionTable: {SubtypePrimary: "primary", SubtypeOTA: "ota"},
}

// String names the entry for messages.
func (e Entry) String() string {
	return fmt.Sprintf("%q (%s, %s, 0x%x..0x%x)", e.Label, e.Type, e.SubtypeName(), e.Offset, e.End())
}

// Encrypted reports whether what the host writes to the partition must be
// encrypted on a chip with flash encryption (esp-facts D.1): applications, OTA
// selection data, NVS keys and copies of bootloader and table always, others by
// their flag. An nvs partition never is, whatever its flag says: NVS has its own
// encryption.
func Encrypted(e Entry) bool {
	switch e.Type {
	case TypeApp, TypeBootloader, TypePartitionTable:
		return true
	case TypeData:
		switch e.Subtype {
		case DataOTA, DataNVSKeys, DataTEEOTA:
			return true
		case DataNVS:
			return false
		}
	}
	return e.Flags&FlagEncrypted != 0
}

// Table is a partition table.
type Table struct {
	Entries []Entry
	// HasMD5 says whether the MD5 row is there. ESP-IDF writes one unless
	// CONFIG_PARTITION_TABLE_MD5 is off; an application built with the option
	// does not start on a table without the row.
	HasMD5 bool

	size int // bytes of the encoding
}

// New makes a table with an MD5 row.
func New(entries ...Entry) *Table {
	return &Table{Entries: slices.Clone(entries), HasMD5: true, size: TableSize}
}

// Error says which byte of a table is wrong.
type Error struct {
	Offset int // in the table
	Field  string
	Msg    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("partition table: %s at offset 0x%x: %s", e.Field, e.Offset, e.Msg)
}

func errAt(off int, field, format string, args ...any) error {
	return &Error{Offset: off, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// Parse reads a table: rows, at most one MD5 row after them, an end marker of
// 0xFF, and nothing but 0xFF up to the end of b. b may be a file (0xC00 bytes)
// or the whole sector of 0x1000. Every error is an *Error.
func Parse(b []byte) (*Table, error) {
	if len(b) == 0 || len(b)%RowSize != 0 || len(b) > SectorSize {
		return nil, errAt(0, "length", "%d bytes are no partition table: it is a multiple of %d, at most 0x%x", len(b), RowSize, SectorSize)
	}
	t := &Table{size: len(b)}
	for off := 0; off < len(b); off += RowSize {
		row := b[off : off+RowSize]
		switch {
		case bytes.Equal(row, endRow):
			if i := indexNot(b[off:], 0xFF); i >= 0 {
				return nil, errAt(off+i, "end", "0x%02x after the end marker", b[off+i])
			}
			return t, nil
		case off/RowSize == MaxRows:
			return nil, errAt(off, "end", "there is no end marker within 0x%x bytes", TableSize)
		case t.HasMD5:
			return nil, errAt(off, "end", "a row follows the MD5 row")
		case [2]byte(row) == rowMagic:
			e, err := parseRow(row, off)
			if err != nil {
				return nil, err
			}
			t.Entries = append(t.Entries, e)
		case row[0] == md5Magic[0] && row[1] == md5Magic[1]:
			if !bytes.Equal(row[:16], md5Magic) {
				return nil, errAt(off+2, "md5", "the 14 bytes before the MD5 are not 0xFF")
			}
			if want := md5.Sum(b[:off]); !bytes.Equal(row[16:], want[:]) { // #nosec G401 -- see the import
				return nil, errAt(off+16, "md5", "%x… is stored, the rows give %x…: the table is damaged or was edited", row[16:20], want[:4])
			}
			t.HasMD5 = true
		default:
			return nil, errAt(off, "magic", "%02x %02x is no row: this is no partition table, or it is encrypted", row[0], row[1])
		}
	}
	return nil, errAt(len(b), "end", "there is no end marker: the file is cut off")
}

func parseRow(row []byte, off int) (Entry, error) {
	le := binary.LittleEndian
	label, rest, _ := bytes.Cut(row[12:28], []byte{0})
	if indexNot(rest, 0) >= 0 {
		return Entry{}, errAt(off+12, "label", "bytes follow the end of %q", label)
	}
	if !printable(string(label)) {
		return Entry{}, errAt(off+12, "label", "%q is not printable ASCII", label)
	}
	return Entry{
		Type: Type(row[2]), Subtype: Subtype(row[3]),
		Offset: le.Uint32(row[4:]), Size: le.Uint32(row[8:]),
		Label: string(label), Flags: Flags(le.Uint32(row[28:])),
	}, nil
}

// printable reports whether s can be shown anywhere: labels end up in messages,
// logs and on operators' screens.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7E })
}

// indexNot gives the index of the first byte that is not v, or -1.
func indexNot(b []byte, v byte) int {
	return slices.IndexFunc(b, func(x byte) bool { return x != v })
}

// MarshalBinary encodes the table: what Parse accepted gives the same bytes, and
// a new table has 0xC00 of them.
func (t *Table) MarshalBinary() ([]byte, error) {
	size := t.size
	if size == 0 {
		size = TableSize
	}
	b := make([]byte, 0, size)
	for _, e := range t.Entries {
		if len(e.Label) > LabelSize || !printable(e.Label) {
			return nil, errAt(len(b)+12, "label", "%q is not up to %d characters of printable ASCII", e.Label, LabelSize)
		}
		b = append(b, rowMagic[0], rowMagic[1], byte(e.Type), byte(e.Subtype))
		b = binary.LittleEndian.AppendUint32(b, e.Offset)
		b = binary.LittleEndian.AppendUint32(b, e.Size)
		b = append(b, e.Label...)
		b = append(b, make([]byte, LabelSize-len(e.Label))...)
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Flags))
	}
	if t.HasMD5 {
		sum := md5.Sum(b) // #nosec G401 -- see the import
		b = append(append(b, md5Magic...), sum[:]...)
	}
	if len(b) > min(MaxRows*RowSize, size-RowSize) {
		return nil, errAt(len(b), "end", "%d rows leave no room for the end marker within 0x%x bytes", len(b)/RowSize, min(size, TableSize))
	}
	return append(b, bytes.Repeat([]byte{0xFF}, size-len(b))...), nil
}

// Sector encodes the table as the whole flash sector that it occupies.
func (t *Table) Sector() ([]byte, error) {
	b, err := t.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return append(b, bytes.Repeat([]byte{0xFF}, SectorSize-len(b))...), nil
}

// Find gives the entry with the label.
func (t *Table) Find(label string) (Entry, bool) {
	return t.find(func(e Entry) bool { return e.Label == label })
}

// At gives the entry that contains the flash address.
func (t *Table) At(addr uint32) (Entry, bool) {
	return t.find(func(e Entry) bool { return addr >= e.Offset && uint64(addr) < e.End() })
}

func (t *Table) find(match func(Entry) bool) (Entry, bool) {
	i := slices.IndexFunc(t.Entries, match)
	if i < 0 {
		return Entry{}, false
	}
	return t.Entries[i], true
}

// OTASlots is the number of ota_n applications.
func (t *Table) OTASlots() int {
	n := 0
	for _, e := range t.Entries {
		if e.IsOTA() {
			n++
		}
	}
	return n
}

// Check holds the table against a flash of flashSize bytes, with the table
// itself at tableOffset. It reports everything that is wrong, joined.
func (t *Table) Check(flashSize, tableOffset uint32) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("partition table: "+format, args...))
	}
	tableEnd := uint64(tableOffset) + SectorSize
	if tableOffset%SectorSize != 0 || tableEnd > uint64(flashSize) {
		bad("its own offset 0x%x is not a multiple of 0x%x inside the flash of 0x%x bytes", tableOffset, SectorSize, flashSize)
	}
	if len(t.Entries) == 0 {
		bad("it has no rows")
	}
	labels := map[string]bool{}
	slots := map[Subtype]bool{}
	otadata := 0
	for _, e := range t.Entries {
		align := uint32(DataAlign)
		if e.Type == TypeApp {
			align = AppAlign
		}
		switch {
		case e.Size == 0:
			bad("%v has no bytes", e)
		case e.Offset%align != 0:
			bad("%v: the offset is not a multiple of 0x%x", e, align)
		case e.Type == TypeApp && e.Size%DataAlign != 0:
			bad("%v: the size is not a multiple of 0x%x", e, DataAlign)
		case e.End() > uint64(flashSize):
			bad("%v ends beyond the flash of 0x%x bytes", e, flashSize)
		case e.Is(TypePartitionTable, SubtypePrimary):
			if e.Offset != tableOffset || e.Size != SectorSize {
				bad("%v: the table is at 0x%x", e, tableOffset)
			}
		case e.Is(TypeBootloader, SubtypePrimary):
			if e.End() > uint64(tableOffset) {
				bad("%v reaches into the table at 0x%x", e, tableOffset)
			}
		case uint64(e.Offset) < tableEnd:
			bad("%v begins before the end of the table, 0x%x", e, tableEnd)
		}
		if labels[e.Label] {
			bad("the label %q is there twice", e.Label)
		}
		labels[e.Label] = true
		if e.IsOTA() {
			if slots[e.Subtype] {
				bad("%s is there twice", e.SubtypeName())
			}
			slots[e.Subtype] = true
		}
		if e.Is(TypeData, DataOTA) {
			if otadata++; otadata == 2 {
				bad("there are two otadata partitions")
			}
		}
		if (e.Is(TypeData, DataOTA) || e.Is(TypeData, DataTEEOTA)) && e.Size != OTADataSize {
			bad("%v: OTA data has 0x%x bytes", e, OTADataSize)
		}
		if e.Is(TypeData, DataNVS) && e.Flags&FlagEncrypted != 0 {
			bad("%v has the flag encrypted: the NVS library refuses such a partition; use nvs_keys and NVS encryption", e)
		}
	}
	for i := range len(slots) {
		if !slots[AppOTA0+Subtype(i)] {
			bad("there are %d OTA slots, and ota_%d is missing: the bootloader counts them from 0 without a gap", len(slots), i)
			break
		}
	}
	byOffset := slices.Clone(t.Entries)
	slices.SortStableFunc(byOffset, func(a, b Entry) int { return int(int64(a.Offset) - int64(b.Offset)) })
	for i := 1; i < len(byOffset); i++ {
		if a, b := byOffset[i-1], byOffset[i]; uint64(b.Offset) < a.End() {
			bad("%v overlaps %v", a, b)
		}
	}
	return errors.Join(errs...)
}
