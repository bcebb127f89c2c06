package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maintainer = "provisiond maintainers <provisiond@users.noreply.github.com>"
	revision   = "1" // of the packaging, behind the upstream version
)

type options struct {
	root    string // of the module
	out     string // folder for the package
	arch    string // amd64 or arm64, for Go and for Debian
	version string // upstream version; what git says without it
	epoch   string // SOURCE_DATE_EPOCH; the commit's time without it
	binary  string // built already
}

// build makes one package and gives its name.
func build(ctx context.Context, o options) (string, error) {
	if !slices.Contains([]string{"amd64", "arm64"}, o.arch) {
		return "", errors.New("stations are amd64 or arm64")
	}
	work, err := os.MkdirTemp("", "debpkg")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	binary := o.binary
	if binary == "" {
		binary = filepath.Join(work, "provisiond")
		if err := compile(ctx, o, binary); err != nil {
			return "", err
		}
	}
	version, at, err := identity(binary, o)
	if err != nil {
		return "", err
	}
	p := &pkg{options: o, work: work, version: version + "-" + revision, at: at}
	if err := p.contents(ctx, binary); err != nil {
		return "", err
	}
	return p.pack(ctx)
}

// goEnv is the environment of all Go commands: flags and workspaces of whoever
// builds must not change the bytes.
func goEnv(arch string) []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=", "GODEBUG=")
}

func compile(ctx context.Context, o options, binary string) error {
	stamp := "true"
	if o.version != "" {
		stamp = "auto"
	}
	// internal/check builds with the same -trimpath and -ldflags, so that the two
	// share what is compiled.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-buildvcs="+stamp, "-o", binary, "./cmd/provisiond")
	cmd.Dir, cmd.Env = o.root, goEnv(o.arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// identity asks the binary who it is, so that the package cannot say otherwise.
func identity(binary string, o options) (version string, at time.Time, err error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", at, err
	}
	if o.epoch != "" {
		sec, err := strconv.ParseInt(o.epoch, 10, 64)
		if err != nil {
			return "", at, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		at = time.Unix(sec, 0).UTC()
	} else {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				if at, err = time.Parse(time.RFC3339, s.Value); err != nil {
					return "", at, err
				}
			}
		}
	}
	if at.IsZero() {
		return "", at, errors.New("there is no git to say when: set SOURCE_DATE_EPOCH")
	}
	version = o.version
	if version == "" {
		version, err = debianVersion(info.Main.Version)
	} else if !upstream.MatchString(version) {
		err = fmt.Errorf("-version %q: write 1.2.3", version)
	}
	return version, at.UTC(), err
}

