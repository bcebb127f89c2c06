package port

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
)

// Commands of RFC 2217, client to server. A server's answer and its
// notifications are the code plus 100.
const (
	cpSignature  = 0
	cpBaud       = 1
	cpDataSize   = 2
	cpParity     = 3
	cpStopSize   = 4
	cpControl    = 5
	cpSuspend    = 8
	cpResume     = 9
	cpPurge      = 12
	cpFromServer = 100
)

// Values of RFC 2217.
const (
	parityNone    = 1
	stopSizeOne   = 1
	controlNoFlow = 1
	controlDTROn  = 8
	controlDTROff = 9
	controlRTSOn  = 11
	controlRTSOff = 12
	purgeReceived = 1
)

// cpName is a command for an error's reader.
func cpName(code byte) string {
	switch code {
	case cpBaud:
		return "SET-BAUDRATE"
	case cpDataSize:
		return "SET-DATASIZE"
	case cpParity:
		return "SET-PARITY"
	case cpStopSize:
		return "SET-STOPSIZE"
	case cpControl:
		return "SET-CONTROL"
	case cpPurge:
		return "PURGE-DATA"
	}
	return fmt.Sprintf("command %d", code)
}

// rfc2217 is a client of RFC 2217, the telnet option that carries a serial
// port's rate and lines.
type rfc2217 struct {
	a Address
	o Options

	mu     sync.Mutex
	s      *session // nil while there is none
	lines  bool     // the last session has lines
	baud   int
	closed bool
}

func openRFC2217(ctx context.Context, a Address, o Options) (Port, error) {
	s, err := startSession(ctx, a, o, o.Baud)
	if err != nil {
		return nil, err
	}
	return &rfc2217{a: a, o: o, s: s, lines: s.lines, baud: o.Baud}, nil
}

func (r *rfc2217) current() (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, errClosed
	case r.s == nil:
		return nil, rom.ErrUnplugged
	}
	return r.s, nil
}

func (r *rfc2217) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, net.ErrClosed) {
		if _, now := r.current(); now != nil {
			err = now
		}
	}
	return fmt.Errorf("%s %s: %w", op, r.a, err)
}

func (r *rfc2217) Read(ctx context.Context, p []byte) (n int, err error) {
	s, err := r.current()
	if err == nil {
		n, err = s.read(ctx, p)
	}
	return n, r.fail("read", err)
}

func (r *rfc2217) Write(ctx context.Context, p []byte) (n int, err error) {
	s, err := r.current()
	if err == nil {
		n, err = s.write(ctx, p)
	}
	return n, r.fail("write", err)
}

// Discard has the server purge what it received, and drops everything that it
// sent before it said so.
func (r *rfc2217) Discard(ctx context.Context) error {
	s, err := r.current()
	if err == nil {
		err = s.request(ctx, request{cpPurge, []byte{purgeReceived}})
	}
	return r.fail("discard", err)
}

// SetBaud waits for the server's acknowledgement. RFC 2217 has no way to ask
// whether the server's own queue is empty, so the change waits for as long as
// the bytes that were written take on the wire.
func (r *rfc2217) SetBaud(ctx context.Context, baud int) error {
	s, err := r.current()
	if err == nil {
		err = checkBaud(baud)
	}
	if err == nil {
		err = s.setBaud(ctx, baud)
	}
	if err == nil {
		r.mu.Lock()
		r.baud = baud
		r.mu.Unlock()
	}
	return r.fail("set rate of", err)
}

func (r *rfc2217) SetLines(ctx context.Context, dtr, rts bool) error {
	s, err := r.current()
	switch {
	case err != nil:
	case !s.lines:
		err = fmt.Errorf("%w: the server did not acknowledge any: reset with --reset-command, or by hand", rom.ErrNoLines)
	default:
		err = s.request(ctx, lines(dtr, rts)...)
	}
	return r.fail("set lines of", err)
}

