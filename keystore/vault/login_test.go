package vault

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// appRole gives a configuration that logs in with an AppRole, and a function
// that puts a new wrapped secret id in place.
func (x *site) appRole(t *testing.T, cache bool) (Config, func(ttl time.Duration)) {
	t.Helper()
	admin, err := OpenAdmin(t.Context(), x.config(t, x.token(t, RoleAdmin)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	dir := t.TempDir()
	cfg := x.config(t, "unused")
	cfg.Patience = Duration(2 * time.Second)
	cfg.Login = Login{AppRole: &AppRole{RoleIDFile: filepath.Join(dir, "role"), SecretIDFile: filepath.Join(dir, "secret")}}
	if cache {
		cfg.Login.AppRole.TokenCache = filepath.Join(dir, "token")
	}
	renew := func(ttl time.Duration) {
		t.Helper()
		c, err := admin.SecretID(t.Context(), RoleStation, stationName, ttl)
		if err != nil {
			t.Fatal(err)
		}
		write(t, cfg.Login.AppRole.RoleIDFile, c.RoleID+"\n")
		write(t, cfg.Login.AppRole.SecretIDFile, c.SecretID+"\n")
	}
	renew(time.Minute)
	return cfg, renew
}

func TestAppRole(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	cfg, renew := x.appRole(t, false)
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, ErrDenied) {
		t.Errorf("load: %v", err)
	}

	// The secret id is used up.
	if _, err := Open(t.Context(), cfg); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "put a new one there") || !strings.Contains(err.Error(), "revoke") {
		t.Errorf("a second login with the same secret id: %v", err)
	}
	// The token is revoked: the next use notices, and a new secret id helps.
	x.srv.Must(t, http.MethodPost, "auth/token/revoke", map[string]any{"token": s.c.session.now()})
	if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("with a revoked token: %v", err)
	}
	if h := s.Health(t.Context()); h.State != TokenInvalid || !strings.Contains(h.Words, "login") {
		t.Errorf("health with a revoked token: %v", h)
	}
	renew(time.Minute)
	if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil {
		t.Errorf("after a new login: %v", err)
	}

	t.Run("expired wrap", func(t *testing.T) {
		renew(time.Second)
		vaulttest.Eventually(t, 10*time.Second, "the wrapping token expires", func() error {
			b, _ := os.ReadFile(cfg.Login.AppRole.SecretIDFile)
			status, body, err := x.srv.Do(x.srv.Node, "", http.MethodPut, "sys/wrapping/lookup", map[string]any{"token": strings.TrimSpace(string(b))})
			if err == nil && status < 300 {
				return errors.New("still there")
			}
			_ = body
			return err
		})
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%v", err)
		}
	})
	t.Run("slipped in", func(t *testing.T) {
		// A wrapping token of something else, which somebody put in the file's place.
		write(t, cfg.Login.AppRole.SecretIDFile, x.wrapped(t, "auth/token/create"))
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "somebody changed the file") {
			t.Errorf("%v", err)
		}
	})
	t.Run("wrong role", func(t *testing.T) {
		renew(time.Minute)
		write(t, cfg.Login.AppRole.RoleIDFile, "00000000-0000-0000-0000-000000000000")
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "do not belong together") {
			t.Errorf("%v", err)
		}
	})
	t.Run("wrong address", func(t *testing.T) {
		x.srv.Must(t, http.MethodPost, "auth/approle/role/kv-station-line1", map[string]any{"secret_id_bound_cidrs": []string{"10.0.0.0/8"}, "token_bound_cidrs": []string{"10.0.0.0/8"}})
		renew(time.Minute)
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "CIDR") {
			t.Errorf("%v", err)
		}
	})
	t.Run("mode", func(t *testing.T) {
		renew(time.Minute)
		if err := os.Chmod(cfg.Login.AppRole.SecretIDFile, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("%v", err)
		}
	})
}

