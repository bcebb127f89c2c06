package escrow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// fakeVault is a store in memory that claims, keeps sealed records, and can be
// away. It does what keystore/vault does, and passes the conformance suite.
type fakeVault struct {
	*fakeData
	closed bool
	// fault is asked around each call.
	fault func(op string) (before, after error)
}

type fakeData struct {
	mu     sync.Mutex
	id     string
	test   bool
	rows   []*fakeRow
	sealed map[string][]byte // path to content
	asked  int               // calls
	now    func() time.Time
}

type fakeRow struct {
	record []byte // nil: a claim
	meta   keystore.Meta
}

func newFakeVault(id string, test bool) *fakeVault {
	return &fakeVault{fakeData: &fakeData{id: id, test: test, sealed: map[string][]byte{}, now: time.Now}}
}

func (v *fakeVault) call(ctx context.Context, op string, f func() error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.closed {
		return keystore.ErrUnavailable
	}
	var after error
	if v.fault != nil {
		var before error
		if before, after = v.fault(op); before != nil {
			return before
		}
	}
	return errors.Join(f(), after)
}

func (v *fakeVault) find(unit chip.MAC, fp keystore.Fingerprint) *fakeRow {
	for _, r := range v.rows {
		if r.meta.Unit == unit && r.meta.Fingerprint == fp {
			return r
		}
	}
	return nil
}

func (v *fakeVault) Info(ctx context.Context) (info keystore.Info, err error) {
	err = v.call(ctx, "info", func() error {
		info = keystore.Info{Kind: "fake", ID: v.id, TestStore: v.test, Where: "memory"}
		return nil
	})
	return info, err
}

func (v *fakeVault) claim(m keystore.Meta) (*fakeRow, error) {
	if row := v.find(m.Unit, m.Fingerprint); row != nil {
		if row.meta.Superseded() {
			return nil, keystore.ErrExists
		}
		return row, nil
	}
	for _, row := range v.rows {
		if o := row.meta; o.Unit == m.Unit && !o.Superseded() {
			return nil, &keystore.ConflictError{Unit: m.Unit, Fingerprint: o.Fingerprint, State: o.Current(), Job: o.Job}
		}
	}
	row := &fakeRow{meta: keystore.Meta{
		Unit: m.Unit, Simulated: m.Simulated, Fingerprint: m.Fingerprint, Job: m.Job, Station: m.Station, Created: m.Created,
	}}
	v.rows = append(v.rows, row)
	return row, nil
}

func (v *fakeVault) Reserve(ctx context.Context, m keystore.Meta) error {
	return v.call(ctx, "reserve", func() error {
		_, err := v.claim(m)
		return err
	})
}

func (v *fakeVault) Create(ctx context.Context, r keystore.Record) (receipt keystore.Receipt, err error) {
	err = v.call(ctx, "create", func() error {
		b, err := keystore.MarshalRecord(r)
		if err != nil {
			return err
		}
		if err := keystore.CheckUnit(r.Unit, v.test); err != nil {
			return err
		}
		row, err := v.claim(r.Meta())
		if err != nil {
			return err
		}
		if row.record != nil && !bytes.Equal(row.record, b) {
			return keystore.ErrExists
		}
		if row.record == nil {
			states := row.meta.States
			row.record, row.meta = b, r.Meta()
			row.meta.States = states
			row.meta.Receipt = keystore.Receipt{Ref: fmt.Sprintf("fake:%s/%s/%s", v.id, r.Unit, r.Fingerprint), Version: 1, Store: v.id, Time: v.now().UTC()}
		}
		receipt = row.meta.Receipt
		return nil
	})
	return receipt, err
}

func (v *fakeVault) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (receipt keystore.Receipt, err error) {
	err = v.call(ctx, "confirm", func() error {
		row := v.find(unit, fp)
		if row == nil || row.record == nil {
			return keystore.ErrNotFound
		}
		receipt = row.meta.Receipt
		return nil
	})
	return receipt, err
}

func (v *fakeVault) List(ctx context.Context, unit chip.MAC) (metas []keystore.Meta, err error) {
	err = v.call(ctx, "list", func() error {
		for _, row := range v.rows {
			if row.meta.Unit == unit {
				m := row.meta
				m.States = slices.Clone(m.States)
				metas = append(metas, m)
			}
		}
		return nil
	})
	return metas, err
}

