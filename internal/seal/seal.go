// Package seal owns how this project seals a few bytes to one age recipient
// (filippo.io/age, X25519) and opens them again: the key records of the local
// keystore and the images of the OTA server's release store.
//
// It promises that an identity file is never overwritten and never taken when
// other users may read it, that no error echoes a part of an identity or of what
// is sealed, and that opening leaves no second copy of the plaintext behind.
package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"
)

// The errors of this package, for errors.Is.
var (
	ErrExists   = errors.New("there is a file already")
	ErrMode     = errors.New("other users may read or write the file")
	ErrIdentity = errors.New("wrong or unusable identity or passphrase")
)

// maxSecretFile bounds identity and passphrase files.
const maxSecretFile = 64 << 10

// NewIdentity makes a new age identity file with mode 0600 and gives its
// recipient. what stands in the file's first line. It refuses an existing file.
func NewIdentity(path, what string) (recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", err
	}
	recipient = id.Recipient().String()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%w at %s: an identity is never overwritten", ErrExists, path)
	}
	if err != nil {
		return "", fmt.Errorf("identity: %w", err)
	}
	_, err = fmt.Fprintf(f, "# %s identity, keep it secret and keep a copy\n# public key: %s\n%s\n", what, recipient, id)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("identity %s: %w", path, err), os.Remove(path))
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

// ReadIdentity reads a file with one X25519 identity.
func ReadIdentity(path string) (*age.X25519Identity, error) {
	b, err := ReadSecretFile(path)
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
	return nil, fmt.Errorf("%w: %s does not hold one X25519 identity (a line AGE-SECRET-KEY-1…): give the file that the store was made with", ErrIdentity, path)
}

// ReadSecretFile reads a small file that only its owner may read. Wipe the
// result after use.
func ReadSecretFile(path string) ([]byte, error) {
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

// Seal encrypts plain to the recipient.
func Seal(plain []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return out.Bytes(), nil
}

// Open decrypts what Seal made. Wipe the result after use.
func Open(sealed []byte, id age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	if err != nil {
		return nil, err
	}
	// What is sealed is a little longer than its text, so the buffer never grows
	// and no copy of the text is left behind.
	plain := make([]byte, 0, len(sealed)+bytes.MinRead)
	buf := bytes.NewBuffer(plain)
	if _, err := buf.ReadFrom(r); err != nil {
		clear(plain[:cap(plain)])
		return nil, err
	}
	return buf.Bytes(), nil
}
