package ota

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
)

// Image is an application in plaintext, parsed and checked as far as that goes
// without knowing a unit. One Image serves all units. Treat it as read-only.
type Image struct {
	parsed *image.Image
	plain  Bytes
	sum    [sha256.Size]byte

	signatures secureboot.Report // of a signed image
	badSign    error             // why its signatures are not good
}

// maxImage is what the boot code of most chips takes at most, and of all with an older
// ESP-IDF (esp-facts G.2). Where it takes more, nobody has an application of that size.
const maxImage = 16 << 20

// ParseImage reads an application image and takes b over. Everything that is
// wrong with it is a *Refusal.
func ParseImage(b []byte) (*Image, error) {
	if len(b) >= maxImage {
		return nil, refuse(ReasonSize, "the image has %d bytes: applications of 16 MB and more are not taken", len(b))
	}
	m, err := image.ParseOwned(b)
	if err != nil {
		switch {
		case encimg.Is(b):
			return nil, refuse(ReasonEncrypted, "this is an esp_encrypted_img file: give the plain image, or send this one to a device that decrypts it itself: %w", err)
		case image.LooksEncrypted(b):
			return nil, refuse(ReasonEncrypted, "its bytes look like ciphertext: give the plain image of the build, it is encrypted here: %w", err)
		}
		return nil, refuse(ReasonNotAnImage, "%w", err)
	}
	if m.AppDesc == nil {
		return nil, refuse(ReasonNotAnApp, "the image has no application description: a slot takes an application, and this is a bootloader or very old")
	}
	img := &Image{parsed: m, plain: b, sum: sha256.Sum256(b)}
	if m.Signed { // whether they must be good is for the unit to say
		img.signatures, img.badSign = secureboot.Verify(b)
	}
	return img, nil
}

// Plain is the image as it was given.
func (m *Image) Plain() Bytes { return m.plain }

// SHA256 is the hash of Plain.
func (m *Image) SHA256() [sha256.Size]byte { return m.sum }

// Chip is the chip that the image is for.
func (m *Image) Chip() chip.ID { return m.parsed.Header.ChipID }

// App is the application's own description.
func (m *Image) App() image.AppDesc { return *m.parsed.AppDesc }

// Signed reports whether there is a signature sector.
func (m *Image) Signed() bool { return m.parsed.Signed }

// Known is what the backend knows of a unit beside its record, mostly from what
// the unit said when it asked.
type Known struct {
	// SecureVersion is the least secure_version that the unit accepts. 0 is also
	// "not known".
	SecureVersion uint32
}

// CheckImage says whether an image is for a unit at all: chip, revision, mapping and,
// with Secure Boot, signatures. Every objection is a *Refusal. It needs no key and no
// partition table: see PublicUnit.
func (u *Unit) CheckImage(m *Image) error {
	if err := m.parsed.CheckFor(u.Chip, u.Revision); err != nil {
		switch {
		case errors.Is(err, image.ErrWrongChip):
			name := fmt.Sprintf("chip id %d", m.Chip())
			if c, cerr := chip.ByID(m.Chip()); cerr == nil {
				name = c.Title
			}
			return &Refusal{ReasonChip, fmt.Sprintf("the image is for %s and %s is an %s: take the build for it", name, u.who(), u.Chip.Title), err}
		case errors.Is(err, image.ErrRevision):
			return refuse(ReasonRevision, "%s: %w", u.who(), err)
		case errors.Is(err, image.ErrMapping):
			return refuse(ReasonMapping, "%w", err)
		}
		return refuse(ReasonRecord, "%s: %w", u.who(), err)
	}
	return u.checkSignature(m)
}

// Check says whether a unit may get an image in a slot; every objection is a
// *Refusal.
func (u *Unit) Check(m *Image, slot partition.Entry, have Known) error {
	if err := u.CheckImage(m); err != nil {
		return err
	}
	size := padded(uint64(len(m.plain)), u.Chip.EncryptedAlign)
	if size > uint64(slot.Size) {
		return refuse(ReasonSize, "the image has %d bytes, %s of %s has %d", size, slot.SubtypeName(), u.who(), slot.Size)
	}
	if slot.Offset%partition.AppAlign != 0 { // mapped segments would not line up
		return refuse(ReasonMapping, "%s: the address 0x%x is no place for an application: those begin at multiples of 0x%x", u.who(), slot.Offset, partition.AppAlign)
	}
	if slot.End() > uint64(u.FlashSize) {
		return refuse(ReasonRecord, "%s: %v ends beyond its flash of %d bytes", u.who(), slot, u.FlashSize)
	}
	if v := m.parsed.AppDesc.SecureVersion; v < have.SecureVersion {
		return refuse(ReasonSecureVersion, "the image has secure_version %d and %s accepts %d or more: it would erase the slot", v, u.who(), have.SecureVersion)
	}
	return nil
}

