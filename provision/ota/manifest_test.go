package ota_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/ota"
)

var update = flag.Bool("update", false, "write testdata anew, with a new signature")

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testSigner(t testing.TB) ota.Signer {
	t.Helper()
	s, err := ota.ParseSigner(testdata(t, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func goldenManifest() *ota.Manifest {
	m := &ota.Manifest{
		Unit: chip.MAC{0x24, 0x0A, 0xC4, 0, 0, 1}, Chip: "esp32c3", Release: "1.4.2", Project: "thermostat", Version: "1.4.2",
		Slot: "ota_1", Address: 0x110000, Length: 913408, PlainLength: 913399, SecureVersion: 3,
	}
	for i := range 32 {
		m.PlainSHA256[i], m.CipherSHA256[i], m.Key[i] = byte(i), byte(0x80+i), byte(0xFF-i)
	}
	return m
}

// TestManifestText holds the text of version 1: devices parse exactly this. The
// files in testdata are the ones that the C client's tests read too.
func TestManifestText(t *testing.T) {
	for name, change := range map[string]func(*ota.Manifest){
		"manifest.txt": func(*ota.Manifest) {},
		"manifest-nonce.txt": func(m *ota.Manifest) {
			m.Nonce = []byte("0123456789abcdef")
			m.Release, m.Project, m.Version = "", "", strings.Repeat("~", ota.MaxName)
		},
		"manifest-esp32.txt": func(m *ota.Manifest) { m.Chip, m.Length, m.Slot, m.Address = "esp32", 913408, "ota_15", 0xFF0000 },
	} {
		t.Run(name, func(t *testing.T) {
			m := goldenManifest()
			change(m)
			s := testSigner(t)
			if err := m.Sign(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			text, err := m.MarshalText()
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", name), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want := testdata(t, name)
			cut := func(b []byte) string { s, _, _ := strings.Cut(string(b), "signature "); return s }
			if cut(text) != cut(want) {
				t.Errorf("wrote\n%s\nwant\n%s", text, want)
			}
			got, err := ota.ParseManifest(want)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Verify(s.Public()); err != nil {
				t.Error(err)
			}
			got.Signature = m.Signature
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", m) {
				t.Errorf("parsed\n%+v\nwant\n%+v", got, m)
			}
		})
	}
	const head = `provisiond-ota-manifest 1
unit 24:0a:c4:00:00:01
chip esp32c3
release 1.4.2
project thermostat
version 1.4.2
slot ota_1
address 0x00110000
length 913408
plain-length 913399
sha256-plain 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
sha256-cipher 808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f
secure-version 3
key fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0efeeedecebeae9e8e7e6e5e4e3e2e1e0
nonce -
signer `
	if text := testdata(t, "manifest.txt"); !bytes.HasPrefix(text, []byte(head)) {
		t.Errorf("testdata is not version 1:\n%s", text)
	}
}

// TestManifestLongest: no valid manifest is longer than what devices have room for.
func TestManifestLongest(t *testing.T) {
	m := goldenManifest()
	long := strings.Repeat("x", ota.MaxName)
	m.Chip, m.Release, m.Project, m.Version, m.Slot = "esp32c3456789012", long, long, long, "ota_15"
	m.Length, m.PlainLength, m.Address, m.SecureVersion = 4294901760, 4294901760, 0x10000, 4294967295
	m.Nonce, m.Signature = make([]byte, ota.NonceSize), make([]byte, 72)
	text, err := m.MarshalText()
	if err != nil || len(text) > ota.MaxManifest {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if _, err := ota.ParseManifest(append(text, make([]byte, ota.MaxManifest)...)); err == nil {
		t.Error("a longer text parses")
	}
}

func TestParseManifestRefuses(t *testing.T) {
	good := string(testdata(t, "manifest.txt"))
	for name, c := range map[string]struct{ from, to, word string }{
		"other version":  {"manifest 1\n", "manifest 2\n", "first line"},
		"no head":        {"provisiond-ota-manifest 1\n", "", "first line"},
		"CRLF":           {"\n", "\r\n", "first line"},
		"CRLF later":     {"chip esp32c3\n", "chip esp32c3\r\n", "chip"},
		"order":          {"slot ota_1\naddress 0x00110000\n", "address 0x00110000\nslot ota_1\n", `"slot"`},
		"missing":        {"nonce -\n", "", `"nonce"`},
		"twice":          {"nonce -\n", "nonce -\nnonce -\n", `"signer"`},
		"two spaces":     {"slot ota_1", "slot  ota_1", "slot"},
		"unit":           {"24:0a", "24:0A", "unit"},
		"group unit":     {"unit 24", "unit 25", "unit"},
		"zero unit":      {"24:0a:c4:00:00:01", "00:00:00:00:00:00", "unit"},
		"chip":           {"esp32c3", "ESP32-C3", "chip"},
		"empty release":  {"release 1.4.2", "release ", "one form"},
		"space":          {"release 1.4.2", "release 1 4", "release"},
		"long release":   {"release 1.4.2", "release " + strings.Repeat("x", 65), "release"},
		"not ASCII":      {"release 1.4.2", "release ü", "release"},
		"label":          {"ota_1", "app1", "slot"},
		"slot 16":        {"ota_1", "ota_16", "slot"},
		"slot 01":        {"ota_1", "ota_01", "slot"},
		"decimal":        {"0x00110000", "1114112", "address"},
		"short address":  {"0x00110000", "0x110000", "one form"},
		"odd address":    {"0x00110000", "0x00110008", "address"},
		"capital":        {"0x00110000", "0x001A0000", "one form"},
		"zero first":     {"length 913408", "length 0913408", "one form"},
		"plus":           {"length 913408", "length +913408", "length"},
		"large length":   {"length 913408", "length 4294967296", "length"},
		"not padded":     {"length 913408", "length 913424", "length"},
		"no plaintext":   {"plain-length 913399", "plain-length 0", "plain-length"},
		"beyond 32 bits": {"0x00110000", "0xfff80000", "address"},
		"hash short":     {"sha256-plain 00", "sha256-plain ", "sha256-plain"},
		"hash capital":   {"0a0b0c", "0A0b0c", "one form"},
		"no key":         {"fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0efeeedecebeae9e8e7e6e5e4e3e2e1e0", strings.Repeat("0", 64), "key"},
		"nonce":          {"nonce -", "nonce 00", "nonce"},
		"signer":         {"signer ", "signer x", "signer"},
		"no signature":   {good[strings.Index(good, "signature "):], "", "signature"},
		"empty":          {good[strings.Index(good, "signature "):], "signature \n", "signature"},
		"not base64":     {"signature ", "signature !", "base64"},
		"cut":            {good[len(good)-2:], "", "signature"},
		"after":          {good[len(good)-2:], good[len(good)-2:] + "\n", "last line"},
		"everything":     {good, "", "ends before"},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s: changes nothing", name)
		}
		if _, err := ota.ParseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.word)
		}
	}
}

// TestSignatureCoversEverything flips one bit of each byte of a manifest: what
// still parses must not verify.
func TestSignatureCoversEverything(t *testing.T) {
	good := testdata(t, "manifest.txt")
	public := testSigner(t).Public()
	parsed := 0
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			m, err := ota.ParseManifest(b)
			if err != nil {
				continue
			}
			parsed++
			if err := m.Verify(public); !errors.Is(err, ota.ErrSignature) {
				t.Errorf("byte %d (%q → %q): %v", i, good[i], b[i], err)
			}
		}
	}
	if parsed < 500 {
		t.Errorf("only %d changed texts parsed", parsed)
	}
}

