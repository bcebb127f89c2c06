package escrow

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

// all tries every point in every way; without it each story takes half of them,
// and what one story leaves out another takes.
var all = flag.Bool("all", false, "try every point of the fault test in every way")

var errInjected = errors.New("injected fault")

// How a point fails.
const (
	failsBefore = iota // the act is not done
	failsAfter         // the act is done, and an error comes back
	killed             // the act is done, and nothing after it
	killedHard         // the act is not done, and nothing after it
	ways
)

// play is a story of one unit and its people: a station makes a unit while the
// store is away, burns its key, the store comes back, the station syncs, the
// custodian drains. What fails is done again, as people do, up to a few times.
// Every file operation and every call to the store counts as a point.
type play struct {
	t      *testing.T
	b      *bench
	s      *Store
	points int
	at     int // the point that fails, 0 for none
	way    int
	dead   bool // everything fails until the restart

	key    keystore.Record // that is in the chip
	burned bool
	keys   []keystore.Record // all that were ever made
}

func newPlay(t *testing.T, at, way int) *play {
	p := &play{t: t, b: newBench(t), at: at, way: way}
	p.b.cfg.quick = true
	if dir, err := os.MkdirTemp("/dev/shm", "escrow"); err == nil { //nolint:usetesting // thousands of folders, in memory
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		p.b.dir, p.b.cfg.Dir = dir, dir
	}
	p.b.open() // the escrow has seen its store once
	p.b.vault.fault = func(string) (error, error) {
		if p.b.away != nil {
			return p.b.away, nil
		}
		return p.point(keystore.ErrUnknownOutcome)
	}
	return p
}

func (p *play) point(cause error) (before, after error) {
	if p.dead {
		return errInjected, nil
	}
	p.points++
	if p.points != p.at {
		return nil, nil
	}
	switch p.way {
	case failsBefore:
		return cause, nil
	case failsAfter:
		return nil, cause
	case killedHard:
		p.dead = true
		return errInjected, nil
	}
	p.dead = true
	return nil, errInjected
}

func (p *play) fault(string, string) (error, error) { return p.point(errInjected) }

// restart is what a person does after a process died.
func (p *play) restart() error {
	p.dead = false
	s, err := p.b.tryOpen()
	if err != nil {
		return err
	}
	p.s = s
	s.spool.fault = p.fault
	p.t.Cleanup(func() { _ = s.Close() })
	return nil
}

// provision is what the engine does with one unit: it gives up an earlier key
// whose burn was not begun, makes another, takes custody, and burns.
func (p *play) provision() error {
	if p.burned {
		_, err := p.s.AddState(p.t.Context(), p.key.Unit, p.key.Fingerprint, state(keystore.InSilicon))
		return err
	}
	unit := keystoretest.Simulated(1)
	metas, err := p.s.List(p.t.Context(), unit)
	if err != nil && !errors.Is(err, keystore.ErrPartial) {
		return err
	}
	for _, m := range metas {
		if m.Superseded() {
			continue
		}
		if m.MayBeInSilicon() { // the chip shows that it is not
			if _, err := p.s.AddState(p.t.Context(), unit, m.Fingerprint, state(keystore.NotInSilicon)); err != nil {
				return err
			}
		}
		if _, err := p.s.AddState(p.t.Context(), unit, m.Fingerprint, state(keystore.Superseded)); err != nil {
			return err
		}
	}
	r := keystoretest.NewRecord(p.t, unit)
	p.keys = append(p.keys, r)
	if err := p.s.Reserve(p.t.Context(), r.Meta()); err != nil {
		return err
	}
	if _, err := p.s.Create(p.t.Context(), r); err != nil {
		return err
	}
	if _, err := p.s.Confirm(p.t.Context(), unit, r.Fingerprint); err != nil {
		return err
	}
	if _, err := p.s.AddState(p.t.Context(), unit, r.Fingerprint, state(keystore.MayBeInSilicon)); err != nil {
		return err
	}
	p.key, p.burned = r, true // fuses do not go back
	_, err = p.s.AddState(p.t.Context(), unit, r.Fingerprint, state(keystore.InSilicon))
	return err
}

