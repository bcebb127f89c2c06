package rom

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/slip"
)

// TestKnownAnswers holds the protocol's vectors of esp-facts I.
func TestKnownAnswers(t *testing.T) {
	for payload, want := range map[string]uint8{"": 0xEF, "\x00": 0xEF, "\xEF": 0x00, "\x01\x02\x04": 0xE8} {
		if got := Checksum([]byte(payload)); got != want {
			t.Errorf("Checksum(%x) = %02x, want %02x", payload, got, want)
		}
	}
	want := "c000082400000000000707122" + "0" + strings.Repeat("55", 32) + "c0"
	if got := hex.EncodeToString(slip.Encode(packet(OpSync, syncData(), 0))); got != want {
		t.Errorf("SYNC packet %s, want %s", got, want)
	}
}

// TestRequests checks the packets that the recordings do not hold.
func TestRequests(t *testing.T) {
	c3, e32 := &Client{model: model(t, "esp32c3"), detected: true}, &Client{model: model(t, "esp32"), detected: true}
	for _, tc := range []struct {
		name string
		c    *Client
		req  func(*Client) (request, error)
		want string
	}{
		{
			"FLASH_BEGIN encrypted", c3, FlashBegin{Size: 0x100, Blocks: 1, BlockSize: 0x400, Offset: 0x1000, Encrypted: true}.request,
			"0002140000000000" + "00010000" + "01000000" + "00040000" + "00100000" + "01000000",
		},
		{"FLASH_DATA", c3, FlashData{Sequence: 2, Data: []byte{1, 2, 4}}.request, "00031300e8000000" + "03000000" + "02000000" + "00000000" + "00000000" + "010204"},
		{"FLASH_END", c3, FlashEnd{Reboot: true}.request, "0004040000000000" + "00000000"},
		{"FLASH_END run", c3, FlashEnd{}.request, "0004040000000000" + "01000000"},
		{
			"FLASH_DEFL_BEGIN", e32, FlashDeflBegin{Size: 0x400, Blocks: 1, BlockSize: 0x400, Offset: 0x1000}.request,
			"0010100000000000" + "00040000" + "01000000" + "00040000" + "00100000",
		},
		{"FLASH_DEFL_DATA", e32, FlashDeflData{Sequence: 1, Data: []byte{0xEF}}.request, "0011110000000000" + "01000000" + "01000000" + "0000000000000000" + "ef"},
		{"FLASH_DEFL_END", e32, FlashDeflEnd{Reboot: true}.request, "0012040000000000" + "00000000"},
		{
			"MEM_BEGIN", e32, MemBegin{Size: 0x10, Blocks: 1, BlockSize: 0x1800, Address: 0x40080000}.request,
			"0005100000000000" + "10000000" + "01000000" + "00180000" + "00000840",
		},
		{"MEM_DATA", e32, MemData{Data: []byte{0}}.request, "00071100ef000000" + "01000000" + "00000000" + "0000000000000000" + "00"},
		{"MEM_END stay", e32, MemEnd{}.request, "0006080000000000" + "01000000" + "00000000"},
		{"MEM_END run", e32, MemEnd{Entry: 0x40080400}.request, "0006080000000000" + "00000000" + "00040840"},
		{"READ_FLASH_SLOW", e32, ReadFlashSlow{Offset: 0x8000, Length: 64}.request, "000e080000000000" + "00800000" + "40000000"},
	} {
		req, err := tc.req(tc.c)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := hex.EncodeToString(packet(req.op, req.data, req.sum)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	for name, f := range map[string]func() (request, error){
		"encrypted on ESP32": func() (request, error) { return FlashBegin{Encrypted: true}.request(e32) },
		"not detected":       func() (request, error) { return FlashBegin{}.request(&Client{}) },
		"slow read of 65":    func() (request, error) { return ReadFlashSlow{Length: 65}.request(c3) },
		"no register":        func() (request, error) { return WriteReg{}.request(c3) },
		"negative delay":     func() (request, error) { return WriteReg{Groups: []RegWrite{{Delay: -time.Second}}}.request(c3) },
	} {
		if req, err := f(); err == nil {
			t.Errorf("%s: %x", name, req.data)
		}
	}
}

func TestTimeouts(t *testing.T) {
	for _, tc := range []struct {
		per  time.Duration
		size uint32
		want time.Duration
	}{
		{perMegabyte, 0, 3 * time.Second},
		{perMegabyte, 1_000_000, 40 * time.Second},
		{md5PerMegabyte, 1_000_000, 8 * time.Second},
		{md5PerMegabyte, 100, 3 * time.Second},
		{perMegabyte, 1 << 31, 240 * time.Second},
	} {
		if got := sized(tc.per, tc.size); got != tc.want {
			t.Errorf("sized(%v, %d) = %v, want %v", tc.per, tc.size, got, tc.want)
		}
	}
}

// A flash chip that erases as slowly as data sheets allow is no fault of the line:
// nothing is sent twice.
func TestSlowFlash(t *testing.T) {
	for _, name := range chipNames {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, name))
				c := detected(t, l)
				l.perSector, l.requests = 400*time.Millisecond, nil
				if err := c.EraseFlash(t.Context(), 0x1000, 0x2F000, nil); err != nil {
					t.Fatal(err)
				}
				// 15 sectors to the next 64 KiB, 16, 16.
				if want := []byte{2, 2, 2}; !bytes.Equal(l.requests, want) || c.Noise() != 0 {
					t.Errorf("requests %x, want %x; noise %d", l.requests, want, c.Noise())
				}
			})
		})
	}
	for size, want := range map[uint32]time.Duration{
		0: 3 * time.Second, 1: 3400 * time.Millisecond, 0x10000: 9400 * time.Millisecond, 1 << 31: 240 * time.Second,
	} {
		if got := eraseTime(size); got != want {
			t.Errorf("eraseTime(%d) = %v, want %v", size, got, want)
		}
	}
}

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		name    string
		body    string // hex
		lengths []int
		data    string
		err     error // nil, ErrNoise, or a *StatusError
	}{
		{"plain", "00000000", noData, "", nil},
		{"stale code", "00050000", noData, "", nil},
		{"data", "aabb00070000", []int{2}, "aabb", nil},
		{"refused", "01050000", noData, "", &StatusError{OpReadReg, 1, 5}},
		{"refused without its data", "01090000", []int{64}, "", &StatusError{OpReadReg, 1, 9}},
		{"refused with its data", "aabb01090000", []int{2}, "", &StatusError{OpReadReg, 1, 9}},
		{"unknown code", "01990000", noData, "", &StatusError{OpReadReg, 1, 0x99}},
		{"stub", "c1000000", noData, "", &StatusError{OpReadReg, 0xC1, 0}},
		{"impossible status", "40000000", noData, "", ErrNoise},
		{"data missing", "00000000", []int{32}, "", ErrNoise},
		{"too much", "0000000000", noData, "", ErrNoise},
		{"nothing", "", noData, "", ErrNoise},
		{"status cut", "0000", noData, "", ErrNoise},
	} {
		body, _ := hex.DecodeString(tc.body)
		data, err := reply{op: OpReadReg, body: body}.split(OpReadReg, statusSizeROM, tc.lengths)
		var status, want *StatusError
		switch {
		case tc.err == nil:
			if err != nil || hex.EncodeToString(data) != tc.data {
				t.Errorf("%s: %x, %v", tc.name, data, err)
			}
		case errors.As(tc.err, &want):
			if !errors.As(err, &status) || *status != *want {
				t.Errorf("%s: %v, want %v", tc.name, err, want)
			}
		case !errors.Is(err, tc.err):
			t.Errorf("%s: %v, want %v", tc.name, err, tc.err)
		}
	}
	if got := (&StatusError{OpFlashData, 1, CodeChecksum}).Error(); got != "FLASH_DATA refused by the loader: checksum of the data is wrong (01 07)" {
		t.Error(got)
	}
	if got := (&StatusError{OpFlashData, 0xC4, 0}).Error(); !strings.Contains(got, "SPI operation failed") {
		t.Error(got)
	}
}

