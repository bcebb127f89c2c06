package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/journal"
)

// untoldMember is a verdict's member in the journal: the keystore did not take what
// the run knows of the key. Settle looks for it.
const untoldMember = "keystore_untold"

// Ledger is a journal that can be read from its end. *journal.Journal is one.
type Ledger interface {
	Unit(mac chip.MAC) ([]journal.Entry, error)
	Head() (size uint64, hash journal.Hash)
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
}

// SettleReport is what a Settle did.
type SettleReport struct {
	Settled  int             `json:"settled"` // units of which the keystore was told
	Findings []SettleFinding `json:"findings"`
}

// SettleFinding is a unit of which the keystore cannot be told.
type SettleFinding struct {
	Unit    chip.MAC `json:"unit"`
	Problem string   `json:"problem"`
}

// Settle tells a keystore what it did not take when units were finished or set aside:
// it was away. Nobody need connect to the units, which may be closed. It looks at the
// verdicts among the journal's last entries; 0: among all. It may be called at any
// time and again. An error says that the keystore is away, or that the journal
// cannot be read; the rest can be settled later.
func Settle(ctx context.Context, j Ledger, store keystore.Store, last uint64) (SettleReport, error) {
	rep := SettleReport{Findings: []SettleFinding{}}
	size, _ := j.Head()
	from := uint64(0)
	if last > 0 {
		from = size - min(size, last)
	}
	units := map[chip.MAC]bool{}
	var order []chip.MAC
	for e, err := range j.Entries(from, size) {
		if err != nil {
			return rep, err
		}
		if e.Kind != journal.KindVerdict || units[e.Unit] {
			continue
		}
		var v map[string]json.RawMessage
		if err := json.Unmarshal(e.Payload, &v); err != nil {
			return rep, fmt.Errorf("journal entry %d: %w", e.Index, err)
		}
		if v[untoldMember] != nil {
			units[e.Unit] = true
			order = append(order, e.Unit)
		}
	}
	for _, mac := range order {
		entries, err := j.Unit(mac)
		if err != nil {
			return rep, err
		}
		told, err := SettleUnit(ctx, mac, entries, store)
		switch {
		case err == nil && told:
			rep.Settled++
		case err == nil:
		case ctx.Err() != nil, errors.Is(err, keystore.ErrUnavailable), errors.Is(err, keystore.ErrUnknownOutcome):
			return rep, fmt.Errorf("unit %s: %w", mac, err)
		default:
			rep.Findings = append(rep.Findings, SettleFinding{mac, err.Error()})
		}
	}
	return rep, nil
}

// SettleUnit tells a keystore what a unit's entries say of the key that was burned
// last: that it is in silicon, and that the unit is set aside. It reports whether
// there was something to tell. What the keystore does not hold is not its matter: an
// audit finds that.
func SettleUnit(ctx context.Context, unit chip.MAC, entries []journal.Entry, store keystore.Store) (told bool, err error) {
	k, err := burnedKey(entries)
	if err != nil || !k.inSilicon && !k.quarantined {
		return false, err
	}
	metas, err := store.List(ctx, unit)
	i := slices.IndexFunc(metas, func(m keystore.Meta) bool { return m.Fingerprint == k.fp })
	switch {
	case i >= 0: // the rest of a store that is partly away does not matter
	case errors.Is(err, keystore.ErrPartial):
		return false, fmt.Errorf("%w: %w", keystore.ErrUnavailable, err)
	default:
		return false, err
	}
	for _, kind := range k.lacks(metas[i]) {
		note := "settled from the journal"
		if kind == keystore.Quarantined {
			note = k.reason
		}
		_, err := store.AddState(ctx, unit, k.fp, keystore.State{Kind: kind, Note: stateNote(note), Job: k.job, Station: k.station})
		if err != nil {
			return told, err
		}
		told = true
	}
	return told, nil
}

// burned is what a unit's journal knows of the key whose burn was begun last.
type burned struct {
	fp           keystore.Fingerprint
	job, station string
	inSilicon    bool // it was read back, or followed by what comes only after that
	quarantined  bool
	reason       string
	lifted       time.Time // when a rework lifted a quarantine
}

func burnedKey(entries []journal.Entry) (k burned, err error) {
	for _, e := range entries {
		var p struct {
			Verdict     Verdict       `json:"verdict"`
			Reason      string        `json:"reason"`
			Rework      *ReworkResult `json:"rework"`
			Outcome     string        `json:"outcome"`
			Fingerprint string        `json:"key_fingerprint"`
		}
		if e.Kind == journal.KindVerdict || e.Step == stageKey {
			if err := json.Unmarshal(e.Payload, &p); err != nil {
				return k, fmt.Errorf("journal entry %d: %w", e.Index, err)
			}
		}
		switch {
		case e.Kind == journal.KindVerdict && k.job == "": // of a key there is nothing to tell
		case e.Kind == journal.KindVerdict && p.Verdict == Quarantined:
			k.quarantined, k.reason = true, p.Reason
		case e.Kind == journal.KindVerdict && p.Rework != nil && p.Rework.Done:
			k.inSilicon, k.quarantined, k.lifted = true, false, e.Time
		case e.Kind == journal.KindVerdict && p.Verdict == Pass:
			k.inSilicon = true
		case e.Kind == journal.KindIntent && e.Step == stageKey:
			fp, err := keystore.ParseFingerprint(p.Fingerprint)
			if err != nil {
				return k, fmt.Errorf("journal entry %d: %w", e.Index, err)
			}
			if fp != k.fp { // else its purpose is burned
				k.inSilicon = false
			}
			k.fp, k.job, k.station = fp, e.Job, e.Station
		case e.Job != k.job || k.job == "":
		case e.Kind == journal.KindObserved && e.Step == stageKey:
			k.inSilicon = k.inSilicon || p.Outcome == outcomeDone
		case e.Kind == journal.KindIntent && e.Step == stageProtect: // begun after the key was read back
			k.inSilicon = true
		}
	}
	return k, nil
}

// lacks lists the states that a record has to get.
func (k burned) lacks(m keystore.Meta) (kinds []keystore.StateKind) {
	now := m.Current()
	switch {
	case m.Superseded(), k.quarantined && now == keystore.Quarantined:
		return nil
	case !k.quarantined && now == keystore.Quarantined:
		// Somebody else may have set it aside. Only what the rework lifted is lifted.
		if k.inSilicon && !k.lifted.IsZero() && m.States[len(m.States)-1].Time.Before(k.lifted) {
			kinds = append(kinds, keystore.InSilicon)
		}
		return kinds
	}
	known := slices.ContainsFunc(m.States, func(s keystore.State) bool { return s.Kind == keystore.InSilicon })
	if k.inSilicon && !known {
		kinds = append(kinds, keystore.InSilicon)
	}
	if k.quarantined {
		kinds = append(kinds, keystore.Quarantined)
	}
	return kinds
}

// stateNote makes a state's note of any text: on one line, and no longer than a
// keystore takes.
func stateNote(text string) string {
	const most = 256
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) <= most {
		return text
	}
	cut := most - len("…")
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// settlePast tells the store of a unit that is finished or set aside what it did
// not take then.
func (u *unit) settlePast(ctx context.Context, entries []journal.Entry) {
	limited, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	if _, err := SettleUnit(limited, u.mac, entries, u.Store); err != nil {
		u.warn("the keystore does not know yet what became of the key: " + err.Error())
		u.unsettled = true
	}
}
