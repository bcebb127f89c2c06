// Package jetstream publishes events to a stream of NATS JetStream, for plants
// with many stations. It is the only importer of nats.go.
//
// What it promises (docs/factory.md, docs/scaling.md):
//
//   - The subject is provisiond.<station>.<type>, the message id (Nats-Msg-Id) the
//     event's id: the journal's id and the entry's index. It is another one after
//     a new journal, and never two events' one.
//   - An event counts as taken when the stream's leader has acknowledged it. The
//     next one is sent after that, so the stream has them in the journal's order.
//   - A repeat is no second message. The server drops it within the stream's
//     window for duplicates. Beyond that window the sink itself looks, at each
//     start and after each fault, which of its events the stream has last.
//   - While the server is away nothing is kept in memory, and a call ends.
package jetstream

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/provisiond/provisiond/station/outbox"
)

// Limits and defaults.
const (
	DefaultTimeout = 5 * time.Second
	MaxTimeout     = time.Minute
	// DefaultDuplicates is the window of a stream that is made here.
	DefaultDuplicates = 2 * time.Hour
	// Prefix begins every subject.
	Prefix = "provisiond"
)

// Config is one member of `jetstreams` of a station's configuration.
type Config struct {
	// Name names the cursor's file.
	Name string `yaml:"name"`
	// Servers are tls://HOST:PORT, or nats://HOST:PORT, which is for loopback
	// addresses or with AllowPlain.
	Servers []string `yaml:"servers"`
	// AllowPlain lets events go over the network in plain text.
	AllowPlain bool `yaml:"allow_plain,omitempty"`
	// Stream is the name of the stream. It takes the subjects provisiond.>
	Stream string `yaml:"stream"`
	// Domain is the JetStream domain, for leaf nodes.
	Domain string `yaml:"domain,omitempty"`
	// Create makes the stream if it is not there.
	Create *Create `yaml:"create,omitempty"`
	// CredsFile has the user's JWT and key: a file of mode 0600, or credential:NAME.
	CredsFile string `yaml:"creds_file,omitempty"`
	// CACert is a PEM file with the authorities of the servers; the system's if it
	// is left out.
	CACert string `yaml:"ca_cert,omitempty"`
	// CertFile and KeyFile are a client certificate.
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"`
	// Events selects types; all if it is left out.
	Events []string `yaml:"events,omitempty"`
	// From is "now" (what happens from the first start on) or "beginning".
	From outbox.From `yaml:"from,omitempty"`
	// Timeout is for one answer of the server; 5s if it is left out.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// Create describes a stream that is made. One that is there is never changed.
type Create struct {
	Replicas   int           `yaml:"replicas,omitempty"`   // 1 if it is left out; 3 in a cluster
	MaxAge     time.Duration `yaml:"max_age,omitempty"`    // messages are kept for ever if it is left out
	Duplicates time.Duration `yaml:"duplicates,omitempty"` // 2h if it is left out
}

// Validate checks what can be checked without a connection.
func (c Config) Validate() error {
	switch {
	case outbox.CheckName(c.Name) != nil:
		return fmt.Errorf("name: %w", outbox.CheckName(c.Name))
	case len(c.Servers) == 0:
		return errors.New("servers: is missing; write for example tls://nats-1.factory:4222")
	case c.Stream == "" || token(c.Stream) != c.Stream:
		return fmt.Errorf("stream: %q is no name of a stream", c.Stream)
	case c.Domain != "" && token(c.Domain) != c.Domain:
		return fmt.Errorf("domain: %q is no name of a domain", c.Domain)
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("cert_file: and key_file go together")
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return fmt.Errorf("timeout: %s is not between 0 and %s", c.Timeout, MaxTimeout)
	}
	if k := c.Create; k != nil {
		switch {
		case k.Replicas < 0 || k.Replicas > 5:
			return fmt.Errorf("create.replicas: %d is not between 1 and 5", k.Replicas)
		case k.MaxAge < 0 || k.Duplicates < 0 || k.MaxAge > 0 && k.Duplicates > k.MaxAge:
			return errors.New("create.duplicates: is longer than max_age, or negative")
		}
	}
	scheme := ""
	for i, s := range c.Servers {
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "tls" && u.Scheme != "nats":
			return fmt.Errorf("servers[%d]: is neither tls://HOST:PORT nor nats://HOST:PORT", i)
		case u.User != nil:
			return fmt.Errorf("servers[%d]: holds a user; use creds_file or a client certificate", i)
		case u.Scheme == "nats" && !c.AllowPlain && !loopback(u.Hostname()):
			return fmt.Errorf("servers[%d]: is nats:// to another host; use tls://, or say allow_plain: true", i)
		case u.Scheme != scheme && i > 0:
			return fmt.Errorf("servers[%d]: is %s:// and the first one is %s://; write the same for all", i, u.Scheme, scheme)
		}
		scheme = u.Scheme
	}
	return outbox.CheckPatterns(c.Events)
}

