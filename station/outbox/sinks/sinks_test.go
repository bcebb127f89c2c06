package sinks

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/outboxtest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		os.Exit(station(dir))
	}
	goleak.VerifyTestMain(m)
}

// The example of docs/factory.md, which decodes without unknown keys.
func example(t *testing.T) (c Config) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "factory.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "```yaml\nout:\n")
	text, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatal("docs/factory.md has no example")
	}
	var all struct {
		Out Config `yaml:"out"`
	}
	d := yaml.NewDecoder(strings.NewReader("out:\n" + text))
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all.Out
}

func TestExample(t *testing.T) {
	c := example(t)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"mes", "erp", "line", "bus"}, c.Names()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"line"}, c.Printers()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestValidate(t *testing.T) {
	c := example(t)
	c.Webhooks[0].URL = ""
	c.Labels[0].Name = "erp"
	c.JetStreams = append(c.JetStreams, c.JetStreams[0])
	c.JetStreams[1].Name = "bus-2"
	want := "webhooks[0].url: is missing\n" +
		"labels[0].name: \"erp\" is also the name of hot_folders[0]\n" +
		"jetstreams[1].stream: jetstreams[0] publishes to UNITS already; select more events there"
	if err := c.Validate(); err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
}

func TestOpen(t *testing.T) {
	got := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- string(b)
	}))
	defer srv.Close()
	dir := t.TempDir()
	hot := filepath.Join(dir, "hot")
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(hot, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"secret": strings.Repeat("k", 32), "label.zpl": "^XA{{text .Mark}}^XZ"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c Config
	text := "webhooks: [{name: mes, url: \"" + srv.URL + "\", secret_file: secret, events: [unit.finished]}]\n" +
		"hot_folders: [{name: erp, dir: " + hot + "}]\n" +
		"labels: [{name: line, printer: \"127.0.0.1:1\", template: label.zpl, recipes: {x: label.zpl}}]\n" +
		"jetstreams: [{name: bus, servers: [\"nats://127.0.0.1:1\"], stream: S}]\n"
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	resolve := func(name string) string { return filepath.Join(dir, name) }
	j := outboxtest.NewJournal("000102030405060708090a0b0c0d0e0f", "bench-1")
	o, err := c.Open(j, state, resolve)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	if _, err := (outboxtest.Run{Slot: "A1", MAC: outboxtest.MAC(1)}).Write(ctx, j); err != nil {
		t.Fatal(err)
	}
	o.Notify()
	body := <-got
	for end := time.Now().Add(10 * time.Second); o.Status()[1].Delivered == 0; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", o.Status())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	file, err := os.ReadFile(filepath.Join(hot, "00010203-000000000010-240ac4000001.json"))
	if err != nil || string(file) != body+"\n" {
		t.Errorf("%s, %v; the webhook got %s", file, err, body)
	}
	var names []string
	for _, s := range o.Status() {
		names = append(names, s.Kind+" "+s.Name)
	}
	if d := cmp.Diff([]string{"webhook mes", "hot folder erp", "label printer line", "jetstream bus"}, names); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// Faults name their place.
	for want, change := range map[string]func(*Config){
		"webhooks[0].secret_file: ":  func(c *Config) { c.Webhooks[0].SecretFile = "none" },
		"labels[0].template: ":       func(c *Config) { c.Labels[0].Template = "none" },
		"jetstreams[0].creds_file: ": func(c *Config) { c.JetStreams[0].CredsFile = "none" },
		"hot_folders[0].dir: ":       func(c *Config) { c.HotFolders[0].Dir = "x" },
	} {
		var c Config
		if err := yaml.Unmarshal([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if _, err := c.Open(j, state, resolve); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestNoSinks(t *testing.T) {
	j := outboxtest.NewJournal("000102030405060708090a0b0c0d0e0f", "bench-1")
	o, err := (Config{}).Open(j, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	o.Notify()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Run(ctx); err != nil || len(o.Status()) != 0 {
		t.Error(err)
	}
}

var _ outbox.Journal = (*outboxtest.Journal)(nil)
