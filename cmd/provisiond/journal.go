package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

type journalCmd struct {
	Init       journalInitCmd       `cmd:"" help:"Make a new, empty journal and the key that signs it."`
	Show       journalShowCmd       `cmd:"" help:"Show entries, all or of one unit."`
	Verify     journalVerifyCmd     `cmd:"" help:"Check every entry, the chain, the tree, the signatures and the order."`
	Export     journalExportCmd     `cmd:"" help:"Write the canonical lines, for another program to check."`
	Checkpoint journalCheckpointCmd `cmd:"" help:"Sign a checkpoint of the journal as it is now, and print it."`
	Backup     journalBackupCmd     `cmd:"" help:"Copy a journal, also one that is in use."`
	Rebuild    journalRebuildCmd    `cmd:"" help:"Make a lost or damaged journal again from its copy."`
	Probe      journalProbeCmd      `cmd:"" hidden:"" help:"Look at a journal for another provisiond."`
}

// journalFile is the journal that a command is about.
type journalFile struct {
	Path    string `arg:"" optional:"" help:"The journal file." placeholder:"F"`
	Journal string `help:"The same, as a flag." placeholder:"F"`
}

func (f journalFile) name() (string, error) { return oneName("journal", f.Path, f.Journal) }

// oneName is the file that a command is about, which may be named as an argument
// or as a flag.
func oneName(kind, argument, flag string) (string, error) {
	switch {
	case argument != "" && flag != "" && argument != flag:
		return "", usage("two %ss are named, %s and %s: name one", kind, argument, flag)
	case argument != "":
		return argument, nil
	case flag != "":
		return flag, nil
	}
	return "", usage("name the %s file, for example `%s.db`: there is no default", kind, kind)
}

type journalInitCmd struct {
	journalFile
	Station    string `help:"The station's name, which every entry carries." default:"station"`
	SigningKey string `help:"Where the key that signs checkpoints goes. Default: F.key. vault-transit:FILE.yaml: the station's key in Vault signs, and no file is made." placeholder:"FILE"`
	Anchor     string `help:"A folder elsewhere that keeps the signed checkpoints, or vault:FILE.yaml." placeholder:"DIR"`
	Succeeds   string `help:"The id of the journal that this one continues after its disk was replaced. Needs --anchor." placeholder:"ID"`
	PublicKey  string `help:"With --succeeds: the public key of that journal." placeholder:"KEY"`
	JSON       bool   `help:"Answer in JSON."`
}

func (c *journalInitCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	o := journal.Options{Station: c.Station, KeyFile: c.SigningKey}
	if strings.HasPrefix(c.SigningKey, transitPrefix) {
		signer, err := newTransitSigner(a.ctx, c.SigningKey)
		if err != nil {
			return vaultFailure(err)
		}
		defer func() { _ = signer.Close() }()
		o.Signer, o.KeyFile = signer, ""
	}
	if o.Anchor, err = (journalKeeping{Anchor: c.Anchor}).anchorOf(c.Station); err != nil {
		return err
	}
	if o.Succeeds, err = c.predecessor(a, o.Anchor); err != nil {
		return err
	}
	if err := journal.Init(path, o); err != nil {
		if errors.Is(err, journal.ErrExists) {
			return &usageError{fmt.Errorf("%w; nothing was changed", err)}
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, journal.ErrInvalid) {
			return &usageError{err} // a wrong path or name
		}
		return err
	}
	info, err := journal.Peek(a.ctx, path)
	if err != nil {
		return journalFailure(path, err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"journal": path, "id": info.ID, "station": info.Station, "public_key": info.PublicKey, "succeeds": c.Succeeds,
		})
	}
	_, err = fmt.Fprintf(a.out, "made journal %s for station %s\nid          %s\npublic key  %s\n", path, c.Station, info.ID, info.PublicKey)
	return err
}

// predecessor finds what --succeeds means.
func (c *journalInitCmd) predecessor(a *app, anchor journal.Anchor) (*journal.Succession, error) {
	switch {
	case c.Succeeds == "" && c.PublicKey != "":
		return nil, usage("--public-key is that of the journal before: add --succeeds")
	case c.Succeeds == "":
		return nil, nil
	case anchor == nil:
		return nil, usage("--succeeds needs --anchor: the last checkpoint of journal %s is there", c.Succeeds)
	}
	cp, err := journal.FindPredecessor(a.ctx, anchor, c.Succeeds)
	if err != nil {
		return nil, &usageError{err}
	}
	if c.PublicKey != "" {
		if err := cp.Verify(c.PublicKey); err != nil {
			return nil, &usageError{err}
		}
	}
	return &journal.Succession{Checkpoint: cp, PublicKey: c.PublicKey}, nil
}

