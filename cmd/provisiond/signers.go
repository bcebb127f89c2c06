package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/pkcs11key"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/station/outbox"
)

// maxKeyFile bounds what is read of a file with a private key or a PIN.
const maxKeyFile = 64 << 10

// signers opens the signing keys that a command was given. Keys in one Vault
// share a login: a response-wrapped secret id is good for one.
type signers struct {
	vaults map[string]*vault.Transit
	close  []func() error
}

// open gives the signer of a key: a PEM file, vault-transit:FILE.yaml#KEY[/vN] or
// a PKCS #11 URI. Its errors name the flag.
func (s *signers) open(ctx context.Context, flag, key string) (crypto.Signer, error) {
	var signer crypto.Signer
	var err error
	switch {
	case strings.HasPrefix(key, transitPrefix):
		signer, err = s.transit(ctx, key)
	case strings.HasPrefix(key, pkcs11key.Prefix):
		signer, err = s.token(key)
	default:
		signer, err = fileSigner(key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return signer, nil
}

// Close ends the logins.
func (s *signers) Close() error {
	var errs []error
	for _, c := range s.close {
		errs = append(errs, c())
	}
	s.close = nil
	return errors.Join(errs...)
}

func fileSigner(name string) (crypto.Signer, error) {
	text, err := outbox.ReadSecret(name, maxKeyFile)
	if err != nil {
		return nil, &usageError{err}
	}
	defer clear(text)
	signer, err := secureboot.ParseSigner(text)
	if err != nil {
		return nil, usage("%s: %w", name, err)
	}
	return signer, nil
}

func (s *signers) token(key string) (crypto.Signer, error) {
	u, err := pkcs11key.ParseURI(key)
	if err != nil {
		return nil, &usageError{err}
	}
	k, err := pkcs11key.Open(u, func(name string) ([]byte, error) { return outbox.ReadSecret(name, maxKeyFile) })
	if err != nil {
		return nil, &usageError{err}
	}
	s.close = append(s.close, k.Close)
	return k, nil
}

func (s *signers) transit(ctx context.Context, key string) (crypto.Signer, error) {
	file, name, ok := strings.Cut(strings.TrimPrefix(key, transitPrefix), "#")
	name, version, versioned := strings.Cut(name, "/v")
	n := 0
	if versioned {
		var err error
		if n, err = strconv.Atoi(version); err != nil || n < 1 {
			ok = false
		}
	}
	if !ok || file == "" || name == "" {
		return nil, usage("%q: write %sFILE.yaml#KEY or %[2]sFILE.yaml#KEY/v2; the file says which server and how to log in (docs/keystore-vault.md)", key, transitPrefix)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	t := s.vaults[path]
	if t == nil {
		cfg, err := vault.FromFlag(vault.Prefix + file)
		if err != nil {
			return nil, &usageError{err}
		}
		if t, err = vault.OpenTransit(cfg); err != nil {
			return nil, err
		}
		if s.vaults == nil {
			s.vaults = map[string]*vault.Transit{}
		}
		s.vaults[path] = t
		s.close = append(s.close, t.Close)
	}
	signer, err := t.Signer(ctx, name, n)
	switch {
	case errors.Is(err, keystore.ErrUnavailable), errors.Is(err, context.Canceled):
		return nil, err
	case err != nil: // a key of another type, or which version is not said
		return nil, &usageError{err}
	}
	return signer, nil
}
