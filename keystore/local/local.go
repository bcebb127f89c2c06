// Package local owns the embedded keystore: one bbolt file whose key records
// are sealed with age. It is for the demo, the bench and small lines; a factory
// keeps its keys in a server.
//
// # What is sealed, and to what
//
// Each record is one age file (filippo.io/age) to a single X25519 recipient. Its
// identity lies in a file of its own with mode 0600, or inside the store, sealed
// with a passphrase (scrypt). The recipient is in the store in clear. So a store
// opened without identity and passphrase can create, confirm, list and add
// states, and cannot read a key: that is all a station needs. Key bytes are in
// the file only sealed.
//
// # What is in clear, and how far it can be trusted
//
// Unit, fingerprint, chip, recipe, job and the other fields of keystore.Meta
// are in clear, with SHA-256 of the sealed record and of the partition table.
// Every one of them is also inside the sealed record. States are in clear, each
// with the hash of what stands before it, back to the record's clear row.
//
// With the identity at hand, Confirm and Load open the sealed record and compare
// fingerprint, key and every clear field: damage and tampering of a row are
// found. Without it, Confirm proves that the row is whole and that the sealed
// record is the one that was written (stored hash), not that it can be opened.
// The chain of states finds damage and a removed or changed state that is not
// the last. None of this stops somebody who may write the file: he can cut off
// the last states, replace the whole file or delete it. Against him stand file
// permissions, and the journal, which names the same fingerprints.
//
// # Durability
//
// A call that writes returns after bbolt's fdatasync. When a commit fails, its
// outcome is unknown, and the store refuses further writes until it is opened
// again.
package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"filippo.io/age"
	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/boltfile"
	"github.com/provisiond/provisiond/internal/seal"
	"github.com/provisiond/provisiond/keystore"
)

// Kind is keystore.Info.Kind of these stores.
const Kind = "local"

// What other modules find here is an error without another package's name.
var sealExists, sealMode, sealIdentity = seal.ErrExists, seal.ErrMode, seal.ErrIdentity

// The errors of this package, for errors.Is.
var (
	ErrMissing    = errors.New("keystore/local: there is no keystore")
	ErrExists     = sealExists
	ErrLocked     = errors.New("keystore/local: in use by another process")
	ErrMode       = sealMode
	ErrNoIdentity = errors.New("keystore/local: opened without identity or passphrase")
	ErrIdentity   = sealIdentity
	ErrNotAStore  = errors.New("keystore/local: not a keystore of this format")
)

// Buckets. Keys of records, rows and states begin with MAC and fingerprint.
var (
	bucketMeta    = []byte("meta")    // "header" → header, "identity" → identity sealed with a passphrase
	bucketRows    = []byte("rows")    // MAC ‖ fingerprint → clear row
	bucketSealed  = []byte("sealed")  // MAC ‖ fingerprint → age file
	bucketStates  = []byte("states")  // MAC ‖ fingerprint ‖ number (u32, big endian) → state
	bucketByPrint = []byte("byprint") // fingerprint → MAC: one key is never stored for two units
	keyHeader     = []byte("header")
	keyIdentity   = []byte("identity")
)

// Options say what opens the seal. At most one of the three is given.
type Options struct {
	IdentityFile   string                 // age identity file, mode 0600
	PassphraseFile string                 // mode 0600; one newline at its end is not part of it
	Passphrase     func() ([]byte, error) // asks for it; the result is wiped after use
	TestStore      bool                   // Init: takes simulated units, and only those
}

// Store is an open local keystore.
type Store struct {
	path      string
	header    header
	recipient *age.X25519Recipient
	identity  *age.X25519Identity // nil without
	db        *boltfile.DB
	failed    atomic.Pointer[error]
	now       func() time.Time
}

var _ keystore.Store = (*Store)(nil)

// Init makes a new keystore file. It needs an identity file, which must exist
// (NewIdentity makes one), or a passphrase, to which it seals a new identity.
func Init(path string, o Options) error {
	identity, sealed, err := o.forInit()
	if err != nil {
		return err
	}
	h := header{
		format:    formatVersion,
		id:        hex.EncodeToString(randomBytes(16)),
		testStore: o.TestStore,
		recipient: identity.Recipient().String(),
		created:   time.Now(),
	}
	err = boltfile.Create(path, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketRows, bucketSealed, bucketStates, bucketByPrint} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Put(keyHeader, h.append(nil)); err != nil {
			return err
		}
		if sealed == nil {
			return nil
		}
		return meta.Put(keyIdentity, sealed)
	})
	return explain(path, err)
}

