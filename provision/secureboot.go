package provision

import (
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/recipe"
)

// secureBootFuses lists what Secure Boot needs beside the digests and the fuse that
// turns it on (esp-facts E.4). A slot without a digest is revoked: else somebody
// could add a key to it.
func secureBootFuses(m chip.Model, r *recipe.Recipe) []chip.Assignment {
	if r.SecureBoot == nil {
		return nil
	}
	var out []chip.Assignment
	set := func(field string) { out = append(out, chip.Assignment{Field: field, Value: 1}) }
	for i, f := range m.SecureBoot.RevokeFields {
		if i >= len(r.SecureBoot.Keys) {
			set(f)
		}
	}
	if r.SecureBoot.AggressiveRevoke {
		set(m.SecureBoot.AggressiveRevokeField)
	}
	if r.SecureBoot.Scheme == chip.SignECDSA384 && m.SecureBoot.SHA384Field != "" {
		set(m.SecureBoot.SHA384Field)
	}
	return out
}

// secureBootLocks lists the fields that esp_secure_boot_cfg_verify_release_mode wants
// to see locked, on silicon that has them and a bit for it: what they say is how
// signatures are verified.
func secureBootLocks(m chip.Model, t *table.Table, r *recipe.Recipe) []string {
	if r.SecureBoot == nil {
		return nil
	}
	var out []string
	for _, name := range []string{m.SecureBoot.SHA384Field, "ECDSA_CURVE_MODE"} {
		if f, ok := t.Field(name); ok && f.WRDis != table.None {
			out = append(out, name)
		}
	}
	return out
}

// mustBeSet are the fuses that ESP-IDF's release mode checks ask for beside the ones
// of Secure Boot and of flash encryption, on silicon that has them (esp-facts E.4,
// F.4; ESP-IDF bootloader_support/src/secure_boot.c, flash_encrypt.c). JTAG is off by
// its hard fuses: the soft one does not count without a key of its own.
var mustBeSet = []string{
	"JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG", "DIS_USB_JTAG",
	"DIS_DIRECT_BOOT", "DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT", "CONSOLE_DEBUG_DISABLE",
}

// releaseProblems holds what the chip shows against what ESP-IDF's own check of
// Secure Boot's release mode demands (esp_secure_boot_cfg_verify_release_mode), but
// for the last fuse. It looks at the chip and not at the plan, so that a plan that
// forgets something does not close a unit.
func (u *unit) releaseProblems() []string {
	r, m, s := u.job.Recipe, u.model, u.now
	if r.SecureBoot == nil {
		return nil
	}
	t := s.Table()
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	value := func(name string) uint64 {
		v, err := s.Field(name)
		if err != nil {
			bad("%v", err)
		}
		return v
	}
	locked := func(name string) {
		if ok, err := s.WriteProtected(name); err != nil || !ok {
			bad("%s is not write-protected", name)
		}
	}
	if value(m.SecureBoot.EnableField) == 0 {
		bad("%s is not set", m.SecureBoot.EnableField)
	}
	for _, name := range mustBeSet {
		if _, has := t.Field(name); has && value(name) == 0 {
			bad("%s is not set", name)
		}
	}
	locked("RD_DIS")
	for _, name := range secureBootLocks(m, t, r) {
		locked(name)
	}
	if f := m.SecureBoot.AggressiveRevokeField; f != "" && (value(f) != 0) != r.SecureBoot.AggressiveRevoke {
		bad("%s is %d", f, value(f))
	}
	digests := digestSlots(m, t, r)
	for i := range max(m.SecureBoot.DigestSlots, len(digests)) {
		revoked := i < len(m.SecureBoot.RevokeFields) && value(m.SecureBoot.RevokeFields[i]) != 0
		switch {
		case i >= len(digests) && !revoked:
			bad("digest slot %d is empty and not revoked", i)
		case i < len(digests) && revoked:
			bad("digest slot %d is revoked", i)
		}
	}
	for _, d := range digests {
		own, ok := u.slotOf(d.Purpose)
		if !ok {
			bad("nothing says where %s is", d.Purpose)
			continue
		}
		fp, err := s.SlotFingerprint(own.Block, own.Purpose)
		b, berr := s.KeyBlock(own.Block)
		switch {
		case err != nil || berr != nil:
			bad("%s cannot be looked at", own.Block)
		case b.ReadProtected || fp != efuse.Fingerprint(own.Fingerprint):
			bad("%s does not show its digest", own.Block)
		case b.Purpose != own.Purpose:
			bad("%s is for %s, not %s", own.Block, b.Purpose, own.Purpose)
		}
		locked(own.Block)
		if f, has := purposeField(t, own.Block); has {
			locked(f.Name)
		}
	}
	return out
}

// checkRelease refuses to close a unit on which ESP-IDF's own check would fail.
func (u *unit) checkRelease() error {
	if list := u.releaseProblems(); len(list) > 0 {
		return quarantine("set the board aside for an engineer; its loader is still open", "Secure Boot is not in release mode: %s", strings.Join(list, "; "))
	}
	return nil
}

// digestSlots lists the digests that a recipe's units trust, without their blocks.
// The chip's purposes for digests are those that must be readable for ever.
func digestSlots(m chip.Model, t *table.Table, r *recipe.Recipe) []keySlot {
	if r.SecureBoot == nil {
		return nil
	}
	var purposes []string
	for _, p := range t.Purposes() {
		if p.Reading == table.ReadNever {
			purposes = append(purposes, p.Name)
		}
	}
	var out []keySlot
	for i, k := range r.SecureBootKeys {
		if i < len(purposes) {
			out = append(out, keySlot{Purpose: purposes[i], origin: origin{kind: originDigest, digest: k.Digest().Burned(m.SecureBoot)}})
		}
	}
	return slices.Clip(out)
}
