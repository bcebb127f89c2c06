package provision

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
)

// StepRework is the step of the operator's entry that a rework begins with.
const StepRework = "rework"

const stepLoadKey = "load-key" // only in a rework

// Rework is a person's order to write a unit's flash anew, with the key that is
// in its silicon already. The person is Engine.Operator, and must be named.
type Rework struct {
	Reason string
	Keys   KeyLoader // reads the key; Engine.Store if nil
}

// KeyLoader reads a key back: a keystore.Store whose role may do that. A station's
// own role should not.
type KeyLoader interface {
	Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error)
}

// ReworkResult is what a rework was, in results and in its verdict's entry.
type ReworkResult struct {
	Reason   string `json:"reason"`
	Operator string `json:"operator"`
	Job      string `json:"job"`  // that burned the unit's key
	Done     bool   `json:"done"` // the flash is verified, and what could be booted has booted
}

// Rework writes and verifies the recipe's images on a unit whose key an earlier
// job burned, with that key from custody. It burns nothing, so every step of it
// can be repeated, and a rework that was cut off is ended by another one; until
// then Run refuses the unit.
//
// A finished unit passes again, with this recipe's images: the recipe must have
// the profile that the unit was made with. A unit that its job has not finished
// takes the same job's images only, and ends ABORTED: Run then finishes the job.
//
// The unit is refused unless its key is shown to be in it, by a key block that can
// still be read or one that the job hid after it had read the key back.
func (e *Engine) Rework(ctx context.Context, line Line, job *Job, order Rework) *Result {
	steps := 7
	if job.Recipe.BootCheck.Enabled() {
		steps++
	}
	u := e.newUnit(line, job, steps)
	defer func() { u.key.Wipe() }() // also when an observer panics
	err := u.rework(ctx, order)
	u.key.Wipe()
	u.finish(ctx, err)
	return u.res
}

func (u *unit) rework(ctx context.Context, order Rework) error {
	if u.Operator == "" || order.Reason == "" {
		return refuse("name who orders it and why: --operator NAME --rework REASON", "a rework needs an operator and a reason")
	}
	u.order = order.Reason
	if err := u.connectFirst(ctx); err != nil {
		return err
	}
	if err := u.inspect(ctx); err != nil {
		return err
	}
	r := reworking{unit: u, order: order}
	if err := r.admit(ctx); err != nil {
		return err
	}
	if err := r.loadKey(ctx); err != nil {
		return err
	}
	u.res.Rework = &ReworkResult{Reason: order.Reason, Operator: u.Operator, Job: r.madeBy}
	err := u.write(ctx, StepRework, journal.KindOperator, map[string]any{
		"reason": order.Reason, "key_fingerprint": u.fp.String(), "made_by": r.madeBy,
	})
	if err != nil {
		return err
	}
	if err := r.writeAndBoot(ctx); err != nil {
		return begun(ctx, err)
	}
	u.res.Rework.Done = true
	if r.unsaid {
		_ = u.tellStore(ctx, "reworked by "+u.Operator) // settleStore tries again
	}
	if !r.complete {
		return &Failure{
			Cause: CauseCancelled, Reason: "the flash is written anew, and the unit's job is not finished",
			NextStep: "start the same job without --rework: it goes on from what the chip shows",
		}
	}
	return nil
}

// begun: from the first write on nothing is a refusal any more, since the flash is
// not as it was.
func begun(ctx context.Context, err error) error {
	f := asFailure(ctx, err)
	if f.Cause != CauseRefused {
		return err
	}
	return &Failure{Cause: CauseStation, Reason: f.Reason, NextStep: "order the rework again when that is mended", Err: f.Err}
}

// reworking is a rework's view of its unit.
type reworking struct {
	*unit
	order    Rework
	madeBy   string // the job that burned the key
	lot      string
	complete bool // no fuse of the profile is missing
	unsaid   bool // the keystore says something else than in silicon
}

