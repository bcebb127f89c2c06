// Package chip owns what is fixed for a chip family member: names, ids,
// register addresses and the capabilities that decide how it is provisioned.
//
// A Model is a value. Every function hands out a copy, so no caller can change
// what another one sees. A new chip is one more file that declares its Model.
package chip

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ID is the chip id of image headers and of GET_SECURITY_INFO
// (ESP-IDF: bootloader_support/include/esp_app_format.h).
type ID uint16

// Chip ids of the family (esp-facts A.5).
const (
	IDESP32    ID = 0
	IDESP32S2  ID = 2
	IDESP32C3  ID = 5
	IDESP32S3  ID = 9
	IDESP32C2  ID = 12
	IDESP32C6  ID = 13
	IDESP32H2  ID = 16
	IDESP32P4  ID = 18
	IDESP32C61 ID = 20
	IDESP32C5  ID = 23
)

// Revision is a silicon revision as ESP-IDF counts it: major*100 + minor.
type Revision uint16

// String gives the vendor's form, for example v0.3.
func (r Revision) String() string { return fmt.Sprintf("v%d.%d", r/100, r%100) }

// ParseRevision reads "0.3" or "v0.3".
func ParseRevision(s string) (Revision, error) {
	major, minor, ok := strings.Cut(strings.TrimPrefix(s, "v"), ".")
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 8)
	if !ok || errA != nil || errB != nil || a > 99 || b > 99 {
		return 0, fmt.Errorf("%q is not a chip revision: write major.minor, for example 0.3", s)
	}
	return Revision(a*100 + b), nil
}

// MAC is a base MAC address, the identity of a unit.
type MAC [6]byte

// String gives the usual aa:bb:cc:dd:ee:ff form.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// LocallyAdministered reports the U/L bit of IEEE 802: such addresses belong to
// no vendor, so no real ESP chip carries one from the factory. Simulated units do.
func (m MAC) LocallyAdministered() bool { return m[0]&0x02 != 0 }

// ParseMAC reads the form that String writes, and nothing else: MACs become
// paths in key stores.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	parts := strings.Split(s, ":")
	if len(parts) != 6 {
		return MAC{}, errMAC(s)
	}
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 || p != strings.ToLower(p) {
			return MAC{}, errMAC(s)
		}
		m[i] = byte(v)
	}
	return m, nil
}

func errMAC(s string) error {
	return fmt.Errorf("%q is not a MAC address: write it as 24:0a:c4:00:00:01", s)
}

// MarshalText makes a MAC a string in JSON.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(b []byte) (err error) { *m, err = ParseMAC(string(b)); return err }

// Scheme is a flash encryption algorithm together with its key length.
type Scheme string

// Flash encryption schemes (esp-facts C.1, C.2).
const (
	SchemeESP32      Scheme = "esp32"           // AES-256 with an address tweak, ESP32 only
	SchemeXTS128     Scheme = "xts-128"         // XTS-AES-128, 32-byte key
	SchemeXTS256     Scheme = "xts-256"         // XTS-AES-256, 64-byte key in two blocks
	SchemeXTSDerived Scheme = "xts-128-derived" // ESP32-C2: 16 eFuse bytes, SHA-256 makes the key
)

// EFuseKind says which of the two controller generations a chip has.
type EFuseKind uint8

// The eFuse controller generations (esp-facts B.1, B.5).
const (
	EFuseESP32 EFuseKind = iota + 1 // own write registers per block, schemes none and 3/4
	EFuseRS                         // PGM_DATA, RS(44,32) and a 4-copy BLOCK0
)

