package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

// unitWithHMACKey stores a unit whose key is in silicon, and gives what it could do
// with the HMAC key in its eFuses.
func unitWithHMACKey(t *testing.T, store keystore.Store, n byte, change func(*keystore.Record)) (mac string, as encimg.Identity) {
	t.Helper()
	r := keystoretest.NewRecord(t, keystoretest.Simulated(n))
	r.Station = "line1"
	hmac, err := r.Key.DeriveHMACKey(r.Unit)
	if err != nil {
		t.Fatal(err)
	}
	if err := hmac.Use(func(b []byte) error {
		xy, err := encimg.PublicKey(b)
		if err != nil {
			return err
		}
		r.ECIESPublicKey = xy[:]
		as, err = encimg.NewECIESIdentity(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	change(&r)
	if _, err := store.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
		if _, err := store.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job, Station: r.Station}); err != nil {
			t.Fatal(err)
		}
	}
	return r.Unit.String(), as
}

// A file for one unit needs the keystore, but nothing that opens its seal: the
// public key is in the part of the record that everybody may read.
func TestPackageForAUnit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys.db")
	identity := filepath.Join(dir, "identity")
	if _, err := local.NewIdentity(identity); err != nil {
		t.Fatal(err)
	}
	o := local.Options{TestStore: true, IdentityFile: identity}
	if err := local.Init(keys, o); err != nil {
		t.Fatal(err)
	}
	store, err := local.Open(keys, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	units := map[string]encimg.Identity{}
	put := func(n byte, change func(*keystore.Record)) string {
		mac, as := unitWithHMACKey(t, store, n, change)
		units[mac] = as
		return mac
	}
	good := put(1, func(*keystore.Record) {})
	none := put(2, func(r *keystore.Record) { r.ECIESPublicKey = nil })
	secure := put(3, func(r *keystore.Record) {
		r.SecureBootScheme, r.SecureBootDigests = "rsa3072", [][32]byte{{1}}
	})
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(identity); err != nil { // nobody can open the seal any more
		t.Fatal(err)
	}

	app := func(name string) string {
		m, err := chip.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sample.Write(filepath.Join(dir, name), sample.Product{Chip: m, Profile: "release"}); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name, "build-"+name, "app.bin")
	}
	c3, esp32 := app("esp32c3"), app("esp32")
	out := filepath.Join(dir, "out")
	for name, tc := range map[string]struct {
		unit, in string
		code     int
		want     string
	}{
		"for a unit":       {good, c3, 0, `"unit":"` + good + `"`},
		"no key":           {none, c3, provision.ExitRefused, `"reason":"no-package-key"`},
		"unknown":          {"02:00:00:00:00:09", c3, provision.ExitRefused, "no key of it"},
		"another chip":     {good, esp32, provision.ExitRefused, `"reason":"chip"`},
		"not signed":       {secure, c3, provision.ExitRefused, `"reason":"unsigned"`},
		"no address":       {"kitchen", c3, provision.ExitUsage, "--unit"},
		"not an image":     {good, keys, provision.ExitRefused, `"reason":"not-an-image"`},
		"without keystore": {good, c3, provision.ExitUsage, "--keystore has no default"},
	} {
		_ = os.Remove(out)
		args := []string{"ota", "package", "make", "--unit", tc.unit, "--keystore", keys, "--json", tc.in, out}
		if name == "without keystore" {
			args = append(args[:5], args[7:]...)
		}
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), args, nil, &stdout, &stderr, nil)
		if code != tc.code || !strings.Contains(stdout.String()+stderr.String(), tc.want) {
			t.Errorf("%s: code %d, want %d with %q: %s%s", name, code, tc.code, tc.want, stdout.String(), stderr.String())
		}
		file, err := os.ReadFile(out)
		if (err == nil) != (tc.code == 0) {
			t.Errorf("%s: the file: %v", name, err)
		}
		if tc.code != 0 {
			continue
		}
		got, err := encimg.Open(units[tc.unit], file)
		want, rerr := os.ReadFile(tc.in)
		if err != nil || rerr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the unit cannot open it: %v", name, err)
		}
		var answer struct {
			Form, Chip, SHA256 string
			Bytes              int
		}
		if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil || answer.Form != "ecies-p256" || answer.Chip != "esp32c3" || answer.Bytes != len(file) {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
	}
}

// In Vault, files for units are made with a role that cannot read a flash key.
func TestPackageWithVault(t *testing.T) {
	t.Parallel()
	l := newVaultLine(t)
	l.run(0, "keystore", "init", "vault:admin.yaml", "--test", "--station", "line1=127.0.0.0/8", "--ota-cidr", "127.0.0.0/8", "--auditor-cidr", "127.0.0.0/8")
	l.run(0, "keystore", "secret-id", "admin.yaml", "--role", "auditor", "--out", "auditor")
	l.write("auditor.yaml", l.config("login: {approle: {role_id_file: auditor.role-id, secret_id_file: auditor.secret-id, token_cache: auditor.token}}"))
	open := func(file string) keystore.Store {
		cfg, err := vault.ReadConfig(filepath.Join(l.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		s, err := vault.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	var fp keystore.Fingerprint
	mac, as := unitWithHMACKey(t, open("station.yaml"), 1, func(r *keystore.Record) { fp = r.Fingerprint })

	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "release"}); err != nil {
		t.Fatal(err)
	}
	app := filepath.Join("build-esp32c3", "app.bin")
	l.run(0, "ota", "package", "make", "--unit", mac, "--keystore", "vault:auditor.yaml", app, "unit.enc")
	file, err := os.ReadFile(filepath.Join(l.dir, "unit.enc"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := encimg.Open(as, file)
	want, rerr := os.ReadFile(filepath.Join(l.dir, app))
	if err != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("the unit cannot open it: %v, %v", err, rerr)
	}
	if _, err := open("auditor.yaml").Load(t.Context(), keystoretest.Simulated(1), fp); err == nil {
		t.Error("the role that made the file can read the flash key")
	}
}
