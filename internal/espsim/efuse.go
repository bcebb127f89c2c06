package espsim

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// copies is how often the newer controllers hold a bit of BLOCK0. WR_DIS, its
// first word, is there only once (ESP32-C3 TRM 4.3.1.2).
const copies = 4

// Values of CONF, and bits of CMD (esp-facts B.1).
const (
	confProgram = 0x5A5A
	confRead    = 0x5AA5
	cmdRead     = 1 << 0
	cmdProgram  = 1 << 1
)

// fuses is the eFuse array with its controller.
//
// Three views are kept apart. The cells are the fuses themselves. Loaded is what
// the controller decoded from them at the last read command or reset: it is what
// the chip's own hardware obeys. The read registers show loaded with the
// read-protected parts as zeros.
type fuses struct {
	ef     chip.EFuse
	blocks []table.Block
	tab    *table.Table

	cells  [][]uint32 // see cellWords
	loaded [][]uint32
	shown  [][]uint32
	wrDis  []int // for each bit of BLOCK0, the bit of WR_DIS that locks it, or table.None

	pending [][]uint32 // ESP32: WDATA of each block
	pgm     [8]uint32  // PGM_DATA
	check   [3]uint32  // CHECK_VALUE
	conf    uint32

	repeatErr []uint32
	rsErr     uint64 // RS_ERR0 and, above it, RS_ERR1
	decStatus uint32

	// polls holds what the next reads of CMD show while a command runs: the
	// command ends with the last of them. runsFor gives them for a command.
	polls   []uint32
	done    func()
	runsFor func(cmd uint32) []uint32

	rng   *rand.Rand // which bits a bad burn misses
	weak  float64
	tried map[[2]int]bool // cells that were programmed at least once, for weak
	stuck []Bit
	burns int
}

func newFuses(m chip.Model, tab *table.Table) *fuses {
	f := &fuses{ef: m.EFuse, blocks: tab.Blocks(), tried: map[[2]int]bool{}}
	f.runsFor = f.usualPolls
	for _, b := range f.blocks {
		f.cells = append(f.cells, make([]uint32, f.cellWords(b)))
		f.loaded = append(f.loaded, make([]uint32, b.Words))
		f.shown = append(f.shown, make([]uint32, b.Words))
		f.pending = append(f.pending, make([]uint32, b.Words))
	}
	f.repeatErr = make([]uint32, f.ef.RepeatErrWords)
	f.use(tab)
	return f
}

// use takes the fields of a table: those of another revision lie elsewhere in the
// same blocks.
func (f *fuses) use(tab *table.Table) {
	f.tab = tab
	f.wrDis = make([]int, 32*f.blocks[0].Words)
	for i := range f.wrDis {
		f.wrDis[i] = table.None
	}
	for _, fd := range tab.Fields() {
		if fd.Block == 0 {
			for _, bit := range fd.Bits() {
				f.wrDis[bit] = fd.WRDis
			}
		}
	}
}

// cellWords is how many words of cells a block has: BLOCK0 four copies one after
// the other and an RS block its parity behind the data, both on the newer
// controllers; the ESP32 just its words.
func (f *fuses) cellWords(b table.Block) int {
	switch {
	case f.ef.Kind == chip.EFuseESP32:
		return b.Words
	case b.Index == 0:
		return copies * b.Words
	default:
		return 8 + rsParity/4
	}
}

// usualPolls is how long commands take, in reads of CMD: a read command of the newer
// controllers shows idle once before it starts (esp-facts B.5).
func (f *fuses) usualPolls(cmd uint32) []uint32 {
	switch {
	case cmd&cmdProgram != 0:
		return []uint32{cmd, cmd, cmd}
	case f.ef.Kind == chip.EFuseRS:
		return []uint32{0, cmd}
	default:
		return []uint32{cmd, cmd}
	}
}