var chipNames = []string{"esp32", "esp32c3"}

func random(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 99))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// TestWriteFlash is the clean line: every request is sent once, the session is
// not ended, and the flash holds the data, padded with 0xFF.
func TestWriteFlash(t *testing.T) {
	for _, name := range chipNames {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				l := newLoader(model(t, name))
				c := detected(t, l)
				if err := c.SetFlashSize(ctx, 4<<20); err != nil {
					t.Fatal(err)
				}
				l.requests = nil
				const addr = 0x1F1000
				data := random(1, 130_001)
				var marks []int
				if err := c.WriteFlash(ctx, addr, data, func(done, total int) {
					if total != len(data) {
						t.Errorf("total %d", total)
					}
					marks = append(marks, done)
				}); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(l.flash[addr:addr+len(data)], data) {
					t.Error("the flash does not hold the data")
				}
				if rest := l.flash[addr+len(data) : (addr+len(data)+0x3FF)&^0x3FF]; !bytes.Equal(rest, bytes.Repeat([]byte{0xFF}, len(rest))) {
					t.Errorf("padding %x", rest)
				}
				if l.flash[addr-1] != 0 || l.flash[(addr+len(data)+0xFFF)&^0xFFF] != 0 {
					t.Error("erased more than the sectors of the data")
				}
				if !slices.IsSorted(marks) || marks[len(marks)-1] != len(data) || len(marks) != 127 {
					t.Errorf("progress %v", marks)
				}
				// Chunks end at 0x200000, 0x210000 and the end of the data.
				want := slices.Concat([]byte{2}, bytes.Repeat([]byte{3}, 60), []byte{2}, bytes.Repeat([]byte{3}, 64), []byte{2}, bytes.Repeat([]byte{3}, 3))
				if !bytes.Equal(l.requests, want) {
					t.Errorf("requests %x", l.requests)
				}
				if c.Noise() != 0 {
					t.Errorf("noise %d on a clean line", c.Noise())
				}
				sum, err := c.FlashMD5(ctx, addr, uint32(len(data)))
				if err != nil || sum != md5.Sum(data) {
					t.Errorf("MD5 %x, %v", sum, err)
				}
				back, err := c.ReadFlash(ctx, addr+3, 200)
				if err != nil || !bytes.Equal(back, data[3:203]) {
					t.Errorf("ReadFlash: %v", err)
				}
			})
		})
	}
}

func TestWriteFlashRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		l.requests = nil
		if err := c.WriteFlash(ctx, 0x1800, []byte{1}, nil); err == nil {
			t.Error("an address inside a sector")
		}
		if err := c.EraseFlash(ctx, 0x1000, 0x800, nil); err == nil {
			t.Error("half a sector")
		}
		if err := c.EraseFlash(ctx, 0xFFFFF000, 0x2000, nil); err == nil {
			t.Error("a region beyond 4 GiB")
		}
		if _, err := c.ReadFlash(ctx, 0xFFFFFFFF, 2); err == nil {
			t.Error("a read beyond 4 GiB")
		}
		if len(l.requests) != 0 {
			t.Errorf("sent %x", l.requests)
		}
		// Beyond the flash the chip says no, and goes on saying so.
		err := c.WriteFlash(ctx, 0x1FF000, make([]byte, 0x2000), nil)
		var status *StatusError
		if !errors.As(err, &status) || status.Code != CodeResult || !strings.Contains(err.Error(), "0x200000") {
			t.Errorf("beyond the flash: %v", err)
		}
	})
}

func TestEraseFlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		l.secure = true
		c := detected(t, l)
		l.requests = nil
		var marks []uint32
		if err := c.EraseFlash(t.Context(), 0x9000, 0x21000, func(done, total uint32) {
			if total != 0x21000 {
				t.Errorf("total %x", total)
			}
			marks = append(marks, done)
		}); err != nil {
			t.Fatal(err)
		}
		if want := []uint32{0x7000, 0x17000, 0x21000}; !slices.Equal(marks, want) {
			t.Errorf("progress %x, want %x", marks, want)
		}
		if !bytes.Equal(l.flash[0x9000:0x2A000], bytes.Repeat([]byte{0xFF}, 0x21000)) || l.flash[0x8FFF] != 0 || l.flash[0x2A000] != 0 {
			t.Error("erased another region")
		}
		if !bytes.Equal(l.requests, []byte{2, 2, 2}) {
			t.Errorf("requests %x", l.requests)
		}
	})
}

// TestFlashNoise damages one byte in 10⁴, in both directions: it may cost
// retries, never a wrong byte in the flash.
func TestFlashNoise(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	hits, noise := 0, 0
	for _, name := range chipNames {
		for _, flips := range []bool{false, true} {
			for seed := range seeds {
				synctest.Test(t, func(t *testing.T) {
					ctx := t.Context()
					l := newLoader(model(t, name))
					l.rate, l.flips, l.rng = 1e-4, flips, rand.New(rand.NewPCG(seed, 5))
					c := detected(t, l)
					start := time.Now()
					if err := c.SetFlashSize(ctx, 4<<20); err != nil {
						t.Fatal(err)
					}
					data := random(seed, 200_000)
					last := 0
					if err := c.WriteFlash(ctx, 0x1000, data, func(done, _ int) {
						if done <= last {
							t.Errorf("progress from %d to %d", last, done)
						}
						last = done
					}); err != nil {
						t.Fatalf("%s flips=%v seed %d: %v", name, flips, seed, err)
					}
					if !bytes.Equal(l.flash[0x1000:0x1000+len(data)], data) {
						t.Errorf("%s flips=%v seed %d: the flash does not hold the data", name, flips, seed)
					}
					if err := c.EraseFlash(ctx, 0x100000, 0x20000, nil); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(l.flash[0x100000:0x120000], bytes.Repeat([]byte{0xFF}, 0x20000)) {
						t.Errorf("%s flips=%v seed %d: not erased", name, flips, seed)
					}
					if sum, err := c.FlashMD5(ctx, 0x1000, uint32(len(data))); err != nil || sum != md5.Sum(data) {
						t.Errorf("MD5 %x, %v", sum, err)
					}
					if d := time.Since(start); d > 2*time.Minute {
						t.Errorf("%s flips=%v seed %d took %v", name, flips, seed, d)
					}
					hits += l.hits
					noise += c.Noise()
				})
			}
		}
	}
	t.Logf("%d bytes damaged, %d exchanges repeated", hits, noise)
	if hits < 100 || noise < 50 {
		t.Errorf("only %d bytes damaged, %d exchanges repeated", hits, noise)
	}
}

// TestWriteFlashEveryByte damages every byte of a short write in turn, on a line
// that has shown noise before: what no checksum covers, an address or a length, is
// found and written again.
func TestWriteFlashEveryByte(t *testing.T) {
	m := model(t, "esp32c3")
	data := random(4, 0x400)
	write := func(t *testing.T, at int, by byte) (l *loader, total int) {
		synctest.Test(t, func(t *testing.T) {
			l = newLoader(m)
			l.damageAt, l.damageBy = at, by
			c := detected(t, l)
			c.noise = 1
			if err := c.WriteFlash(t.Context(), 0x10000, data, nil); err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
			if !bytes.Equal(l.flash[0x10000:0x10400], data) {
				t.Errorf("byte %d: the flash does not hold the data", at)
			}
			total = l.seen
		})
		return l, total
	}
	_, total := write(t, -1, 0)
	for at := range total {
		if at > 100 && at < 1000 && at%13 != 0 {
			continue // the block's bytes are all alike
		}
		for _, by := range []byte{0x01, 0x10, 0x80} {
			if l, _ := write(t, at, by); l.hits != 1 {
				t.Errorf("byte %d was not damaged", at)
			}
		}
	}
}

