package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/escrow"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/recipe"
	qa "github.com/provisiond/provisiond/provision/report"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/config"
	"github.com/provisiond/provisiond/station/discover"
	"github.com/provisiond/provisiond/station/hook"
	"github.com/provisiond/provisiond/station/notify"
	"github.com/provisiond/provisiond/station/people"
	"github.com/provisiond/provisiond/station/port"
	"github.com/provisiond/provisiond/station/views"
	"github.com/provisiond/provisiond/station/web"
)

type runCmd struct {
	Config string `help:"The station's configuration." required:"" placeholder:"F"`
	Check  bool   `help:"Only read the configuration, the slots and the recipes, and say what is wrong with them."`
}

func (c *runCmd) Run(a *app) error {
	cfg, err := config.Load(c.Config)
	if err != nil {
		return &usageError{err}
	}
	if c.Check {
		d := &daemon{a: a, cfg: cfg, path: c.Config}
		return d.checkOnly()
	}
	n, err := notify.FromEnvironment()
	if err != nil {
		return &usageError{err}
	}
	d := &daemon{a: a, cfg: cfg, path: c.Config, notify: n}
	defer d.close()
	if err := d.open(); err != nil {
		return err
	}
	return d.run()
}

// daemon is a running station with everything around it.
type daemon struct {
	a      *app
	cfg    *config.File
	path   string
	notify *notify.Notifier

	store   keystore.Store
	jrn     *journal.Journal
	keeping journalKeeping
	views   *views.Views
	people  *people.Book
	station *station.Station
	metrics *web.Metrics
	bay     *station.Bay
	watcher *discover.Watcher
	out     *outgoing
	closers []func()
	boards  atomic.Uint32 // simulated ones, for their MACs
}

func (d *daemon) close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
}

func (d *daemon) later(f func()) { d.closers = append(d.closers, f) }

// checkOnly reads what can be read without touching anything.
func (d *daemon) checkOnly() error {
	jobs, err := d.jobs(d.cfg)
	if err != nil {
		return err
	}
	slots, err := d.slots(d.cfg)
	if err != nil {
		return err
	}
	if d.cfg.People != "" {
		if _, err := people.Open(d.cfg.People, people.Options{}); err != nil {
			return &usageError{err}
		}
	}
	_, err = fmt.Fprintf(d.a.out, "%s: station %s, %d slots, %d recipes: good\n", d.path, d.cfg.Station, len(slots), len(jobs))
	return err
}

// open opens everything, in the order in which a mistake is cheapest to see.
func (d *daemon) open() error {
	cfg := d.cfg
	if cfg.State == "" {
		return usage("%s: state: is missing; write state: /var/lib/provisiond, or start it by systemd, which gives one", d.path)
	}
	jobs, err := d.jobs(cfg)
	if err != nil {
		return err
	}
	slots, err := d.slots(cfg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return usage("state: %w", err)
	}
	if err := d.openPeople(); err != nil {
		return err
	}
	if err := d.openStore(); err != nil {
		return err
	}
	if err := d.openJournal(); err != nil {
		return err
	}
	if d.views, err = views.Open(filepath.Join(cfg.State, "views.db"), d.jrn, cfg.Place()); err != nil {
		return err
	}
	d.later(func() { _ = d.views.Close() })
	d.metrics = web.NewMetrics()
	if err := d.openOutgoing(); err != nil {
		return err
	}
	d.bay = station.NewBay(port.Options{})
	d.bay.SetSlots(slots)
	specs := d.specs(cfg, slots)
	o := station.Options{
		Name: cfg.Station, Version: strings.TrimPrefix(toolVersion(), "provisiond "), Tool: toolVersion(), Simulated: cfg.Simulated != nil, Store: d.store, Journal: timedJournal{d.jrn, d.metrics}, Views: d.views,
		Jobs: jobs, Slots: specs, Log: d.a.log, UnitTimeout: cfg.UnitTimeout, Failures: cfg.Failures, LoginToStart: cfg.LoginToStart,
		Certificate: d.certificate, Plan: virginPlan, Trace: traceToLog(d.a.log), OnResult: d.finished, Reprint: d.out.reprint(),
	}
	if cfg.Hooks != (hook.Config{}) {
		o.Hooks = hooks{cfg.Hooks}
	}
	d.station, err = station.New(d.a.ctx, o)
	return err
}

