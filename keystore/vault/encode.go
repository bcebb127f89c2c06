package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/internal/later"
)

// cas0 begins every write: create, or fail.
const cas0 = `{"options":{"cas":0},"data":`

// encodeRecord gives the body that creates a record, and the digest of its
// canonical encoding. The body holds the key: wipe it.
func encodeRecord(r keystore.Record) (body []byte, digest string, err error) {
	r.Created = r.Created.UTC()
	canonical, err := keystore.MarshalRecord(r)
	if err != nil {
		return nil, "", err
	}
	defer clear(canonical)
	sum := sha256.Sum256(canonical)
	digest = hex.EncodeToString(sum[:])
	names := map[string]string{}
	for _, f := range clearFields(r.Meta(), r.Schema, digest) {
		names[f] = ""
	}
	shown, err := json.Marshal(names)
	if err != nil {
		return nil, "", err
	}
	body = make([]byte, 0, len(cas0)+len(canonical)+len(shown)+32) // never grows: no copies of the key
	body = append(body, cas0...)
	body = append(body, canonical[:len(canonical)-1]...)
	body = append(body, `,"clear":`...)
	body = append(body, shown...)
	return append(body, "}}"...), digest, nil
}

// clearFields are the names in "clear": what may be seen of a record.
func clearFields(m keystore.Meta, schema int, digest string) []string {
	names := []string{
		"sha256=" + digest,
		"schema=" + strconv.Itoa(schema),
		"simulated=" + strconv.FormatBool(m.Simulated),
		"unit=" + m.Unit.String(),
		"chip=" + m.Chip,
		"chip_revision=" + strconv.Itoa(int(m.ChipRevision)),
		"scheme=" + string(m.Scheme),
		"fingerprint=" + m.Fingerprint.String(),
		"flash_crypt_config=" + strconv.Itoa(int(m.FlashCryptConfig)),
		"flash_size=" + strconv.FormatUint(uint64(m.FlashSize), 10),
		"recipe=" + m.Recipe,
		"recipe_revision=" + strconv.Itoa(m.RecipeRevision),
		"recipe_hash=" + m.RecipeHash,
		"job=" + m.Job,
		"station=" + m.Station,
		"lot=" + m.Lot,
		"created=" + m.Created.UTC().Format(time.RFC3339Nano),
	}
	for _, t := range laterMembers(m).Texts() {
		names = append(names, t.Name+"="+t.Value)
	}
	return names
}

// laterMembers are the members that are absent when they are empty.
func laterMembers(m keystore.Meta) later.Members {
	return later.Members{
		OTATokenSHA256: (*[32]byte)(m.OTATokenSHA256), ECIESPublicKey: m.ECIESPublicKey,
		SecureBootScheme: m.SecureBootScheme, SecureBootDigests: m.SecureBootDigests,
	}
}

// readLater reads the members that may be absent; get gives a member's text.
func readLater(get func(name string) (string, bool)) (later.Members, error) {
	var more later.Members
	for _, name := range []string{later.NameOTADigest, later.NameECIESPublicKey, later.NameSecureBoot, later.NameSecureBootDigest} {
		if text, ok := get(name); ok {
			if reason := more.Set(name, text); reason != "" {
				return later.Members{}, fmt.Errorf("%s %s", name, reason)
			}
		}
	}
	return more, nil
}

// header is what subkeys tell about a record.
type header struct {
	meta   keystore.Meta
	digest string
}

