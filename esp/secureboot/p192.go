package secureboot

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
)

// P192PublicKey is a point of NIST P-192 (secp192r1, prime192v1), big-endian.
// The standard library has no such curve. A crypto.Signer for it has this type as
// its public key.
type P192PublicKey struct {
	X, Y [24]byte
}

// p192 are the parameters of the curve y² = x³ - 3x + b (FIPS 186-4, D.1.2.1).
var p192 = struct{ p, n, b, gx, gy *big.Int }{
	p:  hexInt("fffffffffffffffffffffffffffffffeffffffffffffffff"),
	n:  hexInt("ffffffffffffffffffffffff99def836146bc9b1b4d22831"),
	b:  hexInt("64210519e59c80e70fa7e9ab72243049feb8deecc146b9b1"),
	gx: hexInt("188da80eb03090f67cbf20eb43a18800f4ff0afd82ff1012"),
	gy: hexInt("07192b95ffc8da78631011ed6b24cdd573f977a11e794811"),
}

func hexInt(s string) *big.Int {
	v, _ := new(big.Int).SetString(s, 16)
	return v
}

// point is an affine point; nil is the point at infinity.
type point struct{ x, y *big.Int }

func (k *P192PublicKey) point() *point {
	return &point{new(big.Int).SetBytes(k.X[:]), new(big.Int).SetBytes(k.Y[:])}
}

// onCurve reports whether the coordinates are below p and fit the equation. The
// group has prime order, so any such point is a public key.
func (k *P192PublicKey) onCurve() bool {
	q := k.point()
	if q.x.Cmp(p192.p) >= 0 || q.y.Cmp(p192.p) >= 0 {
		return false
	}
	right := new(big.Int).Mul(q.x, q.x)
	right.Sub(right, big.NewInt(3))
	right.Mul(right, q.x)
	right.Add(right, p192.b)
	right.Sub(right, new(big.Int).Mul(q.y, q.y))
	return right.Mod(right, p192.p).Sign() == 0
}

// add is the group's addition.
func add(a, b *point) *point {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	p := p192.p
	var num, den *big.Int
	if a.x.Cmp(b.x) != 0 {
		num, den = new(big.Int).Sub(b.y, a.y), new(big.Int).Sub(b.x, a.x)
	} else if a.y.Cmp(b.y) != 0 || a.y.Sign() == 0 {
		return nil // a = -b
	} else {
		num = new(big.Int).Mul(a.x, a.x)
		num.Sub(num, big.NewInt(1))
		num.Mul(num, big.NewInt(3))
		den = new(big.Int).Lsh(a.y, 1)
	}
	slope := den.ModInverse(den.Mod(den, p), p)
	slope.Mul(slope, num).Mod(slope, p)
	x := new(big.Int).Mul(slope, slope)
	x.Sub(x, a.x).Sub(x, b.x).Mod(x, p)
	y := new(big.Int).Sub(a.x, x)
	y.Mul(y, slope).Sub(y, a.y).Mod(y, p)
	return &point{x, y}
}

// combine is u·g + v·q, bit by bit. Its time depends on u and v: they are made of
// a signature and a digest, which everybody knows.
func combine(u *big.Int, g *point, v *big.Int, q *point) *point {
	both := add(g, q)
	var sum *point
	for i := max(u.BitLen(), v.BitLen()) - 1; i >= 0; i-- {
		sum = add(sum, sum)
		switch {
		case u.Bit(i) == 1 && v.Bit(i) == 1:
			sum = add(sum, both)
		case u.Bit(i) == 1:
			sum = add(sum, g)
		case v.Bit(i) == 1:
			sum = add(sum, q)
		}
	}
	return sum
}

// verify is ECDSA verification (FIPS 186-4, 6.4; SEC 1, 4.1.4). r and s are in 1
// to n-1.
func (k *P192PublicKey) verify(digest []byte, r, s *big.Int) bool {
	n := p192.n
	z := new(big.Int).SetBytes(digest[:min(len(digest), 24)])
	w := new(big.Int).ModInverse(s, n)
	u := new(big.Int).Mul(z, w)
	v := new(big.Int).Mul(r, w)
	sum := combine(u.Mod(u, n), &point{p192.gx, p192.gy}, v.Mod(v, n), k.point())
	if sum == nil {
		return false
	}
	return new(big.Int).Mod(sum.x, n).Cmp(r) == 0
}

// prime192v1 is the curve's object identifier (ANSI X9.62).
var prime192v1 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}

// parseP192 reads a SubjectPublicKeyInfo of this curve, the point uncompressed.
func parseP192(der []byte) (*P192PublicKey, bool) {
	var info spki
	var curve asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) != 0 || !info.Algorithm.Algorithm.Equal(ecPublicKey) {
		return nil, false
	}
	if rest, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &curve); err != nil || len(rest) != 0 || !curve.Equal(prime192v1) {
		return nil, false
	}
	b := info.Key.RightAlign()
	if info.Key.BitLength%8 != 0 || len(b) != 49 || b[0] != 4 {
		return nil, false
	}
	return &P192PublicKey{X: [24]byte(b[1:25]), Y: [24]byte(b[25:])}, true
}

func (k *P192PublicKey) marshal() ([]byte, error) {
	curve, err := asn1.Marshal(prime192v1)
	if err != nil {
		return nil, err
	}
	b := append(append([]byte{4}, k.X[:]...), k.Y[:]...)
	return asn1.Marshal(spki{
		pkix.AlgorithmIdentifier{Algorithm: ecPublicKey, Parameters: asn1.RawValue{FullBytes: curve}},
		asn1.BitString{Bytes: b, BitLength: 8 * len(b)},
	})
}
