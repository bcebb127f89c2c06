package keystore_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tokenText(t testing.TB, token keystore.OTAToken) string {
	t.Helper()
	var text string
	if err := token.UseText(func(b []byte) error { text = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return text
}

// TestDerive holds the derived secrets against HKDF as RFC 5869 has it, computed
// with Python's hmac: they live in boards and must never change.
func TestDerive(t *testing.T) {
	mac := chip.MAC{0x24, 0x0A, 0xC4, 0, 0, 1}
	seen := map[string]bool{}
	for _, c := range []struct {
		n                   int
		token, sha256, hmac string
	}{
		{
			16, "jW2nVwN9qYcObv3mrKjhyA-oyfsWKV6qgT-KzgrlF-Q", "66dcc027c3d1e14f01edb5cb9d0f32ee8ce1f792c56b26903b2f6f366e18ad38",
			"3e94b402dec97ea6a4a52a4029b2758d15ad06e0978925b79f50ee5fe6250fdb",
		},
		{
			32, "zI1i51zcgp5NnPOBm29D7mbybIwBhEhpFpit5dSo5-0", "80673fed200ec9123603bdc727c5d7aa8cdfa7063d96488ccd9fdf6ae4b0ffcb",
			"ffab63c0ea87e11205f3da3db27a320f3dd48b5c148d9a483dfb301eb7a905ad",
		},
		{
			64, "mtfOS2NXszfVf-R958ygP9e3_AXsl_JeCOcCKgepE8Y", "739f95c6b0e39160276c9d7641ae4093fe84cbfcdc0ee1bba40c978cc2bdb0a8",
			"2bcc2229a13205d74178ae76878bf6775e46b0029a32ec96009c2a13934b485f",
		},
	} {
		k := mustKey(t, counting(c.n))
		token, err := k.DeriveOTAToken(mac)
		if err != nil || tokenText(t, token) != c.token || token.SHA256().String() != c.sha256 {
			t.Errorf("token of a key of %d bytes: %q, %s, %v", c.n, tokenText(t, token), token.SHA256(), err)
		}
		again, err := keystore.ParseOTAToken(c.token)
		if err != nil || !again.Equal(token) || again.SHA256() != token.SHA256() {
			t.Errorf("the token's text does not parse back: %v", err)
		}
		key, err := k.DeriveHMACKey(mac)
		if err != nil || !key.Equal(mustKey(t, unhex(t, c.hmac))) {
			t.Errorf("HMAC key of a key of %d bytes: %v", c.n, err)
		}
		other, err := k.DeriveOTAToken(chip.MAC{0x24, 0x0A, 0xC4, 0, 0, 2})
		if err != nil || other.Equal(token) {
			t.Errorf("another unit has the same token: %v", err)
		}
		for _, s := range []string{tokenText(t, token), tokenText(t, other)} {
			if seen[s] {
				t.Errorf("%s twice", s)
			}
			seen[s] = true
		}
		token.Wipe()
		if err := token.UseText(func([]byte) error { return nil }); !errors.Is(err, keystore.ErrKeyEmpty) || !token.SHA256().IsZero() {
			t.Errorf("after a wipe: %v", err)
		}
		if _, err := k.DeriveOTAToken(chip.MAC{}); err == nil {
			t.Error("a token of no unit")
		}
		k.Wipe()
		if _, err := k.DeriveOTAToken(mac); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("a token of a wiped key: %v", err)
		}
		if _, err := k.DeriveHMACKey(mac); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("an HMAC key of a wiped key: %v", err)
		}
	}
}

// TestParseOTATokenRefuses: one token has one text, and no error shows it.
func TestParseOTATokenRefuses(t *testing.T) {
	const good = "zI1i51zcgp5NnPOBm29D7mbybIwBhEhpFpit5dSo5-0"
	for name, text := range map[string]string{
		"empty": "", "short": good[1:], "long": good + "A", "padded": good + "=", "standard alphabet": strings.Replace(good, "-", "+", 1),
		"last bits set": good[:42] + "1", "newline inside": good[:10] + "\n" + good[10:], "newline for a character": good[:10] + "\n" + good[11:],
		"hex": "ffab63c0ea87e11205f3da3db27a320f3dd48b5c148d9a483dfb301eb7a905ad",
	} {
		token, err := keystore.ParseOTAToken(text)
		if err == nil || !token.SHA256().IsZero() {
			t.Errorf("%s parses", name)
		} else if len(text) > 8 && strings.Contains(err.Error(), text[:8]) {
			t.Errorf("%s: the error shows it: %v", name, err)
		}
	}
	var none keystore.OTAToken
	if none.Equal(none) {
		t.Error("an empty token equals itself")
	}
}

func TestNoPrinterShowsAToken(t *testing.T) {
	token, err := mustKey(t, counting(32)).DeriveOTAToken(chip.MAC{2, 0, 0, 0, 0, 1})
	if err != nil {
		t.Fatal(err)
	}
	type wrap struct {
		t keystore.OTAToken
		p *keystore.OTAToken
	}
	text := tokenText(t, token)
	raw, err := hex.DecodeString(fmt.Sprintf("%x", text))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, v := range []any{token, &token, wrap{token, &token}, []keystore.OTAToken{token}, fmt.Errorf("%v", token)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	if _, err := json.Marshal(token); err == nil {
		t.Error("a token was marshalled")
	}
	for _, form := range []string{text[:8], fmt.Sprintf("%x", raw[:8]), fmt.Sprintf("%X", raw[:8])} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the token shows as %q", form)
		}
	}
}
