package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	qa "github.com/provisiond/provisiond/provision/report" // main has a function report
)

type auditCmd struct {
	Unit      auditUnitCmd      `cmd:"" help:"Make, show and verify the certificate of one unit."`
	Lot       auditLotCmd       `cmd:"" help:"Report a lot: yields, scrap reasons, cycle times, serial numbers."`
	Reconcile auditReconcileCmd `cmd:"" help:"Hold journals against a keystore's records; never reads a key."`
	Inventory auditInventoryCmd `cmd:"" help:"Export what reconcile needs of journals and keystores, as lines of JSON."`
}

type auditUnitCmd struct {
	MAC     string   `arg:"" optional:"" name:"mac" help:"The unit." placeholder:"MAC"`
	Journal []string `help:"The journal to make the certificate from; again for the journals that it succeeds." placeholder:"F"`
	journalKeeping
	chainFlags
	Out       string `help:"Write the certificate into this new file." placeholder:"FILE"`
	Verify    string `help:"Verify this certificate instead; needs --public-key and nothing else." placeholder:"FILE"`
	PublicKey string `help:"The public key of the station, NAME+HASH+KEY, or a file that holds it." placeholder:"K"`
	JSON      bool   `help:"The certificate, or with --verify its statement, on standard output."`
}

func (c *auditUnitCmd) Run(a *app) error {
	switch {
	case c.Verify != "" && (len(c.Journal) > 0 || c.Out != ""):
		return usage("--verify goes with --public-key only")
	case c.Verify != "":
		return c.verify(a)
	case c.MAC == "" || len(c.Journal) == 0:
		return usage("name a unit and its journal: provisiond audit unit MAC --journal F; or a certificate: provisiond audit unit --verify FILE --public-key K")
	}
	mac, err := chip.ParseMAC(c.MAC)
	if err != nil {
		return usage("the unit: %w", err)
	}
	open := c.openForReading
	if len(c.Journal) > 1 { // key and anchor are of one of them
		open = readJournal
	}
	js, done, err := openAll(a, c.Journal, open)
	if err != nil {
		return err
	}
	defer done()
	j, err := c.journalOf(a, js, mac)
	if err != nil {
		return err
	}
	if len(js) > 1 && c.journalKeeping != (journalKeeping{}) && !j.live {
		j.Close()
		if j, err = c.openForReading(a, j.path); err != nil {
			return err
		}
		defer j.Close()
	}
	cert, err := c.certificate(a, j, mac)
	if err != nil {
		return err
	}
	if c.Out != "" {
		if err := writeNew(c.Out, cert); err != nil {
			return err
		}
	}
	if c.JSON {
		_, err = a.out.Write(cert)
		return err
	}
	parsed, err := qa.ParseCertificate(cert)
	if err != nil {
		return err
	}
	printStatement(a.out, parsed)
	if c.Out != "" {
		_, _ = fmt.Fprintf(a.out, "written to %s; verify it with `provisiond audit unit --verify %s --public-key %s`\n", c.Out, c.Out, journal.PublicKeyPath(j.path))
	}
	return nil
}

