package discover

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// ErrUnsupported says that this operating system has no sysfs.
var ErrUnsupported = errors.New("serial ports can be found on Linux only: there is no sysfs here; bind slots to socket:// or sim://")

// Roots are the file systems that are asked. An empty one is the real one.
type Roots struct {
	Sys string // /sys
	Dev string // /dev
}

func (r Roots) withDefaults() Roots {
	r.Sys = cmp.Or(r.Sys, "/sys")
	r.Dev = cmp.Or(r.Dev, "/dev")
	return r
}

// Port is a serial port at a position.
type Port struct {
	// ByPath is the stable name, as udev links it in /dev/serial/by-path. It is
	// empty when the USB controller has no name that lasts.
	ByPath string `json:"by_path"`
	// ByPathUSB is the newer name with the revision of the root hub's USB
	// (…-usbv2-0:1.2:1.0…), which systemd 254 and later link, too. Empty where
	// it is not known.
	ByPathUSB string `json:"by_path_usb,omitempty"`
	// SysPath is the position on the USB bus, for example 1-1.2. A UART of the
	// machine itself has none.
	SysPath string `json:"sys_path,omitempty"`
	// Interface is configuration and interface on the device, for example 1.0.
	Interface string `json:"interface,omitempty"`
	// Number tells the ports of one interface apart, -1 if the driver does not
	// number them (cdc_acm).
	Number int `json:"number"`

	Name   string `json:"name"`   // ttyUSB0: today's
	Device string `json:"device"` // /dev/ttyUSB0
	// Link is the link in /dev/serial/by-path that leads to Device now; empty if
	// udev has made none. Open it rather than Device: it follows a device that
	// comes back under another number.
	Link string `json:"link,omitempty"`

	VID, PID uint16 `json:"-"`
	// What the device says of itself. It is the device's word: at most 126
	// characters, without control characters.
	Serial       string `json:"serial,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Driver       string `json:"driver,omitempty"` // cp210x, ftdi_sio, cdc_acm …

	// NativeUSB is the chip's own USB-JTAG-Serial (303a:1001, esp-facts A.8): it
	// leaves the bus with every reset, and Serial is the chip's MAC.
	NativeUSB bool `json:"native_usb"`

	// enumeration differs after the device has left the bus and come back, or
	// its driver was bound anew.
	enumeration string
}

// USBID is vendor and product as lsusb writes them, 303a:1001; empty for a UART
// of the machine.
func (p Port) USBID() string {
	if p.SysPath == "" {
		return ""
	}
	return fmt.Sprintf("%04x:%04x", p.VID, p.PID)
}

// Key names the position, and is different for any two ports that are there at
// the same time.
func (p Port) Key() string {
	if p.SysPath == "" {
		return p.ByPath + "/" + p.Name
	}
	key := usbPrefix + p.SysPath + ":" + p.Interface
	if p.Number >= 0 {
		key += fmt.Sprintf("-port%d", p.Number)
	}
	return key
}

// Binding is how to write the position in a slot's file.
func (p Port) Binding() string { return cmp.Or(p.ByPath, p.Key()) }

// OpenPath is what to open: Link, or else Device.
func (p Port) OpenPath() string { return cmp.Or(p.Link, p.Device) }

// same reports whether q at the same position is the same device as p.
func (p Port) same(q Port) bool {
	return p.Key() == q.Key() && p.VID == q.VID && p.PID == q.PID && p.Serial == q.Serial
}

// SameEnumeration reports whether q is p at the same position, and has not left the
// bus in between.
func (p Port) SameEnumeration(q Port) bool { return p.same(q) && p.enumeration == q.enumeration }

func comparePorts(a, b Port) int {
	return cmp.Or(naturally(a.SysPath, b.SysPath), naturally(a.Interface, b.Interface),
		cmp.Compare(a.Number, b.Number), naturally(a.ByPath, b.ByPath), naturally(a.Name, b.Name))
}

// naturally compares texts, and numbers in them by their value: 1-1.10 comes
// behind 1-1.9.
func naturally(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y), cmp.Compare(na, nb)); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
