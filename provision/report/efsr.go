package report

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// tokenName marks a snapshot of programmed eFuses, as opposed to staged writes.
const tokenName = "EFSR"

// ErrReadableKey says that a token cannot be made: it would hold the key.
var ErrReadableKey = errors.New("a key block can still be read, and a token would hold the key")

// Token writes eFuses in the vendor's exchange format, so that
// `espefuse --token TOKEN summary` shows them (esptool documentation,
// "Token Dump", section "Token Format"):
//
//	EFSR:<chip>:<revision, three digits>:<block 0>:…:<block n>:<errors>:<CRC>
//
// Blocks and error registers are 32-bit words, little endian, in unpadded
// base64url; what is all zero is empty. The CRC is CRC-32 (IEEE) over all
// characters before it, little endian.
//
// Key blocks that can be read are fingerprints here, so a unit that has one gets
// no token but ErrReadableKey.
func Token(chipName string, rev chip.Revision, blocks []efuse.BlockWords, errs []efuse.ErrorRegister) (string, error) {
	t, err := table.For(chipName)
	if err != nil {
		return "", err
	}
	if len(blocks) != len(t.Blocks()) {
		return "", fmt.Errorf("%d eFuse blocks, and the %s has %d", len(blocks), chipName, len(t.Blocks()))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%s:%03d", tokenName, chipName, uint16(rev))
	for i, want := range t.Blocks() {
		if blocks[i].Block != want.Name {
			return "", fmt.Errorf("eFuse block %d is %s instead of %s", i, blocks[i].Block, want.Name)
		}
		words, err := parseWords(blocks[i].Words)
		if err != nil {
			return "", fmt.Errorf("eFuse block %s: %w", want.Name, err)
		}
		if len(words) != want.Words {
			return "", fmt.Errorf("eFuse block %s has %d words instead of %d", want.Name, len(words), want.Words)
		}
		b.WriteString(":" + tokenWords(words))
	}
	regs := make([]uint32, len(errs))
	for i, e := range errs {
		regs[i] = e.Value
	}
	b.WriteString(":" + tokenWords(regs) + ":")
	crc := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(b.String())))
	b.WriteString(base64.RawURLEncoding.EncodeToString(crc))
	return b.String(), nil
}

func parseWords(texts []string) ([]uint32, error) {
	words := make([]uint32, len(texts))
	for i, s := range texts {
		if strings.HasPrefix(s, "fp:") {
			return nil, ErrReadableKey
		}
		w, err := strconv.ParseUint(s, 16, 32)
		if err != nil || len(s) != 8 {
			return nil, fmt.Errorf("word %d is not 8 hex digits", i)
		}
		words[i] = uint32(w)
	}
	return words, nil
}

func tokenWords(words []uint32) string {
	var or uint32
	raw := make([]byte, 0, 4*len(words))
	for _, w := range words {
		or |= w
		raw = binary.LittleEndian.AppendUint32(raw, w)
	}
	if or == 0 {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}
