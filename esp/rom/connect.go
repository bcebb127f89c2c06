package rom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/provisiond/provisiond/esp/slip"
)

// StartBaud is the rate at which the ROM prints its text and a client begins.
const StartBaud = 115200

const (
	defaultAttempts = 7
	maxBootText     = 32 << 10 // of a chip that does not stop printing, the last
)

// Diagnosis says what a chip did instead of answering.
type Diagnosis uint8

// The diagnoses.
const (
	Silent           Diagnosis = iota + 1 // not a byte came
	DownloadDisabled                      // the download mode is closed for ever
	BootedNormally                        // it printed what a running chip prints
	LoaderDeaf                            // the loader waits, and did not hear
	SecureDownload                        // so it does, in Secure Download Mode
	StubRunning                           // a stub of an earlier tool answers, not the ROM
	Garbage                               // what came is no text
)

var diagnoses = [...]struct{ what, next string }{
	Silent: {"the chip is silent", "check power, cable and port, and that TX of the board reaches RX of the adapter"},
	DownloadDisabled: {
		"the chip says that its download mode is disabled",
		"nothing over serial will change this board again; if it is not a finished unit, set it aside",
	},
	BootedNormally: {
		"the chip booted from flash instead of waiting for a download",
		"check that DTR and RTS reach IO0 and EN, or hold the boot button during reset",
	},
	LoaderDeaf: {
		"the loader waits but does not answer",
		"check that TX of the adapter reaches RX of the board",
	},
	SecureDownload: {
		"the loader waits in Secure Download Mode but does not answer",
		"check that TX of the adapter reaches RX of the board",
	},
	StubRunning: {
		"a flasher stub of another tool answers: the chip was not reset",
		"check that RTS reaches EN, or power-cycle the board",
	},
	Garbage: {
		"what the chip sends is no text",
		"check ground and signal level, and that no other program uses the port; a chip whose ROM runs at another rate needs a reset",
	},
}

// String says what was found.
func (d Diagnosis) String() string {
	if int(d) >= len(diagnoses) || d == 0 {
		return "unknown"
	}
	return diagnoses[d].what
}

// NextStep says what to do about it.
func (d Diagnosis) NextStep() string {
	if int(d) >= len(diagnoses) || d == 0 {
		return ""
	}
	return diagnoses[d].next
}

// ConnectError says that no loader answered, and what the chip did instead.
type ConnectError struct {
	Port      string
	Attempts  int
	Text      []byte // what the chip printed during the attempts
	Diagnosis Diagnosis
}

// Error gives diagnosis and next step.
func (e *ConnectError) Error() string {
	return fmt.Sprintf("connect over %s: no answer in %d attempts: %v: %s", e.Port, e.Attempts, e.Diagnosis, e.Diagnosis.NextStep())
}

// Connect resets the chip into its loader and synchronises with it. A loader
// that does not answer is a *ConnectError; an unplugged port, an ended context
// and a resetter's error come as they are.
//
// It never decides by silence: a chip that says that its download mode is
// disabled is believed at once, everything else gets all attempts.
func Connect(ctx context.Context, p Port, r Resetter, opts Options) (*Client, error) {
	attempts := opts.Attempts
	if attempts <= 0 {
		attempts = defaultAttempts
	}
	c := &Client{port: p, reset: r, opts: opts, dec: slip.NewDecoder(maxReply), buf: make([]byte, 4096), baud: StartBaud}
	fail := func(err error) error { return fmt.Errorf("connect over %s: %w", p.Info().Name, err) }
	if err := p.SetBaud(ctx, StartBaud); err != nil {
		return nil, fail(err)
	}
	if err := p.Discard(ctx); err != nil {
		return nil, fail(err)
	}
	diagnosis := Silent
	made := 0
	for made < attempts && diagnosis != DownloadDisabled {
		c.note(0, "connect attempt %d", made+1)
		stub, err := c.attempt(ctx, made)
		made++
		switch {
		case err == nil:
			c.secure = secureText(c.boot)
			return c, nil
		case !errors.Is(err, errQuiet):
			return nil, fail(err)
		case stub:
			diagnosis = StubRunning
		default:
			diagnosis = diagnose(c.boot)
		}
	}
	return nil, &ConnectError{Port: p.Info().Name, Attempts: made, Text: c.BootText(), Diagnosis: diagnosis}
}

