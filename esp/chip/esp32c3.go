package chip

import "time"

// esp32c3 follows esp-facts A.5, A.9, B.1, F.2-F.5 and ESP-IDF's soc/esp32c3 headers.
func esp32c3() Model {
	const base = 0x60008800
	return Model{
		Name: "esp32c3", Title: "ESP32-C3", ID: IDESP32C3,
		BootloaderOffset: 0x0, EncryptedAlign: 16, MaxFlash: 16 << 20,
		Scheme: SchemeXTS128,
		EFuse: EFuse{
			Kind: EFuseRS, Base: base,
			PgmData: base, CheckValue: base + 0x20,
			Clk: base + 0x1C8, Conf: base + 0x1CC, Status: base + 0x1D0, Cmd: base + 0x1D4,
			DACConf: base + 0x1E8, WrTimConf1: base + 0x1F0, WrTimConf2: base + 0x1F4,
			RepeatErr: base + 0x17C, RepeatErrWords: 5,
			RSErr: [2]uint32{base + 0x1C0, base + 0x1C4}, RSFailShifted: true,
			KeyBlocks: 6, NoXTSInLastKey: true,
			FlashCryptCount: "SPI_BOOT_CRYPT_CNT", FlashCryptCountFull: 7,
		},
		SPI: SPI{
			Cmd: 0x60002000, Usr: 0x60002018, Usr1: 0x6000201C, Usr2: 0x60002020,
			MOSIDLen: 0x60002024, MISODLen: 0x60002028, W0: 0x60002058,
		},
		UART: UART{ClkDiv: 0x60000014, Date: 0x6000007C},
		ROM: ROM{
			FlashBeginWords: 5, SecurityInfo: true, SecurityInfoBytes: 20, SecureDownload: true,
			FlashBlock: 0x400, MemBlock: 0x1800,
			Banner:           []byte("ESP-ROM:esp32c3"),
			DownloadBanner:   [][]byte{[]byte("wait uart0 download"), []byte("wait usb download")},
			DownloadDisabled: []byte("Download boot modes disabled"),
			SecureBanner:     []byte("wait uart download(secure mode)"),
			ResetSettle:      500 * time.Millisecond,
		},
		Lockdown: Lockdown{
			Fuses: []Assignment{
				{"DIS_DOWNLOAD_MANUAL_ENCRYPT", 1},
				{"DIS_DOWNLOAD_ICACHE", 1},
				{"DIS_PAD_JTAG", 1},
				{"DIS_USB_JTAG", 1},
				{"DIS_DIRECT_BOOT", 1},
			},
			WriteProtect: []string{"DIS_ICACHE"},
			ReleaseFuse:  "ENABLE_SECURITY_DOWNLOAD", ClosedFuse: "DIS_DOWNLOAD_MODE",
		},
		SecureBoot: SecureBoot{
			Schemes:         []SchemeSupport{{Scheme: SignRSA3072}},
			MinimumRevision: 3, DigestSlots: 3, DigestIn: DigestInKeyBlocks, DigestBytes: 32,
			EnableField:           "SECURE_BOOT_EN",
			RevokeFields:          []string{"SECURE_BOOT_KEY_REVOKE0", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2"},
			AggressiveRevokeField: "SECURE_BOOT_AGGRESSIVE_REVOKE",
		},
		magic: []uint32{0x6921506F, 0x1B31506F, 0x4881606F, 0x4361606F},
		usbWatchdogs: []RegWrite{
			{0x600080A8, 0x50D83AA1, 0xFFFFFFFF},
			{0x60008090, 0, 0xFFFFFFFF},
			{0x600080A8, 0, 0xFFFFFFFF},
			{0x600080B0, 0x8F1D312A, 0xFFFFFFFF},
			{0x600080AC, 1 << 31, 1 << 31},
			{0x600080B0, 0, 0xFFFFFFFF},
		},
	}
}
