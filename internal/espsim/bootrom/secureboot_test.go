package bootrom

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// secureBoard is a board whose images are signed and whose fuses ask for that.
type secureBoard struct {
	*board
	f    *fuseWords
	keys [2]signer
}

// eachScheme runs f for every chip and signature scheme.
func eachScheme(t *testing.T, f func(t *testing.T, m chip.Model, s chip.SignatureScheme)) {
	eachChip(t, func(t *testing.T, name string) {
		m := modelOf(t, name)
		for _, s := range m.SecureBoot.Schemes {
			if s.Scheme == chip.SignECDSA192 {
				continue // no signer in the tests
			}
			t.Run(string(s.Scheme), func(t *testing.T) { f(t, m, s.Scheme) })
		}
	})
}

// newSecureBoard has the first key's digest in the first slot.
func newSecureBoard(t testing.TB, m chip.Model, s chip.SignatureScheme) *secureBoard {
	b := &secureBoard{board: newBoard(t, m.Name), f: newFuseWords(t, m), keys: signers(t, s)}
	b.in.Revision = max(b.in.Revision, m.SecureBoot.MinimumRevision)
	for _, c := range m.SecureBoot.Schemes {
		if c.Scheme == s {
			b.in.Revision = max(b.in.Revision, c.MinimumRevision)
		}
	}
	b.signWith(t, b.keys[0], b.keys[0])
	b.slot(t, 0, b.keys[0])
	b.f.set(m.SecureBoot.EnableField, 1)
	if s == chip.SignECDSA384 {
		b.f.set(m.SecureBoot.SHA384Field, 1)
	}
	return b
}

func (b *secureBoard) signWith(t testing.TB, loader, app signer) {
	b.parts[b.model.BootloaderOffset] = sign(t, spec(b.model, false).build(), loader)
	b.parts[0x10000] = sign(t, spec(b.model, true).build(), app)
}

// slot burns a key's digest.
func (b *secureBoard) slot(t testing.TB, n int, by signer) {
	sb := b.model.SecureBoot
	digest := by.digest(t)[:sb.DigestBytes]
	switch sb.DigestIn {
	case chip.DigestInBlock2:
		b.f.put(2, digest)
	case chip.DigestInKey0High:
		b.f.put(3, append(make([]byte, 16), digest...))
	default:
		b.f.set(fmt.Sprintf("KEY_PURPOSE_%d", n+2), uint64(9+n))
		b.f.put(n+6, digest)
	}
}

// hideDigest read-protects the first slot's block.
func (b *secureBoard) hideDigest() {
	switch b.model.SecureBoot.DigestIn {
	case chip.DigestInBlock2:
		b.f.set("RD_DIS", 2)
	case chip.DigestInKey0High:
		b.f.set("RD_DIS", 2)
	default:
		b.f.set("RD_DIS", 1<<2)
	}
}

func (b *secureBoard) boot() Output {
	in := b.input()
	in.EFuses = b.f.efuses()
	return Boot(in)
}

func TestSecureBootBoots(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		b := newSecureBoard(t, m, s)
		for _, count := range []uint32{0, m.EFuse.FlashCryptCountFull} {
			b.count = count
			out := b.boot()
			wantRunning(t, out, 0x10000)
			if out.changes() {
				t.Errorf("it changes %v %v", out.Burns, out.Writes)
			}
			for _, l := range []string{"secure boot verification succeeded\r\nload:", "Verifying image signature...", "Signature verified successfully!"} {
				if !strings.Contains(string(out.Text), l) {
					t.Errorf("%q is missing in:\n%s", l, out.Text)
				}
			}
		}
	})
}

