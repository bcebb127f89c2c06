package flashcrypt

import (
	"crypto/aes"
	"fmt"
	"testing"

	"golang.org/x/crypto/xts"

	"github.com/provisiond/provisiond/esp/chip"
)

func BenchmarkCipher(b *testing.B) {
	for _, s := range schemes {
		if s.scheme == chip.SchemeXTSDerived || s.key == 24 {
			continue // the same work as their neighbours
		}
		for _, name := range []string{"asm", "generic"} {
			asm, ok := engines()[name]
			if !ok {
				continue
			}
			c := newCipher(b, s.scheme, noise(s.key, 1), 0xF, asm)
			for _, dir := range []string{"encrypt", "decrypt"} {
				crypt := c.Encrypt
				if dir == "decrypt" {
					crypt = c.Decrypt
				}
				for _, n := range []int{64 << 10, 1 << 20} {
					b.Run(fmt.Sprintf("%s/%s/%s/%dKiB", s.scheme, name, dir, n>>10), func(b *testing.B) {
						buf := make([]byte, n)
						b.SetBytes(int64(n))
						b.ReportAllocs()
						for b.Loop() {
							if err := crypt(buf, buf, 0x10000); err != nil {
								b.Fatal(err)
							}
						}
					})
				}
			}
		}
	}
}

// BenchmarkAESBlocks is the yardstick: block calls of crypto/aes, nothing else.
func BenchmarkAESBlocks(b *testing.B) {
	for _, n := range []int{16, 32} {
		c, err := aes.NewCipher(noise(n, 1))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("AES-%d/1024KiB", 8*n), func(b *testing.B) {
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				for p := 0; p < len(buf); p += 16 {
					c.Encrypt(buf[p:p+16], buf[p:p+16])
				}
			}
		})
	}
}

// BenchmarkLibraryXTS is golang.org/x/crypto/xts on units of 128 bytes, without
// the reversals.
func BenchmarkLibraryXTS(b *testing.B) {
	for _, n := range []int{32, 64} {
		c, err := xts.NewCipher(aes.NewCipher, noise(n, 1))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("XTS-AES-%d/1024KiB", 4*n), func(b *testing.B) {
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				for p := 0; p < len(buf); p += xtsUnit {
					c.Encrypt(buf[p:p+xtsUnit], buf[p:p+xtsUnit], uint64(p))
				}
			}
		})
	}
}
