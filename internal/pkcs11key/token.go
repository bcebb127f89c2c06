//go:build pkcs11 && cgo

package pkcs11key

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/provisiond/provisiond/esp/secureboot"
)

// Built says whether this build can use tokens.
const Built = true

// Key is a private key in a token. It is a crypto.Signer, for one goroutine at a
// time or for several that wait for each other.
type Key struct {
	module  *module
	session pkcs11.SessionHandle
	object  pkcs11.ObjectHandle
	public  crypto.PublicKey
	name    string
	again   func() error // logs in for one signature, if the key asks for that
	mu      sync.Mutex
}

var _ crypto.Signer = (*Key)(nil)

// modules are the libraries that are loaded, by path: a process may initialise
// each of them once.
var modules struct {
	sync.Mutex
	open map[string]*module
}

type module struct {
	*pkcs11.Ctx
	path  string
	users int
}

func load(path string) (*module, error) {
	modules.Lock()
	defer modules.Unlock()
	if m := modules.open[path]; m != nil {
		m.users++
		return m, nil
	}
	c := pkcs11.New(path)
	if c == nil {
		return nil, fmt.Errorf("%s is no PKCS #11 library, or is not there: check module-path", path)
	}
	if err := c.Initialize(); err != nil {
		c.Destroy()
		return nil, fmt.Errorf("%s: initialise: %w", path, err)
	}
	m := &module{c, path, 1}
	if modules.open == nil {
		modules.open = map[string]*module{}
	}
	modules.open[path] = m
	return m, nil
}

func (m *module) release() error {
	modules.Lock()
	defer modules.Unlock()
	if m.users--; m.users > 0 {
		return nil
	}
	delete(modules.open, m.path)
	err := m.Finalize()
	m.Destroy()
	return err
}

// Open finds the key. readPIN reads the file that the URI's pin-source names; a
// newline at its end is not part of the PIN. Without a pin-source there is no
// login, which few tokens allow.
func Open(u URI, readPIN func(name string) ([]byte, error)) (*Key, error) {
	pin, err := pinOf(u, readPIN)
	if err != nil {
		return nil, err
	}
	m, err := load(u.Module)
	if err != nil {
		return nil, err
	}
	k, err := open(m, u, pin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", u, err), m.release())
	}
	return k, nil
}

// pinOf gives a function, so that no verb prints the PIN; nil: there is none.
func pinOf(u URI, readPIN func(name string) ([]byte, error)) (func() string, error) {
	if u.PINSource == "" {
		return nil, nil
	}
	b, err := readPIN(u.PINSource)
	if err != nil {
		return nil, fmt.Errorf("pin-source: %w", err)
	}
	pin := strings.TrimRight(string(b), "\r\n") // the library takes a string
	clear(b)
	if pin == "" {
		return nil, fmt.Errorf("pin-source: %s is empty", u.PINSource)
	}
	return func() string { return pin }, nil
}

func open(m *module, u URI, pin func() string) (*Key, error) {
	slot, err := findToken(m, u)
	if err != nil {
		return nil, err
	}
	session, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	k := &Key{module: m, session: session, name: u.String()}
	if err := k.find(u, pin); err != nil {
		return nil, errors.Join(err, m.CloseSession(session))
	}
	return k, nil
}

func findToken(m *module, u URI) (uint, error) {
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list the tokens: %w", err)
	}
	var found []uint
	var labels []string
	for _, slot := range slots {
		info, err := m.GetTokenInfo(slot)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // nobody's token, or one that was just pulled
		}
		labels = append(labels, fmt.Sprintf("%q", info.Label))
		fits := true
		for _, a := range [][2]string{{u.Token, info.Label}, {u.Serial, info.SerialNumber}, {u.Manufacturer, info.ManufacturerID}, {u.Model, info.Model}} {
			fits = fits && (a[0] == "" || a[0] == strings.TrimRight(a[1], " \x00"))
		}
		if fits {
			found = append(found, slot)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, fmt.Errorf("no token fits; there are %d: %s", len(labels), strings.Join(labels, ", "))
	}
	return 0, fmt.Errorf("%d tokens fit: name one by token=LABEL or serial=NUMBER; there are %s", len(found), strings.Join(labels, ", "))
}