// Open opens an existing keystore. Without identity and passphrase, Load is
// refused and Confirm relies on stored hashes.
func Open(path string, o Options) (*Store, error) {
	s := &Store{path: path, now: time.Now}
	db, err := boltfile.Open(path)
	if err != nil {
		return nil, explain(path, err)
	}
	s.db = db
	if err := s.load(o); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) load(o Options) error {
	var sealedIdentity []byte
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketRows, bucketSealed, bucketStates, bucketByPrint} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("%w: bucket %s is missing", ErrNotAStore, name)
			}
		}
		meta := tx.Bucket(bucketMeta)
		sealedIdentity = bytes.Clone(meta.Get(keyIdentity))
		var err error
		s.header, err = parseHeader(meta.Get(keyHeader))
		return err
	})
	if err != nil {
		return explain(s.path, err)
	}
	if s.recipient, err = age.ParseX25519Recipient(s.header.recipient); err != nil {
		return fmt.Errorf("%s: %w: the recipient in its header is not valid", s.path, ErrNotAStore)
	}
	s.identity, err = o.forOpen(s.path, sealedIdentity)
	if err != nil || s.identity == nil {
		return err
	}
	if got := s.identity.Recipient().String(); got != s.header.recipient {
		return fmt.Errorf("%s: %w: it is for %s, and the keystore is sealed to %s: give the identity that it was made with",
			s.path, ErrIdentity, got, s.header.recipient)
	}
	return nil
}

// explain adds what to do to boltfile's errors.
func explain(path string, err error) error {
	var damaged *boltfile.DamagedError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, boltfile.ErrMissing):
		return fmt.Errorf("%w at %s: check the path, or make one with: provisiond keystore init --keystore %s", ErrMissing, path, path)
	case errors.Is(err, boltfile.ErrExists):
		return fmt.Errorf("%w at %s: open it, or choose another path; a keystore is never overwritten", ErrExists, path)
	case errors.Is(err, boltfile.ErrLocked):
		return fmt.Errorf("%w: %s: stop the other provisiond that has it open", ErrLocked, path)
	case errors.Is(err, boltfile.ErrMode):
		return fmt.Errorf("%w: %s: look who read it, then: chmod 600 %s", ErrMode, path, path)
	case errors.As(err, &damaged):
		return fmt.Errorf("%s: %w: %w: restore it from a backup; do not make a new one in its place", path, keystore.ErrDamaged, err)
	case errors.Is(err, ErrNotAStore):
		return fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Errorf("keystore %s: %w", path, err)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// check is the beginning of every call.
func (s *Store) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("keystore %s: %w", s.path, err)
	}
	if f := s.failed.Load(); f != nil {
		return fmt.Errorf("%w: %s: an earlier write failed (%w): close it, mend the cause, open it again",
			keystore.ErrUnavailable, s.path, *f)
	}
	return nil
}

// view reads.
func (s *Store) view(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	return s.outcome(s.db.View(fn))
}

// update writes. An error of fn means that nothing was written; any other one
// that the outcome is not known, and then no more is written.
func (s *Store) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	var refused error
	committing := false
	err := s.db.Update(func(tx *bolt.Tx) error {
		refused = s.check(ctx) // once more: the lock may have taken long
		if refused == nil {
			refused = fn(tx)
		}
		committing = refused == nil
		return refused
	})
	if err == nil || refused != nil {
		return err
	}
	if errors.Is(err, boltfile.ErrClosed) {
		return s.outcome(err)
	}
	s.failed.Store(&err)
	if !committing {
		return s.outcome(err)
	}
	return fmt.Errorf("%w: %s: %w: open the store again and look with: provisiond keystore describe",
		keystore.ErrUnknownOutcome, s.path, err)
}

func (s *Store) outcome(err error) error {
	var damaged *boltfile.DamagedError
	switch {
	case errors.Is(err, boltfile.ErrClosed):
		return fmt.Errorf("%w: %s is closed", keystore.ErrUnavailable, s.path)
	case errors.As(err, &damaged):
		return explain(s.path, err)
	}
	return err
}

