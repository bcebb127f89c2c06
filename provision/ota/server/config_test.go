package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/provisiond/provisiond/internal/conf"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// TestExample: the example loads, and what it writes out are the values that hold
// without it.
func TestExample(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	t.Setenv("STATE_DIRECTORY", "/var/lib/provisiond-ota")
	name := filepath.Join("..", "..", "..", "configs", "ota.yaml")
	c, err := server.LoadConfig(name)
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := filepath.Split(name)
	if c.TLS.Key != "/run/credentials/x/provisiond-ota.tls-key" || c.Keystore != "vault:"+filepath.Join(dir, "ota-keystore.yaml") ||
		c.Audit.File != "/var/lib/provisiond-ota/audit.jsonl" || *c.Audit.Sync != time.Second {
		t.Errorf("%+v", c)
	}
	o := c.Options()
	want := server.Options{
		KeyHold: server.DefaultKeyHold, KeysMost: server.DefaultKeysMost, UnknownHold: server.DefaultUnknownHold, LookupWait: server.DefaultLookupWait,
		Stall: server.DefaultStall, Requests: server.DefaultRequests, PerUnit: server.DefaultPerUnit, Lookups: server.DefaultLookups,
		LookupsPerAddress: server.DefaultLookupsPerAddress, Connections: server.DefaultConnections,
	}
	if diff := cmp.Diff(want, o, cmpopts.IgnoreFields(server.Options{}, "Observe", "Store", "Releases", "Signer", "Audit")); diff != "" {
		t.Errorf("the example is not what holds without it (-without +example):\n%s", diff)
	}
	// Every key of the configuration stands in the example.
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(reflect.Type)
	walk = func(s reflect.Type) {
		for i := range s.NumField() {
			f := s.Field(i)
			if tag := f.Tag.Get("yaml"); tag != "" {
				if !strings.Contains(string(b), tag+":") {
					t.Errorf("the example does not show %s", tag)
				}
				if f.Type.Kind() == reflect.Struct {
					walk(f.Type)
				}
			}
		}
	}
	walk(reflect.TypeFor[server.Config]())
}

func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                             "F: keystore: is missing",
		"keystore: k\nlisten: 8443":                    "F:2: listen: \"8443\" is no address",
		"keystore: k\nlisten: 0.0.0.0:1":               "F:2: listen: 0.0.0.0:1 is reached from elsewhere",
		"keystore: k\nlisten: \":1\"":                  "F:2: listen: :1 is reached from elsewhere",
		"keystore: k\ntls:\n  key: x":                  "F:3: tls: one of the two",
		"keystore: k\ntls: {clients: x}":               "F:2: tls.clients",
		"keystore: k\nkeys: {hold: 1ms}":               "F:2: keys.hold: 1ms is not sensible; write 1s to 24h",
		"keystore: k\nkeys: {most: -1}":                "F:2: keys.most: -1",
		"keystore: k\naudit:\n  sync: 2h":              "F:3: audit.sync",
		"keystore: k\nlimits:\n requests:\n  burst: 1": "F:4: limits.requests: 0 and 1 are no rate",
		"keystore: k\nlimits: {per_unit: {per_second: .nan, burst: 1}}": "F:2: limits.per_unit: NaN",
		"keystore: k\nkeystore: k":                                      "F:2: keystore: is on line 1 too",
		"keystore: k\nnothing: 1":                                       "F:2: nothing: there is no such key here; see configs/ota.yaml",
		"keystore: k\n---\nkeystore: k":                                 "F: a second YAML document",
		"keystore: &a k":                                                "F:1: keystore: uses an anchor",
	} {
		_, err := server.ParseConfig("F", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		var e *conf.Error
		if !errors.As(err, &e) {
			t.Errorf("%q: %T", text, err)
		}
	}
	c, err := server.ParseConfig("/etc/ota.yaml", []byte("keystore: k\nstate: s"))
	if err != nil || c.State != "/etc/s" || c.Keystore != "/etc/k" || c.Listen != "127.0.0.1:8090" {
		t.Fatalf("%+v, %v", c, err)
	}
	if err := c.ListenOn("0.0.0.0:1"); err == nil || c.Listen != "127.0.0.1:8090" {
		t.Errorf("%v, %s", err, c.Listen)
	}
	if err := c.ListenOn("127.0.0.1:0"); err != nil || c.Listen != "127.0.0.1:0" {
		t.Errorf("%v, %s", err, c.Listen)
	}
}

func FuzzConfig(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "configs", "ota.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("keystore: k\nlimits: {requests: {per_second: 1e999, burst: 1}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := server.ParseConfig("F", b)
		if err != nil {
			return
		}
		o := c.Options()
		if c.Keystore == "" || o.KeyHold < 0 || o.Connections < 0 || o.PerUnit.PerSecond < 0 {
			t.Errorf("%+v", c)
		}
	})
}
