package slip_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/slip"
	"github.com/provisiond/provisiond/internal/transcript"
)

func TestEncode(t *testing.T) {
	for _, tc := range []struct{ frame, encoded string }{
		{"a", "\xC0a\xC0"},
		{"\xC0", "\xC0\xDB\xDC\xC0"},
		{"\xDB", "\xC0\xDB\xDD\xC0"},
		{"\xDB\xDC\xC0\xDD", "\xC0\xDB\xDD\xDC\xDB\xDC\xDD\xC0"},
	} {
		if got := slip.Encode([]byte(tc.frame)); string(got) != tc.encoded {
			t.Errorf("Encode(%x) = %x, want %x", tc.frame, got, tc.encoded)
		}
		if got, err := slip.Decode([]byte(tc.encoded)); err != nil || string(got) != tc.frame {
			t.Errorf("Decode(%x) = %x, %v, want %x", tc.encoded, got, err, tc.frame)
		}
	}
	if got := slip.Append([]byte("x"), []byte("y")); string(got) != "x\xC0y\xC0" {
		t.Errorf("Append = %q", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, in := range []string{"", "\xC0", "\xC0\xC0", "a\xC0", "\xC0a", "\xC0\xDB\xC0", "\xC0\xDBx\xC0", "\xC0a\xC0b\xC0"} {
		if got, err := slip.Decode([]byte(in)); !errors.Is(err, slip.ErrFrame) {
			t.Errorf("Decode(%x) = %x, %v, want ErrFrame", in, got, err)
		}
	}
}

func TestDecoder(t *testing.T) {
	text := func(s string) slip.Item { return slip.Item{Kind: slip.Text, Data: []byte(s)} }
	frame := func(s string) slip.Item { return slip.Item{Kind: slip.Frame, Data: []byte(s)} }
	damaged := func(s string) slip.Item { return slip.Item{Kind: slip.Damaged, Data: []byte(s)} }
	for _, tc := range []struct {
		name, in string
		want     []slip.Item
		flush    string
	}{
		{"text and frame", "rst:0x1\r\n\xC0ab\xC0\r\n", []slip.Item{text("rst:0x1\r\n"), frame("ab"), text("\r\n")}, ""},
		{"frames in a row", "\xC0a\xC0\xC0b\xC0", []slip.Item{frame("a"), frame("b")}, ""},
		{"repeated delimiters", "\xC0\xC0\xC0a\xC0", []slip.Item{frame("a")}, ""},
		{"bad escape", "\xC0a\xDBz\xC0\xC0b\xC0", []slip.Item{damaged("a\xDBz"), frame("b")}, ""},
		{"escape cut by the end", "\xC0a\xDB\xC0\xC0b\xC0", []slip.Item{damaged("a\xDB"), frame("b")}, ""},
		{"first delimiter lost", "ab\xC0\xC0cd\xC0", []slip.Item{text("ab"), frame("cd")}, ""},
		{"last delimiter lost", "\xC0ab\xC0cd\xC0\xC0ef\xC0", []slip.Item{frame("ab"), text("cd"), frame("ef")}, ""},
		{"delimiter invented", "\xC0a\xC0b\xC0\xC0cd\xC0", []slip.Item{frame("a"), text("b"), frame("cd")}, ""},
		{"too long", "\xC0" + strings.Repeat("x", 10) + "\xC0\xC0a\xC0", []slip.Item{damaged("xxxxxxxx"), text("xx"), frame("a")}, ""},
		{"long only when decoded", "\xC0xxxxx\xC0", []slip.Item{damaged("xxxxx")}, ""},
		{"longest with escapes", "\xC0\xDB\xDC\xDB\xDC\xDB\xDC\xDB\xDC\xC0", []slip.Item{frame("\xC0\xC0\xC0\xC0")}, ""},
		{"open frame", "x\xC0abc", []slip.Item{text("x")}, "abc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := slip.NewDecoder(4)
			got := d.Feed([]byte(tc.in))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("whole: %s", diff)
			}
			if d.Open() != (tc.flush != "") {
				t.Errorf("Open = %v", d.Open())
			}
			if got := d.Flush(); string(got) != tc.flush {
				t.Errorf("Flush = %q, want %q", got, tc.flush)
			}
			if d.Open() {
				t.Error("open after Flush")
			}
			if diff := cmp.Diff(tc.want, feedAll(slip.NewDecoder(4), []byte(tc.in), 1)); diff != "" {
				t.Errorf("byte by byte: %s", diff)
			}
		})
	}
}

