// Package hook runs a program of the factory before and after each unit: for a
// stack light, a jig, an interlock of the line.
//
// What it promises:
//
//   - The program is started as it is named, without a shell, with one JSON
//     document on its standard input and an environment that holds no
//     credentials (docs/factory.md).
//   - It has a time limit; at its end the whole process group is killed. What it
//     prints is bounded.
//   - A before hook that ends with another exit status than 0 refuses the unit,
//     and its text is the reason. Before runs before anything is done to the
//     board, so a refusal costs nothing.
//   - An after hook changes no verdict. Its failure is a warning.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/provisiond/provisiond/provision"
)

// Schema names the form of the document on the program's standard input.
const Schema = "provisiond.hook/1"

// Limits of a hook.
const (
	DefaultTimeout = 10 * time.Second
	MaxTimeout     = 5 * time.Minute
	MaxAfter       = 30 * time.Second // of an after hook: the slot waits for it
	MaxText        = 2048             // bytes that are kept of each of stdout and stderr

	// leftover is how long a hook that ended may keep its output open through a
	// child that left its process group.
	leftover = 50 * time.Millisecond
)

// Config is the part `hooks` of a station's configuration.
type Config struct {
	// Before is run before each unit. It may refuse the unit.
	Before *Command `yaml:"before,omitempty"`
	// After is run after each unit, with its verdict.
	After *Command `yaml:"after,omitempty"`
}

// Command is a program with its arguments. There is no shell: nothing in them is
// expanded.
type Command struct {
	// Program is an absolute path.
	Program string `yaml:"program"`
	// Args are passed on as they are.
	Args []string `yaml:"args,omitempty"`
	// Timeout is how long one run may take; 10s if it is left out, at most 5m, and 30s after
	// a unit.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// Validate checks what can be checked without running anything. Its errors begin
// with the path of the field below the one that holds the Config.
func (c Config) Validate() error {
	return errors.Join(c.Before.validate("before", MaxTimeout), c.After.validate("after", MaxAfter))
}

func (c *Command) validate(field string, most time.Duration) error {
	switch {
	case c == nil:
		return nil
	case c.Program == "":
		return fmt.Errorf("%s.program: is missing; name the program by its absolute path, or leave %s out", field, field)
	case !filepath.IsAbs(c.Program):
		return fmt.Errorf("%s.program: %q is no absolute path; the daemon's working directory is /", field, c.Program)
	case strings.ContainsRune(c.Program, 0) || strings.ContainsRune(strings.Join(c.Args, ""), 0):
		return fmt.Errorf("%s: program and args cannot hold a zero byte", field)
	case c.Timeout < 0 || c.Timeout > most:
		return fmt.Errorf("%s.timeout: %s is not between 0 and %s", field, c.Timeout, most)
	}
	return nil
}

// Unit is what a hook is told. Members that are not known yet are empty.
type Unit struct {
	Station  string `json:"station"`
	Slot     string `json:"slot"`
	Port     string `json:"port"`
	Lot      string `json:"lot"`
	Operator string `json:"operator"`
	Recipe   string `json:"recipe"`
	Serial   string `json:"serial"`
	MAC      string `json:"mac"`
}

// document is what stands on the program's standard input.
type document struct {
	Schema string  `json:"schema"`
	Phase  string  `json:"phase"`
	Unit   Unit    `json:"unit"`
	Result *Result `json:"result,omitempty"`
}

// Result is how the unit's run ended, for an after hook.
type Result struct {
	Verdict        provision.Verdict `json:"verdict"`
	Cause          provision.Cause   `json:"cause"`
	Reason         string            `json:"reason"`
	NextStep       string            `json:"next_step"`
	Simulated      bool              `json:"simulated"`
	Job            string            `json:"job"`
	KeyFingerprint string            `json:"key_fingerprint"`
	ElapsedMS      int64             `json:"elapsed_ms"`
}

// ResultOf takes over what an after hook is told of a result.
func ResultOf(r *provision.Result) Result {
	return Result{
		Verdict: r.Verdict, Cause: r.Cause, Reason: r.Reason, NextStep: r.NextStep, Simulated: r.Simulated,
		Job: r.Job, KeyFingerprint: r.KeyFingerprint, ElapsedMS: r.ElapsedMS,
	}
}

// RunBefore runs the before hook, if there is one. The error is a
// *provision.Failure: CauseRefused if the program says no, CauseStation if it
// could not be asked (it does not start, takes too long, or was killed), and
// CauseCancelled if ctx ended. With every one of them nothing was done to the
// unit, and nothing must be.
func (c Config) RunBefore(ctx context.Context, u Unit) error {
	if c.Before == nil {
		return nil
	}
	said, err := c.Before.run(ctx, document{Schema: Schema, Phase: "before", Unit: u})
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &provision.Failure{
			Cause: provision.CauseCancelled, Reason: "stopped while the before hook ran", NextStep: "start the unit again", Err: ctx.Err(),
		}
	case errors.As(err, &exit) && exit.Exited():
		reason := said.reason()
		if reason == "" {
			reason = fmt.Sprintf("it ended with %s and printed nothing", exit.ProcessState)
		}
		return &provision.Failure{
			Cause: provision.CauseRefused, Reason: "the before hook refused the unit: " + reason,
			NextStep: "do what the hook says, or ask who looks after " + filepath.Base(c.Before.Program),
		}
	}
	return &provision.Failure{
		Cause: provision.CauseStation, Reason: "the before hook did not answer",
		NextStep: fmt.Sprintf("run %s by hand; its standard input is described in docs/factory.md", c.Before.Program),
		Err:      said.explain(err),
	}
}