// EFuse holds the absolute addresses of the eFuse controller's registers.
// Registers that a controller lacks are 0.
type EFuse struct {
	Kind                 EFuseKind
	Base                 uint32
	PgmData              uint32 // PGM_DATA0 (EFuseRS)
	CheckValue           uint32 // CHECK_VALUE0 (EFuseRS)
	Clk, Conf, Cmd       uint32
	Status               uint32
	DACConf              uint32
	RdTimConf            uint32 // 0 where nothing writes it
	WrTimConf0           uint32 // 0 where nothing writes it
	WrTimConf1           uint32
	WrTimConf2           uint32
	Timing               []Timing // by crystal; empty: the reset defaults are right
	RepeatErr            uint32   // REPEAT_ERR0 (EFuseRS)
	RepeatErrWords       int
	RSErr                [2]uint32  // RS_ERR0, RS_ERR1; the second is 0 where one holds all blocks
	RSFailShifted        bool       // C3: fail bit of block n sits in the nibble above (esp-facts B.6)
	DecStatus            uint32     // DEC_STATUS (EFuseESP32)
	KeyOff               uint32     // read registers of the first key block, offset from Base (EFuseRS)
	MACOff               uint32     // the word of the MAC's last four bytes, offset from Base
	KeyBlocks            int        // how many key blocks there are
	NoXTSInLastKey       bool       // KEY5 cannot hold an XTS key (C3, S3, C6, H2)
	NeverTogether        [][]string // fuses that break the chip's download mode when all of a list are set
	FlashCryptCount      string     // field name of the crypt counter
	FlashCryptCountFull  uint32     // its value with every bit set
	FirstByBlockRevision Revision   // S3: silicon with this block revision and minor bits 2:0 zero is v0.0
	RevisionBit2Register uint32     // ESP32: APB register whose bit 31 is the third revision bit
}

// Timing is what has to stand in the eFuse controller while it burns (esp-facts
// B.4). Wrong timing burns badly.
type Timing struct {
	Crystal int // MHz
	Writes  []RegWrite
}

// SPI holds the absolute addresses of the SPI1 registers that a flash-id command uses.
type SPI struct {
	Cmd, Usr, Usr1, Usr2, MOSIDLen, MISODLen, W0 uint32
}

// RegWrite is one register write of a fixed sequence: the bits of Mask get their
// value from Value, the others stay.
type RegWrite struct {
	Addr, Value, Mask uint32
	Before            time.Duration // how long the loader waits before it writes
}

// UART holds the registers that the baud rate logic needs.
type UART struct {
	ClkDiv uint32 // UART_CLKDIV of UART0: bits 19:0 are the crystal's frequency divided by the rate
	Date   uint32 // UART_DATE: the target of the dummy write that only delays (esp-facts A.2)
}

// ROM says how the mask ROM's loader differs from chip to chip.
type ROM struct {
	FlashBeginWords   int    // 4 (ESP32) or 5: the fifth is the encrypted flag
	SecurityInfo      bool   // GET_SECURITY_INFO is known
	SecureDownload    bool   // has a Secure Download Mode
	BaudCrystalFixed  bool   // ESP32: CHANGE_BAUDRATE divides by the crystal the ROM worked out
	ApproxFreqReg     uint32 // ESP32: register with the ROM's crystal estimate
	BaudCrystalMHz    int    // C2: the crystal that CHANGE_BAUDRATE takes for granted
	BaudCrystalReg    uint32 // C5: register with the crystal that it takes for granted, in MHz in bits 30:24
	BaudFixedInSDM    bool   // C2, C5: what the rate depends on cannot be read in Secure Download Mode
	Crystals          []int  // MHz, what boards can have
	FlashBlock        int    // bytes in a FLASH_DATA block
	MemBlock          int    // bytes in a MEM_DATA block
	USBBlock          int    // bytes in either, over the chip's USB-OTG; 0: it has none
	Stub              Stub
	Banner            []byte        // first bytes of what the ROM prints after every reset
	DownloadBanner    [][]byte      // printed when the loader waits
	DownloadDisabled  []byte        // printed instead when the download mode is closed
	SecureBanner      []byte        // printed by the loader in Secure Download Mode
	ResetSettle       time.Duration // what a reset may take until the banner is out
	SecurityInfoBytes int           // length of its reply data
}

