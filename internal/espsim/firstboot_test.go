package espsim

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/sample"
)

// A new board with images in plaintext, whose bootloader was built with flash
// encryption, locks itself at its first boot and never again.
func TestFirstBootEncrypts(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		synctest.Test(t, func(t *testing.T) {
			c := newChip(t, Options{Model: m, AppPrints: "app says hello", Build: bootrom.Build{FlashEncryption: true}})
			files, err := sample.Files(sample.Product{Chip: m})
			if err != nil {
				t.Fatal(err)
			}
			for at, data := range files {
				if err := c.Flash().Program(at, data); err != nil {
					t.Fatal(err)
				}
			}
			burns := c.Burns()
			c.ResetInto(false)
			if c.State() != bootrom.Running || !bytes.Contains(c.BootText(), []byte("Flash encryption mode is RELEASE")) {
				t.Fatalf("state %v:\n%s", c.State(), c.BootText())
			}
			if n := c.BootBurns(); n == 0 || c.Burns() != burns+n {
				t.Errorf("boot code burned %d blocks, the controller %d", n, c.Burns()-burns)
			}
			first := make([]byte, 16)
			if _, err := c.Flash().ReadAt(first, int64(m.BootloaderOffset)); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(first, files[m.BootloaderOffset][:16]) {
				t.Error("the bootloader is still in plaintext")
			}
			burns = c.BootBurns()
			c.ResetInto(false)
			if c.State() != bootrom.Running || c.BootBurns() != burns {
				t.Errorf("second boot: %v, %d more burns", c.State(), c.BootBurns()-burns)
			}
			for i := range c.Fuses() {
				if c.Damaged(i) {
					t.Errorf("block %d is damaged", i)
				}
			}
		})
	})
}

// A locked SECURE_VERSION stays as it is: WR_DIS bit 18 of most chips, which a host
// must not burn when anti-rollback is to go on counting (esp-facts B.7).
func TestSecureVersionLock(t *testing.T) {
	eachChip(t, func(t *testing.T, m chip.Model) {
		for _, locked := range []bool{false, true} {
			c := newChip(t, Options{Model: m})
			if locked {
				fd, _ := c.tab.Field("SECURE_VERSION")
				lock := fd.WRDis
				if lock < 0 { // the ESP32's is a block's
					lock = c.fuse.blocks[fd.Block].WRDis
				}
				if err := c.SetFuse(0, 0, 1<<lock); err != nil {
					t.Fatal(err)
				}
				c.fuse.load()
			}
			if err := c.raiseSecureVersion(2); err != nil {
				t.Fatal(err)
			}
			if got, want := c.secureVersion(), map[bool]uint32{false: 2}[locked]; got != want {
				t.Errorf("locked %v: version %d", locked, got)
			}
		}
	})
}
