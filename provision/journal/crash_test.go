package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// The test binary is its own child: with this variable it appends to the
// journal that the variable names.
const (
	envAppend = "PROVISIOND_TEST_JOURNAL_APPEND"
	envLimit  = "PROVISIOND_TEST_JOURNAL_LIMIT" // bytes the file may have
	envOpen   = "PROVISIOND_TEST_JOURNAL_OPEN"  // a journal to open and to close
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envAppend); path != "" {
		os.Exit(appendUntilKilled(path))
	}
	if path := os.Getenv(envOpen); path != "" {
		j, err := Open(path)
		if err == nil {
			err = j.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		status, _ := os.ReadFile("/proc/self/status") // with the most memory that it had
		fmt.Println(string(status))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// appendUntilKilled appends from several goroutines and writes the index and
// job of every acknowledged entry to stdout.
func appendUntilKilled(path string) int {
	j, err := Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if limit, err := strconv.ParseUint(os.Getenv(envLimit), 10, 64); err == nil {
		return appendUntilFull(j, limit)
	}
	var out sync.Mutex
	for w := range 4 {
		go func() {
			for n := 0; ; n++ {
				e := sample(w)
				e.Job = fmt.Sprintf("%d-%d-%d", os.Getpid(), w, n)
				got, err := j.Append(context.Background(), e)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(3)
				}
				out.Lock()
				fmt.Printf("%d %s\n", got.Index, got.Job)
				out.Unlock()
			}
		}()
	}
	select {}
}

// appendUntilFull makes writes beyond limit fail with a real error of the
// operating system, and reports what Append says then.
func appendUntilFull(j *Journal, limit uint64) int {
	signal.Ignore(syscall.SIGXFSZ) // so that the write fails and the process lives
	var old syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old)
	if err == nil {
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: old.Max})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	before, _ := j.Head()
	acknowledged := 0
	for ; err == nil && acknowledged < 100000; acknowledged++ {
		_, err = j.Append(context.Background(), sample(acknowledged))
	}
	acknowledged--
	errLimit := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old) // there is room again
	_, again := j.Append(context.Background(), sample(0))
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), syscall.EFBIG.Error()) || !errors.Is(again, ErrFailed) || errLimit != nil {
		fmt.Fprintf(os.Stderr, "after %d: %v; again: %v; %v\n", acknowledged, err, again, errLimit)
		return 3
	}
	if size, _ := j.Head(); size != before+uint64(acknowledged) {
		fmt.Fprintf(os.Stderr, "head %d after %d\n", size, acknowledged)
		return 4
	}
	fmt.Println(acknowledged)
	if err := j.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 5
	}
	return 0
}

// TestKill kills a process that appends, again and again, and looks that no
// acknowledged entry is lost.
func TestKill(t *testing.T) {
	path := newJournal(t)
	acknowledged := map[uint64]string{}
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envAppend+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(stdout)
		read := func() error {
			line, err := lines.ReadString('\n')
			if err != nil {
				return err // a line without its end was not acknowledged to anybody
			}
			index, job, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			i, err := strconv.ParseUint(index, 10, 64)
			if err != nil {
				return err
			}
			acknowledged[i] = job
			return nil
		}
		for range 20 + 7*round { // another place each time
			if err := read(); err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; {
			err = read() // what it had written before it died
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("the child ended by itself: %v: %s", err, stderr.String())
		}

		j := mustOpen(t, path) // verifies the chain
		entries := all(t, j)
		for i, job := range acknowledged {
			if i >= uint64(len(entries)) || entries[i].Job != job {
				t.Fatalf("round %d: acknowledged entry %d (%s) is lost; the journal has %d", round, i, job, len(entries))
			}
		}
		jobs := map[string]bool{}
		for _, e := range entries[1:] {
			if jobs[e.Job] {
				t.Fatalf("entry %d (%s) is there twice", e.Index, e.Job)
			}
			jobs[e.Job] = true
		}
		if info := j.Info(); info.IndexRebuilt || info.TornCommit {
			t.Errorf("after a kill: %+v", info)
		}
		closed(t, j)
	}
	t.Logf("%d acknowledged entries", len(acknowledged))
}

// TestFull lets the operating system refuse a write.
func TestFull(t *testing.T) {
	path := newJournal(t)
	for _, limit := range []int{1 << 17, 1 << 19} {
		before := len(reopen(t, path))
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envAppend+"="+path, envLimit+"="+strconv.Itoa(limit))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		acknowledged, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil || acknowledged == 0 {
			t.Fatalf("child said %q", out)
		}
		j := mustOpen(t, path)
		entries := all(t, j)
		// The entry of the failed write may be there or not.
		if extra := len(entries) - before - acknowledged; extra != 0 && extra != 1 {
			t.Errorf("limit %d: %d entries, %d were acknowledged after %d", limit, len(entries), acknowledged, before)
		}
		mustAppend(t, j, sample(1)) // with room, it goes on
		closed(t, j)
	}
}

