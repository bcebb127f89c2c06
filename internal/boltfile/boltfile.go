// Package boltfile owns how this project keeps a bbolt database file: the
// journal and the local keystore share it.
//
// It promises what bbolt alone does not. A file is never created by opening it.
// Creating one is atomic: it appears complete and durable, directory entry
// included, or not at all. The mode is 0600. A lock held by another process is
// an error within two seconds. The page structure is checked before bbolt maps
// the file, and what bbolt still panics about (or a SIGBUS from a file that
// shrank) is an error. bbolt's commits are fdatasynced.
//
// Of a file that is larger than a limit the caller gives (Quick), Open checks only
// the pages that the next commit builds on; CheckAll checks all of them later.
package boltfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The errors of this package, for errors.Is.
var (
	ErrMissing = errors.New("there is no such file")
	ErrExists  = errors.New("the file exists already")
	ErrLocked  = errors.New("the file is in use by another process")
	ErrClosed  = berrors.ErrDatabaseNotOpen
	ErrMode    = errors.New("the file can be read or written by other users: chmod 600 it")
)

// DamagedError says that the file is no sound bbolt database.
type DamagedError struct {
	Reason   string
	panicked bool // bbolt panicked, so its locks are in an unknown state
}

// Error gives the reason.
func (e *DamagedError) Error() string { return "the database is damaged: " + e.Reason }

// lockTimeout is how long Open waits for another process; lockPoll how often it looks.
const (
	lockTimeout = 1500 * time.Millisecond
	lockPoll    = 25 * time.Millisecond
)

// DB is an open database. Its methods turn bbolt's panics into errors. A panic
// may leave bbolt's locks taken, so after the first one the database is not
// touched again: every call gives the same error.
type DB struct {
	bolt     *bolt.DB
	file     *os.File   // bbolt's, to let go of it when bbolt cannot
	starting sync.Mutex // see begin
	writer   sync.Mutex // nobody waits for bbolt's own lock, which a panic keeps
	broken   atomic.Pointer[DamagedError]

	// MetaFallback reports that one of the two meta pages is not valid, so the
	// database stands at the commit before the last one that was begun. A torn
	// write at a power cut looks so, and so does damage to the newest meta page.
	MetaFallback bool
}

// Option changes how Open works.
type Option func(*opening)

type opening struct {
	limit int64
	wait  time.Duration
}

// Quick lets Open check only the right edge of every tree, and not every page, of
// a file that has more than limit bytes. So a file of any size opens in the same
// time. Metas, length and free list are always checked.
func Quick(limit int64) Option { return func(o *opening) { o.limit = limit } }

// NoWait lets Open give ErrLocked at once.
func NoWait() Option { return func(o *opening) { o.wait = 0 } }

func options(open func(string, int, os.FileMode) (*os.File, error)) *bolt.Options {
	return &bolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
		OpenFile:     open,
	}
}

// Create makes a new database with what fill writes into it. It refuses an
// existing path.
func Create(path string, fill func(*bolt.Tx) error) error {
	return create(path, func(name string) error {
		b, err := bolt.Open(name, 0o600, options(nil))
		if err != nil {
			return err
		}
		return errors.Join(b.Update(fill), b.Close())
	})
}

// CreateBulk makes a new database as Create does, from as many transactions as
// fill needs: it calls update for each. Nothing is synced before the end.
func CreateBulk(path string, fill func(update func(func(*bolt.Tx) error) error) error) error {
	return create(path, func(name string) error {
		o := options(nil)
		o.NoSync = true
		b, err := bolt.Open(name, 0o600, o)
		if err != nil {
			return err
		}
		return errors.Join(fill(b.Update), b.Sync(), b.Close())
	})
}

// create makes the file under another name first.
func create(path string, build func(name string) error) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, ErrExists)
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".init-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := Guard(func() error { return build(tmp.Name()) }); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// A hard link appears complete or not at all, and never replaces a file.
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", path, ErrExists)
	} else if err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the directory's entries durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open opens an existing database for reading and writing.
