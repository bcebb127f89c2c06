package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/esp/rom"
)

// tty is a serial device or the slave side of a PTY.
//
// It holds two descriptors of the device. go.bug.st/serial owns one: it sets
// raw mode and the rate, drains, and claims the device with TIOCEXCL.
// The other one is ours, non-blocking and in Go's poller. Data goes through it,
// because a read of go.bug.st/serial can only be ended by a time-out, which it
// reports as (0, nil); here a context's end or a hang-up wakes it at once, and
// no thread waits per port. Both lines are set through it too, in one TIOCMSET:
// go.bug.st/serial sets one line at a time, and between its two steps the
// transistors of a board can reset the chip. TIOCEXCL stops further opens only,
// so a descriptor that was opened before it stays as good as the other, for
// root and for everybody else.
type tty struct {
	name string
	o    Options

	mu     sync.Mutex // guards what follows
	dev    *device    // nil while closed
	info   rom.PortInfo
	baud   int
	closed bool
}

// device is one opening of a tty.
type device struct {
	f     *os.File
	lines bool
	usb   bool // the chip's own USB-JTAG-Serial
	otg   bool // or its USB-OTG
	rdev  uint64

	ctl sync.Mutex // held during ioctls and closing
	s   serial.Port
}

func openTTY(ctx context.Context, path string, o Options) (Port, error) {
	t := &tty{name: path, o: o, baud: o.Baud}
	d, err := openDevice(ctx, path, o.Baud, o)
	if err != nil {
		return nil, err
	}
	t.adopt(d)
	return t, nil
}

// adopt makes d the current device; the caller holds mu or the only reference.
func (t *tty) adopt(d *device) {
	t.dev = d
	t.info = rom.PortInfo{Name: t.name, Lines: d.lines, USBSerial: d.usb, USBOTG: d.otg}
}

// openDevice opens path, and gives up when ctx ends.
func openDevice(ctx context.Context, path string, baud int, o Options) (*device, error) {
	return within(ctx,
		func() (*device, error) { return openNow(path, baud, o) },
		func(d *device, err error) {
			if err == nil {
				d.close()
			}
		})
}

// openNow opens path with both lines released. Linux asserts both at every
// opening, until the TIOCMSET a moment later; both together leave the usual
// two-transistor circuit and the USB-JTAG-Serial alone.
func openNow(path string, baud int, o Options) (_ *device, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, o.explain(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, fmt.Errorf("it is not a serial device; %s", o.present())
	}
	// Both looks at other holders come before the opening, which would already
	// move the lines of a port in use.
	if err := claim(st.Rdev, path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release(st.Rdev)
		}
	}()
	if who := o.flockHolder(st); who != "" {
		return nil, busy(who)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, busy(o.openHolder(path))
		}
		return nil, o.explain(err)
	}
	d, err := setUp(fd, path, st, baud, o)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	d.f = os.NewFile(uintptr(fd), path)
	if err := d.f.SetReadDeadline(time.Time{}); err != nil {
		_, _ = d.s.Close(), d.f.Close()
		return nil, fmt.Errorf("it cannot be waited for: %w; %s", err, o.present())
	}
	return d, nil
}

// setUp locks the device behind fd, and sets rate and lines.
func setUp(fd int, path string, st unix.Stat_t, baud int, o Options) (*device, error) {
	if err := lock(fd, path, st, o); err != nil {
		return nil, err
	}
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return nil, o.explain(err)
	}
	d := &device{rdev: st.Rdev}
	d.usb, d.otg = o.ownUSB(st.Rdev)
	mode := newMode(baud)
	if _, err := unix.IoctlGetInt(fd, unix.TIOCMGET); err == nil {
		d.lines = true
		mode.InitialStatusBits = &serial.ModemOutputBits{}
	} else if gone(err) {
		return nil, o.explain(err)
	}
	// Through /proc/self/fd it is certainly the device that was just locked,
	// even when the bus renumbers its devices at this moment.
	var err error
	if d.s, err = serial.Open("/proc/self/fd/"+strconv.Itoa(fd), mode); err != nil {
		return nil, fmt.Errorf("set 8N1 at %d baud: %w", baud, err)
	}
	return d, nil
}

func newMode(baud int) *serial.Mode {
	return &serial.Mode{BaudRate: baud, DataBits: 8, Parity: serial.NoParity, StopBits: serial.OneStopBit}
}

// lock takes the device for this process. flock is what pyserial, picocom and
// minicom respect too. TIOCEXCL keeps everybody but root out, so it is asked
// for here, where root has come past it.
func lock(fd int, path string, st unix.Stat_t, o Options) error {
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return o.explain(err)
	}
	if now.Rdev != st.Rdev {
		return fmt.Errorf("%w: another device took its place while it was opened; try again", rom.ErrUnplugged)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return busy(o.flockHolder(st))
		}
		return fmt.Errorf("lock: %w", err)
	}
	excl, err := unix.IoctlGetInt(fd, unix.TIOCGEXCL)
	if err == nil && excl != 0 {
		// A process that was killed leaves the mark on a PTY whose master lives
		// on. Root sees every holder, so a mark without one is such a leftover.
		if who := o.openHolder(path); who != "" {
			return busy(who)
		}
	}
	return nil
}

