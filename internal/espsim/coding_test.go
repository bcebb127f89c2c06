package espsim

import (
	"bytes"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"
)

// TestRSVectors pins the code with the known answers of esp-facts B.3, which the
// vendor's tool gave, and the parity words of the C3 transcript.
func TestRSVectors(t *testing.T) {
	count := make([]byte, 32)
	for i := range count {
		count[i] = byte(i)
	}
	reversed := make([]byte, 32)
	for i := range reversed {
		reversed[i] = byte(31 - i)
	}
	for _, v := range []struct {
		data []byte
		want string
	}{
		{count, "a04c470d3ffcb203dae9f413"},
		{bytes.Repeat([]byte{0xFF}, 32), "13a36292597404257375e0aa"},
		{append([]byte{1}, make([]byte, 31)...), "e10f626eafecc5fbc6e0972f"},
		{append(make([]byte, 31), 1), "44774376dc1f07545c7fd561"},
		{reversed, "067c7cae6d1cd6797510e1f2"},
		{make([]byte, 32), "000000000000000000000000"},
	} {
		if got := hex.EncodeToString(wordBytes(rsEncode(bytesWords(v.data)))); got != v.want {
			t.Errorf("parity of %x: %s, want %s", v.data, got, v.want)
		}
		// The decoder does not use the encoder's arithmetic.
		parity, _ := hex.DecodeString(v.want)
		code := append(bytes.Clone(v.data), parity...)
		if wrong, ok := rsCorrect(code); wrong != 0 || !ok {
			t.Errorf("%x does not check out: %d, %v", code, wrong, ok)
		}
	}
}

func TestRSCorrects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "data")
		code := append(bytes.Clone(data), wordBytes(rsEncode(bytesWords(data)))...)
		good := bytes.Clone(code)
		places := rapid.SliceOfNDistinct(rapid.IntRange(0, len(code)-1), 0, 6, rapid.ID[int]).Draw(t, "places")
		for _, at := range places {
			code[at] ^= rapid.ByteRange(1, 255).Draw(t, "damage")
		}
		wrong, ok := rsCorrect(code)
		if !ok || wrong != len(places) || !bytes.Equal(code, good) {
			t.Errorf("%d damaged bytes: %d, %v", len(places), wrong, ok)
		}
	})
}

func TestRSGivesUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "data")
		code := append(bytes.Clone(data), wordBytes(rsEncode(bytesWords(data)))...)
		for at := range rapid.IntRange(7, 44).Draw(t, "damaged") {
			code[at] ^= rapid.ByteRange(1, 255).Draw(t, "damage")
		}
		before := bytes.Clone(code)
		wrong, ok := rsCorrect(code)
		switch _, clean := rsSyndromes(code); {
		case !ok && (wrong != 0 || !bytes.Equal(code, before)):
			t.Error("the decoder gave up and changed bytes")
		case ok && (!clean || wrong > 6): // seven damaged bytes may look like six others
			t.Errorf("mended %d into no code word", wrong)
		}
	})
}

func TestThreeQuarters(t *testing.T) {
	raw, _ := hex.DecodeString("000102030405011e060708090a0b012f0c0d0e0f1011013212131415161701" + "41")
	data, wrong := decode34(bytesWords(raw))
	if got := hex.EncodeToString(wordBytes(data)); got != "000102030405060708090a0b0c0d0e0f1011121314151617" || wrong != 0 {
		t.Errorf("%s, %d groups wrong", got, wrong)
	}
	raw[6]++
	raw[16] ^= 0x10
	if _, wrong := decode34(bytesWords(raw)); wrong != 2 {
		t.Errorf("%d groups wrong, want 2", wrong)
	}
	if _, wrong := decode34(make([]uint32, 8)); wrong != 0 {
		t.Errorf("an empty block has %d groups wrong", wrong)
	}
}
