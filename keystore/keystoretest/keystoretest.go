// Package keystoretest owns the conformance suite of keystore.Store. Every
// implementation passes it, so that the engine may rely on one behaviour:
// create-only records, one key per unit, idempotent retries, states, custody
// and durability.
package keystoretest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Harness makes the stores that the suite tests.
type Harness struct {
	// New gives an empty store. The suite closes it.
	New func(t *testing.T, testStore bool) keystore.Store
	// Reopen closes the store and opens what it stored again, as another
	// process would after a restart.
	Reopen func(t *testing.T, s keystore.Store) keystore.Store
}

// Simulated gives a simulated unit.
func Simulated(n byte) chip.MAC { return chip.MAC{0x02, 0, 0, 0, 0, n} }

// NewRecord gives a valid record with a new key. Units with a locally
// administered MAC get Simulated.
func NewRecord(t testing.TB, unit chip.MAC) keystore.Record {
	t.Helper()
	key, err := keystore.Generate(chip.SchemeXTS128)
	if err != nil {
		t.Fatal(err)
	}
	return keystore.Record{
		Schema: keystore.SchemaVersion, Unit: unit, Simulated: unit.LocallyAdministered(),
		Chip: "esp32c3", ChipRevision: 3, Scheme: chip.SchemeXTS128,
		Key: key, Fingerprint: key.Fingerprint(),
		PartitionTable: slices.Repeat([]byte{0xAA, 0x50, 1, 2}, 24), FlashSize: 4 << 20,
		Recipe: "thermostat-c3", RecipeRevision: 7,
		RecipeHash: fmt.Sprintf("%x", sha256.Sum256([]byte("recipe"))),
		Job:        "job-1", Station: "bench \"1\" ü", Lot: "lot-9",
		Created: time.Date(2026, 11, 22, 16, 0, 0, 123456789, time.UTC),
	}
}

// Run tests all that a keystore.Store promises.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Harness)
	}{
		{"Info", testInfo},
		{"CreateConfirmLoad", testCreateConfirmLoad},
		{"Schemes", testSchemes},
		{"LaterMembers", testLaterMembers},
		{"CreateRefusesInvalid", testCreateRefusesInvalid},
		{"CreateIsIdempotent", testCreateIsIdempotent},
		{"CreateOnly", testCreateOnly},
		{"OneKeyPerUnit", testOneKeyPerUnit},
		{"NotFound", testNotFound},
		{"States", testStates},
		{"StatesAreIdempotent", testStatesAreIdempotent},
		{"EveryTransition", testEveryTransition},
		{"ListAndUnits", testListAndUnits},
		{"Metas", testMetas},
		{"SimulatedUnitsStayApart", testSimulatedUnitsStayApart},
		{"ConcurrentCreate", testConcurrentCreate},
		{"ConcurrentSameRecord", testConcurrentSameRecord},
		{"ConcurrentState", testConcurrentState},
		{"Cancelled", testCancelled},
		{"Durable", testDurable},
		{"Closed", testClosed},
		{"NothingShowsTheKey", testNothingShowsTheKey},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

func open(t *testing.T, h Harness) keystore.Store {
	t.Helper()
	s := h.New(t, true)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func create(t *testing.T, s keystore.Store, r keystore.Record) keystore.Receipt {
	t.Helper()
	receipt, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return receipt
}

func addState(t *testing.T, s keystore.Store, r keystore.Record, k keystore.StateKind) keystore.Receipt {
	t.Helper()
	receipt, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job, Note: "test"})
	if err != nil {
		t.Fatalf("state %s: %v", k, err)
	}
	return receipt
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error is %v, want %v", what, err, want)
	}
}

