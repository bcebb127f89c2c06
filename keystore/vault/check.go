package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// pendingFor is how long a claim may wait for its record: the time in which a
// flash is written, and then some.
const pendingFor = time.Hour

var _ keystore.Checker = (*Store)(nil)

// Check looks at every unit: its claims, what is stored for it, its states. It
// needs a role that may list; with the auditor's it reads no key. Per unit it
// makes two requests, and per key two, and with states one for each and one more.
//
// It goes shard by shard and holds the names of one shard (a 256th of the units)
// and 16 bytes per key, for the search for duplicates.
func (s *Store) Check(ctx context.Context, o keystore.CheckOptions) (keystore.CheckReport, error) {
	if err := s.check(ctx); err != nil {
		return keystore.CheckReport{}, err
	}
	k := &checker{s: s, o: o, report: keystore.CheckReport{Findings: []keystore.Finding{}}}
	foreign := func(path string) {
		k.find(keystore.FindingForeign, chip.MAC{}, keystore.Fingerprint{}, "%s does not belong there", strconv.Quote(path))
	}
	err := atOnce(ctx, func(ctx context.Context, offer func(chip.MAC) error) error {
		return s.eachShard(ctx, func(shard string) error {
			units, err := s.shard(ctx, shard, foreign)
			for _, u := range units {
				if err := offer(u); err != nil {
					return err
				}
			}
			return err
		}, foreign)
	}, func(ctx context.Context, u chip.MAC) error {
		if err := k.unit(ctx, u); err != nil {
			return fmt.Errorf("unit %s: %w", u, err)
		}
		return nil
	})
	if err == nil {
		k.duplicates()
	}
	return k.report, err
}

type checker struct {
	s *Store
	o keystore.CheckOptions

	mu     sync.Mutex
	report keystore.CheckReport
	// prints has the beginning of every fingerprint and whose it is, by its first
	// byte: 80 bits, of which a million keys have two alike once in 10^12 stores.
	prints [256][]keyMark
}

type keyMark [16]byte

func (p keyMark) fp() []byte     { return p[:10] }
func (p keyMark) unit() chip.MAC { return chip.MAC(p[10:]) }

func (k *checker) find(kind keystore.FindingKind, unit chip.MAC, fp keystore.Fingerprint, format string, args ...any) {
	f := keystore.Finding{Kind: kind, Unit: unit, Fingerprint: fp, Problem: fmt.Sprintf(format, args...)}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.o.Found != nil {
		k.o.Found(f)
		return
	}
	k.report.Findings = append(k.report.Findings, f)
}

// view is what one look at a unit saw.
type view struct {
	names []string // in the unit's folder
	metas []keystore.Meta
}

func (k *checker) look(ctx context.Context, unit chip.MAC) (v view, err error) {
	if v.names, err = k.s.c.list(ctx, unitPath(unit)+"/"); err != nil {
		return v, err
	}
	v.metas, err = k.s.walk(ctx, unit, func(fp keystore.Fingerprint) bool {
		return slices.Contains(v.names, fp.String()+"/") // without a folder there are no states
	})
	return v, err
}

// whole reports whether names and claims name the same records.
func (v view) whole() bool {
	for _, m := range v.metas {
		if m.Receipt.Ref == "" && !m.Superseded() || m.Receipt.Ref != "" && !slices.Contains(v.names, m.Fingerprint.String()) {
			return false
		}
	}
	for _, name := range v.names {
		fp, err := keystore.ParseFingerprint(strings.TrimSuffix(name, "/"))
		if err == nil && !slices.ContainsFunc(v.metas, func(m keystore.Meta) bool { return m.Fingerprint == fp }) {
			return false
		}
	}
	return true
}

