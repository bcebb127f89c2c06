package report

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// CertificateFormat is the version of the certificate's form.
const CertificateFormat = 1

// Certificate says what was done to one unit, and proves it: the statement is
// made of the entries in the evidence and of nothing else, every entry is in the
// journal that the checkpoint is of, and checkpoint and certificate are signed.
type Certificate struct {
	Format     int        `json:"format"`
	Statement  Statement  `json:"statement"`
	Evidence   []Evidence `json:"evidence"`
	Checkpoint string     `json:"checkpoint"` // a signed note
	Signature  string     `json:"signature"`  // the signature line of a note; see signedText
}

// Evidence is an entry of the journal with its proof of inclusion.
type Evidence struct {
	Entry json.RawMessage `json:"entry"` // canonical, as it is in the journal
	Proof []string        `json:"proof"` // RFC 6962 audit path, hex
}

// Statement is what a certificate says.
type Statement struct {
	Unit      string `json:"unit"` // base MAC
	Serial    string `json:"serial"`
	Simulated bool   `json:"simulated"`
	Verdict   string `json:"verdict"` // empty: the last attempt has no end
	Cause     string `json:"cause"`
	Reason    string `json:"reason"`

	Chip      string `json:"chip"`
	Revision  string `json:"revision"`
	FlashID   string `json:"flash_id"`
	FlashSize uint32 `json:"flash_size"`
	// Advisories names what was known of this silicon when the unit was planned: ids
	// of esp/chip. Certificates of before it was recorded have none.
	Advisories []string `json:"advisories,omitempty"`

	Recipe         string `json:"recipe"`
	RecipeRevision int    `json:"recipe_revision"`
	RecipeSHA256   string `json:"recipe_sha256"`
	Profile        string `json:"profile"`
	PlanSHA256     string `json:"plan_sha256"`
	TableSHA256    string `json:"table_sha256"`

	KeyFingerprint string `json:"key_fingerprint"`
	KeyRef         string `json:"key_ref"`
	KeyVersion     int    `json:"key_version"`
	KeyStore       string `json:"key_store"`
	KeyBlock       string `json:"key_block"`

	// Security is what the recipe did beside its profile; certificates of before it was
	// recorded have none. OTATokenSHA256 and ECIESPublicKey are hex, and absent if the
	// unit has no such secret.
	Security       *provision.Security `json:"security,omitempty"`
	OTATokenSHA256 string              `json:"ota_token_sha256,omitempty"`
	ECIESPublicKey string              `json:"ecies_public_key,omitempty"`

	Images []Image `json:"images"`

	EFuseBefore FuseState `json:"efuse_before"`
	EFuseAfter  FuseState `json:"efuse_after"` // the last that could be read

	BootText string             `json:"boot_text"`
	Closing  *provision.Closing `json:"closing"`

	Station  string        `json:"station"`
	Slot     string        `json:"slot"`
	Operator string        `json:"operator"`
	Lot      string        `json:"lot"`
	Tool     string        `json:"tool"`
	Job      string        `json:"job"`
	Begun    string        `json:"begun"` // of the job's first attempt
	Ended    string        `json:"ended"`
	Entry    uint64        `json:"entry"` // of the verdict in the journal
	Attempts []AttemptLine `json:"attempts"`
	Reworks  []ReworkLine  `json:"reworks"`
}

// FuseState is all eFuses at one moment.
type FuseState struct {
	Blocks []efuse.BlockWords    `json:"blocks"`
	Errors []efuse.ErrorRegister `json:"error_registers"`
	Token  string                `json:"token"`    // for `espefuse --token`; see Token
	Note   string                `json:"no_token"` // why there is none
}

// AttemptLine is one of the unit's attempts.
type AttemptLine struct {
	Job      string `json:"job"`
	Begun    string `json:"begun"`
	Ended    string `json:"ended"`
	Slot     string `json:"slot"`
	Operator string `json:"operator"`
	Verdict  string `json:"verdict"`
	Cause    string `json:"cause"`
	Reason   string `json:"reason"`
	First    uint64 `json:"first_entry"`
	Last     uint64 `json:"last_entry"`
}

