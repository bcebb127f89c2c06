package chip

// esp32h2 follows esp-facts A.5, A.9, B.1, F.2-F.5 and ESP-IDF's soc/esp32h2
// headers. Silicon before v1.2 has another eFuse table: no pseudo rounds against
// power analysis, and a fuse that every ECDSA key needs (B.7). It has no reset by
// watchdog (A.9).
func esp32h2() Model {
	e := rsController(0x600B0800, commonRS())
	e.NoXTSInLastKey = true
	e.Timing = sameTiming(dacTiming(e), 32)
	sb := newerSecureBoot(SchemeSupport{Scheme: SignRSA3072}, SchemeSupport{Scheme: SignECDSA256})
	sb.WeakECDSA = true
	return Model{
		Name: "esp32h2", Title: "ESP32-H2", ID: IDESP32H2,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128},
		EFuse: e,
		SPI:   spiMem(0x60003000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:   newerROM("esp32h2", 32),
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL"),
		SecureBoot:   sb,
		Older:        []Older{{Below: 102, Lacks: []string{"XTS_DPA_PSEUDO_LEVEL"}}},
		magic:        []uint32{0xD7B73E80},
		usbWatchdogs: lpWatchdogs(0x600B1C00, 0x1C).stop(),
	}
}
