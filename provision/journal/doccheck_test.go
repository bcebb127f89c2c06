package journal_test

// This is another program: it checks a journal from docs/journal.md alone, and
// imports nothing but the standard library (TestDocCheckStandsAlone).

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// docJournal is what docCheck found out.
type docJournal struct {
	id, station, publicKey string
	leaves                 [][32]byte
	signed                 uint64 // entries of the largest checkpoint
}

// docCheck checks exported lines and the checkpoints of the journal.
func docCheck(lines [][]byte, checkpoints [][]byte, publicKey string) (docJournal, error) {
	var j docJournal
	units := docUnits{open: map[[4]string]int{}, runs: map[[3]string]bool{}}
	var prev [32]byte
	for n, line := range lines {
		e, err := docEntry(line)
		if err != nil {
			return j, fmt.Errorf("entry %d: %w", n, err)
		}
		switch {
		case e["index"] != json.Number(strconv.Itoa(n)):
			err = errors.New("another index")
		case e["prev"] != hex.EncodeToString(prev[:]):
			err = errors.New("it does not follow the one before")
		case n == 0:
			err = j.first(e)
		case e["station"] != j.station:
			err = errors.New("another station")
		}
		if err == nil {
			err = units.entry(e)
		}
		if err != nil {
			return j, fmt.Errorf("entry %d: %w", n, err)
		}
		prev = sha256.Sum256(append([]byte{0}, line...))
		j.leaves = append(j.leaves, prev)
	}
	if len(lines) == 0 {
		return j, errors.New("no entries")
	}
	if j.publicKey != publicKey {
		return j, errors.New("entry 0 names another public key")
	}
	for _, c := range checkpoints {
		if err := j.checkpoint(string(c), publicKey); err != nil {
			return j, fmt.Errorf("checkpoint: %w", err)
		}
	}
	return j, nil
}

