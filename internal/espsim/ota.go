package espsim

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

// ErrNoApp says that no app runs, or that the chip was reset since: what ran before
// a reset runs no more.
var ErrNoApp = errors.New("this app does not run on the simulated chip")

// ErrGuarded says that an app tried to change its own code, which ESP-IDF's flash
// driver aborts on (CONFIG_SPI_FLASH_DANGEROUS_WRITE_ABORTS).
var ErrGuarded = errors.New("the running app's own partition is not written")

// App is what runs on a chip, with the board as its code sees it: raw flash, and
// ESP-IDF's functions for updates. It ends with the next reset or loss of power;
// every method then fails with ErrNoApp.
type App struct {
	c    *Chip
	boot int
	run  bootrom.Partition
}

// App gives the app that runs now.
func (c *Chip) App() (*App, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != bootrom.Running {
		return nil, fmt.Errorf("%w: the chip is in state %q", ErrNoApp, c.state)
	}
	return &App{c: c, boot: c.resets, run: c.boot.App}, nil
}

// do runs f on the chip while the app runs.
func (a *App) do(f func() error) error {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	if a.c.state != bootrom.Running || a.c.resets != a.boot {
		return ErrNoApp
	}
	return f()
}

func (a *App) apps(f func(*bootrom.Apps) error) error {
	return a.do(func() error {
		apps, err := bootrom.OpenApps(a.c.bootInput(0), a.run)
		if err != nil {
			return err
		}
		return f(apps)
	})
}

// Running is the partition that the app runs from.
func (a *App) Running() bootrom.Partition { return a.run }

// Next is esp_ota_get_next_update_partition.
func (a *App) Next() (p bootrom.Partition, err error) {
	err = a.apps(func(apps *bootrom.Apps) error {
		p, err = apps.Next()
		return err
	})
	return p, err
}

// State is esp_ota_get_state_partition.
func (a *App) State(p bootrom.Partition) (s bootrom.OTAState, err error) {
	err = a.apps(func(apps *bootrom.Apps) error {
		s, err = apps.State(p)
		return err
	})
	return s, err
}

// Erase is esp_partition_erase_range by flash address.
func (a *App) Erase(addr, size uint32) error {
	return a.change(addr, size, func() error { return a.c.flash.Erase(addr, size) })
}

// Program is esp_partition_write_raw by flash address: nothing is encrypted.
func (a *App) Program(addr uint32, raw []byte) error {
	return a.change(addr, uint32(len(raw)), func() error { return a.c.flash.Program(addr, raw) })
}

func (a *App) change(addr, size uint32, f func() error) error {
	return a.do(func() error {
		if uint64(addr) < uint64(a.run.Offset)+uint64(a.run.Size) && uint64(a.run.Offset) < uint64(addr)+uint64(size) {
			return fmt.Errorf("%w: 0x%x bytes at 0x%x", ErrGuarded, size, addr)
		}
		a.c.changes++
		return f()
	})
}

// ReadRaw is esp_partition_read_raw by flash address: nothing is decrypted.
func (a *App) ReadRaw(p []byte, addr uint32) error {
	return a.do(func() error {
		_, err := a.c.flash.ReadAt(p, int64(addr))
		return err
	})
}

// Read is esp_partition_read of an encrypted partition, by flash address.
func (a *App) Read(addr, n uint32) (data []byte, err error) {
	err = a.apps(func(apps *bootrom.Apps) error {
		data, err = apps.Read(addr, n)
		return err
	})
	return data, err
}

// SetBoot is esp_ota_set_boot_partition: the image is checked through the chip's
// own decryption before otadata is written. The text is what the check logged. A
// refusal wraps an error of package bootrom. Each write of the flash is told to
// before, which may fail in its place.
func (a *App) SetBoot(p bootrom.Partition, before func(bootrom.Write) error) (text string, err error) {
	err = a.apps(func(apps *bootrom.Apps) error {
		writes, said, err := apps.SetBoot(p)
		text = said
		return errors.Join(a.c.store(writes, before), err)
	})
	return text, err
}

// Confirm is esp_ota_mark_app_valid_cancel_rollback.
func (a *App) Confirm() error {
	return a.apps(func(apps *bootrom.Apps) error {
		writes, burn := apps.MarkValid()
		if err := a.c.store(writes, nil); err != nil {
			return err
		}
		return a.c.raiseSecureVersion(burn)
	})
}

// Refuse is esp_ota_mark_app_invalid_rollback: the next boot takes another app.
func (a *App) Refuse() error {
	return a.apps(func(apps *bootrom.Apps) error {
		writes, err := apps.MarkInvalid()
		return errors.Join(a.c.store(writes, nil), err)
	})
}

// store does the writes of a boot or an app.
func (c *Chip) store(writes []bootrom.Write, before func(bootrom.Write) error) error {
	for _, w := range writes {
		if before != nil {
			if err := before(w); err != nil {
				return err
			}
		}
		c.changes++
		if err := c.flash.EraseSector(w.Sector); err != nil {
			return err
		}
		if err := c.flash.Program(w.Sector, w.Data); err != nil {
			return err
		}
	}
	return nil
}

// settleBoot does what boot code wrote and burned.
func (c *Chip) settleBoot(out bootrom.Output) {
	if err := c.store(out.Writes, nil); err != nil {
		panic(fmt.Sprintf("espsim: what the second stage writes lies in the flash: %v", err))
	}
	for _, b := range out.Burns {
		c.fuse.program(b.Block, b.Words)
		c.bootBurns++
		c.changes++
	}
	if len(out.Burns) > 0 {
		c.fuse.load()
	}
	_ = c.raiseSecureVersion(out.SecureVersion) // the second stage goes on, as ESP-IDF's does
}

// secureVersion is the number of bits set in the anti-rollback field.
func (c *Chip) secureVersion() uint32 {
	return uint32(bits.OnesCount64(c.fuse.field("SECURE_VERSION")))
}

// raiseSecureVersion burns the lowest bits of the field; 0 burns nothing.
func (c *Chip) raiseSecureVersion(to uint32) error {
	if to == 0 {
		return nil
	}
	v := uint64(1)<<min(to, 63) - 1
	if !c.fuse.fits("SECURE_VERSION", v) {
		return fmt.Errorf("%s has no %d bits for a secure version", c.model.Title, to)
	}
	fd, _ := c.tab.Field("SECURE_VERSION")
	words := make([]uint32, c.fuse.blocks[fd.Block].Words)
	for i, bit := range fd.Bits() {
		words[bit/32] |= uint32(v>>i&1) << (bit % 32)
	}
	c.changes++
	c.fuse.program(fd.Block, words) // heeds WR_DIS
	c.fuse.load()
	return nil
}
