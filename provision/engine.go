// Package provision owns what happens to one unit: the steps from a virgin chip
// to a locked product, in an order in which nothing irreversible comes before
// what could still fail, and the verdict.
//
// What it promises:
//
//   - All ciphertext is in flash and verified before the first fuse.
//   - Custody is proven directly before the first burn.
//   - Every step writes its intent to the journal before it acts and what was
//     seen after it, both durable. A one-way step is not cut by a cancel.
//   - Every decision starts from what the chip shows now. An act with an unknown
//     outcome is followed by a look, never by a blind second act.
//   - A verdict of PASS rests on evidence that the chip gave, never on silence.
package provision

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what the ROM computes over its flash, not a signature
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/recipe"
)

// Journal is what the engine needs of a journal.
type Journal interface {
	Append(ctx context.Context, e journal.Entry) (journal.Entry, error)
	Unit(mac chip.MAC) ([]journal.Entry, error)
}

// Line is the serial line to one board and the way to reset it.
type Line struct {
	Port  rom.Port
	Reset rom.Resetter
	// Serial is the serial number on the board's label, for the journal. It may be
	// empty. What counts as the unit's identity is the MAC that the chip tells.
	Serial string
	// MaxBaud is the highest rate that the line is known to carry; 0: not known.
	MaxBaud int
}

// Admission is what whoever runs the lot has to say of a unit that is let in.
type Admission struct {
	Serial string // the unit's serial number, if the lot gives it one
}

// Job is what is to be done to every unit of a product. It is read-only and may
// serve many units at once.
type Job struct {
	Recipe *recipe.Recipe
	Layout *layout.Layout
	hash   [sha256.Size]byte         // over the recipe's meaning and all that goes to flash
	plain  []Hash                    // SHA-256 of the regions' plaintext, in their order
	blank  map[uint32][md5.Size]byte // MD5 of so many erased bytes, for the ranges that are erased
}

// NewJob reads the recipe's images and checks everything that needs no chip.
func NewJob(r *recipe.Recipe) (*Job, error) {
	files, err := r.LoadImages()
	if err != nil {
		return nil, err
	}
	l, err := layout.Build(r.Model(), r, files)
	if err != nil {
		return nil, err
	}
	rh, lh := r.Hash(), l.Hash()
	j := &Job{Recipe: r, Layout: l, hash: sha256.Sum256(append(rh[:], lh[:]...)), blank: map[uint32][md5.Size]byte{}}
	if _, err := j.usualStages(); err != nil {
		return nil, err
	}
	for _, region := range l.Regions {
		j.plain = append(j.plain, sha256.Sum256(region.Plain))
	}
	for _, e := range l.Erase {
		j.blank[e.Size] = md5.Sum(bytes.Repeat([]byte{0xFF}, int(e.Size))) //nolint:gosec // what the ROM computes over its flash
	}
	return j, nil
}

// usualStages lists the stages for the newest silicon.
func (j *Job) usualStages() ([]efuse.Stage, error) {
	t, err := table.For(j.Recipe.Chip)
	if err != nil {
		return nil, err
	}
	return j.stages(j.Recipe.Model(), t)
}

// Hash stands for the recipe's meaning and all that goes to flash.
func (j *Job) Hash() Hash { return j.hash }

