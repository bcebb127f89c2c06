package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/station/outbox"
)

type imageCmd struct {
	Encrypt imageEncryptCmd `cmd:"" help:"Encrypt a file for one key and one flash address."`
	Decrypt imageDecryptCmd `cmd:"" help:"Decrypt a file that was read from one flash address."`
	Info    imageInfoCmd    `cmd:"" help:"Describe an image, a partition table or OTA data."`
	Explain imageExplainCmd `cmd:"" help:"Say what a file is, which way into a unit takes it, and what the device prints otherwise."`
	Sign    imageSignCmd    `cmd:"" help:"Sign an image for Secure Boot V2."`
	Verify  imageVerifyCmd  `cmd:"" help:"Check the Secure Boot V2 signatures of an image."`
}

// cryptFlags are what both directions need.
type cryptFlags struct {
	Chip             string  `help:"The chip; it decides the scheme." required:"" placeholder:"C"`
	KeyFile          string  `help:"The key, in a file of mode 0600: 32 bytes; 24 for an ESP32 with 3/4 coding, 64 for XTS-AES-256, 16 for an ESP32-C2 with a derived key." required:"" placeholder:"F"`
	Address          address `help:"The flash address of the first byte." required:"" placeholder:"A"`
	FlashCryptConfig *uint8  `help:"FLASH_CRYPT_CONFIG of an ESP32, 0 to 15. Default: 15." placeholder:"N"`
	In               string  `arg:"" help:"The file to read." placeholder:"IN"`
	Out              string  `arg:"" help:"The file to write." placeholder:"OUT"`
}

// address reads 0x10000 as well as 65536.
type address uint32

func (v *address) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 32)
	if err != nil {
		return fmt.Errorf("%q is no flash address: write it as 0x10000", b)
	}
	*v = address(n)
	return nil
}

func (c cryptFlags) cipher() (chip.Model, flashcrypt.Cipher, error) {
	m, err := chip.ByName(c.Chip)
	if err != nil {
		return m, nil, usage("--chip: %w", err)
	}
	config, err := cryptConfig(m, c.FlashCryptConfig)
	if err != nil {
		return m, nil, err
	}
	key, err := readKeyFile(c.KeyFile)
	if err != nil {
		return m, nil, usage("--key-file: %w", err)
	}
	defer clear(key)
	scheme, err := m.SchemeFor(len(key))
	if err != nil {
		return m, nil, usage("--key-file %s: %w", c.KeyFile, err)
	}
	cipher, err := flashcrypt.New(scheme, key, config)
	if err != nil {
		return m, nil, usage("--key-file %s: %w", c.KeyFile, err)
	}
	return m, cipher, nil
}

// run reads, transforms and writes. The output appears whole or not at all.
func (c cryptFlags) run(pad bool, mode fs.FileMode, transform func(flashcrypt.Cipher, []byte) error) error {
	m, cipher, err := c.cipher()
	if err != nil {
		return err
	}
	if uint32(c.Address)%m.EncryptedAlign != 0 {
		return usage("--address 0x%x: on the %s it must be a multiple of %d (0x%x)", uint32(c.Address), m.Title, m.EncryptedAlign, m.EncryptedAlign)
	}
	b, err := readLimited(c.In, int64(m.MaxFlash))
	if err != nil {
		return usage("IN: %w", err)
	}
	if uint64(c.Address)+uint64(len(b)) > uint64(m.MaxFlash) {
		return usage("--address 0x%x: %d bytes from there reach beyond the %s's flash of %d MB", uint32(c.Address), len(b), m.Title, m.MaxFlash>>20)
	}
	if over := len(b) % int(m.EncryptedAlign); over != 0 {
		if !pad {
			return usage("IN %s: %d bytes are not whole blocks of %d: it is not what was read from flash", c.In, len(b), m.EncryptedAlign)
		}
		b = append(b, bytes.Repeat([]byte{0xFF}, int(m.EncryptedAlign)-over)...)
	}
	err = transform(cipher, b)
	cipher.Wipe()
	if err != nil {
		return err
	}
	return writeWhole(c.Out, b, mode)
}

type imageEncryptCmd struct{ cryptFlags }

func (c *imageEncryptCmd) Run(*app) error {
	return c.run(true, 0o666, func(ci flashcrypt.Cipher, b []byte) error { return ci.Encrypt(b, b, uint32(c.Address)) })
}

type imageDecryptCmd struct{ cryptFlags }

func (c *imageDecryptCmd) Run(*app) error {
	// What somebody encrypted is for its owner only.
	return c.run(false, 0o600, func(ci flashcrypt.Cipher, b []byte) error { return ci.Decrypt(b, b, uint32(c.Address)) })
}

// readKeyFile reads a flash key from a file that nobody else can read, or from a
// pipe, which has no mode that matters.
func readKeyFile(name string) ([]byte, error) {
	const limit = 128 // bytes: longer than any key
	if st, err := os.Stat(name); err == nil && st.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) != 0 {
		return readLimited(name, limit)
	}
	b, err := outbox.ReadSecret(name, limit)
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("%s is empty", name)
	}
	return b, err
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return b, nil
}

