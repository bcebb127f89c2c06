package discover

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// kernelGroup is the multicast group in which the kernel itself speaks. In
// group 2 udevd does.
const kernelGroup = 1

// uevents is a socket that the kernel tells about devices.
type uevents struct {
	c   *socket.Conn
	buf [maxUevent + 1]byte
	oob [128]byte
}

// openUevents needs no privilege, but can be forbidden: by systemd's
// RestrictAddressFamilies= without AF_NETLINK. In the network of a user
// namespace it opens and stays silent; the scans without a hint are for that.
func openUevents() (eventSource, error) {
	c, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT, "uevents", nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Who sent a message is told only if it is asked for before the first.
	if err = c.SetsockoptInt(unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
		err = c.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup})
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen for uevents: %w", err)
	}
	// More than the default is welcome and not needed: a loss is noticed.
	_ = c.SetReadBuffer(1 << 20)
	return &uevents{c: c}, nil
}

func (u *uevents) close() { _ = u.c.Close() }

func (u *uevents) next(ctx context.Context) error {
	for {
		n, oobn, flags, from, err := u.c.Recvmsg(ctx, u.buf[:], u.oob[:], 0)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return errOverflow
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		if !fromKernel(from, u.oob[:oobn]) {
			continue
		}
		if flags&unix.MSG_TRUNC != 0 {
			return nil // something happened
		}
		if e, err := ParseUevent(u.buf[:n]); err == nil && e.aboutPorts() {
			return nil
		}
	}
}

// fromKernel believes a sender only if the kernel vouches that it is the kernel:
// any process may send to a netlink socket's address, and root may to its group.
func fromKernel(from unix.Sockaddr, oob []byte) bool {
	nl, ok := from.(*unix.SockaddrNetlink)
	if !ok || nl.Pid != 0 || nl.Groups != kernelGroup {
		return false
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			return cred.Pid == 0 && cred.Uid == 0
		}
	}
	return false
}