// again does something until it works.
func (p *play) again(what string, f func() error) {
	p.t.Helper()
	var err error
	for range 4 {
		if p.s == nil || p.dead {
			if err = p.restart(); err != nil {
				continue
			}
		}
		if err = f(); err == nil {
			return
		}
		if p.dead {
			p.s = nil
		}
		p.check()
	}
	p.t.Fatalf("point %d, way %d: %s: %v", p.at, p.way, what, err)
}

// check is what must be true at every moment.
func (p *play) check() {
	p.t.Helper()
	alive := 0
	for _, row := range p.b.vault.rows {
		if !row.meta.Superseded() {
			alive++
		}
	}
	if alive > 1 {
		p.t.Fatalf("point %d, way %d: %d keys of the unit are alive in the store", p.at, p.way, alive)
	}
	if !p.burned {
		return
	}
	// The burned key is somewhere, and whoever holds the identity gets it.
	if row := p.b.vault.find(p.key.Unit, p.key.Fingerprint); row != nil && row.record != nil {
		return
	}
	sp, err := openSpool(p.b.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	e, err := sp.load(key{p.key.Unit, p.key.Fingerprint})
	if err != nil {
		p.t.Fatalf("point %d, way %d: the burned key is nowhere: %v", p.at, p.way, err)
	}
	if _, r, err := openSealed(e.sealed, []age.Identity{p.b.id}); err != nil || !r.Key.Equal(p.key.Key) {
		p.t.Fatalf("point %d, way %d: the burned key does not open: %v", p.at, p.way, err)
	}
	if len(e.states) == 0 {
		p.t.Fatalf("point %d, way %d: the burned key has no state", p.at, p.way)
	}
}

func (p *play) all(reserved, uploads bool) {
	if reserved { // the store claims, and goes away before the record
		p.again("claim", func() error { return p.s.Reserve(p.t.Context(), p.first().Meta()) })
	}
	p.b.away = errSealed
	p.again("provision", p.provision)
	p.check()
	p.b.away = nil
	p.again("sync", func() error {
		rep, err := p.s.Sync(p.t.Context())
		if err == nil && len(rep.Findings) > 0 {
			err = fmt.Errorf("findings: %+v", rep.Findings)
		}
		return err
	})
	p.check()
	p.again("drain", func() error {
		sp, err := openSpool(p.b.dir)
		if err != nil {
			return err
		}
		sp.fault, sp.quick = p.fault, true
		src := spoolSource(sp)
		if uploads {
			src = Uploads(&fakeVault{fakeData: p.b.vault.fakeData, fault: p.b.vault.fault})
		}
		rep, err := p.b.drain(src)
		if err == nil && len(rep.Findings) > 0 {
			err = fmt.Errorf("findings: %+v", rep.Findings)
		}
		return err
	})
	p.check()
	p.again("last sync", func() error {
		rep, err := p.s.Sync(p.t.Context())
		if err == nil && (len(rep.Findings) > 0 || rep.Waiting > 0) {
			err = fmt.Errorf("%+v", rep)
		}
		return err
	})
}

func (p *play) first() keystore.Record {
	if len(p.keys) == 0 {
		p.keys = append(p.keys, keystoretest.NewRecord(p.t, keystoretest.Simulated(1)))
	}
	return p.keys[0]
}

// end is the state of the world at the end of every story.
func (p *play) end() {
	p.t.Helper()
	p.check()
	row := p.b.vault.find(p.key.Unit, p.key.Fingerprint)
	if row == nil || row.record == nil || row.meta.Current() != keystore.InSilicon {
		p.t.Fatalf("point %d, way %d: the store has not the burned key in its last state: %+v", p.at, p.way, row)
	}
	if left := p.b.files(""); len(left) > 0 {
		p.t.Errorf("point %d, way %d: left in the spool: %v", p.at, p.way, left)
	}
	// Nothing was destroyed: every sealed record is still there.
	sealed, _ := filepath.Glob(filepath.Join(p.b.dir, drainedDir, "*", "*"+sealedExt))
	if len(sealed) == 0 || !slices.ContainsFunc(sealed, func(s string) bool { return strings.Contains(s, p.key.Fingerprint.String()) }) {
		p.t.Errorf("point %d, way %d: kept: %v", p.at, p.way, sealed)
	}
}

// TestFaults lets every file operation and every call to the store fail in each
// way, and plays the story to its end.
func TestFaults(t *testing.T) {
	for i, reserved := range []bool{false, true} {
		for k, uploads := range []bool{false, true} {
			t.Run(fmt.Sprintf("reserved=%v,uploads=%v", reserved, uploads), func(t *testing.T) {
				clean := newPlay(t, 0, 0)
				clean.all(reserved, uploads)
				clean.end()
				tried := 0
				for at := 1; at <= clean.points; at++ {
					for way := range ways {
						if !*all && (at+way+i+k)%2 != 0 {
							continue
						}
						p := newPlay(t, at, way)
						p.all(reserved, uploads)
						p.end()
						tried++
					}
				}
				t.Logf("%d points, %d stories", clean.points, tried)
			})
		}
	}
}

// TestOrderOfWriting: a file has its bytes on the disk before it has its name,
// and its name before anything is acknowledged.
func TestOrderOfWriting(t *testing.T) {
	b, s := begun(t)
	var ops []string
	s.spool.fault = func(op, _ string) (error, error) {
		if op != "read" && op != "list" {
			ops = append(ops, op)
		}
		return nil, nil
	}
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	must[keystore.Receipt](t)(s.Create(t.Context(), r))
	b.add(s, r, keystore.MayBeInSilicon)
	if got := strings.Join(ops, " "); got != "write sync link syncdir write sync link syncdir" {
		t.Errorf("operations: %s", got)
	}
}

func FuzzParseSealed(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	r := keystoretest.NewRecord(f, keystoretest.Simulated(1))
	good, _, err := sealRecord(r, 1, "v1", []string{id.Recipient().String()}, r.Created)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, sealed, err := parseSealed(b)
		if err != nil {
			return
		}
		if again := slices.Concat(h.marshal(), sealed); !bytes.Equal(again, b) {
			t.Errorf("%q is written as %q", b, again)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	id, _ := age.GenerateX25519Identity()
	r := keystoretest.NewRecord(f, keystoretest.Simulated(1))
	_, h, err := sealRecord(r, 3, "v1", []string{id.Recipient().String()}, r.Created)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.TrimSuffix(h.marshal(), []byte("\n")))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err == nil && !bytes.Equal(h.marshal(), append(bytes.Clone(b), '\n')) {
			t.Errorf("%q is written as %q", b, h.marshal())
		}
	})
}

