package main

import (
	"bytes"
	"encoding/json"
	"errors"
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
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision/ota"
)

// otaLine is a built provisiond in a folder with a unit in a local keystore.
type otaLine struct {
	t      *testing.T
	dir    string
	record keystore.Record
	token  string
}

func newOTALine(t *testing.T) *otaLine {
	t.Helper()
	l := &otaLine{t: t, dir: t.TempDir()}
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sample.Write(l.dir, sample.Product{Chip: m, Profile: "release"}); err != nil {
		t.Fatal(err)
	}
	files, err := sample.Files(sample.Product{Chip: m})
	if err != nil {
		t.Fatal(err)
	}
	l.run(0, "keystore", "init", "keys.db", "--test")
	s, err := local.Open(filepath.Join(l.dir, "keys.db"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := keystoretest.NewRecord(t, keystoretest.Simulated(7))
	r.PartitionTable = files[sample.TableOffset]
	token, err := r.Key.DeriveOTAToken(r.Unit)
	if err != nil {
		t.Fatal(err)
	}
	sum := token.SHA256()
	r.OTATokenSHA256 = &sum
	if err := token.UseText(func(b []byte) error { l.token = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
		if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.record = r
	return l
}

func (l *otaLine) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(l.t.Context(), theBinary(l.t), args...)
	cmd.Dir = l.dir
	return cmd
}

func (l *otaLine) run(code int, args ...string) string {
	l.t.Helper()
	out, err := l.command(args...).CombinedOutput()
	got := 0
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		got = ee.ExitCode()
	} else if err != nil {
		l.t.Fatal(err)
	}
	if got != code {
		l.t.Fatalf("%q: exit code %d, want %d: %s", args, got, code, out)
	}
	return string(out)
}

// ask asks the server as the unit.
func (l *otaLine) ask(method, url, path, body string, header ...string) (*otaReply, []byte) {
	l.t.Helper()
	r, err := http.NewRequestWithContext(l.t.Context(), method, url+"/v1/units/"+l.record.Unit.String()+path, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+l.token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return &otaReply{resp.StatusCode, resp.Header}, b
}

// otaReply is an answer whose body was read and closed.
type otaReply struct {
	StatusCode int
	Header     http.Header
}

// TestOTAServe: the server in its own process, with a local keystore, and the
// commands beside it.
func TestOTAServe(t *testing.T) {
	t.Parallel()
	l := newOTALine(t)
	l.run(0, "ota", "release", "init", "--state", "ota")
	pem, public, err := ota.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"manifest.pem": string(pem),
		"ota.yaml":     "state: ota\nkeystore: keys.db\nidentity: keys.db.identity\nmanifest_key: manifest.pem\nmetrics: 127.0.0.1:0\n",
	} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	app := filepath.Join("build-esp32c3", "app.bin")
	l.run(0, "ota", "release", "add", "1.0.0", "--in", app, "--config", "ota.yaml")

	serve := l.command("ota", "serve", "--config", "ota.yaml", "--listen", "127.0.0.1:0")
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
			t.Log(log.String())
		}
	}()
	var up struct{ Listening, URL string }
	if err := json.NewDecoder(out).Decode(&up); err != nil || up.URL != "http://"+up.Listening {
		t.Fatalf("%+v, %v", up, err)
	}

	resp, b := l.ask("GET", up.URL, "/manifest?slot=ota_1", "")
	if resp.StatusCode != http.StatusNoContent || resp.Header.Get("Provisiond-Reason") != "nothing-rolled-out" {
		t.Errorf("before the rollout: %d %s %v", resp.StatusCode, b, resp.Header)
	}
	// Commands go to the running server.
	l.run(0, "ota", "release", "rollout", "1.0.0", "--percent", "100", "--config", "ota.yaml")
	resp, b = l.ask("GET", up.URL, "/manifest?slot=ota_1", "")
	m, err := ota.ParseManifest(b)
	if err != nil || resp.StatusCode != http.StatusOK || m.Verify(public) != nil {
		t.Fatalf("%d, %v: %s", resp.StatusCode, err, b)
	}
	if resp, b = l.ask("GET", up.URL, "/firmware?slot=ota_1", ""); resp.StatusCode != http.StatusOK || len(b) != int(m.Length) {
		t.Errorf("%d with %d bytes", resp.StatusCode, len(b))
	}
	if resp, b = l.ask("POST", up.URL, "/result", `{"release":"1.0.0","slot":"ota_1","outcome":"confirmed","version":"1.0.0","secure_version":1}`); resp.StatusCode != http.StatusNoContent {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if out := l.run(0, "ota", "unit", "show", l.record.Unit.String(), "--config", "ota.yaml"); !strings.Contains(out, "confirmed 1.0.0 ota_1") {
		t.Error(out)
	}
	if out := l.run(2, "ota", "release", "remove", "1.0.0", "--config", "ota.yaml"); !strings.Contains(out, "offers release 1.0.0 to 100 %") {
		t.Error(out)
	}
	l.run(0, "ota", "release", "halt", "1.0.0", "--reason", "test", "--config", "ota.yaml")
	if resp, b = l.ask("GET", up.URL, "/firmware?slot=ota_1&release=1.0.0", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a halted release: %d %s", resp.StatusCode, b)
	}
	st, err := os.Stat(filepath.Join(l.dir, "ota", otaSocket))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	// A second server finds the first.
	if out := l.run(1, "ota", "serve", "--config", "ota.yaml", "--listen", "127.0.0.1:0"); !strings.Contains(out, "in use by another process") {
		t.Error(out)
	}

	// A rotation: lines go to the new file once the server was told.
	audit := filepath.Join(l.dir, "ota", "audit.jsonl")
	if err := os.Rename(audit, audit+".1"); err != nil {
		t.Fatal(err)
	}
	if err := serve.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	vaulttest.Eventually(t, 10*time.Second, "there is a new audit file", func() error {
		_, err := os.Stat(audit)
		return err
	})
	l.run(0, "ota", "release", "resume", "1.0.0", "--config", "ota.yaml")
	if resp, b = l.ask("GET", up.URL, "/firmware?slot=ota_0", "", "Range", "bytes=0-15"); resp.StatusCode != http.StatusPartialContent || len(b) != 16 {
		t.Errorf("%d %d bytes", resp.StatusCode, len(b))
	}
	if b, err := os.ReadFile(audit); err != nil || bytes.Count(b, []byte("\n")) != 2 {
		t.Errorf("%v: %s", err, b)
	}
	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	err, ended = serve.Wait(), true
	if err != nil {
		t.Errorf("it ends with %v: %s", err, &log)
	}
	if b, err := os.ReadFile(audit + ".1"); err != nil || bytes.Count(b, []byte("\n")) != 4 || bytes.Contains(b, []byte(l.token)) || strings.Contains(log.String(), l.token) {
		t.Errorf("audit: %v: %s", err, b)
	}
	if out := l.run(0, "ota", "release", "show", "1.0.0", "--state", "ota"); !strings.Contains(out, fmt.Sprintf("confirmed    %d", 1)) {
		t.Error(out)
	}
}
