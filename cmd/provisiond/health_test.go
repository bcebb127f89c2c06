package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ailing plays a Vault in a given condition, as the real server answers in it
// (keystore/vault's health tests bring the real one into each).
type ailing struct {
	health  string // sys/health, with %d for the time
	behind  time.Duration
	leader  string
	read    int // status of reads below the mount
	readErr string
	write   int // status of the renewal
	wrErr   string
}

func (v ailing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, body, fault string) {
		if status == 0 {
			status = http.StatusOK
		}
		w.WriteHeader(status)
		if fault != "" {
			body = fmt.Sprintf(`{"errors":[%q]}`, fault)
		}
		_, _ = w.Write([]byte(body))
	}
	switch strings.TrimPrefix(r.URL.Path, "/v1/") {
	case "sys/health":
		answer(http.StatusOK, strings.ReplaceAll(v.health, "%d", strconv.FormatInt(time.Now().Add(-v.behind).Unix(), 10)), "")
	case "sys/leader":
		answer(http.StatusOK, v.leader, "")
	case "auth/token/renew-self", "auth/token/lookup-self":
		answer(v.write, `{"data":{"ttl":3600,"renewable":true},"auth":{"client_token":"t","lease_duration":3600,"renewable":true}}`, v.wrErr)
	default:
		answer(v.read, `{"data":{"data":{"schema":1,"id":"x","test_store":true},"metadata":{"version":1,"created_time":"2026-11-22T16:00:00Z"}}}`, v.readErr)
	}
}

func healthJSON(sealed, standby bool) string {
	return fmt.Sprintf(`{"initialized":true,"sealed":%v,"standby":%v,"server_time_utc":%%d}`, sealed, standby)
}

// inProcess runs a command in this process.
func inProcess(t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e, nil)
	return o.String(), e.String(), code
}

// TestHealthWords: every condition of a Vault has its words and its exit code on
// the command line.
func TestHealthWords(t *testing.T) {
	t.Parallel()
	good := healthJSON(false, false)
	for state, c := range map[string]struct {
		code  int
		vault ailing
		words []string
	}{
		"ready":         {0, ailing{health: good}, []string{"takes keys"}},
		"sealed":        {12, ailing{health: healthJSON(true, false)}, []string{"is sealed", "vault operator unseal"}},
		"uninitialised": {12, ailing{health: `{"initialized":false}`}, []string{"vault operator init"}},
		"no-leader":     {12, ailing{health: healthJSON(false, true), leader: `{"leader_address":""}`}, []string{"standby", "unseal the other nodes"}},
		"no-quorum":     {12, ailing{health: good, write: 500, wrErr: "node is not the leader"}, []string{"no leader with a quorum", "check the other nodes"}},
		"token-invalid": {12, ailing{health: good, read: 403, readErr: "permission denied; invalid token"}, []string{"expired or was revoked", "secret id"}},
		"audit-failing": {12, ailing{health: good, read: 500, readErr: "no audit backend succeeded in logging the request"}, []string{"audit device is full", "make room"}},
		"rate-limited":  {12, ailing{health: good, read: 429, readErr: "rate limit quota exceeded"}, []string{"raise the quota"}},
		"no-keystore":   {12, ailing{health: good, read: 404, readErr: "no handler for route"}, []string{"keystore init --vault"}},
		"clock-skew":    {12, ailing{health: good, behind: time.Hour}, []string{"1h0m", "NTP"}},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewTLSServer(c.vault)
			defer srv.Close()
			dir := t.TempDir()
			write := func(name string, b []byte) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
			write("token", []byte("t\n"))
			write("vault.yaml", fmt.Appendf(nil, "addresses: [%q]\nca_cert: ca.pem\nstation: line1\npatience: 300ms\nlogin: {token_file: token}\n", srv.URL))
			flag := "vault:" + filepath.Join(dir, "vault.yaml")

			out, errOut, code := inProcess(t, "keystore", "health", flag)
			if code != c.code || !strings.HasPrefix(out, state+": ") {
				t.Errorf("exit code %d, want %d: %s%s", code, c.code, out, errOut)
			}
			for _, w := range c.words {
				if !strings.Contains(out, w) {
					t.Errorf("%q is missing: %s", w, out)
				}
			}
			out, _, code = inProcess(t, "keystore", "health", flag, "--json")
			var j struct{ State, Words string }
			if err := json.Unmarshal([]byte(out), &j); err != nil || code != c.code || j.State != state || j.Words == "" {
				t.Errorf("--json: %d %v %s", code, err, out)
			}
			if state == "ready" || state == "clock-skew" {
				return // keys can be taken
			}
			// No unit is begun, and whoever starts one reads why.
			_, errOut, code = inProcess(t, "keystore", "check", flag)
			if code != 12 || !strings.Contains(errOut, c.words[0]) {
				t.Errorf("keystore check: exit code %d: %s", code, errOut)
			}
		})
	}
}
