package espsim

import (
	"context"
	"fmt"
	"time"

	"github.com/provisiond/provisiond/internal/espsim/bootrom"
)

// Times of the board.
const (
	// enRise is how long EN takes to rise: the RC circuit on every board. The
	// classic reset sequence needs it, since it lets go of EN a moment before it
	// pulls the strap.
	enRise = 10 * time.Millisecond
	// loopPause separates the rounds of a boot loop, appPause those of an app.
	loopPause = 50 * time.Millisecond
	appPause  = time.Second
)

// Reset reasons (ESP32 TRM 4.1, ESP32-C3 TRM 6.1).
const resetPowerOn = 1

// SetLines asserts (true) or releases DTR and RTS. A board with a UART adapter
// has the usual two transistors: RTS alone pulls EN low, DTR alone pulls the
// strap low, both together do nothing.
func (c *Chip) SetLines(_ context.Context, dtr, rts bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.lineError(); err != nil {
		return err
	}
	c.setLines(dtr, rts)
	return nil
}

func (c *Chip) setLines(dtr, rts bool) {
	if c.opt.USBSerial {
		c.usbLines(dtr, rts)
		return
	}
	c.dtr, c.rts = dtr, rts
	low := rts && !dtr
	switch {
	case low && !c.held && c.ignored < c.faults.IgnoreResets:
		c.ignored++
	case low:
		c.hold()
	case c.held && c.rising == nil:
		var t *time.Timer
		t = time.AfterFunc(enRise, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.rising == t {
				c.release()
			}
		})
		c.rising = t
	}
}

// usbLines is how the USB-Serial-JTAG unit takes the lines (ESP32-C3 TRM 30,
// "CDC-ACM Firmware Interface"): DTR alone arms the download mode, neither
// disarms it, RTS alone resets, both do nothing.
func (c *Chip) usbLines(dtr, rts bool) {
	was := c.rts && !c.dtr
	c.dtr, c.rts = dtr, rts
	switch {
	case dtr && !rts:
		c.usbFlag = true
	case !dtr && !rts:
		c.usbFlag = false
	case dtr || was || !c.supply:
	case c.ignored < c.faults.IgnoreResets:
		c.ignored++
	default:
		c.strap = c.usbFlag
		c.coreReset(c.si.USBReset)
	}
}

// hold is EN low.
func (c *Chip) hold() {
	if c.rising != nil {
		c.rising.Stop()
		c.rising = nil
	}
	c.held = true
	c.stop()
}

// release is EN high: the chip samples its strap and starts.
func (c *Chip) release() {
	c.rising, c.held = nil, false
	c.start(c.strapLow(), resetPowerOn)
}

// strapLow reports whether the strapping pin is low now.
func (c *Chip) strapLow() bool {
	return c.pulled || !c.opt.USBSerial && c.dtr && !c.rts
}

// bootRate is the rate of what the chip prints after a reset.
func (c *Chip) bootRate() int {
	if c.si.FixedRate {
		return romBaud * c.opt.Crystal / c.si.ROMCrystal(c.revision)
	}
	return romBaud
}

// stop ends whatever runs.
func (c *Chip) stop() {
	c.state = 0
	if c.watchdog != nil {
		c.watchdog.Stop()
		c.watchdog = nil
	}
	if c.loop != nil {
		c.loop.Stop()
		c.loop = nil
	}
	c.endWrite()
	c.ld = loader{}
}

// start is a reset that samples the strap.
func (c *Chip) start(strap bool, reason int) {
	c.strap = strap
	c.coreReset(reason)
}

// coreReset is a reset that keeps the strap as it was sampled.
func (c *Chip) coreReset(reason int) {
	c.stop()
	if !c.supply || c.held || c.closed {
		return
	}
	c.fuse.reset()
	c.regs = c.resetRegisters()
	c.rate = c.bootRate()
	c.boot = c.runBootCode(reason)
	c.resets++
	c.state = c.boot.State
	if c.loading() && c.loaderCrashes() {
		c.state = bootrom.Halted
	}
	c.ld = loader{flashSize: romFlashSize, secure: c.state == bootrom.SecureDownload}
	c.emit(c.boot.Text)
	c.armLoop()
}

// bootRounds is how often boot code may change something and reset in a row.
const bootRounds = 4

// runBootCode boots, makes the changes that boot code makes, and boots again as
// often as it asks for that.
func (c *Chip) runBootCode(reason int) bootrom.Output {
	var text []byte
	for range bootRounds {
		out := bootrom.Boot(c.bootInput(reason))
		c.settleBoot(out)
		text = append(text, out.Text...)
		if out.State != bootrom.Restarting {
			out.Text = text
			return out
		}
		reason = out.Again
	}
	return bootrom.Output{Text: text, State: bootrom.Looping}
}

