package rom

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
)

// loader is a small model of a chip's ROM loader behind a Port, with a line that
// can be noisy. It shares no code with the client. It is as unhelpful as the
// protocol allows: it does not look at sequence numbers, a block that comes twice
// lands behind the first, refusals come under the last accepted opcode. It needs
// a synctest bubble: answers arrive in its time.
type loader struct {
	model chip.Model
	info  PortInfo
	boot  string // printed after a reset
	flash []byte // all 0 until it is erased; there from the first flash command on
	size  uint32
	regs  map[uint32]uint32

	secure, muted, closed bool // Secure Download Mode; no answers; no loader
	noReads               bool // READ_REG is refused, without Secure Download Mode
	flips                 bool // an empty frame ends a frame, too

	perSector time.Duration // what erasing takes

	// A stub: what was loaded into RAM, and whether it runs.
	ram              map[uint32]byte
	ramAt, ramLeft   uint32
	stub             bool
	stubMute         bool // it does not greet
	endReplyLost     bool // the ROM's answer to MEM_END does not come
	secureBoot       bool
	lastBlockPending bool // of a stub: answered and not written yet

	crystal, assumed int // MHz: the board's crystal, and the one that the ROM takes for granted; 0: the same

	rate float64 // damaged bytes per byte, both directions
	rng  *rand.Rand
	hits int
	// damageAt flips bits of one byte, counted over both directions; -1 none.
	damageAt, seen int
	damageBy       byte

	baud, hostBaud int
	in             bool
	raw            []byte
	lastOp         byte
	value          uint32
	at             uint32
	begun          bool
	rx             []arrival
	dtr, rts       bool
	lineLog        []string

	calls       int
	unplugAt    int // the call that finds the port gone; 0 never
	backAfter   int // Reopens until it is there again; 0 never
	reopened    int
	requests    []byte // opcodes as they came, well-formed or not
	afterUnplug int
}

type arrival struct {
	at   time.Time
	data []byte
}

func newLoader(m chip.Model) *loader {
	l := &loader{
		model: m, info: PortInfo{Name: "model", Lines: true},
		size: 2 << 20, regs: map[uint32]uint32{},
		rng: rand.New(rand.NewPCG(7, 7)), baud: 115200, hostBaud: 115200, damageAt: -1, lastOp: 8,
	}
	switch m.Name {
	case "esp32":
		l.boot = "ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0xf (UART_BOOT(UART0))\r\nwaiting for download\r\n"
		l.regs[0x40001000] = 0x00F01D83
		l.regs[0x3FF5F06C] = 1280 << 7
		l.regs[0x3FF5A010] = 0xE50
		l.regs[0x3FF5A004] = 0xC47F4B06
	case "esp32c3":
		l.boot = "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x1 (POWERON),boot:0x2 (UART0_BOOT)\r\nwait uart0 download\r\n"
		l.regs[0x40001000] = 0x1B31506F
		l.regs[0x60008844] = 0xA1C9C3B3
	}
	l.regs[m.SPI.Usr], l.regs[m.SPI.Usr2] = 0x80000040, 0x70000000
	return l
}

