package silicon

import "github.com/provisiond/provisiond/esp/chip"

// Banner and straps are those of public boot logs; that the verdict of Secure Boot
// names the algorithm is taken from the ESP32-C6.
var esp32h2 = newer(Silicon{
	Name: "esp32h2", Revision: 102, Crystals: []int{32},
	Fixed:     map[uint32]uint32{chip.MagicRegister: 0xD7B73E80},
	Timing:    func(int) []chip.RegWrite { return dacTiming(0x600B09E8, 0x600B09F0, 0x600B09F4) },
	USBSerial: true,
	ROM: func(chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32h2-20221101\r\nBuild:Nov  1 2022\r\n",
			"0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0))", lpReasons)
		t.SavedPC = "Saved PC:0x400031b6\r\n"
		t.SecureBoot.ByScheme = true
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x42000000, 0x43000000}},
		Loaded: []Region{{0x40800000, 0x40850000}, {0x50000000, 0x50001000}}, // HP and LP memory
	},
	Pages: []int{0x10000, 0x8000, 0x4000, 0x2000},
	FirstBoot: FirstBoot{
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT",
			"XTS_DPA_PSEUDO_LEVEL", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT"},
	},
})
