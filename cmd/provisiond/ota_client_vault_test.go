package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/otaclient"
	"github.com/provisiond/provisiond/internal/vaulttest"
)

// otaMay is all that a server's login may do in Vault, and all that it does.
var otaMay = []*regexp.Regexp{
	regexp.MustCompile(`^read provisiond/data/units/[^/]+/[^/]+/[^/]+$`),
	regexp.MustCompile(`^read provisiond/subkeys/units/[^/]+/[^/]+/[^/]+$`), // the record without its values
	regexp.MustCompile(`^read provisiond/data/units/[^/]+/[^/]+/claim/\d+$`),
	regexp.MustCompile(`^read provisiond/data/units/[^/]+/[^/]+/[^/]+/state/\d+$`),
	regexp.MustCompile(`^read provisiond/data/store$`),
	regexp.MustCompile(`^read transit/keys/provisiond-ota-manifest$`),
	regexp.MustCompile(`^update transit/sign/provisiond-ota-manifest$`),
	regexp.MustCompile(`^read auth/token/lookup-self$`),
	regexp.MustCompile(`^update auth/token/renew-self$`),
}

func allowed(act string) bool {
	return slices.ContainsFunc(otaMay, func(re *regexp.Regexp) bool { return re.MatchString(act) })
}

// vaultAct is a request in Vault's audit file.
type vaultAct struct {
	Type  string
	Error string // it was refused
	Auth  struct {
		TokenPolicies []string `json:"token_policies"`
	}
	Request struct{ Operation, Path string }
}

func vaultActs(t *testing.T, srv *vaulttest.Server) (acts []vaultAct) {
	t.Helper()
	b, err := os.ReadFile(srv.Audit)
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var a vaultAct
		if err := json.Unmarshal(s.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		if a.Type == "request" {
			acts = append(acts, a)
		}
	}
	return acts
}

// TestOTAClientVault: units that a station made through Vault take their updates, in
// both slots, from a server that reads their keys and signs with the OTA role, which
// can do nothing else.
func TestOTAClientVault(t *testing.T) {
	t.Parallel()
	otaclient.Program(t, "ota_client") // skips before anything is made
	l := newVaultLine(t)
	l.srv.EnableAudit(t, "")
	l.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--manifest-key")
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	l.run(0, "ota", "release", "init", "--state", "ota")
	l.write("server.yaml", "state: ota\nkeystore: vault:ota.yaml\nmanifest_key: vault-transit:ota.yaml\nkeys: {wait: 2s}\n"+limits)
	s := &otaSite{t: t, dir: l.dir, run: l.run, keystore: "vault:station.yaml", signer: manifestKey(t, l.srv)}
	units := map[string][2]*fieldUnit{}
	for i, name := range clientChips {
		units[name] = [2]*fieldUnit{s.unit(name, byte(2*i+1)), s.unit(name, byte(2*i+2))}
	}
	s.open()
	for _, name := range clientChips {
		u, have := units[name][0], "1.0.0"
		for i, slot := range []string{"ota_0", "ota_1", "ota_0"} {
			version := fmt.Sprintf("2.%d.0", i)
			s.release(name, version)
			u.want(have, "update", "ok")
			u.confirmed(slot, version)
			u.shows("confirmed " + name + "-" + version + " " + slot)
			have = version
		}
	}

	// What the server's login did in all that, by Vault's own book, and what it could
	// have done of all that anybody did.
	token, err := os.ReadFile(filepath.Join(l.dir, "ota.token"))
	if err != nil {
		t.Fatal(err)
	}
	did, paths := map[string]bool{}, map[string]bool{}
	for _, a := range vaultActs(t, l.srv) {
		if !strings.HasPrefix(a.Request.Path, "sys/audit") {
			paths[a.Request.Path] = true
		}
		if slices.Contains(a.Auth.TokenPolicies, "provisiond-ota") && a.Error == "" {
			did[a.Request.Operation+" "+a.Request.Path] = true
		}
	}
	if len(did) < 5 || len(paths) < 30 {
		t.Errorf("the audit file has %d acts of the OTA role and %d paths", len(did), len(paths))
	}
	for act := range did {
		if !allowed(act) {
			t.Errorf("the server did: %s", act)
		}
	}
	for _, path := range []string{
		"sys/policies/acl/provisiond-ota", "sys/mounts", "auth/approle/role/provisiond-ota/secret-id", "provisiond/metadata/units/", "provisiond/config",
		"transit/keys/provisiond-ota-manifest/rotate", "transit/export/signing-key/provisiond-ota-manifest", "transit/keys/other", "auth/token/create", "cubbyhole/x",
	} {
		paths[path] = true
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		out := l.srv.Must(t, http.MethodPost, "sys/capabilities", map[string]any{"token": strings.TrimSpace(string(token)), "paths": []string{path}})
		for _, c := range out["data"].(map[string]any)["capabilities"].([]any) {
			if c != "deny" && !allowed(c.(string)+" "+path) {
				t.Errorf("the OTA role may %s %s", c, path)
			}
		}
	}
	for _, name := range clientChips {
		unit := units[name][0].board.Chip.MAC().String()
		for _, try := range []struct {
			method, path string
			body         any
		}{
			{"LIST", "provisiond/metadata/units/", nil},
			{http.MethodPost, "provisiond/data/units/01/" + unit + "/" + units[name][0].key, map[string]any{"data": map[string]any{"x": "y"}}},
			{http.MethodDelete, "provisiond/data/units/01/" + unit + "/" + units[name][0].key, nil},
			{http.MethodGet, "transit/export/signing-key/provisiond-ota-manifest", nil},
		} {
			if code, _, err := l.srv.Do(l.srv.Node, strings.TrimSpace(string(token)), try.method, try.path, try.body); err != nil || code != http.StatusForbidden {
				t.Errorf("%s %s with the OTA role: %d, %v", try.method, try.path, code, err)
			}
		}
	}

	// Vault goes while a unit is fetching: it gets the rest. One whose key the server
	// does not have is told when to come again.
	name := clientChips[1]
	u, stranger := units[name][0], units[name][1]
	s.release(name, "2.3.0")
	s.set(func() {
		s.cut = func(*http.Request) int { l.srv.Kill(); return -1 }
	})
	u.want("2.2.0", "update", "ok")
	s.calm()
	u.board.PowerCycle()
	u.runs("ota_1", "2.3.0")
	if r := stranger.want("1.0.0", "update", "busy"); r.Status != http.StatusServiceUnavailable || r.RetryAfter == 0 {
		t.Errorf("%+v", r)
	}
	stranger.board.PowerCycle()
	stranger.runs("factory", "1.0.0")
}

// manifestKey is what goes into the firmware: the public half of Vault's key.
func manifestKey(t *testing.T, srv *vaulttest.Server) *ecdsa.PublicKey {
	t.Helper()
	out := srv.Must(t, http.MethodGet, "transit/keys/provisiond-ota-manifest", nil)
	data := out["data"].(map[string]any)
	version := fmt.Sprint(data["latest_version"])
	text := data["keys"].(map[string]any)[version].(map[string]any)["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no public key in %v", data)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ecdsa.PublicKey)
}
