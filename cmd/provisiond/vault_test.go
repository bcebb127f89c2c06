package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

// vaultLine is a production line whose keystore is a real Vault, set up with our
// own commands: an admin, a station and an OTA server, each with its own login.
type vaultLine struct {
	t   *testing.T
	dir string
	srv *vaulttest.Server
}

func newVaultLine(t *testing.T) *vaultLine {
	t.Helper()
	l := &vaultLine{t: t, dir: t.TempDir(), srv: vaulttest.New(t)}
	l.write("admin.token", l.srv.Root+"\n")
	l.write("admin.yaml", l.config("login: {token_file: admin.token}"))
	l.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--station", "line1=127.0.0.0/8", "--ota-cidr", "127.0.0.0/8")
	if out := l.run(0, "keystore", "init", "vault:admin.yaml", "--test", "--station", "line1=127.0.0.0/8", "--ota-cidr", "127.0.0.0/8"); !strings.Contains(out, "nothing to change") {
		t.Errorf("a second init says: %s", out)
	}
	for _, role := range []string{"station", "ota"} {
		args := []string{"keystore", "secret-id", "admin.yaml", "--role", role, "--out", role}
		if role == "station" {
			args = append(args, "--station", "line1")
		}
		l.run(0, args...)
		l.write(role+".yaml", l.config(fmt.Sprintf(
			"login: {approle: {role_id_file: %[1]s.role-id, secret_id_file: %[1]s.secret-id, token_cache: %[1]s.token}}", role)))
	}
	return l
}

func (l *vaultLine) config(login string) string {
	return fmt.Sprintf("addresses: [%q]\nca_cert: %q\nstation: line1\npatience: 3s\n%s\n", l.srv.Addr, l.srv.CA.File, login)
}

func (l *vaultLine) write(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// run starts the real binary in the line's folder.
func (l *vaultLine) run(code int, args ...string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), theBinary(l.t), args...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), "VAULT_ADDR=", "VAULT_TOKEN=not-a-token", "VAULT_NAMESPACE=")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code {
		l.t.Fatalf("provisiond %s: exit code %d, want %d\n%s\n%s", strings.Join(args, " "), got, code, &out, &errOut)
	}
	return out.String()
}

