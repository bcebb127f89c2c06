package keystore_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// slow is a Store that takes a while for each unit, longest for the first, and
// counts how many are asked for at once.
type slow struct {
	keystore.Store
	n, bad    int // units; of which List fails for this one
	unitsErr  error
	running   atomic.Int32
	most      atomic.Int32
	asked     atomic.Int32
	cancelled atomic.Bool
}

func slowUnit(i int) chip.MAC { return chip.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func (s *slow) Units(context.Context) iter.Seq2[chip.MAC, error] {
	return func(yield func(chip.MAC, error) bool) {
		for i := range s.n {
			if !yield(slowUnit(i), nil) {
				return
			}
		}
		if s.unitsErr != nil {
			yield(chip.MAC{}, s.unitsErr)
		}
	}
}

var errSealed = errors.New("sealed")

func (s *slow) List(ctx context.Context, unit chip.MAC) ([]keystore.Meta, error) {
	s.asked.Add(1)
	n := s.running.Add(1)
	defer s.running.Add(-1)
	for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
	}
	i := int(unit[4])<<8 | int(unit[5])
	took := time.Millisecond
	if i == 0 {
		took = 10 * time.Second
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		s.cancelled.Store(true)
		return nil, ctx.Err()
	}
	if s.bad > 0 && i == s.bad {
		return nil, errSealed
	}
	return []keystore.Meta{{Unit: unit, Job: "first"}, {Unit: unit, Job: "second"}}, nil
}

// TestListUnits: all readers work, in order all the same; while one unit takes
// long no more than so many others are held.
func TestListUnits(t *testing.T) {
	const readers = 4
	synctest.Test(t, func(t *testing.T) {
		s := &slow{n: 1000}
		began := time.Now()
		go func() { // the first unit's answer is still to come
			time.Sleep(9 * time.Second)
			if n := s.asked.Load(); n < 8*readers || n > 10*readers {
				t.Errorf("%d units were asked for while the first took long", n)
			}
		}()
		i := 0
		for m, err := range keystore.ListUnits(t.Context(), s, readers) {
			if err != nil || m.Unit != slowUnit(i/2) || m.Job != [2]string{"first", "second"}[i%2] {
				t.Fatalf("record %d: %+v, %v", i, m, err)
			}
			i++
		}
		if i != 2000 || s.most.Load() != readers {
			t.Errorf("%d records by %d readers", i, s.most.Load())
		}
		if took := time.Since(began); took > 10*time.Second+1000*time.Millisecond/readers {
			t.Errorf("it took %s", took)
		}
	})
}

func TestListUnitsEnds(t *testing.T) {
	for name, c := range map[string]struct {
		store   *slow
		want    error
		text    string
		records int
	}{
		"a unit":    {&slow{n: 100, bad: 7}, errSealed, "unit 02:00:00:00:00:07: sealed", 14},
		"the units": {&slow{n: 10, unitsErr: errSealed}, errSealed, "sealed", 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				records, ends := 0, 0
				for _, err := range keystore.ListUnits(t.Context(), c.store, 4) {
					if err == nil {
						records++
						continue
					}
					if ends++; !errors.Is(err, c.want) || err.Error() != c.text {
						t.Errorf("%v", err)
					}
				}
				if records != c.records || ends != 1 {
					t.Errorf("%d records, %d errors", records, ends)
				}
			})
		})
	}
	t.Run("break", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &slow{n: 1000}
			for m, err := range keystore.ListUnits(t.Context(), s, 4) {
				if err != nil || m.Unit != slowUnit(0) {
					t.Errorf("%+v, %v", m, err)
				}
				break
			}
			if n := s.running.Load(); n != 0 {
				t.Errorf("%d readers are still at work", n)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &slow{n: 1000}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second) // while the first unit takes long
			defer cancel()
			var errs []error
			for _, err := range keystore.ListUnits(ctx, s, 4) {
				errs = append(errs, err)
			}
			if len(errs) != 1 || !errors.Is(errs[0], context.DeadlineExceeded) || !s.cancelled.Load() {
				t.Errorf("%v", errs)
			}
		})
	})
}

// lister is a Store that lists by itself.
type lister struct{ keystore.Store }

func (lister) Metas(context.Context) iter.Seq2[keystore.Meta, error] {
	return func(yield func(keystore.Meta, error) bool) {
		_ = yield(keystore.Meta{Job: "mine"}, nil) && yield(keystore.Meta{}, errSealed)
	}
}

func TestMetasAsksTheStore(t *testing.T) {
	var got []string
	for m, err := range keystore.Metas(t.Context(), lister{}) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		got = append(got, m.Job)
	}
	if !slices.Equal(got, []string{"mine", "sealed"}) {
		t.Errorf("%s", strings.Join(got, ", "))
	}
}
