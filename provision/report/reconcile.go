package report

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
)

// FindingKind says what does not agree. The names are API.
type FindingKind string

// The kinds of findings.
const (
	// A journal says that a key was burned, and the keystore has no record of it.
	UnitWithoutRecord FindingKind = "unit-without-record"
	// The keystore has a record of a unit that no journal knows.
	RecordWithoutUnit FindingKind = "record-without-unit"
	// Two units have the same key.
	SharedFingerprint FindingKind = "shared-fingerprint"
	// Journal and keystore name different keys for a unit.
	FingerprintDiffers FindingKind = "fingerprint-differs"
	// The record was made after the burn that it should have been there before.
	RecordAfterBurn FindingKind = "record-after-burn"
	// The unit passed twice without a rework, or has two keys that count.
	ProvisionedTwice FindingKind = "provisioned-twice"
	// The journal ends before what it began, or before what the keystore knows.
	JournalCut FindingKind = "journal-cut"
	// The unit passed, and the record's state says something else than in silicon.
	RecordState FindingKind = "record-state"
)

// findingKinds is the order of reports.
var findingKinds = []FindingKind{
	UnitWithoutRecord, RecordWithoutUnit, SharedFingerprint, FingerprintDiffers, RecordAfterBurn, ProvisionedTwice, JournalCut, RecordState,
}

// Finding is one thing that does not agree.
type Finding struct {
	Kind        FindingKind `json:"kind"`
	Unit        string      `json:"unit"`
	Other       string      `json:"other,omitempty"` // another unit, for a shared fingerprint
	Fingerprint string      `json:"fingerprint,omitempty"`
	Station     string      `json:"station,omitempty"`
	Entry       uint64      `json:"entry,omitempty"` // of the station's journal
	Text        string      `json:"text"`
}

// Reconciliation is what Reconcile found.
type Reconciliation struct {
	Journals int                 `json:"journals"`
	Units    int                 `json:"units"`   // that journals tell a key of
	Records  int                 `json:"records"` // of the keystore
	Counts   map[FindingKind]int `json:"counts"`  // of the kinds that were found
	Findings []Finding           `json:"findings"`
	// NotShown findings are in Counts and not in Findings, which has at most
	// FindingLimit of each kind.
	NotShown int `json:"not_shown"`
}

// FindingLimit bounds the findings of a kind that are listed.
const FindingLimit = 10000

// clockSkew is by how much the store's clock may be ahead of a station's.
const clockSkew = 5 * time.Minute

// Reconciler gathers what journals and a keystore tell, and compares. It holds
// 64 bytes for each key on each side.
type Reconciler struct {
	keys     rows[keyRow]
	units    rows[unitRow]
	stations []string
	station  map[string]uint16
	heads    map[uint16]time.Time // newest entry of a station's journals
	journals map[string]bool
	journal  uint16 // number of the journal whose lines are being added
	out      *Reconciliation
}

type keyRow struct {
	unit    chip.MAC
	station uint16
	fp      keystore.Fingerprint
	created int64 // ns since 1970
	newest  int64
	lag     int32 // s from created to when the store took it; noStoreTime
	state   uint8 // index in stateKinds
}

// noStoreTime: the store does not tell when it took a record.
const noStoreTime = math.MinInt32

// lag of the store's time, which is of another clock. It takes 4 bytes where the
// time itself takes 8.
func lag(l KeyLine) int32 {
	if l.Stored.IsZero() {
		return noStoreTime
	}
	s := int64(math.Floor(l.Stored.Sub(l.Created).Seconds()))
	return int32(min(max(s, noStoreTime+1), math.MaxInt32))
}

// stored is when the store took the record, in ns since 1970.
func (k keyRow) stored() (ns int64, ok bool) {
	return k.created + int64(k.lag)*int64(time.Second), k.lag != noStoreTime
}

type unitRow struct {
	unit    chip.MAC
	station uint16
	fp      keystore.Fingerprint
	burned  int64 // ns since 1970; 0: not
	entry   uint64
	passes  uint16
	journal uint16
	verdict uint8 // index in verdicts
	escrow  bool
}

