package provision_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/provision/report"
	"github.com/provisiond/provisiond/station/port"
)

// signers are three keys of each scheme, made once.
var signers = struct {
	sync.Mutex
	made map[chip.SignatureScheme][]crypto.Signer
}{made: map[chip.SignatureScheme][]crypto.Signer{}}

func signerOf(t testing.TB, scheme chip.SignatureScheme, n int) crypto.Signer {
	t.Helper()
	signers.Lock()
	defer signers.Unlock()
	for len(signers.made[scheme]) <= n {
		var (
			k   crypto.Signer
			err error
		)
		switch scheme {
		case chip.SignRSA3072:
			k, err = rsa.GenerateKey(rand.Reader, 3072)
		case chip.SignECDSA256:
			k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		case chip.SignECDSA384:
			k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		default:
			t.Fatalf("no key of %s can be made here", scheme)
		}
		if err != nil {
			t.Fatal(err)
		}
		signers.made[scheme] = append(signers.made[scheme], k)
	}
	return signers.made[scheme][n]
}

func digestOf(t testing.TB, k crypto.Signer) secureboot.KeyDigest {
	t.Helper()
	d, err := secureboot.Digest(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// signedJob is a product whose images are signed by sign, and whose units trust trust.
func signedJob(t testing.TB, p sample.Product, scheme chip.SignatureScheme, sign, trust []int) *provision.Job {
	t.Helper()
	r, err := loadSigned(t, p, scheme, sign, trust)
	if err != nil {
		t.Fatal(err)
	}
	j, err := provision.NewJob(r)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func loadSigned(t testing.TB, p sample.Product, scheme chip.SignatureScheme, sign, trust []int) (*recipe.Recipe, error) {
	t.Helper()
	for _, n := range sign {
		p.Signers = append(p.Signers, signerOf(t, scheme, n))
	}
	for _, n := range trust {
		p.Trust = append(p.Trust, signerOf(t, scheme, n))
	}
	if p.AppSize == 0 {
		p.AppSize, p.Baud = 6<<10, 921600
	}
	path, err := sample.Write(t.TempDir(), p)
	if err != nil {
		t.Fatal(err)
	}
	return recipe.Load(path)
}

// TestSecureBoot: a unit with Secure Boot of every scheme that its chip has ends with
// exactly the fuses of F.5 and E.4, boots, and its bootloader, which would burn all
// that is missing, finds nothing left to burn.
func TestSecureBoot(t *testing.T) {
	for _, name := range allChips() {
		m := model(t, name)
		for _, s := range m.SecureBoot.Schemes {
			keys := m.SecureBoot.DigestSlots
			if s.Scheme == chip.SignECDSA384 || s.Scheme == chip.SignECDSA256 && keys > 1 {
				keys = 2
			}
			for _, profile := range []string{"development", "hybrid", "release", "closed"} {
				trust := []int{0, 1, 2}[:keys]
				signerOf(t, s.Scheme, keys-1)
				inBubble(t, fmt.Sprintf("%s/%s/%s", name, s.Scheme, profile), func(t *testing.T) {
					b := newMemoryBench(t)
					c := b.board(espsim.Options{Model: m, Revision: revisionFor(m, s.Scheme), Build: bootrom.Build{SecureBoot: true, Scheme: s.Scheme}})
					before := c.Fuses()
					job := signedJob(t, product(m, profile), s.Scheme, trust[:1], trust)
					r := b.run(t.Context(), c, job)
					wantPass(t, r)
					b.wantSecureBoot(c, before, job, s.Scheme, trust)
					if profile == "hybrid" {
						wantToken(t, c, r, s.Scheme, trust)
					}
					if !boots(c) {
						t.Errorf("it does not boot: %s", c.BootText())
					}
					b.wantSecureBoot(c, before, job, s.Scheme, trust)
				})
			}
		}
	}
}

// wantToken: the token of a unit with Secure Boot can be made of its report, and has the
// digests as the array has them.
func wantToken(t *testing.T, c *espsim.Chip, r *provision.Result, scheme chip.SignatureScheme, trust []int) {
	t.Helper()
	want := slices.Clone(r.EFuseAfter)
	for i, b := range want {
		if strings.HasPrefix(b.Words[0], "fp:") {
			want[i].Words = nil
			for w, v := range c.Fuses()[i] {
				if c.Model().SecureBoot.DigestIn == chip.DigestInKey0High && w < 4 {
					v = 0 // the hidden half
				}
				want[i].Words = append(want[i].Words, fmt.Sprintf("%08x", v))
			}
		}
	}
	var digests []keystore.Digest
	for _, n := range trust {
		digests = append(digests, keystore.Digest(digestOf(t, signerOf(t, scheme, n))))
	}
	name, rev := c.Model().Name, c.Revision()
	raw, err := report.Token(name, rev, want, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := report.Token(name, rev, r.EFuseAfter, nil, digests...); err != nil || got != raw {
		t.Errorf("the token is %s, %v\nand the chip's\n%s", got, err, raw)
	}
	if _, err := report.Token(name, rev, r.EFuseAfter, nil, digests[1:]...); !errors.Is(err, report.ErrReadableKey) {
		t.Errorf("a block that shows something unknown: %v", err)
	}
}

// TestAggressiveRevoke: the fuse is burned where the recipe asks for it.
func TestAggressiveRevoke(t *testing.T) {
	for _, name := range []string{"esp32c3", "esp32s3", "esp32c5"} {
		m := model(t, name)
		scheme := m.SecureBoot.Schemes[0].Scheme
		signerOf(t, scheme, 0)
		inBubble(t, name, func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: m, Build: bootrom.Build{SecureBoot: true, Scheme: scheme, AggressiveRevoke: true}})
			before := c.Fuses()
			p := product(m, "release")
			p.More = "  aggressive_revoke: true\n" // the mapping's last line
			job := signedJob(t, p, scheme, []int{0}, []int{0})
			if len(job.Layout.Warnings) == 0 || !strings.Contains(job.Layout.Warnings[0], "aggressive_revoke") {
				t.Errorf("warnings %v", job.Layout.Warnings)
			}
			wantPass(t, b.run(t.Context(), c, job))
			wantJobFuses(t, c, before, job, b.storedKey(unitMAC))
			if fieldValue(t, c, "SECURE_BOOT_AGGRESSIVE_REVOKE") != 1 || !boots(c) {
				t.Errorf("it does not boot: %s", c.BootText())
			}
		})
	}
}

// product is a sample product of a chip.
func product(m chip.Model, profile string) sample.Product {
	return sample.Product{Chip: m, Profile: profile}
}

// revisionFor is silicon that verifies a scheme and can be closed.
func revisionFor(m chip.Model, scheme chip.SignatureScheme) chip.Revision {
	rev := max(usualRevision(m), m.SecureBoot.MinimumRevision)
	for _, s := range m.SecureBoot.Schemes {
		if s.Scheme == scheme {
			rev = max(rev, s.MinimumRevision)
		}
	}
	return rev
}

func (b *bench) wantSecureBoot(c *espsim.Chip, before [][]uint32, job *provision.Job, scheme chip.SignatureScheme, trust []int) {
	b.t.Helper()
	wantJobFuses(b.t, c, before, job, b.storedKey(unitMAC))
	meta := b.metas(unitMAC)[0]
	if meta.SecureBootScheme != string(scheme) || len(meta.SecureBootDigests) != len(trust) {
		b.t.Errorf("the record says %s and %d digests", meta.SecureBootScheme, len(meta.SecureBootDigests))
	}
	for i, d := range meta.SecureBootDigests {
		if d != digestOf(b.t, signerOf(b.t, scheme, trust[i])) {
			b.t.Errorf("the record's digest %d is another", i)
		}
	}
}

// What a unit's ROM or bootloader would refuse is refused before there is a unit.
func TestSecureBootImagesRefused(t *testing.T) {
	for _, name := range allChips() {
		m := model(t, name)
		scheme := m.SecureBoot.Schemes[0].Scheme
		for what, c := range map[string]struct {
			sign, trust []int
			more        string
			reason      string
		}{
			"another key": {sign: []int{1}, trust: []int{0}, reason: "which the recipe does not burn"},
			"unsigned":    {sign: nil, trust: []int{0}, reason: "not signed"},
		} {
			r, err := loadSigned(t, product(m, "hybrid"), scheme, c.sign, c.trust)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := provision.NewJob(r); err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// A unit that trusts one key is not reworked with images for another one.
func TestReworkOtherSigner(t *testing.T) {
	for _, name := range allChips() {
		m := model(t, name)
		scheme := m.SecureBoot.Schemes[0].Scheme
		signerOf(t, scheme, 1)
		inBubble(t, name, func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: m, Revision: revisionFor(m, scheme), Build: bootrom.Build{SecureBoot: true}})
			job := signedJob(t, product(m, "hybrid"), scheme, []int{0}, []int{0})
			wantPass(t, b.run(t.Context(), c, job))
			wantPass(t, b.rework(t.Context(), c, job, badFlash))
			flash := flashBytes(t, c, 0, int(c.Flash().Size()))
			other := signedJob(t, product(m, "hybrid"), scheme, []int{1}, []int{1})
			r := b.rework(t.Context(), c, other, badFlash)
			if r.Verdict == provision.Pass || r.Cause != provision.CauseRefused {
				t.Errorf("%s (%s): %s", r.Verdict, r.Cause, r.Reason)
			}
			if !bytes.Equal(flash, flashBytes(t, c, 0, len(flash))) {
				t.Error("the flash was written")
			}
		})
	}
}

// full keeps a job for each chip with all that a recipe can burn.
var full struct {
	sync.Mutex
	jobs map[string]*provision.Job
}

// fullJob is a product of a chip with Secure Boot, two digests where there is room, a
// key of the largest size, a key for esp_encrypted_img, and data of each unit's own.
func fullJob(t testing.TB, name, profile string) *provision.Job {
	t.Helper()
	full.Lock()
	defer full.Unlock()
	if j := full.jobs[name+profile]; j != nil {
		return j
	}
	m := model(t, name)
	scheme := m.SecureBoot.Schemes[len(m.SecureBoot.Schemes)-1].Scheme
	p := product(m, profile)
	p.UnitTemplate = "{{.MAC}} {{.OTAToken}}"
	if hasHMAC(t, name) {
		p.More += "encimg_ecies: true\n"
	}
	if slices.Contains(m.Schemes, chip.SchemeXTS256) {
		p.More += "flash_encryption: xts-256\n"
	}
	j := signedJob(t, p, scheme, []int{0}, []int{0, 1}[:min(2, m.SecureBoot.DigestSlots)])
	if full.jobs == nil {
		full.jobs = map[string]*provision.Job{}
	}
	full.jobs[name+profile] = j
	return j
}

// spoil is what is done to a unit with Secure Boot that has passed, and after which it
// must not boot.
type spoil struct {
	name string
	do   func(t *testing.T, b *bench, c *espsim.Chip, job *provision.Job) bool // false: the chip has no such thing
}

var spoils = []spoil{
	{"wrong signature", func(_ *testing.T, b *bench, c *espsim.Chip, job *provision.Job) bool {
		b.patch(c, job, layout.App, func(plain []byte) { plain[sectorAt(plain)+900] ^= 1 })
		return true
	}},
	{"unsigned application", func(_ *testing.T, b *bench, c *espsim.Chip, job *provision.Job) bool {
		b.patch(c, job, layout.App, func(plain []byte) {
			for i := sectorAt(plain); i < len(plain); i++ {
				plain[i] = 0xFF
			}
		})
		return true
	}},
	{"unsigned bootloader", func(_ *testing.T, b *bench, c *espsim.Chip, job *provision.Job) bool {
		b.patch(c, job, layout.Bootloader, func(plain []byte) {
			for i := sectorAt(plain); i < len(plain); i++ {
				plain[i] = 0xFF
			}
		})
		return true
	}},
	{"revoked slot", func(t *testing.T, _ *bench, c *espsim.Chip, _ *provision.Job) bool {
		fields := c.Model().SecureBoot.RevokeFields
		if len(fields) == 0 {
			return false
		}
		setField(t, c, fieldNamed(t, c, fields[0]), 1)
		return true
	}},
	{"digest read-protected", func(t *testing.T, b *bench, c *espsim.Chip, job *provision.Job) bool {
		places := b.places(c, job)
		setField(t, c, fieldNamed(t, c, "RD_DIS."+places[len(places)-1].Block), 1)
		return true
	}},
	{"wrong half of an XTS-256 key", func(t *testing.T, _ *bench, c *espsim.Chip, job *provision.Job) bool {
		if job.Recipe.Scheme() != chip.SchemeXTS256 {
			return false
		}
		// No bit can be taken back, so the second half gets some more.
		if err := c.SetFuse(keyIndex(c.Model().Name)+1, 3, 0xFFFFFFFF); err != nil {
			t.Fatal(err)
		}
		return true
	}},
}

// sectorAt is where the signature sector of an image begins: it is the last of the
// region.
func sectorAt(plain []byte) int { return (len(plain) - 1) / 4096 * 4096 }

func (b *bench) places(c *espsim.Chip, job *provision.Job) []efuse.KeyBurn {
	b.t.Helper()
	tab, err := table.ForRevision(c.Model().Name, c.Revision())
	if err != nil {
		b.t.Fatal(err)
	}
	list, err := job.Places(c.Model(), tab)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// patch changes the plaintext of a region in a unit's flash.
func (b *bench) patch(c *espsim.Chip, job *provision.Job, k layout.Kind, f func([]byte)) {
	b.t.Helper()
	r := region(b.t, job, k)
	r.Plain = bytes.Clone(r.Plain)
	f(r.Plain)
	ci, err := flashcrypt.New(job.Recipe.Scheme(), b.storedKey(c.MAC()), 0xF)
	if err != nil {
		b.t.Fatal(err)
	}
	reencrypt(b.t, c, r, ci, 0)
}

// TestSecureBootHolds: a unit that has passed does not boot what it must not.
func TestSecureBootHolds(t *testing.T) {
	for _, name := range allChips() {
		m := model(t, name)
		scheme := m.SecureBoot.Schemes[0].Scheme
		signerOf(t, scheme, 0)
		for _, s := range spoils {
			inBubble(t, name+"/"+s.name, func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: m, Build: bootrom.Build{SecureBoot: true, Scheme: scheme}})
				p := product(m, "hybrid")
				if slices.Contains(m.Schemes, chip.SchemeXTS256) {
					p.More += "flash_encryption: xts-256\n"
				}
				job := signedJob(t, p, scheme, []int{0}, []int{0})
				wantPass(t, b.run(t.Context(), c, job))
				if !boots(c) {
					t.Fatalf("it does not boot before: %s", c.BootText())
				}
				if has := s.do(t, b, c, job); has && boots(c) {
					t.Errorf("it boots: %s", c.BootText())
				}
			})
		}
	}
}

