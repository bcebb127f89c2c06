//go:build pkcs11 && cgo

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/pkcs11key/pkcs11test"
	"github.com/provisiond/provisiond/internal/sample"
)

// TestImageSignPKCS11 signs with two keys of a SoftHSM token; the PIN comes from a
// file that nobody else may read.
func TestImageSignPKCS11(t *testing.T) {
	h := pkcs11test.New(t, "boot")
	h.RSA(t, "first", 1, 3072)
	h.RSA(t, "second", 2, 3072)
	dir := t.TempDir()
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(dir, sample.Product{Chip: m, Profile: "release"}); err != nil {
		t.Fatal(err)
	}
	pin, signed := filepath.Join(dir, "pin"), filepath.Join(dir, "signed.bin")
	if err := os.WriteFile(pin, []byte(h.PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := func(code int, args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		if got := run(context.Background(), append([]string{"image"}, args...), strings.NewReader(""), &out, &errOut, nil); got != code {
			t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, &out, &errOut)
		}
		if strings.Contains(out.String()+errOut.String(), h.PIN) {
			t.Errorf("%v shows the PIN", args)
		}
		return out.String() + errOut.String()
	}
	key := func(name string) string {
		return "pkcs11:token=boot;object=" + name + "?module-path=" + h.Module + "&pin-source=" + pin
	}
	app := filepath.Join(dir, "build-esp32c3", "app.bin")
	image(0, "sign", "--key", key("first"), "--key", key("second"), "--in", app, "--out", signed)
	if out := image(0, "verify", signed); strings.Count(out, "key digest") != 2 {
		t.Error(out)
	}
	image(2, "sign", "--key", key("third"), "--in", app, "--out", signed+".no")
	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := image(2, "sign", "--key", key("first"), "--in", app, "--out", signed+".no"); !strings.Contains(out, "chmod 600") {
		t.Error(out)
	}
}
