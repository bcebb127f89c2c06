package espsim

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
)

// TestBoots takes boards through the loader from nothing to an encrypted product
// and resets them: only the one with everything right comes up.
func TestBoots(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		for name, tc := range map[string]struct {
			plain    bool // write the files as they are
			key      byte // first byte of the key that encrypts; the fuses hold 00 01 … 1f
			block    int  // where the key goes, counted from the first key block
			counter  uint64
			want     bootrom.State
			onlyWith bool // on chips whose last key block is no good
		}{
			"plain":                   {plain: true, want: bootrom.Running},
			"encrypted":               {counter: 1, want: bootrom.Running},
			"encrypted, even counter": {counter: 3, want: bootrom.Looping},
			"wrong key":               {key: 1, counter: 1, want: bootrom.Looping},
			"plain, counter set":      {plain: true, counter: 1, want: bootrom.Looping},
			"encrypted, no counter":   {want: bootrom.Looping},
			"key in the last block":   {block: 5, counter: 1, want: bootrom.Looping, onlyWith: true},
			"key in another block":    {block: 4, counter: 1, want: bootrom.Running, onlyWith: true},
		} {
			if tc.onlyWith && !m.EFuse.NoXTSInLastKey {
				continue
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newChip(t, Options{Model: m, AppPrints: "app says hello"})
					h := connect(t, c)
					h.attach()
					files, err := sample.Files(sample.Product{Chip: m})
					if err != nil {
						t.Fatal(err)
					}
					secret := make([]byte, 32)
					for i := range secret {
						secret[i] = byte(i)
					}
					secret[0] = tc.key
					scheme, err := m.SchemeFor(len(secret))
					if err != nil {
						t.Fatal(err)
					}
					cipher, err := flashcrypt.New(scheme, secret, 0xF)
					if err != nil {
						t.Fatal(err)
					}
					for at, data := range files {
						data = append(bytes.Clone(data), bytes.Repeat([]byte{0xFF}, -len(data)&0xFFF)...)
						if !tc.plain {
							if err := cipher.Encrypt(data, data, at); err != nil {
								t.Fatal(err)
							}
						}
						h.flash(data, at)
					}
					h.burn(keyBlock(m)+tc.block, key...)
					burnFields(h, map[string]uint64{
						"FLASH_CRYPT_CONFIG":                              0xF,
						"KEY_PURPOSE_" + string(rune('0'+byte(tc.block))): xtsPurpose,
						m.EFuse.FlashCryptCount:                           tc.counter,
						"RD_DIS":                                          1 << tc.block,
					})
					if m.EFuse.KeyBlocks == 1 && m.EFuse.Kind == chip.EFuseRS { // all of its only block is the key
						burnFields(h, map[string]uint64{"XTS_KEY_LENGTH_256": 1, "RD_DIS": 3})
					}
					c.drive(t, hardReset)
					time.Sleep(time.Second)
					text := h.received()
					if c.State() != tc.want || bytes.Contains(text, []byte("app says hello")) != (tc.want == bootrom.Running) {
						t.Errorf("%v after %.1000q", c.State(), text)
					}
				})
			})
		}
	})
}

// burnFields burns those fields that the chip has.
func burnFields(h *host, values map[string]uint64) {
	h.t.Helper()
	w := make([]uint32, h.c.fuse.blocks[0].Words)
	for name, v := range values {
		f, ok := h.c.tab.Field(name)
		if !ok {
			continue
		}
		for i, bit := range f.Bits() {
			w[bit/32] |= uint32(v>>i&1) << (bit % 32)
		}
	}
	h.burn(0, w...)
}
