package rom

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // the ROM computes no other digest
	"errors"
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

const (
	sectorSize = 0x1000
	// chunkSize is how much one FLASH_BEGIN covers: what noise can cost, and
	// the step of progress. 64 KiB is a flash chip's own erase block.
	chunkSize = 0x10000
	// blockTries is how often a block is sent that the ROM says it did not take.
	blockTries = 3
	// chunkTries is how often a chunk is begun before the line is given up.
	chunkTries = 10
	// verdictTries is how often, when the chip's verdict is not one of noise.
	verdictTries = 3
)

// AttachFlash connects the loader to the flash on the default pins, on silicon that
// needs it after switching its supply on. That takes registers: in Secure Download
// Mode such silicon stays without flash (esp-facts H 10).
func (c *Client) AttachFlash(ctx context.Context) error {
	if err := c.powerFlash(ctx); err != nil {
		return err
	}
	_, err := retry(ctx, c, SPIAttach{})
	return err
}

func (c *Client) powerFlash(ctx context.Context) error {
	if c.secure {
		return nil
	}
	for _, power := range c.model.FlashPower() {
		fits := true
		for _, w := range power.When {
			v, err := c.ReadRegAgreed(ctx, w.Addr)
			if err != nil {
				return fmt.Errorf("supply of the flash: %w", err)
			}
			fits = fits && v&w.Mask == w.Value
		}
		if fits {
			return c.writeAll(ctx, "supply of the flash", power.Writes)
		}
	}
	return nil
}

// SetFlashSize tells the loader the flash's size in bytes. Until then it takes
// 2 MB and refuses what lies beyond.
func (c *Client) SetFlashSize(ctx context.Context, size uint32) error {
	_, err := retry(ctx, c, SPISetParams{Size: size})
	return err
}

// ErrReach says that the ROM's loader cannot address this part of the flash.
var ErrReach = errors.New("beyond what the ROM's loader can address: give a flasher stub")

// reachable checks a region against what the loader addresses: the ROM's wraps to
// the start of the flash beyond its limit (esp-facts A.11).
func (c *Client) reachable(what string, addr uint32, size uint64) error {
	limit := uint64(c.model.MaxFlashROM)
	switch {
	case c.stub || limit == 0 || uint64(addr)+size <= limit:
		return nil
	case c.secure:
		return fmt.Errorf("%s of %d bytes at 0x%x: beyond the %d MiB of Secure Download Mode, which takes no stub: %w", what, size, addr, limit>>20, ErrSecureDownload)
	}
	return fmt.Errorf("%s of %d bytes at 0x%x: beyond %d MiB: %w", what, size, addr, limit>>20, ErrReach)
}

// aligned checks a region for the ROM, which erases whole sectors.
func aligned(what string, addr uint32, size uint64) error {
	if addr%sectorSize != 0 {
		return fmt.Errorf("%s at 0x%x: the address is not a multiple of the 4 KiB sector", what, addr)
	}
	if uint64(addr)+size > 1<<32 {
		return fmt.Errorf("%s of %d bytes at 0x%x: beyond 4 GiB", what, size, addr)
	}
	return nil
}

// chunkAt is how far a chunk may reach from addr: to the next 64 KiB.
func chunkAt(addr uint32, left uint64) uint32 {
	return uint32(min(left, uint64(chunkSize-addr%chunkSize)))
}

// EraseFlash erases whole sectors by FLASH_BEGIN alone, which every loader
// allows, in steps of at most 64 KiB. Registers and command parameters carry no
// checksum: on a line that has shown noise each step is checked by its MD5,
// except in Secure Download Mode, which has none. The caller checks the whole.
func (c *Client) EraseFlash(ctx context.Context, addr, size uint32, progress func(done, total uint32)) error {
	if err := aligned("erase", addr, uint64(size)); err != nil {
		return err
	}
	if err := c.reachable("erase", addr, uint64(size)); err != nil {
		return err
	}
	if size%sectorSize != 0 {
		return fmt.Errorf("erase of %d bytes at 0x%x: not whole sectors of 4 KiB", size, addr)
	}
	for done := uint32(0); done < size; {
		at := addr + done
		n := chunkAt(at, uint64(size-done))
		err := c.repeatChunk(ctx, at, func() error {
			var err error
			if c.stub { // whose FLASH_BEGIN erases only what data come for
				_, err = Do(ctx, c, EraseRegion{Offset: at, Size: n})
			} else {
				_, err = Do(ctx, c, c.begin(at, n))
			}
			if err != nil {
				return err
			}
			return c.verifyChunk(ctx, at, bytes.Repeat([]byte{0xFF}, int(n)))
		})
		if err != nil {
			return fmt.Errorf("erase flash at 0x%x: %w", at, err)
		}
		done += n
		if progress != nil {
			progress(done, size)
		}
	}
	return nil
}

