package silicon

import "github.com/provisiond/provisiond/esp/chip"

// The texts are those of public boot logs.
var esp32s3 = newer(Silicon{
	Name: "esp32s3", Revision: 2, Crystals: []int{40},
	Fixed:     map[uint32]uint32{chip.MagicRegister: 0x00000009},
	Timing:    func(int) []chip.RegWrite { return dacTiming(0x600071E8, 0x600071F4, 0x600071F8) },
	Factory:   [][]uint32{1: {0, 0, 0, 3 << 24, 0, 0}, 2: {0, 0, 0, 0, 1, 0, 0, 0}}, // block version v1.3
	USBSerial: true,
	CrashPair: [2]string{"DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG"},
	Watchdog:  Watchdog{Config: 0x60008098, Timeout: 0x6000809C, Protect: 0x600080B0},
	Reset:     map[uint32]uint32{0x6000812C: 0}, // RTC_CNTL_OPTION1
	ROM: func(chip.Revision) ROM {
		t := newerROM("ESP-ROM:esp32s3-20210327\r\nBuild:Mar 27 2021\r\n",
			"0x8 (SPI_FAST_FLASH_BOOT)", "0x0 (DOWNLOAD(USB/UART0))", rtcReasons)
		t.SavedPC = "Saved PC:0x40048ee5\r\n"
		return t
	},
	Memory: Memory{
		Mapped: []Region{{0x3C000000, 0x3E000000}, {0x42000000, 0x44000000}},
		Loaded: []Region{
			{0x3FC88000, 0x3FD00000}, // DRAM
			{0x40370000, 0x403E0000}, // IRAM
			{0x600FE000, 0x60100000}, // RTC fast memory
			{0x50000000, 0x50002000}, // RTC slow memory
		},
	},
	FirstBoot: FirstBoot{
		SecureBoot: append(ones("DIS_DIRECT_BOOT", "DIS_PAD_JTAG", "DIS_USB_JTAG"), chip.Assignment{Field: "SOFT_DIS_JTAG", Value: 7}),
		Encryption: ones("DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_DCACHE", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG",
			"DIS_USB_JTAG", "DIS_DIRECT_BOOT", "WR_DIS.DIS_ICACHE"),
		Release: []string{"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_DOWNLOAD_DCACHE"},
	},
})
