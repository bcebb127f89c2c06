//go:build pkcs11 && cgo

package pkcs11test

import (
	"encoding/asn1"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

// HSM is a token of SoftHSM with a life of one test.
type HSM struct {
	Module string // the library
	PIN    string
	Token  string
}

// libraries are where Debian and others have SoftHSM's module.
var libraries = []string{
	"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so",
}

// New makes a token. Without softhsm2 the test is skipped; with CI set it fails.
// It sets SOFTHSM2_CONF, so tests that use it are not parallel.
func New(t *testing.T, token string) *HSM {
	t.Helper()
	h := &HSM{PIN: "739154", Token: token}
	for _, l := range libraries {
		if _, err := os.Stat(l); err == nil {
			h.Module = l
			break
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || h.Module == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("softhsm2 is not installed: apt-get install softhsm2")
		}
		t.Skip("needs softhsm2: apt-get install softhsm2")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	cmd := exec.CommandContext(t.Context(), util, "--init-token", "--free", "--label", token, "--pin", h.PIN, "--so-pin", "12345678")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
	return h
}

// Curves of NIST.
var (
	P192 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}
	P256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	P384 = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
)

// Kind says what is special about a key.
type Kind int

// Kinds of keys.
const (
	AlwaysAuthenticate Kind = iota + 1 // asks for the PIN at each signature
	PrivateOnly                        // has no public key object
)

// RSA makes a key of so many bits.
func (h *HSM) RSA(t *testing.T, label string, id byte, bits int, kinds ...Kind) {
	t.Helper()
	h.generate(t, label, id, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
	}, kinds)
}

// EC makes a key on a curve.
func (h *HSM) EC(t *testing.T, label string, id byte, curve asn1.ObjectIdentifier, kinds ...Kind) {
	t.Helper()
	params, err := asn1.Marshal(curve)
	if err != nil {
		t.Fatal(err)
	}
	h.generate(t, label, id, pkcs11.CKM_EC_KEY_PAIR_GEN, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params)}, kinds)
}

func (h *HSM) generate(t *testing.T, label string, id byte, mechanism uint, public []*pkcs11.Attribute, kinds []Kind) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := pkcs11.New(h.Module)
	if c == nil {
		t.Fatalf("%s cannot be loaded", h.Module)
	}
	defer c.Destroy()
	must(c.Initialize())
	defer func() { _ = c.Finalize() }()
	slots, err := c.GetSlotList(true)
	must(err)
	session, err := c.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(err)
	must(c.Login(session, pkcs11.CKU_USER, h.PIN))
	both := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{id}),
	}
	public = append(public, both...)
	public = append(public, pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true))
	private := append(both[:3:3], pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true))
	only := false
	for _, k := range kinds {
		switch k {
		case AlwaysAuthenticate:
			private = append(private, pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, true))
		case PrivateOnly:
			only = true
		}
	}
	object, _, err := c.GenerateKeyPair(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, public, private)
	must(err)
	if only {
		must(c.DestroyObject(session, object))
	}
}
