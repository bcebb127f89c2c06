// Package sample builds small products to provision without a compiler at hand:
// a build directory in the form of ESP-IDF's (bootloader, partition table,
// application, otadata and flasher_args.json) and a recipe beside it. The demo
// and the tests use it. Its images are made here; none is copied from a build.
package sample

import (
	"cmp"
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
)

// AppText is what the sample application prints when it runs.
const AppText = "provisiond sample: app running"

// Offsets of the sample's partitions.
const (
	TableOffset   = 0x8000
	OTADataOffset = 0xD000
	FactoryOffset = 0x10000
)

// Product is what to build.
type Product struct {
	Chip    chip.Model
	Name    string // of the recipe; empty: sample-CHIP
	Profile string // development, hybrid, release or closed
	AppSize int    // bytes of application code; 0: 24 KiB
	// AppSpace is the size of each of the three app partitions; 0: 256 KiB.
	AppSpace uint32
	Baud     int // while flashing; 0: the recipe's default
	// UnitTemplate is the template of unit_data; the table then has an encrypted
	// partition for it.
	UnitTemplate string
	// Signers sign bootloader and application, as Secure Boot V2 wants it; none: they
	// are not signed. The recipe then has secure_boot with Trust's public keys, or with
	// these.
	Signers, Trust []crypto.Signer
	// Version and SecureVersion are the application's; "" and 0: 1.0.0 and 1. Each
	// version has other bytes.
	Version       string
	SecureVersion uint32
	// OTAOnly is a table without a factory partition, as anti-rollback wants it: the
	// application goes to ota_0.
	OTAOnly bool
	More    string // lines to add to the recipe
}

// UnitPartition is the label of the partition for a unit's own data.
const UnitPartition = "unit"

// memory is where a chip's images load to: internal RAM for the bootloader,
// mapped flash and RAM for an application (ESP-IDF soc/<chip>/memory layouts).
type memory struct {
	bootIRAM, appDROM, appIRAM uint32
}

var memories = map[chip.ID]memory{
	chip.IDESP32:    {bootIRAM: 0x40078000, appDROM: 0x3F400020, appIRAM: 0x40080000},
	chip.IDESP32S2:  {bootIRAM: 0x4004C000, appDROM: 0x3F000020, appIRAM: 0x40024000},
	chip.IDESP32C3:  {bootIRAM: 0x403CC710, appDROM: 0x3C000020, appIRAM: 0x40380000},
	chip.IDESP32S3:  {bootIRAM: 0x403C9700, appDROM: 0x3C000020, appIRAM: 0x40374000},
	chip.IDESP32C2:  {bootIRAM: 0x403ACB70, appDROM: 0x3C000020, appIRAM: 0x40380000},
	chip.IDESP32C6:  {bootIRAM: 0x4086C410, appDROM: 0x42000020, appIRAM: 0x40800000},
	chip.IDESP32H2:  {bootIRAM: 0x4083CAD0, appDROM: 0x42000020, appIRAM: 0x40800000},
	chip.IDESP32P4:  {bootIRAM: 0x4FF2ABD0, appDROM: 0x40000020, appIRAM: 0x4FF40000},
	chip.IDESP32C5:  {bootIRAM: 0x4084BBA0, appDROM: 0x42000020, appIRAM: 0x40800000},
	chip.IDESP32C61: {bootIRAM: 0x4083BD70, appDROM: 0x42000020, appIRAM: 0x40800000},
}

// maxInRAM is what a sample application loads into internal RAM at most; the rest of
// a large one stays in flash, as with real ones.
const maxInRAM = 192 << 10

// Table is the sample's partition table, for 4 MB of flash.
func Table() *partition.Table { return table(0x40000) }

func table(space uint32, more ...partition.Entry) *partition.Table {
	return partition.New(append([]partition.Entry{
		{Type: partition.TypeData, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x4000, Label: "nvs"},
		{Type: partition.TypeData, Subtype: partition.DataOTA, Offset: OTADataOffset, Size: 0x2000, Label: "otadata"},
		{Type: partition.TypeData, Subtype: partition.DataPHY, Offset: 0xF000, Size: 0x1000, Label: "phy_init"},
		{Type: partition.TypeApp, Subtype: partition.AppFactory, Offset: FactoryOffset, Size: space, Label: "factory"},
		{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: FactoryOffset + space, Size: space, Label: "ota_0"},
		{Type: partition.TypeApp, Subtype: partition.AppOTA0 + 1, Offset: FactoryOffset + 2*space, Size: space, Label: "ota_1"},
		{Type: partition.TypeData, Subtype: partition.DataNVSKeys, Offset: FactoryOffset + 3*space, Size: 0x1000, Label: "nvs_keys", Flags: partition.FlagEncrypted},
	}, more...)...)
}

