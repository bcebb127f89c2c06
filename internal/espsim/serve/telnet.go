package serve

import "bytes"

// Telnet (RFC 854, RFC 855) as far as RFC 2217 needs it.
const (
	tnSE   = 240
	tnSB   = 250
	tnWILL = 251
	tnWONT = 252
	tnDO   = 253
	tnDONT = 254
	tnIAC  = 255

	optBinary  = 0
	optEcho    = 1
	optSGA     = 3
	optComPort = 44
)

// maxSub bounds the payload of a subnegotiation; RFC 2217's are at most 5 bytes,
// and a signature.
const maxSub = 1024

type tnKind uint8

const (
	tnData    tnKind = iota + 1 // data is one byte from the client
	tnCommand                   // code is a command without option
	tnOption                    // code is WILL, WONT, DO or DONT, opt the option
	tnSub                       // payload of a subnegotiation of opt
)

type tnEvent struct {
	kind    tnKind
	data    byte
	code    byte
	opt     byte
	payload []byte
}

// encode appends the event's wire form.
func (e tnEvent) encode(b []byte) []byte {
	switch e.kind {
	case tnData:
		return escape(b, []byte{e.data})
	case tnCommand:
		return append(b, tnIAC, e.code)
	case tnOption:
		return append(b, tnIAC, e.code, e.opt)
	case tnSub:
		b = append(b, tnIAC, tnSB, e.opt)
		b = escape(b, e.payload)
		return append(b, tnIAC, tnSE)
	}
	return b
}

// escape appends data with every IAC doubled. Nothing else is special: both
// sides are 8-bit clean, whether or not BINARY was negotiated, as serial tools
// expect.
func escape(b, data []byte) []byte {
	return append(b, bytes.ReplaceAll(data, []byte{tnIAC}, []byte{tnIAC, tnIAC})...)
}

type tnState uint8

const (
	inData    tnState = iota
	inIAC             // after IAC
	inOption          // after IAC and WILL, WONT, DO or DONT
	inSubOpt          // after IAC SB
	inSub             // in the payload
	inSubIAC          // after IAC in the payload
	inDropped         // in a payload that is too long
	inDroppedIAC
)

// tnParser takes a client's stream apart, byte by byte.
//
// It never gives up on a stream. What it drops is counted in dropped: a payload
// above maxSub, and an unfinished subnegotiation in which another command begins;
// that command counts.
type tnParser struct {
	state   tnState
	code    byte
	opt     byte
	payload []byte
	dropped int
}

// feed takes one byte. It reports true if that byte completes an event.
func (p *tnParser) feed(b byte) (tnEvent, bool) {
	switch p.state {
	case inData:
		if b != tnIAC {
			return tnEvent{kind: tnData, data: b}, true
		}
		p.state = inIAC
	case inIAC:
		return p.command(b)
	case inOption:
		p.state = inData
		return tnEvent{kind: tnOption, code: p.code, opt: b}, true
	case inSubOpt:
		p.opt, p.payload, p.state = b, nil, inSub
	case inSub:
		if b == tnIAC {
			p.state = inSubIAC
			break
		}
		p.collect(b)
	case inSubIAC:
		switch b {
		case tnIAC:
			p.state = inSub
			p.collect(b)
		case tnSE:
			p.state = inData
			return tnEvent{kind: tnSub, opt: p.opt, payload: p.payload}, true
		default:
			p.dropped++
			return p.command(b)
		}
	case inDropped:
		if b == tnIAC {
			p.state = inDroppedIAC
		}
	case inDroppedIAC:
		switch b {
		case tnIAC:
			p.state = inDropped
		case tnSE:
			p.state = inData
		default:
			return p.command(b)
		}
	}
	return tnEvent{}, false
}

// command is the byte after an IAC that is no data.
func (p *tnParser) command(b byte) (tnEvent, bool) {
	switch b {
	case tnIAC:
		p.state = inData
		return tnEvent{kind: tnData, data: tnIAC}, true
	case tnWILL, tnWONT, tnDO, tnDONT:
		p.code, p.state = b, inOption
		return tnEvent{}, false
	case tnSB:
		p.state = inSubOpt
		return tnEvent{}, false
	}
	p.state = inData
	return tnEvent{kind: tnCommand, code: b}, true
}

func (p *tnParser) collect(b byte) {
	if len(p.payload) == maxSub {
		p.dropped++
		p.payload, p.state = nil, inDropped
		return
	}
	p.payload = append(p.payload, b)
}

// tnOptions keeps which options are on, so that agreement is said once and loops
// cannot begin (RFC 1143 for a side that never asks to switch off).
type tnOptions struct {
	ours, theirs map[byte]bool // on, or asked for by us
}

func newOptions() *tnOptions {
	return &tnOptions{ours: make(map[byte]bool), theirs: make(map[byte]bool)}
}

// offers is what the server asks for when a client connects.
func (o *tnOptions) offers() []byte {
	var b []byte
	for _, opt := range []byte{optBinary, optSGA, optComPort} {
		o.ours[opt], o.theirs[opt] = true, true
		b = append(b, tnIAC, tnWILL, opt, tnIAC, tnDO, opt)
	}
	return b
}

// answer gives the reply to WILL, WONT, DO or DONT; nil if none is due.
func (o *tnOptions) answer(code, opt byte) []byte {
	known := opt == optBinary || opt == optSGA || opt == optComPort
	switch code {
	case tnWILL:
		return agree(o.theirs, opt, known, tnDO, tnDONT)
	case tnDO:
		// ECHO only means that the client shall not echo by itself.
		return agree(o.ours, opt, known || opt == optEcho, tnWILL, tnWONT)
	case tnWONT:
		return refuse(o.theirs, opt, tnDONT)
	case tnDONT:
		return refuse(o.ours, opt, tnWONT)
	}
	return nil
}

func agree(on map[byte]bool, opt byte, known bool, yes, no byte) []byte {
	switch {
	case on[opt]:
		return nil
	case !known:
		return []byte{tnIAC, no, opt}
	}
	on[opt] = true
	return []byte{tnIAC, yes, opt}
}

func refuse(on map[byte]bool, opt, no byte) []byte {
	if !on[opt] {
		return nil
	}
	delete(on, opt)
	return []byte{tnIAC, no, opt}
}
