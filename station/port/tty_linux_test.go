package port_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/station/port"
)

// hold is the other process's part of the lock tests.
func hold(ctx context.Context, how, name string) error {
	if how == "open" {
		_, err := port.Open(ctx, name, port.Options{})
		return err
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if how == "excl" {
		return unix.IoctlSetInt(fd, unix.TIOCEXCL, 0)
	}
	return unix.Flock(fd, unix.LOCK_EX)
}

// holder starts another process that holds a tty; kill ends it the hard way.
func holder(t *testing.T, how, name string) (pid int, kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], name)
	cmd.Env = append(os.Environ(), helperEnv+"="+how)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // it lives until this closes
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	kill = func() {
		if !done {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // says that it was killed
			done = true
		}
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd.Process.Pid, kill
}

func TestLockBetweenProcesses(t *testing.T) {
	for _, how := range []string{"open", "excl", "flock"} {
		t.Run(how, func(t *testing.T) {
			_, name := newPTY(t)
			pid, kill := holder(t, how, name)
			_, err := port.Open(t.Context(), name, port.Options{})
			if !errors.Is(err, port.ErrBusy) {
				t.Fatalf("Open gave %v", err)
			}
			if who := fmt.Sprintf("(process %d)", pid); !strings.Contains(err.Error(), who) {
				t.Errorf("the error does not say %q: %v", who, err)
			}
			kill()
			if os.Getuid() != 0 && how != "flock" {
				return // the PTY keeps TIOCEXCL, which only root can pass
			}
			open(t, name, port.Options{})
		})
	}
}

func TestLockOfOthers(t *testing.T) {
	_, name := newPTY(t)
	open(t, name, port.Options{})
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return // TIOCEXCL keeps everybody but root out
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("flock gave %v", err)
	}
	if excl, err := unix.IoctlGetInt(fd, unix.TIOCGEXCL); err != nil || excl == 0 {
		t.Errorf("TIOCGEXCL gives %d, %v", excl, err)
	}
}

