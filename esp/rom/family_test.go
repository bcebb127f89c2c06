package rom

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
)

// eachChip runs a test for every chip that there is.
func eachChip(t *testing.T, f func(t *testing.T, m chip.Model)) {
	for _, m := range chip.All() {
		t.Run(m.Name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, m) }) })
	}
}

// eachSecureChip is eachChip for those that have a Secure Download Mode.
func eachSecureChip(t *testing.T, f func(t *testing.T, m chip.Model)) {
	for _, m := range chip.All() {
		if m.ROM.SecureDownload {
			t.Run(m.Name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, m) }) })
		}
	}
}

// board is a loader of any chip, with what detection looks at.
func board(t *testing.T, m chip.Model) *loader {
	l := newLoader(m)
	if l.boot == "" {
		l.boot = string(m.ROM.Banner) + "-20990101\r\nrst:0x1 (POWERON),boot:0x2\r\n" + string(m.ROM.DownloadBanner[0]) + "\r\n"
	}
	if !m.ROM.SecurityInfo || m.ROM.SecurityInfoBytes == securityInfoShort {
		for _, v := range []uint32{0x00F01D83, 0x000007C6} {
			if m.HasMagic(v) {
				l.regs[chip.MagicRegister] = v
			}
		}
		if l.regs[chip.MagicRegister] == 0 {
			t.Fatal("nothing tells this chip")
		}
	}
	return l
}

func TestDetectFamily(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		c := connected(t, l, Options{})
		got, err := c.Detect(t.Context())
		if err != nil || got.Name != m.Name || c.SecureDownload() {
			t.Errorf("%s, %v", got.Name, err)
		}
		// Reading there hangs a P4, and nobody needs it who has a chip id.
		if asked := slices.Contains(l.requests, 0x0A); asked != (m.ROM.SecurityInfoBytes < securityInfoLong) {
			t.Errorf("a register was read: %v", asked)
		}
	})
}

// In Secure Download Mode a chip still says which it is; the one that tells no id
// is known by what it refuses.
func TestDetectFamilySecure(t *testing.T) {
	eachSecureChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		l.secure = true
		c := connected(t, l, Options{})
		got, err := c.Detect(t.Context())
		if err != nil || got.Name != m.Name || !c.SecureDownload() {
			t.Errorf("%s, secure %v, %v", got.Name, c.SecureDownload(), err)
		}
	})
}

// A chip whose security information has no id and says nothing of Secure Download
// Mode, and that yet refuses registers, is not taken for an ESP32-S2.
func TestDetectStrangeRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := model(t, "esp32s2")
		l := board(t, m)
		l.noReads = true
		c := connected(t, l, Options{})
		if got, err := c.Detect(t.Context()); !errors.Is(err, chip.ErrUnknown) {
			t.Errorf("%s, %v", got.Name, err)
		}
	})
}

func TestChangeBaudFamily(t *testing.T) {
	for _, m := range chip.All() {
		for _, crystal := range m.ROM.Crystals {
			assumes := []int{0}
			switch {
			case m.ROM.BaudCrystalMHz != 0:
				assumes = []int{m.ROM.BaudCrystalMHz}
			case m.ROM.BaudCrystalReg != 0:
				assumes = m.ROM.Crystals
			case m.ROM.BaudCrystalFixed:
				continue // TestESP32Rate
			}
			for _, assumed := range assumes {
				t.Run(fmt.Sprintf("%s %d assumed %d", m.Name, crystal, assumed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := board(t, m)
						l.crystal, l.assumed = crystal, assumed
						l.regs[m.ROM.BaudCrystalReg] = 0x80000000 | uint32(assumed)<<24 | 0x123456
						c := detected(t, l)
						if mhz, err := c.Crystal(t.Context()); err != nil || mhz != crystal {
							t.Fatalf("crystal %d, %v", mhz, err)
						}
						for _, baud := range []int{460800, 921600, 115200} {
							if err := c.ChangeBaud(t.Context(), baud); err != nil {
								t.Fatal(err)
							}
							if d := l.baud - baud; c.Baud() != baud || d < -10 || d > 10 {
								t.Errorf("told for %d, the chip runs at %d, the client at %d", baud, l.baud, c.Baud())
							}
							l.baud = baud // a UART bears the difference
						}
					})
				})
			}
		}
	}
}

func TestCrystalThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := board(t, model(t, "esp32c2"))
		l.crystal = 32
		c := detected(t, l)
		if mhz, err := c.Crystal(t.Context()); err == nil {
			t.Errorf("%d MHz", mhz)
		}
		if err := c.ChangeBaud(t.Context(), 460800); err == nil {
			t.Error("the rate was changed without knowing how")
		}
	})
}

func TestBaudInSecureDownload(t *testing.T) {
	eachSecureChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		l.secure = true
		c := connected(t, l, Options{})
		if _, err := c.Detect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.ChangeBaud(t.Context(), 921600); err != nil {
			t.Fatal(err)
		}
		want := 921600
		if m.ROM.BaudFixedInSDM {
			want = 115200
		}
		if c.Baud() != want || l.baud != want {
			t.Errorf("client %d, chip %d, want %d", c.Baud(), l.baud, want)
		}
	})
}

func TestWatchdogReset(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		c := detected(t, l)
		err := c.WatchdogReset(t.Context())
		if can := !slices.Contains([]string{"esp32", "esp32c6", "esp32h2"}, m.Name); can != (err == nil) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		if !slices.Equal(l.requests[len(l.requests)-4:], []byte{9, 9, 9, 9}) {
			t.Errorf("requests %x", l.requests)
		}
		writes := m.WatchdogReset()
		if l.regs[writes[2].Addr] != 0xD0000102 || l.regs[writes[1].Addr] != 2000 || l.regs[writes[0].Addr] != 0 {
			t.Errorf("registers %x", l.regs)
		}
		l.secure, c.secure = true, true
		if err := c.WatchdogReset(t.Context()); !errors.Is(err, ErrSecureDownload) {
			t.Error(err)
		}
	})
}

func TestHardResetOverOTG(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		l.info.USBOTG = true
		c := detected(t, l)
		l.requests, l.lineLog = nil, nil
		l.regs[0x6000812C] = 0xFF
		if err := c.HardReset(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := len(m.BeforeRun()) + len(m.WatchdogReset())
		if got := len(l.requests); got != want {
			t.Errorf("%d writes, want %d", got, want)
		}
		if byLine := slices.Contains(l.lineLog, "reset"); byLine != (len(m.WatchdogReset()) == 0) {
			t.Errorf("lines %v", l.lineLog)
		}
		if v := l.regs[0x6000812C]; m.Name == "esp32s3" && v != 0xFE {
			t.Errorf("forced download stays: %x", v)
		}
	})
}

