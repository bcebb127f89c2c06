package web_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/people"
	"github.com/provisiond/provisiond/station/web"
)

// double is a station without slots' workers: it shows what it is told to, and
// notes what it was asked to do.
type double struct {
	changes station.Changes

	mu      sync.Mutex
	view    station.View
	lots    []station.LotView
	history []station.UnitView
	calls   []string
	err     error // of the next actions
	looks   int
}

var began = time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)

const longReason = "the boot check saw no line \"app ready\" within 5 s; the last line was \"E (312) spi_flash: detect failed\""

// slotIn makes a slot in a state, with all that belongs to it.
func slotIn(i int, name string, state station.SlotState) station.SlotView {
	s := station.SlotView{
		Name: name, Port: fmt.Sprintf("platform-3f980000.usb-usb-0:1.%d.%d:1.0-port0", i/8+1, i%8+1), Device: fmt.Sprintf("/dev/ttyUSB%d", i),
		Start: station.StartPlug, State: state, Since: began.Add(time.Duration(i) * time.Minute), Baud: 921600,
	}
	unit := func() {
		s.Lot, s.Unit, s.Serial = "L-2026-47", fmt.Sprintf("24:0a:c4:00:1f:%02x", i), fmt.Sprintf("AB%06d", 1200+i)
		s.Chip, s.Revision, s.KeyFingerprint = "esp32c3", "v0.4", strings.Repeat("5eed", 16)
		s.ElapsedMS, s.Permille = 31400+int64(i)*37, 1000
	}
	end := func(v provision.Verdict, c provision.Cause, reason, next string) {
		unit()
		s.Verdict, s.Cause, s.Reason, s.NextStep = v, c, reason, next
	}
	switch state {
	case station.SlotBusy:
		unit()
		s.Step, s.StepIndex, s.StepCount, s.Done, s.Total, s.Permille, s.ElapsedMS = "flash", 4, 14, int64(i%10)*40960, 409600, 180+i*7, 9100
		if i%5 == 4 {
			s.Step, s.StepIndex, s.OneWay, s.Done, s.Total = "burn-key", 7, true, 0, 0
		}
	case station.SlotPass:
		end(provision.Pass, "", "", "")
	case station.SlotFail:
		end(provision.Fail, provision.CauseUnit, longReason, "put the unit into the rework tray")
		s.Failures = 1
	case station.SlotError:
		end(provision.Error, provision.CauseStation, "the line went silent", "check cable and port, then start the same job again")
	case station.SlotAborted:
		end(provision.Aborted, provision.CauseCancelled, "stopped before it was finished", "start the same job again")
	case station.SlotRefused:
		end(provision.Fail, provision.CauseRefused, "the flash has 2 MiB, the recipe wants 4 MiB", "take another board")
	case station.SlotQuarantined:
		end(provision.Quarantined, provision.CauseQuarantined, "the key block holds a key that nobody knows", "an engineer decides")
	case station.SlotDone:
		unit()
	case station.SlotBlocked:
		s.Failures, s.Reason, s.NextStep = 3, "three failures in a row", "check cable and fixture, then clear the slot"
	case station.SlotWaiting:
		s.Reason = "the keystore does not answer"
	case station.SlotMissing:
		s.Device = ""
	case station.SlotReady:
		s.Start = []station.StartMode{station.StartPlug, station.StartScan, station.StartButton}[i%3]
	}
	return s
}

