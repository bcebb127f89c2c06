package explain_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/explain"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
)

const (
	slot0, slot1 = 0x10000, 0x110000
	otaData      = 0xD000
)

func table() *partition.Table {
	return partition.New(
		partition.Entry{Type: partition.TypeData, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x4000, Label: "nvs"},
		partition.Entry{Type: partition.TypeData, Subtype: partition.DataOTA, Offset: otaData, Size: 0x2000, Label: "otadata"},
		partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: slot0, Size: 0x100000, Label: "first"},
		partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0 + 1, Offset: slot1, Size: 0x100000, Label: "ota_1"},
	)
}

// bench is a chip with its key and files.
type bench struct {
	t      testing.TB
	model  chip.Model
	cipher flashcrypt.Cipher
	other  flashcrypt.Cipher // another unit's
	app    []byte
}

func newBench(t testing.TB, name string) *bench {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, model: m}
	cipher := func(first byte) flashcrypt.Cipher {
		key := make([]byte, 32)
		for i := range key {
			key[i] = first + byte(i*i)
		}
		c, err := flashcrypt.New(m.Scheme, key, 0xF)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	b.cipher, b.other = cipher(1), cipher(2)
	b.app = b.build(&image.AppDesc{ProjectName: "thermostat", Version: "1.4.2", SecureVersion: 3})
	return b
}

