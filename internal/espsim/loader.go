package espsim

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/espsim/nor"
)

// Opcodes of the loader in the mask ROM (esp-facts A.2).
const (
	opFlashBegin   = 0x02
	opFlashData    = 0x03
	opFlashEnd     = 0x04
	opMemBegin     = 0x05
	opMemEnd       = 0x06
	opMemData      = 0x07
	opSync         = 0x08
	opWriteReg     = 0x09
	opReadReg      = 0x0A
	opSPISetParams = 0x0B
	opSPIAttach    = 0x0D
	opReadFlash    = 0x0E
	opChangeBaud   = 0x0F
	opDeflBegin    = 0x10
	opDeflData     = 0x11
	opDeflEnd      = 0x12
	opFlashMD5     = 0x13
	opSecurityInfo = 0x14
)

// Error codes of the status bytes (esp-facts A.3).
const (
	errRefused  = 0x05 // unknown, not allowed, or of the wrong length
	errFailed   = 0x06 // understood, but could not be done
	errChecksum = 0x07
	errDeflate  = 0x0B
	errAdler    = 0x0C
	errParam    = 0x64 // seen for an encrypted write that is not allowed
)

// status is a command's outcome; 0 is success.
type status = byte

// syncReplies is how often the loader answers a SYNC.
const syncReplies = 8

// romFlashSize is what the ROM takes the flash for until SPI_SET_PARAMS (A.11).
const romFlashSize = 2 << 20

// loader is the state of the serial loader; a reset makes a new one.
type loader struct {
	in     slipReader
	synced bool
	secure bool // Secure Download Mode

	// The reply is one buffer in RAM that commands fill in only where they have
	// something to say. So an opcode, a value and status bytes of earlier commands
	// show through.
	op     byte
	value  uint32
	status [4]byte

	attached  bool
	flashSize uint32
	write     *flashWrite
	mem       *memWrite
	burning   bool // eFuse registers were written and nothing else since (window burn)
}

// flashWrite is what FLASH_BEGIN or FLASH_DEFL_BEGIN announced.
type flashWrite struct {
	start, end uint32 // flash addresses that may be written
	next       uint32 // where the unpacked stream goes on
	block      uint32
	blocks     uint32
	deflate    *inflater                             // nil: plain blocks
	encrypt    func(addr uint32, data []byte) []byte // nil: the bytes go as they are
}

// encryptAlign is what the chip's own encryption works on at least.
const encryptAlign = 16

type memWrite struct{ blocks, block uint32 }

// command is one entry of the loader's table.
type command struct {
	length  func(n, beginWords int) bool // of the request's data
	secure  bool                         // allowed in Secure Download Mode
	execute func(*Chip, request) ([]byte, status)
	after   func(*Chip, request) // once the reply has left
}

type request struct {
	op       byte
	checksum uint32
	data     []byte
}

func (r request) word(i int) uint32 { return binary.LittleEndian.Uint32(r.data[4*i:]) }

func exactly(n int) func(int, int) bool { return func(m, _ int) bool { return m == n } }
func atLeast(n int) func(int, int) bool { return func(m, _ int) bool { return m >= n } }
func beginWords(n, words int) bool      { return n == 4*words }
func registerGroups(n, _ int) bool      { return n >= 16 && n%16 == 0 }

// commands is what the ROM knows. Some chips lack some: see knows.
var commands map[byte]command

