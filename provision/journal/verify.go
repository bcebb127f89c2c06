package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"runtime"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Report is the outcome of a successful Verify.
type Report struct {
	Size        uint64 // entries checked
	Head        Hash   // hash of the last of them
	Root        Hash   // of the Merkle tree over them
	First       time.Time
	Last        time.Time
	ClockSteps  uint64     // entries whose time lies before that of the entry before
	IndexWrong  bool       // the index by unit does not agree: Reindex mends it
	Checkpoints uint64     // good ones
	Signed      Checkpoint // the newest of them
	Unsigned    uint64     // entries behind it, which nothing but the chain vouches for
	OpenIntents uint64     // intents without an observed entry: crashes, and what runs now
	Anchored    bool       // the journal agrees with its anchor
	Trusted     bool       // the public key is the one that the caller knew
}

// VerifyOption adds to what Verify checks.
type VerifyOption func(*verification)

type verification struct {
	publicKey string
	anchor    Anchor
	wholeFile bool
	noCopy    bool
}

// AgainstKey demands this public key. Without it the one in entry 0 is believed,
// which whoever replaced the whole journal chose.
func AgainstKey(publicKey string) VerifyOption {
	return func(v *verification) { v.publicKey = publicKey }
}

// AgainstAnchor demands that the journal agrees with its anchor.
func AgainstAnchor(a Anchor) VerifyOption { return func(v *verification) { v.anchor = a } }

// WholeFile checks every page of the database too. It holds up appending.
func WholeFile() VerifyOption { return func(v *verification) { v.wholeFile = true } }

// WithoutCopy leaves the copy out.
func WithoutCopy() VerifyOption { return func(v *verification) { v.noCopy = true } }

// Verify checks every entry up to the head as it is when Verify begins:
// encoding, index, hash chain, tree, head, index by unit, the order of every
// unit's entries, all checkpoints, and that the copy says the same. Appending
// goes on meanwhile. A fault is a *DamagedError, with the index of the first entry
// that is not good.
func (j *Journal) Verify(ctx context.Context, progress Progress, options ...VerifyOption) (Report, error) {
	var o verification
	for _, set := range options {
		set(&o)
	}
	if err := j.expectKey(o.publicKey); err != nil {
		return Report{}, err
	}
	if o.wholeFile {
		if err := j.explain(j.db.CheckAll()); err != nil {
			return Report{}, err
		}
	}
	v := newVerifier(j, 0)
	v.states = newStates()
	if err := v.run(ctx, progress); err != nil {
		return Report{}, err
	}
	r := Report{
		Size: v.size, Head: v.head, Root: v.tree.root(), First: v.firstTime, Last: v.last,
		ClockSteps: v.clockSteps, IndexWrong: v.indexWrong, OpenIntents: v.states.left(), Trusted: o.publicKey != "",
	}
	if err := v.checkpoints(ctx, &r); err != nil {
		return Report{}, err
	}
	if !o.noCopy {
		if err := v.checkCopy(ctx); err != nil {
			return Report{}, err
		}
	}
	if o.anchor != nil {
		if err := j.checkAnchor(ctx, o.anchor); err != nil {
			return Report{}, err
		}
		r.Anchored = true
	}
	return r, nil
}

// expectKey demands that entry 0 names a public key, unless key is empty.
func (j *Journal) expectKey(key string) error {
	if key == "" || key == j.info.PublicKey {
		return nil
	}
	return fmt.Errorf("%w: journal %s names the public key %s in entry 0, and not the one that was asked for, %s: it is another journal, or a forged one",
		ErrKey, j.path, j.info.PublicKey, key)
}

// chunkLevel: a worker checks 1<<chunkLevel entries at a time, which are a
// complete subtree. It bounds how long a read transaction is open.
const (
	chunkLevel = 12
	chunkSize  = 1 << chunkLevel
)

// verifier walks the entries from a place to the head.
type verifier struct {
	j       *Journal
	from    uint64 // a multiple of chunkSize
	size    uint64
	head    Hash
	station []byte
	rows    uint64  // digest of what the index should have, see rowDigest
	states  *states // nil: not followed

	tree       frontier
	prev       Hash
	firstTime  time.Time
	last       time.Time
	clockSteps uint64
	indexWrong bool
}

// newVerifier begins at from or a little before.
func newVerifier(j *Journal, from uint64) *verifier {
	size, head := j.Head()
	return &verifier{j: j, from: from / chunkSize * chunkSize, size: size, head: head, station: []byte(j.info.Station)}
}

