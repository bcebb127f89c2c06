package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/outbox/outboxtest"
)

const testID = "000102030405060708090a0b0c0d0e0f"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a sink that keeps what it gets.
type memory struct {
	mu     sync.Mutex
	got    []*Event
	answer func(n int, events []*Event) (int, error) // of call n; takes all if nil
	calls  int
	batch  int
	closed int
}

func (m *memory) Deliver(_ context.Context, events []*Event) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	done, err := len(events), error(nil)
	if m.answer != nil {
		done, err = m.answer(m.calls, events)
	}
	if done >= 0 && done <= len(events) {
		m.got = append(m.got, events[:done]...)
	}
	return done, err
}

func (m *memory) Batch() int { return max(1, m.batch) }

func (m *memory) Close() error { m.closed++; return nil }

func (m *memory) indexes() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []uint64
	for _, e := range m.got {
		list = append(list, e.Index)
	}
	return list
}

// bench is an outbox on a journal in memory, in a bubble.
type bench struct {
	*testing.T
	j    *outboxtest.Journal
	dir  string
	stop func() error
	o    *Outbox
}

func newBench(t *testing.T) *bench {
	return &bench{T: t, j: outboxtest.NewJournal(testID, "bench-1"), dir: t.TempDir()}
}

func (b *bench) start(list ...Delivery) {
	b.Helper()
	o, err := Open(b.j, b.dir, list)
	if err != nil {
		b.Fatal(err)
	}
	b.o = o
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	b.stop = func() error { cancel(); return <-done }
}

func (b *bench) end() {
	b.Helper()
	if err := b.stop(); err != nil {
		b.Error(err)
	}
}

func (b *bench) unit(r outboxtest.Run) journal.Entry {
	b.Helper()
	e, err := r.Write(b.Context(), b.j)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func (b *bench) entry(e journal.Entry, body map[string]any) journal.Entry {
	b.Helper()
	var err error
	if e.Payload, err = journal.MarshalPayload(body); err == nil {
		e, err = b.j.Append(b.Context(), e)
	}
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func (b *bench) cursor(name string) Cursor {
	b.Helper()
	c, err := LoadCursor(filepath.Join(b.dir, name+".cursor"))
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func TestDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{}
		b.start(Delivery{Name: "mes", Kind: "memory", Sink: m})
		var want []uint64
		for n := range 5 {
			want = append(want, b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)}).Index)
			b.o.Notify()
			synctest.Wait()
		}
		if d := cmp.Diff(append([]uint64{0}, want...), m.indexes()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		s := b.o.Status()[0]
		if s.State != StateIdle || s.Behind() != 0 || s.Delivered != 6 || s.Problem(time.Now()) != "" {
			t.Errorf("status %+v", s)
		}
		b.end()
		if m.closed != 1 {
			t.Errorf("the sink was closed %d times", m.closed)
		}
	})
}

// Without a Notify the poll finds it.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{}
		b.start(Delivery{Name: "mes", Sink: m})
		b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1)})
		time.Sleep(2*defaultPoll + time.Millisecond)
		synctest.Wait()
		if got := m.indexes(); len(got) != 2 {
			t.Errorf("it got %v", got)
		}
		b.end()
	})
}

// The next start goes on where the last one ended.
func TestGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{batch: 3}
		for n := range 10 {
			b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)})
			b.start(Delivery{Name: "mes", Sink: m, From: FromBeginning})
			synctest.Wait()
			b.end()
		}
		if got := m.indexes(); len(got) != 11 || !slices.IsSorted(got) {
			t.Errorf("it got %v", got)
		}
	})
}

// Entries that are nobody's event still move the cursor when all ends.
func TestQuietEntriesMoveTheCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{}
		b.start(Delivery{Name: "mes", Sink: m, Events: []string{TypeFinished}})
		for range saveEvery + 10 {
			b.entry(journal.Entry{Slot: "A1", Step: "flash", Kind: journal.KindIntent}, map[string]any{})
		}
		b.o.Notify()
		synctest.Wait()
		if c := b.cursor("mes"); c.Next < saveEvery {
			t.Errorf("the cursor stands at %d", c.Next)
		}
		b.end()
		size, hash := b.j.Head()
		if c := b.cursor("mes"); c.Next != size || c.Hash != hash {
			t.Errorf("the cursor stands at %d of %d", c.Next, size)
		}
		if len(m.indexes()) != 0 {
			t.Errorf("it got %v", m.indexes())
		}
	})
}

func TestNewSinkBeginsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1)})
		m, all := &memory{}, &memory{}
		b.start(Delivery{Name: "new", Sink: m}, Delivery{Name: "all", Sink: all, From: FromBeginning})
		e := b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(2)})
		b.o.Notify()
		synctest.Wait()
		if d := cmp.Diff([]uint64{e.Index}, m.indexes()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if got := all.indexes(); len(got) != 3 {
			t.Errorf("from the beginning: %v", got)
		}
		b.end()
	})
}

// A sink that is away is asked again, less and less often, holds up nobody, and
// gets everything in order when it is back.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		back := time.Now().Add(72 * time.Hour)
		var asked []time.Time
		away := &memory{batch: 4, answer: func(_ int, events []*Event) (int, error) {
			if time.Now().Before(back) {
				asked = append(asked, time.Now())
				return 0, errors.New("connection refused")
			}
			return len(events), nil
		}}
		other := &memory{}
		b.start(Delivery{Name: "away", Kind: "webhook", Sink: away}, Delivery{Name: "other", Sink: other})
		var want []uint64
		for n := range 200 {
			want = append(want, b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)}).Index)
			b.o.Notify() // must not shorten the pauses
			time.Sleep(10 * time.Minute)
		}
		if got := other.indexes(); len(got) != 201 {
			t.Errorf("the other sink got %d", len(got))
		}
		s := b.o.Status()[0]
		if s.State != StateRetrying || s.Behind() < 1000 || s.Lag(time.Now()) < 30*time.Hour || !strings.Contains(s.Problem(time.Now()), "connection refused") {
			t.Errorf("status %+v, problem %q", s, s.Problem(time.Now()))
		}
		time.Sleep(time.Until(back) + 2*MaxWait)
		synctest.Wait()
		if d := cmp.Diff(append([]uint64{0}, want...), away.indexes()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		// 72 h at one a minute, half of that at the least pauses.
		if n := len(asked); n < 72*60 || n > 2*72*60+20 {
			t.Errorf("it was asked %d times in 72 hours", n)
		}
		differ := map[time.Duration]bool{}
		for i, at := range asked[1:] {
			d := at.Sub(asked[i])
			differ[d] = true
			if d > MaxWait || d < firstWait/2 || i > 8 && d < MaxWait/2 {
				t.Fatalf("pause %d was %s", i, d)
			}
		}
		if len(differ) < 100 {
			t.Errorf("only %d different pauses: no jitter", len(differ))
		}
		if s := b.o.Status()[0]; s.State != StateIdle || s.Problem(time.Now()) != "" {
			t.Errorf("status %+v", s)
		}
		b.end()
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var asked []time.Time
		m := &memory{answer: func(n int, events []*Event) (int, error) {
			asked = append(asked, time.Now())
			switch n {
			case 1:
				return 0, After(5*time.Minute, errors.New("busy"))
			case 2:
				return 0, After(24*time.Hour, errors.New("very busy"))
			}
			return len(events), nil
		}}
		b.start(Delivery{Name: "mes", Sink: m})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(asked) != 3 || asked[1].Sub(asked[0]) != 5*time.Minute || asked[2].Sub(asked[1]) != MaxAfter {
			t.Errorf("it was asked at %v", asked)
		}
		b.end()
	})
}