// Reopen connects again, at the same rate and with released lines.
func (r *rfc2217) Reopen(ctx context.Context) error {
	r.mu.Lock()
	old, baud, closed := r.s, r.baud, r.closed
	r.s = nil
	r.mu.Unlock()
	if closed {
		return r.fail("reopen", errClosed)
	}
	if old != nil {
		old.close()
	}
	// A server for one client needs a moment to see that the old one has gone.
	end := time.Now().Add(r.o.Return)
	s, err := startSession(ctx, r.a, r.o, baud)
	for errors.Is(err, rom.ErrUnplugged) && time.Now().Before(end) {
		if err := sleep(ctx, 25*time.Millisecond); err != nil {
			return r.fail("reopen", err)
		}
		s, err = startSession(ctx, r.a, r.o, baud)
	}
	if err != nil {
		return r.fail("reopen", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		s.close()
		return r.fail("reopen", errClosed)
	}
	r.s, r.lines = s, s.lines
	return nil
}

// Info says that there are lines if the server acknowledged their release when
// the connection began. RFC 2217 has no other word for a server without them.
func (r *rfc2217) Info() rom.PortInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return rom.PortInfo{Name: r.a.String(), Lines: r.lines, Network: true}
}

func (r *rfc2217) Close() error {
	r.mu.Lock()
	s := r.s
	r.s, r.closed = nil, true
	r.mu.Unlock()
	if s != nil {
		s.close()
	}
	return nil
}

// request is one command that the server acknowledges with the value it took.
type request struct {
	code  byte
	value []byte
}

func baudRequest(baud int) request {
	return request{cpBaud, binary.BigEndian.AppendUint32(nil, uint32(baud))}
}

func lines(dtr, rts bool) []request {
	d, r := byte(controlDTROff), byte(controlRTSOff)
	if dtr {
		d = controlDTROn
	}
	if rts {
		r = controlRTSOn
	}
	return []request{{cpControl, []byte{d}}, {cpControl, []byte{r}}}
}

// topic is what a request or its acknowledgement is about. SET-CONTROL has one
// code for several things (RFC 2217 section 3).
func topic(code byte, value []byte) int {
	t := int(code) << 8
	if code != cpControl || len(value) != 1 {
		return t
	}
	switch v := value[0]; {
	case v <= 3 || v == 17 || v == 19: // outbound and both ways
		return t | 1
	case v <= 6:
		return t | 2 // break
	case v <= 9:
		return t | 3 // DTR
	case v <= 12:
		return t | 4 // RTS
	}
	return t | 5 // inbound flow control
}

// ack is a request on its way. Under session.mu.
type ack struct {
	request
	done  bool
	given bool // nobody waits any more: its context ended
	err   error
}

// matches reports whether value is what the request asked for.
func (a *ack) matches(value []byte) bool {
	if a.code == cpBaud && len(value) == 4 {
		got, want := binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(a.value)
		return got <= maxBaud*2 && within2Percent(int(got), int(want))
	}
	return slices.Equal(value, a.value)
}

// mismatch is the error of a request that the server answered with another value.
func (a *ack) mismatch(value []byte) error {
	if a.code == cpBaud && len(value) == 4 {
		return fmt.Errorf("the server gives %d baud when asked for %d: choose a rate that its adapter has",
			binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(a.value))
	}
	return fmt.Errorf("the server answers %s %v with %v: its serial port cannot do that", cpName(a.code), a.value, value)
}

// maxUnread is how much a session takes from the network before somebody reads
// it. Then TCP holds the server back.
const maxUnread = 1 << 20

// session is one connection. Two goroutines of its own take the bytes apart and
// answer the server's requests, so acknowledgements are seen and data keeps
// flowing whatever the port's user is doing. They are two because the first
// must never wait for a write: the server may be waiting for us to receive.
type session struct {
	conn    net.Conn
	o       Options
	running sync.WaitGroup
	writing chan struct{} // one token: held while writing, so that no two writes mix
	due     chan struct{} // there are replies to write
	over    chan struct{} // closed when err is set

	mu        sync.Mutex
	changed   chan struct{} // closed at the next change of what follows
	data      bytes.Buffer  // received and not read
	err       error         // the session is over
	us, peer  [256]bool     // options that each side has switched on
	lines     bool          // the server acknowledged DTR and RTS; set before the session is used
	refused   [2]map[byte]bool
	asked     [2]map[byte]bool
	pending   map[int][]*ack // by topic, oldest first
	suspended bool           // the server asked for silence
	replies   []byte         // to be written
	baud      int
	idle      time.Time // when the last byte written has left the server's port
}

// The two sides of an option.
const (
	we   = 0
	they = 1
)

