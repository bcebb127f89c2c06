package sample_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision/recipe"
)

func TestSample(t *testing.T) {
	for _, name := range chip.Names() {
		t.Run(name, func(t *testing.T) {
			m, err := chip.ByName(name)
			if err != nil {
				t.Fatal(err)
			}
			path, err := sample.Write(t.TempDir(), sample.Product{Chip: m, Profile: "hybrid", Baud: 921600})
			if err != nil {
				t.Fatal(err)
			}
			r, err := recipe.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			files, err := r.LoadImages()
			if err != nil || len(files) != 4 {
				t.Fatalf("%d files, %v", len(files), err)
			}
			for _, f := range files {
				if image.LooksEncrypted(f.Data) {
					t.Errorf("%s looks encrypted", f.Name)
				}
				switch f.Offset {
				case m.BootloaderOffset, sample.FactoryOffset:
					img, err := image.Parse(f.Data)
					if err != nil {
						t.Fatal(err)
					}
					if err := img.CheckFor(m, image.RevisionUnknown); err != nil {
						t.Error(err)
					}
				case sample.TableOffset:
					table, err := partition.Parse(f.Data)
					if err != nil {
						t.Fatal(err)
					}
					if err := table.Check(4<<20, sample.TableOffset); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// Files exist for every chip, signed if somebody asks.
func TestSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range chip.All() {
		files, err := sample.Files(sample.Product{Chip: m, Signers: []crypto.Signer{key}})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []uint32{m.BootloaderOffset, sample.FactoryOffset} {
			if r, err := secureboot.Verify(files[at]); err != nil || len(r.Signatures) != 1 {
				t.Errorf("%s at 0x%x: %d signatures, %v", m.Name, at, len(r.Signatures), err)
			}
		}
		if m.BootloaderOffset+uint32(len(files[m.BootloaderOffset])) > sample.TableOffset {
			t.Errorf("%s: the bootloader reaches into the partition table", m.Name)
		}
	}
}
