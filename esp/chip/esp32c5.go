package chip

// esp32c5 follows esp-facts A.5, A.6, A.9, B.1, B.4, F.2-F.5 and ESP-IDF's
// soc/esp32c5 headers. STATUS, CMD, DAC_CONF and RS_ERR are not where its relatives
// have them.
//
// Timing: espefuse writes the values of its relatives, ESP-IDF leaves the reset
// defaults. This writes them; which of the two is better has to be proved on silicon.
//
// Flash keys come from key blocks: its Key Manager is not used (errata HUK-576).
func esp32c5() Model {
	l := commonRS()
	l.status, l.cmd, l.dac, l.wrTim1, l.wrTim2, l.rsErr0, l.rsErr1 = 0x1D4, 0x1D8, 0x1EC, 0x1F4, 0x1F8, 0x190, 0x194
	e := rsController(0x600B4800, l)
	e.Timing = sameTiming(dacTiming(e), 40, 48)
	rom := newerROM("esp32c5", 40, 48)
	rom.BaudCrystalReg, rom.BaudFixedInSDM = 0x60096110, true
	wdt := lpWatchdogs(0x600B1C00, 0x18)
	// RSA came with v0.1 (ESP-IDF bootloader/Kconfig.projbuild, SECURE_SIGNED_APPS_RSA_SCHEME).
	sb := newerSecureBoot(SchemeSupport{Scheme: SignRSA3072, MinimumRevision: 1}, SchemeSupport{Scheme: SignECDSA256}, SchemeSupport{Scheme: SignECDSA384})
	sb.SHA384Field, sb.WeakECDSA = "SECURE_BOOT_SHA384_EN", true
	return Model{
		Name: "esp32c5", Title: "ESP32-C5", ID: IDESP32C5,
		BootloaderOffset: 0x2000, EncryptedAlign: 16, MaxFlash: flash128M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128},
		EFuse: e,
		SPI:   spiMem(0x60003000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:   rom,
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL"),
		SecureBoot:    sb,
		magic:         []uint32{0x1101406F, 0x5FD1406F},
		usbWatchdogs:  wdt.stop(),
		watchdogReset: wdt.reset(),
	}
}
