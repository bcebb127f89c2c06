package people

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Sentinels of logging in.
var (
	// ErrDenied says that name and secret do not belong together. Whether the
	// name exists, it does not say.
	ErrDenied = errors.New("that is not right: try again, or ask an engineer")
	// ErrSession says that a token belongs to no session, or to none any more.
	ErrSession = errors.New("not logged in, or not any more: log in again")
)

// Options are the settings of a book. The zero value fits.
type Options struct {
	// Idle ends a session that was not used for so long. 0 means 30 min.
	Idle time.Duration
	// Absolute ends a session however much it is used. 0 means 12 h, a shift and
	// a half.
	Absolute time.Duration
	// Look is the shortest time between two looks at the file. 0 means 1 s.
	Look time.Duration
	// Clock says how much time has passed since some moment. nil is a clock that
	// runs on in suspend and that nobody sets.
	Clock func() time.Duration

	sum func(Hash, []byte) string // for tests; nil is argon2id
}

const (
	hashesAtOnce = 2
	hashesWait   = 16
	maxSessions  = 4096
	perPerson    = 16 // sessions of one person; the oldest makes room
	maxInput     = 1024
	tokenLen     = 32
)

// Book is the file of people in use: logins and sessions.
type Book struct {
	path    string
	o       Options
	kitchen *kitchen

	mu       sync.Mutex // guards what follows
	people   map[string]record
	badges   map[string]string // names by the sum of their badge
	salt     Hash              // of all badges
	dummy    Hash              // for who has no hash
	stamp    fs.FileInfo
	looked   time.Duration
	err      error
	limiter  *limiter
	sessions map[[sha256.Size]byte]*session
}

type session struct {
	who         record
	from        netip.Addr
	began, used time.Duration
}

// Open reads the file of people.
func Open(path string, o Options) (*Book, error) {
	o.Idle = cmp.Or(o.Idle, 30*time.Minute)
	o.Absolute = cmp.Or(o.Absolute, 12*time.Hour)
	o.Look = cmp.Or(o.Look, time.Second)
	if o.Clock == nil {
		o.Clock = clock
	}
	if o.sum == nil {
		o.sum = Hash.sumOf
	}
	b := &Book{
		path: path, o: o, kitchen: newKitchen(hashesAtOnce, hashesWait),
		limiter: newLimiter(), sessions: map[[sha256.Size]byte]*session{},
	}
	if err := b.Reload(); err != nil {
		return nil, err
	}
	return b, nil
}

// Reload reads the file now. If that fails, nobody can log in until it is
// mended; sessions go on.
func (b *Book) Reload() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looked = b.o.Clock()
	return b.load()
}

// Err is why nobody can log in; nil if they can.
func (b *Book) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look()
	return b.err
}

// load reads the file. The caller locks.
func (b *Book) load() error {
	f, st, err := read(b.path)
	b.err = err
	if err != nil {
		return err
	}
	b.stamp = st
	b.salt = f.badges
	b.people, b.badges = make(map[string]record, len(f.people)), map[string]string{}
	// Whoever has no hash is to cost as much as the ones who have.
	b.dummy = newSalt()
	for _, r := range f.people {
		b.people[r.Name] = r
		if !r.badge.IsZero() {
			b.badges[r.badge.sum] = r.Name
		}
		for _, h := range []Hash{r.pin, r.password} {
			if uint64(h.Memory)*uint64(h.Time) > uint64(b.dummy.Memory)*uint64(b.dummy.Time) {
				b.dummy.Params = h.Params
			}
		}
	}
	for key, s := range b.sessions {
		if now, ok := b.people[s.who.Name]; !ok || now != s.who {
			delete(b.sessions, key)
		}
	}
	for name := range b.limiter.persons {
		if _, ok := b.people[name]; !ok {
			delete(b.limiter.persons, name)
		}
	}
	return nil
}

// look reads the file again if it is another one. The caller locks.
func (b *Book) look() {
	now := b.o.Clock()
	if now-b.looked < b.o.Look {
		return
	}
	b.looked = now
	st, err := os.Stat(b.path)
	if err == nil && b.err == nil && os.SameFile(st, b.stamp) && st.Size() == b.stamp.Size() &&
		st.ModTime().Equal(b.stamp.ModTime()) && st.Mode() == b.stamp.Mode() {
		return
	}
	_ = b.load() // is in b.err
}

// Token is what a browser shows to be let in. No verb prints it.
type Token struct{ reveal func() string }

// Reveal gives the text for a cookie.
func (t Token) Reveal() string {
	if t.reveal == nil {
		return ""
	}
	return t.reveal()
}

