// Package label prints a label of ZPL for each unit that has passed, over TCP
// (port 9100), after its verdict is durable in the journal.
//
// What it promises (docs/factory.md):
//
//   - A label is printed for PASS only, and for no simulated unit unless that is
//     asked for.
//   - A printer that is away, paused or without paper is asked again; the labels
//     come later, in order.
//   - A label that may have been printed before bears a mark: COPY after a crash or
//     a broken line, REPRINT when a person asked for it. Without a mark there is at
//     most one label for each verdict.
//   - A reprint is in the journal, with the person and the reason, before it is
//     printed.
//   - Nothing that was scanned or typed becomes a command of the printer.
package label

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/station/outbox"
)

// Limits and defaults.
const (
	DefaultTimeout = 10 * time.Second
	MaxTimeout     = time.Minute
	DefaultPort    = "9100"
	settle         = 300 * time.Millisecond // that a printer has to refuse what it was sent
	maxMarker      = 256
)

// Config is one member of `labels` of a station's configuration.
type Config struct {
	// Name names the cursor's file.
	Name string `yaml:"name"`
	// Printer is HOST or HOST:PORT; the port is 9100 if it is left out.
	Printer string `yaml:"printer"`
	// Template is a file with the label; text/template over ZPL.
	Template string `yaml:"template,omitempty"`
	// Recipes are other templates, by recipe. An empty name prints nothing.
	Recipes map[string]string `yaml:"recipes,omitempty"`
	// Status asks the printer (~HS) before each label whether it can print, and
	// after it whether it has taken it. Not every printer answers.
	Status bool `yaml:"status,omitempty"`
	// Simulated prints labels for simulated units too, with a mark.
	Simulated bool `yaml:"simulated,omitempty"`
	// Timeout is for one label; 10s if it is left out.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// Validate checks what can be checked without reading files.
func (c Config) Validate() error {
	if err := outbox.CheckName(c.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if _, err := c.address(); err != nil {
		return err
	}
	switch {
	case c.Template == "" && len(c.Recipes) == 0:
		return errors.New("template: is missing; name a file with ZPL")
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return fmt.Errorf("timeout: %s is not between 0 and %s", c.Timeout, MaxTimeout)
	}
	return nil
}

func (c Config) address() (string, error) {
	host, port, err := net.SplitHostPort(c.Printer)
	if err != nil {
		host, port = strings.Trim(c.Printer, "[]"), DefaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ ") {
		return "", fmt.Errorf("printer: %q is neither HOST nor HOST:PORT", c.Printer)
	}
	return net.JoinHostPort(host, port), nil
}

// Sink prints on one printer.
type Sink struct {
	c         Config
	address   string
	marker    string // file that says which label may have been printed
	templates map[string]*Template
	timeout   time.Duration
}

// New reads the templates. dir is the outbox's state directory. It does not
// connect.
func New(c Config, dir string) (*Sink, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	address, err := c.address()
	if err != nil {
		return nil, err
	}
	s := &Sink{c: c, address: address, marker: filepath.Join(dir, c.Name+".printing"), templates: map[string]*Template{}, timeout: c.Timeout}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	load := func(recipe, field, name string) error {
		if name == "" {
			s.templates[recipe] = nil
			return nil
		}
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxTemplate+1))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		t, err := ParseTemplate(name, string(b))
		if err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		s.templates[recipe] = t
		return nil
	}
	if err := load("", "template", c.Template); err != nil {
		return nil, err
	}
	for recipe, name := range c.Recipes {
		if recipe == "" {
			return nil, errors.New("recipes: a recipe has no name")
		}
		if err := load(recipe, "recipes."+recipe, name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Delivery is what the outbox needs to know. A new printer begins now: nobody
// wants the labels of last year.
func (s *Sink) Delivery() outbox.Delivery {
	return outbox.Delivery{
		Name: s.c.Name, Kind: "label printer", Sink: s, Events: []string{outbox.TypeFinished, reprintType}, From: outbox.FromNow,
	}
}

// Batch is 1: a crash repeats one label.
func (s *Sink) Batch() int { return 1 }

// Close has nothing to do.
func (s *Sink) Close() error { return nil }

// Deliver prints the events' labels.
func (s *Sink) Deliver(ctx context.Context, events []*outbox.Event) (int, error) {
	for i, e := range events {
		if err := s.deliver(ctx, e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (s *Sink) deliver(ctx context.Context, e *outbox.Event) error {
	d, recipe, ok, err := s.data(e)
	if err != nil {
		return outbox.Permanent(err)
	}
	if !ok {
		return nil
	}
	t, own := s.templates[recipe]
	if !own {
		t = s.templates[""]
	}
	if t == nil {
		return nil // this recipe gets no label
	}
	again, err := s.marked(e.ID)
	if err != nil {
		return err
	}
	if again && d.Mark != markReprint {
		d.Mark = markCopy
	}
	zpl, err := t.Render(d)
	if err != nil {
		return outbox.Permanent(err)
	}
	return s.print(ctx, e.ID, zpl)
}

// The marks.
const (
	markCopy      = "COPY"
	markReprint   = "REPRINT"
	markSimulated = "SIMULATED"
)

// data makes a label's data of an event; ok says that there is a label.
func (s *Sink) data(e *outbox.Event) (d Data, recipe string, ok bool, err error) {
	c := Content{}
	switch e.Type {
	case outbox.TypeFinished:
		if e.Result == nil || e.Unit == nil || e.Recipe == nil || e.Result.Verdict != provision.Pass {
			return d, "", false, nil
		}
		c = contentOf(e)
	case reprintType:
		var p reprintPayload
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return d, "", false, fmt.Errorf("label: the journal's entry of the reprint is not understood: %w", err)
		}
		if p.Printer != s.c.Name {
			return d, "", false, nil
		}
		c, d.Mark = p.Label, markReprint
	default:
		return d, "", false, nil
	}
	if c.Simulated {
		if !s.c.Simulated {
			return d, "", false, nil
		}
		d.Mark = markSimulated
	}
	d.MAC, d.MACPlain = Field(c.MAC), Field(strings.ToUpper(strings.ReplaceAll(c.MAC, ":", "")))
	d.Serial, d.Chip, d.Recipe, d.Lot = Field(c.Serial), Field(c.Chip), Field(c.Recipe), Field(c.Lot)
	d.Station, d.Slot, d.Operator, d.Date, d.ID = Field(c.Station), Field(c.Slot), Field(c.Operator), date(c.Time), Field(c.ID)
	return d, c.Recipe, true, nil
}

// marked says whether the event's label may have been sent before.
func (s *Sink) marked(id string) (bool, error) {
	b, err := os.ReadFile(s.marker)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || len(b) > maxMarker {
		return false, errors.Join(err, fmt.Errorf("label: %s cannot be read, so it is not known which label was printed last", s.marker))
	}
	return string(bytes.TrimSuffix(b, []byte("\n"))) == id, nil
}

// print sends a label. From the moment at which a byte may reach the printer, the
// marker says so.
func (s *Sink) print(ctx context.Context, id string, zpl []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return fmt.Errorf("printer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if cerr := conn.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("printer: %w", cerr)
		}
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}()
	if s.c.Status {
		if err := ask(conn); err != nil {
			return err
		}
	}
	if err := outbox.WriteFile(s.marker, []byte(id+"\n"), 0o600); err != nil {
		return err
	}
	if _, err := conn.Write(zpl); err != nil {
		return fmt.Errorf("printer: %w", err)
	}
	if s.c.Status {
		// Answers come in their order: what was sent before is read by now.
		var paused *NotReadyError
		if err := ask(conn); err != nil && !errors.As(err, &paused) {
			return err
		}
		return nil
	}
	return taken(ctx, conn)
}

// taken waits until the printer's side has acknowledged everything, or shows that
// it has not.
func taken(ctx context.Context, conn net.Conn) error {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	if err := t.CloseWrite(); err != nil {
		return fmt.Errorf("printer: %w", err)
	}
	// Most printers close too; some never do. A reset is a printer that was
	// switched off, or that is busy with somebody else.
	_ = t.SetReadDeadline(time.Now().Add(settle))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	buf := make([]byte, 512)
	for total := 0; total < 64<<10; {
		n, err := t.Read(buf)
		total += n
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			return unsent(t)
		default:
			return fmt.Errorf("printer: %w", err)
		}
	}
	return nil
}
