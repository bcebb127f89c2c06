package secureboot

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
)

// Options are for Sign.
type Options struct {
	// Append keeps the signatures that the image has. They must be good. Without
	// it a signed image is refused.
	Append bool
	// Chip, when given, refuses what its boot code does not verify, and images of
	// another chip.
	Chip *chip.Model
	// Revision of the silicon that is to verify it; image.RevisionUnknown stands for
	// the newest.
	Revision chip.Revision
}

// ContextSigner is what a signer may be beside crypto.Signer: one that asks
// somebody else, and can be told to stop.
type ContextSigner interface {
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Sign gives the image with padding and a signature sector. Every signer gets
// the digest of the image with *rsa.PSSOptions or a crypto.Hash, as crypto.Signer
// has it; what it returns is verified before it is used.
//
// The padding is 0xFF, unless the file has begun to pad with zeros. Padding of
// the file beyond the sector's place is dropped: the boot code looks for the
// sector where the image ends. No byte of the image is changed.
func Sign(ctx context.Context, file []byte, opts Options, signers ...crypto.Signer) ([]byte, error) {
	m, err := image.Parse(file)
	if err != nil {
		return nil, err
	}
	s, content, err := begin(m, file, opts)
	if err != nil {
		return nil, err
	}
	keys, err := publicKeys(s, signers)
	if err != nil {
		return nil, err
	}
	scheme := keys[0].Scheme()
	if opts.Chip != nil {
		if err := m.CheckFor(*opts.Chip, opts.Revision); err != nil {
			return nil, err
		}
		if err := checkChip(*opts.Chip, opts.Revision, scheme, len(keys)); err != nil {
			return nil, err
		}
	}
	digest := layouts[scheme].sum(content)
	for i, signer := range signers {
		key := keys[len(keys)-len(signers)+i]
		sig, err := signWith(ctx, signer, key, digest)
		if err != nil {
			return nil, fmt.Errorf("signer %d, key digest %s: %w", i+1, key.Digest(), err)
		}
		s.Blocks = append(s.Blocks, Block{Key: key, ImageDigest: digest, Signature: sig})
	}
	sector, err := s.MarshalBinary()
	if err != nil {
		return nil, err
	}
	out := append(content, sector...)
	if _, err := Verify(out); err != nil {
		return nil, fmt.Errorf("the signed image does not verify: %w", err)
	}
	return out, nil
}

// begin gives the sector to go on with and what is signed, with room for a sector.
func begin(m *image.Image, file []byte, opts Options) (*Sector, []byte, error) {
	end := signedLength(m)
	content := make([]byte, 0, end+SectorSize)
	if m.Signed {
		if !opts.Append {
			return nil, nil, errors.New("the image is signed already: add a signature (--append), or sign the unsigned build")
		}
		if _, err := verifyParsed(m, file); err != nil {
			return nil, nil, fmt.Errorf("no signature can be added: %w", err)
		}
		s, err := ParseSector(m.Signature)
		return s, append(content, file[:end]...), err
	}
	if opts.Append {
		return nil, nil, fmt.Errorf("%w: there is no signature that another one could be added to; sign it without --append", ErrUnsigned)
	}
	content = append(content, file[:min(len(file), end)]...)
	pad := byte(0xFF)
	if len(content) > m.Length {
		pad = content[len(content)-1]
	}
	return &Sector{}, append(content, bytes.Repeat([]byte{pad}, end-len(content))...), nil
}

// publicKeys are those of the sector's blocks and then the signers', checked to
// go together.
func publicKeys(s *Sector, signers []crypto.Signer) ([]PublicKey, error) {
	if len(signers) == 0 {
		return nil, errors.New("there is no key to sign with")
	}
	if have := len(s.Blocks); have+len(signers) > MaxBlocks {
		return nil, fmt.Errorf("a sector has room for %d signatures: %d are there, %d more are asked for", MaxBlocks, have, len(signers))
	}
	var keys []PublicKey
	for _, b := range s.Blocks {
		keys = append(keys, b.Key)
	}
	for i, signer := range signers {
		key, err := NewPublicKey(signer.Public())
		if err != nil {
			return nil, fmt.Errorf("signer %d: %w", i+1, err)
		}
		for _, other := range keys {
			if other.Scheme() != key.Scheme() {
				return nil, fmt.Errorf("%w: signer %d: its key is %s, another one is %s: a chip verifies one scheme only", ErrScheme, i+1, key.Scheme(), other.Scheme())
			}
			if other.Digest() == key.Digest() {
				return nil, fmt.Errorf("signer %d: the key with digest %s signs twice: give each key once", i+1, key.Digest())
			}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// signWith gives a signature in the form of Block.Signature.
func signWith(ctx context.Context, signer crypto.Signer, key PublicKey, digest []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l := layouts[key.scheme]
	var opts crypto.SignerOpts = l.hash
	if key.scheme == chip.SignRSA3072 {
		opts = &pss
	}
	var sig []byte
	var err error
	if c, ok := signer.(ContextSigner); ok {
		sig, err = c.SignContext(ctx, digest, opts)
	} else {
		sig, err = signer.Sign(rand.Reader, digest, opts)
	}
	if err != nil {
		return nil, err
	}
	if key.scheme.ECDSA() {
		var rs struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(sig, &rs); err != nil || len(rest) != 0 || rs.R.Sign() < 0 || rs.S.Sign() < 0 ||
			rs.R.BitLen() > 8*l.number || rs.S.BitLen() > 8*l.number {
			return nil, errors.New("it gave no ECDSA signature in ASN.1")
		}
		sig = make([]byte, 2*l.number)
		rs.R.FillBytes(sig[:l.number])
		rs.S.FillBytes(sig[l.number:])
	}
	if _, err := key.checkSignature(sig); err != nil {
		return nil, fmt.Errorf("it gave a bad signature: %w", err)
	}
	if !key.verify(digest, sig) {
		return nil, errors.New("its signature does not verify with its public key (RSA: PSS with SHA-256 and a salt of 32 bytes): is it the right key, and set up for that?")
	}
	return sig, nil
}
