package vault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
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

// lineUp runs units through 32 workers as stations do: reserve (every other unit),
// create, confirm, and the state that allows the burn. A call that fails is made
// again with the same key, as for a unit that waits; after patience's end a unit
// is let go.
type lineUp struct {
	mu    sync.Mutex
	units map[chip.MAC]*custody
	slow  time.Duration
	done  int
	more  chan struct{} // closed and made anew when a unit is done
}

func newLineUp() *lineUp {
	return &lineUp{units: map[chip.MAC]*custody{}, more: make(chan struct{})}
}

// run sends units through the stations' stores until there are enough.
func (l *lineUp) run(t *testing.T, stores []*Store, enough func(n int) bool) {
	var wg sync.WaitGroup
	next := make(chan chip.MAC)
	for i := range 32 {
		wg.Go(func() {
			for u := range next {
				c := l.unit(t, stores[i%len(stores)], keystoretest.NewRecord(t, u), i%4 < 2)
				l.mu.Lock()
				l.units[u] = c
				l.done++
				close(l.more)
				l.more = make(chan struct{})
				l.mu.Unlock()
			}
		})
	}
	for i := 0; !enough(i); i++ {
		next <- chip.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
	}
	close(next)
	wg.Wait()
}

// count is an enough.
func count(units int) func(int) bool { return func(n int) bool { return n >= units } }

func (l *lineUp) unit(t *testing.T, s *Store, r keystore.Record, reserve bool) *custody {
	c := &custody{record: r}
	for range 4 {
		err := l.one(t, s, r, reserve)
		if err == nil {
			c.confirmed = true
			return c
		}
		c.doubt = c.doubt || errors.Is(err, keystore.ErrUnknownOutcome)
		if !errors.Is(err, keystore.ErrUnknownOutcome) && !errors.Is(err, keystore.ErrUnavailable) {
			t.Errorf("unit %s: %v", r.Unit, err)
			return c
		}
	}
	return c
}

func (l *lineUp) one(t *testing.T, s *Store, r keystore.Record, reserve bool) error {
	start := time.Now()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.slow = max(l.slow, time.Since(start))
	}()
	if reserve {
		if err := s.Reserve(t.Context(), r.Meta()); err != nil {
			return err
		}
	}
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

// await waits for n more units. What hangs for good ends the test by its own
// time-out.
func (l *lineUp) await(n int) {
	l.mu.Lock()
	want := l.done + n
	for l.done < want {
		more := l.more
		l.mu.Unlock()
		<-more
		l.mu.Lock()
	}
	l.mu.Unlock()
}

