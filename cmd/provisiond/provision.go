package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/lot"
	"github.com/provisiond/provisiond/provision/recipe"
	qa "github.com/provisiond/provisiond/provision/report" // main has a function report
)

type provisionCmd struct {
	deviceFlags
	Recipe          string         `help:"The recipe of the product." required:"" placeholder:"R"`
	Keystore        string         `help:"Where the key goes before it is burned." required:"" placeholder:"S"`
	Journal         string         `help:"The station's journal." required:"" placeholder:"F"`
	Keeping         journalKeeping `embed:""`
	Escrow          escrowFlags    `embed:""`
	Slot            string         `help:"The slot's name in the journal." default:"bench"`
	Operator        string         `help:"Who runs it, for the journal." placeholder:"NAME"`
	Lot             string         `help:"The lot that the unit belongs to, for the journal." placeholder:"L"`
	Quantity        int            `help:"With --lot: how many units the lot has; no more are begun. The journal remembers it." placeholder:"N"`
	ChangeQuantity  bool           `help:"The lot may have another quantity already; needs --operator."`
	Serial          string         `help:"The serial number on the board's label, for the journal." placeholder:"SN"`
	ClosedIsForever bool           `help:"Agree that the unit's serial loader ends for ever. Needed for profile closed, and for release on the ESP32."`
	Rework          string         `help:"Write the flash of a unit anew that has its key already, with the key from the keystore. Burns nothing; needs --operator." placeholder:"REASON"`
	ReworkKeystore  string         `help:"With --rework: the keystore with a login that may read the unit's key, for example a Vault ticket." placeholder:"S"`
	Identity        string         `help:"With --rework: the age identity file that opens a local keystore." placeholder:"FILE"`
	Certificate     string         `help:"Write the certificate of a unit that passes, or has passed before, into this new file." placeholder:"FILE"`
	JSON            bool           `help:"One JSON object about the unit on standard output."`
}

func (c *provisionCmd) check() error {
	switch {
	case c.Quantity < 0:
		return usage("--quantity is a number of units")
	case c.Lot == "" && (c.Quantity != 0 || c.ChangeQuantity):
		return usage("--quantity is that of a lot: add --lot")
	case c.ChangeQuantity && (c.Quantity == 0 || c.Operator == ""):
		return usage("--change-quantity needs --quantity and --operator")
	case c.Rework == "" && (c.ReworkKeystore != "" || c.Identity != ""):
		return usage("--rework-keystore and --identity are for --rework: a station reads no key otherwise")
	case c.Rework != "" && c.Operator == "":
		return usage("--rework needs --operator: the journal names who ordered it")
	case c.Rework != "" && c.Quantity != 0:
		return usage("--rework begins no unit: leave --quantity out")
	case c.ReworkKeystore != "" && c.Identity != "":
		return usage("--rework-keystore and --identity do not go together: the first is another login, the second opens --keystore")
	case sameFile(c.Keystore, c.Journal):
		return usage("--keystore and --journal name one file, %s: they are two", c.Journal)
	}
	if c.Certificate != "" {
		if _, err := os.Lstat(c.Certificate); err == nil {
			return usage("--certificate: %s is there already, and nothing is overwritten", c.Certificate)
		}
	}
	return nil
}

// sameFile reports whether two names are of one file.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	sa, erra := os.Stat(a)
	sb, errb := os.Stat(b)
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}

func (c *provisionCmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	job, err := loadJob(c.Recipe, c.ClosedIsForever || c.Rework != "") // a rework closes nothing
	if err != nil {
		return err
	}
	if c.Keeping, err = c.Keeping.withVault(c.Keystore); err != nil {
		return err
	}
	c.Keeping.lenient = c.Escrow.Escrow != ""
	store, err := c.Escrow.open(a.ctx, c.Keystore, c.Identity)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	a.syncEscrow(store)
	order := provision.Rework{Reason: c.Rework}
	if c.ReworkKeystore != "" {
		keys, err := openKeystore(a.ctx, c.ReworkKeystore)
		if err != nil {
			return err
		}
		defer func() { _ = keys.Close() }()
		order.Keys = keys
	}
	jrn, err := c.Keeping.open(a, c.Journal)
	if err != nil {
		return err
	}
	defer func() { _ = jrn.Close() }() // in good order it is closed below
	a.settle(store, jrn)
	e := &provision.Engine{
		Store: store, Journal: jrn, Station: jrn.Info().Station, Slot: c.Slot, Operator: c.Operator, Lot: c.Lot, Tool: toolVersion(),
	}
	if err := c.takeOrder(a, e, jrn, job); err != nil {
		return err
	}
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
	e.Trace, e.Observe = dev.trace, a.observer(bars.observe(c.Slot))
	var res *provision.Result
	if c.Rework != "" {
		res = e.Rework(a.ctx, dev.line, job, order)
	} else {
		res = e.Run(a.ctx, dev.line, job)
	}
	bars.verdict(c.Slot, res)
	bars.clear()
	a.syncEscrow(store)
	a.log.Info("unit", zap.String("unit", res.Unit), zap.String("verdict", string(res.Verdict)), zap.String("reason", res.Reason))
	cert, err := c.certificate(a, jrn, res)
	if err != nil {
		res.Warnings = append(res.Warnings, "the certificate was not made: "+err.Error())
	}
	closed := jrn.Close()
	if closed != nil { // the entries are durable; a checkpoint or its anchor is behind
		res.Warnings = append(res.Warnings, closed.Error())
	}
	if err := a.printResult(res, cert, c.JSON); err != nil {
		return err
	}
	if errors.Is(closed, journal.ErrAnchor) { // the anchor was away at the start
		return journalFailure(c.Journal, closed)
	}
	return &codeError{code: res.ExitCode()}
}

