package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
)

// Kind says what sort of fact an entry records.
type Kind string

// The kinds of entries.
const (
	KindIntent   Kind = "intent"   // what will be done next
	KindObserved Kind = "observed" // what was seen after it
	KindVerdict  Kind = "verdict"  // how a unit's job ended
	KindOperator Kind = "operator" // what a person did
	KindStation  Kind = "station"  // what concerns the station or the journal itself
)

// Limits of an entry.
const (
	MaxText    = 128       // bytes of station, slot, job and step
	MaxPayload = 256 << 10 // bytes of the canonical payload
)

// Entry is one line of the journal.
type Entry struct {
	Index   uint64
	Time    time.Time       // UTC
	Station string          // filled in by Append
	Slot    string          // fixture position; may be empty
	Unit    chip.MAC        // zero if the entry concerns no unit, or one that is not known yet
	Job     string          // may be empty
	Step    string          // never empty
	Kind    Kind            // one of the kinds above
	Payload json.RawMessage // JSON object; canonical once it is in the journal
	Prev    Hash            // of the entry before; zero in entry 0
}

// Hash is the RFC 6962 leaf hash of an entry: SHA-256(0x00 ‖ canonical bytes).
type Hash [sha256.Size]byte

// String is the hash in lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the hex form.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// HashLine hashes the canonical bytes of an entry, without a newline.
func HashLine(line []byte) Hash {
	var buf [1024]byte // longer entries cost an allocation
	return sha256.Sum256(append(append(buf[:0], 0), line...))
}

// MarshalPayload makes a canonical payload of any value that encoding/json
// writes as an object. nil is the empty object. Floating-point numbers and
// integers beyond ±(2^53−1) are refused: write them as strings.
func MarshalPayload(v any) (json.RawMessage, error) {
	if v == nil {
		return json.RawMessage("{}"), nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("journal: payload: %w", err)
	}
	return canonicalPayload(b)
}

func canonicalPayload(b []byte) (json.RawMessage, error) {
	if len(b) == 0 {
		return json.RawMessage("{}"), nil
	}
	if len(b) > 8*MaxPayload { // white space and escapes may go away
		return nil, fmt.Errorf("journal: payload has %d bytes, more than %d", len(b), MaxPayload)
	}
	out, err := canon.Object(b)
	if err != nil {
		return nil, fmt.Errorf("journal: payload: %w", err)
	}
	if err := guardPayload(out); err != nil {
		return nil, err
	}
	return out, nil
}

// Canonical gives the entry's only encoding: one JSON object on one line
// (RFC 8785: members in ascending order, no white space), without a newline.
func (e Entry) Canonical() ([]byte, error) {
	payload, err := canonicalPayload(e.Payload)
	if err != nil {
		return nil, err
	}
	e.Payload = payload
	if err := e.validate(); err != nil {
		return nil, err
	}
	return e.appendTo(nil), nil
}

// appendTo writes a valid entry with a canonical payload.
func (e Entry) appendTo(b []byte) []byte {
	b = append(b, `{"index":`...)
	b = strconv.AppendUint(b, e.Index, 10)
	b = append(b, `,"job":`...)
	b = canon.AppendString(b, e.Job)
	b = append(b, `,"kind":`...)
	b = canon.AppendString(b, string(e.Kind))
	b = append(b, `,"payload":`...)
	b = append(b, e.Payload...)
	b = append(b, `,"prev":"`...)
	b = hex.AppendEncode(b, e.Prev[:])
	b = append(b, `","slot":`...)
	b = canon.AppendString(b, e.Slot)
	b = append(b, `,"station":`...)
	b = canon.AppendString(b, e.Station)
	b = append(b, `,"step":`...)
	b = canon.AppendString(b, e.Step)
	b = append(b, `,"time":`...)
	b = canon.AppendTime(b, e.Time)
	b = append(b, `,"unit":"`...)
	if e.Unit != (chip.MAC{}) {
		b = append(b, e.Unit.String()...)
	}
	return append(b, `"}`...)
}

// ParseEntry reads the canonical encoding and nothing else: what parses encodes
// to the same bytes. Errors name the field and the offset.
func ParseEntry(line []byte) (Entry, error) {
	s, err := scan(line)
	if err != nil {
		return Entry{}, err
	}
	return Entry{
		Index: s.index, Time: s.time, Station: string(s.station), Slot: string(s.slot), Unit: s.unit, Job: string(s.job),
		Step: string(s.step), Kind: s.kind, Payload: bytes.Clone(s.payload), Prev: s.prev,
	}, nil
}

// scanned is an entry whose texts still lie in the line.
type scanned struct {
	index                             uint64
	job, payload, slot, station, step []byte
	kind                              Kind
	prev                              Hash
	time                              time.Time
	unit                              chip.MAC
}

