package provision

import (
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/recipe"
)

// The burn stages of a unit, in their order. Each is one step of the journal.
const (
	stageKey         = "burn-key"           // the key blocks, still readable
	stageProtect     = "protect-key"        // read and write protection
	stageDigests     = "burn-digests"       // of the keys that Secure Boot trusts
	stageLockDigests = "protect-digests"    // write protection: the chip must read them for ever
	stageLockdown    = "burn-lockdown"      // what closes the side doors
	stageSecureBoot  = "enable-secure-boot" // and nothing can be hidden any more
	stageEnable      = "enable-encryption"  // the crypt counter
	stageWRDis       = "write-protect"      // after the boot check
	stageClose       = "close"              // the last fuse
	stepConnect      = "connect"
	stepInspect      = "inspect"
	stepPlan         = "plan"
	stepReserve      = "reserve" // only for a keystore that can
	stepFlash        = "flash"
	stepVerify       = "verify-flash"
	stepCustody      = "custody"
	stepBoot         = "boot-check"
	stepProof        = "proof"
	// stepClosedBoot is the boot of a board that was found closed. It proves nothing
	// of a unit, since such a board does not say which one it is.
	stepClosedBoot = "closed-boot"
	stepVerdict    = "verdict"
)

// nature says whether a step can be undone.
type nature int

const (
	reversible nature = iota + 1 // it may be cut by a cancel, and done again
	oneWay                       // it burns fuses: no cancel cuts it, and its outcome is read from the chip
)

// steps declares every step. The engine does none that is not declared here, and
// treats each as it is declared (see do); so does whoever reads a unit's history.
var steps = map[string]nature{
	stepConnect:      reversible,
	stepInspect:      reversible,
	stepPlan:         reversible,
	stepReserve:      reversible,
	stepLoadKey:      reversible,
	stepFlash:        reversible,
	stepVerify:       reversible,
	stepCustody:      reversible, // a key that was not burned can be superseded
	stageKey:         oneWay,
	stageProtect:     oneWay,
	stageDigests:     oneWay,
	stageLockDigests: oneWay,
	stageLockdown:    oneWay,
	stageSecureBoot:  oneWay,
	stageEnable:      oneWay,
	stepBoot:         reversible,
	stageWRDis:       oneWay,
	stageClose:       oneWay,
	stepProof:        reversible,
	stepClosedBoot:   reversible,
}

// isOneWay: the intent of such a step means that a fuse may have been burned.
func isOneWay(step string) bool { return steps[step] == oneWay }

// OneWay reports whether a step of this name cannot be undone, for screens.
func OneWay(step string) bool { return isOneWay(step) }

// stages lists what a job burns, in order, on silicon of a model with an eFuse
// table. It knows no chip: what differs is in these two (esp-facts E.4, F.2-F.5).
//
// Each stage makes the next one safe. Keys come first: they are compared while they
// can be read, and hidden before anything needs them. Key digests of Secure Boot
// follow, as locked but never hidden. Side doors are shut while nothing is behind
// them yet. Secure Boot is on, and RD_DIS locked so that nobody can hide a digest,
// before the crypt counter: until then the chip cannot boot what is in its flash, so
// no bootloader of its own accord finishes what was cut off here. Write protections
// come after the boot check, the last fuse last.
func (j *Job) stages(m chip.Model, t *table.Table) ([]efuse.Stage, error) {
	keys, err := j.keysFor(m, t)
	if err != nil {
		return nil, err
	}
	r := j.Recipe
	open := r.Profile == recipe.Development
	lockdown := efuse.Stage{Name: stageLockdown, Set: slices.Clone(m.Lockdown.Enable)}
	count := m.EFuse.FlashCryptCountFull
	if open {
		count = 1
	} else {
		lockdown.Set = append(lockdown.Set, m.Lockdown.Fuses...)
	}
	lockdown.Set = append(lockdown.Set, secureBootFuses(m, r)...)
	if v := j.Layout.SecureVersion; v > 0 {
		lockdown.Set = append(lockdown.Set, chip.Assignment{Field: fieldSecureVersion, Value: uint32(1<<v - 1)})
	}
	secureBoot := efuse.Stage{Name: stageSecureBoot}
	if r.SecureBoot != nil {
		secureBoot.Set = []chip.Assignment{{Field: m.SecureBoot.EnableField, Value: 1}}
		secureBoot.WriteProtect = []string{"RD_DIS"}
	}
	protect := efuse.Stage{Name: stageWRDis}
	last := lastFuse(m, r.Profile)
	if !open {
		protect.WriteProtect = slices.Concat(m.Lockdown.WriteProtect, secureBootLocks(m, t, r))
		if last != "" {
			protect.WriteProtect = append(protect.WriteProtect, m.Lockdown.ReleaseProtect...)
		}
	}
	all := []efuse.Stage{
		{Name: stageKey, Keys: burns(keys.secrets)},
		protection(t, stageProtect, keys.secrets),
		{Name: stageDigests, Keys: burns(keys.digests)},
		protection(t, stageLockDigests, keys.digests),
		lockdown,
		secureBoot,
		{Name: stageEnable, Set: []chip.Assignment{{Field: m.EFuse.FlashCryptCount, Value: count}}},
		protect,
	}
	if last != "" {
		all = append(all, efuse.Stage{Name: stageClose, Set: []chip.Assignment{{Field: last, Value: 1}}})
	}
	all = slices.DeleteFunc(all, func(s efuse.Stage) bool {
		return len(s.Keys)+len(s.Set)+len(s.WriteProtect)+len(s.ReadProtect) == 0
	})
	return all, j.keepsCounting(t, all)
}

const fieldSecureVersion = "SECURE_VERSION"

// keepsCounting makes sure that no stage locks the counter of secure versions of a
// product that counts on (esp-facts B.7: it shares its lock with other fields).
func (j *Job) keepsCounting(t *table.Table, all []efuse.Stage) error {
	if !j.Recipe.AntiRollback {
		return nil
	}
	f, ok := t.Field(fieldSecureVersion)
	if !ok {
		return fmt.Errorf("the %s has no %s for anti_rollback", t.Chip(), fieldSecureVersion)
	}
	if v := int(j.Layout.SecureVersion); v > f.Len() {
		return fmt.Errorf("secure version %d is more than the %s can count: %d", v, t.Chip(), f.Len())
	}
	for _, s := range all {
		wr, _, err := protectionMasks(t, s)
		if err != nil {
			return err
		}
		if f.WRDis != table.None && wr>>f.WRDis&1 != 0 {
			return fmt.Errorf("stage %s locks %s, and the recipe has anti_rollback", s.Name, fieldSecureVersion)
		}
	}
	return nil
}

// lastFuse names the fuse that ends a profile, "" for those that leave the loader open.
func lastFuse(m chip.Model, p recipe.Profile) string {
	switch p {
	case recipe.Release:
		return m.Lockdown.ReleaseFuse
	case recipe.Closed:
		return m.Lockdown.ClosedFuse
	case recipe.Development, recipe.Hybrid:
	}
	return ""
}
