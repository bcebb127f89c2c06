package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/image"
	"github.com/provisiond/provisiond/internal/seal"
	"github.com/provisiond/provisiond/provision/ota"
)

// numbers are those of three units and releases, as Python's hashlib gives them.
const numbers = "[1674 5218 3387]"

const marker = "this stands in the image in clear"

// app is an application for the ESP32-C3.
func app(t testing.TB, version string, secure uint32) []byte {
	t.Helper()
	b, err := image.Build(image.Spec{
		Chip: chip.IDESP32C3, EntryAddr: 0x40380000, SPISize: image.SPISize4MB,
		AppDesc:  &image.AppDesc{Version: version, ProjectName: "thermostat", IDFVer: "none", SecureVersion: secure},
		Segments: []image.Segment{{LoadAddr: 0x40380000, Data: []byte(strings.Repeat(marker, 400))[:13000&^3]}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, dir string, memory int64) *Store {
	t.Helper()
	s, err := Open(dir, Options{IdentityFile: filepath.Join(dir, IdentityFile), Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newStore(t testing.TB) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ota")
	if _, err := Init(dir, ""); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, 0), dir
}

func add(t testing.TB, s *Store, name, version string, recipes ...string) Release {
	t.Helper()
	r, err := s.Add(t.Context(), name, app(t, version, 1), recipes, "test")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func roll(t testing.TB, s *Store, channel, name string, share Share) {
	t.Helper()
	if err := s.Rollout(channel, name, share, "test"); err != nil {
		t.Fatal(err)
	}
}

func mac(n int) chip.MAC { return chip.MAC{0x24, 0x0a, 0xc4, byte(n >> 16), byte(n >> 8), byte(n)} }

func offer(t testing.TB, s *Store, a Asker) string {
	t.Helper()
	o, err := s.Offer(a)
	if err != nil {
		t.Fatal(err)
	}
	if o.Why != "" {
		return "- " + string(o.Why)
	}
	return o.Release.Name
}

func TestSealedAtRest(t *testing.T) {
	s, dir := newStore(t)
	plain := app(t, "1.0.0", 1)
	given := bytes.Clone(plain)
	r, err := s.Add(t.Context(), "1.0.0", given, nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(given, []byte(marker)) {
		t.Error("the plaintext was not wiped")
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte(marker)) {
			t.Errorf("%s holds the plaintext", path)
		}
		if st, err := d.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", path, st.Mode(), err)
		}
		return nil
	})
	if err != nil || files != 3 {
		t.Errorf("%d files, %v", files, err)
	}
	m, err := s.Open(t.Context(), r)
	if err != nil || !bytes.Equal(m.Plain(), plain) {
		t.Fatalf("%v", err)
	}
	m.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Without the identity it can be added to and not served.
	s, err = Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r2 := add(t, s, "1.1.0", "1.1.0")
	if _, err := s.Open(t.Context(), r2); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("opened without identity: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 0)
	if m, err = s.Open(t.Context(), r2); err != nil {
		t.Error(err)
	} else {
		m.Release()
	}

	// A file that was changed, exchanged or lost is damage, and the next try looks again.
	path := filepath.Join(dir, imageFolder, r.File)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[len(bad)-9] ^= 1
	other, err := os.ReadFile(filepath.Join(dir, imageFolder, r2.File))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"changed": bad, "cut": good[:len(good)-1], "another's": other, "longer": append(bytes.Clone(good), good...)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), r); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err = s.Open(t.Context(), r); err != nil {
		t.Error(err)
	} else {
		m.Release()
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "ota release init") {
		t.Error(err)
	}
	if _, err := Init(dir, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, ""); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	other := filepath.Join(dir, "other")
	if _, err := seal.NewIdentity(other, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{IdentityFile: other}); !errors.Is(err, seal.ErrIdentity) {
		t.Error(err)
	}
	s := open(t, dir, 0)
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	add(t, s, "1.0.0", "1.0.0")
	for _, b := range []string{`{}`, `{"name": "1.0.0"}`, `x`, ``} {
		if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketReleases).Put([]byte("1.0.0"), []byte(b)) }); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, Options{})
		if b == "" { // bbolt keeps an empty value as one
			b = "an empty entry"
		}
		if !errors.Is(err, ErrDamaged) && b != `{}` {
			t.Errorf("%s: %v", b, err)
		}
		db, err := bolt.Open(filepath.Join(dir, stateFile), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		good, _ := encode(Release{Name: "1.0.0"})
		if err := errors.Join(db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketReleases).Put([]byte("1.0.0"), good) }), db.Close()); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, 0)
	}
}

