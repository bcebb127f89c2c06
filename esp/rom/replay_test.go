package rom

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/slip"
	"github.com/provisiond/provisiond/internal/transcript"
)

// recording is a transcript and the chip that it is of.
type recording struct {
	name, chip string
}

var recordings = []recording{{"esp32-rom", "esp32"}, {"esp32c3-rom", "esp32c3"}}

func load(t testing.TB, name string) *transcript.Transcript {
	t.Helper()
	tr, err := transcript.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func model(t testing.TB, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// playback is a Port that plays the chip's side of a recording. A request that
// is not the next one of the recording, byte for byte, fails the test, and so
// does whatever is left at the end. It needs a synctest bubble.
type playback struct {
	t      *testing.T
	events []transcript.Event
	rx     []byte
	rxAt   time.Time // when rx arrives
	rng    *rand.Rand
	lines  []string // as the recording notes them, without repeats
	bauds  []int
}

func newPlayback(t *testing.T, events []transcript.Event) *playback {
	return &playback{t: t, events: events, rng: rand.New(rand.NewPCG(1, 1))}
}

// peek drops line and baud notes, which the test compares by itself, and
// returns the next event.
func (p *playback) peek() (transcript.Event, bool) {
	for len(p.events) > 0 && p.events[0].Kind == transcript.Note {
		p.events = p.events[1:]
	}
	if len(p.events) == 0 {
		return transcript.Event{}, false
	}
	return p.events[0], true
}

func (p *playback) finish() {
	p.t.Helper()
	if e, ok := p.peek(); ok {
		p.t.Errorf("line %d: %v %s was not reached", e.Line, e.Kind, e.Op)
	}
	if len(p.rx) != 0 {
		p.t.Errorf("%d bytes of the chip were not read", len(p.rx))
	}
}

func (p *playback) Write(ctx context.Context, b []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	e, ok := p.peek()
	if !ok {
		p.t.Errorf("request after the end: %x", b)
		return len(b), nil
	}
	if want := slip.Encode(e.Frame); e.Kind != transcript.Host || !bytes.Equal(b, want) {
		p.t.Errorf("line %d: sent %x, recorded %v %s %x", e.Line, b, e.Kind, e.Op, want)
		return len(b), nil
	}
	p.events = p.events[1:]
	for {
		next, ok := p.peek()
		if !ok || next.Kind == transcript.Host {
			// The recorded client had given up on this SYNC when its answers
			// came, and sent another.
			late := ok && next.Op == "SYNC" && e.Op == "SYNC" && len(p.rx) > 0
			p.rxAt = time.Now()
			if late {
				p.rxAt = p.rxAt.Add(syncTimeout + syncPause/2)
			}
			return len(b), nil
		}
		if next.Kind == transcript.Text {
			p.rx = append(p.rx, next.Text...)
		} else {
			p.rx = slip.Append(p.rx, next.Frame)
		}
		p.events = p.events[1:]
	}
}

func (p *playback) Read(ctx context.Context, b []byte) (int, error) {
	wait := time.Until(p.rxAt)
	if len(p.rx) == 0 || wait > 0 {
		if len(p.rx) == 0 {
			wait = time.Hour
		}
		if err := sleep(ctx, wait); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rx[:min(len(p.rx), 1+p.rng.IntN(40))])
	p.rx = p.rx[n:]
	return n, nil
}

func (p *playback) Discard(context.Context) error { p.rx = nil; return nil }

func (p *playback) SetBaud(_ context.Context, baud int) error {
	p.bauds = append(p.bauds, baud)
	return nil
}

func (p *playback) SetLines(_ context.Context, dtr, rts bool) error {
	s := fmt.Sprintf("lines dtr=%d rts=%d", number(dtr), number(rts))
	if n := len(p.lines); n == 0 || p.lines[n-1] != s {
		p.lines = append(p.lines, s)
	}
	return nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *playback) Reopen(context.Context) error {
	p.t.Error("reopened")
	return nil
}

func (p *playback) Info() PortInfo { return PortInfo{Name: "playback", Lines: true} }

// uncut leaves out the FLASH_DATA exchanges, whose requests are cut, and says
// how many.
func uncut(events []transcript.Event) ([]transcript.Event, int) {
	n := 0
	for _, e := range events {
		if e.Cut {
			n++
		}
	}
	return slices.DeleteFunc(slices.Clone(events), func(e transcript.Event) bool { return e.Op == "FLASH_DATA" }), n
}

// connections splits a session where the recorded client opened its port.
func connections(events []transcript.Event) [][]transcript.Event {
	var out [][]transcript.Event
	for _, e := range events {
		if e.Note == "host opens" {
			out = append(out, nil)
		}
		if n := len(out); n > 0 {
			out[n-1] = append(out[n-1], e)
		}
	}
	return out
}

// lineNotes are the line changes that the recorded client made, after the one
// that opening a port makes.
func lineNotes(events []transcript.Event) []string {
	var out []string
	for _, e := range events {
		if strings.HasPrefix(e.Note, "lines ") && (len(out) == 0 || out[len(out)-1] != e.Note) {
			out = append(out, e.Note)
		}
	}
	return out[min(1, len(out)):]
}

// outcome is what an exchange led to, in a form that compares.
type outcome struct {
	answer string
	err    string
}

// run sends the request of a recorded frame as the command that it is.
func run(ctx context.Context, t *testing.T, c *Client, frame []byte) outcome {
	t.Helper()
	op, data := Op(frame[1]), frame[headerSize:]
	w := func(i int) uint32 { return binary.LittleEndian.Uint32(data[4*i:]) }
	var o outcome
	result := func(answer any, err error) {
		o.answer = fmt.Sprint(answer)
		var status *StatusError
		switch {
		case err == nil:
		case errors.As(err, &status):
			o = outcome{err: fmt.Sprintf("%s %02x %02x", status.Op, status.Status, uint8(status.Code))}
		case errors.Is(err, ErrTimeout):
			o = outcome{err: "time-out"}
		default:
			o = outcome{err: err.Error()}
		}
	}
	switch op {
	case OpReadReg:
		a, err := Do(ctx, c, ReadReg{Addr: w(0)})
		result(fmt.Sprintf("%08x", a.Value), err)
	case OpWriteReg:
		var groups []RegWrite
		for i := 0; 4*i < len(data); i += 4 {
			groups = append(groups, RegWrite{w(i), w(i + 1), w(i + 2), time.Duration(w(i+3)) * time.Microsecond})
		}
		result(Do(ctx, c, WriteReg{Groups: groups}))
	case OpSPIAttach:
		result(Do(ctx, c, SPIAttach{Pins: w(0)}))
	case OpSPISetParams:
		result(Do(ctx, c, SPISetParams{Size: w(1)}))
	case OpFlashBegin:
		result(Do(ctx, c, FlashBegin{Size: w(0), Blocks: w(1), BlockSize: w(2), Offset: w(3)}))
	case OpChangeBaudrate:
		result(Do(ctx, c, ChangeBaudrate{Rate: w(0)}))
	case OpSPIFlashMD5:
		a, err := Do(ctx, c, SPIFlashMD5{Address: w(0), Size: w(1)})
		result(hex.EncodeToString(a.Digest[:]), err)
	case OpGetSecurityInfo:
		a, err := Do(ctx, c, GetSecurityInfo{})
		result(hex.EncodeToString(a.Bytes()), err)
	default:
		t.Fatalf("no command for %v", op)
	}
	return o
}

// recorded is what the exchange whose request comes first must lead to.
func recorded(events []transcript.Event) outcome {
	op := events[0].Frame[1]
	for _, e := range events[1:] {
		if e.Kind == transcript.Host || e.Note == "host opens" {
			break
		}
		if e.Kind != transcript.Chip {
			continue
		}
		body := e.Frame[8:]
		switch {
		case e.Frame[1] != op:
			return outcome{err: fmt.Sprintf("%s %02x %02x", events[0].Op, body[0], body[1])}
		case Op(op) == OpReadReg:
			return outcome{answer: fmt.Sprintf("%08x", binary.LittleEndian.Uint32(e.Frame[4:]))}
		case Op(op) == OpSPIFlashMD5:
			return outcome{answer: string(body[:32])}
		case Op(op) == OpGetSecurityInfo:
			return outcome{answer: hex.EncodeToString(body[:20])}
		default:
			return outcome{answer: "{}"}
		}
	}
	return outcome{err: "time-out"}
}

// TestReplay sends every uncut request of both recordings through the client.
func TestReplay(t *testing.T) {
	exchanges, cut, connects := map[string]int{}, 0, 0
	for _, rec := range recordings {
		m := model(t, rec.chip)
		for _, s := range load(t, rec.name).Sessions() {
			for _, conn := range connections(s.Events) {
				events, skipped := uncut(conn)
				cut += skipped
				connects++
				t.Run(rec.chip+"/"+s.Mark, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						replay(t, m, events, exchanges)
					})
				})
			}
		}
	}
	t.Logf("%d connects, exchanges %v, %d FLASH_DATA left out as they are cut", connects, exchanges, cut)
	if cut != 19 || connects != 27 {
		t.Errorf("%d FLASH_DATA left out, %d connects: want 19 and 27", cut, connects)
	}
	// The recordings' own lines, repeats written out, are the truth.
	want := map[string]int{}
	for _, rec := range recordings {
		for _, e := range load(t, rec.name).Events() {
			if e.Kind == transcript.Host && !e.Cut && e.Op != "SYNC" {
				want[e.Op]++
			}
		}
	}
	if !maps.Equal(exchanges, want) {
		t.Errorf("replayed %v, recorded are %v", exchanges, want)
	}
	if want["READ_REG"] < 2500 || want["WRITE_REG"] < 690 || want["GET_SECURITY_INFO"] != 34 {
		t.Errorf("the recordings hold %v only", want)
	}
}

