package station_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/serve"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/discover"
	"github.com/provisiond/provisiond/station/discover/discovertest"
	"github.com/provisiond/provisiond/station/port"
)

// patience is how long a test waits for what must happen.
const patience = 15 * time.Second

// usbBoard is a simulated board on a USB cable: a pseudo terminal while it is
// plugged in.
type usbBoard struct {
	*espsim.Chip
	t      testing.TB
	native bool
	stuck  atomic.Bool // writing the flash takes no more bytes

	control string // where its resets are served
	end     func() // of the terminal; nil: it is not plugged in
}

// Write is the cable. In the middle of the flash it can get stuck, so that a test
// has all the time to pull it.
func (u *usbBoard) Write(ctx context.Context, p []byte) (int, error) {
	const flashData, deflData = 0x03, 0x11
	if u.stuck.Load() && u.Requests(flashData)+u.Requests(deflData) > 0 {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return u.Chip.Write(ctx, p)
}

var usbBoards atomic.Uint32

func newUSBChip(t testing.TB, native bool) *espsim.Chip {
	t.Helper()
	m, err := chip.ByName("esp32c3")
	if err != nil {
		t.Fatal(err)
	}
	n := usbBoards.Add(1)
	c, err := espsim.New(espsim.Options{
		Model: m, MAC: chip.MAC{0x02, 0, 0, 1, byte(n >> 8), byte(n)}, Revision: max(m.Lockdown.ClosedMinimum, 4),
		AppPrints: sample.AppText, USBSerial: native,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newUSBBoard is a board in a drawer.
func newUSBBoard(t testing.TB, native bool) *usbBoard {
	t.Helper()
	c := newUSBChip(t, native)
	c.Unplug()
	c.Power(false)
	u := &usbBoard{Chip: c, t: t, native: native}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.control = ln.Addr().String()
	stop := background(t, func(ctx context.Context) error { return serve.Control(ctx, ln, c) })
	t.Cleanup(func() { stop(); u.out() })
	return u
}

// background runs a server until the function that it returns is called.
func background(t testing.TB, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// in makes the terminal of a board, with a link to it in place of its device.
func (u *usbBoard) in(link string) error {
	w, err := watchFile(filepath.Dir(link), unix.IN_CREATE|unix.IN_MOVED_TO)
	if err != nil {
		return err
	}
	defer w.close()
	u.Plug()
	if err := u.Reopen(context.Background()); err != nil {
		return err
	}
	u.end = background(u.t, func(ctx context.Context) error { return serve.PTY(ctx, u, link) })
	for {
		if _, err := os.Lstat(link); err == nil {
			return nil
		}
		if err := w.next(patience); err != nil {
			return fmt.Errorf("the terminal of %s: %w", link, err)
		}
	}
}

// out hangs the terminal up.
func (u *usbBoard) out() {
	u.Unplug()
	if u.end != nil {
		u.end()
		u.end = nil
	}
}

// reset asks the fixture's hand for a reset.
func (u *usbBoard) reset(what string) error {
	c, err := net.Dial("tcp", u.control)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "reset %s\n", what); err != nil {
		return err
	}
	if reply, err := bufio.NewReader(c).ReadString('\n'); err != nil || reply != "ok\n" {
		return fmt.Errorf("reset %s: %q %w", what, reply, err)
	}
	return nil
}

// fileWatch hears what happens to a file.
type fileWatch struct{ f *os.File }

func watchFile(path string, mask uint32) (fileWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fileWatch{}, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, mask); err != nil {
		return fileWatch{}, errors.Join(err, f.Close())
	}
	return fileWatch{f}, nil
}

// next waits for something to happen.
func (w fileWatch) next(limit time.Duration) error {
	if err := w.f.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := w.f.Read(make([]byte, 4096))
	return err
}

func (w fileWatch) close() { _ = w.f.Close() }

// opened watches who opens a device.
func opened(t *testing.T, device string) (times func() int) {
	t.Helper()
	w, err := watchFile(device, unix.IN_OPEN)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	n := 0
	return func() int {
		for w.next(time.Millisecond) == nil {
			n++
		}
		return n
	}
}

// bench is a station with slots at positions of a USB bus.
type bench struct {
	*running
	tree *discovertest.Tree
	bay  *station.Bay
	bus  *discover.Watcher

	noUdev bool // nobody makes links

	mu sync.Mutex
	at map[string]*usbBoard // by position
	is map[string]string    // ttys, by position
}

// byPath is the name of a position's port.
func byPath(position string, native bool) string {
	name := "pci-0000:00:14.0-usb-0:" + strings.TrimPrefix(position, "1-") + ":1.0"
	if !native {
		name += "-port0"
	}
	return name
}

// newBench makes a station whose slots have the names of their positions.
func newBench(t *testing.T, native bool, o discover.Options, start station.StartMode, positions ...string) *bench {
	t.Helper()
	f := newFactory(t, product(t, "esp32c3", "hybrid"))
	b := &bench{tree: discovertest.New(t), at: map[string]*usbBoard{}, is: map[string]string{}}
	if err := os.MkdirAll(b.tree.Dev, 0o700); err != nil {
		t.Fatal(err)
	}
	b.bay = station.NewBay(port.Options{Sys: b.tree.Sys, Dev: b.tree.Dev, Proc: t.TempDir()})
	var slots []discover.Slot
	var specs []station.Spec
	for _, p := range positions {
		slots = append(slots, benchSlot(t, p, native))
		specs = append(specs, station.Spec{
			Name: p, Port: byPath(p, native), Start: start, Fixture: b.bay.Fixture(p),
			Reset: func(port.Port) (rom.Resetter, error) { return pulse{b, p}, nil },
		})
	}
	b.bay.SetSlots(slots)
	b.running = f.start(station.Options{Slots: specs})
	ctx, cancel := context.WithCancel(context.Background())
	b.bus = discover.Watch(ctx, discover.Roots{Sys: b.tree.Sys, Dev: b.tree.Dev}, o)
	var follow sync.WaitGroup
	follow.Go(func() { b.bay.Follow(b.bus, b.Station) })
	t.Cleanup(func() {
		cancel()
		follow.Wait()
		b.stop()
		f.close()
	})
	if _, err := b.OpenLot(t.Context(), ann, station.LotRequest{
		ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 20, Serials: station.Serials{From: station.SerialsRange, First: "AB0001"},
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

func benchSlot(t *testing.T, position string, native bool) discover.Slot {
	t.Helper()
	where, err := discover.ParseBinding(byPath(position, native))
	if err != nil {
		t.Fatal(err)
	}
	return discover.Slot{Name: position, Port: where}
}

// enter puts a board on the bus. It is called with mu held.
func (b *bench) enter(u *usbBoard, position, tty string) error {
	link := filepath.Join(b.tree.Dev, tty)
	if err := u.in(link); err != nil {
		return err
	}
	b.at[position], b.is[position] = u, tty
	vid, pid, serial := "10c4", "ea60", "0001" // as CP2102 are sold
	if u.native {
		vid, pid, serial = "303a", "1001", u.MAC().String()
		var st unix.Stat_t
		if err := unix.Stat(link, &st); err != nil {
			return err
		}
		defer b.tree.Link(fmt.Sprintf("dev/char/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)),
			discovertest.USBPath(discovertest.PC, position)+"/"+position+":1.0/tty/"+tty)
	}
	if !b.noUdev {
		b.tree.Udev(byPath(position, u.native), tty)
	}
	b.tree.Adapter(discovertest.PC, position, tty, vid, pid, serial)
	return nil
}

// leave takes a position's board off the bus. It is called with mu held.
func (b *bench) leave(position string) {
	b.at[position].out()
	b.tree.Unplug(discovertest.PC, position)
	delete(b.at, position)
	delete(b.is, position)
}

// plug is an operator's hand: the board gets its power from its cable.
func (b *bench) plug(u *usbBoard, position, tty string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	u.Power(true)
	if err := b.enter(u, position, tty); err != nil {
		b.t.Fatal(err)
	}
	b.bus.Rescan()
}

func (b *bench) unplug(positions ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range positions {
		u := b.at[p]
		b.leave(p)
		u.Power(false)
	}
	b.bus.Rescan()
}

// reenumerate is a native board's leaving and coming back, under the lowest number
// that was not its own.
func (b *bench) reenumerate(position string) (*usbBoard, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, taken := b.at[position], map[string]bool{}
	if u == nil {
		return nil, rom.ErrUnplugged
	}
	for _, tty := range b.is {
		taken[tty] = true
	}
	b.leave(position)
	n := 0
	for taken[fmt.Sprintf("ttyACM%d", n)] {
		n++
	}
	err := b.enter(u, position, fmt.Sprintf("ttyACM%d", n))
	b.bus.Rescan()
	return u, err
}

// pulse resets the board of a slot.
type pulse struct {
	b        *bench
	position string
}

func (r pulse) Download(ctx context.Context, p rom.Port, _ int) error {
	return r.reset(ctx, p, "download")
}

func (r pulse) Run(ctx context.Context, p rom.Port) error { return r.reset(ctx, p, "run") }

func (r pulse) reset(ctx context.Context, p rom.Port, what string) error {
	r.b.mu.Lock()
	u := r.b.at[r.position]
	r.b.mu.Unlock()
	if u == nil {
		return rom.ErrUnplugged
	}
	if err := p.Discard(ctx); err != nil {
		return err
	}
	if u.native {
		if _, err := r.b.reenumerate(r.position); err != nil {
			return err
		}
		if _, err := p.Write(ctx, []byte{0}); !errors.Is(err, rom.ErrUnplugged) {
			return fmt.Errorf("the old terminal says %w", err)
		}
		if err := p.Reopen(ctx); err != nil {
			return err
		}
		if !p.Info().USBSerial {
			return errors.New("the port is not the chip's own USB")
		}
	}
	return u.reset(what)
}

// sees waits until a slot is as ok says.
func (b *bench) sees(name, what string, ok func(station.SlotView) bool) station.SlotView {
	b.t.Helper()
	return b.until(what, func(v station.View) bool {
		return ok(v.Slots[slices.IndexFunc(v.Slots, func(s station.SlotView) bool { return s.Name == name })])
	}).Slots[slices.IndexFunc(b.View().Slots, func(s station.SlotView) bool { return s.Name == name })]
}

// until waits until the station is as ok says.
func (b *bench) until(what string, ok func(station.View) bool) station.View {
	b.t.Helper()
	w := b.Watch()
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		v := b.View()
		if ok(v) {
			return v
		}
		if _, err := w.Next(ctx); err != nil {
			var all []string
			for _, s := range v.Slots {
				all = append(all, fmt.Sprintf("%s: %s %s on %s: %s", s.Name, s.State, s.Step, s.Device, s.Reason))
			}
			b.t.Fatalf("waited for %s; slots:\n%s\nskipped %v\n%+v", what, strings.Join(all, "\n"), v.Skipped, v.Conditions)
		}
	}
}

// becomes waits until a slot is in a state, with a board or with none.
func (b *bench) becomes(name string, want station.SlotState, u *usbBoard) station.SlotView {
	b.t.Helper()
	return b.sees(name, fmt.Sprintf("%s at %s", want, name), func(v station.SlotView) bool {
		return v.State == want && (u == nil || v.Unit == u.MAC().String())
	})
}

func condition(v station.View, name string) station.Condition {
	for _, c := range v.Conditions {
		if c.Name == name {
			return c
		}
	}
	return station.Condition{}
}

// soon is for hands whose boards are to be missed at once.
var soon = discover.Options{Grace: 100 * time.Millisecond}

// TestBayPlugAndReplug: the life of boards on adapters, and ports of others.
func TestBayPlugAndReplug(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, soon, station.StartPlug, "1-1.1", "1-1.2", "1-1.3")
	// A slot whose port never was there is missed, and keeps nobody from working.
	v := b.until("the missing ports", func(v station.View) bool { return condition(v, station.CondPorts).Text != "" })
	if c := condition(v, station.CondPorts); c.OK || !c.Ready || !strings.HasSuffix(c.Text, "1-1.1, 1-1.2, 1-1.3") || c.Next == "" {
		t.Errorf("%+v", c)
	}
	foreign := newUSBBoard(t, false)
	b.plug(foreign, "1-1.9", "ttyUSB0")
	touched := opened(t, filepath.Join(b.tree.Dev, "ttyUSB0"))

	one, two := newUSBBoard(t, false), newUSBBoard(t, false)
	b.plug(one, "1-1.1", "ttyUSB1")
	if v := b.becomes("1-1.1", station.SlotPass, one); v.Serial != "AB0001" || filepath.Base(v.Device) != "ttyUSB1" {
		t.Errorf("%+v", v)
	}
	b.plug(two, "1-1.2", "ttyUSB2")
	b.becomes("1-1.2", station.SlotPass, two)
	v = b.until("one missing port", func(v station.View) bool {
		return strings.HasSuffix(condition(v, station.CondPorts).Text, "slots 1-1.3")
	})
	if want := (station.PortView{Port: byPath("1-1.9", false), Device: filepath.Join(b.tree.Dev, "ttyUSB0"), What: "10c4:ea60"}); !slices.Equal(v.Skipped, []station.PortView{want}) {
		t.Errorf("skipped %+v", v.Skipped)
	}

	// Out, and in again with another number.
	b.unplug("1-1.1")
	if v := b.becomes("1-1.1", station.SlotMissing, nil); v.Device != "" || v.Unit != "" {
		t.Errorf("%+v", v)
	}
	burns := one.Burns()
	b.plug(one, "1-1.1", "ttyUSB7")
	if v := b.becomes("1-1.1", station.SlotDone, one); filepath.Base(v.Device) != "ttyUSB7" || one.Burns() != burns {
		t.Errorf("%+v", v)
	}

	// A slot may have had a port once: it is not missed any more.
	three := newUSBBoard(t, false)
	b.plug(three, "1-1.3", "ttyUSB3")
	b.becomes("1-1.3", station.SlotPass, three)
	b.unplug("1-1.3")
	b.becomes("1-1.3", station.SlotMissing, nil)
	if c := condition(b.View(), station.CondPorts); !c.OK {
		t.Errorf("%+v", c)
	}

	if n := touched(); n != 0 {
		t.Errorf("the port of nobody was opened %d times", n)
	}
	if f, err := os.OpenFile(filepath.Join(b.tree.Dev, "ttyUSB0"), os.O_RDWR|unix.O_NOCTTY, 0); err != nil || touched() == 0 {
		t.Errorf("opening it was not noticed (%v)", err)
	} else {
		_ = f.Close()
	}
	if foreign.HostBytes() != 0 || foreign.Burns() != 0 {
		t.Errorf("%d bytes went to the port of nobody", foreign.HostBytes())
	}

	// It gets a slot, and is nobody's no more: nothing has to happen on the bus.
	slots := []discover.Slot{benchSlot(t, "1-1.1", false), benchSlot(t, "1-1.2", false), benchSlot(t, "1-1.9", false), benchSlot(t, "1-1.8", false)}
	b.bay.SetSlots(slots)
	if v := b.View(); len(v.Skipped) != 0 || !strings.HasSuffix(condition(v, station.CondPorts).Text, "slots 1-1.8") {
		t.Errorf("skipped %+v; %+v", v.Skipped, condition(v, station.CondPorts))
	}
	// Two slots at one port have none, and it is said what is wrong.
	slots[3].Port = slots[2].Port
	b.bay.SetSlots(slots)
	if c := condition(b.View(), station.CondPorts); !strings.Contains(c.Text, "slot 1-1.8: ") || !strings.Contains(c.Text, "1-1.9") || !strings.Contains(c.Next, "files") {
		t.Errorf("%+v", c)
	}
}

// TestBayPulledInFlash: a unit whose cable is pulled in the middle of its flash
// goes on to PASS in the same slot, long after and also faster than anybody looks.
func TestBayPulledInFlash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		native bool
		grace  time.Duration
		late   bool
	}{
		{name: "adapter, late", grace: 100 * time.Millisecond, late: true},
		{name: "adapter, at once", grace: time.Minute},
		{name: "own USB, late", native: true, grace: time.Second, late: true},
		{name: "own USB, at once", native: true, grace: time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.native, discover.Options{Grace: c.grace}, station.StartPlug, "1-1.1", "1-1.2")
			kind := map[bool]string{true: "ttyACM", false: "ttyUSB"}[c.native]
			one, two := newUSBBoard(t, c.native), newUSBBoard(t, c.native)
			one.stuck.Store(true)
			b.plug(one, "1-1.1", kind+"0")
			b.sees("1-1.1", "flash", func(v station.SlotView) bool { return v.Step == "flash" })
			b.plug(two, "1-1.2", kind+"5") // its neighbour does not notice
			b.unplug("1-1.1")
			one.stuck.Store(false)
			if c.late {
				b.becomes("1-1.1", station.SlotMissing, nil)
			} else {
				b.sees("1-1.1", "the end of the run", func(v station.SlotView) bool { return v.State != station.SlotBusy })
			}
			b.plug(one, "1-1.1", kind+"9")
			if v := b.becomes("1-1.1", station.SlotPass, one); v.Serial != "AB0001" || v.Failures != 0 {
				t.Errorf("%+v", v)
			}
			b.becomes("1-1.2", station.SlotPass, two)
			if l := b.View().Lots[0]; l.Begun != 2 {
				t.Errorf("%d units count", l.Begun)
			}
			runs, err := b.History(t.Context(), station.HistoryQuery{Unit: one.MAC().String()})
			if err != nil || len(runs) != 2 {
				t.Errorf("%+v %v", runs, err)
			}
		})
	}
}

// TestBayNextBoardAtOnce: adapters say all the same of themselves, and a hand can
// be faster than the grace period. The next board is not taken for the last one.
func TestBayNextBoardAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, discover.Options{Grace: time.Minute}, station.StartPlug, "1-1.1")
	for _, u := range []*usbBoard{newUSBBoard(t, false), newUSBBoard(t, false)} {
		b.plug(u, "1-1.1", "ttyUSB0")
		b.becomes("1-1.1", station.SlotPass, u)
		b.unplug("1-1.1")
	}
}

