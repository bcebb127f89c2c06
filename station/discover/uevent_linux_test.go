package discover

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The real socket: it opens without privilege, says nothing when nothing
// happens, and ends with its context. Where even opening is forbidden, Watch
// must poll and say so.
func TestNetlink(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	src, err := openUevents()
	w := Watch(ctx, newTree(t).roots, Options{})
	u := <-w.Updates()
	if err != nil {
		if u.Mode != Polling || u.Why == nil {
			t.Errorf("netlink gives %v, and the watcher says %s, %v", err, u.Mode, u.Why)
		}
	} else {
		if u.Mode != Uevents {
			t.Errorf("netlink can be opened, and the watcher says %s, %v", u.Mode, u.Why)
		}
		ended := make(chan error)
		go func() {
			for {
				if err := src.next(ctx); err != nil && !errors.Is(err, errOverflow) {
					ended <- err
					return
				}
			}
		}()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		src.close()
	}
	cancel()
	for range w.Updates() {
	}
}

// A real message of the kernel, where root can make it send one: writing "add"
// to a device's uevent file makes it tell about the device again.
func TestNetlinkHearsTheKernel(t *testing.T) {
	t.Parallel()
	src, err := openUevents()
	if err != nil {
		t.Logf("netlink is not allowed here (%v): TestNetlink sees the watcher poll", err)
		return
	}
	defer src.close()
	if err := os.WriteFile("/sys/class/tty/tty0/uevent", []byte("change"), 0); err != nil {
		t.Logf("the kernel cannot be asked to speak (%v)", err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := src.next(ctx); err != nil {
		t.Errorf("did not hear the kernel: %v", err)
	}
}

// More messages than the socket can keep are told as that, once, and what comes
// later is heard again.
func TestNetlinkOverflow(t *testing.T) {
	t.Parallel()
	src, err := openUevents()
	if err != nil {
		t.Logf("netlink is not allowed here: %v", err)
		return
	}
	defer src.close()
	u, ok := src.(*uevents)
	if !ok {
		t.Fatalf("%T", src)
	}
	if err := u.c.SetReadBuffer(1); err != nil { // the kernel makes it its least
		t.Fatal(err)
	}
	for range 64 {
		if err := os.WriteFile("/sys/class/tty/tty0/uevent", []byte("change"), 0); err != nil {
			t.Logf("the kernel cannot be asked to speak: %v", err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for {
		err := src.next(ctx)
		if errors.Is(err, errOverflow) {
			break
		}
		if err != nil {
			t.Fatalf("no overflow was told: %v", err)
		}
	}
	if err := os.WriteFile("/sys/class/tty/tty0/uevent", []byte("change"), 0); err != nil {
		t.Fatal(err)
	}
	if err := src.next(ctx); err != nil && !errors.Is(err, errOverflow) {
		t.Errorf("deaf after an overflow: %v", err)
	}
}

func TestFromKernel(t *testing.T) {
	t.Parallel()
	cred := func(pid int32, uid uint32) []byte { return unix.UnixCredentials(&unix.Ucred{Pid: pid, Uid: uid}) }
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}
	for _, c := range []struct {
		name string
		from unix.Sockaddr
		oob  []byte
		want bool
	}{
		{"the kernel", kernel, cred(0, 0), true},
		{"a process", &unix.SockaddrNetlink{Pid: 77, Groups: kernelGroup}, cred(77, 0), false},
		{"a process that says it is the kernel", kernel, cred(77, 0), false},
		{"another user", kernel, cred(0, 1000), false},
		{"udevd's group", &unix.SockaddrNetlink{Groups: 2}, cred(0, 0), false},
		{"to us alone", &unix.SockaddrNetlink{}, cred(0, 0), false},
		{"nobody vouches", kernel, nil, false},
		{"half a credential", kernel, cred(0, 0)[:20], false},
		{"another family", &unix.SockaddrUnix{}, cred(0, 0), false},
		{"no sender", nil, cred(0, 0), false},
	} {
		if got := fromKernel(c.from, c.oob); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Another process's message is not believed, also over the real socket.
func TestNetlinkForgery(t *testing.T) {
	t.Parallel()
	src, err := openUevents()
	if err != nil {
		t.Logf("netlink is not allowed here: %v", err)
		return
	}
	defer src.close()
	u, ok := src.(*uevents)
	if !ok {
		t.Fatalf("%T", src)
	}
	name, err := u.c.Getsockname()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, []byte(uevents64[0]), 0, name); err != nil {
		t.Logf("the kernel does not carry a forged message at all: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for {
		// The kernel itself may speak meanwhile; that is no forgery. It is told
		// apart by looking at the queue ourselves.
		n, oobn, _, from, err := u.c.Recvmsg(ctx, u.buf[:], u.oob[:], 0)
		if err != nil {
			t.Fatalf("the forged message did not arrive, so nothing was tested: %v", err)
		}
		if string(u.buf[:n]) == uevents64[0] {
			if fromKernel(from, u.oob[:oobn]) {
				t.Error("a forged message is believed")
			}
			return
		}
	}
}
