package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The texts are those of public boot logs.
var esp32c6 = newer(Silicon{
	Name: "esp32c6", Revision: 2, Crystals: []int{40},
	Fixed:     map[uint32]uint32{chip.MagicRegister: 0x2CE0806F},
	Timing:    func(int) []chip.RegWrite { return dacTiming(0x600B09E8, 0x600B09F0, 0x600B09F4) },
	USBSerial: true,
	ROM: func(chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32c6-20220919\r\nBuild:Sep 19 2022\r\n",
			"0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0/SDIO_FEI_FEO))", lpReasons)
		t.SavedPC = "Saved PC:0x40017604\r\n"
		t.SecureBoot.ByScheme = true
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x42000000, 0x43000000}},
		Loaded: []Region{{0x40800000, 0x40880000}, {0x50000000, 0x50004000}}, // HP and LP memory
	},
	Pages: []int{0x10000, 0x8000, 0x4000, 0x2000},
	FirstBoot: FirstBoot{
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_USB_JTAG",
			"DIS_DIRECT_BOOT", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE"},
	},
})
