package rom

import (
	"encoding/binary"
	"fmt"
)

// Op is an opcode of the loader's protocol (esp-facts A.2).
type Op uint8

// The opcodes that the mask ROM answers without a stub, and what only a stub does.
const (
	OpFlashBegin      Op = 0x02
	OpFlashData       Op = 0x03
	OpFlashEnd        Op = 0x04
	OpMemBegin        Op = 0x05
	OpMemEnd          Op = 0x06
	OpMemData         Op = 0x07
	OpSync            Op = 0x08
	OpWriteReg        Op = 0x09
	OpReadReg         Op = 0x0A
	OpSPISetParams    Op = 0x0B
	OpSPIAttach       Op = 0x0D
	OpReadFlashSlow   Op = 0x0E
	OpChangeBaudrate  Op = 0x0F
	OpFlashDeflBegin  Op = 0x10
	OpFlashDeflData   Op = 0x11
	OpFlashDeflEnd    Op = 0x12
	OpSPIFlashMD5     Op = 0x13
	OpGetSecurityInfo Op = 0x14
	OpEraseRegion     Op = 0xD1 // of a stub only
)

var opNames = map[Op]string{
	OpFlashBegin: "FLASH_BEGIN", OpFlashData: "FLASH_DATA", OpFlashEnd: "FLASH_END",
	OpMemBegin: "MEM_BEGIN", OpMemEnd: "MEM_END", OpMemData: "MEM_DATA",
	OpSync: "SYNC", OpWriteReg: "WRITE_REG", OpReadReg: "READ_REG",
	OpSPISetParams: "SPI_SET_PARAMS", OpSPIAttach: "SPI_ATTACH",
	OpReadFlashSlow: "READ_FLASH_SLOW", OpChangeBaudrate: "CHANGE_BAUDRATE",
	OpFlashDeflBegin: "FLASH_DEFL_BEGIN", OpFlashDeflData: "FLASH_DEFL_DATA", OpFlashDeflEnd: "FLASH_DEFL_END",
	OpSPIFlashMD5: "SPI_FLASH_MD5", OpGetSecurityInfo: "GET_SECURITY_INFO", OpEraseRegion: "ERASE_REGION",
}

// String gives the vendor's name.
func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode %02x", uint8(o))
}

// checksumSeed is where the XOR over a data packet's payload starts.
const checksumSeed = 0xEF

// Checksum is the protocol's checksum: the XOR of the payload bytes, from 0xEF
// (esp-facts A.1). Only data packets carry one; registers do not.
func Checksum(payload []byte) uint8 {
	sum := uint8(checksumSeed)
	for _, b := range payload {
		sum ^= b
	}
	return sum
}

const (
	dirRequest = 0x00
	dirReply   = 0x01
	headerSize = 8
	// statusSizeROM is the ROM's status tail: verdict, error code and two reserved
	// bytes. A stub leaves those out.
	statusSizeROM  = 4
	statusSizeStub = 2
	// maxReply bounds a reply frame: READ_FLASH_SLOW's 64 bytes, header and
	// status are the longest.
	maxReply = 128
)

// packet builds a request frame's content.
func packet(op Op, data []byte, checksum uint8) []byte {
	p := make([]byte, 0, headerSize+len(data))
	p = append(p, dirRequest, byte(op))
	p = binary.LittleEndian.AppendUint16(p, uint16(len(data)))
	p = binary.LittleEndian.AppendUint32(p, uint32(checksum))
	return append(p, data...)
}

// words lays out 32-bit parameters.
func words(ws ...uint32) []byte {
	p := make([]byte, 0, 4*len(ws))
	for _, w := range ws {
		p = binary.LittleEndian.AppendUint32(p, w)
	}
	return p
}

// reply is a response frame: header fields, then data and status together.
type reply struct {
	op    Op
	value uint32 // READ_REG's result; outside READ_REG a leftover of an earlier command
	body  []byte
}

// parseReply reads a response frame's content. The length field must fit: a
// frame that noise has cut or joined does not pass.
func parseReply(frame []byte) (reply, error) {
	if len(frame) < headerSize {
		return reply{}, fmt.Errorf("%w: a frame of %d bytes is no reply", ErrNoise, len(frame))
	}
	if frame[0] != dirReply {
		return reply{}, fmt.Errorf("%w: a frame that is no reply", ErrNoise)
	}
	if n := int(binary.LittleEndian.Uint16(frame[2:])); n != len(frame)-headerSize {
		return reply{}, fmt.Errorf("%w: a reply with another length than it says", ErrNoise)
	}
	return reply{
		op:    Op(frame[1]),
		value: binary.LittleEndian.Uint32(frame[4:]),
		body:  frame[headerSize:],
	}, nil
}

// encode is the inverse of parseReply.
func (r reply) encode() []byte {
	p := []byte{dirReply, byte(r.op)}
	p = binary.LittleEndian.AppendUint16(p, uint16(len(r.body)))
	p = binary.LittleEndian.AppendUint32(p, r.value)
	return append(p, r.body...)
}

// refusal reports the ROM's answer to a command that it does not know or does
// not allow: it comes under the opcode of the last command that was accepted,
// with status 01 05.
func (r reply) refusal() bool {
	return len(r.body) >= 2 && r.body[0] == statusFailed && Code(r.body[1]) == CodeFormat
}

// split separates data and verdict. tail is the size of the status, lengths are the
// data lengths that the command can have; an error comes with the status alone. Of
// the ROM's four status bytes only the first decides: the others are leftovers when
// it is 0.
func (r reply) split(op Op, tail int, lengths []int) ([]byte, error) {
	n := len(r.body) - tail
	fits := false
	for _, want := range lengths {
		fits = fits || n == want
	}
	if !fits && n != 0 {
		return nil, fmt.Errorf("%s: %w: a reply with %d bytes of data", op, ErrNoise, n)
	}
	switch status := r.body[n]; {
	case status == 0 && fits:
		return r.body[:n], nil
	case status == 0:
		return nil, fmt.Errorf("%s: %w: a reply without its data", op, ErrNoise)
	case knownStatus(status):
		return nil, &StatusError{Op: op, Status: status, Code: Code(r.body[n+1])}
	default:
		return nil, fmt.Errorf("%s: %w: a reply with an impossible status", op, ErrNoise)
	}
}
