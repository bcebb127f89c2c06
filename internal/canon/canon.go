// Package canon owns the canonical JSON of journal entries and key records: the
// subset of RFC 8785 (JCS) that has only objects, arrays, strings, integers,
// true, false and null. Integers lie within ±(2^53−1) and have no fraction,
// exponent or minus zero. Member names are printable ASCII without quote and
// backslash, so that sorting by bytes is the order of RFC 8785.
//
// It promises that one value has one encoding: what the Reader accepts is, byte
// for byte, what the appenders write. Errors name the place and never echo the
// input, which may hold key bytes.
package canon

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"
)

// MaxInt is the largest integer that every JSON implementation keeps exactly.
const MaxInt = 1<<53 - 1

// maxDepth bounds nesting, so that no input can exhaust the stack.
const maxDepth = 32

const hexDigits = "0123456789abcdef"

// AppendString appends s as a canonical JSON string. Invalid UTF-8 becomes
// U+FFFD, as encoding/json does it.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		i++
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= 0x20:
			dst = append(dst, c)
		case shortEscape(c) != 0:
			dst = append(dst, '\\', shortEscape(c))
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(dst, '"')
}

// shortEscape gives the letter of the two-character escapes that RFC 8785 demands.
func shortEscape(c byte) byte {
	switch c {
	case '\b':
		return 'b'
	case '\t':
		return 't'
	case '\n':
		return 'n'
	case '\f':
		return 'f'
	case '\r':
		return 'r'
	}
	return 0
}

// Object rewrites any JSON object into the canonical form. It refuses what the
// form does not have: repeated names, fractions, large integers, other names.
func Object(b []byte) ([]byte, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	t, err := d.Token()
	if err != nil {
		return nil, syntax(d, err)
	}
	if t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	out, err := object(make([]byte, 0, len(b)), d, "", 1)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("text after the object, at offset %d", d.InputOffset())
	}
	return out, nil
}

type member struct {
	name  string
	value []byte
}

func object(dst []byte, d *json.Decoder, at string, depth int) ([]byte, error) {
	var members []member
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, syntax(d, err)
		}
		name, _ := t.(string)
		if !validName(name) {
			return nil, fmt.Errorf("%s: a member name is not 1 to 64 printable ASCII characters without quote and backslash", place(at))
		}
		v, err := value(nil, d, at+"."+name, depth)
		if err != nil {
			return nil, err
		}
		members = append(members, member{name, v})
	}
	if _, err := d.Token(); err != nil {
		return nil, syntax(d, err)
	}
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	dst = append(dst, '{')
	for i, m := range members {
		if i > 0 {
			if members[i-1].name == m.name {
				return nil, fmt.Errorf("%s stands there twice", place(at+"."+m.name))
			}
			dst = append(dst, ',')
		}
		dst = append(AppendString(dst, m.name), ':')
		dst = append(dst, m.value...)
	}
	return append(dst, '}'), nil
}

func value(dst []byte, d *json.Decoder, at string, depth int) ([]byte, error) {
	t, err := d.Token()
	if err != nil {
		return nil, syntax(d, err)
	}
	switch v := t.(type) {
	case json.Delim:
		if depth >= maxDepth {
			return nil, fmt.Errorf("%s is nested more than %d deep", place(at), maxDepth)
		}
		if v == '{' {
			return object(dst, d, at, depth+1)
		}
		dst = append(dst, '[')
		for i := 0; d.More(); i++ {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = value(dst, d, at+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, syntax(d, err)
		}
		return append(dst, ']'), nil
	case string:
		return AppendString(dst, v), nil
	case json.Number:
		if !validInt([]byte(v)) {
			return nil, fmt.Errorf("%s is not an integer within ±(2^53−1): write other numbers as strings", place(at))
		}
		return append(dst, v...), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	}
	return append(dst, "null"...), nil
}

func place(at string) string {
	if at == "" {
		return "the object"
	}
	return "member " + at[1:]
}

// syntax keeps only the offset of encoding/json's error: its text echoes input.
func syntax(d *json.Decoder, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON text ends too early")
	}
	return fmt.Errorf("not JSON, near offset %d", d.InputOffset())
}

