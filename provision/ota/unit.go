package ota

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/keystore"
)

// Unit is what is known of one unit: enough to encrypt for it and to check what
// it is to get. It holds the unit's key: Wipe it.
type Unit struct {
	MAC              chip.MAC
	Chip             chip.Model
	Revision         chip.Revision
	Scheme           chip.Scheme
	FlashCryptConfig uint8 // ESP32 only
	FlashSize        uint32
	Table            *partition.Table
	Key              keystore.Key
	Fingerprint      keystore.Fingerprint
	// SecureBootScheme is "" while Secure Boot is off.
	SecureBootScheme  string
	SecureBootDigests [][32]byte
}

// Find gives the record whose key is in the unit's silicon, as far as the store
// knows. It needs no more of the store than List. Refused are units that are
// unknown, quarantined, or whose burn was never begun. A unit whose last state
// is MayBeInSilicon is not: a wrong key does no harm here, since the unit
// validates what it decrypts.
func Find(ctx context.Context, store keystore.Store, mac chip.MAC) (keystore.Meta, error) {
	metas, err := store.List(ctx, mac)
	if err != nil && !errors.Is(err, keystore.ErrPartial) {
		return keystore.Meta{}, fmt.Errorf("ota: unit %s: %w", mac, err)
	}
	quarantined := func(m keystore.Meta) bool { return m.Current() == keystore.Quarantined }
	i := slices.IndexFunc(metas, keystore.Meta.MayBeInSilicon)
	switch {
	case i >= 0 && !quarantined(metas[i]):
		return metas[i], nil
	case slices.ContainsFunc(metas, quarantined): // also one whose key was never burned
		return keystore.Meta{}, refuse(ReasonQuarantined, "unit %s was set aside (state quarantined): resolve that first", mac)
	case err != nil: // there may be more where nobody could look
		return keystore.Meta{}, fmt.Errorf("ota: unit %s: %w", mac, err)
	case len(metas) == 0:
		return keystore.Meta{}, refuse(ReasonUnknownUnit, "unit %s: the keystore has no key of it", mac)
	}
	last := cmp.Or(metas[len(metas)-1].Current(), "stored only")
	return keystore.Meta{}, refuse(ReasonKeyState, "unit %s: no key of it is in silicon, the last one is %s: the unit was not provisioned to its end", mac, last)
}

// Lookup finds a unit and loads its key.
func Lookup(ctx context.Context, store keystore.Store, mac chip.MAC) (*Unit, error) {
	m, err := Find(ctx, store, mac)
	if err != nil {
		return nil, err
	}
	r, err := store.Load(ctx, mac, m.Fingerprint)
	if err != nil {
		return nil, fmt.Errorf("ota: unit %s: %w", mac, err)
	}
	u, err := NewUnit(r)
	if err != nil {
		r.Key.Wipe()
	}
	return u, err
}

// NewUnit makes a unit of its key record and takes the key over.
func NewUnit(r keystore.Record) (*Unit, error) {
	if err := r.Validate(); err != nil {
		return nil, refuse(ReasonRecord, "unit %s: %w", r.Unit, err)
	}
	model, err := chip.ByName(r.Chip)
	if err != nil {
		return nil, refuse(ReasonRecord, "unit %s: %w: use a build that knows it", r.Unit, err)
	}
	table, err := partition.Parse(r.PartitionTable)
	if err != nil {
		return nil, refuse(ReasonRecord, "unit %s: its record's %w", r.Unit, err)
	}
	return &Unit{
		MAC: r.Unit, Chip: model, Revision: r.ChipRevision, Scheme: r.Scheme, FlashCryptConfig: r.FlashCryptConfig,
		FlashSize: r.FlashSize, Table: table, Key: r.Key, Fingerprint: r.Fingerprint,
		SecureBootScheme: r.SecureBootScheme, SecureBootDigests: slices.Clone(r.SecureBootDigests),
	}, nil
}

// who names the unit in messages; of a key file its MAC may not be known.
func (u *Unit) who() string {
	if u.MAC == (chip.MAC{}) {
		return "the unit"
	}
	return "unit " + u.MAC.String()
}

// Wipe overwrites the unit's key. Ciphertexts that were made keep their own.
func (u *Unit) Wipe() { u.Key.Wipe() }

// Slots are the unit's OTA slots in the order of their numbers.
func (u *Unit) Slots() []partition.Entry { return Slots(u.Table) }

// Slots are the OTA slots of a table in the order of their numbers.
func Slots(t *partition.Table) []partition.Entry {
	var out []partition.Entry
	for _, e := range t.Entries {
		if e.IsOTA() {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b partition.Entry) int { return int(a.Subtype) - int(b.Subtype) })
	return out
}

// Slot finds a slot by its number: ota_0 to ota_15, the subtype of the partition
// and not its label, which may be anything.
func (u *Unit) Slot(name string) (partition.Entry, error) {
	slots := u.Slots()
	names := make([]string, len(slots))
	var found []partition.Entry
	for i, e := range slots {
		if names[i] = e.SubtypeName(); names[i] == name {
			found = append(found, e)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return partition.Entry{}, refuse(ReasonSlot, "the partition table of %s has the slot %s twice, at 0x%x and at 0x%x", u.who(), name, found[0].Offset, found[1].Offset)
	case len(names) == 0:
		return partition.Entry{}, refuse(ReasonSlot, "%s has no OTA slots in its partition table", u.who())
	}
	return partition.Entry{}, refuse(ReasonSlot, "%s has no slot %q: it has %s", u.who(), name, strings.Join(names, ", "))
}

// Encrypt gives the bytes to write raw into a slot. It checks nothing but the
// size: Prepare checks.
func (u *Unit) Encrypt(slot partition.Entry, plain Bytes) (*Ciphertext, error) {
	if size := padded(uint64(len(plain)), u.Chip.EncryptedAlign); size > uint64(slot.Size) {
		return nil, refuse(ReasonSize, "the image has %d bytes, %s of %s has %d", size, slot.SubtypeName(), u.who(), slot.Size)
	}
	cipher, err := u.Key.Cipher(u.Scheme, u.FlashCryptConfig)
	if err != nil {
		return nil, fmt.Errorf("ota: %s: %w", u.who(), err)
	}
	c, err := NewCiphertext(cipher, plain, int64(len(plain)), slot.Offset, u.Chip.EncryptedAlign)
	if err != nil {
		cipher.Wipe()
	}
	return c, err
}
