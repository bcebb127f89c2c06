package outbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// DeadLetter is an event that its sink refused for good: a line of JSON in the
// sink's file of such events.
type DeadLetter struct {
	Time   time.Time       `json:"time"` // when it was set aside
	Sink   string          `json:"sink"`
	Tries  int             `json:"tries"`
	Reason string          `json:"reason"`
	Event  json.RawMessage `json:"event"` // as it was sent
}

// Append adds the letter to a file, durably.
func (d DeadLetter) Append(path string) error {
	d.Reason = clip(d.Reason)
	line, err := encode(d)
	if err != nil {
		return err
	}
	_, err = os.Lstat(path)
	isNew := errors.Is(err, os.ErrNotExist)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if isNew {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// ParseDeadLetter reads a line of the file, without its newline.
func ParseDeadLetter(line []byte) (DeadLetter, error) {
	var d DeadLetter
	in := json.NewDecoder(bytes.NewReader(line))
	in.DisallowUnknownFields()
	if err := in.Decode(&d); err != nil {
		return DeadLetter{}, fmt.Errorf("dead letter: %w", err)
	}
	again, err := encode(d)
	if err != nil {
		return DeadLetter{}, fmt.Errorf("dead letter: %w", err)
	}
	if !bytes.Equal(again, line) {
		return DeadLetter{}, errors.New("dead letter: it is not written as provisiond writes it")
	}
	return d, nil
}

// mendDeadLetters counts the letters, and takes away a line that a crash has
// torn: the cursor was not moved then, so its event comes again.
func mendDeadLetters(path string) (n int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	in := bufio.NewReader(f)
	var at, whole int64 // bytes read, and those of whole lines
	for {
		part, err := in.ReadSlice('\n')
		at += int64(len(part))
		switch {
		case err == nil:
			n, whole = n+1, at
		case errors.Is(err, bufio.ErrBufferFull): // the rest of the line follows
		case !errors.Is(err, io.EOF):
			return n, err
		case whole == at:
			return n, nil
		default:
			return n, errors.Join(f.Truncate(whole), f.Sync())
		}
	}
}

// encode is JSON without a newline and without escapes that only HTML needs.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