// ID names the job on one unit: the same for the same MAC, recipe and images.
func (j *Job) ID(mac chip.MAC) string {
	h := sha256.New()
	h.Write([]byte("provisiond job v1\x00"))
	h.Write(j.hash[:])
	h.Write(mac[:])
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// Engine provisions units, one at a time per call of Run. It may serve many
// slots at once.
type Engine struct {
	Store    keystore.Store
	Journal  Journal
	Station  string
	Slot     string
	Operator string // named in every entry; may be empty
	Lot      string // may be empty
	Tool     string // name and version of the program, for the journal
	// Admit is asked for every unit that may be worked on, before anything is
	// written to it; may be nil. An error refuses the unit, with its text.
	Admit   func(ctx context.Context, unit chip.MAC) (Admission, error)
	Observe func(Event)          // progress; may be nil
	Trace   func(rom.TraceEvent) // frames without key bytes; may be nil
}

// Limits of the engine's own waiting.
const (
	burnBaud        = 115200
	oneWayDeadline  = 60 * time.Second // from a one-way step's intent to its observation
	exchangeBytes   = 4 << 10          // error-free, before any burn
	burnTries       = 3                // of a stage whose outcome had to be looked up
	lineTries       = 8                // of the exchange before burns: at one damaged byte in 10⁴ a third of them fail
	rewriteTries    = 3                // of a region whose MD5 differs
	md5Tries        = 3                // of a reading that differs
	storePatience   = 10 * time.Second // for a store that is told of what is burned already
	closedTextLimit = 2 * time.Second  // for the ROM to say that the download mode is disabled
)

// unit is one run on one unit.
type unit struct {
	*Engine
	job   *Job
	line  Line
	start time.Time
	res   *Result

	client *rom.Client
	model  chip.Model
	mac    chip.MAC
	known  bool // mac was read
	rev    chip.Revision
	id     string // job id
	before *efuse.Snapshot
	now    *efuse.Snapshot
	plan   efuse.CheckedPlan
	todo   []efuse.Stage // of the plan, not burned yet
	past   history
	key    keystore.Key
	fp     keystore.Fingerprint
	slots  []keySlot // what burn-key puts where
	// digests is what burn-digests does.
	digests []keySlot

	facts     *unitFacts       // of the unit's first writing, in a rework; nil: this run's own
	token     *keystore.Digest // of the OTA token in its data; nil: there is none
	ecies     []byte           // its public key for esp_encrypted_img; nil: it has none
	unitPlain Hash             // of its own data
	// reserved: the keystore holds a reservation for key, and its record was not
	// sent yet.
	reserved bool
	custody  bool // confirmed in this run or an earlier one of the same job
	untold   bool // the store does not know that the key is in silicon
	// unsettled: the store does not know something else that the journal does.
	unsettled bool

	begun    bool // an entry of this run is in the journal
	burning  bool // a one-way act was begun, in this run or an earlier one
	prepared func() prepared
	repeat   bool   // the flash may hold what is to be written
	stubless bool   // the recipe's flasher stub does not run on this unit
	order    string // why the flash is written anew; empty: this is no rework
	step     int
	steps    int
}

// Run provisions the unit on the line. It always gives a Result; the journal
// holds the same verdict when it can be written at all.
func (e *Engine) Run(ctx context.Context, line Line, job *Job) *Result {
	u := e.newUnit(line, job, len(plannedSteps(e.Store, job)))
	u.prepared = prepare(job)
	wipe := func() { u.prepared().key.Wipe(); u.key.Wipe() } // the run's key, if it came to have one
	defer wipe()                                             // also when an observer panics
	err := u.run(ctx)
	wipe()
	u.finish(ctx, err)
	return u.res
}

func (e *Engine) newUnit(line Line, job *Job, steps int) *unit {
	return &unit{
		Engine: e, job: job, line: line, start: time.Now(), steps: steps, model: job.Recipe.Model(),
		res: &Result{
			Recipe: job.Recipe.Name, RecipeRevision: job.Recipe.Revision,
			Profile: string(job.Recipe.Profile), Chip: job.Recipe.Chip,
			EFuseBefore: []efuse.BlockWords{}, EFuseAfter: []efuse.BlockWords{},
			Images: []ImageResult{}, Steps: []StepResult{},
		},
	}
}

// plannedSteps lists the steps of a whole run, for progress.
func plannedSteps(store keystore.Store, job *Job) []string {
	names := []string{stepConnect, stepInspect, stepPlan}
	if _, ok := store.(keystore.Reserver); ok {
		names = append(names, stepReserve)
	}
	names = append(names, stepFlash, stepVerify, stepCustody)
	all, _ := job.usualStages() // NewJob has tried it
	for _, s := range all {
		names = append(names, s.Name)
		if s.Name == stageEnable && job.Recipe.BootCheck.Enabled() {
			names = append(names, stepBoot)
		}
	}
	return append(names, stepProof)
}

func (u *unit) run(ctx context.Context) error {
	if err := u.connectFirst(ctx); err != nil {
		return u.cutClosing(ctx, err)
	}
	if err := u.inspect(ctx); err != nil {
		return err
	}
	if err := u.admit(ctx); err != nil {
		return err
	}
	if !u.past.keyBurned {
		if err := u.writeFlash(ctx); err != nil {
			return err
		}
		if err := u.takeCustody(ctx); err != nil {
			return err
		}
	} else {
		if err := u.verifyEarlier(ctx); err != nil {
			return err
		}
		if err := u.prepareBurn(ctx); err != nil {
			return err
		}
	}
	if err := u.burnAll(ctx); err != nil {
		return err
	}
	if u.res.Closing != nil {
		// Nobody can look at this unit again, so the proof belongs to the closing: a
		// cancel waits for it.
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), oneWayDeadline+bootResets*u.job.Recipe.BootCheck.Timeout)
		defer cancel()
		return u.proveClosed(own)
	}
	return u.proveOpen(ctx)
}

