package layout

import (
	"bytes"
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/provision/recipe"
)

// The least that an image and an application can be: header, one segment header,
// the application's description, the block with the checksum.
const (
	minImage = image.HeaderSize + 8 + 16
	minApp   = minImage + image.AppDescSize
)

// Build makes the layout of a recipe's files on a chip. It fails with Refusals,
// or with recipe.Errors where the recipe's keep does not fit the partition table.
// What depends on one unit is checked later: CheckRevision, CheckFlash.
func Build(m chip.Model, r *recipe.Recipe, files []recipe.File) (*Layout, error) {
	if m.Name != r.Chip {
		return nil, Refusals{{
			Reason:   fmt.Sprintf("the chip is %s, the recipe %s is for %s", m.Title, r.Name, r.Model().Title),
			NextStep: "take the recipe for this board, or the board for this recipe",
		}}
	}
	b := &builder{m: m, r: r, l: &Layout{
		TableOffset: r.TableOffset, FlashSize: uint32(r.FlashSize), model: m, recipe: r,
	}}
	b.files = slices.Clone(files)
	slices.SortStableFunc(b.files, func(x, y recipe.File) int { return cmp.Compare(x.Offset, y.Offset) })

	b.places()
	if !b.table() {
		return nil, b.refusals
	}
	if errs := append(b.keeps(), b.unitData()...); len(errs) > 0 {
		return nil, errs
	}
	for _, f := range b.files {
		if f.Offset != r.TableOffset {
			b.file(f)
		}
	}
	b.missing()
	b.rollback()
	if s := b.r.SecureBoot; s != nil && s.AggressiveRevoke {
		b.l.Warnings = append(b.l.Warnings, "aggressive_revoke: one signature that does not verify revokes its key for good, and damaged flash is enough for that")
	}
	if len(b.refusals) > 0 {
		return nil, b.refusals
	}
	b.rest()
	return b.l, nil
}

type builder struct {
	m        chip.Model
	r        *recipe.Recipe
	l        *Layout
	files    []recipe.File // by offset
	refusals Refusals
}

func (b *builder) refuse(f recipe.File, next, format string, args ...any) {
	b.refusals = append(b.refusals, &Refusal{File: f.Path, Offset: f.Offset, Reason: fmt.Sprintf(format, args...), NextStep: next})
}

const (
	nextTogether = "build the partition table and the images together and use that build as it is"
	nextRebuild  = "build the firmware again and use that build as it is"
	nextPlain    = "give the plaintext that the build made: provisiond encrypts it for each unit"
)

// places refuses files that reach out of the flash or into each other.
func (b *builder) places() {
	for i, f := range b.files {
		if end := uint64(f.Offset) + uint64(len(f.Data)); end > uint64(b.l.FlashSize) {
			b.refuse(f, "correct the offset, or flash_size if the board has more",
				"the file ends at 0x%x, outside the flash of %s", end, b.r.FlashSize)
		}
		for _, other := range b.files[:i] {
			if uint64(other.Offset)+uint64(len(other.Data)) > uint64(f.Offset) {
				b.refuse(f, nextTogether, "the file overlaps %s, which begins at 0x%x and has 0x%x bytes", other.Path, other.Offset, len(other.Data))
			}
		}
	}
}

