package people

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock is the time since the machine's start. Suspend is in it, and no setting
// of the time moves it.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("people: Linux has CLOCK_BOOTTIME since 2.6.39: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