// ReworkLine is a rework that a person ordered.
type ReworkLine struct {
	Entry    uint64 `json:"entry"`
	Time     string `json:"time"`
	Operator string `json:"operator"`
	Reason   string `json:"reason"`
}

// Signer signs certificates, with the key of the journal's checkpoints. A
// journal.Signer is one.
type Signer interface {
	// PublicKey gives the verifier key in the form of golang.org/x/mod/sumdb/note.
	PublicKey() string
	// Sign gives the Ed25519 signature of msg.
	Sign(ctx context.Context, msg []byte) ([]byte, error)
}

// Log is the journal that a certificate is made from.
type Log struct {
	// Unit gives the entries that name a unit, Entries a range of all entries:
	// (*journal.Journal).Unit and Entries.
	Unit    func(chip.MAC) ([]journal.Entry, error)
	Entries func(from, to uint64) Entries
	// Prove gives the hashes that prove that entry index is in the tree of the
	// first size entries (RFC 6962, section 2.1.1).
	Prove func(index, size uint64) ([]journal.Hash, error)
	// Checkpoint is a signed checkpoint that covers the unit's last entry.
	Checkpoint []byte
}

// ErrNoUnit says that the journal does not know the unit.
var ErrNoUnit = errors.New("report: the journal knows nothing of this unit")

// ErrCertificate is the class of all errors of ParseCertificate and Verify.
var ErrCertificate = errors.New("report: this certificate does not hold")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCertificate, fmt.Errorf(format, args...))
}

// UnitEntries gives everything in the journal that is about a unit: the entries
// that name it, and those of the same attempts from before its MAC was read.
func (l Log) UnitEntries(mac chip.MAC) ([]journal.Entry, error) {
	named, err := l.Unit(mac)
	if err != nil {
		return nil, err
	}
	if len(named) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoUnit, mac)
	}
	var out []journal.Entry
	for _, e := range named {
		if e.Step == stepInspect && e.Kind == journal.KindObserved { // the first that names the unit
			begin, err := l.begin(e)
			if err != nil {
				return nil, err
			}
			out = append(out, begin...)
		}
		out = append(out, e)
	}
	return out, nil
}

// begin walks back from an entry to its attempt's connect.
func (l Log) begin(e journal.Entry) ([]journal.Entry, error) {
	const window = 64
	var out []journal.Entry
	for to := e.Index; to > 0; {
		from := to - min(to, window)
		var part []journal.Entry
		for o, err := range l.Entries(from, to) {
			if err != nil {
				return nil, err
			}
			if o.Slot == e.Slot && o.Unit == (chip.MAC{}) && (o.Kind == journal.KindIntent || o.Kind == journal.KindObserved) {
				part = append(part, o)
			}
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i].Step == stepConnect && part[i].Kind == journal.KindIntent {
				return append(slices.Clone(part[i:]), out...), nil
			}
		}
		out = append(part, out...)
		to = from
	}
	return nil, fmt.Errorf("journal entry %d: no %s before it in slot %s", e.Index, stepConnect, e.Slot)
}

