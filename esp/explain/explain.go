// Package explain owns the answer to "what is this file, and what takes it?":
// plaintext or ciphertext, of which address, encrypted twice, in a transport
// format, signed or not; and what a unit with flash encryption says to it on each
// way in.
//
// It promises to say only what follows from the bytes. With a key it decrypts at
// every place of the partition table and at every sector of the flash, and what
// it then calls an image or a table was recognised by tens of bits, not by a
// first byte: one ciphertext in 256 begins with the magic 0xE9. Without a key it
// says that it cannot know. What devices print is quoted from ESP-IDF
// (bootloader_support/src/esp_image_format.c, app_update/esp_ota_ops.c) and from
// the component esp_encrypted_img.
package explain

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
)

// Options are what is known beside the file. Every one may be missing.
type Options struct {
	Chip     *chip.Model
	Revision chip.Revision // with Chip; image.RevisionUnknown if it is not known
	// Cipher is the unit's, of the scheme Scheme. It is not wiped here.
	Cipher flashcrypt.Cipher
	Scheme chip.Scheme
	Table  *partition.Table
	// FlashSize ends the search for an address; without it the chip's largest.
	FlashSize uint32
	// SecureBootScheme and SecureBootDigests say what a unit with Secure Boot trusts
	// (keystore.Record); empty: it is off, or nobody said.
	SecureBootScheme  chip.SignatureScheme
	SecureBootDigests [][32]byte
	// Address is where somebody says that the file lies or belongs.
	Address *uint32
}

// Kind says what a file is. The texts are API.
type Kind string

// The kinds.
const (
	KindImage          Kind = "image"             // an ESP-IDF image in plaintext
	KindPartitionTable Kind = "partition-table"   // in plaintext
	KindOTAData        Kind = "otadata"           // in plaintext
	KindErased         Kind = "erased"            // 0xFF and nothing else
	KindZeros          Kind = "zeros"             // 0x00 and nothing else
	KindMerged         Kind = "merged"            // the content of a whole flash, or its beginning
	KindCiphertext     Kind = "ciphertext"        // of this key, once
	KindTwice          Kind = "encrypted-twice"   // of this key, twice
	KindEncryptedImg   Kind = "esp-encrypted-img" // the vendor's transport format
	KindNoise          Kind = "noise"             // ciphertext or something compressed: bytes as even as noise
	KindOther          Kind = "other"             // a known format that no board takes: Format names it
	KindUnknown        Kind = "unknown"
	KindEmpty          Kind = "empty"
)

// Layer is one encryption.
type Layer struct {
	Scheme  chip.Scheme `json:"scheme"`
	Address uint32      `json:"address"`
	Place   string      `json:"place"` // what the partition table has there; empty: nothing, or no table
}

// Image is what is told of an ESP-IDF image.
type Image struct {
	Chip          string `json:"chip"`
	App           bool   `json:"app"` // it has an application description; bootloaders have none
	Project       string `json:"project,omitempty"`
	Version       string `json:"version,omitempty"`
	SecureVersion uint32 `json:"secure_version"`
	Length        int    `json:"length"`
	HashAppended  bool   `json:"hash_appended"`
	// Signed says that there is a signature sector, SignatureProblem what is wrong
	// with it, and Signers are the digests of the keys if nothing is.
	Signed           bool     `json:"signed"`
	SignatureScheme  string   `json:"signature_scheme,omitempty"`
	SignatureProblem string   `json:"signature_problem,omitempty"`
	Signers          []string `json:"signers,omitempty"`
}

// Report is the answer.
type Report struct {
	Kind      Kind   `json:"kind"`
	Format    string `json:"format,omitempty"` // of KindOther, and the form of KindEncryptedImg
	Bytes     int    `json:"bytes"`
	FirstByte byte   `json:"first_byte"`
	// Layers are the encryptions that were undone, the outermost first.
	Layers []Layer `json:"layers,omitempty"`
	// Content is what lies under them: a kind of plaintext.
	Content Kind `json:"content,omitempty"`
	// Problem says why the content is not whole or not good.
	Problem string `json:"problem,omitempty"`
	Image   *Image `json:"image,omitempty"`
	Summary string `json:"summary"` // one sentence
	// Notes are what cannot be known, and what else should be.
	Notes []string `json:"notes,omitempty"`
	Paths []Path   `json:"paths"`
}

// search limits.
const (
	sector   = 0x1000
	probeLen = 64 // bytes by which an address is recognised
	minData  = 256
	maxScan  = 128 << 20
)

