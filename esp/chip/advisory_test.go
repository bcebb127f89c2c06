package chip_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// esp-facts H.2 and H 10, by chip and revision.
func TestAdvisories(t *testing.T) {
	for _, c := range []struct {
		chip string
		rev  chip.Revision
		want string
	}{
		{"esp32", 100, "CVE-2020-15048 AR2022-006 CVE-2018-18558 CVE-2024-28183"},
		{"esp32", 299, "CVE-2020-15048 AR2022-006 CVE-2018-18558 CVE-2024-28183"},
		{"esp32", 300, "CVE-2023-35818 AR2022-006 CVE-2018-18558 CVE-2024-28183"},
		{"esp32", 301, "CVE-2023-35818 AR2022-006 CVE-2018-18558 CVE-2024-28183"},
		{"esp32s2", 100, "AR2022-006 CVE-2024-28183"},
		{"esp32s3", 2, "AR2022-006 AR2022-004 CVE-2024-28183"},
		{"esp32s3", 3, "AR2022-006 CVE-2024-28183"},
		{"esp32c2", 200, "CVE-2024-28183"},
		{"esp32c3", 4, "AR2023-007 AR2022-006 CVE-2024-28183"},
		{"esp32c6", 2, "AR2023-007 CVE-2024-28183"},
		{"esp32h2", 1, "AES-11401 ECC-11400 BOOT-9537 SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32h2", 102, "SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32c5", 100, "HUK-576 FLASH-938 SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32c5", 102, "SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32c61", 100, "SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32p4", 103, "SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32p4", 300, "ROM-764 SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32p4", 301, "ROM-770 SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
		{"esp32p4", 302, "ROM-816 SECURE_BOOT_V2_ECDSA_INSECURE CVE-2024-28183"},
	} {
		m, err := chip.ByName(c.chip)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, a := range m.Advisories(c.rev) {
			ids = append(ids, a.ID)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.chip, c.rev, got, c.want)
		}
	}
}

func TestAdvisoryData(t *testing.T) {
	var ids []string
	for _, a := range chip.AllAdvisories() {
		if slices.Contains(ids, a.ID) || strings.ContainsAny(a.ID, " ,;\n") {
			t.Errorf("id %q", a.ID)
		}
		ids = append(ids, a.ID)
		if a.Statement == "" || a.Handling == "" || !strings.Contains(a.Source, "esp-facts") || a.Below != 0 && a.Below <= a.From || len(a.Chips) == 0 {
			t.Errorf("%+v", a)
		}
		if a.Sure != chip.SureRead && a.Sure != chip.SureReported && a.Sure != chip.SureInferred {
			t.Errorf("%s: sure %q", a.ID, a.Sure)
		}
		for _, name := range a.Chips {
			m, err := chip.ByName(name)
			if err != nil {
				t.Errorf("%s: %v", a.ID, err)
			}
			// What the vendor calls weak is what a recipe has to accept by name.
			if a.ID == "SECURE_BOOT_V2_ECDSA_INSECURE" && !m.SecureBoot.WeakECDSA {
				t.Errorf("%s: the model says that its ECDSA is not weak", name)
			}
		}
		if found, ok := chip.FindAdvisory(a.ID); !ok || found.Statement != a.Statement {
			t.Errorf("%s is not found", a.ID)
		}
	}
	for _, m := range chip.All() {
		if weak := m.SecureBoot.WeakECDSA; weak != slices.ContainsFunc(m.Advisories(9999), func(a chip.Advisory) bool { return a.ID == "SECURE_BOOT_V2_ECDSA_INSECURE" }) {
			t.Errorf("%s: weak ECDSA %v", m.Name, weak)
		}
		if m.Lockdown.ReleaseTrap != "" && !strings.Contains(m.Lockdown.ReleaseTrap, "ROM-770") {
			t.Errorf("%s: trap %q", m.Name, m.Lockdown.ReleaseTrap)
		}
	}
	if _, ok := chip.FindAdvisory("CVE-0000-0"); ok {
		t.Error("an advisory that nobody wrote")
	}
}