// marshal gives a record's canonical bytes, to compare records.
func marshal(t *testing.T, r keystore.Record) string {
	t.Helper()
	b, err := keystore.MarshalRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func testInfo(t *testing.T, h Harness) {
	for _, test := range []bool{true, false} {
		s := h.New(t, test)
		info, err := s.Info(t.Context())
		if err != nil || info.TestStore != test || info.Kind == "" || info.ID == "" || info.Where == "" {
			t.Errorf("test store %v: %+v, %v", test, info, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	a, b := open(t, h), open(t, h)
	ia, _ := a.Info(t.Context())
	ib, _ := b.Info(t.Context())
	if ia.ID == ib.ID {
		t.Errorf("two stores have the same id %q", ia.ID)
	}
}

func testCreateConfirmLoad(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	created := create(t, s, r)
	info, _ := s.Info(t.Context())
	if created.Ref == "" || created.Version < 1 || created.Store != info.ID || created.Time.IsZero() {
		t.Errorf("receipt of create: %+v", created)
	}
	confirmed, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint)
	if err != nil || confirmed != created {
		t.Errorf("confirm: %+v, %v, want %+v", confirmed, err, created)
	}
	got, err := s.Load(t.Context(), r.Unit, r.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	if marshal(t, got) != marshal(t, r) {
		t.Error("what was loaded differs from what was created")
	}
	got.Key.Wipe()
	if r.Key.Len() == 0 {
		t.Error("wiping a loaded key wiped the caller's")
	}
	if _, err := s.Load(t.Context(), r.Unit, r.Fingerprint); err != nil {
		t.Errorf("load after a wipe: %v", err)
	}
}

func testSchemes(t *testing.T, h Harness) {
	s := open(t, h)
	for i, c := range []struct {
		chip   string
		scheme chip.Scheme
		length int
		config uint8
	}{
		{"esp32", chip.SchemeESP32, 32, 15},
		{"esp32", chip.SchemeESP32, 24, 15},
		{"esp32c3", chip.SchemeXTS128, 32, 0},
		{"esp32s3", chip.SchemeXTS256, 64, 0},
		{"esp32c2", chip.SchemeXTSDerived, 16, 0},
	} {
		r := NewRecord(t, Simulated(byte(i)))
		key, err := keystore.GenerateLen(c.scheme, c.length)
		if err != nil {
			t.Fatal(err)
		}
		r.Chip, r.Scheme, r.FlashCryptConfig, r.Key, r.Fingerprint = c.chip, c.scheme, c.config, key, key.Fingerprint()
		create(t, s, r)
		got, err := s.Load(t.Context(), r.Unit, r.Fingerprint)
		if err != nil || marshal(t, got) != marshal(t, r) {
			t.Errorf("%s with %d bytes: %v", c.scheme, c.length, err)
		}
	}
}

// WithLaterMembers gives a record every member that old records do not have.
func WithLaterMembers(t testing.TB, r keystore.Record) keystore.Record {
	t.Helper()
	token, err := r.Key.DeriveOTAToken(r.Unit)
	if err != nil {
		t.Fatal(err)
	}
	digest := token.SHA256()
	point, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.OTATokenSHA256, r.ECIESPublicKey = &digest, point.PublicKey().Bytes()[1:]
	r.SecureBootScheme = "rsa3072"
	r.SecureBootDigests = [][32]byte{sha256.Sum256([]byte("one")), sha256.Sum256([]byte("two"))}
	return r
}

// testLaterMembers: what a record may lack is kept, shown without the key, and
// part of what makes two records differ.
func testLaterMembers(t *testing.T, h Harness) {
	s := h.New(t, true)
	full := WithLaterMembers(t, NewRecord(t, Simulated(1)))
	token := WithLaterMembers(t, NewRecord(t, Simulated(2)))
	token.ECIESPublicKey, token.SecureBootScheme, token.SecureBootDigests = nil, "", nil
	bare := NewRecord(t, Simulated(3))
	for _, r := range []keystore.Record{full, token, bare} {
		first := create(t, s, r)
		if again := create(t, s, r); again != first {
			t.Errorf("the second receipt differs: %+v, %+v", first, again)
		}
	}
	look := func(when string) {
		for _, r := range []keystore.Record{full, token, bare} {
			got, err := s.Load(t.Context(), r.Unit, r.Fingerprint)
			if err != nil || marshal(t, got) != marshal(t, r) {
				t.Errorf("%s: load: %v", when, err)
			}
			metas, err := s.List(t.Context(), r.Unit)
			if err != nil || len(metas) != 1 {
				t.Fatalf("%s: %+v, %v", when, metas, err)
			}
			want := r.Meta()
			want.Receipt = metas[0].Receipt
			if got := metas[0]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("%s: listed:\n%+v\nwant:\n%+v", when, got, want)
			}
		}
	}
	look("created")
	for name, change := range map[string]func(*keystore.Record){
		"no token":      func(r *keystore.Record) { r.OTATokenSHA256 = nil },
		"another token": func(r *keystore.Record) { r.OTATokenSHA256 = &keystore.Digest{1} },
		"no ECIES key":  func(r *keystore.Record) { r.ECIESPublicKey = nil },
		"one digest":    func(r *keystore.Record) { r.SecureBootDigests = r.SecureBootDigests[:1] },
		"the other order": func(r *keystore.Record) {
			r.SecureBootDigests = [][32]byte{r.SecureBootDigests[1], r.SecureBootDigests[0]}
		},
		"another scheme": func(r *keystore.Record) { r.SecureBootScheme = "ecdsa256" },
	} {
		changed := full
		change(&changed)
		_, err := s.Create(t.Context(), changed)
		wantErr(t, "create with "+name, err, keystore.ErrExists)
	}
	s = h.Reopen(t, s)
	t.Cleanup(func() { _ = s.Close() })
	look("reopened")
}

func testCreateRefusesInvalid(t *testing.T, h Harness) {
	s := open(t, h)
	other, _ := keystore.Generate(chip.SchemeXTS128)
	for name, spoil := range map[string]func(*keystore.Record){
		"no key":            func(r *keystore.Record) { r.Key = keystore.Key{} },
		"wiped key":         func(r *keystore.Record) { r.Key.Wipe() },
		"other fingerprint": func(r *keystore.Record) { r.Fingerprint = other.Fingerprint() },
		"schema":            func(r *keystore.Record) { r.Schema++ },
		"not marked":        func(r *keystore.Record) { r.Simulated = false },
		"no job":            func(r *keystore.Record) { r.Job = "" },
		"half a point":      func(r *keystore.Record) { r.ECIESPublicKey = make([]byte, 32) },
	} {
		r := NewRecord(t, Simulated(1))
		spoil(&r)
		if _, err := s.Create(t.Context(), r); err == nil {
			t.Errorf("%s: create succeeded", name)
		}
	}
	if metas, err := s.List(t.Context(), Simulated(1)); err != nil || len(metas) != 0 {
		t.Errorf("after refusals only: %v, %v", metas, err)
	}
}

func testCreateIsIdempotent(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	first := create(t, s, r)
	if second := create(t, s, r); second != first {
		t.Errorf("the second receipt differs: %+v, %+v", first, second)
	}
	addState(t, s, r, keystore.MayBeInSilicon)
	if third := create(t, s, r); third != first {
		t.Errorf("the third receipt differs: %+v, %+v", first, third)
	}
	metas, err := s.List(t.Context(), r.Unit)
	if err != nil || len(metas) != 1 || len(metas[0].States) != 1 {
		t.Errorf("after three creates: %+v, %v", metas, err)
	}
}

func testCreateOnly(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	create(t, s, r)
	for name, change := range map[string]func(*keystore.Record){
		"job": func(r *keystore.Record) { r.Job = "job-2" },
		"partition table": func(r *keystore.Record) {
			r.PartitionTable = append(slices.Clone(r.PartitionTable), make([]byte, 32)...)
		},
		"flash size": func(r *keystore.Record) { r.FlashSize *= 2 },
		"created":    func(r *keystore.Record) { r.Created = r.Created.Add(time.Nanosecond) },
	} {
		changed := r
		change(&changed)
		_, err := s.Create(t.Context(), changed)
		wantErr(t, "create with another "+name, err, keystore.ErrExists)
	}
	got, err := s.Load(t.Context(), r.Unit, r.Fingerprint)
	if err != nil || marshal(t, got) != marshal(t, r) {
		t.Errorf("the record changed: %v", err)
	}
}

func testOneKeyPerUnit(t *testing.T, h Harness) {
	s := open(t, h)
	a, b, c := NewRecord(t, Simulated(1)), NewRecord(t, Simulated(1)), NewRecord(t, Simulated(1))
	create(t, s, a)

	_, err := s.Create(t.Context(), b)
	var conflict *keystore.ConflictError
	if !errors.Is(err, keystore.ErrConflict) || !errors.As(err, &conflict) ||
		conflict.Fingerprint != a.Fingerprint || conflict.Unit != a.Unit || conflict.State != keystore.Stored {
		t.Fatalf("a second key: %v", err)
	}
	wantNotFound(t, s, b)

	addState(t, s, a, keystore.Superseded)
	create(t, s, b)
	_, err = s.Create(t.Context(), a)
	wantErr(t, "create a superseded key again", err, keystore.ErrExists)

	addState(t, s, b, keystore.MayBeInSilicon)
	_, err = s.AddState(t.Context(), b.Unit, b.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "x"})
	wantErr(t, "supersede what may be in silicon", err, keystore.ErrState)
	_, err = s.Create(t.Context(), c)
	if !errors.As(err, &conflict) || conflict.Fingerprint != b.Fingerprint || conflict.State != keystore.MayBeInSilicon {
		t.Fatalf("a key beside one that may be in silicon: %v", err)
	}
	addState(t, s, b, keystore.Quarantined)
	_, err = s.Create(t.Context(), c)
	wantErr(t, "a key beside a quarantined one", err, keystore.ErrConflict)

	create(t, s, NewRecord(t, Simulated(2))) // another unit is not concerned
}

func wantNotFound(t *testing.T, s keystore.Store, r keystore.Record) {
	t.Helper()
	_, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint)
	wantErr(t, "confirm", err, keystore.ErrNotFound)
	_, err = s.Load(t.Context(), r.Unit, r.Fingerprint)
	wantErr(t, "load", err, keystore.ErrNotFound)
	_, err = s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"})
	wantErr(t, "state", err, keystore.ErrNotFound)
}

func testNotFound(t *testing.T, h Harness) {
	s := open(t, h)
	a, b := NewRecord(t, Simulated(1)), NewRecord(t, Simulated(2))
	create(t, s, a)
	wantNotFound(t, s, b)
	b.Unit = a.Unit // its unit, another key
	wantNotFound(t, s, b)
	a.Unit = Simulated(3) // its key, another unit
	wantNotFound(t, s, a)
	if metas, err := s.List(t.Context(), Simulated(9)); err != nil || len(metas) != 0 {
		t.Errorf("list of an unknown unit: %v, %v", metas, err)
	}
}

func testStates(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	create(t, s, r)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint,
		keystore.State{Kind: keystore.MayBeInSilicon, Job: "job-1", Note: "before the burn", Station: "s", Time: at}); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	receipt := addState(t, s, r, keystore.InSilicon)
	metas, err := s.List(t.Context(), r.Unit)
	if err != nil || len(metas) != 1 {
		t.Fatalf("%+v, %v", metas, err)
	}
	m := metas[0]
	want := keystore.State{Seq: 1, Kind: keystore.MayBeInSilicon, Job: "job-1", Note: "before the burn", Station: "s", Time: at}
	if len(m.States) != 2 || m.States[0] != want {
		t.Fatalf("states: %+v", m.States)
	}
	second := m.States[1]
	if second.Seq != 2 || second.Kind != keystore.InSilicon || second.Time.Before(before.Add(-time.Minute)) || second.Time.Location() != time.UTC {
		t.Errorf("second state: %+v", second)
	}
	if receipt.Version != 2 || receipt.Ref == "" || !receipt.Time.Equal(second.Time) {
		t.Errorf("its receipt: %+v", receipt)
	}
	if m.Current() != keystore.InSilicon || !m.MayBeInSilicon() || m.Superseded() {
		t.Errorf("summary of %+v is wrong", m)
	}
	for name, st := range map[string]keystore.State{
		"unknown kind": {Kind: "melted", Job: "j"},
		"no kind":      {Job: "j"},
		"no job":       {Kind: keystore.Quarantined},
		"note":         {Kind: keystore.Quarantined, Job: "j", Note: "two\nlines"},
	} {
		if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, st); err == nil {
			t.Errorf("%s: state was added", name)
		}
	}
}