// TestSecureBootText pins the lines of public boot logs.
func TestSecureBootText(t *testing.T) {
	for name, want := range map[string][2]string{
		"esp32": {
			"mode:DIO, clock div:2\r\nsecure boot v2 enabled\r\nsecure boot verification succeeded\r\nload:",
			"mode:DIO, clock div:2\r\nsecure boot v2 enabled\r\n" +
				"No signature block magic byte found at signature sector (found 0xff not 0xe7). Image not V2 signed?\r\nsecure boot verification failed\r\n",
		},
		"esp32c3": {
			"mode:DIO, clock div:2\r\nValid secure boot key blocks: 0\r\nsecure boot verification succeeded\r\nload:",
			"mode:DIO, clock div:2\r\nValid secure boot key blocks: 0\r\n" +
				"No signature block magic byte found at signature sector (found 0xff not 0xe7). Image not V2 signed?\r\nsecure boot verification failed\r\n",
		},
	} {
		m := modelOf(t, name)
		b := newSecureBoard(t, m, chip.SignRSA3072)
		b.count = 0
		if out := b.boot(); !strings.Contains(string(out.Text), want[0]) {
			t.Errorf("%s: %q is missing in\n%s", name, want[0], out.Text)
		}
		b.parts[m.BootloaderOffset] = spec(m, false).build()
		if out := b.boot(); !strings.Contains(string(out.Text), want[1]) {
			t.Errorf("%s: %q is missing in\n%s", name, want[1], out.Text)
		}
	}
}

const (
	romRefuses = "secure boot verification failed\r\n"
	appRefuses = "esp_image: Secure boot signature verification failed"
)

func TestSecureBootRefuses(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		loader := m.BootloaderOffset
		inSignature := 900 // bytes 812 to 1195 of an RSA block (esp-facts E.2)
		switch s {         //nolint:exhaustive // the rest is RSA
		case chip.SignECDSA192, chip.SignECDSA256:
			inSignature = 110 // r begins at 101
		case chip.SignECDSA384:
			inSignature = 160 // and at 149
		}
		sigAt := func(b *secureBoard, at uint32) uint32 { return at + uint32(len(b.parts[at])) - sigSector }
		// damage changes a byte of the signature sector and mends the CRC.
		damage := func(b *secureBoard, at uint32, off int, crc bool) {
			raw := slices.Clone(b.parts[at])
			blk := raw[sigAt(b, at)-at:][:sigLen]
			blk[off] ^= 1
			if crc {
				sum := crcOf(blk)
				for i := range 4 {
					blk[sigCRC+i] = byte(sum >> (8 * i))
				}
			}
			b.parts[at] = raw
		}
		for _, c := range []struct {
			name  string
			spoil func(t *testing.T, b *secureBoard)
			lines []string
			slots bool // only with several slots
		}{
			{"bootloader unsigned", func(_ *testing.T, b *secureBoard) { b.parts[loader] = spec(m, false).build() }, []string{"Image not V2 signed?", romRefuses}, false},
			{"bootloader by another key", func(t *testing.T, b *secureBoard) { b.signWith(t, b.keys[1], b.keys[0]) }, []string{romRefuses}, false},
			{"bootloader's signature", func(_ *testing.T, b *secureBoard) { damage(b, loader, inSignature, true) }, []string{"Signature Check Failed", romRefuses}, false},
			{"bootloader's signature, CRC not mended", func(_ *testing.T, b *secureBoard) { damage(b, loader, inSignature, false) }, []string{"Sig block 0 invalid:", romRefuses}, false},
			{"bootloader changed", func(_ *testing.T, b *secureBoard) { b.parts[loader][50] ^= 1; b.parts[loader][51] ^= 1 }, []string{"Image digest does not match", romRefuses}, false},
			{"app unsigned", func(_ *testing.T, b *secureBoard) { b.parts[0x10000] = spec(m, true).build() }, []string{appRefuses, "image valid, signature bad", "Factory app partition is not bootable"}, false},
			{"app by another key", func(t *testing.T, b *secureBoard) { b.signWith(t, b.keys[0], b.keys[1]) }, []string{appRefuses, "image valid, signature bad"}, false},
			{"app's signature", func(_ *testing.T, b *secureBoard) { damage(b, 0x10000, inSignature, true) }, []string{"Signature Check Failed", appRefuses}, false},
			{"app's padding", func(_ *testing.T, b *secureBoard) { b.parts[0x10000][0xF00] = 0 }, []string{"Image digest does not match", appRefuses, "image valid, signature bad"}, false},
			{"app's code", func(_ *testing.T, b *secureBoard) {
				p := b.parts[0x10000] // two bytes that leave the checksum right
				p[0x40] ^= 1
				p[0x41] ^= 1
			}, []string{"Image digest does not match", appRefuses, "image corrupted on flash"}, false},
			{"digest read-protected", func(_ *testing.T, b *secureBoard) { b.hideDigest() }, []string{romRefuses}, false},
			{"digest not burned", func(t *testing.T, b *secureBoard) {
				b.f = newFuseWords(t, m)
				b.f.set(m.SecureBoot.EnableField, 1)
			}, []string{romRefuses}, false},
			{"slot revoked", func(_ *testing.T, b *secureBoard) { b.f.set("SECURE_BOOT_KEY_REVOKE0", 1) }, []string{"Valid secure boot key blocks: \r\n", romRefuses}, true},
		} {
			if c.slots && len(m.SecureBoot.RevokeFields) == 0 {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				b := newSecureBoard(t, m, s)
				c.spoil(t, b)
				out := b.boot()
				wantLoop(t, out, c.lines...)
				if out.changes() {
					t.Errorf("it changes %v %v", out.Burns, out.Writes)
				}
			})
		}
	})
}

