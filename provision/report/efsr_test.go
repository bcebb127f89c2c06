package report

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// TestToken holds the token against the example in the vendor's documentation
// (esptool, "Token Dump", section "Using Token").
func TestToken(t *testing.T) {
	const want = "EFSR:esp32c3:004:AAGAAAEAAAAAAAAEAAAAAAAAAAAAAAAA:AAAAAAAAAAAAAAAAAAAQAAAAAAAAAAAA:AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA::::::::::epNVBg"
	blocks := blankFuses(mac(0))
	for i := range blocks {
		for k := range blocks[i].Words {
			blocks[i].Words[k] = "00000000"
		}
	}
	blocks[0].Words = []string{"00800100", "00000001", "04000000", "00000000", "00000000", "00000000"}
	blocks[1].Words[3] = "00100000"
	blocks[2].Words[0] = "00000002"
	got, err := Token("esp32c3", 4, blocks, noErrors)
	if err != nil || got != want {
		t.Errorf("%s, %v, want\n%s", got, err, want)
	}
	errs := append([]efuse.ErrorRegister{}, noErrors...)
	errs[6].Value = 0x00000100
	if got, err := Token("esp32c3", 4, blocks, errs); err != nil || got[len(got)-46:len(got)-7] != ":AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEAAA" {
		t.Errorf("error registers: %s, %v", got, err)
	}
	blocks[4].Words = []string{"fp:" + fingerprint(mac(1), 0)}
	if _, err := Token("esp32c3", 4, blocks, noErrors); !errors.Is(err, ErrReadableKey) {
		t.Errorf("a key that can be read: %v", err)
	}
	for name, bad := range map[string][]efuse.BlockWords{
		"blocks": blocks[:4], "order": append(blankFuses(mac(0))[1:], blankFuses(mac(0))[0]),
		"words": append([]efuse.BlockWords{{Block: "BLOCK0", Words: []string{"00000000"}}}, blankFuses(mac(0))[1:]...),
		"hex":   append([]efuse.BlockWords{{Block: "BLOCK0", Words: []string{"0", "0", "0", "0", "0", "0"}}}, blankFuses(mac(0))[1:]...),
	} {
		if tok, err := Token("esp32c3", 4, bad, nil); err == nil {
			t.Errorf("%s: %s", name, tok)
		}
	}
	if _, err := Token("esp8266", 4, nil, nil); err == nil {
		t.Error("an unknown chip")
	}
}

// TestTokenOfVendor holds tokens against those that the vendor's espefuse made of
// the same eFuses (`espefuse dump --format token`, docs/interop.md): a hybrid unit
// of each chip, and a block with an error that the check bits show.
func TestTokenOfVendor(t *testing.T) {
	const c3Factory = "6f061900 4c022b83 c8dcbb87 0c15c56f 00000001 00000000 00000000 00000000"
	for _, c := range []struct {
		chip   string
		rev    chip.Revision
		blocks map[int]string // the others are zero
		errs   []efuse.ErrorRegister
		want   string
	}{
		{
			"esp32", 301,
			map[int]string{0: "07f10088 00000001 00300200 0000a200 00000e50 f1100000 000003c4"},
			[]efuse.ErrorRegister{{Name: "DEC_STATUS"}},
			"EFSR:esp32:301:iADxBwEAAAAAAjAAAKIAAFAOAAAAABDxxAMAAA:::::xhiZhQ",
		},
		{
			"esp32c3", 4,
			map[int]string{
				0: "00800104 00180601 041c0000 00000000 00000002 00000000",
				1: "00000002 00000200 00000000 03100000 00000000 00000000", 2: c3Factory,
			},
			noErrors,
			"EFSR:esp32c3:004:BAGAAAEGGAAAABwEAAAAAAIAAAAAAAAA:AgAAAAACAAAAAAAAAAAQAwAAAAAAAAAA:ABkGb4MrAkyHu9zIb8UVDAEAAAAAAAAAAAAAAAAAAAA::::::::::mpfsPw",
		},
		{
			"esp32c3", 4,
			map[int]string{
				1: "00000009 00000200 00000000 03100000 00000000 00000000", 2: c3Factory,
				3: "a5a5a5a5 a5a5a5a5 a5a5a5a5 a5a5a5a5 a5a5a5a5 a5a5a5a5 a5a5a5a5 a5a5a5a5",
			},
			append(slices.Clone(noErrors[:5]), efuse.ErrorRegister{Name: "RS_ERR0", Value: 0x100}, efuse.ErrorRegister{Name: "RS_ERR1"}),
			"EFSR:esp32c3:004::CQAAAAACAAAAAAAAAAAQAwAAAAAAAAAA:ABkGb4MrAkyHu9zIb8UVDAEAAAAAAAAAAAAAAAAAAAA:paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU::::::::AAAAAAAAAAAAAAAAAAAAAAAAAAAAAQAAAAAAAA:owY2kA",
		},
	} {
		tab, err := table.For(c.chip)
		if err != nil {
			t.Fatal(err)
		}
		var blocks []efuse.BlockWords
		for i, b := range tab.Blocks() {
			words := strings.Fields(c.blocks[i])
			for len(words) < b.Words {
				words = append(words, "00000000")
			}
			blocks = append(blocks, efuse.BlockWords{Block: b.Name, Words: words})
		}
		if got, err := Token(c.chip, c.rev, blocks, c.errs); err != nil || got != c.want {
			t.Errorf("%s, %v, want\n%s", got, err, c.want)
		}
	}
}
