package discover

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/station/port"
)

const (
	usbPrefix = "usb:"
	byPathDir = "/dev/serial/by-path/"
	// maxBinding is longer than any name of a device file.
	maxBinding = 255
)

var (
	// byPathRE is what a name in /dev/serial/by-path can look like: udev
	// replaces all other characters in links.
	byPathRE = regexp.MustCompile(`^(?:pci|platform|amba|acpi|xen)-[A-Za-z0-9#+.:=@_-]+$`)
	usbVRE   = regexp.MustCompile(`-usbv[0-9]+-0:`)
	usbRE    = regexp.MustCompile(`^(\d+-\d+(?:\.\d+)*)(?::(\d+\.\d+)(?:-port(\d{1,3}))?)?$`)
	// numberedRE are the names that the kernel hands out anew.
	numberedRE = regexp.MustCompile(`^(?:/dev/)?tty[A-Za-z]*\d+$`)
)

// Sentinels of [Find].
var (
	// ErrNotPresent says that no port is at the position now.
	ErrNotPresent = errors.New("no port is there now")
	// ErrAmbiguous says that a binding fits several ports.
	ErrAmbiguous = errors.New("several ports are there")
)

// Binding says where a slot's port is: at a position, or at an address of
// another kind (socket://, rfc2217://, sim://).
type Binding struct {
	text   string
	byPath string // without the directory
	usb    usbPlace
	addr   *port.Address
}

type usbPlace struct {
	device, iface string
	number        int // -1 if it is not given
}

// ParseBinding reads a slot's port. It refuses names that the kernel hands out
// anew, such as /dev/ttyUSB0; [Suggest] finds what to write instead.
func ParseBinding(s string) (Binding, error) {
	b := Binding{text: s}
	name := strings.TrimPrefix(s, byPathDir)
	switch {
	case s == "":
		return Binding{}, errors.New("is empty: write a name from " + byPathDir + ", usb:1-1.2, socket://host:port or sim://CHIP")
	case len(s) > maxBinding:
		return Binding{}, fmt.Errorf("is longer than %d characters", maxBinding)
	case strings.Contains(s, "://"):
		a, err := port.Parse(s)
		if err != nil {
			return Binding{}, err
		}
		b.addr = &a
		return b, nil
	case strings.HasPrefix(s, usbPrefix):
		m := usbRE.FindStringSubmatch(s[len(usbPrefix):])
		if m == nil {
			return Binding{}, fmt.Errorf("%q is no place on a USB bus: write usb:1-1.2 for a device, usb:1-1.2:1.0 for an interface of it", s)
		}
		b.usb = usbPlace{device: m[1], iface: m[2], number: -1}
		if m[3] != "" {
			n, err := strconv.ParseUint(m[3], 10, 8)
			if err != nil || strconv.FormatUint(n, 10) != m[3] {
				return Binding{}, fmt.Errorf("%q has no port %s: they are counted from 0 to 255", s, m[3])
			}
			b.usb.number = int(n)
		}
		return b, nil
	case numberedRE.MatchString(s):
		return Binding{}, fmt.Errorf("%q is a number that the kernel gives to another board after the next re-plug: write its name from %s, or usb:BUS-PORT", s, byPathDir)
	case strings.HasPrefix(s, "/dev/serial/by-id/"):
		return Binding{}, fmt.Errorf("%q follows the adapter to wherever it is plugged in, and a slot is a place: write the name from %s", s, byPathDir)
	case byPathRE.MatchString(name):
		b.byPath = name
		return b, nil
	case strings.HasPrefix(s, "/"):
		return Binding{}, fmt.Errorf("%q is not in %s: write a name from there, or usb:BUS-PORT", s, byPathDir)
	}
	return Binding{}, fmt.Errorf("%q is no port: write a name from %s, usb:1-1.2, socket://host:port or sim://CHIP", s, byPathDir)
}

// String is the binding as it was written.
func (b Binding) String() string { return b.text }

// Local reports whether the binding is a position, whose port [Find] finds. All
// others are addresses that package port opens as they are.
func (b Binding) Local() bool { return b.byPath != "" || b.usb.device != "" }

// Address is the address that needs no finding.
func (b Binding) Address() (port.Address, bool) {
	if b.addr == nil {
		return port.Address{}, false
	}
	return *b.addr, true
}

// key is the same for two bindings that say the same; not every two that lead to
// one port do.
func (b Binding) key() string {
	if b.byPath != "" {
		return usbVRE.ReplaceAllString(b.byPath, "-usb-0:")
	}
	return b.text
}

// manyAtOnce: every opening of a simulated chip without a state of its own is
// another board.
func (b Binding) manyAtOnce() bool {
	a, ok := b.Address()
	_, kept := a.Param("state")
	return ok && a.Scheme == port.Sim && !kept
}

// Match reports whether p is at the position.
func Match(b Binding, p Port) bool {
	switch {
	case b.byPath != "":
		return b.byPath == p.ByPath || b.byPath == p.ByPathUSB
	case b.usb.device != "":
		return b.usb.device == p.SysPath &&
			(b.usb.iface == "" || b.usb.iface == p.Interface) &&
			(b.usb.number < 0 || b.usb.number == p.Number)
	}
	return false
}

// Find gives the one port at the position. The error is ErrNotPresent, or
// ErrAmbiguous with the names that tell the ports apart.
func Find(b Binding, ports []Port) (Port, error) {
	var at []Port
	for _, p := range ports {
		if Match(b, p) {
			at = append(at, p)
		}
	}
	switch len(at) {
	case 0:
		return Port{}, fmt.Errorf("port %s: %w; check cable, hub and power", b, ErrNotPresent)
	case 1:
		return at[0], nil
	}
	var names []string
	for _, p := range at {
		name := p.Binding()
		if slices.ContainsFunc(at, func(q Port) bool { return q.Key() != p.Key() && q.Binding() == name }) {
			name = p.Key()
		}
		names = append(names, name)
	}
	return Port{}, fmt.Errorf("port %s: %w; write one of %s", b, ErrAmbiguous, strings.Join(names, ", "))
}

// Suggest gives what to write for a name that [ParseBinding] refuses, if its
// port is there now.
func Suggest(s string, now []Port) (string, bool) {
	name := path.Base(s)
	for _, p := range now {
		if p.Name == name && p.Binding() != "" {
			return p.Binding(), true
		}
	}
	return "", false
}