func reopen(t *testing.T, path string) []Entry {
	t.Helper()
	j := mustOpen(t, path)
	defer closed(t, j)
	return all(t, j)
}

// damagedCopy writes a changed copy of a journal file and opens it.
func damagedCopy(t *testing.T, dir string, content []byte) (*Journal, error) {
	t.Helper()
	path := dir + "/copy.db"
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(CopyPath(path)); err != nil { // it would tell more
		t.Fatal(err)
	}
	return Open(path)
}

// TestEveryFlippedByteOfEntries flips each byte of every entry, in the file.
func TestEveryFlippedByteOfEntries(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 3 {
		mustAppend(t, j, sample(n))
	}
	entries := all(t, j)
	closed(t, j)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, flipped := t.TempDir(), 0
	for _, e := range entries {
		line, err := e.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		// bbolt copies pages when it writes: stale copies are still in the file.
		var places []int
		for at := 0; ; {
			n := bytes.Index(content[at:], line)
			if n < 0 {
				break
			}
			places = append(places, at+n)
			at += n + 1
		}
		for i := range line {
			changed := bytes.Clone(content)
			for _, at := range places {
				changed[at+i] ^= 1 << (i % 8)
			}
			flipped++
			j, err := damagedCopy(t, dir, changed)
			var damaged *DamagedError
			if !errors.As(err, &damaged) {
				t.Fatalf("entry %d, byte %d (%q): %v", e.Index, i, line[i], err)
			}
			// The chain blames the entry itself, or the next one for a change
			// that leaves the entry well-formed.
			if damaged.Index != int64(e.Index) && damaged.Index != int64(e.Index)+1 {
				t.Errorf("entry %d, byte %d: blamed %d: %v", e.Index, i, damaged.Index, err)
			}
			if j != nil {
				t.Fatal("a journal beside an error")
			}
		}
	}
	t.Logf("%d flips found", flipped)
}

// TestEveryFlippedByteOfFile flips bytes all over the file, bbolt's own pages
// included. Open finds it, or the entries are all there and unchanged; or the
// flip hit the newest meta page, and TornCommit says so.
func TestEveryFlippedByteOfFile(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 30 {
		mustAppend(t, j, sample(n))
	}
	want := fmt.Sprint(all(t, j))
	closed(t, j)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	found, same, torn := 0, 0, 0
	stride := max(1, len(content)/700)
	if stride%2 == 0 {
		stride++ // not in step with the fields of pages
	}
	for at := range content {
		// All of the meta pages' and page headers' bytes, and a part of the rest.
		if page := at % os.Getpagesize(); page >= 88 && at%stride != 0 {
			continue
		}
		if content[at] == 0 && at%os.Getpagesize() >= 88 && at%(4*stride) != 0 {
			continue // mostly empty space
		}
		changed := bytes.Clone(content)
		changed[at] ^= 0x41
		j, err := damagedCopy(t, dir, changed)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", at, err)
			}
			found++
			continue
		}
		got := fmt.Sprint(all(t, j))
		switch {
		case got == want && j.Info().TornCommit: // only the last checkpoint is gone
			torn++
		case got == want:
			same++
		case j.Info().TornCommit && strings.HasPrefix(want, strings.TrimSuffix(got, "]")):
			torn++
		default:
			t.Errorf("byte %d: the entries changed and nobody noticed", at)
		}
		closed(t, j)
	}
	t.Logf("%d found, %d without effect, %d torn", found, same, torn)
	if found == 0 || torn == 0 {
		t.Error("the test flipped nothing that matters")
	}
}