func startSession(ctx context.Context, a Address, o Options, baud int) (*session, error) {
	ctxDial, cancel := context.WithTimeoutCause(ctx, o.Dial, errSlow)
	defer cancel()
	conn, err := dial(ctxDial, a, o)
	if err != nil {
		return nil, slow(ctx, ctxDial, err, "")
	}
	s := &session{
		conn: conn, o: o, baud: baud,
		writing: make(chan struct{}, 1),
		due:     make(chan struct{}, 1),
		over:    make(chan struct{}),
		changed: make(chan struct{}),
		refused: [2]map[byte]bool{{}, {}},
		asked:   [2]map[byte]bool{{optComPort: true, optBinary: true, optSGA: true}, {optBinary: true, optSGA: true}},
		pending: map[int][]*ack{},
	}
	s.running.Go(s.receive)
	s.running.Go(s.answer)
	if err := s.negotiate(ctxDial, baud); err != nil {
		err = s.withGreeting(err)
		s.close()
		return nil, slow(ctx, ctxDial, err, "the server does not agree to RFC 2217: another client may have the port, then end that one (`provisiond sim` and some servers let a second client wait); "+
			"or it is none: for a raw TCP serial server write socket://"+a.hostPort())
	}
	return s, nil
}

// errSlow is the end of a time limit of ours, not of the caller's context.
var errSlow = errors.New("no answer in time")

// slow turns an error at the end of inner, whose parent is outer, into the
// caller's own context error or into our limit with what it means.
func slow(outer, inner context.Context, err error, means string) error {
	if outer.Err() == nil && errors.Is(context.Cause(inner), errSlow) && errors.Is(err, context.DeadlineExceeded) {
		if means == "" {
			return fmt.Errorf("%w: check host, network and firewall", errSlow)
		}
		return fmt.Errorf("%w: %s", errSlow, means)
	}
	return err
}

// negotiate agrees on the options, and sets the port to 8N1 without flow
// control, released lines and baud.
func (s *session) negotiate(ctx context.Context, baud int) error {
	hello := []byte{
		telIAC, telWill, optComPort,
		telIAC, telWill, optBinary, telIAC, telDo, optBinary,
		telIAC, telWill, optSGA, telIAC, telDo, optSGA,
	}
	if err := s.send(ctx, hello); err != nil {
		return err
	}
	// Without BINARY a server may treat carriage returns its own way (RFC 856),
	// which damages images.
	err := s.await(ctx, func() (bool, error) {
		switch {
		case s.refused[we][optComPort]:
			return false, errors.New("the server refuses the telnet option COM-PORT (44): it does not speak RFC 2217; enable that there, or write socket:// for its raw port")
		case s.refused[we][optBinary] || s.refused[they][optBinary]:
			return false, errors.New("the server refuses the telnet option BINARY (0), without which it damages images: switch its text mode off")
		}
		return s.us[optComPort] && s.us[optBinary] && s.peer[optBinary], nil
	})
	if err != nil {
		return err
	}
	// A server answers in order, so one that has acknowledged the rest and not
	// the lines has none: ser2net keeps silent about those of a PTY.
	release, settings := lines(false, false), []request{
		{cpDataSize, []byte{8}},
		{cpParity, []byte{parityNone}},
		{cpStopSize, []byte{stopSizeOne}},
		{cpControl, []byte{controlNoFlow}},
		baudRequest(baud),
	}
	out, acks, err := s.expect(append(release, settings...))
	if err != nil {
		return err
	}
	if err := s.collect(ctx, out, acks[len(release):]); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, lateLines)
	defer cancel()
	err = s.answered(limit, acks[:len(release)])
	s.lines = err == nil
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		s.giveUp(acks)
		return nil
	}
	return err
}

// lateLines is how long after the acknowledgements of later commands that of
// the lines may still come.
const lateLines = 250 * time.Millisecond

// withGreeting adds what the server wrote before it hung up: mostly it says
// there that the port is in use.
func (s *session) withGreeting(err error) error {
	if !errors.Is(err, rom.ErrUnplugged) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data.Len() == 0 {
		return fmt.Errorf("%w during the negotiation: is the port in use there?", err)
	}
	return fmt.Errorf("%w during the negotiation; it says %.200q", err, s.data.Bytes())
}

// receive takes the connection's bytes apart until it ends.
func (s *session) receive() {
	var d telDecoder
	buf := make([]byte, 16<<10)
	for {
		n, err := s.conn.Read(buf)
		s.mu.Lock()
		if derr := d.decode(buf[:n], s.handle); derr != nil {
			err = derr
		}
		if err != nil {
			s.endLocked(err)
		}
		s.notifyLocked()
		for s.err == nil && s.data.Len() >= maxUnread && len(s.pending) == 0 {
			s.waitLocked()
		}
		over := s.err != nil
		s.mu.Unlock()
		if over {
			return
		}
	}
}

