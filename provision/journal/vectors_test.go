package journal

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// vectorNote is the checkpoint of docs/journal.md: the seven entries of the tree
// vector, signed with the seed 00 01 … 1f.
func vectorNote(t *testing.T) (Checkpoint, string) {
	t.Helper()
	key := vectorKey()
	id := "000102030405060708090a0b0c0d0e0f"
	public, err := note.NewEd25519VerifierKey(origin(id), key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	roots := vectorRoots()
	c := Checkpoint{
		Journal: id, Station: "bench-1", Size: 7, Root: roots[6], Generation: 0,
		Time: time.Date(2026, 11, 22, 16, 15, 0, 0, time.UTC),
	}
	c, err = sign(t.Context(), ed25519Signer{key, public}, c)
	if err != nil {
		t.Fatal(err)
	}
	return c, public
}

func vectorKey() ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(i)
	}
	return ed25519.NewKeyFromSeed(seed)
}

// ed25519Signer is a Signer that is no file.
type ed25519Signer struct {
	key    ed25519.PrivateKey
	public string
}

func (s ed25519Signer) PublicKey() string { return s.public }
func (s ed25519Signer) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	return ed25519.Sign(s.key, msg), ctx.Err()
}

func vectorRoots() (roots []Hash) {
	var f frontier
	for _, line := range "abcdefg" {
		f.add(nil, HashLine([]byte(string(line))))
		roots = append(roots, f.root())
	}
	return roots
}

// TestDocumentVectors: docs/journal.md has the vectors of tree and checkpoint.
func TestDocumentVectors(t *testing.T) {
	b, err := os.ReadFile("../../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	for i, r := range vectorRoots() {
		if !strings.Contains(doc, hex.EncodeToString(r[:])) {
			t.Errorf("docs/journal.md lacks the root of %d leaves: %s", i+1, r)
		}
	}
	c, public := vectorNote(t)
	if !strings.Contains(doc, public) {
		t.Errorf("docs/journal.md lacks %s", public)
	}
	indented := "    " + strings.ReplaceAll(strings.TrimSuffix(string(c.Note), "\n"), "\n", "\n    ")
	indented = strings.ReplaceAll(indented, "\n    \n", "\n\n")
	if !strings.Contains(doc, indented) {
		t.Errorf("docs/journal.md lacks\n%s", indented)
	}
	for _, text := range []string{string(bucketTree), string(bucketCheckpoints), checkpointPrefix, lineStation, lineTime, lineGeneration} {
		if !strings.Contains(doc, text) {
			t.Errorf("docs/journal.md lacks %s", text)
		}
	}
}