// find logs in and finds the key and its public half.
func (k *Key) find(u URI, pin func() string) error {
	m := k.module
	if pin != nil {
		err := m.Login(k.session, pkcs11.CKU_USER, pin())
		if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
			return fmt.Errorf("log in with the PIN of %s: %w: tokens lock after a few wrong ones", u.PINSource, err)
		}
	}
	objects, err := k.objects(pkcs11.CKO_PRIVATE_KEY, []byte(u.Object), []byte(u.ID))
	switch {
	case err != nil:
		return fmt.Errorf("look for the key: %w", err)
	case len(objects) == 0 && pin == nil:
		return errors.New("the token shows no such private key without a login: add pin-source=FILE")
	case len(objects) == 0:
		return errors.New("the token has no such private key")
	case len(objects) > 1:
		return errors.New("more than one private key fits: name it by id=%XX")
	}
	k.object = objects[0]
	if k.public, err = k.publicKey(); err != nil {
		return err
	}
	a, err := m.GetAttributeValue(k.session, k.object, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_AUTHENTICATE, nil)})
	if err == nil && len(a) == 1 && len(a[0].Value) == 1 && a[0].Value[0] != 0 {
		if pin == nil {
			return errors.New("the key asks for the PIN at each signature: add pin-source=FILE")
		}
		k.again = func() error { return m.Login(k.session, pkcs11.CKU_CONTEXT_SPECIFIC, pin()) }
	}
	return nil
}

// objects finds at most two objects of a class.
func (k *Key) objects(class uint, label, id []byte) (found []pkcs11.ObjectHandle, err error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if len(label) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if len(id) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	if err := k.module.FindObjectsInit(k.session, template); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.module.FindObjectsFinal(k.session)) }()
	for len(found) < 2 {
		more, _, err := k.module.FindObjects(k.session, 2-len(found))
		if err != nil || len(more) == 0 {
			return found, err
		}
		found = append(found, more...)
	}
	return found, nil
}

func (k *Key) attributes(o pkcs11.ObjectHandle, types ...uint) ([][]byte, error) {
	var template []*pkcs11.Attribute
	for _, t := range types {
		template = append(template, pkcs11.NewAttribute(t, nil))
	}
	got, err := k.module.GetAttributeValue(k.session, o, template)
	if err != nil {
		return nil, err
	}
	values := make([][]byte, len(types))
	for i := range got {
		values[i] = got[i].Value
	}
	return values, nil
}

// publicKey reads the public key object that goes with the private one: PKCS #11
// lets both have the same CKA_ID.
func (k *Key) publicKey() (crypto.PublicKey, error) {
	a, err := k.attributes(k.object, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ID, pkcs11.CKA_LABEL)
	if err != nil {
		return nil, fmt.Errorf("read the key's type: %w", err)
	}
	kind, id, label := a[0], a[1], a[2]
	if len(id) > 0 {
		label = nil
	}
	objects, err := k.objects(pkcs11.CKO_PUBLIC_KEY, label, id)
	if err != nil || len(objects) != 1 {
		return nil, errors.Join(fmt.Errorf("the token has %d public keys of the private key's id, not one: store the public key beside it", len(objects)), err)
	}
	switch {
	case isUint(kind, pkcs11.CKK_RSA):
		a, err := k.attributes(objects[0], pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, fmt.Errorf("read the public key: %w", err)
		}
		e := new(big.Int).SetBytes(a[1])
		if e.BitLen() > 31 {
			return nil, errors.New("the public exponent has more than 31 bits")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(a[0]), E: int(e.Int64())}, nil
	case isUint(kind, pkcs11.CKK_EC):
		a, err := k.attributes(objects[0], pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, fmt.Errorf("read the public key: %w", err)
		}
		return ecPublicKey(a[0], a[1])
	}
	return nil, errors.New("the key is neither RSA nor ECDSA")
}