type journalShowCmd struct {
	journalFile
	Unit string `help:"Only this unit's entries." placeholder:"MAC"`
	JSON bool   `help:"The canonical lines, one JSON object each."`
}

func (c *journalShowCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	j, err := readJournal(a, path)
	if err != nil {
		return err
	}
	defer j.Close()
	if c.Unit == "" {
		size, _ := j.Head()
		for e, err := range j.Entries(0, size) {
			if err != nil {
				return journalFailure(path, err)
			}
			if err := c.print(a, e); err != nil {
				return err
			}
		}
		return nil
	}
	mac, err := chip.ParseMAC(c.Unit)
	if err != nil {
		return usage("--unit: %w", err)
	}
	entries, err := j.Unit(mac)
	if err != nil {
		return journalFailure(path, err)
	}
	if len(entries) == 0 && !c.JSON {
		_, _ = fmt.Fprintf(a.errOut, "%s knows nothing of unit %s\n", path, mac)
	}
	for _, e := range entries {
		if err := c.print(a, e); err != nil {
			return err
		}
	}
	return nil
}

func (c *journalShowCmd) print(a *app, e journal.Entry) error {
	if c.JSON {
		line, err := e.Canonical()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", line)
		return err
	}
	unit := "-"
	if e.Unit != (chip.MAC{}) {
		unit = e.Unit.String()
	}
	_, err := fmt.Fprintf(a.out, "%6d  %s  %-17s  %-8s  %-9s %-18s %s\n", e.Index, e.Time.Format("2006-01-02T15:04:05.000Z"), unit, e.Slot, e.Kind, e.Step, short(e.Payload))
	return err
}

// short cuts a payload for the eye; --json has all of it.
func short(b []byte) string {
	const width = 100
	if len(b) <= width {
		return string(b)
	}
	return string(b[:width]) + "…"
}

type journalVerifyCmd struct {
	journalFile
	PublicKey string `help:"The public key that the journal must be signed with, or a file that holds it. Without it the journal's own is believed." placeholder:"KEY"`
	Anchor    string `help:"The folder that keeps the signed checkpoints, or vault:FILE.yaml: the journal must agree with it." placeholder:"DIR"`
	JSON      bool   `help:"Answer in JSON."`
}

func (c *journalVerifyCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	j, rep, err := c.verify(a, path)
	if err != nil {
		return err
	}
	defer j.Close()
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"journal": path, "id": j.Info().ID, "station": j.Info().Station, "entries": rep.Size, "head": rep.Head, "root": rep.Root,
			"first": rep.First, "last": rep.Last, "clock_steps": rep.ClockSteps, "index_wrong": rep.IndexWrong,
			"checkpoints": rep.Checkpoints, "unsigned": rep.Unsigned, "open_intents": rep.OpenIntents,
			"public_key": j.Info().PublicKey, "trusted": rep.Trusted, "anchored": rep.Anchored, "live": j.live,
		})
	}
	_, _ = fmt.Fprintf(a.out, "%s: %d entries, every one as it was written; head %s\n", path, rep.Size, rep.Head)
	_, _ = fmt.Fprintf(a.out, "%d checkpoints are good; %d entries behind the last one are not signed yet\n", rep.Checkpoints, rep.Unsigned)
	if !rep.Trusted {
		_, _ = fmt.Fprintf(a.errOut, "the public key was taken from the journal itself: name the one you know with --public-key\n")
	}
	return nil
}

// verify checks the journal. The anchor of one that is in use may have a checkpoint
// that is newer than the copy that was read: then another copy tells.
func (c *journalVerifyCmd) verify(a *app, path string) (*openedJournal, journal.Report, error) {
	const tries = 3
	for try := 1; ; try++ {
		j, err := readJournal(a, path)
		if err != nil {
			return nil, journal.Report{}, err
		}
		options, err := c.options(j)
		if err != nil {
			j.Close()
			return nil, journal.Report{}, err
		}
		rep, err := j.Verify(a.ctx, nil, options...)
		if err == nil {
			return j, rep, nil
		}
		live := j.live
		j.Close()
		if !live || !errors.Is(err, journal.ErrAnchor) || try == tries {
			return nil, rep, journalFailure(path, err)
		}
	}
}

