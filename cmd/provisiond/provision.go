package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
)

type provisionCmd struct {
	deviceFlags
	Recipe          string `help:"The recipe of the product." required:"" placeholder:"R"`
	Keystore        string `help:"Where the key goes before it is burned." required:"" placeholder:"S"`
	Journal         string `help:"The station's journal." required:"" placeholder:"F"`
	Slot            string `help:"The slot's name in the journal." default:"bench"`
	Operator        string `help:"Who runs it, for the journal." placeholder:"NAME"`
	Lot             string `help:"The lot that the unit belongs to, for the journal." placeholder:"L"`
	Serial          string `help:"The serial number on the board's label, for the journal." placeholder:"SN"`
	ClosedIsForever bool   `help:"Agree that the unit's serial loader ends for ever. Needed for profile closed, and for release on the ESP32."`
	JSON            bool   `help:"One JSON object about the unit on standard output."`
}

func (c *provisionCmd) Run(a *app) error {
	job, err := loadJob(c.Recipe, c.ClosedIsForever)
	if err != nil {
		return err
	}
	store, err := openKeystore(a.ctx, c.Keystore)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	jrn, err := openJournal(c.Journal)
	if err != nil {
		return err
	}
	defer func() { _ = jrn.Close() }()
	dev, err := c.open(a)
	if err != nil {
		return err
	}
	defer dev.close()

	dev.line.Serial = c.Serial
	bars := newProgress(a.errOut, c.JSON, c.Slot)
	if !c.JSON {
		defer a.announceStop()()
	}
	e := &provision.Engine{
		Store: store, Journal: jrn, Station: jrn.Info().Station, Slot: c.Slot, Operator: c.Operator, Lot: c.Lot, Tool: toolVersion(),
		Trace: dev.trace, Observe: a.observer(bars.observe(c.Slot)),
	}
	res := e.Run(a.ctx, dev.line, job)
	bars.verdict(c.Slot, res)
	bars.clear()
	a.log.Info("unit", zap.String("unit", res.Unit), zap.String("verdict", string(res.Verdict)), zap.String("reason", res.Reason))
	if err := a.printResult(res, c.JSON); err != nil {
		return err
	}
	return &codeError{code: res.ExitCode()}
}

// loadJob reads recipe and images. What closes a unit for ever is asked for twice.
func loadJob(path string, forever bool) (*provision.Job, error) {
	r, err := recipe.Load(path)
	if err != nil {
		return nil, err
	}
	if r.ClosesForever() && !forever {
		return nil, usage("%s: profile %s closes the serial loader of an %s for ever: add --closed-is-forever if that is meant, or choose profile hybrid",
			path, r.Profile, r.Model().Title)
	}
	return provision.NewJob(r)
}

func (a *app) observer(next func(provision.Event)) func(provision.Event) {
	return func(e provision.Event) {
		a.log.Debug("step", zap.String("step", e.Step), zap.Stringer("unit", e.Unit), zap.Int64("done", e.Done), zap.Int64("total", e.Total), zap.String("text", e.Text))
		next(e)
		if a.observeForTest != nil {
			a.observeForTest(e)
		}
	}
}

func (a *app) printResult(r *provision.Result, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.out).Encode(r)
	}
	unit := r.Unit
	if unit == "" {
		unit = "(unknown unit)"
	}
	_, _ = fmt.Fprintf(a.out, "%s  %s  %s  %s  %.1f s\n", paint(a.out, r.Verdict), unit, strings.TrimSpace(r.Chip+" "+r.Revision), r.Profile, float64(r.ElapsedMS)/1000)
	if r.KeyFingerprint != "" {
		_, _ = fmt.Fprintf(a.out, "  key      %s\n", r.KeyFingerprint)
	}
	if r.Closing != nil {
		_, _ = fmt.Fprintf(a.out, "  closed   %s, shown by %s\n", r.Closing.Fuse, r.Closing.Evidence)
	}
	if r.Verdict != provision.Pass {
		_, _ = fmt.Fprintf(a.out, "  reason   %s\n  next     %s\n", r.Reason, r.NextStep)
	}
	return nil
}
