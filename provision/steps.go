package provision

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/layout"
)

// connectFirst reaches a board that may be in any state.
func (u *unit) connectFirst(ctx context.Context) error {
	return u.do(ctx, stepConnect, u.jobFacts(), func(ctx context.Context) (observed, error) {
		m, err := u.connect(ctx)
		if err != nil {
			return nil, connectFailure(err)
		}
		if u.client.SecureDownload() {
			return observed{"chip": m.Name}, &Failure{
				Cause: CauseRefused, Closed: true, Reason: "the chip is in Secure Download Mode already",
				NextStep: "nothing can be read or burned any more: look the unit up in the journal by its label",
			}
		}
		if m.Name != u.job.Recipe.Chip {
			u.res.Chip = m.Name
			return observed{"chip": m.Name}, refuse("choose the recipe for this product, or take the board out",
				"the chip is an %s and recipe %s is for %s", m.Title, u.job.Recipe.Name, u.job.Recipe.Chip)
		}
		if u.line.Port.Info().USBOTG {
			// The ROM turns its download over USB-OTG off with flash encryption
			// (esp-facts E.4): half a unit would be out of reach.
			return observed{"chip": m.Name}, refuse("connect the board's UART, or its USB-JTAG-Serial where it has one",
				"the board hangs on the USB-OTG of its %s, over which no unit can be finished: flash encryption turns it off", m.Title)
		}
		u.model = m
		return observed{"chip": m.Name}, nil
	})
}

// jobFacts opens a run in the journal: what is to be done, to what, by whom and
// with what. The report package reads the members.
func (u *unit) jobFacts() map[string]any {
	r := u.job.Recipe
	facts := map[string]any{
		"port": u.line.Port.Info().Name, "recipe": r.Name, "recipe_revision": r.Revision,
		"recipe_sha256": Hash(r.Hash()), "profile": r.Profile,
	}
	for name, v := range map[string]string{"lot": u.Lot, "serial": u.line.Serial, "tool": u.Tool, "rework_reason": u.order} {
		if v != "" {
			facts[name] = v
		}
	}
	return facts
}

// connectFailure says what a board that gives no loader means before anything was done.
func connectFailure(err error) error {
	var ce *rom.ConnectError
	if errors.As(err, &ce) && ce.Diagnosis == rom.DownloadDisabled {
		return &Failure{
			Cause: CauseRefused, Closed: true, Reason: "the download mode of this chip is disabled",
			NextStep: "the unit is closed for ever; look it up in the journal by its label", Err: err,
		}
	}
	if errors.Is(err, chip.ErrUnknown) {
		return &Failure{Cause: CauseRefused, Reason: "this chip is not supported", NextStep: "take the board out", Err: err}
	}
	return err
}

func (u *unit) connect(ctx context.Context) (chip.Model, error) {
	c, err := rom.Connect(ctx, u.line.Port, u.line.Reset, rom.Options{Trace: u.Trace})
	if err != nil {
		return chip.Model{}, err
	}
	u.client = c
	m, err := c.Detect(ctx)
	if err != nil {
		return chip.Model{}, err
	}
	return m, c.StopWatchdogs(ctx)
}

// firmwareCloses names the usual cause of a loader that closes by itself: the default of
// a release build (ESP-IDF components/efuse/src/esp_efuse_startup.c and choice
// SECURE_UART_ROM_DL_MODE of components/bootloader/Kconfig.projbuild).
const firmwareCloses = "firmware built with CONFIG_SECURE_ENABLE_SECURE_ROM_DL_MODE or CONFIG_SECURE_DISABLE_ROM_DL_MODE does that when it starts: build it with CONFIG_SECURE_INSECURE_ALLOW_DL_MODE, the profile closes the loader last"

