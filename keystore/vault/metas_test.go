package vault

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func allMetas(t *testing.T, s *Store) (metas []keystore.Meta, err error) {
	t.Helper()
	for m, e := range keystore.Metas(t.Context(), s) {
		if e != nil {
			return metas, e
		}
		metas = append(metas, m)
	}
	return metas, nil
}

// TestMetas: the auditor's policy alone is enough, and what is asked for with it
// is nothing that holds a key. The roles that may not list are told so.
func TestMetas(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	station := x.open(t, RoleStation)
	auditor, l := x.broken(t, RoleAuditor, 20*time.Second)
	ctx := t.Context()
	var want []string
	// The last byte of a MAC decides where a unit lies, and not the order.
	for _, unit := range []struct{ high, low byte }{{1, 9}, {1, 200}, {2, 3}, {3, 9}} {
		mac := keystoretest.Simulated(unit.low)
		mac[3] = unit.high
		r := keystoretest.NewRecord(t, mac)
		if _, err := station.Create(ctx, r); err != nil {
			t.Fatal(err)
		}
		for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
			if _, err := station.AddState(ctx, r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
				t.Fatal(err)
			}
		}
		metas, err := station.List(ctx, mac)
		if err != nil || len(metas) != 1 {
			t.Fatalf("%+v, %v", metas, err)
		}
		want = append(want, fmt.Sprintf("%+v", metas[0]))
	}
	// A claim whose record is still to come is told of, as List does.
	reserved := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	reserved.Unit[3] = 9
	if err := station.Reserve(ctx, reserved.Meta()); err != nil {
		t.Fatal(err)
	}

	l.breakAt(nil)
	metas, err := allMetas(t, auditor)
	if err != nil || len(metas) != 5 || metas[4].Fingerprint != reserved.Fingerprint || metas[4].Receipt.Ref != "" {
		t.Fatalf("%+v, %v", metas, err)
	}
	for i, w := range want {
		if got := fmt.Sprintf("%+v", metas[i]); got != w {
			t.Errorf("record %d is %s, want %s", i, got, w)
		}
	}
	harmless := regexp.MustCompile(`^(GET /v1/kv/metadata/units(/[0-9a-f]{2})?` +
		`|GET /v1/kv/data/units/[^/]+/[^/]+/claim/[0-9]+` +
		`|GET /v1/kv/subkeys/units/[^/]+/[^/]+/[0-9a-f]{64}` +
		`|GET /v1/kv/data/units/[^/]+/[^/]+/[0-9a-f]{64}/state/[0-9]+` +
		`|PUT /v1/auth/token/renew-self)$`)
	for _, sent := range l.sent {
		if !harmless.MatchString(sent) {
			t.Errorf("asked for %s", sent)
		}
	}
	// The fence, the names of five units in four shards, six for each finished
	// unit, four for the claim: two claims, no record, no state.
	if n := 1 + 1 + 4 + 4*6 + 4; len(l.sent) != n {
		t.Errorf("%d requests, want %d: %s", len(l.sent), n, strings.Join(l.sent, "\n"))
	}

	for _, role := range []Role{RoleStation, RoleOTA} {
		if metas, err := allMetas(t, x.open(t, role)); !errors.Is(err, ErrDenied) || len(metas) != 0 {
			t.Errorf("%s: %+v, %v", role, metas, err)
		}
	}
}

// TestMetasOfAStaleServer: a server that lags proves that it leads before its
// lists are believed, since a record that is not listed is a finding of the audit.
func TestMetasOfAStaleServer(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	station := x.open(t, RoleStation)
	auditor, l := x.broken(t, RoleAuditor, 20*time.Second)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := station.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wrote := false
	l.breakAt(func(req *http.Request) *fault {
		if wrote = wrote || req.Method == http.MethodPut; wrote {
			return nil
		}
		return &fault{name: "stale", status: http.StatusNotFound}
	})
	if metas, err := allMetas(t, auditor); err != nil || len(metas) != 1 || metas[0].Fingerprint != r.Fingerprint {
		t.Errorf("%+v, %v", metas, err)
	}
}

// TestMetasOfADamagedUnit: the list ends with what is wrong and where; it is never
// shorter than the store without a word.
func TestMetasOfADamagedUnit(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	station, auditor := x.open(t, RoleStation), x.open(t, RoleAuditor)
	var made []keystore.Record
	for i := range byte(3) {
		made = append(made, keystoretest.NewRecord(t, keystoretest.Simulated(i)))
		if _, err := station.Create(t.Context(), made[i]); err != nil {
			t.Fatal(err)
		}
	}
	x.srv.Must(t, http.MethodDelete, "kv/data/"+recordPath(made[1].Unit, made[1].Fingerprint), nil)
	metas, err := allMetas(t, auditor)
	if !errors.Is(err, keystore.ErrDamaged) || !strings.Contains(err.Error(), made[1].Unit.String()) || len(metas) != 1 || metas[0].Unit != made[0].Unit {
		t.Errorf("%+v, %v", metas, err)
	}
}
