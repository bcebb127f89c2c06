package server_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/provision/ota/server"
)

// What the other process of a measurement is to do.
const (
	envChild = "PROVISIOND_OTA_CHILD" // ota, plain (http.ServeContent)
	envTLS   = "PROVISIOND_OTA_TLS"
	envSize  = "PROVISIOND_OTA_SIZE"
)

// childUp is what the other process says when it is ready.
type childUp struct {
	URL, Path, Token string
	Size             int64
}

// TestChild is the other process of the measurements: the server alone.
func TestChild(t *testing.T) {
	kind := os.Getenv(envChild)
	if kind == "" {
		return // the measurements start it
	}
	size, err := strconv.Atoi(os.Getenv(envSize))
	if err != nil {
		t.Fatal(err)
	}
	var conf *tls.Config
	if os.Getenv(envTLS) != "" {
		conf = &tls.Config{Certificates: []tls.Certificate{certificate(t, nil, "server", nil).pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	w := newWorld(t, func(o *server.Options) {
		o.PerUnit, o.Requests = server.Rate{PerSecond: 1e6, Burst: 1e6}, server.Rate{PerSecond: 1e6, Burst: 1e6}
		o.Stall = 10 * time.Minute
	})
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, size))
	up := childUp{Path: "/v1/units/" + u.mac.String() + "/firmware?slot=ota_1", Token: u.token}
	if kind == "plain" {
		want := u.want(t, app(t, "1.0.0", 1, size), "ota_1")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{TLSConfig: conf, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(want))
		})}
		up.URL, up.Size = "http://"+l.Addr().String(), int64(len(want))
		if conf != nil {
			up.URL = "https://" + l.Addr().String()
			go func() { _ = srv.ServeTLS(l, "", "") }()
		} else {
			go func() { _ = srv.Serve(l) }()
		}
		defer func() { _ = srv.Close() }()
	} else {
		w.serve(conf)
		w.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		resp, _ := w.ask(u, "HEAD", "/firmware?slot=ota_1")
		up.URL, up.Size = w.url, resp.ContentLength
		w.client.CloseIdleConnections()
	}
	b, err := json.Marshal(up)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(os.Stdout, "\nup %s\n", b)
	for b := [1]byte{}; ; { // until the other end is closed
		if _, err := os.Stdin.Read(b[:]); err != nil {
			return
		}
		// What the runtime does by itself every two minutes, and then at its leisure: a
		// first collection shrinks stacks, a second one frees what the first let go of.
		debug.FreeOSMemory()
		debug.FreeOSMemory()
		_, _ = fmt.Fprintln(os.Stdout, "collected")
	}
}

// child starts the other process on one core and gives what it says, a look at
// its memory, and a way to have it collect garbage.
func child(t testing.TB, kind string, secure bool, size int) (up childUp, rss func() int64, collect func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), envChild+"="+kind, envSize+"="+strconv.Itoa(size), "GOMAXPROCS=1")
	if secure {
		cmd.Env = append(cmd.Env, envTLS+"=1")
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	var said []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "up "); ok {
			if err := json.Unmarshal([]byte(text), &up); err != nil {
				t.Fatal(err)
			}
			break
		}
		said = append(said, lines.Text())
	}
	if up.URL == "" {
		t.Fatalf("the other process did not come up: %q", said)
	}
	return up, func() int64 {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if err != nil {
				t.Skipf("needs /proc: %v", err)
			}
			for line := range strings.Lines(string(b)) {
				if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					return kb << 10
				}
			}
			t.Fatal("no VmRSS")
			return 0
		}, func() {
			if _, err := in.Write([]byte{'\n'}); err != nil || !lines.Scan() || lines.Text() != "collected" {
				t.Fatalf("%v: %q", err, lines.Text())
			}
		}
}

func (up childUp) request(extra string) string {
	return "GET " + up.Path + " HTTP/1.1\r\nHost: ota\r\nAuthorization: Bearer " + up.Token + "\r\n" + extra + "\r\n"
}

