package escrow

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/internal/later"
)

// Limits of what is read.
const (
	format        = 1
	maxFile       = 64 << 10 // a record has at most 128 rows of a partition table
	maxRecipients = 8
)

// header stands in clear before a sealed record.
type header struct {
	meta         keystore.Meta // without receipt, states and warning
	seq          int           // the unit's n-th record in this spool
	recordSHA256 [32]byte      // of the canonical record
	sealed       time.Time
	store        string   // Info.ID of the inner store
	recipients   string   // age recipients with a space between them
	sha256       [32]byte // of the header's text up to this field, and the sealed part
}

// marshal gives the header's one line, with its newline.
func (h header) marshal() []byte {
	b := canon.AppendStringField(h.text(), "sha256", hex.EncodeToString(h.sha256[:]))
	return append(b, "}\n"...)
}

// sum is the hash that covers the header and the sealed part.
func (h header) sum(sealed []byte) [32]byte {
	return sha256.Sum256(append(h.text(), sealed...))
}

// text is the header up to its hash.
func (h header) text() []byte {
	m := h.meta
	b := append([]byte(nil), `{"format":`...)
	b = strconv.AppendInt(b, format, 10)
	b = canon.AppendStringField(b, "unit", m.Unit.String())
	b = canon.AppendBoolField(b, "simulated", m.Simulated)
	b = canon.AppendStringField(b, "chip", m.Chip)
	b = canon.AppendUintField(b, "chip_revision", uint64(m.ChipRevision))
	b = canon.AppendStringField(b, "scheme", string(m.Scheme))
	b = canon.AppendStringField(b, "fingerprint", m.Fingerprint.String())
	b = canon.AppendUintField(b, "flash_crypt_config", uint64(m.FlashCryptConfig))
	b = canon.AppendUintField(b, "flash_size", uint64(m.FlashSize))
	b = canon.AppendStringField(b, "recipe", m.Recipe)
	b = canon.AppendUintField(b, "recipe_revision", uint64(m.RecipeRevision))
	b = canon.AppendStringField(b, "recipe_hash", m.RecipeHash)
	b = canon.AppendStringField(b, "job", m.Job)
	b = canon.AppendStringField(b, "station", m.Station)
	b = canon.AppendStringField(b, "lot", m.Lot)
	b = canon.AppendTimeField(b, "created", m.Created)
	b = later.Members{
		OTATokenSHA256: (*[32]byte)(m.OTATokenSHA256), ECIESPublicKey: m.ECIESPublicKey,
		SecureBootScheme: m.SecureBootScheme, SecureBootDigests: m.SecureBootDigests,
	}.Append(b)
	b = canon.AppendUintField(b, "seq", uint64(h.seq))
	b = canon.AppendStringField(b, "record_sha256", hex.EncodeToString(h.recordSHA256[:]))
	b = canon.AppendTimeField(b, "sealed", h.sealed)
	b = canon.AppendStringField(b, "store", h.store)
	return canon.AppendStringField(b, "recipients", h.recipients)
}

// parseHeader reads what marshal writes, without the newline, and nothing else.
func parseHeader(line []byte) (header, error) {
	var h header
	in := canon.NewReader(line)
	m := &h.meta
	in.Field(true, "format")
	if v := in.Uint("format", 1<<16); v != format {
		in.Fail("format", "is one that this build does not know")
	}
	in.Field(false, "unit")
	m.Unit = readMAC(in)
	in.Field(false, "simulated")
	m.Simulated = in.Bool("simulated")
	in.Field(false, "chip")
	m.Chip = in.String("chip")
	in.Field(false, "chip_revision")
	m.ChipRevision = chip.Revision(in.Uint("chip_revision", 1<<16-1))
	in.Field(false, "scheme")
	m.Scheme = chip.Scheme(in.String("scheme"))
	in.Field(false, "fingerprint")
	m.Fingerprint = readFingerprint(in)
	in.Field(false, "flash_crypt_config")
	m.FlashCryptConfig = uint8(in.Uint("flash_crypt_config", 0xF))
	in.Field(false, "flash_size")
	m.FlashSize = uint32(in.Uint("flash_size", 1<<32-1))
	in.Field(false, "recipe")
	m.Recipe = in.String("recipe")
	in.Field(false, "recipe_revision")
	m.RecipeRevision = int(in.Uint("recipe_revision", canon.MaxInt))
	in.Field(false, "recipe_hash")
	m.RecipeHash = in.String("recipe_hash")
	in.Field(false, "job")
	m.Job = in.String("job")
	in.Field(false, "station")
	m.Station = in.String("station")
	in.Field(false, "lot")
	m.Lot = in.String("lot")
	in.Field(false, "created")
	m.Created = in.Time("created")
	more := later.Read(in)
	m.OTATokenSHA256, m.ECIESPublicKey = (*keystore.Digest)(more.OTATokenSHA256), more.ECIESPublicKey
	m.SecureBootScheme, m.SecureBootDigests = more.SecureBootScheme, more.SecureBootDigests
	in.Field(false, "seq")
	h.seq = int(in.Uint("seq", 1<<31-1))
	in.Field(false, "record_sha256")
	in.HexInto("record_sha256", h.recordSHA256[:])
	in.Field(false, "sealed")
	h.sealed = in.Time("sealed")
	in.Field(false, "store")
	h.store = in.String("store")
	in.Field(false, "recipients")
	h.recipients = in.String("recipients")
	in.Field(false, "sha256")
	in.HexInto("sha256", h.sha256[:])
	if err := in.End(); err != nil {
		return header{}, fmt.Errorf("the header: %w", err)
	}
	if err := h.check(); err != nil {
		return header{}, err
	}
	return h, nil
}