// Sink publishes to one stream.
type Sink struct {
	c       Config
	creds   string
	timeout time.Duration

	nc    *nats.Conn
	js    jetstream.JetStream
	ready bool // the stream is there
	// From the server, after each fault anew: what the stream has of one journal.
	known   bool
	station string
	journal string
	stored  uint64 // the index behind the last event that it has
}

// New reads what it must. It does not connect.
func New(c Config) (*Sink, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Sink{c: c, timeout: c.Timeout}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	if c.CredsFile != "" {
		path, err := outbox.CheckSecret(c.CredsFile)
		if err != nil {
			return nil, fmt.Errorf("creds_file: %w", err)
		}
		s.creds = path
	}
	return s, nil
}

// Delivery is what the outbox needs to know.
func (s *Sink) Delivery() outbox.Delivery {
	return outbox.Delivery{Name: s.c.Name, Kind: "jetstream", Sink: s, Events: s.c.Events, From: s.c.From}
}

// Batch is more than 1, since a repeat costs nothing here.
func (s *Sink) Batch() int { return 256 }

// Close ends the connection.
func (s *Sink) Close() error {
	if s.nc != nil {
		s.nc.Close()
		s.nc = nil
	}
	return nil
}

// Subject is where an event is published.
func Subject(e *outbox.Event) string { return Prefix + "." + token(e.Station) + "." + e.Type }

// token makes one token of a subject: letters, digits, dashes and underscores
// stay, and every other byte becomes =XX. Different names stay different.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// Deliver publishes the events one after the other, each with its
// acknowledgement.
func (s *Sink) Deliver(ctx context.Context, events []*outbox.Event) (done int, err error) {
	if err := s.connect(ctx); err != nil {
		return 0, err
	}
	for i, e := range events {
		if err := s.look(ctx, e); err != nil {
			return i, err
		}
		if e.Index < s.stored {
			continue // the stream has it: the cursor was behind
		}
		if err := s.publish(ctx, e); err != nil {
			s.known, s.ready = false, false
			return i, err
		}
		s.stored = e.Index + 1
	}
	return len(events), nil
}

func (s *Sink) connect(ctx context.Context) error {
	if s.nc == nil {
		options := []nats.Option{
			nats.Name("provisiond " + s.c.Name), nats.Timeout(s.timeout), nats.MaxReconnects(-1),
			nats.ReconnectBufSize(-1), // what is not sent now is sent by the outbox later, once
			nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(500*time.Millisecond, 500*time.Millisecond),
			nats.PingInterval(20 * time.Second), nats.MaxPingsOutstanding(2), nats.NoCallbacksAfterClientClose(),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // publish reports what matters
		}
		if strings.HasPrefix(s.c.Servers[0], "tls://") { // then also those that the cluster tells of
			options = append(options, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}))
		}
		if s.creds != "" {
			options = append(options, nats.UserCredentials(s.creds))
		}
		if s.c.CACert != "" {
			options = append(options, nats.RootCAs(s.c.CACert))
		}
		if s.c.CertFile != "" {
			options = append(options, nats.ClientCert(s.c.CertFile, s.c.KeyFile))
		}
		nc, err := nats.Connect(strings.Join(s.c.Servers, ","), options...)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		js, err := s.open(nc)
		if err != nil {
			nc.Close()
			return err
		}
		s.nc, s.js, s.ready, s.known = nc, js, false, false
	}
	if s.nc.IsClosed() { // for example after an authentication that was taken back
		s.nc = nil
		return errors.New("the connection was closed by the server")
	}
	if !s.ready {
		if err := s.stream(ctx); err != nil {
			return err
		}
		s.ready = true
	}
	return nil
}

func (s *Sink) open(nc *nats.Conn) (jetstream.JetStream, error) {
	if s.c.Domain != "" {
		return jetstream.NewWithDomain(nc, s.c.Domain)
	}
	return jetstream.New(nc)
}

