package efuse

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/efuse/coding"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// Scheme is the coding scheme of the key blocks.
type Scheme uint8

// Coding schemes (esp-facts B.3).
const (
	SchemeNone   Scheme = iota + 1 // ESP32, also its recovery value 3
	Scheme34                       // ESP32, 24 data bytes in a block
	SchemeRepeat                   // ESP32, unsupported
	SchemeRS                       // newer chips
)

// String names the scheme as the vendor's manuals do.
func (s Scheme) String() string {
	switch s {
	case SchemeNone:
		return "none"
	case Scheme34:
		return "3/4"
	case SchemeRepeat:
		return "repeat"
	case SchemeRS:
		return "RS(44,32)"
	}
	return "unknown"
}

// MarshalText is String.
func (s Scheme) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Snapshot is what a chip's eFuses showed at one moment. It does not change.
//
// Words of key blocks are kept behind internal/secret: no verb and no encoder
// prints them. They are gone when the snapshot is.
type Snapshot struct {
	m      chip.Model
	t      *table.Table
	blocks []contents
	errs   []ErrorRegister
	apb    uint32 // ESP32: the register with the third revision bit
}

// contents of a block: words, or for a key block its bytes in register order.
type contents struct {
	words []uint32
	key   *secret.Bytes // nil if every bit reads 0
}

// Read loads the fuses anew and reads all blocks and error registers.
func Read(ctx context.Context, regs Registers, m chip.Model) (*Snapshot, error) {
	c, err := newController(regs, m)
	if err != nil {
		return nil, err
	}
	if err := c.refresh(ctx); err != nil {
		return nil, fmt.Errorf("read eFuses of %s: %w", m.Title, err)
	}
	s, err := c.snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("read eFuses of %s: %w", m.Title, err)
	}
	return s, nil
}

