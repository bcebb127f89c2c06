package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

type keystoreCmd struct {
	Init     keystoreInitCmd     `cmd:"" help:"Make a local keystore, whose keys are sealed to an age identity file or a passphrase; or set up a Vault."`
	Describe keystoreDescribeCmd `cmd:"" help:"Show what a keystore is and which units it holds, or one of them; never a key."`
	Health   keystoreHealthCmd   `cmd:"" help:"Look whether a Vault takes keys, and if not, why; exit code 0 only when it is ready."`
	Escrow   keystoreEscrowCmd   `cmd:"" help:"What waits in a sealed escrow, and how the custodian brings it to the keystore."`
	Check    keystoreCheckCmd    `cmd:"" help:"Check that custody can be taken, and every record."`
	Export   keystoreExportCmd   `cmd:"" help:"Write all records, sealed to age recipients, for the custodian of the keys."`
	Policy   keystorePolicyCmd   `cmd:"" help:"Print the Vault policy of a role."`
	SecretID keystoreSecretIDCmd `cmd:"" name:"secret-id" help:"Make a Vault login for a station, the OTA server or auditors: a response-wrapped secret id."`
	Ticket   keystoreTicketCmd   `cmd:"" help:"Make a Vault token that reads one unit's key, for rework."`
}

// keystoreFile is the keystore that a command is about.
type keystoreFile struct {
	Path     string `arg:"" optional:"" name:"keystore-file" help:"The keystore file." placeholder:"S"`
	Keystore string `help:"The same, as a flag." placeholder:"S"`
}

func (f keystoreFile) name() (string, error) { return oneName("keystore", f.Path, f.Keystore) }

type keystoreInitCmd struct {
	keystoreFile
	Identity       string `help:"The age identity file to seal to; made if it is missing. Default: FILE.identity. Keep it away from the station: it opens every key." placeholder:"FILE"`
	PassphraseFile string `help:"Seal to the passphrase in this file (mode 0600) instead." placeholder:"FILE"`
	Test           bool   `help:"A test store: takes simulated units, and only those."`
	JSON           bool   `help:"Answer in JSON."`
	vaultInitFlags
}

func (c *keystoreInitCmd) Run(a *app) error {
	if vault.IsFlag(c.Path) || vault.IsFlag(c.Keystore) {
		c.Vault, c.Path, c.Keystore = c.Path+c.Keystore, "", ""
	}
	if c.used() {
		return c.vaultInitFlags.run(a, c.Test, c.JSON)
	}
	path, err := c.name()
	if err != nil {
		return err
	}
	o := local.Options{TestStore: c.Test, PassphraseFile: c.PassphraseFile, IdentityFile: c.Identity}
	if c.PassphraseFile != "" && c.Identity != "" {
		return usage("--identity and --passphrase-file do not go together: choose one")
	}
	made := ""
	if c.PassphraseFile == "" {
		if o.IdentityFile == "" {
			o.IdentityFile = path + ".identity"
		}
		if _, err := os.Stat(path); err == nil {
			return usage("%s exists already; nothing was changed", path)
		}
		if _, err := os.Stat(o.IdentityFile); errors.Is(err, fs.ErrNotExist) {
			if _, err := local.NewIdentity(o.IdentityFile); err != nil {
				return &usageError{err}
			}
			made = o.IdentityFile
		}
	}
	if err := local.Init(path, o); err != nil {
		return &usageError{err}
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"keystore": path, "identity": o.IdentityFile, "identity_made": made != "", "test_store": c.Test})
	}
	_, _ = fmt.Fprintf(a.out, "made keystore %s\n", path)
	if made != "" {
		_, _ = fmt.Fprintf(a.out, "made identity %s: it opens every key of this store. Move it to a safe place; a station does not need it.\n", made)
	}
	return nil
}

type keystoreDescribeCmd struct {
	keystoreFile
	Unit     string `help:"Only this unit; a station may ask for no more." placeholder:"MAC"`
	Identity string `help:"Open the seal with this age identity file, and check every record with it." placeholder:"FILE"`
	JSON     bool   `help:"Answer in JSON."`
	escrowFlags
}

