package journal

import (
	"fmt"
	"runtime"
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

// long makes a journal of n entries of about 400 bytes, with few commits.
func long(b *testing.B, n int) (path string, size int) {
	b.Helper()
	path = newJournal(b)
	j := mustOpen(b, path)
	total, head := j.Head()
	for int(total) < n {
		batch := make([]*request, min(maxBatch, n-int(total)))
		for i := range batch {
			e := sample(int(total) + i)
			e.Station, e.Time = "bench-1", time.Unix(1, 0).UTC()
			batch[i] = &request{entry: e}
		}
		var err error
		if total, head, err = j.commit(batch, total, head); err != nil {
			b.Fatal(err)
		}
		if size == 0 {
			line, _ := batch[0].entry.Canonical()
			size = len(line)
		}
	}
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
	for b.Loop() {
		if _, err := j.Verify(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkUnit measures the entries of one unit of ten thousand.
func BenchmarkUnit(b *testing.B) {
	j := mustOpen(b, newJournal(b))
	size, head := j.Head()
	for u := range 100 {
		var batch []*request
		for n := range 1000 {
			e := sample(n)
			e.Station, e.Unit = "bench-1", chip.MAC{2, 0, 0, 0, byte(u), byte(n / 10)}
			batch = append(batch, &request{entry: e})
		}
		var err error
		if size, head, err = j.commit(batch, size, head); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got, err := j.Unit(chip.MAC{2, 0, 0, 0, 50, 50}); err != nil || len(got) != 10 {
			b.Fatal(fmt.Sprint(len(got), err))
		}
	}
}
