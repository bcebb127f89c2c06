package ota

import (
	"errors"
	"fmt"
)

// Reason says why a unit does not get an image, for programs. The texts are API.
type Reason string

// The reasons.
const (
	ReasonUnknownUnit    Reason = "unknown-unit"    // the keystore has no record of it
	ReasonKeyState       Reason = "key-state"       // no key of it is in silicon, as far as is known
	ReasonQuarantined    Reason = "quarantined"     // it was set aside
	ReasonRecord         Reason = "record"          // its record says something that this build cannot use
	ReasonSlot           Reason = "slot"            // it has no such slot
	ReasonNotAnImage     Reason = "not-an-image"    // no ESP-IDF image, or a damaged one
	ReasonEncrypted      Reason = "encrypted"       // ciphertext already, or a transport format
	ReasonNotAnApp       Reason = "not-an-app"      // an image without an application description: a bootloader
	ReasonChip           Reason = "chip"            // for another chip
	ReasonRevision       Reason = "revision"        // the silicon is outside the image's limits
	ReasonMapping        Reason = "mapping"         // the image does not line up with flash pages
	ReasonSize           Reason = "size"            // larger than the slot
	ReasonUnsigned       Reason = "unsigned"        // the unit has Secure Boot and the image has no signature
	ReasonSignature      Reason = "signature"       // no signature by a key that the unit trusts
	ReasonSecureVersion  Reason = "secure-version"  // older than what the unit has (anti-rollback)
	ReasonNoPackageKey   Reason = "no-package-key"  // it has no key for esp_encrypted_img files
	ReasonManifestKey    Reason = "manifest-key"    // the key cannot sign manifests
	ReasonManifestFields Reason = "manifest-fields" // a name that a manifest cannot carry
)

// Refusal is the error of every check: this unit does not get this image.
// Errors that are no Refusal are of another kind: a keystore that is away, a
// file that cannot be read, a context that was cancelled.
type Refusal struct {
	Reason Reason
	Msg    string // what, where, and the next step
	Err    error  // the cause, if there is one
}

// Error is the message.
func (r *Refusal) Error() string { return "ota: " + r.Msg }

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// ReasonOf gives the reason of a refusal, or "" for any other error.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// refuse makes a refusal; the last %w is its cause.
func refuse(reason Reason, format string, args ...any) *Refusal {
	err := fmt.Errorf(format, args...)
	return &Refusal{Reason: reason, Msg: err.Error(), Err: errors.Unwrap(err)}
}
