package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"

	"github.com/provisiond/provisiond/keystore"
)

// scryptLogN is the work factor of passphrases: age's own default, about a
// second. It is a variable for the tests of this package.
var scryptLogN = 18

// maxSecretFile bounds identity and passphrase files.
const maxSecretFile = 64 << 10

// NewIdentity makes a new age identity file with mode 0600 and gives its
// recipient. It refuses an existing file. Whoever has the identity can read
// every key of the stores that are sealed to it; who loses it, none.
func NewIdentity(path string) (recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", fmt.Errorf("keystore/local: %w", err)
	}
	recipient = id.Recipient().String()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%w at %s: an identity is never overwritten", ErrExists, path)
	}
	if err != nil {
		return "", fmt.Errorf("keystore/local: identity: %w", err)
	}
	_, err = fmt.Fprintf(f, "# provisiond keystore identity, keep it secret and keep a copy\n# public key: %s\n%s\n", recipient, id)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("keystore/local: identity %s: %w", path, err), os.Remove(path))
	}
	return recipient, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
		id, err = readIdentity(o.IdentityFile)
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
	sealed, err = sealBytes([]byte(id.String()), r)
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
		return readIdentity(o.IdentityFile)
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
	plain, err := openBytes(sealed, si)
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
		if pass, err = readSecretFile(o.PassphraseFile); err != nil {
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

func readIdentity(path string) (*age.X25519Identity, error) {
	b, err := readSecretFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err == nil && len(ids) == 1 {
		if id, ok := ids[0].(*age.X25519Identity); ok {
			return id, nil
		}
	}
	// age's error is left out: it may hold a part of the identity.
	return nil, fmt.Errorf("%w: %s does not hold one X25519 identity (a line AGE-SECRET-KEY-1…): give the file that the keystore was made with", ErrIdentity, path)
}

// readSecretFile reads a small file that only its owner may read.
func readSecretFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o: look who read it, then: chmod 600 %s", ErrMode, path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil || len(b) > maxSecretFile {
		return nil, fmt.Errorf("%w: %s cannot be read or is too large", ErrIdentity, path)
	}
	return b, nil
}

// seal encrypts the record to the store's recipient.
func (s *Store) seal(r keystore.Record) ([]byte, error) {
	plain, err := keystore.MarshalRecord(r)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	return sealBytes(plain, s.recipient)
}

// open decrypts a sealed record and compares it with its clear row.
func (s *Store) open(k stored, sealed []byte) (keystore.Record, error) {
	unit := k.row.meta.Unit
	plain, err := openBytes(sealed, s.identity)
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

func sealBytes(plain []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("keystore/local: seal: %w", err)
	}
	return out.Bytes(), nil
}

func openBytes(sealed []byte, id age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return nil, err
	}
	// A sealed record is a little longer than its text, so the buffer never
	// grows and no copy of the key is left behind.
	plain := make([]byte, 0, len(sealed)+bytes.MinRead)
	buf := bytes.NewBuffer(plain)
	if _, err := buf.ReadFrom(r); err != nil {
		clear(plain[:cap(plain)])
		return nil, err
	}
	return buf.Bytes(), nil
}
