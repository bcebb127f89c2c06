package otaclient_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/otaclient"
	"github.com/provisiond/provisiond/provision/ota"
)

// TestUpdates takes a unit through three updates, in both slots, each confirmed.
func TestUpdates(t *testing.T) {
	everyChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		have := "1.0.0"
		for i, slot := range []string{"ota_0", "ota_1", "ota_0"} {
			version := fmt.Sprintf("2.%d.0", i)
			b.offer("release-"+version, u.image(version, 1))
			r := b.want(have, "update", "ok")
			if length := len(u.image(version, 1).Plain()); r.Fetched < length || b.sent() != r.Fetched {
				t.Errorf("fetched %d bytes, served %d, the image has %d", r.Fetched, b.sent(), length)
			}
			if got := b.outcomes(); got != "applied" {
				t.Errorf("told %q", got)
			}
			u.board.PowerCycle()
			u.runs(slot, version)
			// Until it is confirmed the other slot is the way back.
			if r := b.want(version, "update", "pending-verify"); r.Boot != "new" {
				t.Errorf("%+v", r)
			}
			b.want(version, "confirm", "ok")
			if last := b.last(); last != (told{"release-" + version, slot, "confirmed", "", version, 1}) {
				t.Errorf("told %+v", last)
			}
			u.board.PowerCycle()
			u.runs(slot, version)
			have = version
		}
	})
}

// TestRefusals: everything that is not this unit's is refused, by the client or by
// the chip's own check, and what ran before runs on.
func TestRefusals(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u, other := newUnit(t, name, 1), newUnit(t, name, 2)
		b := newBackend(t, u)
		another := newSigner(t)
		flip := func(c []byte) []byte { c[len(c)/2] ^= 0x10; return c }
		cut := func(c []byte) []byte { return c[:len(c)-2*sector] }
		replace := func(from, to string) func([]byte) []byte {
			return func(text []byte) []byte { return bytes.Replace(text, []byte(from), []byte(to), 1) }
		}
		for _, c := range []struct {
			name string
			lie  func()
			err  string
			told string
		}{
			// The server says that these are the right bytes, and signs it.
			{"other slot's bytes", func() { b.slot = "ota_1" }, "validate", "failed validate"},
			{"other unit's bytes", func() { b.unit = other.known }, "validate", "failed validate"},
			{"plaintext", func() {
				b.bytes = func(c []byte) []byte { return append(bytes.Clone(b.image.Plain()), c[len(b.image.Plain()):]...) }
			}, "validate", "failed validate"},
			{"flipped before", func() { b.bytes = flip }, "validate", "failed validate"},
			{"cut before", func() { b.bytes = cut }, "validate", "failed validate"},
			// The bytes are not those of the manifest.
			{"flipped on the way", func() { b.spoil = flip }, "hash", "failed hash"},
			{"cut on the way", func() { b.spoil = cut }, "range", ""},
			{"longer on the way", func() { b.spoil = func(c []byte) []byte { return append(c, c...) } }, "range", ""},
			{"other unit's on the way", func() {
				b.spoil = func(c []byte) []byte {
					up, err := ota.Prepare(other.known, b.image, "ota_0", ota.Known{})
					if err != nil {
						t.Error(err)
						return nil
					}
					_, _ = up.Ciphertext.ReadAt(c, 0)
					return c
				}
			}, "hash", "failed hash"},
			// The manifest is not in order, or not for this unit now.
			{"signature", func() { b.text = replace("secure-version 1\n", "secure-version 2\n") }, "signature", ""},
			{"signed by another key", func() {
				b.text = func([]byte) []byte {
					up, c := b.ciphertext("ota_0")
					sum := sha256.Sum256(c)
					m, err := up.Manifest(t.Context(), ota.ManifestOptions{Release: b.release, CipherSHA256: &sum}, another)
					if err != nil {
						t.Error(err)
						return nil
					}
					text, _ := m.MarshalText()
					return text
				}
			}, "signer", ""},
			{"another key under the right name", func() {
				b.text = func(text []byte) []byte {
					m, err := ota.ParseManifest(text)
					if err != nil {
						t.Error(err)
						return nil
					}
					id := m.Signer
					if err := m.Sign(t.Context(), another); err != nil {
						t.Error(err)
					}
					m.Signer = id
					text, _ = m.MarshalText()
					return text
				}
			}, "signature", ""},
			{"no manifest", func() { b.text = func([]byte) []byte { return []byte("hello\n") } }, "manifest", ""},
			{"manifest too long", func() { b.text = func(text []byte) []byte { return bytes.Repeat(text, 3) } }, "manifest", ""},
			{"empty manifest", func() { b.text = func([]byte) []byte { return nil } }, "manifest", ""},
			{"old nonce", func() { b.manifest = func(m *ota.Manifest) { m.Nonce = bytes.Repeat([]byte{7}, ota.NonceSize) } }, "nonce", ""},
			{"no nonce", func() { b.manifest = func(m *ota.Manifest) { m.Nonce = nil } }, "nonce", ""},
			{"other unit", func() { b.manifest = func(m *ota.Manifest) { m.Unit = other.known.MAC } }, "unit", ""},
			{"other chip", func() {
				b.manifest = func(m *ota.Manifest) { m.Chip = "esp32s3"; m.Length = (m.PlainLength + 15) / 16 * 16 }
			}, "chip", ""},
			{"other slot", func() { b.manifest = func(m *ota.Manifest) { m.Slot = "ota_1" } }, "slot", ""},
			{"other address", func() { b.manifest = func(m *ota.Manifest) { m.Address += 0x1000 } }, "address", ""},
			{"too long", func() { b.manifest = func(m *ota.Manifest) { m.PlainLength, m.Length = 0x40020, 0x40020 } }, "length", ""},
			{"older secure version", func() { b.manifest = func(m *ota.Manifest) { m.SecureVersion = 0 } }, "secure-version", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				u.reset()
				b.offer("2.0.0", u.image("2.0.0", 1))
				b.set(c.lie)
				r := b.want("1.0.0", "update", c.err)
				if got := b.outcomes(); got != c.told {
					t.Errorf("told %q, want %q", got, c.told)
				}
				u.board.PowerCycle()
				u.runs("factory", "1.0.0")
				if c.err != "validate" {
					if c.told == "" && c.err != "range" && r.Fetched != 0 {
						t.Errorf("%d bytes were fetched", r.Fetched)
					}
					return
				}
				if !strings.Contains(u.board.Said, "esp_image: ") {
					t.Errorf("the chip said %q", u.board.Said)
				}
				// The same bytes are not fetched again, better ones are.
				if r := b.want("1.0.0", "update", "known-bad"); r.Fetched != 0 {
					t.Errorf("%d bytes were fetched", r.Fetched)
				}
				b.offer("2.0.0", u.image("2.0.0", 1))
				b.want("1.0.0", "update", "ok")
				u.board.PowerCycle()
				u.runs("ota_0", "2.0.0")
			})
		}
	})
}

