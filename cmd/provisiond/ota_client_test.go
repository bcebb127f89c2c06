package main

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/otaclient"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/ota"
)

// otaSite is a factory, an OTA server and boards in the field: provisiond makes the
// units and serves them, and esp/ota_client, compiled for the host, takes the updates.
type otaSite struct {
	t        *testing.T
	dir      string
	run      func(code int, args ...string) string
	keystore string // of the station
	signer   *ecdsa.PublicKey

	cmd *exec.Cmd
	url *url.URL
	err *output

	// The road from the units to the server.
	road *httptest.Server
	mu   sync.Mutex
	sent int // bytes of firmware that came through
	// change makes another request of a unit's; spoil other bytes of its answer.
	change func(r *http.Request)
	spoil  func(b []byte) []byte
	// cut ends a body after so many bytes; -1 does not.
	cut func(r *http.Request) int
}

// serve starts the server; ota.yaml is there.
func (s *otaSite) serve() {
	s.t.Helper()
	s.cmd = exec.Command(theBinary(s.t), "ota", "serve", "--config", "server.yaml", "--listen", "127.0.0.1:0")
	s.cmd.Dir = s.dir
	s.cmd.Env = append(os.Environ(), "VAULT_ADDR=", "VAULT_TOKEN=not-a-token", "VAULT_NAMESPACE=")
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.err = collect(stderr)
	var up struct{ URL string }
	if err := json.NewDecoder(stdout).Decode(&up); err != nil {
		s.t.Fatalf("the server did not start: %v\n%s", err, s.err)
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	u, err := url.Parse(up.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	s.set(func() { s.url = u })
}

// kill is a server that is gone from one moment to the next.
func (s *otaSite) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
	s.cmd = nil
}

func (s *otaSite) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// calm ends what is wrong with the road.
func (s *otaSite) calm() {
	s.set(func() { s.change, s.spoil, s.cut, s.sent = nil, nil, nil, 0 })
}

// open starts road and server.
func (s *otaSite) open() {
	s.t.Helper()
	s.t.Cleanup(func() {
		if s.t.Failed() && s.err != nil {
			s.t.Logf("the server:\n%s", s.err)
		}
		s.kill()
	})
	s.serve()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			s.mu.Lock()
			defer s.mu.Unlock()
			r.SetURL(s.url)
			if s.change != nil {
				s.change(r.Out)
			}
		},
		ModifyResponse: func(r *http.Response) error {
			if !strings.HasSuffix(r.Request.URL.Path, "/firmware") || r.StatusCode >= 300 {
				return nil
			}
			b, err := io.ReadAll(r.Body)
			if err = errors.Join(err, r.Body.Close()); err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.spoil != nil {
				b = s.spoil(b)
			}
			if s.cut != nil {
				if n := s.cut(r.Request); n >= 0 {
					b = b[:n] // shorter than the header says: the connection is closed
				}
			}
			s.sent += len(b)
			r.Body = io.NopCloser(bytes.NewReader(b))
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s.road = httptest.NewServer(proxy)
	s.t.Cleanup(s.road.Close)
	s.road.Config.ErrorLog = nil
}

// fieldUnit is a board in the field.
type fieldUnit struct {
	s     *otaSite
	board *otaclient.Board
	token string // a file, as the board's own data partition has it
	key   string // the fingerprint
}

const clientAppSize = 20 << 10

func clientProduct(m chip.Model) sample.Product {
	return sample.Product{Chip: m, Name: "ota-" + m.Name, Profile: "release", AppSize: clientAppSize, Baud: 921600, UnitTemplate: `token={{.OTAToken}};`}
}

// unit provisions a board in release mode and takes it to the field: what it knows
// from then on is what lies in its own flash.
func (s *otaSite) unit(name string, last byte) *fieldUnit {
	s.t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		s.t.Fatal(err)
	}
	recipe, err := sample.Write(s.dir, clientProduct(m))
	if err != nil {
		s.t.Fatal(err)
	}
	mac := chip.MAC{0x02, 0, 0, 0, 0, last}
	revision := max(m.Lockdown.ClosedMinimum, 4)
	state := fmt.Sprintf("board-%d", last)
	args := []string{
		"provision", "--port", fmt.Sprintf("sim://%s?revision=%s&mac=%s&state=%s&app-prints=%s", name, revision, mac, state, strings.ReplaceAll(sample.AppText, " ", "%20")),
		"--recipe", filepath.Base(recipe), "--keystore", s.keystore, "--journal", "journal.db", "--json",
	}
	if name == "esp32" {
		args = append(args, "--closed-is-forever")
	}
	out := s.run(0, args...)
	var r provision.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Verdict != provision.Pass {
		s.t.Fatalf("%v: %s", err, out)
	}
	c, err := espsim.New(espsim.Options{Model: m, Revision: revision, MAC: mac, AppPrints: sample.AppText, Rollback: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if ok, err := c.LoadDir(filepath.Join(s.dir, state)); err != nil || !ok {
		s.t.Fatalf("no board: %v", err)
	}
	u := &fieldUnit{s: s, board: &otaclient.Board{Chip: c}, token: filepath.Join(s.dir, state+".token"), key: r.KeyFingerprint}
	u.runs("factory", "1.0.0")
	app, err := c.App()
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := app.Read(sample.TableOffset, 0xC00)
	if err != nil {
		s.t.Fatal(err)
	}
	table, err := partition.Parse(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range table.Entries {
		if e.Label != sample.UnitPartition {
			continue
		}
		data, err := app.Read(e.Offset, 256)
		if err != nil {
			s.t.Fatal(err)
		}
		text, _, ok := strings.Cut(strings.TrimPrefix(string(data), "token="), ";")
		if _, err := keystore.ParseOTAToken(text); err != nil || !ok {
			s.t.Fatalf("the board has no token: %v", err)
		}
		if err := os.WriteFile(u.token, []byte(text+"\n"), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return u
	}
	s.t.Fatal("no partition for the unit's data")
	return nil
}

// runs demands that the chip booted the version from the partition.
func (u *fieldUnit) runs(where, version string) {
	u.s.t.Helper()
	text := string(u.board.Chip.BootText())
	app, err := u.board.Chip.App()
	if err != nil || app.Running().Name != where || !strings.Contains(text, "App version:      "+version+"\r\n") || !strings.HasSuffix(text, sample.AppText+"\r\n") {
		u.s.t.Fatalf("want %s in %s to run: %v\n%s", version, where, err, text)
	}
}

func (u *fieldUnit) client(version string) otaclient.Client {
	return otaclient.Client{
		Server: u.s.road.Listener.Addr().String(), Signer: u.s.signer, TokenFile: u.token, Version: version, SecureVersion: 1,
		Request: 0x2000, SaveEvery: 1,
	}
}

// want does an act and demands its result.
func (u *fieldUnit) want(version, act, err string) otaclient.Result {
	u.s.t.Helper()
	results, cut := u.board.Run(u.s.t, u.client(version), act)
	if r := results[len(results)-1]; !cut && r.Err == err {
		return r
	}
	u.s.t.Fatalf("%s came to %+v, want %s\nthe chip said: %s", act, results, err, u.board.Said)
	return otaclient.Result{}
}

// confirmed restarts into a new version and confirms it.
func (u *fieldUnit) confirmed(where, version string) {
	u.s.t.Helper()
	u.board.PowerCycle()
	u.runs(where, version)
	u.want(version, "confirm", "ok")
	u.board.PowerCycle()
	u.runs(where, version)
}

// release adds a version of the sample and offers it to everybody.
func (s *otaSite) release(name string, version string) {
	s.t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		s.t.Fatal(err)
	}
	p := clientProduct(m)
	p.Version = version
	b, err := sample.App(p)
	if err != nil {
		s.t.Fatal(err)
	}
	file := name + "-" + version
	if err := os.WriteFile(filepath.Join(s.dir, file+".bin"), b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run(0, "ota", "release", "add", file, "--in", file+".bin", "--config", "server.yaml")
	s.run(0, "ota", "release", "rollout", file, "--percent", "100", "--config", "server.yaml")
}

// shows demands a text in what the server knows of a unit.
func (u *fieldUnit) shows(text string) {
	u.s.t.Helper()
	if out := u.s.run(0, "ota", "unit", "show", u.board.Chip.MAC().String(), "--config", "server.yaml"); !strings.Contains(out, text) {
		u.s.t.Errorf("the server does not say %q:\n%s", text, out)
	}
}

// newLocalSite has a local keystore and a key file for manifests.
func newLocalSite(t *testing.T) *otaSite {
	t.Helper()
	l := &otaLine{t: t, dir: t.TempDir()}
	s := &otaSite{t: t, dir: l.dir, run: l.run, keystore: "keys.db"}
	l.run(0, "keystore", "init", "keys.db", "--test")
	l.run(0, "journal", "init", "journal.db", "--station", "line1")
	l.run(0, "ota", "release", "init", "--state", "ota")
	pem, public, err := ota.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s.signer = public
	s.write("manifest.pem", string(pem))
	s.write("server.yaml", "state: ota\nkeystore: keys.db\nidentity: keys.db.identity\nmanifest_key: manifest.pem\n"+limits)
	return s
}

// limits: power that fails fifty times makes requests faster than any unit does.
const limits = "limits: {per_unit: {per_second: 1000, burst: 1000}}\n"

func (s *otaSite) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// clientChips are those that the client was tried with.
var clientChips = []string{"esp32", "esp32c3"}

// TestOTAClient: the real client on units in release mode, against the real server.
func TestOTAClient(t *testing.T) {
	t.Parallel()
	otaclient.Program(t, "ota_client") // skips before anything is made
	s := newLocalSite(t)
	units := map[string][2]*fieldUnit{}
	for i, name := range clientChips {
		units[name] = [2]*fieldUnit{s.unit(name, byte(2*i+1)), s.unit(name, byte(2*i+2))}
	}
	s.open()
	for _, name := range clientChips {
		u, other := units[name][0], units[name][1]

		// Nothing is offered yet.
		u.want("1.0.0", "update", "nothing-new")
		s.release(name, "2.0.0")
		other.token, u.token = u.token, other.token // a stolen token is another unit's
		u.want("1.0.0", "update", "unauthorized")
		other.token, u.token = u.token, other.token

		// What is wrong on the road is refused, and the unit goes on with what it has.
		path := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/firmware") }
		bearer, err := os.ReadFile(other.token)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			lie  func()
			err  string
		}{
			{"the other slot's bytes", func() {
				s.change = func(r *http.Request) {
					if path(r) {
						r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "ota_0", "ota_1", 1)
					}
				}
			}, "hash"},
			{"another unit's bytes", func() {
				s.change = func(r *http.Request) {
					if path(r) {
						r.URL.Path = strings.Replace(r.URL.Path, u.board.Chip.MAC().String(), other.board.Chip.MAC().String(), 1)
						r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(bearer)))
					}
				}
			}, "hash"},
			{"another unit's manifest", func() {
				s.change = func(r *http.Request) {
					r.URL.Path = strings.Replace(r.URL.Path, u.board.Chip.MAC().String(), other.board.Chip.MAC().String(), 1)
					r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(bearer)))
				}
			}, "unit"},
			{"a flipped byte", func() { s.spoil = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } }, "hash"},
			{"a body cut off", func() { s.cut = func(*http.Request) int { return 100 } }, "transport"},
			{"an old manifest", func() {
				s.change = func(r *http.Request) {
					q := r.URL.Query()
					if q.Has("nonce") {
						q.Set("nonce", strings.Repeat("0", 32))
						r.URL.RawQuery = q.Encode()
					}
				}
			}, "nonce"},
			{"a server that forgets the nonce", func() {
				s.change = func(r *http.Request) {
					q := r.URL.Query()
					q.Del("nonce")
					r.URL.RawQuery = q.Encode()
				}
			}, "nonce"},
		} {
			s.calm()
			s.set(c.lie)
			if r := u.want("1.0.0", "update", c.err); r.Boot != "normal" {
				t.Errorf("%s: %+v", c.name, r)
			}
			u.board.PowerCycle()
			u.runs("factory", "1.0.0")
		}
		s.calm()

		// To ota_0, to ota_1, and to ota_0 again; in the second one power fails at every
		// sector, in the third the server dies.
		u.want("1.0.0", "update", "ok")
		u.shows("applied " + name + "-2.0.0 ota_0")
		u.confirmed("ota_0", "2.0.0")
		u.shows("confirmed " + name + "-2.0.0 ota_0")
		u.want("2.0.0", "update", "nothing-new")

		s.release(name, "2.1.0")
		s.calm()
		starts, length := u.cutAtEverySector("ota_0", "2.0.0"), sampleLength(t, name, "2.1.0")
		if want := 2 * ((length + 0xFFF) / 0x1000); starts != want {
			t.Errorf("power failed %d times, want %d", starts, want)
		}
		if most := length + starts*0x2000; s.sent > most {
			t.Errorf("%d bytes came over the road for %d, want %d at most", s.sent, length, most)
		}
		u.confirmed("ota_1", "2.1.0")

		s.calm()
		s.release(name, "2.2.0")
		s.set(func() {
			s.cut = func(r *http.Request) int {
				if strings.HasPrefix(r.Header.Get("Range"), "bytes=8192-") {
					return 5000
				}
				return -1
			}
		})
		u.want("2.1.0", "update", "transport")
		s.kill()
		u.want("2.1.0", "update", "transport") // the road is there and leads nowhere
		s.calm()
		s.serve()
		if r := u.want("2.1.0", "update", "ok"); r.Fetched != length-0x3000 {
			t.Errorf("%d bytes were fetched, want the rest of %d after 3 sectors", r.Fetched, length)
		}
		u.confirmed("ota_0", "2.2.0")

		// A release is halted while a unit fetches it: the unit goes on with the next one.
		s.release(name, "2.3.0")
		s.set(func() {
			s.cut = func(r *http.Request) int {
				if strings.HasPrefix(r.Header.Get("Range"), "bytes=8192-") {
					return 0
				}
				return -1
			}
		})
		u.want("2.2.0", "update", "transport")
		s.calm()
		s.run(0, "ota", "release", "halt", name+"-2.3.0", "--reason", "test", "--config", "server.yaml")
		u.want("2.2.0", "update", "nothing-new")
		s.release(name, "2.4.0")
		u.want("2.2.0", "update", "ok")

		// It is not confirmed: the old one comes back, and the server learns of it.
		u.board.PowerCycle()
		u.runs("ota_1", "2.4.0")
		u.board.PowerCycle()
		u.runs("ota_0", "2.2.0")
		u.want("2.2.0", "report", "ok")
		u.shows("rolled-back " + name + "-2.4.0 ota_1")
		for range 2 {
			results, _ := u.board.Run(t, u.client("2.2.0"), "update")
			// The server may not offer it again; if it does, the unit does not take it.
			if r := results[1]; r.Err != "nothing-new" && r.Err != "known-bad" || r.Fetched != 0 {
				t.Errorf("after a rollback: %+v", r)
			}
		}
	}
	audit, err := os.ReadFile(filepath.Join(s.dir, "ota", "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range units {
		token, err := os.ReadFile(pair[0].token)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(audit, []byte(pair[0].key)) || bytes.Contains(audit, bytes.TrimSpace(token)) {
			t.Error("the audit file does not name the key that was used, or shows a token")
		}
	}
}

