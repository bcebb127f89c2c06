package serve

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// COM-PORT-OPTION commands of a client (RFC 2217); the server answers with the
// same number plus 100.
const (
	cpSignature     = 0
	cpSetBaud       = 1
	cpSetDataSize   = 2
	cpSetParity     = 3
	cpSetStopSize   = 4
	cpSetControl    = 5
	cpNotifyModem   = 7
	cpLineMask      = 10
	cpModemMask     = 11
	cpPurge         = 12
	cpAnswer        = 100
	modemState      = 0xB0 // carrier, DSR and CTS on, nothing changed
	signature       = "provisiond simulated board"
	maxBaud         = 10_000_000
	eightBits       = 8
	noParity        = 1
	oneStopBit      = 1
	controlNoFlow   = 1
	controlBreak    = 4
	controlBreakOn  = 5
	controlBreakOff = 6
	controlDTR      = 7
	controlDTROn    = 8
	controlDTROff   = 9
	controlRTS      = 10
	controlRTSOn    = 11
	controlRTSOff   = 12
	controlInFlow   = 13
	controlInNoFlow = 14
)

// RFC2217 serves telnet with the COM-PORT option, as rfc2217:// URLs of serial
// libraries want it: baud rate, DTR and RTS reach the board. Each command is
// answered with the value that is then in force: the board is 8N1 without flow
// control, so another data size, parity, stop size or flow control is answered
// with these, and a break is not sent.
//
// A client changes one line at a time and may wait for the answer before the next
// change, pyserial for 50 ms at least. The classic reset into the loader lets go
// of EN a moment before it pulls the strap, and a board bridges some 10 ms of that
// only. So the one state between, DTR asserted while RTS held EN low, is answered
// at once but shown to the board only when nothing follows it within 200 ms.
// Espressif's own server for remote ports does the sequence itself for the same
// reason.
//
// A second client waits until the first has gone. At a client's end DTR and RTS
// are released, as by a server that closes its port.
func RFC2217(ctx context.Context, ln net.Listener, h Host) error {
	return serveConns(ctx, ln, h, func(ctx context.Context, conn net.Conn, l *line, end func()) {
		s := &comPort{h: h, conn: conn, end: end, options: newOptions(), baud: defaultBaud, lines: heldLines{h: h, end: end}}
		s.run(ctx, l)
	})
}

// comPort is one client of an RFC 2217 server.
type comPort struct {
	h       Host
	conn    net.Conn
	end     func()
	options *tnOptions

	write    sync.Mutex // one telnet command or run of data at a time
	baud     int
	dtr, rts bool // as the client set them
	lines    heldLines
	notified bool // the client knows the modem state
}

// heldLines shows a client's DTR and RTS to the board.
type heldLines struct {
	h   Host
	end func()

	mu       sync.Mutex
	dtr, rts bool        // as the board has them
	held     *time.Timer // a state that is not shown yet; nil: there is none
}

// lineHold is how long the state between is held back.
const lineHold = 200 * time.Millisecond

// set takes the lines as the client wants them. It fails if the board is gone.
func (l *heldLines) set(ctx context.Context, dtr, rts bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
	if enLow := l.rts && !l.dtr; enLow && dtr && rts {
		var t *time.Timer
		t = time.AfterFunc(lineHold, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.held != t {
				return
			}
			l.held = nil
			if l.show(ctx, dtr, rts) != nil {
				l.end()
			}
		})
		l.held = t
		return nil
	}
	return l.show(ctx, dtr, rts)
}

// show sets the board's lines. l.mu is held.
func (l *heldLines) show(ctx context.Context, dtr, rts bool) error {
	l.dtr, l.rts = dtr, rts
	return l.h.SetLines(ctx, dtr, rts)
}

// drop forgets a state that is held back. l.mu is held.
func (l *heldLines) drop() {
	if l.held != nil {
		l.held.Stop()
		l.held = nil
	}
}

// release lets both lines go, at a client's start and end.
func (l *heldLines) release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
	return l.show(ctx, false, false)
}