func (c *controller) snapshot(ctx context.Context) (*Snapshot, error) {
	s := &Snapshot{m: c.m, t: c.t}
	for _, b := range c.t.Blocks() {
		words, err := c.readBlock(ctx, b)
		if err != nil {
			return nil, err
		}
		s.blocks = append(s.blocks, hold(b, words))
	}
	var err error
	if s.errs, err = c.errorRegisters(ctx); err != nil {
		return nil, err
	}
	if c.m.EFuse.RevisionBit2Register != 0 {
		if s.apb, err = c.stable(ctx, c.m.EFuse.RevisionBit2Register); err != nil {
			return nil, fmt.Errorf("revision register: %w", err)
		}
	}
	// Some silicon has other fields. A revision that cannot be is Identity's error;
	// until then the newest table is as good as any.
	if rev, err := s.revision(); err == nil {
		if s.t, err = table.ForRevision(c.m.Name, rev); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// hold takes the words over; those of a key block are wiped.
func hold(b table.Block, words []uint32) contents {
	if !b.Key {
		return contents{words: words}
	}
	defer clear(words)
	var or uint32
	for _, w := range words {
		or |= w
	}
	if or == 0 {
		return contents{}
	}
	raw := make([]byte, 4*len(words))
	for i, w := range words {
		binary.LittleEndian.PutUint32(raw[4*i:], w)
	}
	return contents{key: secret.New(raw)}
}

// Chip is the name of the chip's model.
func (s *Snapshot) Chip() string { return s.m.Name }

// Table is the field table of the chip's silicon.
func (s *Snapshot) Table() *table.Table { return s.t }

// value joins the bits of a field outside the key blocks.
func (s *Snapshot) value(f table.Field) (v uint64) {
	for i, bit := range f.Bits() {
		if s.blocks[f.Block].words[bit/32]>>(bit%32)&1 != 0 {
			v |= 1 << i
		}
	}
	return v
}

// must reads a field that every table has.
func (s *Snapshot) must(name string) uint64 {
	f, ok := s.t.Field(name)
	if !ok {
		panic("efuse: the table of " + s.m.Name + " has no " + name)
	}
	return s.value(f)
}

// Field gives a field's value, by any name that the table knows. It is ErrProtected
// for what RD_DIS hides, since that reads as 0 whatever it is. Fields of more
// than 64 bits and those of key blocks have no value here.
func (s *Snapshot) Field(name string) (uint64, error) {
	f, ok := s.t.Field(name)
	if !ok {
		return 0, fmt.Errorf("field %q is %w of %s", name, table.ErrUnknown, s.m.Title)
	}
	if s.t.Blocks()[f.Block].Key || f.Len() > 64 {
		return 0, fmt.Errorf("field %s is no number: see Words and KeyBlocks", f.Name)
	}
	if s.readProtected(f.RDDisAll) {
		return 0, fmt.Errorf("field %s: %w", f.Name, ErrProtected)
	}
	return s.value(f), nil
}

// FieldSet reports whether any bit of a field is set.
func (s *Snapshot) FieldSet(name string) (bool, error) {
	v, err := s.Field(name)
	return v != 0, err
}

func (s *Snapshot) readProtected(rd []int) bool {
	mask := s.must("RD_DIS")
	return slices.ContainsFunc(rd, func(bit int) bool { return mask>>bit&1 != 0 })
}

func (s *Snapshot) writeProtected(wr int) bool {
	return wr != table.None && s.must("WR_DIS")>>wr&1 != 0
}

// Protection of a field or block by name.
func (s *Snapshot) protection(name string) (wr int, rd []int, err error) {
	if f, ok := s.t.Field(name); ok {
		return f.WRDis, f.RDDisAll, nil
	}
	if b, ok := s.t.Block(name); ok {
		return b.WRDis, b.RDDisAll, nil
	}
	if sl, ok := s.t.Slot(name); ok {
		return s.t.Blocks()[sl.Block].WRDis, sl.RDDis, nil
	}
	return 0, nil, fmt.Errorf("%q is %w of %s", name, table.ErrUnknown, s.m.Title)
}

// WriteProtected reports whether a field or block can be burned no more.
func (s *Snapshot) WriteProtected(name string) (bool, error) {
	wr, _, err := s.protection(name)
	return err == nil && s.writeProtected(wr), err
}

// ReadProtected reports whether RD_DIS hides a field or block, or a part of it.
func (s *Snapshot) ReadProtected(name string) (bool, error) {
	_, rd, err := s.protection(name)
	return err == nil && s.readProtected(rd), err
}

// CodingScheme says how key blocks are coded. On an ESP32 whose CODING_SCHEME is
// read-protected it is ErrProtected.
func (s *Snapshot) CodingScheme() (Scheme, error) {
	if s.m.EFuse.Kind == chip.EFuseRS {
		return SchemeRS, nil
	}
	v, err := s.Field("CODING_SCHEME")
	if err != nil {
		return 0, err
	}
	return [...]Scheme{SchemeNone, Scheme34, SchemeRepeat, SchemeNone}[v], nil
}

// ErrorRegisters gives the controller's error registers as they were read.
func (s *Snapshot) ErrorRegisters() []ErrorRegister { return slices.Clone(s.errs) }

// BlockError is what the error registers say about a block.
type BlockError struct {
	Block string   `json:"block"`
	Count int      `json:"count"`          // wrong bits (BLOCK0) or symbols
	Fail  bool     `json:"fail"`           // the decoder could not mend it
	Bits  []BitRef `json:"bits,omitempty"` // BLOCK0: whose copies disagree
}

// String is for example "KEY0: 2 errors, not corrected".
func (e BlockError) String() string {
	s := fmt.Sprintf("%s: %d errors", e.Block, e.Count)
	if e.Fail {
		s += ", not corrected"
	}
	for _, b := range e.Bits {
		s += ", " + b.String()
	}
	return s
}

// BlockErrors lists the blocks with errors, none on a sound chip.
func (s *Snapshot) BlockErrors() []BlockError {
	scheme, _ := s.CodingScheme()
	return decodeErrors(s.m, s.t, scheme, s.errs)
}

// decodeErrors reads the error registers of esp-facts B.1 and B.6. DEC_STATUS of
// the ESP32 speaks of the 3/4 scheme only.
func decodeErrors(m chip.Model, t *table.Table, scheme Scheme, regs []ErrorRegister) []BlockError {
	blocks := t.Blocks()
	var out []BlockError
	if m.EFuse.Kind == chip.EFuseESP32 {
		for n := 1; n < len(blocks) && scheme == Scheme34; n++ {
			if v := regs[0].Value >> (4 * (n - 1)) & 0xF; v != 0 {
				out = append(out, BlockError{Block: blocks[n].Name, Count: bits.OnesCount32(v), Fail: true})
			}
		}
		return out
	}
	repeat := regs[:m.EFuse.RepeatErrWords]
	n := namerOf(t)
	zero := BlockError{Block: blocks[0].Name}
	for i, r := range repeat {
		for v := r.Value; v != 0; v &= v - 1 {
			// REPEAT_ERR0 speaks of word 1: WR_DIS in word 0 is stored once.
			zero.Bits = append(zero.Bits, n.ref(0, 32*(i+1)+bits.TrailingZeros32(v)))
			zero.Count++
		}
	}
	if zero.Count != 0 {
		out = append(out, zero)
	}
	var rs [2]uint32 // of a chip with few blocks the second stays 0
	for i, r := range regs[m.EFuse.RepeatErrWords:] {
		rs[i] = r.Value
	}
	for i, e := range coding.DecodeRSErr(rs[0], rs[1], m.EFuse.RSFailShifted) {
		if e.Bad() && i < len(blocks) {
			out = append(out, BlockError{Block: blocks[i].Name, Count: e.Count, Fail: e.Fail})
		}
	}
	return out
}

// KeyBlockState is what can be known of a key block.
type KeyBlockState struct {
	Block   int    `json:"block"`
	Name    string `json:"name"`
	Purpose string `json:"purpose"` // on a chip without purpose fields, what the block is for

	// Free means that a key can be burned into it: purpose USER and changeable,
	// all zero, and protected in no way (esp-facts B.9). Zeros alone are not
	// enough: a read-protected block reads as zeros too.
	Free                  bool        `json:"free"`
	ReadProtected         bool        `json:"read_protected"`
	WriteProtected        bool        `json:"write_protected"`
	PurposeWriteProtected bool        `json:"purpose_write_protected"`
	Zero                  bool        `json:"zero"` // reads as zeros
	Fingerprint           Fingerprint `json:"fingerprint,omitzero"`
}

// KeyBlocks lists the key blocks; of a block that holds two keys (ESP32-C2) its
// halves.
//
// The fingerprint is over the bytes in the order of the key file. Which order a
// block has follows from its purpose; with purpose USER it is taken as reversed,
// because that is what an interrupted burn of a flash key leaves.
func (s *Snapshot) KeyBlocks() []KeyBlockState {
	var out []KeyBlockState
	for _, b := range s.t.Blocks() {
		for _, slot := range slotsInUse(s.t, b, s.value) {
			out = append(out, s.keyBlock(slot))
		}
	}
	return out
}

func (s *Snapshot) keyBlock(slot table.Slot) KeyBlockState {
	b := s.t.Blocks()[slot.Block]
	k := KeyBlockState{
		Block: b.Index, Name: slot.Name,
		ReadProtected: s.readProtected(slot.RDDis), WriteProtected: s.writeProtected(b.WRDis),
	}
	// A coded block takes one burn: a slot is free while its whole block is.
	k.Free = s.blocks[b.Index].key == nil && !s.readProtected(b.RDDisAll) && !k.WriteProtected
	reversed := true
	if f, ok := purposeField(s.t, b); ok {
		v := s.value(f)
		k.Purpose = purposeName(s.t, v)
		k.PurposeWriteProtected = s.writeProtected(f.WRDis)
		k.Free = k.Free && v == 0 && !k.PurposeWriteProtected
		if p, ok := s.t.Purpose(k.Purpose); ok && v != 0 {
			reversed = p.Reversed
		}
	} else if p, ok := slotPurpose(s.t, slot); ok {
		k.Purpose, reversed = p.Name, p.Reversed
	}
	k.Fingerprint = s.fingerprint(slot, reversed)
	k.Zero = k.Fingerprint.IsZero()
	return k
}

// slotsInUse lists the slots of a key block as they are used: its halves, unless the
// fields that come with a key of the whole block are set.
func slotsInUse(t *table.Table, b table.Block, value func(table.Field) uint64) []table.Slot {
	slots := b.Slots()
	if len(slots) < 2 {
		return slots
	}
	whole := b.Whole()
	p, ok := slotPurpose(t, whole)
	if !ok || !setsHold(t, p, value) {
		return slots
	}
	return []table.Slot{whole}
}

// setsHold says whether every field that is burned with a key of this purpose is set.
func setsHold(t *table.Table, p table.Purpose, value func(table.Field) uint64) bool {
	return !slices.ContainsFunc(p.Sets, func(name string) bool {
		f, ok := t.Field(name)
		return !ok || value(f) == 0
	})
}

// SlotFingerprint names what a slot holds, for a key of the given purpose, whether or
// not the purpose is burned yet. With no purpose it is that of KeyBlock. It is zero for
// what is empty or hidden.
func (s *Snapshot) SlotFingerprint(slot, purpose string) (Fingerprint, error) {
	k, err := s.KeyBlock(slot)
	if err != nil || purpose == "" {
		return k.Fingerprint, err
	}
	p, ok := s.t.Purpose(purpose)
	if !ok {
		return Fingerprint{}, fmt.Errorf("purpose %q is %w of %s", purpose, table.ErrUnknown, s.m.Title)
	}
	sl, _ := s.t.Slot(slot) // KeyBlock has found it
	return s.fingerprint(sl, p.Reversed), nil
}

// KeyBlock finds one by any name of the block or of its half.
func (s *Snapshot) KeyBlock(name string) (KeyBlockState, error) {
	slot, ok := s.t.Slot(name)
	if !ok {
		return KeyBlockState{}, fmt.Errorf("%q is no key block of %s", name, s.m.Title)
	}
	return s.keyBlock(slot), nil
}

// purposeField finds KEY_PURPOSE_n of a key block. Key block n of the chips that
// have such fields is named KEYn.
func purposeField(t *table.Table, b table.Block) (table.Field, bool) {
	n, ok := strings.CutPrefix(b.Name, "KEY")
	if !ok {
		return table.Field{}, false
	}
	return t.Field("KEY_PURPOSE_" + n)
}

// slotPurpose finds what a slot is for on a chip without purpose fields.
func slotPurpose(t *table.Table, s table.Slot) (table.Purpose, bool) {
	for _, p := range t.Purposes() {
		if p.Block == s.Name {
			return p, true
		}
	}
	return table.Purpose{}, false
}

func purposeName(t *table.Table, v uint64) string {
	for _, p := range t.Purposes() {
		if p.Value >= 0 && uint64(p.Value) == v {
			return p.Name
		}
	}
	return fmt.Sprintf("RESERVED_%d", v)
}

// dataLen is how many bytes of a key block are data.
func (s *Snapshot) dataLen() int {
	if scheme, err := s.CodingScheme(); err == nil && scheme == Scheme34 {
		return coding.DataLen34
	}
	return 32
}

// useKey lends the data bytes of a slot in register order.
func (s *Snapshot) useKey(slot table.Slot, f func([]byte) error) error {
	end := min(slot.Offset+slot.Bytes, s.dataLen())
	return s.blocks[slot.Block].key.Use(func(b []byte) error { return f(b[slot.Offset:end]) })
}

// fingerprint names what a slot holds. One whose bits all read 0 has none.
func (s *Snapshot) fingerprint(slot table.Slot, reversed bool) (fp Fingerprint) {
	_ = s.useKey(slot, func(b []byte) error { // an empty block lends nothing
		var or byte
		for _, v := range b {
			or |= v
		}
		if or == 0 {
			return nil
		}
		own := slices.Clone(b)
		defer clear(own)
		if reversed {
			slices.Reverse(own)
		}
		fp = secret.Fingerprint(own)
		return nil
	})
	return fp
}

// BlockWords is a block in a report.
type BlockWords struct {
	Block string   `json:"block"`
	Words []string `json:"words"` // 8 hex digits each, or the fingerprint "fp:…" of each key that can be read
}

// Words gives all blocks for reports: every key block that can be read and is
// not empty as its fingerprint.
func (s *Snapshot) Words() []BlockWords {
	keys := map[int][]string{} // what can be read, slot by slot
	for _, k := range s.KeyBlocks() {
		if !k.Fingerprint.IsZero() {
			keys[k.Block] = append(keys[k.Block], fingerprintPrefix+k.Fingerprint.String())
		}
	}
	var out []BlockWords
	for i, b := range s.t.Blocks() {
		bw := BlockWords{Block: b.Name}
		switch fps := keys[i]; {
		case len(fps) > 0:
			bw.Words = fps
		case b.Key:
			bw.Words = hexWords(make([]uint32, b.Words))
		default:
			bw.Words = hexWords(s.blocks[i].words)
		}
		out = append(out, bw)
	}
	return out
}

func hexWords(words []uint32) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%08x", w)
	}
	return out
}

