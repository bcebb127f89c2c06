package label

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/outboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The template of docs/factory.md.
const sample = `^XA^CI28
^FO40,40^A0N,36{{text .Serial}}
^FO40,90^A0N,28{{text .MAC}}
^FO40,140^BY2^BCN,80,N{{code128 .MACPlain}}
^FO420,40^BQN,2,5{{qr .MAC}}
^FO420,240^A0N,36{{text .Mark}}
^XZ
`

// printer is a real listener that behaves as a printer does.
type printer struct {
	addr string
	mu   sync.Mutex
	jobs []string
	// status answers ~HS; nothing if it is empty.
	status func() string
	// hold keeps the connection open; reset ends it after the first byte.
	hold, reset bool
}

func newPrinter(t *testing.T) *printer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &printer{addr: l.Addr().String()}
	var all sync.WaitGroup
	stop := make(chan struct{})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(c.(*net.TCPConn), stop) })
		}
	})
	t.Cleanup(func() { close(stop); _ = l.Close(); all.Wait() })
	return p
}

func (p *printer) serve(c *net.TCPConn, stop chan struct{}) {
	defer func() { _ = c.Close() }()
	p.mu.Lock()
	reset, hold, status := p.reset, p.hold, p.status
	p.mu.Unlock()
	var got []byte
	buf := make([]byte, 1024)
	if reset {
		_, _ = c.Read(buf[:1])
		_ = c.SetLinger(0)
		return
	}
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if status != nil && bytes.HasSuffix(got, []byte("~HS\r\n")) {
			if text := status(); text == "" {
				<-stop
				return
			} else if _, err := io.WriteString(c, text); err != nil {
				return
			}
			got = bytes.TrimSuffix(got, []byte("~HS\r\n"))
		}
		if err != nil {
			break
		}
	}
	if len(got) > 0 {
		p.mu.Lock()
		p.jobs = append(p.jobs, string(got))
		p.mu.Unlock()
	}
	if hold {
		<-stop
	}
}

func (p *printer) labels() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.jobs)
}

func (p *printer) wait(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		if l := p.labels(); len(l) >= n || time.Now().After(end) {
			if len(l) != n {
				t.Fatalf("%d labels, want %d: %q", len(l), n, l)
			}
			return l
		}
	}
}

