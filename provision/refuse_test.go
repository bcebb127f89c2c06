package provision_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/recipe"
)

// wantRefused runs the job and wants nothing to have happened but the refusal.
func (b *bench) wantRefused(c *espsim.Chip, job *provision.Job, reason string) *provision.Result {
	b.t.Helper()
	before, keys, writes := c.Fuses(), len(b.metas(c.MAC())), c.Requests(0x02)
	r := b.run(b.t.Context(), c, job)
	if r.Verdict != provision.Fail || r.Cause != provision.CauseRefused || r.ExitCode() != 10 {
		b.t.Errorf("%s (%s, exit %d): %s; want a refusal", r.Verdict, r.Cause, r.ExitCode(), r.Reason)
	}
	if !strings.Contains(r.Reason, reason) || r.Reason == "" || r.NextStep == "" {
		b.t.Errorf("reason %q, next step %q; want %q", r.Reason, r.NextStep, reason)
	}
	if c.Burns() != 0 || !slices.EqualFunc(c.Fuses(), before, slices.Equal) {
		b.t.Errorf("%d burns, fuses %08x", c.Burns(), c.Fuses())
	}
	if n := len(b.metas(c.MAC())); n != keys {
		b.t.Errorf("%d key records, there were %d", n, keys)
	}
	if c.Requests(0x02) != writes {
		b.t.Error("flash was written")
	}
	unit := c.MAC()
	if r.Unit == "" {
		unit = chip.MAC{} // refused before it was read
	}
	v := b.verdicts(unit)
	if len(v) == 0 || v[len(v)-1] != provision.Fail {
		b.t.Errorf("verdicts in the journal: %v", v)
	}
	return r
}

func TestRefusesOtherChip(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		other := map[string]string{"esp32": "esp32c3", "esp32c3": "esp32"}[name]
		r := b.wantRefused(b.board(espsim.Options{Model: model(t, other)}), sampleJob(t, name, "release"), model(t, other).Title)
		if r.Chip != other {
			t.Errorf("the result names chip %s", r.Chip)
		}
	})
}

func TestRefusesRevision(t *testing.T) {
	for _, c := range []struct {
		chip, profile, limits string
		rev                   chip.Revision
		reason                string // empty: allowed
	}{
		{"esp32", "release", "", 102, "v3.0"},
		{"esp32", "closed", "", 299, "v3.0"},
		{"esp32", "release", "", 300, ""},
		{"esp32", "hybrid", "", 102, ""},
		{"esp32", "hybrid", `min_chip_revision: "1.1"`, 100, "v1.1"},
		{"esp32", "hybrid", `max_chip_revision: "3.0"`, 301, "v3.0"},
		{"esp32", "hybrid", `max_chip_revision: "3.0"`, 300, ""},
		{"esp32c3", "release", `min_chip_revision: "0.4"`, 3, "v0.4"},
		{"esp32c3", "release", `min_chip_revision: "0.4"`, 4, ""},
		{"esp32c3", "release", `max_chip_revision: "0.4"`, 101, "v0.4"},
	} {
		inBubble(t, fmt.Sprintf("%s/%s/%s/%s", c.chip, c.profile, c.limits, c.rev), func(t *testing.T) {
			b := newMemoryBench(t)
			if c.chip == "esp32" && c.rev == 299 {
				c.rev = 203 // the highest that v2's bits can say
			}
			// An ESP32's third revision bit stands in a register that is set from v3.0.
			board := b.board(espsim.Options{Model: model(t, c.chip), Revision: c.rev})
			job := edited(t, c.chip, c.profile, "", c.limits)
			if c.reason == "" {
				wantPass(t, b.run(t.Context(), board, job))
				return
			}
			b.wantRefused(board, job, c.reason)
		})
	}
}

func TestRefusesCodingScheme(t *testing.T) {
	inBubble(t, "repeat", func(t *testing.T) {
		b := newMemoryBench(t)
		b.wantRefused(b.board(espsim.Options{Model: model(t, "esp32"), CodingScheme: 2}), sampleJob(t, "esp32", "hybrid"), "repeat")
	})
	// With 3/4 the key block takes 24 bytes, and so the unit gets such a key.
	inBubble(t, "3of4", func(t *testing.T) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, "esp32"), CodingScheme: 1})
		wantPass(t, b.run(t.Context(), c, sampleJob(t, "esp32", "release")))
		key := b.storedKey(unitMAC)
		if len(key) != 24 || !slices.Equal(c.Fuses()[1][:6], words(reversed(key))) {
			t.Errorf("key of %d bytes, BLOCK1 %08x", len(key), c.Fuses()[1])
		}
	})
	// Recovery is no scheme, like none.
	inBubble(t, "recovery", func(t *testing.T) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, "esp32"), CodingScheme: 3})
		before := c.Fuses()
		wantPass(t, b.run(t.Context(), c, sampleJob(t, "esp32", "release")))
		wantFuses(t, c, before, "release", b.storedKey(unitMAC))
	})
}