// writeWhole makes or replaces a file at once. What is no regular file, such as
// /dev/stdout, is written to and not replaced.
func writeWhole(path string, b []byte, mode fs.FileMode) error {
	switch st, err := os.Stat(path); {
	case err == nil && st.IsDir():
		return usage("OUT %s is a folder: name a file", path)
	case err == nil && !st.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return usage("OUT: %w", err)
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	case err == nil:
		if path, err = filepath.EvalSymlinks(path); err != nil { // the link stays
			return usage("OUT: %w", err)
		}
	}
	out, err := newWholeFile(path, mode)
	if err != nil {
		return usage("OUT %s cannot be written: %w", path, err)
	}
	defer out.drop()
	if _, err = out.Write(b); err == nil {
		err = out.finish()
	}
	if err == nil {
		err = out.show()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

type imageInfoCmd struct {
	In   string `arg:"" help:"The file." placeholder:"IN"`
	JSON bool   `help:"Answer in JSON."`
}

func (c *imageInfoCmd) Run(a *app) error {
	b, err := readLimited(c.In, 64<<20)
	if err != nil {
		return usage("IN: %w", err)
	}
	sum := sha256.Sum256(b)
	info := map[string]any{"file": c.In, "bytes": len(b), "sha256": hex.EncodeToString(sum[:])}
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s: %d bytes, SHA-256 %x\n", c.In, len(b), sum)
	if ota, oerr := partition.ParseOTAData(b); oerr == nil {
		otaInfo(ota, info, &text)
	} else if len(b) > 1 && b[0] == 0xAA && b[1] == 0x50 {
		err = tableInfo(b, info, &text)
	} else {
		err = appInfo(b, info, &text)
	}
	if err != nil {
		if image.LooksEncrypted(b) {
			return usage("%s: %w; its bytes look like ciphertext: decrypt it with `provisiond image decrypt` first", c.In, err)
		}
		return usage("%s: %w", c.In, err)
	}
	if c.JSON {
		return json.NewEncoder(a.out).Encode(info)
	}
	_, err = text.WriteTo(a.out)
	return err
}

func tableInfo(b []byte, info map[string]any, w io.Writer) error {
	t, err := partition.Parse(b)
	if err != nil {
		return err
	}
	var rows []map[string]any
	_, _ = fmt.Fprintf(w, "partition table, %d rows, MD5 row: %v\n", len(t.Entries), t.HasMD5)
	for _, e := range t.Entries {
		enc := partition.Encrypted(e)
		rows = append(rows, map[string]any{
			"label": e.Label, "type": e.Type.String(), "subtype": e.SubtypeName(), "offset": e.Offset, "size": e.Size,
			"flags": e.Flags.String(), "host_encrypts": enc,
		})
		mark := ""
		if enc {
			mark = "encrypted"
		}
		_, _ = fmt.Fprintf(w, "  %-16s %-5s %-9s 0x%06x  0x%06x  %s\n", e.Label, e.Type, e.SubtypeName(), e.Offset, e.Size, mark)
	}
	info["kind"], info["has_md5"], info["partitions"] = "partition table", t.HasMD5, rows
	return nil
}

func otaInfo(d *partition.OTAData, info map[string]any, w io.Writer) {
	info["kind"] = "otadata"
	_, _ = fmt.Fprintln(w, "OTA selection data")
	i, ok := d.Active()
	if !ok {
		info["active"] = nil
		_, _ = fmt.Fprintln(w, "  no valid entry: the bootloader takes the factory app, or ota_0")
		return
	}
	info["active"], info["sequence"] = i, d.Entries[i].Seq
	_, _ = fmt.Fprintf(w, "  entry %d is active, sequence %d\n", i, d.Entries[i].Seq)
}

func appInfo(b []byte, info map[string]any, w io.Writer) error {
	m, err := image.Parse(b)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("chip id %d", m.Header.ChipID)
	if c, err := chip.ByID(m.Header.ChipID); err == nil {
		name = c.Name
	}
	info["kind"], info["chip"], info["entry"], info["length"] = "image", name, m.Header.EntryAddr, m.Length
	info["min_chip_revision"] = m.MinRevision().String()
	_, _ = fmt.Fprintf(w, "image for %s, from revision %s", name, m.MinRevision())
	if limit, ok := m.MaxRevision(); ok {
		info["max_chip_revision"] = limit.String()
		_, _ = fmt.Fprintf(w, " to %s", limit)
	}
	info["signature_sector"], info["hash_appended"] = m.Signed, m.Hash != nil
	_, _ = fmt.Fprintf(w, ", entry 0x%08x, %d bytes, hash appended: %v, signature sector: %v\n", m.Header.EntryAddr, m.Length, m.Hash != nil, m.Signed)
	if d := m.AppDesc; d != nil {
		info["app"] = map[string]any{"project": d.ProjectName, "version": d.Version, "secure_version": d.SecureVersion, "idf": d.IDFVer}
		_, _ = fmt.Fprintf(w, "application %q version %q, secure_version %d, built with ESP-IDF %q\n", d.ProjectName, d.Version, d.SecureVersion, d.IDFVer)
	}
	var segs []map[string]any
	for i, s := range m.Segments {
		segs = append(segs, map[string]any{"load_addr": s.LoadAddr, "length": len(s.Data)})
		_, _ = fmt.Fprintf(w, "  segment %d  load 0x%08x  %d bytes\n", i, s.LoadAddr, len(s.Data))
	}
	info["segments"] = segs
	if m.Signed {
		signatureInfo(b, info, w)
	}
	return nil
}
