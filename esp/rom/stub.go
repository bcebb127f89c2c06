package rom

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/slip"
)

// Stub is a flasher stub: a small program that is loaded into the chip's RAM and
// takes the place of the ROM's loader, in larger blocks and, on some chips, beyond
// 16 MB. Nothing needs one. The form is that of esptool's JSON files; this project
// brings none.
type Stub struct {
	Entry     uint32
	TextStart uint32
	Text      []byte
	DataStart uint32 // with Data; 0 without
	Data      []byte
	BSSStart  uint32 // 0: not said. The stub clears it itself.
}

// stubFile is the JSON. Members that it does not name, such as those of plug-ins,
// are not used.
type stubFile struct {
	Entry     *uint32 `json:"entry"`
	Text      *string `json:"text"`
	TextStart *uint32 `json:"text_start"`
	Data      *string `json:"data,omitempty"`
	DataStart *uint32 `json:"data_start,omitempty"`
	BSSStart  *uint32 `json:"bss_start,omitempty"`
}

// maxStub bounds a stub: no chip gives its loader more RAM.
const maxStub = 256 << 10

// ErrStub is the class of errors of stubs: a file that is none, silicon that does
// not run one, and one that does not start.
var ErrStub = errors.New("flasher stub")

func stubError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrStub, fmt.Errorf(format, args...))
}