func (d *daemon) openPeople() (err error) {
	if d.cfg.People == "" {
		return nil
	}
	if d.people, err = people.Open(d.cfg.People, people.Options{}); err != nil {
		return &usageError{err}
	}
	return nil
}

func (d *daemon) openStore() error {
	open := func(ctx context.Context) (keystore.Store, error) { return openKeystore(ctx, d.cfg.Keystore) }
	var err error
	if e := d.cfg.Escrow; e != nil && e.Enabled() {
		conf := *e
		conf.Dir = d.cfg.Resolve(conf.Dir)
		d.store, err = escrow.Open(d.a.ctx, conf, open)
	} else {
		d.store, err = open(d.a.ctx)
	}
	if err != nil {
		return err
	}
	d.later(func() { _ = d.store.Close() })
	info, err := d.store.Info(d.a.ctx)
	if err != nil {
		d.a.log.Warn("keystore", zap.Error(err)) // the station waits for it
		return nil
	}
	if info.TestStore != (d.cfg.Simulated != nil) {
		return usage("%s: keystore: %s %s: a test store and simulated slots belong together", d.path, info.Where, map[bool]string{true: "is a test store and `simulated` is not set", false: "is a real store and `simulated` is set"}[info.TestStore])
	}
	return nil
}

func (d *daemon) openJournal() error {
	// An outage of the Vault that anchors the journal must not keep a station down:
	// units after custody can be finished without it. The journal is compared as soon
	// as Vault answers.
	keeping, err := journalKeeping{SigningKey: d.cfg.Journal.SigningKey, Anchor: d.cfg.Journal.Anchor, publicKey: d.cfg.Journal.PublicKey, lenient: true}.withVault(d.cfg.Keystore)
	if err != nil {
		return err
	}
	if d.jrn, err = keeping.open(d.a, d.cfg.Journal.File); err != nil {
		return err
	}
	d.keeping = keeping
	d.later(func() {
		if err := d.jrn.Close(); err != nil {
			d.a.log.Error("journal", zap.Error(err))
		}
	})
	if s := d.jrn.Info().Station; s != d.cfg.Station {
		return usage("%s: station: is %s, and %s is the journal of station %s", d.path, d.cfg.Station, d.cfg.Journal.File, s)
	}
	return nil
}

// jobs reads the recipes.
func (d *daemon) jobs(cfg *config.File) ([]*provision.Job, error) {
	files, err := cfg.RecipeFiles()
	if err != nil {
		return nil, &usageError{err}
	}
	var out []*provision.Job
	from := map[string]string{}
	for _, f := range files {
		r, err := recipe.Load(f)
		if err != nil {
			return nil, err
		}
		if other := from[r.Name]; other != "" {
			return nil, usage("%s and %s are both recipe %s: keep one of them, or give one another name", other, f, r.Name)
		}
		from[r.Name] = f
		job, err := provision.NewJob(r)
		if err != nil {
			return nil, err
		}
		out = append(out, job)
	}
	return out, nil
}