// TestToldLater: what was refused is told when the server hears it, after a reset too,
// and bytes that were spoilt on their way are asked for again.
func TestToldLater(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		for _, c := range []struct {
			err  string
			lie  func()
			then string
		}{
			{"hash", func() { b.spoil = func(c []byte) []byte { c[len(c)/2] ^= 1; return c } }, "ok"},
			{"validate", func() { b.slot = "ota_1" }, "known-bad"},
		} {
			u.reset()
			b.offer("2.0.0", u.image("2.0.0", 1))
			b.set(c.lie)
			deaf := func(r *http.Request) (int, string) {
				if strings.HasSuffix(r.URL.Path, "/result") {
					return http.StatusServiceUnavailable, "9"
				}
				return 0, ""
			}
			b.set(func() { b.refuse = deaf })
			b.want("1.0.0", "update", c.err)
			u.board.PowerCycle()
			if r := b.want("1.0.0", "update", "busy"); r.Fetched != 0 || b.outcomes() != "" {
				t.Errorf("%s: %+v, told %q", c.err, r, b.outcomes())
			}
			b.set(func() { b.refuse, b.spoil = nil, nil })
			b.want("1.0.0", "update", c.then)
			want := "failed " + c.err
			if c.then == "ok" {
				want += ", applied"
			}
			if got := b.outcomes(); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
	})
}

// settle goes on with an update after a loss of power until the new version runs and
// is confirmed.
func settle(t *testing.T, b *backend, have, slot, version string) {
	t.Helper()
	for range 4 {
		app, err := b.u.board.Chip.App()
		if err != nil {
			t.Fatalf("%v\n%s", err, b.u.board.Chip.BootText())
		}
		if app.Running().Name == slot {
			b.u.runs(slot, version)
			b.want(version, "confirm", "ok")
			b.u.board.PowerCycle()
			b.u.runs(slot, version)
			return
		}
		b.want(have, "update", "ok")
		b.u.board.PowerCycle()
	}
	t.Fatalf("%s does not come up in %s", version, slot)
}