func testStatesAreIdempotent(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	create(t, s, r)
	first := addState(t, s, r, keystore.MayBeInSilicon)
	if again := addState(t, s, r, keystore.MayBeInSilicon); again != first {
		t.Errorf("the same state twice: %+v, %+v", first, again)
	}
	_, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "another"})
	wantErr(t, "the same state by another job", err, keystore.ErrState)
	if metas, _ := s.List(t.Context(), r.Unit); len(metas[0].States) != 1 {
		t.Errorf("states: %+v", metas[0].States)
	}
}

// testEveryTransition walks every path of states up to four long and compares
// the store with keystore.CheckTransition.
func testEveryTransition(t *testing.T, h Harness) {
	s := open(t, h)
	kinds := keystore.StateKinds()
	unit, tried := byte(0), 0
	var walk func(path []keystore.StateKind)
	walk = func(path []keystore.StateKind) {
		for _, next := range kinds {
			if len(path) > 0 && path[len(path)-1] == next {
				continue // idempotence has its own test
			}
			unit++
			tried++
			r := NewRecord(t, Simulated(unit))
			create(t, s, r)
			var history []keystore.State
			for _, k := range path {
				addState(t, s, r, k)
				history = append(history, keystore.State{Kind: k})
			}
			_, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: next, Job: r.Job})
			want := keystore.CheckTransition(history, next)
			if (err == nil) != (want == nil) || (want != nil && !errors.Is(err, keystore.ErrState)) {
				t.Errorf("%v then %s: %v, want %v", path, next, err, want)
			}
			if err == nil && len(path) < 3 {
				walk(append(slices.Clone(path), next))
			}
		}
	}
	walk(nil)
	if tried < 30 {
		t.Errorf("only %d paths tried", tried)
	}
}

