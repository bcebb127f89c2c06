package ota_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/keystore/local"
)

// backend is a program of somebody else: it opens a keystore, looks a unit up
// and writes manifest and ciphertext. It is what the package comment shows.
const backend = `package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/local"
	"github.com/provisiond/provisiond/provision/ota"
)

func main() {
	if err := serve(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, ota.ReasonOf(err), err)
		os.Exit(1)
	}
}

func serve(keys, signing, mac, slot, app string) error {
	var store keystore.Store
	store, err := local.Open(keys, local.Options{IdentityFile: keys + ".identity"})
	if err != nil {
		return err
	}
	defer store.Close()
	pem, err := os.ReadFile(signing)
	if err != nil {
		return err
	}
	signer, err := ota.ParseSigner(pem)
	if err != nil {
		return err
	}
	who, err := chip.ParseMAC(mac)
	if err != nil {
		return err
	}
	ctx := context.Background()
	unit, err := ota.Lookup(ctx, store, who)
	if err != nil {
		return err
	}
	defer unit.Wipe()
	plain, err := os.ReadFile(app)
	if err != nil {
		return err
	}
	image, err := ota.ParseImage(plain)
	if err != nil {
		return err
	}
	update, err := ota.Prepare(unit, image, slot, ota.Known{})
	if err != nil {
		return err
	}
	defer update.Ciphertext.Wipe()
	manifest, err := update.Manifest(ctx, ota.ManifestOptions{Release: "1.4.2"}, signer)
	if err != nil {
		return err
	}
	text, err := manifest.MarshalText()
	if err != nil {
		return err
	}
	os.Stdout.Write(text)
	_, err = io.Copy(os.Stdout, update.Ciphertext.NewReader())
	return err
}
`

// TestAnotherModule builds that program in a module of its own, which the
// compiler keeps away from internal/, and runs it.
func TestAnotherModule(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	// Its requirements are ours, so that nothing is looked up anywhere.
	text := strings.Replace(string(mod), "module github.com/provisiond/provisiond", "module example.org/backend", 1)
	if text == string(mod) {
		t.Fatal("go.mod has another module line")
	}
	text += "\nrequire github.com/provisiond/provisiond v0.0.0\n\nreplace github.com/provisiond/provisiond => " + root + "\n"
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("go.mod", []byte(text))
	write("go.sum", sum)
	write("main.go", []byte(backend))
	cmd := func(name string, args ...string) (string, string, error) {
		c := exec.CommandContext(t.Context(), name, args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
		var out, errOut bytes.Buffer
		c.Stdout, c.Stderr = &out, &errOut
		err := c.Run()
		return out.String(), errOut.String(), err
	}
	bin := filepath.Join(dir, "backend")
	if _, errOut, err := cmd("go", "build", "-o", bin, "."); err != nil {
		t.Fatalf("%v: %s", err, errOut)
	}

	keys := filepath.Join(dir, "keys")
	o := local.Options{TestStore: true, IdentityFile: keys + ".identity"}
	if _, err := local.NewIdentity(o.IdentityFile); err != nil {
		t.Fatal(err)
	}
	if err := local.Init(keys, o); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(keys, o)
	if err != nil {
		t.Fatal(err)
	}
	r := testRecord(t, keystoretest.Simulated(1))
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.InSilicon, Job: r.Job}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	app := testApp(t, appSpec{chip: 5, version: "1.4.2"})
	image, signing := write("app.bin", app), write("key.pem", testdata(t, "key.pem"))
	out, errOut, err := cmd(bin, keys, signing, r.Unit.String(), "ota_1", image)
	if err != nil {
		t.Fatalf("%v: %s", err, errOut)
	}
	if !strings.HasPrefix(out, "provisiond-ota-manifest 1\nunit "+r.Unit.String()+"\n") || len(out) < len(app) {
		t.Errorf("it wrote %d bytes: %.200q", len(out), out)
	}
	if _, errOut, err = cmd(bin, keys, signing, r.Unit.String(), "ota_7", image); err == nil || !strings.HasPrefix(errOut, "slot ") {
		t.Errorf("a slot that is not there: %v, %s", err, errOut)
	}
}