// ParseStub reads a stub's file.
func ParseStub(b []byte) (Stub, error) {
	if len(b) > 4*maxStub {
		return Stub{}, stubError("the file has %d bytes, which is more than any", len(b))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var f stubFile
	if err := d.Decode(&f); err != nil {
		return Stub{}, stubError("the file is not a stub's JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Stub{}, stubError("something stands behind the stub's JSON")
	}
	if f.Entry == nil || f.Text == nil || f.TextStart == nil || (f.Data == nil) != (f.DataStart == nil) {
		return Stub{}, stubError("entry, text and text_start are needed, and data with data_start or neither")
	}
	s := Stub{Entry: *f.Entry, TextStart: *f.TextStart}
	var err error
	if s.Text, err = base64.StdEncoding.Strict().DecodeString(*f.Text); err != nil {
		return Stub{}, stubError("text is not base64: %w", err)
	}
	if f.Data != nil {
		s.DataStart = *f.DataStart
		if s.Data, err = base64.StdEncoding.Strict().DecodeString(*f.Data); err != nil {
			return Stub{}, stubError("data is not base64: %w", err)
		}
	}
	if f.BSSStart != nil {
		s.BSSStart = *f.BSSStart
	}
	return s, s.check()
}

func (s Stub) check() error {
	fits := func(at uint32, b []byte) bool {
		return at != 0 && len(b) <= maxStub && uint64(at)+uint64(len(b)) <= 1<<32
	}
	switch {
	case len(s.Text) == 0 || !fits(s.TextStart, s.Text):
		return stubError("%d bytes of text at 0x%08x", len(s.Text), s.TextStart)
	case len(s.Data) > 0 && !fits(s.DataStart, s.Data):
		return stubError("%d bytes of data at 0x%08x", len(s.Data), s.DataStart)
	case s.Entry < s.TextStart || s.Entry-s.TextStart >= uint32(len(s.Text)):
		return stubError("the entry 0x%08x is not in the text", s.Entry)
	}
	return nil
}

// Encode writes the file in one form.
func (s Stub) Encode() []byte {
	text := base64.StdEncoding.EncodeToString(s.Text)
	f := stubFile{Entry: &s.Entry, Text: &text, TextStart: &s.TextStart}
	if s.Data != nil {
		data := base64.StdEncoding.EncodeToString(s.Data)
		f.Data, f.DataStart = &data, &s.DataStart
	}
	if s.BSSStart != 0 {
		f.BSSStart = &s.BSSStart
	}
	b, err := json.Marshal(f)
	if err != nil {
		panic("rom: encode a stub: " + err.Error()) // numbers and text always do
	}
	return append(b, '\n')
}

// OnStub reports whether a stub that RunStub started answers in place of the ROM.
func (c *Client) OnStub() bool { return c.stub }

// StubFits reports whether silicon runs a stub (esp-facts A.10); the error says why
// not. Secure Download Mode never does.
func (c *Client) StubFits(ctx context.Context, rev chip.Revision) error {
	if !c.detected {
		return ErrNotDetected
	}
	if c.secure {
		return stubError("%w", ErrSecureDownload)
	}
	s := c.model.ROM.Stub
	if rev < s.MinimumRevision {
		return stubError("the %s runs none before %v", c.model.Title, s.MinimumRevision)
	}
	if s.NeverWithSecureBoot {
		on, err := c.secureBoot(ctx)
		if err != nil {
			return err
		}
		if on {
			return stubError("the %s runs none once Secure Boot is on", c.model.Title)
		}
	}
	return nil
}

// secureBoot asks the chip, where it can say so.
func (c *Client) secureBoot(ctx context.Context) (bool, error) {
	if !c.model.ROM.SecurityInfo {
		return false, nil
	}
	info, err := c.SecurityInfo(ctx)
	return info.Flags.Has(FlagSecureBoot), err
}

// stubStart is how long a stub may take until it greets.
const stubStart = time.Second

// RunStub loads a stub into RAM and starts it. From then on the client speaks to it:
// blocks are larger, and nothing of this package's promises changes. The next reset
// ends it. Fuses are not to be burned while it runs, because it may have changed the
// clocks that their timing counts: connect again before.
//
// Silicon that runs none is ErrStub, with the ROM's loader as it was. After any other
// error it is not known who answers: connect again.
func (c *Client) RunStub(ctx context.Context, s Stub, rev chip.Revision) error {
	if c.stub {
		return nil
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := c.StubFits(ctx, rev); err != nil {
		return err
	}
	hook := uint32(0)
	if at := c.model.ROM.Stub.ReadHook; at != 0 {
		on, err := c.secureBoot(ctx)
		if err != nil {
			return err
		}
		if on {
			hook = at
		}
	}
	for _, part := range []struct {
		at   uint32
		data []byte
	}{{s.TextStart, s.Text}, {s.DataStart, s.Data}} {
		if err := c.loadRAM(ctx, part.at, part.data); err != nil {
			return fmt.Errorf("load the flasher stub: %w", err)
		}
	}
	if hook != 0 {
		return c.startByHook(ctx, s.Entry, hook)
	}
	req, err := MemEnd{Entry: s.Entry}.request(c)
	if err != nil {
		return err
	}
	return c.start(ctx, req)
}

// loadRAM writes to RAM, and begins anew where noise breaks into it.
func (c *Client) loadRAM(ctx context.Context, at uint32, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return c.repeatChunk(ctx, at, func() error {
		size := c.memBlock()
		blocks := (len(data) + size - 1) / size
		if _, err := Do(ctx, c, MemBegin{Size: uint32(len(data)), Blocks: uint32(blocks), BlockSize: uint32(size), Address: at}); err != nil {
			return err
		}
		for i := range blocks {
			block := data[i*size : min((i+1)*size, len(data))]
			if _, err := Do(ctx, c, MemData{Sequence: uint32(i), Data: block}); err != nil {
				return err
			}
		}
		return nil
	})
}

// memBlock is the size of a block that goes to RAM.
func (c *Client) memBlock() int {
	size := c.model.ROM.MemBlock
	if usb := c.model.ROM.USBBlock; c.port.Info().USBOTG && usb > 0 {
		size = min(size, usb)
	}
	return size
}

// startByHook starts a stub on silicon whose ROM refuses to run code once Secure
// Boot is on: the ROM's pointer to its flash read function is set to the stub, a read
// of flash calls it, and the pointer is put back (esp-facts A.10).
func (c *Client) startByHook(ctx context.Context, entry, hook uint32) error {
	if _, err := Do(ctx, c, MemEnd{}); err != nil {
		return fmt.Errorf("load the flasher stub: %w", err)
	}
	was, err := c.ReadRegAgreed(ctx, hook)
	if err != nil {
		return fmt.Errorf("start the flasher stub: %w", err)
	}
	if err := c.WriteReg(ctx, hook, entry); err != nil {
		return fmt.Errorf("start the flasher stub: %w", err)
	}
	req := request{op: OpReadFlashSlow, data: words(0, 0), timeout: stubStart, summary: "starts the flasher stub"}
	if err := c.start(ctx, req); err != nil {
		return err
	}
	return c.restore(ctx, []RegWrite{{Addr: hook, Value: was}})
}

// greeting is what a stub sends first, as a frame of its own (esp-facts A.1).
var greeting = []byte("OHAI")

// start sends the request that runs the stub, and waits for its greeting. The ROM's
// answer may come before it or be lost.
func (c *Client) start(ctx context.Context, req request) error {
	p := packet(req.op, req.data, req.sum)
	c.trace(Sent, req.op.String(), req.summary, len(p))
	if err := c.write(ctx, slip.Encode(p)); err != nil {
		return fmt.Errorf("start the flasher stub: %w", err)
	}
	c.lost = true
	until := time.Now().Add(c.slack(stubStart))
	for range maxStrangeFrames {
		it, err := c.next(ctx, until)
		switch {
		case errors.Is(err, errQuiet):
			return stubError("it does not greet after its start: connect again, and check that the file is for the %s", c.model.Title)
		case err != nil:
			return fmt.Errorf("start the flasher stub: %w", err)
		}
		if it.Kind == slip.Frame && bytes.Equal(it.Data, greeting) {
			c.note(len(it.Data), "the flasher stub runs")
			c.stub, c.lost, c.settle = true, false, false
			return nil
		}
	}
	return stubError("something else than a stub answers: connect again")
}

// statusSize is how many bytes of status end a reply: the ROM's has four, a stub's
// two (esp-facts A.1).
func (c *Client) statusSize() int {
	if c.stub {
		return statusSizeStub
	}
	return statusSizeROM
}

// EraseRegion has a stub erase whole sectors.
type EraseRegion struct {
	done
	Offset, Size uint32
}

func (e EraseRegion) request(c *Client) (request, error) {
	if !c.stub {
		return request{}, stubError("ERASE_REGION is a stub's command")
	}
	return request{
		op: OpEraseRegion, data: words(e.Offset, e.Size), lengths: noData, timeout: eraseTime(e.Size),
		summary: fmt.Sprintf("%d bytes at 0x%x", e.Size, e.Offset),
	}, nil
}
