package partition_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/partition"
)

// usual is the table of a product with two slots.
func usual() []partition.Entry {
	return []partition.Entry{
		{Type: partition.TypeData, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x4000, Label: "nvs"},
		{Type: partition.TypeData, Subtype: partition.DataOTA, Offset: 0xD000, Size: 0x2000, Label: "otadata"},
		{Type: partition.TypeData, Subtype: partition.DataPHY, Offset: 0xF000, Size: 0x1000, Label: "phy_init"},
		{Type: partition.TypeApp, Subtype: partition.AppFactory, Offset: 0x10000, Size: 0x100000, Label: "factory"},
		{Type: partition.TypeApp, Subtype: partition.AppOTA0, Offset: 0x110000, Size: 0x100000, Label: "ota_0"},
		{Type: partition.TypeApp, Subtype: partition.AppOTA0 + 1, Offset: 0x210000, Size: 0x100000, Label: "ota_1"},
		{Type: partition.TypeData, Subtype: partition.DataNVSKeys, Offset: 0x310000, Size: 0x1000, Label: "nvs_keys", Flags: partition.FlagEncrypted},
		{Type: partition.TypeData, Subtype: partition.DataSPIFFS, Offset: 0x311000, Size: 0x6F000, Label: "storage", Flags: partition.FlagEncrypted},
	}
}

// row is written by hand, so that the encoder is not tested with itself.
const nvsRow = "aa50" + "01" + "02" + "00900000" + "00400000" + "6e767300000000000000000000000000" + "00000000"

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encode(t testing.TB, table *partition.Table) []byte {
	t.Helper()
	b, err := table.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ff(n int) []byte { return bytes.Repeat([]byte{0xFF}, n) }

func md5Row(rows []byte) []byte {
	sum := md5.Sum(rows)
	return append(append([]byte{0xEB, 0xEB}, ff(14)...), sum[:]...)
}

func TestBytes(t *testing.T) {
	row := unhex(t, nvsRow)
	want := append(append(bytes.Clone(row), md5Row(row)...), ff(0xC00-64)...)
	table := partition.New(usual()[0])
	if got := encode(t, table); !bytes.Equal(got, want) {
		t.Errorf("%x", got[:96])
	}
	sector, err := table.Sector()
	if err != nil || !bytes.Equal(sector, append(bytes.Clone(want), ff(0x400)...)) {
		t.Errorf("sector of 0x%x bytes, %v", len(sector), err)
	}

	// The MD5 row of this very table, as the vendor's generator wrote it.
	b := encode(t, partition.New(usual()...))
	if got := hex.EncodeToString(b[0x110:0x120]); got != "8f0960531ed4a76db6932d92dd790e74" {
		t.Errorf("MD5 %s", got)
	}
}

func TestParse(t *testing.T) {
	row := unhex(t, nvsRow)
	nvs := usual()[0]
	odd := nvs
	odd.Type, odd.Subtype, odd.Flags, odd.Label = 0x40, 0xFE, 0x80000003, "sixteen letters!"
	for _, c := range []struct {
		name string
		b    []byte
		want partition.Table
	}{
		{"with MD5", encode(t, partition.New(nvs)), partition.Table{Entries: []partition.Entry{nvs}, HasMD5: true}},
		{"without MD5", append(bytes.Clone(row), ff(0xC00-32)...), partition.Table{Entries: []partition.Entry{nvs}}},
		{"shortest", append(bytes.Clone(row), ff(32)...), partition.Table{Entries: []partition.Entry{nvs}}},
		{"whole sector", append(bytes.Clone(row), ff(0x1000-32)...), partition.Table{Entries: []partition.Entry{nvs}}},
		{"all known and unknown flags", encode(t, partition.New(odd)), partition.Table{Entries: []partition.Entry{odd}, HasMD5: true}},
		{"empty", ff(0xC00), partition.Table{}},
		{"95 rows", append(bytes.Repeat(row, 95), ff(32)...), partition.Table{Entries: many(nvs, 95)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := partition.Parse(c.b)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&c.want, got, cmpopts.IgnoreUnexported(partition.Table{})); d != "" {
				t.Error(d)
			}
			if again := encode(t, got); !bytes.Equal(again, c.b) {
				t.Errorf("re-encoded: 0x%x bytes, want 0x%x", len(again), len(c.b))
			}
		})
	}
}

func many(e partition.Entry, n int) []partition.Entry {
	s := make([]partition.Entry, n)
	for i := range s {
		s[i] = e
	}
	return s
}

