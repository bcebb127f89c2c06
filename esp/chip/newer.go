package chip

import "time"

// What the chips after the ESP32 share. A model file says how its chip differs;
// nothing here knows a chip by its name.

// rsLayout is where a controller with RS coding keeps its registers, as offsets
// from its base. 0 in rdTim and wrTim0 means that nothing writes them.
type rsLayout struct {
	clk, conf, status, cmd, dac    uint32
	rdTim, wrTim0, wrTim1, wrTim2  uint32
	repeatErr, rsErr0, rsErr1, key uint32
	mac                            uint32
	repeatWords                    int
}

// commonRS is the layout that most of them have (esp-facts B.1: C3, C6, H2, P4).
func commonRS() rsLayout {
	return rsLayout{
		clk: 0x1C8, conf: 0x1CC, status: 0x1D0, cmd: 0x1D4, dac: 0x1E8, wrTim1: 0x1F0, wrTim2: 0x1F4,
		repeatErr: 0x17C, repeatWords: 5, rsErr0: 0x1C0, rsErr1: 0x1C4, key: 0x9C, mac: 0x44,
	}
}

// rsController makes the controller at base. It has six key blocks and a counter of
// three bits; the model changes what is otherwise.
func rsController(base uint32, l rsLayout) EFuse {
	at := func(off uint32) uint32 {
		if off == 0 {
			return 0
		}
		return base + off
	}
	return EFuse{
		Kind: EFuseRS, Base: base, PgmData: base, CheckValue: base + 0x20,
		Clk: base + l.clk, Conf: base + l.conf, Status: base + l.status, Cmd: base + l.cmd, DACConf: base + l.dac,
		RdTimConf: at(l.rdTim), WrTimConf0: at(l.wrTim0), WrTimConf1: base + l.wrTim1, WrTimConf2: base + l.wrTim2,
		RepeatErr: base + l.repeatErr, RepeatErrWords: l.repeatWords,
		RSErr:  [2]uint32{base + l.rsErr0, at(l.rsErr1)},
		KeyOff: l.key, MACOff: l.mac, KeyBlocks: 6,
		FlashCryptCount: "SPI_BOOT_CRYPT_CNT", FlashCryptCountFull: 7,
	}
}

// Parts of the timing registers (TRM "eFuse Controller"; ESP-IDF efuse_reg.h).
const (
	dacNum    = 0x1FE00  // DAC_CONF 16:9
	dacClkDiv = 0xFF     // DAC_CONF 7:0
	pwrOnNum  = 0xFFFF00 // WR_TIM_CONF1 23:8
	pwrOffNum = 0xFFFF   // WR_TIM_CONF2 15:0
)

// dacTiming is the timing that most chips are given, whatever their crystal
// (esp-facts B.4).
func dacTiming(e EFuse) []RegWrite {
	return []RegWrite{
		{Addr: e.DACConf, Value: 0xFF << 9, Mask: dacNum},
		{Addr: e.DACConf, Value: 0x28, Mask: dacClkDiv},
		{Addr: e.WrTimConf1, Value: 0x3000 << 8, Mask: pwrOnNum},
		{Addr: e.WrTimConf2, Value: 0x190, Mask: pwrOffNum},
	}
}

// sameTiming is one timing for every crystal that boards can have.
func sameTiming(writes []RegWrite, crystals ...int) []Timing {
	var out []Timing
	for _, c := range crystals {
		out = append(out, Timing{Crystal: c, Writes: writes})
	}
	return out
}

// spiMem is the SPI1 controller of the chips after the ESP32: one layout at
// different bases (ESP-IDF soc/<chip>/spi_mem_reg.h, spi1_mem_reg.h).
func spiMem(base uint32) SPI {
	return SPI{
		Cmd: base, Usr: base + 0x18, Usr1: base + 0x1C, Usr2: base + 0x20,
		MOSIDLen: base + 0x24, MISODLen: base + 0x28, W0: base + 0x58,
	}
}

