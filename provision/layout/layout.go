// Package layout owns the question of what stands where in a unit's flash: which
// bytes are written at which address, which of them encrypted, and which sectors
// are erased or left alone.
//
// It is pure: it reads no file and talks to no chip. [Build] holds a recipe, its
// files and the chip model against each other and gives a [Layout] or says why not
// ([Refusal]). A Layout keeps these promises:
//
//   - Regions, UnitData, Erase and Untouched together are the whole flash of the
//     recipe, each sector exactly once. No two of them share a 4 KiB sector, the least that
//     flash can erase.
//   - What must be encrypted is (esp-facts D.1; ESP-IDF
//     bootloader_support/src/flash_encryption/flash_encrypt.c and
//     esp_partition/partition.c): the bootloader, the partition table's whole
//     sector, applications, otadata, and partitions with the flag encrypted. NVS
//     never is.
//   - A partition that nothing is written to is erased, unless the recipe keeps it.
//     nvs and nvs_keys hold nothing that the unit's old life has left.
//   - otadata is always written. Erased flash would decrypt to noise, which the
//     bootloader does not take for the initial state (esp-facts D.1).
//
// Images go to flash as the build made them, with one exception: the flash size in
// the bootloader's header becomes the recipe's, as ESP-IDF expects of the tool that
// flashes (docs/decisions/0005). Ciphertext and signed images are never changed.
package layout

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the ROM's SPI_FLASH_MD5 command; it guards against line noise only
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/provision/recipe"
)

// Sector is the least that flash can erase.
const Sector = 0x1000

// Kind says what a region holds.
type Kind string

// The kinds of regions.
const (
	Bootloader     Kind = "bootloader"
	PartitionTable Kind = "partition-table"
	App            Kind = "app"
	OTAData        Kind = "otadata"
	Data           Kind = "data"
	UnitData       Kind = "unit-data" // each unit's own
)

// Region is one run of bytes that is written. It begins at a sector.
type Region struct {
	Name       string // the partition's label, bootloader or partition-table
	Kind       Kind
	Offset     uint32
	Plain      []byte // padded with 0xFF to the chip's EncryptedAlign
	Encrypt    bool
	File       string            // path; empty for an otadata that the build does not have
	FileSHA256 [sha256.Size]byte // of the file as built, without padding
	Image      *image.Image      // nil when the region holds none
}

// End is the first address after the region's bytes.
func (r Region) End() uint32 { return r.Offset + uint32(len(r.Plain)) }

// Range is a run of whole sectors.
type Range struct {
	Name   string `json:"name"`
	Offset uint32 `json:"offset"`
	Size   uint32 `json:"size"`
}

// End is the first address after the range.
func (r Range) End() uint32 { return r.Offset + r.Size }

// Layout is what a unit's flash will be. Treat it as read-only; it can serve many
// units at once.
type Layout struct {
	Table       *partition.Table
	TableOffset uint32
	FlashSize   uint32
	Regions     []Region // by offset
	// SecureVersion is the one of all applications, with anti_rollback.
	SecureVersion uint32
	// UnitData is the partition that is written with each unit's own text; nil if the
	// recipe has none.
	UnitData *Range
	// Erase is what must read as 0xFF beside the regions: partitions and parts of
	// them that are not written, and the room between bootloader and table.
	Erase []Range
	// Untouched is never written or erased: partitions that the recipe keeps, and
	// what belongs to no partition.
	Untouched []Range
	// Warnings are doubts that do not refuse a layout. Show them with the plan.
	Warnings []string

	model  chip.Model
	recipe *recipe.Recipe
}