func testListAndUnits(t *testing.T, h Harness) {
	s := open(t, h)
	want := []chip.MAC{}
	for i := byte(40); i > 0; i-- { // stored in descending order
		create(t, s, NewRecord(t, Simulated(i)))
		want = append(want, Simulated(i))
	}
	slices.Reverse(want)
	var got []chip.MAC
	for u, err := range s.Units(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.List(t.Context(), u); err != nil { // the loop may use the store
			t.Fatal(err)
		}
		got = append(got, u)
	}
	if !slices.Equal(got, want) {
		t.Errorf("units: %v", got)
	}
	seen := 0
	for _, err := range s.Units(t.Context()) { // and may stop early
		if seen++; err != nil {
			t.Fatal(err)
		}
		break
	}
	if seen != 1 {
		t.Errorf("%d units before the break", seen)
	}
	// Two keys of one unit: in the order of their creation.
	a, b := NewRecord(t, Simulated(100)), NewRecord(t, Simulated(100))
	ra := create(t, s, a)
	addState(t, s, a, keystore.Superseded)
	rb := create(t, s, b)
	metas, err := s.List(t.Context(), a.Unit)
	if err != nil || len(metas) != 2 {
		t.Fatalf("%+v, %v", metas, err)
	}
	if metas[0].Fingerprint != a.Fingerprint || metas[1].Fingerprint != b.Fingerprint ||
		metas[0].Receipt != ra || metas[1].Receipt != rb || metas[0].Unit != a.Unit {
		t.Errorf("list: %+v", metas)
	}
	if !metas[0].Superseded() || metas[1].Superseded() {
		t.Errorf("states: %+v, %+v", metas[0].States, metas[1].States)
	}
}