func hostStatus(paper, pause, head string) string {
	return "\x02030," + paper + "," + pause + ",1245,000,0,0,0,000,0,0,0\x03\r\n" +
		"\x02000,0," + head + ",0,0,2,4,0,00000000,1,000\x03\r\n\x021234,0\x03\r\n"
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "label.zpl")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newSink(t *testing.T, p *printer, dir string, change func(*Config)) *Sink {
	t.Helper()
	c := Config{Name: "labels", Printer: p.addr, Template: write(t, sample), Timeout: 3 * time.Second}
	if change != nil {
		change(&c)
	}
	s, err := New(c, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pass(index uint64) *outbox.Event {
	return &outbox.Event{
		ID: outbox.EventID("j", index), Index: index, Type: outbox.TypeFinished, Time: "2026-11-22T16:15:00.000000000Z",
		Unit:   &outbox.Unit{MAC: "24:0a:c4:00:00:01", Serial: "Ä^XZ~JR_1"},
		Result: &outbox.Result{Verdict: provision.Pass}, Recipe: &outbox.Recipe{Name: "lamp"},
	}
}

func deliver(t *testing.T, s *Sink, e *outbox.Event) error {
	t.Helper()
	n, err := s.Deliver(t.Context(), []*outbox.Event{e})
	if (err == nil) != (n == 1) {
		t.Errorf("%d, %v", n, err)
	}
	return err
}

const printed = "^XA^CI28\n^FO40,40^A0N,36^FH_^FD_C3_84_5EXZ_7EJR_5F1^FS\n^FO40,90^A0N,28^FH_^FD24:0a:c4:00:00:01^FS\n" +
	"^FO40,140^BY2^BCN,80,N^FH_^FD240AC4000001^FS\n^FO420,40^BQN,2,5^FH_^FDQA,24:0a:c4:00:00:01^FS\n^FO420,240^A0N,36^FH_^FD%s^FS\n^XZ\n"

func TestLabel(t *testing.T) {
	p := newPrinter(t)
	dir := t.TempDir()
	s := newSink(t, p, dir, nil)
	if err := deliver(t, s, pass(1)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fmt.Sprintf(printed, ""), p.wait(t, 1)[0]); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// After a crash before the cursor moved, the second label says so.
	if err := deliver(t, newSink(t, p, dir, nil), pass(1)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fmt.Sprintf(printed, "COPY"), p.wait(t, 2)[1]); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// The next unit's does not.
	if err := deliver(t, s, pass(2)); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(t, 3)[2]; strings.Contains(got, "COPY") {
		t.Error(got)
	}
}

func TestOnlyPass(t *testing.T) {
	p := newPrinter(t)
	s := newSink(t, p, t.TempDir(), func(c *Config) { c.Recipes = map[string]string{"bare": ""} })
	for name, change := range map[string]func(*outbox.Event){
		"fail":      func(e *outbox.Event) { e.Result.Verdict = provision.Fail },
		"error":     func(e *outbox.Event) { e.Result.Verdict = provision.Error },
		"cut off":   func(e *outbox.Event) { e.Result.Verdict = "" },
		"simulated": func(e *outbox.Event) { e.Unit.Simulated = true },
		"bare":      func(e *outbox.Event) { e.Recipe.Name = "bare" },
		"operator":  func(e *outbox.Event) { e.Type = "operator.rework" },
		"another":   func(e *outbox.Event) { e.Type = reprintType; e.Data = []byte(`{"printer":"other"}`) },
	} {
		e := pass(1)
		change(e)
		if err := deliver(t, s, e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.wait(t, 0)
	sim := newSink(t, p, t.TempDir(), func(c *Config) { c.Simulated = true })
	e := pass(1)
	e.Unit.Simulated = true
	if err := deliver(t, sim, e); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(t, 1)[0]; !strings.Contains(got, "^FDSIMULATED^FS") {
		t.Error(got)
	}
}

func TestTemplatePerRecipe(t *testing.T) {
	p := newPrinter(t)
	s := newSink(t, p, t.TempDir(), func(c *Config) {
		c.Recipes = map[string]string{"lamp": write(t, "^XA^FO1,1^A0{{text .Recipe}}{{text .Mark}}^XZ")}
	})
	if err := deliver(t, s, pass(1)); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(t, 1)[0]; got != "^XA^FO1,1^A0^FH_^FDlamp^FS^FH_^FD^FS^XZ\n" {
		t.Error(got)
	}
	// A label that cannot be made is the event's fault, and nothing is sent.
	e := pass(2)
	e.Recipe.Name, e.Unit.MAC = "other", ""
	if err := deliver(t, s, e); fmt.Sprintf("%T", err) != fmt.Sprintf("%T", outbox.Permanent(nil)) {
		t.Errorf("%T %v", err, err)
	}
	p.wait(t, 1)
}

// What did not reach the printer is no copy; what may have reached it is one.
func TestPrinterTrouble(t *testing.T) {
	p := newPrinter(t)
	dir := t.TempDir()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := closed.Addr().String()
	_ = closed.Close()
	if err := deliver(t, newSink(t, p, dir, func(c *Config) { c.Printer = nowhere }), pass(1)); err == nil {
		t.Error("a printer that is off printed")
	}
	s := newSink(t, p, dir, nil)
	if err := deliver(t, s, pass(1)); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(t, 1)[0]; strings.Contains(got, "COPY") {
		t.Error("the first label is called a copy")
	}
	p.mu.Lock()
	p.reset = true
	p.mu.Unlock()
	if err := deliver(t, s, pass(2)); err == nil {
		t.Error("a connection that was reset printed")
	}
	p.mu.Lock()
	p.reset, p.hold = false, true
	p.mu.Unlock()
	if err := deliver(t, s, pass(2)); err != nil { // also a printer that never closes
		t.Fatal(err)
	}
	if got := p.wait(t, 2)[1]; !strings.Contains(got, "^FDCOPY^FS") {
		t.Error("what may have been printed before has no mark")
	}
}

func TestStatus(t *testing.T) {
	p := newPrinter(t)
	answer := hostStatus("1", "0", "0")
	var mu sync.Mutex
	p.mu.Lock()
	p.status = func() string { mu.Lock(); defer mu.Unlock(); return answer }
	p.mu.Unlock()
	say := func(s string) { mu.Lock(); defer mu.Unlock(); answer = s }
	s := newSink(t, p, t.TempDir(), func(c *Config) { c.Status, c.Timeout = true, time.Second })
	for want, text := range map[string]string{
		"no paper": hostStatus("1", "0", "0"), "paused": hostStatus("0", "1", "0"), "the head is open": hostStatus("0", "0", "1"),
		"does not answer": "", "is too long": strings.Repeat("x", 600),
	} {
		say(text)
		if err := deliver(t, s, pass(1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if l := p.labels(); len(l) != 0 {
		t.Errorf("it was sent %q", l)
	}
	say(hostStatus("0", "0", "0"))
	if err := deliver(t, s, pass(1)); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(t, 1)[0]; strings.Contains(got, "COPY") || !strings.HasPrefix(got, "^XA") {
		t.Error(got)
	}
}

func TestReprint(t *testing.T) {
	j := outboxtest.NewJournal("000102030405060708090a0b0c0d0e0f", "bench-1")
	good, bad := outboxtest.MAC(1), outboxtest.MAC(2)
	first, err := outboxtest.Run{Slot: "A3", Serial: "S-1", Lot: "L", Operator: "anna", MAC: good}.Write(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (outboxtest.Run{Slot: "A3", MAC: bad, Verdict: "FAIL", Cause: "unit"}).Write(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	r := Request{Printer: "labels", Unit: good, Operator: "eva", Reason: " torn "}
	for _, c := range []struct {
		is     error
		change func(*Request)
	}{
		{ErrNotPassed, func(r *Request) { r.Unit = bad }},
		{ErrNotPassed, func(r *Request) { r.Unit = chip.MAC{2, 2, 2, 2, 2, 2} }},
		{ErrRequest, func(r *Request) { r.Reason = " " }},
		{ErrRequest, func(r *Request) { r.Operator = "" }},
		{ErrRequest, func(r *Request) { r.Printer = "" }},
	} {
		r := r
		c.change(&r)
		if _, err := Reprint(t.Context(), j, r); !errors.Is(err, c.is) {
			t.Errorf("%v, want %v", err, c.is)
		}
	}
	before, _ := j.Head()
	e, err := Reprint(t.Context(), j, r)
	if err != nil {
		t.Fatal(err)
	}
	if e.Index != before || e.Kind != journal.KindOperator || e.Step != StepReprint || e.Unit != good {
		t.Errorf("entry %+v", e)
	}
	var p reprintPayload
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		t.Fatal(err)
	}
	if p.Operator != "eva" || p.Reason != "torn" || p.Verdict != first.Index || p.Label.Serial != "S-1" || p.Label.Lot != "L" {
		t.Errorf("%+v", p)
	}

	// From the journal to the printer.
	dev := newPrinter(t)
	dir := t.TempDir()
	s := newSink(t, dev, dir, nil)
	d := s.Delivery()
	d.From = outbox.FromBeginning
	o, err := outbox.Open(j, dir, []outbox.Delivery{d})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	got := dev.wait(t, 2)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(got[0], "^FDS-1^FS") || strings.Contains(got[0], "REPRINT") {
		t.Errorf("the first: %s", got[0])
	}
	if got[1] != strings.Replace(got[0], "^FD^FS", "^FDREPRINT^FS", 1) {
		t.Errorf("the second: %s", got[1])
	}
}

func TestTemplates(t *testing.T) {
	for text, want := range map[string]string{
		"^XA{{text .Mark}}^XZ":                   "",
		"^XA{{.Mark}}^XZ":                        "",
		"{{text .Mark}}":                         "does not go from",
		"^XA{{text .Mark}}^XZ^XA^XZ":             "more than one",
		"^XA~JR{{text .Mark}}^XZ":                "has a ~",
		"^XA^CC!{{text .Mark}}^XZ":               "changes the characters",
		"^XA{{text .Serial}}^XZ":                 "does not print .Mark",
		"^XA{{text .Nothing}}^XZ":                "Nothing",
		"^XA{{text":                              "unclosed",
		"^XA{{range $i, $c := .MAC}}x{{end}}^XZ": "range",
		strings.Repeat("x", maxTemplate+1):       "more than 65536",
		"^XA{{qr \"\"}}^XZ":                      "nothing to print",
		"^XA{{code128 \"ä\"}}^XZ":                "not printable ASCII",
		"^XA{{define \"x\"}}{{template \"x\"}}{{end}}{{template \"x\"}}^XZ": "exceeded maximum template depth",
	} {
		_, err := ParseTemplate("x.zpl", text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
	if got, err := code128("A>B"); err != nil || got != "^FH_^FDA_3E0B^FS" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Name: "labels", Printer: "printer-1", Template: "/x"}
	for _, p := range []string{"printer-1", "10.0.0.7", "10.0.0.7:9100", "::1", "[::1]:6101"} {
		c := good
		c.Printer = p
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
	if a, _ := good.address(); a != "printer-1:9100" {
		t.Error(a)
	}
	for want, change := range map[string]func(*Config){
		"name: ":      func(c *Config) { c.Name = "" },
		"printer: ":   func(c *Config) { c.Printer = "" },
		"printer: \"": func(c *Config) { c.Printer = "http://x/" },
		"template: ":  func(c *Config) { c.Template = "" },
		"timeout: ":   func(c *Config) { c.Timeout = time.Hour },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := New(Config{Name: "a", Printer: "b", Template: "/nonexistent"}, t.TempDir()); err == nil || !strings.HasPrefix(err.Error(), "template: ") {
		t.Error(err)
	}
	if _, err := New(Config{Name: "a", Printer: "b", Recipes: map[string]string{"lamp": write(t, "x")}}, t.TempDir()); err == nil || !strings.HasPrefix(err.Error(), "recipes.lamp: ") {
		t.Error(err)
	}
}

// Nothing that is scanned becomes a command, and the printer sees the same text.
func FuzzEscape(f *testing.F) {
	f.Add("Ä^XZ~JR_1>\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		e := Escape(s)
		if strings.ContainsAny(e, "^~\n\r>\\") {
			t.Errorf("%q is escaped as %q", s, e)
		}
		back, err := Unescape(e)
		if err != nil || back != strings.ToValidUTF8(s, "�") {
			t.Errorf("%q: %q, %v", e, back, err)
		}
	})
}

func FuzzUnescape(f *testing.F) {
	f.Add("a_5E_C3_84")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := Unescape(s); err == nil && Escape(v) != s {
			t.Errorf("%q is written again as %q", s, Escape(v))
		}
	})
}

// However a label's data look, a label stays one label.
func FuzzRender(f *testing.F) {
	tmpl, err := ParseTemplate("x", sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("S^XZ^XA", "24:0a", "~JR")
	f.Fuzz(func(t *testing.T, serial, mac, mark string) {
		zpl, err := tmpl.Render(Data{Serial: Field(serial), MAC: Field(mac), MACPlain: "X", Mark: Field(mark)})
		if err != nil {
			return
		}
		if n := bytes.Count(zpl, []byte("^")); n != strings.Count(sample, "^")+3*5 || bytes.ContainsRune(zpl, '~') {
			t.Errorf("%d commands: %s", n, zpl)
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(hostStatus("0", "0", "0")))
	f.Add([]byte(hostStatus("1", "1", "1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var no *NotReadyError
		if err := ParseStatus(b); errors.As(err, &no) && len(no.Reasons) == 0 {
			t.Error("not ready, and no reason")
		}
	})
}
