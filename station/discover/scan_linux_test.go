package discover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/station/discover/discovertest"
)

// What udevadm said on machines of others: the kernel's path of a device, and
// ID_PATH or the link in /dev/serial/by-path.
func TestByPathIsUdevs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, devPath, want string }{
		{
			"github.com/MadLittleMods/node-usb-detection/issues/51",
			"devices/pci0000:00/0000:00:1a.7/usb1/1-3/1-3.4/1-3.4.4/1-3.4.4:1.0/ttyUSB0/tty/ttyUSB0",
			"pci-0000:00:1a.7-usb-0:3.4.4:1.0-port0",
		},
		{
			"github.com/tomcucinotta/MuseScore/issues/22",
			"devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/tty/ttyACM0",
			"pci-0000:00:14.0-usb-0:1:1.0",
		},
		{ // a controller behind a bridge: only the controller is named
			"github.com/systemd/systemd/issues/21617, a disk",
			"devices/pci0000:00/0000:00:1c.6/0000:14:00.0/usb6/6-1/6-1:1.0/tty/ttyACM0",
			"pci-0000:14:00.0-usb-0:1:1.0",
		},
		{ // Raspberry Pi 3
			"github.com/labgrid-project/labgrid/issues/696, a hub",
			"devices/platform/soc/3f980000.usb/usb1/1-1/1-1.3/1-1.3:1.0/tty/ttyACM0",
			"platform-3f980000.usb-usb-0:1.3:1.0",
		},
		{ // Raspberry Pi 4
			"github.com/systemd/systemd/issues/29201, a hub",
			"devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/usb1/1-1/1-1.4/1-1.4:1.0/ttyUSB0/tty/ttyUSB0",
			"platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.4:1.0-port0",
		},
	} {
		x := newTree(t)
		x.TTY(c.devPath)
		ports := x.scan(t)
		if len(ports) != 1 || ports[0].ByPath != c.want {
			t.Errorf("%s (%s):\n got %q\nwant %q", c.devPath, c.from, where(ports), c.want)
		}
		if want := strings.Replace(c.want, "-usb-", "-usbv2-", 1); len(ports) == 1 && ports[0].ByPathUSB != want {
			t.Errorf("with the revision: %q, want %q", ports[0].ByPathUSB, want)
		}
	}
}

func TestScanReadsEverything(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	x.Adapter(pc, "1-1.2", "ttyUSB0", "10c4", "ea60", "0001")
	x.Write(discovertest.USBPath(pc, "1-1.2")+"/manufacturer", "Silicon Labs\n")
	x.Write(discovertest.USBPath(pc, "1-1.2")+"/product", "CP2102\x1b[2J N \xff\u202eUART\nsecond line\n")
	x.Adapter(pc, "1-1.10", "ttyACM0", "303a", "1001", "7C:DF:A1:00:00:01")
	x.Udev("pci-0000:00:14.0-usb-0:1.2:1.0-port0", "ttyUSB0")
	x.Udev("pci-0000:00:14.0-usb-0:1.10:1.0", "ttyACM9") // not cleared away yet
	want := []Port{
		{
			ByPath: "pci-0000:00:14.0-usb-0:1.2:1.0-port0", ByPathUSB: "pci-0000:00:14.0-usbv2-0:1.2:1.0-port0",
			SysPath: "1-1.2", Interface: "1.0", Name: "ttyUSB0",
			Device: filepath.Join(x.roots.Dev, "ttyUSB0"), Link: filepath.Join(x.roots.Dev, "serial/by-path/pci-0000:00:14.0-usb-0:1.2:1.0-port0"),
			VID: 0x10c4, PID: 0xea60, Serial: "0001", Manufacturer: "Silicon Labs", Product: "CP2102[2J N UART", Driver: "cp210x",
		},
		{
			ByPath: "pci-0000:00:14.0-usb-0:1.10:1.0", ByPathUSB: "pci-0000:00:14.0-usbv2-0:1.10:1.0",
			SysPath: "1-1.10", Interface: "1.0", Number: -1, Name: "ttyACM0", Device: filepath.Join(x.roots.Dev, "ttyACM0"),
			VID: 0x303a, PID: 0x1001, Serial: "7C:DF:A1:00:00:01", Driver: "cp210x", NativeUSB: true,
		},
	}
	got := x.scan(t)
	if d := cmp.Diff(want, got, plain); d != "" {
		t.Fatal(d)
	}
	if got[0].OpenPath() != got[0].Link || got[1].OpenPath() != got[1].Device {
		t.Errorf("to open: %s, %s", got[0].OpenPath(), got[1].OpenPath())
	}
	if id := got[1].USBID(); id != "303a:1001" {
		t.Error(id)
	}
}

