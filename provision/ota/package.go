package ota

import (
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/keystore"
)

// PublicUnit is a unit as far as a store tells without its key: enough for
// CheckImage. It has no partition table and encrypts nothing.
func PublicUnit(m keystore.Meta) (*Unit, error) {
	model, err := chip.ByName(m.Chip)
	if err != nil {
		return nil, refuse(ReasonRecord, "unit %s: %w: use a build that knows it", m.Unit, err)
	}
	return &Unit{
		MAC: m.Unit, Chip: model, Revision: m.ChipRevision, Scheme: m.Scheme, FlashCryptConfig: m.FlashCryptConfig,
		FlashSize: m.FlashSize, Fingerprint: m.Fingerprint,
		SecureBootScheme: m.SecureBootScheme, SecureBootDigests: slices.Clone(m.SecureBootDigests),
	}, nil
}

// PackageRecipient is the unit as the reader of an esp_encrypted_img file, by the
// public key in its record. A backend that serves such files needs Find, this and
// encimg.Seal, and no right to read a flash key.
func PackageRecipient(m keystore.Meta) (encimg.Recipient, error) {
	if len(m.ECIESPublicKey) == 0 {
		return nil, refuse(ReasonNoPackageKey, "unit %s has no key for esp_encrypted_img files: its recipe burned no HMAC key. Encrypt for a slot, or use an RSA key that its firmware has", m.Unit)
	}
	to, err := encimg.NewECIESRecipient(m.ECIESPublicKey)
	if err != nil {
		return nil, refuse(ReasonRecord, "unit %s: %w", m.Unit, err)
	}
	return to, nil
}

// Package makes the esp_encrypted_img file of an image for one unit, after the
// checks that need no slot. What a device would refuse is a *Refusal. Each call
// gives other bytes: keep them for as long as a download may go on.
func Package(m keystore.Meta, img *Image) ([]byte, error) {
	to, err := PackageRecipient(m)
	if err != nil {
		return nil, err
	}
	u, err := PublicUnit(m)
	if err != nil {
		return nil, err
	}
	if err := u.CheckImage(img); err != nil {
		return nil, err
	}
	return encimg.Seal(to, img.Plain())
}
