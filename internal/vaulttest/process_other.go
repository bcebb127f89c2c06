//go:build !linux

package vaulttest

import (
	"errors"
	"os/exec"
	"syscall"
)

func dieWithParent() *syscall.SysProcAttr { return nil }

func withDisk(*exec.Cmd) error { return errors.New("only on Linux") }

func canMount() bool { return false }
