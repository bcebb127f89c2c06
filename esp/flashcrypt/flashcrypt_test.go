package flashcrypt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/chip"
)

// engines are the implementations that this build has.
func engines() map[string]bool {
	m := map[string]bool{"generic": false}
	if useAsm {
		m["asm"] = true
	}
	return m
}

// TestAssemblyIsThere: internal/check sets the variable where the processor has, or
// qemu imitates, what the assembly needs. Then it must be among the engines.
func TestAssemblyIsThere(t *testing.T) {
	if os.Getenv("PROVISIOND_WANT_ASM") != "" && !useAsm {
		t.Errorf("the assembly is not in use on %s", runtime.GOARCH)
	}
}

// newCipher makes a cipher with the implementation asked for.
func newCipher(t testing.TB, scheme chip.Scheme, key []byte, config uint8, asm bool) Cipher {
	t.Helper()
	var c Cipher
	var err error
	switch scheme {
	case chip.SchemeESP32:
		c, err = orNil(newESP32(key, config, asm))
	case chip.SchemeXTSDerived:
		sum := sha256.Sum256(key)
		c, err = orNil(newXTS(sum[:], asm))
	default:
		c, err = orNil(newXTS(key, asm))
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func count(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vector checks one known answer: both directions, in place and not, split at
// every boundary of 16 bytes, with every implementation.
func vector(t *testing.T, scheme chip.Scheme, key []byte, config uint8, addr uint32, plain, cipher []byte) {
	t.Helper()
	for name, asm := range engines() {
		c := newCipher(t, scheme, key, config, asm)
		got := make([]byte, len(plain)+16)
		if err := c.Encrypt(got, plain, addr); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:len(plain)], cipher) {
			t.Errorf("%s: ciphertext %x, want %x", name, head(got[:len(plain)]), head(cipher))
		}
		if !bytes.Equal(got[len(plain):], make([]byte, 16)) {
			t.Errorf("%s: bytes after the end were written", name)
		}
		inPlace := bytes.Clone(cipher)
		if err := c.Decrypt(inPlace, inPlace, addr); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(inPlace, plain) {
			t.Errorf("%s: plaintext %x, want %x", name, head(inPlace), head(plain))
		}
		for cut := 16; cut < len(plain) && cut <= 512; cut += 16 {
			parts := bytes.Clone(plain)
			if err := c.Encrypt(parts[:cut], parts[:cut], addr); err != nil {
				t.Fatal(err)
			}
			if err := c.Encrypt(parts[cut:], parts[cut:], addr+uint32(cut)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(parts, cipher) {
				t.Errorf("%s: cut at %d gives other bytes", name, cut)
			}
		}
	}
}

func head(b []byte) []byte { return b[:min(len(b), 64)] }

// TestKnownAnswers has the table of esp-facts C.3.
func TestKnownAnswers(t *testing.T) {
	k16, k24, k32, k64 := count(16), count(24), count(32), count(64)
	for _, c := range []struct {
		id     string
		scheme chip.Scheme
		key    []byte
		config uint8
		addr   uint32
		cipher string
	}{
		{"E1", chip.SchemeESP32, k32, 0xF, 0x10000, "83630c7cfe5f7a97258302bbf469bbaad1ee15f32aa45a1b5a3239e452effdcd55635e401f09324e8744640ecf99304dc124f2f6b4f94824d232a1184e97c9ac"},
		{"E2", chip.SchemeESP32, k32, 0xF, 0x1000, "a354ea55e9d9d83cd027e80a6b03a53cfc3886d3f8090e2da27c51dbc4a61351"},
		{"E3", chip.SchemeESP32, k32, 0xF, 0x3FFFE0, "801f8dccea827fcc494b9aa816199942f7aedf7bb2d10184bd605891e3479e6a"},
		{"E4", chip.SchemeESP32, k32, 0x0, 0x10000, "12a1ca1afd2e84819588f76945e0f107108c61e2db61a4ab5b13f5356eebfe15"},
		{"E5", chip.SchemeESP32, k32, 0x3, 0x10000, "f71f343f9cb8c3752837563de6bb20f5b9b9e086a3abf770a3c295788d3ebfe1"},
		{"E6", chip.SchemeESP32, k24, 0xF, 0x10000, "73e536cea016a41b32028c054d703fe63c98fd781c68665a8a08d79dc03856a2"},
		{"E7", chip.SchemeESP32, k32, 0xF, 0x10010, "83630c7cfe5f7a97258302bbf469bbaa"},
		{"E8", chip.SchemeESP32, k32, 0xF, 0x110000, "8a8b49bde089940f3433e7d83b1e21c648d9320a32a6f6f0fe7adb144b7025bf"},
		{"X1", chip.SchemeXTS128, k32, 0, 0x10000, "2c2a288e9e96647587883012b81d17396a80540eebdd2f9e323e7017d6d650de85f9cf9ddaf2b7305d5d979d8eeb5c59417a69f0edda6d92f7085e228a6cda841c2bb5568a7565205c4ae3708ba3554824880706cd62f7ad4c48d6569bc67169806d15e666da7ec7271d3e2f6b2b18c423cd8de5f72afcda58ee8fed7add2ae0"},
		{"X2", chip.SchemeXTS128, k32, 0, 0x10000, "2c2a288e9e96647587883012b81d17396a80540eebdd2f9e323e7017d6d650de"},
		{"X3", chip.SchemeXTS128, k32, 0, 0x110000, "50fc69c3d42099e53239bf929e5a8519c2f71e3011abf1a9995a4d358728587f"},
		{"X4", chip.SchemeXTS128, k32, 0, 0x10010, "b0c82fa75404ac8367b5dd6793163003"},
		{"X5", chip.SchemeXTS256, k64, 0, 0x10000, "ed032950be116e860729b191d93e3cc2541e5722eec0a990b48e4eb691b0acf5"},
		{"X6", chip.SchemeXTS256, k64, 0, 0x8000, "ae02456b7cef1cf081688f5be9c17210e62904caccfdb007857e2e47a79d1c1b"},
		{"X7", chip.SchemeXTSDerived, k16, 0, 0x0, "f115485ad61f5bf24104c9e03e7710d5c4dd4fe50143cafbc5a7b2fd585f4278"},
		{"X8", chip.SchemeXTSDerived, k16, 0, 0x10000, "57bcbe7a34b77c9d72cd546dcf9868a0ce1052bfbd7a6f9f4a2cfaa2abece5bb"},
		{"X9", chip.SchemeXTS128, k32, 0, 0x1000000, "33b869753c016ba68aeaaea558600bc708e50ad4e73b9cbe947687137253c8e9"},
	} {
		t.Run(c.id, func(t *testing.T) {
			want := unhex(t, c.cipher)
			vector(t, c.scheme, c.key, c.config, c.addr, count(len(want)), want)

			// The public constructor makes the same cipher.
			pub, err := New(c.scheme, c.key, c.config)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := pub.Encrypt(got, count(len(want)), c.addr); err != nil || !bytes.Equal(got, want) {
				t.Errorf("New: %x, %v", got, err)
			}
		})
	}
}

// TestVectors has what espsecure wrote (testdata/flashcrypt.json). Long cases
// have no ciphertext, only its hash.
func TestVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/flashcrypt.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Name, Algorithm, Key, Plaintext, Ciphertext string
			Offset                                      uint32
			Length                                      int
			FlashCryptConfig                            uint8  `json:"flash_crypt_config"`
			PlaintextSHA256                             string `json:"plaintext_sha256"`
			CiphertextSHA256                            string `json:"ciphertext_sha256"`
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 24 {
		t.Fatalf("%d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			scheme := chip.Scheme(c.Algorithm)
			if c.Algorithm == "esp32-192" { // the vector file's name for a 24-byte key
				scheme = chip.SchemeESP32
			}
			key, plain := unhex(t, c.Key), unhex(t, c.Plaintext)
			if len(plain) != c.Length || sha(plain) != c.PlaintextSHA256 {
				t.Fatalf("plaintext of %d bytes, want %d, or another hash", len(plain), c.Length)
			}
			for name, asm := range engines() {
				e := newCipher(t, scheme, key, c.FlashCryptConfig, asm)
				got := make([]byte, c.Length)
				if err := e.Encrypt(got, plain, c.Offset); err != nil {
					t.Fatal(err)
				}
				if sha(got) != c.CiphertextSHA256 {
					t.Errorf("%s: ciphertext has another hash", name)
				}
				if c.Ciphertext != "" {
					vector(t, scheme, key, c.FlashCryptConfig, c.Offset, plain, unhex(t, c.Ciphertext))
				}
				if err := e.Decrypt(got, got, c.Offset); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s: decryption does not give the plaintext: %v", name, err)
				}
			}
		})
	}
}

