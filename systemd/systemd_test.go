package systemd_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/ota/server"
)

const (
	unitFile    = "provisiond.service"
	otaUnitFile = "provisiond-ota.service"
)

// tool finds one of systemd's programs. .ci/run installs them and sets CI; without
// CI a machine without systemd is told what it did not test.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%v: .ci/run installs it: apt-get install systemd", err)
	}
	t.Skipf("needs %s, which this machine has not: apt-get install systemd", name)
	return ""
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("CI runs as root: this test gives files to other users")
	}
	t.Skip("needs root, to give files to other users: sudo go test ./systemd")
}

func output(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// unit gives the settings of the station's service.
func unit(t *testing.T) map[string][]string { return settings(t, unitFile) }

// settings gives those of a service, in order, without the sections' names.
func settings(t *testing.T, file string) map[string][]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	m := map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' || line[0] == '[' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("%s: %q is no setting", file, line)
		}
		m[key] = append(m[key], value)
	}
	return m
}

// one is a setting that is given once.
func one(t *testing.T, key string) string {
	t.Helper()
	v := unit(t)[key]
	if len(v) != 1 {
		t.Fatalf("%s= is given %d times: %q", key, len(v), v)
	}
	return v[0]
}

func duration(t *testing.T, key string) time.Duration {
	t.Helper()
	v := one(t, key)
	if n, err := strconv.Atoi(v); err == nil {
		return time.Duration(n) * time.Second
	}
	d, err := time.ParseDuration(strings.ReplaceAll(v, "min", "m"))
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return d
}

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func exposed(t *testing.T, file string) (float64, string) {
	t.Helper()
	out, err := output(t, "systemd-analyze", "security", "--offline=yes", "--no-pager", file)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := exposure.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no exposure level in\n%s", out)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v, out
}

func TestExposure(t *testing.T) {
	for file, most := range map[string]float64{unitFile: 1.5, otaUnitFile: 1.5} {
		testExposure(t, file, most)
	}
}

