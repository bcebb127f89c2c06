package people

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var home = netip.MustParseAddr("192.0.2.7")

// desk is a book whose time the test moves, and whose hashes cost nothing.
type desk struct {
	*Book
	t      *testing.T
	path   string
	now    atomic.Int64
	hashes atomic.Int64
}

// newDesk has the people of cheapFile.
func newDesk(t *testing.T, o Options) *desk {
	t.Helper()
	d := &desk{t: t, path: cheapFile(t)}
	d.now.Store(int64(1000 * time.Hour)) // a machine that runs for long
	o.Clock = func() time.Duration { return time.Duration(d.now.Load()) }
	o.sum = func(h Hash, secret []byte) string {
		d.hashes.Add(1)
		return cheap(h, secret)
	}
	b, err := Open(d.path, o)
	if err != nil {
		t.Fatal(err)
	}
	d.Book = b
	return d
}

// cheap stands for argon2id.
func cheap(h Hash, secret []byte) string {
	return fmt.Sprintf("%-32.32s", string(secret)+"/"+h.salt)
}

// cheapFile has kim, an operator, eve, an engineer, and ada, an auditor.
func cheapFile(t *testing.T) string {
	t.Helper()
	f := &file{badges: newSalt()}
	set := func(h Hash, secret string) Hash {
		h.sum = cheap(h, []byte(secret))
		return h
	}
	f.people = []record{
		{Person: Person{"kim", "Kim Lee", Operator}, badge: set(f.badges, goodBadge), pin: set(newSalt(), goodPIN)},
		{Person: Person{"eve", "Eve", Engineer}, password: set(newSalt(), goodPassword)},
		{Person: Person{"ada", "Ada", Auditor}, password: set(newSalt(), goodPassword)},
	}
	path := filepath.Join(t.TempDir(), "people.yaml")
	if err := os.WriteFile(path, f.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// edit changes the file, and lets the book's next look be due.
func (d *desk) edit(change func(*file)) {
	d.t.Helper()
	if err := update(d.path, func(f *file) error { change(f); return nil }); err != nil {
		d.t.Fatal(err)
	}
	d.pass(time.Second)
}

func (d *desk) pass(t time.Duration) { d.now.Add(int64(t)) }

func (d *desk) pin(secret string) (Login, error) {
	return d.ByPIN(context.Background(), home, "kim", []byte(secret))
}

func (d *desk) in(l Login, err error) string {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
	if s, err := d.Peek(l.Token.Reveal()); err != nil || s.Person != l.Person {
		d.t.Fatalf("%+v, %v", s, err)
	}
	return l.Token.Reveal()
}

func (d *desk) out(token, why string) {
	d.t.Helper()
	if s, err := d.Peek(token); !errors.Is(err, ErrSession) {
		d.t.Errorf("%s: %+v, %v", why, s, err)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	ctx := t.Context()
	for _, c := range []struct {
		name string
		do   func() (Login, error)
		role Role
	}{
		{"kim", func() (Login, error) { return d.ByBadge(ctx, home, []byte(goodBadge)) }, Operator},
		{"kim", func() (Login, error) { return d.ByPIN(ctx, home, " KIM ", []byte(goodPIN)) }, Operator},
		{"eve", func() (Login, error) { return d.ByPassword(ctx, home, "eve", []byte(goodPassword)) }, Engineer},
		{"ada", func() (Login, error) { return d.ByPassword(ctx, home, "ada", []byte(goodPassword)) }, Auditor},
	} {
		before := d.hashes.Load()
		l, err := c.do()
		if err != nil || l.Name != c.name || l.Role != c.role {
			t.Fatalf("%s: %+v, %v", c.name, l.Person, err)
		}
		if n := d.hashes.Load() - before; n != 1 {
			t.Errorf("%s: %d hashes", c.name, n)
		}
		s, err := d.Session(l.Token.Reveal())
		if err != nil || s.Person != l.Person || s.From != home || s.Left != 30*time.Minute {
			t.Errorf("%+v, %v", s, err)
		}
		d.Logout(l.Token.Reveal())
		d.Logout(l.Token.Reveal())
		d.out(l.Token.Reveal(), "after logout")
	}
	d.out("", "no token")
	d.out(strings.Repeat("A", 43), "a token of nobody")
}

// The real thing once: the file as the commands write it, argon2id, a real clock.
func TestLoginForReal(t *testing.T) {
	t.Parallel()
	b, err := Open(newFile(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := b.ByBadge(t.Context(), home, []byte(goodBadge))
	if err != nil || l.Name != "kim" {
		t.Fatal(l.Person, err)
	}
	if s, err := b.Session(l.Token.Reveal()); err != nil || s.Name != "kim" {
		t.Error(s, err)
	}
	if _, err := b.ByBadge(t.Context(), home, []byte("0004711843")); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
	if l, err = b.ByPassword(t.Context(), home, "eve", []byte(goodPassword)); err != nil || l.Role != Engineer {
		t.Error(l.Person, err)
	}
	if _, err := b.ByPIN(t.Context(), home, "kim", []byte("249184")); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
}

func TestClockRuns(t *testing.T) {
	t.Parallel()
	before := clock()
	for clock() == before { // a clock that stands hangs the test
	}
	if clock() < before {
		t.Error("the clock runs backwards")
	}
}

// Whatever is wrong, the answer is the same, it costs one hash, and it counts.
func TestDeniedAlike(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, do := range map[string]func(b *Book) error{
		"wrong PIN": func(b *Book) error { _, err := b.ByPIN(ctx, home, "kim", []byte("111112")); return err },
		"nobody":    func(b *Book) error { _, err := b.ByPIN(ctx, home, "bob", []byte(goodPIN)); return err },
		"no name":   func(b *Book) error { _, err := b.ByPIN(ctx, home, "", []byte(goodPIN)); return err },
		"long name": func(b *Book) error {
			_, err := b.ByPIN(ctx, home, strings.Repeat("k", 1<<20), []byte(goodPIN))
			return err
		},
		"long PIN":           func(b *Book) error { _, err := b.ByPIN(ctx, home, "kim", make([]byte, 1<<20)); return err },
		"empty PIN":          func(b *Book) error { _, err := b.ByPIN(ctx, home, "kim", nil); return err },
		"PIN of an engineer": func(b *Book) error { _, err := b.ByPIN(ctx, home, "eve", []byte(goodPassword)); return err },
		"operator, password": func(b *Book) error { _, err := b.ByPassword(ctx, home, "kim", []byte(goodPIN)); return err },
		"wrong password":     func(b *Book) error { _, err := b.ByPassword(ctx, home, "eve", []byte("x")); return err },
		"wrong badge":        func(b *Book) error { _, err := b.ByBadge(ctx, home, []byte("0000000000")); return err },
		"empty badge":        func(b *Book) error { _, err := b.ByBadge(ctx, home, nil); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, Options{})
			var limited *LimitedError
			n := 0
			for ; n < 20; n++ {
				before := d.hashes.Load()
				err := do(d.Book)
				if errors.As(err, &limited) {
					break
				}
				if !errors.Is(err, ErrDenied) || err.Error() != ErrDenied.Error() {
					t.Fatal(err)
				}
				if d.hashes.Load() != before+1 {
					t.Fatalf("%d hashes", d.hashes.Load()-before)
				}
			}
			want := personFree
			if strings.Contains(name, "badge") {
				want = addressFree
			}
			if n != want || limited.After != time.Second {
				t.Errorf("%d attempts, then %v", n, limited)
			}
		})
	}
}

// A hash of other costs must not give away who exists.
func TestDummyCostsTheMost(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	d.edit(func(f *file) { f.people[1].password.Params = Params{Memory: 32 << 10, Time: 4, Lanes: 1} })
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	if got := d.dummy.Params; got.Memory != 32<<10 || got.Time != 4 {
		t.Errorf("%+v", got)
	}
}

// Waits double, up to five minutes, and count nothing themselves.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	for range personFree {
		if _, err := d.pin("wrong1"); !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
	}
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		want := time.Duration(seconds) * time.Second
		var l *LimitedError
		hashes := d.hashes.Load()
		// The right PIN does not get in either, and waiting tells nothing.
		if _, err := d.pin(goodPIN); !errors.As(err, &l) || l.After != want {
			t.Fatalf("%v, want a wait of %v", err, want)
		}
		if d.hashes.Load() != hashes {
			t.Error("a hash was computed while waiting")
		}
		d.pass(l.After - time.Nanosecond)
		if _, err := d.pin(goodPIN); !errors.As(err, &l) || !strings.Contains(err.Error(), "in 1 s") {
			t.Errorf("let in too early: %v", err)
		}
		d.pass(time.Nanosecond)
		// From another address it is still kim's fourth attempt.
		if _, err := d.ByPIN(t.Context(), netip.MustParseAddr("192.0.2.8"), "kim", []byte("wrong2")); !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
	}
	d.pass(longestWait)
	d.in(d.pin(goodPIN))
	for range personFree { // success has wiped the slate
		if _, err := d.pin("wrong3"); !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
	}
}

