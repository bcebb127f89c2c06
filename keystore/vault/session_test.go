package vault

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRenewal runs hours of a session in a bubble's time.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var renewals []time.Duration
		s := newSession(
			func(context.Context) (grant, error) { return grant{"t", time.Hour, true}, nil },
			func(_ context.Context, token string) (grant, error) {
				renewals = append(renewals, time.Since(start))
				return grant{token, time.Hour, true}, nil
			}, func(string) {})
		defer s.close()
		if _, err := s.use(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		last := time.Duration(0)
		for _, at := range renewals {
			if gap := at - last; gap < 30*time.Minute || gap > 41*time.Minute {
				t.Errorf("a renewal after %s", gap)
			}
			last = at
		}
		if n := len(renewals); n < 35 || n > 48 {
			t.Errorf("%d renewals in a day", n)
		}
	})
}

// TestRenewalAgainstAFailingServer: the client library's watcher makes thousands
// of requests a second here.
func TestRenewalAgainstAFailingServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		s := newSession(
			func(context.Context) (grant, error) { return grant{"t", time.Hour, true}, nil },
			func(context.Context, string) (grant, error) { tries.Add(1); return grant{}, errors.New("503") },
			func(string) {})
		defer s.close()
		if _, err := s.use(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := tries.Load(); n < 120 || n > 400 {
			t.Errorf("%d tries in 80 minutes", n)
		}
		if s.now() != "t" {
			t.Error("a server that is away made the token invalid")
		}
	})
}

// TestRevocationAtRenewal: the next use logs in, and the renewal follows the new token.
func TestRevocationAtRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logins := 0
		var renewed []string
		s := newSession(
			func(context.Context) (grant, error) {
				logins++
				return grant{string(rune('a' + logins - 1)), time.Hour, true}, nil
			},
			func(_ context.Context, token string) (grant, error) {
				renewed = append(renewed, token)
				if token == "a" {
					return grant{}, errRevoked
				}
				return grant{token, time.Hour, true}, nil
			}, func(string) {})
		defer s.close()
		for range 3 {
			if _, err := s.use(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
		}
		if logins != 2 || len(renewed) < 3 || renewed[0] != "a" || renewed[1] != "b" {
			t.Errorf("%d logins, renewed %q", logins, renewed)
		}
	})
}

// TestMaximalAge: a token whose renewals give less and less is let go.
func TestMaximalAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(2 * time.Hour)
		renewals := 0
		s := newSession(
			func(context.Context) (grant, error) { return grant{"t", time.Hour, true}, nil },
			func(_ context.Context, token string) (grant, error) {
				renewals++
				return grant{token, min(time.Hour, time.Until(end)), true}, nil
			}, func(string) {})
		defer s.close()
		if _, err := s.use(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if renewals < 3 || renewals > 30 {
			t.Errorf("%d renewals", renewals)
		}
	})
}

// TestOneLoginAtATime: 32 workers whose token was spoilt log in once.
func TestOneLoginAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logins, now, most atomic.Int32
		s := newSession(
			func(context.Context) (grant, error) {
				most.Store(max(most.Load(), now.Add(1)))
				defer now.Add(-1)
				time.Sleep(time.Second)
				logins.Add(1)
				return grant{token: "t"}, nil
			}, nil, func(string) {})
		defer s.close()
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				token, err := s.use(t.Context())
				if err != nil || token != "t" {
					t.Error(token, err)
				}
				s.spoil("another")
			})
		}
		wg.Wait()
		if logins.Load() != 1 || most.Load() != 1 {
			t.Errorf("%d logins, %d at once", logins.Load(), most.Load())
		}
		s.spoil("t")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.turn <- struct{}{} // somebody logs in
		if _, err := s.use(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while it waits: %v", err)
		}
		<-s.turn
	})
}