// slots reads the allow-list. Simulated boards and real ones do not mix: their
// units go into different keystores.
func (d *daemon) slots(cfg *config.File) ([]discover.Slot, error) {
	now, err := discover.Scan(discover.Roots{})
	if err != nil {
		now = nil // the watcher tells of it
	}
	slots, err := discover.LoadPorts(cfg.Ports, now)
	if err != nil {
		return nil, &usageError{err}
	}
	if cfg.Simulated != nil {
		if _, err := espsim.ParseFaults(cfg.Simulated.Faults); err != nil {
			return nil, usage("%s: simulated.faults: %w", d.path, err)
		}
	}
	if len(slots) == 0 {
		return nil, usage("%s holds no slot: write one file for each, or one for all (docs/station.md)", cfg.Ports)
	}
	for _, s := range slots {
		addr, ok := s.Port.Address()
		if sim := ok && addr.Scheme == port.Sim; sim && cfg.Simulated == nil {
			return nil, usage("%s:%d: port: %s is a simulated board; set `simulated` in %s, and use a test keystore", s.File, s.Line, s.Port, d.path)
		}
	}
	return slots, nil
}

// specs makes of the allow-list what the station works with.
func (d *daemon) specs(cfg *config.File, slots []discover.Slot) []station.Spec {
	var out []station.Spec
	for _, s := range slots {
		spec := station.Spec{
			Name: s.Name, Port: s.Port.String(), Start: s.Start, MaxBaud: s.Baud, Key: s.ResetCommand,
		}
		if spec.Start == "" {
			spec.Start = station.StartMode(cfg.Start)
		}
		if s.ResetCommand != "" {
			program := s.ResetCommand
			spec.Reset = func(port.Port) (rom.Resetter, error) { return port.CommandReset{Program: program}, nil }
		}
		addr, ok := s.Port.Address()
		switch {
		case !ok:
			spec.Fixture = d.bay.Fixture(s.Name)
		case addr.Scheme == port.Sim:
			spec.Fixture = d.simulated(cfg, addr)
			spec.Key += fmt.Sprint(*cfg.Simulated)
		default:
			spec.Fixture = &station.NetFixture{Address: s.Port.String()}
		}
		out = append(out, spec)
	}
	return out
}

// finished hears of every result.
func (d *daemon) finished(_ string, r *provision.Result) {
	d.metrics.UnitDone(r)
	d.out.wake()
}

// certificate signs what the journal knows of a unit.
func (d *daemon) certificate(ctx context.Context, mac chip.MAC) ([]byte, error) {
	signer, closeSigner, err := d.keeping.signer(d.cfg.Journal.File, d.jrn.Info().PublicKey)
	if err != nil {
		return nil, &station.ActionError{Kind: station.ActionFailed, Text: "the certificate cannot be signed here", Next: "use `provisiond audit unit` where the journal's key is", Err: err}
	}
	defer func() { _ = closeSigner() }()
	checkpoint, err := d.jrn.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := qa.NewCertificate(ctx, qa.Log{
		Unit: d.jrn.Unit, Entries: d.jrn.Entries, Checkpoint: checkpoint.Note,
		Prove: func(index, size uint64) ([]journal.Hash, error) { return d.jrn.Prove(index, size) },
	}, mac, signer)
	if errors.Is(err, qa.ErrNoUnit) {
		return nil, &station.ActionError{Kind: station.ActionNotFound, Text: "the journal knows nothing of unit " + mac.String(), Next: "ask the station that made it"}
	}
	return cert, err
}

// timedJournal tells the metrics how long an entry takes to become durable.
type timedJournal struct {
	*journal.Journal
	metrics *web.Metrics
}

func (j timedJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	began := time.Now()
	e, err := j.Journal.Append(ctx, e)
	if err == nil {
		j.metrics.JournalFsync(time.Since(began))
	}
	return e, err
}

// hooks are the jig's programs.
type hooks struct{ c hook.Config }

func hookUnit(u station.UnitStart) hook.Unit {
	return hook.Unit{Station: u.Station, Slot: u.Slot, Port: u.Port, Lot: u.Lot, Operator: u.Operator, Recipe: u.Recipe, Serial: u.Serial}
}

func (h hooks) Before(ctx context.Context, u station.UnitStart) error {
	return h.c.RunBefore(ctx, hookUnit(u))
}