// feedAll feeds p in pieces of n bytes and joins neighbouring pieces of text,
// whose limits alone may depend on the pieces.
func feedAll(d *slip.Decoder, p []byte, n int) []slip.Item {
	var items []slip.Item
	for len(p) > 0 {
		k := min(n, len(p))
		for _, it := range d.Feed(p[:k]) {
			if last := len(items) - 1; it.Kind == slip.Text && last >= 0 && items[last].Kind == slip.Text {
				items[last].Data = append(items[last].Data, it.Data...)
				continue
			}
			items = append(items, it)
		}
		p = p[k:]
	}
	return items
}

// TestDecoderRecovers damages every byte of a stream in turn: at most the
// damaged frame and its neighbour are lost.
func TestDecoderRecovers(t *testing.T) {
	var stream []byte
	const frames = 6
	for i := range frames {
		stream = slip.Append(stream, []byte{byte(i), 0xC0, 0x55, 0xDB, byte(i)})
	}
	for i := range stream {
		for _, b := range []byte{0xC0, 0xDB, 0x00, stream[i] ^ 0x10} {
			s := bytes.Clone(stream)
			s[i] = b
			good := 0
			for _, it := range slip.NewDecoder(64).Feed(s) {
				if it.Kind == slip.Frame && len(it.Data) == 5 && it.Data[0] == it.Data[4] {
					good++
				}
			}
			if good < frames-2 {
				t.Errorf("byte %d as %02x: %d of %d frames left", i, b, good, frames)
			}
		}
	}
}

// check holds what must be true of any input.
func check(t *testing.T, in []byte, pieces int) {
	t.Helper()
	const maxFrame = 48
	whole := slip.NewDecoder(maxFrame)
	items := feedAll(whole, in, len(in)+1)
	cut := slip.NewDecoder(maxFrame)
	if diff := cmp.Diff(items, feedAll(cut, in, pieces)); diff != "" {
		t.Fatalf("pieces of %d change the result: %s", pieces, diff)
	}
	rest := whole.Flush()
	if !bytes.Equal(rest, cut.Flush()) {
		t.Fatal("pieces change what is left")
	}
	// Nothing is lost or invented: without delimiters, input and output agree.
	var out []byte
	for _, it := range items {
		switch it.Kind {
		case slip.Frame:
			if len(it.Data) > maxFrame || len(it.Data) == 0 {
				t.Fatalf("frame of %d bytes", len(it.Data))
			}
			enc := slip.Encode(it.Data)
			if !bytes.Contains(in, enc) {
				t.Fatalf("frame %x was not sent as %x", it.Data, enc)
			}
			if back, err := slip.Decode(enc); err != nil || !bytes.Equal(back, it.Data) {
				t.Fatalf("Decode(Encode(%x)) = %x, %v", it.Data, back, err)
			}
			out = append(out, enc[1:len(enc)-1]...)
		default:
			out = append(out, it.Data...)
		}
	}
	out = append(out, rest...)
	if want := bytes.ReplaceAll(in, []byte{slip.End}, nil); !bytes.Equal(out, want) {
		t.Fatalf("received %x, handed out %x", want, out)
	}
	if frame, err := slip.Decode(in); err == nil && !bytes.Equal(slip.Encode(frame), in) {
		t.Fatalf("Encode(Decode(%x)) = %x", in, slip.Encode(frame))
	}
}

func TestDecoderRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := []byte{0xC0, 0xC0, 0xDB, 0xDC, 0xDD, 0x00, 'a'}
	for range 2000 {
		in := make([]byte, rng.IntN(200))
		for i := range in {
			in[i] = alphabet[rng.IntN(len(alphabet))]
		}
		check(t, in, 1+rng.IntN(9))
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range transcript.Names() {
		tr, err := transcript.Load(name)
		if err != nil {
			f.Fatal(err)
		}
		seen := map[string]bool{}
		for _, e := range tr.Events() {
			if seen[e.Op+e.Kind.String()] || e.Cut {
				continue
			}
			seen[e.Op+e.Kind.String()] = true
			switch e.Kind {
			case transcript.Host, transcript.Chip:
				f.Add(slip.Encode(e.Frame), byte(5))
			case transcript.Text:
				f.Add(e.Text, byte(64))
			}
		}
	}
	f.Add([]byte("x\xC0a\xDB\xDC\xC0\xC0\xDBz\xC0"), byte(1))
	f.Fuzz(func(t *testing.T, in []byte, pieces byte) { check(t, in, int(pieces)+1) })
}
