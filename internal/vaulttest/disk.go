package vaulttest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// AuditPath is the path of a file audit device that lies on each node's own small
// disk, for EnableAudit. See SmallDisks.
const AuditPath = "audit/log"

// diskSize has room for the audit log of any test.
const diskSize = 64 << 20

// SmallDisks gives each node a small disk of its own for its audit log, which
// FillDisk fills. It is a file system in memory that only this process sees,
// where the system lets everybody make one. Elsewhere the log is a link to
// /dev/null, and to /dev/full for a full disk.
func SmallDisks() Option { return func(o *options) { o.disks = true } }

// makeDisk is called before the process is started, once.
func (n *Node) makeDisk(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(n.dir, filepath.Dir(AuditPath)), 0o700); err != nil {
		t.Fatal(err)
	}
	if n.disk = diskReal; !canMount() {
		t.Logf("%s: no file system of its own for the audit log: a full disk is /dev/full", n.Addr)
		n.disk = diskLinked
		n.linkDisk(t, os.DevNull)
	}
}

type diskKind int

const (
	diskNone diskKind = iota
	diskReal
	diskLinked
)

func (n *Node) linkDisk(t testing.TB, to string) {
	t.Helper()
	log := filepath.Join(n.dir, AuditPath)
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(to, log); err != nil {
		t.Fatal(err)
	}
	n.Signal(syscall.SIGHUP) // the log is opened anew
}

// FillDisk leaves no room on the node's small disk.
func (n *Node) FillDisk(t testing.TB) {
	t.Helper()
	if n.disk == diskLinked {
		n.linkDisk(t, "/dev/full")
		return
	}
	f, err := os.OpenFile(n.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 16
		case err != nil:
			t.Fatal(err)
		}
	}
}

// FreeDisk makes room again. A node that was killed has lost its disk, and starts
// with an empty one.
func (n *Node) FreeDisk(t testing.TB) {
	t.Helper()
	if n.disk == diskLinked {
		n.linkDisk(t, os.DevNull)
		return
	}
	if filler := n.filler(); filler != "" {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
}

// filler is in the file system that only the process sees. It is "" without a
// process.
func (n *Node) filler() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return ""
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.cmd.Process.Pid), n.dir, filepath.Dir(AuditPath), "filler")
}
