package vault

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func (x *site) put(t *testing.T, path string, data any) {
	t.Helper()
	x.srv.Must(t, http.MethodPut, x.mount+"/data/"+path, map[string]any{"data": data, "options": map[string]any{"cas": 0}})
}

func findings(t *testing.T, s *Store) keystore.CheckReport {
	t.Helper()
	rep, err := keystore.Check(t.Context(), s, keystore.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// TestCheck damages a store in every way that somebody with more rights than a
// station can, and finds all of it.
func TestCheck(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, auditor := x.open(t, RoleStation), x.open(t, RoleAuditor)
	ctx := t.Context()
	made := make([]keystore.Record, 8)
	for i := range made {
		made[i] = keystoretest.NewRecord(t, keystoretest.Simulated(byte(i)))
		if _, err := s.Create(ctx, made[i]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AddState(ctx, made[i].Unit, made[i].Fingerprint, keystore.State{Kind: keystore.InSilicon, Job: "j"}); err != nil {
			t.Fatal(err)
		}
	}
	if rep := findings(t, auditor); len(rep.Findings) != 0 || rep.Units != 8 || rep.Records != 8 || rep.InSilicon != 8 || rep.Pending != 0 {
		t.Fatalf("%+v", rep)
	}

	at := func(i int) string { return recordPath(made[i].Unit, made[i].Fingerprint) }
	fresh := keystoretest.NewRecord(t, made[0].Unit)
	x.put(t, recordPath(fresh.Unit, fresh.Fingerprint), map[string]any{"x": 1})
	x.put(t, unitPath(made[1].Unit)+"/notes", map[string]any{"x": 1})
	x.srv.Must(t, http.MethodDelete, "kv/data/"+at(2), nil)
	x.srv.Must(t, http.MethodPut, "kv/data/"+at(3), map[string]any{"data": map[string]any{"x": 1}, "options": map[string]any{"cas": 1}})
	x.put(t, at(4)+"/state/2", map[string]any{"kind": "superseded", "note": "", "job": "j", "station": "", "time": "2026-11-22T00:00:00Z"})
	second := keystoretest.NewRecord(t, made[5].Unit)
	x.put(t, claimPath(made[5].Unit, 2), claim{Fingerprint: second.Fingerprint, Job: "j"})
	x.srv.Must(t, http.MethodPut, "kv/destroy/"+at(6), map[string]any{"versions": []int{1}})
	x.put(t, claimPath(keystoretest.Simulated(9), 1), claim{Fingerprint: made[7].Fingerprint, Job: "j"})

	x.put(t, "units/zz/notes", map[string]any{"x": 1})
	x.put(t, "units/00/"+made[0].Unit.String()+"0", map[string]any{"x": 1})
	pending := keystoretest.NewRecord(t, keystoretest.Simulated(10))
	pending.Created = time.Now()
	if err := s.Reserve(ctx, pending.Meta()); err != nil {
		t.Fatal(err)
	}
	late := x.open(t, RoleAuditor)
	late.now = func() time.Time { return time.Now().Add(pendingFor) }

	rep := findings(t, auditor)
	if rep.Pending != 1 {
		t.Errorf("%d units are pending", rep.Pending)
	}
	if later := findings(t, late); later.Pending != 0 || len(later.Findings) != len(rep.Findings)+1 {
		t.Errorf("later: %d pending, %d findings, %d before", later.Pending, len(later.Findings), len(rep.Findings))
	}
	got := map[string][]keystore.FindingKind{}
	for _, f := range rep.Findings {
		got[f.Unit.String()] = append(got[f.Unit.String()], f.Kind)
		if f.Problem == "" || !strings.HasPrefix(f.String(), string(f.Kind)+": ") {
			t.Errorf("%q has no words", f)
		}
	}
	if kinds := got[chip.MAC{}.String()]; !slices.Equal(kinds, []keystore.FindingKind{keystore.FindingForeign, keystore.FindingForeign}) {
		t.Errorf("foreign names above the units: %v", kinds)
	}
	for i, want := range [][]keystore.FindingKind{
		{keystore.FindingUnclaimed},
		{keystore.FindingForeign},
		{keystore.FindingDamaged},
		{keystore.FindingDamaged},
		{keystore.FindingDamaged},
		{keystore.FindingClaimOnly, keystore.FindingTwoKeys},
		{keystore.FindingDamaged},
	} {
		kinds := got[made[i].Unit.String()]
		slices.Sort(kinds)
		if !slices.Equal(kinds, want) {
			t.Errorf("unit %d: %v, want %v", i, kinds, want)
		}
	}
	if kinds := slices.Concat(got[made[7].Unit.String()], got[keystoretest.Simulated(9).String()]); !slices.Contains(kinds, keystore.FindingDuplicate) {
		t.Errorf("one key for two units: %v", kinds)
	}

	// What was deleted or overwritten is not taken for a missing record.
	for _, i := range []int{2, 3, 6} {
		if _, err := s.Confirm(ctx, made[i].Unit, made[i].Fingerprint); !errors.Is(err, keystore.ErrDamaged) {
			t.Errorf("confirm of unit %d: %v", i, err)
		}
		if _, err := x.open(t, RoleOTA).Load(ctx, made[i].Unit, made[i].Fingerprint); !errors.Is(err, keystore.ErrDamaged) {
			t.Errorf("load of unit %d: %v", i, err)
		}
	}
	if _, err := s.Create(ctx, keystoretest.NewRecord(t, made[4].Unit)); !errors.Is(err, keystore.ErrDamaged) {
		t.Errorf("a key in place of one that was given up after it was burned: %v", err)
	}
	if _, err := keystore.Check(ctx, s, keystore.CheckOptions{}); !errors.Is(err, ErrDenied) {
		t.Errorf("check as a station: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := keystore.Check(cancelled, auditor, keystore.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestStolenStation does what a thief can do with a station's login.
func TestStolenStation(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	honest, thief, auditor := x.open(t, RoleStation), x.open(t, RoleStation), x.open(t, RoleAuditor)
	ctx := t.Context()
	burned, stored := keystoretest.NewRecord(t, keystoretest.Simulated(1)), keystoretest.NewRecord(t, keystoretest.Simulated(2))
	for _, r := range []keystore.Record{burned, stored} {
		if _, err := honest.Create(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := honest.AddState(ctx, burned.Unit, burned.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"}); err != nil {
		t.Fatal(err)
	}
	// No key, not even knowing unit and fingerprint, and no list of units.
	if _, err := thief.Load(ctx, burned.Unit, burned.Fingerprint); !errors.Is(err, ErrDenied) {
		t.Errorf("load: %v", err)
	}
	for _, err := range thief.Units(ctx) {
		if !errors.Is(err, ErrDenied) {
			t.Errorf("units: %v", err)
		}
	}
	// No second key for a unit whose key may be in silicon.
	if _, err := thief.AddState(ctx, burned.Unit, burned.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "t"}); !errors.Is(err, keystore.ErrState) {
		t.Errorf("supersede: %v", err)
	}
	forged, _ := encode(stateJSON{Kind: "superseded", Job: "t", Time: burned.Created})
	if ok, _, err := thief.put(ctx, statePath(burned.Unit, burned.Fingerprint, 2), forged, nil); !ok {
		t.Fatalf("forged state: %v", err)
	}
	if _, err := honest.Create(ctx, keystoretest.NewRecord(t, burned.Unit)); !errors.Is(err, keystore.ErrDamaged) {
		t.Errorf("after a forged state: %v", err)
	}
	if got, err := x.open(t, RoleOTA).Load(ctx, burned.Unit, burned.Fingerprint); err != nil || !got.Key.Equal(burned.Key) {
		t.Errorf("the key is not affected: %v", err)
	}
	// He can stop a unit that is not burned yet: the honest station is refused, and burns nothing.
	if _, err := thief.AddState(ctx, stored.Unit, stored.Fingerprint, keystore.State{Kind: keystore.Superseded, Job: "t"}); err != nil {
		t.Fatal(err)
	}
	if _, err := honest.AddState(ctx, stored.Unit, stored.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"}); !errors.Is(err, keystore.ErrState) {
		t.Errorf("burn: %v", err)
	}
	// And he can put records there that no claim names; they are found.
	fake := keystoretest.NewRecord(t, stored.Unit)
	body, _, _ := encodeRecord(fake)
	if ok, _, err := thief.put(ctx, recordPath(fake.Unit, fake.Fingerprint), body, nil); !ok {
		t.Fatal(err)
	}
	var words []string
	for _, f := range findings(t, auditor).Findings {
		words = append(words, string(f.Kind))
	}
	if !slices.Contains(words, string(keystore.FindingUnclaimed)) || !slices.Contains(words, string(keystore.FindingDamaged)) {
		t.Errorf("found: %s", strings.Join(words, ", "))
	}
}

// TestCheckpoints: a station's journal heads are written once, and read by it
// and by an auditor.
func TestCheckpoints(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s, auditor := x.open(t, RoleStation), x.open(t, RoleAuditor)
	ctx := t.Context()
	note := []byte("provisiond journal\n12\nhash\n\n— sig\n")
	for range 2 {
		if err := s.PutCheckpoint(ctx, "2026-11-22", "12", note); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutCheckpoint(ctx, "2026-11-22", "12", []byte("rewritten")); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("another note: %v", err)
	}
	if err := s.PutCheckpoint(ctx, "2026-11-22", "13-1", note); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][2]string{{"2026-11-22", "../x"}, {"..", "1"}, {"2026-11-22", "-1"}, {"", "1"}} {
		if err := s.PutCheckpoint(ctx, bad[0], bad[1], note); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, who := range []*Store{s, auditor} {
		days, err := who.CheckpointDays(ctx, stationName)
		if err != nil || !slices.Equal(days, []string{"2026-11-22"}) {
			t.Errorf("days: %q, %v", days, err)
		}
		names, err := who.CheckpointNames(ctx, stationName, "2026-11-22")
		if err != nil || !slices.Equal(names, []string{"12", "13-1"}) {
			t.Errorf("names: %q, %v", names, err)
		}
		got, err := who.Checkpoint(ctx, stationName, "2026-11-22", "12")
		if err != nil || string(got) != string(note) {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := who.Checkpoint(ctx, stationName, "2026-11-22", "99"); !errors.Is(err, keystore.ErrNotFound) {
			t.Errorf("a missing one: %v", err)
		}
	}
	if got, err := auditor.CheckpointStations(ctx); err != nil || !slices.Equal(got, []string{stationName}) {
		t.Errorf("stations: %q, %v", got, err)
	}
	if _, err := s.CheckpointDays(ctx, "line2"); !errors.Is(err, ErrDenied) {
		t.Errorf("another station's: %v", err)
	}
}

// TestCheckReadsKeys: somebody with both roles holds every key against its
// fingerprint, and everything against the digest.
func TestCheckReadsKeys(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	s := x.open(t, RoleStation)
	token := x.srv.Token(t, PolicyName(RoleAuditor, PolicyParams{Mount: x.mount}), PolicyName(RoleOTA, PolicyParams{Mount: x.mount}))
	both, err := Open(t.Context(), x.config(t, token))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = both.Close() }()
	for i := range 3 {
		if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(byte(i)))); err != nil {
			t.Fatal(err)
		}
	}
	// A record whose names are right and whose key is another one.
	r := keystoretest.NewRecord(t, keystoretest.Simulated(3))
	body, _, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(body, []byte(`"key":"`)) + len(`"key":"`)
	body[at] = "01"[(body[at]-'0'+1)&1]
	if err := s.claim(t.Context(), r.Meta()); err != nil {
		t.Fatal(err)
	}
	if ok, _, err := s.put(t.Context(), recordPath(r.Unit, r.Fingerprint), body, nil); !ok {
		t.Fatal(err)
	}
	var units []int
	var found []keystore.Finding
	o := keystore.CheckOptions{Progress: func(n int) { units = append(units, n) }, Found: func(f keystore.Finding) { found = append(found, f) }}
	rep, err := keystore.Check(t.Context(), both, o)
	if err != nil || len(found) != 0 || rep.KeysRead != 0 || !slices.Equal(units, []int{1, 2, 3, 4}) {
		t.Errorf("without keys: %+v, %v, %v, %v", rep, found, units, err)
	}
	o.ReadKeys = true
	rep, err = keystore.Check(t.Context(), both, o)
	if err != nil || rep.KeysRead != 3 || len(rep.Findings) != 0 || len(found) != 1 || found[0].Kind != keystore.FindingDamaged || found[0].Unit != r.Unit {
		t.Errorf("with keys: %+v, %v, %v", rep, found, err)
	}
	if _, err := keystore.Check(t.Context(), x.open(t, RoleAuditor), o); !errors.Is(err, ErrDenied) {
		t.Errorf("an auditor reads keys: %v", err)
	}
}
