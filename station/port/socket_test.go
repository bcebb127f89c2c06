//go:build linux

package port_test

import (
	"errors"
	"net"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/station/port"
)

func TestSocketReset(t *testing.T) {
	b := socketBoard(t)
	if err := b.far.(*net.TCPConn).SetLinger(0); err != nil { // closing then sends RST
		t.Fatal(err)
	}
	b.unplug()
	if err := calls["Read"](t.Context(), b.port); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Read gave %v", err)
	}
	if err := calls["Write"](t.Context(), b.port); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Write gave %v", err)
	}
}

func TestSocketSetBaudDoesNothing(t *testing.T) {
	b := socketBoard(t)
	if err := b.port.SetBaud(t.Context(), 921600); err != nil {
		t.Error(err)
	}
}

func TestSocketReopen(t *testing.T) {
	l := listen(t)
	conns := accept(t, l)
	p := open(t, "socket://"+l.Addr().String(), port.Options{})
	_ = (<-conns).Close()
	if err := calls["Read"](t.Context(), p); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("Read gave %v", err)
	}
	if err := p.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := (<-conns).Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := readFull(t.Context(), p, 1); err != nil {
		t.Error(err)
	}

	_ = l.Close()
	if err := p.Reopen(t.Context()); err == nil {
		t.Error("Reopen reached a server that has gone")
	}
	if err := calls["Read"](t.Context(), p); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("after a failed Reopen, Read gave %v", err)
	}
}
