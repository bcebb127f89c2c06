package efuse

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"math/bits"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/efuse/coding"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// Stage is burned as a whole by one call of [Burn]: first the keys, then the
// fields, then the critical fuses (the list in burn.go), WR_DIS and RD_DIS.
type Stage struct {
	Name         string
	Set          []chip.Assignment // the fields have exactly these values afterwards
	WriteProtect []string          // fields or blocks whose bit of WR_DIS is set
	ReadProtect  []string          // blocks or slots whose bits of RD_DIS are set
	Keys         []KeyBurn         // those of one block (ESP32-C2) go in one burn

	// Resume allows bits of BLOCK0 that this stage sets to be half burned, as power
	// that was lost during their burn leaves them on the chips that keep each bit
	// four times: the error registers name them. Burn then burns them again,
	// whatever they read as. More bits may always be added to BLOCK0 (esp-facts B.3),
	// and the same data again are what a bad burn asks for (B.6).
	Resume bool
}

// KeyBurn puts a key or a digest into a slot. The bytes are given to [Burn] only. The key is
// burned readable, read back and compared; a later stage protects it.
type KeyBurn struct {
	Block   string // the slot: "KEY0"; on the ESP32 "BLOCK1"; on the ESP32-C2 "KEY0.LOW"
	Purpose string // "XTS_AES_128_KEY"; may be empty where the slot says it

	// Resume allows a block that is not empty, for a burn that was interrupted.
	// Burn then refuses unless every bit in the block belongs to the key.
	Resume bool

	// Spent is how many burn commands its block got already in that burn. They
	// count: a block is burned three times at most in all (esp-facts B.6).
	Spent int
}

// Plan is a list of stages for one kind of chip. It cannot be burned: see Check.
type Plan struct {
	m      chip.Model
	stages []Stage
}

// NewPlan makes a plan. It copies the stages.
func NewPlan(m chip.Model, stages ...Stage) Plan {
	return Plan{m: m, stages: cloneStages(stages)}
}

func cloneStages(stages []Stage) []Stage {
	out := slices.Clone(stages)
	for i := range out {
		out[i].Set = slices.Clone(out[i].Set)
		out[i].WriteProtect = slices.Clone(out[i].WriteProtect)
		out[i].ReadProtect = slices.Clone(out[i].ReadProtect)
		out[i].Keys = slices.Clone(out[i].Keys)
	}
	return out
}

// Problem is a reason why a plan must not be burned on this chip.
type Problem struct {
	Stage  string `json:"stage,omitempty"` // empty: the chip itself
	What   string `json:"what"`            // field or block
	Reason string `json:"reason"`
}

// CheckError lists every problem that Check found.
type CheckError struct{ Problems []Problem }

func (e *CheckError) Error() string {
	var parts []string
	for _, p := range e.Problems {
		s := p.What + ": " + p.Reason
		if p.Stage != "" {
			s = "stage " + p.Stage + ": " + s
		}
		parts = append(parts, s)
	}
	return "the eFuse plan does not fit this chip; nothing was burned: " + strings.Join(parts, "; ")
}

// CheckedPlan is a plan that was tried on a snapshot, stage by stage, and found
// to do what it says. Only Check makes one.
type CheckedPlan struct {
	m      chip.Model
	base   *Snapshot
	scheme Scheme
	stages []checkedStage
	hash   [sha256.Size]byte
}

type checkedStage struct {
	Stage
	want  [][]uint32 // bits that are set afterwards, by block; not a key's
	bits  []Bit
	keys  []checkedKey
	final bool // closes the loader
}

type checkedKey struct {
	slot    table.Slot
	purpose table.Purpose
	bytes   int
	resume  bool
	spent   int
}

// checker simulates the stages on a snapshot.
type checker struct {
	m        chip.Model
	t        *table.Table
	n        *namer
	scheme   Scheme
	revision chip.Revision
	words    [][]uint32   // state after the stages so far; nil for key blocks
	filled   map[int]bool // key blocks that are not empty
	damage   []BlockError // of BLOCK0, to be judged by what the stages burn
	problems []Problem
}

