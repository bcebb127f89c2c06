package efuse_test

import (
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"testing"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/coding"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// fake is a small model of both eFuse controllers, as strict as these tests
// need: one-way bits, WR_DIS and RD_DIS as loaded by the last read command, the
// codes and their error registers, the timing that a burn needs, and the read
// command's habit to look idle once before it starts.
type fake struct {
	t   testing.TB
	m   chip.Model
	tab *table.Table
	blk []table.Block

	cells [][]uint32 // what is burned: data, and the parity of an RS block behind it
	shown [][]uint32 // the read registers
	regs  map[uint32]uint32
	errs  map[uint32]uint32
	busy  []uint32 // what the next reads of CMD show

	log      []regWrite
	burns    int
	closed   bool // the loader refuses registers
	mhz      int
	instant  bool // commands are over at once
	obeysSDM bool

	// Faults. weak counts how many burns a cell of a block ignores.
	weak    map[[2]int]int
	half    map[int]bool // bits of BLOCK0 whose copies disagree
	onRead  func(addr, v uint32) (uint32, error)
	onWrite func(addr, v uint32) (uint32, error)
}

type regWrite struct {
	addr, value uint32
	delay       time.Duration
}

var errRefused = errors.New("status 01 05: message not allowed")

// factory words as the transcripts show them (esp32 v3.1, esp32c3 v0.3); other chips
// get an identity from newSilicon.
var factory = map[string]map[int][]uint32{
	"esp32":   {0: {0, 0xc47f4b06, 0x0035240a, 0x0000a200, 0x00000e50, 0x01100000, 0}},
	"esp32c3": {1: {0xa1c9c3b3, 0x00007cdf, 0, 0x03100000, 0, 0}, 2: {0x6f061900, 0x4c022b83, 0xc8dcbb87, 0x0c15c56f, 1, 0, 0, 0}},
}

// identityBits says where a chip's revision is (esp-facts B.8).
var identityBits = map[string]struct {
	block int
	parts []revisionBits
}{
	"esp32s2":  {1, []revisionBits{{false, 3, 20, 1, 3}, {false, 4, 4, 3, 0}, {true, 3, 18, 2, 0}}},
	"esp32s3":  {1, []revisionBits{{false, 5, 23, 1, 3}, {false, 3, 18, 3, 0}, {true, 5, 24, 2, 0}}},
	"esp32c6":  {1, []revisionBits{{false, 3, 18, 4, 0}, {true, 3, 22, 2, 0}}},
	"esp32h2":  {1, []revisionBits{{false, 3, 18, 3, 0}, {true, 3, 21, 2, 0}}},
	"esp32c2":  {2, []revisionBits{{false, 1, 16, 4, 0}, {true, 1, 20, 2, 0}}},
	"esp32c5":  {1, []revisionBits{{false, 2, 0, 4, 0}, {true, 2, 4, 2, 0}}},
	"esp32c61": {1, []revisionBits{{false, 2, 0, 4, 0}, {true, 2, 4, 2, 0}}},
	"esp32p4":  {1, []revisionBits{{false, 2, 0, 4, 0}, {true, 2, 4, 2, 0}, {true, 2, 23, 1, 2}}},
}

// revisionBits are bits of a word that hold len bits of the minor or major number,
// from bit from on.
type revisionBits struct {
	major                bool
	word, bit, len, from int
}

func newFake(t testing.TB, name string) *fake {
	t.Helper()
	return newSilicon(t, name, 3)
}

// newSilicon is a fake of a revision, in the chips that factory has not.
func newSilicon(t testing.TB, name string, rev chip.Revision) *fake {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	tab, err := table.ForRevision(name, rev)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, m: m, tab: tab, blk: tab.Blocks(), regs: map[uint32]uint32{}, errs: map[uint32]uint32{}, weak: map[[2]int]int{}, mhz: 40}
	for i, b := range f.blk {
		n := b.Words
		if m.EFuse.Kind == chip.EFuseRS && i > 0 {
			n = 11
		}
		f.cells = append(f.cells, make([]uint32, n))
		f.shown = append(f.shown, make([]uint32, b.Words))
		if w := factory[name][i]; w != nil {
			f.put(i, w)
		}
	}
	if factory[name] == nil {
		id := identityBits[name]
		words := make([]uint32, f.blk[id.block].Words)
		words[0], words[1] = 0xa1c9c3b3, 0x00007cdf
		for _, part := range id.parts {
			v := uint32(rev % 100)
			if part.major {
				v = uint32(rev / 100)
			}
			words[part.word] |= v >> part.from & (1<<part.len - 1) << part.bit
		}
		f.put(id.block, words)
	}
	if m.EFuse.RevisionBit2Register != 0 {
		f.regs[m.EFuse.RevisionBit2Register] = 0x96042000
		f.regs[m.ROM.ApproxFreqReg] = 0x00028000
	}
	f.load()
	return f
}

