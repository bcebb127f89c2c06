package chip

// esp32c2 follows esp-facts A.5, A.6, A.9, A.10, B.1, B.4, B.9, F.2-F.5 and
// ESP-IDF's soc/esp32c2 headers. The chip was first called ESP8684, and its ROM
// prints that before v2.0.
//
// One key block holds everything, in one burn: a 32-byte key, or a 16-byte one from
// which the chip derives 32 (low half), and with Secure Boot the digest (high half).
// Units get the 16-byte one in any case, as in F.5.
//
// WR_DIS bit 2 locks the crypt counter together with SECURE_BOOT_EN. ESP-IDF's
// release mode sets it (F.2); the words of F.5 leave it out, since there the loader
// stays open.
func esp32c2() Model {
	l := rsLayout{
		clk: 0x88, conf: 0x8C, status: 0x90, cmd: 0x94, dac: 0x108, wrTim0: 0x110, wrTim1: 0x114, wrTim2: 0x118,
		repeatErr: 0x80, repeatWords: 1, rsErr0: 0x84, key: 0x60, mac: 0x40,
	}
	e := rsController(0x60008800, l)
	e.KeyBlocks = 1
	for _, t := range []struct {
		crystal  int
		inactive uint32 // TPGM_INACTIVE of WR_TIM_CONF0 15:8
	}{{26, 130}, {40, 200}} {
		e.Timing = append(e.Timing, Timing{t.crystal, append(dacTiming(e), RegWrite{Addr: e.WrTimConf0, Value: t.inactive << 8, Mask: 0xFF00})})
	}
	rom := newerROM("esp", 26, 40) // "esp8684-api2-…", from v2.0 "esp32c2-eco4-…"
	rom.BaudCrystalMHz, rom.BaudFixedInSDM = 40, true
	rom.Stub.MinimumRevision = 1 // not v0.0
	lock := newerLockdown(nil, "DIS_DOWNLOAD_MANUAL_ENCRYPT", "DIS_DOWNLOAD_ICACHE", "DIS_PAD_JTAG", "DIS_DIRECT_BOOT")
	lock.ReleaseProtect = []string{"SPI_BOOT_CRYPT_CNT"}
	return Model{
		Name: "esp32c2", Title: "ESP32-C2", ID: IDESP32C2,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeXTSDerived, Schemes: []Scheme{SchemeXTSDerived, SchemeXTS128},
		EFuse:    e,
		SPI:      spiMem(0x60002000),
		UART:     UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM:      rom,
		Lockdown: lock,
		SecureBoot: SecureBoot{
			Schemes: []SchemeSupport{{Scheme: SignECDSA256}}, DigestSlots: 1, DigestIn: DigestInKey0High, DigestBytes: 16,
			EnableField: "SECURE_BOOT_EN",
		},
		magic:         []uint32{0x6F51306F, 0x7C41A06F, 0x0C21E06F},
		watchdogReset: watchdogs{cfg0: 0x60008084, cfg1: 0x60008088, protect: 0x6000809C}.reset(),
	}
}
