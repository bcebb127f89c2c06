package efuse_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
)

// filled is a key of equal bytes.
func filled(v byte) *secret.Bytes { return secret.New(bytes.Repeat([]byte{v}, 32)) }

// three keys of one stage: one reversed and hidden, one as it is and hidden, a digest.
func threeKeys() []efuse.Stage {
	return []efuse.Stage{
		{Name: "keys", Keys: []efuse.KeyBurn{
			{Block: "KEY0", Purpose: "XTS_AES_128_KEY"}, {Block: "KEY1", Purpose: "HMAC_UP"}, {Block: "KEY2", Purpose: "SECURE_BOOT_DIGEST0"},
		}},
		{Name: "protect", ReadProtect: []string{"KEY0", "KEY1"}, WriteProtect: []string{"KEY0", "KEY1", "KEY2", "KEY_PURPOSE_0", "KEY_PURPOSE_1", "KEY_PURPOSE_2"}},
	}
}

// Keys of one stage are burned from the highest block to the lowest, each whole before
// the next, and the purposes last.
func TestManyKeys(t *testing.T) {
	f := newFake(t, "esp32c3")
	cp := check(t, f, threeKeys()...)
	if n := cp.KeyLens(0); !slices.Equal(n, []int{32, 32, 32}) {
		t.Fatalf("%v", n)
	}
	for _, wrong := range [][]*secret.Bytes{nil, {key00(32)}, {key00(32), filled(2)}, {key00(32), filled(2), key00(31)}} {
		if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0, wrong...); err == nil || f.burns != 0 {
			t.Fatalf("%d keys are taken: %v", len(wrong), err)
		}
	}
	rep, err := efuse.Burn(t.Context(), f, f.m, cp, 0, key00(32), filled(2), filled(3))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, b := range rep.Burns {
		order = append(order, b.Block)
	}
	if !slices.Equal(order, []string{"KEY2", "KEY1", "KEY0", "BLOCK0"}) {
		t.Errorf("burned %v", order)
	}
	if !slices.Equal(f.shown[4], keyWords) || f.shown[5][0] != 0x02020202 || f.shown[6][7] != 0x03030303 {
		t.Errorf("%08x", f.shown[4:7])
	}
	for i, want := range []uint64{4, 8, 9} {
		if got := f.field([]string{"KEY_PURPOSE_0", "KEY_PURPOSE_1", "KEY_PURPOSE_2"}[i]); uint64(got) != want {
			t.Errorf("purpose %d is %d", i, got)
		}
	}
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 1); err != nil {
		t.Fatal(err)
	}
	if f.field("RD_DIS") != 3 || f.shown[4][0] != 0 || f.shown[5][0] != 0 || f.shown[6][0] != 0x03030303 {
		t.Errorf("RD_DIS %d, %08x", f.field("RD_DIS"), f.shown[4:7])
	}
	if err := cp.Expected(1).WithKey("KEY2", fingerprint(t, filled(3))).Verify(read(t, f)); err != nil {
		t.Error(err)
	}
	if err := cp.Expected(1).WithKey("KEY2", fingerprint(t, filled(4))).Verify(read(t, f)); err == nil {
		t.Error("another digest passes")
	}
}

func fingerprint(t *testing.T, k *secret.Bytes) efuse.Fingerprint {
	t.Helper()
	fp, err := efuse.KeyFingerprint(k)
	if err != nil {
		t.Fatal(err)
	}
	return fp
}

// What a slot holds can be told by the purpose that it is to have, before that is burned.
func TestSlotFingerprint(t *testing.T) {
	f := newFake(t, "esp32c3")
	own := secret.New([]byte("0123456789abcdefghijklmnopqrstuv"))
	if err := own.Use(func(b []byte) error {
		for i := range 8 {
			f.cells[5][i] = uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.load()
	s := read(t, f)
	if fp, err := s.SlotFingerprint("KEY1", "HMAC_UP"); err != nil || fp != fingerprint(t, own) {
		t.Errorf("%v, %v", fp, err)
	}
	if fp, err := s.SlotFingerprint("KEY1", "XTS_AES_128_KEY"); err != nil || fp == fingerprint(t, own) {
		t.Errorf("the order of a flash key gives the same: %v", err)
	}
	if fp, err := s.SlotFingerprint("KEY2", "HMAC_UP"); err != nil || !fp.IsZero() {
		t.Errorf("an empty block: %v, %v", fp, err)
	}
	for _, x := range [][2]string{{"KEY9", "HMAC_UP"}, {"KEY1", "TEA"}} {
		if _, err := s.SlotFingerprint(x[0], x[1]); err == nil {
			t.Errorf("%v passes", x)
		}
	}
}

// A later stage that resumes the burn of its key may find that half done, while the
// stages before it are burned; a purpose of which a part is there is completed.
func TestResumeInALaterStage(t *testing.T) {
	digest := efuse.Stage{Name: "digest", Keys: []efuse.KeyBurn{{Block: "KEY2", Purpose: "SECURE_BOOT_DIGEST0"}}}
	first := efuse.Stage{Name: "first", Set: []chip.Assignment{{Field: "DIS_PAD_JTAG", Value: 1}}}
	prepare := func() *fake {
		f := newFake(t, "esp32c3")
		f.weak[[2]int{6, 40}] = 9 // so that the block is wrong after all attempts
		var bad *efuse.BurnError
		if _, err := efuse.Burn(t.Context(), f, f.m, check(t, f, digest), 0, filled(0xFF)); !errors.As(err, &bad) {
			t.Fatalf("the digest took: %v", err)
		}
		clear(f.weak)
		return f
	}
	f := prepare()
	if _, err := efuse.NewPlan(f.m, first, digest).Check(read(t, f)); err == nil {
		t.Fatal("damage passes that nobody resumes")
	}
	resumed := digest
	resumed.Resume = true
	resumed.Keys = []efuse.KeyBurn{{Block: "KEY2", Purpose: "SECURE_BOOT_DIGEST0", Resume: true, Spent: 1}}
	f.setField("KEY_PURPOSE_2", 1) // a part of 9
	cp := check(t, f, first, resumed)
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 0); err != nil {
		t.Fatalf("the stage before the damage: %v", err)
	}
	if _, err := efuse.Burn(t.Context(), f, f.m, cp, 1, filled(0xFF)); err != nil {
		t.Fatal(err)
	}
	if f.field("KEY_PURPOSE_2") != 9 || f.shown[6][1] != 0xFFFFFFFF {
		t.Errorf("purpose %d, %08x", f.field("KEY_PURPOSE_2"), f.shown[6])
	}
	// A purpose with a bit of another one is never completed.
	f = prepare()
	f.setField("KEY_PURPOSE_2", 2)
	if _, err := efuse.NewPlan(f.m, resumed).Check(read(t, f)); err == nil {
		t.Error("another purpose is taken for a part of this one")
	}
}