// TestRegisterNoise: what is read on a line with one byte in 1000 damaged is
// right or an error.
func TestRegisterNoise(t *testing.T) {
	for _, name := range chipNames {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			m := model(t, name)
			l := newLoader(m)
			l.rate, l.rng = 1e-3, rand.New(rand.NewPCG(3, 3))
			c := detected(t, l)
			for i := range 1500 {
				addr := m.EFuse.Base + 0x04
				l.regs[addr] = rand.New(rand.NewPCG(uint64(i), 0)).Uint32()
				if v, err := c.ReadRegAgreed(ctx, addr); err != nil || v != l.regs[addr] {
					t.Fatalf("%s read %d: %08x, %v, want %08x", name, i, v, err, l.regs[addr])
				}
			}
			for i := range 60 {
				if id, err := c.FlashID(ctx); err != nil || id.Size != 4<<20 || id.Manufacturer != 0xC8 {
					t.Fatalf("%s flash id %d: %v, %v", name, i, id, err)
				}
				if l.regs[m.SPI.Usr] != 0x80000040 || l.regs[m.SPI.Usr2] != 0x70000000 {
					t.Fatalf("%s flash id %d: SPI registers not put back: %08x %08x", name, i, l.regs[m.SPI.Usr], l.regs[m.SPI.Usr2])
				}
				if got, err := c.Detect(ctx); err != nil || got.Name != name {
					t.Fatalf("%s detect %d: %s, %v", name, i, got.Name, err)
				}
			}
			if c.Noise() < 50 {
				t.Errorf("%s: only %d exchanges repeated", name, c.Noise())
			}
		})
	}
}

// TestReadRegEveryByte damages every byte of an exchange in turn, in every bit.
func TestReadRegEveryByte(t *testing.T) {
	m := model(t, "esp32c3")
	const addr, want = 0x60008844, 0xA1C9C3B3
	for at := range 28 {
		for bit := range 8 {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(m)
				l.damageAt, l.damageBy = at, 1<<bit
				c := detected(t, l)
				v, err := c.ReadRegAgreed(t.Context(), addr)
				if err != nil || v != want {
					t.Errorf("byte %d bit %d: %08x, %v", at, bit, v, err)
				}
				if l.hits != 1 {
					t.Errorf("byte %d was not damaged", at)
				}
			})
		}
	}
}

func TestAgreeBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		n := 0
		_, err := agreed(c, "counter", func() (int, error) { n++; return n, nil })
		if !errors.Is(err, ErrNoise) || n != agreeReads {
			t.Errorf("%d readings, %v", n, err)
		}
	})
}

// TestConnectCorruptByte: one corrupt byte among the eight replies to SYNC, or in
// the request, must not fail the connect (esp-facts A.7).
func TestConnectCorruptByte(t *testing.T) {
	boot := len(newLoader(model(t, "esp32c3")).boot)
	for at := range 46 + 8*14 {
		for _, by := range []byte{0x01, 0x80, 0xFF} {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				l.damageAt, l.damageBy = boot+at, by
				c, err := Connect(t.Context(), l, AutoReset{}, Options{Attempts: 1})
				if err != nil {
					t.Fatalf("byte %d: %v", at, err)
				}
				if l.hits != 1 {
					t.Fatalf("byte %d was not damaged", at)
				}
				if _, err := c.Detect(t.Context()); err != nil {
					t.Errorf("byte %d: after the connect: %v", at, err)
				}
			})
		}
	}
}

func TestConnectNoise(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32"))
			l.rate, l.rng = 5e-3, rand.New(rand.NewPCG(seed, 1))
			if _, err := Connect(t.Context(), l, AutoReset{}, Options{}); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
}

// TestExchangeTest: it passes on a clean line and finds any damaged byte, in
// either direction, but for those that the ROM does not look at.
func TestExchangeTest(t *testing.T) {
	for _, secure := range []bool{false, true} {
		clean := 0
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32c3"))
			l.secure = secure
			c := detected(t, l)
			l.seen = 0
			if err := c.ExchangeTest(t.Context(), 4096); err != nil {
				t.Fatal(err)
			}
			if clean = l.seen; clean < 4096+4*len(l.requests) || clean > 7000 {
				t.Errorf("exchanged %d bytes", clean)
			}
		})
		for at := range clean {
			if at > 400 && at%61 != 0 || ignoredByte(at, secure) {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				l.secure, l.damageAt, l.damageBy = secure, at, 1<<(at%8)
				c := detected(t, l)
				err := c.ExchangeTest(t.Context(), 4096)
				if !errors.Is(err, ErrNoise) {
					t.Errorf("byte %d damaged: %v", at, err)
				}
				if err := c.ExchangeTest(t.Context(), 400); err != nil {
					t.Errorf("byte %d: the line is clean again: %v", at, err)
				}
			})
		}
	}
}

// ignoredByte reports whether a byte of an exchange test is one that nobody looks
// at: the checksum field of a request, the pattern of a SYNC, the leftovers behind
// the verdict on a read. A round
// is a SYNC of 46 bytes, its answers of 8 × 14, then, outside Secure Download Mode,
// reads of a register with 14 bytes each way.
func ignoredByte(at int, secure bool) bool {
	const sync, read = 46 + 8*14, 28
	round := sync + exchangeReads*read
	if secure {
		round = sync
	}
	if at %= round; at < sync {
		return at >= 5 && at < 45
	}
	at = (at - sync) % read
	return at >= 5 && at <= 8 || at >= 24 && at <= 26
}