func sha(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// reference is the naive implementation of a scheme.
func reference(t testing.TB, scheme chip.Scheme, key []byte, config uint8, addr uint32, src []byte, decrypt bool) []byte {
	if scheme == chip.SchemeESP32 {
		return referenceESP32(t, key, config, addr, src, decrypt)
	}
	if scheme == chip.SchemeXTSDerived {
		sum := sha256.Sum256(key)
		key = sum[:]
	}
	return referenceXTS(t, key, addr, src, decrypt)
}

// TestEveryFlashCryptConfig holds all 16 values against the reference, at
// addresses that flip every tweaking bit alone and together.
func TestEveryFlashCryptConfig(t *testing.T) {
	addrs := []uint32{0, 0xFFFF80, 0x1000000, 0xFFFFFF00}
	for bit := 4; bit < 32; bit++ {
		addrs = append(addrs, 1<<bit)
	}
	for _, n := range []int{24, 32} {
		key, plain := noise(n, byte(n)), noise(256, 1)
		for config := range uint8(16) {
			for _, addr := range addrs {
				want := referenceESP32(t, key, config, addr, plain, false)
				for name, asm := range engines() {
					got := bytes.Clone(plain)
					if err := newCipher(t, chip.SchemeESP32, key, config, asm).Encrypt(got, got, addr); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, want) {
						t.Errorf("%s: %d-byte key, config 0x%x, address 0x%x", name, n, config, addr)
					}
				}
			}
		}
	}
}