// One event that is refused for good is set aside with its reason; the others go on.
func TestSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		bad := outboxtest.MAC(2)
		m := &memory{batch: 4, answer: func(_ int, events []*Event) (int, error) {
			for i, e := range events {
				if e.Unit != nil && e.Unit.MAC == bad.String() {
					return i, Permanent(errors.New("422: <no such serial>"))
				}
			}
			return len(events), nil
		}}
		var want []uint64
		var poison journal.Entry
		for n := range 5 {
			e := b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)})
			if e.Unit == bad {
				poison = e
			} else {
				want = append(want, e.Index)
			}
		}
		b.start(Delivery{Name: "mes", Kind: "webhook", Sink: m, Events: []string{"unit.*"}, From: FromBeginning})
		time.Sleep(time.Hour)
		synctest.Wait()
		if d := cmp.Diff(want, m.indexes()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		s := b.o.Status()[0]
		if s.SetAside != 1 || s.Failures < Tries-1 || !strings.Contains(s.Problem(time.Now()), "refused 1 events") {
			t.Errorf("status %+v, problem %q", s, s.Problem(time.Now()))
		}
		b.end()
		text, err := os.ReadFile(s.DeadLetters)
		if err != nil {
			t.Fatal(err)
		}
		d, err := ParseDeadLetter(bytes.TrimSuffix(text, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		var ev Event
		if err := json.Unmarshal(d.Event, &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Index != poison.Index || d.Reason != "422: <no such serial>" || d.Tries != Tries || d.Sink != "mes" {
			t.Errorf("dead letter %+v", d)
		}
		// The next start knows of it.
		b.start(Delivery{Name: "mes", Sink: &memory{}})
		synctest.Wait()
		if n := b.o.Status()[0].SetAside; n != 1 {
			t.Errorf("the next start counts %d", n)
		}
		b.end()
	})
}

// A receiver that refuses everything gets no more than three set aside, also over
// restarts: the others wait until it is mended.
func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		refuse := true
		m := &memory{answer: func(_ int, events []*Event) (int, error) {
			if refuse {
				return 0, Permanent(errors.New("400 Bad Request"))
			}
			return len(events), nil
		}}
		list := []Delivery{{Name: "mes", Kind: "webhook", Sink: m, Events: []string{TypeFinished}, From: FromBeginning}}
		for n := range 10 {
			b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)})
		}
		for range 3 {
			b.start(list...)
			time.Sleep(24 * time.Hour)
			s := b.o.Status()[0]
			if s.SetAside != InARow || s.State != StateHolding || !strings.Contains(s.Problem(time.Now()), "refuses everything") {
				t.Errorf("status %+v", s)
			}
			b.end()
		}
		refuse = false
		b.start(list...)
		synctest.Wait()
		if got := m.indexes(); len(got) != 7 {
			t.Errorf("it got %v", got)
		}
		if c := b.cursor("mes"); c.Aside != 0 {
			t.Errorf("cursor %+v", c)
		}
		b.end()
	})
}

// Faults between refusals do not count as refusals.
func TestOnlyRefusalsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{answer: func(n int, events []*Event) (int, error) {
			switch {
			case n > 50:
				return len(events), nil
			case n%15 == 0 && n < 60: // 3 refusals
				return 0, Permanent(errors.New("no"))
			}
			return 0, errors.New("away")
		}}
		b.start(Delivery{Name: "mes", Sink: m})
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s := b.o.Status()[0]; s.SetAside != 0 || s.Delivered != 1 {
			t.Errorf("status %+v", s)
		}
		b.end()
	})
}

// A stop in the middle of a delivery loses nothing.
func TestStopInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		down := true
		m := &memory{batch: 8, answer: func(_ int, events []*Event) (int, error) {
			if down {
				return min(1, len(events)-1), errors.New("away")
			}
			return len(events), nil
		}}
		list := []Delivery{{Name: "mes", Sink: m, Events: []string{TypeFinished}, From: FromBeginning}}
		var want []uint64
		for n := range 20 {
			want = append(want, b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)}).Index)
		}
		for range 5 {
			b.start(list...)
			time.Sleep(time.Second)
			b.end()
		}
		down = false
		b.start(list...)
		time.Sleep(2 * MaxWait)
		synctest.Wait()
		b.end()
		if d := cmp.Diff(want, m.indexes()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

// While the cursor cannot be written, nothing is delivered twice.
func TestStateDirectoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{}
		b.start(Delivery{Name: "mes", Sink: m})
		synctest.Wait()
		moved := b.dir + ".moved"
		if err := os.Rename(b.dir, moved); err != nil {
			t.Fatal(err)
		}
		b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1)})
		b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(2)})
		time.Sleep(time.Hour)
		if got := m.indexes(); len(got) != 2 {
			t.Errorf("with a cursor that does not move it got %v", got)
		}
		if s := b.o.Status()[0]; s.State != StateRetrying || !strings.Contains(s.LastError, "cannot be written") {
			t.Errorf("status %+v", s)
		}
		if err := os.Rename(moved, b.dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * MaxWait)
		synctest.Wait()
		if got := m.indexes(); len(got) != 3 {
			t.Errorf("afterwards it got %v", got)
		}
		b.end()
	})
}