var (
	stateKinds = []keystore.StateKind{keystore.Stored, keystore.MayBeInSilicon, keystore.InSilicon, keystore.NotInSilicon, keystore.Superseded, keystore.Quarantined}
	verdicts   = []provision.Verdict{"", provision.Pass, provision.Fail, provision.Error, provision.Aborted, provision.Quarantined}
)

// NewReconciler begins with nothing.
func NewReconciler() *Reconciler {
	return &Reconciler{station: map[string]uint16{}, heads: map[uint16]time.Time{}, journals: map[string]bool{}}
}

// Add takes a line of an inventory. A journal's lines come together, its head last.
func (r *Reconciler) Add(line any) error {
	switch l := line.(type) {
	case KeyLine:
		return r.AddKey(l)
	case UnitLine:
		return r.AddUnit(l)
	case HeadLine:
		return r.AddHead(l)
	}
	return fmt.Errorf("%T is no line of an inventory", line)
}

// AddKey takes a record of the keystore.
func (r *Reconciler) AddKey(l KeyLine) error {
	st, err := r.stationNumber(l.Station)
	if err != nil {
		return err
	}
	r.keys.add(keyRow{
		unit: l.Unit, station: st, fp: l.Fingerprint, created: l.Created.UnixNano(), newest: l.Newest.UnixNano(), lag: lag(l),
		state: uint8(max(0, slices.Index(stateKinds, l.State))),
	})
	return nil
}

// AddUnit takes a key that a journal tells of.
func (r *Reconciler) AddUnit(l UnitLine) error {
	st, err := r.stationNumber(l.Station)
	if err != nil {
		return err
	}
	row := unitRow{
		unit: l.Unit, station: st, fp: l.Fingerprint, entry: l.Entry, passes: uint16(l.Passes), journal: r.journal, escrow: l.Escrow,
		verdict: uint8(max(0, slices.Index(verdicts, provision.Verdict(l.Verdict)))),
	}
	if !l.Burned.IsZero() {
		row.burned = l.Burned.UnixNano()
	}
	r.units.add(row)
	return nil
}

// AddHead takes the end of a journal, after its units.
func (r *Reconciler) AddHead(l HeadLine) error {
	if r.journals[l.Journal] {
		return fmt.Errorf("journal %s of station %s is there twice: name each journal once", l.Journal, l.Station)
	}
	r.journals[l.Journal] = true
	st, err := r.stationNumber(l.Station)
	if err != nil {
		return err
	}
	if l.Last.After(r.heads[st]) {
		r.heads[st] = l.Last
	}
	r.journal++
	return nil
}

func (r *Reconciler) stationNumber(name string) (uint16, error) {
	n, ok := r.station[name]
	if !ok {
		if len(r.stations) > 1<<16-1 {
			return 0, errors.New("more than 65536 stations")
		}
		n = uint16(len(r.stations))
		r.stations, r.station[name] = append(r.stations, name), n
	}
	return n, nil
}

// Reconcile compares everything that was added. It may be called once.
func (r *Reconciler) Reconcile() *Reconciliation {
	r.out = &Reconciliation{Journals: len(r.journals), Records: r.keys.n, Counts: map[FindingKind]int{}, Findings: []Finding{}}
	nextKey, stopKeys := iter.Pull(r.keys.sorted(func(a, b keyRow) int {
		return cmp.Or(bytes.Compare(a.unit[:], b.unit[:]), cmp.Compare(a.created, b.created), bytes.Compare(a.fp[:], b.fp[:]))
	}))
	defer stopKeys()
	nextUnit, stopUnits := iter.Pull(r.units.sorted(func(a, b unitRow) int {
		return cmp.Or(bytes.Compare(a.unit[:], b.unit[:]), cmp.Compare(a.burned, b.burned), cmp.Compare(a.journal, b.journal), cmp.Compare(a.entry, b.entry))
	}))
	defer stopUnits()
	var (
		keys  []keyRow
		units []unitRow
	)
	k, moreKeys := nextKey()
	u, moreUnits := nextUnit()
	for moreKeys || moreUnits {
		mac := k.unit
		if !moreKeys || moreUnits && bytes.Compare(u.unit[:], mac[:]) < 0 {
			mac = u.unit
		}
		keys, units = keys[:0], units[:0]
		for ; moreKeys && k.unit == mac; k, moreKeys = nextKey() {
			keys = append(keys, k)
		}
		for ; moreUnits && u.unit == mac; u, moreUnits = nextUnit() {
			units = append(units, u)
		}
		if len(units) > 0 {
			r.out.Units++
		}
		r.unit(mac, units, keys)
	}
	r.shared()
	slices.SortStableFunc(r.out.Findings, func(a, b Finding) int {
		return cmp.Or(slices.Index(findingKinds, a.Kind)-slices.Index(findingKinds, b.Kind), cmp.Compare(a.Unit, b.Unit))
	})
	return r.out
}