// TestLongRun walks through flash across carries of the address counter, so that
// the running key is compared far from where it started.
func TestLongRun(t *testing.T) {
	const addr, n = 0xFF0010, 1 << 17
	plain := noise(n, 3)
	for _, s := range []struct {
		scheme chip.Scheme
		key    []byte
	}{{chip.SchemeESP32, noise(32, 4)}, {chip.SchemeXTS128, noise(32, 5)}, {chip.SchemeXTS256, noise(64, 6)}} {
		want := reference(t, s.scheme, s.key, 0xF, addr, plain, false)
		for name, asm := range engines() {
			got := make([]byte, n)
			if err := newCipher(t, s.scheme, s.key, 0xF, asm).Encrypt(got, plain, addr); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s, %s: another ciphertext", s.scheme, name)
			}
		}
	}
}

// TestLibraryXTS compares with golang.org/x/crypto/xts.
func TestLibraryXTS(t *testing.T) {
	plain := noise(1024, 7)
	for _, n := range []int{32, 64} {
		key := noise(n, 8)
		want := libraryXTS(t, key, 0x1FFFF00, plain)
		for name, asm := range engines() {
			got := bytes.Clone(plain)
			if err := newCipher(t, chip.SchemeXTS128, key, 0, asm).Encrypt(got, got, 0x1FFFF00); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d-byte key: %v", name, n, err)
			}
		}
	}
}