// Explain looks at a file. b is not changed.
func Explain(b []byte, o Options) Report {
	r := Report{Bytes: len(b)}
	if len(b) == 0 {
		r.Kind, r.Summary = KindEmpty, "The file is empty."
		for _, w := range []Way{WayOTAWrite, WayRaw, WaySerial, WaySerialEncrypted, WayEncryptedImg} {
			r.Paths = append(r.Paths, Path{Way: w, Answer: Refuses, Why: "there is nothing to write"})
		}
		return r
	}
	r.FirstByte = b[0]
	e := &explainer{o: o, b: b, r: &r}
	e.identify()
	e.summarize()
	e.paths()
	return r
}

type explainer struct {
	o Options
	b []byte
	r *Report

	parsed     *image.Image      // the innermost content that was recognised
	signatures secureboot.Report // of it, if they are good
	places     []place
}

// place is a place in flash where something belongs.
type place struct {
	address uint32
	name    string
}

func (e *explainer) identify() {
	e.places = e.knownPlaces()
	if encimg.Is(e.b) {
		e.encryptedImg()
		return
	}
	if c := recognise(e.b); c.kind != "" {
		e.content(c, e.b)
		e.r.Kind = c.kind
		return
	}
	if format := otherFormat(e.b); format != "" {
		e.r.Kind, e.r.Format = KindOther, format
		return
	}
	if e.o.Cipher != nil && e.decrypt() {
		return
	}
	e.r.Kind = KindUnknown
	if image.LooksEncrypted(e.b) || blocksRepeat(e.b) > 0 {
		e.r.Kind = KindNoise
	}
}

func (e *explainer) encryptedImg() {
	e.r.Kind = KindEncryptedImg
	h, err := encimg.Parse(e.b)
	if err != nil {
		e.r.Problem = err.Error()
		return
	}
	e.r.Format = string(h.Form())
}

// content takes over what was recognised.
func (e *explainer) content(c found, b []byte) {
	e.r.Content, e.r.Problem = c.kind, c.problem
	if c.kind != KindImage {
		return
	}
	e.parsed = c.image
	i := &Image{Chip: fmt.Sprintf("chip id %d", binary.LittleEndian.Uint16(b[12:]))}
	if m, err := chip.ByID(chip.ID(binary.LittleEndian.Uint16(b[12:]))); err == nil {
		i.Chip = m.Name
	}
	e.r.Image = i
	if c.image == nil {
		i.App = hasAppDesc(b)
		return
	}
	i.Length, i.HashAppended, i.Signed = c.image.Length, c.image.Hash != nil, c.image.Signed
	if d := c.image.AppDesc; d != nil {
		i.App, i.Project, i.Version, i.SecureVersion = true, d.ProjectName, d.Version, d.SecureVersion
	}
	if !i.Signed {
		return
	}
	rep, err := secureboot.Verify(b)
	if err != nil {
		i.SignatureProblem = err.Error()
		return
	}
	e.signatures, i.SignatureScheme = rep, string(rep.Scheme)
	for _, s := range rep.Signatures {
		i.Signers = append(i.Signers, s.Key.Digest().String())
	}
}

// found is a content that was recognised; an empty kind is none.
type found struct {
	kind    Kind
	problem string
	image   *image.Image
}

// recognise says what plaintext b is, by more than a first byte.
func recognise(b []byte) found {
	switch {
	case len(b) == 0:
		return found{}
	case all(b, 0xFF):
		return found{kind: KindErased}
	case all(b, 0):
		return found{kind: KindZeros}
	case merged(b):
		return found{kind: KindMerged}
	case imageHeader(b):
		m, err := image.Parse(b)
		if err == nil {
			return found{kind: KindImage, image: m}
		}
		f := found{kind: KindImage, problem: err.Error()}
		var ie *image.Error
		if errors.As(err, &ie) && ie.Field == "trailer" { // the image itself is whole
			f.image, _ = image.Parse(b[:ie.Offset])
		}
		return f
	case tableHeader(b):
		if _, err := partition.Parse(b); err != nil {
			return found{kind: KindPartitionTable, problem: err.Error()}
		}
		return found{kind: KindPartitionTable}
	}
	if otaHeader(b) {
		if _, err := partition.ParseOTAData(b); err != nil {
			return found{kind: KindOTAData, problem: err.Error()}
		}
		return found{kind: KindOTAData}
	}
	return found{}
}

