package local

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func mustCreate(t testing.TB, s *Store, r keystore.Record) keystore.Receipt {
	t.Helper()
	receipt, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestInitRefusals(t *testing.T) {
	dir := t.TempDir()
	identity, path := filepath.Join(dir, "id"), filepath.Join(dir, "keys.db")
	for name, o := range map[string]Options{
		"nothing":          {},
		"two":              {IdentityFile: identity, Passphrase: testPass},
		"missing identity": {IdentityFile: identity},
		"empty passphrase": {Passphrase: func() ([]byte, error) { return nil, nil }},
		"failed prompt":    {Passphrase: func() ([]byte, error) { return nil, errors.New("no terminal") }},
		"missing file":     {PassphraseFile: filepath.Join(dir, "p")},
	} {
		if err := Init(path, o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("refused inits left %v", names)
	}
	if err := Init(filepath.Join(dir, "no", "such", "dir"), Options{Passphrase: testPass}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestFiles(t *testing.T) {
	path, o := newStore(t, true, false)
	for _, f := range []string{path, o.IdentityFile} {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, st.Mode(), err)
		}
	}
	if err := Init(path, o); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), path) {
		t.Errorf("init over a store: %v", err)
	}
	if _, err := NewIdentity(o.IdentityFile); !errors.Is(err, ErrExists) {
		t.Errorf("identity over an identity: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "keys.db")
	if _, err := Open(missing, o); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "provisiond keystore init") {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Error("open made a file")
	}
	for _, f := range []string{path, o.IdentityFile} {
		if err := os.Chmod(f, 0o604); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, o); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod 600 "+f) {
			t.Errorf("%s with mode 0604: %v", f, err)
		}
		if err := os.Chmod(f, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, path, o)
	start := time.Now()
	if _, err := Open(path, o); !errors.Is(err, ErrLocked) || time.Since(start) > 2*time.Second {
		t.Errorf("locked: %v after %v", err, time.Since(start))
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, bytes.Repeat([]byte("junk"), 9999), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(junk, o); !errors.Is(err, keystore.ErrDamaged) {
		t.Errorf("junk: %v", err)
	}
}

func TestIdentityErrors(t *testing.T) {
	path, o := newStore(t, true, false)
	passPath, _ := newStore(t, true, true)
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := filepath.Join(dir, "other")
	if _, err := NewIdentity(other); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(o.IdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	line := string(content[bytes.Index(content, []byte("AGE-SECRET")):])
	for name, c := range map[string]struct {
		path string
		o    Options
	}{
		"other identity":          {path, Options{IdentityFile: other}},
		"no identity":             {path, Options{IdentityFile: write("text", "hello\n")}},
		"two identities":          {path, Options{IdentityFile: write("two", line+line)}},
		"spoiled identity":        {path, Options{IdentityFile: write("bad", strings.Replace(line, "1", "1QQ", 1))}},
		"passphrase for identity": {path, Options{Passphrase: testPass}},
		"identity for passphrase": {passPath, Options{IdentityFile: o.IdentityFile}},
		"wrong passphrase":        {passPath, Options{PassphraseFile: write("p", "wrong\n")}},
		"empty passphrase":        {passPath, Options{PassphraseFile: write("e", "\n")}},
		"missing passphrase file": {passPath, Options{PassphraseFile: filepath.Join(dir, "none")}},
	} {
		_, err := Open(c.path, c.o)
		if !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), line[20:30]) || strings.Contains(err.Error(), "wrong\n")) {
			t.Errorf("%s: the error shows a secret: %v", name, err)
		}
	}
	mustOpen(t, passPath, Options{PassphraseFile: write("right", "correct horse\n")})
}

// TestWithoutIdentity is what a station does: it creates and confirms and adds
// states, and cannot read a key.
func TestWithoutIdentity(t *testing.T) {
	for name, passphrase := range map[string]bool{"identity": false, "passphrase": true} {
		t.Run(name, func(t *testing.T) {
			path, o := newStore(t, true, passphrase)
			s := mustOpen(t, path, Options{})
			r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
			created := mustCreate(t, s, r)
			if got, err := s.Confirm(t.Context(), r.Unit, r.Fingerprint); err != nil || got != created {
				t.Errorf("confirm: %+v, %v", got, err)
			}
			if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: "j"}); err != nil {
				t.Error(err)
			}
			if _, err := s.Load(t.Context(), r.Unit, r.Fingerprint); !errors.Is(err, ErrNoIdentity) || s.CanLoad() {
				t.Errorf("load: %v", err)
			}
			closeStore(t, s)
			s = mustOpen(t, path, o)
			got, err := s.Load(t.Context(), r.Unit, r.Fingerprint)
			if err != nil || !got.Key.Equal(r.Key) || !s.CanLoad() {
				t.Errorf("load with it: %v", err)
			}
		})
	}
}

