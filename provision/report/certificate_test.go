package report

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// testSigner has a key of its own.
type testSigner struct {
	note.Signer
	public string
}

func newSigner(t testing.TB, name string) testSigner {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return testSigner{s, public}
}

func (s testSigner) PublicKey() string { return s.public }
func (s testSigner) Sign(_ context.Context, msg []byte) ([]byte, error) {
	return s.Signer.Sign(msg)
}

// tree is the Merkle tree of a book.
type tree []tlog.Hash

func (t tree) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, n := range at {
		out[i] = t[n]
	}
	return out, nil
}

// log is the book as a journal with a checkpoint.
func (b *book) log(s testSigner) Log {
	b.t.Helper()
	var tr tree
	for i, line := range b.lines {
		h, err := tlog.StoredHashes(int64(i), line, tr)
		if err != nil {
			b.t.Fatal(err)
		}
		tr = append(tr, h...)
	}
	size := int64(len(b.lines))
	root, err := tlog.TreeHash(size, tr)
	if err != nil {
		b.t.Fatal(err)
	}
	text := fmt.Sprintf("provisiond/journal/00112233445566778899aabbccddeeff\n%d\n%s\nstation %s\ntime 2026-11-22T08:00:00.000000000Z\ngeneration 0\n",
		size, base64.StdEncoding.EncodeToString(root[:]), b.station)
	checkpoint, err := note.Sign(&note.Note{Text: text}, s.Signer)
	if err != nil {
		b.t.Fatal(err)
	}
	return Log{
		Unit: func(m chip.MAC) (out []journal.Entry, err error) {
			for _, e := range b.entries {
				if e.Unit == m {
					out = append(out, e)
				}
			}
			return out, nil
		},
		Entries: func(from, to uint64) Entries {
			return func(yield func(journal.Entry, error) bool) {
				for _, e := range b.entries[from:to] {
					if !yield(e, nil) {
						return
					}
				}
			}
		},
		Prove: func(index, size uint64) ([]journal.Hash, error) {
			p, err := tlog.ProveRecord(int64(size), int64(index), tr)
			out := make([]journal.Hash, len(p))
			for i, h := range p {
				out[i] = journal.Hash(h)
			}
			return out, err
		},
		Checkpoint: checkpoint,
	}
}

// interleave mixes the entries of two slots as a station with several does.
func interleaved(t testing.TB) *book {
	a, b, out := newBook(t, "line-2"), newBook(t, "line-2"), newBook(t, "line-2")
	a.run(run{mac: mac(1), slot: "A1", lot: "L1", serial: "SN1", verdict: provision.Error, cause: provision.CauseStation, reason: "noise", stop: "flash"})
	a.run(run{mac: mac(1), slot: "A1", lot: "L1", serial: "SN1", verdict: provision.Pass})
	b.run(run{mac: mac(2), slot: "A2", verdict: provision.Pass})
	b.run(run{mac: mac(3), slot: "A2", verdict: provision.Pass})
	for i := 1; i < max(len(a.entries), len(b.entries)); i++ {
		for _, from := range []*book{a, b} {
			if i < len(from.entries) {
				e := from.entries[i]
				var body map[string]any
				d := json.NewDecoder(bytes.NewReader(e.Payload))
				d.UseNumber()
				if err := d.Decode(&body); err != nil {
					t.Fatal(err)
				}
				out.add(e.Slot, e.Unit, e.Job, e.Step, e.Kind, body)
			}
		}
	}
	return out
}

