package vault

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

const goodConfig = `addresses: [https://vault-1.example:8200, https://vault-2.example:8200]
ca_cert: ca.pem
mount: factory/keys
station: line1
timeout: 2s
patience: 10s
login:
  approle:
    role_id_file: /etc/provisiond/role-id
    secret_id_file: credential:secret-id
    token_cache: /run/provisiond/token
`

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	t.Setenv("VAULT_ADDR", "https://other:8200")
	t.Setenv("VAULT_NAMESPACE", "ns1")
	c, err := FromFlag(Prefix + write(t, filepath.Join(dir, "v.yaml"), goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if c.Addresses[1] != "https://vault-2.example:8200" || len(c.Addresses) != 2 || c.Namespace != "ns1" || time.Duration(c.Timeout) != 2*time.Second {
		t.Errorf("%+v", c)
	}
	for name, want := range map[string]string{c.CACert: filepath.Join(dir, "ca.pem"), "credential:secret-id": "/run/credentials/x/secret-id", "/a": "/a"} {
		if got, err := c.path(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, bad := range []string{"credential:", "credential:..", "credential:../x", "credential:a/b"} {
		if p, err := c.path(bad); err == nil {
			t.Errorf("%s: %s", bad, p)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	t.Setenv("VAULT_ADDR", "")
	for name, change := range map[string][3]string{
		"unknown key":      {"mount:", "mnt:", "mnt"},
		"repeated key":     {"station: line1", "station: line1\nstation: line2", "station"},
		"second document":  {"station: line1", "station: line1\n---\nmount: x", "one"},
		"http":             {"https://vault-1", "http://vault-1", "addresses[0]"},
		"user in address":  {"https://vault-1", "https://u:p@vault-1", "addresses[0]"},
		"path in address":  {"example:8200,", "example:8200/v1/sys,", "addresses[0]"},
		"mount escapes":    {"factory/keys", "factory/../sys", "mount"},
		"station escapes":  {"line1", "../line2", "station"},
		"no secret id":     {"    secret_id_file: credential:secret-id\n", "", "secret_id_file"},
		"two logins":       {"  approle:", "  token_file: x\n  approle:", "2 ways"},
		"duration":         {"2s", "2", "duration"},
		"negative":         {"2s", "-2s", "duration"},
		"no address":       {"addresses: [https://vault-1.example:8200, https://vault-2.example:8200]\n", "", "VAULT_ADDR"},
		"approle's mount":  {"  approle:", "  approle:\n    mount: ../x", "approle"},
		"header namespace": {"mount:", "namespace: \"a\\r\\nX: y\"\nmount:", "namespace"},
	} {
		text := strings.Replace(goodConfig, change[0], change[1], 1)
		if text == goodConfig {
			t.Fatalf("%s changes nothing", name)
		}
		_, err := ReadConfig(write(t, filepath.Join(t.TempDir(), "v.yaml"), text))
		if err == nil || !strings.Contains(err.Error(), change[2]) {
			t.Errorf("%s: %v, want a word about %s", name, err, change[2])
		}
	}
	for _, flag := range []string{"keystore.db", "vault:", "vault://host:8200/?token=x", Prefix + filepath.Join(t.TempDir(), "missing")} {
		if c, err := FromFlag(flag); err == nil {
			t.Errorf("%s: %+v", flag, c)
		}
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	c := Config{dir: dir}
	good := write(t, filepath.Join(dir, "good"), " hvs.x\n")
	if s, err := c.readSecret("good"); err != nil || s != "hvs.x" {
		t.Errorf("%q, %v", s, err)
	}
	for name, word := range map[string]string{"dir": "plain file", "group": "chmod 600", "empty": "empty", "missing": "no such file", "large": "larger"} {
		path := filepath.Join(dir, name)
		switch name {
		case "dir":
			_ = os.Mkdir(path, 0o700)
		case "group":
			write(t, path, "x")
			_ = os.Chmod(path, 0o640)
		case "empty":
			write(t, path, "\n")
		case "large":
			write(t, path, strings.Repeat("x", maxSecretFile+1))
		}
		if s, err := c.readSecret(name); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q, %v", name, s, err)
		}
	}
	// systemd's credentials directory is private itself.
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.Chmod(good, 0o440); err != nil {
		t.Fatal(err)
	}
	if s, err := c.readSecret("credential:good"); err != nil || s != "hvs.x" {
		t.Errorf("credential: %q, %v", s, err)
	}
}

// FuzzConfig: no text makes the parser panic, and what it takes is valid or refused
// with words.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("login: {token_file: x}\naddresses: [http://127.0.0.1:8200]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil || c.Validate() != nil {
			return
		}
		c.fill()
		for _, a := range c.Addresses {
			if !strings.HasPrefix(a, "https://") && !strings.HasPrefix(a, "http://") {
				t.Errorf("address %q", a)
			}
		}
		if strings.Contains(c.Mount, "..") || strings.HasPrefix(c.Mount, "/") {
			t.Errorf("mount %q", c.Mount)
		}
	})
}

// FuzzDecodeRecord: what decodes as a record encodes to the same content.
func FuzzDecodeRecord(f *testing.F) {
	r := keystoretest.NewRecord(f, keystoretest.Simulated(1))
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i) // seeds are the same in every process
	}
	var err error
	if r.Key, err = keystore.KeyFromBytes(key); err != nil {
		f.Fatal(err)
	}
	r.Fingerprint = r.Key.Fingerprint()
	body, _, err := encodeRecord(r)
	if err != nil {
		f.Fatal(err)
	}
	data := body[len(cas0) : len(body)-1]
	f.Add(data, r.Unit[5], r.Fingerprint[:])
	f.Fuzz(func(t *testing.T, data []byte, last byte, fp []byte) {
		var want keystore.Fingerprint
		copy(want[:], fp)
		got, err := decodeRecord(data, chip.MAC{2, 0, 0, 0, 0, last}, want)
		if err != nil {
			return
		}
		body, digest, err := encodeRecord(got)
		if err != nil {
			t.Fatal(err)
		}
		var a, b struct {
			Clear map[string]json.RawMessage `json:"clear"`
		}
		if json.Unmarshal(data, &a) != nil || json.Unmarshal(body[len(cas0):len(body)-1], &b) != nil {
			t.Fatal("does not parse again")
		}
		if _, ok := a.Clear["sha256="+digest]; !ok || len(a.Clear) != len(b.Clear) {
			t.Error("another record")
		}
	})
}

