// Package efuse owns the reading, planning and burning of eFuses.
//
// The order is the promise. [Read] gives a [Snapshot] of what the chip itself
// says. A [Plan] is pure: it names stages of fields, protections and a key. Only
// [Plan.Check], against a snapshot, makes a [CheckedPlan] of it, and only a
// checked plan can be burned: one stage at a time by [Burn], which looks before,
// reads the programming registers back before the burn command, looks after it
// and burns again up to twice what did not take.
//
// Fuses are one-way, so an error after the burn command was sent is an
// [IndeterminateError]: the chip has to be looked at; nothing may be burned again
// blind.
//
// Register reads carry no checksum. Every value that decides something is read
// until two reads in a row agree ([ErrNoise] if they never do).
//
// Key bytes: a key block that can still be read appears in snapshots, reports and
// errors as its fingerprint only.
//
// Sources: esp-facts B, C.4, F and H; TRM of ESP32 and ESP32-C3, "eFuse
// Controller"; ESP-IDF components/efuse and components/hal/<chip>/efuse_hal.c.
package efuse

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

//go:generate go run ./chipdoc -out ../docs/chips.md

// Registers reaches the chip's registers. The ROM loader's client has these.
type Registers interface {
	ReadReg(ctx context.Context, addr uint32) (uint32, error)
	WriteReg(ctx context.Context, addr, value uint32) error
	// WriteRegDelay writes and makes the loader wait before it answers, in the
	// same packet.
	WriteRegDelay(ctx context.Context, addr, value uint32, after time.Duration) error
}

// Errors of reading and burning.
var (
	// ErrNoise: reads of one register did not agree. Nothing was decided by it.
	ErrNoise = errors.New("reads of a register do not agree: the line is too noisy; check cable and supply, and connect again")
	// ErrBusy: the eFuse controller did not become idle.
	ErrBusy = errors.New("the eFuse controller stays busy: reset the chip and connect again")
	// ErrRegister: a register does not hold what was written. Seen before the
	// burn command, so nothing was burned.
	ErrRegister = errors.New("an eFuse register does not hold what was written; nothing was burned with it; connect again")
	// ErrProtected: the value is hidden by RD_DIS.
	ErrProtected = errors.New("read-protected")
	// ErrIdentity: the factory data cannot be true.
	ErrIdentity = errors.New("the chip's factory data make no sense: read again, then set the unit aside")
	// ErrKeyMismatch: a key block holds bits that the key does not have.
	ErrKeyMismatch = errors.New("the key block holds something else than this key: set the unit aside")
)

// Values of the controller's CONF and CMD registers (esp-facts B.1).
const (
	confProgram = 0x5A5A
	confRead    = 0x5AA5
	cmdRead     = 0x1
	cmdProgram  = 0x2
	cmdBusy     = cmdRead | cmdProgram
)

const (
	// stableReads bounds how often a register is read until two in a row agree.
	stableReads = 8
	// idleLimit is when waiting for the controller ends (esp-facts B.5).
	idleLimit = 250 * time.Millisecond
	// idleReads is what the limit never cuts, however slow the line is.
	idleReads = 8
	// refreshDelay is how long the loader rests after a read command, because
	// the ROM looks at some eFuses after each loader command (esp-facts B.5).
	refreshDelay = 1000 * time.Microsecond
)

// controller is the eFuse controller of one chip.
type controller struct {
	regs Registers
	m    chip.Model
	t    *table.Table
}

func newController(regs Registers, m chip.Model) (*controller, error) {
	t, err := table.For(m.Name)
	if err != nil {
		return nil, err
	}
	return &controller{regs: regs, m: m, t: t}, nil
}

// reg names a register in errors.
func (c *controller) reg(addr uint32) string {
	return fmt.Sprintf("eFuse register +0x%03x", addr-c.m.EFuse.Base)
}

// stable reads a register until two reads in a row agree.
func (c *controller) stable(ctx context.Context, addr uint32) (uint32, error) {
	var last uint32
	for i := range stableReads {
		v, err := c.regs.ReadReg(ctx, addr)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", c.reg(addr), err)
		}
		if i > 0 && v == last {
			return v, nil
		}
		last = v
	}
	return 0, fmt.Errorf("%s, %d reads: %w", c.reg(addr), stableReads, ErrNoise)
}

func (c *controller) write(ctx context.Context, addr, v uint32) error {
	if err := c.regs.WriteReg(ctx, addr, v); err != nil {
		return fmt.Errorf("write %s: %w", c.reg(addr), err)
	}
	return nil
}

// writeChecked writes and reads back. The error holds no value: it may be a key's.
func (c *controller) writeChecked(ctx context.Context, addr, v uint32) error {
	if err := c.write(ctx, addr, v); err != nil {
		return err
	}
	return c.holds(ctx, addr, v)
}

func (c *controller) holds(ctx context.Context, addr, v uint32) error {
	got, err := c.stable(ctx, addr)
	if err != nil {
		return err
	}
	if got != v {
		return fmt.Errorf("%s: %w", c.reg(addr), ErrRegister)
	}
	return nil
}