func replay(t *testing.T, m chip.Model, events []transcript.Event, exchanges map[string]int) {
	ctx := t.Context()
	port := newPlayback(t, events)
	var trace bytes.Buffer
	opts := Options{Attempts: 2, Trace: func(e TraceEvent) { fmt.Fprintln(&trace, e.Direction, e.Op, e.Summary) }}
	c, err := Connect(ctx, port, AutoReset{}, opts)
	if !slices.ContainsFunc(events, func(e transcript.Event) bool { return e.Kind == transcript.Chip }) {
		var refused *ConnectError
		if !errors.As(err, &refused) || refused.Diagnosis != Silent || refused.Attempts != 2 {
			t.Fatalf("a chip that does not answer: %v", err)
		}
		compareLines(t, port, events)
		port.finish()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, e := range events {
		text = append(text, e.Text...)
	}
	if !bytes.Equal(c.BootText(), text) {
		t.Errorf("boot text %q, recorded %q", c.BootText(), text)
	}
	if c.SecureDownload() != bytes.Contains(text, []byte("(secure mode)")) {
		t.Errorf("SecureDownload = %v", c.SecureDownload())
	}
	for {
		e, ok := port.peek()
		if !ok {
			break
		}
		want := recorded(port.events)
		c.model, c.detected = m, true
		if got := run(ctx, t, c, e.Frame); got != want {
			t.Fatalf("line %d: %s gave %+v, recorded %+v", e.Line, e.Op, got, want)
		}
		exchanges[e.Op]++
	}
	if end := lineNotes(events); slices.Contains(end[len(port.lines):], "lines dtr=0 rts=1") {
		if err := c.HardReset(ctx); err != nil {
			t.Fatal(err)
		}
	}
	compareLines(t, port, events)
	port.finish()
	noKeyBytes(t, m, events, trace.String())
}

func compareLines(t *testing.T, port *playback, events []transcript.Event) {
	t.Helper()
	if want := lineNotes(events); !slices.Equal(port.lines, want) {
		t.Errorf("lines %q, recorded %q", port.lines, want)
	}
}

// noKeyBytes searches a trace for every word that went to or came from a register
// that can hold key bytes, as number and as bytes.
func noKeyBytes(t *testing.T, m chip.Model, events []transcript.Event, trace string) {
	t.Helper()
	secrets := map[uint32]bool{}
	addr := uint32(0)
	for _, e := range events {
		switch {
		case e.Kind == transcript.Host && e.Op == "READ_REG":
			addr = binary.LittleEndian.Uint32(e.Frame[8:])
		case e.Kind == transcript.Chip && e.Op == "READ_REG" && m.SensitiveEFuse(addr):
			secrets[binary.LittleEndian.Uint32(e.Frame[4:])] = true
		case e.Kind == transcript.Host && e.Op == "WRITE_REG":
			for g := e.Frame[8:]; len(g) >= 16; g = g[16:] {
				if m.SensitiveEFuse(binary.LittleEndian.Uint32(g)) {
					secrets[binary.LittleEndian.Uint32(g[4:])] = true
				}
			}
		}
	}
	for word := range secrets {
		if bits := fmt.Sprintf("%08x", word); strings.Count(bits, "0") > 5 {
			continue // too common a word to prove anything
		}
		le := binary.LittleEndian.AppendUint32(nil, word)
		for _, s := range []string{fmt.Sprintf("%08x", word), hex.EncodeToString(le), fmt.Sprint(word), string(le)} {
			if strings.Contains(strings.ToLower(trace), s) {
				t.Errorf("the trace shows the key word %08x", word)
			}
		}
	}
}

// TestTraceRedacts proves that the search of TestReplay can fail: the burn
// sessions hold key words, and the trace shows that registers were written.
func TestTraceRedacts(t *testing.T) {
	for _, rec := range recordings {
		for _, detected := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				m := model(t, rec.chip)
				var trace bytes.Buffer
				loader := newLoader(m)
				c := connected(t, loader, Options{Trace: func(e TraceEvent) { fmt.Fprintln(&trace, e.Direction, e.Op, e.Summary) }})
				if detected {
					if _, err := c.Detect(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				const key, harmless = 0x5EC12E7A, 0x0BEEF123
				sensitive := m.EFuse.PgmData
				if m.EFuse.Kind == chip.EFuseESP32 {
					sensitive = m.EFuse.Base + 0x98
				}
				ctx := t.Context()
				if err := c.WriteReg(ctx, sensitive, key); err != nil {
					t.Fatal(err)
				}
				if v, err := c.ReadReg(ctx, sensitive); err != nil || v != key {
					t.Fatalf("%08x, %v", v, err)
				}
				// The loader's leftover value word is the key word now.
				if err := c.WriteReg(ctx, m.UART.ClkDiv, harmless); err != nil {
					t.Fatal(err)
				}
				if err := c.AttachFlash(ctx); err != nil {
					t.Fatal(err)
				}
				if got := strings.ToLower(trace.String()); strings.Contains(got, "5ec12e7a") || strings.Contains(got, "7a2ec15e") {
					t.Errorf("the key word shows:\n%s", got)
				} else if strings.Count(got, redacted) != 2 || !strings.Contains(got, "0x0beef123") {
					t.Errorf("want two redacted values and the harmless one:\n%s", got)
				}
			})
		}
	}
}

