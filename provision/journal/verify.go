package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Report is the outcome of a successful Verify.
type Report struct {
	Size       uint64 // entries checked
	Head       Hash   // hash of the last of them
	First      time.Time
	Last       time.Time
	ClockSteps uint64 // entries whose time lies before that of the entry before
	IndexWrong bool   // the index by unit does not agree: Reindex mends it
}

// Verify checks every entry up to the head as it is when Verify begins:
// encoding, index, hash chain, head and index by unit. Appending goes on
// meanwhile. A fault in the entries is a *DamagedError.
func (j *Journal) Verify(ctx context.Context, progress Progress) (Report, error) {
	size, head := j.Head()
	v := &verifier{j: j, size: size, head: head}
	if err := v.run(ctx, progress); err != nil {
		return Report{}, err
	}
	return Report{
		Size: size, Head: head, First: v.first.Time, Last: v.last,
		ClockSteps: v.clockSteps, IndexWrong: v.indexWrong,
	}, nil
}

// verifier walks the entries from the first to the head.
type verifier struct {
	j    *Journal
	size uint64
	head Hash

	next       uint64
	prev       Hash
	first      Entry
	last       time.Time
	clockSteps uint64
	inIndex    uint64 // entries that have a unit
	indexWrong bool
}

// entriesPerCheck bounds how long a read transaction of the verifier is open.
const entriesPerCheck = 4096

func (v *verifier) run(ctx context.Context, progress Progress) error {
	if v.size == 0 {
		return v.j.damaged(NoIndex, "it has no entries")
	}
	for v.next < v.size {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("journal %s: check stopped at entry %d of %d: %w", v.j.path, v.next, v.size, err)
		}
		if err := v.j.explain(v.j.db.View(v.some)); err != nil {
			return err
		}
		if progress != nil {
			progress(v.next, v.size)
		}
	}
	if v.prev != v.head {
		return v.j.damaged(int64(v.size-1), "its hash is not the head's")
	}
	return v.j.explain(v.j.db.View(v.end))
}

// some checks the next entries.
func (v *verifier) some(tx *bolt.Tx) error {
	units := tx.Bucket(bucketUnits)
	c := tx.Bucket(bucketEntries).Cursor()
	k, line := c.Seek(indexKey(v.next))
	for n := 0; n < entriesPerCheck && v.next < v.size; n++ {
		if !bytes.Equal(k, indexKey(v.next)) {
			return v.j.damaged(int64(v.next), "it is missing")
		}
		if err := v.one(line, units); err != nil {
			return err
		}
		k, line = c.Next()
	}
	return nil
}

func (v *verifier) one(line []byte, units *bolt.Bucket) error {
	e, err := v.j.check(v.next, line)
	if err != nil {
		return err
	}
	if e.Prev != v.prev {
		return v.j.damaged(int64(v.next), "it does not follow the entry before it: one of the two was changed")
	}
	if v.next == 0 {
		v.first = e
	} else if e.Time.Before(v.last) {
		v.clockSteps++
	}
	if e.Station != v.first.Station {
		return v.j.damaged(int64(v.next), "it names another station than entry 0")
	}
	if e.Unit != (chip.MAC{}) {
		v.inIndex++
		if units.Get(unitKey(e.Unit, v.next)) == nil {
			v.indexWrong = true
		}
	}
	v.last = e.Time
	v.prev = HashLine(line)
	v.next++
	return nil
}

// end looks for what should not be there: entries behind the head, and rows of
// the index that no entry has. While entries are being appended both may only
// have grown together with the head.
func (v *verifier) end(tx *bolt.Tx) error {
	stored := tx.Bucket(bucketMeta).Get(keyHead)
	if len(stored) < 8 || binary.BigEndian.Uint64(stored) < v.size {
		return v.j.damaged(NoIndex, "its stored head is behind its entries")
	}
	size := binary.BigEndian.Uint64(stored)
	if k, _ := tx.Bucket(bucketEntries).Cursor().Last(); !bytes.Equal(k, indexKey(size-1)) {
		return v.j.damaged(int64(size), "it lies behind the head")
	}
	rows := uint64(0)
	c := tx.Bucket(bucketUnits).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if len(k) != 14 {
			v.indexWrong = true
		} else if binary.BigEndian.Uint64(k[6:]) < v.size {
			rows++
		}
	}
	if rows != v.inIndex {
		v.indexWrong = true
	}
	return nil
}
