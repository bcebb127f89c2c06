package secureboot

import "math/big"

// P192Base is k times the generator, for a test's own signer.
func P192Base(k *big.Int) *P192PublicKey {
	p := combine(k, &point{p192.gx, p192.gy}, new(big.Int), nil)
	out := &P192PublicKey{}
	if p != nil {
		p.x.FillBytes(out.X[:])
		p.y.FillBytes(out.Y[:])
	}
	return out
}

// P192Verify is the verification alone.
func P192Verify(k *P192PublicKey, digest []byte, r, s *big.Int) bool { return k.verify(digest, r, s) }