// idle waits until no command runs. One idle read is not enough: right after a
// read command the hardware shows idle once before it starts.
func (c *controller) idle(ctx context.Context) error {
	deadline := time.Now().Add(idleLimit)
	for reads, quiet := 1, 0; ; reads++ {
		v, err := c.regs.ReadReg(ctx, c.m.EFuse.Cmd)
		if err != nil {
			return fmt.Errorf("read %s: %w", c.reg(c.m.EFuse.Cmd), err)
		}
		if v&cmdBusy != 0 {
			quiet = 0
		} else if quiet++; quiet == 2 {
			return nil
		}
		if reads >= idleReads && time.Now().After(deadline) {
			return fmt.Errorf("waited %v: %w", idleLimit, ErrBusy)
		}
		if quiet == 0 {
			if err := pause(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// prepareRefresh makes the controller ready for a read command.
func (c *controller) prepareRefresh(ctx context.Context) error {
	if err := c.idle(ctx); err != nil {
		return err
	}
	return c.writeChecked(ctx, c.m.EFuse.Conf, confRead)
}

// sendRefresh gives the read command: the controller loads the fuses anew.
func (c *controller) sendRefresh(ctx context.Context) error {
	var err error
	if c.m.EFuse.Kind == chip.EFuseRS {
		err = c.regs.WriteRegDelay(ctx, c.m.EFuse.Cmd, cmdRead, refreshDelay)
	} else {
		err = c.regs.WriteReg(ctx, c.m.EFuse.Cmd, cmdRead)
	}
	if err != nil {
		return fmt.Errorf("eFuse read command: %w", err)
	}
	return c.idle(ctx)
}

func (c *controller) refresh(ctx context.Context) error {
	if err := c.prepareRefresh(ctx); err != nil {
		return err
	}
	return c.sendRefresh(ctx)
}

// readBlock reads a block's words.
func (c *controller) readBlock(ctx context.Context, b table.Block) ([]uint32, error) {
	words := make([]uint32, b.Words)
	for i := range words {
		v, err := c.stable(ctx, c.m.EFuse.Base+b.ReadOff+4*uint32(i))
		if err != nil {
			clear(words)
			return nil, fmt.Errorf("block %s, word %d: %w", b.Name, i, err)
		}
		words[i] = v
	}
	return words, nil
}

// ErrorRegister is one of the controller's error registers.
type ErrorRegister struct {
	Name  string `json:"name"`
	Value uint32 `json:"value"`
}

// errorRegisters reads all of them.
func (c *controller) errorRegisters(ctx context.Context) ([]ErrorRegister, error) {
	type reg struct {
		name string
		addr uint32
	}
	var list []reg
	if c.m.EFuse.Kind == chip.EFuseESP32 {
		list = []reg{{"DEC_STATUS", c.m.EFuse.DecStatus}}
	} else {
		for i := range c.m.EFuse.RepeatErrWords {
			list = append(list, reg{fmt.Sprintf("REPEAT_ERR%d", i), c.m.EFuse.RepeatErr + 4*uint32(i)})
		}
		for i, addr := range c.m.EFuse.RSErr {
			if addr != 0 {
				list = append(list, reg{fmt.Sprintf("RS_ERR%d", i), addr})
			}
		}
	}
	out := make([]ErrorRegister, 0, len(list))
	for _, r := range list {
		v, err := c.stable(ctx, r.addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		out = append(out, ErrorRegister{r.name, v})
	}
	return out, nil
}

// Fingerprint names the contents of a key block without giving them away. It is
// the key's own fingerprint (internal/secret), so a block and a key record with
// the same key have the same one. The zero value stands for an empty block.
type Fingerprint [32]byte

// IsZero reports that there is nothing to name.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// String is 64 hex digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText is String, or nothing for an empty block.
func (f Fingerprint) MarshalText() ([]byte, error) {
	if f.IsZero() {
		return nil, nil
	}
	return []byte(f.String()), nil
}

// fingerprintPrefix marks a fingerprint where words would stand.
const fingerprintPrefix = "fp:"

// BitRef names a bit.
type BitRef struct {
	Block string `json:"block"`
	Word  int    `json:"word"`
	Bit   int    `json:"bit"` // inside the word
	Field string `json:"field,omitempty"`
}

// String is for example "BLOCK0 word 2 bit 18 (SPI_BOOT_CRYPT_CNT)".
func (b BitRef) String() string {
	s := fmt.Sprintf("%s word %d bit %d", b.Block, b.Word, b.Bit)
	if b.Field != "" {
		s += " (" + b.Field + ")"
	}
	return s
}

// namer finds the field that a bit belongs to.
type namer struct {
	blocks []table.Block
	fields map[int]table.Field // by block<<16 | bit
}

// namers keeps one namer for each table: they are made once and never change.
var namers sync.Map // *table.Table to *namer

func namerOf(t *table.Table) *namer {
	if n, ok := namers.Load(t); ok {
		return n.(*namer) //nolint:forcetypeassert // nothing else is stored
	}
	n := newNamer(t)
	namers.Store(t, n)
	return n
}

func newNamer(t *table.Table) *namer {
	n := &namer{blocks: t.Blocks(), fields: map[int]table.Field{}}
	for _, f := range t.Fields() {
		whole := f.Len() == 32*n.blocks[f.Block].Words
		for _, bit := range f.Bits() {
			if _, taken := n.fields[f.Block<<16|bit]; taken && whole {
				continue // a field inside the block says more than the block's own name
			}
			n.fields[f.Block<<16|bit] = f
		}
	}
	return n
}

func (n *namer) field(block, bit int) (table.Field, bool) {
	f, ok := n.fields[block<<16|bit]
	return f, ok
}

func (n *namer) ref(block, bit int) BitRef {
	f := n.fields[block<<16|bit]
	return BitRef{Block: n.blocks[block].Name, Word: bit / 32, Bit: bit % 32, Field: f.Name}
}