// chunk is what a worker found.
type chunk struct {
	lo, n       uint64 // entries that are good in themselves: lo to lo+n-1
	err         error  // of entry lo+n
	prev        Hash   // of entry lo
	last        Hash   // hash of entry lo+n-1
	tree        frontier
	first, late time.Time
	clockSteps  uint64
	rows        uint64
	indexWrong  bool
	facts       []fact
}

func (v *verifier) run(ctx context.Context, progress Progress) error {
	if v.from > 0 {
		if err := v.j.explain(v.j.db.View(v.begin)); err != nil {
			return err
		}
	}
	rows := make(chan error, 1)
	var digest uint64
	if v.from == 0 {
		go func() {
			rows <- v.j.explain(v.j.db.View(func(tx *bolt.Tx) error { digest = v.indexDigest(ctx, tx); return nil }))
		}()
	} else {
		rows <- nil
	}
	chunks := (v.size - v.from + chunkSize - 1) / chunkSize
	err := ordered(ctx, chunks, func(k uint64) chunk { return v.chunk(v.from + k*chunkSize) }, func(c chunk) error {
		if err := v.take(c); err != nil {
			return err
		}
		if progress != nil {
			progress(c.lo+c.n, v.size)
		}
		return nil
	})
	errRows := <-rows
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return fmt.Errorf("journal %s: check stopped at entry %d of %d: %w", v.j.path, v.tree.n, v.size, err)
	case err != nil:
		return err
	case errRows != nil:
		return errRows
	case v.prev != v.head:
		return v.j.damaged(int64(v.size-1), "its hash is not the head's")
	}
	if v.from == 0 && digest != v.rows {
		v.indexWrong = true
	}
	return v.j.explain(v.j.db.View(v.end))
}

// begin reads tree and hash before the first entry that is checked.
func (v *verifier) begin(tx *bolt.Tx) (err error) {
	if v.tree, err = (treeReader{v.j, tx.Bucket(bucketTree)}).frontierAt(v.from); err != nil {
		return err
	}
	line := tx.Bucket(bucketEntries).Get(indexKey(v.from - 1))
	if line == nil {
		return v.j.damaged(int64(v.from-1), "it is missing")
	}
	v.prev = HashLine(line)
	return nil
}

// chunk checks the entries from lo on.
func (v *verifier) chunk(lo uint64) chunk {
	c := chunk{lo: lo}
	var hashes []Hash
	err := v.j.explain(v.j.db.View(func(tx *bolt.Tx) error {
		units := tx.Bucket(bucketUnits)
		cursor := tx.Bucket(bucketEntries).Cursor()
		hi := min(lo+chunkSize, v.size)
		hashes = make([]Hash, 0, 2*(hi-lo))
		if v.states != nil {
			c.facts = make([]fact, 0, hi-lo)
		}
		k, line := cursor.Seek(indexKey(lo))
		for i := lo; i < hi; i++ {
			if c.err = v.one(&c, i, k, line, units); c.err != nil {
				break
			}
			c.last = HashLine(line)
			hashes = c.tree.add(hashes, c.last)
			c.n++
			k, line = cursor.Next()
		}
		at := storedCount(lo)
		if bad, ok := compareHashes(tx.Bucket(bucketTree), at, hashes); !ok {
			c.err = v.j.damaged(int64(leafOf(bad)), "its hash is not the one in the tree: one of the two was changed")
			c.n = leafOf(bad) - lo
		}
		return nil
	}))
	if err != nil {
		c.err = err
	}
	return c
}

// one checks entry i by itself and against the one before it in the chunk.
func (v *verifier) one(c *chunk, i uint64, key, line []byte, units *bolt.Bucket) error {
	at := int64(i)
	if len(key) != 8 || binary.BigEndian.Uint64(key) != i {
		return v.j.damaged(at, "it is missing")
	}
	s, err := scan(line)
	switch {
	case err != nil:
		return v.j.damaged(at, err.Error())
	case s.index != i:
		return v.j.damaged(at, fmt.Sprintf("it says that it is entry %d", s.index))
	case i == c.lo:
		c.prev, c.first = s.prev, s.time
	case s.prev != c.last:
		return v.j.damaged(at, "it does not follow the entry before it: one of the two was changed")
	case s.time.Before(c.late):
		c.clockSteps++
	}
	c.late = s.time
	if !bytes.Equal(s.station, v.station) {
		return v.j.damaged(at, "it names another station than entry 0")
	}
	if s.unit != (chip.MAC{}) {
		if v.from == 0 {
			c.rows += rowDigest(unitKey(s.unit, i))
		} else if units.Get(unitKey(s.unit, i)) == nil {
			c.indexWrong = true
		}
	}
	if v.states != nil {
		if f, ok := factOf(s); ok {
			c.facts = append(c.facts, f)
		}
	}
	return nil
}

