// Command provisiond turns virgin ESP32-family boards into locked products, one
// by one or as a station daemon, and can prove afterwards what it did.
//
// Exit codes are API: 0 done, 1 ERROR (the station), 2 a wrong flag,
// configuration, recipe or key file, 3 FAIL (the unit), 4 ABORTED, 10 the unit
// was refused before anything irreversible, 11 the unit is quarantined, 12 the
// keystore is unavailable, 13 the journal is missing, damaged or does not verify.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/ota"
	"github.com/provisiond/provisiond/provision/recipe"
)

type cli struct {
	Demo      demoCmd      `cmd:"" help:"Provision simulated boards with an embedded keystore: everything at once, nothing to set up."`
	Run       runCmd       `cmd:"" help:"The station daemon: many slots at once, with pages for operators."`
	Provision provisionCmd `cmd:"" help:"Provision one unit in the foreground."`
	Plan      planCmd      `cmd:"" help:"Show what would be written and burned; burns nothing."`
	Inspect   inspectCmd   `cmd:"" help:"Show chip, revision, MAC, flash, eFuses and security state."`
	Sim       simCmd       `cmd:"" help:"Run a simulated chip that any ESP tool can talk to."`
	Image     imageCmd     `cmd:"" help:"Encrypt, decrypt, sign, verify and describe image files; needs no device."`
	OTA       otaCmd       `cmd:"" name:"ota" help:"Updates for encrypted boards."`
	Journal   journalCmd   `cmd:"" help:"Make, show and verify a journal."`
	Keystore  keystoreCmd  `cmd:"" help:"Make and describe a local keystore."`
	Audit     auditCmd     `cmd:"" help:"Certificates, lot reports and reconciliation, for quality assurance."`
	People    peopleCmd    `cmd:"" help:"Keep the file of who may do what at a station."`
	Version   versionCmd   `cmd:"" help:"Show the version."`

	LogLevel string `help:"What goes to the log: debug, info, warn or error." enum:"debug,info,warn,error" default:"warn"`
	LogFile  string `help:"Log into this file instead of standard error." placeholder:"FILE"`
}

// app is what commands share.
type app struct {
	ctx            context.Context
	in             io.Reader
	out            io.Writer
	errOut         *console
	log            *zap.Logger
	json           bool // a script reads standard error
	observeForTest func(provision.Event)
}

// usageError is a wrong flag, configuration, recipe or key file.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// codeError carries an exit code that nothing else tells; its text was printed already if err is nil.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e *codeError) Unwrap() error { return e.err }

func main() {
	forbidCoreDumps()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, nil)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer, observe func(provision.Event)) (code int) {
	asJSON := slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
	con := &console{w: errOut}
	var c cli
	exited := -1
	parser, err := kong.New(&c, kong.Name("provisiond"),
		kong.Description("Factory provisioning for ESP32-family boards: a key per unit, pre-encrypted flash, release mode, a journal that proves it."),
		kong.Writers(out, con), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		return report(con, asJSON, err)
	}
	if len(args) == 0 { // somebody who does not know the commands yet
		parser.Stdout = con
		_, _ = parser.Parse([]string{"--help"})
		return provision.ExitUsage
	}
	kctx, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		return report(con, asJSON, &usageError{fmt.Errorf("%w; `%s --help` lists commands and flags", err, commandOf(err))})
	}
	log, closeLog, err := openLog(c.LogLevel, c.LogFile, con)
	if err != nil {
		return report(con, asJSON, err)
	}
	defer closeLog()
	a := &app{ctx: ctx, in: in, out: out, errOut: con, log: log, json: asJSON, observeForTest: observe}
	return report(con, asJSON, kctx.Run(a))
}

// commandOf names the command that a parse error is about, so that the reader
// is sent to the right help.
func commandOf(err error) string {
	var pe *kong.ParseError
	if errors.As(err, &pe) && pe.Context != nil && pe.Context.Selected() != nil {
		return pe.Context.Selected().FullPath()
	}
	return "provisiond"
}

// announceStop tells whoever pressed Ctrl-C that it was heard: a one-way step is
// finished first. The function that it returns ends the watch.
func (a *app) announceStop() (end func() bool) {
	return context.AfterFunc(a.ctx, func() {
		newline := ""
		if _, ok := terminal(a.errOut.w); ok {
			newline = "\n" // behind the ^C that the terminal echoed
		}
		_, _ = fmt.Fprintln(a.errOut, newline+"provisiond: stopping; a step that cannot be undone is finished first")
	})
}

func openLog(level, file string, errOut io.Writer) (*zap.Logger, func(), error) {
	lvl, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, nil, usage("--log-level: %w", err)
	}
	w := errOut
	done := func() {}
	if file != "" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, usage("--log-file: %w", err)
		}
		w, done = f, func() { _ = f.Close() }
	}
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(enc), zapcore.Lock(zapcore.AddSync(w)), lvl)
	log := zap.New(core)
	return log, func() { _ = log.Sync(); done() }, nil
}

// report prints an error and gives the exit code.
func report(w io.Writer, asJSON bool, err error) int {
	code := exitCode(err)
	var silent *codeError
	if err == nil || errors.As(err, &silent) && silent.err == nil {
		return code
	}
	if asJSON {
		body := map[string]any{"code": code, "message": err.Error()}
		var f *provision.Failure
		if errors.As(err, &f) {
			body["cause"], body["next_step"] = f.Cause, f.NextStep
			alone := *f
			alone.NextStep = ""
			body["message"] = alone.Error()
		}
		if r := ota.ReasonOf(err); r != "" {
			body["cause"], body["reason"] = provision.CauseRefused, r
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"error": body})
		return code
	}
	_, _ = fmt.Fprintln(w, "provisiond:", err)
	return code
}

func exitCode(err error) int {
	var (
		u  *usageError
		c  *codeError
		f  *provision.Failure
		r  *layout.Refusal
		re *recipe.Error
		rs recipe.Errors
		or *ota.Refusal
	)
	switch {
	case err == nil:
		return provision.ExitDone
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.Canceled) && (!errors.As(err, &f) || f.Cause == provision.CauseStation):
		return provision.ExitAborted
	case errors.As(err, &f):
		return f.ExitCode()
	case errors.As(err, &r):
		return provision.ExitRefused
	case errors.As(err, &or):
		return otaExit(or.Reason)
	case errors.As(err, &u), errors.As(err, &re), errors.As(err, &rs):
		return provision.ExitUsage
	case errors.Is(err, keystore.ErrUnavailable), errors.Is(err, keystore.ErrDamaged):
		return provision.ExitKeystore
	}
	return provision.ExitError
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	_, err := fmt.Fprintln(a.out, toolVersion())
	return err
}

// toolVersion names the program and its version, also for the journal.
func toolVersion() string {
	version := "(unknown)"
	if bi, ok := debug.ReadBuildInfo(); ok {
		version = bi.Main.Version
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				version += " " + s.Value
			}
		}
	}
	return "provisiond " + version
}