func (c *keystoreDescribeCmd) Run(a *app) error {
	path, err := c.name()
	if err != nil {
		return err
	}
	s, err := c.open(a.ctx, path, c.Identity)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	info, err := s.Info(a.ctx)
	if err != nil {
		return err
	}
	type unitJSON struct {
		Unit        string           `json:"unit"`
		Chip        string           `json:"chip"`
		Fingerprint string           `json:"key_fingerprint"`
		KeyRef      string           `json:"key_ref"`
		State       string           `json:"state"`
		Recipe      string           `json:"recipe"`
		Revision    int              `json:"recipe_revision"`
		Created     string           `json:"created"`
		OTAToken    *keystore.Digest `json:"ota_token_sha256,omitempty"`
		ECIES       string           `json:"ecies_public_key,omitempty"`
		Scheme      string           `json:"secure_boot_scheme,omitempty"`
		Digests     []string         `json:"secure_boot_digests,omitempty"`
		Warning     string           `json:"warning,omitempty"`
	}
	rows := []unitJSON{}
	units := s.Units(a.ctx)
	if c.Unit != "" {
		mac, err := chip.ParseMAC(c.Unit)
		if err != nil {
			return usage("--unit: %w", err)
		}
		units = func(yield func(chip.MAC, error) bool) { yield(mac, nil) }
	}
	for mac, err := range units {
		if err != nil {
			return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the units cannot be listed", Err: err}
		}
		metas, err := s.List(a.ctx, mac)
		if errors.Is(err, keystore.ErrPartial) {
			a.note("%v", err)
		} else if err != nil {
			return &provision.Failure{Cause: provision.CauseKeystore, Reason: fmt.Sprintf("the records of unit %s cannot be listed", mac), Err: err}
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
			var digests []string
			for _, d := range m.SecureBootDigests {
				digests = append(digests, hex.EncodeToString(d[:]))
			}
			rows = append(rows, unitJSON{
				mac.String(), m.Chip, m.Fingerprint.String(), m.Receipt.Ref, state,
				m.Recipe, m.RecipeRevision, m.Created.Format("2006-01-02T15:04:05Z"),
				m.OTATokenSHA256, hex.EncodeToString(m.ECIESPublicKey), m.SecureBootScheme, digests, m.Receipt.Warning,
			})
		}
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{
			"kind": info.Kind, "id": info.ID, "where": info.Where, "test_store": info.TestStore, "records": rows, "warning": info.Warning,
		})
	}
	kind := ""
	if info.TestStore {
		kind = ", for simulated units only"
	}
	_, _ = fmt.Fprintf(a.out, "%s keystore %s at %s%s: %d records\n", info.Kind, info.ID, info.Where, kind, len(rows))
	if info.Warning != "" {
		_, _ = fmt.Fprintf(a.out, "warning: %s\n", info.Warning)
	}
	for _, r := range rows {
		_, _ = fmt.Fprintf(a.out, "%s  %-8s  %-17s  key %.16s…  %s\n", r.Unit, r.Chip, r.State, r.Fingerprint, r.Recipe)
		if r.Scheme != "" {
			_, _ = fmt.Fprintf(a.out, "  Secure Boot %s, %d key digests\n", r.Scheme, len(r.Digests))
		}
		if r.Warning != "" {
			_, _ = fmt.Fprintf(a.out, "  warning: %s\n", r.Warning)
		}
	}
	return nil
}

// openKeystore opens what --keystore names. A station stores keys and does not
// read them, so no identity is asked for.
func openKeystore(ctx context.Context, path string) (keystore.Store, error) {
	return openKeystoreWith(ctx, path, "")
}

func openKeystoreWith(ctx context.Context, path, identity string) (keystore.Store, error) {
	if path == "" {
		return nil, usage("--keystore has no default: name a keystore, or make one with `provisiond keystore init FILE`")
	}
	if vault.IsFlag(path) {
		return openVault(ctx, path, identity)
	}
	s, err := local.Open(path, local.Options{IdentityFile: identity})
	if err == nil {
		return s, nil
	}
	f := &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore cannot be opened", Err: err}
	switch st, serr := os.Stat(path); {
	case errors.Is(err, local.ErrMissing):
		f.Reason, f.Err = "there is no keystore at "+path, nil
		f.NextStep = "check the path, or make one with `provisiond keystore init " + path + "`"
	case errors.Is(err, local.ErrIdentity), errors.Is(err, local.ErrMode):
		return nil, &usageError{err}
	case errors.Is(err, local.ErrLocked):
		f.NextStep = "wait for the other provisiond to end, or stop it"
	case errors.Is(err, keystore.ErrDamaged):
		f.NextStep = "restore the keystore from a backup"
	case serr == nil && st.IsDir():
		f.Reason, f.Err = path+" is a folder and not a keystore", nil
		f.NextStep = "name the keystore file in it, or make one with `provisiond keystore init " + filepath.Join(path, "keystore.db") + "`"
	}
	return nil, f
}

func openVault(ctx context.Context, flag, identity string) (keystore.Store, error) {
	if identity != "" {
		return nil, usage("--identity is for a local keystore; in Vault the role decides")
	}
	s, err := useVault(ctx, flag)
	var wrong *usageError
	if errors.As(err, &wrong) {
		return nil, err
	}
	if err != nil {
		return nil, &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore cannot be opened", Err: err}
	}
	return s, nil
}
