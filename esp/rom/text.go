package rom

import (
	"context"
	"fmt"
)

// maxText bounds the text that is kept of a chip that does not stop printing.
const maxText = 1 << 20

// ReadText reads what the chip prints, as it comes, until the predicate is true
// of all text so far. It returns what was read also with an error: the context's
// when that ended, ErrUnplugged when the port is gone.
func ReadText(ctx context.Context, p Port, until func(text []byte) bool) ([]byte, error) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(ctx, buf)
		text = append(text, buf[:n]...)
		switch {
		case n > 0 && until(text):
			return text, nil
		case err != nil && ctx.Err() != nil:
			return text, ctx.Err()
		case err != nil:
			return text, fmt.Errorf("read the boot log: %w", err)
		case len(text) > maxText:
			return text, fmt.Errorf("read the boot log: more than %d bytes and not what was waited for", maxText)
		}
	}
}
