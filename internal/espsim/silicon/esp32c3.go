package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The values of fixed registers, of registers after a reset and of factory words
// are those of the ROM transcript.
var esp32c3 = newer(Silicon{
	Name: "esp32c3", Revision: 4, Crystals: []int{40},
	Fixed: map[uint32]uint32{
		chip.MagicRegister: 0x1B31506F,
		0x60004038:         0x2, // GPIO_STRAP as latched for download
	},
	Timing: func(int) []chip.RegWrite { return dacTiming(0x600089E8, 0x600089F0, 0x600089F4) },
	Factory: [][]uint32{
		1: {0, 0, 0, 3 << 24, 0, 0},
		2: {0x6F061900, 0x4C022B83, 0xC8DCBB87, 0x0C15C56F, 1, 0, 0, 0},
	},
	USBSerial:     true,
	Watchdog:      Watchdog{Config: 0x60008090, Timeout: 0x60008094, Protect: 0x600080A8},
	SecuritySpare: 0x0C,
	API:           3,
	ROM: func(rev chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n",
			"0xc (SPI_FAST_FLASH_BOOT)", "0x2 (UART0_BOOT)", rtcReasons)
		t.SavedPC = "Saved PC:0x4004c0dc\r\n"
		t.Waiting = "wait uart0 download\r\n"
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
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_USB_JTAG",
			"DIS_DIRECT_BOOT", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE"},
	},
})
