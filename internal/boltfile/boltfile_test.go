package boltfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var bucket = []byte("b")

func newFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.db")
	err := Create(path, func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket(bucket)
		if err != nil {
			return err
		}
		return b.Put([]byte("k"), []byte("v"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closed(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// fill writes n keys of all sizes, so that the file has every kind of page:
// branches, overflow pages, inline and nested buckets, a free list.
func fill(t testing.TB, db *DB, n int) {
	t.Helper()
	for round := range 3 {
		err := db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucket)
			for i := range n {
				if err := b.Put(fmt.Appendf(nil, "key-%05d", i), bytes.Repeat([]byte{byte(i)}, (i*37+round)%600)); err != nil {
					return err
				}
			}
			nested, err := b.CreateBucketIfNotExists([]byte("nested"))
			if err != nil {
				return err
			}
			if err := nested.Put([]byte("big"), make([]byte, 20000)); err != nil {
				return err
			}
			inline, err := tx.CreateBucketIfNotExists([]byte("inline"))
			if err != nil {
				return err
			}
			return inline.Put([]byte("a"), []byte("b"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCreate(t *testing.T) {
	path := newFile(t)
	if err := Create(path, func(*bolt.Tx) error { return nil }); !errors.Is(err, ErrExists) {
		t.Errorf("over a file: %v", err)
	}
	refused := errors.New("refused")
	other := filepath.Join(filepath.Dir(path), "other.db")
	if err := Create(other, func(*bolt.Tx) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("fill failed: %v", err)
	}
	if err := Create(other, func(*bolt.Tx) error { panic("x") }); err == nil {
		t.Error("fill panicked: no error")
	}
	// A dangling link is no place for a new file either.
	if err := os.Symlink("nowhere", other); err != nil {
		t.Fatal(err)
	}
	if err := Create(other, func(*bolt.Tx) error { return nil }); !errors.Is(err, ErrExists) {
		t.Errorf("over a link: %v", err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 2 {
		t.Errorf("files left: %v, %v", names, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestOpenRefusals(t *testing.T) {
	path := newFile(t)
	if _, err := Open(path + ".none"); !errors.Is(err, ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	var damaged *DamagedError
	if _, err := Open(filepath.Dir(path)); err == nil {
		t.Error("a directory was opened")
	}
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrMode) {
		t.Errorf("mode: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	db := mustOpen(t, path)
	start := time.Now()
	if _, err := Open(path); !errors.Is(err, ErrLocked) || time.Since(start) > 2*time.Second {
		t.Errorf("locked: %v after %v", err, time.Since(start))
	}
	closed(t, db)
	closed(t, mustOpen(t, path))
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.As(err, &damaged) {
		t.Errorf("cut: %v", err)
	}
}

// TestPanicLetsGo: after a panic in bbolt every call fails at once, Close too
// returns, and the lock is free.
func TestPanicLetsGo(t *testing.T) {
	path := newFile(t)
	db := mustOpen(t, path)
	fill(t, db, 100)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	var first, again *DamagedError
	if err := db.Update(func(*bolt.Tx) error { return nil }); !errors.As(err, &first) {
		t.Fatalf("update of a file that is gone: %v", err)
	}
	if err := db.View(func(*bolt.Tx) error { return nil }); !errors.As(err, &again) || again != first {
		t.Errorf("view: %v", err)
	}
	closed(t, db)
	closed(t, db)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	closed(t, mustOpen(t, path))
}

func TestGuard(t *testing.T) {
	before := debug.SetPanicOnFault(false)
	defer debug.SetPanicOnFault(before)
	want := errors.New("x")
	if err := Guard(func() error { return want }); !errors.Is(err, want) {
		t.Error(err)
	}
	var damaged *DamagedError
	if err := Guard(func() error { panic("boom") }); !errors.As(err, &damaged) || !strings.Contains(err.Error(), "boom") {
		t.Error(err)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("Guard left faults as panics")
	}
}

// TestCheckAcceptsEverything that bbolt writes.
func TestCheckAcceptsEverything(t *testing.T) {
	path := newFile(t)
	for _, n := range []int{1, 10, 300, 3000, 50} {
		db := mustOpen(t, path)
		fill(t, db, n)
		closed(t, db)
	}
	db := mustOpen(t, path)
	if db.MetaFallback {
		t.Error("both meta pages are valid")
	}
	err := db.Update(func(tx *bolt.Tx) error { // deletes make empty pages and a long free list
		b := tx.Bucket(bucket)
		for i := range 2990 {
			if err := b.Delete(fmt.Appendf(nil, "key-%05d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	closed(t, db)
	closed(t, mustOpen(t, path))
}

// FuzzOpen flips bytes of a file with every kind of page. Open gives an error,
// or a database that can be walked and written; never a panic, a hang or a
// dead process.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "f.db")
	if err := Create(path, func(tx *bolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }); err != nil {
		f.Fatal(err)
	}
	db := mustOpen(f, path)
	fill(f, db, 40)
	closed(f, db)
	content, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	page := uint32(os.Getpagesize())
	f.Add(uint32(0), byte(0), uint32(0), byte(0))
	f.Add(uint32(16), byte(1), page+16, byte(1)) // both meta pages
	for p := range uint32(len(content)) / page {
		for _, at := range []uint32{0, 8, 10, 12, 16, 20, 28} { // id, type, count, overflow, first element
			f.Add(p*page+at, byte(0x01), p*page+at+1, byte(p%3))
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at1 uint32, x1 byte, at2 uint32, x2 byte) {
		changed := bytes.Clone(content)
		changed[int(at1)%len(changed)] ^= x1
		changed[int(at2)%len(changed)] ^= x2
		path := filepath.Join(dir, "copy.db")
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path)
		if errors.Is(err, ErrLocked) {
			t.Fatal("an earlier Open or Close kept the lock")
		}
		if err != nil {
			return
		}
		walk := func(tx *bolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
				if b == nil { // the flip made it a plain value
					return nil
				}
				return b.ForEach(func(_, _ []byte) error { return nil })
			})
		}
		t.Log(db.View(walk))
		t.Log(db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			return b.Put([]byte("new"), make([]byte, 9000))
		}))
		t.Log(db.View(walk))
		closed(t, db)
	})
}

func TestCreateBulk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.db")
	err := CreateBulk(path, func(update func(func(*bolt.Tx) error) error) error {
		for n := range 40 {
			err := update(func(tx *bolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists(bucket)
				for i := range 100 {
					if err == nil {
						err = b.Put(fmt.Appendf(nil, "%05d", n*100+i), make([]byte, 300))
					}
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db := mustOpen(t, path)
	defer closed(t, db)
	if db.MetaFallback {
		t.Error("one meta page is not valid")
	}
	n := 0
	if err := db.View(func(tx *bolt.Tx) error { n = tx.Bucket(bucket).Stats().KeyN; return nil }); err != nil || n != 4000 {
		t.Errorf("%d keys, %v", n, err)
	}
	refused := errors.New("refused")
	other := path + ".other"
	if err := CreateBulk(other, func(func(func(*bolt.Tx) error) error) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("fill failed: %v", err)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a file is left: %v", err)
	}
	if err := CreateBulk(path, func(func(func(*bolt.Tx) error) error) error { return nil }); !errors.Is(err, ErrExists) {
		t.Errorf("over a file: %v", err)
	}
}

// TestQuick: with Quick a damaged page in the middle is left to CheckAll, one at
// the right edge is found at once.
func TestQuick(t *testing.T) {
	path := newFile(t)
	db := mustOpen(t, path)
	fill(t, db, 3000)
	closed(t, db)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hit := func(key string) string {
		t.Helper()
		changed := bytes.Clone(content)
		for at := 0; ; { // all copies of the page, the stale ones too
			n := bytes.Index(changed[at:], []byte(key))
			if n < 0 {
				break
			}
			at += n + 1
			page := (at - 1) / os.Getpagesize() * os.Getpagesize()
			changed[page] ^= 0x55 // its id
		}
		other := filepath.Join(t.TempDir(), "f.db")
		if err := os.WriteFile(other, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		return other
	}
	middle := hit("key-01500")
	var damaged *DamagedError
	if _, err := Open(middle); !errors.As(err, &damaged) {
		t.Errorf("checked whole: %v", err)
	}
	if _, err := Open(middle, Quick(1<<40)); !errors.As(err, &damaged) {
		t.Errorf("smaller than the limit: %v", err)
	}
	db, err = Open(middle, Quick(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.CheckAll(); !errors.As(err, &damaged) {
		t.Errorf("CheckAll: %v", err)
	}
	closed(t, db)
	if _, err := Open(hit("key-02999"), Quick(0)); !errors.As(err, &damaged) {
		t.Errorf("right edge: %v", err)
	}
}

func TestNoWait(t *testing.T) {
	path := newFile(t)
	db := mustOpen(t, path)
	defer closed(t, db)
	start := time.Now()
	if _, err := Open(path, NoWait()); !errors.Is(err, ErrLocked) || time.Since(start) > lockTimeout/2 {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
