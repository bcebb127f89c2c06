package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/escrow"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision"
)

// escrowFlags put a sealed escrow before a keystore. There is none by default.
type escrowFlags struct {
	Escrow          string        `help:"While the keystore is away, seal keys into this folder, for a line that must not stop. Read docs/threat-model.md first." placeholder:"DIR"`
	EscrowRecipient []string      `help:"Who may open the escrow: an age recipient whose identity is offline. May be repeated." placeholder:"AGE1…"`
	EscrowMax       int           `help:"How many keys may wait in the escrow. Default: 100." placeholder:"N"`
	EscrowMaxAge    time.Duration `help:"How long the oldest key may wait before no more are taken. Default: 24h." placeholder:"D"`
}

func (f escrowFlags) config() (escrow.Config, error) {
	c := escrow.Config{Dir: f.Escrow, Recipients: f.EscrowRecipient, Max: f.EscrowMax, MaxAge: f.EscrowMaxAge}
	if err := c.Validate(); err != nil {
		return c, &usageError{err}
	}
	return c, nil
}

// open opens a keystore, behind its escrow if there is one.
func (f escrowFlags) open(ctx context.Context, path, identity string) (keystore.Store, error) {
	cfg, err := f.config()
	if err != nil {
		return nil, err
	}
	if !cfg.Enabled() {
		return openKeystoreWith(ctx, path, identity)
	}
	s, err := escrow.Open(ctx, cfg, func(ctx context.Context) (keystore.Store, error) {
		return openKeystoreWith(ctx, path, identity)
	})
	var failed *provision.Failure
	var wrong *usageError
	switch {
	case err == nil:
		return s, nil
	case errors.As(err, &failed) && !errors.Is(err, keystore.ErrUnavailable), errors.As(err, &wrong):
		return nil, err
	case errors.Is(err, keystore.ErrUnavailable), errors.Is(err, keystore.ErrDamaged):
		return nil, &provision.Failure{Cause: provision.CauseKeystore, Reason: "the keystore cannot be opened", Err: err}
	}
	return nil, &usageError{err}
}

// syncLimit bounds what a command waits for the escrow's uploads.
const syncLimit = 30 * time.Second

// syncEscrow uploads what waits, if the keystore is back. That it is not is no
// error of the command's.
func (a *app) syncEscrow(store keystore.Store) {
	s, ok := store.(*escrow.Store)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), syncLimit)
	defer cancel()
	rep, err := s.Sync(ctx)
	for _, f := range rep.Findings {
		a.note("escrow: unit %s, key %.16s…: %s", f.Unit, f.Fingerprint, f.Problem)
	}
	switch {
	case err != nil && rep.Waiting > 0:
		a.note("escrow: %d keys wait, and the keystore is not there for them: %v", rep.Waiting, err)
	case err != nil:
		a.note("escrow: %v", err)
	case rep.Waiting > 0:
		a.note("escrow: %d keys wait for the custodian (`provisiond keystore escrow drain`); their sealed records are in the keystore too", rep.Waiting)
	}
}

type keystoreEscrowCmd struct {
	List  escrowListCmd  `cmd:"" help:"Show what waits in an escrow; opens nothing."`
	Drain escrowDrainCmd `cmd:"" help:"Open what waits with the offline identity, and store it in the keystore. For the custodian."`
}

type escrowListCmd struct {
	Spool string `arg:"" help:"The escrow's folder." placeholder:"DIR"`
	JSON  bool   `help:"Answer in JSON."`
}

func (c *escrowListCmd) Run(a *app) error {
	waiting, err := escrow.List(c.Spool)
	if errors.Is(err, keystore.ErrDamaged) {
		return &provision.Failure{Cause: provision.CauseKeystore, Reason: "the escrow is damaged", NextStep: "drain what is in the keystore with --from-keystore, and keep the folder for an engineer", Err: err}
	}
	if err != nil {
		return &usageError{err}
	}
	type row struct {
		Unit        string    `json:"unit"`
		Chip        string    `json:"chip"`
		Fingerprint string    `json:"key_fingerprint"`
		State       string    `json:"state"`
		Job         string    `json:"job"`
		Station     string    `json:"station"`
		Lot         string    `json:"lot"`
		Recipe      string    `json:"recipe"`
		Sealed      time.Time `json:"sealed"`
		Recipients  []string  `json:"recipients"`
		Uploaded    bool      `json:"uploaded"`
		Store       string    `json:"store"`
	}
	rows := []row{}
	for _, w := range waiting {
		m := w.Meta
		state := string(m.Current())
		if state == "" {
			state = "stored"
		}
		rows = append(rows, row{
			m.Unit.String(), m.Chip, m.Fingerprint.String(), state, m.Job, m.Station, m.Lot, m.Recipe,
			w.Sealed, strings.Fields(w.Recipients), w.Uploaded, w.Store,
		})
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(map[string]any{"spool": c.Spool, "waiting": rows})
	}
	_, _ = fmt.Fprintf(a.out, "%d keys wait in %s\n", len(rows), c.Spool)
	for _, r := range rows {
		where := "only here"
		if r.Uploaded {
			where = "uploaded too"
		}
		_, _ = fmt.Fprintf(a.out, "%s  %-8s  %-17s  key %.16s…  sealed %s  %s\n", r.Unit, r.Chip, r.State, r.Fingerprint, r.Sealed.Format(time.RFC3339), where)
	}
	return nil
}

