package notify_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/station/notify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is the service manager's end of a real socket.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// listen makes this process one that systemd started with a watchdog.
func listen(t *testing.T, watchdog time.Duration) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "")
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	} else if err := os.Unsetenv("WATCHDOG_USEC"); err != nil {
		t.Fatal(err)
	}
	return &manager{t, conn}
}

// got gives the messages that lie in the socket. What was sent is there at once.
func (m *manager) got() []string {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	var all []string
	buf := make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				return true
			}
			all = append(all, string(buf[:n]))
		}
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return all
}

func (m *manager) want(want ...string) {
	m.t.Helper()
	if got := m.got(); !slices.Equal(got, want) {
		m.t.Errorf("the service manager got %q, want %q", got, want)
	}
}

func environment(t *testing.T) *notify.Notifier {
	t.Helper()
	n, err := notify.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMessages(t *testing.T) {
	m := listen(t, 30*time.Second)
	n := environment(t)
	if !n.Managed() || n.WatchdogInterval() != 30*time.Second {
		t.Errorf("managed %v, watchdog %v", n.Managed(), n.WatchdogInterval())
	}
	if v, ok := os.LookupEnv("WATCHDOG_USEC"); ok {
		t.Errorf("a hook would inherit WATCHDOG_USEC=%s", v)
	}
	for _, tc := range []struct {
		call func() error
		want []string
	}{
		{n.Ready, []string{"READY=1"}},
		{func() error { return n.Status("3 of 64 slots work") }, []string{"STATUS=3 of 64 slots work"}},
		{func() error { return n.Status("3 of 64 slots work") }, nil},
		{func() error { return n.Status("a\nREADY=1\r\x00b\x7f\xff") }, []string{"STATUS=a READY=1  b  "}},
		{func() error { return n.Status(strings.Repeat("ä", 200)) }, []string{"STATUS=" + strings.Repeat("ä", 126) + "…"}},
		{func() error { return n.Status(strings.Repeat("x", 256)) }, []string{"STATUS=" + strings.Repeat("x", 256)}},
		{func() error { return n.Extend(90 * time.Second) }, []string{"EXTEND_TIMEOUT_USEC=90000000"}},
		{n.Stopping, []string{"STOPPING=1"}},
	} {
		if err := tc.call(); err != nil {
			t.Error(err)
		}
		m.want(tc.want...)
	}
}

// The time must be the monotonic clock's at the call, or notify-reload ignores it.
func TestReloading(t *testing.T) {
	m := listen(t, 0)
	n := environment(t)
	clock := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano() / 1000
	}
	before := clock()
	if err := n.Reloading(); err != nil {
		t.Fatal(err)
	}
	after := clock()
	got := m.got()
	if len(got) != 1 {
		t.Fatalf("%d messages: %q", len(got), got)
	}
	parts := regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=([0-9]+)$`).FindStringSubmatch(got[0])
	if parts == nil {
		t.Fatalf("%q", got[0])
	}
	if at, _ := strconv.ParseInt(parts[1], 10, 64); at < before || at > after {
		t.Errorf("MONOTONIC_USEC=%d, want %d to %d", at, before, after)
	}
}

func TestWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for name, n := range map[string]*notify.Notifier{"nil": nil, "environment": environment(t)} {
		if n.Managed() || n.WatchdogInterval() != 0 {
			t.Errorf("%s: managed", name)
		}
		for _, err := range []error{n.Ready(), n.Stopping(), n.Reloading(), n.Status("x"), n.Extend(time.Second)} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Whoever set the environment wrongly is told, and a socket that is gone is an error.
func TestErrors(t *testing.T) {
	m := listen(t, 0)
	n := environment(t)
	if err := m.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err == nil {
		t.Error("no error of a closed socket")
	}
	for range 2 {
		if n.Status("x") == nil {
			t.Error("a status that was not sent counts as sent")
		}
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	if _, err := notify.FromEnvironment(); err == nil || !strings.Contains(err.Error(), "WatchdogSec=") {
		t.Errorf("WATCHDOG_USEC=soon: %v", err)
	}
}

// watch runs a watchdog in the bubble and collects what it calls.
func watch(t *testing.T, w *notify.Watchdog) (silent *[][]string, failures *[]error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	silent, failures = new([][]string), new([]error)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, func(names []string) { *silent = append(*silent, names) }, func(err error) { *failures = append(*failures, err) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return silent, failures
}

// after lets the bubble's time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

const ping = "WATCHDOG=1"

func TestNobodyFeedsNothing(t *testing.T) {
	m := listen(t, 30*time.Second)
	n := environment(t)
	synctest.Test(t, func(t *testing.T) {
		w := notify.NewWatchdog(n)
		silent, _ := watch(t, w)
		after(5 * time.Minute)
		m.want() // the timer ran thirty times, and nobody vouched for anything
		h := w.Heartbeat("slot 1", time.Minute)
		after(10 * time.Second)
		m.want(ping)
		h.Stop()
		h.Stop()
		after(time.Minute)
		m.want()
		if len(*silent) != 0 {
			t.Errorf("silent: %q", *silent)
		}
	})
}

// One supervisor hangs among many that work: systemd hears nothing any more.
func TestOneHangs(t *testing.T) {
	m := listen(t, 30*time.Second)
	n := environment(t)
	synctest.Test(t, func(t *testing.T) {
		w := notify.NewWatchdog(n)
		hung := make(chan struct{})
		free := make(chan struct{})
		for i := range 8 {
			h := w.Heartbeat("slot "+strconv.Itoa(i), 15*time.Second)
			go func() {
				for {
					select {
					case <-t.Context().Done():
						h.Stop()
						return
					case <-time.After(5 * time.Second):
					}
					if i == 3 {
						select {
						case <-hung:
							<-free
						default:
						}
					}
					h.Beat()
				}
			}()
		}
		silent, _ := watch(t, w)
		after(95 * time.Second)
		if got := m.got(); len(got) != 10 {
			t.Errorf("%d signs of life in 95 s, want 10: %q", len(got), got)
		}
		close(hung) // the last beat was at 95 s: its promise ends at 110 s
		after(14 * time.Second)
		m.want(ping)
		after(10 * time.Minute)
		if len(m.got()) > 1 { // at 110 s it is still within its time
			t.Error("the watchdog is fed while a supervisor hangs")
		}
		if names, alive := w.Check(); alive || !slices.Equal(names, []string{"slot 3"}) {
			t.Errorf("alive %v, silent %q", alive, names)
		}
		close(free)
		after(25 * time.Second)
		if len(m.got()) < 2 {
			t.Error("the watchdog is not fed after all is well again")
		}
		if want := [][]string{{"slot 3"}, nil}; !slices.EqualFunc(*silent, want, slices.Equal) {
			t.Errorf("told of %q, want %q", *silent, want)
		}
	})
}

// A long step has its own time, and the next beat ends it.
func TestBusy(t *testing.T) {
	m := listen(t, 30*time.Second)
	n := environment(t)
	synctest.Test(t, func(t *testing.T) {
		w := notify.NewWatchdog(n)
		h := w.Heartbeat("slot 1", 15*time.Second)
		watch(t, w)
		h.Busy(2 * time.Minute)
		after(115 * time.Second)
		if got := m.got(); len(got) != 12 {
			t.Errorf("%d signs of life, want 12", len(got))
		}
		h.Beat()
		after(14 * time.Second)
		m.want(ping)
		after(2 * time.Minute)
		if got := m.got(); len(got) > 1 {
			t.Errorf("the longer time outlived its step: %q", got)
		}
	})
}

// Without systemd the same look names who hangs.
func TestWithoutWatchdog(t *testing.T) {
	for name, n := range map[string]*notify.Notifier{"nil": nil, "no manager": {}} {
		synctest.Test(t, func(t *testing.T) {
			w := notify.NewWatchdog(n)
			w.Heartbeat("b", time.Second)
			w.Heartbeat("a", time.Second)
			silent, failures := watch(t, w)
			after(15 * time.Second)
			if want := [][]string{{"a", "b"}}; !slices.EqualFunc(*silent, want, slices.Equal) || len(*failures) != 0 {
				t.Errorf("%s: told of %q, failures %v", name, *silent, *failures)
			}
		})
	}
}

func TestSocketGoes(t *testing.T) {
	m := listen(t, 3*time.Second)
	n := environment(t)
	if err := m.conn.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := notify.NewWatchdog(n)
		w.Heartbeat("slot 1", time.Minute)
		_, failures := watch(t, w)
		after(2500 * time.Millisecond)
		if len(*failures) != 3 {
			t.Errorf("%d errors, want one per turn: %v", len(*failures), *failures)
		}
	})
}

func TestPromiseHasBounds(t *testing.T) {
	w := notify.NewWatchdog(nil)
	h := w.Heartbeat("slot 1", notify.MaxPromise)
	for name, f := range map[string]func(){
		"zero":     func() { w.Heartbeat("x", 0) },
		"negative": func() { h.Busy(-time.Second) },
		"for ever": func() { h.Busy(notify.MaxPromise + 1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
