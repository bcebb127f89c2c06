package bootrom

import (
	"encoding/binary"
	"slices"

	"github.com/provisiond/provisiond/efuse/table"
)

// fuseView is the eFuses as boot code sees them, and what it burns. As in
// ESP-IDF, burns are collected in a batch and become visible when it is committed.
type fuseView struct {
	tab    *table.Table
	blocks []table.Block
	words  [][]uint32 // as the read registers show them
	batch  [][]uint32
	done   [][]uint32 // all that was committed
}

func newFuseView(e EFuses) *fuseView {
	f := &fuseView{tab: e.Table}
	if e.Table == nil {
		return f
	}
	f.blocks = e.Table.Blocks()
	for i, b := range f.blocks {
		w := make([]uint32, b.Words)
		if i < len(e.Words) {
			copy(w, e.Words[i])
		}
		f.words = append(f.words, w)
		f.batch = append(f.batch, make([]uint32, b.Words))
		f.done = append(f.done, make([]uint32, b.Words))
	}
	return f
}

// field finds a field; the zero view has none.
func (f *fuseView) field(name string) (table.Field, bool) {
	if f.tab == nil || name == "" {
		return table.Field{}, false
	}
	return f.tab.Field(name)
}

// get gives a field's value, 0 if the chip has no such field.
func (f *fuseView) get(name string) (v uint64) {
	fd, ok := f.field(name)
	if !ok {
		return 0
	}
	for i, bit := range fd.Bits() {
		v |= uint64(f.words[fd.Block][bit/32]>>(bit%32)&1) << i
	}
	return v
}

// full reports whether every bit of a field is burned.
func (f *fuseView) full(name string) bool {
	fd, ok := f.field(name)
	return ok && f.get(name) == 1<<fd.Len()-1
}

// bytes gives a block's content, first byte lowest.
func (f *fuseView) bytes(block int) []byte {
	var out []byte
	for _, w := range f.words[block] {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out
}

// set adds a value to the batch.
func (f *fuseView) set(name string, v uint64) {
	fd, ok := f.field(name)
	if !ok {
		return
	}
	for i, bit := range fd.Bits() {
		f.batch[fd.Block][bit/32] |= uint32(v>>i&1) << (bit % 32)
	}
}

// fill adds all bits of a field to the batch.
func (f *fuseView) fill(name string) {
	if fd, ok := f.field(name); ok {
		f.set(name, 1<<fd.Len()-1)
	}
}

// put adds the bytes of a whole block to the batch, from bit 0 on.
func (f *fuseView) put(block int, b []byte) {
	b = append(slices.Clone(b), make([]byte, -len(b)&3)...)
	for i := 0; i < len(b); i += 4 {
		f.batch[block][i/4] |= binary.LittleEndian.Uint32(b[i:])
	}
}

// cancel drops the batch.
func (f *fuseView) cancel() {
	for _, w := range f.batch {
		clear(w)
	}
}

// commit burns what is missing of the batch. It reports whether all of it could be
// burned: what WR_DIS locks stays as it is.
func (f *fuseView) commit() bool {
	locks := f.get("WR_DIS")
	locked := func(by int) bool { return by != table.None && locks>>by&1 != 0 }
	closed := make([]uint32, len(f.batch[0])) // bits of BLOCK0 that WR_DIS locks
	for _, fd := range f.tab.Fields() {
		if fd.Block == 0 && locked(fd.WRDis) {
			for _, bit := range fd.Bits() {
				closed[bit/32] |= 1 << (bit % 32)
			}
		}
	}
	all := true
	for i, b := range f.blocks {
		for w, v := range f.batch[i] {
			v &^= f.words[i][w]
			stays := uint32(0)
			if i == 0 {
				stays = v & closed[w]
			} else if locked(b.WRDis) {
				stays = v
			}
			all = all && stays == 0
			f.words[i][w] |= v &^ stays
			f.done[i][w] |= v &^ stays
		}
	}
	f.cancel()
	f.hide()
	return all
}

// hide blanks what RD_DIS hides.
func (f *fuseView) hide() {
	rd := f.get("RD_DIS")
	for i, b := range f.blocks {
		for n, bit := range b.RDDisAll {
			if rd>>bit&1 != 0 {
				part := len(f.words[i]) / len(b.RDDisAll)
				clear(f.words[i][n*part : (n+1)*part])
			}
		}
	}
}

// burned lists the blocks that commits have changed, highest first, as ESP-IDF
// burns them: BLOCK0, which protects the others, comes last.
func (f *fuseView) burned() []Burn {
	var out []Burn
	for i := len(f.done) - 1; i >= 0; i-- {
		if slices.ContainsFunc(f.done[i], func(w uint32) bool { return w != 0 }) {
			out = append(out, Burn{Block: i, Words: slices.Clone(f.done[i])})
		}
	}
	return out
}

// keyBlock finds the first key block with a purpose, as boot code looks for it.
func (f *fuseView) keyBlock(purpose int) (block table.Block, n int, ok bool) {
	for _, b := range f.blocks {
		if !b.Key {
			continue
		}
		if f.get(purposeField(n)) == uint64(purpose) {
			return b, n, true
		}
		n++
	}
	return table.Block{}, 0, false
}

// freeKeyBlock finds the first key block that ESP-IDF takes for unused.
func (f *fuseView) freeKeyBlock() (block table.Block, n int, ok bool) {
	for _, b := range f.blocks {
		if !b.Key {
			continue
		}
		used := f.get(purposeField(n)) != 0 || f.get("WR_DIS."+purposeField(n)) != 0 ||
			f.get("WR_DIS."+b.Name) != 0 || f.get("RD_DIS."+b.Name) != 0 ||
			slices.ContainsFunc(f.words[b.Index], func(w uint32) bool { return w != 0 }) ||
			slices.ContainsFunc(f.batch[b.Index], func(w uint32) bool { return w != 0 })
		if !used {
			return b, n, true
		}
		n++
	}
	return table.Block{}, 0, false
}

func purposeField(n int) string { return "KEY_PURPOSE_" + string(rune('0'+n)) }
