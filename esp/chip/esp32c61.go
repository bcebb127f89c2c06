package chip

// esp32c61 follows esp-facts A.5, A.9, B.1, F.2-F.5 and ESP-IDF's soc/esp32c61
// headers.
//
// RS_ERR: espefuse reads +1C0/+1C4, ESP-IDF's header and its HAL, which runs on the
// chip, +190/+194. This follows ESP-IDF, as esp-facts B.1 advises; nobody has proved
// it on silicon.
//
// Secure Boot knows ECDSA only, and the vendor calls that weak here (E.1).
func esp32c61() Model {
	l := commonRS()
	l.rsErr0, l.rsErr1 = 0x190, 0x194
	e := rsController(0x600B4800, l)
	e.Timing = sameTiming(dacTiming(e), 40)
	wdt := lpWatchdogs(0x600B1C00, 0x18)
	sb := newerSecureBoot(SchemeSupport{Scheme: SignECDSA256})
	sb.WeakECDSA = true
	return Model{
		Name: "esp32c61", Title: "ESP32-C61", ID: IDESP32C61,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash128M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128},
		EFuse: e,
		SPI:   spiMem(0x60003000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:   newerROM("esp32c61", 40),
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL"),
		SecureBoot:    sb,
		magic:         []uint32{0x7211606F},
		usbWatchdogs:  wdt.stop(),
		watchdogReset: wdt.reset(),
	}
}