// TestPowerCuts lets power fail before, within and after every operation of an update
// on flash and record. The unit always boots, goes on where it was, and fetches no
// more again than the README says.
func TestPowerCuts(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		im := u.image("2.0.0", 1)
		b.offer("2.0.0", im)
		ops := 0
		u.board.Cut = func(n int, _ otaclient.Op, _ uint32) otaclient.Moment { ops = n; return otaclient.Never }
		b.want("1.0.0", "update", "ok")
		_, c := b.ciphertext("ota_0")
		if want := 2*((len(c)+sector-1)/sector) + 4; ops < want {
			t.Fatalf("%d operations, want %d at least", ops, want)
		}
		cuts := 0
		for _, moment := range []otaclient.Moment{otaclient.Before, otaclient.Within, otaclient.After} {
			for at := 1; at <= ops; at++ {
				u.reset()
				b.offer("2.0.0", im)
				var op otaclient.Op
				u.board.Cut = func(n int, o otaclient.Op, _ uint32) otaclient.Moment {
					if n != at {
						return otaclient.Never
					}
					op = o
					return moment
				}
				if _, cut := u.board.Run(t, b.client("1.0.0"), "update"); !cut {
					t.Fatalf("operation %d: no cut", at)
				}
				cuts++
				u.board.Cut = nil
				settle(t, b, "1.0.0", "ota_0", "2.0.0")
				if b.sent() > len(c)+again {
					t.Errorf("moment %d of operation %d (%c): %d bytes for %d", moment, at, op, b.sent(), len(c))
				}
				if !strings.HasSuffix(b.outcomes(), "confirmed") {
					t.Errorf("moment %d of operation %d (%c): told %s", moment, at, op, b.outcomes())
				}
			}
		}
		t.Logf("%d losses of power", cuts)
	})
}

// TestPowerCutAtEveryStep: power fails at each sector of one and the same update, so
// that it takes as many starts as there are sectors, and still comes to its end.
func TestPowerCutAtEveryStep(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		b.offer("2.0.0", u.image("2.0.0", 1))
		client := b.client("1.0.0")
		client.SaveEvery = 1
		starts := 0
		for ; starts < 100; starts++ {
			writes := 0
			u.board.Cut = func(_ int, op otaclient.Op, _ uint32) otaclient.Moment {
				if op == otaclient.OpErase {
					writes++
				}
				if writes == 2 { // one sector a start
					return otaclient.Within
				}
				return otaclient.Never
			}
			if _, cut := u.board.Run(t, client, "update"); !cut {
				break
			}
			u.runs("factory", "1.0.0")
		}
		_, c := b.ciphertext("ota_0")
		if want := (len(c) + sector - 1) / sector; starts != want-1 {
			t.Errorf("%d losses of power, want %d", starts, want-1)
		}
		u.board.Cut = nil
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
	})
}

// TestConfirmCuts: power fails around the confirmation. Before it the old app comes
// back, after it the new one stays, and the server hears what it was.
func TestConfirmCuts(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		for at := 1; at <= 3; at++ {
			for _, moment := range []otaclient.Moment{otaclient.Before, otaclient.After} {
				u.reset()
				b.offer("2.0.0", u.image("2.0.0", 1))
				b.want("1.0.0", "update", "ok")
				u.board.PowerCycle()
				u.runs("ota_0", "2.0.0")
				u.board.Cut = func(n int, _ otaclient.Op, _ uint32) otaclient.Moment {
					if n == at {
						return moment
					}
					return otaclient.Never
				}
				if _, cut := u.board.Run(t, b.client("2.0.0"), "confirm"); !cut {
					t.Fatalf("operation %d: no cut", at)
				}
				u.board.Cut = nil
				if at == 1 && moment == otaclient.Before {
					u.runs("factory", "1.0.0")
					if r := b.want("1.0.0", "report", "ok"); r.Boot != "rolled-back" || b.outcomes() != "applied, rolled-back" {
						t.Errorf("%+v, told %s", r, b.outcomes())
					}
					continue
				}
				u.runs("ota_0", "2.0.0")
				b.want("2.0.0", "confirm", "ok")
				if got := b.outcomes(); !strings.HasPrefix(got, "applied, confirmed") {
					t.Errorf("operation %d, moment %d: told %s", at, moment, got)
				}
				u.board.PowerCycle()
				u.runs("ota_0", "2.0.0")
			}
		}
	})
}

