package bootrom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// otaApp is an app with a descriptor.
func otaApp(t testing.TB, name string, secure uint32, version string) []byte {
	s := spec(modelOf(t, name), true)
	d := s.segs[0].data
	binary.LittleEndian.PutUint32(d, descriptorMagic)
	binary.LittleEndian.PutUint32(d[4:], secure)
	clear(d[0x10:0x50])
	copy(d[0x10:], version)
	copy(d[0x30:], "unit-under-test")
	return s.build()
}

// device is a flash that keeps what boots and apps write.
type device struct {
	t     *testing.T
	in    Input
	flash []byte
}

// newDevice has a factory app, 1.0 in ota_0 and 2.0 in ota_1, with the secure versions given.
func newDevice(t *testing.T, name string, factory bool, secure ...uint32) *device {
	b := newBoard(t, name)
	b.parts[0x10000] = otaApp(t, name, secure[0], "0.9")
	b.parts[0x20000] = otaApp(t, name, secure[1], "1.0")
	b.parts[0x30000] = otaApp(t, name, secure[2], "2.0")
	if !factory {
		delete(b.parts, 0x10000)
		rows := append(append([]row(nil), defaultRows[:3]...), defaultRows[4:]...)
		b.parts[0x8000] = buildTable(rows, true)
	}
	in := b.input()
	flash, err := io.ReadAll(io.NewSectionReader(in.Flash, 0, flashSize))
	if err != nil {
		t.Fatal(err)
	}
	in.Rollback = true
	return &device{t: t, in: in, flash: flash}
}

func (d *device) store(writes []Write) {
	for _, w := range writes {
		copy(d.flash[w.Sector:], bytes.Repeat([]byte{0xFF}, sectorSize))
		copy(d.flash[w.Sector:], w.Data)
	}
}

func (d *device) input() Input {
	in := d.in
	in.Flash = bytes.NewReader(d.flash)
	return in
}

// boot demands that the named version runs.
func (d *device) boot(version string) Output {
	d.t.Helper()
	out := Boot(d.input())
	d.store(out.Writes)
	if out.SecureVersion != 0 {
		d.in.SecureVersion = out.SecureVersion
	}
	if out.State != Running || !strings.Contains(string(out.Text), "App version:      "+version+"\r\n") {
		d.t.Fatalf("want version %s to run:\n%s", version, out.Text)
	}
	return out
}

func (d *device) apps(running Partition) *Apps {
	d.t.Helper()
	a, err := OpenApps(d.input(), running)
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

func (d *device) setBoot(running Partition) Partition {
	d.t.Helper()
	a := d.apps(running)
	next, err := a.Next()
	if err != nil {
		d.t.Fatal(err)
	}
	writes, text, err := a.SetBoot(next)
	if err != nil {
		d.t.Fatalf("%v\n%s", err, text)
	}
	d.store(writes)
	return next
}

func (d *device) state(running, of Partition) OTAState {
	d.t.Helper()
	s, err := d.apps(running).State(of)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// TestRollback walks an update that is confirmed, and one that is not.
func TestRollback(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		d := newDevice(t, name, true, 0, 0, 0)
		factory := d.boot("0.9").App
		if factory != (Partition{"factory", 0x10000, 0x10000}) {
			t.Errorf("runs %+v", factory)
		}
		zero := d.setBoot(factory)
		if zero != (Partition{"ota_0", 0x20000, 0x10000}) || d.state(factory, zero) != OTANew {
			t.Errorf("next %+v in state %d", zero, d.state(factory, zero))
		}
		if run := d.boot("1.0"); run.App != zero || len(run.Writes) != 1 || d.state(zero, zero) != OTAPendingVerify {
			t.Errorf("%+v, state %d", run.App, d.state(zero, zero))
		}
		// Not confirmed: the next boot takes the factory app again, and so do all others.
		for range 2 {
			if run := d.boot("0.9"); run.App != factory || d.state(factory, zero) != OTAAborted {
				t.Errorf("%+v, state %d", run.App, d.state(factory, zero))
			}
		}
		d.setBoot(factory)
		d.boot("1.0")
		writes, burn := d.apps(zero).MarkValid()
		d.store(writes)
		if len(writes) != 1 || burn != 0 || d.state(zero, zero) != OTAValid {
			t.Errorf("confirmed: %d writes, %d to burn, state %d", len(writes), burn, d.state(zero, zero))
		}
		if again, _ := d.apps(zero).MarkValid(); len(again) != 0 {
			t.Error("a second confirmation writes")
		}
		if run := d.boot("1.0"); len(run.Writes) != 0 {
			t.Error("a confirmed app's boot writes otadata")
		}
		one := d.setBoot(zero)
		if d.boot("2.0").App != one || one.Name != "ota_1" {
			t.Errorf("%+v", one)
		}
		d.boot("1.0")
		d.setBoot(zero)
		d.boot("2.0")
		writes, err := d.apps(one).MarkInvalid()
		if err != nil {
			t.Fatal(err)
		}
		d.store(writes)
		d.boot("1.0")
		if d.state(zero, one) != OTAInvalid {
			t.Errorf("state %d after the app refused itself", d.state(zero, one))
		}
	})
}

