package silicon

import "github.com/provisiond/provisiond/esp/chip"

// Banners and the flash strap are those of public boot logs; the loader's strap is
// the ESP32-C6's, and so is that the verdict of Secure Boot names the algorithm.
//
// Which crystal the ROM takes for granted is in a register. Here silicon before v1.0
// says 40 MHz and later silicon 48, so that both mismatches of esp-facts A.6 can be
// had; which silicon says which is not known.
var esp32c5 = newer(Silicon{
	Name: "esp32c5", Revision: 102, Crystals: []int{48, 40},
	ROMCrystal: func(rev chip.Revision) int {
		if rev < 100 {
			return 40
		}
		return 48
	},
	ROMCrystalReg: 0x60096110,
	Fixed:         map[uint32]uint32{chip.MagicRegister: 0x1101406F},
	// espefuse writes these, ESP-IDF leaves the reset values (esp-facts B.4).
	Timing:        func(int) []chip.RegWrite { return dacTiming(0x600B49EC, 0x600B49F4, 0x600B49F8) },
	TimingOrReset: true,
	USBSerial:     true,
	Watchdog:      Watchdog{Config: 0x600B1C00, Timeout: 0x600B1C04, Protect: 0x600B1C18},
	ROM: func(rev chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32c5-eco2-20250121\r\nBuild:Jan 21 2025\r\n",
			"0x18 (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0/SDIO_FEI_FEO))", lpReasons)
		t.Config, t.Mode = "", "SPI mode:%s, clock div:%d\r\n"
		t.SecureBoot.ByScheme = true
		t.SecureBoot.BadCRC = "Sig block %d invalid: CRC mismatch\r\n"
		if rev >= 102 { // ECO3
			t.Banner = "ESP-ROM:esp32c5-eco3-20250704\r\nBuild:Jul  4 2025\r\n"
		}
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x42000000, 0x44000000}},
		Loaded: []Region{{0x40800000, 0x40860000}, {0x50000000, 0x50004000}}, // HP and LP memory
	},
	FirstBoot: FirstBoot{
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG",
			"DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT"},
	},
})
