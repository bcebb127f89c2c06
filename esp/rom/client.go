package rom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/slip"
)

// Client talks to the loader of one chip, over a Port that it borrows. Connect
// makes one. It is not for concurrent use.
//
// Every method ends within 100 ms of its context's end. After an ended context,
// a time-out or a damaged answer the next command first finds the loader's
// framing again (see Resync). ErrUnplugged is never retried.
type Client struct {
	port  Port
	reset Resetter
	opts  Options

	dec   *slip.Decoder
	buf   []byte
	queue []slip.Item // decoded and not looked at yet
	last  time.Time   // when the last bytes came

	boot     []byte
	baud     int
	model    chip.Model
	detected bool
	secure   bool
	stub     bool // a flasher stub runs in place of the ROM's loader
	lost     bool // it is not known where the loader is in its conversation
	settle   bool // more of an error's answers may be on the way
	noise    int
}

// Options change how a client works. The zero value is usable.
type Options struct {
	Attempts int              // connect attempts; 0 is 7
	Trace    func(TraceEvent) // called for every frame, from the client's goroutine
}

// How long the line must be silent to be taken for idle. USB adapters hand bytes
// over every 16 ms; a network adds its own time.
const (
	quietTime        = 50 * time.Millisecond
	settleTime       = 20 * time.Millisecond
	networkAddition  = 300 * time.Millisecond
	stallTime        = 500 * time.Millisecond // inside a frame
	damagedGrace     = 200 * time.Millisecond // for the true answer, after a damaged frame
	maxStrangeFrames = 100                    // frames that answer nothing (esp-facts A.1)
	textIsDamage     = 4                      // bytes outside frames that must have been an answer
)

// slack is what a network port may take longer.
func (c *Client) slack(d time.Duration) time.Duration {
	if c.port.Info().Network {
		return d + networkAddition
	}
	return d
}

// Baud is the rate in use.
func (c *Client) Baud() int { return c.baud }

// BootText is what the chip printed between reset and connect.
func (c *Client) BootText() []byte { return bytes.Clone(c.boot) }

// Noise counts the damaged, missing and repeated exchanges so far. 0 is a clean line.
func (c *Client) Noise() int { return c.noise }

// Model is the chip that Detect found; false before that.
func (c *Client) Model() (chip.Model, bool) { return c.model, c.detected }

// SecureDownload reports whether the chip is in Secure Download Mode: as Detect
// or SecurityInfo found it, before that as the boot text says.
func (c *Client) SecureDownload() bool { return c.secure }

// HardReset runs the chip from flash. The client has no loader to talk to
// afterwards: read the boot log with ReadText, or connect again.
//
// Over the chip's own USB-OTG no line reaches its reset: there the watchdog does it,
// where the chip has one that can and registers can be written.
func (c *Client) HardReset(ctx context.Context) error {
	if c.port.Info().USBOTG && c.detected && !c.secure {
		if err := c.writeAll(ctx, "before the reset", c.model.BeforeRun()); err != nil {
			return err
		}
		if len(c.model.WatchdogReset()) > 0 {
			return c.WatchdogReset(ctx)
		}
	}
	c.lost = true
	return c.reset.Run(ctx, c.port)
}

// WatchdogReset lets the chip's watchdog reset it, which frees a chip on its own USB
// whose download strap is held low: a core reset does not look at the strap again
// (esp-facts A.8, A.9). ESP32, C6 and H2 have none that can. Not in Secure Download
// Mode.
func (c *Client) WatchdogReset(ctx context.Context) error {
	if !c.detected {
		return ErrNotDetected
	}
	writes := c.model.WatchdogReset()
	switch {
	case len(writes) == 0:
		return fmt.Errorf("the %s has no watchdog that resets it from the loader: power-cycle the board", c.model.Title)
	case c.secure:
		return fmt.Errorf("reset by the watchdog: %w: power-cycle the board", ErrSecureDownload)
	}
	if err := c.writeAll(ctx, "reset by the watchdog", writes); err != nil {
		return err
	}
	c.lost = true
	if err := sleep(ctx, watchdogTime); err != nil {
		return err
	}
	if !c.port.Info().USBOTG && !c.port.Info().USBSerial {
		return nil
	}
	if err := c.port.Discard(ctx); err != nil { // a device that left the bus shows here
		return reenumerate(ctx, c.port, err)
	}
	return nil
}

// watchdogTime is when a reset by the watchdog has happened (esp-facts A.9).
const watchdogTime = 500 * time.Millisecond

