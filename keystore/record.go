package keystore

import (
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/keystore/internal/later"
)

// SchemaVersion is the schema of the records that this build writes.
const SchemaVersion = 1

// Limits of a record's fields.
const (
	maxText           = 256    // bytes of a name
	partitionRow      = 32     // bytes of a row of a partition table
	maxPartitionTable = 0x1000 // its flash sector (esp-facts D.3)
	minFlash          = 256 << 10
	maxFlash          = 1 << 30
)

// Record is all that is kept for one key of one unit: enough to encrypt for
// the unit years later without the station that made it.
type Record struct {
	Schema           int
	Unit             chip.MAC
	Simulated        bool // the unit has a locally administered MAC
	Chip             string
	ChipRevision     chip.Revision
	Scheme           chip.Scheme
	Key              Key
	Fingerprint      Fingerprint
	FlashCryptConfig uint8  // ESP32 only, 0 elsewhere
	PartitionTable   []byte // as flashed, in plaintext
	FlashSize        uint32 // bytes
	Recipe           string
	RecipeRevision   int
	RecipeHash       string // SHA-256, 64 lower-case hex digits
	Job              string
	Station          string
	Lot              string    // may be empty
	Created          time.Time // UTC

	// Members that came later. What is empty is absent from the encoding.

	// OTATokenSHA256 is the SHA-256 of the unit's OTA token (OTAToken), which is
	// itself never stored: it is derived from the key. Nil if the unit has none.
	OTATokenSHA256 *Digest
	// ECIESPublicKey is the unit's P-256 key for esp_encrypted_img images: X and
	// Y, big-endian, 64 bytes. Empty if the unit has none.
	ECIESPublicKey []byte
	// SecureBootScheme is rsa3072, ecdsa256, ecdsa384 or ecdsa192, and empty while
	// Secure Boot is off.
	SecureBootScheme string
	// SecureBootDigests are the digests of the public keys that the chip trusts,
	// as burned, in the order of their slots.
	SecureBootDigests [][32]byte
}

// Validate checks every field. The chip's name is not looked up: a backend
// may be older than the station that made the record.
func (r Record) Validate() error {
	m := r.Meta()
	if err := m.validate(); err != nil {
		return err
	}
	switch n := len(r.PartitionTable); {
	case r.Schema != SchemaVersion:
		return fieldError("schema", fmt.Sprintf("is %d: this build knows %d", r.Schema, SchemaVersion))
	case r.Key.Len() == 0:
		return fieldError("key", "is empty or was wiped")
	case r.Key.Fits(r.Scheme) != nil:
		return fieldError("key", fmt.Sprintf("has %d bytes, which scheme %s has not", r.Key.Len(), r.Scheme))
	case !r.Fingerprint.Equal(r.Key.Fingerprint()):
		return fieldError("fingerprint", "is not the key's")
	case n == 0 || n > maxPartitionTable || n%partitionRow != 0:
		return fieldError("partition_table", fmt.Sprintf("has %d bytes: it is 1 to %d rows of %d bytes",
			n, maxPartitionTable/partitionRow, partitionRow))
	}
	return nil
}

// Meta gives the fields of the record that are no secret and that lists show.
func (r Record) Meta() Meta {
	return Meta{
		Unit: r.Unit, Simulated: r.Simulated, Chip: r.Chip, ChipRevision: r.ChipRevision,
		Scheme: r.Scheme, Fingerprint: r.Fingerprint, FlashCryptConfig: r.FlashCryptConfig,
		FlashSize: r.FlashSize, Recipe: r.Recipe, RecipeRevision: r.RecipeRevision,
		RecipeHash: r.RecipeHash, Job: r.Job, Station: r.Station, Lot: r.Lot, Created: r.Created,
		OTATokenSHA256: r.OTATokenSHA256, ECIESPublicKey: r.ECIESPublicKey,
		SecureBootScheme: r.SecureBootScheme, SecureBootDigests: r.SecureBootDigests,
	}
}

// Validate checks the fields that come from a record: all but Receipt, States and
// Warning.
func (m Meta) Validate() error { return m.validate() }

func (m Meta) validate() error {
	if err := m.validateTexts(); err != nil {
		return err
	}
	switch hash, err := hex.DecodeString(m.RecipeHash); {
	case m.Unit == chip.MAC{} || m.Unit[0]&1 != 0:
		return fieldError("unit", m.Unit.String()+" is not the address of one unit")
	case m.Simulated != m.Unit.LocallyAdministered():
		return fieldError("simulated", "does not agree with the unit: simulated units, and only those, have a locally administered MAC")
	case !validChip(m.Chip):
		return fieldError("chip", "is not a chip name such as esp32c3")
	case len(keyLengths(m.Scheme)) == 0:
		return fieldError("scheme", "is unknown")
	case (m.Chip == "esp32") != (m.Scheme == chip.SchemeESP32):
		return fieldError("scheme", "does not belong to the chip: the ESP32, and only it, has scheme esp32")
	case m.Fingerprint.IsZero():
		return fieldError("fingerprint", "is missing")
	case checkCryptConfig(m.Scheme, m.FlashCryptConfig) != nil:
		return fieldError("flash_crypt_config", "is 0 to 15 on the ESP32 and 0 on every other chip")
	case m.FlashSize < minFlash || m.FlashSize > maxFlash || m.FlashSize&(m.FlashSize-1) != 0:
		return fieldError("flash_size", "is not a power of two from 256 KiB to 1 GiB, in bytes")
	case m.RecipeRevision < 0 || m.RecipeRevision > canon.MaxInt:
		return fieldError("recipe_revision", "is negative or too large")
	case err != nil || len(hash) != 32 || hex.EncodeToString(hash) != m.RecipeHash:
		return fieldError("recipe_hash", "is not 64 lower-case hex digits")
	case m.Created.IsZero() || !canon.ValidTime(m.Created):
		return fieldError("created", "is not set")
	}
	return m.validateLater()
}