func TestLockInProcess(t *testing.T) {
	_, name := newPTY(t)
	link := filepath.Join(t.TempDir(), "by-path")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	p := open(t, name, port.Options{})
	for _, again := range []string{name, link} {
		_, err := port.Open(t.Context(), again, port.Options{})
		if !errors.Is(err, port.ErrBusy) || !strings.Contains(err.Error(), "this process as "+name) {
			t.Errorf("Open(%s) gave %v", again, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, link, port.Options{})
}

// termios is the line's setting as the PTY's other side sees it.
func termios(t *testing.T, master io.ReadWriteCloser) *unix.Termios {
	t.Helper()
	raw, err := master.(*os.File).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var tio *unix.Termios
	if cerr := raw.Control(func(fd uintptr) { tio, err = unix.IoctlGetTermios(int(fd), unix.TCGETS2) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return tio
}

func TestTTYSettings(t *testing.T) {
	master, name := newPTY(t)
	p := open(t, name, port.Options{Baud: 921600})
	// 74880 has no constant of its own, and 115200 after it has.
	for _, baud := range []int{921600, 74880, 115200, 1_000_000} {
		if baud != 921600 {
			if err := p.SetBaud(t.Context(), baud); err != nil {
				t.Fatal(err)
			}
		}
		tio := termios(t, master)
		if int(tio.Ospeed) != baud || int(tio.Ispeed) != baud {
			t.Errorf("the other side is at %d/%d baud, want %d", tio.Ospeed, tio.Ispeed, baud)
		}
		if got := tio.Cflag & (unix.CSIZE | unix.PARENB | unix.CSTOPB | unix.CRTSCTS); got != unix.CS8 {
			t.Errorf("at %d baud it is not 8N1 without flow control: %#x", baud, got)
		}
	}
}

func TestTTYReopen(t *testing.T) {
	first, firstName := newPTY(t)
	link := filepath.Join(t.TempDir(), "by-path")
	if err := os.Symlink(firstName, link); err != nil {
		t.Fatal(err)
	}
	p := open(t, link, port.Options{})
	if err := p.SetBaud(t.Context(), 460800); err != nil {
		t.Fatal(err)
	}
	if err := p.Reopen(t.Context()); err != nil {
		t.Fatalf("Reopen of a device that stayed: %v", err)
	}
	if got := termios(t, first).Ospeed; got != 460800 {
		t.Errorf("Reopen changed the rate to %d", got)
	}

	// The device leaves the bus, and comes back as another one.
	_ = first.Close()
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	reopened := make(chan error, 1)
	go func() { reopened <- p.Reopen(t.Context()) }()
	second, secondName := newPTY(t)
	if err := os.Symlink(secondName, link); err != nil {
		t.Fatal(err)
	}
	if err := <-reopened; err != nil {
		t.Fatal(err)
	}
	if _, err := second.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := readFull(t.Context(), p, 1); err != nil {
		t.Error(err)
	}
	if got := p.Info().Name; got != link {
		t.Errorf("its name is now %q", got)
	}
}

func TestTTYReopenInVain(t *testing.T) {
	master, name := newPTY(t)
	p := open(t, name, port.Options{Return: 30 * time.Millisecond})
	_ = master.Close()
	if err := p.Reopen(t.Context()); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Reopen gave %v", err)
	}
	if err := calls["Write"](t.Context(), p); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("after it, Write gave %v", err)
	}
}

func TestTTYReopenEnds(t *testing.T) {
	master, name := newPTY(t)
	p := open(t, name, port.Options{Return: time.Hour})
	_ = master.Close()
	fastest(t, 100*time.Millisecond, func() time.Duration { return lateBy(t, p.Reopen) })
}

func TestUSBSerial(t *testing.T) {
	_, name := newPTY(t)
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	node := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, c := range []struct {
		vendor, product string
		want, otg       bool
	}{
		{"303a", "1001", true, false},
		{"303a", "0002", false, true}, // USB-OTG of an S2
		{"303a", "0009", false, true}, // of an S3
		{"303a", "0012", false, true}, // of a P4
		{"303a", "0005", false, false},
		{"10c4", "0002", false, false},
		{"10c4", "ea60", false, false},
		{"", "", false, false},
	} {
		sys := t.TempDir()
		usb := filepath.Join(sys, "devices/pci0000:00/usb1/1-1/1-1.2")
		tty := filepath.Join(usb, "1-1.2:1.0/tty/ttyACM0")
		for _, dir := range []string{tty, filepath.Join(sys, "dev/char")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if c.vendor != "" {
			writeFile(t, filepath.Join(usb, "idVendor"), c.vendor+"\n")
			writeFile(t, filepath.Join(usb, "idProduct"), c.product+"\n")
		}
		// The hub above it is a USB device too.
		writeFile(t, filepath.Join(filepath.Dir(usb), "idVendor"), "303a\n")
		writeFile(t, filepath.Join(filepath.Dir(usb), "idProduct"), "1001\n")
		if c.vendor == "" {
			writeFile(t, filepath.Join(filepath.Dir(usb), "idProduct"), "1002\n")
		}
		if err := os.Symlink("../../devices/pci0000:00/usb1/1-1/1-1.2/1-1.2:1.0/tty/ttyACM0", filepath.Join(sys, "dev/char", node)); err != nil {
			t.Fatal(err)
		}
		p := open(t, name, port.Options{Sys: sys})
		if got := p.Info().USBSerial; got != c.want {
			t.Errorf("%s:%s: USBSerial is %v", c.vendor, c.product, got)
		}
		if got := p.Info().USBOTG; got != c.otg {
			t.Errorf("%s:%s: USBOTG is %v", c.vendor, c.product, got)
		}
		_ = p.Close()
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTTYErrors(t *testing.T) {
	dev := t.TempDir()
	for _, f := range []string{"ttyUSB0", "ttyACM3"} {
		writeFile(t, filepath.Join(dev, f), "")
	}
	o := port.Options{Dev: dev}
	there := "there are " + filepath.Join(dev, "ttyUSB0") + ", " + filepath.Join(dev, "ttyACM3")
	for _, name := range []string{filepath.Join(dev, "ttyUSB1"), filepath.Join(dev, "ttyUSB0"), dev, "/dev/null"} {
		_, err := port.Open(t.Context(), name, o)
		if err == nil || !strings.Contains(err.Error(), there) {
			t.Errorf("%s: %v, want %q in it", name, err, there)
		}
	}
	if _, err := port.Open(t.Context(), filepath.Join(dev, "ttyUSB1"), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing device gave %v", err)
	}
}

func TestTTYPermission(t *testing.T) {
	_, name := newPTY(t)
	if err := os.Chmod(name, 0); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// Only this thread opens as somebody else. Without a context's end Open
		// stays on it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := unix.SetfsuidRetUid(0); err != nil {
				t.Error(err)
			}
		}()
	}
	_, err := port.Open(context.Background(), name, port.Options{})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "dialout") {
		t.Errorf("Open gave %v", err)
	}
}
