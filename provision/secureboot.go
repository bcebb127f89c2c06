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

// mustBeSet are the fuses that ESP-IDF's release mode checks ask for, on silicon that
// has them (esp-facts E.4, F.4; ESP-IDF bootloader_support/src/secure_boot.c,
// flash_encrypt.c). JTAG is off by its hard fuses: the soft one does not count without
// a key of its own.
var mustBeSet = []string{
	"DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE",
	"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE", "XTS_DPA_PSEUDO_LEVEL",
	"JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG", "DIS_USB_JTAG",
	"DIS_DIRECT_BOOT", "DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT", "CONSOLE_DEBUG_DISABLE",
}

// mustBeLocked are the fields whose write protection they ask for, on silicon that has them.
var mustBeLocked = []string{"DIS_CACHE", "DIS_ICACHE"}

// releaseCheck holds what a chip shows against what ESP-IDF's own checks of the release
// mode demand. It looks at the chip and not at the plan, so that a plan that forgets
// something does not close a unit.
type releaseCheck struct {
	*unit
	problems []string
}

func (c *releaseCheck) bad(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *releaseCheck) value(name string) uint64 {
	v, err := c.now.Field(name)
	if err != nil {
		c.bad("%v", err)
	}
	return v
}

func (c *releaseCheck) set(name string) {
	if c.value(name) == 0 {
		c.bad("%s is not set", name)
	}
}

func (c *releaseCheck) locked(name string) {
	if ok, err := c.now.WriteProtected(name); err != nil || !ok {
		c.bad("%s is not write-protected", name)
	}
}

// lockedSlot asks for the write protection of a key block and its purpose.
func (c *releaseCheck) lockedSlot(block string) {
	c.locked(block)
	if f, has := purposeField(c.now.Table(), block); has {
		c.locked(f.Name)
	}
}

// releaseProblems lists what stands against closing the unit, but for the last fuse.
func (u *unit) releaseProblems() []string {
	c := &releaseCheck{unit: u}
	for _, name := range mustBeSet {
		if _, has := u.now.Table().Field(name); has {
			c.set(name)
		}
	}
	for _, name := range mustBeLocked {
		if _, has := u.now.Table().Field(name); has {
			c.locked(name)
		}
	}
	c.flashEncryption()
	if u.job.Recipe.SecureBoot != nil {
		c.secureBoot()
	}
	return c.problems
}

// flashEncryption is esp_flash_encryption_cfg_verify_release_mode. What every chip has
// under one name is in mustBeSet.
func (c *releaseCheck) flashEncryption() {
	for _, a := range slices.Concat(c.model.Lockdown.Enable, c.model.Lockdown.Fuses) { // SPI_DOWNLOAD_MSPI_DIS is not every chip's
		if v := c.value(a.Field); v != uint64(a.Value) {
			c.bad("%s is %d, not %d", a.Field, v, a.Value)
		}
	}
	if f := c.model.EFuse.FlashCryptCount; c.value(f) != uint64(c.model.EFuse.FlashCryptCountFull) {
		c.bad("%s is not full", f)
	}
	for _, s := range c.slots {
		if s.origin.kind == originDigest {
			continue
		}
		if b, err := c.now.KeyBlock(s.Block); err != nil || !b.ReadProtected || b.Purpose != s.Purpose {
			c.bad("%s is not a hidden block for %s", s.Block, s.Purpose)
		}
		c.lockedSlot(s.Block)
	}
}

// secureBoot is esp_secure_boot_cfg_verify_release_mode.
func (c *releaseCheck) secureBoot() {
	r, m := c.job.Recipe, c.model
	c.set(m.SecureBoot.EnableField)
	c.locked("RD_DIS")
	for _, name := range secureBootLocks(m, c.now.Table(), r) {
		c.locked(name)
	}
	if f := m.SecureBoot.AggressiveRevokeField; f != "" && (c.value(f) != 0) != r.SecureBoot.AggressiveRevoke {
		c.bad("%s is %d", f, c.value(f))
	}
	if f := m.SecureBoot.SHA384Field; f != "" && (c.value(f) != 0) != (r.SecureBoot.Scheme == chip.SignECDSA384) {
		c.bad("%s is %d, and the signatures are %s", f, c.value(f), r.SecureBoot.Scheme)
	}
	digests := digestSlots(m, c.now.Table(), r)
	for i := range max(m.SecureBoot.DigestSlots, len(digests)) {
		revoked := i < len(m.SecureBoot.RevokeFields) && c.value(m.SecureBoot.RevokeFields[i]) != 0
		switch {
		case i >= len(digests) && !revoked:
			c.bad("digest slot %d is empty and not revoked", i)
		case i < len(digests) && revoked:
			c.bad("digest slot %d is revoked", i)
		}
	}
	for _, d := range digests {
		c.digest(d.Purpose)
	}
}

// digest asks for a digest that can be read, and for good.
func (c *releaseCheck) digest(purpose string) {
	own, ok := c.slotOf(purpose)
	if !ok {
		c.bad("nothing says where %s is", purpose)
		return
	}
	fp, err := c.now.SlotFingerprint(own.Block, own.Purpose)
	b, berr := c.now.KeyBlock(own.Block)
	switch {
	case err != nil || berr != nil:
		c.bad("%s cannot be looked at", own.Block)
	case b.ReadProtected || fp != efuse.Fingerprint(own.Fingerprint):
		c.bad("%s does not show its digest", own.Block)
	case b.Purpose != own.Purpose:
		c.bad("%s is for %s, not %s", own.Block, b.Purpose, own.Purpose)
	}
	c.lockedSlot(own.Block)
}

// checkRelease refuses to close a unit on which ESP-IDF's own checks would fail.
func (u *unit) checkRelease() error {
	if list := u.releaseProblems(); len(list) > 0 {
		return quarantine("set the board aside for an engineer; its loader is still open", "the unit is not in release mode: %s", strings.Join(list, "; "))
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