// notSecurity are the BLOCK0 fields that a customer's board may have set, or that
// the factory does: identity, calibration, pads and supplies. Every other field
// of BLOCK0 must be 0 before the unit is begun.
var notSecurity = map[string][]string{
	"esp32": {
		"MAC", "MAC_CRC", "DISABLE_APP_CPU", "DISABLE_BT", "CHIP_PACKAGE_4BIT", "SPI_PAD_CONFIG_HD", "CHIP_PACKAGE",
		"CHIP_CPU_FREQ_LOW", "CHIP_CPU_FREQ_RATED", "BLK3_PART_RESERVE", "CHIP_VER_REV1", "CLK8M_FREQ", "ADC_VREF",
		"XPD_SDIO_REG", "XPD_SDIO_TIEH", "XPD_SDIO_FORCE", "SPI_PAD_CONFIG_CLK", "SPI_PAD_CONFIG_Q", "SPI_PAD_CONFIG_D",
		"SPI_PAD_CONFIG_CS0", "CHIP_VER_REV2", "VOL_LEVEL_HP_INV", "WAFER_VERSION_MINOR", "DISABLE_SDIO_HOST",
		"CODING_SCHEME",         // has a test of its own
		"CONSOLE_DEBUG_DISABLE", // set by the factory
	},
	"newer": {
		"DIS_TWAI", "JTAG_SEL_ENABLE", "STRAP_JTAG_SEL", "USB_EXCHG_PINS", "USB_DEVICE_EXCHG_PINS", "USB_OTG11_EXCHG_PINS", "USB_PHY_SEL",
		"USB_EXT_PHY_ENABLE", "USB_FORCE_NOPERSIST", "VDD_SPI_AS_GPIO", "VDD_SPI_XPD", "VDD_SPI_TIEH", "VDD_SPI_FORCE",
		"POWERGLITCH_EN", "POWERGLITCH_EN1", "PVT_GLITCH_EN", "PVT_GLITCH_MODE", "WDT_DELAY_SEL", "DIS_WDT", "DIS_SWD",
		"FLASH_TPUW", "FLASH_TYPE", "FLASH_PAGE_SIZE", "FLASH_ECC_EN", "FLASH_ECC_MODE", "PIN_POWER_SELECTION",
		"FORCE_SEND_RESUME", "ERR_RST_ENABLE", "DISABLE_WAFER_VERSION_MAJOR", "DISABLE_BLK_VERSION_MAJOR", "BLOCK0_VERSION",
		"DIS_APP_CPU", "DIS_WIFI6", "CUSTOM_MAC_USED", "SWAP_UART_SDIO_EN", "XTAL_48M_SEL", "XTAL_48M_SEL_MODE", "REPEAT_DATA4",
		"DCDC_VSET", "DCDC_VSET_EN", "HP_PWR_SRC_SEL", "PXA0_TIEH_SEL_0", "PXA0_TIEH_SEL_1", "PXA0_TIEH_SEL_2", "PXA0_TIEH_SEL_3",
		"HYS_EN_PAD", "HYS_EN_PAD0", "HYS_EN_PAD1", "DOWNLOAD_MODE_XPD_ON", "RECOVERY_BOOTLOADER_FLASH_SECTOR",
		"ECC_FORCE_CONST_TIME", "ECDSA_DISABLE_P192", "ECDSA_ENABLE_SOFT_K", "ECDSA_FORCE_USE_HARDWARE_K",
		"SEC_DPA_LEVEL", "XTS_DPA_CLK_ENABLE", "HUK_GEN_STATE", "LOCK_KM_KEY", "FORCE_DISABLE_SW_INIT_KEY",
		"KM_HUK_GEN_STATE", "KM_DEPLOY_ONLY_ONCE", "KM_DISABLE_DEPLOY_MODE", "KM_RND_SWITCH_CYCLE", // no key of it is used
		"ENABLE_SECURITY_DOWNLOAD", "DIS_DOWNLOAD_MODE", // nothing can be read: TestRefusesClosedUnit
	},
}

