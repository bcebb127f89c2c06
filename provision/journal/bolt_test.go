package journal

import (
	"testing"

	bolt "go.etcd.io/bbolt"
)

type (
	boltTx     = bolt.Tx
	boltBucket = bolt.Bucket
)

// openBolt opens a file behind the journal's back.
func openBolt(t *testing.T, path string) *bolt.DB {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	return db
}
