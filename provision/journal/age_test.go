package journal

import (
	"context"
	"iter"
	"testing"
	"testing/synctest"
	"time"
)

// slowSigner takes its time.
type slowSigner struct {
	Signer
	takes time.Duration
}

func (s slowSigner) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	select {
	case <-time.After(s.takes):
		return s.Signer.Sign(ctx, msg)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hungAnchor never answers.
type hungAnchor struct{}

func (hungAnchor) PutCheckpoint(ctx context.Context, _ Checkpoint) error {
	<-ctx.Done()
	return ctx.Err()
}

func (hungAnchor) Checkpoints(context.Context) iter.Seq2[Checkpoint, error] {
	return func(func(Checkpoint, error) bool) {}
}

// TestCheckpointAge: while entries come, none is older than ten seconds without a
// checkpoint that covers it, with the interval of a real station; also if the
// signer is slow and the anchor is gone. And when they stop, all are covered.
func TestCheckpointAge(t *testing.T) {
	for name, c := range map[string]struct {
		signer time.Duration
		anchor Anchor
		every  time.Duration
	}{
		"key beside it":          {0, nil, 500 * time.Millisecond},
		"seldom":                 {0, nil, 7 * time.Second},
		"slow signer":            {2 * time.Second, nil, 500 * time.Millisecond},
		"no anchor":              {0, hungAnchor{}, 500 * time.Millisecond},
		"slow signer, no anchor": {2 * time.Second, hungAnchor{}, 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			path := newJournal(t)
			key, err := LoadKey(KeyPath(path))
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				options := []Option{WithSigner(slowSigner{key, c.signer})}
				if c.anchor != nil {
					options = append(options, WithAnchor(c.anchor))
				}
				j, err := Open(path, options...)
				if err != nil {
					t.Fatal(err)
				}
				added := []time.Time{time.Now()} // by index
				worst, checkpoints := time.Duration(0), map[uint64]bool{}
				look := func() {
					signed, _ := j.LastCheckpoint()
					checkpoints[signed.Size] = true
					if signed.Size < uint64(len(added)) {
						worst = max(worst, time.Since(added[signed.Size]))
					}
				}
				wait := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); look() {
						time.Sleep(100 * time.Millisecond)
					}
				}
				for began := time.Now(); time.Since(began) < time.Minute; wait(c.every) {
					e, err := j.Append(t.Context(), sample(1))
					if err != nil || e.Index != uint64(len(added)) {
						t.Fatalf("entry %d: %v", e.Index, err)
					}
					added = append(added, time.Now())
				}
				wait(10 * time.Second) // nothing comes any more
				if worst > 10*time.Second || worst < 4*time.Second {
					t.Errorf("the oldest entry without a checkpoint was %v old", worst)
				}
				if c, _ := j.LastCheckpoint(); c.Size != uint64(len(added)) {
					t.Errorf("%d of %d entries are covered 10 s after the last", c.Size, len(added))
				}
				if len(checkpoints) > 16 {
					t.Errorf("%d checkpoints in a minute", len(checkpoints))
				}
				t.Logf("%v, %d checkpoints for %d entries", worst, len(checkpoints), len(added))
				if err := j.Close(); (err != nil) != (c.anchor != nil) {
					t.Errorf("close: %v", err)
				}
			})
		})
	}
}