func (up childUp) dial(t testing.TB) net.Conn {
	t.Helper()
	u, err := url.Parse(up.URL)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if u.Scheme == "https" {
		c, err = tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = net.Dial("tcp", u.Host)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// BenchmarkRange: one core serves ranges of 1 MiB over loopback, beside
// http.ServeContent with the same bytes in memory.
func BenchmarkRange(b *testing.B) {
	const size = 1 << 20
	for _, bm := range []struct {
		name, kind string
		secure     bool
	}{{"ciphertext", "ota", false}, {"ServeContent", "plain", false}, {"ciphertext-TLS", "ota", true}, {"ServeContent-TLS", "plain", true}} {
		b.Run(bm.name, func(b *testing.B) {
			up, _, _ := child(b, bm.kind, bm.secure, 2<<20-4096)
			c := up.dial(b)
			r := bufio.NewReaderSize(c, 256<<10)
			request := up.request(fmt.Sprintf("Range: bytes=%d-%d\r\n", up.Size-size, up.Size-1))
			buf := make([]byte, 256<<10)
			b.SetBytes(size)
			for b.Loop() {
				if _, err := io.WriteString(c, request); err != nil {
					b.Fatal(err)
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != http.StatusPartialContent {
					b.Fatalf("%v, %v", resp, err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf); n != size || err != nil {
					b.Fatalf("%d bytes, %v", n, err)
				}
				_ = resp.Body.Close()
			}
		})
	}
}

// BenchmarkFirstByte is the time to the first byte with a cached key: one block.
func BenchmarkFirstByte(b *testing.B) {
	up, _, _ := child(b, "ota", false, 900<<10)
	c := up.dial(b)
	r := bufio.NewReader(c)
	request := up.request("Range: bytes=500000-500015\r\n")
	for b.Loop() {
		if _, err := io.WriteString(c, request); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != 16 || err != nil {
			b.Fatalf("%d bytes, %v", n, err)
		}
		_ = resp.Body.Close()
	}
}

// clients opens connections that ask for an image. stalled ones read its head and
// no more; the others read all of it and stay.
func clients(t testing.TB, up childUp, n int, stalled bool) {
	t.Helper()
	const atOnce = 64
	type answer struct{ err error }
	work, done := make(chan net.Conn), make(chan answer, n)
	for range atOnce {
		go func() {
			for c := range work {
				done <- answer{func() error {
					if _, err := io.WriteString(c, up.request("")); err != nil {
						return err
					}
					r := bufio.NewReaderSize(c, 512)
					resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // closing it would read the rest
					if err != nil || resp.StatusCode != http.StatusOK {
						return fmt.Errorf("%v: %w", resp, errors.Join(err))
					}
					if !stalled {
						_, err = io.Copy(io.Discard, resp.Body)
					}
					return err
				}()}
			}
		}()
	}
	go func() {
		defer close(work)
		for range n {
			c := up.dial(t)
			if tc, ok := c.(*net.TCPConn); ok && stalled {
				_ = tc.SetReadBuffer(4096)
			}
			work <- c
		}
	}()
	for range n {
		if a := <-done; a.err != nil {
			t.Fatal(a.err)
		}
	}
}

// BenchmarkClients is the memory of the server's process with 10,000 clients.
func BenchmarkClients(b *testing.B) {
	const n = 10_000
	for _, bm := range []struct {
		name            string
		stalled, secure bool
	}{{"stalled", true, false}, {"idle", false, false}, {"stalled-TLS", true, true}, {"idle-TLS", false, true}} {
		b.Run(bm.name, func(b *testing.B) {
			for b.Loop() {
				up, rss, collect := child(b, "ota", bm.secure, 900<<10)
				before := rss()
				clients(b, up, n, bm.stalled)
				now := rss()
				collect()
				b.ReportMetric(float64(rss()-before)/n/1024, "KiB/client-later")
				b.ReportMetric(float64(now)/1e6, "RSS-MB")
				b.ReportMetric(float64(now-before)/n/1024, "KiB/client")
				b.ReportMetric(float64(kernelMemory(b))/1e6, "kernel-MB")
			}
		})
	}
}

// kernelMemory is what the kernel holds for TCP, of both ends and of all others.
func kernelMemory(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		t.Skipf("needs /proc: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "TCP:" && f[len(f)-2] == "mem" {
			pages, err := strconv.ParseInt(f[len(f)-1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return pages * int64(os.Getpagesize())
		}
	}
	return 0
}

// signed is a certificate and its key.
type signed struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pair tls.Certificate
}

// certificate makes one, signed by ca or by itself.
func certificate(t testing.TB, ca *signed, name string, uri *url.URL) *signed {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: ca == nil,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if uri != nil {
		template.URIs = []*url.URL{uri}
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signed{cert, key, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}}
}
