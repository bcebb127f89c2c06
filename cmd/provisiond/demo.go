package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"text/tabwriter"

	"go.uber.org/zap"

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

type demoCmd struct {
	Units   int            `help:"How many boards." default:"4"`
	Slots   int            `help:"How many at once." default:"2"`
	Chip    string         `help:"Only this chip; without it the chips take turns." placeholder:"C"`
	Profile string         `help:"development, hybrid, release or closed. Default: release, but closed on a chip whose release mode has errata (ESP32-P4)." enum:",development,hybrid,release,closed" default:"" placeholder:"PROFILE"`
	Dir     string         `help:"Keep keystore, journal, recipes and images in this folder." placeholder:"D"`
	Fault   string         `help:"A fault for every simulated board, for example noise=1e-4 (see sim --help)." placeholder:"SPEC"`
	Trace   string         `help:"Write every frame of every line, without key bytes, into this file." placeholder:"FILE"`
	JSON    bool           `help:"One JSON object per unit on standard output."`
	Serve   bool           `help:"Run as a station with its page, until Ctrl-C: boards come and go in the slots."`
	Listen  string         `help:"With --serve: where the page is." default:"127.0.0.1:8080" placeholder:"ADDR"`
	Keeping journalKeeping `embed:""`
}

// demoSite is everything that a station has, in one folder.
type demoSite struct {
	store *local.Store
	jrn   *journal.Journal
	jobs  []*provision.Job
}

func (c *demoCmd) Run(a *app) error {
	if c.Units < 1 || c.Units > 10000 || c.Slots < 1 || c.Slots > 64 {
		return usage("--units takes 1 to 10000 and --slots 1 to 64")
	}
	faults, err := espsim.ParseFaults(c.Fault)
	if err != nil {
		return &usageError{fmt.Errorf("--fault: %w", err)}
	}
	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "provisiond-demo-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
	}
	if c.Serve {
		if c.JSON || c.Trace != "" {
			return usage("--serve goes with neither --json nor --trace: the page and its API show the units")
		}
		return c.serve(a, dir)
	}
	site, err := c.setUp(a, dir)
	if err != nil {
		return err
	}
	defer site.close()
	trace, done, err := openTrace(a, c.Trace)
	if err != nil {
		return err
	}
	defer done()

	results := c.provisionAll(a, site, faults, trace)
	if err := c.print(a, dir, string(site.jobs[0].Recipe.Profile), results); err != nil {
		return err
	}
	for _, r := range results {
		if code := r.ExitCode(); code != provision.ExitDone {
			return &codeError{code: code}
		}
	}
	if a.ctx.Err() != nil { // units that were not begun
		return &provision.Failure{Cause: provision.CauseCancelled, Reason: "stopped before all units were begun"}
	}
	return nil
}

// usualProfile is what units of a chip end in if nobody says otherwise.
func usualProfile(m chip.Model) string {
	if m.Lockdown.ReleaseTrap != "" {
		return string(recipe.Closed)
	}
	return string(recipe.Release)
}

// demoChips take turns unless --chip names one: a chip of either generation.
var demoChips = []string{"esp32", "esp32c3"}

func (c *demoCmd) setUp(a *app, dir string) (*demoSite, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, usage("--dir: %w", err)
	}
	names := demoChips
	if c.Chip != "" {
		names = []string{c.Chip}
	}
	site := &demoSite{}
	for _, n := range names {
		m, err := chip.ByName(n)
		if err != nil {
			return nil, &usageError{err}
		}
		path, err := sample.Write(dir, sample.Product{Chip: m, Profile: cmp.Or(c.Profile, usualProfile(m)), Baud: 921600})
		if err != nil {
			return nil, err
		}
		r, err := recipe.Load(path)
		if err != nil {
			return nil, err
		}
		job, err := provision.NewJob(r)
		if err != nil {
			return nil, err
		}
		site.jobs = append(site.jobs, job)
	}
	keys := filepath.Join(dir, "keystore.db")
	id := keys + ".identity"
	if _, err := os.Stat(keys); err != nil {
		if _, err := local.NewIdentity(id); err != nil {
			return nil, &usageError{err}
		}
		if err := local.Init(keys, local.Options{IdentityFile: id, TestStore: true}); err != nil {
			return nil, &usageError{err}
		}
	}
	var err error
	if site.store, err = local.Open(keys, local.Options{IdentityFile: id}); err != nil {
		return nil, err
	}
	jpath := filepath.Join(dir, "journal.db")
	if _, serr := os.Stat(jpath); serr != nil {
		o := journal.Options{Station: "demo", KeyFile: c.Keeping.SigningKey}
		if o.Anchor, err = c.Keeping.anchorOf(o.Station); err != nil {
			return nil, err
		}
		if err := journal.Init(jpath, o); err != nil {
			return nil, &usageError{err}
		}
	}
	site.jrn, err = c.Keeping.open(a, jpath)
	return site, err
}