// TestRollback: an update that is not confirmed is not taken a second time.
func TestRollback(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		u.board.PowerCycle()
		u.runs("factory", "1.0.0")

		// The server is away at first; what is to be told is not forgotten.
		b.set(func() { b.refuse = func(*http.Request) (int, string) { return 503, "11" } })
		if r := b.want("1.0.0", "update", "busy"); r.RetryAfter != 11 || r.Boot != "rolled-back" {
			t.Errorf("%+v", r)
		}
		b.set(func() { b.refuse = nil })
		if r := b.want("1.0.0", "update", "known-bad"); r.Fetched != 0 || b.outcomes() != "applied, rolled-back" {
			t.Errorf("%+v, told %s", r, b.outcomes())
		}
		// Neither under another name, nor after another reset.
		u.board.PowerCycle()
		b.offer("2.0.0-again", u.image("2.0.0", 1))
		b.want("1.0.0", "update", "known-bad")
		if b.outcomes() != "" {
			t.Errorf("told %s", b.outcomes())
		}
		// A mended release is taken, also when power fails around the choice of a slot
		// that otadata still calls rejected.
		for _, moment := range []otaclient.Moment{otaclient.Before, otaclient.Within, otaclient.After} {
			u.reset()
			b.offer("2.0.0", u.image("2.0.0", 1))
			b.want("1.0.0", "update", "ok")
			u.board.PowerCycle()
			u.board.PowerCycle()
			u.runs("factory", "1.0.0")
			b.offer("2.0.1", u.image("2.0.1", 1))
			u.board.Cut = func(_ int, op otaclient.Op, _ uint32) otaclient.Moment {
				if op == otaclient.OpSetBoot {
					return moment
				}
				return otaclient.Never
			}
			if _, cut := u.board.Run(t, b.client("1.0.0"), "update"); !cut {
				t.Fatal("no cut")
			}
			u.board.Cut = nil
			settle(t, b, "1.0.0", "ota_0", "2.0.1")
		}
		// One that power failed after, and that is not confirmed, is rolled back from as
		// any other.
		u.reset()
		b.offer("2.0.0", u.image("2.0.0", 1))
		u.board.Cut = func(_ int, op otaclient.Op, _ uint32) otaclient.Moment {
			if op == otaclient.OpSetBoot {
				return otaclient.After
			}
			return otaclient.Never
		}
		u.board.Run(t, b.client("1.0.0"), "update")
		u.board.Cut = nil
		u.runs("ota_0", "2.0.0")
		u.board.PowerCycle()
		u.runs("factory", "1.0.0")
		b.want("1.0.0", "update", "known-bad")
		b.offer("2.0.1", u.image("2.0.1", 1))
		// A mended release is taken, and the refused one after it was forgotten.
		b.offer("2.0.1", u.image("2.0.1", 1))
		settle(t, b, "1.0.0", "ota_0", "2.0.1")
		u.reset()
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.board.PowerCycle()
		b.want("1.0.0", "forget", "ok")
		settle(t, b, "1.0.0", "ota_0", "2.0.0")
	})
}

// TestAntiRollback: a confirmed image raises the chip's secure version. An older one
// is refused by its manifest, and where that lies, by the chip.
func TestAntiRollback(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1, func(m *making) { m.board.AntiRollback = true })
		b := newBackend(t, u)
		b.offer("2.0.0", u.image("2.0.0", 3))
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		if text := string(u.board.Chip.BootText()); !strings.Contains(text, "Secure version (from eFuse) = 0\r\n") {
			t.Errorf("burned before it was confirmed:\n%s", text)
		}
		b.want("2.0.0", "confirm", "ok")
		b.secure = 3
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		if text := string(u.board.Chip.BootText()); !strings.Contains(text, "Secure version (from eFuse) = 3\r\n") {
			t.Errorf("not burned:\n%s", text)
		}

		b.offer("2.1.0", u.image("2.1.0", 2))
		if r := b.want("2.0.0", "update", "secure-version"); r.Fetched != 0 {
			t.Errorf("%d bytes were fetched", r.Fetched)
		}
		b.set(func() { b.manifest = func(m *ota.Manifest) { m.SecureVersion = 3 } })
		if r := b.want("2.0.0", "update", "secure-version"); r.Fetched == 0 || b.outcomes() != "failed secure-version" {
			t.Errorf("%+v, told %s", r, b.outcomes())
		}
		b.want("2.0.0", "update", "known-bad")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		b.offer("2.2.0", u.image("2.2.0", 3))
		settle(t, b, "2.0.0", "ota_1", "2.2.0")
	})
}