// Info describes the store.
func (s *Store) Info(ctx context.Context) (keystore.Info, error) {
	if err := s.view(ctx, func(*bolt.Tx) error { return nil }); err != nil {
		return keystore.Info{}, err
	}
	where := s.path
	if abs, err := filepath.Abs(s.path); err == nil {
		where = abs
	}
	return keystore.Info{Kind: Kind, ID: s.header.id, TestStore: s.header.testStore, Where: where}, nil
}

// Recipient is the age recipient that records are sealed to.
func (s *Store) Recipient() string { return s.header.recipient }

// CanLoad reports whether the store was opened with what opens the seal.
func (s *Store) CanLoad() bool { return s.identity != nil }

func (s *Store) receipt(unit chip.MAC, fp keystore.Fingerprint, version int, at time.Time) keystore.Receipt {
	return keystore.Receipt{
		Ref:     fmt.Sprintf("%s:%s/%s/%s", Kind, s.header.id, unit, fp),
		Version: version, Store: s.header.id, Time: at,
	}
}

// Create stores a new record. See keystore.Store.
func (s *Store) Create(ctx context.Context, r keystore.Record) (keystore.Receipt, error) {
	if err := s.check(ctx); err != nil {
		return keystore.Receipt{}, err
	}
	if err := keystore.CheckUnit(r.Unit, s.header.testStore); err != nil {
		return keystore.Receipt{}, err
	}
	sealed, err := s.seal(r)
	if err != nil {
		return keystore.Receipt{}, err
	}
	id := recordKey(r.Unit, r.Fingerprint)
	row := rowOf(r)
	row.sealedSHA256 = sha256.Sum256(sealed)
	var receipt keystore.Receipt
	err = s.update(ctx, func(tx *bolt.Tx) error {
		known, err := s.records(tx, r.Unit)
		if err != nil {
			return err
		}
		for _, k := range known {
			if k.row.meta.Fingerprint == r.Fingerprint {
				receipt = s.receipt(r.Unit, r.Fingerprint, 1, k.row.stored)
				return sameRecord(k, row)
			}
		}
		for _, k := range known {
			if m := k.meta(); !m.Superseded() {
				return &keystore.ConflictError{Unit: r.Unit, Fingerprint: m.Fingerprint, State: m.Current(), Job: m.Job}
			}
		}
		if other := tx.Bucket(bucketByPrint).Get(r.Fingerprint[:]); other != nil {
			return fmt.Errorf("%w: key %s is stored for unit %s: make a new key", keystore.ErrExists, r.Fingerprint, macString(other))
		}
		rows := tx.Bucket(bucketRows)
		if row.seq, err = rows.NextSequence(); err != nil {
			return err
		}
		row.stored = s.now().UTC()
		receipt = s.receipt(r.Unit, r.Fingerprint, 1, row.stored)
		return errors.Join(
			rows.Put(id, row.text()),
			tx.Bucket(bucketSealed).Put(id, sealed),
			tx.Bucket(bucketByPrint).Put(r.Fingerprint[:], r.Unit[:]))
	})
	if err != nil {
		return keystore.Receipt{}, err
	}
	return receipt, nil
}

// sameRecord says whether creating row again is a success.
func sameRecord(k stored, row row) error {
	row.seq, row.stored, row.sealedSHA256 = k.row.seq, k.row.stored, k.row.sealedSHA256
	switch {
	case k.meta().Superseded():
		return fmt.Errorf("%w: key %s of unit %s is superseded and may not be used again: make a new key",
			keystore.ErrExists, k.row.meta.Fingerprint, k.row.meta.Unit)
	case !bytes.Equal(row.text(), k.row.text()):
		return fmt.Errorf("%w: key %s of unit %s, stored by job %s",
			keystore.ErrExists, k.row.meta.Fingerprint, k.row.meta.Unit, k.row.meta.Job)
	}
	return nil
}

// Confirm proves that the record is stored. With the identity at hand it opens
// the seal and compares the key with its fingerprint and the record with its
// clear row; without, it compares the stored hash.
func (s *Store) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	k, sealed, err := s.get(ctx, unit, fp)
	if err != nil {
		return keystore.Receipt{}, err
	}
	if s.identity != nil {
		r, err := s.open(k, sealed)
		if err != nil {
			return keystore.Receipt{}, err
		}
		r.Key.Wipe()
	}
	return s.receipt(unit, fp, 1, k.row.stored), nil
}