// reconnect resets into the loader and makes sure that the same board answers.
func (u *unit) reconnect(ctx context.Context) error {
	m, err := u.connect(ctx)
	var ce *rom.ConnectError
	if errors.As(err, &ce) && ce.Diagnosis == rom.DownloadDisabled {
		return u.surprise("the download mode of the chip is disabled, which nobody asked for yet; " + firmwareCloses)
	}
	if err != nil {
		return err
	}
	if u.client.SecureDownload() {
		return u.surprise("the chip is in Secure Download Mode, which nobody asked for yet; " + firmwareCloses)
	}
	if m.Name != u.model.Name {
		return u.otherBoard(m.Title)
	}
	return u.look(ctx)
}

// look reads all eFuses and compares the MAC.
func (u *unit) look(ctx context.Context) error {
	s, err := efuse.Read(ctx, u.client, u.model)
	if err != nil {
		return err
	}
	id, err := s.Identity()
	if err != nil {
		return u.surprise(fmt.Sprintf("the chip's identity does not read right: %v", err))
	}
	if u.known && id.MAC != u.mac {
		return u.otherBoard(id.MAC.String())
	}
	u.mac, u.known, u.rev = id.MAC, true, id.Revision
	u.now = s
	u.res.EFuseAfter = s.Words()
	return nil
}

func (u *unit) otherBoard(what string) error {
	return stationError(nil, "put the board back that was there, and start the same job again",
		"after a reset another board answers on this port: %s instead of %s", what, u.mac)
}

// surprise ends a run on something that no plan explains: before the first
// burn the unit is refused, after it the unit is quarantined.
func (u *unit) surprise(reason string) error {
	if u.burning {
		return quarantine("set the board aside for an engineer", "%s", reason)
	}
	return refuse("take the board out and look at it with `provisiond inspect`", "%s", reason)
}

// inspect reads what the chip is and what is in its fuses and on its board.
func (u *unit) inspect(ctx context.Context) error {
	return u.do(ctx, stepInspect, map[string]any{}, func(ctx context.Context) (observed, error) {
		if err := u.look(ctx); err != nil {
			return nil, err
		}
		u.before, u.model = u.now, u.job.Recipe.Model().At(u.rev)
		if err := u.takeKeys(); err != nil {
			return nil, &Failure{Cause: CauseRefused, Reason: "the job cannot be done on this chip", NextStep: "choose a recipe for this silicon", Err: err}
		}
		u.id = u.job.ID(u.mac)
		u.res.Unit, u.res.Simulated = u.mac.String(), u.mac.LocallyAdministered()
		u.res.Revision, u.res.Job = u.rev.String(), u.id
		u.res.EFuseBefore = u.now.Words()
		saw := observed{
			"chip": u.model.Name, "revision": u.rev.String(), "efuse": u.res.EFuseBefore,
			"efuse_errors": u.now.ErrorRegisters(), "simulated": u.res.Simulated,
		}
		id, err := u.attachFlash(ctx)
		if id.Size != 0 {
			saw["flash_id"], saw["flash_size"] = id.String(), id.Size
		}
		if err != nil {
			return saw, err
		}
		return saw, refused(u.job.Layout.CheckRevision(u.rev))
	})
}

// attachFlash tells the ROM about the flash chip, and refuses one that is too small.
func (u *unit) attachFlash(ctx context.Context) (rom.FlashID, error) {
	if err := u.client.AttachFlash(ctx); err != nil {
		return rom.FlashID{}, err
	}
	id, err := u.client.FlashID(ctx)
	if err != nil {
		return id, err
	}
	if id.Size == 0 {
		return id, refuse("check the flash chip and its soldering", "the flash chip does not tell its size (JEDEC id %s)", id)
	}
	if err := refused(u.job.Layout.CheckFlash(id.Size)); err != nil {
		return id, err
	}
	return id, u.client.SetFlashSize(ctx, id.Size)
}