// session returns the uncut events of the first session whose mark has the words.
func session(t *testing.T, rec, mark string) []transcript.Event {
	t.Helper()
	for _, s := range load(t, rec).Sessions() {
		if strings.Contains(s.Mark, mark) {
			events, _ := uncut(s.Events)
			return slices.DeleteFunc(events, func(e transcript.Event) bool { return e.Kind == transcript.Note })
		}
	}
	t.Fatalf("no session %q", mark)
	return nil
}

// exchangeOf returns the first exchange whose request begins so, opcode first.
func exchangeOf(t *testing.T, events []transcript.Event, request string) []transcript.Event {
	t.Helper()
	want, err := hex.DecodeString(request)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range events {
		if e.Kind != transcript.Host || !bytes.HasPrefix(e.Frame[1:], want[:1]) || !bytes.HasPrefix(e.Frame[8:], want[1:]) {
			continue
		}
		j := i + 1
		for j < len(events) && events[j].Kind != transcript.Host {
			j++
		}
		if j-i > 1 && events[i+1].Kind == transcript.Chip { // not a SYNC with boot text
			return events[i:j]
		}
	}
	t.Fatalf("no exchange %s", request)
	return nil
}

// clientOn is a client in the middle of a conversation that is played back.
func clientOn(t *testing.T, m chip.Model, events ...[]transcript.Event) (*Client, *playback) {
	port := newPlayback(t, slices.Concat(events...))
	return &Client{
		port: port, reset: AutoReset{}, dec: slip.NewDecoder(maxReply), buf: make([]byte, 4096),
		baud: StartBaud, model: m, detected: m.Name != "",
	}, port
}

