package port

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func decodeAll(chunks ...[]byte) (events []telEvent, err error) {
	var d telDecoder
	for _, c := range chunks {
		if err = d.decode(c, func(ev telEvent) {
			ev.data = bytes.Clone(ev.data)
			if n := len(events); n > 0 && ev.kind == telData && events[n-1].kind == telData {
				events[n-1].data = append(events[n-1].data, ev.data...)
				return
			}
			events = append(events, ev)
		}); err != nil {
			break
		}
	}
	return events, err
}

func encodeAll(events []telEvent) (b []byte) {
	for _, ev := range events {
		b = appendEvent(b, ev)
	}
	return b
}

func TestTelnetRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"undefined command":        {255, 7},
		"empty subnegotiation":     {255, 250, 255, 240},
		"command in one":           {255, 250, 44, 255, 251},
		"endless subnegotiation":   append([]byte{255, 250}, make([]byte, maxSub+2)...),
		"endless, of escaped 0xff": append([]byte{255, 250}, bytes.Repeat([]byte{255}, 2*maxSub+4)...),
	} {
		if _, err := decodeAll(b); !errors.Is(err, errTelnet) {
			t.Errorf("%s gave %v", name, err)
		}
	}
}

func FuzzTelnet(f *testing.F) {
	for _, b := range [][]byte{
		nil, []byte("data"),
		{255, 255},
		{'a', 255, 255, 'b', 255, 241, 'c'},
		{255, 251, 44, 255, 253, 0, 255, 252, 255},
		{255, 250, 44, 101, 0, 1, 255, 255, 0, 255, 240, 'x'},
		{255, 250, 255, 255, 255, 240},
		{255, 250, 44, 107, 0},
		{255, 7},
		{255, 240},
	} {
		f.Add(b, uint(1))
		f.Add(b, uint(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint) {
		events, err := decodeAll(b)
		again := encodeAll(events)
		if err == nil {
			// The rest is an event that is not complete yet.
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("% x decodes, but encodes to % x", b, again)
			}
			if rest := b[len(again):]; len(rest) > 0 && rest[0] != telIAC {
				t.Fatalf("% x of % x was swallowed", rest, b)
			}
		}
		at := int(cut % uint(len(b)+1))
		inTwo, errTwo := decodeAll(b[:at], b[at:])
		if (err == nil) != (errTwo == nil) || !bytes.Equal(encodeAll(inTwo), again) {
			t.Fatalf("cut at %d, % x decodes to something else (%v, %v)", at, b, err, errTwo)
		}
		// Any bytes survive as data.
		if events, err := decodeAll(appendData(nil, b)); err != nil || (len(b) > 0 && (len(events) != 1 || !bytes.Equal(events[0].data, b))) {
			t.Fatalf("as data, % x comes back as %v, %v", b, events, err)
		}
	})
}

func TestDataSent(t *testing.T) {
	data := []byte{1, 255, 2, 255, 255}
	encoded := appendData(nil, data)
	for n := range len(encoded) + 1 {
		sent, cut := dataSent(data, n)
		have := appendData(nil, data[:sent])
		if want := len(have) < n; cut != want || !bytes.HasPrefix(encoded[:n], have) || n-len(have) > 1 {
			t.Errorf("%d bytes: %d sent, cut %v", n, sent, cut)
		}
	}
}

func TestLineBits(t *testing.T) {
	const other = 0x4000 | unix.TIOCM_CTS // TIOCM_OUT2
	for _, c := range []struct {
		dtr, rts bool
		want     int
	}{
		{false, false, other},
		{true, false, other | unix.TIOCM_DTR},
		{false, true, other | unix.TIOCM_RTS},
		{true, true, other | unix.TIOCM_DTR | unix.TIOCM_RTS},
	} {
		for _, before := range []int{other, other | unix.TIOCM_DTR | unix.TIOCM_RTS} {
			if got := lineBits(before, c.dtr, c.rts); got != c.want {
				t.Errorf("lineBits(%#x, %v, %v) = %#x, want %#x", before, c.dtr, c.rts, got, c.want)
			}
		}
	}
}