// releaseUnits are a unit of every chip and, where it has fuses of its own, of its
// last scheme.
func releaseUnits() (list []struct {
	chip   string
	scheme chip.SignatureScheme
},
) {
	for _, name := range allChips() {
		m, err := chip.ByName(name)
		if err != nil {
			panic(err)
		}
		for i, s := range m.SecureBoot.Schemes {
			if i == 0 || s.Scheme == chip.SignECDSA384 {
				list = append(list, struct {
					chip   string
					scheme chip.SignatureScheme
				}{name, s.Scheme})
			}
		}
	}
	return list
}

// TestReleaseProblems: every fuse that ESP-IDF's check of the release mode asks for is
// missed when it lacks, by what the chip shows.
func TestReleaseProblems(t *testing.T) {
	for _, x := range releaseUnits() {
		m, scheme := model(t, x.chip), x.scheme
		signerOf(t, scheme, 0)
		inBubble(t, x.chip+"/"+string(scheme), func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: m, Build: bootrom.Build{SecureBoot: true, Scheme: scheme}})
			job := signedJob(t, product(m, "hybrid"), scheme, []int{0}, []int{0})
			wantPass(t, b.run(t.Context(), c, job))
			problems := func(fuses [][]uint32) []string {
				t.Helper()
				own := newBoard(t, espsim.Options{Model: m, Revision: c.Revision(), Factory: fuses})
				list, err := provision.ReleaseProblems(t.Context(), provision.Line{Port: port.FromSim(own, "sim"), Reset: rom.AutoReset{}}, job)
				if err != nil {
					t.Fatal(err)
				}
				return list
			}
			if list := problems(c.Fuses()); len(list) > 0 {
				t.Fatalf("a whole unit has problems: %v", list)
			}
			places := b.places(c, job)
			digest := places[len(places)-1]
			key := places[0].Block
			fields := []string{
				m.SecureBoot.EnableField, "WR_DIS.RD_DIS", "WR_DIS." + digest.Block,
				m.EFuse.FlashCryptCount, "WR_DIS." + key, "RD_DIS." + key,
			}
			if scheme == chip.SignECDSA384 {
				fields = append(fields, m.SecureBoot.SHA384Field)
			}
			for _, a := range slices.Concat(m.Lockdown.Enable, m.Lockdown.Fuses) {
				fields = append(fields, a.Field)
			}
			fields = append(fields, m.SecureBoot.RevokeFields[min(1, len(m.SecureBoot.RevokeFields)):]...)
			for _, f := range []string{
				"JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT", "DIS_BOOT_REMAP",
				"DIS_LEGACY_SPI_BOOT", "CONSOLE_DEBUG_DISABLE", "WR_DIS.KEY_PURPOSE_1", "KEY_PURPOSE_1",
				"WR_DIS.KEY_PURPOSE_0", "KEY_PURPOSE_0", "WR_DIS.DIS_CACHE", "WR_DIS.DIS_ICACHE",
				"WR_DIS.SECURE_BOOT_SHA384_EN", "WR_DIS.ECDSA_CURVE_MODE",
			} {
				if _, has := tableOf(t, c).Field(f); has {
					fields = append(fields, f)
				}
			}
			for _, f := range fields {
				fuses := c.Fuses()
				fuseBits{f: 0}.on(fuses[0], tableOf(t, c))
				if list := problems(fuses); len(list) == 0 {
					t.Errorf("%s lacks, and nothing is said", f)
				}
			}
			// A digest that is hidden, one that is revoked, and one of another key.
			fuses := c.Fuses()
			fuseBits{"RD_DIS." + digest.Block: 1}.on(fuses[0], tableOf(t, c))
			if list := problems(fuses); len(list) == 0 {
				t.Error("the digest is hidden, and nothing is said")
			}
			if len(m.SecureBoot.RevokeFields) > 0 {
				fuses := c.Fuses()
				fuseBits{m.SecureBoot.RevokeFields[0]: 1}.on(fuses[0], tableOf(t, c))
				if list := problems(fuses); len(list) == 0 {
					t.Error("the digest is revoked, and nothing is said")
				}
			}
			fuses = c.Fuses()
			slot, _ := tableOf(t, c).Slot(digest.Block)
			fuses[slot.Block][7] ^= 1
			if list := problems(fuses); len(list) == 0 {
				t.Error("the digest is another, and nothing is said")
			}
		})
	}
}

