package espsim

import (
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

// Bits of the SPI1 controller (ESP32 TRM 7, registers SPI_CMD, SPI_USER, SPI_USER2).
const (
	spiCmdUser     = 1 << 18
	spiUserCommand = 1 << 31
	spiUserMISO    = 1 << 28
	flashReadID    = 0x9F
)

// readRegister is what a READ_REG sees. Where there is nothing it is 0.
func (c *Chip) readRegister(addr uint32) uint32 {
	if v, ok := c.fuse.read(addr); ok {
		return v
	}
	if addr == c.model.UART.ClkDiv {
		// One below the quotient, as the ROM's own measurement left it in the transcript.
		return uint32(max(c.crystal()/uint64(max(c.rate, 1)), 1)) - 1
	}
	if r := c.si.ROMCrystalReg; r != 0 && addr == r {
		return uint32(c.si.ROMCrystal(c.revision)) << 24
	}
	if v, ok := c.si.Fixed[addr]; ok {
		if r := c.model.EFuse.RevisionBit2Register; r != 0 && addr == r && c.revision >= 300 {
			v |= 1 << 31
		}
		return v
	}
	return c.regs[addr]
}

// crystal is the board's crystal in Hz.
func (c *Chip) crystal() uint64 { return uint64(c.opt.Crystal) * 1_000_000 }

// resetRegisters are the registers that keep what is written, as a reset leaves
// them: those of the SPI controller and the eFuse timing, and the chip's own.
func (c *Chip) resetRegisters() map[uint32]uint32 {
	regs := map[uint32]uint32{}
	spi, ef, w := c.model.SPI, c.model.EFuse, c.si.Watchdog
	for _, a := range []uint32{
		spi.Cmd + 4, spi.MOSIDLen, spi.MISODLen, spi.W0,
		ef.Clk, ef.DACConf, ef.RdTimConf, ef.WrTimConf0, ef.WrTimConf1, ef.WrTimConf2,
		w.Config, w.Timeout, w.Protect,
	} {
		if a != 0 {
			regs[a] = 0
		}
	}
	// As the transcript of the ESP32-C3 has them.
	regs[spi.Usr], regs[spi.Usr1], regs[spi.Usr2] = 0x800000C0, 0x5C000007, 0x70000000
	maps.Copy(regs, c.si.Reset)
	return regs
}

// writeRegister is one group of a WRITE_REG.
func (c *Chip) writeRegister(addr, value, mask uint32) {
	c.writes++
	cut := c.faults.PowerAtWrite != 0 && c.writes == c.faults.PowerAtWrite
	unplug := c.faults.UnplugAtWrite != 0 && c.writes == c.faults.UnplugAtWrite
	if mask != 0xFFFFFFFF {
		value = c.readRegister(addr)&^mask | value&mask
	}
	if !cut || addr == c.model.EFuse.Cmd {
		c.storeRegister(addr, value, cut)
	}
	if cut {
		c.powerOff()
	}
	if unplug {
		c.unplug()
	}
}

func (c *Chip) storeRegister(addr, v uint32, cut bool) {
	burns := c.fuse.burns
	if c.fuse.write(addr, v, c.timingGood(), cut) {
		c.ld.burning = true
		if c.fuse.burns != burns {
			c.changes++
		}
		return
	}
	c.ld.burning = slices.ContainsFunc(c.timing(), func(t chip.RegWrite) bool { return t.Addr == addr })
	if addr == c.model.SPI.Cmd && v&spiCmdUser != 0 {
		c.flashCommand(c.model.SPI)
	}
	if c.watchdogWrite(addr, v) {
		return
	}
	if _, kept := c.regs[addr]; kept {
		c.regs[addr] = v
	}
	c.flashPowerWrite(addr)
}

// watchdogTick is how long a tick of the RTC watchdog is: a slow clock of 136 kHz.
const watchdogTick = time.Second / 136_000

// watchdogWrite is a write to the RTC watchdog, which heeds writes only while it is
// unlocked, and may be told to reset the chip.
func (c *Chip) watchdogWrite(addr, v uint32) bool {
	w := c.si.Watchdog
	switch {
	case w.Config == 0, addr != w.Config && addr != w.Timeout && addr != w.Protect:
		return false
	case addr != w.Protect && c.regs[w.Protect] != silicon.WatchdogKey:
		return true
	}
	c.regs[addr] = v
	if addr != w.Config {
		return true
	}
	if c.watchdog != nil {
		c.watchdog.Stop()
		c.watchdog = nil
	}
	if w.Resets(v) {
		var t *time.Timer
		t = time.AfterFunc(time.Duration(c.regs[w.Timeout])*watchdogTick, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.watchdog == t && c.supply && !c.held {
				c.start(c.strapLow(), silicon.WatchdogReset)
			}
		})
		c.watchdog = t
	}
	return true
}

// flashPowerWrite follows the registers of the flash's supply.
func (c *Chip) flashPowerWrite(addr uint32) {
	p := c.si.FlashPower
	if p.Force == 0 || addr != p.Force && addr != p.LDO {
		return
	}
	c.forced = c.regs[p.Force]&3 == 3
	if c.forced && c.regs[p.LDO]&(1<<7) != 0 {
		c.flashOn = true
	}
}

// timing is what has to stand in the eFuse controller.
func (c *Chip) timing() []chip.RegWrite {
	if c.si.Timing == nil {
		return nil
	}
	return c.si.Timing(c.opt.Crystal)
}

// timingGood reports whether the eFuse timing is right for this chip's crystal.
func (c *Chip) timingGood() bool {
	good, untouched := true, true
	for _, t := range c.timing() {
		good = good && c.regs[t.Addr]&t.Mask == t.Value
		untouched = untouched && c.regs[t.Addr]&t.Mask == 0
	}
	return good || c.si.TimingOrReset && untouched
}

// flashCommand runs what the SPI1 registers describe. Of the flash's commands
// only the id has an answer; every other one reads as zeros.
func (c *Chip) flashCommand(spi chip.SPI) {
	usr := c.regs[spi.Usr]
	if usr&spiUserMISO == 0 {
		return
	}
	var v uint32
	if usr&spiUserCommand != 0 && c.regs[spi.Usr2]&0xFF == flashReadID && c.ld.attached && c.flashOn {
		v = c.jedecID()
	}
	if n := c.regs[spi.MISODLen] & 0x1F; n < 31 {
		v &= 1<<(n+1) - 1
	}
	c.regs[spi.W0] = v
}

// jedecID is a GigaDevice GD25Q part of the flash's size, its first byte lowest.
func (c *Chip) jedecID() uint32 {
	return 0xC8 | 0x40<<8 | uint32(bits.Len32(c.flash.Size())-1)<<16
}
