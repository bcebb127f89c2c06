package partition_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/partition"
)

// TestOTACRC has the known answers of esp-facts D.4.
func TestOTACRC(t *testing.T) {
	for seq, want := range map[uint32]uint32{1: 0x4743989A, 2: 0x55F63774, 3: 0xED4A5011, 4: 0x709D68A8} {
		if got := partition.OTACRC(seq); got != want {
			t.Errorf("%d: 0x%08x, want 0x%08x", seq, got, want)
		}
	}
}

func TestOTADataBytes(t *testing.T) {
	d := partition.NewOTAData()
	d.Entries[1] = partition.NewOTAEntry(2, partition.OTAValid)
	b, err := d.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	want := ff(0x2000)
	copy(want[0x1000:], unhex(t, "02000000"+"ffffffffffffffffffffffffffffffffffffffff"+"02000000"+"7437f655"))
	if !bytes.Equal(b, want) {
		t.Errorf("%s", hex.EncodeToString(b[0x1000:0x1020]))
	}
	got, err := partition.ParseOTAData(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseOTADataErrors(t *testing.T) {
	stray := ff(0x2000)
	stray[0x1FFF] = 0
	for _, c := range []struct {
		b      []byte
		offset int
	}{{nil, 0}, {ff(0x1000), 0}, {ff(0x2001), 0}, {stray, 0x1FFF}, {make([]byte, 0x2000), 32}} {
		_, err := partition.ParseOTAData(c.b)
		var e *partition.Error
		if !errors.As(err, &e) || e.Offset != c.offset {
			t.Errorf("%d bytes: %v", len(c.b), err)
		}
	}
}

func TestActive(t *testing.T) {
	none := partition.NewOTAData().Entries[0]
	entry := partition.NewOTAEntry
	badCRC := entry(9, partition.OTAValid)
	badCRC.CRC++
	for _, c := range []struct {
		name  string
		a, b  partition.OTAEntry
		index int
		slot  int // of two; -1: none
	}{
		{"erased", none, none, 0, -1},
		{"first", entry(1, partition.OTAUndefined), none, 0, 0},
		{"second", entry(1, partition.OTAValid), entry(2, partition.OTANew), 1, 1},
		{"first again", entry(3, partition.OTAPendingVerify), entry(2, partition.OTAValid), 0, 0},
		{"equal", entry(2, partition.OTAValid), entry(2, partition.OTAValid), 0, 1},
		{"higher one aborted", entry(1, partition.OTAValid), entry(2, partition.OTAAborted), 0, 0},
		{"higher one invalid", entry(4, partition.OTAInvalid), entry(3, partition.OTAValid), 1, 0},
		{"higher one torn", badCRC, entry(2, partition.OTAValid), 1, 1},
		{"both bad", badCRC, entry(1, partition.OTAInvalid), 0, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &partition.OTAData{Entries: [2]partition.OTAEntry{c.a, c.b}}
			i, ok := d.Active()
			slot, ok2 := d.Slot(2)
			if ok != (c.slot >= 0) || ok2 != ok {
				t.Fatalf("ok %v, %v", ok, ok2)
			}
			if ok && (i != c.index || slot != c.slot) {
				t.Errorf("index %d, slot %d", i, slot)
			}
		})
	}
	if _, ok := (&partition.OTAData{Entries: [2]partition.OTAEntry{entry(1, 0), none}}).Slot(0); ok {
		t.Error("a slot of none")
	}
}

func TestNext(t *testing.T) {
	d := partition.NewOTAData()
	for _, c := range []struct{ slot, slots, index, seq int }{
		{1, 2, 0, 2}, // erased: seq is slot+1, first sector
		{0, 2, 1, 3}, // 2 -> the next odd number
		{0, 2, 0, 3}, // the same slot again keeps its number
		{1, 2, 1, 4},
		{0, 3, 0, 4}, // of three slots, 4 already means slot 0
		{2, 3, 1, 6},
		{1, 3, 0, 8},
		{0, 1, 1, 8},
	} {
		i, e, err := d.Next(c.slot, c.slots, partition.OTANew)
		if err != nil {
			t.Fatal(err)
		}
		if i != c.index || e.Seq != uint32(c.seq) || e.State != partition.OTANew || !e.Valid() {
			t.Errorf("slot %d of %d: sector %d, %+v, want sector %d, seq %d", c.slot, c.slots, i, e, c.index, c.seq)
		}
		d.Entries[i] = e
	}
	for _, c := range [][2]int{{2, 2}, {-1, 2}, {0, 0}, {16, 17}} {
		if _, _, err := d.Next(c[0], c[1], partition.OTANew); err == nil {
			t.Errorf("slot %d of %d: no error", c[0], c[1])
		}
	}
	d.Entries[0] = partition.NewOTAEntry(math.MaxUint32-1, partition.OTAValid)
	if _, _, err := d.Next(0, 2, partition.OTANew); err == nil {
		t.Error("the sequence number ran over")
	}
}

// TestNextBoots: whatever was there, the slot asked for is the one that boots.
func TestNextBoots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := partition.NewOTAData()
		states := rapid.SampledFrom([]partition.OTAState{partition.OTANew, partition.OTAValid, partition.OTAInvalid, partition.OTAUndefined})
		for i := range d.Entries {
			d.Entries[i] = partition.NewOTAEntry(rapid.Uint32Range(1, 1<<31).Draw(t, "seq"), states.Draw(t, "state"))
		}
		slots := rapid.IntRange(1, 16).Draw(t, "slots")
		slot := rapid.IntRange(0, slots-1).Draw(t, "slot")
		i, e, err := d.Next(slot, slots, partition.OTANew)
		if err != nil {
			t.Fatal(err)
		}
		d.Entries[i] = e
		if got, ok := d.Slot(slots); !ok || got != slot {
			t.Fatalf("slot %d, %v, want %d", got, ok, slot)
		}
	})
}

// FuzzParseOTAData takes the two entries and one byte anywhere: whole 8 KiB
// inputs mutate too slowly.
func FuzzParseOTAData(f *testing.F) {
	f.Add(ff(32), ff(32), uint16(0), byte(0xFF))
	f.Add(unhex(f, "01000000"+"ffffffffffffffffffffffffffffffffffffffff"+"000000009a984347"), ff(32), uint16(0x1FFF), byte(0))
	f.Fuzz(func(t *testing.T, first, second []byte, at uint16, v byte) {
		b := ff(0x2000)
		copy(b[:32], first)
		copy(b[0x1000:0x1020], second)
		b[at%0x2000] = v
		d, err := partition.ParseOTAData(b)
		if err != nil {
			var e *partition.Error
			if !errors.As(err, &e) || e.Offset%0x1000 < 32 {
				t.Fatalf("%v", err)
			}
			return
		}
		if slot, ok := d.Slot(2); ok && slot > 1 {
			t.Fatalf("slot %d of 2", slot)
		}
		_, _, _ = d.Next(1, 2, partition.OTANew) // must not panic
		if got, err := d.MarshalBinary(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("re-encoded OTA data differs: %v", err)
		}
	})
}
