package shift_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station"
)

// The shift is -units 2000 -slots 64 -outage 1m; internal/check runs it.
// By default a small one runs with the other tests.
var (
	units  = flag.Int("units", 60, "how many boards go through the station")
	slots  = flag.Int("slots", 8, "how many slots it has")
	outage = flag.Duration("outage", 5*time.Second, "how long the keystore is away")
	seed   = flag.Uint64("seed", 1, "of all that goes wrong")
)

// TestShift plays a shift: boards come and go, three in a hundred have a fault,
// the keystore is away for a while, the station is killed in the middle, and a hub
// is pulled. At the end every unit is accounted for, the journal verifies, journal
// and keystore agree, and no key is in silicon that the keystore does not have.
func TestShift(t *testing.T) {
	if *slots < 4 || *units < *slots {
		t.Fatal("-slots is at least 4, and -units at least -slots")
	}
	s := newShift(t)
	s.startStation()
	s.openLots()
	s.work()
	s.endOfShift()
}

// shift is everything that stands in the hall.
type shift struct {
	t    *testing.T
	dir  string
	bin  string
	farm *farm
	srv  *vaulttest.Server
	url  string
	rand *rand.Rand

	cmd    *exec.Cmd
	exited chan error
	errOut *bytes.Buffer

	seats []*seat
	burns map[int]waitingBoard // of the slots that wait for the keystore
	made  int                  // boards so far
	left  map[string]string    // unit → how it left the station
	hurt  map[string]bool      // units that something happened to: a fault, the kill, the hub
	count map[string]int       // of everything that happened
}

// seat is a slot as the operator sees it.
type seat struct {
	name    string
	board   *board
	since   time.Time // when the station last did something with it
	plugged bool
	busy    bool
}

// waitingBoard is a board that waits for the keystore, and how often it was burned
// when that was seen first.
type waitingBoard struct {
	mac   chip.MAC
	burns int
}

type board struct {
	mac    chip.MAC
	fault  string
	tries  int
	placed time.Time
}

func newShift(t *testing.T) *shift {
	t.Helper()
	s := &shift{
		t: t, dir: t.TempDir(), rand: rand.New(rand.NewPCG(*seed, 0)), left: map[string]string{}, hurt: map[string]bool{}, burns: map[int]waitingBoard{}, count: map[string]int{},
	}
	s.bin = build(t, s.dir, "./cmd/provisiond")
	s.farm = newFarm(t, build(t, s.dir, "./internal/farm"))
	s.srv = vaulttest.New(t)

	s.write("admin.token", s.srv.Root+"\n")
	s.write("admin.yaml", s.vaultConfig("login: {token_file: admin.token}"))
	s.run(0, "keystore", "init", "--vault", "admin.yaml", "--test", "--station", "line1=127.0.0.0/8")
	s.run(0, "keystore", "secret-id", "admin.yaml", "--role", "station", "--station", "line1", "--out", "station")
	s.write("vault.yaml", s.vaultConfig("login: {approle: {role_id_file: station.role-id, secret_id_file: station.secret-id, token_cache: station.token}}"))
	s.run(0, "journal", "init", "journal.db", "--station", "line1")
	for _, name := range []string{"esp32", "esp32c3"} {
		m, err := chip.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sample.Write(filepath.Join(s.dir), sample.Product{Chip: m, Name: name, Profile: "release", AppSize: 16 << 10, Baud: 921600}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.dir, "ports.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var ports strings.Builder
	for i := range *slots {
		s.seats = append(s.seats, &seat{name: fmt.Sprintf("S%02d", i)})
		s.place(i)
		fmt.Fprintf(&ports, "---\nslot: S%02d\nport: rfc2217://%s\n", i, s.farm.address[i])
	}
	s.write("ports.d/all.yaml", strings.TrimPrefix(ports.String(), "---\n"))
	token := "shift-token-0123456789"
	s.write("tokens", fmt.Sprintf("operator engineer %x\n", sha256.Sum256([]byte(token))))
	listen := freeAddress(t)
	s.url = "http://" + listen
	s.write("station.yaml", fmt.Sprintf(`station: line1
state: state
journal: {file: journal.db}
keystore: vault:vault.yaml
recipes: [esp32.yaml, esp32c3.yaml]
ports: ports.d
simulated: {}
web: {listen: %q, tokens: tokens}
`, listen))
	return s
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// build builds one of our programs, without the race detector: what is tested is
// the program that ships.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, pkg)
	cmd.Dir = filepath.Join("..", "..")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return out
}

func (s *shift) vaultConfig(login string) string {
	return fmt.Sprintf("addresses: [%q]\nca_cert: %q\nstation: line1\npatience: 3s\n%s\n", s.srv.Addr, s.srv.CA.File, login)
}

func (s *shift) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shift) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "VAULT_ADDR=", "VAULT_NAMESPACE=")
	return cmd
}

