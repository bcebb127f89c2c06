// Package slip owns the framing of the ROM loader's serial protocol: frames
// between 0xC0 bytes, with DB DC for 0xC0 and DB DD for 0xDB (esp-facts A.1,
// RFC 1055).
//
// The line carries more than frames: the ROM prints its boot text on it, and
// noise damages bytes. A [Decoder] therefore hands out everything it was fed,
// as text, as frames or as damaged frames, holds a bounded amount, and finds
// the next frame by itself. A frame has exactly one encoded form: what decodes
// re-encodes to the same bytes.
package slip

import (
	"bytes"
	"errors"
)

// The special bytes.
const (
	End    = 0xC0 // before and after a frame
	Esc    = 0xDB // begins an escape
	EscEnd = 0xDC // Esc EscEnd is 0xC0
	EscEsc = 0xDD // Esc EscEsc is 0xDB
)

// ErrFrame is returned for bytes that are not one well-formed frame.
var ErrFrame = errors.New("not a SLIP frame")

// Append appends the encoded form of frame to dst, with both delimiters.
func Append(dst, frame []byte) []byte {
	dst = append(dst, End)
	for _, b := range frame {
		switch b {
		case End:
			dst = append(dst, Esc, EscEnd)
		case Esc:
			dst = append(dst, Esc, EscEsc)
		default:
			dst = append(dst, b)
		}
	}
	return append(dst, End)
}

// Encode returns the encoded form of frame, with both delimiters.
func Encode(frame []byte) []byte {
	return Append(make([]byte, 0, len(frame)+len(frame)/8+2), frame)
}

// Decode is the inverse of Encode. The empty frame has no place on the line,
// where two delimiters in a row are one, so it does not decode.
func Decode(encoded []byte) ([]byte, error) {
	n := len(encoded)
	if n < 3 || encoded[0] != End || encoded[n-1] != End {
		return nil, ErrFrame
	}
	frame, ok := unescape(encoded[1 : n-1])
	if !ok {
		return nil, ErrFrame
	}
	return frame, nil
}

// unescape reads the bytes between two delimiters.
func unescape(raw []byte) ([]byte, bool) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		b := raw[i]
		if b == End {
			return nil, false
		}
		if b == Esc {
			i++
			switch {
			case i < len(raw) && raw[i] == EscEnd:
				b = End
			case i < len(raw) && raw[i] == EscEsc:
				b = Esc
			default:
				return nil, false
			}
		}
		out = append(out, b)
	}
	return out, true
}

// Kind says what an Item is.
type Kind uint8

// The kinds of items.
const (
	Text    Kind = iota + 1 // bytes outside frames, as received
	Frame                   // the content of a well-formed frame
	Damaged                 // what stood in a frame that does not decode or is too long, as received
)

// Item is one piece of what was received.
type Item struct {
	Kind Kind
	Data []byte
}

// Decoder separates text and frames in a stream that arrives in pieces of any
// size. Its zero value is not usable: call NewDecoder.
type Decoder struct {
	max     int
	inFrame bool
	raw     []byte // undecoded content of the frame that is open
}

// NewDecoder returns a decoder for frames of at most maxFrame bytes of content.
func NewDecoder(maxFrame int) *Decoder { return &Decoder{max: maxFrame} }

// Feed takes the next received bytes and returns what is complete. Text is
// handed out at once; two pieces of text may follow one another. An item's data
// is the caller's.
//
// An empty frame is none: after a lost or an invented delimiter the end of one
// frame is taken for the start of the next, and the pair of delimiters between
// two frames puts it right again.
func (d *Decoder) Feed(p []byte) []Item {
	var items []Item
	for len(p) > 0 {
		i := bytes.IndexByte(p, End)
		piece := p
		if i >= 0 {
			piece = p[:i]
		}
		if d.inFrame {
			// An escape doubles a byte at most, so more than this is too long
			// whatever it decodes to. The rest of it comes as text.
			room := 2*d.max - len(d.raw)
			if len(piece) > room {
				d.raw = append(d.raw, piece[:room]...)
				items = append(items, Item{Damaged, d.take()})
				p = p[room:]
				continue
			}
			d.raw = append(d.raw, piece...)
		} else if len(piece) > 0 {
			items = append(items, Item{Text, bytes.Clone(piece)})
		}
		if i < 0 {
			break
		}
		if d.inFrame && len(d.raw) > 0 {
			items = append(items, d.close())
		} else {
			d.inFrame = true
		}
		p = p[i+1:]
	}
	return items
}

// Open reports whether a frame has begun, with at least one byte, and has not
// ended: more is expected at once.
func (d *Decoder) Open() bool { return d.inFrame && len(d.raw) > 0 }

// Flush gives up the frame that is open and returns its bytes as received, nil
// if there is none. The decoder is outside frames afterwards.
func (d *Decoder) Flush() []byte { return d.take() }

func (d *Decoder) close() Item {
	raw := d.take()
	if frame, ok := unescape(raw); ok && len(frame) <= d.max {
		return Item{Frame, frame}
	}
	return Item{Damaged, raw}
}

func (d *Decoder) take() []byte {
	raw := d.raw
	d.raw, d.inFrame = nil, false
	return raw
}
