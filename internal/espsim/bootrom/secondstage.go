package bootrom

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the partition table's own checksum
	"fmt"
)

// The partition table (esp-facts D.3, ESP-IDF
// components/bootloader_support/include/esp_flash_partitions.h).
const (
	tableLen    = 0xC00
	rowLen      = 32
	rowMagic    = 0x50AA // bytes AA 50
	md5Magic    = 0xEBEB
	sectorSize  = 0x1000
	maxOTASlots = 16

	typeApp, typeData                       = 0x00, 0x01
	subtypeFactory, subtypeOTA, subtypeTest = 0x00, 0x10, 0x20
	subtypeOTAData, subtypeNVSKeys          = 0x00, 0x04
)

// Indexes of what is no OTA slot, as the second stage counts.
const (
	factoryIndex = -1
	invalidIndex = -99
)

type partition struct{ offset, size uint32 }

// partitions is what the second stage keeps of the partition table.
type partitions struct {
	otaData, factory, test partition
	ota                    [maxOTASlots]partition
	apps                   int
	hasMD5                 bool
}

// log prints a line as ESP-IDF's logging does. The time stamps are made up, and
// the same for the same path, so that a boot is a pure function.
func (b *boot) log(level byte, tag, format string, args ...any) {
	b.clock += 5
	fmt.Fprintf(&b.out, "%c (%d) %s: %s\r\n", level, b.clock, tag, fmt.Sprintf(format, args...))
}

func (b *boot) infof(tag, format string, args ...any)  { b.log('I', tag, format, args...) }
func (b *boot) errorf(tag, format string, args ...any) { b.log('E', tag, format, args...) }

// secondStage is ESP-IDF's bootloader, and the app's own start as far as it reads
// the partition table. It reports whether the app runs.
func (b *boot) secondStage(h imageHeader) bool {
	b.clock = 25
	b.infof("boot", "ESP-IDF 2nd stage bootloader (simulated)")
	b.infof("boot", "chip revision: %s", b.in.Revision)
	if !b.checkChip(h, false) {
		return false
	}
	t, ok := b.loadTable(h)
	if !ok {
		b.errorf("boot", "load partition table error!")
		return false
	}
	start := b.selectApp(t)
	if start == invalidIndex || !b.loadApp(t, start) {
		return false
	}
	if b.again != 0 {
		return true
	}
	if !t.hasMD5 {
		b.errorf("partition", "No MD5 found in partition table")
		b.errorf("partition", "load_partitions returned 0x105")
		return false
	}
	if d, ok := b.describe(partition{b.app.Offset, b.app.Size}); ok {
		b.infof("app_init", "Project name:     %s", d.project)
		b.infof("app_init", "App version:      %s", d.version)
		if b.in.AntiRollback {
			b.infof("app_init", "Secure version:   %d", d.secureVersion)
		}
	}
	if b.in.AppPrints != "" {
		b.out.WriteString(b.in.AppPrints + "\r\n")
	}
	return true
}

// loadTable reads and checks the partition table (ESP-IDF flash_partitions.c,
// bootloader_utility.c).
func (b *boot) loadTable(h imageHeader) (partitions, bool) {
	t, names, ok := b.parseTable(h)
	if !ok {
		b.errorf("boot", "Failed to verify partition table")
		return t, false
	}
	b.infof("boot", "Partition Table:")
	b.infof("boot", "## Label            Usage          Type ST Offset   Length")
	for _, line := range names {
		b.infof("boot", "%s", line)
	}
	b.infof("boot", "End of partition table")
	return t, true
}