// Stub says where a flasher stub can run (esp-facts A.10). It never runs in Secure
// Download Mode.
type Stub struct {
	// MinimumRevision: older silicon cannot run one.
	MinimumRevision Revision
	// NeverWithSecureBoot: the ROM does not start it once Secure Boot is on.
	NeverWithSecureBoot bool
	// ReadHook, with Secure Boot on, is the word in RAM through which the ROM calls
	// its flash read function: the one way to start a stub there. 0 on chips that
	// start it as always.
	ReadHook uint32
	// OlderBelow and OlderFile: silicon before that revision takes a stub of its own,
	// in a file of this name. Otherwise the file has the chip's name.
	OlderBelow Revision
	OlderFile  string
}

// Assignment is a field and the value that provisioning gives it.
type Assignment struct {
	Field string
	Value uint32
}

// Lockdown lists the fuses of each provisioning profile, by the vendor's field
// names (esp-facts F.2-F.5).
type Lockdown struct {
	Enable        []Assignment // what encryption needs in every profile, the counter apart
	Fuses         []Assignment // what release mode needs, Enable, the counter and write protections apart
	WriteProtect  []string     // fields whose WR_DIS bit is set after the boot check
	ReleaseFuse   string       // the last fuse of profile release
	ClosedFuse    string       // the last fuse of profile closed
	ClosedMinimum Revision     // silicon before it ignores ClosedFuse

	// ReleaseProtect lists fields whose WR_DIS bit is set too where the loader does
	// not stay open, once everything that the bit locks is final (esp-facts F.1, F.2).
	ReleaseProtect []string
	// ReleaseTrap names the errata that make the vendor's Secure Download Mode a trap
	// on this silicon, so that ReleaseFuse needs somebody's consent; empty: there is none.
	ReleaseTrap string
}

// Older is a range of early silicon and what it lacks.
type Older struct {
	Below Revision // the first revision that has all
	Lacks []string // fields of the eFuse table
}

// Model describes one chip.
type Model struct {
	Name             string // as recipes and esptool write it: esp32c3
	Title            string // as people write it: ESP32-C3
	ID               ID
	BootloaderOffset uint32
	EncryptedAlign   uint32 // alignment of an encrypted region
	MaxFlash         uint32 // bytes of flash that a unit can have
	MaxFlashROM      uint32 // what the ROM's loader reaches of it; beyond, addresses wrap, and a stub is needed (esp-facts A.11)
	Scheme           Scheme // of flash encryption, if a recipe names none
	Schemes          []Scheme
	EFuse            EFuse
	SPI              SPI
	UART             UART
	ROM              ROM
	Lockdown         Lockdown
	SecureBoot       SecureBoot
	// FactorySet names security fields that leave the vendor's factory burned,
	// so finding them set does not mean that somebody has provisioned the chip.
	FactorySet []string
	// Older describes early silicon, the oldest last; see At.
	Older         []Older
	magic         []uint32   // values at 0x40001000
	usbWatchdogs  []RegWrite // written after connecting over USB-JTAG-Serial
	watchdogReset []RegWrite // reset the chip by its watchdog
	beforeRun     []RegWrite // before a reset into the application
	flashPower    []PowerCase
}

// At is the model as silicon of a revision has it: what an early revision lacks is
// gone from its lists of fuses. The model that ByName gives is that of the newest.
func (m Model) At(rev Revision) Model {
	for _, o := range m.Older {
		if rev < o.Below {
			m.without(o.Lacks)
		}
	}
	return m
}

// without takes fields out of every list of fuses.
func (m *Model) without(fields []string) {
	lacks := func(f string) bool { return slices.Contains(fields, f) }
	drop := func(list []Assignment) []Assignment {
		return slices.DeleteFunc(slices.Clone(list), func(a Assignment) bool { return lacks(a.Field) })
	}
	m.Lockdown.Enable, m.Lockdown.Fuses = drop(m.Lockdown.Enable), drop(m.Lockdown.Fuses)
	m.Lockdown.WriteProtect = slices.DeleteFunc(slices.Clone(m.Lockdown.WriteProtect), lacks)
	m.Lockdown.ReleaseProtect = slices.DeleteFunc(slices.Clone(m.Lockdown.ReleaseProtect), lacks)
	if lacks(m.SecureBoot.SHA384Field) {
		m.SecureBoot.SHA384Field = ""
	}
}