// notSecurityOf is the list for a chip.
func notSecurityOf(name string) []string {
	if list, ok := notSecurity[name]; ok {
		return list
	}
	return notSecurity["newer"]
}

// TestRefusesSecurityFuses sets every bit of every other field of BLOCK0, one
// after the other.
func TestRefusesSecurityFuses(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		tab, err := table.For(name)
		if err != nil {
			t.Fatal(err)
		}
		tried := 0
		for _, f := range tab.Fields() {
			if f.Block != 0 || strings.Contains(f.Name, ".") || slices.Contains(notSecurityOf(name), f.Name) {
				continue
			}
			for bit := range f.Len() {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				setField(t, c, f, 1<<bit)
				b.wantRefused(c, sampleJob(t, name, "release"), "")
				if t.Failed() {
					t.Fatalf("%s bit %d", f.Name, bit)
				}
				tried++
			}
		}
		t.Logf("%d fuses", tried)
		if want := map[string]int{"esp32": 37, "esp32c3": 94}[name]; tried < want {
			t.Errorf("only %d fuses were tried", tried)
		}
	})
}

func TestRefusesKeyBlock(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, c *espsim.Chip){
		"in use": func(t *testing.T, c *espsim.Chip) {
			if err := c.SetFuse(keyIndex(c.Model().Name), 3, 1<<17); err != nil {
				t.Fatal(err)
			}
		},
		"zeros that are read-protected": func(t *testing.T, c *espsim.Chip) {
			setField(t, c, fieldNamed(t, c, "RD_DIS"), 1)
		},
		"write-protected": func(t *testing.T, c *espsim.Chip) {
			tab, _ := table.For(c.Model().Name)
			setField(t, c, fieldNamed(t, c, "WR_DIS"), 1<<tab.Blocks()[keyIndex(c.Model().Name)].WRDis)
		},
		"purpose set": func(t *testing.T, c *espsim.Chip) {
			setField(t, c, fieldNamed(t, c, "KEY_PURPOSE_0"), 9)
		},
		"purpose write-protected": func(t *testing.T, c *espsim.Chip) {
			setField(t, c, fieldNamed(t, c, "WR_DIS"), 1<<fieldNamed(t, c, "KEY_PURPOSE_0").WRDis)
		},
		"digest of Secure Boot": func(t *testing.T, c *espsim.Chip) {
			block := 5 // KEY1
			if c.Model().EFuse.Kind == chip.EFuseESP32 {
				block = 2
			} else {
				setField(t, c, fieldNamed(t, c, "KEY_PURPOSE_1"), 9)
			}
			if err := c.SetFuse(block, 0, 0xABCD); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, chipName := range twoChips {
			if strings.HasPrefix(name, "purpose") && model(t, chipName).EFuse.Kind != chip.EFuseRS {
				continue // no purposes
			}
			inBubble(t, chipName+"/"+name, func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, chipName)})
				make(t, c)
				b.wantRefused(c, sampleJob(t, chipName, "release"), "")
			})
		}
	}
}

func TestRefusesFlash(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		b.wantRefused(b.board(espsim.Options{Model: model(t, name), FlashSize: 2 << 20}), sampleJob(t, name, "release"), "2048 KB")
	})
}

