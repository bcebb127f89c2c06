// Command debpkg builds the Debian packages: the static binary, the unit and what
// belongs to it, documentation, and the licences of everything that is linked in.
// The same commit gives the same bytes, on every machine and in every folder.
//
//	go run ./internal/debpkg                    # dist/provisiond_VERSION_ARCH.deb, amd64 and arm64
//	go run ./internal/debpkg -arch arm64 -lintian
//
// The version is the one that Go stamps into the binary from git: a tag v1.2.3 gives
// 1.2.3-1, a commit behind it 1.2.4~git…, which is older than 1.2.4. Without git say
// -version, and SOURCE_DATE_EPOCH for the time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

// nfpm is pinned here, and only here. Like the linter it is run from the module
// proxy, so that its dependencies stay out of our go.mod. From 2.46 on it needs
// modules (Windows packages) that not every mirror has.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0"

func main() {
	out := flag.String("out", "dist", "folder for the packages")
	arches := flag.String("arch", "amd64,arm64", "architectures, with commas between them")
	version := flag.String("version", "", "upstream version, where there is no git: 1.2.3")
	lint := flag.Bool("lintian", false, "let lintian look at the packages; it must be installed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, strings.Split(*arches, ","), *version, *lint); err != nil {
		fmt.Fprintln(os.Stderr, "debpkg:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, arches []string, version string, lint bool) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	for _, arch := range arches {
		name, err := build(ctx, options{root: root, out: out, arch: arch, version: version, epoch: os.Getenv("SOURCE_DATE_EPOCH")})
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		fmt.Println(name)
		if lint {
			if err := lintian(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// lintian holds the package to Debian's policy. What is overridden, and why, stands
// in debian/lintian-overrides.
func lintian(ctx context.Context, deb string) error {
	if _, err := exec.LookPath("lintian"); err != nil {
		return fmt.Errorf("%w: apt-get install lintian, or leave -lintian out", err)
	}
	cmd := exec.CommandContext(ctx, "lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", deb)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("no go.mod above this folder: run it inside the provisiond tree")
		}
		dir = filepath.Dir(dir)
	}
}