func init() { // the functions refer to the table
	commands = map[byte]command{
		opFlashBegin:   {beginWords, true, (*Chip).flashBegin, nil},
		opFlashData:    {atLeast(16), true, (*Chip).flashData, nil},
		opFlashEnd:     {exactly(4), true, (*Chip).flashEnd, (*Chip).leaveFlash},
		opMemBegin:     {exactly(16), false, (*Chip).memBegin, nil},
		opMemEnd:       {exactly(8), false, (*Chip).memEnd, (*Chip).leaveMem},
		opMemData:      {atLeast(16), false, (*Chip).memData, nil},
		opSync:         {exactly(36), true, (*Chip).sync, nil},
		opWriteReg:     {registerGroups, false, (*Chip).writeReg, nil},
		opReadReg:      {exactly(4), false, (*Chip).readReg, nil},
		opSPISetParams: {exactly(24), true, (*Chip).spiSetParams, nil},
		opSPIAttach:    {exactly(8), true, (*Chip).spiAttach, nil},
		opReadFlash:    {exactly(8), false, (*Chip).readFlash, nil},
		opChangeBaud:   {exactly(8), true, (*Chip).changeBaud, (*Chip).switchBaud},
		opDeflBegin:    {beginWords, false, (*Chip).deflBegin, nil},
		opDeflData:     {atLeast(16), false, (*Chip).deflData, nil},
		opDeflEnd:      {exactly(4), false, (*Chip).flashEnd, (*Chip).leaveFlash},
		opFlashMD5:     {exactly(16), false, (*Chip).flashMD5, nil},
		opSecurityInfo: {exactly(0), true, (*Chip).securityInfo, nil},
	}
}

// knows finds a command if the chip's ROM has it and its mode allows it.
func (c *Chip) knows(op byte) (command, bool) {
	cmd, ok := commands[op]
	switch {
	case op == opSecurityInfo && !c.model.ROM.SecurityInfo:
		return command{}, false
	case c.ld.secure && !cmd.secure:
		return command{}, false
	}
	return cmd, ok
}

// handle answers one frame.
func (c *Chip) handle(f frame) {
	ld := &c.ld
	r, intact := parseRequest(f)
	isSync := intact && r.op == opSync && validSync(r.data)
	if !ld.synced {
		// The loader measures the baud rate on a SYNC; until then it understands
		// nothing else.
		if !isSync {
			return
		}
		ld.synced = true
	}
	cmd, known := c.knows(r.op)
	switch {
	case !intact, !known, !cmd.length(len(r.data), c.model.ROM.FlashBeginWords), r.op == opSync && !isSync:
		c.refuse()
		return
	}
	c.seen[r.op]++
	if st, hit := c.faults.refuses(r.op, c.seen[r.op]); hit {
		if st == [2]byte{1, errRefused} {
			c.refuse()
			return
		}
		ld.op = r.op
		ld.status[0], ld.status[1] = st[0], st[1]
		c.reply(nil)
		return
	}
	ld.op = r.op
	if r.op != opReadReg && r.op != opWriteReg {
		ld.burning = false
	}
	busy := c.fuse.busy()
	data, st := cmd.execute(c, r)
	if !c.loading() {
		return // the power went while it worked, or it hangs
	}
	ld.status[0] = 0
	if st != 0 {
		ld.status[0], ld.status[1] = 1, st
		data = nil
	}
	c.reply(data)
	if busy && (r.op != opReadReg || r.word(0) != c.model.EFuse.Cmd) {
		c.fuse.tick()
	}
	if st == 0 && cmd.after != nil {
		cmd.after(c, r)
	}
	if c.si.WatchesFuses && c.loading() && c.closedByFuse() {
		c.coreReset(c.si.SoftwareReset)
	}
}

// closedByFuse reports whether the fuses now forbid what this loader still does.
func (c *Chip) closedByFuse() bool {
	return c.downloadDisabled() || !c.ld.secure && c.secureDownload()
}

// refuse is the loader's answer to what it does not understand: the reply buffer
// as the last accepted command left it, with status 01 05.
func (c *Chip) refuse() {
	c.ld.status[0], c.ld.status[1] = 1, errRefused
	c.reply(nil)
	c.fuse.tick()
}

// reply sends the reply buffer; a SYNC's goes out eight times, also when it only
// carries a refusal.
func (c *Chip) reply(data []byte) {
	ld := &c.ld
	p := binary.LittleEndian.AppendUint16([]byte{1, ld.op}, uint16(len(data)+len(ld.status)))
	p = binary.LittleEndian.AppendUint32(p, ld.value)
	p = append(append(p, data...), ld.status[:]...)
	c.replies[ld.op]++
	if c.faults.loses(ld.op, c.replies[ld.op]) {
		return
	}
	times := 1
	if ld.op == opSync {
		times = syncReplies
	}
	for range times {
		c.emit(slipEncode(p))
	}
}

