package espsim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/internal/espsim/bootrom"
	"github.com/provisiond/provisiond/internal/transcript"
)

// recorded is the board that a transcript starts with.
func recorded(t *testing.T, name string) Options {
	t.Helper()
	switch name {
	case "esp32-rom":
		return Options{Model: model(t, "esp32"), Revision: 301, Factory: [][]uint32{
			{0, 0xC47F4B06, 0x35240A, 0xA200, 0xE50, 0x01100000, 0},
		}}
	case "esp32c3-rom":
		return Options{Model: model(t, "esp32c3"), Revision: 4, Factory: [][]uint32{
			1: {0xA1C9C3B3, 0x7CDF, 0, 0x03100000, 0, 0},
			2: {0x6F061900, 0x4C022B83, 0xC8DCBB87, 0x0C15C56F, 1},
		}}
	}
	t.Fatalf("no board for %s", name)
	return Options{}
}

// TestReplay sends the host's half of both transcripts and compares the chip's
// half byte for byte: replies, what stands in them as leftovers, boot texts, and
// the state that each reset ends in.
//
// Two things are the recording's, not the chip's: how many reads of CMD a burn
// takes (the emulator's time; the test sets it from the recording), and the
// digest of the random data, whose blocks are cut in the recording.
func TestReplay(t *testing.T) {
	for _, name := range transcript.Names() {
		t.Run(name, func(t *testing.T) {
			tr, err := transcript.Load(name)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				c := newChip(t, recorded(t, name))
				r := &replay{t: t, c: c, events: tr.Events()}
				for r.at = range r.events {
					r.step(r.events[r.at])
				}
				if r.compared < 1000 {
					t.Errorf("only %d replies compared", r.compared)
				}
			})
		})
	}
}

type replay struct {
	t      *testing.T
	c      *Chip
	events []transcript.Event
	at     int
	now    time.Duration

	reader   slipReader
	frames   [][]byte
	texts    [][]byte // what each reset since the last text printed
	random   bool     // the block just written was cut in the recording
	compared int
}

func (r *replay) failf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("transcript line %d: %s", r.events[r.at].Line, fmt.Sprintf(format, args...))
}

func (r *replay) step(e transcript.Event) {
	r.t.Helper()
	if e.At > r.now {
		time.Sleep(e.At - r.now)
		r.now = e.At
	}
	r.drain()
	switch e.Kind {
	case transcript.Note:
		r.note(e.Note)
	case transcript.Host:
		if len(r.frames) != 0 && e.Op != "SYNC" {
			r.failf("the chip said more: %x", r.frames[0])
		}
		r.send(e)
	case transcript.Chip:
		if len(r.frames) == 0 {
			r.failf("no reply; want %x", e.Frame)
		}
		got, want := r.frames[0], e.Frame
		r.frames = r.frames[1:]
		if e.Op == "SPI_FLASH_MD5" && r.random {
			copy(got[8:40], want[8:40])
		}
		if !bytes.Equal(got, want) {
			r.failf("%s: got %x, want %x", e.Op, got, want)
		}
		r.compared++
	case transcript.Text:
		r.text(e.Text)
	}
}

// drain sorts what came into frames and boot texts.
func (r *replay) drain() {
	buf := make([]byte, hostBuffer)
	n, _, _, err := r.c.take(buf)
	if err != nil {
		r.failf("%v", err)
	}
	for _, b := range buf[:n] {
		if f, ok := r.reader.feed(b); ok {
			r.frames = append(r.frames, f.body)
		}
	}
}

func (r *replay) note(note string) {
	var dtr, rts, baud int
	switch {
	case note == "power-off":
		if s := r.c.State(); s != 0 && r.at != len(r.events)-1 {
			r.failf("in reset the chip is %v", s)
		}
	case note == "power-on download":
		if r.at == 0 {
			r.c.ResetInto(true)
		}
		switch s := r.c.State(); s {
		case bootrom.Download, bootrom.SecureDownload:
		case bootrom.Halted:
			if !bytes.Contains(r.c.BootText(), r.c.model.ROM.DownloadDisabled) {
				r.failf("halted after %q", r.c.BootText())
			}
		default:
			r.failf("with the strap low the chip is %v", s)
		}
		r.texts = append(r.texts, r.c.BootText())
		// What came before, or at another rate than the host's, was no frame.
		r.reader, r.frames = slipReader{}, nil
	case note == "power-on boot":
		if s := r.c.State(); s != bootrom.Looping {
			r.failf("with an empty flash the chip is %v", s)
		}
		// The emulator has no watchdog, so its ROM repeats the line for ever.
		head, line, _ := bytes.Cut(r.c.BootText(), []byte("invalid header"))
		line, _, _ = bytes.Cut(line, []byte("\r\n"))
		line = append(append([]byte("invalid header"), line...), "\r\n"...)
		r.texts = append(r.texts, append(bytes.Clone(head), bytes.Repeat(line, 40)...))
	case scan(note, "lines dtr=%d rts=%d", &dtr, &rts):
		if err := r.c.SetLines(r.t.Context(), dtr == 1, rts == 1); err != nil {
			r.failf("%v", err)
		}
	case scan(note, "host baud %d", &baud):
		// Lower rates are what opening the emulated port did for a moment.
		if baud >= romBaud {
			if err := r.c.SetBaud(r.t.Context(), baud); err != nil {
				r.failf("%v", err)
			}
		}
	}
}

