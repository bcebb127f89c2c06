package port

import (
	"errors"
	"fmt"
)

// Telnet bytes (RFC 854, RFC 855) and options (RFC 856, 858, 2217).
const (
	telSE   = 240
	telSB   = 250
	telWill = 251
	telWont = 252
	telDo   = 253
	telDont = 254
	telIAC  = 255

	telFirstCommand = 236 // EOF of RFC 1184; below it nothing is defined

	optBinary  = 0
	optSGA     = 3
	optComPort = 44
)

// telEvent is what stands on a telnet connection: data, a command, an option
// (a command with an option code) or a subnegotiation.
type telEvent struct {
	kind telKind
	cmd  byte   // telCommand, telOption
	opt  byte   // telOption, telSub
	data []byte // telData, telSub; valid during the call only
}

type telKind uint8

const (
	telData telKind = iota
	telCommand
	telOption
	telSub
)

// maxSub bounds a subnegotiation. RFC 2217 needs a dozen bytes, a server's
// signature text a line.
const maxSub = 1024

// errTelnet is a byte sequence that telnet does not have.
var errTelnet = errors.New("these are not telnet bytes: for a raw TCP serial server write socket://host:port")

// telDecoder takes a telnet connection's bytes apart, however they are cut.
type telDecoder struct {
	state telState
	cmd   byte
	sub   []byte // option code and payload
}

type telState uint8

const (
	inData   telState = iota
	inIAC             // behind IAC
	inOption          // behind IAC WILL, WONT, DO or DONT
	inSub             // behind IAC SB
	inSubIAC          // behind an IAC in there
)

// decode hands the events in b to emit. After an error the decoder is of no
// more use.
func (d *telDecoder) decode(b []byte, emit func(telEvent)) error {
	start := 0 // of the data not emitted yet
	flush := func(end int) {
		if end > start {
			emit(telEvent{kind: telData, data: b[start:end]})
		}
	}
	for i, c := range b {
		switch d.state {
		case inData:
			if c == telIAC {
				flush(i)
				d.state = inIAC
			}
			continue
		case inIAC:
			d.state = inData
			switch {
			case c == telIAC:
				start = i // the second one of the pair is the data byte
				continue
			case c == telSB:
				d.state, d.sub = inSub, d.sub[:0]
			case c >= telWill:
				d.state, d.cmd = inOption, c
			case c >= telFirstCommand:
				emit(telEvent{kind: telCommand, cmd: c})
			default:
				return fmt.Errorf("%#x behind IAC: %w", c, errTelnet)
			}
		case inOption:
			d.state = inData
			emit(telEvent{kind: telOption, cmd: d.cmd, opt: c})
		case inSub:
			if c == telIAC {
				d.state = inSubIAC
			} else if err := d.collect(c); err != nil {
				return err
			}
		case inSubIAC:
			switch c {
			case telIAC:
				d.state = inSub
				if err := d.collect(c); err != nil {
					return err
				}
			case telSE:
				if len(d.sub) == 0 {
					return fmt.Errorf("a subnegotiation of nothing: %w", errTelnet)
				}
				d.state = inData
				emit(telEvent{kind: telSub, opt: d.sub[0], data: d.sub[1:]})
			default:
				return fmt.Errorf("%#x behind IAC in a subnegotiation: %w", c, errTelnet)
			}
		}
		start = i + 1
	}
	if d.state == inData {
		flush(len(b))
	}
	return nil
}

func (d *telDecoder) collect(c byte) error {
	if len(d.sub) > maxSub {
		return fmt.Errorf("a subnegotiation of more than %d bytes: %w", maxSub, errTelnet)
	}
	d.sub = append(d.sub, c)
	return nil
}

// appendEvent encodes an event. What was decoded encodes to the same bytes.
func appendEvent(b []byte, ev telEvent) []byte {
	switch ev.kind {
	case telCommand:
		return append(b, telIAC, ev.cmd)
	case telOption:
		return append(b, telIAC, ev.cmd, ev.opt)
	case telSub:
		b = appendData(append(b, telIAC, telSB), []byte{ev.opt})
		return append(appendData(b, ev.data), telIAC, telSE)
	}
	return appendData(b, ev.data)
}

// appendData encodes data: IAC is sent twice.
func appendData(b, data []byte) []byte {
	for _, c := range data {
		if c == telIAC {
			b = append(b, telIAC)
		}
		b = append(b, c)
	}
	return b
}

// dataSent says how many data bytes the first n bytes of their encoding carry,
// and whether those end inside a pair.
func dataSent(data []byte, n int) (sent int, cut bool) {
	for _, c := range data {
		size := 1
		if c == telIAC {
			size = 2
		}
		if n < size {
			return sent, n > 0
		}
		n -= size
		sent++
	}
	return sent, false
}
