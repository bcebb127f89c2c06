package provision

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/secret"
	"github.com/provisiond/provisiond/keystore"
)

// burn runs the next stage of the plan.
func (u *unit) burn(ctx context.Context) error {
	stage := u.todo[0]
	isKey := stage.Name == stageKey && len(stage.Keys) > 0 // else the keys are there and a purpose is not
	intent := map[string]any{"plan_sha256": Hash(u.plan.Hash())}
	if stage.Name == stageKey {
		intent["key_fingerprint"], intent["block"], intent["slots"] = u.fp.String(), u.slots[0].Block, u.slots
	}
	return u.do(ctx, stage.Name, intent, func(ctx context.Context) (observed, error) {
		if isKey {
			// The store must know before the chip can: a second key is now impossible.
			if err := u.keyState(ctx, keystore.MayBeInSilicon, "burn begins"); err != nil {
				return nil, err
			}
		}
		u.burning = true
		saw, err := u.burnUntilKnown(ctx)
		if err == nil && isKey {
			u.key.Wipe() // chip and keystore have it: nothing here needs it any more
			if terr := u.tellStore(ctx, "read back"); terr != nil {
				saw["keystore"] = terr.Error()
			}
		}
		return saw, err
	})
}

// burnUntilKnown burns a stage. When the outcome is unknown it looks at the chip
// and plans anew for what is seen to be missing, a few times at most.
func (u *unit) burnUntilKnown(ctx context.Context) (observed, error) {
	name := u.todo[0].Name
	var failures []string
	sent := false             // a burn command was, or may have been
	spent := map[string]int{} // burns of each key block
	for {
		rep, err := u.burnOnce(ctx)
		countBurns(spent, rep)
		saw := observed{"report": rep, "failures": failures}
		if err == nil {
			u.see(rep.After)
			return saw, nil
		}
		if burnedWrong(err) {
			return saw, quarantine("set the board aside for an engineer", "%s: %v", name, err)
		}
		var unknown *efuse.IndeterminateError
		sent = sent || errors.As(err, &unknown)
		failures = append(failures, err.Error())
		if len(failures) == burnTries && sent {
			return saw, unsure(quarantine("set the board aside for an engineer", "%s was not complete after %d tries: %v", name, burnTries, err))
		}
		if len(failures) == burnTries {
			return saw, stationError(err, "check cable, fixture and power supply, then start the same job again", "%s could not be begun", name)
		}
		done, err := u.lookAfter(ctx, spent)
		if err != nil || done {
			return observed{"failures": failures, "efuse": u.now.Words()}, err
		}
	}
}

// countBurns adds the burn commands that each key block got.
func countBurns(spent map[string]int, rep *efuse.Report) {
	if rep == nil {
		return
	}
	for _, b := range rep.Burns {
		if b.Step == efuse.StepKey {
			spent[b.Block] += b.Attempts
		}
	}
}

// burnedWrong: the chip shows what nobody planned, and more burning cannot help.
func burnedWrong(err error) bool {
	var (
		wrong *efuse.BurnError
		extra *efuse.UnexpectedBitsError
	)
	return errors.As(err, &wrong) || errors.As(err, &extra) || errors.Is(err, efuse.ErrKeyMismatch)
}

func (u *unit) see(s *efuse.Snapshot) {
	u.now = s
	u.res.EFuseAfter = s.Words()
}

func (u *unit) burnOnce(ctx context.Context) (*efuse.Report, error) {
	var keys []*secret.Bytes
	defer func() {
		for _, k := range keys {
			k.Wipe()
		}
	}()
	for _, k := range u.todo[0].Keys {
		s, ok := u.slotAt(k.Block)
		if !ok {
			return nil, fmt.Errorf("nothing says what goes into %s", k.Block)
		}
		b, err := u.bytesOf(s)
		if err != nil {
			return nil, err
		}
		keys = append(keys, b)
	}
	return efuse.Burn(ctx, u.client, u.model, u.plan, u.at(), keys...)
}

