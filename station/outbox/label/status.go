package label

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// NotReadyError says why a printer cannot print.
type NotReadyError struct {
	Reasons []string
}

// Error names the reasons.
func (e *NotReadyError) Error() string {
	return "the printer is not ready: " + strings.Join(e.Reasons, ", ")
}

// maxStatus bounds the answer to ~HS: three lines of about 40 bytes each.
const maxStatus = 512

// ask asks for the host status and reads its three lines.
func ask(conn io.ReadWriter) error {
	if _, err := io.WriteString(conn, "~HS\r\n"); err != nil {
		return fmt.Errorf("printer: %w", err)
	}
	var answer []byte
	buf := make([]byte, 128)
	for bytes.Count(answer, []byte{etx}) < 3 {
		n, err := conn.Read(buf)
		answer = append(answer, buf[:n]...)
		if len(answer) > maxStatus {
			return errors.New("printer: its answer to ~HS is too long: set status: false")
		}
		if err != nil {
			return fmt.Errorf("printer: it does not answer ~HS: %w: set status: false if it cannot", err)
		}
	}
	return ParseStatus(answer)
}

const (
	stx = 2
	etx = 3
)

// ParseStatus reads the answer to ~HS (Zebra's ZPL programming guide, "~HS Host
// Status Return"): three strings between STX and ETX. A *NotReadyError says what
// keeps the printer from printing.
func ParseStatus(answer []byte) error {
	var lines [3][]string
	rest := answer
	for i, fields := range [3]int{12, 11, 2} {
		_, after, ok := bytes.Cut(rest, []byte{stx})
		if !ok {
			return errors.New("printer: its answer to ~HS has no three strings")
		}
		line, after, ok := bytes.Cut(after, []byte{etx})
		if !ok {
			return errors.New("printer: its answer to ~HS has no three strings")
		}
		if lines[i] = strings.Split(string(line), ","); len(lines[i]) < fields {
			return fmt.Errorf("printer: string %d of its answer to ~HS has %d fields, and not %d", i+1, len(lines[i]), fields)
		}
		rest = after
	}
	var no NotReadyError
	for _, c := range []struct {
		line, field int
		reason      string
	}{
		{0, 1, "no paper"},
		{0, 2, "paused"},
		{0, 5, "its buffer is full"},
		{0, 10, "too cold"},
		{0, 11, "too hot"},
		{1, 2, "the head is open"},
		{1, 3, "no ribbon"},
	} {
		switch v := strings.TrimSpace(lines[c.line][c.field]); v {
		case "0":
		case "1":
			no.Reasons = append(no.Reasons, c.reason)
		default:
			return fmt.Errorf("printer: field %d of string %d of its answer to ~HS is neither 0 nor 1", c.field+1, c.line+1)
		}
	}
	if len(no.Reasons) > 0 {
		return &no
	}
	return nil
}
