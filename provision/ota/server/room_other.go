//go:build !linux

package server

import "syscall"

func limitUnsent(syscall.RawConn) {}

// room does not wait: a write does, and holds a chunk meanwhile.
func room(syscall.RawConn) error { return nil }