// TestSecureBoot: a unit with Secure Boot takes what is signed with its key. A server
// that lets other images through is stopped by the chip.
func TestSecureBoot(t *testing.T) {
	key, stranger := rsaKey(t), rsaKey(t)
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1, func(m *making) {
			m.board.Revision = max(m.board.Revision, m.board.Model.SecureBoot.MinimumRevision)
			m.board.Build = bootrom.Build{SecureBoot: true, Scheme: chip.SignRSA3072}
			m.product.Signers, m.product.Trust = []crypto.Signer{key}, []crypto.Signer{key}
		})
		b := newBackend(t, u)
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		b.want("2.0.0", "confirm", "ok")
		for what, signers := range map[string][]crypto.Signer{"unsigned": nil, "signed by another": {stranger}} {
			p := u.product
			p.Version, p.Signers = "2.1.0", signers
			im := u.imageOf(p)
			b.offer("2.1.0", u.image("2.1.0", 1))
			b.set(func() {
				b.bytes = func([]byte) []byte {
					slot, err := u.known.Slot("ota_1")
					if err != nil {
						t.Error(err)
						return nil
					}
					up, err := u.known.Encrypt(slot, im.Plain()) // and no check
					if err != nil {
						t.Error(err)
						return nil
					}
					defer up.Wipe()
					c, err := io.ReadAll(up.NewReader())
					if err != nil {
						t.Error(err)
					}
					return c
				}
			})
			b.want("2.0.0", "update", "validate")
			if got := b.outcomes(); got != "failed validate" || !strings.Contains(strings.ToLower(u.board.Said), "signature") {
				t.Errorf("%s: told %q, the chip said %s", what, got, u.board.Said)
			}
			u.board.PowerCycle()
			u.runs("ota_0", "2.0.0")
		}
		b.offer("2.1.0", u.image("2.1.0", 1))
		settle(t, b, "2.0.0", "ota_1", "2.1.0")
	})
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestServerGoes: the connection breaks anywhere in the body; the next call goes on.
func TestServerGoes(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		im := u.image("2.0.0", 1)
		for _, after := range []int{0, 1, sector - 1, sector, sector + 1, request - 1} {
			u.reset()
			b.offer("2.0.0", im)
			answers := 0
			b.set(func() {
				b.stop = func(*http.Request) int {
					if answers++; answers == 3 {
						return after
					}
					return -1
				}
			})
			r := b.want("1.0.0", "update", "transport")
			if want := 2*request + after/sector*sector; r.Fetched != want {
				t.Errorf("broken after %d: fetched %d, want %d", after, r.Fetched, want)
			}
			before := b.sent()
			r = b.want("1.0.0", "update", "ok")
			_, c := b.ciphertext("ota_0")
			if want := len(c) - 2*request - after/sector*sector; r.Fetched != want || b.sent()-before != want {
				t.Errorf("broken after %d: then fetched %d, served %d, want %d", after, r.Fetched, b.sent()-before, want)
			}
			u.board.PowerCycle()
			u.runs("ota_0", "2.0.0")
		}
		// It closes connections between two requests: that alone is no failure.
		u.reset()
		b.offer("2.0.0", im)
		b.set(func() { b.impatient = true })
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		u.reset()
		b.srv.Close()
		b.want("1.0.0", "update", "connect")
	})
}

// TestChanged: the bytes become others under the client. It asks anew, once more and
// then gives up, and never mixes them.
func TestChanged(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		b.offer("2.0.0", u.image("2.0.0", 1))
		next := u.image("2.0.1", 1)
		answers := 0
		b.set(func() {
			b.stop = func(*http.Request) int {
				if answers++; answers == 3 {
					b.image, b.tag = next, `"other"`
				}
				return -1
			}
		})
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.1")

		u.reset()
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.set(func() {
			b.stop = func(*http.Request) int { b.tag = fmt.Sprintf("%q", fmt.Sprint(b.served)); return -1 }
		})
		b.want("1.0.0", "update", "changed")
		u.board.PowerCycle()
		u.runs("factory", "1.0.0")
		b.set(func() { b.stop = nil })
		b.want("1.0.0", "update", "ok")

		// Between two starts of the unit.
		u.reset()
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.set(func() {
			b.stop = func(r *http.Request) int {
				if strings.HasPrefix(r.Header.Get("Range"), "bytes=8192-") {
					return 0
				}
				return -1
			}
		})
		b.want("1.0.0", "update", "transport")
		b.offer("2.0.1", next)
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.1")
	})
}

