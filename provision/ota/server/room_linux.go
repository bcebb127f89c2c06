package server

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// limitUnsent bounds what the kernel keeps for a client that does not read: bytes
// that were not sent yet. What is on its way does not count, so a fast line is not
// slowed down.
func limitUnsent(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) // where it is not known, the socket's own buffer bounds it
	})
}

// room waits until less than half of unsent waits in the kernel.
func room(raw syscall.RawConn) error {
	return raw.Write(func(fd uintptr) bool {
		for {
			p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(p[:], 0)
			if err == unix.EINTR {
				continue
			}
			return n != 0 || err != nil // the write that follows finds what is wrong
		}
	})
}
