package flashcrypt

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkOpenSSL measures OpenSSL's XTS in units of 128 bytes, and ours, turn by
// turn, each for a second, and gives the medians of five turns and their ratios.
//
// OpenSSL is measured twice: by a C program that sets the tweak of each unit, as
// flash encryption needs it (it needs a C compiler and OpenSSL's headers), and by
// `openssl speed`, which sets none.
//
//	go test -run xxx -bench OpenSSL -benchtime 1x ./esp/flashcrypt
func BenchmarkOpenSSL(b *testing.B) {
	if _, err := exec.LookPath("openssl"); err != nil {
		b.Skip("needs openssl")
	}
	program := filepath.Join(b.TempDir(), "openssl_xts")
	if out, err := exec.Command("cc", "-O2", "-o", program, "testdata/openssl_xts.c", "-lcrypto").CombinedOutput(); err != nil {
		b.Skipf("needs cc and OpenSSL's headers (libssl-dev): %v: %s", err, out)
	}
	for _, bits := range []string{"128", "256"} {
		b.Run("XTS-AES-"+bits, func(b *testing.B) {
			const turns = 5
			var ours, evp, speed []float64
			for b.Loop() {
				for range turns {
					ours = append(ours, oursForASecond(b, bits))
					evp = append(evp, number(b, exec.Command(program, bits)))
					speed = append(speed, openSSLSpeed(b, bits))
				}
			}
			o, e, s := median(ours), median(evp), median(speed)
			b.ReportMetric(o/1e6, "ours-MB/s")
			b.ReportMetric(e/1e6, "openssl-MB/s")
			b.ReportMetric(s/1e6, "openssl-speed-MB/s")
			b.ReportMetric(o/e, "ours/openssl")
			b.ReportMetric(o/s, "ours/openssl-speed")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func oursForASecond(b *testing.B, bits string) float64 {
	n, _ := strconv.Atoi(bits)
	c, err := NewXTS(noise(n/4, 1))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	bytes, start := 0.0, time.Now()
	for time.Since(start) < time.Second {
		if err := c.Encrypt(buf, buf, 0x10000); err != nil {
			b.Fatal(err)
		}
		bytes += float64(len(buf))
	}
	return bytes / time.Since(start).Seconds()
}

// openSSLSpeed gives the bytes per second of a line such as
// "+F:25:AES-128-XTS:4445654400.00".
func openSSLSpeed(b *testing.B, bits string) float64 {
	out, err := exec.Command("openssl", "speed", "-elapsed", "-seconds", "1", "-bytes", "128", "-mr", "-evp", "aes-"+bits+"-xts").Output()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); f[0] == "+F" && len(f) == 4 {
			v, err := strconv.ParseFloat(f[3], 64)
			if err != nil {
				b.Fatal(err)
			}
			return v
		}
	}
	b.Fatalf("openssl speed printed %q", out)
	return 0
}

func number(b *testing.B, cmd *exec.Cmd) float64 {
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
