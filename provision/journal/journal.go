// Package journal owns the station's record of what was done to every unit: an
// append-only, hash-chained sequence of entries in a bbolt file, with a Merkle
// tree over them whose root is signed. docs/journal.md has the format, so that
// another program can check it.
//
// It promises:
//
//   - Append returns when the entry is durable, or with an error. An entry that
//     was acknowledged survives a kill and a power cut.
//   - Entries that are appended at the same time share one commit.
//   - After a write that failed, to the database or to its copy, nothing more is
//     written. What happened to the entries of that write is unknown until the
//     journal is opened again.
//   - While entries are added, and at Close, checkpoints are signed: the newest is
//     at most ten seconds old. An Anchor gets them too.
//   - A journal whose anchor was away at Open is compared with it when it answers,
//     and before it is given a checkpoint.
//   - Open checks the database's structure (of a large file the part that the next
//     commit builds on), the last checkpoint, every entry from there to the head
//     and at least the last ten thousand, the end of the copy, and the anchor. It
//     takes the same time for a journal of any length. Verify checks everything.
//   - A changed, missing, added or moved entry is found by Verify, with its index.
//     What somebody who may write all files, and has no key, can do unnoticed is
//     to change or cut off what is behind the last checkpoint, and to cut off what
//     no checkpoint elsewhere vouches for.
//   - Nothing is created, mended or cut silently. Only the index by unit and the
//     copy are brought up to the entries, and Info says so.
//
// An entry's hash is its RFC 6962 leaf hash.
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
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

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
	// ErrKey: a key is missing, unreadable, or not the one in entry 0.
	ErrKey       = errors.New("journal: wrong key")
	ErrSignature = errors.New("journal: bad signature")
	ErrAnchor    = errors.New("journal: not the journal that is anchored")
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
	return fmt.Sprintf("journal %s is damaged: %s%s: keep the file as it is. `provisiond journal verify %s` tells how far it is good. "+
		"Then move it away and make it again from its copy with `provisiond journal rebuild %s`, or restore a backup; do not init a new one in its place",
		e.Path, where, e.Reason, e.Path, e.Path)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// Buckets and keys of the file (docs/journal.md).
var (
	bucketEntries = []byte("entries") // index (u64, big endian) → canonical entry
	bucketUnits   = []byte("units")   // MAC ‖ index → 1; projection
	bucketTree    = []byte("tree")    // block number (u64, big endian) → up to 32 hashes; projection
	bucketMeta    = []byte("meta")
	keyHead       = []byte("head") // size (u64, big endian) ‖ hash of the last entry

	bucketCheckpoints = []byte("checkpoints") // size (u64, big endian) → signed note

	buckets = [][]byte{bucketEntries, bucketUnits, bucketTree, bucketCheckpoints, bucketMeta}
)

// fillPercent packs pages tightly: keys only ever grow.
const fillPercent = 0.95

// maxBatch bounds the entries of one commit.
const maxBatch = 1024

// Options are what Init needs to know.
type Options struct {
	Station string
	Now     func() time.Time // time.Now if nil
	// Signer signs the checkpoints. If nil, Init makes a key and keeps its private
	// half in KeyFile, mode 0600.
	Signer  Signer
	KeyFile string // KeyPath of the journal if empty
	// Succeeds is the journal that this one continues, on a new disk.
	Succeeds *Succession
	// Anchor gets the first checkpoint; may be nil.
	Anchor Anchor
}

