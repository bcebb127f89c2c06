package journal

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/provisiond/provisiond/internal/boltfile"
	"github.com/provisiond/provisiond/internal/canon"
)

// Checkpoint is a signed statement: the journal's first Size entries have this
// Merkle root. It vouches for every one of them.
type Checkpoint struct {
	Journal    string // its id
	Station    string
	Size       uint64
	Root       Hash
	Time       time.Time // when it was signed, by the station's clock
	Generation uint64    // how many journals of the station went before; see Succeeds
	Note       []byte    // the signed note, whole
}

// Lines of a checkpoint's text (docs/journal.md).
const (
	originPrefix   = "provisiond/journal/"
	lineStation    = "station "
	lineTime       = "time "
	lineGeneration = "generation "
)

// maxNote bounds the bytes of a note that is read.
const maxNote = 4 << 10

func origin(id string) string { return originPrefix + id }

// text is what is signed.
func (c Checkpoint) text() string {
	when := canon.AppendTime(nil, c.Time)
	return fmt.Sprintf("%s\n%d\n%s\n%s%s\n%s%s\n%s%d\n", origin(c.Journal), c.Size, base64.StdEncoding.EncodeToString(c.Root[:]),
		lineStation, c.Station, lineTime, when[1:len(when)-1], lineGeneration, c.Generation)
}

// Path names the checkpoint in a keystore: checkpoints/STATION/DAY/SIZE, with
// -GENERATION behind it for a journal that succeeds another one, so that the two
// may have the same size on the same day. The station's name is escaped as in a
// URL.
func (c Checkpoint) Path() string {
	name := strconv.FormatUint(c.Size, 10)
	if c.Generation > 0 {
		name += "-" + strconv.FormatUint(c.Generation, 10)
	}
	return StationPath(c.Station) + "/" + c.Time.UTC().Format(time.DateOnly) + "/" + name
}

// StationPath is where a station's checkpoints are: checkpoints/STATION.
func StationPath(station string) string {
	name := url.PathEscape(station)
	if strings.Trim(name, ".") == "" { // no name for a folder
		name = strings.ReplaceAll(name, ".", "%2E")
	}
	return "checkpoints/" + name
}

// ParseCheckpoint reads a signed note. It does not check the signature: Verify
// does.
func ParseCheckpoint(signed []byte) (Checkpoint, error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("journal: this is no checkpoint: %s", what)
	}
	if len(signed) > maxNote {
		return bad("it is too long")
	}
	text, signatures, ok := strings.Cut(string(signed), "\n\n")
	if !ok || !oneSignature(signatures) {
		return bad("it is no note with one signature")
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 6 {
		return bad("its text does not have six lines")
	}
	c := Checkpoint{Note: []byte(string(signed))}
	id, ok := strings.CutPrefix(lines[0], originPrefix)
	if raw, err := hex.DecodeString(id); !ok || err != nil || len(raw) != 16 {
		return bad("line 1 does not name a journal")
	}
	c.Journal = id
	var err error
	if c.Size, err = strconv.ParseUint(lines[1], 10, 64); err != nil || c.Size == 0 || c.Size > maxEntries {
		return bad("line 2 is no size")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) {
		return bad("line 3 is no hash")
	}
	copy(c.Root[:], root)
	c.Station = strings.TrimPrefix(lines[3], lineStation)
	r := canon.NewReader([]byte(`{"t":"` + strings.TrimPrefix(lines[4], lineTime) + `"}`))
	r.Field(true, "t")
	c.Time = r.Time("t")
	if r.End() != nil {
		return bad("line 5 is no time")
	}
	if c.Generation, err = strconv.ParseUint(strings.TrimPrefix(lines[5], lineGeneration), 10, 32); err != nil {
		return bad("line 6 is no generation")
	}
	if c.Station == "" || len(c.Station) > MaxText || c.text() != text+"\n" {
		return bad("it is not written in the one form that it has")
	}
	return c, nil
}

// oneSignature reports whether the end of a note is one line in the one form that
// it has: base64 alone would leave some bits of its last character open.
func oneSignature(s string) bool {
	line, ok := strings.CutSuffix(s, "\n")
	name, sig, cut := strings.Cut(strings.TrimPrefix(line, "— "), " ")
	raw, err := base64.StdEncoding.Strict().DecodeString(sig)
	return ok && cut && err == nil && len(raw) == 4+ed25519.SignatureSize && name != "" &&
		s == "— "+name+" "+base64.StdEncoding.EncodeToString(raw)+"\n"
}

