package keystore

import (
	"context"
	"errors"
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// FindingKind says what is wrong.
type FindingKind string

// The kinds of findings. The last three are of stores with claims (Reserver).
const (
	FindingDamaged   FindingKind = "damaged"    // an entry does not parse, was overwritten or deleted, or is not what its place says
	FindingTwoKeys   FindingKind = "two-keys"   // more than one key of a unit is not superseded
	FindingDuplicate FindingKind = "duplicate"  // one key for two units
	FindingWrongKind FindingKind = "wrong-kind" // a simulated unit among real ones, or the reverse
	FindingUnclaimed FindingKind = "unclaimed"  // a record that no claim names: not made by a station of ours
	FindingClaimOnly FindingKind = "claim-only" // a claim whose record never came: the unit waits for its job to run again
	FindingForeign   FindingKind = "foreign"    // a name that does not belong where it is
)

// Finding is something in a store that must not be.
type Finding struct {
	Kind        FindingKind `json:"kind"`
	Unit        chip.MAC    `json:"unit"`            // zero if it is about no unit
	Fingerprint Fingerprint `json:"key_fingerprint"` // zero if it is about the unit
	Problem     string      `json:"problem"`
}

// String is the finding on one line.
func (f Finding) String() string {
	s := string(f.Kind) + ": "
	if f.Unit != (chip.MAC{}) {
		s += "unit " + f.Unit.String() + ", "
	}
	if !f.Fingerprint.IsZero() {
		s += "key " + f.Fingerprint.String() + ", "
	}
	return s[:len(s)-2] + ": " + f.Problem
}

// CheckOptions say how deep Check looks.
type CheckOptions struct {
	// ReadKeys loads every record and holds its key against its fingerprint and
	// against what the store tells without it. Only roles that may read can.
	ReadKeys bool
	Progress func(units int) // after each unit; may be nil
	// Found gets each finding when it is found, and the report then holds none.
	// Without it they are collected in the report. It is called by one goroutine
	// at a time.
	Found func(Finding)
}

// CheckReport is what Check saw.
type CheckReport struct {
	Units      int       `json:"units"`
	Records    int       `json:"records"`
	Superseded int       `json:"superseded"` // keys that were given up
	InSilicon  int       `json:"in_silicon"` // keys whose last state is that
	Pending    int       `json:"pending"`    // claims whose record is still to come: units that are being made
	KeysRead   int       `json:"keys_read"`
	Findings   []Finding `json:"findings"`
}

// Add counts a record or claim by its states.
func (r *CheckReport) Add(m Meta) {
	if m.Receipt.Ref != "" {
		r.Records++
	}
	if m.Superseded() {
		r.Superseded++
	}
	if m.Current() == InSilicon {
		r.InSilicon++
	}
}

// Checker is a Store that looks through itself, since it knows more about what
// it holds than its methods tell. It is optional; Check asks it.
type Checker interface {
	Check(ctx context.Context, o CheckOptions) (CheckReport, error)
}

// Check goes through a whole store: every record must be confirmed, no
// fingerprint may belong to two units, and no unit may have two keys that are
// not superseded. It holds one fingerprint per record in memory.
//
// An error ends the look, for example because the store is not available; what
// is wrong with a record is a Finding.
func Check(ctx context.Context, s Store, o CheckOptions) (CheckReport, error) {
	if c, ok := s.(Checker); ok {
		return c.Check(ctx, o)
	}
	info, err := s.Info(ctx)
	if err != nil {
		return CheckReport{}, err
	}
	c := checker{store: s, o: o, test: info.TestStore, owner: map[Fingerprint]chip.MAC{}, report: CheckReport{Findings: []Finding{}}}
	for unit, err := range s.Units(ctx) {
		if err != nil {
			return c.report, err
		}
		if err := c.unit(ctx, unit); err != nil {
			return c.report, fmt.Errorf("unit %s: %w", unit, err)
		}
		c.report.Units++
		if o.Progress != nil {
			o.Progress(c.report.Units)
		}
	}
	return c.report, nil
}

type checker struct {
	store  Store
	o      CheckOptions
	test   bool
	owner  map[Fingerprint]chip.MAC
	report CheckReport
}

func (c *checker) find(kind FindingKind, unit chip.MAC, fp Fingerprint, format string, args ...any) {
	f := Finding{kind, unit, fp, fmt.Sprintf(format, args...)}
	if c.o.Found != nil {
		c.o.Found(f)
		return
	}
	c.report.Findings = append(c.report.Findings, f)
}

func (c *checker) unit(ctx context.Context, unit chip.MAC) error {
	if err := CheckUnit(unit, c.test); err != nil {
		c.find(FindingWrongKind, unit, Fingerprint{}, "%v", err)
	}
	metas, err := c.store.List(ctx, unit)
	if err != nil {
		return c.problem(unit, Fingerprint{}, err)
	}
	open := 0
	for _, m := range metas {
		c.report.Add(m)
		if other, ok := c.owner[m.Fingerprint]; ok {
			c.find(FindingDuplicate, unit, m.Fingerprint, "the same key belongs to unit %s", other)
		}
		c.owner[m.Fingerprint] = unit
		if !m.Superseded() {
			open++
		}
		if err := c.record(ctx, m); err != nil {
			return err
		}
	}
	if open > 1 {
		c.find(FindingTwoKeys, unit, Fingerprint{}, "%d keys of the unit are not superseded", open)
	}
	return nil
}

func (c *checker) record(ctx context.Context, m Meta) error {
	if _, err := c.store.Confirm(ctx, m.Unit, m.Fingerprint); err != nil {
		return c.problem(m.Unit, m.Fingerprint, err)
	}
	if !c.o.ReadKeys {
		return nil
	}
	r, err := c.store.Load(ctx, m.Unit, m.Fingerprint)
	if err != nil {
		return c.problem(m.Unit, m.Fingerprint, err)
	}
	defer r.Key.Wipe()
	c.report.KeysRead++
	if err := r.Validate(); err != nil { // holds the key against the fingerprint
		c.find(FindingDamaged, m.Unit, m.Fingerprint, "%v", err)
	}
	if r.Unit != m.Unit || r.Fingerprint != m.Fingerprint {
		c.find(FindingDamaged, m.Unit, m.Fingerprint, "the record stands at the place of another one: it is of unit %s, key %s", r.Unit, r.Fingerprint)
	}
	return nil
}

// problem makes a finding of what is wrong with one record, and passes on what
// is wrong with the store.
func (c *checker) problem(unit chip.MAC, fp Fingerprint, err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
		c.find(FindingDamaged, unit, fp, "%v", err)
		return nil
	}
	return err
}
