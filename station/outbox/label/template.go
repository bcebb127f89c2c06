package label

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"
	"unicode/utf8"
)

// Field is a text that goes into a label. However a template prints it, it comes
// out escaped for a field behind ^FH: nothing in it is a command of ZPL.
type Field string

// String is the escaped form.
func (f Field) String() string { return Escape(string(f)) }

// Data is what a template sees.
type Data struct {
	MAC      Field // 24:0a:c4:00:00:01
	MACPlain Field // 240AC4000001
	Serial   Field
	Chip     Field
	Recipe   Field
	Lot      Field
	Station  Field
	Slot     Field
	Operator Field
	Date     Field // of the verdict, 2026-11-22, UTC
	ID       Field // of the event
	// Mark is "REPRINT" on a label that a person asked for again, "COPY" on one that
	// may have been printed before because the station or the line to the printer
	// broke, "SIMULATED" on one of a simulated unit, and else empty.
	Mark Field
}

// Bounds of a label and of what a template may print into it.
const (
	maxTemplate = 64 << 10
	maxLabel    = 256 << 10
	maxField    = 512
)

// Template is a checked template of ZPL.
type Template struct {
	t    *template.Template
	name string
}

// functions make whole fields. Each of them begins behind its ^FO and ^BY.
var functions = template.FuncMap{
	"text":    func(f Field) string { return "^FH_^FD" + Escape(string(f)) + "^FS" },
	"code128": code128,
	"qr":      qr,
}

// ParseTemplate reads a template and tries it. It must be one label, from ^XA to
// ^XZ, and hold no command that begins with a tilde: those work on the printer at
// once, also from within a label.
func ParseTemplate(name, text string) (*Template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("label %s: the template has more than %d bytes", name, maxTemplate)
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(functions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("label %s: %w", name, err)
	}
	tmpl := &Template{t, name}
	sample := Data{
		MAC: "24:0a:c4:00:00:01", MACPlain: "240AC4000001", Serial: "S-0001", Chip: "esp32c3", Recipe: "lamp", Lot: "L-47",
		Station: "bench-1", Slot: "A3", Operator: "anna", Date: "2026-11-22", ID: "0123-7",
	}
	for _, mark := range []Field{"", "COPY"} {
		sample.Mark = mark
		zpl, err := tmpl.Render(sample)
		if err != nil {
			return nil, err
		}
		if mark != "" && !bytes.Contains(zpl, []byte(mark)) {
			return nil, fmt.Errorf("label %s: the template does not print .Mark, so nobody could tell a second label from the first: add for example ^FO20,20^A0N,30{{text .Mark}}", name)
		}
	}
	return tmpl, nil
}

// Render makes a label.
func (t *Template) Render(d Data) ([]byte, error) {
	for _, f := range []Field{d.MAC, d.MACPlain, d.Serial, d.Chip, d.Recipe, d.Lot, d.Station, d.Slot, d.Operator, d.Date, d.ID, d.Mark} {
		if len(f) > maxField {
			return nil, fmt.Errorf("label %s: a field has %d bytes, more than %d", t.name, len(f), maxField)
		}
	}
	var b bytes.Buffer
	if err := t.t.Execute(&limited{&b, maxLabel}, d); err != nil {
		return nil, fmt.Errorf("label %s: %w", t.name, err)
	}
	zpl := bytes.TrimSpace(b.Bytes())
	if err := check(zpl); err != nil {
		return nil, fmt.Errorf("label %s: %w", t.name, err)
	}
	return append(zpl, '\n'), nil
}

// check holds a label to its form. Data cannot change it: they hold neither ^ nor ~.
func check(zpl []byte) error {
	switch {
	case !bytes.HasPrefix(zpl, []byte("^XA")) || !bytes.HasSuffix(zpl, []byte("^XZ")):
		return errors.New("it does not go from ^XA to ^XZ")
	case bytes.Count(zpl, []byte("^XA")) != 1 || bytes.Count(zpl, []byte("^XZ")) != 1:
		return errors.New("it is more than one label")
	case bytes.IndexByte(zpl, '~') >= 0:
		return errors.New("it has a ~: such commands work on the printer at once, and not on this label")
	case bytes.Contains(zpl, []byte("^CC")) || bytes.Contains(zpl, []byte("^CT")) || bytes.Contains(zpl, []byte("^CD")):
		return errors.New("it changes the characters that begin commands (^CC, ^CT, ^CD)")
	}
	return nil
}

type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, fmt.Errorf("it has more than %d bytes", maxLabel)
	}
	return l.w.Write(p)
}

// Escape writes a text for a field that begins with ^FH_^FD: every byte but
// letters, digits, space and ,.:;/()+*=#@- is _XX, in hex. Other alphabets are
// their bytes of UTF-8 so, which ^CI28 in the template asks for.
func Escape(s string) string {
	s = strings.ToValidUTF8(s, "�")
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02X", c)
		}
	}
	return b.String()
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(" ,.:;/()+*=#@-", c) >= 0
}

// Unescape is the printer's side: what ^FH_ makes of a field.
func Unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case plain(c):
			b.WriteByte(c)
		case c == '_' && i+2 < len(s) && upperHex(s[i+1]) >= 0 && upperHex(s[i+2]) >= 0:
			v := byte(upperHex(s[i+1])<<4 | upperHex(s[i+2]))
			if plain(v) {
				return "", fmt.Errorf("offset %d: this character is not escaped", i)
			}
			b.WriteByte(v)
			i += 2
		default:
			return "", fmt.Errorf("offset %d: this character is escaped", i)
		}
	}
	if !utf8.ValidString(b.String()) {
		return "", errors.New("it is not UTF-8")
	}
	return b.String(), nil
}

func upperHex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// code128 is a field for ^BC in its default mode, which begins in subset B. There
// '>' begins a function code, and ">0" is the character itself.
func code128(f Field) (string, error) {
	for i := range len(f) {
		if f[i] < 0x20 || f[i] > 0x7e {
			return "", fmt.Errorf("code128: %q has a character that is not printable ASCII", string(f))
		}
	}
	if f == "" {
		return "", errors.New("code128: there is nothing to print: is the serial number missing?")
	}
	return "^FH_^FD" + Escape(strings.ReplaceAll(string(f), ">", ">0")) + "^FS", nil
}

// qr is a field for ^BQ: error correction Q, the printer chooses the encoding.
func qr(f Field) (string, error) {
	if f == "" {
		return "", errors.New("qr: there is nothing to print")
	}
	return "^FH_^FDQA," + Escape(string(f)) + "^FS", nil
}

// date is the day of an event's time.
func date(stamp string) Field {
	t, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return ""
	}
	return Field(t.UTC().Format(time.DateOnly))
}
