package espsim

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/espsim/nor"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

// Options describe a simulated board. Only Model is needed.
type Options struct {
	Model     chip.Model
	Revision  chip.Revision // 0 stands for a usual one of the chip; see RevisionOf
	MAC       chip.MAC      // the zero value stands for a locally administered one made from Seed
	FlashSize uint32        // bytes; 0 stands for 4 MiB
	Crystal   int           // MHz; 0 stands for the chip's usual one
	// AppPrints is what the app prints once it runs; AppLoop makes it print that
	// again and again, about once a second.
	AppPrints string
	AppLoop   bool
	// Rollback and AntiRollback say how bootloader and app were built
	// (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE and _ANTI_ROLLBACK).
	Rollback, AntiRollback bool
	// CodingScheme of an ESP32: 0 none, 1 3/4, 2 repeat, 3 none (recovery).
	CodingScheme int
	// Blank leaves out every factory word but the MAC, its CRC, the revision and
	// the coding scheme.
	Blank bool
	// Factory replaces the factory words, MAC and revision included: data words
	// by block. Missing blocks and words are zeros. MAC and Blank are then unused,
	// and Revision must be what the words say.
	Factory [][]uint32
	// USBSerial is a board on the chip's own USB-Serial-JTAG unit, if it has one: DTR
	// and RTS act as that unit takes them and there is no baud rate.
	USBSerial bool
	Faults    Faults
	// Build is how the simulated bootloader and app were configured: what they burn
	// by themselves at a boot. The zero value burns nothing.
	Build bootrom.Build
	// Pace makes bytes take the time that they take on a UART. It alone uses up
	// time while bytes move; resets and boot loops always take some.
	Pace bool
	// Seed of everything random: MAC, garbage, and faults unless they have their own.
	Seed int64
}

// Chip is a simulated board: chip, flash, and the serial adapter with its lines.
// Its methods may be called from several goroutines.
type Chip struct {
	opt      Options
	model    chip.Model
	si       *silicon.Silicon
	tab      *table.Table
	revision chip.Revision
	faults   Faults

	mu     sync.Mutex
	wake   chan struct{} // closed and replaced when a reader may go on
	closed bool
	fuse   *fuses
	flash  *nor.Flash
	regs   map[uint32]uint32
	// The flash has its supply; the bits that force it stand. Both outlive a reset.
	flashOn, forced bool
	watchdog        *time.Timer
	changes         uint64
	bootBurns       int // eFuse blocks that boot code burned

	// Power and reset.
	supply   bool
	held     bool // EN is low, or rising
	rising   *time.Timer
	dtr, rts bool
	pulled   bool          // the strap is held low from outside
	strap    bool          // the strap as latched: download
	usbFlag  bool          // USB-Serial-JTAG: the next reset goes to download
	ignored  int           // resets that were ignored so far
	state    bootrom.State // 0 while off or in reset
	boot     bootrom.Output
	resets   int // counts boots, so that an App of an earlier one is known
	loop     *time.Timer
	ld       loader

	// The line.
	plugged, open bool
	hostBaud      int // 0 follows the chip
	rate          int // the chip's
	out           []outByte
	outFree       time.Time // when the chip's transmitter is done, with Pace
	noise, junk   *rand.Rand

	// Counts since the chip was made.
	hostBytes, writes, datas int
	seen, replies            [256]int
}

// romBaud is the rate of the ROM after a reset.
const romBaud = 115200

// first stands in Options.Revision for v0.0, where 0 is no wish at all.
const first chip.Revision = 0xFFFF

// RevisionOf is what Options.Revision has to be for a revision that somebody named.
func RevisionOf(r chip.Revision) chip.Revision {
	if r == 0 {
		return first
	}
	return r
}