// Format prints no token.
func (Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(token)")) }

// MarshalJSON gives no token.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"(token)"`), nil }

// Login is a session that has begun.
type Login struct {
	Person
	Token Token
}

// ByBadge logs an operator in.
func (b *Book) ByBadge(ctx context.Context, from netip.Addr, badge []byte) (Login, error) {
	return b.login(ctx, from, "", Badge, badge)
}

// ByPIN logs an operator in.
func (b *Book) ByPIN(ctx context.Context, from netip.Addr, name string, pin []byte) (Login, error) {
	return b.login(ctx, from, named(name), PIN, pin)
}

// ByPassword logs an engineer or auditor in.
func (b *Book) ByPassword(ctx context.Context, from netip.Addr, name string, password []byte) (Login, error) {
	return b.login(ctx, from, named(name), Password, password)
}

// named is a name as somebody types it. It is never empty, and short enough to
// be remembered.
func named(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) > 32 || s == "" {
		sum := sha256.Sum256([]byte(s))
		return "#" + string(sum[:8]) // nobody can have it
	}
	return s
}

func (b *Book) login(ctx context.Context, from netip.Addr, name string, kind Kind, secret []byte) (Login, error) {
	b.mu.Lock()
	b.look()
	if b.err != nil {
		defer b.mu.Unlock()
		return Login{}, fmt.Errorf("nobody can log in: %w", b.err)
	}
	who, known := b.people[name]
	h := *who.hash(kind)
	if kind == Badge {
		h = b.salt
	}
	match := !h.IsZero()
	if !match {
		h = b.dummy
	}
	try, wait := b.limiter.begin(b.o.Clock(), name, known, from)
	b.mu.Unlock()
	if wait > 0 {
		return Login{}, &LimitedError{After: wait}
	}

	var sum string
	secret = secret[:min(len(secret), maxInput)]
	err := b.kitchen.do(ctx, func() { sum = b.o.sum(h, secret) })

	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		try.forget()
		return Login{}, err
	}
	if kind == Badge {
		// The sum is not secret to whoever could measure this look-up: it takes
		// the file's salt to make anything of it.
		name, match = b.badges[sum]
		match = match && h == b.salt
		who = b.people[name]
	} else {
		match = equal(sum, h.sum) && match && b.people[name] == who // it may have changed meanwhile
	}
	if !match {
		return Login{}, ErrDenied
	}
	try.succeeded()
	return b.enter(who, from), nil
}

// enter begins a session. The caller locks.
func (b *Book) enter(who record, from netip.Addr) Login {
	now := b.o.Clock()
	b.sweep(now)
	b.makeRoom(who.Name, perPerson)
	if len(b.sessions) >= maxSessions {
		b.makeRoom("", maxSessions)
	}
	raw := make([]byte, tokenLen)
	_, _ = rand.Read(raw) // never fails: crypto/rand ends the process first
	token := base64.RawURLEncoding.EncodeToString(raw)
	b.sessions[sha256.Sum256([]byte(token))] = &session{who: who, from: from, began: now, used: now}
	return Login{Person: who.Person, Token: Token{func() string { return token }}}
}

// sweep ends the sessions that are over.
func (b *Book) sweep(now time.Duration) {
	for key, s := range b.sessions {
		if b.over(s, now) {
			delete(b.sessions, key)
		}
	}
}

func (b *Book) over(s *session, now time.Duration) bool {
	return now-s.used >= b.o.Idle || now-s.began >= b.o.Absolute
}

// makeRoom ends the sessions of a person ("" is anybody) that were used the
// longest ago, until there are fewer than most.
func (b *Book) makeRoom(name string, most int) {
	for {
		n := 0
		var oldest *session
		var at [sha256.Size]byte
		for key, s := range b.sessions {
			if name != "" && s.who.Name != name {
				continue
			}
			n++
			if oldest == nil || s.used < oldest.used {
				oldest, at = s, key
			}
		}
		if n < most {
			return
		}
		delete(b.sessions, at)
	}
}

// Session is who a token lets in.
type Session struct {
	Person
	From netip.Addr    // where the login came from
	Age  time.Duration // since the login
	Left time.Duration // until it ends if it is not used
}

// Session gives the session of a token and counts as its use.
func (b *Book) Session(token string) (Session, error) {
	return b.session(token, true)
}

// Peek is Session without counting as use, for what a page asks for by itself.
func (b *Book) Peek(token string) (Session, error) {
	return b.session(token, false)
}

func (b *Book) session(token string, use bool) (Session, error) {
	key := sha256.Sum256([]byte(token))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look()
	s := b.sessions[key]
	if s == nil {
		return Session{}, ErrSession
	}
	now := b.o.Clock()
	if b.over(s, now) {
		delete(b.sessions, key)
		return Session{}, ErrSession
	}
	if use {
		s.used = now
	}
	return Session{
		Person: s.who.Person, From: s.from, Age: now - s.began,
		Left: min(b.o.Idle-(now-s.used), b.o.Absolute-(now-s.began)),
	}, nil
}

// Logout ends a session; a second time does nothing.
func (b *Book) Logout(token string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.sessions, sha256.Sum256([]byte(token)))
}

// LogoutPerson ends all sessions of a person and says how many there were.
func (b *Book) LogoutPerson(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for key, s := range b.sessions {
		if s.who.Name == name {
			delete(b.sessions, key)
			n++
		}
	}
	return n
}