func TestRateLimitForgets(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	for day := range 3 * personFree { // a typing error a day
		if _, err := d.pin("wrong1"); !errors.Is(err, ErrDenied) {
			t.Fatalf("day %d: %v", day, err)
		}
		d.pass(24 * time.Hour)
	}
}

// A tablet at which a shift logs in: a typing error in ten logins, all day long,
// makes nobody wait; a guesser there comes to one guess in two minutes.
func TestRateLimitAtASharedTablet(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	for i := range 500 {
		d.pass(20 * time.Second)
		if i%10 == 0 {
			if _, err := d.ByBadge(t.Context(), home, []byte("000000")); !errors.Is(err, ErrDenied) {
				t.Fatalf("after %d logins: %v", i, err)
			}
		}
		l, err := d.ByBadge(t.Context(), home, []byte(goodBadge))
		d.Logout(d.in(l, err))
	}
	guesses := 0
	for until := d.now.Load() + int64(10*time.Hour); d.now.Load() < until; {
		_, err := d.ByBadge(t.Context(), home, []byte("000000"))
		var l *LimitedError
		if errors.As(err, &l) {
			d.pass(l.After)
			continue
		}
		guesses++
	}
	if most := 10*60/2 + 2*addressFree; guesses > most || guesses < 100 {
		t.Errorf("%d guesses in ten hours, at most %d", guesses, most)
	}
}