// scan is ParseEntry without copies: a check of ten million entries makes no
// garbage.
func scan(line []byte) (s scanned, err error) {
	in := canon.NewReader(line)
	in.Field(true, "index")
	s.index = in.Uint("index", canon.MaxInt)
	in.Field(false, "job")
	s.job = in.Bytes("job")
	in.Field(false, "kind")
	kind := in.Bytes("kind")
	in.Field(false, "payload")
	s.payload = in.Object("payload")
	in.Field(false, "prev")
	in.HexInto("prev", s.prev[:])
	in.Field(false, "slot")
	s.slot = in.Bytes("slot")
	in.Field(false, "station")
	s.station = in.Bytes("station")
	in.Field(false, "step")
	s.step = in.Bytes("step")
	in.Field(false, "time")
	s.time = in.Time("time")
	in.Field(false, "unit")
	if unit := in.Bytes("unit"); len(unit) > 0 {
		if s.unit, err = scanMAC(unit); err != nil {
			in.Fail("unit", "neither empty nor a MAC address")
		}
	}
	if err := in.End(); err != nil {
		return scanned{}, fmt.Errorf("journal: entry: %w", err)
	}
	if s.kind = kindOf(kind); s.kind == "" {
		return scanned{}, errKind
	}
	if err := validate(s.index, s.prev, s.payload, s.station, s.slot, s.job, s.step); err != nil {
		return scanned{}, err
	}
	return s, nil
}

// scanMAC reads the lower-case form with colons; not all zeros.
func scanMAC(b []byte) (mac chip.MAC, err error) {
	if len(b) != 3*len(mac)-1 {
		return mac, errUnit
	}
	for i := range mac {
		if i > 0 && b[3*i-1] != ':' {
			return mac, errUnit
		}
		for _, c := range b[3*i : 3*i+2] {
			switch {
			case c >= '0' && c <= '9':
				mac[i] = mac[i]<<4 | (c - '0')
			case c >= 'a' && c <= 'f':
				mac[i] = mac[i]<<4 | (c - 'a' + 10)
			default:
				return mac, errUnit
			}
		}
	}
	if mac == (chip.MAC{}) {
		return mac, errUnit
	}
	return mac, nil
}

var errUnit = errors.New("no MAC address")

// kindOf gives the constant, so that nothing is allocated; empty if there is none.
func kindOf[T string | []byte](b T) Kind {
	switch string(b) {
	case string(KindIntent):
		return KindIntent
	case string(KindObserved):
		return KindObserved
	case string(KindVerdict):
		return KindVerdict
	case string(KindOperator):
		return KindOperator
	case string(KindStation):
		return KindStation
	}
	return ""
}

// validate checks what the encoding alone does not.
func (e Entry) validate() error {
	if kindOf(string(e.Kind)) == "" {
		return errKind
	}
	if !canon.ValidTime(e.Time) {
		return fieldError("time", "has no year from 0 to 9999")
	}
	return validate(e.Index, e.Prev, e.Payload, e.Station, e.Slot, e.Job, e.Step)
}

var errKind = fieldError("kind", "is none of intent, observed, verdict, operator, station")

func validate[T string | []byte](index uint64, prev Hash, payload []byte, station, slot, job, step T) error {
	switch {
	case len(payload) > MaxPayload:
		return fieldError("payload", fmt.Sprintf("has more than %d bytes", MaxPayload))
	case index > canon.MaxInt:
		return fieldError("index", "is too large")
	case (index == 0) != (prev == Hash{}):
		return fieldError("prev", "is zero in entry 0 and nowhere else")
	case len(station) == 0:
		return fieldError("station", "is missing")
	case len(step) == 0:
		return fieldError("step", "is missing")
	}
	for i, text := range [...]T{station, slot, job, step} {
		if err := checkText(text); err != nil {
			return fieldError([...]string{"station", "slot", "job", "step"}[i], err.Error())
		}
	}
	return nil
}

func checkText[T string | []byte](s T) error {
	if len(s) > MaxText {
		return errLongText
	}
	printable := true
	for i := range len(s) {
		printable = printable && s[i] >= 0x20 && s[i] < 0x7f
	}
	if printable {
		return nil
	}
	text := string(s)
	if !utf8.ValidString(text) {
		return errUTF8
	}
	for _, c := range text {
		if unicode.IsControl(c) {
			return errControl
		}
	}
	return nil
}

var (
	errLongText = fmt.Errorf("has more than %d bytes", MaxText)
	errUTF8     = errors.New("is not valid UTF-8")
	errControl  = errors.New("has a control character")
)

// errInvalid marks an entry that Append does not take; nothing was written.
var errInvalid = errors.New("journal: invalid entry")

func fieldError(field, reason string) error {
	return fmt.Errorf("%w: field %s %s", errInvalid, field, reason)
}