// answer writes the replies.
func (s *session) answer() {
	for {
		select {
		case <-s.due:
		case <-s.over:
			return
		}
		select {
		case s.writing <- struct{}{}:
		case <-s.over:
			return
		}
		s.mu.Lock()
		out := s.replies
		s.replies = nil
		s.mu.Unlock()
		_, err := s.conn.Write(out)
		<-s.writing
		if err != nil {
			s.end(err)
			return
		}
	}
}

// handle acts on one event. Under mu.
func (s *session) handle(ev telEvent) {
	switch ev.kind {
	case telData:
		s.data.Write(ev.data)
	case telOption:
		s.option(ev.cmd, ev.opt)
	case telSub:
		if ev.opt == optComPort && len(ev.data) > 0 {
			s.comPort(ev.data[0], ev.data[1:])
		}
	case telCommand: // NOP, GA and the like mean nothing to a serial line
	}
}

// option keeps the state of the options by RFC 1143's rule: an answer is due
// only to what changes the state, and never to the answer of our own request.
func (s *session) option(cmd, opt byte) {
	side, on, yes, no := we, &s.us[opt], byte(telWill), byte(telWont) // DO and DONT are about us
	if cmd == telWill || cmd == telWont {
		side, on, yes, no = they, &s.peer[opt], telDo, telDont
	}
	asked := s.asked[side][opt]
	delete(s.asked[side], opt)
	if cmd == telDont || cmd == telWont {
		s.refused[side][opt] = true
		if *on {
			*on = false
			s.reply(telEvent{kind: telOption, cmd: no, opt: opt})
			if opt == optComPort || opt == optBinary {
				s.endLocked(fmt.Errorf("the server switched telnet option %d off", opt))
			}
		}
		return
	}
	supported := opt == optBinary || opt == optSGA || opt == optComPort
	switch {
	case *on:
	case asked:
		*on = true
	case supported:
		*on = true
		s.reply(telEvent{kind: telOption, cmd: yes, opt: opt})
	default:
		s.reply(telEvent{kind: telOption, cmd: no, opt: opt})
	}
}

func (s *session) reply(ev telEvent) {
	s.replies = appendEvent(s.replies, ev)
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// comPort acts on a server's COM-PORT-OPTION command.
func (s *session) comPort(code byte, value []byte) {
	switch code {
	case cpFromServer + cpSignature:
		if len(value) == 0 { // it asks for ours
			s.reply(telEvent{kind: telSub, opt: optComPort, data: append([]byte{cpSignature}, "provisiond"...)})
		}
	case cpFromServer + cpSuspend:
		s.suspended = true
	case cpFromServer + cpResume:
		s.suspended = false
	default:
		if code >= cpFromServer {
			s.acknowledge(code-cpFromServer, value)
		}
	}
}

// acknowledge matches an answer with the oldest request that it fits. A server
// answers in order, so requests before that one will not be answered any more.
func (s *session) acknowledge(code byte, value []byte) {
	t := topic(code, value)
	queue := s.pending[t]
	if len(queue) == 0 {
		return // a notification
	}
	hit := slices.IndexFunc(queue, func(a *ack) bool { return a.matches(value) })
	if hit < 0 {
		hit = 0
		queue[0].err = queue[0].mismatch(value)
	}
	for _, a := range queue[:hit+1] {
		a.done = true
		if code == cpPurge && !a.given && a.err == nil {
			s.data.Reset()
		}
	}
	if s.pending[t] = queue[hit+1:]; len(s.pending[t]) == 0 {
		delete(s.pending, t)
	}
}

// endLocked ends the session with its first error.
func (s *session) endLocked(err error) {
	if s.err != nil {
		return
	}
	if lost(err) {
		err = fmt.Errorf("%w (%w): the serial server closed the connection", rom.ErrUnplugged, err)
	}
	s.err = err
	close(s.over)
	s.notifyLocked()
}

func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

func (s *session) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// waitLocked waits for the next change.
func (s *session) waitLocked() {
	c := s.changed
	s.mu.Unlock()
	<-c
	s.mu.Lock()
}

// await waits until ready, which runs under mu, says so. The session's end ends
// it too.
func (s *session) await(ctx context.Context, ready func() (bool, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		if s.err != nil {
			return s.err
		}
		c := s.changed
		s.mu.Unlock()
		select {
		case <-c:
			s.mu.Lock()
		case <-ctx.Done():
			s.mu.Lock()
			return ctx.Err()
		}
	}
}

// read gives what has come in; what came in before the session's end first.
func (s *session) read(ctx context.Context, p []byte) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	err = s.await(ctx, func() (bool, error) {
		if s.data.Len() == 0 {
			return len(p) == 0, nil
		}
		n, _ = s.data.Read(p) // fails on an empty buffer only
		s.notifyLocked()
		return true, nil
	})
	return n, err
}