// Init makes a new journal whose entry 0 names its id, the station, the format
// and the public key. It signs a first checkpoint, writes the copy beside the
// journal, and the public key into a file for configurations. It refuses to
// replace any of these files.
func Init(path string, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails
	id := hex.EncodeToString(raw)
	first := Entry{Time: o.Now().UTC().Round(0), Station: o.Station, Step: StepInit, Kind: KindStation}
	if err := first.validate(); err != nil { // before anything is made
		return err
	}
	for _, name := range []string{path, CopyPath(path), PublicKeyPath(path)} {
		if _, err := os.Lstat(name); err == nil {
			return explain(name, boltfile.ErrExists)
		}
	}
	var made []string
	signer := o.Signer
	if signer == nil {
		if o.KeyFile == "" {
			o.KeyFile = KeyPath(path)
		}
		var err error
		if signer, err = newKey(o.KeyFile, origin(id)); err != nil {
			return explain(path, err)
		}
		made = append(made, o.KeyFile)
	}
	err := begin(path, id, first, signer, o, &made)
	if err != nil {
		for _, name := range made {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return explain(path, err)
}

// begin makes the files of a new journal, the database last.
func begin(path, id string, first Entry, signer Signer, o Options, made *[]string) error {
	body := initPayload{Format: Format, Journal: id, PublicKey: signer.PublicKey()}
	if s := o.Succeeds; s != nil {
		if s.Station != o.Station {
			return fmt.Errorf("%w: journal %s is of station %s, and station %s cannot succeed it", ErrInvalid, s.Journal, s.Station, o.Station)
		}
		body.Succeeds = &successionPayload{string(s.Note), s.Generation + 1, s.Journal, s.PublicKey, s.Size}
	}
	var err error
	if first.Payload, err = MarshalPayload(body); err != nil {
		return err
	}
	line, err := first.Canonical()
	if err != nil {
		return err
	}
	head := HashLine(line)
	ctx, cancel := context.WithTimeout(context.Background(), signPatience)
	defer cancel()
	c := Checkpoint{Journal: id, Station: o.Station, Size: 1, Root: head, Time: first.Time}
	if body.Succeeds != nil {
		c.Generation = body.Succeeds.Generation
	}
	if c, err = sign(ctx, signer, c); err != nil {
		return err
	}
	files := []struct {
		path    string
		mode    os.FileMode
		content []byte
	}{
		{PublicKeyPath(path), 0o644, []byte(signer.PublicKey() + "\n")},
		{CopyPath(path), 0o600, slices.Concat(line, []byte("\n"), checkpointLine(c), []byte("\n"))},
	}
	for _, f := range files {
		if err := createFile(f.path, f.mode, f.content); err != nil {
			return err
		}
		*made = append(*made, f.path)
	}
	err = boltfile.Create(path, func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.Bucket(bucketEntries).Put(indexKey(0), line),
			writeHashes(tx.Bucket(bucketTree), 0, []Hash{head}),
			tx.Bucket(bucketCheckpoints).Put(indexKey(1), c.Note),
			tx.Bucket(bucketMeta).Put(keyHead, headValue(1, head)))
	})
	if err != nil {
		return err
	}
	*made = nil // the journal is there
	if o.Anchor != nil {
		if err := o.Anchor.PutCheckpoint(ctx, c); err != nil {
			return fmt.Errorf("the journal was made, and its anchor did not take the first checkpoint: %w", err)
		}
	}
	return nil
}

type initPayload struct {
	Format    int                `json:"format"`
	Journal   string             `json:"journal"`
	PublicKey string             `json:"public_key"`
	Succeeds  *successionPayload `json:"succeeds,omitempty"`
}

type successionPayload struct {
	Checkpoint string `json:"checkpoint"`
	Generation uint64 `json:"generation"`
	Journal    string `json:"journal"`
	PublicKey  string `json:"public_key,omitempty"`
	Size       uint64 `json:"size"`
}

// Info describes an open journal.
type Info struct {
	Path         string
	ID           string
	Station      string
	Format       int
	Created      time.Time
	PublicKey    string      // that entry 0 names
	Succeeds     *Succession // the journal before this one, if there is one
	CanSign      bool        // the signing key is at hand; without it nothing can be appended
	IndexRebuilt bool        // the index by unit did not agree with the entries and was made again
	CopyMended   bool        // the copy lacked entries, or was torn, and was brought up to the database
	// TornCommit reports that the database's newest meta page is not valid, so
	// the journal stands where it stood before. A power cut in a commit can look
	// so. If it did not happen then, the last commit is lost: compare the head.
	TornCommit bool
}

