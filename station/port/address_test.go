package port_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/provisiond/provisiond/station/port"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]port.Address{
		"/dev/ttyUSB0": {Path: "/dev/ttyUSB0"},
		"./pty":        {Path: "./pty"},
		"/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0-port0": {
			Path: "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0-port0",
		},
		"socket://192.168.4.2:4000": {Scheme: port.Socket, Host: "192.168.4.2", Port: 4000},
		"socket://[fe80::1]:1":      {Scheme: port.Socket, Host: "fe80::1", Port: 1},
		"rfc2217://rack-3:65535":    {Scheme: port.RFC2217, Host: "rack-3", Port: 65535},
		"sim://esp32":               {Scheme: port.Sim, Chip: "esp32"},
		"sim://ESP32-C3?flash=4MB&app-prints=it%20runs+1&mac=": {
			Scheme: port.Sim, Chip: "ESP32-C3",
			Params: []port.Param{{Key: "flash", Value: "4MB"}, {Key: "app-prints", Value: "it runs+1"}, {Key: "mac"}},
		},
	} {
		got, err := port.Parse(name)
		if err != nil {
			t.Errorf("Parse(%q): %v", name, err)
			continue
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(port.Param{})); d != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", name, d)
		}
		if got.String() != name {
			t.Errorf("Parse(%q).String() = %q", name, got.String())
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, next := range map[string]string{
		"":                           "give a tty",
		"ttyUSB0":                    "write /dev/ttyUSB0",
		"/dev/tty\n":                 "no control characters",
		"tcp://h:1":                  "socket://host:port",
		"socket://h":                 "needs host and port",
		"socket://h:0":               "1 to 65535",
		"socket://h:65536":           "1 to 65535",
		"socket://h:080":             "1 to 65535",
		"socket://h:http":            "1 to 65535",
		"socket://:4000":             "write localhost",
		"socket://fe80::1:4000":      "needs host and port",
		"socket://[h]:4000":          "is written socket://h:4000",
		"rfc2217://u@h:1":            "only host and port",
		"rfc2217://h:1?logging":      "only host and port",
		"sim://":                     "known are esp32",
		"sim://esp8266":              "known are esp32",
		"sim://esp32?":               "there are mac",
		"sim://esp32?flash":          "there are mac",
		"sim://esp32?speed=1":        "there are mac",
		"sim://esp32?mac=a&mac=b":    "gives mac twice",
		"sim://esp32?app-prints=50%": "write %25",
	} {
		_, err := port.Parse(name)
		if err == nil || !strings.Contains(err.Error(), next) {
			t.Errorf("Parse(%q) = %v, want an error with %q", name, err, next)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/dev/ttyUSB0", "./pty", "socket://h:1", "socket://[::1]:4000", "rfc2217://h:4000",
		"sim://esp32", "sim://esp32c3?flash=4MB&faults=noise%3d1e-4", "sim://esp32?app-prints=a%20b", "x://", "socket://h:01",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := port.Parse(s)
		if err != nil {
			return
		}
		if a.String() != s {
			t.Fatalf("%q parses, but encodes to %q", s, a.String())
		}
	})
}
