package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/provisiond/provisiond/esp/chip"
)

// PublicKey is a public key that Secure Boot V2 can verify with.
type PublicKey struct {
	scheme chip.SignatureScheme
	pub    crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or *P192PublicKey
	id     []byte           // as in a block: what the digest covers
}

// NewPublicKey takes the public key of a signer: *rsa.PublicKey of 3072 bits,
// *ecdsa.PublicKey on P-256 or P-384, or *P192PublicKey.
func NewPublicKey(pub crypto.PublicKey) (PublicKey, error) {
	switch p := pub.(type) {
	case *rsa.PublicKey:
		return newRSA(p)
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			return PublicKey{}, errors.New("the point is not on its curve, or its curve is not P-256 or P-384")
		}
		switch p.Curve {
		case elliptic.P256():
			return newEC(chip.SignECDSA256, p, point[1:]), nil
		case elliptic.P384():
			return newEC(chip.SignECDSA384, p, point[1:]), nil
		}
		return PublicKey{}, fmt.Errorf("an ECDSA key on %s: Secure Boot V2 knows P-192, P-256 and P-384", p.Params().Name)
	case *P192PublicKey:
		if !p.onCurve() {
			return PublicKey{}, errors.New("the point is not on P-192")
		}
		return newEC(chip.SignECDSA192, p, append(bytes.Clone(p.X[:]), p.Y[:]...)), nil
	}
	return PublicKey{}, fmt.Errorf("a key of type %T: Secure Boot V2 knows RSA-3072 and ECDSA on P-192, P-256 and P-384", pub)
}

// rsaBits is the only length of an RSA key.
const rsaBits = 3072

func newRSA(p *rsa.PublicKey) (PublicKey, error) {
	if p.N == nil || p.N.BitLen() != rsaBits {
		n := 0
		if p.N != nil {
			n = p.N.BitLen()
		}
		return PublicKey{}, fmt.Errorf("an RSA key of %d bits: Secure Boot V2 takes 3072 only", n)
	}
	if p.N.Bit(0) == 0 {
		return PublicKey{}, errors.New("the modulus is even: this is no RSA key")
	}
	if p.E < 3 || p.E&1 == 0 || p.E > 1<<31-1 {
		return PublicKey{}, errors.New("the exponent is not an odd number in 3 to 2^31-1: this is no usual RSA key")
	}
	// What the RSA hardware needs for Montgomery multiplication.
	r := new(big.Int).Lsh(big.NewInt(1), 2*rsaBits)
	r.Mod(r, p.N)
	word := new(big.Int).Lsh(big.NewInt(1), 32)
	m := new(big.Int).ModInverse(p.N, word)
	m.Sub(word, m)

	const size = rsaBits / 8
	id := reversed(p.N.FillBytes(make([]byte, size)))
	id = binary.LittleEndian.AppendUint32(id, uint32(p.E))
	id = append(id, reversed(r.FillBytes(make([]byte, size)))...)
	id = binary.LittleEndian.AppendUint32(id, uint32(m.Uint64()))
	return PublicKey{chip.SignRSA3072, p, id}, nil
}

// newEC takes X and Y, big-endian.
func newEC(scheme chip.SignatureScheme, pub crypto.PublicKey, xy []byte) PublicKey {
	l := layouts[scheme]
	id := make([]byte, l.keyLen)
	id[0] = l.curve
	copy(id[1:], reversed(xy[:l.number]))
	copy(id[1+l.number:], reversed(xy[l.number:]))
	return PublicKey{scheme, pub, id}
}

// keyField is where in the key's bytes of a block something is wrong.
type keyField struct {
	off  int
	name string
}

// parseKey reads the key's bytes of a block.
func parseKey(scheme chip.SignatureScheme, id []byte) (PublicKey, keyField, error) {
	l := layouts[scheme]
	var key PublicKey
	var err error
	if scheme == chip.SignRSA3072 {
		e := binary.LittleEndian.Uint32(id[l.number:])
		if e > 1<<31-1 {
			return PublicKey{}, keyField{l.number, "exponent"}, errors.New("it is above 2^31-1: this is no usual RSA key")
		}
		key, err = newRSA(&rsa.PublicKey{N: new(big.Int).SetBytes(reversed(id[:l.number])), E: int(e)})
		if err != nil {
			return PublicKey{}, keyField{0, "RSA key"}, err
		}
		r, m := l.number+4, 2*l.number+4
		if !bytes.Equal(id[r:m], key.id[r:m]) {
			return PublicKey{}, keyField{r, "R"}, errors.New("it is not 2^6144 mod n: the chip would compute nonsense; sign the image again")
		}
		if !bytes.Equal(id[m:], key.id[m:]) {
			return PublicKey{}, keyField{m, "M'"}, errors.New("it is not -1/n mod 2^32: the chip would compute nonsense; sign the image again")
		}
		return key, keyField{}, nil
	}
	x, y := reversed(id[1:1+l.number]), reversed(id[1+l.number:1+2*l.number])
	at := keyField{1, "public key"}
	if scheme == chip.SignECDSA192 {
		key, err = NewPublicKey(&P192PublicKey{X: [24]byte(x), Y: [24]byte(y)})
	} else {
		curve := elliptic.P256()
		if scheme == chip.SignECDSA384 {
			curve = elliptic.P384()
		}
		var p *ecdsa.PublicKey
		if p, err = ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...)); err == nil {
			key, err = NewPublicKey(p)
		}
	}
	if err != nil {
		return PublicKey{}, at, errors.New("the point is not on the curve")
	}
	for i, v := range id {
		if v != key.id[i] {
			return PublicKey{}, keyField{i, "padding"}, fmt.Errorf("0x%02x should be 0", v)
		}
	}
	return key, keyField{}, nil
}