func (s *demoSite) close() {
	_ = s.jrn.Close()
	_ = s.store.Close()
}

// provisionAll puts the units through the slots. Results are in unit order; after
// a cancel there are fewer.
func (c *demoCmd) provisionAll(a *app, site *demoSite, faults espsim.Faults, trace func(rom.TraceEvent)) []*provision.Result {
	slots := make([]string, min(c.Slots, c.Units))
	for i := range slots {
		slots[i] = fmt.Sprintf("slot-%d", i+1)
	}
	bars := newProgress(a.errOut, c.JSON, slots...)
	if !c.JSON {
		defer a.announceStop()()
	}
	results := make([]*provision.Result, c.Units)
	units := make(chan int)
	first, _ := site.jrn.Head() // new MACs for every run in the same folder
	var wg sync.WaitGroup
	for _, slot := range slots {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range units {
				job := site.jobs[i%len(site.jobs)]
				mac := chip.MAC{0x02, 0x0D, byte(first >> 16), byte(first >> 8), byte(first), byte(i + 1)}
				mac[1] += byte(i >> 8)
				e := &provision.Engine{
					Store: site.store, Journal: site.jrn, Station: "demo", Slot: slot, Operator: "demo", Lot: "demo", Tool: toolVersion(),
					Trace: trace, Observe: a.observer(bars.observe(slot)),
				}
				results[i] = c.provisionOne(a.ctx, a.log, e, job, mac, faults)
				bars.verdict(slot, results[i])
			}
		}()
	}
	begun := 0
	for begun < c.Units && a.ctx.Err() == nil {
		select {
		case units <- begun:
			begun++
		case <-a.ctx.Done(): // what was not begun has no result
		}
	}
	close(units)
	wg.Wait()
	bars.clear()
	return results[:begun]
}

func (c *demoCmd) provisionOne(ctx context.Context, log *zap.Logger, e *provision.Engine, job *provision.Job, mac chip.MAC, faults espsim.Faults) *provision.Result {
	m := job.Recipe.Model()
	board, err := espsim.New(espsim.Options{
		Model: m, MAC: mac, Revision: demoRevision(m), FlashSize: uint32(job.Recipe.FlashSize),
		AppPrints: sample.AppText, Faults: faults,
	})
	if err != nil {
		return &provision.Result{Unit: mac.String(), Verdict: provision.Error, Cause: provision.CauseStation, Reason: err.Error()}
	}
	p := port.FromSim(board, "sim://"+m.Name)
	defer func() { _ = board.Close() }()
	res := e.Run(ctx, provision.Line{Port: p, Reset: rom.AutoReset{}}, job)
	log.Info("unit", zap.String("unit", res.Unit), zap.String("verdict", string(res.Verdict)), zap.String("reason", res.Reason))
	return res
}

// demoRevision is silicon on which every profile works; 0 leaves it to the simulator.
func demoRevision(m chip.Model) chip.Revision { return m.Lockdown.ClosedMinimum }

func (c *demoCmd) print(a *app, dir, profile string, results []*provision.Result) error {
	if c.JSON {
		enc := json.NewEncoder(a.out)
		for _, r := range results {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	// Narrow enough for 80 columns; --json has the rest.
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "UNIT\tCHIP\tVERDICT\tSECONDS\tKEY\tCLOSING SHOWN BY")
	pass := 0
	for _, r := range results {
		closed, key := "-", "-"
		if r.Closing != nil {
			closed = r.Closing.Evidence
		}
		if r.KeyFingerprint != "" {
			key = r.KeyFingerprint[:8] + "…"
		}
		if r.Verdict == provision.Pass {
			pass++
		}
		_, _ = fmt.Fprintf(w, "%s\t%s %s\t%s\t%.1f\t%s\t%s\n", r.Unit, r.Chip, r.Revision, r.Verdict, float64(r.ElapsedMS)/1000, key, closed)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Verdict != provision.Pass {
			_, _ = fmt.Fprintf(a.out, "%s %s: %s\n  next: %s\n", cmp.Or(r.Unit, "(unknown unit)"), r.Verdict, r.Reason, r.NextStep)
		}
	}
	_, _ = fmt.Fprintf(a.out, "%d simulated units, profile %s: %d PASS\n", len(results), profile, pass)
	if left := c.Units - len(results); left > 0 {
		_, _ = fmt.Fprintf(a.out, "%d units were not begun\n", left)
	}
	if c.Dir != "" {
		_, _ = fmt.Fprintf(a.out, "Keystore, journal and recipes are in %s; try `provisiond journal show %s`.\n", dir, filepath.Join(dir, "journal.db"))
	}
	return nil
}