// Files gives the product's files by their flash offset.
func Files(p Product) (map[uint32][]byte, error) {
	mem, ok := memories[p.Chip.ID]
	if !ok {
		return nil, fmt.Errorf("sample: no memory layout for %s", p.Chip.Title)
	}
	rng := newRand(p.Chip, 0)
	boot, err := image.Build(image.Spec{
		Chip: p.Chip.ID, EntryAddr: mem.bootIRAM, SPISize: image.SPISize4MB,
		Segments: []image.Segment{{LoadAddr: mem.bootIRAM, Data: filler(rng, bootSize)}},
	})
	if err != nil {
		return nil, fmt.Errorf("sample bootloader: %w", err)
	}
	app, err := App(p)
	if err != nil {
		return nil, err
	}
	space := cmp.Or(p.AppSpace, 0x40000)
	var unit []partition.Entry
	if p.UnitTemplate != "" {
		unit = []partition.Entry{{
			Type: partition.TypeData, Subtype: partition.DataUndefined, Offset: FactoryOffset + 3*space + 0x1000, Size: 0x1000,
			Label: UnitPartition, Flags: partition.FlagEncrypted,
		}}
	}
	layout := table(space, unit...)
	if p.OTAOnly {
		layout.Entries = slices.DeleteFunc(layout.Entries, func(e partition.Entry) bool { return e.Is(partition.TypeApp, partition.AppFactory) })
		for i := range layout.Entries {
			if e := &layout.Entries[i]; e.Type == partition.TypeApp {
				e.Offset -= space
			}
		}
		layout = partition.New(layout.Entries...)
	}
	table, err := layout.MarshalBinary()
	if err != nil {
		return nil, err
	}
	ota, err := partition.NewOTAData().MarshalBinary()
	if err != nil {
		return nil, err
	}
	if boot, err = p.sign(boot); err != nil {
		return nil, err
	}
	return map[uint32][]byte{p.Chip.BootloaderOffset: boot, TableOffset: table, OTADataOffset: ota, FactoryOffset: app}, nil
}

// App gives the product's application alone, such as an update brings.
func App(p Product) ([]byte, error) {
	mem, ok := memories[p.Chip.ID]
	if !ok {
		return nil, fmt.Errorf("sample: no memory layout for %s", p.Chip.Title)
	}
	var seed uint64
	if p.Version != "" {
		seed = uint64(crc32.ChecksumIEEE([]byte(p.Version)))
	}
	rng := newRand(p.Chip, seed)
	filler(rng, bootSize) // the bootloader's share
	size := cmp.Or(p.AppSize, 24<<10)
	inRAM := min(size-size/4, maxInRAM)
	app, err := image.Build(image.Spec{
		Chip: p.Chip.ID, EntryAddr: mem.appIRAM, SPISize: image.SPISize4MB,
		AppDesc: &image.AppDesc{
			Version: cmp.Or(p.Version, "1.0.0"), ProjectName: "provisiond-sample", IDFVer: "none", SecureVersion: cmp.Or(p.SecureVersion, 1),
		},
		Segments: []image.Segment{
			{LoadAddr: mem.appDROM, Data: filler(rng, (size-inRAM)&^3)},
			{LoadAddr: mem.appIRAM, Data: filler(rng, inRAM&^3)},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("sample application: %w", err)
	}
	return p.sign(app)
}

func (p Product) sign(img []byte) ([]byte, error) {
	if len(p.Signers) == 0 {
		return img, nil
	}
	img, err := secureboot.Sign(context.Background(), img, secureboot.Options{}, p.Signers...)
	if err != nil {
		return nil, fmt.Errorf("sample: %w", err)
	}
	return img, nil
}

const bootSize = 6 << 10

// newRand makes filler that is the same in every build.
func newRand(m chip.Model, seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(m.ID)+1, 7+seed)) //nolint:gosec // no secret
}

