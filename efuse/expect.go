package efuse

import (
	"fmt"
	"maps"
	"math/bits"
	"strings"

	"github.com/provisiond/provisiond/efuse/table"
)

// Expectation is what a chip has to show after a stage.
type Expectation struct {
	p     CheckedPlan
	stage int                    // -1: before the first one
	keys  map[string]Fingerprint // by slot
}

// Expected is what the chip has to show after a stage; with stage -1, before the
// first one.
func (p CheckedPlan) Expected(stage int) Expectation {
	return Expectation{p: p, stage: min(stage, len(p.stages)-1)}
}

// WithKey adds what a slot that the plan burns has to hold while it can be read.
// Without it any contents pass, since a plan does not know the keys.
func (e Expectation) WithKey(slot string, fp Fingerprint) Expectation {
	e.keys = maps.Clone(e.keys)
	if e.keys == nil {
		e.keys = map[string]Fingerprint{}
	}
	if e.p.base != nil {
		if s, ok := e.p.base.t.Slot(slot); ok {
			e.keys[s.Name] = fp
		}
	}
	return e
}

// UnexpectedBitsError names every bit that is not as the plan says.
type UnexpectedBitsError struct {
	After   string // the stage, or "" before the first one
	Outside []BitRef
	Missing []BitRef
	Blocks  []Problem    // key blocks
	Errors  []BlockError // of the error registers
}

func (e *UnexpectedBitsError) Error() string {
	var b strings.Builder
	if e.After == "" {
		b.WriteString("the eFuses are not as they were when the plan was checked")
	} else {
		fmt.Fprintf(&b, "after stage %s the eFuses are not as planned", e.After)
	}
	for _, r := range e.Outside {
		fmt.Fprintf(&b, "; outside the plan: %v", r)
	}
	for _, r := range e.Missing {
		fmt.Fprintf(&b, "; missing: %v", r)
	}
	for _, p := range e.Blocks {
		fmt.Fprintf(&b, "; %s: %s", p.What, p.Reason)
	}
	for _, x := range e.Errors {
		fmt.Fprintf(&b, "; %v", x)
	}
	b.WriteString("; set the unit aside and compare its snapshots")
	return b.String()
}

func (e *UnexpectedBitsError) empty() bool {
	return len(e.Outside)+len(e.Missing)+len(e.Blocks)+len(e.Errors) == 0
}

// Verify compares a snapshot, bit by bit. It fails with *UnexpectedBitsError, or
// with ErrOtherChip for another board.
func (e Expectation) Verify(s *Snapshot) error {
	p := e.p
	if p.base == nil {
		return errUnchecked
	}
	if s.m.Name != p.m.Name {
		return fmt.Errorf("%s in place of %s: %w", s.m.Title, p.m.Title, ErrOtherChip)
	}
	if was, is := p.base.must("MAC"), s.must("MAC"); was != is {
		idWas, _ := p.base.Identity() // Check made sure that it has one
		idIs, err := s.Identity()
		if err != nil {
			return err
		}
		return fmt.Errorf("the board with MAC %v in place of %v: %w", idIs.MAC, idWas.MAC, ErrOtherChip)
	}
	bad := &UnexpectedBitsError{}
	for _, x := range s.BlockErrors() {
		if !p.mends(x, e.stage+1) { // what a later stage burns again may be half burned until then
			bad.Errors = append(bad.Errors, x)
		}
	}
	if e.stage >= 0 {
		bad.After = p.stages[e.stage].Name
	}
	want, burned := e.state()
	n := namerOf(s.t)
	rd := fieldOf(s, want, "RD_DIS")
	hides := func(list []int) bool {
		for _, bit := range list {
			if rd>>bit&1 != 0 {
				return true
			}
		}
		return false
	}
	for i, b := range n.blocks {
		if b.Key {
			slots := b.Slots()
			if _, whole := burned[b.Name]; whole {
				slots = []table.Slot{b.Whole()}
			}
			for _, slot := range slots {
				p, ours := burned[slot.Name]
				e.keySlot(bad, s, slot, ours, p.Reversed, hides(slot.RDDis))
			}
			continue
		}
		for w := range b.Words {
			exp := want[i][w]
			for bit := range 32 {
				if f, ok := n.field(i, 32*w+bit); hides(b.RDDisAll) || ok && hides(f.RDDisAll) {
					exp &^= 1 << bit
				}
			}
			got := s.blocks[i].words[w]
			for d := got ^ exp; d != 0; d &= d - 1 {
				bit := bits.TrailingZeros32(d)
				ref := n.ref(i, 32*w+bit)
				if got>>bit&1 != 0 {
					bad.Outside = append(bad.Outside, ref)
				} else {
					bad.Missing = append(bad.Missing, ref)
				}
			}
		}
	}
	if bad.empty() {
		return nil
	}
	return bad
}

// state is the words that the chip holds after the stage, hidden or not, and the
// slots that the plan has burned, with their purpose.
func (e Expectation) state() (words [][]uint32, burned map[string]table.Purpose) {
	burned = map[string]table.Purpose{}
	for _, b := range e.p.base.blocks {
		words = append(words, append([]uint32(nil), b.words...))
	}
	for i := 0; i <= e.stage; i++ {
		st := e.p.stages[i]
		for blk := range words {
			for w := range words[blk] {
				words[blk][w] |= st.want[blk][w]
			}
		}
		for _, k := range st.keys {
			burned[k.slot.Name] = k.purpose
		}
	}
	return words, burned
}

func fieldOf(s *Snapshot, words [][]uint32, name string) (v uint64) {
	f, _ := s.t.Field(name)
	for i, bit := range f.Bits() {
		if words[f.Block][bit/32]>>(bit%32)&1 != 0 {
			v |= 1 << i
		}
	}
	return v
}

// keySlot compares where one key goes: what is hidden reads as zeros, a slot that
// the plan burned holds something, and the others hold what they held.
func (e Expectation) keySlot(bad *UnexpectedBitsError, s *Snapshot, slot table.Slot, burned, reversed, hidden bool) {
	add := func(reason string) { bad.Blocks = append(bad.Blocks, Problem{What: slot.Name, Reason: reason}) }
	is := s.fingerprint(slot, reversed)
	switch {
	case hidden:
		if !is.IsZero() {
			add("can be read, though it has to be hidden")
		}
	case burned:
		if fp, given := e.keys[slot.Name]; is.IsZero() {
			add("is empty, though a key has to be there")
		} else if given && is != fp {
			add("holds another key: fingerprint " + is.String())
		}
	case s.fingerprint(slot, true) != e.p.base.fingerprint(slot, true):
		add("holds something else than when the plan was checked")
	}
}
