package main

import (
	"bytes"
	"context"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestVersions(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"v1.2.3", "1.2.3"},
		{"v1.2.3+dirty", "1.2.3+dirty"},
		{"v1.2.3-rc.1", "1.2.3~rc.1"},
		{"v0.0.0-20261122191802-0fddc48abcde", "0.0.0~git20261122191802.0fddc48abcde"},
		{"v1.2.4-0.20261122191802-0fddc48abcde+dirty", "1.2.4~git20261122191802.0fddc48abcde+dirty"},
		{"v1.3.0-rc.1.0.20261122191802-0fddc48abcde", "1.3.0~git20261122191802.0fddc48abcde"},
		{"(devel)", ""},
		{"v1.2", ""},
		{"", ""},
	} {
		got, err := debianVersion(tc.in)
		if got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%s: %q, %v, want %q", tc.in, got, err, tc.want)
		}
	}
}

// A newer build must be newer for dpkg.
func TestVersionsInOrder(t *testing.T) {
	tool(t, "dpkg")
	last := "0"
	for _, v := range []string{
		"v0.0.0-20261122191802-0fddc48abcde", "v1.2.3-rc.1", "v1.2.3",
		"v1.2.4-0.20261122191802-ffddc48abcde", "v1.2.4-0.20261123000000-0fddc48abcde", "v1.2.4", "v1.2.4+dirty", "v1.10.0",
	} {
		d, err := debianVersion(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", last, "lt", d).Run(); err != nil {
			t.Errorf("dpkg takes %s for newer than %s: %v", last, d, err)
		}
		last = d
	}
}

func TestLicenceKinds(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"Apache License\n   Version 2.0, January 2004", "Apache-2.0"},
		{"Permission is hereby granted, free\nof charge, to any person", "Expat"},
		{"Redistribution and use in source and binary forms ... Neither the name of", "BSD-3-clause"},
		{"Redistribution and use in source\nand binary forms, with", "BSD-2-clause"},
		{"All rights reserved. You may look at it.", ""},
		{"", ""},
	} {
		if got := kind(tc.text); got != tc.want {
			t.Errorf("%.40q: %q, want %q", tc.text, got, tc.want)
		}
	}
	lines := copyrightLines("  Copyright (c) 2017 A\n\ncopyright notice, this list of\n© 2020 B\nCopyright [yyyy] [name of copyright owner]\n(c) 2001 C\nCopyright 2009 The Go Authors.\n")
	if want := []string{"Copyright (c) 2017 A", "© 2020 B", "(c) 2001 C", "Copyright 2009 The Go Authors."}; !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
}

// A module whose licence nobody has looked at stops the build.
func TestUnknownLicence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "LICENSE")
	if err := os.WriteFile(file, []byte("Ask me first."), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][]string{"unknown": {file}, "none": nil} {
		if err := stanza(&bytes.Buffer{}, func(string, string) {}, "vendor/x/*", "x v1", files); err == nil {
			t.Errorf("%s: shipped", name)
		}
	}
}

// tool finds a program; with CI set its absence is a failure.
func tool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%v: .ci/run should have installed it", err)
			}
			t.Skipf("needs Debian's %s, which this machine has not", name)
		}
	}
}

