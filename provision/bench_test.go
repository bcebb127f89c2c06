package provision_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/espsim/nor"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/recipe"
	"github.com/provisiond/provisiond/station/port"
)

// The sweeps try every nth point by default; -all tries them all.
var all = flag.Bool("all", false, "try every point of the fault sweeps")

// every is for the fault table alone, of which -all takes ten minutes:
// internal/check runs it at some thousands of its points.
var every = flag.Int("every", 0, "try every nth point of the fault table; 0: few")

// stride is the step of a sweep: 1 with -all. The default is a prime, so that it
// does not fall into step with what repeats in a burn.
func stride(n int) int {
	if *all {
		return 1
	}
	return n
}

var profiles = []string{"development", "hybrid", "release", "closed"}

// bench is a station: a keystore, a journal, and simulated boards. What a test
// wants to happen at a step stands in at.
type bench struct {
	t     *testing.T
	dir   string
	store keystore.Store
	jrn   provision.Journal
	// station is its name; "bench" if it is empty.
	station string

	// at is called when a step begins, before its intent: once for each name.
	at map[string]func()
	// observe sees all progress.
	observe func(provision.Event)
	// wrap gives the port of the next run another behaviour.
	wrap func(rom.Port) rom.Port
}

// newBench has the real parts: a sealed keystore and a journal on disk.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), at: map[string]func(){}}
	keys := filepath.Join(b.dir, "keystore.db")
	id := keys + ".identity"
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(keys, local.Options{IdentityFile: id, TestStore: true}); err != nil {
		t.Fatal(err)
	}
	store, err := local.Open(keys, local.Options{IdentityFile: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	jpath := filepath.Join(b.dir, "journal.db")
	if err := journal.Init(jpath, journal.Options{Station: "bench"}); err != nil {
		t.Fatal(err)
	}
	jrn, err := journal.Open(jpath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jrn.Close() })
	b.store, b.jrn = store, jrn
	return b
}

// newMemoryBench has a keystore and a journal in memory, which is fast enough to
// try hundreds of faults. Both keep the real ones' rules.
func newMemoryBench(t *testing.T) *bench {
	t.Helper()
	return &bench{t: t, dir: t.TempDir(), store: newMemoryStore(true), jrn: &memoryJournal{}, at: map[string]func(){}}
}

func model(t testing.TB, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// samples keeps one job for each sample product: a Job is read-only and serves
// many units.
var samples struct {
	sync.Mutex
	dir  string
	jobs map[string]*provision.Job
}

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "provision")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	samples.dir, samples.jobs = dir, map[string]*provision.Job{}
	debug.SetGCPercent(400) // thousands of units make little garbage each
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// sampleJob is a small own product.
func sampleJob(t testing.TB, chipName, profile string) *provision.Job {
	t.Helper()
	samples.Lock()
	defer samples.Unlock()
	name := "sample-" + chipName + "-" + profile
	if j := samples.jobs[name]; j != nil {
		return j
	}
	path, err := sample.Write(samples.dir, sample.Product{
		Chip: model(t, chipName), Name: name, Profile: profile, AppSize: 6 << 10, Baud: 921600,
	})
	if err != nil {
		t.Fatal(err)
	}
	samples.jobs[name] = load(t, path)
	return samples.jobs[name]
}

func load(t testing.TB, path string) *provision.Job {
	t.Helper()
	r, err := recipe.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	j, err := provision.NewJob(r)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// edited is the sample product with lines of its recipe replaced or added.
func edited(t testing.TB, chipName, profile string, replace ...string) *provision.Job {
	t.Helper()
	sampleJob(t, chipName, profile) // writes the build
	samples.Lock()                  // another profile's product writes the same build
	defer samples.Unlock()
	name := "sample-" + chipName + "-" + profile
	b, err := os.ReadFile(filepath.Join(samples.dir, name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(replace); i += 2 {
		if replace[i] == "" {
			text += replace[i+1] + "\n"
			continue
		}
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("the recipe has no %q", replace[i])
		}
		text = strings.Replace(text, replace[i], replace[i+1], 1)
	}
	path := filepath.Join(t.TempDir(), "edited.yaml")
	text = strings.Replace(text, "build: ", "build: "+samples.dir+"/", 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return load(t, path)
}

var unitMAC = chip.MAC{0x02, 0, 0, 0, 0, 1}

func newBoard(t testing.TB, o espsim.Options) *espsim.Chip {
	t.Helper()
	if o.Revision == 0 && o.Factory == nil {
		o.Revision = usualRevision(o.Model)
	}
	if o.AppPrints == "" {
		o.AppPrints = sample.AppText
	}
	if o.MAC == (chip.MAC{}) {
		o.MAC = unitMAC
	}
	c, err := espsim.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// usualRevision is silicon that has what F.5 is about.
func usualRevision(m chip.Model) chip.Revision {
	rev := max(m.Lockdown.ClosedMinimum, 4)
	for _, o := range m.Older {
		rev = max(rev, o.Below)
	}
	for slices.Contains(m.SecureBoot.Broken, rev) {
		rev++
	}
	return rev
}

func (b *bench) board(o espsim.Options) *espsim.Chip { return newBoard(b.t, o) }

func (b *bench) run(ctx context.Context, c *espsim.Chip, job *provision.Job) *provision.Result {
	b.t.Helper()
	began := map[string]bool{}
	e := &provision.Engine{
		Store: b.store, Journal: b.jrn, Station: cmp.Or(b.station, "bench"), Slot: "1", Operator: "anna", Lot: "lot-1",
		Observe: func(e provision.Event) {
			if b.observe != nil {
				b.observe(e)
			}
			f := b.at[e.Step]
			if f == nil || began[e.Step] || e.Done != 0 || e.Total != 0 || e.Text != "" {
				return
			}
			began[e.Step] = true
			f()
		},
	}
	p := port.FromSim(c, "sim://"+c.Model().Name)
	if b.wrap != nil {
		p = b.wrap(p)
	}
	return e.Run(ctx, provision.Line{Port: p, Reset: rom.AutoReset{}}, job)
}

// again is the next run of a person who did what was asked: power on, plugged in.
func (b *bench) again(c *espsim.Chip, job *provision.Job) *provision.Result {
	b.t.Helper()
	c.Power(true)
	c.Plug()
	if err := c.Reopen(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.at, b.wrap, b.observe = map[string]func(){}, nil, nil
	return b.run(b.t.Context(), c, job)
}

// inBubble runs f with a clock that jumps when everybody waits, so that resets
// and time-outs cost nothing. It is a parallel subtest: it ends after its caller.
func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, f)
	})
}

// bothChips runs f in a bubble for each chip.
func bothChips(t *testing.T, f func(t *testing.T, name string)) {
	t.Helper()
	for _, name := range twoChips {
		inBubble(t, name, func(t *testing.T) { f(t, name) })
	}
}

// everyChip is bothChips for all of them.
func everyChip(t *testing.T, f func(t *testing.T, name string)) {
	t.Helper()
	for _, name := range allChips() {
		inBubble(t, name, func(t *testing.T) { f(t, name) })
	}
}

func wantPass(t testing.TB, r *provision.Result) {
	t.Helper()
	if r.Verdict != provision.Pass || r.ExitCode() != 0 || r.Cause != "" || r.Reason != "" {
		t.Fatalf("%s (%s): %s; next: %s; steps %v", r.Verdict, r.Cause, r.Reason, r.NextStep, r.Steps)
	}
}

func wantVerdict(t testing.TB, r *provision.Result, v provision.Verdict, c provision.Cause, reason string) {
	t.Helper()
	if r.Verdict != v || r.Cause != c || !strings.Contains(r.Reason, reason) || r.Reason == "" || r.NextStep == "" {
		t.Fatalf("%s (%s): %q; next: %q; wanted %s (%s) with %q; steps %v", r.Verdict, r.Cause, r.Reason, r.NextStep, v, c, reason, r.Steps)
	}
}

// verdicts gives the verdicts of a unit in the journal, in their order.
func (b *bench) verdicts(mac chip.MAC) []provision.Verdict {
	b.t.Helper()
	entries, err := b.jrn.Unit(mac)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []provision.Verdict
	for _, e := range entries {
		if e.Kind == journal.KindVerdict {
			var v struct{ Verdict provision.Verdict }
			if err := json.Unmarshal(e.Payload, &v); err != nil {
				b.t.Fatal(err)
			}
			out = append(out, v.Verdict)
		}
	}
	return out
}

func (b *bench) metas(mac chip.MAC) []keystore.Meta {
	b.t.Helper()
	metas, err := b.store.List(context.Background(), mac)
	if err != nil {
		b.t.Fatal(err)
	}
	return metas
}

// words puts bytes into registers (esp-facts B.9: little-endian words).
func words(b []byte) []uint32 {
	var out []uint32
	for w := range slices.Chunk(b, 4) {
		out = append(out, binary.LittleEndian.Uint32(w))
	}
	return out
}

func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

// storedKey is the unit's only key that is not given up, from the store.
func (b *bench) storedKey(mac chip.MAC) []byte {
	b.t.Helper()
	var key []byte
	for _, m := range b.metas(mac) {
		if m.Superseded() || m.Receipt == (keystore.Receipt{}) { // given up, or only reserved
			continue
		}
		if key != nil {
			b.t.Fatal("the store has two keys that are not given up")
		}
		rec, err := b.store.Load(context.Background(), mac, m.Fingerprint)
		if err != nil {
			b.t.Fatal(err)
		}
		if err := rec.Key.Use(func(k []byte) error { key = slices.Clone(k); return nil }); err != nil {
			b.t.Fatal(err)
		}
	}
	return key
}

// cipher is the unit's encryption as the store has it.
func (b *bench) cipher(c *espsim.Chip) flashcrypt.Cipher {
	b.t.Helper()
	ci, err := flashcrypt.New(c.Model().Scheme, b.storedKey(c.MAC()), 0xF)
	if err != nil {
		b.t.Fatal(err)
	}
	return ci
}

// rest lets the board's own timers run out: EN still rises when a reset returns.
// It is the bubble's time and costs none of ours.
func rest() { time.Sleep(time.Second) }

// boots resets the board from flash and reports whether its application runs.
func boots(c *espsim.Chip) bool {
	rest()
	c.Power(false)
	c.Power(true)
	return c.State() == bootrom.Running && strings.Contains(string(c.BootText()), sample.AppText)
}

// loaderOpen reports whether the serial loader answers with all its commands.
func loaderOpen(c *espsim.Chip) bool {
	rest()
	c.Power(false)
	c.Power(true)
	c.ResetInto(true)
	return c.State() == bootrom.Download
}

// flashBytes reads the raw flash.
func flashBytes(t testing.TB, c *espsim.Chip, at uint32, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := c.Flash().ReadAt(p, int64(at)); err != nil {
		t.Fatal(err)
	}
	return p
}

// overwrite puts bytes into flash, whatever was there.
func overwrite(t testing.TB, c *espsim.Chip, at uint32, data []byte) {
	t.Helper()
	from := at / nor.SectorSize * nor.SectorSize
	to := (at + uint32(len(data)) + nor.SectorSize - 1) / nor.SectorSize * nor.SectorSize
	all := flashBytes(t, c, from, int(to-from))
	copy(all[at-from:], data)
	if err := errors.Join(c.Flash().Erase(from, to-from), c.Flash().Program(from, all)); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of a byte of flash.
func flip(t testing.TB, c *espsim.Chip, at uint32) {
	t.Helper()
	b := flashBytes(t, c, at, 1)
	overwrite(t, c, at, []byte{b[0] ^ 0x10})
}

// setField burns a field as somebody before us would have.
func setField(t testing.TB, c *espsim.Chip, f table.Field, v uint64) {
	t.Helper()
	set := make([]uint32, 16)
	for i, bit := range f.Bits() {
		set[bit/32] |= uint32(v>>i&1) << (bit % 32)
	}
	for w, bits := range set {
		if bits == 0 {
			continue
		}
		if err := c.SetFuse(f.Block, w, bits); err != nil {
			t.Fatal(err)
		}
	}
}

func fieldNamed(t testing.TB, c *espsim.Chip, name string) table.Field {
	t.Helper()
	tab, err := table.For(c.Model().Name)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := tab.Field(name)
	if !ok {
		t.Fatalf("%s has no field %s", c.Model().Name, name)
	}
	return f
}

// invariants hold after every run, whatever happened in it. before is the array
// before the first run.
func (b *bench) invariants(c *espsim.Chip, job *provision.Job, before [][]uint32, r *provision.Result) error {
	name := c.Model().Name
	var alive []keystore.Meta
	for _, m := range b.metas(c.MAC()) {
		if !m.Superseded() {
			alive = append(alive, m)
		}
	}
	if len(alive) > 1 {
		return fmt.Errorf("%d keys of the unit are not given up", len(alive))
	}
	now := c.Fuses()
	var key []byte
	if len(alive) == 1 {
		key = b.storedKey(c.MAC())
	}
	want := plan(c, job.Recipe, key)
	held, whole := want.keys(now)
	if held && (len(alive) == 0 || !alive[0].MayBeInSilicon()) {
		return errors.New("key bits are in silicon and the store holds no key that may be there")
	}
	tab, err := table.ForRevision(name, c.Revision())
	if err != nil {
		return err
	}
	value := func(field string) (v uint64) {
		f, _ := tab.Field(field)
		for i, bit := range f.Bits() {
			v |= uint64(now[f.Block][bit/32]>>(bit%32)&1) << i
		}
		return v
	}
	if hidden := value("RD_DIS") != 0; !whole && (hidden || value(c.Model().EFuse.FlashCryptCount) != 0) {
		return errors.New("the key was hidden, or the encryption switched on, before the whole key was in the block")
	}
	if err := want.outside(now, before); err != nil {
		return err
	}
	if v := b.verdicts(c.MAC()); r.Unit != "" && r.Cause != provision.CauseJournal && (len(v) == 0 || v[len(v)-1] != r.Verdict) {
		return fmt.Errorf("the journal's verdicts are %v, the result says %s", v, r.Verdict)
	}
	if r.Verdict != provision.Pass {
		if r.Reason == "" || r.NextStep == "" || r.Cause == "" {
			return fmt.Errorf("%s without cause, reason or next step: %+v", r.Verdict, r)
		}
		return nil
	}
	if err := compareFuses(c, before, job.Recipe, key); err != nil {
		return fmt.Errorf("PASS on wrong fuses: %w", err)
	}
	if alive[0].Current() != keystore.InSilicon {
		return fmt.Errorf("PASS and the store says %q of the key", alive[0].Current())
	}
	if !boots(c) {
		return fmt.Errorf("PASS and the unit does not boot: %s", c.BootText())
	}
	return nil
}