// schemes are all of them with the key lengths that they take.
var schemes = []struct {
	scheme chip.Scheme
	key    int
}{
	{chip.SchemeESP32, 24}, {chip.SchemeESP32, 32}, {chip.SchemeXTS128, 32}, {chip.SchemeXTS256, 64}, {chip.SchemeXTSDerived, 16},
}

// TestProperties: any key, address and length; decryption gives the plaintext
// back, cutting anywhere changes nothing, and the reference agrees.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.SampledFrom(schemes).Draw(rt, "scheme")
		key := noise(s.key, rapid.Byte().Draw(rt, "key"))
		config := rapid.Uint8Range(0, 15).Draw(rt, "config")
		blocks := rapid.IntRange(0, 80).Draw(rt, "blocks")
		addr := 16 * rapid.Uint32Range(0, 1<<28-uint32(blocks)).Draw(rt, "addr")
		cut := 16 * rapid.IntRange(0, blocks).Draw(rt, "cut")
		decrypt := rapid.Bool().Draw(rt, "decrypt")
		src := noise(16*blocks, rapid.Byte().Draw(rt, "src"))

		want := reference(t, s.scheme, key, config, addr, src, decrypt)
		for name, asm := range engines() {
			c := newCipher(t, s.scheme, key, config, asm)
			there, back := c.Encrypt, c.Decrypt
			if decrypt {
				there, back = back, there
			}
			got := bytes.Clone(src)
			if err := errors.Join(there(got[cut:], got[cut:], addr+uint32(cut)), there(got[:cut], got[:cut], addr)); err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				rt.Fatalf("%s: %x, want %x", name, got, want)
			}
			dst := make([]byte, len(src))
			if err := back(dst, got, addr); err != nil || !bytes.Equal(dst, src) {
				rt.Fatalf("%s: the way back: %v", name, err)
			}
		}
	})
}

func FuzzCrypt(f *testing.F) {
	f.Add(byte(0), count(64), byte(0xF), uint32(0x10000), count(64), false)
	f.Add(byte(1), count(64), byte(0x3), uint32(0xFFFFE0), count(160), true)
	f.Add(byte(2), count(64), byte(0), uint32(0x10070), count(288), false)
	f.Add(byte(3), count(64), byte(0), uint32(0xFFFFFF80), count(128), true)
	f.Add(byte(4), count(64), byte(0), uint32(0x0), count(16), false)
	f.Fuzz(func(t *testing.T, which byte, key []byte, config byte, addr uint32, src []byte, decrypt bool) {
		s := schemes[int(which)%len(schemes)]
		if len(key) < s.key {
			return
		}
		key, config, addr, src = key[:s.key], config&0xF, addr&^0xF, src[:len(src)&^0xF]
		if uint64(addr)+uint64(len(src)) > 1<<32 {
			return
		}
		want := reference(t, s.scheme, key, config, addr, src, decrypt)
		for name, asm := range engines() {
			c := newCipher(t, s.scheme, key, config, asm)
			crypt := c.Encrypt
			if decrypt {
				crypt = c.Decrypt
			}
			got := make([]byte, len(src))
			if err := crypt(got, src, addr); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: %s, address 0x%x: %x, want %x", name, s.scheme, addr, got, want)
			}
		}
	})
}