func validName[T string | []byte](s T) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func validInt(b []byte) bool {
	digits := bytes.TrimPrefix(b, []byte("-"))
	if len(digits) == 0 || len(digits) > 16 || (digits[0] == '0' && len(b) > 1) {
		return false
	}
	var n uint64 // 16 digits fit
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + uint64(c-'0')
	}
	return n <= MaxInt
}

// Error says where a text is not canonical. It never echoes the text.
type Error struct {
	Field  string // the member that was read
	Offset int    // in bytes
	Reason string
}

// Error names field, offset and reason.
func (e *Error) Error() string {
	return fmt.Sprintf("field %q at offset %d: %s", e.Field, e.Offset, e.Reason)
}

// Reader reads one canonical text from its beginning to its end. The first
// error sticks, and everything after it reads as zero.
type Reader struct {
	b   []byte
	pos int
	err *Error
}

// NewReader reads b. Slices that the Reader hands out point into b.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Fail records an error at the current place, unless there is one already.
func (r *Reader) Fail(field, reason string) {
	if r.err == nil {
		r.err = &Error{field, r.pos, reason}
	}
}

// Field reads the fixed text up to the value of a member: the first brace or a
// comma, the quoted name and the colon.
func (r *Reader) Field(first bool, name string) {
	if r.err != nil {
		return
	}
	before := byte(',')
	if first {
		before = '{'
	}
	rest := r.b[r.pos:]
	n := len(name)
	if len(rest) < n+4 || rest[0] != before || rest[1] != '"' || string(rest[2:2+n]) != name || rest[2+n] != '"' || rest[3+n] != ':' {
		r.Fail(name, notHere)
		return
	}
	r.pos += n + 4
}

// Optional reads the fixed text up to the value of a member that may be absent:
// a comma, the quoted name and the colon. It is false, and nothing is read, if
// another member or the end is here.
func (r *Reader) Optional(name string) bool {
	if r.err != nil || !bytes.HasPrefix(r.b[r.pos:], []byte(`,"`+name+`":`)) {
		return false
	}
	r.pos += len(name) + 4
	return true
}

const notHere = "this field is not here: fields have a fixed order and nothing lies between them"

