package server

import (
	"golang.org/x/sys/unix"
)

// prepare bounds what the kernel keeps for a client that does not read: bytes
// that were not sent yet. What is on its way does not count, so a fast line is not
// slowed down.
func (c *connection) prepare() {
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) // no TCP: its own buffer bounds it
	})
}

// room waits until less than half of unsent waits in the kernel.
func (c *connection) room() error {
	return c.raw.Write(func(fd uintptr) bool {
		for {
			p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(p[:], 0)
			if err == unix.EINTR { //nolint:errorlint // a plain number of the kernel's
				continue
			}
			return n != 0 || err != nil // the write that follows finds what is wrong
		}
	})
}
