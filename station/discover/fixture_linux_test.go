package discover

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// tree is a sysfs and a /dev in a directory of the test.
type tree struct {
	t       testing.TB
	roots   Roots
	devnum  int
	classes map[string]string // subsystems that the names do not tell
}

func newTree(t testing.TB) *tree {
	t.Helper()
	dir := t.TempDir()
	x := &tree{t: t, roots: Roots{Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev")}, devnum: 1}
	x.mkdir("class/tty")
	x.mkdir("devices/virtual/tty/tty0") // a console: has no device
	x.write("devices/virtual/tty/tty0/uevent", "")
	x.link("class/tty/tty0", "devices/virtual/tty/tty0")
	return x
}

func (x *tree) path(name string) string { return filepath.Join(x.roots.Sys, name) }

func (x *tree) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *tree) mkdir(name string) { x.t.Helper(); x.must(os.MkdirAll(x.path(name), 0o755)) }

func (x *tree) write(name, text string) {
	x.t.Helper()
	x.mkdir(filepath.Dir(name))
	x.must(os.WriteFile(x.path(name), []byte(text), 0o644))
}

// link makes a relative link, as all links in sysfs are.
func (x *tree) link(name, to string) {
	x.t.Helper()
	x.mkdir(filepath.Dir(name))
	rel, err := filepath.Rel(filepath.Dir(x.path(name)), x.path(to))
	x.must(err)
	_ = os.Remove(x.path(name))
	x.must(os.Symlink(rel, x.path(name)))
}

func (x *tree) remove(name string) { x.t.Helper(); x.must(os.RemoveAll(x.path(name))) }

var (
	pciRE  = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]$`)
	rootRE = regexp.MustCompile(`^pci[0-9a-f]{4}:[0-9a-f]{2}$`)
)

// chain makes the directories of a device path, with the subsystem of each.
func (x *tree) chain(devPath string) {
	x.t.Helper()
	parts := strings.Split(devPath, "/")
	for i := 2; i <= len(parts); i++ {
		dir := strings.Join(parts[:i], "/")
		name := parts[i-1]
		sub, known := x.classes[name]
		switch {
		case known:
		case pciRE.MatchString(name):
			sub = "pci"
		case rootRE.MatchString(name):
			sub = ""
		case usbDeviceRE.MatchString(name), usbInterfaceRE.MatchString(name), usbRootRE.MatchString(name):
			sub = "usb"
		case i > 2 && parts[i-2] == "tty":
			sub = "tty"
		case strings.HasPrefix(name, "tty") && name != "tty":
			sub = "usb-serial"
		case parts[1] == "platform" && i > 2 && name != "tty":
			sub = "platform"
		case name == "tty" || i == 2:
			continue // sorts others, is no device
		}
		if _, err := os.Stat(x.path(dir + "/uevent")); err == nil {
			continue
		}
		x.write(dir+"/uevent", "")
		if sub != "" {
			x.mkdir("bus/" + sub)
			x.link(dir+"/subsystem", "bus/"+sub)
		}
		switch {
		case usbRootRE.MatchString(name):
			x.write(dir+"/bDeviceProtocol", "01\n")
			x.write(dir+"/speed", "480\n")
			x.usb(dir, "1d6b", "0002", "")
		case usbDeviceRE.MatchString(name):
			x.usb(dir, "1a40", "0101", "") // a hub, until it is said to be something else
		}
	}
}

func (x *tree) usb(dir, vid, pid, serial string) {
	x.write(dir+"/idVendor", vid+"\n")
	x.write(dir+"/idProduct", pid+"\n")
	x.write(dir+"/devnum", strconv.Itoa(x.devnum)+"\n")
	x.devnum++
	if serial != "" {
		x.write(dir+"/serial", serial+"\n")
	}
}

// tty adds the tty at the end of a device path, and the links to it.
func (x *tree) tty(devPath string) {
	x.t.Helper()
	x.chain(devPath)
	name := filepath.Base(devPath)
	owner := strings.TrimSuffix(devPath, "/tty/"+name)
	x.link(devPath+"/device", owner)
	x.link("class/tty/"+name, devPath)
	if filepath.Base(owner) == name {
		x.write(owner+"/port_number", "0\n")
		owner = filepath.Dir(owner)
	}
	x.mkdir("bus/usb/drivers/cp210x")
	x.link(owner+"/driver", "bus/usb/drivers/cp210x")
}

// adapter plugs in a USB adapter with one tty: at a controller and a position
// such as 1-1.2.
func (x *tree) adapter(controller, position, tty, vid, pid, serial string) {
	x.t.Helper()
	dev := usbPath(controller, position)
	x.remove(dev)
	x.chain(dev)
	x.usb(dev, vid, pid, serial)
	iface := dev + "/" + position + ":1.0/"
	if strings.HasPrefix(tty, "ttyUSB") {
		iface += tty + "/"
	}
	x.tty(iface + "tty/" + tty)
}

// usbPath is the device path of a position: …/usb1/1-1/1-1.2.
func usbPath(controller, position string) string {
	bus, ports, _ := strings.Cut(position, "-")
	p := controller + "/usb" + bus
	at := bus + "-"
	for i, port := range strings.Split(ports, ".") {
		if i > 0 {
			at += "."
		}
		at += port
		p += "/" + at
	}
	return p
}

// unplug takes a position's device away, with its ttys.
func (x *tree) unplug(controller, position string) {
	x.t.Helper()
	x.remove(usbPath(controller, position))
	entries, err := os.ReadDir(x.path("class/tty"))
	x.must(err)
	for _, e := range entries {
		if _, err := os.Stat(x.path("class/tty/" + e.Name())); err != nil {
			x.remove("class/tty/" + e.Name())
		}
	}
}

// udev makes the link that udev makes.
func (x *tree) udev(name, tty string) {
	x.t.Helper()
	dir := filepath.Join(x.roots.Dev, "serial", "by-path")
	x.must(os.MkdirAll(dir, 0o755))
	_ = os.Remove(filepath.Join(dir, name))
	x.must(os.Symlink("../../"+tty, filepath.Join(dir, name)))
}

func (x *tree) scan() []Port {
	x.t.Helper()
	ports, err := Scan(x.roots)
	x.must(err)
	return ports
}

// where says device and by-path name of each port.
func where(ports []Port) (list []string) {
	for _, p := range ports {
		list = append(list, fmt.Sprintf("%s %s", p.Name, p.ByPath))
	}
	return list
}

const pc = "devices/pci0000:00/0000:00:14.0"