// WriteFlash erases and writes data at a sector's address, in chunks that end at
// 64 KiB boundaries; the last block is filled up with 0xFF. It never ends the
// loader's session.
//
// A block that the ROM says it did not take is sent again, up to three times.
// When an answer is missing or damaged it is not known whether the block was
// taken, and a second copy could end up behind the first; the chunk is begun
// anew then. So noise costs retries only. Headers and addresses carry no
// checksum: on a line that has shown noise each chunk is checked by its MD5,
// except in Secure Download Mode, which has none. The caller checks the whole,
// after the last write.
func (c *Client) WriteFlash(ctx context.Context, addr uint32, data []byte, progress func(done, total int)) error {
	if err := aligned("write", addr, uint64(len(data))); err != nil {
		return err
	}
	if err := c.reachable("write", addr, uint64(len(data))); err != nil {
		return err
	}
	reported := 0
	report := func(done int) {
		if progress != nil && done > reported {
			reported = done
			progress(done, len(data))
		}
	}
	for done := 0; done < len(data); {
		at := addr + uint32(done)
		chunk := data[done : done+int(chunkAt(at, uint64(len(data)-done)))]
		err := c.repeatChunk(ctx, at, func() error {
			err := c.writeChunk(ctx, at, chunk, func(n int) { report(done + n) })
			if err != nil {
				return err
			}
			return c.verifyChunk(ctx, at, chunk)
		})
		if err != nil {
			return fmt.Errorf("write flash at 0x%x: %w", at, err)
		}
		done += len(chunk)
		report(done)
	}
	return nil
}

// repeatChunk runs try until it succeeds, noise ends it for good, or the chip
// says no for another reason more than once.
func (c *Client) repeatChunk(ctx context.Context, at uint32, try func() error) error {
	verdicts := 0
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return nil
		}
		var status *StatusError
		switch {
		case ctx.Err() != nil || errors.Is(err, ErrUnplugged):
			return err
		case errors.As(err, &status):
			// A damaged parameter can make a good request a bad one.
			if !mayBeNoise(err) {
				verdicts++
			}
			if verdicts == verdictTries {
				return err
			}
			c.noise++
		case !mayBeNoise(err):
			return err
		}
		if n == chunkTries {
			return fmt.Errorf("given up after %d tries: %w", n, err)
		}
		c.note(0, "begin the chunk at 0x%x anew", at)
		c.lost = true
	}
}

// begin is the FLASH_BEGIN of a chunk.
func (c *Client) begin(at, size uint32) FlashBegin {
	block := c.flashBlock()
	return FlashBegin{Size: size, Blocks: (size + block - 1) / block, BlockSize: block, Offset: at}
}

// stubBlock is a stub's block size (esp-facts A.2).
const stubBlock = 0x4000

// flashBlock is the loader's block size; every known ROM takes 0x400.
func (c *Client) flashBlock() uint32 {
	if c.stub {
		if usb := c.model.ROM.USBBlock; c.port.Info().USBOTG && usb > 0 {
			return min(stubBlock, uint32(usb))
		}
		return stubBlock
	}
	if n := c.model.ROM.FlashBlock; n > 0 {
		return uint32(n)
	}
	return 0x400
}

func (c *Client) writeChunk(ctx context.Context, at uint32, chunk []byte, report func(done int)) error {
	if _, err := Do(ctx, c, c.begin(at, uint32(len(chunk)))); err != nil {
		return err
	}
	size := int(c.flashBlock())
	done := 0
	for block := range slices.Chunk(chunk, size) {
		done += len(block)
		data := block
		if len(data) < size {
			data = append(slices.Clip(data), bytes.Repeat([]byte{0xFF}, size-len(data))...)
		}
		if err := c.writeBlock(ctx, FlashData{Sequence: uint32((done - 1) / size), Data: data}); err != nil {
			return err
		}
		report(done)
	}
	if c.stub {
		// A stub answers a block before it has written it. Its next answer comes
		// after that, and says how it went.
		_, err := c.ReadReg(ctx, c.model.UART.Date)
		return err
	}
	return nil
}