// bootInput is the chip as a boot finds it.
func (c *Chip) bootInput(reason int) bootrom.Input {
	return bootrom.Input{
		Model: c.model.At(c.revision), Revision: c.revision,
		Flash: c.flash, FlashSize: c.flash.Size(),
		FlashCryptCount:  uint32(c.fuse.field(c.model.EFuse.FlashCryptCount)),
		FlashCryptConfig: uint32(c.fuse.field("FLASH_CRYPT_CONFIG")),
		Key:              c.fuse.flashKey(),
		EFuses:           bootrom.EFuses{Table: c.tab, Words: c.fuse.shown},
		Build:            c.opt.Build,
		NewKey:           c.newKey(),
		DownloadStrap:    c.strap,
		DownloadDisabled: c.downloadDisabled(),
		SecureDownload:   c.secureDownload(),
		ResetReason:      reason,
		AppPrints:        c.opt.AppPrints,
		UARTPrintOff:     c.si.PrintControl != "" && c.fuse.field(c.si.PrintControl) == 3,
		Rollback:         c.opt.Rollback, AntiRollback: c.opt.AntiRollback,
		SecureVersion: c.secureVersion(),
	}
}

// newKey is what the chip's random numbers would give the bootloader.
func (c *Chip) newKey() []byte {
	if !c.opt.Build.FlashEncryption {
		return nil
	}
	key := make([]byte, 64)
	for i, r := 0, seeded(c.opt.Seed, 5); i < len(key); i++ {
		key[i] = byte(r.Uint32())
	}
	return key
}

// loaderCrashes is what a mask ROM does when it enters its loader in a state that
// the errata warn of. It also settles whether the flash has its supply.
func (c *Chip) loaderCrashes() bool {
	p := c.si.FlashPower
	if p.Off == nil || !p.Off(c.revision) {
		c.flashOn = true
	} else if c.revision >= p.ByROMSince && c.fuse.field(p.ByROM) != 0 {
		if c.forced {
			return true // ROM-816: the supply is switched on a second time
		}
		c.flashOn, c.forced = true, true
		c.regs[p.Force] |= 3
	}
	pair := c.si.CrashPair
	if pair[0] != "" && c.fuse.field(pair[0]) != 0 && c.fuse.field(pair[1]) != 0 {
		return true
	}
	return c.opt.USBSerial && c.fuse.field(c.si.USBDownload) != 0
}

// hang is a chip that does nothing any more until a reset.
func (c *Chip) hang() {
	c.stop()
	c.state = bootrom.Halted
}

func (c *Chip) downloadDisabled() bool {
	return c.fuse.field(c.si.DisableDownload) != 0 && c.revision >= c.model.Lockdown.ClosedMinimum
}

func (c *Chip) secureDownload() bool {
	return c.si.SecureDownload != "" && c.fuse.field(c.si.SecureDownload) != 0
}

// loading reports whether the serial loader runs.
func (c *Chip) loading() bool {
	return c.state == bootrom.Download || c.state == bootrom.SecureDownload
}

// armLoop prints what comes again and again: a boot loop, or an app that was
// asked for. It pauses while nobody reads, as a full buffer would make it.
func (c *Chip) armLoop() {
	text, pause := c.boot.Loop, loopPause
	if c.state == bootrom.Running && c.opt.AppLoop && c.opt.AppPrints != "" {
		text, pause = []byte(c.opt.AppPrints+"\r\n"), appPause
	}
	if len(text) == 0 || c.state != bootrom.Looping && c.state != bootrom.Running || c.loop != nil || len(c.out) > loopBuffer {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(pause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.loop != t {
			return
		}
		c.loop = nil
		c.emit(text)
		c.armLoop()
	})
	c.loop = t
}

// Power switches the board's supply. Without it the port stays, and is silent.
func (c *Chip) Power(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || on == c.supply:
	case on:
		c.powerOn()
	default:
		c.powerOff()
	}
}

func (c *Chip) powerOn() {
	c.supply = true
	c.start(c.strapLow(), resetPowerOn)
}

func (c *Chip) powerOff() {
	c.supply, c.flashOn, c.forced = false, false, false
	c.stop()
}

// ResetInto pulses EN with the strap low (download) or high, whatever the lines
// do: the fixture's or the operator's reset.
func (c *Chip) ResetInto(download bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || !c.supply || c.held:
	case c.ignored < c.faults.IgnoreResets:
		c.ignored++
	default:
		c.start(download, resetPowerOn)
	}
}

// HoldStrap pulls the strapping pin low from outside, as a pressed BOOT button
// does, or lets it go. It counts at the next reset.
func (c *Chip) HoldStrap(low bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pulled = low
}

// Status says in one line how the board stands.
func (c *Chip) Status() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var what string
	switch {
	case !c.supply:
		what = "power off"
	case c.state == 0:
		what = "held in reset"
	default:
		what = c.state.String()
	}
	port := "port open"
	switch {
	case !c.plugged:
		port = "port unplugged"
	case !c.open:
		port = "port plugged in, not opened"
	}
	return fmt.Sprintf("%s %s: %s; %s; %d baud; %d register writes, %d burns",
		c.model.Name, c.revision, what, port, c.rate, c.writes, c.fuse.burns)
}

// Unplug takes the port away. Host calls fail with ErrUnplugged until it is
// plugged in and reopened. The lines let go; the board keeps its power.
func (c *Chip) Unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unplug()
}

func (c *Chip) unplug() {
	c.plugged, c.open = false, false
	c.out = nil
	c.setLines(false, false)
	c.wakeReaders()
}

// Plug brings the port back; the host must reopen it.
func (c *Chip) Plug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plugged = true
}
