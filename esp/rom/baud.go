package rom

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// baudSettle is what both sides get after a change of rate (esp-facts A.2).
const baudSettle = 50 * time.Millisecond

// ChangeBaud changes the rate of both sides and proves it with a SYNC. The new
// rate stays until the chip's next reset. Some ROMs divide by a crystal frequency
// that is not the true one, so they are told a rate that comes out right (esp-facts
// A.6); that needs Detect, and registers, which Secure Download Mode hides: there
// such a chip keeps its rate (see Baud), and it is no error.
func (c *Client) ChangeBaud(ctx context.Context, baud int) error {
	if baud <= 0 {
		return fmt.Errorf("%d is not a baud rate", baud)
	}
	if baud == c.baud {
		return nil
	}
	if c.secure && c.model.ROM.BaudFixedInSDM {
		c.note(0, "the rate stays at %d baud: what another one depends on cannot be read in Secure Download Mode", c.baud)
		return nil
	}
	err := c.changeBaud(ctx, baud)
	if err != nil {
		return fmt.Errorf("change to %d baud: %w", baud, err)
	}
	return nil
}

func (c *Client) changeBaud(ctx context.Context, baud int) error {
	rate, err := c.romRate(ctx, baud)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		_, err := Do(ctx, c, ChangeBaudrate{Rate: rate})
		switch {
		case err == nil:
			if err := c.follow(ctx, baud); errors.Is(err, ErrLost) {
				return fmt.Errorf("%w: adapter or cable may not carry this rate: use a lower one", err)
			} else if err != nil {
				return err
			}
			return nil
		case n == tries || ctx.Err() != nil || !mayBeNoise(err):
			return err
		case isStatus(err):
			// A damaged request: the rate is the old one.
		default:
			// The answer was damaged or lost: the chip may be at either rate.
			old := c.baud
			if found := c.follow(ctx, baud); found == nil || !errors.Is(found, ErrLost) {
				return found
			}
			if err := c.follow(ctx, old); err != nil {
				return err
			}
		}
		c.lost = true
	}
}

// follow sets this side to a rate and looks for the loader there.
func (c *Client) follow(ctx context.Context, baud int) error {
	c.lost = true
	if err := c.port.SetBaud(ctx, baud); err != nil {
		return err
	}
	c.baud = baud
	if err := sleep(ctx, baudSettle); err != nil {
		return err
	}
	if err := c.port.Discard(ctx); err != nil {
		return err
	}
	return c.Resync(ctx)
}

// romRate is the rate to tell the ROM so that it runs at baud.
func (c *Client) romRate(ctx context.Context, baud int) (uint32, error) {
	if !c.detected {
		return 0, ErrNotDetected
	}
	rom := c.model.ROM
	switch {
	case c.stub, rom.BaudCrystalMHz == 0 && rom.BaudCrystalReg == 0 && !rom.BaudCrystalFixed:
		return uint32(baud), nil
	case !rom.BaudCrystalFixed:
		return c.correctedRate(ctx, baud)
	}
	approx, err := c.ReadRegAgreed(ctx, c.model.ROM.ApproxFreqReg)
	if err != nil {
		return 0, err
	}
	const word4 = 0x10 // BLOCK0 word 4 holds CK8M_FREQ in bits 7:0
	ck8m, err := c.ReadRegAgreed(ctx, c.model.EFuse.Base+word4)
	if err != nil {
		return 0, err
	}
	return esp32Rate(baud, approx, ck8m&0xFF)
}

// correctedRate corrects a rate for a ROM that takes a crystal for granted: a fixed
// one (C2), or what a register says (C5).
func (c *Client) correctedRate(ctx context.Context, baud int) (uint32, error) {
	assumed := uint32(c.model.ROM.BaudCrystalMHz)
	if reg := c.model.ROM.BaudCrystalReg; reg != 0 {
		v, err := c.ReadRegAgreed(ctx, reg)
		if err != nil {
			return 0, err
		}
		if assumed = v >> 24 & 0x7F; !slices.Contains(c.model.ROM.Crystals, int(assumed)) {
			return uint32(baud), nil // the vendor's tool corrects between the known ones only
		}
	}
	crystal, err := c.Crystal(ctx)
	if err != nil {
		return 0, err
	}
	return uint32(uint64(baud) * uint64(assumed) / uint64(crystal)), nil
}

// Crystal gives the frequency of the board's crystal in MHz: the one of those that
// boards of this chip can have that fits the UART's divider and the rate at which
// the loader answers (esp-facts A.6). It needs Detect. Not in Secure Download Mode.
func (c *Client) Crystal(ctx context.Context) (int, error) {
	if !c.detected {
		return 0, ErrNotDetected
	}
	can := c.model.ROM.Crystals
	if len(can) == 1 {
		return can[0], nil
	}
	if c.secure {
		return 0, fmt.Errorf("crystal: %w", ErrSecureDownload)
	}
	v, err := c.ReadRegAgreed(ctx, c.model.UART.ClkDiv)
	if err != nil {
		return 0, fmt.Errorf("crystal: %w", err)
	}
	const divider = 0xFFFFF
	hz := uint64(v&divider) * uint64(c.baud)
	for _, mhz := range can {
		// Rates are true to a few per cent, and the divider's fraction is left out.
		if want := uint64(mhz) * 1_000_000; hz*100 >= want*95 && hz*100 <= want*105 {
			return mhz, nil
		}
	}
	return 0, fmt.Errorf("the UART's divider speaks of a crystal of %d Hz, which no board of the %s has: reset the chip and connect again", hz, c.model.Title)
}

// esp32Rate corrects a rate by the ratio of the crystal frequency that the ESP32
// ROM estimates, from a calibration count and CK8M_FREQ, to the true one, which
// is 40 or 26 MHz (esp-facts A.6).
func esp32Rate(baud int, approx, ck8m uint32) (uint32, error) {
	const scale = 40
	scaled := uint64(approx>>7&0x1FFFFFF) * 15625 * uint64(ck8m)
	rom := scaled / scale
	crystal := uint64(26_000_000)
	if rom > 33_000_000 {
		crystal = 40_000_000
	}
	// The estimate is off by a few per cent at most.
	if rom < crystal*3/4 || rom > crystal*5/4 {
		return 0, fmt.Errorf("the chip's estimate of its crystal is %d Hz, which is neither 26 nor 40 MHz: stay at %d baud", rom, StartBaud)
	}
	return uint32(uint64(baud) * scaled / (scale * crystal)), nil
}