// NewCertificate makes and signs the certificate of a unit.
func NewCertificate(ctx context.Context, log Log, mac chip.MAC, signer Signer) ([]byte, error) {
	entries, err := log.UnitEntries(mac)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(signer.PublicKey())
	if err != nil {
		return nil, fmt.Errorf("report: the signer's public key: %w", err)
	}
	tree, err := openCheckpoint(string(log.Checkpoint), v)
	if err != nil {
		return nil, err
	}
	c := Certificate{Format: CertificateFormat, Checkpoint: string(log.Checkpoint)}
	if c.Statement, err = state(mac, entries); err != nil {
		return nil, err
	}
	for _, e := range entries {
		if int64(e.Index) >= tree.N {
			return nil, fmt.Errorf("report: entry %d is newer than the checkpoint of %d entries: make a checkpoint first", e.Index, tree.N)
		}
		line, err := e.Canonical()
		if err != nil {
			return nil, err
		}
		hashes, err := log.Prove(e.Index, uint64(tree.N))
		if err != nil {
			return nil, err
		}
		ev := Evidence{Entry: line, Proof: make([]string, len(hashes))}
		for i, h := range hashes {
			ev.Proof[i] = h.String()
		}
		c.Evidence = append(c.Evidence, ev)
	}
	text, err := c.signedText()
	if err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: text}, &signing{ctx, signer, v})
	if err != nil {
		return nil, fmt.Errorf("report: sign the certificate: %w", err)
	}
	c.Signature = strings.TrimPrefix(string(signed), text+"\n")
	b, err := c.Canonical()
	if err != nil {
		return nil, err
	}
	// A signer in another place may do what it likes; nothing leaves here that
	// does not hold.
	if _, err := VerifyCertificate(b, signer.PublicKey()); err != nil {
		return nil, err
	}
	return b, nil
}

// signing is a Signer for package note.
type signing struct {
	ctx    context.Context //nolint:containedctx // one call
	signer Signer
	v      note.Verifier
}

func (s *signing) Name() string                    { return s.v.Name() }
func (s *signing) KeyHash() uint32                 { return s.v.KeyHash() }
func (s *signing) Sign(msg []byte) ([]byte, error) { return s.signer.Sign(s.ctx, msg) }

// Canonical is the certificate's only encoding: canonical JSON and a newline.
func (c Certificate) Canonical() ([]byte, error) {
	b, err := canonical(c)
	return append(b, '\n'), err
}

func canonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return canon.Object(b)
}

// signedText is what is signed: a note whose text names the unit and the SHA-256
// of the certificate's canonical JSON with an empty signature. Its first line
// keeps it apart from checkpoints, which the same key signs.
func (c Certificate) signedText() (string, error) {
	c.Signature = ""
	b, err := canonical(c)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("provisiond/certificate/%d\n%s\n%s\n", c.Format, c.Statement.Unit, base64.StdEncoding.EncodeToString(sum[:])), nil
}

// maxCertificate bounds what is parsed.
const maxCertificate = 16 << 20

// ParseCertificate reads a certificate and checks its form, and nothing else.
// What parses is encoded the same again.
func ParseCertificate(b []byte) (Certificate, error) {
	var c Certificate
	if len(b) > maxCertificate {
		return c, refuse("it has more than %d bytes", maxCertificate)
	}
	if again, err := canon.Object(b); err != nil || !bytes.Equal(append(again, '\n'), b) {
		return c, refuse("it is not canonical JSON (RFC 8785) with one newline at the end")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Certificate{}, refuse("its members are not those of a certificate: %w", err)
	}
	if c.Format != CertificateFormat {
		return Certificate{}, refuse("it has format %d, and this build knows %d", c.Format, CertificateFormat)
	}
	if again, err := c.Canonical(); err != nil || !bytes.Equal(again, b) {
		return Certificate{}, refuse("its members are not those of a certificate, or not all of them")
	}
	return c, nil
}