// A root hub's USB, by protocol and speed.
func TestUSBRevision(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ protocol, speed, want string }{
		{"00", "12", "usbv1"}, {"00", "480", "usbv2"}, {"01", "480", "usbv2"}, {"02", "480", "usbv2"}, {"03", "5000", "usbv3"}, {"ff", "480", ""},
	} {
		x := newTree(t)
		x.Adapter(pc, "1-1", "ttyUSB0", "10c4", "ea60", "")
		x.Write(pc+"/usb1/bDeviceProtocol", c.protocol+"\n")
		x.Write(pc+"/usb1/speed", c.speed+"\n")
		got := x.scan(t)[0].ByPathUSB
		if c.want == "" && got != "" || c.want != "" && !strings.Contains(got, "-"+c.want+"-0:1:1.0") {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestMultiPortAdapters(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	dev := discovertest.USBPath(pc, "1-4")
	for i := range 4 { // FT4232H: an interface each
		x.TTY(fmt.Sprintf("%s/1-4:1.%d/ttyUSB%d/tty/ttyUSB%d", dev, i, i, i))
	}
	dev = discovertest.USBPath(pc, "1-5")
	for i := range 2 { // MCS7840: one interface, ports numbered by the driver
		x.TTY(fmt.Sprintf("%s/1-5:1.0/ttyUSB%d/tty/ttyUSB%d", dev, 4+i, 4+i))
		x.Write(fmt.Sprintf("%s/1-5:1.0/ttyUSB%d/port_number", dev, 4+i), fmt.Sprintln(i))
	}
	ports := x.scan(t)
	want := []string{
		"ttyUSB0 pci-0000:00:14.0-usb-0:4:1.0-port0",
		"ttyUSB1 pci-0000:00:14.0-usb-0:4:1.1-port0",
		"ttyUSB2 pci-0000:00:14.0-usb-0:4:1.2-port0",
		"ttyUSB3 pci-0000:00:14.0-usb-0:4:1.3-port0",
		"ttyUSB4 pci-0000:00:14.0-usb-0:5:1.0-port0",
		"ttyUSB5 pci-0000:00:14.0-usb-0:5:1.0-port1",
	}
	if d := cmp.Diff(want, where(ports)); d != "" {
		t.Error(d)
	}
	for _, p := range ports {
		for _, name := range []string{p.ByPath, p.ByPathUSB, byPathDir + p.ByPath, p.Key()} {
			b, err := ParseBinding(name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Find(b, ports); err != nil || got != p {
				t.Errorf("%s finds %s, %v", name, got.Name, err)
			}
		}
	}
	b, _ := ParseBinding("usb:1-4")
	if _, err := Find(b, ports); !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), want[3][8:]) {
		t.Errorf("usb:1-4: %v", err)
	}
	b, _ = ParseBinding("usb:1-5:1.0")
	if _, err := Find(b, ports); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("usb:1-5:1.0: %v", err)
	}
}

func TestUARTs(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	x.Classes = map[string]string{
		"fe201000.serial": "amba", "fe201000.serial:0": "serial-base", "fe201000.serial:0.0": "serial-base",
		"00:00": "pnp", "ttyS0": "tty",
	}
	uart := func(devPath, kind, console string) {
		x.TTY(devPath)
		x.Write(devPath+"/type", kind+"\n")
		x.Write(devPath+"/console", console+"\n")
	}
	uart("devices/platform/soc/fe201000.serial/fe201000.serial:0/fe201000.serial:0.0/tty/ttyAMA0", "32", "N")
	uart("devices/platform/soc/fe201400.serial/tty/ttyAMA2", "32", "N")
	uart("devices/platform/soc/fe201600.serial/tty/ttyAMA3", "32", "Y") // the kernel's console
	uart("devices/platform/serial8250/tty/ttyS1", "0", "N")             // no chip there
	uart("devices/pnp0/00:00/tty/ttyS0", "4", "N")                      // a PC's: no name that lasts
	x.TTY("devices/platform/soc/fe300000.thing/tty/ttyTHING0")          // no UART at all
	want := []string{"ttyAMA2 platform-fe201400.serial", "ttyAMA0 platform-soc-amba-fe201000.serial"}
	ports := x.scan(t)
	if d := cmp.Diff(want, where(ports)); d != "" {
		t.Fatal(d)
	}
	for _, p := range ports {
		b, err := ParseBinding(p.Binding())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Find(b, ports); err != nil || got != p || p.USBID() != "" {
			t.Errorf("%s finds %s, %v", b, got.Name, err)
		}
	}
}