// checkSignature holds the image's signatures against the key digests that the
// unit trusts.
func (u *Unit) checkSignature(m *Image) error {
	if u.SecureBootScheme == "" {
		return nil
	}
	if !m.Signed() {
		return refuse(ReasonUnsigned, "%s has Secure Boot (%s) and the image is not signed: it would not boot", u.who(), u.SecureBootScheme)
	}
	if m.badSign != nil {
		return refuse(ReasonSignature, "%s has Secure Boot (%s): %w", u.who(), u.SecureBootScheme, m.badSign)
	}
	if err := m.signatures.CheckFor(u.Chip, u.Revision); err != nil {
		return refuse(ReasonSignature, "%s: %w", u.who(), err)
	}
	if err := m.signatures.CheckTrust(u.Chip.SecureBoot, chip.SignatureScheme(u.SecureBootScheme), u.SecureBootDigests); err != nil {
		return refuse(ReasonSignature, "%s: %w: sign it with a key whose digest its record has", u.who(), err)
	}
	return nil
}

// Update is an image that a unit may get in one slot.
type Update struct {
	Unit       *Unit
	Slot       partition.Entry
	Image      *Image
	Ciphertext *Ciphertext // wipe it after use
}

// Prepare checks that the unit may get the image in the slot (ota_0, ota_1, …)
// and gives the ciphertext.
func Prepare(u *Unit, m *Image, slot string, have Known) (*Update, error) {
	e, err := u.Slot(slot)
	if err != nil {
		return nil, err
	}
	if err := u.Check(m, e, have); err != nil {
		return nil, err
	}
	c, err := u.Encrypt(e, m.plain)
	if err != nil {
		return nil, err
	}
	return &Update{Unit: u, Slot: e, Image: m, Ciphertext: c}, nil
}

// ManifestOptions are what a manifest says beside the update.
type ManifestOptions struct {
	Release string // the backend's name for it; may be empty
	Nonce   []byte // from the device; NonceSize bytes, or none
	// CipherSHA256 spares the hashing when it is known from before. It must be
	// Ciphertext.SHA256 of the same unit, slot and image.
	CipherSHA256 *[sha256.Size]byte
}

// Manifest describes the update and signs that. It hashes the whole ciphertext
// unless the hash is known.
func (p *Update) Manifest(ctx context.Context, o ManifestOptions, s Signer) (*Manifest, error) {
	if o.Release != "" && !validName(o.Release) {
		return nil, refuse(ReasonManifestFields, "the release %q is not 1 to %d printable ASCII characters without a space", o.Release, MaxName)
	}
	app := p.Image.App()
	m := &Manifest{
		Unit: p.Unit.MAC, Chip: p.Unit.Chip.Name, Release: o.Release,
		Project: nameOf(app.ProjectName), Version: nameOf(app.Version),
		Slot: p.Slot.SubtypeName(), Address: p.Slot.Offset,
		Length: uint32(p.Ciphertext.Size()), PlainLength: uint32(len(p.Image.plain)),
		PlainSHA256: p.Image.sum, SecureVersion: app.SecureVersion,
		Key: p.Unit.Fingerprint, Nonce: o.Nonce,
	}
	var err error
	if o.CipherSHA256 != nil {
		m.CipherSHA256 = *o.CipherSHA256
	} else if m.CipherSHA256, err = p.Ciphertext.SHA256(ctx); err != nil {
		return nil, err
	}
	if err := m.Sign(ctx, s); err != nil {
		return nil, err
	}
	return m, nil
}

// nameOf makes a manifest's name of a text in an image: what a manifest cannot
// carry becomes an underscore.
func nameOf(s string) string {
	if s == "-" {
		return "_"
	}
	out := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return out[:min(len(out), MaxName)]
}

func signerText(id [sha256.Size]byte) string { return "ota.Signer(" + hex.EncodeToString(id[:]) + ")" }
