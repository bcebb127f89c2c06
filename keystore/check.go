package keystore

import (
	"context"
	"errors"
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Finding is something in a store that must not be.
type Finding struct {
	Unit        chip.MAC    `json:"unit"`
	Fingerprint Fingerprint `json:"key_fingerprint"`
	Problem     string      `json:"problem"`
}

// CheckOptions say how deep Check looks.
type CheckOptions struct {
	// ReadKeys loads every record and holds its key against its fingerprint and
	// against what the store tells without it. Only roles that may read can.
	ReadKeys bool
	Progress func(units int) // after each unit; may be nil
}

// CheckReport is what Check saw.
type CheckReport struct {
	Units    int       `json:"units"`
	Records  int       `json:"records"`
	KeysRead int       `json:"keys_read"`
	Findings []Finding `json:"findings"`
}

// Check goes through a whole store: every record must be confirmed, no
// fingerprint may belong to two units, and no unit may have two keys that are
// not superseded. It holds one fingerprint per record in memory.
//
// An error ends the look, for example because the store is not available; what
// is wrong with a record is a Finding.
func Check(ctx context.Context, s Store, o CheckOptions) (CheckReport, error) {
	c := checker{store: s, o: o, owner: map[Fingerprint]chip.MAC{}, report: CheckReport{Findings: []Finding{}}}
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
	owner  map[Fingerprint]chip.MAC
	report CheckReport
}

func (c *checker) find(unit chip.MAC, fp Fingerprint, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{unit, fp, fmt.Sprintf(format, args...)})
}

func (c *checker) unit(ctx context.Context, unit chip.MAC) error {
	metas, err := c.store.List(ctx, unit)
	if err != nil {
		return c.problem(unit, Fingerprint{}, err)
	}
	open := 0
	for _, m := range metas {
		c.report.Records++
		if other, ok := c.owner[m.Fingerprint]; ok {
			c.find(unit, m.Fingerprint, "the same key belongs to unit %s", other)
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
		c.find(unit, Fingerprint{}, "%d keys of the unit are not superseded", open)
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
		c.find(m.Unit, m.Fingerprint, "%v", err)
	}
	if r.Unit != m.Unit || r.Fingerprint != m.Fingerprint {
		c.find(m.Unit, m.Fingerprint, "the record stands at the place of another one: it is of unit %s, key %s", r.Unit, r.Fingerprint)
	}
	return nil
}

// problem makes a finding of what is wrong with one record, and passes on what
// is wrong with the store.
func (c *checker) problem(unit chip.MAC, fp Fingerprint, err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
		c.find(unit, fp, "%v", err)
		return nil
	}
	return err
}
