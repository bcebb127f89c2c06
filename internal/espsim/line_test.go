package espsim

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

// lines is a step of a reset sequence (esp-facts A.8).
type lines struct {
	dtr, rts bool
	wait     time.Duration
}

func (c *Chip) drive(t *testing.T, steps []lines) {
	t.Helper()
	for _, s := range steps {
		if err := c.SetLines(t.Context(), s.dtr, s.rts); err != nil {
			t.Fatal(err)
		}
		time.Sleep(s.wait)
	}
}

var (
	unixTight = []lines{{}, {true, true, 0}, {false, true, 100 * time.Millisecond}, {true, false, 50 * time.Millisecond}, {}}
	// One line at a time: EN is let go with both asserted, a moment before the strap is low.
	classic = []lines{
		{false, false, 0},
		{false, true, 100 * time.Millisecond},
		{true, true, time.Millisecond},
		{true, false, 50 * time.Millisecond},
		{},
	}
	hardReset = []lines{{false, true, 100 * time.Millisecond}, {false, false, 50 * time.Millisecond}}
	usbReset  = []lines{
		{false, false, 100 * time.Millisecond},
		{true, false, 100 * time.Millisecond},
		{true, true, 0},
		{false, true, 100 * time.Millisecond},
		{},
	}
)

func TestResetSequences(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		synctest.Test(t, func(t *testing.T) {
			c := newChip(t, Options{Model: m})
			for _, s := range []struct {
				name  string
				steps []lines
				want  bootrom.State
			}{
				{"tight", unixTight, bootrom.Download},
				{"hard", hardReset, bootrom.Looping},
				{"classic", classic, bootrom.Download},
				{"hard", hardReset, bootrom.Looping},
				{"held", []lines{{false, true, time.Hour}}, 0},
				{"let go", []lines{{false, false, time.Second}}, bootrom.Looping},
				// Both asserted or only DTR: no reset, as when a port is opened.
				{"open", []lines{{true, true, time.Second}, {true, false, time.Second}, {false, false, 0}}, bootrom.Looping},
			} {
				c.drive(t, s.steps)
				if got := c.State(); got != s.want {
					t.Errorf("%s: the chip is %v, want %v", s.name, got, s.want)
				}
			}
			if c.opt.USBSerial {
				t.Error("a UART board by default")
			}
		})
	})
}

func TestUSBSerial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32c3"), USBSerial: true})
		c.drive(t, unixTight[:3]) // RTS alone resets; DTR was not there alone before
		if c.State() != bootrom.Looping || !bytes.Contains(c.BootText(), []byte("rst:0x15 (USB_UART_CHIP_RESET)")) {
			t.Errorf("%v after %q", c.State(), c.BootText())
		}
		c.drive(t, usbReset)
		if c.State() != bootrom.Download {
			t.Errorf("the chip is %v", c.State())
		}
		h := &host{t, c}
		h.received()
		if err := c.SetBaud(t.Context(), 9600); err != nil { // means nothing here
			t.Fatal(err)
		}
		if got := h.ask(opSync, syncData()); len(got) != syncReplies {
			t.Errorf("SYNC got %d replies", len(got))
		}
		h.do(opChangeBaud, words(921600, 0))
		h.read(chip.MagicRegister)
	})
}

func TestControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32")})
		h := connect(t, c)
		c.Power(false)
		if got := h.ask(opSync, syncData()); len(got) != 0 || c.State() != 0 {
			t.Errorf("without power: %x, %v", got, c.State())
		}
		c.ResetInto(true)
		if c.State() != 0 {
			t.Errorf("a reset without power gave %v", c.State())
		}
		c.HoldStrap(true)
		c.Power(true)
		if c.State() != bootrom.Download {
			t.Errorf("with the strap held the chip is %v", c.State())
		}
		c.HoldStrap(false)
		c.drive(t, hardReset)
		if c.State() != bootrom.Looping {
			t.Errorf("the chip is %v", c.State())
		}
		c.ResetInto(true)
		c.ResetInto(false)
		if c.State() != bootrom.Looping {
			t.Errorf("the chip is %v", c.State())
		}
	})
}

