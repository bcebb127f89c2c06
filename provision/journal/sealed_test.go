package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func editOne(t testing.TB, path string, change func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err == nil {
		err = errors.Join(db.Update(change), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func swapText(b []byte, from, to string) []byte {
	return bytes.Replace(b, []byte(from), []byte(to), 1)
}

// blames demands a damage at an entry.
func blames(t testing.TB, name string, err error, index int64) {
	t.Helper()
	var damaged *DamagedError
	if !errors.As(err, &damaged) || damaged.Index != index {
		t.Errorf("%s: %v, want entry %d blamed", name, err, index)
		return
	}
	for _, command := range []string{"provisiond journal verify ", "provisiond journal rebuild "} {
		if !strings.Contains(err.Error(), command) {
			t.Errorf("%s: %v does not name `%s`", name, err, command)
		}
	}
}

// signedJournal has checkpoints of 1, 6, 11 and 16 entries, and 18 entries.
func signedJournal(t *testing.T) string {
	t.Helper()
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 17 {
		mustAppend(t, j, sample(n))
		if n%5 == 4 {
			if c, err := j.Checkpoint(t.Context()); err != nil || c.Size != uint64(n+2) {
				t.Fatalf("%+v, %v", c, err)
			}
		}
	}
	// As a kill leaves it: no last checkpoint.
	j.mu.Lock()
	j.signer = nil
	j.mu.Unlock()
	closed(t, j)
	return path
}

// rewrite makes everything that needs no key anew: entries from index at on with
// another payload, chain, tree, head; and the copy if there should be one.
func rewrite(t *testing.T, path string, at uint64, keep func(size uint64) bool) {
	t.Helper()
	var copied []byte
	editOne(t, path, func(tx *bolt.Tx) error {
		entries := tx.Bucket(bucketEntries)
		var tree frontier
		var hashes []Hash
		var head Hash
		var lines [][]byte
		if err := entries.ForEach(func(_, line []byte) error {
			e, err := ParseEntry(line)
			if err != nil {
				return err
			}
			e.Prev = head
			if e.Index >= at {
				e.Payload = []byte(`{"forged":true}`)
			}
			line, err = e.Canonical()
			head = HashLine(line)
			hashes = tree.add(hashes, head)
			lines = append(lines, line)
			copied = append(append(copied, line...), '\n')
			return err
		}); err != nil {
			return err
		}
		for i, line := range lines {
			if err := entries.Put(indexKey(uint64(i)), line); err != nil {
				return err
			}
		}
		if err := tx.DeleteBucket(bucketTree); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucketTree)
		if err != nil {
			return err
		}
		signed := tx.Bucket(bucketCheckpoints)
		for size := uint64(1); size <= tree.n; size++ {
			if !keep(size) {
				if err := signed.Delete(indexKey(size)); err != nil {
					return err
				}
			}
		}
		return errors.Join(writeHashes(b, 0, hashes), tx.Bucket(bucketMeta).Put(keyHead, headValue(tree.n, head)))
	})
	if err := os.WriteFile(CopyPath(path), copied, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRewrittenWithoutKey replaces the tail and computes all hashes anew.
func TestRewrittenWithoutKey(t *testing.T) {
	for _, c := range []struct {
		at, blamed uint64
	}{{1, 1}, {5, 1}, {6, 6}, {10, 6}, {11, 11}, {15, 11}} {
		path := signedJournal(t)
		rewrite(t, path, c.at, func(uint64) bool { return true })
		_, err := Open(path)
		blames(t, fmt.Sprint("from entry ", c.at), err, int64(c.blamed))
	}
	// Entries that no checkpoint covers have nothing but the chain, and Verify says
	// how many there are; an anchor is against the rest.
	path := signedJournal(t)
	rewrite(t, path, 16, func(uint64) bool { return true })
	j := mustOpen(t, path, WithInterval(time.Hour))
	if r, err := j.Verify(t.Context(), nil); err != nil || r.Unsigned != 2 || r.Signed.Size != 16 || r.Checkpoints != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	closed(t, j)
	// All checkpoints taken away: Init made one.
	path = signedJournal(t)
	rewrite(t, path, 3, func(uint64) bool { return false })
	_, err := Open(path)
	blames(t, "no checkpoints", err, 0)
	// The later ones taken away.
	path = signedJournal(t)
	anchor, err := NewDirAnchor(t.TempDir(), "bench-1")
	if err != nil {
		t.Fatal(err)
	}
	closed(t, mustOpen(t, path, WithAnchor(anchor)))
	rewrite(t, path, 8, func(size uint64) bool { return size < 8 })
	j = mustOpen(t, path, WithInterval(time.Hour))
	var other *AnchorError
	if _, err := j.Verify(t.Context(), nil, AgainstAnchor(anchor)); !errors.As(err, &other) {
		t.Errorf("against the anchor: %v", err)
	}
}

// TestMutatedCheckpoints changes what is stored as checkpoints and in the tree.
func TestMutatedCheckpoints(t *testing.T) {
	for name, c := range map[string]struct {
		index  int64
		change func(tx *bolt.Tx) error
	}{
		"signature": {10, func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketCheckpoints)
			note := bytes.Clone(b.Get(indexKey(11)))
			note[len(note)-10] ^= 1
			return b.Put(indexKey(11), note)
		}},
		"text": {10, func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketCheckpoints)
			return b.Put(indexKey(11), swapText(b.Get(indexKey(11)), "time 2", "time 3"))
		}},
		"other size": {7, func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketCheckpoints)
			return b.Put(indexKey(8), bytes.Clone(b.Get(indexKey(11))))
		}},
		"entries cut": {9, func(tx *bolt.Tx) error {
			for i := uint64(9); i < 18; i++ {
				if err := tx.Bucket(bucketEntries).Delete(indexKey(i)); err != nil {
					return err
				}
			}
			return nil
		}},
		"tree leaf": {4, func(tx *bolt.Tx) error { return flipHash(tx, storedCount(4)) }},
		"tree node": {7, func(tx *bolt.Tx) error { return flipHash(tx, storedCount(8)-1) }},
		"tree end":  {18, func(tx *bolt.Tx) error { return writeHashes(tx.Bucket(bucketTree), storedCount(18), make([]Hash, 1)) }},
		"tree cut":  {0, func(tx *bolt.Tx) error { return tx.Bucket(bucketTree).Delete(indexKey(0)) }},
	} {
		path := signedJournal(t)
		editOne(t, path, c.change)
		j, err := Open(path)
		if err == nil {
			_, err = j.Verify(t.Context(), nil)
			closed(t, j)
		}
		blames(t, name, err, c.index)
	}
}

