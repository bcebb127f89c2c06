package discover

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// The kernel's names of USB devices and interfaces (Documentation/ABI/stable/
// sysfs-bus-usb): bus, ports of the hubs, configuration and interface.
var (
	usbDeviceRE    = regexp.MustCompile(`^\d+-\d+(\.\d+)*$`)
	usbInterfaceRE = regexp.MustCompile(`^(\d+-\d+(?:\.\d+)*):(\d+\.\d+)$`)
	usbRootRE      = regexp.MustCompile(`^usb\d+$`)
	ttyNameRE      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
)

// Lookup gives the port behind a device or a link to one, as it is now. Whoever
// has just opened a port can see that it is still the one at the position: names
// move when a hub comes back.
func Lookup(roots Roots, device string) (Port, error) {
	roots = roots.withDefaults()
	name := ttyName(roots.Dev, device)
	sys, err := filepath.EvalSymlinks(roots.Sys)
	if err != nil {
		return Port{}, fmt.Errorf("look up %s: %w", device, err)
	}
	if ttyNameRE.MatchString(name) {
		if p, ok := newScanner(sys, roots.Dev).tty(name); ok {
			p.Link = byPathLinks(roots.Dev).of(p)
			return p, nil
		}
	}
	return Port{}, fmt.Errorf("look up %s: %w", device, ErrNotPresent)
}

// ttyName follows links to the kernel's own name in dev, whatever that leads to.
func ttyName(dev, device string) string {
	for range 8 {
		if filepath.Dir(device) == filepath.Clean(dev) && numberedRE.MatchString(filepath.Base(device)) {
			break
		}
		to, err := os.Readlink(device)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(device), to)
		}
		device = to
	}
	return filepath.Base(device)
}

// Scan lists the serial ports that are there, by position. It fails only when
// the list of ttys itself cannot be read.
func Scan(roots Roots) ([]Port, error) {
	roots = roots.withDefaults()
	class := filepath.Join(roots.Sys, "class", "tty")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list the serial ports: %w; is sysfs mounted at %s?", err, roots.Sys)
	}
	// Paths are compared, so the root must be without links.
	sys, err := filepath.EvalSymlinks(roots.Sys)
	if err != nil {
		return nil, fmt.Errorf("list the serial ports: %w", err)
	}
	links := byPathLinks(roots.Dev)
	s := newScanner(sys, roots.Dev)
	var ports []Port
	for _, e := range entries {
		if !ttyNameRE.MatchString(e.Name()) {
			continue
		}
		if p, ok := s.tty(e.Name()); ok {
			p.Link = links.of(p)
			ports = append(ports, p)
		}
	}
	slices.SortFunc(ports, comparePorts)
	return ports, nil
}

// scanner is one scan. It remembers what it has seen of hubs and controllers,
// which many ports share.
type scanner struct {
	sys, dev   string
	subsystems map[string]string
	devices    map[string]bool
}

func newScanner(sys, dev string) scanner {
	return scanner{sys: sys, dev: dev, subsystems: map[string]string{}, devices: map[string]bool{}}
}

// target is the directory behind a link in class/tty. The kernel's link leads
// there in one step, and to somewhere in the same tree.
func (s scanner) target(name string) (string, bool) {
	class := filepath.Join(s.sys, "class", "tty")
	to, err := os.Readlink(filepath.Join(class, name))
	if err != nil || filepath.IsAbs(to) {
		return "", false
	}
	dir := filepath.Join(class, to)
	return dir, strings.HasPrefix(dir, filepath.Join(s.sys, "devices")+"/")
}

