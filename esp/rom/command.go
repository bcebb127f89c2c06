package rom

import (
	"context"
	"crypto/md5" //nolint:gosec // the ROM computes no other digest
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Command is one request of the loader's protocol; A is its answer. The types
// of this file are all there are.
type Command[A any] interface {
	// request builds the packet. It may depend on the chip.
	request(c *Client) (request, error)
	// answer reads the header's value word and the reply's data.
	answer(value uint32, data []byte) (A, error)
	// describe sums the answer up for traces, without secrets.
	describe(c *Client, a A) string
}

// request is what goes over the line, and what may come back.
type request struct {
	op      Op
	data    []byte
	sum     uint8         // checksum of data packets
	lengths []int         // data lengths that a reply can have
	timeout time.Duration // how long the chip may take
	summary string        // for traces, without secrets
}

// Do sends one command and waits for its answer, once: it repeats nothing. A
// refusal is a *StatusError. After ErrTimeout or ErrNoise it is not known
// whether the chip did the command.
func Do[A any](ctx context.Context, c *Client, cmd Command[A]) (A, error) {
	var none A
	req, err := cmd.request(c)
	if err != nil {
		return none, err
	}
	r, data, err := c.exchange(ctx, req)
	if err != nil {
		return none, err
	}
	a, err := cmd.answer(r.value, data)
	if err != nil {
		c.noise++
		c.lost = true
		return none, fmt.Errorf("%s: %w", req.op, err)
	}
	if c.opts.Trace != nil {
		c.trace(Received, req.op.String(), cmd.describe(c, a), headerSize+len(r.body))
	}
	return a, nil
}

// tries is how often a command is sent that may be repeated.
const tries = 4

// retry is Do for commands that do no harm when they are done twice. A damaged
// or missing answer costs a retry.
func retry[A any](ctx context.Context, c *Client, cmd Command[A]) (A, error) {
	for n := 1; ; n++ {
		a, err := Do(ctx, c, cmd)
		if err == nil || n == tries || ctx.Err() != nil || !mayBeNoise(err) || (c.secure && Refused(err)) {
			return a, err
		}
		if isStatus(err) {
			c.noise++ // a request that arrived damaged
		}
		c.lost = true // find the loader's framing before asking again
	}
}

// Time-outs (esp-facts A.7).
const (
	defaultTimeout = 3 * time.Second
	writeTimeout   = 10 * time.Second
	memEndTimeout  = 200 * time.Millisecond
	perMegabyte    = 40 * time.Second // erase, write, and erase with write
	// perSector is what a slow flash chip may take for 4 KiB: data sheets give 400 ms
	// for a sector at most (Winbond W25Q32JV, AC characteristics, tSE; typically 45 ms), and
	// a 64 KiB block takes less than its sectors. Over a whole megabyte chips keep to
	// perMegabyte; over the 64 KiB that this client erases at once they need not.
	perSector      = 400 * time.Millisecond
	md5PerMegabyte = 8 * time.Second
	maxTimeout     = 240 * time.Second
)

// sized is a time-out that grows with the region; 1 MB is 1e6 bytes.
func sized(per time.Duration, size uint32) time.Duration {
	t := time.Duration(float64(per) * float64(size) / 1e6)
	return min(max(t, defaultTimeout), maxTimeout)
}

// eraseTime is how long the ROM may be silent while it erases a region.
func eraseTime(size uint32) time.Duration {
	sectors := (uint64(size) + sectorSize - 1) / sectorSize
	return max(sized(perMegabyte, size), min(defaultTimeout+time.Duration(sectors)*perSector, maxTimeout))
}

// Done is the answer of a command that only succeeds.
type Done struct{}

// done serves the commands whose answer is Done.
type done struct{}

func (done) answer(uint32, []byte) (Done, error) { return Done{}, nil }
func (done) describe(*Client, Done) string       { return "ok" }

// noData is the reply length of commands without answer data.
var noData = []int{0}

// FlashBegin erases a region of flash and begins a write to it. The ROM answers
// when the erase is done.
type FlashBegin struct {
	done
	Size      uint32 // bytes to erase
	Blocks    uint32 // FLASH_DATA packets to follow
	BlockSize uint32
	Offset    uint32 // flash address
	Encrypted bool   // the chip encrypts; not on ESP32
}

func (f FlashBegin) request(c *Client) (request, error) {
	data, err := c.beginWords(f.Size, f.Blocks, f.BlockSize, f.Offset, f.Encrypted)
	return request{
		op: OpFlashBegin, data: data, lengths: noData, timeout: eraseTime(f.Size),
		summary: fmt.Sprintf("%d bytes at 0x%x, %d blocks of %d", f.Size, f.Offset, f.Blocks, f.BlockSize),
	}, err
}

// beginWords has a fifth word on every chip but the ESP32, whose ROM refuses it; a
// stub takes it everywhere (esp-facts A.2).
func (c *Client) beginWords(size, blocks, blockSize, offset uint32, encrypted bool) ([]byte, error) {
	if !c.detected {
		return nil, ErrNotDetected
	}
	ws := []uint32{size, blocks, blockSize, offset}
	five := c.model.ROM.FlashBeginWords > 4 || c.stub
	switch {
	case five && encrypted:
		ws = append(ws, 1)
	case five:
		ws = append(ws, 0)
	case encrypted:
		return nil, fmt.Errorf("the %s ROM cannot encrypt what it writes: encrypt on the host", c.model.Title)
	}
	return words(ws...), nil
}

// FlashData writes one block after FlashBegin. It is checksummed; the sequence
// number counts from 0.
type FlashData struct {
	done
	Sequence uint32
	Data     []byte
}

func (f FlashData) request(*Client) (request, error) {
	return dataPacket(OpFlashData, f.Sequence, f.Data), nil
}

func dataPacket(op Op, sequence uint32, data []byte) request {
	return request{
		op: op, data: append(words(uint32(len(data)), sequence, 0, 0), data...),
		sum: Checksum(data), lengths: noData, timeout: sized(perMegabyte, uint32(len(data))),
		summary: fmt.Sprintf("block %d, %d bytes", sequence, len(data)),
	}
}

// FlashEnd leaves the loader: to stay connected, do not send it.
type FlashEnd struct {
	done
	Reboot bool // restart; otherwise run the user code
}

func (f FlashEnd) request(*Client) (request, error) { return endPacket(OpFlashEnd, f.Reboot), nil }

func endPacket(op Op, reboot bool) request {
	run := uint32(1)
	if reboot {
		run = 0
	}
	return request{op: op, data: words(run), lengths: noData, timeout: defaultTimeout}
}

// FlashDeflBegin is FlashBegin for a zlib stream. Not in Secure Download Mode.
type FlashDeflBegin struct {
	done
	Size      uint32 // uncompressed, rounded up to the block size
	Blocks    uint32 // packets of compressed data to follow
	BlockSize uint32
	Offset    uint32
	Encrypted bool
}

func (f FlashDeflBegin) request(c *Client) (request, error) {
	data, err := c.beginWords(f.Size, f.Blocks, f.BlockSize, f.Offset, f.Encrypted)
	return request{
		op: OpFlashDeflBegin, data: data, lengths: noData, timeout: eraseTime(f.Size),
		summary: fmt.Sprintf("%d bytes at 0x%x, %d blocks of %d, compressed", f.Size, f.Offset, f.Blocks, f.BlockSize),
	}, err
}

// FlashDeflData carries a piece of the zlib stream.
type FlashDeflData struct {
	done
	Sequence uint32
	Data     []byte
	Expands  uint32 // bytes that this piece can become, for the time-out
}

func (f FlashDeflData) request(*Client) (request, error) {
	req := dataPacket(OpFlashDeflData, f.Sequence, f.Data)
	req.timeout = sized(perMegabyte, max(f.Expands, uint32(len(f.Data))))
	return req, nil
}

// FlashDeflEnd leaves the loader, as FlashEnd does.
type FlashDeflEnd struct {
	done
	Reboot bool
}

func (f FlashDeflEnd) request(*Client) (request, error) {
	return endPacket(OpFlashDeflEnd, f.Reboot), nil
}

// MemBegin begins a write to RAM. Not in Secure Download Mode.
type MemBegin struct {
	done
	Size, Blocks, BlockSize, Address uint32
}

func (m MemBegin) request(*Client) (request, error) {
	return request{
		op: OpMemBegin, data: words(m.Size, m.Blocks, m.BlockSize, m.Address), lengths: noData, timeout: defaultTimeout,
		summary: fmt.Sprintf("%d bytes at 0x%08x, %d blocks of %d", m.Size, m.Address, m.Blocks, m.BlockSize),
	}, nil
}

// MemData writes one block of RAM.
type MemData struct {
	done
	Sequence uint32
	Data     []byte
}

func (m MemData) request(*Client) (request, error) {
	return dataPacket(OpMemData, m.Sequence, m.Data), nil
}

// MemEnd ends a write to RAM and runs it, if Entry is not 0. The ROM's answer
// can be lost when the code starts, so ErrTimeout says little here.
type MemEnd struct {
	done
	Entry uint32
}

func (m MemEnd) request(*Client) (request, error) {
	stay := uint32(0)
	if m.Entry == 0 {
		stay = 1
	}
	return request{
		op: OpMemEnd, data: words(stay, m.Entry), lengths: noData, timeout: memEndTimeout,
		summary: fmt.Sprintf("entry 0x%08x", m.Entry),
	}, nil
}

// syncData is the pattern by which the ROM finds the baud rate.
func syncData() []byte {
	return append([]byte{0x07, 0x07, 0x12, 0x20}, slices.Repeat([]byte{0x55}, 32)...)
}

// RegWrite is one group of a WRITE_REG packet.
type RegWrite struct {
	Addr  uint32
	Value uint32
	Mask  uint32        // bits that change; all is 0xFFFFFFFF
	Delay time.Duration // the ROM waits so long before it writes; whole microseconds
}

// WriteReg writes registers, in order, in one packet. Requests carry no
// checksum: what matters is read back. Not in Secure Download Mode.
type WriteReg struct {
	done
	Groups []RegWrite
}

func (w WriteReg) request(c *Client) (request, error) {
	if len(w.Groups) == 0 {
		return request{}, errors.New("WRITE_REG without a register")
	}
	req := request{op: OpWriteReg, lengths: noData, timeout: defaultTimeout}
	var summary []string
	for _, g := range w.Groups {
		us := g.Delay.Microseconds()
		if us < 0 || us > 1<<32-1 {
			return request{}, fmt.Errorf("WRITE_REG with a delay of %v", g.Delay)
		}
		req.data = append(req.data, words(g.Addr, g.Value, g.Mask, uint32(us))...)
		req.timeout += g.Delay
		if c.opts.Trace == nil {
			continue
		}
		s := c.register(g.Addr, g.Value)
		if g.Mask != allBits {
			s += fmt.Sprintf(" mask 0x%08x", g.Mask)
		}
		if g.Delay != 0 {
			s += fmt.Sprintf(" after %v", g.Delay)
		}
		summary = append(summary, s)
	}
	req.summary = strings.Join(summary, ", ")
	return req, nil
}

const allBits = 0xFFFFFFFF

// ReadReg reads a register. Not in Secure Download Mode.
type ReadReg struct{ Addr uint32 }

// ReadRegAnswer is a register's value; the reply carries no checksum.
type ReadRegAnswer struct{ Value uint32 }

func (r ReadReg) request(*Client) (request, error) {
	return request{
		op: OpReadReg, data: words(r.Addr), lengths: noData, timeout: defaultTimeout,
		summary: fmt.Sprintf("0x%08x", r.Addr),
	}, nil
}

func (ReadReg) answer(value uint32, _ []byte) (ReadRegAnswer, error) {
	return ReadRegAnswer{value}, nil
}

func (r ReadReg) describe(c *Client, a ReadRegAnswer) string { return c.register(r.Addr, a.Value) }

// SPIAttach connects the loader to the flash. Pins 0 is the chip's default.
type SPIAttach struct {
	done
	Pins uint32
}

func (s SPIAttach) request(c *Client) (request, error) {
	data := words(s.Pins)
	if !c.stub {
		data = words(s.Pins, 0)
	}
	return request{
		op: OpSPIAttach, data: data, lengths: noData, timeout: defaultTimeout,
		summary: fmt.Sprintf("pins 0x%x", s.Pins),
	}, nil
}

// SPISetParams tells the loader the flash's size; until then it takes 2 MB.
type SPISetParams struct {
	done
	Size uint32 // bytes
}

func (s SPISetParams) request(*Client) (request, error) {
	const id, block, sector, page, statusMask = 0, 0x10000, 0x1000, 0x100, 0xFFFF
	return request{
		op: OpSPISetParams, data: words(id, s.Size, block, sector, page, statusMask), lengths: noData, timeout: defaultTimeout,
		summary: fmt.Sprintf("%d bytes", s.Size),
	}, nil
}

// slowRead is what READ_FLASH_SLOW can read, and always sends.
const slowRead = 64

// ReadFlashSlow reads at most 64 bytes of flash. Not in Secure Download Mode.
type ReadFlashSlow struct{ Offset, Length uint32 }

// ReadFlashSlowAnswer has the bytes that were asked for; the reply carries no
// checksum.
type ReadFlashSlowAnswer struct{ Data []byte }

func (r ReadFlashSlow) request(c *Client) (request, error) {
	if c.stub {
		return request{}, stubError("it does not know READ_FLASH_SLOW: connect again")
	}
	if r.Length == 0 || r.Length > slowRead {
		return request{}, fmt.Errorf("READ_FLASH_SLOW of %d bytes: 1 to %d can be read", r.Length, slowRead)
	}
	return request{
		op: OpReadFlashSlow, data: words(r.Offset, r.Length), lengths: []int{slowRead}, timeout: defaultTimeout,
		summary: fmt.Sprintf("%d bytes at 0x%x", r.Length, r.Offset),
	}, nil
}

func (r ReadFlashSlow) answer(_ uint32, data []byte) (ReadFlashSlowAnswer, error) {
	return ReadFlashSlowAnswer{data[:r.Length]}, nil
}

func (ReadFlashSlow) describe(_ *Client, a ReadFlashSlowAnswer) string {
	return fmt.Sprintf("%d bytes", len(a.Data))
}

// ChangeBaudrate asks the loader for another rate. The answer comes at the old
// one. Rate is in the ROM's terms: see [Client.ChangeBaud], which converts it
// and changes this side too.
type ChangeBaudrate struct {
	done
	Rate uint32
}

func (b ChangeBaudrate) request(c *Client) (request, error) {
	old := uint32(0)
	if c.stub {
		old = uint32(c.baud)
	}
	return request{
		op: OpChangeBaudrate, data: words(b.Rate, old), lengths: noData, timeout: defaultTimeout,
		summary: fmt.Sprintf("%d", b.Rate),
	}, nil
}

// SPIFlashMD5 has the chip compute the MD5 of a flash region, as it stands
// there: of the ciphertext, where that was written. Not in Secure Download Mode.
type SPIFlashMD5 struct{ Address, Size uint32 }

// SPIFlashMD5Answer is the digest.
type SPIFlashMD5Answer struct{ Digest [16]byte }

func (m SPIFlashMD5) request(c *Client) (request, error) {
	length := 2 * md5.Size
	if c.stub {
		length = md5.Size
	}
	return request{
		op: OpSPIFlashMD5, data: words(m.Address, m.Size, 0, 0), lengths: []int{length}, timeout: sized(md5PerMegabyte, m.Size),
		summary: fmt.Sprintf("%d bytes at 0x%x", m.Size, m.Address),
	}, nil
}

// answer reads the ROM's 32 lower-case hex digits; anything else is damage. A stub
// sends the digest as it is.
func (SPIFlashMD5) answer(_ uint32, data []byte) (SPIFlashMD5Answer, error) {
	var a SPIFlashMD5Answer
	if len(data) == md5.Size {
		copy(a.Digest[:], data)
		return a, nil
	}
	for _, b := range data {
		if !strings.ContainsRune("0123456789abcdef", rune(b)) {
			return a, fmt.Errorf("%w: a digest that is not hex", ErrNoise)
		}
	}
	_, err := hex.Decode(a.Digest[:], data)
	return a, err
}

func (SPIFlashMD5) describe(_ *Client, a SPIFlashMD5Answer) string {
	return hex.EncodeToString(a.Digest[:])
}

// GetSecurityInfo asks for the security state; allowed in Secure Download Mode.
// The ESP32 does not know it.
type GetSecurityInfo struct{}

func (GetSecurityInfo) request(*Client) (request, error) {
	return request{op: OpGetSecurityInfo, lengths: []int{securityInfoLong, securityInfoShort}, timeout: defaultTimeout}, nil
}

func (GetSecurityInfo) answer(_ uint32, data []byte) (SecurityInfo, error) {
	return ParseSecurityInfo(data)
}

func (GetSecurityInfo) describe(_ *Client, a SecurityInfo) string { return a.String() }
