package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// journalKeeping is how a command opens a journal that it may append to.
type journalKeeping struct {
	SigningKey string `help:"The key that signs checkpoints, if it is not beside the journal. Under systemd: a credential. vault-transit:FILE.yaml: the station's key in Vault." placeholder:"FILE"`
	Anchor     string `help:"A folder elsewhere that keeps the signed checkpoints, or vault:FILE.yaml; the journal must agree with it." placeholder:"DIR"`

	// lenient lets a journal be opened while the Vault that anchors it is away. It
	// is compared as soon as Vault answers.
	lenient bool
	// publicKey is the one that the journal must be signed with; empty: its own.
	publicKey string
}

// withVault says which Vault is meant by plain "vault": that of the keystore.
func (k journalKeeping) withVault(keystore string) (journalKeeping, error) {
	for _, f := range []struct {
		value        *string
		short, whole string
	}{{&k.Anchor, "vault", keystore}, {&k.SigningKey, "vault-transit", transitPrefix + strings.TrimPrefix(keystore, vault.Prefix)}} {
		if *f.value != f.short {
			continue
		}
		if !vault.IsFlag(keystore) {
			return k, usage("%s means that of the keystore, and that is not in Vault: name the configuration, %s:FILE.yaml", f.short, f.short)
		}
		*f.value = f.whole
	}
	return k, nil
}

// signer gives the signing key of a journal, whose public key is known. closeSigner
// ends its use.
func (k journalKeeping) signer(path, public string) (s journal.Signer, closeSigner func() error, err error) {
	if !strings.HasPrefix(k.SigningKey, transitPrefix) {
		file := k.SigningKey
		if file == "" {
			file = journal.KeyPath(path)
		}
		s, err = journal.LoadKey(file)
		return s, func() error { return nil }, err
	}
	t, err := oldTransitSigner(k.SigningKey, public)
	if err != nil {
		return nil, nil, err
	}
	return t, t.Close, nil
}

func (k journalKeeping) openPlain(a *app, path string) (*journal.Journal, error) {
	options := []journal.Option{journal.WithContext(a.ctx), journal.WithProber(prober()), journal.WithPublicKey(k.publicKey)}
	if strings.HasPrefix(k.SigningKey, transitPrefix) {
		// Its use of Vault ends with the process: the journal signs until it is closed.
		info, err := journal.Peek(a.ctx, path)
		if err != nil {
			return nil, err
		}
		s, _, err := k.signer(path, info.PublicKey)
		if err != nil {
			return nil, err
		}
		options = append(options, journal.WithSigner(s))
	} else if k.SigningKey != "" {
		options = append(options, journal.WithKeyFile(k.SigningKey))
	}
	if k.Anchor != "" {
		anchor, err := k.anchor(a.ctx, path)
		if err != nil {
			return nil, err
		}
		options = append(options, journal.WithAnchor(anchor))
		if k.lenient {
			options = append(options, journal.WithAnchorLater())
		}
	}
	j, err := journal.Open(path, options...)
	if err == nil && j.Anchored() != nil {
		a.note("%v; it is believed until the anchor answers", j.Anchored())
	}
	return j, err
}

// open opens the journal, looked at by a child process first.
func (k journalKeeping) open(a *app, path string) (*journal.Journal, error) {
	j, err := k.openPlain(a, path)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	a.noteJournal(j.Info())
	return j, nil
}

// openForReading is open for commands that can do with a copy too.
func (k journalKeeping) openForReading(a *app, path string) (*openedJournal, error) {
	return readJournalWith(a, path, func() (*journal.Journal, error) {
		j, err := k.openPlain(a, path)
		if errors.Is(err, journal.ErrLocked) && k.Anchor != "" {
			a.note("the anchor is not looked at while another process has the journal: that process does it")
		}
		return j, err
	})
}

// anchor is the folder for the station that the journal is of.
func (k journalKeeping) anchor(ctx context.Context, path string) (journal.Anchor, error) {
	info, err := journal.Peek(ctx, path)
	if err != nil {
		return nil, err
	}
	return k.anchorOf(info.Station)
}

// anchorOf is the anchor for a station, nil if there is none.
func (k journalKeeping) anchorOf(station string) (journal.Anchor, error) {
	if k.Anchor == "" {
		return nil, nil
	}
	if vault.IsFlag(k.Anchor) {
		return newVaultAnchor(k.Anchor, station)
	}
	anchor, err := journal.NewDirAnchor(k.Anchor, station)
	if err != nil {
		return nil, &usageError{err}
	}
	return anchor, nil
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
