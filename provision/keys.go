package provision

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/internal/secret"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/recipe"
)

// keySlot is one thing that a job burns into a key block: a key, a part of one, or
// a digest. Its JSON stands in the intent to burn it, so that a later run can tell
// whether the chip holds it when the key itself is gone.
type keySlot struct {
	Block       string               `json:"block"` // of the eFuse table; a half of one on a chip that shares it
	Purpose     string               `json:"purpose,omitempty"`
	Fingerprint keystore.Fingerprint `json:"fingerprint"`
	origin      origin
}

// origin says where the bytes of a slot come from. All secrets follow from the one key
// that is in custody (docs/decisions/0011).
type origin struct {
	kind        originKind
	first, last int    // originFlash: these bytes of the key
	digest      []byte // originDigest
}

type originKind int

const (
	originFlash  originKind = iota + 1 // the flash encryption key, or a half of it
	originHMAC                         // the unit's HMAC_UP key
	originDigest                       // of a public key that Secure Boot trusts
)

// flashPurposes lists what the eFuse table calls the key blocks of a flash
// encryption scheme, in the order of the key's bytes, and how many bytes each takes
// (esp-facts B.9).
var flashPurposes = map[chip.Scheme]struct {
	purposes []string
	bytes    int
}{
	chip.SchemeESP32:      {[]string{"FLASH_ENCRYPTION"}, 32}, // 24 with coding scheme 3/4
	chip.SchemeXTS128:     {[]string{"XTS_AES_128_KEY"}, 32},
	chip.SchemeXTS256:     {[]string{"XTS_AES_256_KEY_1", "XTS_AES_256_KEY_2"}, 32},
	chip.SchemeXTSDerived: {[]string{"XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS"}, 16},
}

const purposeHMAC = "HMAC_UP"

// unitKeys is all that a job burns into key blocks.
type unitKeys struct {
	secrets []keySlot // in one run of burn-key, the flash encryption key first
	digests []keySlot // later, since they are no secret and can be burned by any run
}

// keysFor places a job's keys. A chip with purpose fields takes them from its first
// key block on; on the others the purpose says the block. A digest that shares its
// block with a secret (ESP32-C2) goes in the secret's burn: the block takes one only.
func (j *Job) keysFor(m chip.Model, t *table.Table) (k unitKeys, err error) {
	r := j.Recipe
	if k.secrets, err = secretSlots(r); err != nil {
		return k, err
	}
	if err := place(t, k.secrets, 0); err != nil {
		return k, err
	}
	k.digests = digestSlots(m, t, r)
	if r.SecureBoot != nil && len(k.digests) != len(r.SecureBoot.Keys) {
		return k, fmt.Errorf("the %s holds no %d digests, or the keys of secure_boot were not read", t.Chip(), len(r.SecureBoot.Keys))
	}
	if err := place(t, k.digests, len(k.secrets)); err != nil {
		return k, err
	}
	shares := func(d keySlot) bool {
		return slices.ContainsFunc(k.secrets, func(s keySlot) bool {
			a, _ := t.Slot(d.Block)
			b, _ := t.Slot(s.Block)
			return a.Block == b.Block
		})
	}
	for _, d := range k.digests {
		if shares(d) {
			k.secrets = append(k.secrets, d)
		}
	}
	k.digests = slices.DeleteFunc(k.digests, shares)
	return k, nil
}

// secretSlots lists the keys that a recipe's units hide from everybody, without their
// blocks.
func secretSlots(r *recipe.Recipe) ([]keySlot, error) {
	var out []keySlot
	flash, ok := flashPurposes[r.Scheme()]
	if !ok {
		return nil, fmt.Errorf("flash encryption scheme %q has no purposes", r.Scheme())
	}
	for i, p := range flash.purposes {
		out = append(out, keySlot{Purpose: p, origin: origin{kind: originFlash, first: i * flash.bytes, last: (i + 1) * flash.bytes}})
	}
	if r.ECIES {
		out = append(out, keySlot{Purpose: purposeHMAC, origin: origin{kind: originHMAC}})
	}
	return out, nil
}