func scan(s, format string, args ...any) bool {
	n, err := fmt.Sscanf(s, format, args...)
	return err == nil && n == len(args)
}

func (r *replay) send(e transcript.Event) {
	frame := bytes.Clone(e.Frame)
	if e.Cut {
		frame = append(frame, make([]byte, e.Length-len(frame))...)
		sum := byte(0xEF)
		for _, b := range frame[24:] {
			sum ^= b
		}
		r.random = sum != frame[4] // the rest was not zeros
		frame[4] = sum
	}
	if e.Op == "WRITE_REG" && binary.LittleEndian.Uint32(frame[8:]) == r.c.model.EFuse.Cmd {
		busy := r.busyPolls()
		r.c.fuse.runsFor = func(uint32) []uint32 { return busy }
	}
	if _, err := r.c.Write(r.t.Context(), slipEncode(frame)); err != nil {
		r.failf("%v", err)
	}
	// A reset of its own prints too.
	if r.c.fuse.field("ENABLE_SECURITY_DOWNLOAD") != 0 && bytes.Contains(r.c.BootText(), []byte("rst:0x3 ")) && r.c.State() == bootrom.SecureDownload && e.Op == "WRITE_REG" {
		// The emulator has no record of the program counter.
		head, rest, _ := bytes.Cut(r.c.BootText(), []byte("Saved PC:"))
		_, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		r.texts = append(r.texts, slices.Concat(head, rest))
	}
}

// busyPolls lists what the recording read from CMD until the command was over.
func (r *replay) busyPolls() (polls []uint32) {
	for _, e := range r.events[r.at+1:] {
		if e.Kind == transcript.Host && (e.Op != "READ_REG" || binary.LittleEndian.Uint32(e.Frame[8:]) != r.c.model.EFuse.Cmd) {
			break
		}
		if e.Kind == transcript.Chip && e.Op == "READ_REG" {
			v := binary.LittleEndian.Uint32(e.Frame[4:])
			if v == 0 {
				break
			}
			polls = append(polls, v)
		}
	}
	return polls
}

// text compares what the host read since the last text: of each reset in between
// as much as it came to print before the next one. The recorder kept no more than
// the first 400 characters.
func (r *replay) text(want []byte) {
	// The emulated ESP32 has all straps of its board open and greets with
	// UART_BOOT alone. package bootrom prints what real boards do.
	want = bytes.ReplaceAll(want, []byte("boot:0xf (UART_BOOT(UART0))\r\n"),
		[]byte("boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))\r\nwaiting for download\r\n"))
	want = bytes.ReplaceAll(want, []byte("boot:0x12 "), []byte("boot:0x13 "))
	if !follows(want, r.texts) {
		r.failf("the chip printed %.2000q; the recording has %q", r.texts, want)
	}
	if last := r.c.BootText(); len(want) < 380 && !bytes.HasSuffix(want, last) {
		r.failf("the recording ends in %q, the chip's last reset printed %q", want, last)
	}
	if strings.Contains(string(want), "invalid header: 0xe26b") {
		r.t.Logf("an empty flash decrypts to %q under the recorded key", want[90:120])
	}
	r.texts = nil
}

// follows reports whether want is made of beginnings of the texts, in order. The
// host threw some away when it opened the port.
func follows(want []byte, texts [][]byte) bool {
	if len(want) == 0 {
		return true
	}
	if len(texts) == 0 {
		return false
	}
	n := 0
	for n < len(want) && n < len(texts[0]) && want[n] == texts[0][n] {
		n++
	}
	return follows(want[n:], texts[1:]) || follows(want, texts[1:])
}
