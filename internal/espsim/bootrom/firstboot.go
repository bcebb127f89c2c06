package bootrom

import (
	"bytes"
	"crypto/sha256"
	"math/bits"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

// What ESP-IDF's bootloader and app burn by themselves (esp-facts E.4, F.3; ESP-IDF
// components/bootloader_support/src/{secure_boot_v2,flash_encryption}/ and
// secure_boot.c, flash_encrypt.c).

const noDigests = "Secure boot V2 is not enabled yet and eFuse digest keys are not set"

// checksApps reports whether the second stage was built to check signatures.
func (b *boot) checksApps() bool { return b.in.Build.SecureBoot || b.secureBootOn() }

// buildScheme is the signature scheme that bootloader and app were built for: unless
// it was said, the one that the bootloader is signed with.
func (b *boot) buildScheme() chip.SignatureScheme {
	if b.in.Build.Scheme != "" {
		return b.in.Build.Scheme
	}
	if b.scheme == "" {
		b.scheme = b.in.Model.SecureBoot.Schemes[0].Scheme
		if loader, ok := b.readLoader(); ok {
			if blocks, err := b.sector(padded(loader.at + loader.length)); err == nil && blocks[0][0] == sigMagic {
				b.scheme = parseSignature(blocks[0]).scheme
			}
		}
	}
	return b.scheme
}

// readLoader finds out how long the bootloader in flash is.
func (b *boot) readLoader() (appImage, bool) { return b.imageAt(b.in.Model.BootloaderOffset) }

// imageAt reads an image without a word about it. It reports whether one is there,
// with its checksum right.
func (b *boot) imageAt(at uint32) (appImage, bool) {
	app := appImage{at: at}
	raw, err := b.flash.read(at, headerLen)
	if err != nil || raw[0] != imageMagic || raw[1] > maxSegments {
		return app, false
	}
	app.img, err = readImage(b.flash, at, parseHeader(raw), func(segment) error { return nil })
	app.length = app.img.length
	return app, err == nil && app.img.calculated == app.img.stored
}

// print is the mask ROM's functions called by the second stage: they print even
// when the ROM's own messages are switched off.
func (b *boot) print(format string, args ...any) { writef(&b.out, format, args...) }

// schemeName is how ESP-IDF's log names a scheme.
func schemeName(s chip.SignatureScheme) string {
	if s.ECDSA() {
		return "ECDSA"
	}
	return "RSA"
}

// verifyAppSignature is the second stage's check of the signature behind an image,
// the bootloader's own included. It keeps what it read in app.
func (b *boot) verifyAppSignature(app *appImage) bool {
	b.infof("esp_image", "Verifying image signature...")
	end := padded(app.at + app.length)
	var err error
	if app.digests, err = b.imageDigests(app.at, end); err == nil {
		app.blocks, err = b.sector(end)
	}
	if err != nil {
		b.errorf("esp_image", "bootloader_flash_read failed at 0x%08x", end)
		return false
	}
	if b.verifySignature(app) {
		return true
	}
	b.errorf("esp_image", "Secure boot signature verification failed")
	b.infof("esp_image", "Calculating simple hash to check for corruption...")
	if app.img.sum != app.img.storedSum {
		b.errorf("esp_image", "Image hash failed - image is corrupt")
		b.log('W', "esp_image", "image corrupted on flash")
		return false
	}
	b.log('W', "esp_image", "image valid, signature bad")
	return false
}

func (b *boot) verifySignature(app *appImage) bool {
	sb, scheme := b.in.Model.SecureBoot, b.buildScheme()
	trusted := b.trustedKeys()
	if sb.DigestIn != chip.DigestInKeyBlocks && len(trusted) == 1 && blank(trusted[0].digest) {
		trusted = nil
	}
	if len(trusted) == 0 {
		if b.secureBootOn() {
			b.errorf("secure_boot_v2", "Could not read eFuse secure boot digests!")
			return false
		}
		b.infof("secure_boot_v2", noDigests)
		for i, raw := range app.blocks {
			if raw[0] == sigMagic && le32(raw[sigCRC:]) == crcOf(raw) && parseSignature(raw).scheme == scheme {
				sum := sha256.Sum256(parseSignature(raw).key)
				trusted = append(trusted, trustedKey{i, sum[:sb.DigestBytes]})
			}
		}
	}
	if scheme.ECDSA() {
		b.infof("secure_boot_v2", "Verifying with ECDSA...")
	} else {
		b.infof("secure_boot_v2", "Verifying with RSA-PSS...")
	}
	version := byte(versionRSA)
	if scheme.ECDSA() {
		version = versionECDSA
	}
	if sb.DigestIn != chip.DigestInBlock2 && !slices.ContainsFunc(app.blocks[:sb.DigestSlots], func(raw []byte) bool { return raw[1] == version }) {
		b.errorf("secure_boot_v2", "No signature block generated for valid scheme")
		b.errorf("secure_boot_v2", "%s signing scheme selected but no signature block for the selected scheme", schemeName(scheme))
		return false
	}
	if _, ok, _ := b.verifySector(app.blocks, app.digests, trusted, b.print); !ok {
		b.errorf("secure_boot_v2", "Secure Boot V2 verification failed.")
		return false
	}
	b.infof("secure_boot_v2", "Signature verified successfully!")
	return true
}

func blank(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }

// imageKeys gives the key digests of an image's valid signature blocks, in order,
// or false if one of them does not verify with its own key.
func (b *boot) imageKeys(app *appImage) ([][]byte, bool) {
	var keys [][]byte
	for i, raw := range app.blocks[:b.in.Model.SecureBoot.DigestSlots] {
		if raw[0] != sigMagic {
			break
		}
		s := parseSignature(raw)
		if le32(raw[sigCRC:]) != crcOf(raw) {
			b.errorf("secure_boot_v2", "Magic byte correct but incorrect crc.")
			break
		}
		if !bytes.Equal(s.digest, app.digests.of(s.scheme)) {
			b.errorf("secure_boot_v2", "Magic byte & CRC correct but incorrect image digest.")
			break
		}
		if s.scheme != b.buildScheme() || !s.verify() {
			b.errorf("secure_boot_v2", "Secure boot key (%d) verification failed.", i)
			return nil, false
		}
		sum := sha256.Sum256(s.key)
		keys = append(keys, sum[:b.in.Model.SecureBoot.DigestBytes])
	}
	if len(keys) > 0 {
		b.infof("secure_boot_v2", "Digests successfully calculated, %d valid signatures (image offset 0x%x)", len(keys), app.at)
	}
	return keys, true
}

// encrypting reports whether flash encryption is on, as the second stage reads it.
func (b *boot) encrypting() bool {
	return bits.OnesCount64(b.fuses.get(b.in.Model.EFuse.FlashCryptCount))%2 == 1
}

// oneKeyBlock reports whether flash encryption and Secure Boot share the only key
// block, which takes one burn for both.
func (b *boot) oneKeyBlock() bool { return b.in.Model.SecureBoot.DigestIn == chip.DigestInKey0High }

// firstBoot is what the second stage does between loading an app and starting it,
// and then the app's own checks at its start. It reports false if the app does not
// start; b.again says that a reset follows although all went well.
func (b *boot) firstBoot(app appImage) bool {
	build := b.in.Build
	if !build.SecureBoot && !build.FlashEncryption {
		return true
	}
	together := build.SecureBoot && build.FlashEncryption && b.oneKeyBlock()
	was := b.secureBootOn()
	if together && was != (b.fuses.get(b.in.Model.EFuse.FlashCryptCount) != 0) {
		b.errorf("boot", "Secure Boot and Flash Encryption cannot be enabled separately, only together (their keys go into one eFuse key block)")
		return false
	}
	if build.SecureBoot {
		if !b.enableSecureBoot(app, together) {
			b.errorf("boot", "Secure Boot v2 failed (-1)")
			return false
		}
	}
	if build.FlashEncryption {
		b.infof("boot", "Checking flash encryption...")
		if !b.encrypting() {
			if !b.enableEncryption() {
				return false
			}
			b.infof("boot", "Resetting with flash encryption enabled...")
			b.again = resetSoftware
			return true
		}
		f := b.in.Model.EFuse
		left := (bits.OnesCount32(f.FlashCryptCountFull) - bits.OnesCount64(b.fuses.get(f.FlashCryptCount))) / 2
		if b.fuses.get("WR_DIS."+f.FlashCryptCount) != 0 {
			left = 0
		}
		b.infof("flash_encrypt", "flash encryption is enabled (%d plaintext flashes left)", left)
	}
	if build.SecureBoot && !b.checkSecureBoot() {
		return false
	}
	if build.FlashEncryption {
		b.checkEncryption()
	}
	b.closeLoader()
	return true
}

// closeLoader is what an app does to the loader at each start, whoever turned Secure
// Boot or flash encryption on (ESP-IDF components/efuse/src/esp_efuse_startup.c).
func (b *boot) closeLoader() {
	if b.fillLoaderFuse() {
		b.fuses.commit()
	}
}

// fillLoaderFuse adds the build's fuse for the loader to the batch. It reports false
// where ESP-IDF's functions for it refuse.
func (b *boot) fillLoaderFuse() bool {
	switch b.in.Build.DownloadMode {
	case KeepDownloadMode:
	case SecureDownloadMode:
		if b.si.SecureDownload == "" || b.fuses.get(b.si.DisableDownload) != 0 {
			return false
		}
		b.fuses.fill(b.si.SecureDownload)
	case DisableDownloadMode:
		if b.in.Revision < b.rom.DisabledFrom {
			return false
		}
		b.fuses.fill(b.si.DisableDownload)
	}
	return true
}

// programmed commits a batch and logs what ESP-IDF does when bits did not take.
func (b *boot) programmed() bool {
	if b.fuses.commit() {
		return true
	}
	b.errorf("efuse", "Written data are incorrect")
	return false
}

// enableSecureBoot burns what Secure Boot lacks. With together it leaves the batch
// open for the flash encryption key.
func (b *boot) enableSecureBoot(app appImage, together bool) bool {
	b.infof("secure_boot_v2", "enabling secure boot v2...")
	if b.secureBootOn() {
		b.infof("secure_boot_v2", "secure boot v2 is already enabled, continuing..")
		return true
	}
	if !b.secureBootKeys(app) {
		b.fuses.cancel()
		b.infof("efuse", "Batch mode of writing fields is cancelled")
		return false
	}
	b.infof("secure_boot_v2", "blowing secure boot efuse...")
	sb := b.in.Model.SecureBoot
	for _, a := range b.si.FirstBoot.SecureBoot {
		b.fuses.set(a.Field, uint64(a.Value))
	}
	if !b.fillLoaderFuse() {
		b.fuses.cancel()
		return false
	}
	if b.in.Build.AggressiveRevoke {
		b.fuses.fill(sb.AggressiveRevokeField)
	}
	if b.buildScheme() == chip.SignECDSA384 {
		b.fuses.fill(sb.SHA384Field)
	}
	b.fuses.fill(sb.EnableField)
	// With flash encryption to come, its key must be hidden first.
	if !b.in.Build.FlashEncryption || b.encrypting() || b.oneKeyBlock() {
		b.fuses.fill("WR_DIS.RD_DIS")
	}
	if together {
		return true
	}
	if !b.programmed() {
		b.errorf("secure_boot_v2", "Error programming security eFuses (err=0xffffffff).")
		return false
	}
	b.infof("secure_boot_v2", "Secure boot permanently enabled")
	return true
}

// secureBootKeys burns the bootloader's key digests if the fuses have none, and
// revokes the slots that stay empty.
func (b *boot) secureBootKeys(app appImage) bool {
	sb := b.in.Model.SecureBoot
	loader, ok := b.readLoader()
	if !ok || !b.verifyAppSignature(&loader) {
		b.errorf("secure_boot_v2", "bootloader image appears invalid! error -1")
		return false
	}
	present := b.digestSlots()
	var keys [][]byte
	if len(present) == 0 {
		b.infof("secure_boot_v2", "Secure boot digests absent, generating..")
		if keys, ok = b.imageKeys(&loader); !ok {
			b.errorf("secure_boot_v2", "Bootloader signature block is invalid")
			return false
		}
		if len(keys) == 0 {
			b.errorf("secure_boot_v2", "No valid bootloader signature blocks found.")
			return false
		}
		b.infof("secure_boot_v2", "%d signature block(s) found appended to the bootloader.", len(keys))
		b.infof("secure_boot_v2", "Burning public key hash to eFuse")
		if !b.burnDigests(keys) {
			return false
		}
	} else {
		b.infof("secure_boot_v2", "Secure boot digests already present")
		for _, s := range present {
			if s.revoked {
				continue
			}
			if s.hidden {
				b.errorf("secure_boot_v2", "Key digest (BLK%d) read protected, aborting...", s.block)
				return false
			}
			if blank(s.digest) {
				b.errorf("secure_boot_v2", "%d eFuse block is empty, aborting...", s.block)
				return false
			}
			b.fuses.fill("WR_DIS." + s.name)
			keys = append(keys, s.digest)
		}
		if len(keys) == 0 {
			b.errorf("secure_boot_v2", "No valid pre-loaded public key digest in eFuse")
			return false
		}
		b.log('W', "secure_boot_v2", "Using pre-loaded public key digest in eFuse")
	}
	appKeys, ok := b.imageKeys(&app)
	if !ok {
		b.errorf("secure_boot_v2", "Application signature block is invalid.")
		return false
	}
	if len(appKeys) == 0 {
		b.errorf("secure_boot_v2", "No valid applications signature blocks found.")
		return false
	}
	b.infof("secure_boot_v2", "%d signature block(s) found appended to the app.", len(appKeys))
	if len(appKeys) > len(keys) {
		b.log('W', "secure_boot_v2", "App has %d signature blocks but bootloader only has %d. Some keys missing from bootloader?", len(appKeys), len(keys))
	}
	match := false
	for i, k := range keys {
		if i < len(sb.RevokeFields) && b.fuses.get(sb.RevokeFields[i]) != 0 {
			b.infof("secure_boot_v2", "Key block(%d) has been revoked.", i)
			continue
		}
		for j, a := range appKeys {
			if bytes.Equal(k, a) {
				b.infof("secure_boot_v2", "Application key(%d) matches with bootloader key(%d).", j, i)
				match = true
			}
		}
	}
	if !match {
		b.errorf("secure_boot_v2", "No application key digest matches the bootloader key digest.")
		return false
	}
	for i := len(keys); i < len(sb.RevokeFields); i++ {
		if b.in.Build.AllowUnusedSlots {
			b.log('W', "secure_boot_v2", "Unused key digest slot (%d) left un-revoked due to the config SECURE_BOOT_ALLOW_UNUSED_DIGEST_SLOTS", i)
			continue
		}
		b.infof("secure_boot_v2", "Revoking empty key digest slot (%d)...", i)
		b.fuses.fill(sb.RevokeFields[i])
	}
	return true
}

// digestSlot is a slot of a key digest that is in use.
type digestSlot struct {
	slot, block     int
	name            string // of the block
	digest          []byte
	hidden, revoked bool
}

// digestSlots lists the slots that ESP-IDF takes for used.
func (b *boot) digestSlots() []digestSlot {
	var out []digestSlot
	sb := b.in.Model.SecureBoot
	for slot := range sb.DigestSlots {
		s := digestSlot{slot: slot, revoked: slot < len(sb.RevokeFields) && b.fuses.get(sb.RevokeFields[slot]) != 0}
		switch sb.DigestIn {
		case chip.DigestInKeyBlocks:
			k, _, ok := b.fuses.keyBlock(purposeDigest0 + slot)
			if !ok {
				continue
			}
			s.block, s.name = k.Index, k.Name
		case chip.DigestInBlock2:
			s.block, s.name = 2, "BLOCK2"
		case chip.DigestInKey0High:
			k, _, _ := b.fuses.keyBlock(0)
			s.block, s.name = k.Index, k.Name
		}
		s.digest = b.fuses.bytes(s.block)
		hidden := b.fuses.get("RD_DIS." + s.name)
		if sb.DigestIn != chip.DigestInKeyBlocks && hidden == 0 && b.fuses.get("WR_DIS."+s.name) == 0 && blank(s.digest) {
			continue // an unused block
		}
		s.hidden = hidden != 0 && sb.DigestIn != chip.DigestInKey0High
		s.digest = s.digest[len(s.digest)-sb.DigestBytes:]
		out = append(out, s)
	}
	return out
}

// burnDigests puts key digests into unused blocks.
func (b *boot) burnDigests(keys [][]byte) bool {
	sb := b.in.Model.SecureBoot
	for i, k := range keys {
		switch sb.DigestIn {
		case chip.DigestInBlock2:
			b.fuses.put(2, k)
			b.fuses.fill("WR_DIS.BLOCK2")
		case chip.DigestInKey0High:
			blk, _, _ := b.fuses.keyBlock(0)
			b.infof("efuse", "Writing EFUSE_BLK_KEY0 with purpose %d", 3)
			b.fuses.put(blk.Index, append(make([]byte, 16), k...))
			b.fuses.fill("WR_DIS." + blk.Name)
		default:
			if !b.writeKey(k, purposeDigest0+i) {
				b.errorf("secure_boot_v2", "Bootloader signatures(%d) more than available key slots.", len(keys))
				return false
			}
		}
	}
	return true
}

// writeKey puts a key into the next unused block of a chip with purpose fields.
func (b *boot) writeKey(k []byte, purpose int) bool {
	blk, n, ok := b.fuses.freeKeyBlock()
	if !ok {
		b.errorf("efuse", "Not enough unused key blocks available. Required 1, was 0")
		return false
	}
	b.infof("efuse", "Writing EFUSE_BLK_KEY%d with purpose %d", n, purpose)
	b.fuses.put(blk.Index, k)
	b.fuses.fill("WR_DIS." + blk.Name)
	b.fuses.set(purposeField(n), uint64(purpose))
	b.fuses.fill("WR_DIS." + purposeField(n))
	if purpose < purposeDigest0 {
		b.fuses.fill("RD_DIS." + blk.Name)
	}
	return true
}

// checkSecureBoot is the app's look at the fuses when it starts. It mends what
// Secure Boot left open, and gives up at what cannot be right.
func (b *boot) checkSecureBoot() bool {
	if !b.secureBootOn() {
		b.errorf("secure_boot", "Mismatch in secure boot settings: the app config is enabled but eFuse not")
		return true
	}
	sb, fix := b.in.Model.SecureBoot, false
	slots := b.digestSlots()
	for slot := range sb.DigestSlots {
		i := slices.IndexFunc(slots, func(s digestSlot) bool { return s.slot == slot })
		if i < 0 {
			if slot >= len(sb.RevokeFields) || b.fuses.get(sb.RevokeFields[slot]) != 0 {
				continue
			}
			if b.in.Build.AllowUnusedSlots {
				b.log('W', "secure_boot", "Unused SECURE_BOOT_DIGEST%d should be revoked. It will not be fixed due to the config", slot)
				continue
			}
			b.log('W', "secure_boot", "Unused SECURE_BOOT_DIGEST%d should be revoked. Fixing..", slot)
			b.fuses.fill(sb.RevokeFields[slot])
			fix = true
			continue
		}
		s := slots[i]
		if !s.revoked {
			switch {
			case s.hidden:
				b.errorf("secure_boot", "eFuse BLOCK%d should be readable", s.block)
				return false
			case blank(s.digest):
				b.errorf("secure_boot", "eFuse BLOCK%d should not be empty", s.block)
				return false
			case b.fuses.get("WR_DIS."+s.name) == 0:
				b.log('W', "secure_boot", "eFuse BLOCK%d should not be writeable. Fixing..", s.block)
				b.fuses.fill("WR_DIS." + s.name)
				fix = true
			}
		}
		if sb.DigestIn != chip.DigestInKeyBlocks {
			continue
		}
		if _, n, _ := b.fuses.keyBlock(purposeDigest0 + slot); b.fuses.get("WR_DIS."+purposeField(n)) == 0 {
			b.log('W', "secure_boot", "The KEY_PURPOSE_SECURE_BOOT_DIGEST%d should be write-protected. Fixing..", s.block)
			b.fuses.fill("WR_DIS." + purposeField(n))
			fix = true
		}
	}
	if !fix {
		return true
	}
	if !b.programmed() {
		b.errorf("secure_boot", "Error programming eFuses (err=0xffffffff)")
		return true
	}
	b.infof("secure_boot", "Fixed")
	return true
}

// checkEncryption is the app's look at flash encryption when it starts.
func (b *boot) checkEncryption() {
	count := b.in.Model.EFuse.FlashCryptCount
	lock := "WR_DIS." + count
	if b.in.Build.SecureBoot && b.secureBootOn() && b.encrypting() && b.fuses.get(lock) == 0 && !b.fuses.full(count) {
		b.errorf("flash_encrypt", "Flash encryption & Secure Boot together requires FLASH_CRYPT_CNT efuse to be write protected. Fixing now...")
		b.fuses.fill(lock)
		b.fuses.commit()
	}
	release := b.encrypting() && (b.fuses.get(lock) != 0 || b.fuses.full(count))
	for _, name := range b.si.FirstBoot.Release {
		release = release && b.fuses.full(name)
	}
	if release {
		b.infof("flash_encrypt", "Flash encryption mode is RELEASE")
		return
	}
	b.errorf("flash_encrypt", "Flash encryption error: app is set for RELEASE, but efuses are DEVELOPMENT (device is not secure). See Flash Encryption docs to transition.")
}
