package provision_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
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
		s, r := c.Statement, metas[0].Receipt
		if s.KeyVersion != version || s.KeyRef != r.Ref || s.KeyStore != r.Store || s.KeyFingerprint != metas[0].Fingerprint.String() || s.KeyRef == "" {
			t.Errorf("version %d, ref %q, store %q, key %q; the store says %+v", s.KeyVersion, s.KeyRef, s.KeyStore, s.KeyFingerprint, metas[0])
		}
		if !strings.Contains(string(text), `"key_version":7`) {
			t.Error("the text has no key_version")
		}
	})
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
