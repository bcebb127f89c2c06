//go:build !unix

package port

import "os/exec"

// killWithChildren has no process groups here: the end of cmd's context kills
// the program alone.
func killWithChildren(*exec.Cmd) {}
