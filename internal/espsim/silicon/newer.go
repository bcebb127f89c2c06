package silicon

import "github.com/provisiond/provisiond/esp/chip"

// What the chips after the ESP32 share. A chip's file says how it differs.

// newer adds to a description what most of them have in common.
func newer(s Silicon) Silicon {
	s.DisableDownload, s.SecureDownload = "DIS_DOWNLOAD_MODE", "ENABLE_SECURITY_DOWNLOAD"
	s.PrintControl, s.ManualEncrypt = "UART_PRINT_CONTROL", "DIS_DOWNLOAD_MANUAL_ENCRYPT"
	s.WatchesFuses = true // seen on the ESP32-C3; esp-facts B.5 has it for all
	s.SoftwareReset = 3
	if s.USBReset == 0 {
		s.USBReset = 0x15
	}
	s.USBDownload = "DIS_USB_SERIAL_JTAG_DOWNLOAD_MODE"
	s.SecurityFlags = map[string]int{ // a fuse that a chip lacks is never set
		"SECURE_BOOT_EN": 0, "SECURE_BOOT_AGGRESSIVE_REVOKE": 1, "ENABLE_SECURITY_DOWNLOAD": 2,
		"SECURE_BOOT_KEY_REVOKE0": 3, "SECURE_BOOT_KEY_REVOKE1": 4, "SECURE_BOOT_KEY_REVOKE2": 5,
		"SOFT_DIS_JTAG": 6, "DIS_PAD_JTAG": 7, "HARD_DIS_JTAG": 7, "DIS_USB": 8,
		"DIS_DOWNLOAD_DCACHE": 9, "DIS_DOWNLOAD_ICACHE": 10,
	}
	if s.Pages == nil {
		s.Pages = []int{0x10000}
	}
	return s
}

// newerROM is the texts of the ESP32-C3's ROM, with what differs everywhere.
func newerROM(banner, flashStrap, uartStrap string, reasons map[int]string) ROM {
	return ROM{
		Banner: banner, Reasons: reasons, FlashStrap: flashStrap, UARTStrap: uartStrap,
		Waiting: "waiting for download\r\n",
		// Seen on the ESP32-C3 only.
		WaitingSDM: "wait uart download(secure mode)\r\n",
		Disabled:   "Download boot modes disabled\r\n",
		BadHeader:  "invalid header: 0x%08x\r\n", HeaderAgain: true,
		Config:     "SPIWP:0x%02x\r\n",
		Mode:       "mode:%s, clock div:%d\r\n",
		Load:       "load:0x%08x,len:0x%x\r\n",
		Checksum:   "Checksum failure. Calculated 0x%02x stored 0x%02x\r\nets_main.c 333 \r\n",
		ChecksHash: true,
		Watchdog:   0x07,
		SecureBoot: SecureBootROM{
			Enabled: "Valid secure boot key blocks: %s\r\n",
			Verdict: "secure boot verification %s\r\n",
			// The line number is the ESP32-S3's, whose log is public.
			Failed: "ets_main.c 329 \r\n",
			// The test of ESP-IDF waits for this much; what follows is not public.
			BadCRC: "Sig block %d invalid: Stored CRC ends\r\n",
		},
	}
}

// Names of the reset reasons: ESP-IDF components/esp_rom/<chip>/include/<chip>/rom/
// rtc.h lists the numbers; the spellings are those of public boot logs.
var (
	rtcReasons = map[int]string{ // S2, S3, C2, C3
		0x01: "POWERON", 0x03: "RTC_SW_SYS_RST", 0x05: "DSLEEP", 0x07: "TG0WDT_SYS_RST", 0x08: "TG1WDT_SYS_RST",
		0x09: "RTCWDT_SYS_RST", 0x0B: "TG0WDT_CPU_RST", 0x0C: "RTC_SW_CPU_RST", 0x0D: "RTCWDT_CPU_RST",
		0x0F: "BROWN_OUT_RST", 0x10: "RTCWDT_RTC_RST", 0x11: "TG1WDT_CPU_RST", 0x12: "SUPER_WDT_RST",
		0x15: "USB_UART_CHIP_RESET", 0x16: "USB_JTAG_CHIP_RESET",
	}
	lpReasons = map[int]string{ // C6, H2, C5, C61: 1, 0xC, 0x15 and 0x18 were seen
		0x01: "POWERON", 0x03: "LP_SW_HPSYS", 0x05: "PMU_HP_PWR_DOWN", 0x07: "TG0_WDT_HPSYS", 0x08: "TG1_WDT_HPSYS",
		0x09: "LP_WDT_HPSYS", 0x0B: "TG0_WDT_CPU", 0x0C: "SW_CPU", 0x0D: "LP_WDT_CPU",
		0x0F: "BROWN_OUT", 0x10: "LP_WDT_SYS", 0x11: "TG1_WDT_CPU", 0x12: "SUPER_WDT",
		0x15: "USB_UART_HPSYS", 0x16: "USB_JTAG_HPSYS", 0x18: "JTAG_CPU",
	}
	p4Reasons = map[int]string{ // 1, 7, 0xC and 0x17 were seen
		0x01: "POWERON", 0x03: "SW_SYS_RESET", 0x05: "PMU_SYS_PWR_DOWN_RESET", 0x07: "HP_SYS_HP_WDT_RESET",
		0x09: "HP_SYS_LP_WDT_RESET", 0x0B: "HP_CORE_HP_WDT_RESET", 0x0C: "SW_CPU_RESET", 0x0D: "HP_CORE_LP_WDT_RESET",
		0x0F: "BROWN_OUT_RESET", 0x10: "CHIP_LP_WDT_RESET", 0x12: "SUPER_WDT_RESET",
		0x16: "CHIP_USB_JTAG_RESET", 0x17: "CHIP_USB_UART_RESET", 0x18: "JTAG_RESET",
	}
)

// dacTiming is esp-facts B.4 for most controllers: DAC_CONF, WR_TIM_CONF1 and
// WR_TIM_CONF2 at these addresses.
func dacTiming(dac, conf1, conf2 uint32, more ...chip.RegWrite) []chip.RegWrite {
	return append([]chip.RegWrite{
		{Addr: dac, Value: 0xFF<<9 | 0x28, Mask: 0x1FFFF}, // DAC_NUM, DAC_CLK_DIV
		{Addr: conf1, Value: 0x3000 << 8, Mask: 0xFFFF00}, // PWR_ON_NUM
		{Addr: conf2, Value: 0x190, Mask: 0xFFFF},         // PWR_OFF_NUM
	}, more...)
}

// ones lists fuses that are burned to 1.
func ones(fields ...string) []chip.Assignment {
	var out []chip.Assignment
	for _, f := range fields {
		out = append(out, chip.Assignment{Field: f, Value: 1})
	}
	return out
}
