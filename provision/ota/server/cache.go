package server

import (
	"container/list"
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// cache keeps what was loaded for a bounded time and count. Who asks for what is
// just being loaded waits for that. Values that go are given to drop.
type cache[K comparable, V any] struct {
	most int
	// load gives a value and how long it may be kept. An error with a time is kept
	// too, so that it is not asked for again and again.
	load func(ctx context.Context, k K) (v V, keep time.Duration, err error)
	drop func(V) // may be nil
	now  func() time.Time
	wait time.Duration // for one load
	// heavy bounds the sum of weigh, which may be nil.
	heavy int64
	weigh func(V) int64

	mu      sync.Mutex
	entries map[K]*list.Element // of *cached[K, V]
	order   list.List           // the last used in front
	flights map[K]*flight[V]
	weight  int64
}

type cached[K comparable, V any] struct {
	key   K
	value V
	err   error
	until time.Time
}

type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// peek gives what is kept and does not load.
func (c *cache[K, V]) peek(k K) (v V, err error, ok bool) { //nolint:revive // the error is a kept value here
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.look(k)
}

// look is called with mu held.
func (c *cache[K, V]) look(k K) (v V, err error, ok bool) { //nolint:revive // the error is a kept value here
	e, ok := c.entries[k]
	if !ok {
		return v, nil, false
	}
	x, _ := e.Value.(*cached[K, V])
	if !c.now().Before(x.until) {
		c.remove(e)
		return v, nil, false
	}
	c.order.MoveToFront(e)
	return x.value, x.err, true
}

// get gives what is kept or loads it. The load goes on for others when ctx ends.
// allow, which may be nil, is asked before a load is begun.
func (c *cache[K, V]) get(ctx context.Context, k K, allow func() error) (V, error) {
	c.mu.Lock()
	if v, err, ok := c.look(k); ok {
		c.mu.Unlock()
		return v, err
	}
	f, ok := c.flights[k]
	if !ok {
		if allow != nil {
			if err := allow(); err != nil {
				c.mu.Unlock()
				var none V
				return none, err
			}
		}
		f = &flight[V]{done: make(chan struct{})}
		if c.flights == nil {
			c.flights = map[K]*flight[V]{}
		}
		c.flights[k] = f
		go c.fly(context.WithoutCancel(ctx), k, f)
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

func (c *cache[K, V]) fly(ctx context.Context, k K, f *flight[V]) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	v, keep, err := c.load(ctx, k)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(f.done)
	f.value, f.err = v, err
	delete(c.flights, k)
	if keep <= 0 {
		return
	}
	c.keep(k, v, err, keep)
}

// keep is called with mu held.
func (c *cache[K, V]) keep(k K, v V, err error, keep time.Duration) {
	if e, ok := c.entries[k]; ok {
		c.remove(e)
	}
	add := int64(0)
	if c.weigh != nil && err == nil {
		add = c.weigh(v)
	}
	for c.order.Len() >= c.most || c.order.Len() > 0 && c.weigh != nil && c.weight+add > c.heavy {
		c.remove(c.order.Back())
	}
	c.weight += add
	if c.entries == nil {
		c.entries = map[K]*list.Element{}
	}
	c.entries[k] = c.order.PushFront(&cached[K, V]{k, v, err, c.now().Add(keep)})
}

// remove is called with mu held.
func (c *cache[K, V]) remove(e *list.Element) {
	x, _ := c.order.Remove(e).(*cached[K, V])
	delete(c.entries, x.key)
	if c.weigh != nil && x.err == nil {
		c.weight -= c.weigh(x.value)
	}
	if c.drop != nil && x.err == nil {
		c.drop(x.value)
	}
}

// forget drops one value.
func (c *cache[K, V]) forget(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[k]; ok {
		c.remove(e)
	}
}

// expire drops what is too old, also what nobody asks for.
func (c *cache[K, V]) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for e := c.order.Back(); e != nil; {
		before := e.Prev()
		if x, _ := e.Value.(*cached[K, V]); !now.Before(x.until) {
			c.remove(e)
		}
		e = before
	}
}

// clear drops everything.
func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

func (c *cache[K, V]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

// limiters are rate limits by key. Only so many keys are remembered; one that was
// forgotten begins anew.
type limiters[K comparable] struct {
	rate  rate.Limit
	burst int
	most  int

	mu      sync.Mutex
	entries map[K]*list.Element // of *limited[K]
	order   list.List
}

type limited[K comparable] struct {
	key K
	*rate.Limiter
}

// allow takes one from the key's budget, or says when to come again.
func (l *limiters[K]) allow(k K, now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.entries[k]
	if !ok {
		for l.order.Len() >= l.most {
			if x, ok := l.order.Remove(l.order.Back()).(*limited[K]); ok {
				delete(l.entries, x.key)
			}
		}
		if l.entries == nil {
			l.entries = map[K]*list.Element{}
		}
		e = l.order.PushFront(&limited[K]{k, rate.NewLimiter(l.rate, l.burst)})
		l.entries[k] = e
	}
	l.order.MoveToFront(e)
	x, _ := e.Value.(*limited[K])
	return take(x.Limiter, now)
}

// take takes one from a budget, or says when to come again.
func take(l *rate.Limiter, now time.Time) (time.Duration, bool) {
	r := l.ReserveN(now, 1)
	if !r.OK() {
		return time.Second, false
	}
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return d, false
	}
	return 0, true
}

// put keeps a value that was not loaded here.
func (c *cache[K, V]) put(k K, v V, keep time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(k, v, nil, keep)
}
