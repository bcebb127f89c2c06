package chip_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

func TestRevision(t *testing.T) {
	for in, want := range map[string]chip.Revision{"0.3": 3, "v0.3": 3, "3.0": 300, "3.11": 311, "99.99": 9999} {
		got, err := chip.ParseRevision(in)
		if err != nil || got != want {
			t.Errorf("ParseRevision(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "3", "3.", ".3", "3.100", "100.0", "-1.0", "a.b", "3.0.1"} {
		if got, err := chip.ParseRevision(in); err == nil {
			t.Errorf("ParseRevision(%q) = %v, want an error", in, got)
		}
	}
	if s := chip.Revision(301).String(); s != "v3.1" {
		t.Errorf("301 prints as %s", s)
	}
}

func TestModelsAreCopies(t *testing.T) {
	a, err := chip.ByName("ESP32-C3")
	if err != nil {
		t.Fatal(err)
	}
	a.USBWatchdogs()[0].Addr = 1
	a.Lockdown.Fuses[0].Field = "changed"
	a.SecureBoot.RevokeFields[0] = "changed"
	a.SecureBoot.Schemes[0].MinimumRevision = 9999
	b, _ := chip.ByName("esp32c3")
	if b.USBWatchdogs()[0].Addr == 1 || b.Lockdown.Fuses[0].Field == "changed" ||
		b.SecureBoot.RevokeFields[0] == "changed" || b.SecureBoot.Schemes[0].MinimumRevision == 9999 {
		t.Error("a caller changed what another one sees")
	}
}

func TestLookup(t *testing.T) {
	for _, m := range chip.All() {
		for _, name := range []string{m.Name, m.Title, strings.ToUpper(m.Name)} {
			if byName, err := chip.ByName(name); err != nil || byName.ID != m.ID {
				t.Errorf("ByName(%s) = %s, %v", name, byName.Name, err)
			}
		}
		if byID, err := chip.ByID(m.ID); err != nil || byID.Name != m.Name {
			t.Errorf("ByID(%d) = %s, %v", m.ID, byID.Name, err)
		}
	}
	for _, name := range chip.Names() {
		if _, err := chip.ByName(name); err != nil {
			t.Error(err)
		}
	}
	if m, err := chip.ByMagic(0x00F01D83); err != nil || m.Name != "esp32" {
		t.Errorf("ByMagic: %s, %v", m.Name, err)
	}
	if _, err := chip.ByMagic(0xFFF0C101); !errors.Is(err, chip.ErrUnknown) {
		t.Errorf("an ESP8266 gave %v", err)
	}
}

func TestSensitive(t *testing.T) {
	c3, _ := chip.ByName("esp32c3")
	esp, _ := chip.ByName("esp32")
	for _, c := range []struct {
		m    chip.Model
		addr uint32
		want bool
	}{
		{c3, 0x60008800, true},  // PGM_DATA0
		{c3, 0x60008828, true},  // CHECK_VALUE2
		{c3, 0x6000882C, false}, // BLOCK0
		{c3, 0x6000889C, true},  // KEY0
		{c3, 0x6000895B, true},  // last byte of KEY5
		{c3, 0x6000895C, false}, // SYS_DATA2
		{c3, 0x600089D4, false}, // CMD
		{esp, 0x3FF5A000, false},
		{esp, 0x3FF5A038, true}, // BLOCK1
		{esp, 0x3FF5A098, true}, // BLOCK1 write registers
		{esp, 0x3FF5A0F8, false},
		{esp, 0, false},
	} {
		if got := c.m.SensitiveEFuse(c.addr); got != c.want {
			t.Errorf("%s 0x%08x: sensitive %v, want %v", c.m.Name, c.addr, got, c.want)
		}
	}
}

func TestMAC(t *testing.T) {
	m, err := chip.ParseMAC("02:0a:c4:00:00:01")
	if err != nil || !m.LocallyAdministered() || m.String() != "02:0a:c4:00:00:01" {
		t.Errorf("%v %v", m, err)
	}
	for _, in := range []string{"", "24:0a:c4:00:00", "24:0A:c4:00:00:01", "../../../x", "24:0a:c4:00:00:1", "2g:0a:c4:00:00:01"} {
		if _, err := chip.ParseMAC(in); err == nil {
			t.Errorf("ParseMAC(%q) gave no error", in)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	f.Add("24:0a:c4:00:00:01")
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := chip.ParseMAC(s); err == nil && m.String() != s {
			t.Errorf("%q reads as %s", s, m)
		}
	})
}
