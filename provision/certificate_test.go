package provision_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/report"
)

// versioned is a store whose records have another version than 1.
type versioned struct {
	keystore.Store
	version int
}

func (s versioned) Confirm(ctx context.Context, mac chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	r, err := s.Store.Confirm(ctx, mac, fp)
	r.Version = s.version
	return r, err
}

// TestCertificateOfRun: what a certificate says of the key is what the keystore
// confirmed to the engine, with the version, and it verifies.
func TestCertificateOfRun(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newBench(t)
		jrn, ok := b.jrn.(*journal.Journal)
		if !ok {
			t.Fatal("the bench has no real journal")
		}
		const version = 7
		b.store = versioned{b.store, version}
		wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: model(t, name)}), sampleJob(t, name, "hybrid")))
		metas := b.metas(unitMAC)
		if len(metas) != 1 {
			t.Fatalf("%+v", metas)
		}
		text, c := certify(t, jrn)
		s, r := c.Statement, metas[0].Receipt
		if s.KeyVersion != version || s.KeyRef != r.Ref || s.KeyStore != r.Store || s.KeyFingerprint != metas[0].Fingerprint.String() || s.KeyRef == "" {
			t.Errorf("version %d, ref %q, store %q, key %q; the store says %+v", s.KeyVersion, s.KeyRef, s.KeyStore, s.KeyFingerprint, metas[0])
		}
		if !strings.Contains(string(text), `"key_version":7`) {
			t.Error("the text has no key_version")
		}
	})
}

// certify makes the unit's certificate and verifies it.
func certify(t *testing.T, jrn *journal.Journal) ([]byte, report.Certificate) {
	t.Helper()
	checkpoint, err := jrn.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := journal.LoadKey(journal.KeyPath(jrn.Info().Path))
	if err != nil {
		t.Fatal(err)
	}
	text, err := report.NewCertificate(t.Context(), report.Log{
		Unit: jrn.Unit, Entries: jrn.Entries, Checkpoint: checkpoint.Note,
		Prove: func(index, size uint64) ([]journal.Hash, error) { return jrn.Prove(index, size) },
	}, unitMAC, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := report.VerifyCertificate(text, jrn.Info().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return text, c
}

// TestCertificateOfSecurity: what a recipe does for security, and what it accepts, stands
// in the certificate; so do the hash of the unit's token and its public key.
func TestCertificateOfSecurity(t *testing.T) {
	for _, name := range []string{"esp32", "esp32p4", "esp32c2", "esp32c61"} {
		job := fullJob(t, name, "release") // made outside the bubble
		inBubble(t, name, func(t *testing.T) {
			b := newBench(t)
			jrn, ok := b.jrn.(*journal.Journal)
			if !ok {
				t.Fatal("the bench has no real journal")
			}
			m := model(t, name)
			wantPass(t, b.run(t.Context(), b.board(espsim.Options{Model: m}), job))
			_, c := certify(t, jrn)
			s, meta := c.Statement, b.metas(unitMAC)[0]
			if s.Security == nil {
				t.Fatal("the certificate says nothing of security")
			}
			got, r := *s.Security, job.Recipe
			if got.SecureBoot != string(r.SecureBoot.Scheme) || got.FlashEncryption != string(r.Scheme()) || got.ECIES != r.ECIES || got.UnitData != sample.UnitPartition {
				t.Errorf("%+v", got)
			}
			if got.WeakECDSA != (m.SecureBoot.WeakECDSA && r.SecureBoot.Scheme.ECDSA()) || (got.SDMErrata != "") != (m.Lockdown.ReleaseTrap != "") {
				t.Errorf("what was accepted: %+v", got)
			}
			if len(got.Digests) != len(r.SecureBootKeys) || got.Digests[0] != keystore.Digest(r.SecureBootKeys[0].Digest()) {
				t.Errorf("digests %v", got.Digests)
			}
			if s.OTATokenSHA256 != meta.OTATokenSHA256.String() || s.ECIESPublicKey != hex.EncodeToString(meta.ECIESPublicKey) || (s.ECIESPublicKey != "") != r.ECIES {
				t.Errorf("token %s, ECIES key %s; the store has %v and %x", s.OTATokenSHA256, s.ECIESPublicKey, meta.OTATokenSHA256, meta.ECIESPublicKey)
			}
		})
	}
}

// TestEveryEntryNamesTheOperator: of a run that passes, of one that is refused, of
// one that goes on after a failure.
func TestEveryEntryNamesTheOperator(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newBench(t)
		jrn, ok := b.jrn.(*journal.Journal)
		if !ok {
			t.Fatal("the bench has no real journal")
		}
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "hybrid")
		ctx, stop := context.WithCancel(t.Context())
		b.at["flash"] = stop
		if r := b.run(ctx, c, job); r.ExitCode() == 0 {
			t.Fatal("the stopped run passed")
		}
		wantPass(t, b.again(c, job))
		if r := b.again(c, job); !r.FinishedBefore {
			t.Fatalf("%+v", r)
		}
		kinds, steps := map[journal.Kind]int{}, map[string]bool{}
		for e, err := range jrn.Entries(0, journal.All) { // also those before the unit is known
			if err != nil {
				t.Fatal(err)
			}
			if e.Step == journal.StepInit {
				continue // nobody's run
			}
			var p struct{ Operator string }
			if err := json.Unmarshal(e.Payload, &p); err != nil {
				t.Fatal(err)
			}
			if p.Operator != "anna" {
				t.Errorf("entry %d, %s of %s: operator %q", e.Index, e.Kind, e.Step, p.Operator)
			}
			kinds[e.Kind]++
			steps[e.Step] = true
		}
		if kinds[journal.KindVerdict] != 3 || kinds[journal.KindIntent] < 10 || kinds[journal.KindObserved] < 10 || len(steps) < 10 {
			t.Errorf("too little was seen: %v, %v", kinds, steps)
		}
	})
}
