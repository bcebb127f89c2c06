package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/ota"
)

// TestOTAEncryptVault: with one login of the OTA role, whose secret id is good for
// one login, a unit's key is read and a manifest is signed in Vault.
func TestOTAEncryptVault(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	l.run(2, "keystore", "init", "--manifest-key", "keys.db")
	if out := l.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--manifest-key"); !strings.Contains(out, "made signing key transit/keys/provisiond-ota-manifest") {
		t.Error(out)
	}
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "hybrid"}); err != nil {
		t.Fatal(err)
	}
	const unit = "02:00:00:00:00:01"
	l.run(0, "provision", "--port", "sim://esp32c3?mac="+unit+"&app-prints="+strings.ReplaceAll(sample.AppText, " ", "%20"),
		"--recipe", "sample-esp32c3.yaml", "--keystore", "vault:station.yaml", "--journal", "journal.db", "--json")
	app := filepath.Join("build-esp32c3", "app.bin")

	l.write("ota.yaml", l.config("login: {approle: {role_id_file: ota.role-id, secret_id_file: ota.secret-id}}")) // no cache: one login
	out := l.run(0, "ota", "encrypt", "--unit", unit, "--keystore", "vault:ota.yaml", "--all-slots", "--in", app, "--out", "files",
		"--manifest-key", "vault-transit:ota.yaml", "--release", "1.4.2", "--json")
	var answer struct {
		Signer string
		Files  []struct{ File, Manifest, Slot string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Files) != 2 || len(answer.Signer) != 64 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range answer.Files {
		text, err := os.ReadFile(filepath.Join(l.dir, f.Manifest))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ota.ParseManifest(text)
		if err != nil || got.Slot != f.Slot || got.Unit.String() != unit || got.Release != "1.4.2" || !strings.Contains(string(text), "signer "+answer.Signer) {
			t.Errorf("%v: %s", err, text)
		}
	}

	// Another role reads no key and signs no manifest.
	l.run(12, "ota", "encrypt", "--unit", unit, "--keystore", "vault:station.yaml", "--all-slots", "--in", app, "--out", "no")
	l.run(0, "keystore", "secret-id", "admin.yaml", "--role", "ota", "--out", "again")
	l.write("again.yaml", l.config("login: {approle: {role_id_file: again.role-id, secret_id_file: again.secret-id, token_cache: again.token}}"))
	l.run(12, "ota", "encrypt", "--unit", unit, "--keystore", "vault:again.yaml", "--all-slots", "--in", app, "--out", "no", "--manifest-key", "vault-transit:station.yaml")
	l.run(12, "ota", "encrypt", "--unit", unit, "--keystore", "vault:again.yaml", "--all-slots", "--in", app, "--out", "no", "--manifest-key", "vault-transit:again.yaml#missing")
	l.srv.Seal(t)
	l.run(12, "ota", "encrypt", "--unit", unit, "--keystore", "vault:again.yaml", "--all-slots", "--in", app, "--out", "no")
	if _, err := os.Stat(filepath.Join(l.dir, "no")); !os.IsNotExist(err) {
		t.Errorf("something was written: %v", err)
	}
}

// TestOTAEncryptStops: whoever stops it finds no half file, and what was there is
// still there.
func TestOTAEncryptStops(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(dir, sample.Product{Chip: m, Profile: "hybrid"}); err != nil {
		t.Fatal(err)
	}
	build := filepath.Join(dir, "build-esp32c3")
	key, out := filepath.Join(dir, "key"), filepath.Join(dir, "files")
	if err := errors.Join(os.WriteFile(key, []byte("0123456789abcdef0123456789ABCDEF"), 0o600), os.Mkdir(out, 0o700),
		os.WriteFile(filepath.Join(out, "ota_0.bin"), []byte("before"), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{
		"ota", "encrypt", "--keyfile", key, "--chip", "esp32c3", "--partition-table", filepath.Join(build, "partition-table.bin"),
		"--all-slots", "--in", filepath.Join(build, "app.bin"), "--out", out,
	}, strings.NewReader(""), &stdout, &stderr, nil)
	if code != provision.ExitAborted {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	names, err := filepath.Glob(filepath.Join(out, "*"))
	if b, rerr := os.ReadFile(filepath.Join(out, "ota_0.bin")); err != nil || rerr != nil || len(names) != 1 || string(b) != "before" {
		t.Errorf("%v, %v, %q", names, rerr, b)
	}
}