// Whatever is wrong with one device, the others are found.
func TestMalformedSysfs(t *testing.T) {
	t.Parallel()
	dev := discovertest.USBPath(pc, "1-2")
	iface := dev + "/1-2:1.0"
	for name, damage := range map[string]func(x *tree){
		"no vendor":             func(x *tree) { x.Remove(dev + "/idVendor") },
		"vendor is a word":      func(x *tree) { x.Write(dev+"/idVendor", "espressif\n") },
		"vendor is long":        func(x *tree) { x.Write(dev+"/idVendor", strings.Repeat("0", 1<<16)) },
		"product is empty":      func(x *tree) { x.Write(dev+"/idProduct", "") },
		"vendor is a folder":    func(x *tree) { x.Remove(dev + "/idVendor"); x.Mkdir(dev + "/idVendor") },
		"port has no number":    func(x *tree) { x.Remove(iface + "/ttyUSB1/port_number") },
		"port number is -1":     func(x *tree) { x.Write(iface+"/ttyUSB1/port_number", "-1\n") },
		"the device has left":   func(x *tree) { x.Remove(dev) },
		"the tty has left":      func(x *tree) { x.Remove(iface + "/ttyUSB1/tty") },
		"link leads outside":    func(x *tree) { x.Symlink("class/tty/ttyUSB1", "/etc") },
		"link leads to itself":  func(x *tree) { x.Symlink("class/tty/ttyUSB1", "ttyUSB1") },
		"entry is a file":       func(x *tree) { x.Remove("class/tty/ttyUSB1"); x.Write("class/tty/ttyUSB1", "") },
		"interface has no name": func(x *tree) { x.Remove(iface + "/subsystem") },
		"device has no name":    func(x *tree) { x.Remove(dev + "/subsystem") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newTree(t)
			x.Adapter(pc, "1-1", "ttyUSB0", "10c4", "ea60", "")
			x.Adapter(pc, "1-2", "ttyUSB1", "10c4", "ea60", "")
			x.Adapter(pc, "1-3", "ttyUSB2", "10c4", "ea60", "")
			if n := len(x.scan(t)); n != 3 {
				t.Fatalf("%d ports before the damage", n)
			}
			damage(x)
			want := []string{"ttyUSB0 pci-0000:00:14.0-usb-0:1:1.0-port0", "ttyUSB2 pci-0000:00:14.0-usb-0:3:1.0-port0"}
			if d := cmp.Diff(want, where(x.scan(t))); d != "" {
				t.Error(d)
			}
		})
	}
}

// What is only for people may be missing.
func TestSparseSysfs(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	x.Adapter(pc, "1-2", "ttyUSB1", "10c4", "ea60", "")
	dev := discovertest.USBPath(pc, "1-2")
	x.Remove(dev + "/devnum")
	x.Remove(dev + "/1-2:1.0/driver")
	x.Remove(pc + "/usb1/bDeviceProtocol")
	ports := x.scan(t)
	if len(ports) != 1 || ports[0].ByPath == "" || ports[0].ByPathUSB != "" || ports[0].Driver != "" {
		t.Errorf("%+v", ports)
	}
	x.Remove(pc + "/subsystem") // a controller of which nobody has heard
	x.Remove("devices/pci0000:00/uevent")
	ports = x.scan(t)
	if len(ports) != 1 || ports[0].ByPath != "" || ports[0].Binding() != "usb:1-2:1.0-port0" {
		t.Errorf("%+v", ports)
	}
}

func TestNoSysfs(t *testing.T) {
	t.Parallel()
	_, err := Scan(Roots{Sys: t.TempDir()})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "sysfs") {
		t.Error(err)
	}
}

// Devices come and go while they are read: never an error, never a half one.
func TestScanWhileDevicesVanish(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	x.Adapter(pc, "1-1", "ttyUSB0", "10c4", "ea60", "steady")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				x.Adapter(pc, "1-2", "ttyUSB1", "10c4", "ea60", "flicker")
				x.Unplug(pc, "1-2")
			}
		}
	})
	for range 300 {
		ports, err := Scan(x.roots)
		if err != nil {
			t.Error(err)
		}
		if len(ports) == 0 || ports[0].Serial != "steady" || len(ports) > 2 {
			t.Errorf("%q", where(ports))
		}
		for _, p := range ports {
			if !strings.HasPrefix(p.ByPath, "pci-0000:00:14.0-usb-0:") || p.Interface == "" {
				t.Errorf("half a port: %+v", p)
			}
		}
	}
	close(stop)
	wg.Wait()
}

