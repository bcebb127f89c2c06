package espsim

// The simulation frames for itself: a mistake in the client's SLIP code must
// not cancel itself out here.

const (
	slipEnd    = 0xC0
	slipEsc    = 0xDB
	slipEscEnd = 0xDC
	slipEscEsc = 0xDD

	// maxFrame is what the ROM's buffer takes: the largest MEM_DATA packet.
	maxFrame = 8 + 16 + 0x1800
)

// slipReader puts the bytes of a line together to frames.
type slipReader struct {
	buf    []byte
	inside bool
	esc    bool
	bad    bool // an escape that is none, or too long
}

// frame is what stood between two delimiters.
type frame struct {
	body []byte
	bad  bool
}

// feed takes one byte and gives a frame when it was the frame's end. Nothing
// between two delimiters is no frame, and bytes before the first delimiter are
// line noise.
func (s *slipReader) feed(b byte) (frame, bool) {
	if b == slipEnd {
		f := frame{body: s.buf, bad: s.bad || s.esc}
		done := s.inside && (len(s.buf) > 0 || f.bad)
		*s = slipReader{inside: !done}
		return f, done
	}
	switch {
	case !s.inside:
		return frame{}, false
	case s.esc:
		s.esc = false
		switch b {
		case slipEscEnd:
			b = slipEnd
		case slipEscEsc:
			b = slipEsc
		default:
			s.bad = true
		}
	case b == slipEsc:
		s.esc = true
		return frame{}, false
	}
	if len(s.buf) == maxFrame {
		s.bad = true
		return frame{}, false
	}
	s.buf = append(s.buf, b)
	return frame{}, false
}

// slipEncode frames p.
func slipEncode(p []byte) []byte {
	out := append(make([]byte, 0, len(p)+2), slipEnd)
	for _, b := range p {
		switch b {
		case slipEnd:
			out = append(out, slipEsc, slipEscEnd)
		case slipEsc:
			out = append(out, slipEsc, slipEscEsc)
		default:
			out = append(out, b)
		}
	}
	return append(out, slipEnd)
}
