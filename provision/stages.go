package provision

import (
	"slices"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/recipe"
)

// The burn stages of a unit, in their order. Each is one step of the journal.
const (
	stageKey      = "burn-key"          // the key blocks, still readable
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

// stages lists what a recipe's units burn, in order, on silicon of a model. It
// knows no chip: what differs is in the model and in the eFuse table (esp-facts
// F.2-F.5). Keys come first: they are compared while they can be read, and hidden
// before anything needs them. The crypt counter comes after every fuse that it
// would make reachable, the write protections after the boot check, the last fuse
// last.
func stages(m chip.Model, r *recipe.Recipe) ([]efuse.Stage, error) {
	t, err := table.For(m.Name)
	if err != nil {
		return nil, err
	}
	secrets, err := secretSlots(t, r)
	if err != nil {
		return nil, err
	}
	p := r.Profile
	key := efuse.Stage{Name: stageKey, Keys: burns(secrets)}
	protect := protection(t, stageProtect, secrets)
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
		return out, nil
	}
	out = append(out, efuse.Stage{Name: stageWRDis, WriteProtect: slices.Clone(m.Lockdown.WriteProtect)})
	if last := lastFuse(m, p); last != "" {
		out = append(out, efuse.Stage{Name: stageClose, Set: []chip.Assignment{{Field: last, Value: 1}}})
	}
	return out, nil
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
