package vaulttest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/internal/vaulttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "not for us")
	s := vaulttest.New(t)
	s.Must(t, http.MethodPost, "sys/mounts/kv", map[string]any{"type": "kv-v2"})
	vaulttest.Eventually(t, 10*time.Second, "the mount is ready", func() error {
		_, _, err := s.Do(s.Node, s.Root, http.MethodGet, "kv/config", nil)
		return err
	})
	if status, body, err := s.Do(s.Node, "bad", http.MethodGet, "sys/mounts", nil); err != nil || status != http.StatusForbidden {
		t.Errorf("a bad token: %d %v %v", status, body, err)
	}
	s.Seal(t)
	if status, _, err := s.Do(s.Node, "", http.MethodGet, "sys/health", nil); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("sealed: %d %v", status, err)
	}
	s.Unseal(t)
}

// TestClusterSurvivesItsLeader kills the leader and waits for another.
func TestClusterSurvivesItsLeader(t *testing.T) {
	s := vaulttest.Cluster(t, 3)
	for _, n := range s.Nodes {
		// With a second loop, a node does not notice that it lost the lead.
		if loops := strings.Count(n.Log(), "entering standby mode"); loops != 1 {
			t.Errorf("%s has %d standby loops", n.Addr, loops)
		}
	}
	first := s.Leader(t)
	first.Kill()
	second := s.Leader(t)
	if second == first {
		t.Fatal("a dead node leads")
	}
	first.Start(t)
	first.Unseal(t)
	vaulttest.Eventually(t, 30*time.Second, "the node that came back answers", func() error {
		status, _, err := s.Do(first, s.Root, http.MethodGet, "sys/mounts", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d", status)
		}
		return err
	})
}