// New makes a board that is powered, with its lines released: it boots from flash.
func New(o Options) (*Chip, error) {
	si, err := silicon.Of(o.Model.Name)
	if err != nil {
		return nil, err
	}
	switch o.Revision {
	case 0:
		o.Revision = si.Revision
	case first:
		o.Revision = 0
	}
	tab, err := table.ForRevision(o.Model.Name, o.Revision)
	if err != nil {
		return nil, err
	}
	if o.Crystal == 0 {
		o.Crystal = si.Crystals[0]
	}
	if !slices.Contains(si.Crystals, o.Crystal) {
		return nil, fmt.Errorf("no %s has a crystal of %d MHz: known are %v", o.Model.Title, o.Crystal, si.Crystals)
	}
	if o.USBSerial && !si.USBSerial {
		return nil, fmt.Errorf("an %s has no USB-Serial-JTAG unit", o.Model.Title)
	}
	if o.FlashSize == 0 {
		o.FlashSize = 4 << 20
	}
	if o.FlashSize%nor.SectorSize != 0 || o.FlashSize > o.Model.MaxFlash {
		return nil, fmt.Errorf("no flash of 0x%x bytes fits %s: whole 4 KiB sectors up to 0x%x", o.FlashSize, o.Model.Title, o.Model.MaxFlash)
	}
	if o.CodingScheme != 0 && (o.Model.EFuse.Kind != chip.EFuseESP32 || o.CodingScheme < 0 || o.CodingScheme > 3) {
		return nil, fmt.Errorf("%s has no coding scheme %d", o.Model.Title, o.CodingScheme)
	}
	if si.Majors != 0 && o.Revision/100 > si.Majors {
		return nil, fmt.Errorf("there is no %s %s: its fuses tell a major revision of up to %d", o.Model.Title, o.Revision, si.Majors)
	}
	if o.Faults.Seed == 0 {
		o.Faults.Seed = o.Seed
	}
	c := &Chip{
		opt: o, model: o.Model, si: si, tab: tab, revision: o.Revision, faults: o.Faults,
		wake: make(chan struct{}), fuse: newFuses(o.Model, tab), flash: nor.New(o.FlashSize),
		plugged: true, open: true, hostBaud: romBaud,
		noise: seeded(o.Faults.Seed, 1), junk: seeded(o.Seed, 2),
	}
	c.fuse.rng, c.fuse.weak, c.fuse.stuck = seeded(o.Faults.Seed, 3), o.Faults.Weak, o.Faults.Stuck
	if o.MAC == (chip.MAC{}) {
		c.opt.MAC = seededMAC(o.Seed)
	}
	if err := c.manufacture(); err != nil {
		return nil, err
	}
	c.mu.Lock() // its timers run from now on
	defer c.mu.Unlock()
	c.powerOn()
	return c, nil
}

func seeded(seed int64, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), stream))
}

// seededMAC is locally administered, so nothing takes the unit for a real one.
func seededMAC(seed int64) chip.MAC {
	m := chip.MAC{0x02}
	r := seeded(seed, 4)
	for i := 1; i < len(m); i++ {
		m[i] = byte(r.Uint32())
	}
	return m
}

// manufacture writes what the factory burns.
func (c *Chip) manufacture() error {
	words := c.opt.Factory
	if words == nil && !c.opt.Blank {
		words = c.si.Factory
	}
	fields := map[string]uint64{}
	if c.opt.Factory == nil {
		for name, v := range c.revisionFields() {
			if !c.fuse.fits(name, v) {
				return fmt.Errorf("there is no %s %s: field %s has no room for %d", c.model.Title, c.revision, name, v)
			}
			fields[name] = v
		}
		fields["MAC"] = macValue(c.opt.MAC)
		if c.si.MACCRC != "" {
			fields[c.si.MACCRC] = uint64(crc8(c.opt.MAC[:]))
		}
		if c.opt.CodingScheme != 0 {
			fields["CODING_SCHEME"] = uint64(c.opt.CodingScheme)
		}
	}
	if len(words) > len(c.fuse.blocks) {
		return fmt.Errorf("%s has %d eFuse blocks, not %d", c.model.Title, len(c.fuse.blocks), len(words))
	}
	for i, w := range words {
		if err := c.fuse.put(i, w); err != nil {
			return err
		}
		c.fuse.load() // BLOCK0 says how the others are coded
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if err := c.fuse.putField(name, fields[name]); err != nil {
			return err
		}
		c.fuse.load()
	}
	return nil
}

