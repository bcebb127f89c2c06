package people

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/provisiond/provisiond/internal/conf"
)

// Person is who somebody is.
type Person struct {
	Name    string `json:"name"`    // for logins and the journal: kim.lee
	Display string `json:"display"` // for screens: Kim Lee
	Role    Role   `json:"role"`
}

// Kind is a kind of secret.
type Kind string

// The kinds. A role has its own: see [Kinds].
const (
	Badge    Kind = "badge"
	PIN      Kind = "pin"
	Password Kind = "password"
)

// Kinds lists what a role logs in by.
func Kinds(r Role) []Kind {
	switch r {
	case Operator:
		return []Kind{Badge, PIN}
	case Engineer, Auditor:
		return []Kind{Password}
	}
	return nil
}

// record is a person in the file. It is comparable.
type record struct {
	Person
	badge, pin, password Hash
}

func (r *record) hash(k Kind) *Hash {
	switch k {
	case Badge:
		return &r.badge
	case PIN:
		return &r.pin
	case Password:
		return &r.password
	}
	return new(Hash)
}

// file is what the file of people says.
type file struct {
	badges Hash // salt and costs of all badges, no sum
	people []record
}

// find is the place of a name, -1 if nobody has it.
func (f *file) find(name string) int {
	return slices.IndexFunc(f.people, func(r record) bool { return r.Name == name })
}

// Limits of the file.
const (
	maxFile    = 4 << 20
	maxPeople  = 4096
	maxDisplay = 64
	version    = "1"
)

