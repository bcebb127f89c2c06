package port

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/esp/chip"
)

// ownUSB reports whether the tty is a USB of the chip itself: its USB-JTAG-Serial
// (vendor 303a, product 1001; esp-facts A.8), or the loader on its USB-OTG, which has
// the chip's id for a product. The USB device is a parent directory of the tty in
// sysfs.
func (o Options) ownUSB(rdev uint64) (jtagSerial, otg bool) {
	root, err := filepath.EvalSymlinks(o.Sys)
	if err != nil {
		return false, false
	}
	node := fmt.Sprintf("dev/char/%d:%d", unix.Major(rdev), unix.Minor(rdev))
	dir, err := filepath.EvalSymlinks(filepath.Join(root, node))
	if err != nil {
		return false, false // a PTY is in no sysfs
	}
	for ; strings.HasPrefix(dir, root+"/"); dir = filepath.Dir(dir) {
		vendor, err := os.ReadFile(filepath.Join(dir, "idVendor"))
		if err != nil {
			continue
		}
		text, _ := os.ReadFile(filepath.Join(dir, "idProduct"))
		product := strings.TrimSpace(string(text))
		if strings.TrimSpace(string(vendor)) != "303a" {
			return false, false
		}
		for _, m := range chip.All() {
			otg = otg || m.ROM.USBBlock != 0 && product == fmt.Sprintf("%04x", uint16(m.ID))
		}
		return product == "1001", otg
	}
	return false, false
}

// present says which serial devices there are, for an error's reader.
func (o Options) present() string {
	var found []string
	for _, pattern := range []string{"serial/by-path/*", "ttyUSB*", "ttyACM*", "ttyAMA*"} {
		m, _ := filepath.Glob(filepath.Join(o.Dev, pattern)) // fails on a bad pattern only
		found = append(found, m...)
	}
	if len(found) == 0 {
		return "no serial device is plugged in: check cable and power, and dmesg"
	}
	const most = 8
	if n := len(found); n > most {
		found = append(found[:most], fmt.Sprintf("and %d more", n-most))
	}
	return "there are " + strings.Join(found, ", ")
}

// flockHolder names the process that holds a flock on the device, "" if nobody
// does. /proc/locks can be read by everybody.
func (o Options) flockHolder(st unix.Stat_t) string {
	locks, err := os.ReadFile(filepath.Join(o.Proc, "locks"))
	if err != nil {
		return ""
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 00:05:678 0 EOF
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == inode {
			return o.process(f[4])
		}
	}
	return ""
}

// openHolder names another process that has the device open, "" if none can be
// seen. Without root only the user's own processes can be seen.
func (o Options) openHolder(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	fds, _ := filepath.Glob(filepath.Join(o.Proc, "[0-9]*", "fd", "*"))
	self := strconv.Itoa(os.Getpid())
	for _, fd := range fds {
		pid := filepath.Base(filepath.Dir(filepath.Dir(fd)))
		if to, err := os.Readlink(fd); err == nil && to == path && pid != self {
			return o.process(pid)
		}
	}
	return ""
}

// process is a process for a reader: its name and id.
func (o Options) process(pid string) string {
	name, err := os.ReadFile(filepath.Join(o.Proc, pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
}