// revisionFields gives the fuses of the silicon's revision.
func (c *Chip) revisionFields() map[string]uint64 {
	if c.si.RevisionFields != nil {
		return c.si.RevisionFields(c.revision)
	}
	out := map[string]uint64{}
	for part, v := range map[string]uint64{"MINOR": uint64(c.revision % 100), "MAJOR": uint64(c.revision / 100)} {
		name := "WAFER_VERSION_" + part
		low, ok := c.tab.Field(name + "_LO")
		if !ok {
			out[name] = v
			continue
		}
		out[name+"_LO"], out[name+"_HI"] = v&(1<<low.Len()-1), v>>low.Len()
	}
	return out
}

// macValue is the MAC as the table's field has it: first byte lowest.
func macValue(m chip.MAC) (v uint64) {
	for i, b := range m {
		v |= uint64(b) << (8 * i)
	}
	return v
}

// crc8 is the ESP32's CRC over its MAC: reflected polynomial 0x8C (esp-facts B.8).
func crc8(p []byte) (crc byte) {
	for _, b := range p {
		crc ^= b
		for range 8 {
			low := crc & 1
			crc >>= 1
			if low != 0 {
				crc ^= 0x8C
			}
		}
	}
	return crc
}

// Close ends the simulation: pending reads fail and no goroutine stays.
func (c *Chip) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.supply = false
	c.stop()
	if c.rising != nil {
		c.rising.Stop()
	}
	c.wakeReaders()
	return nil
}

// Model is the simulated chip.
func (c *Chip) Model() chip.Model { return c.model }

// Revision is the silicon revision.
func (c *Chip) Revision() chip.Revision { return c.revision }

// MAC is the base MAC in the fuses.
func (c *Chip) MAC() (m chip.MAC) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, fd := 0, c.macField(); i < len(m); i++ {
		for j, bit := range fd.Bits()[8*i : 8*i+8] {
			m[i] |= byte(c.fuse.data(fd.Block)[bit/32]>>(bit%32)&1) << j
		}
	}
	return m
}

func (c *Chip) macField() table.Field {
	fd, _ := c.tab.Field("MAC")
	return fd
}

// USBSerial reports whether the board hangs on the chip's own USB unit.
func (c *Chip) USBSerial() bool { return c.opt.USBSerial }

// Fuses gives the data words of every block as they really are, whatever
// protects them from being read: without parity, and decoded. With the ESP32's
// 3/4 scheme a block has six data words and two zeros.
func (c *Chip) Fuses() [][]uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fuse.decoded()
}

// Damaged reports whether the error registers would show a fault of a block if the
// fuses were loaded now. An interrupted burn leaves such a block.
func (c *Chip) Damaged(block int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fuse.damaged(block)
}

// SetFuse sets bits of a data word, as if they had been burned earlier: it heeds
// no protection, and an RS or 3/4 block gets the check bits of its new content.
// Without a load (a reset or a read command) the chip does not see them.
func (c *Chip) SetFuse(block, word int, bits uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if block < 0 || block >= len(c.fuse.blocks) || word < 0 || word >= c.fuse.blocks[block].Words {
		return fmt.Errorf("%s has no eFuse word %d in block %d", c.model.Title, word, block)
	}
	data := c.fuse.data(block)
	data[word] |= bits
	c.changes++
	return c.fuse.put(block, data)
}

// Burns counts the program commands that the eFuse controller has run.
func (c *Chip) Burns() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fuse.burns
}

// BootBurns counts the eFuse blocks that boot code has burned by itself, as
// Options.Build lets it.
func (c *Chip) BootBurns() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bootBurns
}

// Flash is the flash chip. Touch it only while nothing talks to the chip.
func (c *Chip) Flash() *nor.Flash { return c.flash }

// RegisterWrites counts the register writes since the chip was made.
func (c *Chip) RegisterWrites() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// HostBytes counts the bytes from the host since the chip was made.
func (c *Chip) HostBytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hostBytes
}

// Requests counts the requests of an opcode that the loader took since the chip was made.
func (c *Chip) Requests(op byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[op]
}

// Changes counts what changed fuses or flash: when it moved, there is something to save.
func (c *Chip) Changes() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// State is where the last reset ended; 0 while the chip is off or held in reset.
func (c *Chip) State() bootrom.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// BootText is what the chip printed at its last reset, without a boot loop's repetitions.
func (c *Chip) BootText() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.boot.Text)
}

// Errors of a chip's line.
var (
	ErrUnplugged = errors.New("the simulated port is unplugged")
	ErrClosed    = errors.New("the simulated chip is closed")
)