type lying struct{ ota.Signer }

func (lying) SignDigest(context.Context, [32]byte) ([]byte, error) {
	return []byte("signed, honestly"), nil
}

func TestSigners(t *testing.T) {
	pem, public, err := ota.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Clone(pem)
	s, err := ota.ParseSigner(pem)
	if err != nil || !s.Public().Equal(public) {
		t.Fatal(err)
	}
	if bytes.Count(pem, []byte{0}) != len(pem) {
		t.Error("the private key's text was not wiped")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if out := fmt.Sprintf(verb, s); verb != "%d" && verb != "%x" && !strings.Contains(out, "ota.Signer(") {
			t.Errorf("%s prints %q", verb, out)
		}
	}
	m := goldenManifest()
	if err := m.Sign(t.Context(), s); err != nil || m.Verify(public) != nil {
		t.Fatal(err)
	}
	if err := m.Verify(testSigner(t).Public()); !errors.Is(err, ota.ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	written, err := ota.MarshalPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ota.ParsePublicKey(written); err != nil || !again.Equal(public) {
		t.Errorf("public key: %v", err)
	}
	if err := m.Sign(t.Context(), lying{s}); !errors.Is(err, ota.ErrSignature) || m.Signature != nil {
		t.Errorf("a signer that lies: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Sign(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ota.NewSigner(p384); ota.ReasonOf(err) != ota.ReasonManifestKey {
		t.Errorf("P-384: %v", err)
	}
	if _, err := ota.NewSigner(rsaKey); ota.ReasonOf(err) != ota.ReasonManifestKey {
		t.Errorf("RSA: %v", err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("hello"), "a public key": written,
		"damaged": bytes.Replace(text, []byte("\n"), []byte("\nAAAA"), 1),
	} {
		if _, err := ota.ParseSigner(b); ota.ReasonOf(err) != ota.ReasonManifestKey {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ota.ParsePublicKey(text); ota.ReasonOf(err) != ota.ReasonManifestKey {
		t.Error("a private key is a public one")
	}
}

func FuzzManifest(f *testing.F) {
	for _, name := range []string{"manifest.txt", "manifest-nonce.txt", "manifest-esp32.txt"} {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ota.ParseManifest(text)
		if err != nil {
			return
		}
		again, err := m.MarshalText()
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%v: read %q, wrote %q", err, text, again)
		}
		if signed, err := m.Signed(); err != nil || !bytes.HasPrefix(text, signed) {
			t.Fatalf("the signed part is not the text's beginning: %v", err)
		}
	})
}
