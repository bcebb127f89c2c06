package rom

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Resetter brings a chip into its loader, or runs it from flash. Both drop what
// was received before the reset, so that all text read afterwards is of this
// reset; they stop within 100 ms of the context's end.
type Resetter interface {
	// Download resets the chip into the loader. The attempt, from 0, may
	// choose among sequences.
	Download(ctx context.Context, p Port, attempt int) error
	// Run resets the chip into its application.
	Run(ctx context.Context, p Port) error
}

// DefaultReset is the resetter that fits a port.
func DefaultReset(info PortInfo) Resetter {
	switch {
	case info.USBSerial:
		return USBReset{}
	case info.Lines:
		return AutoReset{}
	default:
		return NoReset{}
	}
}

// Times of the reset sequences (esp-facts A.8).
const (
	resetHold     = 100 * time.Millisecond
	strapHold     = 50 * time.Millisecond
	strapHoldLong = 550 * time.Millisecond
	usbRunHold    = 200 * time.Millisecond
	reopenTries   = 3
	reopenPause   = 500 * time.Millisecond
)

// step is one state of the lines, then a wait.
type step struct {
	dtr, rts bool
	wait     time.Duration
	discard  bool // the chip is silent after the wait: drop what it said before
}

func steps(ctx context.Context, p Port, seq ...step) error {
	for _, s := range seq {
		if err := p.SetLines(ctx, s.dtr, s.rts); err != nil {
			if errors.Is(err, ErrNoLines) {
				return fmt.Errorf("reset over %s: %w: reset the board by hand, or give a reset command", p.Info().Name, err)
			}
			return err
		}
		if s.wait > 0 {
			if err := sleep(ctx, s.wait); err != nil {
				return err
			}
		}
		if s.discard {
			if err := p.Discard(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// AutoReset drives EN and IO0 through the usual two transistors: RTS alone
// resets, DTR alone pulls the download strap (esp-facts A.8).
type AutoReset struct{}

// Download cycles over two sequences with two lengths of the strap. A network
// port gets the classic sequence only, as every change takes its time there and
// the server at the other end may know no other.
func (AutoReset) Download(ctx context.Context, p Port, attempt int) error {
	hold := strapHold
	if attempt%2 == 1 {
		hold = strapHoldLong
	}
	if p.Info().Network || attempt%4 >= 2 {
		return classic(ctx, p, hold)
	}
	return unixTight(ctx, p, hold)
}

// classic is the vendor's Classic sequence. A port that changes its lines one
// after the other passes through the same states, DTR before RTS.
func classic(ctx context.Context, p Port, hold time.Duration) error {
	return steps(ctx, p,
		step{rts: true, wait: resetHold, discard: true},
		step{dtr: true, wait: hold},
		step{})
}

// unixTight is the vendor's UnixTight sequence, for ports that change both lines
// at once.
func unixTight(ctx context.Context, p Port, hold time.Duration) error {
	return steps(ctx, p,
		step{},
		step{dtr: true, rts: true},
		step{rts: true, wait: resetHold, discard: true},
		step{dtr: true, wait: hold},
		step{})
}

// Run pulls EN alone.
func (AutoReset) Run(ctx context.Context, p Port) error {
	return steps(ctx, p, step{rts: true, wait: resetHold, discard: true}, step{})
}

// USBReset is for the chip's own USB-JTAG-Serial, which watches DTR and RTS and
// may vanish for a moment and come back (esp-facts A.8). It resets the core only:
// a download strap that is held low keeps such a chip in the loader.
type USBReset struct{}

// Download passes through (1,1) on its way, as (0,0) would run the chip.
func (USBReset) Download(ctx context.Context, p Port, _ int) error {
	return reenumerate(ctx, p, steps(ctx, p,
		step{wait: resetHold},
		step{dtr: true, wait: resetHold, discard: true},
		step{dtr: true, rts: true},
		step{rts: true, wait: resetHold},
		step{}))
}

// Run resets the core.
func (USBReset) Run(ctx context.Context, p Port) error {
	err := steps(ctx, p, step{}) // so that no strap is asserted over it
	if err == nil {
		err = p.Discard(ctx)
	}
	if err == nil {
		err = steps(ctx, p, step{rts: true, wait: usbRunHold}, step{wait: usbRunHold}, step{})
	}
	return reenumerate(ctx, p, err)
}

// reenumerate waits for a USB device that vanished on its reset. Any other error
// passes.
func reenumerate(ctx context.Context, p Port, err error) error {
	for n := 0; n < reopenTries && errors.Is(err, ErrUnplugged); n++ {
		if err := sleep(ctx, reopenPause); err != nil {
			return err
		}
		err = p.Reopen(ctx)
	}
	return err
}

// NoReset is for boards that somebody or something else resets.
type NoReset struct{}

// Download expects the chip in its loader already.
func (NoReset) Download(context.Context, Port, int) error { return nil }

// Run cannot be done, and says so.
func (NoReset) Run(_ context.Context, p Port) error {
	return fmt.Errorf("reset over %s: %w: reset the board by hand, or give a reset command", p.Info().Name, ErrNoLines)
}