// RunAfter runs the after hook, if there is one. Its error is for a warning: the
// verdict stands, and is in the journal.
func (c Config) RunAfter(ctx context.Context, u Unit, r Result) error {
	if c.After == nil {
		return nil
	}
	said, err := c.After.run(ctx, document{Schema: Schema, Phase: "after", Unit: u, Result: &r})
	if err != nil {
		return fmt.Errorf("after hook %s: %w", c.After.Program, said.explain(err))
	}
	return nil
}

// errTimeout is the cause of a context whose end is the hook's own limit.
var errTimeout = errors.New("it took too long")

// run starts the program and waits for its end.
func (c *Command) run(ctx context.Context, d document) (said *output, err error) {
	said = &output{}
	in, err := json.Marshal(d)
	if err != nil {
		return said, err
	}
	limit := c.Timeout
	if limit == 0 {
		limit = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Program, c.Args...)
	cmd.Dir = "/"
	cmd.Env = environment(d)
	cmd.Stdin = bytes.NewReader(append(in, '\n'))
	cmd.Stdout, cmd.Stderr = &said.out, &said.err
	killWithChildren(cmd)
	cmd.WaitDelay = leftover
	err = cmd.Run()
	switch {
	case err == nil:
		return said, nil
	case cmd.Process == nil:
		return said, fmt.Errorf("it cannot be started: %w", err)
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), errTimeout):
		return said, fmt.Errorf("%w: %s have passed, and it was killed with its children", errTimeout, limit)
	case errors.Is(err, exec.ErrWaitDelay):
		return said, nil // it ended well; only a child of it still held its output
	}
	return said, err
}

// inherited are the variables that a hook sees of the daemon's environment: the
// rest may hold credentials (the same rule as for a reset command).
var inherited = []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"}

func environment(d document) []string {
	env := []string{
		"PROVISIOND_HOOK=" + d.Phase,
		"PROVISIOND_STATION=" + withoutZero(d.Unit.Station),
		"PROVISIOND_SLOT=" + withoutZero(d.Unit.Slot),
	}
	if d.Result != nil {
		env = append(env, "PROVISIOND_VERDICT="+string(d.Result.Verdict))
	}
	for _, key := range inherited {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+v)
		}
	}
	return env
}

func withoutZero(s string) string { return strings.ReplaceAll(s, "\x00", "") }

// output is what a program printed.
type output struct{ out, err head }

// reason is the text of a refusal: what stands on standard output, or else on
// standard error.
func (o *output) reason() string {
	if s := o.out.text(); s != "" {
		return s
	}
	return o.err.text()
}

func (o *output) explain(err error) error {
	if err == nil {
		return nil
	}
	if s := o.reason(); s != "" {
		return fmt.Errorf("%w; it printed %q", err, s)
	}
	return fmt.Errorf("%w; it printed nothing", err)
}

// head keeps the beginning of a text: a reason stands first.
type head struct {
	b   []byte
	cut bool
}

func (h *head) Write(p []byte) (int, error) {
	keep := min(len(p), MaxText-len(h.b))
	h.b = append(h.b, p[:keep]...)
	h.cut = h.cut || keep < len(p)
	return len(p), nil
}

// text is what was printed, on one line and with nothing in it that a screen or
// the journal would stumble over.
func (h *head) text() string {
	b := h.b
	if h.cut {
		b = trimRune(b)
	}
	clean := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "�"))
	s := strings.Join(strings.Fields(clean), " ")
	if h.cut {
		s += " …"
	}
	return s
}

// trimRune takes away a character that was cut in two.
func trimRune(b []byte) []byte {
	for i := 1; i <= 3 && i <= len(b); i++ {
		if c := b[len(b)-i]; c >= 0xc0 {
			return b[:len(b)-i]
		} else if c < 0x80 {
			break
		}
	}
	return b
}
