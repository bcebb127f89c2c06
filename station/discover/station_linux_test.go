package discover

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
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
	o.Grace = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	w := Watch(ctx, x.roots, o)
	u := <-w.Updates()
	a := Assign(slots, u.Ports)
	if len(u.Added) != 64 || len(a.Slots) != 64 || len(a.Errs) != 1 || len(a.Skipped) != 0 {
		t.Fatalf("%d added, %d slots, %v, %d skipped", len(u.Added), len(a.Slots), a.Errs, len(a.Skipped))
	}
	before := a.Slots

	// The watcher may look while the tree is changed, so it may tell in parts. All
	// are adapters: each return is a new visit.
	until := func(done func(Seen) bool) Update {
		b.hints <- nil
		for {
			u := <-w.Updates()
			if len(u.Added) != len(u.Removed) || len(u.Ports) != 64 {
				t.Fatalf("%s", tell(u))
			}
			n := 0
			for _, s := range u.Ports {
				if strings.HasPrefix(s.SysPath, "1-1.3.") && done(s) {
					n++
				}
			}
			if n == 8 {
				return u
			}
		}
	}
	x.Unplug(pc, "1-1.3")
	until(func(s Seen) bool { return s.Away })
	for i := range 8 { // 1-1.3.8 first: it gets the lowest free number
		position := fmt.Sprintf("1-1.3.%d", 8-i)
		x.Adapter(pc, position, fmt.Sprintf("ttyUSB%d", 64+i), "1a86", "7523", "")
	}
	u = until(func(s Seen) bool { return !s.Away })
	if a = Assign(slots, u.Ports); len(a.Slots) != 64 {
		t.Fatalf("%d slots have a port", len(a.Slots))
	}
	for i := range 64 {
		name := fmt.Sprintf("S%d", i+1)
		was, is := before[name], a.Slots[name]
		moved := i/8 == 2
		if was.Key() != is.Key() || (was.Visit != is.Visit) != moved || is.Away || (is.Generation > 1) != moved || (was.Device != is.Device) != moved {
			t.Errorf("%s: was %+v, is %+v", name, was, is)
		}
	}
	cancel()
	for range w.Updates() {
	}
}
