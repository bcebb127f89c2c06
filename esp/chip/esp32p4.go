package chip

import "time"

// esp32p4 follows esp-facts A.5, A.9, B.1, B.4, F.2-F.5, H 10 and ESP-IDF's
// soc/esp32p4 headers. Silicon before v3.0 has another eFuse table.
//
// The word at 0x40001000 must not be read: it is external memory there (A.5).
//
// The loader of v3.1 and v3.2 leaves the flash without supply, and what switches it
// on is out of reach in Secure Download Mode, unless DOWNLOAD_MODE_XPD_ON is burned
// on v3.2. The vendor's tool clears bit 7 of PMU_EXT_LDO_P0_0P1A at the end of its
// sequence after setting it twice; here it is set once.
func esp32p4() Model {
	e := rsController(0x5012D000, commonRS())
	rom := newerROM("esp32p4", 40)
	rom.USBBlock = 0x800
	rom.Stub.OlderBelow, rom.Stub.OlderFile = 300, "esp32p4-rev1.json"
	wdt := lpWatchdogs(0x50116000, 0x18)
	sb := newerSecureBoot(SchemeSupport{Scheme: SignRSA3072}, SchemeSupport{Scheme: SignECDSA256}, SchemeSupport{Scheme: SignECDSA384, MinimumRevision: 300})
	sb.SHA384Field, sb.WeakECDSA = "SECURE_BOOT_SHA384_EN", true
	sb.Broken, sb.BrokenBy = []Revision{300}, "ROM-764"
	lock := newerLockdown(nil,
		"DIS_DOWNLOAD_MANUAL_ENCRYPT", "SPI_DOWNLOAD_MSPI_DIS", "DIS_PAD_JTAG", "DIS_USB_JTAG", "DIS_DIRECT_BOOT", "XTS_DPA_PSEUDO_LEVEL")
	lock.ReleaseTrap = "errata ROM-764 (v3.0), ROM-770 (v3.1) and ROM-816 (v3.2)"
	const (
		padGroup = 0x5011010C // LP_SYSTEM_REG_ANA_XPD_PAD_GROUP
		ldo      = 0x501151B8 // PMU_EXT_LDO_P0_0P1A
		ldoAna   = 0x501151BC // PMU_EXT_LDO_P0_0P1A_ANA
		date     = 0x501153FC // PMU_DATE, whose low bits force the flash's supply
		forceOn  = 3
	)
	// revision is the word of BLOCK1 that holds the silicon's revision: minor in 3:0,
	// major in 5:4 and 23 (B.8). DOWNLOAD_MODE_XPD_ON is bit 16 of BLOCK0's word 2.
	revision := func(v uint32) RegMatch { return RegMatch{Addr: e.Base + 0x4C, Mask: 1<<23 | 0x3F, Value: v} }
	powerOn := []RegWrite{
		set(padGroup, 1),
		{Addr: ldoAna, Value: 1 << 27, Mask: 1 << 27, Before: 10 * time.Millisecond},
		{Addr: ldo, Value: 1 << 7, Mask: 1 << 7},
		{Addr: date, Value: forceOn, Mask: forceOn},
		{Addr: ldoAna, Value: 0, Mask: 1 << 27, Before: 50 * time.Microsecond},
		{Addr: ldo, Value: 0, Mask: 0xFF << 23},
		{Addr: ldo, Value: 0, Mask: 1 << 7},
		{Addr: date, Before: 1800 * time.Microsecond}, // an empty mask: only the pause
	}
	// Where the ROM has switched it on by itself, on a reset it would do so again,
	// which hangs (ROM-816): let go first.
	released := []RegWrite{{Addr: date, Value: 0, Mask: forceOn}}
	return Model{
		Name: "esp32p4", Title: "ESP32-P4", ID: IDESP32P4,
		BootloaderOffset: 0x2000, EncryptedAlign: 16, MaxFlash: flash128M, MaxFlashROM: flash16M,
		Scheme: SchemeXTS128, Schemes: []Scheme{SchemeXTS128, SchemeXTS256},
		EFuse:         e,
		SPI:           spiMem(0x5008D000),
		UART:          UART{ClkDiv: 0x500CA014, Date: 0x500CA08C},
		ROM:           rom,
		Lockdown:      lock,
		SecureBoot:    sb,
		Older:         []Older{{Below: 300, Lacks: []string{"XTS_DPA_PSEUDO_LEVEL", "SECURE_BOOT_SHA384_EN"}}},
		usbWatchdogs:  wdt.stop(),
		watchdogReset: wdt.reset(),
		flashPower: []PowerCase{
			{When: []RegMatch{revision(0x32), {Addr: e.Base + 0x34, Mask: 1 << 16, Value: 1 << 16}}, Writes: released},
			{When: []RegMatch{revision(0x31)}, Writes: powerOn},
			{When: []RegMatch{revision(0x32)}, Writes: powerOn},
		},
	}
}
