package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// TestVaultEscrow runs a line through an outage of its real Vault, with our own
// commands: without an escrow the units wait unburned, with one they pass, and
// what the custodian drains afterwards is what is in the chips. The journal is
// anchored in that Vault and signed by it.
func TestVaultEscrow(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	l.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--station", "line1=127.0.0.0/8",
		"--custodian-cidr", "127.0.0.0/8", "--auditor-cidr", "127.0.0.0/8", "--journal-keys")
	for _, role := range []string{"custodian", "auditor"} {
		l.run(0, "keystore", "secret-id", "admin.yaml", "--role", role, "--out", role)
		l.write(role+".yaml", l.config(fmt.Sprintf(
			"login: {approle: {role_id_file: %[1]s.role-id, secret_id_file: %[1]s.secret-id, token_cache: %[1]s.token}}", role)))
	}
	impatient, err := os.ReadFile(filepath.Join(l.dir, "station.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	l.write("station.yaml", strings.Replace(string(impatient), "patience: 3s", "patience: 1s", 1))
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	l.write("custodian.identity", id.String()+"\n")
	if err := os.Mkdir(filepath.Join(l.dir, "spool"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "hybrid"}); err != nil {
		t.Fatal(err)
	}
	l.run(0, "journal", "init", "journal.db", "--station", "line1", "--signing-key", "vault-transit:station.yaml", "--anchor", "vault:station.yaml")
	if _, err := os.Stat(filepath.Join(l.dir, "journal.db.key")); err == nil {
		t.Error("a journal that Vault signs has a key file")
	}
	l.run(2, "journal", "init", "other.db", "--station", "line2", "--anchor", "vault:station.yaml")

	escrow := []string{"--escrow", "spool", "--escrow-recipient", id.Recipient().String()}
	unit := func(code, n int, more ...string) provision.Result {
		t.Helper()
		port := fmt.Sprintf("sim://esp32c3?mac=02:00:00:00:00:%02x&state=board-%d&app-prints=%s", n, n, strings.ReplaceAll(sample.AppText, " ", "%20"))
		out := l.run(code, append([]string{
			"provision", "--port", port, "--recipe", "sample-esp32c3.yaml", "--keystore", "vault:station.yaml", "--json",
			"--journal", "journal.db", "--signing-key", "vault-transit", "--anchor", "vault",
		}, more...)...)
		var r provision.Result
		if err := json.Unmarshal([]byte(out), &r); err != nil && out != "" {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}
	if r := unit(0, 1, escrow...); !strings.HasPrefix(r.KeyRef, "vault:") || len(r.Warnings) != 0 {
		t.Errorf("%+v", r)
	}

	l.srv.Seal(t)
	if out := l.run(12, "keystore", "health", "vault:station.yaml"); !strings.Contains(out, "sealed: ") || !strings.Contains(out, "vault operator unseal") {
		t.Error(out)
	}
	if r := unit(12, 2); r.KeyRef != "" {
		t.Errorf("%+v", r)
	}
	sealed := unit(0, 2, escrow...)
	if !strings.HasPrefix(sealed.KeyRef, "escrow:") || !strings.Contains(strings.Join(sealed.Warnings, "\n"), "escrow drain") {
		t.Errorf("ref %s, warnings %q", sealed.KeyRef, sealed.Warnings)
	}
	if out := l.run(0, "keystore", "escrow", "list", "spool"); !strings.Contains(out, "1 keys wait") || !strings.Contains(out, "in-silicon") || !strings.Contains(out, "only here") {
		t.Error(out)
	}
	if out := l.run(0, append([]string{"keystore", "describe", "vault:station.yaml", "--unit", sealed.Unit}, escrow...)...); !strings.Contains(out, "warning: the keystore is not available") || !strings.Contains(out, sealed.Unit) {
		t.Error(out)
	}
	if out := unit(0, 3, append(escrow, "--escrow-max", "2")...); !strings.HasPrefix(out.KeyRef, "escrow:") {
		t.Errorf("%+v", out)
	}
	unit(12, 4, append(escrow, "--escrow-max", "2")...)
	l.run(12, "keystore", "escrow", "drain", "--identity", "custodian.identity", "--spool", "spool", "--keystore", "vault:custodian.yaml")

	l.srv.Unseal(t)
	if r := unit(0, 4, escrow...); !strings.HasPrefix(r.KeyRef, "vault:") {
		t.Errorf("%+v", r)
	}
	if out := l.run(0, "keystore", "escrow", "list", "spool", "--json"); strings.Count(out, `"uploaded":true`) != 2 {
		t.Error(out)
	}
	drain := func(code int, more ...string) string {
		t.Helper()
		return l.run(code, append([]string{"keystore", "escrow", "drain", "--identity", "custodian.identity", "--keystore", "vault:custodian.yaml"}, more...)...)
	}
	if out := drain(0, "--spool", "spool"); !strings.Contains(out, "2 keys stored and confirmed") {
		t.Error(out)
	}
	if out := drain(0, "--from-keystore"); !strings.Contains(out, "2 keys stored and confirmed") { // the same two, which are there
		t.Error(out)
	}
	if out := drain(0, "--from-keystore"); !strings.Contains(out, "0 keys stored") {
		t.Error(out)
	}
	drain(2)

	cfg, err := vault.ReadConfig(filepath.Join(l.dir, "ota.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ota, err := vault.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ota.Close() }()
	mac, _ := chip.ParseMAC(sealed.Unit)
	fp, _ := keystore.ParseFingerprint(sealed.KeyFingerprint)
	rec, err := ota.Load(t.Context(), mac, fp)
	if err != nil {
		t.Fatal(err)
	}
	decrypts(t, rec, m, filepath.Join(l.dir, "board-2"))
	rec.Key.Wipe()
	if metas, err := ota.List(t.Context(), mac); err != nil || len(metas) != 1 || metas[0].Current() != keystore.InSilicon {
		t.Errorf("%+v, %v", metas, err)
	}
	if out := l.run(0, "keystore", "check", "vault:auditor.yaml"); !strings.Contains(out, " 0 findings") {
		t.Error(out)
	}
	l.run(0, "audit", "reconcile", "--journal", "journal.db", "--keystore", "vault:auditor.yaml", "--json")
	l.run(0, "journal", "verify", "journal.db", "--public-key", "journal.db.pub", "--anchor", "vault:station.yaml")
	l.run(0, "audit", "unit", sealed.Unit, "--journal", "journal.db", "--signing-key", "vault-transit:station.yaml", "--out", "unit.json")
	l.run(0, "audit", "unit", "--verify", "unit.json", "--public-key", "journal.db.pub")

	// A journal that is older than what Vault knows of it is found out.
	l.run(0, "journal", "backup", "journal.db", "old.db")
	unit(0, 5, escrow...)
	l.run(0, "journal", "verify", "journal.db", "--anchor", "vault:station.yaml")
	l.run(13, "journal", "verify", "old.db", "--anchor", "vault:station.yaml")

	// Also when it is opened while Vault is away, as a station does.
	l.srv.Seal(t)
	var notes bytes.Buffer
	a := &app{ctx: t.Context(), errOut: &console{w: &notes}, log: zap.NewNop()}
	station := filepath.Join(l.dir, "station.yaml")
	j, err := journalKeeping{SigningKey: "vault-transit:" + station, Anchor: "vault:" + station, lenient: true}.open(a, filepath.Join(l.dir, "old.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(notes.String(), "was not compared with its anchor yet") || !errors.Is(j.Anchored(), journal.ErrAnchorAway) {
		t.Errorf("%s%v", &notes, j.Anchored())
	}
	l.srv.Unseal(t)
	if _, err := j.Checkpoint(t.Context()); !errors.Is(err, journal.ErrAnchor) || !strings.Contains(err.Error(), "is the last that is known to be in both") {
		t.Error(err)
	}
	if err := j.Close(); !errors.Is(err, journal.ErrAnchor) {
		t.Error(err)
	}

	l.srv.Seal(t)
	var out, errOut bytes.Buffer
	code := run(t.Context(), append([]string{
		"provision", "--recipe", filepath.Join(l.dir, "sample-esp32c3.yaml"), "--keystore", "vault:" + station, "--journal", filepath.Join(l.dir, "old.db"),
		"--signing-key", "vault-transit", "--anchor", "vault", "--json", "--escrow", filepath.Join(l.dir, "spool"),
		"--port", "sim://esp32c3?mac=02:00:00:00:00:06&app-prints=" + strings.ReplaceAll(sample.AppText, " ", "%20"),
	}, escrow[2:]...), strings.NewReader(""), &out, &errOut, func(e provision.Event) {
		if e.Step == "proof" {
			l.srv.Unseal(t)
		}
	})
	if code != 13 || !strings.Contains(out.String(), `"PASS"`) || !strings.Contains(errOut.String(), "is the last that is known to be in both") {
		t.Errorf("exit code %d: %s%s", code, &out, &errOut)
	}

	// A lost disk: a new journal goes on where Vault says that the old one was, and
	// the old one is then not the newest any more.
	var old struct{ ID string }
	if err := json.Unmarshal([]byte(l.run(0, "journal", "verify", "journal.db", "--json")), &old); err != nil {
		t.Fatal(err)
	}
	l.run(0, "journal", "init", "next.db", "--station", "line1", "--succeeds", old.ID, "--signing-key", "vault-transit:station.yaml", "--anchor", "vault:station.yaml")
	l.run(0, "journal", "verify", "next.db", "--anchor", "vault:station.yaml")
	l.run(13, "journal", "verify", "journal.db", "--anchor", "vault:station.yaml")
}

// TestVaultGoesAwayMidUnit seals the real Vault in the middle of a unit, without
// an escrow: before custody the unit ends unburned with exit code 12, after it the
// unit is finished, and no new one is begun meanwhile.
func TestVaultGoesAwayMidUnit(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	config, err := os.ReadFile(filepath.Join(l.dir, "station.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	l.write("station.yaml", strings.Replace(string(config), "patience: 3s", "patience: 1s", 1))
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "hybrid"}); err != nil {
		t.Fatal(err)
	}
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	unit := func(n int, observe func(provision.Event)) (r provision.Result, code int) {
		t.Helper()
		var out, errOut bytes.Buffer
		code = run(t.Context(), []string{
			"provision", "--recipe", filepath.Join(l.dir, "sample-esp32c3.yaml"), "--keystore", "vault:" + filepath.Join(l.dir, "station.yaml"),
			"--journal", filepath.Join(l.dir, "journal.db"), "--json",
			"--port", fmt.Sprintf("sim://esp32c3?mac=02:00:00:00:00:%02x&state=%s&app-prints=%s", n, filepath.Join(l.dir, fmt.Sprintf("board-%d", n)), strings.ReplaceAll(sample.AppText, " ", "%20")),
		}, strings.NewReader(""), &out, &errOut, observe)
		if err := json.Unmarshal(out.Bytes(), &r); err != nil && out.Len() > 0 {
			t.Fatalf("%v: %s%s", err, &out, &errOut)
		}
		return r, code
	}
	for n, c := range []struct {
		step string
		code int
	}{{"flash", 12}, {"custody", 12}, {"protect-key", 0}, {"boot-check", 0}} {
		done := false
		r, code := unit(n+1, func(e provision.Event) {
			if e.Step == c.step && !done {
				done = true
				l.srv.Seal(t)
			}
		})
		burned := false
		for _, s := range r.Steps {
			burned = burned || s.Name == "burn-key"
		}
		if code != c.code || !done || burned != (code == 0) {
			t.Errorf("sealed at %s: exit code %d, burned %v: %s", c.step, code, burned, r.Reason)
		}
		if _, code := unit(0x40+n, nil); code != 12 {
			t.Errorf("a new unit was begun while Vault is sealed: exit code %d", code)
		}
		l.srv.Unseal(t)
		if code == 12 { // the same job goes on
			if r, code := unit(n+1, nil); code != 0 {
				t.Errorf("after the unseal: exit code %d: %s", code, r.Reason)
			}
		}
	}
}