// Check tries the stages in their order on what a chip showed. The result can be
// burned on that chip. Every reason against it is in the *CheckError.
//
// It refuses: another model; errors in the chip's error registers, but for those
// that a stage or key with Resume burns away; a coding
// scheme that the key does not fit; fields that would have to lose bits, or are
// locked by WR_DIS already or by an earlier stage; a crypt counter with an even
// number of bits; key blocks that are not free, XTS keys where the chip ignores
// them, digests to be hidden; RD_DIS bits after RD_DIS is locked; and a fuse
// that closes the loader anywhere but alone in the last stage.
func (p Plan) Check(s *Snapshot) (CheckedPlan, error) {
	if p.m.Name == "" || s == nil || s.m.Name != p.m.Name {
		name := "nothing"
		if s != nil {
			name = s.m.Title
		}
		return CheckedPlan{}, &CheckError{[]Problem{{What: "chip", Reason: fmt.Sprintf("the plan is for %s, the snapshot of %s", p.m.Title, name)}}}
	}
	c := &checker{m: p.m, t: s.t, n: namerOf(s.t), filled: map[int]bool{}}
	c.chip(s, p.stages)
	cp := CheckedPlan{m: p.m, base: s, scheme: c.scheme}
	for i, st := range cloneStages(p.stages) {
		cp.stages = append(cp.stages, c.stage(st, i == len(p.stages)-1))
	}
	c.resumed(cp)
	c.conflicts(s)
	if len(c.problems) > 0 {
		return CheckedPlan{}, &CheckError{c.problems}
	}
	cp.hash = cp.sum()
	return cp, nil
}

func (c *checker) problem(stage, what, format string, args ...any) {
	c.problems = append(c.problems, Problem{stage, what, fmt.Sprintf(format, args...)})
}

// chip takes the snapshot over as the first state. Damage is allowed in a key
// block only whose burn is resumed: an interrupted burn leaves it.
func (c *checker) chip(s *Snapshot, stages []Stage) {
	for i, b := range c.n.blocks {
		c.words = append(c.words, slices.Clone(s.blocks[i].words))
		if b.Key && (s.blocks[i].key != nil || s.readProtected(b.RDDisAll)) {
			c.filled[i] = true // hidden is not empty
		}
	}
	id, err := s.Identity()
	if err != nil {
		c.problem("", "identity", "%v", err)
	}
	c.revision = id.Revision
	if c.scheme, err = s.CodingScheme(); err != nil {
		c.problem("", "CODING_SCHEME", "%v: the scheme of the key blocks cannot be known", err)
	} else if c.scheme == SchemeRepeat {
		c.problem("", "CODING_SCHEME", "the repeat scheme is not supported")
	}
	for _, e := range s.BlockErrors() {
		if slices.ContainsFunc(stages, func(st Stage) bool {
			return slices.ContainsFunc(st.Keys, func(k KeyBurn) bool { return k.Resume && c.index(k.Block) == c.index(e.Block) })
		}) {
			continue
		}
		if c.index(e.Block) == 0 && slices.ContainsFunc(stages, func(st Stage) bool { return st.Resume }) {
			c.damage = append(c.damage, e) // judged when it is known what the stages set
			continue
		}
		c.problem("", e.Block, "the error registers show damage (%v)", e)
	}
}

// resumed refuses the damage in BLOCK0 that no stage with Resume burns again.
func (c *checker) resumed(cp CheckedPlan) {
	for _, e := range c.damage {
		if !cp.mends(e, 0) {
			c.problem("", e.Block, "the error registers show damage (%v)", e)
		}
	}
}