type escrowDrainCmd struct {
	Identity     string `help:"The custodian's age identity file, mode 0600." required:"" placeholder:"FILE"`
	Spool        string `help:"The escrow's folder, or a copy of it." placeholder:"DIR"`
	FromKeystore bool   `help:"Take the sealed records that the stations have uploaded, instead of a folder."`
	Keystore     string `help:"The keystore with the custodian's login." required:"" placeholder:"S"`
	JSON         bool   `help:"Answer in JSON."`
}

func (c *escrowDrainCmd) Run(a *app) error {
	if (c.Spool == "") != c.FromKeystore {
		return usage("name the escrow's folder with --spool DIR, or say --from-keystore: one of the two")
	}
	ids, err := escrow.ReadIdentities(c.Identity)
	if err != nil {
		return &usageError{err}
	}
	var src escrow.Source
	if c.Spool != "" {
		if src, err = escrow.Spool(c.Spool); err != nil {
			return &usageError{err}
		}
	}
	store, err := openKeystore(a.ctx, c.Keystore)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	if c.FromKeystore {
		custody, ok := store.(escrow.Custody)
		if !ok {
			return usage("--from-keystore: only a keystore in Vault has sealed records: name the folder with --spool")
		}
		src = escrow.Uploads(custody)
	}
	rep, err := escrow.Drain(a.ctx, src, ids, store, time.Now)
	if err == nil || rep.Stored+rep.GivenUp+len(rep.Findings) > 0 {
		if perr := c.print(a, rep); perr != nil {
			return perr
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return &usageError{err}
	case err != nil:
		return &provision.Failure{
			Cause: provision.CauseKeystore, Reason: "the escrow was not drained to its end", Err: err,
			NextStep: "run the same again: what was done is not done twice",
		}
	case len(rep.Findings) > 0:
		return &codeError{code: provision.ExitKeystore}
	}
	return nil
}

func (c *escrowDrainCmd) print(a *app, rep escrow.DrainReport) error {
	if c.JSON {
		return json.NewEncoder(a.out).Encode(rep)
	}
	for _, f := range rep.Findings {
		_, _ = fmt.Fprintf(a.out, "%s  key %.16s…  %s\n", f.Unit, f.Fingerprint, f.Problem)
	}
	_, err := fmt.Fprintf(a.out, "%d keys stored and confirmed, %d were given up before a burn, %d stay where they are\n", rep.Stored, rep.GivenUp, len(rep.Findings))
	return err
}

type keystoreHealthCmd struct {
	Keystore string `arg:"" help:"The Vault: vault:FILE.yaml." placeholder:"S"`
	JSON     bool   `help:"Answer in JSON."`
}

// Run asks every configured server. Everything but "ready" ends with the code of
// a keystore that is not available, also a clock that is wrong: keys could be
// taken, and their records would carry a wrong time.
func (c *keystoreHealthCmd) Run(a *app) error {
	if !vault.IsFlag(c.Keystore) {
		return usage("%s is no Vault: write vault:FILE.yaml", c.Keystore)
	}
	cfg, err := vault.FromFlag(c.Keystore)
	if err != nil {
		return &usageError{err}
	}
	h, err := vault.CheckHealth(a.ctx, cfg)
	if err != nil {
		return &usageError{err}
	}
	if c.JSON {
		err = json.NewEncoder(a.out).Encode(map[string]any{
			"state": h.State, "usable": h.Usable(), "words": h.Words, "address": h.Address, "skew_s": h.Skew.Seconds(),
		})
	} else {
		_, err = fmt.Fprintln(a.out, h)
	}
	if err == nil && h.State != vault.Ready {
		err = &codeError{code: provision.ExitKeystore}
	}
	return err
}
