// Package espsim owns the simulated board: an ESP32-family chip behind the serial
// protocol of its mask ROM, its eFuses, its flash, and the adapter whose DTR and
// RTS reset it. It promises to be strict where silicon is strict, so that what
// passes here has a chance on a board, and to share no code with the client: it
// imports none of esp/rom, esp/slip and efuse/coding, and frames, checks and
// decodes for itself.
//
// A Chip is one sequential machine under one lock. It has no goroutine: a Write
// runs the chip on the bytes and comes back when the chip has answered; a Read
// waits for answers. Timers stand for what takes time on a board: EN's rise, boot
// loops, and with Options.Pace every byte. So it works inside testing/synctest.
//
// # The loader
//
// Replies are those of the ROM transcripts, byte for byte, leftovers included:
// the reply is one buffer, in which a command fills in only what it has to say.
// Success clears the first status byte and READ_REG the second; a refusal sets
// them to 01 05 and leaves the opcode of the last accepted command. A SYNC's reply
// comes eight times, so a refusal right after it does too. Until the first SYNC
// after a reset the loader hears nothing: it measures the rate on it. What the
// recordings leave open is chosen so that a careless client fails:
//
//   - flash commands before SPI_ATTACH fail with 01 06, as those beyond the size of
//     SPI_SET_PARAMS do (2 MB until then).
//   - FLASH_DATA without FLASH_BEGIN, or with a number or address that FLASH_BEGIN
//     did not announce, fails with 01 06.
//   - a FLASH_BEGIN whose encrypted flag is set lets the chip encrypt what is written,
//     with the key that its fuses hold, until DIS_DOWNLOAD_MANUAL_ENCRYPT forbids it:
//     then it fails with 01 64. The loader of the ESP32 knows no such flag.
//   - MEM_END with an entry ends the loader: there is no processor here. The chip
//     says so in one line of text and is silent. Without an entry the loader stays.
//   - two ends of the line at rates more than three per cent apart read garbage.
//
// # The chips
//
// All ten of the family, from package silicon and from chip.Model. What of their
// errata and oddities is here:
//
//   - the ESP32-C2 takes its crystal for one of 40 MHz, the ESP32-C5 for what a
//     register says: with another one CHANGE_BAUDRATE gives another rate, and on the C2
//     so does the text after a reset.
//   - the ESP32-P4's loader leaves the flash off on v3.1 and v3.2 until registers switch
//     it on. With DOWNLOAD_MODE_XPD_ON v3.2 does it itself, and hangs when the loader is
//     entered again with the supply still forced (ROM-816); v3.1 does not (ROM-770). On
//     v3.0 no signature verifies (ROM-764). Reading 0x40001000 hangs its loader.
//   - the ESP32-S3's loader crashes with DIS_USB_JTAG and DIS_USB_SERIAL_JTAG burned.
//   - the last key block serves for no XTS key on C3, S3, C6 and H2. Keys of both
//     lengths at once are taken for no key.
//   - the RTC watchdog resets the chip when a host arms it, on the chips where that
//     works, and samples the strap. It does not bite by itself.
//   - in Secure Download Mode the flash beyond 16 MB is its beginning.
//
// # The eFuses
//
// Fuses only go from 0 to 1. A burn works as esp-facts B.1-B.6 say: from PGM_DATA
// and CHECK_VALUE, or on the ESP32 from the WDATA of all blocks at once; only with
// the right CONF; only what WR_DIS, as loaded, leaves open. With wrong timing
// registers a quarter of the bits is missed. Parity is taken as the host gives it
// and checked when the block is loaded: up to six wrong bytes are mended and
// counted, more set the fail bit and give the data as they stand. The read
// registers change at a read command or a reset only. A command takes a few reads
// of CMD, or a delay of a millisecond in WRITE_REG; while it runs the controller
// takes no writes. On the newer controllers a read command shows idle once before
// it starts, which is why the vendor's tool wants to see it twice.
//
// In BLOCK0 of the newer chips WR_DIS exists once and the other words four times
// (TRM); how the copies vote is not published: here two of four make a 1.
//
// # Updates
//
// [Chip.App] is the app that runs, with the flash as its code sees it and ESP-IDF's
// functions for updates: the chip's own key decides whether an image in a slot is
// one. The second stage keeps otadata as ESP-IDF's does with Options.Rollback.
//
// # Secure Boot and the first boot
//
// ROM and bootloader verify signatures once the fuses ask for it (package bootrom).
// Options.Build is a bootloader that was built with Secure Boot or flash encryption
// in release configuration: at a boot it burns by itself what the fuses lack.
// BootBurns counts that, so a test sees whether anything was left to burn.
//
// # Faults
//
// A specification is a list of name=value, with commas between:
//
//	noise=P           a byte is damaged with probability P (0 to 1), either way
//	drop=P            a byte is lost with probability P, either way
//	window=W          noise and drop act in flash (from an accepted FLASH_*,
//	                  FLASH_DEFL_* or SPI_FLASH_MD5 to the next other accepted
//	                  command) or burn (from the first write to the eFuse
//	                  controller to the next command that is no register access);
//	                  without it always
//	refuse=OP[@N][:S] the Nth request (each, without @N) with opcode OP (hex) is
//	                  refused with status S, four hex digits; 0105, which comes as
//	                  the ROM's own refusals do, if absent. May be repeated
//	lose=OP[@N]       the Nth reply with that opcode is lost. May be repeated
//	power=N           power fails at the Nth register write. If that starts a burn,
//	                  a random half of the bits is burned; else it has no effect
//	power-data=N      power fails at the Nth FLASH_DATA or FLASH_DEFL_DATA
//	unplug=N          the port goes at the Nth byte from the host
//	unplug-write=N    the port goes after the Nth register write
//	weak=P            each fuse's first burn fails with probability P
//	stuck=B.I         bit I of block B never burns. May be repeated
//	ignore-reset=N    the first N resets over lines or control do nothing
//	seed=S            of all that is random here
//
// For example: noise=1e-4,window=flash,refuse=03@5:0107,seed=7. Numbers count from
// 1, from the making of the chip. Power stays off until Power(true), the port away
// until Plug and Reopen.
package espsim