// refused turns a layout's refusals into the engine's. All of them are told; the
// next step is that of the first.
func refused(err error) error {
	var first *layout.Refusal
	if !errors.As(err, &first) {
		return err
	}
	what := []string{first.What()}
	var all layout.Refusals
	if errors.As(err, &all) {
		what = what[:0]
		for _, r := range all {
			what = append(what, r.What())
		}
	}
	return &Failure{Cause: CauseRefused, Reason: strings.Join(what, "; "), NextStep: first.NextStep}
}

// admit decides whether this unit may be worked on: what journal and keystore
// know of it, and whether its fuses are explained; and makes the plan.
func (u *unit) admit(ctx context.Context) error {
	return u.do(ctx, stepPlan, map[string]any{"recipe": u.job.Recipe.Name, "recipe_revision": u.job.Recipe.Revision, "profile": u.job.Recipe.Profile},
		func(ctx context.Context) (observed, error) {
			if err := u.readPast(ctx); err != nil {
				return nil, err
			}
			if err := u.askAdmission(ctx); err != nil {
				return nil, err
			}
			if err := u.makePlan(); err != nil {
				return nil, err
			}
			if err := u.checkUnitData(); err != nil {
				return nil, err
			}
			u.res.PlanSHA256 = u.plan.Hash()
			th := u.now.Table().Hash()
			saw := observed{
				"plan_sha256": u.res.PlanSHA256, "table_sha256": hex.EncodeToString(th[:]),
				"bits": len(u.plan.Bits()), "continues": u.past.keyBurned, "security": u.job.security(),
			}
			if ids := advisoryIDs(u.model, u.rev); len(ids) > 0 {
				saw["advisories"] = ids
			}
			if u.past.unasked != "" {
				saw["warning"] = u.past.unasked
			}
			if u.line.Serial != "" {
				saw["serial"] = u.line.Serial
			}
			if u.Lot != "" {
				saw["lot"] = u.Lot
			}
			return saw, nil
		})
}

// askAdmission lets the lot decide whether it takes the unit, and which serial
// number it has.
func (u *unit) askAdmission(ctx context.Context) error {
	if u.Admit == nil {
		return nil
	}
	a, err := u.Admit(ctx, u.mac)
	var f *Failure
	switch {
	case errors.As(err, &f), err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return refuse("take the board out", "%s", err.Error())
	}
	if a.Serial != "" {
		u.line.Serial = a.Serial
	}
	u.res.Serial = u.line.Serial
	return nil
}

func (u *unit) readPast(ctx context.Context) error {
	entries, err := u.Journal.Unit(u.mac)
	if err != nil {
		return &Failure{Cause: CauseJournal, Reason: "the journal cannot be read", NextStep: "run `provisiond journal verify`", Err: err}
	}
	if u.past, err = readHistory(entries, u.id); err != nil {
		return &Failure{Cause: CauseJournal, Reason: "the journal does not tell this unit's history", NextStep: "run `provisiond journal verify`", Err: err}
	}
	if u.past.quarantined || u.past.finished {
		u.settlePast(ctx, entries) // nobody else comes back to such a unit
	}
	switch {
	case u.past.quarantined:
		return quarantine("an engineer decides what becomes of it", "unit %s is quarantined: %s", u.mac, u.past.reason)
	case u.past.reworking:
		return refuse("finish it with --rework REASON and the same recipe", "a rework of unit %s was begun and is not done: its flash may hold anything", u.mac)
	case u.past.finished:
		return &Failure{Cause: CauseRefused, Reason: fmt.Sprintf("unit %s is finished already", u.mac), NextStep: "take the board out: it is done", Finished: true}
	case u.past.otherJob != "":
		return refuse("start it with the recipe and images that it was begun with", "unit %s was begun by another job (%s)", u.mac, u.past.otherJob)
	}
	if err := u.askStore(ctx); err != nil {
		return u.goOnAlone(err)
	}
	return nil
}

