package outbox

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// SecretPath resolves the name of a file with a secret: credential:NAME is the
// file NAME in systemd's credentials directory, everything else a path.
func SecretPath(name string) (string, error) {
	cred, ok := strings.CutPrefix(name, "credential:")
	if !ok {
		return name, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", fmt.Errorf("%s: there is no credentials directory: run under systemd with LoadCredential=%s:…", name, cred)
	}
	if cred == "" || cred != filepath.Base(cred) || cred == "." || cred == ".." {
		return "", fmt.Errorf("%s: write credential:NAME", name)
	}
	return filepath.Join(dir, cred), nil
}

// ReadSecret reads a file that nobody else may read: a plain file of mode 0600,
// of ours or of root, with at most limit bytes.
func ReadSecret(name string, limit int64) ([]byte, error) {
	path, err := CheckSecret(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo must not hang us
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	if err != nil {
		clear(b)
		return nil, err
	}
	return b, nil
}

// CheckSecret resolves the name of a secret's file and checks who may read it.
func CheckSecret(name string) (path string, err error) {
	if path, err = SecretPath(name); err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	// Files of systemd's credentials are 0440 in some versions; their directory is
	// private.
	forbidden := fs.FileMode(0o077)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		forbidden = 0o037
	}
	switch {
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a plain file", path)
	case st.Mode().Perm()&forbidden != 0:
		return "", fmt.Errorf("%s has mode %04o: others may read it: look who did, then: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s belongs to another user: chown it to the one that runs provisiond", path)
	}
	return path, nil
}
