package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The values of fixed registers, of registers after a reset and of factory words
// are those of the ROM transcript.
var esp32c3 = Silicon{
	Name: "esp32c3", Revision: 4, Crystal: 40_000_000,
	Fixed: map[uint32]uint32{
		chip.MagicRegister: 0x1B31506F,
		0x60004038:         0x2, // GPIO_STRAP as latched for download
	},
	Reset: map[uint32]uint32{
		0x60002004: 0, 0x60002018: 0x800000C0, 0x6000201C: 0x5C000007, 0x60002020: 0x70000000,
		0x60002024: 0, 0x60002028: 0, 0x60002058: 0,
		0x600089C8: 0, 0x600089E8: 0, 0x600089F0: 0, 0x600089F4: 0,
	},
	Timing: []chip.RegWrite{
		{Addr: 0x600089E8, Value: 0xFF<<9 | 0x28, Mask: 0x1FFFF}, // DAC_NUM, DAC_CLK_DIV
		{Addr: 0x600089F0, Value: 0x3000 << 8, Mask: 0xFFFF00},   // PWR_ON_NUM
		{Addr: 0x600089F4, Value: 0x190, Mask: 0xFFFF},           // PWR_OFF_NUM
	},
	Factory: [][]uint32{
		1: {0, 0, 0, 3 << 24, 0, 0},
		2: {0x6F061900, 0x4C022B83, 0xC8DCBB87, 0x0C15C56F, 1, 0, 0, 0},
	},
	Majors: 3,
	RevisionFields: func(r chip.Revision) map[string]uint64 {
		return map[string]uint64{
			"WAFER_VERSION_MINOR_LO": uint64(r % 100 & 7),
			"WAFER_VERSION_MINOR_HI": uint64(r % 100 >> 3),
			"WAFER_VERSION_MAJOR":    uint64(r / 100),
		}
	},
	DisableDownload: "DIS_DOWNLOAD_MODE",
	SecureDownload:  "ENABLE_SECURITY_DOWNLOAD",
	PrintControl:    "UART_PRINT_CONTROL",
	WatchesFuses:    true,
	SoftwareReset:   3,    // RTC_SW_SYS_RST
	USBReset:        0x15, // USB_UART_CHIP_RESET
	SecurityFlags: map[string]int{
		"SECURE_BOOT_EN": 0, "SECURE_BOOT_AGGRESSIVE_REVOKE": 1, "ENABLE_SECURITY_DOWNLOAD": 2,
		"SECURE_BOOT_KEY_REVOKE0": 3, "SECURE_BOOT_KEY_REVOKE1": 4, "SECURE_BOOT_KEY_REVOKE2": 5,
		"SOFT_DIS_JTAG": 6, "DIS_PAD_JTAG": 7, "DIS_DOWNLOAD_ICACHE": 10,
	},
	SecuritySpare: 0x0C,
	API:           3,
	ROM: func(rev chip.Revision) ROM {
		t := ROM{
			Banner: "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n",
			// ESP-IDF components/esp_rom/esp32c3/include/esp32c3/rom/rtc.h lists the
			// numbers; the spellings are those of public boot logs.
			Reasons: map[int]string{
				0x01: "POWERON", 0x03: "RTC_SW_SYS_RST", 0x05: "DSLEEP", 0x07: "TG0WDT_SYS_RST", 0x08: "TG1WDT_SYS_RST",
				0x09: "RTCWDT_SYS_RST", 0x0B: "TG0WDT_CPU_RST", 0x0C: "RTC_SW_CPU_RST", 0x0D: "RTCWDT_CPU_RST",
				0x0F: "BROWN_OUT_RST", 0x10: "RTCWDT_RTC_RST", 0x11: "TG1WDT_CPU_RST", 0x12: "SUPER_WDT_RST",
				0x15: "USB_UART_CHIP_RESET", 0x16: "USB_JTAG_CHIP_RESET",
			},
			SavedPC:     "Saved PC:0x4004c0dc\r\n",
			FlashStrap:  "0xc (SPI_FAST_FLASH_BOOT)",
			UARTStrap:   "0x2 (UART0_BOOT)",
			Waiting:     "wait uart0 download\r\n",
			WaitingSDM:  "wait uart download(secure mode)\r\n",
			Disabled:    "Download boot modes disabled\r\n",
			BadHeader:   "invalid header: 0x%08x\r\n",
			HeaderAgain: true,
			Config:      "SPIWP:0x%02x\r\n",
			Load:        "load:0x%08x,len:0x%x\r\n",
			Checksum:    "Checksum failure. Calculated 0x%02x stored 0x%02x\r\nets_main.c 333 \r\n",
			ChecksHash:  true,
			Watchdog:    0x07, // TG0WDT_SYS_RST
			SecureBoot: SecureBootROM{
				Enabled: "Valid secure boot key blocks: %s\r\n",
				Verdict: "secure boot verification %s\r\n",
				// The line number is the ESP32-S3's, whose log is public.
				Failed: "ets_main.c 329 \r\n",
				// The test of ESP-IDF waits for the start of this line; the rest is ours.
				BadCRC: "Sig block %d invalid: Stored CRC ends 0x%02x calculated 0x%02x\r\n",
			},
		}
		if rev >= 100 { // ECO7
			t.Banner = "ESP-ROM:esp32c3-eco7-20230720\r\nBuild:Jul 20 2023\r\n"
		}
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x3C000000, 0x3C800000}, {0x42000000, 0x42800000}},
		Loaded: []Region{
			{0x3FC80000, 0x3FCE0000}, // DRAM
			{0x4037C000, 0x403E0000}, // IRAM
			{0x50000000, 0x50002000}, // RTC fast memory
		},
	},
	FirstBoot: FirstBoot{
		SecureBoot: []chip.Assignment{
			{Field: "DIS_DIRECT_BOOT", Value: 1},
			{Field: "DIS_PAD_JTAG", Value: 1},
			{Field: "DIS_USB_JTAG", Value: 1},
			{Field: "SOFT_DIS_JTAG", Value: 7},
		},
		Encryption: []chip.Assignment{
			{Field: "DIS_DOWNLOAD_MANUAL_ENCRYPT", Value: 1},
			{Field: "DIS_DOWNLOAD_ICACHE", Value: 1},
			{Field: "DIS_PAD_JTAG", Value: 1},
			{Field: "DIS_USB_JTAG", Value: 1},
			{Field: "DIS_DIRECT_BOOT", Value: 1},
			{Field: "WR_DIS.DIS_ICACHE", Value: 1},
		},
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE"},
	},
}