// TestStatuses: what the server may answer instead, at the manifest and at the bytes.
func TestStatuses(t *testing.T) {
	u := newUnit(t, "esp32c3", 1)
	b := newBackend(t, u)
	for _, what := range []string{"/manifest", "/firmware"} {
		for _, c := range []struct {
			status int
			after  string
			err    string
			wait   int
		}{
			{401, "", "unauthorized", 0},
			{403, "", "unauthorized", 0},
			{404, "", "not-found", 0},
			{409, "", "refused", 0},
			{429, "5", "busy", 5},
			{503, "120", "busy", 120},
			{503, "", "busy", 60},
			{503, "0", "busy", 1},
			{429, "4294967295", "busy", 3600}, // callers count milliseconds in 32 bits
			{429, "99999999999", "busy", 60},
			{503, "Wed, 21 Oct 2015 07:28:00 GMT", "busy", 60},
			{500, "", "server", 0},
			{400, "", "protocol", 0},
			{302, "", "protocol", 0},
		} {
			u.reset()
			b.offer("2.0.0", u.image("2.0.0", 1))
			b.set(func() {
				b.refuse = func(r *http.Request) (int, string) {
					if strings.HasSuffix(r.URL.Path, what) {
						return c.status, c.after
					}
					return 0, ""
				}
			})
			if r := b.want("1.0.0", "update", c.err); r.Status != c.status || r.RetryAfter != c.wait {
				t.Errorf("%s %d: %+v", what, c.status, r)
			}
			u.board.PowerCycle()
			u.runs("factory", "1.0.0")
		}
	}
	u.reset()
	b.offer("2.0.0", u.image("2.0.0", 1))
	b.set(func() { b.refuse = func(*http.Request) (int, string) { return http.StatusNoContent, "" } })
	b.want("1.0.0", "update", "nothing-new")
}

// TestBadRecord: a record that is damaged, or flash that changed behind it, costs a
// new beginning and nothing else.
func TestBadRecord(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		half := func() {
			u.reset()
			b.offer("2.0.0", u.image("2.0.0", 1))
			b.set(func() {
				b.stop = func(r *http.Request) int {
					if strings.HasPrefix(r.Header.Get("Range"), "bytes=16384-") {
						return 0
					}
					return -1
				}
			})
			b.want("1.0.0", "update", "transport")
			b.set(func() { b.stop, b.served = nil, 0 })
		}
		for what, spoil := range map[string]func(){
			"record": func() { u.board.Record[20] ^= 1 },
			"none":   func() { u.board.Record = nil },
			"short":  func() { u.board.Record = u.board.Record[:100] },
			"flash": func() {
				slot, err := u.known.Slot("ota_0")
				if err != nil {
					t.Fatal(err)
				}
				if err := u.board.Chip.Flash().EraseSector(slot.Offset + sector); err != nil {
					t.Fatal(err)
				}
			},
		} {
			half()
			spoil()
			r := b.want("1.0.0", "update", "ok")
			_, c := b.ciphertext("ota_0")
			if r.Fetched < len(c) {
				t.Errorf("%s: only %d bytes were fetched of %d", what, r.Fetched, len(c))
			}
			u.board.PowerCycle()
			u.runs("ota_0", "2.0.0")
		}
		half()
		if r := b.want("1.0.0", "update", "ok"); r.Fetched >= 16384 {
			t.Errorf("with all in order %d bytes were fetched", r.Fetched)
		}
	})
}

