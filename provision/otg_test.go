package provision_test

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// otgPort is a board on its chip's own USB-OTG.
type otgPort struct{ rom.Port }

func (p otgPort) Info() rom.PortInfo {
	i := p.Port.Info()
	i.USBOTG = true
	return i
}

// Flash encryption turns the loader on USB-OTG off, so a unit begun there would be
// lost in the middle: it is refused before anything is written.
func TestUSBOTGIsRefused(t *testing.T) {
	m := model(t, "esp32s3")
	b := newMemoryBench(t)
	c := b.board(espsim.Options{Model: m})
	e := &provision.Engine{Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1"}
	r := e.Run(t.Context(), provision.Line{Port: otgPort{port.FromSim(c, "sim")}, Reset: rom.AutoReset{}}, sampleJob(t, "esp32s3", "hybrid"))
	if r.Cause != provision.CauseRefused || !strings.Contains(r.Reason, "USB-OTG") {
		t.Errorf("%s %s: %s", r.Verdict, r.Cause, r.Reason)
	}
	if c.Burns() != 0 || c.Requests(0x02) != 0 {
		t.Errorf("%d burns, %d flash writes begun", c.Burns(), c.Requests(0x02))
	}
}
