package people

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	goodPIN      = "249183"
	goodBadge    = "0004711842"
	goodPassword = "correct horse battery"
)

// kim logs in by both, eve and ada by password.
func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "people.yaml")
	for _, err := range []error{
		Init(path),
		Add(path, Person{"kim", "Kim Lee", Operator}, Secret{Badge, []byte(goodBadge)}, Secret{PIN, []byte(goodPIN)}),
		Add(path, Person{"eve", "Eve 李", Engineer}, Secret{Password, []byte(goodPassword)}),
		Add(path, Person{"ada", "Ada", Auditor}, Secret{Password, []byte(goodPassword)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFile(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	got, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Entry{
		{Person{"ada", "Ada", Auditor}, []Kind{Password}},
		{Person{"eve", "Eve 李", Engineer}, []Kind{Password}},
		{Person{"kim", "Kim Lee", Operator}, []Kind{Badge, PIN}},
	}, got); d != "" {
		t.Error(d)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	s := text(t, path)
	for _, secret := range []string{goodPIN, goodBadge, goodPassword} {
		if strings.Contains(s, secret) {
			t.Errorf("%q is in the file", secret)
		}
	}
	if n := strings.Count(s, "$argon2id$v=19$m=19456,t=2,p=1$"); n != 5 { // salt of badges, 4 secrets
		t.Errorf("%d hashes:\n%s", n, s)
	}

	if err := Remove(path, "ada"); err != nil {
		t.Fatal(err)
	}
	if err := SetSecret(path, "kim", Secret{Kind: Badge}); err != nil {
		t.Fatal(err)
	}
	if err := SetSecret(path, "kim", Secret{PIN, []byte("770214")}); err != nil {
		t.Fatal(err)
	}
	got, err = List(path)
	if err != nil || len(got) != 2 || !cmp.Equal(got[1].LogsInBy, []Kind{PIN}) {
		t.Errorf("%+v, %v", got, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left)+len(hidden) != 1 {
		t.Errorf("left behind: %v %v", left, hidden)
	}
}

// What is refused changes nothing, and says what would be right.
func TestFileRefuses(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	before := text(t, path)
	op := func(name string) Person { return Person{name, "X", Operator} }
	for says, err := range map[string]error{
		"people.yaml: exists already":                      Init(path),
		"kim: exists already":                              Add(path, op("kim"), Secret{PIN, []byte("770214")}),
		"badge is that of kim":                             Add(path, op("li"), Secret{Badge, []byte(goodBadge)}),
		"is not a name":                                    Add(path, op("Kim Lee"), Secret{PIN, []byte("770214")}),
		"is not a role":                                    Add(path, Person{"li", "Li", "boss"}, Secret{PIN, []byte("770214")}),
		"the displayed name":                               Add(path, Person{"li", "Li\x1b[2J", Operator}, Secret{PIN, []byte("770214")}),
		"li needs a badge or pin":                          Add(path, op("li")),
		"operator li cannot have a password":               Add(path, op("li"), Secret{Password, []byte(goodPassword)}),
		"engineer eve cannot have a pin":                   SetSecret(path, "eve", Secret{PIN, []byte("770214")}),
		"a PIN is 6 to 12 digits":                          SetSecret(path, "kim", Secret{PIN, []byte("12a456")}),
		"equal or counted":                                 SetSecret(path, "kim", Secret{PIN, []byte("123456")}),
		"a badge is 6 to 64":                               SetSecret(path, "kim", Secret{Badge, []byte("47 1184")}),
		"a password is 12 to 128":                          SetSecret(path, "eve", Secret{Password, []byte("short")}),
		`"nobody": nobody has this name`:                   SetSecret(path, "nobody", Secret{PIN, []byte("770214")}),
		`"no one": nobody has this name`:                   Remove(path, "no one"),
		"eve would have nothing left to log in by":         SetSecret(path, "eve", Secret{Kind: Password}),
		"operator kim cannot have a password: they log in": SetSecret(path, "kim", Secret{Password, []byte(goodPassword)}),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want …%s…", err, says)
		}
	}
	if text(t, path) != before {
		t.Error("the file has changed")
	}
}

func TestCheckSecret(t *testing.T) {
	t.Parallel()
	for kind, c := range map[Kind]struct{ good, bad []string }{
		Badge:    {[]string{"471184", "%B!~@", "A-000-123"}[:1], []string{"", "12345", "äöüäöü", strings.Repeat("1", 65), "12345\n"}},
		PIN:      {[]string{"249183", "112233", "123457", "989898", "121212"}, []string{"", "24918", "2491831234567", "٢٤٩١٨٣", "000000", "123456", "987654", "2345678"}},
		Password: {[]string{goodPassword, "пароль длинный", "            "}, []string{"", "elevenchars", strings.Repeat("x", 129), "twelve chars\x00", "twelve chars\xff"}},
		"retina": {nil, []string{"x"}},
	} {
		for _, s := range c.good {
			if err := CheckSecret(Secret{kind, []byte(s)}); err != nil {
				t.Errorf("%s %q: %v", kind, s, err)
			}
		}
		for _, s := range c.bad {
			if err := CheckSecret(Secret{kind, []byte(s)}); err == nil || s != "" && len(s) > 5 && strings.Contains(err.Error(), s) {
				t.Errorf("%s %q: %v", kind, s, err)
			}
		}
	}
}

func TestFileMode(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o660, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := List(path)
		if err == nil || !strings.Contains(err.Error(), "mend it with `chmod 600 "+path+"`") {
			t.Errorf("%o: %v", mode, err)
		}
		if err := Remove(path, "kim"); err == nil {
			t.Errorf("%o: changed all the same", mode)
		}
		if _, err := Open(path, Options{}); err == nil {
			t.Errorf("%o: opened all the same", mode)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := List(path); err != nil {
			t.Errorf("%o: %v", mode, err)
		}
	}
	if _, err := List(filepath.Dir(path)); err == nil {
		t.Error("a folder is read")
	}
	if _, err := List(path + ".no"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "people init") {
		t.Error(err)
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	good := text(t, newFile(t))
	if _, err := parse("f", []byte(good)); err != nil {
		t.Fatal(err)
	}
	edit := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in\n%s", old, good)
		}
		return strings.Replace(good, old, with, 1)
	}
	cut := good[strings.Index(good, "    - name: eve"):]
	for name, c := range map[string]struct{ text, want string }{
		"key":         {edit("display:", "colour:"), "f:6: a person has an unknown key; there are name, display, role, badge, pin, password"},
		"key of file": {edit("badges:", "badge:"), "f:3: the file has an unknown key; there are version, badges, people"},
		"version":     {edit("version: 1", "version: 2"), "f:2: is of another version; write version: 1"},
		"role":        {edit("role: operator", "role: boss"), `f:5: "boss" is not a role: write operator, engineer or auditor`},
		"secret":      {edit("      pin:", "      password:"), "f:9: operator kim cannot have a password; remove it: they log in by badge or pin"},
		"twice":       {good + cut, "is on line"},
		"hash":        {edit("pin: $argon2id", "pin: $argon2i"), "f:9: pin of kim is not an argon2id hash in the PHC string format; set it anew with `provisiond people passwd`"},
		"no role":     {edit("      role: operator\n", ""), "f:5: a person has no role"},
		"null":        {edit("display: Kim Lee", "display:"), "f:6: display needs one plain value"},
		"list":        {edit("display: Kim Lee", "display: [Kim]"), "f:6: display needs one plain value"},
		"key twice":   {edit("      role: operator\n", "      role: operator\n      role: operator\n"), "f:8: role is there twice; keep one of them"},
		"two":         {good + "---\nx: y\n", "f: holds more than one document; remove what is behind ---"},
		"tab":         {"version: 1\n\tx", "is not the YAML of a file of people"},
		"empty":       {"", "is not the YAML of a file of people"},
		"text":        {"x", "f:1: the file is no list of keys and values"},
		"bytes":       {"\xff", "f: holds bytes that are not UTF-8; save it as UTF-8"},
		"long":        {strings.Repeat("#\n", maxFile), "is longer than"},
		"no people":   {edit("people:\n", "people: {}\nx:\n"), "unknown key"},
		"salt":        {edit("badges: $argon2id", "badges: $scrypt"), "f:3: badges: is not an argon2id hash"},
	} {
		_, err := parse("f", []byte(c.text))
		var fe *FileError
		if err == nil || !errors.As(err, &fe) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v\nwant %s", name, err, c.want)
		}
	}
	// A badge under another salt could never be found; two alike would be one person or the other.
	f, err := parse("f", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	f.people[0].badge.salt = strings.Repeat("s", 16)
	if _, err := parse("f", f.encode()); err == nil || !strings.Contains(err.Error(), "not the salt") {
		t.Error(err)
	}
	f.people[0].badge.salt = f.badges.salt
	f.people = append(f.people, f.people[0])
	f.people[3].Name = "li"
	if _, err := parse("f", f.encode()); err == nil || !strings.Contains(err.Error(), "the badge of li is that of line 5, too") {
		t.Error(err)
	}
	f.people[3].badge, f.people[3].pin = Hash{}, Hash{}
	if _, err := parse("f", f.encode()); err == nil || !strings.Contains(err.Error(), "li has nothing to log in by; remove them, or set a badge or pin") {
		t.Error(err)
	}
}

func FuzzParseFile(f *testing.F) {
	h := vector
	salt := h[:strings.LastIndex(h, "$")]
	f.Add(fmt.Sprintf("version: 1\nbadges: %s\npeople:\n- {name: kim, display: Kim, role: operator, badge: %s, pin: %s}\n", salt, h, h))
	f.Add(fmt.Sprintf("version: 1\nbadges: %s\npeople: []\n", salt))
	f.Add(fmt.Sprintf("version: 1\nbadges: %s\npeople:\n- name: '01'\n  display: \"true\"\n  role: auditor\n  password: %s\n", salt, h))
	f.Add("version: &a 1\nbadges: *a\n")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse("f", []byte(s))
		if err != nil {
			return
		}
		b := p.encode()
		again, err := parse("f", b)
		if err != nil {
			t.Fatalf("%q reads, %q does not: %v", s, b, err)
		}
		if d := cmp.Diff(p, again, cmp.AllowUnexported(file{}, record{}, Hash{})); d != "" {
			t.Error(d)
		}
		if string(again.encode()) != string(b) {
			t.Error("encodes differently the second time")
		}
	})
}

// Writers at the same time lose nobody, and a reader never sees half a file.
func TestConcurrentWriters(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "people.yaml")
	if err := Init(path); err != nil {
		t.Fatal(err)
	}
	const n = 8
	var writers, reader sync.WaitGroup
	stop := make(chan struct{})
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := List(path); err != nil {
					t.Errorf("a reader saw %v", err)
				}
			}
		}
	})
	for i := range n {
		writers.Go(func() {
			if err := Add(path, Person{fmt.Sprintf("p%d", i), "P", Operator}, Secret{PIN, []byte(goodPIN)}); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	close(stop)
	reader.Wait()
	list, err := List(path)
	if err != nil || len(list) != n {
		t.Errorf("%d people, %v", len(list), err)
	}
}
