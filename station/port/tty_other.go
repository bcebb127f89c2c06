//go:build !linux

package port

import (
	"context"
	"errors"
)

func openTTY(context.Context, string, Options) (Port, error) {
	return nil, errors.New("ttys are supported on Linux only: use socket://, rfc2217:// or sim:// here")
}