func all(b []byte, v byte) bool {
	return len(b) > 0 && !slices.ContainsFunc(b, func(x byte) bool { return x != v })
}

// imageHeader demands what noise has once in about 2^70 times: the magic, a
// number of segments, a known chip, four reserved bytes of zero, a hash flag and
// a first segment of a possible length.
func imageHeader(b []byte) bool {
	if len(b) < image.HeaderSize+8 || b[0] != image.Magic || b[1] == 0 || b[1] > image.MaxSegments || b[23] > 1 {
		return false
	}
	le := binary.LittleEndian
	if le.Uint32(b[19:]) != 0 || b[2] > uint8(image.SPIModeSlowRead) {
		return false
	}
	if _, err := chip.ByID(chip.ID(le.Uint16(b[12:]))); err != nil {
		return false
	}
	n := le.Uint32(b[image.HeaderSize+4:])
	return n%4 == 0 && n < image.MaxSegmentLen
}

func hasAppDesc(b []byte) bool {
	const magic, at = 0xABCD5432, image.HeaderSize + 8
	return len(b) >= at+4 && binary.LittleEndian.Uint32(b[at:]) == magic
}

// tableHeader wants two rows, or one and what may follow the last.
func tableHeader(b []byte) bool {
	const row = partition.RowSize
	if len(b) < 2*row || len(b) > partition.SectorSize || b[0] != 0xAA || b[1] != 0x50 {
		return false
	}
	next := b[row : row+2]
	return bytes.Equal(next, []byte{0xAA, 0x50}) || bytes.Equal(next, []byte{0xEB, 0xEB}) || all(b[row:2*row], 0xFF)
}

// otaHeader wants one entry with its checksum, and 0xFF behind it.
func otaHeader(b []byte) bool {
	const entry = 32
	if len(b) != partition.OTADataSize {
		return false
	}
	for _, off := range []int{0, sector} {
		if seq := binary.LittleEndian.Uint32(b[off:]); seq != 0xFFFFFFFF &&
			binary.LittleEndian.Uint32(b[off+28:]) == partition.OTACRC(seq) && all(b[off+entry:off+2*entry], 0xFF) {
			return true
		}
	}
	return false
}

// merged says that a partition table lies where it does in a flash.
func merged(b []byte) bool {
	const at = 0x8000
	if len(b) < at+sector {
		return false
	}
	t := b[at : at+sector]
	if !tableHeader(t) {
		return false
	}
	_, err := partition.Parse(t)
	return err == nil
}

// likely is recognise for the first probeLen bytes.
func likely(p []byte, size int) bool {
	switch {
	case all(p, 0xFF):
		return true
	case imageHeader(p):
		return true
	case size <= partition.SectorSize && tableHeader(p):
		return true
	}
	if size == partition.OTADataSize && len(p) >= probeLen {
		seq := binary.LittleEndian.Uint32(p)
		return seq != 0xFFFFFFFF && binary.LittleEndian.Uint32(p[28:]) == partition.OTACRC(seq) && all(p[32:probeLen], 0xFF)
	}
	return false
}

// knownPlaces are the places of the partition table, those that every chip has,
// and the address that was given.
func (e *explainer) knownPlaces() []place {
	var out []place
	add := func(at uint32, name string) {
		if at%flashcrypt.BlockSize == 0 && !slices.ContainsFunc(out, func(p place) bool { return p.address == at }) {
			out = append(out, place{at, name})
		}
	}
	if e.o.Table != nil {
		for _, p := range e.o.Table.Entries {
			name := p.Label
			if p.SubtypeName() != p.Label && p.Type == partition.TypeApp {
				name = p.SubtypeName() + " (" + p.Label + ")"
			}
			add(p.Offset, name)
		}
	}
	if e.o.Chip != nil {
		add(e.o.Chip.BootloaderOffset, "bootloader")
	}
	add(0x8000, "partition table")
	if e.o.Address != nil {
		add(*e.o.Address, "")
	}
	return out
}

// addresses are all that are tried, the known ones first.
func (e *explainer) addresses(try func(at uint32) bool) (uint32, bool) {
	for _, p := range e.places {
		if try(p.address) {
			return p.address, true
		}
	}
	end := uint32(16 << 20)
	if e.o.Chip != nil {
		end = e.o.Chip.MaxFlash
	}
	if e.o.FlashSize != 0 {
		end = e.o.FlashSize
	}
	for at := uint32(0); at < min(end, maxScan); at += sector {
		if try(at) {
			return at, true
		}
	}
	return 0, false
}