// cutAtEverySector updates a unit with power that fails within every erase and every
// write of a sector, each once, and gives how often that was.
func (u *fieldUnit) cutAtEverySector(where, version string) (starts int) {
	u.s.t.Helper()
	type place struct {
		op   otaclient.Op
		addr uint32
	}
	seen := map[place]bool{}
	u.board.Cut = func(_ int, op otaclient.Op, addr uint32) otaclient.Moment {
		at := place{op, addr}
		if op != otaclient.OpErase && op != otaclient.OpWrite || seen[at] {
			return otaclient.Never
		}
		seen[at] = true
		return otaclient.Within
	}
	defer func() { u.board.Cut = nil }()
	for ; starts < 200; starts++ {
		results, cut := u.board.Run(u.s.t, u.client(version), "update")
		if !cut {
			if r := results[1]; r.Err != "ok" {
				u.s.t.Fatalf("%+v", r)
			}
			return starts
		}
		u.runs(where, version)
	}
	u.s.t.Fatal("it does not come to an end")
	return 0
}

// sampleLength is the length of a version's ciphertext.
func sampleLength(t *testing.T, name, version string) int {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	p := clientProduct(m)
	p.Version = version
	b, err := sample.App(p)
	if err != nil {
		t.Fatal(err)
	}
	align := 16
	if name == "esp32" {
		align = 32
	}
	return (len(b) + align - 1) / align * align
}