// secureBootSchemes are the signature schemes of Secure Boot (esp-facts E.1).
var secureBootSchemes = []string{"rsa3072", "ecdsa256", "ecdsa384", "ecdsa192"}

func (m Meta) validateLater() error {
	switch n := len(m.SecureBootDigests); {
	case m.OTATokenSHA256 != nil && m.OTATokenSHA256.IsZero():
		return fieldError(later.NameOTADigest, "is zero")
	case len(m.ECIESPublicKey) > 0 && !onP256(m.ECIESPublicKey):
		return fieldError(later.NameECIESPublicKey, "is not a point on P-256: X and Y, 64 bytes")
	case m.SecureBootScheme != "" && !slices.Contains(secureBootSchemes, m.SecureBootScheme):
		return fieldError(later.NameSecureBoot, "is not one of "+strings.Join(secureBootSchemes, ", "))
	case (n > 0) != (m.SecureBootScheme != ""):
		return fieldError(later.NameSecureBootDigest, "and the scheme are both there or both absent")
	case n > later.MaxDigests:
		return fieldError(later.NameSecureBootDigest, fmt.Sprintf("has more than %d digests", later.MaxDigests))
	case slices.Contains(m.SecureBootDigests, [32]byte{}):
		return fieldError(later.NameSecureBootDigest, "has a digest that is zero")
	}
	return nil
}

func onP256(xy []byte) bool {
	_, err := ecdh.P256().NewPublicKey(append([]byte{4}, xy...)) // 4: uncompressed point
	return err == nil
}

// laterMembers are the members that came later, for the encodings.
func (m Meta) laterMembers() later.Members {
	return later.Members{
		OTATokenSHA256: (*[32]byte)(m.OTATokenSHA256), ECIESPublicKey: m.ECIESPublicKey,
		SecureBootScheme: m.SecureBootScheme, SecureBootDigests: m.SecureBootDigests,
	}
}

func (m Meta) validateTexts() error {
	for _, f := range []struct {
		name, text string
		empty      bool // may be empty
	}{
		{"recipe", m.Recipe, false},
		{"job", m.Job, false},
		{"station", m.Station, false},
		{"lot", m.Lot, true},
	} {
		if f.text == "" && !f.empty {
			return fieldError(f.name, "is missing")
		}
		if reason := CheckText(f.text); reason != "" {
			return fieldError(f.name, reason)
		}
	}
	return nil
}

// CheckText is the rule for names and notes in records and states: valid UTF-8
// without control characters, at most 256 bytes. It gives the reason against a
// text, or "".
func CheckText(s string) string {
	if len(s) > maxText {
		return fmt.Sprintf("has more than %d bytes", maxText)
	}
	if !utf8.ValidString(s) {
		return "is not valid UTF-8"
	}
	for _, c := range s {
		if unicode.IsControl(c) {
			return "has a control character"
		}
	}
	return ""
}