func filler(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		// Code is not as even as noise, and the refusal of encrypted images looks at that.
		b[i] = byte(rng.UintN(64))
	}
	return b
}

// Write puts build directory and recipe into dir and gives the recipe's path.
func Write(dir string, p Product) (string, error) {
	files, err := Files(p)
	if err != nil {
		return "", err
	}
	build := filepath.Join(dir, "build-"+p.Chip.Name)
	if p.UnitTemplate != "" {
		build += "-unit"
	}
	if len(p.Signers) > 0 {
		build += "-signed"
	}
	if p.OTAOnly {
		build += "-ota"
	}
	if err := os.MkdirAll(build, 0o755); err != nil { //nolint:gosec // firmware is no secret
		return "", err
	}
	names := map[uint32]string{
		p.Chip.BootloaderOffset: "bootloader.bin", TableOffset: "partition-table.bin",
		OTADataOffset: "ota_data_initial.bin", FactoryOffset: "app.bin",
	}
	flash := map[string]string{}
	for off, b := range files {
		if err := os.WriteFile(filepath.Join(build, names[off]), b, 0o644); err != nil { //nolint:gosec // firmware is no secret
			return "", err
		}
		flash[fmt.Sprintf("0x%x", off)] = names[off]
	}
	args, err := json.MarshalIndent(map[string]any{
		"flash_files":        flash,
		"flash_settings":     map[string]string{"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "40m"},
		"extra_esptool_args": map[string]any{"chip": p.Chip.Name},
	}, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(build, "flasher_args.json"), args, 0o644); err != nil { //nolint:gosec // firmware is no secret
		return "", err
	}
	name := p.Name
	if name == "" {
		name = "sample-" + p.Chip.Name
	}
	text := fmt.Sprintf("recipe: %s\nrevision: 1\nchip: %s\nbuild: %s\nflash_size: 4MB\nprofile: %s\n", name, p.Chip.Name, filepath.Base(build), p.Profile)
	if p.Baud != 0 {
		text += fmt.Sprintf("baud: %d\n", p.Baud)
	}
	text += fmt.Sprintf("boot_check: {expect: %q, timeout: 10s}\n", AppText)
	if p.UnitTemplate != "" {
		text += fmt.Sprintf("unit_data: {partition: %s, template: %s.tmpl}\n", UnitPartition, name)
		if err := os.WriteFile(filepath.Join(dir, name+".tmpl"), []byte(p.UnitTemplate), 0o644); err != nil { //nolint:gosec // a template is no secret
			return "", err
		}
	}
	trusted, err := trust(dir, name, p)
	if err != nil {
		return "", err
	}
	text += trusted
	if p.Profile == "release" && p.Chip.Lockdown.ReleaseTrap != "" {
		text += "accept_sdm_errata: true\n" // the board is simulated
	}
	text += p.More
	path := filepath.Join(dir, name+".yaml")
	return path, os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // a recipe is no secret
}

// trust writes the public keys that a unit's ROM is to trust and gives the recipe's
// lines about them.
func trust(dir, name string, p Product) (string, error) {
	keys := p.Trust
	if len(keys) == 0 {
		keys = p.Signers
	}
	if len(keys) == 0 {
		return "", nil
	}
	var scheme chip.SignatureScheme
	list := ""
	for i, k := range keys {
		public, err := secureboot.NewPublicKey(k.Public())
		if err != nil {
			return "", err
		}
		pem, err := public.PEM()
		if err != nil {
			return "", err
		}
		file := fmt.Sprintf("%s-key%d.pem", name, i)
		if err := os.WriteFile(filepath.Join(dir, file), pem, 0o644); err != nil { //nolint:gosec // a public key
			return "", err
		}
		scheme, list = public.Scheme(), list+fmt.Sprintf("    - %s\n", file)
	}
	text := fmt.Sprintf("secure_boot:\n  scheme: %s\n  keys:\n%s", scheme, list)
	if p.Chip.SecureBoot.WeakECDSA && scheme.ECDSA() {
		text += "  accept_weak_ecdsa: true\n"
	}
	return text, nil
}
