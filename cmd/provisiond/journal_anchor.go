package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// journalKeeping is how a command opens a journal that it may append to.
type journalKeeping struct {
	SigningKey string `help:"The key that signs checkpoints, if it is not beside the journal. Under systemd: a credential." placeholder:"FILE"`
	Anchor     string `help:"A folder elsewhere that keeps the signed checkpoints; the journal must agree with it." placeholder:"DIR"`
}

// open opens the journal, looked at by a child process first.
func (k journalKeeping) open(a *app, path string) (*journal.Journal, error) {
	options := []journal.Option{journal.WithContext(a.ctx), journal.WithProber(prober())}
	if k.SigningKey != "" {
		options = append(options, journal.WithKeyFile(k.SigningKey))
	}
	if k.Anchor != "" {
		anchor, err := k.anchor(a.ctx, path)
		if err != nil {
			return nil, err
		}
		options = append(options, journal.WithAnchor(anchor))
	}
	j, err := journal.Open(path, options...)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	return j, nil
}

// anchor is the folder for the station that the journal is of.
func (k journalKeeping) anchor(ctx context.Context, path string) (journal.Anchor, error) {
	info, err := journal.Peek(ctx, path)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	anchor, err := journal.NewDirAnchor(k.Anchor, info.Station)
	if err != nil {
		return nil, &usageError{err}
	}
	return anchor, nil
}

// openJournal opens an existing journal. A missing one is no reason to begin an
// empty history.
func openJournal(path string) (*journal.Journal, error) {
	j, err := journal.Open(path, journal.WithProber(prober()))
	if err != nil {
		return nil, journalFailure(path, err)
	}
	return j, nil
}

// prober looks at a journal in a child: this program again, with a command that
// help does not show. nil, which means in this process, where this program is not
// provisiond but a test that runs it.
func prober() journal.Prober {
	self, err := os.Executable()
	if err != nil || strings.HasSuffix(self, ".test") {
		return nil
	}
	return journal.ProbeWith(func(ctx context.Context, path string) *exec.Cmd {
		return exec.CommandContext(ctx, self, "journal", "probe", "--", path)
	})
}

type journalProbeCmd struct {
	Path string `arg:"" help:"The journal file."`
}

func (c *journalProbeCmd) Run(a *app) error {
	return journal.ProbeAnswer(a.ctx, c.Path, a.out)
}

// writeFailure: a wrong path is a usage error; the rest is the journal's.
func writeFailure(path string, err error) error {
	switch {
	case errors.Is(err, journal.ErrExists), errors.Is(err, fs.ErrPermission):
		return &usageError{err}
	case errors.Is(err, fs.ErrNotExist):
		return &provision.Failure{
			Cause: provision.CauseJournal, Reason: "there is no copy " + journal.CopyPath(path), Err: err,
			NextStep: "check the path; without the copy only a backup brings a journal back",
		}
	}
	return journalFailure(path, err)
}