// admit looks for reasons against the rework. Nothing is written yet.
func (r *reworking) admit(ctx context.Context) error {
	recipe := r.job.Recipe
	intent := map[string]any{
		"recipe": recipe.Name, "recipe_revision": recipe.Revision, "profile": recipe.Profile, "rework_reason": r.order.Reason,
	}
	return r.do(ctx, stepPlan, intent, func(ctx context.Context) (observed, error) {
		meta, err := r.findKey(ctx)
		if err != nil {
			return nil, err
		}
		if err := r.showKey(meta); err != nil {
			return nil, err
		}
		r.past.keyBurned = true
		if err := r.makePlan(); err != nil {
			return nil, err
		}
		if err := r.checkUnitData(); err != nil {
			return nil, err
		}
		missing := r.expected(len(r.plan.Stages()) - 1).Verify(r.now)
		r.complete = missing == nil
		if r.past.finished && !r.complete {
			return nil, refuse("look at it with `provisiond inspect`", "unit %s passed, and its eFuses are not those of a finished unit: %v", r.mac, missing)
		}
		r.res.PlanSHA256 = r.plan.Hash()
		th := r.now.Table().Hash()
		saw := observed{
			"plan_sha256": r.res.PlanSHA256, "table_sha256": hex.EncodeToString(th[:]), "bits": len(r.plan.Bits()),
			"continues": true, "key_fingerprint": r.fp.String(), "made_by": r.madeBy,
		}
		if r.Lot == "" && r.lot != "" {
			saw["lot"] = r.lot
		} else if r.Lot != "" {
			saw["lot"] = r.Lot
		}
		return saw, nil
	})
}

// findKey asks journal and keystore about the unit and finds the key that it has.
func (r *reworking) findKey(ctx context.Context) (keystore.Meta, error) {
	fail := func(next, format string, args ...any) (keystore.Meta, error) {
		return keystore.Meta{}, refuse(next, format, args...)
	}
	entries, err := r.Journal.Unit(r.mac)
	if err != nil {
		return keystore.Meta{}, &Failure{Cause: CauseJournal, Reason: "the journal cannot be read", NextStep: "run `provisiond journal verify`", Err: err}
	}
	profile := ""
	if r.madeBy, profile, r.lot, err = madeBy(entries); err == nil {
		r.past, err = readHistory(entries, r.madeBy)
	}
	if err != nil {
		return keystore.Meta{}, &Failure{Cause: CauseJournal, Reason: "the journal does not tell this unit's history", NextStep: "run `provisiond journal verify`", Err: err}
	}
	switch {
	case r.madeBy == "":
		return fail("use the journal of the station that made it; a unit without a key is provisioned, not reworked",
			"the journal knows of no key that was burned into unit %s", r.mac)
	case !r.past.finished && r.madeBy != r.id:
		return fail("use the recipe and images that it was begun with", "unit %s was begun by another job (%s) and is not finished", r.mac, r.madeBy)
	case profile != string(r.job.Recipe.Profile):
		return fail("choose a recipe with that profile: a rework changes no fuse", "unit %s was made with profile %s, and the recipe has %s", r.mac, profile, r.job.Recipe.Profile)
	}
	metas, err := r.Store.List(ctx, r.mac)
	if err != nil {
		return keystore.Meta{}, keystoreFailure(ctx, err)
	}
	r.fp, r.facts = r.past.burnFP, r.past.facts
	i := slices.IndexFunc(metas, func(m keystore.Meta) bool { return m.Fingerprint == r.fp })
	switch {
	case i < 0:
		return fail("use the keystore that the unit was made with", "the keystore does not hold key %s of unit %s", r.fp, r.mac)
	case metas[i].Superseded():
		return fail("use the keystore that the unit was made with", "the keystore says that key %s of unit %s never reached silicon", r.fp, r.mac)
	}
	for k, m := range metas {
		if k != i && !m.Superseded() {
			return fail("an engineer decides which key it has: `provisiond audit reconcile` shows both", "the keystore holds another key of unit %s: %s", r.mac, m.Fingerprint)
		}
	}
	receipt, err := r.Store.Confirm(ctx, r.mac, r.fp)
	if err != nil {
		return keystore.Meta{}, keystoreFailure(ctx, err)
	}
	r.custody = true
	r.res.KeyFingerprint, r.res.KeyRef = r.fp.String(), receipt.Ref
	return metas[i], nil
}

