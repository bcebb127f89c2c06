package journal

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// flaky is an anchor that is away at times, and counts what is put to it.
type flaky struct {
	*DirAnchor
	mu      sync.Mutex
	away    bool
	answers int // of Checkpoints, before the anchor is away again; 0: no bound
	puts    int
}

var errNoVault = fmt.Errorf("%w: no network", ErrAnchorAway)

func (f *flaky) set(away bool, answers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.answers = away, answers
}

func (f *flaky) put() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts
}

func (f *flaky) PutCheckpoint(ctx context.Context, c Checkpoint) error {
	f.mu.Lock()
	f.puts++
	away := f.away
	f.mu.Unlock()
	if away {
		return errNoVault
	}
	return f.DirAnchor.PutCheckpoint(ctx, c)
}

func (f *flaky) Checkpoints(ctx context.Context) iter.Seq2[Checkpoint, error] {
	return func(yield func(Checkpoint, error) bool) {
		f.mu.Lock()
		away, answers := f.away, f.answers
		f.answers = 0 // the next time all of them
		f.mu.Unlock()
		if away {
			yield(Checkpoint{}, errNoVault)
			return
		}
		n := 0
		for c, err := range f.DirAnchor.Checkpoints(ctx) {
			if n++; answers > 0 && n > answers {
				yield(Checkpoint{}, errNoVault)
				return
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// TestAnchorLater: a journal that is opened while its anchor is away is compared
// before the anchor gets a checkpoint of it. The right one goes on; an older
// database with its older copy takes no more entries, whether it has grown past the
// anchored one meanwhile or not.
func TestAnchorLater(t *testing.T) {
	for name, c := range map[string]struct {
		old     bool
		grow    int // entries while the anchor is away
		answers int
		reason  string
	}{
		"the right one":                   {grow: 2},
		"older":                           {old: true, grow: 1, reason: "it has 6 entries, and there is a checkpoint of 9"},
		"older, nothing new":              {old: true, reason: "it has 5 entries, and there is a checkpoint of 9"},
		"older, grown past it":            {old: true, grow: 20, reason: "its first 9 entries are not those"},
		"older, the anchor goes away":     {old: true, grow: 20, answers: 1, reason: "its first 9 entries are not those"},
		"right, the anchor goes away too": {grow: 2, answers: 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := NewDirAnchor(t.TempDir(), "bench-1")
			if err != nil {
				t.Fatal(err)
			}
			anchor := &flaky{DirAnchor: dir}
			path := newJournal(t)
			grow := func() {
				t.Helper()
				j := mustOpen(t, path, WithAnchor(anchor))
				for range 4 {
					mustAppend(t, j, sample(1))
				}
				closed(t, j)
			}
			grow() // 5
			old := map[string][]byte{}
			for _, f := range []string{path, CopyPath(path)} {
				if old[f], err = os.ReadFile(f); err != nil {
					t.Fatal(err)
				}
			}
			grow() // 9
			if c.old {
				for f, b := range old {
					if err := os.WriteFile(f, b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}

			anchor.set(true, 0)
			if _, err := Open(path, WithAnchor(anchor)); !errors.Is(err, ErrAnchorAway) {
				t.Fatalf("without WithAnchorLater: %v", err)
			}
			puts := anchor.put()
			j := mustOpen(t, path, WithAnchor(anchor), WithAnchorLater(), WithInterval(time.Hour))
			if err := j.Anchored(); !errors.Is(err, ErrAnchorAway) || errors.Is(err, ErrAnchor) {
				t.Errorf("before it was compared: %v", err)
			}
			for range c.grow {
				mustAppend(t, j, sample(3))
			}
			if _, err := j.Checkpoint(t.Context()); !errors.Is(err, ErrAnchorAway) {
				t.Errorf("checkpoint while the anchor is away: %v", err)
			}
			mayAppend := mustAppend(t, j, sample(3))
			if anchor.put() != puts {
				t.Error("a checkpoint was put to an anchor that was not asked")
			}

			anchor.set(false, c.answers)
			_, err = j.Checkpoint(t.Context())
			if !c.old {
				newest, ferr := FindPredecessor(t.Context(), anchor, j.Info().ID)
				if err != nil || ferr != nil || j.Anchored() != nil || newest.Size != mayAppend.Index+1 {
					t.Errorf("%v, %v, %v; %d are anchored, want %d", err, ferr, j.Anchored(), newest.Size, mayAppend.Index+1)
				}
				mustAppend(t, j, sample(1))
				closed(t, j)
				closed(t, mustOpen(t, path, WithAnchor(anchor)))
				return
			}
			_, appended := j.Append(t.Context(), sample(3))
			for what, err := range map[string]error{"checkpoint": err, "state": j.Anchored(), "append": appended, "close": j.Close()} {
				var fault *AnchorError
				reason := strings.Replace(c.reason, fmt.Sprintf("it has %d", 5+c.grow), fmt.Sprintf("it has %d", 6+c.grow), 1)
				if !errors.As(err, &fault) || fault.Common != 4 || !strings.Contains(err.Error(), reason) ||
					!strings.Contains(err.Error(), "entry 4 is the last") || errors.Is(err, ErrAnchorAway) {
					t.Errorf("%s: %v", what, err)
				}
				if what != "state" && !errors.Is(err, ErrFailed) {
					t.Errorf("%s is no failure: %v", what, err)
				}
			}
			if anchor.put() != puts {
				t.Error("the anchor was given a checkpoint of another history")
			}
		})
	}
}

// TestAnchorLaterByItself: nobody needs to ask for the comparison, and no entry has
// to come.
func TestAnchorLaterByItself(t *testing.T) {
	dir, err := NewDirAnchor(t.TempDir(), "bench-1")
	if err != nil {
		t.Fatal(err)
	}
	anchor := &flaky{DirAnchor: dir}
	closed(t, mustOpen(t, newJournal(t), WithAnchor(anchor))) // another journal of the station
	anchor.set(true, 0)
	j := mustOpen(t, newJournal(t), WithAnchor(anchor), WithAnchorLater(), WithInterval(time.Millisecond))
	waitFor(t, j, func() bool { return j.signErr != nil })
	mustAppend(t, j, sample(1))
	anchor.set(false, 0)
	waitFor(t, j, func() bool { return j.failed != nil })
	if err := j.Anchored(); !errors.Is(err, ErrAnchor) || !strings.Contains(err.Error(), "no entry is known to be in both") {
		t.Error(err)
	}
	if err := j.Close(); !errors.Is(err, ErrAnchor) {
		t.Error(err)
	}
}