// TestPlaces: whatever a recipe asks for, each thing has a block of its own that can hold
// it, and none is an XTS key in the block where the chip would not use it.
func TestPlaces(t *testing.T) {
	for _, name := range allChips() {
		m := model(t, name)
		scheme := m.SecureBoot.Schemes[0].Scheme
		for _, flash := range m.Schemes {
			if m.SecureBoot.DigestIn == chip.DigestInKey0High && flash != m.Scheme {
				continue // the one block holds that key or a digest
			}
			p := product(m, "hybrid")
			p.More = fmt.Sprintf("flash_encryption: %s\n", flash)
			if hasHMAC(t, name) {
				p.More += "encimg_ecies: true\n"
			}
			job := signedJob(t, p, scheme, []int{0}, []int{0, 1, 2}[:m.SecureBoot.DigestSlots])
			tab, err := table.For(name)
			if err != nil {
				t.Fatal(err)
			}
			list, err := job.Places(m, tab)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, k := range list {
				slot, ok := tab.Slot(k.Block)
				purpose, known := tab.Purpose(k.Purpose)
				if seen[k.Block] || !ok || !known || purpose.Bytes > slot.Bytes || purpose.Block != "" && purpose.Block != k.Block {
					t.Errorf("%s %s: %+v", name, flash, k)
				}
				if strings.HasPrefix(k.Purpose, "XTS_") && m.EFuse.NoXTSInLastKey && k.Block == "KEY5" {
					t.Errorf("%s %s: %s in KEY5", name, flash, k.Purpose)
				}
				seen[k.Block] = true
			}
			if len(list) != m.SecureBoot.DigestSlots+map[bool]int{false: 1, true: 2}[flash == chip.SchemeXTS256]+map[bool]int{true: 1}[hasHMAC(t, name)] {
				t.Errorf("%s %s: %v", name, flash, list)
			}
		}
	}
}

