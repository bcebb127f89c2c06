package recipe_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/recipe"
)

// secure loads a recipe of a chip with more lines. Public keys of the vendor's tests lie
// beside it.
func secure(t *testing.T, chipName, profile, lines string) (*recipe.Recipe, error) {
	t.Helper()
	dir := t.TempDir()
	for _, scheme := range []string{"rsa3072", "rsa3072-b", "ecdsa256", "ecdsa384", "ecdsa192"} {
		b, err := os.ReadFile("../../esp/secureboot/testdata/" + scheme + ".pub.pem")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, scheme+".pem"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	if err := os.WriteFile(filepath.Join(dir, "private.pem"), []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "r.yaml")
	text := "recipe: sample\nrevision: 1\nchip: " + chipName + "\nimages: [{offset: 0x0, file: a.bin}]\nflash_size: 4MB\nprofile: " + profile +
		"\nboot_check: {expect: \"app running\"}\n" + lines
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return recipe.Load(path)
}

func TestSecureBoot(t *testing.T) {
	r, err := secure(t, "esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem, rsa3072-b.pem], aggressive_revoke: true}\n")
	if err != nil {
		t.Fatal(err)
	}
	// The digest of the vendor's test key (esp-facts E.3).
	if len(r.SecureBootKeys) != 2 || r.SecureBootKeys[0].Digest() == r.SecureBootKeys[1].Digest() || !r.SecureBoot.AggressiveRevoke {
		t.Errorf("%+v", r.SecureBoot)
	}
	if low, _ := r.RevisionLimits(); low != 3 {
		t.Errorf("the oldest silicon is %s, and ESP32-C3 has Secure Boot V2 from v0.3", low)
	}
	back, err := recipe.Parse("r.yaml", r.Encode())
	if err != nil || len(back.SecureBoot.Keys) != 2 || back.SecureBoot.Scheme != chip.SignRSA3072 || !back.SecureBoot.AggressiveRevoke {
		t.Errorf("Encode: %v\n%s", err, r.Encode())
	}
	plain, err := secure(t, "esp32c3", "hybrid", "")
	if err != nil {
		t.Fatal(err)
	}
	swapped, err := secure(t, "esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072-b.pem, rsa3072.pem], aggressive_revoke: true}\n")
	if err != nil {
		t.Fatal(err)
	}
	milder, err := secure(t, "esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem, rsa3072-b.pem]}\n")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]bool{}
	for _, one := range []*recipe.Recipe{r, plain, swapped, milder} {
		if seen[one.Hash()] {
			t.Error("two products have one hash")
		}
		seen[one.Hash()] = true
	}
}

func TestSecureFieldsRefused(t *testing.T) {
	for _, x := range []struct{ chip, profile, lines, want string }{
		{"esp32c3", "hybrid", "secure_boot: {keys: [rsa3072.pem]}", "r.yaml:8: secure_boot.scheme: is missing"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072}", "r.yaml:8: secure_boot.keys: is missing"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: []}", "secure_boot.keys: is an empty list"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem]}", "ESP32-C3 verifies no signatures of scheme"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: v1, keys: [a.pem]}", "verifies no signatures of scheme"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [none.pem]}", "secure_boot.keys[0]: "},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [private.pem]}", "it is a private key"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem, ecdsa256.pem]}", "is a key of ecdsa256, and the recipe says rsa3072"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem, rsa3072.pem]}", "is the same key as another one"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [a, b, c, d]}", "4 keys are more than the 3"},
		{"esp32", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem, rsa3072-b.pem]}", "2 keys are more than the 1"},
		{"esp32", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem], aggressive_revoke: true}", "ESP32 has no such fuse"},
		{"esp32h2", "hybrid", "secure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem]}", "the vendor calls ECDSA for booting insecure on ESP32-H2"},
		{"esp32h2", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem], accept_weak_ecdsa: true}", "nothing is known against rsa3072"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem], extra: 1}", "secure_boot.extra: unknown key"},
		{"esp32c3", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem], aggressive_revoke: yes}", "is neither true nor false"},
		{"esp32c3", "hybrid", "encimg_ecies: \"true\"", "encimg_ecies: is neither true nor false"},
		{"esp32", "hybrid", "encimg_ecies: true", "ESP32 has no key block with purpose HMAC_UP"},
		{"esp32c3", "hybrid", "flash_encryption: xts-256", "no flash encryption of this chip; write one of xts-128"},
		{"esp32c3", "hybrid", "flash_encryption: rot13", "no flash encryption of this chip"},
		{"esp32c61", "hybrid", "secure_boot: {scheme: rsa3072, keys: [rsa3072.pem]}", "r.yaml:8: secure_boot.scheme: ESP32-C61 verifies no signatures of scheme"},
		{"esp32c6", "hybrid", "secure_boot: {scheme: ecdsa384, keys: [ecdsa384.pem]}", "r.yaml:8: secure_boot.scheme: ESP32-C6 verifies no signatures of scheme"},
		{
			"esp32c2", "hybrid", "flash_encryption: xts-128\nsecure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem]}",
			"r.yaml:8: flash_encryption: a key of xts-128 fills the only key block of ESP32-C2, which has to hold the digest too; write flash_encryption: xts-128-derived or leave it out",
		},
		{
			"esp32", "hybrid", "max_chip_revision: \"2.0\"\nsecure_boot: {scheme: rsa3072, keys: [rsa3072.pem]}",
			"r.yaml:8: max_chip_revision: ESP32 verifies no rsa3072 before v3.0, so no chip fits both; allow v3.0 or newer",
		},
		{
			"esp32p4", "hybrid", "max_chip_revision: \"1.3\"\nsecure_boot: {scheme: ecdsa384, keys: [ecdsa384.pem], accept_weak_ecdsa: true}",
			"r.yaml:8: max_chip_revision: ESP32-P4 verifies no ecdsa384 before v3.0",
		},
		{"esp32p4", "release", "", "a trap by errata ROM-764"},
		{"esp32p4", "hybrid", "accept_sdm_errata: true", "there is nothing to accept"},
		{"esp32c3", "release", "accept_sdm_errata: true", "there is nothing to accept"},
		{"esp32c3", "hybrid", "unit_data: {partition: unit}", "unit_data.template: is missing"},
		{"esp32c3", "hybrid", "keep: [unit]\nunit_data: {partition: unit, template: a.tmpl}", "is listed in keep"},
	} {
		_, err := secure(t, x.chip, x.profile, x.lines+"\n")
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s %q: %v; want %q", x.chip, x.lines, err, x.want)
		}
		if err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%q: the error shows what was in a key file", x.lines)
		}
	}
	for _, x := range []struct{ chip, profile, lines string }{
		{"esp32h2", "hybrid", "secure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem], accept_weak_ecdsa: true}"},
		{"esp32c2", "release", "secure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem]}"},
		{"esp32c61", "closed", "secure_boot: {scheme: ecdsa256, keys: [ecdsa256.pem], accept_weak_ecdsa: true}"},
		{"esp32p4", "release", "accept_sdm_errata: true\nflash_encryption: xts-256"},
		{"esp32s2", "hybrid", "flash_encryption: xts-256\nencimg_ecies: true"},
		{"esp32c2", "hybrid", "flash_encryption: xts-128"},
		{"esp32s3", "hybrid", "anti_rollback: true"},
	} {
		if _, err := secure(t, x.chip, x.profile, x.lines+"\n"); err != nil {
			t.Errorf("%s %q: %v", x.chip, x.lines, err)
		}
	}
}