// mends reports whether a stage from the given one on burns away what an error tells
// of: every bit that one of BLOCK0 names, or a key block whose burn is resumed.
func (p CheckedPlan) mends(e BlockError, from int) bool {
	if slices.ContainsFunc(p.stages[from:], func(st checkedStage) bool {
		return slices.ContainsFunc(st.keys, func(k checkedKey) bool {
			return k.resume && p.base.t.Blocks()[k.slot.Block].Name == e.Block
		})
	}) {
		return true
	}
	return len(e.Bits) > 0 && e.Block == p.base.t.Blocks()[0].Name && !slices.ContainsFunc(e.Bits, func(b BitRef) bool {
		return !slices.ContainsFunc(p.stages[from:], func(st checkedStage) bool {
			return st.Resume && st.want[0][b.Word]>>b.Bit&1 != 0
		})
	})
}

// get reads a field from the state.
func (c *checker) get(f table.Field) (v uint64) {
	for i, bit := range f.Bits() {
		if c.words[f.Block][bit/32]>>(bit%32)&1 != 0 {
			v |= 1 << i
		}
	}
	return v
}

func (c *checker) mask(name string) uint64 {
	f, _ := c.t.Field(name)
	return c.get(f)
}

func (c *checker) hidden(rd []int) bool {
	mask := c.mask("RD_DIS")
	return slices.ContainsFunc(rd, func(bit int) bool { return mask>>bit&1 != 0 })
}

// stage checks one stage against the state and then applies it.
func (c *checker) stage(st Stage, last bool) checkedStage {
	cs := checkedStage{Stage: st}
	for _, b := range c.n.blocks {
		cs.want = append(cs.want, make([]uint32, b.Words))
	}
	if st.Name == "" {
		c.problem("?", "name", "every stage needs one")
	}
	for _, k := range st.Keys {
		c.key(&cs, k)
	}
	given := map[string]uint32{}
	for _, a := range st.Set {
		if f, ok := c.t.Field(a.Field); ok {
			if v, twice := given[f.Name]; twice && v != a.Value {
				c.problem(st.Name, f.Name, "is given two values, %d and %d", v, a.Value)
			}
			given[f.Name] = a.Value
		}
		c.set(&cs, a, last)
	}
	for _, name := range st.WriteProtect {
		c.writeProtect(&cs, name)
	}
	for _, name := range st.ReadProtect {
		c.readProtect(&cs, name)
	}
	c.codedBlocks(&cs)
	for i, want := range cs.want {
		for w, v := range want {
			if v != 0 {
				c.words[i][w] |= v
			}
		}
	}
	for _, k := range cs.keys {
		c.filled[k.slot.Block] = true
	}
	slices.SortStableFunc(cs.bits, func(a, b Bit) int {
		if d := c.index(a.Block) - c.index(b.Block); d != 0 {
			return d
		}
		return 32*a.Word + a.Bit - 32*b.Word - b.Bit
	})
	return cs
}

// index of a block or of the block of a slot, -1 for none.
func (c *checker) index(name string) int {
	if b, ok := c.t.Block(name); ok {
		return b.Index
	}
	if s, ok := c.t.Slot(name); ok {
		return s.Block
	}
	return -1
}

// want adds a bit to a stage. The same bit may be wanted twice (two fields of one
// WR_DIS group).
func (c *checker) want(cs *checkedStage, block, bit int, note string) {
	w, mask := bit/32, uint32(1)<<(bit%32)
	if cs.want[block][w]&mask != 0 {
		return
	}
	cs.want[block][w] |= mask
	cs.bits = append(cs.bits, Bit{
		Stage: cs.Name, BitRef: c.n.ref(block, bit), Note: note,
		AlreadySet: c.words[block][w]&mask != 0,
	})
}

// factoryData are fields that tell who the chip is, how its blocks are coded and
// what clocks its burns; a burn that changed them would be judged by the new ones.
var factoryData = []string{
	"MAC", "MAC_CRC", "CHIP_VER_REV1", "CHIP_VER_REV2", "WAFER_VERSION_MINOR", "WAFER_VERSION_MINOR_LO",
	"WAFER_VERSION_MINOR_HI", "WAFER_VERSION_MAJOR", "WAFER_VERSION_MAJOR_LO", "WAFER_VERSION_MAJOR_HI",
	"BLK_VERSION_MAJOR", "BLK_VERSION_MINOR", "CLK8M_FREQ", "CODING_SCHEME",
}