// lookAfter resolves an unknown outcome by reading. It reports whether the stage
// is in the chip; if it is not, or only a part of it, the plan is made anew from
// what the chip shows.
// spent says how often the stage's key blocks were burned so far.
func (u *unit) lookAfter(ctx context.Context, spent map[string]int) (bool, error) {
	stage := u.todo[0]
	if err := u.prepareBurn(ctx); err != nil {
		var f *Failure
		if errors.As(err, &f) && f.Cause == CauseQuarantined {
			return false, err
		}
		return false, unsure(stationError(err, "mend the line and start the same job again: it looks at the chip first",
			"the outcome of %s is unknown and the chip cannot be looked at", stage.Name))
	}
	want := u.expected(u.at())
	for _, k := range stage.Keys {
		if s, ok := u.slotAt(k.Block); ok {
			want = want.WithKey(k.Block, efuse.Fingerprint(s.Fingerprint))
		}
	}
	err := want.Verify(u.now)
	var differs *efuse.UnexpectedBitsError
	switch {
	case err == nil:
		return true, nil
	case !errors.As(err, &differs):
		return false, err
	case len(differs.Outside) > 0:
		return false, quarantine("set the board aside for an engineer", "after %s: %v", stage.Name, err)
	}
	for i := range stage.Keys {
		// Only the same key may go into a block that holds a part of it; Burn
		// makes sure of that.
		k := &u.todo[0].Keys[i]
		slot, _ := u.now.Table().Slot(k.Block)
		k.Resume, k.Spent = true, spent[u.now.Table().Blocks()[slot.Block].Name]
	}
	u.todo[0].Resume = true
	if perr := u.setPlan(u.todo); perr != nil {
		return false, quarantine("set the board aside for an engineer", "%s is incomplete and cannot be completed: %v", stage.Name, perr)
	}
	return false, nil
}

// bootAndInspect lets the product boot once from what was written, reads its
// text, and reads all fuses again: a bootloader may burn fuses of its own.
func (u *unit) bootAndInspect(ctx context.Context) error {
	if !u.job.Recipe.BootCheck.Enabled() {
		return nil
	}
	booted := u.bootCheck(ctx, stepBoot)
	var failed *Failure
	switch {
	case booted == nil:
		if err := u.prepareBurn(ctx); err != nil {
			return err
		}
	case errors.As(booted, &failed) && failed.Cause == CauseUnit:
		// The unit gets the blame only if it is still the one on the line, and not
		// for what its bootloader did to its fuses.
		if err := u.reconnect(ctx); errors.As(err, &failed) {
			return failed
		} else if err != nil {
			return booted
		}
	default:
		return booted
	}
	if err := u.expected(u.at() - 1).Verify(u.now); err != nil {
		return quarantine("set the board aside for an engineer", "after the first boot the eFuses are not as planned: %v", err)
	}
	return booted
}

const (
	bootLoops  = 4 // so many banners of the ROM mean that the chip does not get on
	bootResets = 3 // of a boot check: at one damaged byte in 10⁴, one text in a hundred is damaged
)

// bootCheck resets the board and waits for the product's text. Only what comes
// after that reset's ROM banner counts.
func (u *unit) bootCheck(ctx context.Context, step string) error {
	check := u.job.Recipe.BootCheck
	return u.do(ctx, step, map[string]any{"expect": check.Expect, "timeout_ms": check.Timeout.Milliseconds()},
		func(ctx context.Context) (observed, error) {
			for reset := 1; ; reset++ {
				text, err := u.bootText(ctx)
				saw := observed{"text": printable(text), "text_hex": hex.EncodeToString(tail(text, 256)), "resets": reset}
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					return saw, err
				}
				if ctx.Err() != nil {
					return saw, ctx.Err()
				}
				if u.booted(text) {
					return saw, nil
				}
				// A damaged byte in the text is the line's fault, and gets a second
				// reset. Silence and a boot loop are the unit's.
				if reset == bootResets || len(text) == 0 || u.bootLoop(text) {
					return saw, failUnit("look at the text: "+bootHint(text),
						"the unit did not boot: %q did not come within %s; the last text was %q", check.Expect, check.Timeout, printable(tail(text, 120)))
				}
			}
		})
}

// bootText resets into the product and reads until it has said what it should,
// until it is seen to be in a loop, or until the time is over.
func (u *unit) bootText(ctx context.Context) ([]byte, error) {
	if err := u.line.Port.SetBaud(ctx, burnBaud); err != nil {
		return nil, err
	}
	if err := u.line.Port.Discard(ctx); err != nil {
		return nil, err
	}
	if err := u.line.Reset.Run(ctx, u.line.Port); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, u.job.Recipe.BootCheck.Timeout)
	defer cancel()
	return rom.ReadText(limited, u.line.Port, func(text []byte) bool {
		return u.booted(text) || u.bootLoop(text)
	})
}

