package keystore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
)

func goldenRecord(t testing.TB) keystore.Record {
	t.Helper()
	r := keystoretest.NewRecord(t, chip.MAC{2, 0, 0, 0, 0, 1})
	r.Key = mustKey(t, counting(32))
	r.Fingerprint = r.Key.Fingerprint()
	r.PartitionTable = bytes.Repeat([]byte{0xAA, 0x50}, 16)
	return r
}

// goldenText is the canonical encoding; stores keep it for as long as boards live.
const goldenText = `{"schema":1,"unit":"02:00:00:00:00:01","simulated":true,"chip":"esp32c3","chip_revision":3,"scheme":"xts-128",` +
	`"key":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",` +
	`"fingerprint":"2ca57b11a65f5c5c656f6efb49f60680eafb4c7fdd20fc3377d8548c1548602d",` +
	`"flash_crypt_config":0,"partition_table":"aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50aa50",` +
	`"flash_size":4194304,"recipe":"thermostat-c3","recipe_revision":7,` +
	`"recipe_hash":"e1d8e552330911f9f779f85b6f2c00a15e790dcc3fbb3b28f5da1d660a30c5b8","job":"job-1","station":"bench \"1\" ü",` +
	`"lot":"lot-9","created":"2026-11-22T16:00:00.123456789Z"}`

func TestMarshalRecord(t *testing.T) {
	r := goldenRecord(t)
	b, err := keystore.MarshalRecord(r)
	if err != nil || string(b) != goldenText {
		t.Fatalf("%s, %v", b, err)
	}
	r.Created = r.Created.In(time.FixedZone("x", 7200)) // the same moment
	if again, err := keystore.MarshalRecord(r); err != nil || string(again) != goldenText {
		t.Errorf("in another zone: %s, %v", again, err)
	}
	got, err := keystore.ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Key.Equal(r.Key) || got.Unit != r.Unit || got.Station != r.Station || !got.Created.Equal(r.Created) ||
		!bytes.Equal(got.PartitionTable, r.PartitionTable) || got.Lot != r.Lot || got.FlashSize != r.FlashSize {
		t.Errorf("parsed: %+v", got)
	}
	var other map[string]any
	if err := json.Unmarshal(b, &other); err != nil || len(other) != 18 {
		t.Errorf("encoding/json sees %d fields: %v", len(other), err)
	}
}

// TestMarshalDoesNotGrow: a buffer that grew has left a copy of the key behind.
func TestMarshalDoesNotGrow(t *testing.T) {
	// The least of several rounds: pools that are emptied meanwhile, as the race
	// detector does at random, add allocations that are not the buffer's.
	count := func(r keystore.Record) float64 {
		least := math.Inf(1)
		for range 20 {
			least = min(least, testing.AllocsPerRun(20, func() {
				if _, err := keystore.MarshalRecord(r); err != nil {
					t.Fatal(err)
				}
			}))
		}
		return least
	}
	short, long := goldenRecord(t), goldenRecord(t)
	text := strings.Repeat("\"", 256) // every byte is escaped
	long.Recipe, long.Job, long.Station, long.Lot = text, text, text, text
	long.PartitionTable = make([]byte, 0x1000)
	if s, l := count(short), count(long); l > s {
		t.Errorf("%v allocations for a long record, %v for a short one", l, s)
	}
}

