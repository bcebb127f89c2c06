// Package silicon owns what the simulation must know of a chip beyond chip.Model
// and the eFuse table: registers and factory fuses, what the mask ROM prints and
// checks, where code may load to, and what ESP-IDF's bootloader burns at its
// first boot. It is data, one file per chip; the behaviour is in espsim and
// espsim/bootrom. A new chip of the family is one more file.
//
// Texts are those of the ROM transcripts and of public boot logs. Where no
// public log shows a line, the chip's file says so.
package silicon

import (
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
)

// Silicon describes one chip.
type Silicon struct {
	Name     string        // as chip.Model has it
	Revision chip.Revision // of a simulated chip unless somebody asks for another one
	Crystals []int         // MHz that boards have; the first one unless somebody asks for another
	// ROMCrystal is the crystal in MHz that the ROM divides for CHANGE_BAUDRATE, by
	// revision; nil: the one that is there (esp-facts A.6).
	ROMCrystal func(chip.Revision) int
	// ROMCrystalReg shows it in bits 30:24; 0: no register does.
	ROMCrystalReg uint32
	// FixedRate: what is printed before the first SYNC comes at the rate for the
	// crystal that the ROM takes for granted.
	FixedRate bool

	Fixed map[uint32]uint32 // registers that always read the same
	Reset map[uint32]uint32 // registers that keep what is written, with their value after a reset
	// Deaf is an address whose read hangs the loader; 0: there is none.
	Deaf uint32
	// Timing must stand in the eFuse controller at a burn (esp-facts B.4), by the
	// crystal; nil: what stands there after a reset is right. With TimingOrReset that
	// is right too.
	Timing        func(crystal int) []chip.RegWrite
	TimingOrReset bool
	Factory       [][]uint32 // data words of the blocks as they leave the factory, MAC and revision apart
	MACCRC        string     // field for a CRC-8 over the MAC, "" if the chip has none
	// RevisionFields gives the fuses of a silicon revision; nil: the fields are
	// called WAFER_VERSION_ as on all newer chips.
	RevisionFields func(chip.Revision) map[string]uint64
	Majors         chip.Revision // highest major revision that exists; 0: the fuses' width says it

	DisableDownload string // fuse that closes the loader
	SecureDownload  string // fuse of Secure Download Mode, "" if the chip has none
	PrintControl    string // fuse whose value 3 silences the ROM, "" if the chip has none
	// ManualEncrypt is the fuse that forbids the loader to encrypt what it writes; ""
	// if its loader cannot do that at all.
	ManualEncrypt string
	// CrashPair: with both fuses burned the loader crashes (esp-facts H 12).
	CrashPair [2]string
	// WatchesFuses: the loader looks at the first two fuses after each command and
	// resets the chip when one has come (esp-facts B.5 and the transcript).
	WatchesFuses  bool
	SoftwareReset int  // reset reason of that reset
	USBSerial     bool // has a USB-Serial-JTAG unit
	USBReset      int  // reset reason of a reset by it
	USBDownload   string
	Watchdog      Watchdog
	FlashPower    FlashPower

	SecurityFlags map[string]int // GET_SECURITY_INFO: fuse to flag bit (esp-facts A.4)
	SecuritySpare byte           // its byte 11
	API           uint32         // its API version

	ROM       func(chip.Revision) ROM
	Memory    Memory
	Pages     []int // bytes of an MMU page that an app can be built for; the first unless it says otherwise
	FirstBoot FirstBoot
}

// Watchdog is the RTC watchdog as far as a host uses it: to reset the chip
// (esp-facts A.9). The zero value is a chip where that does not work.
type Watchdog struct{ Config, Timeout, Protect uint32 }

// Values of the watchdog's registers.
const (
	WatchdogKey     = 0x50D83AA1
	WatchdogEnable  = 1 << 31
	WatchdogReset   = 16 // reset reason: the RTC domain too
	watchdogStage0  = 28
	watchdogRTC     = 5 // action of stage 0
	watchdogActions = 7
)