func sh(ctx context.Context, t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, name, args...)
	// GIT_DIR and its like (set in a hook of git's) would make git work in another repository than dir.
	own := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GIT_") })
	cmd.Dir, cmd.Env = dir, append(own, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// checkout copies the tree as it is now into a git repository with the tag v0.1.0,
// so that nobody's edits disturb the test, and git's part is tested too.
func checkout(t *testing.T) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains([]string{".git", "dist", ".cache"}, d.Name()):
			return filepath.SkipDir
		case d.Name() == ".git": // of a linked worktree: a file, and its copy would stand for that repository
			return nil
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, rel), 0o700)
		case !d.Type().IsRegular() || filepath.Ext(path) == ".test":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	station := filepath.Join(dir, "configs", "station.yaml")
	if !exists(station) {
		if err := os.WriteFile(station, []byte("station: line1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	who := []string{
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t",
		"GIT_AUTHOR_DATE=2026-11-22T12:00:00Z", "GIT_COMMITTER_DATE=2026-11-22T12:00:00Z", "GIT_CONFIG_GLOBAL=/dev/null",
	}
	sh(t.Context(), t, dir, who, "git", "init", "-q")
	sh(t.Context(), t, dir, who, "git", "add", "-A")
	sh(t.Context(), t, dir, who, "git", "commit", "-q", "-m", "a tree")
	sh(t.Context(), t, dir, who, "git", "tag", "v0.1.0")
	return dir
}

func control(t *testing.T, deb, field string) string {
	t.Helper()
	return strings.TrimSpace(sh(t.Context(), t, "", nil, "dpkg-deb", "-f", deb, field))
}

// TestPackage builds the packages twice in two folders, and installs, upgrades,
// removes and purges one with dpkg in a root of its own.
func TestPackage(t *testing.T) {
	tool(t, "git", "dpkg", "dpkg-deb")
	t.Setenv("GOFLAGS", "")
	t.Setenv("SOURCE_DATE_EPOCH", "")
	a := checkout(t)
	b := filepath.Join(t.TempDir(), "another-folder")
	sh(t.Context(), t, "", nil, "git", "clone", "-q", a, b)
	made := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		deb, err := build(t.Context(), options{root: a, out: filepath.Join(a, "dist"), arch: arch})
		if err != nil {
			t.Fatal(err)
		}
		if name := "provisiond_0.1.0-1_" + arch + ".deb"; filepath.Base(deb) != name {
			t.Errorf("the package is called %s, want %s", filepath.Base(deb), name)
		}
		if v := control(t, deb, "Version"); v != "0.1.0-1" {
			t.Errorf("version %s", v)
		}
		if v := control(t, deb, "Architecture"); v != arch {
			t.Errorf("architecture %s, want %s", v, arch)
		}
		made[arch] = deb
		t.Run("binary "+arch, func(t *testing.T) { checkBinary(t, deb, arch) })
	}
	deb := made[runtime.GOARCH]
	if deb == "" {
		t.Skipf("needs a machine that packages are made for, not %s", runtime.GOARCH)
	}
	t.Run("same bytes", func(t *testing.T) {
		again, err := build(t.Context(), options{root: b, out: t.TempDir(), arch: runtime.GOARCH})
		if err != nil {
			t.Fatal(err)
		}
		first, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := os.ReadFile(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("the same commit in another folder gives other bytes (%d and %d), %v", len(first), len(second), err)
		}
	})
	t.Run("dpkg", func(t *testing.T) { lifecycle(t, b, deb) })
}

func checkBinary(t *testing.T, deb, arch string) {
	dir := t.TempDir()
	sh(t.Context(), t, "", nil, "dpkg-deb", "-x", deb, dir)
	f, err := elf.Open(filepath.Join(dir, "usr/bin/provisiond"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	if f.Machine != want {
		t.Errorf("machine %v, want %v", f.Machine, want)
	}
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) != 0 || f.Section(".interp") != nil {
		t.Errorf("the binary wants libraries: %q, %v", libs, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "usr/share/doc/provisiond/copyright"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n", "\nFiles: *\n",
		"\nFiles: vendor/std/*\n", "\nFiles: vendor/go.bug.st/serial/*\n", "\nFiles: vendor/github.com/hashicorp/vault/api/*\n",
		"Cristian Maglie",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("copyright lacks %q", want)
		}
	}
	// Every licence that is named has its text.
	for _, m := range regexp.MustCompile(`(?m)^Files: .*\n(?:Copyright: .*\n(?: .*\n)*)License: (.*)$`).FindAllSubmatch(text, -1) {
		for _, name := range strings.Split(string(m[1]), " and ") {
			if !bytes.Contains(text, []byte("\n\nLicense: "+name+"\n ")) {
				t.Errorf("the text of %s is missing", name)
			}
		}
	}
}

// debRoot is an empty system for dpkg, with the packages that ours depends on.
type debRoot struct {
	t   *testing.T
	dir string
}

func newRoot(t *testing.T) *debRoot {
	t.Helper()
	r := &debRoot{t, t.TempDir()}
	for _, d := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "etc", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var status strings.Builder
	for _, p := range []string{"systemd", "udev"} { // Debian 12's
		status.WriteString("Package: " + p + "\nStatus: install ok installed\nMaintainer: t <t@t>\nArchitecture: all\nVersion: 252.38-1~deb12u1\nDescription: t\n\n")
	}
	r.write("var/lib/dpkg/status", status.String())
	r.write("var/lib/dpkg/available", "")
	return r
}

func (r *debRoot) path(name string) string { return filepath.Join(r.dir, name) }

func (r *debRoot) write(name, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *debRoot) read(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Error(err)
	}
	return string(b)
}

func (r *debRoot) dpkg(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	env := []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}
	args = append([]string{"--root=" + r.dir, "--force-script-chrootless", "--force-confdef", "--force-confold"}, args...)
	return sh(ctx, r.t, "", env, "dpkg", args...)
}