// At one person all addresses together come to a guess in five minutes.
func TestRateLimitOfOnePerson(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	guesses := 0
	for until := d.now.Load() + int64(24*time.Hour); d.now.Load() < until; {
		_, err := d.ByPIN(t.Context(), netip.AddrFrom4([4]byte{10, 0, byte(guesses >> 8), byte(guesses)}), "kim", []byte("000000"))
		var l *LimitedError
		if errors.As(err, &l) {
			d.pass(l.After)
			continue
		}
		guesses++
	}
	if most := 24*60/5 + 2*personFree + 10; guesses > most || guesses < 24*60/10 {
		t.Errorf("%d guesses in a day, at most %d", guesses, most)
	}
}

// An address's failures are its own: not another's, not wiped by its own login.
func TestRateLimitByAddress(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	ctx := t.Context()
	var l *LimitedError
	guesses := 0
	for ; guesses < 100; guesses++ {
		// A guess at a person each, and a login of one's own in between.
		_, err := d.ByPIN(ctx, home, fmt.Sprintf("p%d", guesses), []byte("000000"))
		if errors.As(err, &l) {
			break
		}
		if guesses < addressFree-1 {
			d.in(d.pin(goodPIN))
		}
	}
	if guesses != addressFree {
		t.Errorf("%d guesses", guesses)
	}
	if _, err := d.ByBadge(ctx, netip.MustParseAddr("::ffff:192.0.2.7"), []byte(goodBadge)); !errors.As(err, &l) {
		t.Errorf("the same address in IPv6: %v", err)
	}
	d.in(d.ByBadge(ctx, netip.MustParseAddr("192.0.2.8"), []byte(goodBadge)))

	// A network of one customer is one source.
	for i := range addressFree {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x", i+1))
		if _, err := d.ByBadge(ctx, a, []byte("000000")); !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
	}
	if _, err := d.ByBadge(ctx, netip.MustParseAddr("2001:db8:1:2:ffff::1%eth0"), []byte(goodBadge)); !errors.As(err, &l) {
		t.Errorf("the next address of the network: %v", err)
	}
	d.in(d.ByBadge(ctx, netip.MustParseAddr("2001:db8:1:3::1"), []byte(goodBadge)))
	d.in(d.ByBadge(ctx, netip.Addr{}, []byte(goodBadge)))
}

