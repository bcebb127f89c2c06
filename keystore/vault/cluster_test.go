package vault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// custody is what a worker knows of one unit at the end.
type custody struct {
	record    keystore.Record
	confirmed bool // custody was proven, and the burn allowed
	doubt     bool // an unknown outcome was reported
}

// lineUp runs units through 32 workers as stations do: create, confirm, and the
// state that allows the burn. A call that fails is made again with the same key,
// as for a unit that waits; after patience's end a unit is let go.
type lineUp struct {
	mu    sync.Mutex
	units map[chip.MAC]*custody
	slow  time.Duration
	done  atomic.Int32
}

func (l *lineUp) run(t *testing.T, s *Store, count int) {
	var wg sync.WaitGroup
	next := make(chan chip.MAC)
	for range 32 {
		wg.Go(func() {
			for u := range next {
				r := keystoretest.NewRecord(t, u)
				c := &custody{record: r}
				for range 4 {
					err := l.one(t, s, r)
					if err == nil {
						c.confirmed = true
						break
					}
					c.doubt = c.doubt || errors.Is(err, keystore.ErrUnknownOutcome)
					if !errors.Is(err, keystore.ErrUnknownOutcome) && !errors.Is(err, keystore.ErrUnavailable) {
						t.Errorf("unit %s: %v", u, err)
						break
					}
				}
				l.mu.Lock()
				l.units[u] = c
				l.mu.Unlock()
				l.done.Add(1)
			}
		})
	}
	for i := range count {
		next <- chip.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
	}
	close(next)
	wg.Wait()
}

func (l *lineUp) one(t *testing.T, s *Store, r keystore.Record) error {
	start := time.Now()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.slow = max(l.slow, time.Since(start))
	}()
	created, err := s.Create(t.Context(), r)
	if err != nil {
		return err
	}
	confirmed, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint)
	if err != nil {
		return err
	}
	if confirmed != created {
		t.Errorf("confirmed %+v, created %+v", confirmed, created)
	}
	_, err = s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job})
	return err
}

// check: every key that was allowed to be burned can be read, no unit has two
// keys, and nothing is there that nobody made.
func (l *lineUp) check(t *testing.T, x *site) {
	t.Helper()
	auditor, ota := x.open(t, RoleAuditor), x.open(t, RoleOTA)
	var wg sync.WaitGroup
	work := make(chan *custody)
	for range 8 {
		wg.Go(func() {
			for c := range work {
				r := c.record
				metas, err := auditor.List(t.Context(), r.Unit)
				if err != nil {
					t.Error(err)
					continue
				}
				switch {
				case len(metas) > 1:
					t.Errorf("unit %s has %d keys", r.Unit, len(metas))
				case len(metas) == 1 && metas[0].Fingerprint != r.Fingerprint:
					t.Errorf("unit %s has another key", r.Unit)
				}
				if !c.confirmed {
					continue
				}
				if len(metas) != 1 {
					t.Errorf("unit %s has custody and %d keys are listed", r.Unit, len(metas))
				}
				if _, err := auditor.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil {
					t.Errorf("custody of unit %s is lost: %v", r.Unit, err)
				}
				got, err := ota.Load(t.Context(), r.Unit, r.Fingerprint)
				if err != nil || !got.Key.Equal(r.Key) {
					t.Errorf("key of unit %s is lost: %v", r.Unit, err)
				}
				if len(metas) == 1 && (len(metas[0].States) != 1 || metas[0].States[0].Kind != keystore.MayBeInSilicon) {
					t.Errorf("unit %s: states %+v", r.Unit, metas[0].States)
				}
			}
		})
	}
	for _, c := range l.units {
		work <- c
	}
	close(work)
	wg.Wait()
	for u, err := range auditor.Units(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if l.units[u] == nil {
			t.Errorf("unit %s is there, and nobody made it", u)
		}
	}
	if _, err := keystore.Check(t.Context(), auditor, keystore.CheckOptions{Found: func(f keystore.Finding) { t.Errorf("check: %s", f) }}); err != nil {
		t.Error(err)
	}
}

