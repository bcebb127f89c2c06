package chip

import "time"

// esp32 follows esp-facts A.5, B.1, F.2-F.5 and ESP-IDF's soc/esp32 headers.
func esp32() Model {
	const base = 0x3FF5A000
	// Timing is by crystal, because the ROM runs the APB from it (esp-facts B.4):
	// DAC_CLK_DIV of DAC_CONF, then CLK_SEL0 and CLK_SEL1 of CLK.
	timing := func(crystal int, sel0, sel1, dac uint32) Timing {
		return Timing{crystal, []RegWrite{
			{Addr: base + 0x118, Value: dac, Mask: 0xFF},
			{Addr: base + 0xF8, Value: sel0, Mask: 0xFF},
			{Addr: base + 0xF8, Value: sel1 << 8, Mask: 0xFF00},
		}}
	}
	return Model{
		Name: "esp32", Title: "ESP32", ID: IDESP32,
		BootloaderOffset: 0x1000, EncryptedAlign: 32, MaxFlash: flash16M, MaxFlashROM: flash16M,
		Scheme: SchemeESP32, Schemes: []Scheme{SchemeESP32},
		EFuse: EFuse{
			Kind: EFuseESP32, Base: base,
			Clk: base + 0xF8, Conf: base + 0xFC, Cmd: base + 0x104,
			DACConf: base + 0x118, DecStatus: base + 0x11C,
			Timing:    []Timing{timing(26, 250, 255, 52), timing(40, 160, 255, 80)},
			KeyBlocks: 1, MACOff: 0x04, FlashCryptCount: "FLASH_CRYPT_CNT", FlashCryptCountFull: 127,
			RevisionBit2Register: 0x3FF6607C,
		},
		SPI: SPI{
			Cmd: 0x3FF42000, Usr: 0x3FF4201C, Usr1: 0x3FF42020, Usr2: 0x3FF42024,
			MOSIDLen: 0x3FF42028, MISODLen: 0x3FF4202C, W0: 0x3FF42080,
		},
		UART: UART{ClkDiv: 0x3FF40014, Date: 0x60000078},
		ROM: ROM{
			FlashBeginWords: 4, BaudCrystalFixed: true, ApproxFreqReg: 0x3FF5F06C,
			FlashBlock: 0x400, MemBlock: 0x1800, Crystals: []int{26, 40},
			Banner:           []byte("ets Ju"), // "ets Jun  8 2016" before ECO3, "ets Jul 29 2019" since
			DownloadBanner:   [][]byte{[]byte("waiting for download"), []byte("UART_BOOT")},
			DownloadDisabled: []byte("Download mode is disabled"),
			ResetSettle:      500 * time.Millisecond,
		},
		Lockdown: Lockdown{
			Enable:       []Assignment{{"FLASH_CRYPT_CONFIG", 0xF}},
			Fuses:        on("DISABLE_DL_ENCRYPT", "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "JTAG_DISABLE", "CONSOLE_DEBUG_DISABLE"),
			WriteProtect: []string{"DIS_CACHE"},
			ReleaseFuse:  "UART_DOWNLOAD_DIS", ClosedFuse: "UART_DOWNLOAD_DIS", ClosedMinimum: 300,
		},
		SecureBoot: SecureBoot{ // needs coding scheme none
			Schemes:         []SchemeSupport{{Scheme: SignRSA3072}},
			MinimumRevision: 300, DigestSlots: 1, DigestIn: DigestInBlock2, DigestBytes: 32,
			EnableField: "ABS_DONE_1",
		},
		FactorySet: []string{"CONSOLE_DEBUG_DISABLE"},
		magic:      []uint32{0x00F01D83},
	}
}
