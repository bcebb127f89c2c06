package port

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
)

// FromSim makes a port of a simulated board. Whoever made the board closes it.
func FromSim(c *espsim.Chip, name string) rom.Port { return simPort{c: c, name: name} }

// simPort is a simulated board as a port.
type simPort struct {
	c    *espsim.Chip
	name string
}

// fail gives an error of the simulator its place and its kind.
func (s simPort) fail(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, espsim.ErrUnplugged):
		err = fmt.Errorf("%w (%w)", rom.ErrUnplugged, err)
	case errors.Is(err, espsim.ErrClosed):
		err = errClosed
	}
	return fmt.Errorf("%s %s: %w", op, s.name, err)
}

func (s simPort) Read(ctx context.Context, p []byte) (int, error) {
	n, err := s.c.Read(ctx, p)
	return n, s.fail("read", err)
}

func (s simPort) Write(ctx context.Context, p []byte) (int, error) {
	n, err := s.c.Write(ctx, p)
	return n, s.fail("write", err)
}

func (s simPort) Discard(ctx context.Context) error {
	return s.do(ctx, "discard", func() error { return s.c.Discard(ctx) })
}

func (s simPort) SetBaud(ctx context.Context, baud int) error {
	return s.do(ctx, "set rate of", func() error {
		// The simulator takes 0 for a rate that follows the chip's.
		if err := checkBaud(baud); err != nil {
			return err
		}
		return s.c.SetBaud(ctx, baud)
	})
}

func (s simPort) SetLines(ctx context.Context, dtr, rts bool) error {
	return s.do(ctx, "set lines of", func() error { return s.c.SetLines(ctx, dtr, rts) })
}

func (s simPort) Reopen(ctx context.Context) error {
	return s.do(ctx, "reopen", func() error { return s.c.Reopen(ctx) })
}

// do runs a call of the simulator that takes no time, and so does not look at
// its context.
func (s simPort) do(ctx context.Context, op string, call func() error) error {
	if err := ctx.Err(); err != nil {
		return s.fail(op, err)
	}
	return s.fail(op, call())
}

func (s simPort) Info() rom.PortInfo {
	return rom.PortInfo{Name: s.name, Lines: true, USBSerial: s.c.USBSerial()}
}

// ownSim is a simulated board that lives as long as its port. With a state
// directory it comes from there, and goes back when the port closes.
type ownSim struct {
	simPort
	dir   string
	saved uint64 // Changes when the board came from dir

	closing sync.Mutex
	closed  bool
}

// openSim makes the board of a sim:// address. The parameters are mac, revision
// (0.3), flash (4MB), faults (see package espsim), app-prints (what the app says
// when it runs) and state (a directory that keeps fuses and flash; it then also
// says which MAC and revision the board has).
func openSim(ctx context.Context, a Address, baud int) (Port, error) {
	o, err := simOptions(a)
	if err != nil {
		return nil, err
	}
	c, err := espsim.New(o)
	if err != nil {
		return nil, err
	}
	s := &ownSim{simPort: simPort{c: c, name: a.String()}}
	s.dir, _ = a.Param("state")
	err = c.SetBaud(ctx, baud)
	if err == nil && s.dir != "" {
		var stored bool
		// A board that was never stored is stored even if nothing changes it.
		if stored, err = c.LoadDir(s.dir); stored {
			s.saved = c.Changes()
		} else {
			s.saved = c.Changes() - 1
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

func simOptions(a Address) (o espsim.Options, err error) {
	if o.Model, err = chip.ByName(a.Chip); err != nil {
		return o, err
	}
	for _, p := range a.Params {
		switch p.Key {
		case "mac":
			o.MAC, err = chip.ParseMAC(p.Value)
		case "revision":
			o.Revision, err = chip.ParseRevision(p.Value)
			o.Revision = espsim.RevisionOf(o.Revision)
		case "flash":
			o.FlashSize, err = parseFlash(p.Value)
		case "faults":
			o.Faults, err = espsim.ParseFaults(p.Value)
		case "app-prints":
			o.AppPrints = p.Value
		case "state":
			if p.Value == "" {
				err = errors.New("name a directory")
			}
		}
		if err != nil {
			return o, fmt.Errorf("%s: %w", p.Key, err)
		}
	}
	return o, nil
}

// parseFlash reads a flash size as recipes write it.
func parseFlash(s string) (uint32, error) {
	digits, ok := strings.CutSuffix(s, "MB")
	mb, err := strconv.ParseUint(digits, 10, 12)
	if !ok || err != nil || mb == 0 || mb > 1024 {
		return 0, fmt.Errorf("%q is not a flash size: write it as 4MB", s)
	}
	return uint32(mb) << 20, nil
}

// Close stores the board if it has a state directory and has changed.
func (s *ownSim) Close() error {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.dir != "" && s.c.Changes() != s.saved {
		err = s.c.SaveDir(s.dir)
	}
	return s.fail("close", errors.Join(err, s.c.Close()))
}