// Scheme is the key's signature scheme.
func (k PublicKey) Scheme() chip.SignatureScheme { return k.scheme }

// Digest is what identifies the key in eFuse (esp-facts E.3).
func (k PublicKey) Digest() KeyDigest { return sha256.Sum256(k.id) }

// Digest is the eFuse digest of a signer's public key.
func Digest(pub crypto.PublicKey) (KeyDigest, error) {
	k, err := NewPublicKey(pub)
	if err != nil {
		return KeyDigest{}, err
	}
	return k.Digest(), nil
}

// Public is the key as NewPublicKey took it.
func (k PublicKey) Public() crypto.PublicKey { return k.pub }

// PEM is the key as a SubjectPublicKeyInfo, as openssl and espsecure write it.
func (k PublicKey) PEM() ([]byte, error) {
	var der []byte
	var err error
	if p, ok := k.pub.(*P192PublicKey); ok {
		der, err = p.marshal()
	} else {
		der, err = x509.MarshalPKIXPublicKey(k.pub)
	}
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// halves are r and s of an ECDSA signature.
func (k PublicKey) halves(sig []byte) (r, s *big.Int) {
	n := layouts[k.scheme].number
	return new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])
}

// order is the number of points of an ECDSA key's curve.
func (k PublicKey) order() *big.Int {
	switch k.scheme {
	case chip.SignECDSA256:
		return elliptic.P256().Params().N
	case chip.SignECDSA384:
		return elliptic.P384().Params().N
	}
	return p192.n
}

// checkSignature refuses a signature of a wrong length and numbers out of range.
// It gives the offset in a block's signature.
func (k PublicKey) checkSignature(sig []byte) (int, error) {
	l, ok := layouts[k.scheme]
	if !ok {
		return 0, errors.New("there is no key")
	}
	if k.scheme == chip.SignRSA3072 {
		if len(sig) != l.number {
			return 0, fmt.Errorf("it has %d bytes, not %d", len(sig), l.number)
		}
		if p, ok := k.pub.(*rsa.PublicKey); !ok || new(big.Int).SetBytes(sig).Cmp(p.N) >= 0 {
			return 0, errors.New("it is not below the modulus")
		}
		return 0, nil
	}
	if len(sig) != 2*l.number {
		return 0, fmt.Errorf("it has %d bytes, not %d", len(sig), 2*l.number)
	}
	r, s := k.halves(sig)
	for i, v := range []*big.Int{r, s} {
		if v.Sign() == 0 || v.Cmp(k.order()) >= 0 {
			return i * l.number, fmt.Errorf("%s is not in 1 to n-1", []string{"r", "s"}[i])
		}
	}
	return 0, nil
}

// verify checks a signature that checkSignature found well formed.
func (k PublicKey) verify(digest, sig []byte) bool {
	switch p := k.pub.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPSS(p, pss.Hash, digest, sig, &pss) == nil
	case *ecdsa.PublicKey:
		r, s := k.halves(sig)
		return ecdsa.Verify(p, digest, r, s)
	case *P192PublicKey:
		r, s := k.halves(sig)
		return p.verify(digest, r, s)
	}
	return false
}

// ParsePublicKey reads a public key in PEM: a SubjectPublicKeyInfo ("PUBLIC
// KEY"), or PKCS #1 ("RSA PUBLIC KEY"). Errors do not show what was read.
func ParsePublicKey(text []byte) (PublicKey, error) {
	block, err := onlyBlock(text)
	if err != nil {
		return PublicKey{}, err
	}
	var pub crypto.PublicKey
	switch block.Type {
	case "PUBLIC KEY":
		if pub, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			if p, ok := parseP192(block.Bytes); ok {
				pub, err = p, nil
			}
		}
	case "RSA PUBLIC KEY":
		pub, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		return PublicKey{}, errors.New("it is a private key, where the public one is enough: write that with `openssl pkey -pubout`")
	default:
		return PublicKey{}, errors.New("its PEM block is no public key: write one with `openssl pkey -pubout`")
	}
	if err != nil {
		return PublicKey{}, errors.New("its PEM block holds no public key that can be read: Secure Boot V2 knows RSA-3072 and ECDSA on P-192, P-256 and P-384")
	}
	return NewPublicKey(pub)
}

// onlyBlock is the one PEM block of a file; curve parameters before a key, as
// openssl writes them, do not count.
func onlyBlock(text []byte) (*pem.Block, error) {
	block, rest := pem.Decode(text)
	if block != nil && block.Type == "EC PARAMETERS" {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("it holds no key in PEM form")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("it holds more than one PEM block: give one key per file")
	}
	return block, nil
}

// ecPublicKey is the algorithm of an elliptic curve key in a SubjectPublicKeyInfo.
var ecPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

// spki is a SubjectPublicKeyInfo.
type spki struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}