func (c *Client) writeBlock(ctx context.Context, block FlashData) error {
	for n := 1; ; n++ {
		_, err := Do(ctx, c, block)
		if err == nil || n == blockTries || !isStatus(err) || !mayBeNoise(err) {
			return err
		}
		c.noise++
	}
}

// verifyChunk compares the flash with what should be there, on a line that has
// shown noise.
func (c *Client) verifyChunk(ctx context.Context, at uint32, want []byte) error {
	if c.noise == 0 || c.secure {
		return nil
	}
	got, err := c.FlashMD5(ctx, at, uint32(len(want)))
	if err != nil {
		return err
	}
	if got != md5.Sum(want) { //nolint:gosec // the ROM computes no other digest
		return fmt.Errorf("%w: the flash at 0x%x does not hold what was sent", ErrNoise, at)
	}
	return nil
}

// FlashMD5 has the chip compute the MD5 of a flash region as it stands there. The
// digest comes as hex digits, so much damage shows and costs a retry; on a line
// that has shown noise, and from a stub, two answers in a row must agree.
func (c *Client) FlashMD5(ctx context.Context, addr, size uint32) ([16]byte, error) {
	if err := c.reachable("MD5", addr, uint64(size)); err != nil {
		return [16]byte{}, err
	}
	read := func() ([16]byte, error) {
		a, err := retry(ctx, c, SPIFlashMD5{Address: addr, Size: size})
		return a.Digest, err
	}
	if c.noise == 0 && !c.stub { // whose digest is not in hex: any damage of it passes
		sum, err := read()
		if err != nil || c.noise == 0 {
			return sum, err
		}
	}
	return agreed(c, fmt.Sprintf("MD5 of %d bytes at 0x%x", size, addr), read)
}

// ReadFlash reads flash by READ_FLASH_SLOW, 64 bytes at a time, each until two
// readings agree: it is meant for small regions. Not in Secure Download Mode.
func (c *Client) ReadFlash(ctx context.Context, addr uint32, n int) ([]byte, error) {
	if n < 0 || uint64(addr)+uint64(n) > 1<<32 {
		return nil, fmt.Errorf("read of %d bytes of flash at 0x%x: beyond 4 GiB", n, addr)
	}
	out := make([]byte, 0, n)
	for len(out) < n {
		at := addr + uint32(len(out))
		length := uint32(min(slowRead, n-len(out)))
		piece, err := agreed(c, fmt.Sprintf("flash at 0x%x", at), func() (string, error) {
			a, err := retry(ctx, c, ReadFlashSlow{Offset: at, Length: length})
			return string(a.Data), err
		})
		if err != nil {
			return nil, fmt.Errorf("read flash: %w", err)
		}
		out = append(out, piece...)
	}
	return out, nil
}

// FlashID is what a flash chip answers to the JEDEC command 9F.
type FlashID struct {
	Manufacturer uint8
	Type         uint8
	Capacity     uint8  // code
	Size         uint32 // bytes, decoded from Capacity; 0 if the code is unknown
}

// String gives the id as data sheets do.
func (f FlashID) String() string {
	return fmt.Sprintf("%02x %02x %02x", f.Manufacturer, f.Type, f.Capacity)
}

// flashID decodes the three bytes, the manufacturer in the lowest.
func flashID(v uint32) FlashID {
	f := FlashID{Manufacturer: uint8(v), Type: uint8(v >> 8), Capacity: uint8(v >> 16)}
	// The code is the size's logarithm. Some makers begin anew at 0x20 for
	// 64 MB, some add 0x20.
	switch n := f.Capacity; {
	case n >= 0x12 && n <= 0x1C:
		f.Size = 1 << n
	case n >= 0x20 && n <= 0x22:
		f.Size = 64 << 20 << (n - 0x20)
	case n >= 0x32 && n <= 0x3A:
		f.Size = 1 << (n - 0x20)
	}
	return f
}

