package provision_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/report"
	"github.com/provisiond/provisiond/station/port"
)

// This file is the world that the fault table runs in: a board, a station's journal
// and keystore on disk, one process after the other that works on them, and the
// check of the whole state.

// The kinds of operations that a run is made of.
const (
	atRegister = "register write"
	atFlash    = "flash block"
	atCommand  = "loader command"
	atRead     = "register read"
	atLines    = "control lines"
	atJournal  = "journal commit"
	atKeystore = "keystore call"
)

// operation is one thing that a run does to its surroundings.
type operation struct {
	n      int // from 1
	kind   string
	name   string
	step   string // of the run
	op     byte   // of a request to the loader
	nth    int    // of its kind, since the board was made
	writes int    // register writes since the board was made
	burn   bool   // the register write that starts a burn
}

// how an operation goes wrong.
type how string

const (
	fails       how = "failed"
	happens     how = "failed but happened"
	failsOn     how = "failed, and all after it" // a full disk
	killsBefore how = "process killed before"
	killsAfter  how = "process killed after"
	losesPower  how = "chip lost power"
	losesPort   how = "port vanished before"
	portAfter   how = "port vanished after"
)

// faultPoint is one line of the table.
type faultPoint struct {
	operation
	how  how
	seed int64 // which bits of a burn are missed
}

func (p faultPoint) String() string {
	return fmt.Sprintf("operation %d (%s %s, step %s): %s, seed %d", p.n, p.kind, p.name, p.step, p.how, p.seed)
}

// faults are what the board has to do for the point.
func (p *faultPoint) faults() espsim.Faults {
	if p == nil {
		return espsim.Faults{}
	}
	f := espsim.Faults{Seed: p.seed}
	switch {
	case p.op == 0:
	case p.how == fails:
		f.Refuse = []espsim.Refusal{{Op: p.op, Nth: p.nth, Status: [2]byte{1, 7}}}
	case p.how == happens:
		f.Lose = []espsim.Loss{{Op: p.op, Nth: p.nth}}
	case p.how == losesPower && p.kind == atRegister:
		f.PowerAtWrite = p.writes + 1
	}
	return f
}

// stationFiles is a fresh station: a journal and a keystore. Each world gets a copy.
type stationFiles struct {
	dir       string
	publicKey string
}

const (
	journalFile  = "journal.db"
	keystoreFile = "keystore.db"
)

// quickDir is a directory in memory where there is one: a commit is an fsync.
func quickDir(t testing.TB) string {
	t.Helper()
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "provision") //nolint:usetesting // t.TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newStationFiles(t *testing.T) stationFiles {
	t.Helper()
	s := stationFiles{dir: quickDir(t)}
	id := filepath.Join(s.dir, keystoreFile+".identity")
	if _, err := local.NewIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(filepath.Join(s.dir, keystoreFile), local.Options{IdentityFile: id, TestStore: true}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, journalFile)
	if err := journal.Init(path, journal.Options{Station: "bench"}); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(journal.PublicKeyPath(path))
	if err != nil {
		t.Fatal(err)
	}
	s.publicKey = string(bytes.TrimSpace(key))
	return s
}

