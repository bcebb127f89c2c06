package silicon

import "github.com/provisiond/provisiond/esp/chip"

// Banner and flash strap are those of public boot logs; the texts of the loader
// itself were not found and are the ESP32-S3's.
var esp32s2 = newer(Silicon{
	Name: "esp32s2", Revision: 100, Crystals: []int{40},
	Fixed: map[uint32]uint32{chip.MagicRegister: 0x000007C6},
	// The APB runs at the crystal's 40 MHz in the loader.
	Timing: func(int) []chip.RegWrite {
		return []chip.RegWrite{
			{Addr: 0x3F41A1E8, Value: 0x50, Mask: 0xFF},                       // DAC_CLK_DIV
			{Addr: 0x3F41A1EC, Value: 2<<8 | 1, Mask: 0xFFFF},                 // TRD, THR_A
			{Addr: 0x3F41A1F0, Value: 0x190<<16 | 2<<8 | 1, Mask: 0xFFFFFFFF}, // TPGM, TPGM_INACTIVE, THP_A
			{Addr: 0x3F41A1F4, Value: 0x5100<<8 | 1, Mask: 0xFFFFFF},          // PWR_ON_NUM, TSUP_A
			{Addr: 0x3F41A1F8, Value: 0x80, Mask: 0xFFFF},                     // PWR_OFF_NUM
		}
	},
	Watchdog: Watchdog{Config: 0x3F408094, Timeout: 0x3F408098, Protect: 0x3F4080AC},
	ROM: func(chip.Revision) ROM {
		return newerROM("ESP-ROM:esp32s2-rc4-20191025\r\nBuild:Oct 25 2019\r\n",
			"0x8 (SPI_FAST_FLASH_BOOT)", "0x0 (DOWNLOAD(USB/UART0))", rtcReasons)
	},
	Memory: Memory{
		Mapped: []Region{{0x3F000000, 0x3FF80000}, {0x40080000, 0x40800000}},
		Loaded: []Region{
			{0x3FFB0000, 0x40000000},                           // DRAM
			{0x40020000, 0x40070000},                           // IRAM
			{0x40070000, 0x40072000}, {0x3FF9E000, 0x3FFA0000}, // RTC fast memory, both buses
			{0x50000000, 0x50002000}, // RTC slow memory
		},
	},
	FirstBoot: FirstBoot{
		SecureBoot: ones("DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT", "HARD_DIS_JTAG", "SOFT_DIS_JTAG"),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_DCACHE", "DIS_DOWNLOAD_ICACHE", "HARD_DIS_JTAG",
			"DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE"},
	},
})
