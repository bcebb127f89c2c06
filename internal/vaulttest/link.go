package vaulttest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Link is a TCP line to a server that can be made slow.
type Link struct {
	Addr   string // where it listens
	target string
	ctx    context.Context //nolint:containedctx // its end is the link's
	wg     sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration
	rate  int
}

// chunk is what is passed on at once.
const chunk = 4 << 10

// newLink listens on host. The link ends with the test.
func newLink(t testing.TB, host, target string) *Link {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &Link{Addr: l.Addr().String(), target: target, ctx: ctx}
	k.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			k.wg.Go(func() { k.serve(c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		k.wg.Wait()
	})
	return k
}

// Slow delays every piece of up to 4 KiB in both directions by about delay, and
// passes on no more than rate bytes a second of a connection. Zeros make the link
// fast again.
func (k *Link) Slow(delay time.Duration, rate int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.delay, k.rate = delay, rate
}

func (k *Link) serve(near net.Conn) {
	defer func() { _ = near.Close() }()
	far, err := (&net.Dialer{}).DialContext(k.ctx, "tcp", k.target)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	stop := context.AfterFunc(k.ctx, func() { _, _ = near.Close(), far.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { k.pass(far, near) })
	k.pass(near, far)
	wg.Wait()
}

// pass copies until one side ends, and ends both then.
func (k *Link) pass(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	b := make([]byte, chunk)
	for {
		n, err := from.Read(b)
		if n > 0 {
			k.wait(n)
			if _, werr := to.Write(b[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (k *Link) wait(n int) {
	k.mu.Lock()
	delay, rate := k.delay, k.rate
	k.mu.Unlock()
	if delay > 0 {
		delay = delay/2 + rand.N(delay) //nolint:gosec // no secret
	}
	if rate > 0 {
		delay += time.Duration(n) * time.Second / time.Duration(rate)
	}
	if delay == 0 {
		return
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-k.ctx.Done():
	}
}