// Many at once get no further than one by one.
func TestRateLimitConcurrent(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	var denied, limited atomic.Int64
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			var l *LimitedError
			switch _, err := d.pin("000001"); {
			case errors.Is(err, ErrDenied):
				denied.Add(1)
			case errors.As(err, &l):
				limited.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if denied.Load() != personFree || limited.Load() != 12-personFree {
		t.Errorf("%d guesses, %d had to wait", denied.Load(), limited.Load())
	}
}

// Names of nobody fill no memory and wipe nobody's failures.
func TestRateLimitMemory(t *testing.T) {
	t.Parallel()
	l := newLimiter()
	now := time.Hour
	for range personFree {
		l.begin(now, "kim", true, home)
	}
	for i := range 3 * maxStrays {
		now += time.Millisecond
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if _, wait := l.begin(now, fmt.Sprint("x", i), false, a); wait > 0 {
			t.Fatal(wait)
		}
	}
	if len(l.strays) > maxStrays || len(l.sources) > maxStrays || len(l.persons) != 1 {
		t.Errorf("%d names of nobody, %d addresses, %d persons", len(l.strays), len(l.sources), len(l.persons))
	}
	if l.persons["kim"].count != personFree {
		t.Errorf("%+v", l.persons["kim"])
	}
}

// Two hashes at once, a few that wait, and no more; who gives up is not counted.
func TestHashesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var running, most atomic.Int64
		b, err := Open(cheapFile(t), Options{Clock: func() time.Duration { return 0 }, sum: func(h Hash, secret []byte) string {
			most.Store(max(most.Load(), running.Add(1)))
			<-release
			running.Add(-1)
			return cheap(h, secret)
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, giveUp := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var in, gaveUp atomic.Int64
		start := func(ctx context.Context, i int) {
			wg.Go(func() {
				switch _, err := b.ByBadge(ctx, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), []byte(goodBadge)); {
				case err == nil:
					in.Add(1)
				case errors.Is(err, context.Canceled):
					gaveUp.Add(1)
				default:
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for i := range hashesAtOnce {
			start(t.Context(), i)
		}
		for i := range hashesWait {
			start(ctx, 100+i)
		}
		if _, err := b.ByBadge(t.Context(), home, []byte(goodBadge)); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		giveUp()
		synctest.Wait()
		if gaveUp.Load() != hashesWait || most.Load() != hashesAtOnce {
			t.Errorf("%d gave up; %d hashes at once", gaveUp.Load(), most.Load())
		}
		for p, f := range b.limiter.sources {
			if f.count != 0 && p.Addr().As4()[3] >= 100 {
				t.Errorf("%s: %d failures", p, f.count)
			}
		}
		close(release)
		wg.Wait()
		if in.Load() != hashesAtOnce {
			t.Errorf("%d are in", in.Load())
		}
	})
}

func TestSessionTimes(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{Idle: 10 * time.Minute, Absolute: time.Hour})
	token := d.in(d.pin(goodPIN))
	d.pass(10*time.Minute - 1)
	if _, err := d.Peek(token); err != nil {
		t.Fatal(err)
	}
	d.pass(1)
	d.out(token, "looking is no use")

	token = d.in(d.pin(goodPIN))
	for range 6 {
		d.pass(9 * time.Minute)
		if _, err := d.Session(token); err != nil {
			t.Fatal(err)
		}
	}
	s, err := d.Session(token)
	if err != nil || s.Age != 54*time.Minute || s.Left != 6*time.Minute {
		t.Fatalf("%+v, %v", s, err)
	}
	d.pass(6 * time.Minute)
	d.out(token, "however much it is used")
}

// Suspend is in the clock; a set wall clock is not asked at all.
func TestClockJumpsDoNotLengthen(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	token := d.in(d.pin(goodPIN))
	d.pass(31 * time.Minute) // closed lid
	d.out(token, "slept through")
	synctest.Test(t, func(t *testing.T) { // time.Now stands at 2000-01-01
		var now time.Duration
		b, err := Open(cheapFile(t), Options{Clock: func() time.Duration { return now }, sum: cheap})
		if err != nil {
			t.Fatal(err)
		}
		l, err := b.ByBadge(t.Context(), home, []byte(goodBadge))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(1000 * time.Hour)
		if _, err := b.Peek(l.Token.Reveal()); err != nil {
			t.Errorf("the wall clock ended it: %v", err)
		}
		now = 30 * time.Minute
		if _, err := b.Peek(l.Token.Reveal()); !errors.Is(err, ErrSession) {
			t.Errorf("the wall clock keeps it: %v", err)
		}
	})
}

func TestSessionsEndWithTheFile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(f *file){
		"removed": func(f *file) { f.people = f.people[1:] },
		"new role": func(f *file) {
			f.people[0] = record{Person: Person{"kim", "Kim Lee", Auditor}, password: newSalt()}
			f.people[0].password.sum = strings.Repeat("x", 32)
		},
		"new PIN":   func(f *file) { f.people[0].pin.sum = strings.Repeat("x", 32) },
		"no badge":  func(f *file) { f.people[0].badge = Hash{} },
		"new badge": func(f *file) { f.people[0].badge.sum = strings.Repeat("x", 32) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, Options{})
			kim := d.in(d.pin(goodPIN))
			eve := d.in(d.ByPassword(t.Context(), home, "eve", []byte(goodPassword)))
			d.edit(change)
			d.out(kim, "the file has changed")
			if _, err := d.Session(eve); err != nil {
				t.Errorf("another's session: %v", err)
			}
		})
	}
}

