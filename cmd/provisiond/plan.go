package main

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

type planCmd struct {
	Recipe       string `help:"The recipe of the product. Without it --chip C plans for an example product." placeholder:"R"`
	Port         string `help:"The board to plan for. Without it the plan is for a virgin chip." placeholder:"P" xor:"what"`
	Chip         string `help:"Plan for a virgin chip of this kind." placeholder:"C" xor:"what"`
	Revision     string `help:"Revision of that virgin chip. Default: the oldest that the recipe asks for; without one, a common one." placeholder:"V"`
	Profile      string `help:"Profile of the example product: development, hybrid, release or closed. Default: as in demo." enum:",development,hybrid,release,closed" default:"" placeholder:"PROFILE"`
	SecureBoot   string `help:"Give the example product Secure Boot V2 of this scheme, for example rsa3072." placeholder:"SCHEME"`
	Reset        string `help:"How the board is reset: default or none." enum:"default,none" default:"default"`
	ResetCommand string `help:"A program that resets the board; it is called with one argument, download or run." placeholder:"PROG"`
	JSON         bool   `help:"Answer in JSON."`
}

func (c *planCmd) Run(a *app) error {
	path, done, err := c.product()
	if err != nil {
		return err
	}
	defer done()
	r, err := recipe.Load(path)
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
	if c.Recipe == "" {
		_, _ = fmt.Fprintln(a.out, "An example product, made for this plan with its images and keys: name a product's own with --recipe.")
	}
	return printPlan(a.out, p)
}

// product gives the recipe that was asked for, or that of an example, which done removes.
func (c *planCmd) product() (path string, done func(), err error) {
	done = func() {}
	switch {
	case c.Recipe != "" && (c.Profile != "" || c.SecureBoot != ""):
		return "", done, usage("--profile and --secure-boot are for plans without --recipe: the recipe says both")
	case c.Recipe != "":
		return c.Recipe, done, nil
	case c.Chip == "":
		return "", done, usage("--recipe is missing: name the product's recipe, or --chip alone for an example product")
	}
	m, err := chip.ByName(c.Chip)
	if err != nil {
		return "", done, usage("--chip: %w", err)
	}
	p := sample.Product{Chip: m, Profile: cmp.Or(c.Profile, usualProfile(m))}
	if c.SecureBoot != "" {
		key, err := exampleKey(m, chip.SignatureScheme(c.SecureBoot))
		if err != nil {
			return "", done, err
		}
		p.Signers = []crypto.Signer{key}
	}
	dir, err := os.MkdirTemp("", "provisiond-plan-")
	if err != nil {
		return "", done, err
	}
	done = func() { _ = os.RemoveAll(dir) }
	if path, err = sample.Write(dir, p); err != nil {
		done()
	}
	return path, done, err
}

// exampleKey makes a key for a scheme that a chip verifies, and that nobody uses.
func exampleKey(m chip.Model, scheme chip.SignatureScheme) (crypto.Signer, error) {
	var has []string
	for _, s := range m.SecureBoot.Schemes {
		has = append(has, string(s.Scheme))
	}
	if !slices.Contains(has, string(scheme)) {
		return nil, usage("--secure-boot: %s verifies %s, not %q", m.Title, strings.Join(has, ", "), scheme)
	}
	switch scheme {
	case chip.SignECDSA256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case chip.SignECDSA384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		return rsa.GenerateKey(rand.Reader, 3072)
	}
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
	if r.SecureBoot != nil && slices.Contains(m.SecureBoot.Broken, rev) {
		rev = 0 // a usual one
	}
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