// The flash of some P4 silicon has no supply until registers say so; of the others
// nothing is read or written before SPI_ATTACH.
func TestFlashPower(t *testing.T) {
	const (
		word, xpd      = 0x5012D04C, 0x5012D034
		ldo, ana, date = 0x501151B8, 0x501151BC, 0x501153FC
	)
	for _, tc := range []struct {
		name   string
		chip   string
		rev    uint32 // as the eFuse word holds it
		byROM  bool
		writes int
	}{
		{"v1.3", "esp32p4", 0x13, false, 0},
		{"v3.0", "esp32p4", 0x30, false, 0},
		{"v3.1", "esp32p4", 0x31, false, 8},
		{"v3.1 with the fuse of v3.2", "esp32p4", 0x31, true, 8},
		{"v3.2", "esp32p4", 0x32, false, 8},
		{"v3.2, switched on by the ROM", "esp32p4", 0x32, true, 1},
		{"v4.1, which nobody knows", "esp32p4", 1<<23 | 0x01, false, 0},
		{"v7.1, the high bit counts", "esp32p4", 1<<23 | 0x31, false, 0},
		{"S3", "esp32s3", 0x31, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := board(t, model(t, tc.chip))
				l.regs[word] = 0x12000000 | tc.rev
				if tc.byROM {
					l.regs[xpd] = 1 << 16
				}
				l.regs[ldo], l.regs[ana], l.regs[date] = 0x7FFFFFFF, 0, 0x210000F3
				c := detected(t, l)
				l.requests = nil
				if err := c.AttachFlash(t.Context()); err != nil {
					t.Fatal(err)
				}
				n := 0
				for _, op := range l.requests {
					if op == 9 {
						n++
					}
				}
				if n != tc.writes || l.requests[len(l.requests)-1] != 0x0D {
					t.Errorf("%d writes, requests %x", n, l.requests)
				}
				switch tc.writes {
				case 8:
					if l.regs[0x5011010C] != 1 || l.regs[ldo] != 0x7FFFFFFF&^(0xFF<<23|1<<7) || l.regs[ana] != 0 || l.regs[date] != 0x210000F3 {
						t.Errorf("registers %x", l.regs)
					}
				case 1:
					if l.regs[date] != 0x210000F0 {
						t.Errorf("the ROM's supply is not let go: %x", l.regs[date])
					}
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l := board(t, model(t, "esp32p4"))
		l.secure = true
		c := connected(t, l, Options{})
		if _, err := c.Detect(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.requests = nil
		if err := c.AttachFlash(t.Context()); err != nil || !slices.Equal(l.requests, []byte{0x0D}) {
			t.Errorf("in Secure Download Mode: %x, %v", l.requests, err)
		}
	})
}

func TestReach(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		l := board(t, m)
		c := detected(t, l)
		block := make([]byte, 0x1000)
		for _, secure := range []bool{false, m.ROM.SecureDownload} {
			want := ErrReach
			if l.secure, c.secure = secure, secure; secure {
				want = ErrSecureDownload
			}
			before := len(l.requests)
			if err := c.WriteFlash(t.Context(), 16<<20, block, nil); !errors.Is(err, want) {
				t.Errorf("write: %v", err)
			}
			if err := c.EraseFlash(t.Context(), 16<<20-0x1000, 0x2000, nil); !errors.Is(err, want) {
				t.Errorf("erase: %v", err)
			}
			if len(l.requests) != before {
				t.Error("something was sent")
			}
		}
		if c.reachable("write", 16<<20-0x1000, 0x1000) != nil {
			t.Error("the last sector is out of reach")
		}
	})
}

// What a model says of the loader must be what the loader's texts are looked up by.
func TestTextsTellChipsApart(t *testing.T) {
	for _, m := range chip.All() {
		for _, o := range chip.All() {
			if m.Name != o.Name && strings.HasPrefix(string(m.ROM.Banner)+"-", string(o.ROM.Banner)+"-") {
				t.Errorf("%s and %s print the same", m.Name, o.Name)
			}
		}
		text := string(m.ROM.Banner) + "-1\r\nrst:0x1 (POWERON),boot:0x2\r\n"
		if d := diagnose([]byte(text + string(m.ROM.DownloadDisabled) + "\r\n")); d != DownloadDisabled {
			t.Errorf("%s: closed is diagnosed as %v", m.Name, d)
		}
		if s := m.ROM.SecureBanner; len(s) > 0 && diagnose([]byte(text+string(s))) != SecureDownload {
			t.Errorf("%s: Secure Download Mode is not seen", m.Name)
		}
	}
}

// A delay longer than a command's usual time-out would end it.
func TestModelDelays(t *testing.T) {
	for _, m := range chip.All() {
		for _, p := range m.FlashPower() {
			for _, w := range p.Writes {
				if w.Before > time.Second || w.Before%time.Microsecond != 0 {
					t.Errorf("%s: a delay of %v", m.Name, w.Before)
				}
			}
		}
	}
}
