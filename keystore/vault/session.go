package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/provisiond/provisiond/keystore"
)

// grant is a token and how long it is good for.
type grant struct {
	token     string
	ttl       time.Duration // 0: for ever
	renewable bool
}

// errRevoked is what renew answers when the server knows the token no more.
var errRevoked = errors.New("the token is not valid any more")

// session keeps a login. It renews by its own clock: the client library's
// watcher loops without a pause against a server that answers 503.
type session struct {
	login func(ctx context.Context) (grant, error)
	renew func(ctx context.Context, token string) (grant, error)
	took  func(token string) // tells the clients which token to use

	turn chan struct{} // one login at a time

	mu    sync.Mutex
	token string // "" when a login is needed

	changed chan grant
	stop    context.CancelFunc
	done    chan struct{}
}

func newSession(login func(context.Context) (grant, error), renew func(context.Context, string) (grant, error), took func(string)) *session {
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{
		login: login, renew: renew, took: took,
		turn: make(chan struct{}, 1), changed: make(chan grant, 1), stop: cancel, done: make(chan struct{}),
	}
	go s.keep(ctx)
	return s
}

// close ends the renewal. The token is left to expire, since a station has
// nothing that it may revoke and a cached token is used again.
func (s *session) close() {
	s.stop()
	<-s.done
}

func (s *session) now() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// use gives the token, after a login if there is none.
func (s *session) use(ctx context.Context) (string, error) {
	if t := s.now(); t != "" {
		return t, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("keystore/vault: %w", ctx.Err())
	}
	if t := s.now(); t != "" {
		return t, nil // somebody else did it meanwhile
	}
	// Not cut by ctx: a secret id is used up by the attempt.
	g, err := s.login(context.WithoutCancel(ctx))
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.token = g.token
	s.mu.Unlock()
	s.took(g.token)
	select { // the newest grant replaces one that was not noticed yet
	case <-s.changed:
	default:
	}
	s.changed <- g
	return g.token, nil
}

// spoil says that the server does not take this token. The next use logs in.
func (s *session) spoil(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == token {
		s.token = ""
	}
}

// Renewal: at a random point between a half and two thirds of the TTL, so that
// stations that were switched on together do not renew together; after a
// failure again, with growing waits.
const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

func renewAfter(ttl time.Duration) time.Duration {
	return ttl/2 + jitter(ttl/6)
}

func (s *session) keep(ctx context.Context) {
	defer close(s.done)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var g grant
	retry := minRetry
	for {
		select {
		case <-ctx.Done():
			return
		case g = <-s.changed:
			retry = minRetry
			timer.Stop()
			if g.ttl > 0 && g.renewable {
				timer.Reset(renewAfter(g.ttl))
			}
		case <-timer.C:
			if s.now() != g.token {
				continue // spoilt; the next login arms the timer
			}
			next, err := s.renew(ctx, g.token)
			switch {
			case err == nil:
				retry = minRetry
				// At its maximal age a token is renewed for less and less: then a
				// login, at the next use.
				if next.ttl > minRetry && next.renewable {
					g.ttl = next.ttl
					timer.Reset(renewAfter(g.ttl))
				}
			case errors.Is(err, errRevoked):
				s.spoil(g.token)
			default:
				timer.Reset(retry/2 + jitter(retry))
				retry = min(2*retry, maxRetry)
			}
		}
	}
}

func loginError(format string, args ...any) error {
	return fmt.Errorf("%w: login: %w", keystore.ErrUnavailable, fmt.Errorf(format, args...))
}