func TestConnectDiagnosis(t *testing.T) {
	const c3 = "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n"
	for _, tc := range []struct {
		name, boot string
		want       Diagnosis
		attempts   int
	}{
		{"silent", "", Silent, 7},
		{"ESP32 closed", "ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT)\r\nDownload mode is disabled. Restart with GPIO0 high.\r\n", DownloadDisabled, 1},
		{"C3 closed", c3 + "rst:0x1 (POWERON),boot:0x2\r\nDownload boot modes disabled\r\n", DownloadDisabled, 1},
		{"booted", c3 + "rst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\ninvalid header: 0xffffffff\r\n", BootedNormally, 7},
		{"app", "I (300) app: running\r\n", BootedNormally, 7},
		{"deaf", c3 + "rst:0x1 (POWERON),boot:0x2 (UART0_BOOT)\r\nwait uart0 download\r\n", LoaderDeaf, 7},
		{"deaf and secure", c3 + "rst:0x1 (POWERON),boot:0x2 (UART0_BOOT)\r\nwait uart download(secure mode)\r\n", SecureDownload, 7},
		{"garbage", "\x80\xfe\x00\x01\x83\x11\xc0\x99\xfc\x12", Garbage, 7},
		{"text behind a stray delimiter", "\xc0" + c3 + "rst:0x1 (POWERON),boot:0x2\r\nDownload boot modes disabled\r\n", DownloadDisabled, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				l.boot, l.closed = tc.boot, true
				_, err := Connect(t.Context(), l, AutoReset{}, Options{})
				var refused *ConnectError
				if !errors.As(err, &refused) || refused.Diagnosis != tc.want || refused.Attempts != tc.attempts {
					t.Fatalf("%+v, want %v after %d attempts", err, tc.want, tc.attempts)
				}
				if tc.want != Garbage && !bytes.Contains(refused.Text, bytes.Trim([]byte(tc.boot), "\xc0")) {
					t.Errorf("text %q", refused.Text)
				}
				if !strings.Contains(err.Error(), refused.Diagnosis.NextStep()) || refused.Diagnosis.NextStep() == "" {
					t.Errorf("no next step: %v", err)
				}
			})
		})
	}
}

// stubPort answers SYNC as the vendor's stub does, with a value of 0.
type stubPort struct{ *loader }

func (s stubPort) Write(_ context.Context, p []byte) (int, error) {
	s.value = 0
	s.say(slip.Encode([]byte{1, 8, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}), 0)
	return len(p), nil
}

func TestConnectStub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32"))
		l.boot = ""
		_, err := Connect(t.Context(), stubPort{l}, NoReset{}, Options{Attempts: 2})
		var refused *ConnectError
		if !errors.As(err, &refused) || refused.Diagnosis != StubRunning {
			t.Fatal(err)
		}
	})
}

func TestDetectUnknown(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*loader)
		want string
	}{
		{"H21", func(l *loader) { l.model.ID = 25 }, "ESP32-H21"},
		{"new chip", func(l *loader) { l.model.ID = 77 }, "chip id 77"},
		{"ESP8266", func(l *loader) { l.model.ROM.SecurityInfo = false; l.regs[chip.MagicRegister] = 0xFFF0C101 }, "ESP8266"},
		{"strange magic", func(l *loader) { l.model.ROM.SecurityInfo = false; l.regs[chip.MagicRegister] = 0x12345678 }, "0x12345678"},
		{"nothing is answered", func(l *loader) { l.model.ROM.SecurityInfo = false; l.secure = true }, "no chip id"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				tc.set(l)
				c := connected(t, l, Options{})
				start := time.Now()
				m, err := c.Detect(t.Context())
				if !errors.Is(err, chip.ErrUnknown) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s, %v, want %q", m.Name, err, tc.want)
				}
				if _, ok := c.Model(); ok {
					t.Error("a model all the same")
				}
				if d := time.Since(start); d > time.Second {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// TestDetectFalseRefusal: a C3 that refuses GET_SECURITY_INFO once, as noise and a
// USB connection can make it, is a C3 with its security state known.
func TestDetectFalseRefusal(t *testing.T) {
	for _, secure := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32c3"))
			l.secure, l.damageAt, l.damageBy = secure, 3, 0x01 // the request's length
			c := connected(t, l, Options{})
			m, err := c.Detect(t.Context())
			if err != nil || m.Name != "esp32c3" || c.SecureDownload() != secure {
				t.Errorf("%s, secure %v, %v", m.Name, c.SecureDownload(), err)
			}
		})
	}
}

func TestESP32Rate(t *testing.T) {
	for _, tc := range []struct {
		baud         int
		approx, ck8m uint32
		want         uint32
	}{
		{460800, 1280 << 7, 0x50, 460800},                  // the recording's chip
		{921600, 1280 << 7, 0x50, 921600},                  //
		{921600, 1300<<7 | 0x7F, 0x50, 936000},             // the ROM thinks 40.625 MHz
		{460800, 832 << 7, 0x50, 460800},                   // 26 MHz
		{460800, 800 << 7, 0x50, 460800 * 25 / 26},         // 25 MHz
		{460800, 0, 0x50, 0}, {460800, 1280 << 7, 0xFF, 0}, // no crystal
		{460800, 0x1FFFFFF << 7, 0xFF, 0}, {115200, 0, 0, 0}, //
	} {
		got, err := esp32Rate(tc.baud, tc.approx, tc.ck8m)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("esp32Rate(%d, %x, %x) = %d, %v, want %d", tc.baud, tc.approx, tc.ck8m, got, err, tc.want)
		}
	}
}

// TestChangeBaudLostAnswer: when the answer is damaged, the chip is found at
// either rate.
func TestChangeBaudLostAnswer(t *testing.T) {
	for at := range 18 + 14 {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			l := newLoader(model(t, "esp32c3"))
			l.damageAt, l.damageBy = at, 0x10
			c := detected(t, l)
			err := c.ChangeBaud(ctx, 921600)
			if errors.Is(err, ErrLost) && l.baud != 921600 && l.baud != 115200 {
				return // the rate itself was damaged: nobody can know
			}
			if err != nil || c.Baud() != l.baud || l.baud != 921600 {
				t.Fatalf("byte %d: %v, client at %d, chip at %d", at, err, c.Baud(), l.baud)
			}
			if _, err := c.ReadReg(ctx, 0x60008844); err != nil {
				t.Errorf("byte %d: %v", at, err)
			}
		})
	}
}