// MarshalJSON writes chip, coding scheme, words and error registers.
func (s *Snapshot) MarshalJSON() ([]byte, error) {
	scheme, err := s.CodingScheme()
	name := scheme.String()
	if err != nil {
		name = "hidden"
	}
	return json.Marshal(struct {
		Chip   string          `json:"chip"`
		Scheme string          `json:"coding_scheme"`
		Blocks []BlockWords    `json:"blocks"`
		Errors []ErrorRegister `json:"error_registers"`
	}{s.m.Name, name, s.Words(), s.errs})
}

// Format prints the words of Words, for every verb.
func (s *Snapshot) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "eFuses of %s:", s.m.Name)
	for _, b := range s.Words() {
		_, _ = fmt.Fprintf(f, " %s %s;", b.Block, strings.Join(b.Words, " "))
	}
}

// Change is a difference between two snapshots: a bit, or a whole key block.
type Change struct {
	BitRef
	Set bool `json:"set"` // the bit was 0 and is 1

	// Key blocks are compared as a whole: Bit is -1 and these name the contents.
	KeyBlock bool        `json:"key_block,omitempty"`
	Was      Fingerprint `json:"was,omitzero"`
	Is       Fingerprint `json:"is,omitzero"`
}

// ErrOtherChip is returned for two snapshots that are not of the same model.
var ErrOtherChip = errors.New("not the same kind of chip")

// Diff lists what is different in b, bit by bit.
func Diff(a, b *Snapshot) ([]Change, error) {
	if a.m.Name != b.m.Name {
		return nil, fmt.Errorf("compare %s with %s: %w", a.m.Title, b.m.Title, ErrOtherChip)
	}
	var out []Change
	n := namerOf(a.t)
	for i, blk := range n.blocks {
		for _, slot := range blk.Slots() {
			if was, is := a.fingerprint(slot, true), b.fingerprint(slot, true); was != is {
				out = append(out, Change{BitRef: BitRef{Block: slot.Name, Bit: -1}, Set: was.IsZero(), KeyBlock: true, Was: was, Is: is})
			}
		}
		if blk.Key {
			continue
		}
		for w := range blk.Words {
			was, is := a.blocks[i].words[w], b.blocks[i].words[w]
			for d := was ^ is; d != 0; d &= d - 1 {
				bit := bits.TrailingZeros32(d)
				out = append(out, Change{BitRef: n.ref(i, 32*w+bit), Set: is>>bit&1 != 0})
			}
		}
	}
	return out, nil
}
