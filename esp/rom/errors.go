package rom

import (
	"errors"
	"fmt"
)

// Errors of the exchange with the loader. A device's own verdict is a
// *StatusError; a failed connect is a *ConnectError.
var (
	// ErrTimeout: the loader did not answer in the time that the command may take.
	ErrTimeout = errors.New("no answer from the loader")
	// ErrNoise: what came back was damaged, or two readings did not agree.
	ErrNoise = errors.New("line noise")
	// ErrLost: the loader could not be found again after noise or a time-out.
	ErrLost = errors.New("contact with the loader lost")
	// ErrChipReset: the chip started anew in the middle of a command.
	ErrChipReset = errors.New("the chip reset itself")
	// ErrNotDetected: the command differs from chip to chip: call Detect first.
	ErrNotDetected = errors.New("chip not detected yet")
	// ErrSecureDownload: the chip's Secure Download Mode does not allow it.
	ErrSecureDownload = errors.New("not possible in Secure Download Mode")
)

// Code is the second status byte of a ROM that refused a command.
type Code uint8

// The codes of the ROM (esp-facts A.3).
const (
	CodeUndefined    Code = 0x00
	CodeParameter    Code = 0x01
	CodeMemory       Code = 0x02
	CodeSend         Code = 0x03
	CodeReceive      Code = 0x04
	CodeFormat       Code = 0x05 // unknown, not allowed, or a damaged request
	CodeResult       Code = 0x06
	CodeChecksum     Code = 0x07
	CodeFlashWrite   Code = 0x08
	CodeFlashRead    Code = 0x09
	CodeReadLength   Code = 0x0A
	CodeDeflate      Code = 0x0B
	CodeAdler        Code = 0x0C
	CodeDeflateParam Code = 0x0D
	CodeRAMSize      Code = 0x0E
	CodeRAMAddress   Code = 0x0F
	CodeInvalid      Code = 0x64
	CodeBadFormat    Code = 0x65
	CodeTooLong      Code = 0x66
	CodeEncoding     Code = 0x67
	CodeStorage      Code = 0x69
)

var codeTexts = map[Code]string{
	CodeUndefined:    "undefined error",
	CodeParameter:    "invalid input parameter",
	CodeMemory:       "out of memory",
	CodeSend:         "the chip could not send",
	CodeReceive:      "the chip could not receive",
	CodeFormat:       "command unknown, not allowed or badly formed",
	CodeResult:       "the command was understood but did not succeed; a flash size that was not set shows so",
	CodeChecksum:     "checksum of the data is wrong",
	CodeFlashWrite:   "flash write error",
	CodeFlashRead:    "flash read error",
	CodeReadLength:   "read length error",
	CodeDeflate:      "compressed data are damaged",
	CodeAdler:        "Adler-32 of the data is wrong",
	CodeDeflateParam: "wrong parameter for compressed data",
	CodeRAMSize:      "wrong size for RAM",
	CodeRAMAddress:   "wrong RAM address",
	CodeInvalid:      "invalid parameter",
	CodeBadFormat:    "invalid format",
	CodeTooLong:      "description too long",
	CodeEncoding:     "bad encoding of the description",
	CodeStorage:      "storage error",
}

// stubTexts are the first status bytes of the vendor's stub.
var stubTexts = map[uint8]string{
	0xC0: "bad data length", 0xC1: "bad data checksum", 0xC2: "bad block size",
	0xC3: "invalid command", 0xC4: "SPI operation failed", 0xC5: "SPI unlock failed",
	0xC6: "not in flash mode", 0xC7: "inflate error", 0xC8: "not enough data",
	0xC9: "too much data", 0xCA: "NAND program error", 0xCB: "NAND erase error",
	0xFF: "command not implemented",
}

// statusFailed is the first status byte of a ROM that did not do a command.
const statusFailed = 1

func knownStatus(status uint8) bool {
	_, stub := stubTexts[status]
	return status == statusFailed || stub
}

// StatusError is the loader's own verdict: it received Op and did not do it.
type StatusError struct {
	Op     Op
	Status uint8 // first status byte, not 0
	Code   Code  // second status byte
}

// Error gives the verdict in words.
func (e *StatusError) Error() string {
	text, ok := codeTexts[e.Code]
	if e.Status != statusFailed {
		text, ok = stubTexts[e.Status]
	}
	if !ok {
		text = "unknown error code"
	}
	return fmt.Sprintf("%s refused by the loader: %s (%02x %02x)", e.Op, text, e.Status, uint8(e.Code))
}

// Refused reports whether err is the loader's answer to a command that it does
// not know or does not allow (01 05). It is also what a request gets that noise
// damaged on its way.
func Refused(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Status == statusFailed && s.Code == CodeFormat
}

// isStatus reports whether err is the device's own verdict.
func isStatus(err error) bool {
	var s *StatusError
	return errors.As(err, &s)
}

// mayBeNoise reports whether asking again may give another result.
func mayBeNoise(err error) bool {
	var s *StatusError
	if errors.As(err, &s) {
		return s.Status == statusFailed && (s.Code == CodeFormat || s.Code == CodeChecksum)
	}
	return errors.Is(err, ErrNoise) || errors.Is(err, ErrTimeout)
}
