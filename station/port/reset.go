package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/rom"
)

// CommandReset resets a board by a program: a relay, a jig, a hub that switches
// power. It is for ports without DTR and RTS, and for boards whose adapter does
// not wire them.
//
// The program runs with Args and one more argument, "download" or "run". It
// must have done it when it ends, with exit status 0. PROVISIOND_PORT holds the
// port's name and PROVISIOND_ATTEMPT the number of the attempt, from 1. Of the
// daemon's environment it sees only PATH, HOME, LANG, LC_ALL, TZ and TMPDIR: the
// rest may hold credentials. It must not open the port, which is locked.
type CommandReset struct {
	Program string
	Args    []string
}

// Download resets the chip into its loader.
func (c CommandReset) Download(ctx context.Context, p rom.Port, attempt int) error {
	return c.run(ctx, p, "download", attempt)
}

// Run resets the chip into its application.
func (c CommandReset) Run(ctx context.Context, p rom.Port) error {
	return c.run(ctx, p, "run", 0)
}

// resetEnv are the variables that a reset program inherits.
var resetEnv = []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"}

func (c CommandReset) run(ctx context.Context, p rom.Port, what string, attempt int) error {
	if c.Program == "" {
		return errors.New("no reset program is set: give --reset-command PROG")
	}
	// What the chip says between here and its reset is still read. Only the
	// ROM's banner marks the reset.
	if err := p.Discard(ctx); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, c.Program, append(append([]string{}, c.Args...), what)...)
	cmd.Env = append(cmd.Env,
		"PROVISIOND_PORT="+p.Info().Name,
		fmt.Sprintf("PROVISIOND_ATTEMPT=%d", attempt+1))
	for _, key := range resetEnv {
		if v, ok := os.LookupEnv(key); ok {
			cmd.Env = append(cmd.Env, key+"="+v)
		}
	}
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	killWithChildren(cmd)
	// A child of the program that escaped keeps the pipe open.
	cmd.WaitDelay = 50 * time.Millisecond
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case cmd.Process == nil:
		return fmt.Errorf("start reset program: %w: check --reset-command", err)
	}
	return fmt.Errorf("reset program %s: %w%s", strings.Join(cmd.Args, " "), err, out.said())
}

// tail keeps the end of a program's output.
type tail struct {
	b   []byte
	cut bool
}

const maxTail = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - maxTail; n > 0 {
		t.b, t.cut = t.b[:copy(t.b, t.b[n:])], true
	}
	return len(p), nil
}

func (t *tail) said() string {
	s := bytes.TrimSpace(t.b)
	switch {
	case len(s) == 0:
		return "; it printed nothing"
	case t.cut:
		return fmt.Sprintf("; the end of what it printed: %q", s)
	}
	return fmt.Sprintf("; it printed %q", s)
}

// OperatorReset has a person press the board's buttons. Prompt shows what to do,
// for example "/dev/ttyUSB0: press and release EN", and returns when the person
// says that it is done.
type OperatorReset struct {
	Prompt func(ctx context.Context, text string) error
}

// Download asks for a reset into the loader.
func (o OperatorReset) Download(ctx context.Context, p rom.Port, attempt int) error {
	text := "hold BOOT (IO0 low), press and release EN (RESET), release BOOT"
	if attempt > 0 {
		text = fmt.Sprintf("the chip does not answer; attempt %d: %s", attempt+1, text)
	}
	return o.ask(ctx, p, text)
}

// Run asks for a reset into the application.
func (o OperatorReset) Run(ctx context.Context, p rom.Port) error {
	return o.ask(ctx, p, "release BOOT (IO0 high), press and release EN (RESET)")
}

func (o OperatorReset) ask(ctx context.Context, p rom.Port, text string) error {
	if o.Prompt == nil {
		return errors.New("nobody can be asked to reset the board: give --reset-command PROG, or run at a terminal")
	}
	if err := p.Discard(ctx); err != nil {
		return err
	}
	if err := o.Prompt(ctx, p.Info().Name+": "+text); err != nil {
		return fmt.Errorf("reset by hand: %w", err)
	}
	return nil
}
