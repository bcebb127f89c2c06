package journal

import (
	"sync"
	"testing"
	"time"
)

// TestGroupIsOneCommit: entries that wait at the same time are one commit of bbolt,
// so they share its two syncs. The number of the file's transaction counts commits;
// bbolt's own statistics are off in this program (internal/boltfile).
func TestGroupIsOneCommit(t *testing.T) {
	const group = 64
	j, err := open(newJournal(t), opening{ctx: t.Context(), now: time.Now, interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	began := txid(t, j)
	got := make([]Entry, group)
	var wg sync.WaitGroup
	for n := range group {
		wg.Go(func() { got[n] = mustAppend(t, j, sample(n)) })
	}
	waitFor(t, j, func() bool { return len(j.queue) == group })
	if txid(t, j) != began {
		t.Fatal("something was committed without the writer")
	}
	go j.write() // Open starts these two
	go j.notary()
	wg.Wait()
	after := txid(t, j)
	if after-began != 1 {
		t.Errorf("%d entries took %d commits, want 1", group, after-began)
	}
	seen := map[uint64]bool{}
	for _, e := range got {
		seen[e.Index] = true
	}
	if len(seen) != group || !seen[1] || !seen[group] {
		t.Errorf("indexes %v", seen)
	}
	// One after the other each is a commit: what is counted does count.
	for n := range group {
		mustAppend(t, j, sample(n))
	}
	if n := txid(t, j) - after; n != group {
		t.Errorf("%d entries one by one took %d commits", group, n)
	}
	closed(t, j)
	if seen := all(t, mustOpen(t, j.path)); len(seen) != 1+2*group {
		t.Errorf("%d entries", len(seen))
	}
}
