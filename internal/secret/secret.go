// Package secret holds key bytes so that nothing prints them by accident.
//
// The bytes sit behind a closure: reflection-based printers (fmt, JSON, zap,
// a panic's dump of arguments) reach a function pointer, never the slice.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const redacted = "[secret]"

// Bytes is a holder of key bytes. The zero value holds none.
type Bytes struct {
	get func() []byte
}

// New takes b over: the holder keeps its own copy and wipes b.
func New(b []byte) *Bytes {
	own := make([]byte, len(b))
	copy(own, b)
	clear(b)
	return &Bytes{get: func() []byte { return own }}
}

// Use lends the bytes to f. f must not keep them.
func (s *Bytes) Use(f func([]byte) error) error {
	return f(s.bytes())
}

// Len is the number of bytes held.
func (s *Bytes) Len() int { return len(s.bytes()) }

// Wipe overwrites the bytes. Copies that the runtime made are beyond reach.
func (s *Bytes) Wipe() { clear(s.bytes()) }

// Equal compares in constant time.
func (s *Bytes) Equal(o *Bytes) bool {
	return subtle.ConstantTimeCompare(s.bytes(), o.bytes()) == 1
}

func (s *Bytes) bytes() []byte {
	if s == nil || s.get == nil {
		return nil
	}
	return s.get()
}

// Format prints a placeholder for every verb.
func (s Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String is the placeholder.
func (s Bytes) String() string { return redacted }

// GoString is the placeholder.
func (s Bytes) GoString() string { return redacted }

// MarshalText is the placeholder, so JSON, YAML and XML carry no bytes.
func (s Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue is the placeholder for log/slog.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }
