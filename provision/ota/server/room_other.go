//go:build !linux

package server

func (*connection) prepare() {}

// room does not wait: a write does, and holds a chunk meanwhile.
func (*connection) room() error { return nil }