func TestParseErrors(t *testing.T) {
	row := unhex(t, nvsRow)
	edit := func(off int, v ...byte) []byte {
		b := append(bytes.Clone(row), ff(32)...)
		copy(b[off:], v)
		return b
	}
	withMD5 := append(bytes.Clone(row), md5Row(row)...)
	for _, c := range []struct {
		name   string
		b      []byte
		offset int
		field  string
	}{
		{"nothing", nil, 0, "length"},
		{"not rows", ff(33), 0, "length"},
		{"more than a sector", ff(0x1020), 0, "length"},
		{"cut off", row, 32, "end"},
		{"cut off after MD5", withMD5, 64, "end"},
		{"magic", edit(0, 0xAB), 0, "magic"},
		{"magic of row 2", append(bytes.Clone(row), make([]byte, 32)...), 32, "magic"},
		{"label goes on", edit(12+4, 'x'), 12, "label"},
		{"label with escape", edit(12, 0x1B), 12, "label"},
		{"label beyond ASCII", edit(12, 0xC3, 0xA4), 12, "label"},
		{"almost the end", append(bytes.Clone(row), append(ff(31), 0)...), 32, "magic"},
		{"after the end", append(edit(0, 0xAA), append(ff(40), append([]byte{0xEF, 0xBF, 0xBD}, ff(21)...)...)...), 104, "end"},
		{"MD5 wrong", append(append(bytes.Clone(row), md5Row(row[1:])...), ff(32)...), 48, "md5"},
		{"MD5 padding", append(append(bytes.Clone(row), append([]byte{0xEB, 0xEB, 0}, md5Row(row)[3:]...)...), ff(32)...), 34, "md5"},
		{"two MD5 rows", append(append(bytes.Clone(withMD5), md5Row(withMD5)...), ff(32)...), 64, "end"},
		{"row after MD5", append(append(bytes.Clone(withMD5), row...), ff(32)...), 64, "end"},
		{"96 rows", append(bytes.Repeat(row, 96), ff(32)...), 95 * 32, "end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := partition.Parse(c.b)
			var e *partition.Error
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			if e.Offset != c.offset || e.Field != c.field {
				t.Errorf("%v: %s, offset 0x%x", err, e.Field, e.Offset)
			}
		})
	}
}