func (h header) check() error {
	switch {
	case h.seq < 1:
		return errors.New("the header: seq is not 1 or more")
	case h.store == "":
		return errors.New("the header does not name its store")
	}
	if err := h.meta.Validate(); err != nil {
		return fmt.Errorf("the header: %w", err)
	}
	_, err := parseRecipients(strings.Split(h.recipients, " "))
	return err
}

// parseRecipients reads age X25519 recipients.
func parseRecipients(names []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, name := range names {
		r, err := age.ParseX25519Recipient(name)
		if err != nil || r.String() != name {
			return nil, fmt.Errorf("%q is no age recipient: write age1…, as age-keygen prints it", name)
		}
		out = append(out, r)
	}
	if len(out) == 0 || len(out) > maxRecipients {
		return nil, fmt.Errorf("%d age recipients: give one to %d", len(out), maxRecipients)
	}
	return out, nil
}

func readMAC(in *canon.Reader) chip.MAC {
	s := in.String("unit")
	m, err := chip.ParseMAC(s)
	if err != nil || m.String() != s {
		in.Fail("unit", "is not a MAC address")
	}
	return m
}

func readFingerprint(in *canon.Reader) keystore.Fingerprint {
	fp, err := keystore.ParseFingerprint(in.String("fingerprint"))
	if err != nil {
		in.Fail("fingerprint", "is not a key fingerprint")
	}
	return fp
}

// sealRecord gives the content of a record's file.
func sealRecord(r keystore.Record, seq int, store string, recipients []string, now time.Time) ([]byte, header, error) {
	r.Created = r.Created.UTC()
	plain, err := keystore.MarshalRecord(r)
	if err != nil {
		return nil, header{}, err
	}
	defer clear(plain)
	to, err := parseRecipients(recipients)
	if err != nil {
		return nil, header{}, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, header{}, fmt.Errorf("keystore/escrow: seal: %w", err)
	}
	h := header{
		meta: r.Meta(), seq: seq, recordSHA256: sha256.Sum256(plain), sealed: now.UTC().Round(0),
		store: store, recipients: strings.Join(recipients, " "),
	}
	h.sha256 = h.sum(sealed.Bytes())
	return slices.Concat(h.marshal(), sealed.Bytes()), h, nil
}

// parseSealed splits the content of a record's file and checks all that can be
// checked without opening it.
func parseSealed(b []byte) (header, []byte, error) {
	line, sealed, ok := bytes.Cut(b, []byte("\n"))
	if !ok || len(b) > maxFile {
		return header{}, nil, errors.New("it is no sealed record")
	}
	h, err := parseHeader(line)
	if err != nil {
		return header{}, nil, err
	}
	if h.sum(sealed) != h.sha256 {
		return header{}, nil, errors.New("it is not what was written")
	}
	return h, sealed, nil
}

// openSealed opens a record's file with offline identities. The header must be
// what the record says.
func openSealed(b []byte, ids []age.Identity) (header, keystore.Record, error) {
	h, sealed, err := parseSealed(b)
	if err != nil {
		return header{}, keystore.Record{}, fmt.Errorf("%w: %w", keystore.ErrDamaged, err)
	}
	in, err := age.Decrypt(bytes.NewReader(sealed), ids...)
	if err != nil {
		var none *age.NoIdentityMatchError
		if errors.As(err, &none) {
			return h, keystore.Record{}, fmt.Errorf("%w: it is sealed to %s", ErrIdentity, h.recipients)
		}
		return h, keystore.Record{}, fmt.Errorf("%w: it does not open", keystore.ErrDamaged)
	}
	plain := make([]byte, 0, len(sealed)+bytes.MinRead) // never grows: no copies of the key
	defer func() { clear(plain[:cap(plain)]) }()
	buf := bytes.NewBuffer(plain)
	if _, err := io.Copy(buf, in); err != nil {
		return h, keystore.Record{}, fmt.Errorf("%w: it does not open", keystore.ErrDamaged)
	}
	r, err := keystore.ParseRecord(buf.Bytes())
	if err != nil {
		return h, keystore.Record{}, fmt.Errorf("%w: %w", keystore.ErrDamaged, err)
	}
	inside := h
	inside.meta, inside.recordSHA256 = r.Meta(), sha256.Sum256(buf.Bytes())
	if !bytes.Equal(inside.marshal(), h.marshal()) {
		r.Key.Wipe()
		return h, keystore.Record{}, fmt.Errorf("%w: the header is not that of the sealed record", keystore.ErrDamaged)
	}
	return h, r, nil
}