// VerifyCertificate checks everything that a certificate says with the public
// key alone: its signature, the checkpoint's, that every entry of the evidence is
// in the journal, and that the statement follows from these entries.
//
// It does not show that the evidence has all entries of the unit; that is what
// the signature vouches for, and the journal shows.
func VerifyCertificate(b []byte, publicKey string) (Certificate, error) {
	c, err := ParseCertificate(b)
	if err != nil {
		return c, err
	}
	v, err := note.NewVerifier(publicKey)
	if err != nil {
		return c, fmt.Errorf("report: this is no public key (NAME+HASH+KEY): %w", err)
	}
	text, err := c.signedText()
	if err != nil {
		return c, refuse("%w", err)
	}
	if n, err := note.Open([]byte(text+"\n"+c.Signature), note.VerifierList(v)); err != nil || len(n.UnverifiedSigs) > 0 {
		return c, refuse("it is not signed with key %s, or was changed afterwards", v.Name())
	}
	tree, err := openCheckpoint(c.Checkpoint, v)
	if err != nil {
		return c, err
	}
	var entries []journal.Entry
	for i, ev := range c.Evidence {
		e, err := ev.check(tree)
		if err != nil {
			return c, refuse("evidence %d: %w", i, err)
		}
		if i > 0 && e.Index <= entries[i-1].Index {
			return c, refuse("evidence %d is not in the journal's order", i)
		}
		entries = append(entries, e)
	}
	mac, err := chip.ParseMAC(c.Statement.Unit)
	if err != nil {
		return c, refuse("the unit is no MAC address")
	}
	want, err := state(mac, entries)
	if err != nil {
		return c, refuse("the evidence does not tell of the unit: %w", err)
	}
	was, err1 := canonical(c.Statement)
	should, err2 := canonical(want)
	if err := errors.Join(err1, err2); err != nil {
		return c, refuse("%w", err)
	}
	if !bytes.Equal(was, should) {
		return c, refuse("its statement does not follow from its evidence")
	}
	return c, nil
}

// check proves that an entry is in the tree.
func (ev Evidence) check(tree tlog.Tree) (journal.Entry, error) {
	e, err := journal.ParseEntry(ev.Entry)
	if err != nil {
		return e, err
	}
	if int64(e.Index) >= tree.N {
		return e, fmt.Errorf("entry %d is not among the checkpoint's %d", e.Index, tree.N)
	}
	proof := make(tlog.RecordProof, len(ev.Proof))
	for i, s := range ev.Proof {
		raw, err := hex.DecodeString(s)
		if err != nil || len(raw) != len(proof[i]) || hex.EncodeToString(raw) != s {
			return e, fmt.Errorf("hash %d of the proof is not 64 hex digits", i)
		}
		copy(proof[i][:], raw)
	}
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, int64(e.Index), tlog.Hash(journal.HashLine(ev.Entry))); err != nil {
		return e, fmt.Errorf("entry %d is not in the journal that the checkpoint is of", e.Index)
	}
	return e, nil
}

// checkpointOrigin begins the first line of a journal's checkpoints.
const checkpointOrigin = "provisiond/journal/"