func certificate(t testing.TB, b *book, s testSigner, m chip.MAC) []byte {
	t.Helper()
	c, err := NewCertificate(t.Context(), b.log(s), m, s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificate(t *testing.T) {
	s := newSigner(t, "line-2")
	b := interleaved(t)
	raw := certificate(t, b, s, mac(1))
	if *keepDir != "" {
		if err := os.WriteFile(filepath.Join(*keepDir, "cert.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := VerifyCertificate(raw, s.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	st := c.Statement
	if st.Unit != mac(1).String() || st.Verdict != "PASS" || st.Serial != "SN1" || st.Lot != "L1" || st.Operator != "ada" || st.Station != "line-2" || st.Slot != "A1" ||
		st.KeyFingerprint != fingerprint(mac(1), 0) || st.KeyVersion != 1 || st.KeyBlock != "KEY0" || len(st.Images) != 1 || st.Closing == nil ||
		!strings.Contains(st.BootText, "app running") || st.Tool != "provisiond test" || st.FlashSize != 4<<20 || st.Recipe != "sensor" || st.RecipeRevision != 3 ||
		st.RecipeSHA256 == "" || st.PlanSHA256 == "" || st.TableSHA256 == "" || len(st.Attempts) != 2 || st.Attempts[0].Verdict != "ERROR" {
		t.Errorf("%+v", st)
	}
	if !slices.Equal(st.Advisories, []string{"AR2022-006"}) {
		t.Errorf("advisories %v", st.Advisories)
	}
	if !strings.HasPrefix(st.EFuseBefore.Token, "EFSR:esp32c3:004:") || !strings.HasPrefix(st.EFuseAfter.Token, "EFSR:esp32c3:004:") || st.EFuseBefore.Token == st.EFuseAfter.Token {
		t.Errorf("tokens %q, %q", st.EFuseBefore.Token, st.EFuseAfter.Token)
	}
	if n := len(c.Evidence); n != 9+21 { // connect to flash and verdict, then a whole run
		t.Errorf("%d entries", n)
	}
	for _, ev := range c.Evidence {
		if bytes.Contains(ev.Entry, []byte(mac(2).String())) || !bytes.Contains(ev.Entry, []byte(`"slot":"A1"`)) {
			t.Errorf("the evidence has an entry of another unit: %s", ev.Entry)
		}
	}
	if again := certificate(t, b, s, mac(1)); !bytes.Equal(again, raw) {
		t.Error("the same journal gives another certificate")
	}
	if _, err := NewCertificate(t.Context(), b.log(s), mac(9), s); !errors.Is(err, ErrNoUnit) {
		t.Errorf("a unit that the journal does not know: %v", err)
	}
	if _, err := VerifyCertificate(raw, newSigner(t, "line-2").PublicKey()); !errors.Is(err, ErrCertificate) {
		t.Errorf("another key: %v", err)
	}
	if _, err := VerifyCertificate(raw, "nonsense"); err == nil {
		t.Error("no key")
	}
}

// resign signs a changed certificate, as a thief of the key would.
func resign(t *testing.T, c Certificate, s testSigner) []byte {
	t.Helper()
	text, err := c.signedText()
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Sign(&note.Note{Text: text}, s.Signer)
	if err != nil {
		t.Fatal(err)
	}
	c.Signature = strings.TrimPrefix(string(n), text+"\n")
	b, err := c.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestForgedCertificate: even with a good signature, what does not follow from
// proven entries is refused.
func TestForgedCertificate(t *testing.T) {
	s := newSigner(t, "line-2")
	b := interleaved(t)
	raw := certificate(t, b, s, mac(1))
	other := certificate(t, b, s, mac(2))
	parse := func(b []byte) Certificate {
		c, err := ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := VerifyCertificate(resign(t, parse(raw), s), s.PublicKey()); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	for name, change := range map[string]func(*Certificate){
		"verdict":          func(c *Certificate) { c.Statement.Verdict = "FAIL" },
		"operator":         func(c *Certificate) { c.Statement.Operator = "eve" },
		"image":            func(c *Certificate) { c.Statement.Images[0].PlaintextSHA256 = strings.Repeat("00", 32) },
		"attempt left out": func(c *Certificate) { c.Statement.Attempts = c.Statement.Attempts[1:] },
		"token":            func(c *Certificate) { c.Statement.EFuseAfter.Token = c.Statement.EFuseBefore.Token },
		"no closing":       func(c *Certificate) { c.Statement.Closing = nil },
		"other unit":       func(c *Certificate) { c.Statement.Unit = mac(2).String() },
		"other evidence":   func(c *Certificate) { c.Evidence = parse(other).Evidence },
		"more evidence":    func(c *Certificate) { c.Evidence = append(c.Evidence, parse(other).Evidence...) },
		"no evidence":      func(c *Certificate) { c.Evidence = nil },
		"an entry less":    func(c *Certificate) { c.Evidence = c.Evidence[:len(c.Evidence)-1] },
		"an entry twice":   func(c *Certificate) { c.Evidence = append(c.Evidence[:1:1], c.Evidence...) },
		"changed entry": func(c *Certificate) {
			c.Evidence[3].Entry = bytes.Replace(c.Evidence[3].Entry, []byte("v0.4"), []byte("v0.3"), 1)
			c.Statement.Revision = "v0.3"
		},
		"wrong proof":       func(c *Certificate) { c.Evidence[0].Proof[0] = strings.Repeat("00", 32) },
		"short proof":       func(c *Certificate) { c.Evidence[0].Proof = c.Evidence[0].Proof[1:] },
		"upper case":        func(c *Certificate) { c.Evidence[0].Proof[0] = strings.ToUpper(c.Evidence[0].Proof[0]) },
		"larger checkpoint": func(c *Certificate) { c.Checkpoint = strings.Replace(c.Checkpoint, "\n66\n", "\n67\n", 1) + " " },
		"no checkpoint":     func(c *Certificate) { c.Checkpoint = "" },
		"certificate as checkpoint": func(c *Certificate) {
			text, _ := c.signedText()
			c.Checkpoint = text + "\n" + c.Signature
		},
	} {
		c := parse(raw)
		change(&c)
		if _, err := VerifyCertificate(resign(t, c, s), s.PublicKey()); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamagedCertificate turns bits all over.
func TestDamagedCertificate(t *testing.T) {
	s := newSigner(t, "line-2")
	b := newBook(t, "line-2")
	b.run(run{mac: mac(1), verdict: provision.Fail, cause: provision.CauseUnit, reason: "x", stop: "inspect"})
	raw := certificate(t, b, s, mac(1))
	for i := 0; i < len(raw); i += 11 {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if _, err := VerifyCertificate(bad, s.PublicKey()); !errors.Is(err, ErrCertificate) {
			t.Fatalf("byte %d of %d changed: %v", i, len(raw), err)
		}
	}
	for _, bad := range [][]byte{nil, raw[:len(raw)-1], append(bytes.Clone(raw), '\n'), bytes.Replace(raw, []byte(`"format":1`), []byte(`"format":2`), 1)} {
		if _, err := VerifyCertificate(bad, s.PublicKey()); !errors.Is(err, ErrCertificate) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	s := newSigner(f, "line-2")
	b := newBook(f, "line-2")
	b.run(run{mac: mac(1), verdict: provision.Fail, cause: provision.CauseUnit, reason: "x", stop: "inspect"})
	raw, err := NewCertificate(context.Background(), b.log(s), mac(1), s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("{}\n"))
	empty, err := Certificate{Format: 1}.Canonical()
	if err != nil {
		empty = []byte("{\"format\":1}\n")
	}
	f.Add(empty)
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseCertificate(in)
		if err != nil {
			return
		}
		out, err := c.Canonical()
		if err != nil || !bytes.Equal(out, in) {
			t.Fatalf("%q became %q, %v", in, out, err)
		}
		if obj, err := canon.Object(in); err != nil || !bytes.Equal(append(obj, '\n'), in) {
			t.Fatalf("%q is not canonical", in)
		}
		_, _ = VerifyCertificate(in, s.PublicKey()) // never panics
	})
}
