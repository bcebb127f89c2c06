package chip

// esp32s3 follows esp-facts A.5, A.9, A.10, B.1, F.2-F.5 and ESP-IDF's soc/esp32s3
// headers. Early batches left the factory with DIS_USB_OTG_DOWNLOAD_MODE burned
// (AR2022-004, esp-facts H 12).
func esp32s3() Model {
	l := commonRS()
	l.wrTim1, l.wrTim2 = 0x1F4, 0x1F8
	e := rsController(0x60007000, l)
	e.NoXTSInLastKey, e.FirstByBlockRevision = true, 101
	e.NeverTogether = [][]string{{"DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG"}} // esp-idf#13946, esp-facts H 12
	e.Timing = sameTiming(dacTiming(e), 40)
	rom := newerROM("esp32s3", 40)
	rom.USBBlock = 0x800
	rom.Stub.ReadHook = 0x3FCEF688
	wdt := rtcWatchdogs(0x60008000, 0x98, 0xB0, 0xB4)
	return Model{
		Name: "esp32s3", Title: "ESP32-S3", ID: IDESP32S3,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash128M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128, SchemeXTS256},
		EFuse: e,
		SPI:   spiMem(0x60002000),
		UART:  UART{ClkDiv: 0x60000014, Date: 0x60000080},
		ROM:   rom,
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_DCACHE", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT"),
		SecureBoot:    newerSecureBoot(SchemeSupport{Scheme: SignRSA3072}),
		FactorySet:    []string{"DIS_USB_OTG_DOWNLOAD_MODE"},
		magic:         []uint32{0x00000009},
		usbWatchdogs:  wdt.stop(),
		watchdogReset: wdt.reset(),
		beforeRun:     []RegWrite{{Addr: 0x6000812C, Value: 0, Mask: 1}}, // RTC_CNTL_OPTION1: forced download
	}
}