// openCheckpoint checks a signed checkpoint: origin, size and root are its first
// three lines (docs/journal.md).
func openCheckpoint(signed string, v note.Verifier) (tlog.Tree, error) {
	n, err := note.Open([]byte(signed), note.VerifierList(v))
	if err != nil {
		return tlog.Tree{}, refuse("the checkpoint is not signed with key %s", v.Name())
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) < 4 || !strings.HasPrefix(lines[0], checkpointOrigin) {
		return tlog.Tree{}, refuse("the checkpoint is none of a journal")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 1 || size > canon.MaxInt {
		return tlog.Tree{}, refuse("the checkpoint has no size")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return tlog.Tree{}, refuse("the checkpoint has no root")
	}
	t := tlog.Tree{N: size}
	copy(t.Hash[:], root)
	return t, nil
}

// state makes the statement from a unit's entries.
func state(mac chip.MAC, entries []journal.Entry) (Statement, error) {
	p, err := Project(func(yield func(journal.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		return Statement{}, err
	}
	u := p.Unit(mac)
	if u == nil || len(u.Attempts) == 0 {
		return Statement{}, fmt.Errorf("%w: %s", ErrNoUnit, mac)
	}
	if len(p.Units) != 1 || len(p.Unknown) > 0 || len(p.Stations) != 1 {
		return Statement{}, errors.New("there are entries of something else than this unit on one station")
	}
	return u.statement(), nil
}

// statement joins what the attempts of the unit's job told: a run that went on
// after a crash did not see the fuses as they were at first, nor the custody.
func (u *Unit) statement() Statement {
	final := u.Final()
	s := Statement{
		Unit: u.MAC.String(), Serial: u.Serial(), Simulated: u.Simulated,
		Verdict: string(final.Verdict), Cause: string(final.Cause), Reason: final.Reason,
		Chip: final.Chip, Revision: final.Revision, FlashID: final.FlashID, FlashSize: final.FlashSize,
		Recipe: final.Recipe, RecipeRevision: final.RecipeRevision, RecipeSHA256: final.RecipeSHA256, Profile: final.Profile,
		PlanSHA256: final.PlanSHA256, TableSHA256: final.TableSHA256, Advisories: slices.Clone(final.Advisories), Security: final.Security,
		Images: []Image{}, Closing: final.Closing,
		Station: final.Station, Slot: final.Slot, Operator: final.Operator, Lot: final.Lot, Tool: final.Tool, Job: final.Job,
		Ended: stamp(final.lastEntryAt), Entry: final.Entries[len(final.Entries)-1],
		Attempts: []AttemptLine{}, Reworks: []ReworkLine{},
	}
	var first, after *Attempt
	for _, a := range u.Attempts {
		// A rework may be another recipe's job, and did not see the key go in.
		if (a.Job == final.Job || final.Rework && !a.changedNothing()) && !a.Begun.After(final.Begun) {
			if first == nil && len(a.Before) > 0 {
				first = a
			}
			if len(a.After) > 0 {
				after = a
			}
			if a.KeyFingerprint != "" {
				s.KeyFingerprint, s.KeyRef, s.KeyVersion, s.KeyStore = a.KeyFingerprint, a.KeyRef, a.KeyVersion, a.Store
				s.OTATokenSHA256, s.ECIESPublicKey = a.OTATokenSHA256, a.ECIESPublicKey
			}
			if len(a.Images) > 0 {
				s.Images = a.Images
			}
			if a.Closing != nil {
				s.Closing = a.Closing
			}
			keep(&s.KeyBlock, a.KeyBlock)
			keep(&s.BootText, a.BootText)
			s.Begun = cmp.Or(s.Begun, stamp(a.Begun))
		}
		s.Attempts = append(s.Attempts, AttemptLine{
			Job: a.Job, Begun: stamp(a.Begun), Ended: stamp(a.Ended), Slot: a.Slot, Operator: a.Operator,
			Verdict: string(a.Verdict), Cause: string(a.Cause), Reason: a.Reason, First: a.Entries[0], Last: a.Entries[len(a.Entries)-1],
		})
	}
	for _, r := range u.Reworks {
		s.Reworks = append(s.Reworks, ReworkLine{Entry: r.Index, Time: stamp(r.Time), Operator: r.Operator, Reason: r.Reason})
	}
	s.EFuseBefore, s.EFuseAfter = fuseState(final, nil, nil), fuseState(final, nil, nil)
	if first != nil {
		s.EFuseBefore = fuseState(final, first.Before, first.BeforeErrors)
	}
	if after != nil {
		s.EFuseAfter = fuseState(final, after.After, after.AfterErrors)
	}
	return s
}

func fuseState(a *Attempt, blocks []efuse.BlockWords, errs []efuse.ErrorRegister) FuseState {
	f := FuseState{Blocks: blocks, Errors: errs}
	if f.Blocks == nil {
		f.Blocks, f.Note = []efuse.BlockWords{}, "the eFuses were not read"
	}
	if f.Errors == nil {
		f.Errors = []efuse.ErrorRegister{}
	}
	if f.Note == "" {
		rev, err := chip.ParseRevision(a.Revision)
		if err == nil {
			var digests []keystore.Digest
			if a.Security != nil {
				digests = a.Security.Digests
			}
			f.Token, err = Token(a.Chip, rev, f.Blocks, f.Errors, digests...)
		}
		if err != nil {
			f.Note = err.Error()
		}
	}
	return f
}
