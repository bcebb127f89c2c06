package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/secret"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// site is some stations and the keystore that goes with them.
type site struct {
	books []*book
	keys  []KeyLine
}

func (s *site) record(b *book, m chip.MAC, key byte, state keystore.StateKind, created time.Time) {
	fp, err := keystore.ParseFingerprint(fingerprint(m, key))
	if err != nil {
		panic(err)
	}
	s.keys = append(s.keys, KeyLine{
		Unit: m, Fingerprint: fp, State: state, Created: created, Newest: created.Add(2 * time.Second), Station: b.station, Job: "j",
	})
}

// good provisions a unit as it should be.
func (s *site) good(b *book, m chip.MAC) {
	at := b.now
	b.run(run{mac: m, verdict: provision.Pass})
	s.record(b, m, 0, keystore.InSilicon, at)
}

func (s *site) reconcile(t testing.TB) *Reconciliation {
	t.Helper()
	r := NewReconciler()
	for _, b := range s.books {
		err := JournalLines(b.all(), func(l UnitLine) error { return again(t, r, l) }, func(l HeadLine) error { return again(t, r, l) })
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range s.keys {
		if err := again(t, r, k); err != nil {
			t.Fatal(err)
		}
	}
	return r.Reconcile()
}

// again adds a line after it went through its text.
func again(t testing.TB, r *Reconciler, l interface{ Append([]byte) []byte }) error {
	t.Helper()
	return ReadInventory(bytes.NewReader(l.Append(nil)), func(got any) error {
		if d := cmp.Diff(any(l), got); d != "" {
			t.Error(d)
		}
		return r.Add(got)
	})
}

// journalOf makes the id of a book's journal its own.
func newStation(t testing.TB, name string) *book {
	b := newBook(t, name)
	b.entries, b.lines, b.prev = nil, nil, journal.Hash{}
	b.add("", chip.MAC{}, "", journal.StepInit, journal.KindStation, map[string]any{"format": 1, "journal": fmt.Sprintf("%x", name)})
	return b
}

// world is a site with two stations.
type world struct {
	*site
	a, b *book
}

func TestReconcile(t *testing.T) {
	quarantined := run{verdict: provision.Quarantined, cause: provision.CauseQuarantined, reason: "x", stop: "burn-key"}
	aborted := run{verdict: provision.Aborted, cause: provision.CauseCancelled, reason: "x", stop: "custody"}
	for name, c := range map[string]struct {
		do   func(w *world)
		want map[FindingKind]int
		text string
	}{
		"good":         {func(*world) {}, nil, ""},
		"never burned": {func(w *world) { r := aborted; r.mac = mac(9); w.a.run(r) }, nil, ""},
		"stored only": {func(w *world) {
			at := w.a.now
			r := aborted
			r.mac = mac(9)
			w.a.run(r)
			w.record(w.a, mac(9), 0, keystore.Stored, at)
		}, nil, ""},
		"quarantined": {func(w *world) {
			at := w.a.now
			r := quarantined
			r.mac = mac(9)
			w.a.run(r)
			w.record(w.a, mac(9), 0, keystore.Quarantined, at)
		}, nil, ""},
		"refused again": {func(w *world) {
			w.b.run(run{mac: mac(1), verdict: provision.Fail, cause: provision.CauseRefused, stop: "plan", reason: "finished"})
		}, nil, ""},
		"another key after the first did not burn": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), verdict: provision.Error, cause: provision.CauseStation, reason: "x", stop: "burn-key"})
			w.record(w.a, mac(9), 0, keystore.Superseded, at)
			at = w.a.now
			w.a.run(run{mac: mac(9), verdict: provision.Pass, key: 1})
			w.record(w.a, mac(9), 1, keystore.InSilicon, at)
		}, nil, ""},
		"killed before custody was taken": {func(w *world) {
			w.a.run(run{mac: mac(9), stop: "custody"})
			at := w.a.now
			w.a.run(run{mac: mac(9), verdict: provision.Pass, key: 1})
			w.record(w.a, mac(9), 1, keystore.InSilicon, at)
		}, nil, ""},
		"rework": {func(w *world) {
			w.a.add("A1", mac(1), "", StepRework, journal.KindOperator, map[string]any{"operator": "grace", "reason": "new firmware"})
			w.a.run(run{mac: mac(1), verdict: provision.Pass})
		}, nil, ""},

		"no record":          {func(w *world) { w.keys = w.keys[1:] }, map[FindingKind]int{UnitWithoutRecord: 1}, "no record of it"},
		"no unit":            {func(w *world) { w.record(w.a, mac(9), 0, keystore.InSilicon, w.a.now.Add(-time.Minute)) }, map[FindingKind]int{RecordWithoutUnit: 1}, "no journal knows"},
		"no journal":         {func(w *world) { w.record(&book{station: "line-9"}, mac(9), 0, keystore.Stored, w.a.now) }, map[FindingKind]int{RecordWithoutUnit: 1}, "journal of station line-9 is not among"},
		"superseded unit":    {func(w *world) { w.record(w.a, mac(9), 0, keystore.Superseded, w.a.now.Add(-time.Minute)) }, nil, ""},
		"shared fingerprint": {func(w *world) { w.keys[1].Fingerprint = w.keys[0].Fingerprint }, map[FindingKind]int{SharedFingerprint: 1, FingerprintDiffers: 1}, "have the same key"},
		"other fingerprint":  {func(w *world) { w.keys[0].Fingerprint[5] ^= 1 }, map[FindingKind]int{FingerprintDiffers: 1}, "has another one"},
		"late record":        {func(w *world) { w.keys[0].Created = w.keys[0].Created.Add(4 * time.Second) }, map[FindingKind]int{RecordAfterBurn: 1}, "after the burn"},
		"stored late":        {func(w *world) { w.keys[0].Stored = w.keys[0].Created.Add(10 * time.Minute) }, map[FindingKind]int{RecordAfterBurn: 1}, "the keystore took the record at"},
		"stored a day late, made before": {func(w *world) {
			w.keys[0].Created, w.keys[0].Stored = w.keys[0].Created.Add(-24*time.Hour), w.keys[0].Created.Add(24*time.Hour)
		}, map[FindingKind]int{RecordAfterBurn: 1}, "after the burn at"},
		"stored by a clock that is ahead": {func(w *world) { w.keys[0].Stored = w.keys[0].Created.Add(4 * time.Minute) }, nil, ""},
		"the store knows better than the station": {func(w *world) {
			w.keys[0].Stored, w.keys[0].Created = w.keys[0].Created, w.keys[0].Created.Add(4*time.Second)
		}, nil, ""},
		"drained from the escrow": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), verdict: provision.Pass, escrow: true})
			w.record(w.a, mac(9), 0, keystore.InSilicon, at)
			k := &w.keys[len(w.keys)-1]
			k.Stored, k.Newest = at.Add(20*time.Hour), at.Add(20*time.Hour)
		}, nil, ""},
		"drained, and burned by a run that took no custody": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), escrow: true, stop: "custody", verdict: provision.Error, cause: provision.CauseStation, reason: "x"})
			i := len(w.a.entries) - 2 // custody was done, and what failed was behind it
			w.a.entries[i].Payload = bytes.Replace(w.a.entries[i].Payload, []byte(`"failed"`), []byte(`"done"`), 1)
			w.a.run(run{mac: mac(9), verdict: provision.Pass, noCustody: true})
			w.record(w.a, mac(9), 0, keystore.InSilicon, at)
			k := &w.keys[len(w.keys)-1]
			k.Stored, k.Newest = at.Add(20*time.Hour), at.Add(20*time.Hour)
		}, nil, ""},
		"stored as late without an escrow": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), verdict: provision.Pass})
			w.record(w.a, mac(9), 0, keystore.InSilicon, at)
			k := &w.keys[len(w.keys)-1]
			k.Stored, k.Newest = at.Add(20*time.Hour), at.Add(20*time.Hour)
		}, map[FindingKind]int{RecordAfterBurn: 1, JournalCut: 1}, "the keystore took the record at"},
		"passed twice":    {func(w *world) { w.a.run(run{mac: mac(1), verdict: provision.Pass}) }, map[FindingKind]int{ProvisionedTwice: 1}, "2 times"},
		"on two stations": {func(w *world) { w.b.run(run{mac: mac(1), verdict: provision.Pass}) }, map[FindingKind]int{ProvisionedTwice: 1}, "2 times"},
		"two records": {func(w *world) {
			w.record(w.a, mac(1), 1, keystore.Stored, w.a.now.Add(-time.Minute))
		}, map[FindingKind]int{ProvisionedTwice: 1}, "2 records"},
		"cut in the burn": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), stop: "burn-key"})
			w.record(w.a, mac(9), 0, keystore.MayBeInSilicon, at)
		}, map[FindingKind]int{JournalCut: 1}, "no verdict after it"},
		"cut before the burn": {func(w *world) {
			at := w.a.now
			w.a.run(run{mac: mac(9), stop: "custody"})
			w.record(w.a, mac(9), 0, keystore.InSilicon, at)
		}, map[FindingKind]int{JournalCut: 1}, "does not tell of a burn"},
		"cut tail": {
			func(w *world) { w.record(w.a, mac(9), 0, keystore.InSilicon, w.a.now.Add(time.Minute)) },
			map[FindingKind]int{JournalCut: 1, RecordWithoutUnit: 1},
			"ends at",
		},
		"states after the end":     {func(w *world) { w.keys[0].Newest = w.a.now.Add(time.Hour) }, map[FindingKind]int{JournalCut: 1}, "ends at"},
		"clock of the store ahead": {func(w *world) { w.keys[0].Newest = w.a.now.Add(time.Minute) }, nil, ""},
		"record never in silicon":  {func(w *world) { w.keys[0].State = keystore.Stored }, map[FindingKind]int{RecordState: 1}, "says stored"},
		"record superseded":        {func(w *world) { w.keys[0].State = keystore.Superseded }, map[FindingKind]int{RecordState: 1}, "says superseded"},
	} {
		a, b := newStation(t, "line-1"), newStation(t, "line-2")
		s := &site{books: []*book{a, b}}
		s.good(a, mac(1))
		s.good(a, mac(2))
		s.good(b, mac(3))
		c.do(&world{s, a, b})
		got := s.reconcile(t)
		if c.want == nil {
			c.want = map[FindingKind]int{}
		}
		if d := cmp.Diff(c.want, got.Counts); d != "" {
			t.Errorf("%s: %s\n%+v", name, d, got.Findings)
		}
		all := fmt.Sprint(got.Findings)
		if !strings.Contains(all, c.text) {
			t.Errorf("%s: %s does not say %q", name, all, c.text)
		}
		for i, f := range got.Findings {
			if f.Unit == "" || f.Text == "" {
				t.Errorf("%s: finding %d is not told: %+v", name, i, f)
			}
		}
	}
}

