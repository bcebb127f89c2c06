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
					if !boots(c) {
						t.Errorf("it does not boot: %s", c.BootText())
					}
					b.wantSecureBoot(c, before, job, s.Scheme, trust)
				})
			}
		}
	}
}

// product is a sample product of a chip.
func product(m chip.Model, profile string) sample.Product {
	return sample.Product{Chip: m, Profile: profile, More: profileLines(m, profile)}
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