// TestBoardFails: an operation of the board fails once, power stays. The client says
// which, and the next call comes to the end.
func TestBoardFails(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		im := u.image("2.0.0", 1)
		names := map[otaclient.Op]string{
			otaclient.OpErase: "flash-erase", otaclient.OpWrite: "flash-write", otaclient.OpSave: "record", otaclient.OpSetBoot: "set-boot",
		}
		failed := map[string]int{}
		for at, last := 1, false; !last; at++ {
			u.reset()
			b.offer("2.0.0", im)
			var op otaclient.Op
			u.board.Cut = func(n int, o otaclient.Op, _ uint32) otaclient.Moment {
				if n != at {
					return otaclient.Never
				}
				op = o
				return otaclient.Fails
			}
			r := b.act("1.0.0", "update")
			u.board.Cut = nil
			last = op == 0
			if r.Err == "ok" {
				if !last && op != otaclient.OpSave { // the last ones come when the choice is made
					t.Errorf("operation %d (%c) failed, and all is well", at, op)
				}
			} else if r.Err != names[op] {
				t.Errorf("operation %d (%c) failed: %+v", at, op, r)
			}
			failed[r.Err]++
			settle(t, b, "1.0.0", "ota_0", "2.0.0")
		}
		for _, err := range names {
			if failed[err] == 0 {
				t.Errorf("%s was never seen", err)
			}
		}
		// The confirmation itself.
		u.reset()
		b.offer("2.0.0", im)
		b.want("1.0.0", "update", "ok")
		u.board.PowerCycle()
		u.board.Cut = func(int, otaclient.Op, uint32) otaclient.Moment { return otaclient.Fails }
		b.want("2.0.0", "confirm", "confirm")
		u.board.Cut = func(_ int, op otaclient.Op, _ uint32) otaclient.Moment {
			if op == otaclient.OpSave {
				return otaclient.Fails
			}
			return otaclient.Never
		}
		b.want("2.0.0", "confirm", "record")
		u.board.Cut = nil
		b.want("2.0.0", "confirm", "ok")
		if got := b.outcomes(); got != "applied, confirmed" {
			t.Errorf("told %s", got)
		}
	})
}

// TestOddAnswers: answers that RFC 9110 has and our server does not give, and some
// that nothing has.
func TestOddAnswers(t *testing.T) {
	u := newUnit(t, "esp32c3", 1)
	b := newBackend(t, u)
	for _, c := range []struct {
		name string
		lie  func()
		err  string
	}{
		{"no ranges", func() { b.head = func(_ http.Header, r *http.Request) { r.Header.Del("Range") } }, "ok"},
		{"no ranges from the middle on", func() {
			b.head = func(_ http.Header, r *http.Request) {
				if !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
					r.Header.Del("Range")
				}
			}
		}, "changed"},
		{"another range", func() { b.head = func(_ http.Header, r *http.Request) { r.Header.Set("Range", "bytes=16-4111") } }, "range"},
		{"a shorter range", func() { b.head = func(_ http.Header, r *http.Request) { r.Header.Set("Range", "bytes=0-4095") } }, "range"},
		{"beyond the end", func() {
			b.head = func(_ http.Header, r *http.Request) {
				if !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
					r.Header.Set("Range", "bytes=900000-900001")
					r.Header.Del("If-Range")
				}
			}
		}, "changed"},
		{"no tag", func() { b.head = func(h http.Header, _ *http.Request) { h.Del("ETag") } }, "protocol"},
		{"a weak tag", func() { b.head = func(h http.Header, _ *http.Request) { h.Set("ETag", `W/"a"`) } }, "protocol"},
		{"two tags", func() { b.head = func(h http.Header, _ *http.Request) { h.Add("ETag", `"a"`) } }, "protocol"},
		{"another tag in spite of If-Range", func() {
			b.head = func(h http.Header, r *http.Request) {
				r.Header.Del("If-Range")
				h.Set("ETag", fmt.Sprintf("%q", fmt.Sprint(b.served)))
			}
		}, "changed"},
		{"an encoding", func() { b.head = func(h http.Header, _ *http.Request) { h.Set("Content-Encoding", "gzip") } }, "protocol"},
	} {
		u.reset()
		b.offer("2.0.0", u.image("2.0.0", 1))
		b.set(c.lie)
		r := b.act("1.0.0", "update")
		if r.Err != c.err {
			t.Errorf("%s: %+v, want %s", c.name, r, c.err)
		}
		u.board.PowerCycle()
		if c.err == "ok" {
			u.runs("ota_0", "2.0.0")
		} else {
			u.runs("factory", "1.0.0")
		}
	}
	u.reset()
	b.offer("2.0.0", u.image("2.0.0", 1))
	b.set(func() { b.chunked = true })
	b.want("1.0.0", "update", "protocol")
}