// table finds, reads and checks the partition table. Without one nothing else can
// be judged.
func (b *builder) table() bool {
	at := b.r.TableOffset
	i := slices.IndexFunc(b.files, func(f recipe.File) bool { return f.Offset == at })
	if i < 0 {
		next := "add the build's partition table, or set partition_table_offset to where the build has it"
		for _, f := range b.files {
			if _, err := partition.Parse(f.Data); err == nil {
				next = fmt.Sprintf("%s at 0x%x is a partition table: set partition_table_offset to its offset, which the bootloader has built in", f.Path, f.Offset)
			}
		}
		b.refuse(recipe.File{}, next, "there is no partition table at 0x%x", at)
		return false
	}
	f := b.files[i]
	if len(f.Data) > Sector {
		b.refuse(f, nextTogether, "%d bytes are more than the partition table's sector of 0x%x", len(f.Data), Sector)
		return false
	}
	t, err := partition.Parse(f.Data)
	if err != nil {
		if image.LooksEncrypted(f.Data) {
			b.refuse(f, nextPlain, "the partition table looks encrypted already: %v", err)
		} else {
			b.refuse(f, nextTogether, "this is no partition table: %v", err)
		}
		return false
	}
	if err := t.Check(b.l.FlashSize, at); err != nil {
		for _, one := range unjoin(err) {
			b.refuse(f, "correct partitions.csv and build again", "%v", one)
		}
		return false
	}
	for _, e := range t.Entries {
		if e.Is(partition.TypeBootloader, partition.SubtypePrimary) && e.Offset != b.m.BootloaderOffset {
			b.refuse(f, "correct partitions.csv and build again",
				"%v: the ROM of %s reads the bootloader at 0x%x", e, b.m.Title, b.m.BootloaderOffset)
			return false
		}
	}
	b.l.Table = t
	b.add(f, Region{Name: string(PartitionTable), Kind: PartitionTable, Encrypt: true}, Sector)
	return true
}

func unjoin(err error) []error {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		return list.Unwrap()
	}
	return []error{err}
}

// fixed reports whether an entry describes what stands at a fixed place anyway.
func fixed(e partition.Entry) bool {
	return e.Is(partition.TypeBootloader, partition.SubtypePrimary) || e.Is(partition.TypePartitionTable, partition.SubtypePrimary)
}

// keeps holds the recipe's keep against the table.
func (b *builder) keeps() recipe.Errors {
	var errs recipe.Errors
	for i, label := range b.r.Keep {
		bad := func(problem, fix string) {
			errs = append(errs, b.r.FieldError(fmt.Sprintf("keep[%d]", i), problem, fix))
		}
		e, ok := b.l.Table.Find(label)
		switch {
		case !ok:
			var labels []string
			for _, e := range b.l.Table.Entries {
				labels = append(labels, fmt.Sprintf("%q", e.Label))
			}
			bad(fmt.Sprintf("the partition table has no %q", label), "it has "+strings.Join(labels, ", "))
		case fixed(e):
			bad(fmt.Sprintf("%q is always written", label), "remove it from the list")
		case isNVS(e) || isNVSKeys(e):
			bad(fmt.Sprintf("%q is NVS or its keys, which are always erased: their old contents belong to another key", label), "remove it from the list")
		case partition.Encrypted(e):
			bad(fmt.Sprintf("%q is read through decryption, so what stands there now would read as noise", label),
				"remove it from the list, or remove its flag encrypted in partitions.csv")
		case b.has(e.Offset):
			bad(fmt.Sprintf("the build writes a file to %q", label), "remove it from the list or from the build")
		}
	}
	return errs
}

// maxUnitData limits the partition of a unit's own text: all of it is encrypted and
// written for each unit.
const maxUnitData = 64 << 10

// unitData finds the partition that holds each unit's own text.
func (b *builder) unitData() recipe.Errors {
	if b.r.UnitData == nil {
		return nil
	}
	label := b.r.UnitData.Partition
	bad := func(problem, fix string) recipe.Errors {
		return recipe.Errors{b.r.FieldError("unit_data.partition", problem, fix)}
	}
	e, ok := b.l.Table.Find(label)
	switch t := b.r.Template; {
	case t == nil:
		return recipe.Errors{b.r.FieldError("unit_data.template", "was not read", "load the recipe from its file")}
	case !ok:
		return bad(fmt.Sprintf("the partition table has no %q", label), "add it to partitions.csv: a data partition with the flag encrypted")
	case e.Type != partition.TypeData || isNVS(e) || isNVSKeys(e) || e.Is(partition.TypeData, partition.DataOTA) || e.Is(partition.TypeData, partition.DataTEEOTA):
		return bad(fmt.Sprintf("%v is no partition for data of one's own", e), "use a data partition of subtype undefined, with the flag encrypted")
	case e.Flags&partition.FlagEncrypted == 0:
		return bad(fmt.Sprintf("%v has no flag encrypted: whoever reads the flash would have the unit's token", e), "add the flag encrypted in partitions.csv")
	case b.has(e.Offset):
		return bad(fmt.Sprintf("the build writes a file to %q", label), "remove it from the build, or name another partition")
	case e.Size > maxUnitData:
		return bad(fmt.Sprintf("%v is larger than %d bytes, and all of it is written for each unit", e, maxUnitData), "make it smaller")
	case t.MaxLen() > int(e.Size):
		return bad(fmt.Sprintf("%v has %d bytes, and the text from %s can have %d", e, e.Size, t.Path, t.MaxLen()), "make the partition larger or the text shorter")
	}
	b.l.UnitData = &Range{Name: label, Offset: e.Offset, Size: e.Size}
	return nil
}

