package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
)

// The stored hashes of the Merkle tree lie in blocks, in the order in which they
// become known: the leaf hash of an entry, then the hash of every subtree that
// this entry completes, from small to large (tlog.StoredHashIndex).
const (
	hashSize    = len(Hash{})
	blockHashes = 32 // per key of the bucket
	blockSize   = blockHashes * hashSize
)

// frontier is the right edge of the tree: the roots of the complete subtrees
// that n entries fall into, from large to small.
type frontier struct {
	n     uint64
	roots []Hash
}

// add appends a leaf and gives, behind dst, the hashes to store.
func (f *frontier) add(dst []Hash, leaf Hash) []Hash {
	dst = append(dst, leaf)
	for n := f.n; n&1 == 1; n >>= 1 {
		last := len(f.roots) - 1
		leaf = nodeHash(f.roots[last], leaf)
		f.roots = f.roots[:last]
		dst = append(dst, leaf)
	}
	f.roots = append(f.roots, leaf)
	f.n++
	return dst
}

// join appends a complete subtree of 1<<level leaves, to which n must be aligned,
// and gives, behind dst, the hashes of the larger subtrees that it completes.
func (f *frontier) join(dst []Hash, root Hash, level int) []Hash {
	for n := f.n >> level; n&1 == 1; n >>= 1 {
		last := len(f.roots) - 1
		root = nodeHash(f.roots[last], root)
		f.roots = f.roots[:last]
		dst = append(dst, root)
	}
	f.roots = append(f.roots, root)
	f.n += 1 << level
	return dst
}

func (f *frontier) root() Hash {
	if f.n == 0 {
		return Hash{}
	}
	h := f.roots[len(f.roots)-1]
	for i := len(f.roots) - 2; i >= 0; i-- {
		h = nodeHash(f.roots[i], h)
	}
	return h
}

func (f *frontier) clone() frontier { return frontier{f.n, slices.Clone(f.roots)} }

func nodeHash(left, right Hash) Hash {
	return Hash(tlog.NodeHash(tlog.Hash(left), tlog.Hash(right)))
}

// storedCount is the number of stored hashes of a tree with n entries.
func storedCount(n uint64) uint64 { return uint64(tlog.StoredHashCount(int64(n))) }

// leafOf gives the entry whose leaf a stored hash is, or that completed it.
func leafOf(stored uint64) uint64 {
	level, n := tlog.SplitStoredHashIndex(int64(stored))
	return (uint64(n)+1)<<level - 1
}

// writeHashes appends stored hashes to the bucket, the first of them as number at.
func writeHashes(b *bolt.Bucket, at uint64, hashes []Hash) error {
	b.FillPercent = fillPercent
	for len(hashes) > 0 {
		key, within := indexKey(at/blockHashes), int(at%blockHashes)
		block := make([]byte, 0, blockSize)
		if within > 0 {
			old := b.Get(key)
			if len(old) != within*hashSize {
				return fmt.Errorf("block %d of the tree has %d bytes and not %d", at/blockHashes, len(old), within*hashSize)
			}
			block = append(block, old...)
		}
		n := min(blockHashes-within, len(hashes))
		for _, h := range hashes[:n] {
			block = append(block, h[:]...)
		}
		if err := b.Put(key, block); err != nil {
			return err
		}
		hashes, at = hashes[n:], at+uint64(n)
	}
	return nil
}

// treeReader reads the stored hashes of one transaction for tlog.
type treeReader struct {
	j *Journal
	b *bolt.Bucket
}

// ReadHashes is tlog's interface.
func (r treeReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		block := r.b.Get(indexKey(uint64(at) / blockHashes))
		from := int(at%blockHashes) * hashSize
		if len(block) < from+hashSize {
			return nil, r.j.damaged(int64(leafOf(uint64(at))), "its hash in the tree is missing")
		}
		copy(out[i][:], block[from:])
	}
	return out, nil
}

// frontierAt reads the right edge of the tree of the first n entries.
func (r treeReader) frontierAt(n uint64) (frontier, error) {
	f := frontier{n: n}
	var at []int64
	for done := uint64(0); done < n; {
		level := bits.Len64(n-done) - 1
		at = append(at, tlog.StoredHashIndex(level, int64(done>>level)))
		done += 1 << level
	}
	hashes, err := r.ReadHashes(at)
	for _, h := range hashes {
		f.roots = append(f.roots, Hash(h))
	}
	return f, err
}