func (b *bench) build(desc *image.AppDesc) []byte {
	b.t.Helper()
	load := map[chip.ID]uint32{chip.IDESP32: 0x3F400020, chip.IDESP32C3: 0x3C000020}[b.model.ID]
	data := make([]byte, 40<<10)
	rnd := mrand.New(mrand.NewPCG(1, 2))
	for i := range data[:30<<10] { // and zeros, as programs have them
		data[i] = byte(rnd.Uint32())
	}
	out, err := image.Build(image.Spec{Chip: b.model.ID, EntryAddr: 0x40380000, AppDesc: desc, Segments: []image.Segment{{LoadAddr: load, Data: data}}})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// enc encrypts with padding.
func (b *bench) enc(c flashcrypt.Cipher, plain []byte, at uint32) []byte {
	b.t.Helper()
	align := int(b.model.EncryptedAlign)
	out := append(bytes.Clone(plain), bytes.Repeat([]byte{0xFF}, (align-len(plain)%align)%align)...)
	if err := c.Encrypt(out, out, at); err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) must(v []byte, err error) []byte {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) options() explain.Options {
	return explain.Options{
		Chip: &b.model, Revision: image.RevisionUnknown, Cipher: b.cipher, Scheme: b.model.Scheme, Table: table(), FlashSize: 4 << 20,
	}
}

// answers is the paths in short: esp_ota_write=refuses, raw/ota_0=takes, ….
func answers(r explain.Report) string {
	short := map[explain.Way]string{
		explain.WayOTAWrite: "ota", explain.WayRaw: "raw", explain.WaySerial: "serial", explain.WaySerialEncrypted: "enc", explain.WayEncryptedImg: "img",
	}
	var out []string
	for _, p := range r.Paths {
		s := short[p.Way]
		if p.Slot != "" {
			s += "/" + p.Slot[len("ota_"):]
		}
		out = append(out, s+map[explain.Answer]string{explain.Takes: "+", explain.Refuses: "-", explain.Cannot: "?"}[p.Answer])
	}
	return strings.Join(out, " ")
}

func message(r explain.Report, way explain.Way, slot string) string {
	for _, p := range r.Paths {
		if p.Way == way && p.Slot == slot {
			return p.Message
		}
	}
	return "no such path"
}

// TestEveryKind holds the answer for every kind of file, with the key.
func TestEveryKind(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		b := newBench(t, name)
		signer, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		signed := b.must(secureboot.Sign(t.Context(), b.app, secureboot.Options{}, signer))
		badlySigned := bytes.Clone(signed)
		badlySigned[len(badlySigned)-4096+900] ^= 1
		boot := b.build(nil)
		ptable := b.must(table().MarshalBinary())
		psector := b.must(table().Sector())
		fresh := b.must(partition.NewOTAData().MarshalBinary())
		chosen := b.must((&partition.OTAData{Entries: [2]partition.OTAEntry{partition.NewOTAEntry(1, 2), partition.NewOTAEntry(2, 0)}}).MarshalBinary())
		merged := append(bytes.Repeat([]byte{0xFF}, 0x8000), psector...)
		copy(merged[b.model.BootloaderOffset:], boot[:0x4000])
		flipped := bytes.Clone(b.app)
		flipped[5000] ^= 1
		damaged := b.enc(b.cipher, flipped, slot1)
		var gz bytes.Buffer
		w := gzip.NewWriter(&gz)
		_, _ = w.Write(b.app)
		_ = w.Close()
		rsaTo, err := encimg.NewRSARecipient(&signer.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		sealed := b.must(encimg.Seal(rsaTo, b.app))
		other := "esp32"
		if name == "esp32" {
			other = "esp32c3"
		}
		foreign := newBench(t, other).app
		noSlot := "raw/0- raw/1-"
		unitData := append([]byte(`{"serial": "A-17", "server": "https://ota.example.com"}`), bytes.Repeat([]byte{0xFF}, 0xFC0)...)

		for kind, c := range map[string]struct {
			file    []byte
			kind    explain.Kind
			content explain.Kind
			layers  []uint32
			answers string
			words   string // of the summary
		}{
			"app":                 {b.app, "image", "image", nil, "ota+ " + noSlot + " serial- enc+ img-", `Plaintext: an application for ` + name + ` "thermostat" "1.4.2", not signed`},
			"signed app":          {signed, "image", "image", nil, "ota+ " + noSlot + " serial- enc+ img-", "signed (rsa3072)"},
			"badly signed app":    {badlySigned, "image", "image", nil, "ota+ " + noSlot + " serial- enc+ img-", "a signature that is not good"},
			"bootloader":          {boot, "image", "image", nil, "ota- " + noSlot + " serial- enc+ img-", "a bootloader"},
			"another chip's":      {foreign, "image", "image", nil, "ota- " + noSlot + " serial- enc+ img-", "for " + other},
			"app, flipped":        {flipped, "image", "image", nil, "ota- " + noSlot + " serial- enc- img-", "damaged or not whole"},
			"app, cut":            {b.app[:9000], "image", "image", nil, "ota- " + noSlot + " serial- enc- img-", "damaged or not whole"},
			"table":               {ptable, "partition-table", "partition-table", nil, "ota- " + noSlot + " serial- enc+ img-", "a partition table"},
			"otadata":             {chosen, "otadata", "otadata", nil, "ota- " + noSlot + " serial- enc+ img-", "OTA data"},
			"erased":              {fresh, "erased", "erased", nil, "ota- " + noSlot + " serial- enc+ img-", "0xFF in every byte"},
			"zeros":               {make([]byte, 5000), "zeros", "zeros", nil, "ota- " + noSlot + " serial- enc- img-", "0x00"},
			"merged":              {merged, "merged", "merged", nil, "ota- " + noSlot + " serial- enc+ img-", "the content of a flash"},
			"app and more":        {append(bytes.Clone(b.app), "more"...), "image", "image", nil, "ota+ " + noSlot + " serial- enc- img-", "and more behind it"},
			"cipher, and more":    {b.enc(b.cipher, append(bytes.Clone(b.app), "more"...), slot1), "ciphertext", "image", []uint32{slot1}, "ota- raw/0- raw/1+ serial- enc- img-", "and more behind it"},
			"empty":               {nil, "empty", "", nil, "ota- raw- serial- enc- img-", "empty"},
			"cipher 0":            {b.enc(b.cipher, b.app, slot0), "ciphertext", "image", []uint32{slot0}, "ota- raw/0+ raw/1- serial+ enc- img-", "for 0x10000 (ota_0 (first)), scheme " + string(b.model.Scheme)},
			"cipher 1":            {b.enc(b.cipher, b.app, slot1), "ciphertext", "image", []uint32{slot1}, "ota- raw/0- raw/1+ serial+ enc- img-", "for 0x110000 (ota_1), scheme " + string(b.model.Scheme)},
			"cipher, signed":      {b.enc(b.cipher, signed, slot1), "ciphertext", "image", []uint32{slot1}, "ota- raw/0- raw/1+ serial+ enc- img-", "signed (rsa3072)"},
			"cipher elsewhere":    {b.enc(b.cipher, b.app, 0x234000), "ciphertext", "image", []uint32{0x234000}, "ota- " + noSlot + " serial+ enc- img-", "for 0x234000, scheme"},
			"cipher inside":       {b.enc(b.cipher, b.app, 0x20000), "ciphertext", "image", []uint32{0x20000}, "ota- " + noSlot + " serial+ enc- img-", "for 0x20000 (inside first)"},
			"cipher, damaged":     {damaged, "ciphertext", "image", []uint32{slot1}, "ota- " + noSlot + " serial- enc- img-", "damaged or not whole: image: checksum"},
			"cipher, cut":         {b.enc(b.cipher, b.app, slot1)[:9000], "ciphertext", "image", []uint32{slot1}, "ota- " + noSlot + " serial- enc- img-", "damaged or not whole"},
			"cipher, other chip":  {b.enc(b.cipher, foreign, slot1), "ciphertext", "image", []uint32{slot1}, "ota- " + noSlot + " serial+ enc- img-", "for " + other},
			"cipher, bootloader":  {b.enc(b.cipher, boot, b.model.BootloaderOffset), "ciphertext", "image", []uint32{b.model.BootloaderOffset}, "ota- " + noSlot + " serial+ enc- img-", "(bootloader)"},
			"cipher, in the slot": {b.enc(b.cipher, boot, slot0), "ciphertext", "image", []uint32{slot0}, "ota- " + noSlot + " serial+ enc- img-", "a bootloader or old application"},
			"cipher, table":       {b.enc(b.cipher, psector, 0x8000), "ciphertext", "partition-table", []uint32{0x8000}, "ota- " + noSlot + " serial+ enc- img-", "(partition table)"},
			"cipher, otadata":     {b.enc(b.cipher, chosen, otaData), "ciphertext", "otadata", []uint32{otaData}, "ota- " + noSlot + " serial+ enc- img-", "(otadata)"},
			"cipher, erased":      {b.enc(b.cipher, fresh, otaData), "ciphertext", "erased", []uint32{otaData}, "ota- " + noSlot + " serial+ enc- img-", "in its initial state"},
			"cipher, merged":      {b.enc(b.cipher, merged, 0), "ciphertext", "merged", []uint32{0}, "ota- " + noSlot + " serial+ enc- img-", "the content of a flash"},
			"twice":               {b.enc(b.cipher, b.enc(b.cipher, b.app, slot1), slot1), "encrypted-twice", "image", []uint32{slot1, slot1}, "ota- " + noSlot + " serial- enc- img-", "Encrypted twice"},
			"twice, both slots":   {b.enc(b.cipher, b.enc(b.cipher, b.app, slot0), slot1), "encrypted-twice", "image", []uint32{slot1, slot0}, "ota- " + noSlot + " serial- enc- img-", "for 0x10000 (ota_0 (first)) and then for 0x110000 (ota_1)"},
			"twice, elsewhere":    {b.enc(b.cipher, b.enc(b.cipher, b.app, 0x200000), 0x200000), "encrypted-twice", "image", []uint32{0x200000, 0x200000}, "ota- " + noSlot + " serial- enc- img-", "Encrypted twice"},
			"another unit's":      {b.enc(b.other, b.app, slot1), "noise", "", nil, "ota- " + noSlot + " serial- enc- img-", "nothing that is known"},
			"a part":              {b.enc(b.cipher, b.app, slot1)[8208:], "noise", "", nil, "ota- " + noSlot + " serial- enc- img-", "nothing that is known"},
			"cipher, unit data":   {b.enc(b.cipher, unitData, otaData), "ciphertext", "unknown", []uint32{otaData}, "ota- " + noSlot + " serial+ enc- img-", "(otadata), scheme " + string(b.model.Scheme) + ": data, and no image or table"},
			"another's unit data": {b.enc(b.other, unitData, otaData), "noise", "", nil, "ota- " + noSlot + " serial- enc- img-", "nothing that is known"},
			"app, too large":      {append(bytes.Clone(b.app), bytes.Repeat([]byte{0xFF}, 0x100000)...), "image", "image", nil, "ota- " + noSlot + " serial- enc+ img-", "Plaintext: an application"},
			"esp_encrypted_img":   {sealed, "esp-encrypted-img", "", nil, "ota- " + noSlot + " serial- enc- img+", "An esp_encrypted_img file"},
			"the same, cut":       {sealed[:300], "esp-encrypted-img", "", nil, "ota- " + noSlot + " serial- enc- img-", "The beginning of an esp_encrypted_img file"},
			"gzip":                {gz.Bytes(), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(gzip)"},
			"ELF":                 {append([]byte("\x7fELF"), b.app...), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(ELF)"},
			"zip":                 {append([]byte("PK\x03\x04"), b.app...), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(zip)"},
			"Intel HEX":           {[]byte(":020000040800F2\r\n:10000000E9\r\n"), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(Intel HEX)"},
			"S-record":            {[]byte("S00F000068656C6C6F202020202000003C\nS1"), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(Motorola S-record)"},
			"hex":                 {[]byte(strings.Repeat("e9060210", 40)), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(hex text)"},
			"HTML":                {[]byte("<!DOCTYPE html><title>404</title>"), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(HTML)"},
			"JSON":                {[]byte(`{"error":"not found"}`), "other", "", nil, "ota- " + noSlot + " serial- enc- img-", "(text)"},
			"unknown":             {bytes.Repeat([]byte{1, 2, 3, 0}, 400), "unknown", "", nil, "ota- " + noSlot + " serial- enc- img-", "Not recognised"},
			"image of no chip":    {append([]byte{0xE9, 1, 2, 0x20}, make([]byte, 900)...), "image", "image", nil, "ota- " + noSlot + " serial- enc- img-", "damaged or not whole"},
			"0xE9 and nothing":    {[]byte{0xE9}, "unknown", "", nil, "ota- " + noSlot + " serial- enc- img-", "too short"},
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				if name == "esp32c3" && kind == "image of no chip" {
					c.words = "for esp32,"
				}
				before := bytes.Clone(c.file)
				r := explain.Explain(c.file, b.options())
				if !bytes.Equal(before, c.file) {
					t.Fatal("the file was changed")
				}
				var layers []uint32
				for _, l := range r.Layers {
					layers = append(layers, l.Address)
				}
				if r.Kind != c.kind || r.Content != c.content || !slices.Equal(layers, c.layers) {
					t.Errorf("kind %s, content %q, layers %x, want %s, %q, %x", r.Kind, r.Content, layers, c.kind, c.content, c.layers)
				}
				if got := answers(r); got != c.answers {
					t.Errorf("answers %s\nwant    %s", got, c.answers)
				}
				if !strings.Contains(r.Summary, c.words) {
					t.Errorf("%s: want %q", r.Summary, c.words)
				}
				if _, err := json.Marshal(r); err != nil {
					t.Error(err)
				}
				for _, p := range r.Paths {
					if p.Why == "" || p.Answer == explain.Takes && p.Message != "" {
						t.Errorf("%+v", p)
					}
				}
				if len(c.file) > 0 && c.file[0] != 0xE9 {
					want := fmt.Sprintf("OTA image has invalid magic byte (expected 0xE9, saw 0x%02x)", c.file[0])
					if got := message(r, explain.WayOTAWrite, ""); got != want {
						t.Errorf("esp_ota_write prints %q, want %q", got, want)
					}
				}
			})
		}
	}
}

// TestEverywhere: with FLASH_CRYPT_CONFIG 0 there is no address to tell.
func TestEverywhere(t *testing.T) {
	b := newBench(t, "esp32")
	c, err := flashcrypt.NewESP32(bytes.Repeat([]byte{1, 2, 3, 4}, 8), 0)
	if err != nil {
		t.Fatal(err)
	}
	o, at := b.options(), uint32(slot1)
	o.Cipher, o.Address = c, &at
	r := explain.Explain(b.enc(c, b.app, slot1), o)
	if notes := strings.Join(r.Notes, "\n"); answers(r) != "ota- raw/0+ raw/1+ serial+ enc- img-" ||
		!strings.Contains(notes, "cannot be seen") || strings.Contains(notes, "is not ciphertext for") || strings.Contains(fmt.Sprint(r.Paths), "nowhere else") {
		t.Errorf("%s %+v", answers(r), r)
	}
}

// TestSecureBoot: a unit with Secure Boot takes what one of its keys has signed, on
// every way.
func TestSecureBoot(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		b := newBench(t, name)
		mine, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		other, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		sign := func(key *rsa.PrivateKey) []byte {
			return b.must(secureboot.Sign(t.Context(), b.app, secureboot.Options{}, key))
		}
		digest, err := secureboot.Digest(mine.Public())
		if err != nil {
			t.Fatal(err)
		}
		broken := sign(mine)
		broken[len(broken)-4096+900] ^= 1
		o := b.options()
		o.SecureBootScheme, o.SecureBootDigests = chip.SignRSA3072, [][32]byte{{1}, digest}
		for kind, c := range map[string]struct {
			file []byte
			why  string // empty: it is taken
		}{
			"mine":     {sign(mine), ""},
			"unsigned": {b.app, "the image is not signed"},
			"other":    {sign(other), "trusts none of the keys"},
			"broken":   {broken, "its signature is not good"},
		} {
			for _, way := range []struct {
				way  explain.Way
				slot string
				file []byte
			}{{explain.WayOTAWrite, "", c.file}, {explain.WayRaw, "ota_1", b.enc(b.cipher, c.file, slot1)}} {
				r := explain.Explain(way.file, o)
				i := slices.IndexFunc(r.Paths, func(p explain.Path) bool { return p.Way == way.way && p.Slot == way.slot })
				want, says := explain.Takes, ""
				if c.why != "" {
					want, says = explain.Refuses, "Secure boot signature verification failed"
				}
				if p := r.Paths[i]; p.Answer != want || p.Message != says || !strings.Contains(p.Why, c.why) {
					t.Errorf("%s, %s: %+v, want %s with %q", name, kind, p, want, c.why)
				}
				if noted := strings.Contains(strings.Join(r.Notes, "\n"), "Secure Boot (rsa3072)"); noted != (c.why != "") {
					t.Errorf("%s, %s: %q", name, kind, r.Notes)
				}
			}
		}
	}
}

// TestMessages holds what devices print.
func TestMessages(t *testing.T) {
	b := newBench(t, "esp32c3")
	foreign := newBench(t, "esp32").app
	flipped := bytes.Clone(b.app)
	flipped[5000] ^= 1
	hash := bytes.Clone(b.app)
	hash[len(hash)-1] ^= 1
	segments := bytes.Clone(b.app)
	segments[1] = 17
	for name, c := range map[string]struct {
		file []byte
		slot string
		want string
	}{
		"the other slot":     {b.enc(b.cipher, b.app, slot0), "ota_1", "image at 0x110000 has invalid magic byte (nothing flashed here?)"},
		"plaintext":          {b.app, "ota_1", "image at 0x110000 has invalid magic byte (nothing flashed here?)"},
		"another unit's":     {b.enc(b.other, b.app, slot1), "ota_1", "image at 0x110000 has invalid magic byte (nothing flashed here?)"},
		"another chip's":     {b.enc(b.cipher, foreign, slot1), "ota_1", "mismatch chip ID, expected 5, found 0"},
		"flipped":            {b.enc(b.cipher, flipped, slot1), "ota_1", "Checksum failed. Calculated 0x… read 0x…"},
		"hash":               {b.enc(b.cipher, hash, slot1), "ota_1", "Image hash failed - image is corrupt"},
		"17 segments":        {b.enc(b.cipher, segments, slot1), "ota_1", "image at 0x110000 segment count 17 exceeds max 16"},
		"good, for its slot": {b.enc(b.cipher, b.app, slot1), "ota_1", ""},
	} {
		if got := message(explain.Explain(c.file, b.options()), explain.WayRaw, c.slot); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := message(explain.Explain(b.app, b.options()), explain.WayEncryptedImg, ""); got != "Magic Verification failed" {
		t.Errorf("esp_encrypted_img prints %q", got)
	}
	large := append(bytes.Clone(b.app), bytes.Repeat([]byte{0xFF}, 0x100000)...)
	r := explain.Explain(b.enc(b.cipher, large, slot1), b.options())
	if i := slices.IndexFunc(r.Paths, func(p explain.Path) bool { return p.Slot == "ota_1" }); i < 0 || !strings.Contains(r.Paths[i].Why, "ESP_ERR_INVALID_SIZE") {
		t.Errorf("too large: %+v", r.Paths)
	}
	o := b.options()
	o.Revision = 3
	newer, err := image.Build(image.Spec{
		Chip: b.model.ID, MinChipRevFull: 4, AppDesc: &image.AppDesc{},
		Segments: []image.Segment{{LoadAddr: 0x3C000020, Data: make([]byte, 1024)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := message(explain.Explain(b.enc(b.cipher, newer, slot1), o), explain.WayRaw, "ota_1"); got != "chip revision check failed. Required >= v0.4, found v0.3." {
		t.Errorf("revision: %q", got)
	}
}

// TestWithoutKey: what cannot be known is said so, and 0xE9 is no proof.
func TestWithoutKey(t *testing.T) {
	for _, name := range []string{"esp32", "esp32c3"} {
		b := newBench(t, name)
		// Look for an address at which the ciphertext begins with 0xE9.
		at := uint32(slot1)
		for b.enc(b.cipher, b.app[:32], at)[0] != 0xE9 {
			at += 0x1000
		}
		file := b.enc(b.cipher, b.app, at)
		for what, o := range map[string]explain.Options{"nothing": {}, "chip and table": {Chip: &b.model, Revision: image.RevisionUnknown, Table: table()}} {
			r := explain.Explain(file, o)
			if r.Kind != explain.KindNoise || !strings.Contains(r.Summary, "only with the unit's key") {
				t.Errorf("%s, %s: %+v", name, what, r)
			}
			notes := strings.Join(r.Notes, "\n")
			if !strings.Contains(notes, "by chance") {
				t.Errorf("%s, %s: no word about chance: %s", name, what, notes)
			}
			if scheme := strings.Contains(notes, "ESP32's own scheme, and not XTS"); scheme != (name == "esp32") {
				t.Errorf("%s, %s: the scheme: %s", name, what, notes)
			}
			for _, p := range r.Paths {
				if (p.Way == explain.WayRaw || p.Way == explain.WaySerial) && p.Answer != explain.Cannot {
					t.Errorf("%s, %s: %+v", name, what, p)
				}
				if p.Way == explain.WayOTAWrite && (p.Answer != explain.Refuses || p.Message != "") {
					t.Errorf("%s, %s: %+v", name, what, p)
				}
			}
		}
		// With the key and without a table it is found all the same.
		r := explain.Explain(file, explain.Options{Chip: &b.model, Revision: image.RevisionUnknown, Cipher: b.cipher, Scheme: b.model.Scheme})
		if r.Kind != explain.KindCiphertext || r.Layers[0].Address != at || answers(r) != "ota- raw+ serial+ enc- img-" {
			t.Errorf("%s, without a table: %+v", name, r)
		}
		// And an address that was given is compared.
		o := b.options()
		wrong := at + 0x10000
		o.Address = &wrong
		if r := explain.Explain(file, o); r.Layers[0].Address != at || !strings.Contains(strings.Join(r.Notes, " "), fmt.Sprintf("not ciphertext for 0x%x", wrong)) {
			t.Errorf("%s, with a wrong address: %+v", name, r)
		}
	}
}

// TestNoiseIsNoise: random bytes are never taken for anything.
func TestNoiseIsNoise(t *testing.T) {
	b := newBench(t, "esp32")
	rnd := mrand.New(mrand.NewPCG(3, 4))
	for range 30 {
		file := make([]byte, 4096)
		for i := range file {
			file[i] = byte(rnd.Uint32())
		}
		file[0] = 0xE9
		if r := explain.Explain(file, b.options()); r.Kind != explain.KindNoise {
			t.Errorf("%+v", r)
		}
	}
}

func FuzzExplain(f *testing.F) {
	e32, c3 := newBench(f, "esp32"), newBench(f, "esp32c3")
	small := partition.New(partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: slot0, Size: 0x10000, Label: "a"})
	for _, b := range []*bench{e32, c3} {
		f.Add(b.app[:2000], uint32(slot0))
		f.Add(b.enc(b.cipher, b.app[:2000], slot0), uint32(slot0))
		f.Add(b.enc(b.cipher, b.enc(b.cipher, b.app[:2000], slot0), slot0), uint32(0x11))
	}
	f.Add(c3.must(table().MarshalBinary()), uint32(0x8000))
	f.Add([]byte{0xCF, 0xB6, 0x88, 0x07}, uint32(0xFFFFFFF0))
	f.Add([]byte(":020000040800F2\n"), uint32(0))
	f.Fuzz(func(t *testing.T, file []byte, address uint32) {
		for _, o := range []explain.Options{
			{},
			{Address: &address},
			{Chip: &e32.model, Cipher: e32.cipher, Scheme: e32.model.Scheme, Address: &address, FlashSize: 64 << 10},
			{Chip: &c3.model, Cipher: c3.cipher, Scheme: c3.model.Scheme, Table: small, FlashSize: 64 << 10},
		} {
			before := bytes.Clone(file)
			r := explain.Explain(file, o)
			if !bytes.Equal(before, file) || r.Kind == "" || r.Summary == "" || len(r.Paths) < 5 {
				t.Fatalf("%+v", r)
			}
			if _, err := json.Marshal(r); err != nil {
				t.Fatal(err)
			}
			for _, p := range r.Paths {
				if p.Why == "" || (p.Answer == explain.Takes && r.Problem != "" && !strings.Contains(p.Why, "what follows the image")) {
					t.Fatalf("%+v in %+v", p, r)
				}
			}
		}
	})
}
