package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"filippo.io/age"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

type keystoreCheckCmd struct {
	keystoreFile
	Identity string `help:"Local store: open the seal with this age identity file, and hold every key against its fingerprint." placeholder:"FILE"`
	ReadKeys bool   `help:"Vault: hold every key against its fingerprint; the role must be allowed to read them."`
	JSON     bool   `help:"Answer in JSON."`
}

// Run looks at the store itself first, then at every record.
func (c *keystoreCheckCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	if err := checkHealth(a, path, c.JSON); err != nil {
		return err
	}
	s, err := openKeystoreWith(a.ctx, path, c.Identity)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	rep, err := keystore.Check(a.ctx, s, keystore.CheckOptions{ReadKeys: c.ReadKeys || c.Identity != ""})
	if errors.Is(err, vault.ErrDenied) && rep.Units == 0 {
		// A station may not list units: that the store is ready is all it can know.
		_, err = fmt.Fprintln(a.errOut, "this role may not list units: only the store itself was checked")
		return err
	}
	if err != nil {
		return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore could not be checked", Err: err}
	}
	if c.JSON {
		if err := json.NewEncoder(a.out).Encode(rep); err != nil {
			return err
		}
	} else {
		for _, f := range rep.Findings {
			_, _ = fmt.Fprintln(a.out, f)
		}
		_, _ = fmt.Fprintf(a.out, "%d units, %d records (%d in silicon, %d superseded), %d keys read, %d findings\n",
			rep.Units, rep.Records, rep.InSilicon, rep.Superseded, rep.KeysRead, len(rep.Findings))
		if rep.Pending > 0 {
			_, _ = fmt.Fprintf(a.out, "%d keys are claimed and not stored yet: their units are being made\n", rep.Pending)
		}
	}
	if len(rep.Findings) > 0 {
		return &codeError{code: provision.ExitKeystore}
	}
	return nil
}

// checkHealth says in words what state a Vault is in.
func checkHealth(a *app, path string, asJSON bool) error {
	if !vault.IsFlag(path) {
		return nil
	}
	cfg, err := vault.FromFlag(path)
	if err != nil {
		return &usageError{err}
	}
	h, err := vault.CheckHealth(a.ctx, cfg)
	if err != nil {
		return &usageError{err}
	}
	if !asJSON {
		_, _ = fmt.Fprintln(a.out, h)
	}
	if err := h.Err(); err != nil {
		return &provision.Failure{Cause: provision.CauseKeystore, Reason: "custody cannot be taken", Err: err}
	}
	return nil
}

type keystoreExportCmd struct {
	keystoreFile
	Identity  string   `help:"Local store: the age identity file that opens it." placeholder:"FILE"`
	Recipient []string `help:"Who may open the export: an age recipient (age1…). May be repeated." required:"" placeholder:"AGE1…"`
	Unit      string   `help:"Only this unit." placeholder:"MAC"`
	Out       string   `help:"The file to write; it must not exist." required:"" placeholder:"FILE"`
}

// Run writes all records, keys included, sealed to the custodians.
func (c *keystoreExportCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	var recipients []age.Recipient
	for _, r := range c.Recipient {
		rec, err := age.ParseX25519Recipient(r)
		if err != nil {
			return usage("--recipient: %w", err)
		}
		recipients = append(recipients, rec)
	}
	s, err := openKeystoreWith(a.ctx, path, c.Identity)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if _, err := os.Stat(c.Out); err == nil {
		return usage("--out: %s exists already; nothing was changed", c.Out)
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.Out), ".provisiond-*") // mode 0600
	if err != nil {
		return usage("--out: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already when all went well
	n, err := c.export(a, s, tmp, recipients)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the export was not made", Err: err}
	}
	if err := os.Rename(tmp.Name(), c.Out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "wrote %d records to %s, one JSON object a line, sealed to %d recipients\n", n, c.Out, len(recipients))
	return err
}

func (c *keystoreExportCmd) export(a *app, s keystore.Store, w io.Writer, recipients []age.Recipient) (int, error) {
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewWriter(sealed)
	n := 0
	one := func(unit chip.MAC) error {
		metas, err := s.List(a.ctx, unit)
		if err != nil {
			return err
		}
		for _, m := range metas {
			r, err := s.Load(a.ctx, unit, m.Fingerprint)
			if err != nil {
				return err
			}
			b, err := keystore.MarshalRecord(r)
			r.Key.Wipe()
			if err != nil {
				return err
			}
			_, werr := lines.Write(append(b, '\n'))
			clear(b)
			if werr != nil {
				return werr
			}
			n++
		}
		return nil
	}
	if c.Unit != "" {
		mac, err := chip.ParseMAC(c.Unit)
		if err != nil {
			return 0, usage("--unit: %w", err)
		}
		err = one(mac)
		return n, errors.Join(err, lines.Flush(), sealed.Close())
	}
	for unit, err := range s.Units(a.ctx) {
		if err == nil {
			err = one(unit)
		}
		if err != nil {
			return n, err
		}
	}
	return n, errors.Join(lines.Flush(), sealed.Close())
}
