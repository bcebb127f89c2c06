package journal

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/internal/secret"
)

// guardPayload refuses what looks like a key: a member whose name says that it
// is one, with a value that has the form of one. It is a net under the rule that
// keys never reach the journal, and no proof: key bytes under another name pass.
// The types that hold keys (internal/secret, keystore.Key) cannot be marshalled
// into a payload; their placeholder is refused, because it shows a mistake.
func guardPayload(object []byte) error {
	var bad string
	err := canon.Walk(object, func(l canon.Leaf) {
		switch {
		case l.Text == secret.Redacted,
			namesKey(l.Name) && (looksLikeKey(l.Text) || (l.Array && keyLength(l.Bytes))):
			bad = l.Name
		}
	})
	if err == nil && bad != "" {
		err = fmt.Errorf("member %q looks like a key: the journal holds fingerprints only", bad)
	}
	if err != nil {
		return fmt.Errorf("%w: payload: %w", errInvalid, err)
	}
	return nil
}

var (
	keyWords      = []string{"key", "keys", "secret", "passphrase", "password", "token", "private"}
	harmlessWords = []string{"fingerprint", "fingerprints", "sha256", "hash", "digest", "ref", "id", "public", "serial"}
)

// namesKey reports whether a member's name says that its value is a key.
func namesKey(name string) bool {
	words := strings.FieldsFunc(splitCamel(name), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	has := func(list []string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return slices.Contains(list, w) })
	}
	return has(keyWords) && !has(harmlessWords)
}

// splitCamel turns flashKey into flash key, and all letters into small ones.
func splitCamel(s string) string {
	var b strings.Builder
	lower := false
	for _, r := range s {
		if unicode.IsUpper(r) && lower {
			b.WriteByte(' ')
		}
		lower = unicode.IsLower(r)
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// keyLength reports the length of a flash key, or of a key block.
func keyLength(n int) bool { return n == 16 || n == 24 || n == 32 || n == 64 }

// looksLikeKey reports hex or base64 of a key's length. Base64 has capital and
// small letters and digits, as random bytes practically always do and names
// rarely.
func looksLikeKey(s string) bool {
	packed := strings.NewReplacer(" ", "", ":", "", "0x", "", ",", "").Replace(s)
	if b, err := hex.DecodeString(packed); err == nil {
		return keyLength(len(b))
	}
	if !strings.ContainsFunc(s, unicode.IsUpper) || !strings.ContainsFunc(s, unicode.IsLower) ||
		!strings.ContainsFunc(s, unicode.IsDigit) {
		return false
	}
	std := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	b, err := base64.RawStdEncoding.DecodeString(std)
	return err == nil && keyLength(len(b))
}