// set checks one assignment.
func (c *checker) set(cs *checkedStage, a chip.Assignment, last bool) {
	bad := func(format string, args ...any) { c.problem(cs.Name, a.Field, format, args...) }
	f, ok := c.t.Field(a.Field)
	if !ok {
		bad("is not in the eFuse table of %s", c.m.Title)
		return
	}
	mask, _, dotted := strings.Cut(f.Name, ".")
	switch {
	case f.Name == "WR_DIS" || f.Name == "RD_DIS" || dotted && (mask == "WR_DIS" || mask == "RD_DIS"):
		bad("protections are set by WriteProtect and ReadProtect")
		return
	case c.n.blocks[f.Block].Key:
		bad("is a key block: keys are burned by Key")
		return
	case c.hidden(f.RDDisAll):
		bad("is read-protected, so nobody knows its value")
		return
	case f.Len() < 32 && a.Value>>f.Len() != 0:
		bad("value %d does not fit into %d bits", a.Value, f.Len())
		return
	}
	now := c.get(f)
	if now != uint64(a.Value) && slices.Contains(factoryData, f.Name) {
		bad("is factory data that everything else rests on: no plan changes it")
		return
	}
	if lost := now &^ uint64(a.Value); lost != 0 {
		bad("is %d and cannot become %d: fuses never lose bits", now, a.Value)
		return
	}
	if counter := a.Field == c.m.EFuse.FlashCryptCount || f.Name == c.m.EFuse.FlashCryptCount || f.Name == "SOFT_DIS_JTAG"; counter &&
		f.Len() > 1 && bits.OnesCount32(a.Value)%2 == 0 {
		bad("is a counter that is on with an odd number of bits; %d would leave it off", a.Value)
		return
	}
	c.purposeRules(cs, f, now, uint64(a.Value))
	missing := uint64(a.Value) &^ now
	if missing != 0 && c.locked(f.WRDis, f.Block) {
		bad("is write-protected and lacks bits of %d", a.Value)
	}
	closing := a.Field == c.m.Lockdown.ReleaseFuse || a.Field == c.m.Lockdown.ClosedFuse ||
		f.Name == c.m.Lockdown.ReleaseFuse || f.Name == c.m.Lockdown.ClosedFuse
	if closing && missing != 0 {
		cs.final = true
		if !last || len(cs.Set) != 1 || len(cs.Keys) != 0 || len(cs.WriteProtect)+len(cs.ReadProtect) != 0 {
			bad("closes the loader: it stands alone, in the last stage")
		}
		if f.Name == c.m.Lockdown.ClosedFuse && c.revision < c.m.Lockdown.ClosedMinimum {
			bad("silicon %v ignores it; %v is needed", c.revision, c.m.Lockdown.ClosedMinimum)
		}
	}
	for i, bit := range f.Bits() {
		if i < 32 && a.Value>>i&1 != 0 {
			c.want(cs, f.Block, bit, f.Comment)
		}
	}
}

// purposeRules keeps a key's purpose from being changed, and XTS keys out of the
// block where the chip ignores them.
func (c *checker) purposeRules(cs *checkedStage, f table.Field, now, v uint64) {
	for _, b := range c.n.blocks {
		if pf, ok := purposeField(c.t, b); !b.Key || !ok || pf.Name != f.Name {
			continue
		}
		p, ok := c.t.Purpose(purposeName(c.t, v))
		switch {
		case !ok:
			c.problem(cs.Name, f.Name, "purpose %d is reserved", v)
		case now != 0 && now != v && !(cs.Resume && now&^v == 0): // a burn that was cut off leaves a part
			c.problem(cs.Name, f.Name, "is %s already", purposeName(c.t, now))
		case c.noXTS(b, p):
			c.problem(cs.Name, f.Name, "%s cannot use %s for %s", c.m.Title, b.Name, p.Name)
		}
	}
}

