package efuse

import (
	"context"
	"encoding/binary"
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

const (
	// burnAttempts is how often the same data are burned at most (esp-facts B.6).
	burnAttempts = 3
	// errorRounds is how often the error registers are read after a burn, each
	// time after a refresh (esp-facts B.6).
	errorRounds = 5
)

// critical lists the BLOCK0 fields that are burned after all others, so that a
// burn that fails halfway leaves a chip that can still be mended (esp-facts B.6).
var critical = map[chip.EFuseKind][]string{
	chip.EFuseESP32: {"WR_DIS", "RD_DIS", "UART_DOWNLOAD_DIS", "ABS_DONE_1", "FLASH_CRYPT_CNT"},
	chip.EFuseRS:    {"WR_DIS", "RD_DIS", "ENABLE_SECURITY_DOWNLOAD", "DIS_DOWNLOAD_MODE", "SPI_BOOT_CRYPT_CNT", "SECURE_BOOT_EN"},
}

var errUnchecked = errors.New("this eFuse plan was not checked: call Check first")

// IndeterminateError is an error after the burn command was sent: whether the
// fuses took it is unknown. Read a new snapshot and check a new plan against it.
type IndeterminateError struct {
	Stage string
	Step  string
	Err   error
}

func (e *IndeterminateError) Error() string {
	return fmt.Sprintf("stage %s, %s: %v: whether the fuses were burned is unknown; read the chip before anything else", e.Stage, e.Step, e.Err)
}

// Unwrap gives the cause.
func (e *IndeterminateError) Unwrap() error { return e.Err }

// BurnError is a block that is wrong after all attempts. What is wrong was seen,
// so it is known.
type BurnError struct {
	Stage    string
	Block    string
	Attempts int
	Key      bool     // the missing bits are a key's and are not named
	Missing  []BitRef // did not take
	Outside  []BitRef // set, though nobody wanted them
	Lost     []BitRef // were set and are not any more
	Errors   []BlockError
}

func (e *BurnError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stage %s: block %s is wrong after %d burns", e.Stage, e.Block, e.Attempts)
	if e.Key {
		b.WriteString("; the key did not take")
	}
	for _, l := range []struct {
		name string
		refs []BitRef
	}{{"missing", e.Missing}, {"outside the plan", e.Outside}, {"lost", e.Lost}} {
		for _, r := range l.refs {
			fmt.Fprintf(&b, "; %s: %v", l.name, r)
		}
	}
	for _, x := range e.Errors {
		fmt.Fprintf(&b, "; %v", x)
	}
	b.WriteString("; set the unit aside: marginal supply and wrong timing are the usual causes")
	return b.String()
}

// Report is what a stage did and what the chip showed afterwards.
type Report struct {
	Stage string      `json:"stage"`
	Burns []BlockBurn `json:"burns"` // none if every bit was set already

	// LoaderLost: the stage closes the loader, the burn command was accepted, and
	// from the refresh on the loader did not answer as before. That is what
	// success looks like, but it proves nothing: the caller needs the security
	// flags or the ROM's refusal as evidence.
	LoaderLost  bool   `json:"loader_lost,omitempty"`
	LoaderError string `json:"loader_error,omitempty"` // what it said instead

	After *Snapshot `json:"after,omitempty"` // nil if the loader was lost
}

// StepKey is the step of a BlockBurn that burns a key.
const StepKey = "key"

// BlockBurn is the burning of one block.
type BlockBurn struct {
	Block    string          `json:"block"`
	Step     string          `json:"step"`    // key, fields, critical, locks
	Written  []string        `json:"written"` // words, or the key's fingerprint
	Attempts int             `json:"attempts"`
	Errors   []ErrorRegister `json:"error_registers"` // after the last attempt
	Readback []string        `json:"readback"`        // words, or the fingerprint of what the block holds
}

// job is one burn command: a block and the words for it.
type job struct {
	block   table.Block
	step    string
	data    [8]uint32 // for the programming registers
	check   [3]uint32 // RS parity
	want    [8]uint32 // what the read registers have to show
	keys    []checkedKey
	words   int // of a key block: how many of its words are data
	written []string
}

func (j *job) wipe() {
	if len(j.keys) > 0 {
		clear(j.data[:])
		clear(j.check[:])
		clear(j.want[:])
	}
}

// burner burns one stage.
type burner struct {
	*controller
	n      *namer
	scheme Scheme
	stage  checkedStage
	later  func(BlockError) bool // a later stage burns it away
	report *Report
	now    *Snapshot       // the last complete one
	clock  []chip.RegWrite // the burn timing
}

// Burn burns one stage of a checked plan.
//
// It reads the chip first and refuses if it is not exactly as the plan expects it
// before this stage; then nothing is burned. Half-burned bits that a stage with
// Resume sets are burned again with the others. Blocks are burned from the highest
// to the lowest, BLOCK0 last and its critical fuses after its other ones. Each is
// compared after the burn and burned again, the same data, up to twice (of a key
// that is resumed, up to three burns in all); a later block is not touched when an earlier one failed.
//
// The keys are those of the stage, in the order of its Keys; nil ones are left out.
// They are used inside the call.
//
// The context is used as it is: once a burn has begun a cancel makes it
// indeterminate, so give one that only a deadline ends. The report is nil only if
// the chip was not reached.
func Burn(ctx context.Context, regs Registers, m chip.Model, cp CheckedPlan, stage int, keys ...*secret.Bytes) (*Report, error) {
	if cp.base == nil {
		return nil, errUnchecked
	}
	if m.Name != cp.m.Name {
		return nil, fmt.Errorf("the plan is for %s, the chip is %s: %w", cp.m.Title, m.Title, ErrOtherChip)
	}
	if stage < 0 || stage >= len(cp.stages) {
		return nil, fmt.Errorf("stage %d: the plan has %d", stage, len(cp.stages))
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(k *secret.Bytes) bool { return k == nil })
	given := make([]int, len(keys))
	for i, k := range keys {
		given[i] = k.Len()
	}
	if want := cp.KeyLens(stage); !slices.Equal(want, given) {
		return nil, fmt.Errorf("stage %s takes keys of %d bytes, %d were given", cp.stages[stage].Name, want, given)
	}
	c, err := newController(regs, m)
	if err != nil {
		return nil, err
	}
	c.t = cp.base.t // of the chip's silicon; Verify makes sure that it is that chip
	b := &burner{controller: c, n: namerOf(c.t), scheme: cp.scheme, stage: cp.stages[stage]}
	b.later = func(e BlockError) bool { return cp.mends(e, stage+1) }
	if b.now, err = Read(ctx, regs, m); err != nil {
		return nil, err
	}
	b.report = &Report{Stage: b.stage.Name, Burns: []BlockBurn{}, After: b.now}
	if err := cp.Expected(stage - 1).Verify(b.now); err != nil && !b.resumes(err) {
		return b.report, err
	}
	jobs, err := b.jobs(keys)
	defer func() {
		for _, j := range jobs {
			j.wipe()
		}
	}()
	if err != nil || len(jobs) == 0 {
		return b.report, err
	}
	if err := b.chooseTiming(ctx); err != nil {
		return b.report, err
	}
	for _, j := range jobs {
		if err := b.burn(ctx, j); err != nil || b.report.LoaderLost {
			return b.report, err
		}
	}
	exp := cp.Expected(stage)
	for i, k := range b.stage.keys {
		fp, err := KeyFingerprint(keys[i])
		if err != nil {
			return b.report, err
		}
		exp = exp.WithKey(k.slot.Name, fp)
	}
	return b.report, exp.Verify(b.now)
}

// resumes says whether the one difference is the damage that an interrupted burn
// of this stage's keys left in their blocks: too few bits make the decoder complain.
func (b *burner) resumes(err error) bool {
	var bad *UnexpectedBitsError
	return errors.As(err, &bad) && len(bad.Outside)+len(bad.Missing)+len(bad.Blocks) == 0 &&
		!slices.ContainsFunc(bad.Errors, func(e BlockError) bool {
			return !slices.ContainsFunc(b.stage.keys, func(k checkedKey) bool {
				return k.resume && b.n.blocks[k.slot.Block].Name == e.Block
			})
		})
}

// KeyFingerprint names a key as a snapshot names the block that holds it.
func KeyFingerprint(key *secret.Bytes) (fp Fingerprint, err error) {
	err = key.Use(func(k []byte) error { fp = secret.Fingerprint(k); return nil })
	return fp, err
}

// jobs lists the burn commands of the stage: what is set already is left out.
func (b *burner) jobs(keys []*secret.Bytes) ([]*job, error) {
	var out []*job
	for i := len(b.n.blocks) - 1; i >= 0; i-- {
		blk := b.n.blocks[i]
		switch {
		case slices.ContainsFunc(b.stage.keys, func(k checkedKey) bool { return k.slot.Block == i }):
			j, err := b.keyJob(blk, keys)
			if err != nil {
				return out, err
			}
			if j != nil {
				out = append(out, j)
			}
		case i == 0:
			out = append(out, b.block0()...)
		case !blk.Key && !covers(b.now.blocks[i].words, b.stage.want[i]):
			j := &job{block: blk, step: "fields"}
			copy(j.data[:], b.stage.want[i])
			j.want = j.data
			j.encode(b.scheme)
			j.written = hexWords(j.data[:blk.Words])
			out = append(out, j)
		}
	}
	return out, nil
}

// encode makes the check words of an RS block.
func (j *job) encode(scheme Scheme) {
	if scheme != SchemeRS {
		return
	}
	var data [coding.DataLenRS]byte
	defer clear(data[:])
	for i, w := range j.data {
		binary.LittleEndian.PutUint32(data[4*i:], w)
	}
	check := coding.Parity(&data)
	for i := range j.check {
		j.check[i] = binary.LittleEndian.Uint32(check[4*i:])
	}
}

// keyJob puts the bytes of a block's keys into register order. It is nil if the
// block holds exactly them.
func (b *burner) keyJob(blk table.Block, keys []*secret.Bytes) (*job, error) {
	j := &job{block: blk, step: StepKey, words: b.now.dataLen() / 4}
	var image [32]byte // of the programming registers
	defer clear(image[:])
	for i, k := range b.stage.keys {
		if k.slot.Block != blk.Index {
			continue
		}
		err := keys[i].Use(func(raw []byte) error {
			j.written = append(j.written, fingerprintPrefix+Fingerprint(secret.Fingerprint(raw)).String())
			own := image[k.slot.Offset : k.slot.Offset+copy(image[k.slot.Offset:], raw)]
			if k.purpose.Reversed {
				slices.Reverse(own)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		j.keys = append(j.keys, k)
	}
	for i := range j.want {
		j.want[i] = binary.LittleEndian.Uint32(image[4*i:])
	}
	if b.scheme == Scheme34 {
		image = coding.Encode34((*[coding.DataLen34]byte)(image[:]))
	}
	for i := range j.data {
		j.data[i] = binary.LittleEndian.Uint32(image[4*i:])
	}
	j.encode(b.scheme)
	if b.now.blocks[blk.Index].key == nil {
		return j, nil
	}
	missing, outside := j.compare(b.now)
	damaged := slices.ContainsFunc(b.now.BlockErrors(), func(e BlockError) bool { return e.Block == blk.Name })
	switch {
	case outside:
		j.wipe()
		return nil, fmt.Errorf("stage %s, block %s: %w", b.stage.Name, blk.Name, ErrKeyMismatch)
	case !missing && !damaged:
		j.wipe()
		return nil, nil
	}
	return j, nil
}

// compare looks at all data words of a key block, in a time that does not depend on
// them: bits that lack, bits too many.
func (j *job) compare(now *Snapshot) (missing, outside bool) {
	have := make([]uint32, len(j.want))
	defer clear(have)
	_ = now.blocks[j.block.Index].key.Use(func(raw []byte) error { // an empty block leaves zeros
		for i := range have {
			have[i] = binary.LittleEndian.Uint32(raw[4*i:])
		}
		return nil
	})
	var m, o uint32
	for i := range j.words {
		m |= j.want[i] &^ have[i]
		o |= have[i] &^ j.want[i]
	}
	return m != 0, o != 0
}

// block0 splits the bits of BLOCK0 that are not set yet: all but the critical
// fuses; these; and in a third command those bits of WR_DIS that lock what one of
// the others burns, because a second attempt at a locked fuse would do nothing.
func (b *burner) block0() []*job {
	var lists [3][8]uint32
	masks := map[string]bool{}
	for _, name := range critical[b.m.EFuse.Kind] {
		masks[name] = true
	}
	guarded := map[int]bool{} // bits of WR_DIS whose fields are burned by this stage's critical step
	done := slices.Clone(b.now.blocks[0].words)
	if b.stage.Resume {
		for _, e := range b.now.BlockErrors() {
			for _, r := range e.Bits {
				done[r.Word] &^= 1 << r.Bit // half burned, whatever it reads as
			}
		}
	}
	each := func(f func(bit int, field table.Field)) {
		for w, v := range b.stage.want[0] {
			for d := v &^ done[w]; d != 0; d &= d - 1 {
				bit := 32*w + bits.TrailingZeros32(d)
				field, _ := b.n.field(0, bit)
				f(bit, field)
			}
		}
	}
	each(func(_ int, f table.Field) {
		if masks[f.Name] && f.WRDis != table.None {
			guarded[f.WRDis] = true
		}
	})
	wr, _ := b.t.Field("WR_DIS")
	first := wr.Bits()[0]
	each(func(bit int, f table.Field) {
		step := 0
		if masks[f.Name] {
			step = 1
		}
		if f.Name == "WR_DIS" && guarded[bit-first] {
			step = 2
		}
		lists[step][bit/32] |= 1 << (bit % 32)
	})
	var out []*job
	for i, data := range lists {
		if data == ([8]uint32{}) {
			continue
		}
		blk := b.n.blocks[0]
		out = append(out, &job{
			block: blk, step: [...]string{"fields", "critical", "locks"}[i],
			data: data, want: data, written: hexWords(data[:blk.Words]),
		})
	}
	return out
}

// burn burns a block until it holds what it has to, at most burnAttempts times.
func (b *burner) burn(ctx context.Context, j *job) error {
	entry := BlockBurn{Block: j.block.Name, Step: j.step, Written: j.written}
	b.report.Burns = append(b.report.Burns, entry)
	rep := &b.report.Burns[len(b.report.Burns)-1]
	before := slices.Clone(b.now.blocks[j.block.Index].words)
	spent := 0
	for _, k := range j.keys {
		spent = max(spent, k.spent)
	}
	if spent >= burnAttempts {
		bad := b.judge(j, before, rep)
		if bad == nil {
			bad = &BurnError{Stage: b.stage.Name, Block: j.block.Name}
		}
		bad.Attempts = spent
		return bad
	}
	for rep.Attempts < burnAttempts-spent {
		if err := b.load(ctx, j); err != nil {
			b.unload(ctx, j)
			if rep.Attempts == 0 && len(b.report.Burns) == 1 {
				b.report.Burns = b.report.Burns[:0]
				return fmt.Errorf("stage %s, block %s, before the burn command: %w", b.stage.Name, j.block.Name, err)
			}
			return b.indeterminate(j, err) // the stage is burned in part
		}
		rep.Attempts++
		refreshed, err := b.fire(ctx, j)
		if err == nil {
			err = b.look(ctx, j, rep)
		}
		if err != nil && refreshed && b.loaderMayGo() && ctx.Err() == nil && !answered(err) {
			b.report.LoaderLost, b.report.LoaderError, b.report.After = true, err.Error(), nil
			return nil
		}
		if err != nil {
			b.report.After = nil
			return b.indeterminate(j, err)
		}
		bad := b.judge(j, before, rep)
		if bad == nil {
			return nil
		}
		if bad.Attempts += spent; bad.Attempts == burnAttempts || len(bad.Outside)+len(bad.Lost) > 0 {
			return bad
		}
	}
	return nil
}

// loaderMayGo: the newer chips' loader obeys these fuses as soon as they are
// loaded; the ESP32's only after a reset (esp-facts B.5).
func (b *burner) loaderMayGo() bool { return b.stage.final && b.m.EFuse.Kind == chip.EFuseRS }

// answered: the loader still gave register values, so it is not closed.
func answered(err error) bool {
	return errors.Is(err, ErrNoise) || errors.Is(err, ErrBusy) || errors.Is(err, ErrRegister)
}

func (b *burner) indeterminate(j *job, err error) error {
	return &IndeterminateError{Stage: b.stage.Name, Step: "burn of " + j.block.Name + " (" + j.step + ")", Err: err}
}

// programming lists the programming registers of a block, data first.
func (b *burner) programming(j *job) (addrs, values []uint32) {
	base, n := b.m.EFuse.PgmData, len(j.data)
	if b.m.EFuse.Kind == chip.EFuseESP32 {
		base, n = b.m.EFuse.Base+j.block.WriteOff, j.block.Words
	}
	for i := range n {
		addrs, values = append(addrs, base+4*uint32(i)), append(values, j.data[i])
	}
	if b.m.EFuse.Kind == chip.EFuseRS && j.block.Index != 0 {
		for i, v := range j.check {
			addrs, values = append(addrs, b.m.EFuse.CheckValue+4*uint32(i)), append(values, v)
		}
	}
	return addrs, values
}

// load puts the data into the programming registers and reads every register
// that the burn command acts on back.
func (b *burner) load(ctx context.Context, j *job) error {
	addrs, values := b.programming(j)
	defer clear(values)
	if b.m.EFuse.Kind == chip.EFuseRS {
		// The vendor's order: timing, clear, data.
		if err := b.timing(ctx); err != nil {
			return err
		}
		if err := b.idle(ctx); err != nil {
			return err
		}
		if err := b.zero(ctx, b.m.EFuse.PgmData, len(j.data)); err != nil {
			return err
		}
	} else {
		// The command programs all blocks' registers at once, so those of the
		// other blocks have to be 0.
		if err := b.idle(ctx); err != nil {
			return err
		}
		for _, o := range b.n.blocks {
			if o.Index == j.block.Index {
				continue
			}
			if err := b.zero(ctx, b.m.EFuse.Base+o.WriteOff, o.Words); err != nil {
				return err
			}
		}
	}
	if err := b.idle(ctx); err != nil {
		return err
	}
	for i, addr := range addrs {
		if err := b.write(ctx, addr, values[i]); err != nil {
			return err
		}
	}
	for i, addr := range addrs {
		if err := b.holds(ctx, addr, values[i]); err != nil {
			return err
		}
	}
	if b.m.EFuse.Kind == chip.EFuseESP32 {
		for _, o := range b.n.blocks {
			for i := 0; i < o.Words && o.Index != j.block.Index; i++ {
				if err := b.holds(ctx, b.m.EFuse.Base+o.WriteOff+4*uint32(i), 0); err != nil {
					return err
				}
			}
		}
		if err := b.timing(ctx); err != nil {
			return err
		}
	}
	if err := b.idle(ctx); err != nil {
		return err
	}
	return b.writeChecked(ctx, b.m.EFuse.Conf, confProgram)
}

func (b *burner) zero(ctx context.Context, addr uint32, words int) error {
	for i := range words {
		if err := b.write(ctx, addr+4*uint32(i), 0); err != nil {
			return err
		}
	}
	return nil
}

// unload takes back what load prepared, as far as the line allows: CONF without
// an op code, and no key in the programming registers.
func (b *burner) unload(ctx context.Context, j *job) {
	_ = b.write(ctx, b.m.EFuse.Conf, 0)
	addrs, values := b.programming(j)
	clear(values)
	for _, a := range addrs {
		_ = b.write(ctx, a, 0)
	}
}

// fire sends the burn command and loads the fuses anew. refreshed says that the
// read command was sent.
func (b *burner) fire(ctx context.Context, j *job) (refreshed bool, err error) {
	cmd := uint32(cmdProgram)
	if b.m.EFuse.Kind == chip.EFuseRS {
		cmd |= uint32(j.block.Index) << 2
	}
	if err := b.write(ctx, b.m.EFuse.Cmd, cmd); err != nil {
		return false, err
	}
	if err := b.idle(ctx); err != nil {
		return false, err
	}
	addrs, values := b.programming(j)
	clear(values)
	for _, a := range addrs {
		if err := b.write(ctx, a, 0); err != nil {
			return false, err
		}
	}
	if err := b.prepareRefresh(ctx); err != nil {
		return false, err
	}
	return true, b.sendRefresh(ctx)
}

// look reads the error registers several times and then all that the burn could
// have changed, into a new snapshot.
func (b *burner) look(ctx context.Context, j *job, rep *BlockBurn) error {
	next := *b.now
	next.blocks = slices.Clone(b.now.blocks)
	worst := make([]uint32, len(b.now.errs))
	for range errorRounds {
		if err := b.refresh(ctx); err != nil {
			return err
		}
		regs, err := b.errorRegisters(ctx)
		if err != nil {
			return err
		}
		for i, r := range regs {
			worst[i] |= r.Value
		}
		next.errs = regs
	}
	// An error that shows in some of the rounds counts.
	for i := range next.errs {
		next.errs[i].Value = worst[i]
	}
	again := map[int]bool{0: true, j.block.Index: true}
	for _, name := range b.stage.ReadProtect {
		if blk, ok := b.t.Block(name); ok {
			again[blk.Index] = true
		} else if slot, ok := b.t.Slot(name); ok {
			again[slot.Block] = true
		}
	}
	for i, blk := range b.n.blocks {
		if !again[i] {
			continue
		}
		words, err := b.readBlock(ctx, blk)
		if err != nil {
			return err
		}
		next.blocks[i] = hold(blk, words)
	}
	b.now = &next
	b.report.After = b.now
	rep.Errors = next.ErrorRegisters()
	rep.Readback = next.Words()[j.block.Index].Words
	return nil
}

// judge compares the block with what it has to hold. It is nil if all is well.
func (b *burner) judge(j *job, before []uint32, rep *BlockBurn) *BurnError {
	bad := &BurnError{Stage: b.stage.Name, Block: j.block.Name, Attempts: rep.Attempts}
	for _, e := range b.now.BlockErrors() {
		if e.Block == j.block.Name && !b.later(e) {
			bad.Errors = append(bad.Errors, e)
		}
	}
	if len(j.keys) > 0 {
		missing, outside := j.compare(b.now)
		bad.Key = missing || outside
		if outside {
			bad.Outside = []BitRef{{Block: j.block.Name, Bit: -1, Field: j.block.Name}}
		}
	} else {
		have := b.now.blocks[j.block.Index].words
		for w := range have {
			for bit := range 32 {
				mask, ref := uint32(1)<<bit, b.n.ref(j.block.Index, 32*w+bit)
				f, _ := b.n.field(j.block.Index, 32*w+bit)
				switch h := have[w]&mask != 0; {
				case !h && b.now.readProtected(f.RDDisAll):
					// hidden: reads 0 whatever it is
				case !h && before[w]&mask != 0:
					bad.Lost = append(bad.Lost, ref)
				case !h && j.want[w]&mask != 0:
					bad.Missing = append(bad.Missing, ref)
				case h && (before[w]|j.want[w])&mask == 0:
					bad.Outside = append(bad.Outside, ref)
				}
			}
		}
	}
	if !bad.Key && len(bad.Missing)+len(bad.Outside)+len(bad.Lost)+len(bad.Errors) == 0 {
		return nil
	}
	return bad
}

// timing writes the programming timing (esp-facts B.4) and checks that it is there.
func (b *burner) timing(ctx context.Context) error {
	for _, w := range b.clock {
		v, err := b.stable(ctx, w.Addr)
		if err != nil {
			return err
		}
		if err := b.writeChecked(ctx, w.Addr, v&^w.Mask|w.Value); err != nil {
			return fmt.Errorf("burn timing: %w", err)
		}
	}
	return nil
}

// chooseTiming finds the timing for the board's crystal, which is measured only
// where it makes a difference.
func (b *burner) chooseTiming(ctx context.Context) error {
	all := b.m.EFuse.Timing
	if len(all) == 0 {
		return nil // the reset defaults are right
	}
	if !slices.ContainsFunc(all[1:], func(t chip.Timing) bool { return !slices.Equal(t.Writes, all[0].Writes) }) {
		b.clock = all[0].Writes
		return nil
	}
	mhz, err := b.crystal(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Crystal == mhz {
			b.clock = t.Writes
			return nil
		}
	}
	return fmt.Errorf("the crystal has %d MHz, for which the %s has no burn timing: check the board, reset the chip and connect again", mhz, b.m.Title)
}

// Crystal is implemented by Registers that can tell the frequency of the board's
// crystal in MHz. Chips whose burn timing depends on it need it; the ESP32 says it
// by itself.
type Crystal interface {
	Crystal(ctx context.Context) (int, error)
}

// crystal gives the crystal in MHz. On the ESP32 it is the frequency that the ROM
// worked out against its 8 MHz oscillator, whose true frequency is in the eFuses
// (esp-facts A.6). Wrong timing burns badly, so a value that fits neither crystal
// ends it.
func (b *burner) crystal(ctx context.Context) (int, error) {
	if b.m.EFuse.Kind != chip.EFuseESP32 {
		c, ok := b.regs.(Crystal)
		if !ok {
			return 0, fmt.Errorf("nothing can tell the crystal of the %s, and its burn timing depends on it", b.m.Title)
		}
		return c.Crystal(ctx)
	}
	v, err := b.stable(ctx, b.m.ROM.ApproxFreqReg)
	if err != nil {
		return 0, fmt.Errorf("crystal estimate: %w", err)
	}
	hz := uint64(v>>7&0x1FFFFFF) * 15625 * b.now.must("CLK8M_FREQ") / 40
	switch {
	case hz > 33_000_000 && hz <= 47_000_000:
		return 40, nil
	case hz > 20_000_000 && hz <= 33_000_000:
		return 26, nil
	}
	return 0, fmt.Errorf("the ROM's estimate of the crystal is %d Hz, neither 26 nor 40 MHz: burning needs the right timing; reset the chip and connect again", hz)
}