// burnAll takes the plan's stages in their order, with the boot check after the
// one that switches encryption on: up to there everything can still be seen, and
// mended, over the loader.
func (u *unit) burnAll(ctx context.Context) error {
	for len(u.todo) > 0 {
		stage := u.todo[0]
		if stage.Name == stageClose {
			if err := u.close(ctx); err != nil {
				return err
			}
		} else if err := u.burn(ctx); err != nil {
			return err
		}
		u.todo = u.todo[1:]
		if stage.Name == stageEnable {
			if err := u.bootAndInspect(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish writes the verdict, also when the run was cancelled.
func (u *unit) finish(ctx context.Context, err error) {
	u.settleStore(ctx)
	u.release(ctx)
	u.res.ElapsedMS = time.Since(u.start).Milliseconds()
	if err == nil {
		u.res.Verdict, u.res.Reason = Pass, ""
	} else {
		f := asFailure(ctx, err)
		if f.Cause == CauseQuarantined {
			u.markQuarantined(ctx, f)
		}
		u.res.take(f)
	}
	body := map[string]any{
		"verdict": u.res.Verdict, "cause": u.res.Cause, "reason": u.res.Reason, "next_step": u.res.NextStep,
		"one_way_begun": u.burning, "elapsed_ms": u.res.ElapsedMS,
	}
	if len(u.res.Warnings) > 0 {
		body["warnings"] = u.res.Warnings
	}
	if u.untold || u.unsettled {
		body[untoldMember] = true
	}
	if u.res.Rework != nil {
		body["rework"] = u.res.Rework
	}
	if u.res.Closing != nil {
		body["closing"] = u.res.Closing
	}
	if u.now != nil {
		body["efuse"] = u.res.EFuseAfter
		body["efuse_errors"] = u.now.ErrorRegisters()
	}
	if !u.begun {
		return // a verdict on nothing: no entry says that there was a run
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), oneWayDeadline)
	defer cancel()
	if jerr := u.write(wctx, stepVerdict, journal.KindVerdict, body); jerr != nil && u.res.Cause != CauseJournal {
		u.unwritten(jerr)
	}
}

// unwritten is for a verdict that the journal did not take: one that nobody can
// prove later is no PASS. A unit that is to be set aside stays so.
func (u *unit) unwritten(err error) {
	if u.res.Verdict == Quarantined {
		u.res.Reason += fmt.Sprintf("; and the verdict could not be written to the journal: %v", err)
		return
	}
	f := &Failure{
		Cause: CauseJournal, Reason: fmt.Sprintf("the verdict %s could not be written to the journal", u.res.Verdict),
		NextStep: "mend the journal, then start the same job again", Err: err,
	}
	if u.res.Reason != "" {
		f.Reason += fmt.Sprintf(" (it was: %s)", u.res.Reason)
	}
	u.res.take(f)
}

func (u *unit) write(ctx context.Context, step string, kind journal.Kind, body map[string]any) error {
	if u.Operator != "" {
		body["operator"] = u.Operator
	}
	b, err := journal.MarshalPayload(body)
	if err != nil {
		return fmt.Errorf("payload of step %s: %w", step, err)
	}
	e := journal.Entry{Slot: u.Slot, Unit: u.mac, Job: u.id, Step: step, Kind: kind, Payload: b}
	if _, err := u.Journal.Append(ctx, e); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return err // cancelled before anything was written, which is no fault of the journal
		}
		return &Failure{
			Cause: CauseJournal, Reason: "the journal cannot be written",
			NextStep: "check the disk and run `provisiond journal verify`; nothing more is done to units meanwhile", Err: err,
		}
	}
	return nil
}

// observed is what an act saw; it goes into the journal also when the act failed.
type observed map[string]any

// do runs a step as it is declared. A reversible one may be cancelled. A one-way
// one has a deadline of its own, from the durable intent to the durable
// observation, and a cancel waits.
func (u *unit) do(ctx context.Context, step string, intent map[string]any, act func(ctx context.Context) (observed, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch steps[step] {
	case reversible:
		return u.bracket(ctx, step, intent, act)
	case oneWay:
		intent["one_way"] = true
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), oneWayDeadline)
		defer cancel()
		return u.bracket(own, step, intent, act)
	}
	return fmt.Errorf("step %s is declared neither reversible nor one-way", step)
}