func copyFiles(t testing.TB, from, to string) {
	t.Helper()
	list, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		b, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, f.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// world is one board's life at one station.
type world struct {
	t      *testing.T
	key    string // the station's public key
	c      *espsim.Chip
	job    *provision.Job
	before [][]uint32

	slot, serial string // of the next run
	uncertified  bool   // checkWorld makes no certificate

	dir   string
	jrn   *journal.Journal
	store keystore.Store
	away  bool // the keystore is a server: it outlives the station's processes

	setUp   int             // entries that were there before
	acked   []journal.Entry // entries that must be in the journal, in this order
	burns   int             // seen so far
	results []*provision.Result
	broken  []error // rules that were seen broken while it ran
}

func newWorld(t *testing.T, files stationFiles, chipName, profile string, reserving bool, p *faultPoint) *world {
	t.Helper()
	return newRowWorld(t, files, tableRow{chip: chipName, profile: profile, reserving: reserving}, p)
}

func newRowWorld(t *testing.T, files stationFiles, row tableRow, p *faultPoint) *world {
	t.Helper()
	w := &world{t: t, key: files.publicKey, job: row.job(t), away: row.reserving, slot: "1"}
	o := espsim.Options{Model: model(t, row.chip), Faults: p.faults()}
	if row.full {
		o.Build = bootrom.Build{SecureBoot: true, Scheme: w.job.Recipe.SecureBoot.Scheme}
	}
	w.c = newBoard(t, o)
	w.before = w.c.Fuses()
	if row.reserving {
		w.store = &reservingStore{memoryStore: newMemoryStore(true)}
	}
	w.open(files.dir)
	size, _ := w.jrn.Head()
	w.setUp = int(size)
	return w
}

// open starts a process on a copy of the files as they are: what is not in them is
// lost.
func (w *world) open(from string) {
	w.t.Helper()
	dir := quickDir(w.t)
	copyFiles(w.t, from, dir)
	w.close()
	w.dir = dir
	var err error
	if w.jrn, err = journal.Open(filepath.Join(dir, journalFile)); err != nil {
		w.t.Fatal(err)
	}
	if w.away {
		return
	}
	path := filepath.Join(dir, keystoreFile)
	if w.store, err = local.Open(path, local.Options{IdentityFile: path + ".identity"}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	if w.jrn != nil {
		_ = w.jrn.Close()
	}
	if w.store != nil && !w.away {
		_ = w.store.Close()
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}

// run is one process's run on the board. It gives nil if the process was killed;
// the next one then has the files as they were at that moment.
func (w *world) run(p *faultPoint, record *[]operation) *provision.Result {
	w.t.Helper()
	s := &session{world: w, point: p, record: record}
	var store keystore.Store = storeSession{s, w.store}
	if r, ok := w.store.(keystore.Reserver); ok {
		store = reservingSession{storeSession{s, w.store}, r}
	}
	e := &provision.Engine{
		Store: store, Journal: journalSession{s, w.jrn}, Station: "bench", Slot: w.slot, Operator: "anna", Lot: "lot-1",
		Observe: func(ev provision.Event) { s.step = ev.Step },
	}
	line := provision.Line{Port: &portSession{Port: port.FromSim(w.c, "sim://"+w.c.Model().Name), s: s}, Reset: rom.AutoReset{}, Serial: w.serial}
	var r *provision.Result
	over := make(chan struct{})
	go func() {
		defer close(over) // also when kill ends the goroutine
		r = e.Run(w.t.Context(), line, w.job)
	}()
	<-over
	s.dead = true
	s.burnedOnlyInStep(true)
	if s.killed {
		r = nil
		synctest.Wait() // nothing writes
		w.open(w.dir)
	}
	w.results = append(w.results, r)
	return r
}

// restart is what the person at the bench does before the next run: power on, cable
// in. A process that is gone has let go of the lines.
func (w *world) restart() {
	w.t.Helper()
	w.c.Unplug()
	w.c.Power(true)
	w.c.Plug()
	if err := w.c.Reopen(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	rest()
}

// session is what one process holds of the world. When the process is dead, nothing
// that is left of it has any effect.
type session struct {
	*world
	point        *faultPoint
	record       *[]operation
	n            int
	step         string
	dead, killed bool
	stuck        bool // journal or keystore fail from now on
	intent       journal.Entry
	seen         map[string]bool // steps and kinds of this run's entries
}

var errDead = errors.New("the process is dead")

// do runs one operation, or lets it go wrong.
func (s *session) do(o operation, act func() error) error {
	if s.dead {
		return errDead
	}
	s.n++
	o.n, o.step = s.n, s.step
	if s.record != nil {
		*s.record = append(*s.record, o)
	}
	if s.stuck && s.point.kind == o.kind {
		return errInjected
	}
	if s.point == nil || s.point.n != s.n {
		return act()
	}
	onWire := o.op != 0
	switch s.point.how {
	case fails:
		if !onWire { // the board refuses by itself
			return errInjected
		}
	case happens:
		if !onWire {
			return errors.Join(act(), errInjected)
		}
	case failsOn:
		s.stuck = true
		return errInjected
	case killsBefore:
		s.kill()
	case killsAfter:
		_ = act()
		s.kill()
	case losesPower:
		if o.kind != atRegister { // the board does it by itself
			s.c.Power(false)
		}
	case losesPort:
		s.c.Unplug()
	case portAfter:
		err := act()
		s.c.Unplug()
		return err
	}
	return act()
}

// kill ends the process: only deferred calls still run, and change nothing.
func (s *session) kill() {
	s.dead, s.killed = true, true
	runtime.Goexit()
}

// portSession is the process's port.
type portSession struct {
	rom.Port
	s *session
}

// Write sends a request: the client sends each with one call.
func (p *portSession) Write(ctx context.Context, b []byte) (n int, err error) {
	o := operation{kind: atCommand, name: "?"}
	if at := bytes.IndexByte(b, 0xC0); at >= 0 && len(b) > at+2 && b[at+1] == 0 {
		o.op = b[at+2]
		o.name, o.nth, o.writes = fmt.Sprintf("%02X", o.op), p.s.c.Requests(o.op)+1, p.s.c.RegisterWrites()
		switch o.op {
		case 0x09:
			o.kind = atRegister
			o.burn = p.s.burnCommand(b[at+1:])
		case 0x0A:
			o.kind = atRead
		case 0x02, 0x03:
			o.kind = atFlash
		}
	}
	err = p.s.do(o, func() error { n, err = p.Port.Write(ctx, b); return err })
	return n, err
}

// burnCommand tells a WRITE_REG of the eFuse controller's program command. The
// request is still in SLIP's form, in which addresses and commands of these chips
// have nothing to escape.
func (s *session) burnCommand(b []byte) bool {
	const header = 8
	if len(b) < header+8 {
		return false
	}
	word := func(at int) (v uint32) {
		for i := range 4 {
			v |= uint32(b[at+i]) << (8 * i)
		}
		return v
	}
	return word(header) == s.c.Model().EFuse.Cmd && word(header+4)&2 != 0
}

func (p *portSession) Read(ctx context.Context, b []byte) (int, error) {
	if p.s.dead {
		return 0, errDead
	}
	return p.Port.Read(ctx, b)
}

func (p *portSession) SetLines(ctx context.Context, dtr, rts bool) error {
	return p.s.do(operation{kind: atLines, name: fmt.Sprintf("DTR %t RTS %t", dtr, rts)}, func() error { return p.Port.SetLines(ctx, dtr, rts) })
}

func (p *portSession) SetBaud(ctx context.Context, baud int) error {
	if p.s.dead {
		return errDead
	}
	return p.Port.SetBaud(ctx, baud)
}

func (p *portSession) Discard(ctx context.Context) error {
	if p.s.dead {
		return errDead
	}
	return p.Port.Discard(ctx)
}

func (p *portSession) Reopen(ctx context.Context) error {
	if p.s.dead {
		return errDead
	}
	return p.Port.Reopen(ctx)
}

// journalSession is the process's journal.
type journalSession struct {
	s *session
	j *journal.Journal
}

func (j journalSession) Append(ctx context.Context, e journal.Entry) (out journal.Entry, err error) {
	err = j.s.do(operation{kind: atJournal, name: string(e.Kind) + " " + e.Step}, func() error {
		if out, err = j.j.Append(ctx, e); err == nil {
			j.s.watch(out)
		}
		return err
	})
	return out, err
}

// watch holds every entry against what the board did since the one before.
func (s *session) watch(e journal.Entry) {
	s.acked = append(s.acked, e)
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	name := string(e.Kind) + " " + e.Step
	if s.seen[name] {
		s.broken = append(s.broken, fmt.Errorf("a run wrote %s twice", name))
	}
	s.seen[name] = true
	// A step whose observation the journal did not take is followed by the verdict.
	s.burnedOnlyInStep(e.Kind == journal.KindObserved && e.Step == s.intent.Step || e.Kind == journal.KindVerdict)
	if s.intent = (journal.Entry{}); e.Kind == journal.KindIntent {
		s.intent = e
	}
}

// burnedOnlyInStep: between two entries nothing is burned, unless the first is the
// intent of a one-way step. ends says that the second one ends that step.
func (s *session) burnedOnlyInStep(ends bool) {
	burns := s.c.Burns() - s.burns
	s.burns = s.c.Burns()
	var intent struct {
		OneWay bool `json:"one_way"`
	}
	if len(s.intent.Payload) > 0 {
		if err := json.Unmarshal(s.intent.Payload, &intent); err != nil {
			s.broken = append(s.broken, err)
		}
	}
	if burns > 0 && (!intent.OneWay || !ends) {
		s.broken = append(s.broken, fmt.Errorf("%d burns after the entry %q of step %q", burns, s.intent.Kind, s.intent.Step))
	}
}

func (j journalSession) Unit(mac chip.MAC) ([]journal.Entry, error) {
	if j.s.dead {
		return nil, errDead
	}
	return j.j.Unit(mac)
}

func (j journalSession) Head() (uint64, journal.Hash) { return j.j.Head() }

func (j journalSession) Entries(from, to uint64) iter.Seq2[journal.Entry, error] {
	return j.j.Entries(from, to)
}

// storeSession is the process's keystore.
type storeSession struct {
	s *session
	keystore.Store
}

func (s storeSession) do(name string, act func() error) error {
	return s.s.do(operation{kind: atKeystore, name: name}, func() error { return act() })
}

// storeError is what a store says of an injected fault.
func (s storeSession) storeError(err error) error {
	switch {
	case !errors.Is(err, errInjected):
		return err
	case s.s.point.how == happens:
		return errors.Join(keystore.ErrUnknownOutcome, err)
	}
	return errors.Join(keystore.ErrUnavailable, err)
}

func (s storeSession) Info(ctx context.Context) (out keystore.Info, err error) {
	err = s.do("Info", func() error { out, err = s.Store.Info(ctx); return err })
	return out, s.storeError(err)
}

func (s storeSession) Create(ctx context.Context, r keystore.Record) (out keystore.Receipt, err error) {
	err = s.do("Create", func() error { out, err = s.Store.Create(ctx, r); return err })
	return out, s.storeError(err)
}

func (s storeSession) Confirm(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint) (out keystore.Receipt, err error) {
	err = s.do("Confirm", func() error { out, err = s.Store.Confirm(ctx, unit, fp); return err })
	return out, s.storeError(err)
}

func (s storeSession) List(ctx context.Context, unit chip.MAC) (out []keystore.Meta, err error) {
	err = s.do("List", func() error { out, err = s.Store.List(ctx, unit); return err })
	return out, s.storeError(err)
}

func (s storeSession) AddState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, st keystore.State) (out keystore.Receipt, err error) {
	err = s.do("AddState "+string(st.Kind), func() error { out, err = s.Store.AddState(ctx, unit, fp, st); return err })
	return out, s.storeError(err)
}

type reservingSession struct {
	storeSession
	r keystore.Reserver
}

func (s reservingSession) Reserve(ctx context.Context, m keystore.Meta) error {
	return s.storeError(s.do("Reserve", func() error { return s.r.Reserve(ctx, m) }))
}

// checkWorld looks at everything: after every run, whatever happened in it.
func (w *world) checkWorld() error {
	r := w.results[len(w.results)-1]
	if len(w.broken) > 0 {
		return errors.Join(w.broken...)
	}
	if err := w.checkJournal(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	key, meta, err := w.checkKeystore()
	if err != nil {
		return fmt.Errorf("keystore: %w", err)
	}
	if err := w.checkChip(key, meta); err != nil {
		return fmt.Errorf("chip: %w", err)
	}
	if w.finished() {
		if err := w.checkPass(key, meta); err != nil {
			return fmt.Errorf("PASS: %w", err)
		}
	}
	if r == nil {
		return nil
	}
	return w.checkResult(r, meta)
}

// checkJournal: every entry that was confirmed is there, in its order, once; no
// other is; and `journal verify` finds nothing.
func (w *world) checkJournal() error {
	if _, err := w.jrn.Verify(w.t.Context(), nil, journal.AgainstKey(w.key)); err != nil {
		return err
	}
	size, _ := w.jrn.Head()
	if want := w.setUp + len(w.acked); int(size) != want {
		return fmt.Errorf("%d entries, and %d were confirmed", size, want)
	}
	i := 0
	for e, err := range w.jrn.Entries(uint64(w.setUp), size) {
		if err != nil {
			return err
		}
		if a := w.acked[i]; e.Index != a.Index || e.Prev != a.Prev || !e.Time.Equal(a.Time) || e.Unit != a.Unit || e.Job != a.Job ||
			e.Slot != a.Slot || e.Step != a.Step || e.Kind != a.Kind || !bytes.Equal(e.Payload, a.Payload) {
			return fmt.Errorf("entry %d is %+v, and %+v was confirmed", e.Index, e, a)
		}
		i++
	}
	return nil
}

// checkKeystore: the store is sound, every record's history is legal, and at most
// one key is not given up. It gives that key.
func (w *world) checkKeystore() (key []byte, meta *keystore.Meta, err error) {
	ctx := w.t.Context()
	metas, err := w.store.List(ctx, unitMAC)
	if err != nil {
		return nil, nil, err
	}
	for i, m := range metas {
		for n, s := range m.States {
			if err := keystore.CheckTransition(m.States[:n], s.Kind); err != nil {
				return nil, nil, fmt.Errorf("key %s: %w", m.Fingerprint, err)
			}
		}
		if m.Superseded() {
			continue
		}
		if meta != nil {
			return nil, nil, errors.New("two keys are not given up")
		}
		meta = &metas[i]
	}
	if w.away {
		// A reservation has no record yet.
	} else if rep, err := keystore.Check(ctx, w.store, keystore.CheckOptions{ReadKeys: true}); err != nil || len(rep.Findings) > 0 {
		return nil, nil, fmt.Errorf("%v: %w", rep.Findings, errors.Join(err, errors.New("the store is not sound")))
	}
	if meta == nil {
		return nil, nil, nil
	}
	rec, err := w.store.Load(ctx, unitMAC, meta.Fingerprint)
	if w.away && errors.Is(err, keystore.ErrNotFound) {
		return nil, meta, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer rec.Key.Wipe()
	err = rec.Key.Use(func(k []byte) error { key = slices.Clone(k); return nil })
	return key, meta, err
}

// field reads a field of the array as it is, loaded or not.
func (w *world) field(name string) (v uint64) {
	tab, err := table.For(w.c.Model().Name)
	if err != nil {
		w.t.Fatal(err)
	}
	f, ok := tab.Field(name)
	if !ok {
		w.t.Fatalf("no field %s", name)
	}
	now := w.c.Fuses()
	for i, bit := range f.Bits() {
		v |= uint64(now[f.Block][bit/32]>>(bit%32)&1) << i
	}
	return v
}

// checkChip: no bit outside the plan was burned; key bits in silicon are of the key
// that custody holds; only a whole key is hidden; and with encryption on, the flash
// boots.
func (w *world) checkChip(key []byte, meta *keystore.Meta) error {
	now := w.c.Fuses()
	p := plan(w.c, w.job.Recipe, key)
	held, whole := p.keys(now)
	switch {
	case held && (meta == nil || key == nil):
		return errors.New("key bits are in silicon and custody holds no key")
	case held && !meta.MayBeInSilicon():
		return fmt.Errorf("key bits are in silicon and the keystore says %q", meta.Current())
	}
	if err := p.outside(now, w.before); err != nil {
		return err
	}
	if meta != nil && slices.ContainsFunc(meta.States, func(s keystore.State) bool { return s.Kind == keystore.InSilicon }) && !whole {
		return errors.New("the keystore says that the key is in silicon, and it is not whole there")
	}
	count := w.field(w.c.Model().EFuse.FlashCryptCount)
	if !whole && (w.field("RD_DIS") != 0 || count != 0) {
		return errors.New("the key was hidden, or encryption switched on, before the whole key was there")
	}
	odd := false
	for c := count; c != 0; c &= c - 1 {
		odd = !odd
	}
	if odd && !boots(w.c) {
		return fmt.Errorf("encryption is on and the flash does not boot: %s", w.c.BootText())
	}
	return nil
}

// finished: a verdict PASS stands in the journal.
func (w *world) finished() bool {
	return slices.ContainsFunc(w.acked, func(e journal.Entry) bool { return verdictOf(e) == provision.Pass })
}

func verdictOf(e journal.Entry) provision.Verdict {
	var v struct {
		Verdict provision.Verdict `json:"verdict"`
	}
	if e.Kind != journal.KindVerdict || json.Unmarshal(e.Payload, &v) != nil {
		return ""
	}
	return v.Verdict
}

// checkPass: fuses, flash, keystore and certificate of a finished unit.
func (w *world) checkPass(key []byte, meta *keystore.Meta) error {
	if key == nil {
		return errors.New("custody holds no key")
	}
	if err := compareFuses(w.c, w.before, w.job.Recipe, key); err != nil {
		return err
	}
	if err := w.settle(meta); err != nil {
		return err
	}
	cipher, err := flashcrypt.New(w.job.Recipe.Scheme(), key, 0xF)
	if err != nil {
		return err
	}
	regions, err := w.job.Layout.Encrypt(cipher)
	if err != nil {
		return err
	}
	for _, r := range regions {
		if !bytes.Equal(flashBytes(w.t, w.c, r.Region.Offset, len(r.Data)), r.Data) {
			return fmt.Errorf("region %s in flash is not what the stored key makes of the image", r.Region.Name)
		}
	}
	if !boots(w.c) {
		return fmt.Errorf("the unit does not boot: %s", w.c.BootText())
	}
	if w.uncertified {
		return nil
	}
	return w.checkCertificate(meta)
}

// settle: the keystore knows that the key is in silicon. If it was away when the unit
// was finished, it is told later, and from then on journal and keystore agree.
func (w *world) settle(meta *keystore.Meta) error {
	ctx := w.t.Context()
	rep, err := provision.Settle(ctx, w.jrn, w.store, 0)
	if err != nil || len(rep.Findings) > 0 || rep.Settled > 1 {
		return fmt.Errorf("settled: %+v, %w", rep, err)
	}
	told := meta.Current() == keystore.InSilicon
	_, now, err := w.checkKeystore()
	if err != nil || now == nil {
		return fmt.Errorf("no key after settling: %w", err)
	}
	*meta = *now
	if k := meta.Current(); k != keystore.InSilicon || told == (rep.Settled == 1) {
		return fmt.Errorf("%d units settled, and the keystore says %q of the key", rep.Settled, k)
	}
	if w.uncertified {
		return nil
	}
	r := report.NewReconciler()
	err = errors.Join(report.KeystoreLines(ctx, w.store, r.AddKey), report.JournalLines(func(yield func(journal.Entry, error) bool) {
		size, _ := w.jrn.Head()
		w.jrn.Entries(0, size)(yield)
	}, r.AddUnit, r.AddHead))
	if err != nil {
		return err
	}
	if rec := r.Reconcile(); len(rec.Findings) > 0 {
		return fmt.Errorf("reconcile: %+v", rec.Findings)
	}
	return nil
}

func (w *world) checkCertificate(meta *keystore.Meta) error {
	signer, err := journal.LoadKey(filepath.Join(w.dir, filepath.Base(journal.KeyPath(journalFile))))
	if err != nil {
		return err
	}
	checkpoint, err := w.jrn.Checkpoint(w.t.Context())
	if err != nil {
		return err
	}
	cert, err := report.NewCertificate(w.t.Context(), report.Log{
		Unit: w.jrn.Unit, Entries: w.jrn.Entries, Checkpoint: checkpoint.Note,
		Prove: func(index, size uint64) ([]journal.Hash, error) { return w.jrn.Prove(index, size) },
	}, unitMAC, signer)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if signer.PublicKey() != w.key { // with it NewCertificate has verified what it gives
		return fmt.Errorf("the certificate is signed for %s", signer.PublicKey())
	}
	var c struct {
		Statement report.Statement `json:"statement"`
	}
	if err := json.Unmarshal(cert, &c); err != nil {
		return err
	}
	s := c.Statement
	if s.Verdict != string(provision.Pass) || s.KeyFingerprint != meta.Fingerprint.String() || s.Unit != unitMAC.String() ||
		len(s.Images) != len(w.job.Layout.Summary()) || (s.Closing != nil) != w.closed() {
		return fmt.Errorf("the certificate says %s, key %q, %d images, closing %v", s.Verdict, s.KeyFingerprint, len(s.Images), s.Closing)
	}
	return nil
}

// closed: the board's loader is not open any more.
func (w *world) closed() bool {
	m, profile := w.c.Model(), w.job.Recipe.Profile
	switch profile {
	case "release":
		return w.field(m.Lockdown.ReleaseFuse) != 0
	case "closed":
		return w.field(m.Lockdown.ClosedFuse) != 0
	}
	return false
}

// checkResult: the result tells what it has to, and the journal tells the same.
func (w *world) checkResult(r *provision.Result, meta *keystore.Meta) error {
	if r.Verdict == provision.Pass != (r.Cause == "" && r.Reason == "") || r.Verdict != provision.Pass && r.NextStep == "" {
		return fmt.Errorf("%s (%s) with reason %q and next step %q", r.Verdict, r.Cause, r.Reason, r.NextStep)
	}
	unwritten := r.Cause == provision.CauseJournal || r.Verdict == provision.Quarantined && strings.Contains(r.Reason, "could not be written")
	if n := len(w.acked); !unwritten && (n == 0 || verdictOf(w.acked[n-1]) != r.Verdict) {
		return fmt.Errorf("the result says %s, and the journal's last entry does not", r.Verdict)
	}
	for _, s := range r.Steps {
		// A board that is found closed is no failure of its unit (cut.go).
		if s.Outcome == "" || s.Outcome != "done" && r.Verdict == provision.Pass && (s.Name != "connect" || r.Closing == nil) {
			return fmt.Errorf("%s, and step %s has outcome %q", r.Verdict, s.Name, s.Outcome)
		}
	}
	if r.Verdict == provision.Quarantined && meta != nil && r.KeyFingerprint != "" && r.KeyFingerprint != meta.Fingerprint.String() {
		return fmt.Errorf("quarantined with key %s, and custody holds %s", r.KeyFingerprint, meta.Fingerprint)
	}
	return nil
}

// outcome runs the job again and again, as the person at the bench does, until the
// unit is finished or set aside. It gives the verdicts in their order.
func (w *world) outcome(first *faultPoint, second func(run int) *faultPoint) (verdicts []string, err error) {
	for run := range 6 {
		p := first
		if run > 0 {
			p = second(run)
		}
		r := w.run(p, nil)
		w.restart()
		what := "killed"
		if r != nil {
			what = string(r.Verdict)
		}
		verdicts = append(verdicts, what)
		if err := w.checkWorld(); err != nil {
			reason := ""
			if r != nil {
				reason = r.Reason
			}
			return verdicts, fmt.Errorf("%w (%s: %s)", err, what, reason)
		}
		switch {
		case r != nil && r.Verdict == provision.Quarantined:
			return verdicts, nil
		case r != nil && w.finished(): // and known to be: also by a refusal
			return verdicts, nil
		}
	}
	return verdicts, w.ended()
}

// ended is for a unit that neither passed nor is set aside.
func (w *world) ended() error {
	r := w.results[len(w.results)-1]
	if r == nil || !slices.EqualFunc(w.before, w.c.Fuses(), slices.Equal) {
		return errors.New("a burned unit is neither finished nor set aside")
	}
	return nil
}

// mayQuarantine: what is known of the unit is really not enough to go on. Its key
// block holds a part of a key that nobody has at hand, or its loader is closed, or
// the closing may have been burned and the board was silent when it was looked at.
func (w *world) mayQuarantine() bool {
	if r := w.results[len(w.results)-1]; r != nil && strings.Contains(r.Reason, "gives no sign of it") {
		return true
	}
	key, _, err := w.checkKeystore()
	if err != nil {
		key = nil
	}
	p := plan(w.c, w.job.Recipe, key)
	damaged := slices.ContainsFunc(p.secret, w.c.Damaged)
	return p.partly(w.c.Fuses()) || w.closed() || damaged
}