// connected is a client on a loader without noise so far.
func connected(t *testing.T, l *loader, opts Options) *Client {
	t.Helper()
	rate, damage := l.rate, l.damageAt
	l.rate, l.damageAt = 0, -1
	c, err := Connect(t.Context(), l, AutoReset{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	l.rate, l.damageAt, l.seen = rate, damage, 0
	return c
}

// detected is a client that knows its chip.
func detected(t *testing.T, l *loader) *Client {
	t.Helper()
	rate, damage := l.rate, l.damageAt
	l.rate, l.damageAt = 0, -1
	c := connected(t, l, Options{})
	if _, err := c.Detect(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.rate, l.damageAt, l.seen = rate, damage, 0
	l.calls = 0
	return c
}

// line passes bytes over the wire.
func (l *loader) line(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for _, b := range p {
		n := l.seen
		l.seen++
		if n == l.damageAt {
			b ^= l.damageBy
			l.hits++
		}
		if l.rate > 0 && l.rng.Float64() < l.rate {
			l.hits++
			switch l.rng.IntN(8) {
			case 0:
				continue // lost
			case 1:
				b = 0xC0
			case 2:
				b = 0xDB
			default:
				b ^= byte(1 + l.rng.IntN(255))
			}
		}
		out = append(out, b)
	}
	return out
}

func (l *loader) gone() bool {
	l.calls++
	if l.unplugAt > 0 && l.calls >= l.unplugAt {
		if l.calls > l.unplugAt {
			l.afterUnplug++
		}
		return true
	}
	return false
}

func (l *loader) Write(ctx context.Context, p []byte) (int, error) {
	if l.gone() {
		return 0, ErrUnplugged
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if l.hostBaud != l.baud || l.closed {
		return len(p), nil
	}
	for _, b := range l.line(p) {
		switch {
		case b != 0xC0 && l.in:
			if l.raw = append(l.raw, b); len(l.raw) > 8192 && !l.stub || len(l.raw) > 2*0x4100 {
				l.raw, l.in = nil, false
			}
		case b != 0xC0:
		case !l.in:
			l.in = true
		case len(l.raw) == 0:
			l.in = !l.flips
		default:
			raw := l.raw
			l.raw, l.in = nil, false
			l.frame(raw)
		}
	}
	return len(p), nil
}

func (l *loader) Read(ctx context.Context, p []byte) (int, error) {
	if l.gone() {
		return 0, ErrUnplugged
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if len(l.rx) == 0 {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if err := sleep(ctx, time.Until(l.rx[0].at)); err != nil {
		return 0, err
	}
	n := copy(p, l.rx[0].data[:min(len(l.rx[0].data), 1+l.rng.IntN(64))])
	if l.rx[0].data = l.rx[0].data[n:]; len(l.rx[0].data) == 0 {
		l.rx = l.rx[1:]
	}
	return n, nil
}

func (l *loader) Discard(context.Context) error {
	if l.gone() {
		return ErrUnplugged
	}
	now := time.Now()
	l.rx = slices.DeleteFunc(l.rx, func(a arrival) bool { return !a.at.After(now) })
	return nil
}

func (l *loader) SetBaud(_ context.Context, baud int) error {
	if l.gone() {
		return ErrUnplugged
	}
	l.hostBaud = baud
	return nil
}

func (l *loader) SetLines(_ context.Context, dtr, rts bool) error {
	if l.gone() {
		return ErrUnplugged
	}
	if !l.info.Lines {
		return ErrNoLines
	}
	l.lineLog = append(l.lineLog, fmt.Sprintf("%d%d", number(dtr), number(rts)))
	wasReset, isReset := l.rts && !l.dtr, rts && !dtr
	if wasReset && !isReset {
		l.lineLog = append(l.lineLog, "reset")
		l.restart()
	}
	l.dtr, l.rts = dtr, rts
	return nil
}

// restart is what a reset does to the loader.
func (l *loader) restart() {
	l.stub, l.ram = false, nil
	l.baud, l.in, l.raw, l.lastOp, l.begun, l.size, l.rx = 115200, false, nil, 8, false, 2<<20, nil
	l.say([]byte(l.boot), 20*time.Millisecond)
}

func (l *loader) Reopen(context.Context) error {
	l.reopened++
	if l.backAfter > 0 && l.reopened >= l.backAfter {
		l.unplugAt = 0
		return nil
	}
	return ErrUnplugged
}

func (l *loader) Info() PortInfo { return l.info }

func (l *loader) say(p []byte, after time.Duration) {
	if l.muted || len(p) == 0 || l.hostBaud != l.baud {
		return
	}
	at := time.Now().Add(after)
	if n := len(l.rx); n > 0 && l.rx[n-1].at.After(at) {
		at = l.rx[n-1].at
	}
	if p = l.line(p); len(p) > 0 {
		l.rx = append(l.rx, arrival{at, p})
	}
}

// answer sends a reply frame under the opcode, with the leftover value word.
func (l *loader) answer(op byte, after time.Duration, data []byte, status ...byte) {
	if l.stub {
		status = status[:2]
	}
	body := append(slices.Clone(data), status...)
	f := []byte{0x01, op, byte(len(body)), byte(len(body) >> 8)}
	f = binary.LittleEndian.AppendUint32(f, l.value)
	out := []byte{0xC0}
	for _, b := range append(f, body...) {
		switch b {
		case 0xC0:
			out = append(out, 0xDB, 0xDC)
		case 0xDB:
			out = append(out, 0xDB, 0xDD)
		default:
			out = append(out, b)
		}
	}
	l.say(append(out, 0xC0), after)
}

func (l *loader) ok(op byte, after time.Duration, data ...byte) {
	l.lastOp = op
	n := 1
	if op == 8 {
		n = 8
	}
	for range n {
		l.answer(op, after, data, 0, 5, 0, 0) // a stale code behind a good verdict
	}
}

func (l *loader) refuse() {
	n := 1
	if l.lastOp == 8 {
		n = 8
	}
	for range n {
		l.answer(l.lastOp, 0, nil, 1, 5, 0, 0)
	}
}

func (l *loader) frame(raw []byte) {
	var f []byte
	for i := 0; i < len(raw); i++ {
		b := raw[i]
		if b == 0xDB {
			i++
			if i == len(raw) || (raw[i] != 0xDC && raw[i] != 0xDD) {
				l.refuse()
				return
			}
			b = map[byte]byte{0xDC: 0xC0, 0xDD: 0xDB}[raw[i]]
		}
		f = append(f, b)
	}
	if len(f) < 8 || f[0] != 0 || int(binary.LittleEndian.Uint16(f[2:])) != len(f)-8 {
		l.refuse()
		return
	}
	l.requests = append(l.requests, f[1])
	op, sum, d := f[1], f[4], f[8:]
	w := func(i int) uint32 { return binary.LittleEndian.Uint32(d[4*i:]) }
	want := map[byte]int{8: 36, 0x0A: 4, 0x0B: 24, 0x0D: 8, 0x0E: 8, 0x0F: 8, 0x13: 16, 0x02: 4 * l.model.ROM.FlashBeginWords, 0x04: 4}
	if l.stub {
		want[0x0D], want[0x02], want[0xD1] = 4, 20, 8
		delete(want, 0x0E)
		l.lastBlockPending = false
	}
	if !l.secure {
		want[0x05], want[0x06] = 16, 8
	}
	n, fixed := want[op]
	switch op {
	case 0x07:
		fixed, n = l.ram != nil && !l.secure, max(16, len(d))
	case 0x03:
		fixed, n = true, max(16, len(d))
	case 0x09:
		fixed, n = true, max(16, len(d)/16*16)
	case 0x14:
		fixed = l.model.ROM.SecurityInfo
	}
	if !fixed || len(d) != n {
		if l.stub {
			l.answer(op, 0, nil, 0xFF, 0)
			return
		}
		l.refuse()
		return
	}
	if l.noReads && op == 0x0A || l.secure && slices.Contains([]byte{0x09, 0x0A, 0x0E, 0x13}, op) {
		l.refuse()
		return
	}
	if l.flash == nil && slices.Contains([]byte{0x02, 0x03, 0x0E, 0x13}, op) {
		l.flash = make([]byte, 4<<20)
	}
	const soon = time.Millisecond
	switch op {
	case 0x08:
		l.value = 0x20120707
		if l.stub {
			l.value = 0
		}
		l.ok(op, soon)
	case 0x05:
		if l.ram == nil {
			l.ram = map[uint32]byte{}
		}
		l.ramLeft, l.ramAt = w(0), w(3)
		l.ok(op, soon)
	case 0x07:
		block, check := d[16:], byte(0xEF)
		for _, b := range block {
			check ^= b
		}
		switch {
		case check != sum:
			l.answer(op, 0, nil, 1, 7, 0, 0)
		case int(w(0)) != len(block) || uint32(len(block)) > l.ramLeft || len(block) > l.model.ROM.MemBlock:
			l.answer(op, 0, nil, 1, 5, 0, 0)
		default:
			for i, b := range block {
				l.ram[l.ramAt+uint32(i)] = b
			}
			l.ramAt, l.ramLeft = l.ramAt+uint32(len(block)), l.ramLeft-uint32(len(block))
			l.ok(op, soon)
		}
	case 0x06:
		if !l.endReplyLost {
			l.ok(op, soon)
		}
		if w(0) == 0 && !l.secureBoot {
			l.jump(w(1))
		}
	case 0x0A:
		l.value = l.regs[w(0)]
		if l.crystal != 0 && w(0) == l.model.UART.ClkDiv {
			l.value = uint32(l.crystal * 1_000_000 / l.baud)
		}
		l.ok(op, soon)
	case 0x09:
		for i := 0; i < len(d)/4; i += 4 {
			l.write(w(i), w(i+1), w(i+2))
		}
		l.ok(op, soon)
	case 0x0B:
		l.size = w(1)
		l.ok(op, soon)
	case 0x0D:
		l.ok(op, soon)
	case 0x0E:
		if hook := l.model.ROM.Stub.ReadHook; hook != 0 && l.ram != nil && l.regs[hook] != 0x40001234 {
			l.jump(l.regs[hook])
			return
		}
		if uint64(w(0))+64 > uint64(len(l.flash)) || w(1) > 64 {
			l.answer(op, 0, nil, 1, 9, 0, 0)
			return
		}
		l.ok(op, soon, l.flash[w(0):w(0)+64]...)
	case 0x0F:
		l.ok(op, soon)
		l.baud = int(w(0))
		if l.assumed != 0 {
			l.baud = int(uint64(w(0))*uint64(l.crystal)/uint64(l.assumed)+5) / 10 * 10 // the divider is no finer
		}
	case 0x13:
		if uint64(w(0))+uint64(w(1)) > uint64(len(l.flash)) {
			l.answer(op, 0, nil, 1, 9, 0, 0)
			return
		}
		digest := md5.Sum(l.flash[w(0) : w(0)+w(1)])
		if l.stub {
			l.ok(op, 50*soon, digest[:]...)
			return
		}
		l.ok(op, 50*soon, fmt.Appendf(nil, "%x", digest)...)
	case 0xD1:
		for i := w(0); i < w(0)+w(1); i++ {
			l.flash[i] = 0xFF
		}
		l.ok(op, 100*soon)
	case 0x14:
		info := make([]byte, 20)
		if l.secure {
			info[0] = 4
		}
		if l.secureBoot {
			info[0] |= 1
		}
		info[12], info[16] = byte(l.model.ID), 3
		l.ok(op, soon, info[:l.model.ROM.SecurityInfoBytes]...)
	case 0x02:
		size, offset := w(0), w(3)
		if uint64(offset)+uint64(size) > uint64(l.size) {
			l.answer(op, 0, nil, 1, 6, 0, 0)
			return
		}
		if l.stub {
			size = 0 // it erases what data come for
		}
		end := min((uint64(offset)+uint64(size)+0xFFF)&^0xFFF, uint64(len(l.flash)))
		for i := uint64(offset) &^ 0xFFF; i < end; i++ {
			l.flash[i] = 0xFF
		}
		l.at, l.begun = offset, true
		l.ok(op, 100*soon+time.Duration((size+0xFFF)/0x1000)*l.perSector)
	case 0x03:
		block := d[16:]
		check := byte(0xEF)
		for _, b := range block {
			check ^= b
		}
		switch {
		case !l.begun || int(w(0)) != len(block) || len(block) != l.blockSize() || int(l.at)+len(block) > len(l.flash):
			l.answer(op, 0, nil, 1, 5, 0, 0)
		case check != sum:
			l.answer(op, 0, nil, 1, 7, 0, 0)
		default:
			for i, b := range block {
				if l.stub {
					l.flash[int(l.at)+i] = 0xFF
				}
				l.flash[int(l.at)+i] &= b
			}
			l.lastBlockPending = l.stub
			l.at += uint32(len(block))
			l.ok(op, 2*soon)
		}
	default:
		l.refuse()
	}
}

// write is a register write, with the one side effect that the client relies on.
func (l *loader) write(addr, value, mask uint32) {
	l.regs[addr] = l.regs[addr]&^mask | value&mask
	spi := l.model.SPI
	if addr == spi.Cmd && l.regs[addr]&(1<<18) != 0 {
		l.regs[addr] = 0
		if l.regs[spi.Usr2] == 0x7000009F && l.regs[spi.Usr] == 0x90000000 && l.regs[spi.MISODLen] == 23 {
			l.regs[spi.W0] = 0x001640C8
		}
	}
}

// jump runs what was loaded into RAM: a stub, if its first byte is the one of testStub.
func (l *loader) jump(entry uint32) {
	if l.ram[entry] != testStubByte {
		return // it hangs
	}
	l.stub, l.begun = true, false
	if l.stubMute {
		return
	}
	l.say([]byte{0xC0, 'O', 'H', 'A', 'I', 0xC0}, time.Millisecond)
}

func (l *loader) blockSize() int {
	switch {
	case l.stub && l.info.USBOTG:
		return 0x800
	case l.stub:
		return 0x4000
	}
	return 0x400
}