func isUint(b []byte, v uint) bool { return bytes.Equal(b, pkcs11.NewAttribute(0, v).Value) }

// Curves by the name that CKA_EC_PARAMS has.
var (
	oidP192 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}
	oidP256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384 = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
)

// ecPublicKey reads a point, which is an OCTET STRING in DER; some tokens leave
// the wrapping out.
func ecPublicKey(params, point []byte) (crypto.PublicKey, error) {
	var curve asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(params, &curve); err != nil || len(rest) != 0 {
		return nil, errors.New("the key's curve is not a named one: P-192, P-256 and P-384 are known")
	}
	var raw []byte
	if rest, err := asn1.Unmarshal(point, &raw); err == nil && len(rest) == 0 {
		point = raw
	}
	switch {
	case curve.Equal(oidP256):
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	case curve.Equal(oidP384):
		return ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	case curve.Equal(oidP192) && len(point) == 49 && point[0] == 4:
		return &secureboot.P192PublicKey{X: [24]byte(point[1:25]), Y: [24]byte(point[25:])}, nil
	}
	return nil, errors.New("the key's curve is not P-192, P-256 or P-384, or its point is compressed")
}

// Public is crypto.Signer's.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs a digest: RSA with *rsa.PSSOptions and a salt of a given length,
// ECDSA in ASN.1.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.module == nil {
		return nil, fmt.Errorf("%s: the session was closed", k.name)
	}
	sig, err := k.sign(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.name, err)
	}
	return sig, nil
}

func (k *Key) sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	mechanism, err := k.mechanism(digest, opts)
	if err != nil {
		return nil, err
	}
	size := k.curveBytes()
	if size > 0 {
		digest = digest[:min(len(digest), size)] // what ECDSA uses of it; some tokens take no more
	}
	if err := k.module.SignInit(k.session, []*pkcs11.Mechanism{mechanism}, k.object); err != nil {
		return nil, fmt.Errorf("begin to sign: %w", err)
	}
	if k.again != nil {
		if err := k.again(); err != nil {
			return nil, fmt.Errorf("log in for this signature: %w", err)
		}
	}
	sig, err := k.module.Sign(k.session, digest)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if size == 0 {
		return sig, nil
	}
	if len(sig) != 2*size {
		return nil, fmt.Errorf("the token gave a signature of %d bytes, not %d", len(sig), 2*size)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])})
}

// curveBytes is the length of r and of s; 0 for RSA.
func (k *Key) curveBytes() int {
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return (p.Params().BitSize + 7) / 8
	case *secureboot.P192PublicKey:
		return len(p.X)
	}
	return 0
}

func (k *Key) mechanism(digest []byte, opts crypto.SignerOpts) (*pkcs11.Mechanism, error) {
	hash, ok := map[crypto.Hash][2]uint{
		crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
		crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	}[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, errors.New("it signs digests of SHA-256 and SHA-384")
	}
	if k.curveBytes() > 0 {
		return pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), nil
	}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok {
		return nil, errors.New("RSA signs with PSS")
	}
	salt := pss.SaltLength
	if salt == rsa.PSSSaltLengthEqualsHash {
		salt = pss.Hash.Size()
	}
	if salt <= 0 {
		return nil, errors.New("RSA-PSS needs the length of its salt")
	}
	return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(hash[0], hash[1], uint(salt))), nil
}

// Close ends the session with the token.
func (k *Key) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.module == nil {
		return nil
	}
	err := errors.Join(k.module.CloseSession(k.session), k.module.release())
	k.module = nil
	return err
}