func (b *boot) parseTable(h imageHeader) (t partitions, names []string, ok bool) {
	size := b.in.FlashSize
	if h.flashSize() != 0 {
		size = h.flashSize()
	}
	raw, err := b.flash.read(b.in.PartitionTable, tableLen)
	if err != nil {
		b.errorf("boot", "bootloader_mmap(0x%x, 0x%x) failed", b.in.PartitionTable, tableLen)
		return t, nil, false
	}
	for i := range tableLen / rowLen {
		row := raw[i*rowLen : (i+1)*rowLen]
		switch magic := le16(row); {
		case magic == rowMagic:
			p := partition{offset: le32(row[4:]), size: le32(row[8:])}
			if uint64(p.offset)+uint64(p.size) > uint64(size) {
				b.errorf("flash_parts", "partition %d invalid - offset 0x%x size 0x%x exceeds flash chip size 0x%x",
					i, p.offset, p.size, size)
				return t, nil, false
			}
			label, _, _ := bytes.Cut(row[12:28], []byte{0})
			usage := t.add(row[2], row[3], p)
			names = append(names, fmt.Sprintf("%2d %-16s %-16s %02x %02x %08x %08x",
				len(names), printable(label), usage, row[2], row[3], p.offset, p.size))
		case magic == md5Magic:
			if t.hasMD5 {
				b.errorf("flash_parts", "Only one MD5 checksum is allowed")
				return t, nil, false
			}
			if md5.Sum(raw[:i*rowLen]) != [md5.Size]byte(row[16:]) { //nolint:gosec // as above
				b.errorf("flash_parts", "Incorrect MD5 checksum")
				return t, nil, false
			}
			t.hasMD5 = true
		case magic == 0xFFFF && row[2] == 0xFF && row[3] == 0xFF:
			return t, names, true
		default:
			b.errorf("flash_parts", "partition %d invalid magic number 0x%x", i, magic)
			return t, nil, false
		}
	}
	b.errorf("flash_parts", "partition table has no terminating entry, not valid")
	return t, nil, false
}

// add keeps a row that booting needs and names its use.
func (t *partitions) add(typ, sub byte, p partition) (usage string) {
	switch {
	case typ == typeApp && sub == subtypeFactory:
		t.factory = p
		return "factory app"
	case typ == typeApp && sub == subtypeTest:
		t.test = p
		return "test app"
	case typ == typeApp && sub&0xF0 == subtypeOTA:
		t.ota[sub&0xF] = p
		t.apps++
		return "OTA app"
	case typ == typeApp:
		return "Unknown app"
	case typ == typeData && sub == subtypeOTAData:
		t.otaData = p
		return "OTA data"
	case typ == typeData && sub == 1:
		return "RF data"
	case typ == typeData && sub == 2:
		return "WiFi data"
	case typ == typeData && sub == subtypeNVSKeys:
		return "NVS keys"
	case typ == typeData && sub == 5:
		return "efuse"
	case typ == typeData:
		return "Unknown data"
	}
	return "unknown"
}

// printable keeps noise in a label from becoming control characters on a terminal.
func printable(label []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7E {
			return '.'
		}
		return r
	}, label))
}

// loadApp tries the apps in the second stage's order: from the selected one down
// to the factory app, then the slots after it, then the test app.
func (b *boot) loadApp(t partitions, start int) bool {
	var order []int
	for i := start; i >= factoryIndex; i-- {
		order = append(order, i)
	}
	for i := start + 1; i < t.apps; i++ {
		order = append(order, i)
	}
	for _, i := range order {
		p, name, label := t.factory, "Factory app partition", "factory"
		if i != factoryIndex {
			// The slots are counted in the table but looked up by subtype: a hole
			// in their numbers hides the last one, as in ESP-IDF.
			p, name, label = partition{}, fmt.Sprintf("OTA app partition slot %d", i), otaName(i)
			if i < min(t.apps, maxOTASlots) {
				p = t.ota[i]
			}
		}
		if p.size == 0 {
			continue
		}
		if !b.in.AntiRollback || b.newEnough(p) {
			if app, ok := b.load(label, p); ok {
				b.settle(t, i)
				if b.firstBoot(app) {
					return true
				}
			}
		}
		b.errorf("boot", "%s is not bootable", name)
	}
	if t.test.size != 0 {
		if app, ok := b.load("test", t.test); ok {
			b.log('W', "boot", "Falling back to test app as only bootable partition")
			if b.firstBoot(app) {
				return true
			}
		}
	}
	b.errorf("boot", "No bootable app partitions in the partition table")
	return false
}

// load checks the app in a partition. It goes into b.app.
func (b *boot) load(name string, p partition) (appImage, bool) {
	app, ok := b.verifyApp(p.offset, p.size)
	if ok {
		b.infof("boot", "Loaded app from partition at offset 0x%x", p.offset)
		b.app = Partition{name, p.offset, p.size}
	}
	return app, ok
}