// report tells how it went, and wants custody for every unit.
func (l *lineUp) report(t *testing.T) {
	t.Helper()
	confirmed, doubts := 0, 0
	for u, c := range l.units {
		if c.confirmed {
			confirmed++
		} else {
			t.Errorf("unit %s is without custody", u)
		}
		if c.doubt {
			doubts++
		}
	}
	t.Logf("%d of %d units have custody, %d had an unknown outcome on the way, the slowest call took %s",
		confirmed, len(l.units), doubts, l.slow.Round(time.Millisecond))
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
				case len(metas) == 1 && metas[0].Current() != keystore.Stored && metas[0].Receipt.Ref == "":
					t.Errorf("unit %s: a burn was allowed without custody", r.Unit)
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
// or more come from 32 slots: no key is lost, none doubled, none allowed to be
// burned without custody, and in the end every unit has its key. Half of the
// slots belong to a station that is far away. The line runs until the last fault
// is over, so that every fault is in the middle of units on any machine.
//
// How long after the cluster's own recovery the units go on is a figure for
// docs/keystore-vault.md. It depends on what else the machine does, so nothing is
// asserted about it.
func TestClusterUnderFaults(t *testing.T) {
	srv := vaulttest.Cluster(t, 3, vaulttest.SmallDisks(), vaulttest.Links())
	x := newSite(t, srv, "kv", true)
	srv.EnableAudit(t, vaulttest.AuditPath)
	looker := x.impatient(t, RoleStation)
	far := x.config(t, x.token(t, RoleStation))
	for i, n := range srv.Nodes {
		far.Addresses[i] = "https://" + n.Far.Addr
	}
	distant, err := Open(t.Context(), far)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = distant.Close() }()

	l := newLineUp()
	const units = 500
	var over atomic.Bool
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		l.run(t, []*Store{x.open(t, RoleStation), distant}, func(n int) bool { return n >= units && over.Load() })
	}()
	defer func() { over.Store(true); <-finished }()

	// recovered measures how long after the cluster's own recovery ours goes on.
	recovered := func(what string) {
		t.Helper()
		at := srv.AwaitWrites(t, func(try int) string { return fmt.Sprintf("kv/data/checkpoints/probe/%s/%d", what, try) },
			map[string]any{"data": map[string]any{}, "options": map[string]any{"cas": 0}})
		l.await(1)
		t.Logf("%s: units went on %s after the cluster's recovery", what, time.Since(at).Round(time.Millisecond))
	}
	wantTrouble := func(states ...HealthState) {
		t.Helper()
		vaulttest.Eventually(t, 5*time.Minute, fmt.Sprintf("health is one of %v", states), func() error {
			if h := looker.Health(t.Context()); !slices.Contains(states, h.State) {
				return fmt.Errorf("health is %v", h)
			}
			return nil
		})
	}

	l.await(40)
	leader := srv.Leader(t)
	leader.Kill()
	recovered("kill-9")
	leader.Start(t)
	leader.Unseal(t)

	l.await(40)
	srv.Leader(t).StepDown(t)
	recovered("step-down")

	l.await(40)
	leader = srv.Leader(t)
	leader.Seal(t)
	recovered("seal")
	leader.Unseal(t)

	l.await(40)
	leader = srv.Leader(t)
	leader.Signal(syscall.SIGSTOP)
	recovered("pause")
	leader.Signal(syscall.SIGCONT)

	l.await(40)
	leader = srv.Leader(t)
	for _, n := range srv.Nodes {
		if n != leader {
			n.Signal(syscall.SIGSTOP)
		}
	}
	// sys/health of the leader may go on to say 200; what tells is a write.
	wantTrouble(NoQuorum, NoLeader)
	for _, n := range srv.Nodes {
		n.Signal(syscall.SIGCONT)
	}
	recovered("quorum")

	// The leader stays the leader, and every request to it fails, some of them
	// after they were done: there is no room for the audit of the answer.
	l.await(40)
	leader = srv.Leader(t)
	leader.FillDisk(t)
	wantTrouble(AuditFailing)
	leader.FreeDisk(t)
	recovered("full-audit-disk")

	// Nobody makes room: the leader is ended, and the others have disks of their own.
	l.await(40)
	leader = srv.Leader(t)
	leader.FillDisk(t)
	wantTrouble(AuditFailing)
	leader.Kill()
	recovered("full-audit-disk-and-kill")
	leader.FreeDisk(t)
	leader.Start(t)
	leader.Unseal(t)

	l.await(40)
	slow := func(far, net time.Duration, rate int) {
		for _, n := range srv.Nodes {
			n.Far.Slow(far, rate)
			n.Net.Slow(net, rate)
		}
	}
	slow(60*time.Millisecond, 30*time.Millisecond, 256<<10)
	start := time.Now()
	l.await(60)
	t.Logf("slow-network: 60 units in %s", time.Since(start).Round(time.Millisecond))
	srv.Leader(t).StepDown(t)
	recovered("slow-network-and-step-down")
	l.await(20)
	slow(0, 0, 0)
	recovered("slow-network")

	l.await(40)
	over.Store(true)
	<-finished
	l.report(t)
	l.check(t, x)
}

// TestFullAuditDisk: the same with one server, whose audit device has a disk that
// is full for a while.
func TestFullAuditDisk(t *testing.T) {
	srv := vaulttest.Raft(t, vaulttest.SmallDisks())
	x := newSite(t, srv, "kv", true)
	srv.EnableAudit(t, vaulttest.AuditPath)
	s := x.open(t, RoleStation)
	l := newLineUp()
	finished := make(chan struct{})
	go func() { defer close(finished); l.run(t, []*Store{s}, count(150)) }()
	l.await(50)
	srv.FillDisk(t)
	wantHealth(t, s, AuditFailing, "audit device")
	srv.FreeDisk(t)
	<-finished
	l.report(t)
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
	l := newLineUp()
	l.run(t, []*Store{s}, count(200))
	broken.breakAt(nil)
	l.report(t)
	if met < 50 {
		t.Errorf("%d faults only", met)
	}
	l.check(t, x)
}