// TestNoRollback: without the option a boot writes nothing and the state stays open.
func TestNoRollback(t *testing.T) {
	d := newDevice(t, "esp32c3", true, 0, 0, 0)
	d.in.Rollback = false
	zero := d.setBoot(d.boot("0.9").App)
	for range 3 {
		if run := d.boot("1.0"); len(run.Writes) != 0 {
			t.Error("a boot writes")
		}
	}
	if s := d.state(zero, zero); s != OTAUndefined {
		t.Errorf("state %d", s)
	}
}

// TestSetBootRefuses: what does not decrypt to an app is no app, and otadata stays.
func TestSetBootRefuses(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		for what, spoil := range map[string]func(d *device){
			"erased":     func(d *device) { copy(d.flash[0x20000:], bytes.Repeat([]byte{0xFF}, 0x1000)) },
			"other slot": func(d *device) { copy(d.flash[0x20000:], d.flash[0x30000:0x31000]) },
			"flipped":    func(d *device) { d.flash[0x20150] ^= 4 },
			"plaintext":  func(d *device) { copy(d.flash[0x20000:], otaApp(t, name, 0, "1.0")) },
		} {
			d := newDevice(t, name, true, 0, 0, 0)
			factory := d.boot("0.9").App
			spoil(d)
			a := d.apps(factory)
			next, _ := a.Next()
			writes, text, err := a.SetBoot(next)
			if !errors.Is(err, ErrValidate) || len(writes) != 0 || !strings.Contains(text, "esp_image") {
				t.Errorf("%s: %v, %d writes, said %q", what, err, len(writes), text)
			}
			d.boot("0.9")
		}
		d := newDevice(t, name, true, 0, 0, 0)
		factory := d.boot("0.9").App
		if _, _, err := d.apps(factory).SetBoot(factory); !errors.Is(err, ErrNotFound) {
			t.Errorf("the factory app as a slot: %v", err)
		}
		if _, err := d.apps(factory).State(factory); !errors.Is(err, ErrNotFound) {
			t.Errorf("the factory app's state: %v", err)
		}
		if _, err := d.apps(factory).MarkInvalid(); !errors.Is(err, ErrRollbackFailed) {
			t.Errorf("rollback of the factory app: %v", err)
		}
	})
}

// TestAntiRollback: a secure version goes up when an app is confirmed and never down.
func TestAntiRollback(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		d := newDevice(t, name, false, 0, 1, 2)
		d.in.AntiRollback = true
		run := d.boot("1.0") // the first boot settles otadata
		if len(run.Writes) != 1 || run.SecureVersion != 1 || d.in.SecureVersion != 1 {
			t.Fatalf("first boot: %d writes, burns %d", len(run.Writes), run.SecureVersion)
		}
		one := d.setBoot(run.App)
		if out := d.boot("2.0"); out.SecureVersion != 0 {
			t.Error("burned before the app was confirmed")
		}
		writes, burn := d.apps(one).MarkValid()
		d.store(writes)
		if burn != 2 {
			t.Fatalf("confirmation burns %d", burn)
		}
		d.in.SecureVersion = burn

		// ota_0 holds secure version 1: it is refused and erased.
		a := d.apps(one)
		next, _ := a.Next()
		writes, _, err := a.SetBoot(next)
		if !errors.Is(err, ErrSecureVersion) || len(writes) != 0x10 {
			t.Errorf("%v, %d writes", err, len(writes))
		}
		d.store(writes)
		if !bytes.Equal(d.flash[0x20000:0x30000], bytes.Repeat([]byte{0xFF}, 0x10000)) {
			t.Error("the refused partition is not erased")
		}
		if out := d.boot("2.0"); !strings.Contains(string(out.Text), fmt.Sprintf("Secure version (from eFuse) = %d\r\n", burn)) {
			t.Errorf("%s", out.Text)
		}
	})
}

// TestStored: what the chip writes reads back through its own decryption, at every offset in a unit.
func TestStored(t *testing.T) {
	eachChip(t, func(t *testing.T, name string) {
		in := newBoard(t, name).input()
		for off := uint32(0); off < unit; off += 32 {
			flash := bytes.Repeat([]byte{0xFF}, 0x200)
			at := 0x80 + off
			data := random(uint64(off), 0x60)
			copy(flash[at:], newFlashView(in).stored(at, data))
			in.Flash, in.FlashSize = bytes.NewReader(flash), 0x200
			got, err := newFlashView(in).read(at, uint32(len(data)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("offset 0x%x: %v", at, err)
			}
		}
	})
}
