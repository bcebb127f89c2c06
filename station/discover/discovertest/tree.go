// Package discovertest builds a /sys and a /dev for tests of what finds serial
// ports: as the kernel lays them out, as far as package discover looks. Names are
// relative to sysfs, except where they are said to be in /dev. It knows nothing of
// package discover, whose own tests use it.
package discovertest

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Tree is a sysfs and a /dev in a directory of the test.
type Tree struct {
	Sys, Dev string
	// Classes are subsystems that the names of directories do not tell.
	Classes map[string]string

	t      testing.TB
	devnum int
}

// New makes a tree with a console and no port.
func New(t testing.TB) *Tree {
	t.Helper()
	dir := t.TempDir()
	x := &Tree{t: t, Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"), devnum: 1}
	x.Mkdir("class/tty")
	x.Mkdir("devices/virtual/tty/tty0") // a console: has no device
	x.Write("devices/virtual/tty/tty0/uevent", "")
	x.Link("class/tty/tty0", "devices/virtual/tty/tty0")
	return x
}

// Path is the path of a name in sysfs.
func (x *Tree) Path(name string) string { return filepath.Join(x.Sys, name) }

func (x *Tree) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

// Mkdir makes a directory in sysfs, and those above it.
func (x *Tree) Mkdir(name string) { x.t.Helper(); x.must(os.MkdirAll(x.Path(name), 0o750)) }

// Write writes an attribute.
func (x *Tree) Write(name, text string) {
	x.t.Helper()
	x.Mkdir(filepath.Dir(name))
	x.must(os.WriteFile(x.Path(name), []byte(text), 0o600))
}

// Link makes a relative link, as all links in sysfs are.
func (x *Tree) Link(name, to string) {
	x.t.Helper()
	x.Mkdir(filepath.Dir(name))
	rel, err := filepath.Rel(filepath.Dir(x.Path(name)), x.Path(to))
	x.must(err)
	x.Symlink(name, rel)
}

// Symlink makes a link with the text to.
func (x *Tree) Symlink(name, to string) {
	x.t.Helper()
	_ = os.Remove(x.Path(name))
	x.must(os.Symlink(to, x.Path(name)))
}

// Remove takes a name out of sysfs, with all below it.
func (x *Tree) Remove(name string) { x.t.Helper(); x.must(os.RemoveAll(x.Path(name))) }

var (
	usbDeviceRE    = regexp.MustCompile(`^\d+-\d+(\.\d+)*$`)
	usbInterfaceRE = regexp.MustCompile(`^\d+-\d+(\.\d+)*:\d+\.\d+$`)
	usbRootRE      = regexp.MustCompile(`^usb\d+$`)

	pciRE  = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]$`)
	rootRE = regexp.MustCompile(`^pci[0-9a-f]{4}:[0-9a-f]{2}$`)
)

// Chain makes the directories of a device path, with the subsystem of each.
func (x *Tree) Chain(devPath string) {
	x.t.Helper()
	parts := strings.Split(devPath, "/")
	for i := 2; i <= len(parts); i++ {
		dir := strings.Join(parts[:i], "/")
		name := parts[i-1]
		sub, known := x.Classes[name]
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
		if _, err := os.Stat(x.Path(dir + "/uevent")); err == nil {
			continue
		}
		x.Write(dir+"/uevent", "")
		if sub != "" {
			x.Mkdir("bus/" + sub)
			x.Link(dir+"/subsystem", "bus/"+sub)
		}
		switch {
		case usbRootRE.MatchString(name):
			x.Write(dir+"/bDeviceProtocol", "01\n")
			x.Write(dir+"/speed", "480\n")
			x.usb(dir, "1d6b", "0002", "")
		case usbDeviceRE.MatchString(name):
			x.usb(dir, "1a40", "0101", "") // a hub, until it is said to be something else
		}
	}
}

func (x *Tree) usb(dir, vid, pid, serial string) {
	x.Write(dir+"/idVendor", vid+"\n")
	x.Write(dir+"/idProduct", pid+"\n")
	x.Write(dir+"/devnum", strconv.Itoa(x.devnum)+"\n")
	x.devnum++
	if serial != "" {
		x.Write(dir+"/serial", serial+"\n")
	}
}

// TTY adds the tty at the end of a device path, and the links to it.
func (x *Tree) TTY(devPath string) {
	x.t.Helper()
	x.Chain(devPath)
	name := filepath.Base(devPath)
	owner := strings.TrimSuffix(devPath, "/tty/"+name)
	x.Link(devPath+"/device", owner)
	x.Link("class/tty/"+name, devPath)
	if filepath.Base(owner) == name {
		x.Write(owner+"/port_number", "0\n")
		owner = filepath.Dir(owner)
	}
	x.Mkdir("bus/usb/drivers/cp210x")
	x.Link(owner+"/driver", "bus/usb/drivers/cp210x")
}

// Adapter plugs in a USB adapter with one tty: at a controller and a position
// such as 1-1.2.
func (x *Tree) Adapter(controller, position, tty, vid, pid, serial string) {
	x.t.Helper()
	dev := USBPath(controller, position)
	x.Remove(dev)
	x.Chain(dev)
	x.usb(dev, vid, pid, serial)
	iface := dev + "/" + position + ":1.0/"
	if strings.HasPrefix(tty, "ttyUSB") {
		iface += tty + "/"
	}
	x.TTY(iface + "tty/" + tty)
}

// USBPath is the device path of a position: …/usb1/1-1/1-1.2.
func USBPath(controller, position string) string {
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

// Unplug takes a position's device away. As with the kernel its ttys leave first.
func (x *Tree) Unplug(controller, position string) {
	x.t.Helper()
	dev := USBPath(controller, position)
	entries, err := os.ReadDir(x.Path("class/tty"))
	x.must(err)
	for _, e := range entries {
		to, err := os.Readlink(x.Path("class/tty/" + e.Name()))
		if err == nil && strings.HasPrefix(filepath.Join("class/tty", to), dev+"/") {
			x.Remove("class/tty/" + e.Name())
		}
	}
	x.Remove(dev)
}

// Udev makes the link that udev makes.
func (x *Tree) Udev(name, tty string) {
	x.t.Helper()
	dir := filepath.Join(x.Dev, "serial", "by-path")
	x.must(os.MkdirAll(dir, 0o750))
	_ = os.Remove(filepath.Join(dir, name))
	x.must(os.Symlink("../../"+tty, filepath.Join(dir, name)))
}

// PC is the USB controller of a PC.
const PC = "devices/pci0000:00/0000:00:14.0"
