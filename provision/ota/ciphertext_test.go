package ota_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision/ota"
)

// counting gives n bytes that show where they come from.
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func testCipher(t testing.TB, s chip.Scheme) flashcrypt.Cipher {
	t.Helper()
	n := map[chip.Scheme]int{chip.SchemeXTS256: 64, chip.SchemeXTSDerived: 16}[s]
	if n == 0 {
		n = 32
	}
	k, err := keystore.KeyFromBytes(counting(n))
	if err != nil {
		t.Fatal(err)
	}
	var config uint8
	if s == chip.SchemeESP32 {
		config = 0xF
	}
	c, err := k.Cipher(s, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var schemes = []struct {
	scheme chip.Scheme
	align  uint32
}{{chip.SchemeESP32, 32}, {chip.SchemeXTS128, 16}, {chip.SchemeXTS256, 16}, {chip.SchemeXTSDerived, 16}}

// TestCiphertextRanges reads ranges of every kind and compares them with the
// whole, which is encrypted in one call.
func TestCiphertextRanges(t *testing.T) {
	const address = 0x110000
	for _, s := range schemes {
		for _, n := range []int{1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 4096, 70001} {
			plain := counting(n)
			size := (n + int(s.align) - 1) / int(s.align) * int(s.align)
			want := append(bytes.Clone(plain), bytes.Repeat([]byte{0xFF}, size-n)...)
			if err := testCipher(t, s.scheme).Encrypt(want, want, address); err != nil {
				t.Fatal(err)
			}
			for name, source := range map[string]io.ReaderAt{"memory": ota.Bytes(plain), "a reader": bytes.NewReader(plain)} {
				c, err := ota.NewCiphertext(testCipher(t, s.scheme), source, int64(n), address, s.align)
				if err != nil || c.Size() != int64(size) || c.Address() != address {
					t.Fatalf("%s, %d bytes: %d, %v", s.scheme, n, c.Size(), err)
				}
				if err := iotest.TestReader(c.NewReader(), want); n <= 4096 && err != nil {
					t.Errorf("%s, %d bytes of %s: %v", s.scheme, n, name, err)
				}
				rnd := rand.New(rand.NewPCG(1, uint64(n)))
				for range 200 {
					off := rnd.IntN(size)
					p := make([]byte, rnd.IntN(size-off+40))
					got, err := c.ReadAt(p, int64(off))
					end := min(size, off+len(p))
					if got != end-off || !bytes.Equal(p[:got], want[off:end]) || errors.Is(err, io.EOF) != (got < len(p)) {
						t.Fatalf("%s, %d bytes of %s: range %d+%d gives %d bytes, %v", s.scheme, n, name, off, len(p), got, err)
					}
				}
				var out bytes.Buffer
				last := int64(0)
				if err := c.WriteTo(t.Context(), &out, func(done int64) { last = done }); err != nil || last != int64(size) || !bytes.Equal(out.Bytes(), want) {
					t.Errorf("%s, %d bytes of %s: WriteTo: %v", s.scheme, n, name, err)
				}
				if sum, err := c.SHA256(t.Context()); err != nil || sum != sha256.Sum256(want) {
					t.Errorf("%s, %d bytes of %s: SHA256: %v", s.scheme, n, name, err)
				}
				if !bytes.Equal(plain, counting(n)) {
					t.Fatalf("%s: the plaintext was changed", s.scheme)
				}
			}
		}
	}
}

// TestCiphertextFailures: no error leaves plaintext in the caller's hands.
func TestCiphertextFailures(t *testing.T) {
	plain := []byte(strings.Repeat("plaintext-", 100))
	broken := errors.New("the disk is gone")
	for name, c := range map[string]struct {
		source io.ReaderAt
		want   error
	}{
		"error": {readerAt(func(p []byte, off int64) (int, error) { return copy(p[:len(p)/2], plain[off:]), broken }), broken},
		"short": {bytes.NewReader(plain[:900]), io.ErrUnexpectedEOF},
		"lies":  {ota.Bytes(plain[:900]), io.ErrUnexpectedEOF},
	} {
		ct, err := ota.NewCiphertext(testCipher(t, chip.SchemeXTS128), c.source, int64(len(plain)), 0x10000, 16)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1008)
		n, err := ct.ReadAt(p, 0)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if bytes.Contains(p, []byte("plain")) || n != 0 {
			t.Errorf("%s: %d bytes, plaintext: %q", name, n, p[:40])
		}
	}
	for name, c := range map[string]struct {
		n       int64
		address uint32
		align   uint32
	}{
		"empty": {0, 0, 16}, "negative": {-1, 0, 16}, "odd address": {1, 8, 16}, "ESP32 address": {1, 16, 32},
		"too long": {1 << 32, 0, 16}, "end": {17, 0xFFFFFFF0, 16}, "odd unit": {1, 0, 24}, "no unit": {1, 0, 0},
	} {
		if _, err := ota.NewCiphertext(testCipher(t, chip.SchemeXTS128), ota.Bytes(plain), c.n, c.address, c.align); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	ct, err := ota.NewCiphertext(testCipher(t, chip.SchemeXTS128), ota.Bytes(plain), int64(len(plain)), 0x10000, 16)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ct.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("before the beginning: %v", err)
	}
	if n, err := ct.ReadAt(make([]byte, 1), ct.Size()); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ct.WriteTo(ctx, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestCiphertextWipe: a wipe waits for the reads, which see all of the right
// bytes or none.
func TestCiphertextWipe(t *testing.T) {
	plain := counting(1 << 20)
	want := bytes.Clone(plain)
	if err := testCipher(t, chip.SchemeXTS128).Encrypt(want, want, 0x10000); err != nil {
		t.Fatal(err)
	}
	ct, err := ota.NewCiphertext(testCipher(t, chip.SchemeXTS128), ota.Bytes(plain), int64(len(plain)), 0x10000, 16)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			p := make([]byte, len(plain))
			for first := true; ; first = false {
				n, err := ct.ReadAt(p, 0)
				if first {
					started <- struct{}{}
				}
				if errors.Is(err, flashcrypt.ErrWiped) && n == 0 {
					return
				}
				if err != nil || !bytes.Equal(p, want) {
					t.Errorf("%d bytes, %v", n, err)
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	ct.Wipe()
	wg.Wait()
	ct.Wipe()
}