// Generation is how many journals of the station went before.
func (i Info) Generation() uint64 {
	if i.Succeeds == nil {
		return 0
	}
	return i.Succeeds.Generation + 1
}

// tip is where the next entry goes.
type tip struct {
	size uint64
	head Hash
	tree frontier
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
	tip
	signed   Checkpoint // the newest
	anchored uint64     // size of the newest that the anchor has taken in this run
	signErr  error      // why the last try to sign or anchor did not work
	// notCompared is Anchored's: nothing is put to the anchor before it is nil.
	notCompared error

	signing  sync.Mutex // one checkpoint at a time
	copy     *mirror
	verifier note.Verifier
	signer   Signer // nil: read only
	anchor   Anchor // may be nil
	interval time.Duration

	stopped chan struct{} // the writer has ended
	grown   chan struct{} // tells the notary that there is something to sign; holds one
	ended   chan struct{} // the notary has ended
	closing sync.Once
	closeE  error
}

// request is an entry on its way to the writer.
type request struct {
	entry Entry
	line  []byte // once it is written
	err   error
	done  chan struct{} // closed when entry and err are final
}

// Progress is told how many of how many entries have been checked.
type Progress func(done, total uint64)

// Option changes how a journal is opened.
type Option func(*opening)

type opening struct {
	ctx      context.Context //nolint:containedctx // of one call of Open
	progress Progress
	now      func() time.Time
	signer   Signer
	keyFile  string
	anchor   Anchor
	later    bool
	public   string
	interval time.Duration
	prober   Prober
	look     bool // mend nothing, start nothing
	files    []boltfile.Option
}

// WithProgress reports the check of a long journal.
func WithProgress(p Progress) Option { return func(o *opening) { o.progress = p } }

// WithContext lets the check be stopped.
func WithContext(ctx context.Context) Option { return func(o *opening) { o.ctx = ctx } }

// WithClock gives the times of entries that come without one, and of checkpoints.
func WithClock(now func() time.Time) Option { return func(o *opening) { o.now = now } }

// WithSigner lets something else than the key file sign, for example Vault's
// transit engine.
func WithSigner(s Signer) Option { return func(o *opening) { o.signer = s } }

// WithKeyFile takes the signing key from another file than KeyPath, for example
// one below systemd's $CREDENTIALS_DIRECTORY. It must be there.
func WithKeyFile(path string) Option { return func(o *opening) { o.keyFile = path } }

// WithPublicKey demands that the journal is signed with the key of which this is
// the public half. Empty demands nothing.
func WithPublicKey(key string) Option { return func(o *opening) { o.public = key } }

// WithAnchor compares the journal with its anchor, and gives it every checkpoint.
func WithAnchor(a Anchor) Option { return func(o *opening) { o.anchor = a } }

// WithAnchorLater lets a journal be opened whose anchor is away (ErrAnchorAway).
// The anchor is asked again with every checkpoint and gets none before it was
// compared; a journal that turns out not to be the anchored one takes no more
// entries. Anchored tells how that stands.
func WithAnchorLater() Option { return func(o *opening) { o.later = true } }

// WithProber lets another process look at the file first.
func WithProber(p Prober) Option { return func(o *opening) { o.prober = p } }

// WithInterval is for tests: how soon after an entry a checkpoint is signed.
func WithInterval(d time.Duration) Option { return func(o *opening) { o.interval = d } }

// quickLimit is the size up to which every page of the file is checked at Open:
// that takes some tens of milliseconds.
const quickLimit = 64 << 20

// Open opens an existing journal. The package's comment says what it checks.
// Without its signing key a journal can be read and not appended to.
func Open(path string, options ...Option) (*Journal, error) {
	o := opening{ctx: context.Background(), now: time.Now, interval: signInterval}
	for _, set := range options {
		set(&o)
	}
	if err := o.probe(path); err != nil {
		return nil, err
	}
	j, err := open(path, o)
	if err != nil {
		return nil, err
	}
	go j.write()
	go j.notary()
	j.wakeNotary() // what a crash left unsigned
	return j, nil
}

