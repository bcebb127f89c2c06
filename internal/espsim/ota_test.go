package espsim

import (
	"bytes"
	"errors"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
)

// bootingChip is a board without flash encryption that runs the sample product.
func bootingChip(t *testing.T, name string) *Chip {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	c := newChip(t, Options{Model: m, Rollback: true})
	files, err := sample.Files(sample.Product{Chip: m})
	if err != nil {
		t.Fatal(err)
	}
	for at, data := range files {
		if err := c.Flash().Program(at, data); err != nil {
			t.Fatal(err)
		}
	}
	c.ResetInto(false)
	return c
}

// TestApp: an app writes its next slot raw and not its own, and is gone after a reset.
func TestApp(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		t.Run(name, func(t *testing.T) {
			c := bootingChip(t, name)
			a, err := c.App()
			if err != nil {
				t.Fatal(err)
			}
			next, err := a.Next()
			if err != nil || a.Running().Name != "factory" || next.Name != "ota_0" {
				t.Fatalf("runs %+v, next %+v: %v", a.Running(), next, err)
			}
			app := make([]byte, 0x8000)
			if err := a.ReadRaw(app, a.Running().Offset); err != nil {
				t.Fatal(err)
			}
			if err := a.Erase(next.Offset, 0x8000); err != nil {
				t.Fatal(err)
			}
			if err := a.Program(next.Offset, app); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(app))
			if err := a.ReadRaw(got, next.Offset); err != nil || !bytes.Equal(got, app) {
				t.Fatalf("what was written raw does not read back: %v", err)
			}
			for what, err := range map[string]error{
				"erase":   a.Erase(a.Running().Offset, 0x1000),
				"program": a.Program(a.Running().Offset+4, []byte{0}),
				"overlap": a.Program(a.Running().Offset-4, make([]byte, 8)),
			} {
				if !errors.Is(err, ErrGuarded) {
					t.Errorf("%s of the running app: %v", what, err)
				}
			}
			cut := errors.New("cut")
			if _, err := a.SetBoot(next, func(bootrom.Write) error { return cut }); !errors.Is(err, cut) {
				t.Errorf("a write that fails: %v", err)
			}
			if text, err := a.SetBoot(next, nil); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			c.Power(false)
			c.Power(true)
			if _, err := a.Next(); !errors.Is(err, ErrNoApp) {
				t.Errorf("an app of an earlier boot: %v", err)
			}
			b, err := c.App()
			if err != nil || b.Running() != next {
				t.Fatalf("runs %+v: %v\n%s", b.Running(), err, c.BootText())
			}
			if s, err := b.State(next); err != nil || s != bootrom.OTAPendingVerify {
				t.Errorf("state %d: %v", s, err)
			}
			if err := b.Confirm(); err != nil {
				t.Fatal(err)
			}
			if s, _ := b.State(next); s != bootrom.OTAValid {
				t.Errorf("state %d", s)
			}
			if err := b.Refuse(); err != nil {
				t.Fatal(err)
			}
			c.ResetInto(false)
			if b, err = c.App(); err != nil || b.Running().Name != "factory" {
				t.Errorf("after it refused itself: %+v, %v", b.Running(), err)
			}
			c.Power(false)
			if _, err := c.App(); !errors.Is(err, ErrNoApp) {
				t.Errorf("without power: %v", err)
			}
		})
	}
}

// TestSecureVersion: the field holds as many bits as the version says.
func TestSecureVersion(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		c := bootingChip(t, name)
		for _, v := range []uint32{1, 3} {
			if err := c.raiseSecureVersion(v); err != nil || c.secureVersion() != v {
				t.Errorf("%s: %d after raising to %d: %v", name, c.secureVersion(), v, err)
			}
		}
		if err := c.raiseSecureVersion(33); err == nil {
			t.Errorf("%s takes secure version 33", name)
		}
	}
}
