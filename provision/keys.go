package provision

import (
	"bytes"
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

// origin says where the bytes of a slot come from. All of it follows from the one
// key that is in custody (docs/decisions/0011).
type origin struct {
	kind        originKind
	first, last int // originFlash: these bytes of the key
}

type originKind int

const (
	originFlash originKind = iota + 1 // the flash encryption key, or a half of it
	originHMAC                        // the unit's HMAC_UP key
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

// secretSlots lists the keys that a recipe's units hide from everybody. They are
// burned in one run of burn-key. A chip with purpose fields takes them from its
// first key block on; on the others the purpose says the block.
func secretSlots(t *table.Table, r *recipe.Recipe) ([]keySlot, error) {
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
	return out, place(t, out, 0)
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
		st.WriteProtect = append(st.WriteProtect, s.Block)
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

// bytesOf gives the bytes of a slot, for a moment: wipe them.
func (u *unit) bytesOf(s keySlot) (out *secret.Bytes, err error) {
	take := func(b []byte) error { out = secret.New(bytes.Clone(b)); return nil }
	switch s.origin.kind {
	case originFlash:
		err = u.key.Use(func(b []byte) error { return take(b[s.origin.first:min(s.origin.last, len(b))]) })
	case originHMAC:
		var k keystore.Key
		if k, err = u.key.DeriveHMACKey(u.mac); err == nil {
			err = k.Use(take)
			k.Wipe()
		}
	default:
		err = fmt.Errorf("nothing says what goes into %s", s.Block)
	}
	return out, err
}

// nameSlots puts the fingerprints of what goes there into the unit's slots.
func (u *unit) nameSlots() error {
	for i, s := range u.slots {
		b, err := u.bytesOf(s)
		if err != nil {
			return err
		}
		fp, err := efuse.KeyFingerprint(b)
		b.Wipe()
		if err != nil {
			return err
		}
		u.slots[i].Fingerprint = keystore.Fingerprint(fp)
	}
	return nil
}

// slotAt finds the slot of a block, among all that the job burns.
func (u *unit) slotAt(block string) (keySlot, bool) {
	i := slices.IndexFunc(u.slots, func(s keySlot) bool { return s.Block == block })
	if i < 0 {
		return keySlot{}, false
	}
	return u.slots[i], true
}

// takeSlots gives the unit's slots the fingerprints that the journal has of them.
func (u *unit) takeSlots(burned []keySlot) error {
	if len(burned) != len(u.slots) {
		return fmt.Errorf("the journal names %d key blocks, and this job burns %d", len(burned), len(u.slots))
	}
	for i, b := range burned {
		if b.Block != u.slots[i].Block {
			return fmt.Errorf("the journal names key block %s, and this job burns %s", b.Block, u.slots[i].Block)
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
		switch {
		case b.ReadProtected && u.past.intents[stageProtect] && state != slotsOther:
			state = slotsHidden
		case b.ReadProtected || b.Fingerprint.IsZero() || b.Fingerprint != efuse.Fingerprint(s.Fingerprint):
			state = slotsOther
		}
	}
	if blank {
		return slotsBlank, nil
	}
	return state, nil
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