func (v *fakeVault) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		var units []chip.MAC
		err := v.call(ctx, "units", func() error {
			for _, row := range v.rows {
				units = append(units, row.meta.Unit)
			}
			return nil
		})
		if err != nil {
			yield(chip.MAC{}, err)
			return
		}
		slices.SortFunc(units, func(a, b chip.MAC) int { return bytes.Compare(a[:], b[:]) })
		for _, u := range slices.Compact(units) {
			if err := ctx.Err(); err != nil {
				yield(chip.MAC{}, err)
				return
			}
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (v *fakeVault) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (receipt keystore.Receipt, err error) {
	return v.addState(ctx, "state", unit, fp, st, st.Kind == keystore.Superseded || st.Kind == keystore.Quarantined)
}

func (v *fakeVault) TellClaim(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	return v.addState(ctx, "tell", unit, fp, st, true)
}

func (v *fakeVault) addState(ctx context.Context, op string, unit chip.MAC, fp keystore.Fingerprint, st keystore.State, claimDoes bool) (receipt keystore.Receipt, err error) {
	err = v.call(ctx, op, func() error {
		if err := st.Validate(); err != nil {
			return err
		}
		row := v.find(unit, fp)
		if row == nil || row.record == nil && !claimDoes {
			return keystore.ErrNotFound
		}
		receipt = row.meta.Receipt
		if n := len(row.meta.States); n > 0 && row.meta.States[n-1].Kind == st.Kind && row.meta.States[n-1].Job == st.Job {
			receipt.Version, receipt.Time = n, row.meta.States[n-1].Time
			return nil
		}
		if err := keystore.CheckTransition(row.meta.States, st.Kind); err != nil {
			return err
		}
		if st.Time.IsZero() {
			st.Time = v.now().UTC()
		}
		st.Seq = len(row.meta.States) + 1
		receipt.Version, receipt.Time = st.Seq, st.Time
		row.meta.States = append(row.meta.States, st)
		return nil
	})
	return receipt, err
}

func (v *fakeVault) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (r keystore.Record, err error) {
	err = v.call(ctx, "load", func() (err error) {
		row := v.find(unit, fp)
		if row == nil || row.record == nil {
			return keystore.ErrNotFound
		}
		r, err = keystore.ParseRecord(row.record)
		return err
	})
	return r, err
}

func (v *fakeVault) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	return nil
}

func (v *fakeVault) put(ctx context.Context, op, path string, b []byte) error {
	return v.call(ctx, op, func() error {
		if old, ok := v.sealed[path]; ok && !bytes.Equal(old, b) {
			return keystore.ErrExists
		}
		v.sealed[path] = slices.Clone(b)
		return nil
	})
}

func sealedPath(unit chip.MAC, fp keystore.Fingerprint) string {
	return unit.String() + "/" + fp.String()
}

func (v *fakeVault) PutSealed(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, sealed []byte) error {
	return v.put(ctx, "put-sealed", sealedPath(unit, fp), sealed)
}

func (v *fakeVault) PutSealedState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, n int, state []byte) error {
	return v.put(ctx, "put-state", fmt.Sprintf("%s/state/%d", sealedPath(unit, fp), n), state)
}

func (v *fakeVault) PutDrained(ctx context.Context, _ string, unit chip.MAC, fp keystore.Fingerprint, marker []byte) error {
	return v.put(ctx, "put-drained", sealedPath(unit, fp)+"/drained", marker)
}

func (v *fakeVault) EachSealed(ctx context.Context, show func(string, chip.MAC, keystore.Fingerprint) error) error {
	var paths []string
	err := v.call(ctx, "list-sealed", func() error {
		for p := range v.sealed {
			if _, done := v.sealed[p+"/drained"]; strings.Count(p, "/") == 1 && !done {
				paths = append(paths, p)
			}
		}
		return nil
	})
	slices.Sort(paths)
	for _, p := range paths {
		if err != nil {
			return err
		}
		mac, fp, _ := strings.Cut(p, "/")
		unit, _ := chip.ParseMAC(mac)
		f, _ := keystore.ParseFingerprint(fp)
		err = show("line1", unit, f)
	}
	return err
}

func (v *fakeVault) ReadSealed(ctx context.Context, _ string, unit chip.MAC, fp keystore.Fingerprint) (b []byte, states [][]byte, err error) {
	err = v.call(ctx, "read-sealed", func() error {
		b = v.sealed[sealedPath(unit, fp)]
		for n := 1; ; n++ {
			st, ok := v.sealed[fmt.Sprintf("%s/state/%d", sealedPath(unit, fp), n)]
			if !ok {
				return nil
			}
			states = append(states, st)
		}
	})
	return b, states, err
}