// open decrypts the first n bytes at an address.
func (e *explainer) open(src []byte, at uint32, n int) []byte {
	n = min(n, len(src)) / flashcrypt.BlockSize * flashcrypt.BlockSize
	dst := make([]byte, n)
	if n == 0 || uint64(at)+uint64(n) > 1<<32 || e.o.Cipher.Decrypt(dst, src[:n], at) != nil {
		return nil
	}
	return dst
}

func (e *explainer) place(at uint32) string {
	for _, p := range e.places {
		if p.address == at {
			return p.name
		}
	}
	if e.o.Table != nil {
		if p, ok := e.o.Table.At(at); ok {
			return "inside " + p.Label
		}
	}
	return ""
}

func (e *explainer) layer(at uint32) Layer { return Layer{e.o.Scheme, at, e.place(at)} }

// decrypt looks for addresses at which the key gives something that is known,
// after one decryption or after two.
func (e *explainer) decrypt() bool {
	if len(e.b) < flashcrypt.BlockSize {
		return false
	}
	probe := make([]byte, min(probeLen, len(e.b)/flashcrypt.BlockSize*flashcrypt.BlockSize))
	again := make([]byte, len(probe))
	one := func(at uint32) bool {
		return uint64(at)+uint64(len(probe)) <= 1<<32 && e.o.Cipher.Decrypt(probe, e.b[:len(probe)], at) == nil &&
			(likely(probe, len(e.b)) || e.mergedAt(at))
	}
	take := func(kind Kind, layers []Layer, b []byte) bool {
		c := recognise(b)
		if c.kind == "" {
			return false
		}
		e.r.Kind, e.r.Layers = kind, layers
		e.content(c, b)
		return true
	}
	if at, ok := e.addresses(one); ok && take(KindCiphertext, []Layer{e.layer(at)}, e.open(e.b, at, len(e.b))) {
		return true
	}
	if e.decryptData() {
		return true
	}
	two := func(outer, inner uint32) bool {
		return e.o.Cipher.Decrypt(probe, e.b[:len(probe)], outer) == nil && e.o.Cipher.Decrypt(again, probe, inner) == nil && likely(again, len(e.b))
	}
	twice := func(outer, inner uint32) bool {
		return take(KindTwice, []Layer{e.layer(outer), e.layer(inner)}, e.open(e.open(e.b, outer, len(e.b)), inner, len(e.b)))
	}
	for _, outer := range e.places {
		for _, inner := range e.places {
			if two(outer.address, inner.address) && twice(outer.address, inner.address) {
				return true
			}
		}
	}
	at, ok := e.addresses(func(at uint32) bool { return two(at, at) })
	return ok && twice(at, at)
}

// everywhere says that no address changes the key, as on an ESP32 whose
// FLASH_CRYPT_CONFIG is 0.
func (e *explainer) everywhere() bool {
	zero := make([]byte, flashcrypt.BlockSize)
	one, two := e.open(zero, 0, len(zero)), e.open(zero, sector, len(zero))
	return one != nil && bytes.Equal(one, two)
}

// decryptData looks at the places that are known for data of other kinds, such as a
// unit's own partition: what is far from noise after decryption was encrypted there.
func (e *explainer) decryptData() bool {
	for _, p := range e.places {
		if b := e.open(e.b, p.address, sector); len(b) >= minData && !image.LooksEncrypted(b) {
			e.r.Kind, e.r.Content, e.r.Layers = KindCiphertext, KindUnknown, []Layer{e.layer(p.address)}
			return true
		}
	}
	return false
}

// mergedAt says that a whole flash from an address on was read or made.
func (e *explainer) mergedAt(at uint32) bool {
	const table = 0x8000
	if at != 0 || len(e.b) < table+sector {
		return false
	}
	t := make([]byte, sector)
	return e.o.Cipher.Decrypt(t, e.b[table:table+sector], table) == nil && tableHeader(t)
}

// blocksRepeat counts the 32-byte units whose halves are equal and not constant.
// The ESP32's scheme encrypts equal halves to equal halves; XTS and compression
// give none.
func blocksRepeat(b []byte) int {
	n := 0
	for ; len(b) >= 32; b = b[32:] {
		if bytes.Equal(b[:16], b[16:32]) && distinct(b[:16]) >= 10 {
			n++
		}
	}
	return n
}

