package systemd_test

import (
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// udev 252 has no program that checks rules (`udevadm verify` is of 254), so this is
// what udev(7) says of the few keys that our rules have: enough to play events.

type device struct {
	subsystem, driver string
	attrs, env        map[string]string
	parent            *device
}

type term struct{ key, arg, op, value string }

var (
	termForm  = regexp.MustCompile(`^([A-Z]+)(?:\{([^}"]+)\})?(==|!=|=)"([^"]*)"$`)
	matchKeys = regexp.MustCompile(`^(ACTION|SUBSYSTEM|SUBSYSTEMS|DRIVERS|ATTRS|ENV)$`)
	setKeys   = regexp.MustCompile(`^(GOTO|LABEL|ENV|ATTR)$`)
)

func rules(text string) ([][]term, error) {
	var all [][]term
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		var rule []term
		for _, word := range strings.Split(line, ", ") {
			m := termForm.FindStringSubmatch(word)
			if m == nil {
				return nil, fmt.Errorf("line %d: %s is no term", i+1, word)
			}
			known := matchKeys
			if m[3] == "=" {
				known = setKeys
			}
			needsArg := m[1] == "ATTRS" || m[1] == "ENV" || m[1] == "ATTR"
			if !known.MatchString(m[1]) || needsArg != (m[2] != "") {
				return nil, fmt.Errorf("line %d: %s is not what this check knows", i+1, word)
			}
			rule = append(rule, term{m[1], m[2], m[3], m[4]})
		}
		all = append(all, rule)
	}
	return all, nil
}

func glob(pattern, value string) bool {
	for _, p := range strings.Split(pattern, "|") {
		if ok, err := path.Match(p, value); err == nil && ok {
			return true
		}
	}
	return false
}

// matches: keys in the plural look at the device and those above it, and all of one
// rule must hold for the same one.
func matches(rule []term, action string, d *device) bool {
	var up []term
	for _, m := range rule {
		var value string
		switch m.key {
		case "ACTION":
			value = action
		case "SUBSYSTEM":
			value = d.subsystem
		case "ENV":
			value = d.env[m.arg]
		default:
			up = append(up, m)
			continue
		}
		if m.op != "=" && glob(m.value, value) != (m.op == "==") {
			return false
		}
	}
	for at := d; at != nil; at = at.parent {
		if holds(up, at) {
			return true
		}
	}
	return false
}

func holds(up []term, at *device) bool {
	for _, m := range up {
		var value string
		ok := true
		switch {
		case m.op == "=":
			continue
		case m.key == "SUBSYSTEMS":
			value = at.subsystem
		case m.key == "DRIVERS":
			value = at.driver
		case m.key == "ATTRS":
			value, ok = at.attrs[m.arg]
		}
		if (ok && glob(m.value, value)) != (m.op == "==") {
			return false
		}
	}
	return true
}

// play gives what the rules set for an event.
func play(t *testing.T, all [][]term, action string, d *device) map[string]string {
	t.Helper()
	set := map[string]string{}
	skip := ""
	for _, rule := range all {
		if skip != "" {
			if rule[0].key == "LABEL" && rule[0].value == skip {
				skip = ""
			}
			continue
		}
		if !matches(rule, action, d) {
			continue
		}
		for _, a := range rule {
			switch {
			case a.op != "=":
			case a.key == "GOTO":
				skip = a.value
			case a.key != "LABEL":
				set[a.key+"."+a.arg] = a.value
			}
		}
	}
	if skip != "" {
		t.Fatalf("GOTO=%q leads nowhere", skip)
	}
	return set
}

func usb(vendor, product string, parent *device) *device {
	return &device{
		subsystem: "usb", driver: "usb", parent: parent, env: map[string]string{"DEVTYPE": "usb_device"},
		attrs: map[string]string{"idVendor": vendor, "idProduct": product},
	}
}

func child(parent *device, subsystem, driver string) *device {
	return &device{subsystem: subsystem, driver: driver, parent: parent, env: map[string]string{}, attrs: map[string]string{}}
}

// serial is what the kernel makes of an adapter: interface, port, tty.
func serial(vendor, product, driver string, parent *device) (dev, port, tty *device) {
	dev = usb(vendor, product, parent)
	port = child(child(dev, "usb", driver), "usb-serial", driver)
	return dev, port, child(port, "tty", "")
}

func TestUdevRules(t *testing.T) {
	text, err := os.ReadFile("60-provisiond.rules")
	if err != nil {
		t.Fatal(err)
	}
	all, err := rules(string(text))
	if err != nil {
		t.Fatal(err)
	}
	hub := usb("05e3", "0610", nil)
	ftdi, ftdiPort, ftdiTTY := serial("0403", "6001", "ftdi_sio", hub)
	cp, cpPort, cpTTY := serial("10c4", "ea60", "cp210x", hub)
	_, _, ch343TTY := serial("1a86", "55d3", "ch341-uart", hub)
	modem, modemPort, modemTTY := serial("12d1", "1506", "option", hub)
	// Vendor of one, product of the other: not to be put together.
	mixed, _, mixedTTY := serial("0403", "7523", "option", usb("1a86", "8091", nil))
	chip := usb("303a", "1001", hub)
	chipTTY := child(child(chip, "usb", "cdc_acm"), "tty", "")
	ignore := map[string]string{"ENV.ID_MM_DEVICE_IGNORE": "1"}
	fast := map[string]string{"ATTR.latency_timer": "1"}
	for _, tc := range []struct {
		name, action string
		d            *device
		want         map[string]string
	}{
		{"chip", "add", chip, ignore},
		{"chip's tty", "add", chipTTY, ignore},
		{"chip goes", "remove", chipTTY, nil},
		{"ftdi", "add", ftdi, ignore},
		{"ftdi's port", "bind", ftdiPort, fast},
		{"ftdi's port comes", "add", ftdiPort, fast},
		{"ftdi's tty", "add", ftdiTTY, ignore},
		{"cp2102", "change", cp, ignore},
		{"cp2102's port", "bind", cpPort, nil},
		{"cp2102's tty", "add", cpTTY, ignore},
		{"ch343's tty", "add", ch343TTY, ignore},
		{"modem", "add", modem, nil},
		{"modem's port", "bind", modemPort, nil},
		{"modem's tty", "add", modemTTY, nil},
		{"mixed", "add", mixed, nil},
		{"mixed tty", "add", mixedTTY, nil},
		{"hub", "add", hub, nil},
		{"board's own uart", "add", child(child(nil, "platform", "uart"), "tty", ""), nil},
		{"disk", "add", child(usb("0403", "6001", nil), "block", ""), nil},
	} {
		if got := play(t, all, tc.action, tc.d); !maps.Equal(got, tc.want) {
			t.Errorf("%s: set %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestRulesOfBadForm(t *testing.T) {
	for _, text := range []string{
		`SUBSYSTEM="usb"`, `SUBSYSTEM=="usb",ENV{X}="1"`, `ENV=="1"`, `RUN+="x"`, `FOO=="x"`, `ATTRS{a}=="x`,
	} {
		if _, err := rules(text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