// newDouble has n slots, which show all states, mostly busy and passed ones.
func newDouble(n int) *double {
	mix := []station.SlotState{
		station.SlotBusy, station.SlotPass, station.SlotFail, station.SlotReady, station.SlotBusy, station.SlotPass, station.SlotDone, station.SlotError,
		station.SlotBusy, station.SlotRefused, station.SlotPass, station.SlotBlocked, station.SlotQuarantined, station.SlotWaiting, station.SlotAborted, station.SlotMissing,
	}
	d := &double{view: station.View{
		Station: "line-3", Version: "v1.0.0-test", Started: began,
		Today: station.Yield{Pass: 412, FirstPass: 405, Fail: 7, Error: 2, Quarantined: 1},
		Conditions: []station.Condition{
			{Name: "keystore", OK: true, Ready: true, Since: began},
			{Name: "journal", OK: true, Since: began},
			{Name: "ports", OK: true, Since: began},
		},
		Skipped: []station.PortView{{Port: "platform-usb-0:1.9:1.0-port0", Device: "/dev/ttyUSB70", What: "Silicon Labs CP2102N"}},
	}}
	for i := range n {
		state := mix[i%len(mix)]
		if n > 16 && i >= 16 {
			state = []station.SlotState{station.SlotBusy, station.SlotPass, station.SlotBusy, station.SlotPass, station.SlotReady}[i%5]
		}
		d.view.Slots = append(d.view.Slots, slotIn(i, fmt.Sprintf("%c%d", 'A'+i/8, i%8+1), state))
	}
	lot := station.LotView{
		ID: "L-2026-47", Open: true, Recipe: "sensor", RecipeRevision: 3, RecipeSHA256: strings.Repeat("ab", 32), Chip: "esp32c3", Profile: "release",
		Quantity: 1000, Begun: 422, Operator: "li", Opened: began, Serials: "range", Yield: d.view.Today,
	}
	closed := lot
	closed.ID, closed.Open, closed.Begun = "L-2026-46", false, 1000
	d.lots = []station.LotView{lot, closed}
	d.view.Lots = []station.LotView{lot}
	for i, state := range mix {
		s := slotIn(i, fmt.Sprintf("A%d", i%8+1), state)
		if s.Verdict == "" {
			continue
		}
		d.history = append(d.history, station.UnitView{
			Index: uint64(1000 - i), Time: began.Add(-time.Duration(i) * time.Minute), Unit: s.Unit, Serial: s.Serial, Slot: s.Name, Lot: s.Lot, Recipe: "sensor",
			Operator: "li", Verdict: s.Verdict, Cause: s.Cause, Reason: s.Reason, NextStep: s.NextStep, ElapsedMS: s.ElapsedMS,
		})
	}
	return d
}

func (d *double) note(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
	return d.err
}

func (d *double) called() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// set changes slots and tells the watches.
func (d *double) set(slot string, change func(*station.SlotView)) {
	d.mu.Lock()
	slots := slices.Clone(d.view.Slots)
	for i := range slots {
		if slots[i].Name == slot {
			change(&slots[i])
		}
	}
	d.view.Slots = slots
	d.mu.Unlock()
	d.changes.Changed(slot)
}

func (d *double) edit(change func(*station.View)) {
	d.mu.Lock()
	v := d.view
	change(&v)
	d.view = v
	d.mu.Unlock()
	d.changes.Changed("")
}

func (d *double) View() station.View {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	return d.view
}

func (d *double) looked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

func (d *double) Watch() *station.Watch { return d.changes.Watch() }

func (d *double) StartUnit(_ context.Context, by station.Person, slot, serial string) error {
	if err := d.note("start %s %q by %s", slot, serial, by.Name); err != nil {
		return err
	}
	d.set(slot, func(s *station.SlotView) {
		n := slotIn(1, s.Name, station.SlotBusy)
		n.Port = s.Port
		*s = n
	})
	return nil
}

func (d *double) AbortUnit(_ context.Context, by station.Person, slot string) error {
	if err := d.note("abort %s by %s", slot, by.Name); err != nil {
		return err
	}
	d.set(slot, func(s *station.SlotView) { *s = slotIn(1, s.Name, station.SlotAborted) })
	return nil
}

func (d *double) ClearSlot(_ context.Context, by station.Person, slot, note string) error {
	if err := d.note("clear %s %q by %s", slot, note, by.Name); err != nil {
		return err
	}
	d.set(slot, func(s *station.SlotView) { *s = slotIn(0, s.Name, station.SlotReady) })
	return nil
}