// A journal that cannot be read for a while, and a sink with a fault, are
// problems and no end.
func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		m := &memory{answer: func(n int, events []*Event) (int, error) {
			switch n {
			case 1:
				panic("index out of range")
			case 2:
				return len(events) + 1, nil
			case 3:
				return 0, nil
			}
			return len(events), nil
		}}
		b.j.Break(errors.New("disk on fire"))
		b.start(Delivery{Name: "mes", Sink: m})
		time.Sleep(time.Minute)
		if s := b.o.Status()[0]; s.State != StateRetrying || !strings.Contains(s.Problem(time.Now()), "disk on fire") {
			t.Errorf("status %+v, problem %q", s, s.Problem(time.Now()))
		}
		b.j.Break(nil)
		b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1)})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := m.indexes(); len(got) != 2 {
			t.Errorf("it got %v", got)
		}
		b.end()
	})
}

func TestCursorOfSomethingElse(t *testing.T) {
	j := outboxtest.NewJournal(testID, "bench-1")
	for n := range 3 {
		if _, err := (outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(n)}).Write(t.Context(), j); err != nil {
			t.Fatal(err)
		}
	}
	size, head := j.Head()
	changed := head
	changed[0] ^= 1
	good := Cursor{Sink: "mes", Journal: testID, Next: size, Hash: head}
	with := func(change func(*Cursor)) []byte { c := good; change(&c); return c.Canonical() }
	for name, c := range map[string]struct {
		content []byte
		is      error
		want    string
	}{
		"journal": {with(func(c *Cursor) { c.Journal = strings.Repeat("a", 32) }), ErrCursor, "journal " + strings.Repeat("a", 32)},
		"ahead":   {with(func(c *Cursor) { c.Next++ }), ErrCursor, "older copy"},
		"hash":    {with(func(c *Cursor) { c.Hash = changed }), ErrCursor, "the journal was changed"},
		"sink":    {with(func(c *Cursor) { c.Sink = "erp" }), ErrCursor, `of sink "erp"`},
		"damaged": {good.Canonical()[:40], nil, "it is damaged"},
		"empty":   {nil, nil, "it is damaged"},
		"large":   {bytes.Repeat([]byte("x"), 1<<20), nil, "no cursor"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "mes.cursor")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(j, dir, []Delivery{{Name: "mes", Sink: &memory{}}})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("it gave %v, want %q and the path", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is no %v", err, c.is)
			}
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(after, c.content) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mes.cursor"), good.Canonical(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(j, dir, []Delivery{{Name: "mes", Sink: &memory{}}}); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	j := outboxtest.NewJournal(testID, "bench-1")
	for want, list := range map[string][]Delivery{
		"is no name":      {{Name: "../x"}},
		"are called":      {{Name: "a"}, {Name: "a"}},
		"selects no":      {{Name: "a", Events: []string{"unit.finished", "units"}}},
		"is neither":      {{Name: "a", From: "yesterday"}},
		"state directory": nil,
	} {
		dir := t.TempDir()
		if list == nil {
			dir = filepath.Join(dir, "file", "x")
			if err := os.WriteFile(filepath.Dir(dir), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(j, dir, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// An event says the same however far back the reading began: a repeat has the
// same bytes.
func TestRepeatHasTheSameBytes(t *testing.T) {
	j := outboxtest.NewJournal(testID, "bench-1")
	ctx := t.Context()
	for n := range 40 { // slots interleaved by hand
		r := outboxtest.Run{Slot: fmt.Sprintf("A%d", n%3), MAC: outboxtest.MAC(n), Serial: fmt.Sprint(n), Lot: "L"}
		if n%7 == 0 {
			r.MAC = chip.MAC{}
			r.Verdict, r.Cause = "ERROR", "station"
		}
		if _, err := r.Write(ctx, j); err != nil {
			t.Fatal(err)
		}
	}
	size, _ := j.Head()
	bodies := func(from uint64) map[uint64]string {
		w := &worker{Delivery: Delivery{Name: "x"}, journal: j, cursor: Cursor{Next: from}}
		p, err := w.rewind(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := map[uint64]string{}
		for e, err := range j.Entries(from, size) {
			if err != nil {
				t.Fatal(err)
			}
			h, err := hashOf(e)
			if err != nil {
				t.Fatal(err)
			}
			if ev := p.event(e, h); ev != nil {
				m[ev.Index] = string(ev.Body)
			}
		}
		return m
	}
	all := bodies(0)
	for from := range size {
		for i, body := range bodies(from) {
			if all[i] != body {
				t.Fatalf("event %d read from %d on (-all +this):\n%s", i, from, cmp.Diff(all[i], body))
			}
		}
	}
}

func TestEvent(t *testing.T) {
	j := outboxtest.NewJournal(testID, "bench-1")
	j.Station = "bench-1"
	e, err := outboxtest.Run{Slot: "A3", Lot: "L-47", Operator: "anna", Serial: "S<1>", MAC: outboxtest.MAC(1)}.Write(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	events := eventsOf(t, j)
	got := events[len(events)-1]
	if got.Index != e.Index || got.ID != fmt.Sprintf("%s-%d", testID, e.Index) {
		t.Errorf("id %s", got.ID)
	}
	hash, err := hashOf(e)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schema":"provisiond.event/1","id":"` + got.ID + `","type":"unit.finished","time":"` + got.Time + `",` +
		`"station":"bench-1","journal":"` + testID + `","index":10,"entry_sha256":"` + hash.String() + `","step":"verdict",` +
		`"slot":"A3","operator":"anna","lot":"L-47","job":"240ac4000001",` +
		`"unit":{"mac":"24:0a:c4:00:00:01","serial":"S<1>","simulated":false,"chip":"esp32c3","revision":"v0.4","flash_id":"c84016","flash_size":4194304},` +
		`"result":{"verdict":"PASS","cause":"","reason":"","next_step":"","one_way_begun":true,"begun":"` + got.Result.Begun + `",` +
		`"elapsed_ms":31415,"first_entry":1,"plan_sha256":"` + fmt.Sprintf("%064x", 4) + `","table_sha256":"` + fmt.Sprintf("%064x", 5) + `",` +
		`"continues":false,"rework":false,"tool":"provisiond test"},` +
		`"recipe":{"name":"lamp","revision":3,"sha256":"` + fmt.Sprintf("%064x", 7) + `","profile":"release"},` +
		`"key":{"fingerprint":"fp:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0","ref":"units/x","version":1,"store":"vault"},` +
		`"images":[{"name":"app","offset":65536,"length":1048576,"encrypted":true,` +
		`"plaintext_sha256":"` + fmt.Sprintf("%064x", 2) + `","ciphertext_sha256":"` + fmt.Sprintf("%064x", 3) + `"}]}`
	if d := cmp.Diff(want, string(got.Body)); d != "" {
		t.Errorf("the event's form is an API (-want +got):\n%s", d)
	}
}

func eventsOf(t *testing.T, j *outboxtest.Journal) []*Event {
	t.Helper()
	p := newProjector(j.ID)
	var list []*Event
	for e, err := range j.Entries(0, journal.All) {
		if err != nil {
			t.Fatal(err)
		}
		hash, err := hashOf(e)
		if err != nil {
			t.Fatal(err)
		}
		if ev := p.event(e, hash); ev != nil {
			list = append(list, ev)
		}
	}
	return list
}

func TestOtherEvents(t *testing.T) {
	b := newBench(t)
	b.entry(journal.Entry{Step: "Lot open.1", Kind: journal.KindOperator}, map[string]any{"operator": "eva", "lot": "L-47", "quantity": 500})
	b.entry(journal.Entry{Step: "rework", Kind: journal.KindOperator, Unit: outboxtest.MAC(7)}, map[string]any{"operator": "eva", "reason": "again"})
	b.entry(journal.Entry{Step: "slot-quarantined", Slot: "A3", Kind: journal.KindStation}, map[string]any{"operator": 7})
	b.entry(journal.Entry{Step: "dump", Kind: journal.KindStation}, map[string]any{"x": strings.Repeat("x", maxData)})
	events := eventsOf(t, b.j)[1:]
	for i, want := range []Event{
		{Type: "operator.lot_open_1", Operator: "eva", Lot: "L-47", Data: json.RawMessage(`{"lot":"L-47","operator":"eva","quantity":500}`)},
		{Type: "operator.rework", Operator: "eva", Data: json.RawMessage(`{"operator":"eva","reason":"again"}`), Unit: &Unit{MAC: "24:0a:c4:00:00:07"}},
		{Type: "station.slot-quarantined", Slot: "A3", Data: json.RawMessage(`{"operator":7}`)},
		{Type: "station.dump", Incomplete: "data has 65544 bytes, more than 65536"},
	} {
		got := *events[i]
		got = Event{Type: got.Type, Operator: got.Operator, Lot: got.Lot, Slot: got.Slot, Data: got.Data, Unit: got.Unit, Incomplete: got.Incomplete}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(Event{})); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// A verdict is never told of another board than its own, and one that this build
// does not understand is told all the same.
func TestOddAttempts(t *testing.T) {
	b := newBench(t)
	b.unit(outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1), Serial: "one"})
	b.entry(journal.Entry{Slot: "A1", Step: "connect", Kind: journal.KindIntent}, map[string]any{"serial": "two"})
	b.entry(journal.Entry{Slot: "A1", Step: "inspect", Kind: journal.KindObserved, Unit: outboxtest.MAC(2)}, map[string]any{"outcome": "done"})
	// Cut off; then a verdict without a connect.
	b.entry(journal.Entry{Slot: "A1", Step: "verdict", Kind: journal.KindVerdict}, map[string]any{"verdict": "FAIL", "cause": "refused"})
	b.entry(journal.Entry{Slot: "A1", Step: "connect", Kind: journal.KindIntent}, map[string]any{"serial": 3})
	b.entry(journal.Entry{Slot: "A1", Step: "verdict", Kind: journal.KindVerdict, Unit: outboxtest.MAC(3)}, map[string]any{"verdict": "PASS"})
	b.entry(journal.Entry{Slot: "A1", Step: "verdict", Kind: journal.KindVerdict, Unit: outboxtest.MAC(4)}, map[string]any{"verdict": 5})
	events := eventsOf(t, b.j)[2:]
	if len(events) != 3 {
		t.Fatalf("%d events", len(events))
	}
	if e := events[0]; e.Unit.MAC != "" || e.Unit.Serial != "" || e.Result.Verdict != "FAIL" {
		t.Errorf("the refusal: %s", e.Body)
	}
	if e := events[1]; e.Unit.MAC != outboxtest.MAC(3).String() || e.Result.Verdict != "PASS" || !strings.Contains(e.Incomplete, "serial") {
		t.Errorf("with another serial: %s", e.Body)
	}
	if e := events[2]; e.Unit.MAC != outboxtest.MAC(4).String() || e.Result.Verdict != "" || !strings.Contains(e.Incomplete, "verdict") {
		t.Errorf("with another verdict: %s", e.Body)
	}
}

// A unit that was closed for ever, by a run that was cut off, tells its MAC and the
// rest no more: the event has it from the run before.
func TestCutOffClosing(t *testing.T) {
	b := newBench(t)
	mac := outboxtest.MAC(9)
	run := outboxtest.Run{Slot: "A1", MAC: mac, Serial: "S-9", Lot: "L"}
	for e, err := range cutOff(t, run) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.j.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the first restart ends before it knows anything
		b.entry(journal.Entry{Slot: "A1", Step: "connect", Kind: journal.KindIntent}, map[string]any{"recipe": "lamp"})
	}
	last := b.entry(journal.Entry{Slot: "A1", Step: "verdict", Kind: journal.KindVerdict, Unit: mac, Job: fmt.Sprintf("%x", mac[:])}, map[string]any{"verdict": "PASS"})
	events := eventsOf(t, b.j)
	ev := events[len(events)-1]
	if ev.Index != last.Index || ev.Unit.Serial != "S-9" || ev.Lot != "L" || ev.Unit.Chip != "esp32c3" || ev.Key == nil || len(ev.Images) != 1 || ev.Result.Verdict != "PASS" {
		t.Errorf("%s", ev.Body)
	}
	// Another unit in the slot gets nothing of it.
	b.entry(journal.Entry{Slot: "A1", Step: "connect", Kind: journal.KindIntent}, map[string]any{})
	b.entry(journal.Entry{Slot: "A1", Step: "verdict", Kind: journal.KindVerdict, Unit: outboxtest.MAC(10)}, map[string]any{"verdict": "FAIL"})
	events = eventsOf(t, b.j)
	if ev := events[len(events)-1]; ev.Unit.Serial != "" || ev.Key != nil {
		t.Errorf("%s", ev.Body)
	}
}

// cutOff is a run without its verdict.
func cutOff(t *testing.T, r outboxtest.Run) iter.Seq2[journal.Entry, error] {
	t.Helper()
	j := outboxtest.NewJournal(testID, "bench-1")
	last, err := r.Write(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return j.Entries(1, last.Index)
}

// An attempt that began before the window is told without its beginning, in
// bounded memory.
func TestWindow(t *testing.T) {
	p := newProjector(testID)
	p.fold(journal.Entry{Index: 1, Slot: "A1", Step: "connect", Kind: journal.KindIntent, Payload: []byte(`{"serial":"x"}`)})
	for i := range uint64(2 * window) {
		p.fold(journal.Entry{Index: 2 + i, Slot: "A1", Step: "plan", Kind: journal.KindObserved, Payload: []byte(`{}`)})
	}
	if n := len(p.open["A1"].entries); n > 3*window {
		t.Errorf("%d entries are kept", n)
	}
	last := journal.Entry{Index: 2*window + 2, Slot: "A1", Step: "verdict", Kind: journal.KindVerdict, Payload: []byte(`{"verdict":"FAIL"}`)}
	if ev := p.event(last, journal.Hash{}); ev.Unit.Serial != "" || ev.Result.FirstEntry != window+3 {
		t.Errorf("%s", ev.Body)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		patterns []string
		typ      string
		want     bool
	}{
		{nil, "station.x", true},
		{[]string{"*"}, "station.x", true},
		{[]string{"unit.finished"}, "unit.finished", true},
		{[]string{"unit.finished"}, "operator.rework", false},
		{[]string{"unit.*", "operator.*"}, "operator.rework", true},
		{[]string{"operator.rework"}, "operator.rework-2", false},
	} {
		if err := CheckPatterns(c.patterns); err != nil {
			t.Error(err)
		}
		if got := Matches(c.patterns, c.typ); got != c.want {
			t.Errorf("%q, %s: %v", c.patterns, c.typ, got)
		}
	}
}

func TestDeadLetterTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.dead.jsonl")
	d := DeadLetter{Time: time.Unix(1, 0).UTC(), Sink: "x", Tries: 5, Reason: "<no>", Event: json.RawMessage(`{"a":"` + strings.Repeat("b", 9000) + `"}`)}
	for range 2 {
		if err := d.Append(path); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, torn := range []string{"", "x", strings.Repeat("y", 4096), strings.Repeat("z", 5000)} {
		if err := os.WriteFile(path, append(slices.Clone(whole), torn...), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := mendDeadLetters(path)
		got, _ := os.ReadFile(path)
		if n != 2 || err != nil || !bytes.Equal(got, whole) {
			t.Errorf("with %d torn bytes: %d letters, %v", len(torn), n, err)
		}
	}
	if n, err := mendDeadLetters(path + ".none"); n != 0 || err != nil {
		t.Errorf("no file: %d, %v", n, err)
	}
}

func FuzzCursor(f *testing.F) {
	f.Add(Cursor{Sink: "mes", Journal: testID, Next: 12, Hash: journal.HashLine([]byte("x")), Aside: 2}.Canonical())
	f.Add(Cursor{Sink: "a", Journal: "j"}.Canonical())
	f.Add([]byte(`{"aside":0,"format":2,"hash":"","journal":"","next":0,"sink":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCursor(b)
		if err == nil && !bytes.Equal(c.Canonical(), b) {
			t.Errorf("%q is written again as %q", b, c.Canonical())
		}
	})
}

func FuzzDeadLetter(f *testing.F) {
	line, err := encode(DeadLetter{Time: time.Unix(1, 0).UTC(), Sink: "x", Tries: 5, Reason: "<no>", Event: json.RawMessage(`{"a":1}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDeadLetter(b)
		if err != nil {
			return
		}
		if again, err := encode(d); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q is written again as %q, %v", b, again, err)
		}
	})
}
