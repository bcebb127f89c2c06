// Package bootrom owns what a simulated chip does at a reset, from
// the straps to the application: the mask ROM, ESP-IDF's second-stage
// bootloader, and the lines that both print. [Boot] is a pure function of the
// straps, the eFuses that matter and the flash; what boot code burns and writes is
// in its output.
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
// # Secure Boot V2
//
// With the enabling fuse, the mask ROM reads the signature sector behind the
// bootloader, through decryption, before it loads anything, and the second stage
// does the same for each candidate app. A block counts when its magic, CRC, image
// digest, key and signature are right and its key's digest stands, readable, in a
// slot that is not revoked. A read-protected digest reads as zeros and matches no
// key. The ROM of silicon that lacks Secure Boot V2 ignores the fuse. With
// SECURE_BOOT_AGGRESSIVE_REVOKE the ROM burns the revoke bit of a slot whose key
// was right and whose signature was wrong; the second stage never does.
//
// Whether the second stage checks apps is a matter of its build ([Build]). A
// bootloader that runs although the fuse asks for a signature is signed, so it is
// taken for one that checks.
//
// # First boot
//
// A [Build] with Secure Boot or flash encryption burns by itself what the fuses
// lack, as ESP-IDF does in release configuration: [Output] lists it. With nothing
// to burn it says so in its log and changes nothing.
package bootrom

import (
	"io"

	"github.com/provisiond/provisiond/efuse/table"
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
	// block's words, each little-endian. 32 bytes; 24 on an ESP32 with the 3/4 coding
	// scheme; 64 for XTS-AES-256, KEY_1's block first; 16 for an ESP32-C2 that derives
	// its key. nil if no key block can be used: the cipher then gets a key of zeros.
	Key []byte

	// EFuses as boot code reads them; the zero value is a chip with nothing burned.
	// What stands above is not taken from them.
	EFuses EFuses
	// Build is how bootloader and app were configured.
	Build Build
	// NewKey is what the chip's random numbers give for a flash encryption key if
	// the bootloader makes one: 64 bytes.
	NewKey []byte

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

// EFuses is what the read registers show, read-protected parts as zeros.
type EFuses struct {
	Table *table.Table
	Words [][]uint32 // by block
}

// Build is how ESP-IDF's bootloader and the app were configured, as far as it
// changes what they burn and check. The zero value burns nothing.
type Build struct {
	// SecureBoot is CONFIG_SECURE_BOOT_V2_ENABLED with the vendor's defaults: apps
	// are checked, and the first boot burns digests, protections and the enabling fuse.
	SecureBoot bool
	// Scheme that it was built for; "" stands for the chip's first one.
	Scheme chip.SignatureScheme
	// FlashEncryption is CONFIG_SECURE_FLASH_ENC_ENABLED in release configuration:
	// the first boot makes a key, encrypts the flash in place and sets the counter.
	FlashEncryption bool
	// DownloadMode is what happens to the loader: when Secure Boot is turned on, and
	// at every start of an app.
	DownloadMode DownloadMode
	// AggressiveRevoke is CONFIG_SECURE_BOOT_ENABLE_AGGRESSIVE_KEY_REVOKE.
	AggressiveRevoke bool
	// AllowUnusedSlots is CONFIG_SECURE_BOOT_ALLOW_UNUSED_DIGEST_SLOTS.
	AllowUnusedSlots bool
}

// DownloadMode is what a build does to the serial loader at its first boot.
type DownloadMode uint8

// The choices of CONFIG_SECURE_UART_ROM_DL_MODE. SecureDownloadMode does not exist
// on the ESP32.
const (
	KeepDownloadMode DownloadMode = iota
	SecureDownloadMode
	DisableDownloadMode
)

// State is where a reset ends.
type State uint8

// The states after a reset.
const (
	Download       State = iota + 1 // the serial loader waits
	SecureDownload                  // the serial loader waits in Secure Download Mode
	Halted                          // the download strap was low and download is disabled
	Looping                         // a boot loop
	Running                         // the app runs
	Restarting                      // Output.Again: boot once more with what was changed
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
	case Restarting:
		return "restarting"
	}
	return "unknown"
}

// Output is what a reset leads to.
type Output struct {
	Text  []byte // printed once, at 115200 baud
	Loop  []byte // what a boot loop prints after it, again and again; nil if nothing
	State State

	App Partition // the app that runs; the zero value unless State is Running

	// Burns, Writes and SecureVersion are what boot code changed, to be done before
	// anything else. Again is the reason of the reset that follows, with State
	// Restarting: the caller makes the changes and boots again.
	Burns         []Burn
	Writes        []Write // in this order
	SecureVersion uint32  // what SECURE_VERSION is raised to; 0: nothing is burned
	Again         int
}

func (o Output) changes() bool { return len(o.Burns)+len(o.Writes) > 0 || o.SecureVersion != 0 }

// Burn is bits of an eFuse block that boot code burned. It lists none that was
// burned before and none that WR_DIS locks.
type Burn struct {
	Block int
	Words []uint32
}