func isNVS(e partition.Entry) bool { return e.Is(partition.TypeData, partition.DataNVS) }

func isNVSKeys(e partition.Entry) bool { return e.Is(partition.TypeData, partition.DataNVSKeys) }

// add appends a region, padded to at least length bytes.
func (b *builder) add(f recipe.File, r Region, length int) {
	r.Offset, r.File, r.FileSHA256 = f.Offset, f.Path, f.SHA256
	align := int(b.m.EncryptedAlign)
	r.Plain = pad(f.Data, max(length, (len(f.Data)+align-1)/align*align))
	b.l.Regions = append(b.l.Regions, r)
}

func pad(data []byte, length int) []byte {
	p := bytes.Repeat([]byte{0xFF}, length)
	copy(p, data)
	return p
}

// file decides about a file that is not the partition table.
func (b *builder) file(f recipe.File) {
	if f.Offset == b.m.BootloaderOffset {
		b.bootloader(f)
		return
	}
	i := slices.IndexFunc(b.l.Table.Entries, func(e partition.Entry) bool { return !fixed(e) && e.Offset == f.Offset })
	if i < 0 {
		where := "no partition begins at this offset"
		if e, ok := b.l.Table.At(f.Offset); ok {
			where = fmt.Sprintf("this offset lies inside %v", e)
		}
		b.refuse(f, nextTogether+": "+b.begins(), "%s", where)
		return
	}
	e := b.l.Table.Entries[i]
	if uint64(len(f.Data)) > uint64(e.Size) {
		b.refuse(f, "make the image smaller or the partition larger in partitions.csv, and build again",
			"%d bytes are more than %v has, by %d", len(f.Data), e, len(f.Data)-int(e.Size))
		return
	}
	region := Region{Name: e.Label, Kind: Data, Encrypt: partition.Encrypted(e)}
	switch {
	case e.Type == partition.TypeApp:
		b.app(f, e, region)
	case e.Is(partition.TypeData, partition.DataOTA):
		b.otadata(f, region)
	case isNVSKeys(e):
		b.refuse(f, "remove the file: the partition is erased, and each unit makes NVS keys of its own",
			"a file for %v would give the same NVS keys to every unit", e)
	case e.Type == partition.TypeBootloader:
		if region.Image = b.image(f, "bootloader", minImage); region.Image != nil {
			b.add(f, region, 0)
		}
	case e.Type == partition.TypePartitionTable:
		if _, err := partition.Parse(f.Data); err != nil {
			b.refuse(f, nextTogether, "this is no partition table: %v", err)
			return
		}
		b.add(f, region, 0)
	default:
		if img, err := image.Parse(f.Data); err == nil && img.AppDesc != nil && img.Header.ChipID == b.m.ID {
			b.refuse(f, "give it the offset of an app partition: "+b.begins(),
				"this is an application of %s (%v), and %v is not an app partition", b.m.Title, img.AppDesc, e)
			return
		}
		b.add(f, region, 0)
	}
}

