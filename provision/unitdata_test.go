package provision_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/encimg"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/port"
)

const unitTemplate = `{"mac": {{json .MAC}}, "serial": {{json .Serial}}, "lot": {{json .Lot}}, "station": {{json .Station}}, "token": {{json .OTAToken}}}`

// unitJob is a product whose units have data of their own, and where the chip can
// have one a key for esp_encrypted_img.
func unitJob(t testing.TB, name, profile, template string) *provision.Job {
	t.Helper()
	p := sample.Product{Chip: model(t, name), Name: "unit-" + name, Profile: profile, AppSize: 6 << 10, Baud: 921600, UnitTemplate: template}
	if hasHMAC(t, name) {
		p.More = "encimg_ecies: true\n"
	}
	path, err := sample.Write(t.TempDir(), p)
	if err != nil {
		t.Fatal(err)
	}
	return load(t, path)
}

func hasHMAC(t testing.TB, name string) bool {
	t.Helper()
	tab, err := table.For(name)
	if err != nil {
		t.Fatal(err)
	}
	_, ok := tab.Purpose("HMAC_UP")
	return ok
}

// ownText is what a unit reads in its own partition.
func (b *bench) ownText(c *espsim.Chip, job *provision.Job) []byte {
	b.t.Helper()
	u := job.Layout.UnitData
	raw := flashBytes(b.t, c, u.Offset, int(u.Size))
	if err := b.cipher(c).Decrypt(raw, raw, u.Offset); err != nil {
		b.t.Fatal(err)
	}
	return raw
}

