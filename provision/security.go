package provision

import (
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/recipe"
)

// Security is what a job does for a unit's security beside its profile: in plans, in
// the journal's plan entry and in certificates. All of it is public.
type Security struct {
	FlashEncryption string `json:"flash_encryption"`
	// SecureBoot is the signature scheme; Digests are those of the keys that the chip
	// trusts, in the order of their slots.
	SecureBoot       string            `json:"secure_boot,omitempty"`
	Digests          []keystore.Digest `json:"secure_boot_digests,omitempty"`
	AggressiveRevoke bool              `json:"aggressive_revoke,omitempty"`
	// WeakECDSA: the vendor calls the chip's verification of ECDSA signatures insecure,
	// and the recipe accepts that.
	WeakECDSA     bool   `json:"weak_ecdsa_accepted,omitempty"`
	AntiRollback  bool   `json:"anti_rollback,omitempty"`
	SecureVersion uint32 `json:"secure_version,omitempty"` // burned, with AntiRollback
	ECIES         bool   `json:"encimg_ecies,omitempty"`   // the unit has a key for esp_encrypted_img
	UnitData      string `json:"unit_data,omitempty"`      // the partition of its own data
	// SDMErrata names the errata of Secure Download Mode that the recipe accepts.
	SDMErrata string `json:"sdm_errata_accepted,omitempty"`
}

func (j *Job) security() Security {
	r := j.Recipe
	s := Security{
		FlashEncryption: string(r.Scheme()), AntiRollback: r.AntiRollback, SecureVersion: j.Layout.SecureVersion, ECIES: r.ECIES,
	}
	if b := r.SecureBoot; b != nil {
		s.SecureBoot, s.AggressiveRevoke, s.WeakECDSA = string(b.Scheme), b.AggressiveRevoke, b.AcceptWeakECDSA
		for _, k := range r.SecureBootKeys {
			s.Digests = append(s.Digests, keystore.Digest(k.Digest()))
		}
	}
	if u := j.Layout.UnitData; u != nil {
		s.UnitData = u.Name
	}
	if r.AcceptSDMErrata {
		s.SDMErrata = r.Model().Lockdown.ReleaseTrap
	}
	return s
}

// Lines says for people what a job does beside its profile.
func (s Security) Lines() []string {
	out := []string{"flash encryption " + s.FlashEncryption}
	if s.SecureBoot != "" {
		text := fmt.Sprintf("Secure Boot V2 with %s", s.SecureBoot)
		if s.AggressiveRevoke {
			text += ", aggressive revocation"
		}
		out = append(out, text)
		for i, d := range s.Digests {
			out = append(out, fmt.Sprintf("trusted key %d has digest %s", i, d))
		}
	}
	if s.WeakECDSA {
		out = append(out, "ACCEPTED: the vendor calls this chip's verification of ECDSA signatures insecure")
	}
	if s.SDMErrata != "" {
		out = append(out, "ACCEPTED: Secure Download Mode in spite of "+s.SDMErrata)
	}
	if s.AntiRollback {
		out = append(out, fmt.Sprintf("secure versions are counted, from %d", s.SecureVersion))
	}
	if s.ECIES {
		out = append(out, "a key for esp_encrypted_img, in a key block")
	}
	if s.UnitData != "" {
		out = append(out, "each unit's own data in partition "+s.UnitData)
	}
	return out
}

// warnings says what a profile that leaves the loader open leaves undone, so that nobody
// signs it off for more than it is.
func (j *Job) warnings(m chip.Model) []string {
	r := j.Recipe
	if lastFuse(m, r.Profile) != "" {
		return nil
	}
	var out []string
	if r.SecureBoot != nil {
		out = append(out, fmt.Sprintf("profile %s leaves the loader open: ESP-IDF's own check of Secure Boot, esp_secure_boot_cfg_verify_release_mode, does not pass on this unit", r.Profile))
	}
	if fields := m.Lockdown.ReleaseProtect; len(fields) > 0 && r.Profile == recipe.Hybrid {
		out = append(out, fmt.Sprintf("profile %s does not write-protect %s, so ESP-IDF takes the unit for one in development mode, and whoever reaches its loader can make it useless",
			r.Profile, strings.Join(fields, ", ")))
	}
	return out
}