// TestNoKeyInTheFile looks for keys in the file, after creating many.
func TestNoKeyInTheFile(t *testing.T) {
	path, o := newStore(t, true, true)
	s := mustOpen(t, path, o)
	var keys []keystore.Key
	for n := range byte(20) {
		r := keystoretest.NewRecord(t, keystoretest.Simulated(n))
		mustCreate(t, s, r)
		keys = append(keys, r.Key)
	}
	closeStore(t, s)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		fp := k.Fingerprint()
		if !bytes.Contains(content, []byte(fp.String())) {
			t.Error("the search does not find what is in clear")
		}
		_ = k.Use(func(key []byte) error {
			back := slices.Clone(key)
			slices.Reverse(back)
			for _, b := range [][]byte{key, back} {
				for _, form := range []string{string(b[:12]), hex.EncodeToString(b[:12]), strings.ToUpper(hex.EncodeToString(b[:12])), base64.StdEncoding.EncodeToString(b[:12])} {
					if bytes.Contains(content, []byte(form)) {
						t.Error("a key is in the file")
					}
				}
			}
			return nil
		})
	}
	if bytes.Contains(content, []byte("AGE-SECRET-KEY")) || bytes.Contains(content, []byte("correct horse")) {
		t.Error("identity or passphrase are in the file")
	}
}

// TestTampering changes each stored value in turn, byte by byte.
func TestTampering(t *testing.T) {
	path, o := newStore(t, true, false)
	s := mustOpen(t, path, o)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	mustCreate(t, s, r)
	for _, k := range []keystore.StateKind{keystore.MayBeInSilicon, keystore.InSilicon} {
		if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: "j"}); err != nil {
			t.Fatal(err)
		}
	}
	id := recordKey(r.Unit, r.Fingerprint)
	probe := func() (confirm, load, list error) {
		s := &Store{path: s.path, header: s.header, recipient: s.recipient, identity: s.identity, db: s.db, now: time.Now}
		_, confirm = s.Confirm(t.Context(), r.Unit, r.Fingerprint)
		_, load = s.Load(t.Context(), r.Unit, r.Fingerprint)
		_, list = s.List(t.Context(), r.Unit)
		return confirm, load, list
	}
	if confirm, load, list := probe(); errors.Join(confirm, load, list) != nil {
		t.Fatal(confirm, load, list)
	}
	for _, c := range []struct {
		name   string
		bucket []byte
		key    []byte
		step   int
		list   bool // List notices too
	}{
		{"row", bucketRows, id, 1, false},
		{"sealed", bucketSealed, id, 7, false},
		{"first state", bucketStates, stateKey(id, 1), 1, true},
	} {
		value := get(t, s, c.bucket, c.key)
		for i := 0; i < len(value); i += c.step {
			changed := bytes.Clone(value)
			changed[i] ^= 1 << (i % 8)
			put(t, s, c.bucket, c.key, changed)
			confirm, load, list := probe()
			if !errors.Is(confirm, keystore.ErrDamaged) || !errors.Is(load, keystore.ErrDamaged) || (c.list && !errors.Is(list, keystore.ErrDamaged)) {
				t.Fatalf("%s, byte %d (%q): confirm %v, load %v, list %v", c.name, i, value[i], confirm, load, list)
			}
		}
		put(t, s, c.bucket, c.key, nil)
		if confirm, _, _ := probe(); !errors.Is(confirm, keystore.ErrDamaged) {
			t.Errorf("%s removed: %v", c.name, confirm)
		}
		put(t, s, c.bucket, c.key, value)
	}
	// A row and a sealed record that agree with each other by hash, but not in
	// content: only the identity shows it.
	forged := r
	forged.Lot = "lot-10"
	sealed, err := s.seal(forged)
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := s.get(t.Context(), r.Unit, r.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	row := k.row
	row.sealedSHA256 = sha256.Sum256(sealed)
	for _, st := range []int{1, 2} {
		put(t, s, bucketStates, stateKey(id, st), nil)
	}
	put(t, s, bucketSealed, id, sealed)
	put(t, s, bucketRows, id, row.text())
	if confirm, load, list := probe(); !errors.Is(confirm, keystore.ErrDamaged) || !errors.Is(load, keystore.ErrDamaged) || list != nil {
		t.Errorf("forged: %v, %v, %v", confirm, load, list)
	}
}

func get(t *testing.T, s *Store, bucket, key []byte) (value []byte) {
	t.Helper()
	if err := s.db.View(func(tx *bolt.Tx) error { value = bytes.Clone(tx.Bucket(bucket).Get(key)); return nil }); err != nil || value == nil {
		t.Fatalf("%s: %v", bucket, err)
	}
	return value
}

