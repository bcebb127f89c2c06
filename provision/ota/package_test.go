package ota_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision/ota"
)

// publicOnly is a store for a backend that has no right to read keys.
type publicOnly struct{ keystore.Store }

func (publicOnly) Load(context.Context, chip.MAC, keystore.Fingerprint) (keystore.Record, error) {
	return keystore.Record{}, errors.New("a key was asked for")
}

func TestPackage(t *testing.T) {
	store := testStore(t)
	var as encimg.Identity
	put := func(n byte, change func(*keystore.Record)) keystore.Meta {
		r := testRecord(t, keystoretest.Simulated(n))
		hmac := must(r.Key.DeriveHMACKey(r.Unit))
		if err := hmac.Use(func(b []byte) error {
			xy, err := encimg.PublicKey(b)
			r.ECIESPublicKey = xy[:]
			if as == nil {
				as = must(encimg.NewECIESIdentity(b))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		change(&r)
		must(store.Create(t.Context(), r))
		must(store.AddState(t.Context(), r.Unit, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job, Station: r.Station}))
		return must(ota.Find(t.Context(), publicOnly{store}, r.Unit))
	}
	unit := put(1, func(*keystore.Record) {})
	none := put(2, func(r *keystore.Record) { r.ECIESPublicKey = nil })
	secure := put(3, func(r *keystore.Record) { r.SecureBootScheme, r.SecureBootDigests = "rsa3072", [][32]byte{{1}} })
	newer := unit
	newer.Chip = "esp32c99"

	app := testApp(t, appSpec{chip: chip.IDESP32C3, version: "1"})
	img := must(ota.ParseImage(bytes.Clone(app)))
	file, err := ota.Package(unit, img)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := encimg.Open(as, file); err != nil || !bytes.Equal(got, app) {
		t.Errorf("the unit cannot open it: %v", err)
	}
	if again := must(ota.Package(unit, img)); bytes.Equal(again, file) {
		t.Error("two files are the same: the AES key was not new")
	}

	for name, c := range map[string]struct {
		unit keystore.Meta
		app  appSpec
		want ota.Reason
		word string
	}{
		"no HMAC key":      {none, appSpec{chip: chip.IDESP32C3}, ota.ReasonNoPackageKey, "burned no HMAC key"},
		"another chip":     {unit, appSpec{chip: chip.IDESP32}, ota.ReasonChip, "ESP32"},
		"another revision": {unit, appSpec{chip: chip.IDESP32C3, min: 101}, ota.ReasonRevision, "v1.1"},
		"not signed":       {secure, appSpec{chip: chip.IDESP32C3}, ota.ReasonUnsigned, "not signed"},
		"an unknown chip":  {newer, appSpec{chip: chip.IDESP32C3}, ota.ReasonRecord, "esp32c99"},
	} {
		b, err := ota.Package(c.unit, must(ota.ParseImage(testApp(t, c.app))))
		wantReason(t, name, err, c.want)
		if b != nil || err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want a word about %s", name, err, c.word)
		}
	}
	bad := unit
	bad.ECIESPublicKey = make([]byte, 64)
	_, err = ota.PackageRecipient(bad)
	wantReason(t, "no point", err, ota.ReasonRecord)
}