// askStore asks the keystore about the unit.
func (u *unit) askStore(ctx context.Context) error {
	info, err := u.Store.Info(ctx)
	if err == nil {
		err = keystore.CheckUnit(u.mac, info.TestStore)
	}
	if err != nil {
		return keystoreFailure(ctx, err)
	}
	metas, err := u.Store.List(ctx, u.mac)
	partial := errors.Is(err, keystore.ErrPartial)
	if err != nil && !partial {
		return keystoreFailure(ctx, err)
	}
	if rerr := u.reconcile(ctx, metas); rerr != nil {
		return rerr
	}
	if partial {
		u.past.unasked = err.Error()
		if u.past.intents[stageKey] && !u.past.keyBurned && !u.past.gaveUp {
			// The part that could not be asked may hold the key that is in silicon.
			return keystoreFailure(ctx, err)
		}
	}
	return nil
}

// goOnAlone lets a unit be finished without the keystore while that is away: its
// custody was confirmed to this job, the burn of that key was begun, and the chip
// shows it. Such a unit needs the keystore no more, and is told of later. Every other
// one gets the error.
func (u *unit) goOnAlone(err error) error {
	if !errors.Is(err, keystore.ErrUnavailable) || !u.past.intents[stageKey] ||
		u.past.burnFP.IsZero() || u.past.fp != u.past.burnFP {
		return err
	}
	if shown, serr := u.showsKey(u.past.burnFP); !shown {
		return errors.Join(err, serr)
	}
	u.burning, u.custody, u.untold, u.past.keyBurned = true, true, true, true
	u.fp = u.past.burnFP
	u.res.KeyRef, u.res.KeyFingerprint = u.past.ref, u.fp.String()
	u.past.unasked = "the keystore is away and was not asked about the unit, whose key is in silicon: " + err.Error()
	u.warn(u.past.unasked)
	return nil
}

// showsKey reports whether the keys whose burn this job began with this key are in
// the chip.
func (u *unit) showsKey(fp keystore.Fingerprint) (bool, error) {
	if u.past.burnFP != fp {
		return false, nil
	}
	if err := u.takeSlots(u.past.burned); err != nil {
		return false, err
	}
	state, err := u.slotsShow()
	return state == slotsShown || state == slotsHidden, err
}

// reconcile holds the keystore's records against the journal and the chip. What
// may be in the chip is looked for first: nothing is given up before the chip has
// shown that it holds no key, and nothing ever that another station stored. A
// job's name is the same at every station, and a sealed key that was burned there
// reads here as one whose burn was not begun.
func (u *unit) reconcile(ctx context.Context, metas []keystore.Meta) error {
	var unburned []keystore.Meta
	for _, m := range metas {
		if m.Superseded() {
			u.past.gaveUp = u.past.gaveUp || m.Fingerprint == u.past.burnFP
			continue
		}
		known := fmt.Sprintf("the keystore knows unit %s already: key %s", u.mac, m.Fingerprint)
		if !u.ownStation(m) {
			return refuse(fmt.Sprintf("start it on station %q and with the job that it was begun with", m.Station), "%s of station %q", known, m.Station)
		}
		if m.MayBeInSilicon() && (!u.ownJob(m) || !u.past.intents[stageKey]) {
			return refuse("start it on the station and with the job that it was begun with", "%s", known)
		}
		if m.Current() == keystore.Quarantined {
			return quarantine("an engineer decides what becomes of it", "the keystore says that unit %s is quarantined", u.mac)
		}
		if !m.MayBeInSilicon() {
			unburned = append(unburned, m)
			continue
		}
		if err := u.recogniseKey(ctx, m); err != nil {
			return err
		}
	}
	if u.past.keyBurned {
		return nil // what else is stored is left to those who compare (keystore/escrow)
	}
	return u.giveUp(ctx, unburned)
}

// ownStation reports whether a record is this station's. A store whose role may not
// see that leaves it empty; then the journal knows the key or not.
func (u *unit) ownStation(m keystore.Meta) bool {
	if m.Station == "" {
		return m.Fingerprint == u.past.fp || m.Fingerprint == u.past.burnFP
	}
	return m.Station == u.Station
}