func (h hooks) After(ctx context.Context, u station.UnitStart, r *provision.Result) error {
	unit := hookUnit(u)
	unit.MAC = r.Unit
	if r.Serial != "" {
		unit.Serial = r.Serial
	}
	return h.c.RunAfter(ctx, unit, hook.ResultOf(r))
}

// run works until the station is told to end.
func (d *daemon) run() error {
	ctx, stop := context.WithCancel(d.a.ctx)
	defer stop()
	log := d.a.log

	var work sync.WaitGroup
	ended := make(chan error, 2)
	server, err := d.server()
	if err != nil {
		return err
	}
	up := make(chan net.Addr, 1)
	// The page outlives the slots, so that an operator sees them park.
	pages, closePages := context.WithCancel(context.WithoutCancel(ctx))
	defer closePages()
	work.Go(func() {
		if err := server.ListenAndServe(pages, d.cfg.State, func(a net.Addr) { up <- a }); err != nil {
			ended <- &provision.Failure{Cause: provision.CauseStation, Reason: "the page cannot be served", NextStep: "check web.listen in " + d.path, Err: err}
		}
	})
	select {
	case addr := <-up:
		d.announce(server, addr)
	case err := <-ended:
		return err
	}
	d.watcher = discover.Watch(ctx, discover.Roots{}, discover.Options{})
	work.Go(func() { d.bay.Follow(d.watcher, d.station) })
	d.out.run(ctx, &work, d.station.Conditions())
	work.Go(func() { d.syncEscrow(ctx) })
	work.Go(func() { d.settle(ctx) })
	work.Go(func() { d.watchDisk(ctx) })

	dog := notify.NewWatchdog(d.notify)
	beat := dog.Heartbeat("slots", time.Minute)
	watching, endWatch := context.WithCancel(context.WithoutCancel(ctx)) // also while units park
	work.Go(func() {
		dog.Run(watching, func(names []string) { log.Error("no sign of life", zap.Strings("parts", names)) }, func(err error) { log.Warn("watchdog", zap.Error(err)) })
	})
	work.Go(func() { d.supervise(watching, beat) })

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	work.Go(func() {
		for {
			select {
			case <-hup:
				d.reload()
			case <-ctx.Done():
				return
			}
		}
	})
	slots := make(chan error, 1)
	go func() { slots <- d.station.Run(ctx) }()
	if err := d.notify.Ready(); err != nil {
		log.Warn("systemd", zap.Error(err))
	}
	select {
	case <-ctx.Done():
	case err = <-ended:
		stop()
	}
	if nerr := d.notify.Stopping(); nerr != nil {
		log.Warn("systemd", zap.Error(nerr))
	}
	_, _ = fmt.Fprintln(d.a.errOut, "provisiond: stopping; units are parked at their next safe step")
	err = errors.Join(err, <-slots)
	closePages()
	endWatch()
	work.Wait()
	return err
}

func (d *daemon) announce(server *web.Server, addr net.Addr) {
	scheme := "http"
	if server.Secure() {
		scheme = "https"
	}
	_, _ = fmt.Fprintf(d.a.errOut, "provisiond: station %s works; its page is at %s://%s/\n", d.cfg.Station, scheme, addr)
}