// field gives a field's value from loaded, or 0 if the chip has no such field.
func (f *fuses) field(name string) (v uint64) {
	fd, ok := f.tab.Field(name)
	if !ok {
		return 0
	}
	for i, bit := range fd.Bits() {
		if f.loaded[fd.Block][bit/32]>>(bit%32)&1 != 0 {
			v |= 1 << i
		}
	}
	return v
}

// reset is a reset of the chip: the controller forgets what was prepared and
// loads the fuses.
func (f *fuses) reset() {
	f.polls, f.done, f.conf = nil, nil, 0
	f.pgm, f.check = [8]uint32{}, [3]uint32{}
	for _, p := range f.pending {
		clear(p)
	}
	f.load()
}

// load decodes the cells and refreshes the read registers.
func (f *fuses) load() {
	clear(f.repeatErr)
	f.rsErr, f.decStatus = 0, 0
	for _, b := range f.blocks {
		switch {
		case f.ef.Kind == chip.EFuseESP32:
			copy(f.loaded[b.Index], f.cells[b.Index])
		case b.Index == 0:
			f.loadCopies(b)
		default:
			f.loadRS(b)
		}
	}
	if f.ef.Kind == chip.EFuseESP32 && f.field("CODING_SCHEME") == 1 {
		for _, b := range f.blocks[1:] {
			data, wrong := decode34(f.cells[b.Index])
			clear(f.loaded[b.Index])
			copy(f.loaded[b.Index], data)
			f.decStatus |= wrong << (4 * (b.Index - 1))
		}
	}
	f.show()
}

// loadCopies reads BLOCK0 of the newer controllers: a bit counts as programmed
// when at least two of its copies are, and copies that disagree show as errors.
func (f *fuses) loadCopies(b table.Block) {
	cells, out := f.cells[0], f.loaded[0]
	out[0] = cells[0]
	for w := 1; w < b.Words; w++ {
		out[w] = 0
		for bit := range 32 {
			n := uint32(0)
			for c := range copies {
				n += cells[c*b.Words+w] >> bit & 1
			}
			if n >= 2 {
				out[w] |= 1 << bit
			}
			if n%copies != 0 && w-1 < len(f.repeatErr) {
				f.repeatErr[w-1] |= 1 << bit
			}
		}
	}
}

// loadRS reads an RS block. Beyond repair the data come as they stand. The nibble
// of block n counts wrong bytes in its low three bits; its fail bit is bit 3, or
// on a chip with the design error bit 3 of the nibble above, which the last
// block has not (esp-facts B.6).
func (f *fuses) loadRS(b table.Block) {
	code := wordBytes(f.cells[b.Index])
	wrong, ok := rsCorrect(code)
	copy(f.loaded[b.Index], bytesWords(code[:4*b.Words]))
	at := 4 * (b.Index - 1)
	if !ok {
		wrong = 7
		fail := at + 3
		if f.ef.RSFailShifted {
			fail += 4
		}
		if !f.ef.RSFailShifted || b.Index < len(f.blocks)-1 {
			f.rsErr |= 1 << fail
		}
	}
	f.rsErr |= uint64(min(wrong, 7)) << at
}

// show fills the read registers.
func (f *fuses) show() {
	rd := f.field("RD_DIS")
	for _, b := range f.blocks {
		out := f.shown[b.Index]
		copy(out, f.loaded[b.Index])
		for i, bit := range b.RDDisAll {
			if rd>>bit&1 != 0 {
				part := len(out) / len(b.RDDisAll)
				clear(out[i*part : (i+1)*part])
			}
		}
	}
	for _, fd := range f.tab.Fields() {
		if fd.Block == 0 && fd.RDDis != table.None && rd>>fd.RDDis&1 != 0 {
			for _, bit := range fd.Bits() {
				f.shown[0][bit/32] &^= 1 << (bit % 32)
			}
		}
	}
}

