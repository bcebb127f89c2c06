// Package journal owns the station's record of what was done to every unit: an
// append-only, hash-chained sequence of entries in a bbolt file. docs/journal.md
// has the format, so that another program can check it.
//
// It promises:
//
//   - Append returns when the entry is durable, or with an error. An entry that
//     was acknowledged survives a kill and a power cut.
//   - Entries that are appended at the same time share one commit.
//   - After a write that failed nothing more is written. What happened to the
//     entries of that write is unknown until the journal is opened again.
//   - Open and Verify read every entry and check encoding, order and hash chain.
//     A changed, missing, added or moved entry before the head is found, with its
//     index. (A chain alone does not show that the end was cut off or rewritten
//     by somebody who may write the file; signed checkpoints will.)
//   - Nothing is created, mended or cut silently, except the index by unit,
//     which is a projection of the entries; Info says when it was rebuilt.
//
// An entry's hash is its RFC 6962 leaf hash, so that a Merkle tree over the
// entries is an addition.
package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/boltfile"
)

// Format is the version of the format, as entry 0 names it.
const Format = 1

// StepInit is the step of entry 0.
const StepInit = "journal-init"

// The errors of this package, for errors.Is.
var (
	ErrMissing = errors.New("journal: there is no journal")
	ErrExists  = errors.New("journal: there is a file already")
	ErrLocked  = errors.New("journal: in use by another process")
	ErrMode    = errors.New("journal: other users may read or write the file")
	ErrDamaged = errors.New("journal: damaged")
	ErrFailed  = errors.New("journal: a write failed, nothing more is written")
	ErrClosed  = errors.New("journal: closed")
	ErrInvalid = errInvalid
)

// NoIndex is DamagedError.Index when the damage is not in one entry.
const NoIndex = -1

// DamagedError says what is wrong with a journal and where.
type DamagedError struct {
	Path   string
	Index  int64 // of the first entry that does not verify, or NoIndex
	Reason string
}

// Error names file, entry, reason and the next step.
func (e *DamagedError) Error() string {
	where := ""
	if e.Index != NoIndex {
		where = fmt.Sprintf("entry %d: ", e.Index)
	}
	return fmt.Sprintf("journal %s is damaged: %s%s: keep the file as it is, copy it away, and restore a backup; do not init a new one in its place",
		e.Path, where, e.Reason)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// Buckets and keys of the file (docs/journal.md).
var (
	bucketEntries = []byte("entries") // index (u64, big endian) → canonical entry
	bucketUnits   = []byte("units")   // MAC ‖ index → 1; projection
	bucketMeta    = []byte("meta")
	keyHead       = []byte("head") // size (u64, big endian) ‖ hash of the last entry
)

// fillPercent packs pages tightly: keys only ever grow.
const fillPercent = 0.95

// maxBatch bounds the entries of one commit.
const maxBatch = 1024

// Options are what Init needs to know.
type Options struct {
	Station string
	Now     func() time.Time // time.Now if nil
}

// Init makes a new journal whose entry 0 names its id, the station and the
// format. It refuses an existing file.
func Init(path string, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	payload, err := MarshalPayload(initPayload{Format: Format, Journal: hex.EncodeToString(id)})
	if err != nil {
		return err
	}
	e := Entry{Time: o.Now(), Station: o.Station, Step: StepInit, Kind: KindStation, Payload: payload}
	line, err := e.Canonical()
	if err != nil {
		return err
	}
	err = boltfile.Create(path, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketEntries, bucketUnits, bucketMeta} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.Bucket(bucketEntries).Put(indexKey(0), line),
			tx.Bucket(bucketMeta).Put(keyHead, headValue(1, HashLine(line))))
	})
	return explain(path, err)
}

type initPayload struct {
	Format  int    `json:"format"`
	Journal string `json:"journal"`
}

// Info describes an open journal.
type Info struct {
	Path         string
	ID           string
	Station      string
	Format       int
	Created      time.Time
	IndexRebuilt bool // the index by unit did not agree with the entries and was made again
	// TornCommit reports that the database's newest meta page is not valid, so
	// the journal stands where it stood before. A power cut in a commit can look
	// so. If it did not happen then, the last commit is lost: compare the head.
	TornCommit bool
}

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	path string
	db   *boltfile.DB
	info Info
	now  func() time.Time

	mu       sync.Mutex
	work     sync.Cond // queue or closed changed
	queue    []*request
	inCommit int // entries that the writer has taken
	closed   bool
	failed   error
	size     uint64
	head     Hash

	stopped chan struct{} // the writer has ended
	closing sync.Once
	closeE  error
}

