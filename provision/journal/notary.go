package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// While entries come, signing begins every signInterval, and a signer or an anchor
// that does not answer is given up after noticePatience and asked again with the
// next checkpoint. So the oldest entry that no checkpoint covers is at most
// 2 × signInterval old, also if the signer takes its time: it was missed by one
// signing and is in the next, which begins signInterval after that at the latest,
// or when the anchor is given up. Whoever asks for a checkpoint waits for longer.
const (
	signInterval   = 5 * time.Second
	noticePatience = 2500 * time.Millisecond // of the signer, and of the anchor
	signPatience   = 10 * time.Second        // at Init, Checkpoint and Close
)

// wakeNotary is called after every commit, and never blocks.
func (j *Journal) wakeNotary() {
	select {
	case j.grown <- struct{}{}:
	default: // it will look anyway
	}
}

// notary signs checkpoints until the journal is closed, and one more then.
func (j *Journal) notary() {
	defer close(j.ended)
	timer := time.NewTimer(j.interval)
	timer.Stop()
	waiting := false
	next := j.interval // until signing may begin
	for {
		select {
		case _, open := <-j.grown:
			if !open {
				timer.Stop()
				_ = j.witness(context.Background(), signPatience) // Close tells signErr
				return
			}
		case <-timer.C:
			waiting = false
			began := time.Now()
			_ = j.witness(context.Background(), noticePatience) // the error is kept
			next = max(0, j.interval-time.Since(began))
		}
		if !waiting && j.toSign() {
			timer.Reset(next)
			waiting, next = true, j.interval
		}
	}
}

// toSign reports whether there is something to sign or to anchor.
func (j *Journal) toSign() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed == nil && j.signer != nil &&
		(j.size > j.signed.Size || j.anchor != nil && j.anchored < j.signed.Size)
}

// witness signs the journal as it is now, unless that was done already, stores
// the checkpoint in the database and the copy, which is synced, and anchors it.
func (j *Journal) witness(ctx context.Context, patience time.Duration) error {
	j.signing.Lock()
	defer j.signing.Unlock()
	if !j.toSign() {
		return nil
	}
	err := j.signTip(ctx, patience)
	if !errors.Is(err, ErrFailed) { // a signer that is away is no reason not to compare
		if aerr := j.anchorSigned(ctx, patience); aerr != nil && (err == nil || errors.Is(aerr, ErrFailed)) {
			err = aerr
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.signErr = err
	return err
}

func (j *Journal) signTip(ctx context.Context, patience time.Duration) error {
	j.mu.Lock()
	c := Checkpoint{
		Journal: j.info.ID, Station: j.info.Station, Generation: j.info.Generation(),
		Size: j.size, Root: j.tree.root(), Time: j.now(),
	}
	done := j.signed.Size == j.size
	j.mu.Unlock()
	if done {
		return nil
	}
	own, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := sign(own, j.signer, c)
	if err != nil {
		return fmt.Errorf("journal %s: no checkpoint could be signed: %w", j.path, err)
	}
	err = j.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketCheckpoints)
		b.FillPercent = fillPercent
		return b.Put(indexKey(c.Size), c.Note)
	})
	if err == nil {
		err = j.copy.write(append(checkpointLine(c), '\n'))
	}
	if err == nil {
		err = j.copy.sync()
	}
	if err != nil {
		return j.fail(fmt.Errorf("a checkpoint could not be written: %w", err))
	}
	j.mu.Lock()
	j.signed = c
	j.mu.Unlock()
	return nil
}

// anchorSigned gives the newest checkpoint to the anchor, which is compared before
// if it was away at Open.
func (j *Journal) anchorSigned(ctx context.Context, patience time.Duration) error {
	j.mu.Lock()
	c, done := j.signed, j.anchored
	j.mu.Unlock()
	if j.anchor == nil || done == c.Size {
		return nil
	}
	own, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := j.compare(own); err != nil {
		return err
	}
	if err := j.anchor.PutCheckpoint(own, c); errors.Is(err, ErrAnchorTaken) {
		// Somebody else writes this station's history.
		return j.fail(err)
	} else if err != nil {
		return fmt.Errorf("journal %s: the checkpoint of %d entries is not anchored: %w", j.path, c.Size, err)
	}
	j.mu.Lock()
	j.anchored = c.Size
	j.mu.Unlock()
	return nil
}

// fail stops all writing.
func (j *Journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		j.failed = err
	}
	return fmt.Errorf("%w: %s: %w", ErrFailed, j.path, err)
}

// Checkpoint signs a checkpoint of the journal as it is now, if the newest one is
// older, anchors it, and gives it.
func (j *Journal) Checkpoint(ctx context.Context) (Checkpoint, error) {
	if j.signer == nil {
		return Checkpoint{}, fmt.Errorf("%w: %s: there is no signing key %s", ErrKey, j.path, KeyPath(j.path))
	}
	if err := j.witness(ctx, signPatience); err != nil {
		return Checkpoint{}, err
	}
	return j.LastCheckpoint()
}

// LastCheckpoint gives the newest checkpoint, and why the last try to sign or
// anchor a newer one did not work, if it did not.
func (j *Journal) LastCheckpoint() (Checkpoint, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.signed, j.signErr
}