// noXTS reports the quirk of ESP32-C3, S3, C6 and H2: KEY5 never works as an XTS key,
// nor as an ECDSA key on the one of them that has those (ESP-IDF
// SOC_EFUSE_BLOCK9_KEY_PURPOSE_QUIRK).
func (c *checker) noXTS(b table.Block, p table.Purpose) bool {
	return c.m.EFuse.NoXTSInLastKey && b.Name == fmt.Sprintf("KEY%d", c.m.EFuse.KeyBlocks-1) &&
		(strings.HasPrefix(p.Name, "XTS_") || strings.HasPrefix(p.Name, "ECDSA_"))
}

// conflicts refuses fuses that must not be set together, unless they are already.
func (c *checker) conflicts(s *Snapshot) {
	for _, list := range c.m.EFuse.NeverTogether {
		all := func(value func(table.Field) uint64) bool {
			return !slices.ContainsFunc(list, func(name string) bool {
				f, ok := c.t.Field(name)
				return !ok || value(f) == 0
			})
		}
		if all(c.get) && !all(s.value) {
			c.problem("", strings.Join(list, " and "), "together break the download mode of %s", c.m.Title)
		}
	}
}

// locked says whether a bit of WR_DIS, or that of the whole block, is set.
func (c *checker) locked(wr, block int) bool {
	mask := c.mask("WR_DIS")
	if own := c.n.blocks[block].WRDis; own != table.None && mask>>own&1 != 0 {
		return true
	}
	return wr != table.None && mask>>wr&1 != 0
}

func (c *checker) writeProtect(cs *checkedStage, name string) {
	wr := table.None
	f, isField := c.t.Field(name)
	i := c.index(name)
	isBlock := i >= 0
	switch {
	case isField:
		wr = f.WRDis
	case isBlock:
		wr = c.n.blocks[i].WRDis
	}
	m, _ := c.t.Field("WR_DIS")
	switch {
	case !isField && !isBlock:
		c.problem(cs.Name, name, "is not in the eFuse table of %s", c.m.Title)
		return
	case wr == table.None:
		c.problem(cs.Name, name, "has no write protection")
		return
	case slices.ContainsFunc(cs.Keys, func(k KeyBurn) bool { return c.guards(wr, k.Block) }):
		c.problem(cs.Name, name, "is protected in a later stage, after the key was read back")
		return
	case c.locked(m.WRDis, m.Block) && c.mask("WR_DIS")>>wr&1 == 0:
		c.problem(cs.Name, name, "WR_DIS itself is write-protected")
		return
	}
	c.want(cs, m.Block, m.Bits()[wr], "locks for good: "+strings.Join(c.group(wr), ", "))
}

// guards says whether a bit of WR_DIS locks a key block or its purpose.
func (c *checker) guards(wr int, block string) bool {
	i := c.index(block)
	if i < 0 {
		return false
	}
	b := c.n.blocks[i]
	pf, hasPurpose := purposeField(c.t, b)
	return b.WRDis == wr || hasPurpose && pf.WRDis == wr
}

// group lists what a bit of WR_DIS locks.
func (c *checker) group(wr int) []string {
	var out []string
	for _, b := range c.n.blocks {
		if b.WRDis == wr {
			out = append(out, b.Name)
		}
	}
	for _, f := range c.t.Fields() {
		if f.WRDis == wr && f.Block == 0 {
			out = append(out, f.Name)
		}
	}
	return out
}

