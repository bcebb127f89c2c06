package main

import (
	"context"
	"path/filepath"
	"sync"

	"github.com/provisiond/provisiond/keystore/vault"
)

// vaults are the Vault stores that this process has open, by configuration file.
// Keystore, anchor and signer of a station share one: a response-wrapped secret
// id is good for one login.
var vaults struct {
	sync.Mutex
	open map[string]*sharedVault
}

// sharedVault is a store and how many use it.
type sharedVault struct {
	*vault.Store
	users int
}

// vaultUse is one use of a shared store. Closing it ends the store with its last
// use.
type vaultUse struct {
	*sharedVault
	once *sync.Once
	path string
}

// useVault opens the store of vault:FILE.yaml, or gives the one that is open. It
// has the errors of vault.FromFlag as usage errors.
func useVault(ctx context.Context, flag string) (vaultUse, error) {
	cfg, err := vault.FromFlag(flag)
	if err != nil {
		return vaultUse{}, &usageError{err}
	}
	path, err := filepath.Abs(flag[len(vault.Prefix):])
	if err != nil {
		return vaultUse{}, err
	}
	vaults.Lock()
	defer vaults.Unlock()
	s := vaults.open[path]
	if s == nil {
		store, err := vault.Open(ctx, cfg)
		if err != nil {
			return vaultUse{}, err
		}
		if vaults.open == nil {
			vaults.open = map[string]*sharedVault{}
		}
		s = &sharedVault{Store: store}
		vaults.open[path] = s
	}
	s.users++
	return vaultUse{s, new(sync.Once), path}, nil
}

// Close ends this use.
func (u vaultUse) Close() (err error) {
	u.once.Do(func() {
		vaults.Lock()
		defer vaults.Unlock()
		if u.users--; u.users == 0 {
			delete(vaults.open, u.path)
			err = u.Store.Close()
		}
	})
	return err
}
