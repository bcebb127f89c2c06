package report

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
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
// Key blocks that can be read are fingerprints here. One that holds a digest that Secure
// Boot trusts, which is public and has to stay readable, is written out if it is among
// digests. A unit with any other gets no token but ErrReadableKey.
func Token(chipName string, rev chip.Revision, blocks []efuse.BlockWords, errs []efuse.ErrorRegister, digests ...keystore.Digest) (string, error) {
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
		words, err := blockWords(t, want, blocks[i].Words, digests)
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

// blockWords gives the words of a block, those of digests by their fingerprints.
func blockWords(t *table.Table, b table.Block, texts []string, digests []keystore.Digest) ([]uint32, error) {
	if len(texts) == 0 || !strings.HasPrefix(texts[0], "fp:") {
		return parseWords(texts)
	}
	data := make([]byte, 4*b.Words)
	for _, text := range texts {
		found := false
		for _, s := range t.Slots() {
			for _, d := range digests {
				burned := d[:min(s.Bytes, len(d))]
				if s.Block == b.Index && takesDigest(t, s) && text == "fp:"+keystore.FingerprintBytes(burned).String() {
					copy(data[s.Offset:], burned)
					found = true
				}
			}
		}
		if !found {
			return nil, ErrReadableKey
		}
	}
	words := make([]uint32, b.Words)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(data[4*i:])
	}
	return words, nil
}

// takesDigest reports whether a slot can hold a digest: something for which it must be readable.
func takesDigest(t *table.Table, s table.Slot) bool {
	return slices.ContainsFunc(t.Purposes(), func(p table.Purpose) bool {
		return p.Reading == table.ReadNever && (p.Block == "" || p.Block == s.Name)
	})
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
