package espsim

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

func stored(t testing.TB, c *Chip) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := c.Save(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestState(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		dir := filepath.Join(t.TempDir(), "new", "dir")
		a := newChip(t, Options{Model: m, Seed: 1})
		changes := a.Changes()
		h := connect(t, a)
		h.burn(keyBlock(m), key...)
		h.attach()
		h.flash(pattern(5000), 0x1000)
		if a.Changes() == changes {
			t.Error("Changes did not move")
		}
		for range 2 { // the second replaces the first
			if err := a.SaveDir(dir); err != nil {
				t.Fatal(err)
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v: only the state may stay", entries, err)
		}
		if info, _ := entries[0].Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v: the file holds keys", info.Mode())
		}

		b := newChip(t, Options{Model: m, Seed: 2})
		connect(t, b)
		if ok, err := b.LoadDir(dir); !ok || err != nil {
			t.Fatalf("%v, %v", ok, err)
		}
		if b.State() == bootrom.Download {
			t.Error("loading does not restart the chip")
		}
		if diff := cmp.Diff(a.Fuses(), b.Fuses()); diff != "" {
			t.Errorf("fuses: %s", diff)
		}
		if !bytes.Equal(stored(t, a), stored(t, b)) {
			t.Error("stored again it differs")
		}
		h = connect(t, b)
		same(t, "the key", h.block(keyBlock(m)), key)
		if b.MAC() != a.MAC() || b.MAC() == newChip(t, Options{Model: m, Seed: 2}).MAC() {
			t.Errorf("MAC %v, want %v", b.MAC(), a.MAC())
		}
		if ok, err := b.LoadDir(t.TempDir()); ok || err != nil {
			t.Errorf("an empty directory: %v, %v", ok, err)
		}
	})
}

func TestStateRefused(t *testing.T) {
	c3 := stored(t, newChip(t, Options{Model: model(t, "esp32c3")}))
	for what, b := range map[string][]byte{
		"nothing":       nil,
		"another file":  []byte("#!/bin/sh\n"),
		"cut":           c3[:len(c3)-1],
		"cut in fuses":  c3[:40],
		"more":          append(bytes.Clone(c3), 0),
		"another chip":  stored(t, newChip(t, Options{Model: model(t, "esp32")})),
		"another flash": stored(t, newChip(t, Options{Model: model(t, "esp32c3"), FlashSize: 2 << 20})),
		"a word less":   []byte(strings.Replace(string(c3), " 00000000", "", 1)),
		"upper case":    []byte(strings.Replace(string(c3), "03100000", "0310000A", 1)),
		"unknown key":   []byte(strings.Replace(string(c3), `{"chip"`, `{"x":1,"chip"`, 1)),
		"endless":       append([]byte(stateMagic), bytes.Repeat([]byte{' '}, 2*maxStateLine)...),
	} {
		c := newChip(t, Options{Model: model(t, "esp32c3"), Seed: 9})
		before := stored(t, c)
		if err := c.Load(bytes.NewReader(b)); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", what, err)
		}
		if !bytes.Equal(stored(t, c), before) {
			t.Errorf("%s: the chip changed", what)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, StateFile), c3[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newChip(t, Options{Model: model(t, "esp32c3")}).LoadDir(dir); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the error does not name the file: %v", err)
	}
}

// FuzzLoad: what loads is stored again as the same bytes.
func FuzzLoad(f *testing.F) {
	m, err := chip.ByName("esp32c3")
	if err != nil {
		f.Fatal(err)
	}
	small := Options{Model: m, FlashSize: 0x1000}
	f.Add(stored(f, newChip(f, small)))
	f.Add([]byte(stateMagic + "{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newChip(t, small)
		if err := c.Load(bytes.NewReader(b)); err != nil {
			if !errors.Is(err, ErrState) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(stored(t, c), b) {
			t.Errorf("%q is stored as %q", b, stored(t, c))
		}
	})
}