func (c *checker) readProtect(cs *checkedStage, name string) {
	bad := func(format string, args ...any) { c.problem(cs.Name, name, format, args...) }
	i := c.index(name)
	if i < 0 || len(c.n.blocks[i].RDDisAll) == 0 {
		bad("is no block that can be hidden")
		return
	}
	b := c.n.blocks[i]
	rd := b.RDDisAll
	if s, ok := c.t.Slot(name); ok {
		rd = s.RDDis
	}
	m, _ := c.t.Field("RD_DIS")
	already := true
	for _, bit := range rd {
		already = already && c.mask("RD_DIS")>>bit&1 != 0
	}
	if !already {
		switch {
		case slices.ContainsFunc(cs.Keys, func(k KeyBurn) bool { return c.index(k.Block) == b.Index }):
			bad("a key is hidden in a later stage, after it was read back")
			return
		case c.locked(m.WRDis, m.Block):
			bad("RD_DIS is write-protected: nothing can be hidden any more")
			return
		case b.Key && !c.filled[b.Index]:
			bad("is empty: hidden, it would pass for a key")
			return
		}
		for _, s := range slotsInUse(c.t, b, c.get) {
			hit := slices.ContainsFunc(s.RDDis, func(bit int) bool { return slices.Contains(rd, bit) })
			if p, known := c.purposeOf(s); hit && known && p.Reading == table.ReadNever {
				bad("holds %s, which the chip must be able to read", p.Name)
				return
			}
		}
	}
	for _, bit := range rd {
		c.want(cs, m.Block, m.Bits()[bit], "hides for good: "+name)
	}
}

// purposeOf is what a slot is for in the present state.
func (c *checker) purposeOf(s table.Slot) (table.Purpose, bool) {
	if f, ok := purposeField(c.t, c.n.blocks[s.Block]); ok {
		return c.t.Purpose(purposeName(c.t, c.get(f)))
	}
	return slotPurpose(c.t, s)
}

// key checks a key burn and adds the purpose's bits.
func (c *checker) key(cs *checkedStage, k KeyBurn) {
	bad := func(format string, args ...any) { c.problem(cs.Name, k.Block, format, args...) }
	slot, ok := c.t.Slot(k.Block)
	if !ok {
		bad("is no key block of %s", c.m.Title)
		return
	}
	if slices.ContainsFunc(cs.keys, func(o checkedKey) bool {
		return o.slot.Block == slot.Block && o.slot.Offset < slot.Offset+slot.Bytes && slot.Offset < o.slot.Offset+o.slot.Bytes
	}) {
		bad("is given two keys")
		return
	}
	b := c.n.blocks[slot.Block]
	pf, hasPurpose := purposeField(c.t, b)
	var p table.Purpose
	if hasPurpose {
		p, ok = c.t.Purpose(k.Purpose)
	} else {
		p, ok = slotPurpose(c.t, slot)
		ok = ok && (k.Purpose == "" || k.Purpose == p.Name)
	}
	if !ok {
		bad("%q is no purpose for it", k.Purpose)
		return
	}
	ck := checkedKey{slot: slot, purpose: p, bytes: p.Bytes, resume: k.Resume, spent: k.Spent}
	if c.scheme == Scheme34 {
		if p.Reading == table.ReadNever {
			bad("%s does not fit the 3/4 coding scheme", p.Name)
		}
		ck.bytes = coding.DataLen34
	}
	switch {
	case c.hidden(b.RDDisAll):
		bad("is read-protected, so it is in use")
	case c.locked(b.WRDis, b.Index):
		bad("is write-protected")
	case c.filled[b.Index] && !k.Resume:
		bad("is not empty")
	}
	if k.Spent < 0 || k.Spent > 0 && !k.Resume {
		bad("%d burns cannot be spent on a key whose burn is not resumed", k.Spent)
	}
	if hasPurpose {
		now := c.get(pf)
		if now != 0 && !k.Resume {
			bad("is in use as %s", purposeName(c.t, now))
		}
		c.purposeRules(cs, pf, now, uint64(p.Value))
		if now != uint64(p.Value) && c.locked(pf.WRDis, pf.Block) {
			bad("its purpose is write-protected")
		} else if now == 0 && !k.Resume && c.locked(pf.WRDis, pf.Block) {
			bad("its purpose is locked as USER: the block is in use")
		}
		for i, bit := range pf.Bits() {
			if p.Value>>i&1 != 0 {
				c.want(cs, pf.Block, bit, fmt.Sprintf("%s is %s for good", b.Name, p.Name))
			}
		}
	}
	c.keyFields(cs, b, p, bad)
	cs.keys = append(cs.keys, ck)
	note := fmt.Sprintf("%d key bytes, in order", ck.bytes)
	switch {
	case p.Reading == table.ReadNever:
		note = fmt.Sprintf("%d bytes of a digest, in order; the chip reads it for ever", ck.bytes)
	case p.Reversed:
		note = fmt.Sprintf("%d key bytes, last byte first", ck.bytes)
	}
	cs.bits = append(cs.bits, Bit{Stage: cs.Name, BitRef: BitRef{Block: slot.Name, Bit: -1, Field: slot.Name}, Note: note})
}