func distinct(b []byte) int {
	var seen [256]bool
	n := 0
	for _, v := range b {
		if !seen[v] {
			seen[v], n = true, n+1
		}
	}
	return n
}

// formats are beginnings of files that people mistake for firmware.
var formats = []struct{ magic, name string }{
	{"\x1f\x8b", "gzip"},
	{"PK\x03\x04", "zip"},
	{"PK\x05\x06", "zip"},
	{"\x7fELF", "ELF"},
	{"\xfd7zXZ\x00", "xz"},
	{"BZh", "bzip2"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"7z\xbc\xaf\x27\x1c", "7z"},
	{"UF2\n", "UF2"},
	{"age-encryption.org/", "age"},
	{"Salted__", "openssl enc"},
	{"-----BEGIN ", "PEM"},
	{"provisiond-ota-manifest ", "provisiond OTA manifest"},
	{"<!DOCTYPE", "HTML"},
	{"<html", "HTML"},
	{"\x89PNG", "PNG"},
	{"%PDF", "PDF"},
}

// otherFormat names a known format that is no firmware, or "".
func otherFormat(b []byte) string {
	for _, f := range formats {
		if bytes.HasPrefix(b, []byte(f.magic)) {
			return f.name
		}
	}
	line, _, _ := bytes.Cut(b[:min(len(b), 600)], []byte("\n"))
	line = bytes.TrimRight(line, "\r")
	switch {
	case len(line) >= 11 && line[0] == ':' && hexDigits(line[1:]):
		return "Intel HEX"
	case len(line) >= 10 && line[0] == 'S' && line[1] >= '0' && line[1] <= '9' && hexDigits(line[2:]):
		return "Motorola S-record"
	case len(b) >= 32 && len(line) >= 32 && hexDigits(line):
		return "hex text"
	case text(b[:min(len(b), 4096)]):
		return "text"
	}
	return ""
}

func hexDigits(b []byte) bool {
	return len(b) > 0 && !bytes.ContainsFunc(b, func(c rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", c) })
}

func text(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c < ' ' && c != '\n' && c != '\r' && c != '\t' || c > '~' })
}

// deviceRefusal is what a device prints about bytes that it sees at an address
// of flash, after its cache decrypted them; "" if it takes them.
func (e *explainer) deviceRefusal(seen []byte, at uint32, size uint64) string {
	if len(seen) < image.HeaderSize || seen[0] != image.Magic {
		return fmt.Sprintf("image at 0x%x has invalid magic byte (nothing flashed here?)", at)
	}
	id := binary.LittleEndian.Uint16(seen[12:])
	if c := e.o.Chip; c != nil && chip.ID(id) != c.ID {
		return fmt.Sprintf("mismatch chip ID, expected %d, found %d", c.ID, id)
	}
	m, err := image.Parse(seen)
	var ie *image.Error
	switch {
	case err == nil:
	case seen[1] > image.MaxSegments:
		return fmt.Sprintf("image at 0x%x segment count %d exceeds max %d", at, seen[1], image.MaxSegments)
	case errors.As(err, &ie) && ie.Field == "hash" && !strings.Contains(ie.Msg, "cut off"):
		return "Image hash failed - image is corrupt"
	case errors.As(err, &ie) && strings.HasSuffix(ie.Field, ".data_len"):
		return fmt.Sprintf("invalid segment length 0x%x", binary.LittleEndian.Uint32(seen[ie.Offset:]))
	case errors.As(err, &ie) && ie.Field == "trailer": // the boot code does not look at what follows
		m, err = image.Parse(seen[:ie.Offset])
	}
	if err != nil {
		return "Checksum failed. Calculated 0x… read 0x…"
	}
	if c := e.o.Chip; c != nil {
		if low := m.MinRevision(); e.o.Revision != image.RevisionUnknown && e.o.Revision < low {
			return fmt.Sprintf("chip revision check failed. Required >= %s, found %s.", low, e.o.Revision)
		}
		if high, ok := m.MaxRevision(); ok && e.o.Revision != image.RevisionUnknown && m.AppDesc != nil && e.o.Revision > high {
			return fmt.Sprintf("chip revision check failed. Required <= %s, found %s.", high, e.o.Revision)
		}
	}
	if n := m.FlashLength(); uint64(n) > size {
		return fmt.Sprintf("Image length %d doesn't fit in partition length %d", n, size)
	}
	return ""
}
