package discover

import (
	"bytes"
	"strings"
	"testing"
)

// As the kernel sent it for a port of a fixture and, at the end, what is not of
// the kernel.
var uevents64 = []string{
	"add@/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/tty/ttyACM0\x00ACTION=add\x00DEVPATH=/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/tty/ttyACM0\x00SUBSYSTEM=tty\x00MAJOR=166\x00MINOR=0\x00DEVNAME=ttyACM0\x00SEQNUM=820\x00",
	"remove@/devices/pnp0/00:00/tty/ttyS0\x00ACTION=remove\x00DEVPATH=/devices/pnp0/00:00/tty/ttyS0\x00SUBSYSTEM=tty\x00SYNTH_UUID=0\x00EMPTY=\x00A=B=C\x00",
	"change@/devices/virtual/block/loop0\x00ACTION=change\x00SUBSYSTEM=block\x00",
}

var noUevents = []string{
	"", "\x00", "add", "add@/x", "@/x\x00ACTION=\x00", "add@x\x00ACTION=add\x00", "add@/x\x00ACTION=remove\x00", "add@/x\x00",
	"add@/x\x00ACTION=add\x00=value\x00", "add@/x\x00ACTION=add\x00alone\x00", "add@/x\x00ACTION=add\x00CUT=of", "add@/x\x00ACTION=add\x00BAD=\xff\x00",
	"libudev\x00\xfe\xed\xca\xfe\x28\x00\x00\x00", "add@/x\x00ACTION=add\x00LONG=" + strings.Repeat("x", maxUevent) + "\x00",
}

func TestParseUevent(t *testing.T) {
	t.Parallel()
	for i, want := range []struct {
		action, name, value string
		ports               bool
	}{{"add", "DEVNAME", "ttyACM0", true}, {"remove", "A", "B=C", true}, {"change", "SUBSYSTEM", "block", false}} {
		u, err := ParseUevent([]byte(uevents64[i]))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := u.Get(want.name); u.Action != want.action || !ok || got != want.value || u.aboutPorts() != want.ports {
			t.Errorf("%+v", u)
		}
		if got := u.Encode(); string(got) != uevents64[i] {
			t.Errorf("encodes as %q", got)
		}
	}
	for _, s := range noUevents {
		if u, err := ParseUevent([]byte(s)); err == nil {
			t.Errorf("%.60q is %+v", s, u)
		}
	}
}

func FuzzParseUevent(f *testing.F) {
	for _, s := range uevents64 {
		f.Add([]byte(s))
	}
	for _, s := range noUevents {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := ParseUevent(b)
		if err != nil {
			return
		}
		if got := u.Encode(); !bytes.Equal(got, b) {
			t.Errorf("%q encodes as %q", b, got)
		}
	})
}
