package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

// deviceFlags say how a board is reached.
type deviceFlags struct {
	Port         string `help:"The board: a tty, socket://host:port, rfc2217://host:port or sim://CHIP." required:"" placeholder:"P"`
	Reset        string `help:"How the board is reset: default (the port's DTR and RTS) or none." enum:"default,none" default:"default"`
	ResetCommand string `help:"A program that resets the board; it is called with one argument, download or run." placeholder:"PROG"`
	Trace        string `help:"Write every frame of the line, without key bytes, into this file." placeholder:"FILE"`
}

// device is an opened board.
type device struct {
	line  provision.Line
	trace func(rom.TraceEvent)
	close func()
}

// open opens the port and finds a way to reset the board.
func (d deviceFlags) open(a *app) (*device, error) { return d.openWith(a, d.resetter) }

func (d deviceFlags) openWith(a *app, resetter func(*app, port.Port) (rom.Resetter, error)) (*device, error) {
	if _, err := port.Parse(d.Port); err != nil {
		return nil, usage("--port: %w", err)
	}
	if d.ResetCommand != "" {
		if _, err := exec.LookPath(d.ResetCommand); err != nil {
			return nil, usage("--reset-command: %w; name a program that can be run, with its path", err)
		}
	}
	p, err := port.Open(a.ctx, d.Port, port.Options{})
	if err != nil {
		next := "check cable and power of the adapter, and the port's name"
		if errors.Is(err, port.ErrBusy) {
			next = "close the program that has the port, or name another port"
		}
		return nil, &provision.Failure{Cause: provision.CauseStation, Reason: "the port cannot be opened", NextStep: next, Err: err}
	}
	out := &device{close: func() { _ = p.Close() }}
	reset, err := resetter(a, p)
	if err != nil {
		out.close()
		return nil, err
	}
	out.line = provision.Line{Port: p, Reset: reset}
	trace, done, err := openTrace(a, d.Trace)
	if err != nil {
		out.close()
		return nil, err
	}
	out.trace = trace
	out.close = func() { done(); _ = p.Close() }
	return out, nil
}

// resetter picks a way to reset that this port has. Nothing is guessed: a port
// without lines needs a program, or a person at a terminal.
func (d deviceFlags) resetter(a *app, p port.Port) (rom.Resetter, error) {
	switch {
	case d.ResetCommand != "":
		return port.CommandReset{Program: d.ResetCommand}, nil
	case d.Reset == "default" && p.Info().USBSerial:
		return rom.USBReset{}, nil
	case d.Reset == "default" && p.Info().Lines:
		return rom.AutoReset{}, nil
	}
	if _, ok := terminal(a.in); ok {
		return port.OperatorReset{Prompt: prompter(a)}, nil
	}
	why := "--reset none was given"
	if d.Reset == "default" {
		why = fmt.Sprintf("%s carries no DTR and RTS", d.Port)
	}
	return nil, &provision.Failure{
		Cause: provision.CauseRefused, Reason: why + ", and the board has to be reset",
		NextStep: "give --reset-command PROG, or run it at a terminal where an operator can press the buttons",
	}
}

// prompter asks the operator and waits for Enter or the end of ctx.
func prompter(a *app) func(ctx context.Context, text string) error {
	lines := make(chan error)
	var once sync.Once
	return func(ctx context.Context, text string) error {
		_, _ = fmt.Fprintf(a.errOut, "\n%s, then press Enter: ", text)
		once.Do(func() {
			go func() {
				r := bufio.NewReader(a.in)
				for {
					_, err := r.ReadString('\n')
					lines <- err
					if err != nil {
						return
					}
				}
			}()
		})
		select {
		case err := <-lines:
			if errors.Is(err, io.EOF) {
				return usage("the terminal was closed while an operator was needed")
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func openTrace(a *app, file string) (func(rom.TraceEvent), func(), error) {
	if file == "" {
		return traceToLog(a.log), func() {}, nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, usage("--trace: %w", err)
	}
	w := bufio.NewWriter(f)
	var mu sync.Mutex
	began := time.Now()
	toLog := traceToLog(a.log)
	return func(e rom.TraceEvent) {
			toLog(e)
			mu.Lock()
			defer mu.Unlock()
			_, _ = fmt.Fprintf(w, "%9.4f %-2v %-18s %4d  %s\n", time.Since(began).Seconds(), e.Direction, e.Op, e.Length, e.Summary)
		}, func() {
			mu.Lock()
			defer mu.Unlock()
			_ = w.Flush()
			_ = f.Close()
		}, nil
}

func traceToLog(log *zap.Logger) func(rom.TraceEvent) {
	return func(e rom.TraceEvent) {
		log.Debug("frame", zap.Stringer("direction", e.Direction), zap.String("op", e.Op), zap.Int("length", e.Length), zap.String("summary", e.Summary))
	}
}