func (r *Reconciler) found(f Finding) {
	r.out.Counts[f.Kind]++
	if r.out.Counts[f.Kind] > FindingLimit {
		r.out.NotShown++
		return
	}
	r.out.Findings = append(r.out.Findings, f)
}

func (k keyRow) counts() bool { return stateKinds[k.state] != keystore.Superseded }

func (k keyRow) is(kinds ...keystore.StateKind) bool {
	return slices.Contains(kinds, stateKinds[k.state])
}

func (r *Reconciler) ofUnit(kind FindingKind, u unitRow, format string, args ...any) {
	r.found(Finding{
		Kind: kind, Unit: u.unit.String(), Fingerprint: u.fp.String(), Station: r.stations[u.station], Entry: u.entry, Text: fmt.Sprintf(format, args...),
	})
}

func (r *Reconciler) ofKey(kind FindingKind, k keyRow, format string, args ...any) {
	r.found(Finding{Kind: kind, Unit: k.unit.String(), Fingerprint: k.fp.String(), Station: r.stations[k.station], Text: fmt.Sprintf(format, args...)})
}

// unit compares what is known of one unit.
func (r *Reconciler) unit(mac chip.MAC, units []unitRow, keys []keyRow) {
	r.twice(mac, units, keys)
	for _, u := range units {
		r.burned(u, units, keys)
	}
	for _, k := range keys {
		r.record(k, units)
	}
}

// twice looks for a unit that was made more than once.
func (r *Reconciler) twice(mac chip.MAC, units []unitRow, keys []keyRow) {
	passes := 0
	for i, u := range units {
		// Every line of a journal has the unit's whole number.
		if !slices.ContainsFunc(units[:i], func(o unitRow) bool { return o.journal == u.journal }) {
			passes += int(u.passes)
		}
	}
	if passes > 1 {
		r.ofUnit(ProvisionedTwice, units[len(units)-1], "the unit passed %d times, and no rework is in a journal", passes)
		return
	}
	n := 0
	for _, k := range keys {
		if k.counts() {
			n++
		}
	}
	if n > 1 {
		r.found(Finding{Kind: ProvisionedTwice, Unit: mac.String(), Text: fmt.Sprintf("the keystore has %d records of the unit that are not superseded", n)})
	}
}

// burned compares a key that a journal tells of with the unit's records.
func (r *Reconciler) burned(u unitRow, units []unitRow, keys []keyRow) {
	passed := verdicts[u.verdict] == provision.Pass
	if u.burned != 0 && u.verdict == 0 {
		r.ofUnit(JournalCut, u, "the burn of the key was begun, and the journal has no verdict after it")
	}
	if u.fp.IsZero() {
		r.ofUnit(JournalCut, u, "the unit passed, and the journal does not tell of a key")
		return
	}
	i := slices.IndexFunc(keys, func(k keyRow) bool { return k.fp == u.fp })
	if i < 0 {
		switch {
		case u.burned == 0 && (!passed || slices.ContainsFunc(units, func(o unitRow) bool { return o.burned != 0 })):
			// Never burned: custody may have failed, or the process ended before it, and
			// what passed is another key.
		case slices.ContainsFunc(keys, keyRow.counts):
			r.ofUnit(FingerprintDiffers, u, "the journal says that this key was burned, and the keystore has another one")
		default:
			r.ofUnit(UnitWithoutRecord, u, "the journal says that this key was burned, and the keystore has no record of it")
		}
		return
	}
	k := keys[i]
	// What the station says of the record's time it says of itself, so the store's
	// counts where there is one. Of a drained record it is the custodian's.
	switch stored, ok := k.stored(); {
	case u.burned == 0, ok && u.escrow:
	case ok && stored > u.burned+int64(clockSkew):
		r.ofUnit(RecordAfterBurn, u, "the keystore took the record at %s, after the burn at %s", nano(stored), nano(u.burned))
	case !ok && k.created > u.burned:
		r.ofUnit(RecordAfterBurn, u, "the record was made at %s, after the burn at %s", nano(k.created), nano(u.burned))
	}
	last := !slices.ContainsFunc(units, func(o unitRow) bool { return o.fp != u.fp && o.burned > u.burned })
	if passed && last && !k.is(keystore.InSilicon) {
		r.ofUnit(RecordState, u, "the unit passed, and its record says %s", stateName(stateKinds[k.state]))
	}
	if u.burned == 0 && k.is(keystore.MayBeInSilicon, keystore.InSilicon, keystore.NotInSilicon) {
		r.ofUnit(JournalCut, u, "the record says %s, and the journal does not tell of a burn", stateName(stateKinds[k.state]))
	}
}

