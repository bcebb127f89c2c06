package provision_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
)

// A bad line, as issue 4 has it.
const (
	damagedBytes = 1e-4
	lostBytes    = 1e-5
	hubAway      = 2 * time.Second
)

// badLine damages and loses bytes in both directions while on says so, and once it
// is a hub that resets: the port goes, and comes back a moment later.
type badLine struct {
	rom.Port
	c   *espsim.Chip
	rng *rand.Rand
	on  func() bool

	bytes, damaged, lost int
	hubAt                int // at this byte; 0: it did, or never does
}

func (l *badLine) damage(p []byte) []byte {
	if !l.on() {
		return p
	}
	out := make([]byte, 0, len(p))
	for _, b := range p {
		l.bytes++
		if l.rng.Float64() < lostBytes {
			l.lost++
			continue
		}
		if l.rng.Float64() < damagedBytes {
			l.damaged++
			b ^= byte(1 + l.rng.IntN(255))
		}
		out = append(out, b)
	}
	if l.hubAt != 0 && l.bytes >= l.hubAt {
		l.hubAt = 0
		l.c.Unplug()
		time.AfterFunc(hubAway, l.c.Plug)
	}
	return out
}

func (l *badLine) Write(ctx context.Context, p []byte) (int, error) {
	if n, err := l.Port.Write(ctx, l.damage(p)); err != nil {
		return n, err
	}
	return len(p), nil
}

func (l *badLine) Read(ctx context.Context, p []byte) (int, error) {
	for {
		n, err := l.Port.Read(ctx, p)
		if n = copy(p, l.damage(p[:n])); n > 0 || err != nil {
			return n, err
		}
	}
}

var burnSteps = []string{"burn-key", "protect-key", "burn-lockdown", "enable-encryption", "write-protect", "close"}

// TestBadLine: bytes are damaged at 1 in 10⁴ and lost at 1 in 10⁵, and a hub resets
// once per unit. Outside the burns every unit finishes; during the burns every unit
// finishes or ends ERROR or QUARANTINED, and none passes on a wrong fuse.
func TestBadLine(t *testing.T) {
	seeds := 200 / stride(20*raceFactor)
	var mu sync.Mutex
	units, outcomes := 0, map[string]map[string]int{"outside the burns": {}, "during the burns": {}}
	t.Run("units", func(t *testing.T) {
		for _, name := range twoChips {
			for _, where := range []string{"outside the burns", "during the burns"} {
				t.Run(name+"/"+strings.ReplaceAll(where, " ", "-"), func(t *testing.T) {
					t.Parallel()
					for seed := range seeds {
						profile := profiles[1+seed%3]
						var out string
						synctest.Test(t, func(t *testing.T) { out = badLineUnit(t, name, profile, where == "during the burns", uint64(seed)) })
						mu.Lock()
						units++
						outcomes[where][out]++
						mu.Unlock()
					}
				})
			}
		}
	})
	for where, o := range outcomes {
		t.Logf("%s: %v", where, o)
	}
	t.Logf("%d units", units)
}

func badLineUnit(t *testing.T, name, profile string, during bool, seed uint64) string {
	b := newMemoryBench(t)
	c := b.board(espsim.Options{Model: model(t, name)})
	before, job := c.Fuses(), sampleJob(t, name, profile)
	step := ""
	line := &badLine{c: c, rng: rand.New(rand.NewPCG(seed, 7)), on: func() bool { return slices.Contains(burnSteps, step) == during }}
	line.hubAt = 1 + line.rng.IntN(40_000) // a unit takes more, either way
	var verdicts []string
	for {
		b.observe = func(e provision.Event) { step = e.Step }
		b.wrap = func(p rom.Port) rom.Port { line.Port = p; return line }
		r := b.run(t.Context(), c, job)
		step = ""
		rest()
		time.Sleep(hubAway)
		verdicts = append(verdicts, string(r.Verdict))
		out := strings.Join(verdicts, " ")
		what := fmt.Sprintf("%s, seed %d: %s: %s; %d bytes, %d damaged, %d lost", profile, seed, out, r.Reason, line.bytes, line.damaged, line.lost)
		if err := b.invariants(c, job, before, r); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		switch {
		case r.Verdict == provision.Pass && line.hubAt != 0:
			t.Fatalf("%s: the hub did not reset", what)
		case r.Verdict == provision.Pass:
			return out
		case during && (r.Verdict == provision.Quarantined || r.Verdict == provision.Error && len(verdicts) == 4):
			return out
		case r.Verdict != provision.Error || len(verdicts) == 4:
			t.Fatal(what)
		}
		if err := c.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
