package discover

import (
	"context"
	"fmt"
	"testing"
)

// A watcher on a tree, with the allow-list of a station of 64: one hub of eight
// boards leaves and comes back in another order.
func TestWatchHubOf64(t *testing.T) {
	t.Parallel()
	x := newTree(t)
	var list []byte
	for i, position := range hub64(x) {
		list = fmt.Appendf(list, "slot: S%d\nport: pci-0000:00:14.0-usb-0:%s:1.0-port0\n---\n", i+1, position[2:])
	}
	list = append(list, "slot: extra\nport: usb:3-1\n"...)
	slots, err := ParsePorts("64.yaml", list, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBus()
	o := b.options()
	o.scan = nil
	ctx, cancel := context.WithCancel(t.Context())
	w := Watch(ctx, x.roots, o)
	u := <-w.Updates()
	a := Assign(slots, u.Ports)
	if len(u.Added) != 64 || len(a.Slots) != 64 || len(a.Errs) != 1 || len(a.Skipped) != 0 {
		t.Fatalf("%d added, %d slots, %v, %d skipped", len(u.Added), len(a.Slots), a.Errs, len(a.Skipped))
	}
	before := a.Slots

	x.unplug(pc, "1-1.3")
	b.hints <- nil
	u = <-w.Updates()
	if len(u.Changed) != 8 || len(u.Ports) != 64 {
		t.Fatalf("%s", tell(u))
	}
	for i := range 8 { // 1-1.3.8 first: it gets the lowest free number
		position := fmt.Sprintf("1-1.3.%d", 8-i)
		x.adapter(pc, position, fmt.Sprintf("ttyUSB%d", 64+i), "1a86", "7523", "")
	}
	b.hints <- nil
	u = <-w.Updates()
	a = Assign(slots, u.Ports)
	if len(u.Changed) != 8 || len(u.Added)+len(u.Removed) != 0 || len(a.Slots) != 64 {
		t.Fatalf("%s", tell(u))
	}
	for i := range 64 {
		name := fmt.Sprintf("S%d", i+1)
		was, is := before[name], a.Slots[name]
		moved := i/8 == 2
		if was.Key() != is.Key() || was.Visit != is.Visit || is.Away || (is.Generation == 2) != moved || (was.Device != is.Device) != moved {
			t.Errorf("%s: was %+v, is %+v", name, was, is)
		}
	}
	cancel()
	for range w.Updates() {
	}
}
