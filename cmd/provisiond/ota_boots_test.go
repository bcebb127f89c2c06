package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/explain"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
)

// TestOTAEncryptBoots: what ota encrypt makes from the record that the engine wrote
// boots on the chip that the engine burned, whose decryption shares no code with
// ours, for every scheme and kind of key. In the other slot the chip refuses it with
// the words that image explain says.
func TestOTAEncryptBoots(t *testing.T) {
	t.Parallel()
	rsaKey := func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }
	p256 := func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
	l := &otaLine{t: t, dir: t.TempDir()}
	l.run(0, "keystore", "init", "keys.db", "--test")
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	for i, c := range []struct {
		chip, more, scheme string
		key                func() (crypto.Signer, error) // of Secure Boot
	}{
		{"esp32", "", "esp32", nil},
		{"esp32", "", "esp32", rsaKey},
		{"esp32c2", "", "xts-128-derived", nil},
		{"esp32c2", "flash_encryption: xts-128\n", "xts-128", nil},
		{"esp32c2", "", "xts-128-derived", p256}, // half of the digest
		{"esp32c3", "", "xts-128", nil},
		{"esp32c3", "encimg_ecies: true\n", "xts-128", rsaKey},
		{"esp32s3", "flash_encryption: xts-256\n", "xts-256", nil},
		{"esp32c6", "", "xts-128", nil},
	} {
		name := fmt.Sprintf("%s-%s-%d", c.chip, c.scheme, i)
		m, err := chip.ByName(c.chip)
		if err != nil {
			t.Fatal(err)
		}
		p := sample.Product{Chip: m, Name: name, Profile: "hybrid", AppSize: 20 << 10, Baud: 921600, More: c.more}
		if c.key != nil {
			signer, err := c.key()
			if err != nil {
				t.Fatal(err)
			}
			p.Signers = []crypto.Signer{signer}
		}
		dir := filepath.Join(l.dir, name)
		recipe, err := sample.Write(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		mac := chip.MAC{0x02, 0, 0, 0, 1, byte(i)}
		revision := max(m.Lockdown.ClosedMinimum, m.SecureBoot.MinimumRevision, 4)
		l.run(0, "provision", "--port", fmt.Sprintf("sim://%s?revision=%s&mac=%s&state=%s&app-prints=%s", c.chip, revision, mac, name+"-chip", strings.ReplaceAll(sample.AppText, " ", "%20")),
			"--recipe", recipe, "--keystore", "keys.db", "--journal", "journal.db", "--json")
		unit := []string{"--unit", mac.String(), "--keystore", "keys.db", "--identity", "keys.db.identity"}
		p.Version = "2.0.0"
		if p.Signers != nil {
			open := p
			open.Signers = nil
			l.writeApp(name+"-open.bin", open)
			out := l.run(10, append([]string{"ota", "encrypt", "--all-slots", "--in", name + "-open.bin", "--out", "no", "--json"}, unit...)...)
			if !strings.Contains(out, `"reason":"unsigned"`) {
				t.Errorf("%s: %s", name, out)
			}
		}
		l.writeApp(name+".bin", p)
		var answer struct {
			Scheme string
			Files  []struct{ Slot, File string }
		}
		out := l.run(0, append([]string{"ota", "encrypt", "--all-slots", "--in", name + ".bin", "--out", name + "-files", "--json"}, unit...)...)
		if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Files) != 2 || answer.Scheme != c.scheme {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		board, err := espsim.New(espsim.Options{Model: m, Revision: revision, MAC: mac, AppPrints: sample.AppText})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = board.Close() })
		if ok, err := board.LoadDir(filepath.Join(l.dir, name+"-chip")); err != nil || !ok {
			t.Fatalf("%s: no board: %v", name, err)
		}
		for n, f := range answer.Files {
			var seen explain.Report
			out := l.run(0, append([]string{"image", "explain", f.File, "--json"}, unit...)...)
			if err := json.Unmarshal([]byte(out), &seen); err != nil {
				t.Fatal(err)
			}
			wrong := answer.Files[1-n].Slot
			at := slices.IndexFunc(seen.Paths, func(p explain.Path) bool { return p.Slot == wrong })
			b, err := os.ReadFile(filepath.Join(l.dir, f.File))
			if err != nil {
				t.Fatal(err)
			}
			if text, err := raw(t, board, wrong, b); err == nil || seen.Paths[at].Message == "" || !strings.Contains(text, seen.Paths[at].Message) {
				t.Errorf("%s: bytes of %s in %s: %v: the chip said %q, explain %+v", name, f.Slot, wrong, err, text, seen.Paths[at])
			}
		}
		// The first slot first: the second cannot be written while it runs.
		for _, f := range answer.Files {
			b, err := os.ReadFile(filepath.Join(l.dir, f.File))
			if err != nil {
				t.Fatal(err)
			}
			if text, err := raw(t, board, f.Slot, b); err != nil {
				t.Errorf("%s: %s: %v: %s", name, f.Slot, err, text)
				continue
			}
			board.Power(false)
			board.Power(true)
			app, err := board.App()
			if text := string(board.BootText()); err != nil || app.Running().Name != f.Slot || !strings.Contains(text, "App version:      2.0.0\r\n") {
				t.Errorf("%s: %s does not run: %v\n%s", name, f.Slot, err, text)
			}
		}
	}
}

func (l *otaLine) writeApp(file string, p sample.Product) {
	l.t.Helper()
	b, err := sample.App(p)
	if err == nil {
		err = os.WriteFile(filepath.Join(l.dir, file), b, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// raw writes a slot of a running chip as it is, and makes it the boot slot. It gives
// what the chip printed.
func raw(t *testing.T, board *espsim.Chip, slot string, b []byte) (string, error) {
	t.Helper()
	app, err := board.App()
	if err != nil {
		t.Fatal(err)
	}
	e, ok := sample.Table().Find(slot)
	if !ok {
		t.Fatalf("no %s", slot)
	}
	if err := app.Erase(e.Offset, e.Size); err != nil {
		t.Fatal(err)
	}
	if err := app.Program(e.Offset, b); err != nil {
		t.Fatal(err)
	}
	return app.SetBoot(bootrom.Partition{Name: slot, Offset: e.Offset, Size: e.Size}, nil)
}