// Bits of the SPI registers (ESP-IDF soc/<chip>/spi_reg.h, spi_mem_reg.h).
const (
	spiUsr           = 1 << 18 // SPI_CMD: start; cleared when done
	spiUsrCommand    = 1 << 31 // SPI_USER: there is a command phase
	spiUsrMISO       = 1 << 28 // SPI_USER: and an answer
	spiCommandLength = 7 << 28 // SPI_USER2: the command has 8 bits
	readJEDEC        = 0x9F
	jedecBits        = 24
	spiPolls         = 10
)

// FlashID reads the flash chip's JEDEC id through the SPI registers, until two
// successive readings agree. AttachFlash comes first. The registers are put back
// and read back. Not in Secure Download Mode.
func (c *Client) FlashID(ctx context.Context) (FlashID, error) {
	id, err := c.flashID(ctx)
	if err != nil {
		return FlashID{}, fmt.Errorf("flash id: %w", err)
	}
	return id, nil
}

func (c *Client) flashID(ctx context.Context) (FlashID, error) {
	if !c.detected {
		return FlashID{}, ErrNotDetected
	}
	if c.secure {
		return FlashID{}, ErrSecureDownload
	}
	spi := c.model.SPI
	usr, err := c.ReadRegAgreed(ctx, spi.Usr)
	if err != nil {
		return FlashID{}, err
	}
	usr2, err := c.ReadRegAgreed(ctx, spi.Usr2)
	if err != nil {
		return FlashID{}, err
	}
	v, err := agreed(c, "JEDEC id", func() (uint32, error) {
		v, err := c.jedec(ctx, spi)
		if errors.Is(err, ErrUnplugged) || ctx.Err() != nil {
			return v, err
		}
		// Whatever else happened, the registers are put back.
		if restored := c.restore(ctx, []RegWrite{{Addr: spi.Usr, Value: usr}, {Addr: spi.Usr2, Value: usr2}}); err == nil {
			err = restored
		}
		return v, err
	})
	if err != nil {
		return FlashID{}, err
	}
	if v &= 1<<jedecBits - 1; v == 0 || v == 1<<jedecBits-1 {
		return FlashID{}, fmt.Errorf("no flash chip answers (0x%06x): check the module", v)
	}
	return flashID(v), nil
}

// jedec runs the command once more when noise breaks into it. Its writes do no
// harm twice.
func (c *Client) jedec(ctx context.Context, spi chip.SPI) (uint32, error) {
	write := func(addr, value uint32) error {
		_, err := retry(ctx, c, WriteReg{Groups: []RegWrite{{Addr: addr, Value: value, Mask: allBits}}})
		return err
	}
	for _, w := range []RegWrite{
		{Addr: spi.MISODLen, Value: jedecBits - 1},
		{Addr: spi.Usr, Value: spiUsrCommand | spiUsrMISO},
		{Addr: spi.Usr2, Value: spiCommandLength | readJEDEC},
		{Addr: spi.W0, Value: 0},
		{Addr: spi.Cmd, Value: spiUsr},
	} {
		if err := write(w.Addr, w.Value); err != nil {
			return 0, err
		}
	}
	for range spiPolls {
		cmd, err := c.ReadReg(ctx, spi.Cmd)
		if err != nil {
			return 0, err
		}
		if cmd&spiUsr == 0 {
			return c.ReadReg(ctx, spi.W0)
		}
	}
	return 0, fmt.Errorf("the SPI command does not end: attach the flash first")
}

// restore writes registers and reads them back, again where they differ.
func (c *Client) restore(ctx context.Context, regs []RegWrite) error {
	for n := 1; ; n++ {
		for _, r := range regs {
			if _, err := retry(ctx, c, WriteReg{Groups: []RegWrite{{Addr: r.Addr, Value: r.Value, Mask: allBits}}}); err != nil {
				return err
			}
		}
		same := true
		for _, r := range regs {
			v, err := c.ReadReg(ctx, r.Addr)
			if err != nil {
				return err
			}
			same = same && v == r.Value
		}
		if same {
			return nil
		}
		c.noise++
		if n == tries {
			return fmt.Errorf("%w: the SPI registers do not hold what is written to them", ErrNoise)
		}
	}
}