// settleEntries is how far back in the journal a start looks for units of which the
// keystore was not told: some five hundred units.
const settleEntries = 1 << 14

// settle tells the keystore what it did not take of earlier units. That it is not
// there is no error of the command's.
func (a *app) settle(store keystore.Store, jrn *journal.Journal) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), syncLimit)
	defer cancel()
	rep, err := provision.Settle(ctx, jrn, store, settleEntries)
	for _, f := range rep.Findings {
		a.note("the keystore cannot be told what became of the key of unit %s: %s", f.Unit, f.Problem)
	}
	if rep.Settled > 0 {
		a.note("the keystore was told late what became of the keys of %d units", rep.Settled)
	}
	if err != nil {
		a.note("the keystore could not be told yet what became of earlier units' keys: %v", err)
	}
}

// takeOrder lets the lot admit the unit.
func (c *provisionCmd) takeOrder(a *app, e *provision.Engine, jrn *journal.Journal, job *provision.Job) error {
	if c.Lot == "" || c.Rework != "" {
		return nil
	}
	book, err := lot.NewBook(jrn)
	if err != nil {
		return journalFailure(c.Journal, err)
	}
	if c.Quantity > 0 {
		_, err := book.Place(a.ctx, lot.Order{Lot: c.Lot, Quantity: c.Quantity, Recipe: job.Recipe.Name, Operator: c.Operator, Change: c.ChangeQuantity})
		if errors.Is(err, lot.ErrOrder) {
			return usage("%w; somebody who may change the order adds --change-quantity", err)
		}
		if err != nil {
			return err
		}
	}
	e.Journal = book
	e.Admit = func(ctx context.Context, unit chip.MAC) (provision.Admission, error) {
		return provision.Admission{}, book.Admit(ctx, c.Lot, c.Slot, c.Operator, unit)
	}
	return nil
}

// certificate is that of a unit which has passed before, or was asked for; nil for
// another one.
func (c *provisionCmd) certificate(a *app, jrn *journal.Journal, res *provision.Result) ([]byte, error) {
	passed := res.Verdict == provision.Pass && c.Certificate != ""
	before := res.FinishedBefore || res.LoaderClosed
	if !passed && !before {
		return nil, nil
	}
	unit := res.Unit
	if unit == "" && c.Serial != "" { // a closed chip does not tell its MAC; its label may
		var err error
		if unit, err = unitOfSerial(jrn, c.Serial); err != nil {
			return nil, err
		}
	}
	if unit == "" {
		return nil, nil
	}
	mac, err := chip.ParseMAC(unit)
	if err != nil {
		return nil, err
	}
	of := auditUnitCmd{journalKeeping: c.Keeping}
	cert, err := of.certificate(a, &openedJournal{Journal: jrn, path: c.Journal}, mac)
	if err != nil {
		return nil, err
	}
	if c.Certificate != "" {
		err = writeNew(c.Certificate, cert)
	}
	return cert, err
}

// unitOfSerial finds the unit that passed with a serial number, "" if there is none.
func unitOfSerial(jrn *journal.Journal, serial string) (string, error) {
	p, err := qa.ProjectLot(jrn.Entries(0, journal.All))
	if err != nil {
		return "", err
	}
	for _, u := range p.Units {
		if f := u.Final(); f != nil && f.Verdict == provision.Pass && u.Serial() == serial {
			return u.MAC.String(), nil
		}
	}
	return "", nil
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

func (a *app) printResult(r *provision.Result, cert []byte, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.out).Encode(struct {
			*provision.Result
			Certificate json.RawMessage `json:"certificate,omitempty"`
		}{r, cert})
	}
	unit := r.Unit
	if unit == "" {
		unit = "(unknown unit)"
	}
	_, _ = fmt.Fprintf(a.out, "%s  %s  %s  %s  %.1f s\n", paint(a.out, r.Verdict), unit, strings.TrimSpace(r.Chip+" "+r.Revision), r.Profile, float64(r.ElapsedMS)/1000)
	if r.KeyFingerprint != "" {
		_, _ = fmt.Fprintf(a.out, "  key      %s\n", r.KeyFingerprint)
	}
	if r.Rework != nil {
		_, _ = fmt.Fprintf(a.out, "  rework   %s, ordered by %s\n", harmless(r.Rework.Reason), harmless(r.Rework.Operator))
	}
	if r.Closing != nil {
		_, _ = fmt.Fprintf(a.out, "  closed   %s, shown by %s\n", r.Closing.Fuse, r.Closing.Evidence)
	}
	if r.Verdict != provision.Pass {
		_, _ = fmt.Fprintf(a.out, "  reason   %s\n  next     %s\n", r.Reason, r.NextStep)
	}
	for _, w := range r.Warnings {
		_, _ = fmt.Fprintf(a.out, "  warning  %s\n", w)
	}
	if cert == nil || r.Verdict == provision.Pass {
		return nil
	}
	parsed, err := qa.ParseCertificate(cert)
	if err != nil {
		return err
	}
	cp, err := journal.ParseCheckpoint([]byte(parsed.Checkpoint))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.out, "its certificate, for `provisiond audit unit`: entry %d, in the checkpoint of %d entries that was signed at %s\n",
		parsed.Statement.Entry, cp.Size, cp.Time.Format(time.RFC3339))
	printStatement(a.out, parsed)
	return nil
}
