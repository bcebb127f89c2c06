package vaulttest

import "syscall"

// dieWithParent: a killed test binary leaves no server behind.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
