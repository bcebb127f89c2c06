package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/espsim/serve"
	"github.com/provisiond/provisiond/provision/recipe"
)

type simCmd struct {
	Chip       string   `help:"The chip to simulate." placeholder:"C"`
	State      string   `help:"The folder that holds eFuses and flash between runs; made if it is missing." placeholder:"D"`
	Pty        string   `help:"Serve a PTY; PATH becomes a link to it. It has no DTR and RTS: see --control." placeholder:"PATH"`
	Listen     string   `help:"Serve the bytes of the line over TCP." placeholder:"ADDR"`
	RFC2217    string   `name:"rfc2217" help:"Serve RFC 2217 (with DTR, RTS and baud rate) over TCP." placeholder:"ADDR"`
	Control    string   `help:"A Unix socket that moves EN, strap and power: lines 'reset download', 'reset run', 'power off', 'power on', 'power cycle', 'unplug', 'plug', 'status'." placeholder:"PATH"`
	Send       []string `help:"Send this line to the --control socket of a running simulator, print the answer, and end." placeholder:"LINE"`
	Revision   string   `help:"Silicon revision, for example 3.0." placeholder:"V"`
	MAC        string   `name:"mac" help:"Base MAC of a new chip. Default: one made from --seed, locally administered." placeholder:"MAC"`
	FlashSize  string   `help:"Flash of a new chip." default:"4MB"`
	Crystal    int      `help:"The board's crystal in MHz, on chips that have several." placeholder:"MHZ"`
	FirstBoot  []string `help:"What the simulated bootloader was built with, in release configuration, and burns by itself: secure-boot, flash-encryption." enum:"secure-boot,flash-encryption" placeholder:"WHAT"`
	CodingSc   int      `name:"coding-scheme" help:"CODING_SCHEME of a new ESP32: 0 none, 1 3/4, 2 repeat."`
	AppPrints  string   `help:"What the application prints once its image has been checked." placeholder:"TEXT"`
	Fault      string   `help:"Faults, comma-separated: noise=P, drop=P, window=flash|burn, refuse=OP[@N][:S], lose=OP[@N], power=N, power-data=N, unplug=N, unplug-write=N, weak=P, stuck=B.I, ignore-reset=N, seed=S." placeholder:"SPEC"`
	Seed       int64    `help:"Seed of the chip's factory values." default:"1"`
	Pace       bool     `help:"Take as long as a UART takes."`
	USBSerial  bool     `name:"usb-serial" help:"The board hangs on the chip's own USB-JTAG-Serial."`
	Blank      bool     `help:"No factory words but MAC and revision."`
	InDownload bool     `help:"Start in the loader, as with the BOOT button pressed."`
}