// place gives each slot its block: the purpose's own, or the next one from first on.
func place(t *table.Table, slots []keySlot, first int) error {
	blocks := t.Slots()
	for i, s := range slots {
		p, ok := t.Purpose(s.Purpose)
		switch {
		case !ok:
			return fmt.Errorf("the %s has no key purpose %s", t.Chip(), s.Purpose)
		case p.Block != "":
			slots[i].Block = p.Block
		case first >= len(blocks):
			return fmt.Errorf("the %s has %d key blocks, which is too few", t.Chip(), len(blocks))
		default:
			slots[i].Block = blocks[first].Name
			first++
		}
	}
	return nil
}

// burns is what the plan says of the slots.
func burns(slots []keySlot) []efuse.KeyBurn {
	var out []efuse.KeyBurn
	for _, s := range slots {
		out = append(out, efuse.KeyBurn{Block: s.Block, Purpose: s.Purpose})
	}
	return out
}

// protection is the stage that hides what must be hidden and locks the slots and
// their purposes.
func protection(t *table.Table, name string, slots []keySlot) efuse.Stage {
	st := efuse.Stage{Name: name}
	for _, s := range slots {
		if p, _ := t.Purpose(s.Purpose); p.Reading == table.ReadMust {
			st.ReadProtect = append(st.ReadProtect, s.Block)
		}
		st.WriteProtect = append(st.WriteProtect, s.Block) // halves of a block share the bit
		if f, ok := purposeField(t, s.Block); ok {
			st.WriteProtect = append(st.WriteProtect, f.Name)
		}
	}
	return st
}

// purposeField finds the field that says what a key block is for, on chips that
// have such fields.
func purposeField(t *table.Table, block string) (table.Field, bool) {
	n, ok := strings.CutPrefix(block, "KEY")
	if !ok {
		return table.Field{}, false
	}
	return t.Field("KEY_PURPOSE_" + n)
}

// purposeBits lists the fields that say what a key block is for: its purpose field, or
// what is burned with a key of that purpose on chips without such fields.
func purposeBits(t *table.Table, block string, p table.Purpose) []chip.Assignment {
	var out []chip.Assignment
	if f, has := purposeField(t, block); has {
		out = append(out, chip.Assignment{Field: f.Name, Value: uint32(p.Value)})
	}
	for _, name := range p.Sets {
		out = append(out, chip.Assignment{Field: name, Value: 1})
	}
	return out
}

// bytesOf gives the bytes of a slot, for a moment: wipe them.
func (u *unit) bytesOf(s keySlot) (*secret.Bytes, error) {
	switch s.origin.kind {
	case originFlash:
		return copyOf(u.key, s.origin.first, s.origin.last)
	case originHMAC:
		k, err := u.key.DeriveHMACKey(u.mac)
		if err != nil {
			return nil, err
		}
		defer k.Wipe()
		return copyOf(k, 0, k.Len())
	case originDigest:
		return secret.New(bytes.Clone(s.origin.digest)), nil
	}
	return nil, fmt.Errorf("nothing says what goes into %s", s.Block)
}

// copyOf gives a part of a key; of one that is shorter what there is.
func copyOf(k keystore.Key, first, last int) (out *secret.Bytes, err error) {
	err = k.Use(func(b []byte) error {
		out = secret.New(bytes.Clone(b[first:min(last, len(b))]))
		return nil
	})
	return out, err
}

// takeKeys gives the unit its slots, for the silicon that it has.
func (u *unit) takeKeys() error {
	k, err := u.job.keysFor(u.model, u.now.Table())
	if err != nil {
		return err
	}
	u.slots, u.digests = k.secrets, k.digests
	isDigest := func(s keySlot) bool { return s.origin.kind == originDigest }
	return errors.Join(u.nameSlots(u.slots, isDigest), u.nameSlots(u.digests, isDigest))
}

