package vault

import (
	"fmt"
	"strings"

	configs "github.com/provisiond/provisiond/configs/vault"
	"github.com/provisiond/provisiond/esp/chip"
)

// Role is who may do what.
type Role string

// The roles.
const (
	RoleStation   Role = "station"    // creates and confirms; reads no key
	RoleRework    Role = "rework"     // reads one unit
	RoleOTA       Role = "ota"        // reads keys, nothing else
	RoleOTAPublic Role = "ota-public" // as RoleOTA, and reads no key
	RoleAuditor   Role = "auditor"    // sees everything but keys
	RoleCustodian Role = "custodian"  // brings sealed records of an escrow to their place; reads no key
	RoleAdmin     Role = "admin"      // sets it up
)

// Roles are all roles.
func Roles() []Role {
	return []Role{RoleStation, RoleRework, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleAdmin}
}

// PolicyParams fill in a policy.
type PolicyParams struct {
	Mount   string   // DefaultMount without it
	Station string   // for RoleStation
	Unit    chip.MAC // for RoleRework
}

// Policy gives the text of a role's policy, for `vault policy write`.
func Policy(role Role, p PolicyParams) (string, error) {
	if p.Mount == "" {
		p.Mount = DefaultMount
	}
	if err := checkMount(p.Mount); err != nil {
		return "", err
	}
	switch role {
	case RoleStation:
		if err := checkName("station", p.Station); err != nil {
			return "", err
		}
	case RoleRework:
		if p.Unit == (chip.MAC{}) {
			return "", fmt.Errorf("keystore/vault: policy %s: name the unit's MAC", role)
		}
	case RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleAdmin:
	default:
		return "", fmt.Errorf("keystore/vault: there is no role %q: write one of %v", string(role), Roles())
	}
	text, err := configs.Policies.ReadFile(string(role) + ".hcl")
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(
		"{{mount}}", p.Mount,
		"{{mount_name}}", policyPrefix(p.Mount),
		"{{station}}", p.Station,
		"{{unit}}", p.Unit.String(),
		"{{unit_path}}", unitPath(p.Unit),
	).Replace(string(text)), nil
}

// policyPrefix begins the names of a mount's policies and AppRoles.
func policyPrefix(mount string) string { return strings.ReplaceAll(mount, "/", "-") }

// PolicyName is the name under which a role's policy, and its AppRole, are kept.
func PolicyName(role Role, p PolicyParams) string {
	if p.Mount == "" {
		p.Mount = DefaultMount
	}
	name := policyPrefix(p.Mount) + "-" + string(role)
	switch role {
	case RoleStation:
		name += "-" + p.Station
	case RoleRework:
		name += "-" + strings.ReplaceAll(p.Unit.String(), ":", "")
	case RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleAdmin:
	}
	return name
}
