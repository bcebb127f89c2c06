package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
)

type keystoreCmd struct {
	Init     keystoreInitCmd     `cmd:"" help:"Make a local keystore. Keys are sealed to an age identity file, or to a passphrase."`
	Describe keystoreDescribeCmd `cmd:"" help:"Show what a keystore is and which units it holds; never a key."`
}

type keystoreInitCmd struct {
	Path           string `arg:"" help:"The keystore file to make." placeholder:"FILE"`
	Identity       string `help:"The age identity file to seal to; made if it is missing. Default: FILE.identity. Keep it away from the station: it opens every key." placeholder:"FILE"`
	PassphraseFile string `help:"Seal to the passphrase in this file (mode 0600) instead." placeholder:"FILE"`
	Test           bool   `help:"A test store: takes simulated units, and only those."`
	JSON           bool   `help:"Answer in JSON."`
}

func (c *keystoreInitCmd) Run(a *app) error {
	o := local.Options{TestStore: c.Test, PassphraseFile: c.PassphraseFile, IdentityFile: c.Identity}
	if c.PassphraseFile != "" && c.Identity != "" {
		return usage("--identity and --passphrase-file do not go together: choose one")
	}
	made := ""
	if c.PassphraseFile == "" {
		if o.IdentityFile == "" {
			o.IdentityFile = c.Path + ".identity"
		}
		if _, err := os.Stat(c.Path); err == nil {
			return usage("%s exists already; nothing was changed", c.Path)
		}
		if _, err := os.Stat(o.IdentityFile); errors.Is(err, fs.ErrNotExist) {
			if _, err := local.NewIdentity(o.IdentityFile); err != nil {
				return &usageError{err}
			}
			made = o.IdentityFile
		}
	}
	if err := local.Init(c.Path, o); err != nil {
		return &usageError{err}
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"keystore": c.Path, "identity": o.IdentityFile, "identity_made": made != "", "test_store": c.Test})
	}
	_, _ = fmt.Fprintf(a.out, "made keystore %s\n", c.Path)
	if made != "" {
		_, _ = fmt.Fprintf(a.out, "made identity %s: it opens every key of this store. Move it to a safe place; a station does not need it.\n", made)
	}
	return nil
}

type keystoreDescribeCmd struct {
	Path     string `arg:"" name:"keystore" help:"The keystore." placeholder:"S"`
	Identity string `help:"Open the seal with this age identity file, and check every record with it." placeholder:"FILE"`
	JSON     bool   `help:"Answer in JSON."`
}

func (c *keystoreDescribeCmd) Run(a *app) error {
	s, err := openKeystoreWith(c.Path, c.Identity)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	info, err := s.Info(a.ctx)
	if err != nil {
		return err
	}
	type unitJSON struct {
		Unit        string `json:"unit"`
		Chip        string `json:"chip"`
		Fingerprint string `json:"key_fingerprint"`
		KeyRef      string `json:"key_ref"`
		State       string `json:"state"`
		Recipe      string `json:"recipe"`
		Revision    int    `json:"recipe_revision"`
		Created     string `json:"created"`
	}
	var rows []unitJSON
	for mac, err := range s.Units(a.ctx) {
		if err != nil {
			return err
		}
		metas, err := s.List(a.ctx, mac)
		if err != nil {
			return err
		}
		for _, m := range metas {
			if c.Identity != "" {
				if _, err := s.Confirm(a.ctx, mac, m.Fingerprint); err != nil {
					return &provision.Failure{Cause: provision.CauseKeystore, Reason: fmt.Sprintf("the record of unit %s is not good", mac), Err: err}
				}
			}
			state := string(m.Current())
			if state == "" {
				state = "stored"
			}
			rows = append(rows, unitJSON{
				mac.String(), m.Chip, m.Fingerprint.String(), m.Receipt.Ref, state,
				m.Recipe, m.RecipeRevision, m.Created.Format("2006-01-02T15:04:05Z"),
			})
		}
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"kind": info.Kind, "id": info.ID, "where": info.Where, "test_store": info.TestStore, "records": rows,
		})
	}
	kind := ""
	if info.TestStore {
		kind = ", for simulated units only"
	}
	_, _ = fmt.Fprintf(a.out, "%s keystore %s at %s%s: %d records\n", info.Kind, info.ID, info.Where, kind, len(rows))
	for _, r := range rows {
		_, _ = fmt.Fprintf(a.out, "%s  %-8s  %-17s  key %.16s…  %s\n", r.Unit, r.Chip, r.State, r.Fingerprint, r.Recipe)
	}
	return nil
}

// openKeystore opens what --keystore names. A station stores keys and does not
// read them, so no identity is asked for.
func openKeystore(path string) (keystore.Store, error) { return openKeystoreWith(path, "") }

func openKeystoreWith(path, identity string) (keystore.Store, error) {
	if path == "" {
		return nil, usage("--keystore has no default: name a keystore, or make one with `provisiond keystore init FILE`")
	}
	s, err := local.Open(path, local.Options{IdentityFile: identity})
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, local.ErrMissing):
		return nil, &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore cannot be opened", NextStep: "make one with `provisiond keystore init " + path + "`", Err: err}
	case errors.Is(err, local.ErrIdentity), errors.Is(err, local.ErrMode):
		return nil, &usageError{err}
	}
	return nil, &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore cannot be opened", Err: err}
}
