package vault

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/escrow"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

var (
	_ escrow.Depot   = (*Store)(nil)
	_ escrow.Custody = (*Store)(nil)
	_ escrow.Teller  = (*Store)(nil)
)

// TestEscrow: a station with its own role seals while Vault is sealed, uploads
// when it is back, and the custodian with his own brings the keys to their place:
// from the spool, or from the uploads when the station's disk is lost.
func TestEscrow(t *testing.T) {
	x := newSite(t, vaulttest.Raft(t), "kv", true)
	scfg := x.config(t, x.token(t, RoleStation))
	scfg.Patience = Duration(3 * time.Second)
	station, err := Open(t.Context(), scfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = station.Close() }()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	cfg := escrow.Config{Dir: t.TempDir(), Recipients: []string{id.Recipient().String()}, Retry: time.Hour}
	open := func() *escrow.Store {
		s, err := escrow.Open(t.Context(), cfg, opener(station))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	spool, uploads, claimed := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(2)), keystoretest.NewRecord(t, keystoretest.Simulated(3))
	if err := s.Reserve(t.Context(), claimed.Meta()); err != nil {
		t.Fatal(err)
	}
	x.srv.Seal(t)
	for _, r := range []keystore.Record{spool, uploads, claimed} {
		receipt, err := s.Create(t.Context(), r)
		if err != nil || !strings.HasPrefix(receipt.Ref, escrow.RefPrefix) {
			t.Fatalf("%+v, %v", receipt, err)
		}
		for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
			if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
				t.Fatal(err)
			}
		}
	}
	x.srv.Unseal(t)
	wantHealth(t, station, Ready, "")
	for i := range 2 {
		rep, err := s.Sync(t.Context())
		if err != nil || rep.Waiting != 3 || rep.Uploaded != 3*(1-i) || len(rep.Findings) > 0 {
			t.Fatalf("sync %d: %+v, %v", i, rep, err)
		}
	}
	for _, r := range []keystore.Record{spool, uploads, claimed} { // to others these are no units without a burn
		metas, err := station.List(t.Context(), r.Unit)
		if err != nil || len(metas) != 1 || metas[0].Current() != keystore.MayBeInSilicon || metas[0].Receipt != (keystore.Receipt{}) {
			t.Errorf("claim of unit %s: %+v, %v", r.Unit, metas, err)
		}
	}
	s = open() // a station that does not remember what it uploaded
	if rep, err := s.Sync(t.Context()); err != nil || rep.Waiting != 3 || len(rep.Findings) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if err := station.PutSealed(t.Context(), spool.Unit, spool.Fingerprint, []byte("another")); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("another sealed record at the same place: %v", err)
	}
	if _, _, err := station.ReadSealed(t.Context(), stationName, spool.Unit, spool.Fingerprint); !errors.Is(err, ErrDenied) {
		t.Errorf("the station reads what it sealed: %v", err)
	}

	custodian := x.open(t, RoleCustodian)
	seen := 0
	err = custodian.EachSealed(t.Context(), func(string, chip.MAC, keystore.Fingerprint) error { seen++; return nil })
	if err != nil || seen != 3 {
		t.Fatalf("%d sealed records, %v", seen, err)
	}
	rep, err := escrow.Drain(t.Context(), escrow.Uploads(custodian), []age.Identity{id}, custodian, time.Now)
	if err != nil || rep.Stored != 3 || len(rep.Findings) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if again, err := escrow.Drain(t.Context(), escrow.Uploads(custodian), []age.Identity{id}, custodian, time.Now); err != nil || again.Stored != 0 || len(again.Findings) > 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	// The spool has them too, and the custodian may take it as well.
	src, err := escrow.Spool(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if rep, err = escrow.Drain(t.Context(), src, []age.Identity{id}, custodian, time.Now); err != nil || rep.Stored != 3 || len(rep.Findings) > 0 {
		t.Errorf("the same from the spool: %+v, %v", rep, err)
	}
	ota := x.open(t, RoleOTA)
	for _, r := range []keystore.Record{spool, uploads, claimed} {
		got, err := ota.Load(t.Context(), r.Unit, r.Fingerprint)
		if err != nil || !got.Key.Equal(r.Key) {
			t.Errorf("unit %s: %v", r.Unit, err)
		}
		metas, err := s.List(t.Context(), r.Unit)
		if err != nil || len(metas) != 1 || metas[0].Current() != keystore.InSilicon || metas[0].Receipt.Warning != "" {
			t.Errorf("unit %s: %+v, %v", r.Unit, metas, err)
		}
	}
	if _, err := custodian.Load(t.Context(), spool.Unit, spool.Fingerprint); !errors.Is(err, ErrDenied) {
		t.Errorf("the custodian reads a key: %v", err)
	}
}

