package chip_test

import (
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

func TestSecureBootSupports(t *testing.T) {
	for _, c := range []struct {
		chip   string
		scheme chip.SignatureScheme
		rev    chip.Revision
		want   bool
	}{
		{"esp32", chip.SignRSA3072, 299, false},
		{"esp32", chip.SignRSA3072, 300, true},
		{"esp32", chip.SignECDSA256, 301, false},
		{"esp32c3", chip.SignRSA3072, 2, false},
		{"esp32c3", chip.SignRSA3072, 3, true},
		{"esp32c3", chip.SignECDSA256, 101, false},
		{"esp32p4", chip.SignECDSA384, 299, false},
		{"esp32p4", chip.SignECDSA384, 300, true},
		{"esp32c5", chip.SignRSA3072, 0, false},
		{"esp32c5", chip.SignECDSA256, 0, true},
	} {
		m, err := chip.ByName(c.chip)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.SecureBoot.Supports(c.scheme, c.rev); got != c.want {
			t.Errorf("%s %s, %s: %v, want %v", c.chip, c.rev, c.scheme, got, c.want)
		}
	}
}

// esp-facts E.1; ESP-IDF soc_caps.h and bootloader/Kconfig.projbuild.
func TestSecureBootTable(t *testing.T) {
	table := map[string]string{
		"esp32":    "from v3.0: rsa3072; 1 slot",
		"esp32s2":  "from v0.0: rsa3072; 3 slots",
		"esp32s3":  "from v0.0: rsa3072; 3 slots",
		"esp32c2":  "from v0.0: ecdsa256; 1 slot",
		"esp32c3":  "from v0.3: rsa3072; 3 slots",
		"esp32c5":  "from v0.0: rsa3072 (v0.1) ecdsa256 ecdsa384; 3 slots; weak",
		"esp32c6":  "from v0.0: rsa3072 ecdsa256; 3 slots",
		"esp32c61": "from v0.0: ecdsa256; 3 slots; weak",
		"esp32h2":  "from v0.0: rsa3072 ecdsa256; 3 slots; weak",
		"esp32p4":  "from v0.0: rsa3072 ecdsa256 ecdsa384 (v3.0); 3 slots; weak",
	}
	for _, m := range chip.All() {
		got := "from " + m.SecureBoot.MinimumRevision.String() + ":"
		for _, s := range m.SecureBoot.Schemes {
			got += " " + string(s.Scheme)
			if s.MinimumRevision != 0 {
				got += " (" + s.MinimumRevision.String() + ")"
			}
		}
		got += map[int]string{1: "; 1 slot", 3: "; 3 slots"}[m.SecureBoot.DigestSlots]
		if m.SecureBoot.WeakECDSA {
			got += "; weak"
		}
		if want := table[m.Name]; got != want {
			t.Errorf("%s: %s, want %s", m.Name, got, want)
		}
	}
}

// What holds for Secure Boot of every chip, so that a new model file with a slip
// shows here and not on a board.
func TestSecureBootData(t *testing.T) {
	for _, m := range chip.All() {
		s := m.SecureBoot
		bad := func(what string) { t.Errorf("%s: %s: %+v", m.Name, what, s) }
		if len(s.Schemes) == 0 || s.EnableField == "" {
			bad("no scheme or no fuse to turn it on")
		}
		ecdsa, p384 := false, false
		for _, c := range s.Schemes {
			ecdsa = ecdsa || c.Scheme.ECDSA()
			p384 = p384 || c.Scheme == chip.SignECDSA384
			if c.Scheme == chip.SignECDSA192 {
				bad("ESP-IDF offers P-192 for no chip")
			}
		}
		if p384 != (s.SHA384Field != "") {
			bad("P-384 and the SHA-384 fuse go together")
		}
		if s.WeakECDSA && !ecdsa {
			bad("weak ECDSA without ECDSA")
		}
		switch s.DigestIn {
		case chip.DigestInKeyBlocks:
			if s.DigestSlots != 3 || len(s.RevokeFields) != 3 || s.AggressiveRevokeField == "" || s.DigestBytes != 32 {
				bad("digests in key blocks are three whole ones that can be revoked")
			}
		case chip.DigestInBlock2, chip.DigestInKey0High:
			want := map[chip.DigestPlace]int{chip.DigestInBlock2: 32, chip.DigestInKey0High: 16}[s.DigestIn]
			if s.DigestSlots != 1 || len(s.RevokeFields) != 0 || s.AggressiveRevokeField != "" || s.DigestBytes != want {
				bad("a single digest has one slot and no revocation")
			}
		default:
			bad("no place for digests")
		}
	}
}
