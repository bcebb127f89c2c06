// Package notify tells the service manager how the daemon is: ready, reloading,
// stopping, a line of status, and that it is alive. It owns systemd's notification
// protocol and the watchdog, and promises two things: without a service manager
// every call does nothing, and the watchdog is fed by those who do the work, never
// by a timer alone.
//
// A [Watchdog] knows the daemon's heartbeats, one for each slot's supervisor and
// whatever else must not hang. Each beat is a promise to beat again within a time.
// systemd is told that the daemon is alive only while no promise is broken, and
// never when nobody has promised anything. A supervisor that hangs so lets the
// watchdog bite, however well the rest of the program runs.
package notify

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/daemon"
)

// maxStatus bounds a status line in bytes. systemctl shows one line.
const maxStatus = 256

// Notifier speaks to the service manager. Its methods may be called from any
// goroutine. The nil Notifier is one without a service manager.
type Notifier struct {
	send     func(state string) error
	interval time.Duration

	mu     sync.Mutex
	status string // what was sent last
}

// FromEnvironment finds the service manager of this process. The watchdog's
// variables are taken out of the environment, so that a hook does not inherit
// them; NOTIFY_SOCKET stays, since the unit has NotifyAccess=main. Without a
// service manager the Notifier does nothing.
func FromEnvironment() (*Notifier, error) {
	interval, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		return nil, fmt.Errorf("notify: WATCHDOG_USEC: %w: it is systemd's to set (WatchdogSec=)", err)
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return &Notifier{}, nil
	}
	return &Notifier{interval: interval, send: func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}}, nil
}

// Managed reports whether there is a service manager to talk to.
func (n *Notifier) Managed() bool { return n != nil && n.send != nil }

// WatchdogInterval is the time within which the service manager wants a sign of
// life, zero if it wants none.
func (n *Notifier) WatchdogInterval() time.Duration {
	if n == nil {
		return 0
	}
	return n.interval
}

func (n *Notifier) tell(fields ...string) error {
	if !n.Managed() {
		return nil
	}
	if err := n.send(strings.Join(fields, "\n")); err != nil {
		return fmt.Errorf("notify: the service manager's socket: %w", err)
	}
	return nil
}

// Ready says that the start or a reload is done: slots are watched and the page answers.
func (n *Notifier) Ready() error { return n.tell(daemon.SdNotifyReady) }

// Stopping says that the daemon parks its units and ends.
func (n *Notifier) Stopping() error { return n.tell(daemon.SdNotifyStopping) }

// Reloading says that configuration is being read; Ready must follow, also when
// the new configuration was refused and the old one stays. It carries the time
// that Type=notify-reload (systemd 253) asks for.
func (n *Notifier) Reloading() error {
	if !n.Managed() {
		return nil
	}
	stamp := daemon.SdNotifyMonotonicUsec()
	if stamp == "" {
		return errors.New("notify: the monotonic clock cannot be read")
	}
	return n.tell(daemon.SdNotifyReloading, strings.TrimSpace(stamp))
}

// Extend asks for time: a start, reload or stop that is under way may take d from
// now. Each call must be earned by progress, like a heartbeat.
func (n *Notifier) Extend(d time.Duration) error {
	return n.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Status shows a line in `systemctl status`. The same line twice is sent once. It
// is cut to one line of 256 bytes: text from outside cannot add fields of its own.
func (n *Notifier) Status(text string) error {
	if !n.Managed() {
		return nil
	}
	line := oneLine(text)
	n.mu.Lock()
	defer n.mu.Unlock() // over the sending too: the last status must win
	if line == n.status {
		return nil
	}
	if err := n.tell("STATUS=" + line); err != nil {
		return err
	}
	n.status = line
	return nil
}

func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
	if len(text) <= maxStatus {
		return text
	}
	cut := maxStatus - len("…")
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