// begins lists where files may go.
func (b *builder) begins() string {
	places := []string{fmt.Sprintf("bootloader 0x%x", b.m.BootloaderOffset)}
	for _, e := range b.l.Table.Entries {
		if !fixed(e) {
			places = append(places, fmt.Sprintf("%s 0x%x", e.Label, e.Offset))
		}
	}
	return strings.Join(places, ", ")
}

func (b *builder) bootloader(f recipe.File) {
	room := b.r.TableOffset - f.Offset
	if uint64(len(f.Data)) > uint64(room) {
		b.refuse(f, "make the bootloader smaller (log level, compiler options), or move the table with CONFIG_PARTITION_TABLE_OFFSET and partition_table_offset",
			"%d bytes are more than the room of %d before the partition table at 0x%x", len(f.Data), room, b.r.TableOffset)
		return
	}
	img := b.image(f, "bootloader", minImage)
	if img == nil {
		return
	}
	if img.AppDesc != nil {
		b.refuse(f, nextRebuild, "this is an application (%v), not a bootloader", img.AppDesc)
		return
	}
	if img, f.Data = b.flashSize(f, img); img != nil {
		b.add(f, Region{Name: string(Bootloader), Kind: Bootloader, Encrypt: true, Image: img}, 0)
	}
}

// flashSize makes the bootloader's header say the recipe's flash size, with its
// hash made anew. ESP-IDF's build leaves that to the tool that flashes, and its
// bootloader believes the header: a table that ends beyond it is refused at boot
// (bootloader_support/src/flash_partitions.c). Only plaintext that is not signed is
// changed.
func (b *builder) flashSize(f recipe.File, img *image.Image) (*image.Image, []byte) {
	if img.Header.SPISize.Bytes() == uint32(b.r.FlashSize) {
		return img, f.Data
	}
	if img.Signed {
		b.refuse(f, "set CONFIG_ESPTOOLPY_FLASHSIZE in the project, build and sign again",
			"the bootloader's header says %s of flash and the recipe %s, and signed bytes are never changed", recipe.Size(img.Header.SPISize.Bytes()), b.r.FlashSize)
		return nil, nil
	}
	b.l.Warnings = append(b.l.Warnings, fmt.Sprintf(
		"%s: the bootloader's header says %s of flash; it is written as %s, as the vendor's tools do (set CONFIG_ESPTOOLPY_FLASHSIZE to have it in the build)",
		f.Path, recipe.Size(img.Header.SPISize.Bytes()), b.r.FlashSize))
	own := *img
	own.Header.SPISize = image.SPISize(bits.TrailingZeros32(uint32(b.r.FlashSize) >> 20))
	data, err := own.MarshalBinary()
	if err == nil {
		img, err = image.Parse(data)
	}
	if err != nil {
		b.refuse(f, nextRebuild, "the flash size in its header cannot be set: %v", err)
		return nil, nil
	}
	return img, data
}

func (b *builder) app(f recipe.File, e partition.Entry, region Region) {
	img := b.image(f, "application", minApp)
	if img == nil {
		return
	}
	tee := e.Subtype == partition.AppTEE0 || e.Subtype == partition.AppTEE1
	if img.AppDesc == nil && !tee {
		b.refuse(f, nextRebuild, "the image has no application description: it is a bootloader or not made by ESP-IDF")
		return
	}
	region.Kind, region.Image = App, img
	b.add(f, region, 0)
}

