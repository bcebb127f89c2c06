package encimg

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// hexBytes are bytes that the vectors hold as hex digits.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// vectors are files that the vendor's tool made. The file says how.
type vectors struct {
	ECIES []struct {
		Length           int
		HMACKey          hexBytes `json:"hmac_key"`
		DevicePublicKey  string   `json:"device_public_key"`
		ServerPrivateKey hexBytes `json:"server_private_key"`
		File             hexBytes
	}
	RSA []struct {
		Length int
		File   hexBytes
	}
	PublicKeys []struct {
		HMACKey hexBytes `json:"hmac_key"`
		XY      hexBytes
	} `json:"public_keys"`
	RSAPrivateKey string `json:"rsa_private_key"`
	RSAPublicKey  string `json:"rsa_public_key"`
}

var load = sync.OnceValues(func() (v vectors, err error) {
	b, err := os.ReadFile("testdata/encimg.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil && (len(v.ECIES) != 3 || len(v.RSA) != 2 || len(v.PublicKeys) != 3) {
		err = errors.New("vectors are missing")
	}
	return v, err
})

func vendor(tb testing.TB) vectors {
	tb.Helper()
	v, err := load()
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// image is the plaintext of the vectors.
func image(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(7*i + 3)
	}
	b[0] = 0xE9
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestPublicKeyAsTheVendors(t *testing.T) {
	for _, v := range vendor(t).PublicKeys {
		got, err := PublicKey(v.HMACKey)
		if err != nil || !bytes.Equal(got[:], v.XY) {
			t.Errorf("HMAC key %x: %x, %v, want %x", v.HMACKey, got, err, v.XY)
		}
	}
	for _, v := range vendor(t).ECIES {
		xy, err := PublicKey(v.HMACKey)
		if err != nil {
			t.Fatal(err)
		}
		text, err := MarshalPublicKey(xy[:])
		if err != nil || string(text) != v.DevicePublicKey {
			t.Errorf("the PEM file is %q, %v, want %q", text, err, v.DevicePublicKey)
		}
	}
}

func TestOpensTheVendorsFiles(t *testing.T) {
	v := vendor(t)
	for _, f := range v.ECIES {
		check(t, must(NewECIESIdentity(f.HMACKey)), f.File, f.Length, FormECIES)
	}
	for _, f := range v.RSA {
		check(t, must(ParseIdentity([]byte(v.RSAPrivateKey))), f.File, f.Length, FormRSA)
	}
}

func check(t *testing.T, as Identity, file []byte, length int, form Form) {
	t.Helper()
	h, err := Parse(file)
	if err != nil || h.Form() != form || int(h.Length) != length {
		t.Fatalf("%+v, %v, want %s with %d bytes", h, err, form, length)
	}
	if again := must(h.AppendBinary(nil)); !bytes.Equal(again, file[:HeaderSize]) {
		t.Errorf("the header encodes to %x, not %x", again, file[:HeaderSize])
	}
	before := slices.Clone(file)
	got, err := Open(as, file)
	if err != nil || !bytes.Equal(got, image(length)) {
		t.Errorf("%s, %d bytes: %x, %v", form, length, got, err)
	}
	if !bytes.Equal(file, before) {
		t.Error("Open changed the file")
	}
}

// With what the vendor's tool drew, our files are the vendor's.
func TestSealsAsTheVendor(t *testing.T) {
	v := vendor(t)
	for _, f := range v.ECIES {
		to := must(ParseRecipient([]byte(f.DevicePublicKey))).(eciesRecipient)
		h := must(Parse(f.File))
		server := must(ecdh.P256().NewPrivateKey(f.ServerPrivateKey))
		block, key, err := to.wrapWith(server, h.Block[pointSize:pointSize+saltSize])
		if err != nil {
			t.Fatal(err)
		}
		got, err := seal(&block, &key, &h.IV, image(f.Length))
		if err != nil || !bytes.Equal(got, f.File) {
			t.Errorf("%d bytes: %x, %v, want %x", f.Length, got, err, f.File)
		}
	}
	for _, f := range v.RSA {
		h := must(Parse(f.File))
		key := must(must(ParseIdentity([]byte(v.RSAPrivateKey))).unwrap(&h.Block))
		got, err := seal(&h.Block, &key, &h.IV, image(f.Length))
		if err != nil || !bytes.Equal(got, f.File) {
			t.Errorf("%d bytes: %x, %v, want %x", f.Length, got, err, f.File)
		}
	}
}

// both gives a recipient and its identity in each form.
func both(tb testing.TB) map[Form]struct {
	to Recipient
	as Identity
} {
	tb.Helper()
	v := vendor(tb)
	hmacKey := v.PublicKeys[0].HMACKey
	xy := must(PublicKey(hmacKey))
	type pair = struct {
		to Recipient
		as Identity
	}
	return map[Form]pair{
		FormRSA:   {must(ParseRecipient([]byte(v.RSAPublicKey))), must(ParseIdentity([]byte(v.RSAPrivateKey)))},
		FormECIES: {must(NewECIESRecipient(xy[:])), must(NewECIESIdentity(hmacKey))},
	}
}

func TestSealAndOpen(t *testing.T) {
	for form, k := range both(t) {
		for _, n := range []int{1, 15, 16, 17, 4096, 100_003} {
			a, b := must(Seal(k.to, image(n))), must(Seal(k.to, image(n)))
			if len(a) != HeaderSize+n {
				t.Errorf("%s: %d bytes became %d", form, n, len(a))
			}
			ha, hb := must(Parse(a)), must(Parse(b))
			if ha.Form() != form || ha.Block == hb.Block || ha.IV == hb.IV || ha.Extra != [extraSize]byte{} {
				t.Errorf("%s: the headers are %x and %x", form, a[:HeaderSize], b[:HeaderSize])
			}
			if n >= 16 && bytes.Equal(a[HeaderSize:], b[HeaderSize:]) {
				t.Errorf("%s: two files of one image have the same ciphertext", form)
			}
			got, err := Open(k.as, a)
			if err != nil || !bytes.Equal(got, image(n)) {
				t.Errorf("%s: %d bytes: %v", form, n, err)
			}
		}
		for _, n := range []int{0, MaxImage + 1} {
			if _, err := Seal(k.to, make([]byte, n)); err == nil {
				t.Errorf("%s: an image of %d bytes was sealed", form, n)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	pairs := both(t)
	other := must(NewECIESIdentity(bytes.Repeat([]byte{7}, 32)))
	otherRSA := must(NewRSAIdentity(must(rsa.GenerateKey(rand.Reader, 3072))))
	for form, k := range pairs {
		good := must(Seal(k.to, image(100)))
		changed := func(at int, flip byte) []byte {
			b := slices.Clone(good)
			b[at] ^= flip
			return b
		}
		keyProblem := map[Form]Problem{FormRSA: ProblemKey, FormECIES: ProblemPoint}[form]
		stranger := map[Form]Identity{FormRSA: otherRSA, FormECIES: other}[form]
		strangerProblem := map[Form]Problem{FormRSA: ProblemKey, FormECIES: ProblemTag}[form]
		cases := []struct {
			name string
			as   Identity
			file []byte
			want Problem
			text string
		}{
			{"no file", k.as, nil, ProblemMagic, "Magic Verification failed"},
			{"plaintext", k.as, image(600), ProblemMagic, "Magic Verification failed"},
			{"magic", k.as, changed(3, 1), ProblemMagic, "cf b6 88 07"},
			{"cut in the header", k.as, good[:511], ProblemShort, "not completed successfully"},
			{"cut in the image", k.as, good[:len(good)-1], ProblemShort, "cut off"},
			{"header only", k.as, good[:512], ProblemShort, "Invalid operation"},
			{"longer", k.as, append(slices.Clone(good), 0), ProblemLong, "Invalid operation"},
			{"length", k.as, changed(offLength, 1), ProblemShort, "101"},
			{"no length", k.as, changed(offLength, 100), ProblemEmpty, "0 bytes"},
			{"tag", k.as, changed(offTag, 1), ProblemTag, "Invalid Auth"},
			{"IV", k.as, changed(offIV+15, 1), ProblemTag, "Invalid Auth"},
			{"first byte", k.as, changed(HeaderSize, 1), ProblemTag, "Invalid Auth"},
			{"last byte", k.as, changed(len(good)-1, 0x80), ProblemTag, "Invalid Auth"},
			{"wrapped key", k.as, changed(offBlock+1, 1), keyProblem, ""},
			{"somebody else", stranger, good, strangerProblem, ""},
		}
		if form == FormECIES {
			cases = append(cases, struct {
				name string
				as   Identity
				file []byte
				want Problem
				text string
			}{"salt", k.as, changed(offBlock+pointSize, 1), ProblemTag, "Invalid Auth"})
		}
		for _, tc := range cases {
			got, err := Open(tc.as, tc.file)
			var e *Error
			if !errors.As(err, &e) || e.Problem != tc.want || !strings.Contains(err.Error(), tc.text) || got != nil {
				t.Errorf("%s, %s: %v, want problem %s with %q", form, tc.name, err, tc.want, tc.text)
			}
		}
	}
	// The other form's file: the error says so.
	for form, k := range pairs {
		for otherForm, o := range pairs {
			if form == otherForm {
				continue
			}
			_, err := Open(k.as, must(Seal(o.to, image(64))))
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), string(otherForm)) {
				t.Errorf("a file of form %s for a key of %s: %v", otherForm, form, err)
			}
		}
	}
}

// The device does not look at reserved bytes, so they must not matter here.
func TestReservedBytes(t *testing.T) {
	for form, k := range both(t) {
		file := must(Seal(k.to, image(32)))
		file[offExtra], file[HeaderSize-1] = 1, 2
		if form == FormECIES {
			file[offIV-1] = 3
		}
		if got, err := Open(k.as, file); err != nil || !bytes.Equal(got, image(32)) {
			t.Errorf("%s: %v", form, err)
		}
	}
}

// The order of the curve (SEC 2, 2.4.2) and its neighbours.
func TestScalars(t *testing.T) {
	n := elliptic.P256().Params().N.FillBytes(make([]byte, 32))
	above, below := slices.Clone(n), slices.Clone(n)
	above[31]++
	below[31]--
	one := make([]byte, 32)
	one[31] = 1
	for name, tc := range map[string]struct {
		scalar []byte
		ok     bool
	}{
		"0": {make([]byte, 32), false}, "1": {one, true}, "n-1": {below, true}, "n": {n, false}, "n+1": {above, false},
		"2^256-1": {bytes.Repeat([]byte{0xFF}, 32), false},
	} {
		_, err := privateKey(tc.scalar)
		if tc.ok != (err == nil) || err != nil && !errors.Is(err, ErrUnusableKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 16, 31, 33, 64} {
		if _, err := PublicKey(make([]byte, n)); err == nil {
			t.Errorf("an HMAC key of %d bytes was taken", n)
		}
		if _, err := NewECIESIdentity(make([]byte, n)); err == nil {
			t.Errorf("an HMAC key of %d bytes was taken", n)
		}
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestKeyFiles(t *testing.T) {
	v := vendor(t)
	p256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	small := must(rsa.GenerateKey(rand.Reader, 2048))
	big, _ := pem.Decode([]byte(v.RSAPrivateKey))
	rsaKey := must(x509.ParsePKCS1PrivateKey(big.Bytes))

	for name, tc := range map[string]struct {
		text []byte
		want string // of the error; empty: it is taken
	}{
		"SPKI RSA":    {[]byte(v.RSAPublicKey), ""},
		"PKCS#1 RSA":  {pemOf("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), ""},
		"SPKI P-256":  {pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&p256.PublicKey))), ""},
		"SPKI P-384":  {pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&p384.PublicKey))), "P-256 keys"},
		"RSA-2048":    {pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&small.PublicKey))), "3072 bits, not 2048"},
		"private":     {[]byte(v.RSAPrivateKey), "-pubout"},
		"certificate": {pemOf("CERTIFICATE", []byte{0x30}), "CERTIFICATE"},
		"no PEM":      {[]byte("hello"), "no PEM"},
		"damaged":     {pemOf("PUBLIC KEY", []byte{0x30}), "does not parse"},
		"damaged RSA": {pemOf("RSA PUBLIC KEY", []byte{0x30}), "does not parse"},
		"odd":         {pemOf("SECRET WORDS", []byte{0x30}), "something else"},
	} {
		_, err := ParseRecipient(tc.text)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("public key, %s: %v, want %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error repeats the file: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		text []byte
		want string
	}{
		"PKCS#1 RSA":  {[]byte(v.RSAPrivateKey), ""},
		"PKCS#8 RSA":  {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey))), ""},
		"PKCS#8 EC":   {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(p256))), ""},
		"SEC 1 EC":    {pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(p256))), ""},
		"P-384":       {pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(p384))), "P-256 keys"},
		"RSA-2048":    {pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small)), "3072 bits, not 2048"},
		"public":      {[]byte(v.RSAPublicKey), "PUBLIC KEY"},
		"with a word": {pemOf("ENCRYPTED PRIVATE KEY", []byte{0x30}), "in the clear"},
		"no PEM":      {[]byte("hello"), "no PEM"},
		"damaged":     {pemOf("PRIVATE KEY", []byte{0x30}), "does not parse"},
	} {
		_, err := ParseIdentity(tc.text)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("private key, %s: %v, want %q", name, err, tc.want)
		}
	}
	// What a unit derives, as a PEM file: the vendor's tool opens with such a file.
	k := must(deviceKey(v.ECIES[0].HMACKey))
	unit := must(ParseIdentity(pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k)))))
	check(t, unit, v.ECIES[0].File, v.ECIES[0].Length, FormECIES)

	for _, xy := range [][]byte{nil, make([]byte, 63), make([]byte, 64), bytes.Repeat([]byte{0xFF}, 64)} {
		if _, err := NewECIESRecipient(xy); err == nil {
			t.Errorf("the public key %x was taken", xy)
		}
		if _, err := MarshalPublicKey(xy); err == nil {
			t.Errorf("the public key %x was taken", xy)
		}
	}
}

