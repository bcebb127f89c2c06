package rom

import (
	"bytes"
	"crypto/md5"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/provisiond/provisiond/esp/chip"
)

// testStubByte is what the loader of these tests takes for a stub's first instruction.
const testStubByte = 0x5A

// testStub is no real stub: this project has none.
func testStub() Stub {
	text := make([]byte, 0x2345)
	for i := range text {
		text[i] = byte(i * 7)
	}
	text[0x120] = testStubByte
	return Stub{Entry: 0x40380120, TextStart: 0x40380000, Text: text, DataStart: 0x3FC80000, Data: []byte("data of a stub"), BSSStart: 0x3FC90000}
}

// onStub is a client whose stub runs.
func onStub(t *testing.T, l *loader) *Client {
	t.Helper()
	c := detected(t, l)
	if err := c.RunStub(t.Context(), testStub(), 300); err != nil {
		t.Fatal(err)
	}
	return c
}

// With a stub everything is as without: on every chip flash is erased, written and
// proved, registers are read and written, the rate is changed, in the stub's terms.
func TestStubFamily(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		c := onStub(t, l)
		if !c.OnStub() || !l.stub {
			t.Fatal("it does not run")
		}
		for i, want := range testStub().Text {
			if l.ram[testStub().TextStart+uint32(i)] != want {
				t.Fatalf("text differs at %d", i)
			}
		}
		for i, want := range testStub().Data {
			if l.ram[testStub().DataStart+uint32(i)] != want {
				t.Fatalf("data differ at %d", i)
			}
		}
		if err := c.RunStub(t.Context(), testStub(), 300); err != nil {
			t.Error("a second start:", err)
		}
		if err := c.AttachFlash(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.SetFlashSize(t.Context(), 4<<20); err != nil {
			t.Fatal(err)
		}
		if err := c.ChangeBaud(t.Context(), 921600); err != nil || l.baud != 921600 {
			t.Fatal(err, l.baud)
		}
		if err := c.ExchangeTest(t.Context(), 1024); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{1, 2, 3, 4, 5}, 0x5001)
		if err := c.WriteFlash(t.Context(), 0x11000, data, nil); err != nil {
			t.Fatal(err)
		}
		if l.lastBlockPending {
			t.Error("the last block is answered and not known to be written")
		}
		sum, err := c.FlashMD5(t.Context(), 0x11000, uint32(len(data)))
		if err != nil || sum != md5.Sum(data) || !bytes.Equal(l.flash[0x11000:0x11000+len(data)], data) {
			t.Errorf("%x, %v", sum, err)
		}
		if err := c.EraseFlash(t.Context(), 0x11000, 0x3000, nil); err != nil || !bytes.Equal(l.flash[0x11000:0x14000], bytes.Repeat([]byte{0xFF}, 0x3000)) {
			t.Error("erase:", err)
		}
		if _, err := c.ReadFlash(t.Context(), 0, 4); !errors.Is(err, ErrStub) {
			t.Error("READ_FLASH_SLOW:", err)
		}
		if m.MaxFlash > 16<<20 {
			l.flash = make([]byte, 17<<20)
			if err := c.SetFlashSize(t.Context(), 32<<20); err != nil {
				t.Fatal(err)
			}
			if err := c.WriteFlash(t.Context(), 16<<20, data[:0x1000], nil); err != nil {
				t.Error("beyond 16 MB:", err)
			}
		}
		if c.Noise() != 0 {
			t.Errorf("noise %d on a clean line", c.Noise())
		}
		// A reset ends it.
		c = connected(t, l, Options{})
		if _, err := c.Detect(t.Context()); err != nil || c.OnStub() || l.stub {
			t.Error("after a reset:", err, c.OnStub())
		}
	})
}

// Noise costs retries: also of what goes to RAM, and of a digest that comes without
// any redundancy.
func TestStubNoise(t *testing.T) {
	for seed := range 8 {
		synctest.Test(t, func(t *testing.T) {
			l := board(t, model(t, "esp32c3"))
			for range seed {
				l.rng.Uint64()
			}
			l.rate = 1e-4
			c := detected(t, l)
			var err error
			for range 3 { // the greeting itself may be hit: connect again then
				if err = c.RunStub(t.Context(), testStub(), 300); err == nil || !errors.Is(err, ErrStub) {
					break
				}
				c = detected(t, l)
			}
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte{9, 8, 7}, 0x6000)
			if err := c.WriteFlash(t.Context(), 0x10000, data, nil); err != nil {
				t.Fatal(err)
			}
			if sum, err := c.FlashMD5(t.Context(), 0x10000, uint32(len(data))); err != nil || sum != md5.Sum(data) {
				t.Errorf("%x, %v", sum, err)
			}
		})
	}
}

