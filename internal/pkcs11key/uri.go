package pkcs11key

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Prefix begins a PKCS #11 URI.
const Prefix = "pkcs11:"

// URI names a key in a token (RFC 7512). Empty fields fit anything.
type URI struct {
	Token, Serial, Manufacturer, Model string // of the token
	Object                             string // the key's label
	ID                                 string // the key's CKA_ID, raw bytes
	Module                             string // module-path: the library of the token
	PINSource                          string // pin-source: a file of mode 0600 that holds the PIN
}

// attributes are the URI's parts in the order in which String writes them: of the
// path, then of the query.
func (u *URI) attributes() (path, query []attribute) {
	path = []attribute{
		{"token", &u.Token},
		{"serial", &u.Serial},
		{"manufacturer", &u.Manufacturer},
		{"model", &u.Model},
		{"object", &u.Object},
		{"id", &u.ID},
	}
	return path, []attribute{{"module-path", &u.Module}, {"pin-source", &u.PINSource}}
}

type attribute struct {
	name  string
	value *string
}

// ParseURI reads a URI and makes sure that it can name one key.
func ParseURI(s string) (URI, error) {
	var u URI
	rest, ok := strings.CutPrefix(s, Prefix)
	if !ok {
		return URI{}, fmt.Errorf("a PKCS #11 URI begins with %s", Prefix)
	}
	left, right, _ := strings.Cut(rest, "?")
	path, query := u.attributes()
	if err := fill(left, ";", path); err != nil {
		return URI{}, err
	}
	if err := fill(right, "&", query); err != nil {
		return URI{}, err
	}
	if file, ok := strings.CutPrefix(u.PINSource, "file:"); ok {
		if strings.HasPrefix(file, "///") { // file:///path is file:/path
			file = file[2:]
		}
		if file == "" || strings.HasPrefix(file, "file:") {
			return URI{}, errors.New("the PKCS #11 URI's pin-source names no file: write pin-source=FILE")
		}
		u.PINSource = file
	}
	switch {
	case u.Object == "" && u.ID == "":
		return URI{}, errors.New("the PKCS #11 URI names no key: write object=LABEL or id=%01")
	case u.Module == "":
		return URI{}, errors.New("the PKCS #11 URI names no library: write ?module-path=/usr/lib/….so")
	}
	return u, nil
}

func fill(text, separator string, known []attribute) error {
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, separator) {
		name, raw, ok := strings.Cut(part, "=")
		value, err := url.PathUnescape(raw)
		if !ok || err != nil || value == "" || strings.ContainsRune(value, 0) && name != "id" {
			return fmt.Errorf("the PKCS #11 URI has %q, which is no name=value with %%XX for other characters", shown(name, part))
		}
		if err := set(known, name, value); err != nil {
			return err
		}
	}
	return nil
}

// shown keeps what could be a PIN out of errors.
func shown(name, part string) string {
	if strings.HasPrefix(name, "pin") {
		return name + "=…"
	}
	return part
}

func set(known []attribute, name, value string) error {
	switch name {
	case "type":
		if value != "private" {
			return fmt.Errorf("the PKCS #11 URI asks for an object of type %q: signing takes a private key", value)
		}
		return nil
	case "pin-value":
		return errors.New("the PKCS #11 URI holds the PIN itself, and everybody may see a command line: write pin-source=FILE, of mode 0600")
	}
	for _, a := range known {
		if a.name != name {
			continue
		}
		if *a.value != "" {
			return fmt.Errorf("the PKCS #11 URI has %s twice", name)
		}
		*a.value = value
		return nil
	}
	return fmt.Errorf("the PKCS #11 URI has %s, which is not known here: known are token, serial, manufacturer, model, object, id, type and ?module-path, pin-source", name)
}

// String is the URI; ParseURI reads it back. It holds no secret.
func (u URI) String() string {
	path, query := u.attributes()
	text := Prefix + joined(path, ";")
	if q := joined(query, "&"); q != "" {
		text += "?" + q
	}
	return text
}

func joined(all []attribute, separator string) string {
	var parts []string
	for _, a := range all {
		if *a.value != "" {
			parts = append(parts, a.name+"="+escape(*a.value))
		}
	}
	return strings.Join(parts, separator)
}

// escape leaves what RFC 3986 calls unreserved, and the slashes of a path.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
