package chip

// esp32s2 follows esp-facts A.4, A.5, A.9, B.1, F.2-F.5 and ESP-IDF's soc/esp32s2
// headers.
//
// RS_ERR: espefuse reads +194/+198, ESP-IDF's header and its HAL, which runs on the
// chip, +1C0/+1C4. This follows ESP-IDF, as esp-facts B.1 advises; nobody has proved
// it on silicon.
//
// Timing: by the APB's frequency, which is that of the crystal while the ROM's loader
// runs; espefuse takes the row of 40 MHz, and so does this.
//
// Its ROM announces no chip id: GET_SECURITY_INFO ends before it (A.4).
func esp32s2() Model {
	l := commonRS()
	l.rdTim, l.wrTim0, l.wrTim1, l.wrTim2 = 0x1EC, 0x1F0, 0x1F4, 0x1F8
	e := rsController(0x3F41A000, l)
	e.Timing = []Timing{{40, []RegWrite{
		{Addr: e.WrTimConf1, Value: 1, Mask: 0xFF},                 // TSUP_A
		{Addr: e.WrTimConf0, Value: 0x190 << 16, Mask: 0xFFFF0000}, // TPGM
		{Addr: e.WrTimConf0, Value: 1, Mask: 0xFF},                 // THP_A
		{Addr: e.WrTimConf0, Value: 2 << 8, Mask: 0xFF00},          // TPGM_INACTIVE
		{Addr: e.DACConf, Value: 0x50, Mask: dacClkDiv},
		{Addr: e.WrTimConf1, Value: 0x5100 << 8, Mask: pwrOnNum},
		{Addr: e.WrTimConf2, Value: 0x80, Mask: pwrOffNum},
		{Addr: e.RdTimConf, Value: 2 << 8, Mask: 0xFF00}, // TRD
		{Addr: e.RdTimConf, Value: 1, Mask: 0xFF},        // THR_A
	}}}
	rom := newerROM("esp32s2", 40)
	rom.SecurityInfoBytes, rom.USBBlock = 12, 0x800
	wdt := watchdogs{cfg0: 0x3F408094, cfg1: 0x3F408098, protect: 0x3F4080AC}
	return Model{
		Name: "esp32s2", Title: "ESP32-S2", ID: IDESP32S2,
		BootloaderOffset: 0x1000, EncryptedAlign: 16, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128, SchemeXTS256},
		EFuse: e,
		SPI:   spiMem(0x3F402000),
		UART:  UART{ClkDiv: 0x3F400014, Date: 0x60000078},
		ROM:   rom,
		Lockdown: newerLockdown([]string{"DIS_ICACHE"},
			"DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_DCACHE", "DIS_DOWNLOAD_ICACHE", "HARD_DIS_JTAG", "DIS_BOOT_REMAP", "DIS_LEGACY_SPI_BOOT"),
		SecureBoot:    newerSecureBoot(SchemeSupport{Scheme: SignRSA3072}),
		magic:         []uint32{0x000007C6},
		watchdogReset: wdt.reset(),
	}
}