// USBWatchdogs gives the writes that stop the watchdogs when the chip is
// reached over USB-JTAG-Serial (esp-facts A.9). They are not for Secure Download Mode.
func (m Model) USBWatchdogs() []RegWrite { return slices.Clone(m.usbWatchdogs) }

// WatchdogReset gives the writes that make the watchdog reset the chip, where that
// works (esp-facts A.9): the one way out of the loader over a USB of the chip's own
// while the download strap is low. Empty on the others.
func (m Model) WatchdogReset() []RegWrite { return slices.Clone(m.watchdogReset) }

// BeforeRun gives the writes that clear what would bring the chip into its loader
// again on the next reset (esp-facts A.9).
func (m Model) BeforeRun() []RegWrite { return slices.Clone(m.beforeRun) }

// HasMagic reports whether v may stand at 0x40001000 of this chip.
func (m Model) HasMagic(v uint32) bool { return slices.Contains(m.magic, v) }

// StubFile is what esptool calls the file with the stub for silicon of a revision.
func (m Model) StubFile(rev Revision) string {
	if rev < m.ROM.Stub.OlderBelow {
		return m.ROM.Stub.OlderFile
	}
	return m.Name + ".json"
}

// SensitiveEFuse reports whether a register can hold key bytes: a key block's
// read registers or the programming registers. Traces redact these.
func (m Model) SensitiveEFuse(addr uint32) bool {
	off := addr - m.EFuse.Base
	if addr < m.EFuse.Base || off > 0x200 {
		return false
	}
	if m.EFuse.Kind == EFuseESP32 {
		return off >= 0x38 && off < 0xF8 // BLOCK1..3 read and write registers
	}
	return off < 0x2C || (off >= m.EFuse.KeyOff && off < m.EFuse.KeyOff+uint32(m.EFuse.KeyBlocks)*0x20)
}

// keyBytes lists the key lengths of each scheme.
var keyBytes = map[Scheme][]int{
	SchemeESP32: {32, 24}, SchemeXTS128: {32}, SchemeXTS256: {64}, SchemeXTSDerived: {16},
}

// SchemeFor gives the scheme that the chip uses with a key of n bytes.
func (m Model) SchemeFor(n int) (Scheme, error) {
	var lengths []string
	for _, s := range m.Schemes {
		if slices.Contains(keyBytes[s], n) {
			return s, nil
		}
		for _, l := range keyBytes[s] {
			lengths = append(lengths, strconv.Itoa(l))
		}
	}
	return "", fmt.Errorf("a flash encryption key of the %s has %s bytes, not %d", m.Title, strings.Join(lengths, " or "), n)
}

// ErrUnknown is returned for a chip that this build does not know.
var ErrUnknown = errors.New("unknown chip")

// ByName finds a model by its name; case and a dash do not matter.
func ByName(name string) (Model, error) {
	n := strings.ReplaceAll(strings.ToLower(name), "-", "")
	for _, m := range all() {
		if m.Name == n {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("%w %q: known are %s", ErrUnknown, name, strings.Join(Names(), ", "))
}

// ByID finds a model by the chip id of an image header or of GET_SECURITY_INFO.
func ByID(id ID) (Model, error) {
	for _, m := range all() {
		if m.ID == id {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("%w: chip id %d", ErrUnknown, id)
}

// ByMagic finds a model by the word at 0x40001000. Only chips without a chip id
// in GET_SECURITY_INFO are told apart this way.
func ByMagic(v uint32) (Model, error) {
	for _, m := range all() {
		if m.HasMagic(v) {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("%w: 0x%08x at 0x40001000", ErrUnknown, v)
}

// MagicRegister is where ByMagic's value is read.
const MagicRegister = 0x40001000

// Names lists the known chips in the order of their introduction.
func Names() []string {
	var names []string
	for _, m := range all() {
		names = append(names, m.Name)
	}
	return names
}

// All lists the models of all chips, in the order of their introduction.
func All() []Model { return all() }

func all() []Model {
	return []Model{esp32(), esp32s2(), esp32c3(), esp32s3(), esp32c2(), esp32c6(), esp32h2(), esp32p4(), esp32c5(), esp32c61()}
}
