//go:build linux

package port_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/station/port"
)

func newSim(t *testing.T) *espsim.Chip {
	t.Helper()
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	c, err := espsim.New(espsim.Options{Model: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSim(t *testing.T) {
	p := open(t, "sim://esp32c3?mac=02:00:00:00:00:07&flash=8MB&revision=0.4", port.Options{})
	want := rom.PortInfo{Name: "sim://esp32c3?mac=02:00:00:00:00:07&flash=8MB&revision=0.4", Lines: true}
	if got := p.Info(); got != want {
		t.Errorf("Info = %+v, want %+v", got, want)
	}
	if err := p.SetBaud(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "not a rate") {
		t.Errorf("SetBaud(0): %v", err)
	}
}

func TestSimFaults(t *testing.T) {
	p := open(t, "sim://esp32?faults=unplug%3d3", port.Options{})
	n, err := p.Write(t.Context(), []byte("123456"))
	if n != 2 || !errors.Is(err, rom.ErrUnplugged) || !strings.Contains(err.Error(), "sim://esp32") {
		t.Errorf("Write gave %d, %v", n, err)
	}
	if err := p.Reopen(t.Context()); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Reopen gave %v", err)
	}
}

func TestFromSim(t *testing.T) {
	c := newSim(t)
	p := port.FromSim(c, "slot 3")
	c.Unplug()
	for name, call := range calls {
		if err := call(t.Context(), p); !errors.Is(err, rom.ErrUnplugged) || !strings.Contains(err.Error(), "slot 3") {
			t.Errorf("%s of an unplugged board gave %v", name, err)
		}
	}
	c.Plug()
	if err := p.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.SetLines(t.Context(), false, true); err != nil {
		t.Error(err)
	}
	if _, ok := p.(io.Closer); ok {
		t.Error("the port could close a board that it does not own")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := calls["Read"](t.Context(), p); err == nil || errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Read of a closed board gave %v", err)
	}
}

func TestSimRefuses(t *testing.T) {
	for name, want := range map[string]string{
		"sim://esp32?mac=02-00":                "mac: ",
		"sim://esp32?revision=new":             "revision: ",
		"sim://esp32?flash=4":                  "write it as 4MB",
		"sim://esp32?flash=0MB":                "write it as 4MB",
		"sim://esp32?flash=512MB":              "no flash of",
		"sim://esp32?faults=gremlins":          "faults: ",
		"sim://esp32?state=":                   "name a directory",
		"sim://esp32?state=/dev/null/no/such/": "/dev/null",
	} {
		if _, err := port.Open(t.Context(), name, port.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", name, err, want)
		}
	}
}
