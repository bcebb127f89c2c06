package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/boltfile"
	"github.com/provisiond/provisiond/internal/canon"
)

// The copy beside a journal is a file of lines: every entry as it stands in the
// database, and every checkpoint, wrapped so that it is one line of JSON too. It
// is only ever appended to, after the database's commit.

// maxLine bounds a line of the copy: a payload and the rest of an entry, whose
// five texts may be escaped.
const maxLine = MaxPayload + 8<<10

const checkpointPrefix = `{"checkpoint":`

// checkpointLine wraps a note, without a newline.
func checkpointLine(c Checkpoint) []byte {
	return append(canon.AppendString([]byte(checkpointPrefix), string(c.Note)), '}')
}

// parseCheckpointLine is the opposite; ok says that the line is no entry.
func parseCheckpointLine(line []byte) (c Checkpoint, ok bool, err error) {
	if !bytes.HasPrefix(line, []byte(checkpointPrefix)) {
		return c, false, nil
	}
	r := canon.NewReader(line)
	r.Field(true, "checkpoint")
	signed := r.Bytes("checkpoint")
	if err := r.End(); err != nil {
		return c, true, err
	}
	c, err = ParseCheckpoint(signed)
	return c, true, err
}

// mirror is the copy, open for appending.
type mirror struct {
	mu    sync.Mutex
	f     *os.File
	dirty bool // written since the last sync
}

// write appends whole lines. After an error the file may end in the middle of
// one; the next Open mends that.
func (m *mirror) write(lines []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty = true
	if _, err := m.f.Write(lines); err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	return nil
}

// sync makes what was written durable.
func (m *mirror) sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirty {
		return nil
	}
	if err := m.f.Sync(); err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	m.dirty = false
	return nil
}

func (m *mirror) close() error { return errors.Join(m.sync(), m.f.Close()) }

// openCopy opens the copy, compares its end with the database, and appends what
// is missing there. A copy that has more than the database, or something else,
// is a *DamagedError.
func (j *Journal) openCopy(ctx context.Context) (err error) {
	path := CopyPath(j.path)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return fmt.Errorf("journal %s: the copy: %w", j.path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return j.damaged(NoIndex, path+" is not a regular file")
	case st.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%w: %s: look who changed it, then: chmod 600 %s", ErrMode, path, path)
	}
	next, end, err := j.compareTail(f, st.Size())
	if err != nil {
		return err
	}
	m := &mirror{f: f}
	if end < st.Size() {
		if err := f.Truncate(end); err != nil {
			return fmt.Errorf("journal %s: the copy: %w", j.path, err)
		}
		m.dirty = true
	}
	if err := j.extend(ctx, m, next); err != nil {
		return err
	}
	j.info.CopyMended = m.dirty
	if m.dirty {
		if err := m.sync(); err != nil {
			return err
		}
	}
	if made {
		if err := boltfile.SyncDir(filepath.Dir(path)); err != nil {
			return err
		}
	}
	j.copy = m
	return nil
}

// compareTail finds the last entry of the copy, which must be the database's. It
// gives the index behind it and where the copy's last whole line ends.
func (j *Journal) compareTail(f *os.File, size int64) (next uint64, end int64, err error) {
	// The last bytes that are sure to hold a whole entry: checkpoints come seldom,
	// so one line and a few checkpoints. A longer stretch is tried after that.
	for want := int64(maxLine + 16*maxNote); ; want *= 8 {
		from := max(0, size-want)
		tail := make([]byte, size-from)
		if _, err := f.ReadAt(tail, from); err != nil {
			return 0, 0, fmt.Errorf("journal %s: the copy: %w", j.path, err)
		}
		whole := tail[:bytes.LastIndexByte(tail, '\n')+1]
		end = from + int64(len(whole))
		for rest := whole; len(rest) > 0; {
			start := bytes.LastIndexByte(rest[:len(rest)-1], '\n') + 1
			if start == 0 && from > 0 {
				break // it may have begun before
			}
			line := rest[start : len(rest)-1]
			rest = rest[:start]
			if bytes.HasPrefix(line, []byte(checkpointPrefix)) {
				continue
			}
			next, err := j.sameEntry(line)
			return next, end, err
		}
		if from == 0 {
			if len(whole) == 0 { // it is empty, or was torn in its first line
				return 0, 0, nil
			}
			return 0, 0, j.damaged(NoIndex, "its copy "+CopyPath(j.path)+" has no entries")
		}
		if want > 1<<28 {
			return 0, 0, j.damaged(NoIndex, "its copy "+CopyPath(j.path)+" does not end with entries")
		}
	}
}

