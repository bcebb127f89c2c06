package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

type planCmd struct {
	Recipe       string `help:"The recipe of the product." required:"" placeholder:"R"`
	Port         string `help:"The board to plan for. Without it the plan is for a virgin chip." placeholder:"P" xor:"what"`
	Chip         string `help:"Plan for a virgin chip of this kind." placeholder:"C" xor:"what"`
	Revision     string `help:"Revision of that virgin chip. Default: the oldest that the recipe asks for; without one, a common one." placeholder:"V"`
	Reset        string `help:"How the board is reset: default or none." enum:"default,none" default:"default"`
	ResetCommand string `help:"A program that resets the board; it is called with one argument, download or run." placeholder:"PROG"`
	JSON         bool   `help:"Answer in JSON."`
}

func (c *planCmd) Run(a *app) error {
	r, err := recipe.Load(c.Recipe)
	if err != nil {
		return err
	}
	job, err := provision.NewJob(r)
	if err != nil {
		return err
	}
	var line provision.Line
	if c.Port != "" {
		dev, err := deviceFlags{Port: c.Port, Reset: c.Reset, ResetCommand: c.ResetCommand}.open(a)
		if err != nil {
			return err
		}
		defer dev.close()
		line = dev.line
	} else {
		board, err := c.virgin(r)
		if err != nil {
			return err
		}
		defer func() { _ = board.Close() }()
		line = provision.Line{Port: port.FromSim(board, "sim://"+board.Model().Name), Reset: rom.AutoReset{}}
	}
	p, err := provision.MakePlan(a.ctx, line, job, traceToLog(a.log))
	if err != nil {
		return err
	}
	if c.Port == "" {
		p.Unit = ""
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(p)
	}
	return printPlan(a.out, p)
}

// virgin makes the chip that a plan without a board is for.
func (c *planCmd) virgin(r *recipe.Recipe) (*espsim.Chip, error) {
	m := r.Model()
	if c.Chip != "" {
		var err error
		if m, err = chip.ByName(c.Chip); err != nil {
			return nil, usage("--chip: %w", err)
		}
	}
	rev, _ := r.RevisionLimits()
	if c.Revision != "" {
		var err error
		if rev, err = chip.ParseRevision(c.Revision); err != nil {
			return nil, usage("--revision: %w", err)
		}
		rev = espsim.RevisionOf(rev)
	}
	board, err := espsim.New(espsim.Options{Model: m, Revision: rev, FlashSize: uint32(r.FlashSize)})
	if err != nil {
		return nil, usage("--revision: %w", err)
	}
	return board, nil
}

func printPlan(out io.Writer, p *provision.PlanReport) error {
	unit := p.Unit
	if unit == "" {
		unit = "a virgin chip"
	}
	_, _ = fmt.Fprintf(out, "Plan for %s, %s %s: recipe %s revision %d, profile %s\n", unit, p.Chip, p.Revision, p.Recipe, p.RecipeRevision, p.Profile)
	_, _ = fmt.Fprintf(out, "plan %s\nfields from %s\n", p.PlanSHA256, p.TableSource)
	if p.ClosesForever {
		_, _ = fmt.Fprintln(out, "PERMANENT: this plan ends the serial loader for ever; provision needs --closed-is-forever.")
	}
	for _, l := range p.Security.Lines() {
		_, _ = fmt.Fprintln(out, l)
	}
	for _, w := range p.Warnings {
		_, _ = fmt.Fprintln(out, "warning:", w)
	}
	if len(p.Advisories) > 0 {
		_, _ = fmt.Fprintf(out, "\nKnown of %s %s (a list to begin with, not a complete one; see the vendor's pages):\n", p.Chip, p.Revision)
	}
	for _, a := range p.Advisories {
		when := ""
		if a.When != "" {
			when = " Matters with: " + a.When + "."
		}
		_, _ = fmt.Fprintf(out, "  %s (%s): %s%s\n    %s\n", a.ID, a.Sure, a.Statement, when, a.Handling)
	}
	_, _ = fmt.Fprintln(out, "\nFlash (can be written again until encryption is on):")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range p.Regions {
		how := "plain"
		if r.Encrypted {
			how = "encrypted"
		}
		what := fmt.Sprintf("sha256 %.16s…", r.SHA256)
		if r.SHA256 == "" {
			what = fmt.Sprintf("each unit's own, from %s, sha256 %.16s…", r.File, r.FileSHA256)
		}
		_, _ = fmt.Fprintf(w, "  write\t0x%06x\t%d bytes\t%s\t%s\t%s\n", r.Offset, r.Length, how, r.Name, what)
	}
	for _, r := range p.Erase {
		_, _ = fmt.Fprintf(w, "  erase\t0x%06x\t%d bytes\t\t%s\n", r.Offset, r.Size, r.Name)
	}
	for _, r := range p.Untouched {
		_, _ = fmt.Fprintf(w, "  leave\t0x%06x\t%d bytes\t\t%s\n", r.Offset, r.Size, r.Name)
	}
	_ = w.Flush()
	printFuses(out, p)
	return nil
}

// printFuses lists the bits in the order of burning, with the boot check where it comes.
func printFuses(out io.Writer, p *provision.PlanReport) {
	_, _ = fmt.Fprintln(out, "\nFuses (permanent, every one of them):")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i, b := range p.Bits {
		where, state := fmt.Sprintf("word %d bit %d", b.Word, b.Bit), ""
		if b.Bit < 0 {
			where = "the key"
		}
		if b.AlreadySet {
			state = "(set already)"
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", b.Stage, b.Block, where, b.Field, strings.TrimSpace(b.Note+" "+state))
		if p.BootCheck != "" && b.Stage == p.BootAfter && (i+1 == len(p.Bits) || p.Bits[i+1].Stage != b.Stage) {
			_, _ = fmt.Fprintf(w, "  boot-check\t\t\t\tthe unit boots until it prints %q; a fuse that is set then and not in this plan sets it aside\n", p.BootCheck)
		}
	}
	_ = w.Flush()
	_, _ = fmt.Fprintf(out, "\nBLOCK0 afterwards: %s\n", strings.Join(p.Block0, " "))
}