// FuzzParseSmall: states, markers, and the file that names the store.
func FuzzParseSmall(f *testing.F) {
	k := key{keystoretest.Simulated(1), keystore.Fingerprint{1, 2, 3}}
	at := keystoretest.NewRecord(f, k.unit).Created
	f.Add(marshalState(k, keystore.State{Seq: 1, Kind: keystore.Superseded, Job: "j", Note: "ü \"", Time: at}))
	f.Add(marshalOutcome(k, outcome{Stored: true, Ref: "vault:x", Time: at}))
	f.Add(inner{kind: "vault", id: "x", where: "https://x", testStore: true}.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, s, err := parseState(b); err == nil && !bytes.Equal(marshalState(k, s), b) {
			t.Errorf("state %q is written as %q", b, marshalState(k, s))
		}
		if k, o, err := parseOutcome(b); err == nil && !bytes.Equal(marshalOutcome(k, o), b) {
			t.Errorf("marker %q is written as %q", b, marshalOutcome(k, o))
		}
		if i, err := parseInner(b); err == nil && !bytes.Equal(i.marshal(), b) {
			t.Errorf("store %q is written as %q", b, i.marshal())
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add(key{keystoretest.Simulated(1), keystore.Fingerprint{1}}.name())
	f.Add("020000000001-")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := parseName(s); err == nil && k.name() != s {
			t.Errorf("%q is written as %q", s, k.name())
		}
	})
}
