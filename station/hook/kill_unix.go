//go:build unix

package hook

import (
	"os/exec"
	"syscall"
)

// killWithChildren makes the end of cmd's context kill its whole process group.
func killWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