// current is the open device.
func (t *tty) current() (*device, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, errClosed
	case t.dev == nil:
		return nil, rom.ErrUnplugged // Reopen has not found it
	}
	return t.dev, nil
}

// fail gives an error of op its place and its kind.
func (t *tty) fail(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrClosed):
		// By Close, or under a Reopen of another goroutine.
		if _, now := t.current(); now != nil {
			err = now
		}
	case gone(err):
		err = fmt.Errorf("%w (%w): check the cable, plug the board in again", rom.ErrUnplugged, err)
	}
	return fmt.Errorf("%s %s: %w", op, t.name, err)
}

// gone reports whether err is how the kernel says that a device has left: EIO
// after a hang-up, end of file on read, the others while it is being removed.
func gone(err error) bool {
	for _, e := range []error{io.EOF, unix.EIO, unix.ENXIO, unix.ENODEV, unix.EBADF, unix.EPIPE, unix.ESHUTDOWN, unix.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (t *tty) Read(ctx context.Context, p []byte) (int, error) {
	d, err := t.current()
	if err != nil {
		return 0, t.fail("read", err)
	}
	n, err := untilDone(ctx, d.f.SetReadDeadline, func() (int, error) { return d.f.Read(p) })
	return n, t.fail("read", err)
}

func (t *tty) Write(ctx context.Context, p []byte) (int, error) {
	d, err := t.current()
	if err != nil {
		return 0, t.fail("write", err)
	}
	n, err := untilDone(ctx, d.f.SetWriteDeadline, func() (int, error) { return d.f.Write(p) })
	return n, t.fail("write", err)
}

func (t *tty) Discard(ctx context.Context) error {
	err := t.control(ctx, func(d *device) error {
		// TCIFLUSH would leave what the driver is just passing on.
		return d.raw(func(fd int) error {
			var buf [4096]byte
			for {
				n, err := unix.Read(fd, buf[:])
				switch {
				case errors.Is(err, unix.EINTR):
				case errors.Is(err, unix.EAGAIN):
					return nil
				case err != nil:
					return err
				case n == 0:
					return io.EOF
				}
			}
		})
	})
	return t.fail("discard", err)
}

func (t *tty) SetBaud(ctx context.Context, baud int) error {
	if err := checkBaud(baud); err != nil {
		return t.fail("set rate of", err)
	}
	if err := t.drain(ctx); err != nil {
		return t.fail("set rate of", err)
	}
	err := t.control(ctx, func(d *device) error {
		// The queue is empty; what is left is the adapter's last few bytes.
		if err := d.s.Drain(); err != nil {
			return err
		}
		if err := d.s.SetMode(newMode(baud)); err != nil {
			return err
		}
		return d.raw(func(fd int) error {
			got, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
			if err != nil {
				return err
			}
			if !within2Percent(int(got.Ospeed), baud) {
				return fmt.Errorf("the adapter gives %d baud when asked for %d: choose a rate that it has", got.Ospeed, baud)
			}
			return nil
		})
	})
	if err == nil {
		t.mu.Lock()
		t.baud = baud
		t.mu.Unlock()
	}
	return t.fail("set rate of", err)
}

// drain waits until the output queue is empty. TCSBRK alone would wait in the
// kernel, deaf to ctx, for as long as a stuck device does not take its bytes.
func (t *tty) drain(ctx context.Context) error {
	for {
		var queued int
		d, err := t.current()
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			queued, err = d.queued()
		}
		if err != nil || queued == 0 {
			return err
		}
		t.mu.Lock()
		wait := wireTime(queued, t.baud)
		t.mu.Unlock()
		if err := sleep(ctx, min(max(wait, time.Millisecond), 20*time.Millisecond)); err != nil {
			return err
		}
	}
}

func (t *tty) SetLines(ctx context.Context, dtr, rts bool) error {
	err := t.control(ctx, func(d *device) error {
		if !d.lines {
			return fmt.Errorf("%w (a PTY): reset with --reset-command, or by hand", rom.ErrNoLines)
		}
		return d.raw(func(fd int) error {
			// Read first: drivers keep bits of their own in there (OUT2 gates
			// the interrupt of a 16550).
			bits, err := unix.IoctlGetInt(fd, unix.TIOCMGET)
			if err != nil {
				return err
			}
			return unix.IoctlSetPointerInt(fd, unix.TIOCMSET, lineBits(bits, dtr, rts))
		})
	})
	return t.fail("set lines of", err)
}

// lineBits is the modem word bits with other DTR and RTS.
func lineBits(bits int, dtr, rts bool) int {
	bits &^= unix.TIOCM_DTR | unix.TIOCM_RTS
	if dtr {
		bits |= unix.TIOCM_DTR
	}
	if rts {
		bits |= unix.TIOCM_RTS
	}
	return bits
}

// control runs ioctls on the open device.
func (t *tty) control(ctx context.Context, fn func(*device) error) error {
	d, err := t.current()
	if err != nil {
		return err
	}
	_, err = within(ctx, func() (struct{}, error) {
		d.ctl.Lock()
		defer d.ctl.Unlock()
		if d.s == nil {
			return struct{}{}, fs.ErrClosed
		}
		return struct{}{}, fn(d)
	}, func(struct{}, error) {})
	return err
}

// raw lends the descriptor without taking it out of the poller.
func (d *device) raw(fn func(fd int) error) error {
	c, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Reopen keeps the rate and releases the lines.
func (t *tty) Reopen(ctx context.Context) error {
	t.mu.Lock()
	old, baud, closed := t.dev, t.baud, t.closed
	t.dev = nil
	t.mu.Unlock()
	if closed {
		return t.fail("reopen", errClosed)
	}
	if old != nil {
		_, err := within(ctx,
			func() (struct{}, error) { old.close(); return struct{}{}, nil },
			func(struct{}, error) {})
		if err != nil {
			return t.fail("reopen", err)
		}
	}
	d, err := t.await(ctx, baud)
	if err != nil {
		return t.fail("reopen", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		d.close()
		return t.fail("reopen", errClosed)
	}
	t.adopt(d)
	return nil
}

// await opens the device as soon as it is there. After a re-enumeration it
// first belongs to root only, until udev gives it its group, and a desktop's
// modem probe may hold it for a moment.
func (t *tty) await(ctx context.Context, baud int) (*device, error) {
	end := time.Now().Add(t.o.Return)
	for {
		d, err := openDevice(ctx, t.name, baud, t.o)
		if err == nil || ctx.Err() != nil {
			return d, err
		}
		waitable := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
			errors.Is(err, ErrBusy) || errors.Is(err, rom.ErrUnplugged)
		if !waitable || time.Now().After(end) {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: it did not come back within %v: %w", rom.ErrUnplugged, t.o.Return, err)
			}
			return nil, err
		}
		if err := sleep(ctx, 25*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (t *tty) Info() rom.PortInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info
}

func (t *tty) Close() error {
	t.mu.Lock()
	d := t.dev
	t.dev, t.closed = nil, true
	t.mu.Unlock()
	if d != nil {
		d.close()
	}
	return nil
}

// lastBytes is how long closing waits for the output queue.
const lastBytes = 250 * time.Millisecond

// close gives the device back. Its errors say only that the device has gone.
func (d *device) close() {
	for end := time.Now().Add(lastBytes); ; time.Sleep(time.Millisecond) {
		queued, err := d.queued()
		if err != nil || queued == 0 {
			break
		}
		if time.Now().After(end) {
			// Otherwise the kernel waits up to 30 s for a stuck device.
			_ = d.raw(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH) })
			break
		}
	}
	_ = d.f.Close() // ours first: that wakes a blocked reader or writer
	d.ctl.Lock()
	defer d.ctl.Unlock()
	if d.s != nil {
		_ = d.s.Close()
		d.s = nil
		release(d.rdev)
	}
}

// queued is how many bytes the driver has not sent yet. A PTY says 0: a byte
// written is a byte sent.
func (d *device) queued() (n int, err error) {
	err = d.raw(func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		return err
	})
	return n, err
}

// claimed are the devices that this process has open, by device number, with
// the name they were opened under. flock alone would do, but cannot say which
// name, and holds only while every path leads to the same inode.
var claimed = struct {
	sync.Mutex
	by map[uint64]string
}{by: map[uint64]string{}}

func claim(rdev uint64, name string) error {
	claimed.Lock()
	defer claimed.Unlock()
	if other, ok := claimed.by[rdev]; ok {
		return fmt.Errorf("%w by this process as %s: one slot per port", ErrBusy, other)
	}
	claimed.by[rdev] = name
	return nil
}

func release(rdev uint64) {
	claimed.Lock()
	defer claimed.Unlock()
	delete(claimed.by, rdev)
}

func busy(who string) error {
	if who == "" {
		return fmt.Errorf("%w by another program: find it with fuser, and close it", ErrBusy)
	}
	return fmt.Errorf("%w by %s: close it", ErrBusy, who)
}

// explain puts the next step to an errno of opening.
func (o Options) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; %s", err, o.present())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: add this user to group dialout (sudo usermod -aG dialout $USER) and log in again; under systemd set SupplementaryGroups=dialout and DeviceAllow", err)
	case gone(err):
		return fmt.Errorf("%w (%w): nothing answers behind this device; %s", rom.ErrUnplugged, err, o.present())
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno == unix.ENOTTY {
		return fmt.Errorf("it is not a serial device; %s", o.present())
	}
	return err
}
