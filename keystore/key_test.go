package keystore_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// counting gives the bytes 0, 1, 2, …
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func mustKey(t testing.TB, b []byte) keystore.Key {
	t.Helper()
	k, err := keystore.KeyFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestGenerate(t *testing.T) {
	for scheme, want := range map[chip.Scheme]int{
		chip.SchemeESP32: 32, chip.SchemeXTS128: 32, chip.SchemeXTS256: 64, chip.SchemeXTSDerived: 16,
	} {
		a, err := keystore.Generate(scheme)
		if err != nil || a.Len() != want || a.Fits(scheme) != nil {
			t.Fatalf("%s: %d bytes, %v", scheme, a.Len(), err)
		}
		b, _ := keystore.Generate(scheme)
		if a.Equal(b) || a.Fingerprint() == b.Fingerprint() {
			t.Errorf("%s: the same key twice", scheme)
		}
	}
	if k, err := keystore.GenerateLen(chip.SchemeESP32, 24); err != nil || k.Len() != 24 {
		t.Errorf("24 bytes: %v", err)
	}
	for _, c := range []struct {
		scheme chip.Scheme
		n      int
	}{{chip.SchemeXTS128, 24}, {chip.SchemeESP32, 16}, {chip.SchemeXTS256, 32}, {chip.SchemeXTSDerived, 32}, {"rot13", 32}, {chip.SchemeESP32, 0}} {
		if _, err := keystore.GenerateLen(c.scheme, c.n); err == nil {
			t.Errorf("%s with %d bytes: taken", c.scheme, c.n)
		}
	}
	if _, err := keystore.Generate(""); err == nil {
		t.Error("no scheme: taken")
	}
}

func TestKeyFromBytes(t *testing.T) {
	for _, n := range []int{16, 24, 32, 64} {
		b := counting(n)
		k := mustKey(t, b)
		if !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("%d: the input was not wiped", n)
		}
		if err := k.Use(func(got []byte) error {
			if !bytes.Equal(got, counting(n)) {
				t.Errorf("%d: other bytes", n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for name, b := range map[string][]byte{
		"none": {}, "15": counting(15), "31": counting(31), "33": counting(33), "hex file": []byte(hex.EncodeToString(counting(24))),
		"zeros": make([]byte, 32), "erased": bytes.Repeat([]byte{0xFF}, 64), "fives": bytes.Repeat([]byte{0x55}, 16),
	} {
		in := bytes.Clone(b)
		_, err := keystore.KeyFromBytes(in)
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		if !bytes.Equal(in, make([]byte, len(b))) {
			t.Errorf("%s: a refused input was not wiped", name)
		}
	}
	const hexKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	if _, err := keystore.KeyFromBytes([]byte(hexKey)[:63]); err == nil || strings.Contains(err.Error(), "0001") {
		t.Errorf("the error echoes: %v", err)
	}
}

// TestFingerprint has values computed with Python's hashlib.
func TestFingerprint(t *testing.T) {
	for n, want := range map[int]string{
		16: "298b770578be78a0cb4e85bbcf9a96799bb95509d6a703164ccf821e2e044278",
		24: "3f4d82e253977f2691ebe7fdfb2cacf126483d571db42acf2ad54b63238c3462",
		32: "2ca57b11a65f5c5c656f6efb49f60680eafb4c7fdd20fc3377d8548c1548602d",
		64: "e97c9ea0ac3ba5494bd65a67079269d237a922e9f9a70b0e0c104c408b7fe1bf",
	} {
		k := mustKey(t, counting(n))
		fp := k.Fingerprint()
		if fp.String() != want || keystore.FingerprintBytes(counting(n)) != fp {
			t.Errorf("%d bytes: %s", n, fp)
		}
		parsed, err := keystore.ParseFingerprint(want)
		if err != nil || !parsed.Equal(fp) || parsed.IsZero() {
			t.Errorf("parse: %v, %v", parsed, err)
		}
		j, err := json.Marshal(fp)
		var back keystore.Fingerprint
		if err != nil || string(j) != `"`+want+`"` || json.Unmarshal(j, &back) != nil || back != fp {
			t.Errorf("JSON: %s, %v", j, err)
		}
		parsed[31] ^= 1
		if parsed.Equal(fp) {
			t.Error("another fingerprint is equal")
		}
	}
	good := mustKey(t, counting(32)).Fingerprint().String()
	for _, s := range []string{"", good[:63], good + "0", strings.ToUpper(good), " " + good[1:], strings.Repeat("g", 64), "../../../" + good[9:]} {
		if _, err := keystore.ParseFingerprint(s); err == nil || (s != "" && strings.Contains(err.Error(), s)) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestWipedKey(t *testing.T) {
	k := mustKey(t, counting(32))
	same := k
	k.Wipe()
	var zero keystore.Key
	for name, k := range map[string]keystore.Key{"wiped": k, "copy of a wiped one": same, "zero": zero} {
		err := k.Use(func([]byte) error { t.Errorf("%s: lent", name); return nil })
		if !errors.Is(err, keystore.ErrKeyEmpty) || k.Len() != 0 || !k.Fingerprint().IsZero() || k.Equal(k) {
			t.Errorf("%s: %v, %d, %s", name, err, k.Len(), k.Fingerprint())
		}
		if _, err := k.Cipher(chip.SchemeXTS128, 0); !errors.Is(err, keystore.ErrKeyEmpty) {
			t.Errorf("%s: cipher: %v", name, err)
		}
		k.Wipe()
	}
}

func TestCipher(t *testing.T) {
	for _, c := range []struct {
		scheme chip.Scheme
		n      int
		config uint8
		ok     bool
	}{
		{chip.SchemeESP32, 32, 0xF, true},
		{chip.SchemeESP32, 24, 0xF, true},
		{chip.SchemeXTS128, 32, 0, true},
		{chip.SchemeXTS256, 64, 0, true},
		{chip.SchemeXTSDerived, 16, 0, true},
		{chip.SchemeXTS128, 32, 0xF, false},
		{chip.SchemeESP32, 32, 0x10, false},
		{chip.SchemeXTS128, 64, 0, false},
		{chip.SchemeXTS256, 32, 0, false},
		{"rot13", 32, 0, false},
	} {
		k := mustKey(t, counting(c.n))
		cipher, err := k.Cipher(c.scheme, c.config)
		if (err == nil) != c.ok {
			t.Errorf("%s, %d bytes, config 0x%x: %v", c.scheme, c.n, c.config, err)
		}
		if err != nil {
			continue
		}
		k.Wipe() // the cipher does not depend on the key's own bytes
		text := bytes.Repeat([]byte("provisiond 16 B."), 8)
		sealed, opened := make([]byte, len(text)), make([]byte, len(text))
		if err := errors.Join(cipher.Encrypt(sealed, text, 0x10000), cipher.Decrypt(opened, sealed, 0x10000)); err != nil {
			t.Error(err)
		}
		if bytes.Equal(sealed, text) || !bytes.Equal(opened, text) {
			t.Errorf("%s: does not encrypt and decrypt", c.scheme)
		}
		if out := fmt.Sprintf("%v %+v %#v", cipher, cipher, cipher); strings.Contains(out, "0, 1, 2, 3") || strings.Contains(out, "0 1 2 3") {
			t.Errorf("%s: the cipher shows the key: %s", c.scheme, out)
		}
	}
}

// TestNoPrinterShowsAKey puts a key and a record into every printer.
func TestNoPrinterShowsAKey(t *testing.T) {
	text := []byte("KeyBytesThatShow-0123456789abcde")
	k := mustKey(t, bytes.Clone(text))
	type wrap struct {
		k keystore.Key
		p *keystore.Key
		r keystore.Record
	}
	r := keystore.Record{Key: k}
	var out strings.Builder
	for _, v := range []any{k, &k, r, &r, wrap{k, &k, r}, &wrap{k, &k, r}, []keystore.Key{k}, map[string]keystore.Key{"k": k}, fmt.Errorf("%v", r)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%c", "%U", "%o", "%b", "%p", "%t"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		if j, err := json.Marshal(v); err == nil {
			out.Write(j)
		} else {
			out.WriteString(err.Error())
		}
		enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
		buf, err := enc.EncodeEntry(zapcore.Entry{}, []zapcore.Field{zap.Any("v", v), zap.Reflect("r", v)})
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(buf.String())
	}
	out.WriteString(cmp.Diff(fmt.Sprint(k), "x"))
	decimal := strings.Trim(fmt.Sprint(text[:8]), "[]")
	for _, form := range []string{
		string(text[:8]), fmt.Sprintf("%x", text[:8]), fmt.Sprintf("%X", text[:8]), fmt.Sprintf("% x", text[:8]),
		decimal, strings.ReplaceAll(decimal, " ", ","), "S2V5Qnl0ZX",
	} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the key shows as %q", form)
		}
	}
	if _, err := json.Marshal(r); err == nil {
		t.Error("a record was marshalled without its key")
	}
}
