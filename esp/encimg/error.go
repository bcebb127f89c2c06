package encimg

import (
	"errors"
	"fmt"
)

// Problem names, for scripts, why a file cannot be opened.
type Problem string

// The problems.
const (
	ProblemMagic Problem = "magic" // it is another kind of file
	ProblemShort Problem = "short" // the file was cut off
	ProblemLong  Problem = "long"  // bytes follow the image
	ProblemEmpty Problem = "empty" // the image has no bytes
	ProblemPoint Problem = "point" // the server's key is not on the curve
	ProblemKey   Problem = "key"   // the private key does not open the AES key
	ProblemTag   Problem = "tag"   // the bytes were changed, or the key is another
)

// Error says why a file cannot be opened.
type Error struct {
	Problem Problem
	Detail  string
	// Device is what the log of a device says that is given the file, with
	// esp_encrypted_img 2.7.1; empty where that is not known.
	Device string
}

func (e *Error) Error() string {
	s := "esp_encrypted_img: " + e.Detail
	if e.Device != "" {
		s += fmt.Sprintf(" (a device logs %q)", e.Device)
	}
	return s
}

// hint adds to an error what is likely when key and file are of two forms.
func hint(err error, as Identity, h *Header) error {
	var e *Error
	if errors.As(err, &e) && h.Form() != as.Form() {
		with := *e
		with.Detail += fmt.Sprintf("; the file looks like the form %s, the key is for %s", h.Form(), as.Form())
		return &with
	}
	return err
}

// ErrUnusableKey is an HMAC key from which no P-256 key comes. A unit with it could
// open nothing: choose another key before it is burned.
//
// The derived number must be a private key: not 0, and below the order of the
// curve. One random key in about four thousand million fails. A device with
// esp_encrypted_img 2.7.1 notices it and logs "Failed to derive ECC device key",
// but goes on with an AES key of zeros.
var ErrUnusableKey = errors.New("encimg: no P-256 key comes from this HMAC key: the number derived from it is 0 or not below the order of the curve; make another key")
