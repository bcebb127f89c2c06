package provision_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

// bench is a station with real parts: a sealed keystore, a journal, and
// simulated boards.
type bench struct {
	t     *testing.T
	dir   string
	store *local.Store
	jrn   *journal.Journal
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	keys := filepath.Join(b.dir, "keystore.db")
	id := keys + ".identity"
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(keys, local.Options{IdentityFile: id, TestStore: true}); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.store, err = local.Open(keys, local.Options{IdentityFile: id}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.store.Close() })
	jpath := filepath.Join(b.dir, "journal.db")
	if err := journal.Init(jpath, journal.Options{Station: "bench"}); err != nil {
		t.Fatal(err)
	}
	if b.jrn, err = journal.Open(jpath); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.jrn.Close() })
	return b
}

func model(t *testing.T, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (b *bench) job(name, profile string) *provision.Job {
	b.t.Helper()
	path, err := sample.Write(b.dir, sample.Product{Chip: model(b.t, name), Name: "sample-" + name + "-" + profile, Profile: profile, Baud: 921600})
	if err != nil {
		b.t.Fatal(err)
	}
	return b.load(path)
}

func (b *bench) load(path string) *provision.Job {
	b.t.Helper()
	r, err := recipe.Load(path)
	if err != nil {
		b.t.Fatal(err)
	}
	j, err := provision.NewJob(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

func (b *bench) board(o espsim.Options) *espsim.Chip {
	b.t.Helper()
	if o.Revision == 0 {
		o.Revision = max(o.Model.Lockdown.ClosedMinimum, 4)
	}
	if o.AppPrints == "" {
		o.AppPrints = sample.AppText
	}
	if o.MAC == (chip.MAC{}) {
		o.MAC = chip.MAC{0x02, 0, 0, 0, 0, 1}
	}
	c, err := espsim.New(o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bench) run(ctx context.Context, c *espsim.Chip, job *provision.Job) *provision.Result {
	b.t.Helper()
	e := &provision.Engine{Store: b.store, Journal: b.jrn, Station: "bench", Slot: "1"}
	return e.Run(ctx, provision.Line{Port: port.FromSim(c, "sim://"+c.Model().Name), Reset: rom.AutoReset{}}, job)
}

// inBubble runs f with a clock that jumps when everybody waits, so that resets
// and time-outs cost nothing.
func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestProvision(t *testing.T) {
	for _, name := range chip.Names() {
		for _, profile := range []string{"development", "hybrid", "release", "closed"} {
			inBubble(t, name+"/"+profile, func(t *testing.T) {
				b := newBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				res := b.run(t.Context(), c, b.job(name, profile))
				if res.Verdict != provision.Pass {
					t.Fatalf("%s: %s; next: %s; steps %v", res.Verdict, res.Reason, res.NextStep, res.Steps)
				}
				t.Log(res.Steps)
			})
		}
	}
}
