package chip

// esp32c6 follows esp-facts A.5, A.9, B.1, F.2-F.5 and ESP-IDF's soc/esp32c6
// headers. It has no reset by watchdog: that freezes the chip (A.9).
func esp32c6() Model {
	e := rsController(0x600B0800, commonRS())
	e.NoXTSInLastKey = true
	e.Timing = sameTiming(dacTiming(e), 40)
	return Model{
		Name: "esp32c6", Title: "ESP32-C6", ID: IDESP32C6,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128},
		EFuse: e,
		SPI:   spiMem(0x60003000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:   newerROM("esp32c6", 40),
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT"),
		SecureBoot:   newerSecureBoot(SchemeSupport{Scheme: SignRSA3072}, SchemeSupport{Scheme: SignECDSA256}),
		magic:        []uint32{0x2CE0806F},
		usbWatchdogs: lpWatchdogs(0x600B1C00, 0x18).stop(),
	}
}
