package encimg

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"unsafe"
)

// HMACKeySize is the length of an HMAC_UP key block, in bytes.
const HMACKeySize = 32

// What the component fixes for the ECIES form (src/esp_encrypted_img.c and
// private_include/esp_encrypted_img_priv.h).
const (
	pbkdf2Iterations = 2048
	hkdfInfo         = "_esp_enc_img_ecc"
)

var pbkdf2Salt = [32]byte{
	0x0e, 0x21, 0x60, 0x64, 0x2d, 0xae, 0x76, 0xd3, 0x34, 0x48, 0xe4, 0x3d, 0x77, 0x20, 0x12, 0x3d,
	0x9f, 0x3b, 0x1e, 0xce, 0xb8, 0x8e, 0x57, 0x3a, 0x4e, 0x8f, 0x7f, 0xb9, 0x4f, 0xf0, 0xc8, 0x69,
}

// PublicKey gives X and Y, big-endian, of the public key of a unit that has this
// key in an eFuse block of the purpose HMAC_UP. The key is in the order of its
// file, which is also that of the eFuse block (esp-facts B.9).
func PublicKey(hmacKey []byte) ([pointSize]byte, error) {
	k, err := deviceKey(hmacKey)
	if err != nil {
		return [pointSize]byte{}, err
	}
	return [pointSize]byte(k.PublicKey().Bytes()[1:]), nil // behind the 0x04 of an uncompressed point
}

// deviceKey derives what the unit derives, with its HMAC peripheral: PBKDF2 with
// the eFuse key as the password. The number is taken as it is, not modulo the order.
func deviceKey(hmacKey []byte) (*ecdh.PrivateKey, error) {
	if len(hmacKey) != HMACKeySize {
		return nil, fmt.Errorf("encimg: an HMAC key has %d bytes, not %d", HMACKeySize, len(hmacKey))
	}
	// A string of its own could not be wiped.
	password := unsafe.String(&hmacKey[0], len(hmacKey)) //nolint:gosec // it does not outlive the call
	scalar, err := pbkdf2.Key(sha256.New, password, pbkdf2Salt[:], pbkdf2Iterations, 32)
	if err != nil {
		return nil, fmt.Errorf("encimg: derive the unit's key: %w", err)
	}
	defer clear(scalar)
	return privateKey(scalar)
}

func privateKey(scalar []byte) (*ecdh.PrivateKey, error) {
	k, err := ecdh.P256().NewPrivateKey(scalar)
	if err != nil {
		return nil, ErrUnusableKey
	}
	return k, nil
}

// MarshalPublicKey gives a unit's public key as a PEM file, which
// esp_enc_img_gen.py takes too.
func MarshalPublicKey(xy []byte) ([]byte, error) {
	k, err := publicKey(xy)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

func publicKey(xy []byte) (*ecdh.PublicKey, error) {
	if len(xy) != pointSize {
		return nil, fmt.Errorf("encimg: a unit's public key has %d bytes, X and Y, not %d", pointSize, len(xy))
	}
	k, err := ecdh.P256().NewPublicKey(append([]byte{4}, xy...))
	if err != nil {
		return nil, errors.New("encimg: the public key is not a point of P-256")
	}
	return k, nil
}

// eciesRecipient is one unit.
type eciesRecipient struct{ device *ecdh.PublicKey }

// NewECIESRecipient takes a unit's public key: X and Y, big-endian.
func NewECIESRecipient(xy []byte) (Recipient, error) {
	k, err := publicKey(xy)
	if err != nil {
		return nil, err
	}
	return eciesRecipient{k}, nil
}

func (eciesRecipient) Form() Form { return FormECIES }

func (r eciesRecipient) wrap() (block [blockSize]byte, key [keySize]byte, err error) {
	server, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return block, key, fmt.Errorf("encimg: make a key: %w", err)
	}
	var salt [saltSize]byte
	_, _ = rand.Read(salt[:]) // never fails
	return r.wrapWith(server, salt[:])
}

// wrapWith takes what wrap draws.
func (r eciesRecipient) wrapWith(server *ecdh.PrivateKey, salt []byte) (block [blockSize]byte, key [keySize]byte, err error) {
	copy(block[:pointSize], server.PublicKey().Bytes()[1:])
	copy(block[pointSize:], salt)
	key, err = agree(server, r.device, salt)
	return block, key, err
}

// agree gives the AES key: HKDF-SHA256 of the X that both sides reach.
func agree(private *ecdh.PrivateKey, public *ecdh.PublicKey, salt []byte) (key [keySize]byte, err error) {
	shared, err := private.ECDH(public)
	if err != nil {
		return key, fmt.Errorf("encimg: key agreement: %w", err)
	}
	defer clear(shared)
	okm, err := hkdf.Key(sha256.New, shared, salt, hkdfInfo, keySize)
	if err != nil {
		return key, fmt.Errorf("encimg: derive the AES key: %w", err)
	}
	defer clear(okm)
	return [keySize]byte(okm), nil
}

// eciesIdentity does what a unit does.
type eciesIdentity struct{ key func() *ecdh.PrivateKey }

// NewECIESIdentity opens as the unit does that has this key in an eFuse block of
// the purpose HMAC_UP. The key is not kept; what is derived from it is.
func NewECIESIdentity(hmacKey []byte) (Identity, error) {
	k, err := deviceKey(hmacKey)
	if err != nil {
		return nil, err
	}
	return eciesIdentity{func() *ecdh.PrivateKey { return k }}, nil
}