func TestMarshalErrors(t *testing.T) {
	e := usual()[0]
	long, ctrl := e, e
	long.Label = "seventeen letters"
	ctrl.Label = "a\nb"
	for name, table := range map[string]*partition.Table{
		"long label":       partition.New(long),
		"control in label": partition.New(ctrl),
		"95 rows and MD5":  partition.New(many(e, 95)...),
		"96 rows":          {Entries: many(e, 96)},
	} {
		if _, err := table.MarshalBinary(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if b := encode(t, partition.New(many(e, 94)...)); len(b) != 0xC00 {
		t.Errorf("94 rows: 0x%x bytes", len(b))
	}
}

func TestCheck(t *testing.T) {
	with := func(edit func(e []partition.Entry) []partition.Entry) *partition.Table {
		return partition.New(edit(usual())...)
	}
	set := func(i int, f func(e *partition.Entry)) *partition.Table {
		return with(func(e []partition.Entry) []partition.Entry { f(&e[i]); return e })
	}
	add := func(n partition.Entry) *partition.Table {
		return with(func(e []partition.Entry) []partition.Entry { return append(e, n) })
	}
	const flash, at = 4 << 20, 0x8000
	for _, c := range []struct {
		name  string
		table *partition.Table
		flash uint32
		at    uint32
		want  string // part of the error; "" is none
	}{
		{"usual", partition.New(usual()...), flash, at, ""},
		{"unordered rows", with(func(e []partition.Entry) []partition.Entry { e[0], e[5] = e[5], e[0]; return e }), flash, at, ""},
		{"exactly to the end", add(partition.Entry{Type: 1, Subtype: 6, Offset: 0x380000, Size: 0x80000, Label: "rest"}), flash, at, ""},
		{"rows for bootloader and table", with(func(e []partition.Entry) []partition.Entry {
			return append(e,
				partition.Entry{Type: partition.TypeBootloader, Offset: 0x1000, Size: 0x7000, Label: "boot"},
				partition.Entry{Type: partition.TypePartitionTable, Offset: 0x8000, Size: 0x1000, Label: "table"})
		}), flash, at, ""},
		{"beyond the flash", add(partition.Entry{Type: 1, Subtype: 6, Offset: 0x380000, Size: 0x80001, Label: "rest"}), flash, at, "beyond the flash"},
		{"wraps around", add(partition.Entry{Type: 1, Subtype: 6, Offset: 0xFFFFF000, Size: 0x2000, Label: "rest"}), flash, at, "beyond the flash"},
		{"smaller flash", partition.New(usual()...), 2 << 20, at, `"ota_1"`},
		{"table moved up", partition.New(usual()...), flash, 0x9000, "before the end of the table"},
		{"table unaligned", partition.New(usual()...), flash, 0x8800, "its own offset"},
		{"table outside", partition.New(usual()...), 0x8000, 0x8000, "its own offset"},
		{"overlap", set(4, func(e *partition.Entry) { e.Size += 0x1000 }), flash, at, `"ota_0" (app, ota_0, 0x110000..0x211000) overlaps "ota_1"`},
		{"app alignment", set(3, func(e *partition.Entry) { e.Offset += 0x1000; e.Size -= 0x1000 }), flash, at, "not a multiple of 0x10000"},
		{"data alignment", set(7, func(e *partition.Entry) { e.Offset += 0x20 }), flash, at, "not a multiple of 0x1000"},
		{"app size", set(3, func(e *partition.Entry) { e.Size -= 16 }), flash, at, "size is not a multiple"},
		{"no size", set(2, func(e *partition.Entry) { e.Size = 0 }), flash, at, "no bytes"},
		{"label twice", set(7, func(e *partition.Entry) { e.Label = "nvs" }), flash, at, `label "nvs" is there twice`},
		{"slot twice", set(5, func(e *partition.Entry) { e.Subtype-- }), flash, at, "ota_0 is there twice"},
		{"slot missing", set(5, func(e *partition.Entry) { e.Subtype++ }), flash, at, "ota_1 is missing"},
		{"two otadata", add(partition.Entry{Type: 1, Subtype: 0, Offset: 0x380000, Size: 0x2000, Label: "otadata2"}), flash, at, "two otadata"},
		{"otadata size", set(1, func(e *partition.Entry) { e.Size = 0x1000 }), flash, at, "OTA data has 0x2000"},
		{"nvs encrypted", set(0, func(e *partition.Entry) { e.Flags = partition.FlagEncrypted }), flash, at, "NVS library refuses"},
		{"table row elsewhere", add(partition.Entry{Type: partition.TypePartitionTable, Offset: 0x9000, Size: 0x1000, Label: "table"}), flash, at, "the table is at 0x8000"},
		{"bootloader row too long", add(partition.Entry{Type: partition.TypeBootloader, Offset: 0x1000, Size: 0x8000, Label: "boot"}), flash, at, "reaches into the table"},
		{"no rows", partition.New(), flash, at, "no rows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.table.Check(c.flash, c.at)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}

	t.Run("everything that is wrong", func(t *testing.T) {
		table := set(0, func(e *partition.Entry) { e.Flags = partition.FlagEncrypted; e.Size = 0x5000 })
		if err := table.Check(2<<20, at); err == nil || strings.Count(err.Error(), "\n") < 3 {
			t.Errorf("%v", err)
		}
	})
}

// TestEncrypted follows the rows of esp-facts D.1.
func TestEncrypted(t *testing.T) {
	for _, c := range []struct {
		typ           partition.Type
		sub           partition.Subtype
		plain, flaged bool // without and with the flag
	}{
		{partition.TypeApp, partition.AppFactory, true, true},
		{partition.TypeApp, partition.AppOTA15, true, true},
		{partition.TypeApp, partition.AppTest, true, true},
		{partition.TypeApp, partition.AppTEE0, true, true},
		{partition.TypeData, partition.DataOTA, true, true},
		{partition.TypeData, partition.DataNVSKeys, true, true},
		{partition.TypeData, partition.DataTEEOTA, true, true},
		{partition.TypeBootloader, partition.SubtypeOTA, true, true},
		{partition.TypePartitionTable, partition.SubtypeOTA, true, true},
		{partition.TypeData, partition.DataNVS, false, false},
		{partition.TypeData, partition.DataPHY, false, true},
		{partition.TypeData, partition.DataCoredump, false, true},
		{partition.TypeData, partition.DataSPIFFS, false, true},
		{partition.TypeData, partition.DataFAT, false, true},
		{0x40, 0x00, false, true},
	} {
		e := partition.Entry{Type: c.typ, Subtype: c.sub, Flags: partition.FlagReadonly}
		if got := partition.Encrypted(e); got != c.plain {
			t.Errorf("%v: %v", e, got)
		}
		e.Flags |= partition.FlagEncrypted
		if got := partition.Encrypted(e); got != c.flaged {
			t.Errorf("%v with the flag: %v", e, got)
		}
	}
}

func TestNames(t *testing.T) {
	e := usual()
	for i, want := range []string{"data nvs ", "data ota ", "data phy ", "app factory ", "app ota_0 ", "app ota_1 ", "data nvs_keys encrypted", "data spiffs encrypted"} {
		if got := e[i].Type.String() + " " + e[i].SubtypeName() + " " + e[i].Flags.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	odd := partition.Entry{Type: 0x41, Subtype: 0x07, Flags: 7}
	if got := odd.Type.String() + " " + odd.SubtypeName() + " " + odd.Flags.String(); got != "0x41 0x07 encrypted:readonly:0x4" {
		t.Errorf("%q", got)
	}
}

func TestLookups(t *testing.T) {
	table := partition.New(usual()...)
	if e, ok := table.Find("ota_0"); !ok || e.Offset != 0x110000 {
		t.Errorf("%v %v", e, ok)
	}
	if e, ok := table.Find("ota"); ok {
		t.Errorf("found %v", e)
	}
	for addr, want := range map[uint32]string{0x9000: "nvs", 0xCFFF: "nvs", 0xD000: "otadata", 0x10000: "factory", 0x8000: "", 0x380000: ""} {
		if e, ok := table.At(addr); e.Label != want || ok != (want != "") {
			t.Errorf("0x%x: %v, want %q", addr, e, want)
		}
	}
	top := partition.New(partition.Entry{Type: 1, Subtype: 6, Offset: 0xFFFFF000, Size: 0x1000})
	if _, ok := top.At(0xFFFFFFFF); !ok {
		t.Error("the last address of 4 GB is in no partition")
	}
	if n := table.OTASlots(); n != 2 {
		t.Errorf("%d slots", n)
	}
}

// TestRoundTrip: any entries that encode come back the same.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entry := rapid.Custom(func(t *rapid.T) partition.Entry {
			return partition.Entry{
				Type: partition.Type(rapid.Uint8().Draw(t, "type")), Subtype: partition.Subtype(rapid.Uint8().Draw(t, "subtype")),
				Offset: rapid.Uint32().Draw(t, "offset"), Size: rapid.Uint32().Draw(t, "size"),
				Label: rapid.StringMatching(`[ -~]{0,16}`).Draw(t, "label"), Flags: partition.Flags(rapid.Uint32().Draw(t, "flags")),
			}
		})
		table := partition.New(rapid.SliceOfN(entry, 0, 94).Draw(t, "entries")...)
		b, err := table.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got, err := partition.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(table, got, cmpopts.IgnoreUnexported(partition.Table{}), cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
	})
}

func sharedImages(t testing.TB) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
	dir = filepath.Join(dir, "..", "shared", "images")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("needs ../shared/images")
	}
	return dir
}

