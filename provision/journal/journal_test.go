package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
)

func unit(n byte) chip.MAC { return chip.MAC{2, 0, 0, 0, 0, n} }

func newJournal(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := Init(path, Options{Station: "bench-1"}); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t testing.TB, path string, options ...Option) *Journal {
	t.Helper()
	j, err := Open(path, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func closed(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustAppend(t testing.TB, j *Journal, e Entry) Entry {
	t.Helper()
	got, err := j.Append(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// sample is an entry of about 400 bytes.
func sample(n int) Entry {
	payload, err := MarshalPayload(map[string]any{
		"note": strings.Repeat("x", 60), "words": []uint32{0xFFFFFFFF, 0, uint32(n)}, "ok": true, "text": "ü \"q\" \n",
	})
	if err != nil {
		panic(err)
	}
	return Entry{Unit: unit(byte(n % 7)), Slot: "A3", Job: "job-1", Step: "flash", Kind: KindIntent, Payload: payload}
}

func all(t testing.TB, j *Journal) []Entry {
	t.Helper()
	var entries []Entry
	for e, err := range j.Entries(0, All) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

func TestInit(t *testing.T) {
	path := newJournal(t)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	names, _ := os.ReadDir(filepath.Dir(path))
	modes := map[string]os.FileMode{"journal.db": 0o600, "journal.db.key": 0o600, "journal.db.pub": 0o644, "journal.db.jsonl": 0o600}
	if len(names) != len(modes) {
		t.Errorf("init made: %v", names)
	}
	for _, n := range names {
		if st, err := n.Info(); err != nil || modes[n.Name()] != st.Mode() {
			t.Errorf("%s: mode %v, %v", n.Name(), st.Mode(), err)
		}
	}
	if err := Init(path, Options{Station: "x"}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), path) {
		t.Errorf("init over a journal: %v", err)
	}
	j := mustOpen(t, path)
	info := j.Info()
	if info.Station != "bench-1" || len(info.ID) != 32 || info.Format != 1 || info.Path != path ||
		info.IndexRebuilt || info.TornCommit || time.Since(info.Created) > time.Minute {
		t.Errorf("info: %+v", info)
	}
	entries := all(t, j)
	if len(entries) != 1 || entries[0].Kind != KindStation || entries[0].Step != StepInit || entries[0].Prev != (Hash{}) {
		t.Errorf("entry 0: %+v", entries)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := Init(other, Options{Station: ""}); !errors.Is(err, ErrInvalid) {
		t.Errorf("init without a station: %v", err)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a refused init left a file: %v", err)
	}
}

func TestOpenRefusals(t *testing.T) {
	path := newJournal(t)
	missing := filepath.Join(t.TempDir(), "journal.db")
	_, err := Open(missing)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "provisiond journal init") {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Error("open created the file")
	}

	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("mode 0640: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}

	mustOpen(t, path)
	start := time.Now()
	if _, err := Open(path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("locked: %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("the lock was reported after %v", d)
	}

	for name, content := range map[string][]byte{"empty": nil, "text": []byte(strings.Repeat("hello ", 9999)), "short": {1, 2, 3}} {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if _, err := Open(p); !errors.As(err, &damaged) || damaged.Path != p || damaged.Index != NoIndex {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := os.ReadFile(p); !bytes.Equal(after, content) {
			t.Errorf("%s: open changed the file", name)
		}
	}

	foreign := filepath.Join(t.TempDir(), "foreign.db")
	db, err := bolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(foreign); !errors.Is(err, ErrDamaged) {
		t.Errorf("another database: %v", err)
	}
}

func TestAppendAndRead(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	at := time.Date(2026, 11, 22, 17, 0, 0, 1, time.FixedZone("CET", 3600))
	first := mustAppend(t, j, Entry{Time: at, Step: "connect", Kind: KindIntent, Payload: json.RawMessage(` { "b" : 1, "a" : "x\/y" } `)})
	if first.Index != 1 || !first.Time.Equal(at) || first.Time.Location() != time.UTC || first.Station != "bench-1" ||
		string(first.Payload) != `{"a":"x/y","b":1}` {
		t.Errorf("what Append returned: %+v", first)
	}
	for n := range 20 {
		mustAppend(t, j, sample(n))
	}
	entries := all(t, j)
	if len(entries) != 22 {
		t.Fatalf("%d entries", len(entries))
	}
	size, head := j.Head()
	if size != 22 {
		t.Errorf("head is at %d", size)
	}
	var prev Hash
	for i, e := range entries {
		line, err := e.Canonical()
		if err != nil || e.Index != uint64(i) || e.Prev != prev {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
		prev = HashLine(line)
	}
	if prev != head {
		t.Error("the last hash is not the head's")
	}
	got, err := j.Unit(unit(3))
	if err != nil || len(got) != 3 || got[0].Index != 5 || got[2].Index != 19 || got[1].Unit != unit(3) {
		t.Errorf("entries of a unit: %+v, %v", got, err)
	}
	if got, err := j.Unit(unit(99)); err != nil || len(got) != 0 {
		t.Errorf("entries of an unknown unit: %v, %v", got, err)
	}
	count := 0
	for e, err := range j.Entries(4, 8) {
		if err != nil || e.Index != uint64(4+count) {
			t.Errorf("range: %d, %v", e.Index, err)
		}
		count++
		if count == 3 {
			break
		}
	}
	if count != 3 {
		t.Errorf("range gave %d", count)
	}
	closed(t, j)

	var steps []uint64
	j = mustOpen(t, path, WithProgress(func(done, total uint64) { steps = append(steps, done, total) }))
	if s, h := j.Head(); s != size || h != head {
		t.Errorf("after opening again: %d %s", s, h)
	}
	if len(steps) != 2 || steps[0] != 22 || steps[1] != 22 {
		t.Errorf("progress: %v", steps)
	}
	r, err := j.Verify(t.Context(), nil)
	if err != nil || r.Size != 22 || r.Head != head || r.IndexWrong || r.ClockSteps != 1 {
		t.Errorf("report: %+v, %v", r, err) // one clock step: the first entry's time is made up
	}
}

func TestAppendRefusals(t *testing.T) {
	j := mustOpen(t, newJournal(t))
	ok := sample(1)
	for name, change := range map[string]func(*Entry){
		"index":           func(e *Entry) { e.Index = 7 },
		"prev":            func(e *Entry) { e.Prev[3] = 1 },
		"kind":            func(e *Entry) { e.Kind = "rumour" },
		"no step":         func(e *Entry) { e.Step = "" },
		"other station":   func(e *Entry) { e.Station = "bench-2" },
		"newline":         func(e *Entry) { e.Job = "a\nb" },
		"bad UTF-8":       func(e *Entry) { e.Slot = "\xff" },
		"long":            func(e *Entry) { e.Step = strings.Repeat("s", MaxText+1) },
		"float":           func(e *Entry) { e.Payload = json.RawMessage(`{"a":1.5}`) },
		"large integer":   func(e *Entry) { e.Payload = json.RawMessage(`{"a":9007199254740992}`) },
		"array":           func(e *Entry) { e.Payload = json.RawMessage(`[1]`) },
		"twice":           func(e *Entry) { e.Payload = json.RawMessage(`{"a":1,"a":2}`) },
		"no JSON":         func(e *Entry) { e.Payload = json.RawMessage(`{"a":`) },
		"two objects":     func(e *Entry) { e.Payload = json.RawMessage(`{}{}`) },
		"large":           func(e *Entry) { e.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", MaxPayload) + `"}`) },
		"year":            func(e *Entry) { e.Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"something's key": func(e *Entry) { e.Payload = json.RawMessage(`{"key":"` + strings.Repeat("0a", 32) + `"}`) },
	} {
		e := ok
		change(&e)
		if _, err := j.Append(t.Context(), e); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	mustAppend(t, j, ok) // a refusal is no failure of the journal
	if size, _ := j.Head(); size != 2 {
		t.Errorf("size %d", size)
	}
	closed(t, j)
	if _, err := j.Append(t.Context(), ok); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if _, err := j.Unit(unit(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("unit after close: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestGuard(t *testing.T) {
	key := bytes.Repeat([]byte{0x5a, 1, 0xc3, 0x9f}, 8)
	var array [32]byte
	copy(array[:], key)
	hexKey := fmt.Sprintf("%x", key)
	for name, v := range map[string]any{
		"hex":         map[string]any{"key": hexKey},
		"upper hex":   map[string]any{"flash_key": strings.ToUpper(hexKey)},
		"base64":      map[string]any{"flashKey": key},
		"nested":      map[string]any{"a": []any{map[string]any{"secret": hexKey}}},
		"array":       map[string]any{"key": array},
		"list":        map[string]any{"keys": []string{"x", hexKey}},
		"24 bytes":    map[string]any{"key": hexKey[:48]},
		"16 bytes":    map[string]any{"key": hexKey[:32]},
		"placeholder": map[string]any{"anything": "[secret]"},
		"spaced":      map[string]any{"key": fmt.Sprintf("% x", key)},
	} {
		if _, err := MarshalPayload(v); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), hexKey[:16]) {
			t.Errorf("%s: the error echoes the key: %v", name, err)
		}
	}
	for name, v := range map[string]any{
		"fingerprint": map[string]any{"key_fingerprint": hexKey},
		"reference":   map[string]any{"key_ref": "local:" + hexKey},
		"purpose":     map[string]any{"key_purpose_0": 4, "key": "XTS_AES_128_KEY"},
		"hash":        map[string]any{"plan_sha256": hexKey, "image": hexKey},
		"words":       map[string]any{"key_block": []uint32{0, 1, 2, 3, 4, 5, 6, 7}},
		"monkey":      map[string]any{"monkey": hexKey},
		"nothing":     nil,
	} {
		if _, err := MarshalPayload(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConcurrentAppend(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	const workers, each = 16, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			last := uint64(0)
			for n := range each {
				e := sample(w)
				e.Job = fmt.Sprintf("w%d-%d", w, n)
				got, err := j.Append(t.Context(), e)
				if err != nil || got.Index <= last || got.Job != e.Job {
					t.Errorf("worker %d: %+v, %v", w, got, err)
					return
				}
				last = got.Index
				if n%8 == 0 {
					if _, err := j.Unit(e.Unit); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Go(func() { // a reader meanwhile
		for range 5 {
			if _, err := j.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	seen := map[string]bool{}
	for _, e := range all(t, j)[1:] {
		seen[e.Job] = true
	}
	if len(seen) != workers*each {
		t.Errorf("%d entries, want %d", len(seen), workers*each)
	}
	closed(t, j)
	mustOpen(t, path)
}

// TestGroupCommit shows that entries which wait together share a commit.
func TestGroupCommit(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	before := txid(t, j)
	release := holdWriter(t, j)
	const waiting = 40
	var wg sync.WaitGroup
	for n := range waiting {
		wg.Go(func() { mustAppend(t, j, sample(n)) })
	}
	waitFor(t, j, func() bool { return j.inCommit+len(j.queue) == waiting })
	release()
	wg.Wait()
	if commits := txid(t, j) - before; commits > 4 {
		t.Errorf("%d entries took %d commits", waiting, commits)
	}
}

func txid(t *testing.T, j *Journal) (id int) {
	t.Helper()
	if err := j.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}

// holdWriter keeps the writer from committing until release is called.
func holdWriter(t *testing.T, j *Journal) (release func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- j.db.Update(func(*bolt.Tx) error { close(held); <-free; return nil })
	}()
	<-held
	return func() {
		close(free)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waitFor waits until cond, which is called with mu held, is true.
func waitFor(t *testing.T, j *Journal, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		j.mu.Lock()
		ok := cond()
		j.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("what was waited for did not come")
		}
	}
}

func TestAppendCancelled(t *testing.T) {
	j := mustOpen(t, newJournal(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.Append(ctx, sample(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	release := holdWriter(t, j)
	first := make(chan error, 1)
	firstCtx, cancelFirst := context.WithCancel(t.Context())
	go func() {
		_, err := j.Append(firstCtx, sample(1))
		first <- err
	}()
	waitFor(t, j, func() bool { return j.inCommit == 1 })
	secondCtx, cancelSecond := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() {
		_, err := j.Append(secondCtx, sample(2))
		second <- err
	}()
	waitFor(t, j, func() bool { return len(j.queue) == 1 })
	cancelSecond()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in the queue: %v", err)
	}
	cancelFirst() // too late: its commit has begun
	release()
	if err := <-first; err != nil {
		t.Errorf("cancelled in its commit: %v", err)
	}
	if entries := all(t, j); len(entries) != 2 || entries[1].Unit != unit(1) {
		t.Errorf("entries: %+v", entries)
	}
}

func TestTimeFilledIn(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	j := mustOpen(t, newJournal(t), WithClock(func() time.Time { return at }))
	if got := mustAppend(t, j, sample(1)); !got.Time.Equal(at) {
		t.Errorf("time %v, want %v", got.Time, at)
	}
}

func TestOpenCancelled(t *testing.T) {
	path := newJournal(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(path, WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	mustOpen(t, path) // the lock was given back
}