// Load gives the whole record. It needs the identity or the passphrase.
func (s *Store) Load(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	if s.identity == nil {
		return keystore.Record{}, fmt.Errorf("%w: %s: give the identity file or the passphrase to read keys", ErrNoIdentity, s.path)
	}
	k, sealed, err := s.get(ctx, unit, fp)
	if err != nil {
		return keystore.Record{}, err
	}
	return s.open(k, sealed)
}

// get reads row, states and sealed record, and checks the stored hashes.
func (s *Store) get(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (k stored, sealed []byte, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		id := recordKey(unit, fp)
		raw := tx.Bucket(bucketRows).Get(id)
		sealed = bytes.Clone(tx.Bucket(bucketSealed).Get(id))
		if raw == nil && sealed == nil {
			return fmt.Errorf("%w: key %s of unit %s in %s", keystore.ErrNotFound, fp, unit, s.path)
		}
		k, err = s.record(tx, id, raw)
		return err
	})
	if err == nil && sha256.Sum256(sealed) != k.row.sealedSHA256 {
		err = s.damaged(unit, "the sealed record is not the one that was stored")
	}
	return k, sealed, err
}

func (s *Store) damaged(unit chip.MAC, reason string) error {
	return fmt.Errorf("%w: unit %s in %s: %s: restore the keystore from a backup", keystore.ErrDamaged, unit, s.path, reason)
}

// List gives the records of a unit.
func (s *Store) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	var metas []keystore.Meta
	err := s.view(ctx, func(tx *bolt.Tx) error {
		known, err := s.records(tx, unit)
		for _, k := range known {
			m := k.meta()
			m.Receipt = s.receipt(m.Unit, m.Fingerprint, 1, k.row.stored)
			metas = append(metas, m)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return metas, nil
}

// unitsPerView bounds how long Units holds a read transaction.
const unitsPerView = 1024

// Units gives every unit that has a record. No transaction is open while the
// loop's body runs, so the body may use the store.
func (s *Store) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		for next := []byte{0}; next != nil; {
			var units []chip.MAC
			err := s.view(ctx, func(tx *bolt.Tx) error {
				c := tx.Bucket(bucketRows).Cursor()
				k, _ := c.Seek(next)
				for ; k != nil && len(units) < unitsPerView; k, _ = c.Seek(after(units[len(units)-1])) {
					if len(k) < len(chip.MAC{}) {
						return s.damaged(chip.MAC{}, "a row has no unit")
					}
					units = append(units, chip.MAC(k[:6]))
				}
				return nil
			})
			if err != nil {
				yield(chip.MAC{}, err)
				return
			}
			for _, u := range units {
				if !yield(u, nil) {
					return
				}
			}
			if next = nil; len(units) == unitsPerView {
				next = after(units[len(units)-1])
			}
		}
	}
}

// after gives a key behind all keys of a unit.
func after(u chip.MAC) []byte {
	return append(slices.Clone(u[:]), bytes.Repeat([]byte{0xFF}, 33)...)
}

// AddState adds the next state of a record.
func (s *Store) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (keystore.Receipt, error) {
	if st.Time.IsZero() {
		st.Time = s.now()
	}
	st.Time = st.Time.UTC()
	if err := st.Validate(); err != nil {
		return keystore.Receipt{}, err
	}
	var receipt keystore.Receipt
	err := s.update(ctx, func(tx *bolt.Tx) error {
		id := recordKey(unit, fp)
		raw := tx.Bucket(bucketRows).Get(id)
		if raw == nil {
			return fmt.Errorf("%w: key %s of unit %s in %s", keystore.ErrNotFound, fp, unit, s.path)
		}
		k, err := s.record(tx, id, raw)
		if err != nil {
			return err
		}
		if n := len(k.states); n > 0 && k.states[n-1].Kind == st.Kind && k.states[n-1].Job == st.Job {
			receipt = s.receipt(unit, fp, n, k.states[n-1].Time)
			return nil
		}
		if err := keystore.CheckTransition(k.states, st.Kind); err != nil {
			return fmt.Errorf("unit %s, key %s: %w", unit, fp, err)
		}
		st.Seq = len(k.states) + 1
		receipt = s.receipt(unit, fp, st.Seq, st.Time)
		return tx.Bucket(bucketStates).Put(stateKey(id, st.Seq), appendState(nil, st, k.head))
	})
	if err != nil {
		return keystore.Receipt{}, err
	}
	return receipt, nil
}

// Close closes the file. It may be called more than once.
func (s *Store) Close() error { return s.db.Close() }
