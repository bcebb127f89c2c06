package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The values of fixed registers, of registers after a reset and of factory words
// are those of the ROM transcript.
var esp32 = Silicon{
	Name: "esp32", Revision: 301, Crystals: []int{40},
	Fixed: map[uint32]uint32{
		chip.MagicRegister: 0x00F01D83,
		0x3FF5F06C:         0x28000,    // the ROM's measurement of the crystal against the 8 MHz oscillator
		0x3FF6607C:         0x16042000, // APB_CTL_DATE; bit 31 is the third revision bit
		0x3FF44038:         0xF,        // GPIO_STRAP as latched for download
	},
	Reset: map[uint32]uint32{
		0x3FF42004: 0, 0x3FF4201C: 0x80000000, 0x3FF42020: 0x5C000007, 0x3FF42024: 0x70000000,
		0x3FF42028: 0, 0x3FF4202C: 0, 0x3FF42080: 0,
		0x3FF5A0F8: 0, 0x3FF5A118: 0,
	},
	Timing: func(int) []chip.RegWrite {
		return []chip.RegWrite{
			{Addr: 0x3FF5A0F8, Value: 0xFFA0, Mask: 0xFFFF}, // CLK_SEL1 255, CLK_SEL0 160
			{Addr: 0x3FF5A118, Value: 0x50, Mask: 0xFF},     // DAC_CLK_DIV 80
		}
	},
	Factory: [][]uint32{{0, 0, 0, 0x2200, 0xE50, 0, 0}},
	MACCRC:  "MAC_CRC",
	Majors:  3,
	RevisionFields: func(r chip.Revision) map[string]uint64 {
		f := map[string]uint64{"WAFER_VERSION_MINOR": uint64(r % 100)}
		if r/100 >= 1 {
			f["CHIP_VER_REV1"] = 1
		}
		if r/100 >= 2 {
			f["CHIP_VER_REV2"] = 1
		}
		return f
	},
	DisableDownload: "UART_DOWNLOAD_DIS",
	SoftwareReset:   3, // SW_RESET
	ROM: func(rev chip.Revision) ROM {
		t := ROM{
			Banner: "ets Jul 29 2019 12:21:46\r\n\r\n",
			// ESP-IDF components/esp_rom/esp32/include/esp32/rom/rtc.h lists the
			// numbers; the spellings are those of public boot logs.
			Reasons: map[int]string{
				0x01: "POWERON_RESET", 0x03: "SW_RESET", 0x04: "OWDT_RESET", 0x05: "DEEPSLEEP_RESET", 0x06: "SDIO_RESET",
				0x07: "TG0WDT_SYS_RESET", 0x08: "TG1WDT_SYS_RESET", 0x09: "RTCWDT_SYS_RESET", 0x0A: "INTRUSION_RESET",
				0x0B: "TGWDT_CPU_RESET", 0x0C: "SW_CPU_RESET", 0x0D: "RTCWDT_CPU_RESET", 0x0E: "EXT_CPU_RESET",
				0x0F: "RTCWDT_BROWN_OUT_RESET", 0x10: "RTCWDT_RTC_RESET",
			},
			FlashStrap:   "0x13 (SPI_FAST_FLASH_BOOT)",
			UARTStrap:    "0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))",
			Waiting:      "waiting for download\r\n",
			Disabled:     "Download mode is disabled. Restart with GPIO0 high.\r\n",
			DisabledFrom: 300,
			BadHeader:    "invalid header: 0x%08x\r\n",
			HeaderAgain:  true,
			Config: "configsip: 0, SPIWP:0x%02x\r\n" +
				"clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00\r\n",
			Mode:     "mode:%s, clock div:%d\r\n",
			Load:     "load:0x%08x,len:%d\r\n",
			Checksum: "csum err:0x%02x!=0x%02x\r\nets_main.c 384 \r\n",
			Watchdog: 0x10, // RTCWDT_RTC_RESET
			SecureBoot: SecureBootROM{
				Enabled: "secure boot v2 enabled\r\n",
				Verdict: "secure boot verification %s\r\n",
				// No public log was found of the failure's last line and of a bad CRC;
				// the test of ESP-IDF waits for the start of the latter.
				Failed: "ets_main.c 384 \r\n",
				BadCRC: "Sig block %d invalid: Stored CRC ends\r\n",
			},
		}
		if rev < 300 { // the ROM before ECO3
			t.Banner = "ets Jun  8 2016 00:22:57\r\n\r\n"
			t.BadHeader = "flash read err, 1000\r\nets_main.c 371 \r\n"
			t.HeaderAgain = false
			t.Checksum = "csum err:0x%02x!=0x%02x\r\nets_main.c 371 \r\n"
		}
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x3F400000, 0x3F800000}, {0x400D0000, 0x40400000}},
		Loaded: []Region{
			{0x3FFAE000, 0x40000000},                           // DRAM
			{0x40080000, 0x400C0000},                           // IRAM and D/IRAM
			{0x3FF80000, 0x3FF82000}, {0x400C0000, 0x400C2000}, // RTC fast memory, both buses
			{0x50000000, 0x50002000}, // RTC slow memory
		},
	},
	Pages: []int{0x10000},
	FirstBoot: FirstBoot{
		SecureBoot: []chip.Assignment{
			{Field: "JTAG_DISABLE", Value: 1},
			{Field: "CONSOLE_DEBUG_DISABLE", Value: 1},
		},
		Encryption: []chip.Assignment{
			{Field: "FLASH_CRYPT_CONFIG", Value: 0xF},
			{Field: "DISABLE_DL_ENCRYPT", Value: 1},
			{Field: "DISABLE_DL_DECRYPT", Value: 1},
			{Field: "DISABLE_DL_CACHE", Value: 1},
			{Field: "JTAG_DISABLE", Value: 1},
			{Field: "CONSOLE_DEBUG_DISABLE", Value: 1},
			{Field: "WR_DIS.DIS_CACHE", Value: 1},
		},
		Release: []string{"DISABLE_DL_CACHE", "DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT"},
	},
}