// TestDecodeRecordRefuses changes one thing of a good record's data at a time.
func TestDecodeRecordRefuses(t *testing.T) {
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	body, _, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	data := string(body[len(cas0) : len(body)-1])
	if _, err := decodeRecord([]byte(data), r.Unit, r.Fingerprint); err != nil {
		t.Fatal(err)
	}
	var key string
	_ = r.Key.Use(func(b []byte) error { key = string([]byte(hexOf(b))); return nil })
	for name, c := range map[string][2]string{
		"key":               {key, strings.Repeat("0a", 31) + "0b"},
		"key cut":           {key, key[:62]},
		"key a number":      {`"` + key + `"`, "5"},
		"flash size":        {`"flash_size":4194304`, `"flash_size":8388608`},
		"clear flash size":  {"flash_size=4194304", "flash_size=8388608"},
		"clear chip":        {"chip=esp32c3", "chip=esp32s3"},
		"clear unit":        {"unit=02:00:00:00:00:01", "unit=02:00:00:00:00:02"},
		"digest":            {"sha256=", "sha256=0"},
		"unknown field":     {`{"schema":1`, `{"x":1,"schema":1`},
		"newer schema":      {`{"schema":1`, `{"schema":2`},
		"unknown clear":     {`"lot=lot-9"`, `"lot=lot-9":"","x=1"`},
		"no clear":          {`"clear":`, `"clear2":`},
		"clear not a name":  {`"lot=lot-9"`, `"lot"`},
		"clear number form": {`"flash_size=4194304"`, `"flash_size=04194304"`},
	} {
		text := strings.Replace(data, c[0], c[1], 1)
		if text == data {
			t.Fatalf("%s changes nothing", name)
		}
		got, err := decodeRecord([]byte(text), r.Unit, r.Fingerprint)
		if err == nil || got.Key.Len() != 0 {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), key[:8]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	other := keystoretest.NewRecord(t, keystoretest.Simulated(2))
	if _, err := decodeRecord([]byte(data), other.Unit, r.Fingerprint); err == nil {
		t.Error("taken for another unit")
	}
	if _, err := decodeRecord([]byte(data), r.Unit, other.Fingerprint); err == nil {
		t.Error("taken for another key")
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, v := range b {
		s.WriteByte(digits[v>>4])
		s.WriteByte(digits[v&15])
	}
	return s.String()
}
