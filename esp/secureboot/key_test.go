package secureboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/secureboot"
)

// RFC 6979, A.2.3: signatures on P-192.
func TestP192RFC6979(t *testing.T) {
	key := &secureboot.P192PublicKey{}
	copy(key.X[:], unhex(t, "AC2C77F529F91689FEA0EA5EFEC7F210D8EEA0B9E047ED56"))
	copy(key.Y[:], unhex(t, "3BC723E57670BD4887EBC732C523063D0A7C957BC97C1C43"))
	d := new(big.Int).SetBytes(unhex(t, "6FAB034934E4C0FC9AE67F5B5659A9D7D1FEFD187EE09FD4"))
	if *secureboot.P192Base(d) != *key {
		t.Error("the private key gives another public key")
	}
	sha256sum := func(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }
	sha512sum := func(s string) []byte { h := sha512.Sum512([]byte(s)); return h[:] }
	for _, c := range []struct {
		digest []byte
		r, s   string
	}{
		{sha256sum("sample"), "4B0B8CE98A92866A2820E20AA6B75B56382E0F9BFD5ECB55", "CCDB006926EA9565CBADC840829D8C384E06DE1F1E381B85"},
		{sha512sum("sample"), "4D60C5AB1996BD848343B31C00850205E2EA6922DAC2E4B8", "3F6E837448F027A1BF4B34E796E32A811CBB4050908D8F67"},
		{sha256sum("test"), "3A718BD8B4926C3B52EE6BBE67EF79B18CB6EB62B1AD97AE", "5662E6848A4A19B1F1AE2F72ACD4B8BBE50F1EAC65D9124F"},
	} {
		r, s := new(big.Int).SetBytes(unhex(t, c.r)), new(big.Int).SetBytes(unhex(t, c.s))
		if !secureboot.P192Verify(key, c.digest, r, s) {
			t.Errorf("r = %s does not verify", c.r)
		}
		if secureboot.P192Verify(key, c.digest, s, r) || secureboot.P192Verify(key, sha256sum("other"), r, s) {
			t.Errorf("r = %s: something else verifies", c.r)
		}
	}
}

// The group's corners: infinity, doubling, and opposite points.
func TestP192Group(t *testing.T) {
	zero := &secureboot.P192PublicKey{}
	one := secureboot.P192Base(big.NewInt(1))
	if got := secureboot.P192Base(p192n); *got != *zero {
		t.Errorf("n times the generator is %x", got.X)
	}
	if got := secureboot.P192Base(new(big.Int).Add(p192n, big.NewInt(1))); *got != *one {
		t.Errorf("n+1 times the generator is %x", got.X)
	}
	minus := secureboot.P192Base(new(big.Int).Sub(p192n, big.NewInt(1)))
	if minus.X != one.X || minus.Y == one.Y {
		t.Error("n-1 times the generator is not its opposite")
	}
	// A signature whose two parts cancel out: u·G + v·Q is infinity. With Q = -G,
	// r = s = z: u = 1, v = 1.
	digest := bytes.Repeat([]byte{1}, 32)
	z := new(big.Int).SetBytes(digest[:24])
	if secureboot.P192Verify(minus, digest, z, z) {
		t.Error("the point at infinity verifies")
	}
}

func TestParseSigner(t *testing.T) {
	encode := func(kind string, der []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	pkcs8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		return encode("PRIVATE KEY", der, err)
	}
	sec1 := func(k *ecdsa.PrivateKey) []byte {
		der, err := x509.MarshalECPrivateKey(k)
		return encode("EC PRIVATE KEY", der, err)
	}
	rsaKey, p256, p384 := keys()["rsa3072"].(*rsa.PrivateKey), keys()["ecdsa256"].(*ecdsa.PrivateKey), keys()["ecdsa384"].(*ecdsa.PrivateKey)
	params := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	for name, text := range map[string][]byte{
		"RSA PKCS #8":             pkcs8(rsaKey),
		"RSA PKCS #1":             encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil),
		"P-256 PKCS #8":           pkcs8(p256),
		"P-256 SEC 1":             sec1(p256),
		"P-256 SEC 1, parameters": append(params, sec1(p256)...),
		"P-384 SEC 1":             sec1(p384),
	} {
		s, err := secureboot.ParseSigner(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := secureboot.Sign(context.Background(), read(t, "image.bin"), secureboot.Options{}, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		noBytes(t, name, s, keyNumbers(rsaKey, p256, p384))
	}

	// A P-192 key, in both forms.
	oid192 := asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}
	inner, err := asn1.Marshal(struct {
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	}{1, bytes.Repeat([]byte{7}, 24), oid192})
	if err != nil {
		t.Fatal(err)
	}
	type algorithm struct{ Algorithm, Curve asn1.ObjectIdentifier }
	outer, err := asn1.Marshal(struct {
		Version   int
		Algorithm algorithm
		Key       []byte
	}{0, algorithm{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, oid192}, inner})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"empty":          {nil, "no key in PEM"},
		"public":         {read(t, "rsa3072.pub.pem"), "is a public key"},
		"certificate":    {encode("CERTIFICATE", []byte("x"), nil), "no private key"},
		"encrypted":      {encode("ENCRYPTED PRIVATE KEY", []byte("x"), nil), "encrypted with a password"},
		"encrypted, old": {[]byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), "encrypted with a password"},
		"noise":          {encode("PRIVATE KEY", []byte("secret noise"), nil), "no private key that can be read"},
		"RSA-2048":       {pkcs8(keys()["rsa2048"]), "2048 bits"},
		"P-521":          {pkcs8(keys()["ecdsa521"]), "P-256"},
		"two keys":       {append(pkcs8(rsaKey), pkcs8(p256)...), "more than one"},
		"P-192 SEC 1":    {encode("EC PRIVATE KEY", inner, nil), "P-192 private key"},
		"P-192 PKCS #8":  {encode("PRIVATE KEY", outer, nil), "P-192 private key"},
	} {
		s, err := secureboot.ParseSigner(c.text)
		if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// keyNumbers are the private numbers of the keys, in decimal and in hex.
func keyNumbers(r *rsa.PrivateKey, ec ...*ecdsa.PrivateKey) []string {
	numbers := []*big.Int{r.D, r.Primes[0], r.Primes[1]}
	for _, k := range ec {
		b, _ := k.Bytes()
		numbers = append(numbers, new(big.Int).SetBytes(b))
	}
	var text []string
	for _, n := range numbers {
		text = append(text, n.String(), n.Text(16), fmt.Sprintf("%X", n))
	}
	return text
}

func noBytes(t *testing.T, name string, s crypto.Signer, numbers []string) {
	t.Helper()
	type box struct{ s crypto.Signer }
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%q", "%d"} {
		for _, v := range []any{s, box{s}, &box{s}, []crypto.Signer{s}} {
			out := fmt.Sprintf(verb, v)
			for _, n := range numbers {
				if strings.Contains(out, n[:16]) {
					t.Errorf("%s: %s prints the key", name, verb)
				}
			}
		}
	}
}