// newerROM is the loader of the chips after the ESP32. Its texts were seen on the
// ESP32-C3 (transcripts); that the others print the same for a closed and for a
// restricted download mode is taken from there and not certain. What every reset
// prints is "ESP-ROM:" and the name that the maker of the ROM gave the chip.
func newerROM(banner string, crystals ...int) ROM {
	return ROM{
		FlashBeginWords: 5, SecurityInfo: true, SecurityInfoBytes: 20, SecureDownload: true,
		FlashBlock: 0x400, MemBlock: 0x1800, Crystals: crystals,
		Banner:           []byte("ESP-ROM:" + banner),
		DownloadBanner:   [][]byte{[]byte("wait uart0 download"), []byte("wait usb download"), []byte("waiting for download")},
		DownloadDisabled: []byte("Download boot modes disabled"),
		SecureBanner:     []byte("wait uart download(secure mode)"),
		ResetSettle:      500 * time.Millisecond,
	}
}

// Keys that unlock the watchdogs' registers (esp-facts A.9).
const (
	wdtKey    = 0x50D83AA1
	swdKeyRTC = 0x8F1D312A // of the super watchdog in the RTC domain (S3, C3)
)

// watchdogs is where a chip's RTC watchdog and super watchdog are.
type watchdogs struct {
	cfg0, cfg1, protect     uint32
	swd, swdProtect, swdKey uint32 // 0: it has none
	swdFeed                 uint32 // the bit that makes it feed itself
}

// rtcWatchdogs are those of the chips with an RTC domain; the offsets of the two
// parts differ from chip to chip.
func rtcWatchdogs(rtc, cfg0, protect, swd uint32) watchdogs {
	return watchdogs{
		cfg0: rtc + cfg0, cfg1: rtc + cfg0 + 4, protect: rtc + protect,
		swd: rtc + swd, swdProtect: rtc + swd + 4, swdKey: swdKeyRTC, swdFeed: 1 << 31,
	}
}

// lpWatchdogs are those of the chips with a low-power domain.
func lpWatchdogs(base, protect uint32) watchdogs {
	return watchdogs{
		cfg0: base, cfg1: base + 4, protect: base + protect,
		swd: base + protect + 4, swdProtect: base + protect + 8, swdKey: wdtKey, swdFeed: 1 << 18,
	}
}

func set(addr, value uint32) RegWrite { return RegWrite{Addr: addr, Value: value, Mask: 0xFFFFFFFF} }

// stop stops both.
func (w watchdogs) stop() []RegWrite {
	return []RegWrite{
		set(w.protect, wdtKey), set(w.cfg0, 0), set(w.protect, 0),
		set(w.swdProtect, w.swdKey),
		{Addr: w.swd, Value: w.swdFeed, Mask: w.swdFeed},
		set(w.swdProtect, 0),
	}
}

// reset lets the watchdog reset the chip in a moment.
func (w watchdogs) reset() []RegWrite {
	return []RegWrite{
		set(w.protect, wdtKey), set(w.cfg1, 2000), set(w.cfg0, 1<<31|5<<28|1<<8|2), set(w.protect, 0),
	}
}

// on lists fuses that are burned to 1.
func on(fields ...string) []Assignment {
	var out []Assignment
	for _, f := range fields {
		out = append(out, Assignment{f, 1})
	}
	return out
}

// newerLockdown is the lockdown of the chips after the ESP32: the fuses of F.3 in
// the order of burning, the counter and the last fuse apart.
func newerLockdown(protect []string, fuses ...string) Lockdown {
	return Lockdown{
		Fuses: on(fuses...), WriteProtect: protect,
		ReleaseFuse: "ENABLE_SECURITY_DOWNLOAD", ClosedFuse: "DIS_DOWNLOAD_MODE",
	}
}

// newerSecureBoot is Secure Boot V2 with three digests in key blocks.
func newerSecureBoot(schemes ...SchemeSupport) SecureBoot {
	return SecureBoot{
		Schemes: schemes, DigestSlots: 3, DigestIn: DigestInKeyBlocks, DigestBytes: 32,
		EnableField:           "SECURE_BOOT_EN",
		RevokeFields:          []string{"SECURE_BOOT_KEY_REVOKE0", "SECURE_BOOT_KEY_REVOKE1", "SECURE_BOOT_KEY_REVOKE2"},
		AggressiveRevokeField: "SECURE_BOOT_AGGRESSIVE_REVOKE",
	}
}

// Limits of the flash. The cache of some chips maps more than 16 MiB (ESP-IDF
// SOC_SPI_MEM_SUPPORT_CACHE_32BIT_ADDR_MAP); image headers can say 128 MiB (esp-facts
// D.2). No ROM's loader reaches beyond 16 MiB (A.11, H 11).
const (
	flash16M  = 16 << 20
	flash128M = 128 << 20
)