// nameSlots puts the fingerprints of what goes there into some slots.
func (u *unit) nameSlots(slots []keySlot, which func(keySlot) bool) error {
	for i, s := range slots {
		if !which(s) {
			continue
		}
		b, err := u.bytesOf(s)
		if err != nil {
			return err
		}
		fp, err := efuse.KeyFingerprint(b)
		b.Wipe()
		if err != nil {
			return err
		}
		slots[i].Fingerprint = keystore.Fingerprint(fp)
	}
	return nil
}

// slotAt finds the slot of a block, among all that the job burns.
func (u *unit) slotAt(block string) (keySlot, bool) {
	return findSlot(slices.Concat(u.slots, u.digests), func(s keySlot) bool { return s.Block == block })
}

// slotOf finds the slot of a purpose.
func (u *unit) slotOf(purpose string) (keySlot, bool) {
	return findSlot(slices.Concat(u.slots, u.digests), func(s keySlot) bool { return s.Purpose == purpose })
}

func findSlot(list []keySlot, is func(keySlot) bool) (keySlot, bool) {
	i := slices.IndexFunc(list, is)
	if i < 0 {
		return keySlot{}, false
	}
	return list[i], true
}

// takeSlots gives the unit's slots the fingerprints that the journal has of them.
func (u *unit) takeSlots(burned []keySlot) error {
	if len(burned) != len(u.slots) {
		return fmt.Errorf("the journal names %d key blocks, and this job burns %d", len(burned), len(u.slots))
	}
	for i, b := range burned {
		switch own := u.slots[i]; {
		case b.Block != own.Block:
			return fmt.Errorf("the journal names key block %s, and this job burns %s", b.Block, own.Block)
		case own.origin.kind == originDigest && own.Fingerprint != b.Fingerprint:
			return fmt.Errorf("the unit trusts another key than the recipe's (%s)", b.Block)
		}
		u.slots[i].Fingerprint = b.Fingerprint
	}
	return nil
}

// slotState is what the chip shows of the keys whose burn this job began.
type slotState int

const (
	slotsOther  slotState = iota // something else than the keys, or a part of them
	slotsBlank                   // free key blocks without errors
	slotsShown                   // every key, by its fingerprint
	slotsHidden                  // some are hidden, which this job does after it has read them back
)

// slotsShow looks at the key blocks. A readable block shows its key by the
// fingerprint; a protected one by this job's protection, which is only begun after
// the key was read back.
func (u *unit) slotsShow() (slotState, error) {
	state, blank := slotsShown, len(u.now.BlockErrors()) == 0
	for _, s := range u.slots {
		b, err := u.now.KeyBlock(s.Block)
		if err != nil {
			return slotsOther, fmt.Errorf("the journal names the key block: %w", err)
		}
		blank = blank && b.Free
		shown, err := u.slotShows(s)
		if err != nil {
			return slotsOther, err
		}
		switch {
		case b.ReadProtected && s.origin.kind != originDigest && u.past.intents[stageProtect] && state != slotsOther:
			state = slotsHidden
		case b.ReadProtected || !shown:
			state = slotsOther
		}
	}
	if blank {
		return slotsBlank, nil
	}
	return state, nil
}

// slotShows reports whether a slot can be read and holds what belongs there. The
// purpose, which says the order of the bytes, is burned later than the key.
func (u *unit) slotShows(s keySlot) (bool, error) {
	fp, err := u.now.SlotFingerprint(s.Block, s.Purpose)
	return err == nil && !fp.IsZero() && fp == efuse.Fingerprint(s.Fingerprint), err
}

// deriveECIES gives the public key to which esp_encrypted_img files are sealed for
// the unit. The private one follows from the HMAC_UP key in the chip.
func (u *unit) deriveECIES() error {
	for _, s := range u.slots {
		if s.origin.kind != originHMAC {
			continue
		}
		b, err := u.bytesOf(s)
		if err != nil {
			return err
		}
		defer b.Wipe()
		return b.Use(func(key []byte) error {
			public, err := encimg.PublicKey(key)
			u.ecies = public[:]
			return err
		})
	}
	return nil
}
