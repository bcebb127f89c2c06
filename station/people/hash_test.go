package people

import (
	"strings"
	"testing"
)

// From the test of the reference implementation (P-H-C/phc-winner-argon2,
// src/test.c: argon2id, t=2, m=2^16, p=1).
const vector = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"

func TestHashVector(t *testing.T) {
	t.Parallel()
	h, err := ParseHash(vector)
	if err != nil {
		t.Fatal(err)
	}
	if h.String() != vector {
		t.Error(h.String())
	}
	if !equal(h.sumOf([]byte("password")), h.sum) {
		t.Error("the reference implementation computes something else")
	}
	if equal(h.sumOf([]byte("passwore")), h.sum) {
		t.Error("any secret will do")
	}
}

func TestNewHash(t *testing.T) {
	t.Parallel()
	a, b := newSalt().with([]byte("249183")), newSalt().with([]byte("249183"))
	if a.sum == b.sum || a.salt == b.salt {
		t.Error("two people with one PIN have one hash")
	}
	s := a.String()
	if !strings.HasPrefix(s, "$argon2id$v=19$m=19456,t=2,p=1$") || strings.Count(s, "$") != 5 {
		t.Error(s)
	}
	if again, err := ParseHash(s); err != nil || again != a {
		t.Error(again, err)
	}
	salt := newSalt()
	if again, err := parseSalt(salt.String()); err != nil || again != salt {
		t.Error(again, err)
	}
	if (Hash{}).String() != "" {
		t.Error("nothing has a text")
	}
}

func TestParseHashRefuses(t *testing.T) {
	t.Parallel()
	for old, replacements := range map[string][]string{
		"argon2id":    {"argon2i", "argon2d", "ARGON2ID", ""},
		"v=19":        {"v=16", "v=019", "19", ""},
		"m=65536":     {"m=065536", "m=65537", "m=4294967296", "m=-1", "m=0", "m=7167", "m= 65536", "t=65536", ""},
		"t=2":         {"t=02", "t=17", "t=0", "t=+2", ""},
		"p=1":         {"p=5", "p=0", "p=1,k=1", "p=256", ""},
		"c29tZXNhbHQ": {"", "c29tZXNhbHR", "c29tZXNhbHQ=", "c29t\nZXNhbHQ", "c29tZXNhb", "!", strings.Repeat("A", 90)},
		"PPc":         {"PPd", "PP", "PPc=", "PPc$", "PPc\n"},
		"$CTFh":       {"CTFh", "$$CTFh"},
	} {
		for _, r := range replacements {
			s := strings.Replace(vector, old, r, 1)
			if h, err := ParseHash(s); err == nil {
				t.Errorf("%q is %+v", s, h)
			}
		}
	}
	// Cheap ones, though well formed.
	for _, costs := range []string{"m=19456,t=1,p=1", "m=7168,t=4,p=1", "m=12287,t=2,p=4"} {
		s := strings.Replace(vector, "m=65536,t=2,p=1", costs, 1)
		if _, err := ParseHash(s); err == nil || !strings.Contains(err.Error(), "too little") {
			t.Errorf("%s: %v", costs, err)
		}
	}
	for _, costs := range []string{"m=47104,t=1,p=1", "m=19456,t=2,p=1", "m=12288,t=3,p=1", "m=9216,t=4,p=1", "m=7168,t=5,p=1"} { // OWASP's list
		s := strings.Replace(vector, "m=65536,t=2,p=1", costs, 1)
		if _, err := ParseHash(s); err != nil {
			t.Errorf("%s: %v", costs, err)
		}
	}
	// What is refused is not told on.
	if _, err := ParseHash("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$secretsecret"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add(vector)
	f.Add(newSalt().String())
	f.Add(strings.Replace(vector, "c29t", "c29\n", 1))
	f.Add("$argon2id$v=19$m=1,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Hash, error){ParseHash, parseSalt} {
			h, err := parse(s)
			if err != nil {
				continue
			}
			if h.String() != s {
				t.Errorf("%q encodes as %q", s, h)
			}
			if h.Memory > maxMemory || h.Time > maxTime || h.Lanes > maxLanes || h.Lanes == 0 {
				t.Errorf("%q costs %+v", s, h.Params)
			}
		}
	})
}