// ownJob reports whether a record is this job's, like ownStation.
func (u *unit) ownJob(m keystore.Meta) bool {
	return m.Job == u.id || m.Job == "" && m.Fingerprint == u.past.fp
}

// giveUp supersedes this station's keys whose burn was not begun, whichever job made
// them: the store is told before that. They are gone with the process that made them,
// and another takes their place. The chip must show that none of them is in it all
// the same.
func (u *unit) giveUp(ctx context.Context, unburned []keystore.Meta) error {
	if len(unburned) == 0 {
		return nil
	}
	if err := u.checkBlocks(); err != nil {
		return err
	}
	for _, b := range u.now.KeyBlocks() {
		if slices.ContainsFunc(u.now.BlockErrors(), func(e efuse.BlockError) bool { return e.Block == b.Name }) {
			return u.surprise(fmt.Sprintf("key block %s shows errors, as a burn that was cut off leaves them, and the keystore knows of no burn", b.Name))
		}
	}
	for _, m := range unburned {
		note := "no burn was begun; the job starts again"
		if !u.ownJob(m) {
			note = "no burn was begun; another job takes the unit"
		}
		_, err := u.Store.AddState(ctx, u.mac, m.Fingerprint, keystore.State{
			Kind: keystore.Superseded, Note: note, Job: u.id, Station: u.Station,
		})
		if err != nil {
			return keystoreFailure(ctx, err)
		}
		u.past.gaveUp = u.past.gaveUp || m.Fingerprint == u.past.burnFP
	}
	return nil
}

// recogniseKey finds out whether the key of an earlier run is in this chip.
func (u *unit) recogniseKey(ctx context.Context, m keystore.Meta) error {
	u.burning, u.fp, u.custody = true, m.Fingerprint, true
	receipt, err := u.Store.Confirm(ctx, u.mac, m.Fingerprint)
	if err != nil {
		return keystoreFailure(ctx, err)
	}
	shown, err := u.showsKey(m.Fingerprint)
	if err != nil {
		return err
	}
	if shown { // makePlan says what it thinks of keys elsewhere
		u.past.keyBurned = true
		u.res.KeyRef, u.res.KeyFingerprint = receipt.Ref, m.Fingerprint.String()
		u.warn(receipt.Warning)
		_ = u.tellStore(ctx, "recognised") // settleStore tries again
		return nil
	}
	state, err := u.slotsShow()
	if err != nil {
		return err
	}
	if state != slotsBlank || u.past.burnFP != m.Fingerprint {
		return quarantine("set the board aside for an engineer: `provisiond inspect` shows its key blocks",
			"the burn of key %s was begun, and no key block of the chip shows that key", m.Fingerprint)
	}
	// The burn was cut off before it did anything, and the key is gone with the
	// process that made it. The store learns what was seen before a new key.
	if err := u.keyState(ctx, keystore.NotInSilicon, "the key block reads blank"); err != nil {
		return err
	}
	u.burning, u.custody, u.past.gaveUp = false, false, true
	return u.keyState(ctx, keystore.Superseded, "the job starts again")
}

func keystoreFailure(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err // cancelled before anything was written
	}
	f := &Failure{Cause: CauseKeystore, Reason: "the keystore did not do its part", NextStep: "check it with `provisiond keystore describe`, then start the same job again", Err: err}
	f.Away = errors.Is(err, keystore.ErrUnavailable) || errors.Is(err, keystore.ErrUnknownOutcome) || errors.Is(err, keystore.ErrPartial)
	if errors.Is(err, keystore.ErrConflict) || errors.Is(err, keystore.ErrExists) || errors.Is(err, keystore.ErrTestUnit) {
		f.Cause, f.Reason, f.NextStep = CauseRefused, "the keystore refuses the unit", "take the board out; `provisiond keystore describe` tells what the store is for"
	}
	return f
}