// writeAll does a model's register writes, one after the other. They do no harm
// twice.
func (c *Client) writeAll(ctx context.Context, what string, writes []chip.RegWrite) error {
	for _, w := range writes {
		g := RegWrite{Addr: w.Addr, Value: w.Value, Mask: w.Mask, Delay: w.Before}
		if _, err := retry(ctx, c, WriteReg{Groups: []RegWrite{g}}); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// errQuiet: nothing came until the given time. It never leaves the package.
var errQuiet = errors.New("line quiet")

// next returns the next thing that was received, or errQuiet at until. A frame
// that stops in the middle comes as damaged.
func (c *Client) next(ctx context.Context, until time.Time) (slip.Item, error) {
	for len(c.queue) == 0 {
		limit, stall := until, false
		if c.dec.Open() {
			if s := c.last.Add(stallTime); s.Before(limit) {
				limit, stall = s, true
			}
		}
		n, err := c.read(ctx, limit)
		if n > 0 {
			c.last = time.Now()
			c.queue = c.dec.Feed(c.buf[:n])
		}
		switch {
		case len(c.queue) > 0:
		case errors.Is(err, errQuiet) && stall:
			c.queue = []slip.Item{{Kind: slip.Damaged, Data: c.dec.Flush()}}
		case err != nil:
			return slip.Item{}, err
		}
	}
	it := c.queue[0]
	c.queue = c.queue[1:]
	return it, nil
}

// read fills c.buf until a time. The end of ctx is ctx's error, the end of the
// time errQuiet.
func (c *Client) read(ctx context.Context, until time.Time) (int, error) {
	rctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	n, err := c.port.Read(rctx, c.buf)
	return n, limitError(ctx, rctx, err, errQuiet)
}

// limitError tells apart whose end stopped a port call: the caller's context, or
// the limit that this package set.
func limitError(ctx, limited context.Context, err, limit error) error {
	switch {
	case err == nil || errors.Is(err, ErrUnplugged):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return limit
	default:
		return err
	}
}

// write sends an encoded frame.
func (c *Client) write(ctx context.Context, p []byte) error {
	wctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := c.port.Write(wctx, p)
	return limitError(ctx, wctx, err, fmt.Errorf("%w: the port did not take the request in %v", ErrTimeout, writeTimeout))
}

// drain drops what comes until the line is quiet, at most for a second.
func (c *Client) drain(ctx context.Context, quiet time.Duration) error {
	quiet = c.slack(quiet)
	stop := time.Now().Add(time.Second)
	for {
		until := time.Now().Add(quiet)
		if until.After(stop) {
			until = stop
		}
		_, err := c.read(ctx, until)
		if errors.Is(err, errQuiet) {
			c.queue = nil
			c.dec.Flush()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sleep waits, unless the context ends.
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

// exchange sends a request and waits for its reply. The reply's header is
// returned together with its data, the status taken off.
func (c *Client) exchange(ctx context.Context, req request) (reply, []byte, error) {
	switch {
	case c.lost:
		if err := c.Resync(ctx); err != nil {
			return reply{}, nil, fmt.Errorf("%s: %w", req.op, err)
		}
	case c.settle:
		if err := c.drain(ctx, settleTime); err != nil {
			return reply{}, nil, fmt.Errorf("%s: %w", req.op, err)
		}
	}
	c.settle = false
	// The loader speaks when it is asked: these answer nothing. But what stands
	// there may be the beginning of a reset's banner.
	var text []byte
	for _, it := range c.queue {
		if it.Kind == slip.Text {
			text = append(text, it.Data...)
		}
	}
	c.queue = nil

	r, data, err := c.transact(ctx, req, text)
	switch {
	case err == nil:
		return r, data, nil
	case isStatus(err):
		c.settle = true
		c.trace(Received, req.op.String(), err.Error(), headerSize+len(r.body))
	default:
		c.lost = true
		if errors.Is(err, ErrNoise) || errors.Is(err, ErrTimeout) {
			c.noise++
		}
		c.note(0, "%v", err)
	}
	return r, nil, err
}

// transact sends and waits. text is what came since the last answer.
func (c *Client) transact(ctx context.Context, req request, text []byte) (reply, []byte, error) {
	if resetText(text) {
		return reply{}, nil, fmt.Errorf("%s: %w: check the supply, then connect again", req.op, ErrChipReset)
	}
	p := packet(req.op, req.data, req.sum)
	c.trace(Sent, req.op.String(), req.summary, len(p))
	if err := c.write(ctx, slip.Encode(p)); err != nil {
		return reply{}, nil, fmt.Errorf("%s: %w", req.op, err)
	}
	until := time.Now().Add(c.slack(req.timeout))
	var damage error // why until was brought forward
	damaged := func(err error) {
		if damage == nil {
			damage = err
			if t := time.Now().Add(c.slack(damagedGrace)); t.Before(until) {
				until = t
			}
		}
	}
	for range maxStrangeFrames {
		it, err := c.next(ctx, until)
		switch {
		case errors.Is(err, errQuiet) && damage != nil:
			return reply{}, nil, fmt.Errorf("%s: %w", req.op, damage)
		case errors.Is(err, errQuiet):
			return reply{}, nil, fmt.Errorf("%s: %w in %v: check cable and supply, then connect again", req.op, ErrTimeout, req.timeout)
		case err != nil:
			return reply{}, nil, fmt.Errorf("%s: %w", req.op, err)
		}
		if it.Kind != slip.Frame {
			c.note(len(it.Data), "bytes that are no frame")
			if text = append(text, it.Data...); resetText(text) {
				return reply{}, nil, fmt.Errorf("%s: %w: check the supply, then connect again", req.op, ErrChipReset)
			}
			if len(text) > maxText {
				return reply{}, nil, fmt.Errorf("%s: %w: something else than the loader is talking: connect again", req.op, ErrNoise)
			}
			if it.Kind == slip.Damaged || len(text) >= textIsDamage {
				damaged(fmt.Errorf("%w: a damaged answer", ErrNoise))
			}
			continue
		}
		r, err := parseReply(it.Data)
		switch {
		case err != nil:
			c.note(len(it.Data), "a damaged frame")
			damaged(err)
		case r.op == req.op:
			data, err := r.split(req.op, c.statusSize(), req.lengths)
			return r, data, err
		case r.refusal():
			// Under another opcode's number, and up to eight times when that
			// is SYNC's (esp-facts A.1).
			c.settle = true
			err := c.drain(ctx, quietTime)
			if err != nil {
				return r, nil, fmt.Errorf("%s: %w", req.op, err)
			}
			return r, nil, &StatusError{Op: req.op, Status: statusFailed, Code: CodeFormat}
		default:
			c.note(len(it.Data), "a late answer to %s", r.op)
		}
	}
	return reply{}, nil, fmt.Errorf("%s: %w: %d frames that answer nothing", req.op, ErrNoise, maxStrangeFrames)
}

// resetText reports whether the text holds what a ROM prints after a reset.
func resetText(text []byte) bool {
	return bytes.Contains(text, []byte("rst:0x")) && bytes.Contains(text, []byte("boot:0x"))
}

// SYNC's timing (esp-facts A.7).
const (
	syncTimeout = 100 * time.Millisecond
	syncPause   = 50 * time.Millisecond
	syncReplies = 8
	syncsEach   = 5  // per connect attempt
	resyncs     = 12 // per Resync
)

// syncResult is what came after a SYNC.
type syncResult struct {
	good     []reply
	strange  int // frames that are no answer to SYNC, or damaged
	received int // bytes in frames
}

// sync sends a SYNC and collects its answers: until eight came or the line was
// quiet. prefix goes before the frame. What is no answer goes to other.
func (c *Client) sync(ctx context.Context, prefix []byte, wait time.Duration, other func(slip.Item)) (syncResult, error) {
	var res syncResult
	p := packet(OpSync, syncData(), 0)
	c.trace(Sent, OpSync.String(), "", len(p))
	if err := c.write(ctx, slip.Append(prefix, p)); err != nil {
		return res, fmt.Errorf("%s: %w", OpSync, err)
	}
	until := time.Now().Add(c.slack(wait))
	for len(res.good)+res.strange < syncReplies {
		it, err := c.next(ctx, until)
		if errors.Is(err, errQuiet) {
			break
		}
		if err != nil {
			return res, fmt.Errorf("%s: %w", OpSync, err)
		}
		if it.Kind == slip.Text {
			other(it)
			continue
		}
		r, err := parseReply(it.Data)
		if it.Kind != slip.Frame || err != nil || r.op != OpSync || len(r.body) != c.statusSize() || r.body[0] != 0 {
			// Perhaps an answer that noise has hit, perhaps boot text after
			// a stray delimiter.
			other(it)
			res.strange++
			continue
		}
		res.good = append(res.good, r)
		res.received += len(slip.Encode(it.Data))
		until = time.Now().Add(c.slack(quietTime))
	}
	if n := len(res.good); n > 0 {
		c.trace(Received, OpSync.String(), fmt.Sprintf("%d answers", n), headerSize+c.statusSize())
	}
	return res, nil
}

// Resync finds the loader again after noise, a time-out or an ended context:
// when it answers a SYNC, everything before is answered or void. Commands do so
// by themselves where it is needed.
func (c *Client) Resync(ctx context.Context) error {
	c.note(0, "looking for the loader's framing")
	for n := range resyncs {
		if err := c.drain(ctx, settleTime); err != nil {
			return err
		}
		// A loader that lost a delimiter takes ends for starts. One more
		// delimiter puts that right, and a loader that counts right ignores
		// it, or loses this SYNC and answers the next.
		var prefix []byte
		if n%2 == 1 {
			prefix = []byte{slip.End}
		}
		wait := min(syncTimeout*time.Duration(n+1), 4*syncTimeout)
		res, err := c.sync(ctx, prefix, wait, func(slip.Item) {})
		if err != nil {
			return err
		}
		if len(res.good) > 0 {
			if err := c.drain(ctx, settleTime); err != nil {
				return err
			}
			c.lost, c.settle = false, false
			return nil
		}
	}
	return fmt.Errorf("%w: no answer to %d SYNCs: connect again", ErrLost, resyncs)
}

// exchangeReads is how many register reads go with each SYNC of ExchangeTest.
const exchangeReads = 8

// ExchangeTest exchanges at least n bytes with the loader, both directions
// counted, and looks at every one of them: SYNCs, whose eight answers must be the
// same, and outside Secure Download Mode reads of the MAC's register, which does
// not change. What nobody looks at is sent and not counted: a SYNC request, whose
// pattern the ROM may not compare, the checksum field of the others, and the
// leftovers behind a reply's verdict. It repeats nothing: the first deviation is
// ErrNoise.
func (c *Client) ExchangeTest(ctx context.Context, n int) error {
	if c.lost {
		if err := c.Resync(ctx); err != nil {
			return err
		}
	}
	if err := c.drain(ctx, settleTime); err != nil {
		return err
	}
	c.settle = false
	done := 0
	err := c.exchangeRounds(ctx, n, &done)
	if err != nil {
		c.lost = true
	}
	if errors.Is(err, ErrNoise) {
		c.noise++
		return fmt.Errorf("exchange test at %d baud, after %d of %d bytes: %w: use a shorter cable, a lower baud rate or another adapter", c.baud, done, n, err)
	}
	return err
}

func (c *Client) exchangeRounds(ctx context.Context, n int, done *int) error {
	ignored := 4 + c.statusSize() - 1 // a request's checksum field, a reply's leftovers
	var firstValue *uint32
	for *done < n {
		extra := 0
		res, err := c.sync(ctx, nil, defaultTimeout, func(it slip.Item) { extra += len(it.Data) })
		if err != nil {
			return err
		}
		if len(res.good) != syncReplies || res.strange != 0 || extra != 0 {
			return fmt.Errorf("%w: %d of %d answers to SYNC", ErrNoise, len(res.good), syncReplies)
		}
		for _, r := range res.good {
			if !bytes.Equal(r.encode(), res.good[0].encode()) {
				return fmt.Errorf("%w: answers to SYNC that differ", ErrNoise)
			}
		}
		*done += res.received
		if c.secure || !c.detected {
			continue
		}
		for range exchangeReads {
			a, err := Do(ctx, c, ReadReg{Addr: c.macRegister()})
			switch {
			case err != nil && mayBeNoise(err):
				return fmt.Errorf("%w: %w", ErrNoise, err)
			case err != nil:
				return err
			case firstValue == nil:
				firstValue = &a.Value
			case *firstValue != a.Value:
				return fmt.Errorf("%w: a register that reads differently", ErrNoise)
			}
			*done += len(slip.Encode(packet(OpReadReg, words(c.macRegister()), 0)))
			*done += len(slip.Encode(reply{op: OpReadReg, value: a.Value, body: make([]byte, c.statusSize())}.encode()))
			*done -= ignored
		}
	}
	return nil
}

// macRegister is the first word of the factory MAC (esp-facts B.2, B.8): it never
// changes and is no secret.
func (c *Client) macRegister() uint32 { return c.model.EFuse.Base + c.model.EFuse.MACOff }
