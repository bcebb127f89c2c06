package server_test

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision/ota/release"
	"github.com/provisiond/provisiond/provision/ota/server"
)

// TestPlaintext: off until a channel allows it.
func TestPlaintext(t *testing.T) {
	w := newWorld(t).serve(nil)
	u := w.unit(1)
	plain := app(t, "1.0.0", 1, 100_000)
	w.roll("1.0.0", plain)
	resp, b := w.ask(u, "GET", "/firmware?format=plain")
	wantStatus(t, resp, b, 403, "plaintext")
	if err := w.releases.SetPlaintext(release.DefaultChannel, true); err != nil {
		t.Fatal(err)
	}
	if resp, b = w.ask(u, "GET", "/firmware?format=plain"); resp.StatusCode != http.StatusOK || !bytes.Equal(b, plain) {
		t.Errorf("%d with %d bytes", resp.StatusCode, len(b))
	}
	resp, b = w.ask(unit{mac: u.mac}, "GET", "/firmware?format=plain")
	wantStatus(t, resp, b, 401, "unauthorized")
	resp, b = w.ask(u, "GET", "/firmware?format=plain&secure_version=2")
	wantStatus(t, resp, b, 409, "secure-version")
	resp, b = w.ask(u, "GET", "/firmware?format=clear")
	wantStatus(t, resp, b, 400, "format")
	if n := w.store.loads.Load(); n != 0 {
		t.Errorf("%d flash keys were read for plaintext", n)
	}
	if err := w.releases.SetPlaintext(release.DefaultChannel, false); err != nil {
		t.Fatal(err)
	}
	resp, b = w.ask(u, "GET", "/firmware?format=plain")
	wantStatus(t, resp, b, 403, "plaintext")
}

// TestEncImg: a server that reads no keys serves files that the unit opens with
// its own.
func TestEncImg(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.NoKeys = true }).serve(nil)
	plain := app(t, "1.0.0", 1, 100_000)
	w.roll("1.0.0", plain)
	r := keystoretest.NewRecord(t, keystoretest.Simulated(1))
	key, err := r.Key.DeriveHMACKey(r.Unit)
	if err != nil {
		t.Fatal(err)
	}
	var id encimg.Identity
	if err := key.Use(func(b []byte) error {
		xy, err := encimg.PublicKey(b)
		if err != nil {
			return err
		}
		r.ECIESPublicKey = xy[:]
		id, err = encimg.NewECIESIdentity(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	u := w.provision(r)
	resp, file := w.ask(u, "GET", "/firmware?format=encimg")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, file)
	}
	if got, err := encimg.Open(id, file); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("the unit opens %d bytes, %v", len(got), err)
	}
	// A part of the same file, for who resumes.
	again, rest := w.ask(u, "GET", "/firmware?format=encimg", "Range", "bytes=1000-", "If-Range", resp.Header.Get("Etag"))
	if again.StatusCode != http.StatusPartialContent || !bytes.Equal(rest, file[1000:]) {
		t.Errorf("%d with %d bytes", again.StatusCode, len(rest))
	}
	// Another unit's file is another one, and it has no key for it.
	other := w.unit(2)
	resp, b := w.ask(other, "GET", "/firmware?format=encimg")
	wantStatus(t, resp, b, 409, "no-ecies-key")
	for _, path := range []string{"/firmware?slot=ota_1", "/manifest?slot=ota_1"} {
		resp, b = w.ask(u, "GET", path)
		wantStatus(t, resp, b, 409, "no-keys")
	}
	if n := w.store.loads.Load(); n != 0 {
		t.Errorf("%d flash keys were read", n)
	}
}