// Verify checks the signature.
func (c Checkpoint) Verify(publicKey string) error {
	v, err := note.NewVerifier(publicKey)
	if err != nil {
		return fmt.Errorf("%w: this is no public key: %w", ErrKey, err)
	}
	return c.verify(v)
}

func (c Checkpoint) verify(v note.Verifier) error {
	n, err := note.Open(c.Note, note.VerifierList(v))
	if err != nil || n.Text != c.text() {
		return fmt.Errorf("%w: the checkpoint of %d entries is not signed with key %s", ErrSignature, c.Size, v.Name())
	}
	return nil
}

// Signer makes the signatures of a journal's checkpoints.
type Signer interface {
	// PublicKey gives the verifier key as golang.org/x/mod/sumdb/note writes it:
	// NAME+HASH+KEY. It is in entry 0, so it stays the same.
	PublicKey() string
	// Sign gives the Ed25519 signature of msg.
	Sign(ctx context.Context, msg []byte) ([]byte, error)
}

// fileSigner has its key in memory.
type fileSigner struct {
	public string
	signer note.Signer
}

func (s *fileSigner) PublicKey() string { return s.public }

func (s *fileSigner) Sign(_ context.Context, msg []byte) ([]byte, error) { return s.signer.Sign(msg) }

// KeyPath names the file of a journal's signing key.
func KeyPath(journal string) string { return journal + ".key" }

// PublicKeyPath names the file with the public half, for configurations.
func PublicKeyPath(journal string) string { return journal + ".pub" }

// CopyPath names the copy beside a journal.
func CopyPath(journal string) string { return journal + ".jsonl" }

// createFile writes a new file durably, with mode 0600 or more open.
func createFile(path string, mode os.FileMode, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close(), boltfile.SyncDir(filepath.Dir(path))); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// newKey makes a key pair and keeps the private half in a new file, mode 0600.
func newKey(path, name string) (Signer, error) {
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, err
	}
	if err := createFile(path, 0o600, []byte(private+"\n")); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %s: it is the signing key of another journal: move it away", ErrExists, path)
	} else if err != nil {
		return nil, err
	}
	return parseKey(private, public)
}

// LoadKey reads a signing key that Init made. Its file may be read by its owner
// and, as systemd's credentials may be, by its group; by nobody else.
func LoadKey(path string) (Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o027 != 0 {
		return nil, fmt.Errorf("%w: the signing key %s (mode %04o): look who changed it, then: chmod 600 %s", ErrMode, path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return nil, err
	}
	private := strings.TrimSpace(string(b))
	clear(b)
	public, err := publicOf(private)
	if err != nil {
		return nil, fmt.Errorf("%w: %s holds no signing key", ErrKey, path) // nothing of it in the text
	}
	return parseKey(private, public)
}

// publicOf gives the public half of a private key in note's form.
func publicOf(private string) (string, error) {
	parts := strings.SplitN(private, "+", 5)
	if len(parts) != 5 {
		return "", ErrKey
	}
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return "", ErrKey
	}
	key := ed25519.NewKeyFromSeed(raw[1:])
	defer clear(key)
	defer clear(raw)
	return note.NewEd25519VerifierKey(parts[2], ed25519.PublicKey(key[ed25519.SeedSize:]))
}

func parseKey(private, public string) (Signer, error) {
	s, err := note.NewSigner(private)
	if err != nil {
		return nil, fmt.Errorf("%w: no signing key", ErrKey)
	}
	return &fileSigner{public, s}, nil
}

// sign makes a checkpoint of the entries.
func sign(ctx context.Context, s Signer, c Checkpoint) (Checkpoint, error) {
	v, err := note.NewVerifier(s.PublicKey())
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: the signer's public key: %w", ErrKey, err)
	}
	c.Time = c.Time.UTC().Round(0)
	signed, err := note.Sign(&note.Note{Text: c.text()}, &signing{ctx, s, v})
	if err != nil {
		return Checkpoint{}, err
	}
	c.Note = signed
	return c, c.verify(v) // a signer in another place may do what it likes
}

// signing is a Signer for note.
type signing struct {
	ctx    context.Context //nolint:containedctx // one call
	signer Signer
	v      note.Verifier
}

func (s *signing) Name() string                    { return s.v.Name() }
func (s *signing) KeyHash() uint32                 { return s.v.KeyHash() }
func (s *signing) Sign(msg []byte) ([]byte, error) { return s.signer.Sign(s.ctx, msg) }
