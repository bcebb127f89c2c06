package ota_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/provision/ota"
)

// rangesOf is a ciphertext of 4 MiB in memory, by scheme.
func rangesOf(tb testing.TB, scheme chip.Scheme, key int, align uint32) *ota.Ciphertext {
	tb.Helper()
	c, err := flashcrypt.New(scheme, bytes.Repeat([]byte{0x5A}, key), 0xF)
	if err != nil {
		tb.Fatal(err)
	}
	plain := ota.Bytes(bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16))
	ct, err := ota.NewCiphertext(c, plain, int64(len(plain)), 0x10000, align)
	if err != nil {
		tb.Fatal(err)
	}
	return ct
}

var rangeSchemes = []struct {
	scheme chip.Scheme
	key    int
	align  uint32
}{{chip.SchemeESP32, 32, 32}, {chip.SchemeXTS128, 32, 16}, {chip.SchemeXTS256, 64, 16}}

// BenchmarkRanges is what a server does: ranges that begin and end anywhere.
func BenchmarkRanges(b *testing.B) {
	for _, s := range rangeSchemes {
		ct := rangesOf(b, s.scheme, s.key, s.align)
		for _, n := range []int{1 << 20, 8 << 10, 100} {
			b.Run(fmt.Sprintf("%s/%dB", s.scheme, n), func(b *testing.B) {
				buf := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					off = (off*1_103_515_245 + 12_345) % (ct.Size() - int64(n))
					if _, err := ct.ReadAt(buf, off); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// A range costs a server no allocation, wherever it begins and ends.
func TestRangesDoNotAllocate(t *testing.T) {
	for _, s := range rangeSchemes {
		ct := rangesOf(t, s.scheme, s.key, s.align)
		buf := make([]byte, 2001)
		read := func() {
			if _, err := ct.ReadAt(buf, 7); err != nil {
				t.Fatal(err)
			}
		}
		perUnit := 0.0
		if s.scheme == chip.SchemeESP32 { // without AES instructions: a key schedule per unit of 32 bytes
			if c, err := flashcrypt.NewESP32(make([]byte, 32), 0xF); err == nil {
				perUnit = testing.AllocsPerRun(10, func() { _ = c.Encrypt(buf[:32], buf[:32], 0) })
			}
		}
		// The collector may empty the pool in between.
		if got := testing.AllocsPerRun(200, read); got >= 1+100*perUnit {
			t.Errorf("%s: %v allocations", s.scheme, got)
		}
	}
}
