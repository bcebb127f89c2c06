package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The texts are those of public boot logs, but for Secure Boot, of which none was
// found. The ROM takes the crystal for one of 40 MHz: with 26 MHz it prints at 74880.
var esp32c2 = newer(Silicon{
	Name: "esp32c2", Revision: 102, Crystals: []int{40, 26},
	ROMCrystal: func(chip.Revision) int { return 40 }, FixedRate: true,
	Fixed: map[uint32]uint32{chip.MagicRegister: 0x6F51306F},
	Timing: func(crystal int) []chip.RegWrite {
		inactive := uint32(200)
		if crystal == 26 {
			inactive = 130
		}
		return dacTiming(0x60008908, 0x60008914, 0x60008918,
			chip.RegWrite{Addr: 0x60008910, Value: inactive << 8, Mask: 0xFF00}) // TPGM_INACTIVE
	},
	Watchdog: Watchdog{Config: 0x60008084, Timeout: 0x60008088, Protect: 0x6000809C},
	ROM: func(rev chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp8684-api2-20220127\r\nBuild:Jan 27 2022\r\n",
			"0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(UART0))", rtcReasons)
		if rev >= 200 { // ECO4
			t.Banner = "ESP-ROM:esp32c2-eco4-20240515\r\nBuild:May 15 2024\r\n"
		}
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x3C000000, 0x3C400000}, {0x42000000, 0x42400000}},
		Loaded: []Region{{0x3FCA0000, 0x3FCE0000}, {0x4037C000, 0x403C0000}}, // DRAM, IRAM
	},
	Pages: []int{0x10000, 0x8000, 0x4000},
	FirstBoot: FirstBoot{
		SecureBoot: ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG"),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_DIRECT_BOOT"),
		Release:    []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "WR_DIS.SPI_BOOT_CRYPT_CNT"},
	},
})