// tty gives the port behind a link in class/tty.
func (s scanner) tty(name string) (Port, bool) {
	dir, ok := s.target(name)
	if !ok {
		return Port{}, false
	}
	// A console's and a pseudo terminal's tty hangs on no device.
	if _, err := os.Lstat(filepath.Join(dir, "device")); err != nil {
		return Port{}, false
	}
	p := Port{Name: name, Device: filepath.Join(s.dev, name), Number: -1}
	if usb := s.usb(dir); usb.device != "" {
		ok = s.fillUSB(&p, usb)
	} else {
		ok = s.fillUART(&p, dir)
	}
	if !ok {
		return Port{}, false
	}
	// It may have left while it was read, and something else be half of this.
	ino := inode(dir)
	if again, ok := s.target(name); !ok || again != dir || ino == "" {
		return Port{}, false
	}
	p.enumeration += " " + ino
	return p, true
}

// usbDirs are the directories of a USB tty's ancestors.
type usbDirs struct{ port, iface, device, root string }

// usb finds them; device is empty if the tty is not on a USB bus.
func (s scanner) usb(dir string) usbDirs {
	var u usbDirs
	for d := filepath.Dir(dir); strings.HasPrefix(d, s.sys+"/"); d = filepath.Dir(d) {
		base := filepath.Base(d)
		switch s.subsystem(d) {
		case "usb-serial":
			u.port = d
		case "usb":
			switch {
			case u.iface == "" && u.device == "" && usbInterfaceRE.MatchString(base):
				u.iface = d
			case u.device == "" && usbDeviceRE.MatchString(base):
				u.device = d
			case usbRootRE.MatchString(base):
				u.root = d
			}
		}
	}
	return u
}

func (s scanner) fillUSB(p *Port, u usbDirs) bool {
	p.SysPath = filepath.Base(u.device)
	m := usbInterfaceRE.FindStringSubmatch(filepath.Base(u.iface))
	if m == nil || m[1] != p.SysPath {
		return false
	}
	p.Interface = m[2]
	var ok1, ok2 bool
	p.VID, ok1 = hex16(attr(u.device, "idVendor"))
	p.PID, ok2 = hex16(attr(u.device, "idProduct"))
	if !ok1 || !ok2 {
		return false // it is leaving
	}
	p.NativeUSB = p.VID == 0x303a && p.PID == 0x1001
	p.Serial = text(attr(u.device, "serial"))
	p.Manufacturer = text(attr(u.device, "manufacturer"))
	p.Product = text(attr(u.device, "product"))
	p.Driver = linkBase(filepath.Join(u.iface, "driver"))
	if u.port != "" {
		n, err := strconv.ParseUint(attr(u.port, "port_number"), 10, 8)
		if err != nil {
			return false
		}
		p.Number = int(n)
	}
	p.enumeration = attr(u.device, "devnum")
	start := u.iface
	if u.port != "" {
		start = u.port
	}
	suffix := ""
	if p.Number >= 0 {
		suffix = fmt.Sprintf("-port%d", p.Number)
	}
	if id, ok := s.pathID(start, ""); ok {
		p.ByPath = id + suffix
	}
	if rev := usbRevision(u.root); rev != "" {
		if id, ok := s.pathID(start, rev); ok {
			p.ByPathUSB = id + suffix
		}
	}
	return true
}

// fillUART takes UARTs that have a chip behind them and a name that lasts.
func (s scanner) fillUART(p *Port, dir string) bool {
	if kind := attr(dir, "type"); kind == "" || kind == "0" {
		return false // no UART, or PORT_UNKNOWN: a place without a chip
	}
	if attr(dir, "console") == "Y" {
		return false // the kernel writes there
	}
	id, ok := s.pathID(dir, "")
	if !ok {
		return false
	}
	p.ByPath = id
	p.Driver = linkBase(filepath.Join(dir, "device", "driver"))
	return true
}