func TestArguments(t *testing.T) {
	buf := make([]byte, 4096)
	for _, s := range schemes {
		for _, asm := range engines() {
			c := newCipher(t, s.scheme, noise(s.key, 1), 0xF, asm)
			for name, call := range map[string]struct {
				dst, src []byte
				addr     uint32
				ok       bool
			}{
				"address":              {buf[:32], buf[:32], 0x10008, false},
				"length":               {buf[:40], buf[:40], 0x10000, false},
				"short destination":    {buf[:16], buf[64:96], 0x10000, false},
				"beyond 32 bits":       {buf[:32], buf[:32], 0xFFFFFFF0, false},
				"overlap, ahead":       {buf[16:48], buf[:32], 0x10000, false},
				"overlap, behind":      {buf[:32], buf[16:48], 0x10000, false},
				"overlap by a byte":    {buf[31:63], buf[:32], 0x10000, false},
				"last addresses":       {buf[:16], buf[:16], 0xFFFFFFF0, true},
				"neighbours":           {buf[:32], buf[32:64], 0x10000, true},
				"longer destination":   {buf[:], buf[:32], 0x10000, true},
				"nothing":              {nil, nil, 0x10000, true},
				"nothing, destination": {buf[:16], buf[16:16], 0x10000, true},
			} {
				for i, crypt := range []func(dst, src []byte, addr uint32) error{c.Encrypt, c.Decrypt} {
					before := bytes.Clone(buf)
					err := crypt(call.dst, call.src, call.addr)
					if (err == nil) != call.ok {
						t.Errorf("%s %s %d: %v", s.scheme, name, i, err)
					}
					if err != nil && !bytes.Equal(before, buf) {
						t.Errorf("%s %s %d: an error, and bytes were written", s.scheme, name, i)
					}
				}
			}
			if c.BlockSize() != 16 {
				t.Error("block size")
			}
		}
	}
}

func TestKeyErrors(t *testing.T) {
	for _, c := range []struct {
		scheme chip.Scheme
		n      int
		config uint8
		key    bool // the key's length is the fault
	}{
		{chip.SchemeESP32, 16, 0xF, true},
		{chip.SchemeESP32, 31, 0xF, true},
		{chip.SchemeESP32, 64, 0xF, true},
		{chip.SchemeESP32, 0, 0xF, true},
		{chip.SchemeESP32, 32, 0x10, false},
		{chip.SchemeXTS128, 64, 0, true},
		{chip.SchemeXTS128, 16, 0, true},
		{chip.SchemeXTS256, 32, 0, true},
		{chip.SchemeXTS256, 48, 0, true},
		{chip.SchemeXTSDerived, 32, 0, true},
		{"rot13", 32, 0, false},
	} {
		got, err := New(c.scheme, make([]byte, c.n), c.config)
		if err == nil || got != nil || errors.Is(err, ErrKeyLength) != c.key {
			t.Errorf("%s, %d bytes: %v, %v", c.scheme, c.n, got, err)
		}
	}
	if _, err := NewXTS(make([]byte, 48)); !errors.Is(err, ErrKeyLength) {
		t.Error(err)
	}
}

func TestKeyIsCopied(t *testing.T) {
	for _, s := range schemes {
		key := noise(s.key, 9)
		c, err := New(s.scheme, key, 0xF)
		if err != nil {
			t.Fatal(err)
		}
		want := reference(t, s.scheme, key, 0xF, 0x10000, count(256), false)
		clear(key)
		got := make([]byte, 256)
		if err := c.Encrypt(got, count(256), 0x10000); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the cipher follows its caller's slice", s.scheme)
		}
	}
}

func TestWipe(t *testing.T) {
	for _, s := range schemes {
		for name, asm := range engines() {
			c := newCipher(t, s.scheme, noise(s.key, 10), 0xF, asm)
			c.Wipe()
			buf := count(128)
			if err := c.Encrypt(buf, buf, 0); !errors.Is(err, ErrWiped) {
				t.Errorf("%s %s: %v", s.scheme, name, err)
			}
			if err := c.Decrypt(buf, buf, 0); !errors.Is(err, ErrWiped) || !bytes.Equal(buf, count(128)) {
				t.Errorf("%s %s: %v", s.scheme, name, err)
			}
			c.Wipe()
			switch c := c.(type) {
			case *ESP32:
				if !reflect.DeepEqual(*c.keys(), esp32Keys{wiped: true}) {
					t.Errorf("%s %s: something is left", s.scheme, name)
				}
			case *XTS:
				if !reflect.DeepEqual(*c.keys(), xtsKeys{wiped: true}) {
					t.Errorf("%s %s: something is left", s.scheme, name)
				}
			}
		}
	}
}