func validChip(s string) bool {
	if len(s) < len("esp32") || len(s) > 16 || s[:5] != "esp32" {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func fieldError(field, reason string) error {
	return fmt.Errorf("keystore: record field %s %s", field, reason)
}

// MarshalRecord writes the canonical encoding of a valid record: one JSON
// object without white space, with all fields in a fixed order and bytes in
// lower-case hex. Members that came later are absent when they are empty. The result holds the key in plain: seal it and wipe it.
func MarshalRecord(r Record) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	// Large enough never to grow: growing would leave copies of the key behind.
	b := make([]byte, 0, 2048+6*(len(r.Recipe)+len(r.Job)+len(r.Station)+len(r.Lot))+2*len(r.PartitionTable))
	b = append(b, `{"schema":`...)
	b = strconv.AppendInt(b, int64(r.Schema), 10)
	b = canon.AppendStringField(b, "unit", r.Unit.String())
	b = canon.AppendBoolField(b, "simulated", r.Simulated)
	b = canon.AppendStringField(b, "chip", r.Chip)
	b = canon.AppendUintField(b, "chip_revision", uint64(r.ChipRevision))
	b = canon.AppendStringField(b, "scheme", string(r.Scheme))
	b = append(b, `,"key":"`...)
	if err := r.Key.Use(func(key []byte) error { b = hex.AppendEncode(b, key); return nil }); err != nil {
		return nil, err
	}
	b = append(b, '"')
	b = canon.AppendStringField(b, "fingerprint", r.Fingerprint.String())
	b = canon.AppendUintField(b, "flash_crypt_config", uint64(r.FlashCryptConfig))
	b = append(b, `,"partition_table":"`...)
	b = hex.AppendEncode(b, r.PartitionTable)
	b = append(b, '"')
	b = canon.AppendUintField(b, "flash_size", uint64(r.FlashSize))
	b = canon.AppendStringField(b, "recipe", r.Recipe)
	b = canon.AppendUintField(b, "recipe_revision", uint64(r.RecipeRevision))
	b = canon.AppendStringField(b, "recipe_hash", r.RecipeHash)
	b = canon.AppendStringField(b, "job", r.Job)
	b = canon.AppendStringField(b, "station", r.Station)
	b = canon.AppendStringField(b, "lot", r.Lot)
	b = canon.AppendTimeField(b, "created", r.Created)
	b = r.Meta().laterMembers().Append(b)
	return append(b, '}'), nil
}

// ParseRecord reads what MarshalRecord writes, and nothing else: what parses is
// valid and encodes to the same bytes. Errors name the field and never echo
// input. b still holds the key: wipe it after use.
func ParseRecord(b []byte) (Record, error) {
	r, err := parseRecord(canon.NewReader(b))
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		r.Key.Wipe()
		return Record{}, err
	}
	return r, nil
}

func parseRecord(in *canon.Reader) (r Record, err error) {
	in.Field(true, "schema")
	r.Schema = int(in.Uint("schema", 1<<16))
	in.Field(false, "unit")
	r.Unit = readMAC(in, "unit")
	in.Field(false, "simulated")
	r.Simulated = in.Bool("simulated")
	in.Field(false, "chip")
	r.Chip = in.String("chip")
	in.Field(false, "chip_revision")
	r.ChipRevision = chip.Revision(in.Uint("chip_revision", 1<<16-1))
	in.Field(false, "scheme")
	r.Scheme = chip.Scheme(in.String("scheme"))
	in.Field(false, "key")
	key := in.Hex("key", 64)
	if key != nil {
		if r.Key, err = KeyFromBytes(key); err != nil {
			in.Fail("key", "is not a key")
		}
	}
	in.Field(false, "fingerprint")
	r.Fingerprint = readFingerprint(in, "fingerprint")
	in.Field(false, "flash_crypt_config")
	r.FlashCryptConfig = uint8(in.Uint("flash_crypt_config", 0xF))
	in.Field(false, "partition_table")
	r.PartitionTable = in.Hex("partition_table", maxPartitionTable)
	in.Field(false, "flash_size")
	r.FlashSize = uint32(in.Uint("flash_size", maxFlash))
	in.Field(false, "recipe")
	r.Recipe = in.String("recipe")
	in.Field(false, "recipe_revision")
	r.RecipeRevision = int(in.Uint("recipe_revision", canon.MaxInt))
	in.Field(false, "recipe_hash")
	r.RecipeHash = in.String("recipe_hash")
	in.Field(false, "job")
	r.Job = in.String("job")
	in.Field(false, "station")
	r.Station = in.String("station")
	in.Field(false, "lot")
	r.Lot = in.String("lot")
	in.Field(false, "created")
	r.Created = in.Time("created")
	more := later.Read(in)
	r.OTATokenSHA256, r.ECIESPublicKey = (*Digest)(more.OTATokenSHA256), more.ECIESPublicKey
	r.SecureBootScheme, r.SecureBootDigests = more.SecureBootScheme, more.SecureBootDigests
	if err := in.End(); err != nil {
		return r, fmt.Errorf("keystore: record: %w", err)
	}
	return r, nil
}

func readMAC(in *canon.Reader, field string) chip.MAC {
	s := in.String(field)
	m, err := chip.ParseMAC(s)
	if err != nil {
		in.Fail(field, "not a MAC address")
	}
	return m
}

func readFingerprint(in *canon.Reader, field string) Fingerprint {
	fp, err := ParseFingerprint(in.String(field))
	if err != nil {
		in.Fail(field, "not a key fingerprint")
	}
	return fp
}

// Validate checks a state before it is stored.
func (s State) Validate() error {
	if !slices.Contains(StateKinds(), s.Kind) {
		return fmt.Errorf("keystore: unknown state %q", string(s.Kind))
	}
	if s.Job == "" {
		return errors.New("keystore: a state names the job that says so")
	}
	for _, f := range []struct{ name, text string }{{"note", s.Note}, {"job", s.Job}, {"station", s.Station}} {
		if reason := CheckText(f.text); reason != "" {
			return fmt.Errorf("keystore: state field %s %s", f.name, reason)
		}
	}
	if !canon.ValidTime(s.Time) {
		return errors.New("keystore: state field time is out of range")
	}
	return nil
}