// image parses an image and refuses what no chip of the recipe could run.
func (b *builder) image(f recipe.File, what string, least int) *image.Image {
	if len(f.Data) < least {
		b.refuse(f, nextRebuild, "%d bytes are too few for an image of this kind (%s): the least is %d", len(f.Data), what, least)
		return nil
	}
	img, err := image.Parse(f.Data)
	switch {
	case err != nil && image.LooksEncrypted(f.Data):
		b.refuse(f, nextPlain, "the %s looks encrypted already: %v", what, err)
		return nil
	case err != nil:
		b.refuse(f, nextRebuild, "this is no valid %s image: %v", what, err)
		return nil
	case img.Signed && b.r.SecureBoot == nil:
		b.refuse(f, "give the recipe secure_boot with the public keys, or build without Secure Boot and signed applications (CONFIG_SECURE_BOOT, CONFIG_SECURE_SIGNED_APPS)",
			"the %s carries a Secure Boot signature, and the recipe has no secure_boot: such a bootloader burns fuses of its own at its first boot", what)
		return nil
	case b.r.SecureBoot != nil && !b.trusted(f, what):
		return nil
	}
	if err := img.CheckFor(b.m, image.RevisionUnknown); err != nil {
		b.refuse(f, "build for this chip (idf.py set-target "+b.m.Name+")", "%v", err)
		return nil
	}
	return img
}

// trusted refuses what the unit's ROM or bootloader would refuse: an image without a
// good signature by a key that the recipe burns.
func (b *builder) trusted(f recipe.File, what string) bool {
	report, err := secureboot.Verify(f.Data)
	if err == nil {
		err = report.CheckFor(b.m, image.RevisionUnknown)
	}
	switch {
	case err != nil:
		b.refuse(f, "sign it with `provisiond image sign` or espsecure, with a key whose public half the recipe names", "the %s is not signed as secure_boot demands: %v", what, err)
	case len(b.r.SecureBootKeys) != len(b.r.SecureBoot.Keys):
		b.refuse(f, "load the recipe from its file", "the public keys of secure_boot were not read")
	case !slices.ContainsFunc(b.r.SecureBootKeys, func(k secureboot.PublicKey) bool { return report.SignedBy(k.Digest()) }):
		b.refuse(f, "sign it with a key whose public half the recipe names, or name the key that signed it",
			"the %s is signed by key %s…, which the recipe does not burn", what, report.Signatures[0].Key.Digest().String()[:16])
	default:
		return true
	}
	return false
}

// otadata checks a file for the OTA selection. Only what the bootloader
// understands may be encrypted there.
func (b *builder) otadata(f recipe.File, region Region) {
	padded := pad(f.Data, partition.OTADataSize)
	d, err := partition.ParseOTAData(padded)
	if err != nil {
		if image.LooksEncrypted(f.Data) {
			b.refuse(f, nextPlain, "the OTA data looks encrypted already: %v", err)
		} else {
			b.refuse(f, "use the build's ota_data_initial.bin, or no file: then the initial state is written", "this is no OTA data: %v", err)
		}
		return
	}
	if slot, ok := d.Slot(b.l.Table.OTASlots()); ok {
		selected := func(e partition.Entry) bool {
			return e.Is(partition.TypeApp, partition.AppOTA0+partition.Subtype(slot)) && b.has(e.Offset)
		}
		if !slices.ContainsFunc(b.l.Table.Entries, selected) {
			b.refuse(f, "use the build's ota_data_initial.bin, or add the slot's image", "the OTA data selects slot %d, and no image is written there", slot)
			return
		}
	}
	region.Kind = OTAData
	b.add(f, region, partition.OTADataSize)
}

// has reports whether a file goes to the offset.
func (b *builder) has(offset uint32) bool {
	return slices.ContainsFunc(b.files, func(f recipe.File) bool { return f.Offset == offset })
}

// missing refuses a layout that cannot boot.
func (b *builder) missing() {
	if !b.has(b.m.BootloaderOffset) {
		b.refuse(recipe.File{}, "add the build's bootloader (a Secure Boot build leaves it out of flasher_args.json: list the files with images)",
			"there is no bootloader at 0x%x, where the ROM of %s reads it", b.m.BootloaderOffset, b.m.Title)
	}
	bootable := func(e partition.Entry) bool {
		return e.Is(partition.TypeApp, partition.AppFactory) || e.IsOTA()
	}
	for _, e := range b.l.Table.Entries {
		if bootable(e) && b.has(e.Offset) {
			return
		}
	}
	b.refuse(recipe.File{}, "add the build's application: "+b.begins(), "there is no application for a factory or ota partition")
}

