// Package bootrom owns what a simulated ESP32 or ESP32-C3 does at a reset, from
// the straps to the application: the mask ROM, ESP-IDF's second-stage
// bootloader, and the lines that both print. [Boot] is a pure function of the
// straps, the eFuses that matter and the flash.
//
// It is strict where silicon is strict. With an odd crypt counter the
// bootloader, the partition table, otadata and the app are read through
// decryption and through nothing else, so plaintext in an encrypted region
// fails as a wrong key does. The cipher here is written on its own, slow and
// plain, and shares no code with esp/flashcrypt: a mistake there shows as a
// unit that does not boot.
//
// # Who checks what
//
// The mask ROM (texts from the ROM transcripts and from public boot logs):
//   - the first byte of the bootloader, 0xE9. Otherwise "invalid header: 0x…"
//     with the first word, several times until a watchdog resets the chip. The
//     ESP32's first ROM (silicon before v3.0) says "flash read err, 1000".
//   - the XOR checksum over the segments, as it loads them wherever their
//     headers say.
//   - the appended SHA-256, in the ESP32-C3's ROM only, which reports a mismatch
//     and, without Secure Boot, says that it boots anyway.
//
// The second stage, as ESP-IDF's bootloader_support does it:
//   - its own header: the minimum chip revision, not the maximum.
//   - the partition table: row magics, its MD5 row, the end marker, no partition
//     beyond the flash.
//   - otadata (esp-facts D.4), then for each candidate app: magic byte, chip id,
//     minimum and maximum revision, segment count, segment lengths, load
//     addresses, congruence of mapped segments modulo the 64 KiB page, checksum,
//     length within the partition, appended SHA-256.
//
// # What is assumed
//
//   - A bootloader whose appended SHA-256 does not match, or that was built for
//     another chip, holds damaged or foreign code. Silicon runs it; here it
//     crashes and the watchdog resets the chip, with the ROM's usual lines and
//     nothing after them. This is stricter than silicon where only the hash
//     itself or an unused header byte is damaged.
//   - A segment that reaches beyond the flash hangs the ROM until the watchdog.
//   - ESP-IDF's bootloader takes the flash size from its own header, because
//     flashing tools patch it there.
//   - A partition table without MD5 row passes the bootloader, as in ESP-IDF.
//     The app then stops with "No MD5 found in partition table".
//   - The bootloader was built without rollback and anti-rollback unless [Input]
//     says otherwise, and then it writes nothing: where ESP-IDF would write otadata
//     (no factory app and an initial otadata), the flash stays as it is.
//
// # Updates
//
// A boot changes nothing itself. What the second stage writes to otadata (a new app
// becomes PENDING_VERIFY, an app that was not confirmed ABORTED; esp-facts D.4, G.4)
// stands in [Output].Writes, encrypted by the chip's key, and so does the secure
// version it burns. [OpenApps] is the app's own view, with what ESP-IDF's
// esp_ota_ops do in it: the image in a slot is checked through decryption, as at a
// boot, before otadata is written.
//
// Secure Boot is not simulated yet. Its place is [Input], for the digest and the
// enable bit, and the end of the ROM's image check.
package bootrom

import (
	"io"

	"github.com/provisiond/provisiond/esp/chip"
)

// DefaultPartitionTable is where ESP-IDF puts the partition table unless
// configured otherwise.
const DefaultPartitionTable = 0x8000

// Input is all that a boot depends on.
type Input struct {
	Model    chip.Model
	Revision chip.Revision

	Flash     io.ReaderAt // raw content, ciphertext if it holds ciphertext
	FlashSize uint32      // in bytes
	// PartitionTable is the flash address of the table; 0 stands for
	// DefaultPartitionTable.
	PartitionTable uint32

	FlashCryptCount  uint32 // flash encryption is on while its popcount is odd
	FlashCryptConfig uint32 // ESP32 only: which key bits the address tweaks
	// Key is the flash encryption key in the byte order of the eFuse array: the
	// block's words, each little-endian. 32 bytes, or 24 on an ESP32 with the 3/4
	// coding scheme. nil if no key block can be used: the cipher then gets a key
	// of zeros.
	Key []byte

	DownloadStrap    bool // GPIO0 (ESP32) or GPIO9 (ESP32-C3) low at the reset
	DownloadDisabled bool // UART_DOWNLOAD_DIS or DIS_DOWNLOAD_MODE
	SecureDownload   bool // ENABLE_SECURITY_DOWNLOAD; the ESP32 has no such mode

	// Rollback and AntiRollback say how bootloader and app were built
	// (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE, CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK;
	// the second needs the first).
	Rollback, AntiRollback bool
	SecureVersion          uint32 // the number of bits set in the SECURE_VERSION fuses

	ResetReason  int    // as the ROM prints it; 0 stands for 1, power-on
	AppPrints    string // what the app prints once it runs, without line end; nothing if empty
	UARTPrintOff bool   // the ROM prints nothing (UART_PRINT_CONTROL); the second stage and the app do
}

// State is where a reset ends.
type State uint8

// The states after a reset.
const (
	Download       State = iota + 1 // the serial loader waits
	SecureDownload                  // the serial loader waits in Secure Download Mode
	Halted                          // the download strap was low and download is disabled
	Looping                         // a boot loop
	Running                         // the app runs
)

// String gives the state in words.
func (s State) String() string {
	switch s {
	case Download:
		return "download"
	case SecureDownload:
		return "secure download"
	case Halted:
		return "halted"
	case Looping:
		return "boot loop"
	case Running:
		return "running"
	}
	return "unknown"
}

// Output is what a reset leads to.
type Output struct {
	Text  []byte // printed once, at 115200 baud
	Loop  []byte // what a boot loop prints after it, again and again; nil if nothing
	State State

	App           Partition // the app that runs; the zero value unless State is Running
	Writes        []Write   // what the second stage writes to the flash, in this order
	SecureVersion uint32    // what SECURE_VERSION is raised to; 0: nothing is burned
}