// open is Open without goroutines.
func open(path string, o opening) (*Journal, error) {
	db, err := boltfile.Open(path, append(o.files, boltfile.Quick(quickLimit))...)
	if err != nil {
		return nil, explain(path, err)
	}
	j := &Journal{
		path: path, db: db, now: o.now, anchor: o.anchor, interval: o.interval,
		stopped: make(chan struct{}), grown: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	j.work.L = &j.mu
	if err := j.load(o); err != nil {
		return nil, errors.Join(err, j.closeFiles())
	}
	return j, nil
}

// recent is how many entries before the head Open checks at least. A whole
// journal up to this length is checked.
const recent = 10_000

// load checks the end of the journal, mends index and copy, and fills in j.
func (j *Journal) load(o opening) error {
	err := j.db.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return j.damaged(NoIndex, fmt.Sprintf("it is no journal: bucket %s is missing", name))
			}
		}
		return j.readTip(tx)
	})
	if err != nil {
		return j.explain(err)
	}
	lines, err := j.lines(0, 1)
	if err != nil {
		return err
	}
	first, err := j.check(0, lines[0])
	if err != nil {
		return err
	}
	err = j.db.View(func(tx *bolt.Tx) error { // before anything in it is believed
		if _, ok := compareHashes(tx.Bucket(bucketTree), 0, []Hash{HashLine(lines[0])}); !ok {
			return j.damaged(0, "its hash is not the one in the tree: one of the two was changed")
		}
		return nil
	})
	if err != nil {
		return j.explain(err)
	}
	if j.info, j.verifier, err = readFirst(j.path, first); err != nil {
		return err
	}
	if err := j.expectKey(o.public); err != nil {
		return err
	}
	j.info.TornCommit = j.db.MetaFallback
	if err := j.explain(j.db.View(j.readSigned)); err != nil {
		return err
	}
	from := uint64(0)
	if j.size > recent {
		from = min(j.size-recent, j.signed.Size)
	}
	v := newVerifier(j, from)
	if err := v.run(o.ctx, o.progress); err != nil {
		return err
	}
	j.tree = v.tree
	if err := j.explain(j.db.View(j.checkSigned)); err != nil {
		return err
	}
	if o.look {
		return nil
	}
	if v.indexWrong {
		if err := j.Reindex(o.ctx); err != nil {
			return err
		}
	}
	if err := j.openCopy(o.ctx); err != nil {
		return err
	}
	if err := j.takeKey(o); err != nil {
		return err
	}
	if o.anchor == nil {
		return nil
	}
	err = j.checkAnchor(o.ctx, o.anchor)
	if o.later && errors.Is(err, ErrAnchorAway) {
		j.notCompared = away(j.path, err)
		return nil
	}
	return err
}

func (j *Journal) readTip(tx *bolt.Tx) error {
	head := tx.Bucket(bucketMeta).Get(keyHead)
	if len(head) != 8+len(j.head) {
		return j.damaged(NoIndex, "it has no head")
	}
	j.size = binary.BigEndian.Uint64(head)
	copy(j.head[:], head[8:])
	if j.size == 0 || j.size > maxEntries {
		return j.damaged(NoIndex, "it has no entries")
	}
	return nil
}

// readSigned reads the newest checkpoint. Whether it is good is looked at when
// the entries up to the head are known to be.
func (j *Journal) readSigned(tx *bolt.Tx) error {
	k, signed := tx.Bucket(bucketCheckpoints).Cursor().Last()
	if k == nil {
		return j.damaged(0, noCheckpoint)
	}
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return j.damaged(NoIndex, "its last checkpoint is not good: "+err.Error())
	}
	j.signed = c
	return nil
}

