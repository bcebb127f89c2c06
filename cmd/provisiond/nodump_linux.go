package main

import "golang.org/x/sys/unix"

// forbidCoreDumps keeps the memory of a process that handles keys off the disk,
// also when GOTRACEBACK=crash asks for a core file. The limit stops files; a
// process that is not dumpable is not handed to a crash collector either, and no
// other process of the same user may read its memory. Neither call can fail here,
// and a station without them still works.
func forbidCoreDumps() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
