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

// TestSmallDisk: a full disk fails every request, also when it was filled while
// the server writes; with room again the server goes on by itself.
func TestSmallDisk(t *testing.T) {
	s := vaulttest.New(t, vaulttest.SmallDisks())
	s.EnableAudit(t, vaulttest.AuditPath)
	works := func(want bool) {
		t.Helper()
		vaulttest.Eventually(t, time.Minute, fmt.Sprintf("the server works: %v", want), func() error {
			status, body, err := s.Do(s.Node, s.Root, http.MethodGet, "sys/mounts", nil)
			if err == nil && (status == http.StatusOK) != want {
				err = fmt.Errorf("%d %v", status, body)
			}
			return err
		})
	}
	works(true)
	for range 2 {
		s.FillDisk(t)
		works(false)
		s.FreeDisk(t)
		works(true)
	}
	s.FillDisk(t)
	s.Kill()
	s.FreeDisk(t)
}

// TestLinks: what goes through a slow link takes its time, in both directions,
// and a link to a server that is gone ends.
func TestLinks(t *testing.T) {
	s := vaulttest.New(t, vaulttest.Links())
	ask := func() (time.Duration, error) {
		start := time.Now()
		_, _, err := s.Do(&vaulttest.Node{Addr: "https://" + s.Far.Addr}, "", http.MethodGet, "sys/seal-status", nil)
		return time.Since(start), err
	}
	if _, err := ask(); err != nil {
		t.Fatal(err)
	}
	s.Far.Slow(200*time.Millisecond, 0)
	if took, err := ask(); err != nil || took < 200*time.Millisecond { // half of the delay at least, twice
		t.Errorf("%s, %v", took, err)
	}
	s.Far.Slow(0, 1000)
	if took, err := ask(); err != nil || took < 300*time.Millisecond { // some 100 bytes out and 300 back
		t.Errorf("%s, %v", took, err)
	}
	s.Far.Slow(0, 0)
	s.Kill()
	if _, err := ask(); err == nil {
		t.Error("a dead server answers")
	}
}
