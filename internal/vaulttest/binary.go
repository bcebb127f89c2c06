package vaulttest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Version is the server's version, as server/go.mod asks for it.
const Version = "1.21.2"

var build = sync.OnceValues(binary)

// Binary gives the path of the Vault server: VAULT_BIN, or one that is built
// from the nested module when the cache folder holds none.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("vaulttest: no Vault server: %v; set VAULT_BIN to one, or mend the build", err)
	}
	return path
}

func binary() (string, error) {
	if path := os.Getenv("VAULT_BIN"); path != "" {
		_, err := exec.LookPath(path)
		return path, err
	}
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	sum, err := hashTree(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "provisiond", fmt.Sprintf("vault-%s-%x", Version, sum[:8]))
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	// Test packages run side by side: one builds, the others wait.
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, "vault")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, compile(source, dir, path)
}

func compile(source, dir, path string) error {
	start := time.Now()
	fmt.Fprintf(os.Stderr, "vaulttest: building Vault %s into %s, once; this takes some minutes\n", Version, dir)
	// Within dir, so that the rename is atomic and a cut build leaves no server.
	tmp := filepath.Join(dir, fmt.Sprintf("vault.%d", os.Getpid()))
	defer func() { _ = os.Remove(tmp) }()
	cmd := exec.Command("go", "build", "-tags", "minimal", "-trimpath", "-ldflags", "-s -w", "-o", tmp, ".") //nolint:noctx // ends with the test binary
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", source, err, out)
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "vaulttest: built in %s\n", time.Since(start).Round(time.Second))
	return nil
}

// sourceDir finds the nested module from a test's working folder.
func sourceDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		source := filepath.Join(dir, "internal", "vaulttest", "server")
		if _, err := os.Stat(filepath.Join(source, "go.mod")); err == nil {
			return source, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("internal/vaulttest/server is not above this folder")
		}
		dir = parent
	}
}

// hashTree names the sources, the toolchain and the target.
func hashTree(dir string) ([]byte, error) {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) == ".md" {
			return err
		}
		f, err := os.Open(path) //nolint:gosec // our own sources
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(h, "%s\n", rel)
		_, err = io.Copy(h, f)
		return err
	})
	return h.Sum(nil), err
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}