// TestVaultLine provisions simulated units of both chips through a real server
// with only the station's role, then reads the keys with the OTA server's role and
// decrypts the chips' flash with what it read.
func TestVaultLine(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	l.run(0, "keystore", "check", "vault:station.yaml")
	type unit struct {
		name  string
		model chip.Model
		mac   chip.MAC
		fp    keystore.Fingerprint
	}
	var units []unit
	for i, name := range twoChips {
		m, err := chip.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		path, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "hybrid"})
		if err != nil {
			t.Fatal(err)
		}
		port := fmt.Sprintf("sim://%s?revision=3.0&mac=02:00:00:00:00:%02x&state=%s&app-prints=%s", name, i+1, name+"-board", strings.ReplaceAll(sample.AppText, " ", "%20"))
		if name != "esp32" {
			port = strings.Replace(port, "revision=3.0&", "", 1)
		}
		out := l.run(0, "provision", "--port", port, "--recipe", filepath.Base(path), "--keystore", "vault:station.yaml", "--journal", "journal.db", "--json")
		var r provision.Result
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.Verdict != provision.Pass {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		mac, err := chip.ParseMAC(r.Unit)
		if err != nil {
			t.Fatal(err)
		}
		fp, err := keystore.ParseFingerprint(r.KeyFingerprint)
		if err != nil {
			t.Fatal(err)
		}
		units = append(units, unit{name, m, mac, fp})
	}

	cfg, err := vault.ReadConfig(filepath.Join(l.dir, "ota.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ota, err := vault.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ota.Close() }()
	for _, u := range units {
		rec, err := ota.Load(t.Context(), u.mac, u.fp)
		if err != nil {
			t.Fatal(err)
		}
		decrypts(t, rec, u.model, filepath.Join(l.dir, u.name+"-board"))
		rec.Key.Wipe()
	}

	// What the station can do with its own login: not read a key back.
	scfg, err := vault.ReadConfig(filepath.Join(l.dir, "station.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	station, err := vault.Open(t.Context(), scfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = station.Close() }()
	if _, err := station.Load(t.Context(), units[0].mac, units[0].fp); err == nil {
		t.Error("a station read a key")
	}

	// The whole store is looked at, its claims too.
	if out := l.run(0, "keystore", "check", "vault:admin.yaml", "--read-keys"); !strings.Contains(out, "2 units, 2 records (2 in silicon, 0 superseded), 2 keys read, 0 findings") {
		t.Errorf("check: %s", out)
	}
	l.srv.Must(t, http.MethodPut, "provisiond/data/units/09/02:00:00:00:00:09/claim/1", map[string]any{
		"options": map[string]any{"cas": 0},
		"data":    map[string]any{"fingerprint": units[0].fp.String(), "job": "j", "station": "line1", "created": "2026-01-02T03:04:05Z"},
	})
	out := l.run(12, "keystore", "check", "vault:admin.yaml")
	if !strings.Contains(out, "claim-only: unit 02:00:00:00:00:09, key "+units[0].fp.String()) || !strings.Contains(out, "duplicate: unit ") {
		t.Errorf("check of a claim without its record: %s", out)
	}

	// Rework: with its own login the station cannot; with a ticket for the unit it can.
	l.run(0, "keystore", "ticket", "admin.yaml", "--unit", units[0].mac.String(), "--out", "ticket")
	l.write("rework.yaml", l.config("login: {token_file: ticket}"))
	rework := func(code int, u unit, more ...string) string {
		t.Helper()
		port := fmt.Sprintf("sim://%s?state=%s-board&app-prints=%s", u.name, u.name, strings.ReplaceAll(sample.AppText, " ", "%20"))
		return l.run(code, append([]string{
			"provision", "--port", port, "--recipe", "sample-" + u.name + ".yaml", "--keystore", "vault:station.yaml",
			"--journal", "journal.db", "--json", "--rework", "flash damaged", "--operator", "berta",
		}, more...)...)
	}
	for _, out := range []string{rework(12, units[0]), rework(12, units[1], "--rework-keystore", "vault:rework.yaml")} {
		if !strings.Contains(out, "the key could not be read for the rework") || !strings.Contains(out, "provisiond keystore ticket") || strings.Contains(out, `"name":"flash"`) {
			t.Error(out)
		}
	}
	if out := rework(0, units[0], "--rework-keystore", "vault:rework.yaml"); !strings.Contains(out, `"operator":"berta"`) || !strings.Contains(out, `"verdict":"PASS"`) {
		t.Error(out)
	}
	rec, err := ota.Load(t.Context(), units[0].mac, units[0].fp)
	if err != nil {
		t.Fatal(err)
	}
	decrypts(t, rec, units[0].model, filepath.Join(l.dir, units[0].name+"-board"))
	rec.Key.Wipe()

	// Vault is gone: no unit is begun, and the exit code says why.
	l.srv.Kill()
	out = l.run(12, "provision", "--port", "sim://esp32c3", "--recipe", "sample-esp32c3.yaml", "--keystore", "vault:station.yaml", "--journal", "journal.db", "--json")
	if strings.Contains(out, `"one_way_begun":true`) {
		t.Error(out)
	}
}

// decrypts holds what lies in a stored board's flash against the sample product.
func decrypts(t *testing.T, rec keystore.Record, m chip.Model, dir string) {
	t.Helper()
	board, err := espsim.New(espsim.Options{Model: m, FlashSize: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = board.Close() }()
	if ok, err := board.LoadDir(dir); err != nil || !ok {
		t.Fatalf("no board in %s: %v", dir, err)
	}
	cipher, err := rec.Key.Cipher(rec.Scheme, rec.FlashCryptConfig)
	if err != nil {
		t.Fatal(err)
	}
	files, err := sample.Files(sample.Product{Chip: m})
	if err != nil {
		t.Fatal(err)
	}
	for offset, plain := range files {
		raw := make([]byte, (len(plain)+31)/32*32)
		if _, err := board.Flash().ReadAt(raw, int64(offset)); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, plain[:16]) {
			t.Errorf("%s: 0x%x holds plaintext", m.Name, offset)
		}
		if err := cipher.Decrypt(raw, raw, offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(raw[:len(plain)], plain) {
			t.Errorf("%s: 0x%x does not decrypt to what was built", m.Name, offset)
		}
	}
}