// parseClear reads the names in "clear". What parses encodes to the same names.
func parseClear(names map[string]any) (header, error) {
	values := make(map[string]string, len(names))
	for n := range names {
		k, v, ok := strings.Cut(n, "=")
		if _, twice := values[k]; !ok || twice {
			return header{}, fmt.Errorf("the clear names are not of this schema: %q", k)
		}
		values[k] = v
	}
	var errs []error
	number := func(k string, bits int) uint64 {
		v, err := strconv.ParseUint(values[k], 10, bits)
		if err != nil {
			errs = append(errs, fmt.Errorf("clear name %s is not a number", k))
		}
		return v
	}
	h := header{digest: values["sha256"]}
	m := &h.meta
	var err error
	if m.Unit, err = chip.ParseMAC(values["unit"]); err != nil {
		errs = append(errs, errors.New("clear name unit is not a MAC"))
	}
	if m.Fingerprint, err = keystore.ParseFingerprint(values["fingerprint"]); err != nil {
		errs = append(errs, errors.New("clear name fingerprint is not a fingerprint"))
	}
	if m.Created, err = time.Parse(time.RFC3339Nano, values["created"]); err != nil {
		errs = append(errs, errors.New("clear name created is not a time"))
	}
	m.Simulated = values["simulated"] == "true"
	m.Chip, m.Scheme = values["chip"], chip.Scheme(values["scheme"])
	m.ChipRevision = chip.Revision(number("chip_revision", 16))
	m.FlashCryptConfig = uint8(number("flash_crypt_config", 4))
	m.FlashSize = uint32(number("flash_size", 32))
	m.Recipe, m.RecipeRevision, m.RecipeHash = values["recipe"], int(number("recipe_revision", 31)), values["recipe_hash"]
	m.Job, m.Station, m.Lot = values["job"], values["station"], values["lot"]
	schema := int(number("schema", 16))
	more, err := readLater(func(name string) (string, bool) { v, ok := values[name]; return v, ok })
	if err != nil {
		errs = append(errs, fmt.Errorf("clear name %w", err))
	}
	m.OTATokenSHA256, m.ECIESPublicKey = (*keystore.Digest)(more.OTATokenSHA256), more.ECIESPublicKey
	m.SecureBootScheme, m.SecureBootDigests = more.SecureBootScheme, more.SecureBootDigests
	if err := errors.Join(errs...); err != nil {
		return header{}, err
	}
	want := clearFields(h.meta, schema, h.digest)
	if len(want) != len(names) {
		return header{}, fmt.Errorf("there are %d clear names, and the schema has %d", len(names), len(want))
	}
	for _, w := range want {
		if _, ok := names[w]; !ok {
			return header{}, errors.New("the clear names are not in their canonical form")
		}
	}
	return h, nil
}

// recordJSON has the fields of a record as Vault gives them back: sorted, and
// not as they were written.
type recordJSON struct {
	Schema           int             `json:"schema"`
	Unit             string          `json:"unit"`
	Simulated        bool            `json:"simulated"`
	Chip             string          `json:"chip"`
	ChipRevision     uint16          `json:"chip_revision"`
	Scheme           string          `json:"scheme"`
	Key              json.RawMessage `json:"key"` // bytes, which can be wiped
	Fingerprint      string          `json:"fingerprint"`
	FlashCryptConfig uint8           `json:"flash_crypt_config"`
	PartitionTable   string          `json:"partition_table"`
	FlashSize        uint32          `json:"flash_size"`
	Recipe           string          `json:"recipe"`
	RecipeRevision   int             `json:"recipe_revision"`
	RecipeHash       string          `json:"recipe_hash"`
	Job              string          `json:"job"`
	Station          string          `json:"station"`
	Lot              string          `json:"lot"`
	Created          string          `json:"created"`

	OTATokenSHA256    *string `json:"ota_token_sha256"`
	ECIESPublicKey    *string `json:"ecies_public_key"`
	SecureBootScheme  *string `json:"secure_boot_scheme"`
	SecureBootDigests *string `json:"secure_boot_digests"`

	Clear map[string]any `json:"clear"`
}

// later gives the text of a member that may be absent.
func (j recordJSON) later(name string) (string, bool) {
	text := map[string]*string{
		later.NameOTADigest: j.OTATokenSHA256, later.NameECIESPublicKey: j.ECIESPublicKey,
		later.NameSecureBoot: j.SecureBootScheme, later.NameSecureBootDigest: j.SecureBootDigests,
	}[name]
	if text == nil {
		return "", false
	}
	return *text, true
}