func TestNewPeopleCanLogIn(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	kim := d.in(d.pin(goodPIN))
	d.edit(func(f *file) {
		h := f.badges
		h.sum = cheap(h, []byte("777777"))
		f.people = append(f.people, record{Person: Person{"li", "Li", Operator}, badge: h})
	})
	l, err := d.ByBadge(t.Context(), home, []byte("777777"))
	if d.in(l, err); l.Name != "li" {
		t.Errorf("%+v", l.Person)
	}
	if _, err := d.Session(kim); err != nil {
		t.Errorf("another's session: %v", err)
	}
}

// A person who is taken away while their secret is checked does not get in.
func TestRemovedDuringLogin(t *testing.T) {
	t.Parallel()
	var b *Book
	var path string
	checked := func(h Hash, secret []byte) string {
		if err := update(path, func(f *file) error { f.people = f.people[1:]; return nil }); err != nil {
			t.Error(err)
		}
		if err := b.Reload(); err != nil {
			t.Error(err)
		}
		return cheap(h, secret)
	}
	for name, do := range map[string]func() (Login, error){
		"PIN":   func() (Login, error) { return b.ByPIN(t.Context(), home, "kim", []byte(goodPIN)) },
		"badge": func() (Login, error) { return b.ByBadge(t.Context(), home, []byte(goodBadge)) },
	} {
		path = cheapFile(t)
		var err error
		if b, err = Open(path, Options{sum: checked}); err != nil {
			t.Fatal(err)
		}
		if l, err := do(); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %+v, %v", name, l.Person, err)
		}
	}
}

// A broken file keeps people out, and throws nobody out.
func TestBrokenFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage func(path string) error
		says   string
	}{
		"mode":    {func(path string) error { return os.Chmod(path, 0o644) }, "chmod 600"},
		"missing": {os.Remove, "no such file"},
		"text":    {func(path string) error { return os.WriteFile(path, []byte("version: 1\n"), 0o600) }, "has no badges"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, Options{})
			good := text(t, d.path)
			kim := d.in(d.pin(goodPIN))
			if err := c.damage(d.path); err != nil {
				t.Fatal(err)
			}
			d.pass(time.Second)
			hashes := d.hashes.Load()
			var fe *FileError
			if _, err := d.pin(goodPIN); !errors.As(err, &fe) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("logged in: %v", err)
			}
			if err := d.Err(); !errors.As(err, &fe) || d.hashes.Load() != hashes {
				t.Error(err)
			}
			if _, err := d.Session(kim); err != nil {
				t.Errorf("thrown out: %v", err)
			}
			_ = os.Remove(d.path)
			if err := os.WriteFile(d.path, []byte(good), 0o600); err != nil {
				t.Fatal(err)
			}
			d.pass(time.Second)
			if err := d.Err(); err != nil {
				t.Fatal(err)
			}
			d.in(d.pin(goodPIN))
		})
	}
}

func TestSessionsAreBounded(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	var tokens []string
	for range perPerson + 1 {
		d.pass(time.Second)
		tokens = append(tokens, d.in(d.pin(goodPIN)))
	}
	d.out(tokens[0], "the oldest made room")
	if len(d.sessions) != perPerson {
		t.Errorf("%d sessions", len(d.sessions))
	}
	if n := d.LogoutPerson("kim"); n != perPerson || len(d.sessions) != 0 {
		t.Errorf("%d ended, %d left", n, len(d.sessions))
	}
	for i := range maxSessions + 1 { // many people at once
		d.mu.Lock()
		d.enter(record{Person: Person{Name: fmt.Sprint(i)}}, home)
		d.mu.Unlock()
	}
	if len(d.sessions) != maxSessions {
		t.Errorf("%d sessions", len(d.sessions))
	}
}

// A token is 256 bits, no two are alike, the book does not hold it, and no verb
// prints it.
func TestToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Options{})
	seen := map[string]bool{}
	for range 100 {
		l, err := d.pin(goodPIN)
		token := d.in(l, err)
		if len(token) != 43 || seen[token] {
			t.Fatalf("%q", token)
		}
		seen[token] = true
		wrapped := struct{ l Login }{l}
		var out strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb, l)
			fmt.Fprintf(&out, verb, &l)
			fmt.Fprintf(&out, verb, wrapped)
			fmt.Fprintf(&out, verb, l.Token)
		}
		fmt.Fprintf(&out, "%v %+v", d.sessions, d.Book.sessions)
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		if strings.Contains(out.String(), token) || strings.Contains(out.String(), fmt.Sprintf("%x", token)) {
			t.Fatalf("the token is printed: %s", out.String())
		}
	}
	if (Token{}).Reveal() != "" {
		t.Error("no token has a text")
	}
}