// keyFields adds the fields that are burned with a key, and refuses a key beside the
// fields of another one: the chip would read the block as that.
func (c *checker) keyFields(cs *checkedStage, b table.Block, p table.Purpose, bad func(string, ...any)) {
	for _, name := range p.Sets {
		f, _ := c.t.Field(name)
		if c.get(f) == 0 && c.locked(f.WRDis, f.Block) {
			bad("%s is write-protected, and %s needs it", name, p.Name)
		}
		c.want(cs, f.Block, f.Bits()[0], fmt.Sprintf("%s is %s for good", b.Name, p.Name))
	}
	for _, other := range c.t.Purposes() {
		slot, ok := c.t.Slot(other.Block)
		if !ok || slot.Block != b.Index {
			continue
		}
		for _, name := range other.Sets {
			if f, _ := c.t.Field(name); !slices.Contains(p.Sets, name) && c.get(f) != 0 {
				bad("%s is set, so the chip takes the block for %s", name, other.Name)
			}
		}
	}
}

// codedBlocks refuses fields in blocks that a coding scheme allows to be burned
// once only and that hold something already.
func (c *checker) codedBlocks(cs *checkedStage) {
	for i := 1; i < len(cs.want); i++ {
		if !slices.ContainsFunc(cs.want[i], func(v uint32) bool { return v != 0 }) || covers(c.words[i], cs.want[i]) {
			continue
		}
		switch name := c.n.blocks[i].Name; {
		case c.scheme == Scheme34:
			c.problem(cs.Name, name, "fields of a 3/4-coded block are not supported")
		case c.scheme == SchemeRS && slices.ContainsFunc(c.words[i], func(v uint32) bool { return v != 0 }):
			c.problem(cs.Name, name, "is not empty, and its coding allows one burn only")
		}
	}
}

// covers reports that every wanted bit is present.
func covers(have, want []uint32) bool {
	for i, w := range want {
		if w&^have[i] != 0 {
			return false
		}
	}
	return true
}

// Hash names the plan. It covers the kind of chip, the hash of its eFuse table,
// the coding scheme, and for each stage its name, the key blocks with purpose and
// length, and every bit that is to be set afterwards, in order.
//
// Of the snapshot only the coding scheme goes in: it decides the key's length.
// So the same recipe gives the same hash on every virgin chip of a kind, whatever
// its MAC, calibration and factory-set fuses. What was set before is in Bits and
// in the snapshot that the journal keeps beside the hash. Key bytes do not go in.
func (p CheckedPlan) Hash() [sha256.Size]byte { return p.hash }

