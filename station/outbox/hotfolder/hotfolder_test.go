package hotfolder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/station/outbox"
)

func event(index uint64, mac string) *outbox.Event {
	return &outbox.Event{
		Journal: "00010203aabb", Index: index, Type: outbox.TypeFinished, Unit: &outbox.Unit{MAC: mac}, Body: []byte(`{"mac":"` + mac + `"}`),
	}
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[f.Name()] = string(b)
	}
	return m
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Config{Name: "hot", Dir: dir, Mode: "0644"})
	if err != nil {
		t.Fatal(err)
	}
	// What a crash left behind.
	if err := os.WriteFile(filepath.Join(dir, ".00010203-000000000007-240ac4000001.json.tmp"), []byte(`{"ma`), 0o600); err != nil {
		t.Fatal(err)
	}
	events := []*outbox.Event{event(7, "24:0a:c4:00:00:01"), event(12, "")}
	want := map[string]string{
		"00010203-000000000007-240ac4000001.json": `{"mac":"24:0a:c4:00:00:01"}` + "\n",
		"00010203-000000000012-unknown.json":      `{"mac":""}` + "\n",
	}
	for range 2 { // a repeat is the same file
		if n, err := s.Deliver(t.Context(), events); n != 2 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if d := cmp.Diff(want, files(t, dir)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "00010203-000000000012-unknown.json"))
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if got := FileName(&outbox.Event{Journal: "00010203aabb", Index: 3, Type: "operator.rework", Unit: &outbox.Unit{}}); got != "00010203-000000000003-operator.rework.json" {
		t.Error(got)
	}
}

// A share that is not mounted gets nothing, and no folder in its place.
func TestFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "share")
	s, err := New(Config{Name: "hot", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(1, "")}); n != 0 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it made the folder")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// The second name is taken by something that no file replaces.
	if err := os.MkdirAll(filepath.Join(dir, FileName(event(2, "")), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Deliver(t.Context(), []*outbox.Event{event(1, ""), event(2, ""), event(3, "")}); n != 1 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := s.Deliver(ctx, []*outbox.Event{event(4, "")}); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v", n, err)
	}
	if list, err := filepath.Glob(filepath.Join(dir, ".*.tmp")); err != nil || len(list) > 0 {
		t.Errorf("left behind: %q, %v", list, err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Name: "hot", Dir: "/srv/mes"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"name: ":   func(c *Config) { c.Name = "" },
		"dir: ":    func(c *Config) { c.Dir = "mes" },
		"mode: ":   func(c *Config) { c.Mode = "0777" },
		"mode:":    func(c *Config) { c.Mode = "rw" },
		"mode: \"": func(c *Config) { c.Mode = "0040" },
		"events[":  func(c *Config) { c.Events = []string{"x"} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if _, err := New(c); err == nil {
			t.Errorf("New takes %+v", c)
		}
	}
}