// read answers a read of one of the controller's registers.
func (f *fuses) read(addr uint32) (uint32, bool) {
	off := addr - f.ef.Base
	for _, b := range f.blocks {
		if v, ok := word(f.shown[b.Index], off, b.ReadOff); ok {
			return v, true
		}
		if f.ef.Kind == chip.EFuseESP32 {
			if v, ok := word(f.pending[b.Index], off, b.WriteOff); ok {
				return v, true
			}
		}
	}
	switch addr {
	case f.ef.Conf:
		return f.conf, true
	case f.ef.Cmd:
		return f.poll(), true
	}
	if f.ef.Kind == chip.EFuseESP32 {
		return f.decStatus, addr == f.ef.DecStatus
	}
	if v, ok := word(f.pgm[:], addr, f.ef.PgmData); ok {
		return v, true
	}
	if v, ok := word(f.check[:], addr, f.ef.CheckValue); ok {
		return v, true
	}
	if v, ok := word(f.repeatErr, addr, f.ef.RepeatErr); ok {
		return v, true
	}
	switch addr {
	case f.ef.RSErr[0]:
		return uint32(f.rsErr), true
	case f.ef.RSErr[1]:
		return uint32(f.rsErr >> 32), f.ef.RSErr[1] != 0
	}
	return 0, false
}

func word(words []uint32, addr, base uint32) (uint32, bool) {
	if i := (addr - base) / 4; addr >= base && addr%4 == 0 && i < uint32(len(words)) {
		return words[i], true
	}
	return 0, false
}

// write takes a write to one of the controller's registers. While a command runs
// the controller takes nothing.
func (f *fuses) write(addr, v uint32, good, cut bool) bool {
	set := func(words []uint32, a, base uint32) bool {
		if _, ok := word(words, a, base); !ok {
			return false
		}
		if len(f.polls) == 0 {
			words[(a-base)/4] = v
		}
		return true
	}
	if f.ef.Kind == chip.EFuseESP32 {
		for _, b := range f.blocks {
			if set(f.pending[b.Index], addr-f.ef.Base, b.WriteOff) {
				return true
			}
		}
	} else if set(f.pgm[:], addr, f.ef.PgmData) || set(f.check[:], addr, f.ef.CheckValue) {
		return true
	}
	switch addr {
	case f.ef.Conf:
		if len(f.polls) == 0 {
			f.conf = v
		}
	case f.ef.Cmd:
		f.command(v, good, cut)
	default:
		return false
	}
	return true
}

// command starts what was written to CMD, if CONF allows it. Good says that the
// timing registers are right; cut, that the power fails in the middle of a burn.
func (f *fuses) command(cmd uint32, good, cut bool) {
	if len(f.polls) != 0 {
		return
	}
	switch {
	case cmd&cmdProgram != 0 && f.conf == confProgram:
		f.burn(int(cmd>>2&0xF), good, cut)
		f.done = func() {}
	case cmd&cmdRead != 0 && f.conf == confRead:
		f.done = f.load
	default:
		return
	}
	if f.polls = slices.Clone(f.runsFor(cmd)); len(f.polls) == 0 {
		f.finish()
	}
}

// busy reports whether a command runs.
func (f *fuses) busy() bool { return len(f.polls) != 0 }

// poll is a read of CMD.
func (f *fuses) poll() uint32 {
	if len(f.polls) == 0 {
		return 0
	}
	v := f.polls[0]
	f.tick()
	return v
}

// tick lets the time of one loader command pass.
func (f *fuses) tick() {
	if len(f.polls) == 0 {
		return
	}
	if f.polls = f.polls[1:]; len(f.polls) == 0 {
		f.finish()
	}
}

func (f *fuses) finish() {
	f.polls = nil
	if f.done != nil {
		f.done()
		f.done = nil
	}
}