// attempt is one reset and up to five SYNCs. errQuiet: nobody answered as a ROM
// does.
func (c *Client) attempt(ctx context.Context, n int) (stub bool, err error) {
	if err := c.reset.Download(ctx, c.port, n); err != nil {
		return false, err
	}
	c.queue = nil
	c.dec.Flush()
	reopened := false
	for range syncsEach {
		res, err := c.sync(ctx, nil, syncTimeout, c.bootText)
		if errors.Is(err, ErrUnplugged) && c.port.Info().USBSerial && !reopened {
			// The device may take a moment to vanish after its reset.
			reopened = true
			if err = reenumerate(ctx, c.port, err); err == nil {
				c.dec.Flush()
				continue
			}
		}
		if err != nil {
			return false, err
		}
		if len(res.good) > 0 {
			// Answers to earlier SYNCs may still come.
			if err := c.collect(ctx, c.slack(settleTime), true); err != nil {
				return false, err
			}
			// The ROM answers with a value that is not 0, the stub with 0
			// (esp-facts A.7). One answer may be damaged, not all.
			for _, r := range res.good {
				if r.value != 0 {
					return false, nil
				}
			}
			stub = true
			continue
		}
		if err := c.collect(ctx, syncPause, false); err != nil {
			return false, err
		}
	}
	c.bootText(slip.Item{Kind: slip.Text, Data: c.dec.Flush()})
	return stub, errQuiet
}

// collect keeps the text of the given time and drops the frames; with extend the
// time begins anew with everything that comes, up to a second.
func (c *Client) collect(ctx context.Context, d time.Duration, extend bool) error {
	until, stop := time.Now().Add(d), time.Now().Add(time.Second)
	for {
		it, err := c.next(ctx, until)
		if errors.Is(err, errQuiet) {
			return nil
		}
		if err != nil {
			return err
		}
		c.bootText(it)
		if extend && time.Now().Before(stop) {
			until = time.Now().Add(d)
		}
	}
}

// bootText keeps what the chip printed. Between stray delimiters text looks like
// a frame; the loader's replies, damaged ones too, are no text.
func (c *Client) bootText(it slip.Item) {
	if it.Kind != slip.Text && !printable(it.Data) {
		return
	}
	c.boot = append(c.boot, it.Data...)
	if over := len(c.boot) - maxBootText; over > 0 {
		c.boot = append([]byte(nil), c.boot[over:]...)
	}
}

// diagnose judges what a chip printed that did not answer. The text is of this
// connect's own resets, so what it says is what the chip is.
func diagnose(text []byte) Diagnosis {
	if len(text) == 0 {
		return Silent
	}
	for _, m := range models() {
		if s := m.ROM.DownloadDisabled; len(s) > 0 && bytes.Contains(text, s) {
			return DownloadDisabled
		}
	}
	last := lastBoot(text)
	switch {
	case secureText(text):
		return SecureDownload
	case loaderText(last):
		return LoaderDeaf
	case printable(text):
		return BootedNormally
	default:
		return Garbage
	}
}

// lastBoot is the text from the last ROM banner on, all of it if there is none.
func lastBoot(text []byte) []byte {
	start := 0
	for _, m := range models() {
		if len(m.ROM.Banner) > 0 {
			start = max(start, bytes.LastIndex(text, m.ROM.Banner))
		}
	}
	return text[start:]
}

func loaderText(text []byte) bool {
	for _, m := range models() {
		for _, s := range m.ROM.DownloadBanner {
			if bytes.Contains(text, s) {
				return true
			}
		}
	}
	return false
}

// secureText reports whether the last boot ended in Secure Download Mode.
func secureText(text []byte) bool {
	last := lastBoot(text)
	for _, m := range models() {
		if s := m.ROM.SecureBanner; len(s) > 0 && bytes.Contains(last, s) {
			return true
		}
	}
	return false
}

// printable reports whether most of the bytes are text.
func printable(text []byte) bool {
	good := 0
	for _, b := range text {
		if b == '\r' || b == '\n' || b == '\t' || b == 0x1B || (b >= 0x20 && b < 0x7F) {
			good++
		}
	}
	return good*10 >= len(text)*8
}