var nameRE = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$`)

// Sentinels.
var (
	// ErrExists says that a file, a name or a badge is there already.
	ErrExists = errors.New("exists already")
	// ErrNobody says that no person has the name.
	ErrNobody = errors.New("nobody has this name")
)

// FileError says what is wrong with the file of people, and how to mend it.
type FileError struct {
	File    string
	Line    int // from 1; 0 when the place has no line
	Problem string
	Fix     string
	Err     error // what lies below, may be nil
}

// Error gives "file:line: problem; fix".
func (e *FileError) Error() string {
	s := e.File
	if e.Line > 0 {
		s += ":" + strconv.Itoa(e.Line)
	}
	s += ": " + e.Problem
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Unwrap gives what lies below.
func (e *FileError) Unwrap() error { return e.Err }

// read reads the file, and refuses one that others can read.
func read(path string) (*file, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	return readFrom(path, f)
}

func unreadable(path string, err error) error {
	fix := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fix = "check the path, or make one with `provisiond people init " + path + "`"
	case errors.Is(err, fs.ErrPermission):
		fix = "it must belong to the user that the station runs as"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &FileError{File: path, Problem: "cannot be read: " + err.Error(), Fix: fix, Err: err}
}

func readFrom(path string, f *os.File) (*file, fs.FileInfo, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, nil, &FileError{File: path, Problem: "is not a file"}
	}
	if err := private(path, st); err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	p, err := parse(path, b)
	return p, st, err
}

// parser stops at the first thing that is wrong.
type parser struct{ name string }

func (p parser) bad(line int, fix, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &FileError{File: p.name, Line: line, Problem: err.Error(), Fix: fix, Err: errors.Unwrap(err)}
}

// parse reads the file's text. Errors never hold a part of a hash.
func parse(name string, b []byte) (*file, error) {
	p := parser{name}
	switch {
	case len(b) > maxFile:
		return nil, p.bad(0, "", "is longer than %d bytes", maxFile)
	case !utf8.Valid(b):
		return nil, p.bad(0, "save it as UTF-8", "holds bytes that are not UTF-8")
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		line, _ := conf.Place(err) // its words may hold a part of a hash
		return nil, p.bad(line, "restore it from a backup, or make a new one with `provisiond people init`", "is not the YAML of a file of people")
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, p.bad(0, "remove what is behind ---", "holds more than one document")
	}
	if len(doc.Content) != 1 {
		return nil, p.bad(0, "", "is empty")
	}
	root, err := p.mapping(doc.Content[0], "the file", []string{"version", "badges", "people"}, 3)
	if err != nil {
		return nil, err
	}
	f := &file{}
	v, err := p.scalar(root["version"], "version")
	if err != nil {
		return nil, err
	}
	if v != version {
		return nil, p.bad(root["version"].Line, "write version: "+version, "is of another version")
	}
	salt, err := p.scalar(root["badges"], "badges")
	if err != nil {
		return nil, err
	}
	if f.badges, err = parseSalt(salt); err != nil {
		return nil, p.bad(root["badges"].Line, "", "badges: %w", err)
	}
	list := root["people"]
	if list.Kind != yaml.SequenceNode {
		return nil, p.bad(list.Line, "write people: [] for nobody", "people is no list")
	}
	if len(list.Content) > maxPeople {
		return nil, p.bad(list.Line, "", "holds more than %d people", maxPeople)
	}
	names, badges := map[string]int{}, map[string]int{}
	for _, n := range list.Content {
		r, err := p.person(n)
		if err != nil {
			return nil, err
		}
		if at, twice := names[r.Name]; twice {
			return nil, p.bad(n.Line, "remove one of them", "%s is on line %d too", r.Name, at)
		}
		names[r.Name] = n.Line
		if !r.badge.IsZero() {
			if r.badge.Params != f.badges.Params || r.badge.salt != f.badges.salt {
				return nil, p.bad(n.Line, "set it anew with `provisiond people passwd`", "the badge of %s has not the salt and costs of this file", r.Name)
			}
			if at, twice := badges[r.badge.sum]; twice {
				return nil, p.bad(n.Line, "set one of them anew", "the badge of %s is that of line %d, too", r.Name, at)
			}
			badges[r.badge.sum] = n.Line
		}
		f.people = append(f.people, r)
	}
	return f, nil
}

var personKeys = []string{"name", "display", "role", "badge", "pin", "password"}

func (p parser) person(n *yaml.Node) (r record, err error) {
	m, err := p.mapping(n, "a person", personKeys, 3)
	if err != nil {
		return r, err
	}
	var text [3]string
	for i, k := range personKeys[:3] {
		if text[i], err = p.scalar(m[k], k); err != nil {
			return r, err
		}
	}
	r.Person = Person{Name: text[0], Display: text[1], Role: Role(text[2])}
	if err := r.check(); err != nil {
		return r, p.bad(n.Line, "", "%w", err)
	}
	for _, k := range []Kind{Badge, PIN, Password} {
		v := m[string(k)]
		if v == nil {
			continue
		}
		s, err := p.scalar(v, string(k))
		if err != nil {
			return r, err
		}
		if !slices.Contains(Kinds(r.Role), k) {
			return r, p.bad(v.Line, fmt.Sprintf("remove it: they log in by %s", kindList(r.Role)), "%s %s cannot have a %s", r.Role, r.Name, k)
		}
		if *r.hash(k), err = ParseHash(s); err != nil {
			return r, p.bad(v.Line, "set it anew with `provisiond people passwd`", "%s of %s %w", k, r.Name, err)
		}
	}
	if r.badge.IsZero() && r.pin.IsZero() && r.password.IsZero() {
		return r, p.bad(n.Line, "remove them, or set a "+kindList(r.Role), "%s has nothing to log in by", r.Name)
	}
	return r, nil
}

func kindList(r Role) string {
	var list []string
	for _, k := range Kinds(r) {
		list = append(list, string(k))
	}
	return strings.Join(list, " or ")
}

// mapping gives a mapping's values. The first n keys must be there.
func (p parser) mapping(n *yaml.Node, what string, keys []string, must int) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, p.bad(n.Line, "", "%s is no list of keys and values", what)
	}
	m := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || !slices.Contains(keys, k.Value) {
			return nil, p.bad(k.Line, "there are "+strings.Join(keys, ", "), "%s has an unknown key", what)
		}
		if m[k.Value] != nil {
			return nil, p.bad(k.Line, "keep one of them", "%s is there twice", k.Value)
		}
		m[k.Value] = v
	}
	for _, k := range keys[:must] {
		if m[k] == nil {
			return nil, p.bad(n.Line, "", "%s has no %s", what, k)
		}
	}
	return m, nil
}

func (p parser) scalar(n *yaml.Node, key string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Style&yaml.TaggedStyle != 0 || n.Anchor != "" {
		return "", p.bad(n.Line, "", "%s needs one plain value", key)
	}
	return n.Value, nil
}

// check looks at what is not secret.
func (p Person) check() error {
	if !nameRE.MatchString(p.Name) {
		return fmt.Errorf("%.40q is not a name: small letters, digits, and . _ - between them, at most 32", p.Name)
	}
	if Kinds(p.Role) == nil {
		return fmt.Errorf("%.20q is not a role: write operator, engineer or auditor", string(p.Role))
	}
	if p.Display == "" || strings.TrimSpace(p.Display) != p.Display || utf8.RuneCountInString(p.Display) > maxDisplay ||
		strings.ContainsFunc(p.Display, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("the displayed name of %s is not 1 to %d printable characters", p.Name, maxDisplay)
	}
	return nil
}

// encode gives the file's text.
func (f *file) encode() []byte {
	type person struct {
		Name     string `yaml:"name"`
		Display  string `yaml:"display"`
		Role     Role   `yaml:"role"`
		Badge    string `yaml:"badge,omitempty"`
		PIN      string `yaml:"pin,omitempty"`
		Password string `yaml:"password,omitempty"`
	}
	doc := struct {
		Version int      `yaml:"version"`
		Badges  string   `yaml:"badges"`
		People  []person `yaml:"people"`
	}{1, f.badges.String(), []person{}}
	for _, r := range f.people {
		doc.People = append(doc.People, person{r.Name, r.Display, r.Role, r.badge.String(), r.pin.String(), r.password.String()})
	}
	b, err := yaml.Marshal(doc)
	if err != nil {
		panic("people: texts always are YAML: " + err.Error())
	}
	return append([]byte("# Who may do what at this station. Change it with `provisiond people`.\n"), b...)
}

// Secret is a badge, PIN or password to be set.
type Secret struct {
	Kind Kind
	Text []byte
}

// Limits of secrets, in characters.
const (
	minBadge, maxBadge       = 6, 64
	minPIN, maxPIN           = 6, 12
	minPassword, maxPassword = 12, 128
)

// CheckSecret says what is wrong with a secret that is to be set. The error does
// not hold it.
func CheckSecret(s Secret) error {
	text := string(s.Text)
	n := utf8.RuneCountInString(text)
	within := func(r rune, low, high rune) bool { return r >= low && r <= high }
	switch s.Kind {
	case Badge:
		if n < minBadge || n > maxBadge || strings.ContainsFunc(text, func(r rune) bool { return !within(r, '!', '~') }) {
			return fmt.Errorf("a badge is %d to %d letters, digits and signs without spaces, as its reader types them", minBadge, maxBadge)
		}
	case PIN:
		if n < minPIN || n > maxPIN || strings.ContainsFunc(text, func(r rune) bool { return !within(r, '0', '9') }) {
			return fmt.Errorf("a PIN is %d to %d digits", minPIN, maxPIN)
		}
		if step := int(text[1]) - int(text[0]); step >= -1 && step <= 1 {
			run := true
			for i := 1; i < len(text); i++ {
				run = run && int(text[i])-int(text[i-1]) == step
			}
			if run {
				return errors.New("a PIN of equal or counted digits is the first one that is guessed: choose another")
			}
		}
	case Password:
		if n < minPassword || n > maxPassword || !utf8.Valid(s.Text) || strings.ContainsFunc(text, unicode.IsControl) {
			return fmt.Errorf("a password is %d to %d characters", minPassword, maxPassword)
		}
	default:
		return fmt.Errorf("%.20q is no kind of secret", string(s.Kind))
	}
	return nil
}

// Init makes a file with nobody in it. It overwrites nothing.
func Init(path string) error {
	f := &file{badges: newSalt()}
	return create(path, f.encode())
}

// Entry is a person, and what they can log in by.
type Entry struct {
	Person
	LogsInBy []Kind `json:"logs_in_by"`
}

// List gives the people, in the order of their names.
func List(path string) ([]Entry, error) {
	f, _, err := read(path)
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(f.people))
	for _, r := range f.people {
		e := Entry{Person: r.Person}
		for _, k := range Kinds(r.Role) {
			if !r.hash(k).IsZero() {
				e.LogsInBy = append(e.LogsInBy, k)
			}
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Add writes a new person with at least one secret of their role.
func Add(path string, p Person, secrets ...Secret) error {
	if err := p.check(); err != nil {
		return err
	}
	if len(secrets) == 0 {
		return fmt.Errorf("%s needs a %s to log in", p.Name, kindList(p.Role))
	}
	return update(path, func(f *file) error {
		if f.find(p.Name) >= 0 {
			return fmt.Errorf("%s: %w", p.Name, ErrExists)
		}
		if len(f.people) == maxPeople {
			return fmt.Errorf("there are %d people already", maxPeople)
		}
		r := record{Person: p}
		for _, s := range secrets {
			if err := f.set(&r, s); err != nil {
				return err
			}
		}
		f.people = append(f.people, r)
		return nil
	})
}

// Remove takes a person away. Their sessions end.
func Remove(path, name string) error {
	return update(path, func(f *file) error {
		i := f.find(name)
		if i < 0 {
			return fmt.Errorf("%.40q: %w", name, ErrNobody)
		}
		f.people = slices.Delete(f.people, i, i+1)
		return nil
	})
}

// SetSecret sets one of a person's secrets anew; an empty one takes it away, but
// not the last. The person's sessions end.
func SetSecret(path, name string, s Secret) error {
	return update(path, func(f *file) error {
		i := f.find(name)
		if i < 0 {
			return fmt.Errorf("%.40q: %w", name, ErrNobody)
		}
		r := &f.people[i]
		if len(s.Text) > 0 {
			return f.set(r, s)
		}
		old := *r.hash(s.Kind)
		*r.hash(s.Kind) = Hash{}
		if r.badge.IsZero() && r.pin.IsZero() && r.password.IsZero() {
			return fmt.Errorf("%s would have nothing left to log in by: set another %s first, or remove the person", name, kindList(r.Role))
		}
		if old.IsZero() {
			return fmt.Errorf("%s has no %s", name, s.Kind)
		}
		return nil
	})
}

// set hashes a secret into r.
func (f *file) set(r *record, s Secret) error {
	if !slices.Contains(Kinds(r.Role), s.Kind) {
		return fmt.Errorf("%s %s cannot have a %s: they log in by %s", r.Role, r.Name, s.Kind, kindList(r.Role))
	}
	if err := CheckSecret(s); err != nil {
		return err
	}
	if s.Kind != Badge {
		*r.hash(s.Kind) = newSalt().with(s.Text)
		return nil
	}
	h := f.badges.with(s.Text)
	for _, other := range f.people {
		if equal(other.badge.sum, h.sum) && other.Name != r.Name {
			return fmt.Errorf("this badge is that of %s: %w", other.Name, ErrExists)
		}
	}
	r.badge = h
	return nil
}

// update changes the file: locked, and replaced whole.
func update(path string, change func(*file) error) error {
	for {
		locked, err := os.Open(path)
		if err != nil {
			return unreadable(path, err)
		}
		again, err := updateLocked(path, locked, change)
		_ = locked.Close() // gives the lock back
		if !again {
			return err
		}
	}
}

func updateLocked(path string, locked *os.File, change func(*file) error) (again bool, err error) {
	if err := lock(locked); err != nil {
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	mine, err := locked.Stat()
	if err != nil {
		return false, unreadable(path, err)
	}
	// Somebody else may have replaced the file while this waited for the lock.
	if now, err := os.Stat(path); err == nil && !os.SameFile(mine, now) {
		return true, nil
	}
	f, st, err := readFrom(path, locked)
	if err != nil {
		return false, err
	}
	if err := change(f); err != nil {
		return false, err
	}
	b := f.encode()
	if _, err := parse(path, b); err != nil {
		return false, fmt.Errorf("the new file would not be valid, so nothing was changed: %w", err)
	}
	return false, replace(path, b, st)
}

// temporary writes a file beside path, durable.
func temporary(path string, b []byte, like fs.FileInfo) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".people-*") // mode 0600
	if err != nil {
		return "", err
	}
	if like != nil {
		// root changes it for the user that the station runs as.
		err = keepOwner(f, like)
	}
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func create(path string, b []byte) error {
	tmp, err := temporary(path, b, nil)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	err = os.Link(tmp, path) // other than a rename it replaces nothing
	err = errors.Join(err, os.Remove(tmp))
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w; nothing was changed", path, ErrExists)
	case err != nil:
		return fmt.Errorf("make %s: %w", path, err)
	}
	return syncDir(path)
}

func replace(path string, b []byte, like fs.FileInfo) error {
	tmp, err := temporary(path, b, like)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp))
	}
	return syncDir(path)
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
