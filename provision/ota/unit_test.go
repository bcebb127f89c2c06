package ota_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/esp/partition"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision/ota"
)

// testTable has a factory app and two slots; a label says nothing about a slot.
func testTable(t testing.TB) []byte {
	t.Helper()
	b, err := partition.New(
		partition.Entry{Type: partition.TypeData, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x4000, Label: "nvs"},
		partition.Entry{Type: partition.TypeData, Subtype: partition.DataOTA, Offset: 0xD000, Size: 0x2000, Label: "otadata"},
		partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0 + 1, Offset: 0x110000, Size: 0x100000, Label: "ota_0"},
		partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: 0x10000, Size: 0x100000, Label: "first"},
	).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type appSpec struct {
	chip      chip.ID
	min, max  chip.Revision
	secure    uint32
	size      int
	signature []byte
	version   string
	noDesc    bool
}

func testApp(t testing.TB, s appSpec) []byte {
	t.Helper()
	load := map[chip.ID]uint32{chip.IDESP32: 0x3F400020, chip.IDESP32C3: 0x3C000020}[s.chip]
	spec := image.Spec{
		Chip: s.chip, EntryAddr: 0x40380000, MinChipRevFull: s.min, MaxChipRevFull: s.max, Signature: s.signature,
		Segments: []image.Segment{{LoadAddr: load, Data: counting(max(s.size, 1024) &^ 3)}},
		AppDesc:  &image.AppDesc{ProjectName: "thermo stat", Version: s.version, SecureVersion: s.secure},
	}
	if s.noDesc {
		spec.AppDesc = nil
	}
	b, err := image.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testRecord(t testing.TB, unit chip.MAC) keystore.Record {
	t.Helper()
	r := keystoretest.NewRecord(t, unit)
	r.PartitionTable = testTable(t)
	return r
}

func esp32Record(t testing.TB, unit chip.MAC) keystore.Record {
	t.Helper()
	r := testRecord(t, unit)
	key, err := keystore.Generate(chip.SchemeESP32)
	if err != nil {
		t.Fatal(err)
	}
	r.Chip, r.ChipRevision, r.Scheme, r.FlashCryptConfig, r.Key, r.Fingerprint = "esp32", 301, chip.SchemeESP32, 0xF, key, key.Fingerprint()
	return r
}

func testUnit(t testing.TB, r keystore.Record) *ota.Unit {
	t.Helper()
	u, err := ota.NewUnit(r)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func wantReason(t *testing.T, what string, err error, want ota.Reason) {
	t.Helper()
	var r *ota.Refusal
	if ota.ReasonOf(err) != want || !errors.As(err, &r) || r.Msg == "" || strings.Contains(err.Error(), "%!") {
		t.Errorf("%s: %v (reason %q), want reason %q", what, err, ota.ReasonOf(err), want)
	}
}

// testStore is a local keystore that can give keys.
func testStore(t *testing.T) keystore.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	o := local.Options{TestStore: true, IdentityFile: path + ".identity"}
	if _, err := local.NewIdentity(o.IdentityFile); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(path, o); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestLookup(t *testing.T) {
	s := testStore(t)
	n := byte(0)
	store := func(states ...keystore.StateKind) keystore.Record {
		t.Helper()
		n++
		r := testRecord(t, keystoretest.Simulated(n))
		if _, err := s.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		for _, k := range states {
			if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: k, Job: r.Job}); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	for _, r := range []keystore.Record{
		store(keystore.MayBeInSilicon, keystore.InSilicon),
		store(keystore.InSilicon),
		store(keystore.MayBeInSilicon),
		store(keystore.MayBeInSilicon, keystore.Quarantined, keystore.InSilicon),
	} {
		u, err := ota.Lookup(t.Context(), s, r.Unit)
		if err != nil {
			t.Errorf("%s: %v", r.Unit, err)
			continue
		}
		if u.MAC != r.Unit || u.Fingerprint != r.Fingerprint || !u.Key.Equal(r.Key) || u.Chip.Name != r.Chip || u.Revision != r.ChipRevision {
			t.Errorf("%s: %+v", r.Unit, u)
		}
		if u.Wipe(); u.Key.Len() != 0 || r.Key.Len() == 0 {
			t.Error("wipe")
		}
	}
	// A second key, after the first was given up.
	second := store(keystore.MayBeInSilicon, keystore.NotInSilicon, keystore.Superseded)
	gone := second.Fingerprint
	key, err := keystore.Generate(second.Scheme)
	if err != nil {
		t.Fatal(err)
	}
	second.Key, second.Fingerprint, second.Job = key, key.Fingerprint(), "job-2"
	if _, err := s.Create(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(t.Context(), second.Unit, second.Fingerprint, keystore.State{Kind: keystore.InSilicon, Job: "job-2"}); err != nil {
		t.Fatal(err)
	}
	if u, err := ota.Lookup(t.Context(), s, second.Unit); err != nil || u.Fingerprint == gone || u.Fingerprint != second.Fingerprint {
		t.Errorf("the second key: %v", err)
	}

	for name, c := range map[string]struct {
		unit chip.MAC
		want ota.Reason
	}{
		"unknown":     {keystoretest.Simulated(200), ota.ReasonUnknownUnit},
		"stored":      {store().Unit, ota.ReasonKeyState},
		"not burned":  {store(keystore.MayBeInSilicon, keystore.NotInSilicon).Unit, ota.ReasonKeyState},
		"superseded":  {store(keystore.Superseded).Unit, ota.ReasonKeyState},
		"quarantined": {store(keystore.MayBeInSilicon, keystore.InSilicon, keystore.Quarantined).Unit, ota.ReasonQuarantined},
		// What was set aside before a burn is no less set aside.
		"quarantined, stored":     {store(keystore.Quarantined).Unit, ota.ReasonQuarantined},
		"quarantined, not burned": {store(keystore.MayBeInSilicon, keystore.NotInSilicon, keystore.Quarantined).Unit, ota.ReasonQuarantined},
		"given up after that":     {store(keystore.Quarantined, keystore.Superseded).Unit, ota.ReasonKeyState},
	} {
		_, err := ota.Lookup(t.Context(), s, c.unit)
		wantReason(t, name, err, c.want)
		if err != nil && strings.Contains(err.Error(), "is :") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ota.Lookup(ctx, s, second.Unit); !errors.Is(err, context.Canceled) || ota.ReasonOf(err) != "" {
		t.Errorf("cancelled: %v", err)
	}
	// A refusal is not what is said when nobody could look.
	_ = s.Close()
	if _, err := ota.Lookup(t.Context(), s, second.Unit); !errors.Is(err, keystore.ErrUnavailable) || ota.ReasonOf(err) != "" {
		t.Errorf("closed: %v", err)
	}
}

func TestNewUnitRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*keystore.Record){
		"no key":       func(r *keystore.Record) { r.Key.Wipe() },
		"other chip":   func(r *keystore.Record) { r.Chip = "esp32x9" },
		"no table":     func(r *keystore.Record) { r.PartitionTable = bytes.Repeat([]byte{0xAA, 0x50, 1, 2}, 24) },
		"cipher table": func(r *keystore.Record) { r.PartitionTable = counting(0xC00) },
	} {
		r := testRecord(t, keystoretest.Simulated(1))
		spoil(&r)
		_, err := ota.NewUnit(r)
		wantReason(t, name, err, ota.ReasonRecord)
	}
}

// TestPrepare goes the whole way for both schemes and decrypts what comes out.
func TestPrepare(t *testing.T) {
	for name, c := range map[string]struct {
		record keystore.Record
		id     chip.ID
		align  int
	}{
		"esp32":   {esp32Record(t, keystoretest.Simulated(1)), chip.IDESP32, 32},
		"esp32c3": {testRecord(t, keystoretest.Simulated(2)), chip.IDESP32C3, 16},
	} {
		t.Run(name, func(t *testing.T) {
			u := testUnit(t, c.record)
			if names := slices.Collect(func(yield func(string) bool) {
				for _, e := range u.Slots() {
					yield(e.SubtypeName() + "=" + e.Label)
				}
			}); !slices.Equal(names, []string{"ota_0=first", "ota_1=ota_0"}) {
				t.Errorf("slots: %v", names)
			}
			app := testApp(t, appSpec{chip: c.id, secure: 3, version: "1.4.2 ü"})
			img, err := ota.ParseImage(bytes.Clone(app))
			if err != nil {
				t.Fatal(err)
			}
			var texts [][]byte
			for slot, address := range map[string]uint32{"ota_0": 0x10000, "ota_1": 0x110000} {
				up, err := ota.Prepare(u, img, slot, ota.Known{SecureVersion: 3})
				if err != nil {
					t.Fatal(err)
				}
				m, err := up.Manifest(t.Context(), ota.ManifestOptions{Release: "r-1", Nonce: make([]byte, ota.NonceSize)}, testSigner(t))
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, up.Ciphertext.Size())
				if _, err := up.Ciphertext.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				texts = append(texts, bytes.Clone(got))
				want := ota.Manifest{
					Unit: u.MAC, Chip: name, Release: "r-1", Project: "thermo_stat", Version: "1.4.2__", Slot: slot, Address: address,
					Length: uint32(len(got)), PlainLength: uint32(len(app)), PlainSHA256: sha256.Sum256(app), CipherSHA256: sha256.Sum256(got),
					SecureVersion: 3, Key: u.Fingerprint, Nonce: make([]byte, ota.NonceSize), Signer: m.Signer, Signature: m.Signature,
				}
				if err := m.Verify(testSigner(t).Public()); err != nil {
					t.Error(err)
				}
				if !equalManifests(t, m, &want) {
					t.Errorf("manifest:\n%+v\nwant:\n%+v", m, want)
				}
				if len(got)%c.align != 0 || len(got)-len(app) >= c.align {
					t.Errorf("%d bytes of ciphertext for %d", len(got), len(app))
				}
				cipher, err := c.record.Key.Cipher(c.record.Scheme, c.record.FlashCryptConfig)
				if err != nil {
					t.Fatal(err)
				}
				if err := cipher.Decrypt(got, bytes.Clone(got), address); err != nil || !bytes.Equal(got[:len(app)], app) {
					t.Errorf("the chip would not see the image: %v", err)
				}
				up.Ciphertext.Wipe()
			}
			if bytes.Equal(texts[0], texts[1]) {
				t.Error("both slots have the same bytes")
			}
			up, err := ota.Prepare(u, img, "ota_0", ota.Known{})
			if err != nil {
				t.Fatal(err)
			}
			known := [32]byte{1}
			if m, err := up.Manifest(t.Context(), ota.ManifestOptions{CipherSHA256: &known}, testSigner(t)); err != nil || m.CipherSHA256 != known || m.Release != "" {
				t.Errorf("known hash: %v", err)
			}
			_, err = up.Manifest(t.Context(), ota.ManifestOptions{Release: "two words"}, testSigner(t))
			wantReason(t, "release", err, ota.ReasonManifestFields)
		})
	}
}

func equalManifests(t *testing.T, a, b *ota.Manifest) bool {
	t.Helper()
	x, errA := a.MarshalText()
	y, errB := b.MarshalText()
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	return bytes.Equal(x, y)
}

func TestRefusals(t *testing.T) {
	c3 := testUnit(t, testRecord(t, keystoretest.Simulated(1)))
	good := appSpec{chip: chip.IDESP32C3, version: "1"}
	app := testApp(t, good)
	change := func(f func(s *appSpec)) []byte { s := good; f(&s); return testApp(t, s) }
	sealed := func() []byte {
		hmacKey := counting(32)
		xy, err := encimg.PublicKey(hmacKey)
		if err != nil {
			t.Fatal(err)
		}
		to, err := encimg.NewECIESRecipient(xy[:])
		if err != nil {
			t.Fatal(err)
		}
		b, err := encimg.Seal(to, app)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cipher := func() []byte {
		up, err := ota.Prepare(c3, must(ota.ParseImage(bytes.Clone(app))), "ota_0", ota.Known{})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, up.Ciphertext.Size())
		if _, err := up.Ciphertext.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	flipped := bytes.Clone(app)
	flipped[600] ^= 1
	signed := new(ota.Unit)
	*signed = *c3
	signed.SecureBootScheme, signed.SecureBootDigests = "rsa3072", [][32]byte{{1}}
	for name, c := range map[string]struct {
		file   []byte
		unit   *ota.Unit
		slot   string
		have   ota.Known
		want   ota.Reason
		number string // a word of the message
	}{
		"empty":           {nil, c3, "ota_0", ota.Known{}, ota.ReasonNotAnImage, "empty"},
		"text":            {[]byte("hello, this is no firmware"), c3, "ota_0", ota.Known{}, ota.ReasonNotAnImage, "0x68"},
		"cut off":         {app[:len(app)-40], c3, "ota_0", ota.Known{}, ota.ReasonNotAnImage, "cut off"},
		"flipped":         {flipped, c3, "ota_0", ota.Known{}, ota.ReasonNotAnImage, "checksum"},
		"ciphertext":      {cipher(), c3, "ota_0", ota.Known{}, ota.ReasonEncrypted, "ciphertext"},
		"esp_encrypted":   {sealed(), c3, "ota_0", ota.Known{}, ota.ReasonEncrypted, "esp_encrypted_img"},
		"bootloader":      {change(func(s *appSpec) { s.noDesc = true }), c3, "ota_0", ota.Known{}, ota.ReasonNotAnApp, "bootloader"},
		"ESP32":           {change(func(s *appSpec) { s.chip = chip.IDESP32 }), c3, "ota_0", ota.Known{}, ota.ReasonChip, "ESP32-C3"},
		"newer silicon":   {change(func(s *appSpec) { s.min = 4 }), c3, "ota_0", ota.Known{}, ota.ReasonRevision, "v0.4"},
		"older silicon":   {change(func(s *appSpec) { s.max = 2 }), c3, "ota_0", ota.Known{}, ota.ReasonRevision, "v0.2"},
		"too large":       {change(func(s *appSpec) { s.size = 1 << 20 }), c3, "ota_0", ota.Known{}, ota.ReasonSize, "1048576"},
		"16 MB":           {make([]byte, 16<<20), c3, "ota_0", ota.Known{}, ota.ReasonSize, "16 MB"},
		"no slot":         {app, c3, "ota_2", ota.Known{}, ota.ReasonSlot, "ota_0, ota_1"},
		"a label":         {app, c3, "first", ota.Known{}, ota.ReasonSlot, "first"},
		"factory":         {app, c3, "factory", ota.Known{}, ota.ReasonSlot, "factory"},
		"rollback":        {app, c3, "ota_1", ota.Known{SecureVersion: 1}, ota.ReasonSecureVersion, "secure_version 0"},
		"unsigned":        {app, signed, "ota_1", ota.Known{}, ota.ReasonUnsigned, "rsa3072"},
		"other signature": {change(func(s *appSpec) { s.signature = append([]byte{0xE7}, make([]byte, 4095)...) }), signed, "ota_1", ota.Known{}, ota.ReasonSignature, "signature block 0"},
	} {
		img, err := ota.ParseImage(bytes.Clone(c.file))
		if err == nil {
			_, err = ota.Prepare(c.unit, img, c.slot, c.have)
		}
		wantReason(t, name, err, c.want)
		if err != nil && !strings.Contains(err.Error(), c.number) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.number)
		}
	}
	// A record may tell of a slot that its flash does not have.
	small := *c3
	small.FlashSize = 1 << 20
	_, err := ota.Prepare(&small, must(ota.ParseImage(app)), "ota_1", ota.Known{})
	wantReason(t, "beyond the flash", err, ota.ReasonRecord)
	// Tables that nobody checked: an application off its page, a slot twice.
	odd := *c3
	entry := partition.Entry{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: 0x11000, Size: 0x10000, Label: "a"}
	odd.Table = partition.New(entry)
	_, err = ota.Prepare(&odd, must(ota.ParseImage(app)), "ota_0", ota.Known{})
	wantReason(t, "off its page", err, ota.ReasonMapping)
	again := entry
	again.Offset, again.Label = 0x30000, "b"
	odd.Table = partition.New(entry, again)
	_, err = odd.Slot("ota_0")
	wantReason(t, "twice", err, ota.ReasonSlot)
	// To the last byte of the slot and of the flash, and one block more.
	odd.FlashSize = 0x20000
	entry.Offset, entry.Size = 0x10000, 0x10000
	odd.Table = partition.New(entry)
	full := bytes.Clone(app)
	for len(full) < 0x10000 {
		full = append(full, 0xFF)
	}
	if up, err := ota.Prepare(&odd, must(ota.ParseImage(full)), "ota_0", ota.Known{}); err != nil || up.Ciphertext.Size() != 0x10000 {
		t.Errorf("a full slot: %v", err)
	}
	_, err = ota.Prepare(&odd, must(ota.ParseImage(append(bytes.Clone(full), 0xFF))), "ota_0", ota.Known{})
	wantReason(t, "one byte more", err, ota.ReasonSize)
	none := *c3
	none.Table = partition.New()
	_, err = none.Slot("ota_0")
	wantReason(t, "no slots", err, ota.ReasonSlot)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestSecureBoot: a unit takes only what one of its keys has signed.
func TestSecureBoot(t *testing.T) {
	signer := func() crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	mine, second, other := signer(), signer(), signer()
	digest := func(s crypto.Signer) [32]byte {
		d, err := secureboot.Digest(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	app := testApp(t, appSpec{chip: chip.IDESP32C3, version: "1"})
	sign := func(signers ...crypto.Signer) []byte {
		b, err := secureboot.Sign(t.Context(), app, secureboot.Options{}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := testRecord(t, keystoretest.Simulated(1))
	r.SecureBootScheme, r.SecureBootDigests = "rsa3072", [][32]byte{digest(mine), digest(second)}
	u := testUnit(t, r)
	old := *u
	old.Revision = 2
	flipped := sign(mine)
	flipped[len(flipped)-4096+900] ^= 1
	for name, c := range map[string]struct {
		file []byte
		unit *ota.Unit
		want ota.Reason
		word string
	}{
		"mine":              {sign(mine), u, "", ""},
		"the second key":    {sign(second), u, "", ""},
		"among others":      {sign(other, second), u, "", ""},
		"unsigned":          {app, u, ota.ReasonUnsigned, "not signed"},
		"another key":       {sign(other), u, ota.ReasonSignature, "none of the keys"},
		"changed":           {flipped, u, ota.ReasonSignature, "signature block 0"},
		"another scheme":    {sign(ecdsaKey), u, ota.ReasonSignature, "ecdsa256"},
		"too old a chip":    {sign(mine), &old, ota.ReasonSignature, "v0.2"},
		"signed, unit open": {flipped, testUnit(t, testRecord(t, keystoretest.Simulated(2))), "", ""},
	} {
		img, err := ota.ParseImage(bytes.Clone(c.file))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		up, err := ota.Prepare(c.unit, img, "ota_0", ota.Known{})
		if c.want != "" {
			wantReason(t, name, err, c.want)
			if err == nil || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%s: %v, want a word about %s", name, err, c.word)
			}
			continue
		}
		if err != nil || up.Ciphertext.Size() != int64(len(c.file)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
