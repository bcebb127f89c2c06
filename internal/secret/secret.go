// Package secret holds key bytes so that nothing prints them by accident.
//
// The bytes sit behind a closure: reflection-based printers (fmt, JSON, zap,
// a panic's dump of arguments) reach a function pointer, never the slice. The
// package promises that no format verb, marshaller or panic shows them, also
// when a Bytes lies in an unexported field of another struct, where fmt cannot
// call its methods.
//
// It also owns the fingerprint of a key, so that every layer (eFuse snapshots,
// key records, the journal) names a key in the same way.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
)

// Redacted is what stands wherever a printer or marshaller meets a Bytes.
const Redacted = "[secret]"

// fingerprintDomain keeps key fingerprints apart from every other SHA-256. It
// must never change: fingerprints are stored for as long as boards live.
const fingerprintDomain = "provisiond key fingerprint v1\x00"

// ErrEmpty is returned by Use when there are no bytes: none were ever put in,
// or they have been wiped. Lending zeros instead could burn a key of zeros.
var ErrEmpty = errors.New("no key bytes: the holder is empty or was wiped")

// Bytes is a holder of key bytes. The zero value holds none. Copies share the
// bytes, and a wipe of one wipes all. It is safe for concurrent use.
type Bytes struct {
	cell func() *cell
}

// cell is only ever reached through the closure.
type cell struct {
	mu    sync.Mutex
	b     []byte
	users int
	wiped bool
}

// New takes b over: the holder keeps its own copy and wipes b.
func New(b []byte) *Bytes {
	c := &cell{b: append(make([]byte, 0, len(b)), b...)}
	clear(b)
	return &Bytes{cell: func() *cell { return c }}
}

// Use lends the bytes to f. f must neither keep nor change them. A Wipe that
// comes meanwhile takes effect when f has returned. Without bytes f is not
// called and the error is ErrEmpty.
func (s *Bytes) Use(f func([]byte) error) error {
	c := s.get()
	if c == nil {
		return ErrEmpty
	}
	c.mu.Lock()
	if c.wiped || len(c.b) == 0 {
		c.mu.Unlock()
		return ErrEmpty
	}
	c.users++
	b := c.b
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.users--
		c.clearIfDone()
	}()
	return f(b[:len(b):len(b)])
}

// Len is the number of bytes held, 0 after a wipe.
func (s *Bytes) Len() int {
	c := s.get()
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wiped {
		return 0
	}
	return len(c.b)
}

// Wipe overwrites the bytes; from then on the holder is empty. Copies that the
// runtime made are beyond reach.
func (s *Bytes) Wipe() {
	c := s.get()
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wiped = true
	c.clearIfDone()
}

// clearIfDone is called with mu held.
func (c *cell) clearIfDone() {
	if c.wiped && c.users == 0 {
		clear(c.b)
		c.b = nil
	}
}

// Equal compares in constant time. Two empty holders are not equal: an absent
// key matches nothing.
func (s *Bytes) Equal(o *Bytes) bool {
	equal := false
	err := s.Use(func(a []byte) error {
		return o.Use(func(b []byte) error {
			equal = subtle.ConstantTimeCompare(a, b) == 1
			return nil
		})
	})
	return err == nil && equal
}

// Fingerprint names key bytes without giving them away: SHA-256 over a domain
// prefix and the bytes in the order of a key file (a key block read from a chip
// is turned round first, esp-facts B.9). It hides only what cannot be guessed,
// so it is for uniformly random keys.
func Fingerprint(key []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(fingerprintDomain))
	h.Write(key)
	var fp [sha256.Size]byte
	h.Sum(fp[:0])
	// The hash and its copy in Sum have the key's bytes in their buffers, on the stack.
	h.Reset()
	var zero [sha256.BlockSize - 1]byte
	h.Write(zero[:])
	sweep()
	return fp
}

// sweep overwrites what the functions called before it have left on the stack.
//
//go:noinline
func sweep() {
	var b [4 << 10]byte
	for i := range b {
		b[i] = 0xA5
	}
	runtime.KeepAlive(&b)
}

func (s *Bytes) get() *cell {
	if s == nil || s.cell == nil {
		return nil
	}
	return s.cell()
}

// Format prints a placeholder for every verb.
func (s Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// String is the placeholder.
func (s Bytes) String() string { return Redacted }

// GoString is the placeholder.
func (s Bytes) GoString() string { return Redacted }

// MarshalText is the placeholder, so JSON, YAML and XML carry no bytes.
func (s Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// LogValue is the placeholder for log/slog.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }
