// Package recipe owns the recipe: the YAML file that says what a product is
// (chip, images, profile, checks), and the ESP-IDF build that it points at.
//
// Reading is strict. Unknown and repeated keys, values of another type, anchors,
// aliases, explicit tags and a second document are errors, and so is every number
// that YAML versions read differently. All errors of a file are reported together,
// each with its file, line, field and what to write instead ([Error], [Errors]).
//
// A Recipe comes from [Load] or [Parse] and is read-only after that. Its
// [Recipe.Hash] stands for its meaning, not for its text. docs/recipe.md
// describes every field.
package recipe

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
)

// Defaults of the optional fields.
const (
	DefaultTableOffset      = 0x8000 // CONFIG_PARTITION_TABLE_OFFSET of ESP-IDF
	DefaultBaud             = 460800 // what ESP-IDF's own flash target uses
	DefaultBootCheckTimeout = 10 * time.Second
)

// NoMaxRevision is MaxChipRevision when the recipe sets no upper limit.
const NoMaxRevision chip.Revision = math.MaxUint16

// maxFile limits the recipe and flasher_args.json: both are small.
const maxFile = 1 << 20

// Profile says how far a unit is closed (docs/recipe.md has the table).
type Profile string

// The profiles, from open to closed for ever.
const (
	Development Profile = "development" // encryption on, counter at 1, open loader
	Hybrid      Profile = "hybrid"      // every release fuse, UART loader left open
	Release     Profile = "release"     // hybrid and the chip's release fuse
	Closed      Profile = "closed"      // hybrid and no download mode at all
)

var profiles = []Profile{Development, Hybrid, Release, Closed}

// Size is a flash size in bytes. It prints as ESP-IDF writes it: 4MB.
type Size uint32

// String gives the form that ParseSize reads.
func (s Size) String() string { return strconv.FormatUint(uint64(s>>20), 10) + "MB" }

