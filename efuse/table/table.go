// Package table owns the eFuse tables: which bits a field has, which bit of
// WR_DIS or RD_DIS protects it, where a block's registers are and what a key
// block may hold.
//
// The data are our own transcription of ESP-IDF's Apache-2.0
// components/efuse/<chip>/esp_efuse_table.csv, one file per chip in data/ (two where
// its silicon has different fields), which efuse/table/gen turns into Go. A table never changes: every method hands out
// copies. Names are those of ESP-IDF; a lookup also finds the aliases that the
// vendor's other tools and manuals use.
package table

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
)

//go:generate go run ./gen

// None stands in place of a protection bit where there is none.
const None = -1

// Part is a run of bits inside a block.
type Part struct {
	Bit int // first bit, counted from bit 0 of the block's word 0
	Len int
}

// Block is an eFuse block.
type Block struct {
	Index    int
	Name     string
	Aliases  []string
	ReadOff  uint32 // read registers, offset from the eFuse base
	WriteOff uint32 // write registers; ESP32 only, 0 on chips with PGM_DATA
	Words    int    // read registers in use
	WRDis    int    // bit of WR_DIS that locks the block, None if fields have their own
	RDDis    int    // bit of RD_DIS that hides the block (its lowest part), None if nothing does
	RDDisAll []int  // every bit of RD_DIS that hides a part: equal parts in ascending order (ESP32-C2: 2)
	Key      bool   // may hold a key
}

// Slot is where one key goes: a whole key block, or a half of it on the ESP32-C2, whose
// one block holds either one key or two. The halves of a block are burned together.
type Slot struct {
	Name   string // the block's; KEY0.LOW and KEY0.HI for halves
	Block  int
	Offset int   // first byte inside the block
	Bytes  int   // how many of the block's bytes are its
	RDDis  []int // bits of RD_DIS that hide it
}

// Field is a named part of a block.
type Field struct {
	Name     string
	Aliases  []string
	Block    int
	Parts    []Part // low part of the value first
	WRDis    int    // bit of WR_DIS that locks the field, None if none is known
	RDDis    int    // bit of RD_DIS that hides it (its lowest part), None if nothing does
	RDDisAll []int  // every bit of RD_DIS that hides a part of it
	InCSV    bool   // named in ESP-IDF's table; otherwise in its register header only
	Values   []Value
	Comment  string
}

// Value says what a field's value means.
type Value struct {
	Value   uint32
	Meaning string
}

// Len is the number of bits of the field.
func (f Field) Len() int {
	n := 0
	for _, p := range f.Parts {
		n += p.Len
	}
	return n
}

// Bits lists the field's bits inside its block, lowest bit of the value first.
func (f Field) Bits() []int {
	bits := make([]int, 0, f.Len())
	for _, p := range f.Parts {
		for i := range p.Len {
			bits = append(bits, p.Bit+i)
		}
	}
	return bits
}

// Meaning gives the text for a value, or "".
func (f Field) Meaning(v uint64) string {
	for _, m := range f.Values {
		if uint64(m.Value) == v {
			return m.Meaning
		}
	}
	return ""
}

// Reading says whether a key block may or must be hidden.
type Reading uint8

// What RD_DIS does to a key (esp-facts B.9).
const (
	ReadAny   Reading = iota // as the user likes
	ReadMust                 // a secret: hide it
	ReadNever                // a digest: the chip must be able to read it for ever
)

// Purpose is what a key block can be for.
type Purpose struct {
	Name     string
	Value    int    // of KEY_PURPOSE_n; None on a chip without such fields
	Block    string // the only slot for it, on a chip without purpose fields
	Bytes    int
	Reversed bool // the key's bytes go into the block last byte first
	Reading  Reading
	Sets     []string // one-bit fields that are burned with the key and tell it from others
}

// Source says where a table's facts are from.
type Source struct {
	File     string // path inside ESP-IDF
	Revision string // commit of ESP-IDF
	SHA256   string // of that file
}

// String names file and revision.
func (s Source) String() string {
	return fmt.Sprintf("ESP-IDF %.12s %s (sha256 %.16s…)", s.Revision, s.File, s.SHA256)
}

// Table describes the eFuses of one chip, or of a range of its silicon.
type Table struct {
	chip     string
	first    chip.Revision // of silicon with these fields
	file     string        // its data file
	sources  []Source
	hash     [sha256.Size]byte
	blocks   []Block
	fields   []Field
	purposes []Purpose
}

// ErrUnknown is returned for a chip without a table and for an unknown name.
var ErrUnknown = errors.New("not in the eFuse table")

// For finds the table of a chip's newest silicon by the name that chip.Model has.
// Blocks and the fields of Identity are the same in every table of a chip.
func For(chipName string) (*Table, error) { return ForRevision(chipName, math.MaxUint16) }

// ForRevision finds the table of a chip's silicon: of ESP32-H2 before and from
// v1.2, and of ESP32-P4 before and from v3.0, fields differ.
func ForRevision(chipName string, rev chip.Revision) (*Table, error) {
	var found *Table
	for _, t := range tables {
		if t.chip == chipName && t.first <= rev && (found == nil || found.first < t.first) {
			found = t
		}
	}
	if found == nil {
		return nil, fmt.Errorf("chip %q is %w set of this build: known are %s", chipName, ErrUnknown, strings.Join(Chips(), ", "))
	}
	return found, nil
}

// Chips lists the chips that have a table.
func Chips() []string {
	var names []string
	for _, t := range tables {
		if !slices.Contains(names, t.chip) {
			names = append(names, t.chip)
		}
	}
	return names
}

// All lists every table, by chip and silicon.
func All() []*Table { return slices.Clone(tables) }

// Chip is the name of the chip.
func (t *Table) Chip() string { return t.chip }

