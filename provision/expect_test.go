package provision_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
)

// This file says what a unit's eFuses must be, from esp-facts and by the names of
// fields. It shares nothing with how the engine comes to its plan.

// twoChips are one of each generation, for tests that take long and say the same for
// all.
var twoChips = []string{"esp32", "esp32c3"}

// allChips are the chips of this build.
func allChips() []string {
	var names []string
	for _, m := range chip.All() {
		names = append(names, m.Name)
	}
	return names
}

// f5 are the words of BLOCK0 after the whole hybrid list and after the last fuse of
// profile release (esp-facts F.5, computed with the vendor's tool).
var f5 = map[string]map[string][]uint32{
	"esp32": {
		"hybrid":  {0x07F10088, 0, 0, 0, 0, 0xF0000000, 0x000003C4},
		"release": {0x0FF10088, 0, 0, 0, 0, 0xF0000000, 0x000003C4},
	},
	"esp32s2": {
		"hybrid":  {0x00800104, 0x000C8C01, 0x041C0000, 0, 0x00000002, 0},
		"release": {0x00800104, 0x000C8C01, 0x041C0000, 0, 0x00000022, 0},
	},
	"esp32s3": {
		"hybrid":  {0x00800104, 0x00180C01, 0x041C0000, 0x00400000, 0x00000002, 0},
		"release": {0x00800104, 0x00180C01, 0x041C0000, 0x00400000, 0x00000022, 0},
	},
	"esp32c2": {
		"hybrid":  {0x00000080, 0x000083F1},
		"release": {0x00000080, 0x000183F1},
	},
	"esp32c3": {
		"hybrid":  {0x00800104, 0x00180601, 0x041C0000, 0, 0x00000002, 0},
		"release": {0x00800104, 0x00180601, 0x041C0000, 0, 0x00000022, 0},
	},
	"esp32c6": {
		"hybrid":  {0x00800104, 0x00180601, 0x041C0000, 0, 0x00000002, 0},
		"release": {0x00800104, 0x00180601, 0x041C0000, 0, 0x00000022, 0},
	},
	"esp32h2": {
		"hybrid":  {0x00800104, 0x40180201, 0x041C0000, 0, 0x00000002, 0},
		"release": {0x00800104, 0x40180201, 0x041C0000, 0, 0x00000022, 0},
	},
	"esp32c5": {
		"hybrid":  {0x00800104, 0x00182201, 0x01070000, 0, 0x08000002, 0},
		"release": {0x00800104, 0x00182201, 0x01070000, 0, 0x08000022, 0},
	},
	"esp32c61": {
		"hybrid":  {0x00800104, 0x03806901, 0x00000004, 0x08000002, 0, 0},
		"release": {0x00800104, 0x03806901, 0x00000004, 0x08000012, 0, 0},
	},
	"esp32p4": {
		"hybrid":  {0x00800100, 0x00182201, 0x041C0000, 0, 0x00000002, 0x00010000},
		"release": {0x00800100, 0x00182201, 0x041C0000, 0, 0x00000022, 0x00010000},
	},
}

// fuseBits are fields of an eFuse table with the values that a test expects.
type fuseBits map[string]uint32

// on puts the fields into words of BLOCK0.
func (f fuseBits) on(words []uint32, tab *table.Table) {
	for name, v := range f {
		fd, ok := tab.Field(name)
		if !ok || fd.Block != 0 {
			panic(fmt.Sprintf("%s has no %s in BLOCK0", tab.Chip(), name))
		}
		for i, bit := range fd.Bits() {
			words[bit/32] = words[bit/32]&^(1<<(bit%32)) | v>>i&1<<(bit%32)
		}
	}
}

// keyIndex is the block that the flash encryption key begins in.
func keyIndex(name string) int {
	switch name {
	case "esp32":
		return 1
	case "esp32c2":
		return 3
	}
	return 4
}

// planned is what a finished unit's array has.
type planned struct {
	block0 []uint32         // beside what was there before
	blocks map[int][]uint32 // key blocks with something in them; nil words: the key is not known
	secret []int            // those that hold a key
}

