package espsim

import (
	"context"
	"time"
)

// Sizes of the host's receive buffer.
const (
	hostBuffer = 64 << 10 // more is lost
	loopBuffer = 4 << 10  // a boot loop stops printing above this
)

// outByte is a byte on its way to the host.
type outByte struct {
	b     byte
	ready time.Time // with Pace: when its stop bit is over
}

// lineError says why the line cannot be used. c.mu is held.
func (c *Chip) lineError() error {
	switch {
	case c.closed:
		return ErrClosed
	case !c.open:
		return ErrUnplugged
	}
	return nil
}

func (c *Chip) wakeReaders() {
	close(c.wake)
	c.wake = make(chan struct{})
}

// Read waits for at least one byte from the chip.
func (c *Chip) Read(ctx context.Context, p []byte) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, wait, wake, err := c.take(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if err := sleep(ctx, wait, wake); err != nil {
			return 0, err
		}
	}
}

// take gives what is there. If nothing is, it says how long the next byte takes,
// 0 if none is on its way, and which channel announces new ones.
func (c *Chip) take(p []byte) (n int, wait time.Duration, wake <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.lineError(); err != nil {
		return 0, 0, nil, err
	}
	now := time.Now()
	if wait := c.batch(len(p)).Sub(now); wait > 0 {
		c.armLoop()
		return 0, wait, c.wake, nil
	}
	for n < len(p) && n < len(c.out) && !c.out[n].ready.After(now) {
		p[n] = c.out[n].b
		n++
	}
	c.out = c.out[n:]
	c.armLoop()
	return n, 0, c.wake, nil
}

// batchTime is how long the adapter collects bytes before it hands them on, as those
// on USB do (FTDI's latency timer at its shortest).
const batchTime = time.Millisecond

// batch is when the adapter hands on what is on its way, up to n bytes.
func (c *Chip) batch(n int) time.Time {
	n = min(n, len(c.out))
	if n == 0 {
		return time.Time{}
	}
	last := c.out[0].ready.Add(batchTime)
	for n > 1 && c.out[n-1].ready.After(last) {
		n--
	}
	return c.out[n-1].ready
}

// sleep waits for wake, for d if d is not 0, or for the context.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-over:
	}
	return nil
}

// A paced Write moves so many bytes at once: what the line carries in paceTime, and
// paceChunk at least. Many boards at once then cost few wake-ups.
const (
	paceChunk = 16
	paceTime  = 2 * time.Millisecond
)

// Write sends p to the chip, which acts on it before Write returns.
func (c *Chip) Write(ctx context.Context, p []byte) (n int, err error) {
	began := time.Now()
	for n < len(p) {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		chunk := p[n:]
		if c.opt.Pace {
			byteTime := c.lineTime(1)
			chunk = chunk[:min(len(chunk), max(paceChunk, int(paceTime/byteTime)))]
			// By the time since the first byte: a sleep that lasted too long must not make
			// the line slower.
			if err := c.pace(ctx, began.Add(time.Duration(n+len(chunk))*byteTime)); err != nil {
				return n, err
			}
		}
		m, err := c.put(chunk)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// pace waits until the stop bit of a chunk's last byte.
func (c *Chip) pace(ctx context.Context, end time.Time) error {
	if d := time.Until(end); d > 0 {
		return sleep(ctx, d, nil)
	}
	return ctx.Err()
}

func (c *Chip) lineTime(n int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uartTime(n, c.hostRate())
}

// uartTime is what n bytes take: a start bit, eight data bits, a stop bit.
func uartTime(n, baud int) time.Duration {
	return time.Duration(n) * 10 * time.Second / time.Duration(max(baud, 1))
}

func (c *Chip) hostRate() int {
	if c.hostBaud == 0 {
		return c.rate
	}
	return c.hostBaud
}

func (c *Chip) put(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range p {
		if err := c.lineError(); err != nil {
			return i, err
		}
		c.hostBytes++
		if c.faults.UnplugAtByte != 0 && c.hostBytes == c.faults.UnplugAtByte {
			c.unplug()
			return i, ErrUnplugged
		}
		c.receive(b)
	}
	return len(p), c.lineError()
}

// receive is a byte at the chip's UART.
func (c *Chip) receive(b byte) {
	if !c.loading() {
		return
	}
	if !c.ld.synced && c.hostBaud != 0 {
		c.rate = c.hostBaud // the loader measures the rate on the first SYNC
	}
	b, ok := c.damage(b)
	if !ok {
		return
	}
	if f, whole := c.ld.in.feed(b); whole {
		c.handle(f)
	}
}

// emit is the chip's transmitter.
func (c *Chip) emit(p []byte) {
	if len(p) == 0 {
		return
	}
	now := time.Now()
	if c.outFree.Before(now) {
		c.outFree = now
	}
	for _, b := range p {
		if c.opt.Pace {
			c.outFree = c.outFree.Add(uartTime(1, c.rate))
		}
		b, ok := c.damage(b)
		if !ok || !c.open || len(c.out) >= hostBuffer {
			continue
		}
		o := outByte{b: b}
		if c.opt.Pace {
			o.ready = c.outFree
		}
		c.out = append(c.out, o)
	}
	c.wakeReaders()
}

// damage passes a byte over the line, either way. Two ends at different rates
// read garbage; apart from that there are the faults.
func (c *Chip) damage(b byte) (byte, bool) {
	if !c.opt.USBSerial && !sameRate(c.hostRate(), c.rate) {
		b ^= byte(1 + c.junk.IntN(255))
	}
	if c.faults.Noise == 0 && c.faults.Drop == 0 || !c.inWindow() {
		return b, true
	}
	if c.noise.Float64() < c.faults.Drop {
		return 0, false
	}
	if c.noise.Float64() < c.faults.Noise {
		b ^= byte(1 + c.noise.IntN(255))
	}
	return b, true
}

// sameRate is what a UART tolerates: about three per cent.
func sameRate(a, b int) bool {
	d := a - b
	return 33*max(d, -d) <= max(a, b)
}

// inWindow reports whether noise and loss act now.
func (c *Chip) inWindow() bool {
	switch c.faults.Window {
	case WindowFlash:
		switch c.ld.op {
		case opFlashBegin, opFlashData, opFlashEnd, opDeflBegin, opDeflData, opDeflEnd, opFlashMD5:
			return true
		}
		return false
	case WindowBurn:
		return c.ld.burning
	}
	return true
}

// Discard drops what came from the chip and was not read yet.
func (c *Chip) Discard(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.lineError(); err != nil {
		return err
	}
	c.out = nil
	c.armLoop()
	return nil
}

// SetBaud changes the host's rate; 0 follows the chip's, as a raw TCP server
// does that was not told.
func (c *Chip) SetBaud(_ context.Context, baud int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.lineError(); err != nil {
		return err
	}
	c.hostBaud = max(baud, 0)
	return nil
}

// Reopen opens the port again, which it needs after it was unplugged.
func (c *Chip) Reopen(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return ErrClosed
	case !c.plugged:
		return ErrUnplugged
	}
	c.open = true
	c.out = nil
	return nil
}
