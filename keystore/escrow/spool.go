package escrow

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/boltfile"
	"github.com/provisiond/provisiond/keystore"
)

// Names in a spool.
const (
	storeFile   = "store"
	lockFile    = "lock"
	drainedDir  = "drained"
	newPrefix   = ".new-"
	sealedExt   = ".sealed"
	stateExt    = ".state-"
	uploadedExt = ".uploaded"
	drainedExt  = ".drained"
)

// spool is the folder. Its files are written once. Methods that write are called
// with the lock held.
type spool struct {
	dir string
	mu  sync.Mutex
	// fault, if set, is asked around each file operation; tests let them fail
	// before they did anything, or after they did all.
	fault func(op, name string) (before, after error)
	// quick, for tests that end no power: nothing waits for the disk.
	quick bool
}

func openSpool(dir string) (*spool, error) {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("keystore/escrow: there is no folder %s: check the path, or make it with: mkdir -m 700 %s", dir, dir)
	case err != nil:
		return nil, fmt.Errorf("keystore/escrow: %w", err)
	case !st.IsDir():
		return nil, fmt.Errorf("keystore/escrow: %s is no folder", dir)
	case st.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("keystore/escrow: others may write to %s (mode %04o): look who did, then: chmod 700 %s", dir, st.Mode().Perm(), dir)
	}
	return &spool{dir: dir}, nil
}

// lock keeps other processes from writing to the spool. It is held for file
// operations only, never over a request.
func (s *spool) lock() (unlock func(), err error) {
	s.mu.Lock()
	f, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("keystore/escrow: the lock of %s: %w", s.dir, err)
	}
	return func() {
		_ = f.Close() // ends the lock
		s.mu.Unlock()
	}, nil
}

func (s *spool) do(op, name string, f func() error) error {
	if s.fault == nil {
		return f()
	}
	before, after := s.fault(op, name)
	if before != nil {
		return before
	}
	return errors.Join(f(), after)
}

func (s *spool) path(name string) string { return filepath.Join(s.dir, name) }

func (s *spool) syncDir(name string) error {
	return s.do("syncdir", name, func() error {
		if s.quick {
			return nil
		}
		return boltfile.SyncDir(s.path(name))
	})
}

// errTaken says that another content is at the name already.
var errTaken = errors.New("another one is there already")

// put makes a file durably: written and synced under another name first, then
// linked to its own. The same content again is a success, and durable.
func (s *spool) put(name string, content []byte) error {
	tmp := s.path(newPrefix + rand.Text())
	err := s.do("write", name, func() error {
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		serr := s.do("sync", name, func() error {
			if s.quick {
				return nil
			}
			return f.Sync()
		})
		return errors.Join(err, serr, f.Close())
	})
	defer func() { _ = os.Remove(tmp) }() // a crash leaves it; sweep takes it away
	if err != nil {
		return fmt.Errorf("keystore/escrow: %s: %w", s.path(name), err)
	}
	err = s.do("link", name, func() error { return os.Link(tmp, s.path(name)) })
	if errors.Is(err, fs.ErrExist) {
		var old []byte
		if old, err = s.read(name); err == nil && !bytes.Equal(old, content) {
			err = errTaken
		}
	}
	if err == nil {
		err = s.syncDir(".")
	}
	if err != nil {
		return fmt.Errorf("keystore/escrow: %s: %w", s.path(name), err)
	}
	return nil
}

// sweep takes away what a crash left of files that never got their name.
func (s *spool) sweep() error {
	names, err := filepath.Glob(s.path(newPrefix + "*"))
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func (s *spool) read(name string) (b []byte, err error) {
	err = s.do("read", name, func() error {
		f, err := os.Open(s.path(name))
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		b, err = io.ReadAll(io.LimitReader(f, maxFile+1))
		return err
	})
	return b, err
}

// find reads a file of a record, wherever it lies. A record on its way to
// drained loses its files here after they have appeared there.
func (s *spool) find(k key, ext string) ([]byte, bool, error) {
	for _, dir := range []string{"", s.drained(k.unit)} {
		b, err := s.read(filepath.Join(dir, k.name()+ext))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return b, err == nil, err
		}
	}
	return nil, false, nil
}

// drained is the folder of a unit's drained records.
func (s *spool) drained(unit chip.MAC) string {
	return filepath.Join(drainedDir, strings.ReplaceAll(unit.String(), ":", ""))
}

// entry is a record in the spool.
type entry struct {
	key
	header   header
	sealed   []byte // the whole file
	states   []keystore.State
	uploaded bool
	done     *outcome // drained
}

func (e entry) superseded() bool { return keystore.Meta{States: e.states}.Superseded() }

// live says that the record is not drained.
func (e entry) live() bool { return e.done == nil }

// keys lists the records in a folder of the spool, of one unit or, with a zero
// unit, of all.
func (s *spool) keys(dir string, unit chip.MAC) ([]key, error) {
	var files []os.DirEntry
	err := s.do("list", dir, func() (err error) {
		files, err = os.ReadDir(s.path(dir))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) && dir != "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keystore/escrow: %w", err)
	}
	var out []key
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), sealedExt)
		if !ok {
			continue
		}
		k, err := parseName(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", keystore.ErrDamaged, s.path(filepath.Join(dir, f.Name())), err)
		}
		if unit == (chip.MAC{}) || k.unit == unit {
			out = append(out, k)
		}
	}
	return out, nil
}