// ErrIdentity says that none of the identities opens a record.
var ErrIdentity = errors.New("keystore/escrow: this identity does not open it")

// key names a record in the spool.
type key struct {
	unit chip.MAC
	fp   keystore.Fingerprint
}

// name begins the names of a record's files.
func (k key) name() string {
	return strings.ReplaceAll(k.unit.String(), ":", "") + "-" + k.fp.String()
}

// begin opens the object of a small file about a record.
func (k key) begin() []byte {
	b := append([]byte(nil), `{"format":`...)
	b = strconv.AppendInt(b, format, 10)
	b = canon.AppendStringField(b, "unit", k.unit.String())
	return canon.AppendStringField(b, "fingerprint", k.fp.String())
}

func readKey(in *canon.Reader) key {
	in.Field(true, "format")
	if v := in.Uint("format", 1<<16); v != format {
		in.Fail("format", "is one that this build does not know")
	}
	in.Field(false, "unit")
	u := readMAC(in)
	in.Field(false, "fingerprint")
	return key{u, readFingerprint(in)}
}

// marshalState gives the content of a state's file.
func marshalState(k key, s keystore.State) []byte {
	b := canon.AppendUintField(k.begin(), "seq", uint64(s.Seq))
	b = canon.AppendStringField(b, "kind", string(s.Kind))
	b = canon.AppendStringField(b, "note", s.Note)
	b = canon.AppendStringField(b, "job", s.Job)
	b = canon.AppendStringField(b, "station", s.Station)
	b = canon.AppendTimeField(b, "time", s.Time)
	return append(b, "}\n"...)
}

// parseState reads what marshalState writes.
func parseState(b []byte) (key, keystore.State, error) {
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok || len(b) > maxFile {
		return key{}, keystore.State{}, errors.New("it is no state")
	}
	in := canon.NewReader(line)
	k := readKey(in)
	var s keystore.State
	in.Field(false, "seq")
	s.Seq = int(in.Uint("seq", 1<<16))
	in.Field(false, "kind")
	s.Kind = keystore.StateKind(in.String("kind"))
	in.Field(false, "note")
	s.Note = in.String("note")
	in.Field(false, "job")
	s.Job = in.String("job")
	in.Field(false, "station")
	s.Station = in.String("station")
	in.Field(false, "time")
	s.Time = in.Time("time")
	err := in.End()
	if err == nil {
		err = s.Validate()
	}
	return k, s, err
}

// outcome says what became of a record that is drained.
type outcome struct {
	Stored bool   // it is in the inner store; false: its key was given up and another one is there
	Ref    string // where
	Time   time.Time
}

func marshalOutcome(k key, o outcome) []byte {
	b := k.begin()
	b = canon.AppendBoolField(b, "stored", o.Stored)
	b = canon.AppendStringField(b, "ref", o.Ref)
	b = canon.AppendTimeField(b, "time", o.Time)
	return append(b, "}\n"...)
}

func parseOutcome(b []byte) (key, outcome, error) {
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok || len(b) > maxFile {
		return key{}, outcome{}, errors.New("it is no marker")
	}
	in := canon.NewReader(line)
	k := readKey(in)
	var o outcome
	in.Field(false, "stored")
	o.Stored = in.Bool("stored")
	in.Field(false, "ref")
	o.Ref = in.String("ref")
	in.Field(false, "time")
	o.Time = in.Time("time")
	return k, o, in.End()
}

// innerJSON says which store the spool belongs to.
type inner struct {
	kind, id, where string
	testStore       bool
}

func (i inner) marshal() []byte {
	b := append([]byte(nil), `{"format":`...)
	b = strconv.AppendInt(b, format, 10)
	b = canon.AppendStringField(b, "kind", i.kind)
	b = canon.AppendStringField(b, "id", i.id)
	b = canon.AppendBoolField(b, "test_store", i.testStore)
	b = canon.AppendStringField(b, "where", i.where)
	return append(b, "}\n"...)
}

func parseInner(b []byte) (inner, error) {
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok || len(b) > maxFile {
		return inner{}, errors.New("it does not say which store this spool is of")
	}
	in := canon.NewReader(line)
	var i inner
	in.Field(true, "format")
	if v := in.Uint("format", 1<<16); v != format {
		in.Fail("format", "is one that this build does not know")
	}
	in.Field(false, "kind")
	i.kind = in.String("kind")
	in.Field(false, "id")
	i.id = in.String("id")
	in.Field(false, "test_store")
	i.testStore = in.Bool("test_store")
	in.Field(false, "where")
	i.where = in.String("where")
	if err := in.End(); err != nil {
		return inner{}, err
	}
	if i.id == "" {
		return inner{}, errors.New("it does not name its store")
	}
	return i, nil
}
