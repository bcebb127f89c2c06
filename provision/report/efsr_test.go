package report

import (
	"errors"
	"testing"

	"github.com/provisiond/provisiond/efuse"
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