// End reads the last brace and demands the end of the text.
func (r *Reader) End() error {
	r.lit("end", '}')
	if r.err == nil && r.pos != len(r.b) {
		r.Fail("end", "there is text after the last brace")
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

func (r *Reader) lit(field string, c byte) {
	if r.err != nil {
		return
	}
	if r.pos >= len(r.b) || r.b[r.pos] != c {
		r.Fail(field, notHere)
		return
	}
	r.pos++
}

// Uint reads an integer from 0 to max.
func (r *Reader) Uint(field string, maximum uint64) uint64 {
	raw := r.number(field)
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil || n > maximum {
		r.Fail(field, "not an integer from 0 to "+strconv.FormatUint(maximum, 10))
		return 0
	}
	return n
}

// Bool reads true or false.
func (r *Reader) Bool(field string) bool {
	if r.err != nil {
		return false
	}
	for _, v := range []bool{true, false} {
		if t := strconv.FormatBool(v); bytes.HasPrefix(r.b[r.pos:], []byte(t)) {
			r.pos += len(t)
			return v
		}
	}
	r.Fail(field, "neither true nor false")
	return false
}

// String reads a string.
func (r *Reader) String(field string) string { return string(r.Bytes(field)) }

// Bytes reads a string. The result points into the text that is read, unless
// there is an escape in the string.
func (r *Reader) Bytes(field string) []byte {
	raw, plain := r.rawString(field)
	if r.err != nil || plain {
		return raw
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++
		switch c := raw[i]; c {
		case 'u':
			out = append(out, unhex(raw[i+3])<<4|unhex(raw[i+4]))
			i += 4
		case 'b':
			out = append(out, '\b')
		case 't':
			out = append(out, '\t')
		case 'n':
			out = append(out, '\n')
		case 'f':
			out = append(out, '\f')
		case 'r':
			out = append(out, '\r')
		default:
			out = append(out, c)
		}
	}
	return out
}

// Hex reads a string of lower-case hex digits into new bytes, at most limit.
func (r *Reader) Hex(field string, limit int) []byte {
	raw, plain := r.rawString(field)
	if r.err != nil {
		return nil
	}
	out := make([]byte, hex.DecodedLen(len(raw)))
	if !plain || len(out) > limit || !decodeHex(out, raw) {
		clear(out)
		r.Fail(field, fmt.Sprintf("not an even number of lower-case hex digits for at most %d bytes", limit))
		return nil
	}
	return out
}

// HexInto reads a string of exactly as many lower-case hex digits as dst holds.
func (r *Reader) HexInto(field string, dst []byte) {
	raw, plain := r.rawString(field)
	if r.err == nil && (!plain || len(raw) != 2*len(dst) || !decodeHex(dst, raw)) {
		clear(dst)
		r.Fail(field, fmt.Sprintf("not %d lower-case hex digits", 2*len(dst)))
	}
}

func decodeHex(dst, src []byte) bool {
	if _, err := hex.Decode(dst, src); err != nil {
		return false
	}
	for _, c := range src {
		if c < 'a' && c > '9' { // capital letters
			return false
		}
	}
	return true
}

// Object reads an object of any members and gives its text.
func (r *Reader) Object(field string) []byte {
	if r.err != nil {
		return nil
	}
	start := r.pos
	if r.peek() != '{' {
		r.Fail(field, "not an object")
		return nil
	}
	r.skip(field, 1)
	if r.err != nil {
		return nil
	}
	return r.b[start:r.pos:r.pos]
}

func (r *Reader) peek() byte {
	if r.pos < len(r.b) {
		return r.b[r.pos]
	}
	return 0
}

// skip checks one value of any kind.
func (r *Reader) skip(field string, depth int) {
	if r.err != nil {
		return
	}
	switch c := r.peek(); {
	case c == '{' || c == '[':
		r.skipNested(field, c, depth)
	case c == '"':
		r.rawString(field)
	case c == '-' || (c >= '0' && c <= '9'):
		r.number(field)
	default:
		for _, t := range []string{"true", "false", "null"} {
			if bytes.HasPrefix(r.b[r.pos:], []byte(t)) {
				r.pos += len(t)
				return
			}
		}
		r.Fail(field, "no canonical JSON value")
	}
}

func (r *Reader) skipNested(field string, open byte, depth int) {
	if depth > maxDepth {
		r.Fail(field, "nested too deep")
		return
	}
	r.pos++
	closing := open + 2 // '{' → '}', '[' → ']'
	var last []byte
	for n := 0; r.err == nil; n++ {
		if r.peek() == closing && n == 0 {
			break
		}
		if n > 0 {
			if r.peek() == closing {
				break
			}
			r.lit(field, ',')
		}
		if open == '{' {
			name, _ := r.rawString(field)
			switch {
			case r.err != nil:
			case !validName(name):
				r.Fail(field, "a member name is not 1 to 64 printable ASCII characters without quote and backslash")
			case n > 0 && bytes.Compare(last, name) >= 0:
				r.Fail(field, "member names are not in ascending order, or one is repeated")
			}
			last = name
			r.lit(field, ':')
		}
		r.skip(field, depth+1)
	}
	r.lit(field, closing)
}

func (r *Reader) number(field string) []byte {
	if r.err != nil {
		return nil
	}
	end := r.pos
	for end < len(r.b) && (r.b[end] == '-' || (r.b[end] >= '0' && r.b[end] <= '9')) {
		end++
	}
	raw := r.b[r.pos:end]
	if !validInt(raw) {
		r.Fail(field, "not a canonical integer within ±(2^53−1)")
		return nil
	}
	r.pos = end
	return raw
}

// ordinary are the characters that stand for themselves in a string.
var ordinary = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// rawString reads a string and gives the text between its quotes; plain says
// that there is no escape in it.
func (r *Reader) rawString(field string) (raw []byte, plain bool) {
	r.lit(field, '"')
	start := r.pos
	plain = true
	ascii := true
	for r.err == nil {
		for r.pos < len(r.b) && ordinary[r.b[r.pos]] {
			r.pos++
		}
		if r.pos >= len(r.b) {
			r.Fail(field, "the string has no end")
			break
		}
		c := r.b[r.pos]
		switch {
		case c == '"':
			raw = r.b[start:r.pos]
			if !ascii && !utf8.Valid(raw) {
				r.Fail(field, "not valid UTF-8")
				return nil, false
			}
			r.pos++
			return raw, plain
		case c == '\\':
			plain = false
			r.pos++
			r.escape(field)
		case c < 0x20:
			r.Fail(field, "a control character that is not escaped")
		default:
			ascii = false // the loop above took the rest
			r.pos++
		}
	}
	return nil, false
}

// escape reads what follows a backslash; only the escapes that AppendString
// writes are canonical.
func (r *Reader) escape(field string) {
	switch c := r.peek(); c {
	case '"', '\\', 'b', 't', 'n', 'f', 'r':
		r.pos++
	case 'u':
		if rest := r.b[r.pos:]; len(rest) >= 5 && rest[1] == '0' && rest[2] == '0' &&
			(rest[3] == '0' || rest[3] == '1') && bytes.IndexByte([]byte(hexDigits), rest[4]) >= 0 &&
			shortEscape((rest[3]-'0')<<4|unhex(rest[4])) == 0 {
			r.pos += 5
			return
		}
		r.Fail(field, "an escape that is not canonical")
	default:
		r.Fail(field, "an escape that is not canonical")
	}
}

func unhex(c byte) byte { return byte(bytes.IndexByte([]byte(hexDigits), c)) }

// Leaf is a value that Walk shows: a string, or an array whose members are all
// integers from 0 to 255 (encoding/json writes a [32]byte so).
type Leaf struct {
	Name  string // of the nearest member
	Text  string
	Array bool
	Bytes int // members of the array
}

// Walk shows every string and every array of byte values in a canonical object.
func Walk(object []byte, show func(Leaf)) error {
	r := NewReader(object)
	r.walk("", show)
	if r.err != nil {
		return r.err
	}
	return nil
}

func (r *Reader) walk(name string, show func(Leaf)) {
	switch r.peek() {
	case '"':
		show(Leaf{Name: name, Text: r.String(name)})
	case '{':
		r.pos++
		for r.err == nil && r.peek() != '}' {
			if r.peek() == ',' {
				r.pos++
			}
			member := r.String("member name")
			r.lit(member, ':')
			r.walk(member, show)
		}
		r.lit(name, '}')
	case '[':
		r.pos++
		count, bytesOnly := 0, true
		for ; r.err == nil && r.peek() != ']'; count++ {
			if r.peek() == ',' {
				r.pos++
			}
			start := r.pos
			r.walk(name, show)
			n, err := strconv.Atoi(string(r.b[start:min(r.pos, start+4)]))
			bytesOnly = bytesOnly && err == nil && n >= 0 && n <= 255
		}
		r.lit(name, ']')
		if bytesOnly && r.err == nil {
			show(Leaf{Name: name, Array: true, Bytes: count})
		}
	default:
		r.skip(name, 1)
	}
}