// A name that was right a moment ago is another board's now.
func TestLookup(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	x.Adapter(pc, "1-1", "ttyUSB0", "1a86", "7523", "")
	x.Adapter(pc, "1-2", "ttyUSB1", "1a86", "7523", "")
	x.Udev("pci-0000:00:14.0-usb-0:1:1.0-port0", "ttyUSB0")
	for _, name := range []string{"ttyUSB0", "ttyUSB1"} { // links need devices to lead to
		if err := os.WriteFile(filepath.Join(x.roots.Dev, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range x.scan(t) {
		if got, err := Lookup(x.roots, p.OpenPath()); err != nil || got != p {
			t.Errorf("%s is %+v, %v", p.OpenPath(), got, err)
		}
	}
	// A link of somebody's own, and a device that is a link itself (a PTY in tests).
	own := filepath.Join(x.Dev, "bench")
	if err := errors.Join(os.Remove(filepath.Join(x.Dev, "ttyUSB1")), os.Symlink("pts7", filepath.Join(x.Dev, "ttyUSB1")), os.Symlink("ttyUSB1", own)); err != nil {
		t.Fatal(err)
	}
	if got, err := Lookup(x.roots, own); err != nil || got.SysPath != "1-2" {
		t.Errorf("%+v, %v", got, err)
	}
	p := x.scan(t)[0]
	x.Unplug(pc, "1-1")
	x.Unplug(pc, "1-2")
	if _, err := Lookup(x.roots, p.OpenPath()); !errors.Is(err, ErrNotPresent) {
		t.Error(err)
	}
	x.Adapter(pc, "1-2", "ttyUSB0", "1a86", "7523", "") // udev's link is stale
	if got, err := Lookup(x.roots, p.OpenPath()); err != nil || got.Key() == p.Key() || got.SysPath != "1-2" {
		t.Errorf("%s is %+v, %v", p.OpenPath(), got, err)
	}
	for _, no := range []string{"", "/dev/null", "tty0", "../../etc/passwd", "/"} {
		if got, err := Lookup(x.roots, no); !errors.Is(err, ErrNotPresent) {
			t.Errorf("%q is %+v, %v", no, got, err)
		}
	}
}

// hub64 is what a station with 64 boards looks like: hubs of hubs.
func hub64(x *tree) (positions []string) {
	for i := range 64 {
		position := fmt.Sprintf("1-1.%d.%d", i/8+1, i%8+1)
		positions = append(positions, position)
		// The kernel numbers them as it finds them.
		x.Adapter(pc, position, fmt.Sprintf("ttyUSB%d", (i*37+11)%64), "1a86", "7523", "")
	}
	return positions
}

func TestHubOf64(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	positions := hub64(x)
	ports := x.scan(t)
	if len(ports) != 64 {
		t.Fatalf("%d ports", len(ports))
	}
	for i, p := range ports {
		if p.SysPath != positions[i] || p.ByPath != "pci-0000:00:14.0-usb-0:"+positions[i][2:]+":1.0-port0" {
			t.Errorf("%d: %s %s", i, p.SysPath, p.ByPath)
		}
	}
	// The whole branch of a hub leaves.
	x.Unplug(pc, "1-1.3")
	if n := len(x.scan(t)); n != 56 {
		t.Errorf("%d ports without a hub of eight", n)
	}
}

func TestRenumbering(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	for i := range 4 {
		x.Adapter(pc, fmt.Sprintf("1-%d", i+1), fmt.Sprintf("ttyUSB%d", i), "1a86", "7523", "")
	}
	b, err := ParseBinding("pci-0000:00:14.0-usb-0:4:1.0-port0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Find(b, x.scan(t))
	if err != nil || p.Name != "ttyUSB3" {
		t.Fatal(p, err)
	}
	x.Unplug(pc, "1-1")
	x.Unplug(pc, "1-4")
	if _, err := Find(b, x.scan(t)); !errors.Is(err, ErrNotPresent) {
		t.Fatal(err)
	}
	// udev has not cleared the old link away, and ttyUSB3 will be another board.
	x.Udev("pci-0000:00:14.0-usb-0:4:1.0-port0", "ttyUSB3")
	x.Adapter(pc, "1-4", "ttyUSB0", "1a86", "7523", "")
	x.Adapter(pc, "1-1", "ttyUSB3", "1a86", "7523", "")
	again, err := Find(b, x.scan(t))
	if err != nil || again.Name != "ttyUSB0" || again.OpenPath() != again.Device {
		t.Fatal(again, err)
	}
	if again.enumeration == p.enumeration || again.Key() != p.Key() || !again.same(p) {
		t.Errorf("%+v is not %+v on another enumeration", again, p)
	}
}

func BenchmarkScan64(b *testing.B) {
	x := newTree(b)
	hub64(x)
	b.ReportAllocs()
	for b.Loop() {
		if ports, err := Scan(x.roots); err != nil || len(ports) != 64 {
			b.Fatalf("%d ports, %v", len(ports), err)
		}
	}
}
