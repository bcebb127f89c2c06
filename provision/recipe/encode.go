package recipe

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Encode writes the recipe as canonical YAML: every field with its effective
// value, in a fixed order. Parse reads it back as the same recipe.
func (r *Recipe) Encode() []byte {
	var b strings.Builder
	line := func(key, value string) { b.WriteString(key + ": " + value + "\n") }
	line("recipe", yamlText(r.Name))
	line("revision", strconv.Itoa(r.Revision))
	line("chip", r.Chip)
	if r.MinChipRevision != 0 {
		line("min_chip_revision", revisionText(r.MinChipRevision))
	}
	if r.MaxChipRevision != NoMaxRevision {
		line("max_chip_revision", revisionText(r.MaxChipRevision))
	}
	if r.Build != "" {
		line("build", yamlText(r.Build))
	} else {
		b.WriteString("images:\n")
		for _, i := range r.Images {
			fmt.Fprintf(&b, "  - {offset: 0x%x, file: %s, name: %s}\n", i.Offset, yamlText(i.File), yamlText(i.Name))
		}
	}
	line("flash_size", r.FlashSize.String())
	line("profile", string(r.Profile))
	if r.BootCheck.Enabled() {
		line("boot_check", fmt.Sprintf("{expect: %s, timeout: %s}", yamlText(r.BootCheck.Expect), r.BootCheck.Timeout))
	} else {
		line("boot_check", "off")
	}
	if len(r.Keep) > 0 {
		b.WriteString("keep:\n")
		for _, k := range r.Keep {
			b.WriteString("  - " + yamlText(k) + "\n")
		}
	}
	line("partition_table_offset", fmt.Sprintf("0x%x", r.TableOffset))
	line("baud", strconv.Itoa(r.Baud))
	if r.UnitData != nil {
		line("unit_data", fmt.Sprintf("{partition: %s, template: %s}", yamlText(r.UnitData.Partition), yamlText(r.UnitData.Template)))
	}
	if r.ECIES {
		line("encimg_ecies", "true")
	}
	if r.FlashEncryption != "" {
		line("flash_encryption", string(r.FlashEncryption))
	}
	if s := r.SecureBoot; s != nil {
		b.WriteString("secure_boot:\n")
		line("  scheme", string(s.Scheme))
		b.WriteString("  keys:\n")
		for _, k := range s.Keys {
			b.WriteString("    - " + yamlText(k) + "\n")
		}
		line("  aggressive_revoke", strconv.FormatBool(s.AggressiveRevoke))
		line("  accept_weak_ecdsa", strconv.FormatBool(s.AcceptWeakECDSA))
	}
	if r.AntiRollback {
		line("anti_rollback", "true")
	}
	if r.AcceptSDMErrata {
		line("accept_sdm_errata", "true")
	}
	if r.Stub != "" {
		line("stub", yamlText(r.Stub))
	}
	return []byte(b.String())
}

// yamlText quotes printable text. Inside double quotes only these two mean
// anything to YAML.
func yamlText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func revisionText(r fmt.Stringer) string { return `"` + strings.TrimPrefix(r.String(), "v") + `"` }

// Hash stands for what the recipe makes of a unit. Two recipes with the same hash
// and the same image hashes make the same product, however they are written.
//
// It leaves out where the images lie (their contents have hashes of their own), the
// baud rate and the flasher stub: moving a build directory or slowing down a bad line does
// not make another job of a unit that is half done. docs/recipe.md describes
// the hashed bytes.
func (r *Recipe) Hash() [sha256.Size]byte {
	h := sha256.New()
	put := func(key, value string) { _, _ = fmt.Fprintf(h, "%s=%d:%s\n", key, len(value), value) }
	_, _ = io.WriteString(h, "provisiond recipe v1\n")
	put("recipe", r.Name)
	put("revision", strconv.Itoa(r.Revision))
	put("chip", r.Chip)
	put("min_chip_revision", strconv.Itoa(int(r.MinChipRevision)))
	put("max_chip_revision", strconv.Itoa(int(r.MaxChipRevision)))
	put("flash_size", strconv.FormatUint(uint64(r.FlashSize), 10))
	put("profile", string(r.Profile))
	put("boot_check.expect", r.BootCheck.Expect)
	put("boot_check.timeout", strconv.FormatInt(r.BootCheck.Timeout.Nanoseconds(), 10))
	for _, k := range slices.Sorted(slices.Values(r.Keep)) {
		put("keep", k)
	}
	put("partition_table_offset", strconv.FormatUint(uint64(r.TableOffset), 10))
	// Fields that came later are hashed where they say something, so that the
	// recipes of before keep their hashes.
	if r.UnitData != nil {
		put("unit_data.partition", r.UnitData.Partition)
	}
	if r.Template != nil {
		put("unit_data.template", hex.EncodeToString(r.Template.SHA256[:]))
	}
	if r.ECIES {
		put("encimg_ecies", "true")
	}
	if r.FlashEncryption != "" && r.FlashEncryption != r.model.Scheme {
		put("flash_encryption", string(r.FlashEncryption))
	}
	if s := r.SecureBoot; s != nil {
		put("secure_boot.scheme", string(s.Scheme))
		for _, k := range r.SecureBootKeys {
			put("secure_boot.key", k.Digest().String())
		}
		put("secure_boot.aggressive_revoke", strconv.FormatBool(s.AggressiveRevoke))
		put("secure_boot.accept_weak_ecdsa", strconv.FormatBool(s.AcceptWeakECDSA))
	}
	if r.AntiRollback {
		put("anti_rollback", "true")
	}
	if r.AcceptSDMErrata {
		put("accept_sdm_errata", "true")
	}
	return [sha256.Size]byte(h.Sum(nil))
}
