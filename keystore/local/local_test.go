package local

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func TestMain(m *testing.M) {
	scryptLogN = 6 // the real one takes a second
	goleak.VerifyTestMain(m)
}

func testPass() ([]byte, error) { return []byte("correct horse"), nil }

// newStore makes a store and gives the options that open it.
func newStore(t testing.TB, testStore, passphrase bool) (path string, o Options) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "keys.db")
	o = Options{TestStore: testStore}
	if passphrase {
		o.Passphrase = testPass
	} else {
		o.IdentityFile = filepath.Join(dir, "identity")
		if _, err := NewIdentity(o.IdentityFile); err != nil {
			t.Fatal(err)
		}
	}
	if err := Init(path, o); err != nil {
		t.Fatal(err)
	}
	return path, o
}

func mustOpen(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	for name, passphrase := range map[string]bool{"identity": false, "passphrase": true} {
		t.Run(name, func(t *testing.T) {
			opts := map[string]Options{}
			keystoretest.Run(t, keystoretest.Harness{
				New: func(t *testing.T, testStore bool) keystore.Store {
					path, o := newStore(t, testStore, passphrase)
					opts[path] = o
					return mustOpen(t, path, o)
				},
				Reopen: func(t *testing.T, s keystore.Store) keystore.Store {
					path := s.(*Store).path
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					return mustOpen(t, path, opts[path])
				},
			})
		})
	}
}