func TestValidate(t *testing.T) {
	other, _ := keystore.Generate(chip.SchemeXTS128)
	long, _ := keystore.Generate(chip.SchemeXTS256)
	for name, c := range map[string]struct {
		spoil func(*keystore.Record)
		word  string
	}{
		"schema":         {func(r *keystore.Record) { r.Schema = 2 }, "schema"},
		"no unit":        {func(r *keystore.Record) { r.Unit = chip.MAC{}; r.Simulated = false }, "unit"},
		"group address":  {func(r *keystore.Record) { r.Unit[0] = 3 }, "unit"},
		"not marked":     {func(r *keystore.Record) { r.Simulated = false }, "simulated"},
		"marked":         {func(r *keystore.Record) { r.Unit[0] = 0x24 }, "simulated"},
		"chip":           {func(r *keystore.Record) { r.Chip = "ESP32-C3" }, "chip"},
		"other maker":    {func(r *keystore.Record) { r.Chip = "rp2040" }, "chip"},
		"no scheme":      {func(r *keystore.Record) { r.Scheme = "" }, "scheme"},
		"wrong scheme":   {func(r *keystore.Record) { r.Scheme = chip.SchemeESP32 }, "scheme"},
		"wrong chip":     {func(r *keystore.Record) { r.Chip = "esp32" }, "scheme"},
		"no key":         {func(r *keystore.Record) { r.Key = keystore.Key{} }, "key"},
		"long key":       {func(r *keystore.Record) { r.Key = long; r.Fingerprint = long.Fingerprint() }, "key"},
		"other key":      {func(r *keystore.Record) { r.Key = other }, "fingerprint"},
		"no fingerprint": {func(r *keystore.Record) { r.Fingerprint = keystore.Fingerprint{} }, "fingerprint"},
		"crypt config":   {func(r *keystore.Record) { r.FlashCryptConfig = 15 }, "flash_crypt_config"},
		"no table":       {func(r *keystore.Record) { r.PartitionTable = nil }, "partition_table"},
		"odd table":      {func(r *keystore.Record) { r.PartitionTable = make([]byte, 33) }, "partition_table"},
		"long table":     {func(r *keystore.Record) { r.PartitionTable = make([]byte, 0x1020) }, "partition_table"},
		"flash size":     {func(r *keystore.Record) { r.FlashSize = 3 << 20 }, "flash_size"},
		"no flash":       {func(r *keystore.Record) { r.FlashSize = 0 }, "flash_size"},
		"no recipe":      {func(r *keystore.Record) { r.Recipe = "" }, "recipe"},
		"revision":       {func(r *keystore.Record) { r.RecipeRevision = -1 }, "recipe_revision"},
		"hash":           {func(r *keystore.Record) { r.RecipeHash = strings.ToUpper(r.RecipeHash) }, "recipe_hash"},
		"no hash":        {func(r *keystore.Record) { r.RecipeHash = "" }, "recipe_hash"},
		"no job":         {func(r *keystore.Record) { r.Job = "" }, "job"},
		"newline":        {func(r *keystore.Record) { r.Job = "a\nb" }, "job"},
		"no station":     {func(r *keystore.Record) { r.Station = "" }, "station"},
		"bad UTF-8":      {func(r *keystore.Record) { r.Lot = "\xff" }, "lot"},
		"long lot":       {func(r *keystore.Record) { r.Lot = strings.Repeat("x", 257) }, "lot"},
		"no time":        {func(r *keystore.Record) { r.Created = time.Time{} }, "created"},
		"year":           {func(r *keystore.Record) { r.Created = time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC) }, "created"},
	} {
		r := goldenRecord(t)
		c.spoil(&r)
		err := r.Validate()
		if err == nil || !strings.Contains(err.Error(), "field "+c.word) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.word)
		}
		if _, err := keystore.MarshalRecord(r); err == nil {
			t.Errorf("%s: was marshalled", name)
		}
	}
	if r := goldenRecord(t); r.Validate() != nil {
		t.Error(r.Validate())
	}
}