func TestRefusesKnownUnit(t *testing.T) {
	for _, name := range twoChips {
		inBubble(t, name+"/finished", func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "hybrid")
			wantPass(t, b.run(t.Context(), c, job))
			burns, before := c.Burns(), c.Fuses()
			r := b.run(t.Context(), c, job)
			if r.Cause != provision.CauseRefused || r.ExitCode() != 10 || !strings.Contains(r.Reason, "finished") || r.NextStep == "" {
				t.Errorf("%s (%s): %s", r.Verdict, r.Cause, r.Reason)
			}
			// The same unit again, on a bench whose journal does not know it: its fuses
			// tell, and so does the keystore.
			for _, store := range []keystore.Store{newMemoryStore(true), b.store} {
				other := newMemoryBench(t)
				other.store = store
				r = other.run(t.Context(), c, job)
				if r.Cause != provision.CauseRefused || r.ExitCode() != 10 || r.NextStep == "" {
					t.Errorf("%s (%s): %s", r.Verdict, r.Cause, r.Reason)
				}
			}
			if c.Burns() != burns || !slices.EqualFunc(c.Fuses(), before, slices.Equal) || len(b.metas(unitMAC)) != 1 {
				t.Error("something was burned or stored")
			}
		})
		inBubble(t, name+"/keystore has another job's key", func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			// Another station took custody for another job and went no further.
			ctx, cancel := context.WithCancel(t.Context())
			b.at["burn-key"] = cancel
			b.store = &faultyStore{Store: b.store, fail: func(op string, _ int) (before, after error) {
				if op == "state" {
					return errors.New("power failed"), nil
				}
				return nil, nil
			}}
			if r := b.run(ctx, c, sampleJob(t, name, "hybrid")); r.Verdict == provision.Pass || c.Burns() != 0 {
				t.Fatalf("%s with %d burns", r.Verdict, c.Burns())
			}
			// It began a burn, so its own station gives the unit to no other job.
			b.store = b.store.(*faultyStore).Store
			b.at = map[string]func(){}
			b.wantRefused(c, sampleJob(t, name, "release"), "another job")
			other := newMemoryBench(t)
			other.store, other.station = b.store, "line2"
			if len(other.metas(unitMAC)) != 1 {
				t.Fatal("no key record")
			}
			other.wantRefused(c, sampleJob(t, name, "release"), "keystore")
			other.wantAlive(1)
		})
		inBubble(t, name+"/keystore has a key of another job that may be burned", func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			r := keystoretest.NewRecord(t, unitMAC)
			r.Job, r.Station = "another", "bench"
			if _, err := b.store.Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if _, err := b.store.AddState(t.Context(), unitMAC, r.Fingerprint, keystore.State{Kind: keystore.MayBeInSilicon, Job: r.Job}); err != nil {
				t.Fatal(err)
			}
			b.wantRefused(c, sampleJob(t, name, "release"), "keystore")
			b.wantAlive(1)
		})
		inBubble(t, name+"/another job only looked", func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			ctx, cancel := context.WithCancel(t.Context())
			b.at["flash"] = cancel
			if r := b.run(ctx, c, sampleJob(t, name, "hybrid")); r.Verdict != provision.Aborted {
				t.Fatalf("%s: %s", r.Verdict, r.Reason)
			}
			b.at = map[string]func(){}
			wantPass(t, b.run(t.Context(), c, sampleJob(t, name, "release")))
		})
		inBubble(t, name+"/quarantined", func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "hybrid")
			b.at["boot-check"] = func() {
				setField(t, c, fieldNamed(t, c, model(t, name).Lockdown.WriteProtect[0]), 1)
			}
			if r := b.run(t.Context(), c, job); r.Verdict != provision.Quarantined {
				t.Fatalf("%s: %s", r.Verdict, r.Reason)
			}
			burns := c.Burns()
			b.at = map[string]func(){}
			for _, job := range []*provision.Job{job, sampleJob(t, name, "release")} {
				r := b.run(t.Context(), c, job)
				wantVerdict(t, r, provision.Quarantined, provision.CauseQuarantined, "quarantined")
				if r.ExitCode() != 11 || c.Burns() != burns {
					t.Errorf("exit %d, %d burns more", r.ExitCode(), c.Burns()-burns)
				}
			}
		})
	}
}

// TestRefusesClosedUnit: a unit whose last fuse is burned cannot be looked at.
func TestRefusesClosedUnit(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, profile := range []string{"release", "closed"} {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, profile)
			wantPass(t, b.run(t.Context(), c, job))
			before, burns := c.Fuses(), c.Burns()
			r := b.run(t.Context(), c, job)
			if r.Cause != provision.CauseRefused || r.ExitCode() != 10 || !r.LoaderClosed || r.Reason == "" || r.NextStep == "" {
				t.Errorf("%s: %s (%s): %s", profile, r.Verdict, r.Cause, r.Reason)
			}
			if c.Burns() != burns || !slices.EqualFunc(c.Fuses(), before, slices.Equal) {
				t.Error("something was burned")
			}
			if v := b.verdicts(chip.MAC{}); len(v) != 1 {
				t.Errorf("verdicts on a unit that cannot be named: %v", v)
			}
		}
	})
}