func TestNothingPrintsPrivateKeys(t *testing.T) {
	v := vendor(t)
	hmacKey := v.PublicKeys[0].HMACKey
	scalar := must(deviceKey(hmacKey)).Bytes()
	b, _ := pem.Decode([]byte(v.RSAPrivateKey))
	d := must(x509.ParsePKCS1PrivateKey(b.Bytes)).D
	needles := []string{
		hex.EncodeToString(scalar[:8]), strings.Trim(fmt.Sprint(scalar[:8]), "[]"),
		hex.EncodeToString(hmacKey[:8]), strings.Trim(fmt.Sprint(hmacKey[:8]), "[]"),
		d.String()[:20], d.Text(16)[:20],
	}
	for form, k := range both(t) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			for _, thing := range []any{k.as, &k.as, struct{ x any }{k.as}} {
				text := strings.ToLower(fmt.Sprintf(verb, thing))
				for _, n := range needles {
					if strings.Contains(text, n) {
						t.Errorf("%s: %s prints a private key", form, verb)
					}
				}
			}
		}
		if text, err := json.Marshal(struct{ X any }{k.as}); err == nil {
			for _, n := range needles {
				if bytes.Contains(text, []byte(n)) {
					t.Errorf("%s: JSON holds a private key", form)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	v := vendor(f)
	f.Add([]byte(v.ECIES[0].File))
	f.Add([]byte(v.RSA[0].File))
	f.Add(magic[:])
	f.Add([]byte{0xE9})
	pairs := both(f)
	f.Fuzz(func(t *testing.T, file []byte) {
		h, err := Parse(file)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Problem == "" || h != nil {
				t.Fatalf("the error is %v", err)
			}
			return
		}
		again := append(must(h.AppendBinary(nil)), file[HeaderSize:]...)
		if !bytes.Equal(again, file) {
			t.Fatalf("%x encodes again to %x", file, again)
		}
		if image, err := Open(pairs[h.Form()].as, file); err == nil && len(image) != int(h.Length) {
			t.Fatalf("%d bytes came out of a file that tells of %d", len(image), h.Length)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	img := image(1 << 20)
	for form, k := range both(b) {
		b.Run(string(form), func(b *testing.B) {
			b.SetBytes(int64(len(img)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Seal(k.to, img); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
