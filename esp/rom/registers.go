package rom

import (
	"context"
	"fmt"
	"time"
)

// ReadReg reads a register. A damaged or missing answer costs a retry, but the
// value carries no checksum: what decides anything is read with ReadRegAgreed.
// The register must be one that reading does not change.
func (c *Client) ReadReg(ctx context.Context, addr uint32) (uint32, error) {
	a, err := retry(ctx, c, ReadReg{Addr: addr})
	return a.Value, err
}

// agreeReads bounds ReadRegAgreed.
const agreeReads = 8

// ReadRegAgreed reads a register until two successive readings agree. If none of
// the first eight do, it is ErrNoise.
func (c *Client) ReadRegAgreed(ctx context.Context, addr uint32) (uint32, error) {
	what := fmt.Sprintf("register 0x%08x", addr)
	return agreed(c, what, func() (uint32, error) { return c.ReadReg(ctx, addr) })
}

// agreed calls read until two successive results are the same.
func agreed[T comparable](c *Client, what string, read func() (T, error)) (T, error) {
	last, err := read()
	for n := 1; n < agreeReads && err == nil; n++ {
		var v T
		if v, err = read(); err != nil {
			break
		}
		if v == last {
			return v, nil
		}
		c.noise++
		last = v
	}
	var none T
	if err != nil {
		return none, err
	}
	return none, fmt.Errorf("%s: %w: no two of %d readings in a row agree: use a shorter cable, a lower baud rate or another adapter", what, ErrNoise, agreeReads)
}

// WriteReg writes a register, once: an error other than *StatusError means that
// it is not known whether it was written. Requests carry no checksum, so what
// matters is read back by the caller.
func (c *Client) WriteReg(ctx context.Context, addr, value uint32) error {
	return c.WriteRegs(ctx, RegWrite{Addr: addr, Value: value, Mask: allBits})
}

// WriteRegDelay writes a register and keeps the loader from its next command for
// the time after: some registers, such as the eFuse controller's read command,
// must not be disturbed at once. The ROM delays before a write only, so a second
// group with an empty mask goes to a register that does not matter (esp-facts
// A.2, B.5). The rules of WriteReg apply.
func (c *Client) WriteRegDelay(ctx context.Context, addr, value uint32, after time.Duration) error {
	if !c.detected {
		return ErrNotDetected
	}
	return c.WriteRegs(ctx,
		RegWrite{Addr: addr, Value: value, Mask: allBits},
		RegWrite{Addr: c.model.UART.Date, Delay: after})
}

// WriteRegs writes registers in order, in one packet. The rules of WriteReg apply.
func (c *Client) WriteRegs(ctx context.Context, writes ...RegWrite) error {
	_, err := Do(ctx, c, WriteReg{Groups: writes})
	return err
}

// StopWatchdogs stops the watchdogs that would reset a chip in the loader when it
// is reached over its own USB-JTAG-Serial (esp-facts A.9). On any other port,
// and in Secure Download Mode, where registers are out of reach, it does nothing.
func (c *Client) StopWatchdogs(ctx context.Context) error {
	if !c.port.Info().USBSerial || c.secure {
		return nil
	}
	if !c.detected {
		return ErrNotDetected
	}
	return c.writeAll(ctx, "stop the watchdogs", c.model.USBWatchdogs())
}