// TestCutFile cuts the file at many lengths: an error, never a SIGBUS.
func TestCutFile(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 30 {
		mustAppend(t, j, sample(n))
	}
	closed(t, j)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for cut := 0; cut < len(content); cut += 1000 {
		j, err := damagedCopy(t, dir, content[:cut])
		if err == nil { // only unused pages at the end are missing
			if got := len(all(t, j)); got != 31 {
				t.Errorf("cut at %d: %d entries and no error", cut, got)
			}
			closed(t, j)
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

// TestEveryMutation changes the stored entries through bbolt, so that its own
// structure stays sound, and looks which entry is blamed.
func TestEveryMutation(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 10 {
		mustAppend(t, j, sample(n))
	}
	lines, err := j.lines(0, 11)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, j)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	other := mustOpen(t, newJournal(t))
	for n := range 10 {
		mustAppend(t, other, sample(n))
	}
	foreign, err := other.lines(0, 11)
	if err != nil {
		t.Fatal(err)
	}

	// rechain gives entry i another payload and makes all later ones follow it.
	rechain := func(lines [][]byte, i int) [][]byte {
		out := append([][]byte(nil), lines...)
		var prev Hash
		for n := range out {
			e, err := ParseEntry(out[n])
			if err != nil {
				t.Fatal(err)
			}
			e.Prev = prev
			if n == i {
				e.Payload = []byte(`{"forged":true}`)
			}
			if out[n], err = e.Canonical(); err != nil {
				t.Fatal(err)
			}
			prev = HashLine(out[n])
		}
		return out
	}
	without := func(i int) [][]byte {
		out := append([][]byte(nil), lines...)
		out[i] = nil
		return out
	}
	swapped := append([][]byte(nil), lines...)
	swapped[4], swapped[5] = swapped[5], swapped[4]
	doubled := append([][]byte(nil), lines...)
	doubled[6] = doubled[5]
	spliced := append([][]byte(nil), lines...)
	spliced[7] = foreign[7]
	renamed := append([][]byte(nil), lines...)
	last, err := ParseEntry(lines[10])
	if err != nil {
		t.Fatal(err)
	}
	last.Station = "bench-2"
	if renamed[10], err = last.Canonical(); err != nil {
		t.Fatal(err)
	}
	spaced := append([][]byte(nil), lines...)
	spaced[3] = append(bytes.Clone(lines[3]), '\n')

	for _, c := range []struct {
		name  string
		lines [][]byte
		index int64
	}{
		{"dropped", without(5), 5},
		{"first dropped", without(0), 0},
		{"last dropped", without(10), 10},
		{"added behind the head", append(append([][]byte(nil), lines...), lines[10]), 11},
		{"swapped", swapped, 4},
		{"doubled", doubled, 6},
		{"spliced", spliced, 7},
		{"white space", spaced, 3},
		{"another station", renamed, 10},
		{"rewritten and chained again", rechain(lines, 4), 4}, // the stored tree disagrees
		{"another journal's", foreign, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/copy.db", content, 0o600); err != nil {
				t.Fatal(err)
			}
			edit(t, dir+"/copy.db", c.lines)
			_, err := Open(dir + "/copy.db")
			var damaged *DamagedError
			if !errors.As(err, &damaged) || damaged.Index != c.index {
				t.Fatalf("%v, want entry %d blamed", err, c.index)
			}
		})
	}
}

// edit makes lines the content of the bucket of entries.
func edit(t *testing.T, path string, lines [][]byte) {
	t.Helper()
	db := openBolt(t, path)
	defer func() { _ = db.Close() }()
	err := db.Update(func(tx *boltTx) error {
		if err := tx.DeleteBucket(bucketEntries); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucketEntries)
		for i, line := range lines {
			if line != nil && err == nil {
				err = b.Put(binary.BigEndian.AppendUint64(nil, uint64(i)), line)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIndexIsRebuilt spoils the index by unit in several ways.
func TestIndexIsRebuilt(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 20 {
		mustAppend(t, j, sample(n))
	}
	want, err := j.Unit(unit(3))
	if err != nil {
		t.Fatal(err)
	}
	closed(t, j)
	for name, spoil := range map[string]func(b *boltBucket) error{
		"row missing": func(b *boltBucket) error { return b.Delete(unitKey(unit(3), want[1].Index)) },
		"row added":   func(b *boltBucket) error { return b.Put(unitKey(unit(3), 2), []byte{1}) },
		"row moved": func(b *boltBucket) error {
			return errors.Join(b.Delete(unitKey(unit(3), want[1].Index)), b.Put(unitKey(unit(4), want[1].Index), []byte{1}))
		},
		"strange row": func(b *boltBucket) error { return b.Put([]byte("x"), []byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			db := openBolt(t, path)
			err := db.Update(func(tx *boltTx) error { return spoil(tx.Bucket(bucketUnits)) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			j := mustOpen(t, path)
			defer closed(t, j)
			if !j.Info().IndexRebuilt {
				t.Error("nobody noticed")
			}
			got, err := j.Unit(unit(3))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("entries of the unit: %v, %v", got, err)
			}
			if r, err := j.Verify(t.Context(), nil); err != nil || r.IndexWrong {
				t.Errorf("report: %+v, %v", r, err)
			}
		})
	}
}

// TestShrinkingFile cuts the file under an open journal: bbolt's map of it then
// faults, which is an error and not the end of the process.
func TestShrinkingFile(t *testing.T) {
	path := newJournal(t)
	j := mustOpen(t, path)
	for n := range 50 {
		mustAppend(t, j, sample(n))
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Verify(t.Context(), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: %v", err)
	}
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrFailed) {
		t.Errorf("append: %v", err)
	}
	if _, err := j.Append(t.Context(), sample(1)); !errors.Is(err, ErrFailed) {
		t.Errorf("append again: %v", err)
	}
}
