package provision_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/flashcrypt"
	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/station/port"
)

// sharedImages finds ../shared/images as seen from the repository's root.
func sharedImages(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above")
		}
	}
	images := filepath.Join(dir, "..", "shared", "images", name)
	if _, err := os.Stat(filepath.Join(images, "flasher_args.json")); err != nil {
		t.Skip("needs ../shared/images")
	}
	return images
}

// realJob is a product of real ESP-IDF images.
func realJob(t *testing.T, name, profile string) *provision.Job {
	t.Helper()
	text := fmt.Sprintf("recipe: real-%s\nrevision: 1\nchip: %s\nbuild: %s\nflash_size: 4MB\nprofile: %s\nboot_check: {expect: %q, timeout: 10s}\n",
		name, name, sharedImages(t, name), profile, sample.AppText)
	path := filepath.Join(t.TempDir(), "real.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return load(t, path)
}

// TestRealImages: units with images of ESP-IDF's own build boot.
func TestRealImages(t *testing.T) {
	for _, name := range twoChips {
		for _, profile := range []string{"hybrid", "release"} {
			inBubble(t, name+"/"+profile, func(t *testing.T) {
				b := newMemoryBench(t)
				job := realJob(t, name, profile)
				c := b.board(espsim.Options{Model: model(t, name)})
				before := c.Fuses()
				r := b.run(t.Context(), c, job)
				wantPass(t, r)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// damage is what is wrong with a board between verification and its first boot.
type damage struct {
	name string
	do   func(t *testing.T, b *bench, c *espsim.Chip, job *provision.Job)
}

func region(t testing.TB, job *provision.Job, k layout.Kind) layout.Region {
	t.Helper()
	for _, r := range job.Layout.Regions {
		if r.Kind == k {
			return r
		}
	}
	t.Fatalf("no %s in the layout", k)
	return layout.Region{}
}

// reencrypt writes a region as another cipher, or for another address, gives it.
func reencrypt(t testing.TB, c *espsim.Chip, r layout.Region, ci flashcrypt.Cipher, shift uint32) {
	t.Helper()
	out := make([]byte, len(r.Plain))
	if err := ci.Encrypt(out, r.Plain, r.Offset+shift); err != nil {
		t.Fatal(err)
	}
	overwrite(t, c, r.Offset, out)
}

func damages() []damage {
	list := []damage{
		{"a bit more in the key block", func(t *testing.T, _ *bench, c *espsim.Chip, _ *provision.Job) {
			at := keyIndex(c.Model().Name)
			w := c.Fuses()[at][5]
			if err := c.SetFuse(at, 5, ^w&-^w); err != nil { // the lowest bit that is not set
				t.Fatal(err)
			}
		}},
		{"everything with another key", func(t *testing.T, _ *bench, c *espsim.Chip, job *provision.Job) {
			key, err := keystore.Generate(c.Model().Scheme)
			if err != nil {
				t.Fatal(err)
			}
			err = key.Use(func(k []byte) error {
				ci, err := flashcrypt.New(c.Model().Scheme, k, 0xF)
				for _, r := range job.Layout.Regions {
					reencrypt(t, c, r, ci, 0)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, k := range []layout.Kind{layout.Bootloader, layout.PartitionTable, layout.App} {
		list = append(list,
			damage{string(k) + " encrypted for another offset", func(t *testing.T, b *bench, c *espsim.Chip, job *provision.Job) {
				reencrypt(t, c, region(t, job, k), b.cipher(c), 0x1000)
			}},
			damage{string(k) + " as plaintext", func(t *testing.T, _ *bench, c *espsim.Chip, job *provision.Job) {
				r := region(t, job, k)
				overwrite(t, c, r.Offset, r.Plain)
			}},
			damage{"the first byte of " + string(k) + " flipped", func(t *testing.T, _ *bench, c *espsim.Chip, job *provision.Job) {
				flip(t, c, region(t, job, k).Offset)
			}},
			damage{"one byte inside " + string(k) + " flipped", func(t *testing.T, _ *bench, c *espsim.Chip, job *provision.Job) {
				r := region(t, job, k)
				flip(t, c, r.Offset+checkedLen(t, r)/2)
			}},
		)
	}
	return list
}

// checkedLen is how much of a region the ROM and the bootloader check when they
// boot: an image with its hash, and a partition table up to its MD5 row.
func checkedLen(t testing.TB, r layout.Region) uint32 {
	t.Helper()
	switch {
	case r.Image != nil:
		return uint32(r.Image.Length)
	case r.Kind == layout.PartitionTable:
		row := bytes.Index(r.Plain, append([]byte{0xEB, 0xEB}, bytes.Repeat([]byte{0xFF}, 14)...))
		if row < 0 {
			t.Fatal("no MD5 row")
		}
		return uint32(row) + 32
	}
	return 0
}

// TestDoesNotBoot: a unit that would not boot in the field fails while its loader
// is still open, so that it can be mended.
func TestDoesNotBoot(t *testing.T) {
	for _, name := range twoChips {
		for _, real := range []bool{false, true} {
			for _, d := range damages() {
				kind := "sample"
				if real {
					kind = "real"
				}
				inBubble(t, name+"/"+kind+"/"+d.name, func(t *testing.T) {
					b := newMemoryBench(t)
					job := sampleJob(t, name, "release")
					if real {
						job = realJob(t, name, "release")
					}
					c := b.board(espsim.Options{Model: model(t, name)})
					b.at["boot-check"] = func() { d.do(t, b, c, job) }
					r := b.run(t.Context(), c, job)
					wantVerdict(t, r, provision.Fail, provision.CauseUnit, "did not boot")
					if r.ExitCode() != 3 || r.Closing != nil || !loaderOpen(c) {
						t.Errorf("exit %d, closing %v, board %s", r.ExitCode(), r.Closing, c.Status())
					}
					// A boot loop is seen by its banners, long before the time is over.
					last := r.Steps[len(r.Steps)-1]
					if last.Name != "boot-check" || last.MS > 2000 {
						t.Errorf("%s ended after %d ms", last.Name, last.MS)
					}
					// The last fuse and the write protection before it are not burned.
					want := f5[name]["hybrid"]
					if got := c.Fuses()[0]; got[4]&^want[4]&0x21 != 0 && name == "esp32c3" || got[0]>>27&1 != 0 && name == "esp32" {
						t.Errorf("BLOCK0 is %08x", got)
					}
				})
			}
		}
	}
}

// TestBootSeesFlippedBytes flips bytes of a finished unit's ciphertext, one at a
// time. A boot sees each one up to the end of what it checks. Beyond that end lies
// padding, which nothing reads, and otadata: a damaged entry of it is not valid,
// which for the bootloader is the same as the erased one that was written. So a
// flip there after verification changes nothing that the product does; one before
// verification is found by the MD5 (TestVerify).
func TestBootSeesFlippedBytes(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "hybrid")
		wantPass(t, b.run(t.Context(), c, job))
		seen, unseen := 0, 0
		for _, r := range job.Layout.Regions {
			checked := checkedLen(t, r)
			for at := uint32(0); at < uint32(len(r.Plain)); at += uint32(stride(211)) {
				flip(t, c, r.Offset+at)
				ok := boots(c)
				flip(t, c, r.Offset+at)
				// A flip garbles 16 bytes, which may reach from padding into what is checked.
				if at < checked && ok {
					t.Fatalf("a flipped byte at 0x%x of %s is not seen", at, r.Name)
				}
				if at >= (checked+31)&^31 && !ok {
					t.Fatalf("a flipped byte at 0x%x of %s, where nothing is checked, keeps it from booting", at, r.Name)
				}
				if ok {
					unseen++
				} else {
					seen++
				}
			}
		}
		t.Logf("%d flips seen, %d in padding and otadata", seen, unseen)
		if seen == 0 || unseen == 0 || !boots(c) {
			t.Error("the flips were not undone")
		}
	})
}

// TestVerify: a byte of any region that is wrong after the last write is found
// before the first burn, written again, and if that does not help, the unit fails.
func TestVerify(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		job := sampleJob(t, name, "hybrid")
		for _, r := range job.Layout.Regions {
			for _, at := range []int{0, len(r.Plain) / 2, len(r.Plain) - 1} {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				b.at["verify-flash"] = func() { flip(t, c, r.Offset+uint32(at)) }
				wantPass(t, b.run(t.Context(), c, job))

				b = newMemoryBench(t)
				c = b.board(espsim.Options{Model: model(t, name)})
				bad := func() { overwrite(t, c, r.Offset+uint32(at), []byte{^flashBytes(t, c, r.Offset+uint32(at), 1)[0]}) }
				b.at["verify-flash"] = bad
				b.observe = func(e provision.Event) {
					if e.Step == "verify-flash" && e.Done == int64(len(r.Plain)) {
						bad() // again after each time that it was written
					}
				}
				got := b.run(t.Context(), c, job)
				wantVerdict(t, got, provision.Fail, provision.CauseUnit, r.Name)
				if c.Burns() != 0 || len(b.metas(unitMAC)) != 0 {
					t.Errorf("%d burns, %d keys", c.Burns(), len(b.metas(unitMAC)))
				}
			}
		}
		// Something in a partition that has to be empty.
		for _, e := range job.Layout.Erase {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			b.at["verify-flash"] = func() { flip(t, c, e.Offset+e.Size-1) }
			wantPass(t, b.run(t.Context(), c, job))

			b = newMemoryBench(t)
			c = b.board(espsim.Options{Model: model(t, name)})
			bad := func() { overwrite(t, c, e.Offset, []byte{0}) }
			b.at["verify-flash"] = bad
			b.observe = func(ev provision.Event) {
				if ev.Step == "verify-flash" && ev.Done == int64(e.Size) {
					bad() // again after each time that it was erased
				}
			}
			wantVerdict(t, b.run(t.Context(), c, job), provision.Fail, provision.CauseUnit, e.Name)
			if c.Burns() != 0 {
				t.Errorf("%d burns", c.Burns())
			}
		}
	})
}

// swap is a port behind which another board appears at the nth reset.
type swap struct {
	rom.Port
	mu     sync.Mutex
	other  rom.Port
	resets int
	at     int
	rts    bool
}

func (s *swap) now() rom.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resets >= s.at {
		return s.other
	}
	return s.Port
}

func (s *swap) SetLines(ctx context.Context, dtr, rts bool) error {
	s.mu.Lock()
	if low := rts && !dtr; low && !s.rts {
		s.resets++
	}
	s.rts = rts && !dtr
	s.mu.Unlock()
	return s.now().SetLines(ctx, dtr, rts)
}
func (s *swap) Read(ctx context.Context, p []byte) (int, error)  { return s.now().Read(ctx, p) }
func (s *swap) Write(ctx context.Context, p []byte) (int, error) { return s.now().Write(ctx, p) }
func (s *swap) Discard(ctx context.Context) error                { return s.now().Discard(ctx) }
func (s *swap) SetBaud(ctx context.Context, baud int) error      { return s.now().SetBaud(ctx, baud) }
func (s *swap) Reopen(ctx context.Context) error                 { return s.now().Reopen(ctx) }

// TestOtherBoard: after every reset of a run another board lies in the fixture.
// Nothing is ever written to it or burned into it, and the run does not pass.
func TestOtherBoard(t *testing.T) {
	for _, name := range twoChips {
		for otherName, otherChip := range map[string]string{"same chip": name, "other chip": map[string]string{"esp32": "esp32c3", "esp32c3": "esp32"}[name]} {
			inBubble(t, name+"/"+otherName, func(t *testing.T) {
				job := sampleJob(t, name, "release")
				for at := 2; ; at++ {
					b := newMemoryBench(t)
					c := b.board(espsim.Options{Model: model(t, name)})
					before := c.Fuses()
					other := b.board(espsim.Options{Model: model(t, otherChip), MAC: chip.MAC{0x02, 0, 0, 0, 0, 2}})
					s := &swap{other: port.FromSim(other, "sim://other"), at: at}
					b.wrap = func(p rom.Port) rom.Port { s.Port = p; return s }
					r := b.run(t.Context(), c, job)
					if s.resets < at { // no such reset
						wantPass(t, r)
						if at < 6 {
							t.Errorf("a run has only %d resets", s.resets)
						}
						return
					}
					if r.Verdict == provision.Pass || other.Burns() != 0 || other.Requests(0x02) != 0 || r.Unit != unitMAC.String() {
						t.Fatalf("swapped at reset %d: %s of unit %s; other board: %d burns", at, r.Verdict, r.Unit, other.Burns())
					}
					if err := b.invariants(c, job, before, r); err != nil {
						t.Errorf("swapped at reset %d: %v", at, err)
					}
					// Before the closing every reset shows whose turn it is. After it the
					// MAC cannot be read: another board that is open or does not boot gives no
					// evidence.
					if at <= 4 {
						wantVerdict(t, r, provision.Error, provision.CauseStation, "another board")
					} else {
						wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "")
					}
					// The right board again: the same job goes on, unless it was closed by then.
					if closed := r.Verdict == provision.Quarantined; !closed {
						r = b.again(c, job)
						wantPass(t, r)
						if err := b.invariants(c, job, before, r); err != nil {
							t.Errorf("swapped at reset %d, then continued: %v", at, err)
						}
					}
				}
			})
		}
	}
}

// TestBootloaderBurns: a bootloader that burns fuses of its own at the first boot
// is found out, whichever block it burns, and the unit is set aside.
func TestBootloaderBurns(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		tab, err := table.For(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, blk := range tab.Blocks() {
			if blk.Index == keyIndex(name) {
				continue // hidden: the boot itself notices (TestDoesNotBoot)
			}
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "release")
			b.at["boot-check"] = func() {
				word := map[int]int{0: 3, 1: 4}[blk.Index] // not the MAC
				var bit uint32 = 1 << 3
				if c.Fuses()[blk.Index][word]&bit != 0 {
					t.Fatalf("%s has that bit already", blk.Name)
				}
				if err := c.SetFuse(blk.Index, word, bit); err != nil {
					t.Fatal(err)
				}
			}
			r := b.run(t.Context(), c, job)
			wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "first boot")
			if r.Closing != nil || !loaderOpen(c) || b.metas(unitMAC)[0].Current() != keystore.Quarantined {
				t.Errorf("%s: closing %v, %s, key %q", blk.Name, r.Closing, c.Status(), b.metas(unitMAC)[0].Current())
			}
		}
	})
}

// TestFirmwareCloses: an application that closes the loader itself at its first boot, as
// ESP-IDF builds it by default, leaves a unit whose fuses nobody can look at or finish. It
// is set aside, and the reason names the option that did it.
func TestFirmwareCloses(t *testing.T) {
	everyChip(t, func(t *testing.T, name string) {
		m := model(t, name)
		for _, profile := range []string{"hybrid", "release"} {
			for _, mode := range []bootrom.DownloadMode{bootrom.SecureDownloadMode, bootrom.DisableDownloadMode} {
				if mode == bootrom.SecureDownloadMode && m.Lockdown.ReleaseFuse == m.Lockdown.ClosedFuse {
					continue // the ESP32 has no such mode
				}
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: m, Build: bootrom.Build{FlashEncryption: true, DownloadMode: mode}})
				r := b.run(t.Context(), c, sampleJob(t, name, profile))
				wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "build it with CONFIG_SECURE_INSECURE_ALLOW_DL_MODE")
				if r.Closing != nil || b.metas(unitMAC)[0].Current() != keystore.Quarantined {
					t.Errorf("%s, mode %d: closing %v, key %q", profile, mode, r.Closing, b.metas(unitMAC)[0].Current())
				}
			}
		}
	})
}

