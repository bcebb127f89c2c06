package rom

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// baudSettle is what both sides get after a change of rate (esp-facts A.2).
const baudSettle = 50 * time.Millisecond

// ChangeBaud changes the rate of both sides and proves it with a SYNC. The new
// rate stays until the chip's next reset. An ESP32 divides by the crystal
// frequency that its ROM worked out, so it is told a rate that comes out right
// (esp-facts A.6); that needs Detect.
func (c *Client) ChangeBaud(ctx context.Context, baud int) error {
	if baud <= 0 {
		return fmt.Errorf("%d is not a baud rate", baud)
	}
	if baud == c.baud {
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
	if !c.model.ROM.BaudCrystalFixed {
		return uint32(baud), nil
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