// burn programs a block from PGM_DATA and CHECK_VALUE, or on the ESP32 all
// blocks from their WDATA.
func (f *fuses) burn(block int, good, cut bool) {
	f.burns++
	miss := func() bool {
		return !good && f.rng.Float64() < 0.25 || cut && f.rng.Float64() < 0.5
	}
	if f.ef.Kind == chip.EFuseESP32 {
		for _, b := range f.blocks {
			f.burnBlock(b, f.pending[b.Index], miss)
		}
		return
	}
	if block >= len(f.blocks) {
		return
	}
	b := f.blocks[block]
	if block != 0 {
		f.burnBlock(b, append(slices.Clone(f.pgm[:]), f.check[:]...), miss)
		return
	}
	var want []uint32
	for range copies {
		want = append(want, f.pgm[:b.Words]...)
	}
	f.burnBlock(b, want, miss)
}

// burnBlock blows the wanted cells of a block. Nothing blows back.
func (f *fuses) burnBlock(b table.Block, want []uint32, miss func() bool) {
	locks := f.field("WR_DIS")
	if b.WRDis != table.None && locks>>b.WRDis&1 != 0 {
		return
	}
	for w, v := range want {
		for bit := range 32 {
			if v>>bit&1 == 0 || f.cells[b.Index][w]>>bit&1 != 0 {
				continue
			}
			cell := 32*w + bit
			logical := cell
			if b.Index == 0 {
				logical %= 32 * b.Words
				if by := f.wrDis[logical]; by != table.None && locks>>by&1 != 0 {
					continue
				}
			}
			if f.takes(b.Index, cell, logical) && !miss() {
				f.cells[b.Index][w] |= 1 << bit
			}
		}
	}
}

// program burns data words of a block from inside the chip, as boot code does:
// with the right timing and check bits.
func (f *fuses) program(block int, words []uint32) {
	b := f.blocks[block]
	want := slices.Clone(words)
	switch {
	case f.ef.Kind == chip.EFuseESP32 && block != 0 && f.field("CODING_SCHEME") == 1:
		want = encode34(words)
	case f.ef.Kind == chip.EFuseESP32:
	case block == 0:
		want = nil
		for range copies {
			want = append(want, words...)
		}
	default:
		data := append(slices.Clone(words), make([]uint32, 8-len(words))...)
		want = append(data, rsEncode(data)...)
	}
	f.burns++
	f.burnBlock(b, want, func() bool { return false })
}

// takes applies the faults of single cells.
func (f *fuses) takes(block, cell, logical int) bool {
	if slices.Contains(f.stuck, Bit{block, logical}) {
		return false
	}
	key := [2]int{block, cell}
	if f.weak == 0 || f.tried[key] {
		return true
	}
	f.tried[key] = true
	return f.rng.Float64() >= f.weak
}

// put writes data words straight into a block's cells, as the factory does.
func (f *fuses) put(block int, data []uint32) error {
	b := f.blocks[block]
	cells := f.cells[block]
	switch {
	case len(data) > b.Words:
		return fmt.Errorf("%s has %d words, not %d", b.Name, b.Words, len(data))
	case f.ef.Kind == chip.EFuseESP32 && block != 0 && f.field("CODING_SCHEME") == 1:
		for len(data) > 6 {
			if data[len(data)-1] != 0 {
				return fmt.Errorf("%s has 6 words in the 3/4 coding scheme, not %d", b.Name, len(data))
			}
			data = data[:len(data)-1]
		}
		copy(cells, encode34(data))
	case f.ef.Kind == chip.EFuseESP32:
		clear(cells)
		copy(cells, data)
	case block == 0:
		clear(cells)
		for c := range copies {
			copy(cells[c*b.Words:], data)
		}
	default:
		clear(cells)
		copy(cells, data)
		copy(cells[8:], rsEncode(cells[:8]))
	}
	return nil
}