// journalOf finds the journal that a unit's certificate is made from: the newest
// that knows it.
func (c *auditUnitCmd) journalOf(a *app, js []*openedJournal, mac chip.MAC) (*openedJournal, error) {
	for _, j := range js {
		if s := j.Info().Succeeds; s != nil && len(js) == 1 && !slices.Contains(c.Lost, s.Journal) {
			a.note("%s succeeds journal %s, which may tell more of the unit: name it too with --journal", j.path, s.Journal)
		}
	}
	if len(js) > 1 {
		if err := c.chainFlags.check(a, js); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(js, func(x, y *openedJournal) int { return cmp.Compare(y.Info().Generation(), x.Info().Generation()) })
	var found *openedJournal
	for _, j := range js {
		entries, err := j.Unit(mac)
		switch {
		case err != nil:
			return nil, journalFailure(j.path, err)
		case len(entries) == 0:
		case found == nil:
			found = j
		default:
			a.note("%s has %d entries of the unit too; a certificate is of one journal, and this one is of %s", j.path, len(entries), found.path)
		}
	}
	if found == nil {
		return nil, usage("%s knows nothing of unit %s: name the journal of the station that made it", strings.Join(c.Journal, ", "), mac)
	}
	return found, nil
}

// certificate signs with the key of the journal's checkpoints.
func (c *auditUnitCmd) certificate(a *app, j *openedJournal, mac chip.MAC) ([]byte, error) {
	path, keyFile := j.path, c.SigningKey
	if keyFile == "" {
		keyFile = journal.KeyPath(path)
	}
	signer, closeSigner, err := c.signer(path, j.Info().PublicKey)
	var wrong *usageError
	if errors.As(err, &wrong) {
		return nil, err
	}
	if err == nil {
		defer func() { _ = closeSigner() }()
	}
	if err != nil {
		return nil, &provision.Failure{
			Cause: provision.CauseJournal, Reason: "the certificate cannot be signed: the journal's key is not at hand",
			NextStep: "run this on the station, where " + keyFile + " is, or name the file with --signing-key", Err: err,
		}
	}
	newest := j.Checkpoint // signs one if there is something new
	if !j.Info().CanSign {
		newest = func(context.Context) (journal.Checkpoint, error) { return j.LastCheckpoint() }
	}
	checkpoint, err := newest(a.ctx)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	made, _ := j.Head()
	log := qa.Log{
		Unit: j.Unit, Entries: j.Entries, Checkpoint: checkpoint.Note,
		Prove: func(index, size uint64) ([]journal.Hash, error) { return j.Prove(index, size) },
	}
	cert, err := qa.NewCertificate(a.ctx, log, mac, signer)
	if err != nil && j.live && checkpoint.Size < made {
		return nil, &provision.Failure{
			Cause: provision.CauseJournal, Reason: "the certificate cannot be made yet",
			NextStep: "the station signs a checkpoint at most ten seconds after an entry: try again then", Err: err,
		}
	}
	if err != nil {
		return nil, journalFailure(path, err)
	}
	return cert, nil
}

func (c *auditUnitCmd) verify(a *app) error {
	if c.PublicKey == "" {
		return usage("--verify needs --public-key: the station's key, as QA keeps it")
	}
	key, err := publicKey(c.PublicKey)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(c.Verify)
	if err != nil {
		return usage("--verify: %w", err)
	}
	cert, err := qa.VerifyCertificate(b, key)
	switch {
	case errors.Is(err, qa.ErrCertificate):
		return &codeError{code: provision.ExitFail, err: fmt.Errorf("%s: %w", c.Verify, err)}
	case err != nil:
		return &usageError{err}
	}
	if c.MAC != "" && !strings.EqualFold(c.MAC, cert.Statement.Unit) {
		return &codeError{code: provision.ExitFail, err: fmt.Errorf("%s is the certificate of unit %s", c.Verify, cert.Statement.Unit)}
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(cert.Statement)
	}
	printStatement(a.out, cert)
	_, err = fmt.Fprintf(a.out, "holds: signed, and each of its %d entries is in the journal that the checkpoint is of\n", len(cert.Evidence))
	return err
}

// printStatement shows a certificate to a person. What boards and people wrote
// does nothing to a terminal.
func printStatement(w io.Writer, c qa.Certificate) {
	s := c.Statement
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "  %-9s %s\n", name, harmless(fmt.Sprintf(format, args...)))
	}
	note := ""
	if s.Simulated {
		note = "  (simulated)"
	}
	verdict := s.Verdict
	if verdict == "" {
		verdict = "OPEN"
	}
	_, _ = fmt.Fprintf(w, "%s  %s  %s %s  %s%s\n", paint(w, provision.Verdict(verdict)), s.Unit, s.Chip, s.Revision, s.Profile, note)
	if s.Serial != "" {
		line("serial", "%s", s.Serial)
	}
	if s.Reason != "" {
		line("reason", "%s", s.Reason)
	}
	for _, id := range s.Advisories {
		text := "this build does not know what it says"
		if a, ok := chip.FindAdvisory(id); ok {
			if text = a.Statement; a.When != "" {
				text += " Matters with: " + a.When + "."
			}
		}
		line("known", "%s: %s", id, text)
	}
	line("recipe", "%s revision %d, SHA-256 %s", s.Recipe, s.RecipeRevision, s.RecipeSHA256)
	line("key", "%s", s.KeyFingerprint)
	line("kept", "%s version %d", s.KeyRef, s.KeyVersion)
	if s.Security != nil {
		for _, l := range s.Security.Lines() {
			line("security", "%s", l)
		}
	}
	for _, i := range s.Images {
		line("image", "%s at 0x%x, %d bytes, SHA-256 %s", i.Name, i.Offset, i.Length, i.PlaintextSHA256)
	}
	if s.Closing != nil {
		line("closed", "%s, shown by %s", s.Closing.Fuse, s.Closing.Evidence)
	}
	for _, f := range []struct {
		name  string
		state qa.FuseState
	}{{"before", s.EFuseBefore}, {"after", s.EFuseAfter}} {
		if f.state.Token != "" {
			line(f.name, "%s", f.state.Token)
		} else {
			line(f.name, "no token: %s", f.state.Note)
		}
	}
	line("made", "%s to %s, station %s, slot %s, operator %s, lot %s", s.Begun, s.Ended, s.Station, orDash(s.Slot), orDash(s.Operator), orDash(s.Lot))
	for n, t := range s.Attempts {
		verdict := t.Verdict
		if verdict == "" {
			verdict = "cut off"
		}
		line("attempt", "%d: %s, entries %d to %d", n+1, verdict, t.First, t.Last)
	}
	for _, r := range s.Reworks {
		line("rework", "%s, ordered by %s, entry %d", r.Reason, orDash(r.Operator), r.Entry)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// harmless takes control characters out.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7F || r >= 0x80 && r < 0xA0 {
			return ' '
		}
		return r
	}, s)
}