// garble damages one byte of the application's text, as often as it is told to.
type garble struct {
	rom.Port
	times int
}

func (g *garble) Read(ctx context.Context, p []byte) (int, error) {
	n, err := g.Port.Read(ctx, p)
	if at := bytes.Index(p[:n], []byte(sample.AppText)); at >= 0 && g.times > 0 {
		g.times--
		p[at+3] ^= 0x04
	}
	return n, err
}

// TestNoiseInBootText: a damaged byte in the text of a boot costs another reset, two
// at most, and not a verdict; and after the closing not a good unit.
func TestNoiseInBootText(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, step := range []string{"boot-check", "proof"} {
			for times, want := range map[int]provision.Verdict{1: provision.Pass, 2: provision.Pass, 3: map[string]provision.Verdict{"boot-check": provision.Fail, "proof": provision.Quarantined}[step]} {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				g := &garble{}
				b.wrap = func(p rom.Port) rom.Port { g.Port = p; return g }
				b.at[step] = func() { g.times = times }
				if r := b.run(t.Context(), c, sampleJob(t, name, "release")); r.Verdict != want {
					t.Errorf("%s, %d times: %s: %s", step, times, r.Verdict, r.Reason)
				}
			}
		}
	})
}

// stale puts text in front of what the board says after its next resets.
type stale struct {
	rom.Port
	text  []byte
	ready bool
}