// TestParseRecordRefuses changes one thing of a good text at a time. No error
// may show the key.
func TestParseRecordRefuses(t *testing.T) {
	for name, c := range map[string]struct{ from, to, word string }{
		"newer schema":   {`"schema":1`, `"schema":2`, "schema"},
		"unknown field":  {`"lot":"lot-9"`, `"lot":"lot-9","x":1`, "created"},
		"missing":        {`"lot":"lot-9",`, ``, "lot"},
		"order":          {`"chip_revision":3,"scheme":"xts-128"`, `"scheme":"xts-128","chip_revision":3`, "chip_revision"},
		"white space":    {`"chip_revision":3`, `"chip_revision": 3`, "chip_revision"},
		"key upper case": {`0a0b0c`, `0A0b0c`, "key"},
		"key cut":        {`1e1f"`, `1e1"`, "key"},
		"key short":      {`1e1f"`, `"`, "key"},
		"key long":       {`1e1f"`, `1e1f20"`, "key"},
		"key number":     {`"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"`, `102030405060708`, "key"},
		"key no hex":     {`0a0b0c`, `0a0z0c`, "key"},
		"key escaped":    {`0a0b0c`, `0\u00610b0c`, "key"},
		"key zeros":      {`000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f`, strings.Repeat("0", 64), "key"},
		"other key":      {`0a0b0c`, `0a0b0d`, "fingerprint"},
		"unit":           {`02:00`, `02:0`, "unit"},
		"real unit":      {`02:00`, `24:00`, "simulated"},
		"after":          {`789Z"}`, `789Z"}{}`, "end"},
		"cut":            {`789Z"}`, `789Z`, "created"},
	} {
		text := strings.Replace(goldenText, c.from, c.to, 1)
		if text == goldenText {
			t.Fatalf("%s: changes nothing", name)
		}
		r, err := keystore.ParseRecord([]byte(text))
		if err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.word)
		}
		if err != nil && (strings.Contains(err.Error(), "0102") || strings.Contains(err.Error(), "0304")) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
		if r.Key.Len() != 0 {
			t.Errorf("%s: a key beside an error", name)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(goldenText))
	f.Add([]byte(strings.Replace(goldenText, `"lot-9"`, `"\"\\ ü"`, 1)))
	f.Add([]byte(strings.Replace(goldenText, `"schema":1`, `"schema":01`, 1)))
	f.Add([]byte(strings.TrimSuffix(goldenText, "}") + laterText))
	r := goldenRecord(f)
	r.Chip, r.Scheme, r.FlashCryptConfig = "esp32", chip.SchemeESP32, 9
	b, err := keystore.MarshalRecord(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := keystore.ParseRecord(text)
		if err != nil {
			return
		}
		again, err := keystore.MarshalRecord(r)
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%v: read %s, wrote %s", err, text, again)
		}
	})
}

// TestCheckTransition is the table of its doc comment.
func TestCheckTransition(t *testing.T) {
	type kinds = []keystore.StateKind
	all := keystore.StateKinds()
	for _, c := range []struct{ history, may kinds }{
		{nil, kinds{keystore.MayBeInSilicon, keystore.InSilicon, keystore.Superseded, keystore.Quarantined}},
		{kinds{keystore.MayBeInSilicon}, kinds{keystore.InSilicon, keystore.NotInSilicon, keystore.Quarantined}},
		{kinds{keystore.MayBeInSilicon, keystore.NotInSilicon}, kinds{keystore.Superseded, keystore.Quarantined}},
		{kinds{keystore.MayBeInSilicon, keystore.NotInSilicon, keystore.Superseded}, nil},
		{kinds{keystore.MayBeInSilicon, keystore.NotInSilicon, keystore.Quarantined}, kinds{keystore.InSilicon}},
		{kinds{keystore.InSilicon}, kinds{keystore.Quarantined}},
		{kinds{keystore.MayBeInSilicon, keystore.InSilicon}, kinds{keystore.Quarantined}},
		{kinds{keystore.Superseded}, nil},
		{kinds{keystore.Quarantined}, kinds{keystore.InSilicon, keystore.Superseded}},
		{kinds{keystore.MayBeInSilicon, keystore.Quarantined}, kinds{keystore.InSilicon}},
		{kinds{keystore.InSilicon, keystore.Quarantined}, kinds{keystore.InSilicon}},
		{kinds{keystore.Quarantined, keystore.Superseded}, nil},
	} {
		var history []keystore.State
		for _, k := range c.history {
			history = append(history, keystore.State{Kind: k})
		}
		for _, next := range all {
			err := keystore.CheckTransition(history, next)
			if (err == nil) != slices.Contains(c.may, next) || (err != nil && !errors.Is(err, keystore.ErrState)) {
				t.Errorf("%v then %s: %v", c.history, next, err)
			}
		}
	}
	if err := keystore.CheckTransition(nil, "melted"); err == nil {
		t.Error("an unknown state is taken")
	}
}

func TestErrorsNameTheNextStep(t *testing.T) {
	k := mustKey(t, counting(32))
	for state, word := range map[keystore.StateKind]string{
		keystore.Stored: "supersede", keystore.MayBeInSilicon: "inspect", keystore.InSilicon: "inspect", keystore.Quarantined: "quarantine",
	} {
		err := error(&keystore.ConflictError{Unit: chip.MAC{2}, Fingerprint: k.Fingerprint(), State: state})
		if !errors.Is(err, keystore.ErrConflict) || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), k.Fingerprint().String()) {
			t.Errorf("%s: %v", state, err)
		}
	}
	for _, err := range []error{keystore.CheckUnit(chip.MAC{0x24}, true), keystore.CheckUnit(chip.MAC{2}, false)} {
		if !errors.Is(err, keystore.ErrTestUnit) || !strings.Contains(fmt.Sprint(err), "use ") {
			t.Errorf("%v", err)
		}
	}
}

