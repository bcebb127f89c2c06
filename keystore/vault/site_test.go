package vault

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is one keystore on a real server, with a token per role.
type site struct {
	srv   *vaulttest.Server
	mount string
	dir   string
}

const stationName = "line1"

// loopback is where tests log in from.
var loopback = []string{"127.0.0.0/8"}

func newSite(t testing.TB, srv *vaulttest.Server, mount string, test bool) *site {
	t.Helper()
	x := &site{srv: srv, mount: mount, dir: t.TempDir()}
	admin, err := OpenAdmin(t.Context(), x.config(t, srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	// Set up again while a young cluster is still choosing its leader: that is idempotent.
	vaulttest.Eventually(t, 2*time.Minute, "the site is set up", func() error {
		_, err := admin.Setup(t.Context(), SetupOptions{
			TestStore: test, Stations: []AppRoleOptions{{Name: stationName, CIDRs: loopback}},
			OTA: &AppRoleOptions{CIDRs: loopback}, Auditor: &AppRoleOptions{CIDRs: loopback},
		})
		return err
	})
	return x
}

// config logs in with a token from a file.
func (x *site) config(t testing.TB, token string) Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{
		Addresses: x.srv.Addrs(), CACert: x.srv.CA.File, Mount: x.mount, Station: stationName,
		Login: Login{TokenFile: file}, Patience: Duration(30 * time.Second),
	}
}

// token makes a token with one role's policy and nothing else.
func (x *site) token(t testing.TB, role Role) string {
	t.Helper()
	return x.tokenWith(t, PolicyName(role, PolicyParams{Mount: x.mount, Station: stationName}))
}

func (x *site) tokenWith(t testing.TB, policy string) string {
	t.Helper()
	out := x.srv.Must(t, http.MethodPost, "auth/token/create", map[string]any{
		"policies": []string{policy}, "no_default_policy": true, "period": "1h",
	})
	return out["auth"].(map[string]any)["client_token"].(string)
}

func (x *site) open(t testing.TB, role Role) *Store {
	t.Helper()
	s, err := Open(t.Context(), x.config(t, x.token(t, role)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// roles is a keystore.Store that does everything a station may do as a station,
// and the rest with the role that may.
type roles struct {
	*Store  // station
	ota     *Store
	auditor *Store
	x       *site
}

func (r *roles) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	return r.ota.Load(ctx, unit, fp)
}

func (r *roles) Units(ctx context.Context) iter.Seq2[chip.MAC, error] { return r.auditor.Units(ctx) }

func (r *roles) Metas(ctx context.Context) iter.Seq2[keystore.Meta, error] {
	return r.auditor.Metas(ctx)
}

func (r *roles) Close() error {
	_, _ = r.ota.Close(), r.auditor.Close()
	return r.Store.Close()
}

func (x *site) roles(t testing.TB) *roles {
	return &roles{x.open(t, RoleStation), x.open(t, RoleOTA), x.open(t, RoleAuditor), x}
}

// TestConformance passes the suite with the station's role for what a station
// may do, the OTA role for Load and the auditor's for Units and Metas.
func TestConformance(t *testing.T) {
	srv := vaulttest.New(t)
	var mounts atomic.Int32
	keystoretest.Run(t, keystoretest.Harness{
		New: func(t *testing.T, test bool) keystore.Store {
			return newSite(t, srv, fmt.Sprintf("kv%d", mounts.Add(1)), test).roles(t)
		},
		Reopen: func(t *testing.T, s keystore.Store) keystore.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return s.(*roles).x.roles(t)
		},
	})
}

// TestListWithEveryRole: what a role sees without reading keys is the record's Meta.
func TestListWithEveryRole(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	station := x.open(t, RoleStation)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	receipt, err := station.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := r.Meta()
	want.Receipt = receipt
	for _, role := range []Role{RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor} {
		metas, err := x.open(t, role).List(t.Context(), r.Unit)
		if err != nil || len(metas) != 1 || fmt.Sprintf("%+v", metas[0]) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %+v, %v, want %+v", role, metas, err, want)
		}
	}
	if _, err := station.Load(t.Context(), r.Unit, r.Fingerprint); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("a station loads: %v", err)
	}
}
