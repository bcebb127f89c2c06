package pkcs11key

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	for text, want := range map[string]URI{
		"pkcs11:object=sb?module-path=/usr/lib/p11.so": {Object: "sb", Module: "/usr/lib/p11.so"},
		"pkcs11:token=Secure%20Boot;serial=01;manufacturer=M;model=X;id=%01%00%FF;type=private?module-path=/m.so&pin-source=file:/etc/pin": {
			Token: "Secure Boot", Serial: "01", Manufacturer: "M", Model: "X", ID: "\x01\x00\xff", Module: "/m.so", PINSource: "/etc/pin",
		},
		"pkcs11:object=a%3Bb?pin-source=file:///run/pin&module-path=/m.so":          {Object: "a;b", Module: "/m.so", PINSource: "/run/pin"},
		"pkcs11:object=a?pin-source=credential:token.pin&module-path=relative/m.so": {Object: "a", Module: "relative/m.so", PINSource: "credential:token.pin"},
	} {
		u, err := ParseURI(text)
		if err != nil || u != want {
			t.Errorf("%s gives %+v, %v", text, u, err)
			continue
		}
		if again, err := ParseURI(u.String()); err != nil || again != u {
			t.Errorf("%s gives %s, and that %+v, %v", text, u, again, err)
		}
	}
	for text, want := range map[string]string{
		"object=a":                                             "begins with pkcs11:",
		"pkcs11:":                                              "names no key",
		"pkcs11:token=a?module-path=b":                         "names no key",
		"pkcs11:object=a":                                      "names no library",
		"pkcs11:object=a;object=b?module-path=m":               "object twice",
		"pkcs11:object?module-path=m":                          "no name=value",
		"pkcs11:object=?module-path=m":                         "no name=value",
		"pkcs11:object=%zz?module-path=m":                      "no name=value",
		"pkcs11:object=%00?module-path=m":                      "no name=value",
		"pkcs11:object=a;type=public?module-path=m":            "takes a private key",
		"pkcs11:object=a;slot-id=1?module-path=m":              "slot-id, which is not known",
		"pkcs11:object=a?module-path=m&pin-value=1234":         "write pin-source=FILE",
		"pkcs11:object=a?module-path=m&pin-source=file:":       "names no file",
		"pkcs11:object=a?module-path=m&pin-source=file:file:x": "names no file",
		"pkcs11:object=a;module-path=m":                        "module-path, which is not known",
	} {
		if _, err := ParseURI(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"pkcs11:object=a?module-path=m&pin-value=1234", "pkcs11:object=a?module-path=m&pin-value%=1234", "pkcs11:object=a?pin=1234%"} {
		if _, err := ParseURI(text); err == nil || strings.Contains(err.Error(), "1234") {
			t.Errorf("the PIN is in the error: %v", err)
		}
	}
}

func FuzzURI(f *testing.F) {
	f.Add("pkcs11:token=Secure%20Boot;serial=01;id=%01%00%FF;type=private?module-path=/m.so&pin-source=file:///etc/pin")
	f.Add("pkcs11:object=a?module-path=m&pin-value=1234")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			return
		}
		if again, err := ParseURI(u.String()); err != nil || again != u {
			t.Fatalf("%q gives %s, and that %+v, %v", text, u, again, err)
		}
	})
}
