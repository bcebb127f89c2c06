//go:build linux && !ppc && !ppc64 && !ppc64le

package serve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// PTY serves a pseudo terminal, and keeps a symbolic link to it at link. When the
// link is there, the terminal is ready. A link of an earlier run is replaced,
// anything else at that path is refused.
//
// Clients may close and open the terminal as often as they like. Each finds it
// raw and at 115200 baud; what the board prints in between is lost, and so is
// what the last client left unread. The adapter follows the terminal's baud rate:
// it is looked at before the client's bytes are passed on, before the board's
// are, and every 5 ms. A pseudo terminal has no modem lines. While the board is
// unplugged there is neither terminal nor link.
func PTY(ctx context.Context, h Host, link string) error {
	if link == "" {
		return errors.New("a pseudo terminal needs a path for its link: name one")
	}
	ctx, cancel := context.WithCancel(ctx)
	l := newLine(h)
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(ctx) })
	defer wg.Wait()
	defer cancel()
	for l.waitUp(ctx) {
		if err := serveTerminal(ctx, l, link); err != nil {
			return err
		}
	}
	return nil
}

// terminal is one pseudo terminal. Nobody but a client holds its slave open, so
// that a hang-up on the master says that there is no client.
type terminal struct {
	h      Host
	master *os.File
	name   string // the slave's path

	mu   sync.Mutex
	baud int // the adapter's

	showing sync.Mutex  // keeps output away while a client's remains are dropped
	used    atomic.Bool // a client has done something since the last tidy
}

// bufferPatience is how long a client's full buffer may hold the output up.
const bufferPatience = 200 * time.Millisecond

// serveTerminal serves until the context ends or the board is unplugged.
func serveTerminal(ctx context.Context, l *line, link string) error {
	t, err := openTerminal(l.h)
	if err != nil {
		return fmt.Errorf("open a pseudo terminal: %w", err)
	}
	ctx, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { <-ctx.Done(); _ = t.master.Close() })
	defer wg.Wait()
	defer end()
	if l.h.SetBaud(ctx, t.baud) != nil {
		wait(ctx, retryPause) // the pump sees it too, and waits for the board
		return nil
	}
	defer l.attach(func(p []byte) { t.show(ctx, p) }, end)()
	if err := placeLink(t.name, link); err != nil {
		return err
	}
	defer removeLink(t.name, link)
	wg.Go(func() {
		for wait(ctx, pollPause) {
			if t.followBaud(ctx) != nil {
				end()
			}
		}
	})
	t.forward(ctx)
	return nil
}

// openTerminal makes a terminal that no client has open. Its master is in the
// runtime's poller, which os.OpenFile does not do for it, so that Close ends a
// Read and deadlines work.
func openTerminal(h Host) (*terminal, error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = slave.Close()
		_ = blocking.Close()
	}()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	t := &terminal{h: h, master: os.NewFile(uintptr(fd), blocking.Name()), name: slave.Name(), baud: defaultBaud}
	if err := t.reset(); err != nil {
		_ = t.master.Close()
		return nil, err
	}
	return t, nil
}

// onMaster runs f on the master's descriptor. Settings read and written there are
// the slave's.
func (t *terminal) onMaster(f func(fd int) error) error {
	conn, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// reset makes the terminal raw and 115200 baud.
func (t *terminal) reset() error {
	return t.onMaster(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
		if err != nil {
			return err
		}
		tio.Iflag, tio.Oflag, tio.Lflag = 0, 0, 0
		tio.Cflag = tio.Cflag&^(unix.CSIZE|unix.PARENB|unix.CSTOPB|unix.CBAUD|unix.CIBAUD|unix.CRTSCTS) |
			unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
		tio.Ispeed, tio.Ospeed = defaultBaud, defaultBaud
		tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS2, tio)
	})
}

// open reports whether a client has the terminal open.
func (t *terminal) open() bool {
	hangup := true
	err := t.onMaster(func(fd int) error {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(poll, 0)
		hangup = poll[0].Revents&unix.POLLHUP != 0
		return err
	})
	return err == nil && !hangup
}

// followBaud gives the adapter the terminal's rate. It fails if the board is gone.
func (t *terminal) followBaud(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	baud := 0
	if err := t.onMaster(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
		if err == nil {
			baud = int(tio.Ospeed)
		}
		return err
	}); err != nil {
		return err
	}
	if baud == 0 || baud == t.baud { // 0 is a modem's hang-up
		return nil
	}
	if err := t.h.SetBaud(ctx, baud); err != nil {
		return err
	}
	t.baud = baud
	return nil
}

// show passes the board's output on if somebody is there. A client that does not
// read loses what its buffer cannot take, as with a real adapter.
func (t *terminal) show(ctx context.Context, p []byte) {
	t.showing.Lock()
	defer t.showing.Unlock()
	if !t.open() || t.followBaud(ctx) != nil {
		return
	}
	t.used.Store(true)
	_ = t.master.SetWriteDeadline(time.Now().Add(bufferPatience))
	_, _ = t.master.Write(p)
}

// forward passes the clients' bytes to the board until the terminal is closed or
// the board is gone.
func (t *terminal) forward(ctx context.Context) {
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		if n > 0 {
			t.used.Store(true)
			if t.followBaud(ctx) != nil {
				return
			}
			if _, err := t.h.Write(ctx, buf[:n]); err != nil {
				return
			}
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, unix.EIO): // closed
			return
		}
		for there := false; !there; there = t.open() { // no client
			if t.used.Swap(false) {
				t.tidy()
			}
			if !wait(ctx, pollPause) {
				return
			}
		}
		t.used.Store(true)
	}
}

// tidy drops what a client left unread and sets the terminal back for the next.
func (t *terminal) tidy() {
	t.showing.Lock()
	defer t.showing.Unlock()
	// Only the slave's side can drop what waits there.
	fd, err := unix.Open(t.name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
	_ = unix.Close(fd)
	_ = t.reset()
}

// placeLink puts a symbolic link in place in one step.
func placeLink(target, link string) error {
	switch info, err := os.Lstat(link); {
	case err == nil && info.Mode()&os.ModeSymlink == 0:
		return fmt.Errorf("%s is there and is no link: remove it, or name another path", link)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	temporary := filepath.Join(filepath.Dir(link), fmt.Sprintf(".%s.%d", filepath.Base(link), os.Getpid()))
	_ = os.Remove(temporary)
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, link); err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return nil
}

// removeLink removes the link unless it is another's by now.
func removeLink(target, link string) {
	if now, err := os.Readlink(link); err == nil && now == target {
		_ = os.Remove(link)
	}
}
