//go:build !linux

package main

// forbidCoreDumps does nothing here: stations run Linux.
func forbidCoreDumps() {}