// First is the first silicon revision with these fields, v0.0 for the chip's first table.
func (t *Table) First() chip.Revision { return t.first }

// File is the name of the data file in efuse/table/data.
func (t *Table) File() string { return t.file }

// Source says where the facts are from, the first place if there are several.
func (t *Table) Source() Source { return t.sources[0] }

// Sources lists all places.
func (t *Table) Sources() []Source { return slices.Clone(t.sources) }

// Hash is the SHA-256 of the data file (File), so `sha256sum
// efuse/table/data/<file>` shows which table a journal entry means.
func (t *Table) Hash() [sha256.Size]byte { return t.hash }

// Blocks lists the blocks by index.
func (t *Table) Blocks() []Block {
	out := slices.Clone(t.blocks)
	for i := range out {
		out[i] = out[i].clone()
	}
	return out
}

// Block finds a block by name or alias.
func (t *Table) Block(name string) (Block, bool) {
	for _, b := range t.blocks {
		if b.Name == name || slices.Contains(b.Aliases, name) {
			return b.clone(), true
		}
	}
	return Block{}, false
}

// halves are the names that ESP-IDF gives to the parts of the ESP32-C2's key block
// in its RD_DIS.KEY0.LOW and RD_DIS.KEY0.HI.
var halves = [...]string{".LOW", ".HI"}

// Slots lists where a block's keys go. A block with a bit of RD_DIS for each half
// has two slots.
func (b Block) Slots() []Slot {
	if !b.Key {
		return nil
	}
	whole := b.Whole()
	if len(b.RDDisAll) != len(halves) {
		return []Slot{whole}
	}
	var out []Slot
	for i, name := range halves {
		n := whole.Bytes / len(halves)
		out = append(out, Slot{Name: b.Name + name, Block: b.Index, Offset: i * n, Bytes: n, RDDis: []int{b.RDDisAll[i]}})
	}
	return out
}

// Slots lists the slots of all key blocks.
func (t *Table) Slots() []Slot {
	var out []Slot
	for _, b := range t.blocks {
		out = append(out, b.Slots()...)
	}
	return out
}

// Whole is the block as one slot, also where it has two.
func (b Block) Whole() Slot {
	return Slot{Name: b.Name, Block: b.Index, Bytes: 4 * b.Words, RDDis: slices.Clone(b.RDDisAll)}
}

// Slot finds a slot by its name; any name of a key block is its whole.
func (t *Table) Slot(name string) (Slot, bool) {
	if b, ok := t.Block(name); ok {
		return b.Whole(), b.Key
	}
	for _, s := range t.Slots() {
		if s.Name == name {
			return s, true
		}
	}
	return Slot{}, false
}

// Fields lists the fields by block and lowest bit.
func (t *Table) Fields() []Field {
	out := slices.Clone(t.fields)
	for i := range out {
		out[i] = out[i].clone()
	}
	return out
}

// Field finds a field by name or alias. The single bits of the protection masks
// are fields too, named as ESP-IDF does: WR_DIS.DIS_ICACHE, RD_DIS.KEY0.
func (t *Table) Field(name string) (Field, bool) {
	for _, f := range t.fields {
		if f.Name == name || slices.Contains(f.Aliases, name) {
			return f.clone(), true
		}
	}
	mask, of, ok := strings.Cut(name, ".")
	if !ok || mask != "WR_DIS" && mask != "RD_DIS" {
		return Field{}, false
	}
	wr, rd, ok := t.protection(of)
	bits := rd
	if mask == "WR_DIS" {
		bits = []int{wr}
	}
	if !ok || len(bits) == 0 || bits[0] == None {
		return Field{}, false
	}
	m, _ := t.Field(mask)
	base := m.Bits()
	f := Field{
		Name: mask + "." + of, Block: m.Block, WRDis: m.WRDis, RDDis: None, InCSV: true,
		Values:  []Value{{0, "no"}, {1, "yes"}},
		Comment: map[string]string{"WR_DIS": "locks ", "RD_DIS": "hides "}[mask] + of,
	}
	for _, b := range bits {
		f.Parts = append(f.Parts, Part{Bit: base[b], Len: 1})
	}
	return f, true
}

// protection finds the protection bits of a field or a block.
func (t *Table) protection(name string) (wr int, rd []int, ok bool) {
	for _, f := range t.fields {
		if f.Name == name || slices.Contains(f.Aliases, name) {
			return f.WRDis, f.RDDisAll, true
		}
	}
	for _, b := range t.blocks {
		if b.Name == name || slices.Contains(b.Aliases, name) {
			return b.WRDis, b.RDDisAll, true
		}
	}
	if s, ok := t.Slot(name); ok {
		return t.blocks[s.Block].WRDis, s.RDDis, true
	}
	return None, nil, false
}

// Purposes lists what key blocks can be for.
func (t *Table) Purposes() []Purpose {
	out := slices.Clone(t.purposes)
	for i := range out {
		out[i].Sets = slices.Clone(out[i].Sets)
	}
	return out
}

// Purpose finds a purpose by name.
func (t *Table) Purpose(name string) (Purpose, bool) {
	for _, p := range t.purposes {
		if p.Name == name {
			p.Sets = slices.Clone(p.Sets)
			return p, true
		}
	}
	return Purpose{}, false
}

func (b Block) clone() Block {
	b.Aliases, b.RDDisAll = slices.Clone(b.Aliases), slices.Clone(b.RDDisAll)
	return b
}

func (f Field) clone() Field {
	f.Aliases, f.Parts = slices.Clone(f.Aliases), slices.Clone(f.Parts)
	f.RDDisAll, f.Values = slices.Clone(f.RDDisAll), slices.Clone(f.Values)
	return f
}
