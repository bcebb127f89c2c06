package silicon

import "github.com/provisiond/provisiond/esp/chip"

// Banner and flash strap are those of public boot logs; the loader's strap is the
// ESP32-H2's. Of Secure Boot no log was found.
var esp32c61 = newer(Silicon{
	Name: "esp32c61", Revision: 100, Crystals: []int{40},
	Fixed:     map[uint32]uint32{chip.MagicRegister: 0x7211606F},
	Timing:    func(int) []chip.RegWrite { return dacTiming(0x600B49E8, 0x600B49F0, 0x600B49F4) },
	USBSerial: true,
	Watchdog:  Watchdog{Config: 0x600B1C00, Timeout: 0x600B1C04, Protect: 0x600B1C18},
	ROM: func(chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32c61-eco3-20250228\r\nBuild:Feb 28 2025\r\n",
			"0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0))", lpReasons)
		t.Config, t.Mode = "", "SPI mode:%s, clock div:%d\r\n"
		t.SavedPC = "Core0 Saved PC:0x4080a438\r\n"
		t.SecureBoot.ByScheme = true
		t.SecureBoot.BadCRC = "Sig block %d invalid: CRC mismatch\r\n"
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x42000000, 0x44000000}},
		Loaded: []Region{{0x40800000, 0x40850000}}, // HP memory
	},
	Pages: []int{0x10000, 0x8000, 0x4000},
	FirstBoot: FirstBoot{
		SecureBoot: ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG",
			"DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT"},
	},
})