func (d *double) OpenLot(_ context.Context, by station.Person, r station.LotRequest) (station.LotView, error) {
	if err := d.note("open %+v by %s", r, by.Name); err != nil {
		return station.LotView{}, err
	}
	l := newDouble(0).lots[0]
	l.Open = true
	l.ID, l.Recipe, l.Quantity, l.Begun, l.Yield, l.Operator = r.ID, r.Recipe, r.Quantity, 0, station.Yield{}, by.Name
	d.mu.Lock()
	d.lots = append([]station.LotView{l}, d.lots...)
	d.mu.Unlock()
	d.edit(func(v *station.View) { v.Lots = append(slices.Clone(v.Lots), l) })
	return l, nil
}

func (d *double) CloseLot(_ context.Context, by station.Person, id string) error {
	if err := d.note("close %s by %s", id, by.Name); err != nil {
		return err
	}
	d.edit(func(v *station.View) {
		v.Lots = slices.DeleteFunc(slices.Clone(v.Lots), func(l station.LotView) bool { return l.ID == id })
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.lots {
		if d.lots[i].ID == id {
			d.lots[i].Open = false
		}
	}
	return nil
}

func (d *double) Lots(context.Context, int) ([]station.LotView, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lots), d.err
}

func (d *double) History(_ context.Context, q station.HistoryQuery) ([]station.UnitView, error) {
	if err := d.note("history %+v", q); err != nil {
		return nil, err
	}
	var out []station.UnitView
	for _, u := range d.history {
		if (q.Unit == "" || u.Unit == q.Unit || u.Serial == q.Unit) && (q.Lot == "" || u.Lot == q.Lot) &&
			(q.Verdict == "" || u.Verdict == q.Verdict) && (q.Before == 0 || u.Index < q.Before) && len(out) < q.Limit {
			out = append(out, u)
		}
	}
	return out, nil
}

func (d *double) Recipes() []station.RecipeView {
	return []station.RecipeView{
		{Name: "sensor", Revision: 3, SHA256: strings.Repeat("ab", 32), Chip: "esp32c3", Profile: "release", ClosesForever: true, FlashSize: 4 << 20, Path: "/etc/provisiond/recipes/sensor.yaml"},
		{Name: "sensor-dev", Revision: 1, SHA256: strings.Repeat("cd", 32), Chip: "esp32c3", Profile: "development", FlashSize: 4 << 20, Path: "/etc/provisiond/recipes/sensor-dev.yaml"},
	}
}

func (d *double) Plan(context.Context, string) (*provision.PlanReport, error) {
	if err := d.note("plan"); err != nil {
		return nil, err
	}
	p := &provision.PlanReport{
		Unit: "02:00:00:00:00:00", Chip: "esp32c3", Revision: "v0.4", Recipe: "sensor", RecipeRevision: 3, Profile: "release", ClosesForever: true,
		PlanSHA256: provision.Hash{1, 2, 3}, TableSHA256: provision.Hash{4, 5, 6}, TableSource: "esp_efuse_table.csv v5.4",
		Regions: []layout.RegionSummary{
			{Name: "bootloader", Kind: "bootloader", Length: 20480, Encrypted: true, SHA256: strings.Repeat("12", 32)},
			{Name: "nvs", Kind: "data", Offset: 0x9000, Length: 24576, SHA256: strings.Repeat("34", 32)},
			{Name: "ota_0", Kind: "app", Offset: 0x10000, Length: 180224, Encrypted: true, SHA256: strings.Repeat("56", 32)},
		},
		Stages: []string{"burn-key", "protect-key", "close"}, Warnings: []string{"partition nvs is not encrypted"},
		Advisories: []chip.Advisory{}, Security: provision.Security{FlashEncryption: string(chip.SchemeXTS128), UnitData: "unit"},
	}
	if m, err := chip.ByName(p.Chip); err == nil {
		p.Advisories = m.Advisories(4)
	}
	p.Bits = append(
		p.Bits,
		efuse.Bit{Stage: "burn-key", BitRef: efuse.BitRef{Block: "KEY0", Bit: -1, Field: "KEY0"}, Note: "32 key bytes, last byte first"},
		efuse.Bit{Stage: "burn-key", BitRef: efuse.BitRef{Block: "BLOCK0", Word: 2, Bit: 18, Field: "SPI_BOOT_CRYPT_CNT"}, Note: "flash encryption is on"},
		efuse.Bit{Stage: "burn-key", BitRef: efuse.BitRef{Block: "BLOCK0", Word: 2, Bit: 19, Field: "SPI_BOOT_CRYPT_CNT"}, Note: "flash encryption is on"},
		efuse.Bit{Stage: "protect-key", BitRef: efuse.BitRef{Block: "BLOCK0", Bit: 3, Field: "RD_DIS"}, Note: "software can no longer read the key"},
		efuse.Bit{Stage: "protect-key", BitRef: efuse.BitRef{Block: "BLOCK0", Bit: 9, Field: "DIS_PAD_JTAG"}, Note: "JTAG off", AlreadySet: true},
		efuse.Bit{Stage: "close", BitRef: efuse.BitRef{Block: "BLOCK0", Word: 3, Bit: 1, Field: "ENABLE_SECURITY_DOWNLOAD"}, Note: "the loader takes only a few commands"},
	)
	return p, nil
}

func (d *double) Certificate(_ context.Context, unit string) ([]byte, error) {
	if err := d.note("certificate %s", unit); err != nil {
		return nil, err
	}
	return []byte(`{"format":1,"unit":"` + unit + `"}` + "\n"), nil
}

func (d *double) Scan(_ context.Context, by station.Person, code string) (station.ScanResult, error) {
	if err := d.note("scan %s by %s", code, by.Name); err != nil {
		return station.ScanResult{}, err
	}
	if slot, ok := strings.CutPrefix(code, "SLOT:"); ok {
		return station.ScanResult{Text: "slot " + slot, Slot: slot}, nil
	}
	return station.ScanResult{Text: "done: " + code}, nil
}

func (d *double) Reprint(_ context.Context, by station.Person, unit string) error {
	return d.note("reprint %s by %s", unit, by.Name)
}

func (d *double) Record(_ context.Context, by station.Person, step string, _ map[string]any) error {
	return d.note("%s %s", step, by.Name)
}

// crowd are three people with simple badges and passwords.
type crowd struct {
	mu       sync.Mutex
	sessions map[string]web.Session
	n        int
	denied   error
}

func newCrowd() *crowd { return &crowd{sessions: map[string]web.Session{}} }

func (c *crowd) Login(_ context.Context, k web.Credentials) (web.Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.denied != nil {
		return web.Session{}, c.denied
	}
	var p station.Person
	switch {
	case k.Kind == people.Badge && k.Secret == "4711":
		p = station.Person{Name: "li", Role: string(people.Operator)}
	case k.Kind == people.PIN && k.Name == "li" && k.Secret == "1234":
		p = station.Person{Name: "li", Role: string(people.Operator)}
	case k.Kind == people.Password && k.Name == "eve" && k.Secret == "engineer's word":
		p = station.Person{Name: "eve", Role: string(people.Engineer)}
	case k.Kind == people.Password && k.Name == "ada" && k.Secret == "auditor's word":
		p = station.Person{Name: "ada", Role: string(people.Auditor)}
	default:
		return web.Session{}, &web.DeniedError{}
	}
	c.n++
	s := web.Session{Token: fmt.Sprintf("token-%d-%s", c.n, p.Name), Person: p, Display: p.Name}
	c.sessions[s.Token] = s
	return s, nil
}

func (c *crowd) Session(token string, _ bool) (web.Session, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.sessions[token]
	return s, ok
}

func (c *crowd) Logout(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, token)
}

func newServer(t testing.TB, d *double, change func(*web.Options)) *web.Server {
	t.Helper()
	o := web.Options{Station: d, People: newCrowd(), Tick: time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := web.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var errDisk = errors.New("no space left on device")