func Open(path string, opts ...Option) (*DB, error) {
	o := opening{limit: math.MaxInt64, wait: lockTimeout}
	for _, set := range opts {
		set(&o)
	}
	db := &DB{}
	open := func(name string, flag int, _ os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, 0)
		if err != nil {
			return nil, err
		}
		db.file = f
		if err := db.prepare(f, o); err != nil {
			_ = f.Close()
			return nil, err
		}
		return f, nil
	}
	err := Guard(func() (err error) {
		db.bolt, err = bolt.Open(path, 0o600, options(open))
		return err
	})
	if err == nil {
		return db, nil
	}
	db.letGo() // when bbolt panicked; else it has closed the file already
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrMissing
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

// prepare checks the open file and takes its lock before bbolt looks at it.
// bbolt takes the same lock again on the same descriptor, which succeeds.
func (db *DB) prepare(f *os.File, o opening) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return damaged("not a regular file")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w (mode is %04o)", ErrMode, st.Mode().Perm())
	}
	if err := lock(f, o.wait); err != nil {
		return err
	}
	db.MetaFallback, err = checkPages(f, st.Size() > o.limit)
	return err
}

// CheckAll checks every page of the file as it is now, as Open does without
// Quick. It holds up commits meanwhile.
func (db *DB) CheckAll() error {
	db.writer.Lock()
	defer db.writer.Unlock()
	return db.guard(func() error {
		_, err := checkPages(db.file, false)
		return err
	})
}

func lock(f *os.File, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return fmt.Errorf("lock: %w", err)
		case time.Now().After(deadline):
			return ErrLocked
		}
		time.Sleep(lockPoll)
	}
}

// View runs fn in a read transaction. Several may run at once.
func (db *DB) View(fn func(*bolt.Tx) error) error {
	tx, err := db.begin(false)
	if err != nil {
		return err
	}
	err = db.guard(func() error { return fn(tx) })
	if db.broken.Load() != nil {
		return err // bbolt's locks may never come free: leave the transaction
	}
	return errors.Join(err, db.guard(tx.Rollback))
}

// Update runs fn in a write transaction and returns when it is durable. An
// error of fn leaves the database as it was. After any other error it is not
// known whether the transaction took place.
func (db *DB) Update(fn func(*bolt.Tx) error) error {
	db.writer.Lock()
	defer db.writer.Unlock()
	tx, err := db.begin(true)
	if err != nil {
		return err
	}
	err = db.guard(func() error { return fn(tx) })
	switch {
	case err == nil:
		return db.guard(tx.Commit)
	case db.broken.Load() != nil:
		return err
	}
	return errors.Join(err, db.guard(tx.Rollback))
}

// begin begins transactions one after the other. bbolt holds locks while it reads
// the meta page for one; when that panics, the next must not wait for them.
func (db *DB) begin(writable bool) (tx *bolt.Tx, err error) {
	db.starting.Lock()
	defer db.starting.Unlock()
	err = db.guard(func() (err error) {
		tx, err = db.bolt.Begin(writable)
		return err
	})
	return tx, err
}

// Close waits for transactions and closes the file. After a panic it only
// closes the file, and so gives the lock back.
func (db *DB) Close() error {
	db.writer.Lock()
	defer db.writer.Unlock()
	if db.broken.Load() == nil {
		if err := db.guard(db.bolt.Close); db.broken.Load() == nil {
			return err
		}
	}
	db.letGo()
	return nil
}

// letGo closes the file without bbolt. The lock is given back first: the map
// that bbolt leaves behind keeps the file, and with it the lock, alive.
func (db *DB) letGo() {
	if db.file != nil {
		_ = syscall.Flock(int(db.file.Fd()), syscall.LOCK_UN)
		_ = db.file.Close()
	}
}

func (db *DB) guard(fn func() error) error {
	if broken := db.broken.Load(); broken != nil {
		return broken
	}
	err := Guard(fn)
	var damaged *DamagedError
	if errors.As(err, &damaged) && damaged.panicked {
		db.broken.Store(damaged)
	}
	return err
}

// Guard runs fn and turns a panic, also one from a memory fault in a mapped
// file, into a *DamagedError.
func Guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &DamagedError{Reason: fmt.Sprintf("bbolt stopped with: %v", p), panicked: true}
		}
	}()
	return fn()
}
