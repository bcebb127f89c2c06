package local

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/internal/later"
)

// formatVersion is the version of the file's layout.
const formatVersion = 1

// header is the store's own description.
type header struct {
	format    int
	id        string
	testStore bool
	recipient string // X25519, age1…
	created   time.Time
}

func (h header) append(b []byte) []byte {
	b = append(b, `{"format":`...)
	b = strconv.AppendInt(b, int64(h.format), 10)
	b = canon.AppendStringField(b, "id", h.id)
	b = canon.AppendBoolField(b, "test_store", h.testStore)
	b = canon.AppendStringField(b, "recipient", h.recipient)
	return append(canon.AppendTimeField(b, "created", h.created), '}')
}

func parseHeader(b []byte) (h header, err error) {
	if b == nil {
		return h, fmt.Errorf("%w: it has no header", ErrNotAStore)
	}
	in := canon.NewReader(b)
	in.Field(true, "format")
	h.format = int(in.Uint("format", 1<<16))
	if h.format != formatVersion {
		in.Fail("format", fmt.Sprintf("this build knows only version %d", formatVersion))
	}
	in.Field(false, "id")
	h.id = in.String("id")
	in.Field(false, "test_store")
	h.testStore = in.Bool("test_store")
	in.Field(false, "recipient")
	h.recipient = in.String("recipient")
	in.Field(false, "created")
	h.created = in.Time("created")
	if err := in.End(); err != nil {
		return h, fmt.Errorf("%w: header: %w", ErrNotAStore, err)
	}
	return h, nil
}

// row is what stands in clear beside a sealed record.
type row struct {
	meta            keystore.Meta // without Receipt and States
	partitionSHA256 [32]byte
	sealedSHA256    [32]byte
	seq             uint64 // order of creation
	stored          time.Time
}

func rowOf(r keystore.Record) row {
	m := r.Meta()
	m.Created = m.Created.UTC()
	return row{meta: m, partitionSHA256: sha256.Sum256(r.PartitionTable)}
}

// text is the row's canonical encoding.
func (r row) text() []byte {
	m := r.meta
	b := []byte(`{"unit":`)
	b = canon.AppendString(b, m.Unit.String())
	b = canon.AppendBoolField(b, "simulated", m.Simulated)
	b = canon.AppendStringField(b, "chip", m.Chip)
	b = canon.AppendUintField(b, "chip_revision", uint64(m.ChipRevision))
	b = canon.AppendStringField(b, "scheme", string(m.Scheme))
	b = canon.AppendStringField(b, "fingerprint", m.Fingerprint.String())
	b = canon.AppendUintField(b, "flash_crypt_config", uint64(m.FlashCryptConfig))
	b = canon.AppendStringField(b, "partition_table_sha256", fmt.Sprintf("%x", r.partitionSHA256))
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
	b = canon.AppendStringField(b, "sealed_sha256", fmt.Sprintf("%x", r.sealedSHA256))
	b = canon.AppendUintField(b, "seq", r.seq)
	return append(canon.AppendTimeField(b, "stored", r.stored), '}')
}

func parseRow(b []byte) (r row, err error) {
	in := canon.NewReader(b)
	m := &r.meta
	in.Field(true, "unit")
	if m.Unit, err = chip.ParseMAC(in.String("unit")); err != nil {
		in.Fail("unit", "not a MAC address")
	}
	in.Field(false, "simulated")
	m.Simulated = in.Bool("simulated")
	in.Field(false, "chip")
	m.Chip = in.String("chip")
	in.Field(false, "chip_revision")
	m.ChipRevision = chip.Revision(in.Uint("chip_revision", 1<<16-1))
	in.Field(false, "scheme")
	m.Scheme = chip.Scheme(in.String("scheme"))
	in.Field(false, "fingerprint")
	m.Fingerprint = keystore.Fingerprint(hash(in, "fingerprint"))
	in.Field(false, "flash_crypt_config")
	m.FlashCryptConfig = uint8(in.Uint("flash_crypt_config", 15))
	in.Field(false, "partition_table_sha256")
	r.partitionSHA256 = hash(in, "partition_table_sha256")
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
	in.Field(false, "sealed_sha256")
	r.sealedSHA256 = hash(in, "sealed_sha256")
	in.Field(false, "seq")
	r.seq = in.Uint("seq", canon.MaxInt)
	in.Field(false, "stored")
	r.stored = in.Time("stored")
	return r, in.End()
}