func TestAddRefuses(t *testing.T) {
	s, dir := newStore(t)
	good := app(t, "1.0.0", 1)
	for name, b := range map[string][]byte{"empty": {}, "noise": bytes.Repeat([]byte{7}, 5000), "cut": good[:len(good)-40]} {
		if _, err := s.Add(t.Context(), "x", bytes.Clone(b), nil, "test"); ota.ReasonOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "-", "a b", "ü", strings.Repeat("x", 65), "a\n"} {
		if _, err := s.Add(t.Context(), name, bytes.Clone(good), nil, "test"); !errors.Is(err, ErrInput) {
			t.Errorf("%q: %v", name, err)
		}
	}
	add(t, s, "1.0.0", "1.0.0")
	if _, err := s.Add(t.Context(), "1.0.0", bytes.Clone(good), nil, "test"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, imageFolder)); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if err := s.Rollout("stable", "none", All, "test"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Rollout("Not a channel", "1.0.0", All, "test"); !errors.Is(err, ErrInput) {
		t.Error(err)
	}
	if err := s.Rollout("stable", "1.0.0", All+1, "test"); !errors.Is(err, ErrInput) {
		t.Error(err)
	}
	if err := errors.Join(s.Halt("1.0.0", "x"), s.Resume("1.0.0")); err != nil {
		t.Error(err)
	}
	if err := s.Halt("none", "x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestShares: every share has about its part of the units and all of a smaller one,
// and two releases begin with different units.
func TestShares(t *testing.T) {
	const units = 20_000
	for _, share := range []Share{0, 1, 500, 2500, 5000, 9999, All} {
		n, both := 0, 0
		for i := range units {
			a, b := Rollout{Release: "1.0.0", Share: share}, Rollout{Release: "1.0.1", Share: share}
			if a.Has(mac(i)) {
				n++
				if b.Has(mac(i)) {
					both++
				}
				if share < All && !(Rollout{Release: "1.0.0", Share: share + 1}).Has(mac(i)) {
					t.Fatalf("a larger share lacks %s", mac(i))
				}
			}
		}
		p := float64(share) / float64(All)
		if got := float64(n) / units; got < p-0.015 || got > p+0.015 {
			t.Errorf("%s %%: %.2f %%", share, got*100)
		}
		if got := float64(both) / units; got < p*p-0.015 || got > p*p+0.015 {
			t.Errorf("%s %%: %.2f %% have both", share, got*100)
		}
	}
	// The numbers are API: other servers have the same.
	if got := []uint16{Number(mac(1), "1.0.0"), Number(mac(2), "1.0.0"), Number(mac(1), "1.0.1")}; fmt.Sprint(got) != numbers {
		t.Errorf("%v", got)
	}
}

func TestOffer(t *testing.T) {
	s, dir := newStore(t)
	in, out := mac(0), mac(0) // of half of the units of 1.2.0
	for i := 1; (Rollout{Release: "1.2.0", Share: 5000}).Has(in) == (Rollout{Release: "1.2.0", Share: 5000}).Has(out); i++ {
		out = mac(i)
	}
	if !(Rollout{Release: "1.2.0", Share: 5000}).Has(in) {
		in, out = out, in
	}
	a := func(u chip.MAC, have string) Asker {
		return Asker{Unit: u, Chip: "esp32c3", Recipe: "thermostat", Have: have}
	}
	want := func(who Asker, want string) {
		t.Helper()
		if got := offer(t, s, who); got != want {
			t.Errorf("%+v is offered %q, want %q", who, got, want)
		}
	}
	want(a(in, ""), "- nothing-rolled-out")
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		add(t, s, v, v)
	}
	add(t, s, "other", "9.9.9", "pump")
	want(a(in, ""), "- nothing-rolled-out")
	roll(t, s, "stable", "1.0.0", All)
	roll(t, s, "stable", "1.1.0", All)
	want(a(in, ""), "1.1.0")
	roll(t, s, "stable", "1.2.0", 5000)
	roll(t, s, "stable", "other", All)
	want(a(in, ""), "1.2.0")
	want(a(out, ""), "1.1.0")
	want(a(out, "1.0.0"), "1.1.0")
	want(a(out, "1.1.0"), "- up-to-date")
	want(a(out, "0.9"), "1.1.0")
	want(a(in, "1.2.0"), "- up-to-date")
	want(Asker{Unit: in, Chip: "esp32c3", Recipe: "pump"}, "other")
	want(Asker{Unit: in, Chip: "esp32", Recipe: "thermostat"}, "- nothing-rolled-out")

	// A halt takes it back; who has it is not led back.
	if err := s.Halt("1.2.0", "x"); err != nil {
		t.Fatal(err)
	}
	want(a(in, ""), "1.1.0")
	want(a(in, "1.2.0"), "- up-to-date")
	if _, err := s.Allowed(a(in, ""), "1.2.0"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Resume("1.2.0"); err != nil {
		t.Fatal(err)
	}

	// Asked for by name: what the share has, older ones too, and nothing else.
	for name, ok := range map[string]bool{"1.0.0": true, "1.1.0": true, "1.2.0": false, "other": false, "none": false} {
		if _, err := s.Allowed(a(out, ""), name); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A unit that rolled back is not offered it again until it is pinned to it.
	if err := s.Report(in, Result{Release: "1.2.0", Slot: "ota_1", Outcome: RolledBack, Version: "1.1.0"}); err != nil {
		t.Fatal(err)
	}
	want(a(in, ""), "1.1.0")
	want(a(in, "1.1.0"), "- up-to-date")
	want(a(in, "1.0.0"), "1.1.0")
	if err := s.Pin(in, "1.2.0"); err != nil {
		t.Fatal(err)
	}
	want(a(in, "1.1.0"), "1.2.0")
	want(a(in, "1.2.0"), "- up-to-date")
	want(Asker{Unit: in, Chip: "esp32"}, "- pin-does-not-fit")
	if _, err := s.Allowed(a(in, ""), "1.1.0"); !errors.Is(err, ErrNotFound) {
		t.Error("a pinned unit gets another one")
	}
	if err := s.Halt("1.2.0", "x"); err != nil {
		t.Fatal(err)
	}
	want(a(in, ""), "- halted")
	if err := s.Remove("1.2.0"); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if err := errors.Join(s.Pin(in, ""), s.Resume("1.2.0")); err != nil {
		t.Fatal(err)
	}
	want(a(in, ""), "1.2.0")

	// Another channel. All of it is there after a restart.
	if err := s.SetChannel(in, "beta"); !errors.Is(err, ErrInput) {
		t.Error(err)
	}
	roll(t, s, "beta", "1.0.0", All)
	if err := s.SetChannel(in, "beta"); err != nil {
		t.Fatal(err)
	}
	want(a(in, ""), "1.0.0")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 0)
	want(a(in, ""), "1.0.0")
	want(a(out, ""), "1.1.0")
	if err := s.Remove("1.1.0"); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	roll(t, s, "stable", "1.1.0", 0)
	want(a(out, ""), "1.0.0")
	if err := s.Remove("1.1.0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("1.1.0"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, imageFolder)); err != nil || len(files) != 3 {
		t.Errorf("%d files, %v", len(files), err)
	}
	want(a(out, ""), "1.0.0")
	for i := range 600 { // more than a page
		if err := s.Pin(mac(100_000+i), ""); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	var last chip.MAC
	for u, err := range s.Units() {
		if err != nil || bytes.Compare(last[:], u.MAC[:]) >= 0 {
			t.Fatalf("%v after %v, %v", u.MAC, last, err)
		}
		last = u.MAC
		n++
	}
	if n != 601 {
		t.Errorf("%d units", n)
	}
}

func TestReport(t *testing.T) {
	s, dir := newStore(t)
	add(t, s, "1.0.0", "1.0.0")
	for _, r := range []Result{{Outcome: Applied, Release: "1.0.0", SecureVersion: 3}, {Outcome: Confirmed, Release: "1.0.0", SecureVersion: 2}, {Outcome: Failed, Release: "gone"}} {
		if err := s.Report(mac(1), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 0)
	u, err := s.Unit(mac(1))
	if err != nil || u.SecureVersion != 3 || u.Last.Release != "gone" {
		t.Errorf("%+v, %v", u, err)
	}
	r, err := s.Release("1.0.0")
	if err != nil || fmt.Sprint(r.Results) != "map[applied:1 confirmed:1]" {
		t.Errorf("%v, %v", r.Results, err)
	}
}

// TestImages: open images are bounded, shared, and wiped when they go.
func TestImages(t *testing.T) {
	_, dir := newStore(t)
	size := int64(len(app(t, "1.0.0", 1)))
	s := open2(t, dir, 2*size)
	var all []Release
	for i := range 3 {
		all = append(all, add(t, s, fmt.Sprint(i), "1.0.0"))
	}
	get := func(i int) *Image {
		t.Helper()
		m, err := s.Open(t.Context(), all[i])
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a, b := get(0), get(1)
	again := get(0)
	if &again.Plain()[0] != &a.Plain()[0] {
		t.Error("an image is in memory twice")
	}
	if _, err := s.Open(t.Context(), all[2]); !errors.Is(err, ErrBusy) {
		t.Errorf("more than the bound: %v", err)
	}
	again.Release()
	again.Release() // does nothing
	plain := a.Plain()
	a.Release()
	if !bytes.Contains(plain, []byte(marker)) {
		t.Error("wiped while it may be asked for again")
	}
	c := get(2) // takes the place of 0
	if bytes.Contains(plain, []byte(marker)) {
		t.Error("not wiped")
	}
	kept := b.Plain()
	if err := s.Remove("1"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(kept, []byte(marker)) {
		t.Error("wiped while it is sent")
	}
	b.Release()
	if bytes.Contains(kept, []byte(marker)) {
		t.Error("not wiped after its last user")
	}
	c.Release()

	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			m, err := s.Open(t.Context(), all[i%2*2])
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Release()
			if !bytes.Contains(m.Plain(), []byte(marker)) {
				t.Error("a wiped image was lent")
			}
		})
	}
	wg.Wait()
	if s.images.bytes > s.images.most || s.images.bytes < 0 {
		t.Errorf("%d bytes of %d", s.images.bytes, s.images.most)
	}
}

func open2(t testing.TB, dir string, memory int64) *Store {
	t.Helper()
	other := dir + "2"
	if _, err := Init(other, ""); err != nil {
		t.Fatal(err)
	}
	return open(t, other, memory)
}

func FuzzShare(f *testing.F) {
	for _, s := range []string{"0", "100", "12.5", "0.01", "99.99", "5%", "100.01", "-1", "1e2", "", ".", "1.", ".5", "256"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseShare(s)
		if err != nil {
			return
		}
		if again, err := ParseShare(v.String()); err != nil || again != v || v > All {
			t.Errorf("%q is %d, written %q, read %d, %v", s, v, v, again, err)
		}
	})
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"release":"1.0.0","slot":"ota_1","outcome":"confirmed","reason":"","version":"1.0.0","secure_version":7}`))
	f.Add([]byte(`{"outcome":"rolled-back","time":"2026-11-22T00:00:00Z"}`))
	f.Add([]byte(`{"outcome":"failed","reason":"\u0000"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseResult(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseResult(text)
		if len(text) <= MaxResult && (err != nil || again != r) || !r.Time.IsZero() {
			t.Errorf("%+v, then %+v, %v", r, again, err)
		}
		var u Unit
		u.Last = &r
		state, err := encode(u)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(state, new(Unit)); err != nil {
			t.Errorf("what is stored does not parse: %v\n%s", err, state)
		}
	})
}