// rootAt reads the root of the tree of the first n entries.
func (r treeReader) rootAt(n uint64) (Hash, error) {
	f, err := r.frontierAt(n)
	return f.root(), err
}

// Tree gives the root of the RFC 6962 Merkle tree of the first size entries.
func (j *Journal) Tree(size uint64) (root Hash, err error) {
	err = j.viewTree(size, func(r treeReader) (err error) {
		root, err = r.rootAt(size)
		return err
	})
	return root, err
}

// Proof is a list of hashes as RFC 6962, section 2.1 has them.
type Proof []Hash

// Prove gives the proof that entry index is in the tree of the first size entries.
func (j *Journal) Prove(index, size uint64) (p Proof, err error) {
	if index >= size {
		return nil, fmt.Errorf("journal %s: a tree of %d entries has no entry %d", j.path, size, index)
	}
	err = j.viewTree(size, func(r treeReader) error {
		hashes, err := tlog.ProveRecord(int64(size), int64(index), r)
		p = fromTlog(hashes)
		return err
	})
	return p, err
}

// ProveTree gives the proof that the tree of the first older entries is the
// beginning of that of the first size entries.
func (j *Journal) ProveTree(older, size uint64) (p Proof, err error) {
	if older == 0 || older > size {
		return nil, fmt.Errorf("journal %s: a tree of %d entries does not grow out of one of %d", j.path, size, older)
	}
	err = j.viewTree(size, func(r treeReader) error {
		hashes, err := tlog.ProveTree(int64(size), int64(older), r)
		p = fromTlog(hashes)
		return err
	})
	return p, err
}

// CheckProof checks that an entry with this hash is entry index of the tree with
// this size and root.
func CheckProof(p Proof, index, size uint64, root, entry Hash) error {
	if size == 0 || size > maxEntries || index >= size {
		return errProof
	}
	if err := tlog.CheckRecord(toTlog(p), int64(size), tlog.Hash(root), int64(index), tlog.Hash(entry)); err != nil {
		return errProof
	}
	return nil
}

// CheckTreeProof checks that the tree with size and root began as the older one.
func CheckTreeProof(p Proof, older uint64, olderRoot Hash, size uint64, root Hash) error {
	if older == 0 || older > size || size > maxEntries {
		return errProof
	}
	if err := tlog.CheckTree(tlog.TreeProof(toTlog(p)), int64(size), tlog.Hash(root), int64(older), tlog.Hash(olderRoot)); err != nil {
		return errProof
	}
	return nil
}

var errProof = errors.New("journal: the proof does not hold")

// maxEntries is what a journal can hold: indexes are at most 2^53−1.
const maxEntries = 1 << 53

func fromTlog[P ~[]tlog.Hash](p P) Proof {
	out := make(Proof, len(p))
	for i, h := range p {
		out[i] = Hash(h)
	}
	return out
}

func toTlog(p Proof) tlog.RecordProof {
	out := make(tlog.RecordProof, len(p))
	for i, h := range p {
		out[i] = tlog.Hash(h)
	}
	return out
}

func (j *Journal) viewTree(size uint64, fn func(treeReader) error) error {
	if have, _ := j.Head(); size > have || size == 0 {
		return fmt.Errorf("journal %s: it has %d entries, and no tree of %d", j.path, have, size)
	}
	return j.explain(j.db.View(func(tx *bolt.Tx) error { return fn(treeReader{j, tx.Bucket(bucketTree)}) }))
}

// compareHashes looks whether the stored hashes from number at on are those in
// want. It gives the number of the first that is not.
func compareHashes(b *bolt.Bucket, at uint64, want []Hash) (bad uint64, ok bool) {
	c := b.Cursor()
	k, block := c.Seek(indexKey(at / blockHashes))
	for len(want) > 0 {
		within := int(at % blockHashes)
		n := min(blockHashes-within, len(want))
		if len(k) != 8 || binary.BigEndian.Uint64(k) != at/blockHashes {
			return at, false
		}
		for i, h := range want[:n] {
			from := (within + i) * hashSize
			if from+hashSize > len(block) || !bytes.Equal(block[from:from+hashSize], h[:]) {
				return at + uint64(i), false
			}
		}
		want, at = want[n:], at+uint64(n)
		k, block = c.Next()
	}
	return 0, true
}
