package discover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const placeA = "pci-0000:00:14.0-usb-0:1.2:1.0-port0"

func TestParseBinding(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		placeA, byPathDir + placeA, "platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.4:1.0-port0", "platform-fe201000.serial",
		"pci-0000:00:14.0-usbv2-0:1:1.0", "usb:1-1", "usb:1-1.2", "usb:12-1.2.3.4:1.0", "usb:1-1:1.0-port1",
	} {
		b, err := ParseBinding(s)
		if err != nil || b.String() != s || !b.Local() {
			t.Errorf("%s: %v, %v", s, b, err)
		}
		if _, ok := b.Address(); ok {
			t.Errorf("%s is an address", s)
		}
	}
	for _, s := range []string{"socket://192.168.4.2:4000", "rfc2217://[::1]:4000", "sim://esp32c3?mac=02:00:00:00:00:01"} {
		b, err := ParseBinding(s)
		if a, ok := b.Address(); err != nil || b.Local() || !ok || a.String() != s {
			t.Errorf("%s: %v, %v", s, b, err)
		}
	}
	for s, says := range map[string]string{
		"":                                "is empty",
		"/dev/ttyUSB0":                    "another board after the next re-plug",
		"ttyACM12":                        "another board after the next re-plug",
		"/dev/ttyS0":                      "another board after the next re-plug",
		"/dev/serial/by-id/usb-FTDI-if0":  "follows the adapter",
		"/dev/my-fixture":                 "is not in /dev/serial/by-path/",
		"A1":                              "is no port",
		"usb:1":                           "is no place on a USB bus",
		"usb:1-1:1":                       "is no place on a USB bus",
		"usb:1-1.":                        "is no place on a USB bus",
		"usb:1-1-port0":                   "is no place on a USB bus",
		"usb:1-1:1.0-port01":              "has no port 01",
		"usb:1-1:1.0-port999":             "has no port 999",
		"socket://nowhere":                "needs host and port",
		"sim://esp99":                     "esp99",
		"pci-0000:00:14.0/../ttyUSB0":     "is no port",
		byPathDir + "../../ttyUSB0":       "is not in",
		"pci-\x1b[2J":                     "is no port",
		"pci-" + strings.Repeat("x", 300): "is longer",
	} {
		if b, err := ParseBinding(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.50q: %+v, %v", s, b, err)
		}
	}
}

func FuzzParseBinding(f *testing.F) {
	for _, s := range []string{placeA, byPathDir + placeA, "usb:1-1.2:1.0-port1", "socket://h:1", "sim://esp32", "/dev/ttyUSB0", ""} {
		f.Add(s)
	}
	ports := []Port{{ByPath: placeA, SysPath: "1-1.2", Interface: "1.0", Name: "ttyUSB0"}}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBinding(s)
		if err != nil {
			return
		}
		if b.String() != s {
			t.Errorf("%q is written %q", s, b)
		}
		if _, addr := b.Address(); addr == b.Local() {
			t.Errorf("%q is local and an address, or neither", s)
		}
		if p, err := Find(b, ports); err == nil && !Match(b, p) {
			t.Errorf("%q finds %+v, which it does not match", s, p)
		}
		if numberedRE.MatchString(s) {
			t.Errorf("%q is taken", s)
		}
	})
}