// TestReadWaits: a Read blocks until there is something, and ends with its
// context, an unplugged port or the chip's end.
func TestReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32c3")})
		h := connect(t, c)
		type result struct {
			n   int
			err error
		}
		start := func(ctx context.Context) chan result {
			got := make(chan result, 1)
			go func() {
				n, err := c.Read(ctx, make([]byte, 64))
				got <- result{n, err}
			}()
			synctest.Wait()
			return got
		}

		got := start(t.Context())
		if _, err := c.Write(t.Context(), slipEncode(packet(opReadReg, words(0)))); err != nil {
			t.Fatal(err)
		}
		if r := <-got; r.n == 0 || r.err != nil {
			t.Errorf("data: %+v", r)
		}
		h.received()

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if r := <-start(ctx); !errors.Is(r.err, context.DeadlineExceeded) || time.Since(began) != 50*time.Millisecond {
			t.Errorf("deadline: %+v after %v", r, time.Since(began))
		}
		if _, err := c.Write(ctx, []byte{1}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write with a dead context: %v", err)
		}

		got = start(t.Context())
		c.Unplug()
		if r := <-got; !errors.Is(r.err, ErrUnplugged) {
			t.Errorf("unplugged: %+v", r)
		}
		for name, call := range map[string]func() error{
			"Write":    func() error { _, err := c.Write(t.Context(), []byte{1}); return err },
			"Read":     func() error { _, err := c.Read(t.Context(), make([]byte, 1)); return err },
			"SetBaud":  func() error { return c.SetBaud(t.Context(), 1) },
			"SetLines": func() error { return c.SetLines(t.Context(), true, true) },
			"Discard":  func() error { return c.Discard(t.Context()) },
			"Reopen":   func() error { return c.Reopen(t.Context()) },
		} {
			if err := call(); !errors.Is(err, ErrUnplugged) {
				t.Errorf("%s on an unplugged port: %v", name, err)
			}
		}
		c.Plug()
		if _, err := c.Write(t.Context(), []byte{1}); !errors.Is(err, ErrUnplugged) {
			t.Errorf("plugged in but not reopened: %v", err)
		}
		if err := c.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.send(nil)
		h.read(chip.MagicRegister) // the board kept its power, the loader its state

		got = start(t.Context())
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if r := <-got; !errors.Is(r.err, ErrClosed) {
			t.Errorf("closed: %+v", r)
		}
		if err := c.Reopen(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Reopen after Close: %v", err)
		}
		c.Power(true)
		c.ResetInto(true)
		if c.State() != 0 {
			t.Errorf("a closed chip is %v", c.State())
		}
	})
}

// TestUnplugLetsGo: an adapter that goes releases EN.
func TestUnplugLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32")})
		c.drive(t, []lines{{false, true, time.Second}})
		c.Unplug()
		time.Sleep(time.Second)
		if c.State() != bootrom.Looping {
			t.Errorf("the chip is %v", c.State())
		}
	})
}

func TestBootLoopPrints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32c3")})
		h := &host{t, c}
		h.received()
		time.Sleep(time.Minute)
		first := len(h.received())
		if first < loopBuffer || first > 3*loopBuffer {
			t.Errorf("in a minute without a reader %d bytes came", first)
		}
		time.Sleep(time.Second)
		if text := h.received(); !bytes.Contains(text, []byte("invalid header: 0xffffffff")) {
			t.Errorf("then %q", text)
		}
		c.ResetInto(true)
		h.received()
		time.Sleep(time.Minute)
		if text := h.received(); len(text) != 0 {
			t.Errorf("the loader printed %q", text)
		}
	})
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32c3"), Pace: true})
		c.ResetInto(true)
		time.Sleep(time.Second) // the boot text
		if err := c.Discard(t.Context()); err != nil {
			t.Fatal(err)
		}
		request := slipEncode(packet(opSync, syncData()))
		began := time.Now()
		if _, err := c.Write(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		if d, want := time.Since(began), uartTime(len(request), romBaud); d < want-time.Millisecond || d > want+time.Millisecond {
			t.Errorf("the request took %v, want %v", d, want)
		}
		began = time.Now()
		n := 0
		for n < 8*14 {
			m, err := c.Read(t.Context(), make([]byte, 5))
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		if d, want := time.Since(began), uartTime(8*14, romBaud); d < want-time.Millisecond || d > want+time.Millisecond {
			t.Errorf("the replies took %v, want %v", d, want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if n, err := c.Write(ctx, make([]byte, 4096)); !errors.Is(err, context.DeadlineExceeded) || n > 200 {
			t.Errorf("4096 bytes in 10 ms: %d went, %v", n, err)
		}
	})
}

// TestAppLoop: an app prints once, or again and again if asked to. The chip has no
// app here, so the state is set by hand.
func TestAppLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChip(t, Options{Model: model(t, "esp32c3"), AppPrints: "hello", AppLoop: true})
		c.mu.Lock()
		c.stop()
		c.state, c.out = bootrom.Running, nil
		c.armLoop()
		c.mu.Unlock()
		time.Sleep(3500 * time.Millisecond)
		if got := string((&host{t, c}).received()); got != "hello\r\nhello\r\nhello\r\n" {
			t.Errorf("got %q", got)
		}
	})
}

// TestSixtyFour: a rack of chips with 16 MB each costs next to nothing.
func TestSixtyFour(t *testing.T) {
	for range 64 {
		h := connect(t, newChip(t, Options{Model: model(t, "esp32"), FlashSize: 16 << 20}))
		h.attach()
		if o := h.do(opReadFlash, words(0, 64)); !bytes.Equal(o.data, bytes.Repeat([]byte{0xFF}, 64)) {
			t.Fatalf("flash %x", o.data)
		}
		if h.c.Flash().Used() != 0 {
			t.Fatal("an erased flash takes memory")
		}
	}
}
