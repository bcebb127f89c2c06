package espsim

import (
	"math/bits"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
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
		return uint32(max(c.si.Crystal/uint64(max(c.rate, 1)), 1)) - 1
	}
	if v, ok := c.si.Fixed[addr]; ok {
		if r := c.model.EFuse.RevisionBit2Register; r != 0 && addr == r && c.revision >= 300 {
			v |= 1 << 31
		}
		return v
	}
	return c.regs[addr]
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
	c.ld.burning = slices.ContainsFunc(c.si.Timing, func(t chip.RegWrite) bool { return t.Addr == addr })
	if addr == c.model.SPI.Cmd && v&spiCmdUser != 0 {
		c.flashCommand(c.model.SPI)
	}
	if _, kept := c.regs[addr]; kept {
		c.regs[addr] = v
	}
}

// timingGood reports whether the eFuse timing is right for this chip's crystal.
func (c *Chip) timingGood() bool {
	for _, t := range c.si.Timing {
		if c.regs[t.Addr]&t.Mask != t.Value {
			return false
		}
	}
	return true
}

// flashCommand runs what the SPI1 registers describe. Of the flash's commands
// only the id has an answer; every other one reads as zeros.
func (c *Chip) flashCommand(spi chip.SPI) {
	usr := c.regs[spi.Usr]
	if usr&spiUserMISO == 0 {
		return
	}
	var v uint32
	if usr&spiUserCommand != 0 && c.regs[spi.Usr2]&0xFF == flashReadID && c.ld.attached {
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
