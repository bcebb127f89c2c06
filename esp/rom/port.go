// Package rom is a client of the serial loader in the mask ROM of ESP32-family
// chips: connecting, commands as structs, status codes as errors, reset sequences.
// It runs no code on the chip unless it is given a flasher stub ([Client.RunStub]),
// which nothing needs; one that another tool left running is reported.
//
// It promises that noise on the line costs retries only. Flash data is
// checksummed and checked; registers are not, so what decides anything is read
// until two readings agree. A refusal is an error at once, an unplugged port too,
// and every call ends within 100 ms of its context's end. Traces and errors carry
// no key bytes.
//
// It owns no serial port: it borrows a [Port].
package rom

import (
	"context"
	"errors"
)

// Port is the serial line that a client borrows. Every call returns within
// 100 ms of its context's end, with that context's error.
type Port interface {
	// Read waits for at least one byte.
	Read(ctx context.Context, p []byte) (int, error)
	// Write sends all of p or fails.
	Write(ctx context.Context, p []byte) (int, error)
	// Discard drops what was received and not read yet.
	Discard(ctx context.Context) error
	// SetBaud changes this side's rate, after what was written has left.
	SetBaud(ctx context.Context, baud int) error
	// SetLines asserts (true) or releases DTR and RTS, in one operation where
	// the transport can. A transport without lines returns ErrNoLines.
	SetLines(ctx context.Context, dtr, rts bool) error
	// Reopen closes and opens the device again, which a USB device that
	// re-enumerates on reset needs.
	Reopen(ctx context.Context) error
	// Info describes the port.
	Info() PortInfo
}

// PortInfo describes a port.
type PortInfo struct {
	Name      string // as the user wrote it
	Lines     bool   // DTR and RTS reach the board
	Network   bool   // RFC 2217: line changes take a round trip, so only the classic reset fits
	USBSerial bool   // the chip's own USB-JTAG-Serial (303a:1001)
	USBOTG    bool   // the chip's own USB-OTG (303a and its chip id)
}

// Errors of a port.
var (
	// ErrUnplugged: the device is gone. It is reported at once, not as a time-out.
	ErrUnplugged = errors.New("port unplugged")
	// ErrNoLines: the transport has no DTR and RTS.
	ErrNoLines = errors.New("port has no DTR and RTS lines")
)