// writeChunk is how much data is encoded and sent at once.
const writeChunk = 16 << 10

func (s *session) write(ctx context.Context, p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		var m int
		m, err = s.writeSome(ctx, p[n:min(len(p), n+writeChunk)])
		n += m
	}
	return n, err
}

func (s *session) writeSome(ctx context.Context, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	err := s.await(ctx, func() (bool, error) { return !s.suspended, s.err })
	if err != nil {
		return 0, err
	}
	n, err := s.sendBytes(ctx, appendData(make([]byte, 0, len(p)+len(p)/64), p))
	sent, cut := dataSent(p, n)
	if err != nil && cut {
		s.end(fmt.Errorf("a write was cut inside an escape (%w): reopen the port", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.idle.Before(now) {
		s.idle = now
	}
	s.idle = s.idle.Add(wireTime(sent, s.baud))
	return sent, err
}

// send writes telnet commands, which must not be cut.
func (s *session) send(ctx context.Context, b []byte) error {
	n, err := s.sendBytes(ctx, b)
	if err != nil && n > 0 {
		s.end(fmt.Errorf("a command was cut (%w): reopen the port", err))
	}
	return err
}

// sendBytes writes b when it is its turn.
func (s *session) sendBytes(ctx context.Context, b []byte) (int, error) {
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	n, err := untilDone(ctx, s.conn.SetWriteDeadline, func() (int, error) { return s.conn.Write(b) })
	<-s.writing
	if err != nil && lost(err) {
		s.end(err)
		s.mu.Lock()
		defer s.mu.Unlock()
		return n, s.err
	}
	return n, err
}

// request sends commands in one write and waits for every acknowledgement.
func (s *session) request(ctx context.Context, rs ...request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	out, acks, err := s.expect(rs)
	if err != nil {
		return err
	}
	return s.collect(ctx, out, acks)
}

// expect encodes commands and puts them down as awaiting an answer.
func (s *session) expect(rs []request) (out []byte, acks []*ack, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, nil, s.err
	}
	for _, r := range rs {
		out = appendEvent(out, telEvent{kind: telSub, opt: optComPort, data: append([]byte{r.code}, r.value...)})
		a := &ack{request: r}
		acks = append(acks, a)
		t := topic(r.code, r.value)
		s.pending[t] = append(s.pending[t], a)
	}
	s.notifyLocked() // the receiver takes data beyond its limit while an answer is due
	return out, acks, nil
}

// collect sends out and waits for acks. A server that does not acknowledge is
// of no more use: its next answer could be taken for that of a later command.
func (s *session) collect(ctx context.Context, out []byte, acks []*ack) error {
	defer s.giveUp(acks)
	if err := s.send(ctx, out); err != nil {
		return err
	}
	limit, cancel := context.WithTimeoutCause(ctx, s.o.Reply, errSlow)
	defer cancel()
	err := s.answered(limit, acks)
	if err = slow(ctx, limit, err, "the server does not acknowledge "+s.missing(acks)); errors.Is(err, errSlow) {
		s.end(err)
	}
	return err
}

// answered waits until every one of acks has its answer, and gives the first
// that says no.
func (s *session) answered(ctx context.Context, acks []*ack) error {
	return s.await(ctx, func() (bool, error) {
		for _, a := range acks {
			if !a.done || a.err != nil {
				return false, a.err
			}
		}
		return true, nil
	})
}

// missing names the first of acks without an answer.
func (s *session) missing(acks []*ack) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range acks {
		if !a.done {
			return fmt.Sprintf("%s %v", cpName(a.code), a.value)
		}
	}
	return ""
}

// giveUp says that nobody waits for acks any more.
func (s *session) giveUp(acks []*ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range acks {
		a.given = true
	}
}

func (s *session) setBaud(ctx context.Context, baud int) error {
	s.mu.Lock()
	wait := time.Until(s.idle)
	s.mu.Unlock()
	if wait > 0 {
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	if err := s.request(ctx, baudRequest(baud)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.baud = baud
	return nil
}

// close ends the connection and waits for its goroutines.
func (s *session) close() {
	s.end(net.ErrClosed)
	_ = s.conn.Close()
	s.running.Wait()
}
