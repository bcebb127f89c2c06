package bootrom

import (
	"math/bits"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

// enableEncryption is the first boot of a build with flash encryption in release
// configuration: key, fuses, all of the flash that is to be encrypted, counter.
func (b *boot) enableEncryption() bool {
	count := b.in.Model.EFuse.FlashCryptCount
	if b.fuses.get("WR_DIS."+count) != 0 {
		b.errorf("flash_encrypt", "Flash Encryption cannot be enabled (CRYPT_CNT (%d) is write protected)", bits.OnesCount64(b.fuses.get(count)))
		return false
	}
	key := b.in.Key
	if b.fuses.get(count) == 0 {
		var ok bool
		if key, ok = b.encryptionKey(); !ok {
			b.fuses.cancel()
			b.errorf("boot", "Initialization of Flash Encryption key failed (-1)")
			return false
		}
		for _, a := range b.si.FirstBoot.Encryption {
			b.fuses.set(a.Field, uint64(a.Value))
		}
		if b.in.Build.SecureBoot {
			b.fuses.fill("WR_DIS.RD_DIS")
		}
		if !b.programmed() {
			b.errorf("flash_encrypt", "Error programming security eFuses (err=0xffffffff).")
			return false
		}
		if b.oneKeyBlock() && b.in.Build.SecureBoot {
			b.infof("boot", "Secure boot permanently enabled")
		}
	}
	in := b.in
	in.Key, in.FlashCryptCount, in.FlashCryptConfig = key, 1, uint32(b.fuses.get("FLASH_CRYPT_CONFIG"))
	if !b.encryptFlash(newFlashView(in)) {
		return false
	}
	b.infof("flash_encrypt", "Setting CRYPT_CNT for permanent encryption")
	b.fuses.fill(count)
	if b.oneKeyBlock() {
		b.fuses.fill("WR_DIS." + count) // it locks XTS_KEY_LENGTH_256 too
	}
	b.fuses.commit()
	b.infof("flash_encrypt", "Flash encryption completed")
	return true
}

// encryptionKey finds the key in the fuses or makes one, and gives it in the order
// of the array.
func (b *boot) encryptionKey() ([]byte, bool) {
	purposes := []int{purposeXTS128}
	switch {
	case b.in.Model.Scheme == chip.SchemeESP32, b.oneKeyBlock():
		return b.onlyKey()
	case len(b.in.Key) == 64, b.in.Model.Scheme == chip.SchemeXTS256:
		purposes = []int{purposeXTS256a, purposeXTS256b}
	}
	found := 0
	for _, p := range purposes {
		blk, n, ok := b.fuses.keyBlock(p)
		if !ok {
			continue
		}
		found++
		if b.fuses.get("WR_DIS."+blk.Name) == 0 || b.fuses.get("RD_DIS."+blk.Name) == 0 || b.fuses.get("WR_DIS."+purposeField(n)) == 0 {
			b.errorf("flash_encrypt", "Invalid key state, check read&write protection for key and keypurpose(if exists)")
			return nil, false
		}
	}
	switch found {
	case len(purposes):
		b.infof("flash_encrypt", "Using pre-loaded flash encryption key in efuse")
		return b.in.Key, true
	case 0:
	default:
		b.errorf("flash_encrypt", "Invalid efuse key blocks: Both AES-256 key blocks must be set.")
		return nil, false
	}
	b.infof("flash_encrypt", "Generating new flash encryption key...")
	key := b.in.NewKey[:32*len(purposes)]
	for i, p := range purposes {
		if !b.writeKey(key[32*i:32*i+32], p) {
			return nil, false
		}
	}
	return slices.Clone(key), true
}

// onlyKey is encryptionKey on a chip where one block alone can hold the key.
func (b *boot) onlyKey() ([]byte, bool) {
	name, block, size := "BLOCK1", 1, 32
	if b.oneKeyBlock() {
		blk, _, _ := b.fuses.keyBlock(0)
		name, block = blk.Name, blk.Index
		if b.in.Build.SecureBoot {
			size = 16
		}
	} else if b.fuses.get("CODING_SCHEME") == 1 {
		size = 24
	}
	locked, hidden := b.fuses.get("WR_DIS."+name) != 0, b.fuses.get("RD_DIS."+name) != 0
	if locked || hidden || !blank(b.fuses.bytes(block)) {
		if !locked || !hidden {
			b.errorf("flash_encrypt", "Invalid key state, check read&write protection for key and keypurpose(if exists)")
			return nil, false
		}
		b.infof("flash_encrypt", "Using pre-loaded flash encryption key in efuse")
		return b.in.Key, true
	}
	b.infof("flash_encrypt", "Generating new flash encryption key...")
	key := slices.Clone(b.in.NewKey[:size])
	b.fuses.put(block, key)
	b.fuses.fill("WR_DIS." + name)
	switch {
	case b.oneKeyBlock() && size == 16:
		b.fuses.set("RD_DIS", 1)
	default:
		b.fuses.fill("RD_DIS." + name)
		if b.oneKeyBlock() {
			b.fuses.fill("XTS_KEY_LENGTH_256")
		}
	}
	return key, true
}

// encryptFlash lists the writes that encrypt in place what ESP-IDF encrypts.
func (b *boot) encryptFlash(to *flashView) bool {
	loader, ok := b.plainImage(b.in.Model.BootloaderOffset)
	if !ok {
		b.log('W', "flash_encrypt", "no valid bootloader was found")
		return false
	}
	b.encryptRegion(to, b.in.Model.BootloaderOffset, loader)
	b.infof("flash_encrypt", "bootloader encrypted successfully")
	b.encryptRegion(to, b.in.PartitionTable, sectorSize)
	b.infof("flash_encrypt", "partition table encrypted and loaded successfully")
	raw, err := b.flash.read(b.in.PartitionTable, tableLen)
	if err != nil {
		return false
	}
	for i := range tableLen / rowLen {
		row := raw[i*rowLen : (i+1)*rowLen]
		if le16(row) != rowMagic {
			break
		}
		at, size := le32(row[4:]), le32(row[8:])
		encrypted := le32(row[28:])&1 != 0
		switch typ, sub := row[2], row[3]; {
		case typ == typeApp:
			_, encrypted = b.plainImage(at)
		case typ == typeData && (sub == subtypeOTAData || sub == subtypeNVSKeys):
			encrypted = true
		}
		if !encrypted {
			continue
		}
		b.infof("flash_encrypt", "Encrypting partition %d at offset 0x%x (length 0x%x)...", i, at, size)
		b.encryptRegion(to, at, size)
		b.infof("flash_encrypt", "Done encrypting")
	}
	return true
}

// plainImage says how far an image reaches, with its signature sector if the build
// has such, and whether there is an intact one in plaintext.
func (b *boot) plainImage(at uint32) (length uint32, ok bool) {
	app, ok := b.imageAt(at)
	if !ok || app.img.sum != app.img.storedSum {
		return 0, false
	}
	length = padded(at+app.length) - at
	if b.in.Build.SecureBoot {
		length += sigSector
	}
	return length, true
}

func (b *boot) encryptRegion(to *flashView, at, size uint32) {
	raw, err := b.flash.read(at, padded(size))
	if err != nil {
		return
	}
	for i := 0; i < len(raw); i += sectorSize {
		sector := at + uint32(i)
		b.writes = append(b.writes, Write{Sector: sector, Data: to.stored(sector, raw[i:i+sectorSize])})
	}
}
