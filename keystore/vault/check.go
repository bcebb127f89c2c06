package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// FindingKind says what is wrong with a unit.
type FindingKind string

// The kinds of findings.
const (
	FindingDamaged   FindingKind = "damaged"    // an entry does not parse, was overwritten or deleted
	FindingTwoKeys   FindingKind = "two-keys"   // more than one key is not superseded
	FindingUnclaimed FindingKind = "unclaimed"  // a record that no claim names: not made by a station of ours
	FindingClaimOnly FindingKind = "claim-only" // a claim whose record never came: the unit waits for its job to run again
	FindingForeign   FindingKind = "foreign"    // a name that does not belong where it is
	FindingDuplicate FindingKind = "duplicate"  // one key for two units
	FindingWrongKind FindingKind = "wrong-kind" // a simulated unit among real ones, or the reverse
)

// Finding is something that Check does not like.
type Finding struct {
	Kind        FindingKind
	Unit        chip.MAC
	Fingerprint keystore.Fingerprint // zero if it is about the unit
	Words       string
}

func (f Finding) String() string {
	s := string(f.Kind) + ": unit " + f.Unit.String()
	if !f.Fingerprint.IsZero() {
		s += ", key " + f.Fingerprint.String()
	}
	return s + ": " + f.Words
}

// CheckStats count what Check looked at.
type CheckStats struct {
	Units, Records, Superseded, InSilicon int
}

// checkWorkers is how many units are looked at at once.
const checkWorkers = 32

// Check looks at every unit: its claims, what is stored for it, its states. It
// needs a role that may list; with the auditor's it reads no key. Per unit it
// makes two requests, and per key three and one for each state; it holds 28 bytes
// per unit. found is called from one goroutine at a time.
func (s *Store) Check(ctx context.Context, found func(Finding)) (CheckStats, error) {
	units, err := s.units(ctx)
	if err != nil {
		return CheckStats{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k := &checker{s: s, found: found, prints: make(map[[16]byte]chip.MAC, len(units))}
	k.stats.Units = len(units)
	work := make(chan chip.MAC)
	var wg sync.WaitGroup
	for range checkWorkers {
		wg.Go(func() {
			for u := range work {
				if err := k.unit(ctx, u); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, u := range units {
		select {
		case work <- u:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	return k.stats, context.Cause(ctx)
}

type checker struct {
	s     *Store
	mu    sync.Mutex
	found func(Finding)
	stats CheckStats
	// prints has the first half of every fingerprint: 2^64 units collide by chance.
	prints map[[16]byte]chip.MAC
}

func (k *checker) report(kind FindingKind, unit chip.MAC, fp keystore.Fingerprint, format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found(Finding{kind, unit, fp, fmt.Sprintf(format, args...)})
}

func (k *checker) unit(ctx context.Context, unit chip.MAC) error {
	if unit.LocallyAdministered() != k.s.info.TestStore {
		k.report(FindingWrongKind, unit, keystore.Fingerprint{}, "simulated units and real ones do not share a store")
	}
	var names []string
	var metas []keystore.Meta
	// What is missing at first sight may be the view of a server that lags.
	_, err := k.s.settled(ctx, func(ctx context.Context) (_ bool, err error) {
		if names, err = k.s.c.list(ctx, unitPath(unit)+"/"); err != nil {
			return false, err
		}
		metas, err = k.s.List(ctx, unit)
		return whole(names, metas), err
	})
	if errors.Is(err, keystore.ErrDamaged) {
		k.report(FindingDamaged, unit, keystore.Fingerprint{}, "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	live := 0
	claimed := map[string]bool{"claim/": true}
	for _, m := range metas {
		fp := m.Fingerprint.String()
		claimed[fp], claimed[fp+"/"] = true, true
		if !m.Superseded() {
			live++
		}
		if m.Receipt.Ref == "" {
			if !m.Superseded() {
				k.report(FindingClaimOnly, unit, m.Fingerprint, "job %s of station %s claimed it and its record never came", m.Job, m.Station)
			}
		} else if !slices.Contains(names, fp) {
			k.report(FindingDamaged, unit, m.Fingerprint, "it can be read and is not listed")
		}
		k.count(unit, m)
	}
	if live > 1 {
		k.report(FindingTwoKeys, unit, keystore.Fingerprint{}, "%d keys are not superseded", live)
	}
	for _, name := range names {
		if claimed[name] {
			continue
		}
		if fp, err := keystore.ParseFingerprint(strings.TrimSuffix(name, "/")); err == nil {
			k.report(FindingUnclaimed, unit, fp, "no claim names it: find out who wrote it in the audit log")
		} else {
			k.report(FindingForeign, unit, keystore.Fingerprint{}, "%s does not belong there", strconv.Quote(name))
		}
	}
	return nil
}

// whole reports whether names and claims name the same records.
func whole(names []string, metas []keystore.Meta) bool {
	for _, m := range metas {
		if m.Receipt.Ref == "" && !m.Superseded() || m.Receipt.Ref != "" && !slices.Contains(names, m.Fingerprint.String()) {
			return false
		}
	}
	for _, name := range names {
		fp, err := keystore.ParseFingerprint(strings.TrimSuffix(name, "/"))
		if err == nil && !slices.ContainsFunc(metas, func(m keystore.Meta) bool { return m.Fingerprint == fp }) {
			return false
		}
	}
	return true
}

func (k *checker) count(unit chip.MAC, m keystore.Meta) {
	k.mu.Lock()
	if m.Receipt.Ref != "" {
		k.stats.Records++
	}
	if m.Superseded() {
		k.stats.Superseded++
	}
	if m.Current() == keystore.InSilicon {
		k.stats.InSilicon++
	}
	half := [16]byte(m.Fingerprint[:16])
	other, twice := k.prints[half]
	k.prints[half] = unit
	k.mu.Unlock()
	if twice && other != unit {
		k.report(FindingDuplicate, unit, m.Fingerprint, "unit %s has the same key", other)
	}
}