// stream makes sure that the stream is there.
func (s *Sink) stream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.js.Stream(ctx, s.c.Stream)
	if err == nil || !errors.Is(err, jetstream.ErrStreamNotFound) {
		return wrap(err, "stream %s", s.c.Stream)
	}
	k := s.c.Create
	if k == nil {
		return fmt.Errorf("there is no stream %s: make it with the subjects %s.>, or say create", s.c.Stream, Prefix)
	}
	config := jetstream.StreamConfig{
		Name: s.c.Stream, Subjects: []string{Prefix + ".>"}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy,
		Replicas: max(1, k.Replicas), MaxAge: k.MaxAge, Duplicates: k.Duplicates, Discard: jetstream.DiscardOld,
		Description: "what the provisiond stations tell (docs/factory.md)",
	}
	if config.Duplicates == 0 {
		config.Duplicates = DefaultDuplicates
		if config.MaxAge > 0 {
			config.Duplicates = min(config.Duplicates, config.MaxAge)
		}
	}
	_, err = s.js.CreateStream(ctx, config)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		err = nil // another station was quicker
	}
	return wrap(err, "make stream %s", s.c.Stream)
}

// look asks the stream's leader for the last message of this station.
func (s *Sink) look(ctx context.Context, e *outbox.Event) error {
	if s.known && s.station == e.Station && s.journal == e.Journal {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	api := "$JS.API."
	if s.c.Domain != "" {
		api = "$JS." + s.c.Domain + ".API."
	}
	req, err := json.Marshal(map[string]string{"last_by_subj": Prefix + "." + token(e.Station) + ".>"})
	if err != nil {
		return err
	}
	// Not through Stream.GetLastMsgForSubject: where the stream allows it, that
	// asks any replica, and one that is behind would have us publish again.
	msg, err := s.nc.RequestWithContext(ctx, api+"STREAM.MSG.GET."+s.c.Stream, req)
	if err != nil {
		return fmt.Errorf("ask stream %s for its last event: %w", s.c.Stream, err)
	}
	id, err := lastID(msg.Data)
	if err != nil {
		return fmt.Errorf("ask stream %s for its last event: %w", s.c.Stream, err)
	}
	s.known, s.station, s.journal, s.stored = true, e.Station, e.Journal, 0
	if j, index, ok := parseID(id); ok && j == e.Journal {
		s.stored = index + 1
	}
	return nil
}

// maxAnswer bounds what is read of an answer: a message and its base64.
const maxAnswer = 4 << 20

// lastID finds the message id in an answer to STREAM.MSG.GET; empty if there is
// no message.
func lastID(answer []byte) (string, error) {
	if len(answer) > maxAnswer {
		return "", errors.New("the answer is too long")
	}
	var a struct {
		Error *struct {
			Code        int    `json:"code"`
			ErrCode     int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
		Message *struct {
			Headers string `json:"hdrs"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", fmt.Errorf("the answer is not understood: %w", err)
	}
	switch {
	case a.Error != nil && a.Error.ErrCode == int(jetstream.JSErrCodeMessageNotFound):
		return "", nil
	case a.Error != nil:
		return "", fmt.Errorf("%d %s", a.Error.Code, a.Error.Description)
	case a.Message == nil:
		return "", errors.New("the answer has neither message nor error")
	}
	raw, err := base64.StdEncoding.DecodeString(a.Message.Headers)
	if err != nil {
		return "", fmt.Errorf("the answer's headers are not understood: %w", err)
	}
	if len(raw) == 0 {
		return "", nil // somebody else's message
	}
	h, err := nats.DecodeHeadersMsg(raw)
	if err != nil {
		return "", fmt.Errorf("the answer's headers are not understood: %w", err)
	}
	return h.Get(jetstream.MsgIDHeader), nil
}

// parseID reads what outbox.EventID writes.
func parseID(id string) (journal string, index uint64, ok bool) {
	at := strings.LastIndexByte(id, '-')
	if at < 1 {
		return "", 0, false
	}
	index, err := strconv.ParseUint(id[at+1:], 10, 63)
	if err != nil || outbox.EventID(id[:at], index) != id {
		return "", 0, false
	}
	return id[:at], index, true
}

func (s *Sink) publish(ctx context.Context, e *outbox.Event) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	m := &nats.Msg{Subject: Subject(e), Data: e.Body, Header: nats.Header{
		"Content-Type": {"application/json"}, "Provisiond-Event": {e.Type},
	}}
	_, err := s.js.PublishMsg(ctx, m, jetstream.WithMsgID(e.ID), jetstream.WithExpectStream(s.c.Stream), jetstream.WithRetryAttempts(0))
	if errors.Is(err, nats.ErrMaxPayload) {
		return outbox.Permanent(fmt.Errorf("publish: the event has %d bytes: %w", len(e.Body), err))
	}
	return wrap(err, "publish")
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
