package provision_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision/journal"
)

// memoryStore is a keystore.Store without a disk. It passes the conformance suite.
type memoryStore struct {
	mu     sync.Mutex
	id     string
	test   bool
	closed bool
	rows   []*memoryRow // in the order of their creation
}

type memoryRow struct {
	record []byte // keystore.MarshalRecord
	meta   keystore.Meta
}

// memoryStores counts the stores that were made: each has an id of its own.
var memoryStores atomic.Int64

func newMemoryStore(test bool) *memoryStore {
	return &memoryStore{id: fmt.Sprintf("memory-%d", memoryStores.Add(1)), test: test}
}

func (s *memoryStore) lock(ctx context.Context) (func(), error) {
	s.mu.Lock()
	err := ctx.Err()
	if s.closed {
		err = fmt.Errorf("the store is closed: %w", keystore.ErrUnavailable)
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	return s.mu.Unlock, nil
}

func (s *memoryStore) find(unit chip.MAC, fp keystore.Fingerprint) *memoryRow {
	for _, r := range s.rows {
		if r.meta.Unit == unit && r.meta.Fingerprint == fp {
			return r
		}
	}
	return nil
}

func (s *memoryStore) Info(ctx context.Context) (keystore.Info, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return keystore.Info{}, err
	}
	defer unlock()
	return keystore.Info{Kind: "memory", ID: s.id, TestStore: s.test, Where: "memory"}, nil
}

func (s *memoryStore) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return keystore.Receipt{}, err
	}
	defer unlock()
	b, err := keystore.MarshalRecord(r)
	if err != nil {
		return keystore.Receipt{}, err
	}
	if err := keystore.CheckUnit(r.Unit, s.test); err != nil {
		return keystore.Receipt{}, err
	}
	if row := s.find(r.Unit, r.Fingerprint); row != nil {
		if !slices.Equal(row.record, b) || row.meta.Superseded() {
			return keystore.Receipt{}, keystore.ErrExists
		}
		return row.meta.Receipt, nil
	}
	for _, row := range s.rows {
		if m := row.meta; m.Unit == r.Unit && !m.Superseded() {
			return keystore.Receipt{}, &keystore.ConflictError{Unit: m.Unit, Fingerprint: m.Fingerprint, State: m.Current(), Job: m.Job}
		}
	}
	row := &memoryRow{record: b, meta: r.Meta()}
	row.meta.Receipt = keystore.Receipt{Ref: fmt.Sprintf("memory/%s/%s", r.Unit, r.Fingerprint), Version: 1, Store: s.id, Time: time.Now().UTC()}
	s.rows = append(s.rows, row)
	return row.meta.Receipt, nil
}

func (s *memoryStore) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return keystore.Receipt{}, err
	}
	defer unlock()
	if row := s.find(unit, fp); row != nil {
		return row.meta.Receipt, nil
	}
	return keystore.Receipt{}, keystore.ErrNotFound
}

func (s *memoryStore) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []keystore.Meta
	for _, row := range s.rows {
		if row.meta.Unit == unit {
			m := row.meta
			m.States = slices.Clone(m.States)
			out = append(out, m)
		}
	}
	return out, nil
}

func (s *memoryStore) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		unlock, err := s.lock(ctx)
		if err != nil {
			yield(chip.MAC{}, err)
			return
		}
		var units []chip.MAC
		for _, row := range s.rows {
			units = append(units, row.meta.Unit)
		}
		unlock()
		slices.SortFunc(units, func(a, b chip.MAC) int { return slices.Compare(a[:], b[:]) })
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

func (s *memoryStore) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return keystore.Receipt{}, err
	}
	defer unlock()
	if err := st.Validate(); err != nil {
		return keystore.Receipt{}, err
	}
	row := s.find(unit, fp)
	if row == nil {
		return keystore.Receipt{}, keystore.ErrNotFound
	}
	receipt := row.meta.Receipt
	receipt.Version = len(row.meta.States) + 1
	if n := len(row.meta.States); n > 0 && row.meta.States[n-1].Kind == st.Kind && row.meta.States[n-1].Job == st.Job {
		receipt.Version, receipt.Time = n, row.meta.States[n-1].Time
		return receipt, nil
	}
	if err := keystore.CheckTransition(row.meta.States, st.Kind); err != nil {
		return keystore.Receipt{}, err
	}
	if st.Time.IsZero() {
		st.Time = time.Now().UTC()
	}
	st.Seq = len(row.meta.States) + 1
	receipt.Time = st.Time
	row.meta.States = append(row.meta.States, st)
	return receipt, nil
}

func (s *memoryStore) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return keystore.Record{}, err
	}
	defer unlock()
	if row := s.find(unit, fp); row != nil {
		return keystore.ParseRecord(row.record)
	}
	return keystore.Record{}, keystore.ErrNotFound
}

func (s *memoryStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func TestMemoryStoreConforms(t *testing.T) {
	keystoretest.Run(t, keystoretest.Harness{
		New: func(_ *testing.T, test bool) keystore.Store { return newMemoryStore(test) },
		Reopen: func(_ *testing.T, s keystore.Store) keystore.Store {
			old := s.(*memoryStore)
			_ = old.Close()
			return &memoryStore{id: old.id, test: old.test, rows: old.rows}
		},
	})
}

// memoryJournal keeps entries in memory, with the journal's rules for them.
type memoryJournal struct {
	mu      sync.Mutex
	entries []journal.Entry
}

func (j *memoryJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	if err := ctx.Err(); err != nil {
		return journal.Entry{}, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Index, e.Station, e.Time = uint64(len(j.entries)), "bench", time.Now().UTC()
	if n := len(j.entries); n > 0 {
		line, err := j.entries[n-1].Canonical()
		if err != nil {
			return journal.Entry{}, err
		}
		e.Prev = journal.HashLine(line)
	}
	if _, err := e.Canonical(); err != nil {
		return journal.Entry{}, err
	}
	j.entries = append(j.entries, e)
	return e, nil
}

func (j *memoryJournal) Head() (uint64, journal.Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(j.entries)
	if n == 0 {
		return 0, journal.Hash{}
	}
	line, err := j.entries[n-1].Canonical()
	if err != nil {
		panic(err) // it was appended
	}
	return uint64(n), journal.HashLine(line)
}

func (j *memoryJournal) Entries(from, to uint64) iter.Seq2[journal.Entry, error] {
	j.mu.Lock()
	defer j.mu.Unlock()
	part := slices.Clone(j.entries[from:to])
	return func(yield func(journal.Entry, error) bool) {
		for _, e := range part {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (j *memoryJournal) Unit(mac chip.MAC) ([]journal.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []journal.Entry
	for _, e := range j.entries {
		if e.Unit == mac {
			out = append(out, e)
		}
	}
	return out, nil
}
