package provision_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
)

// TestFuses provisions a unit of every chip to every profile, with the real
// keystore and journal, and holds the simulator's own array against esp-facts F.5
// and B.9. It has everything that the chip hides and everything after the last fuse.
func TestFuses(t *testing.T) {
	for _, name := range allChips() {
		for _, profile := range profiles {
			inBubble(t, name+"/"+profile, func(t *testing.T) {
				b := newBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				before := c.Fuses()
				r := b.run(t.Context(), c, sampleJob(t, name, profile))
				wantPass(t, r)
				t.Logf("%d ms of virtual time: %v", r.ElapsedMS, r.Steps)
				key := b.storedKey(unitMAC)
				if want := map[string]int{"esp32c2": 16}[name]; len(key) != cmp.Or(want, 32) {
					t.Fatalf("the store has a key of %d bytes", len(key))
				}
				wantFuses(t, c, before, profile, key)
				if fp := keystore.FingerprintBytes(key).String(); r.KeyFingerprint != fp {
					t.Errorf("the result names key %s, the store has %s", r.KeyFingerprint, fp)
				}
				if got := b.metas(unitMAC)[0].Current(); got != keystore.InSilicon {
					t.Errorf("the store says %q of the key", got)
				}
				if err := b.invariants(c, sampleJob(t, name, profile), before, r); err != nil {
					t.Error(err)
				}
				for _, e := range b.entries() {
					if e.Kind == journal.KindObserved && strings.Contains(string(e.Payload), `"report":{`) {
						b.journalAgrees(c, e)
					}
				}
				// What the report says last is what the array holds, but for the fuse
				// after which nothing can be read and the key that is hidden by then.
				var last fuseBits
				if name != "esp32" {
					last = map[string]fuseBits{"release": {"ENABLE_SECURITY_DOWNLOAD": 0}, "closed": {"DIS_DOWNLOAD_MODE": 0}}[profile]
				}
				wantWords(t, r.EFuseAfter, c, name, last)
			})
		}
	}
}

func (b *bench) entries() []journal.Entry {
	b.t.Helper()
	out, err := b.jrn.Unit(unitMAC)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// wantWords compares a report's words with the array. missing are the fields of BLOCK0
// that could not be read any more.
func wantWords(t testing.TB, got []efuse.BlockWords, c *espsim.Chip, name string, missing fuseBits) {
	t.Helper()
	tab, err := table.ForRevision(name, c.Revision())
	if err != nil {
		t.Fatal(err)
	}
	for i, data := range c.Fuses() {
		if i == keyIndex(name) {
			data = make([]uint32, len(data)) // hidden
		}
		if i == 0 {
			missing.on(data, tab)
		}
		data = data[:len(got[i].Words)]
		for w := range data {
			if want := fmt.Sprintf("%08x", data[w]); got[i].Words[w] != want {
				t.Errorf("the report says %s of word %d of %s, the array has %s", got[i].Words[w], w, got[i].Block, want)
			}
		}
	}
}

// journalAgrees: what an entry says was burned into BLOCK0 is in the array, and
// what it says of the key block is a fingerprint.
func (b *bench) journalAgrees(c *espsim.Chip, e journal.Entry) {
	b.t.Helper()
	var raw struct {
		Report struct {
			Burns []efuse.BlockBurn
		}
	}
	if err := json.Unmarshal(e.Payload, &raw); err != nil {
		b.t.Fatal(err)
	}
	if len(raw.Report.Burns) == 0 {
		b.t.Errorf("step %s of the journal reports no burn", e.Step)
	}
	fuses := c.Fuses()
	for _, burn := range raw.Report.Burns {
		if burn.Step == "key" {
			want := "fp:" + keystore.FingerprintBytes(b.storedKey(unitMAC)).String()
			if !slices.Equal(burn.Written, []string{want}) || !slices.Equal(burn.Readback, []string{want}) {
				b.t.Errorf("step %s: written %v and read back %v, want %s", e.Step, burn.Written, burn.Readback, want)
			}
			continue
		}
		if burn.Block != "BLOCK0" {
			b.t.Errorf("step %s burned %s", e.Step, burn.Block)
		}
		for i, w := range burn.Written {
			var bits uint32
			if _, err := fmt.Sscanf(w, "%x", &bits); err != nil {
				b.t.Fatal(err)
			}
			if bits&^fuses[0][i] != 0 {
				b.t.Errorf("step %s wrote %s to word %d, the array has %08x", e.Step, w, i, fuses[0][i])
			}
		}
	}
}

// TestKeyBlockOrder is the vendor's known answer (esp-facts B.9) for the order in
// which TestFuses expects key bytes.
func TestKeyBlockOrder(t *testing.T) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	want := []uint32{0x1C1D1E1F, 0x18191A1B, 0x14151617, 0x10111213, 0x0C0D0E0F, 0x08090A0B, 0x04050607, 0x00010203}
	if got := words(reversed(key)); !slices.Equal(got, want) {
		t.Errorf("%08x, want %08x", got, want)
	}
}