// Of several signatures in a sector one good one is enough, and a revoked slot
// does not stop another.
func TestSecureBootSeveralKeys(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		if m.SecureBoot.DigestSlots < 2 {
			// The boot code of a chip with one slot looks at the first block only.
			b := newSecureBoard(t, m, s)
			b.parts[m.BootloaderOffset] = sign(t, spec(m, false).build(), b.keys[1], b.keys[0])
			wantLoop(t, b.boot(), romRefuses)
			return
		}
		b := newSecureBoard(t, m, s)
		b.slot(t, 1, b.keys[1])
		b.parts[m.BootloaderOffset] = sign(t, spec(m, false).build(), b.keys[0], b.keys[1])
		b.parts[0x10000] = sign(t, spec(m, true).build(), b.keys[1])
		out := b.boot()
		wantRunning(t, out, 0x10000)
		if !strings.Contains(string(out.Text), "Valid secure boot key blocks: 0 1\r\n") {
			t.Errorf("prints\n%s", out.Text)
		}
		b.f.set("SECURE_BOOT_KEY_REVOKE0", 1)
		out = b.boot()
		wantRunning(t, out, 0x10000)
		if !strings.Contains(string(out.Text), "Valid secure boot key blocks: 1\r\n") {
			t.Errorf("prints\n%s", out.Text)
		}
	})
}

// With aggressive revocation a bad signature of a right key costs the slot, a bad
// digest or an unknown key do not, and the second stage never revokes.
func TestAggressiveRevoke(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		if m.SecureBoot.AggressiveRevokeField == "" || s.ECDSA() {
			return
		}
		spoil := func(b *secureBoard, at uint32) {
			raw := slices.Clone(b.parts[at])
			blk := raw[len(raw)-sigSector:][:sigLen]
			blk[900] ^= 1
			sum := crcOf(blk)
			for i := range 4 {
				blk[sigCRC+i] = byte(sum >> (8 * i))
			}
			b.parts[at] = raw
		}
		for _, c := range []struct {
			name   string
			do     func(t *testing.T, b *secureBoard)
			revoke bool
		}{
			{"bad signature", func(_ *testing.T, b *secureBoard) { spoil(b, m.BootloaderOffset) }, true},
			{"unknown key", func(t *testing.T, b *secureBoard) { b.signWith(t, b.keys[1], b.keys[0]) }, false},
			{"bad app signature", func(_ *testing.T, b *secureBoard) { spoil(b, 0x10000) }, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				b := newSecureBoard(t, m, s)
				b.f.set(m.SecureBoot.AggressiveRevokeField, 1)
				good := b.parts
				b.parts = map[uint32][]byte{}
				for at, p := range good {
					b.parts[at] = p
				}
				c.do(t, b)
				out := b.boot()
				if out.changes() != c.revoke {
					t.Fatalf("burns %v", out.Burns)
				}
				if !c.revoke {
					return
				}
				if out.State != Restarting || out.Again == 0 {
					t.Errorf("state %v, again %d", out.State, out.Again)
				}
				b.f.apply(out.Burns)
				b.parts = good
				wantLoop(t, b.boot(), "Valid secure boot key blocks: \r\n", romRefuses)
			})
		}
	})
}