func (s *comPort) run(ctx context.Context, l *line) {
	if s.h.SetBaud(ctx, s.baud) != nil || s.lines.release(ctx) != nil {
		return
	}
	// The lines are let go even if the client's context is what ended.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.lines.release(ctx)
	}()
	s.send(s.options.offers())
	defer l.attach(func(p []byte) { s.send(escape(nil, p)) }, s.end)()

	var parser tnParser
	var data []byte
	flush := func() bool {
		if len(data) == 0 {
			return true
		}
		_, err := s.h.Write(ctx, data)
		data = data[:0]
		return err == nil
	}
	buf := make([]byte, 4096)
	for {
		n, readErr := s.conn.Read(buf)
		for _, b := range buf[:n] {
			e, whole := parser.feed(b)
			if !whole {
				continue
			}
			if e.kind == tnData {
				data = append(data, e.data)
				continue
			}
			// What was sent before a command reaches the board before it.
			if !flush() || !s.handle(ctx, e) {
				return
			}
		}
		if !flush() || readErr != nil {
			return
		}
	}
}

func (s *comPort) send(p []byte) {
	if len(p) == 0 {
		return
	}
	s.write.Lock()
	defer s.write.Unlock()
	writeConn(s.conn, p, s.end)
}

// handle acts on a telnet command. It reports false when the board is gone.
func (s *comPort) handle(ctx context.Context, e tnEvent) bool {
	switch {
	case e.kind == tnOption:
		s.send(s.options.answer(e.code, e.opt))
		if e.opt == optComPort && e.code == tnWILL {
			s.notify()
		}
	case e.kind == tnSub && e.opt == optComPort && len(e.payload) > 0:
		s.notify() // pyserial leaves its WILL out if our DO was quicker
		return s.command(ctx, e.payload[0], e.payload[1:])
	}
	return true
}

// notify tells the modem state once, to a client that speaks COM-PORT.
func (s *comPort) notify() {
	if !s.notified {
		s.notified = true
		s.answer(cpNotifyModem, []byte{modemState})
	}
}

// command acts on a COM-PORT command; one with a value of the wrong length is not
// answered.
func (s *comPort) command(ctx context.Context, code byte, value []byte) bool {
	switch code {
	case cpSignature:
		if len(value) == 0 { // a question; otherwise it is the client's own
			s.answer(code, []byte(signature))
		}
		return true
	case cpNotifyModem: // pyserial asks so for the state
		s.answer(code, []byte{modemState})
		return true
	case cpSetBaud:
		if len(value) != 4 {
			return true
		}
		if v := binary.BigEndian.Uint32(value); v != 0 && v <= maxBaud {
			if s.h.SetBaud(ctx, int(v)) != nil {
				return false
			}
			s.baud = int(v)
		}
		s.answer(code, binary.BigEndian.AppendUint32(nil, uint32(s.baud)))
		return true
	}
	if len(value) != 1 {
		return true
	}
	switch code {
	case cpSetDataSize:
		s.answer(code, []byte{eightBits})
	case cpSetParity:
		s.answer(code, []byte{noParity})
	case cpSetStopSize:
		s.answer(code, []byte{oneStopBit})
	case cpSetControl:
		return s.control(ctx, value[0])
	case cpLineMask:
		s.answer(code, value)
	case cpModemMask:
		s.answer(code, value)
		s.answer(cpNotifyModem, []byte{modemState & value[0]})
	case cpPurge:
		// Nothing is held here: what came was passed on at once.
		s.answer(code, value)
	}
	return true
}

func (s *comPort) control(ctx context.Context, v byte) bool {
	switch v {
	case controlDTROn:
		s.dtr = true
	case controlDTROff:
		s.dtr = false
	case controlRTSOn:
		s.rts = true
	case controlRTSOff:
		s.rts = false
	}
	switch v {
	case controlDTROn, controlDTROff, controlRTSOn, controlRTSOff:
		if s.lines.set(ctx, s.dtr, s.rts) != nil {
			return false
		}
	case controlDTR:
		v = onOff(s.dtr, controlDTROn, controlDTROff)
	case controlRTS:
		v = onOff(s.rts, controlRTSOn, controlRTSOff)
	case controlBreak, controlBreakOn, controlBreakOff:
		v = controlBreakOff
	default:
		// A question about flow control, or a wish for some: there is none.
		if v == controlInFlow || v == controlInNoFlow || v == 15 || v == 16 || v == 18 {
			v = controlInNoFlow
		} else {
			v = controlNoFlow
		}
	}
	s.answer(cpSetControl, []byte{v})
	return true
}

func onOff(on bool, yes, no byte) byte {
	if on {
		return yes
	}
	return no
}

func (s *comPort) answer(code byte, value []byte) {
	e := tnEvent{kind: tnSub, opt: optComPort, payload: append([]byte{code + cpAnswer}, value...)}
	s.send(e.encode(nil))
}