// wrapped gives the wrapping token of an answer.
func (x *site) wrapped(t testing.TB, path string) string {
	t.Helper()
	admin, err := OpenAdmin(t.Context(), x.config(t, x.srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	end, _ := admin.c.end()
	end.SetWrappingLookupFunc(func(string, string) string { return "1m" })
	secret, err := end.Logical().WriteWithContext(t.Context(), path, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	return secret.WrapInfo.Token
}

// TestTokenCache: with a cache a restart needs no new secret id.
func TestTokenCache(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	cfg, _ := x.appRole(t, true)
	for range 3 {
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
	st, err := os.Stat(cfg.Login.AppRole.TokenCache)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := os.Chmod(cfg.Login.AppRole.TokenCache, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a cache that others read: %v", err)
	}
}

func TestCertificate(t *testing.T) {
	srv := vaulttest.New(t)
	x := newSite(t, srv, "kv", true)
	certFile, keyFile := srv.CA.Issue(t, "line1")
	ca, err := os.ReadFile(srv.CA.File)
	if err != nil {
		t.Fatal(err)
	}
	srv.Must(t, http.MethodPost, "sys/auth/cert", map[string]any{"type": "cert"})
	srv.Must(t, http.MethodPost, "auth/cert/certs/station", map[string]any{
		"certificate": string(ca), "allowed_common_names": "line1", "token_policies": "kv-station-line1", "token_no_default_policy": true, "token_period": "1h",
	})
	cfg := x.config(t, "unused")
	cfg.Patience = Duration(time.Second)
	cfg.Login = Login{Cert: &Cert{CertFile: certFile, KeyFile: keyFile, Role: "station"}}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	// A certificate logs in again by itself.
	srv.Must(t, http.MethodPost, "auth/token/revoke", map[string]any{"token": s.c.session.now()})
	if _, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil {
		t.Errorf("after a revocation: %v", err)
	}
	// So does a write that meets the revocation.
	srv.Must(t, http.MethodPost, "auth/token/revoke", map[string]any{"token": s.c.session.now()})
	if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(2))); err != nil {
		t.Errorf("create after a revocation: %v", err)
	}
	otherCert, otherKey := srv.CA.Issue(t, "mallory")
	cfg.Login.Cert = &Cert{CertFile: otherCert, KeyFile: otherKey, Role: "station"}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another certificate: %v", err)
	}
}

// TestEnvironment: three variables count, and a token, a header or a proxy in
// the environment does not.
func TestEnvironment(t *testing.T) {
	srv := vaulttest.New(t)
	x := newSite(t, srv, "kv", true)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "token"), x.token(t, RoleStation))
	file := write(t, filepath.Join(dir, "vault.yaml"), "mount: kv\nstation: line1\nlogin:\n  token_file: token\n")
	t.Setenv("VAULT_ADDR", srv.Addr)
	t.Setenv("VAULT_CACERT", srv.CA.File)
	t.Setenv("VAULT_TOKEN", "wrong")
	t.Setenv("VAULT_HEADERS", `{"X-Other":"1"}`)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("VAULT_PROXY_ADDR", "http://127.0.0.1:1")
	t.Setenv("VAULT_MAX_RETRIES", "9")
	s, err := OpenFlag(t.Context(), Prefix+file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	l := &line{next: s.c.web.Transport}
	var header http.Header
	l.breakAt(func(req *http.Request) *fault { header = req.Header.Clone(); return nil })
	s.c.web.Transport = l
	if _, err := s.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	if header.Get("X-Vault-Token") == "wrong" || header.Get("X-Other") != "" || header.Get("X-Vault-Namespace") != "" {
		t.Errorf("headers: %v", header)
	}
	if l.breakAt(func(*http.Request) *fault { return &faults[7] }); l.count != 0 {
		t.Fatal("count")
	}
	s.c.cfg.Patience = Duration(time.Millisecond) // so that there is one try only
	if _, err := s.Info(t.Context()); !errors.Is(err, keystore.ErrUnavailable) || l.count != 1 {
		t.Errorf("%d requests, %v", l.count, err)
	}
}

// TestTicket: a rework ticket loads the key of its unit, and no other.
func TestTicket(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s := x.open(t, RoleStation)
	mine, other := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(2))
	for _, r := range []keystore.Record{mine, other} {
		if _, err := s.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := OpenAdmin(t.Context(), x.config(t, x.token(t, RoleAdmin)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	if _, err := admin.Ticket(t.Context(), mine.Unit, MaxTicket+1); err == nil {
		t.Error("a ticket for longer than the longest")
	}
	token, err := admin.Ticket(t.Context(), mine.Unit, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	rework, err := Open(t.Context(), x.config(t, token))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rework.Close() }()
	metas, err := rework.List(t.Context(), mine.Unit)
	if err != nil || len(metas) != 1 {
		t.Fatalf("%+v, %v", metas, err)
	}
	if got, err := rework.Load(t.Context(), mine.Unit, metas[0].Fingerprint); err != nil || !got.Key.Equal(mine.Key) {
		t.Errorf("load: %v", err)
	}
	if _, err := rework.Load(t.Context(), other.Unit, other.Fingerprint); !errors.Is(err, ErrDenied) {
		t.Errorf("load of another unit: %v", err)
	}
	if _, err := rework.List(t.Context(), other.Unit); !errors.Is(err, ErrDenied) {
		t.Errorf("list of another unit: %v", err)
	}
}
