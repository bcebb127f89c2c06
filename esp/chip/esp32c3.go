package chip

// esp32c3 follows esp-facts A.5, A.9, A.10, B.1, F.2-F.5 and ESP-IDF's soc/esp32c3
// headers. Its controller shifts the fail bits of RS_ERR by one block (B.6).
func esp32c3() Model {
	e := rsController(0x60008800, commonRS())
	e.RSFailShifted, e.NoXTSInLastKey = true, true
	e.Timing = sameTiming(dacTiming(e), 40)
	rom := newerROM("esp32c3", 40)
	rom.Stub.NeverWithSecureBoot = true
	wdt := rtcWatchdogs(0x60008000, 0x90, 0xA8, 0xAC)
	sb := newerSecureBoot(SchemeSupport{Scheme: SignRSA3072})
	sb.MinimumRevision = 3
	return Model{
		Name: "esp32c3", Title: "ESP32-C3", ID: IDESP32C3,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128},
		EFuse: e,
		SPI:   spiMem(0x60002000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:   rom,
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT"),
		SecureBoot:    sb,
		magic:         []uint32{0x6921506F, 0x1B31506F, 0x4881606F, 0x4361606F},
		usbWatchdogs:  wdt.stop(),
		watchdogReset: wdt.reset(),
	}
}