// record compares a record with what journals tell of its unit.
func (r *Reconciler) record(k keyRow, units []unitRow) {
	if head, ok := r.heads[k.station]; ok {
		// The record's own time is the station's clock, the states' is the store's; of a
		// drained record it is when the custodian told them.
		drained := slices.ContainsFunc(units, func(u unitRow) bool { return u.fp == k.fp && u.escrow })
		if end := head.UnixNano(); k.created > end || !drained && k.newest > end+int64(clockSkew) {
			r.ofKey(JournalCut, k, "the journal of station %s ends at %s, and the keystore knows of %s there", r.stations[k.station], nano(end), nano(max(k.created, k.newest)))
		}
	}
	if !k.counts() || slices.ContainsFunc(units, func(u unitRow) bool { return u.fp == k.fp }) {
		return
	}
	switch _, ok := r.heads[k.station]; {
	case slices.ContainsFunc(units, func(u unitRow) bool { return u.burned != 0 }): // told by burned
	case len(units) > 0:
		r.ofKey(FingerprintDiffers, k, "the keystore has this key for the unit, and the journal tells of another one")
	case ok:
		r.ofKey(RecordWithoutUnit, k, "the keystore has a key for a unit that no journal knows")
	default:
		r.ofKey(RecordWithoutUnit, k, "the keystore has a key for a unit that no journal knows, and the journal of station %s is not among those given", r.stations[k.station])
	}
}

func nano(ns int64) string { return stamp(time.Unix(0, ns)) }

// shared looks for a key of two units, on either side. It sorts the rows anew:
// the order by unit is not needed any more.
func (r *Reconciler) shared() {
	nextKey, stopKeys := iter.Pull(r.keys.sorted(func(a, b keyRow) int { return bytes.Compare(a.fp[:], b.fp[:]) }))
	defer stopKeys()
	nextUnit, stopUnits := iter.Pull(r.units.sorted(func(a, b unitRow) int { return bytes.Compare(a.fp[:], b.fp[:]) }))
	defer stopUnits()
	var holders []chip.MAC
	k, moreKeys := nextKey()
	u, moreUnits := nextUnit()
	for moreKeys || moreUnits {
		fp := k.fp
		if !moreKeys || moreUnits && bytes.Compare(u.fp[:], fp[:]) < 0 {
			fp = u.fp
		}
		holders = holders[:0]
		for ; moreKeys && k.fp == fp; k, moreKeys = nextKey() {
			holders = append(holders, k.unit)
		}
		for ; moreUnits && u.fp == fp; u, moreUnits = nextUnit() {
			holders = append(holders, u.unit)
		}
		if fp.IsZero() { // units whose key no journal tells
			continue
		}
		slices.SortFunc(holders, func(a, b chip.MAC) int { return bytes.Compare(a[:], b[:]) })
		holders = slices.Compact(holders)
		for _, other := range holders[1:] {
			r.found(Finding{
				Kind: SharedFingerprint, Unit: holders[0].String(), Other: other.String(), Fingerprint: fp.String(),
				Text: fmt.Sprintf("units %s and %s have the same key", holders[0], other),
			})
		}
	}
}