func (eciesIdentity) Form() Form { return FormECIES }

func (i eciesIdentity) unwrap(block *[blockSize]byte) ([keySize]byte, error) {
	server, err := publicKey(block[:pointSize])
	if err != nil {
		return [keySize]byte{}, &Error{
			Problem: ProblemPoint, Device: "Failed to get server public point",
			Detail: "the server's public key in the header is not a point of P-256",
		}
	}
	return agree(i.key(), server, block[pointSize:pointSize+saltSize])
}

// rsaRecipient is all who have one private key.
type rsaRecipient struct{ key *rsa.PublicKey }

const rsaBits = 8 * blockSize

// NewRSARecipient takes a public key of 3072 bits.
func NewRSARecipient(key *rsa.PublicKey) (Recipient, error) {
	if n := key.N.BitLen(); n != rsaBits {
		return nil, fmt.Errorf("encimg: the format takes RSA keys of %d bits, not %d", rsaBits, n)
	}
	return rsaRecipient{key}, nil
}

func (rsaRecipient) Form() Form { return FormRSA }

func (r rsaRecipient) wrap() (block [blockSize]byte, key [keySize]byte, err error) {
	_, _ = rand.Read(key[:]) // never fails
	//nolint:staticcheck // PKCS#1 v1.5 is what the format demands and the device opens; see the package's comment
	b, err := rsa.EncryptPKCS1v15(rand.Reader, r.key, key[:])
	if err != nil {
		return block, key, fmt.Errorf("encimg: wrap the AES key: %w", err)
	}
	return [blockSize]byte(b), key, nil
}

type rsaIdentity struct{ key func() *rsa.PrivateKey }

// NewRSAIdentity takes a private key of 3072 bits.
func NewRSAIdentity(key *rsa.PrivateKey) (Identity, error) {
	if _, err := NewRSARecipient(&key.PublicKey); err != nil {
		return nil, err
	}
	return rsaIdentity{func() *rsa.PrivateKey { return key }}, nil
}

func (rsaIdentity) Form() Form { return FormRSA }

func (i rsaIdentity) unwrap(block *[blockSize]byte) (key [keySize]byte, err error) {
	//nolint:staticcheck // PKCS#1 v1.5 is what the format demands; see the package's comment
	b, err := rsa.DecryptPKCS1v15(nil, i.key(), block[:])
	defer clear(b)
	if err != nil || len(b) != keySize {
		return key, &Error{
			Problem: ProblemKey, Device: "Unable to decipher GCM key",
			Detail: "this private key does not open the AES key in the header",
		}
	}
	return [keySize]byte(b), nil
}

// ParseRecipient reads a public key in PEM: RSA of 3072 bits, or a unit's P-256 key.
// Private keys are refused: who encrypts needs none.
func ParseRecipient(text []byte) (Recipient, error) {
	b, _ := pem.Decode(text)
	switch {
	case b == nil:
		return nil, errors.New("encimg: this is no PEM file: it has no BEGIN PUBLIC KEY")
	case b.Type == "RSA PUBLIC KEY":
		k, err := x509.ParsePKCS1PublicKey(b.Bytes)
		if err != nil {
			return nil, errors.New("encimg: the RSA public key does not parse")
		}
		return NewRSARecipient(k)
	case b.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("encimg: a PEM file with %s is no public key: `openssl pkey -in KEY -pubout` writes it", kind(b))
	}
	k, err := x509.ParsePKIXPublicKey(b.Bytes)
	if err != nil {
		return nil, errors.New("encimg: the public key does not parse")
	}
	switch k := k.(type) {
	case *rsa.PublicKey:
		return NewRSARecipient(k)
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			p, err := k.ECDH()
			if err != nil {
				return nil, errors.New("encimg: the public key is not a point of P-256")
			}
			return eciesRecipient{p}, nil
		}
	}
	return nil, errors.New("encimg: the format takes RSA keys of 3072 bits and P-256 keys")
}

// ParseIdentity reads a private key in PEM: RSA of 3072 bits, or the P-256 key that
// a unit derives. Errors hold nothing of it.
func ParseIdentity(text []byte) (Identity, error) {
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("encimg: this is no PEM file with a private key")
	}
	defer clear(b.Bytes)
	var k any
	var err error
	switch b.Type {
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("encimg: a PEM file with %s is no private key in the clear", kind(b))
	}
	if err != nil {
		return nil, errors.New("encimg: the private key does not parse")
	}
	switch k := k.(type) {
	case *rsa.PrivateKey:
		return NewRSAIdentity(k)
	case *ecdsa.PrivateKey:
		if p, err := k.ECDH(); err == nil && p.Curve() == ecdh.P256() {
			return eciesIdentity{func() *ecdh.PrivateKey { return p }}, nil
		}
	}
	return nil, errors.New("encimg: the format takes RSA keys of 3072 bits and P-256 keys")
}

// kind names what a PEM block says it is, as long as it is one of the usual names:
// an error repeats nothing else of a file that may be a key.
func kind(b *pem.Block) string {
	switch b.Type {
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		return "a private key (" + b.Type + ")"
	case "PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE":
		return "a " + b.Type
	}
	return "something else"
}
