package local

import (
	"bytes"
	"errors"
	"fmt"

	"filippo.io/age"

	"github.com/provisiond/provisiond/internal/seal"
	"github.com/provisiond/provisiond/keystore"
)

// scryptLogN is the work factor of passphrases: age's own default, about a
// second. It is a variable for the tests of this package.
var scryptLogN = 18

// NewIdentity makes a new age identity file with mode 0600 and gives its
// recipient. It refuses an existing file. Whoever has the identity can read
// every key of the stores that are sealed to it; who loses it, none.
func NewIdentity(path string) (recipient string, err error) {
	recipient, err = seal.NewIdentity(path, "provisiond keystore")
	if err != nil {
		return "", fmt.Errorf("keystore/local: %w", err)
	}
	return recipient, nil
}

func (o Options) count() (n int) {
	for _, given := range []bool{o.IdentityFile != "", o.PassphraseFile != "", o.Passphrase != nil} {
		if given {
			n++
		}
	}
	return n
}

// forInit gives the identity of a new store and, with a passphrase, its sealed form.
func (o Options) forInit() (id *age.X25519Identity, sealed []byte, err error) {
	if o.count() != 1 {
		return nil, nil, errors.New("keystore/local: a new keystore needs an identity file or a passphrase, and only one of them")
	}
	if o.IdentityFile != "" {
		id, err = seal.ReadIdentity(o.IdentityFile)
		return id, nil, err
	}
	pass, err := o.passphrase()
	if err != nil {
		return nil, nil, err
	}
	defer clear(pass)
	if id, err = age.GenerateX25519Identity(); err != nil {
		return nil, nil, fmt.Errorf("keystore/local: %w", err)
	}
	r, err := age.NewScryptRecipient(string(pass))
	if err != nil {
		return nil, nil, fmt.Errorf("keystore/local: %w", err)
	}
	r.SetWorkFactor(scryptLogN)
	sealed, err = seal.Seal([]byte(id.String()), r)
	return id, sealed, err
}

// forOpen gives the identity of an existing store, nil if none was asked for.
func (o Options) forOpen(path string, sealed []byte) (*age.X25519Identity, error) {
	switch {
	case o.count() > 1:
		return nil, errors.New("keystore/local: give an identity file or a passphrase, not both")
	case o.count() == 0:
		return nil, nil //nolint:nilnil // no identity is a way to open a store
	case o.IdentityFile != "":
		if sealed != nil {
			return nil, fmt.Errorf("%s: %w: this keystore is opened with a passphrase, not with an identity file", path, ErrIdentity)
		}
		return seal.ReadIdentity(o.IdentityFile)
	case sealed == nil:
		return nil, fmt.Errorf("%s: %w: this keystore is opened with an identity file, not with a passphrase", path, ErrIdentity)
	}
	pass, err := o.passphrase()
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	si, err := age.NewScryptIdentity(string(pass))
	if err != nil {
		return nil, fmt.Errorf("keystore/local: %w", err)
	}
	plain, err := seal.Open(sealed, si)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: the passphrase does not open it", path, ErrIdentity)
	}
	defer clear(plain)
	id, err := age.ParseX25519Identity(string(plain))
	if err != nil { // age's text may hold a part of the identity
		return nil, fmt.Errorf("%s: %w: what the passphrase opens is no identity", path, keystore.ErrDamaged)
	}
	return id, nil
}

func (o Options) passphrase() (pass []byte, err error) {
	if o.PassphraseFile != "" {
		if pass, err = seal.ReadSecretFile(o.PassphraseFile); err != nil {
			return nil, err
		}
		pass = bytes.TrimSuffix(bytes.TrimSuffix(pass, []byte("\n")), []byte("\r"))
	} else if pass, err = o.Passphrase(); err != nil {
		return nil, fmt.Errorf("keystore/local: passphrase: %w", err)
	}
	if len(pass) == 0 {
		return nil, fmt.Errorf("%w: the passphrase is empty", ErrIdentity)
	}
	return pass, nil
}

// seal encrypts the record to the store's recipient.
func (s *Store) seal(r keystore.Record) ([]byte, error) {
	plain, err := keystore.MarshalRecord(r)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return seal.Seal(plain, s.recipient)
}

// open decrypts a sealed record and compares it with its clear row.
func (s *Store) open(k stored, sealed []byte) (keystore.Record, error) {
	unit := k.row.meta.Unit
	plain, err := seal.Open(sealed, s.identity)
	if err != nil {
		return keystore.Record{}, s.damaged(unit, "the sealed record cannot be opened")
	}
	defer clear(plain)
	r, err := keystore.ParseRecord(plain)
	if err != nil {
		return keystore.Record{}, s.damaged(unit, err.Error())
	}
	want := rowOf(r)
	want.seq, want.stored, want.sealedSHA256 = k.row.seq, k.row.stored, k.row.sealedSHA256
	if !bytes.Equal(want.text(), k.row.text()) {
		r.Key.Wipe()
		return keystore.Record{}, s.damaged(unit, "what stands in clear differs from the sealed record")
	}
	return r, nil
}