// TestFactoryFuses: what the vendor's factory sets is no reason to refuse, and
// is still there afterwards. Every ESP32 module has CONSOLE_DEBUG_DISABLE.
func TestFactoryFuses(t *testing.T) {
	inBubble(t, "esp32", func(t *testing.T) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, "esp32")})
		setField(t, c, fieldNamed(t, c, "CONSOLE_DEBUG_DISABLE"), 1)
		before := c.Fuses()
		wantPass(t, b.run(t.Context(), c, sampleJob(t, "esp32", "release")))
		wantFuses(t, c, before, "release", b.storedKey(unitMAC))
	})
	// Calibration and what names chip and package stays.
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name), MAC: chip.MAC{0x3E, 0x71, 0xBF, 1, 2, 3}})
		before := c.Fuses()
		r := b.run(t.Context(), c, sampleJob(t, name, "hybrid"))
		wantPass(t, r)
		if r.Unit != "3e:71:bf:01:02:03" || c.MAC().String() != r.Unit {
			t.Errorf("unit %s, array %s", r.Unit, c.MAC())
		}
		wantFuses(t, c, before, "hybrid", b.storedKey(c.MAC()))
	})
}

// TestFlashContents: what the result says of the images is what is in flash, and
// decrypts with the stored key to what was built.
func TestFlashContents(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "hybrid")
		// An earlier life of the flash chip.
		for at := uint32(0); at < c.Flash().Size(); at += 0x10000 {
			overwrite(t, c, at, []byte("left from an earlier life"))
		}
		r := b.run(t.Context(), c, job)
		wantPass(t, r)
		if len(r.Images) != len(job.Layout.Regions) || len(r.Images) < 4 {
			t.Fatalf("%d images for %d regions", len(r.Images), len(job.Layout.Regions))
		}
		ci := b.cipher(c)
		var total int64
		for i, img := range r.Images {
			region := job.Layout.Regions[i]
			raw := flashBytes(t, c, img.Offset, img.Length)
			if img.Offset != region.Offset || sha256.Sum256(raw) != img.CiphertextSHA256 || sha256.Sum256(region.Plain) != img.PlaintextSHA256 {
				t.Errorf("image %s at 0x%x: the hashes are not those of flash and build", img.Name, img.Offset)
			}
			if !img.Encrypted || slices.Equal(raw, region.Plain) {
				t.Errorf("image %s is not encrypted", img.Name)
			}
			if err := ci.Decrypt(raw, raw, img.Offset); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(raw, region.Plain) {
				t.Errorf("image %s does not decrypt with the stored key", img.Name)
			}
			total += int64(img.Length)
		}
		if r.BytesWritten != total {
			t.Errorf("bytes_written %d, the regions have %d", r.BytesWritten, total)
		}
		for _, e := range job.Layout.Erase {
			for _, v := range flashBytes(t, c, e.Offset, int(e.Size)) {
				if v != 0xFF {
					t.Errorf("partition %s is not erased", e.Name)
					break
				}
			}
		}
	})
}

// TestOtherSchemes: flash encryption that is not the chip's usual one: XTS-AES-256 in two
// blocks, and a key that fills the ESP32-C2's block.
func TestOtherSchemes(t *testing.T) {
	tried := 0
	for _, name := range allChips() {
		m := model(t, name)
		for _, scheme := range m.Schemes {
			if scheme == m.Scheme {
				continue
			}
			tried++
			inBubble(t, name+"/"+string(scheme), func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: m})
				before := c.Fuses()
				job := edited(t, name, "release", "", "flash_encryption: "+string(scheme))
				wantPass(t, b.run(t.Context(), c, job))
				wantJobFuses(t, c, before, job, b.storedKey(unitMAC))
				if rec := b.metas(unitMAC)[0]; rec.Scheme != scheme {
					t.Errorf("the record says %s", rec.Scheme)
				}
				if !boots(c) {
					t.Errorf("it does not boot: %s", c.BootText())
				}
			})
		}
	}
	if tried < 4 {
		t.Errorf("only %d schemes", tried)
	}
	// A digest has no room beside a key that fills the block.
	p := product(model(t, "esp32c2"), "hybrid")
	p.More = "flash_encryption: xts-128\n"
	if _, err := loadSigned(t, p, chip.SignECDSA256, []int{0}, []int{0}); err == nil || !strings.Contains(err.Error(), "fills the only key block") {
		t.Errorf("a digest beside a whole key: %v", err)
	}
}

// TestOlderSilicon: what early silicon of a chip lacks is neither burned nor missed.
func TestOlderSilicon(t *testing.T) {
	tried := 0
	for _, m := range chip.All() {
		for _, o := range m.Older {
			tried++
			for _, profile := range []string{"hybrid", "release"} {
				inBubble(t, fmt.Sprintf("%s/before %s/%s", m.Name, o.Below, profile), func(t *testing.T) {
					b := newMemoryBench(t)
					c := b.board(espsim.Options{Model: m, Revision: o.Below - 99})
					before := c.Fuses()
					job := sampleJob(t, m.Name, profile)
					wantPass(t, b.run(t.Context(), c, job))
					newest, err := table.For(m.Name)
					if err != nil {
						t.Fatal(err)
					}
					want := slices.Clone(f5[m.Name][profile])
					for _, name := range o.Lacks {
						fuseBits{name: 0}.on(want, newest)
					}
					for w := range want {
						if got := c.Fuses()[0][w]; got != before[0][w]|want[w] {
							t.Errorf("word %d is %08x, want %08x", w, got, want[w])
						}
					}
					if !boots(c) {
						t.Errorf("it does not boot: %s", c.BootText())
					}
				})
			}
		}
	}
	if tried < 2 {
		t.Error("no chip has older silicon")
	}
}