// TestAntiRollback: the unit has the application's secure version before it boots, so a
// bootloader that counts finds nothing to burn; and nothing locks the counter.
func TestAntiRollback(t *testing.T) {
	everyChip(t, func(t *testing.T, name string) {
		m := model(t, name)
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: m, AntiRollback: true, Rollback: true})
		p := product(m, "hybrid")
		p.AppSize, p.Baud, p.OTAOnly, p.SecureVersion = 6<<10, 921600, true, 3
		p.More += "anti_rollback: true\n"
		path, err := sample.Write(t.TempDir(), p)
		if err != nil {
			t.Fatal(err)
		}
		job := load(t, path)
		wantPass(t, b.run(t.Context(), c, job))
		version := func() uint32 {
			f := fieldNamed(t, c, "SECURE_VERSION")
			v := uint32(0)
			for i, bit := range f.Bits() {
				v |= c.Fuses()[f.Block][bit/32] >> (bit % 32) & 1 << i
			}
			return v
		}
		if v := version(); v != 7 {
			t.Errorf("SECURE_VERSION is 0x%x, want three bits", v)
		}
		f := fieldNamed(t, c, "SECURE_VERSION")
		if wr := fieldValue(t, c, "WR_DIS"); f.WRDis != table.None && wr>>f.WRDis&1 != 0 {
			t.Error("SECURE_VERSION is locked")
		}
		if !boots(c) || version() != 7 {
			t.Errorf("after a boot SECURE_VERSION is 0x%x: %s", version(), c.BootText())
		}
	})
	inBubble(t, "3of4", func(t *testing.T) {
		p := product(model(t, "esp32"), "hybrid")
		p.OTAOnly, p.More = true, "anti_rollback: true\n"
		path, err := sample.Write(t.TempDir(), p)
		if err != nil {
			t.Fatal(err)
		}
		b := newMemoryBench(t)
		b.wantRefused(b.board(espsim.Options{Model: model(t, "esp32"), CodingScheme: 1}), load(t, path), "secure versions cannot be counted")
	})
	// A factory partition does not go with it.
	p := product(model(t, "esp32c3"), "hybrid")
	p.More = "anti_rollback: true\n"
	path, err := sample.Write(t.TempDir(), p)
	if err != nil {
		t.Fatal(err)
	}
	r, err := recipe.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provision.NewJob(r); err == nil || !strings.Contains(err.Error(), "factory") {
		t.Errorf("a factory partition: %v", err)
	}
}

