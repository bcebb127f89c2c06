package canon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/canon"
)

func TestAppendString(t *testing.T) {
	for in, want := range map[string]string{
		"":                      `""`,
		"a/b<c>&":               `"a/b<c>&"`,
		"\"\\":                  `"\"\\"`,
		"\b\t\n\f\r":            `"\b\t\n\f\r"`,
		"\x00\x01\x0b\x1f":      `"\u0000\u0001\u000b\u001f"`,
		"\x7fü\u2028\U0001F600": "\"\x7fü\u2028\U0001F600\"",
		"a\xffb":                "\"a\ufffdb\"",
	} {
		if got := string(canon.AppendString(nil, in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestObject(t *testing.T) {
	for in, want := range map[string]string{
		`{}`: `{}`,
		" {\n\t\"b\" : [ 1 , {} , [ ] ] , \"a\" : null } ":   `{"a":null,"b":[1,{},[]]}`,
		`{"a":"\u0041\/\u00e9"}`:                             `{"a":"A/é"}`,
		`{"B":1,"a":2,"A":3,"_":4}`:                          `{"A":3,"B":1,"_":4,"a":2}`,
		`{"a":9007199254740991,"b":-9007199254740991,"c":0}`: `{"a":9007199254740991,"b":-9007199254740991,"c":0}`,
		`{"a":"\ud800"}`:                                     "{\"a\":\"\ufffd\"}",
	} {
		got, err := canon.Object([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
	}
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	for in, word := range map[string]string{
		``: "early", `[]`: "not a JSON object", `1`: "not a JSON object", `{`: "early", `{"a":1`: "early", `{"a":1}}`: "text after", `{"a":1}x`: "text after",
		`{"a":1.5}`: "member a", `{"x":{"y":[0,1e3]}}`: "member x.y[1]", `{"a":-0}`: "member a", `{"a":9007199254740992}`: "member a",
		`{"a":1,"a":1}`: "twice", `{"":1}`: "member name", `{"ü":1}`: "member name", `{"a\"":1}`: "member name",
		"{\"a\":\"\xff\"}": "UTF-8", deep: "deep", `{"a" 1}`: "not JSON",
		`{"` + strings.Repeat("n", 65) + `":1}`: "member name",
	} {
		if _, err := canon.Object([]byte(in)); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want %q", in, err, word)
		}
	}
}

// TestDepth: Object and Reader agree on how deep values may be nested.
func TestDepth(t *testing.T) {
	for depth, ok := range map[int]bool{31: true, 32: true, 33: false, 1000: false} {
		for _, inner := range []string{`1`, `"s"`, `null`} {
			text := []byte(`{"a":` + strings.Repeat("[", depth-1) + inner + strings.Repeat("]", depth-1) + `}`)
			_, err := canon.Object(text)
			r := canon.NewReader(append(append([]byte(`{"o":`), text...), '}'))
			r.Field(true, "o")
			r.Object("o")
			if errReader := r.End(); (err == nil) != ok || (errReader == nil) != ok {
				t.Errorf("%d deep around %s: %v; %v", depth, inner, err, errReader)
			}
		}
	}
}

// TestErrorsDoNotEcho feeds a secret in every wrong place.
func TestErrorsDoNotEcho(t *testing.T) {
	const s = "deadbeefcafe"
	for _, in := range []string{s, `{"a":` + s, `{"a":"` + s, `{"a":1` + s + `}`, `{"a":1}` + s, `{` + s + `:1}`, `{"a":0.` + s + `}`, `{"a":"\x` + s + `"}`} {
		if _, err := canon.Object([]byte(in)); err == nil || strings.Contains(err.Error(), s[:4]) {
			t.Errorf("%s: %v", in, err)
		}
		r := canon.NewReader([]byte(in))
		r.Field(true, "a")
		r.Hex("a", 4)
		if err := r.End(); err == nil || strings.Contains(err.Error(), s[:4]) {
			t.Errorf("reader, %s: %v", in, err)
		}
	}
}

func TestReader(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC)
	text := []byte(`{"n":42,"s":"a\"\\\b\t\n\f\r\u0001ü","x":"00ff","o":{"k":[true,false,null,"\u001f",-1]},"b":true,"t":`)
	text = append(canon.AppendTime(text, at.In(time.FixedZone("", 3600))), '}')
	r := canon.NewReader(text)
	r.Field(true, "n")
	n := r.Uint("n", 42)
	r.Field(false, "s")
	s := r.String("s")
	r.Field(false, "x")
	x := r.Hex("x", 2)
	r.Field(false, "o")
	o := r.Object("o")
	r.Field(false, "b")
	b := r.Bool("b")
	r.Field(false, "t")
	when := r.Time("t")
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	if n != 42 || s != "a\"\\\b\t\n\f\r\x01ü" || !bytes.Equal(x, []byte{0, 255}) || !b || !when.Equal(at) || when.Location() != time.UTC ||
		string(o) != `{"k":[true,false,null,"\u001f",-1]}` {
		t.Errorf("%d %q %x %s %v %v", n, s, x, o, b, when)
	}
	// Every cut is an error and no panic.
	for cut := range text {
		r := canon.NewReader(text[:cut])
		r.Field(true, "n")
		r.Uint("n", 42)
		r.Field(false, "s")
		r.String("s")
		r.Field(false, "x")
		r.Hex("x", 2)
		r.Field(false, "o")
		r.Object("o")
		r.Field(false, "b")
		r.Bool("b")
		r.Field(false, "t")
		r.Time("t")
		if r.End() == nil {
			t.Errorf("cut at %d: no error", cut)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		read func(*canon.Reader)
	}{
		"large":        {`{"a":43}`, func(r *canon.Reader) { r.Uint("a", 42) }},
		"negative":     {`{"a":-1}`, func(r *canon.Reader) { r.Uint("a", 42) }},
		"no bool":      {`{"a":tru}`, func(r *canon.Reader) { r.Bool("a") }},
		"odd hex":      {`{"a":"0"}`, func(r *canon.Reader) { r.Hex("a", 4) }},
		"long hex":     {`{"a":"0011"}`, func(r *canon.Reader) { r.Hex("a", 1) }},
		"array":        {`{"a":[]}`, func(r *canon.Reader) { r.Object("a") }},
		"deep":         {`{"a":{"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}}`, func(r *canon.Reader) { r.Object("a") }},
		"leading":      {`{"a":{,"x":1}}`, func(r *canon.Reader) { r.Object("a") }},
		"trailing":     {`{"a":[1,]}`, func(r *canon.Reader) { r.Object("a") }},
		"name":         {`{"a":{"":1}}`, func(r *canon.Reader) { r.Object("a") }},
		"escaped name": {`{"a":{"\u0062":1}}`, func(r *canon.Reader) { r.Object("a") }},
		"DEL in name":  {"{\"a\":{\"\x7f\":1}}", func(r *canon.Reader) { r.Object("a") }},
		"word":         {`{"a":{"x":True}}`, func(r *canon.Reader) { r.Object("a") }},
		"time":         {`{"a":"2026-01-02T03:04:05Z"}`, func(r *canon.Reader) { r.Time("a") }},
	} {
		r := canon.NewReader([]byte(c.text))
		r.Field(true, "a")
		c.read(r)
		if err := r.End(); err == nil || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWalk(t *testing.T) {
	var got []string
	err := canon.Walk([]byte(`{"a":"x","b":{"c":["y",{"d":"z"}],"e":[1,2,255],"f":[256],"g":[]},"h":[-1],"i":null,"j":true,"k":[[7],8]}`),
		func(l canon.Leaf) { got = append(got, fmt.Sprintf("%s=%s/%v%d", l.Name, l.Text, l.Array, l.Bytes)) })
	want := []string{"a=x/false0", "c=y/false0", "d=z/false0", "e=/true3", "g=/true0", "k=/true1"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{`{`, `{"a"`, `{"a":[`, `{"a":[1`, `{"a":x}`} {
		if err := canon.Walk([]byte(bad), func(canon.Leaf) {}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"b":[1,{"a":"\u00e9"}],"a":null}`, `{"a":"\ud83d\ude00\u2028\u0000"}`, `{"a":-0}`, `{"a":[[],{}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := canon.Object(in)
		if err != nil {
			return
		}
		again, err := canon.Object(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%s: %s, %v", out, again, err)
		}
		r := canon.NewReader(append(append([]byte(`{"o":`), out...), '}'))
		r.Field(true, "o")
		if got := r.Object("o"); r.End() != nil || !bytes.Equal(got, out) {
			t.Fatalf("the reader refuses %s", out)
		}
		var a, b any
		if json.Unmarshal(in, &a) != nil || json.Unmarshal(out, &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%s became %s", in, out)
		}
		if err := canon.Walk(out, func(canon.Leaf) {}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzTime: Time takes exactly what the standard library formats so.
func FuzzTime(f *testing.F) {
	for _, s := range []string{"2026-11-22T16:15:00.000000000Z", "2024-02-29T23:59:59.999999999Z", "2023-02-29T00:00:00.000000000Z", "2026-04-31T00:00:00.000000000Z", "0000-01-01T00:00:00.000000001Z", "2026-13-01T24:60:60.00000000:Z"} {
		f.Add(s)
	}
	const layout = "2006-01-02T15:04:05.000000000Z"
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c == '"' || c == '\\' }) {
			return
		}
		r := canon.NewReader([]byte(`{"t":"` + s + `"}`))
		r.Field(true, "t")
		got := r.Time("t")
		err := r.End()
		want, errWant := time.Parse(layout, s)
		ok := errWant == nil && want.Format(layout) == s
		if (err == nil) != ok || ok && !got.Equal(want) {
			t.Fatalf("%q: %v, %v; the standard library: %v, %v", s, got, err, want, errWant)
		}
	})
}