func TestChangeBaudNotCarried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		l.regs[0] = 0
		// A chip that says yes and stays where it is.
		l.model.ROM.FlashBeginWords = 5
		deaf := &deafAfterBaud{l}
		c.port = deaf
		err := c.ChangeBaud(t.Context(), 3_000_000)
		if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "lower") {
			t.Error(err)
		}
	})
}

// deafAfterBaud is a line that does not carry the new rate.
type deafAfterBaud struct{ *loader }

func (d *deafAfterBaud) SetBaud(ctx context.Context, baud int) error {
	d.closed = true
	return d.loader.SetBaud(ctx, baud)
}

// TestChipReset: boot text in the middle of a command is its own error.
func TestChipReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		l.muted = false
		l.closed = true
		l.say([]byte(l.boot), 30*time.Millisecond)
		start := time.Now()
		_, err := c.ReadReg(t.Context(), 0x60008844)
		if !errors.Is(err, ErrChipReset) || time.Since(start) > 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestSilence: a loader that stops answering is a time-out, then lost contact,
// and not an endless wait.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		l.muted = true
		start := time.Now()
		if _, err := Do(t.Context(), c, ReadReg{Addr: 0x60008844}); !errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := time.Since(start); d != defaultTimeout {
			t.Errorf("after %v", d)
		}
		if _, err := c.ReadReg(t.Context(), 0x60008844); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("lost after %v", d)
		}
		l.muted = false
		if _, err := c.ReadReg(t.Context(), 0x60008844); err != nil {
			t.Errorf("it answers again: %v", err)
		}
	})
}

// operations are all methods that use the port, for the tests of contexts and
// unplugging.
func operations(l *loader) map[string]func(ctx context.Context, c *Client) error {
	return map[string]func(ctx context.Context, c *Client) error{
		"Connect": func(ctx context.Context, _ *Client) error {
			_, err := Connect(ctx, l, AutoReset{}, Options{})
			return err
		},
		"ReadReg":       func(ctx context.Context, c *Client) error { _, err := c.ReadReg(ctx, 4); return err },
		"ReadRegAgreed": func(ctx context.Context, c *Client) error { _, err := c.ReadRegAgreed(ctx, 4); return err },
		"WriteReg":      func(ctx context.Context, c *Client) error { return c.WriteReg(ctx, 4, 4) },
		"WriteRegDelay": func(ctx context.Context, c *Client) error { return c.WriteRegDelay(ctx, 4, 4, time.Millisecond) },
		"Detect":        func(ctx context.Context, c *Client) error { _, err := c.Detect(ctx); return err },
		"SecurityInfo":  func(ctx context.Context, c *Client) error { _, err := c.SecurityInfo(ctx); return err },
		"AttachFlash":   func(ctx context.Context, c *Client) error { return c.AttachFlash(ctx) },
		"FlashID":       func(ctx context.Context, c *Client) error { _, err := c.FlashID(ctx); return err },
		"SetFlashSize":  func(ctx context.Context, c *Client) error { return c.SetFlashSize(ctx, 1<<20) },
		"ChangeBaud":    func(ctx context.Context, c *Client) error { return c.ChangeBaud(ctx, 460800) },
		"EraseFlash":    func(ctx context.Context, c *Client) error { return c.EraseFlash(ctx, 0, 0x20000, nil) },
		"WriteFlash":    func(ctx context.Context, c *Client) error { return c.WriteFlash(ctx, 0, make([]byte, 5000), nil) },
		"FlashMD5":      func(ctx context.Context, c *Client) error { _, err := c.FlashMD5(ctx, 0, 5); return err },
		"ReadFlash":     func(ctx context.Context, c *Client) error { _, err := c.ReadFlash(ctx, 0, 100); return err },
		"Resync":        func(ctx context.Context, c *Client) error { return c.Resync(ctx) },
		"ExchangeTest":  func(ctx context.Context, c *Client) error { return c.ExchangeTest(ctx, 1000) },
		"HardReset":     func(ctx context.Context, c *Client) error { return c.HardReset(ctx) },
		"StopWatchdogs": func(ctx context.Context, c *Client) error { l.info.USBSerial = true; return c.StopWatchdogs(ctx) },
		"ReadText": func(ctx context.Context, _ *Client) error {
			_, err := ReadText(ctx, l, func([]byte) bool { return false })
			return err
		},
	}
}

// TestContextEnds: whatever a method is at, it ends within 100 ms of its context,
// with that context's error.
func TestContextEnds(t *testing.T) {
	for name := range operations(nil) {
		for _, muted := range []bool{true, false} {
			for _, after := range []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 130 * time.Millisecond, 2 * time.Second, 4 * time.Second} {
				synctest.Test(t, func(t *testing.T) {
					l := newLoader(model(t, "esp32c3"))
					c := detected(t, l)
					l.muted = muted
					ctx, cancel := context.WithTimeout(t.Context(), after)
					defer cancel()
					start := time.Now()
					err := operations(l)[name](ctx, c)
					if d := time.Since(start); d > after+100*time.Millisecond {
						t.Errorf("%s muted=%v after %v: ended after %v", name, muted, after, d)
					}
					if ctx.Err() != nil && err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%s muted=%v after %v: %v", name, muted, after, err)
					}
					if muted && ctx.Err() != nil && err == nil && name != "HardReset" {
						t.Errorf("%s muted=%v after %v: no error", name, muted, after)
					}
				})
			}
		}
	}
}

