//go:build linux

package port_test

import (
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/serve"
	"github.com/provisiond/provisiond/station/port"
)

var (
	_ rom.Resetter = port.CommandReset{}
	_ rom.Resetter = port.OperatorReset{}
)

// The registers with the low word of the base MAC.
var mac0 = map[string]uint32{"esp32": 0x3FF5A004, "esp32c3": 0x60008844}

// readMAC0 has the ROM's client read the low word of the MAC: that takes resets
// over the lines, another rate, and data both ways.
func readMAC0(t *testing.T, p rom.Port) uint32 {
	t.Helper()
	c, err := rom.Connect(t.Context(), p, rom.DefaultReset(p.Info()), rom.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Detect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ChangeBaud(t.Context(), 460800); err != nil {
		t.Fatal(err)
	}
	v, err := c.ReadReg(t.Context(), mac0[m.Name])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestClientOverSim(t *testing.T) {
	p := open(t, "sim://esp32c3?mac=02:00:00:00:00:07", port.Options{})
	if got := readMAC0(t, p); got != 7 {
		t.Errorf("the MAC's low word is %#x", got)
	}
}

func TestClientOverRFC2217(t *testing.T) {
	c := newSim(t)
	want := c.MAC()
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- serve.RFC2217(t.Context(), l, c) }()
	p := open(t, "rfc2217://"+l.Addr().String(), port.Options{})
	if got, low := readMAC0(t, p), uint32(want[2])<<24|uint32(want[3])<<16|uint32(want[4])<<8|uint32(want[5]); got != low {
		t.Errorf("the MAC's low word is %#x, want %#x", got, low)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	_ = l.Close()
	if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A board lives on in its directory: it keeps the MAC that it was made with.
func TestSimState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "board")
	first := open(t, "sim://esp32?mac=02:00:00:00:00:09&state="+dir, port.Options{})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	p := open(t, "sim://esp32?state="+dir, port.Options{})
	if got := readMAC0(t, p); got != 9 {
		t.Errorf("the stored board's MAC ends in %#x", got)
	}
	if _, err := port.Open(t.Context(), "sim://esp32c3?state="+dir, port.Options{}); !errors.Is(err, espsim.ErrState) {
		t.Errorf("as another chip it gave %v", err)
	}
}
