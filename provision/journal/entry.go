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
	var e Entry
	in := canon.NewReader(line)
	in.Field(true, "index")
	e.Index = in.Uint("index", canon.MaxInt)
	in.Field(false, "job")
	e.Job = in.String("job")
	in.Field(false, "kind")
	e.Kind = Kind(in.String("kind"))
	in.Field(false, "payload")
	e.Payload = bytes.Clone(in.Object("payload"))
	in.Field(false, "prev")
	if prev := in.Hex("prev", len(e.Prev)); len(prev) == len(e.Prev) {
		copy(e.Prev[:], prev)
	} else {
		in.Fail("prev", "not 64 hex digits")
	}
	in.Field(false, "slot")
	e.Slot = in.String("slot")
	in.Field(false, "station")
	e.Station = in.String("station")
	in.Field(false, "step")
	e.Step = in.String("step")
	in.Field(false, "time")
	e.Time = in.Time("time")
	in.Field(false, "unit")
	if unit := in.String("unit"); unit != "" {
		mac, err := chip.ParseMAC(unit)
		if err != nil || mac == (chip.MAC{}) {
			in.Fail("unit", "neither empty nor a MAC address")
		}
		e.Unit = mac
	}
	if err := in.End(); err != nil {
		return Entry{}, fmt.Errorf("journal: entry: %w", err)
	}
	if err := e.validate(); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// validate checks what the encoding alone does not.
func (e Entry) validate() error {
	switch e.Kind {
	case KindIntent, KindObserved, KindVerdict, KindOperator, KindStation:
	default:
		return fieldError("kind", "is none of intent, observed, verdict, operator, station")
	}
	for _, f := range []struct {
		name, text string
		empty      bool
	}{
		{"station", e.Station, false},
		{"slot", e.Slot, true},
		{"job", e.Job, true},
		{"step", e.Step, false},
	} {
		if err := checkText(f.name, f.text, f.empty); err != nil {
			return err
		}
	}
	switch {
	case len(e.Payload) > MaxPayload:
		return fieldError("payload", fmt.Sprintf("has more than %d bytes", MaxPayload))
	case e.Index > canon.MaxInt:
		return fieldError("index", "is too large")
	case !canon.ValidTime(e.Time):
		return fieldError("time", "has no year from 0 to 9999")
	case (e.Index == 0) != (e.Prev == Hash{}):
		return fieldError("prev", "is zero in entry 0 and nowhere else")
	}
	return nil
}

func checkText(name, s string, empty bool) error {
	switch {
	case s == "" && !empty:
		return fieldError(name, "is missing")
	case len(s) > MaxText:
		return fieldError(name, fmt.Sprintf("has more than %d bytes", MaxText))
	case !utf8.ValidString(s):
		return fieldError(name, "is not valid UTF-8")
	}
	for _, c := range s {
		if unicode.IsControl(c) {
			return fieldError(name, "has a control character")
		}
	}
	return nil
}

// errInvalid marks an entry that Append does not take; nothing was written.
var errInvalid = errors.New("journal: invalid entry")

func fieldError(field, reason string) error {
	return fmt.Errorf("%w: field %s %s", errInvalid, field, reason)
}
