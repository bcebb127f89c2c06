package journal

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
)

// BenchmarkAppend measures one goroutine: a commit per entry.
func BenchmarkAppend(b *testing.B) {
	j := mustOpen(b, newJournal(b))
	for n := 0; b.Loop(); n++ {
		mustAppend(b, j, sample(n))
	}
}

// BenchmarkAppend16 measures 16 slots that append at the same time.
func BenchmarkAppend16(b *testing.B) {
	j := mustOpen(b, newJournal(b))
	b.SetParallelism(max(1, 16/runtime.GOMAXPROCS(0)))
	if err := j.db.View(func(*bolt.Tx) error { return nil }); err != nil {
		b.Fatal(err)
	}
	before := benchTxid(b, j)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for n := 0; pb.Next(); n++ {
			if _, err := j.Append(b.Context(), sample(n)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/float64(benchTxid(b, j)-before), "entries/commit")
}

func benchTxid(b *testing.B, j *Journal) (id int) {
	if err := j.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		b.Fatal(err)
	}
	return id
}

// long makes a journal of n entries of about 400 bytes, 30 for every unit as a
// station writes them, with few commits and one checkpoint.
func long(b *testing.B, n int) (path string, size int) {
	b.Helper()
	path = newJournal(b)
	j := mustOpen(b, path)
	at := j.tip
	for int(at.size) < n {
		batch := make([]*request, min(20*maxBatch, n-int(at.size)))
		for i := range batch {
			k := int(at.size) + i
			e := sample(k)
			e.Station, e.Time = "bench-1", time.Unix(int64(k), 0).UTC()
			e.Unit = chip.MAC{2, 0, byte(k / 30 >> 24), byte(k / 30 >> 16), byte(k / 30 >> 8), byte(k / 30)}
			batch[i] = &request{entry: e}
		}
		var err error
		if at, err = j.commit(batch, at); err == nil {
			err = j.mirror(batch)
		}
		if err != nil {
			b.Fatal(err)
		}
		if size == 0 {
			size = len(batch[0].line)
		}
	}
	j.mu.Lock()
	j.tip = at
	j.mu.Unlock()
	closed(b, j)
	return path, size
}

// BenchmarkOpen measures the start of a station: structure, encoding, chain and
// index of 100,000 entries.
func BenchmarkOpen(b *testing.B) {
	const n = 100_000
	path, size := long(b, n)
	for b.Loop() {
		closed(b, mustOpen(b, path))
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(size), "B/entry")
}

// BenchmarkVerify measures Verify of an open journal of 100,000 entries.
func BenchmarkVerify(b *testing.B) {
	const n = 100_000
	path, _ := long(b, n)
	j := mustOpen(b, path)
	before := cpuTime(b)
	for b.Loop() {
		if _, err := j.Verify(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	// On a machine that does other things too, this tells more.
	b.ReportMetric(float64(cpuTime(b)-before)/float64(n)/float64(b.N), "cpu-ns/entry")
}

// cpuTime is what this process has used of all processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkUnit measures the entries of one unit of ten thousand.
func BenchmarkUnit(b *testing.B) {
	j := mustOpen(b, newJournal(b))
	at := j.tip
	for u := range 100 {
		var batch []*request
		for n := range 1000 {
			e := sample(n)
			e.Station, e.Unit = "bench-1", chip.MAC{2, 0, 0, 0, byte(u), byte(n / 10)}
			batch = append(batch, &request{entry: e})
		}
		var err error
		if at, err = j.commit(batch, at); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got, err := j.Unit(chip.MAC{2, 0, 0, 0, 50, 50}); err != nil || len(got) != 10 {
			b.Fatal(fmt.Sprint(len(got), err))
		}
	}
}

// BenchmarkOpenTenMillion opens a journal of ten million entries, made once for
// all rounds (about 6 GB below TMPDIR), and says how much memory that takes and
// how long Verify takes. It runs only if it is named in PROVISIOND_BENCH.
func BenchmarkOpenTenMillion(b *testing.B) {
	if os.Getenv("PROVISIOND_BENCH") != "tenmillion" {
		b.Skip("needs 12 GB of disk and some minutes: set PROVISIOND_BENCH=tenmillion")
	}
	n := 10_000_000
	if v, err := strconv.Atoi(os.Getenv("PROVISIOND_BENCH_ENTRIES")); err == nil {
		n = v
	}
	path, size := long(b, n)
	runtime.GC()
	debug.FreeOSMemory()
	for b.Loop() {
		closed(b, mustOpen(b, path))
	}
	b.ReportMetric(float64(size), "B/entry")
	b.ReportMetric(float64(freshOpen(b, path))/1e6, "MB")
	j := mustOpen(b, path)
	start := time.Now()
	if _, err := j.Verify(b.Context(), nil, WithoutCopy()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "verified/s")
	start = time.Now()
	if _, err := j.Verify(b.Context(), nil, WholeFile()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "verified+file+copy/s")
}

// freshOpen opens the journal in a process of its own and gives the most memory
// that it had, in bytes, pages of the mapped file included. The process says it
// itself: what wait4 tells begins with the memory of the process that forked.
func freshOpen(b *testing.B, path string) (n int64) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envOpen+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(out), "VmHWM:")
	if _, err := fmt.Sscan(after, &n); err != nil {
		b.Fatalf("%v in %q", err, out)
	}
	return n << 10
}