func TestReplayDetect(t *testing.T) {
	for _, tc := range []struct {
		rec, mark, want string
		requests        []string
		secure          bool
	}{
		{"esp32-rom", "read-mac", "esp32", []string{"14", "0a00100040"}, false},
		{"esp32c3-rom", "read-mac", "esp32c3", []string{"14", "14"}, false},
		{"esp32c3-rom", "get-security-info (secure", "esp32c3", []string{"14", "14"}, true},
	} {
		t.Run(tc.rec+"/"+tc.mark, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := session(t, tc.rec, tc.mark)
				var events [][]transcript.Event
				for _, r := range tc.requests {
					events = append(events, exchangeOf(t, all, r))
				}
				c, port := clientOn(t, chip.Model{}, events...)
				start := time.Now()
				m, err := c.Detect(t.Context())
				if err != nil || m.Name != tc.want {
					t.Fatalf("Detect = %s, %v", m.Name, err)
				}
				if c.SecureDownload() != tc.secure {
					t.Errorf("SecureDownload = %v", c.SecureDownload())
				}
				if d := time.Since(start); d > 200*time.Millisecond {
					t.Errorf("took %v: a refusal is no time-out", d)
				}
				port.finish()
			})
		})
	}
}

func TestReplaySecurityInfo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := exchangeOf(t, session(t, "esp32c3-rom", "get-security-info (secure"), "14")
		c, port := clientOn(t, model(t, "esp32c3"), ask, ask)
		got, err := c.SecurityInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := SecurityInfo{
			Flags:         FlagSecureDownload | FlagHardJTAGDisabled | FlagDownloadICacheClosed,
			FlashCryptCnt: 7, KeyPurposes: [6]uint8{4}, Spare: 0x0C, HasChipID: true, ChipID: 5, APIVersion: 3,
		}
		if got != want || !got.FlashEncryption() || !got.SecureDownload() || !c.SecureDownload() {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if s := got.Flags.String(); s != "SECURE_DOWNLOAD_ENABLE|HARD_DIS_JTAG|DIS_DOWNLOAD_ICACHE" {
			t.Errorf("flags %s", s)
		}
		port.finish()
	})
}