// supervise proves that the slots' locks move, feeds the watchdog with that, and
// tells systemd how things stand.
func (d *daemon) supervise(ctx context.Context, beat *notify.Heartbeat) {
	defer beat.Stop()
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		d.station.Beat()
		beat.Beat()
		if err := d.notify.Status(statusLine(d.station.View())); err != nil {
			d.a.log.Warn("systemd", zap.Error(err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// statusLine is what `systemctl status` shows.
func statusLine(v station.View) string {
	busy := 0
	for _, s := range v.Slots {
		if s.State == station.SlotBusy {
			busy++
		}
	}
	line := fmt.Sprintf("%d of %d slots in work; today %d PASS, %d not", busy, len(v.Slots), v.Today.Pass, v.Today.Units()-v.Today.Pass)
	var bad []string
	for _, c := range v.Conditions {
		if !c.OK {
			bad = append(bad, c.Name+": "+c.Text)
		}
	}
	if len(bad) > 0 {
		line = strings.Join(bad, "; ") + " — " + line
	}
	return line
}

// reload reads the configuration again. Units in work are not touched; a file that
// is not right changes nothing.
func (d *daemon) reload() {
	if err := d.notify.Reloading(); err != nil {
		d.a.log.Warn("systemd", zap.Error(err))
	}
	defer func() {
		if err := d.notify.Ready(); err != nil {
			d.a.log.Warn("systemd", zap.Error(err))
		}
	}()
	cfg, err := config.Load(d.path)
	var jobs []*provision.Job
	var slots []discover.Slot
	if err == nil {
		jobs, err = d.jobs(cfg)
	}
	if err == nil {
		slots, err = d.slots(cfg)
	}
	if err == nil && (cfg.Simulated != nil) != (d.cfg.Simulated != nil) {
		err = errors.New("`simulated` cannot change while the station runs: start it again")
	}
	if err != nil {
		d.station.Conditions().Warn("configuration", "the configuration was not read again: "+err.Error(), "mend it and reload; the station works with the old one")
		_, _ = fmt.Fprintln(d.a.errOut, "provisiond: the configuration stays as it was:", err)
		return
	}
	d.station.Conditions().Good("configuration")
	specs := d.specs(cfg, slots)
	d.bay.SetSlots(slots)
	d.station.SetJobs(jobs)
	d.station.Configure(specs)
	d.watcher.Rescan()
	_, _ = fmt.Fprintf(d.a.errOut, "provisiond: reloaded: %d slots, %d recipes\n", len(slots), len(jobs))
}

// syncEscrow brings what waits in the escrow to the keystore.
func (d *daemon) syncEscrow(ctx context.Context) {
	s, ok := d.store.(*escrow.Store)
	if !ok {
		return
	}
	t := time.NewTicker(30 * time.Second)
	defer t.Stop()
	for {
		if _, err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			d.a.log.Warn("escrow", zap.Error(err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// settleEvery is how often the station looks for units of which the keystore was not
// told, since it was away.
const settleEvery = 5 * time.Minute

// settle tells the keystore what it did not take when units were finished.
func (d *daemon) settle(ctx context.Context) {
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	for {
		rep, err := provision.Settle(ctx, d.jrn, d.store, settleEntries)
		for _, f := range rep.Findings {
			d.a.log.Warn("the keystore cannot be told of a unit's key", zap.Stringer("unit", f.Unit), zap.String("problem", f.Problem))
		}
		if err != nil && ctx.Err() == nil {
			d.a.log.Warn("the keystore was not told yet of units' keys", zap.Error(err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// A journal needs room before a unit is begun: one unit takes some 30 kB with its
// copy.
const (
	diskLow  = 512 << 20
	diskStop = 64 << 20
)

func (d *daemon) watchDisk(ctx context.Context) {
	conds := d.station.Conditions()
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		d.watchAnchor(conds)
		var st syscall.Statfs_t
		switch err := syscall.Statfs(filepath.Dir(d.cfg.Journal.File), &st); {
		case err != nil:
			conds.Warn(station.CondJournalDisk, err.Error(), "check the journal's disk")
		case st.Bavail*uint64(st.Bsize) < diskStop:
			conds.Bad(station.CondJournalDisk, fmt.Sprintf("%d MB are free on the journal's disk", st.Bavail*uint64(st.Bsize)>>20), "make room; no unit is begun meanwhile")
		case st.Bavail*uint64(st.Bsize) < diskLow:
			conds.Warn(station.CondJournalDisk, fmt.Sprintf("%d MB are free on the journal's disk", st.Bavail*uint64(st.Bsize)>>20), "make room soon")
		default:
			conds.Good(station.CondJournalDisk)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