var (
	upstream = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~]*$`)
	release  = regexp.MustCompile(`^v([0-9]+\.[0-9]+\.[0-9]+)(?:-([0-9A-Za-z.-]+))?(?:\+(dirty))?$`)
	// The end of Go's pseudo-versions: time and commit, behind the tag before it.
	pseudo = regexp.MustCompile(`^(?:(?:[0-9A-Za-z-]+\.)*0\.)?([0-9]{14})-([0-9a-f]{12})$`)
)

// debianVersion turns Go's version of the main module into one that dpkg sorts alike.
func debianVersion(v string) (string, error) {
	m := release.FindStringSubmatch(v)
	if m == nil {
		return "", fmt.Errorf("git says no version (%q): give -version", v)
	}
	out := m[1]
	switch c := pseudo.FindStringSubmatch(m[2]); {
	case c != nil:
		out += "~git" + c[1] + "." + c[2]
	case m[2] != "":
		out += "~" + strings.ReplaceAll(m[2], "-", ".")
	}
	if m[3] != "" {
		out += "+" + m[3]
	}
	return out, nil
}

// pkg is a package in the making.
type pkg struct {
	options
	work    string
	version string
	at      time.Time
	items   []item
}

// item is one file, as nfpm wants it.
type item struct {
	Src  string   `yaml:"src,omitempty"`
	Dst  string   `yaml:"dst"`
	Type string   `yaml:"type,omitempty"`
	Info fileInfo `yaml:"file_info"`
}

type fileInfo struct {
	Mode  uint32 `yaml:"mode"`
	Owner string `yaml:"owner"`
	Group string `yaml:"group"`
	Mtime string `yaml:"mtime"`
}

func (p *pkg) add(src, dst, kind string, mode uint32) {
	p.items = append(p.items, item{src, dst, kind, fileInfo{mode, "root", "root", p.at.Format(time.RFC3339)}})
}

// made adds a file that is written here.
func (p *pkg) made(dst string, content []byte) error {
	src := filepath.Join(p.work, strings.ReplaceAll(strings.TrimPrefix(dst, "/"), "/", "_"))
	if err := os.WriteFile(src, content, 0o600); err != nil {
		return err
	}
	p.add(src, dst, "", 0o644)
	return nil
}

func (p *pkg) source(name string) string { return filepath.Join(p.root, filepath.FromSlash(name)) }

const doc = "/usr/share/doc/provisiond/"

func (p *pkg) contents(ctx context.Context, binary string) error {
	p.add(binary, "/usr/bin/provisiond", "", 0o755)
	for _, dir := range []string{"", "/recipes", "/ports.d"} { // as the example configuration has them
		p.add("", "/etc/provisiond"+dir, "dir", 0o755)
	}
	for src, dst := range map[string]string{
		"systemd/provisiond.service":               "/lib/systemd/system/provisiond.service",
		"systemd/provisiond-ota.service":           "/lib/systemd/system/provisiond-ota.service",
		"systemd/provisiond.sysusers":              "/usr/lib/sysusers.d/provisiond.conf",
		"systemd/provisiond.tmpfiles":              "/usr/lib/tmpfiles.d/provisiond.conf",
		"systemd/60-provisiond.rules":              "/lib/udev/rules.d/60-provisiond.rules",
		"internal/debpkg/debian/lintian-overrides": "/usr/share/lintian/overrides/provisiond",
		"README.md": doc + "README.md",
	} {
		p.add(p.source(src), dst, "", 0o644)
	}
	// The configuration is the administrator's: dpkg asks before it touches it.
	if station := p.source("configs/station.yaml"); exists(station) {
		p.add(station, "/etc/provisiond/station.yaml", "config", 0o644)
	}
	for _, dir := range []string{"docs", "configs"} {
		if err := p.tree(dir); err != nil {
			return err
		}
	}
	man, err := os.ReadFile(p.source("internal/debpkg/debian/provisiond.1"))
	if err != nil {
		return err
	}
	man = bytes.ReplaceAll(man, []byte("@VERSION@"), []byte(p.version))
	man = bytes.ReplaceAll(man, []byte("@DATE@"), []byte(p.at.Format(time.DateOnly)))
	copyright, err := copyrights(ctx, p.root, p.arch)
	if err != nil {
		return err
	}
	if err := p.made(doc+"copyright", copyright); err != nil {
		return err
	}
	for dst, text := range map[string][]byte{
		"/usr/share/man/man1/provisiond.1.gz": man,
		doc + "changelog.Debian.gz":           p.changelog(),
	} {
		gz, err := compressed(text)
		if err != nil {
			return err
		}
		if err := p.made(dst, gz); err != nil {
			return err
		}
	}
	return nil
}

// tree adds docs/ as it is and configs/ as examples, without Go sources.
func (p *pkg) tree(dir string) error {
	to := doc
	if dir == "configs" {
		to += "examples/"
	}
	top := p.source(dir)
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		switch filepath.Ext(path) {
		case ".md", ".yaml", ".yml", ".hcl", ".csv", ".json":
			rel, err := filepath.Rel(top, path)
			p.add(path, to+filepath.ToSlash(rel), "", 0o644)
			return err
		}
		return nil
	})
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// changelog is Debian's form of "see git": one entry for this build.
func (p *pkg) changelog() []byte {
	return fmt.Appendf(nil, "provisiond (%s) unstable; urgency=medium\n\n  * Built from the project's own sources; the history is in git.\n\n -- %s  %s\n",
		p.version, maintainer, p.at.Format(time.RFC1123Z))
}

// compressed is gzip without a name and a time.
func compressed(text []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}

const description = `factory provisioning station for ESP32-family boards
 provisiond turns virgin ESP32-family boards into locked products: it makes a
 flash-encryption key for each board, stores it, writes images that were
 encrypted on the host, burns the eFuses, sets release mode, and can prove
 afterwards what it did.`

// pack lets nfpm write the package.
func (p *pkg) pack(ctx context.Context) (string, error) {
	slices.SortFunc(p.items, func(a, b item) int { return strings.Compare(a.Dst, b.Dst) })
	scripts := map[string]string{}
	for key, name := range map[string]string{"postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"} {
		scripts[key] = p.source("internal/debpkg/debian/" + name)
	}
	config, err := yaml.Marshal(map[string]any{
		"name": "provisiond", "arch": p.arch, "platform": "linux",
		"version": strings.TrimSuffix(p.version, "-"+revision), "version_schema": "none", "release": revision,
		"section": "electronics", "priority": "optional", "maintainer": maintainer,
		"description": description,
		"depends":     []string{"systemd (>= 252)", "udev (>= 252)"},
		"mtime":       p.at.Format(time.RFC3339),
		"contents":    p.items, "scripts": scripts,
		"deb": map[string]any{"compression": "gzip"},
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(p.work, "nfpm.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return "", err
	}
	if err := os.MkdirAll(p.out, 0o750); err != nil {
		return "", err
	}
	deb := filepath.Join(p.out, fmt.Sprintf("provisiond_%s_%s.deb", p.version, p.arch))
	cmd := exec.CommandContext(ctx, "go", "run", nfpm, "package", "--config", file, "--packager", "deb", "--target", deb)
	cmd.Dir = p.root
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "SOURCE_DATE_EPOCH="+strconv.FormatInt(p.at.Unix(), 10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("nfpm: %w\n%s", err, out)
	}
	return deb, nil
}