// TestRefusesImages shows two of layout's refusals on their way to an exit code,
// and how a wrong recipe differs.
func TestRefusesImages(t *testing.T) {
	write := func(t *testing.T, name string, change func(files map[string][]byte)) (*provision.Job, error) {
		t.Helper()
		dir := t.TempDir()
		path, err := sample.Write(dir, sample.Product{Chip: model(t, name), Profile: "hybrid"})
		if err != nil {
			t.Fatal(err)
		}
		build := filepath.Join(dir, "build-"+name)
		files := map[string][]byte{}
		for _, f := range []string{"bootloader.bin", "app.bin", "../sample-" + name + ".yaml"} {
			if files[f], err = os.ReadFile(filepath.Join(build, f)); err != nil {
				t.Fatal(err)
			}
		}
		change(files)
		for f, b := range files {
			if err := os.WriteFile(filepath.Join(build, f), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r, err := recipe.Load(path)
		if err != nil {
			return nil, err
		}
		return provision.NewJob(r)
	}
	for _, name := range twoChips {
		for what, change := range map[string]func(map[string][]byte){
			"checksum": func(f map[string][]byte) { f["app.bin"][0x100] ^= 1 },
			"chip":     func(f map[string][]byte) { f["bootloader.bin"][12] ^= 9 },
		} {
			_, err := write(t, name, change)
			var refusal *layout.Refusal
			var wrong *recipe.Error
			if !errors.As(err, &refusal) || errors.As(err, &wrong) || refusal.Reason == "" || refusal.NextStep == "" {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		for what, change := range map[string]func(map[string][]byte){
			"key twice": func(f map[string][]byte) {
				y := "../sample-" + name + ".yaml"
				f[y] = append(f[y], "revision: 2\n"...)
			},
			"no such image": func(f map[string][]byte) {
				y := "../sample-" + name + ".yaml"
				f[y] = bytes.Replace(f[y], []byte("build: "), []byte("build: nowhere-"), 1)
			},
		} {
			_, err := write(t, name, change)
			var refusal *layout.Refusal
			var wrong *recipe.Error
			if errors.As(err, &refusal) || !errors.As(err, &wrong) || wrong.File == "" {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// TestRefusesTestUnits: a store for real units takes no simulated one, and says so
// before anything is burned.
func TestRefusesTestUnits(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		b.store = newMemoryStore(false)
		c := b.board(espsim.Options{Model: model(t, name)})
		r := b.run(t.Context(), c, sampleJob(t, name, "release"))
		wantVerdict(t, r, provision.Fail, provision.CauseRefused, "simulated")
		if c.Burns() != 0 || r.ExitCode() != 10 {
			t.Errorf("%d burns, exit %d", c.Burns(), r.ExitCode())
		}
	})
}

// TestOtherJob: a board on which nothing irreversible was begun takes another recipe,
// whatever an earlier job wrote to its flash or stored for it. From the first burn on
// it takes none.
func TestOtherJob(t *testing.T) {
	for _, step := range []string{"flash", "verify-flash", "custody", "burn-key", "protect-key", "enable-encryption"} {
		for _, name := range twoChips {
			inBubble(t, name+"/"+step, func(t *testing.T) {
				b, s := newReservingBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				before, first, second := c.Fuses(), sampleJob(t, name, "hybrid"), sampleJob(t, name, "release")
				ctx, cancel := context.WithCancel(t.Context())
				if step == "burn-key" { // custody is taken, and the process ends before the burn
					b.store = &faultyStore{Store: s, fail: func(op string, _ int) (error, error) {
						if op == "confirm" {
							cancel()
						}
						return nil, nil
					}}
				} else {
					b.at[step] = cancel
				}
				wantVerdict(t, b.run(ctx, c, first), provision.Aborted, provision.CauseCancelled, "")
				b.store = s
				if c.Burns() > 0 {
					burns := c.Burns()
					r := b.again(c, second)
					wantVerdict(t, r, provision.Fail, provision.CauseRefused, "another job")
					if c.Burns() != burns {
						t.Error("something was burned")
					}
					b.wantAlive(1)
					wantPass(t, b.again(c, first))
					return
				}
				r := b.again(c, second)
				wantPass(t, r)
				if err := b.invariants(c, second, before, r); err != nil {
					t.Error(err)
				}
				if alive, gone := b.keysAlive(); alive != 1 || gone != 1 { // at least reserved
					t.Errorf("%d keys, %d given up", alive, gone)
				}
				// The first job does not get it back.
				wantVerdict(t, b.again(c, first), provision.Fail, provision.CauseRefused, "")
			})
		}
	}
}