// take joins a chunk to those before it.
func (v *verifier) take(c chunk) error {
	if c.n == 0 && c.err != nil {
		return c.err
	}
	if c.prev != v.prev {
		return v.j.damaged(int64(c.lo), "it does not follow the entry before it: one of the two was changed")
	}
	if v.states != nil {
		for _, f := range c.facts {
			if f.index >= c.lo+c.n {
				break
			}
			if reason := v.states.take(f); reason != "" {
				return v.j.misplaced(f, reason)
			}
		}
	}
	if c.err != nil {
		return c.err
	}
	if c.lo == 0 {
		v.firstTime = c.first
	} else if c.first.Before(v.last) {
		v.clockSteps++
	}
	v.last, v.prev = c.late, c.last
	v.clockSteps += c.clockSteps
	v.rows += c.rows
	v.indexWrong = v.indexWrong || c.indexWrong
	if c.n < chunkSize { // the last one
		v.tree.roots = append(v.tree.roots, c.tree.roots...)
		v.tree.n += c.n
		return nil
	}
	at := storedCount(c.lo + c.n)
	larger := v.tree.join(nil, c.tree.roots[0], chunkLevel)
	if len(larger) == 0 {
		return nil
	}
	return v.j.explain(v.j.db.View(func(tx *bolt.Tx) error {
		if _, ok := compareHashes(tx.Bucket(bucketTree), at-uint64(len(larger)), larger); !ok {
			return v.j.damaged(int64(c.lo+c.n-1), "a hash of the tree above it was changed")
		}
		return nil
	}))
}

// rowDigest and its sum over all rows compare two sets of rows: the seed is
// random, so that nobody can make another set with the same sum.
func rowDigest(key []byte) uint64 { return maphash.Bytes(textSeed, key) }

// indexDigest sums the rows of the index up to size. A row that is none counts.
func (v *verifier) indexDigest(ctx context.Context, tx *bolt.Tx) (sum uint64) {
	c := tx.Bucket(bucketUnits).Cursor()
	n := 0
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if len(k) != 14 || binary.BigEndian.Uint64(k[6:]) < v.size {
			sum += rowDigest(k)
		}
		if n++; n%chunkSize == 0 && ctx.Err() != nil {
			return sum
		}
	}
	return sum
}

// end looks for entries behind the head. While entries are being appended they
// may only have grown together with the head.
func (v *verifier) end(tx *bolt.Tx) error {
	stored := tx.Bucket(bucketMeta).Get(keyHead)
	if len(stored) < 8 || binary.BigEndian.Uint64(stored) < v.size {
		return v.j.damaged(NoIndex, "its stored head is behind its entries")
	}
	size := binary.BigEndian.Uint64(stored)
	if k, _ := tx.Bucket(bucketEntries).Cursor().Last(); !bytes.Equal(k, indexKey(size-1)) {
		return v.j.damaged(int64(size), "it lies behind the head")
	}
	last := storedCount(size)
	if k, block := tx.Bucket(bucketTree).Cursor().Last(); !bytes.Equal(k, indexKey((last-1)/blockHashes)) ||
		len(block) != int((last-1)%blockHashes+1)*hashSize {
		return v.j.damaged(int64(size), "the tree goes on behind the head")
	}
	return nil
}

// checkpointsPerChunk is how many signatures a worker checks at a time.
const checkpointsPerChunk = 64

