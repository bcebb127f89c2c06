package seal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/provisiond/provisiond/internal/seal"
)

func TestSealAndOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	recipient, err := seal.NewIdentity(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.NewIdentity(path, "test"); !errors.Is(err, seal.ErrExists) {
		t.Errorf("an identity is overwritten: %v", err)
	}
	to, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	id, err := seal.ReadIdentity(path)
	if err != nil || id.Recipient().String() != recipient {
		t.Fatalf("%v, %v", id, err)
	}
	plain := bytes.Repeat([]byte("plain"), 100_000)
	sealed, err := seal.Seal(plain, to)
	if err != nil || bytes.Contains(sealed, []byte("plainplain")) {
		t.Fatalf("sealed in clear, or %v", err)
	}
	if got, err := seal.Open(sealed, id); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opened %d bytes, %v", len(got), err)
	}
	for _, i := range []int{0, len(sealed) / 2, len(sealed) - 1} {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := seal.Open(bad, id); err == nil {
			t.Errorf("byte %d is changed and it opens", i)
		}
	}
	if _, err := seal.Open(sealed[:len(sealed)-1], id); err == nil {
		t.Error("one that was cut off opens")
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(sealed, other); err == nil {
		t.Error("another identity opens it")
	}
}

func TestReadIdentity(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "identity")
	if _, err := seal.NewIdentity(path, "test"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(strings.TrimSpace(string(b)), "\n")[2]
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		want error
	}{
		"open to all": {string(b), 0o644, seal.ErrMode},
		"two":         {secret + "\n" + secret + "\n", 0o600, seal.ErrIdentity},
		"cut":         {secret[:len(secret)-2] + "\n", 0o600, seal.ErrIdentity},
		"large":       {strings.Repeat("#", 65<<10) + "\n" + secret, 0o600, seal.ErrIdentity},
		"empty":       {"", 0o600, seal.ErrIdentity},
	} {
		f := filepath.Join(dir, "other")
		if err := os.WriteFile(f, []byte(tc.text), tc.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(f, tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := seal.ReadIdentity(f)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), secret[20:40]) {
			t.Errorf("%s: the error holds a part of the identity: %v", name, err)
		}
	}
	if _, err := seal.ReadIdentity(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