// Silicon without Secure Boot V2 does not look at the fuse.
func TestSecureBootNeedsSilicon(t *testing.T) {
	for _, m := range chip.All() {
		if m.SecureBoot.MinimumRevision == 0 {
			continue
		}
		b := newSecureBoard(t, m, m.SecureBoot.Schemes[0].Scheme)
		b.in.Revision = m.SecureBoot.MinimumRevision - 1
		b.parts[m.BootloaderOffset], b.parts[0x10000] = spec(m, false).build(), spec(m, true).build()
		wantRunning(t, b.boot(), 0x10000)
	}
}

// TestFirstBoot boots a new chip with images in plaintext, of a build with Secure
// Boot and flash encryption: it locks itself. A second boot has nothing to do.
func TestFirstBoot(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		for _, c := range []struct {
			name  string
			build Build
		}{
			{"Secure Boot", Build{SecureBoot: true, DownloadMode: DisableDownloadMode}},
			{"flash encryption", Build{FlashEncryption: true}},
			{"both", Build{SecureBoot: true, FlashEncryption: true, DownloadMode: DisableDownloadMode}},
		} {
			t.Run(c.name, func(t *testing.T) {
				b := newSecureBoard(t, m, s)
				b.f = newFuseWords(t, m)
				b.count = 0
				in := b.input()
				in.Build, in.NewKey = c.build, random(9, 64)
				in.Build.Scheme = s
				flash := flashOf(in)
				var out Output
				var text []byte
				for range 3 {
					in.EFuses = b.f.efuses()
					in.Flash = bytes.NewReader(flash)
					in.FlashCryptCount = uint32(fieldOf(b.f, m.EFuse.FlashCryptCount))
					in.FlashCryptConfig = uint32(fieldOf(b.f, "FLASH_CRYPT_CONFIG"))
					out = Boot(in)
					text = append(text, out.Text...)
					if out.State != Restarting {
						break
					}
					b.f.apply(out.Burns)
					for _, w := range out.Writes {
						copy(flash[w.Sector:], w.Data)
					}
					if len(out.Writes) > 0 {
						in.Key = keyOf(t, m, b.f)
					}
				}
				b.f.apply(out.Burns)
				if out.State != Running {
					t.Fatalf("state %v:\n%s", out.State, text)
				}
				in.EFuses = b.f.efuses()
				if out = Boot(in); out.State != Running || out.changes() {
					t.Errorf("the next boot: %v, burns %v:\n%s", out.State, out.Burns, out.Text)
				}
				plain := flash[m.BootloaderOffset] == imageMagic && flash[0x10000] == imageMagic && flash[0x8000] == 0xAA
				if plain == c.build.FlashEncryption {
					t.Errorf("plaintext in flash: %v", plain)
				}
				want := map[string]uint64{}
				if c.build.SecureBoot {
					want[m.SecureBoot.EnableField], want["WR_DIS.RD_DIS"] = 1, 1
					for i, r := range m.SecureBoot.RevokeFields {
						want[r] = uint64(min(i, 1))
					}
				}
				if c.build.FlashEncryption {
					want[m.EFuse.FlashCryptCount] = uint64(m.EFuse.FlashCryptCountFull)
					for _, a := range m.Lockdown.Fuses {
						want[a.Field] = uint64(a.Value)
					}
				}
				for name, v := range want {
					if got := fieldOf(b.f, name); got != v {
						t.Errorf("%s is %d, want %d", name, got, v)
					}
				}
			})
		}
	})
}