// checkSigned checks the newest checkpoint against the tree. If it does not fit,
// the ones before it tell how far the entries are good.
func (j *Journal) checkSigned(tx *bolt.Tx) error {
	r := treeReader{j, tx.Bucket(bucketTree)}
	c := tx.Bucket(bucketCheckpoints).Cursor()
	first := uint64(0) // size of the checkpoint that does not fit, nearest to the beginning
	for k, signed := c.Last(); k != nil; k, signed = c.Prev() {
		cp, fits, err := j.checkCheckpoint(r, k, signed, j.size)
		switch {
		case err != nil:
			return err
		case fits && first == 0:
			return nil
		case fits:
			return j.replaced(cp.Size, first)
		}
		first = cp.Size
	}
	return j.replaced(0, first)
}

// checkCheckpoint checks what is stored as a checkpoint; fits says that the tree
// of its size has its root.
func (j *Journal) checkCheckpoint(r treeReader, key, signed []byte, size uint64) (c Checkpoint, fits bool, err error) {
	c, err = ParseCheckpoint(signed)
	if err == nil && !bytes.Equal(key, indexKey(c.Size)) {
		err = fmt.Errorf("the checkpoint of %d entries is filed under another size", c.Size)
	}
	if err == nil {
		err = checkOwn(c, j.info, j.verifier)
	}
	if err != nil {
		index := int64(NoIndex)
		if len(key) == 8 {
			index = int64(min(binary.BigEndian.Uint64(key), maxEntries)) - 1
		}
		return c, false, j.damaged(index, "its checkpoint is not good: "+err.Error())
	}
	if c.Size > size {
		return c, false, j.damaged(int64(size), fmt.Sprintf("it is missing: there is a checkpoint of %d entries", c.Size))
	}
	root, err := r.rootAt(c.Size)
	return c, root == c.Root, err
}

// replaced says that entries from good on are not those that were signed.
func (j *Journal) replaced(good, size uint64) error {
	return j.damaged(int64(good), fmt.Sprintf(
		"this entry, or one of those up to %d, is not the one that was signed in the checkpoint of %d entries: they were replaced without the key",
		size-1, size))
}

// takeKey finds what signs.
func (j *Journal) takeKey(o opening) error {
	j.signer = o.signer
	if j.signer == nil {
		name := o.keyFile
		if name == "" {
			name = KeyPath(j.path)
		}
		s, err := LoadKey(name)
		if errors.Is(err, fs.ErrNotExist) && o.keyFile == "" {
			return nil // Append will say it
		}
		if err != nil {
			return fmt.Errorf("journal %s: its signing key: %w", j.path, err)
		}
		j.signer = s
	}
	if j.signer.PublicKey() != j.info.PublicKey {
		j.signer = nil
		return fmt.Errorf("%w: journal %s is signed with %s: bring that key back", ErrKey, j.path, j.info.PublicKey)
	}
	j.info.CanSign = true
	return nil
}