// put is what the vendor's factory does: words with their parity.
func (f *fake) put(block int, words []uint32) {
	copy(f.cells[block], words)
	if f.m.EFuse.Kind != chip.EFuseRS || block == 0 {
		return
	}
	var data [32]byte
	for i, w := range f.cells[block][:8] {
		binary.LittleEndian.PutUint32(data[4*i:], w)
	}
	check := coding.Parity(&data)
	for i := range 3 {
		f.cells[block][8+i] = binary.LittleEndian.Uint32(check[4*i:])
	}
}

// setField burns a field from outside, at the factory or by somebody else.
func (f *fake) setField(name string, v uint32) {
	fd, ok := f.tab.Field(name)
	if !ok {
		f.t.Fatal("no field ", name)
	}
	for i, bit := range fd.Bits() {
		if i < 32 && v>>i&1 != 0 {
			f.cells[fd.Block][bit/32] |= 1 << (bit % 32)
		}
	}
	f.put(fd.Block, slices.Clone(f.cells[fd.Block]))
	f.load()
}

// field reads a field as the chip's hardware sees it.
func (f *fake) field(name string) (v uint32) {
	fd, _ := f.tab.Field(name)
	for i, bit := range fd.Bits() {
		if f.cells[fd.Block][bit/32]>>(bit%32)&1 != 0 {
			v |= 1 << i
		}
	}
	return v
}

func (f *fake) is34() bool {
	return f.m.EFuse.Kind == chip.EFuseESP32 && f.field("CODING_SCHEME") == 1
}

