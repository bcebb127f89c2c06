package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestCache: what goes is dropped, by age, by count, by weight, and at the end.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dropped []string
		loads := 0
		failed := errors.New("no such thing")
		c := &cache[string, string]{
			most: 3, now: time.Now, wait: time.Second,
			drop: func(v string) { dropped = append(dropped, v) },
			load: func(_ context.Context, k string) (string, time.Duration, error) {
				loads++
				switch k {
				case "bad":
					return "", time.Minute, failed
				case "away":
					return "", 0, context.DeadlineExceeded
				}
				return "v" + k, 10 * time.Minute, nil
			},
		}
		get := func(k string) {
			t.Helper()
			if v, err := c.get(t.Context(), k, nil); err != nil || v != "v"+k {
				t.Fatalf("%s: %q, %v", k, v, err)
			}
		}
		want := func(n int, gone ...string) {
			t.Helper()
			if loads != n || !slices.Equal(dropped, gone) {
				t.Errorf("%d loads, dropped %q; want %d and %q", loads, dropped, n, gone)
			}
			loads, dropped = 0, nil
		}
		get("a")
		get("b")
		get("a")
		get("c")
		want(3)
		get("d") // b was not asked for the longest
		want(1, "vb")
		time.Sleep(9 * time.Minute)
		get("a")
		want(0)
		time.Sleep(time.Minute)
		c.expire() // also what nobody asks for
		want(0, "vc", "vd", "va")
		for range 3 {
			if _, err := c.get(t.Context(), "bad", nil); !errors.Is(err, failed) {
				t.Error(err)
			}
		}
		want(1)
		time.Sleep(time.Minute)
		if _, err := c.get(t.Context(), "bad", nil); !errors.Is(err, failed) {
			t.Error(err)
		}
		want(1)
		for range 2 { // nothing is learned from that
			if _, err := c.get(t.Context(), "away", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		want(2)
		refused := errors.New("not now")
		if _, err := c.get(t.Context(), "e", func() error { return refused }); !errors.Is(err, refused) {
			t.Error(err)
		}
		want(0)
		get("e")
		c.forget("e")
		get("e")
		c.clear()
		want(2, "ve", "ve")
		if c.len() != 0 {
			t.Errorf("%d are left", c.len())
		}
	})
}

func TestCacheWeight(t *testing.T) {
	c := &cache[int, int]{most: 100, heavy: 10, weigh: func(v int) int64 { return int64(v) }, now: time.Now}
	for i := range 50 {
		c.put(i, i%7, time.Hour)
		if c.weight > c.heavy {
			t.Fatalf("weight %d", c.weight)
		}
	}
	c.put(49, 9, time.Hour) // in the place of another
	sum := int64(0)
	for i := range 50 {
		if v, _, ok := c.peek(i); ok {
			sum += int64(v)
		}
	}
	if sum != c.weight || sum > c.heavy {
		t.Errorf("weight %d, and there are %d", c.weight, sum)
	}
	c.put(100, 11, time.Hour) // more than all may weigh: it is alone
	if c.len() != 1 {
		t.Errorf("%d are left", c.len())
	}
	c.clear()
	if c.weight != 0 {
		t.Errorf("weight %d of nothing", c.weight)
	}
}

// TestLimiters: who was forgotten begins anew, and the number of keys is bounded.
func TestLimiters(t *testing.T) {
	l := &limiters[string]{rate: 1, burst: 2, most: 3}
	now := time.Now()
	for i, want := range []bool{true, true, false, false} {
		if after, ok := l.allow("a", now); ok != want || !ok && (after <= 0 || after > time.Second) {
			t.Errorf("%d: %v, %v", i, ok, after)
		}
	}
	if _, ok := l.allow("a", now.Add(time.Second)); !ok {
		t.Error("a second later it is still refused")
	}
	for i := range 10 {
		l.allow(fmt.Sprint(i), now)
	}
	if len(l.entries) != 3 || l.order.Len() != 3 {
		t.Errorf("%d and %d keys", len(l.entries), l.order.Len())
	}
}