// showKey demands a sign that the key is in this chip.
func (r *reworking) showKey(m keystore.Meta) error {
	if err := r.takeSlots(r.past.burned); err != nil {
		return refuse("use the provisiond that made it", "unit %s: %v", r.mac, err)
	}
	direct := true
	for _, s := range r.slots {
		b, err := r.now.KeyBlock(s.Block)
		if err != nil {
			return err
		}
		switch {
		case b.ReadProtected && !r.past.intents[stageProtect]: // begun only after the key had been read back
			return refuse("an engineer decides what becomes of it", "block %s of unit %s is hidden, and the journal does not tell that key %s was read back", b.Name, r.mac, r.fp)
		case b.ReadProtected:
			direct = false
		case b.Fingerprint != efuse.Fingerprint(s.Fingerprint):
			return refuse("look at it with `provisiond inspect`: it may be another board", "block %s of unit %s does not hold key %s", b.Name, r.mac, s.Fingerprint)
		}
	}
	r.unsaid = m.Current() != keystore.InSilicon
	if !direct && !r.canBoot() && (r.past.quarantined || m.Current() == keystore.Quarantined) {
		return refuse("use a recipe with a boot_check: only a boot can show that the key is the right one",
			"unit %s is quarantined, and nothing shows which key it has", r.mac)
	}
	return nil
}

// canBoot reports whether a boot would show that key and flash belong together.
func (r *reworking) canBoot() bool {
	v, err := r.now.Field(r.model.EFuse.FlashCryptCount)
	return err == nil && oddBits(v) && r.job.Recipe.BootCheck.Enabled()
}

// loadKey reads the key.
func (r *reworking) loadKey(ctx context.Context) error {
	keys := r.order.Keys
	if keys == nil {
		keys = r.Store
	}
	return r.do(ctx, stepLoadKey, map[string]any{"key_fingerprint": r.fp.String()}, func(ctx context.Context) (observed, error) {
		rec, err := keys.Load(ctx, r.mac, r.fp)
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, err
		}
		if err != nil {
			return nil, &Failure{
				Cause: CauseKeystore, Reason: "the key could not be read for the rework",
				NextStep: "a station's login may not read keys: give --rework-keystore with a ticket for this unit (`provisiond keystore ticket`), or --identity for a local keystore", Err: err,
			}
		}
		r.key = rec.Key
		switch {
		case !rec.Key.Fingerprint().Equal(r.fp), rec.Unit != r.mac, rec.Chip != r.model.Name, rec.Scheme != r.job.Recipe.Scheme():
			return nil, refuse("run `provisiond keystore check`", "the keystore's record %s is not that of this unit's key", r.res.KeyRef)
		case rec.Scheme == chip.SchemeESP32 && rec.FlashCryptConfig != flashCryptConfig:
			return nil, refuse("use the provisiond that made it", "the unit's FLASH_CRYPT_CONFIG is %d, and this build writes for %d only", rec.FlashCryptConfig, flashCryptConfig)
		}
		if err := r.deriveSecrets(); err != nil {
			return nil, err
		}
		if r.token != nil && (rec.OTATokenSHA256 == nil || !rec.OTATokenSHA256.Equal(*r.token)) {
			return nil, refuse("use a recipe whose unit_data have no .OTAToken: no server would know the unit by it",
				"the keystore's record %s has no such OTA token", r.res.KeyRef)
		}
		return observed{"key_fingerprint": r.fp.String(), "key_ref": r.res.KeyRef}, nil
	})
}

func (r *reworking) writeAndBoot(ctx context.Context) error {
	err := r.writeWithKey(ctx)
	r.key.Wipe() // the ciphertext is in flash
	if err != nil {
		return err
	}
	if r.canBoot() {
		if err := r.bootAndInspect(ctx); err != nil {
			return err
		}
	} else if err := r.reconnect(ctx); err != nil { // at the rate of a reset, before the last look
		return err
	}
	return r.proveOpen(ctx)
}

// madeBy finds the job that burned the unit's key, its profile and its lot.
func madeBy(entries []journal.Entry) (job, profile, lot string, err error) {
	for _, e := range entries {
		if e.Step == stageKey && e.Kind == journal.KindIntent {
			job = e.Job
		}
	}
	for _, e := range entries {
		if e.Job != job || e.Step != stepPlan {
			continue
		}
		var p struct {
			Profile string `json:"profile"`
			Lot     string `json:"lot"`
			Rework  string `json:"rework_reason"`
		}
		if err := json.Unmarshal(e.Payload, &p); err != nil {
			return "", "", "", fmt.Errorf("journal entry %d: %w", e.Index, err)
		}
		if p.Profile != "" && p.Rework == "" {
			profile = p.Profile
		}
		if p.Lot != "" {
			lot = p.Lot
		}
	}
	return job, profile, lot, nil
}
