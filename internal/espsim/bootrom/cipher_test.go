package bootrom

import (
	"bytes"
	"crypto/aes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"golang.org/x/crypto/xts"

	"github.com/provisiond/provisiond/esp/chip"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// memFlash is raw flash content that starts at an address; the rest is erased.
type memFlash struct {
	at   int64
	data []byte
}

func (m memFlash) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0xFF
		if a := off + int64(i) - m.at; a >= 0 && a < int64(len(m.data)) {
			p[i] = m.data[a]
		}
	}
	return len(p), nil
}

func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

// array is what the fuses hold of a key file: each block's part reversed.
func array(key []byte) []byte {
	var out []byte
	for part := range slices.Chunk(key, 32) {
		out = append(out, reversed(part)...)
	}
	return out
}

func decrypted(t *testing.T, scheme chip.Scheme, config uint32, fileKey, ciphertext []byte, addr uint32) []byte {
	t.Helper()
	in := Input{
		Model: chip.Model{Scheme: scheme},
		Flash: memFlash{int64(addr), ciphertext}, FlashSize: 32 << 20,
		FlashCryptCount: 1, FlashCryptConfig: config, Key: array(fileKey),
	}
	got, err := newFlashView(in).read(addr, uint32(len(ciphertext)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// TestCipherKnownAnswers holds the cipher against esp-facts C.3.
func TestCipherKnownAnswers(t *testing.T) {
	for _, k := range []struct {
		id     string
		scheme chip.Scheme
		config uint32
		key    int
		addr   uint32
		cipher string
	}{
		{"E1", chip.SchemeESP32, 0xF, 32, 0x10000, "83630c7cfe5f7a97258302bbf469bbaad1ee15f32aa45a1b5a3239e452effdcd55635e401f09324e8744640ecf99304dc124f2f6b4f94824d232a1184e97c9ac"},
		{"E2", chip.SchemeESP32, 0xF, 32, 0x1000, "a354ea55e9d9d83cd027e80a6b03a53cfc3886d3f8090e2da27c51dbc4a61351"},
		{"E3", chip.SchemeESP32, 0xF, 32, 0x3FFFE0, "801f8dccea827fcc494b9aa816199942f7aedf7bb2d10184bd605891e3479e6a"},
		{"E4", chip.SchemeESP32, 0x0, 32, 0x10000, "12a1ca1afd2e84819588f76945e0f107108c61e2db61a4ab5b13f5356eebfe15"},
		{"E5", chip.SchemeESP32, 0x3, 32, 0x10000, "f71f343f9cb8c3752837563de6bb20f5b9b9e086a3abf770a3c295788d3ebfe1"},
		{"E6", chip.SchemeESP32, 0xF, 24, 0x10000, "73e536cea016a41b32028c054d703fe63c98fd781c68665a8a08d79dc03856a2"},
		{"E7", chip.SchemeESP32, 0xF, 32, 0x10010, "83630c7cfe5f7a97258302bbf469bbaa"},
		{"E8", chip.SchemeESP32, 0xF, 32, 0x110000, "8a8b49bde089940f3433e7d83b1e21c648d9320a32a6f6f0fe7adb144b7025bf"},
		{"X1", chip.SchemeXTS128, 0, 32, 0x10000, "2c2a288e9e96647587883012b81d17396a80540eebdd2f9e323e7017d6d650de85f9cf9ddaf2b7305d5d979d8eeb5c59417a69f0edda6d92f7085e228a6cda841c2bb5568a7565205c4ae3708ba3554824880706cd62f7ad4c48d6569bc67169806d15e666da7ec7271d3e2f6b2b18c423cd8de5f72afcda58ee8fed7add2ae0"},
		{"X2", chip.SchemeXTS128, 0, 32, 0x10000, "2c2a288e9e96647587883012b81d17396a80540eebdd2f9e323e7017d6d650de"},
		{"X3", chip.SchemeXTS128, 0, 32, 0x110000, "50fc69c3d42099e53239bf929e5a8519c2f71e3011abf1a9995a4d358728587f"},
		{"X4", chip.SchemeXTS128, 0, 32, 0x10010, "b0c82fa75404ac8367b5dd6793163003"},
		{"X5", chip.SchemeXTS256, 0, 64, 0x10000, "ed032950be116e860729b191d93e3cc2541e5722eec0a990b48e4eb691b0acf5"},
		{"X6", chip.SchemeXTS256, 0, 64, 0x8000, "ae02456b7cef1cf081688f5be9c17210e62904caccfdb007857e2e47a79d1c1b"},
		{"X7", chip.SchemeXTSDerived, 0, 16, 0x0, "f115485ad61f5bf24104c9e03e7710d5c4dd4fe50143cafbc5a7b2fd585f4278"},
		{"X8", chip.SchemeXTSDerived, 0, 16, 0x10000, "57bcbe7a34b77c9d72cd546dcf9868a0ce1052bfbd7a6f9f4a2cfaa2abece5bb"},
		{"X9", chip.SchemeXTS128, 0, 32, 0x1000000, "33b869753c016ba68aeaaea558600bc708e50ad4e73b9cbe947687137253c8e9"},
	} {
		ciphertext := unhex(t, k.cipher)
		got := decrypted(t, k.scheme, k.config, counting(k.key), ciphertext, k.addr)
		if want := counting(len(ciphertext)); !bytes.Equal(got, want) {
			t.Errorf("%s: decrypts to %x, want %x", k.id, got, want)
		}
	}
}

// TestCipherVectors holds the cipher against what the vendor's tool made.
func TestCipherVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/flashcrypt.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Name, Algorithm, Key, Plaintext, Ciphertext string
			Config                                      uint32 `json:"flash_crypt_config"`
			Offset                                      uint32
			PlaintextSHA                                string `json:"plaintext_sha256"`
			CiphertextSHA                               string `json:"ciphertext_sha256"`
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range file.Cases {
		var scheme chip.Scheme
		switch c.Algorithm {
		case "esp32", "esp32-192":
			scheme = chip.SchemeESP32
		default:
			scheme = chip.SchemeXTS128 // the key's length says the rest
		}
		ran++
		key, plain := unhex(t, c.Key), unhex(t, c.Plaintext)
		ciphertext := unhex(t, c.Ciphertext)
		if c.Ciphertext == "" { // long cases carry a digest only: encrypt, and compare that
			ciphertext = encrypt(scheme, c.Config, key, plain, c.Offset)
		}
		if hex.EncodeToString(sum(ciphertext)) != c.CiphertextSHA {
			t.Errorf("%s: ciphertext's digest differs", c.Name)
		}
		got := decrypted(t, scheme, c.Config, key, ciphertext, c.Offset)
		if !bytes.Equal(got, plain) || hex.EncodeToString(sum(got)) != c.PlaintextSHA {
			t.Errorf("%s (%s at 0x%x): wrong plaintext", c.Name, c.Algorithm, c.Offset)
		}
	}
	if ran != len(file.Cases) || ran < 20 {
		t.Errorf("%d vectors ran of %d", ran, len(file.Cases))
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// encrypt makes ciphertext for the tests' flash; addr is a multiple of 16. The last,
// partial unit is padded by position and cut again.
func encrypt(scheme chip.Scheme, config uint32, key, plain []byte, addr uint32) []byte {
	switch len(key) {
	case 24:
		key = slices.Concat(key, key[8:16])
	case 16:
		key = sum(key)
	}
	first := addr / unit * unit
	buf := bytes.Repeat([]byte{0xFF}, (int(addr-first)+len(plain)+unit-1)/unit*unit)
	copy(buf[addr-first:], plain)
	for i := 0; i < len(buf); i += unit {
		u, at := buf[i:i+unit], first+uint32(i)
		if scheme != chip.SchemeESP32 {
			c, err := xts.NewCipher(aes.NewCipher, key)
			if err != nil {
				panic(err)
			}
			slices.Reverse(u)
			c.Encrypt(u, u, uint64(at))
			slices.Reverse(u)
			continue
		}
		for j := 0; j < unit; j += 16 {
			b := u[j : j+16]
			c, err := aes.NewCipher(esp32UnitKey(key, config, (at+uint32(j))&^0x1F))
			if err != nil {
				panic(err)
			}
			slices.Reverse(b)
			c.Decrypt(b, b)
			slices.Reverse(b)
		}
	}
	return buf[addr-first:][:len(plain)]
}

func TestKeysThatNoChipHolds(t *testing.T) {
	for name, in := range map[string]Input{
		"esp32 16":  {Model: chip.Model{Scheme: chip.SchemeESP32}, Key: make([]byte, 16), FlashCryptCount: 1},
		"xts 24":    {Model: chip.Model{Scheme: chip.SchemeXTS128}, Key: make([]byte, 24), FlashCryptCount: 7},
		"xts 48":    {Model: chip.Model{Scheme: chip.SchemeXTS256}, Key: make([]byte, 48), FlashCryptCount: 7},
		"empty key": {Model: chip.Model{Scheme: chip.SchemeXTS128}, Key: []byte{}, FlashCryptCount: 1},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			newFlashView(in)
		}()
	}
}