// makePlan plans the burns that are still to do and refuses a chip whose fuses
// nobody explains.
func (u *unit) makePlan() error {
	if err := u.checkBlocks(); err != nil {
		return err
	}
	if scheme, err := u.now.CodingScheme(); err == nil && scheme == efuse.Scheme34 && u.job.Recipe.AntiRollback {
		return refuse("take the board out: this product needs a chip with coding scheme none", "the chip has coding scheme %s, where secure versions cannot be counted", scheme)
	}
	all, err := u.job.stages(u.model, u.now.Table())
	if err != nil {
		return &Failure{Cause: CauseRefused, Reason: "the job cannot be done on this chip", NextStep: "choose a recipe for this silicon", Err: err}
	}
	foreign, err := foreignFuses(u.model, u.now, all, u.past.intents)
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		return u.surprise("fuses are set that nobody explains: " + strings.Join(foreign, ", "))
	}
	for i := range all {
		// A stage that was begun may have been cut off in the middle of a burn. What
		// is half burned is burned again.
		all[i].Resume = u.past.intents[all[i].Name]
	}
	if u.past.keyBurned {
		if all, err = u.afterKeys(all); err != nil {
			return err
		}
	} else if u.past.intents[stageKey] && !u.past.gaveUp {
		return quarantine("set the board aside for an engineer", "a key burn was begun for unit %s and the keystore holds no key for it", u.mac)
	}
	if err := u.setPlan(all); err != nil {
		if u.burning {
			return quarantine("set the board aside for an engineer", "what is still to burn does not fit the chip: %v", err)
		}
		return &Failure{Cause: CauseRefused, Reason: "the plan does not fit the chip", NextStep: "look at the chip with `provisiond inspect`", Err: err}
	}
	return nil
}

// afterKeys leaves of the stages what is to do when their keys are in their blocks.
// burn-key is done with all of its keys, or the unit does not come here. A digest is
// no secret, so what was cut off is burned again.
func (u *unit) afterKeys(all []efuse.Stage) ([]efuse.Stage, error) {
	for i := range all {
		st := &all[i]
		var left []efuse.KeyBurn
		for _, k := range st.Keys {
			s, _ := u.slotAt(k.Block)
			shown, err := u.slotShows(s)
			if err != nil {
				return nil, err
			}
			if st.Name != stageKey && (!shown || u.damaged(k.Block)) {
				// Spent: at least one burn of it was begun.
				if k.Resume = st.Resume; k.Resume {
					k.Spent = 1
				}
				left = append(left, k)
				continue
			}
			if err := u.lackingPurpose(st, k); err != nil {
				return nil, err
			}
		}
		st.Keys = left
	}
	return slices.DeleteFunc(all, func(s efuse.Stage) bool {
		return len(s.Keys)+len(s.Set)+len(s.WriteProtect)+len(s.ReadProtect) == 0
	}), nil
}

// damaged reports errors in the block of a slot, also when its decoder mends them.
func (u *unit) damaged(slot string) bool {
	t := u.now.Table()
	s, _ := t.Slot(slot)
	return slices.ContainsFunc(u.now.BlockErrors(), func(e efuse.BlockError) bool { return e.Block == t.Blocks()[s.Block].Name })
}

// lackingPurpose adds the purpose of a key that is in its block. It is burned after
// the key: without it, or with half of it, the block is none that encrypts, and the
// next stage would lock it so.
func (u *unit) lackingPurpose(st *efuse.Stage, k efuse.KeyBurn) error {
	t := u.now.Table()
	p, ok := t.Purpose(k.Purpose)
	if !ok {
		return fmt.Errorf("the %s has no key purpose %s", u.model.Title, k.Purpose)
	}
	says := purposeBits(t, k.Block, p)
	for _, a := range says {
		v, err := u.now.Field(a.Field)
		if err != nil {
			return err
		}
		if v != uint64(a.Value) || u.halfBurned(a.Field) {
			st.Set = append(st.Set, a)
		}
	}
	return nil
}

