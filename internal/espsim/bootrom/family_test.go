package bootrom

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// TestBanners pins what public boot logs show of each ROM: after power-on with either
// strap, and before the first load line.
func TestBanners(t *testing.T) {
	for _, tc := range []struct {
		chip       string
		rev        chip.Revision
		boot, load string // load: how the text with the strap ends
	}{
		{"esp32s2", 100, "ESP-ROM:esp32s2-rc4-20191025\r\nBuild:Oct 25 2019\r\nrst:0x1 (POWERON),boot:0x8 (SPI_FAST_FLASH_BOOT)\r\nSPIWP:0xee\r\nmode:DIO, clock div:2\r\nload:", ""},
		{
			"esp32s3", 2, "ESP-ROM:esp32s3-20210327\r\nBuild:Mar 27 2021\r\nrst:0x1 (POWERON),boot:0x8 (SPI_FAST_FLASH_BOOT)\r\nSPIWP:0xee\r\nmode:DIO, clock div:2\r\nload:",
			"rst:0x1 (POWERON),boot:0x0 (DOWNLOAD(USB/UART0))\r\nwaiting for download\r\n",
		},
		{
			"esp32c2", 102, "ESP-ROM:esp8684-api2-20220127\r\nBuild:Jan 27 2022\r\nrst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSPIWP:0xee\r\nmode:DIO, clock div:2\r\nload:",
			"rst:0x1 (POWERON),boot:0x4 (DOWNLOAD(UART0))\r\nwaiting for download\r\n",
		},
		{"esp32c2", 200, "ESP-ROM:esp32c2-eco4-20240515\r\n", ""},
		{"esp32c3", 4, "ESP-ROM:esp32c3-api1-20210207\r\n", "boot:0x2 (UART0_BOOT)\r\nwait uart0 download\r\n"},
		{"esp32c3", 101, "ESP-ROM:esp32c3-eco7-20230720\r\n", ""},
		{
			"esp32c6", 2, "ESP-ROM:esp32c6-20220919\r\nBuild:Sep 19 2022\r\nrst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSPIWP:0xee\r\nmode:DIO, clock div:2\r\nload:",
			"boot:0x4 (DOWNLOAD(USB/UART0/SDIO_FEI_FEO))\r\nwaiting for download\r\n",
		},
		{"esp32h2", 102, "ESP-ROM:esp32h2-20221101\r\nBuild:Nov  1 2022\r\nrst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSPIWP:0xee\r\nmode:DIO, clock div:2\r\nload:", "boot:0x4 (DOWNLOAD(USB/UART0))\r\nwaiting for download\r\n"},
		{"esp32c5", 100, "ESP-ROM:esp32c5-eco2-20250121\r\nBuild:Jan 21 2025\r\nrst:0x1 (POWERON),boot:0x18 (SPI_FAST_FLASH_BOOT)\r\nSPI mode:DIO, clock div:2\r\nload:", ""},
		{"esp32c5", 102, "ESP-ROM:esp32c5-eco3-20250704\r\nBuild:Jul  4 2025\r\n", ""},
		{"esp32c61", 100, "ESP-ROM:esp32c61-eco3-20250228\r\nBuild:Feb 28 2025\r\nrst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)\r\nSPI mode:DIO, clock div:2\r\nload:", ""},
		{"esp32p4", 103, "ESP-ROM:esp32p4-eco2-20240710\r\nBuild:Jul 10 2024\r\nrst:0x1 (POWERON),boot:0x30f (SPI_FAST_FLASH_BOOT)\r\nSPI mode:DIO, clock div:2\r\nload:", ""},
		{"esp32p4", 302, "ESP-ROM:esp32p4-eco7-20260109\r\n", ""},
	} {
		b := newBoard(t, tc.chip)
		b.in.Revision = tc.rev
		if got := string(b.boot().Text); !strings.HasPrefix(got, tc.boot) {
			t.Errorf("%s %v prints\n%.300s\nwant\n%s", tc.chip, tc.rev, got, tc.boot)
		}
		b.in.DownloadStrap = true
		if out := b.boot(); !strings.HasSuffix(string(out.Text), tc.load) || out.State != Download {
			t.Errorf("%s %v with the strap: %v\n%s\nwant\n%s", tc.chip, tc.rev, out.State, out.Text, tc.load)
		}
	}
}

// TestVerdictOfScheme: newer ROMs name the algorithm in the verdict, as a log of an
// ESP32-C6 shows.
func TestVerdictOfScheme(t *testing.T) {
	m := modelOf(t, "esp32c6")
	for s, want := range map[chip.SignatureScheme]string{
		chip.SignRSA3072:  "Valid secure boot key blocks: 0\r\nRSA-PSS secure boot verification succeeded\r\n",
		chip.SignECDSA256: "Valid secure boot key blocks: 0\r\nECDSA secure boot verification succeeded\r\n",
	} {
		b := newSecureBoard(t, m, s)
		if out := b.boot(); !strings.Contains(string(out.Text), want) {
			t.Errorf("%s:\n%s", s, out.Text)
		}
	}
}

// On the ESP32-P4 v3.0 no signature verifies (errata ROM-764), and P-384 needs v3.0.
func TestP4SecureBoot(t *testing.T) {
	m := modelOf(t, "esp32p4")
	b := newSecureBoard(t, m, chip.SignRSA3072)
	wantRunning(t, b.boot(), 0x10000)
	b.in.Revision = 300
	wantLoop(t, b.boot(), "RSA-PSS secure boot verification failed")
}

// The fuse for SHA-384 and the scheme must fit each other.
func TestSHA384Fuse(t *testing.T) {
	for _, name := range []string{"esp32c5", "esp32p4"} {
		m := modelOf(t, name)
		b := newSecureBoard(t, m, chip.SignECDSA256)
		b.f.set(m.SecureBoot.SHA384Field, 1)
		wantLoop(t, b.boot(), romRefuses)
		b = newSecureBoard(t, m, chip.SignECDSA384)
		fd, _ := b.f.tab.Field(m.SecureBoot.SHA384Field)
		b.f.w[0][fd.Bits()[0]/32] &^= 1 << (fd.Bits()[0] % 32)
		wantLoop(t, b.boot(), romRefuses)
	}
}

// An app that was built for a smaller MMU page lines up with that one, where the chip
// has it.
func TestSmallerPages(t *testing.T) {
	for name, want := range map[string]State{"esp32c6": Running, "esp32c5": Looping} {
		b := newBoard(t, name)
		s := spec(b.model, true)
		desc := make([]byte, 0x100)
		copy(desc, []byte{0x32, 0x54, 0xCD, 0xAB})
		desc[0xB4] = 13
		at := uint32(24 + 8 + len(desc) + 8)
		s.segs = append([]seg{{s.segs[0].load, desc}, {s.segs[0].load&^0xFFFF + 0x2000*3 + at, random(5, 0x40)}}, s.segs[1:]...)
		b.parts[0x10000] = s.build()
		if out := b.boot(); out.State != want {
			t.Errorf("%s: %v\n%s", name, out.State, out.Text)
		}
	}
}