// readFirst reads what entry 0 says.
func readFirst(path string, first Entry) (Info, note.Verifier, error) {
	damaged := func(reason string) (Info, note.Verifier, error) {
		return Info{}, nil, &DamagedError{Path: path, Index: 0, Reason: reason}
	}
	var p initPayload
	if err := json.Unmarshal(first.Payload, &p); err != nil || first.Step != StepInit || first.Kind != KindStation || p.Journal == "" {
		return damaged("it does not begin a journal")
	}
	if p.Format != Format {
		return Info{}, nil, fmt.Errorf("journal %s has format %d, and this build knows %d: use a newer provisiond", path, p.Format, Format)
	}
	v, err := verifierOf(p.PublicKey)
	if err != nil {
		return damaged("it names no public key")
	}
	where := path
	if abs, err := filepath.Abs(path); err == nil {
		where = abs
	}
	info := Info{Path: where, ID: p.Journal, Station: first.Station, Format: p.Format, Created: first.Time, PublicKey: p.PublicKey}
	if s := p.Succeeds; s != nil {
		c, err := ParseCheckpoint([]byte(s.Checkpoint))
		if err != nil || c.Journal != s.Journal || c.Size != s.Size || c.Station != first.Station || c.Generation+1 != s.Generation {
			return damaged("what it says of the journal before it is not one thing")
		}
		info.Succeeds = &Succession{Checkpoint: c, PublicKey: s.PublicKey}
	}
	return info, v, nil
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
	case j.signer == nil:
		return fmt.Errorf("%w: %s: there is no signing key %s, so nothing can be appended: bring the key back", ErrKey, j.path, KeyPath(j.path))
	case errors.Is(j.failed, ErrAnchor):
		return fmt.Errorf("%w: %w", ErrFailed, j.failed)
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
		at, failed := j.tip, j.failed
		j.mu.Unlock()
		if n == 0 {
			return
		}
		if failed == nil {
			at, failed = j.commit(batch, at)
		}
		if failed == nil {
			failed = j.mirror(batch)
		}
		j.mu.Lock()
		if j.failed == nil { // the notary may have failed meanwhile
			j.failed = failed
		}
		if failed == nil {
			j.tip = at
		}
		j.inCommit = 0
		for _, r := range batch {
			if failed != nil {
				r.err = fmt.Errorf("%w: %s: it is not known whether this entry was written: %w", ErrFailed, j.path, failed)
			}
			close(r.done)
		}
		j.mu.Unlock()
		j.wakeNotary()
	}
}

// mirror appends a batch to the copy.
func (j *Journal) mirror(batch []*request) error {
	n := 0
	for _, r := range batch {
		n += len(r.line) + 1
	}
	lines := make([]byte, 0, n)
	for _, r := range batch {
		lines = append(append(lines, r.line...), '\n')
	}
	return j.copy.write(lines)
}

// commit writes a batch in one transaction and gives the new tip.
func (j *Journal) commit(batch []*request, at tip) (tip, error) {
	next := at
	next.tree = at.tree.clone()
	err := j.db.Update(func(tx *bolt.Tx) error {
		entries, units := tx.Bucket(bucketEntries), tx.Bucket(bucketUnits)
		entries.FillPercent = fillPercent
		hashes := make([]Hash, 0, 2*len(batch)+64)
		for _, r := range batch {
			e := &r.entry
			if e.Time.IsZero() {
				e.Time = j.now().UTC().Round(0)
			}
			e.Index, e.Prev = next.size, next.head
			r.line = e.appendTo(make([]byte, 0, 512+len(e.Payload)))
			if err := entries.Put(indexKey(e.Index), r.line); err != nil {
				return err
			}
			if e.Unit != (chip.MAC{}) {
				if err := units.Put(unitKey(e.Unit, e.Index), []byte{1}); err != nil {
					return err
				}
			}
			next.size, next.head = next.size+1, HashLine(r.line)
			hashes = next.tree.add(hashes, next.head)
		}
		return errors.Join(
			writeHashes(tx.Bucket(bucketTree), storedCount(at.size), hashes),
			tx.Bucket(bucketMeta).Put(keyHead, headValue(next.size, next.head)))
	})
	if err != nil {
		return at, err
	}
	return next, nil
}

// Close writes what Append has taken, signs and anchors a last checkpoint, stops,
// and closes the files. It may be called more than once.
func (j *Journal) Close() error {
	j.closing.Do(func() {
		j.mu.Lock()
		j.closed = true
		j.work.Signal()
		j.mu.Unlock()
		<-j.stopped
		close(j.grown)
		<-j.ended
		j.mu.Lock()
		unsigned := j.signErr
		j.mu.Unlock()
		j.closeE = errors.Join(unsigned, j.closeFiles())
	})
	return j.closeE
}

func (j *Journal) closeFiles() error {
	var err error
	if j.copy != nil {
		err = j.copy.close()
	}
	return j.explain(errors.Join(err, j.db.Close()))
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