func TestLoadPorts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("20-b.yaml", "# the left fixture\nslot: B1\nport: socket://10.0.0.7:4000\nreset_command: /usr/local/bin/reset-b1\n---\nslot: 02\nport: 'usb:1-1.3'\n")
	write("10-a.yaml", "slot: A1\nport: "+placeA+"\nbaud: 921600\nstart: plug\n")
	write(".hidden.yaml", "x")
	write("10-a.yaml.dpkg-dist", "x")
	write("README", "x")
	if err := os.Mkdir(filepath.Join(dir, "old.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	slots, err := LoadPorts(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range slots {
		got = append(got, fmt.Sprintf("%s %s %d %q %q %s:%d", s.Name, s.Port, s.Baud, s.Start, s.ResetCommand, filepath.Base(s.File), s.Line))
	}
	want := []string{
		`A1 ` + placeA + ` 921600 "plug" "" 10-a.yaml:1`,
		`B1 socket://10.0.0.7:4000 0 "" "/usr/local/bin/reset-b1" 20-b.yaml:2`,
		`02 usb:1-1.3 0 "" "" 20-b.yaml:6`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLoadPortsErrors(t *testing.T) {
	t.Parallel()
	now := []Port{{ByPath: placeA, SysPath: "1-1.2", Interface: "1.0", Name: "ttyUSB3", Device: "/dev/ttyUSB3"}}
	first := "slot: A1\nport: " + placeA + "\n"
	for name, c := range map[string]struct {
		text string
		want []string // at the end of each error's line
	}{
		"a number":            {"slot: A2\nport: /dev/ttyUSB3\n", []string{`b.yaml:2: port: "/dev/ttyUSB3" is a number that the kernel gives to another board after the next re-plug: write its name from /dev/serial/by-path/, or usb:BUS-PORT; it is now at ` + placeA + `: write that`}},
		"a number, not there": {"slot: A2\nport: /dev/ttyUSB9\n", []string{"or usb:BUS-PORT"}},
		"slot again":          {"# x\nslot: a1\nport: usb:1-1\n", []string{"b.yaml:2: slot: a1 is in DIR/a.yaml:1 already; give every slot a name of its own"}},
		"port again":          {"slot: A2\nport: /dev/serial/by-path/" + placeA + "\n", []string{"b.yaml:2: port: /dev/serial/by-path/" + placeA + " belongs to slot A1 in DIR/a.yaml:1 already; one port per slot"}},
		"port in new words":   {"slot: A2\nport: " + strings.Replace(placeA, "usb-", "usbv2-", 1) + "\n", []string{"belongs to slot A1 in DIR/a.yaml:1 already; one port per slot"}},
		"unknown key":         {"slot: A2\nport: usb:1-1\nbuad: 115200\n", []string{`b.yaml:3: "buad": is not a key of a slot; there are slot, port, baud, start, reset_command`}},
		"key twice":           {"slot: A2\nslot: A3\nport: usb:1-1\n", []string{"b.yaml:2: slot: is on line 1 too; keep one of them"}},
		"everything missing":  {"{}\n", []string{"b.yaml:1: slot: is missing; write slot: A1", "b.yaml:1: port: is missing; " + examples["port"]}},
		"wrong values": {
			"slot: A 2\nport: x\nbaud: 0115200\nstart: never\nreset_command: reset\n",
			[]string{
				`b.yaml:1: slot: "A 2" is not a name: letters, digits, - and _, at most 32; write slot: A1`, "b.yaml:2: port: " + `"x" is no port: write a name from /dev/serial/by-path/, usb:1-1.2, socket://host:port or sim://CHIP`,
				`b.yaml:3: baud: "0115200" is not a rate from 9600 to 4000000; write baud: 921600`, `b.yaml:4: start: "never" starts nothing; write plug, scan or button`,
				"b.yaml:5: reset_command: is not the absolute path of a program; " + examples["reset_command"],
			},
		},
		"a list":      {"- slot: A2\n", []string{"b.yaml:1: is no list of keys and values; write slot: A1 and, on the next line, port: with its port"}},
		"list inside": {"slot: [A2]\nport: usb:1-1\n", []string{"b.yaml:1: slot: needs one plain value; write slot: A1"}},
		"nothing":     {"slot:\nport: usb:1-1\n", []string{"b.yaml:1: slot: needs one plain value; write slot: A1"}},
		"alias":       {"slot: &x A2\nport: *x\n", []string{"b.yaml:1: slot: needs one plain value; write slot: A1", "b.yaml:2: port: needs one plain value; " + examples["port"]}},
		"tag":         {"slot: !!binary QTI=\nport: usb:1-1\n", []string{"b.yaml:1: slot: needs one plain value; write slot: A1"}},
		"no YAML":     {"slot: A2\n\tport: usb:1-1\n", []string{"write lines such as slot: A1"}},
		"no slot":     {"# nothing\n", []string{"b.yaml: holds no slot; write slot: and port:, or remove the file"}},
		"no text":     {"slot: \xff\n", []string{"b.yaml: holds bytes that are not UTF-8; save the file as UTF-8"}},
		"too long":    {strings.Repeat("# \n", maxDropIn), []string{"is longer than 65536 bytes; spread the slots over several files"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"a.yaml": first, "b.yaml": c.text} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			slots, err := LoadPorts(dir, now)
			var one *Error
			if err == nil || slots != nil || !errors.As(err, &one) || one.Problem == "" {
				t.Fatalf("%+v, %v", slots, err)
			}
			lines := strings.Split(strings.ReplaceAll(err.Error(), dir, "DIR"), "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("%d errors:\n%s", len(lines), err)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], "DIR/b.yaml") || !strings.HasSuffix(lines[i], want) {
					t.Errorf("got  %s\nwant …%s", lines[i], want)
				}
			}
		})
	}
}

func TestLoadPortsDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if slots, err := LoadPorts(dir, nil); err != nil || len(slots) != 0 {
		t.Errorf("an empty list: %v, %v", slots, err)
	}
	if _, err := LoadPorts(filepath.Join(dir, "no"), nil); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.yml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPorts(dir, nil); err == nil || !strings.Contains(err.Error(), "a.yml: is not read: only *.yaml is; rename it") {
		t.Error(err)
	}
	if err := os.Rename(filepath.Join(dir, "a.yml"), filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i := range maxSlots + 1 {
		fmt.Fprintf(&b, "slot: A%d\nport: usb:1-%d\n---\n", i, i+1)
	}
	text := strings.TrimSuffix(b.String(), "---\n")
	if slots, err := ParsePorts("x", []byte(text), nil); err == nil || !strings.Contains(err.Error(), "1024 slots") {
		t.Errorf("%d slots, %v", len(slots), err)
	}
}

func FuzzParsePorts(f *testing.F) {
	f.Add([]byte("slot: A1\nport: " + placeA + "\nbaud: 921600\nstart: plug\nreset_command: /bin/true\n---\nslot: '02'\nport: usb:1-1\n"))
	f.Add([]byte("slot: {a: [b]}\n? - x\n: y\n"))
	f.Add([]byte("slot: true\nport: usb:1-1:1.0-port0\n"))
	f.Add([]byte("---\n---\n...\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		slots, err := ParsePorts("f", b, nil)
		if err != nil {
			return
		}
		var again []byte
		for _, s := range slots {
			again = append(again, "---\n"...)
			again = append(again, s.YAML()...)
		}
		reread, err := ParsePorts("f", again, nil)
		if err != nil || len(reread) != len(slots) {
			t.Fatalf("%q reads, but not as %q: %v", b, again, err)
		}
		for i, s := range slots {
			r := reread[i]
			if s.Name != r.Name || s.Port.String() != r.Port.String() || s.Baud != r.Baud || s.Start != r.Start || s.ResetCommand != r.ResetCommand {
				t.Errorf("%+v became %+v", s, r)
			}
		}
	})
}

func TestAssign(t *testing.T) {
	t.Parallel()
	slots, err := ParsePorts("x", []byte(`
slot: A1
port: pci-0000:00:14.0-usb-0:1:1.0-port0
---
slot: A2
port: usb:1-2
---
slot: A3
port: usb:1-3
---
slot: A4
port: pci-0000:00:14.0-usb-0:4:1.0-port0
---
slot: A5
port: usb:1-4
---
slot: A6
port: usb:1-4:1.0
---
slot: N1
port: socket://h:1
---
slot: A9
port: usb:1-9
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := func(position, iface string) Seen {
		return Seen{Port: Port{SysPath: position, Interface: iface, ByPath: "pci-0000:00:14.0-usb-0:" + position[2:] + ":" + iface + "-port0"}, Visit: 3}
	}
	ports := []Seen{seen("1-1", "1.0"), seen("1-2", "1.0"), seen("1-3", "1.0"), seen("1-3", "1.1"), seen("1-4", "1.0"), seen("1-5", "1.0")}
	a := Assign(slots, ports)
	if len(a.Slots) != 2 || a.Slots["A1"] != ports[0] || a.Slots["A2"] != ports[1] {
		t.Errorf("%+v", a.Slots)
	}
	for slot, want := range map[string]error{"A3": ErrAmbiguous, "A4": ErrConflict, "A5": ErrConflict, "A6": ErrConflict, "A9": ErrNotPresent} {
		if !errors.Is(a.Errs[slot], want) {
			t.Errorf("%s: %v, want %v", slot, a.Errs[slot], want)
		}
	}
	if len(a.Errs) != 5 || !strings.Contains(a.Errs["A4"].Error(), "A4, A5, A6") {
		t.Errorf("%v", a.Errs)
	}
	if len(a.Skipped) != 1 || a.Skipped[0] != ports[5] {
		t.Errorf("%+v", a.Skipped)
	}
}

func TestNaturally(t *testing.T) {
	t.Parallel()
	order := []string{"", "1-1", "1-1.2", "1-1.9", "1-1.10", "1-2", "1-02", "1-10", "2-1", "a"}
	for i, a := range order {
		for j, b := range order {
			if got := naturally(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
}