func (k *checker) unit(ctx context.Context, unit chip.MAC) error {
	if err := keystore.CheckUnit(unit, k.s.info.TestStore); err != nil {
		k.find(keystore.FindingWrongKind, unit, keystore.Fingerprint{}, "%v", err)
	}
	var v view
	// What is missing at first sight may be the view of a server that lags.
	_, err := k.s.settled(k.s.c.begin(ctx), func(ctx context.Context) (_ bool, err error) {
		v, err = k.look(ctx, unit)
		return v.whole(), err
	})
	switch {
	case errors.Is(err, keystore.ErrDamaged):
		k.find(keystore.FindingDamaged, unit, keystore.Fingerprint{}, "%v", err)
	case err != nil:
		return err
	default:
		k.judge(unit, v)
	}
	for _, m := range v.metas {
		if err := k.key(ctx, m); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Units++
	if k.o.Progress != nil {
		k.o.Progress(k.report.Units)
	}
	return nil
}

// judge says what is wrong with a unit that could be read.
func (k *checker) judge(unit chip.MAC, v view) {
	live := 0
	claimed := map[string]bool{"claim/": true}
	for _, m := range v.metas {
		fp := m.Fingerprint.String()
		claimed[fp], claimed[fp+"/"] = true, true
		if !m.Superseded() {
			live++
		}
		switch missing := m.Receipt.Ref == ""; {
		case missing && m.Superseded():
		case missing && k.s.now().Sub(m.Created) < pendingFor:
			k.mu.Lock()
			k.report.Pending++
			k.mu.Unlock()
		case missing:
			k.find(keystore.FindingClaimOnly, unit, m.Fingerprint, "job %s of station %s claimed it and its record never came: start the job again, or look for the record in that station's escrow", m.Job, m.Station)
		case !slices.Contains(v.names, fp):
			k.find(keystore.FindingDamaged, unit, m.Fingerprint, "it can be read and is not listed")
		}
	}
	if live > 1 {
		k.find(keystore.FindingTwoKeys, unit, keystore.Fingerprint{}, "%d keys are not superseded", live)
	}
	for _, name := range v.names {
		if claimed[name] {
			continue
		}
		if fp, err := keystore.ParseFingerprint(strings.TrimSuffix(name, "/")); err == nil {
			k.find(keystore.FindingUnclaimed, unit, fp, "no claim names it: find out who wrote it in the audit log")
		} else {
			k.find(keystore.FindingForeign, unit, keystore.Fingerprint{}, "%s does not belong there", strconv.Quote(name))
		}
	}
}

// key counts one key and, if asked to, reads it.
func (k *checker) key(ctx context.Context, m keystore.Meta) error {
	k.mu.Lock()
	k.report.Add(m)
	p := keyMark(slices.Concat(m.Fingerprint[:10], m.Unit[:]))
	k.prints[p[0]] = append(k.prints[p[0]], p)
	k.mu.Unlock()
	if !k.o.ReadKeys || m.Receipt.Ref == "" {
		return nil
	}
	r, err := k.s.Load(ctx, m.Unit, m.Fingerprint) // holds the key against its fingerprint, and all against the digest
	if errors.Is(err, keystore.ErrDamaged) || errors.Is(err, keystore.ErrNotFound) {
		k.find(keystore.FindingDamaged, m.Unit, m.Fingerprint, "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	r.Key.Wipe()
	k.mu.Lock()
	k.report.KeysRead++
	k.mu.Unlock()
	return nil
}

// duplicates looks for keys that two units have.
func (k *checker) duplicates() {
	for _, some := range k.prints {
		slices.SortFunc(some, func(a, b keyMark) int { return bytes.Compare(a[:], b[:]) })
		for i := 1; i < len(some); i++ {
			a, b := some[i-1], some[i]
			if bytes.Equal(a.fp(), b.fp()) && a.unit() != b.unit() {
				k.find(keystore.FindingDuplicate, b.unit(), keystore.Fingerprint{}, "unit %s has the same key %x…", a.unit(), b.fp())
			}
		}
	}
}