// request is an entry on its way to the writer.
type request struct {
	entry Entry
	err   error
	done  chan struct{} // closed when entry and err are final
}

// Progress is told how many of how many entries have been checked.
type Progress func(done, total uint64)

// Option changes how a journal is opened.
type Option func(*opening)

type opening struct {
	ctx      context.Context
	progress Progress
	now      func() time.Time
}

// WithProgress reports the check of a long journal.
func WithProgress(p Progress) Option { return func(o *opening) { o.progress = p } }

// WithContext lets the check be stopped.
func WithContext(ctx context.Context) Option { return func(o *opening) { o.ctx = ctx } }

// WithClock gives the times of entries that come without one.
func WithClock(now func() time.Time) Option { return func(o *opening) { o.now = now } }

// Open opens an existing journal and verifies all of it.
func Open(path string, options ...Option) (*Journal, error) {
	o := opening{ctx: context.Background(), now: time.Now}
	for _, set := range options {
		set(&o)
	}
	db, err := boltfile.Open(path)
	if err != nil {
		return nil, explain(path, err)
	}
	j := &Journal{path: path, db: db, now: o.now, stopped: make(chan struct{})}
	j.work.L = &j.mu
	if err := j.load(o); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go j.write()
	return j, nil
}

// load verifies the entries, mends the index and fills in j.
func (j *Journal) load(o opening) error {
	err := j.db.View(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketEntries, bucketUnits, bucketMeta} {
			if tx.Bucket(name) == nil {
				return j.damaged(NoIndex, fmt.Sprintf("it is no journal: bucket %s is missing", name))
			}
		}
		head := tx.Bucket(bucketMeta).Get(keyHead)
		if len(head) != 8+len(j.head) {
			return j.damaged(NoIndex, "it has no head")
		}
		j.size = binary.BigEndian.Uint64(head)
		copy(j.head[:], head[8:])
		return nil
	})
	if err != nil {
		return j.explain(err)
	}
	v := &verifier{j: j, size: j.size, head: j.head}
	if err := v.run(o.ctx, o.progress); err != nil {
		return err
	}
	if err := j.describe(v.first); err != nil {
		return err
	}
	if v.indexWrong {
		return j.Reindex(o.ctx)
	}
	return nil
}

// describe reads entry 0.
func (j *Journal) describe(first Entry) error {
	var p initPayload
	if err := json.Unmarshal(first.Payload, &p); err != nil || first.Step != StepInit || first.Kind != KindStation || p.Journal == "" {
		return j.damaged(0, "it does not begin a journal")
	}
	if p.Format != Format {
		return fmt.Errorf("journal %s has format %d, and this build knows %d: use a newer provisiond", j.path, p.Format, Format)
	}
	where := j.path
	if abs, err := filepath.Abs(j.path); err == nil {
		where = abs
	}
	j.info = Info{
		Path: where, ID: p.Journal, Station: first.Station, Format: p.Format,
		Created: first.Time, TornCommit: j.db.MetaFallback,
	}
	return nil
}

// Info describes the journal.
func (j *Journal) Info() Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

// Head gives the number of entries and the hash of the last one.
func (j *Journal) Head() (size uint64, hash Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size, j.head
}

// Append adds an entry and returns it as it stands in the journal, when it is
// durable. Index, Prev and Station are filled in; so are Time, if it is zero,
// and the canonical form of Payload.
//
// An ErrInvalid, and ctx's error, mean that nothing was written. Once the
// commit of an entry has begun, Append waits for its end even when ctx is done.
// ErrFailed means that it is unknown whether this entry was written, and that
// the journal takes no more.
func (j *Journal) Append(ctx context.Context, e Entry) (Entry, error) {
	e, err := j.prepare(e)
	if err != nil {
		return Entry{}, err
	}
	r := &request{entry: e, done: make(chan struct{})}
	j.mu.Lock()
	if err := j.refusal(ctx); err != nil {
		j.mu.Unlock()
		return Entry{}, err
	}
	j.queue = append(j.queue, r)
	j.work.Signal()
	j.mu.Unlock()

	select {
	case <-r.done:
	case <-ctx.Done():
		if j.withdraw(r) {
			return Entry{}, fmt.Errorf("journal %s: the entry was not written: %w", j.path, ctx.Err())
		}
		<-r.done
	}
	if r.err != nil {
		return Entry{}, r.err
	}
	return r.entry, nil
}