// run runs a command to its end.
func (s *shift) run(code int, args ...string) string {
	s.t.Helper()
	cmd := s.command(args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("provisiond %s: exit code %d, want %d\n%s\n%s", strings.Join(args, " "), got, code, &out, &errOut)
	}
	return out.String()
}

// startStation starts the daemon and waits until it is ready.
func (s *shift) startStation() {
	s.t.Helper()
	s.cmd, s.errOut, s.exited = s.command("run", "--config", "station.yaml"), &bytes.Buffer{}, make(chan error, 1)
	s.cmd.Stderr = s.errOut
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(s.cmd, s.exited)
	s.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	for range 600 {
		if _, err := s.view(); err == nil {
			return
		}
		select {
		case err := <-s.exited:
			s.t.Fatalf("the station ended: %v\n%s", err, s.errOut)
		case <-time.After(100 * time.Millisecond):
		}
	}
	s.t.Fatalf("the station does not answer\n%s", s.errOut)
}

func (s *shift) api(method, path string, body, answer any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+"/api/v1/"+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer shift-token-0123456789")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}

func (s *shift) view() (station.View, error) {
	var v station.View
	return v, s.api(http.MethodGet, "station", nil, &v)
}

// openLots opens a lot of each product, each for half of the slots.
func (s *shift) openLots() {
	s.t.Helper()
	names := map[string][]string{}
	for i, seat := range s.seats {
		names[product(i)] = append(names[product(i)], seat.name)
	}
	for name, list := range names {
		err := s.api(http.MethodPost, "lots", station.LotRequest{
			ID: "lot-" + name, Recipe: name, Quantity: *units, Forever: true, Slots: list,
			Serials: station.Serials{From: station.SerialsRange, First: strings.ToUpper(name) + "-000001"},
		}, nil)
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func product(slot int) string { return []string{"esp32", "esp32c3"}[slot%2] }

// place puts the next board into a slot, if there is one.
func (s *shift) place(i int) {
	s.t.Helper()
	if s.made == *units {
		return
	}
	s.made++
	b := &board{mac: chip.MAC{0x02, 0x5F, 0, 0, byte(s.made >> 8), byte(s.made)}, placed: time.Now()}
	if s.rand.IntN(100) < 3 {
		b.fault = s.fault()
		s.hurt[b.mac.String()] = true
		s.count["boards with a fault"]++
	}
	s.farm.must(request{Op: "insert", Slot: i, Chip: product(i), MAC: b.mac, Faults: b.fault, Seed: int64(s.made)})
	s.seats[i].board, s.seats[i].plugged, s.seats[i].since = b, true, time.Now()
}

// fault is something that goes wrong with a board or its line.
func (s *shift) fault() string {
	n := s.rand.IntN
	return []string{
		"noise=2e-4",
		"drop=1e-4",
		"noise=1e-3,window=burn",
		fmt.Sprintf("unplug=%d", 200+n(30000)),
		fmt.Sprintf("unplug-write=%d", 1+n(300)),
		fmt.Sprintf("power=%d", 1+n(400)),
		fmt.Sprintf("power-data=%d", 1+n(30)),
		"weak=0.05",
		fmt.Sprintf("ignore-reset=%d", 1+n(3)),
	}[n(9)]
}

// work is the operator's shift: look at the page, swap boards, mend what is broken;
// and the things that happen to a line.
func (s *shift) work() {
	t := s.t
	killed, awayFrom, back, pulled := false, time.Time{}, false, false
	last := time.Now()
	for {
		v, err := s.view()
		if err != nil {
			select {
			case err := <-s.exited:
				t.Fatalf("the station ended: %v\n%s", err, s.errOut)
			default:
			}
			t.Fatal(err)
		}
		done := len(s.left)
		if done == *units {
			break
		}
		for i, sv := range v.Slots {
			s.tend(i, sv)
		}
		if len(s.left) > done {
			last = time.Now()
		}
		if time.Since(last) > 5*time.Minute {
			b, _ := json.MarshalIndent(v, "", " ")
			t.Fatalf("nothing was finished for five minutes; %d of %d units left\n%s", *units-done, *units, b)
		}
		// A third through, the keystore goes away; at half the station is killed; at
		// two thirds a hub is pulled.
		switch part := float64(done) / float64(*units); {
		case part > 0.66 && !pulled:
			pulled = true
			s.pullHub()
		case part > 0.5 && !killed && back:
			killed = true
			s.count["kills"]++
			for _, seat := range s.seats {
				if seat.board != nil {
					s.hurt[seat.board.mac.String()] = true
				}
			}
			_ = s.cmd.Process.Kill()
			<-s.exited //nolint:errcheck // it was killed
			s.startStation()
		case part > 0.33 && awayFrom.IsZero():
			awayFrom = time.Now()
			s.srv.Seal(t)
		}
		if !awayFrom.IsZero() && !back {
			s.lookAtWaiting(v)
		}
		if gone := time.Since(awayFrom); !awayFrom.IsZero() && !back && gone > *outage && (s.outageSeen(v) || gone > *outage+time.Minute) {
			back = true
			s.checkOutage(v)
			s.srv.Unseal(t)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !killed || !back || !pulled {
		t.Errorf("not everything went wrong: killed %v, keystore came back %v, hub pulled %v", killed, back, pulled)
	}
}

// lookAtWaiting: a board that waits for the keystore is not burned meanwhile.
func (s *shift) lookAtWaiting(v station.View) {
	s.t.Helper()
	for i, sv := range v.Slots {
		b := s.seats[i].board
		if b == nil {
			continue
		}
		seen, known := s.burns[i]
		switch waits := sv.State == station.SlotWaiting && strings.Contains(sv.Reason, station.CondKeystore); {
		case waits && (!known || seen.mac != b.mac):
			s.burns[i] = waitingBoard{b.mac, s.farm.must(request{Op: "look", Slot: i}).Burns}
		case known && seen.mac == b.mac:
			if n := s.farm.must(request{Op: "look", Slot: i}).Burns; n != seen.burns {
				s.t.Errorf("unit %s waited for the keystore, and was burned %d times meanwhile", b.mac, n-seen.burns)
			}
		}
	}
}

// outageSeen: a slot waits for the keystore.
func (s *shift) outageSeen(v station.View) bool {
	for _, sv := range v.Slots {
		if sv.State == station.SlotWaiting && strings.Contains(sv.Reason, station.CondKeystore) {
			return true
		}
	}
	return false
}

// checkOutage looks at the station at the end of the keystore's outage.
func (s *shift) checkOutage(v station.View) {
	s.t.Helper()
	waiting := 0
	for _, sv := range v.Slots {
		if sv.State == station.SlotBlocked && strings.Contains(sv.Reason, "keystore") {
			s.t.Errorf("slot %s was blamed for the keystore: %s", sv.Name, sv.Reason)
		}
		if sv.State == station.SlotWaiting {
			waiting++
		}
	}
	down := false
	for _, c := range v.Conditions {
		down = down || c.Name == station.CondKeystore && !c.OK
	}
	if waiting == 0 || !down {
		s.t.Errorf("%d slots wait for the keystore, which the station says is down: %v", waiting, down)
	}
	s.count["slots that waited for the keystore"] = waiting
}

// tend does what an operator does at one slot.
func (s *shift) tend(i int, v station.SlotView) {
	seat := s.seats[i]
	if seat.board == nil {
		return
	}
	if v.State == station.SlotBusy {
		seat.since, seat.busy = time.Now(), true
		return
	}
	b := seat.board
	ours := v.Unit == "" || v.Unit == b.mac.String()
	switch v.State {
	case station.SlotPass, station.SlotDone:
		if ours {
			s.take(i, "PASS")
		}
	case station.SlotQuarantined, station.SlotFail:
		if ours && seat.busy {
			s.take(i, string(v.Verdict)+": "+v.Reason)
		}
	case station.SlotRefused:
		if ours && seat.busy {
			s.take(i, "refused: "+v.Reason)
		}
	case station.SlotError, station.SlotAborted:
		s.again(i, v)
	case station.SlotBlocked:
		s.count["blocked slots"]++
		if err := s.api(http.MethodPost, "slots/"+v.Name+"/clear", map[string]string{"note": "new cable"}, nil); err != nil {
			s.t.Fatal(err)
		}
		s.again(i, v)
	case station.SlotMissing:
		if time.Since(seat.since) > 3*time.Second {
			s.again(i, v)
		}
	case station.SlotReady, station.SlotWaiting, station.SlotBusy:
	}
}

// again takes the board out and puts it back, with power and cable. A board that
// cannot be helped is set aside.
func (s *shift) again(i int, v station.SlotView) {
	seat := s.seats[i]
	seat.board.tries++
	s.count["boards plugged in again"]++
	if seat.board.tries > 12 {
		s.t.Errorf("unit %s (%s) makes no end: %s: %s", seat.board.mac, seat.board.fault, v.State, v.Reason)
		s.take(i, "set aside")
		return
	}
	s.farm.must(request{Op: "unplug", Slot: i})
	s.farm.must(request{Op: "power", Slot: i, On: true})
	s.farm.must(request{Op: "plug", Slot: i})
	seat.since, seat.busy = time.Now(), false
}

// take takes a board out and puts the next one in.
func (s *shift) take(i int, how string) {
	seat := s.seats[i]
	s.left[seat.board.mac.String()] = how
	verdict, _, _ := strings.Cut(how, ":")
	s.count["units "+verdict]++
	s.farm.must(request{Op: "remove", Slot: i})
	seat.board, seat.busy = nil, false
	s.place(i)
}

// pullHub takes a quarter of the slots away at once, and puts them back.
func (s *shift) pullHub() {
	n := *slots / 4
	for i := range n {
		if s.seats[i].board != nil {
			s.farm.must(request{Op: "unplug", Slot: i})
			s.hurt[s.seats[i].board.mac.String()] = true
		}
	}
	s.count["slots of the pulled hub"] = n
	time.Sleep(time.Second)
	for i := range n {
		if s.seats[i].board != nil {
			s.farm.must(request{Op: "plug", Slot: i})
			s.seats[i].since, s.seats[i].busy = time.Now(), false
		}
	}
}

// endOfShift stops the station and looks at what it leaves behind.
func (s *shift) endOfShift() {
	t := s.t
	history := map[string]station.UnitView{} // the last run of each unit
	before := uint64(0)
	for {
		var page []station.UnitView
		if err := s.api(http.MethodGet, fmt.Sprintf("history?limit=200&before=%d", before), nil, &page); err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			if _, ok := history[r.Unit]; !ok && r.Cause != provision.CauseRefused {
				history[r.Unit] = r
			}
		}
		before = page[len(page)-1].Index
	}
	serials := map[string]string{}
	for mac, how := range s.left {
		r, ok := history[mac]
		if !ok {
			t.Errorf("unit %s left as %s, and the history does not know it", mac, how)
			continue
		}
		if r.Verdict == provision.Pass {
			if other := serials[r.Serial]; other != "" || r.Serial == "" {
				t.Errorf("units %s and %s have serial number %q", mac, other, r.Serial)
			}
			serials[r.Serial] = mac
		}
		if pass := how == "PASS"; pass != (r.Verdict == provision.Pass) {
			t.Errorf("unit %s left as %s, and the history says %s: %s", mac, how, r.Verdict, r.Reason)
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-s.exited; err != nil {
		t.Errorf("the station ended with %v\n%s", err, s.errOut)
	}
	s.run(0, "journal", "verify", "journal.db")
	var found struct {
		Findings []any `json:"findings"`
	}
	out := s.reconcile()
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found.Findings) > 0 {
		t.Errorf("reconcile: %v\n%s", err, out)
	}
	s.run(0, "keystore", "check", "vault:admin.yaml", "--read-keys")
	t.Logf("result: %d units, %d slots: %v", *units, *slots, s.count)
	// A board that nothing happened to has no reason not to pass.
	for mac, how := range s.left {
		if how != "PASS" && !s.hurt[mac] {
			t.Errorf("unit %s left as %s, and nothing happened to it", mac, how)
		}
	}
}

func (s *shift) reconcile() string {
	cmd := s.command("audit", "reconcile", "--journal", "journal.db", "--keystore", "vault:admin.yaml", "--json")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		s.t.Errorf("audit reconcile: %v\n%s%s", err, out, &errOut)
	}
	return string(out)
}

// request and answer are the farm's (internal/farm).
type request struct {
	Op     string   `json:"op"`
	Slot   int      `json:"slot"`
	Chip   string   `json:"chip,omitempty"`
	MAC    chip.MAC `json:"mac"`
	Faults string   `json:"faults,omitempty"`
	Seed   int64    `json:"seed,omitempty"`
	On     bool     `json:"on,omitempty"`
}

type answer struct {
	Error   string  `json:"error"`
	Address string  `json:"address"`
	Burns   int     `json:"burns"`
	Seconds float64 `json:"seconds"`
	MaxRSS  int64   `json:"max_rss"`
}

// farm is the process that the boards live in.
type farm struct {
	t       testing.TB
	mu      sync.Mutex
	in      io.Writer
	out     *bufio.Scanner
	address map[int]string
}

func newFarm(t testing.TB, bin string, args ...string) *farm {
	t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("farm: %v", err)
		}
	})
	return &farm{t: t, in: in, out: bufio.NewScanner(out), address: map[int]string{}}
}

func (f *farm) must(r request) answer {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.in.Write(append(b, '\n')); err != nil {
		f.t.Fatal(err)
	}
	if !f.out.Scan() {
		f.t.Fatalf("the farm ended: %v", f.out.Err())
	}
	var a answer
	if err := json.Unmarshal(f.out.Bytes(), &a); err != nil {
		f.t.Fatal(err)
	}
	if a.Error != "" {
		f.t.Fatalf("farm: %+v: %s", r, a.Error)
	}
	if a.Address != "" {
		f.address[r.Slot] = a.Address
	}
	return a
}
