package label

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// unsent is an error as long as the other side has not acknowledged every byte:
// then a close would lose them without a word.
func unsent(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var ioErr error
	if err := raw.Control(func(fd uintptr) { n, ioErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
		return err
	}
	// The end of our side counts as one byte.
	if ioErr == nil && n > 1 {
		return fmt.Errorf("printer: %d bytes of the label were not taken in time", n)
	}
	return nil
}