// TestContextThenGoOn: after an ended context the next command finds the loader
// again.
func TestContextThenGoOn(t *testing.T) {
	for _, after := range []time.Duration{10 * time.Microsecond, time.Millisecond, 50 * time.Millisecond, 110 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32c3"))
			c := detected(t, l)
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			if err := c.WriteFlash(ctx, 0, random(1, 100_000), nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if v, err := c.ReadReg(t.Context(), 0x60008844); err != nil || v != 0xA1C9C3B3 {
				t.Errorf("after %v: %08x, %v", after, v, err)
			}
		})
	}
}

// TestUnplug: a port that is gone is ErrUnplugged at once, and is not touched
// again.
func TestUnplug(t *testing.T) {
	for name := range operations(nil) {
		reached := false
		for call := 1; call <= 40; call++ {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				c := detected(t, l)
				l.calls, l.unplugAt = 0, call
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := operations(l)[name](ctx, c)
				if l.calls < call {
					return // done before that
				}
				reached = true
				if !errors.Is(err, ErrUnplugged) {
					t.Errorf("%s, call %d: %v", name, call, err)
				}
				if l.afterUnplug != 0 {
					t.Errorf("%s, call %d: %d calls to a port that is gone", name, call, l.afterUnplug)
				}
			})
		}
		if !reached {
			t.Errorf("%s never met the unplugged port", name)
		}
	}
}

func TestAutoReset(t *testing.T) {
	classicSteps := []string{"01", "10", "reset", "00"}
	tight := []string{"00", "11", "01", "10", "reset", "00"}
	for _, tc := range []struct {
		network bool
		attempt int
		want    []string
		took    time.Duration
	}{
		{false, 0, tight, 150 * time.Millisecond},
		{false, 1, tight, 650 * time.Millisecond},
		{false, 2, classicSteps, 150 * time.Millisecond},
		{false, 3, classicSteps, 650 * time.Millisecond},
		{false, 4, tight, 150 * time.Millisecond},
		{true, 0, classicSteps, 150 * time.Millisecond},
		{true, 1, classicSteps, 650 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32"))
			l.info.Network = tc.network
			start := time.Now()
			if err := (AutoReset{}).Download(t.Context(), l, tc.attempt); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(l.lineLog, tc.want) || time.Since(start) != tc.took {
				t.Errorf("%+v: %v in %v", tc, l.lineLog, time.Since(start))
			}
		})
	}
}

// TestRunDropsOldText: only text of this reset is read after it.
func TestRunDropsOldText(t *testing.T) {
	for _, r := range []Resetter{AutoReset{}, USBReset{}} {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32c3"))
			l.say([]byte("app running\r\n"), 0)
			if err := r.Run(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			text, err := ReadText(t.Context(), l, func(b []byte) bool { return bytes.Contains(b, []byte("download\r\n")) })
			if err != nil || string(text) != l.boot {
				t.Errorf("%T: %q, %v", r, text, err)
			}
			if !slices.Contains(l.lineLog, "reset") || l.dtr || l.rts {
				t.Errorf("%T: lines %v", r, l.lineLog)
			}
		})
	}
}

func TestReadTextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32"))
		l.say([]byte("half a line"), 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		text, err := ReadText(ctx, l, func([]byte) bool { return false })
		if string(text) != "half a line" || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q, %v", text, err)
		}
	})
}

func TestUSBReset(t *testing.T) {
	for _, tc := range []struct {
		name                string
		unplugAt, backAfter int
		ok                  bool
		reopens             int
	}{
		{"stays", 0, 0, true, 0},
		{"vanishes during the reset", 6, 2, true, 2},
		{"stays away", 6, 0, false, 3},
		{"vanishes just after the reset", 9, 1, true, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLoader(model(t, "esp32c3"))
				l.info.USBSerial = true
				l.unplugAt, l.backAfter = tc.unplugAt, tc.backAfter
				c, err := Connect(t.Context(), l, DefaultReset(l.info), Options{})
				if (err == nil) != tc.ok || l.reopened != tc.reopens {
					t.Fatalf("%v, %d times reopened", err, l.reopened)
				}
				if !tc.ok {
					if !errors.Is(err, ErrUnplugged) {
						t.Error(err)
					}
					return
				}
				if _, err := c.Detect(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.regs[0x60008090], l.regs[0x600080AC] = 0x123, 0x456
				if err := c.StopWatchdogs(t.Context()); err != nil {
					t.Fatal(err)
				}
				for addr, want := range map[uint32]uint32{0x60008090: 0, 0x600080A8: 0, 0x600080AC: 0x80000456, 0x600080B0: 0} {
					if got := l.regs[addr]; got != want {
						t.Errorf("register %08x = %08x, want %08x", addr, got, want)
					}
				}
			})
		})
	}
}

// TestStopWatchdogsSkips: no register is touched over a UART or in Secure Download
// Mode.
func TestStopWatchdogsSkips(t *testing.T) {
	for _, usb := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(model(t, "esp32c3"))
			l.secure, l.info.USBSerial = usb, usb
			c := detected(t, l)
			l.requests = nil
			if err := c.StopWatchdogs(t.Context()); err != nil || len(l.requests) != 0 {
				t.Errorf("usb=%v: %x, %v", usb, l.requests, err)
			}
		})
	}
}

func TestNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32"))
		l.info = PortInfo{Name: "socket://bench:4000"}
		c, err := Connect(t.Context(), l, DefaultReset(l.info), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.HardReset(t.Context()); !errors.Is(err, ErrNoLines) || !strings.Contains(err.Error(), "by hand") {
			t.Error(err)
		}
		if _, err := Connect(t.Context(), l, AutoReset{}, Options{}); !errors.Is(err, ErrNoLines) {
			t.Error(err)
		}
	})
}

func TestFlashIDSizes(t *testing.T) {
	for code, want := range map[uint8]uint32{
		0x12: 256 << 10, 0x14: 1 << 20, 0x16: 4 << 20, 0x18: 16 << 20, 0x1C: 256 << 20,
		0x20: 64 << 20, 0x22: 256 << 20, 0x32: 256 << 10, 0x36: 4 << 20, 0x3A: 64 << 20,
		0x00: 0, 0x11: 0, 0x1D: 0, 0x23: 0, 0x3B: 0, 0xFF: 0,
	} {
		if got := flashID(uint32(code)<<16 | 0x40C8); got.Size != want {
			t.Errorf("capacity %02x: %d bytes, want %d", code, got.Size, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32"))
		l.model.SPI.MISODLen = 0 // the command that comes is not the flash's
		c := detected(t, l)
		if id, err := c.FlashID(t.Context()); err == nil || !strings.Contains(err.Error(), "no flash chip answers") {
			t.Errorf("%v, %v", id, err)
		}
	})
}

// TestStaleAnswers: answers to nothing, before and between, do not confuse a read.
func TestStaleAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoader(model(t, "esp32c3"))
		c := detected(t, l)
		for range 20 {
			l.answer(8, 0, nil, 0, 0, 0, 0)
			l.answer(3, 0, nil, 0, 0, 0, 0)
		}
		if v, err := c.ReadReg(t.Context(), 0x60008844); err != nil || v != 0xA1C9C3B3 || c.Noise() != 0 {
			t.Errorf("%08x, %v", v, err)
		}
		for range maxStrangeFrames {
			l.answer(8, 0, nil, 0, 0, 0, 0)
		}
		if _, err := Do(t.Context(), c, ReadReg{Addr: 0x60008844}); !errors.Is(err, ErrNoise) {
			t.Errorf("%d strange frames: %v", maxStrangeFrames, err)
		}
	})
}

func seedFrames(f *testing.F, add func(frame []byte)) {
	seen := map[string]bool{}
	for _, rec := range recordings {
		for _, e := range load(f, rec.name).Events() {
			if key := fmt.Sprint(e.Kind, e.Op); len(e.Frame) > 0 && !seen[key] {
				seen[key] = true
				add(e.Frame)
			}
		}
	}
}

// FuzzReply: a reply that parses re-encodes to the same bytes, and no body makes
// the verdict or the security information panic or lie.
func FuzzReply(f *testing.F) {
	seedFrames(f, func(frame []byte) { f.Add(frame) })
	f.Fuzz(func(t *testing.T, frame []byte) {
		r, err := parseReply(frame)
		if err != nil {
			if !errors.Is(err, ErrNoise) {
				t.Fatal(err)
			}
			return
		}
		if got := r.encode(); !bytes.Equal(got, frame) {
			t.Fatalf("%x re-encodes as %x", frame, got)
		}
		for _, lengths := range [][]int{noData, {32}, {slowRead}, {securityInfoLong, securityInfoShort}} {
			data, err := r.split(r.op, statusSizeROM, lengths)
			if err == nil && (!slices.Contains(lengths, len(data)) || r.body[len(data)] != 0) {
				t.Fatalf("%x taken for success", frame)
			}
		}
		if s, err := ParseSecurityInfo(r.body); err == nil && !bytes.Equal(s.Bytes(), r.body) {
			t.Fatalf("security information %x re-encodes as %x", r.body, s.Bytes())
		}
	})
}

// FuzzExchange: whatever bytes come, a command ends, in bounded time, without a
// panic; and it succeeds only if an answer to it is among them.
func FuzzExchange(f *testing.F) {
	seedFrames(f, func(frame []byte) { f.Add(slip.Encode(frame)) })
	f.Add([]byte("ESP-ROM:esp32c3\r\nrst:0x1 (POWERON),boot:0xc\r\n"))
	m, err := chip.ByName("esp32c3")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		synctest.Test(t, func(t *testing.T) {
			l := newLoader(m)
			l.boot, l.closed = "", true
			c := &Client{port: l, reset: NoReset{}, dec: slip.NewDecoder(maxReply), buf: make([]byte, 4096), baud: StartBaud, model: m, detected: true}
			l.say(in, time.Millisecond)
			start := time.Now()
			a, err := Do(t.Context(), c, ReadReg{Addr: 0x60008844})
			if d := time.Since(start); d > defaultTimeout+2*time.Second {
				t.Fatalf("took %v", d)
			}
			if err != nil {
				return
			}
			var want reply
			for _, it := range slip.NewDecoder(maxReply).Feed(in) {
				if r, perr := parseReply(it.Data); perr == nil && r.op == OpReadReg && it.Kind == slip.Frame && want.op == 0 {
					want = r
				}
			}
			if want.op != OpReadReg || want.value != a.Value || want.body[0] != 0 {
				t.Fatalf("%x taken for an answer of %08x", in, a.Value)
			}
		})
	})
}
