package espsim

import (
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// silicon is what the simulation must know of a chip beyond chip.Model and the
// eFuse table. A new chip of the family is one more of these.
type silicon struct {
	name     string
	revision chip.Revision     // of a simulated chip unless Options says otherwise
	crystal  uint64            // Hz
	fixed    map[uint32]uint32 // registers that always read the same
	reset    map[uint32]uint32 // registers that keep what is written, with their value after a reset
	timing   []chip.RegWrite   // must stand in the eFuse controller at a burn (esp-facts B.4)
	factory  [][]uint32        // data words of the blocks as they leave the factory, MAC and revision apart
	macCRC   string            // field for a CRC-8 over the MAC, "" if the chip has none
	// majors is the highest major revision that the fuses can tell.
	majors chip.Revision
	// revisionFields gives the fuses of a silicon revision.
	revisionFields func(chip.Revision) map[string]uint64

	disableDownload string // fuse that closes the loader
	secureDownload  string // fuse of Secure Download Mode, "" if the chip has none
	printControl    string // fuse whose value 3 silences the ROM, "" if the chip has none
	// watchesFuses: the loader looks at the two fuses above after each command
	// and resets the chip when one has come (esp-facts B.5 and the transcript).
	watchesFuses  bool
	softwareReset int // reset reason of that reset
	usbReset      int // reset reason of a reset by the USB-Serial-JTAG unit

	securityFlags map[string]int // GET_SECURITY_INFO: fuse to flag bit (esp-facts A.4)
	securitySpare byte           // its byte 11
	api           uint32         // its API version
}

func siliconOf(m chip.Model) (*silicon, error) {
	for _, s := range []*silicon{&siliconESP32, &siliconESP32C3} {
		if s.name == m.Name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no simulation of %s in this build", m.Name)
}

// The values of fixed registers, of registers after a reset and of factory words
// are those of the ROM transcripts.

var siliconESP32 = silicon{
	name: "esp32", revision: 301, crystal: 40_000_000,
	fixed: map[uint32]uint32{
		chip.MagicRegister: 0x00F01D83,
		0x3FF5F06C:         0x28000,    // the ROM's measurement of the crystal against the 8 MHz oscillator
		0x3FF6607C:         0x16042000, // APB_CTL_DATE; bit 31 is the third revision bit
		0x3FF44038:         0xF,        // GPIO_STRAP as latched for download
	},
	reset: map[uint32]uint32{
		0x3FF42004: 0, 0x3FF4201C: 0x80000000, 0x3FF42020: 0x5C000007, 0x3FF42024: 0x70000000,
		0x3FF42028: 0, 0x3FF4202C: 0, 0x3FF42080: 0,
		0x3FF5A0F8: 0, 0x3FF5A118: 0,
	},
	timing: []chip.RegWrite{
		{Addr: 0x3FF5A0F8, Value: 0xFFA0, Mask: 0xFFFF}, // CLK_SEL1 255, CLK_SEL0 160
		{Addr: 0x3FF5A118, Value: 0x50, Mask: 0xFF},     // DAC_CLK_DIV 80
	},
	factory: [][]uint32{{0, 0, 0, 0x2200, 0xE50, 0, 0}},
	macCRC:  "MAC_CRC",
	majors:  3,
	revisionFields: func(r chip.Revision) map[string]uint64 {
		f := map[string]uint64{"WAFER_VERSION_MINOR": uint64(r % 100)}
		if r/100 >= 1 {
			f["CHIP_VER_REV1"] = 1
		}
		if r/100 >= 2 {
			f["CHIP_VER_REV2"] = 1
		}
		return f
	},
	disableDownload: "UART_DOWNLOAD_DIS",
	softwareReset:   3, // SW_RESET
}

var siliconESP32C3 = silicon{
	name: "esp32c3", revision: 4, crystal: 40_000_000,
	fixed: map[uint32]uint32{
		chip.MagicRegister: 0x1B31506F,
		0x60004038:         0x2, // GPIO_STRAP as latched for download
	},
	reset: map[uint32]uint32{
		0x60002004: 0, 0x60002018: 0x800000C0, 0x6000201C: 0x5C000007, 0x60002020: 0x70000000,
		0x60002024: 0, 0x60002028: 0, 0x60002058: 0,
		0x600089C8: 0, 0x600089E8: 0, 0x600089F0: 0, 0x600089F4: 0,
	},
	timing: []chip.RegWrite{
		{Addr: 0x600089E8, Value: 0xFF<<9 | 0x28, Mask: 0x1FFFF}, // DAC_NUM, DAC_CLK_DIV
		{Addr: 0x600089F0, Value: 0x3000 << 8, Mask: 0xFFFF00},   // PWR_ON_NUM
		{Addr: 0x600089F4, Value: 0x190, Mask: 0xFFFF},           // PWR_OFF_NUM
	},
	factory: [][]uint32{
		1: {0, 0, 0, 3 << 24, 0, 0},
		2: {0x6F061900, 0x4C022B83, 0xC8DCBB87, 0x0C15C56F, 1, 0, 0, 0},
	},
	majors: 3,
	revisionFields: func(r chip.Revision) map[string]uint64 {
		return map[string]uint64{
			"WAFER_VERSION_MINOR_LO": uint64(r % 100 & 7),
			"WAFER_VERSION_MINOR_HI": uint64(r % 100 >> 3),
			"WAFER_VERSION_MAJOR":    uint64(r / 100),
		}
	},
	disableDownload: "DIS_DOWNLOAD_MODE",
	secureDownload:  "ENABLE_SECURITY_DOWNLOAD",
	printControl:    "UART_PRINT_CONTROL",
	watchesFuses:    true,
	softwareReset:   3,    // RTC_SW_SYS_RST
	usbReset:        0x15, // USB_UART_CHIP_RESET
	securityFlags: map[string]int{
		"SECURE_BOOT_EN": 0, "SECURE_BOOT_AGGRESSIVE_REVOKE": 1, "ENABLE_SECURITY_DOWNLOAD": 2,
		"SECURE_BOOT_KEY_REVOKE0": 3, "SECURE_BOOT_KEY_REVOKE1": 4, "SECURE_BOOT_KEY_REVOKE2": 5,
		"SOFT_DIS_JTAG": 6, "DIS_PAD_JTAG": 7, "DIS_DOWNLOAD_ICACHE": 10,
	},
	securitySpare: 0x0C,
	api:           3,
}