// CheckRevision holds the observed silicon against the recipe and every image.
// The error is Refusals.
func (l *Layout) CheckRevision(rev chip.Revision) error {
	var list Refusals
	oldest, newest := l.recipe.RevisionLimits()
	sb := l.model.SecureBoot
	switch {
	case l.recipe.SecureBoot != nil && slices.Contains(sb.Broken, rev):
		list = append(list, &Refusal{
			Reason:   fmt.Sprintf("the chip is %s, whose ROM takes no signature: erratum %s of %s", rev, sb.BrokenBy, l.model.Title),
			NextStep: "put the board aside, or use a recipe without secure_boot",
		})
	case rev < oldest && rev >= l.recipe.MinChipRevision && l.recipe.SecureBoot != nil && !sb.Supports(l.recipe.SecureBoot.Scheme, rev):
		list = append(list, &Refusal{
			Reason:   fmt.Sprintf("the chip is %s, and %s has no Secure Boot V2 with %s before %s", rev, l.model.Title, l.recipe.SecureBoot.Scheme, oldest),
			NextStep: fmt.Sprintf("use %s %s or newer", l.model.Title, oldest),
		})
	case rev < oldest && rev >= l.recipe.MinChipRevision:
		list = append(list, &Refusal{
			Reason: fmt.Sprintf("the chip is %s, and %s ignores %s before %s, which profile %s needs",
				rev, l.model.Title, l.model.Lockdown.ClosedFuse, oldest, l.recipe.Profile),
			NextStep: fmt.Sprintf("use %s %s or newer, or profile hybrid", l.model.Title, oldest),
		})
	case rev < oldest:
		list = append(list, &Refusal{
			Reason:   fmt.Sprintf("the chip is %s, the recipe allows %s or newer", rev, oldest),
			NextStep: "put the board aside, or lower min_chip_revision if the product may have it",
		})
	case rev > newest:
		list = append(list, &Refusal{
			Reason:   fmt.Sprintf("the chip is %s, the recipe allows %s at most", rev, newest),
			NextStep: "put the board aside, or raise max_chip_revision if the product may have it",
		})
	}
	for _, r := range l.Regions {
		if r.Image == nil {
			continue
		}
		if err := r.Image.CheckFor(l.model, rev); err != nil {
			list = append(list, &Refusal{
				File: r.File, Offset: r.Offset, Reason: err.Error(),
				NextStep: "put the board aside, or build for its revision (CONFIG_<CHIP>_REV_MIN, CONFIG_<CHIP>_REV_MAX_FULL)",
			})
		}
	}
	return list.err()
}

// CheckFlash holds the observed flash size against the recipe's.
func (l *Layout) CheckFlash(size uint32) error {
	if size >= l.FlashSize {
		return nil
	}
	return &Refusal{
		Reason:   fmt.Sprintf("the flash chip has %d KB, the recipe says %s", size>>10, recipe.Size(l.FlashSize)),
		NextStep: "put the board aside, or correct flash_size and the build",
	}
}

// Encrypter encrypts for one unit. addr is the absolute flash address of src, and
// dst and src do not overlap.
type Encrypter interface {
	Encrypt(dst, src []byte, addr uint32) error
}

// Ciphertext is a region as it must stand in a unit's flash.
type Ciphertext struct {
	Region
	Data   []byte            // the bytes to write; Plain itself where the region is not encrypted
	SHA256 [sha256.Size]byte // of Data
	MD5    [md5.Size]byte    // of Data, for the ROM's SPI_FLASH_MD5 over len(Data) bytes
}

// Encrypt makes what goes to flash, in the order of Regions.
func (l *Layout) Encrypt(c Encrypter) ([]Ciphertext, error) {
	list := make([]Ciphertext, 0, len(l.Regions))
	for _, r := range l.Regions {
		data := r.Plain
		if r.Encrypt {
			data = make([]byte, len(r.Plain))
			if err := c.Encrypt(data, r.Plain, r.Offset); err != nil {
				return nil, fmt.Errorf("layout: encrypt %s at 0x%x: %w", r.Name, r.Offset, err)
			}
			// A cipher that does nothing would put plaintext into a product's flash.
			if bytes.Equal(data, r.Plain) {
				return nil, fmt.Errorf("layout: encrypt %s at 0x%x: the ciphertext equals the plaintext", r.Name, r.Offset)
			}
		}
		//nolint:gosec // see the import
		list = append(list, Ciphertext{Region: r, Data: data, SHA256: sha256.Sum256(data), MD5: md5.Sum(data)})
	}
	return list, nil
}

// EncryptUnit makes what goes to the partition of a unit's own text. It pads the
// text with 0xFF to the partition's end, since erased flash would read as noise
// there. The plaintext may hold a secret: it is wiped, text included, and the region
// has no Plain. plain is its SHA-256.
func (l *Layout) EncryptUnit(c Encrypter, text []byte) (out Ciphertext, plain [sha256.Size]byte, err error) {
	defer clear(text)
	if uint64(len(text)) > uint64(l.UnitData.Size) {
		return out, plain, fmt.Errorf("layout: the unit's data have %d bytes, and partition %s has %d", len(text), l.UnitData.Name, l.UnitData.Size)
	}
	padded := pad(text, int(l.UnitData.Size))
	defer clear(padded)
	data := make([]byte, len(padded))
	if err := c.Encrypt(data, padded, l.UnitData.Offset); err != nil {
		return out, plain, fmt.Errorf("layout: encrypt %s at 0x%x: %w", l.UnitData.Name, l.UnitData.Offset, err)
	}
	if bytes.Equal(data, padded) {
		return out, plain, fmt.Errorf("layout: encrypt %s at 0x%x: the ciphertext equals the plaintext", l.UnitData.Name, l.UnitData.Offset)
	}
	return Ciphertext{
		Region: Region{Name: l.UnitData.Name, Kind: UnitData, Offset: l.UnitData.Offset, Encrypt: true},
		//nolint:gosec // see the import
		Data: data, SHA256: sha256.Sum256(data), MD5: md5.Sum(data),
	}, sha256.Sum256(padded), nil
}

// RegionSummary is a region for plans and reports.
type RegionSummary struct {
	Name       string `json:"name"`
	Kind       Kind   `json:"kind"`
	Offset     uint32 `json:"offset"`
	Length     uint32 `json:"length"`
	Encrypted  bool   `json:"encrypted"`
	SHA256     string `json:"sha256,omitempty"` // of the plaintext with its padding
	File       string `json:"file,omitempty"`
	FileSHA256 string `json:"file_sha256,omitempty"` // of the file as built
}

// Summary describes the regions, in their order. The contents of a unit's own data
// have no hash before there is a unit; the file is their template.
func (l *Layout) Summary() []RegionSummary {
	list := make([]RegionSummary, len(l.Regions))
	for i, r := range l.Regions {
		sum := sha256.Sum256(r.Plain)
		list[i] = RegionSummary{
			Name: r.Name, Kind: r.Kind, Offset: r.Offset, Length: uint32(len(r.Plain)), Encrypted: r.Encrypt,
			SHA256: hex.EncodeToString(sum[:]), File: r.File,
		}
		if r.File != "" {
			list[i].FileSHA256 = hex.EncodeToString(r.FileSHA256[:])
		}
	}
	if u := l.UnitData; u != nil {
		list = append(list, RegionSummary{
			Name: u.Name, Kind: UnitData, Offset: u.Offset, Length: u.Size, Encrypted: true,
			File: l.recipe.Template.Path, FileSHA256: hex.EncodeToString(l.recipe.Template.SHA256[:]),
		})
	}
	return list
}

// Hash stands for everything that the layout does to a flash: which plaintext
// goes where, encrypted or not, and what is erased. Names and paths are not in it.
func (l *Layout) Hash() [sha256.Size]byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "provisiond layout v1\nflash %d\n", l.FlashSize)
	for _, r := range l.Regions {
		_, _ = fmt.Fprintf(h, "write %d %d %t %x\n", r.Offset, len(r.Plain), r.Encrypt, sha256.Sum256(r.Plain))
	}
	if u := l.UnitData; u != nil {
		_, _ = fmt.Fprintf(h, "unit data %d %d %x\n", u.Offset, u.Size, l.recipe.Template.SHA256)
	}
	for _, e := range l.Erase {
		_, _ = fmt.Fprintf(h, "erase %d %d\n", e.Offset, e.Size)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