// plan says it of a recipe's unit; key is nil where nobody knows it.
func plan(c *espsim.Chip, r *recipe.Recipe, key []byte) planned {
	m, profile := c.Model(), string(r.Profile)
	tab, err := table.ForRevision(m.Name, c.Revision())
	if err != nil {
		panic(err)
	}
	p := planned{blocks: map[int][]uint32{}}
	last := map[string]fuseBits{ // the last fuse, which F.5 has for release
		"closed": {"DIS_DOWNLOAD_MODE": 1},
	}
	switch profile {
	case "development":
		p.block0 = make([]uint32, tab.Blocks()[0].Words)
		bits := fuseBits{m.EFuse.FlashCryptCount: 1}
		switch {
		case m.Name == "esp32":
			maps.Copy(bits, fuseBits{"WR_DIS.BLOCK1": 1, "RD_DIS.BLOCK1": 1, "FLASH_CRYPT_CONFIG": 15})
		case m.Name == "esp32c2":
			maps.Copy(bits, fuseBits{"WR_DIS.KEY0": 1, "RD_DIS.KEY0.LOW": 1})
		default:
			maps.Copy(bits, fuseBits{"WR_DIS.KEY0": 1, "WR_DIS.KEY_PURPOSE_0": 1, "RD_DIS.KEY0": 1, "KEY_PURPOSE_0": 4})
		}
		bits.on(p.block0, tab)
	case "hybrid", "release":
		p.block0 = slices.Clone(f5[m.Name][profile])
	case "closed":
		p.block0 = slices.Clone(f5[m.Name]["hybrid"])
		if m.Name == "esp32" {
			p.block0 = slices.Clone(f5[m.Name]["release"])
		} else {
			last["closed"].on(p.block0, tab)
		}
	}
	if m.Name == "esp32c2" && (profile == "release" || profile == "closed") {
		fuseBits{"WR_DIS.SPI_BOOT_CRYPT_CNT": 1}.on(p.block0, tab) // F.2, which F.5 leaves out
	}
	at := keyIndex(m.Name)
	put := func(block int, part []byte, purpose uint32, hide bool) {
		p.blocks[block] = nil
		if hide {
			p.secret = append(p.secret, block)
		}
		if part != nil {
			p.blocks[block] = make([]uint32, 8)
			copy(p.blocks[block], words(part))
		}
		if _, has := tab.Field("KEY_PURPOSE_0"); !has {
			return
		}
		n := block - keyIndex(m.Name)
		bits := fuseBits{fmt.Sprintf("KEY_PURPOSE_%d", n): purpose, fmt.Sprintf("WR_DIS.KEY%d", n): 1, fmt.Sprintf("WR_DIS.KEY_PURPOSE_%d", n): 1}
		if hide {
			bits[fmt.Sprintf("RD_DIS.KEY%d", n)] = 1
		}
		bits.on(p.block0, tab)
	}
	if r.Scheme() == chip.SchemeXTS256 {
		var one, two []byte
		if key != nil {
			one, two = reversed(key[:32]), reversed(key[32:])
		}
		put(at, one, 2, true)
		put(at+1, two, 3, true)
		at += 2
	} else {
		put(at, reversed(key), 4, true)
		at++
	}
	if m.Name == "esp32c2" && r.Scheme() == chip.SchemeXTS128 {
		fuseBits{"XTS_KEY_LENGTH_256": 1, "RD_DIS.KEY0.HI": 1}.on(p.block0, tab)
	}
	if r.ECIES {
		put(at, hmacKey(key, c.MAC()), 8, true)
		at++
	}
	if r.SecureBoot != nil {
		p.secureBoot(m, tab, r, at, put)
	}
	return p
}