// testMetas holds what a store tells of all its records against what List tells of
// each unit, with the store's own Metas, if it is a keystore.Lister, and without.
func testMetas(t *testing.T, h Harness) {
	s := open(t, h)
	for _, err := range keystore.Metas(t.Context(), s) {
		t.Fatalf("an empty store has a record: %v", err)
	}
	for i := byte(40); i > 0; i-- { // stored in descending order
		r := NewRecord(t, Simulated(i))
		create(t, s, r)
		switch i % 4 {
		case 0:
			addState(t, s, r, keystore.MayBeInSilicon)
			addState(t, s, r, keystore.InSilicon)
		case 1:
			addState(t, s, r, keystore.Superseded)
			create(t, s, NewRecord(t, r.Unit))
		}
	}
	var want []string
	for u, err := range s.Units(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		metas, err := s.List(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range metas {
			want = append(want, fmt.Sprintf("%+v", m))
		}
	}
	if len(want) != 50 {
		t.Fatalf("%d records", len(want))
	}
	for name, all := range map[string]func(context.Context) iter.Seq2[keystore.Meta, error]{
		"as the store does": func(ctx context.Context) iter.Seq2[keystore.Meta, error] { return keystore.Metas(ctx, s) },
		"unit by unit":      func(ctx context.Context) iter.Seq2[keystore.Meta, error] { return keystore.ListUnits(ctx, s, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for m, err := range all(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Confirm(t.Context(), m.Unit, m.Fingerprint); err != nil { // the loop may use the store
					t.Fatal(err)
				}
				got = append(got, fmt.Sprintf("%+v", m))
			}
			if !slices.Equal(got, want) {
				t.Errorf("metas:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			seen := 0
			for _, err := range all(t.Context()) { // and may stop early
				if seen++; err != nil || seen == 2 {
					break
				}
			}
			if seen != 2 {
				t.Errorf("%d records before the break", seen)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen = 0
			var last error
			for _, err := range all(ctx) {
				cancel()
				seen, last = seen+1, err
			}
			if wantErr(t, "metas, cancelled on the way", last, context.Canceled); seen > 3 { // the first unit has two records
				t.Errorf("%d records after the first unit", seen-3)
			}
		})
	}
}

func testSimulatedUnitsStayApart(t *testing.T, h Harness) {
	unit := chip.MAC{0x24, 0x0A, 0xC4, 0, 0, 1} // a vendor's
	for _, test := range []bool{true, false} {
		s := h.New(t, test)
		_, errReal := s.Create(t.Context(), NewRecord(t, unit))
		_, errSimulated := s.Create(t.Context(), NewRecord(t, Simulated(1)))
		allowed, refused := errReal, errSimulated
		if test {
			allowed, refused = errSimulated, errReal
		}
		if allowed != nil || !errors.Is(refused, keystore.ErrTestUnit) {
			t.Errorf("test store %v: real unit: %v; simulated unit: %v", test, errReal, errSimulated)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

const racers = 16

func testConcurrentCreate(t *testing.T, h Harness) {
	s := open(t, h)
	for round := range byte(4) {
		unit := Simulated(round)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			r := NewRecord(t, unit)
			wg.Go(func() { _, errs[i] = s.Create(t.Context(), r) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, keystore.ErrConflict) {
				t.Errorf("a loser's error: %v", err)
			}
		}
		metas, err := s.List(t.Context(), unit)
		if err != nil || won != 1 {
			t.Errorf("%d of %d creates won; %v", won, racers, err)
		}
		live := slices.DeleteFunc(metas, keystore.Meta.Superseded)
		if len(live) != 1 {
			t.Errorf("%d records are not superseded", len(live))
		}
	}
}

func testConcurrentSameRecord(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	receipts := make([]keystore.Receipt, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			var err error
			if receipts[i], err = s.Create(t.Context(), r); err != nil {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	for _, got := range receipts {
		if got != receipts[0] {
			t.Errorf("receipts differ: %+v, %+v", got, receipts[0])
		}
	}
}

// testConcurrentState races the burn against giving the key up: one of them wins.
func testConcurrentState(t *testing.T, h Harness) {
	s := open(t, h)
	for i := range byte(8) {
		r := NewRecord(t, Simulated(i))
		create(t, s, r)
		var burn, drop error
		var wg sync.WaitGroup
		wg.Go(func() {
			_, burn = s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "a"})
		})
		wg.Go(func() {
			_, drop = s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "b"})
		})
		wg.Wait()
		if (burn == nil) == (drop == nil) {
			t.Errorf("burn: %v; supersede: %v", burn, drop)
		}
	}
}

func testCancelled(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	create(t, s, r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fresh := NewRecord(t, Simulated(2))
	_, err := s.Create(ctx, fresh)
	wantErr(t, "create", err, context.Canceled)
	_, err = s.Confirm(ctx, r.Unit, r.Fingerprint)
	wantErr(t, "confirm", err, context.Canceled)
	_, err = s.Load(ctx, r.Unit, r.Fingerprint)
	wantErr(t, "load", err, context.Canceled)
	_, err = s.List(ctx, r.Unit)
	wantErr(t, "list", err, context.Canceled)
	_, err = s.AddState(ctx, r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"})
	wantErr(t, "state", err, context.Canceled)
	_, err = s.Info(ctx)
	wantErr(t, "info", err, context.Canceled)
	for _, e := range s.Units(ctx) {
		err = e
	}
	wantErr(t, "units", err, context.Canceled)
	err = nil
	for _, e := range keystore.Metas(ctx, s) {
		err = e
	}
	wantErr(t, "metas", err, context.Canceled)

	wantNotFound(t, s, fresh)
	if metas, err := s.List(t.Context(), r.Unit); err != nil || len(metas[0].States) != 0 {
		t.Errorf("a cancelled state was added: %+v, %v", metas, err)
	}
}

func testDurable(t *testing.T, h Harness) {
	s := h.New(t, true)
	a, b := NewRecord(t, Simulated(1)), NewRecord(t, Simulated(1))
	create(t, s, a)
	addState(t, s, a, keystore.Superseded)
	receipt := create(t, s, b)
	addState(t, s, b, keystore.MayBeInSilicon)
	before, err := s.List(t.Context(), a.Unit)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := s.Info(t.Context())

	s = h.Reopen(t, s)
	t.Cleanup(func() { _ = s.Close() })
	if again, err := s.Info(t.Context()); err != nil || again.ID != info.ID || again.TestStore != info.TestStore {
		t.Errorf("info changed: %+v, %+v, %v", info, again, err)
	}
	after, err := s.List(t.Context(), a.Unit)
	if err != nil || fmt.Sprintf("%+v", after) != fmt.Sprintf("%+v", before) {
		t.Errorf("before: %+v\nafter: %+v, %v", before, after, err)
	}
	if again, err := s.Confirm(t.Context(), b.Unit, b.Fingerprint); err != nil || again != receipt {
		t.Errorf("confirm: %+v, %v, want %+v", again, err, receipt)
	}
	for _, r := range []keystore.Record{a, b} {
		if got, err := s.Load(t.Context(), r.Unit, r.Fingerprint); err != nil || marshal(t, got) != marshal(t, r) {
			t.Errorf("load: %v", err)
		}
	}
	_, err = s.Create(t.Context(), NewRecord(t, a.Unit))
	wantErr(t, "a third key", err, keystore.ErrConflict)
	if again := create(t, s, b); again != receipt {
		t.Errorf("create again: %+v, want %+v", again, receipt)
	}
}

func testClosed(t *testing.T, h Harness) {
	s := h.New(t, true)
	r := NewRecord(t, Simulated(1))
	create(t, s, r)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Create(t.Context(), NewRecord(t, Simulated(2)))
	wantErr(t, "create", err, keystore.ErrUnavailable)
	_, err = s.Confirm(t.Context(), r.Unit, r.Fingerprint)
	wantErr(t, "confirm", err, keystore.ErrUnavailable)
	_, err = s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"})
	wantErr(t, "state", err, keystore.ErrUnavailable)
	_, err = s.Info(t.Context())
	wantErr(t, "info", err, keystore.ErrUnavailable)
	err = nil
	for _, e := range keystore.Metas(t.Context(), s) {
		err = e
	}
	wantErr(t, "metas", err, keystore.ErrUnavailable)
}

// testNothingShowsTheKey prints everything that the store hands out.
func testNothingShowsTheKey(t *testing.T, h Harness) {
	s := open(t, h)
	r := NewRecord(t, Simulated(1))
	receipt := create(t, s, r)
	_, conflict := s.Create(t.Context(), NewRecord(t, r.Unit))
	changed := r
	changed.Job = "job-2"
	_, exists := s.Create(t.Context(), changed)
	metas, _ := s.List(t.Context(), r.Unit)
	loaded, _ := s.Load(t.Context(), r.Unit, r.Fingerprint)
	info, _ := s.Info(t.Context())
	var text strings.Builder
	for _, v := range []any{r, &r, loaded, receipt, conflict, exists, metas, info, s} {
		fmt.Fprintf(&text, "%v %+v %#v %s %x %q\n", v, v, v, v, v, v)
		if j, err := json.Marshal(v); err == nil {
			text.Write(j)
		}
	}
	out := text.String()
	_ = r.Key.Use(func(key []byte) error {
		decimal := strings.Trim(fmt.Sprintf("%d", key[:8]), "[]")
		for _, form := range []string{
			string(key[:8]), fmt.Sprintf("%x", key[:8]), fmt.Sprintf("%X", key[:8]),
			decimal, strings.ReplaceAll(decimal, " ", ", "),
		} {
			if strings.Contains(out, form) {
				t.Errorf("the key shows in: %s", out)
			}
		}
		return nil
	})
}