// checkpoints checks every checkpoint up to size.
func (v *verifier) checkpoints(ctx context.Context, r *Report) error {
	var sizes []uint64
	err := v.j.explain(v.j.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketCheckpoints).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if len(k) != 8 {
				return v.j.damaged(NoIndex, "a checkpoint is filed under what is no size")
			}
			sizes = append(sizes, binary.BigEndian.Uint64(k))
		}
		return nil
	}))
	if err != nil {
		return err
	}
	if len(sizes) == 0 {
		return v.j.damaged(0, noCheckpoint)
	}
	type signed struct {
		checkpoints []Checkpoint
		bad         uint64 // size of the first that does not fit the tree
		err         error
	}
	chunks := (uint64(len(sizes)) + checkpointsPerChunk - 1) / checkpointsPerChunk
	return ordered(ctx, chunks, func(k uint64) (s signed) {
		some := sizes[k*checkpointsPerChunk:]
		some = some[:min(len(some), checkpointsPerChunk)]
		s.err = v.j.explain(v.j.db.View(func(tx *bolt.Tx) error {
			tree, b := treeReader{v.j, tx.Bucket(bucketTree)}, tx.Bucket(bucketCheckpoints)
			now, _ := v.j.Head()
			for _, size := range some {
				key := indexKey(size)
				c, fits, err := v.j.checkCheckpoint(tree, key, b.Get(key), max(now, v.size))
				if err != nil {
					return err
				}
				if !fits {
					s.bad = size
					return nil
				}
				s.checkpoints = append(s.checkpoints, c)
			}
			return nil
		}))
		return s
	}, func(s signed) error {
		for _, c := range s.checkpoints {
			r.Checkpoints++
			r.Signed = c
		}
		r.Unsigned = v.size - min(v.size, r.Signed.Size)
		if s.bad != 0 {
			return v.j.replaced(r.Signed.Size, s.bad)
		}
		return s.err
	})
}

// checkCopy compares the copy with the database, line by line.
func (v *verifier) checkCopy(ctx context.Context) error {
	f, err := os.Open(CopyPath(v.j.path))
	if err != nil {
		return fmt.Errorf("journal %s: the copy: %w", v.j.path, err)
	}
	defer func() { _ = f.Close() }()
	c := copyCheck{v: v}
	_, err = readLines(f, func(line []byte) error {
		c.arena = append(c.arena, line...)
		c.ends = append(c.ends, len(c.arena))
		if len(c.ends) < chunkSize && len(c.arena) < 4<<20 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.compare()
	})
	if err == nil {
		err = c.compare()
	}
	if err == nil && c.next < v.size {
		err = v.j.damaged(int64(c.next), "its copy "+CopyPath(v.j.path)+" lacks it")
	}
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		return damaged
	}
	return v.j.explain(err)
}

// copyCheck compares some lines at a time.
type copyCheck struct {
	v     *verifier
	next  uint64
	arena []byte
	ends  []int
}

func (c *copyCheck) compare() error {
	err := c.v.j.db.View(func(tx *bolt.Tx) error {
		signed := tx.Bucket(bucketCheckpoints)
		cursor := tx.Bucket(bucketEntries).Cursor()
		k, stored := cursor.Seek(indexKey(c.next))
		start := 0
		for _, end := range c.ends {
			line := c.arena[start:end]
			start = end
			at := int64(c.next)
			if cp, ok, err := parseCheckpointLine(line); ok {
				if err != nil || !bytes.Equal(signed.Get(indexKey(cp.Size)), cp.Note) {
					return c.v.j.damaged(at, "before it, its copy "+CopyPath(c.v.j.path)+" has a checkpoint that the database does not have")
				}
				continue
			}
			switch {
			case k == nil && c.next >= c.v.size: // written since this transaction began
				return nil
			case !bytes.Equal(k, indexKey(c.next)) || !bytes.Equal(stored, line):
				return c.v.j.damaged(at, "its copy "+CopyPath(c.v.j.path)+" has another one")
			}
			c.next++
			k, stored = cursor.Next()
		}
		return nil
	})
	c.arena, c.ends = c.arena[:0], c.ends[:0]
	return err
}

// ordered does n pieces of work with all processors and takes the results in
// their order, until one is not taken.
func ordered[T any](ctx context.Context, n uint64, work func(k uint64) T, take func(T) error) error {
	workers := min(n, uint64(runtime.GOMAXPROCS(0)))
	if workers <= 1 {
		for k := range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := take(work(k)); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	type piece struct {
		k   uint64
		out chan T
	}
	todo := make(chan piece)
	results := make(chan chan T, 2*workers) // bounds what lies around
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(results)
		defer close(todo)
		for k := range n {
			p := piece{k, make(chan T, 1)}
			select {
			case results <- p.out:
			case <-ctx.Done():
				return
			}
			select {
			case todo <- p:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		wg.Go(func() {
			for p := range todo {
				p.out <- work(p.k)
			}
		})
	}
	for out := range results {
		select {
		case r := <-out:
			if err := take(r); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}
