package transcript_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/transcript"
)

func load(t testing.TB, name string) *transcript.Transcript {
	t.Helper()
	tr, err := transcript.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestLoad(t *testing.T) {
	for _, tc := range []struct {
		name     string
		sessions int
		cut      int // cut lines; every one is a FLASH_DATA request
		counts   map[string]int
	}{
		{"esp32-rom", 12, 8, map[string]int{"host SPI_FLASH_MD5": 2, "chip CHANGE_BAUDRATE": 2, "host GET_SECURITY_INFO": 11}},
		{"esp32c3-rom", 14, 11, map[string]int{"host SPI_FLASH_MD5": 2, "chip CHANGE_BAUDRATE": 2, "host GET_SECURITY_INFO": 23, "chip GET_SECURITY_INFO": 23}},
	} {
		tr := load(t, tc.name)
		file, err := os.ReadFile("testdata/" + tc.name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tr.Format(), file) {
			t.Errorf("%s: Format differs from the file", tc.name)
		}
		if n := len(tr.Sessions()); n != tc.sessions {
			t.Errorf("%s: %d sessions, want %d", tc.name, n, tc.sessions)
		}
		counts, cut := map[string]int{}, 0
		for _, e := range tr.Events() {
			counts[e.Kind.String()+" "+e.Op]++
			if e.Cut {
				cut++
				if e.Op != "FLASH_DATA" || e.Kind != transcript.Host || e.Length != 1048 {
					t.Errorf("%s line %d: cut %s of %d bytes", tc.name, e.Line, e.Op, e.Length)
				}
			}
		}
		if cut != tc.cut {
			t.Errorf("%s: %d cut lines, want %d", tc.name, cut, tc.cut)
		}
		for k, want := range tc.counts {
			if counts[k] != want {
				t.Errorf("%s: %d × %s, want %d", tc.name, counts[k], k, want)
			}
		}
	}
	if _, err := transcript.Load("esp8266"); err == nil || !strings.Contains(err.Error(), "esp32-rom") {
		t.Errorf("unknown name: %v", err)
	}
}

// TestFirstSession spells out the beginning of the ESP32's recording, where
// both forms of repeats stand.
func TestFirstSession(t *testing.T) {
	s := load(t, "esp32-rom").Sessions()[0]
	if s.Mark != "esptool --no-stub read-mac" {
		t.Fatalf("mark %q", s.Mark)
	}
	var kinds strings.Builder
	for _, e := range s.Events {
		switch e.Kind {
		case transcript.Host:
			kinds.WriteString(">")
		case transcript.Chip:
			kinds.WriteString("<")
		case transcript.Text:
			kinds.WriteString("T")
			if !bytes.HasPrefix(e.Text, []byte("ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1")) || e.At != 1153*time.Millisecond {
				t.Errorf("text %q at %v", e.Text, e.At)
			}
		}
	}
	eight := strings.Repeat("<", 8)
	want := ">>>>T" + strings.Repeat("<", 32) + ">" + eight + ">" + eight + strings.Repeat("><", 16)
	if got := kinds.String(); got != want {
		t.Errorf("events\n%s, want\n%s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	const line = "    0.001 > SYNC             00\n"
	for _, in := range []string{
		"    0.001 > SYNC             00",   // no end
		"    0.001 > SYNC             0\n",  // half a byte
		"    0.001 > SYNC             0G\n", // no hex
		"    0.1 > SYNC             00\n",
		"   0.001 > SYNC             00\n", // another width
		"    0.001 ? SYNC             00\n",
		"    0.001 < text             'a\n",
		"    0.001 < text             'a\\q'\n",
		"    0.001 < text             '\\x4'\n",
		"    0.001 < text             '\\x41'\n", // written otherwise
		"    0.001 > FLASH_DATA       0003...(2 bytes)\n",
		"            (the last line 2 times in all)\n",
		line + "            (the last two lines 2 times in all)\n",
		line + "            (the last line 1 times in all)\n",
		line + "            (the last line 02 times in all)\n",
		line + "            (the last line 99999999 times in all)\n",
		line + "            (the last line 2 times in all)\n            (the last line 2 times in all)\n",
	} {
		if tr, err := transcript.Parse("x", []byte(in)); err == nil {
			t.Errorf("%q was read as %d events", in, len(tr.Events()))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range transcript.Names() {
		lines := bytes.SplitAfter(load(f, name).Format(), []byte("\n"))
		for i := 0; i+40 < len(lines) && i < 800; i += 40 {
			f.Add(bytes.Join(lines[i:i+40], nil))
		}
	}
	f.Add([]byte("    0.001 < text             '\\x00\\\\\\'\\t'\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		tr, err := transcript.Parse("fuzz", in)
		if err != nil {
			return
		}
		if out := tr.Format(); !bytes.Equal(out, in) {
			t.Fatalf("%q formats as %q", in, out)
		}
	})
}