func parseRequest(f frame) (request, bool) {
	if f.bad || len(f.body) < 8 || f.body[0] != 0 {
		return request{}, false
	}
	r := request{op: f.body[1], checksum: binary.LittleEndian.Uint32(f.body[4:]), data: f.body[8:]}
	return r, int(binary.LittleEndian.Uint16(f.body[2:])) == len(r.data)
}

func validSync(data []byte) bool {
	if len(data) != 36 || string(data[:4]) != "\x07\x07\x12\x20" {
		return false
	}
	for _, b := range data[4:] {
		if b != 0x55 {
			return false
		}
	}
	return true
}

func (c *Chip) sync(r request) ([]byte, status) {
	c.ld.value = r.word(0)
	return nil, 0
}

func (c *Chip) readReg(r request) ([]byte, status) {
	if c.si.Deaf != 0 && r.word(0) == c.si.Deaf {
		c.hang()
		return nil, 0
	}
	c.ld.value = c.readRegister(r.word(0))
	c.ld.status[1] = 0
	return nil, 0
}

func (c *Chip) writeReg(r request) ([]byte, status) {
	for i := 0; i < len(r.data)/4; i += 4 {
		c.writeRegister(r.word(i), r.word(i+1), r.word(i+2))
		if c.state == 0 {
			return nil, 0
		}
		if r.word(i+3) >= 1000 { // µs
			c.fuse.finish()
		}
	}
	return nil, 0
}

func (c *Chip) spiAttach(request) ([]byte, status) {
	c.ld.attached = true
	return nil, 0
}

func (c *Chip) spiSetParams(r request) ([]byte, status) {
	c.ld.flashSize = r.word(1)
	return nil, 0
}

// inFlash reports whether the ROM would touch size bytes at addr: the pins are
// attached and the range is inside what it takes the flash for.
func (c *Chip) inFlash(addr, size uint32) bool {
	return c.ld.attached && c.flashOn && uint64(addr)+uint64(size) <= uint64(c.ld.flashSize)
}

// eachPart splits a range at the end of the real flash: the part ignores the
// address bits that it lacks, so a ROM that was told too much wraps around. In Secure
// Download Mode the ROM sends three address bytes (esp-facts A.11).
func (c *Chip) eachPart(addr, size uint32, do func(at, n uint32) error) error {
	end := c.flash.Size()
	if c.ld.secure {
		end = min(end, 1<<24)
	}
	for size > 0 {
		at := addr % end
		n := min(size, end-at)
		if err := do(at, n); err != nil {
			return err
		}
		addr, size = addr+n, size-n
	}
	return nil
}

func (c *Chip) eraseFlash(addr, size uint32) status {
	first := addr / nor.SectorSize * nor.SectorSize
	last := (uint64(addr) + uint64(size) + nor.SectorSize - 1) / nor.SectorSize * nor.SectorSize
	if err := c.eachPart(first, uint32(last-uint64(first)), c.flash.Erase); err != nil {
		return errFailed
	}
	c.changes++
	return 0
}

func (c *Chip) programFlash(addr uint32, data []byte) status {
	err := c.eachPart(addr, uint32(len(data)), func(at, n uint32) error {
		p := data[:n]
		data = data[n:]
		return c.flash.Program(at, p)
	})
	if err != nil {
		return errFailed
	}
	c.changes++
	return 0
}

// begin serves FLASH_BEGIN and FLASH_DEFL_BEGIN: it erases what they announce.
func (c *Chip) begin(r request) (*flashWrite, status) {
	size, blocks, block, start := r.word(0), r.word(1), r.word(2), r.word(3)
	c.endWrite()
	var encrypt func(uint32, []byte) []byte
	if len(r.data) >= 20 && r.word(4) != 0 {
		if c.fuse.field(c.si.ManualEncrypt) != 0 || r.op == opDeflBegin || start%encryptAlign != 0 || block%encryptAlign != 0 {
			return nil, errParam
		}
		encrypt = bootrom.Encryption(c.bootInput(0))
	}
	if !c.inFlash(start, size) || block == 0 || block > maxFrame {
		return nil, errFailed
	}
	// The blocks of a packed write count packed bytes: there the size decides.
	end := uint64(start) + uint64(blocks)*uint64(block)
	if r.op == opDeflBegin {
		end = uint64(start) + (uint64(size)+uint64(block)-1)/uint64(block)*uint64(block)
	}
	w := &flashWrite{start: start, end: uint32(min(end, uint64(c.ld.flashSize))), next: start, blocks: blocks, block: block, encrypt: encrypt}
	if size > 0 {
		if st := c.eraseFlash(start, size); st != 0 {
			return nil, st
		}
	}
	c.ld.write = w
	return w, 0
}

