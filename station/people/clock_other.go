//go:build !linux

package people

import (
	"sync"
	"time"
)

var (
	started = time.Now()
	latest  struct {
		sync.Mutex
		at time.Duration
	}
)

// clock is the time since the program's start, by the clock that says more: the
// monotonic one may stand still in suspend, the other may be set. It never goes
// back.
func clock() time.Duration {
	now := time.Now()
	latest.Lock()
	defer latest.Unlock()
	latest.at = max(latest.at, now.Sub(started), now.Round(0).Sub(started.Round(0)))
	return latest.at
}
