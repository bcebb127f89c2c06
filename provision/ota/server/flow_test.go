package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// raw sends requests on one connection as a device does.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
	u unit
}

func (w *world) raw(u unit, secure bool) *raw {
	w.t.Helper()
	addr := w.url[strings.Index(w.url, "//")+2:]
	var c net.Conn
	var err error
	if secure {
		c, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = net.Dial("tcp", addr)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return &raw{w.t, c, bufio.NewReader(c), u}
}

func (c *raw) text(method, path string, more ...string) string {
	return method + " /v1/units/" + c.u.mac.String() + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + c.u.token + "\r\n" + strings.Join(append(more, "\r\n"), "\r\n")
}

func (c *raw) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *raw) answer(method string) (*reply, []byte) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return whole(c.t, resp)
}

// TestOneConnection: answers of all kinds follow each other on one connection, also
// when the client does not wait for them.
func TestOneConnection(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS=%v", secure), func(t *testing.T) {
			w := newWorld(t)
			var conf *tls.Config
			if secure {
				conf = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate(t, nil, "server", nil).pair}}
			}
			w.serve(conf)
			u := w.unit(1)
			plain := app(t, "1.0.0", 1, 300_000)
			w.roll("1.0.0", plain)
			want := u.want(t, plain, "ota_1")
			c := w.raw(u, secure)
			get := c.text("GET", "/firmware?slot=ota_1")
			part := c.text("GET", "/firmware?slot=ota_1", "Range: bytes=100000-199999")
			small := c.text("GET", "/firmware?slot=ota_1", "Range: bytes=3-17")
			check := func(status int, body []byte) {
				t.Helper()
				if resp, b := c.answer("GET"); resp.StatusCode != status || body != nil && !bytes.Equal(b, body) {
					t.Fatalf("%d with %d bytes, want %d with %d", resp.StatusCode, len(b), status, len(body))
				}
			}
			for range 3 { // one after the other
				c.send(get)
				check(200, want)
				c.send(small)
				check(206, want[3:18])
				c.send(part)
				check(206, want[100000:200000])
				c.send(c.text("GET", "/manifest?slot=ota_1"))
				check(200, nil)
				c.send(c.text("HEAD", "/firmware?slot=ota_1"))
				if resp, b := c.answer("HEAD"); resp.ContentLength != int64(len(want)) || len(b) != 0 {
					t.Fatalf("%v", resp)
				}
				c.send(c.text("GET", "/firmware?slot=ota_1", "Range: bytes=99999999-"))
				check(416, nil)
			}
			// All at once, and byte by byte.
			c.send(get + part + small + part + get)
			check(200, want)
			check(206, want[100000:200000])
			check(206, want[3:18])
			check(206, want[100000:200000])
			check(200, want)
			for _, b := range []byte(part) {
				c.send(string(b))
			}
			check(206, want[100000:200000])
			c.send(c.text("GET", "/firmware?slot=ota_1", "Connection: close"))
			check(200, want)
			if _, err := c.r.ReadByte(); err == nil {
				t.Error("the connection stays open")
			}
			// HTTP/1.0.
			c = w.raw(u, secure)
			c.send(strings.Replace(get, "HTTP/1.1", "HTTP/1.0", 1))
			check(200, want)
		})
	}
}

// TestStalledClient: who takes nothing is cut, and then his line says so; who
// vanishes likewise.
func TestStalledClient(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.Stall = 300 * time.Millisecond }).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 2_000_000))
	for _, gone := range []bool{false, true} {
		c := w.raw(u, false)
		if err := c.Conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		c.send(c.text("GET", "/firmware?slot=ota_1"))
		_, err := http.ReadResponse(c.r, nil) //nolint:bodyclose // closing it would read the rest, and this client does not
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			_ = c.Close()
		}
	}
	vaulttest.Eventually(t, 20*time.Second, "both are cut", func() error {
		b, err := os.ReadFile(w.audit)
		if err != nil {
			return err
		}
		if n := bytes.Count(b, []byte(`"outcome":"cut"`)); n != 2 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
}

// TestShutdown: a download that is under way is finished, a connection that waits
// is closed, and nothing new is taken.
func TestShutdown(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(ctx, l, nil) }()
	w.url = "http://" + l.Addr().String()
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 2_000_000)
	w.roll("1.0.0", plain)
	want := u.want(t, plain, "ota_1")
	idle, busy := w.raw(u, false), w.raw(u, false)
	idle.send(idle.text("GET", "/firmware?slot=ota_1"))
	idle.answer("GET")
	if err := busy.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	busy.send(busy.text("GET", "/firmware?slot=ota_1"))
	resp, err := http.ReadResponse(busy.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := idle.r.ReadByte(); err == nil {
		t.Error("the idle connection stays")
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, want) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still takes connections")
	}
}

// TestConnections: no more than so many at once; the next is served when one goes.
func TestConnections(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.Connections = 2 }).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 100_000)
	w.roll("1.0.0", plain)
	a, b := w.raw(u, false), w.raw(u, false)
	for _, c := range []*raw{a, b} {
		c.send(c.text("GET", "/firmware?slot=ota_1"))
		c.answer("GET")
	}
	third := w.raw(u, false)
	third.send(third.text("GET", "/firmware?slot=ota_1"))
	_ = third.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := third.r.Peek(1); err == nil {
		t.Error("a third connection is served")
	}
	_ = third.SetReadDeadline(time.Time{})
	third.r.Reset(third.Conn)
	_ = a.Close()
	if resp, body := third.answer("GET"); resp.StatusCode != http.StatusOK || !bytes.Equal(body, u.want(t, plain, "ota_1")) {
		t.Errorf("%d with %d bytes", resp.StatusCode, len(body))
	}
}

// TestGarbage: what is no request ends its own connection only.
func TestGarbage(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 100_000))
	for _, text := range []string{"\r\n\r\n", "\x16\x03\x01", "GET / HTTP/9.9\r\n\r\n", "POST " + strings.Repeat("x", 20_000) + " HTTP/1.1\r\n\r\n"} {
		c := w.raw(u, false)
		c.send(text)
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
	// Also behind a good one.
	c := w.raw(u, false)
	c.send(c.text("GET", "/firmware?slot=ota_1") + "garbage\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != http.StatusOK {
		t.Errorf("%d", resp.StatusCode)
	}
	if resp, _ := c.answer("GET"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("garbage: %d", resp.StatusCode)
	}
	resp, b := w.ask(u, "GET", "/firmware?slot=ota_1")
	wantStatus(t, resp, b, 200, "")
}