// decodeRecord reads a record's data, checks it against its clear names and its
// digest, and makes sure that it is the record that was asked for. Errors echo
// nothing of the data.
func decodeRecord(data []byte, unit chip.MAC, fp keystore.Fingerprint) (keystore.Record, error) {
	var j recordJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&j)
	defer clear(j.Key)
	if err != nil {
		return keystore.Record{}, errors.New("its data is not a key record of this schema")
	}
	h, err := parseClear(j.Clear)
	if err != nil {
		return keystore.Record{}, err
	}
	r := keystore.Record{
		Schema: j.Schema, Simulated: j.Simulated, Chip: j.Chip, ChipRevision: chip.Revision(j.ChipRevision),
		Scheme: chip.Scheme(j.Scheme), FlashCryptConfig: j.FlashCryptConfig, FlashSize: j.FlashSize,
		Recipe: j.Recipe, RecipeRevision: j.RecipeRevision, RecipeHash: j.RecipeHash,
		Job: j.Job, Station: j.Station, Lot: j.Lot,
	}
	var errs [6]error
	r.Unit, errs[0] = chip.ParseMAC(j.Unit)
	r.Fingerprint, errs[1] = keystore.ParseFingerprint(j.Fingerprint)
	r.Created, errs[2] = time.Parse(time.RFC3339Nano, j.Created)
	r.PartitionTable, errs[3] = hex.DecodeString(j.PartitionTable)
	r.Key, errs[4] = decodeKey(j.Key)
	var more later.Members
	more, errs[5] = readLater(j.later)
	r.OTATokenSHA256, r.ECIESPublicKey = (*keystore.Digest)(more.OTATokenSHA256), more.ECIESPublicKey
	r.SecureBootScheme, r.SecureBootDigests = more.SecureBootScheme, more.SecureBootDigests
	for _, err := range errs {
		if err != nil {
			r.Key.Wipe()
			return keystore.Record{}, errors.New("a field of it does not parse")
		}
	}
	canonical, err := keystore.MarshalRecord(r) // validates: the fingerprint is the key's
	defer clear(canonical)
	sum := sha256.Sum256(canonical)
	switch {
	case err != nil:
	case hex.EncodeToString(sum[:]) != h.digest:
		err = errors.New("its digest is not that of its content")
	case r.Unit != unit || r.Fingerprint != fp || r.Unit != h.meta.Unit || r.Fingerprint != h.meta.Fingerprint:
		err = errors.New("it is the record of another key")
	default:
		for _, name := range clearFields(r.Meta(), r.Schema, h.digest) {
			if _, ok := j.Clear[name]; !ok {
				err = errors.New("its clear names are not those of its content")
			}
		}
	}
	if err != nil {
		r.Key.Wipe()
		return keystore.Record{}, err
	}
	return r, nil
}

func decodeKey(raw json.RawMessage) (keystore.Key, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return keystore.Key{}, errors.New("no key")
	}
	key := make([]byte, hex.DecodedLen(len(raw)-2))
	if _, err := hex.Decode(key, raw[1:len(raw)-1]); err != nil {
		clear(key)
		return keystore.Key{}, errors.New("no key")
	}
	return keystore.KeyFromBytes(key)
}

// claim says which key is a unit's n-th.
type claim struct {
	Fingerprint keystore.Fingerprint `json:"fingerprint"`
	Job         string               `json:"job"`
	Station     string               `json:"station"`
	Created     time.Time            `json:"created"`
}

// stateJSON is a state as it is stored.
type stateJSON struct {
	Kind    string    `json:"kind"`
	Note    string    `json:"note"`
	Job     string    `json:"job"`
	Station string    `json:"station"`
	Time    time.Time `json:"time"`
}

// storeJSON says what a store is.
type storeJSON struct {
	Schema    int    `json:"schema"`
	ID        string `json:"id"`
	TestStore bool   `json:"test_store"`
}

// checkpointJSON is a signed head of a journal, as text.
type checkpointJSON struct {
	Note string `json:"note"`
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(append([]byte(cas0), b...), '}'), nil
}

// strict decodes v and refuses what it does not know.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
