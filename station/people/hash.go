package people

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Params are the costs of argon2id.
type Params struct {
	Memory uint32 // KiB
	Time   uint32 // passes
	Lanes  uint8
}

// DefaultParams are for new hashes: OWASP's first choice that fits a Raspberry
// Pi several times.
var DefaultParams = Params{Memory: 19 << 10, Time: 2, Lanes: 1}

const (
	saltLen = 16
	hashLen = 32
	// The most that a file may ask of this machine.
	maxMemory = 64 << 10
	maxTime   = 16
	maxLanes  = 4
	// The least that OWASP lists are 7 MiB and five passes, and all on the list
	// are near 36 MiB times passes.
	minMemory = 7 << 10
	minCost   = 7 << 10 * 5
)

// Hash is an argon2id hash with its salt and costs, or only those two.
type Hash struct {
	Params
	salt, sum string // bytes
}

// IsZero reports whether there is no hash.
func (h Hash) IsZero() bool { return h == Hash{} }

// encoding is the PHC format's: standard alphabet, no padding, and exactly one
// text for any bytes.
var encoding = base64.RawStdEncoding.Strict()

// ParseHash reads $argon2id$v=19$m=…,t=…,p=…$SALT$SUM, the PHC string format, in
// its only spelling.
func ParseHash(s string) (Hash, error) { return parseHash(s, true) }

// parseSalt reads one without $SUM.
func parseSalt(s string) (Hash, error) { return parseHash(s, false) }

// parseHash never puts what it reads into an error: it is half a secret.
func parseHash(s string, withSum bool) (Hash, error) {
	parts := strings.Split(s, "$")
	want := 5
	if withSum {
		want = 6
	}
	if len(s) > 256 || len(parts) != want || parts[0] != "" || parts[1] != "argon2id" {
		return Hash{}, errors.New("is not an argon2id hash in the PHC string format")
	}
	if parts[2] != "v=19" {
		return Hash{}, fmt.Errorf("is of another version of argon2 than %d", argon2.Version)
	}
	var h Hash
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return Hash{}, errors.New("needs m=, t= and p=")
	}
	for i, c := range []struct {
		name string
		most uint64
		set  func(uint64)
	}{
		{"m=", maxMemory, func(n uint64) { h.Memory = uint32(n) }},
		{"t=", maxTime, func(n uint64) { h.Time = uint32(n) }},
		{"p=", maxLanes, func(n uint64) { h.Lanes = uint8(n) }},
	} {
		text, ok := strings.CutPrefix(costs[i], c.name)
		n, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || strconv.FormatUint(n, 10) != text || n == 0 {
			return Hash{}, fmt.Errorf("needs %s and a number in place %d", c.name, i+1)
		}
		if n > c.most {
			return Hash{}, fmt.Errorf("costs too much: %s%d, at most %d", c.name, n, c.most)
		}
		c.set(n)
	}
	if h.Memory < minMemory || h.Memory*h.Time < minCost {
		return Hash{}, fmt.Errorf("costs too little (m=%d, t=%d) to keep a secret; set it anew", h.Memory, h.Time)
	}
	for i, to := range []*string{&h.salt, &h.sum}[:want-4] {
		b, err := encoding.DecodeString(parts[4+i])
		least := []int{8, 16}[i]
		if err != nil || strings.ContainsAny(parts[4+i], "\r\n") || len(b) < least || len(b) > 64 {
			return Hash{}, fmt.Errorf("holds a %s that is not %d to 64 bytes in base64", []string{"salt", "sum"}[i], least)
		}
		*to = string(b)
	}
	return h, nil
}

// String gives the PHC string.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	s := fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s", argon2.Version, h.Memory, h.Time, h.Lanes, encoding.EncodeToString([]byte(h.salt)))
	if h.sum != "" {
		s += "$" + encoding.EncodeToString([]byte(h.sum))
	}
	return s
}

// newSalt has no sum yet.
func newSalt() Hash {
	salt := make([]byte, saltLen)
	_, _ = rand.Read(salt) // never fails: crypto/rand ends the process first
	return Hash{Params: DefaultParams, salt: string(salt)}
}

// sumOf computes with h's salt and costs.
func (h Hash) sumOf(secret []byte) string {
	n := len(h.sum)
	if n == 0 {
		n = hashLen
	}
	return string(argon2.IDKey(secret, []byte(h.salt), h.Time, h.Memory, h.Lanes, uint32(n)))
}

// with is h with the sum of a secret.
func (h Hash) with(secret []byte) Hash {
	h.sum = ""
	h.sum = h.sumOf(secret)
	return h
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
