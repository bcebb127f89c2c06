package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
)

// What another process holds is told in the place where a script looks for the
// next step.
func TestLockedKeystoreTellsNextStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys.db")
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"keystore", "init", keys}, strings.NewReader(""), &out, &errOut, nil); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errOut)
	}
	s, err := local.Open(keys, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	errOut.Reset()
	code := run(t.Context(), []string{"keystore", "describe", keys, "--json"}, strings.NewReader(""), &out, &errOut, nil)
	var got struct {
		Error struct {
			Code     int    `json:"code"`
			NextStep string `json:"next_step"`
		} `json:"error"`
	}
	if err := json.Unmarshal(errOut.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if code != provision.ExitKeystore || got.Error.Code != code || !strings.Contains(got.Error.NextStep, "other provisiond") {
		t.Errorf("exit code %d: %s", code, &errOut)
	}
}
