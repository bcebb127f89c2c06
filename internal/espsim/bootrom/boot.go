package bootrom

import (
	"bytes"
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Boot resets the chip and says what it prints and where it ends. It reads the
// flash and changes nothing. It panics on an Input that no chip can be in: a
// model without a ROM here, or a key of the wrong length.
func Boot(in Input) Output {
	if in.ResetReason == 0 {
		in.ResetReason = resetPowerOn
	}
	if in.PartitionTable == 0 {
		in.PartitionTable = DefaultPartitionTable
	}
	b := &boot{in: in, rom: romOf(in.Model, in.Revision), flash: newFlashView(in)}

	b.banner(in.ResetReason)
	if in.DownloadStrap {
		state := b.download()
		return Output{Text: b.out.Bytes(), State: state}
	}
	again := b.run()
	out := Output{Text: bytes.Clone(b.out.Bytes()), State: Running, App: b.app, Writes: b.writes, SecureVersion: b.burn}
	if again != 0 {
		b.out.Reset()
		b.banner(again)
		b.run()
		out.State, out.App = Looping, Partition{}
		if b.out.Len() > 0 {
			out.Loop = b.out.Bytes()
		}
	}
	return out
}

// Reset reasons that a boot itself can cause, as numbered by the ROMs of both chips.
const (
	resetPowerOn  = 0x01
	resetSoftware = 0x03 // the second stage gave up
	resetTG0      = 0x07 // the ESP32-C3's boot watchdog
	resetRTCWDT   = 0x10 // the ESP32's boot watchdog
)

// headerTries is how often the ROM reads a bad header before the watchdog bites.
// Public boot logs show seven to eleven.
const headerTries = 8

// romText is what a mask ROM prints, with the traits that differ.
type romText struct {
	banner       string
	reasons      map[int]string
	savedPC      string // printed after a reset that was not power-on; empty: never
	flashStrap   string
	uartStrap    string
	waiting      string
	waitingSDM   string // empty: the chip has no Secure Download Mode
	disabled     string
	disabledFrom chip.Revision // silicon before it ignores DownloadDisabled
	badHeader    string        // with the header word; or without, for the first ESP32 ROM
	headerAgain  bool          // reads a bad header again before the watchdog
	config       string        // before the "mode:" line, with the WP pin
	load         string
	checksum     string // with calculated and stored checksum
	checksHash   bool
	watchdog     int
}

func romOf(m chip.Model, rev chip.Revision) romText {
	switch m.Name {
	case "esp32":
		t := romText{
			banner:       "ets Jul 29 2019 12:21:46\r\n\r\n",
			reasons:      esp32Reasons,
			flashStrap:   "0x13 (SPI_FAST_FLASH_BOOT)",
			uartStrap:    "0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))",
			waiting:      "waiting for download\r\n",
			disabled:     "Download mode is disabled. Restart with GPIO0 high.\r\n",
			disabledFrom: 300,
			badHeader:    "invalid header: 0x%08x\r\n",
			headerAgain:  true,
			config: "configsip: 0, SPIWP:0x%02x\r\n" +
				"clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00\r\n",
			load:     "load:0x%08x,len:%d\r\n",
			checksum: "csum err:0x%02x!=0x%02x\r\nets_main.c 384 \r\n",
			watchdog: resetRTCWDT,
		}
		if rev < 300 { // the ROM before ECO3
			t.banner = "ets Jun  8 2016 00:22:57\r\n\r\n"
			t.badHeader = "flash read err, 1000\r\nets_main.c 371 \r\n"
			t.headerAgain = false
			t.checksum = "csum err:0x%02x!=0x%02x\r\nets_main.c 371 \r\n"
		}
		return t
	case "esp32c3":
		t := romText{
			banner:      "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n",
			reasons:     esp32c3Reasons,
			savedPC:     "Saved PC:0x4004c0dc\r\n",
			flashStrap:  "0xc (SPI_FAST_FLASH_BOOT)",
			uartStrap:   "0x2 (UART0_BOOT)",
			waiting:     "wait uart0 download\r\n",
			waitingSDM:  "wait uart download(secure mode)\r\n",
			disabled:    "Download boot modes disabled\r\n",
			badHeader:   "invalid header: 0x%08x\r\n",
			headerAgain: true,
			config:      "SPIWP:0x%02x\r\n",
			load:        "load:0x%08x,len:0x%x\r\n",
			checksum:    "Checksum failure. Calculated 0x%02x stored 0x%02x\r\nets_main.c 333 \r\n",
			checksHash:  true,
			watchdog:    resetTG0,
		}
		if rev >= 100 { // ECO7
			t.banner = "ESP-ROM:esp32c3-eco7-20230720\r\nBuild:Jul 20 2023\r\n"
		}
		return t
	}
	panic("bootrom: no ROM for " + m.Name + ": add its texts here")
}

// Names of the reset reasons (ESP-IDF components/esp_rom/<chip>/include/<chip>/rom/rtc.h
// lists the numbers; the spellings are those of public boot logs).
var (
	esp32Reasons = map[int]string{
		0x01: "POWERON_RESET", 0x03: "SW_RESET", 0x04: "OWDT_RESET", 0x05: "DEEPSLEEP_RESET", 0x06: "SDIO_RESET",
		0x07: "TG0WDT_SYS_RESET", 0x08: "TG1WDT_SYS_RESET", 0x09: "RTCWDT_SYS_RESET", 0x0A: "INTRUSION_RESET",
		0x0B: "TGWDT_CPU_RESET", 0x0C: "SW_CPU_RESET", 0x0D: "RTCWDT_CPU_RESET", 0x0E: "EXT_CPU_RESET",
		0x0F: "RTCWDT_BROWN_OUT_RESET", 0x10: "RTCWDT_RTC_RESET",
	}
	esp32c3Reasons = map[int]string{
		0x01: "POWERON", 0x03: "RTC_SW_SYS_RST", 0x05: "DSLEEP", 0x07: "TG0WDT_SYS_RST", 0x08: "TG1WDT_SYS_RST",
		0x09: "RTCWDT_SYS_RST", 0x0B: "TG0WDT_CPU_RST", 0x0C: "RTC_SW_CPU_RST", 0x0D: "RTCWDT_CPU_RST",
		0x0F: "BROWN_OUT_RST", 0x10: "RTCWDT_RTC_RST", 0x11: "TG1WDT_CPU_RST", 0x12: "SUPER_WDT_RST",
		0x15: "USB_UART_CHIP_RESET", 0x16: "USB_JTAG_CHIP_RESET",
	}
)

// boot is one chip on its way from a reset to an app.
type boot struct {
	in    Input
	rom   romText
	flash *flashView
	out   bytes.Buffer
	clock int // milliseconds in the second stage's log lines

	app     Partition // that was loaded
	initial bool      // otadata was never written, and is to be
	writes  []Write
	burn    uint32 // the secure version to burn; 0: none
}

// say prints as the mask ROM.
func (b *boot) say(format string, args ...any) {
	if !b.in.UARTPrintOff {
		fmt.Fprintf(&b.out, format, args...)
	}
}

func (b *boot) banner(reason int) {
	name, ok := b.rom.reasons[reason]
	if !ok {
		name = "NO_MEAN"
	}
	strap := b.rom.flashStrap
	if b.in.DownloadStrap {
		strap = b.rom.uartStrap
	}
	b.say("%srst:0x%x (%s),boot:%s\r\n", b.rom.banner, reason, name, strap)
	if reason != resetPowerOn {
		b.say("%s", b.rom.savedPC)
	}
}

func (b *boot) download() State {
	switch {
	case b.in.DownloadDisabled && b.in.Revision >= b.rom.disabledFrom:
		b.say("%s", b.rom.disabled)
		return Halted
	case b.in.SecureDownload && b.rom.waitingSDM != "":
		b.say("%s", b.rom.waitingSDM)
		return SecureDownload
	}
	b.say("%s", b.rom.waiting)
	return Download
}

// run goes from the flash boot strap to the app. It gives 0 if the app runs,
// otherwise the reason of the reset that follows.
func (b *boot) run() (again int) {
	header, ok := b.loadBootloader()
	if !ok {
		return b.rom.watchdog
	}
	if !b.secondStage(header) {
		return resetSoftware
	}
	return 0
}

// loadBootloader is the mask ROM's part. What it lets through but is not the code
// that was built crashes: it reports false for that too.
func (b *boot) loadBootloader() (imageHeader, bool) {
	at := b.in.Model.BootloaderOffset
	raw, err := b.flash.read(at, headerLen)
	if err != nil {
		return imageHeader{}, false
	}
	h := parseHeader(raw)
	if h.magic != imageMagic {
		tries := 1
		if b.rom.headerAgain {
			tries = headerTries
		}
		for range tries {
			if b.rom.headerAgain {
				b.say(b.rom.badHeader, le32(raw))
			} else {
				b.say("%s", b.rom.badHeader)
			}
		}
		return h, false
	}
	b.say(b.rom.config, h.wpPin)
	b.say("mode:%s, clock div:%d\r\n", h.modeName(), h.clockDivider())
	if h.segments > maxSegments {
		return h, false
	}

	img, err := readImage(b.flash, at, h, func(s segment) error {
		b.say(b.rom.load, s.load, s.size)
		return nil
	})
	if err != nil {
		return h, false
	}
	if img.calculated != img.stored {
		b.say(b.rom.checksum, img.calculated, img.stored)
		return h, false
	}
	intact := !h.hashed || img.sum == img.storedSum
	if !intact && b.rom.checksHash {
		b.say("SHA-256 comparison failed:\r\nCalculated: %x\r\nExpected: %x\r\nAttempting to boot anyway...\r\n",
			img.sum, img.storedSum)
	}
	b.say("entry 0x%08x\r\n", h.entry)
	return h, intact && h.chip == b.in.Model.ID
}
