package vaulttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// dieWithParent: a killed test binary leaves no server behind.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// withDisk makes the command see a file system of its own at the folder of the
// audit log, below its working folder.
func withDisk(cmd *exec.Cmd) error {
	sh, err := exec.LookPath("sh")
	if err != nil {
		return err
	}
	script := fmt.Sprintf(`mount -t tmpfs -o size=%d,mode=700 disk %s && exec "$0" "$@"`, diskSize, filepath.Dir(AuditPath))
	cmd.Args = append([]string{sh, "-c", script}, cmd.Args...)
	cmd.Path = sh
	cmd.SysProcAttr = dieWithParent()
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	return nil
}

// canMount reports whether this system lets us do what withDisk does.
var canMount = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "vaulttest-")
	if err != nil {
		return false
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Mkdir(filepath.Join(dir, filepath.Dir(AuditPath)), 0o700); err != nil {
		return false
	}
	cmd := exec.Command("true")
	cmd.Dir = dir
	return withDisk(cmd) == nil && cmd.Run() == nil
})
