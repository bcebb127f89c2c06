package bootrom

import (
	"bytes"
	"fmt"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim/silicon"
)

// Boot resets the chip and says what it prints, where it ends and what it changes.
// It reads the flash and changes nothing itself. It panics on an Input that no chip
// can be in: a model without a ROM here, or a key of the wrong length.
func Boot(in Input) Output {
	if in.ResetReason == 0 {
		in.ResetReason = resetPowerOn
	}
	if in.PartitionTable == 0 {
		in.PartitionTable = DefaultPartitionTable
	}
	b := newBoot(in)
	b.banner(in.ResetReason)
	if in.DownloadStrap {
		state := b.download()
		return Output{Text: b.out.Bytes(), State: state}
	}
	again := b.run()
	out := Output{
		Text: bytes.Clone(b.out.Bytes()), State: Running, App: b.app,
		Burns: b.fuses.burned(), Writes: b.writes, SecureVersion: b.burn,
	}
	if again != 0 {
		out.App = Partition{}
	}
	switch {
	case again != 0 && out.changes():
		out.State, out.Again = Restarting, again
	case again != 0:
		b.out.Reset()
		b.banner(again)
		b.run()
		out.State = Looping
		if b.out.Len() > 0 {
			out.Loop = b.out.Bytes()
		}
	}
	return out
}

func newBoot(in Input) *boot {
	si, err := silicon.Of(in.Model.Name)
	if err != nil {
		panic("bootrom: " + err.Error())
	}
	return &boot{in: in, si: si, rom: si.ROM(in.Revision), flash: newFlashView(in), fuses: newFuseView(in.EFuses)}
}

// Reset reasons that a boot itself can cause, the same in the ROMs of all chips.
const (
	resetPowerOn  = 0x01
	resetSoftware = 0x03 // the second stage gave up
)

// headerTries is how often the ROM reads a bad header before the watchdog bites.
// Public boot logs show seven to eleven.
const headerTries = 8

// boot is one chip on its way from a reset to an app.
type boot struct {
	in     Input
	si     *silicon.Silicon
	rom    silicon.ROM
	flash  *flashView
	fuses  *fuseView
	out    bytes.Buffer
	clock  int                  // milliseconds in the second stage's log lines
	scheme chip.SignatureScheme // see buildScheme
	again  int                  // reason of a reset that the second stage asks for

	app     Partition // that was loaded
	initial bool      // otadata was never written, and is to be
	writes  []Write
	burn    uint32 // the secure version to burn; 0: none
}

// say prints as the mask ROM.
func (b *boot) say(format string, args ...any) {
	if !b.in.UARTPrintOff {
		writef(&b.out, format, args...)
	}
}

func writef(w *bytes.Buffer, format string, args ...any) { fmt.Fprintf(w, format, args...) }

func (b *boot) banner(reason int) {
	name, ok := b.rom.Reasons[reason]
	if !ok {
		name = "NO_MEAN"
	}
	strap := b.rom.FlashStrap
	if b.in.DownloadStrap {
		strap = b.rom.UARTStrap
	}
	b.say("%srst:0x%x (%s),boot:%s\r\n", b.rom.Banner, reason, name, strap)
	if reason != resetPowerOn {
		b.say("%s", b.rom.SavedPC)
	}
}

func (b *boot) download() State {
	switch {
	case b.in.DownloadDisabled && b.in.Revision >= b.rom.DisabledFrom:
		b.say("%s", b.rom.Disabled)
		return Halted
	case b.in.SecureDownload && b.rom.WaitingSDM != "":
		b.say("%s", b.rom.WaitingSDM)
		return SecureDownload
	}
	b.say("%s", b.rom.Waiting)
	return Download
}

// run goes from the flash boot strap to the app. It gives 0 if the app runs,
// otherwise the reason of the reset that follows.
func (b *boot) run() (again int) {
	header, ok := b.loadBootloader()
	if !ok {
		return b.rom.Watchdog
	}
	if !b.secondStage(header) {
		return resetSoftware
	}
	return b.again
}

// loadBootloader is the mask ROM's part. What it lets through but is not the code
// that was built crashes: it reports false for that too.
func (b *boot) loadBootloader() (imageHeader, bool) {
	at := b.in.Model.BootloaderOffset
	raw, err := b.flash.read(at, headerLen)
	if err != nil {
		return imageHeader{}, false
	}
	h := parseHeader(raw)
	if h.magic != imageMagic {
		tries := 1
		if b.rom.HeaderAgain {
			tries = headerTries
		}
		for range tries {
			if b.rom.HeaderAgain {
				b.say(b.rom.BadHeader, le32(raw))
			} else {
				b.say("%s", b.rom.BadHeader)
			}
		}
		return h, false
	}
	if b.rom.Config != "" {
		b.say(b.rom.Config, h.wpPin)
	}
	b.say(b.rom.Mode, h.modeName(), h.clockDivider())
	if h.segments > maxSegments {
		return h, false
	}

	if b.secureBootOn() {
		img, err := readImage(b.flash, at, h, func(segment) error { return nil })
		if err != nil || !b.verifyBootloader(at, img) {
			return h, false
		}
	}
	img, err := readImage(b.flash, at, h, func(s segment) error {
		b.say(b.rom.Load, s.load, s.size)
		return nil
	})
	if err != nil {
		return h, false
	}
	if img.calculated != img.stored {
		b.say(b.rom.Checksum, img.calculated, img.stored)
		return h, false
	}
	intact := !h.hashed || img.sum == img.storedSum
	if !intact && b.rom.ChecksHash {
		b.say("SHA-256 comparison failed:\r\nCalculated: %x\r\nExpected: %x\r\nAttempting to boot anyway...\r\n",
			img.sum, img.storedSum)
	}
	b.say("entry 0x%08x\r\n", h.entry)
	return h, intact && h.chip == b.in.Model.ID
}