// A stub runs where the silicon allows it (esp-facts A.10).
func TestStubRestrictions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		chip    string
		rev     chip.Revision
		prepare func(l *loader)
		want    string // empty: it runs
	}{
		{"C3", "esp32c3", 4, nil, ""},
		{"C3 with Secure Boot", "esp32c3", 4, func(l *loader) { l.secureBoot = true }, "once Secure Boot is on"},
		{"C2 v0.0", "esp32c2", 0, nil, "runs none before v0.1"},
		{"C2 v1.0", "esp32c2", 100, nil, ""},
		{"S3 with Secure Boot", "esp32s3", 2, func(l *loader) { l.secureBoot = true }, ""},
		{"Secure Download Mode", "esp32c6", 2, func(l *loader) { l.secure = true }, "Secure Download Mode"},
		{"silent", "esp32c6", 2, func(l *loader) { l.stubMute = true }, "does not greet"},
		{"without MEM_END's answer", "esp32", 301, func(l *loader) { l.endReplyLost = true }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := board(t, model(t, tc.chip))
				hook := l.model.ROM.Stub.ReadHook
				l.regs[hook] = 0x40001234
				if tc.prepare != nil {
					tc.prepare(l)
				}
				c := connected(t, l, Options{})
				if _, err := c.Detect(t.Context()); err != nil {
					t.Fatal(err)
				}
				err := c.RunStub(t.Context(), testStub(), tc.rev)
				if tc.want == "" {
					if err != nil || !c.OnStub() {
						t.Fatal(err)
					}
					if hook != 0 && l.regs[hook] != 0x40001234 {
						t.Errorf("the ROM's pointer is 0x%08x afterwards", l.regs[hook])
					}
					return
				}
				if !errors.Is(err, ErrStub) || !strings.Contains(err.Error(), tc.want) || c.OnStub() {
					t.Errorf("%v, want %q", err, tc.want)
				}
				if fits := c.StubFits(t.Context(), tc.rev); (fits == nil) != (tc.name == "silent") {
					t.Errorf("StubFits: %v", fits)
				}
				if len(l.ram) > 0 && tc.name != "silent" {
					t.Error("something was loaded")
				}
			})
		})
	}
}

// Over USB-OTG blocks are small, to RAM and to flash.
func TestStubOverOTG(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := board(t, model(t, "esp32s3"))
		l.info.USBOTG = true
		l.model.ROM.MemBlock = 0x800 // the loader refuses more
		c := onStub(t, l)
		if err := c.WriteFlash(t.Context(), 0, make([]byte, 0x3000), nil); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, op := range l.requests {
			if op == 7 {
				n++
			}
		}
		if n != 6 { // 0x2345 bytes of text in 0x800, and the data
			t.Errorf("%d blocks to RAM", n)
		}
	})
}

func TestParseStub(t *testing.T) {
	good := string(testStub().Encode())
	if s, err := ParseStub([]byte(good)); err != nil || !reflect.DeepEqual(s, testStub()) {
		t.Fatal(err)
	}
	// The form of esptool's files: other order, more members, no data.
	s, err := ParseStub([]byte(`{"text":"WgAA","text_start":1077379072,"entry":1077379072,"plugin_table_offset":4}`))
	if err != nil || s.Entry != 0x40379400 && s.Entry != 1077379072 || !bytes.Equal(s.Text, []byte{0x5A, 0, 0}) || s.Data != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, bad := range []string{
		"", "null", "[]", `{"entry":1}`, strings.Replace(good, `"text":"`, `"text":"!`, 1), good + good,
		`{"text":"WgAA","text_start":16,"entry":19}`, `{"text":"WgAA","text_start":16,"entry":15}`, `{"text":"","text_start":16,"entry":16}`,
		`{"text":"WgAA","text_start":0,"entry":0}`, `{"text":"WgAA","text_start":4294967295,"entry":4294967295}`,
		`{"text":"WgAA","text_start":16,"entry":16,"data":"AA=="}`, `{"text":"WgAA","text_start":16,"entry":16,"data_start":5}`,
		`{"text":"WgAA","text_start":-1,"entry":16}`, `{"text":"WgAA","text_start":1.5,"entry":16}`, `{"text":"WgAA","text_start":99999999999,"entry":16}`,
	} {
		if s, err := ParseStub([]byte(bad)); !errors.Is(err, ErrStub) {
			t.Errorf("%.80s gives %+v, %v", bad, s, err)
		}
	}
}

// What parses is encoded in one form that parses to the same.
func FuzzParseStub(f *testing.F) {
	f.Add(testStub().Encode())
	f.Add([]byte(`{"text":"WgAA","text_start":16,"entry":16,"data":"","data_start":5}`))
	f.Add([]byte(`{"text":"WgAA\n","text_start":16,"entry":16,"bss_start":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStub(b)
		if err != nil {
			return
		}
		once := s.Encode()
		again, err := ParseStub(once)
		if err != nil || !reflect.DeepEqual(again, s) || !slices.Equal(again.Encode(), once) {
			t.Errorf("%q is written as %q: %v", b, once, err)
		}
	})
}
