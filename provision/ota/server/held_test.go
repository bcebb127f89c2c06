package server

import (
	"bytes"
	"errors"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
)

// TestHeld: a key that is kept is sealed, opens to the same key as often as it is
// asked for, and is gone after a wipe of it or of the sealer.
func TestHeld(t *testing.T) {
	for _, scheme := range []chip.Scheme{chip.SchemeESP32, chip.SchemeXTS128, chip.SchemeXTS256, chip.SchemeXTSDerived} {
		s := newSealer()
		key, err := keystore.Generate(scheme)
		if err != nil {
			t.Fatal(err)
		}
		var plain []byte
		if err := key.Use(func(b []byte) error { plain = bytes.Clone(b); return nil }); err != nil {
			t.Fatal(err)
		}
		unit := func() *ota.Unit {
			k, err := keystore.KeyFromBytes(bytes.Clone(plain))
			if err != nil {
				t.Fatal(err)
			}
			return &ota.Unit{Scheme: scheme, Key: k, Fingerprint: k.Fingerprint()}
		}
		first, second := unit(), unit()
		h, err := s.seal(first)
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.seal(second)
		if err != nil {
			t.Fatal(err)
		}
		if first.Key.Len() != 0 || h.unit.Key.Len() != 0 {
			t.Error("a key stays beside the box")
		}
		if len(h.box) != len(plain) || bytes.Equal(h.box, other.box) {
			t.Error("the same key has the same box")
		}
		for at := 0; at+8 <= len(plain); at++ {
			if bytes.Contains(h.box, plain[at:at+8]) {
				t.Fatal("a part of the key is in the box")
			}
		}
		for range 2 {
			u, err := h.open()
			if err != nil || !u.Key.Equal(key) || u.Scheme != scheme {
				t.Fatalf("%v", err)
			}
			u.Wipe()
		}
		h.wipe()
		if _, err := h.open(); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("after its wipe: %v", err)
		}
		s.wipe()
		if _, err := other.open(); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("after the sealer's wipe: %v", err)
		}
		if _, err := s.seal(unit()); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("a sealer that was wiped seals: %v", err)
		}
	}
}