// TestSecureBootRefusesSilicon: silicon that would not take the signatures is refused by
// name before anything is written.
func TestSecureBootRefusesSilicon(t *testing.T) {
	for _, x := range []struct {
		name   string
		scheme chip.SignatureScheme
		o      espsim.Options
		reason string
	}{
		{"esp32", chip.SignRSA3072, espsim.Options{Revision: 102}, "v3.0"},
		{"esp32", chip.SignRSA3072, espsim.Options{Revision: 300, CodingScheme: 1}, "3/4 coding scheme"},
		{"esp32c3", chip.SignRSA3072, espsim.Options{Revision: 2}, "no Secure Boot V2 with rsa3072 before v0.3"},
		{"esp32p4", chip.SignRSA3072, espsim.Options{Revision: 300}, "ROM-764"},
		{"esp32p4", chip.SignECDSA384, espsim.Options{Revision: 103}, "no Secure Boot V2 with ecdsa384 before v3.0"},
	} {
		m := model(t, x.name)
		signerOf(t, x.scheme, 0)
		inBubble(t, x.name+"/"+x.reason, func(t *testing.T) {
			x.o.Model = m
			b := newMemoryBench(t)
			b.wantRefused(b.board(x.o), signedJob(t, product(m, "hybrid"), x.scheme, []int{0}, []int{0}), x.reason)
		})
	}
}

// tableOf is the eFuse table of a board's silicon.
func tableOf(t testing.TB, c *espsim.Chip) *table.Table {
	t.Helper()
	tab, err := table.ForRevision(c.Model().Name, c.Revision())
	if err != nil {
		t.Fatal(err)
	}
	return tab
}