// TestRealTables parses what the vendor's generator wrote.
func TestRealTables(t *testing.T) {
	dir := sharedImages(t)
	for _, c := range []string{"esp32", "esp32c3"} {
		b, err := os.ReadFile(filepath.Join(dir, c, "partition-table.bin"))
		if err != nil {
			t.Fatal(err)
		}
		table, err := partition.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(usual(), table.Entries); d != "" || !table.HasMD5 {
			t.Errorf("%s: MD5 %v\n%s", c, table.HasMD5, d)
		}
		if err := table.Check(4<<20, 0x8000); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		if !bytes.Equal(encode(t, table), b) {
			t.Errorf("%s: re-encoded table differs", c)
		}

		b, err = os.ReadFile(filepath.Join(dir, c, "ota_data_initial.bin"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := partition.ParseOTAData(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(partition.NewOTAData(), d); d != "" {
			t.Errorf("%s: %s", c, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encode(f, partition.New(usual()...)))
	f.Add(append(unhex(f, nvsRow), ff(32)...))
	f.Add(append(bytes.Repeat(unhex(f, nvsRow), 95), ff(32)...))
	f.Add(ff(0x1000))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := partition.Parse(b)
		if err != nil {
			var e *partition.Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(b) {
				t.Fatalf("%#v", err)
			}
			return
		}
		_ = table.Check(4<<20, 0x8000) // must not panic
		if got := encode(t, table); !bytes.Equal(got, b) {
			t.Fatalf("re-encoded table differs")
		}
	})
}