func (c *journalVerifyCmd) options(j *openedJournal) ([]journal.VerifyOption, error) {
	options := []journal.VerifyOption{journal.WholeFile()}
	if c.PublicKey != "" {
		key, err := publicKey(c.PublicKey)
		if err != nil {
			return nil, err
		}
		options = append(options, journal.AgainstKey(key))
	}
	if c.Anchor != "" {
		anchor, err := (journalKeeping{Anchor: c.Anchor}).anchorOf(j.Info().Station)
		if err != nil {
			return nil, err
		}
		options = append(options, journal.AgainstAnchor(anchor))
	}
	return options, nil
}

// publicKey takes a key, or the name of a file that holds one.
func publicKey(s string) (string, error) {
	if b, err := os.ReadFile(s); err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if strings.Count(s, "+") < 2 {
		return "", usage("--public-key: %s is neither a key nor a file that can be read", s)
	}
	return s, nil
}

type journalExportCmd struct {
	journalFile
	Unit string `help:"Only this unit's entries." placeholder:"MAC"`
}

func (c *journalExportCmd) Run(a *app) error {
	return (&journalShowCmd{journalFile: c.journalFile, Unit: c.Unit, JSON: true}).Run(a)
}

type journalCheckpointCmd struct {
	journalFile
	journalKeeping
}

func (c *journalCheckpointCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	j, err := c.open(a, path)
	if err != nil {
		return err
	}
	cp, err := j.Checkpoint(a.ctx)
	if err := errors.Join(err, j.Close()); err != nil {
		return journalFailure(path, err)
	}
	_, err = a.out.Write(cp.Note)
	return err
}

type journalBackupCmd struct {
	Path string `arg:"" help:"The journal file." placeholder:"F"`
	Dest string `arg:"" help:"The new journal file." placeholder:"DEST"`
	JSON bool   `help:"Answer in JSON."`
}

func (c *journalBackupCmd) Run(a *app) error {
	r, err := journal.Backup(a.ctx, c.Path, c.Dest)
	if err != nil {
		return writeFailure(c.Path, err)
	}
	return printRebuilt(a, c.Dest, r, c.JSON)
}

type journalRebuildCmd struct {
	journalFile
	JSON bool `help:"Answer in JSON."`
}

func (c *journalRebuildCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	r, err := journal.Rebuild(a.ctx, path)
	if err != nil {
		return writeFailure(path, err)
	}
	return printRebuilt(a, path, r, c.JSON)
}

func printRebuilt(a *app, path string, r journal.Rebuilt, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"journal": path, "id": r.ID, "entries": r.Entries, "checkpoints": r.Checkpoints, "signed": r.Signed, "torn_bytes": r.Torn,
		})
	}
	_, _ = fmt.Fprintf(a.out, "made %s: %d entries, every one checked; the last checkpoint covers %d\n", path, r.Entries, r.Signed)
	if r.Torn > 0 {
		_, _ = fmt.Fprintf(a.errOut, "the copy's last line was never finished; its %d bytes are left out\n", r.Torn)
	}
	return nil
}

// journalFailure is exit code 13, but for a cancel. The journal's own errors tell
// the next step in their text; the ones that a script may act on have it apart.
func journalFailure(path string, err error) error {
	var u *usageError
	if errors.As(err, &u) {
		return err
	}
	f := &provision.Failure{Cause: provision.CauseJournal, Reason: "the journal cannot be used", Err: err}
	switch st, serr := os.Stat(path); {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, journal.ErrLocked):
		f.Reason, f.Err = path+" is in use"+usedBy(path), nil
		f.NextStep = "wait for it to end, or stop it; `journal show`, `journal verify`, `journal export` and `audit` can be used meanwhile"
	case errors.Is(err, journal.ErrMissing):
		f.Reason, f.Err = "there is no journal at "+path, nil
		f.NextStep = "check the path, or begin one with `provisiond journal init " + path + "`"
	case serr == nil && st.IsDir():
		f.Reason, f.Err = path+" is a folder and not a journal", nil
		f.NextStep = "name the journal file in it, or begin one with `provisiond journal init " + filepath.Join(path, "journal.db") + "`"
	}
	return f
}