// secureBoot adds what Secure Boot burns (esp-facts B.9, E.4).
func (p *planned) secureBoot(m chip.Model, tab *table.Table, r *recipe.Recipe, at int, put func(int, []byte, uint32, bool)) {
	bits := fuseBits{"WR_DIS.RD_DIS": 1}
	switch m.Name {
	case "esp32":
		bits["ABS_DONE_1"], bits["WR_DIS.BLOCK2"] = 1, 1
		d := r.SecureBootKeys[0].Digest()
		p.blocks[2] = words(d[:])
	case "esp32c2": // in the high half of the key's block
		bits["SECURE_BOOT_EN"] = 1
		d := r.SecureBootKeys[0].Digest()
		if p.blocks[3] != nil {
			copy(p.blocks[3][4:], words(d[:16]))
		}
	default:
		bits["SECURE_BOOT_EN"] = 1
		for i := range 3 {
			if i >= len(r.SecureBootKeys) {
				bits[fmt.Sprintf("SECURE_BOOT_KEY_REVOKE%d", i)] = 1
				continue
			}
			d := r.SecureBootKeys[i].Digest()
			put(at+i, d[:], uint32(9+i), false)
		}
		if r.SecureBoot.AggressiveRevoke {
			bits["SECURE_BOOT_AGGRESSIVE_REVOKE"] = 1
		}
		if r.SecureBoot.Scheme == chip.SignECDSA384 {
			bits["SECURE_BOOT_SHA384_EN"] = 1
		}
		for _, name := range []string{"SECURE_BOOT_SHA384_EN", "ECDSA_CURVE_MODE"} {
			if f, ok := tab.Field(name); ok && f.WRDis != table.None && r.Profile != recipe.Development {
				bits["WR_DIS."+name] = 1
			}
		}
	}
	bits.on(p.block0, tab)
}

// hmacKey is the unit's HMAC_UP key.
func hmacKey(key []byte, mac chip.MAC) []byte {
	if key == nil {
		return nil
	}
	k, err := keystore.KeyFromBytes(slices.Clone(key))
	if err != nil {
		panic(err)
	}
	h, err := k.DeriveHMACKey(mac)
	if err != nil {
		panic(err)
	}
	var out []byte
	if err := h.Use(func(b []byte) error { out = slices.Clone(b); return nil }); err != nil {
		panic(err)
	}
	return out
}

// outside names a bit that is set and was neither before nor is planned.
func (p planned) outside(now, before [][]uint32) error {
	for blk := range now {
		for i, v := range now[blk] {
			want := before[blk][i]
			content, used := p.blocks[blk]
			switch {
			case blk == 0:
				want |= p.block0[i]
			case content != nil:
				want |= content[i]
			case used:
				continue // the key is not known here
			}
			if v&^want != 0 {
				return fmt.Errorf("block %d word %d: bits outside the plan", blk, i) // no key bytes in logs
			}
		}
	}
	return nil
}

// keys looks at the blocks that hold keys: whether anything is in them, and whether all
// of them are whole.
func (p planned) keys(now [][]uint32) (held, whole bool) {
	whole = true
	for _, blk := range p.secret {
		for _, v := range now[blk] {
			held = held || v != 0
		}
		whole = whole && p.blocks[blk] != nil && slices.Equal(now[blk], p.blocks[blk])
	}
	return held, whole && held
}

// partly reports that some of the keys' bits are there and not all.
func (p planned) partly(now [][]uint32) bool {
	held, whole := p.keys(now)
	return held && !whole
}

// compareFuses holds the array against its state before and the recipe: BLOCK0 has
// exactly the planned bits more, the key blocks what belongs there, everything else
// what it had.
func compareFuses(c *espsim.Chip, before [][]uint32, r *recipe.Recipe, key []byte) error {
	if len(key) == 0 {
		return errors.New("there is no key")
	}
	p := plan(c, r, key)
	for i, got := range c.Fuses() {
		want := slices.Clone(before[i])
		if i == 0 {
			for w := range p.block0 {
				want[w] |= p.block0[w]
			}
		}
		if content, used := p.blocks[i]; used {
			if !slices.Equal(got, content) {
				return fmt.Errorf("block %d does not hold what belongs there in its order", i) // no key bytes in logs
			}
			continue
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("block %d holds %08x, want %08x", i, got, want)
		}
	}
	return nil
}

// wantFuses is compareFuses for the sample product.
func wantFuses(t testing.TB, c *espsim.Chip, before [][]uint32, profile string, key []byte) {
	t.Helper()
	wantJobFuses(t, c, before, sampleJob(t, c.Model().Name, profile), key)
}

func wantJobFuses(t testing.TB, c *espsim.Chip, before [][]uint32, job *provision.Job, key []byte) {
	t.Helper()
	if err := compareFuses(c, before, job.Recipe, key); err != nil {
		t.Error(err)
	}
}