func (c *Chip) flashBegin(r request) ([]byte, status) {
	_, st := c.begin(r)
	return nil, st
}

func (c *Chip) deflBegin(r request) ([]byte, status) {
	w, st := c.begin(r)
	if st == 0 {
		w.deflate = newInflater()
	}
	return nil, st
}

// endWrite drops a write that was under way.
func (c *Chip) endWrite() {
	if w := c.ld.write; w != nil && w.deflate != nil {
		w.deflate.close()
	}
	c.ld.write = nil
}

// payload checks the sub-header and the checksum of a data command.
func payload(r request) ([]byte, status) {
	p := r.data[16:]
	if int(r.word(0)) != len(p) {
		return nil, errRefused
	}
	sum := byte(0xEF)
	for _, b := range p {
		sum ^= b
	}
	if uint32(sum) != r.checksum {
		return nil, errChecksum
	}
	return p, 0
}

func (c *Chip) flashData(r request) ([]byte, status) {
	c.datas++
	if c.faults.PowerAtData != 0 && c.datas == c.faults.PowerAtData {
		c.powerOff()
		return nil, 0
	}
	p, st := payload(r)
	if st != 0 {
		return nil, st
	}
	w, seq := c.ld.write, r.word(1)
	if w == nil || w.deflate != nil || seq >= w.blocks || len(p) > int(w.block) {
		return nil, errFailed
	}
	addr := uint64(w.start) + uint64(seq)*uint64(w.block)
	if addr+uint64(len(p)) > uint64(w.end) {
		return nil, errFailed
	}
	if w.encrypt != nil {
		if len(p)%encryptAlign != 0 {
			return nil, errFailed
		}
		p = w.encrypt(uint32(addr), p)
	}
	return nil, c.programFlash(uint32(addr), p)
}

func (c *Chip) deflData(r request) ([]byte, status) {
	c.datas++
	if c.faults.PowerAtData != 0 && c.datas == c.faults.PowerAtData {
		c.powerOff()
		return nil, 0
	}
	p, st := payload(r)
	if st != 0 {
		return nil, st
	}
	w := c.ld.write
	if w == nil || w.deflate == nil {
		return nil, errFailed
	}
	out, err := w.deflate.feed(p)
	if err != nil {
		return nil, inflateStatus(err)
	}
	if uint64(w.next)+uint64(len(out)) > uint64(w.end) {
		return nil, errFailed
	}
	st = c.programFlash(w.next, out)
	w.next += uint32(len(out))
	return nil, st
}

func (c *Chip) flashEnd(request) ([]byte, status) {
	c.endWrite()
	return nil, 0
}

// leaveFlash is what FLASH_END does once it is answered: 1 starts what is in
// flash, 0 resets. A reset by software does not sample the strap again, so the
// chip comes back to the loader (the C3 transcript shows that).
func (c *Chip) leaveFlash(r request) {
	if r.word(0) != 0 {
		c.strap = false
	}
	c.coreReset(c.si.SoftwareReset)
}

func (c *Chip) memBegin(r request) ([]byte, status) {
	c.ld.mem = &memWrite{blocks: r.word(1), block: r.word(2)}
	return nil, 0
}

func (c *Chip) memData(r request) ([]byte, status) {
	p, st := payload(r)
	if st != 0 {
		return nil, st
	}
	if m := c.ld.mem; m == nil || r.word(1) >= m.blocks || len(p) > int(m.block) {
		return nil, errFailed
	}
	return nil, 0
}