func hash(in *canon.Reader, field string) (h [32]byte) {
	b := in.Hex(field, len(h))
	if len(b) != len(h) {
		in.Fail(field, "not 64 hex digits")
	}
	copy(h[:], b)
	return h
}

// appendState writes a state with the hash of what stands before it.
func appendState(b []byte, s keystore.State, prev [32]byte) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendInt(b, int64(s.Seq), 10)
	b = canon.AppendStringField(b, "state", string(s.Kind))
	b = canon.AppendStringField(b, "note", s.Note)
	b = canon.AppendStringField(b, "job", s.Job)
	b = canon.AppendStringField(b, "station", s.Station)
	b = canon.AppendTimeField(b, "time", s.Time)
	b = canon.AppendStringField(b, "prev", fmt.Sprintf("%x", prev))
	return append(b, '}')
}

func parseState(b []byte) (s keystore.State, prev [32]byte, err error) {
	in := canon.NewReader(b)
	in.Field(true, "seq")
	s.Seq = int(in.Uint("seq", 1<<31))
	in.Field(false, "state")
	s.Kind = keystore.StateKind(in.String("state"))
	in.Field(false, "note")
	s.Note = in.String("note")
	in.Field(false, "job")
	s.Job = in.String("job")
	in.Field(false, "station")
	s.Station = in.String("station")
	in.Field(false, "time")
	s.Time = in.Time("time")
	in.Field(false, "prev")
	prev = hash(in, "prev")
	if err := in.End(); err != nil {
		return s, prev, err
	}
	return s, prev, s.Validate()
}

// stored is a row with its states.
type stored struct {
	row    row
	states []keystore.State
	head   [32]byte // hash of the last state, or of the row
}

func (k stored) meta() keystore.Meta {
	m := k.row.meta
	m.States = slices.Clone(k.states)
	return m
}

func recordKey(unit chip.MAC, fp keystore.Fingerprint) []byte {
	return append(slices.Clone(unit[:]), fp[:]...)
}

func stateKey(id []byte, seq int) []byte {
	return binary.BigEndian.AppendUint32(slices.Clone(id), uint32(seq))
}

func macString(b []byte) string {
	if len(b) != len(chip.MAC{}) {
		return "unknown"
	}
	return chip.MAC(b).String()
}

// records reads all records of a unit in the order of creation.
func (s *Store) records(tx *bolt.Tx, unit chip.MAC) ([]stored, error) {
	var all []stored
	c := tx.Bucket(bucketRows).Cursor()
	for id, raw := c.Seek(unit[:]); id != nil && bytes.HasPrefix(id, unit[:]); id, raw = c.Next() {
		k, err := s.record(tx, id, raw)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b stored) int { return int(int64(a.row.seq) - int64(b.row.seq)) })
	return all, nil
}

// record reads the row under id and its states, and checks that they hang together.
func (s *Store) record(tx *bolt.Tx, id, raw []byte) (stored, error) {
	unit := chip.MAC(id[:6])
	r, err := parseRow(raw)
	if err != nil {
		return stored{}, s.damaged(unit, "its row: "+err.Error())
	}
	if !bytes.Equal(id, recordKey(r.meta.Unit, r.meta.Fingerprint)) {
		return stored{}, s.damaged(unit, "its row names another unit or key")
	}
	k := stored{row: r, head: sha256.Sum256(raw)}
	c := tx.Bucket(bucketStates).Cursor()
	for key, v := c.Seek(id); key != nil && bytes.HasPrefix(key, id); key, v = c.Next() {
		st, prev, err := parseState(v)
		switch {
		case err != nil:
			return stored{}, s.damaged(unit, fmt.Sprintf("state %d: %v", len(k.states)+1, err))
		case prev != k.head:
			return stored{}, s.damaged(unit, fmt.Sprintf("state %d does not follow what stands before it", len(k.states)+1))
		case st.Seq != len(k.states)+1 || !bytes.Equal(key, stateKey(id, st.Seq)):
			return stored{}, s.damaged(unit, fmt.Sprintf("state %d is missing or has another number", len(k.states)+1))
		}
		k.states = append(k.states, st)
		k.head = sha256.Sum256(v)
	}
	return k, nil
}