// TestOneStart: what a second call in the same boot does, the defaults, and a version
// that the server could not be told.
func TestOneStart(t *testing.T) {
	u := newUnit(t, "esp32c3", 1)
	b := newBackend(t, u)
	b.offer("2.0.0", u.image("2.0.0", 1))
	client := b.client("not one \"word\" ü\x07")
	client.Request, client.SaveEvery = 0, 0
	results, _ := u.board.Run(t, client, "update", "update", "forget", "report", "confirm")
	want := []otaclient.Result{
		{Act: "init", Err: "ok"},
		{Act: "update", Err: "ok", Status: 204},
		{Act: "update", Err: "ok", Status: 204},
		{Act: "forget", Err: "argument", Status: 204},
		{Act: "report", Err: "ok", Status: 204},
		{Act: "confirm", Err: "ok", Status: 204},
	}
	for i, r := range results {
		r.Fetched, r.Boot = 0, ""
		if r != want[i] {
			t.Errorf("%+v, want %+v", r, want[i])
		}
	}
	if got := b.outcomes(); got != "applied" || b.last().Version != "not one \"word\" ü_" || b.asked() != b.last().Version {
		t.Errorf("told %+v", b.last())
	}
	u.board.PowerCycle()
	u.runs("ota_0", "2.0.0")
	// The server offers what runs: it is not taken a second time.
	results, _ = u.board.Run(t, client, "forget", "update", "confirm", "update")
	if results[1].Err != "argument" || results[2].Err != "pending-verify" || results[3].Err != "ok" || results[4].Err != "nothing-new" || results[4].Fetched != 0 {
		t.Errorf("%+v", results)
	}
}

// TestESPPort runs the tables for ESP-IDF over functions of ours that stand for
// ESP-IDF's: what they do with the answers, and that they ask for the right things.
func TestESPPort(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		u := newUnit(t, name, 1)
		b := newBackend(t, u)
		b.program = "ota_client_esp"
		im := u.image("2.0.0", 1)
		b.offer("2.0.0", im)

		// Answers that are no success.
		b.set(func() { b.refuse = func(*http.Request) (int, string) { return 503, "9" } })
		if r := b.want("1.0.0", "update", "busy"); r.RetryAfter != 9 {
			t.Errorf("%+v", r)
		}
		b.set(func() { b.refuse = func(*http.Request) (int, string) { return 204, "" } })
		b.want("1.0.0", "update", "nothing-new")
		b.offer("2.0.0", im)
		b.set(func() { b.head = func(h http.Header, _ *http.Request) { h.Del("ETag") } })
		b.want("1.0.0", "update", "protocol")
		b.offer("2.0.0", im)
		b.set(func() { b.spoil = func(c []byte) []byte { c[100] ^= 1; return c } })
		b.want("1.0.0", "update", "hash")
		b.offer("2.0.0", im)
		b.set(func() { b.slot = "ota_1" })
		b.want("1.0.0", "update", "validate")
		u.board.PowerCycle()
		u.runs("factory", "1.0.0")

		// The connection breaks, with bytes under way; then it is closed when it is idle.
		u.reset()
		b.offer("2.0.0", im)
		answers := 0
		b.set(func() {
			b.stop = func(*http.Request) int {
				if answers++; answers == 3 {
					return sector + 100
				}
				return -1
			}
		})
		b.want("1.0.0", "update", "transport")
		b.set(func() { b.stop, b.impatient = nil, true })
		_, c := b.ciphertext("ota_0")
		if r := b.want("1.0.0", "update", "ok"); r.Fetched != len(c)-2*request-sector {
			t.Errorf("%+v for %d bytes", r, len(c))
		}
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		b.want("2.0.0", "update", "pending-verify")
		b.want("2.0.0", "confirm", "ok")
		if got := b.outcomes(); got != "applied, confirmed" {
			t.Errorf("told %s", got)
		}

		// To the next slot, and back because nobody confirms.
		b.offer("2.1.0", u.image("2.1.0", 1))
		b.want("2.0.0", "update", "ok")
		u.board.PowerCycle()
		u.runs("ota_1", "2.1.0")
		u.board.PowerCycle()
		u.runs("ota_0", "2.0.0")
		if r := b.want("2.0.0", "update", "known-bad"); r.Boot != "rolled-back" || b.outcomes() != "applied, rolled-back" {
			t.Errorf("%+v, told %s", r, b.outcomes())
		}

		// Every operation of the board fails once, and power fails within each once.
		if name != "esp32c3" {
			return // that is not the cipher's business
		}
		for _, moment := range []otaclient.Moment{otaclient.Fails, otaclient.Within} {
			for at, last := 1, false; !last; at++ {
				u.reset()
				b.offer("2.0.0", im)
				last = true
				u.board.Cut = func(n int, _ otaclient.Op, _ uint32) otaclient.Moment {
					if n != at {
						return otaclient.Never
					}
					last = false
					return moment
				}
				u.board.Run(t, b.client("1.0.0"), "update")
				u.board.Cut = nil
				settle(t, b, "1.0.0", "ota_0", "2.0.0")
			}
		}
	})
}