// Resets reports whether a configuration makes the watchdog reset the chip.
func (Watchdog) Resets(config uint32) bool {
	return config&WatchdogEnable != 0 && config>>watchdogStage0&watchdogActions == watchdogRTC
}

// FlashPower says which silicon's loader leaves the flash without supply, and what
// switches it on (esp-facts A.9, H 10). The zero value is a chip whose flash is on.
type FlashPower struct {
	Off   func(chip.Revision) bool
	Force uint32 // register whose bits 1:0 force the supply on
	LDO   uint32 // register whose bit 7 enables the regulator's output
	// ByROM is the fuse that makes the loader of ByROMSince and later do it; then a
	// second entry into the loader with the bits still forced hangs (ROM-816).
	ByROM      string
	ByROMSince chip.Revision
}

// ROM is what a mask ROM prints, with the traits that differ.
type ROM struct {
	Banner       string
	Reasons      map[int]string // names of the reset reasons
	SavedPC      string         // printed after a reset that was not power-on; empty: never
	FlashStrap   string
	UARTStrap    string
	Waiting      string
	WaitingSDM   string // empty: the chip has no Secure Download Mode
	Disabled     string
	DisabledFrom chip.Revision // silicon before it ignores the fuse that closes the loader
	BadHeader    string        // with the header word; or without, for the first ESP32 ROM
	HeaderAgain  bool          // reads a bad header again before the watchdog
	Config       string        // before the "mode:" line, with the WP pin; empty: nothing
	Mode         string        // with flash mode and clock divider
	Load         string        // with address and length
	Checksum     string        // with calculated and stored checksum
	ChecksHash   bool
	Watchdog     int // reset reason of the watchdog that ends a boot which got stuck
	SecureBoot   SecureBootROM
}

// SecureBootROM is what the mask ROM prints about Secure Boot V2.
type SecureBootROM struct {
	Enabled  string // before the check; %s stands for the slots with a key, if it is there
	Verdict  string // of a check: with "succeeded" or "failed"
	ByScheme bool   // the verdict begins with the signature's algorithm
	Failed   string // after a failed one
	BadCRC   string // with the block
	Broken   bool   // the check always fails (errata ROM-764)
}

// Memory says where images may load to, mapped through the cache or copied to RAM
// (ESP-IDF components/soc/<chip>/include/soc/soc.h).
type Memory struct{ Mapped, Loaded []Region }

// Region is a range of load addresses.
type Region struct{ Low, High uint32 }

// Holds reports whether size bytes at addr are inside.
func (r Region) Holds(addr, size uint32) bool {
	return addr >= r.Low && uint64(addr)+uint64(size) <= uint64(r.High)
}

// Within reports whether one region of the list holds size bytes at addr.
func Within(list []Region, addr, size uint32) bool {
	for _, r := range list {
		if r.Holds(addr, size) {
			return true
		}
	}
	return false
}

// FirstBoot lists what ESP-IDF's bootloader burns by itself (esp-facts F.3, E.4;
// ESP-IDF components/bootloader_support/src/<chip>/{secure_boot,flash_encryption}_
// secure_features.c). What every chip has is in the code: keys, digests, counter,
// download mode, the enabling fuse. A field that silicon lacks burns nothing.
type FirstBoot struct {
	SecureBoot []chip.Assignment
	Encryption []chip.Assignment
	// Release lists the fuses without which ESP-IDF does not call the mode a
	// release mode, the counter apart (esp-facts F.1).
	Release []string
}

// Of finds a chip's description.
func Of(name string) (*Silicon, error) {
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no simulation of %s in this build", name)
}

var all = []*Silicon{&esp32, &esp32s2, &esp32c3, &esp32s3, &esp32c2, &esp32c6, &esp32h2, &esp32p4, &esp32c5, &esp32c61}
