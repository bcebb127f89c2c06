package provision

import (
	"fmt"

	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/recipe"
)

// unitFacts are what a unit's own data say of it and what nothing but the journal
// tells later. They stand in the intent to write the flash, so that a rework writes
// the same text again.
type unitFacts struct {
	Serial  string `json:"serial,omitempty"`
	Lot     string `json:"lot,omitempty"`
	Station string `json:"station"`
}

// fields gives what the template is filled with.
func (u *unit) fields() recipe.UnitFields {
	f := unitFacts{Serial: u.line.Serial, Lot: u.Lot, Station: u.Station}
	if u.facts != nil {
		f = *u.facts
	}
	r := u.job.Recipe
	return recipe.UnitFields{
		MAC: u.mac.String(), Serial: f.Serial, Lot: f.Lot, Station: f.Station,
		Recipe: r.Name, Revision: r.Revision, Chip: r.Chip,
	}
}

// checkUnitData refuses a unit whose own data cannot be made, before anything is
// written.
func (u *unit) checkUnitData() error {
	t := u.job.Recipe.Template
	if t == nil {
		return nil
	}
	f := u.fields()
	if name := t.Missing(f); name != "" {
		return refuse("give it (--serial, --lot, or the lot's list), or let the template ask for it with if",
			"the unit's data need .%s (%s), and the unit has none", name, t.Path)
	}
	text, err := t.Render(f)
	switch {
	case err != nil:
		return refuse("correct the template or what is given for the unit", "the unit's data cannot be made: %v", err)
	case len(text.Text) > int(u.job.Layout.UnitData.Size):
		return refuse("make the partition larger or the text shorter", "the unit's data have %d bytes, and partition %s has %d",
			len(text.Text), u.job.Layout.UnitData.Name, u.job.Layout.UnitData.Size)
	}
	return nil
}

// deriveSecrets makes what follows from the unit's key and has to be in its record.
func (u *unit) deriveSecrets() error {
	if t := u.job.Recipe.Template; t != nil && t.NeedsToken() {
		token, err := u.key.DeriveOTAToken(u.mac)
		if err != nil {
			return err
		}
		sum := token.SHA256()
		token.Wipe()
		u.token = &sum
	}
	return u.deriveECIES()
}

// unitRegion makes the ciphertext of the unit's own data. The text holds the OTA
// token for that moment only.
func (u *unit) unitRegion(cipher flashcrypt.Cipher) (layout.Ciphertext, error) {
	text, err := u.job.Recipe.Template.Render(u.fields())
	if err != nil {
		return layout.Ciphertext{}, err
	}
	if err := u.fillToken(text); err != nil {
		return layout.Ciphertext{}, err
	}
	region, plain, err := u.job.Layout.EncryptUnit(cipher, text.Text)
	u.unitPlain = plain
	return region, err
}

// fillToken puts the OTA token where the text has room for it.
func (u *unit) fillToken(text recipe.UnitText) error {
	if len(text.Tokens) == 0 {
		return nil
	}
	token, err := u.key.DeriveOTAToken(u.mac)
	if err != nil {
		return err
	}
	defer token.Wipe()
	return token.UseText(func(t []byte) error {
		if len(t) != recipe.OTATokenText {
			return fmt.Errorf("an OTA token has %d characters, not %d", len(t), recipe.OTATokenText)
		}
		for _, at := range text.Tokens {
			copy(text.Text[at:], t)
		}
		return nil
	})
}

// withUnitData adds the unit's own data to what goes to its flash.
func (u *unit) withUnitData(regions []layout.Ciphertext, key keystore.Key) ([]layout.Ciphertext, error) {
	if u.job.Layout.UnitData == nil {
		return regions, nil
	}
	err := useCipher(u.job, key, func(cipher flashcrypt.Cipher) error {
		own, err := u.unitRegion(cipher)
		regions = append(regions[:len(regions):len(regions)], own)
		return err
	})
	return regions, err
}