// TestBaySwappedNumbers: a hub came back and two ports have each other's numbers,
// and nobody has told the station yet. It is the position that counts.
func TestBaySwappedNumbers(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, discover.Options{Grace: time.Minute}, station.StartButton, "1-1.1", "1-1.2")
	one, two := newUSBBoard(t, false), newUSBBoard(t, false)
	b.plug(one, "1-1.1", "ttyUSB0")
	b.plug(two, "1-1.2", "ttyUSB1")
	b.becomes("1-1.1", station.SlotReady, nil)
	b.becomes("1-1.2", station.SlotReady, nil)
	before, err := b.bay.Fixture("1-1.1").Arrive(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	b.mu.Lock() // no look at the tree is asked for
	b.leave("1-1.1")
	b.leave("1-1.2")
	err = errors.Join(b.enter(one, "1-1.1", "ttyUSB1"), b.enter(two, "1-1.2", "ttyUSB0"))
	b.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	// udev is late, too: its links are the old ones.
	b.tree.Udev(byPath("1-1.1", false), "ttyUSB0")
	b.tree.Udev(byPath("1-1.2", false), "ttyUSB1")
	var touched []func() int
	for _, tty := range []string{"ttyUSB0", "ttyUSB1"} {
		touched = append(touched, opened(t, filepath.Join(b.tree.Dev, tty)))
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if p, err := before.Open(short); err == nil {
		t.Errorf("opened %s", p.Info().Name)
		_ = p.Close()
	}
	for i, times := range touched {
		if n := times(); n != 0 {
			t.Errorf("ttyUSB%d was opened %d times", i, n)
		}
	}

	b.bus.Rescan()
	for i, u := range []*usbBoard{one, two} {
		name := fmt.Sprintf("1-1.%d", i+1)
		b.sees(name, "the other number", func(v station.SlotView) bool {
			return v.State == station.SlotReady && filepath.Base(v.Device) == fmt.Sprintf("ttyUSB%d", 1-i)
		})
		if err := b.StartUnit(t.Context(), ann, name, ""); err != nil {
			t.Fatal(err)
		}
		b.becomes(name, station.SlotPass, u)
	}
	select {
	case <-before.Gone:
	default:
		t.Error("the visit from before did not end")
	}
	if _, err := before.Open(t.Context()); !errors.Is(err, rom.ErrUnplugged) {
		t.Errorf("its port: %v", err)
	}
}

// TestBayNativeUSB: two boards on their chips' own USB leave the bus with every
// reset, come back under the number that the other had, and stay in their slots.
func TestBayNativeUSB(t *testing.T) {
	t.Parallel()
	for _, udev := range []bool{true, false} {
		t.Run(fmt.Sprintf("udev %v", udev), func(t *testing.T) { t.Parallel(); nativeUSB(t, udev) })
	}
}

func nativeUSB(t *testing.T, udev bool) {
	t.Helper()
	b := newBench(t, true, discover.Options{Grace: time.Minute}, station.StartPlug, "1-1.1", "1-1.2")
	b.noUdev = !udev
	one, two := newUSBBoard(t, true), newUSBBoard(t, true)
	b.plug(one, "1-1.1", "ttyACM0")
	b.plug(two, "1-1.2", "ttyACM1")
	for i, u := range []*usbBoard{one, two} {
		name := fmt.Sprintf("1-1.%d", i+1)
		b.becomes(name, station.SlotPass, u)
		// The device is shown where it is now.
		b.mu.Lock()
		now := b.is[name]
		b.mu.Unlock()
		b.sees(name, "its device at "+now, func(v station.SlotView) bool {
			return filepath.Base(v.Device) == now && v.State == station.SlotPass
		})
		runs, err := b.History(t.Context(), station.HistoryQuery{Unit: u.MAC().String()})
		if err != nil || len(runs) != 1 {
			t.Errorf("%+v %v", runs, err)
		}
	}
	// A reset that nobody here asked for is nothing new.
	if _, err := b.reenumerate("1-1.1"); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	now := b.is["1-1.1"]
	b.mu.Unlock()
	if v := b.sees("1-1.1", "its device at "+now, func(v station.SlotView) bool { return filepath.Base(v.Device) == now }); v.State != station.SlotPass {
		t.Errorf("%+v", v)
	}
	// Another chip is another unit, however fast the hand.
	b.unplug("1-1.1")
	next := newUSBBoard(t, true)
	b.plug(next, "1-1.1", "ttyACM8")
	b.becomes("1-1.1", station.SlotPass, next)
}

// TestBayPulledHub: a hub with eight units is pulled, half of them in work and half
// finished, and put back with all numbers in another order. Each is finished in its
// slot, and once.
func TestBayPulledHub(t *testing.T) {
	t.Parallel()
	var positions []string
	for i := range 8 {
		positions = append(positions, fmt.Sprintf("1-1.4.%d", i+1))
	}
	b := newBench(t, false, soon, station.StartPlug, positions...)
	hub, serials := map[string]*usbBoard{}, map[string]bool{}
	plug := func(i int) {
		p := positions[i]
		hub[p] = newUSBBoard(t, false)
		hub[p].stuck.Store(i%2 == 0)
		b.plug(hub[p], p, fmt.Sprintf("ttyUSB%d", i))
	}
	for i := 1; i < 8; i += 2 {
		plug(i)
	}
	for i := 1; i < 8; i += 2 {
		serials[b.becomes(positions[i], station.SlotPass, hub[positions[i]]).Serial] = true
	}
	for i := 0; i < 8; i += 2 { // these last: they wait for an answer, and not for ever
		plug(i)
		b.sees(positions[i], "flash", func(v station.SlotView) bool { return v.Step == "flash" })
	}
	b.unplug(positions...)
	for _, p := range positions {
		b.becomes(p, station.SlotMissing, nil)
		hub[p].stuck.Store(false)
	}
	for i, p := range slices.Backward(positions) {
		b.plug(hub[p], p, fmt.Sprintf("ttyUSB%d", len(positions)-1-i))
	}
	for i, p := range positions {
		want := station.SlotPass
		if i%2 == 1 {
			want = station.SlotDone
		}
		if v := b.becomes(p, want, hub[p]); want == station.SlotPass {
			serials[v.Serial] = true
		}
	}
	if l := b.View().Lots[0]; l.Begun != 8 || len(serials) != 8 {
		t.Errorf("%d units count, with %d numbers", l.Begun, len(serials))
	}
	if c := condition(b.View(), station.CondPorts); !c.OK {
		t.Errorf("%+v", c)
	}
}

// TestNativeUSBResets: a slot that is told nothing resets a chip on its own USB in
// that unit's way, which the two transistors' sequence is not.
func TestNativeUSBResets(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFactory(t, product(t, "esp32c3", "hybrid"))
		defer f.close()
		h := newHand()
		r := f.start(station.Options{Slots: []station.Spec{{Name: "1", Start: station.StartPlug, Fixture: h}}})
		defer r.stop()
		if _, err := r.OpenLot(t.Context(), ann, station.LotRequest{ID: "L1", Recipe: "esp32c3-hybrid", Quantity: 1}); err != nil {
			t.Fatal(err)
		}
		h.in(&board{Chip: newUSBChip(t, true)})
		r.await("1", "an end", func(v station.SlotView) bool { return v.Verdict != "" })
		if v := r.slot("1"); v.State != station.SlotPass {
			t.Errorf("%+v", v)
		}
	})
}