func fieldOf(f *fuseWords, name string) uint64 {
	v := newFuseView(EFuses{Table: f.tab, Words: f.w})
	return v.get(name)
}

// keyOf reads the flash key as the hardware does, whatever hides it.
func keyOf(t *testing.T, m chip.Model, f *fuseWords) []byte {
	v := newFuseView(EFuses{Table: f.tab, Words: f.w})
	if m.Scheme == chip.SchemeESP32 {
		return v.bytes(1)
	}
	if m.SecureBoot.DigestIn == chip.DigestInKey0High {
		if v.get("XTS_KEY_LENGTH_256") != 0 {
			return v.bytes(3)
		}
		return v.bytes(3)[:16]
	}
	k, _, ok := v.keyBlock(purposeXTS128)
	if !ok {
		t.Fatal("no key was burned")
	}
	return v.bytes(k.Index)
}

// A host that burned everything leaves nothing to the bootloader, and one bit that
// it left out is burned by it.
func TestNothingLeftToBurn(t *testing.T) {
	eachScheme(t, func(t *testing.T, m chip.Model, s chip.SignatureScheme) {
		sb := m.SecureBoot
		prepare := func() *secureBoard {
			b := newSecureBoard(t, m, s)
			b.in.Build = Build{SecureBoot: true, FlashEncryption: true, Scheme: s}
			b.f.set("WR_DIS.RD_DIS", 1)
			if sb.DigestIn == chip.DigestInKeyBlocks {
				b.f.set("WR_DIS.KEY2", 1)
				b.f.set("WR_DIS.KEY_PURPOSE_2", 1)
				b.f.set(sb.RevokeFields[1], 1)
				b.f.set(sb.RevokeFields[2], 1)
			} else if sb.DigestIn == chip.DigestInBlock2 {
				b.f.set("WR_DIS.BLOCK2", 1)
			} else {
				b.f.set("WR_DIS.KEY0", 1)
			}
			for _, f := range m.Lockdown.ReleaseProtect {
				b.f.set("WR_DIS."+f, 1)
			}
			b.f.set(m.EFuse.FlashCryptCount, uint64(m.EFuse.FlashCryptCountFull))
			for _, a := range append(m.Lockdown.Enable, m.Lockdown.Fuses...) {
				b.f.set(a.Field, uint64(a.Value))
			}
			return b
		}
		out := prepare().boot()
		wantRunning(t, out, 0x10000)
		if out.changes() {
			t.Fatalf("burns %v:\n%s", out.Burns, out.Text)
		}
		for _, l := range []string{"secure boot v2 is already enabled, continuing..", "flash encryption is enabled (0 plaintext flashes left)", "Flash encryption mode is RELEASE"} {
			if !strings.Contains(string(out.Text), l) {
				t.Errorf("%q is missing in:\n%s", l, out.Text)
			}
		}
		if sb.DigestIn != chip.DigestInKeyBlocks {
			return
		}
		b := prepare()
		fd, _ := b.f.tab.Field(sb.RevokeFields[2])
		b.f.w[0][fd.Bits()[0]/32] &^= 1 << (fd.Bits()[0] % 32)
		out = b.boot()
		wantRunning(t, out, 0x10000)
		if len(out.Burns) != 1 || out.Burns[0].Block != 0 || !strings.Contains(string(out.Text), "Unused SECURE_BOOT_DIGEST2 should be revoked. Fixing..") {
			t.Errorf("burns %v:\n%s", out.Burns, out.Text)
		}
	})
}