func TestReplayFlashID(t *testing.T) {
	for _, tc := range []struct{ rec, chip, usr, usr2, first string }{
		{"esp32-rom", "esp32", "0a1c20f43f", "0a2420f43f", "092c20f43f17000000"},
		{"esp32c3-rom", "esp32c3", "0a18200060", "0a20200060", "092820006017000000"},
	} {
		t.Run(tc.chip, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := session(t, tc.rec, "flash-id")
				usr, usr2 := exchangeOf(t, all, tc.usr), exchangeOf(t, all, tc.usr2)
				// From the command's first write to the two registers read
				// after they were put back: eleven exchanges.
				first := exchangeOf(t, all, tc.first)
				i := slices.IndexFunc(all, func(e transcript.Event) bool { return e.Line == first[0].Line })
				command := all[i : i+2*11]
				c, port := clientOn(t, model(t, tc.chip), usr, usr, usr2, usr2, command, command)
				id, err := c.FlashID(t.Context())
				if want := (FlashID{0xC8, 0x40, 0x16, 4 << 20}); err != nil || id != want {
					t.Errorf("FlashID = %+v, %v, want %+v", id, err, want)
				}
				port.finish()
			})
		})
	}
}

func TestReplayChangeBaud(t *testing.T) {
	for _, tc := range []struct {
		rec, chip, mark string
		baud            int
		reads           []string
	}{
		{"esp32-rom", "esp32", "--baud 460800", 460800, []string{"0a6cf0f53f", "0a6cf0f53f", "0a10a0f53f", "0a10a0f53f"}},
		{"esp32-rom", "esp32", "--baud 921600", 921600, []string{"0a6cf0f53f", "0a6cf0f53f", "0a10a0f53f", "0a10a0f53f"}},
		{"esp32c3-rom", "esp32c3", "--baud 460800", 460800, nil},
		{"esp32c3-rom", "esp32c3", "--baud 921600", 921600, nil},
	} {
		t.Run(fmt.Sprint(tc.chip, tc.baud), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := session(t, tc.rec, tc.mark)
				var events [][]transcript.Event
				for _, r := range tc.reads {
					events = append(events, exchangeOf(t, all, r))
				}
				// The SYNC that proves the rate is one of the recording's.
				sync := exchangeOf(t, session(t, "esp32-rom", "read-mac"), "08")
				events = append(events, exchangeOf(t, all, "0f"), sync)
				c, port := clientOn(t, model(t, tc.chip), events...)
				if err := c.ChangeBaud(t.Context(), tc.baud); err != nil {
					t.Fatal(err)
				}
				if c.Baud() != tc.baud || !slices.Equal(port.bauds, []int{tc.baud}) {
					t.Errorf("at %d, port set to %v", c.Baud(), port.bauds)
				}
				port.finish()
			})
		})
	}
}