func (p CheckedPlan) sum() (out [sha256.Size]byte) {
	h := sha256.New()
	text := func(s string) {
		number(h, len(s))
		h.Write([]byte(s))
	}
	text("provisiond eFuse plan v1")
	text(p.m.Name)
	th := p.base.t.Hash()
	h.Write(th[:])
	text(p.scheme.String())
	number(h, len(p.stages))
	for _, st := range p.stages {
		text(st.Name)
		if st.Resume {
			number(h, -2) // no length, so it stands for nothing else
		}
		switch len(st.keys) {
		case 0:
			text("")
		case 1:
		default:
			number(h, -3) // no length either
			number(h, len(st.keys))
		}
		for _, k := range st.keys {
			text(k.slot.Name)
			text(k.purpose.Name)
			number(h, k.bytes)
			number(h, map[bool]int{false: 0, true: 1}[k.resume])
		}
		for i, want := range st.want {
			for w, v := range want {
				if v != 0 {
					number(h, i<<16|w)
					number(h, int(v))
				}
			}
		}
		number(h, -1)
	}
	h.Sum(out[:0])
	return out
}

func number(h hash.Hash, n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}

// Bit is a line of the plan as it is shown before anything is burned.
type Bit struct {
	Stage string `json:"stage"`
	BitRef
	AlreadySet bool   `json:"already_set,omitempty"` // nothing to do
	Note       string `json:"note"`                  // what it does, for good
}

// Bits lists every bit, stage by stage. A key is one line with Bit -1.
func (p CheckedPlan) Bits() []Bit {
	var out []Bit
	for _, st := range p.stages {
		out = append(out, st.bits...)
	}
	return out
}

// Stages gives the stages as they were planned.
func (p CheckedPlan) Stages() []Stage {
	out := make([]Stage, len(p.stages))
	for i, st := range p.stages {
		out[i] = st.Stage
	}
	return cloneStages(out)
}

// Chip is the name of the chip's model, "" for a plan that was not checked.
func (p CheckedPlan) Chip() string { return p.m.Name }

// KeyLens is how many bytes Burn wants for each key of a stage, in the order of its Keys.
func (p CheckedPlan) KeyLens(stage int) []int {
	if stage < 0 || stage >= len(p.stages) {
		return nil
	}
	var out []int
	for _, k := range p.stages[stage].keys {
		out = append(out, k.bytes)
	}
	return out
}

// Final reports that a stage closes the loader: after it the chip may answer no more.
func (p CheckedPlan) Final(stage int) bool {
	return stage >= 0 && stage < len(p.stages) && p.stages[stage].final
}

// MarshalJSON writes the plan with its hashes and bits.
func (p CheckedPlan) MarshalJSON() ([]byte, error) {
	if p.base == nil {
		return []byte("null"), nil
	}
	type key struct {
		Block   string `json:"block"`
		Purpose string `json:"purpose"`
		Bytes   int    `json:"bytes"`
		Resume  bool   `json:"resume,omitempty"`
	}
	type stage struct {
		Name   string `json:"name"`
		Final  bool   `json:"final,omitempty"`
		Keys   []key  `json:"keys,omitempty"`
		Resume bool   `json:"resume,omitempty"`
		Bits   []Bit  `json:"bits"`
	}
	th := p.base.t.Hash()
	out := struct {
		Chip        string  `json:"chip"`
		PlanSHA256  string  `json:"plan_sha256"`
		TableSHA256 string  `json:"table_sha256"`
		TableSource string  `json:"table_source"`
		Scheme      Scheme  `json:"coding_scheme"`
		Stages      []stage `json:"stages"`
	}{Chip: p.m.Name, PlanSHA256: hex.EncodeToString(p.hash[:]), TableSHA256: hex.EncodeToString(th[:]), TableSource: p.base.t.Source().String(), Scheme: p.scheme, Stages: []stage{}}
	for _, st := range p.stages {
		s := stage{Name: st.Name, Final: st.final, Resume: st.Resume, Bits: append([]Bit{}, st.bits...)}
		for _, k := range st.keys {
			s.Keys = append(s.Keys, key{k.slot.Name, k.purpose.Name, k.bytes, k.resume})
		}
		out.Stages = append(out.Stages, s)
	}
	return json.Marshal(out)
}
