// Package port opens the serial lines that boards hang on, and gives each of
// them the one interface that the loader's client borrows, [rom.Port].
//
// Four kinds of address exist ([Parse]):
//
//   - a tty, for example /dev/serial/by-path/…: a USB adapter, the chip's own
//     USB-JTAG-Serial, or a PTY (which has no DTR and RTS);
//   - socket://host:port, a raw TCP serial server: bytes only, no lines, and the
//     rate is the server's own business;
//   - rfc2217://host:port, a telnet server that carries rate and lines too;
//   - sim://CHIP, a simulated chip inside this process.
//
// What the package promises for all of them: a call returns within 100 ms of
// its context's end; a device that is gone is [rom.ErrUnplugged] at once and
// not a time-out; an opened port has both lines released; nobody else of good
// will has the same tty open. An error says what is wrong and what to do next.
//
// One goroutine may read while another writes, sets lines or closes. Two
// readers (Discard is one) or two writers at once are the caller's mistake.
//
// The package also owns the resets that need no lines: a program
// ([CommandReset]) and a person ([OperatorReset]). It is the only importer of
// go.bug.st/serial.
package port

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
)

// Port is an open port. Close gives what was written a quarter of a second to
// leave, and drops the rest.
type Port interface {
	rom.Port
	io.Closer
}

// ErrBusy says that somebody else has the port. The error that wraps it names
// the holder where that can be found out.
var ErrBusy = errors.New("port in use")

// errClosed answers calls on a port after its Close.
var errClosed = errors.New("port is closed")

// Options are the settings of a port. The zero value fits.
type Options struct {
	// Baud is the rate at opening. 0 means 115200, the rate of a ROM loader
	// after a reset.
	Baud int
	// Dial limits connecting to a server and agreeing with it on RFC 2217.
	// 0 means 5 s.
	Dial time.Duration
	// Reply limits the wait for an RFC 2217 server's acknowledgement. 0 means
	// 3 s.
	Reply time.Duration
	// Return limits how long Reopen waits for a device that left the bus to
	// come back with its permissions, or for a server to take us again. 0
	// means 5 s.
	Return time.Duration

	// Roots of the file systems that are asked about ttys; empty means /dev,
	// /sys and /proc.
	Dev, Sys, Proc string
}

func (o Options) withDefaults() Options {
	o.Baud = cmp.Or(o.Baud, 115200)
	o.Dial = cmp.Or(o.Dial, 5*time.Second)
	o.Reply = cmp.Or(o.Reply, 3*time.Second)
	o.Return = cmp.Or(o.Return, 5*time.Second)
	o.Dev = cmp.Or(o.Dev, "/dev")
	o.Sys = cmp.Or(o.Sys, "/sys")
	o.Proc = cmp.Or(o.Proc, "/proc")
	return o
}

// Open opens the port that name describes.
func Open(ctx context.Context, name string, o Options) (Port, error) {
	a, err := Parse(name)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := checkBaud(o.Baud); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	var p Port
	switch a.Scheme {
	case Socket:
		p, err = openSocket(ctx, a, o)
	case RFC2217:
		p, err = openRFC2217(ctx, a, o)
	case Sim:
		p, err = openSim(ctx, a, o.Baud)
	default:
		p, err = openTTY(ctx, a.Path, o)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return p, nil
}

// maxBaud is what the fastest adapters do; above it a value is a typing error.
const maxBaud = 12_000_000

func checkBaud(baud int) error {
	if baud < 50 || baud > maxBaud {
		return fmt.Errorf("%d is not a rate: give 50 to %d baud", baud, maxBaud)
	}
	return nil
}

// within2Percent compares the rate that a device reports with the one that was
// asked for. A UART receiver loses its last bit near 4 %, and the chip's own
// clock takes its share of that.
func within2Percent(got, want int) bool {
	return 50*max(got-want, want-got) <= want
}

// wireTime is how long n bytes take on the wire: ten bits each.
func wireTime(n, baud int) time.Duration {
	return time.Duration(n) * 10 * time.Second / time.Duration(baud)
}

// past is a deadline that has gone by: it wakes a blocked call.
var past = time.Unix(1, 0)

// untilDone runs fn, a blocking call, and moves its deadline into the past when
// ctx ends. The deadline is clear again when untilDone returns.
func untilDone(ctx context.Context, setDeadline func(time.Time) error, fn func() (int, error)) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = setDeadline(past) // fails on a closed device only, and then nothing blocks
	})
	n, err := fn()
	if !stop() {
		<-woken
		_ = setDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, ctx.Err()
		}
	}
	return n, err
}

// grace is how long a driver's system call may run on after its context's end
// before the caller is let go. It stays below the 100 ms of [rom.Port].
const grace = 50 * time.Millisecond

// within runs fn, which a driver can hold up (a USB control request takes
// seconds on a wedged device), and stops waiting for it when ctx ends. fn then
// finishes by itself, and late is called with what it returned.
func within[T any](ctx context.Context, fn func() (T, error), late func(T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if ctx.Done() == nil {
		return fn()
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-t.C:
		go func() {
			r := <-done
			late(r.v, r.err)
		}()
		return none, ctx.Err()
	}
}

// sleep waits for d or ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
