package provision

import "github.com/provisiond/provisiond/keystore"

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