// sameEntry compares the copy's last entry with the database.
func (j *Journal) sameEntry(line []byte) (next uint64, err error) {
	e, err := scan(line)
	if err != nil {
		return 0, j.damaged(NoIndex, "the last line of its copy "+CopyPath(j.path)+" is no entry: "+err.Error())
	}
	size, _ := j.Head()
	if e.index >= size {
		return 0, j.damaged(int64(size), fmt.Sprintf(
			"the copy %s goes on to entry %d, and the database ends with entry %d: the database is older than it was", CopyPath(j.path), e.index, size-1))
	}
	lines, err := j.lines(e.index, e.index+1)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(lines[0], line) {
		return 0, j.damaged(int64(e.index), "the copy "+CopyPath(j.path)+" has another one")
	}
	return e.index + 1, nil
}

// extend appends the entries from next on.
func (j *Journal) extend(ctx context.Context, m *mirror, next uint64) error {
	size, _ := j.Head()
	var buf []byte
	for next < size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("journal %s: the copy: %w", j.path, err)
		}
		to := min(size, next+entriesPerView)
		lines, err := j.lines(next, to)
		if err != nil {
			return err
		}
		buf = buf[:0]
		for _, line := range lines {
			buf = append(append(buf, line...), '\n')
		}
		if err := m.write(buf); err != nil {
			return fmt.Errorf("journal %s: %w", j.path, err)
		}
		next = to
	}
	return nil
}

// readLines calls fn with every whole line, without its newline, and gives the
// number of bytes behind the last newline.
func readLines(r io.Reader, fn func(line []byte) error) (torn int64, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) { // longer than any line of ours, by far
			return 0, fmt.Errorf("line %d is too long", n)
		}
		if errors.Is(err, io.EOF) {
			return int64(len(line)), nil
		}
		if err == nil {
			err = fn(line[:len(line)-1])
		}
		if err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// replay checks entries as they come: encoding, order and chain.
type replay struct {
	path     string
	first    Entry
	info     Info
	verifier note.Verifier
	tree     frontier
	head     Hash
}

// entry checks the next entry and gives the hashes to store.
func (p *replay) entry(dst []Hash, line []byte) (scanned, []Hash, error) {
	fail := func(format string, args ...any) (scanned, []Hash, error) {
		return scanned{}, nil, &DamagedError{Path: p.path, Index: int64(p.tree.n), Reason: fmt.Sprintf(format, args...)}
	}
	s, err := scan(line)
	if err != nil {
		return fail("%v", err)
	}
	if s.index != p.tree.n {
		return fail("it says that it is entry %d", s.index)
	}
	if s.prev != p.head {
		return fail("it does not follow the entry before it: one of the two was changed")
	}
	if s.index == 0 {
		if p.first, err = ParseEntry(line); err != nil {
			return fail("%v", err)
		}
		if p.info, p.verifier, err = readFirst(p.path, p.first); err != nil {
			return scanned{}, nil, err
		}
	} else if string(s.station) != p.first.Station {
		return fail("it names another station than entry 0")
	}
	p.head = HashLine(line)
	return s, p.tree.add(dst, p.head), nil
}

// checkOwn checks that a checkpoint is signed and about this journal.
func checkOwn(c Checkpoint, info Info, v note.Verifier) error {
	if c.Journal != info.ID || c.Station != info.Station || c.Generation != info.Generation() {
		return fmt.Errorf("the checkpoint of %d entries is of another journal", c.Size)
	}
	return c.verify(v)
}

// Rebuilt is what Rebuild and Backup did.
type Rebuilt struct {
	Entries     uint64
	Checkpoints uint64
	Signed      uint64 // entries that the last checkpoint covers
	Torn        int64  // bytes of a last line that was never finished; left out
	ID          string
}

// rebuildBatch is how many entries one transaction of a rebuild has.
const rebuildBatch = 20000