// halfBurned reports that the copies of a bit of a BLOCK0 field disagree.
func (u *unit) halfBurned(field string) bool {
	for _, e := range u.now.BlockErrors() {
		for _, b := range e.Bits {
			if b.Field == field {
				return true
			}
		}
	}
	return false
}

// setPlan checks stages against what the chip shows now.
func (u *unit) setPlan(todo []efuse.Stage) error {
	plan, err := efuse.NewPlan(u.model, todo...).Check(u.now)
	if err == nil {
		u.plan, u.todo = plan, plan.Stages()
	}
	return err
}

// expected is what the chip has to show after a stage of the plan, the digests that it
// trusts included: those can be read for ever.
func (u *unit) expected(stage int) efuse.Expectation {
	e := u.plan.Expected(stage)
	for _, s := range slices.Concat(u.slots, u.digests) {
		if s.origin.kind == originDigest {
			e = e.WithKey(s.Block, efuse.Fingerprint(s.Fingerprint))
		}
	}
	return e
}

// at is the index in the plan of the first stage that is not burned.
func (u *unit) at() int { return len(u.plan.Stages()) - len(u.todo) }

// checkBlocks refuses a chip with a key block in use that is not this job's. Such a
// key is a foreign one, also when nothing says yet what it is for.
func (u *unit) checkBlocks() error {
	var used []string
	for _, b := range u.now.KeyBlocks() {
		if !b.Free && !u.mayHold(b.Name) {
			used = append(used, b.Name)
		}
	}
	if len(used) > 0 {
		return u.surprise(fmt.Sprintf("key blocks are in use or protected: %s", strings.Join(used, ", ")))
	}
	return nil
}

// mayHold reports whether this job has put something into a block.
func (u *unit) mayHold(block string) bool {
	t := u.now.Table()
	in, _ := t.Slot(block)
	is := func(s keySlot) bool { // half a block is as good as the block: it takes one burn
		own, ok := t.Slot(s.Block)
		return ok && own.Block == in.Block
	}
	return u.past.keyBurned && slices.ContainsFunc(u.slots, is) ||
		u.past.intents[stageDigests] && slices.ContainsFunc(u.digests, is)
}

// takeCustody stores the key and proves it, directly before the burn.
func (u *unit) takeCustody(ctx context.Context) error {
	if err := u.prepareBurn(ctx); err != nil {
		return err
	}
	changed, err := efuse.Diff(u.before, u.now)
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		return u.surprise(fmt.Sprintf("the eFuses changed while the flash was written: %v", changed))
	}
	rec := u.record()
	intent := map[string]any{"key_fingerprint": u.fp.String()}
	return u.do(ctx, stepCustody, intent, func(ctx context.Context) (observed, error) {
		u.reserved = false
		if _, err := u.Store.Create(ctx, rec); err != nil {
			return nil, keystoreFailure(ctx, err)
		}
		receipt, err := u.Store.Confirm(ctx, u.mac, u.fp)
		if err != nil {
			return nil, keystoreFailure(ctx, err)
		}
		u.custody = true
		u.res.KeyRef = receipt.Ref
		u.warn(receipt.Warning)
		saw := observed{
			"key_fingerprint": u.fp.String(), "key_ref": receipt.Ref, "key_version": receipt.Version, "store": receipt.Store,
		}
		if receipt.Warning != "" {
			saw["warning"] = receipt.Warning
		}
		if rec.OTATokenSHA256 != nil {
			saw["ota_token_sha256"] = rec.OTATokenSHA256
		}
		if len(rec.ECIESPublicKey) > 0 {
			saw["ecies_public_key"] = hex.EncodeToString(rec.ECIESPublicKey)
		}
		return saw, nil
	})
}