// rollback holds the images against what anti-rollback allows: slots for updates
// only, and one secure version in all of them, which the unit's eFuse then has.
func (b *builder) rollback() {
	if !b.r.AntiRollback {
		return
	}
	for _, e := range b.l.Table.Entries {
		if e.Type == partition.TypeApp && (e.Subtype == partition.AppFactory || e.Subtype == partition.AppTest) {
			b.refuse(recipe.File{}, "use a partition table with ota slots only", "%v: ESP-IDF's anti-rollback knows no factory or test application", e)
		}
	}
	first := true
	for _, r := range b.l.Regions {
		if r.Kind != App || r.Image == nil || r.Image.AppDesc == nil {
			continue
		}
		switch v := r.Image.AppDesc.SecureVersion; {
		case first:
			b.l.SecureVersion, first = v, false
		case v != b.l.SecureVersion:
			b.refuse(recipe.File{Path: r.File, Offset: r.Offset}, "build all applications with one secure version (CONFIG_BOOTLOADER_APP_SECURE_VERSION)",
				"its secure version is %d, that of another application %d", v, b.l.SecureVersion)
		}
	}
}

// rest decides about every sector that no file goes to.
func (b *builder) rest() {
	for _, e := range b.l.Table.Entries {
		if e.Is(partition.TypeData, partition.DataOTA) && !b.written(e.Offset) {
			b.l.Regions = append(b.l.Regions, Region{
				Name: e.Label, Kind: OTAData, Offset: e.Offset, Encrypt: true, Plain: pad(nil, partition.OTADataSize),
			})
		}
	}
	slices.SortFunc(b.l.Regions, func(x, y Region) int { return cmp.Compare(x.Offset, y.Offset) })

	var claimed []Range // everything but the gaps
	claim := func(list *[]Range, name string, from, to uint32) {
		if from < to {
			*list = append(*list, Range{Name: name, Offset: from, Size: to - from})
			claimed = append(claimed, Range{Offset: from, Size: to - from})
		}
	}
	ends := map[uint32]uint32{} // first sector after a region, by where it begins
	for _, r := range b.l.Regions {
		ends[r.Offset] = roundUp(uint64(r.End()))
		claimed = append(claimed, Range{Offset: r.Offset, Size: ends[r.Offset] - r.Offset})
	}
	if u := b.l.UnitData; u != nil {
		claimed = append(claimed, *u)
	}
	claim(&b.l.Erase, string(Bootloader), ends[b.m.BootloaderOffset], b.r.TableOffset)
	for _, e := range b.l.Table.Entries {
		end, written := ends[e.Offset]
		switch {
		case fixed(e), b.l.UnitData != nil && b.l.UnitData.Offset == e.Offset:
		case b.r.Keeps(e.Label):
			claim(&b.l.Untouched, e.Label, e.Offset, roundUp(e.End()))
		case written:
			claim(&b.l.Erase, e.Label, end, roundUp(e.End()))
		default:
			claim(&b.l.Erase, e.Label, e.Offset, roundUp(e.End()))
		}
	}
	byOffset := func(x, y Range) int { return cmp.Compare(x.Offset, y.Offset) }
	slices.SortFunc(claimed, byOffset)
	at := uint32(0)
	for _, c := range append(slices.Clone(claimed), Range{Offset: b.l.FlashSize}) {
		claim(&b.l.Untouched, "no partition", at, c.Offset)
		at = max(at, c.End())
	}
	slices.SortFunc(b.l.Erase, byOffset)
	slices.SortFunc(b.l.Untouched, byOffset)
}

func (b *builder) written(offset uint32) bool {
	return slices.ContainsFunc(b.l.Regions, func(r Region) bool { return r.Offset == offset })
}

// roundUp gives the next sector. Flash sizes are whole sectors, and so no
// partition inside the flash rounds up beyond 32 bits.
func roundUp(addr uint64) uint32 { return uint32((addr + Sector - 1) / Sector * Sector) }