// pathID walks from a device to the root of the tree and names what it passes,
// as udev's path_id does: of neighbours in one subsystem only the one that is
// met first. usbRev is empty, or the revision to write behind usb. There is no
// name without a bus in it whose devices keep their names (pci, platform …).
func (s scanner) pathID(dir, usbRev string) (string, bool) {
	var parts []string
	lasting := false
	for ok := true; ok; dir, ok = s.parent(dir) {
		sub, name := s.subsystem(dir), strings.ReplaceAll(filepath.Base(dir), "!", "/")
		switch sub {
		case "usb":
			_, port, ok := strings.Cut(name, "-")
			if !ok || (!usbDeviceRE.MatchString(name) && !usbInterfaceRE.MatchString(name)) {
				continue // a root hub
			}
			if usbRev != "" {
				parts = append(parts, "usbv"+usbRev+"-0:"+port)
			} else {
				parts = append(parts, "usb-0:"+port)
			}
		case "pci", "platform", "amba", "acpi", "xen":
			parts = append(parts, sub+"-"+name)
			lasting = true
		default:
			continue
		}
		dir = s.skip(dir, sub)
	}
	if !lasting {
		return "", false
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
		if i > 0 {
			b.WriteByte('-')
		}
	}
	id := b.String()
	return id, byPathRE.MatchString(id)
}

// skip gives the last device of dir's chain of ancestors in one subsystem.
func (s scanner) skip(dir, sub string) string {
	for {
		up, ok := s.parent(dir)
		if !ok || s.subsystem(up) != sub {
			return dir
		}
		dir = up
	}
}

// parent is the nearest directory above that is a device. Directories that only
// sort others (…/tty/ttyUSB0) have no uevent file.
func (s scanner) parent(dir string) (string, bool) {
	for {
		dir = filepath.Dir(dir)
		if !strings.HasPrefix(dir, s.sys+"/") {
			return "", false
		}
		is, known := s.devices[dir]
		if !known {
			_, err := os.Lstat(filepath.Join(dir, "uevent"))
			is = err == nil
			s.devices[dir] = is
		}
		if is {
			return dir, true
		}
	}
}

// usbRevision is the revision of USB that a root hub speaks, by its protocol
// (USB_HUB_PR_… in the kernel's drivers/usb/core/hub.h) and speed.
func usbRevision(root string) string {
	if root == "" {
		return ""
	}
	switch attr(root, "bDeviceProtocol") {
	case "00":
		if attr(root, "speed") == "480" {
			return "2"
		}
		return "1"
	case "01", "02":
		return "2"
	case "03":
		return "3"
	}
	return ""
}

func (s scanner) subsystem(dir string) string {
	sub, known := s.subsystems[dir]
	if !known {
		sub = linkBase(filepath.Join(dir, "subsystem"))
		s.subsystems[dir] = sub
	}
	return sub
}

func linkBase(link string) string {
	to, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// attr is a small file's first line, "" if it cannot be read.
func attr(dir, name string) string {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// text makes what a device says fit for a screen.
func text(s string) string {
	const most = 126 // characters of a USB string descriptor
	var b strings.Builder
	n := 0
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			continue
		}
		if n++; n > most {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

func hex16(s string) (uint16, bool) {
	if len(s) != 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 16)
	return uint16(n), err == nil
}

// inode tells two directories of the same name apart that were made one after
// the other, as when a driver is unbound and bound again.
func inode(dir string) string {
	st, err := os.Lstat(dir)
	if err != nil {
		return ""
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return strconv.FormatUint(sys.Ino, 10)
}

// pathLinks are udev's links, by the device that each leads to.
type pathLinks struct {
	dir string
	by  map[string][]string
}

func byPathLinks(dev string) pathLinks {
	l := pathLinks{dir: filepath.Join(dev, "serial", "by-path"), by: map[string][]string{}}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return l
	}
	for _, e := range entries {
		to := linkBase(filepath.Join(l.dir, e.Name()))
		l.by[to] = append(l.by[to], e.Name())
	}
	return l
}

// of gives the link that names the port's position and leads to its device. A
// link that udev has not cleared away yet may lead to another one.
func (l pathLinks) of(p Port) string {
	for _, name := range []string{p.ByPath, p.ByPathUSB} {
		for _, have := range l.by[p.Name] {
			if name != "" && have == name {
				return filepath.Join(l.dir, name)
			}
		}
	}
	return ""
}