// warn notes what does not change the verdict.
func (u *unit) warn(text string) {
	if text != "" {
		u.res.Warnings = append(u.res.Warnings, text)
	}
}

// prepareBurn makes the line fit for register writes, which carry no checksum:
// a reset, 115200 baud, and 4 KiB of exchange without a fault.
func (u *unit) prepareBurn(ctx context.Context) error {
	var err error
	for range lineTries {
		if err = u.reconnect(ctx); err == nil {
			err = u.client.ExchangeTest(ctx, exchangeBytes)
		}
		var f *Failure
		if err == nil || errors.As(err, &f) || ctx.Err() != nil || errors.Is(err, rom.ErrUnplugged) {
			return err
		}
	}
	return stationError(err, "check cable, fixture, hub and power supply, then start the same job again",
		"the line is too noisy for burning fuses")
}

func (u *unit) record() keystore.Record {
	r := u.job.Recipe
	table, _ := u.job.Layout.Table.MarshalBinary() // it was parsed from such bytes
	rec := keystore.Record{
		Schema: keystore.SchemaVersion, Unit: u.mac, Simulated: u.mac.LocallyAdministered(),
		Chip: u.model.Name, ChipRevision: u.rev, Scheme: r.Scheme(), Key: u.key, Fingerprint: u.fp,
		PartitionTable: table, FlashSize: u.job.Layout.FlashSize,
		Recipe: r.Name, RecipeRevision: r.Revision, RecipeHash: fmt.Sprintf("%x", r.Hash()),
		Job: u.id, Station: u.Station, Lot: u.Lot, Created: u.start.UTC(),
		OTATokenSHA256: u.token, ECIESPublicKey: u.ecies,
	}
	if r.SecureBoot != nil {
		rec.SecureBootScheme = string(r.SecureBoot.Scheme)
		for _, k := range r.SecureBootKeys {
			rec.SecureBootDigests = append(rec.SecureBootDigests, k.Digest())
		}
	}
	if rec.Scheme == chip.SchemeESP32 {
		rec.FlashCryptConfig = flashCryptConfig
	}
	return rec
}

// proveOpen ends a unit whose loader stays open: fuses as planned, then a last
// reset so that the product runs.
func (u *unit) proveOpen(ctx context.Context) error {
	return u.do(ctx, stepProof, map[string]any{}, func(ctx context.Context) (observed, error) {
		if err := u.look(ctx); err != nil {
			return nil, err
		}
		if err := u.expected(u.at() - 1).Verify(u.now); err != nil {
			return nil, quarantine("set the board aside for an engineer", "the eFuses are not as planned: %v", err)
		}
		if err := u.line.Reset.Run(ctx, u.line.Port); err != nil {
			return nil, err
		}
		return observed{"efuse": u.now.Words()}, nil
	})
}

// tellStore tells the store that the key is in silicon. From the burn on the unit
// needs the store no more, so an outage of it must not keep the unit from being
// finished: what the store did not take is told again at the end, and until then
// it says that the key may be in silicon, which is true.
func (u *unit) tellStore(ctx context.Context, note string) error {
	limited, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	err := u.keyState(limited, keystore.InSilicon, note)
	u.untold = err != nil
	return err
}

// settleStore tells the store what it did not take before.
func (u *unit) settleStore(ctx context.Context) {
	if !u.untold {
		return
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*storePatience)
	defer cancel()
	if err := u.tellStore(own, "told late"); err != nil {
		u.res.Warnings = append(u.res.Warnings, "the keystore does not know yet that the key is in silicon: "+err.Error())
	}
}

func (u *unit) keyState(ctx context.Context, kind keystore.StateKind, note string) error {
	_, err := u.Store.AddState(ctx, u.mac, u.fp, keystore.State{Kind: kind, Note: note, Job: u.id, Station: u.Station})
	if err != nil {
		return keystoreFailure(ctx, err)
	}
	return nil
}