func parseName(name string) (key, error) {
	mac, fp, ok := strings.Cut(name, "-")
	var k key
	var err error
	if ok && len(mac) == 12 {
		var parts []string
		for p := range slices.Chunk([]byte(mac), 2) {
			parts = append(parts, string(p))
		}
		if k.unit, err = chip.ParseMAC(strings.Join(parts, ":")); err == nil {
			k.fp, err = keystore.ParseFingerprint(fp)
		}
	}
	if !ok || err != nil || k.name() != name {
		return key{}, errors.New("its name is none of a record")
	}
	return k, nil
}

// load reads a record and checks everything that needs no identity: that its
// header is good and of its name, that the sealed part is the one that was
// written, and that its states may follow each other.
func (s *spool) load(k key) (entry, error) {
	damaged := func(ext string, err error) (entry, error) {
		return entry{}, fmt.Errorf("%w: %s%s: %w", keystore.ErrDamaged, s.path(k.name()), ext, err)
	}
	e := entry{key: k}
	b, ok, err := s.find(k, sealedExt)
	if err != nil {
		return e, fmt.Errorf("keystore/escrow: %w", err)
	}
	if !ok {
		return e, fmt.Errorf("%w: key %s of unit %s is not in the escrow", keystore.ErrNotFound, k.fp, k.unit)
	}
	e.sealed = b
	if e.header, _, err = parseSealed(b); err != nil {
		return damaged(sealedExt, err)
	}
	if e.header.meta.Unit != k.unit || e.header.meta.Fingerprint != k.fp {
		return damaged(sealedExt, errors.New("it is the record of another key"))
	}
	for n := 1; ; n++ {
		ext := stateExt + strconv.Itoa(n)
		b, ok, err := s.find(k, ext)
		if err != nil {
			return e, fmt.Errorf("keystore/escrow: %w", err)
		}
		if !ok {
			break
		}
		of, st, err := parseState(b)
		if err == nil && (of != k || st.Seq != n) {
			err = errors.New("it is the state of another record")
		}
		if err == nil {
			err = keystore.CheckTransition(e.states, st.Kind)
		}
		if err != nil {
			return damaged(ext, err)
		}
		e.states = append(e.states, st)
	}
	if _, e.uploaded, err = s.find(k, uploadedExt); err != nil {
		return e, fmt.Errorf("keystore/escrow: %w", err)
	}
	if b, ok, err = s.find(k, drainedExt); err != nil {
		return e, fmt.Errorf("keystore/escrow: %w", err)
	}
	if ok {
		of, o, err := parseOutcome(b)
		if err == nil && of != k {
			err = errors.New("it is the marker of another record")
		}
		if err != nil {
			return damaged(drainedExt, err)
		}
		e.done = &o
	}
	return e, nil
}

// all reads the records of one unit, or with a zero unit all that are not moved
// to drained, in the order in which they were made.
func (s *spool) all(unit chip.MAC) ([]entry, error) {
	keys, err := s.keys("", unit)
	if err == nil && unit != (chip.MAC{}) {
		var more []key
		more, err = s.keys(s.drained(unit), unit)
		for _, k := range more {
			if !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	var out []entry
	for _, k := range keys {
		if err != nil {
			break
		}
		var e entry
		if e, err = s.load(k); err == nil {
			out = append(out, e)
		}
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(bytes.Compare(a.unit[:], b.unit[:]), cmp.Compare(a.header.seq, b.header.seq), bytes.Compare(a.fp[:], b.fp[:]))
	})
	return out, nil
}

// finish marks a record as drained and moves its files. A crash in between is
// mended by calling it again.
func (s *spool) finish(e entry, o outcome) error {
	if e.live() {
		if err := s.put(e.name()+drainedExt, marshalOutcome(e.key, o)); err != nil {
			return err
		}
	}
	to := s.drained(e.unit)
	err := s.do("mkdir", to, func() error { return os.MkdirAll(s.path(to), 0o700) })
	if err == nil {
		err = errors.Join(s.syncDir("."), s.syncDir(drainedDir))
	}
	if err != nil {
		return fmt.Errorf("keystore/escrow: %w", err)
	}
	var exts []string
	for i := range e.states {
		exts = append(exts, stateExt+strconv.Itoa(i+1))
	}
	// The marker appears there before the record goes, so that the record is
	// drained wherever somebody finds it.
	for _, ext := range append(exts, uploadedExt, drainedExt, sealedExt) {
		name := e.name() + ext
		err := s.do("move", name, func() error { return os.Rename(s.path(name), s.path(filepath.Join(to, name))) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // moved already
			return fmt.Errorf("keystore/escrow: %w", err)
		}
	}
	return errors.Join(s.syncDir(to), s.syncDir("."))
}

// finishAll moves what was marked and not moved.
func (s *spool) finishAll() error {
	entries, err := s.all(chip.MAC{})
	for _, e := range entries {
		if err == nil && !e.live() {
			err = s.finish(e, *e.done)
		}
	}
	return err
}