// laterText is what the members that came later add to the golden text.
const laterText = `,"ota_token_sha256":"80673fed200ec9123603bdc727c5d7aa8cdfa7063d96488ccd9fdf6ae4b0ffcb",` +
	`"ecies_public_key":"6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296` +
	`4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",` +
	`"secure_boot_scheme":"rsa3072","secure_boot_digests":"` +
	`0101010101010101010101010101010101010101010101010101010101010101 ` +
	`0202020202020202020202020202020202020202020202020202020202020202"}`

func laterRecord(t testing.TB) keystore.Record {
	t.Helper()
	r := goldenRecord(t)
	digest, err := keystore.ParseDigest("80673fed200ec9123603bdc727c5d7aa8cdfa7063d96488ccd9fdf6ae4b0ffcb")
	if err != nil {
		t.Fatal(err)
	}
	r.OTATokenSHA256 = &digest
	r.ECIESPublicKey = unhex(t, "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"+ // the base point of P-256
		"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
	r.SecureBootScheme = "rsa3072"
	r.SecureBootDigests = [][32]byte{[32]byte(bytes.Repeat([]byte{1}, 32)), [32]byte(bytes.Repeat([]byte{2}, 32))}
	return r
}

// TestLaterMembers holds the text of the members that came later; those of old
// records stay as they were (TestMarshalRecord).
func TestLaterMembers(t *testing.T) {
	full := strings.TrimSuffix(goldenText, "}") + laterText
	r := laterRecord(t)
	b, err := keystore.MarshalRecord(r)
	if err != nil || string(b) != full {
		t.Fatalf("%s, %v", b, err)
	}
	got, err := keystore.ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", got.Meta()) != fmt.Sprintf("%+v", r.Meta()) || *got.OTATokenSHA256 != *r.OTATokenSHA256 {
		t.Errorf("parsed: %+v", got.Meta())
	}
	for name, c := range map[string]struct{ from, to, word string }{
		"token empty":    {`"ota_token_sha256":"80673fed`, `"ota_token_sha256":"","x":"`, "ota_token_sha256"},
		"token short":    {`"80673fed`, `"673fed`, "ota_token_sha256"},
		"token capital":  {`"80673fed`, `"80673FED`, "ota_token_sha256"},
		"token zero":     {`80673fed200ec9123603bdc727c5d7aa8cdfa7063d96488ccd9fdf6ae4b0ffcb`, strings.Repeat("0", 64), "ota_token_sha256"},
		"order":          {`"ota_token_sha256"`, `"secure_boot_scheme":"rsa3072","ota_token_sha256"`, "end"},
		"twice":          {`,"secure_boot_scheme":"rsa3072"`, `,"secure_boot_scheme":"rsa3072","secure_boot_scheme":"rsa3072"`, "end"},
		"not on curve":   {`6b17d1f2`, `6b17d1f3`, "ecies_public_key"},
		"half a point":   {`4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5`, ``, "ecies_public_key"},
		"no scheme":      {`"secure_boot_scheme":"rsa3072",`, ``, "secure_boot_digests"},
		"empty scheme":   {`"rsa3072"`, `""`, "secure_boot_scheme"},
		"other scheme":   {`"rsa3072"`, `"rsa2048"`, "secure_boot_scheme"},
		"no digests":     {laterText[strings.Index(laterText, `,"secure_boot_digests"`):], `}`, "secure_boot_digests"},
		"two spaces":     {` 0202`, `  0202`, "secure_boot_digests"},
		"digest cut":     {` 0202`, ` 02`, "secure_boot_digests"},
		"digest zero":    {strings.Repeat("02", 32), strings.Repeat("00", 32), "secure_boot_digests"},
		"four digests":   {` 0202`, strings.Repeat(" "+strings.Repeat("03", 32), 2) + ` 0202`, "secure_boot_digests"},
		"unknown member": {laterText, `,"x":"y"}`, "end"},
	} {
		text := strings.Replace(full, c.from, c.to, 1)
		if text == full {
			t.Fatalf("%s: changes nothing", name)
		}
		if _, err := keystore.ParseRecord([]byte(text)); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.word)
		}
	}
}