func (s *stale) SetLines(ctx context.Context, dtr, rts bool) error {
	s.ready = s.ready || !dtr && !rts
	return s.Port.SetLines(ctx, dtr, rts)
}

func (s *stale) Read(ctx context.Context, p []byte) (int, error) {
	if s.ready && len(s.text) > 0 {
		n := copy(p, s.text)
		s.text = s.text[n:]
		return n, nil
	}
	return s.Port.Read(ctx, p)
}

// TestTextBeforeBanner: what comes before the ROM's banner is of an earlier life
// and proves nothing.
func TestTextBeforeBanner(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "release")
		var s *stale
		b.wrap = func(p rom.Port) rom.Port { s = &stale{Port: p}; return s }
		b.at["boot-check"] = func() {
			flip(t, c, sample.FactoryOffset)
			s.text, s.ready = []byte(sample.AppText+"\r\n"), false
		}
		r := b.run(t.Context(), c, job)
		wantVerdict(t, r, provision.Fail, provision.CauseUnit, "did not boot")
		if len(s.text) != 0 || !strings.Contains(r.NextStep, "no application") {
			t.Errorf("%d bytes of the old text left; next: %s", len(s.text), r.NextStep)
		}
		// And a board that is silent takes all the time that the recipe gives.
		b = newMemoryBench(t)
		c = b.board(espsim.Options{Model: model(t, name)})
		b.at["boot-check"] = func() { c.Power(false) }
		r = b.run(t.Context(), c, job)
		wantVerdict(t, r, provision.Fail, provision.CauseUnit, "did not boot")
		if ms := r.Steps[len(r.Steps)-1].MS; ms < (10*time.Second).Milliseconds() || !strings.Contains(r.NextStep, "power") {
			t.Errorf("after %d ms: %s", ms, r.NextStep)
		}
	})
}