// Rebuild makes the database at path again from the copy beside it, which stays
// as it is. It refuses an existing file. Every line is checked as Verify would.
func Rebuild(ctx context.Context, path string) (Rebuilt, error) {
	f, err := os.Open(CopyPath(path))
	if err != nil {
		return Rebuilt{}, fmt.Errorf("journal %s: its copy: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	return build(ctx, path, CopyPath(path), f, io.Discard)
}

// Backup writes what the journal holds now into a new journal at dest, with its
// copy and public key. It reads the copy and takes no lock, so another process
// may have the journal open and append meanwhile. Every line is checked. The
// signing key is not copied: nobody can continue a backup.
func Backup(ctx context.Context, path, dest string) (r Rebuilt, err error) {
	f, err := os.Open(CopyPath(path))
	if err != nil {
		return Rebuilt{}, fmt.Errorf("journal %s: its copy: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	for _, name := range []string{dest, CopyPath(dest), PublicKeyPath(dest)} {
		if _, err := os.Lstat(name); err == nil {
			return Rebuilt{}, fmt.Errorf("%w at %s: choose another path; a backup is never overwritten", ErrExists, name)
		}
	}
	out, err := os.OpenFile(CopyPath(dest), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("journal: backup: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(CopyPath(dest)))
		}
	}()
	lines := bufio.NewWriterSize(out, 1<<20)
	r, err = build(ctx, dest, CopyPath(path), f, lines)
	err = errors.Join(err, lines.Flush(), out.Sync(), out.Close())
	if err != nil {
		return r, err
	}
	if b, err := os.ReadFile(PublicKeyPath(path)); err == nil {
		if err := createFile(PublicKeyPath(dest), 0o644, b); err != nil {
			return r, err
		}
	}
	return r, boltfile.SyncDir(filepath.Dir(dest))
}

// build makes a database of checked lines and writes the lines on.
func build(ctx context.Context, path, source string, in io.Reader, out io.Writer) (Rebuilt, error) {
	p := &replay{path: source}
	var result Rebuilt
	w := &builder{replay: p}
	err := boltfile.CreateBulk(path, func(update func(func(*bolt.Tx) error) error) error {
		torn, err := readLines(in, func(line []byte) error {
			if p.tree.n%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := w.line(line); err != nil {
				return err
			}
			if _, err := out.Write(append(line, '\n')); err != nil { //nolint:gocritic // the newline that was there
				return err
			}
			if len(w.lines) >= rebuildBatch {
				return update(w.flush)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		result.Torn = torn
		if p.tree.n == 0 {
			return &DamagedError{Path: source, Index: NoIndex, Reason: "it has no entries"}
		}
		if err := update(w.flush); err != nil {
			return err
		}
		if w.last.Size == 0 {
			return &DamagedError{Path: source, Index: 0, Reason: noCheckpoint}
		}
		return nil
	})
	var damaged *DamagedError
	if errors.As(err, &damaged) && damaged.Path == source {
		return Rebuilt{}, fmt.Errorf("journal: the copy is not whole, nothing was made: %w", err)
	} else if err != nil {
		return Rebuilt{}, explain(path, err)
	}
	result.Entries, result.Checkpoints, result.Signed, result.ID = p.tree.n, w.count, w.last.Size, p.info.ID
	return result, nil
}

// noCheckpoint: Init makes one, so there always is one.
const noCheckpoint = "no checkpoint covers it, and init makes one: somebody took them away"

// builder gathers what one transaction writes.
type builder struct {
	*replay
	from   uint64 // index of lines[0]
	at     uint64 // number of hashes[0]
	lines  [][]byte
	units  [][]byte // keys
	hashes []Hash
	signed []Checkpoint

	last  Checkpoint
	count uint64
}

func (w *builder) line(line []byte) error {
	c, ok, err := parseCheckpointLine(line)
	switch {
	case err != nil:
		return err
	case ok && (c.Size > w.tree.n || c.Size < w.last.Size):
		return fmt.Errorf("a checkpoint of %d entries does not belong here", c.Size)
	case ok:
		if err := checkOwn(c, w.info, w.verifier); err != nil {
			return err
		}
		w.signed = append(w.signed, c)
		w.last = c
		w.count++
		return nil
	}
	s, hashes, err := w.entry(w.hashes, line)
	if err != nil {
		return err
	}
	w.hashes = hashes
	w.lines = append(w.lines, bytes.Clone(line))
	if s.unit != (chip.MAC{}) {
		w.units = append(w.units, unitKey(s.unit, s.index))
	}
	return nil
}

func (w *builder) flush(tx *bolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	entries, units, tree, signed := tx.Bucket(bucketEntries), tx.Bucket(bucketUnits), tx.Bucket(bucketTree), tx.Bucket(bucketCheckpoints)
	entries.FillPercent, signed.FillPercent = fillPercent, fillPercent
	for i, line := range w.lines {
		if err := entries.Put(indexKey(w.from+uint64(i)), line); err != nil {
			return err
		}
	}
	for _, key := range w.units {
		if err := units.Put(key, []byte{1}); err != nil {
			return err
		}
	}
	if err := writeHashes(tree, w.at, w.hashes); err != nil {
		return err
	}
	r := treeReader{&Journal{path: w.path}, tree}
	for _, c := range w.signed {
		root, err := r.rootAt(c.Size)
		if err != nil {
			return err
		}
		if root != c.Root {
			return &DamagedError{Path: w.path, Index: NoIndex, Reason: fmt.Sprintf("its first %d entries are not those that were signed", c.Size)}
		}
		if err := signed.Put(indexKey(c.Size), c.Note); err != nil {
			return err
		}
	}
	w.from, w.at = w.tree.n, storedCount(w.tree.n)
	w.lines, w.units, w.hashes, w.signed = w.lines[:0], w.units[:0], w.hashes[:0], w.signed[:0]
	return tx.Bucket(bucketMeta).Put(keyHead, headValue(w.tree.n, w.head))
}
