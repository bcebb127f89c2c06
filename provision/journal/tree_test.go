package journal

import (
	"fmt"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
)

// TestTree compares the stored tree with x/mod's own, over sizes that cross
// blocks and chunks, and checks every kind of proof.
func TestTree(t *testing.T) {
	j := mustOpen(t, newJournal(t))
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	add := func(n uint64, h Hash) {
		t.Helper()
		more, err := tlog.StoredHashesForRecordHash(int64(n), tlog.Hash(h), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
	}
	for n := range 130 {
		mustAppend(t, j, sample(n))
	}
	entries := all(t, j)
	var hashes []Hash
	for i, e := range entries {
		line, _ := e.Canonical()
		hashes = append(hashes, HashLine(line))
		add(uint64(i), hashes[i])
	}
	for size := uint64(1); size <= 131; size++ {
		want, err := tlog.TreeHash(int64(size), reader)
		if err != nil {
			t.Fatal(err)
		}
		root, err := j.Tree(size)
		if err != nil || root != Hash(want) {
			t.Fatalf("root of %d: %s, %v", size, root, err)
		}
		if storedCount(size) != uint64(tlog.StoredHashCount(int64(size))) {
			t.Fatal("count")
		}
		for i := uint64(0); i < size; i += 1 + size/7 {
			p, err := j.Prove(i, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckProof(p, i, size, root, hashes[i]); err != nil {
				t.Errorf("entry %d of %d: %v", i, size, err)
			}
			if CheckProof(p, i, size, root, hashes[(i+1)%131]) == nil || size > 1 && CheckProof(p, (i+1)%size, size, root, hashes[i]) == nil {
				t.Errorf("entry %d of %d: a wrong proof is taken", i, size)
			}
			older, err := j.Tree(i + 1)
			if err != nil {
				t.Fatal(err)
			}
			tp, err := j.ProveTree(i+1, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckTreeProof(tp, i+1, older, size, root); err != nil {
				t.Errorf("tree %d of %d: %v", i+1, size, err)
			}
			if CheckTreeProof(tp, i+1, hashes[0], size, root) == nil && older != hashes[0] {
				t.Errorf("tree %d of %d: a wrong proof is taken", i+1, size)
			}
		}
	}
	if _, err := j.Tree(132); err == nil {
		t.Error("the root of a tree that is not there")
	}
	for name, err := range map[string]error{
		"index":  func() error { _, err := j.Prove(5, 5); return err }(),
		"size":   func() error { _, err := j.Prove(5, 132); return err }(),
		"older":  func() error { _, err := j.ProveTree(0, 5); return err }(),
		"larger": func() error { _, err := j.ProveTree(6, 5); return err }(),
		"check":  CheckProof(nil, 0, 0, Hash{}, Hash{}),
		"tree":   CheckTreeProof(nil, 0, Hash{}, 1, Hash{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestJoin: chunks that are joined give the tree that single leaves give.
func TestJoin(t *testing.T) {
	leaf := func(n int) Hash { return HashLine(fmt.Append(nil, n)) }
	const level, chunks = 3, 13
	var single, joined frontier
	var want, got []Hash
	for c := range chunks {
		var local frontier
		for i := range 1 << level {
			want = single.add(want, leaf(c<<level+i))
			got = local.add(got, leaf(c<<level+i))
		}
		got = joined.join(got, local.roots[0], level)
		if single.root() != joined.root() || single.n != joined.n {
			t.Fatalf("after %d chunks", c+1)
		}
	}
	if fmt.Sprint(want) != fmt.Sprint(got) {
		t.Error("other stored hashes")
	}
	for i := range uint64(len(want)) {
		n := leafOf(i)
		if i < storedCount(n) || i >= storedCount(n+1) {
			t.Errorf("stored hash %d is not of leaf %d", i, n)
		}
	}
}

// big makes a journal that has several chunks, quickly.
func big(t testing.TB, n int) string {
	t.Helper()
	path := newJournal(t)
	j := mustOpen(t, path)
	at := j.tip
	for done := 0; done < n; {
		batch := make([]*request, min(2000, n-done))
		for i := range batch {
			e := sample(done + i)
			e.Station = "bench-1"
			batch[i] = &request{entry: e}
		}
		var err error
		if at, err = j.commit(batch, at); err == nil {
			err = j.mirror(batch)
		}
		if err != nil {
			t.Fatal(err)
		}
		done += len(batch)
	}
	j.mu.Lock()
	j.tip = at
	j.mu.Unlock()
	closed(t, j)
	return path
}

// TestLong: a journal that is longer than Open checks. A change in its first part
// is Verify's to find, one in its last part is Open's.
func TestLong(t *testing.T) {
	path := big(t, 2*chunkSize+recent)
	j := mustOpen(t, path)
	r, err := j.Verify(t.Context(), nil, WholeFile())
	if err != nil || r.Size != 2*chunkSize+recent+1 || r.Unsigned != 0 || r.IndexWrong {
		t.Fatalf("%+v, %v", r, err)
	}
	root, err := j.Tree(r.Size)
	if err != nil || root != r.Root || root != j.tree.root() {
		t.Errorf("root %s, %s, %s, %v", r.Root, root, j.tree.root(), err)
	}
	for n := range 40 { // goes on in the middle of a block
		mustAppend(t, j, sample(n))
	}
	if _, err := j.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	closed(t, j)
	for _, at := range []uint64{1, chunkSize - 1, chunkSize, chunkSize + 9, 2*chunkSize - 2} {
		editOne(t, path, func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketEntries)
			return b.Put(indexKey(at), swapText(b.Get(indexKey(at)), "xxxx", "xyxx"))
		})
		j := mustOpen(t, path)
		_, err := j.Verify(t.Context(), nil)
		blames(t, fmt.Sprint("entry ", at), err, int64(at))
		closed(t, j)
		editOne(t, path, func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketEntries)
			return b.Put(indexKey(at), swapText(b.Get(indexKey(at)), "xyxx", "xxxx"))
		})
	}
	closed(t, mustOpen(t, path))
	last := r.Size - 100
	editOne(t, path, func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketEntries)
		return b.Put(indexKey(last), swapText(b.Get(indexKey(last)), "xxxx", "xyxx"))
	})
	_, err = Open(path)
	blames(t, "near the head", err, int64(last))
}
