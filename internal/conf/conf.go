// Package conf owns how a configuration file in YAML is read: strictly, and with
// a place for everything that is wrong. The station's file and the OTA server's
// are read with it. Readers with rules of their own, such as that of the allow-list
// of ports, have its Error and its Place.
//
// It promises that a key that nobody knows, a key twice, a second document, an
// alias, an anchor or a tag is refused, with file and line.
package conf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Error is one thing that is wrong in a file.
type Error struct {
	File    string
	Line    int    // 0 when the place has no line
	Path    string // of the key; empty for the file as a whole
	Problem string
	Fix     string // what to write instead
}

// Error gives file, line, path, problem and what would be right.
func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += ":" + strconv.Itoa(e.Line)
	}
	if e.Path != "" {
		s += ": " + e.Path
	}
	s += ": " + e.Problem
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Places knows on which line every path of a file stands, such as web.tls.mode or
// recipes[2].
type Places struct {
	Name  string // of the file
	lines map[string]int
}

const maxFile = 1 << 20

// Parse reads a file's text into v, a pointer to a struct with yaml tags. example
// names a file that shows what there is. All that is wrong is in the error, each
// as an *Error.
func Parse(name string, b []byte, v any, example string) (*Places, error) {
	p := &Places{Name: name, lines: map[string]int{}}
	if len(b) > maxFile {
		return nil, &Error{File: name, Problem: fmt.Sprintf("is longer than %d bytes", maxFile), Fix: "a configuration is a few pages of YAML"}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, p.syntax(err, example)
	}
	if len(doc.Content) > 0 {
		if err := p.plain(doc.Content[0], ""); err != nil {
			return nil, err
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return nil, p.syntax(err, example)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &Error{File: name, Problem: "a second YAML document begins", Fix: "keep one configuration per file"}
	}
	return p, nil
}

// plain notes the line of every path and refuses what a reader of the file could
// overlook: aliases, anchors and tags.
func (p *Places) plain(n *yaml.Node, path string) error {
	p.lines[path] = n.Line
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return &Error{File: p.Name, Line: n.Line, Path: path, Problem: "uses an anchor or alias", Fix: "write the value out"}
	case n.Style&yaml.TaggedStyle != 0:
		return &Error{File: p.Name, Line: n.Line, Path: path, Problem: "has a tag " + n.Tag, Fix: "write the value without it"}
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := p.plain(n.Content[i+1], strings.TrimPrefix(path+"."+n.Content[i].Value, ".")); err != nil {
				return err
			}
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			if err := p.plain(c, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case yaml.ScalarNode, yaml.DocumentNode, yaml.AliasNode:
	}
	return nil
}

var (
	yamlLine  = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)
	yamlField = regexp.MustCompile(`^field (\S+) not found in type (\S+)$`)
	yamlTwice = regexp.MustCompile(`^mapping key "(.*)" already defined at line (\d+)$`)
)

// Place takes what the YAML parser says apart: the line, 0 if it names none, and the
// words. For readers that go through the nodes themselves.
func Place(err error) (line int, words string) { return place(err.Error()) }

func place(said string) (line int, words string) {
	m := yamlLine.FindStringSubmatch(said)
	line, _ = strconv.Atoi(m[1]) // "" is 0
	return line, said[len(m[0]):]
}

// syntax gives the parser's words a place.
func (p *Places) syntax(err error, example string) error {
	var te *yaml.TypeError
	texts := []string{err.Error()}
	if errors.As(err, &te) {
		texts = te.Errors
	}
	var out []error
	for _, t := range texts {
		e := &Error{File: p.Name}
		e.Line, e.Problem = place(t)
		if m := yamlField.FindStringSubmatch(e.Problem); m != nil {
			e.Path = m[1]
			e.Problem, e.Fix = "there is no such key here", "see "+example+" for what there is"
		}
		if m := yamlTwice.FindStringSubmatch(e.Problem); m != nil {
			e.Path, e.Problem, e.Fix = m[1], "is on line "+m[2]+" too", "keep one of them"
		}
		out = append(out, e)
	}
	return errors.Join(out...)
}

// Line is the line of a path, or of the nearest part of it that the file has.
func (p *Places) Line(path string) int {
	for {
		if n, ok := p.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return p.lines[""]
		}
		path = path[:i]
	}
}

// At is an error about a path.
func (p *Places) At(path, fix, format string, args ...any) *Error {
	return &Error{File: p.Name, Line: p.Line(path), Path: path, Problem: fmt.Sprintf(format, args...), Fix: fix}
}

// Join joins errors in the order of their lines.
func Join(errs []error) error {
	line := func(err error) int {
		var e *Error
		if errors.As(err, &e) {
			return e.Line
		}
		return 0
	}
	slices.SortStableFunc(errs, func(a, b error) int { return cmp.Compare(line(a), line(b)) })
	return errors.Join(errs...)
}

// Resolve is a file name as seen from the configuration's folder. credential:NAME
// is a file in systemd's credentials directory.
func (p *Places) Resolve(name string) string {
	if rest, ok := strings.CutPrefix(name, "credential:"); ok {
		if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && rest == filepath.Base(rest) && rest != ".." {
			return filepath.Join(dir, rest)
		}
		return name
	}
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(p.Name), name)
}

// ResolveAny resolves the file of vault:FILE and vault-transit:FILE, and what has
// no prefix.
func (p *Places) ResolveAny(name string) string {
	for _, prefix := range []string{"vault:", "vault-transit:"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return prefix + p.Resolve(rest)
		}
	}
	if name == "vault" || name == "vault-transit" { // that of the keystore
		return name
	}
	return p.Resolve(name)
}
