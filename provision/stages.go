package provision

import (
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/recipe"
)

// The burn stages of a unit, in their order. Each is one step of the journal.
const (
	stageKey      = "burn-key"          // the key block, still readable
	stageProtect  = "protect-key"       // read and write protection
	stageLockdown = "burn-lockdown"     // what closes the side doors
	stageEnable   = "enable-encryption" // the crypt counter
	stageWRDis    = "write-protect"     // after the boot check
	stageClose    = "close"             // the last fuse
	stepConnect   = "connect"
	stepInspect   = "inspect"
	stepPlan      = "plan"
	stepReserve   = "reserve" // only for a keystore that can
	stepFlash     = "flash"
	stepVerify    = "verify-flash"
	stepCustody   = "custody"
	stepBoot      = "boot-check"
	stepProof     = "proof"
	// stepClosedBoot is the boot of a board that was found closed. It proves nothing
	// of a unit, since such a board does not say which one it is.
	stepClosedBoot = "closed-boot"
	stepVerdict    = "verdict"
	purposeXTS128  = "XTS_AES_128_KEY"
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
	stepConnect:    reversible,
	stepInspect:    reversible,
	stepPlan:       reversible,
	stepReserve:    reversible,
	stepLoadKey:    reversible,
	stepFlash:      reversible,
	stepVerify:     reversible,
	stepCustody:    reversible, // a key that was not burned can be superseded
	stageKey:       oneWay,
	stageProtect:   oneWay,
	stageLockdown:  oneWay,
	stageEnable:    oneWay,
	stepBoot:       reversible,
	stageWRDis:     oneWay,
	stageClose:     oneWay,
	stepProof:      reversible,
	stepClosedBoot: reversible,
}

// isOneWay: the intent of such a step means that a fuse may have been burned.
func isOneWay(step string) bool { return steps[step] == oneWay }

// OneWay reports whether a step of this name cannot be undone, for screens.
func OneWay(step string) bool { return isOneWay(step) }

// stages lists what a profile burns, in order, for a chip whose key goes into
// the given block. It knows no chip: what differs is in the model (esp-facts
// F.2-F.5). The crypt counter comes after every fuse that it would make
// reachable, the write protections after the boot check, the last fuse last.
func stages(m chip.Model, p recipe.Profile, keyBlock string) []efuse.Stage {
	key := efuse.Stage{Name: stageKey, Key: &efuse.KeyBurn{Block: keyBlock}}
	protect := efuse.Stage{Name: stageProtect, ReadProtect: []string{keyBlock}, WriteProtect: []string{keyBlock}}
	if m.EFuse.Kind == chip.EFuseRS {
		key.Key.Purpose = purposeXTS128
		protect.WriteProtect = append(protect.WriteProtect, purposeField(keyBlock))
	}
	lockdown := efuse.Stage{Name: stageLockdown, Set: slices.Clone(m.Lockdown.Enable)}
	count := m.EFuse.FlashCryptCountFull
	if p == recipe.Development {
		count = 1
	} else {
		lockdown.Set = append(lockdown.Set, m.Lockdown.Fuses...)
	}
	out := []efuse.Stage{key, protect}
	if len(lockdown.Set) > 0 {
		out = append(out, lockdown)
	}
	out = append(out, efuse.Stage{
		Name: stageEnable,
		Set:  []chip.Assignment{{Field: m.EFuse.FlashCryptCount, Value: count}},
	})
	if p == recipe.Development {
		return out
	}
	out = append(out, efuse.Stage{Name: stageWRDis, WriteProtect: slices.Clone(m.Lockdown.WriteProtect)})
	if last := lastFuse(m, p); last != "" {
		out = append(out, efuse.Stage{Name: stageClose, Set: []chip.Assignment{{Field: last, Value: 1}}})
	}
	return out
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

func purposeField(keyBlock string) string {
	return fmt.Sprintf("KEY_PURPOSE_%c", keyBlock[len(keyBlock)-1])
}
