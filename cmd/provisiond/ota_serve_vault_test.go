package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision/ota"
)

// TestOTAServeVault: a unit that was provisioned into a real Vault fetches its
// update with the token that was made for it; the server has the OTA role's login
// and signs in Vault, and goes on through an outage.
func TestOTAServeVault(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	l.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--manifest-key")
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "hybrid", UnitTemplate: "{{.OTAToken}}"}); err != nil {
		t.Fatal(err)
	}
	units := []string{"02:00:00:00:00:01", "02:00:00:00:00:02"}
	for _, unit := range units {
		l.run(0, "provision", "--port", "sim://esp32c3?mac="+unit+"&app-prints="+strings.ReplaceAll(sample.AppText, " ", "%20"),
			"--recipe", "sample-esp32c3.yaml", "--keystore", "vault:station.yaml", "--journal", "journal.db", "--json")
	}
	l.run(0, "ota", "release", "init", "--state", "ota")
	l.write("server.yaml", "state: ota\nkeystore: vault:ota.yaml\nmanifest_key: vault-transit:ota.yaml\nkeys: {wait: 2s}\n")
	app := filepath.Join("build-esp32c3-unit", "app.bin")
	l.run(0, "ota", "release", "add", "1.0.0", "--in", app, "--recipe", "sample-esp32c3", "--config", "server.yaml")
	l.run(0, "ota", "release", "rollout", "1.0.0", "--percent", "100", "--config", "server.yaml")

	// The tokens, as the boards have them.
	tokens := map[string]string{}
	cfg, err := vault.ReadConfig(filepath.Join(l.dir, "ota.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := vault.Open(t.Context(), cfg) // its login stays in the cache, for the server
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range units {
		mac, err := chip.ParseMAC(unit)
		if err != nil {
			t.Fatal(err)
		}
		u, err := ota.Lookup(t.Context(), store, mac)
		if err != nil {
			t.Fatal(err)
		}
		token, err := u.Key.DeriveOTAToken(mac)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.UseText(func(b []byte) error { tokens[unit] = string(b); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	serve := exec.CommandContext(t.Context(), theBinary(t), "ota", "serve", "--config", "server.yaml", "--listen", "127.0.0.1:0")
	serve.Dir = l.dir
	serve.Env = append(os.Environ(), "VAULT_ADDR=", "VAULT_TOKEN=not-a-token", "VAULT_NAMESPACE=")
	var log bytes.Buffer
	serve.Stderr = &log
	out, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = serve.Process.Kill()
			_ = serve.Wait()
		}
	}()
	var up struct{ URL string }
	if err := json.NewDecoder(out).Decode(&up); err != nil {
		t.Fatalf("%v: %s", err, &log)
	}
	get := func(unit, path string) (int, []byte) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, up.URL+"/v1/units/"+unit+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+tokens[unit])
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	code, text := get(units[0], "/manifest?slot=ota_1")
	manifest, err := ota.ParseManifest(text)
	if code != http.StatusOK || err != nil || manifest.Unit.String() != units[0] {
		t.Fatalf("%d, %v: %s", code, err, text)
	}
	if code, b := get(units[0], "/firmware?slot=ota_1"); code != http.StatusOK || len(b) != int(manifest.Length) {
		t.Errorf("%d with %d bytes", code, len(b))
	}
	tokens["02:00:00:00:00:03"] = tokens[units[0]]
	if code, b := get("02:00:00:00:00:03", "/firmware?slot=ota_1"); code != http.StatusUnauthorized {
		t.Errorf("an unknown unit: %d %s", code, b)
	}
	l.srv.Seal(t)
	if code, b := get(units[0], "/firmware?slot=ota_0"); code != http.StatusOK || len(b) != int(manifest.Length) {
		t.Errorf("in an outage: %d with %d bytes", code, len(b))
	}
	if code, b := get(units[1], "/firmware?slot=ota_0"); code != http.StatusServiceUnavailable {
		t.Errorf("in an outage, the other unit: %d %s", code, b)
	}
	l.srv.Unseal(t)
	vaulttest.Eventually(t, time.Minute, "the other unit is served", func() error {
		if code, b := get(units[1], "/firmware?slot=ota_0"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, b)
		}
		return nil
	})
	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	err, ended = serve.Wait(), true
	if err != nil {
		t.Errorf("it ends with %v: %s", err, &log)
	}
	for _, token := range tokens {
		if strings.Contains(log.String(), token) {
			t.Error("a token is in the log")
		}
	}
}