// prepare checks all that can be checked before the entry's place is known.
func (j *Journal) prepare(e Entry) (Entry, error) {
	if e.Index != 0 || e.Prev != (Hash{}) {
		return e, fieldError("index", "and prev are filled in by the journal: leave them zero")
	}
	if e.Station == "" {
		e.Station = j.info.Station
	}
	if e.Station != j.info.Station {
		return e, fieldError("station", fmt.Sprintf("is not this journal's, %q", j.info.Station))
	}
	var err error
	if e.Payload, err = canonicalPayload(e.Payload); err != nil {
		return e, err
	}
	e.Time = e.Time.UTC().Round(0)
	return e, e.validate()
}

// refusal is called with mu held.
func (j *Journal) refusal(ctx context.Context) error {
	switch {
	case j.failed != nil:
		return fmt.Errorf("%w: %s: %w: mend the cause (disk full? read-only?), then start again", ErrFailed, j.path, j.failed)
	case j.closed:
		return fmt.Errorf("%w: %s", ErrClosed, j.path)
	case ctx.Err() != nil:
		return fmt.Errorf("journal %s: the entry was not written: %w", j.path, ctx.Err())
	}
	return nil
}

// withdraw takes a request back that the writer has not taken yet.
func (j *Journal) withdraw(r *request) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.queue, r)
	if i < 0 {
		return false
	}
	j.queue = slices.Delete(j.queue, i, i+1)
	return true
}

// write is the writer: it commits whatever has gathered while the last commit
// ran, until the journal is closed and the queue is empty.
func (j *Journal) write() {
	defer close(j.stopped)
	for {
		j.mu.Lock()
		for len(j.queue) == 0 && !j.closed {
			j.work.Wait()
		}
		n := min(len(j.queue), maxBatch)
		batch := slices.Clone(j.queue[:n])
		j.queue = slices.Delete(j.queue, 0, n)
		j.inCommit = n
		size, head, failed := j.size, j.head, j.failed
		j.mu.Unlock()
		if n == 0 {
			return
		}
		if failed == nil {
			size, head, failed = j.commit(batch, size, head)
		}
		j.mu.Lock()
		j.size, j.head, j.failed, j.inCommit = size, head, failed, 0
		for _, r := range batch {
			if failed != nil {
				r.err = fmt.Errorf("%w: %s: it is not known whether this entry was written: %w", ErrFailed, j.path, failed)
			}
			close(r.done)
		}
		j.mu.Unlock()
	}
}

// commit writes a batch in one transaction and gives the new head.
func (j *Journal) commit(batch []*request, size uint64, head Hash) (uint64, Hash, error) {
	newSize, newHead := size, head
	err := j.db.Update(func(tx *bolt.Tx) error {
		entries, units := tx.Bucket(bucketEntries), tx.Bucket(bucketUnits)
		entries.FillPercent = fillPercent
		for _, r := range batch {
			e := &r.entry
			if e.Time.IsZero() {
				e.Time = j.now().UTC().Round(0)
			}
			e.Index, e.Prev = newSize, newHead
			line := e.appendTo(make([]byte, 0, 512+len(e.Payload)))
			if err := entries.Put(indexKey(e.Index), line); err != nil {
				return err
			}
			if e.Unit != (chip.MAC{}) {
				if err := units.Put(unitKey(e.Unit, e.Index), []byte{1}); err != nil {
					return err
				}
			}
			newSize, newHead = newSize+1, HashLine(line)
		}
		return tx.Bucket(bucketMeta).Put(keyHead, headValue(newSize, newHead))
	})
	if err != nil {
		return size, head, err
	}
	return newSize, newHead, nil
}

// Close writes what Append has taken, stops, and closes the file. It may be
// called more than once.
func (j *Journal) Close() error {
	j.closing.Do(func() {
		j.mu.Lock()
		j.closed = true
		j.work.Signal()
		j.mu.Unlock()
		<-j.stopped
		j.closeE = j.explain(j.db.Close())
	})
	return j.closeE
}

// entriesPerView bounds how long a read transaction is open: a long one would
// hold up the writer when the file grows.
const entriesPerView = 512

// All is the end of a range that reaches to the head.
const All = math.MaxUint64

// Entries gives the entries from index from up to, and without, index to (All:
// up to the head as it is now). Each is checked against the one before it in
// the range. The loop's body may append.
func (j *Journal) Entries(from, to uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		size, _ := j.Head()
		to := min(to, size)
		var prev Hash
		for next := from; next < to; {
			lines, err := j.lines(next, min(to, next+entriesPerView))
			for _, line := range lines {
				var e Entry
				if e, err = j.check(next, line); err == nil && next > from && e.Prev != prev {
					err = j.damaged(int64(next), "it does not follow the entry before it")
				}
				if err != nil {
					break
				}
				if !yield(e, nil) {
					return
				}
				prev = HashLine(line)
				next++
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
		}
	}
}