// put stores a value behind the store's back; nil removes it.
func put(t *testing.T, s *Store, bucket, key, value []byte) {
	t.Helper()
	err := s.db.Update(func(tx *bolt.Tx) error {
		if value == nil {
			return tx.Bucket(bucket).Delete(key)
		}
		return tx.Bucket(bucket).Put(key, value)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneKeyForOneUnit: a key is never stored for a second unit.
func TestOneKeyForOneUnit(t *testing.T) {
	path, o := newStore(t, true, false)
	s := mustOpen(t, path, o)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	mustCreate(t, s, r)
	r.Unit = keystoretest.Simulated(2)
	if _, err := s.Create(t.Context(), r); !errors.Is(err, keystore.ErrExists) {
		t.Errorf("the same key for another unit: %v", err)
	}
}

// TestFailedWrite lets the file shrink under the store: the write fails, its
// outcome is unknown, and the store takes nothing more.
func TestFailedWrite(t *testing.T) {
	path, o := newStore(t, true, false)
	s := mustOpen(t, path, o)
	mustCreate(t, s, keystoretest.NewRecord(t, keystoretest.Simulated(1)))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(2))); err == nil {
		t.Fatal("a write into a file that is gone succeeded")
	}
	_, err := s.Create(t.Context(), keystoretest.NewRecord(t, keystoretest.Simulated(3)))
	if !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("after a failed write: %v", err)
	}
}

const (
	envPath     = "PROVISIOND_TEST_KEYSTORE"
	envIdentity = "PROVISIOND_TEST_IDENTITY"
)

// createUntilKilled is the child of TestKill. It reports each unit whose record
// and state are stored.
func createUntilKilled(t *testing.T) {
	s := mustOpen(t, os.Getenv(envPath), Options{IdentityFile: os.Getenv(envIdentity)})
	for n := 0; ; n++ {
		unit := keystoretest.Simulated(0)
		unit[3], unit[4], unit[5] = byte(os.Getpid()), byte(n>>8), byte(n)
		unit[2] = byte(os.Getpid() >> 8)
		r := keystoretest.NewRecord(t, unit)
		mustCreate(t, s, r)
		if _, err := s.AddState(t.Context(), unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nstored %s %s\n", unit, r.Fingerprint)
	}
}

// TestKill kills a process that creates records: none that was reported is lost.
func TestKill(t *testing.T) {
	if os.Getenv(envPath) != "" {
		createUntilKilled(t)
	}
	path, o := newStore(t, true, false)
	reported := map[string]bool{}
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), envPath+"="+path, envIdentity+"="+o.IdentityFile)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if what, ok := strings.CutPrefix(lines.Text(), "stored "); ok {
				reported[what] = true
				if n++; n == 5+round {
					if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("the child ended by itself: %v", err)
		}
	}
	s := mustOpen(t, path, o)
	found := 0
	for unit, err := range s.Units(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		metas, err := s.List(t.Context(), unit)
		if err != nil || len(metas) != 1 {
			t.Fatalf("%v, %v", metas, err)
		}
		if _, err := s.Confirm(t.Context(), unit, metas[0].Fingerprint); err != nil {
			t.Error(err)
		}
		if reported[fmt.Sprintf("%s %s", unit, metas[0].Fingerprint)] {
			found++
			if !metas[0].MayBeInSilicon() {
				t.Errorf("%s: a reported state is lost", unit)
			}
		}
	}
	if found != len(reported) || found < 20 {
		t.Errorf("%d of %d reported records are there", found, len(reported))
	}
}

// TestManyUnits crosses the chunks of Units.
func TestManyUnits(t *testing.T) {
	path, o := newStore(t, true, false)
	s := mustOpen(t, path, o)
	const n = unitsPerView + 10
	if err := s.db.Update(func(tx *bolt.Tx) error {
		for i := range n {
			unit := keystoretest.Simulated(0)
			unit[4], unit[5] = byte(i>>8), byte(i)
			if err := tx.Bucket(bucketRows).Put(recordKey(unit, keystore.Fingerprint{1}), []byte("x")); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for u, err := range s.Units(t.Context()) {
		if err != nil || int(u[4])<<8|int(u[5]) != seen {
			t.Fatalf("%s at %d: %v", u, seen, err)
		}
		seen++
	}
	if seen != n {
		t.Errorf("%d units, want %d", seen, n)
	}
}

func BenchmarkCreateConfirm(b *testing.B) {
	path, o := newStore(b, true, false)
	s := mustOpen(b, path, o)
	for n := 0; b.Loop(); n++ {
		unit := keystoretest.Simulated(byte(n))
		unit[3], unit[4] = byte(n>>16), byte(n>>8)
		r := keystoretest.NewRecord(b, unit)
		mustCreate(b, s, r)
		if _, err := s.Confirm(b.Context(), unit, r.Fingerprint); err != nil {
			b.Fatal(err)
		}
	}
}
