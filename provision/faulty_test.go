package provision_test

import (
	"context"
	"errors"
	"iter"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

var errInjected = errors.New("injected fault")

// faultyStore fails calls of a store: before they did anything, or after they did
// all. The function is told the call's name and number, from 1.
type faultyStore struct {
	keystore.Store
	calls int
	fail  func(op string, call int) (before, after error)
}

func (s *faultyStore) check(op string) (before, after error) {
	s.calls++
	return s.fail(op, s.calls)
}

func (s *faultyStore) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	before, after := s.check("create")
	if before != nil {
		return keystore.Receipt{}, before
	}
	out, err := s.Store.Create(ctx, r)
	return out, errors.Join(err, after)
}

// Reserve is there for every store, and does nothing with one that cannot.
func (s *faultyStore) Reserve(ctx context.Context, m keystore.Meta) error {
	r, ok := s.Store.(keystore.Reserver)
	if !ok {
		return nil
	}
	before, after := s.check("reserve")
	if before != nil {
		return before
	}
	return errors.Join(r.Reserve(ctx, m), after)
}

func (s *faultyStore) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	before, after := s.check("confirm")
	if before != nil {
		return keystore.Receipt{}, before
	}
	out, err := s.Store.Confirm(ctx, unit, fp)
	return out, errors.Join(err, after)
}

func (s *faultyStore) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	before, after := s.check("list")
	if before != nil {
		return nil, before
	}
	out, err := s.Store.List(ctx, unit)
	return out, errors.Join(err, after)
}

func (s *faultyStore) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	before, after := s.check("state")
	if before != nil {
		return keystore.Receipt{}, before
	}
	out, err := s.Store.AddState(ctx, unit, fp, st)
	return out, errors.Join(err, after)
}

// faultyJournal fails the nth Append, before or after it happened.
type faultyJournal struct {
	provision.Journal
	calls, nth int
	after      bool
}

func (j *faultyJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	j.calls++
	if j.calls != j.nth {
		return j.Journal.Append(ctx, e)
	}
	if j.after {
		if e, err := j.Journal.Append(ctx, e); err != nil {
			return e, err
		}
	}
	return journal.Entry{}, errInjected
}

// Head and Entries are those of a memoryJournal.
func (j *faultyJournal) Head() (uint64, journal.Hash) { return j.Journal.(*memoryJournal).Head() }

func (j *faultyJournal) Entries(from, to uint64) iter.Seq2[journal.Entry, error] {
	return j.Journal.(*memoryJournal).Entries(from, to)
}

// watchJournal tells how many burns there were since the entry before.
type watchJournal struct {
	provision.Journal
	c     *espsim.Chip
	burns int
	seen  func(e journal.Entry, burns int)
}

func (j *watchJournal) Append(ctx context.Context, e journal.Entry) (journal.Entry, error) {
	j.seen(e, j.c.Burns()-j.burns)
	j.burns = j.c.Burns()
	return j.Journal.Append(ctx, e)
}