// TestReplayMethods drives the methods that callers use over recorded exchanges.
func TestReplayMethods(t *testing.T) {
	c3 := session(t, "esp32c3-rom", "--baud 460800")
	e32 := session(t, "esp32-rom", "--baud 460800")
	burn := session(t, "esp32c3-rom", "ENABLE_SECURITY_DOWNLOAD")
	for _, tc := range []struct {
		name, chip string
		events     [][]transcript.Event
		call       func(ctx context.Context, c *Client) error
	}{
		{"attach", "esp32c3", [][]transcript.Event{exchangeOf(t, c3, "0d")}, func(ctx context.Context, c *Client) error { return c.AttachFlash(ctx) }},
		{"size", "esp32", [][]transcript.Event{exchangeOf(t, e32, "0b")}, func(ctx context.Context, c *Client) error { return c.SetFlashSize(ctx, 4<<20) }},
		{"md5", "esp32", [][]transcript.Event{exchangeOf(t, e32, "13")}, func(ctx context.Context, c *Client) error {
			sum, err := c.FlashMD5(ctx, 0x20000, 3000)
			if want := string(exchangeOf(t, e32, "13")[1].Frame[8:40]); hex.EncodeToString(sum[:]) != want {
				return fmt.Errorf("digest %x, recorded %s", sum, want)
			}
			return err
		}},
		{"delay", "esp32c3", [][]transcript.Event{exchangeOf(t, session(t, "esp32c3-rom", "burn-key"), "09d489006001000000ffffffff000000007c000060")}, func(ctx context.Context, c *Client) error {
			return c.WriteRegDelay(ctx, 0x600089D4, 1, time.Millisecond)
		}},
		{"write", "esp32c3", [][]transcript.Event{exchangeOf(t, burn, "09cc890060")}, func(ctx context.Context, c *Client) error {
			return c.WriteReg(ctx, 0x600089CC, 0x5A5A)
		}},
		{"read agreed", "esp32", [][]transcript.Event{exchangeOf(t, e32, "0a08a0f53f"), exchangeOf(t, e32, "0a08a0f53f")}, func(ctx context.Context, c *Client) error {
			v, err := c.ReadRegAgreed(ctx, 0x3FF5A008)
			if v != 0x0035240A {
				return fmt.Errorf("%08x", v)
			}
			return err
		}},
		{"resync", "esp32", [][]transcript.Event{exchangeOf(t, session(t, "esp32-rom", "read-mac"), "08")}, func(ctx context.Context, c *Client) error { return c.Resync(ctx) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, port := clientOn(t, model(t, tc.chip), tc.events...)
				if err := tc.call(t.Context(), c); err != nil {
					t.Error(err)
				}
				port.finish()
			})
		})
	}
}

// TestReplayRefusals: in Secure Download Mode the C3 answers what it refuses under
// the number of the last command that it accepted (transcripts' README).
func TestReplayRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := exchangeOf(t, session(t, "esp32c3-rom", "get-security-info (secure"), "14")
		refused := func(request string) []transcript.Event {
			frame, err := hex.DecodeString(request)
			if err != nil {
				t.Fatal(err)
			}
			answer, _ := hex.DecodeString("011404000707122001050000")
			return []transcript.Event{
				{Kind: transcript.Host, Op: "refused", Frame: frame},
				{Kind: transcript.Chip, Op: "GET_SECURITY_INFO", Frame: answer},
			}
		}
		c, port := clientOn(t, model(t, "esp32c3"), ask, ask,
			refused("000a04000000000000100040"), refused("001310000000000000000200b80b00000000000000000000"))
		if _, err := c.SecurityInfo(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.ReadReg(t.Context(), 0x40001000); !Refused(err) {
			t.Errorf("READ_REG: %v", err)
		}
		if _, err := c.FlashMD5(t.Context(), 0x20000, 3000); !Refused(err) {
			t.Errorf("SPI_FLASH_MD5: %v", err)
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("two refusals took %v", d)
		}
		if _, err := c.FlashID(t.Context()); !errors.Is(err, ErrSecureDownload) {
			t.Errorf("FlashID: %v", err)
		}
		port.finish()
	})
}