// unitToken is the token that follows from the stored key, and its text.
func unitToken(t testing.TB, raw []byte, mac chip.MAC) (keystore.OTAToken, string) {
	t.Helper()
	key, err := keystore.KeyFromBytes(bytes.Clone(raw))
	if err != nil {
		t.Fatal(err)
	}
	token, err := key.DeriveOTAToken(mac)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	if err := token.UseText(func(b []byte) error { text = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return token, text
}

// A unit's own data are in its flash, encrypted, with the token that its record
// knows by its hash; a rework by somebody else writes the same bytes.
func TestUnitData(t *testing.T) {
	everyChip(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := unitJob(t, name, "hybrid", strings.ReplaceAll(unitTemplate, "{{json .Serial}}", `{{if .Serial}}{{json .Serial}}{{else}}null{{end}}`))
		r := b.run(t.Context(), c, job)
		wantPass(t, r)
		token, text := unitToken(t, b.storedKey(unitMAC), unitMAC)
		want := `{"mac": "02:00:00:00:00:01", "serial": null, "lot": "lot-1", "station": "bench", "token": "` + text + `"}`
		own := b.ownText(c, job)
		if got := string(bytes.TrimRight(own, "\xff")); got != want {
			t.Fatalf("the unit reads %q, want %q", got, want)
		}
		meta := b.metas(unitMAC)[0]
		if meta.OTATokenSHA256 == nil || !meta.OTATokenSHA256.Equal(token.SHA256()) {
			t.Errorf("the record has token %v", meta.OTATokenSHA256)
		}
		b.wantNowhere(r, text)
		img := r.Images[len(r.Images)-1]
		if sum := sha256.Sum256(own); img.Name != sample.UnitPartition || !img.Encrypted || img.PlaintextSHA256 != sum || img.Length != len(own) {
			t.Errorf("the result says %+v", img)
		}
		b.wantECIES(c, meta)

		// Another person, and no lot.
		raw := flashBytes(t, c, job.Layout.UnitData.Offset, int(job.Layout.UnitData.Size))
		if err := c.Flash().EraseSector(job.Layout.UnitData.Offset); err != nil {
			t.Fatal(err)
		}
		again := b.rework(t.Context(), c, job, badFlash)
		wantPass(t, again)
		if !bytes.Equal(flashBytes(t, c, job.Layout.UnitData.Offset, len(raw)), raw) {
			t.Errorf("after a rework the unit reads %q, want %q", bytes.TrimRight(b.ownText(c, job), "\xff"), want)
		}
		b.wantNowhere(again, text)
	})
}

// wantNowhere looks for a token in the journal and in a result.
func (b *bench) wantNowhere(r *provision.Result, text string) {
	b.t.Helper()
	out, err := json.Marshal(r)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range b.entries() {
		out = append(out, e.Payload...)
	}
	if bytes.Contains(out, []byte(text)) || bytes.Contains(out, []byte(text[:12])) {
		b.t.Error("the token stands in the journal or in the result")
	}
}

// wantECIES: the block after the flash key's has the HMAC key as it is, hidden and
// locked, and the record has the public key that follows from it.
func (b *bench) wantECIES(c *espsim.Chip, meta keystore.Meta) {
	b.t.Helper()
	name := c.Model().Name
	if !hasHMAC(b.t, name) {
		if len(meta.ECIESPublicKey) != 0 {
			b.t.Error("the record has a key that the chip cannot have")
		}
		return
	}
	flash, err := keystore.KeyFromBytes(b.storedKey(unitMAC))
	if err != nil {
		b.t.Fatal(err)
	}
	k, err := flash.DeriveHMACKey(unitMAC)
	if err != nil {
		b.t.Fatal(err)
	}
	var raw []byte
	if err := k.Use(func(key []byte) error { raw = bytes.Clone(key); return nil }); err != nil {
		b.t.Fatal(err)
	}
	public, err := encimg.PublicKey(raw)
	if err != nil || !bytes.Equal(public[:], meta.ECIESPublicKey) {
		b.t.Errorf("the record has public key %x, want %x: %v", meta.ECIESPublicKey, public, err)
	}
	now := c.Fuses()
	if at := keyIndex(name) + 1; !slices.Equal(now[at], words(raw)) {
		b.t.Errorf("block %d does not hold the HMAC key", at)
	}
	for field, value := range map[string]uint64{"KEY_PURPOSE_1": 8, "RD_DIS.KEY1": 1, "WR_DIS.KEY1": 1, "WR_DIS.KEY_PURPOSE_1": 1, "KEY_PURPOSE_0": 4, "RD_DIS.KEY0": 1} {
		if got := fieldValue(b.t, c, field); got != value {
			b.t.Errorf("%s is %d, want %d", field, got, value)
		}
	}
}

// A unit whose data cannot be made is refused before anything is written.
func TestUnitDataRefused(t *testing.T) {
	inBubble(t, "no serial", func(t *testing.T) {
		b := newMemoryBench(t)
		b.wantRefused(b.board(espsim.Options{Model: model(t, "esp32c3")}), unitJob(t, "esp32c3", "hybrid", unitTemplate), "need .Serial")
	})
}

// fieldValue reads a field of BLOCK0 from the array.
func fieldValue(t testing.TB, c *espsim.Chip, name string) (v uint64) {
	t.Helper()
	now := c.Fuses()
	f := fieldNamed(t, c, name)
	for i, bit := range f.Bits() {
		v |= uint64(now[f.Block][bit/32]>>(bit%32)&1) << i
	}
	return v
}

// TestUnitDataSerial: the serial number on the label goes into the unit's data, and a
// rework that nobody tells it writes it again, also with a newer application.
func TestUnitDataSerial(t *testing.T) {
	everyChip(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := unitJob(t, name, "hybrid", unitTemplate)
		e := &provision.Engine{Store: b.store, Journal: b.jrn, Station: "line-7", Slot: "1", Operator: "anna", Lot: "lot-9"}
		wantPass(t, e.Run(t.Context(), provision.Line{Port: port.FromSim(c, "sim"), Reset: rom.AutoReset{}, Serial: "SN \"17\""}, job))
		_, text := unitToken(t, b.storedKey(unitMAC), unitMAC)
		want := `{"mac": "02:00:00:00:00:01", "serial": "SN \"17\"", "lot": "lot-9", "station": "line-7", "token": "` + text + `"}`
		reads := func(when string, job *provision.Job) {
			t.Helper()
			if got := string(bytes.TrimRight(b.ownText(c, job), "\xff")); got != want {
				t.Fatalf("%s the unit reads %q, want %q", when, got, want)
			}
		}
		reads("at first", job)
		if err := c.Flash().EraseSector(job.Layout.UnitData.Offset); err != nil {
			t.Fatal(err)
		}
		wantPass(t, b.rework(t.Context(), c, job, badFlash))
		reads("after a rework", job)

		p := sample.Product{Chip: model(t, name), Name: "unit-newer", Profile: "hybrid", AppSize: 9 << 10, Baud: 921600, UnitTemplate: unitTemplate}
		if hasHMAC(t, name) {
			p.More = "encimg_ecies: true\n"
		}
		path, err := sample.Write(t.TempDir(), p)
		if err != nil {
			t.Fatal(err)
		}
		newer := load(t, path)
		wantPass(t, b.rework(t.Context(), c, newer, badFlash))
		reads("after a newer application", newer)
	})
}

// A recipe that gives its units a token cannot rework one whose record has none: no
// server would know it.
func TestReworkAddsNoToken(t *testing.T) {
	inBubble(t, "esp32c3", func(t *testing.T) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, "esp32c3")})
		p := sample.Product{Chip: model(t, "esp32c3"), Name: "tokenless", Profile: "hybrid", AppSize: 6 << 10, Baud: 921600, UnitTemplate: "{{.MAC}}"}
		path, err := sample.Write(t.TempDir(), p)
		if err != nil {
			t.Fatal(err)
		}
		wantPass(t, b.run(t.Context(), c, load(t, path)))
		if meta := b.metas(unitMAC)[0]; meta.OTATokenSHA256 != nil || len(meta.ECIESPublicKey) != 0 {
			t.Errorf("the record has secrets that the recipe does not: %+v", meta)
		}
		p.UnitTemplate, p.Name = "{{.OTAToken}}", "with-token"
		if path, err = sample.Write(t.TempDir(), p); err != nil {
			t.Fatal(err)
		}
		r := b.rework(t.Context(), c, load(t, path), badFlash)
		wantVerdict(t, r, provision.Fail, provision.CauseRefused, "has no such OTA token")
	})
}
