package vault

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// wantHealth asks until the state is there: servers change theirs in the background.
func wantHealth(t *testing.T, s *Store, want HealthState, word string) {
	t.Helper()
	vaulttest.Eventually(t, 5*time.Minute, "health "+string(want), func() error {
		h := s.Health(t.Context())
		if h.State != want || !strings.Contains(h.Words, word) {
			return fmt.Errorf("it is %v", h)
		}
		if err := h.Err(); h.Usable() != (err == nil) || err != nil && !errors.Is(err, keystore.ErrUnavailable) {
			return fmt.Errorf("error of %v: %w", h, err)
		}
		return nil
	})
}

// impatient gives a store that does not wait for a server to come back.
func (x *site) impatient(t *testing.T, role Role) *Store {
	t.Helper()
	cfg := x.config(t, x.token(t, role))
	cfg.Patience, cfg.Timeout = Duration(300*time.Millisecond), Duration(time.Second)
	var s *Store
	vaulttest.Eventually(t, 5*time.Minute, "the store opens", func() (err error) { // on a busy machine not at once
		s, err = Open(t.Context(), cfg)
		return err
	})
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestHealthOfOneServer(t *testing.T) {
	srv := vaulttest.Raft(t)
	x := newSite(t, srv, "kv", true)
	s := x.impatient(t, RoleStation)
	wantHealth(t, s, Ready, "takes keys")

	srv.Seal(t)
	wantHealth(t, s, Sealed, "vault operator unseal")
	_, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(1)))
	if !errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, keystore.ErrUnknownOutcome) || !strings.Contains(err.Error(), "unseal") {
		t.Errorf("create while sealed: %v", err)
	}
	srv.Unseal(t)
	wantHealth(t, s, Ready, "")
	if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(1))); err != nil {
		t.Errorf("create after the unseal: %v", err)
	}

	srv.Must(t, http.MethodPost, "sys/quotas/rate-limit/all", map[string]any{"rate": 0.001, "path": "kv/"})
	wantHealth(t, s, RateLimited, "quota")
	srv.Must(t, http.MethodDelete, "sys/quotas/rate-limit/all", nil)
	wantHealth(t, s, Ready, "")

	srv.Must(t, http.MethodPost, "auth/token/revoke", map[string]any{"token": s.c.session.now()})
	wantHealth(t, s, TokenInvalid, "login")

	s = x.impatient(t, RoleStation)
	srv.Must(t, http.MethodDelete, "sys/policies/acl/kv-station-line1", nil)
	wantHealth(t, s, TokenInvalid, "keystore policy")

	srv.Kill()
	wantHealth(t, s, Unreachable, "network")
	_, err = s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(2)))
	if !errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, keystore.ErrUnknownOutcome) || !strings.Contains(err.Error(), "check the network") {
		t.Errorf("create without a server: %v", err)
	}
}

// TestHealthOfTheAuditDevice: a full disk is /dev/full.
func TestHealthOfTheAuditDevice(t *testing.T) {
	srv := vaulttest.New(t)
	x := newSite(t, srv, "kv", true)
	s := x.impatient(t, RoleStation)
	pipe := filepath.Join(t.TempDir(), "audit")
	if err := os.Symlink("/dev/null", pipe); err != nil {
		t.Fatal(err)
	}
	srv.EnableAudit(t, pipe)
	wantHealth(t, s, Ready, "")
	// The log is rotated onto a full disk.
	if err := errors.Join(os.Remove(pipe), os.Symlink("/dev/full", pipe)); err != nil {
		t.Fatal(err)
	}
	srv.Signal(syscall.SIGHUP)
	wantHealth(t, s, AuditFailing, "audit device")
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), r); !errors.Is(err, keystore.ErrUnknownOutcome) && !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "audit") {
		t.Errorf("create: %v", err)
	}
	if err := errors.Join(os.Remove(pipe), os.Symlink("/dev/null", pipe)); err != nil {
		t.Fatal(err)
	}
	srv.Signal(syscall.SIGHUP)
	wantHealth(t, s, Ready, "")
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Errorf("create after the disk has room: %v", err)
	}
	metas, err := s.List(t.Context(), r.Unit)
	if err != nil || len(metas) != 1 {
		t.Errorf("%+v, %v", metas, err)
	}
}

func TestHealthBeforeThereIsAKeystore(t *testing.T) {
	srv := vaulttest.New(t)
	x := &site{srv: srv, mount: "kv"}
	h, err := CheckHealth(t.Context(), x.config(t, srv.Root))
	if err != nil || h.State != NoKeystore || !strings.Contains(h.Words, "keystore init") {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := Open(t.Context(), x.config(t, srv.Root)); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), "keystore init") {
		t.Errorf("open: %v", err)
	}
}

func TestHealthClockSkew(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, l := x.broken(t, RoleStation, time.Second)
	s.c.web.Transport = roundTrip(func(req *http.Request) (*http.Response, error) {
		resp, err := l.next.RoundTrip(req)
		if err == nil && strings.HasSuffix(req.URL.Path, "sys/health") {
			_ = resp.Body.Close()
			text := fmt.Sprintf(`{"initialized":true,"sealed":false,"standby":false,"server_time_utc":%d}`, time.Now().Add(2*time.Minute).Unix())
			resp.Body = body(text)
		}
		return resp, err
	})
	h := s.Health(t.Context())
	if h.State != ClockSkew || !h.Usable() || !strings.Contains(h.Words, "NTP") || h.Skew > -time.Minute {
		t.Errorf("%v, skew %s", h, h.Skew)
	}
}

// TestHealthOfACluster: a leader that is alone, and standbys without a leader.
func TestHealthOfACluster(t *testing.T) {
	srv := vaulttest.Cluster(t, 3)
	x := newSite(t, srv, "kv", true)
	s := x.impatient(t, RoleStation)
	wantHealth(t, s, Ready, "takes keys")
	leader := srv.Leader(t)
	for _, n := range srv.Nodes {
		if n != leader {
			n.Signal(syscall.SIGSTOP)
		}
	}
	vaulttest.Eventually(t, 5*time.Minute, "trouble is seen", func() error {
		if h := s.Health(t.Context()); h.State != NoQuorum && h.State != NoLeader {
			return fmt.Errorf("it is %v", h)
		}
		return nil
	})
	_, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(1)))
	if !errors.Is(err, keystore.ErrUnavailable) && !errors.Is(err, keystore.ErrUnknownOutcome) {
		t.Errorf("create without a quorum: %v", err)
	}
	wantHealth(t, s, NoLeader, "other nodes")
	for _, n := range srv.Nodes {
		n.Signal(syscall.SIGCONT)
	}
	wantHealth(t, s, Ready, "")
}
