package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/internal/vaulttest"
)

// signerPolicy is the policy of docs/secureboot.md for a machine that signs with
// one key.
func signerPolicy(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "secureboot.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindSubmatch(b)
	if m == nil {
		t.Fatal("docs/secureboot.md shows no policy")
	}
	return string(m[1])
}

// TestImageSignVault signs with keys in a real Vault that holds no keystore, with
// the documented policy.
func TestImageSignVault(t *testing.T) {
	t.Parallel()
	l := &vaultLine{t: t, dir: t.TempDir(), srv: vaulttest.New(t)}
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "release"}); err != nil {
		t.Fatal(err)
	}
	app := filepath.Join("build-esp32c3", "app.bin")
	l.srv.Must(t, http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"})
	for name, kind := range map[string]string{"secure-boot": "rsa-3072", "second": "rsa-3072", "short": "rsa-2048"} {
		l.srv.Must(t, http.MethodPost, "transit/keys/"+name, map[string]any{"type": kind})
	}
	token := func(name, policy string) {
		t.Helper()
		l.srv.Must(t, http.MethodPost, "sys/policies/acl/"+name, map[string]any{"policy": policy})
		out := l.srv.Must(t, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{name}, "no_default_policy": true, "period": "1h"})
		l.write(name+".token", out["auth"].(map[string]any)["client_token"].(string))
		l.write(name+".yaml", l.config("login: {token_file: "+name+".token}"))
	}
	policy := signerPolicy(t)
	token("signer", policy)
	token("both", policy+strings.ReplaceAll(policy, "secure-boot", "second")+strings.ReplaceAll(policy, "secure-boot", "short"))

	out := l.run(0, "image", "sign", "--key", "vault-transit:signer.yaml#secure-boot", "--in", app, "--out", "one.bin")
	digest := regexp.MustCompile(`key digest ([0-9a-f]{64})`).FindStringSubmatch(out)
	if digest == nil {
		t.Fatal(out)
	}
	l.run(0, "image", "verify", "--digest", digest[1], "one.bin")

	// Two keys, one login; and one of Vault beside one of a file.
	l.run(0, "image", "sign", "--key", "vault-transit:both.yaml#secure-boot", "--key", "vault-transit:both.yaml#second", "--in", app, "--out", "two.bin")
	private, _, err := newKeyPair("rsa3072")
	if err != nil {
		t.Fatal(err)
	}
	l.write("file.pem", string(private))
	l.run(0, "image", "sign", "--append", "--key", "file.pem", "--in", "two.bin", "--out", "three.bin")
	if out := l.run(0, "image", "verify", "--digest", digest[1], "three.bin"); strings.Count(out, "key digest") != 3 || strings.Count(out, "trusted") != 1 {
		t.Error(out)
	}

	l.run(12, "image", "sign", "--key", "vault-transit:signer.yaml#second", "--in", app, "--out", "no.bin")
	l.run(12, "image", "sign", "--key", "vault-transit:signer.yaml#missing", "--in", app, "--out", "no.bin")
	l.run(10, "image", "sign", "--key", "vault-transit:both.yaml#short", "--in", app, "--out", "no.bin")

	// A rotated key must be named by its version, and the old one signs as before.
	l.srv.Must(t, http.MethodPost, "transit/keys/secure-boot/rotate", nil)
	l.run(2, "image", "sign", "--key", "vault-transit:signer.yaml#secure-boot", "--in", app, "--out", "no.bin")
	l.run(0, "image", "sign", "--key", "vault-transit:signer.yaml#secure-boot/v1", "--in", app, "--out", "again.bin")
	l.run(0, "image", "verify", "--digest", digest[1], "again.bin")
	l.run(0, "image", "sign", "--key", "vault-transit:signer.yaml#secure-boot/v2", "--in", app, "--out", "new.bin")
	l.run(10, "image", "verify", "--digest", digest[1], "new.bin")

	l.srv.Seal(t)
	l.run(12, "image", "sign", "--key", "vault-transit:signer.yaml#secure-boot/v1", "--in", app, "--out", "no.bin")
	if _, err := os.Stat(filepath.Join(l.dir, "no.bin")); err == nil {
		t.Error("something was written that was not signed")
	}
}