func (c *Chip) memEnd(request) ([]byte, status) {
	c.ld.mem = nil
	return nil, 0
}

// noProcessor is text and no frame, as a crash of loaded code is: a tool that
// waits for its own code's greeting stops at once. Silence would hold some for
// ever (esptool 5.3.1 waits for its stub without a limit).
const noProcessor = "\r\nsimulated chip: there is no processor to run code in RAM; talk to the ROM only (esptool: --no-stub)\r\n"

// leaveMem jumps into RAM if there is an entry. There is no processor here: the
// loader is gone, and after one line the chip is silent until a reset.
func (c *Chip) leaveMem(r request) {
	if r.word(0) == 0 && r.word(1) != 0 {
		c.hang()
		c.emit([]byte(noProcessor))
	}
}

// readFlash always gives 64 bytes; those beyond the wanted ones are zeros.
func (c *Chip) readFlash(r request) ([]byte, status) {
	addr, n := r.word(0), r.word(1)
	if n > 64 || !c.inFlash(addr, n) {
		return nil, errFailed
	}
	out := make([]byte, 64)
	p := out[:n]
	err := c.eachPart(addr, n, func(at, n uint32) error {
		_, err := c.flash.ReadAt(p[:n], int64(at))
		p = p[n:]
		return err
	})
	if err != nil {
		return nil, errFailed
	}
	return out, 0
}

// flashMD5 digests what is in the flash as it stands, ciphertext included.
func (c *Chip) flashMD5(r request) ([]byte, status) {
	addr, n := r.word(0), r.word(1)
	if !c.inFlash(addr, n) || uint64(addr)+uint64(n) > uint64(c.flash.Size()) {
		return nil, errFailed
	}
	sum, err := c.flash.MD5(addr, n)
	if err != nil {
		return nil, errFailed
	}
	return []byte(hex.EncodeToString(sum[:])), 0
}

func (c *Chip) changeBaud(r request) ([]byte, status) {
	if r.word(0) == 0 {
		return nil, errFailed
	}
	return nil, 0
}

// switchBaud changes the chip's rate after the reply. The ESP32's ROM divides the
// crystal as it worked it out from CLK8M_FREQ, so with another value than its
// measurement stands for, the line gets another rate than asked for (A.6).
func (c *Chip) switchBaud(r request) {
	rate := uint64(r.word(0))
	if c.model.ROM.BaudCrystalFixed {
		if f := c.romCrystal(); f != 0 {
			rate = rate * c.crystal() / f
		}
	} else if c.si.ROMCrystal != nil {
		rate = rate * c.crystal() / (uint64(c.si.ROMCrystal(c.revision)) * 1_000_000)
	}
	c.rate = int(min(rate, 1<<30))
}

// romCrystal is the crystal frequency as the ESP32's ROM sees it, 0 where the
// fuse is empty and the ROM keeps the nominal one.
func (c *Chip) romCrystal() uint64 {
	measured := uint64(c.si.Fixed[c.model.ROM.ApproxFreqReg]>>7) & 0x1FFFFFF
	return measured * 15625 * c.fuse.field("CLK8M_FREQ") / 40
}

// securityInfo is GET_SECURITY_INFO (A.4).
func (c *Chip) securityInfo(request) ([]byte, status) {
	var flags uint32
	for field, bit := range c.si.SecurityFlags {
		if fd, ok := c.tab.Field(field); ok && c.fuse.field(field) == 1<<fd.Len()-1 {
			flags |= 1 << bit
		}
	}
	p := binary.LittleEndian.AppendUint32(nil, flags)
	p = append(p, byte(c.fuse.field(c.model.EFuse.FlashCryptCount)))
	for i := range 6 {
		p = append(p, byte(c.fuse.field(fmt.Sprintf("KEY_PURPOSE_%d", i))))
	}
	p = append(p, c.si.SecuritySpare)
	p = binary.LittleEndian.AppendUint32(p, uint32(c.model.ID))
	p = binary.LittleEndian.AppendUint32(p, c.si.API)
	return p[:c.model.ROM.SecurityInfoBytes], 0
}