func lifecycle(t *testing.T, tree, deb string) {
	tool(t, "systemd-sysusers", "systemd-tmpfiles")
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs as root: dpkg gives files to root")
		}
		t.Skip("needs root, as dpkg does: sudo go test ./internal/debpkg")
	}
	r := newRoot(t)
	if out := r.dpkg("-i", deb); !strings.Contains(out, "not started") {
		t.Errorf("the installation does not say what comes next:\n%s", out)
	}
	for name, mode := range map[string]fs.FileMode{
		"usr/bin/provisiond": 0o755, "lib/systemd/system/provisiond.service": 0o644, "etc/provisiond": fs.ModeDir | 0o755,
		"etc/provisiond/recipes": fs.ModeDir | 0o755, "etc/provisiond/ports.d": fs.ModeDir | 0o755,
		"etc/provisiond/station.yaml": 0o644, "lib/udev/rules.d/60-provisiond.rules": 0o644,
		"usr/share/man/man1/provisiond.1.gz": 0o644, "usr/share/doc/provisiond/install.md": 0o644,
		"usr/share/doc/provisiond/examples/vault/keystore.yaml": 0o644,
		"var/spool/provisiond": fs.ModeDir | fs.ModeSetgid | 0o770, "etc/credstore.encrypted": fs.ModeDir | 0o700,
	} {
		st, err := os.Stat(r.path(name))
		if err != nil {
			t.Error(err)
			continue
		}
		own := st.Sys().(*syscall.Stat_t)
		if st.Mode() != mode || (own.Uid == 0) != !strings.HasPrefix(name, "var/spool") {
			t.Errorf("%s: %v of user %d, want %v", name, st.Mode(), own.Uid, mode)
		}
	}
	if !strings.Contains(r.read("etc/passwd"), "\nprovisiond:") && !strings.HasPrefix(r.read("etc/passwd"), "provisiond:") {
		t.Error("the user provisiond was not made")
	}
	if links, _ := filepath.Glob(r.path("etc/systemd/system/*.wants/*")); len(links) != 0 {
		t.Errorf("enabled without being asked: %q", links)
	}
	if out := sh(t.Context(), t, "", nil, r.path("usr/bin/provisiond"), "version"); !strings.Contains(out, "v0.1.0") {
		t.Errorf("the installed program says it is %q", out)
	}
	unitRuns(t, r)

	// An upgrade keeps what the administrator wrote, and shows what is new.
	const ours = "station: my-line\n"
	r.write("etc/provisiond/station.yaml", ours)
	r.write("var/lib/provisiond/journal.db", "evidence")
	f := filepath.Join(tree, "configs", "station.yaml")
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f, append(b, "# new in 0.2.0\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	newer, err := build(t.Context(), options{
		root: tree, out: t.TempDir(), arch: runtime.GOARCH, version: "0.2.0", epoch: "1795500000", binary: r.path("usr/bin/provisiond"),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.dpkg("-i", newer)
	if got := r.read("etc/provisiond/station.yaml"); got != ours {
		t.Errorf("the upgrade changed the configuration: %q", got)
	}
	if got := r.read("etc/provisiond/station.yaml.dpkg-dist"); !strings.HasSuffix(got, "# new in 0.2.0\n") {
		t.Errorf("the new example is not beside it: %q", got)
	}

	r.dpkg("-r", "provisiond")
	for _, gone := range []string{"usr/bin/provisiond", "lib/systemd/system/provisiond.service", "usr/share/doc/provisiond"} {
		if exists(r.path(gone)) {
			t.Errorf("%s is left after the removal", gone)
		}
	}
	if r.read("etc/provisiond/station.yaml") != ours {
		t.Error("the removal took the configuration")
	}
	out := r.dpkg("-P", "provisiond")
	if exists(r.path("etc/provisiond/station.yaml")) {
		t.Error("the purge left the configuration")
	}
	if r.read("var/lib/provisiond/journal.db") != "evidence" || !strings.Contains(out, "kept /var/lib/provisiond") {
		t.Errorf("the purge must keep the journal and say so:\n%s", out)
	}
}

// unitRuns: what the unit starts is where the package puts it.
func unitRuns(t *testing.T, r *debRoot) {
	t.Helper()
	unit := r.read("lib/systemd/system/provisiond.service")
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+) run --config (\S+)$`).FindStringSubmatch(unit)
	if m == nil {
		t.Fatalf("no ExecStart= in\n%s", unit)
	}
	for _, name := range m[1:] {
		if !exists(r.path(name)) {
			t.Errorf("the unit wants %s, which the package has not", name)
		}
	}
	for _, name := range regexp.MustCompile(`file://(/\S+)`).FindAllStringSubmatch(unit, -1) {
		if !exists(r.path(name[1])) {
			t.Errorf("the unit names %s, which the package has not", name[1])
		}
	}
}