func flipHash(tx *bolt.Tx, stored uint64) error {
	b := tx.Bucket(bucketTree)
	block := bytes.Clone(b.Get(indexKey(stored / blockHashes)))
	block[stored%blockHashes*uint64(hashSize)] ^= 1
	return b.Put(indexKey(stored/blockHashes), block)
}

// TestCheckpoints: one is signed soon after entries come, and one at Close; the
// copy has them all.
func TestCheckpoints(t *testing.T) {
	path := newJournal(t)
	anchor := newWatched(t)
	j := mustOpen(t, path, WithInterval(time.Millisecond), WithAnchor(anchor))
	if c := <-anchor.put; c.Size != 1 {
		t.Errorf("first anchored: %d", c.Size)
	}
	mustAppend(t, j, sample(1))
	c := <-anchor.put
	if c.Size != 2 || c.Station != "bench-1" || c.Journal != j.Info().ID {
		t.Errorf("%+v", c)
	}
	if root, err := j.Tree(2); err != nil || root != c.Root || c.Verify(j.Info().PublicKey) != nil {
		t.Errorf("%s, %v", root, err)
	}
	again, err := ParseCheckpoint(c.Note)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(c) {
		t.Errorf("%+v, %v", again, err)
	}
	closed(t, j)
	j = mustOpen(t, path, WithInterval(time.Hour))
	mustAppend(t, j, sample(1))
	closed(t, j)
	j = mustOpen(t, path)
	r, err := j.Verify(t.Context(), nil, AgainstKey(j.Info().PublicKey))
	if err != nil || r.Checkpoints != 3 || r.Unsigned != 0 || !r.Trusted {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := j.Verify(t.Context(), nil, AgainstKey("a+00000000+x")); !errors.Is(err, ErrKey) {
		t.Errorf("another key: %v", err)
	}
	b, err := os.ReadFile(CopyPath(path))
	if err != nil || bytes.Count(b, []byte(checkpointPrefix)) != 3 {
		t.Errorf("%s, %v", b, err)
	}
	// Every changed byte of a note is found.
	for i := range c.Note {
		for bit := range 8 {
			note := bytes.Clone(c.Note)
			note[i] ^= 1 << bit
			if p, err := ParseCheckpoint(note); err == nil && p.Verify(j.Info().PublicKey) == nil {
				t.Errorf("byte %d of the note may be changed: %q", i, note)
			}
		}
	}
}

// watched is an anchor that tells what it is given.
type watched struct {
	*DirAnchor
	put chan Checkpoint
	err error
}

func newWatched(t *testing.T) *watched {
	a, err := NewDirAnchor(t.TempDir(), "bench-1")
	if err != nil {
		t.Fatal(err)
	}
	return &watched{a, make(chan Checkpoint, 100), nil}
}

func (w *watched) PutCheckpoint(ctx context.Context, c Checkpoint) error {
	if w.err != nil {
		return w.err
	}
	err := w.DirAnchor.PutCheckpoint(ctx, c)
	w.put <- c
	return err
}

var _ iter.Seq2[Checkpoint, error] = (*DirAnchor)(nil).Checkpoints(context.Background())

// TestAnchorDown: a keystore that does not answer stops nothing, and is told of.
// One that has another checkpoint there stops everything.
func TestAnchorDown(t *testing.T) {
	anchor := newWatched(t)
	anchor.err = errors.New("no network")
	j := mustOpen(t, newJournal(t), WithInterval(time.Hour), WithAnchor(anchor))
	mustAppend(t, j, sample(1))
	if _, err := j.Checkpoint(t.Context()); !errors.Is(err, anchor.err) {
		t.Errorf("%v", err)
	}
	if c, err := j.LastCheckpoint(); c.Size != 2 || !errors.Is(err, anchor.err) {
		t.Errorf("%d, %v", c.Size, err)
	}
	mustAppend(t, j, sample(1))
	anchor.err = nil
	if c, err := j.Checkpoint(t.Context()); err != nil || c.Size != 3 {
		t.Errorf("%d, %v", c.Size, err)
	}
	anchor.err = ErrAnchorTaken
	mustAppend(t, j, sample(1))
	if _, err := j.Checkpoint(t.Context()); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrAnchorTaken) {
		t.Errorf("%v", err)
	}
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrFailed) {
		t.Errorf("append after it: %v", err)
	}
	if err := j.Close(); err == nil {
		t.Error("close says nothing of it")
	}
}

