package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// linked is a module whose code is in the binary.
type linked struct {
	Path, Version, Dir string
}

// modules lists what is linked, the standard library first.
func modules(ctx context.Context, root, arch string) ([]linked, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Module", "./cmd/provisiond")
	cmd.Dir, cmd.Env = root, goEnv(arch)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, &stderr)
	}
	seen := map[string]bool{}
	var all []linked
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Module *struct {
				linked
				Main    bool
				Replace *linked
			}
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if p.Module == nil || p.Module.Main || seen[p.Module.Path] {
			continue
		}
		seen[p.Module.Path] = true
		m := p.Module.linked
		if p.Module.Replace != nil {
			m.Dir = p.Module.Replace.Dir
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b linked) int { return strings.Compare(a.Path, b.Path) })
	goroot := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION")
	goroot.Dir, goroot.Env = root, goEnv(arch)
	out, err = goroot.Output()
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(out), "\n")
	return append([]linked{{"std", lines[1], lines[0]}}, all...), nil
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|unlicense)([-._].*)?$`)

// licenceFiles are the texts that lie beside a module's go.mod.
func licenceFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && licenceFile.MatchString(e.Name()) && filepath.Ext(e.Name()) != ".go" {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// kinds tells licences by words that each of them has. The order counts.
var kinds = []struct {
	name  string
	words []string
}{
	{"Apache-2.0", []string{"apache license", "version 2.0, january 2004"}},
	{"MPL-2.0", []string{"mozilla public license", "version 2.0", "exhibit a"}},
	{"BSD-3-clause", []string{"redistribution and use in source and binary forms", "neither the name"}},
	{"BSD-3-clause", []string{"redistribution and use in source and binary forms", "names of its contributors"}},
	{"BSD-2-clause", []string{"redistribution and use in source and binary forms"}},
	{"Expat", []string{"permission is hereby granted, free of charge"}},
	{"ISC", []string{"permission to use, copy, modify, and"}},
	{"public-domain", []string{"released into the public domain"}},
}

// kind names a licence; "" for a text that is not known.
func kind(text string) string {
	text = strings.Join(strings.Fields(strings.ToLower(text)), " ")
	for _, k := range kinds {
		if !slices.ContainsFunc(k.words, func(w string) bool { return !strings.Contains(text, w) }) {
			return k.name
		}
	}
	return ""
}

var copyrightLine = regexp.MustCompile(`(?i)^\W*(?:copyright\s+(?:\(c\)|©|[0-9]{4}|the\b)|\(c\)\s+[0-9]{4}|©).*`)

// copyrightLines are the holders that a text names.
func copyrightLines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if copyrightLine.MatchString(line) && !strings.Contains(line, "[yyyy]") && !strings.Contains(line, "{yyyy}") && !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	return all
}

// common are licences whose text every Debian system has.
var common = map[string]string{"Apache-2.0": "Apache-2.0", "MPL-2.0": "MPL-2.0"}

// copyrights writes Debian's machine-readable copyright file, with the texts of all
// licences: ours, those of the linked modules, and those of files of others in our
// tree. A module without a licence that is known stops the build.
func copyrights(ctx context.Context, root, arch string) ([]byte, error) {
	mods, err := modules(ctx, root, arch)
	if err != nil {
		return nil, err
	}
	var head, texts bytes.Buffer
	fmt.Fprint(&head, "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n",
		"Upstream-Name: provisiond\n",
		"Source: https://github.com/provisiond/provisiond\n",
		"Comment: The binary is linked statically. The paragraphs below name every module\n",
		" in it at its version; its source is at https://proxy.golang.org/PATH/@v/VERSION.zip.\n",
		"\nFiles: *\nCopyright: The provisiond authors\nLicense: Apache-2.0\n")
	written := map[string]bool{}
	write := func(name, text string) {
		if written[name] {
			return
		}
		written[name] = true
		fmt.Fprintf(&texts, "\nLicense: %s\n%s", name, text)
	}
	write("Apache-2.0", pointer("Apache-2.0"))
	for _, m := range mods {
		files, err := licenceFiles(m.Dir)
		if err != nil {
			return nil, err
		}
		if err := stanza(&head, write, "vendor/"+m.Path+"/*", m.Path+" "+m.Version, files); err != nil {
			return nil, err
		}
	}
	ours, err := foreignFiles(root)
	if err != nil {
		return nil, err
	}
	for _, dir := range slices.Sorted(mapKeys(ours)) {
		if err := stanza(&head, write, dir+"/*", "", ours[dir]); err != nil {
			return nil, err
		}
	}
	return append(head.Bytes(), texts.Bytes()...), nil
}

func mapKeys(m map[string][]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// foreignFiles finds what of others lies in our tree: folders below the top with a
// licence file, for example the page's scripts.
func foreignFiles(root string) (map[string][]string, error) {
	found := map[string][]string{}
	for _, top := range []string{"station", "provision", "keystore", "esp", "efuse", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testdata" {
				return filepath.SkipDir
			}
			if d.Type().IsRegular() && licenceFile.MatchString(d.Name()) && filepath.Ext(path) != ".go" {
				rel, err := filepath.Rel(root, filepath.Dir(path))
				found[filepath.ToSlash(rel)] = append(found[filepath.ToSlash(rel)], path)
				return err
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// stanza writes the paragraph of one module or folder.
func stanza(head *bytes.Buffer, write func(name, text string), files, comment string, licences []string) error {
	var names, holders, notices []string
	for _, f := range licences {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		text := string(b)
		holders = append(holders, copyrightLines(text)...)
		if strings.HasPrefix(strings.ToLower(filepath.Base(f)), "notice") {
			notices = append(notices, text)
			continue
		}
		k := kind(text)
		if k == "" {
			return fmt.Errorf("%s: this licence is not known: read it, and add it to the table in internal/debpkg or do without %s", f, files)
		}
		name := k
		if common[k] != "" {
			write(name, pointer(common[k]))
		} else {
			// Two texts of one kind name different holders: each is kept.
			name = fmt.Sprintf("%s-%x", k, sha256.Sum256(b))[:len(k)+9]
			write(name, indented(text))
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%s has no licence file: it cannot be shipped", files)
	}
	slices.Sort(holders)
	holders = slices.Compact(holders)
	if len(holders) == 0 {
		holders = []string{"The authors of " + strings.TrimSuffix(strings.TrimPrefix(files, "vendor/"), "/*")}
	}
	fmt.Fprintf(head, "\nFiles: %s\nCopyright: %s\nLicense: %s\n", files, strings.Join(holders, "\n "), strings.Join(names, " and "))
	if comment != "" {
		fmt.Fprintf(head, "Comment: %s\n", comment)
		for _, n := range notices {
			fmt.Fprintf(head, " .\n%s", indented(n))
		}
	}
	return nil
}

func pointer(name string) string {
	return " The text is in /usr/share/common-licenses/" + name + ".\n"
}

// indented is a text as the copyright format wants it.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(strings.ReplaceAll(text, "\r", ""))) {
		if line = strings.TrimRight(line, " \t\n"); line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
	return b.String()
}