// TestClusterUnderFaults breaks a cluster of three in every way while 500 units
// come from 32 slots: no key is lost, none doubled, none allowed to be burned
// without custody, and in the end every unit has its key.
func TestClusterUnderFaults(t *testing.T) {
	srv := vaulttest.Cluster(t, 3)
	x := newSite(t, srv, "kv", true)
	s, looker := x.open(t, RoleStation), x.impatient(t, RoleStation)
	l := &lineUp{units: map[chip.MAC]*custody{}}
	const units = 500
	finished := make(chan struct{})
	go func() { defer close(finished); l.run(t, s, units) }()

	progress := func(n int32) {
		t.Helper()
		n = min(n, units) // a fast machine may be at the end already
		vaulttest.Eventually(t, 480*time.Second, fmt.Sprintf("%d units", n), func() error {
			if d := l.done.Load(); d < n {
				return fmt.Errorf("%d are done", d)
			}
			return nil
		})
	}
	// recovered measures how long after the cluster's own recovery ours goes on.
	recovered := func(what string) {
		t.Helper()
		probe := 0
		vaulttest.Eventually(t, 240*time.Second, "the cluster writes", func() error {
			probe++
			return srv.Writes(fmt.Sprintf("kv/data/checkpoints/probe/%s-%d", what, probe), map[string]any{"data": map[string]any{}, "options": map[string]any{"cas": 0}})
		})
		at, before := time.Now(), l.done.Load()
		if before >= units {
			return
		}
		vaulttest.Eventually(t, 240*time.Second, "units go on", func() error {
			if l.done.Load() == before {
				return errors.New("no unit was finished")
			}
			return nil
		})
		// A figure for docs/keystore-vault.md; how fast it is depends on what else the
		// machine does, so nothing is asserted.
		t.Logf("%s: units went on %s after the cluster's recovery", what, time.Since(at).Round(time.Millisecond))
	}

	progress(40)
	leader := srv.Leader(t)
	leader.Kill()
	recovered("kill-9")
	leader.Start(t)
	leader.Unseal(t)

	progress(l.done.Load() + 60)
	srv.Leader(t).StepDown(t)
	recovered("step-down")

	progress(l.done.Load() + 60)
	leader = srv.Leader(t)
	leader.Seal(t)
	recovered("seal")
	leader.Unseal(t)

	progress(l.done.Load() + 40)
	leader = srv.Leader(t)
	leader.Signal(syscall.SIGSTOP)
	recovered("pause")
	leader.Signal(syscall.SIGCONT)

	progress(l.done.Load() + 40)
	leader = srv.Leader(t)
	for _, n := range srv.Nodes {
		if n != leader {
			n.Signal(syscall.SIGSTOP)
		}
	}
	// sys/health of the leader may go on to say 200; what tells is a write.
	vaulttest.Eventually(t, 120*time.Second, "the quorum is lost", func() error {
		if h := looker.Health(t.Context()); h.State != NoQuorum && h.State != NoLeader {
			return fmt.Errorf("health is %v", h)
		}
		return nil
	})
	for _, n := range srv.Nodes {
		n.Signal(syscall.SIGCONT)
	}
	recovered("quorum")
	<-finished

	confirmed, doubts := 0, 0
	for _, c := range l.units {
		if c.confirmed {
			confirmed++
		}
		if c.doubt {
			doubts++
		}
	}
	t.Logf("%d of %d units have custody, %d had an unknown outcome on the way, the slowest call took %s", confirmed, units, doubts, l.slow.Round(time.Millisecond))
	if confirmed != units {
		t.Errorf("%d units of %d are without custody", units-confirmed, units)
	}
	l.check(t, x)
}

// TestFullAuditDisk: the same with a disk of the audit device that is full for a while.
func TestFullAuditDisk(t *testing.T) {
	srv := vaulttest.Raft(t)
	x := newSite(t, srv, "kv", true)
	link := filepath.Join(t.TempDir(), "audit")
	point := func(to string) {
		t.Helper()
		_ = os.Remove(link)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		srv.Signal(syscall.SIGHUP)
	}
	point("/dev/null")
	srv.EnableAudit(t, link)
	s := x.open(t, RoleStation)
	l := &lineUp{units: map[chip.MAC]*custody{}}
	finished := make(chan struct{})
	go func() { defer close(finished); l.run(t, s, 150) }()
	vaulttest.Eventually(t, 240*time.Second, "50 units", func() error {
		if l.done.Load() < 50 {
			return errors.New("not yet")
		}
		return nil
	})
	point("/dev/full")
	wantHealth(t, s, AuditFailing, "")
	point("/dev/null")
	<-finished
	for _, c := range l.units {
		if !c.confirmed {
			t.Errorf("unit %s is without custody", c.record.Unit)
		}
	}
	l.check(t, x)
}

// TestBadNetwork: every tenth request meets a fault, and answers take their
// time, while 200 units come from 32 slots.
func TestBadNetwork(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, broken := x.broken(t, RoleStation, 20*time.Second)
	dice := rand.New(rand.NewPCG(1, 2))
	met := 0
	broken.breakAt(func(*http.Request) *fault {
		if dice.IntN(10) > 0 {
			return nil
		}
		met++
		return &faults[dice.IntN(len(faults))]
	})
	next := broken.next
	broken.next = roundTrip(func(req *http.Request) (*http.Response, error) {
		t := time.NewTimer(rand.N(40 * time.Millisecond))
		defer t.Stop()
		<-t.C
		return next.RoundTrip(req)
	})
	l := &lineUp{units: map[chip.MAC]*custody{}}
	l.run(t, s, 200)
	broken.breakAt(nil)
	for _, c := range l.units {
		if !c.confirmed {
			t.Errorf("unit %s is without custody", c.record.Unit)
		}
	}
	if met < 50 {
		t.Errorf("%d faults only", met)
	}
	l.check(t, x)
}
