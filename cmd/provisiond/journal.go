package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

type journalCmd struct {
	Init   journalInitCmd   `cmd:"" help:"Make a new, empty journal."`
	Show   journalShowCmd   `cmd:"" help:"Show entries, all or of one unit."`
	Verify journalVerifyCmd `cmd:"" help:"Check every entry and the chain from the first to the last."`
}

// journalFile is the journal that a command is about.
type journalFile struct {
	Path    string `arg:"" optional:"" help:"The journal file." placeholder:"F"`
	Journal string `help:"The same, as a flag." placeholder:"F"`
}

func (f journalFile) name() (string, error) {
	switch {
	case f.Path != "" && f.Journal != "" && f.Path != f.Journal:
		return "", usage("two journals are named, %s and %s: name one", f.Path, f.Journal)
	case f.Path != "":
		return f.Path, nil
	case f.Journal != "":
		return f.Journal, nil
	}
	return "", usage("name the journal file, for example `journal.db`: there is no default")
}

type journalInitCmd struct {
	journalFile
	Station string `help:"The station's name, which every entry carries." default:"station"`
}

func (c *journalInitCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	if err := journal.Init(path, journal.Options{Station: c.Station}); err != nil {
		if errors.Is(err, journal.ErrExists) {
			return &usageError{fmt.Errorf("%w; nothing was changed", err)}
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return &usageError{err} // a wrong path
		}
		return err
	}
	_, err = fmt.Fprintf(a.out, "made journal %s for station %s\n", path, c.Station)
	return err
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
	j, err := openJournal(path)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
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
	JSON bool `help:"Answer in JSON."`
}

func (c *journalVerifyCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	j, err := openJournal(path)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	rep, err := j.Verify(a.ctx, nil)
	if err != nil {
		return journalFailure(path, err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"journal": path, "id": j.Info().ID, "station": j.Info().Station, "entries": rep.Size, "head": rep.Head,
			"first": rep.First, "last": rep.Last, "clock_steps": rep.ClockSteps, "index_wrong": rep.IndexWrong,
		})
	}
	_, err = fmt.Fprintf(a.out, "%s: %d entries, every one as it was written; head %s\n", path, rep.Size, rep.Head)
	return err
}

// openJournal opens an existing journal. A missing one is no reason to begin an
// empty history.
func openJournal(path string) (*journal.Journal, error) {
	j, err := journal.Open(path)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	return j, nil
}

// journalFailure is exit code 13, but for a cancel. The journal's own errors tell
// the next step in their text; the ones that a script may act on have it apart.
func journalFailure(path string, err error) error {
	f := &provision.Failure{Cause: provision.CauseJournal, Reason: "the journal cannot be used", Err: err}
	switch st, serr := os.Stat(path); {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, journal.ErrMissing):
		f.Reason, f.Err = "there is no journal at "+path, nil
		f.NextStep = "check the path, or begin one with `provisiond journal init " + path + "`"
	case serr == nil && st.IsDir():
		f.Reason, f.Err = path+" is a folder and not a journal", nil
		f.NextStep = "name the journal file in it, or begin one with `provisiond journal init " + filepath.Join(path, "journal.db") + "`"
	}
	return f
}
