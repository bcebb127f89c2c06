package vault

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// TestCustodyRequests: what stands between key and burn. After Reserve, create
// and confirm are one write and one read; without it, and after it was used up,
// the claim is written and read as well.
func TestCustodyRequests(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 20*time.Second)
	sent := func(work func() error) (claims, records int) {
		t.Helper()
		l.breakAt(nil)
		if err := work(); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, r := range l.sent {
			if strings.Contains(r, "/claim/") {
				claims++
			} else {
				records++
			}
		}
		return claims, records
	}
	want := func(what string, claims, records int) func(gotClaims, gotRecords int) {
		return func(gotClaims, gotRecords int) {
			t.Helper()
			if gotClaims != claims || gotRecords != records {
				t.Errorf("%s: %d requests for claims and %d for records, want %d and %d", what, gotClaims, gotRecords, claims, records)
			}
		}
	}
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	create := func() error { _, err := s.Create(t.Context(), r); return err }
	confirm := func() error { _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); return err }
	want("reserve", 2, 0)(sent(func() error { return s.Reserve(t.Context(), r.Meta()) }))
	want("create", 0, 1)(sent(create))
	want("confirm", 0, 1)(sent(confirm))
	want("confirm again", 1, 1)(sent(confirm))
	r = keystoretest.NewRecord(t, keystoretest.Simulated(2))
	want("create without a reservation", 1, 1)(sent(create))
	want("confirm without a reservation", 1, 1)(sent(confirm))
}

// TestBurnWantsTheClaim: a claim that vanishes after Confirm (a snapshot that was
// restored, somebody who deletes) is missed before the burn, not after it.
func TestBurnWantsTheClaim(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s := x.open(t, RoleStation)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if err := s.Reserve(t.Context(), r.Meta()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil {
		t.Fatal(err)
	}
	x.srv.Must(t, http.MethodDelete, "kv/metadata/"+claimPath(r.Unit, 1), nil)
	burn := keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}
	if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, burn); !errors.Is(err, keystore.ErrNotFound) || !strings.Contains(err.Error(), "no claim names it") {
		t.Errorf("burn: %v", err)
	}
	if metas, err := x.open(t, RoleAuditor).c.list(t.Context(), recordPath(r.Unit, r.Fingerprint)+"/"); err != nil || len(metas) != 0 {
		t.Errorf("a state was written: %q, %v", metas, err)
	}
	if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("confirm: %v", err)
	}
}

// TestStaleList: a server that lags shows a unit without its key, or a key
// without its burn. Whoever believes List is stopped by his next write.
func TestStaleList(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 20*time.Second)
	ctx := t.Context()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(ctx, r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(ctx, r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}); err != nil {
		t.Fatal(err)
	}
	lags := func(part string) {
		wrote := false
		l.breakAt(func(req *http.Request) *fault {
			wrote = wrote || req.Method == http.MethodPut
			if !wrote && strings.Contains(req.URL.Path, part) {
				return &fault{name: "stale", status: http.StatusNotFound}
			}
			return nil
		})
	}
	lags("/claim/")
	if metas, err := s.List(ctx, r.Unit); err != nil || len(metas) != 0 {
		t.Fatalf("%+v, %v", metas, err)
	}
	other := keystoretest.NewRecord(t, r.Unit)
	if err := s.Reserve(ctx, other.Meta()); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("reserve: %v", err)
	}
	lags("/claim/")
	if _, err := s.Create(ctx, other); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("create: %v", err)
	}
	lags("/state/")
	if metas, err := s.List(ctx, r.Unit); err != nil || len(metas) != 1 || metas[0].MayBeInSilicon() {
		t.Fatalf("%+v, %v", metas, err)
	}
	if _, err := s.AddState(ctx, r.Unit, r.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: r.Job}); !errors.Is(err, keystore.ErrState) {
		t.Errorf("supersede: %v", err)
	}
}

// TestStaleConflict: no board is sent away because a server does not know yet
// that the key in its way was given up.
func TestStaleConflict(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, 20*time.Second)
	first, second := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(t.Context(), first.Unit, first.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: first.Job}); err != nil {
		t.Fatal(err)
	}
	fenced := false
	l.breakAt(func(req *http.Request) *fault {
		fenced = fenced || strings.HasSuffix(req.URL.Path, "renew-self")
		if !fenced && strings.Contains(req.URL.Path, "/state/") {
			return &fault{name: "stale", status: http.StatusNotFound}
		}
		return nil
	})
	if err := s.Reserve(t.Context(), second.Meta()); err != nil || !fenced {
		t.Errorf("asked the server to write: %v; %v", fenced, err)
	}
}

func TestReservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reservations
		unit, fp := keystoretest.Simulated(1), keystore.Fingerprint{1}
		if r.forCreate(unit, fp) || r.forConfirm(unit, fp) {
			t.Error("there is nothing yet")
		}
		r.add(unit, fp)
		if r.forCreate(unit, keystore.Fingerprint{2}) || r.forConfirm(unit, fp) {
			t.Error("another key, or a confirm before the create")
		}
		if !r.forCreate(unit, fp) || r.forCreate(unit, fp) || !r.forConfirm(unit, fp) || r.forConfirm(unit, fp) {
			t.Error("it is good for one Create and one Confirm")
		}
		r.add(unit, fp)
		time.Sleep(reservationLife)
		if r.forCreate(unit, fp) {
			t.Error("it is old")
		}
		for i := range 3 * maxReservations {
			r.add(chip.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, fp)
		}
		if len(r.m) > maxReservations {
			t.Errorf("%d are held", len(r.m))
		}
	})
}