// load is the read command.
func (f *fake) load() {
	clear(f.errs)
	for bit := range f.half {
		f.errs[f.m.EFuse.RepeatErr+4*uint32(bit/32-1)] |= 1 << (bit % 32)
	}
	rd := f.field("RD_DIS")
	for i, b := range f.blk {
		out := f.shown[i]
		copy(out, f.cells[i])
		switch {
		case i > 0 && f.is34():
			var code [32]byte
			for w, v := range f.cells[i] {
				binary.LittleEndian.PutUint32(code[4*w:], v)
			}
			data, err := coding.Decode34(&code)
			if err != nil {
				f.errs[f.m.EFuse.DecStatus] |= 1 << (4 * (i - 1))
				for g := range 4 {
					copy(data[6*g:], code[8*g:][:6])
				}
			}
			clear(out)
			for w := range 6 {
				out[w] = binary.LittleEndian.Uint32(data[4*w:])
			}
		case i > 0 && f.m.EFuse.Kind == chip.EFuseRS:
			var data [32]byte
			for w, v := range f.cells[i][:8] {
				binary.LittleEndian.PutUint32(data[4*w:], v)
			}
			check := coding.Parity(&data)
			for w := range 3 {
				if binary.LittleEndian.Uint32(check[4*w:]) != f.cells[i][8+w] {
					f.rsError(i)
				}
			}
		}
		for n, bit := range b.RDDisAll {
			if size := len(out) / len(b.RDDisAll); rd>>bit&1 != 0 {
				clear(out[n*size : (n+1)*size])
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

// rsError reports one wrong symbol and a failure; the C3's fail bits are shifted.
func (f *fake) rsError(block int) {
	count, fail := 4*(block-1), 4*(block-1)+3
	if f.m.Name == "esp32c3" {
		fail = 4*block + 3
	}
	f.errs[f.m.EFuse.RSErr[count/32]] |= 1 << (count % 32)
	f.errs[f.m.EFuse.RSErr[fail/32]] |= 1 << (fail % 32)
}

// Crystal is what the loader's client measures.
func (f *fake) Crystal(context.Context) (int, error) { return f.mhz, nil }

func (f *fake) ReadReg(ctx context.Context, addr uint32) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if f.closed {
		return 0, errRefused
	}
	v := f.peek(addr)
	if f.onRead != nil {
		return f.onRead(addr, v)
	}
	return v, nil
}

func (f *fake) peek(addr uint32) uint32 {
	off := addr - f.m.EFuse.Base
	for i, b := range f.blk {
		if w := int(off-b.ReadOff) / 4; off >= b.ReadOff && w < b.Words && (f.m.EFuse.Kind == chip.EFuseESP32 || off >= 0x2C) {
			return f.shown[i][w]
		}
	}
	if addr == f.m.EFuse.Cmd {
		if len(f.busy) > 0 {
			v := f.busy[0]
			f.busy = f.busy[1:]
			return v
		}
		return 0
	}
	if v, ok := f.errs[addr]; ok {
		return v
	}
	return f.regs[addr]
}

func (f *fake) WriteReg(ctx context.Context, addr, v uint32) error {
	return f.WriteRegDelay(ctx, addr, v, 0)
}

func (f *fake) WriteRegDelay(ctx context.Context, addr, v uint32, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.closed {
		return errRefused
	}
	f.log = append(f.log, regWrite{addr, v, d})
	var fault error
	if f.onWrite != nil {
		v, fault = f.onWrite(addr, v)
		if fault != nil && v == 0 {
			return fault // did not arrive
		}
	}
	if len(f.busy) > 0 {
		f.t.Errorf("write of 0x%08x to 0x%08x while a command runs", v, addr)
	}
	f.regs[addr] = v
	if addr == f.m.EFuse.Cmd {
		f.command(v)
	}
	return fault
}

func (f *fake) command(v uint32) {
	defer func() {
		if f.instant {
			f.busy = nil
		}
	}()
	switch conf := f.regs[f.m.EFuse.Conf]; {
	case v&2 != 0 && conf == 0x5A5A:
		f.program(int(v >> 2))
		f.busy = []uint32{v, v}
	case v&1 != 0 && conf == 0x5AA5:
		f.load()
		f.busy = []uint32{0, 1} // looks idle once before it starts
		if f.obeysSDM && f.m.EFuse.Kind == chip.EFuseRS && (f.field("ENABLE_SECURITY_DOWNLOAD") != 0 || f.field("DIS_DOWNLOAD_MODE") != 0) {
			f.closed = true
		}
	}
}

func (f *fake) program(block int) {
	f.burns++
	ef := f.m.EFuse
	if ef.Kind == chip.EFuseESP32 {
		want := map[int][2]uint32{40: {80, 0xFFA0}, 26: {52, 0xFFFA}}[f.mhz]
		if f.regs[ef.DACConf]&0xFF != want[0] || f.regs[ef.Clk]&0xFFFF != want[1] {
			f.t.Errorf("burn with timing %x %x", f.regs[ef.DACConf], f.regs[ef.Clk])
		}
		for i, b := range f.blk {
			var words []uint32
			for w := range b.Words {
				words = append(words, f.regs[ef.Base+b.WriteOff+4*uint32(w)])
			}
			f.burnBlock(i, words)
		}
		return
	}
	for off, want := range burnTiming(f.m.Name, f.mhz) {
		if got := f.regs[ef.Base+off]; got != want {
			f.t.Errorf("burn with 0x%x in the timing register +0x%03x, want 0x%x", got, off, want)
		}
	}
	var words []uint32
	for w := range 11 {
		words = append(words, f.regs[ef.PgmData+4*uint32(w)])
	}
	f.burnBlock(block, words[:len(f.cells[block])])
}

// burnTiming is esp-facts B.4 by register offset.
func burnTiming(name string, mhz int) map[uint32]uint32 {
	switch name {
	case "esp32p4":
		return map[uint32]uint32{0x1E8: 0, 0x1F0: 0, 0x1F4: 0}
	case "esp32s2":
		return map[uint32]uint32{0x1E8: 0x50, 0x1F4: 0x510001, 0x1F8: 0x80, 0x1F0: 0x1900201, 0x1EC: 0x201}
	case "esp32s3":
		return map[uint32]uint32{0x1E8: 0x1FE28, 0x1F4: 0x300000, 0x1F8: 0x190}
	case "esp32c5":
		return map[uint32]uint32{0x1EC: 0x1FE28, 0x1F4: 0x300000, 0x1F8: 0x190}
	case "esp32c2":
		return map[uint32]uint32{0x108: 0x1FE28, 0x114: 0x300000, 0x118: 0x190, 0x110: map[int]uint32{26: 130, 40: 200}[mhz] << 8}
	}
	return map[uint32]uint32{0x1E8: 0x1FE28, 0x1F0: 0x300000, 0x1F4: 0x190}
}

func (f *fake) burnBlock(block int, words []uint32) {
	locks := f.field("WR_DIS") // as it was: loaded, not yet burned
	if b := f.blk[block]; b.WRDis != table.None && locks>>b.WRDis&1 != 0 {
		return
	}
	locked := map[int]bool{}
	for _, fd := range f.tab.Fields() {
		if fd.Block == block && block == 0 && fd.WRDis != table.None && locks>>fd.WRDis&1 != 0 {
			for _, bit := range fd.Bits() {
				locked[bit] = true
			}
		}
	}
	for w, v := range words {
		for d := v; d != 0 && block == 0; d &= d - 1 {
			if bit := 32*w + bits.TrailingZeros32(d); f.weak[[2]int{0, bit}] == 0 {
				delete(f.half, bit) // the other copies follow
			}
		}
		for d := v &^ f.cells[block][w]; d != 0; d &= d - 1 {
			bit := 32*w + bits.TrailingZeros32(d)
			if f.weak[[2]int{block, bit}] > 0 {
				f.weak[[2]int{block, bit}]--
				continue
			}
			if !locked[bit] {
				f.cells[block][w] |= 1 << (bit % 32)
			}
		}
	}
}

// key00 is the key 00 01 02 … of the vectors.
func key00(n int) *secret.Bytes {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return secret.New(b)
}

// stages is the whole way to a locked chip: key, protection, lock-down fuses,
// counter, write protections, last fuse.
func stages(m chip.Model) []efuse.Stage {
	key, protect := efuse.KeyBurn{Block: "KEY0", Purpose: "XTS_AES_128_KEY"}, []string{"KEY0", "KEY_PURPOSE_0"}
	if m.Name == "esp32" {
		key, protect = efuse.KeyBurn{Block: "BLOCK1"}, []string{"BLOCK1"}
	}
	return []efuse.Stage{
		{Name: "key", Keys: []efuse.KeyBurn{key}},
		{Name: "protect", ReadProtect: []string{key.Block}, WriteProtect: protect},
		{Name: "lockdown", Set: append(slices.Clone(m.Lockdown.Enable), m.Lockdown.Fuses...)},
		{Name: "counter", Set: []chip.Assignment{{Field: m.EFuse.FlashCryptCount, Value: m.EFuse.FlashCryptCountFull}}},
		{Name: "locks", WriteProtect: m.Lockdown.WriteProtect},
		{Name: "close", Set: []chip.Assignment{{Field: m.Lockdown.ReleaseFuse, Value: 1}}},
	}
}

func read(t testing.TB, f *fake) *efuse.Snapshot {
	t.Helper()
	s, err := efuse.Read(t.Context(), f, f.m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func check(t testing.TB, f *fake, st ...efuse.Stage) efuse.CheckedPlan {
	t.Helper()
	cp, err := efuse.NewPlan(f.m, st...).Check(read(t, f))
	if err != nil {
		t.Fatal(err)
	}
	return cp
}