// TestPrintsNoKey prints ciphers in every way that shows values, alone and
// inside other structs, and looks for the key and its schedule.
func TestPrintsNoKey(t *testing.T) {
	type inner struct{ c Cipher }
	for _, s := range schemes {
		for name, asm := range engines() {
			key := noise(s.key, 11)
			c := newCipher(t, s.scheme, key, 0xF, asm)
			values := []any{c, &c, inner{c}, &inner{c}, []Cipher{c}, map[string]Cipher{"k": c}}
			switch c := c.(type) {
			case *ESP32:
				values = append(values, *c, struct{ e ESP32 }{*c}, struct{ e *ESP32 }{c})
			case *XTS:
				values = append(values, *c, struct{ x XTS }{*c}, struct{ x *XTS }{c})
			}
			var out strings.Builder
			for _, v := range values {
				for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%t", "%e", "%p", "%T"} {
					fmt.Fprintf(&out, verb+"\n", v)
				}
				if b, err := json.Marshal(v); err == nil {
					out.Write(b)
				}
			}
			text := strings.ToLower(out.String())
			words := strings.NewReplacer(",", " ", "[", " ", "]", " ", "{", " ", "}", " ", "0x", "").Replace(text)
			words = strings.Join(strings.Fields(words), " ")
			forms := []string{hex.EncodeToString(key[:4]), hex.EncodeToString([]byte{key[3], key[2], key[1], key[0]}), string(key[:4])}
			var dec []string
			for _, b := range key[:4] {
				dec = append(dec, fmt.Sprint(b))
			}
			forms = append(forms, strings.Join(dec, " "))
			for _, off := range []int{0, 4, 8} {
				w := uint64(0)
				for i := range 8 {
					w |= uint64(key[off%8+i]) << (8 * i)
				}
				forms = append(forms, fmt.Sprint(w), fmt.Sprint(uint32(w)), fmt.Sprint(w>>32))
			}
			for _, f := range forms {
				if strings.Contains(text, strings.ToLower(f)) || strings.Contains(words, f) {
					t.Errorf("%s %s: a printed cipher shows %q", s.scheme, name, f)
				}
			}
			if len(text) > 20000 {
				t.Errorf("%s %s: printing gives %d bytes: is the schedule among them?", s.scheme, name, len(text))
			}
		}
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	for _, s := range schemes {
		for _, asm := range engines() {
			key := noise(s.key, 12)
			c := newCipher(t, s.scheme, key, 0xF, asm)
			want := reference(t, s.scheme, key, 0xF, 0x10010, count(1008), false)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					buf := make([]byte, 1008)
					for range 20 {
						if err := c.Encrypt(buf, count(1008), 0x10010); err != nil || !bytes.Equal(buf, want) {
							t.Errorf("%s: %v", s.scheme, err)
						}
						if err := c.Decrypt(buf, buf, 0x10010); err != nil || !bytes.Equal(buf, count(1008)) {
							t.Errorf("%s: %v", s.scheme, err)
						}
					}
				})
			}
			wg.Wait()
		}
	}
}

// TestNoAllocation: nothing is allocated per call, whole units or not. The ESP32
// scheme over crypto/aes is the exception: it needs a key schedule per unit.
func TestNoAllocation(t *testing.T) {
	for _, s := range schemes {
		for name, asm := range engines() {
			if s.scheme == chip.SchemeESP32 && !asm {
				continue
			}
			c := newCipher(t, s.scheme, noise(s.key, 13), 0xF, asm)
			buf := make([]byte, 4096-32)
			if got := testing.AllocsPerRun(100, func() {
				_ = c.Encrypt(buf, buf, 0x10010)
				_ = c.Decrypt(buf, buf, 0x10010)
			}); got != 0 {
				t.Errorf("%s, %s: %v allocations", s.scheme, name, got)
			}
		}
	}
}
