package silicon

import "github.com/provisiond/provisiond/esp/chip"

// Banners and straps are those of public boot logs, but for the banner of v3.1,
// which was not found. That the verdict of Secure Boot names the algorithm is taken
// from the ESP32-C6.
var esp32p4 = newer(Silicon{
	Name: "esp32p4", Revision: 302, Crystals: []int{40},
	Deaf:      chip.MagicRegister, // external memory, without any behind it
	USBSerial: true, USBReset: 0x17,
	Watchdog: Watchdog{Config: 0x50116000, Timeout: 0x50116004, Protect: 0x50116018},
	FlashPower: FlashPower{
		Off:   func(rev chip.Revision) bool { return rev == 301 || rev == 302 },
		Force: 0x501153FC, // PMU_DATE
		LDO:   0x501151B8, // PMU_EXT_LDO_P0_0P1A
		ByROM: "DOWNLOAD_MODE_XPD_ON", ByROMSince: 302,
	},
	Reset:         map[uint32]uint32{0x501153FC: 0, 0x501151B8: 0, 0x501151BC: 0, 0x5011010C: 0},
	SecuritySpare: 19,
	API:           5,
	ROM: func(rev chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32p4-eco2-20240710\r\nBuild:Jul 10 2024\r\n",
			"0x30f (SPI_FAST_FLASH_BOOT)", "0x307 (DOWNLOAD(USB/UART0/SPI))", p4Reasons)
		t.Config, t.Mode = "", "SPI mode:%s, clock div:%d\r\n"
		t.SavedPC = "Core0 Saved PC:0x4ff2ebfa\r\nCore1 Saved PC:0x4fc05716\r\n"
		t.SecureBoot.ByScheme = true
		t.SecureBoot.BadCRC = "Sig block %d invalid: CRC mismatch\r\n"
		switch {
		case rev >= 302: // ECO7
			t.Banner = "ESP-ROM:esp32p4-eco7-20260109\r\nBuild:Jan  9 2026\r\n"
		case rev >= 300: // ECO5, and ECO6
			t.Banner = "ESP-ROM:esp32p4-eco5-20250430\r\nBuild:Apr 30 2025\r\n"
		}
		t.SecureBoot.Broken = rev == 300 // ROM-764
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x40000000, 0x44000000}},
		Loaded: []Region{
			{0x4FF00000, 0x4FFC0000}, // HP L2MEM
			{0x30100000, 0x30102000}, // SPM
			{0x50108000, 0x50110000}, // LP memory
		},
	},
	FirstBoot: FirstBoot{
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG",
			"DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS"},
	},
})