var (
	docTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$`)
	docMAC  = regexp.MustCompile(`^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$`)
	docKind = regexp.MustCompile(`^(intent|observed|verdict|operator|station)$`)
	docID   = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// docEntry parses a line and demands that encoding it again gives the same.
func docEntry(line []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	var e map[string]any
	if err := d.Decode(&e); err != nil {
		return nil, err
	}
	var again bytes.Buffer
	docEncode(&again, e)
	if !bytes.Equal(again.Bytes(), line) {
		return nil, errors.New("not in the one form")
	}
	for _, name := range []string{"job", "kind", "prev", "slot", "station", "step", "time", "unit"} {
		if _, ok := e[name].(string); !ok {
			return nil, fmt.Errorf("%s is missing", name)
		}
	}
	_, isNumber := e["index"].(json.Number)
	_, isObject := e["payload"].(map[string]any)
	text := func(name string) string { return e[name].(string) }
	switch {
	case len(e) != 10 || !isNumber || !isObject:
		return nil, errors.New("not the ten members")
	case !docTime.MatchString(text("time")), !docMAC.MatchString(text("unit")), !docKind.MatchString(text("kind")),
		text("unit") == "00:00:00:00:00:00", text("station") == "", text("step") == "":
		return nil, errors.New("a member has a wrong form")
	}
	return e, nil
}

// docEncode writes the subset of RFC 8785.
func docEncode(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		sort.Strings(names)
		b.WriteByte('{')
		for i, name := range names {
			if i > 0 {
				b.WriteByte(',')
			}
			docEncode(b, name)
			b.WriteByte(':')
			docEncode(b, v[name])
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, m := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			docEncode(b, m)
		}
		b.WriteByte(']')
	case string:
		b.WriteByte('"')
		for _, c := range v {
			short := strings.IndexRune("\b\t\n\f\r", c)
			switch {
			case c == '"' || c == '\\':
				b.WriteString(`\` + string(c))
			case short >= 0:
				b.WriteString(`\` + "btnfr"[short:short+1])
			case c < 0x20:
				fmt.Fprintf(b, `\u%04x`, c)
			default:
				b.WriteRune(c)
			}
		}
		b.WriteByte('"')
	case json.Number:
		n, err := v.Int64()
		if err != nil || n > 1<<53-1 || n < -(1<<53-1) {
			b.WriteString("(no integer)")
			return
		}
		b.WriteString(strconv.FormatInt(n, 10))
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case nil:
		b.WriteString("null")
	}
}

func (j *docJournal) first(e map[string]any) error {
	p := e["payload"].(map[string]any)
	if e["kind"] != "station" || e["step"] != "journal-init" || p["format"] != json.Number("1") {
		return errors.New("it does not begin a journal of format 1")
	}
	j.id, _ = p["journal"].(string)
	j.publicKey, _ = p["public_key"].(string)
	j.station = e["station"].(string)
	if !docID.MatchString(j.id) {
		return errors.New("no id")
	}
	return nil
}

// docUnits follows the order of the entries of units.
type docUnits struct {
	open map[[4]string]int  // slot, step, job, unit
	runs map[[3]string]bool // slot or "", job, unit
}

func (u docUnits) entry(e map[string]any) error {
	slot, step, job, unit := e["slot"].(string), e["step"].(string), e["job"].(string), e["unit"].(string)
	run := [3]string{"", job, unit}
	if unit == "" {
		run = [3]string{"slot " + slot, "", ""}
	}
	switch e["kind"] {
	case "intent":
		u.open[[4]string{slot, step, job, unit}]++
		u.runs[run] = true
	case "observed":
		u.runs[run] = true
		for _, k := range [][4]string{{slot, step, job, unit}, {slot, step, "", unit}, {slot, step, "", ""}} {
			if u.open[k] > 0 {
				u.open[k]--
				return nil
			}
		}
		return errors.New("nothing announced it")
	case "verdict":
		if !u.runs[run] && (unit == "" || !u.anonymous(slot)) {
			return errors.New("a verdict without a run")
		}
		if unit != "" {
			delete(u.runs, run)
		}
	}
	return nil
}

func (u docUnits) anonymous(slot string) bool {
	for k, n := range u.open {
		if n > 0 && k[0] == slot && k[2] == "" && k[3] == "" {
			return true
		}
	}
	return false
}

// docRoot is the root of RFC 6962, as its definition says it.
func docRoot(leaves [][32]byte) [32]byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	left, right := docRoot(leaves[:k]), docRoot(leaves[k:])
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

// docPublicKey reads NAME+HASH+KEY.
func docPublicKey(s string) (name string, hash []byte, key ed25519.PublicKey, err error) {
	parts := strings.SplitN(s, "+", 3)
	if len(parts) != 3 {
		return "", nil, nil, errors.New("no public key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 33 || raw[0] != 1 {
		return "", nil, nil, errors.New("no Ed25519 key")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), raw...))
	if hex.EncodeToString(sum[:4]) != parts[1] {
		return "", nil, nil, errors.New("the key's hash is wrong")
	}
	return parts[0], sum[:4], raw[1:], nil
}

// checkpoint checks a note against the entries.
func (j *docJournal) checkpoint(signed, publicKey string) error {
	name, hash, key, err := docPublicKey(publicKey)
	if err != nil {
		return err
	}
	text, rest, ok := strings.Cut(signed, "\n\n")
	text += "\n"
	lines := strings.Split(text, "\n")
	signature, isOurs := strings.CutPrefix(strings.TrimSuffix(rest, "\n"), "— "+name+" ")
	if !ok || !isOurs || len(lines) != 7 {
		return errors.New("no note of this key")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(signature)
	if err != nil || len(raw) != 4+ed25519.SignatureSize || binary.BigEndian.Uint32(raw) != binary.BigEndian.Uint32(hash) {
		return errors.New("no signature")
	}
	if !ed25519.Verify(key, []byte(text), raw[4:]) {
		return errors.New("bad signature")
	}
	size, err := strconv.ParseUint(lines[1], 10, 53)
	if err != nil || size == 0 {
		return errors.New("no size")
	}
	if lines[0] != "provisiond/journal/"+j.id || lines[3] != "station "+j.station ||
		!docTime.MatchString(strings.TrimPrefix(lines[4], "time ")) || !strings.HasPrefix(lines[5], "generation ") {
		return errors.New("of another journal")
	}
	if size > uint64(len(j.leaves)) {
		return fmt.Errorf("entry %d is missing", len(j.leaves))
	}
	if root := docRoot(j.leaves[:size]); lines[2] != base64.StdEncoding.EncodeToString(root[:]) {
		return fmt.Errorf("the first %d entries are not those that were signed", size)
	}
	j.signed = max(j.signed, size)
	return nil
}

// docCopy splits a copy into entries and checkpoints.
func docCopy(content []byte) (entries, checkpoints [][]byte, err error) {
	for line := range bytes.Lines(content) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if !bytes.HasPrefix(line, []byte(`{"checkpoint":`)) {
			entries = append(entries, line)
			continue
		}
		var c struct{ Checkpoint string }
		if err := json.Unmarshal(line, &c); err != nil {
			return nil, nil, err
		}
		checkpoints = append(checkpoints, []byte(c.Checkpoint))
	}
	return entries, checkpoints, nil
}
