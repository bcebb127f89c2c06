package vault

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// TestConfigs: every file of configs/vault is one role's policy or the example of
// a configuration, and every place in a policy is filled in.
func TestConfigs(t *testing.T) {
	dir := filepath.Join("..", "..", "configs", "vault")
	var want []string
	for _, role := range Roles() {
		text, err := Policy(role, PolicyParams{Mount: "elsewhere", Station: stationName, Unit: chip.MAC{0x24, 0x0a, 0xc4, 0, 0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "{{") {
			t.Errorf("%s: a place is not filled in", role)
		}
		if strings.Contains(text, `"`+DefaultMount) {
			t.Errorf("%s names the default mount", role)
		}
		want = append(want, string(role)+".hcl")
	}
	have, err := filepath.Glob(filepath.Join(dir, "*.hcl"))
	for i := range have {
		have[i] = filepath.Base(have[i])
	}
	slices.Sort(want)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("policies in %s: %q, %v; want one per role: %q", dir, have, err, want)
	}
	c, err := ReadConfig(filepath.Join(dir, "keystore.yaml"))
	if err != nil || len(c.Addresses) != 3 || c.Login.AppRole == nil || c.Mount != DefaultMount {
		t.Errorf("keystore.yaml: %+v, %v", c, err)
	}
	for _, bad := range []struct {
		role Role
		p    PolicyParams
	}{
		{"root", PolicyParams{}},
		{RoleStation, PolicyParams{}},
		{RoleStation, PolicyParams{Station: "../+"}},
		{RoleStation, PolicyParams{Station: `x" { capabilities = ["sudo"] }`}},
		{RoleOTA, PolicyParams{Mount: "a/../b"}},
		{RoleOTA, PolicyParams{Mount: "*"}},
		{RoleRework, PolicyParams{}},
	} {
		if text, err := Policy(bad.role, bad.p); err == nil {
			t.Errorf("%+v: %s", bad, text)
		}
	}
}

// probe is one request, and the roles that may make it. A denied one is answered
// with 403, an allowed one with anything else.
type probe struct {
	name, method, path string
	body               any
	allowed            []Role
}

// TestPolicies makes every request with every role against the real server.
func TestPolicies(t *testing.T) {
	x := newSite(t, vaulttest.Raft(t), "kv", true)
	x.srv.EnableAudit(t, "")
	x.srv.Must(t, http.MethodPost, "sys/mounts/other", map[string]any{"type": "kv-v2"})
	station := x.open(t, RoleStation)
	rec := [2]keystore.Record{}
	for i := range rec {
		rec[i] = keystoretest.NewRecord(t, chip.MAC{2, 0, 0, 0, 0, byte(0x20 + i)})
		if _, err := station.Create(t.Context(), rec[i]); err != nil {
			t.Fatal(err)
		}
		if _, err := station.AddState(t.Context(), rec[i].Unit, rec[i].Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{stationName, "line2"} {
		x.srv.Must(t, http.MethodPost, "kv/data/checkpoints/"+name+"/2026-11-22/1", map[string]any{"data": map[string]any{"note": "n"}, "options": map[string]any{"cas": 0}})
	}
	admin, err := OpenAdmin(t.Context(), x.config(t, x.srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	keys, err := admin.Setup(t.Context(), SetupOptions{
		TestStore: true, JournalKeys: true, ManifestKey: true,
		Stations: []AppRoleOptions{{Name: stationName, CIDRs: loopback}, {Name: "line2", CIDRs: loopback}},
	})
	if err != nil || !slices.Contains(keys.Changes, "made signing key transit/keys/kv-station-line2") ||
		!slices.Contains(keys.Changes, "made signing key transit/keys/kv-ota-manifest") {
		t.Fatalf("%+v, %v", keys, err)
	}
	sealedOf := map[string]string{}
	for _, name := range []string{stationName, "line2"} {
		path, err := station.sealedPath(name, rec[0].Unit, rec[0].Fingerprint)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{"", "/state/1", "/drained"} {
			x.srv.Must(t, http.MethodPost, "kv/data/"+path+at, map[string]any{"data": map[string]any{"sealed": "eA==", "clear": map[string]string{"sha256=x": ""}}, "options": map[string]any{"cas": 0}})
		}
		sealedOf[name] = "kv/data/" + path
	}
	ticket, err := admin.Ticket(t.Context(), rec[0].Unit, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tokens := map[Role]string{RoleRework: ticket}
	for _, r := range []Role{RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleAdmin} {
		tokens[r] = x.token(t, r)
	}

	all := Roles()
	none := []Role{}
	only := func(r ...Role) []Role { return r }
	put := func(v any) any {
		return map[string]any{"data": map[string]any{"x": v}, "options": map[string]any{"cas": 0}}
	}
	one, two := "kv/data/"+recordPath(rec[0].Unit, rec[0].Fingerprint), "kv/data/"+recordPath(rec[1].Unit, rec[1].Fingerprint)
	at := func(kind, path string) string { return strings.Replace(path, "kv/data/", "kv/"+kind+"/", 1) }
	unitOne := "kv/data/" + unitPath(rec[0].Unit)
	shard := "kv/metadata/units/20/"
	probes := []probe{
		{"read the key of the ticket's unit", "GET", one, nil, only(RoleOTA, RoleRework)},
		{"read a key of another unit", "GET", two, nil, only(RoleOTA)},
		{"what is stored, without values", "GET", at("subkeys", one), nil, only(RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleRework)},
		{"the same of another unit", "GET", at("subkeys", two), nil, only(RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian)},
		{"metadata of a record", "GET", at("metadata", one), nil, only(RoleAuditor, RoleAdmin)},
		{"create a record", "PUT", unitOne + "/NEW", put(1), only(RoleStation, RoleCustodian)},
		{"overwrite a record", "PUT", one, put(1), none},
		{"overwrite a record without cas", "PUT", one, map[string]any{"data": map[string]any{}}, none},
		{"patch a record", "PATCH", one, put(1), none},
		{"delete a record", "DELETE", one, nil, none},
		{"delete versions of a record", "PUT", at("delete", one), map[string]any{"versions": []int{1}}, none},
		{"undelete a record", "PUT", at("undelete", one), map[string]any{"versions": []int{1}}, none},
		{"destroy a record", "PUT", at("destroy", one), map[string]any{"versions": []int{1}}, none},
		{"delete a record with its metadata", "DELETE", at("metadata", one), nil, none},
		{"change a record's metadata", "PUT", at("metadata", one), map[string]any{"max_versions": 1}, none},
		{"metadata before a record", "PUT", at("metadata", unitOne+"/NEW2"), map[string]any{"max_versions": 1}, none},

		{"create a claim", "PUT", unitOne + "/claim/9NEW", put(1), only(RoleStation, RoleCustodian)},
		{"overwrite a claim", "PUT", unitOne + "/claim/1", put(1), none},
		{"delete a claim", "DELETE", unitOne + "/claim/1", nil, none},
		{"read a claim", "GET", unitOne + "/claim/1", nil, only(RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleRework)},
		{"create a state", "PUT", one + "/state/9NEW", put(1), only(RoleStation, RoleCustodian)},
		{"overwrite a state", "PUT", one + "/state/1", put(1), none},
		{"delete a state", "DELETE", one + "/state/1", nil, none},
		{"destroy a state", "PUT", at("destroy", one) + "/state/1", map[string]any{"versions": []int{1}}, none},
		{"read a state", "GET", one + "/state/1", nil, only(RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleRework)},

		{"list shards", "LIST", "kv/metadata/units/", nil, only(RoleAuditor, RoleAdmin)},
		{"list units", "LIST", shard, nil, only(RoleAuditor, RoleAdmin)},
		{"list a unit", "LIST", at("metadata", unitOne), nil, only(RoleAuditor, RoleAdmin)},
		{"list states", "LIST", at("metadata", one) + "/state/", nil, only(RoleAuditor, RoleAdmin)},

		{"create an own checkpoint", "PUT", "kv/data/checkpoints/line1/2026-11-22/NEW", put(1), only(RoleStation)},
		{"overwrite an own checkpoint", "PUT", "kv/data/checkpoints/line1/2026-11-22/1", put(1), none},
		{"read an own checkpoint", "GET", "kv/data/checkpoints/line1/2026-11-22/1", nil, only(RoleStation, RoleAuditor)},
		{"list own checkpoints", "LIST", "kv/metadata/checkpoints/line1/", nil, only(RoleStation, RoleAuditor, RoleAdmin)},
		{"list own checkpoints of a day", "LIST", "kv/metadata/checkpoints/line1/2026-11-22/", nil, only(RoleStation, RoleAuditor, RoleAdmin)},
		{"list the stations with checkpoints", "LIST", "kv/metadata/checkpoints/", nil, only(RoleAuditor, RoleAdmin)},
		{"create another station's checkpoint", "PUT", "kv/data/checkpoints/line2/2026-11-22/NEW", put(1), none},
		{"read another station's checkpoint", "GET", "kv/data/checkpoints/line2/2026-11-22/1", nil, only(RoleAuditor)},
		{"list another station's checkpoints", "LIST", "kv/metadata/checkpoints/line2/", nil, only(RoleAuditor, RoleAdmin)},

		{"seal a record of its own", "PUT", "kv/data/escrow/line1/02:00:00:00:00:20/NEW", put(1), only(RoleStation)},
		{"seal a record of another station", "PUT", "kv/data/escrow/line2/02:00:00:00:00:20/NEW", put(1), none},
		{"overwrite a sealed record", "PUT", sealedOf["line1"], put(1), none},
		{"delete a sealed record", "DELETE", sealedOf["line1"], nil, none},
		{"destroy a sealed record", "PUT", at("destroy", sealedOf["line1"]), map[string]any{"versions": []int{1}}, none},
		{"read a sealed record", "GET", sealedOf["line1"], nil, only(RoleCustodian)},
		{"see the hash of an own sealed record", "GET", at("subkeys", sealedOf["line1"]), nil, only(RoleStation, RoleAuditor, RoleCustodian)},
		{"see the hash of another station's", "GET", at("subkeys", sealedOf["line2"]), nil, only(RoleAuditor, RoleCustodian)},
		{"list own sealed records", "LIST", "kv/metadata/escrow/line1/", nil, only(RoleStation, RoleAuditor, RoleCustodian, RoleAdmin)},
		{"metadata of an own sealed record", "GET", at("metadata", sealedOf["line1"]), nil, only(RoleStation, RoleAuditor, RoleCustodian, RoleAdmin)},
		{"list another station's sealed records", "LIST", "kv/metadata/escrow/line2/", nil, only(RoleAuditor, RoleCustodian, RoleAdmin)},
		{"list the stations with sealed records", "LIST", "kv/metadata/escrow/", nil, only(RoleAuditor, RoleCustodian, RoleAdmin)},
		{"add a state to a sealed record", "PUT", sealedOf["line1"] + "/state/9NEW", put(1), only(RoleStation)},
		{"read a state of a sealed record", "GET", sealedOf["line1"] + "/state/1", nil, only(RoleCustodian)},
		{"mark a sealed record as drained", "PUT", "kv/data/escrow/line1/02:00:00:00:00:21/NEW/drained", put(1), only(RoleCustodian)},
		{"mark it again", "PUT", sealedOf["line1"] + "/drained", put(1), none},
		{"read the mark's value", "GET", sealedOf["line1"] + "/drained", nil, none},

		{"sign with the own key", "PUT", "transit/sign/kv-station-line1", map[string]any{"input": "eA=="}, only(RoleStation)},
		{"sign with another station's key", "PUT", "transit/sign/kv-station-line2", map[string]any{"input": "eA=="}, none},
		{"the own public key", "GET", "transit/keys/kv-station-line1", nil, only(RoleStation, RoleAdmin)},
		{"another station's public key", "GET", "transit/keys/kv-station-line2", nil, only(RoleAdmin)},
		{"sign a manifest", "PUT", "transit/sign/kv-ota-manifest", map[string]any{"input": "eA=="}, only(RoleOTA)},
		{"sign a manifest with a hash of its own", "PUT", "transit/sign/kv-ota-manifest/sha2-256", map[string]any{"input": "eA=="}, none},
		{"the public key of manifests", "GET", "transit/keys/kv-ota-manifest", nil, only(RoleOTA, RoleAdmin)},
		{"make the key of manifests", "PUT", "transit/keys/kv-ota-manifest", map[string]any{"type": "ecdsa-p256"}, only(RoleAdmin)},
		{"rotate the key of manifests", "PUT", "transit/keys/kv-ota-manifest/rotate", nil, only(RoleAdmin)},
		{"delete the key of manifests", "DELETE", "transit/keys/kv-ota-manifest", nil, none},
		{"export the key of manifests", "GET", "transit/export/signing-key/kv-ota-manifest", nil, none},
		{"make a signing key", "PUT", "transit/keys/kv-station-NEW", map[string]any{"type": "ed25519"}, only(RoleAdmin)},
		{"make a signing key of another name", "PUT", "transit/keys/NEW", map[string]any{"type": "ed25519"}, none},
		{"rotate a signing key", "PUT", "transit/keys/kv-station-line1/rotate", nil, only(RoleAdmin)},
		{"delete a signing key", "DELETE", "transit/keys/kv-station-line1", nil, none},
		{"export a signing key", "GET", "transit/export/signing-key/kv-station-line1", nil, none},
		{"back a signing key up", "GET", "transit/backup/kv-station-line1", nil, none},

		{"what store this is", "GET", "kv/data/store", nil, all},
		{"overwrite what store this is", "PUT", "kv/data/store", put(1), none},
		{"create elsewhere in the mount", "PUT", "kv/data/NEW", put(1), none},
		{"read the mount's settings", "GET", "kv/config", nil, only(RoleAdmin)},
		{"write the mount's settings", "PUT", "kv/config", map[string]any{"cas_required": true}, only(RoleAdmin)},
		{"another mount", "PUT", "other/data/NEW", put(1), none},
		{"another mount, read", "GET", "other/data/x", nil, none},

		{"list mounts", "GET", "sys/mounts", nil, only(RoleAdmin)},
		{"remove the mount", "DELETE", "sys/mounts/kv", nil, none},
		{"move the mount", "PUT", "sys/remount", map[string]any{"from": "kv", "to": "kv2"}, none},
		{"write one of our policies", "PUT", "sys/policies/acl/kv-station-NEW", map[string]any{"policy": "#"}, only(RoleAdmin)},
		{"remove one of our policies", "DELETE", "sys/policies/acl/kv-station-line1", nil, none},
		{"write another policy", "PUT", "sys/policies/acl/NEW", map[string]any{"policy": ""}, none},
		{"make a secret id", "PUT", "auth/approle/role/kv-station-line1/secret-id", nil, only(RoleAdmin)},
		{"make a role of another name", "PUT", "auth/approle/role/NEW", map[string]any{}, none},
		{"make a token", "PUT", "auth/token/create", map[string]any{}, none},
		{"make a ticket's token", "PUT", "auth/token/create/kv-rework", map[string]any{"policies": []string{"kv-rework-x"}}, only(RoleAdmin)},
		{"list audit devices", "GET", "sys/audit", nil, only(RoleAdmin)},
		{"remove an audit device", "DELETE", "sys/audit/file", nil, none},
		{"seal", "PUT", "sys/seal", nil, none},
		{"step down", "PUT", "sys/step-down", nil, none},
		{"raw storage", "LIST", "sys/raw/", nil, none},
		{"snapshot", "GET", "sys/storage/raft/snapshot", nil, none},
		{"own token", "GET", "auth/token/lookup-self", nil, all},
		{"renew the own token", "PUT", "auth/token/renew-self", map[string]any{}, only(RoleStation, RoleOTA, RoleOTAPublic, RoleAuditor, RoleCustodian, RoleAdmin)},
		{"look at other tokens", "PUT", "auth/token/lookup", map[string]any{"token": x.srv.Root}, none},
		{"a place for secrets of its own", "PUT", "cubbyhole/x", map[string]any{"a": 1}, none},
	}
	for _, p := range probes {
		for _, role := range all {
			path := strings.ReplaceAll(p.path, "NEW", fmt.Sprintf("new%s", role))
			status, body, err := x.srv.Do(x.srv.Node, tokens[role], p.method, path, p.body)
			if err != nil {
				t.Fatalf("%s as %s: %v", p.name, role, err)
			}
			may := slices.Contains(p.allowed, role)
			if denied := status == http.StatusForbidden; denied == may {
				t.Errorf("%s as %s: %s %s: %d %v, allowed: %v", p.name, role, p.method, path, status, body, may)
			}
			if may && status >= 400 && status != http.StatusNotFound {
				t.Errorf("%s as %s: %s %s: %d %v", p.name, role, p.method, path, status, body)
			}
		}
	}
}

// TestKeysAreNowhereButInValues reads everything that station, auditor and admin
// may read, and finds no key in it.
func TestKeysAreNowhereButInValues(t *testing.T) {
	x := newSite(t, vaulttest.New(t), "kv", true)
	log := x.srv.EnableAudit(t, "")
	s := x.open(t, RoleStation)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.open(t, RoleOTA).Load(t.Context(), r.Unit, r.Fingerprint); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	path := recordPath(r.Unit, r.Fingerprint)
	for _, role := range []Role{RoleStation, RoleAuditor, RoleAdmin} {
		token := x.token(t, role)
		for _, p := range []string{"data/" + path, "subkeys/" + path, "metadata/" + path, "data/" + path + "/state/1", "data/" + unitPath(r.Unit) + "/claim/1"} {
			_, body, err := x.srv.Do(x.srv.Node, token, http.MethodGet, "kv/"+p, nil)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&seen, body)
		}
	}
	audit, err := os.ReadFile(log)
	if err != nil || !bytes.Contains(audit, []byte(path)) {
		t.Fatalf("the audit log does not name the path: %v", err)
	}
	seen.Write(audit)
	seen.WriteString(x.srv.Log())
	if !strings.Contains(seen.String(), "sha256=") {
		t.Error("the clear names are not seen")
	}
	_ = r.Key.Use(func(key []byte) error {
		if strings.Contains(seen.String(), fmt.Sprintf("%x", key[:6])) {
			t.Error("the key is seen")
		}
		return nil
	})
}

func TestSetupIsIdempotent(t *testing.T) {
	srv := vaulttest.New(t)
	x := &site{srv: srv, mount: "factory/keys"}
	root, err := OpenAdmin(t.Context(), x.config(t, srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	o := SetupOptions{Stations: []AppRoleOptions{{Name: "a", CIDRs: []string{"127.0.0.1/32", "10.0.0.0/8"}}}, OTA: &AppRoleOptions{CIDRs: loopback}}
	first, err := root.Setup(t.Context(), o)
	if err != nil || len(first.Changes) < 8 {
		t.Fatalf("%+v, %v", first, err)
	}
	if len(first.Warnings) != 1 || !strings.Contains(first.Warnings[0], "audit") {
		t.Errorf("warnings: %q", first.Warnings)
	}
	// The server says what it will demand of a write, and demands it.
	casRequired := func() any {
		t.Helper()
		data, ok := srv.Must(t, http.MethodGet, "factory/keys/config", nil)["data"].(map[string]any)
		if !ok {
			t.Fatal("the mount has no settings")
		}
		return data["cas_required"]
	}
	if got := casRequired(); got != true {
		t.Errorf("cas_required is %v at the server", got)
	}
	if status, body, err := srv.Do(srv.Node, srv.Root, http.MethodPost, "factory/keys/data/probe", map[string]any{"data": map[string]any{"a": 1}}); err != nil || status != http.StatusBadRequest {
		t.Errorf("a write without cas: %d %v %v", status, body, err)
	}
	again, err := root.Setup(t.Context(), o)
	if err != nil || len(again.Changes) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	srv.Must(t, http.MethodPost, "factory/keys/config", map[string]any{"cas_required": false})
	if got := casRequired(); got != false {
		t.Fatalf("cas_required is %v after it was taken away", got)
	}
	if mended, err := root.Setup(t.Context(), o); err != nil || !slices.Equal(mended.Changes, []string{"set cas_required on factory/keys"}) || casRequired() != true {
		t.Errorf("mended: %+v, %v; cas_required is %v", mended, err, casRequired())
	}
	// The admin role suffices for what changes later.
	admin, err := OpenAdmin(t.Context(), x.config(t, x.tokenWith(t, "factory-keys-admin")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	o.Stations = append(o.Stations, AppRoleOptions{Name: "b", CIDRs: loopback})
	third, err := admin.Setup(t.Context(), o)
	want := []string{"wrote policy factory-keys-station-b", "wrote AppRole factory-keys-station-b"}
	if err != nil || !slices.Equal(third.Changes, want) {
		t.Errorf("third: %+v, %v", third, err)
	}
	o.TestStore = true
	if _, err := admin.Setup(t.Context(), o); err == nil {
		t.Error("a store for real units became one for simulated ones")
	}
	o.TestStore = false
	o.Stations[0].CIDRs = nil
	if _, err := admin.Setup(t.Context(), o); err == nil || !strings.Contains(err.Error(), "CIDR") {
		t.Errorf("an AppRole for everywhere: %v", err)
	}

	srv.Must(t, http.MethodPost, "sys/mounts/old", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	x.mount = "old"
	old, err := OpenAdmin(t.Context(), x.config(t, srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	if _, err := old.Setup(t.Context(), SetupOptions{}); err == nil || !strings.Contains(err.Error(), "choose another mount") {
		t.Errorf("a mount of version 1: %v", err)
	}
	srv.Must(t, http.MethodPost, "sys/mounts/fading", map[string]any{"type": "kv-v2"})
	vaulttest.Eventually(t, 10*time.Second, "mount is ready", func() error {
		status, body, err := srv.Do(srv.Node, srv.Root, http.MethodPut, "fading/config", map[string]any{"delete_version_after": "1h"})
		if err == nil && status >= 300 {
			err = fmt.Errorf("%d %v", status, body)
		}
		return err
	})
	x.mount = "fading"
	fading, err := OpenAdmin(t.Context(), x.config(t, srv.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fading.Close() }()
	if _, err := fading.Setup(t.Context(), SetupOptions{}); err == nil || !strings.Contains(err.Error(), "would lose keys") {
		t.Errorf("a mount that deletes: %v", err)
	}
}