// putField writes a field, and with it its whole block, as the factory does.
func (f *fuses) putField(name string, v uint64) error {
	fd, ok := f.tab.Field(name)
	if !ok {
		return fmt.Errorf("%s has no eFuse field %s", f.tab.Chip(), name)
	}
	data := f.data(fd.Block)
	for i, bit := range fd.Bits() {
		data[bit/32] &^= 1 << (bit % 32)
		data[bit/32] |= uint32(v>>i&1) << (bit % 32)
	}
	return f.put(fd.Block, data)
}

// fits says whether a field is wide enough for a value.
func (f *fuses) fits(name string, v uint64) bool {
	fd, ok := f.tab.Field(name)
	return ok && v>>len(fd.Bits()) == 0
}

// data gives the decoded words of a block whatever hides them.
func (f *fuses) data(block int) []uint32 { return f.decoded()[block] }

// decoded is data for all blocks.
func (f *fuses) decoded() [][]uint32 {
	g := *f
	g.loaded, g.shown, g.repeatErr = deepClone(f.loaded), deepClone(f.shown), slices.Clone(f.repeatErr)
	g.load()
	return g.loaded
}

// damaged is what the error registers say of a block after a load.
func (f *fuses) damaged(block int) bool {
	g := *f
	g.loaded, g.shown, g.repeatErr = deepClone(f.loaded), deepClone(f.shown), slices.Clone(f.repeatErr)
	g.load()
	switch {
	case f.ef.Kind == chip.EFuseESP32:
		return block > 0 && g.decStatus>>(4*(block-1))&0xF != 0
	case block == 0:
		return slices.ContainsFunc(g.repeatErr, func(v uint32) bool { return v != 0 })
	}
	return g.rsErr>>(4*(block-1))&7 != 0
}

func deepClone(w [][]uint32) [][]uint32 {
	out := make([][]uint32, len(w))
	for i := range w {
		out[i] = slices.Clone(w[i])
	}
	return out
}

// Values of KEY_PURPOSE_n for the keys of the flash cipher, on every chip of the
// family that has such fields (esp-facts B.9).
const (
	xtsKey1Purpose = 2
	xtsKey2Purpose = 3
	xtsPurpose     = 4
)

// flashKey gives the key that the flash encryption unit takes, in the byte order
// of the array, or nil. It sees read-protected keys: that is what they are for.
func (f *fuses) flashKey() []byte {
	if f.ef.Kind == chip.EFuseESP32 {
		words := f.loaded[1]
		if f.field("CODING_SCHEME") == 1 {
			words = words[:6]
		}
		return wordBytes(words)
	}
	if _, ok := f.tab.Field(fmt.Sprintf("KEY_PURPOSE_%d", 0)); !ok {
		// The ESP32-C2's only block: all of it, or its low half alone.
		for _, b := range f.blocks {
			if b.Key && f.field("XTS_KEY_LENGTH_256") != 0 {
				return wordBytes(f.loaded[b.Index])
			} else if b.Key {
				return wordBytes(f.loaded[b.Index][:4])
			}
		}
	}
	short, first, second := f.keyFor(xtsPurpose), f.keyFor(xtsKey1Purpose), f.keyFor(xtsKey2Purpose)
	switch {
	case first == nil && second == nil:
		return short
	case short != nil:
		return nil // both kinds: what silicon does then is not published
	}
	zero := make([]byte, 32)
	if first == nil {
		first = zero
	}
	if second == nil {
		second = zero
	}
	return append(first, second...)
}

// keyFor gives the first key block that serves for a purpose.
func (f *fuses) keyFor(purpose uint64) []byte {
	n := 0
	for _, b := range f.blocks {
		if !b.Key {
			continue
		}
		// The last key block does not serve as an XTS key on some chips.
		useless := f.ef.NoXTSInLastKey && n == f.ef.KeyBlocks-1
		if !useless && f.field(fmt.Sprintf("KEY_PURPOSE_%d", n)) == purpose {
			return wordBytes(f.loaded[b.Index])
		}
		n++
	}
	return nil
}
