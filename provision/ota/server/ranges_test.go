package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/vaulttest"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// TestRanges: where http.ServeContent is not RFC 9110.
func TestRanges(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 50_000)
	w.roll("1.0.0", plain)
	want := u.want(t, plain, "ota_1")
	n := len(want)
	none := fmt.Sprintf("bytes */%d", n)
	for _, c := range []struct {
		ranges string
		status int
		says   string // Content-Range
		from   int
	}{
		{"bytes=-0", 416, none, 0},
		{"bytes=-00", 416, none, 0},
		{"lines=0-1", 200, "", 0},
		{"bytes", 200, "", 0},
		{"Bytes=3-4", 206, fmt.Sprintf("bytes 3-4/%d", n), 3},
		{"bytes=0003-0004", 206, fmt.Sprintf("bytes 3-4/%d", n), 3},
		{"bytes=99999999999999999999-", 416, none, 0},
		{"bytes=99999999999999999998-99999999999999999999", 416, none, 0},
		{"bytes=99999999999999999999-99999999999999999998", 416, "", 0},
		{"bytes=7-99999999999999999999", 206, fmt.Sprintf("bytes 7-%d/%d", n-1, n), 7},
		{"bytes=-99999999999999999999", 206, fmt.Sprintf("bytes 0-%d/%d", n-1, n), 0},
		{"bytes=-+1", 416, "", 0},
		{"bytes=1-+2", 416, "", 0},
		{"bytes=-", 416, "", 0},
		{"bytes=--1", 416, "", 0},
		{"bytes=1-2,3-4", 200, "", 0},
		{"bytes=,", 200, "", 0},
	} {
		resp, b := w.ask(u, "GET", "/firmware?slot=ota_1", "Range", c.ranges)
		if resp.StatusCode != c.status || resp.Header.Get("Content-Range") != c.says {
			t.Errorf("%s: %d %q, want %d %q", c.ranges, resp.StatusCode, resp.Header.Get("Content-Range"), c.status, c.says)
		}
		if resp.StatusCode < 300 && !bytes.HasPrefix(want[c.from:], b) {
			t.Errorf("%s: other bytes", c.ranges)
		}
	}
	// HEAD has no ranges.
	resp, _ := w.ask(u, "HEAD", "/firmware?slot=ota_1", "Range", "bytes=0-3")
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(n) {
		t.Errorf("HEAD: %d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	// The scheme of Authorization is for any case.
	if resp, _ := w.ask(unit{mac: u.mac}, "GET", "/firmware?slot=ota_1", "Authorization", "bEARER "+u.token); resp.StatusCode != http.StatusOK {
		t.Errorf("bEARER: %d", resp.StatusCode)
	}
}

// TestHaltMidway: from a halt on nobody gets a byte of the release, also who is in
// the middle of it.
func TestHaltMidway(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	w.roll("1.0.0", app(t, "1.0.0", 1, 2_000_000))
	for _, more := range []string{"X: flow", "Connection: close"} {
		c := w.raw(u, false)
		if err := c.Conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		c.send(c.text("GET", "/firmware?slot=ota_1", more) + "\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.releases.Halt("1.0.0", "test"); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err == nil || n >= resp.ContentLength {
			t.Errorf("%s: %d of %d bytes came after the halt, %v", more, n, resp.ContentLength, err)
		}
		if err := w.releases.Resume("1.0.0"); err != nil {
			t.Fatal(err)
		}
	}
	vaulttest.Eventually(t, 20*time.Second, "both are noted as cut", func() error {
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

// TestSlowClient: who takes something now and then is not cut, however long it takes,
// on every path.
func TestSlowClient(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.Stall = 500 * time.Millisecond }).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 2_000_000)
	w.roll("1.0.0", plain)
	want := u.want(t, plain, "ota_1")
	for _, more := range []string{"X: flow", "Connection: close"} {
		c := w.raw(u, false)
		if err := c.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		c.send(c.text("GET", "/firmware?slot=ota_1", more) + "\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		tick := time.NewTicker(40 * time.Millisecond)
		var got []byte
		for part := make([]byte, len(want)/30); err == nil; { // longer than Stall in all
			var n int
			<-tick.C
			n, err = io.ReadFull(resp.Body, part)
			got = append(got, part[:n]...)
		}
		tick.Stop()
		_ = resp.Body.Close()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: cut after %d of %d bytes: %v", more, len(got), len(want), err)
		}
	}
}

// TestTornAudit: a line that the disk took half of spoils no other.
func TestTornAudit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte(`{"time":"2026-`), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := server.OpenAudit(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Write(server.Use{Event: "begin"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), b)
	}
	for _, line := range lines[1:] {
		var u server.Use
		if err := json.Unmarshal([]byte(line), &u); err != nil || u.Event != "begin" {
			t.Errorf("%s: %v", line, err)
		}
	}
}