// opener gives a store that is open already, and stays so.
func opener(s *Store) escrow.Opener {
	return func(ctx context.Context) (keystore.Store, error) {
		_, err := s.Info(ctx)
		return s, err
	}
}

// TestTransitSigner: a station signs with its own key and no other, and an old
// version of it still signs after a rotation.
func TestTransitSigner(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	admin, err := OpenAdmin(t.Context(), x.config(t, x.srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	o := SetupOptions{TestStore: true, JournalKeys: true, Stations: []AppRoleOptions{{Name: stationName, CIDRs: loopback}, {Name: "line2", CIDRs: loopback}}}
	if _, err := admin.Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if rep, err := admin.Setup(t.Context(), o); err != nil || len(rep.Changes) != 0 {
		t.Errorf("again: %+v, %v", rep, err)
	}
	cfg := x.config(t, x.token(t, RoleStation))
	cfg.Patience = Duration(time.Second)
	signerOf := func(cfg Config) *Signer {
		t.Helper()
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		signer, err := s.Signer()
		if err != nil {
			t.Fatal(err)
		}
		return signer
	}
	signer := signerOf(cfg)
	keys, err := signer.PublicKeys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	x.srv.Must(t, "POST", "transit/keys/kv-station-line1/rotate", nil)
	msg := []byte("provisiond/journal/…\n")
	sig, err := signer.Sign(t.Context(), 1, msg)
	if err != nil || !ed25519.Verify(keys[0], msg, sig) {
		t.Errorf("%v", err)
	}
	if more, err := signer.PublicKeys(t.Context()); err != nil || len(more) != 2 || !more[0].Equal(keys[0]) {
		t.Errorf("%v, %v", more, err)
	}
	cfg.Station = "line2" // with line1's token
	other := signerOf(cfg)
	if _, err := other.Sign(t.Context(), 1, msg); !errors.Is(err, ErrDenied) {
		t.Errorf("with another station's key: %v", err)
	}
	if _, err := other.PublicKeys(t.Context()); !errors.Is(err, ErrDenied) {
		t.Errorf("another station's public key: %v", err)
	}
	x.srv.Seal(t)
	if _, err := signer.Sign(t.Context(), 1, msg); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("while Vault is sealed: %v", err)
	}
}

func FuzzParseTransit(f *testing.F) {
	f.Add([]byte(`{"data":{"type":"ed25519","latest_version":1,"keys":{"1":{"public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}}}`))
	f.Add([]byte(`{"data":{"signature":"vault:v1:AAAA"}}`))
	f.Add([]byte(`{"data":{"type":"ecdsa-p256","latest_version":1,"keys":{"1":{"public_key":"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n"}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if keys, err := parseTransitKey(b); err == nil {
			for _, k := range keys {
				if len(k) != ed25519.PublicKeySize {
					t.Error(fmt.Errorf("a key of %d bytes", len(k)))
				}
			}
		}
		if sig, err := parseSignature(b, 1); err == nil && len(sig) == 0 {
			t.Error("an empty signature")
		}
		if v, pub, err := parsePublicKey(b, 0); err == nil && (v < 1 || pub == nil) {
			t.Errorf("version %d, key %T", v, pub)
		}
	})
}