func (c *simCmd) Run(a *app) error {
	if len(c.Send) > 0 {
		return c.send(a)
	}
	if c.Chip == "" || c.State == "" {
		return usage("--chip and --state are needed")
	}
	lines := 0
	for _, name := range []string{c.Pty, c.Listen, c.RFC2217} {
		if name != "" {
			lines++
		}
	}
	if lines != 1 { // a board has one serial adapter: two would take the bytes from each other
		return usage("name one of --pty, --listen and --rfc2217")
	}
	board, err := c.board()
	if err != nil {
		return err
	}
	defer func() { _ = board.Close() }()
	if c.InDownload {
		board.ResetInto(true)
	}
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	services, err := c.services(ctx, a, board)
	if err != nil {
		return err
	}
	errs := make(chan error, len(services))
	var wg sync.WaitGroup
	for _, s := range services {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer cancel() // one that fails ends the others
			errs <- s(ctx)
		}()
	}
	err = c.keepState(ctx, board)
	cancel()
	wg.Wait()
	close(errs)
	for e := range errs {
		if !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (c *simCmd) board() (*espsim.Chip, error) {
	m, err := chip.ByName(c.Chip)
	if err != nil {
		return nil, usage("--chip: %w", err)
	}
	o := espsim.Options{
		Model: m, AppPrints: c.AppPrints, CodingScheme: c.CodingSc, Seed: c.Seed, Pace: c.Pace,
		USBSerial: c.USBSerial, Blank: c.Blank, Crystal: c.Crystal,
		Build: bootrom.Build{
			SecureBoot:      slices.Contains(c.FirstBoot, "secure-boot"),
			FlashEncryption: slices.Contains(c.FirstBoot, "flash-encryption"),
		},
	}
	size, err := recipe.ParseSize(c.FlashSize)
	if err != nil {
		return nil, usage("--flash-size: %w", err)
	}
	o.FlashSize = uint32(size)
	if c.Revision != "" {
		if o.Revision, err = chip.ParseRevision(c.Revision); err != nil {
			return nil, usage("--revision: %w", err)
		}
		o.Revision = espsim.RevisionOf(o.Revision)
	}
	if c.MAC != "" {
		if o.MAC, err = chip.ParseMAC(c.MAC); err != nil {
			return nil, usage("--mac: %w", err)
		}
	}
	if o.Faults, err = espsim.ParseFaults(c.Fault); err != nil {
		return nil, usage("--fault: %w", err)
	}
	board, err := espsim.New(o)
	if err != nil {
		return nil, &usageError{err}
	}
	if _, err := board.LoadDir(c.State); err != nil {
		_ = board.Close()
		return nil, usage("--state: %w", err)
	}
	return board, nil
}

// services are what the command runs until it is stopped. Each says on standard
// error where it can be reached.
func (c *simCmd) services(ctx context.Context, a *app, board *espsim.Chip) ([]func(context.Context) error, error) {
	var out []func(context.Context) error
	listen := func(network, addr string) (net.Listener, error) {
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, network, addr)
		if err != nil {
			return nil, usage("listen on %s: %w", addr, err)
		}
		return ln, nil
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(a.errOut, format+"\n", args...) }
	if c.Pty != "" {
		out = append(out, func(ctx context.Context) error { return serve.PTY(ctx, board, c.Pty) })
		say("%s %s on %s", board.Model().Title, board.MAC(), c.Pty)
	}
	for _, s := range []struct {
		addr, scheme string
		serve        func(context.Context, net.Listener, serve.Host) error
	}{{c.Listen, "socket", serve.TCP}, {c.RFC2217, "rfc2217", serve.RFC2217}} {
		if s.addr == "" {
			continue
		}
		ln, err := listen("tcp", s.addr)
		if err != nil {
			return nil, err
		}
		out = append(out, func(ctx context.Context) error { return s.serve(ctx, ln, board) })
		say("%s %s on %s://%s", board.Model().Title, board.MAC(), s.scheme, ln.Addr())
	}
	if c.Control != "" {
		_ = os.Remove(c.Control) // left by a run that was killed
		ln, err := listen("unix", c.Control)
		if err != nil {
			return nil, err
		}
		out = append(out, func(ctx context.Context) error { return serve.Control(ctx, ln, controls{board}) })
		say("control on %s", c.Control)
	}
	return out, nil
}

// keepState stores the chip whenever its fuses or flash have changed, and at the end.
func (c *simCmd) keepState(ctx context.Context, board *espsim.Chip) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	stored := board.Changes() - 1
	for {
		if now := board.Changes(); now != stored {
			if err := board.SaveDir(c.State); err != nil {
				return usage("--state: %w", err)
			}
			stored = now
		}
		select {
		case <-ctx.Done():
			if board.Changes() == stored {
				return nil
			}
			return board.SaveDir(c.State)
		case <-tick.C:
		}
	}
}

// controls are what the control socket moves.
type controls struct{ *espsim.Chip }

func (c controls) Status() string {
	return fmt.Sprintf("%s %s %s %v", c.Model().Name, c.Revision(), c.MAC(), c.State())
}

// send is the other end of --control, so that a reset command is one line of shell.
func (c *simCmd) send(a *app) error {
	if c.Control == "" {
		return usage("--send needs --control, the socket of the running simulator")
	}
	var d net.Dialer
	conn, err := d.DialContext(a.ctx, "unix", c.Control)
	if err != nil {
		return fmt.Errorf("no simulator at --control %s: %w", c.Control, err)
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewScanner(conn)
	for _, line := range c.Send {
		if _, err := fmt.Fprintln(conn, line); err != nil {
			return err
		}
		if !answers.Scan() {
			return fmt.Errorf("the simulator at %s closed the connection: %w", c.Control, answers.Err())
		}
		_, _ = fmt.Fprintln(a.out, answers.Text())
		if strings.HasPrefix(answers.Text(), "error") {
			return &codeError{code: 1}
		}
	}
	return nil
}
