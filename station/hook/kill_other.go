//go:build !unix

package hook

import "os/exec"

// killWithChildren has no process groups here: the end of cmd's context kills
// the program alone.
func killWithChildren(*exec.Cmd) {}
