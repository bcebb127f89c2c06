package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/vault"
	"github.com/provisiond/provisiond/provision/journal"
)

// lateVault is a store in Vault that is opened when somebody needs it, so that a
// Vault that is away does not stop what can go on without it.
type lateVault struct {
	flag string
	mu   sync.Mutex
	use  *vaultUse
}

func (l *lateVault) get(ctx context.Context) (*vault.Store, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.use == nil {
		use, err := useVault(ctx, l.flag)
		if err != nil {
			return nil, err
		}
		l.use = &use
	}
	return l.use.Store, nil
}

func (l *lateVault) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.use == nil {
		return nil
	}
	return l.use.Close()
}

// vaultAnchor keeps a station's checkpoints in Vault.
type vaultAnchor struct {
	vault   *lateVault
	station string
}

var _ journal.Anchor = (*vaultAnchor)(nil)

// newVaultAnchor makes sure that the configuration is the station's: its login
// may write to no other's place.
func newVaultAnchor(flag, station string) (*vaultAnchor, error) {
	cfg, err := vault.FromFlag(flag)
	if err != nil {
		return nil, &usageError{err}
	}
	if cfg.Station != station {
		return nil, usage("the journal is of station %q, and %s is the login of station %q: they must be one", station, strings.TrimPrefix(flag, vault.Prefix), cfg.Station)
	}
	return &vaultAnchor{vault: &lateVault{flag: flag}, station: station}, nil
}

// PutCheckpoint is journal.Anchor's.
func (a *vaultAnchor) PutCheckpoint(ctx context.Context, c journal.Checkpoint) error {
	if c.Station != a.station {
		return fmt.Errorf("the anchor is station %s's and not %s's", a.station, c.Station)
	}
	s, err := a.vault.get(ctx)
	if err != nil {
		return err
	}
	day, name, ok := strings.Cut(strings.TrimPrefix(c.Path(), journal.StationPath(a.station)+"/"), "/")
	if !ok {
		return fmt.Errorf("checkpoint %s has no day", c.Path())
	}
	if err := s.PutCheckpoint(ctx, day, name, c.Note); errors.Is(err, keystore.ErrExists) {
		return fmt.Errorf("%w: %w", journal.ErrAnchorTaken, err)
	} else if err != nil {
		return err
	}
	return nil
}

// Checkpoints is journal.Anchor's.
func (a *vaultAnchor) Checkpoints(ctx context.Context) iter.Seq2[journal.Checkpoint, error] {
	return func(yield func(journal.Checkpoint, error) bool) {
		s, err := a.vault.get(ctx)
		var days []string
		if err == nil {
			days, err = s.CheckpointDays(ctx, a.station)
		}
		if err != nil {
			yield(journal.Checkpoint{}, unreachable(err))
			return
		}
		slices.Reverse(days)
		for _, day := range days {
			names, err := s.CheckpointNames(ctx, a.station, day)
			if err != nil {
				yield(journal.Checkpoint{}, unreachable(err))
				return
			}
			for _, name := range journal.NewestFirst(names) {
				c, err := a.read(ctx, s, day, name)
				if !yield(c, unreachable(err)) || err != nil {
					return
				}
			}
		}
	}
}

// unreachable tells the journal that Vault can be asked again later.
func unreachable(err error) error {
	if errors.Is(err, keystore.ErrUnavailable) {
		return fmt.Errorf("%w: %w", journal.ErrAnchorAway, err)
	}
	return err
}

func (a *vaultAnchor) read(ctx context.Context, s *vault.Store, day, name string) (journal.Checkpoint, error) {
	b, err := s.Checkpoint(ctx, a.station, day, name)
	if err != nil {
		return journal.Checkpoint{}, err
	}
	c, err := journal.ParseCheckpoint(b)
	if err == nil && c.Path() != journal.StationPath(a.station)+"/"+day+"/"+name {
		err = errors.New("it is a checkpoint for another place")
	}
	if err != nil {
		return journal.Checkpoint{}, fmt.Errorf("checkpoint %s of day %s in Vault: %w", name, day, err)
	}
	return c, nil
}

// Close ends the anchor's use of Vault.
func (a *vaultAnchor) Close() error { return a.vault.Close() }

// transitPrefix marks a --signing-key that lies in Vault's transit engine. Behind
// it stands the configuration file of the station's login.
const transitPrefix = "vault-transit:"

// transitSigner signs a journal's checkpoints with a key in Vault. Its public key
// is written NAME+HASH+KEY like that of a file, and the name says which key and
// which version of it.
type transitSigner struct {
	vault   *lateVault
	public  string
	version int
}

var _ journal.Signer = (*transitSigner)(nil)

// newTransitSigner takes the newest version of the station's key, for a new
// journal.
func newTransitSigner(ctx context.Context, flag string) (*transitSigner, error) {
	s := &transitSigner{vault: &lateVault{flag: vault.Prefix + strings.TrimPrefix(flag, transitPrefix)}}
	signer, err := s.signer(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	keys, err := signer.PublicKeys(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.version = len(keys)
	if s.public, err = transitKey(signer.Name(), s.version, keys[s.version-1]); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// oldTransitSigner is that of a journal whose public key is known. It asks Vault
// for the first time when something is to be signed.
func oldTransitSigner(flag, public string) (*transitSigner, error) {
	name, _, _ := strings.Cut(public, "+")
	v := name[strings.LastIndex(name, "/v")+len("/v"):]
	version, err := strconv.Atoi(v)
	if !strings.HasPrefix(name, transitPrefix) || err != nil || version < 1 {
		return nil, usage("--signing-key %s: this journal is not signed with a key in Vault (%s)", flag, name)
	}
	return &transitSigner{vault: &lateVault{flag: vault.Prefix + strings.TrimPrefix(flag, transitPrefix)}, public: public, version: version}, nil
}

func transitKey(name string, version int, key ed25519.PublicKey) (string, error) {
	return note.NewEd25519VerifierKey(fmt.Sprintf("%s%s/v%d", transitPrefix, name, version), key)
}

func (s *transitSigner) signer(ctx context.Context) (*vault.Signer, error) {
	store, err := s.vault.get(ctx)
	if err != nil {
		return nil, err
	}
	return store.Signer()
}

// PublicKey is journal.Signer's.
func (s *transitSigner) PublicKey() string { return s.public }

// Sign is journal.Signer's. The journal checks the signature with the public key
// that it knows.
func (s *transitSigner) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	signer, err := s.signer(ctx)
	if err != nil {
		return nil, err
	}
	return signer.Sign(ctx, s.version, bytes.Clone(msg))
}

// Close ends the signer's use of Vault.
func (s *transitSigner) Close() error { return s.vault.Close() }