// TestAnchor: an older journal, another history, another journal, a successor.
func TestAnchor(t *testing.T) {
	dir := t.TempDir()
	anchor, err := NewDirAnchor(dir, "bench-1")
	if err != nil {
		t.Fatal(err)
	}
	path := newJournal(t)
	grow := func(n int) {
		t.Helper()
		j := mustOpen(t, path, WithAnchor(anchor))
		for range n {
			mustAppend(t, j, sample(1))
		}
		closed(t, j)
	}
	keep := func() map[string][]byte {
		files := map[string][]byte{}
		for _, name := range []string{path, CopyPath(path)} {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = b
		}
		return files
	}
	restore := func(files map[string][]byte) {
		for name, b := range files {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	refused := func(name, reason string, common int64) {
		t.Helper()
		_, err := Open(path, WithAnchor(anchor))
		var other *AnchorError
		if !errors.As(err, &other) || other.Common != common || !strings.Contains(err.Error(), reason) || !errors.Is(err, ErrAnchor) {
			t.Errorf("%s: %v", name, err)
		}
	}
	grow(4) // 5
	old := keep()
	grow(4) // 9
	good := keep()
	restore(old)
	refused("older", "it has 5 entries, and there is a checkpoint of 9", 4)
	restore(old)
	j := mustOpen(t, path) // without the anchor it goes another way
	for range 10 {
		mustAppend(t, j, sample(3))
	}
	closed(t, j)
	refused("another history", "its first 9 entries are not those", 4)
	restore(good)
	grow(1) // 10

	// Its disk is lost. Another journal of the station that does not succeed it.
	lost := path
	path = newJournal(t)
	refused("not succeeding", "does not succeed it", NoIndex)
	last, err := FindPredecessor(t.Context(), anchor, "")
	if err != nil || last.Size != 10 {
		t.Fatalf("%+v, %v", last, err)
	}
	if _, err := FindPredecessor(t.Context(), anchor, strings.Repeat("0", 32)); err == nil {
		t.Error("a predecessor that is not there")
	}
	path = filepath.Join(t.TempDir(), "journal.db")
	if err := Init(path, Options{Station: "bench-1", Succeeds: &Succession{Checkpoint: last}, Anchor: anchor}); err != nil {
		t.Fatal(err)
	}
	grow(9) // the same sizes on the same day
	j = mustOpen(t, path, WithAnchor(anchor))
	if s := j.Info().Succeeds; s == nil || s.Journal != last.Journal || s.Size != 10 || j.Info().Generation() != 1 {
		t.Errorf("%+v", j.Info())
	}
	closed(t, j)
	path = lost
	refused("the lost one comes back", "does not succeed it", NoIndex)
	if err := Init(filepath.Join(t.TempDir(), "x.db"), Options{Station: "other", Succeeds: &Succession{Checkpoint: last}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("another station's: %v", err)
	}

	// Create-only.
	c := last
	if err := anchor.PutCheckpoint(t.Context(), c); err != nil {
		t.Errorf("the same again: %v", err)
	}
	c.Note = append(bytes.Clone(c.Note), '\n')
	if err := anchor.PutCheckpoint(t.Context(), c); !errors.Is(err, ErrAnchorTaken) {
		t.Errorf("another one: %v", err)
	}
	c.Station = "../bench-1"
	if p := c.Path(); strings.Contains(p, "..%2F") == strings.Contains(p, "../") || anchor.PutCheckpoint(t.Context(), c) == nil {
		t.Errorf("path %s", p)
	}
	if got := StationPath(".."); got != "checkpoints/%2E%2E" {
		t.Errorf("station ..: %s", got)
	}
	if got := fmt.Sprint(NewestFirst([]string{"9", "10", "1-1", "x", "3-2", "2-2", ".new-1", "7-"})); got != "[3-2 2-2 1-1 10 9]" {
		t.Errorf("order %s", got)
	}
}

// TestKey: what happens without the key, and with a wrong one.
func TestKey(t *testing.T) {
	path := newJournal(t)
	key, err := os.ReadFile(KeyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(PublicKeyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	s, err := LoadKey(KeyPath(path))
	if err != nil || s.PublicKey()+"\n" != string(public) {
		t.Errorf("%v, %v", s, err)
	}
	if text := fmt.Sprintf("%v %+v %#v", s, s, s); strings.Contains(text, string(key[len(key)-20:len(key)-1])) {
		t.Error("the signer prints its key")
	}
	if err := os.Chmod(KeyPath(path), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrMode) {
		t.Errorf("mode: %v", err)
	}
	if err := os.Remove(KeyPath(path)); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, path)
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrKey) || j.Info().CanSign {
		t.Errorf("append without a key: %v", err)
	}
	if _, err := j.Checkpoint(t.Context()); !errors.Is(err, ErrKey) {
		t.Errorf("checkpoint without a key: %v", err)
	}
	if _, err := j.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	closed(t, j)
	if _, err := Open(path, WithKeyFile(KeyPath(newJournal(t)))); !errors.Is(err, ErrKey) {
		t.Errorf("another journal's key: %v", err)
	}
	if _, err := Open(path, WithKeyFile(path+".nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key file: %v", err)
	}
	for _, bad := range []string{"", "PRIVATE+KEY+a+00000000+AAAA", string(key[:len(key)-5])} {
		if err := os.WriteFile(KeyPath(path), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrKey) || len(bad) > 30 && strings.Contains(err.Error(), bad[len(bad)-10:]) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	_, vector := vectorNote(t)
	other := filepath.Join(t.TempDir(), "j.db")
	seed := ed25519Signer{vectorKey(), vector}
	if err := Init(other, Options{Station: "s", Signer: seed}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(KeyPath(other)); !os.IsNotExist(err) {
		t.Error("a key file beside another signer")
	}
	j = mustOpen(t, other, WithSigner(seed))
	mustAppend(t, j, sample(1))
	if c, err := j.Checkpoint(t.Context()); err != nil || c.Verify(vector) != nil {
		t.Errorf("another signer: %v", err)
	}
}

// TestCopyMended: whatever a crash leaves of the copy's end is brought up to the
// database; what no crash leaves is refused.
func TestCopyMended(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 20 {
		mustAppend(t, j, sample(n))
	}
	closed(t, j)
	whole, err := os.ReadFile(CopyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for cut := 0; cut <= len(whole); cut += 1 + cut%97 {
		if cut > 0 && cut < first {
			continue // a first line that is torn is the same as none
		}
		if err := os.WriteFile(CopyPath(path), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if _, err := j.Verify(t.Context(), nil); err != nil {
			t.Errorf("cut at %d: %v", cut, err)
		}
		closed(t, j)
	}
	for name, c := range map[string]struct {
		content []byte
		index   int64
	}{
		"another last entry": {bytes.Replace(whole[:bytes.LastIndex(whole, []byte(checkpointPrefix))], []byte(`"words":[4294967295,0,19]`), []byte(`"words":[4294967295,0,18]`), 1), 20},
		"ahead":              {append(bytes.Clone(whole), []byte(strings.Replace(goldenLine, `"index":7`, `"index":21`, 1)+"\n")...), 21},
		"no entry":           {append(bytes.Clone(whole), []byte("hello\n")...), NoIndex},
	} {
		if err := os.WriteFile(CopyPath(path), c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		blames(t, name, err, c.index)
	}
	// In the middle only Verify looks.
	for name, c := range map[string]struct {
		content []byte
		index   int64
	}{
		"changed":            {bytes.Replace(whole, []byte(`"words":[4294967295,0,7]`), []byte(`"words":[4294967295,0,8]`), 1), 8},
		"checkpoint changed": {bytes.Replace(whole, []byte(`\ntime 2`), []byte(`\ntime 3`), 1), 1},
	} {
		if bytes.Equal(c.content, whole) {
			t.Fatal(name)
		}
		if err := os.WriteFile(CopyPath(path), c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		j := mustOpen(t, path)
		_, err := j.Verify(t.Context(), nil)
		blames(t, name, err, c.index)
		closed(t, j)
		if _, err := Backup(t.Context(), path, filepath.Join(t.TempDir(), "b.db")); !errors.Is(err, ErrDamaged) && name == "changed" || err == nil {
			t.Errorf("%s: backup: %v", name, err)
		}
	}
	if err := os.WriteFile(CopyPath(path), whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(CopyPath(path), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrMode) {
		t.Errorf("mode: %v", err)
	}
}

// TestRebuildAndBackup: a live journal is copied, a lost one is made again.
func TestRebuildAndBackup(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path, WithInterval(time.Millisecond))
	dest := filepath.Join(t.TempDir(), "backup.db")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				if _, err := j.Append(context.Background(), sample(n)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for range 5 {
		r, err := Backup(t.Context(), path, dest)
		if err != nil {
			t.Fatal(err)
		}
		b := mustOpen(t, dest)
		rep, err := b.Verify(t.Context(), nil, AgainstKey(j.Info().PublicKey))
		if err != nil || rep.Size != r.Entries || rep.Checkpoints == 0 {
			t.Errorf("%+v, %+v, %v", r, rep, err)
		}
		closed(t, b)
		if _, err := Backup(t.Context(), path, dest); !errors.Is(err, ErrExists) {
			t.Errorf("over a backup: %v", err)
		}
		for _, name := range []string{dest, CopyPath(dest), PublicKeyPath(dest)} {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	<-done
	want := fmt.Sprint(all(t, j))
	unitWant, err := j.Unit(unit(3))
	if err != nil {
		t.Fatal(err)
	}
	closed(t, j)

	if _, err := Rebuild(t.Context(), path); !errors.Is(err, ErrExists) {
		t.Errorf("over a journal: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(CopyPath(path), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`{"index":99`) // torn
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := Rebuild(t.Context(), path)
	if err != nil || r.Torn != 11 {
		t.Fatalf("%+v, %v", r, err)
	}
	j = mustOpen(t, path)
	if got := fmt.Sprint(all(t, j)); got != want || !j.Info().CopyMended || j.Info().IndexRebuilt {
		t.Errorf("after rebuilding: %+v", j.Info())
	}
	if got, err := j.Unit(unit(3)); err != nil || fmt.Sprint(got) != fmt.Sprint(unitWant) {
		t.Error("another index")
	}
	mustAppend(t, j, sample(1))
	if _, err := j.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	closed(t, j)

	// Every line that is dropped, doubled or swapped is found.
	whole, err := os.ReadFile(CopyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	for i := range min(12, len(lines)-1) {
		if bytes.HasPrefix(lines[i], []byte(checkpointPrefix)) {
			continue
		}
		for name, changed := range map[string][]byte{
			"dropped": bytes.Join(append(append([][]byte(nil), lines[:i]...), lines[i+1:]...), nil),
			"doubled": bytes.Join(append(append([][]byte(nil), lines[:i+1]...), lines[i:]...), nil),
		} {
			other := filepath.Join(t.TempDir(), "x.db")
			if err := os.WriteFile(CopyPath(other), changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Rebuild(t.Context(), other); err == nil {
				t.Errorf("line %d %s: rebuilt", i, name)
			}
			if _, err := os.Stat(other); !os.IsNotExist(err) {
				t.Errorf("line %d %s: a file is left", i, name)
			}
		}
	}
}

// TestStates: the order of a unit's entries.
func TestStates(t *testing.T) {
	type step struct {
		kind      Kind
		step, job string
		unit      byte
	}
	run := []step{
		{KindIntent, "connect", "", 0},
		{KindObserved, "connect", "", 0},
		{KindIntent, "inspect", "", 0},
		{KindObserved, "inspect", "j", 1},
		{KindIntent, "burn", "j", 1},
		{KindObserved, "burn", "j", 1},
		{KindVerdict, "verdict", "j", 1},
	}
	crash := run[:5]
	for name, c := range map[string]struct {
		steps []step
		bad   int64 // index; 0: none
	}{
		"run":               {run, 0},
		"two runs":          {append(append([]step(nil), run...), run...), 0},
		"crash, run":        {append(append([]step(nil), crash...), run...), 0},
		"unknown unit":      {append(append([]step(nil), run[:2]...), step{KindVerdict, "verdict", "", 0}), 0},
		"others between":    {append(append([]step(nil), run[:5]...), step{KindOperator, "note", "", 1}, step{KindObserved, "burn", "j", 1}), 0},
		"no intent":         {[]step{{KindObserved, "burn", "j", 1}}, 1},
		"observed twice":    {append(append([]step(nil), run[:6]...), run[5]), 7},
		"other step":        {append(append([]step(nil), run[:5]...), step{KindObserved, "close", "j", 1}), 6},
		"other unit":        {append(append([]step(nil), run[:5]...), step{KindObserved, "burn", "j", 2}), 6},
		"other job":         {append(append([]step(nil), run[:5]...), step{KindObserved, "burn", "k", 1}), 6},
		"verdict first":     {[]step{{KindVerdict, "verdict", "j", 1}}, 1},
		"verdict twice":     {append(append([]step(nil), run...), run[6]), 8},
		"verdict of no run": {[]step{{KindVerdict, "verdict", "", 0}}, 1},
	} {
		j := mustOpen(t, newJournal(t))
		for _, s := range c.steps {
			e := Entry{Slot: "A", Step: s.step, Kind: s.kind, Job: s.job}
			if s.unit != 0 {
				e.Unit = unit(s.unit)
			}
			mustAppend(t, j, e)
		}
		r, err := j.Verify(t.Context(), nil)
		if c.bad != 0 {
			blames(t, name, err, c.bad)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if want := uint64(strings.Count(name, "crash")); r.OpenIntents != want {
			t.Errorf("%s: %d open intents", name, r.OpenIntents)
		}
		closed(t, j)
	}
}

// TestProbe: a child that dies, hangs up, or finds something.
func TestProbe(t *testing.T) {
	path := newJournal(t)
	child := func(script string) Prober {
		return ProbeWith(func(ctx context.Context, _ string) *exec.Cmd { return exec.CommandContext(ctx, "sh", "-c", script) })
	}
	j, err := Open(path, WithProber(child(`echo '{"good":true}'`)))
	if err != nil {
		t.Fatal(err)
	}
	closed(t, j)
	for script, reason := range map[string]string{
		`kill -BUS $$`:          "bus error",
		`echo oops >&2; exit 2`: "oops",
		`true`:                  "no answer",
		`echo '{"good":false,"index":7,"reason":"bad page"}'`: "bad page",
	} {
		_, err := Open(path, WithProber(child(script)))
		index := int64(NoIndex)
		if reason == "bad page" {
			index = 7
		}
		blames(t, script, err, index)
		if err != nil && !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v", script, err)
		}
	}
	var damaged *DamagedError
	if _, err := Open(path, WithProber(ProbeWith(func(ctx context.Context, _ string) *exec.Cmd { return exec.CommandContext(ctx, "/no/such/program") }))); err == nil || errors.As(err, &damaged) {
		t.Errorf("a child that cannot be started: %v", err)
	}
	var out bytes.Buffer
	if err := ProbeAnswer(t.Context(), path, &out); err != nil || !strings.Contains(out.String(), `"good":true`) {
		t.Errorf("%s, %v", &out, err)
	}
	before, _ := os.ReadFile(path)
	if _, err := Peek(t.Context(), path); err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a look changed the file")
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := ProbeAnswer(t.Context(), path, &out); err != nil || !strings.Contains(out.String(), `"good":false`) {
		t.Errorf("%s, %v", &out, err)
	}
}

// TestFullFilesystem fills a real small filesystem, once so that the database
// cannot grow and once so that the copy cannot, and makes one read-only.
func TestFullFilesystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs the right to mount a filesystem; TestFull does it with a limit: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "journal.db")
	if err := Init(path, Options{Station: "bench-1"}); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, path)
	acknowledged := uint64(0)
	var err error
	for ; err == nil; acknowledged++ {
		_, err = j.Append(t.Context(), sample(int(acknowledged)))
	}
	acknowledged--
	if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) || acknowledged == 0 {
		t.Fatalf("after %d: %v", acknowledged, err)
	}
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrFailed) {
		t.Errorf("append again: %v", err)
	}
	_ = j.Close()
	if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, path)
	if size, _ := j.Head(); size != acknowledged+1 && size != acknowledged+2 {
		t.Errorf("%d entries, %d were acknowledged", size-1, acknowledged)
	}
	mustAppend(t, j, sample(1))
	if _, err := j.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	closed(t, j)
	if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, syscall.EROFS) {
		t.Errorf("read-only: %v", err)
	}
}

// TestFailingSync puts /dev/null in the place of an open file: writing succeeds,
// and syncing is the operating system's error.
func TestFailingSync(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	replace := func(path string) {
		t.Helper()
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc")
		}
		n := 0
		for _, name := range names {
			var fd int
			if to, err := os.Readlink("/proc/self/fd/" + name.Name()); err == nil && to == path {
				_, _ = fmt.Sscan(name.Name(), &fd)
				if err := unix.Dup2(int(null.Fd()), fd); err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%s is open %d times", path, n)
		}
	}
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 60 { // so that the file need not grow
		mustAppend(t, j, sample(n))
	}
	replace(path)
	if _, err := j.Append(t.Context(), sample(2)); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("the database's sync fails: %v", err)
	}
	if _, err := j.Append(t.Context(), sample(2)); !errors.Is(err, ErrFailed) {
		t.Errorf("again: %v", err)
	}
	_ = j.Close()

	path = newJournal(t)
	j = mustOpen(t, path)
	mustAppend(t, j, sample(1))
	replace(CopyPath(path))
	if _, err := j.Checkpoint(t.Context()); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("the copy's sync fails: %v", err)
	}
	if _, err := j.Append(t.Context(), sample(2)); !errors.Is(err, ErrFailed) {
		t.Errorf("append after it: %v", err)
	}
	_ = j.Close()
	closed(t, mustOpen(t, path)) // and it can be mended
}

// TestCopyCannotBeWritten: the entry is in the database, and nobody is told that
// it is durable.
func TestCopyCannotBeWritten(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	if err := j.copy.f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrFailed) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("append: %v", err)
	}
	_ = j.Close()
	j = mustOpen(t, path)
	if size, _ := j.Head(); size != 2 || !j.Info().CopyMended {
		t.Errorf("%d entries, %+v", size, j.Info())
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	path := newJournal(f)
	j := mustOpen(f, path)
	c, _ := j.LastCheckpoint()
	public := j.Info().PublicKey
	f.Add(c.Note)
	f.Add(bytes.Replace(c.Note, []byte("generation 0"), []byte("generation 00"), 1))
	f.Add(bytes.Replace(c.Note, []byte("bench-1"), []byte("bench\n1"), 1))
	f.Add(append(bytes.Clone(c.Note), c.Note...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseCheckpoint(b)
		if err != nil {
			return
		}
		if !strings.HasPrefix(string(b), got.text()+"\n") {
			t.Fatalf("%q reads as %+v", b, got)
		}
		if got.Verify(public) == nil && !bytes.Equal(b, c.Note) {
			t.Fatalf("%q is signed", b)
		}
	})
}