// lines reads the stored bytes of entries from..to-1.
func (j *Journal) lines(from, to uint64) (lines [][]byte, err error) {
	err = j.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketEntries)
		for i := from; i < to; i++ {
			line := b.Get(indexKey(i))
			if line == nil {
				return j.damaged(int64(i), "it is missing")
			}
			lines = append(lines, bytes.Clone(line))
		}
		return nil
	})
	return lines, j.explain(err)
}

// check parses the line of entry i.
func (j *Journal) check(i uint64, line []byte) (Entry, error) {
	e, err := ParseEntry(line)
	if err != nil {
		return e, j.damaged(int64(i), err.Error())
	}
	if e.Index != i {
		return e, j.damaged(int64(i), fmt.Sprintf("it says that it is entry %d", e.Index))
	}
	return e, nil
}

// Unit gives all entries of a unit in order.
func (j *Journal) Unit(mac chip.MAC) ([]Entry, error) {
	var entries []Entry
	err := j.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketEntries)
		c := tx.Bucket(bucketUnits).Cursor()
		for k, _ := c.Seek(mac[:]); k != nil && bytes.HasPrefix(k, mac[:]); k, _ = c.Next() {
			i := binary.BigEndian.Uint64(k[len(mac):])
			e, err := j.check(i, b.Get(indexKey(i)))
			if err != nil {
				return err
			}
			if e.Unit != mac {
				return j.damaged(int64(i), "the index by unit names it for another unit")
			}
			entries = append(entries, e)
		}
		return nil
	})
	if err != nil {
		return nil, j.explain(err)
	}
	return entries, nil
}

// Reindex makes the index by unit again from the entries.
func (j *Journal) Reindex(ctx context.Context) error {
	err := j.db.Update(func(tx *bolt.Tx) error {
		if err := tx.DeleteBucket(bucketUnits); err != nil {
			return err
		}
		units, err := tx.CreateBucket(bucketUnits)
		if err != nil {
			return err
		}
		c := tx.Bucket(bucketEntries).Cursor()
		var i uint64
		for k, line := c.First(); k != nil; k, line = c.Next() {
			if i%entriesPerView == 0 && ctx.Err() != nil {
				return fmt.Errorf("journal %s: index: %w", j.path, ctx.Err())
			}
			e, err := j.check(i, line)
			if err != nil {
				return err
			}
			if e.Unit != (chip.MAC{}) {
				if err := units.Put(unitKey(e.Unit, i), []byte{1}); err != nil {
					return err
				}
			}
			i++
		}
		return nil
	})
	if err == nil {
		j.mu.Lock()
		j.info.IndexRebuilt = true
		j.mu.Unlock()
	}
	return j.explain(err)
}

func (j *Journal) damaged(index int64, reason string) error {
	return &DamagedError{Path: j.path, Index: index, Reason: reason}
}

func (j *Journal) explain(err error) error { return explain(j.path, err) }

// explain adds what to do to boltfile's errors.
func explain(path string, err error) error {
	var damaged *boltfile.DamagedError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, boltfile.ErrMissing):
		return fmt.Errorf("%w at %s: check the path, or begin one with: provisiond journal init --journal %s", ErrMissing, path, path)
	case errors.Is(err, boltfile.ErrExists):
		return fmt.Errorf("%w at %s: open it, or choose another path; a journal is never overwritten", ErrExists, path)
	case errors.Is(err, boltfile.ErrLocked):
		return fmt.Errorf("%w: %s: stop the other provisiond that has it open", ErrLocked, path)
	case errors.Is(err, boltfile.ErrMode):
		return fmt.Errorf("%w: %s: look who changed it, then: chmod 600 %s", ErrMode, path, path)
	case errors.Is(err, boltfile.ErrClosed):
		return fmt.Errorf("%w: %s", ErrClosed, path)
	case errors.As(err, &damaged):
		return &DamagedError{Path: path, Index: NoIndex, Reason: damaged.Reason}
	case errors.Is(err, ErrDamaged):
		return err
	}
	return fmt.Errorf("journal %s: %w", path, err)
}

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), i) }

func unitKey(mac chip.MAC, i uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 14), mac[:]...), i)
}

func headValue(size uint64, h Hash) []byte { return append(indexKey(size), h[:]...) }