func testExposure(t *testing.T, file string, most float64) {
	t.Helper()
	version, err := output(t, "systemd-analyze", "--version")
	if err != nil {
		t.Fatal(err)
	}
	version, _, _ = strings.Cut(version, "\n")
	got, table := exposed(t, "./"+file)
	t.Logf("%s: exposure %.1f", version, got)
	if got > most {
		t.Errorf("exposure %.1f with %s, at most %.1f is allowed:\n%s", got, version, most, table)
	}
	// The same look must find an open service open.
	open := filepath.Join(t.TempDir(), "open.service")
	if err := os.WriteFile(open, []byte("[Service]\nExecStart=/bin/true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := exposed(t, open); got < 8 {
		t.Errorf("a service without any protection has an exposure of %.1f only", got)
	}
}

// verify has nothing to say about the unit, and would say something.
func TestVerify(t *testing.T) {
	for _, file := range []string{unitFile, otaUnitFile} {
		t.Run(file, func(t *testing.T) { testVerify(t, file) })
	}
}

func testVerify(t *testing.T, unitFile string) {
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The package is not installed here: the test stands in for the daemon.
	program := filepath.Join(dir, "provisiond")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	here := strings.ReplaceAll(string(text), "/usr/bin/provisiond", program)
	for _, tc := range []struct{ name, text, want string }{
		{"good", here, ""},
		{"key", strings.Replace(here, "LockPersonality=", "LockPersonalty=", 1), "LockPersonalty"},
		{"value", strings.Replace(here, "KillMode=mixed", "KillMode=mixt", 1), "mixt"},
		{"filter", strings.Replace(here, "@privileged", "@priviledged", 1), "@priviledged"},
	} {
		file := filepath.Join(dir, tc.name, unitFile)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := output(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", file)
		switch {
		case tc.want == "" && (err != nil || out != ""):
			t.Errorf("%s: %v\n%s", tc.name, err, out)
		case tc.want != "" && !strings.Contains(out, tc.want):
			t.Errorf("%s: nothing is said about %s: %v\n%s", tc.name, tc.want, err, out)
		}
	}
}

// TestPromises holds the settings that boards depend on, beside the score.
func TestPromises(t *testing.T) {
	u := unit(t)
	const oneWay, park = time.Minute, 30 * time.Second
	if d := duration(t, "TimeoutStopSec"); d < oneWay+park {
		t.Errorf("TimeoutStopSec=%v: a one-way step takes up to %v, parking %v more", d, oneWay, park)
	}
	if d := duration(t, "WatchdogSec"); d < 10*time.Second || d > time.Minute {
		t.Errorf("WatchdogSec=%v", d)
	}
	codes := strings.Fields(one(t, "RestartPreventExitStatus"))
	for _, code := range []int{provision.ExitUsage, provision.ExitJournal} {
		if !slices.Contains(codes, strconv.Itoa(code)) {
			t.Errorf("exit code %d is tried again: it waits for a person", code)
		}
	}
	if len(codes) != 2 {
		t.Errorf("RestartPreventExitStatus=%q: only a wrong configuration and a damaged journal stop for good", codes)
	}
	for key, want := range map[string]string{
		"Type": "notify", "NotifyAccess": "main", "KillMode": "mixed", "Restart": "on-failure",
		"DynamicUser": "yes", "DevicePolicy": "closed", "LimitCORE": "0", "CapabilityBoundingSet": "",
		"StateDirectory": "provisiond", "SupplementaryGroups": "dialout", "ProtectSystem": "strict",
		"ExecStart": "/usr/bin/provisiond run --config /etc/provisiond/station.yaml",
	} {
		if got := one(t, key); got != want {
			t.Errorf("%s=%s, want %q", key, got, want)
		}
	}
	if got, want := u["DeviceAllow"], []string{"char-ttyUSB rw", "char-ttyACM rw"}; !slices.Equal(got, want) {
		t.Errorf("DeviceAllow= %q, want %q", got, want)
	}
	// /proc/devices knows ttyUSB and ttyACM only while their drivers are loaded.
	for _, module := range []string{"usbserial", "cdc_acm"} {
		for _, key := range []string{"Wants", "After"} {
			if !strings.Contains(strings.Join(u[key], " "), "modprobe@"+module+".service") {
				t.Errorf("%s= lacks modprobe@%s.service: DeviceAllow= would match nothing on a fresh machine", key, module)
			}
		}
	}
	if u["PrivateDevices"] != nil {
		t.Error("PrivateDevices= hides the adapters")
	}
	if !strings.Contains(one(t, "RestrictAddressFamilies"), "AF_NETLINK") {
		t.Error("without AF_NETLINK there are no uevents")
	}
	// With a path a missing file would keep the daemon from starting (systemd 252
	// passes over a name that no credential store has).
	if len(u["LoadCredentialEncrypted"]) == 0 || u["LoadCredential"] != nil {
		t.Errorf("credentials: %q, plain ones %q", u["LoadCredentialEncrypted"], u["LoadCredential"])
	}
	for _, c := range u["LoadCredentialEncrypted"] {
		if !regexp.MustCompile(`^provisiond\.[a-z-]+$`).MatchString(c) {
			t.Errorf("LoadCredentialEncrypted=%s: write a name of ours without a path", c)
		}
	}
}

// TestOTAPromises holds what the OTA server's setting and its program have in common.
func TestOTAPromises(t *testing.T) {
	u := settings(t, otaUnitFile)
	for key, want := range map[string]string{
		"Type": "notify", "NotifyAccess": "main", "KillMode": "mixed", "Restart": "on-failure", "RestartPreventExitStatus": strconv.Itoa(provision.ExitUsage),
		"DynamicUser": "yes", "LimitCORE": "0", "CapabilityBoundingSet": "", "StateDirectory": "provisiond-ota", "StateDirectoryMode": "0700",
		"PrivateDevices": "yes", "ProtectSystem": "strict", "TimeoutStopSec": "40", // downloads get 20 s
		"ExecStart": "/usr/bin/provisiond ota serve --config /etc/provisiond/ota.yaml",
	} {
		if got := u[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
	if n, err := strconv.Atoi(strings.Join(u["LimitNOFILE"], "")); err != nil || n < server.DefaultConnections+1000 {
		t.Errorf("LimitNOFILE=%d, %v: every connection is a file", n, err)
	}
	text, err := os.ReadFile(filepath.Join("..", "configs", "ota.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range regexp.MustCompile(`credential:([a-z.-]+)`).FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(u["LoadCredentialEncrypted"], c[1]) {
			t.Errorf("configs/ota.yaml names the credential %s, which the service does not load", c[1])
		}
	}
	for _, c := range u["LoadCredentialEncrypted"] {
		if !regexp.MustCompile(`^provisiond-ota\.[a-z-]+$`).MatchString(c) {
			t.Errorf("LoadCredentialEncrypted=%s: write a name of ours without a path", c)
		}
	}
}

const envCrash = "PROVISIOND_TEST_CRASH"

func TestMain(m *testing.M) {
	if os.Getenv(envCrash) != "" {
		panic("on purpose")
	}
	os.Exit(m.Run())
}

// A Go program that panics ends with exit code 2, and 2 is not started again. So
// the unit lets a crash end by a signal.
func TestCrashIsStartedAgain(t *testing.T) {
	setting := one(t, "Environment")
	for _, tc := range []struct {
		env    string
		signal bool
	}{{setting, true}, {"GOTRACEBACK=single", false}} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), envCrash+"=1", tc.env)
		cmd.WaitDelay = time.Minute
		// No core file of the test either.
		cmd.Dir = t.TempDir()
		err := cmd.Run()
		var ee *exec.ExitError
		if !errors.As(err, &ee) {
			t.Fatalf("%s: %v", tc.env, err)
		}
		ws := ee.Sys().(syscall.WaitStatus)
		if tc.signal && (!ws.Signaled() || ws.Signal() != syscall.SIGABRT) {
			t.Errorf("%s: a crash ends with %v: systemd would not start the daemon again", tc.env, err)
		}
		if !tc.signal && ws.ExitStatus() != 2 {
			t.Errorf("%s: a crash ends with %v: is the setting still needed?", tc.env, err)
		}
	}
}

// The user and the folders, made by systemd's own programs in an empty root.
func TestUserAndFolders(t *testing.T) {
	asRoot(t)
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"systemd-sysusers", "--root=" + root, filepath.Join(here, "provisiond.sysusers")},
		{"systemd-sysusers", "--root=" + root, filepath.Join(here, "provisiond.sysusers")}, // again: no change
		{"systemd-tmpfiles", "--root=" + root, "--create", filepath.Join(here, "provisiond.tmpfiles")},
	} {
		if out, err := output(t, args[0], args[1:]...); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^provisiond:[^:]*:([0-9]+):([0-9]+):[^:]*:/var/lib/provisiond:/usr/sbin/nologin$`).FindAllStringSubmatch(string(passwd), -1)
	if len(m) != 1 {
		t.Fatalf("passwd:\n%s", passwd)
	}
	uid, _ := strconv.Atoi(m[0][1])
	gid, _ := strconv.Atoi(m[0][2])
	for _, tc := range []struct {
		path     string
		mode     os.FileMode
		uid, gid int
	}{
		{"var/spool/provisiond", os.ModeDir | os.ModeSetgid | 0o770, uid, gid},
		{"etc/credstore.encrypted", os.ModeDir | 0o700, 0, 0},
	} {
		st, err := os.Stat(filepath.Join(root, tc.path))
		if err != nil {
			t.Error(err)
			continue
		}
		sys := st.Sys().(*syscall.Stat_t)
		if st.Mode() != tc.mode || int(sys.Uid) != tc.uid || int(sys.Gid) != tc.gid {
			t.Errorf("%s: %v of %d:%d, want %v of %d:%d", tc.path, st.Mode(), sys.Uid, sys.Gid, tc.mode, tc.uid, tc.gid)
		}
	}
	if one(t, "ReadWritePaths") != "-/var/spool/provisiond" {
		t.Error("the spool folder cannot be written")
	}
}