func (u *unit) bootLoop(text []byte) bool { return bytes.Count(text, u.model.ROM.Banner) >= bootLoops }

func (u *unit) booted(text []byte) bool {
	_, after, ok := bytes.Cut(text, u.model.ROM.Banner)
	return ok && bytes.Contains(after, []byte(u.job.Recipe.BootCheck.Expect))
}

// bootHint names the usual cause of a text (esp-facts H.16).
func bootHint(text []byte) string {
	s := string(text)
	switch {
	case len(s) == 0:
		return "there is none; check power and the TX line"
	case strings.Contains(s, "invalid header"), strings.Contains(s, "flash read err"):
		return "the bootloader does not match key, offset or scheme"
	case strings.Contains(s, "invalid magic number"):
		return "the partition table does not decrypt; check its offset"
	case strings.Contains(s, "invalid magic byte"), strings.Contains(s, "No bootable app"):
		return "no application decrypts at its address"
	case strings.Contains(s, "Secure Boot"), strings.Contains(s, "secure boot verification failed"), strings.Contains(s, "signature verification failed"):
		return "ROM or bootloader does not take a signature: compare the images' keys with secure_boot of the recipe (`provisiond image verify`)"
	}
	return "compare it with what recipe boot_check.expect demands"
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// printable keeps a board's text from doing things to a terminal or a page.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= 0x20 && r < 0x7F {
			return r
		}
		if r == '\r' {
			return -1
		}
		return '.'
	}, string(tail(b, 2048)))
}

// close burns the last fuse and looks for evidence that it works.
func (u *unit) close(ctx context.Context) error {
	fuse := u.todo[0].Set[0].Field
	intent := map[string]any{"plan_sha256": Hash(u.plan.Hash()), "fuse": fuse}
	return u.do(ctx, stageClose, intent, func(ctx context.Context) (observed, error) {
		u.burning = true
		if err := u.checkRelease(); err != nil {
			return nil, err
		}
		for try := 1; ; try++ {
			rep, err := u.burnOnce(ctx)
			saw := observed{"fuse": fuse, "report": rep}
			var unknown *efuse.IndeterminateError
			switch {
			case err == nil:
			case burnedWrong(err):
				saw["burn_error"] = err.Error()
				return saw, quarantine("set the board aside for an engineer", "%s: %v", stageClose, err)
			case errors.As(err, &unknown):
				saw["burn_error"], rep = err.Error(), nil
			case try < burnTries:
				// Nothing was sent that burns: the line gets another chance.
				if perr := u.prepareBurn(ctx); perr != nil {
					return observed{"fuse": fuse, "burn_error": err.Error()}, perr
				}
				continue
			default:
				saw["burn_error"] = err.Error()
				return saw, err
			}
			c, err := u.closingEvidence(ctx, fuse, rep)
			if errors.Is(err, errLoaderOpen) && rep == nil && try < burnTries {
				// Whether the fuse was burned was unknown, and the loader is open: it tells.
				if err = u.planClosing(ctx); err == nil {
					continue
				}
			}
			if err != nil {
				return saw, err
			}
			u.res.Closing = c
			saw["closing"] = c
			return saw, nil
		}
	})
}

// errLoaderOpen: the last fuse should close the loader, and it answers in full.
var errLoaderOpen = errors.New("the loader is still open")

// planClosing looks at a chip whose loader is open after a closing with an unknown
// outcome. If the last fuse is not there, or half of it, the plan is made anew.
func (u *unit) planClosing(ctx context.Context) error {
	if err := u.prepareBurn(ctx); err != nil {
		return err
	}
	if err := u.expected(u.at()).Verify(u.now); err == nil {
		return stillOpen(u.todo[0].Set[0].Field)
	}
	u.todo[0].Resume = true
	if err := u.setPlan(u.todo); err != nil {
		return quarantine("set the board aside for an engineer", "%s is incomplete and cannot be completed: %v", stageClose, err)
	}
	return nil
}

func stillOpen(fuse string) *Failure {
	f := quarantine("set the board aside for an engineer", "%s was burned", fuse)
	f.Err = errLoaderOpen
	return f
}