// ParseSize reads the flash sizes that image headers can hold: 1MB to 128MB
// (ESP-IDF esp_app_format.h, esp_image_flash_size_t).
func ParseSize(s string) (Size, error) {
	for v := Size(1 << 20); v <= 128<<20; v <<= 1 {
		if s == v.String() {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%s is not a flash size: write 1MB, 2MB, 4MB, 8MB, 16MB, 32MB, 64MB or 128MB", quote(s))
}

// BootCheck says what a provisioned unit must print at its first boot. The zero
// value is "off".
type BootCheck struct {
	Expect  string        // text inside one line of the application's output
	Timeout time.Duration // from the reset
}

// Enabled reports whether there is a check at all.
func (b BootCheck) Enabled() bool { return b.Expect != "" }

// ImageRef is one file of a recipe that lists its images itself.
type ImageRef struct {
	Offset uint32
	File   string // relative to the recipe's directory, or absolute
	Name   string // for reports; the file's base name when the recipe gives none
}

// Recipe is what a product is. Treat it as read-only.
type Recipe struct {
	Name            string
	Revision        int    // of the recipe, counted by its author
	Chip            string // a chip.Model's Name
	MinChipRevision chip.Revision
	MaxChipRevision chip.Revision // NoMaxRevision: no limit
	Build           string        // ESP-IDF build directory; empty when Images is set
	Images          []ImageRef    // as listed; empty when Build is set
	FlashSize       Size
	Profile         Profile
	BootCheck       BootCheck
	Keep            []string // labels of partitions that are left as they are
	TableOffset     uint32   // of the partition table in flash
	Baud            int      // while flashing; burns always run at 115200
	// ECIES: units get a key of their own for esp_encrypted_img files, in a key block
	// with purpose HMAC_UP (esp-facts G.3).
	ECIES bool
	// FlashEncryption is the scheme that the recipe names; empty: the chip's usual one.
	FlashEncryption chip.Scheme
	SecureBoot      *SecureBoot // nil: off
	// SecureBootKeys are what SecureBoot names. Load reads them, Parse does not.
	SecureBootKeys []secureboot.PublicKey
	// AntiRollback: bootloader and application count secure versions in eFuse, and
	// nothing keeps them from it.
	AntiRollback bool
	// AcceptSDMErrata: somebody knows that errata of the chip make Secure Download
	// Mode a trap.
	AcceptSDMErrata bool
	UnitData        *UnitData // nil: no partition is filled for each unit
	// Template is what UnitData names. Load reads it, Parse does not.
	Template *UnitTemplate

	// Stub is the directory of esptool's flasher stubs, "" for none (the default). Load
	// reads the files for the recipe's chip, Parse does not: see FlasherStub.
	Stub string

	stubs map[string]FlasherStub // by file name

	model chip.Model
	src   source
}

// source is where a recipe came from. It has no part in the recipe's meaning.
type source struct {
	file  string
	lines map[string]int // field path → line
}

// Load reads a recipe file, and the template and public keys that it names. Relative paths in it
// start at the file's directory.
func Load(path string) (*Recipe, error) {
	b, err := readLimited(osOpener{}, path, maxFile)
	if err != nil {
		return nil, Errors{{File: path, Problem: err.Error(), Fix: "give the path of a recipe (docs/recipe.md)"}}
	}
	r, err := Parse(path, b)
	if err == nil {
		err = r.loadStubs()
	}
	if err == nil {
		r.Template, err = r.loadTemplate()
	}
	if err == nil {
		r.SecureBootKeys, err = r.loadKeys()
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Model gives the recipe's chip.
func (r *Recipe) Model() chip.Model { return r.model }

// Scheme is how the units' flash is encrypted.
func (r *Recipe) Scheme() chip.Scheme {
	if r.FlashEncryption != "" {
		return r.FlashEncryption
	}
	return r.model.Scheme
}

// File is the name that the recipe was read under.
func (r *Recipe) File() string { return r.src.file }

// ClosesForever reports whether the recipe's last fuse ends all serial access.
// That is profile closed, and profile release on a chip that has no other way
// to release mode (ESP32: UART_DOWNLOAD_DIS).
func (r *Recipe) ClosesForever() bool { return closesForever(r.model, r.Profile) }

func closesForever(m chip.Model, p Profile) bool {
	return p == Closed || p == Release && m.Lockdown.ReleaseFuse == m.Lockdown.ClosedFuse
}

// RevisionLimits gives the oldest and newest silicon that the recipe allows,
// inclusive. The lower limit includes what the profile and Secure Boot need: closing
// an ESP32 works from v3.0 only. Without an upper limit, newest is NoMaxRevision.
func (r *Recipe) RevisionLimits() (oldest, newest chip.Revision) {
	oldest = r.MinChipRevision
	if r.ClosesForever() {
		oldest = max(oldest, r.model.Lockdown.ClosedMinimum)
	}
	return max(oldest, r.oldestFor()), r.MaxChipRevision
}

// Keeps reports whether the recipe lists the partition in keep.
func (r *Recipe) Keeps(label string) bool { return slices.Contains(r.Keep, label) }

// FieldError makes an error about one of the recipe's fields, for checks that
// need more than the recipe itself. The line is that of the field, or of the
// nearest one around it that the file has.
func (r *Recipe) FieldError(field, problem, fix string) *Error {
	line, at := 0, field
	for {
		if n, ok := r.src.lines[at]; ok {
			line = n
			break
		}
		cut := max(lastIndex(at, '.'), lastIndex(at, '['))
		if cut < 0 {
			break
		}
		at = at[:cut]
	}
	return &Error{File: r.src.file, Line: line, Field: field, Problem: problem, Fix: fix}
}

func lastIndex(s string, c byte) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == c {
			return i
		}
	}
	return -1
}

// resolve makes a path of the recipe relative to the process.
func (r *Recipe) resolve(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(r.src.file), p)
}

// opener is how files are reached: the file system, or a build directory that
// nothing may leave.
type opener interface {
	Stat(name string) (os.FileInfo, error)
	Open(name string) (*os.File, error)
}

type osOpener struct{}

func (osOpener) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }
func (osOpener) Open(name string) (*os.File, error)    { return os.Open(name) }