func (u *unit) bracket(ctx context.Context, step string, intent map[string]any, act func(ctx context.Context) (observed, error)) error {
	u.step++
	u.emit(step, 0, 0, "")
	began := time.Now()
	outcome := outcomeFailed // also of an intent that the journal did not take
	defer func() {
		u.res.Steps = append(u.res.Steps, StepResult{Name: step, MS: time.Since(began).Milliseconds(), Outcome: outcome})
	}()
	if err := u.write(ctx, step, journal.KindIntent, intent); err != nil {
		return err
	}
	u.begun = true
	saw, err := act(ctx)
	if saw == nil {
		saw = observed{}
	}
	outcome = outcomeOf(err)
	saw["outcome"] = outcome
	if err != nil {
		saw["error"] = err.Error()
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), oneWayDeadline)
	defer cancel()
	return errors.Join(err, u.write(wctx, step, journal.KindObserved, saw))
}

// The outcomes of a step.
const (
	outcomeDone    = "done"
	outcomeFailed  = "failed"  // and what it did is known
	outcomeUnknown = "unknown" // a fuse may have been burned: the next start looks at the chip
)

func outcomeOf(err error) string {
	var (
		unknown *efuse.IndeterminateError
		f       *Failure
	)
	switch {
	case err == nil:
		return outcomeDone
	case errors.As(err, &unknown), errors.As(err, &f) && f.Unknown:
		return outcomeUnknown
	}
	return outcomeFailed
}

func (u *unit) emit(step string, done, total int64, text string) {
	if u.Observe != nil {
		u.Observe(Event{
			Unit: u.mac, Step: step, Index: u.step, Count: u.steps,
			Done: done, Total: total, Text: text, Elapsed: time.Since(u.start),
		})
	}
}

func (u *unit) markQuarantined(ctx context.Context, f *Failure) {
	if !u.custody {
		return
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), oneWayDeadline)
	defer cancel()
	_, err := u.Store.AddState(wctx, u.mac, u.fp, keystore.State{
		Kind: keystore.Quarantined, Note: stateNote(f.Reason), Job: u.id, Station: u.Station,
	})
	if err != nil {
		// The journal's verdict holds the quarantine; the store learns of it later
		// (Settle).
		u.unsettled = true
		u.warn("the keystore does not know yet that the unit is set aside: " + err.Error())
		u.emit(stepVerdict, 0, 0, "the keystore could not be told of the quarantine: "+err.Error())
	}
}