// writeNew writes a file that must not be there yet: reports are evidence.
func writeNew(path string, b []byte) error { return writeNewAs("--out", path, b, 0o644) } // a report is to be handed on

// writeNewAs is writeNew for the file of any flag.
func writeNewAs(flag, path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return usage("%s: %s is there already, and nothing is overwritten", flag, path)
	}
	if err != nil {
		return usage("%s: %w", flag, err)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// chainFlags are for journals that succeed others.
type chainFlags struct {
	Lost []string `help:"The id of a journal that a given one succeeds and that nobody has any more; again for more." placeholder:"ID"`

	single bool // a journal may be given without the one before: another command sees all
}

// qaAnchor is what the journals of a report must agree with.
type qaAnchor struct {
	Anchor string `help:"The folder that keeps the stations' signed checkpoints, or vault:FILE.yaml; each station's newest journal must agree with it." placeholder:"DIR"`
}

// of gives what a journal is checked against. One that another succeeds is not the
// newest; one that is in use is compared by whoever has it.
func (q qaAnchor) of(j *openedJournal, all []*openedJournal) ([]journal.VerifyOption, error) {
	succeeded := slices.ContainsFunc(all, func(o *openedJournal) bool {
		s := o.Info().Succeeds
		return s != nil && s.Journal == j.Info().ID
	})
	if q.Anchor == "" || succeeded || j.live {
		return nil, nil
	}
	anchor, err := journalKeeping{Anchor: q.Anchor}.anchorOf(j.Info().Station)
	if err != nil {
		return nil, err
	}
	return []journal.VerifyOption{journal.AgainstAnchor(anchor)}, nil
}

type auditLotCmd struct {
	Journal []string `help:"The station's journal; again for more stations, and for the journals that it succeeds." required:"" placeholder:"F"`
	chainFlags
	qaAnchor
	Lot       string   `help:"Only this lot. Default: every unit." placeholder:"L"`
	PublicKey []string `help:"The public key that QA has of a journal, or a file that holds it; again for more. Default: the one that the journal names itself." placeholder:"K"`
	Quantity  int      `help:"How many units the order asks for." placeholder:"N"`
	Format    string   `help:"json, csv, xlsx or pdf." enum:"json,csv,xlsx,pdf" default:"json"`
	Out       string   `help:"Write the report into this new file. Default: standard output." placeholder:"FILE"`
}

func (c *auditLotCmd) Run(a *app) error {
	if c.Quantity < 0 {
		return usage("--quantity is a number of units")
	}
	if c.Out == "" && (c.Format == "xlsx" || c.Format == "pdf") && onTerminal(a.out) {
		return usage("--format %s is not for a terminal: add --out FILE", c.Format)
	}
	js, done, err := openVerified(a, c.Journal, c.PublicKey, c.qaAnchor, c.chainFlags)
	if err != nil {
		return err
	}
	defer done()
	var all []qa.Entries
	for _, j := range js {
		all = append(all, j.Entries(0, journal.All))
	}
	p, err := qa.ProjectLot(all...)
	if err != nil {
		return journalFailure(c.Journal[0], err)
	}
	l := qa.NewLot(p, qa.LotOptions{Lot: c.Lot, Ordered: c.Quantity})
	if c.Lot != "" && l.Counts.Units+l.Simulated.Units+l.Unknown == 0 {
		return usage("no attempt of lot %q is in %s", c.Lot, strings.Join(c.Journal, ", "))
	}
	format := map[string]func() ([]byte, error){"json": l.JSON, "csv": l.CSV, "xlsx": l.XLSX, "pdf": l.PDF}[c.Format]
	b, err := format()
	if err != nil {
		return err
	}
	if c.Out != "" {
		return writeNew(c.Out, b)
	}
	_, err = a.out.Write(b)
	return err
}

func onTerminal(w io.Writer) bool {
	_, ok := terminal(w)
	return ok
}

// against finds the key that QA has of a journal. Its name is the journal's.
func against(id string, keys []string) ([]journal.VerifyOption, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	for _, s := range keys {
		key, err := publicKey(s)
		if err != nil {
			return nil, err
		}
		if name, _, ok := strings.Cut(key, "+"); ok && strings.HasSuffix(name, "/"+id) {
			return []journal.VerifyOption{journal.AgainstKey(key)}, nil
		}
	}
	return nil, usage("--public-key: none of the keys is that of journal %s", id)
}

// openAll opens journals, each once.
func openAll(a *app, paths []string, open func(a *app, path string) (*openedJournal, error)) (js []*openedJournal, done func(), err error) {
	done = func() {
		for _, j := range js {
			j.Close()
		}
	}
	seen := map[string]string{}
	for i, path := range paths {
		if slices.Contains(paths[:i], path) {
			done()
			return nil, nil, usage("%s is named twice: name each journal once", path)
		}
		j, err := open(a, path)
		if err != nil {
			done()
			return nil, nil, err
		}
		js = append(js, j)
		if other, ok := seen[j.Info().ID]; ok {
			done()
			return nil, nil, usage("%s and %s are the same journal: name it once", other, path)
		}
		seen[j.Info().ID] = path
	}
	return js, done, nil
}

// openVerified opens journals and checks every entry, and that those are there
// which others succeed: a report of a changed journal would be worth nothing.
func openVerified(a *app, paths, keys []string, anchor qaAnchor, chain chainFlags) (js []*openedJournal, done func(), err error) {
	js, done, err = openAll(a, paths, readJournal)
	if err != nil {
		return nil, nil, err
	}
	if err := verifyAll(a, js, keys, anchor, chain); err != nil {
		done()
		return nil, nil, err
	}
	return js, done, nil
}

func verifyAll(a *app, js []*openedJournal, keys []string, anchor qaAnchor, chain chainFlags) error {
	for _, j := range js {
		options, err := against(j.Info().ID, keys)
		if err != nil {
			return err
		}
		anchored, err := anchor.of(j, js)
		if err != nil {
			return err
		}
		options = append(options, anchored...)
		if _, err := j.Verify(a.ctx, nil, options...); err != nil {
			return journalFailure(j.path, err)
		}
	}
	return chain.check(a, js)
}

// inventorySources are journals and keystores, or what was exported of them.
type inventorySources struct {
	Journal []string `help:"A station's journal; again for more stations, and for the journals that it succeeds." placeholder:"F"`
	chainFlags
	qaAnchor
	PublicKey []string `help:"The public key that QA has of a journal, or a file that holds it; again for more. Default: the one that the journal names itself." placeholder:"K"`
	Keystore  []string `help:"A keystore; again for more." placeholder:"S"`
}

// lines shows everything that the sources hold, a journal's lines together.
func (s inventorySources) lines(a *app, unit func(qa.UnitLine) error, head func(qa.HeadLine) error, key func(qa.KeyLine) error) error {
	js, done, err := openVerified(a, s.Journal, s.PublicKey, s.qaAnchor, s.chainFlags)
	if err != nil {
		return err
	}
	defer done()
	for _, j := range js {
		if err := qa.JournalLines(j.Entries(0, journal.All), unit, head); err != nil {
			return journalFailure(j.path, err)
		}
	}
	for _, path := range s.Keystore {
		store, err := openKeystore(a.ctx, path)
		if err != nil {
			return err
		}
		err = errors.Join(qa.KeystoreLines(a.ctx, store, key), store.Close())
		if err != nil {
			return &provision.Failure{
				Cause: provision.CauseKeystore, Reason: "the keystore's records cannot be listed",
				NextStep: "check it with `provisiond keystore check`; the role must be allowed to list units", Err: err,
			}
		}
	}
	return nil
}

type auditInventoryCmd struct {
	inventorySources
	Out string `help:"Write the lines into this new file. Default: standard output." placeholder:"FILE"`
}

func (c *auditInventoryCmd) Run(a *app) error {
	c.single = true
	if len(c.Journal)+len(c.Keystore) == 0 {
		return usage("name at least one --journal or --keystore")
	}
	out := a.out
	finish := func() error { return nil }
	if c.Out != "" {
		if err := writeNew(c.Out, nil); err != nil {
			return err
		}
		f, err := os.OpenFile(c.Out, os.O_WRONLY, 0)
		if err != nil {
			return usage("--out: %w", err)
		}
		out, finish = f, func() error { return errors.Join(f.Sync(), f.Close()) }
	}
	w := bufio.NewWriterSize(out, 1<<20)
	var line []byte
	put := func(l interface{ Append([]byte) []byte }) error {
		line = l.Append(line[:0])
		_, err := w.Write(line)
		return err
	}
	err := c.lines(a, func(l qa.UnitLine) error { return put(l) }, func(l qa.HeadLine) error { return put(l) }, func(l qa.KeyLine) error { return put(l) })
	if err == nil {
		err = w.Flush()
	}
	err = errors.Join(err, finish())
	if err != nil && c.Out != "" {
		err = errors.Join(err, os.Remove(c.Out)) // half an inventory would give findings
	}
	return err
}

type auditReconcileCmd struct {
	inventorySources
	Inventory []string `help:"A file that audit inventory wrote; again for more." placeholder:"FILE"`
	JSON      bool     `help:"Answer in JSON."`
}

func (c *auditReconcileCmd) Run(a *app) error {
	if len(c.Inventory) == 0 && (len(c.Journal) == 0 || len(c.Keystore) == 0) {
		return usage("name both sides: --journal F (of every station) and --keystore S, or what `audit inventory` exported of them with --inventory FILE")
	}
	r := qa.NewReconciler()
	keys, heads := len(c.Keystore), len(c.Journal)
	for _, path := range c.Inventory {
		f, err := os.Open(path)
		if err != nil {
			return usage("--inventory: %w", err)
		}
		err = qa.ReadInventory(f, func(line any) error {
			switch line.(type) {
			case qa.KeyLine:
				keys++
			case qa.HeadLine:
				heads++
			}
			return r.Add(line)
		})
		if err := errors.Join(err, f.Close()); err != nil {
			return usage("%s: %w", filepath.Clean(path), err)
		}
	}
	err := c.lines(a, r.AddUnit, r.AddHead, r.AddKey)
	if err != nil {
		return err
	}
	if keys == 0 || heads == 0 {
		return usage("one side is missing: there are %d journals and %d keystores or key records", heads, keys)
	}
	rec := r.Reconcile()
	if c.JSON {
		if err := json.NewEncoder(a.out).Encode(rec); err != nil {
			return err
		}
	} else {
		for _, f := range rec.Findings {
			where := ""
			if f.Station != "" {
				where = "  station " + f.Station
			}
			if f.Entry != 0 {
				where += fmt.Sprintf(" entry %d", f.Entry)
			}
			_, _ = fmt.Fprintf(a.out, "%-20s  %s  key %.16s…  %s%s\n", f.Kind, f.Unit, f.Fingerprint, harmless(f.Text), harmless(where))
		}
		if rec.NotShown > 0 {
			_, _ = fmt.Fprintf(a.out, "and %d more\n", rec.NotShown)
		}
		_, _ = fmt.Fprintf(a.out, "%d journals, %d units, %d key records, %d findings\n", rec.Journals, rec.Units, rec.Records, len(rec.Findings)+rec.NotShown)
	}
	if len(rec.Findings) > 0 {
		return &codeError{code: provision.ExitFail}
	}
	return nil
}
