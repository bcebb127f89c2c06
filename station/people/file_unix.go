//go:build unix

package people

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// private refuses a file that others can read or change.
func private(path string, st fs.FileInfo) error {
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return &FileError{
			File: path, Problem: fmt.Sprintf("holds hashes, and others can read it (mode %04o)", mode),
			Fix: "mend it with `chmod 600 " + shellWord(path) + "`",
		}
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		return &FileError{
			File: path, Problem: fmt.Sprintf("belongs to user %d, who could change it", sys.Uid),
			Fix: "mend it with `chown " + strconv.Itoa(os.Geteuid()) + " " + shellWord(path) + "`",
		}
	}
	return nil
}

// shellWord is a path that can be pasted into a shell.
func shellWord(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@,", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

func keepOwner(f *os.File, like fs.FileInfo) error {
	sys, ok := like.Sys().(*syscall.Stat_t)
	if !ok || int(sys.Uid) == os.Geteuid() {
		return nil
	}
	return f.Chown(int(sys.Uid), int(sys.Gid))
}

func lock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
