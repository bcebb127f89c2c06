//go:build !linux || ppc || ppc64 || ppc64le

package serve

import (
	"context"
	"errors"
)

// PTY needs Linux. Use TCP or RFC2217 elsewhere.
func PTY(context.Context, Host, string) error {
	return errors.New("a pseudo terminal for a simulated board needs Linux: use a TCP listener")
}
