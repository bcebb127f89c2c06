// Command check runs everything that must hold before a change lands: vet,
// generated files, the linter, builds for both station architectures, the ciphers'
// assembly for the other one, signing with tokens, and every test with the race
// detector and the fuzz seeds. It prints how many tests passed, failed and were
// skipped, and why those were skipped.
//
//	go run ./internal/check            # all
//	go run ./internal/check -only test # one step
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// linter is pinned here, and only here. It is run from the module proxy, so
// that its many dependencies stay out of our go.mod.
const linter = "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0"

type step struct {
	name string
	run  func(ctx context.Context) error
}

func main() {
	only := flag.String("only", "", "run one step: build, vet, generate, lint, assembly, tokens or test")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The tests come last: their closing lines end the output.
	steps := []step{{"build", build}, {"vet", vet}, {"generate", generate}, {"lint", lint}, {"assembly", assembly}, {"tokens", tokens}, {"test", test}}
	return runSteps(ctx, steps, only)
}

// runSteps goes on after a step that failed, so that a finding of the linter does
// not hide what the tests say. Without a build there is nothing to go on with.
func runSteps(ctx context.Context, steps []step, only string) error {
	ran := false
	var failed []error
	for _, s := range steps {
		if only != "" && only != s.name {
			continue
		}
		ran = true
		fmt.Printf("== %s\n", s.name)
		start := time.Now()
		if err := s.run(ctx); err != nil {
			fmt.Printf("== %s: FAILED, %s\n", s.name, time.Since(start).Round(time.Second))
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
			if s.name == "build" || ctx.Err() != nil {
				break
			}
			continue
		}
		fmt.Printf("== %s: ok, %s\n", s.name, time.Since(start).Round(time.Second))
	}
	if !ran {
		return fmt.Errorf("there is no step %q: write build, vet, generate, lint, assembly, tokens or test", only)
	}
	return errors.Join(failed...)
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

func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// build proves that the shipped binary needs no C on both architectures. The flags
// are those of internal/debpkg, so that its test finds everything compiled.
func build(ctx context.Context) error {
	for _, arch := range []string{"amd64", "arm64"} {
		env := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch}
		if err := command(ctx, env, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", os.DevNull, "./cmd/provisiond"); err != nil {
			return fmt.Errorf("linux/%s: %w", arch, err)
		}
	}
	return nil
}

func vet(ctx context.Context) error { return command(ctx, nil, "go", "vet", "./...") }

// generate runs the generators and demands that they change nothing.
func generate(ctx context.Context) error {
	inGit := exec.CommandContext(ctx, "git", "rev-parse", "--is-inside-work-tree").Run() == nil
	if !inGit {
		fmt.Println("no git checkout: generated files are not compared")
		return nil
	}
	before, err := gitState(ctx)
	if err != nil {
		return err
	}
	if err := command(ctx, nil, "go", "generate", "./..."); err != nil {
		return err
	}
	after, err := gitState(ctx)
	if err != nil {
		return err
	}
	if before != after {
		_ = command(ctx, nil, "git", "--no-pager", "diff", "--stat")
		return errors.New("generated files are out of date: commit what `go generate ./...` writes")
	}
	return nil
}

func gitState(ctx context.Context) (string, error) {
	status, err := exec.CommandContext(ctx, "git", "status", "--porcelain").Output()
	if err != nil {
		return "", err
	}
	diff, err := exec.CommandContext(ctx, "git", "diff").Output()
	return string(status) + string(diff), err
}

func lint(ctx context.Context) error {
	return command(ctx, nil, "go", "run", linter, "run", "./...")
}

// ciphers are the packages with assembly.
var ciphers = []string{"./esp/flashcrypt"}

// assembly tests what another processor than this one would run: the assembly for
// arm64 under qemu's user mode, and the portable code that stands in for both.
func assembly(ctx context.Context) error {
	arm := []string{"GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "PROVISIOND_WANT_ASM=1"}
	errs := []error{
		command(ctx, arm, "go", append([]string{"vet"}, ciphers...)...),
		command(ctx, nil, "go", append([]string{"test", "-tags", "purego"}, ciphers...)...),
	}
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err == nil {
		errs = append(errs, command(ctx, arm, "go", append([]string{"test", "-exec", qemu}, ciphers...)...))
	} else {
		errs = append(errs, missing("qemu-aarch64-static", "qemu-user-static", "the arm64 assembly is built and not run"))
	}
	return errors.Join(errs...)
}

// withTokens are the packages that have more in them with the tag pkcs11.
var withTokens = []string{"./internal/pkcs11key/...", "./cmd/provisiond"}

// tokens tests what only a build with cgo has: keys in PKCS #11 tokens, with
// SoftHSM as the token.
func tokens(ctx context.Context) error {
	if !haveC() {
		return missing("C compiler", "gcc libc6-dev", "the PKCS #11 code is not built")
	}
	cgo := []string{"CGO_ENABLED=1"}
	errs := []error{
		command(ctx, cgo, "go", append([]string{"vet", "-tags", "pkcs11"}, withTokens...)...),
		command(ctx, cgo, "go", "run", linter, "run", "--build-tags", "pkcs11", withTokens[0]),
	}
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		return errors.Join(append(errs, missing("softhsm2", "softhsm2", "the PKCS #11 code is built and not run"))...)
	}
	args := []string{"test", "-tags", "pkcs11", "-count=1", "-v", "-run", "Token|PKCS11|URI"}
	return errors.Join(append(errs, command(ctx, cgo, "go", append(args, withTokens...)...))...)
}

// missing is an error in CI and a word elsewhere.
func missing(what, packages, so string) error {
	if os.Getenv("CI") != "" {
		return fmt.Errorf("no %s: apt-get install %s", what, packages)
	}
	fmt.Printf("no %s: %s\n", what, so)
	return nil
}

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
}

type tally struct {
	passed, failed, skipped int
	output                  map[string][]string // per package or test, until it has passed
	reasons                 []string
}

// heavy are the runs that would take too long with the race detector, or beside
// others: the fault table at thousands of its points, and a whole shift.
var heavy = [][]string{
	{"./provision", "-run", "TestFaultTable", "-args", "-every", "23"},
	{"./internal/shift", "-args", "-units", "2000", "-slots", "64", "-outage", "1m"},
}

// test runs all tests. The counts of all runs are added up.
func test(ctx context.Context) error {
	t := tally{output: map[string][]string{}}
	err := t.run(ctx, append(raceArgs(), "./...")...)
	for _, h := range heavy {
		fmt.Println("-- go test", strings.Join(h, " "))
		err = errors.Join(err, t.run(ctx, append([]string{"-count=1"}, h...)...))
	}
	sort.Strings(t.reasons)
	for _, r := range t.reasons {
		fmt.Println("skipped:", r)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return err
}

// haveC reports whether there is a C compiler.
func haveC() bool {
	_, errCC := exec.LookPath("cc")
	_, errGCC := exec.LookPath("gcc")
	return errCC == nil || errGCC == nil
}

func raceArgs() []string {
	if haveC() {
		return []string{"-race"}
	}
	fmt.Println("no C compiler: the race detector is off")
	return nil
}

func (t *tally) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-timeout", "40m"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := t.read(out)
	return errors.Join(readErr, cmd.Wait())
}

func (t *tally) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), 8<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Println(lines.Text()) // a build error, which go test prints as it is
			continue
		}
		t.take(e)
	}
	return lines.Err()
}

func (t *tally) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		t.output[key] = append(t.output[key], e.Output)
	case "pass", "skip", "fail":
		t.end(e, key)
	}
}

func (t *tally) end(e event, key string) {
	lines := t.output[key]
	delete(t.output, key)
	if e.Action == "fail" {
		fmt.Print(strings.Join(lines, ""))
	}
	for _, l := range lines { // figures that a reader of the run should see
		if _, text, ok := strings.Cut(l, "result: "); ok && e.Action == "pass" {
			fmt.Printf("%s: %s", e.Test, text)
		}
	}
	if e.Test == "" {
		if e.Action != "fail" && len(lines) > 0 {
			fmt.Print(lines[len(lines)-1]) // "ok  package  time"
		}
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
	case "skip":
		t.skipped++
		t.reasons = append(t.reasons, key+": "+reason(lines))
	}
}

// reason finds what t.Skip was given: the line that names a file.
func reason(lines []string) string {
	for _, l := range lines {
		if _, text, ok := strings.Cut(strings.TrimSpace(l), ".go:"); ok {
			return text
		}
	}
	return "no reason given"
}
