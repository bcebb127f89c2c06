package keystore_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// shelf is a Store of which only what Check needs is there.
type shelf struct {
	keystore.Store
	units   []chip.MAC
	metas   map[chip.MAC][]keystore.Meta
	records map[keystore.Fingerprint]keystore.Record
	broken  map[keystore.Fingerprint]error
}

func (s *shelf) Info(context.Context) (keystore.Info, error) {
	return keystore.Info{TestStore: true}, nil
}

func (s *shelf) Units(context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		for _, u := range s.units {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *shelf) List(_ context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	return s.metas[unit], s.broken[keystore.Fingerprint(slices.Concat(unit[:], make([]byte, 26)))]
}

func (s *shelf) Confirm(_ context.Context, _ chip.MAC, fp keystore.Fingerprint) (keystore.Receipt, error) {
	return keystore.Receipt{}, s.broken[fp]
}

func (s *shelf) Load(_ context.Context, _ chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	r := s.records[fp]
	err := r.Key.Use(func(b []byte) (err error) { // a copy: the caller wipes it
		r.Key, err = keystore.KeyFromBytes(slices.Clone(b))
		return err
	})
	return r, err
}

func (s *shelf) put(r keystore.Record, states ...keystore.StateKind) {
	m := r.Meta()
	m.Receipt.Ref = "ref"
	for _, k := range states {
		m.States = append(m.States, keystore.State{Kind: k})
	}
	if !slices.Contains(s.units, r.Unit) {
		s.units = append(s.units, r.Unit)
	}
	s.metas[r.Unit] = append(s.metas[r.Unit], m)
	s.records[r.Fingerprint] = r
}

// TestCheckAnyStore: everything that Check finds in a store that does not look
// through itself.
func TestCheckAnyStore(t *testing.T) {
	s := &shelf{metas: map[chip.MAC][]keystore.Meta{}, records: map[keystore.Fingerprint]keystore.Record{}, broken: map[keystore.Fingerprint]error{}}
	fresh := func(n byte) keystore.Record { return keystoretest.NewRecord(t, keystoretest.Simulated(n)) }
	s.put(fresh(0), keystore.InSilicon)
	given := fresh(1)
	s.put(given, keystore.Superseded)
	s.put(fresh(1))
	rep, err := keystore.Check(t.Context(), s, keystore.CheckOptions{ReadKeys: true})
	if err != nil || rep.Units != 2 || rep.Records != 3 || rep.KeysRead != 3 || rep.InSilicon != 1 || rep.Superseded != 1 || rep.Findings == nil || len(rep.Findings) != 0 {
		t.Fatalf("nothing is wrong: %+v, %v", rep, err)
	}

	s.put(fresh(2))
	s.put(fresh(2))
	twice := given
	twice.Unit = keystoretest.Simulated(3)
	s.put(twice)
	s.records[given.Fingerprint] = given
	lost := fresh(4)
	s.put(lost)
	s.broken[lost.Fingerprint] = keystore.ErrNotFound
	swapped := fresh(5)
	s.put(swapped)
	s.records[swapped.Fingerprint] = fresh(6)
	s.put(keystoretest.NewRecord(t, chip.MAC{0x24, 0, 0, 0, 0, 7}))
	wrong := fresh(8)
	s.put(wrong)
	wrong.Key = fresh(9).Key
	s.records[wrong.Fingerprint] = wrong
	unread := fresh(10)
	s.put(unread)
	s.broken[keystore.Fingerprint(slices.Concat(unread.Unit[:], make([]byte, 26)))] = keystore.ErrDamaged

	var progress int
	var got []string
	rep, err = keystore.Check(t.Context(), s, keystore.CheckOptions{
		ReadKeys: true, Progress: func(n int) { progress = n },
		Found: func(f keystore.Finding) { got = append(got, string(f.Kind)+" "+f.Unit.String()[15:]) },
	})
	want := []string{"two-keys 02", "duplicate 03", "damaged 03", "damaged 04", "damaged 05", "wrong-kind 07", "damaged 08", "damaged 0a"}
	if err != nil || progress != 9 || rep.Units != 9 || len(rep.Findings) != 0 || !slices.Equal(got, want) {
		t.Errorf("%+v, %v: found %q, want %q", rep, err, got, want)
	}

	s.broken[lost.Fingerprint] = keystore.ErrUnavailable
	if _, err := keystore.Check(t.Context(), s, keystore.CheckOptions{}); !errors.Is(err, keystore.ErrUnavailable) || !strings.Contains(err.Error(), lost.Unit.String()) {
		t.Errorf("a store that goes away: %v", err)
	}
}

// looker is a Store that looks through itself.
type looker struct {
	keystore.Store
	o keystore.CheckOptions
}

func (l *looker) Check(_ context.Context, o keystore.CheckOptions) (keystore.CheckReport, error) {
	l.o = o
	return keystore.CheckReport{Units: 7}, nil
}

func TestCheckAsksTheStore(t *testing.T) {
	l := &looker{}
	rep, err := keystore.Check(t.Context(), l, keystore.CheckOptions{ReadKeys: true})
	if err != nil || rep.Units != 7 || !l.o.ReadKeys {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestFindingInWords(t *testing.T) {
	for _, c := range []struct {
		f    keystore.Finding
		want string
	}{
		{keystore.Finding{Kind: keystore.FindingForeign, Problem: "p"}, "foreign: p"},
		{keystore.Finding{Kind: keystore.FindingTwoKeys, Unit: chip.MAC{2}, Problem: "p"}, "two-keys: unit 02:00:00:00:00:00: p"},
		{keystore.Finding{Kind: keystore.FindingDamaged, Unit: chip.MAC{2}, Fingerprint: keystore.Fingerprint{1}, Problem: "p"}, "damaged: unit 02:00:00:00:00:00, key 01" + strings.Repeat("0", 62) + ": p"},
	} {
		if got := c.f.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
