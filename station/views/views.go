// Package views owns what screens ask of the past: the history of runs, the lots
// with their units, the yield of a day, and which slots are set aside. All of it
// is a projection of the journal: the file may be deleted, and is then made again.
//
// It promises:
//
//   - What it says is what the journal says up to Next, and nothing else.
//   - Catching up costs what was added since the last time, and a restart in the
//     middle of anything loses and doubles nothing.
//   - A file of another journal, or of another format, is made again.
package views

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/lot"
	"github.com/provisiond/provisiond/provision/report"
)

// Journal is what a projection needs of a journal.
type Journal interface {
	Entries(from, to uint64) iter.Seq2[journal.Entry, error]
	Head() (size uint64, hash journal.Hash)
	Info() journal.Info
}

// Run is one run on one unit, as the history shows it.
type Run struct {
	Index     uint64            `json:"index"` // of the verdict in the journal
	Time      time.Time         `json:"time"`
	Unit      string            `json:"unit,omitempty"`
	Serial    string            `json:"serial,omitempty"`
	Slot      string            `json:"slot"`
	Lot       string            `json:"lot,omitempty"`
	Recipe    string            `json:"recipe,omitempty"`
	Operator  string            `json:"operator,omitempty"`
	Simulated bool              `json:"simulated"`
	Verdict   provision.Verdict `json:"verdict"`
	Cause     provision.Cause   `json:"cause,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	NextStep  string            `json:"next_step,omitempty"`
	ElapsedMS int64             `json:"elapsed_ms"`
}

// Unit is what a lot, or a day, knows of one of its units.
type Unit struct {
	Serial  string            `json:"serial,omitempty"`
	Begun   bool              `json:"begun"` // it was planned, and so counts against the quantity
	Tries   int               `json:"tries"` // verdicts
	Verdict provision.Verdict `json:"verdict,omitempty"`
	First   bool              `json:"first"` // its first verdict was PASS
	Last    uint64            `json:"last"`  // index of the last verdict
}

// Lot is a lot as its opening entry tells it.
type Lot struct {
	ID      string          `json:"id"`
	Index   uint64          `json:"index"` // of the entry that opened it
	Opened  time.Time       `json:"opened"`
	Open    bool            `json:"open"`
	Payload json.RawMessage `json:"payload"` // of that entry
}

// Yield counts units by their last verdict. Simulated units are not in it, but
// where everything is simulated.
type Yield struct {
	Pass        int `json:"pass"`
	FirstPass   int `json:"first_pass"` // of Pass, at their first try
	Fail        int `json:"fail"`
	Error       int `json:"error"`
	Aborted     int `json:"aborted"`
	Quarantined int `json:"quarantined"`
}

// Units is how many units were begun and have an end.
func (y Yield) Units() int { return y.Pass + y.Fail + y.Error + y.Aborted + y.Quarantined }

// The steps of operator and station entries that make a difference here.
const (
	StepStationStart = "station-start" // no run that began before it is still in work
	StepLotOpen      = lot.StepOpen
	StepLotClose     = "lot-close"
	StepSlotBlocked  = "slot-blocked"
	StepSlotCleared  = "slot-cleared"
)

const format = "2"

var (
	bucketMeta    = []byte("meta")
	bucketRuns    = []byte("runs")    // index → Run
	bucketUnits   = []byte("units")   // unit or serial, 0, index → nothing
	bucketByLot   = []byte("bylot")   // lot, 0, index → nothing
	bucketLots    = []byte("lots")    // lot → Lot
	bucketMembers = []byte("members") // lot, 0, unit → Unit
	bucketDays    = []byte("days")    // day, 0, unit → Unit
	bucketSlots   = []byte("slots")   // blocked slot → reason
	buckets       = [][]byte{bucketMeta, bucketRuns, bucketUnits, bucketByLot, bucketLots, bucketMembers, bucketDays, bucketSlots}

	keyFormat, keyJournal, keyNext = []byte("format"), []byte("journal"), []byte("next")
)

// Views is the projection of one journal. It is safe for concurrent use.
type Views struct {
	db    *bbolt.DB
	jrn   Journal
	place *time.Location // of the day that a run belongs to

	mu     sync.Mutex
	next   uint64 // first entry that was not folded
	folder *report.Folder
}

// Open opens the projection of jrn at path, and makes it if it is missing or not
// of this journal. place is the time zone of the factory's day.
func Open(path string, jrn Journal, place *time.Location) (*Views, error) {
	v, err := open(path, jrn, place)
	if !errors.Is(err, errOther) {
		return v, err
	}
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("views: %w", err)
	}
	return open(path, jrn, place)
}

var errOther = errors.New("views: the file is of another journal or format")

func open(path string, jrn Journal, place *time.Location) (*Views, error) {
	// It can be made again. It is synced all the same: bbolt panics over a torn page,
	// at every start.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	switch {
	case err == nil:
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("views: %s is in use by another provisiond: %w", path, err)
	case errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("views: %w", err)
	default:
		return nil, errOther // a torn file
	}
	v := &Views{db: db, jrn: jrn, place: place, folder: report.NewFolder()}
	if err := v.begin(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return v, nil
}

func (v *Views) begin() (err error) {
	defer func() {
		if p := recover(); p != nil { // bbolt's, over a torn page
			err = errOther
		}
	}()
	id := v.jrn.Info().ID
	err = v.db.Update(func(tx *bbolt.Tx) error {
		fresh := tx.Bucket(bucketMeta) == nil
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if fresh {
			return errors.Join(meta.Put(keyFormat, []byte(format)), meta.Put(keyJournal, []byte(id)))
		}
		if string(meta.Get(keyFormat)) != format || string(meta.Get(keyJournal)) != id {
			return errOther
		}
		if b := meta.Get(keyNext); len(b) == 8 {
			v.next = binary.BigEndian.Uint64(b)
		}
		return nil
	})
	if size, _ := v.jrn.Head(); err == nil && v.next > size {
		return errOther // of a history that this journal does not have any more
	}
	return err
}

// Close ends the use of the file.
func (v *Views) Close() error { return v.db.Close() }

// batch bounds what one transaction holds.
const batch = 4096

// CatchUp folds what the journal has got since the last time.
func (v *Views) CatchUp(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		size, _ := v.jrn.Head()
		if v.next >= size || ctx.Err() != nil {
			return ctx.Err()
		}
		if err := v.fold(v.next, min(size, v.next+batch)); err != nil {
			return err
		}
	}
}

func (v *Views) fold(from, to uint64) error {
	return v.db.Update(func(tx *bbolt.Tx) error {
		next := from
		for e, err := range v.jrn.Entries(from, to) {
			if err != nil {
				return fmt.Errorf("views: %w", err)
			}
			if err := v.take(tx, e); err != nil {
				return fmt.Errorf("views: journal entry %d: %w", e.Index, err)
			}
			next = e.Index + 1
		}
		// A restart begins with the oldest run that has no end yet. What is folded
		// twice then comes out the same: everything is kept by its index.
		back := next
		for _, a := range v.folder.Rest() {
			if len(a.Entries) > 0 {
				back = min(back, a.Entries[0])
			}
		}
		v.next = next
		return tx.Bucket(bucketMeta).Put(keyNext, binary.BigEndian.AppendUint64(nil, back))
	})
}

func (v *Views) take(tx *bbolt.Tx, e journal.Entry) error {
	switch e.Kind {
	case journal.KindOperator, journal.KindStation:
		return v.takeAction(tx, e)
	case journal.KindIntent, journal.KindObserved, journal.KindVerdict:
	}
	if e.Kind == journal.KindObserved && e.Step == stepPlan {
		if err := v.takePlan(tx, e); err != nil {
			return err
		}
	}
	a, err := v.folder.Add(e)
	if err != nil || a == nil || a.Verdict == "" {
		return err
	}
	return v.takeRun(tx, a)
}

const stepPlan = "plan"

// takePlan: from here on a unit counts in its lot.
func (v *Views) takePlan(tx *bbolt.Tx, e journal.Entry) error {
	var p struct {
		Outcome string `json:"outcome"`
		Serial  string `json:"serial"`
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return err
	}
	if p.Outcome != "done" || e.Unit == (chip.MAC{}) {
		return nil
	}
	for _, a := range v.folder.Rest() {
		if a.Slot == e.Slot && a.Lot != "" {
			return change(tx.Bucket(bucketMembers), pair(a.Lot, e.Unit.String()), func(u *Unit) {
				u.Begun = true
				u.Serial = cmp.Or(p.Serial, a.Serial, u.Serial)
			})
		}
	}
	return nil
}

func (v *Views) takeRun(tx *bbolt.Tx, a *report.Attempt) error {
	r := Run{
		Index: a.VerdictAt, Time: a.Ended, Serial: a.Serial, Slot: a.Slot, Lot: a.Lot, Recipe: a.Recipe, Operator: a.Operator,
		Simulated: a.Simulated, Verdict: a.Verdict, Cause: a.Cause, Reason: a.Reason, NextStep: a.NextStep, ElapsedMS: a.ElapsedMS,
	}
	if a.MAC != (chip.MAC{}) {
		r.Unit = a.MAC.String()
	}
	if tx.Bucket(bucketRuns).Get(index(r.Index)) != nil {
		return nil // folded before a restart; this time perhaps without its beginning
	}
	if err := put(tx.Bucket(bucketRuns), index(r.Index), r); err != nil {
		return err
	}
	for _, k := range []string{r.Unit, r.Serial} {
		if k != "" {
			if err := tx.Bucket(bucketUnits).Put(append(pair(k, ""), index(r.Index)...), nil); err != nil {
				return err
			}
		}
	}
	if r.Lot != "" {
		if err := tx.Bucket(bucketByLot).Put(append(pair(r.Lot, ""), index(r.Index)...), nil); err != nil {
			return err
		}
	}
	if r.Unit == "" || r.Cause == provision.CauseRefused {
		return nil // nothing was done to it
	}
	count := func(u *Unit) {
		u.First = u.First || u.Tries == 0 && r.Verdict == provision.Pass
		u.Tries++
		u.Verdict, u.Last = r.Verdict, r.Index
		u.Serial = cmp.Or(r.Serial, u.Serial)
	}
	if r.Lot != "" {
		if err := change(tx.Bucket(bucketMembers), pair(r.Lot, r.Unit), count); err != nil {
			return err
		}
	}
	return change(tx.Bucket(bucketDays), pair(v.day(r.Time), r.Unit), count)
}

func (v *Views) day(t time.Time) string { return t.In(v.place).Format(time.DateOnly) }

func (v *Views) takeAction(tx *bbolt.Tx, e journal.Entry) error {
	var p struct {
		Lot    string `json:"lot"`
		Reason string `json:"reason"`
	}
	switch e.Step {
	case StepLotOpen, StepLotClose, StepSlotBlocked, StepSlotCleared:
	case StepStationStart:
		v.folder = report.NewFolder()
		return nil
	default:
		return nil // another command's, or another version's: none of our business
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return err
	}
	lots, slots := tx.Bucket(bucketLots), tx.Bucket(bucketSlots)
	switch e.Step {
	case StepLotOpen:
		return put(lots, []byte(p.Lot), Lot{ID: p.Lot, Index: e.Index, Opened: e.Time, Open: true, Payload: e.Payload})
	case StepLotClose:
		return change(lots, []byte(p.Lot), func(l *Lot) { l.Open = l.Open && l.Index > e.Index })
	case StepSlotBlocked:
		return slots.Put([]byte(e.Slot), []byte(cmp.Or(p.Reason, "blocked")))
	default:
		return slots.Delete([]byte(e.Slot))
	}
}

func index(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

// pair makes a key of two names. Names come from journal entries, which hold no
// NUL bytes.
func pair(a, b string) []byte { return append(append([]byte(a), 0), b...) }

func put(b *bbolt.Bucket, key []byte, value any) error {
	out, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put(key, out)
}

// change reads, changes and writes a value; a missing one is the zero value.
func change[T any](b *bbolt.Bucket, key []byte, f func(*T)) error {
	var value T
	if old := b.Get(key); old != nil {
		if err := json.Unmarshal(old, &value); err != nil {
			return err
		}
	}
	f(&value)
	return put(b, key, value)
}

// Next is the index of the first journal entry that is not in the views.
func (v *Views) Next() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.next
}

// Query selects runs, the newest first.
type Query struct {
	Before  uint64 // only smaller indices; 0: from the newest
	Limit   int
	Lot     string
	Unit    string // base MAC or serial number
	Verdict provision.Verdict
}

// History gives the runs that q selects.
func (v *Views) History(ctx context.Context, q Query) ([]Run, error) {
	out := []Run{}
	err := v.db.View(func(tx *bbolt.Tx) error {
		runs := tx.Bucket(bucketRuns)
		c, prefix := runs.Cursor(), []byte(nil)
		switch {
		case q.Unit != "":
			c, prefix = tx.Bucket(bucketUnits).Cursor(), pair(q.Unit, "")
		case q.Lot != "":
			c, prefix = tx.Bucket(bucketByLot).Cursor(), pair(q.Lot, "")
		}
		before := q.Before
		if before == 0 {
			before = 1<<64 - 1
		}
		for k := seekBefore(c, append(bytes.Clone(prefix), index(before)...)); k != nil && bytes.HasPrefix(k, prefix) && len(out) < q.Limit; k, _ = c.Prev() {
			if len(k) != len(prefix)+8 {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			var r Run
			if err := json.Unmarshal(runs.Get(k[len(prefix):]), &r); err != nil {
				return fmt.Errorf("views: %w", err)
			}
			if (q.Verdict == "" || q.Verdict == r.Verdict) && (q.Lot == "" || q.Lot == r.Lot) {
				out = append(out, r)
			}
		}
		return nil
	})
	return out, err
}

// seekBefore gives the last key that is smaller than key.
func seekBefore(c *bbolt.Cursor, key []byte) []byte {
	if k, _ := c.Seek(key); k == nil {
		last, _ := c.Last()
		return last
	}
	k, _ := c.Prev()
	return k
}

// Holder is a unit that was begun with a serial number, other than the given one;
// "" if there is none.
func (v *Views) Holder(serial, but string) (unit string, err error) {
	err = v.db.View(func(tx *bbolt.Tx) error {
		runs, prefix := tx.Bucket(bucketRuns), pair(serial, "")
		c := tx.Bucket(bucketUnits).Cursor()
		for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			if len(k) != len(prefix)+8 {
				continue
			}
			r, begun, err := begunRun(runs, k[len(prefix):])
			if err != nil {
				return err
			}
			if begun && r.Serial == serial && r.Unit != but {
				unit = r.Unit
			}
		}
		return nil
	})
	return unit, err
}

// begunRun is a run, and whether anything was done to its unit.
func begunRun(runs *bbolt.Bucket, at []byte) (r Run, begun bool, err error) {
	if err := json.Unmarshal(runs.Get(at), &r); err != nil {
		return r, false, fmt.Errorf("views: %w", err)
	}
	return r, r.Unit != "" && r.Cause != provision.CauseRefused, nil
}

// FirstBetween is the first serial number from one to another that a begun unit
// has, "" if there is none. Both have the same length, and so have all between.
func (v *Views) FirstBetween(from, to string) (serial, unit string, err error) {
	err = v.db.View(func(tx *bbolt.Tx) error {
		runs := tx.Bucket(bucketRuns)
		c := tx.Bucket(bucketUnits).Cursor()
		for k, _ := c.Seek([]byte(from)); k != nil; k, _ = c.Next() {
			if len(k) < 9 || k[len(k)-9] != 0 {
				continue
			}
			name, at := string(k[:len(k)-9]), k[len(k)-8:]
			if name > to {
				return nil
			}
			if len(name) != len(to) {
				continue
			}
			r, begun, err := begunRun(runs, at)
			if err != nil {
				return err
			}
			if begun && r.Serial == name {
				serial, unit = name, r.Unit
				return nil
			}
		}
		return nil
	})
	return serial, unit, err
}

// Lots gives lots, the one that was opened last first. Limit 0 gives all.
func (v *Views) Lots(openOnly bool, limit int) ([]Lot, error) {
	var out []Lot
	err := v.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketLots).ForEach(func(_, b []byte) error {
			var l Lot
			if err := json.Unmarshal(b, &l); err != nil {
				return fmt.Errorf("views: %w", err)
			}
			if l.Open || !openOnly {
				out = append(out, l)
			}
			return nil
		})
	})
	slices.SortFunc(out, func(a, b Lot) int { return cmp.Compare(b.Index, a.Index) })
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, err
}

// Lot gives one lot.
func (v *Views) Lot(id string) (l Lot, found bool, err error) {
	err = v.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLots).Get([]byte(id))
		if b == nil {
			return nil
		}
		found = true
		return json.Unmarshal(b, &l)
	})
	return l, found, err
}

// Members gives the units of a lot.
func (v *Views) Members(lot string) (map[string]Unit, error) { return v.members(bucketMembers, lot) }

// Day gives the units that had a verdict on the day of t.
func (v *Views) Day(t time.Time) (map[string]Unit, error) { return v.members(bucketDays, v.day(t)) }

func (v *Views) members(bucket []byte, name string) (map[string]Unit, error) {
	out := map[string]Unit{}
	prefix := pair(name, "")
	err := v.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, b := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, b = c.Next() {
			var u Unit
			if err := json.Unmarshal(b, &u); err != nil {
				return fmt.Errorf("views: %w", err)
			}
			out[string(k[len(prefix):])] = u
		}
		return nil
	})
	return out, err
}

// Blocked gives the slots that are set aside, with the reason.
func (v *Views) Blocked() (map[string]string, error) {
	out := map[string]string{}
	err := v.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketSlots).ForEach(func(k, b []byte) error {
			out[string(k)] = string(b)
			return nil
		})
	})
	return out, err
}

// Count adds units up. Simulated ones count where simulated says so.
func Count(units map[string]Unit, simulated bool) Yield {
	var y Yield
	for mac, u := range units {
		if m, err := chip.ParseMAC(mac); err == nil && m.LocallyAdministered() && !simulated {
			continue
		}
		switch u.Verdict {
		case provision.Pass:
			y.Pass++
			if u.First {
				y.FirstPass++
			}
		case provision.Fail:
			y.Fail++
		case provision.Error:
			y.Error++
		case provision.Aborted:
			y.Aborted++
		case provision.Quarantined:
			y.Quarantined++
		}
	}
	return y
}
