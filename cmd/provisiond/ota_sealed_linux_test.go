package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOTAServeSealedKeys: a server that holds a unit's key, and has just used it, has
// it nowhere in its memory as it is.
func TestOTAServeSealedKeys(t *testing.T) {
	t.Parallel()
	l := newOTALine(t)
	l.run(0, "ota", "release", "init", "--state", "ota")
	if err := os.WriteFile(filepath.Join(l.dir, "ota.yaml"), []byte("state: ota\nkeystore: keys.db\nidentity: keys.db.identity\nmetrics: 127.0.0.1:0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.run(0, "ota", "release", "add", "1.0.0", "--in", filepath.Join("build-esp32c3", "app.bin"), "--config", "ota.yaml")
	l.run(0, "ota", "release", "rollout", "1.0.0", "--percent", "100", "--config", "ota.yaml")
	serve := l.command("ota", "serve", "--config", "ota.yaml", "--listen", "127.0.0.1:0")
	out, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		_ = serve.Wait()
	}()
	var up struct{ Listening, URL string }
	if err := json.NewDecoder(out).Decode(&up); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if resp, _ := l.ask("GET", up.URL, "/firmware?slot=ota_1", ""); resp.StatusCode != http.StatusOK {
			t.Fatalf("%d", resp.StatusCode)
		}
	}
	// What is known to be there is found: the MAC, as text.
	var key []byte
	if err := l.record.Key.Use(func(b []byte) error { key = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	found, err := inMemory(serve.Process.Pid, key[:16], key[16:], []byte(l.record.Unit.String()))
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs to read the memory of another process: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if found[0]+found[1] != 0 || found[2] == 0 {
		t.Errorf("halves of the key were found %d and %d times, the MAC %d times", found[0], found[1], found[2])
	}
}

// inMemory counts bytes in what a process may write to.
func inMemory(pid int, what ...[]byte) ([]int, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = mem.Close() }()
	found := make([]int, len(what))
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") || to-from > 1<<30 {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from) // a part may be gone
		for i, w := range what {
			found[i] += bytes.Count(b[:n], w)
		}
	}
	return found, nil
}
