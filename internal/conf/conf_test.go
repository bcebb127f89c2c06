package conf

import (
	"errors"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What the parser says today, so that another version of it is noticed.
func TestPlace(t *testing.T) {
	for text, want := range map[string]struct {
		line  int
		words string
	}{
		"a: 1\n\tb: 2\n":      {2, "found a tab character that violates indentation"},
		"a: [1\nb: 2\nc: 3\n": {1, "did not find expected ',' or ']'"},
		"a: *x\n":             {0, "unknown anchor 'x' referenced"},
	} {
		err := yaml.Unmarshal([]byte(text), new(yaml.Node))
		if err == nil {
			t.Fatalf("%q is YAML", text)
		}
		if line, words := Place(err); line != want.line || words != want.words {
			t.Errorf("%v: %d, %q", err, line, words)
		}
	}
	if line, words := Place(errors.New("anything else")); line != 0 || words != "anything else" {
		t.Error(line, words)
	}
}

func TestParse(t *testing.T) {
	type file struct {
		Name string `yaml:"name"`
		Web  struct {
			Port int `yaml:"port"`
		} `yaml:"web"`
	}
	for text, want := range map[string]string{
		"name: a\nweb:\n  port: 1\n":      "",
		"":                                "",
		"name: a\ntitle: b\n":             "f:2: title: there is no such key here; see the example for what there is",
		"name: a\nname: b\n":              "f:2: name: is on line 1 too; keep one of them",
		"web:\n  port: x\n":               "f:2: cannot unmarshal !!str `x` into int",
		"name: a\n---\nname: b\n":         "f: a second YAML document begins; keep one configuration per file",
		"name: &x a\n":                    "f:1: name: uses an anchor or alias; write the value out",
		"web:\n  port: !!int 1\n":         "f:2: web.port: has a tag !!int; write the value without it",
		"a: *x\n":                         "f: unknown anchor 'x' referenced",
		"name: [1\nweb: 2\nc: 3\n":        "f:1: did not find expected ',' or ']'",
		strings.Repeat("# \n", maxFile/2): "f: is longer than 1048576 bytes; a configuration is a few pages of YAML",
	} {
		places, err := Parse("f", []byte(text), new(file), "the example")
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want || (err == nil) != (places != nil) {
			t.Errorf("%.40q: %s, want %s", text, got, want)
		}
	}
	places, err := Parse("f", []byte("name: a\nweb:\n\n  port: 1\n"), new(file), "")
	if err != nil {
		t.Fatal(err)
	}
	for path, line := range map[string]int{"name": 1, "web.port": 4, "web.port[3]": 4, "nothing.here": 1} {
		if e := places.At(path, "", "is odd"); e.Line != line || e.Path != path {
			t.Errorf("%s: %+v, want line %d", path, e, line)
		}
	}
}