// listStore is a keystore of which only the lists are asked for: List gives no
// answer before two units are asked for at once.
type listStore struct {
	keystore.Store
	n        int
	both     chan struct{}
	asked    atomic.Int32
	unitsErr error
	listErr  error
}

func (s *listStore) Units(ctx context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		for i := range s.n {
			if ctx.Err() != nil || !yield(mac(i), nil) {
				return
			}
		}
		if s.unitsErr != nil {
			yield(chip.MAC{}, s.unitsErr)
		}
	}
}

func (s *listStore) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	if s.asked.Add(1) == 2 {
		close(s.both)
	}
	select {
	case <-s.both:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	at := time.Unix(100, 0).UTC()
	return []keystore.Meta{{
		Unit: unit, Created: at, Receipt: keystore.Receipt{Time: at},
		States: []keystore.State{{Kind: keystore.MayBeInSilicon, Time: at}, {Kind: keystore.InSilicon, Time: at.Add(time.Second)}},
	}}, s.listErr
}

func TestKeystoreLines(t *testing.T) {
	bad := errors.New("sealed")
	var units []string
	show := func(k KeyLine) error {
		units = append(units, k.Unit.String())
		if k.State != keystore.InSilicon || !k.Stored.Equal(time.Unix(100, 0)) || !k.Newest.Equal(k.Created.Add(time.Second)) {
			t.Errorf("%+v", k)
		}
		return nil
	}
	s := &listStore{n: 100, both: make(chan struct{})}
	if err := KeystoreLines(t.Context(), s, show); err != nil || len(units) != 100 || !slices.IsSorted(units) {
		t.Errorf("%d units, %v", len(units), err)
	}
	for name, s := range map[string]*listStore{"units": {n: 100, unitsErr: bad}, "list": {n: 100, listErr: bad}} {
		s.both = make(chan struct{})
		if err := KeystoreLines(t.Context(), s, func(KeyLine) error { return nil }); !errors.Is(err, bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s = &listStore{n: 100, both: make(chan struct{})}
	if err := KeystoreLines(t.Context(), s, func(KeyLine) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("show: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := KeystoreLines(ctx, &listStore{n: 100, both: make(chan struct{})}, show); !errors.Is(err, context.Canceled) {
		t.Errorf("cancel: %v", err)
	}
}

// quickStore lists its records by itself.
type quickStore struct{ keystore.Store }

func (quickStore) Metas(context.Context) iter.Seq2[keystore.Meta, error] {
	return func(yield func(keystore.Meta, error) bool) {
		for i := range 3 {
			if !yield(keystore.Meta{Unit: mac(i)}, nil) {
				return
			}
		}
	}
}

func TestKeystoreLinesOfALister(t *testing.T) {
	n := 0
	if err := KeystoreLines(t.Context(), quickStore{}, func(KeyLine) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("%d lines, %v", n, err)
	}
}

func TestJournalTwice(t *testing.T) {
	a := newStation(t, "line-1")
	s := &site{books: []*book{a, a}}
	r := NewReconciler()
	var err error
	for _, b := range s.books {
		err = JournalLines(b.all(), r.AddUnit, r.AddHead)
	}
	if err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("%v", err)
	}
}

func TestInventoryErrors(t *testing.T) {
	k := KeyLine{Unit: mac(1), State: keystore.InSilicon, Created: time.Unix(1, 0).UTC(), Newest: time.Unix(1, 0).UTC()}
	line := string(k.Append(nil))
	for name, text := range map[string]string{
		"cut": line[:len(line)-1], "two": line + line[:20] + "\n", "empty": "\n", "state": strings.Replace(line, "in-silicon", "molten", 1), "source": strings.Replace(line, "keystore", "journal", 1),
		"space": strings.Replace(line, ":", ": ", 1), "mac": strings.Replace(line, mac(1).String(), strings.ToUpper(mac(1).String()), 1), "long": strings.Repeat("x", 80<<10) + "\n",
		"more": strings.Replace(line, "}", `,"x":1}`, 1),
	} {
		if err := ReadInventory(strings.NewReader(text), func(any) error { return nil }); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, l := range []interface{ Append([]byte) []byte }{
		KeyLine{Unit: mac(1), State: keystore.InSilicon, Created: at, Newest: at, Stored: at, Station: "a\"b", Job: "ü"},
		KeyLine{Unit: mac(1), Created: at, Newest: at},
		UnitLine{Unit: mac(2), Burned: at, Entry: 7, Passes: 1, Station: "x", Verdict: "PASS"},
		UnitLine{Unit: mac(2)},
		UnitLine{Unit: mac(2), Escrow: true},
		HeadLine{Journal: "00", Station: "x", Entries: 3, Last: at},
	} {
		f.Add(bytes.TrimSuffix(l.Append(nil), []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := ParseLine(in)
		if err != nil {
			return
		}
		if out := v.(interface{ Append([]byte) []byte }).Append(nil); !bytes.Equal(out, append(bytes.Clone(in), '\n')) {
			t.Fatalf("%s became %s", in, out)
		}
	})
}

// writeInventories writes the two sides of n units, in orders of their own, with
// some findings in them.
func writeInventories(t testing.TB, n int, keys, units io.Writer) {
	t.Helper()
	at := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	fp := func(i int) keystore.Fingerprint {
		var raw [32]byte
		binary.BigEndian.PutUint64(raw[:], uint64(i))
		return keystore.Fingerprint(secret.Fingerprint(raw[:]))
	}
	var b []byte
	for i := range n {
		m := mac(i * 7919 % n) // a prime: another order than the journal's
		k := KeyLine{Unit: m, Fingerprint: fp(i * 7919 % n), State: keystore.InSilicon, Created: at, Newest: at, Stored: at, Station: "line-1", Job: "0011223344556677"}
		if i == n/2 {
			continue // a unit without a record
		}
		b = k.Append(b[:0])
		if _, err := keys.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		u := UnitLine{Unit: mac(i), Fingerprint: fp(i), Burned: at.Add(time.Minute), Verdict: "PASS", Passes: 1, Station: "line-1", Job: "0011223344556677", Entry: uint64(25 * i)}
		if i == 5 {
			u.Passes = 2
		}
		b = u.Append(b[:0])
		if _, err := units.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := units.Write(HeadLine{Journal: "00", Station: "line-1", Entries: uint64(25 * n), Last: at.Add(time.Hour)}.Append(nil)); err != nil {
		t.Fatal(err)
	}
}

func reconcileFiles(t testing.TB, names ...string) *Reconciliation {
	t.Helper()
	r := NewReconciler()
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := ReadInventory(f, r.Add); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return r.Reconcile()
}

func inventories(t testing.TB, n int) (keys, units string) {
	t.Helper()
	dir := t.TempDir()
	names := []string{dir + "/keys.jsonl", dir + "/units.jsonl"}
	var w [2]*bufio.Writer
	for i, name := range names {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		w[i] = bufio.NewWriterSize(f, 1<<20)
	}
	writeInventories(t, n, w[0], w[1])
	for i := range w {
		if err := w[i].Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return names[0], names[1]
}

func TestRows(t *testing.T) {
	for _, n := range []int{0, 1, 2, rowsPerChunk, 3*rowsPerChunk + 7} {
		var r rows[int]
		for i := range n {
			r.add(i * 7919 % (n + 1))
		}
		prev, count := -1, 0
		for v := range r.sorted(func(a, b int) int { return a - b }) {
			if v < prev {
				t.Fatalf("%d rows: %d after %d", n, v, prev)
			}
			prev = v
			count++
		}
		if count != n || r.n != n {
			t.Errorf("%d of %d rows", count, n)
		}
	}
}

// heapWatch looks at the heap until it is told to stop, and gives the most that
// there was of live and dead objects.
func heapWatch() (stop func() uint64) {
	heap := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	runtime.GC() // what tests before this one left
	most, end, done := heap(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				most = max(most, heap())
			case <-end:
				most = max(most, heap())
				return
			}
		}
	}()
	return func() uint64 { close(end); <-done; return most }
}

// TestReconcileLarge: 100,000 units on both sides take less than 64 MB of heap (27
// MB where this was written; docs/audit.md has a million). The lines themselves are
// 60 MB: whoever keeps them, with what the collector lets lie about, does not pass.
func TestReconcileLarge(t *testing.T) {
	const n, most = 100_000, 64 << 20
	keys, units := inventories(t, n)
	began, stop := time.Now(), heapWatch()
	got := reconcileFiles(t, keys, units)
	peak := stop()
	t.Logf("%d units in %s, at most %d MB of heap", n, time.Since(began), peak>>20)
	if peak > most {
		t.Errorf("%d MB of heap, want at most %d", peak>>20, most>>20)
	}
	if d := cmp.Diff(map[FindingKind]int{UnitWithoutRecord: 1, ProvisionedTwice: 1}, got.Counts); d != "" || got.Units != n || got.Records != n-1 {
		t.Errorf("%s; %d units, %d records", d, got.Units, got.Records)
	}
}

// BenchmarkReconcileMillion reports the time for a million units and the most
// memory that the process had from the system.
func BenchmarkReconcileMillion(b *testing.B) {
	keys, units := inventories(b, 1_000_000)
	for b.Loop() {
		got := reconcileFiles(b, keys, units)
		if len(got.Findings) != 2 {
			b.Fatalf("%+v", got.Counts)
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/1e6, "MB")
}