// proveClosed boots the closed unit on the same port.
func (u *unit) proveClosed(ctx context.Context) error {
	err := u.bootCheck(ctx, stepProof)
	if err == nil {
		return nil
	}
	f := asFailure(ctx, err)
	if f.Cause == CauseJournal {
		return err
	}
	// Closed and not seen to boot: nothing can be mended or looked at any more.
	next := "set the board aside; its label and the journal tell which unit it is"
	if f.Cause == CauseUnit {
		next = f.NextStep
	}
	return &Failure{Cause: CauseQuarantined, Reason: "the unit is closed and was not seen to boot: " + f.Reason, NextStep: next, Err: f.Err}
}

// closingEvidence looks for a positive sign that the last fuse works. Silence
// is none: an unplugged cable is silent too.
func (u *unit) closingEvidence(ctx context.Context, fuse string, rep *efuse.Report) (*Closing, error) {
	var readBack *Closing
	// On the newer chips the loader obeys the fuse at once, so one that still reads
	// registers has not been closed.
	obeysLater := u.model.EFuse.Kind == chip.EFuseESP32
	if rep != nil && rep.After != nil && !rep.LoaderLost {
		u.see(rep.After)
	}
	if obeysLater && rep != nil && rep.After != nil && !rep.LoaderLost {
		if v, err := u.now.Field(fuse); err == nil && v == 1 {
			readBack = &Closing{Fuse: fuse, Evidence: EvidenceReadBack, Raw: blockHex(u.now)}
		}
	}
	_, err := u.connect(ctx)
	var ce *rom.ConnectError
	switch {
	case err == nil && u.client.SecureDownload() && fuse != u.model.Lockdown.ClosedFuse:
		return u.secureDownloadEvidence(ctx, fuse)
	case err == nil:
		return nil, stillOpen(fuse)
	case errors.As(err, &ce) && ce.Diagnosis == rom.DownloadDisabled && fuse == u.model.Lockdown.ClosedFuse:
		at := bytes.Index(ce.Text, u.model.ROM.DownloadDisabled)
		return &Closing{Fuse: fuse, Evidence: EvidenceRefusal, Raw: hex.EncodeToString(tail(ce.Text[max(at, 0):], 256))}, nil
	case readBack != nil && errors.As(err, &ce):
		return readBack, nil
	}
	return nil, unsure(quarantine("set the board aside; its label and the journal tell which unit it is",
		"%s was burned and the chip gives no sign of it: %v", fuse, err))
}

// blockHex is BLOCK0 as it was read, in hex.
func blockHex(s *efuse.Snapshot) string {
	for _, b := range s.Words() {
		if b.Block == "BLOCK0" {
			return strings.Join(b.Words, "")
		}
	}
	return ""
}

func (u *unit) secureDownloadEvidence(ctx context.Context, fuse string) (*Closing, error) {
	info, err := u.client.SecurityInfo(ctx)
	again, err2 := u.client.SecurityInfo(ctx)
	if err := errors.Join(err, err2); err != nil {
		return nil, quarantine("set the board aside for an engineer", "the security flags cannot be read after %s: %v", fuse, err)
	}
	if !bytes.Equal(info.Bytes(), again.Bytes()) {
		return nil, quarantine("set the board aside for an engineer", "two reads of the security flags after %s differ: % x and % x", fuse, info.Bytes(), again.Bytes())
	}
	if !info.SecureDownload() || uint32(info.FlashCryptCnt) != u.model.EFuse.FlashCryptCountFull {
		return nil, quarantine("set the board aside for an engineer", "the security flags do not show release mode: %v, crypt count %d", info.Flags, info.FlashCryptCnt)
	}
	if u.job.Recipe.SecureBoot != nil && !info.Flags.Has(rom.FlagSecureBoot) {
		return nil, quarantine("set the board aside for an engineer", "the security flags do not show Secure Boot: %v", info.Flags)
	}
	if _, err := u.client.ReadReg(ctx, u.model.EFuse.Base); err == nil {
		return nil, quarantine("set the board aside for an engineer", "the loader still reads registers after %s", fuse)
	}
	return &Closing{Fuse: fuse, Evidence: EvidenceFlags, Raw: hex.EncodeToString(info.Bytes())}, nil
}
