package flashcrypt

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/provisiond/provisiond/esp/chip"
)

func alignOf(s chip.Scheme) int {
	if s == chip.SchemeESP32 {
		return 32
	}
	return 16
}

// whole is the ciphertext of a padded image in one piece.
func whole(t testing.TB, c Cipher, image []byte, addr uint32, align int) []byte {
	t.Helper()
	b := bytes.Clone(image)
	for len(b)%align != 0 {
		b = append(b, 0xFF)
	}
	if err := c.Encrypt(b, b, addr); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReader(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.SampledFrom(schemes).Draw(rt, "scheme")
		align := alignOf(s.scheme)
		image := noise(rapid.IntRange(0, 700).Draw(rt, "length"), 1)
		before := bytes.Clone(image)
		addr := uint32(align) * rapid.Uint32Range(0, 1<<20).Draw(rt, "addr")
		off := rapid.IntRange(0, 800).Draw(rt, "off")
		n := rapid.IntRange(0, 800).Draw(rt, "n")
		for name, asm := range engines() {
			c := newCipher(t, s.scheme, noise(s.key, 2), 0xF, asm)
			want := whole(t, c, image, addr, align)
			r, err := NewReader(c, image, addr, align)
			if err != nil || r.Size() != int64(len(want)) {
				rt.Fatalf("%s: %v, size %d, want %d", name, err, r.Size(), len(want))
			}
			got := make([]byte, n)
			m, err := r.ReadAt(got, int64(off))
			part := want[min(off, len(want)):min(off+n, len(want))]
			if !bytes.Equal(got[:m], part) {
				rt.Fatalf("%s: %d bytes from %d: %x, want %x", name, n, off, got[:m], part)
			}
			if short := m < n; short != errors.Is(err, io.EOF) && !(n == 0 && off >= len(want)) || err != nil && !errors.Is(err, io.EOF) {
				rt.Fatalf("%s: %d of %d bytes from %d: %v", name, m, n, off, err)
			}
			if !bytes.Equal(image, before) {
				rt.Fatalf("%s: the image was changed", name)
			}
		}
	})
}

// The standard library's own opinion of a ReaderAt.
func TestReaderAsAFile(t *testing.T) {
	for _, s := range schemes {
		c := newCipher(t, s.scheme, noise(s.key, 3), 0xF, useAsm)
		image := noise(1000, 4)
		r, err := NewReader(c, image, 0x110000, alignOf(s.scheme))
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(io.NewSectionReader(r, 0, r.Size()), whole(t, c, image, 0x110000, alignOf(s.scheme))); err != nil {
			t.Errorf("%s: %v", s.scheme, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	c := newCipher(t, chip.SchemeXTS128, noise(32, 5), 0, useAsm)
	for name, a := range map[string]struct {
		n     int
		addr  uint32
		align int
	}{
		"alignment 0": {16, 0, 0}, "alignment 8": {16, 0, 8}, "alignment 24": {16, 0, 24}, "alignment 8192": {16, 0, 8192},
		"address": {16, 0x10010, 32}, "beyond 32 bits": {17, 0xFFFFFFF0, 16},
	} {
		if r, err := NewReader(c, make([]byte, a.n), a.addr, a.align); err == nil || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	r, err := NewReader(c, count(64), 0xFFFFFFC0, 16)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was taken")
	}
	c.Wipe()
	for _, n := range []int{5, 64} {
		if m, err := r.ReadAt(make([]byte, n), 0); m != 0 || !errors.Is(err, ErrWiped) {
			t.Errorf("after the wipe %d bytes came, %v", m, err)
		}
	}
}

func TestReaderDoesNotAllocate(t *testing.T) {
	for _, s := range schemes {
		if s.scheme == chip.SchemeESP32 && !useAsm {
			continue
		}
		c := newCipher(t, s.scheme, noise(s.key, 6), 0xF, useAsm)
		r, err := NewReader(c, noise(4099, 7), 0x10000, alignOf(s.scheme))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2001)
		if got := testing.AllocsPerRun(200, func() {
			_, _ = r.ReadAt(buf, 7)
			_, _ = r.ReadAt(buf[:3], 4097)
		}); got >= 1 { // the collector may empty the pool in between
			t.Errorf("%s: %v allocations", s.scheme, got)
		}
	}
}

// BenchmarkReader is what a server does: random ranges of an image, whole MiB and
// small pieces that begin and end anywhere.
func BenchmarkReader(b *testing.B) {
	image := noise(4<<20, 8)
	for _, s := range schemes {
		if s.scheme == chip.SchemeXTSDerived || s.key == 24 {
			continue // the same work as their neighbours
		}
		c, err := New(s.scheme, noise(s.key, 9), 0xF)
		if err != nil {
			b.Fatal(err)
		}
		r, err := NewReader(c, image, 0x10000, alignOf(s.scheme))
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range []int{1 << 20, 8<<10 - 7, 100} {
			b.Run(string(s.scheme)+"/"+sizeName(n), func(b *testing.B) {
				buf := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					off = (off*1_103_515_245 + 12_345) % (r.Size() - int64(n))
					if _, err := r.ReadAt(buf, off); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func sizeName(n int) string {
	return map[int]string{1 << 20: "1MiB", 8<<10 - 7: "8185B", 100: "100B"}[n]
}

// Several at once, for the race detector: http.ServeContent reads so for every client.
func TestReaderIsConcurrent(t *testing.T) {
	c := newCipher(t, chip.SchemeXTS256, noise(64, 10), 0, useAsm)
	image := noise(5000, 11)
	want := whole(t, c, image, 0x20000, 16)
	r, err := NewReader(c, image, 0x20000, 16)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan []byte)
	for i := range 4 {
		go func() {
			buf := make([]byte, 1003)
			for off := 0; off < 3900; off += 7 + i {
				if _, err := r.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, want[off:off+1003]) {
					done <- slices.Clone(buf)
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if bad := <-done; bad != nil {
			t.Errorf("another ciphertext: %x", bad[:16])
		}
	}
}
