package provision_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
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

// fuseBits are fields of an eFuse table with the values that a test expects.
type fuseBits map[string]uint32

// words are the words of BLOCK0 with these fields.
func (f fuseBits) words(t testing.TB, tab *table.Table) []uint32 {
	t.Helper()
	out := make([]uint32, tab.Blocks()[0].Words)
	for name, v := range f {
		fd, ok := tab.Field(name)
		if !ok || fd.Block != 0 {
			t.Fatalf("%s has no %s in BLOCK0", tab.Chip(), name)
		}
		for i, bit := range fd.Bits() {
			out[bit/32] |= v >> i & 1 << (bit % 32)
		}
	}
	return out
}

// secureBootBits are the fuses of Secure Boot by the names of esp-facts E.4: what the
// engine may burn beside F.5, and no more.
func secureBootBits(t testing.TB, tab *table.Table, m chip.Model, profile string, scheme chip.SignatureScheme, keys int) fuseBits {
	t.Helper()
	bits := fuseBits{"WR_DIS.RD_DIS": 1}
	has := func(name string) bool { _, ok := tab.Field(name); return ok }
	switch {
	case has("ABS_DONE_1"):
		bits["ABS_DONE_1"], bits["WR_DIS.BLOCK2"] = 1, 1
	case has("KEY_PURPOSE_0"):
		bits["SECURE_BOOT_EN"] = 1
		for i := range keys {
			n := i + 1 // the block after the flash key's
			bits[fmt.Sprintf("KEY_PURPOSE_%d", n)] = uint32(9 + i)
			bits[fmt.Sprintf("WR_DIS.KEY%d", n)] = 1
			bits[fmt.Sprintf("WR_DIS.KEY_PURPOSE_%d", n)] = 1
		}
		for i := keys; i < 3; i++ {
			bits[fmt.Sprintf("SECURE_BOOT_KEY_REVOKE%d", i)] = 1
		}
	default: // the digest shares the flash key's block
		bits["SECURE_BOOT_EN"] = 1
	}
	if scheme == chip.SignECDSA384 {
		bits["SECURE_BOOT_SHA384_EN"] = 1
	}
	if profile != "development" {
		for _, name := range []string{"SECURE_BOOT_SHA384_EN", "ECDSA_CURVE_MODE"} {
			if f, ok := tab.Field(name); ok && f.WRDis != table.None {
				bits["WR_DIS."+name] = 1
			}
		}
	}
	_ = m
	return bits
}

// digestBlocks are the blocks where the digests stand, and from which word on.
func digestBlocks(tab *table.Table, keys int) (blocks []int, from int) {
	if b, ok := tab.Block("BLOCK2"); ok && b.Key {
		return []int{b.Index}, 0
	}
	b, _ := tab.Block("KEY0")
	if len(b.RDDisAll) == 2 {
		return []int{b.Index}, 4
	}
	for i := range keys {
		blocks = append(blocks, b.Index+1+i)
	}
	return blocks, 0
}

// TestSecureBoot: a unit with Secure Boot of every scheme that its chip has ends with
// exactly the fuses of F.5 and E.4, boots, and its bootloader, which would burn all
// that is missing, finds nothing left to burn.
func TestSecureBoot(t *testing.T) {
	for _, name := range chip.Names() {
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
					b.wantSecureBoot(c, before, job, profile, s.Scheme, trust)
					if !boots(c) {
						t.Errorf("it does not boot: %s", c.BootText())
					}
					b.wantSecureBoot(c, before, job, profile, s.Scheme, trust)
				})
			}
		}
	}
}

// product is a sample product of a chip that its profile can be made of.
func product(m chip.Model, profile string) sample.Product {
	p := sample.Product{Chip: m, Profile: profile}
	if profile == "release" && m.Lockdown.ReleaseTrap != "" {
		p.More = "accept_sdm_errata: true\n"
	}
	return p
}

// revisionFor is silicon that verifies a scheme and can be closed.
func revisionFor(m chip.Model, scheme chip.SignatureScheme) chip.Revision {
	rev := max(m.Lockdown.ClosedMinimum, m.SecureBoot.MinimumRevision, 4)
	for _, s := range m.SecureBoot.Schemes {
		if s.Scheme == scheme {
			rev = max(rev, s.MinimumRevision)
		}
	}
	return rev
}

func (b *bench) wantSecureBoot(c *espsim.Chip, before [][]uint32, job *provision.Job, profile string, scheme chip.SignatureScheme, trust []int) {
	b.t.Helper()
	name := c.Model().Name
	tab, err := table.ForRevision(name, c.Revision())
	if err != nil {
		b.t.Fatal(err)
	}
	want := slices.Clone(before[0])
	for i, w := range secureBootBits(b.t, tab, c.Model(), profile, scheme, len(trust)).words(b.t, tab) {
		want[i] |= w | fusesAfter[name][profile][i]
	}
	now := c.Fuses()
	if !slices.Equal(now[0], want) {
		b.t.Errorf("BLOCK0 is %08x, want %08x", now[0], want)
	}
	blocks, from := digestBlocks(tab, len(trust))
	for i, at := range blocks {
		d := digestOf(b.t, signerOf(b.t, scheme, trust[i]))
		if got, want := now[at][from:8], words(d.Burned(c.Model().SecureBoot)); !slices.Equal(got, want) {
			b.t.Errorf("block %d holds digest %08x, want %08x", at, got, want)
		}
	}
	meta := b.metas(unitMAC)[0]
	if meta.SecureBootScheme != string(scheme) || len(meta.SecureBootDigests) != len(trust) {
		b.t.Errorf("the record says %s and %d digests", meta.SecureBootScheme, len(meta.SecureBootDigests))
	}
	for i, d := range meta.SecureBootDigests {
		if d != digestOf(b.t, signerOf(b.t, scheme, trust[i])) {
			b.t.Errorf("the record's digest %d is another", i)
		}
	}
	_ = job
}

// What a unit's ROM or bootloader would refuse is refused before there is a unit.
func TestSecureBootImagesRefused(t *testing.T) {
	for _, name := range chip.Names() {
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
	for _, name := range chip.Names() {
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
